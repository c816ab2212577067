"""Optimizer updates: as the epilogue of a weight gradient, and over flat arrays.

All forms of an optimizer call the same vector function, which reads and writes parameters and state once.  As an
epilogue the gradient is the tile of a product that is still in the first-level cache, or a row of one that is still in
registers: it never reaches memory.
"""

from fastnn.cpu.blocking import WIDE
from fastnn.cpu.jit import device, epilogue, kernel, row_epilogue
from fastnn.cpu.ragged import load_before, store_before
from fastnn.cpu.simd import (
    half_of,
    is_null,
    lanes,
    load_block,
    muladd,
    offset,
    prefetch,
    prefetch_write,
    splat,
    store,
    store_block,
)
from fastnn.cpu.spans import AHEAD, BLOCK_VECTORS, load_vectors, span, unaligned
from fastnn.cpu.vmath import divide_by_root, over_root
from fastnn.records import UPDATE

# An optimizer is two functions: `constants(op, rates, step, like)` gives vectors that stay in registers (read from the
# record in the loop they would be converted and splatted again for every vector, since stores to p might change the
# record), and `update(c, p, s0, s1, g) -> (p, s0, s1)` does the step.  Formulas are Keras'.


@device
def sgd_constants(op, rates, step, like):
    return (splat(like, rates[step]),)


@device
def sgd_step(c, p, s0, s1, g):
    """p -= rate g"""
    (rate,) = c
    return p - rate * g, s0, s1


@device
def momentum_constants(op, rates, step, like):
    return splat(like, rates[step]), splat(like, op.momentum)


@device
def momentum_step(c, p, s0, s1, g):
    """v = momentum v - rate g;  p += v"""
    rate, momentum = c
    v = momentum * s0 - rate * g
    return p + v, v, s1


@device
def nesterov_step(c, p, s0, s1, g):
    """v = momentum v - rate g;  p += momentum v - rate g"""
    rate, momentum = c
    v = momentum * s0 - rate * g
    return p + (momentum * v - rate * g), v, s1


@device
def adam_constants(op, rates, step, like):
    return splat(like, rates[step]), splat(like, op.decay_1), splat(like, op.decay_2), splat(like, op.epsilon)


@device
def adam_step(c, p, s0, s1, g):
    """m += (1 - beta_1)(g - m);  v += (1 - beta_2)(g^2 - v);  p -= rate m / (sqrt(v) + epsilon)

    `rate` holds the bias corrections: learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t).
    """
    rate, decay_1, decay_2, epsilon = c
    m = muladd(g - s0, decay_1, s0)
    v = muladd(muladd(g, g, -s1), decay_2, s1)
    return muladd(-rate, divide_by_root(m, v, epsilon), p), m, v


@device
def adamw_constants(op, rates, step, like):
    rate, keep = splat(like, rates[2 * step]), splat(like, rates[2 * step + 1])
    return rate, splat(like, op.decay_1), splat(like, op.decay_2), splat(like, op.epsilon), keep


@device
def adamw_step(c, p, s0, s1, g):
    """p *= keep, which is 1 - learning_rate weight_decay;  then as Adam"""
    rate, decay_1, decay_2, epsilon, keep = c
    return adam_step((rate, decay_1, decay_2, epsilon), p * keep, s0, s1, g)


@device
def rmsprop_constants(op, rates, step, like):
    return splat(like, rates[step]), splat(like, op.decay_2), splat(like, op.epsilon)


@device
def rmsprop_step(c, p, s0, s1, g):
    """v += (1 - rho)(g^2 - v);  p -= rate g / sqrt(v + epsilon)"""
    rate, decay, epsilon = c
    v = muladd(muladd(g, g, -s0), decay, s0)
    return muladd(-rate, over_root(g, v + epsilon), p), v, s1


@device
def rmsprop_momentum_constants(op, rates, step, like):
    return splat(like, rates[step]), splat(like, op.decay_2), splat(like, op.epsilon), splat(like, op.momentum)


@device
def rmsprop_momentum_step(c, p, s0, s1, g):
    """v += (1 - rho)(g^2 - v);  m = momentum m + rate g / sqrt(v + epsilon);  p -= m"""
    rate, decay, epsilon, momentum = c
    v = muladd(muladd(g, g, -s0), decay, s0)
    m = momentum * s1 + rate * over_root(g, v + epsilon)
    return p - m, v, m


def make_block(constants, update, states, height, vectors):
    """The update of some rows, `vectors` vectors wide and `height` of them at once; returns the first row left."""

    @device
    def apply(op, run, step, tile, tile_row, p, s0, s1, r, rows):
        row, below = op.p_row, op.below  # in locals, since stores to p might change the record
        if r + height > rows:
            return r
        c = constants(op, run.rate, step, load_block(tile, tile_row, height, vectors))
        while r + height <= rows:
            k = r * row
            g = load_block(offset(tile, r * tile_row), tile_row, height, vectors)
            m = load_block(offset(s0, k), row, height, vectors) if states > 0 else g
            v = load_block(offset(s1, k), row, height, vectors) if states > 1 else g
            new, m, v = update(c, load_block(offset(p, k), row, height, vectors), m, v, g)
            store_block(offset(p, k), row, height, new)
            if states > 0:
                store_block(offset(s0, k), row, height, m)
            if states > 1:
                store_block(offset(s1, k), row, height, v)
            if below:
                for ahead in range(r + rows, r + rows + height):
                    for q in range(0, vectors * lanes(tile), lanes(tile)):
                        at = ahead * row + q
                        prefetch_write(p, at)
                        if states > 0:
                            prefetch_write(s0, at)
                        if states > 1:
                            prefetch_write(s1, at)
            r += height
        return r

    return apply


def make_epilogue(constants, update, states):
    """The update of p's tile at (i, j) by the gradient in `tile`.

    Where the record says `below`, it prefetches the tile below, which the product reaches next: rows of p lie too far
    apart for the CPU to guess (784 x 256, batch 32, one thread: 157 us instead of 208).
    """
    wide, wide_end = (make_block(constants, update, states, height, 2) for height in (2, 1))
    narrow, narrow_end = (make_block(constants, update, states, height, 1) for height in (4, 1))

    @epilogue(UPDATE)
    def apply(op, run, step, tile, tile_row, i, j, rows, cols):
        # The plan pads rows of p to whole vectors.
        w = lanes(tile)
        for q in range(0, cols, 2 * w):
            at = i * op.p_row + j + q
            g, p, s0, s1 = offset(tile, q), offset(op.p, at), offset(op.s0, at), offset(op.s1, at)
            if q + w < cols:
                r = wide(op, run, step, g, tile_row, p, s0, s1, 0, rows)
                wide_end(op, run, step, g, tile_row, p, s0, s1, r, rows)
            else:
                r = narrow(op, run, step, g, tile_row, p, s0, s1, 0, rows)
                narrow_end(op, run, step, g, tile_row, p, s0, s1, r, rows)

    return apply


def make_row(constants, update, states):
    """The update of a row of p, from (i, j) on, by the gradient in `tile`.

    Two vectors at a time: one by one, or four, take 2 to 4% longer (784 x 256, batch 32).
    """

    @device
    def pair(op, c, at, g):
        p, s0, s1 = offset(op.p, at), offset(op.s0, at), offset(op.s1, at)
        m = load_block(s0, 0, 1, 2) if states > 0 else g
        v = load_block(s1, 0, 1, 2) if states > 1 else g
        new, m, v = update(c, load_block(p, 0, 1, 2), m, v, g)
        store_block(p, 0, 1, new)
        if states > 0:
            store_block(s0, 0, 1, m)
        if states > 1:
            store_block(s1, 0, 1, v)

    def make_several(vectors):
        if vectors == 2:
            return pair
        half = make_several(vectors // 2)

        @device
        def several(op, c, at, g):
            half(op, c, at, half_of(g, 0))
            half(op, c, at + vectors // 2 * lanes(op.p), half_of(g, 1))

        return several

    half = make_several(WIDE // 2)

    @row_epilogue(UPDATE)
    def apply(op, run, step, i, j, wide, tile):
        at = i * op.p_row + j
        c = constants(op, run.rate, step, load_block(op.p, 0, 1, 2))
        half(op, c, at, half_of(tile, 0))
        if wide:
            half(op, c, at + WIDE // 2 * lanes(op.p), half_of(tile, 1))

    return apply


def make_flat(constants, update, states):
    """The update of ``p[:n]`` by ``g[:n]``."""

    @device
    def ragged(i, end, c, p, s0, s1, g, more):
        gradient = load_before(g, i, end)
        if not is_null(more):
            gradient = gradient + load_before(more, i, end)
        m = load_before(s0, i, end) if states > 0 else gradient
        v = load_before(s1, i, end) if states > 1 else gradient
        new, m, v = update(c, load_before(p, i, end), m, v, gradient)
        store_before(p, i, end, new)
        if states > 0:
            store_before(s0, i, end, m)
        if states > 1:
            store_before(s1, i, end, v)

    @device
    def blocks(i, end, c, p, s0, s1, g, more):
        """Whole blocks of vectors from i on; returns where they end."""
        w = lanes(p)
        while i + BLOCK_VECTORS * w <= end:
            for ahead in range(i + AHEAD * w, i + (AHEAD + BLOCK_VECTORS) * w, w):
                prefetch(g, ahead)
                if not is_null(more):
                    prefetch(more, ahead)
                prefetch_write(p, ahead)
                if states > 0:
                    prefetch_write(s0, ahead)
                if states > 1:
                    prefetch_write(s1, ahead)
            gradient = load_vectors(g, i)
            if not is_null(more):
                gradient = gradient + load_vectors(more, i)
            m = load_vectors(s0, i) if states > 0 else gradient
            v = load_vectors(s1, i) if states > 1 else gradient
            new, m, v = update(c, load_vectors(p, i), m, v, gradient)
            store(p, i, new)
            if states > 0:
                store(s0, i, m)
            if states > 1:
                store(s1, i, v)
            i += BLOCK_VECTORS * w
        return i

    @kernel(UPDATE)
    def apply(op, run, step, thread):
        p, s0, s1, g, more = op.p, op.s0, op.s1, op.g, op.more
        i, end = span(p, op.n, thread, run.threads)
        c = constants(op, run.rate, step, p)
        head = unaligned(p, i, end)
        if head > 0:
            ragged(i, i + head, c, p, s0, s1, g, more)
        i += head
        if i + BLOCK_VECTORS * lanes(p) <= end:
            i = blocks(i, end, constants(op, run.rate, step, load_vectors(p, 0)), p, s0, s1, g, more)
        for k in range(i, end, lanes(p)):
            ragged(k, end, c, p, s0, s1, g, more)

    return apply


def make(constants, update, states):
    """All forms of an optimizer: the epilogue of a tile and of a row, and the flat update."""
    return tuple(form(constants, update, states) for form in (make_epilogue, make_row, make_flat))


sgd, sgd_row, sgd_flat = make(sgd_constants, sgd_step, 0)
momentum, momentum_row, momentum_flat = make(momentum_constants, momentum_step, 1)
nesterov, nesterov_row, nesterov_flat = make(momentum_constants, nesterov_step, 1)
adam, adam_row, adam_flat = make(adam_constants, adam_step, 2)
adamw, adamw_row, adamw_flat = make(adamw_constants, adamw_step, 2)
rmsprop, rmsprop_row, rmsprop_flat = make(rmsprop_constants, rmsprop_step, 1)
rmsprop_momentum, rmsprop_momentum_row, rmsprop_momentum_flat = make(
    rmsprop_momentum_constants, rmsprop_momentum_step, 2
)
