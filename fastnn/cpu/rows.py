"""Rows in and out: a batch gathered from the user's arrays, results written to them, and sums over rows."""

import numpy as np
from numba.types import float32 as FLOAT32
from numba.types import float64 as FLOAT64

from fastnn.cpu.blocking import NV
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.ragged import load_before, store_before
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    call_epilogue,
    cast,
    first_lane,
    is_null,
    keep_first,
    lanes,
    load_first_numbers,
    load_numbers,
    offset,
    prefetch_far,
    scalar_like,
    splat,
    store,
)
from fastnn.records import GATHER, LABELS, MAP, SCATTER, TOTAL

FETCHED = 8  # cache lines at the start of a row that are fetched; the CPU follows a longer row by itself
LINE = 64  # bytes of a cache line
TOGETHER = 16  # rows of a sum for which an epilogue is called


@device
def source_row(index, row):
    """Which row of the user's array is row `row` of this run."""
    return row if is_null(index) else index[row]


@device
def fetch(x, at, cols, size):
    """Start fetching the row at ``x[at]``: rows in random order are nothing that the CPU foresees.

    As near as the second-level cache: a batch's rows would push a step's other data, and each other, out of the first.
    `cols` is at least a vector, since a load waits for all the lines that its vector touches, masked or not.
    """
    source = offset(x, at)
    for c in range(0, min(cols, FETCHED * LINE // size), LINE // size):
        prefetch_far(source, c)
    prefetch_far(source, cols - 1)


@device
def gather(op, x, size, run, step, thread):
    """``out[r, c] = scale * x[index[r], c] + offset`` for this thread's rows; elements of x have `size` bytes."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.out)
    # In locals, since stores to out might change the record.
    cols, x_row, x_col, ld, index = op.cols, op.x_row, op.x_col, op.ld, op.index
    scale, shift = splat(op.out, op.scale), splat(op.out, op.offset)
    factor, term = first_lane(scale), first_lane(shift)
    here, following = step * op.step_rows, (step + 1) * op.step_rows
    out, x = offset(op.out, first * ld), offset(x, op.first * x_col)
    if cols == 1:
        for r in range(first, last):
            out[0] = scalar_like(out, x[source_row(index, here + r) * x_row]) * factor + term
            out = offset(out, ld)
        return
    if x_col != 1:
        for r in range(first, last):
            source = offset(x, source_row(index, here + r) * x_row)
            for c in range(cols):
                out[c] = scalar_like(out, source[c * x_col]) * factor + term
            out = offset(out, ld)
        return
    touched = max(cols, w)
    # Rows are fetched a step before they are needed, as long as the next one is known and has as many.
    if step == run.first:
        for r in range(first, last):
            fetch(x, source_row(index, here + r) * x_row, touched, size)
    more = step + 1 < run.stop and step + 1 != run.short_step
    for r in range(first, last):
        if more:
            fetch(x, source_row(index, following + r) * x_row, touched, size)
        source = offset(x, source_row(index, here + r) * x_row)
        for c in range(0, cols - w + 1, w):
            store(out, c, load_numbers(source, c, out) * scale + shift)
        if cols < w:
            # Rows of the arena are padded, and the padding is 0.
            store(out, 0, keep_first(load_first_numbers(source, 0, cols, out) * scale + shift, cols))
        elif cols % w:
            # The last vector overlaps the one before: a masked one would wait for the line behind the row, too.
            store(out, cols - w, load_numbers(source, cols - w, out) * scale + shift)
        out = offset(out, ld)


@kernel(GATHER)
def gather_float32(op, run, step, thread):
    gather(op, cast(op.x, FLOAT32), 4, run, step, thread)


@kernel(GATHER)
def gather_float64(op, run, step, thread):
    gather(op, cast(op.x, FLOAT64), 8, run, step, thread)


@kernel(GATHER)
def gather_uint8(op, run, step, thread):
    gather(op, op.x, 1, run, step, thread)


@kernel(LABELS)
def gather_labels(op, run, step, thread):
    first, last = share(op.rows, thread, run.threads)
    out, labels, index, here = op.out, op.labels, op.index, step * op.step_rows
    for r in range(first, last):
        out[r] = labels[source_row(index, here + r)]


@kernel(SCATTER)
def scatter(op, run, step, thread):
    """Copy the rows of a batch, without their padding, to the caller's array."""
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        out = offset(op.out, (step * op.step_rows + r) * op.cols)
        x = offset(op.x, r * op.ld)
        for c in range(op.cols):
            out[c] = x[c]


@kernel(TOTAL)
def total(op, run, step, thread):
    """``totals[slot] += sum of value (times weight)``: one thread, in order, in float64."""
    if thread == 0:
        s = 0.0
        for r in range(op.rows):
            if is_null(op.weight):
                s += op.value[r]
            else:
                s += np.float64(op.value[r]) * np.float64(op.weight[r])
        op.totals[op.slot] += s


@kernel(MAP)
def combine(op, run, step, thread):
    """y = x + g, and the epilogue of it, in place: what two threads have computed of a product (tensor_parallel)."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.x)
    for r in range(first, last, TOGETHER):
        rows = min(TOGETHER, last - r)
        for q in range(0, op.cols, NV * w):
            cols = min(NV * w, op.cols - q)
            for i in range(r * op.ld + q, (r + rows) * op.ld + q, op.ld):
                for c in range(i, i + cols, w):
                    store_before(op.y, c, i + cols, load_before(op.x, c, i + cols) + load_before(op.g, c, i + cols))
            call_epilogue(op.epilogue, run, step, offset(op.y, r * op.ld + q), op.ld, r, q, rows, cols)
