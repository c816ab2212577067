"""The CPU that kernels are compiled for: its name, features, SIMD width and caches.

Numba's settings ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` are respected, so a machine can be made to run the code
of a smaller one (``NUMBA_CPU_NAME=generic`` is the portable path).
"""

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvm

# Of Linux on x86-64: a system call, what it is asked for, and the registers that are meant.
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18


@dataclass(frozen=True)
class Target:
    """A CPU as the code generator sees it."""

    triple: str
    cpu: str
    features: str
    simd_bits: int  # width of the vectors that kernels use
    registers: int  # architectural vector registers of that width

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector."""
        return self.simd_bits // (32 if dtype == "float32" else 64)

    @property
    def has_tiles(self) -> bool:
        """Whether it has instructions for products of tiles of bfloat16 (AMX).  See `may_use_tiles`."""
        return {"+amx-tile", "+amx-bf16"} <= set(self.features.split(","))

    @property
    def slow_masks(self) -> bool:
        """Whether it stores some lanes of a vector in microcode: AMD's before AVX-512 take 12 cycles for what two plain
        stores do in 2.
        """
        return self.simd_bits == 256 and self.cpu.startswith("znver")

    @property
    def halves_vectors(self) -> bool:
        """Whether it begins one multiply-add of whole vectors a cycle and not two: Zen 4 does those of 512 bits as two
        halves.
        """
        return self.simd_bits == 512 and self.cpu == "znver4"

    @property
    def foresees_rows(self) -> bool:
        """Whether it fetches rows that lie some hundred bytes apart by itself, from the third-level cache and in time.

        AMD's do (784-256-10, batch 32, two threads on a Zen 5: 79.6 us a step if the rows of parameters below a tile
        are not fetched, 82.3 if they are), Intel's do not (208 and 157 us for the first layer's on a Cascade Lake).
        """
        return self.cpu.startswith("znver")


def simd(triple: str, features: str) -> tuple[int, int]:
    """Vector width in bits and number of vector registers for a feature string like ``+avx2,+fma``."""
    on = {f[1:] for f in features.split(",") if f.startswith("+")}
    if {"avx512f", "avx512vl", "avx512dq", "fma"} <= on:
        return 512, 32
    if {"avx2", "fma"} <= on:
        return 256, 16
    if triple.startswith(("aarch64", "arm64")):
        return 128, 32
    return 128, 16


@functools.cache
def host() -> Target:
    """The CPU of this process, or the one that Numba's settings name."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    cpu = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if cpu.lower() == "generic" else llvm.get_host_cpu_features().flatten()
    return Target(triple, cpu, features, *simd(triple, features))


@functools.cache
def may_use_tiles() -> bool:
    """Whether this CPU has a matrix unit, and the system lets this process use it.

    Linux wants to be asked, once for a process, its threads and its children, since their registers are 8 KiB more to
    save; it says no where a signal's stack would be too small for them, and from then on to stacks that would be.
    ``FASTNN_MATRIX_UNIT=0`` says no before.
    """
    if not host().has_tiles or sys.platform != "linux" or os.environ.get("FASTNN_MATRIX_UNIT") == "0":
        return False
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0


@functools.cache
def caches() -> dict[str, int]:
    """Bytes of the first-, second- and third-level data caches that one core reaches."""
    sizes = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20}  # what to assume where the system does not tell
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):  # Linux
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[:-1].isdigit():
            sizes[f"L{level}"] = int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]
    return sizes
