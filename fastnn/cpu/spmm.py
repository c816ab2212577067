"""Products that leave out zeros: C = epilogue(A B), where many elements of A are 0.

Four of five pixels of MNIST's images are 0, nearly all columns of a one-hot encoding, and about half of what relu
leaves of a hidden layer.  Which elements of A are not is kept as bits, a word for each row and `WORD` steps of k, so
that the next one is found in two instructions; each is a row of B that is added, times the element, to a row of C in
registers.  A row of B serves one row of C at a time, so this takes a load for each multiply-add, where tiles take half
as many: it pays where less than 0.5 to 0.75 of A is not 0, as the product is.  Blocks of B that lie on many pages are
copied first, and columns of A turned into rows, if enough of C uses them.

Of inputs the samples tell, once, whether they are mostly 0 (`fastnn.training.MAX_DENSITY`).  What relu or dropout
leaves changes with every step; so a step looks at some rows (`is_sparse`), and calls the kernel of `op.otherwise` if
there are too few zeros (`fastnn.cpu.zeros`).  A weight gradient X' D may leave out those of D, which relu's slope has
set, as well: then C = D' X is computed, and the epilogue gets C' (`turn`).  Where k is `WORD` at most, a row of a
weight gradient is handed to its epilogue as it is, in registers (`update`).

The sums have the order of `fastnn.cpu.gemm`'s, and so its bits, with two exceptions: where B is infinite or NaN, 0
times that is NaN there, and here it is not looked at; and a sum so small that it has become -0 stays that, where
adding 0 makes it +0."""

from numba.types import int64 as INT64

from fastnn.cpu.blocking import WIDE, WORD
from fastnn.cpu.finish import make_finish
from fastnn.cpu.gemm import pack_panel, prefetch_later, prefetch_row, sum_rows
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import first_task, next_task, part_of, share
from fastnn.cpu.simd import (
    call_epilogue,
    call_kernel,
    call_row_epilogue,
    cast,
    is_null,
    lanes,
    load,
    load_tile,
    nonzero_lanes,
    offset,
    ones,
    rank1,
    record_at,
    reference,
    set_bits,
    store_tile,
    store_words,
    trailing_zeros,
    transpose_block,
    transpose_corner,
    zero_words,
    zeros_tile,
)
from fastnn.records import BACKWARD, EPILOGUE, FORWARD, GEMM, RELU_SLOPE, UPDATE

as_forward, as_backward, as_update = reference(FORWARD), reference(BACKWARD), reference(UPDATE)
HERE = (0,)  # of a tile of one row
UNKNOWN, AT_REST, USED = 0, 1, 2  # what a run knows of a piece of a row of weights
AHEAD = 2  # rows from the one that is updated to the one whose place is fetched
LOOKS = 8  # rows of A, or columns, that are looked at to find out whether it is sparse


@device
def is_sparse(op, low, high):
    """Whether few enough elements of A are not 0, in some of its rows from `low` to `high`, or of its columns.

    Whole vectors are counted, with what may lie behind the last element: it says how fast a product is, no more.
    """
    w = lanes(op.a)
    count, length, line = high - low, op.k, op.a_row
    a = offset(op.a, low * line)
    if op.a_col != 1:
        count, length, line, a = op.k, op.m, op.a_col, op.a
    looks = min(LOOKS, count)
    between = count // LOOKS if count > LOOKS else 1
    found = 0
    for i in range(looks):
        for q in range(0, length, w):
            found += ones(nonzero_lanes(load(a, i * between * line + q)))
    return found * WORD <= op.most * looks * length


@device
def mark_rows(a, a_row, a_step, rows, k, words):
    """The words of rows that are padded to whole vectors, and contiguous: for all of k, or for `WORD` steps of it.

    `a_step`: how far the next step of k is from one such piece to another.
    """
    w = lanes(a)
    for r in range(rows):
        for p in range(0, k, WORD):
            depth = min(WORD, k - p)
            word = 0
            for q in range(0, depth, w):
                word |= nonzero_lanes(load(a, r * a_row + p * a_step + q)) << q
            if depth < WORD:
                word &= (1 << depth) - 1
            words[p // WORD * rows + r] = word


@device
def mark_columns(a, a_col, rows, k, words):
    """The words of rows whose elements are `a_col` apart.  A's columns are contiguous, and padded to whole vectors.

    Whole vectors of words are written, so each may reach into what is written after it.
    """
    w = lanes(a)
    for p in range(0, k, WORD):
        for r in range(0, rows, w):
            # The first one by itself: LLVM would call memset for words without any.
            found = set_bits(zero_words(a), 0, load(a, p * a_col + r))
            for q in range(1, min(WORD, k - p)):
                found = set_bits(found, q, load(a, (p + q) * a_col + r))
            store_words(words, p // WORD * rows + r, found)


@device
def turn_columns(a, a_col, rows, k, out):
    """Copy rows whose elements are `a_col` apart, `WORD` steps of k after the other, so that each is in one piece."""
    w = lanes(a)
    for p in range(0, k, WORD):
        for r in range(0, rows, w):
            for q in range(p, min(p + WORD, k), w):
                source, target = offset(a, q * a_col + r), offset(out, p * rows + r * WORD + q - p)
                if q + w <= k and r + w <= rows:
                    transpose_block(source, a_col, target, WORD)
                else:
                    transpose_corner(source, a_col, min(w, k - q), min(w, rows - r), target, WORD)


@device
def prefetch_word(op, a, a_col, j, p, r, vectors):
    """Fetch, with row r, what steps p to p + `WORD` of k need, while earlier ones are computed: the row's elements of
    A, which start at `a`, and row r of the block of B that is copied next, or its column if columns are contiguous.

    No CPU foresees rows that lie on pages of their own.  784-2048-2048-10, batch 1024, takes two threads 96 ms a step
    instead of 106; 98 if only A is fetched, 102 if only B is.
    """
    w = lanes(a)
    if a_col == 1:
        prefetch_later(a, 0, WORD // w)
    if op.b_col == 1:
        if r < min(WORD, op.k - p):
            prefetch_later(op.b, (p + r) * op.b_row + j, vectors)
    elif r < min(vectors * w, op.n - j):
        prefetch_later(op.b, (j + r) * op.b_col + p * op.b_row, WORD // w)


def make_rows(vectors):
    """Steps p to p + `WORD` of k for some rows from `top` on, `vectors` vectors wide from column j on; `tiles` holds
    the sums before and after.
    """
    finished = make_finish(vectors)

    @device
    def rows(op, a, a_row, a_col, a_step, b, b_row, words, top, count, j, p, tiles):
        # a, b: the first elements that are multiplied
        width = vectors * lanes(a)
        first, last = p == 0, p + WORD >= op.k
        ahead = op.pack and not last
        output, updated = as_forward(op.epilogue, op), as_update(op.epilogue, op)
        finish, fetched = EPILOGUE, False
        if last:
            finish, fetched = op.finish, op.touched
        at, bias, more, y = top * output.c_row + j, output.bias, output.more, output.c
        if finish == RELU_SLOPE:
            y = as_backward(op.epilogue, op).y
        elif not is_null(bias):
            bias = offset(bias, j)
        for r in range(count):
            if fetched:  # what the epilogue updates
                here = (top + r) * updated.p_row + j
                prefetch_row(updated.p, here, vectors)
                prefetch_row(updated.s0, here, vectors)
                prefetch_row(updated.s1, here, vectors)
            if ahead:  # B lies on many pages
                prefetch_word(op, offset(a, r * a_row + WORD * a_step), a_col, j, p + WORD, r, vectors)
            word = words[r]
            if first or word != 0 or finish != EPILOGUE:
                row, tile = offset(a, r * a_row), offset(tiles, r * width)
                c = zeros_tile(a, 1, vectors) if first else load_tile(tile, 1, vectors)
                while word != 0:
                    q = trailing_zeros(word)
                    word &= word - 1
                    c = rank1(c, offset(row, q * a_col), HERE, load_tile(offset(b, q * b_row), 1, vectors))
                if finish == EPILOGUE:
                    store_tile(c, tile)
                else:
                    extra = more if is_null(more) else offset(more, at)
                    finished(c, finish, offset(output.c, at), HERE, bias, offset(y, at), extra)
            at += output.c_row

    return rows


wide, narrow = make_rows(WIDE), make_rows(WIDE // 2)


@device
def turn(op, run, step, tile, width, top, rows, j, cols, out):
    """The epilogue for C', where `tile` is rows `top` to `top` + `rows` of C and `width` columns from j on.

    It is called for as many columns of C as there is room for in `out`, a vector's lanes at least.
    """
    w = lanes(op.a)
    height = max(1, 2 * WIDE * w // rows) * w
    for c in range(0, cols, height):
        count = min(height, width - c)
        for q in range(0, count, w):
            for r in range(0, rows, w):
                transpose_block(offset(tile, r * width + c + q), width, offset(out, q * rows + r), rows)
        call_epilogue(op.epilogue, run, step, out, rows, j + c, top, min(count, cols - c), rows)


@device
def panel(op, run, step, a, a_row, a_col, a_step, words, top, rows, j, width, tiles, packed):
    """`rows` rows of C from `top` on, and `width` columns from j on, of which some may not exist.

    Steps of k are `a_col` apart in A, and `a_step` from word to word.
    """
    k = op.k
    cols = min(width, op.n - j)
    for r in range(0, rows, op.block):
        count = min(op.block, rows - r)
        for p in range(0, k, WORD):
            b, b_row = offset(op.b, j * op.b_col + p * op.b_row), op.b_row
            if op.pack or cols < width:
                if r == 0 or k > WORD:
                    pack_panel(b, b_row, op.b_col, min(WORD, k - p), cols, width, packed)
                b, b_row = packed, width
            here, marks = offset(a, r * a_row + p * a_step), offset(words, p // WORD * rows + r)
            if width == WIDE * lanes(a):
                wide(op, here, a_row, a_col, a_step, b, b_row, marks, top + r, count, j, p, tiles)
            else:
                narrow(op, here, a_row, a_col, a_step, b, b_row, marks, top + r, count, j, p, tiles)
        if op.turned:
            turn(op, run, step, tiles, width, top + r, count, j, cols, offset(packed, WORD * WIDE * lanes(a)))
        elif op.finish == EPILOGUE:
            call_epilogue(op.epilogue, run, step, tiles, width, top + r, j, count, cols)


@device
def sum_panel(op, run, step, tile, j, width, right):
    """The sums of B's rows, and their epilogue, for `width` columns from j on, of which some may not exist."""
    w = lanes(op.b)
    end = min(j + width, right)
    for q in range(j, end, 2 * w):
        sum_rows(op, run, step, offset(op.b, q), op.b_row, tile, q, min(2 * w, end - q))


@device
def some_rows(op, run, step, top, rows, left, right, tiles, words, packed):
    """`rows` rows of C from `top` on, and columns `left` to `right`."""
    w = lanes(op.a)
    a, a_row, a_col, a_step = offset(op.a, top * op.a_row), op.a_row, op.a_col, op.a_col
    if op.sums and op.turned and left == 0:
        for r in range(0, rows, 2 * w):
            sum_rows(op, run, step, offset(a, r), a_col, tiles, top + r, min(2 * w, rows - r))
    if op.copy:
        copy = offset(tiles, op.block * WIDE * w)
        turn_columns(a, a_col, rows, op.k, copy)
        a, a_row, a_col, a_step = copy, WORD, 1, rows
    if a_col == 1:
        mark_rows(a, a_row, a_step, rows, op.k, words)
    else:
        mark_columns(a, a_col, rows, op.k, words)
    j = left
    while j < right:
        width = (WIDE if right - j > WIDE // 2 * w else WIDE // 2) * w
        if op.sums and not op.turned and top == 0:
            sum_panel(op, run, step, tiles, j, width, right)
        panel(op, run, step, a, a_row, a_col, a_step, words, top, rows, j, width, tiles, packed)
        j += width


@device
def are_zero(x, at, count):
    """Whether ``x[at : at + count]``, whole vectors, is 0, or not there at all."""
    if not is_null(x):
        for q in range(at, at + count, lanes(x)):
            if nonzero_lanes(load(x, q)) != 0:
                return False
    return True


@device
def is_at_rest(op, word, at, count):
    """Whether an update of `count` weights from `at` on may be left out, since their gradients and state are 0.

    Pixels at the edge of MNIST's images are 0 in all of them, and most words of a vocabulary have not been seen yet.
    The state is looked at once in a run.  Later it changes only where gradients are not 0, which is noticed, since all
    steps of a run cut the weights into the same panels (`fastnn.cpu.division.divide`).
    """
    known = offset(op.resting, (op.first + at) // (WIDE // 2 * lanes(op.a)))
    if word != 0:
        if known[0] != USED:  # a store for nothing would take the line from other threads, whose bytes are in it, too
            known[0] = USED
        return False
    if known[0] == UNKNOWN:
        place = as_update(op.epilogue, op)
        known[0] = AT_REST if are_zero(place.s0, at, count) and are_zero(place.s1, at, count) else USED
    return known[0] == AT_REST


def make_updated(vectors):
    """`count` rows from `top` on, `vectors` vectors wide from column j on, each of which updates what it is for."""

    @device
    def updated(op, run, step, a, b, words, top, count, j):
        a_col, b_row = op.a_col, op.b_row
        place, asks = as_update(op.epilogue, op), not is_null(op.resting)
        for r in range(count):
            at = (top + r) * place.p_row + j
            if op.touched and r + AHEAD < count:
                ahead = at + AHEAD * place.p_row
                prefetch_row(place.p, ahead, vectors)
                prefetch_row(place.s0, ahead, vectors)
                prefetch_row(place.s1, ahead, vectors)
            c, word = zeros_tile(a, 1, vectors), words[r]
            if asks and is_at_rest(op, word, at, vectors * lanes(a)):
                continue
            while word != 0:
                q = trailing_zeros(word)
                word &= word - 1
                c = rank1(c, offset(a, r + q * a_col), HERE, load_tile(offset(b, q * b_row), 1, vectors))
            call_row_epilogue(op.epilogue, run, step, top + r, j, c)

    return updated


updated_wide, updated_narrow = make_updated(WIDE), make_updated(WIDE // 2)


@device
def some_updated_rows(op, run, step, top, rows, left, right, tiles, words, packed):
    """As `some_rows`, for a weight gradient whose k is `WORD` at most and whose panels are whole."""
    w = lanes(op.a)
    a = offset(op.a, top)
    mark_columns(a, op.a_col, rows, op.k, words)
    j = left
    while j < right:
        wide = right - j > WIDE // 2 * w
        width = (WIDE if wide else WIDE // 2) * w
        if op.sums and top == 0:
            sum_panel(op, run, step, tiles, j, width, right)
        if wide:
            updated_wide(op, run, step, a, offset(op.b, j), words, top, rows, j)
        else:
            updated_narrow(op, run, step, a, offset(op.b, j), words, top, rows, j)
        j += width


def make_product(some_rows):
    """The product, some rows of C at a time."""

    @kernel(GEMM)
    def product(op, run, step, thread):
        low, high, place, threads = 0, op.m, thread, run.threads
        if op.by_rows:
            low, high = share(op.m, thread, threads)
        elif op.part:
            place, threads = part_of(op.part, thread, threads)
            if place < 0:
                return
        if op.otherwise and not is_sparse(op, low, high):
            call_kernel(record_at(op.otherwise), run, step, thread)
            return
        columns = op.panels * WIDE * lanes(op.a)
        tasks_of_column = (high - low + op.rows - 1) // op.rows
        tasks = (op.n + columns - 1) // columns * tasks_of_column
        owner, task, last = first_task(op, tasks, place, threads)
        packed = offset(op.scratch, thread * op.scratch_stride)
        out = op.turned * lanes(op.a) * max(2 * WIDE * lanes(op.a), op.block)
        tiles = offset(packed, WORD * WIDE * lanes(op.a) + out)
        copy = op.copy * op.rows * -(-op.k // WORD) * WORD
        words = cast(offset(tiles, op.block * WIDE * lanes(op.a) + copy), INT64)
        while 0 <= task < last:
            left, top = task // tasks_of_column * columns, low + task % tasks_of_column * op.rows
            right = min(left + columns, op.n)
            some_rows(op, run, step, top, min(op.rows, high - top), left, right, tiles, words, packed)
            owner, task = next_task(op, tasks, place, threads, owner, task)

    return product


# A's rows are contiguous, or its columns, in whole vectors; and B's rows, or its columns.
spmm = make_product(some_rows)
update = make_product(some_updated_rows)
