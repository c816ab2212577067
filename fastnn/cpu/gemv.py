"""The product of one row with a matrix: C (1, n) = epilogue(A (1, k) B (k, n)).

Every element of B is used once, so its memory traffic is the time, and the tile of `fastnn.cpu.gemm` (which exists to
use elements several times) does not fit.  Same record, same epilogues.
"""

from fastnn.cpu.blocking import CPU
from fastnn.cpu.gemm import make_edge_tile
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.ragged import load_before
from fastnn.cpu.share import share, worker
from fastnn.cpu.simd import (
    call_epilogue,
    keep_first,
    lanes,
    load,
    load_first,
    muladd,
    offset,
    reference,
    splat,
    store,
    sum_lanes,
)
from fastnn.records import FORWARD, GEMM

WIDE = CPU.registers // 2  # vectors of C at once: long pieces of the rows of B, and sums enough to hide the latency

SOME = 4  # as many sums as hide half the latency

ONE_ROW = (0,)

as_forward = reference(FORWARD)
row_wide = make_edge_tile(1, WIDE)
row_some = make_edge_tile(1, SOME)
row_narrow = make_edge_tile(1, 1)


@device
def sum_row(op, run, step, tile):
    """The sum of A, which is contiguous and the D of a single unit, and the epilogue for it."""
    w = lanes(op.a)
    total = splat(op.a, 0)
    for p in range(0, op.k, w):
        total = total + load_before(op.a, p, op.k)
    store(tile, 0, keep_first(splat(tile, sum_lanes(total)), 1))
    call_epilogue(op.sums, run, step, tile, w, 0, 0, 1, 1)


@kernel(GEMM)
def gemv_rows(op, run, step, thread):
    """For B with contiguous rows: sums of whole vectors of C, one broadcast of A each step of k."""
    w = lanes(op.a)
    width = WIDE * w
    chunks = (op.n + width - 1) // width
    first, last = share(chunks, thread, run.threads)
    tile = offset(op.scratch, worker(run, thread) * op.scratch_stride)
    for chunk in range(first, last):
        left = chunk * width
        if op.sums and left == 0:
            sum_row(op, run, step, tile)
        cols = min(width, op.n - left)
        b = offset(op.b, left)
        if cols == width:
            row_wide(op.a, ONE_ROW, op.a_col, b, op.b_row, op.ahead, op.k, tile, True)
        else:
            c = 0
            while c + SOME * w <= cols:
                row_some(op.a, ONE_ROW, op.a_col, offset(b, c), op.b_row, op.ahead, op.k, offset(tile, c), True)
                c += SOME * w
            while c + w <= cols:
                row_narrow(op.a, ONE_ROW, op.a_col, offset(b, c), op.b_row, op.ahead, op.k, offset(tile, c), True)
                c += w
            if c < cols:
                total = splat(tile, 0)
                for p in range(op.k):
                    total = muladd(op.a[p * op.a_col], load_first(b, p * op.b_row + c, cols - c), total)
                store(tile, c, total)
        call_epilogue(op.epilogue, run, step, tile, width, 0, left, 1, cols)


@device
def dots(a, b, b_col, k, out):
    """Four dot products of the contiguous vector `a`, with b and the three columns after it, in a fixed order."""
    w = lanes(a)
    b1, b2, b3 = offset(b, b_col), offset(b, 2 * b_col), offset(b, 3 * b_col)
    s0, s1, s2, s3 = splat(a, 0), splat(a, 0), splat(a, 0), splat(a, 0)
    t0, t1, t2, t3 = splat(a, 0), splat(a, 0), splat(a, 0), splat(a, 0)
    p = 0
    while p + 2 * w <= k:
        x = load(a, p)
        y = load(a, p + w)
        s0, t0 = muladd(x, load(b, p), s0), muladd(y, load(b, p + w), t0)
        s1, t1 = muladd(x, load(b1, p), s1), muladd(y, load(b1, p + w), t1)
        s2, t2 = muladd(x, load(b2, p), s2), muladd(y, load(b2, p + w), t2)
        s3, t3 = muladd(x, load(b3, p), s3), muladd(y, load(b3, p + w), t3)
        p += 2 * w
    while p < k:
        x = load_first(a, p, k - p)
        s0 = muladd(x, load_first(b, p, k - p), s0)
        s1 = muladd(x, load_first(b1, p, k - p), s1)
        s2 = muladd(x, load_first(b2, p, k - p), s2)
        s3 = muladd(x, load_first(b3, p, k - p), s3)
        p += w
    out[0], out[1], out[2], out[3] = sum_lanes(s0 + t0), sum_lanes(s1 + t1), sum_lanes(s2 + t2), sum_lanes(s3 + t3)


@device
def dot(a, b, k):
    """The dot product of two contiguous vectors, in the same order."""
    w = lanes(a)
    s, t = splat(a, 0), splat(a, 0)
    p = 0
    while p + 2 * w <= k:
        s, t = muladd(load(a, p), load(b, p), s), muladd(load(a, p + w), load(b, p + w), t)
        p += 2 * w
    while p < k:
        s = muladd(load_first(a, p, k - p), load_first(b, p, k - p), s)
        p += w
    return sum_lanes(s + t)


@kernel(GEMM)
def gemv_columns(op, run, step, thread):
    """For B with contiguous columns: dot products, four at once.  A is contiguous."""
    w = lanes(op.a)
    width = WIDE * w
    # Where rows of C are padded, epilogues write whole vectors, so threads share these.
    unit = w if as_forward(op.epilogue, op).c_row % w == 0 else 1
    first, last = share((op.n + unit - 1) // unit, thread, run.threads)
    first, last = first * unit, min(last * unit, op.n)
    tile = offset(op.scratch, worker(run, thread) * op.scratch_stride)
    for left in range(first, last, width):
        cols = min(width, last - left)
        store(tile, (cols - 1) // w * w, splat(tile, 0))  # of which a part may become padding
        c = 0
        while c + 4 <= cols:
            dots(op.a, offset(op.b, (left + c) * op.b_col), op.b_col, op.k, offset(tile, c))
            c += 4
        while c < cols:
            tile[c] = dot(op.a, offset(op.b, (left + c) * op.b_col), op.k)
            c += 1
        call_epilogue(op.epilogue, run, step, tile, width, 0, left, 1, cols)
