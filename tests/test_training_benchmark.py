"""The training benchmark: its rivals, its records, its bars, and what is read out of them."""

import json
import math
import threading
import time

import numpy as np
import pytest

from benchmarks import cases, checks, compare
from benchmarks.networks import NETWORKS, FastnnNetwork
from benchmarks.rivals import installed
from benchmarks.training import __main__ as training
from benchmarks.training import (
    chart,
    memory,
    mnist,
    mnist98,
    networks,
    optimizers,
    part,
    predict,
    processes,
    report,
    simultaneous,
    start,
    table,
)
from benchmarks.training.part import Settings
from fastnn import datasets

QUICK = Settings(threads=1, rounds=1, libraries=["fastnn", "numpy"], quick=True)
SMALL = table.CASES[0]
HERE = [e for e in NETWORKS if installed(table.MODULES.get(e, e)) and NETWORKS[e].problem() is None]


# --- rivals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", HERE)
@pytest.mark.parametrize(("sizes", "regression"), [((6, 5, 4, 1), False), ((6, 5, 4, 1), True), ((6, 7, 3), False)])
def test_rivals_train_alike(library, sizes, regression):
    checks.check_training(NETWORKS[library], sizes, 8, library, regression)


@pytest.mark.parametrize(
    ("wrong", "regression"),
    [(np.abs, False), (lambda g: np.zeros_like(g), True), (lambda g: g - 0.02, True)],
)
def test_wrong_training_is_found(monkeypatch, wrong, regression):
    class Wrong(NETWORKS["numpy"]):
        def _adam(self):
            self.g[:] = wrong(self.g)
            super()._adam()

    with pytest.raises(AssertionError, match="a test: loss .*, expected"):
        checks.check_training(Wrong, (6, 5, 1), 8, "a test", regression)


@pytest.mark.parametrize("library", HERE)
def test_regression_predicts_values(library):
    inputs = cases.training_inputs((6, 5, 1), 8, 16, regression=True)
    network = NETWORKS[library](**inputs)
    found = np.array([network.predict(inputs["x"][i : i + 1]) for i in range(4)])
    assert found.shape == (4, 1, 1)
    expected = cases.logits(inputs["x"][:4], inputs["weights"])
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_loss():
    for sizes, regression in (((3, 4, 1), True), ((3, 4, 1), False), ((3, 4, 3), False)):
        inputs = cases.training_inputs(sizes, 8, 8, regression)
        p = [e.astype(np.float64) for e in inputs["weights"]]
        found = cases.gradients(p, inputs["x"], inputs["y"])
        step = 1e-6
        for e, g in zip(p, found, strict=True):
            for at in np.ndindex(e.shape):
                kept, losses = e[at], []
                for shift in (step, -step):
                    e[at] = kept + shift
                    losses.append(cases.training_loss(inputs["x"], inputs["y"], p))
                e[at] = kept
                assert g[at] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-8)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_networks():
    records = list(networks.run(QUICK._replace(rounds=3), [SMALL]))
    assert [e["library"] for e in records] == ["fastnn", "numpy"]
    for record in records:
        assert record["network"] == "5-3-1 BCE, batch 10"
        assert record["steps"] == 100
        assert len(record["samples"]) == 3
        assert 0 < record["low"] <= record["median"] == sorted(record["samples"])[1] < 0.01


def test_networks_on_mnist(monkeypatch):
    monkeypatch.setattr(datasets.mnist, "load_data", digits)
    cases._images.cache_clear()
    case = table.CASES[5]._replace(steps=300)  # 15 steps in a quick run
    inputs = case.inputs("fastnn", quick=True)
    (images, labels), _ = digits()
    np.testing.assert_array_equal(inputs["x"], images[: 15 * 128].reshape(-1, 784) / np.float32(255))
    assert inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(inputs["y"], labels[: 15 * 128])
    assert {e["library"] for e in networks.run(QUICK, [case])} == {"fastnn", "numpy"}
    cases._images.cache_clear()


def test_a_library_that_cannot_run_is_named(monkeypatch, capsys):
    monkeypatch.setattr(NETWORKS["numpy"], "problem", classmethod(lambda cls: "no compiler"))
    problem, timed = networks.run(QUICK, [SMALL])
    assert problem == {"library": "numpy", "problem": "no compiler"}
    assert timed["library"] == "fastnn"
    assert "numpy is left out: no compiler" in capsys.readouterr().err


def test_networks_check_before_they_time(monkeypatch):
    monkeypatch.setattr(NETWORKS["numpy"], "_adam", lambda self: None)
    with pytest.raises(AssertionError, match="numpy: 5-3-1 BCE, batch 10: loss"):
        list(networks.run(QUICK, [SMALL]))


def test_the_table():
    assert [(case.name, case.bar) for case in table.CASES] == [
        ("5-3-1 BCE, batch 10", 8),
        ("20-64-64-1 BCE, batch 32", 3),
        ("20-64-64-1 BCE, batch 256", 2.5),
        ("100-256-128-1 MSE, batch 64", 2.5),
        ("784-256-10 softmax, batch 32, MNIST", 3),
        ("784-256-10 softmax, batch 128, MNIST", 2.5),
        ("784-512-256-10 softmax, batch 512, MNIST", 1.8),
        ("784-2048-2048-10 softmax, batch 1024, MNIST", 1.3),
    ]
    assert [case.parameters for case in table.CASES[:1]] == [22]
    assert [(case.name, case.bar) for case in table.DENSE] == [
        ("784-256-10 softmax, batch 32, noise", 0),
        ("784-256-10 softmax, batch 128, noise", 0),
        ("784-512-256-10 softmax, batch 512, noise", 0),
        ("784-2048-2048-10 softmax, batch 1024, noise", 0),
    ]
    wide = table.DENSE[0]
    assert len(wide.inputs("fastnn")["x"]) == 938 * 32
    assert len(wide.inputs("sklearn")["x"]) == 234 * 32
    assert "python" in SMALL.contestants()
    assert "python" not in wide.contestants()


def test_fewer_rounds_within_the_limit():
    samples = compare.interleaved({"a call": lambda: None}, 9, threads=1, limit=0.0)
    assert len(samples["a call"]) == compare.LEAST
    assert len(compare.interleaved({"a call": lambda: None}, 9, threads=1)["a call"]) == 9


def test_settle_waits_for_threads_that_spin():
    end = time.perf_counter() + 0.2

    def spin():
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    compare.settle()
    assert time.perf_counter() >= end
    thread.join()


def test_figures():
    assert part.figures([3.0, 1.0, 2.0, 5.0, 4.0]) == {"median": 3, "low": 2, "samples": [3, 1, 2, 5, 4]}


def test_optimizers(monkeypatch):
    monkeypatch.setattr(optimizers, "NETWORKS", {"tiny": ((20, 64, 3), 40)})
    records = list(optimizers.run(QUICK))
    parameters = 21 * 64 + 65 * 3
    found = {e["optimizer"]: e["bytes"] for e in records}
    assert found["SGD"] == 8 * parameters
    assert found["SGD, momentum"] == 16 * parameters
    assert found["Adam"] == 24 * parameters
    assert set(found) == set(optimizers.rules())
    assert all(e["median"] > 0 for e in records)


@pytest.mark.parametrize("title", list(optimizers.rules()))
def test_optimizers_are_checked(title):
    rules = optimizers.rules()
    optimizers.check(title, rules[title], (20, 64, 3))
    for other in set(rules) - {title}:
        with pytest.raises(AssertionError, match=f"{title}: relative error"):
            optimizers.check(title, rules[title]._replace(train=rules[other].train), (20, 64, 3))


def test_where_epsilon_is_added_is_checked():
    rule = optimizers.rules()["Adam"]
    with pytest.raises(AssertionError, match="Adam: relative error 0.00"):
        optimizers.check("Adam", rule._replace(train=cases.train))


def test_predict():
    records = list(predict.run(QUICK))
    assert [e["library"] for e in records] == ["fastnn", "numpy", *predict.FLOORS]
    assert {e["bytes"] for e in records} == {4 * (785 * 256 + 257 * 10)}
    assert all(e["median"] > 0 for e in records)


def test_bits():
    assert simultaneous.same_bits(table.CASES[2])


def test_other_bits_are_found(monkeypatch):
    class Careless(FastnnNetwork):
        def weights(self):
            return [e + np.float32(self.model.n_threads == 3) for e in super().weights()]

    monkeypatch.setattr(simultaneous, "FastnnNetwork", Careless)
    assert not simultaneous.same_bits(SMALL)


def test_simultaneous(monkeypatch):
    monkeypatch.setattr(datasets.mnist, "load_data", digits)
    monkeypatch.setattr(simultaneous, "CASE", table.CASES[2])
    *timed, bits = simultaneous.run(QUICK)
    assert [e["what"] for e in timed] == ["one fit", "two fits at once", "a team of 4 threads"]
    assert all(e["median"] > 0 for e in timed)
    assert bits["equal"]


# --- processes --------------------------------------------------------------------------------------------------------


def test_first_fit_in_a_process():
    found = processes.call("first_fit", threads=1)
    assert 0 < found["fit"] < found["import"] + found["fit"] < found["wall"]


def test_a_process_that_fails():
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks.training.mnist keras failed.*invalid choice: 'keras'"):
        processes.call("mnist", "keras", threads=1)


def test_start_fills_a_cache_once(monkeypatch):
    calls = []

    def call(module, *, threads, FASTNN_CACHE_DIR):
        first = FASTNN_CACHE_DIR not in calls
        calls.append(FASTNN_CACHE_DIR)
        return {"import": 1.0, "fit": 10.0 if first else 0.1, "wall": 12.0}

    monkeypatch.setattr(processes, "call", call)
    empty, filled = start.run(QUICK._replace(rounds=5))
    assert empty["fit"]["samples"] == [10.0] * start.EMPTY
    assert filled["fit"]["samples"] == [0.1] * 5 * start.EMPTY


def digits():
    """Images that tell their class: a bright row."""
    rng = np.random.default_rng(0)
    parts = []
    for n in (2000, 500):
        y = rng.integers(0, 10, n).astype(np.uint8)
        x = rng.integers(0, 60, (n, 28, 28)).astype(np.uint8)
        x[np.arange(n), 2 * y] = 250
        parts.append((x, y))
    return tuple(parts)


@pytest.mark.parametrize("library", [e for e in mnist.LIBRARIES if installed(e)])
def test_mnist(library, monkeypatch, capsys):
    monkeypatch.setattr(datasets.mnist, "load_data", digits)
    assert mnist.main([library, "--epochs", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] > 0.9
    assert found["train"] > 0
    assert 1 << 20 < found["imported_bytes"] <= found["peak_bytes"]


def test_peak_memory_grows():
    before = mnist.peak_memory()
    array = np.ones(before // 8 + (8 << 20))
    assert mnist.peak_memory() >= array.nbytes > before


def process(module, library, *arguments, threads):
    """What a process tells, in a tenth of the time."""
    scale = 1.0 if library == "fastnn" else 3.0
    found = dict.fromkeys(mnist98.PHASES, scale) | {"accuracy": 0.981, "imported_bytes": 10**8}
    return found | {"peak_bytes": int(scale * 2e8)}


def test_processes_of_mnist(monkeypatch):
    monkeypatch.setattr(processes, "call", process)
    monkeypatch.setattr(datasets.mnist, "load_data", digits)
    (record,) = mnist98.run(QUICK)
    assert record["library"] == "fastnn"
    assert record["accuracies"] == [0.981]
    assert record["wall"]["median"] == 1.0
    assert list(memory.run(QUICK)) == [{"library": "fastnn", "imported": 10**8, "peak": 2 * 10**8}]


def test_without_mnist(monkeypatch, capsys):
    def fail():
        raise datasets.DatasetError("no MNIST\nlooked here")

    monkeypatch.setattr(datasets.mnist, "load_data", fail)
    for run in (mnist98.run, memory.run, simultaneous.run):
        assert list(run(QUICK)) == [{"problem": "no MNIST"}]
    left, timed = networks.run(QUICK._replace(libraries=["fastnn"]), [table.CASES[4], SMALL])
    assert left == {"network": "784-256-10 softmax, batch 32, MNIST", "problem": "no MNIST"}
    assert timed["network"] == SMALL.name
    assert "no MNIST" in capsys.readouterr().err
    about = {"cpu": "test", "threads": 1, "load": 0.0, "date": "today"}
    document = {"parts": {"mnist98": {"machine": about, "results": [{"problem": "no MNIST"}]}}}
    assert report.text(document).endswith("left out: no MNIST")
    document = {"parts": {"networks": {"machine": about, "results": [left, timed]}}}
    assert report.text(document).endswith("784-256-10 softmax, batch 32, MNIST was left out: no MNIST")


# --- bars -------------------------------------------------------------------------------------------------------------


def results(slow=(), without=()):
    """Records in which fastnn is as fast as its bars ask (less where `slow` says so) and 12 times as fast as some."""
    found = []
    for case in table.CASES:
        if case.name in without:
            continue
        factor = 0.9 if case.name in slow else 1.0
        seconds = {"fastnn": 1e-4, "jax": factor * case.bar * 1.01e-4, "numpy": 0.9e-2}
        seconds |= {"sklearn": 1.2e-3, "torch": 1.2e-3 / (2 if slow else 1)}
        found += [
            {"network": case.name, "library": e, "steps": 1} | part.figures([s, s, s]) for e, s in seconds.items()
        ]
    for case in table.DENSE:  # which no bar or mean counts
        found += [
            {"network": case.name, "library": e, "steps": 1} | part.figures([1e-3]) for e in ("fastnn", "jax", "numpy")
        ]
    return found


def test_bars_are_met():
    lines = report.judge(results())
    assert [line.verdict for line in lines] == ["met"] * len(lines)
    assert [line.rival for line in lines] == ["JAX"] * len(table.CASES) + [""] * 2
    assert lines[0][1:3] == ("8", "8.08")
    assert lines[-1].title == "geometric mean, against PyTorch, eager"
    assert lines[-1].found == "12.00"


def test_bars_are_missed():
    slow = "784-256-10 softmax, batch 32, MNIST"
    lines = {line.title: line for line in report.judge(results([slow]))}
    assert lines[slow].verdict == "MISSED"
    assert lines[slow].found == "2.73"
    assert lines["784-256-10 softmax, batch 128, MNIST"].verdict == "met"
    assert lines["geometric mean, against scikit-learn"].verdict == "met"
    assert lines["geometric mean, against PyTorch, eager"].found == "6.00"
    assert lines["geometric mean, against PyTorch, eager"].verdict == "MISSED"


def test_bars_without_measurements():
    lines = {line.title: line for line in report.judge(results(without=["5-3-1 BCE, batch 10"]))}
    assert lines["5-3-1 BCE, batch 10"].verdict == "not measured"
    # A mean over other networks is not what is asked for.
    assert lines["geometric mean, against scikit-learn"].verdict == "not measured"
    alone = [e for e in results() if e["library"] == "fastnn"]
    assert {line.verdict for line in report.judge(alone)} == {"not measured"}


def test_what_bars_ask_for():
    found = [e | ({"floor": 4e-5} if e["library"] == "fastnn" else {}) for e in results()]
    rows = report._asked(found).splitlines()
    assert len(rows) == 1 + len(table.CASES)
    assert rows[1].split("  ")[0] == "5-3-1 BCE, batch 10"
    assert rows[1].split()[-9:] == ["808", "µs", "101", "µs", "40.0", "µs", "100", "µs", "0.40"]
    assert report._asked(results()) == ""


def test_geometric_mean():
    found = results()
    for i, case in enumerate(table.CASES):
        (record,) = (e for e in found if e["network"] == case.name and e["library"] == "torch")
        record["median"] = 1e-4 * 2.0**i
    mean = math.prod(2.0**i for i in range(len(table.CASES))) ** (1 / len(table.CASES))
    assert report.judge(found)[-1].found == f"{mean:.2f}"


# --- files ------------------------------------------------------------------------------------------------------------


def test_parts_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "results" / "training.json"
    monkeypatch.setitem(training.PARTS, "memory", lambda settings: iter([{"library": "fastnn", "peak": 1}]))
    monkeypatch.setitem(training.PARTS, "start", lambda settings: iter([{"cache": "empty"}, {"cache": "filled"}]))
    about = {"cpu": "test"}
    training.measure(["memory", "start"], QUICK, about, path)
    monkeypatch.setitem(training.PARTS, "start", lambda settings: iter([{"cache": "other"}]))
    document = training.measure(["start"], QUICK._replace(rounds=2), about, path)
    assert document == json.loads(path.read_text())
    assert document["parts"]["memory"]["results"] == [{"library": "fastnn", "peak": 1}]
    assert document["parts"]["memory"]["rounds"] == 1
    assert document["parts"]["start"] == {"machine": about, "rounds": 2, "results": [{"cache": "other"}]}


def test_results_survive_an_interruption(tmp_path, monkeypatch):
    def interrupted(settings):
        yield {"cache": "empty"}
        raise KeyboardInterrupt

    path = tmp_path / "training.json"
    monkeypatch.setitem(training.PARTS, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.measure(["start"], QUICK, {}, path)
    assert json.loads(path.read_text())["parts"]["start"]["results"] == [{"cache": "empty"}]


def test_report_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "call", process)
    monkeypatch.setattr(datasets.mnist, "load_data", digits)
    about = {"cpu": "test", "threads": 2, "load": 0.0, "date": "today"}
    phases = {phase: part.figures([1.0]) for phase in ("import", "fit", "wall")}
    everything = {
        "networks": [*results(), {"library": "torch_compiled", "problem": "no compiler"}],
        "optimizers": [{"network": "n", "optimizer": "Adam", "bytes": 4_000_000} | part.figures([1e-3])],
        "predict": [
            {"network": "n", "library": e, "bytes": 1} | part.figures([1e-5 * (1 + i)])
            for i, e in enumerate([*predict.FLOORS, "fastnn"])
        ],
        "mnist98": [
            {"library": e, "accuracies": [0.985, a], **{phase: part.figures([s]) for phase in mnist98.PHASES}}
            for e, s, a in (("fastnn", 1.0, 0.981), ("torch", 4.0, 0.979))
        ],
        "start": [{"cache": "empty", **phases}, {"cache": "filled", **phases}],
        "simultaneous": [
            {"network": "n", "what": "one fit", "threads": 2} | part.figures([1e-3]),
            {"network": "n", "what": "two fits at once", "threads": 2} | part.figures([1.25e-3]),
            {"network": "n", "what": "bits", "threads": [1, 8], "equal": False},
        ],
        "memory": [
            {"library": "fastnn", "imported": 3e7, "peak": 2e8},
            {"library": "torch", "imported": 2e8, "peak": 6e8},
        ],
    }
    assert set(everything) == set(training.PARTS) == set(report.PARTS)
    path = tmp_path / "training.json"
    parts = {name: {"machine": about, "rounds": 1, "results": records} for name, records in everything.items()}
    path.write_text(json.dumps({"parts": parts}))
    picture = tmp_path / "img" / "training.png"
    assert report.main([str(path), "--chart", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for words in (
        "=== One row through 784-256-10 (test, 2 threads, load 0.0, today)",
        "torch.compile was left out: no compiler",
        "4.0 GB/s",
        "the same bits with 1, 8 threads: MISSED",
        "in all, over fastnn's: PyTorch, eager 4.00 times",
        "memory, over fastnn's: PyTorch, eager 3.00 times",
    ):
        assert words in shown
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert lines["two fits at once"].endswith("1.25")
    verdicts = [line.split()[-1] for line in shown.splitlines() if "97.90%" in line or "98.10%" in line]
    assert verdicts == ["met", "MISSED"]


def test_the_table_of_the_readme(tmp_path):
    machine = {"cpu": "a CPU", "threads": 2, "python": "3", "date": "today", "versions": {"fastnn": "0"}, "load": 0.0}
    document = {"parts": {"networks": {"machine": machine, "results": results()}}}
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    path.write_text(json.dumps(document), encoding="utf-8")
    readme.write_text("before\n{}\nold\n{}\nafter\n".format(*report.MARKERS), encoding="utf-8")
    assert report.main([str(path), "--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    lines = text.splitlines()
    (first,) = (line for line in lines if "5-3-1 BCE, batch 10" in line)
    assert "**100 µs**" in first
    assert "1.20 ms (12×)" in first
    assert len([line for line in lines if line.startswith("| ")]) == len(table.CASES) + 3 + len(table.DENSE)
    (mean,) = (line for line in lines if "geometric mean" in line)
    assert "(" not in mean
    assert mean.count("12×") == 2


def test_a_picture_needs_networks(tmp_path):
    with pytest.raises(ValueError, match="no network with a time of fastnn"):
        chart.draw({"machine": {}, "results": []}, tmp_path / "training.png")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.machine, "use_threads", lambda n: n or 1)
    monkeypatch.setitem(training.PARTS, "networks", lambda settings: networks.run(settings, [SMALL]))
    output, picture = tmp_path / "training.json", tmp_path / "training.png"
    command = ["--quick", "--threads", "1", "--only", "networks", "--libraries", "fastnn", "numpy"]
    assert training.main([*command, "--output", str(output), "--chart", str(picture)]) == 0
    shown = capsys.readouterr()
    assert "5-3-1 BCE, batch 10" in shown.out
    assert "not measured" in shown.out
    assert f"wrote {output}" in shown.err
    assert picture.exists()
    with pytest.raises(SystemExit):
        training.main(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
