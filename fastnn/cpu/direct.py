"""Small products of NumPy arrays, without the overhead that matters for them.

A product of 32 x 64 by 64 x 64 takes 2 us; reading the shapes and strides of three arrays in Python takes longer.  So
this entry reads NumPy's array objects itself, in compiled code.  Their layout is that of NumPy's C interface
(``PyArrayObject_fields``), unchanged since 2006; `fastnn.cpu.memory` checks it before it is relied upon.
"""

from numba.types import int32 as INT32
from numba.types import int64 as INT64

from fastnn.cpu.blocking import MR
from fastnn.cpu.jit import device, entry
from fastnn.cpu.memory import DATA
from fastnn.cpu.simd import call_kernel, pointer_at, reference
from fastnn.records import DIRECT, FORWARD, GEMM, RUN

# Byte offsets of the fields of an array object.
NDIM, SHAPE, STRIDES, DESCR, FLAGS = DATA + 8, DATA + 16, DATA + 24, DATA + 40, DATA + 48
ALIGNED, WRITEABLE = 0x0100, 0x0400
DONE, DECLINED = 0, 1

as_gemm, as_forward, as_run = reference(GEMM), reference(FORWARD), reference(RUN)


@device
def word(address):
    """The 64-bit integer at an address."""
    return pointer_at(address, INT64)[0]


@device
def half_word(address):
    """The 32-bit integer at an address."""
    return pointer_at(address, INT32)[0]


@device
def elements(array, op):
    """Where the elements of an array object start."""
    return pointer_at(word(array + DATA), as_gemm(op.gemm, op).a)


@device
def fits(array, descr, dims, flags):
    """Whether an array object has this dtype and dimension and a kernel can use as it is."""
    return (
        word(array + DESCR) == descr
        and half_word(array + NDIM) == dims
        and (half_word(array + FLAGS) & (ALIGNED | flags)) == (ALIGNED | flags)
    )


@device
def extent(array, size):
    """The lowest address of an array and the one behind its highest."""
    low = word(array + DATA)
    high = low + size
    for i in range(half_word(array + NDIM)):
        reach = (word(word(array + SHAPE) + 8 * i) - 1) * word(word(array + STRIDES) + 8 * i)
        if reach < 0:
            low += reach
        else:
            high += reach
    return low, high


@entry(DIRECT)
def product(op, a, b, out, bias):
    """``out = f(a b + bias)`` by the records that `op` names; DECLINED, with nothing done, if it is not that simple."""
    if not (fits(a, op.descr, 2, 0) and fits(b, op.descr, 2, 0) and fits(out, op.descr, 2, WRITEABLE)):
        return DECLINED
    if bias != 0 and not fits(bias, op.descr, 1, 0):
        return DECLINED
    a_shape, b_shape, c_shape = word(a + SHAPE), word(b + SHAPE), word(out + SHAPE)
    m, k, n = word(a_shape), word(a_shape + 8), word(b_shape + 8)
    if k != word(b_shape) or m != word(c_shape) or n != word(c_shape + 8):
        return DECLINED  # where the error is raised
    if bias != 0 and (word(word(bias + SHAPE)) != n or word(word(bias + STRIDES)) != op.size):
        return DECLINED
    if m * n * k == 0 or m * n * k > op.most:
        return DECLINED
    low, high = extent(out, op.size)
    for operand in (a, b, bias):
        if operand != 0:
            start, end = extent(operand, op.size)
            if start < high and low < end:
                return DECLINED
    gemm, forward = as_gemm(op.gemm, op), as_forward(op.forward, op)
    a_strides, b_strides, c_strides = word(a + STRIDES), word(b + STRIDES), word(out + STRIDES)
    gemm.a, gemm.a_row, gemm.a_col = elements(a, op), word(a_strides) // op.size, word(a_strides + 8) // op.size
    gemm.b, gemm.b_row, gemm.b_col = elements(b, op), word(b_strides) // op.size, word(b_strides + 8) // op.size
    gemm.m, gemm.n, gemm.k = m, n, k
    deep = (k + op.kc - 1) // op.kc
    gemm.kc = (k + deep - 1) // deep
    tiles = (m + MR - 1) // MR
    gemm.rows = gemm.block = (tiles if deep == 1 else min(tiles, 8)) * MR
    gemm.partial = MR if deep == 1 else gemm.rows
    gemm.pack = gemm.b_col != 1 or m > 4 * MR
    forward.c = elements(out, op)
    forward.c_row, forward.c_col = word(c_strides) // op.size, word(c_strides + 8) // op.size
    forward.bias = elements(bias, op) if bias != 0 else pointer_at(0, gemm.a)
    kernel = op.tiled
    if m == 1 and gemm.b_col == 1:
        kernel = op.rows
    elif m == 1 and gemm.b_row == 1 and gemm.a_col == 1:
        kernel = op.columns
    gemm.kernel = kernel
    call_kernel(gemm, as_run(op.run, op), 0, 0)
    return DONE
