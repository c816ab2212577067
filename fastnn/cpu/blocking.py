"""Tile and block sizes of the matrix product, from the CPU's vectors and caches.

Names are those of the BLIS papers (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS
Functionality", ACM TOMS 41(3), 2015).

Register tile, MR x NR.
    The tile of C lives in MR * NV vector registers (NR = NV * lanes).  One step of k loads NV vectors of B, broadcasts MR
    elements of A, and issues MR * NV multiply-adds.  Two FMA ports with a latency of 4 need at least 8 independent sums; the
    loads (MR + NV) must stay below the multiply-adds (MR * NV); and MR * NV + NV + 1 registers must exist.

    Worked example, AVX-512 (32 registers, 16 floats each): 14 x 2 uses 28 + 2 + 1 = 31 registers and needs 16 loads for
    28 multiply-adds: 14 cycles of arithmetic, 8 of loads.  AVX2 (16 registers): 6 x 2 uses 12 + 2 + 1 = 15.

Depth, KC.
    A panel of B, KC x NR, is read again for every tile of rows and should stay in the first-level cache beside the rows of A:
    KC * NR * size <= 3/4 L1.

    Worked example, 48 KiB, float32, NR = 32: KC <= 288, rounded down to 256: the panel takes 32 KiB.
"""

from fastnn.cpu import target

CPU = target.host()
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


def task_rows(m: int) -> int:
    """Rows of C that one task computes: some tiles, so that a panel of B is used several times per load."""
    return min(-(-m // MR) or 1, 8) * MR


def pad(n: int, dtype: str) -> int:
    """A leading dimension for rows of `n` elements: whole vectors, and not a multiple of 1 KiB.

    Rows whose addresses differ by a power of two fall into the same few sets of the cache; one more vector spreads them.
    """
    lanes = CPU.lanes(dtype)
    size = 4 if dtype == "float32" else 8
    ld = -(-n // lanes) * lanes
    return ld + lanes if ld * size % 1024 == 0 else ld


def scratch(dtype: str, kc: int, rows: int) -> int:
    """Elements one thread needs for a product: a panel of B and the partial tiles of a task, in whole cache lines."""
    nr = columns(dtype)
    return -(-(kc * nr + rows * nr) // 64) * 64
