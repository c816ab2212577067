"""A cold start: what a program needs and no cache has is compiled by several processes.

Numba's front end holds Python's lock, so threads would compile one after the other.  A small network needs a dozen
kernels; all but a share of them, by the time they take, are compiled by processes of their own, which leave them in the
cache.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fastnn.cpu import loader
from fastnn.threads import available_cpus

Kernel = tuple[str, str]  # name and dtype

# Seconds that a kernel, or any of a module, takes (Zen 3): as far as it matters who compiles what.
SECONDS = {"gemm": 6.0, "direct": 1.7, "criteria": 1.2, "small": 1.8, "losses": 1.6, "optimizers": 1.4, "gemv": 0.8}
SECONDS |= {"small.fused": 3.0, "small.slim": 0.6, "spmm": 4.0, "spmm.update": 1.1, "engine": 0.2, "amx": 5.0}
OTHERS = 0.5
START = 0.3  # seconds that another process begins to compile later than this one
# As many as CPUs, but no more than this: a fifth would not be done before the one that has the slowest kernel.
PROCESSES = 4
# A process finds fastnn where this one does, and leaves nothing but object files.
CODE = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from fastnn.cpu.warmup import compile_one
for kernel in {kernels!r}:
    compile_one(Path({folder!r}), *kernel)
"""


def load(kernels: Iterable[Kernel]) -> None:
    """Have these kernels, as far as that is faster together than one by one."""
    folder = loader.cache_folder()
    processes = min(available_cpus(), PROCESSES)
    if folder is None or processes < 2 or not _can_start_python():
        return
    wanted = dict.fromkeys(kernels)
    missing = [kernel for kernel in wanted if not loader.object_path(folder, *kernel).exists()]
    own, *others = divide(missing, processes)
    with contextlib.ExitStack() as started:
        for share in others:
            code = CODE.format(path=sys.path, folder=str(folder), kernels=share)
            silent = subprocess.DEVNULL
            try:
                process = subprocess.Popen([sys.executable, "-c", code], stdin=silent, stdout=silent, stderr=silent)
            except OSError:  # no more processes, say: what they should have compiled is compiled when it is asked for
                break
            started.enter_context(process)
            started.push(lambda error, *_, process=process: process.kill() if error else None)
        # Whatever becomes of a process: a kernel that is not in the cache afterwards is compiled where it is asked for.
        for kernel in own:
            loader.address(*kernel)


def divide(kernels: Iterable[Kernel], processes: int) -> list[list[Kernel]]:
    """The kernels that this process compiles, and those of each other one: as evenly as their times allow."""
    shares: list[list[Kernel]] = [[] for _ in range(processes)]
    ends = [0.0] + [START] * (processes - 1)
    for kernel in sorted(kernels, key=seconds, reverse=True):
        # The slowest first, each to who is done with it first.
        first = min(range(processes), key=ends.__getitem__)
        shares[first].append(kernel)
        ends[first] += seconds(kernel)
    return [shares[0], *filter(None, shares[1:])]


def seconds(kernel: Kernel) -> float:
    """How long a kernel takes to compile, roughly."""
    name = kernel[0]
    return SECONDS.get(name, SECONDS.get(name.split(".")[0], OTHERS))


def _can_start_python() -> bool:
    """Whether `sys.executable` is Python, and not a program that contains it."""
    return not getattr(sys, "frozen", False) and Path(sys.executable or "").name.lower().startswith("python")
