"""What a barrier between all blocks costs: cooperative groups' and one of two instructions."""

from __future__ import annotations

import ctypes

import numpy as np
from numba import cuda
from numba.cuda import types

from benchmarks.gpu import compile, driver, ptx
from benchmarks.gpu.compile import Kernel
from benchmarks.gpu.measure import AbsentError, Report

int32 = types.int32
INTEGERS = types.CPointer(int32)
THREADS = 256
BLOCKS = (8, 16, 32, 64, 132)
STEPS, QUICK_STEPS = 2000, 200


def by_group(slots, counter, wrong, steps, check):
    # Each block writes the step to its slot and, past the barrier, reads its neighbour's: two slots a block in turn, so
    # that a block one step ahead does not overwrite what is read.
    block, blocks, thread = cuda.blockIdx.x, cuda.gridDim.x, cuda.threadIdx.x
    grid = cuda.cg.this_grid()
    for step in range(steps):
        if check and thread == 0:
            slots[step % 2 * blocks + block] = int32(step + 1)
        grid.sync()
        if check and thread == 1 and slots[step % 2 * blocks + (block + 1) % blocks] != step + 1:
            ptx.add_release(wrong, 0, int32(1))


def by_counter(slots, counter, wrong, steps, check):
    # `counter` is zero at the launch.  Every block adds 1 at each step and waits until all have.
    block, blocks, thread = cuda.blockIdx.x, cuda.gridDim.x, cuda.threadIdx.x
    for step in range(steps):
        if check and thread == 0:
            slots[step % 2 * blocks + block] = int32(step + 1)
        cuda.syncthreads()
        if thread == 0:
            ptx.add_release(counter, 0, int32(1))
            while ptx.load_acquire(counter, 0) < (step + 1) * blocks:
                pass
        cuda.syncthreads()
        if check and thread == 1 and slots[step % 2 * blocks + (block + 1) % blocks] != step + 1:
            ptx.add_release(wrong, 0, int32(1))


ARGUMENTS = (INTEGERS, INTEGERS, INTEGERS, int32, int32)
KERNELS = [
    Kernel(
        "barrier of the grid group",
        by_group,
        ARGUMENTS,
        threads=THREADS,
        grid_group=True,
        expected=("cudaCGSynchronize",),
    ),
    Kernel(
        "barrier of a counter",
        by_counter,
        ARGUMENTS,
        threads=THREADS,
        expected=("red.release.gpu.global.add", "ld.acquire.gpu.global", "bar.sync"),
    ),
]


def measure(report: Report) -> None:
    """Report microseconds of each barrier for numbers of blocks up to one on every multiprocessor."""
    most = driver.attribute(driver.MULTIPROCESSORS)
    for kernel in KERNELS:
        code = compile.build(kernel, driver.capability())
        function = driver.Function(code.binary, code.entry)
        for blocks in sorted({*[e for e in BLOCKS if e <= most], most}):
            report.attempt(f"{kernel.name}, {blocks} blocks", _one, report, kernel, function, blocks)


def _one(report: Report, kernel: Kernel, function: driver.Function, blocks: int) -> None:
    fits = function.blocks_at_once(THREADS)
    if blocks > fits:
        raise AbsentError(f"{blocks} blocks cannot all run at once, {fits} can")
    steps = QUICK_STEPS if report.quick else STEPS
    stream = driver.Stream()
    slots, counter, wrong = (driver.Memory.zeros(4 * n) for n in (2 * blocks, 1, 1))

    def launch(check: int) -> None:
        arguments = [slots, counter, wrong, ctypes.c_int32(steps), ctypes.c_int32(check)]
        counter.clear()
        function.prepare((blocks, 1, 1), THREADS, arguments, stream, cooperative=True)()
        stream.synchronize()

    launch(check=1)
    errors = int(wrong.read((1,), np.int32)[0])
    arguments = [slots, counter, wrong, ctypes.c_int32(steps), ctypes.c_int32(0)]
    queue = function.prepare((blocks, 1, 1), THREADS, arguments, stream, cooperative=True)

    def once() -> float:
        counter.clear()
        return driver.elapsed(stream, queue)

    once()
    seconds = sorted(once() for _ in range(5))[2]
    report.add(f"{kernel.name}, {blocks} blocks", seconds / steps * 1e6, "us", errors, "stale reads")
