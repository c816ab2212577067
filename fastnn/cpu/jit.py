"""The one place where Numba is told how to compile: flags and signatures.

A kernel is a plain Python function over records (`fastnn.records`), marked with `@kernel(RECORD)` or
`@epilogue(RECORD)`; what it calls is marked with `@device` and inlined.  Marking compiles nothing: `fastnn.cpu.loader`
asks `to_llvm` for the code of one kernel and one dtype when that is first needed and not in the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

from numba import types
from numba.core.target_extension import jit_registry, target_override
from numba.core.typeinfer import register_dispatcher

from fastnn.cpu.blocking import WIDE
from fastnn.cpu.frontend import TARGET, Compiler, Dispatcher, Kernels
from fastnn.cpu.simd import RUN_REF, RecordRef, Vec, vec
from fastnn.cpu.simd.vectors import llvm_type
from fastnn.records import Record

# No fast-math flags, no reference counting, no exceptions to unwind, and none of Numba's wrappers: kernels are called
# from the engine and through ctypes, by address.
FLAGS = {
    "nopython": True,
    "nogil": True,
    "error_model": "numpy",
    "boundscheck": False,
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def device(function: Callable) -> Dispatcher:
    """Mark a function that kernels call: it is compiled as a part of them."""
    return Dispatcher(function, targetoptions=FLAGS, pipeline_class=Compiler)


jit_registry[Kernels] = lambda **options: device  # for what Numba has in Python itself


@dataclass(frozen=True)
class Kernel:
    """A function that the loader can compile, and the kind of its arguments."""

    function: Callable
    kind: str  # "kernel", "epilogue", "row epilogue", "main" or "entry"
    record: Record | None
    only: str = ""  # the one dtype that it is for, if it is not for both

    def dtypes(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Which of these dtypes it is compiled for; one that does not depend on the dtype goes by a fixed name."""
        fixed = {"main": ("float32",), "entry": ("float64",)}.get(self.kind)
        return fixed or tuple(dtype for dtype in wanted if self.only in ("", dtype))

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
        if self.kind == "row epilogue":  # (op, run, step, i, j, wide, tile)
            return (own, RUN_REF, *[types.intp] * 4, Vec(scalar, WIDE * vec(scalar).lanes))
        # (op, run, step, tile, tile_row, i, j, rows, cols)
        return (own, RUN_REF, types.intp, types.CPointer(scalar), *[types.intp] * 5)


def kernel(record: Record, only: str = "") -> Callable[[Callable], Kernel]:
    """Mark ``f(op, run, step, thread)``: does thread's share of the work that the record `op` describes.

    `only`: the one dtype that it can be compiled for.
    """
    return lambda function: Kernel(function, "kernel", record, only)


def epilogue(record: Record) -> Callable[[Callable], Kernel]:
    """Mark ``f(op, run, step, tile, tile_row, i, j, rows, cols)``: uses the tile of a product at (i, j)."""
    return lambda function: Kernel(function, "epilogue", record)


def row_epilogue(record: Record) -> Callable[[Callable], Kernel]:
    """Mark ``f(op, run, step, i, j, wide, tile)``: uses a row of a product from (i, j) on, which is in registers.

    `tile` is one long vector, of `fastnn.cpu.blocking.WIDE` times a vector's lanes; half of it counts if not `wide`.
    """
    return lambda function: Kernel(function, "row epilogue", record)


def entry(function: Callable) -> Kernel:
    """Mark ``f(own, arguments, count)``: what Python calls, as a builtin function (METH_FASTCALL).

    `own` is the address of the function's own object, `arguments` that of the addresses of `count` objects; it returns
    the address of an object, or 0 where an exception was raised.
    """
    return Kernel(function, "entry", None)


def main(function: Callable) -> Kernel:
    """Mark ``f(run, thread)``: what each thread of a team is started in."""
    return Kernel(function, "main", None)


def _name(ty: types.Type) -> str:
    """What an argument's type is called in LLVM's language."""
    if isinstance(ty, Vec):
        return str(llvm_type(ty))
    return "i64" if ty == types.intp else "ptr"


def to_llvm(kernel: Kernel, dtype: str) -> tuple[str, str, list[str], str]:
    """Compile a kernel to LLVM IR, which is not optimised.

    Returns
    -------
    tuple
        The IR, the name of the function in it, and the LLVM types of its arguments (Numba's own two come before them)
        and of its result.
    """
    arguments = kernel.arguments(dtype)
    result = types.intp if kernel.kind == "entry" else types.void
    dispatcher = device(kernel.function)
    with target_override(TARGET), register_dispatcher(dispatcher):
        dispatcher.compile(result(*arguments))
    (compiled,) = dispatcher.overloads.values()
    names = [_name(t) for t in arguments]
    returned = "i64" if kernel.kind == "entry" else "void"
    return compiled.library.get_llvm_str(), compiled.fndesc.llvm_func_name, names, returned
