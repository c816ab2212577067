"""`python -m fastnn`."""

import re
import subprocess
import sys

import llvmlite
import numba
import numpy as np
import pytest

import fastnn
from fastnn.cpu import blocking, target


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastnn", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def table():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines())


def test_it_tells_the_versions(table):
    for module in (fastnn, np, numba, llvmlite):
        assert table[module.__name__] == module.__version__


def test_it_tells_the_cpu_and_what_follows_from_it(table):
    cpu = target.host()
    assert table["CPU"] == cpu.cpu
    assert table["SIMD"].startswith(f"{cpu.simd_bits} bits")
    assert table["matrix unit"].startswith("AMX" if cpu.has_tiles else "none")
    for dtype in ("float32", "float64"):
        assert table[f"tile, {dtype}"] == f"{blocking.MR} x {blocking.columns(dtype)}"
    assert int(table["threads"]) == fastnn.get_num_threads()
    assert table["data caches"].startswith("L1 ")


def test_columns_are_aligned():
    starts = {re.match(r".+?\s{2,}", line).end() for line in run().stdout.splitlines()}
    assert len(starts) == 1


def test_the_kernel_cache_is_counted(tmp_path, monkeypatch):
    from fastnn.__main__ import _kernel_cache, _size

    (tmp_path / "gemm.gemm-float32.o").write_bytes(bytes(1536))
    (tmp_path / "rows.gather-float32.o").write_bytes(bytes(512))
    (tmp_path / "tmpabc").write_bytes(bytes(99))
    assert _kernel_cache(tmp_path) == f"{tmp_path} (2 kernels, 2 KiB)"
    assert "not writable" in _kernel_cache(None)
    assert [_size(n) for n in (0, 1023, 1024, 48 << 10, 36 << 20, 3 << 30)] == [
        "0 bytes",
        "1023 bytes",
        "1 KiB",
        "48 KiB",
        "36 MiB",
        "3 GiB",
    ]


def test_help_and_unknown_arguments():
    done = run("--help")
    assert done.returncode == 0
    assert "usage: python -m fastnn" in done.stdout
    assert run("--rubbish").returncode == 2
