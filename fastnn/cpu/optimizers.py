"""Optimizer updates: as the epilogue of a weight gradient, and over flat arrays.

Both forms of an optimizer call the same vector function, which reads and writes parameters and state once.  As an
epilogue the gradient is the tile of a product that is still in the first-level cache: it never reaches memory.
"""

from fastnn.cpu.jit import device, epilogue, kernel
from fastnn.cpu.ragged import load_before, store_before
from fastnn.cpu.share import share
from fastnn.cpu.simd import lanes, load, muladd, offset, sqrt, store
from fastnn.records import UPDATE

# Each function below is ``f(op, rate, p, s0, s1, g) -> (p, s0, s1)`` over vectors.  Formulas are Keras'.


@device
def sgd_vector(op, rate, p, s0, s1, g):
    """p -= rate g"""
    return p - rate * g, s0, s1


@device
def momentum_vector(op, rate, p, s0, s1, g):
    """v = momentum v - rate g;  p += v"""
    v = op.momentum * s0 - rate * g
    return p + v, v, s1


@device
def nesterov_vector(op, rate, p, s0, s1, g):
    """v = momentum v - rate g;  p += momentum v - rate g"""
    v = op.momentum * s0 - rate * g
    return p + (op.momentum * v - rate * g), v, s1


@device
def adam_vector(op, rate, p, s0, s1, g):
    """m += (1 - beta_1)(g - m);  v += (1 - beta_2)(g^2 - v);  p -= rate m / (sqrt(v) + epsilon)

    `rate` holds the bias corrections: learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t).
    """
    m = muladd(g - s0, op.decay_1, s0)
    v = muladd(g * g - s1, op.decay_2, s1)
    return p - rate * m / (sqrt(v) + op.epsilon), m, v


def make_epilogue(update, states):
    """The update of p's tile at (i, j) by the gradient in `tile`."""

    @epilogue(UPDATE)
    def apply(op, run, step, tile, tile_row, i, j, rows, cols):
        w = lanes(tile)
        rate = run.rate[step]
        for r in range(rows):
            at = (i + r) * op.p_row + j
            p, s0, s1 = offset(op.p, at), offset(op.s0, at), offset(op.s1, at)
            for c in range(0, cols, w):  # the plan pads rows of p to whole vectors
                g = load(tile, r * tile_row + c)
                m = load(s0, c) if states > 0 else g
                v = load(s1, c) if states > 1 else g
                pn, m, v = update(op, rate, load(p, c), m, v, g)
                store(p, c, pn)
                if states > 0:
                    store(s0, c, m)
                if states > 1:
                    store(s1, c, v)

    return apply


def make_flat(update, states):
    """The update of ``p[:n]`` by ``g[:n]``."""

    @kernel(UPDATE)
    def apply(op, run, step, thread):
        w = lanes(op.p)
        rate = run.rate[step]
        first, last = share((op.n + w - 1) // w, thread, run.threads)
        for i in range(first * w, min(last * w, op.n), w):
            g = load_before(op.g, i, op.n)
            m = load_before(op.s0, i, op.n) if states > 0 else g
            v = load_before(op.s1, i, op.n) if states > 1 else g
            p, m, v = update(op, rate, load_before(op.p, i, op.n), m, v, g)
            store_before(op.p, i, op.n, p)
            if states > 0:
                store_before(op.s0, i, op.n, m)
            if states > 1:
                store_before(op.s1, i, op.n, v)

    return apply


sgd, sgd_flat = make_epilogue(sgd_vector, 0), make_flat(sgd_vector, 0)
momentum, momentum_flat = make_epilogue(momentum_vector, 1), make_flat(momentum_vector, 1)
nesterov, nesterov_flat = make_epilogue(nesterov_vector, 1), make_flat(nesterov_vector, 1)
adam, adam_flat = make_epilogue(adam_vector, 2), make_flat(adam_vector, 2)
