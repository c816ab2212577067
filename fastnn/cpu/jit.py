"""The one place where Numba is told how to compile: flags and signatures.

A kernel is a plain Python function over records (`fastnn.records`), marked with `@kernel(RECORD)` or
`@epilogue(RECORD)`; what it calls is marked with `@device` and inlined.  Marking compiles nothing: `fastnn.cpu.loader`
asks `to_llvm` for the code of one kernel and one dtype when that is first needed and not in the cache.

Numba on its own would optimise every function, and again as a part of each of its callers, and generate machine code
for each although nobody calls them.  Here it types and lowers only, and `fastnn.cpu.loader` optimises what comes out,
once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from numba import types
from numba.core import codegen, typeinfer
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager
from numba.core.registry import CPUDispatcher, CPUTarget, cpu_target
from numba.core.typed_passes import InlineOverloads, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes, InlineInlinables

from fastnn.cpu.blocking import WIDE
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


class _Library(codegen.AOTCodeLibrary):
    """Intermediate code as Numba's front end wrote it."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0  # there is no machine code


class _Codegen(codegen.AOTCPUCodegen):
    _library_class = _Library

    def set_env(self, env_name, env):
        pass  # Python objects that a function uses: none


class _Target(CPUTarget):
    """Numba's CPU target, with its types and implementations, but for the generation of code."""

    @functools.cached_property
    def _toplevel_target_context(self):
        return cpu_target.target_context.subtarget(_internal_codegen=_Codegen("fastnn"), aot_mode=True)

    @functools.cached_property
    def _toplevel_typing_context(self):
        return cpu_target.typing_context


class _Compiler(CompilerBase):
    """Numba's pipeline without the passes that find nothing in kernels: closures, array expressions, `inline`."""

    IDLE = (InlineClosureLikes, InlineInlinables, InlineOverloads, NopythonRewrites)

    def define_pipelines(self):
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        lean = PassManager("kernel")
        for each, description in manager.passes:
            if each not in self.IDLE:
                lean.add_pass(each, description)
        lean.finalize()
        return [lean]


class _Dispatcher(CPUDispatcher):
    targetdescr = _Target("fastnn")


def device(function: Callable) -> _Dispatcher:
    """Mark a function that kernels call: it is compiled as a part of them."""
    return _Dispatcher(function, targetoptions=FLAGS, pipeline_class=_Compiler)


@dataclass(frozen=True)
class Kernel:
    """A function that the loader can compile, and the kind of its arguments."""

    function: Callable
    kind: str  # "kernel", "epilogue", "row epilogue", "main" or "entry"
    record: Record | None

    def dtypes(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Which of these dtypes it is compiled for; one that does not depend on the dtype goes by a fixed name."""
        return {"main": ("float32",), "entry": ("float64",)}.get(self.kind, wanted)

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


def kernel(record: Record) -> Callable[[Callable], Kernel]:
    """Mark ``f(op, run, step, thread)``: does thread's share of the work that the record `op` describes."""
    return lambda function: Kernel(function, "kernel", record)


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
    cpu_target.target_context.refresh()  # Numba's runtime has to be set up by the context that can generate code
    dispatcher = device(kernel.function)
    with typeinfer.register_dispatcher(dispatcher):
        dispatcher.compile(result(*arguments))
    (compiled,) = dispatcher.overloads.values()
    names = [_name(t) for t in arguments]
    returned = "i64" if kernel.kind == "entry" else "void"
    return compiled.library.get_llvm_str(), compiled.fndesc.llvm_func_name, names, returned
