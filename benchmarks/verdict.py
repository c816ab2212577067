"""Which bars are met: ``python -m benchmarks.verdict benchmarks/results/grid-*.json``.

Reads what `benchmarks.grid` wrote and prints, for each dtype and number of threads, a line for each bar.  A ratio is
the speed of fastnn over that of its rival: above 1 fastnn is faster.  Beside a ceiling it is the share of it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.grid_cases import ADAM

EXPRESSIONS = ("sigmoid", "softplus", "gelu", "softmax", "bce_gradient")
DERIVATIVES = ("sigmoid_derivative", "tanh_derivative", "softplus_derivative", "gelu_derivative", "softmax_derivative")
LARGE = ("relu_large", "sigmoid_large", "exp_large", "adam_large")


class Point(NamedTuple):
    """One case: the record of each contestant."""

    group: str
    operation: str
    case: str
    arguments: list[Any]
    records: dict[str, dict[str, Any]]

    def rate(self, library: str) -> float:
        """Work a second; calls a second where work is not counted."""
        record = self.records[library]
        return (record["work"] or 1.0) / record["median"]

    def ratio(self, rival: str) -> float:
        """How many times as fast as a rival fastnn is."""
        return self.rate("fastnn") / self.rate(rival)


class Run(NamedTuple):
    """The points of one dtype in one run."""

    machine: dict[str, Any]
    dtype: str
    points: list[Point]

    @property
    def threads(self) -> int:
        """Threads of every library."""
        return self.machine["threads"]

    @property
    def title(self) -> str:
        """For people: "float32, 1 thread"."""
        return f"{self.dtype}, {self.threads} thread{'s' if self.threads != 1 else ''}"


@dataclass(frozen=True)
class Bar:
    """What is asked for: a geometric mean and a least ratio (None: anything) over the points that `covers` chooses."""

    title: str
    rival: str
    covers: Callable[[Point], bool]
    mean: float | None
    least: float | None
    threads: str = "any"  # or "one", "all": the runs it is asked of

    @property
    def wanted(self) -> str:
        """For people."""
        parts = [f"{name} >= {bar:.2f}" for name, bar in (("mean", self.mean), ("min", self.least)) if bar is not None]
        return ", ".join(parts)

    def met(self, mean: float, least: float) -> bool:
        """Whether these figures are good enough."""
        return (self.mean is None or mean >= self.mean) and (self.least is None or least >= self.least)


def _of(operation: str, case: str | None = None) -> Callable[[Point], bool]:
    return lambda point: point.operation == operation and case in (None, point.case)


def _each(operations: tuple[str, ...], rival: str, least: float, *, case: str | None = None, threads: str = "any"):
    return [Bar(_title(e, rival), rival, _of(e, case), None, least, threads) for e in operations]


def _title(operation: str, rival: str) -> str:
    of = "copy bandwidth" if rival == "ceiling" else f"against {rival}"
    return f"{operation.replace('_', ' ')}, {of}"


BARS = [
    Bar("products against NumPy", "numpy", _of("matmul"), 1.2, 0.95),
    Bar("products against torch", "torch", _of("matmul"), 1.0, 0.85),
    Bar("squares >= 512, share of FMA peak", "ceiling", _of("matmul"), None, 0.90, "one"),
    Bar("dense, bias, relu against expression", "expression", _of("dense_relu"), 1.4, None),
    *_each(("exp", "log", "tanh"), "numpy", 1.0, case="64 KiB", threads="one"),
    *_each(EXPRESSIONS + DERIVATIVES, "expression", 3.0),
    *_each(LARGE, "ceiling", 0.85, threads="all"),
    Bar(f"Adam, {ADAM} parameters, against torch", "torch", _of("adam"), None, 1.0),
    Bar(f"Adam, {ADAM} parameters, against expression", "expression", _of("adam"), None, 4.0),
]


class Line(NamedTuple):
    """A bar and what was measured."""

    title: str
    wanted: str
    mean: str = ""
    least: str = ""
    where: str = ""
    verdict: str = "not measured"


# --- reading ----------------------------------------------------------------------------------------------------------


def read(paths: list[Path]) -> list[Run]:
    """The runs in some files, by threads and dtype; a later file adds to or replaces what an earlier one has."""
    machines: dict[tuple[int, str], dict[str, Any]] = {}
    found: dict[tuple[int, str], dict[tuple[str, str, str], Point]] = {}
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        for record in document["results"]:
            run = (document["machine"]["threads"], record["dtype"])
            machines[run] = document["machine"]
            key = (record["group"], record["operation"], record["case"])
            point = found.setdefault(run, {}).setdefault(key, Point(*key, record["arguments"], {}))
            point.records[record["library"]] = record
    return [
        Run(machines[run], run[1], [p for p in found[run].values() if "fastnn" in p.records]) for run in sorted(found)
    ]


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(run: Run, most_threads: int) -> list[Line]:
    """One line for each bar."""
    return [_line(bar, run, most_threads) for bar in BARS]


def _line(bar: Bar, run: Run, most_threads: int) -> Line:
    ratios = {p.case: p.ratio(bar.rival) for p in run.points if bar.covers(p) and bar.rival in p.records}
    if not ratios:
        return Line(bar.title, bar.wanted)
    where = min(ratios, key=ratios.__getitem__)
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    asked = {"any": True, "one": run.threads == 1, "all": run.threads == most_threads}[bar.threads]
    verdict = ("pass" if bar.met(mean, ratios[where]) else "FAIL") if asked else "not asked"
    return Line(bar.title, bar.wanted, f"{mean:.2f}", f"{ratios[where]:.2f}", where, verdict)


def _python(run: Run) -> str | None:
    for point in run.points:
        if "python" in point.records:
            seconds = point.records["python"]["median"]
            return f"pure Python triple loop, {point.case}: {seconds:.2f} s, {point.ratio('python'):.0f} times as long"
    return None


def table(lines: list[Line]) -> str:
    """Aligned columns."""
    rows = [Line("", "wanted", "mean", "min", "where", "verdict"), *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(Line._fields))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def heading(run: Run) -> str:
    """Title and ceilings of a run."""
    peak, copy = run.machine["fma_peak"].get(run.dtype), run.machine["copy_bandwidth"]
    parts = [run.title] + ([f"FMA peak {peak / 1e9:.0f} GFLOP/s"] if peak else [])
    return ", ".join([*parts, f"copy bandwidth {copy / 1e9:.1f} GB/s", f"load {run.machine['load']}"])


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of benchmarks.grid")
    runs = read(parser.parse_args(arguments).results)
    most = max(run.threads for run in runs)
    for run in runs:
        print(heading(run), "", table(judge(run, most)), sep="\n")
        print(_python(run) or "", "", sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
