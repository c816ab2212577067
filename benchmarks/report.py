"""Tables and a chart: ``python -m benchmarks.report results.json [--readme README.md] [--chart FILE]``.

Reads the JSON of `benchmarks.compare` or of ``pytest benchmarks --benchmark-only --benchmark-json=results.json``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases import OPERATIONS
from benchmarks.rivals import LIBRARIES

MARKERS = ("<!-- benchmarks:start -->", "<!-- benchmarks:end -->")
TITLES = {"numpy": "NumPy", "sklearn": "scikit-learn", "torch": "PyTorch", "jax": "JAX", "python": "Python loops"}
COLOURS = {"numpy": "#4477aa", "sklearn": "#ee9944", "torch": "#cc3355", "jax": "#228855", "python": "#999999"}

# One row of each kind, for the README and the chart: the sizes of a 784-256-10 network, else the largest.
HEADLINES = {
    "train": list(OPERATIONS["train"].cases),
    "predict": list(OPERATIONS["predict"].cases),
    "matmul": ["32 x 784 x 256, forward", "784 x 32 x 256, weight gradient", "512 x 512 x 512"],
    "dense_relu": ["32 x 784 x 256"],
    **{name: ["1024 x 256"] for name in ("relu", "sigmoid", "tanh")},
    "softmax": ["4096 x 10"],
    "bce_gradient": ["65536 logits"],
    "sgd": ["200000 parameters"],
    "adam": ["200000 parameters"],
}


class Row(NamedTuple):
    """Seconds of each library for one case."""

    operation: str
    case: str
    times: dict[str, float]

    @property
    def title(self) -> str:
        """For people: "matmul, 64 x 64 x 64"."""
        return f"{OPERATIONS[self.operation].title}, {self.case}".replace(" x ", "×")

    def ratio(self, library: str) -> float:
        """How many times as long as fastnn a library takes."""
        return self.times[library] / self.times["fastnn"]


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The machine and the rows of a file."""
    document = json.loads(path.read_text())
    if "benchmarks" in document:
        machine, records = document["machine_info"]["fastnn"], _pytest_records(document)
    else:
        machine, records = document["machine"], document["results"]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        found.setdefault((record["operation"], record["case"]), {})[record["library"]] = record["median"]
    rows = [
        Row(operation, case, found[operation, case])
        for operation, spec in OPERATIONS.items()
        for case in spec.cases
        if "fastnn" in found.get((operation, case), {})
    ]
    return machine, rows


def _pytest_records(document: dict[str, Any]) -> list[dict[str, Any]]:
    entries = [(entry["extra_info"], entry["stats"]["median"]) for entry in document["benchmarks"]]
    return [info | {"median": median / info["steps"]} for info, median in entries]


def headlines(rows: list[Row]) -> list[Row]:
    """One row of each kind."""
    return [row for row in rows if row.case in HEADLINES[row.operation]]


# --- writing ----------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Three digits and a unit: "1.23 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-9)} ns"


def times(ratio: float) -> str:
    """Two or three digits: "0.85×", "4.2×", "1230×"."""
    return f"{ratio:.2f}×" if ratio < 0.995 else f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def table(rows: list[Row]) -> str:
    """An aligned Markdown table."""
    libraries = [e for e in LIBRARIES if any(e in row.times for row in rows)]
    lines = [["", *(TITLES.get(e, e) for e in libraries)]]
    for row in rows:
        line = [row.title]
        for library in libraries:
            if library not in row.times:
                line.append("")
            elif library == "fastnn":
                line.append(f"**{duration(row.times[library])}**")
            else:
                line.append(f"{duration(row.times[library])} ({times(row.ratio(library))})")
        lines.append(line)
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """An aligned Markdown table of a header and rows; the first column to the left, others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def note(machine: dict[str, Any]) -> str:
    """Where and with what the figures were measured."""
    versions = machine["versions"]
    installed = [
        f"{TITLES.get(e, e)} {versions[e]}" for e in ("fastnn", "numpy", "sklearn", "torch", "jax") if e in versions
    ]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return (
        f"Medians on {machine['cpu']}, {threads} for every library, float32, Python {machine['python']}, "
        f"{', '.join(installed)}, {machine['date']}. In brackets: times as long as fastnn."
    )


def section(machine: dict[str, Any], rows: list[Row], chart: str | None = None) -> str:
    """What stands between the markers of README.md."""
    parts = [f"![Times as long as fastnn]({chart})"] if chart else []
    parts += [table(headlines(rows)), note(machine)]
    parts.append(f"<details>\n<summary>All sizes</summary>\n\n{table(rows)}\n\n</details>")
    return "\n\n".join(parts)


def put(text: str, body: str, markers: tuple[str, str] = MARKERS) -> str:
    """`text` with `body` between its markers."""
    start, end = markers
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"the file needs one line {start} and after it one line {end}")
    head, tail = text.split(start)[0], text.split(end)[1]
    return f"{head}{start}\n\n{body}\n\n{end}{tail}"


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(machine: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Bars of the times as long as fastnn, on a log scale, to a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    networks = [row for row in rows if row.operation in ("train", "predict")]
    panels = [("Networks", networks), ("Operations", [row for row in rows if row not in networks])]
    panels = [(title, group) for title, group in panels if group]
    libraries = [e for e in TITLES if any(e in row.times for row in rows)]
    # Both panels are as tall as the one with more bars, so that all bars are alike.
    span = max(sum(len(row.times) for row in group) for _, group in panels)
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        size = (6.2 * len(panels), 1.9 + 0.2 * span)
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        for axis, (title, group) in zip(axes[0], panels, strict=True):
            _panel(axis, group, span)
            axis.set_title(title, loc="left", fontweight="bold", pad=22)
        handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[e]) for e in libraries]
        figure.legend(
            handles, [TITLES[e] for e in libraries], loc="outside lower center", ncols=len(libraries), frameon=False
        )
        threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
        figure.suptitle(
            f"Time of each library as a multiple of fastnn's   ({machine['cpu']}, {threads}, float32)",
            x=0.01,
            ha="left",
            fontsize=12,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def _panel(axis: Any, rows: list[Row], span: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ratios = [row.ratio(e) for row in rows for e in row.times if e != "fastnn"]
    low, high = min(0.6, 0.3 * min(ratios)), max(3.0, 3 * max(ratios))
    stretch = span / sum(len(row.times) for row in rows)  # fewer rows stand further apart
    axis.set_xscale("log")
    axis.axvspan(low, 1, color="#f4f4f4", zorder=0)
    ticks = []
    top = 0.0
    for row in rows:
        libraries = [e for e in TITLES if e in row.times]
        middle = top + (stretch * len(row.times) - 1) / 2
        ticks.append(middle)
        top += stretch * len(row.times)
        for i, library in enumerate(libraries):
            ratio, y = row.ratio(library), middle + i - (len(libraries) - 1) / 2
            axis.barh(y, ratio - 1, left=1, height=0.84, color=COLOURS[library], zorder=2)
            side = -1 if ratio < 1 else 1
            axis.annotate(
                times(ratio),
                (ratio, y),
                xytext=(4 * side, 0),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="center",
                fontsize=8.5,
                color="#333333",
            )
    axis.axvline(1, color="#222222", linewidth=1.2, zorder=3)
    axis.set_xlim(low, high)
    axis.set_ylim(span - 0.3, -0.7)
    labels = [f"{OPERATIONS[row.operation].title}\n{row.case}".replace(" x ", "×") for row in rows]
    axis.set_yticks(ticks, labels, linespacing=1.3)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(LogLocator(10))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    for text, side in (("← faster than fastnn", -1), ("slower than fastnn →", 1)):
        if side > 0 or low < 0.3:
            axis.annotate(
                text,
                (1, 1),
                xycoords=("data", "axes fraction"),
                xytext=(5 * side, 6),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                fontsize=8.5,
                color="#666666",
            )


def main(arguments: list[str] | None = None) -> int:
    """Print the full table; write README's section and the chart where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="JSON file of benchmarks.compare or pytest-benchmark")
    parser.add_argument(
        "--readme", type=Path, help=f"file to write the tables into, between {MARKERS[0]} and {MARKERS[1]}"
    )
    parser.add_argument("--chart", type=Path, help="PNG to draw")
    options = parser.parse_args(arguments)
    machine, rows = read(options.results)
    print(table(rows), note(machine), sep="\n\n")
    if options.chart:
        draw(machine, headlines(rows), options.chart)
    if options.readme:
        chart = None
        if options.chart:
            chart = Path(os.path.relpath(options.chart, options.readme.parent)).as_posix()
        text = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(put(text, section(machine, rows, chart)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
