"""A whole epoch of a network with one hidden layer in one launch.

Every block owns some hidden units: their weights stay in its shared memory for the whole epoch, and the gradient of
these weights needs nothing of another block.  All blocks read all images of a batch, as bytes, through the permutation.
What they exchange is the logits: a block's units give a part of each, and the sum over blocks takes a barrier of all.

There are two ways to sum.  "atomic" adds to one array of logits, in an order that nobody knows, and every block
computes the whole softmax; one barrier a step.  "ordered" lets every block store its part, and one block for each row
add them in a fixed order and compute the row's softmax: the same bits in every run, for a second barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import cuda
from numba.cuda import types

from benchmarks.gpu import ptx
from benchmarks.gpu.compile import AMPERE, HOPPER, POINTER, Kernel

int32, uint32, int64, float32 = types.int32, types.uint32, types.int64, types.float32
BYTES, INTEGERS = types.CPointer(types.uint8), types.CPointer(types.int32)
PIECE = 16  # pixels of one load
WARP = 32
DECAY_1, DECAY_2 = 0.9, 0.999  # of Adam
SLOTS = 3  # arrays of logits: one is summed, one was read a step ago, one is cleared
AMPERE_SHARED = 128 * 1024  # of 163 KiB for a block, so much for images; the weights take up to 48
SHARERS = 16  # threads that add the parts of one logit


@dataclass(frozen=True)
class Shape:
    """What a kernel is made for.

    Attributes
    ----------
    batch : int
        Rows of a step; a multiple of a warp that divides the threads.
    units : int
        Hidden units of a block.
    optimizer : str
        "sgd" or "adam".
    reduction : str
        "atomic" or "ordered".
    pixels, classes, threads : int
        Inputs (a multiple of 16), outputs and threads of a block.
    """

    batch: int
    units: int
    optimizer: str
    reduction: str
    pixels: int = 784
    classes: int = 10
    threads: int = 256

    @property
    def dynamic(self) -> int:
        """Bytes of shared memory for two batches of images."""
        return 2 * self.batch * self.pixels

    @property
    def name(self) -> str:
        """For people."""
        return f"batch {self.batch}, {self.units} units a block, {self.optimizer}, {self.reduction}"


def make(shape: Shape) -> Callable[..., None]:
    """The kernel for a shape."""
    batch, units, pixels, classes, threads = shape.batch, shape.units, shape.pixels, shape.classes, shape.threads
    adam, ordered = shape.optimizer == "adam", shape.reduction == "ordered"
    pieces, words = pixels // PIECE, pixels // 4
    sharers = threads // batch  # threads that share a row's forward pass
    image_words = batch * words  # of one batch
    logits, weights, outer = batch * classes, pixels * units, units * classes
    moments, outer_moments = (weights, outer) if adam else (1, 1)
    parts = sharers * batch * units
    hidden_values = batch * units
    small = outer + classes + units  # gradients that one warp computes while the others do those of the first layer
    share = SHARERS * classes
    totals, accumulators = 2 * units, 4 * units
    assert threads % batch == 0, f"{threads} threads, expected a multiple of the batch ({batch})"
    assert words + WARP <= threads, f"{threads} threads for {words} words of pixels, expected {WARP} more"
    assert pixels % PIECE == 0, f"{pixels} pixels, expected a multiple of {PIECE}"
    assert share <= threads, f"{threads} threads, expected {share} to add the parts of a row's logits"

    def epoch(images, labels, order, schedule, p, m, v, exchange, counter, losses, steps, hidden):
        # images: (n, pixels) bytes; order: steps * batch rows; schedule: rate and epsilon of each step.
        # p, m, v: kernel (pixels, hidden), bias (hidden), kernel (hidden, classes), bias (classes), without gaps.
        # exchange: zeros; "atomic": SLOTS x logits; "ordered": logits of each block, then the gradient of the logits.
        # counter: zero.  losses: one sum for each block and thread.
        x = ptx.pointer(cuda.shared.array(0, uint32, alignment=16))
        w = ptx.pointer(cuda.shared.array(weights, float32, alignment=16))
        w_m = ptx.pointer(cuda.shared.array(moments, float32))
        w_v = ptx.pointer(cuda.shared.array(moments, float32))
        o = ptx.pointer(cuda.shared.array(outer, float32))
        o_m = ptx.pointer(cuda.shared.array(outer_moments, float32))
        o_v = ptx.pointer(cuda.shared.array(outer_moments, float32))
        b = ptx.pointer(cuda.shared.array(units, float32))
        b_m = ptx.pointer(cuda.shared.array(units, float32))
        b_v = ptx.pointer(cuda.shared.array(units, float32))
        c = ptx.pointer(cuda.shared.array(classes, float32))
        c_m = ptx.pointer(cuda.shared.array(classes, float32))
        c_v = ptx.pointer(cuda.shared.array(classes, float32))
        part = ptx.pointer(cuda.shared.array(parts, float32))
        h = ptx.pointer(cuda.shared.array(hidden_values, float32))
        dh = ptx.pointer(cuda.shared.array(hidden_values, float32))
        dz = ptx.pointer(cuda.shared.array(logits, float32))
        added = ptx.pointer(cuda.shared.array(share, float32))
        total, g = cuda.local.array(totals, float32), cuda.local.array(accumulators, float32)
        four = cuda.local.array(4, uint32)
        thread, block, blocks = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x), int32(cuda.gridDim.x)
        first = block * units
        # Where each layer's numbers begin.
        at_b = pixels * hidden
        at_o = at_b + hidden + first * classes
        at_c = at_b + hidden + hidden * classes
        for i in range(thread, weights, threads):
            at = i // units * hidden + first + i % units
            w[i] = p[at]
            if adam:
                w_m[i], w_v[i] = m[at], v[at]
        for i in range(thread, outer, threads):
            o[i] = p[at_o + i]
            if adam:
                o_m[i], o_v[i] = m[at_o + i], v[at_o + i]
        for i in range(thread, units, threads):
            b[i], b_m[i], b_v[i] = p[at_b + first + i], m[at_b + first + i], v[at_b + first + i]
        for i in range(thread, classes, threads):
            c[i], c_m[i], c_v[i] = p[at_c + i], m[at_c + i], v[at_c + i]
        loss = float32(0)
        waits = int32(0)
        row, sharer = thread % batch, thread // batch
        for i in range(thread, batch * pieces, threads):
            source = int64(order[i // pieces]) * pixels + i % pieces * PIECE
            ptx.copy_async16(x, i * 4, images, source)
        ptx.commit_copies()
        for step in range(steps):
            now, later = step % 2 * image_words, (step + 1) % 2 * image_words
            ptx.wait_all_copies()
            cuda.syncthreads()  # the batch is here; nothing of the last step is read any more
            if step + 1 < steps:
                for i in range(thread, batch * pieces, threads):
                    source = int64(order[(step + 1) * batch + i // pieces]) * pixels + i % pieces * PIECE
                    ptx.copy_async16(x, later + i * 4, images, source)
            ptx.commit_copies()
            # h = relu(x w / 255 + b).  Neighbouring lanes read neighbouring rows: an odd number of pieces (49) apart,
            # which puts eight of them into all banks.  All lanes of a warp read the same weights.
            for u in range(2 * units):  # two sums for each unit: an addition waits for the last one
                total[u] = float32(0)
            for piece in range(sharer, pieces, sharers):
                four[0], four[1], four[2], four[3] = ptx.load4(x, now + row * words + piece * 4)
                at = piece * (PIECE * units)
                for q in range(4):
                    e0, e1, e2, e3 = ptx.floats_of_bytes(four[q])
                    for u in range(units):
                        total[u] += e0 * w[at + 4 * q * units + u]
                        total[units + u] += e1 * w[at + (4 * q + 1) * units + u]
                        total[u] += e2 * w[at + (4 * q + 2) * units + u]
                        total[units + u] += e3 * w[at + (4 * q + 3) * units + u]
            for u in range(units):
                part[(sharer * batch + row) * units + u] = total[u] + total[units + u]
            cuda.syncthreads()
            for i in range(thread, hidden_values, threads):
                z = part[i]
                for other in range(1, sharers):
                    z += part[other * hidden_values + i]
                h[i] = max(z * float32(1 / 255) + b[i % units], float32(0))
            cuda.syncthreads()
            # This block's part of the logits, and their sum over blocks.
            slot = step % SLOTS * logits
            if ordered:
                slot = block * logits
            for i in range(thread, logits, threads):
                z = float32(0)
                for u in range(units):
                    z += h[i // classes * units + u] * o[u * classes + i % classes]
                if ordered:
                    exchange[slot + i] = z
                else:
                    ptx.add_float(exchange, slot + i, z)
            waits += int32(1)
            cuda.syncthreads()
            if thread == 0:
                ptx.add_release(counter, 0, int32(1))
                while ptx.load_acquire(counter, 0) < waits * blocks:
                    pass
            cuda.syncthreads()
            # dz = (softmax(logits) - one hot) / batch.
            if ordered:
                for r in range(block, batch, blocks):
                    if thread < share:
                        z = float32(0)
                        for other in range(thread // classes, blocks, SHARERS):
                            z += ptx.load_past_l1(exchange, other * logits + r * classes + thread % classes)
                        added[thread] = z
                    cuda.syncthreads()
                    if thread < classes:
                        z = c[thread]
                        for e in range(SHARERS):
                            z += added[e * classes + thread]
                        dz[thread] = z
                    cuda.syncthreads()
                    if thread == 0:
                        top, under = dz[0], float32(0)
                        for k in range(1, classes):
                            top = max(top, dz[k])
                        for k in range(classes):
                            under += math.exp(dz[k] - top)
                        label = int32(labels[order[step * batch + r]])
                        loss += math.log(under) + top - dz[label]
                        for k in range(classes):
                            q = math.exp(dz[k] - top) / under
                            q -= float32(1) if k == label else float32(0)
                            exchange[blocks * logits + r * classes + k] = q * float32(1 / batch)
                    cuda.syncthreads()
                waits += int32(1)
                if thread == 0:
                    ptx.add_release(counter, 0, int32(1))
                    while ptx.load_acquire(counter, 0) < waits * blocks:
                        pass
                cuda.syncthreads()
                for i in range(thread, logits, threads):
                    dz[i] = ptx.load_past_l1(exchange, blocks * logits + i)
            else:
                # Every block has passed this step's barrier, so none reads the logits of the step before: they are
                # cleared for the step after the next.
                clear = (step + 2) % SLOTS * logits
                for i in range(block * threads + thread, logits, blocks * threads):
                    exchange[clear + i] = float32(0)
                for i in range(thread, logits, threads):
                    dz[i] = ptx.load_past_l1(exchange, slot + i) + c[i % classes]
                cuda.syncthreads()
                if thread < batch:
                    at = thread * classes
                    top, under = dz[at], float32(0)
                    for k in range(1, classes):
                        top = max(top, dz[at + k])
                    label = int32(labels[order[step * batch + thread]])
                    chosen = dz[at + label]
                    for k in range(classes):
                        e = math.exp(dz[at + k] - top)
                        dz[at + k] = e
                        under += e
                    if block == 0:
                        loss += math.log(under) + top - chosen
                    for k in range(classes):
                        q = dz[at + k] / under
                        q -= float32(1) if k == label else float32(0)
                        dz[at + k] = q * float32(1 / batch)
            cuda.syncthreads()
            for i in range(thread, hidden_values, threads):
                z = float32(0)
                for k in range(classes):
                    z += dz[i // units * classes + k] * o[i % units * classes + k]
                dh[i] = z if h[i] > float32(0) else float32(0)
            cuda.syncthreads()
            # Gradients and updates: four pixels of the first layer for each thread, the rest in the last warp.
            rate, epsilon = schedule[2 * step], schedule[2 * step + 1]
            if thread < words:
                for e in range(accumulators):
                    g[e] = float32(0)
                for r in range(batch):
                    e0, e1, e2, e3 = ptx.floats_of_bytes(x[now + r * words + thread])
                    for u in range(units):
                        d = dh[r * units + u]
                        g[u] += e0 * d
                        g[units + u] += e1 * d
                        g[2 * units + u] += e2 * d
                        g[3 * units + u] += e3 * d
                for e in range(accumulators):
                    i, d = thread * accumulators + e, g[e] * float32(1 / 255)
                    if adam:
                        w_m[i] += float32(1 - DECAY_1) * (d - w_m[i])
                        w_v[i] += float32(1 - DECAY_2) * (d * d - w_v[i])
                        w[i] -= rate * w_m[i] / (math.sqrt(w_v[i]) + epsilon)
                    else:
                        w[i] -= rate * d
            elif thread >= threads - WARP:
                for i in range(thread - (threads - WARP), small, WARP):
                    d = float32(0)
                    if i < outer:
                        for r in range(batch):
                            d += h[r * units + i // classes] * dz[r * classes + i % classes]
                        if adam:
                            o_m[i] += float32(1 - DECAY_1) * (d - o_m[i])
                            o_v[i] += float32(1 - DECAY_2) * (d * d - o_v[i])
                            o[i] -= rate * o_m[i] / (math.sqrt(o_v[i]) + epsilon)
                        else:
                            o[i] -= rate * d
                    elif i < outer + classes:
                        k = i - outer
                        for r in range(batch):
                            d += dz[r * classes + k]
                        if adam:
                            c_m[k] += float32(1 - DECAY_1) * (d - c_m[k])
                            c_v[k] += float32(1 - DECAY_2) * (d * d - c_v[k])
                            c[k] -= rate * c_m[k] / (math.sqrt(c_v[k]) + epsilon)
                        else:
                            c[k] -= rate * d
                    else:
                        u = i - outer - classes
                        for r in range(batch):
                            d += dh[r * units + u]
                        if adam:
                            b_m[u] += float32(1 - DECAY_1) * (d - b_m[u])
                            b_v[u] += float32(1 - DECAY_2) * (d * d - b_v[u])
                            b[u] -= rate * b_m[u] / (math.sqrt(b_v[u]) + epsilon)
                        else:
                            b[u] -= rate * d
        cuda.syncthreads()
        losses[block * threads + thread] = loss
        for i in range(thread, weights, threads):
            at = i // units * hidden + first + i % units
            p[at] = w[i]
            if adam:
                m[at], v[at] = w_m[i], w_v[i]
        for i in range(thread, outer, threads):
            p[at_o + i] = o[i]
            if adam:
                m[at_o + i], v[at_o + i] = o_m[i], o_v[i]
        for i in range(thread, units, threads):
            p[at_b + first + i], m[at_b + first + i], v[at_b + first + i] = b[i], b_m[i], b_v[i]
        if block == 0:  # all have the same
            for i in range(thread, classes, threads):
                p[at_c + i], m[at_c + i], v[at_c + i] = c[i], c_m[i], c_v[i]

    return epoch


ARGUMENTS: tuple[Any, ...] = (BYTES, BYTES, INTEGERS, *[POINTER] * 5, INTEGERS, POINTER, int32, int32)
SHAPES = [
    *[Shape(batch, 2, optimizer, "atomic") for batch in (64, 128) for optimizer in ("sgd", "adam")],
    *[Shape(batch, 2, "adam", "ordered") for batch in (64, 128)],
    Shape(64, 4, "adam", "atomic"),
]


def kernel(shape: Shape) -> Kernel:
    """The kernel for a shape, to compile."""
    both = ("red.release.gpu", "ld.acquire.gpu", "cp.async.cg.shared.global", "prmt.b32", "ld.shared.v4.u32")
    add = "st.global.f32" if shape.reduction == "ordered" else "red.relaxed.gpu.global.add.f32"
    return Kernel(
        f"epoch, {shape.name}",
        make(shape),
        ARGUMENTS,
        threads=shape.threads,
        dynamic=shape.dynamic,
        least=AMPERE if shape.dynamic <= AMPERE_SHARED else HOPPER,
        expected=(*both, add),
    )


KERNELS = [kernel(shape) for shape in SHAPES]
