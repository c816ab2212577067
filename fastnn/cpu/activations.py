"""Activations: each is two functions of a vector, and from these come all its kernels.

``f(x, alpha)``
    the activation;
``slope(y, alpha)``
    its derivative, expressed by its output y = f(x), so that x need not be kept.

``alpha`` is the one parameter an activation may have.  To add an activation, write the two functions and the six lines
that name its kernels:

===================  ==========================================================================================
``name_forward``     epilogue of the product X W: adds the bias and applies f while the tile is in the first-level
                     cache; neither X W nor X W + b is ever in memory
``name_backward``    epilogue of the product D W': multiplies by the slope of the layer below; D W' is never in memory
``name_map``         y = f(x)
``name_slope``       y = f'(x), where x holds the output of f
``name_gradient``    y = g f'(x), likewise, for a matrix
``name_outer``       y = (g w') f'(x), likewise, for a column g and a row w: what `name_backward` is to a single unit
===================  ==========================================================================================

Softmax is not element-wise: it has kernels over rows, at the end.
"""

from fastnn.cpu import logarithms, normal, vmath
from fastnn.cpu.blocking import NV
from fastnn.cpu.jit import device, epilogue, kernel
from fastnn.cpu.ragged import load_before, store_before
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    is_null,
    lanes,
    load,
    load_block,
    load_first,
    offset,
    prefetch,
    prefetch_write,
    select,
    settle,
    splat,
    stack,
    store,
    store_block,
    store_first,
    stream,
)
from fastnn.cpu.softmax import SHORT, row_dot, row_max, softmax_columns, softmax_row
from fastnn.cpu.spans import AHEAD, BLOCK_VECTORS, load_vectors, span, unaligned
from fastnn.records import BACKWARD, FORWARD, MAP

# --- from functions of a vector to kernels ------------------------------------------------------------------------


@device
def add_more(op, tile, tile_row, i, j, rows, cols):
    """Add `more` to a tile."""
    row = op.c_row
    more = offset(op.more, i * row + j)
    for r in range(rows):
        for q in range(0, cols, lanes(tile)):
            at = r * tile_row + q
            store(tile, at, load(tile, at) + load_before(more, r * row + q, r * row + cols))


def forward(f):
    """``c = f(tile + more + bias)``."""

    @epilogue(FORWARD)
    def apply(op, run, step, tile, tile_row, i, j, rows, cols):
        # tile: rows x cols, rows contiguous and padded to whole vectors; c: element strides c_row and c_col
        w = lanes(tile)
        if not is_null(op.more):
            add_more(op, tile, tile_row, i, j, rows, cols)
        # In locals, since stores to c might change the record.
        row, col, alpha, one_bias = op.c_row, op.c_col, op.alpha, op.one_bias
        bias, c = op.bias, offset(op.c, i * op.c_row + j * op.c_col)
        done = 0  # rows
        if cols == NV * w and col == 1 and not one_bias:
            biases = splat(load_block(tile, 0, 2, NV), 0.0)
            if not is_null(bias):
                biases = load_block(offset(bias, j), 0, 2, NV)
            while done + 2 <= rows:
                x = load_block(offset(tile, done * tile_row), tile_row, 2, NV)
                store_block(offset(c, done * row), row, 2, f(x + biases, alpha))
                done += 2
            if done == rows:
                return
        for q in range(0, cols, w):
            term = splat(tile, 0.0)
            if not is_null(bias):
                term = splat(tile, bias[0]) if one_bias else load_before(bias, j + q, j + cols)
            for r in range(done, rows):
                at = r * tile_row + q
                y = f(load(tile, at) + term, alpha)
                if col == 1:
                    store_before(offset(c, r * row), q, cols, y)
                else:
                    store(tile, at, y)  # the tile is ours: no one reads it after its epilogue
                    for p in range(min(w, cols - q)):
                        c[r * row + (q + p) * col] = tile[at + p]

    return apply


def backward(slope):
    """``c = tile * slope(y)``."""

    @epilogue(BACKWARD)
    def apply(op, run, step, tile, tile_row, i, j, rows, cols):
        # tile as above; c and y: leading dimension c_row, rows contiguous
        w = lanes(tile)
        row, alpha, start = op.c_row, op.alpha, i * op.c_row + j
        c, outputs = offset(op.c, start), offset(op.y, start)
        if cols == NV * w:
            for r in range(rows):
                for q in range(0, NV * w, w):
                    y = load(outputs, r * row + q)
                    store(c, r * row + q, load(tile, r * tile_row + q) * slope(y, alpha))
            return
        if row % w == 0:  # padded rows, and a tile of zeros there
            for r in range(rows):
                for q in range(0, cols, w):
                    y = load(outputs, r * row + q)
                    store(c, r * row + q, load(tile, r * tile_row + q) * slope(y, alpha))
            return
        for r in range(rows):  # a single column, whose rows follow each other
            at = r * row
            for q in range(0, cols, w):
                y = load_before(outputs, at + q, at + cols)
                store_before(c, at + q, at + cols, load(tile, r * tile_row + q) * slope(y, alpha))

    return apply


@device
def leave(y, i):
    """What is streamed is not fetched first."""


def sweep(f, put, fetch):
    """``y = f(x)`` for whole blocks of vectors; `put` stores one, `fetch` prepares for it.  Returns where it ends."""

    @device
    def apply(x, y, i, end, alpha):
        w = lanes(x)
        while i + BLOCK_VECTORS * w <= end:
            for j in range(i + AHEAD * w, i + (AHEAD + BLOCK_VECTORS) * w, w):
                prefetch(x, j)
                fetch(y, j)
            put(y, i, f(load_vectors(x, i), alpha))
            i += BLOCK_VECTORS * w
        return i

    return apply


def elementwise(f):
    """``y = f(x)`` for n contiguous elements; y may be x, unless it is `far`."""
    near, far = sweep(f, store, prefetch_write), sweep(f, stream, leave)

    @kernel(MAP)
    def apply(op, run, step, thread):
        x, y, alpha = op.x, op.y, op.alpha
        i, end = span(y, op.n, thread, run.threads)
        head = unaligned(y, i, end)
        if head > 0:
            store_first(y, i, head, f(load_first(x, i, head), alpha))
            i += head
        if op.far:
            i = far(x, y, i, end, alpha)
            settle()
        else:
            i = near(x, y, i, end, alpha)
        while i < end:
            store_before(y, i, end, f(load_before(x, i, end), alpha))
            i += lanes(x)

    return apply


def gradient(slope):
    """``y = g * slope(x)`` for rows x cols elements with leading dimension ld; y may be g or x."""

    @kernel(MAP)
    def apply(op, run, step, thread):
        first, last = share(op.rows, thread, run.threads)
        for r in range(first, last):
            start = r * op.ld
            end = start + op.cols
            for i in range(start, end, lanes(op.x)):
                g = load_before(op.g, i, end)
                store_before(op.y, i, end, g * slope(load_before(op.x, i, end), op.alpha))

    return apply


def outer(slope):
    """``y = g w' * slope(x)`` for rows x cols elements, in rows of whole vectors; g has `rows` elements, w `cols`."""

    @kernel(MAP)
    def apply(op, run, step, thread):
        first, last = share(op.rows, thread, run.threads)
        w = lanes(op.x)
        x, y, g, row, cols, ld, alpha = op.x, op.y, op.g, op.row, op.cols, op.ld, op.alpha
        c = 0
        while c + NV * w <= cols:
            factor = load_block(offset(row, c), 0, 1, NV)
            for r in range(first, last):
                at = r * ld + c
                store_block(offset(y, at), 0, 1, factor * g[r] * slope(load_block(offset(x, at), 0, 1, NV), alpha))
            c += NV * w
        while c < cols:
            factor = load_before(row, c, cols)
            for r in range(first, last):
                at = r * ld + c
                store(y, at, factor * g[r] * slope(load(x, at), alpha))
            c += w

    return apply


# --- linear -------------------------------------------------------------------------------------------------------


@device
def linear(x, alpha):
    return x


@device
def linear_prime(y, alpha):
    return splat(y, 1.0)


linear_forward = forward(linear)
linear_backward = backward(linear_prime)
linear_map = elementwise(linear)
linear_slope = elementwise(linear_prime)
linear_gradient = gradient(linear_prime)
linear_outer = outer(linear_prime)

# --- relu: a comparison with NaN is false, so each `select` names what NaN must not choose -------------------------


@device
def relu(x, alpha):
    return select(x < 0.0, 0.0, x)


@device
def relu_prime(y, alpha):
    return select(y > 0.0, 1.0, select(y <= 0.0, 0.0, y))


relu_forward = forward(relu)
relu_backward = backward(relu_prime)
relu_map = elementwise(relu)
relu_slope = elementwise(relu_prime)
relu_gradient = gradient(relu_prime)
relu_outer = outer(relu_prime)

# --- leaky relu: alpha is the slope for negative x and must not be negative, or the output would not tell them apart -


@device
def leaky_relu(x, alpha):
    return select(x < 0.0, x * alpha, x)


@device
def leaky_relu_prime(y, alpha):
    return select(y > 0.0, 1.0, select(y <= 0.0, splat(y, alpha), y))


leaky_relu_forward = forward(leaky_relu)
leaky_relu_backward = backward(leaky_relu_prime)
leaky_relu_map = elementwise(leaky_relu)
leaky_relu_slope = elementwise(leaky_relu_prime)
leaky_relu_gradient = gradient(leaky_relu_prime)
leaky_relu_outer = outer(leaky_relu_prime)

# --- sigmoid ------------------------------------------------------------------------------------------------------


@device
def sigmoid(x, alpha):
    return vmath.sigmoid(x)


@device
def sigmoid_prime(y, alpha):
    return y * (1.0 - y)


sigmoid_forward = forward(sigmoid)
sigmoid_backward = backward(sigmoid_prime)
sigmoid_map = elementwise(sigmoid)
sigmoid_slope = elementwise(sigmoid_prime)
sigmoid_gradient = gradient(sigmoid_prime)
sigmoid_outer = outer(sigmoid_prime)

# --- tanh: (1 - y) (1 + y) keeps the digits that 1 - y y loses near |y| = 1 where there is no fused multiply-add ------


@device
def tanh(x, alpha):
    return vmath.tanh(x)


@device
def tanh_prime(y, alpha):
    return (1.0 - y) * (1.0 + y)


tanh_forward = forward(tanh)
tanh_backward = backward(tanh_prime)
tanh_map = elementwise(tanh)
tanh_slope = elementwise(tanh_prime)
tanh_gradient = gradient(tanh_prime)
tanh_outer = outer(tanh_prime)

# --- functions that are no activations of a layer, element by element ------------------------------------------------


@device
def exp(x, alpha):
    return vmath.exp(x)


@device
def expm1(x, alpha):
    return vmath.expm1(x)


@device
def log(x, alpha):
    return logarithms.log(x)


@device
def log1p(x, alpha):
    return logarithms.log1p(x)


@device
def erf(x, alpha):
    return normal.erf(x)


@device
def softplus(x, alpha):
    return logarithms.softplus(x)


@device
def softplus_prime(y, alpha):
    return vmath.one_minus_exp(y)


@device
def gelu(x, alpha):
    return normal.gelu(x)


@device
def gelu_prime(x, alpha):
    """Of the input: two inputs may have the same output."""
    return normal.gelu_derivative(x)


exp_map = elementwise(exp)
expm1_map = elementwise(expm1)
log_map = elementwise(log)
log1p_map = elementwise(log1p)
erf_map = elementwise(erf)
softplus_map = elementwise(softplus)
softplus_slope = elementwise(softplus_prime)
gelu_map = elementwise(gelu)
gelu_slope = elementwise(gelu_prime)

# --- softmax ---------------------------------------------------------------------------------------------------------


@kernel(MAP)
def softmax_rows(op, run, step, thread):
    # x, y: rows x cols, leading dimension ld, rows contiguous; y may be x
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.x)
    if op.cols <= SHORT * w:
        memory = stack(op.x, SHORT)
        block = stack(op.x, 1)
        for r in range(first, last, w):
            at = r * op.ld
            softmax_columns(offset(op.x, at), offset(op.y, at), op.ld, min(w, last - r), op.cols, memory, block)
    else:
        for r in range(first, last):
            x = offset(op.x, r * op.ld)
            softmax_row(x, offset(op.y, r * op.ld), op.cols, row_max(x, op.cols))


@kernel(MAP)
def softmax_gradient(op, run, step, thread):
    """``y = s * (g - sum(g * s))``, where x holds the softmax s: the vector-Jacobian product."""
    # x, y, g: rows x cols, leading dimension ld, rows contiguous; y may be g or x
    first, last = share(op.rows, thread, run.threads)
    w = lanes(op.x)
    for r in range(first, last):
        s, g, y = offset(op.x, r * op.ld), offset(op.g, r * op.ld), offset(op.y, r * op.ld)
        mean = row_dot(s, g, op.cols)
        done = 0
        while done + BLOCK_VECTORS * w <= op.cols:
            for ahead in range(done + AHEAD * w, done + (AHEAD + BLOCK_VECTORS) * w, w):
                prefetch_write(y, ahead)
            difference = load_vectors(g, done) - mean
            store(y, done, load_vectors(s, done) * difference)
            done += BLOCK_VECTORS * w
        for i in range(done, op.cols, w):
            store_before(y, i, op.cols, load_before(s, i, op.cols) * (load_before(g, i, op.cols) - mean))
