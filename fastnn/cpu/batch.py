"""A product for every matrix of a batch.

A record for each matrix would cost more than a small product, so one record is filled in anew for each.  Every thread
has its own, since it changes.
"""

from fastnn.cpu.jit import device, kernel
from fastnn.cpu.share import share
from fastnn.cpu.simd import call_kernel, integer, pointer_at, reference
from fastnn.records import BATCH, FORWARD, GEMM, RUN, SLOT

as_gemm, as_forward, as_run = reference(GEMM), reference(FORWARD), reference(RUN)


@device
def products(op, first, last, thread):
    """The products of matrices `first` to `last`, with the records of `thread`."""
    pair = op.pairs + 2 * SLOT * thread
    gemm, forward, run = as_gemm(pair, op), as_forward(pair + SLOT, op), as_run(op.run, op)
    gemm.epilogue = pair + SLOT
    gemm.scratch = pointer_at(integer(op.scratch) + thread * op.scratch_stride, op.scratch)
    for index in range(first, last):
        a, b, c, rest = op.a, op.b, op.c, index
        for axis in range(op.dims):
            at = rest
            if axis < op.dims - 1:  # a division costs as much as a row of a small product: none for a simple batch
                rest = at // op.axes[4 * axis]
                at -= rest * op.axes[4 * axis]
            a += at * op.axes[4 * axis + 1]
            b += at * op.axes[4 * axis + 2]
            c += at * op.axes[4 * axis + 3]
        gemm.a, gemm.b, forward.c = pointer_at(a, op.scratch), pointer_at(b, op.scratch), pointer_at(c, op.scratch)
        call_kernel(gemm, run, 0, 0)


@kernel(BATCH)
def batch(op, run, step, thread):
    first, last = share(op.count, thread, run.threads)
    products(op, first, last, thread)
