"""Dropout, with masks from a counter-based generator.

Whether a unit is dropped is a pure function of (seed, layer, training step, row, column): Philox4x32-10 (Salmon,
Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).  So the backward pass recomputes the
mask instead of storing it, and the mask does not depend on threads, padding or device.
"""

import numpy as np

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import scalar_like
from fastnn.records import DROPOUT

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@device
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random 32-bit words (in uint64s) from a counter of four words and a key of two."""
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & LOW, (p0 >> SHIFT) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


@kernel(DROPOUT)
def dropout(op, run, step, thread):
    """``y = x / keep`` where the unit is kept, else 0; x and y may be the same.  Used forward and backward."""
    first, last = share(op.rows, thread, run.threads)
    k0, k1 = np.uint64(run.seed) & LOW, np.uint64(run.seed) >> SHIFT
    threshold = np.uint64(op.threshold)
    factor = scalar_like(op.x, 1) / op.keep
    zero = scalar_like(op.x, 0)
    for r in range(first, last):
        for q in range(0, op.cols, 4):
            words = philox4x32(
                np.uint64(q // 4), np.uint64(r), np.uint64(run.origin + step) & LOW, np.uint64(op.layer), k0, k1
            )
            for c in range(q, min(q + 4, op.cols)):
                word = words[c - q]
                at = r * op.ld + c
                op.y[at] = op.x[at] * factor if word < threshold else zero
