"""The one place where Numba is told how to compile: flags and signatures.

A kernel is a plain Python function over records (`fastnn.records`), marked with `@kernel(RECORD)` or
`@epilogue(RECORD)`; what it calls is marked with `@device` and inlined.  Marking compiles nothing: `fastnn.cpu.loader`
asks `to_llvm` for the code of one kernel and one dtype when that is first needed and not in the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numba
from numba import types

from fastnn.cpu.simd import RUN_REF, RecordRef
from fastnn.records import Record

# No fast-math flags, no reference counting, no exceptions to unwind, and none of Numba's wrappers: kernels are called
# from the engine and through ctypes, by address.
FLAGS = {
    "nogil": True,
    "error_model": "numpy",
    "boundscheck": False,
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

device = numba.njit(**FLAGS)


@dataclass(frozen=True)
class Kernel:
    """A function that the loader can compile, and the kind of its arguments."""

    function: Callable
    kind: str  # "kernel", "epilogue", "main" or "entry"
    record: Record | None

    def arguments(self, dtype: str) -> tuple:
        """The Numba types of the arguments for elements of `dtype`."""
        scalar = getattr(types, dtype)
        if self.kind == "main":  # (run, thread)
            return (RUN_REF, types.intp)
        if self.kind == "entry":  # (self, arguments, their number), returns an object
            return (types.intp, types.intp, types.intp)
        assert self.record is not None
        own = RecordRef(self.record, scalar)
        if self.kind == "kernel":  # (op, run, step, thread)
            return (own, RUN_REF, types.intp, types.intp)
        # (op, run, step, tile, tile_row, i, j, rows, cols)
        return (own, RUN_REF, types.intp, types.CPointer(scalar), *[types.intp] * 5)


def kernel(record: Record) -> Callable[[Callable], Kernel]:
    """Mark ``f(op, run, step, thread)``: does thread's share of the work that the record `op` describes."""
    return lambda function: Kernel(function, "kernel", record)


def epilogue(record: Record) -> Callable[[Callable], Kernel]:
    """Mark ``f(op, run, step, tile, tile_row, i, j, rows, cols)``: uses the tile of a product at (i, j)."""
    return lambda function: Kernel(function, "epilogue", record)


def entry(function: Callable) -> Kernel:
    """Mark ``f(own, arguments, count)``: what Python calls, as a builtin function (METH_FASTCALL).

    `own` is the address of the function's own object, `arguments` that of the addresses of `count` objects; it returns
    the address of an object, or 0 where an exception was raised.
    """
    return Kernel(function, "entry", None)


def main(function: Callable) -> Kernel:
    """Mark ``f(run, thread)``: what each thread of a team is started in."""
    return Kernel(function, "main", None)


def to_llvm(kernel: Kernel, dtype: str) -> tuple[str, str, list[str], str]:
    """Compile a kernel to optimised LLVM IR.

    Returns
    -------
    tuple
        The IR, the name of the function in it, and the LLVM types of its arguments (Numba's own two come before them)
        and of its result.
    """
    arguments = kernel.arguments(dtype)
    result = types.intp if kernel.kind == "entry" else types.void
    dispatcher = numba.njit(result(*arguments), **FLAGS)(kernel.function)
    (compiled,) = dispatcher.overloads.values()
    names = ["i64" if t == types.intp else "ptr" for t in arguments]
    returned = "i64" if kernel.kind == "entry" else "void"
    return compiled.library.get_llvm_str(), compiled.fndesc.llvm_func_name, names, returned
