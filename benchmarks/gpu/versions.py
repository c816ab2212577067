"""What is installed here, and whether it works together."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess

from benchmarks.gpu import driver
from benchmarks.gpu.measure import AbsentError, Report

DISTRIBUTIONS = ("numpy", "numba", "numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "torch", "triton", "jax")
CUPY = "cupy"
SMI = "driver_version,clocks.max.sm,clocks.sm,clocks.mem,power.limit,memory.total"


def measure(report: Report) -> None:
    """Report versions; the device's last, as they fail without one."""
    report.add("Python", platform.python_version())
    report.add("system", f"{platform.system()} {platform.machine()}")
    for name in DISTRIBUTIONS:
        report.attempt(name, _version, report, name)
    report.attempt(CUPY, _cupy, report)
    report.attempt("NVVM", _nvvm, report)
    report.attempt("compiles for", _target, report)
    report.attempt("GPU", _device, report)
    report.attempt("nvidia-smi", _smi, report)


def _version(report: Report, name: str) -> None:
    try:
        report.add(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        report.skip(name, "not installed")


def _cupy(report: Report) -> None:
    # Its wheels are named after the CUDA they are for.
    found = [
        e for e in importlib.metadata.distributions() if re.fullmatch(r"cupy(-cuda\w+)?", e.metadata["Name"] or "")
    ]
    if not found:
        raise AbsentError("not installed")
    report.add(CUPY, ", ".join(f"{e.metadata['Name']} {e.version}" for e in found))


def _nvvm(report: Report) -> None:
    from cuda.bindings import nvvm

    report.add("NVVM", ".".join(map(str, nvvm.version())))


def _target(report: Report) -> None:
    from benchmarks.gpu import compile, launches

    capability = driver.capability() if driver.missing() is None else compile.HOPPER
    code = compile.build(launches.KERNELS[0], capability)
    found = re.search(r"\.version (\S+)\s+\.target (\S+)", code.ptx)
    assert found is not None, "the PTX names no target"
    report.add("compiles for", f"{found[2]}, PTX {found[1]}")


def _device(report: Report) -> None:
    if reason := driver.missing():
        raise AbsentError(reason)
    report.add("GPU", driver.name())
    report.add("CUDA of the driver", driver.version())
    report.add("compute capability", ".".join(map(str, driver.capability())))
    report.add("multiprocessors", driver.attribute(driver.MULTIPROCESSORS))
    report.add("shared memory of a block", driver.attribute(driver.SHARED_PER_BLOCK) / 1024, "KiB")
    report.add("L2", driver.attribute(driver.L2_BYTES) / 2**20, "MiB")
    report.add("cooperative launches", bool(driver.attribute(driver.COOPERATIVE)))


def _smi(report: Report) -> None:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise AbsentError("nvidia-smi is not on the PATH")
    query = [program, f"--query-gpu={SMI}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    for name, value in zip(SMI.split(","), done.stdout.splitlines()[0].split(","), strict=True):
        report.add(f"nvidia-smi {name}", value.strip())
