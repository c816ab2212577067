"""Pictures of the grid: ``python -m benchmarks.figures benchmarks/results/grid-*.json [--folder docs/img]``.

``products.png`` is a heat map of the products of a network's layers, ``squares.png`` has curves over square sizes.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grid_cases import LAYOUTS, PRODUCTS
from benchmarks.report import COLOURS, TITLES
from benchmarks.verdict import Point, Run, read

RIVALS = ("numpy", "torch")
CURVES = {"fastnn": "#111111", **{e: COLOURS[e] for e in ("numpy", "torch", "jax")}}
MARKERS = {"fastnn": "o", "numpy": "s", "torch": "^", "jax": "D"}
SCALE = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the colours; ratios beyond it have the full colour
TITLE: dict[str, Any] = {"loc": "left", "fontweight": "bold", "fontsize": 10}


# --- products -------------------------------------------------------------------------------------------------------


def draw_products(runs: list[Run], path: Path) -> None:
    """A row of panels for each number of threads, a panel for each rival; the colours diverge at equal speed."""
    threads = sorted({run.threads for run in runs})
    with _panels(len(threads), len(RIVALS), (5.6 * len(RIVALS), 0.9 + 4.2 * len(threads)), path) as (figure, axes):
        for row, count in zip(axes, threads, strict=True):
            group = sorted((run for run in runs if run.threads == count), key=lambda run: run.dtype)
            for axis, rival in zip(row, RIVALS, strict=True):
                image = _heat_map(axis, group, rival)
                axis.set_title(f"against {TITLES[rival]}, {_threads(count)}", **TITLE)
            row[0].set_yticks(range(len(PRODUCTS)), ["×".join(map(str, mkn)) for mkn in PRODUCTS])
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.015)
        bar.set_ticks([math.log2(e) for e in SCALE], labels=[f"{e:g}×" for e in SCALE])
        bar.outline.set_visible(False)
        _headline(figure, "Speed of fastnn over its rivals', products of MLP layers", runs)


def _heat_map(axis: Any, runs: list[Run], rival: str) -> Any:
    columns = [(run, layout) for run in runs for layout in LAYOUTS]
    ratios = np.array([[_ratio(run, (*mkn, layout), rival) for run, layout in columns] for mkn in PRODUCTS])
    low, high = math.log2(SCALE[0]), math.log2(SCALE[-1])
    shades = np.clip(np.log2(ratios), low, high)
    image = axis.imshow(shades, cmap="RdBu", vmin=low, vmax=high, aspect="auto")
    for i, row in enumerate(ratios):
        for j, ratio in enumerate(row):
            colour = "white" if abs(shades[i, j]) > 0.65 * high else "#222222"
            text = "" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), [LAYOUTS[layout].replace(" ", "") for _, layout in columns])
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for i, run in enumerate(runs):
        middle = (i + 0.5) * len(LAYOUTS) - 0.5
        place = {"xycoords": ("data", "axes fraction"), "xytext": (0, -26), "textcoords": "offset points"}
        axis.annotate(run.dtype, (middle, 0), ha="center", **place)
        if i:
            axis.axvline(i * len(LAYOUTS) - 0.5, color="white", linewidth=4)
    return image


def _ratio(run: Run, arguments: tuple, rival: str) -> float:
    for point in run.points:
        if point.operation == "matmul" and (*point.arguments, "")[:4] == arguments and rival in point.records:
            return point.ratio(rival)
    return math.nan


# --- squares --------------------------------------------------------------------------------------------------------


def draw_squares(runs: list[Run], path: Path) -> None:
    """GFLOP/s over square sizes, a panel for each dtype and number of threads, with the FMA peak as a line."""
    threads, dtypes = sorted({run.threads for run in runs}), sorted({run.dtype for run in runs})
    with _panels(len(threads), len(dtypes), (5.2 * len(dtypes), 0.9 + 2.9 * len(threads)), path) as (figure, axes):
        for run in runs:
            axis = axes[threads.index(run.threads)][dtypes.index(run.dtype)]
            _curves(axis, run)
            axis.set_title(f"{run.dtype}, {_threads(run.threads)}", **TITLE)
        for row in axes:
            row[0].set_ylabel("GFLOP/s")
        for axis in axes[-1]:
            axis.set_xlabel("n, for n×n times n×n")
        handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda pair: len(pair[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        _headline(figure, "Products of squares", runs)


def _curves(axis: Any, run: Run) -> None:
    from matplotlib.ticker import NullLocator

    points = sorted((p for p in run.points if _square(p)), key=lambda p: p.arguments[0])
    for library, colour in CURVES.items():
        sizes = [p.arguments[0] for p in points if library in p.records]
        rates = [p.rate(library) / 1e9 for p in points if library in p.records]
        if sizes:
            front = library == "fastnn"
            style = {"linewidth": 2.2 if front else 1.3, "markersize": 4, "zorder": 4 if front else 3}
            axis.plot(sizes, rates, color=colour, marker=MARKERS[library], label=TITLES.get(library, library), **style)
    peak = _peak(run) / 1e9
    axis.axhline(peak, color="#666666", linestyle="--", linewidth=1.2, label="FMA peak")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    sizes = [p.arguments[0] for p in points]
    axis.set_xticks(sizes, [str(n) for n in sizes], rotation=45)
    axis.set_ylim(0, 1.1 * peak)
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)


def _peak(run: Run) -> float:
    """The ceiling as it was beside the products: a virtual machine's clock moves by a fifth within minutes."""
    beside = [p.rate("ceiling") for p in run.points if _square(p) and "ceiling" in p.records]
    return statistics.median(beside) if beside else run.machine["fma_peak"][run.dtype]


def _square(point: Point) -> bool:
    return point.operation == "matmul" and len(point.arguments) == 3 and len(set(point.arguments)) == 1


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


# --- what both have in common ---------------------------------------------------------------------------------------


@contextmanager
def _panels(rows: int, columns: int, size: tuple[float, float], path: Path) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, saved at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        yield figure, axes
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def _headline(figure: Any, text: str, runs: list[Run]) -> None:
    figure.suptitle(f"{text}   ({runs[0].machine['cpu']})", x=0.01, ha="left", fontsize=11)


def main(arguments: list[str] | None = None) -> int:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of benchmarks.grid")
    parser.add_argument("--folder", type=Path, default=Path("docs/img"), help="where the PNGs go")
    options = parser.parse_args(arguments)
    runs = [run for run in read(options.results) if any(point.group == "products" for point in run.points)]
    if not runs:
        parser.error("no products in these results")
    draw_products(runs, options.folder / "products.png")
    draw_squares(runs, options.folder / "squares.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
