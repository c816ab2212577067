"""A cold start: what a program needs and no cache has is compiled by two processes.

Numba's front end holds Python's lock, so threads would compile one after the other.  A small network needs a dozen
kernels; half of them, by the time they take, are compiled by a process of its own, which leaves them in the cache.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fastnn.cpu import loader
from fastnn.threads import available_cpus

Kernel = tuple[str, str]  # name and dtype

# Seconds that a kernel, or any of a module, takes (Cascade Lake, 2.5 GHz): as far as it matters who compiles what.
SECONDS = {"gemm": 5.0, "direct": 2.0, "criteria": 1.6, "small": 2.0, "losses": 1.5, "optimizers": 1.5, "gemv": 0.6}
SECONDS |= {"small.slim": 0.4, "spmm": 3.5, "spmm.update": 1.0}
OTHERS = 0.4
START = 0.8  # seconds until the other process begins to compile
# The process finds fastnn where this one does, and leaves nothing but object files.
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
    if folder is None or available_cpus() < 2 or not _can_start_python():
        return
    wanted = dict.fromkeys(kernels)
    own, others = divide(kernel for kernel in wanted if not loader.object_path(folder, *kernel).exists())
    if not others:
        return
    code = CODE.format(path=sys.path, folder=str(folder), kernels=others)
    silent = subprocess.DEVNULL
    try:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=silent, stdout=silent, stderr=silent)
    except OSError:  # no more processes, say: this one compiles all
        return
    # Whatever becomes of the process: a kernel that is not in the cache afterwards is compiled where it is asked for.
    with process:
        try:
            for kernel in own:
                loader.address(*kernel)
        except BaseException:
            process.kill()
            raise


def divide(kernels: Iterable[Kernel]) -> tuple[list[Kernel], list[Kernel]]:
    """The kernels that this process compiles, and those of the other one: as evenly as their times allow."""
    own: list[Kernel] = []
    others: list[Kernel] = []
    here, there = 0.0, START
    for kernel in sorted(kernels, key=seconds, reverse=True):
        if here <= there:
            own.append(kernel)
            here += seconds(kernel)
        else:
            others.append(kernel)
            there += seconds(kernel)
    return own, others


def seconds(kernel: Kernel) -> float:
    """How long a kernel takes to compile, roughly."""
    name = kernel[0]
    return SECONDS.get(name, SECONDS.get(name.split(".")[0], OTHERS))


def _can_start_python() -> bool:
    """Whether `sys.executable` is Python, and not a program that contains it."""
    return not getattr(sys, "frozen", False) and Path(sys.executable or "").name.lower().startswith("python")
