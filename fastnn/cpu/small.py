"""The product of small matrices, C = epilogue(A B), where rows of B are contiguous: without copies.

`fastnn.cpu.gemm` cuts and packs for the caches; where all operands are in the first two levels that takes longer than
it saves.  Here the tiles of all rows have one height, their ragged ends are masked, and a plain product is written from
the registers to C.  The sums are those of `fastnn.cpu.gemm` as long as one block holds all of k: the bits are the same.
"""

from fastnn.cpu.blocking import MR
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share, worker
from fastnn.cpu.simd import (
    call_epilogue,
    lanes,
    load,
    load_first,
    offset,
    rank1,
    reference,
    row_offsets,
    store_rows,
    zeros_tile,
)
from fastnn.records import FORWARD, GEMM

TALL = min(MR, 8)  # 8 rows of two vectors are 16 sums at once: more than the CPU needs to be busy

as_forward = reference(FORWARD)


def make_tiles(height, vectors, plain):
    """All rows, at least `height`, of the `cols` columns from j on, which are one vector or two."""

    @device
    def tiles(op, run, step, thread, j, cols):
        w = lanes(op.a)
        b, forward = offset(op.b, j), as_forward(op.epilogue, op)
        c = offset(forward.c, j)
        scratch = offset(op.scratch, worker(run, thread) * op.scratch_stride)
        offsets = row_offsets(op.a_row, height)
        first, last = share((op.m + height - 1) // height, thread, run.threads)
        for block in range(first, last):
            # The last tile may overlap the one before and compute its rows once more: that is as fast as fewer rows,
            # since each row is a chain of dependent sums.
            r = min(block * height, op.m - height)
            a = offset(op.a, r * op.a_row)
            left = zeros_tile(op.a, height, 1)
            right = left
            for p in range(op.k):
                at = p * op.b_row
                if vectors == 2:
                    left = rank1(left, offset(a, p * op.a_col), offsets, (load(b, at),))
                    right = rank1(right, offset(a, p * op.a_col), offsets, (load_first(b, at + w, cols - w),))
                else:
                    left = rank1(left, offset(a, p * op.a_col), offsets, (load_first(b, at, cols),))
            if plain:
                to, to_row, near, far = offset(c, r * forward.c_row), forward.c_row, min(w, cols), cols - w
            else:
                to, to_row, near, far = scratch, vectors * w, w, w
            store_rows(left, to, to_row, near)
            if vectors == 2:
                store_rows(right, offset(to, w), to_row, far)
            if not plain:
                call_epilogue(op, run, step, to, to_row, r, j, height, cols)

    return tiles


def make_columns(vectors, plain):
    tall, four, two, one = (make_tiles(height, vectors, plain) for height in (TALL, 4, 2, 1))

    @device
    def columns(op, run, step, thread, j, cols):
        if op.m >= TALL:
            tall(op, run, step, thread, j, cols)
        elif op.m >= 4:
            four(op, run, step, thread, j, cols)
        elif op.m >= 2:
            two(op, run, step, thread, j, cols)
        else:
            one(op, run, step, thread, j, cols)

    return columns


def make_product(plain):
    wide, narrow = make_columns(2, plain), make_columns(1, plain)

    @kernel(GEMM)
    def product(op, run, step, thread):
        w = lanes(op.a)
        for j in range(0, op.n, 2 * w):
            cols = min(2 * w, op.n - j)
            if cols > w:
                wide(op, run, step, thread, j, cols)
            else:
                narrow(op, run, step, thread, j, cols)

    return product


plain = make_product(True)  # the epilogue has no bias and no activation, and rows of C are contiguous
fused = make_product(False)
