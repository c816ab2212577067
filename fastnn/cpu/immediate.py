"""One kernel, now: what the NumPy-level functions run where `fastnn.cpu.calls` declines.

Each thread keeps its records and scratch for reuse.
"""

import ctypes
import functools
import math
import threading
from collections.abc import Callable

import numpy as np

from fastnn.cpu import blocking, crowd, loader
from fastnn.cpu.memory import address, allocate
from fastnn.records import BATCH, FORWARD, GEMM, RUN, SLOT, Record

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
TOGETHER = 1e7  # operations above which helpers are worth waking: 50 us of one core, in which they arrive
NAMES = {4: "float32", 8: "float64"}


@functools.cache
def function(name: str, dtype: str) -> tuple[int, Callable]:
    """Address and callable of a kernel."""
    where = loader.address(name, dtype)
    return where, KERNEL(where)


class _Memory(threading.local):
    """What one thread reuses from call to call."""

    def __init__(self) -> None:
        self.records = bytearray(2 * SLOT)
        self.op = ctypes.addressof(ctypes.c_char.from_buffer(self.records))
        self.rate = np.zeros(1)
        self._run = bytearray(SLOT)
        self.run = ctypes.addressof(ctypes.c_char.from_buffer(self._run))
        RUN.pack_into(self._run, 0, {"threads": 1, "rate": address(self.rate)})
        self._scratch = allocate(0, "float64")

    def scratch(self, size: int) -> int:
        """Address of at least `size` bytes, kept from call to call (fresh memory is a page fault every 4 KiB)."""
        if self._scratch.nbytes < size:
            self._scratch = allocate(-(-size // 8), "float64")
        return address(self._scratch)


MEMORY = _Memory()


def run(
    name: str, dtype: np.dtype, record: Record, values: dict, *, work: float, threads: int, rate: float = 0.0
) -> None:
    """Run one kernel on a record with these field values (arrays stand for their addresses)."""
    memory = MEMORY
    where, kernel = function(name, NAMES[dtype.itemsize])
    values["kernel"] = where
    record.pack_into(memory.records, 0, values)
    memory.rate[0] = rate
    _call(kernel, memory, work, threads)


def gemm(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, activation: str, alpha: float, threads: int
) -> None:
    """``out = activation(a @ b + bias)`` for matrices with any strides of whole elements."""
    if b.shape[1] == 1 and bias is None:  # a row times a matrix has kernels of its own: 18 us become 4 at 256 x 256
        a, b, out = b.T, a.T, out.T
    kernel = lay_out(MEMORY, a, b, out, bias, activation, alpha)
    _call(kernel, MEMORY, 2.0 * a.size * b.shape[1], threads)


def lay_out(
    memory: _Memory,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None,
    activation: str,
    alpha: float,
) -> Callable:
    """Write the records of a product to `memory`; returns its kernel."""
    size = out.itemsize
    dtype = NAMES[size]
    (m, k), n = a.shape, b.shape[1]
    a_row, a_col, b_row, b_col, c_row, c_col = (s // size for s in (*a.strides, *b.strides, *out.strides))
    cut = blocking.blocks(m, n, k, dtype, a_col)
    stride = blocking.scratch(dtype, **cut)
    where, kernel = function(blocking.product(m, b_row, b_col, a_col), dtype)
    epilogue = function(f"activations.{activation}_forward", dtype)[0]
    values = {"a": address(a), "b": address(b), "m": m, "n": n, "k": k, "epilogue": memory.op + SLOT, **cut}
    values["kernel"] = where
    values |= {"a_row": a_row, "a_col": a_col, "b_row": b_row, "b_col": b_col, "pack": blocking.pack(m, b_col)}
    values |= {"scratch": memory.scratch(stride * blocking.SHARES * size), "scratch_stride": stride}
    GEMM.pack_into(memory.records, 0, values)
    values = {"kernel": epilogue, "c": address(out), "c_row": c_row, "c_col": c_col, "alpha": alpha}
    values["bias"] = 0 if bias is None else address(bias)
    FORWARD.pack_into(memory.records, 1, values)
    return kernel


def batch(a: np.ndarray, b: np.ndarray, out: np.ndarray, threads: int) -> None:
    """``out = a @ b`` for stacks of matrices of the same leading shape, which threads share matrix by matrix."""
    if b.shape[-1] == 1:
        a, b, out = b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2)
    memory = MEMORY
    lead = out.shape[:-2]
    first = (0,) * len(lead)
    lay_out(memory, a[first], b[first], out[first], None, "linear", 0.0)
    product = np.frombuffer(memory.records, GEMM.dtype, 1)[0]
    scratch, stride = int(product["scratch"]), int(product["scratch_stride"]) * out.itemsize
    (m, k), n = a.shape[-2:], b.shape[-1]
    if m * n * k <= blocking.SMALL and b.strides[-1] == out.strides[-1] == out.itemsize:
        product["kernel"] = function("small.plain", NAMES[out.itemsize])[0]
    pairs = memory.records * blocking.SHARES
    axes = np.array([lead, a.strides[:-2], b.strides[:-2], out.strides[:-2]], np.int64).T[::-1].copy()
    where, kernel = function("batch.batch", NAMES[out.itemsize])
    values = {"kernel": where, "a": address(a), "b": address(b), "c": address(out)}
    values |= {"count": math.prod(lead), "axes": address(axes), "dims": len(lead), "run": memory.run}
    values |= {"pairs": ctypes.addressof(ctypes.c_char.from_buffer(pairs))}
    values |= {"scratch": scratch, "scratch_stride": stride}
    BATCH.pack_into(memory.records, 0, values)
    _call(kernel, memory, 2.0 * out.size * a.shape[-1], threads)


def _call(kernel: Callable, memory: _Memory, work: float, threads: int) -> None:
    if threads > 1 and work >= TOGETHER and crowd.get().run(memory.op, address(memory.rate), threads):
        return
    kernel(memory.op, memory.run, 0, 0)
