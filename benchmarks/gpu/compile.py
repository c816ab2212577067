"""Kernels to machine code, with or without a device: ``python -m benchmarks.gpu.compile`` lists what became of them.

Numba makes PTX, nvJitLink machine code of it.  The probe runs what is made here, so the test that compiles without a
device sees the very code that a device will run.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numba import cuda
from numba.cuda import dispatcher, types

AMPERE, HOPPER = (8, 0), (9, 0)
MODULES = ("launches", "barriers", "gemm_simt", "gemm_mma", "gemm_wgmma", "epoch")  # those with kernels
POINTER = types.CPointer(types.float32)


@dataclass(frozen=True)
class Kernel:
    """A kernel and all that its compilation depends on.

    Attributes
    ----------
    name : str
        For people.
    function : callable
        The Python function.
    arguments : tuple
        Numba's types of its arguments.
    threads : int
        Threads of a block.
    blocks_per_multiprocessor : int
        How many blocks a multiprocessor must have registers for.
    dynamic : int
        Bytes of shared memory that are asked for at the launch.
    least : tuple of int
        The first compute capability that can run it.
    only : tuple of int, optional
        The one compute capability that can run it.
    grid_group : bool
        Whether it calls ``cg.this_grid().sync()``, which is in a library of CUDA's.
    expected : tuple of str
        What its PTX must hold.
    """

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    threads: int
    blocks_per_multiprocessor: int = 1
    dynamic: int = 0
    least: tuple[int, int] = AMPERE
    only: tuple[int, int] | None = None
    grid_group: bool = False
    expected: tuple[str, ...] = ()

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a device of this compute capability can run it."""
        return capability >= self.least and self.only in (None, capability)


@dataclass(frozen=True)
class Code:
    """What a kernel was made into; the numbers are nvJitLink's."""

    entry: str
    ptx: str
    binary: bytes
    log: str
    registers: int
    spilled: int
    shared: int


def architecture(capability: tuple[int, int]) -> tuple[Any, ...]:
    """The target for a compute capability: on Hopper the one with its own instructions."""
    return (*capability, "a") if capability == HOPPER else capability


def build(kernel: Kernel, capability: tuple[int, int]) -> Code:
    """Compile a kernel; raises RuntimeError if it cannot run on such a device."""
    if not kernel.runs_on(capability):
        needs = kernel.only or kernel.least
        raise RuntimeError(f"{kernel.name} needs compute capability {needs}, the device has {capability}")
    target = architecture(capability)
    with _device_of(capability):
        ptx, _ = cuda.compile_ptx(
            kernel.function,
            types.void(*kernel.arguments),
            cc=target,
            fastmath=True,
            launch_bounds=(kernel.threads, kernel.blocks_per_multiprocessor),
        )
    binary, log = _link(ptx, "sm_" + "".join(map(str, target)), kernel.grid_group)
    entry = re.search(r"\.visible \.entry (\w+)\(", ptx)
    assert entry is not None, f"no entry point in the PTX of {kernel.name}"
    return Code(
        entry[1],
        ptx,
        binary,
        log,
        registers=_number(r"[Uu]sed (\d+) registers", log),
        spilled=_number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log),
        shared=_number(r"(\d+) bytes smem", log, missing=0),
    )


@contextlib.contextmanager
def _device_of(capability: tuple[int, int]) -> Iterator[None]:
    """Answer for the device, which Numba asks what to compile cooperative groups for."""
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability, id=0)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def _number(pattern: str, log: str, missing: int | None = None) -> int:
    found = re.search(pattern, log)
    if found is None and missing is None:
        raise RuntimeError(f"nvJitLink's log does not tell {pattern!r}:\n{log}")
    return int(found[1]) if found else missing or 0


def _link(ptx: str, arch: str, grid_group: bool) -> tuple[bytes, str]:
    from cuda.core import Linker, LinkerOptions, ObjectCode

    objects = [ObjectCode.from_ptx(ptx.encode())]
    if grid_group:
        objects.append(ObjectCode.from_library(_device_runtime()))
    # Where a driver is, the linker has a cache, and its log says nothing of a kernel that it finds there.
    linker = Linker(*objects, options=LinkerOptions(arch=arch, verbose=True, no_cache=True))
    binary = linker.link("cubin").code
    return binary, linker.get_info_log()


@cache
def _device_runtime() -> bytes:
    from numba.cuda.cudadrv.libs import get_cudalib

    return Path(get_cudalib("cudadevrt", static=True)).read_bytes()


def kernels() -> list[Kernel]:
    """All kernels of the probe."""
    modules = [importlib.import_module(f"benchmarks.gpu.{name}") for name in MODULES]
    return [kernel for module in modules for kernel in module.KERNELS]


def main() -> int:
    """Compile everything for Ampere and for Hopper."""
    for kernel in kernels():
        for capability in (AMPERE, HOPPER):
            if kernel.runs_on(capability):
                code = build(kernel, capability)
                arch = "sm_" + "".join(map(str, architecture(capability)))
                print(
                    f"{kernel.name:<46} {arch:<7} {code.registers:4} registers, {code.spilled} bytes spilled, "
                    f"{code.shared + kernel.dynamic:6} bytes shared"
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
