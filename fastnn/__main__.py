"""`python -m fastnn`: what fastnn finds and uses on this machine; `python -m fastnn warmup` compiles its kernels."""

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import fastnn
from fastnn.cpu import blocking, loader, target, warmup


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastnn", description="Without a command: info.")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help="show what fastnn finds on this machine")
    warm = commands.add_parser(
        "warmup",
        help="compile all kernels into the cache, so that nothing has to wait for it later",
        description="Compile all kernels that the cache does not hold.",
    )
    warm.add_argument(
        "--dtype", nargs="+", choices=warmup.DTYPES, default=list(warmup.DTYPES), help="of the kernels (default: both)"
    )
    warm.add_argument("--jobs", type=_jobs, default=None, help="processes that compile (default: one for each CPU)")
    options = parser.parse_args(arguments)
    if options.command == "warmup":
        return _warmup(tuple(options.dtype), options.jobs or fastnn.get_num_threads())
    return _info()


def _jobs(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def _info() -> int:
    """Print a table of the machine's CPU, threads, caches, kernel cache and CUDA."""
    rows = list(_rows())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _warmup(dtypes: tuple[str, ...], jobs: int) -> int:
    """Compile what the cache lacks, with a progress bar on a terminal."""
    from tqdm import tqdm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says is told below, as an error
        folder = loader.cache_folder()
    if folder is None:
        hint = "set FASTNN_CACHE_DIR to a directory that is"
        print(f"error: the kernel cache {loader.cache_base()} is not writable; {hint}", file=sys.stderr)
        return 1
    wanted = warmup.kernels(dtypes)
    todo = warmup.missing(folder, wanted)
    if not todo:
        print(f"nothing to do: all {len(wanted)} kernels for {' and '.join(dtypes)} are in {folder}")
        return 0
    jobs = min(jobs, len(todo))
    print(f"compiling {len(todo)} of {len(wanted)} kernels in {jobs} process{'es' if jobs > 1 else ''}", flush=True)
    began = time.perf_counter()
    work = warmup.compile_all(folder, todo, jobs)
    done = list(tqdm(work, total=len(todo), unit="kernel", leave=False, disable=None))
    seconds = time.perf_counter() - began
    lost = [found for found in done if not found.size]
    if lost:
        print(f"error: {len(lost)} of {len(todo)} kernels could not be written to {folder}", file=sys.stderr)
        return 1
    size = _size(sum(found.size for found in done))
    print(f"compiled {len(done)} kernels in {seconds:.1f} s: {size} in {folder}")
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
    yield "matrix unit", _matrix_unit(cpu)
    yield "data caches", ", ".join(f"{level} {_size(size)}" for level, size in target.caches().items())
    yield "threads", str(fastnn.get_num_threads())
    yield "kernel cache", _kernel_cache(loader.cache_folder())
    yield "CUDA", _cuda()


def _matrix_unit(cpu: target.Target) -> str:
    if target.may_use_tiles():
        return f"AMX, blocks of {blocking.SIDE} x {blocking.SIDE} in float32"
    return "AMX, not used: the system or FASTNN_MATRIX_UNIT says no" if cpu.has_tiles else "none that is used"


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
