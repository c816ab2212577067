"""One kernel, now: what the NumPy-level functions run where `fastnn.cpu.calls` declines.

Each thread keeps its records and scratch for reuse.
"""

import ctypes
import functools
import math
import threading
import time
from collections.abc import Callable

import numpy as np

from fastnn.cpu import blocking, crowd, loader
from fastnn.cpu.memory import address, allocate
from fastnn.records import BATCH, FORWARD, GEMM, RUN, SLOT, Record

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
TOGETHER = 1e7  # operations above which helpers are worth waking: 50 us of one core, in which they arrive
# Operations, some microseconds of one core, from which helpers join a call that closely follows another one, as in a
# step of a network that is written by hand: they are awake still, or will be for the next one.  Adam over 200,000
# parameters takes 55 us then instead of 140; 118 if they were woken for each call.
SHARED = 1.6e6
CLOSE = 100_000  # nanoseconds: less than helpers linger (fastnn.cpu.engine.LINGER)
ENDED = allocate(8, "int64")  # thread and time of the end of the last such call; compiled code writes them, too
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
        self.words = memoryview(self.records).cast("q")
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
_ended = memoryview(ENDED)


def run(
    name: str, dtype: np.dtype, record: Record, values: dict, *, work: float, threads: int, rate: float = 0.0
) -> None:
    """Run one kernel on a record with these field values (arrays stand for their addresses)."""
    memory = MEMORY
    where, kernel = function(name, NAMES[dtype.itemsize])
    values["kernel"] = where
    record.pack_into(memory.records, 0, values)
    memory.rate[0] = rate
    joined = work >= TOGETHER or (work >= SHARED and _follows())
    _call(kernel, memory, threads if joined else 1)
    if work >= SHARED:
        _end()


def _follows() -> bool:
    """Whether the calling thread's last call that helpers may join ended just now."""
    return _ended[0] == threading.get_ident() and time.monotonic_ns() - _ended[1] < CLOSE


def _end() -> None:
    _ended[0], _ended[1] = threading.get_ident(), time.monotonic_ns()


def gemm(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, activation: str, alpha: float, threads: int
) -> None:
    """``out = activation(a @ b + bias)`` for matrices with any strides of whole elements."""
    if turned(a, b, bias):
        a, b, out = b.T, a.T, out.T
    kernel, scratch = lay_out(MEMORY, a, b, out, bias, activation, alpha, threads)
    large = blocking.is_large(len(a), b.shape[1], len(b), out.itemsize)
    _call(kernel, MEMORY, threads if large else 1, scratch)
    if large:
        _end()


def turned(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None) -> bool:
    """Whether a product is faster as C' = B' A'."""
    if bias is not None:
        return False
    if b.shape[1] == 1:  # a row times a matrix has kernels of its own: 18 us become 4 at 256 x 256
        return True
    # Few columns would leave most of a vector empty, and the columns of A are contiguous.
    return a.strides[0] == a.itemsize and 8 * b.shape[1] < a.shape[0] and b.shape[1] <= blocking.MR


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
    strides = (*a.strides, *b.strides, *out.strides)
    records, kernel, scratch = layout(a.shape, b.shape[1], strides, out.itemsize, activation, alpha, threads)
    memory.records[:] = records
    words = memory.words
    words[EPILOGUE] = memory.op + SLOT
    words[A], words[B], words[C] = address(a), address(b), address(out)
    words[BIAS] = 0 if bias is None else address(bias)
    words[PLAIN] = bias is None and activation == "linear" and out.strides[1] == out.itemsize
    words[SCRATCH] = memory.scratch(scratch)
    return kernel, scratch


EPILOGUE, A, B, SCRATCH, PLAIN = (GEMM.offsets[field] // 8 for field in ("epilogue", "a", "b", "scratch", "plain"))
C, BIAS = ((SLOT + FORWARD.offsets[field]) // 8 for field in ("c", "bias"))


@functools.lru_cache(1024)
def layout(
    shape: tuple[int, int], n: int, strides: tuple[int, ...], size: int, activation: str, alpha: float, threads: int
) -> tuple[bytes, Callable, int]:
    """The records of a product without its addresses, its kernel, and the bytes of scratch a thread needs."""
    (m, k), dtype = shape, NAMES[size]
    a_row, a_col, b_row, b_col, c_row, c_col = (s // size for s in strides)
    cut = blocking.blocks(m, n, k, dtype, a_row, a_col, b_row, b_col, threads)
    stride = blocking.scratch(dtype, cut)
    where, kernel = function(blocking.of_row(m, a_col, b_row, b_col) or "gemm.gemm", dtype)
    values = {"kernel": where, "m": m, "n": n, "k": k, **cut, "scratch_stride": stride}
    values |= {"a_row": a_row, "a_col": a_col, "b_row": b_row, "b_col": b_col}
    records = bytearray(2 * SLOT)
    GEMM.pack_into(records, 0, values)
    epilogue = function(f"activations.{activation}_forward", dtype)[0]
    FORWARD.pack_into(records, 1, {"kernel": epilogue, "c_row": c_row, "c_col": c_col, "alpha": alpha})
    return bytes(records), kernel, stride * size


def batch(a: np.ndarray, b: np.ndarray, out: np.ndarray, threads: int) -> None:
    """``out = a @ b`` for stacks of matrices of the same leading shape, which threads share matrix by matrix."""
    if b.shape[-1] == 1:
        a, b, out = b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2)
    memory = MEMORY
    lead = out.shape[:-2]
    (m, k), n = a.shape[-2:], b.shape[-1]
    first = (0,) * len(lead)
    _, stride = lay_out(memory, a[first], b[first], out[first], None, "linear", 0.0, 1)
    scratch = memory.scratch(stride * blocking.SHARES)
    product = np.frombuffer(memory.records, GEMM.dtype, 1)[0]
    contiguous = b.strides[-1] == out.strides[-1] == out.itemsize
    if contiguous and m * n * k <= (blocking.PLAIN if m > 1 else blocking.SMALL_ROW):
        product["kernel"] = function("small.plain", NAMES[out.itemsize])[0]
    pairs = memory.records * blocking.SHARES
    axes = np.array([lead, a.strides[:-2], b.strides[:-2], out.strides[:-2]], np.int64).T[::-1].copy()
    where, kernel = function("batch.batch", NAMES[out.itemsize])
    values = {"kernel": where, "a": address(a), "b": address(b), "c": address(out)}
    values |= {"count": math.prod(lead), "axes": address(axes), "dims": len(lead), "run": memory.run}
    values |= {"pairs": ctypes.addressof(ctypes.c_char.from_buffer(pairs))}
    values |= {"scratch": scratch, "scratch_stride": stride}
    BATCH.pack_into(memory.records, 0, values)
    _call(kernel, memory, threads if 2.0 * out.size * a.shape[-1] >= TOGETHER else 1)


def _call(kernel: Callable, memory: _Memory, threads: int, scratch: int = 0) -> None:
    if threads > 1 and crowd.get().run(memory.op, address(memory.rate), threads, scratch):
        return
    kernel(memory.op, memory.run, 0, 0)
