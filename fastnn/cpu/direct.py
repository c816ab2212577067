"""What Python calls for small work: builtin functions whose machine code is ours.

A product of 16 x 16 matrices takes 0.1 us; checking three arrays in Python and filling in a record takes 10 us, a call
through ctypes 0.5 us.  That of a builtin function takes 0.01 us, and here it reads the array objects itself
(`fastnn.cpu.objects`), makes the result, fills in the record and runs the kernel.  What is not that simple it declines:
it returns None, with nothing done, and the caller goes the ordinary way.

Python's lock is held meanwhile, which is why there are limits to the work, and why one set of records is enough for all
threads.  Products beyond the limit are done here, too, once they have gone the ordinary way: how they are cut is kept
(`fastnn.cpu.layouts`), and the lock is given up.  So it is for functions that helpers join (`fastnn.cpu.following`).
"""

from numba.types import float64 as FLOAT64

from fastnn.cpu import blocking, layouts
from fastnn.cpu.batch import as_forward, as_gemm, as_run, products
from fastnn.cpu.blocking import MR, PLAIN, SMALL, SMALL_ROW
from fastnn.cpu.crowd import PLACES, TABLE, TAKEN
from fastnn.cpu.following import as_workshop, follows, join, note_end
from fastnn.cpu.jit import device, entry
from fastnn.cpu.objects import (
    ALIGNED,
    CONTIGUOUS,
    SHAPE,
    TYPE,
    WRITEABLE,
    as_python,
    dimensions,
    elements,
    empty,
    extent,
    itemsize,
    kept,
    length,
    number,
    same_shape,
    stride,
    volume,
    word,
)
from fastnn.cpu.simd import (
    call_function,
    call_kernel,
    exchange,
    integer,
    local_words,
    pointer_at,
    reference,
)
from fastnn.records import BATCH, CALL, LAYOUT, MAP, PRODUCT, SLOT, UPDATE

AXES = 8  # of a batch, at most: more are declined
DIMS = AXES + 2
MOST_WORK = 1 << 60  # multiply-adds: what is more has no layout

as_batch, as_call, as_map = reference(BATCH), reference(CALL), reference(MAP)
as_product, as_update = reference(PRODUCT), reference(UPDATE)
as_layout = reference(LAYOUT)
place_of_layout, is_large = device(layouts.place), device(blocking.is_large)


@device
def declined(python):
    return kept(python, python.none)


@device
def apart(a, b, size):
    """Whether two arrays share no memory, as far as their extents tell."""
    low, high = extent(a, size)
    start, end = extent(b, size)
    return end <= low or high <= start


# --- element-wise functions and functions of rows -----------------------------------------------------------------


@device
def congruent(python, array, size, like):
    """Whether an array is contiguous, has elements of `size` bytes and the shape of `like`."""
    return itemsize(python, array, CONTIGUOUS | ALIGNED) == size and same_shape(array, like)


@entry
def elementwise(own, arguments, count):
    """``f(x, out, alpha, g)``: a kernel over contiguous arrays of one shape; `out` and `g` may be None."""
    call = as_call(elements(own), FLOAT64)
    python = as_python(call.python, FLOAT64)
    if count != 4:
        return declined(python)
    x, out, alpha, g = word(arguments), word(arguments + 8), word(arguments + 16), word(arguments + 24)
    size = itemsize(python, x, CONTIGUOUS | ALIGNED)
    record = call.float32 if size == 4 else call.float64
    if size == 0 or record == 0 or dimensions(x) == 0 or word(alpha + TYPE) != python.number:
        return declined(python)
    n = volume(x)
    if n == 0 or n > call.most:
        return declined(python)
    shared, joined = n > call.shared, False
    if shared:
        joined = follows(call, python)
        provided = as_workshop(call.workshop, FLOAT64).provided
        if call.epoch != call.epochs[0] or (joined and provided != call.epochs[0]):
            return declined(python)  # Python looks which threads there are
    paired = g != python.none
    if paired and not congruent(python, g, size, x):
        return declined(python)
    if out != python.none:
        if itemsize(python, out, WRITEABLE) == 0 or not congruent(python, out, size, x):
            return declined(python)
        # Kernels read an element before they write the one at its place.
        if elements(out) != elements(x) and not apart(out, x, size):
            return declined(python)
        if paired and elements(out) != elements(g) and not apart(out, g, size):
            return declined(python)
        result = kept(python, out)
    else:
        result = empty(python, size, dimensions(x), word(x + SHAPE))
        if result == 0:
            return 0
    op = as_map(record, FLOAT64)
    op.x, op.y = pointer_at(elements(x), op.x), pointer_at(elements(result), op.y)
    op.g = pointer_at(elements(g) if paired else 0, op.g)
    op.n, op.alpha = n, number(alpha)
    op.cols = op.ld = length(x, 1)
    op.rows = n // op.cols
    if not joined or not join(call, python, record):
        call_kernel(op, as_run(call.run, op), 0, 0)
    if shared:
        note_end(call, python)
    return result


# --- optimizers ---------------------------------------------------------------------------------------------------


@entry
def update(own, arguments, count):
    """``f(p, s0, s1, g, rate, momentum, decay_1, decay_2, epsilon)``; `s0` and `s1` may be None.

    Returns `p`, which is updated with its state.
    """
    call = as_call(elements(own), FLOAT64)
    python = as_python(call.python, FLOAT64)
    if count != 9:
        return declined(python)
    p, s0, s1, g = word(arguments), word(arguments + 8), word(arguments + 16), word(arguments + 24)
    size = itemsize(python, p, CONTIGUOUS | ALIGNED | WRITEABLE)
    record = call.float32 if size == 4 else call.float64
    if size == 0 or record == 0 or not congruent(python, g, size, p):
        return declined(python)
    for state in (s0, s1):
        if state != python.none and (itemsize(python, state, WRITEABLE) == 0 or not congruent(python, state, size, p)):
            return declined(python)
    for i in range(4, 9):
        if word(word(arguments + 8 * i) + TYPE) != python.number:
            return declined(python)
    n = volume(p)
    if n == 0 or n > call.most:
        return declined(python)
    op, run = as_update(record, FLOAT64), as_run(call.run, FLOAT64)
    op.p, op.g = pointer_at(elements(p), op.p), pointer_at(elements(g), op.g)
    op.s0 = pointer_at(elements(s0) if s0 != python.none else 0, op.p)
    op.s1 = pointer_at(elements(s1) if s1 != python.none else 0, op.p)
    op.n = n
    run.rate[0] = number(word(arguments + 32))
    op.momentum = number(word(arguments + 40))
    op.decay_1 = number(word(arguments + 48))
    op.decay_2 = number(word(arguments + 56))
    op.epsilon = number(word(arguments + 64))
    call_kernel(op, run, 0, 0)
    return kept(python, p)


# --- products -----------------------------------------------------------------------------------------------------


@device
def within(work, factor, most):
    """``work * factor``, or 0 where that is more than `most` (or 0)."""
    return work * factor if 0 < factor <= most and work * factor <= most else 0


@device
def layout_for(product, m, n, k, a_row, a_col, b_row, b_col, c_row, c_col):
    """Where the layout for a product with these element strides is, if it is known, and whether it is."""
    index = place_of_layout(m, n, k, a_row, a_col, b_row, b_col, c_row, c_col)
    layout = as_layout(product.layouts + 3 * SLOT * index, product)
    known = layout.m == m and layout.n == n and layout.k == k and layout.a_row == a_row and layout.a_col == a_col
    known = known and layout.b_row == b_row and layout.b_col == b_col and layout.c_row == c_row
    return layout, known and layout.c_col == c_col


@device
def cramped(shop, layout):
    """Whether there is too little scratch for all helpers that may come."""
    return layout.scratch * shop.team[PLACES] > shop.size


@device
def run_layout(call, python, layout, shop, a, b, c, bias):
    """The product of the matrices at a and b, without the interpreter's lock.  The workshop must have been taken."""
    pair = integer(layout) + SLOT
    gemm, forward = as_gemm(pair, layout), as_forward(pair + SLOT, layout)
    if layout.swapped:
        a, b = b, a
    gemm.a, gemm.b, gemm.scratch = pointer_at(a, gemm.a), pointer_at(b, gemm.b), shop.scratch
    forward.c, forward.bias = pointer_at(c, forward.c), pointer_at(bias, forward.bias)
    state = call_function(python.release, ())
    team = shop.team
    if layout.helpers > 0 and exchange(team, TAKEN, 1) == 0:
        team[TABLE] = pair
        call_function(shop.together, (shop.leader, layout.helpers))
    else:
        call_kernel(gemm, as_run(call.run, layout), 0, 0)
    call_function(python.acquire, (state,))
    shop.busy = 0
    note_end(call, python)


@entry
def product(own, arguments, count):
    """``f(a, b, out, bias)``: ``activation(a @ b + bias)`` with the shapes of `numpy.matmul`.

    `out` and `bias` may be None.  A dense layer takes one matrix b, and a bias.
    """
    call = as_call(elements(own), FLOAT64)
    python = as_python(call.python, FLOAT64)
    if count != 4:
        return declined(python)
    a, b, out, bias = word(arguments), word(arguments + 8), word(arguments + 16), word(arguments + 24)
    size = itemsize(python, a, ALIGNED)
    record = call.float32 if size == 4 else call.float64
    if size == 0 or record == 0 or itemsize(python, b, ALIGNED) != size:
        return declined(python)
    own_product = as_product(record, FLOAT64)
    a_dims, b_dims = dimensions(a), dimensions(b)
    if a_dims == 0 or b_dims == 0 or (own_product.dense and (a_dims < 2 or b_dims != 2)):
        return declined(python)
    m, k = length(a, 2) if a_dims > 1 else 1, length(a, 1)
    n = length(b, 1) if b_dims > 1 else 1
    batch_dims = max(a_dims, b_dims, 2) - 2
    if k != (length(b, 2) if b_dims > 1 else length(b, 1)) or batch_dims > AXES:
        return declined(python)  # the error is raised where the shapes are named
    work = within(within(within(1, m, MOST_WORK), n, MOST_WORK), k, MOST_WORK)

    # The shape of the result.
    shape = local_words(DIMS)
    dims = batch_dims
    for d in range(batch_dims):
        axis = batch_dims + 2 - d
        a_length = length(a, axis) if axis <= a_dims else 1
        b_length = length(b, axis) if axis <= b_dims else 1
        if a_length != b_length and a_length != 1 and b_length != 1:
            return declined(python)
        shape[d] = a_length if b_length == 1 else b_length
        work = within(work, shape[d], MOST_WORK)
    if work == 0:
        return declined(python)
    if a_dims > 1:
        shape[dims] = m
        dims += 1
    if b_dims > 1:
        shape[dims] = n
        dims += 1

    biased = own_product.dense and bias != python.none
    if biased and (itemsize(python, bias, ALIGNED) != size or dimensions(bias) != 1):
        return declined(python)
    if biased and (length(bias, 1) != n or stride(bias, 1) != size):
        return declined(python)
    if out != python.none:
        if itemsize(python, out, ALIGNED | WRITEABLE) != size or dimensions(out) != dims:
            return declined(python)
        for d in range(dims):
            if length(out, dims - d) != shape[d]:
                return declined(python)
        if not apart(out, a, size) or not apart(out, b, size) or (biased and not apart(out, bias, size)):
            return declined(python)
        result = kept(python, out)
    else:
        result = empty(python, size, dims, integer(shape))
        if result == 0:
            return 0

    op = as_batch(own_product.batch, FLOAT64)
    gemm, forward = as_gemm(op.pairs, op), as_forward(op.pairs + SLOT, op)
    op.a, op.b, op.c = elements(a), elements(b), elements(result)
    a_row, a_col = stride(a, 2) if a_dims > 1 else 0, stride(a, 1)
    b_row, b_col = stride(b, 2) if b_dims > 1 else stride(b, 1), stride(b, 1) if b_dims > 1 else 0
    c_col = stride(result, 1) if b_dims > 1 else 0
    c_row = stride(result, 2 if b_dims > 1 else 1) if a_dims > 1 else 0

    # Axes of the batch, innermost first.  The rows of all matrices that meet the same b are one matrix if their strides
    # allow it; axes whose strides are those of one longer axis become that.
    op.dims, op.count = 0, 1
    for d in range(batch_dims):
        axis = d + 3
        span = shape[batch_dims - 1 - d]
        if span == 1:
            continue
        a_stride = stride(a, axis) if axis <= a_dims and length(a, axis) > 1 else 0
        b_stride = stride(b, axis) if axis <= b_dims and length(b, axis) > 1 else 0
        c_stride = stride(result, axis - (a_dims < 2) - (b_dims < 2))
        if op.dims == 0 and b_stride == 0 and (m == 1 or (a_stride == m * a_row and c_stride == m * c_row)):
            if m == 1:
                a_row, c_row = a_stride, c_stride
            m *= span
            continue
        at = 4 * (op.dims - 1)
        if op.dims > 0:
            inner = op.axes[at]
            joined = a_stride == inner * op.axes[at + 1] and b_stride == inner * op.axes[at + 2]
            if joined and c_stride == inner * op.axes[at + 3]:
                op.axes[at] = inner * span
                op.count *= span
                continue
        at += 4
        op.axes[at], op.axes[at + 1], op.axes[at + 2], op.axes[at + 3] = span, a_stride, b_stride, c_stride
        op.dims += 1
        op.count *= span

    if work > call.most or (op.count == 1 and is_large(m, n, k, size)):
        shop = as_workshop(call.workshop, FLOAT64)
        layout, known = layout_for(
            own_product, m, n, k,
            a_row // size, a_col // size, b_row // size, b_col // size, c_row // size, c_col // size,
        )  # fmt: skip
        addressed = elements(bias) if biased else 0
        known = known and layout.epoch == shop.epoch[0] and not (biased and layout.swapped)
        if not known or op.count > 1 or shop.busy or (layout.helpers > 0 and cramped(shop, layout)):
            call_function(python.drop, (result,))
            return declined(python)
        shop.busy = 1
        run_layout(call, python, layout, shop, op.a, op.b, op.c, addressed)
        return call_function(python.returned, (result,)) if dims == 0 and out == python.none else result

    if n == 1 and not own_product.dense and (a_row == size or (a_col == size and b_row == size)):
        # A matrix times a column is a row times the transposed matrix, for which there are kernels.
        op.a, op.b = op.b, op.a
        for at in range(0, 4 * op.dims, 4):
            op.axes[at + 1], op.axes[at + 2] = op.axes[at + 2], op.axes[at + 1]
        a_row, a_col, b_row, b_col = b_col, b_row, a_col, a_row
        c_row, c_col = c_col, c_row
        m, n = 1, m

    gemm.a_row, gemm.a_col, gemm.b_row, gemm.b_col = a_row // size, a_col // size, b_row // size, b_col // size
    forward.c_row, forward.c_col = c_row // size, c_col // size
    forward.bias = pointer_at(elements(bias) if biased else 0, forward.bias)
    gemm.m, gemm.n, gemm.k = m, n, k
    deep = (k + own_product.kc - 1) // own_product.kc
    gemm.kc = (k + deep - 1) // deep
    tiles = (m + MR - 1) // MR
    gemm.rows = gemm.block = (tiles if deep == 1 else min(tiles, 8)) * MR
    gemm.partial = MR if deep == 1 else gemm.rows + MR
    gemm.plain = not own_product.dense and forward.c_col == 1
    gemm.pack = gemm.b_col != 1 or m > 4 * MR
    gemm.kernel = own_product.tiled
    if m == 1 and gemm.b_col == 1 and k * n > SMALL_ROW:
        gemm.kernel = own_product.rows
    elif m * n * k <= (SMALL if own_product.dense else PLAIN) and (
        deep == 1 if own_product.dense else gemm.b_col == 1 and gemm.plain
    ):
        gemm.kernel = own_product.small
    elif m == 1 and gemm.b_row == 1 and gemm.a_col == 1:
        gemm.kernel = own_product.columns
    products(op, 0, op.count, 0)
    return call_function(python.returned, (result,)) if dims == 0 and out == python.none else result
