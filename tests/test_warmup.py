"""`python -m fastnn warmup`: which kernels there are, and that the cache holds them afterwards."""

import os
import pkgutil
import re
import subprocess
import sys

import pytest

from fastnn import __main__ as command
from fastnn import cpu
from fastnn.cpu import jit, loader, warmup

FEW = [("rows.total", "float32"), ("rows.gather_labels", "float64"), ("engine.engine", "float32")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this process, and few kernels to fill it with."""
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "cache"))
    loader.cache_folder.cache_clear()
    monkeypatch.setattr(warmup, "kernels", lambda dtypes: [kernel for kernel in FEW if kernel[1] in dtypes])
    yield loader.cache_folder()
    loader.cache_folder.cache_clear()


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fastnn", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# --- which kernels --------------------------------------------------------------------------------------------------


def test_every_kernel_is_listed():
    """As many as the sources mark, each once; what does not depend on the dtype by the name it is asked for."""
    found = warmup.kernels()
    assert len(set(found)) == len(found)
    names = {name for name, _ in found}
    marked = 0
    for entry in pkgutil.iter_modules(cpu.__path__):
        values = vars(sys.modules.get(f"fastnn.cpu.{entry.name}") or __import__(f"fastnn.cpu.{entry.name}")).values()
        marked += sum(isinstance(value, jit.Kernel) for value in values)
    assert len(names) == marked > 70
    assert {dtype for name, dtype in found if name == "gemm.gemm"} == {"float32", "float64"}
    assert [dtype for name, dtype in found if name == "engine.engine"] == ["float32"]
    assert [dtype for name, dtype in found if name == "direct.product"] == ["float64"]
    assert {name for name, _ in found[:2]} == {"gemm.gemm"}, "the slowest first"
    assert [dtype for name, dtype in found if name == "amx.amx"] == ["float32"]
    single = warmup.kernels(("float64",))
    assert set(single) < set(found)
    assert {name for name, _ in single} == names - {"amx.amx", "ceilings.block_products"}


def test_a_fit_asks_for_listed_kernels_only():
    import numpy as np

    import fastnn

    model = fastnn.Sequential([fastnn.layers.Dense(4, "relu"), fastnn.layers.Dense(1)], dtype="float64")
    model.compile("adam", "mse", ["mae"])
    model.fit(np.ones((8, 3)), np.ones(8), verbose=0)
    fastnn.relu(np.ones(3, "float32"))
    assert set(loader._addresses) <= set(warmup.kernels())


# --- filling the cache ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_kernels_are_in_the_cache_afterwards(cache, jobs):
    assert warmup.missing(cache, FEW) == FEW
    done = list(warmup.compile_all(cache, FEW, jobs))
    assert {(found.name, found.dtype) for found in done} == set(FEW)
    assert warmup.missing(cache, FEW) == []
    for found in done:
        assert found.seconds > 0
        assert found.size == len(loader.read(loader.object_path(cache, found.name, found.dtype))) > 500
    assert {path.suffix for path in cache.iterdir()} == {".o"}


def test_damaged_files_count_as_missing(cache):
    list(warmup.compile_all(cache, FEW[:2], 1))
    path = loader.object_path(cache, *FEW[0])
    path.write_bytes(path.read_bytes()[:-1])
    assert warmup.missing(cache, FEW[:2]) == FEW[:1]


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_second_time_there_is_nothing_to_do(cache, capsys):
    assert command.main(["warmup", "--dtype", "float32", "--jobs", "2"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("compiling 2 of 2 kernels in 2 processes\n")
    assert re.search(rf"compiled 2 kernels in \d+\.\d s: \d.* KiB in {re.escape(str(cache))}\n$", out)
    assert error == "", "no bar where there is no terminal"
    assert command.main(["warmup", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == f"nothing to do: all 2 kernels for float32 are in {cache}\n"
    assert command.main(["warmup", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.startswith("compiling 1 of 3 kernels in 1 process\n")


def test_as_a_process(tmp_path):
    """One kernel is missing: the command finds and compiles it, in a process of its own."""
    code = (
        "from fastnn.cpu import warmup; warmup.kernels = lambda dtypes: [('rows.total', 'float32')]\n"
        "from fastnn.__main__ import main\n"
        "if __name__ == '__main__': raise SystemExit(main(['warmup']))\n"
    )
    (tmp_path / "script.py").write_text(code)
    environment = os.environ | {"FASTNN_CACHE_DIR": str(tmp_path / "cache")}
    for expected in ("compiled 1 kernels in", "nothing to do"):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
    assert [path.name for path in tmp_path.rglob("*.o")] == ["rows.total-float32.o"]


def test_a_cache_that_is_not_writable(tmp_path):
    """A directory below a file cannot be made even by root."""
    (tmp_path / "file").write_text("not a directory")
    where = tmp_path / "file" / "below"
    done = run("warmup", FASTNN_CACHE_DIR=str(where))
    assert (done.returncode, done.stdout) == (1, "")
    expected = f"error: the kernel cache {where} is not writable; set FASTNN_CACHE_DIR to a directory that is\n"
    assert done.stderr == expected


def test_a_cache_that_is_full(cache, capsys, monkeypatch):
    monkeypatch.setattr(loader, "write", lambda path, code: None)
    assert command.main(["warmup", "--dtype", "float64", "--jobs", "1"]) == 1
    assert f"error: 1 of 1 kernels could not be written to {cache}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--jobs", "two"], ["--dtype", "float16"], ["--dtype"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["warmup", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_info_is_the_default(capsys):
    assert command.main(["info"]) == 0
    info = capsys.readouterr().out
    assert command.main([]) == 0
    assert capsys.readouterr().out == info
    assert "kernel cache" in info
