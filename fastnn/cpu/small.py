"""The product of small matrices, C = epilogue(A B).

`fastnn.cpu.gemm` cuts and packs for the caches; where all operands are in the first two levels that takes longer than
it saves.  The sums are those of `fastnn.cpu.gemm`: the bits are the same.

=========  ====================================================================================================
`plain`    rows of B are contiguous and the epilogue does nothing: written from the registers to C, by one thread
`slim`     rows of B are contiguous and fit a vector, C has few rows: little is done that is not arithmetic
`fused`    any strides, any epilogue; what a step of a small network consists of
=========  ====================================================================================================
"""

from fastnn.cpu.blocking import MR, TILES
from fastnn.cpu.finish import make_finish
from fastnn.cpu.gemm import FEW, HALF, LINE, add_rows, are_halves, pack_panel, sum_rows
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import claim, part_of, share
from fastnn.cpu.simd import (
    call_epilogue,
    is_null,
    lanes,
    load,
    load_first,
    load_tile,
    offset,
    rank1,
    reference,
    row_offsets,
    row_offsets_within,
    store_rows,
    store_tile,
    touch_rows,
    zeros_tile,
)
from fastnn.records import BACKWARD, EPILOGUE, FORWARD, GEMM, RELU_SLOPE

TALL = min(MR, 8)  # 8 rows of two vectors are 16 sums at once: more than the CPU needs to be busy

as_forward, as_backward = reference(FORWARD), reference(BACKWARD)


def make_plain_tiles(height, vectors, whole):
    """All rows, at least `height`, of the `cols` columns from j on, which are one vector or two; `whole` ones or not.

    A mask takes a register, of which AVX2 has no more than a tile needs: 32 x 64 x 64 takes 7.3 us with one, and 6.2.
    """

    @device
    def tiles(op, j, cols):
        w = lanes(op.a)
        b, forward = offset(op.b, j), as_forward(op.epilogue, op)
        c, c_row = offset(forward.c, j), forward.c_row
        offsets = row_offsets(op.a_row, height)
        for start in range(0, op.m, height):
            # The last tile may overlap the one before and compute its rows once more: that is as fast as fewer rows,
            # since each row is a chain of dependent sums.
            r = min(start, op.m - height)
            a = offset(op.a, r * op.a_row)
            left = zeros_tile(op.a, height, 1)
            right = left
            for p in range(op.k):
                at = p * op.b_row
                if vectors == 2:
                    left = rank1(left, offset(a, p * op.a_col), offsets, (load(b, at),))
                    more = load(b, at + w) if whole else load_first(b, at + w, cols - w)
                    right = rank1(right, offset(a, p * op.a_col), offsets, (more,))
                else:
                    left = rank1(left, offset(a, p * op.a_col), offsets, (load_first(b, at, cols),))
            to = offset(c, r * c_row)
            store_rows(left, to, c_row, w if whole else min(w, cols))
            if vectors == 2:
                store_rows(right, offset(to, w), c_row, w if whole else cols - w)

    return tiles


def make_plain_columns(vectors, whole):
    tall, four, one = (make_plain_tiles(height, vectors, whole) for height in (TALL, 4, 1))

    @device
    def columns(op, j, cols):
        if op.m >= TALL:
            tall(op, j, cols)
        elif op.m >= 4:
            four(op, j, cols)
        else:
            one(op, j, cols)

    return columns


plain_whole, plain_wide, plain_narrow = (
    make_plain_columns(vectors, whole) for vectors, whole in ((2, True), (2, False), (1, False))
)


@kernel(GEMM)
def plain(op, run, step, thread):
    w = lanes(op.a)
    for j in range(0, op.n, 2 * w):
        cols = min(2 * w, op.n - j)
        if cols == 2 * w:
            plain_whole(op, j, cols)
        elif cols > w:
            plain_wide(op, j, cols)
        else:
            plain_narrow(op, j, cols)


def make_tile(height, vectors):
    finished = make_finish(vectors)

    @device
    def multiply(a, offsets, a_col, b, b_row, k, finish, tile, c, places, bias, y, more):
        # offsets: where rows of A are; places: those of C, and of y and more, which have C's layout
        x = zeros_tile(a, height, vectors)
        for p in range(k):
            x = rank1(x, offset(a, p * a_col), offsets, load_tile(offset(b, p * b_row), 1, vectors))
        if finish == EPILOGUE:
            store_tile(x, tile)
        else:
            finished(x, finish, c, places, bias, y, more)

    return multiply


def make_panel(vectors):
    """Rows `top` to `bottom` of the `cols` columns from j on; B has as many columns as the vectors have lanes."""
    tall, half, few = (make_tile(height, vectors) for height in (MR, HALF, FEW))

    @device
    def panel(op, run, step, b, b_row, tile, j, cols, top, bottom):
        k, a_row, a_col, finish = op.k, op.a_row, op.a_col, op.finish
        width = vectors * lanes(op.a)
        output = as_forward(op.epilogue, op)
        to, c_row, bias, y, more = output.c, output.c_row, output.bias, output.c, output.more
        if finish == RELU_SLOPE:
            y = as_backward(op.epilogue, op).y
        elif not is_null(bias):
            bias = offset(bias, j)
        offsets, places = row_offsets(a_row, MR), row_offsets(c_row, MR)
        i = top
        while i < bottom:
            many = min(bottom - i, TILES * MR)
            if are_halves(bottom - i - many + MR):
                many -= MR  # so that they are not parted
            r = 0
            while r < many:
                rows, at, out = many - r, (i + r) * c_row + j, offset(tile, r * width)
                a, c, also = offset(op.a, (i + r) * a_row), offset(to, at), offset(op.also, at)
                extra = more if is_null(more) else offset(more, at)
                whole = rows >= MR and not are_halves(rows)
                if rows >= MR:
                    rows = MR if whole else HALF
                here = places if whole else row_offsets_within(c_row, MR, rows)
                if op.touched:
                    touch_rows(c, here, vectors, LINE)
                if not is_null(op.also):
                    touch_rows(also, here, vectors, LINE)
                # Rows that do not exist are computed as the last one once more.
                if whole:
                    tall(a, offsets, a_col, b, b_row, k, finish, out, c, places, bias, offset(y, at), extra)
                elif rows > HALF:
                    tall(a, row_offsets_within(a_row, MR, rows), a_col, b, b_row, k, finish, out,
                         c, here, bias, offset(y, at), extra)  # fmt: skip
                elif rows > FEW:
                    half(a, row_offsets_within(a_row, HALF, rows), a_col, b, b_row, k, finish, out,
                         c, row_offsets_within(c_row, HALF, rows), bias, offset(y, at), extra)  # fmt: skip
                else:
                    few(a, row_offsets_within(a_row, FEW, rows), a_col, b, b_row, k, finish, out,
                        c, row_offsets_within(c_row, FEW, rows), bias, offset(y, at), extra)  # fmt: skip
                r += rows
            if finish == EPILOGUE:
                call_epilogue(op.epilogue, run, step, tile, width, i, j, many, cols)
            i += many

    return panel


wide, narrow = make_panel(2), make_panel(1)


@device
def some_tiles(op, run, step, packed, low, high, tiles, first, last):
    """The tiles from `first` to `last`, counted down each panel of `tiles` and from panel to panel."""
    w = lanes(op.a)
    tile = offset(packed, op.k * 2 * w)
    panel = first // tiles if first > 0 else 0
    before = panel * tiles  # tiles of earlier panels
    for j in range(panel * 2 * w, op.n, 2 * w):
        top, bottom = low + max(first - before, 0) * MR, min(low + (last - before) * MR, high)
        if top >= bottom:
            return
        before += tiles
        cols = min(2 * w, op.n - j)
        width = 2 * w if cols > w else w
        b, b_row = offset(op.b, j * op.b_col), op.b_row
        if op.b_col != 1 or cols < width:
            pack_panel(b, b_row, op.b_col, op.k, cols, width, packed)
            b, b_row = packed, width
        if op.sums and top == 0:
            sum_rows(op, run, step, b, b_row, tile, j, width)
        if cols > w:
            wide(op, run, step, b, b_row, tile, j, cols, top, bottom)
        else:
            narrow(op, run, step, b, b_row, tile, j, cols, top, bottom)


def make_slim_tiles(height):
    """`rows` rows, at least `height`, of one vector of columns."""

    @device
    def tiles(op, top, rows, tile):
        w = lanes(op.a)
        offsets = row_offsets(op.a_row, height)
        for start in range(0, rows, height):
            r = min(start, rows - height)  # as in `plain`
            a = offset(op.a, (top + r) * op.a_row)
            c = zeros_tile(op.a, height, 1)
            for p in range(op.k):
                b = load_first(op.b, p * op.b_row, op.n)
                c = rank1(c, offset(a, p * op.a_col), offsets, (b,))
            store_tile(c, offset(tile, r * w))

    return tiles


slim_tall, slim_four, slim_one = (make_slim_tiles(height) for height in (TALL, 4, 1))


@kernel(GEMM)
def slim(op, run, step, thread):
    """Threads share the rows of C.  Where there are sums, B has as many columns as a vector has lanes, or padding."""
    w = lanes(op.a)
    top, bottom = share(op.m, thread, run.threads)
    rows = bottom - top
    tile = offset(op.scratch, thread * op.scratch_stride)
    if op.sums and not op.joined and thread == 0:
        sum_rows(op, run, step, op.b, op.b_row, tile, 0, w)
    if rows >= TALL:
        slim_tall(op, top, rows, tile)
    elif rows >= 4:
        slim_four(op, top, rows, tile)
    else:
        slim_one(op, top, rows, tile)
    if op.joined and bottom == op.m:
        add_rows(op, op.b, op.b_row, offset(tile, rows * w), w)
        rows += 1
    if rows > 0:
        call_epilogue(op.epilogue, run, step, tile, w, top, 0, rows, op.n)


@kernel(GEMM)
def fused(op, run, step, thread):
    low, high = 0, op.m
    if op.by_rows:
        low, high = share(op.m, thread, run.threads)
    w, claims = lanes(op.a), op.claims
    tiles = (high - low + MR - 1) // MR
    total = (op.n + 2 * w - 1) // (2 * w) * tiles
    packed = offset(op.scratch, thread * op.scratch_stride)
    first, last, each, tasks, task, owner = 0, total, 0, 0, 0, thread
    if not is_null(claims):
        each = op.rows // MR  # tiles of a task
        tasks = (total + each - 1) // each
        owner, task = claim(claims, tasks, thread, run.threads, owner)
    elif not op.by_rows:
        place, threads = part_of(op.part, thread, run.threads)
        if place < 0:
            return
        first, last = share(total, place, threads)
    while task >= 0:
        if tasks > 0:
            first, last = task * each, min((task + 1) * each, total)
        some_tiles(op, run, step, packed, low, high, tiles, first, last)
        if tasks == 0:
            return
        owner, task = claim(claims, tasks, thread, run.threads, owner)
