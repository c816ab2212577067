"""One kernel, now: what the NumPy-level functions run."""

import ctypes

import numpy as np

from fastnn.cpu import blocking, loader, team
from fastnn.cpu.executable import address, allocate
from fastnn.records import FORWARD, GEMM, RUN, SLOT, Record

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t)
TOGETHER = 2e7  # operations above which a team is worth waking (about 50 us, in which one core does 5e6 multiply-adds)

_functions: dict[tuple[str, str], tuple[int, ctypes._CFuncPtr]] = {}


def function(name: str, dtype: str) -> tuple[int, "ctypes._CFuncPtr"]:
    """Address and callable of a kernel."""
    key = (name, dtype)
    if key not in _functions:
        where = loader.address(name, dtype)
        _functions[key] = where, KERNEL(where)
    return _functions[key]


def run(name: str, dtype: str, record: Record, values: dict, *, work: float, threads: int, rate: float = 0.0) -> None:
    """Run one kernel on a record with these field values (arrays stand for their addresses)."""
    _, kernel = function(name, dtype)
    memory = bytearray(SLOT)
    record.pack_into(memory, 0, values)
    _call(kernel, memory, work, threads, rate)


def gemm(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, activation: str, alpha: float, threads: int
) -> None:
    """``out = activation(a @ b + bias)`` for matrices with any strides of whole elements."""
    dtype = out.dtype.name
    size = out.itemsize
    (m, k), n = a.shape, b.shape[1]
    work = 2.0 * m * n * k
    if work < TOGETHER:
        threads = 1
    _, kernel = function("gemm.gemm", dtype)
    epilogue, _ = function(f"activations.{activation}_forward", dtype)
    kc, rows = blocking.depth(dtype, k), blocking.task_rows(m)
    stride = blocking.scratch(dtype, kc, rows)
    scratch = allocate(stride * threads, dtype)
    memory = bytearray(2 * SLOT)
    GEMM.pack_into(
        memory,
        0,
        {
            "epilogue": _address(memory) + SLOT,
            "a": address(a),
            "b": address(b),
            "m": m,
            "n": n,
            "k": k,
            "a_row": a.strides[0] // size,
            "a_col": a.strides[1] // size,
            "b_row": b.strides[0] // size,
            "b_col": b.strides[1] // size,
            "pack": int(b.strides[1] != size or m > 4 * blocking.MR),
            "kc": kc,
            "rows": rows,
            "scratch": address(scratch),
            "scratch_stride": stride,
        },
    )
    FORWARD.pack_into(
        memory,
        1,
        {
            "kernel": epilogue,
            "c": address(out),
            "c_row": out.strides[0] // size,
            "c_col": out.strides[1] // size,
            "bias": 0 if bias is None else address(bias),
            "alpha": alpha,
        },
    )
    _call(kernel, memory, work, threads, 0.0)


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _call(kernel: "ctypes._CFuncPtr", memory: bytearray, work: float, threads: int, rate: float) -> None:
    threads = threads if work >= TOGETHER else 1
    rates = np.array([rate])
    run_memory = bytearray(SLOT)
    RUN.pack_into(run_memory, 0, {"threads": threads, "rate": address(rates)})
    op, shared = _address(memory), _address(run_memory)
    if threads == 1:
        kernel(op, shared, 0, 0)
        return
    with team.borrow(threads) as crew:
        assert crew is not None
        crew.run(lambda thread: kernel(op, shared, 0, thread), lambda: None, None)
