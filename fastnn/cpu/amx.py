"""Large products on the CPU's matrix unit (Intel's AMX): C = epilogue(A B) in float32.

The unit multiplies bfloat16, 8 significant bits, and adds float32: sixteen times as many multiply-adds a cycle as the
vector unit.  Three bfloat16 hold the 24 bits of a float32, a = a0 + a1 + a2, each at most 2^-8 of the one before.  Of
the nine products of parts the six largest are added,

    a b = a0 b0 + a0 b1 + a1 b0 + a1 b1 + a0 b2 + a2 b0,

so what a product lacks is 2^-24 of it or less, as much as a rounding, and there are fewer roundings of sums: all in all
half the error of a chain of multiply-adds; for sums of 32 products of numbers that differ by 2^24, 1.3 times it at the
most that was found (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype for
Higher-Precision Computations", ARITH 2019).  The bits are others than those of other kernels, so which products are
done here depends on nothing but the machine, the network and the batch.

The unit takes numbers, parts and products below 2^-126 for 0, so numbers, and products of two, below 2^-102 (2e-31)
lack their last bits.  What is infinite would become NaN, since it has no parts: elements of C that are not finite are
computed once more, by vectors.

A task is some rows and columns of C.  For each `kc` steps of k its part of A is split into blocks, which then stay in
the second-level cache, and of B one panel after the other, which stays in the first one, or all of them where they have
to be turned and lie on pages of their own; the sums of all blocks of C go on from where they were.  Every element of C
is one sum, in the order of k, of which each 32 steps are added up by the unit; so results do not depend on the number
of threads.
"""

from fastnn.cpu.blocking import CPU, NV, SIDE
from fastnn.cpu.gemm import HALF, LINE, make_edge_tile, pack_panel, prefetch_row
from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import first_task, next_task, share
from fastnn.cpu.simd import (
    add_products,
    call_epilogue,
    configure_tiles,
    hidden,
    is_null,
    lanes,
    load,
    load_first,
    load_pairs,
    load_sums,
    muladd,
    nonzero_lanes,
    offset,
    pointer_at,
    prefetch,
    reference,
    release_tiles,
    row_offsets_within,
    select,
    splat_pair,
    store,
    store_split,
    store_sums,
    transpose_block,
    zero_sums,
)
from fastnn.cpu.simd.amx import BLOCK, LINES, PAIRS, PRODUCTS, TILE
from fastnn.cpu.spmm import sum_panel
from fastnn.records import FORWARD, GEMM

STEPS = 2 * PAIRS  # of k, that a block holds
HAS_TILES = CPU.has_tiles
HALVED = SIDE * SIDE // 2  # elements of half a block of C
DEPTH = SIDE  # steps of k of a panel of B that is packed for vectors

as_forward = reference(FORWARD)
few_rows = make_edge_tile(HALF, NV)


# --- blocks of A and B ---


@device
def some(x, at, count):
    """The first `count` elements of a vector, zeros behind them."""
    return load(x, at) if count >= lanes(x) else load_first(x, at, count)


@device
def split_along(x, line, lines, steps, out):
    """A tile of each part, line after line, of lines whose steps of k are contiguous; `line`: from one to the next."""
    for i in range(LINES):
        for q in range(0, PAIRS, lanes(x)):
            at, count = i * line + q, steps - q if i < lines else 0
            store_split(some(x, at, count), some(x, at + PAIRS, count - PAIRS), offset(out, i * PAIRS + q), 2 * TILE)


@device
def split_across(x, step, lines, steps, out):
    """A tile of each part, pair after pair, of steps of k whose lines are contiguous; `step`: from one to the next."""
    for p in range(PAIRS):
        for q in range(0, LINES, lanes(x)):
            first, second = lines - q if p < steps else 0, lines - q if p + PAIRS < steps else 0
            at = p * step + q
            prefetch(x, at + SIDE)
            prefetch(x, at + PAIRS * step + SIDE)
            store_split(some(x, at, first), some(x, at + PAIRS * step, second), offset(out, p * LINES + q), 2 * TILE)


@device
def turn(tiles, out):
    """Transpose a tile of each part."""
    w = lanes(tiles)
    for part in range(0, BLOCK, 2 * TILE):
        for i in range(0, LINES, w):
            for j in range(0, PAIRS, w):
                transpose_block(offset(tiles, part + i * PAIRS + j), PAIRS, offset(out, part + j * LINES + i), LINES)


@device
def split(x, line, step, lines, k, across, turned, out):
    """All blocks of some lines, rows of A or columns of B, and k steps; those of the same lines lie together.

    `across`: lines are contiguous, else steps are.  `turned`: the scratch for tiles that have to be transposed, or 0.
    Lines and steps that are missing in the last block are 0.
    """
    panels, depth = (lines + SIDE - 1) // SIDE, (k + STEPS - 1) // STEPS
    for i in range(panels * depth):
        # In the order of memory.
        panel, block = (i % panels, i // panels) if across else (i // depth, i % depth)
        to, steps = offset(out, (panel * depth + block) * BLOCK), k - block * STEPS
        for half in range(2):
            first = panel * SIDE + half * LINES
            source, tiles = offset(x, first * line + block * STEPS * step), offset(to, half * TILE)
            here = tiles if is_null(turned) else turned
            if across:
                split_across(source, step, lines - first, steps, here)
            else:
                split_along(source, line, lines - first, steps, here)
            if not is_null(turned):
                turn(turned, tiles)


# --- the product of blocks ---


@device
def multiply_tiles(a, b, depth, c, first):
    """Add the product of `depth` blocks of A and of B to the block at `c`, or write it there.

    The next block of C, which lies behind it, is fetched meanwhile: 280 GFLOP/s instead of 270, with B' 261 and 242.
    """
    if first:
        zero_sums()
    else:
        load_sums(c, SIDE)
    for p in range(depth):
        add_products(offset(a, p * BLOCK), offset(b, p * BLOCK))
        for q in range(0, HALVED, LINE * lanes(c)):
            prefetch(c, SIDE * SIDE + p % 2 * HALVED + q)
    store_sums(c, SIDE)


@device
def multiply_vectors(a, b, depth, c, first):
    """The same by vectors, with the same roundings, for tests where there is no such unit: it is never chosen."""
    w = lanes(a)
    for i in range(SIDE):
        for j in range(0, SIDE, w):
            at = i * SIDE + j
            total = load_first(c, at, 0) if first else load(c, at)
            for p in range(hidden(depth)):  # LLVM would call memset where it knew that there are none
                for parts in PRODUCTS:
                    left = p * BLOCK + (parts[0] * 2 + i // LINES) * TILE + i % LINES * PAIRS
                    right = p * BLOCK + (parts[1] * 2 + j // LINES) * TILE + j % LINES
                    first_sum = second_sum = load_first(c, at, 0)
                    for pair in range(PAIRS):
                        x, y = splat_pair(a, left + pair), load_pairs(b, right + pair * LINES)
                        first_sum, second_sum = muladd(x[0], y[0], first_sum), muladd(x[1], y[1], second_sum)
                    total = total + (first_sum + second_sum)
            store(c, at, total)


multiply = multiply_tiles if HAS_TILES else multiply_vectors


@device
def are_finite(x, count):
    """Whether ``x[:count]``, whole vectors, is."""
    found = 0
    for q in range(0, count, lanes(x)):
        found |= nonzero_lanes(load(x, q) - load(x, q))
    return found == 0


@device
def multiply_again(op, top, rows, j, cols, packed, c):
    """Put what is not finite in the block at `c`, ``C[top : top + rows, j : j + cols]``, right: by vectors.

    All else stays as it is: which elements share a block depends on the number of threads.  `packed`: scratch for a
    panel of B and for sums.
    """
    w = lanes(op.a)
    width = NV * w
    panel, tile = packed, offset(packed, DEPTH * width)
    for q in range(0, cols, width):
        for p in range(0, op.k, DEPTH):
            depth = min(DEPTH, op.k - p)
            b = offset(op.b, p * op.b_row + (j + q) * op.b_col)
            pack_panel(b, op.b_row, op.b_col, depth, min(width, cols - q), width, panel)
            for i in range(0, rows, HALF):
                a = offset(op.a, (top + i) * op.a_row + p * op.a_col)
                offsets = row_offsets_within(op.a_row, HALF, min(HALF, rows - i))
                some_sums = offset(tile, i * width)
                few_rows(a, offsets, op.a_col, panel, width, 0, depth, some_sums, p == 0)
        for i in range(rows):
            for v in range(0, width, w):
                at = i * SIDE + q + v
                found = load(c, at)
                nothing = found - found  # but NaN where it is not finite
                store(c, at, select(nothing == nothing, found, load(tile, i * width + v)))


@device
def finish(op, run, step, i, rows, j, cols, scratch, c):
    """Hand a block whose sums are complete to the epilogue: `rows` rows from i on, `cols` columns from j on."""
    if not are_finite(c, SIDE * SIDE):
        multiply_again(op, i, rows, j, cols, scratch, c)
    call_epilogue(op.epilogue, run, step, c, SIDE, i, j, rows, cols)


@device
def some_blocks(op, run, step, top, rows, left, cols, sums, split_a, split_b, scratch):
    """The blocks of a task: `rows` rows of C from `top` on, `cols` columns from `left` on."""
    if op.sums and top == 0:
        sum_panel(op, run, step, scratch, left, cols, left + cols)
    nothing, output = pointer_at(0, scratch), as_forward(op.epilogue, op)
    for p in range(0, op.k, op.kc):
        k = min(op.kc, op.k - p)
        depth, first, last = (k + STEPS - 1) // STEPS, p == 0, p + k >= op.k
        a, b = offset(op.a, top * op.a_row + p * op.a_col), offset(op.b, p * op.b_row + left * op.b_col)
        across = op.a_col != 1
        split(a, op.a_row, op.a_col, rows, k, across, scratch if across else nothing, split_a)
        across = op.b_col == 1
        each = SIDE if across else cols  # columns that are split at a time
        c = sums
        for j in range(0, cols, SIDE):
            if j % each == 0:
                panel, turned = offset(b, j * op.b_col), nothing if across else scratch
                split(panel, op.b_col, op.b_row, min(each, cols - j), k, across, turned, split_b)
            there, wide = offset(split_b, j % each // SIDE * depth * BLOCK), min(SIDE, cols - j)
            for i in range(0, rows, SIDE):
                here, many = offset(split_a, i // SIDE * depth * BLOCK), min(SIDE, rows - i)
                if last:
                    for r in range(many):
                        prefetch_row(output.c, (top + i + r) * output.c_row + left + j, NV)
                multiply(here, there, depth, c, first)
                if last:
                    finish(op, run, step, top + i, many, left + j, wide, scratch, c)
                c = offset(c, SIDE * SIDE)


@kernel(GEMM, "float32")
def amx(op, run, step, thread):
    low, high, columns = 0, op.m, op.panels * SIDE
    if op.by_rows:
        low, high = share(op.m, thread, run.threads)
    tasks_of_column = (high - low + op.rows - 1) // op.rows
    tasks = (op.n + columns - 1) // columns * tasks_of_column
    owner, task, last = first_task(op, tasks, thread, run.threads)
    sums = offset(op.scratch, thread * op.scratch_stride)
    split_a = offset(sums, op.rows * columns)
    split_b = offset(split_a, op.rows // SIDE * (op.kc // STEPS) * BLOCK)
    scratch = offset(split_b, op.panels * (op.kc // STEPS) * BLOCK)
    if HAS_TILES:
        configure_tiles()
    while 0 <= task < last:
        left, top = task // tasks_of_column * columns, low + task % tasks_of_column * op.rows
        rows, cols = min(op.rows, high - top), min(columns, op.n - left)
        some_blocks(op, run, step, top, rows, left, cols, sums, split_a, split_b, scratch)
        owner, task = next_task(op, tasks, thread, run.threads, owner, task)
    if HAS_TILES:
        release_tiles()
