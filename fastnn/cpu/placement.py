"""Which CPUs fastnn's own threads may run on.

Linux likes to wake a thread on the CPU of the one that wakes it, and leaves both there for tens of milliseconds while
another CPU idles: a product of 512 x 512 took 2.8 ms with a helper, 1.8 ms without one, and 1.0 ms with a helper that
may not run on the caller's CPU.  So the threads that work together keep apart.  A caller that the system moves to its
helper's CPU stays there, too: in every third process a product of 32 x 256 x 256 took 110 us instead of 53, from some
moment on.  So helpers go out of its way at the next job.  Only the affinity of threads that fastnn started is set;
where the system has no such call, threads go where it puts them.
"""

import ctypes
import os

import numpy as np


def _function(name: str) -> int:
    """The address of a function of the C library on Linux, or 0."""
    if not hasattr(os, "sched_setaffinity"):
        return 0
    function = getattr(ctypes.CDLL(None), name, None)
    return (ctypes.cast(function, ctypes.c_void_p).value or 0) if function else 0


WHERE, MOVE = _function("sched_getcpu"), _function("sched_setaffinity")
_sched_getcpu = ctypes.CFUNCTYPE(ctypes.c_int)(WHERE) if WHERE else None


def allowed() -> list[int]:
    """The CPUs of the calling thread, or none where that cannot be said."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def apart(threads: int) -> list[set[int]]:
    """Disjoint sets of CPUs for the threads of a team; all of them for each where there are fewer than threads."""
    cpus = allowed()
    if threads > len(cpus):
        return [set(cpus)] * threads
    return [set(cpus[i::threads]) for i in range(threads)]


def elsewhere() -> set[int]:
    """All CPUs but the one that the caller is on."""
    return set(allowed()) - {here()} if WHERE else set()


def here() -> int:
    """The CPU that the caller is on, or -1 where that cannot be said."""
    return _sched_getcpu() if _sched_getcpu else -1


def masks() -> np.ndarray:
    """For each CPU the set of all others that the caller may run on, as the system takes it (a row); or nothing."""
    cpus = allowed()
    if not WHERE or len(cpus) < 2:
        return np.zeros((0, 0), np.uint8)
    bits = np.zeros((max(cpus) + 1, -(-(max(cpus) + 1) // 64) * 64), np.uint8)
    bits[:, cpus] = 1
    np.fill_diagonal(bits, 0)
    return np.packbits(bits, axis=1, bitorder="little")


def keep_to(cpus: set[int], thread: int = 0) -> None:
    """Restrict a thread, which must be one of fastnn's own, to these CPUs; an empty set changes nothing.

    `thread` is its number in the system, or 0 for the caller.
    """
    if cpus and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(thread, cpus)
        except OSError:  # the CPUs or the thread were taken away meanwhile (a container's settings changed)
            return
