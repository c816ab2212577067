"""What this machine can do at best: multiply-adds a second, and bytes copied a second.

180 GFLOP/s says little by itself; beside the ceiling measured in the same minute it says how much is left.

FMA peak.
    The register tile of the product, MR x NV sums that do not depend on each other, with both factors in registers
    too: no loads, no stores, nothing but multiply-adds and the end of the loop.

    Worked example, AVX-512, float32: two ports, 16 lanes, 2 operations: 64 a cycle, 194 GFLOP/s at 3.03 GHz.

Peak of the matrix unit.
    Blocks of float32 in the first-level cache, split already (`fastnn.cpu.amx`): six products of tiles for each.

Copy bandwidth.
    Arrays that no cache holds, counted as bytes read plus bytes written: the better of ordinary stores, for which the
    CPU fetches each line before it is overwritten, and of streaming stores, which save that.  Both prefetch what they
    read, since the CPU does not fetch ahead across pages.
"""

import ctypes
import functools
import time
from collections.abc import Callable

import numpy as np

from fastnn.cpu import immediate, target, team
from fastnn.cpu.amx import HAS_TILES
from fastnn.cpu.blocking import CPU, MR, NV, SIDE
from fastnn.cpu.jit import kernel
from fastnn.cpu.memory import address, allocate
from fastnn.cpu.share import share
from fastnn.cpu.simd import (
    add_products,
    configure_tiles,
    lanes,
    load,
    load_tile,
    offset,
    prefetch,
    rank1,
    release_tiles,
    settle,
    store,
    store_sums,
    store_tile,
    stream,
    zero_sums,
)
from fastnn.cpu.simd.amx import BLOCK as SPLIT_BLOCK
from fastnn.cpu.simd.amx import PAIRS
from fastnn.cpu.spans import AHEAD
from fastnn.records import MAP, RUN, SLOT

STEPS = 4_000_000  # updates of the tile in one run: 18 ms, hundreds of times as long as it takes to start a team
ARRAY = 256 << 20  # bytes of the arrays that are copied
COPIED = 4 << 20  # bytes that a run of one thread copies at least; a team, which takes longer to start, eight times it
BLOCK = 1024  # elements of a piece of a copy: whole pages
SAMPLES = 15
SAME = (0,) * MR  # where the rows of a column of A are that is one number


@kernel(MAP)
def multiply_adds(op, run, step, thread):
    # x: the factors, NV vectors; y: for each thread a tile of MR x NV vectors; n: updates of the tile
    tile = offset(op.y, thread * MR * NV * lanes(op.y))
    c = load_tile(tile, MR, NV)  # numbers that the compiler does not know, or it would compute equal sums only once
    row = load_tile(op.x, 1, NV)
    for _ in range(op.n):
        c = rank1(c, op.x, SAME, row)
    store_tile(c, tile)


@kernel(MAP, "float32")
def block_products(op, run, step, thread):
    # x: a block of A, which is one of B, too; y: for each thread a block of C; n: products
    if HAS_TILES:  # other CPUs have no code for what follows
        configure_tiles()
        zero_sums()
        for _ in range(op.n):
            add_products(op.x, op.x)
        store_sums(offset(op.y, thread * SIDE * SIDE), SIDE)
        release_tiles()


def make_copy(put):
    """``y[:n] = x[:n]`` for whole pages, `rows` times; `put` stores a vector."""

    @kernel(MAP)
    def copy(op, run, step, thread):
        first, last = share(op.n // BLOCK, thread, run.threads)
        for _ in range(op.rows):
            for i in range(first * BLOCK, last * BLOCK, lanes(op.x)):
                prefetch(op.x, i + AHEAD * lanes(op.x))
                put(op.y, i, load(op.x, i))
            settle()

    return copy


copy_stored, copy_streamed = make_copy(store), make_copy(stream)


def together(name: str, dtype: str, threads: int, **values: int | np.ndarray) -> Callable[[], None]:
    """A call of a kernel by `threads` threads at once; arrays among the record's values stand for their addresses."""
    where, function = immediate.function(f"ceilings.{name}", dtype)
    records = bytearray(2 * SLOT)
    fields = {field: address(v) if isinstance(v, np.ndarray) else v for field, v in values.items()}
    MAP.pack_into(records, 0, fields | {"kernel": where})
    RUN.pack_into(records, 1, {"threads": threads})
    return functools.partial(_enter, function, threads, records, values)


def _enter(function: Callable, threads: int, records: bytearray, _alive: object) -> None:
    op = ctypes.addressof(ctypes.c_char.from_buffer(records))
    with team.borrow(threads) as crew:
        if crew is None:
            function(op, op + SLOT, 0, 0)
        else:
            crew.run(lambda thread: function(op, op + SLOT, 0, thread), lambda: None, None)


def multiplier(dtype: str, threads: int, steps: int = STEPS) -> tuple[Callable[[], None], float]:
    """A call that does nothing but multiply-adds, and how many floating-point operations that is."""
    width = NV * CPU.lanes(dtype)
    factors, tiles = allocate(width, dtype), allocate(threads * MR * width, dtype)
    factors[:] = 0.5
    call = together("multiply_adds", dtype, threads, x=factors, y=tiles, n=steps)
    return call, 2.0 * MR * width * steps * threads


def copiers(threads: int, size: int = ARRAY) -> tuple[list[Callable[[], None]], float]:
    """Calls that copy an array of `size` bytes in the ways there are, and how many bytes each reads and writes.

    Small ones are copied so often that it takes much longer than to start what copies them.
    """
    count = -(-size // (4 * BLOCK)) * BLOCK or BLOCK
    least = COPIED if threads == 1 else 8 * COPIED
    times = -(-least // (4 * count))
    x, y = allocate(count, "float32"), allocate(count, "float32")
    x[:] = 1.0  # pages that were never written are all the same page of zeros
    y[:] = 0.0
    ways = ("copy_stored", "copy_streamed")
    return [together(way, "float32", threads, x=x, y=y, n=count, rows=times) for way in ways], 8.0 * count * times


def tile_peak(threads: int = 1, samples: int = SAMPLES) -> float:
    """Operations on float32 a second that `threads` matrix units do at best, six products of bfloat16 for each.

    0 where there is none that may be used.
    """
    if not target.may_use_tiles():
        return 0.0
    products = 2000 if threads == 1 else 20_000  # 0.3 ms, or 3 where a team has to start
    factors, sums = allocate(SPLIT_BLOCK, "float32"), allocate(threads * SIDE * SIDE, "float32")
    call = together("block_products", "float32", threads, x=factors, y=sums, n=products)
    return 4.0 * SIDE * SIDE * PAIRS * products * threads / fastest(call, samples)


def fma_peak(dtype: str, threads: int = 1, steps: int = STEPS, samples: int = SAMPLES) -> float:
    """Floating-point operations a second that `threads` cores do at best, a multiply-add being two."""
    call, work = multiplier(dtype, threads, steps)
    return work / fastest(call, samples)


def copy_bandwidth(threads: int = 1, size: int = ARRAY, samples: int = SAMPLES) -> float:
    """Bytes a second, read and written, that `threads` cores copy at best between arrays of `size` bytes."""
    calls, work = copiers(threads, size)
    return work / min(fastest(call, samples) for call in calls)


def fastest(call: Callable[[], None], samples: int = SAMPLES) -> float:
    """Seconds of the fastest of some calls."""
    call()
    best = float("inf")
    for _ in range(samples):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best
