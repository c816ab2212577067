"""`python -m fastnn`: what fastnn finds and uses on this machine."""

import argparse
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path

import fastnn
from fastnn.cpu import blocking, loader, target


def main(arguments: list[str] | None = None) -> int:
    """Print a table of the machine's CPU, threads, caches, kernel cache and CUDA."""
    parser = argparse.ArgumentParser(prog="python -m fastnn", description="Show what fastnn finds on this machine.")
    parser.parse_args(arguments)
    rows = list(_rows())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _rows() -> Iterator[tuple[str, str]]:
    yield "fastnn", fastnn.__version__
    for package in ("numpy", "numba", "llvmlite"):
        yield package, importlib.metadata.version(package)
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    cpu = target.host()
    yield "CPU", cpu.cpu
    yield "SIMD", f"{cpu.simd_bits} bits, {cpu.registers} registers ({_instruction_set(cpu)})"
    for dtype in ("float32", "float64"):
        yield f"tile, {dtype}", f"{blocking.MR} x {blocking.columns(dtype)}"
    yield "data caches", ", ".join(f"{level} {_size(size)}" for level, size in target.caches().items())
    yield "threads", str(fastnn.get_num_threads())
    yield "kernel cache", _kernel_cache(loader.cache_folder())
    yield "CUDA", _cuda()


def _instruction_set(cpu: target.Target) -> str:
    if cpu.triple.startswith(("aarch64", "arm64")):
        return "NEON"
    return {512: "AVX-512", 256: "AVX2"}.get(cpu.simd_bits, "portable")


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _kernel_cache(folder: Path | None) -> str:
    if folder is None:
        return "none (its directory is not writable)"
    sizes = [path.stat().st_size for path in folder.glob("*.o")]
    return f"{folder} ({len(sizes)} kernels, {_size(sum(sizes))})"


def _cuda() -> str:
    # numba-cuda provides numba_cuda; to find it is enough: importing it would start the driver.
    if importlib.util.find_spec("numba_cuda") is None:
        return "not installed"
    return f"numba-cuda {importlib.metadata.version('numba-cuda')}"


if __name__ == "__main__":
    raise SystemExit(main())
