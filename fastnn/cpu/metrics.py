"""Metrics per row, from predictions z and targets; `fastnn.cpu.rows.total` sums them."""

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import offset, scalar_like
from fastnn.records import METRIC


@device
def argmax(x, n):
    """Index of the first largest element."""
    best = 0
    for c in range(1, n):
        if x[c] > x[best]:
            best = c
    return best


@kernel(METRIC)
def sparse_categorical_accuracy(op, run, step, thread):
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        hit = argmax(offset(op.z, r * op.ld), op.cols) == op.label[r]
        op.value[r] = scalar_like(op.value, hit)


@kernel(METRIC)
def categorical_accuracy(op, run, step, thread):
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        hit = argmax(offset(op.z, r * op.ld), op.cols) == argmax(offset(op.target, r * op.target_ld), op.cols)
        op.value[r] = scalar_like(op.value, hit)


@kernel(METRIC)
def binary_accuracy(op, run, step, thread):
    """The share of columns where (z > threshold) equals the target."""
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        hits = 0
        for c in range(op.cols):
            guess = scalar_like(op.z, op.z[r * op.ld + c] > op.threshold)
            hits += guess == op.target[r * op.target_ld + c]
        op.value[r] = scalar_like(op.value, hits) / op.cols


@kernel(METRIC)
def mean_squared_error(op, run, step, thread):
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        s = scalar_like(op.z, 0)
        for c in range(op.cols):
            d = op.z[r * op.ld + c] - op.target[r * op.target_ld + c]
            s += d * d
        op.value[r] = s / op.cols


@kernel(METRIC)
def mean_absolute_error(op, run, step, thread):
    first, last = share(op.rows, thread, run.threads)
    for r in range(first, last):
        s = scalar_like(op.z, 0)
        for c in range(op.cols):
            s += abs(op.z[r * op.ld + c] - op.target[r * op.target_ld + c])
        op.value[r] = s / op.cols
