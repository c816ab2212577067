"""Numba's front end, less what kernels do not use: from a Python function to LLVM IR that nobody has optimised.

Numba on its own would optimise every function, and again as a part of each of its callers, and generate machine code
for each although nobody calls them.  Here it types and lowers only, and `fastnn.cpu.loader` optimises what comes out,
once.  Kernels have numbers, addresses, vectors and tuples of them.  Arrays, lists, strings, NumPy's functions and
Numba's runtime, for which Numba imports SciPy's linear algebra and tries half a dozen meanings of each ``+``, are left
out by a target of kernels' own: the same machine code in less time.
"""

import functools

from numba import types
from numba.core import codegen, typing
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager
from numba.core.cpu import CPUContext
from numba.core.registry import CPUDispatcher, CPUTarget
from numba.core.target_extension import CPU, dispatcher_registry, target_registry
from numba.core.typed_passes import InlineOverloads, NopythonRewrites
from numba.core.typing.templates import _OverloadFunctionTemplate
from numba.core.untyped_passes import InlineClosureLikes, InlineInlinables

TARGET = "fastnn"  # its name among Numba's targets


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


class _Types(typing.Context):
    """What Numba knows of types, less all that kernels do not use: arrays, lists, NumPy's functions."""

    def load_additional_registries(self):
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)

    def insert_function(self, ft):
        is_operator = getattr(ft.key, "__module__", None) == "_operator"
        if not (is_operator and isinstance(ft, _OverloadFunctionTemplate)):  # that of a container
            super().insert_function(ft)


class _Lowering(CPUContext):
    """Numba's implementations of what kernels use."""

    def init(self):
        self.is32bit = False
        self._internal_codegen = _Codegen(TARGET)
        self.aot_mode = True
        self._sizes = {}

    def load_additional_registries(self):
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401

        self.install_registry(mathimpl.registry)

    def get_abi_sizeof(self, ty):
        # For each variable; llvmlite writes and reads a module to find one out.
        if str(ty) not in self._sizes:
            self._sizes[str(ty)] = super().get_abi_sizeof(ty)
        return self._sizes[str(ty)]

    def post_lowering(self, module, library):
        pass  # Numba's runtime, which kernels do without, is not linked


class _Target(CPUTarget):
    """Numba's CPU target, but for what kernels do not use and the generation of code."""

    @functools.cached_property
    def _toplevel_target_context(self):
        return _Lowering(self.typing_context, self._target_name)

    @functools.cached_property
    def _toplevel_typing_context(self):
        return _Types()


class Compiler(CompilerBase):
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


class Kernels(CPU):
    """The target of kernels: what others have registered for CPUs is there, too."""


target_registry[TARGET] = Kernels  # before a context is made for it


class Dispatcher(CPUDispatcher):
    """A function that is compiled for kernels, or as a part of them."""

    targetdescr = _Target(TARGET)

    def get_call_template(self, args, kws):
        # A function is compiled for the types of its arguments, not once more for each constant that it is called with.
        return super().get_call_template([types.unliteral(each) for each in args], kws)


dispatcher_registry[Kernels] = Dispatcher
