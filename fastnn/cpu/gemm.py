"""The matrix product: C = epilogue(A B), for any strides of A and B.

All three products of a dense layer are this kernel, with strides instead of transposed copies:

====================  =======================  ==================================
product               operands                 epilogue
====================  =======================  ==================================
forward               A = X, B = W             add the bias, apply the activation
input gradient        A = D, B = W transposed  multiply by the activation's slope
weight gradient       A = X transposed, B = D  update the weights
bias gradient         A = ones (stride 0)      update the bias
====================  =======================  ==================================

C is never written here: each finished tile is handed, while it is in the first-level cache, to the epilogue that the
record names.  A is read in place, or block by block from a copy where it is too large for the second-level cache.  B is
read in place where its rows are contiguous and whole vectors wide, and copied panel by panel (k x NR, contiguous)
otherwise or where that is faster.

The work is cut into tasks by shape alone (a panel of columns, a block of rows), so every element of C is computed
by the same operations in the same order whatever the number of threads.
"""

from fastnn.cpu.blocking import MR, NV
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    call_epilogue,
    lanes,
    load,
    load_first,
    load_tile,
    offset,
    rank1,
    store,
    store_tile,
    transpose_block,
    transpose_corner,
    zeros_tile,
)
from fastnn.records import GEMM

HEIGHTS = (MR, *(h for h in (8, 4, 2, 1) if h < MR))  # rows of the tiles that cover a ragged end


def make_tile(rows, vectors):
    """The micro-kernel for a tile of `rows` x `vectors` registers."""

    @device
    def multiply(a, a_row, a_col, b, b_row, k, tile, first):
        # a: rows x k, strides a_row and a_col; b: k x NR, rows contiguous, stride b_row; tile: rows x NR, no gaps
        c = zeros_tile(a, rows, vectors) if first else load_tile(tile, rows, vectors)
        for p in range(k):
            c = rank1(c, vectors, offset(a, p * a_col), a_row, offset(b, p * b_row))
        store_tile(c, tile)

    return multiply


def make_block(vectors):
    """One block of k for all tiles of a task: `rows` x (vectors * lanes) of C."""
    tiles = [make_tile(h, vectors) for h in HEIGHTS]
    full, t8, t4, t2, t1 = [tiles[0]] * (5 - len(tiles)) + tiles

    @device
    def block(op, run, step, a, a_row, a_col, b, b_row, k, partial, i, j, rows, cols, first, last):
        width = vectors * lanes(a)
        r = 0
        while r < rows:
            tile = offset(partial, r * width)
            at = offset(a, r * a_row)
            left = rows - r
            if left >= MR:
                height = MR
                full(at, a_row, a_col, b, b_row, k, tile, first)
            elif left >= 8:
                height = 8
                t8(at, a_row, a_col, b, b_row, k, tile, first)
            elif left >= 4:
                height = 4
                t4(at, a_row, a_col, b, b_row, k, tile, first)
            elif left >= 2:
                height = 2
                t2(at, a_row, a_col, b, b_row, k, tile, first)
            else:
                height = 1
                t1(at, a_row, a_col, b, b_row, k, tile, first)
            if last:
                call_epilogue(op, run, step, tile, width, i + r, j, height, cols)
            r += height

    return block


block_wide = make_block(NV)
block_narrow = make_block(1)


@device
def pack_panel(b, b_row, b_col, k, cols, width, out):
    """Copy ``b[:k, :cols]`` to `out`, k x width without gaps; columns beyond `cols` become 0."""
    w = lanes(b)
    if b_col == 1:
        for p in range(k):
            source = offset(b, p * b_row)
            for c in range(0, width, w):
                if c + w <= cols:
                    store(out, p * width + c, load(source, c))
                else:
                    store(out, p * width + c, load_first(source, c, cols - c))
    elif b_row == 1:
        # B is transposed: its columns are contiguous.  Blocks are turned in registers.
        for c in range(0, width, w):
            count = min(w, cols - c)
            p = 0
            if count == w:
                while p + w <= k:
                    transpose_block(offset(b, c * b_col + p), b_col, offset(out, p * width + c), width)
                    p += w
            while p < k:
                depth = min(w, k - p)
                transpose_corner(offset(b, c * b_col + p), b_col, count, depth, offset(out, p * width + c), width)
                p += depth
    else:
        for p in range(k):
            for q in range(width):
                out[p * width + q] = b[p * b_row + q * b_col] if q < cols else b[0] * 0


@kernel(GEMM)
def gemm(op, run, step, thread):
    w = lanes(op.a)
    nr = NV * w
    columns = op.panels * nr  # NC: a task reads its rows of A once for each of its panels, from the second-level cache
    blocks = (op.m + op.rows - 1) // op.rows
    tasks = (op.n + columns - 1) // columns * blocks
    first, last = share(tasks, thread, run.threads)
    scratch = offset(op.scratch, thread * op.scratch_stride)
    partials = offset(scratch, op.kc * columns)
    block_of_a = offset(partials, op.rows * columns)
    for task in range(first, last):
        left = task // blocks * columns
        right = min(left + columns, op.n)
        i = task % blocks * op.rows
        rows = min(op.rows, op.m - i)
        # Tasks of the same columns follow each other: what is packed stays good if one block holds all of k.
        fresh = task == first or task % blocks == 0 or op.kc < op.k
        p = 0
        while True:
            k = min(op.kc, op.k - p)
            done = p + k >= op.k
            a = offset(op.a, i * op.a_row + p * op.a_col)
            a_row = op.a_row
            a_col = op.a_col
            if op.panels > 1:  # each element is read once a panel: worth a copy that is compact, k x rows
                pack_panel(a, a_col, a_row, k, rows, op.rows, block_of_a)
                a = block_of_a
                a_row = 1
                a_col = op.rows
            for j in range(left, right, nr):
                cols = min(nr, right - j)
                width = nr if cols > w else w
                b = offset(op.b, p * op.b_row + j * op.b_col)
                b_row = op.b_row
                if op.pack or cols < width:
                    packed = offset(scratch, (j - left) * op.kc)
                    if fresh:
                        pack_panel(b, op.b_row, op.b_col, k, cols, width, packed)
                    b = packed
                    b_row = width
                partial = offset(partials, (j - left) * op.rows)
                if width == nr:
                    block_wide(op, run, step, a, a_row, a_col, b, b_row, k, partial, i, j, rows, cols, p == 0, done)
                else:
                    block_narrow(op, run, step, a, a_row, a_col, b, b_row, k, partial, i, j, rows, cols, p == 0, done)
            p += op.kc
            if done:
                break
