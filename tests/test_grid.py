"""The benchmark grid: its sizes, its checks, its records, and what is read out of them."""

import json
import math

import numpy as np
import pytest

from benchmarks import figures, grid, grid_cases, grid_rivals, verdict
from benchmarks.rivals import installed


def tiny(group, dtype):
    """A few small points of a group."""
    found = [(key, spec) for key, spec in grid.points([group], [dtype], quick=True) if small(spec.cases[key[2]])]
    return found[:4]


def small(arguments):
    sizes = [e for e in arguments if isinstance(e, int)]
    return math.prod(sizes) <= 300_000


@pytest.mark.parametrize("dtype", grid.DTYPES)
@pytest.mark.parametrize("group", ["products", "dense", "functions", "updates"])
def test_records(group, dtype):
    points = tiny(group, dtype)
    *_, records = grid.run(points, threads=1, rounds=1, passes=3, libraries=["fastnn", "numpy", "expression"])
    assert {(r["operation"], r["case"]) for r in records} == {(key[1], key[2]) for key, _ in points}
    for record in records:
        assert record["dtype"] == dtype
        assert len(record["passes"]) == 3
        assert record["median"] == sorted(record["passes"])[1] > 0
    rivals = {r["library"] for r in records}
    assert rivals <= {"fastnn", "numpy", "expression"}
    assert len(rivals) >= 2


def test_a_wrong_answer_is_found(monkeypatch):
    (key, spec), *_ = tiny("products", "float32")
    grid.check(key, spec, ["fastnn"])
    monkeypatch.setitem(grid_rivals.TABLE["matmul"], "numpy", lambda a, b: lambda: np.matmul(a, b) + 0.01)
    with pytest.raises(AssertionError, match="numpy: matmul, 16 x 16 x 16, float32: relative error"):
        grid.check(key, spec, ["fastnn", "numpy"])
    # float64 is held to its own precision.
    (key, spec), *_ = tiny("products", "float64")
    monkeypatch.setitem(grid_rivals.TABLE["matmul"], "numpy", lambda a, b: lambda: np.float64(np.float32(a @ b)))
    with pytest.raises(AssertionError, match="relative error"):
        grid.check(key, spec, ["numpy"])


def test_layouts():
    spec = grid_cases.operations("products", "float64")["matmul"]
    assert len(spec.cases) == len(grid_cases.SQUARES) + 4 * len(grid_cases.PRODUCTS)
    for layout in grid_cases.LAYOUTS:
        inputs = spec.make(grid_cases.name(7, 33, 129, layout), "float64")
        assert inputs["a"].shape == (7, 33)
        assert inputs["b"].shape == (33, 129)
        assert inputs["a"].flags.f_contiguous == ("a" in layout)
        assert inputs["b"].flags.f_contiguous == ("b" in layout)
        assert inputs["a"].dtype == inputs["b"].dtype == np.float64


def test_sizes_in_bytes():
    for dtype in grid.DTYPES:
        inputs = grid_cases.operations("functions", dtype)["tanh"].make("64 KiB", dtype)
        assert inputs["x"].nbytes == 64 << 10
        large = grid_cases.operations("bandwidth", dtype)
        assert {name: spec.work(*spec.cases["256 MiB"]) / (256 << 20) for name, spec in large.items()} == {
            "relu_large": 2,
            "sigmoid_large": 2,
            "exp_large": 2,
            "adam_large": 7,
            "sgd_large": 3,
        }


def test_every_operation_has_contestants():
    for group in grid_cases.GROUPS:
        for name in grid_cases.operations(group, "float32"):
            found = grid_rivals.contestants(name)
            assert found[0] == "fastnn"
            assert all(library == "expression" or installed(library) for library in found)


def test_functions_that_do_not_exist_are_skipped(monkeypatch, capsys):
    monkeypatch.setattr(grid_rivals, "missing", lambda name: "tanh" if name == "tanh" else None)
    names = {key[1] for key, _ in grid.points(["functions"], ["float32"])}
    assert "tanh" not in names
    assert "sigmoid" in names
    assert "skipped tanh: there is no fastnn.tanh" in capsys.readouterr().err


def document(threads=1, slow=()):
    """Results as `grid` writes them: fastnn twice as fast as all, but half as fast at the cases that `slow` names."""
    about = {"threads": threads, "cpu": "test", "load": 0.0, "fma_peak": {"float32": 1e11}, "copy_bandwidth": 1e10}
    spec = grid_cases.operations("products", "float32")["matmul"]
    results = []
    for case, arguments in spec.cases.items():
        work = spec.work(*arguments)
        record = {"group": "products", "operation": "matmul", "case": case, "arguments": arguments, "dtype": "float32"}
        for library in ("fastnn", "numpy", "torch"):
            factor = 1 if library == "fastnn" else 0.5 if case in slow else 2
            record |= {"library": library, "work": work, "median": factor * work / 0.95e11}
            results.append(dict(record))
        if grid_cases.has_ceiling("products", arguments):
            results.append(record | {"library": "ceiling", "work": 1e9, "median": 1e9 / 1e11})
    return {"machine": about, "results": results}


def lines(tmp_path, *documents):
    paths = []
    for i, content in enumerate(documents):
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps(content))
    runs = verdict.read(paths)
    most = max(run.threads for run in runs)
    return [{line.title: line for line in verdict.judge(run, most)} for run in runs]


def test_verdict(tmp_path):
    (found,) = lines(tmp_path, document())
    assert found["products against NumPy"][2:4] == ("2.00", "2.00")
    assert found["products against NumPy"].verdict == "pass"
    assert found["squares >= 512, share of FMA peak"][2:4] == ("0.95", "0.95")
    assert found["squares >= 512, share of FMA peak"].verdict == "pass"
    assert found["exp, against numpy"].verdict == "not measured"
    (found,) = lines(tmp_path, document(slow=["96 x 96 x 96"]))
    line = found["products against NumPy"]
    assert (line.least, line.where, line.verdict) == ("0.50", "96 x 96 x 96", "FAIL")
    assert float(line.mean) > 1.2
    one, two = lines(tmp_path, document(), document(threads=2))
    assert one["squares >= 512, share of FMA peak"].verdict == "pass"
    assert two["squares >= 512, share of FMA peak"].verdict == "not asked"


def test_pictures(tmp_path, capsys):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(document(slow=["7 x 33 x 129, aᵀ b"])))
    figures.main([str(path), "--folder", str(tmp_path / "img")])
    for name in ("products.png", "squares.png"):
        assert (tmp_path / "img" / name).read_bytes().startswith(b"\x89PNG")
    verdict.main([str(path)])
    assert "float32, 1 thread, FMA peak 100 GFLOP/s" in capsys.readouterr().out
