"""The product of one row with a matrix: C (1, n) = epilogue(A (1, k) B (k, n)).

Every element of B is used once, so its memory traffic is the time, and the tile of `fastnn.cpu.gemm` (which exists to
use elements several times) does not fit.  Same record, same epilogues.
"""

from fastnn.cpu.gemm import make_tile
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    call_epilogue,
    lanes,
    load,
    load_first,
    muladd,
    offset,
    splat,
    store,
    sum_lanes,
)
from fastnn.records import GEMM

WIDE = 8  # vectors: as many independent sums as two FMA ports with a latency of 4 can hold

row_wide = make_tile(1, WIDE)
row_narrow = make_tile(1, 1)


@kernel(GEMM)
def gemv_rows(op, run, step, thread):
    """For B with contiguous rows: sums of whole vectors of C, one broadcast of A each step of k."""
    w = lanes(op.a)
    width = WIDE * w
    chunks = (op.n + width - 1) // width
    first, last = share(chunks, thread, run.threads)
    tile = offset(op.scratch, thread * op.scratch_stride)
    for chunk in range(first, last):
        left = chunk * width
        cols = min(width, op.n - left)
        b = offset(op.b, left)
        if cols == width:
            row_wide(op.a, 0, op.a_col, b, op.b_row, op.k, tile, True)
        else:
            c = 0
            while c + w <= cols:
                row_narrow(op.a, 0, op.a_col, offset(b, c), op.b_row, op.k, offset(tile, c), True)
                c += w
            if c < cols:
                total = splat(tile, 0)
                for p in range(op.k):
                    total = muladd(op.a[p * op.a_col], load_first(b, p * op.b_row + c, cols - c), total)
                store(tile, c, total)
        call_epilogue(op, run, step, tile, width, 0, left, 1, cols)


@device
def dot(a, b, k):
    """The dot product of two contiguous vectors, in a fixed order: four running sums."""
    w = lanes(a)
    s0, s1, s2, s3 = splat(a, 0), splat(a, 0), splat(a, 0), splat(a, 0)
    p = 0
    while p + 4 * w <= k:
        s0 = muladd(load(a, p), load(b, p), s0)
        s1 = muladd(load(a, p + w), load(b, p + w), s1)
        s2 = muladd(load(a, p + 2 * w), load(b, p + 2 * w), s2)
        s3 = muladd(load(a, p + 3 * w), load(b, p + 3 * w), s3)
        p += 4 * w
    while p < k:
        s0 = muladd(load_first(a, p, k - p), load_first(b, p, k - p), s0)
        p += w
    return sum_lanes((s0 + s1) + (s2 + s3))


@kernel(GEMM)
def gemv_columns(op, run, step, thread):
    """For B with contiguous columns: one dot product for each element of C.  A is contiguous."""
    w = lanes(op.a)
    width = WIDE * w
    chunks = (op.n + width - 1) // width
    first, last = share(chunks, thread, run.threads)
    tile = offset(op.scratch, thread * op.scratch_stride)
    for chunk in range(first, last):
        left = chunk * width
        cols = min(width, op.n - left)
        for c in range(cols):
            tile[c] = dot(op.a, offset(op.b, (left + c) * op.b_col), op.k)
        call_epilogue(op, run, step, tile, width, 0, left, 1, cols)
