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
    A tile reads KC * NR elements of B and MR * KC of A from the second-level cache, 13 bytes a cycle in the example,
    which prefetching hides.  A deep block pays because the tile itself is then stored and loaded less often:
    KC * NR * size <= L2 / 16.

    Worked example, 2 MiB, float32, NR = 32: KC <= 1024.

Block of A, MC x KC.
    It is used for every panel of B, so it must survive in the second-level cache while a panel passes:
    MC * KC * size <= L2 / 8.  Worked example: KC = 1024: 64 rows, 5 tiles.

Panels of B, KC x NC.
    They are packed once and come back for every block of A, from the third-level cache if they are many:
    NC * KC * size <= 2 L2.

The numbers are measured: `docs/performance.md`.
"""

import functools

from fastnn.cpu import target

CPU = target.host()
SHARES = 16  # of a single kernel's work (fastnn.cpu.crowd); always the same, for the sake of threads that linger
TASKS = 16  # tasks a large product is cut into at least: even shares for teams of up to 8 threads
NV = 2
MR = {(512, 32): 14, (256, 16): 6, (128, 32): 12, (128, 16): 6}[CPU.simd_bits, CPU.registers]
SIZES = {"float32": 4, "float64": 8}


def columns(dtype: str) -> int:
    """NR: columns of a register tile."""
    return NV * CPU.lanes(dtype)


def depth(dtype: str, k: int) -> int:
    """KC: how much of k one panel of B holds."""
    limit = target.caches()["L2"] // 16 // (columns(dtype) * SIZES[dtype])
    kc = max(64, 1 << (limit.bit_length() - 1))
    # Blocks of equal depth: k = 1030 is 515 + 515, not 1024 + 6.
    blocks = -(-k // kc) or 1
    return -(-k // blocks) or 1


@functools.cache
def blocks(m: int, n: int, k: int, dtype: str, a_row: int, a_col: int, b_row: int, b_col: int) -> dict[str, int]:
    """How a product is cut: the fields of `fastnn.records.GEMM` from ``pack`` to ``partial``.

    A decision by shape and strides alone.  (It does not matter to the results: every element of C is a sum in the
    order of k, however it is cut.)
    """
    size, l2 = SIZES[dtype], target.caches()["L2"]
    kc = depth(dtype, k)
    deep = k > kc
    tiles, panels = -(-m // MR) or 1, -(-n // columns(dtype)) or 1
    pack = b_col != 1 or tiles > 4
    if tiles <= 8:  # few rows: a task is one panel, whose elements are used at once for all rows
        rows = block = tiles * MR
        width, kept, copy = 1, kc, False
    else:
        width = min(panels, max(1, 2 * l2 // (kc * columns(dtype) * size)))
        block = min(max(l2 // 8 // (MR * kc * size), 2), -(-tiles // TASKS)) * MR
        rows, kept = block, k
        if k * width * columns(dtype) * size > 4 * l2:
            # A very deep product packs each block of B anew for each task, so tasks are large.
            most = 2 * l2 // (width * columns(dtype) * size)
            rows, kept = max(1, min(most, -(-m // 2)) // block) * block, kc
        # A that is used for one or two panels only is not worth a copy.
        scattered = a_col != 1 or a_row * size % 4096 == 0
        copy = scattered and min(width, panels) > 2
    return {
        "pack": int(pack), "copy": int(copy), "kc": kc, "panels": width, "rows": rows, "block": block,
        "kept": kept, "partial": rows if deep else MR,
    }  # fmt: skip


def scratch(dtype: str, cut: dict[str, int]) -> int:
    """Elements one thread needs for a product: panels of B, partial tiles and a block of A, in cache lines."""
    size = cut["panels"] * columns(dtype) * (cut["kept"] + cut["partial"])
    if cut["copy"]:
        size += cut["block"] * (cut["kc"] + CPU.lanes(dtype))
    return max(-(-size // 64) * 64, 16 * CPU.lanes(dtype))


def product(m: int, b_row: int, b_col: int, a_col: int) -> str:
    """Which kernel computes a product of m rows, by the strides of its operands."""
    if m == 1 and b_col == 1:
        return "gemv.gemv_rows"
    if m == 1 and b_row == 1 and a_col == 1:
        return "gemv.gemv_columns"
    return "gemm.gemm"


def pad(n: int, dtype: str) -> int:
    """A leading dimension for rows of `n` elements: whole vectors, and not a multiple of 1 KiB.

    Rows whose addresses differ by a power of two fall into the same few sets of the cache; one more vector spreads
    them.
    """
    lanes = CPU.lanes(dtype)
    size = 4 if dtype == "float32" else 8
    ld = -(-n // lanes) * lanes
    return ld + lanes if ld * size % 1024 == 0 else ld
