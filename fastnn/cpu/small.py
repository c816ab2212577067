"""The product of small matrices: C = A B where rows of B and C are contiguous, without copies and epilogue.

`fastnn.cpu.gemm` cuts, packs and hands its tiles on; for a matrix of some registers that takes longer than the product.
Here all rows have tiles of one height, and C is written from the registers.  The sums are those of the product: bits
are the same.
"""

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.simd import lanes, load_first, offset, rank1, reference, row_offsets, store_rows, zeros_tile
from fastnn.records import FORWARD, GEMM

as_forward = reference(FORWARD)


def make_columns(height):
    """All rows (at least `height`) of one vector of columns."""

    @device
    def columns(op, b, c, c_row, cols):
        r = 0
        offsets = row_offsets(op.a_row, height)
        while r < op.m:
            # The last tile may overlap the one before, whose rows it computes again: a tile of 8 rows is as fast as one
            # of 1, since each row is a chain of dependent sums.
            r = min(r, op.m - height)
            a = offset(op.a, r * op.a_row)
            tile = zeros_tile(op.a, height, 1)
            for p in range(op.k):
                tile = rank1(tile, offset(a, p * op.a_col), offsets, (load_first(b, p * op.b_row, cols),))
            store_rows(tile, offset(c, r * c_row), c_row, cols)
            r += height

    return columns


columns_8, columns_4, columns_2, columns_1 = (make_columns(height) for height in (8, 4, 2, 1))


@kernel(GEMM)
def product(op, run, step, thread):
    # c: the epilogue's, element strides c_row and 1; b: element strides b_row and 1
    w = lanes(op.a)
    forward = as_forward(op.epilogue, op)
    for j in range(0, op.n, w):
        cols = min(w, op.n - j)
        b, c = offset(op.b, j), offset(forward.c, j)
        if op.m >= 8:
            columns_8(op, b, c, forward.c_row, cols)
        elif op.m >= 4:
            columns_4(op, b, c, forward.c_row, cols)
        elif op.m >= 2:
            columns_2(op, b, c, forward.c_row, cols)
        else:
            columns_1(op, b, c, forward.c_row, cols)
