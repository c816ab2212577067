"""One kernel, now: what the NumPy-level functions run.

Small calls are all overhead, so each thread keeps its records, its scratch and its run for reuse.
"""

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np

from fastnn.cpu import blocking, loader, team
from fastnn.cpu.executable import address, allocate
from fastnn.records import FORWARD, GEMM, RUN, SLOT, Record

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
TOGETHER = 2e7  # operations above which a team is worth waking (about 50 us, in which one core does 5e6 multiply-adds)


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
        self._scratch = allocate(0, "float64")
        self._scratch_at = 0
        self.threads = 0
        self.set_threads(1)

    def set_threads(self, threads: int) -> None:
        """How many threads the next call has."""
        if threads != self.threads:
            RUN.pack_into(self._run, 0, {"threads": threads, "rate": address(self.rate)})
            self.threads = threads

    def scratch(self, size: int) -> int:
        """Address of at least `size` bytes."""
        if self._scratch.nbytes < size:
            self._scratch = allocate(-(-size // 8), "float64")
            self._scratch_at = address(self._scratch)
        return self._scratch_at


_memory = _Memory()


def run(name: str, dtype: str, record: Record, values: dict, *, work: float, threads: int, rate: float = 0.0) -> None:
    """Run one kernel on a record with these field values (arrays stand for their addresses)."""
    memory = _memory
    record.pack_into(memory.records, 0, values)
    memory.rate[0] = rate
    _call(function(name, dtype)[1], memory, threads if work >= TOGETHER else 1)


def gemm(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, activation: str, alpha: float, threads: int
) -> None:
    """``out = activation(a @ b + bias)`` for matrices with any strides of whole elements."""
    memory = _memory
    dtype, size = out.dtype.name, out.itemsize
    (m, k), n = a.shape, b.shape[1]
    a_row, a_col = a.strides[0] // size, a.strides[1] // size
    b_row, b_col = b.strides[0] // size, b.strides[1] // size
    if 2.0 * m * n * k < TOGETHER:
        threads = 1
    cut = blocking.blocks(m, n, k, dtype)
    stride = blocking.scratch(dtype, **cut)
    GEMM.pack_into(
        memory.records,
        0,
        {
            "epilogue": memory.op + SLOT,
            "a": address(a),
            "b": address(b),
            "m": m,
            "n": n,
            "k": k,
            "a_row": a_row,
            "a_col": a_col,
            "b_row": b_row,
            "b_col": b_col,
            "pack": blocking.pack(m, b_col),
            **cut,
            "scratch": memory.scratch(stride * threads * size),
            "scratch_stride": stride,
        },
    )
    FORWARD.pack_into(
        memory.records,
        1,
        {
            "kernel": function(f"activations.{activation}_forward", dtype)[0],
            "c": address(out),
            "c_row": out.strides[0] // size,
            "c_col": out.strides[1] // size,
            "bias": 0 if bias is None else address(bias),
            "alpha": alpha,
        },
    )
    _call(function(blocking.product(m, b_row, b_col, a_col), dtype)[1], memory, threads)


def _call(kernel: Callable, memory: _Memory, threads: int) -> None:
    memory.set_threads(threads)
    op, run = memory.op, memory.run
    if threads == 1:
        kernel(op, run, 0, 0)
        return
    with team.borrow(threads) as crew:
        assert crew is not None
        crew.run(lambda thread: kernel(op, run, 0, thread), lambda: None, None)
