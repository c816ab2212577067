"""Fill the cache of compiled kernels ahead of their first use, in processes of its own.

Numba's front end holds Python's lock and a lock of its own, so threads would compile one after the other.
"""

import importlib
import multiprocessing
import pkgutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from fastnn.cpu import cold, loader

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Compiled:
    """A kernel that was compiled."""

    name: str
    dtype: str
    seconds: float
    size: int  # bytes of machine code, or 0 if it could not be kept


def kernels(dtypes: tuple[str, ...] = DTYPES) -> list[tuple[str, str]]:
    """Name and dtype of every kernel for these dtypes."""
    from fastnn import cpu
    from fastnn.cpu import jit

    found = []
    for entry in pkgutil.iter_modules(cpu.__path__):
        module = importlib.import_module(f"fastnn.cpu.{entry.name}")
        for name, kernel in vars(module).items():
            if isinstance(kernel, jit.Kernel):
                found += [(f"{entry.name}.{name}", dtype) for dtype in kernel.dtypes(dtypes)]
    # The slowest first, so that no process ends long after the others.
    return sorted(found, key=cold.seconds, reverse=True)


def missing(folder: Path, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The kernels that the cache does not hold, or only damaged."""
    return [kernel for kernel in wanted if loader.read(loader.object_path(folder, *kernel)) is None]


def compile_all(folder: Path, wanted: list[tuple[str, str]], jobs: int) -> Iterator[Compiled]:
    """Compile kernels into the cache by `jobs` processes; each is told when it is done."""
    if jobs == 1:
        yield from (compile_one(folder, *kernel) for kernel in wanted)
        return
    # A forked process might inherit a lock that a thread holds.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        tasks = [pool.submit(compile_one, folder, *kernel) for kernel in wanted]
        try:
            yield from (task.result() for task in as_completed(tasks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def compile_one(folder: Path, name: str, dtype: str) -> Compiled:
    """Compile one kernel and put it into the cache."""
    began = time.perf_counter()
    path = loader.object_path(folder, name, dtype)
    loader.write(path, loader.compile_object(name, dtype))
    seconds = time.perf_counter() - began
    kept = loader.read(path)
    return Compiled(name, dtype, seconds, 0 if kept is None else len(kept))
