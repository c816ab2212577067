"""Losses fused with the last activation: one pass from logits to predictions, loss and gradient.

Every kernel reads the network's outputs z, (rows, cols), and writes

- the predictions p (for metrics), where the loss includes an activation; p may be z, or grad where nobody needs p;
- ``value[r]``, the loss of row r, without its weight;
- ``grad = scale * weight[r] * d value[r] / d z``, unless `grad` is null.  `scale` is 1 / (rows of the batch).

Columns beyond `cols` are padding: read, never written.
"""

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.logarithms import log1p_unit
from fastnn.cpu.ragged import load_before, store_before
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    absolute,
    is_null,
    keep_first,
    lanes,
    muladd,
    offset,
    select,
    splat,
    store,
    sum_lanes,
    sum_vectors,
)
from fastnn.cpu.softmax import row_max, softmax_row
from fastnn.cpu.spans import BLOCK_VECTORS, load_vectors
from fastnn.cpu.vmath import exp_below_top, sigmoid
from fastnn.records import LOSS


@device
def row_scale(op, r):
    return op.scale if is_null(op.weight) else op.scale * op.weight[r]


@kernel(LOSS)
def sparse_softmax_crossentropy(op, run, step, thread):
    """value = log(sum(exp(z - top))) + top - z[label];  grad = softmax(z) - onehot(label)."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.z)
    for r in range(first, last):
        z = offset(op.z, r * op.ld)
        label = op.label[r]
        top = row_max(z, op.cols)
        behind = top - z[label]  # exact where it matters; top + log(...) would lose the logarithm of large logits
        p = offset(op.p, r * op.ld)
        op.value[r] = softmax_row(z, p, op.cols, top) + behind
        if not is_null(op.grad):
            grad = offset(op.grad, r * op.ld)
            scale = row_scale(op, r)
            own = (p[label] - 1) * scale
            for c in range(0, op.cols, w):
                store_before(grad, c, op.cols, load_before(p, c, op.cols) * scale)
            grad[label] = own


@kernel(LOSS)
def softmax_crossentropy(op, run, step, thread):
    """value = sum(t * (log(sum(exp(z - top))) + top - z));  grad = softmax(z) * sum(t) - t."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.z)
    for r in range(first, last):
        z = offset(op.z, r * op.ld)
        t = offset(op.target, r * op.target_ld)
        top = row_max(z, op.cols)
        weight = splat(z, 0)
        behind = splat(z, 0)
        for c in range(0, op.cols, w):
            tv = load_before(t, c, op.cols)
            weight = weight + tv
            # A target of 0 contributes nothing, also where the logit is infinite.
            behind = select(tv == 0, behind, muladd(tv, top - load_before(z, c, op.cols), behind))
        total = sum_lanes(weight)
        p = offset(op.p, r * op.ld)
        op.value[r] = softmax_row(z, p, op.cols, top) * total + sum_lanes(behind)
        if not is_null(op.grad):
            grad = offset(op.grad, r * op.ld)
            scale = row_scale(op, r)
            for c in range(0, op.cols, w):
                store_before(
                    grad, c, op.cols, (load_before(p, c, op.cols) * total - load_before(t, c, op.cols)) * scale
                )


def elementwise(terms, activates):
    """A loss that is a mean over columns.

    ``terms(z, t)`` gives the prediction, the loss and its slope for vectors of outputs and targets; `activates` says
    whether predictions are something else than outputs.
    """

    @device
    def column(op, first, last):
        """A single column: rows lie side by side."""
        w = lanes(op.z)
        while first + BLOCK_VECTORS * w <= last:
            target = load_vectors(op.target, first)
            y, value, slope = terms(load_vectors(op.z, first), target)
            store(op.value, first, value)
            if activates:
                store(op.p, first, y)
            if not is_null(op.grad):
                scale = splat(target, op.scale)
                if not is_null(op.weight):
                    scale = scale * load_vectors(op.weight, first)
                store(op.grad, first, slope * scale)
            first += BLOCK_VECTORS * w
        for r in range(first, last, w):
            y, value, slope = terms(load_before(op.z, r, last), load_before(op.target, r, last))
            store_before(op.value, r, last, value)
            if activates:
                store_before(op.p, r, last, y)
            if not is_null(op.grad):
                scale = splat(op.z, op.scale)
                if not is_null(op.weight):
                    scale = scale * load_before(op.weight, r, last)
                store_before(op.grad, r, last, slope * scale)

    @kernel(LOSS)
    def apply(op, run, step, thread):
        first, last = share(op.rows, thread, run.threads)
        w = lanes(op.z)
        if op.ld == 1 and op.target_ld == 1:
            column(op, first, last)
            return
        for r in range(first, last):
            z = offset(op.z, r * op.ld)
            p = offset(op.p, r * op.ld)
            t = offset(op.target, r * op.target_ld)
            grad = offset(op.grad, r * op.ld)
            scale = row_scale(op, r) / op.cols
            total = splat(z, 0)
            done = 0
            if op.cols >= BLOCK_VECTORS * w:
                totals = splat(load_vectors(z, 0), 0)
                while done + BLOCK_VECTORS * w <= op.cols:
                    target = load_vectors(t, done)
                    y, value, slope = terms(load_vectors(z, done), target)
                    totals = totals + value
                    if activates:
                        store(p, done, y)
                    if not is_null(op.grad):
                        store(grad, done, slope * scale)
                    done += BLOCK_VECTORS * w
                total = sum_vectors(totals)
            for c in range(done, op.cols, w):
                y, value, slope = terms(load_before(z, c, op.cols), load_before(t, c, op.cols))
                total = total + keep_first(value, op.cols - c)
                if activates:
                    store_before(p, c, op.cols, y)
                if not is_null(op.grad):
                    store_before(grad, c, op.cols, slope * scale)
            op.value[r] = sum_lanes(total) / op.cols

    return apply


@device
def sigmoid_terms(z, t):
    """value = max(z, 0) - z t + log(1 + exp(-|z|));  slope = sigmoid(z) - t."""
    y = sigmoid(z)
    e = exp_below_top(-absolute(z))  # as in sigmoid: it is computed once
    positive = select(z < 0, 0, z)
    return y, positive - z * t + log1p_unit(e), y - t


@device
def squared_terms(z, t):
    """value = (z - t)^2;  slope = 2 (z - t)."""
    d = z - t
    return z, d * d, d + d


sigmoid_crossentropy = elementwise(sigmoid_terms, True)
mean_squared_error = elementwise(squared_terms, False)
