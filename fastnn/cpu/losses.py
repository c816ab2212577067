"""Losses fused with the last activation: one pass from logits to predictions, loss and gradient.

Every kernel reads the network's outputs z, (rows, cols), and writes

- the predictions over z (for metrics), where the loss includes an activation;
- ``value[r]``, the loss of row r, without its weight;
- ``grad = scale * weight[r] * d value[r] / d z``, unless `grad` is null.  `scale` is 1 / (rows of the batch).

Columns beyond `cols` are padding: read, never written.
"""

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    absolute,
    first_lane,
    is_null,
    keep_first,
    lanes,
    load_first,
    max_lanes,
    muladd,
    offset,
    select,
    splat,
    store_first,
    sum_lanes,
)
from fastnn.cpu.vmath import exp, log, log1p
from fastnn.records import LOSS

INF = float("inf")


@device
def row_scale(op, r):
    return op.scale if is_null(op.weight) else op.scale * op.weight[r]


@device
def softmax_row(z, cols):
    """Turn the logits of one row into probabilities; returns log(sum(exp(z)))."""
    w = lanes(z)
    iota_end = (cols + w - 1) // w * w
    top = splat(z, -INF)
    for c in range(0, iota_end, w):
        v = load_first(z, c, cols - c)
        if c + w > cols:  # padding must not win
            for q in range(c, cols):
                top = select(top < z[q], z[q], top)
        else:
            top = select(top < v, v, top)
    largest = max_lanes(top)
    total = splat(z, 0)
    for c in range(0, cols, w):
        e = keep_first(exp(load_first(z, c, cols - c) - largest), cols - c)
        store_first(z, c, cols - c, e)
        total = total + e
    total = splat(z, sum_lanes(total))
    for c in range(0, cols, w):
        store_first(z, c, cols - c, load_first(z, c, cols - c) / total)
    return first_lane(log(total)) + largest


@kernel(LOSS)
def sparse_softmax_crossentropy(op, run, step, thread):
    """value = log(sum(exp(z))) - z[label];  grad = softmax(z) - onehot(label)."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.z)
    for r in range(first, last):
        z = offset(op.z, r * op.ld)
        label = op.label[r]
        own = z[label]
        op.value[r] = softmax_row(z, op.cols) - own
        if not is_null(op.grad):
            grad = offset(op.grad, r * op.ld)
            scale = row_scale(op, r)
            for c in range(0, op.cols, w):
                store_first(grad, c, op.cols - c, load_first(z, c, op.cols - c) * scale)
            grad[label] = (z[label] - 1) * scale


@kernel(LOSS)
def softmax_crossentropy(op, run, step, thread):
    """value = sum(t * (log(sum(exp(z))) - z));  grad = softmax(z) * sum(t) - t."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.z)
    for r in range(first, last):
        z = offset(op.z, r * op.ld)
        t = offset(op.target, r * op.target_ld)
        weight = splat(z, 0)
        product = splat(z, 0)
        for c in range(0, op.cols, w):
            left = op.cols - c
            tv = load_first(t, c, left)
            weight = weight + tv
            # A target of 0 contributes nothing, also where the logit is infinite.
            product = select(tv == 0, product, muladd(tv, load_first(z, c, left), product))
        total = sum_lanes(weight)
        own = sum_lanes(product)
        op.value[r] = softmax_row(z, op.cols) * total - own
        if not is_null(op.grad):
            grad = offset(op.grad, r * op.ld)
            scale = row_scale(op, r)
            for c in range(0, op.cols, w):
                left = op.cols - c
                store_first(grad, c, left, (load_first(z, c, left) * total - load_first(t, c, left)) * scale)


@kernel(LOSS)
def sigmoid_crossentropy(op, run, step, thread):
    """value = mean(max(z, 0) - z t + log(1 + exp(-|z|)));  grad = (sigmoid(z) - t) / cols."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.z)
    for r in range(first, last):
        z = offset(op.z, r * op.ld)
        t = offset(op.target, r * op.target_ld)
        grad = offset(op.grad, r * op.ld)
        scale = row_scale(op, r) / op.cols
        total = splat(z, 0)
        for c in range(0, op.cols, w):
            left = op.cols - c
            x = load_first(z, c, left)
            tv = load_first(t, c, left)
            e = exp(-absolute(x))  # in (0, 1]: no overflow for any logit
            # sigmoid and log1p share e.
            p = select(x < 0, e, 1) / (e + 1)
            positive = select(x < 0, 0, x)
            total = total + keep_first(positive - x * tv + log1p(e), left)
            store_first(z, c, left, p)
            if not is_null(op.grad):
                store_first(grad, c, left, (p - tv) * scale)
        op.value[r] = sum_lanes(total) / op.cols


@kernel(LOSS)
def mean_squared_error(op, run, step, thread):
    """value = mean((z - t)^2);  grad = 2 (z - t) / cols."""
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.z)
    for r in range(first, last):
        z = offset(op.z, r * op.ld)
        t = offset(op.target, r * op.target_ld)
        grad = offset(op.grad, r * op.ld)
        scale = 2 * row_scale(op, r) / op.cols
        total = splat(z, 0)
        for c in range(0, op.cols, w):
            left = op.cols - c
            d = load_first(z, c, left) - load_first(t, c, left)
            total = muladd(d, d, total)
            if not is_null(op.grad):
                store_first(grad, c, left, d * scale)
        op.value[r] = sum_lanes(total) / op.cols
