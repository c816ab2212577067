"""The product in bf16 on Hopper: wgmma, fed by tensor copies from a warp of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda import types

from benchmarks.gpu import driver, hopper, products
from benchmarks.gpu.compile import HOPPER, Kernel
from benchmarks.gpu.measure import Report

int32, uint32, int64, uint64, uint8 = types.int32, types.uint32, types.int64, types.uint64, types.uint8
WORDS = types.CPointer(uint32)
THREADS = 384  # a warpgroup that copies, two that multiply
MC = 128  # rows of a block's tile of c: 64 for each warpgroup that multiplies
KC = 64  # 128 bytes of bf16: a row of the swizzle
DEPTH = 16  # of one instruction
GROUP = 16  # tiles below each other that run before the next column of tiles, so that L2 holds what they share
A_BYTES = 2 * MC * KC
ATOM = 1024  # bytes of eight swizzled rows


def stages(columns: int) -> int:
    """How many steps of operands shared memory holds."""
    return 4 if columns == 256 else 6


def shared_bytes(columns: int) -> int:
    """Shared memory for operands, two barriers a stage, and what is lost before the first multiple of an atom."""
    return ATOM + stages(columns) * (A_BYTES + 2 * columns * KC + 16)


def make(columns: int, transposed: bool) -> Callable[..., None]:
    """The kernel for tiles of 128 x `columns`; b is (n, k), or (k, n) if it is `transposed`."""
    nc, steps = columns, stages(columns)
    stage_bytes = A_BYTES + 2 * columns * KC
    box_bytes = 2 * 64 * KC  # of b if it is transposed: 64 columns, KC rows
    boxes = columns // 64
    add_product, zeros = hopper.bf16_product(columns, transposed)
    store = hopper.store_bf16(columns)
    describe_a = hopper.descriptor(leading=16, stride=1024)
    if transposed:  # from one instruction's depth to the next: two atoms of eight rows
        describe_b, advance_b = hopper.descriptor(leading=box_bytes, stride=1024), 2048 >> 4
    else:
        describe_b, advance_b = hopper.descriptor(leading=16, stride=1024), 2 * DEPTH >> 4
    advance_a = 2 * DEPTH >> 4

    def wgemm(a_map, b_map, c, n, k):
        # a is (m, k), c (m, n), in C order; m is a multiple of 128, n of the tile's columns, k of 64.  A block, a tile.
        # Atoms are put in their places here: nvJitLink 13.0 lets dynamic memory begin right behind static arrays,
        # whatever alignment it has, so that a box came to a misaligned address.
        room = cuda.shared.array(0, uint8)
        thread = int32(cuda.threadIdx.x)
        warpgroup = thread >> 7
        base = hopper.address(room, 0) + uint32(ATOM - 1) & uint32(-ATOM & 0xFFFFFFFF)
        full = base + uint32(steps * stage_bytes)
        empty = full + uint32(8 * steps)
        if thread == 0:
            for i in range(steps):
                hopper.barrier_init(full + uint32(8 * i), int32(1))
                hopper.barrier_init(empty + uint32(8 * i), int32(2))
            hopper.publish_barriers()
        cuda.syncthreads()
        # x counts tiles below each other, y tiles beside each other, z groups of rows: no division, whose call into a
        # library would make the assembler wait after every wgmma.
        row = int32(cuda.blockIdx.z * cuda.gridDim.x + cuda.blockIdx.x) * MC
        column = int32(cuda.blockIdx.y) * nc
        stage, parity = int32(0), int32(0)
        if warpgroup == 0:
            if thread == 0:
                hopper.acquire_map(a_map)
                hopper.acquire_map(b_map)
                for step in range(k // KC):
                    while hopper.barrier_passed(empty + uint32(8 * stage), parity ^ int32(1)) == 0:
                        pass
                    bar = full + uint32(8 * stage)
                    to = base + uint32(stage * stage_bytes)
                    hopper.barrier_expect(bar, int32(stage_bytes))
                    hopper.copy_box(to, a_map, int32(step * KC), int32(row), bar)
                    to += uint32(A_BYTES)
                    if transposed:
                        for i in range(boxes):
                            at = to + uint32(i * box_bytes)
                            hopper.copy_box(at, b_map, int32(column + 64 * i), int32(step * KC), bar)
                    else:
                        hopper.copy_box(to, b_map, int32(step * KC), int32(column), bar)
                    stage += int32(1)
                    if stage == steps:
                        stage, parity = int32(0), parity ^ int32(1)
        else:
            sums = zeros()
            before = int32(0)
            for step in range(k // KC):
                while hopper.barrier_passed(full + uint32(8 * stage), parity) == 0:
                    pass
                at = base + uint32(stage * stage_bytes)
                a = describe_a(at + uint32((warpgroup - 1) * (A_BYTES // 2)))
                b = describe_b(at + uint32(A_BYTES))
                hopper.begin_products()
                sums = add_product(sums, a, b)
                sums = add_product(sums, a + uint64(advance_a), b + uint64(advance_b))
                sums = add_product(sums, a + uint64(2 * advance_a), b + uint64(2 * advance_b))
                sums = add_product(sums, a + uint64(3 * advance_a), b + uint64(3 * advance_b))
                hopper.commit_products()
                hopper.wait_all_but_one()  # the step before has read its operands
                if step > 0 and thread & 127 == 0:
                    hopper.barrier_arrive(empty + uint32(8 * before))
                before = stage
                stage += int32(1)
                if stage == steps:
                    stage, parity = int32(0), parity ^ int32(1)
            hopper.wait_all_products()
            lane, warp = thread & 31, thread >> 5 & 3
            at = int64(row + (warpgroup - 1) * 64 + warp * 16 + (lane >> 2)) * n + column
            store(c, (at >> 1) + (lane & 3), n >> 1, sums)

    return wgemm


def _kernel(columns: int, transposed: bool) -> Kernel:
    layout = "b (in, out)" if transposed else "b (out, in)"
    return Kernel(
        f"bf16, tile 128 x {columns}, {layout}",
        make(columns, transposed),
        (uint64, uint64, WORDS, int32, int32),
        threads=THREADS,
        dynamic=shared_bytes(columns),
        only=HOPPER,
        expected=(
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16",
            "cp.async.bulk.tensor.2d",
            "mbarrier.try_wait",
            "cvt.rn.bf16x2.f32",
        ),
    )


TILES = [(columns, transposed) for transposed in (False, True) for columns in (128, 256)]
KERNELS = [_kernel(*tile) for tile in TILES]


def _contestant(kernel: Kernel, columns: int, transposed: bool) -> products.Contestant:
    def grid(n: int) -> driver.Size:
        height = min(GROUP, n // MC)
        return height, n // columns, n // MC // height

    def arguments(
        product: products.Product, a: driver.Memory, b: driver.Memory, c: driver.Memory
    ) -> list[Any]:  # the memory of the maps lives as long as the launch that holds these
        n = product.n
        box = (KC, 64) if transposed else (columns, KC)
        maps = [driver.tensor_map(a, n, n, MC, KC), driver.tensor_map(b, n, n, *box)]
        return [*maps, c, ctypes.c_int32(n), ctypes.c_int32(n)]

    return products.Contestant(kernel, "bf16", grid, arguments, transposed=not transposed)


def measure(report: Report) -> None:
    """Report them beside the library in bf16, those whose layout is the surer first: a crash ends the part."""
    contestants = {
        kernel.name: lambda kernel=kernel, tile=tile: _contestant(kernel, *tile)
        for kernel, tile in zip(KERNELS, TILES, strict=True)
    }
    products.compare(report, contestants, ["bf16"])
