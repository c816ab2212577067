"""The GPU probe without a GPU: its kernels compile, and the script says what it could not measure."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu_probe
from benchmarks.gpu import driver
from benchmarks.gpu.measure import AbsentError, Report

NO_NUMBA_CUDA = "compiling kernels needs numba-cuda: pip install fastnn[cuda13]"


# --- machine code -----------------------------------------------------------------------------------------------------


def built():
    """Every kernel with every target it can have."""
    if importlib.util.find_spec("numba_cuda") is None:
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=NO_NUMBA_CUDA))]
    from benchmarks.gpu import compile

    return [
        pytest.param(kernel, capability, id=f"{kernel.name}-sm_{capability[0]}{capability[1]}")
        for kernel in compile.kernels()
        for capability in (compile.AMPERE, compile.HOPPER)
        if kernel.runs_on(capability)
    ]


@pytest.mark.parametrize(("kernel", "capability"), built())
def test_kernels_compile(kernel, capability):
    from benchmarks.gpu import compile

    code = compile.build(kernel, capability)
    target = "sm_90a" if capability == compile.HOPPER else "sm_80"
    assert f".target {target}" in code.ptx
    assert code.binary.startswith(b"\x7fELF")
    assert f".visible .entry {code.entry}(" in code.ptx
    missing = [e for e in kernel.expected if e not in code.ptx]
    assert not missing, f"the PTX of {kernel.name} lacks {missing}"
    assert code.spilled == 0
    assert ".local" not in code.ptx, "an array of registers went to memory"
    assert "C75" not in code.log, code.log  # wgmma that the assembler could not keep apart
    assert code.registers * kernel.threads * kernel.blocks_per_multiprocessor <= 65536
    room = {compile.AMPERE: 164, compile.HOPPER: 228}  # KiB of a multiprocessor; the log counts the system's 1 KiB
    assert code.shared + kernel.dynamic <= room[capability] * 1024


def test_a_kernel_for_other_devices_is_refused():
    pytest.importorskip("numba_cuda", reason=NO_NUMBA_CUDA)
    from benchmarks.gpu import compile, gemm_wgmma

    with pytest.raises(RuntimeError, match=r"needs compute capability \(9, 0\), the device has \(8, 0\)"):
        compile.build(gemm_wgmma.KERNELS[0], compile.AMPERE)
    assert not gemm_wgmma.KERNELS[0].runs_on((12, 0))


def test_spills_are_counted():
    """The numbers are read out of the log of a kernel that must spill: 64 sums in the registers of 1024 threads."""
    pytest.importorskip("numba_cuda", reason=NO_NUMBA_CUDA)
    from dataclasses import replace

    from benchmarks.gpu import compile, gemm_simt

    crowded = replace(gemm_simt.KERNELS[0], threads=1024, blocks_per_multiprocessor=2)
    assert compile.build(crowded, compile.AMPERE).spilled > 0


# --- the script -------------------------------------------------------------------------------------------------------


def probe(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_probe", *arguments], capture_output=True, text=True, check=False
    )


def test_without_a_gpu(tmp_path):
    if driver.missing() is None:
        pytest.skip("there is a GPU")
    output = tmp_path / "probe.json"
    done = probe("--quick", "--only", "versions", "barriers", "epoch", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "no GPU: libcuda.so.1 cannot be loaded" in done.stderr
    document = json.loads(output.read_text())
    assert document["quick"] is True
    for part in ("barriers", "epoch"):
        (record,) = [e for e in document["records"] if e["part"] == part]
        assert record["skipped"].startswith("no GPU")
    versions = {e["what"]: e for e in document["records"] if e["part"] == "versions"}
    assert versions["numpy"]["value"].count(".") == 2
    assert "libcuda" in versions["GPU"]["skipped"]
    assert "rest of versions" not in versions
    for line in ("barriers", "  numpy ", "  GPU "):
        assert line in done.stdout


def test_the_cpu_is_measured_without_a_gpu(monkeypatch):
    from benchmarks.gpu import cpu

    monkeypatch.setattr(cpu, "LIBRARIES", ("fastnn", "numpy"))
    monkeypatch.setattr("benchmarks.machine.use_threads", lambda threads: threads)  # these tests keep their own
    records = cpu.compare_here(1, quick=True)
    assert [e["what"] for e in records] == [
        f"1 threads, {library}, {what}"
        for what in ("matmul 128 x 784 x 256", "training step, 784-256-10, batch 32")
        for library in ("fastnn", "numpy")
    ]
    assert all(e["value"] > 0 for e in records)
    assert {e["unit"] for e in records} == {"GFLOP/s", "us/step"}


def test_more_threads_than_cpus(monkeypatch, tmp_path):
    from benchmarks.gpu import cpu

    asked = []
    monkeypatch.setattr(cpu, "_one", lambda report, threads: asked.append(threads))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    report = Report(tmp_path / "records", "cpu")
    cpu.measure(report)
    assert asked == [1, 2]
    skipped = [json.loads(line) for line in report.path.read_text().splitlines()][1:]
    assert [e["what"] for e in skipped] == ["4 threads", "8 threads", "16 threads"]
    assert skipped[0]["skipped"] == "the process has 3 CPUs"


# --- parts that fail --------------------------------------------------------------------------------------------------


def test_a_failure_is_reported_and_the_next_is_tried(tmp_path):
    report = Report(tmp_path / "records", "part")

    def fail(error):
        raise error

    report.attempt("one", fail, ValueError("bad value\nmore of it"))
    report.attempt("two", fail, AbsentError("no such thing"))
    report.attempt("three", lambda: report.add("three", 3.0, "us", float("nan"), "relative"))
    one, two, three = (json.loads(line) for line in report.path.read_text().splitlines())
    assert one == {"part": "part", "what": "one", "skipped": "ValueError: bad value"}
    assert two["skipped"] == "no such thing"
    assert (three["value"], three["error"]) == (3.0, "nan")


PARTS = {
    "dies": "import os; os.abort()",
    "hangs": "import time; time.sleep(1000)",
    "fails": "raise SystemExit('out of luck')",
    "cut": "open(path, 'a').write('{\"part\"')",
}


@pytest.mark.parametrize("name", PARTS)
def test_what_was_measured_survives(monkeypatch, name):
    code = "import sys; path = sys.argv[sys.argv.index('--output') + 1]; "
    code += """open(path, 'a').write('{"part": "p", "what": "w", "value": 1}\\n'); """
    original = subprocess.Popen

    def start(command, **settings):
        return original([sys.executable, "-c", code + PARTS[name], *command[3:]], **settings)

    monkeypatch.setattr(gpu_probe.subprocess, "Popen", start)
    began = time.monotonic()
    first, *rest = gpu_probe.run_part("cpu", 20.0 if name == "hangs" else 300.0, quick=True)
    assert first["value"] == 1
    reasons = [e["skipped"] for e in rest if "skipped" in e]
    expected = {"dies": "the process ended with -6", "hangs": "stopped after 20 s", "fails": "out of luck"}
    assert reasons == [] if name == "cut" else expected[name] in reasons[0]
    assert rest[-1]["what"] == "time of this part"
    assert time.monotonic() - began < 900


def test_a_part_that_cannot_be_imported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "benchmarks.gpu.barriers", None)
    gpu_probe.work("barriers", tmp_path / "records", quick=True)
    record = json.loads((tmp_path / "records").read_text())
    assert record["skipped"].startswith("cannot be imported")


def test_table_and_file_name():
    records = [
        {"part": "versions", "what": "GPU", "value": "NVIDIA H100 80GB HBM3", "unit": "", "error": None, "check": ""},
        {"part": "barriers", "what": "132 blocks", "value": 1.23456, "unit": "us", "error": 0, "check": "stale reads"},
        {"part": "barriers", "what": "rest of barriers", "skipped": "stopped after 25 s"},
    ]
    assert gpu_probe.table(records).splitlines() == [
        "",
        "versions",
        "  GPU               NVIDIA H100 80GB HBM3",
        "",
        "barriers",
        "  132 blocks                     1.235 us  0 stale reads",
        "  rest of barriers                      -  stopped after 25 s",
    ]
    assert gpu_probe.default_output(records).name == "gpu-nvidia-h100-80gb-hbm3.json"
    assert gpu_probe.default_output(records[1:]) is None


def test_the_parts_take_eight_minutes_at_most():
    assert sum(gpu_probe.PARTS.values()) <= 480
