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
    MC * KC * size <= L2 / 8.  Worked example: KC = 1024: 64 rows, 5 tiles.  Four tiles at least, though: the first one
    of a panel waits for the third-level cache.

Panels of B, KC x NC.
    They are packed once and come back for every block of A, from the third-level cache if they are many:
    NC * KC * size <= 2 L2, and for all of k 4 L2 (but 8 panels), since others want their part of that cache, too.

Sums that wait, MC x NC.
    Where k is deeper than KC, they are kept until its next block comes.  All of B's panels stay packed for all of k
    meanwhile, up to 16 L2, so that MC can be small and the sums stay in the second-level cache, too.

The numbers are measured: `docs/performance.md`.
"""

import math

from fastnn.cpu import target

CPU = target.host()
LINE = 8  # int64 of a cache line
SHARES = 16  # of a single kernel's work (fastnn.cpu.crowd); always the same, for the sake of threads that linger
TASKS = 8  # tasks for each thread, if a product is large enough: even shares even if a thread comes late
# Multiply-adds up to which fastnn.cpu.small is faster, or as fast: with an epilogue, and without.  Without one, 16 x 16
# x 16 takes 0.54 us there and 0.74 in fastnn.cpu.gemm (AVX-512; AVX2: 0.69 and 0.85), 64 x 64 x 64 6.5 and 6.7; with
# AVX2 48 x 48 x 48 takes 4.0 and 3.8, 96 x 96 x 96 35 and 23, and with one 22.0 and 23.8.
SMALL, PLAIN = 1_000_000, 1 << 18
# Multiply-adds from which a product is done without Python's lock and, if there are other threads, with their help:
# 128 x 128 x 128 takes 38 us alone, 27 with a helper that is awake and 38 with one that must be woken; 96 x 96 x 96
# takes 17, 15.5 and 24.
LARGE = 1_500_000
# Bytes of a matrix from which its product with a vector is, too: two cores have twice the cache.
LARGE_MATRIX = target.caches()["L2"]
SMALL_ROW = 1024  # likewise for one row, above which fastnn.cpu.gemv is faster
LONG = 50_000_000  # multiply-adds, 350 us of two cores, above which a barrier's wait does not matter
ROW = 1024  # elements: losses that are a mean over all elements take them in rows of this length
FAR = 16 * target.caches()["L2"]  # bytes of an output that is streamed past the caches: see fastnn.cpu.spans
NV = 2
MR = {(512, 32): 14, (256, 16): 6, (128, 32): 12, (128, 16): 6}[CPU.simd_bits, CPU.registers]
# Tiles, 6 KiB of them, for which fastnn.cpu.small calls an epilogue at once: a call and what surrounds it take as long
# as 10 steps of a tile.  20-64-64-1, batch 32: 18.9 us a step with 1 tile, 17.5 with 4, 17.2 with 8, 16.8 with 16.
TILES = 6144 // (MR * NV * CPU.simd_bits // 8)
# Vectors of a row of C that fastnn.cpu.spmm holds in registers: two multiply-adds a cycle that take four each.  Half as
# many where a row, or the rest of one, is not wider.
WIDE = 8
WORD = 64  # steps of k that share a word there; 64 rows of B, WIDE vectors wide, are 32 KiB with AVX-512
PAGE = 4096
COPY = 1 << 20  # bytes of a copy of A there, unless 64 rows have more
ON_TILES = "amx.amx"  # the kernel of products on the matrix unit
SIDE = 32  # rows and columns of a block of C there
# Steps of k that are split at a time; rows and columns of a task, at least and at most: their sums then fill half of a
# second-level cache of 2 MiB.  (1024 x 2048 x 2048: 281 GFLOP/s on one core; 280 with 128 steps, 238 with 192.)
SPLIT, LEAST, LARGEST = 96, 64, 512
# Multiply-adds from which it pays, and how many times each element of the factors has to be used, on average, to make
# up for being split.
TILED, USES = 1 << 22, 40
SIZES = {"float32": 4, "float64": 8}


def is_large(m: int, n: int, k: int, size: int) -> bool:  # compiled, too
    """Whether a product of elements of `size` bytes is worth a helper."""
    return m * n * k > LARGE or (min(m, n) == 1 and k * max(m, n) * size > LARGE_MATRIX)


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


def blocks(
    m: int, n: int, k: int, dtype: str, a_row: int, a_col: int, b_row: int, b_col: int, threads: int
) -> dict[str, int]:
    """How a product is cut: the fields of `fastnn.records.GEMM` from ``pack`` to ``partial``.

    The results do not depend on it: every element of C is a sum in the order of k, however the work is cut.
    """
    size, l2 = SIZES[dtype], target.caches()["L2"]
    nr = columns(dtype)
    kc = depth(dtype, k)
    tiles, panels = -(-m // MR) or 1, -(-n // nr) or 1
    tasks = 1 if threads == 1 else TASKS * threads
    scattered = a_col != 1 or a_row * size % 4096 == 0  # rows that share few sets of the first-level cache
    copy = scattered and tiles > 8 and panels > 4
    small_c = tiles * MR * n * size < l2 // 2
    small_a = tiles * MR * kc * size < l2 // 2 and (threads == 1 or not copy)  # each task would copy all of it
    if panels == 1 or (small_a and (k >= 6 * nr or small_c)):
        # A, at least a block of k of it, stays in the second-level cache: one panel of B after the other, all rows.
        # With a small k and a large C the traffic of C decides, so its rows should be written whole.
        width = max(1, panels // tasks)
        parts = max(1, min(tiles // 8, tasks // panels))
        rows = block = -(-tiles // parts) * MR
        kept = 0
        if tiles == 1 and b_col == 1 and b_row * size >= 4096 and k * n * size > l2:
            # B is read once, from memory.  A panel's rows lie on as many pages; so few of them at a time, for many
            # panels: 10 x 784 x 10000 at 32 GFLOP/s instead of 24 (on a busy machine).
            kc, width = -(-k // -(-k // 64)), max(1, l2 // 4 // (2 * MR * nr * size))
        if k > kc:  # all tiles of a task wait for the next block of k
            width = max(1, min(width, panels, 2 * l2 // (rows * nr * size)))
    else:
        width = min(panels, max(1, 2 * l2 // (kc * nr * size)), max(8, 4 * l2 // (max(k, 1) * nr * size)))
        block = max(1, min(max(4, l2 // 8 // (MR * kc * size)), 8, tiles // tasks)) * MR
        rows, kept = block, k
        if k * width * nr * size > 16 * l2:
            # A very deep product packs each block of B anew for each task, so tasks are large.
            most = 2 * l2 // (width * nr * size)
            rows, kept = max(1, min(most, -(-m // min(tasks, 2))) // block) * block, kc
    return {
        "ahead": ahead(m, b_row * size),
        "pack": int(b_col != 1 or tiles > 1),
        "copy": int(copy),
        "kc": kc,
        "panels": width,
        "rows": rows,
        "block": block,
        "kept": kept,
        "partial": rows + MR if k > kc else MR,  # the last tile may compute rows that do not exist
    }


def ahead(m: int, stride: int) -> int:
    """How many steps of k before its use a row of B is fetched from where it lies, its rows `stride` bytes apart.

    Far enough for the third-level cache, but not so far that a row is gone again when its time comes.  A way of the
    first-level cache has one place for all addresses that differ by multiples of 4 KiB.  (What is fetched ahead may
    have half of the cache, and of a row of one product's only B, which is as wide as the registers allow, a quarter.)
    """
    l1 = target.caches()["L1"]
    rows = max(1, l1 // 4096) * 4096 // math.gcd(stride, 4096) // 2
    if m == 1:
        rows = min(rows, l1 // 4 // (CPU.registers // 2 * CPU.simd_bits // 8))
    return max(4, min(rows, 32))


def by_rows(m: int, n: int, k: int, dtype: str, b_col: int, threads: int) -> bool:
    """Whether each thread computes some rows of C with all of B.  Else they share tiles of all of C.

    By rows, a thread finds its rows of A where it left them, in its own caches, and it need not wait for others before
    the next product by rows; but it reads all of B.  That pays unless B is large and used for few rows.  (A step of
    20-64-64-1, batch 256, two threads: 69 us instead of 104.)  Long products are cut into tasks, of which a thread that
    is late leaves some to others (784-512-256-10, batch 512: 4% of a step).  Where rows of B are not contiguous, each
    thread has to pack what it reads, which takes longer than to fetch a smaller A (64 x 256 x 128: 23.1 us, 21.7 else).
    """
    small = k * n * SIZES[dtype] <= target.caches()["L2"] // 2 and b_col == 1
    return m >= threads * MR and (small or (n <= m and m * n * k < LONG))


def whole(m: int, n: int, k: int, dtype: str, threads: int) -> dict[str, int]:
    """As `blocks`, for a product that is not cut for the caches (`fastnn.cpu.small`); `rows` may cross panels."""
    tiles = -(-m // MR) * -(-n // columns(dtype))
    rows = -(-tiles // (TASKS * threads)) * MR
    return {"kc": k, "panels": 1, "rows": rows, "kept": 0, "partial": TILES * MR, "copy": 0}


def sparse(
    m: int,
    n: int,
    k: int,
    dtype: str,
    a_col: int,
    b_row: int,
    b_col: int,
    threads: int,
    *,
    turned: bool = False,
    lent: bool = False,
) -> dict[str, int]:
    """As `blocks`, for `fastnn.cpu.spmm`; panels are `WIDE` vectors wide.

    Where A's rows are contiguous (forward, input gradient), tasks are columns as far as these can be shared evenly, so
    that a thread reads a part of B only, and rows of these.  Else (weight gradient) they are rows of C, so that a
    thread needs its columns of the batch, and what it updates lies in one piece: 784-256-10, batch 128, two threads:
    128 us a step; 142 by columns.  For the same reason they are columns where C is `turned`.  Those that may be `lent`
    to a thread that is done earlier are many.

    A block of B whose rows lie on as many pages is copied if many rows use it, since a CPU finds no more than 64 pages
    at once; and a block of A whose rows are not contiguous, if many panels do.
    """
    lanes, size = CPU.lanes(dtype), SIZES[dtype]
    panels = -(-n // (WIDE * lanes))
    # Panels of a task share the words that tell what is not 0: four of them, or all that share a copy of A.  Many rows,
    # whose sums the second-level cache keeps, use a block of B while it is in the first one.
    together, block, copy = min(panels, 4), 256, 0
    # One core may be slower than another for a while; but a task has 96 rows, or 64 if it is lent.
    tasks = 4 * threads if threads > 1 and m * n * k > LONG else TASKS if lent else 1
    if a_col == 1 or turned:
        columns = math.gcd(panels, threads)
        together = next(e for e in (4, 3, 2, 1) if panels // columns % e == 0)
        least = lanes if turned else 1
        tall = max(2 * lanes if lent else 96, -(-m // -(-tasks * together // panels)))
        rows = min(-(-m // (threads // columns * least)) * least, -(-tall // least) * least, block) or least
        if turned and k <= WORD:
            block = 2 * lanes
    else:
        rows = -(-m // ((tasks if lent else threads) * lanes)) * lanes or lanes
        if k <= WORD:
            block = 8  # there is one block of B: sums stay in the first-level cache, with what is updated by them
        elif panels > 2:
            copy, together = 1, panels
            most = max(64, min(block, COPY // (k * size), max(64 if lent else 96, -(-m // tasks))))
            rows = -(-m // (threads * -(-m // (threads * most)) * lanes)) * lanes
    block = min(block, rows)
    pack = int(b_col != 1 or (b_row * size >= PAGE and block >= 64))
    return {"panels": together, "rows": rows, "block": block, "pack": pack, "copy": copy, "turned": int(turned)}


def in_panels(n: int, dtype: str) -> int:
    """How many columns `fastnn.cpu.spmm` computes for n: panels `WIDE` vectors wide, the last perhaps a half."""
    half = WIDE // 2 * CPU.lanes(dtype)
    return -(-n // half) * half


def has_whole_panels(n: int, dtype: str) -> bool:
    """Whether n columns are whole panels of `fastnn.cpu.spmm`, `WIDE` vectors wide or half of that."""
    return n == in_panels(n, dtype)


def resting(parameters: int, dtype: str) -> int:
    """Bytes in which a run remembers which pieces of rows of so many parameters are at rest (`fastnn.cpu.spmm`).

    A panel's piece of a row begins half a panel or more behind the one before it, so that each has a byte.
    """
    return parameters // (WIDE // 2 * CPU.lanes(dtype)) + 1


def sparse_scratch(k: int, dtype: str, cut: dict[str, int]) -> int:
    """Elements one thread needs for that: a block of B, one of C' if it is turned, sums, a copy of rows of A if there
    is one, and a word for each row and `WORD` steps of k.
    """
    lanes = CPU.lanes(dtype)
    out = cut["turned"] * lanes * max(2 * WIDE * lanes, cut["block"])
    out += cut["copy"] * cut["rows"] * -(-k // WORD) * WORD
    words = cut["rows"] * -(-k // WORD) * 8 // SIZES[dtype]
    return -(-((WORD + cut["block"]) * WIDE * lanes + out + words) // 64) * 64


def pays_tiles(m: int, n: int, k: int, dtype: str, a_row: int, a_col: int, b_row: int, b_col: int) -> bool:
    """Whether the matrix unit may be used for a product, and is faster (`fastnn.cpu.amx`).

    Its bits depend on it, so it depends on nothing but the machine and the product.  GFLOP/s of one core of a Granite
    Rapids, there and by vectors: 512 x 512 x 784 287 and 189, 128 x 128 x 128 219 and 164, 256 x 64 x 64 198 and 170,
    but 64 x 64 x 256 165 and 169, 32 x 64 x 64 104 and 121.
    """
    if dtype != "float32" or k < SIDE or m * n * k < TILED or m * n < USES * (m + n):
        return False
    return 1 in (a_row, a_col) and 1 in (b_row, b_col) and target.may_use_tiles()


def tiles(m: int, n: int, k: int, threads: int, *, lent: bool = False) -> dict[str, int]:
    """As `blocks`, for that; panels are `SIDE` wide."""
    rows, columns = min(LARGEST, -(-m // SIDE) * SIDE), min(LARGEST, -(-n // SIDE) * SIDE)
    # A task splits all of its rows and columns, so it should be large, but there have to be some for each thread.
    tasks = 4 * threads if threads > 1 else TASKS if lent else 1
    while -(-m // rows) * -(-n // columns) < tasks and max(rows, columns) > (SIDE if lent else LEAST):
        if rows >= columns:
            rows = -(-rows // 2 // SIDE) * SIDE
        else:
            columns = -(-columns // 2 // SIDE) * SIDE
    return {"kc": min(SPLIT, -(-k // SIDE) * SIDE), "panels": columns // SIDE, "rows": rows}


def tiles_scratch(cut: dict[str, int]) -> int:
    """Elements one thread needs for that: sums, the three parts of A and B, 2 bytes each, and two blocks: tiles that
    are turned, or a panel of B and its sums.
    """
    columns = cut["panels"] * SIDE
    parts = (cut["rows"] + columns) * cut["kc"] * 3 // 2
    return cut["rows"] * columns + parts + 2 * SIDE * SIDE


def scratch(dtype: str, cut: dict[str, int]) -> int:
    """Elements one thread needs for a product: panels of B, partial tiles and a block of A, in cache lines."""
    nr = columns(dtype)
    size = max(cut["kept"] * cut["panels"], cut["kc"]) * nr + cut["partial"] * cut["panels"] * nr
    if cut["copy"]:
        size += cut["block"] * (cut["kc"] + CPU.lanes(dtype))
    return max(-(-size // 64) * 64, 16 * CPU.lanes(dtype))


def of_row(m: int, a_col: int, b_row: int, b_col: int) -> str | None:
    """The kernel for a product of one row, if this is one that it can compute."""
    if m == 1 and b_col == 1:
        return "gemv.gemv_rows"
    if m == 1 and b_row == 1 and a_col == 1:
        return "gemv.gemv_columns"
    return None


def of_matrix(m: int, n: int, k: int, dtype: str, b_col: int) -> str:
    """The kernel for any other product of a step.

    Where each factor takes half of the second-level cache at most, there is nothing to cut: 256 x 64 x 64 takes 23.0 us
    instead of 27.4 on one core with 512 KiB, a step of 784-256-10 at batch 32 on two 238 instead of 250.  With all of
    that cache for a factor, the weight gradient at batch 128 takes 395 us instead of 363.

    Where C is one vector wide and has few rows, too, most instructions prepare what never comes: 5-3-1, batch 10, takes
    0.38 us a step instead of 0.50 with `small.slim` (AMD EPYC, Zen 4).
    """
    fits = k * max(m, n) * SIZES[dtype] <= target.caches()["L2"] // 2
    if not fits or k > depth(dtype, k):
        return "gemm.gemm"
    slim = b_col == 1 and n <= CPU.lanes(dtype) and m <= TILES * MR
    return "small.slim" if slim else "small.fused"


def pays_sparse(m: int, n: int, k: int, dtype: str) -> bool:
    """Whether a product is large enough for `fastnn.cpu.spmm` to be faster than other kernels, if enough of A is 0.

    A row of C has to have some vectors, which wait for each other's sums else: 784-32-10, batch 128, with a tenth of
    its inputs not 0, takes two threads 54 us instead of 48, 784-64-10 one thread 84 instead of 146.
    """
    return min(m, k) >= 8 and n >= 4 * CPU.lanes(dtype)


def is_far(elements: int, dtype: str, threads: int) -> bool:
    """Whether loads of what an optimizer updates, all arrays together, come too late if nothing fetches it before.

    What fits the second-level cache comes in time: a step of 100-256-128-1 takes 94.4 us on one core of a Zen 5 if it
    is fetched, 92.1 if not; and what is about as large, where the CPU foresees it.  Beyond, it does not: 784 x 256 at
    batch 32 on one core of a Zen 3 with 512 KiB takes 128 us instead of 145, 784-2048-2048-10 on a Zen 5 1.5% less.
    """
    near = (2 * threads if CPU.foresees_rows else 1) * target.caches()["L2"]
    return elements * SIZES[dtype] > near


def pad(n: int, dtype: str) -> int:
    """A leading dimension for rows of `n` elements: whole vectors, and not a multiple of 1 KiB; 1 for a single column.

    Rows whose addresses differ by a power of two fall into the same few sets of the cache; one more vector spreads
    them.  A single column without gaps can be read in vectors, as a row.
    """
    if n == 1:
        return 1
    lanes = CPU.lanes(dtype)
    size = 4 if dtype == "float32" else 8
    ld = -(-n // lanes) * lanes
    return ld + lanes if ld * size % 1024 == 0 else ld
