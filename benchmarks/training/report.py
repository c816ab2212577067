"""Tables of the training benchmark: ``python -m benchmarks.training.report FILE [--readme README.md] [--chart PNG]``.

A ratio is the time of a rival over that of fastnn, both medians: above 1 fastnn is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import TITLES as REPORT_TITLES
from benchmarks.report import duration, markdown, note, put, times
from benchmarks.training import chart
from benchmarks.training.part import Record
from benchmarks.training.predict import FLOORS
from benchmarks.training.table import CASES, DENSE, LIBRARIES, MEAN_BARS, Case

TITLES = REPORT_TITLES | {"torch": "PyTorch, eager", "torch_compiled": "torch.compile"}
MARKERS = ("<!-- training:start -->", "<!-- training:end -->")
ACCURACY = 0.98
FLOOR = next(iter(FLOORS))
Rows = list[list[str]]


class Line(NamedTuple):
    """A bar and what was measured."""

    title: str
    wanted: str
    found: str = ""
    rival: str = ""
    verdict: str = "not measured"


HEADER = ["", "wanted", "found", "best rival", ""]


# --- judging ----------------------------------------------------------------------------------------------------------


def medians(results: list[Record]) -> dict[str, dict[str, float]]:
    """Seconds of a step: network -> library -> median."""
    found: dict[str, dict[str, float]] = {}
    for record in results:
        if "median" in record:
            found.setdefault(record["network"], {})[record["library"]] = record["median"]
    return found


def ratios(results: list[Record], library: str) -> dict[str, float]:
    """Times as long as fastnn that a library takes, by network with a bar."""
    seconds = medians(results)
    wanted = {case.name: seconds[case.name] for case in CASES if case.name in seconds}
    return {e: t[library] / t["fastnn"] for e, t in wanted.items() if library in t and "fastnn" in t}


def judge(results: list[Record]) -> list[Line]:
    """A line for each network's bar, and for each of the geometric means."""
    seconds = medians(results)
    lines = []
    for case in CASES:
        own = seconds.get(case.name, {})
        wanted = f"{case.bar:g}"
        rivals = {e: value for e, value in own.items() if e != "fastnn"}
        if "fastnn" not in own or not rivals:
            lines.append(Line(case.name, wanted))
            continue
        best = min(rivals, key=rivals.__getitem__)
        ratio = rivals[best] / own["fastnn"]
        lines.append(Line(case.name, wanted, f"{ratio:.2f}", TITLES[best], _verdict(ratio >= case.bar)))
    for library, bar in MEAN_BARS.items():
        found = ratios(results, library)
        title = f"geometric mean, against {TITLES[library]}"
        if len(found) < len(CASES):  # a mean over some networks is another figure
            lines.append(Line(title, f"{bar:g}"))
            continue
        mean = math.exp(math.fsum(map(math.log, found.values())) / len(found))
        lines.append(Line(title, f"{bar:g}", f"{mean:.2f}", "", _verdict(mean >= bar)))
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


# --- writing ----------------------------------------------------------------------------------------------------------


def columns(rows: Rows) -> str:
    """Aligned columns, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [
        [row[0].ljust(widths[0]), *(e.rjust(w) for e, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _cell(figures: Record) -> str:
    return f"{duration(figures['median'])} ({duration(figures['low'])})"


def _asked(results: list[Record]) -> str:
    """What each bar asks for, beside the floor of its step."""
    seconds = medians(results)
    floors = {e["network"]: e["floor"] for e in results if "floor" in e}
    rows = [["", "best rival", "over the bar", "floor", "fastnn", "floor over fastnn"]]
    for case in CASES:
        own = seconds.get(case.name, {})
        rivals = [value for e, value in own.items() if e != "fastnn"]
        if case.name in floors and rivals:
            best, floor = min(rivals), floors[case.name]
            cells = [duration(e) for e in (best, best / case.bar, floor, own["fastnn"])]
            rows.append([case.name, *cells, f"{floor / own['fastnn']:.2f}"])
    return columns(rows) if len(rows) > 1 else ""


def _networks(results: list[Record]) -> str:
    found = {(e["network"], e["library"]): e for e in results if "median" in e}
    libraries = [e for e in LIBRARIES if any(e == library for _, library in found)]
    rows = [["", *(TITLES.get(e, e) for e in libraries)]]
    for case in [*CASES, *DENSE]:
        cells = [found.get((case.name, e)) for e in libraries]
        if any(cells):
            rows.append([case.name, *(_cell(e) if e else "" for e in cells)])
    notes = [f"{_contestant(e)} was left out: {e['problem']}" for e in results if "problem" in e]
    bars = columns([HEADER, *map(list, judge(results))])
    tables = [bars, f"A step, median (lower quartile):\n{columns(rows)}"]
    if asked := _asked(results):
        tables.append(f"What the bars ask for, beside the peak and the bandwidth of the same minute:\n{asked}")
    return "\n\n".join([*tables, *notes])


def _contestant(record: Record) -> str:
    return TITLES[record["library"]] if "library" in record else record["network"]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _optimizers(results: list[Record]) -> str:
    rows = [["", "step", "bytes of a step", "bytes a second"]]
    for e in results:
        size, rate = e["bytes"] / 1e6, e["bytes"] / e["median"] / 1e9
        rows.append([f"{e['network']}, {e['optimizer']}", _cell(e), f"{size:.1f} MB", f"{rate:.1f} GB/s"])
    return columns(rows)


def _predict(results: list[Record]) -> str:
    (floor,) = (e["median"] for e in results if e["library"] == FLOOR)
    rows = [["", "a row", "over the floor, from L2"]]
    for e in sorted(results, key=lambda e: e["median"]):
        rows.append([TITLES.get(e["library"], e["library"]), _cell(e), f"{e['median'] / floor:.2f}"])
    return columns(rows)


def _mnist98(results: list[Record]) -> str:
    rows = [["", "import", "load", "train", "evaluate", "in all", "least accuracy", ""]]
    for e in results:
        least = min(e["accuracies"])
        phases = [duration(e[phase]["median"]) for phase in ("import", "load", "train", "evaluate", "wall")]
        rows.append([TITLES.get(e["library"], e["library"]), *phases, f"{least:.2%}", _verdict(least >= ACCURACY)])
    return columns(rows) + _against("in all", {e["library"]: e["wall"]["median"] for e in results})


def _start(results: list[Record]) -> str:
    rows = [["cache of kernels", "import", "first fit", "the process in all"]]
    rows += [[e["cache"], *(_cell(e[phase]) for phase in ("import", "fit", "wall"))] for e in results]
    return columns(rows)


def _simultaneous(results: list[Record]) -> str:
    timed = [e for e in results if "median" in e]
    rows = [["", "step of each fit, as a share of the time", "times one fit's"]]
    rows += [[e["what"], _cell(e), f"{e['median'] / timed[0]['median']:.2f}"] for e in timed]
    counts = [
        f"the same bits with {', '.join(map(str, e['threads']))} threads: {_verdict(e['equal'])}"
        for e in results
        if "equal" in e
    ]
    return "\n".join([f"{timed[0]['network']}, {_threads(timed[0]['threads'])}", columns(rows), *counts])


def _memory(results: list[Record]) -> str:
    rows = [["", "after importing it", "at most"]]
    for e in results:
        rows.append(
            [TITLES.get(e["library"], e["library"]), f"{e['imported'] / 1e6:.0f} MB", f"{e['peak'] / 1e6:.0f} MB"]
        )
    return columns(rows) + _against("memory", {e["library"]: e["peak"] for e in results})


def _against(what: str, values: dict[str, float]) -> str:
    own = values.get("fastnn")
    rest = [f"{TITLES[e]} {value / own:.2f} times" for e, value in values.items() if own and e != "fastnn"]
    return f"\n{what}, over fastnn's: {', '.join(rest)}" if rest else ""


PARTS: dict[str, tuple[str, Callable[[list[Record]], str]]] = {
    "networks": ("Training steps: times as fast as the best rival", _networks),
    "optimizers": ("fastnn's optimizers", _optimizers),
    "predict": ("One row through 784-256-10", _predict),
    "mnist98": ("MNIST to 98%, from the start of a process, kernels cached", _mnist98),
    "start": ("The first fit of 784-256-10", _start),
    "simultaneous": ("Threads that share CPUs", _simultaneous),
    "memory": ("Memory of an epoch of MNIST", _memory),
}


def text(document: dict[str, Any]) -> str:
    """All parts that a document has."""
    sections = []
    for name, (title, write) in PARTS.items():
        if name in document["parts"]:
            part = document["parts"][name]
            machine, results = part["machine"], part["results"]
            problems = [e["problem"] for e in results if e.keys() == {"problem"}]
            body = "\n".join(f"left out: {e}" for e in problems) or write(results)
            about = f"{machine['cpu']}, {_threads(machine['threads'])}, load {machine['load']}, {machine['date']}"
            sections.append(f"=== {title} ({about})\n\n{body}")
    return "\n\n".join(sections)


def section(part: dict[str, Any], chart: str | None = None) -> str:
    """What stands between the markers of README.md: the networks, and how many times as long the others take."""
    found = medians(part["results"])
    libraries = [e for e in LIBRARIES if any(e in own for own in found.values())]
    rows = [["training step", *(TITLES.get(e, e) for e in libraries)]]

    def put_rows(cases: list[Case]) -> int:
        """Rows of those that were measured; returns their number."""
        names = [case.name for case in cases if case.name in found]
        for name in names:
            own = found[name]
            cells = [f"**{duration(own['fastnn'])}**"]
            for e in libraries[1:]:
                cells.append(f"{duration(own[e])} ({times(own[e] / own['fastnn'])})" if e in own else "")
            rows.append([name, *cells])
        return len(names)

    measured, means = put_rows(CASES), []
    for e in libraries[1:]:
        values = ratios(part["results"], e).values()
        complete = len(values) == measured > 0
        means.append(f"{times(math.exp(math.fsum(map(math.log, values)) / len(values)))}" if complete else "")
    rows.append(["geometric mean", "", *means])
    put_rows(DENSE)
    picture = [f"![Time of a training step of each library]({chart})"] if chart else []
    return "\n\n".join([*picture, markdown(rows), note(part["machine"])])


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of a file, and draw its networks where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.report", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="JSON file of benchmarks.training")
    parser.add_argument(
        "--readme", type=Path, help=f"file to write a table into, between {MARKERS[0]} and {MARKERS[1]}"
    )
    parser.add_argument("--chart", type=Path, help="PNG to draw")
    options = parser.parse_args(arguments)
    document = json.loads(options.results.read_text(encoding="utf-8"))
    print(text(document))
    if (options.chart or options.readme) and "networks" not in document["parts"]:
        parser.error("no networks in these results")
    if options.chart:
        chart.draw(document["parts"]["networks"], options.chart)
    if options.readme:
        picture = None
        if options.chart:
            picture = Path(os.path.relpath(options.chart, options.readme.parent)).as_posix()
        body = section(document["parts"]["networks"], picture)
        text_now = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(put(text_now, body, MARKERS), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
