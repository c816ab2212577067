"""The product in float32 without tensor cores: what strict float32 can reach."""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from benchmarks.gpu import products, ptx
from benchmarks.gpu.compile import POINTER, Kernel
from benchmarks.gpu.measure import Report

int32, float32 = types.int32, types.float32
THREADS = 256
MC = NC = 128  # a block's tile of c; a warp's is 32 x 64, a thread's 8 x 8 in four pieces
KC = 16
LDA = MC + 4  # a lies transposed; the 4 put the 32 lanes that store a column into 32 banks
LDB = NC
A_SIZE, B_SIZE = 2 * KC * LDA, 2 * KC * LDB  # two of each: one is read while the other is filled
PIECE_A, PIECE_B = 16, 32  # between a thread's first 4 rows (columns) and its last 4

product = ptx.tile_product(KC, LDA, LDB, PIECE_A, PIECE_B)
store_tile = ptx.store_tile(PIECE_A, PIECE_B)


def sgemm(a, b, c, n, k):
    # a is (m, k), b (k, n), c (m, n), in C order; m and n are multiples of 128, k of 16.  Block (x, y) makes tile y, x.
    left = cuda.shared.array(A_SIZE, float32, alignment=16)
    right = cuda.shared.array(B_SIZE, float32, alignment=16)
    thread = int32(cuda.threadIdx.x)
    lane, warp = thread & 31, thread >> 5
    # Eight lanes read neighbouring columns of b and one row of a: 128 bytes and 16.
    row = (warp >> 1) * 32 + (lane >> 3) * 4
    column = (warp & 1) * 64 + (lane & 7) * 4
    # What each thread brings: 2 x 4 floats of a row of a, 4 floats of two rows of b.
    a_row, a_k = thread >> 1, (thread & 1) * 4
    b_k, b_column = thread >> 5, (thread & 31) * 4
    i = (cuda.blockIdx.y * MC + a_row) * k + a_k
    j = b_k * n + cuda.blockIdx.x * NC + b_column
    to_a, to_b = a_k * LDA + a_row, b_k * LDB + b_column
    tile = ptx.zero_tile()
    old = new = int32(0)
    for step in range(-KC, k, KC):
        more = step + KC < k
        if more:  # fetched now, stored once the product has hidden the wait
            a0, a1 = ptx.load4(a, i), ptx.load4(a, i + 8)
            b0, b1 = ptx.load4(b, j), ptx.load4(b, j + 8 * n)
            i += KC
            j += KC * n
        if step >= 0:
            tile = product(tile, left, old * (KC * LDA) + row, right, old * (KC * LDB) + column)
        if more:
            at = new * (KC * LDA) + to_a
            left[at], left[at + LDA], left[at + 2 * LDA], left[at + 3 * LDA] = a0
            at += 8 * LDA
            left[at], left[at + LDA], left[at + 2 * LDA], left[at + 3 * LDA] = a1
            at = new * (KC * LDB) + to_b
            ptx.store4(right, at, b0)
            ptx.store4(right, at + 8 * LDB, b1)
            cuda.syncthreads()
            old = new
            new ^= int32(1)
    store_tile(c, (cuda.blockIdx.y * MC + row) * n + cuda.blockIdx.x * NC + column, n, tile)


KERNELS = [
    Kernel(
        "sgemm",
        sgemm,
        (POINTER, POINTER, POINTER, int32, int32),
        threads=THREADS,
        blocks_per_multiprocessor=2,
        expected=("fma.rn", "ld.shared.v4.f32", "st.global.v4.f32"),
    )
]


def measure(report: Report) -> None:
    """Report it beside the library in float32."""
    contestants = {
        kernel.name: lambda kernel=kernel: products.Contestant(
            kernel, "float32", lambda n: (n // NC, n // MC, 1), products.float_arguments
        )
        for kernel in KERNELS
    }
    products.compare(report, contestants, ["float32"])
