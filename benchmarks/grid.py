"""The grid: kernels beside their rivals and the machine's ceilings: ``python -m benchmarks.grid [--threads N] ...``.

Everything is checked against float64, then timed as `benchmarks.compare` does it, interleaved, several times over: a
pass over the whole grid gives one median for each contestant, and the median of the passes counts.  Calls are those
that users make: products and functions return new arrays (only the arrays of 256 MiB are written in place).

`benchmarks.verdict` reads the results, `benchmarks.figures` draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import checks, compare, grid_cases, grid_rivals, machine
from benchmarks.cases import Operation
from benchmarks.grid_cases import GROUPS, UNITS
from fastnn.cpu import ceilings

DTYPES = ["float32", "float64"]
PASSES, ROUNDS = 3, 4
LOOPS = (256, 256, 256)  # the product that pure Python does, once

Key = tuple[str, str, str, str]  # group, operation, case, dtype


def points(groups: list[str], dtypes: list[str], *, quick: bool = False) -> Iterator[tuple[Key, Operation]]:
    """Everything there is to measure, small cases first."""
    for dtype in dtypes:
        for group in groups:
            for name, spec in grid_cases.operations(group, dtype, quick=quick).items():
                if function := grid_rivals.missing(name):
                    print(f"skipped {name}: there is no fastnn.{function}", file=sys.stderr)
                    continue
                for case in spec.cases:
                    yield (group, name, case, dtype), spec


def check(key: Key, spec: Operation, libraries: list[str] | None) -> None:
    """Raise AssertionError if a contestant's answer differs from the one in float64."""
    _, name, case, dtype = key
    inputs = spec.make(case, dtype)
    expected = spec.reference(**inputs)
    for library in grid_rivals.contestants(name, libraries):
        call = grid_rivals.TABLE[name][library](**inputs)
        what = f"{library}: {spec.title}, {case}, {dtype}"
        checks.check_answer(call, spec.calls, expected, spec.allowed(dtype), what)


def time_point(
    key: Key, spec: Operation, threads: int, rounds: int, libraries: list[str] | None
) -> dict[str, tuple[float, float | None]]:
    """Median seconds and work of a call of each contestant."""
    group, name, case, dtype = key
    inputs = spec.make(case, dtype)
    calls = {e: grid_rivals.TABLE[name][e](**inputs) for e in grid_rivals.contestants(name, libraries)}
    work = dict.fromkeys(calls, spec.work(*spec.cases[case]) if spec.work else None)
    if grid_cases.has_ceiling(group, spec.cases[case]) and (libraries is None or "ceiling" in libraries):
        calls["ceiling"], work["ceiling"] = grid_rivals.ceiling(group, dtype, threads)
    samples = compare.interleaved(calls, rounds, threads=threads)
    return {e: (statistics.median(samples[e]), work[e]) for e in calls}


def run(
    grid: list[tuple[Key, Operation]], threads: int, rounds: int, passes: int, libraries: list[str] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Check everything, time it `passes` times; yields one record for each point and contestant after each pass."""
    for key, spec in grid:
        check(key, spec, libraries)
    records: dict[tuple[Key, str], dict[str, Any]] = {}
    for turn in range(passes):
        for key, spec in grid:
            for library, (seconds, work) in time_point(key, spec, threads, rounds, libraries).items():
                group, operation, case, dtype = key
                record = records.setdefault(
                    (key, library),
                    {
                        "group": group,
                        "operation": operation,
                        "case": case,
                        "arguments": list(spec.cases[case]),
                        "dtype": dtype,
                        "library": library,
                        "work": work,
                        "unit": UNITS.get(group),
                        "passes": [],
                    },
                )
                record["passes"].append(seconds)
                record["median"] = statistics.median(record["passes"])
            _show(f"pass {turn + 1}", key, [r for (k, _), r in records.items() if k == key])
        yield list(records.values())


def python_loops() -> dict[str, Any]:
    """The triple loop in pure Python, once: it takes seconds."""
    spec = grid_cases.operations("products", "float32")["matmul"]
    case = grid_cases.name(*LOOPS)
    inputs = spec.make(case)
    began = time.perf_counter()
    answer = grid_rivals.triple_loop(**inputs)()
    seconds = time.perf_counter() - began
    checks.check_answer(lambda: answer, 1, spec.reference(**inputs), spec.tolerance, "pure Python")
    record = {"group": "products", "operation": "matmul", "case": case, "arguments": list(LOOPS), "dtype": "float32"}
    record |= {"library": "python", "work": grid_cases.flops(*LOOPS), "unit": "flop"}
    return record | {"passes": [seconds], "median": seconds}


def measure_ceilings(threads: int, dtypes: list[str]) -> dict[str, Any]:
    """The best the machine did, for the header of the results."""
    peak = {dtype: ceilings.fma_peak(dtype, threads) for dtype in dtypes}
    return {"fma_peak": peak, "copy_bandwidth": ceilings.copy_bandwidth(threads)}


def _show(title: str, key: Key, records: list[dict[str, Any]]) -> None:
    last = {r["library"]: r["passes"][-1] for r in records}
    cells = [f"{library} {1e6 * seconds:.4g}" for library, seconds in last.items()]
    print(f"{title}  {key[3]}  {key[1]}, {key[2]}:  {'  '.join(cells)} us", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Write the JSON that `benchmarks.verdict` and `benchmarks.figures` read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, help="for every library; default: the CPUs this process may use")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, metavar="DTYPE")
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help="of %(choices)s"
    )
    parser.add_argument(
        "--libraries", nargs="+", choices=grid_rivals.LIBRARIES, metavar="LIBRARY", help="of %(choices)s"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contestant in a pass")
    parser.add_argument("--passes", type=int, default=PASSES, help="over the grid; the median of their medians counts")
    parser.add_argument("--quick", action="store_true", help="one pass of one round, squares up to 512")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/grid-<CPU>.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = options.passes = 1
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # without it jax computes float64 in float32
    threads = machine.use_threads(options.threads)
    about = machine.describe(threads)
    if about["load"] > compare.BUSY:
        print(f"warning: other programs are running (load {about['load']}): ratios will be wrong", file=sys.stderr)
    about |= measure_ceilings(threads, options.dtypes)
    grid = list(points(options.only, options.dtypes, quick=options.quick))
    loops = [python_loops()] if "products" in options.only and not options.libraries else []
    default = compare.default_output(about)
    output = options.output or default.with_name(f"grid-{default.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    for results in run(grid, threads, options.rounds, options.passes, options.libraries):
        document = {"machine": about, "rounds": options.rounds, "results": results + loops}
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
