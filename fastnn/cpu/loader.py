"""From a kernel's name to its address: compile once, keep the machine code in the user's cache, link it on demand.

Numba's own cache cannot be used for three reasons: it does not notice an edited callee, two processes that fill it at
once can mix up the files of two signatures, and reading it needs all of Numba (0.3 s).  Here a cached kernel is one
object file whose folder is named by a hash of everything that shaped it, written by an atomic rename, and linked
without importing Numba at all: a process that finds its kernels in the cache starts training a few milliseconds after
import.
"""

import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import platformdirs

from fastnn.cpu import memory, target

_lock = threading.RLock()
_collector_waits = False


def _after_fork() -> None:
    """What a thread was at that the child does not have."""
    global _lock, _collector_waits
    _lock = threading.RLock()
    if _collector_waits:
        gc.enable()
        _collector_waits = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_addresses: dict[tuple[str, str], int] = {}


def address(name: str, dtype: str) -> int:
    """The address of the kernel `name` ("module.function" below ``fastnn.cpu``) for elements of `dtype`."""
    key = (name, dtype)
    found = _addresses.get(key)
    if found is None:
        with _lock:
            if key not in _addresses:
                _addresses[key] = _link(f"{name}-{dtype}", _object(name, dtype))
            found = _addresses[key]
    return found


def _object(name: str, dtype: str) -> bytes:
    folder = cache_folder()
    path = object_path(folder, name, dtype) if folder else None
    if path is not None:
        code = read(path)
        if code is not None:
            return code
    code = compile_object(name, dtype)
    if path is not None:
        write(path, code)
    return code


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Python's collector of garbage waits: Numba's front end makes a million objects, and nearly all are of use.

    That is a quarter of its time: `spmm.spmm` 3.8 s instead of 4.7 in all.
    """
    global _collector_waits
    collects = gc.isenabled()
    try:
        if collects:
            _collector_waits = True
            gc.disable()
        yield
    finally:
        if collects:
            gc.enable()
            _collector_waits = False


@_without_collection()
def compile_object(name: str, dtype: str) -> bytes:
    """Machine code of one kernel, freshly compiled (no cache)."""
    from fastnn.cpu import jit

    module, function = name.split(".")
    kernel = getattr(importlib.import_module(f"fastnn.cpu.{module}"), function)
    return emit(*jit.to_llvm(kernel, dtype), symbol=f"{name}-{dtype}")


def emit(
    ir: str, function: str, arguments: list[str], result: str, *, symbol: str, cpu: target.Target | None = None
) -> bytes:
    """Compile Numba's IR to an object file that exports one C function, `symbol`, and needs nothing of Python."""
    machine = target_machine(cpu or target.host())
    return machine.emit_object(_lower(ir, function, arguments, result, symbol, machine))


def assembly(
    ir: str, function: str, arguments: list[str], result: str, *, symbol: str, cpu: target.Target | None = None
) -> str:
    """As `emit`, but readable."""
    machine = target_machine(cpu or target.host())
    return machine.emit_assembly(_lower(ir, function, arguments, result, symbol, machine))


def _lower(ir, function, arguments, result, symbol, machine):
    # Numba's functions take a place for the result and one for an exception, neither of which a kernel uses.
    names = [f"{ty} %a{i}" for i, ty in enumerate(arguments)]
    inner = ", ".join(["ptr %result", "ptr %error", *names])
    leave = "ret void" if result == "void" else f"%value = load {result}, ptr %result\n ret {result} %value"
    wrapper = f"""
        declare i32 @"{function}"(ptr, ptr, {", ".join(arguments)})
        define {result} @"{symbol}"({", ".join(names)}) {{
            %result = alloca i64
            %error = alloca ptr
            %status = call i32 @"{function}"({inner})
            {leave}
        }}"""
    module = llvm.parse_assembly(ir)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.link_in(llvm.parse_assembly(wrapper))
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != symbol:
            value.linkage = "internal"
    # Which helpers are inlined is left to LLVM: with all of them inlined, 128 x 784 x 256 takes 470 us instead of 444.
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def target_machine(cpu: target.Target) -> llvm.TargetMachine:
    """LLVM's code generator for `cpu`."""
    return llvm.Target.from_triple(cpu.triple).create_target_machine(
        cpu=cpu.cpu, features=cpu.features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


@functools.cache
def _jit() -> llvm.LLJIT:
    jit = llvm.create_lljit_compiler(target_machine(target.host()), suppress_errors=True)
    memory.keep(jit)
    return jit


def _link(symbol: str, code: bytes) -> int:
    builder = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(symbol).add_current_process()
    tracker = builder.link(_jit(), symbol)
    memory.keep(tracker)
    return tracker[symbol]


# --- the cache --------------------------------------------------------------------------------------------------


@functools.cache
def fingerprint() -> str:
    """A hash of all that decides the machine code: kernel sources, compilers, Python and the CPU."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in (*sorted(package.rglob("*.py")), package.parent / "records.py"):
        digest.update(str(source.relative_to(package.parent)).encode())
        digest.update(source.read_bytes())
    for compiler in ("numba", "llvmlite"):
        digest.update(_version(compiler))
    cpu = target.host()
    for part in (sys.version, cpu.triple, cpu.cpu, cpu.features, os.environ.get("NUMBA_OPT", "")):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def _version(package: str) -> bytes:
    """What a package says of its version, without importing it (`importlib.metadata` takes 20 ms)."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"fastnn needs {package}"
    assert spec.origin is not None
    return Path(spec.origin).with_name("_version.py").read_bytes()


def cache_base() -> Path:
    """The cache directory: ``FASTNN_CACHE_DIR`` or the user's."""
    return Path(os.environ.get("FASTNN_CACHE_DIR") or platformdirs.user_cache_dir("fastnn", appauthor=False))


@functools.cache
def cache_folder() -> Path | None:
    """Where machine code is kept, below `cache_base`; None if that is not writable."""
    folder = cache_base() / "kernels" / fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        warnings.warn(
            f"fastnn cannot write its cache directory {folder} ({error.strerror or error}): kernels are compiled anew "
            "in every process (a few seconds each time). Set FASTNN_CACHE_DIR to a writable directory.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


def object_path(folder: Path, name: str, dtype: str) -> Path:
    """The file of a kernel in the cache."""
    return folder / f"{name}-{dtype}.o"


def read(path: Path) -> bytes | None:
    """The object file at `path`, or None if there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code, digest = data[:-32], data[-32:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(path: Path, code: bytes) -> None:
    """Write atomically: a concurrent reader sees the whole file or none."""
    name = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            name = file.name
            file.write(code + hashlib.sha256(code).digest())
        os.replace(name, path)
    except OSError:  # a full disk, say: the code is in memory, and the next process tries again
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
