"""The picture of a profile: a bar for each operation, its floor marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastnn.profiling import Profile, Row

COLOURS = {"arithmetic": "#2f6db3", "memory": "#e08a2c", "waiting": "#9a9a9a"}
LABELS = {"arithmetic": "bound by arithmetic", "memory": "bound by memory", "waiting": "waiting at barriers"}
INK, PALE = "#222222", "#666666"


def draw(found: Profile, path: str | Path | None) -> Any:
    """A figure with a bar for each operation and one for the waiting; saved to `path` if there is one."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Profile.plot needs matplotlib, which is not installed: python -m pip install 'fastnn[plot]'"
        ) from error
    bars = len(found.rows) + (found.threads > 1)
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}):
        figure = Figure(figsize=(9.0, 1.5 + 0.27 * bars), layout="constrained")
        axis = figure.add_subplot()
        _bars(axis, found)
        _headings(figure, axis, found)
        if path is not None:
            figure.savefig(path, dpi=130, facecolor="white")
    return figure


def _bars(axis: Any, found: Profile) -> None:
    times = [row.seconds * 1e6 for row in found.rows]
    kinds = [row.bound for row in found.rows]
    names = [row.operation for row in found.rows]
    notes = [_note(row) for row in found.rows]
    if found.threads > 1:
        times.append(found.waiting * 1e6)
        kinds.append("waiting")
        names.append(LABELS["waiting"])
        notes.append(_microseconds(found.waiting))
    places = range(len(times))
    axis.barh(places, times, height=0.68, color=[COLOURS[kind] for kind in kinds], zorder=2)
    floors = [row.floor * 1e6 for row in found.rows]
    for place, floor in enumerate(floors):
        axis.plot([floor, floor], [place - 0.42, place + 0.42], color=INK, linewidth=2.2, zorder=3)
    ends = [max(pair) for pair in zip(times, [*floors, 0.0], strict=False)]
    for place, end, note in zip(places, ends, notes, strict=True):
        axis.annotate(note, (end, place), (5, 0), textcoords="offset points", va="center", color=PALE)
    axis.set_yticks(places, names, color=INK)
    axis.tick_params(axis="y", length=0, pad=6)
    axis.set_ylim(len(times) - 0.4, -0.6)
    axis.set_xlim(0, 1.32 * max(ends))  # room for what stands beside the longest bar
    axis.set_xlabel("microseconds")
    axis.xaxis.grid(True, color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    _layers(axis, found)


def _layers(axis: Any, found: Profile) -> None:
    """Layers' names left of the operations, each once where it stands several times in sequence."""
    wide = max(len(name.get_text()) for name in axis.get_yticklabels()) + max(len(row.layer) for row in found.rows)
    style: dict[str, Any] = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
    before = None
    for place, row in enumerate(found.rows):
        if row.layer != before:
            # Points, not parts of the axis, whose width depends on how much stands beside it.
            left = (-5.4 * wide - 12, 0)
            axis.annotate(row.layer, (0, place), left, va="center", fontweight="bold", color=INK, **style)
            if before is not None:
                axis.axhline(place - 0.5, color="#e4e4e4", linewidth=0.8, zorder=0)
        before = row.layer


def _note(row: Row) -> str:
    if row.seconds <= 0:
        return "less than a look at the clock"
    return f"{_microseconds(row.seconds)}, {row.share:.0%} of the peak"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e6:,.0f} µs"


def peak(found: Profile) -> str:
    """For people: "456 GFLOP/s (1151 on the matrix unit)"."""
    tiles = f" ({found.tile_peak / 1e9:.0f} on the matrix unit)" if found.tile_peak else ""
    return f"{found.peak / 1e9:.0f} GFLOP/s{tiles}"


def _headings(figure: Any, axis: Any, found: Profile) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    what = "Training step" if found.mode == "train" else "Step of predict"
    threads = f"{found.threads} thread{'s' if found.threads != 1 else ''}"
    rows = f"{found.batch} row{'s' if found.batch != 1 else ''}"
    figure.suptitle(
        f"{what} of {found.model!r}: {_microseconds(found.step)}   ({rows}, {found.dtype}, {threads})",
        x=0.01, ha="left", fontsize=11, fontweight="bold",
    )  # fmt: skip
    kinds = [kind for kind in COLOURS if kind in {row.bound for row in found.rows}]
    kinds += ["waiting"] if found.threads > 1 else []
    handles: list[Any] = [Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in kinds]
    peaks = f"{peak(found)} or {found.bandwidth / 1e9:.0f} GB/s"
    handles.append(Line2D([], [], color=INK, linewidth=2.2, label=f"floor at the measured peaks, {peaks}"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, handlelength=1.2)
