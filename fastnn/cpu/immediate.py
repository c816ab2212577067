"""One kernel, now: what the NumPy-level functions run.

Small calls are all overhead, so each thread keeps its records and scratch for reuse.
"""

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np

from fastnn.cpu import blocking, loader, team
from fastnn.cpu.memory import address, allocate
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
        self.records = bytearray(SLOT)
        self.op = ctypes.addressof(ctypes.c_char.from_buffer(self.records))
        self.rate = np.zeros(1)
        self._run = bytearray(SLOT)
        self.run = ctypes.addressof(ctypes.c_char.from_buffer(self._run))
        self.products: dict[tuple, Product] = {}
        self.threads = 0
        self.set_threads(1)

    def set_threads(self, threads: int) -> None:
        """How many threads the next call has."""
        if threads != self.threads:
            RUN.pack_into(self._run, 0, {"threads": threads, "rate": address(self.rate)})
            self.threads = threads


_memory = _Memory()


def run(name: str, dtype: str, record: Record, values: dict, *, work: float, threads: int, rate: float = 0.0) -> None:
    """Run one kernel on a record with these field values (arrays stand for their addresses)."""
    memory = _memory
    record.pack_into(memory.records, 0, values)
    memory.rate[0] = rate
    _call(function(name, dtype)[1], memory, memory.op, threads if work >= TOGETHER else 1)


class Product:
    """The records of one product: all but the addresses of its operands, so that a repeated shape costs little."""

    def __init__(
        self,
        m: int,
        k: int,
        n: int,
        a: tuple,
        b: tuple,
        c: tuple,
        size: int,
        activation: str,
        alpha: float,
        threads: int,
    ) -> None:
        dtype = "float32" if size == 4 else "float64"
        a_row, a_col, b_row, b_col, c_row, c_col = (stride // size for stride in (*a, *b, *c))
        cut = blocking.blocks(m, n, k, dtype)
        stride = blocking.scratch(dtype, **cut)
        self.threads = threads if 2.0 * m * n * k >= TOGETHER else 1
        self.scratch = allocate(stride * self.threads, dtype)
        self.kernel = function(blocking.product(m, b_row, b_col, a_col), dtype)[1]
        self._records = bytearray(2 * SLOT)
        self.op = ctypes.addressof(ctypes.c_char.from_buffer(self._records))
        gemm = {"m": m, "n": n, "k": k, "a_row": a_row, "a_col": a_col, "b_row": b_row, "b_col": b_col, **cut}
        gemm |= {"pack": blocking.pack(m, b_col), "scratch": address(self.scratch), "scratch_stride": stride}
        GEMM.pack_into(self._records, 0, {"epilogue": self.op + SLOT, **gemm})
        epilogue = function(f"activations.{activation}_forward", dtype)[0]
        FORWARD.pack_into(self._records, 1, {"kernel": epilogue, "c_row": c_row, "c_col": c_col, "alpha": alpha})
        self._words = memoryview(self._records).cast("q")

    def bind(self, a: int, b: int, c: int, bias: int) -> None:
        """Set the addresses of the operands."""
        words = self._words
        words[A], words[B], words[C], words[BIAS] = a, b, c, bias


# Positions of the operands' fields, in words of the two records.
A, B = GEMM.offsets["a"] // 8, GEMM.offsets["b"] // 8
C, BIAS = (SLOT + FORWARD.offsets["c"]) // 8, (SLOT + FORWARD.offsets["bias"]) // 8
KEPT = 64  # products a thread keeps


def gemm(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, activation: str, alpha: float, threads: int
) -> None:
    """``out = activation(a @ b + bias)`` for matrices with any strides of whole elements."""
    memory = _memory
    (m, k), n = a.shape, b.shape[1]
    key = (m, k, n, a.strides, b.strides, out.strides, out.itemsize, activation, alpha, threads)
    product = memory.products.get(key)
    if product is None:
        if len(memory.products) >= KEPT:
            memory.products.clear()
        product = memory.products[key] = Product(*key)
    product.bind(address(a), address(b), address(out), 0 if bias is None else address(bias))
    _call(product.kernel, memory, product.op, product.threads)


def _call(kernel: Callable, memory: _Memory, op: int, threads: int) -> None:
    memory.set_threads(threads)
    run = memory.run
    if threads == 1:
        kernel(op, run, 0, 0)
        return
    with team.borrow(threads) as crew:
        assert crew is not None
        crew.run(lambda thread: kernel(op, run, 0, thread), lambda: None, None)
