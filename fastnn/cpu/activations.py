"""test"""
from fastnn.cpu.jit import device, epilogue
from fastnn.cpu.simd import *
from fastnn.records import FORWARD

@epilogue(FORWARD)
def linear_forward(op, run, step, tile, tile_row, i, j, rows, cols):
    w = lanes(tile)
    for r in range(rows):
        for c in range(0, cols, w):
            v = load(tile, r * tile_row + c)
            if not is_null(op.bias):
                v = v + load(op.bias, j + c)
            if c + w <= cols:
                store(op.c, (i + r) * op.c_row + j + c, v)
            else:
                store_first(op.c, (i + r) * op.c_row + j + c, cols - c, v)
