"""A cold start: what a program needs and no cache has is compiled by two processes.

Numba's front end holds Python's lock, so threads would compile one after the other.  A small network needs a dozen
kernels; the matrix product takes as long as all others together.  It is compiled by a process of its own, which leaves
it in the cache: a first fit takes 6.4 s instead of 10.6.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fastnn.cpu import loader
from fastnn.threads import available_cpus

SLOWEST = "gemm.gemm"
# The process finds fastnn where this one does, and leaves nothing but the object file.
CODE = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from fastnn.cpu.warmup import compile_one
compile_one(Path({folder!r}), {name!r}, {dtype!r})
"""


def load(kernels: Iterable[tuple[str, str]]) -> None:
    """Have these kernels (name and dtype), as far as that is faster together than one by one."""
    kernels = list(dict.fromkeys(kernels))
    slow = [kernel for kernel in kernels if kernel[0] == SLOWEST]
    folder = loader.cache_folder() if slow and len(kernels) > len(slow) else None
    if folder is None or available_cpus() < 2 or not _can_start_python():
        return
    name, dtype = slow[0]
    if loader.object_path(folder, name, dtype).exists():
        return
    code = CODE.format(path=sys.path, folder=str(folder), name=name, dtype=dtype)
    silent = subprocess.DEVNULL
    try:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=silent, stdout=silent, stderr=silent)
    except OSError:  # no more processes, say: this one compiles all
        return
    # Whatever becomes of the process: a kernel that is not in the cache afterwards is compiled where it is asked for.
    with process:
        try:
            for kernel in kernels:
                if kernel[0] != SLOWEST:
                    loader.address(*kernel)
        except BaseException:
            process.kill()
            raise


def _can_start_python() -> bool:
    """Whether `sys.executable` is Python, and not a program that contains it."""
    return not getattr(sys, "frozen", False) and Path(sys.executable or "").name.lower().startswith("python")
