"""Rows in and out: a batch gathered from the user's arrays, results written to them, and sums over rows."""

import numpy as np
from numba.types import float32 as FLOAT32
from numba.types import float64 as FLOAT64

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import cast, is_null, lanes, load_bytes, muladd, offset, scalar_like, splat, store
from fastnn.records import GATHER, LABELS, SCATTER, TOTAL


@device
def source_row(index, step, step_rows, r):
    """Which row of the user's array is row r of this step's batch."""
    row = step * step_rows + r
    return row if is_null(index) else index[row]


@device
def gather(op, x, run, step, thread):
    """``out[r, c] = scale * x[index[r], c] + offset`` for this thread's rows."""
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        source = offset(x, source_row(op.index, step, op.step_rows, r) * op.x_row)
        out = offset(op.out, r * op.ld)
        # Two loops, because LLVM turns only the contiguous one into vector instructions.
        if op.x_col == 1:
            for c in range(op.cols):
                out[c] = scalar_like(out, source[c]) * op.scale + op.offset
        else:
            for c in range(op.cols):
                out[c] = scalar_like(out, source[c * op.x_col]) * op.scale + op.offset


@kernel(GATHER)
def gather_float32(op, run, step, thread):
    gather(op, cast(op.x, FLOAT32), run, step, thread)


@kernel(GATHER)
def gather_float64(op, run, step, thread):
    gather(op, cast(op.x, FLOAT64), run, step, thread)


@kernel(GATHER)
def gather_uint8(op, run, step, thread):
    # Bytes are widened by hand: Numba's uint8 to float32 conversion goes through float64.
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.out)
    for r in range(first, last):
        source = offset(op.x, source_row(op.index, step, op.step_rows, r) * op.x_row)
        out = offset(op.out, r * op.ld)
        c = 0
        if op.x_col == 1:
            while c + w <= op.cols:
                store(out, c, muladd(load_bytes(source, c, out), splat(out, op.scale), op.offset))
                c += w
        while c < op.cols:
            out[c] = scalar_like(out, source[c * op.x_col]) * op.scale + op.offset
            c += 1


@kernel(LABELS)
def gather_labels(op, run, step, thread):
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        op.out[r] = op.labels[source_row(op.index, step, op.step_rows, r)]


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
