"""The matrix product: C = epilogue(A B), for any strides of A and B.

All three products of a dense layer are this kernel, with strides instead of transposed copies:

====================  =======================  ==================================
product               operands                 epilogue
====================  =======================  ==================================
forward               A = X, B = W             add the bias, apply the activation
input gradient        A = D, B = W transposed  multiply by the activation's slope
weight gradient       A = X transposed, B = D  update the weights
bias gradient         the sum of the rows of D, for which the weight gradient has a second epilogue (`sum_rows`)
====================  =======================  ==================================

Each finished tile is handed, while it is in the first-level cache, to the epilogue that the record names; C is written
here only where that would do nothing else (`plain`).  A is read in place, or block by block from a copy where it is too
large for the second-level cache.  B is read in place where its rows are contiguous and few rows of A use it.  Otherwise
its panels are packed (k x NR, contiguous), by the first tile of a panel on the way where rows are contiguous.

The work is cut into tasks (some panels of columns, some rows).  Every element of C is one sum in the order of k,
however the work is cut, so results do not depend on the number of threads.
"""

from fastnn.cpu.blocking import CPU, MR, NV
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import first_task, keep_packed_columns, next_task, packed_columns, share, worker
from fastnn.cpu.simd import (
    call_epilogue,
    is_null,
    lanes,
    load,
    load_block,
    load_first,
    load_tile,
    offset,
    pointer_at,
    prefetch,
    prefetch_far,
    prefetch_write,
    rank1,
    reference,
    row_offsets,
    row_offsets_within,
    splat,
    store,
    store_first,
    store_tile,
    store_tile_rows,
    sum_vectors,
    transpose_block,
    transpose_corner,
    zeros_tile,
)
from fastnn.records import FORWARD, GEMM

# Rows of the tiles at a ragged end, some of which may be computed for nothing: each tile takes 4 cycles a step of k
# (the latency of its sums) at least, so few tiles are better than exact ones.
HALF, FEW = min(8, MR), 4
LINE = max(1, 512 // CPU.simd_bits)  # vectors in a cache line
AHEAD = 32  # steps of k from the prefetch of a row of packed B to its use
COPY_AHEAD = 16  # columns of A from the one that is fetched to the one that is copied
SUMS = 4  # rows that are added up side by side, since each sum is a chain of additions
LEAD = 56  # steps of k from the time when a tile's place in C is fetched to the end of the tile

COPIED = tuple(range(MR))  # where the rows of a tile are in a copy of A

as_forward = reference(FORWARD)  # all epilogues name first what they write, and its leading dimension


@device
def are_halves(rows):
    """Whether these are better two tiles of HALF than one of MR and one of FEW: a step of k takes a cycle for each row
    of a tile, 16 instead of 18 for 15 or 16 rows.
    """
    return 2 * HALF < MR + FEW and MR < rows <= 2 * HALF


@device
def prefetch_row(c, at, vectors):
    """Fetch a row of a tile for writing.  It need not start at a cache line: then its end is in one more."""
    w = lanes(c)
    for v in range(0, vectors, LINE):
        prefetch_write(c, at + v * w)
    prefetch_write(c, at + vectors * w - 1)


@device
def prefetch_later(b, at, vectors):
    """Fetch a row of the next panel, into the second-level cache.  If it does not start at a cache line, its first line
    was fetched with the panel before.
    """
    w = lanes(b)
    for v in range(0, vectors, LINE):
        prefetch_far(b, at + (v + min(LINE, vectors)) * w - 1)


def make_tile(vectors, copied=False):
    """The micro-kernel for a tile of MR x `vectors` registers, from A in place or as `copy_block` leaves it."""

    @device
    def multiply(
        a, a_row, a_col, b, b_row, ahead, k, tile, first, out, out_row, following, following_row, later, to, to_row
    ):
        # a: strides a_row and a_col; b: k x NR, rows contiguous, stride b_row, fetched `ahead` rows before their use
        # tile: the sums of earlier blocks of k, MR x NR, no gaps; out: where those of this one go, stride out_row
        # following: part of the next panel of B, to be fetched; to: memory that is written next, as large as the tile
        w = lanes(a)
        offsets = COPIED if copied else row_offsets(a_row, MR)
        column = MR if copied else a_col
        c = zeros_tile(a, MR, vectors) if first else load_tile(tile, MR, vectors)
        # Rows are fetched one a step, since the CPU can wait for a dozen lines at a time, not for all of a tile.
        last_b = max(0, k - LEAD)
        last_c = min(last_b + MR, k)
        first_b = max(0, last_b - later)
        p, stop = 0, first_b
        while True:
            while p < stop:
                for v in range(0, vectors, LINE):
                    prefetch(b, (p + ahead) * b_row + v * w)
                c = rank1(c, offset(a, p * column), offsets, load_tile(offset(b, p * b_row), 1, vectors))
                p += 1
            if stop == k:
                break
            while p < last_b:
                prefetch_later(following, (p - first_b) * following_row, vectors)
                for v in range(0, vectors, LINE):
                    prefetch(b, (p + ahead) * b_row + v * w)
                c = rank1(c, offset(a, p * column), offsets, load_tile(offset(b, p * b_row), 1, vectors))
                p += 1
            while p < last_c:
                prefetch_row(to, (p - last_b) * to_row, vectors)
                c = rank1(c, offset(a, p * column), offsets, load_tile(offset(b, p * b_row), 1, vectors))
                p += 1
            stop = k
        store_tile_rows(c, out, out_row, vectors)

    return multiply


def make_edge_tile(rows, vectors):
    """The same for `rows` x `vectors` registers, with rows of A anywhere."""

    @device
    def multiply(a, offsets, a_col, b, b_row, ahead, k, tile, first):
        w = lanes(a)
        c = zeros_tile(a, rows, vectors) if first else load_tile(tile, rows, vectors)
        for p in range(k):
            for v in range(0, vectors, LINE):
                prefetch(b, (p + ahead) * b_row + v * w)
            c = rank1(c, offset(a, p * a_col), offsets, load_tile(offset(b, p * b_row), 1, vectors))
        store_tile(c, tile)

    return multiply


def make_packing_tile(vectors):
    """As `make_tile`, and copies B to `packed` (k x NR without gaps) on the way: it is in registers anyway."""

    @device
    def multiply(a, a_row, a_col, b, b_row, ahead, k, tile, first, out, out_row, following, later, packed):
        w = lanes(a)
        c = zeros_tile(a, MR, vectors) if first else load_tile(tile, MR, vectors)
        offsets = row_offsets(a_row, MR)
        p = 0
        for stop in (later, k):
            while p < stop:
                prefetch_later(following, p * b_row, vectors)
                for v in range(0, vectors, LINE):
                    prefetch(b, (p + ahead) * b_row + v * w)
                row = load_tile(offset(b, p * b_row), 1, vectors)
                store_tile(row, offset(packed, p * vectors * w))
                c = rank1(c, offset(a, p * a_col), offsets, row)
                p += 1
            following = b  # which is there already
        store_tile_rows(c, out, out_row, vectors)

    return multiply


def make_block(vectors):
    """One block of k for all tiles of a task in one panel: `rows` x (vectors * lanes) of C."""
    full, copied, packing = make_tile(vectors), make_tile(vectors, True), make_packing_tile(vectors)
    half, few = make_edge_tile(HALF, vectors), make_edge_tile(FEW, vectors)

    @device
    def block(
        op, run, step, a, a_tile, a_row, a_col, b, b_row, source, source_row, later, k, partial, i, j, rows, cols,
        first, last,
    ):  # fmt: skip
        # a: strides a_row and a_col within the rows of a tile, a_tile from tile to tile
        # source: where B is packed from, by the first tile, or null; each tile fetches `later` rows of the next panel
        # partial: where the tiles wait for the next block of k; one place is enough for all if this is the only one
        width = vectors * lanes(a)
        ahead = AHEAD if b_row == width else op.ahead
        output = as_forward(op.epilogue, op)
        c, c_row = output.c, output.c_row
        plain = op.plain and last and cols == width
        r = 0
        while r < rows:
            at = offset(a, r // MR * a_tile + r % MR * a_row)
            tile = partial
            if not (first and last):
                tile = offset(partial, r * width)
            left = rows - r
            packs = r == 0 and not is_null(source)
            # (A copy of A is in tiles of MR rows.)
            whole = left >= MR and (packs or op.copy or not are_halves(left))
            written = plain and whole
            out, out_row = tile, width
            if written:
                out, out_row = offset(c, (i + r) * c_row + j), c_row
            if packs:
                height = MR
                following = offset(source, width)
                packing(
                    at, a_row, a_col, source, source_row, op.ahead, k, tile, first, out, out_row, following, later, b
                )
            elif whole:
                height = MR
                to, to_row = offset(tile, MR * width), width
                if last:
                    to, to_row = offset(c, (i + r) * c_row + j), c_row
                following = offset(source, r // MR * later * source_row + width)
                if op.copy:
                    copied(at, a_row, a_col, b, b_row, ahead, k, tile, first, out, out_row,
                           following, source_row, later, to, to_row)  # fmt: skip
                else:
                    full(at, a_row, a_col, b, b_row, ahead, k, tile, first, out, out_row,
                         following, source_row, later, to, to_row)  # fmt: skip
            elif left > FEW:
                height = min(left, HALF)
                half(at, row_offsets_within(a_row, HALF, height), a_col, b, b_row, ahead, k, tile, first)
            else:
                height = left
                few(at, row_offsets_within(a_row, FEW, left), a_col, b, b_row, ahead, k, tile, first)
            if last and not written:
                call_epilogue(op.epilogue, run, step, tile, width, i + r, j, height, cols)
            r += height

    return block


block_wide = make_block(NV)
block_narrow = make_block(1)


@device
def add_rows(op, b, b_row, out, width):
    """The sums of `width` columns of B, one vector of them or two, which lie side by side in memory."""
    w, k = lanes(b), op.k
    right = offset(b, width - w)
    first, second = splat(b, 0), splat(b, 0)
    p = 0
    if k >= SUMS:
        firsts = splat(load_block(b, b_row, SUMS, 1), 0)
        seconds = firsts
        while p + SUMS <= k:
            firsts = firsts + load_block(offset(b, p * b_row), b_row, SUMS, 1)
            if width > w:
                seconds = seconds + load_block(offset(right, p * b_row), b_row, SUMS, 1)
            p += SUMS
        first, second = sum_vectors(firsts), sum_vectors(seconds)
    while p < k:
        first, second = first + load(b, p * b_row), second + load(right, p * b_row)
        p += 1
    store(out, 0, first)
    if width > w:
        store(out, w, second)


@device
def sum_rows(op, run, step, b, b_row, tile, j, width):
    """The sums of `width` columns of B, which give C's columns from j on, and the epilogue for them.

    These columns are read next, so this is how they come to the first-level cache.
    """
    add_rows(op, b, b_row, tile, width)
    call_epilogue(op.sums, run, step, tile, width, 0, j, 1, width)


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


@device
def copy_block(a, a_row, a_col, rows, k, out):
    """Copy ``a[:rows, :k]`` to `out` in tiles, each k x MR without gaps."""
    w = lanes(a)
    for r in range(0, rows, MR):
        height = min(MR, rows - r)
        to = offset(out, r * k)
        if a_col == 1:
            # Turned in registers.  Whole vectors are written, so each reaches into what is written after it.
            for p in range(0, k, w):
                for q in range((height - 1) // w * w, -1, -w):
                    source, target = offset(a, (r + q) * a_row + p), offset(to, p * MR + q)
                    transpose_corner(source, a_row, min(w, height - q), min(w, k - p), target, MR)
        else:
            for p in range(k):
                source, target = offset(a, p * a_col + r * a_row), offset(to, p * MR)
                if a_row == 1:
                    prefetch(source, COPY_AHEAD * a_col)
                    for v in range(0, height, w):
                        count = min(w, height - v)
                        store_first(target, v, count, load_first(source, v, count))
                else:
                    for q in range(height):
                        target[q] = source[q * a_row]


@kernel(GEMM)
def gemm(op, run, step, thread):
    w = lanes(op.a)
    nr = NV * w
    columns = op.panels * nr
    low, high = 0, op.m
    if op.by_rows:
        low, high = share(op.m, thread, run.threads)
    tasks_of_column = (high - low + op.rows - 1) // op.rows
    tasks = (op.n + columns - 1) // columns * tasks_of_column
    owner, task, last = first_task(op, tasks, thread, run.threads)
    packed = offset(op.scratch, worker(run, thread) * op.scratch_stride)
    partials = offset(packed, max(op.kept * columns, op.kc * nr))
    copied = offset(partials, op.partial * columns)
    ready = packed_columns(run)
    while 0 <= task < last:
        left = task // tasks_of_column * columns
        right = min(left + columns, op.n)
        top = low + task % tasks_of_column * op.rows
        bottom = min(top + op.rows, high)
        for p in range(0, max(op.k, 1), op.kc):
            k = min(op.kc, op.k - p)
            start, end = p == 0, p + k >= op.k
            b = offset(op.b, p * op.b_row)
            fresh = ready != left or op.kept < op.k
            for i in range(top, bottom, op.block):
                rows = min(op.block, bottom - i)
                a = offset(op.a, i * op.a_row + p * op.a_col)
                a_tile, a_row, a_col = MR * op.a_row, op.a_row, op.a_col
                if op.copy:
                    copy_block(a, a_row, a_col, rows, k, copied)
                    a, a_tile, a_row, a_col = copied, MR * k, 1, MR
                for j in range(left, right, nr):
                    cols = min(nr, right - j)
                    width = nr if cols > w else w
                    panel, b_row, source, later = offset(b, j * op.b_col), op.b_row, pointer_at(0, b), 0
                    if op.pack or cols < width:
                        to = packed
                        if op.kept:
                            to = offset(packed, (p * columns if op.kept >= op.k else 0) + (j - left) * k)
                        if fresh and op.b_col == 1 and cols == width and rows >= MR:
                            source = panel
                            if j + 2 * nr <= right:
                                later = (k + rows // MR - 1) // (rows // MR)
                        elif fresh:
                            pack_panel(panel, op.b_row, op.b_col, k, cols, width, to)
                        panel, b_row = to, width
                    partial = offset(partials, (j - left) * op.partial + (i - top) * width)
                    if op.sums and start and i == 0:
                        # From where B lies, and in place of this panel's tiles, which come later.
                        sum_rows(op, run, step, offset(b, j * op.b_col), op.b_row, partial, j, width)
                    if width == nr:
                        block_wide(op, run, step, a, a_tile, a_row, a_col, panel, b_row, source, op.b_row, later, k,
                                   partial, i, j, rows, cols, start, end)  # fmt: skip
                    else:
                        block_narrow(op, run, step, a, a_tile, a_row, a_col, panel, b_row, source, op.b_row, later, k,
                                     partial, i, j, rows, cols, start, end)  # fmt: skip
                fresh = False
        ready = left
        owner, task = next_task(op, tasks, thread, run.threads, owner, task)
    keep_packed_columns(run, ready)
