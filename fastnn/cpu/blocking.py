"""Tile and block sizes of the matrix product, from the CPU's vectors and caches.

Names are those of the BLIS papers (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS
Functionality", ACM TOMS 41(3), 2015).

Register tile, MR x NR.
    The tile of C lives in MR * NV vector registers (NR = NV * lanes).  One step of k loads NV vectors of B, broadcasts
    MR elements of A, and issues MR * NV multiply-adds.  Two FMA ports with a latency of 4 need at least 8 independent
    sums; the loads (MR + NV) must stay below the multiply-adds (MR * NV); and MR * NV + NV + 1 registers must exist.

    Worked example, AVX-512 (32 registers, 16 floats each): 14 x 2 uses 28 + 2 + 1 = 31 registers and needs 16 loads for
    28 multiply-adds: 14 cycles of arithmetic, 8 of loads.  AVX2 (16 registers): 6 x 2 uses 12 + 2 + 1 = 15.

Depth, KC.
    A panel of B, KC x NR, is read again for every tile of rows and should stay in the first-level cache beside the rows
    of A: KC * NR * size <= 3/4 L1.

    Worked example, 48 KiB, float32, NR = 32: KC <= 288, rounded down to 256: the panel takes 32 KiB.
"""

import functools

from fastnn.cpu import target

CPU = target.host()
SHARES = 16  # of a single kernel's work (fastnn.cpu.crowd); always the same, for the sake of threads that linger
TASKS = 16  # tasks a large product is cut into at least: even shares for teams of up to 8 threads
# Multiply-adds up to which fastnn.cpu.small is faster: 784 x 32 x 64 in 20 us instead of 29, 16 x 16 x 16 in 0.08
# instead of 0.16; but 128 x 128 x 128 in 24 to 30 (its rows lie a power of two apart) instead of 27.
SMALL = 2_000_000
ROW = 1024  # elements: losses that are a mean over all elements take them in rows of this length
NV = 2
MR = {(512, 32): 14, (256, 16): 6, (128, 32): 12, (128, 16): 6}[CPU.simd_bits, CPU.registers]


def columns(dtype: str) -> int:
    """NR: columns of a register tile."""
    return NV * CPU.lanes(dtype)


def depth(dtype: str, k: int) -> int:
    """KC: how much of k one panel of B holds."""
    size = 4 if dtype == "float32" else 8
    limit = 3 * target.caches()["L1"] // 4 // (columns(dtype) * size)
    kc = max(64, 1 << (limit.bit_length() - 1))
    # Blocks of equal depth: k = 260 is 130 + 130, not 256 + 4.
    blocks = -(-k // kc) or 1
    return -(-k // blocks) or 1


@functools.cache
def blocks(m: int, n: int, k: int, dtype: str, a_col: int = 1) -> dict[str, int]:
    """How a product is cut: ``kc``, and the ``rows`` and ``panels`` of C that make one task.

    A decision by shape and layout alone, so that results do not depend on the number of threads.

    Where a block of k of A does not stay in the second-level cache from one panel of B to the next, a task takes
    several panels for its rows and works on a copy of them, as long as there are tasks enough for all threads.  If A is
    transposed (its rows are not contiguous), the hardware cannot prefetch it and that pays earlier: 1024 x 1024 x 1024
    with A transposed runs at 128 GFLOP/s with the copy and at 78 without.
    """
    kc = depth(dtype, k)
    rows = min(-(-m // MR) or 1, 8) * MR  # 8 tiles: a multiple of the vectors' lanes, as a copy of A needs
    panels = 1
    size = 4 if dtype == "float32" else 8
    if m * kc * size > target.caches()["L2"] // (2 if a_col == 1 else 4):
        count = -(-n // columns(dtype))
        while panels < 8 and 2 * panels <= count and -(-count // (2 * panels)) * -(-m // rows) >= TASKS:
            panels *= 2
    return {"kc": kc, "rows": rows, "panels": panels}


def scratch(dtype: str, kc: int, rows: int, panels: int) -> int:
    """Elements one thread needs for a product: panels of B, their partial tiles and a block of A, in cache lines."""
    size = panels * columns(dtype) * (kc + rows) + (kc * rows if panels > 1 else 0)
    return max(-(-size // 64) * 64, 16 * CPU.lanes(dtype))


def product(m: int, b_row: int, b_col: int, a_col: int) -> str:
    """Which kernel computes a product of m rows, by the strides of its operands."""
    if m == 1 and b_col == 1:
        return "gemv.gemv_rows"
    if m == 1 and b_row == 1 and a_col == 1:
        return "gemv.gemv_columns"
    return "gemm.gemm"


def pack(m: int, b_col: int) -> bool:
    """Whether panels of B are copied: always if rows of B are not contiguous, else if enough tiles use the copy."""
    return b_col != 1 or m > 4 * MR


def pad(n: int, dtype: str) -> int:
    """A leading dimension for rows of `n` elements: whole vectors, and not a multiple of 1 KiB.

    Rows whose addresses differ by a power of two fall into the same few sets of the cache; one more vector spreads
    them.
    """
    lanes = CPU.lanes(dtype)
    size = 4 if dtype == "float32" else 8
    ld = -(-n // lanes) * lanes
    return ld + lanes if ld * size % 1024 == 0 else ld
