"""A picture of the networks: the time of a step of each library, on a log scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import COLOURS as REPORT_COLOURS
from benchmarks.report import duration, times
from benchmarks.training.table import CASES, LIBRARIES, Case

COLOURS = {"fastnn": "#111111", **REPORT_COLOURS, "torch_compiled": "#e08a9f"}
NAMES = {"numpy": "NumPy", "sklearn": "scikit-learn", "torch": "PyTorch, eager", "torch_compiled": "torch.compile"}
NAMES |= {"jax": "JAX", "python": "Python loops"}
GAP = 1.4  # bars between two networks
PANELS = 2


def draw(part: dict[str, Any], path: Path) -> None:
    """Draw what the part `networks` of a document holds to a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found: dict[str, dict[str, float]] = {}
    for record in part["results"]:
        if "median" in record:
            found.setdefault(record["network"], {})[record["library"]] = record["median"]
    cases = [case for case in CASES if "fastnn" in found.get(case.name, {})]
    if not cases:
        raise ValueError("no network with a time of fastnn in these results")
    half = -(-len(cases) // PANELS)
    groups = [cases[i : i + half] for i in range(0, len(cases), half)]
    span = max(sum(len(found[case.name]) + GAP for case in group) for group in groups)
    libraries = [e for e in LIBRARIES if any(e in found[case.name] for case in cases)]
    machine = part["machine"]
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        size = (6.4 * len(groups), 1.6 + 0.23 * span)
        figure, axes = plt.subplots(1, len(groups), figsize=size, layout="constrained", squeeze=False)
        for axis, group in zip(axes[0], groups, strict=True):
            _panel(axis, group, found, span)
        handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[e]) for e in libraries]
        labels = [NAMES.get(e, e) for e in libraries]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(libraries), frameon=False)
        threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
        title = f"Time of a training step with Adam   ({machine['cpu']}, {threads}, float32)"
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def _panel(axis: Any, cases: list[Case], found: dict[str, dict[str, float]], span: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    seconds = [s for case in cases for s in found[case.name].values()]
    low = min(seconds) / 3
    y, ticks = 0.0, []
    for case in cases:
        own = found[case.name]
        libraries = [e for e in LIBRARIES if e in own]
        ticks.append(y + (len(libraries) - 1) / 2)
        for library in libraries:
            axis.barh(y, own[library] - low, left=low, height=0.84, color=COLOURS[library], zorder=2)
            text = duration(own[library])
            front = library == "fastnn"
            if not front:
                text += f"  ({times(own[library] / own['fastnn'])})"
            axis.annotate(
                text,
                (own[library], y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                fontweight="bold" if front else "normal",
                color="#333333",
            )
            y += 1
        y += GAP
    axis.set_xscale("log")
    axis.set_xlim(low, 30 * max(seconds))  # room for the figures behind the longest bar
    axis.set_ylim(span - GAP + 0.3, -0.8)
    axis.set_yticks(ticks, [f"{case.network}\nbatch {case.batch}" for case in cases], linespacing=1.3)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(LogLocator(10))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)


def _plain(seconds: float) -> str:
    """A power of ten without digits: "10 µs"."""
    number, unit = duration(seconds).split()
    return f"{float(number):g} {unit}"
