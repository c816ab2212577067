"""Which CPUs fastnn's own threads may run on.

Linux likes to wake a thread on the CPU of the one that wakes it, and leaves both there for tens of milliseconds while
another CPU idles: a product of 512 x 512 took 2.8 ms with a helper, 1.8 ms without one, and 1.0 ms with a helper that
may not run on the caller's CPU.  So the threads that work together keep apart.  Only the affinity of threads that
fastnn started is set; where the system has no such call, threads go where it puts them.
"""

import ctypes
import os


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
    try:
        here = ctypes.CDLL(None).sched_getcpu()
    except (AttributeError, TypeError, OSError):  # not Linux
        return set()
    return set(allowed()) - {here}


def keep_to(cpus: set[int]) -> None:
    """Restrict the calling thread, which must be one of fastnn's own, to these CPUs; an empty set changes nothing."""
    if cpus and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:  # the CPUs were taken away meanwhile (a container's settings changed): any will do
            return
