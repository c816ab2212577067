"""One kernel, now: what the NumPy-level functions run.

Small calls are all overhead, so each thread keeps its records and scratch for reuse.
"""

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np

from fastnn.cpu import blocking, loader, team
from fastnn.cpu.memory import TRUSTED, address, allocate
from fastnn.records import DIRECT, FORWARD, GEMM, RUN, SLOT, Record

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
# Small products keep the interpreter's lock: they take less time than giving it away and getting it back may.
ENTRY = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, *[ctypes.c_ssize_t] * 4)
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
        self.products: dict[tuple, Direct] = {}
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
    _call(function(name, dtype)[1], memory, threads if work >= TOGETHER else 1)


def gemm(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, activation: str, alpha: float, threads: int
) -> None:
    """``out = activation(a @ b + bias)`` for matrices with any strides of whole elements."""
    threads = threads if 2.0 * a.size * b.shape[1] >= TOGETHER else 1
    kernel, _scratch = lay_out(_memory, a, b, out, bias, activation, alpha, threads)
    _call(kernel, _memory, threads)


def lay_out(
    memory: _Memory,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None,
    activation: str,
    alpha: float,
    threads: int,
) -> tuple[Callable, np.ndarray]:
    """Write the records of a product to `memory`; returns its kernel, and the scratch that must live until it ran."""
    dtype, size = out.dtype.name, out.itemsize
    (m, k), n = a.shape, b.shape[1]
    a_row, a_col, b_row, b_col, c_row, c_col = (s // size for s in (*a.strides, *b.strides, *out.strides))
    cut = blocking.blocks(m, n, k, dtype)
    stride = blocking.scratch(dtype, **cut)
    scratch = allocate(stride * threads, dtype)
    epilogue = function(f"activations.{activation}_forward", dtype)[0]
    values = {"a": address(a), "b": address(b), "m": m, "n": n, "k": k, "epilogue": memory.op + SLOT, **cut}
    values |= {"a_row": a_row, "a_col": a_col, "b_row": b_row, "b_col": b_col, "pack": blocking.pack(m, b_col)}
    values |= {"scratch": address(scratch), "scratch_stride": stride}
    GEMM.pack_into(memory.records, 0, values)
    values = {"kernel": epilogue, "c": address(out), "c_row": c_row, "c_col": c_col, "alpha": alpha}
    values["bias"] = 0 if bias is None else address(bias)
    FORWARD.pack_into(memory.records, 1, values)
    return function(blocking.product(m, b_row, b_col, a_col), dtype)[1], scratch


class Direct:
    """The records of `fastnn.cpu.direct.product` for one dtype and activation."""

    def __init__(self, dtype: np.dtype, activation: str, alpha: float) -> None:
        name = dtype.name
        kc = blocking.depth(name, 1 << 20)
        stride = blocking.scratch(name, kc=kc, rows=8 * blocking.MR, panels=1)
        self._scratch = allocate(stride, name)
        self._records = bytearray(4 * SLOT)
        op = ctypes.addressof(ctypes.c_char.from_buffer(self._records))
        gemm, forward, run = (op + SLOT * i for i in (1, 2, 3))
        kernels = {
            field: function(f"{kernel}", name)[0]
            for field, kernel in (("tiled", "gemm.gemm"), ("rows", "gemv.gemv_rows"), ("columns", "gemv.gemv_columns"))
        }
        limits = {"most": int(TOGETHER / 2) if TRUSTED else 0, "kc": kc}
        links = {"descr": id(dtype), "size": dtype.itemsize, "gemm": gemm, "forward": forward, "run": run}
        DIRECT.pack_into(self._records, 0, {**links, **kernels, **limits})
        scratch = {"scratch": address(self._scratch), "scratch_stride": stride, "panels": 1, "epilogue": forward}
        GEMM.pack_into(self._records, 1, scratch)
        epilogue = function(f"activations.{activation}_forward", name)[0]
        FORWARD.pack_into(self._records, 2, {"kernel": epilogue, "alpha": alpha})
        RUN.pack_into(self._records, 3, {"threads": 1})
        self.call = functools.partial(ENTRY(loader.address("direct.product", name)), op)


def direct(dtype: np.dtype, activation: str = "linear", alpha: float = 0.0) -> Callable[[int, int, int, int], int]:
    """``f(id(a), id(b), id(out), id(bias) or 0)``, which computes a small product and returns 0, or declines."""
    key = (dtype, activation, alpha)
    found = _memory.products.get(key)
    if found is None:
        found = _memory.products[key] = Direct(*key)
    return found.call


def _call(kernel: Callable, memory: _Memory, threads: int) -> None:
    memory.set_threads(threads)
    op, run = memory.op, memory.run
    if threads == 1:
        kernel(op, run, 0, 0)
        return
    with team.borrow(threads) as crew:
        assert crew is not None
        crew.run(lambda thread: kernel(op, run, 0, thread), lambda: None, None)
