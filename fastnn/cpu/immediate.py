"""One kernel, now: what the NumPy-level functions run.

Small calls are all overhead, so each thread keeps its records and scratch for reuse.
"""

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np

from fastnn.cpu import blocking, crowd, loader
from fastnn.cpu.memory import TRUSTED, address, allocate
from fastnn.records import DIRECT, FORWARD, GEMM, RUN, SLOT, Record

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
# Small products keep the interpreter's lock: they take less time than giving it away and getting it back may.
ENTRY = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, *[ctypes.c_ssize_t] * 4)
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
        self.owners: list[Direct] = []
        self.products: dict[object, Callable[[int, int, int, int], int]] = {}
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
    if bias is None and b.shape[1] <= blocking.MR and a.strides[0] == a.itemsize and 8 * b.shape[1] < a.shape[0]:
        # Few columns would leave most of a vector empty, and the columns of A are contiguous: C' = B' A'.
        a, b, out = b.T, a.T, out.T
    kernel, scratch = lay_out(MEMORY, a, b, out, bias, activation, alpha, threads)
    _call(kernel, MEMORY, 2.0 * a.size * b.shape[1], threads, scratch)


def lay_out(
    memory: _Memory,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None,
    activation: str,
    alpha: float,
    threads: int,
) -> tuple[Callable, int]:
    """Write the records of a product to `memory`; returns its kernel and the bytes of scratch a thread needs."""
    size = out.itemsize
    dtype = NAMES[size]
    (m, k), n = a.shape, b.shape[1]
    a_row, a_col, b_row, b_col, c_row, c_col = (s // size for s in (*a.strides, *b.strides, *out.strides))
    cut = blocking.blocks(m, n, k, dtype, a_row, a_col, b_row, b_col, threads)
    stride = blocking.scratch(dtype, cut)
    where, kernel = function(blocking.product(m, b_row, b_col, a_col), dtype)
    epilogue = function(f"activations.{activation}_forward", dtype)[0]
    values = {"a": address(a), "b": address(b), "m": m, "n": n, "k": k, "epilogue": memory.op + SLOT, **cut}
    values["kernel"] = where
    values |= {"a_row": a_row, "a_col": a_col, "b_row": b_row, "b_col": b_col}
    values |= {"scratch": memory.scratch(stride * size), "scratch_stride": stride}
    GEMM.pack_into(memory.records, 0, values)
    values = {"kernel": epilogue, "c": address(out), "c_row": c_row, "c_col": c_col, "alpha": alpha}
    values["bias"] = 0 if bias is None else address(bias)
    FORWARD.pack_into(memory.records, 1, values)
    return kernel, stride * size


class Direct:
    """The records of `fastnn.cpu.direct.product` for one dtype and activation."""

    def __init__(self, dtype: np.dtype, activation: str, alpha: float) -> None:
        name = dtype.name
        kc = blocking.depth(name, 1 << 20)
        stride = blocking.columns(name) * (kc + 8 * blocking.MR)
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
        scratch = {"scratch": address(self._scratch), "panels": 1, "epilogue": forward}
        GEMM.pack_into(self._records, 1, scratch)
        epilogue = function(f"activations.{activation}_forward", name)[0]
        FORWARD.pack_into(self._records, 2, {"kernel": epilogue, "alpha": alpha})
        RUN.pack_into(self._records, 3, {"threads": 1})
        self.call = functools.partial(ENTRY(loader.address("direct.product", name)), op)


def direct(dtype: np.dtype, activation: str = "linear", alpha: float = 0.0) -> Callable[[int, int, int, int], int]:
    """``f(id(a), id(b), id(out), id(bias) or 0)``, which computes a small product and returns 0, or declines."""
    key = dtype if activation == "linear" else (dtype, activation, alpha)
    found = MEMORY.products.get(key)
    if found is None:
        made = Direct(dtype, activation, alpha)
        MEMORY.owners.append(made)  # the call works in its memory
        found = MEMORY.products[key] = made.call
    return found


def _call(kernel: Callable, memory: _Memory, work: float, threads: int, scratch: int = 0) -> None:
    if threads > 1 and work >= TOGETHER and crowd.get().run(memory.op, address(memory.rate), threads, scratch):
        return
    kernel(memory.op, memory.run, 0, 0)
