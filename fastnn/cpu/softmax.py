"""Softmax of rows.

A row of one or two vectors would be all reduction: the steps of a sum within a vector wait for each other.  Such rows
are transposed, as many as a vector has lanes, so that each lane works on a row of its own.  Of longer rows one pass
finds the maximum, one makes exponentials and their sum, one divides.  In float32 rows of 10 take 6 ns each, where NumPy
takes 85; rows of 100 take 40 (NumPy 195).
"""

from fastnn.cpu.jit import device
from fastnn.cpu.logarithms import log
from fastnn.cpu.ragged import load_before, store_before
from fastnn.cpu.simd import (
    first_lane,
    first_lanes,
    lanes,
    load,
    load_block,
    load_first,
    max_lanes,
    muladd,
    offset,
    select,
    splat,
    store,
    store_first,
    sum_lanes,
    sum_vectors,
    transpose_block,
    transpose_corner,
)
from fastnn.cpu.spans import BLOCK_VECTORS, load_vectors
from fastnn.cpu.vmath import BOTTOM, exp_below_top

SHORT = 2  # vectors of a row that is transposed at most


@device
def larger(a, b):
    """NaN is ignored here and reaches the softmax through its total."""
    return select(a > b, a, b)


@device
def row_max(x, cols):
    """The largest element of a row."""
    w = lanes(x)
    a = BOTTOM(splat(x, 0.0))
    b = a
    i = 0
    while i + 2 * w <= cols:
        a = larger(load(x, i), a)
        b = larger(load(x, i + w), b)
        i += 2 * w
    while i < cols:
        b = larger(select(first_lanes(b, cols - i), load_before(x, i, cols), BOTTOM(b)), b)
        i += w
    return max_lanes(larger(a, b))


@device
def softmax_row(x, y, cols, top):
    """``y = softmax(x)`` for one row with maximum `top`; y may be x.  Returns ``log(sum(exp(x - top)))``."""
    w = lanes(x)
    rest = cols % w
    whole = cols - rest
    # Lanes beyond the row are given exp(0): what underflows takes the CPU 150 cycles.
    inside = first_lanes(splat(x, 0.0), rest)
    last = exp_below_top(select(inside, load_first(x, whole, rest) - top, 0.0))
    last = select(inside, last, 0.0)
    total = last
    done = 0
    if whole >= BLOCK_VECTORS * w:
        totals = splat(load_vectors(x, 0), 0.0)
        while done + BLOCK_VECTORS * w <= whole:
            e = exp_below_top(load_vectors(x, done) - top)
            totals = totals + e
            store(y, done, e)
            done += BLOCK_VECTORS * w
        total = total + sum_vectors(totals)
    for i in range(done, whole, w):
        e = exp_below_top(load(x, i) - top)
        total = total + e
        store(y, i, e)
    total = splat(x, sum_lanes(total))
    scale = 1.0 / total
    for i in range(0, whole, w):
        store(y, i, load(y, i) * scale)
    store_first(y, whole, rest, last * scale)
    return first_lane(log(total))


@device
def row_dot(x, y, cols):
    """``sum(x * y)``, in partial sums that need not wait for each other."""
    w = lanes(x)
    total = splat(x, 0.0)
    done = 0
    if cols >= BLOCK_VECTORS * w:
        totals = splat(load_vectors(x, 0), 0.0)
        while done + BLOCK_VECTORS * w <= cols:
            left = load_vectors(x, done)
            totals = muladd(left, load_vectors(y, done), totals)
            done += BLOCK_VECTORS * w
        total = sum_vectors(totals)
    for i in range(done, cols, w):
        total = muladd(load_before(x, i, cols), load_before(y, i, cols), total)
    return sum_lanes(total)


@device
def softmax_columns(x, y, ld, rows, cols, memory, block):
    """``y = softmax(x)`` for at most a vector's lanes of short rows, which lie in `memory` as columns."""
    w = lanes(x)
    for j in range(0, cols, w):
        transpose_corner(offset(x, j), ld, rows, min(w, cols - j), offset(memory, j * w), w)
    top = BOTTOM(splat(x, 0.0))
    for j in range(cols):
        top = larger(load(memory, j * w), top)
    total = splat(x, 0.0)
    store(block, 0, top)
    done = cols // BLOCK_VECTORS * BLOCK_VECTORS
    if done > 0:
        tops = load_block(block, 0, BLOCK_VECTORS, 1)
        totals = splat(tops, 0.0)
        for j in range(0, done, BLOCK_VECTORS):
            e = exp_below_top(load_vectors(memory, j * w) - tops)
            totals = totals + e
            store(memory, j * w, e)
        total = sum_vectors(totals)
    for j in range(done, cols):
        e = exp_below_top(load(memory, j * w) - top)
        total = total + e
        store(memory, j * w, e)
    scale = 1.0 / total
    for j in range(0, cols, w):
        for p in range(j, min(j + w, cols)):
            store(memory, p * w, load(memory, p * w) * scale)
        transpose_block(offset(memory, j * w), w, block, w)
        for i in range(rows):
            store_before(offset(y, i * ld), j, cols, load(block, i * w))
