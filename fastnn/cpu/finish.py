"""Epilogues of a tile in registers: what `GEMM.finish` names, for kernels whose tiles are small.

To store a tile, call an epilogue and load it again takes as long as 12 steps of k.
"""

from fastnn.cpu.jit import device
from fastnn.cpu.simd import add_row, is_null, load_rows, load_tile, relu_tile, store_rows_at, times_relu_slope
from fastnn.records import RELU, RELU_SLOPE


def make_finish(vectors):
    """The end of a tile `vectors` vectors wide, whose rows in C are at `places`."""

    @device
    def finish(x, what, c, places, bias, y, more):
        # y, more: laid out as C
        if what == RELU_SLOPE:
            store_rows_at(times_relu_slope(x, load_rows(y, places, vectors)), c, places)
        else:
            if not is_null(more):
                x = add_row(x, load_rows(more, places, vectors))
            if not is_null(bias):
                x = add_row(x, load_tile(bias, 1, vectors))
            if what == RELU:
                x = relu_tile(x)
            store_rows_at(x, c, places)

    return finish
