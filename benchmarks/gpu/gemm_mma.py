"""The product on tensor cores in tf32 with `mma.sync`, which every GPU since Ampere has.

Three ways to give float32 to tensor cores, which take 10 bits of fraction: rounded, cut off (no instruction at all),
and split into two numbers each, whose three largest products together carry about 21 bits.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda
from numba.cuda import types

from benchmarks.gpu import products, ptx
from benchmarks.gpu.compile import POINTER, Kernel
from benchmarks.gpu.measure import Report

int32, uint32, int64, float32 = types.int32, types.uint32, types.int64, types.float32
THREADS = 256
MC = NC = 128  # a block's tile of c; a warp's is 64 x 32: 4 x 4 products of 16 x 8 x 8
KC = 32
STAGES = 3  # of shared memory: one is read while two are under way
LDA = KC + 4  # a lane reads a[lane / 4, lane % 4] and b[lane % 4, lane / 4]: these strides put 32 lanes into 32 banks
LDB = NC + 8
A_SIZE, B_SIZE = MC * LDA, KC * LDB
SHARED = 4 * STAGES * (A_SIZE + B_SIZE)
B_BEGIN = STAGES * A_SIZE


def make(convert: Callable[..., int], split: bool) -> Callable[..., None]:
    """The kernel whose operands go through `convert`; `split` adds the products of what that leaves over."""

    def tgemm(a, b, c, n, k):
        # a is (m, k), b (k, n), c (m, n), in C order; m and n are multiples of 128, k of 32.  Block (x, y): tile y, x.
        shared = ptx.pointer(cuda.shared.array(0, float32, alignment=16))
        sums = cuda.local.array(64, float32)
        left, left_rest = cuda.local.array(16, uint32), cuda.local.array(16, uint32)
        right, right_rest = cuda.local.array(8, uint32), cuda.local.array(8, uint32)
        for e in range(64):
            sums[e] = float32(0)
        thread = int32(cuda.threadIdx.x)
        lane, warp = thread & 31, thread >> 5
        group, place = lane >> 2, lane & 3
        warp_row, warp_column = (warp & 1) * 64, (warp >> 1) * 32
        first_row, first_column = cuda.blockIdx.y * MC, cuda.blockIdx.x * NC
        a_row, a_k = thread >> 3, (thread & 7) * 4
        b_k, b_column = thread >> 5, (thread & 31) * 4
        read, write = int32(0), int32(0)
        for step in range(1 - STAGES, k // KC):
            if step >= 0:
                ptx.wait_all_but_one()  # this step's copies have come, the next step's may be under way
                cuda.syncthreads()
            if step + STAGES - 1 < k // KC:
                begin = (step + STAGES - 1) * KC
                for e in range(4):
                    row = a_row + 32 * e
                    ptx.copy_async16(
                        shared, write * A_SIZE + row * LDA + a_k, a, int64(first_row + row) * k + begin + a_k
                    )
                for e in range(4):
                    row = b_k + 8 * e
                    ptx.copy_async16(
                        shared,
                        B_BEGIN + write * B_SIZE + row * LDB + b_column,
                        b,
                        int64(begin + row) * n + first_column + b_column,
                    )
                write = write + int32(1) if write < STAGES - 1 else int32(0)
            ptx.commit_copies()  # an empty group where nothing is left to copy: the count of groups stays right
            if step >= 0:
                at_a = read * A_SIZE + (warp_row + group) * LDA + place
                at_b = B_BEGIN + read * B_SIZE + place * LDB + warp_column + group
                for depth in range(KC // 8):
                    for i in range(4):
                        for e in range(4):  # rows group, group + 8; columns place, place + 4
                            x = shared[at_a + depth * 8 + (i * 16 + e % 2 * 8) * LDA + e // 2 * 4]
                            left[4 * i + e] = convert(x)
                            if split:
                                left_rest[4 * i + e] = convert(x - ptx.bits_float(left[4 * i + e]))
                    for j in range(4):
                        for e in range(2):
                            x = shared[at_b + (depth * 8 + e * 4) * LDB + j * 8]
                            right[2 * j + e] = convert(x)
                            if split:
                                right_rest[2 * j + e] = convert(x - ptx.bits_float(right[2 * j + e]))
                    for i in range(4):
                        for j in range(4):
                            o, p, q = 16 * i + 4 * j, 4 * i, 2 * j
                            if split:  # small numbers first
                                sums[o], sums[o + 1], sums[o + 2], sums[o + 3] = ptx.mma_tf32(
                                    sums[o], sums[o + 1], sums[o + 2], sums[o + 3],
                                    left_rest[p], left_rest[p + 1], left_rest[p + 2], left_rest[p + 3],
                                    right[q], right[q + 1],
                                )  # fmt: skip
                                sums[o], sums[o + 1], sums[o + 2], sums[o + 3] = ptx.mma_tf32(
                                    sums[o], sums[o + 1], sums[o + 2], sums[o + 3],
                                    left[p], left[p + 1], left[p + 2], left[p + 3],
                                    right_rest[q], right_rest[q + 1],
                                )  # fmt: skip
                            sums[o], sums[o + 1], sums[o + 2], sums[o + 3] = ptx.mma_tf32(
                                sums[o], sums[o + 1], sums[o + 2], sums[o + 3],
                                left[p], left[p + 1], left[p + 2], left[p + 3],
                                right[q], right[q + 1],
                            )  # fmt: skip
                read = read + int32(1) if read < STAGES - 1 else int32(0)
        for i in range(4):
            for j in range(4):
                o = 16 * i + 4 * j
                at = int64(first_row + warp_row + 16 * i + group) * n + first_column + warp_column + 8 * j + 2 * place
                c[at], c[at + 1] = sums[o], sums[o + 1]
                c[at + 8 * n], c[at + 8 * n + 1] = sums[o + 2], sums[o + 3]

    return tgemm


def _kernel(name: str, convert: Callable[..., int], split: bool, blocks: int, instructions: tuple[str, ...]) -> Kernel:
    return Kernel(
        name,
        make(convert, split),
        (POINTER, POINTER, POINTER, int32, int32),
        threads=THREADS,
        blocks_per_multiprocessor=blocks,
        dynamic=SHARED,
        expected=("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "cp.async.cg.shared.global", *instructions),
    )


KERNELS = [
    _kernel("tf32 rounded", ptx.round_tf32, False, 2, ("cvt.rna.tf32.f32",)),
    _kernel("tf32 cut off", ptx.float_bits, False, 2, ()),
    _kernel("tf32 split, three products", ptx.round_tf32, True, 1, ("cvt.rna.tf32.f32",)),
]


def measure(report: Report) -> None:
    """Report them beside the library in tf32 and in float32."""
    contestants = {
        kernel.name: lambda kernel=kernel: products.Contestant(
            kernel, "tf32", lambda n: (n // NC, n // MC, 1), products.float_arguments
        )
        for kernel in KERNELS
    }
    products.compare(report, contestants, ["float32", "tf32"])
