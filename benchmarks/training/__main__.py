"""Run the parts of the training benchmark, print their tables and keep their results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import compare, machine
from benchmarks.training import (
    chart,
    memory,
    mnist98,
    networks,
    optimizers,
    predict,
    report,
    simultaneous,
    start,
)
from benchmarks.training.part import Record, Settings
from benchmarks.training.table import LIBRARIES

ROUNDS = 7
PARTS: dict[str, Callable[[Settings], Iterator[Record]]] = {
    "networks": networks.run,
    "optimizers": optimizers.run,
    "predict": predict.run,
    "mnist98": mnist98.run,
    "start": start.run,
    "simultaneous": simultaneous.run,
    "memory": memory.run,
}


def measure(names: list[str], settings: Settings, about: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run some parts; the file is written after each record and keeps what it has of other parts."""
    document = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"parts": {}}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        results: list[Record] = []
        document["parts"][name] = {"machine": about, "rounds": settings.rounds, "results": results}
        for record in PARTS[name](settings):
            results.append(record)
            _show(name, record)
            output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _show(part: str, record: Record) -> None:
    words = [str(value) for value in record.values() if isinstance(value, str)]
    time = f"{1e6 * record['median']:.4g} us" if "median" in record else ""
    print(f"{part}: {', '.join(words)}  {time}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the JSON, print the tables, draw the chart where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--threads", type=int, help="for every library; default: the CPUs this process may use")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="of %(choices)s")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, metavar="LIBRARY", help="of %(choices)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of short epochs")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/training-<CPU>.json")
    parser.add_argument("--chart", type=Path, help="PNG to draw of the networks: docs/img/training.png, say")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    threads = machine.use_threads(options.threads)
    rounds = 1 if options.quick else options.rounds
    settings = Settings(threads, rounds, options.libraries, options.quick)
    about = machine.describe(threads)
    if about["load"] > compare.BUSY:
        print(f"warning: other programs are running (load {about['load']}): ratios will be wrong", file=sys.stderr)
    default = compare.default_output(about)
    output = options.output or default.with_name(f"training-{default.name}")
    document = measure(options.only, settings, about, output)
    print(report.text(document))
    if options.chart and "networks" in document["parts"]:
        chart.draw(document["parts"]["networks"], options.chart)
    print(f"wrote {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
