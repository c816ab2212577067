"""The machine code of the kernels, for the CPUs that fastnn is made for, whichever this one is.

x86-64 code is asked for with Numba's settings; for aarch64 the vectors are 128 bits wide and LLVM's aarch64 code
generator is given the same intermediate code.  What this CPU can execute is also run, in processes of its own.
"""

import atexit
import base64
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from fastnn.cpu import jit, loader, small, target
from fastnn.cpu.simd.engine import FPCR_FLUSH

HERE = Path(__file__).parent
DTYPES = ("float32", "float64")
AVX2 = "+sse4.2,+avx,+avx2,+fma"
AVX512 = AVX2 + ",+avx512f,+avx512vl,+avx512dq,+avx512bw,+avx512cd"
X86 = {  # NUMBA_CPU_NAME, NUMBA_CPU_FEATURES
    "avx512": ("skylake-avx512", AVX512),
    "avx2": ("haswell", AVX2),
    "generic": ("generic", ""),
}
TARGETS = [*X86, "aarch64"]
TILE = {"avx512": (14, 2), "avx2": (6, 2), "generic": (6, 2), "aarch64": (12, 2)}  # MR, NV
x86 = platform.machine().lower() in ("x86_64", "amd64")
HOST = {512: "avx512", 256: "avx2", 128: "generic"}[target.host().simd_bits] if x86 else "aarch64"

PROBE = """
import base64, importlib, json, pkgutil, re, sys
from fastnn.cpu import target

cpu = target.host()
if sys.argv[1] == "aarch64":
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    cpu = target.Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+fp-armv8", 128, 32)
    # Numba itself must be able to compile what it is given, so its triple stays; only the vectors are aarch64's.
    lean = target.Target(target.host().triple, "generic", "", 128, 32)
    target.host = lambda: lean

from fastnn import cpu as package
from fastnn.cpu import blocking, jit, loader

X86_PAUSE, PAUSE = "@llvm.x86.sse2.pause()", "@llvm.aarch64.hint(i32"


def ir(kernel, dtype):
    code, *rest = jit.to_llvm(kernel, dtype)
    if sys.argv[1] == "aarch64":  # what simd's `pause` emits on such a machine
        code = code.replace(f"call void {X86_PAUSE}", f"call void {PAUSE} 1)")
        code = code.replace(f"declare void {X86_PAUSE}", f"declare void {PAUSE})")
        # The mode of subnormals is set by other intrinsics there: see test_aarch64_flushes_subnormals.
        code = re.sub(r".*@llvm\\.x86\\.sse\\.(ld|st)mxcsr.*\\n", "", code)
    return code, *rest


found = {"mr": blocking.MR, "nv": blocking.NV, "bits": target.host().simd_bits, "objects": {}, "gemm": {}}
for entry in pkgutil.iter_modules(package.__path__):
    module = importlib.import_module(f"fastnn.cpu.{entry.name}")
    for name, kernel in vars(module).items():
        if not isinstance(kernel, jit.Kernel):
            continue
        # float32, and the product in float64: all kernels of one dtype take 20 s to compile.
        both = name == "gemm"
        if kernel.kind == "entry":  # one for all dtypes
            both = False
        for dtype in ("float32", "float64") if both else ("float32",):
            full, is_gemm = f"{entry.name}.{name}", (entry.name, name) == ("gemm", "gemm")
            folder = None if sys.argv[1] == "aarch64" else loader.cache_folder()
            path = folder and loader.object_path(folder, full, dtype)
            data = loader.read(path) if path and not is_gemm else None
            if data is None:
                with loader._without_collection():
                    code = ir(kernel, dtype)
                    data = loader.emit(*code, symbol=f"{full}-{dtype}", cpu=cpu)
                if path:
                    loader.write(path, data)
            found["objects"][f"{full}-{dtype}"] = base64.b64encode(data).decode()
            if is_gemm:
                found["gemm"][dtype] = loader.assembly(*code, symbol="exported", cpu=cpu)
print(json.dumps(found))
"""


@functools.cache
def caches():
    """Where object files of other CPUs are kept, for all processes that are asked for one."""
    folder = tempfile.mkdtemp(prefix="fastnn-codegen-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def environment(name):
    """For a process that takes the CPU for one of `name`; this one's kind is as it is, with its own name."""
    given = {k: v for k, v in os.environ.items() if name == HOST or not k.startswith("NUMBA_CPU")}
    given["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), given.get("PYTHONPATH", "")])
    if name != HOST:
        given["FASTNN_CACHE_DIR"] = str(caches() / name)
        if name in X86:
            given["NUMBA_CPU_NAME"], given["NUMBA_CPU_FEATURES"] = X86[name]
    return given


@functools.cache
def pool():
    """Compiling for another CPU takes minutes, so the processes that do it are started together."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codegen")


def process(arguments, given):
    """A process of Python's, in the background."""
    command = [sys.executable, *arguments]
    return pool().submit(
        subprocess.run, command, env=given, cwd=HERE.parent, capture_output=True, text=True, check=False
    )


@functools.cache
def probes():
    return {name: process(["-c", PROBE, name], environment(name)) for name in TARGETS if x86 or name not in X86}


@functools.cache
def probe(name):
    """All kernels' object files and the product's assembly for one target, made in a process of its own."""
    if name in X86 and not x86:
        pytest.skip("Numba's settings choose among the CPUs of this architecture")
    done = probes()[name].result()
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


# --- reading assembly and object files ------------------------------------------------------------------------------

JUMP = re.compile(r"(?:j[a-z]+|b\.[a-z]+|b|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+(\.?L\w+)")


def inner_loops(assembly):
    """Bodies of the loops of one block: from a label to a jump back to it, with no label between."""
    label, body, found = None, [], []
    for line in assembly.splitlines():
        text = re.split(r"##?|//", line)[0] if not re.search(r"#\d", line) else line
        text = text.strip()
        if start := re.match(r"(\.?L\w+):", text):
            label, body = start[1], []
        elif text and not text.startswith("."):
            body.append(text)
            jump = JUMP.fullmatch(text)
            if jump and jump[1] == label:
                found.append(body.copy())  # what follows the jump is behind the loop
    return found


def multiplies(body, pattern):
    return sum(bool(re.match(pattern, line)) for line in body)


FUSED = {
    ("avx512", "float32"): (r"vfmadd\d+ps\b.*%zmm", r"%zmm"),
    ("avx512", "float64"): (r"vfmadd\d+pd\b.*%zmm", r"%zmm"),
    ("avx2", "float32"): (r"vfmadd\d+ps\b.*%ymm", r"%ymm"),
    ("avx2", "float64"): (r"vfmadd\d+pd\b.*%ymm", r"%ymm"),
    ("generic", "float32"): (r"mulps\b.*%xmm", r"%xmm"),
    ("generic", "float64"): (r"mulpd\b.*%xmm", r"%xmm"),
    ("aarch64", "float32"): (r"fmla\s+v\d+\.4s", r"\b[vq]\d+"),
    ("aarch64", "float64"): (r"fmla\s+v\d+\.2d", r"\b[vq]\d+"),
}
STACK = {"aarch64": r"\[sp\b"}


def spills(body, name, register):
    """Instructions that move vectors to or from the stack (%rbp and x29 are registers like others)."""
    stack = STACK.get(name, r"\(%rsp\b")
    return [line for line in body if re.search(stack, line) and re.search(register, line)]


def undefined(data):
    """Names that an ELF64 object file needs from elsewhere."""

    def number(at, size):
        return int.from_bytes(data[at : at + size], "little")

    assert data[:6] == b"\x7fELF\x02\x01"
    table, size, count = number(0x28, 8), number(0x3A, 2), number(0x3C, 2)
    sections = [table + i * size for i in range(count)]
    names = set()
    for section in sections:
        if number(section + 4, 4) != 2:  # SHT_SYMTAB
            continue
        first, length = number(section + 24, 8), number(section + 32, 8)
        strings = number(sections[number(section + 40, 4)] + 24, 8)
        for symbol in range(first + 24, first + length, 24):  # the first one is null
            if number(symbol + 6, 2) == 0:  # SHN_UNDEF
                at = strings + number(symbol, 4)
                names.add(data[at : data.index(b"\0", at)].decode())
    return names


# --- the product ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TARGETS)
def test_micro_kernel(name, dtype):
    """A loop of MR x NV multiply-adds on whole registers, all of the tile in registers."""
    found = probe(name)
    mr, nv = TILE[name]
    assert (found["mr"], found["nv"]) == (mr, nv)
    pattern, register = FUSED[name, dtype]
    loops = [body for body in inner_loops(found["gemm"][dtype]) if multiplies(body, pattern)]
    counts = [multiplies(body, pattern) for body in loops]
    assert any(count % (mr * nv) == 0 for count in counts), counts
    assert max(counts) >= mr * nv
    for body in loops:
        assert spills(body, name, register) == []
    if name == "generic":  # no fused multiply-add there: as many additions
        adds = [multiplies(body, pattern.replace("mul", "add")) for body in loops]
        assert adds == counts
        assert "fmadd" not in found["gemm"][dtype]


def test_the_readers_see_what_they_should():
    """A loop with a spill, one without, and a function that calls expf."""
    bad = ".LBB0_1:\n\tvmovups\t-64(%rsp), %zmm1\n\tvfmadd231ps\t%zmm1, %zmm2, %zmm3\n\tjne\t.LBB0_1\n"
    (body,) = inner_loops("f:\n" + bad + "\tretq\n")
    assert multiplies(body, FUSED["avx512", "float32"][0]) == 1
    assert spills(body, "avx512", "%zmm") == ["vmovups\t-64(%rsp), %zmm1"]
    assert inner_loops(bad.replace("jne\t.LBB0_1", "jne\t.LBB0_2")) == []
    (body,) = inner_loops(bad.replace("-64(%rsp)", "(%rax)") + "\tmovdqa\t416(%rsp), %xmm8\n\tretq\n")
    assert len(body) == 3, "what is restored behind a loop is not in it"
    arm = ".LBB0_1:\n\tldr\tq1, [sp, #16]\n\tfmla\tv3.4s, v1.4s, v2.s[0]\n\tb.ne\t.LBB0_1\n"
    (body,) = inner_loops(arm)
    assert multiplies(body, FUSED["aarch64", "float32"][0]) == 1
    assert len(spills(body, "aarch64", FUSED["aarch64", "float32"][1])) == 1

    code = "declare float @expf(float)\ndefine i32 @f(ptr %a, ptr %b, ptr %c) {\n"
    code += "%x = load float, ptr %c\n%y = call float @expf(float %x)\nstore float %y, ptr %c\nret i32 0\n}"
    cpu = target.host()
    if "linux" in llvm.get_process_triple():
        assert undefined(loader.emit(code, "f", ["ptr"], "void", symbol="exported", cpu=cpu)) == {"expf"}


# --- every kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
@pytest.mark.parametrize("name", TARGETS)
def test_kernels_call_nothing(name):
    """No libm, no memcpy, no malloc, nothing of Python: an object file needs no symbol of anybody else."""
    objects = probe(name)["objects"]
    assert len(objects) > 55
    needs = {kernel: undefined(base64.b64decode(data)) for kernel, data in objects.items()}
    assert {kernel: names for kernel, names in needs.items() if names} == {}


# --- running it -----------------------------------------------------------------------------------------------------

NUMERIC = [  # tests that compare kernels with the reference, and whole training steps
    "test_gemm.py::test_edges",
    "test_gemm.py::test_one_row",
    "test_gemm.py::test_shares_cover_the_product",
    "test_gemm.py::test_tiles_finished_in_registers",
    "test_spmm.py::test_products",
    "test_spmm.py::test_nothing_but_zero_is_left_out",
    "test_spmm.py::test_images_of_bytes",
    "test_spmm.py::test_rows_that_are_updated_in_registers",
    "test_kernels.py::test_gather",
    "test_kernels.py::test_losses",
    "test_kernels.py::test_flat_updates",
    "test_kernels.py::test_updates_of_a_tile",
    "test_vmath.py::test_float32",
    "test_vmath.py::test_special_values",
    "test_plan.py::test_padding_stays_zero",
    "test_plan.py::test_parts_give_the_same_bits",
    "test_gradients.py::test_every_activation_and_loss",
    "test_batches.py::test_batches",
    "test_direct.py::test_products_are_right_either_way",
    "test_direct_losses.py::test_means_over_elements",
]


def can_run(name):
    """Whether this CPU has the features."""
    have = llvm.get_host_cpu_features()
    return all(have.get(feature.lstrip("+")) for feature in X86[name][1].split(",") if feature)


def reason_not_to_run(name):
    if not x86 or not can_run(name):
        return f"this CPU cannot run {name} code"
    if name == HOST:
        return "all other tests run it"
    return None


@pytest.fixture(scope="module")
def runs():
    """The tests above for each other CPU that this one can be, in the background, with the kernels of its probe."""
    tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(HERE / test) for test in NUMERIC)]
    wanted = [name for name in X86 if reason_not_to_run(name) is None]
    return {name: process(tests, environment(name)) for name in wanted if probe(name)}


@pytest.mark.parametrize("name", X86)
def test_numbers_are_right_on(name, runs):
    if name not in runs:
        pytest.skip(reason_not_to_run(name))
    done = runs[name].result()
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d{2,} passed", done.stdout)
    width = ["-c", "from fastnn.cpu import target; print(target.host().simd_bits)"]
    bits = process(width, environment(name)).result().stdout
    assert int(bits) == {"avx512": 512, "avx2": 256, "generic": 128}[name]


@pytest.mark.parametrize(("dtype", "word"), [("float32", "i32"), ("float64", "i64")])
def test_the_optimiser_keeps_touches(dtype, word):
    """A load whose value goes back to its place does nothing but fetch the line for writing."""
    code = jit.to_llvm(small.fused, dtype)
    module = str(loader._lower(*code, "exported", loader.target_machine(target.host())))
    value = re.search(rf"(%\S+) = load atomic {word}, ptr (%\S+) monotonic", module)
    assert value is not None, "no load"
    assert f"store atomic {word} {value[1]}, ptr {value[2]} monotonic" in module


def test_aarch64_flushes_subnormals():
    """The intrinsics that `flush_subnormals` emits there become reads and writes of the control register."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(f"""
        declare i64 @llvm.aarch64.get.fpcr()
        declare void @llvm.aarch64.set.fpcr(i64)
        define void @f() {{
            %mode = call i64 @llvm.aarch64.get.fpcr()
            %set = or i64 %mode, {FPCR_FLUSH}
            call void @llvm.aarch64.set.fpcr(i64 %set)
            ret void
        }}""")
    cpu = target.Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+fp-armv8", 128, 32)
    code = loader.target_machine(cpu).emit_assembly(module).lower()
    assert re.search(r"mrs\s+(x\d+), fpcr\s+orr\s+(x\d+), \1, #0x1000000\s.*msr\s+fpcr, \2", code, re.S)
