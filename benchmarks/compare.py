"""Times every rival in one process, interleaved: ``python -m benchmarks.compare [--threads N] [--only train ...]``.

pytest-benchmark times one rival after the other, so a machine that slows down in between favours one of them.  Here all
take turns: each round times everyone once, starting with another one each time, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import checks, machine, rivals
from benchmarks.cases import OPERATIONS

# Idle threads of OpenBLAS and OpenMP spin before they sleep, OpenBLAS' for 25 to 110 ms, on the CPUs of the next rival:
# after 40 ms a step of 784-256-10 took 1.1 ms instead of 0.75.
LOOK = 0.01  # seconds
IDLE = 0.1  # CPUs' worth of time that an idle process takes at most
PATIENCE = 1.0  # seconds
SAMPLE = 0.02  # seconds of calls behind one sample
LIMIT = 60.0  # seconds for one case
LEAST = 5  # rounds, whatever that takes
BUSY = 0.5  # with one CPU of two taken, OpenBLAS was 100 times slower, torch 50, jax and fastnn 1.5


def settle() -> None:
    """Wait until no thread of this process runs."""
    began = now = time.perf_counter()
    share = 1.0
    while share > IDLE and now - began < PATIENCE:
        then, used = now, time.process_time()
        time.sleep(LOOK)
        now = time.perf_counter()
        share = (time.process_time() - used) / (now - then)


def interleaved(
    calls: dict[str, rivals.Rival], rounds: int, *, threads: int = 2, limit: float = LIMIT
) -> dict[str, list[float]]:
    """Seconds of one call of each, `rounds` times in turn; fewer, but `LEAST`, if they take over `limit` seconds."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        repeats = {name: _repeats(call) for name, call in calls.items()}
        order = list(calls)
        began = time.perf_counter()
        for turn in range(rounds):
            for name in order:
                if threads > 1:
                    settle()
                samples[name].append(_sample(calls[name], repeats[name]))
            order.append(order.pop(0))
            if turn + 1 >= LEAST and time.perf_counter() - began > limit:
                break
    finally:
        gc.enable()
    return samples


def _repeats(call: rivals.Rival) -> int:
    """Calls that take `SAMPLE` together; the first calls also warm up compilers, caches and threads."""
    call()
    once = min(_sample(call, 1) for _ in range(2))
    return max(1, min(10_000, round(SAMPLE / once)))


def _sample(call: rivals.Rival, repeats: int) -> float:
    if repeats > 1:
        call()  # wakes the library's threads
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def compare(operations: list[str], rounds: int, *, libraries: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Check and time all cases of the operations; yields one record for each case and library."""
    for operation in operations:
        spec = OPERATIONS[operation]
        for case in spec.cases:
            names = [e for e in rivals.contestants(operation, case) if libraries is None or e in libraries]
            for library in names:
                checks.check(operation, library, case)
            calls = {library: rivals.make(operation, library, case) for library in names}
            samples = interleaved(calls, rounds)
            for library in names:
                units = getattr(calls[library], "steps", 1)
                times = [sample / units for sample in samples[library]]
                yield {
                    "operation": operation,
                    "case": case,
                    "unit": spec.unit,
                    "library": library,
                    "median": statistics.median(times),
                    "samples": times,
                }


def main(arguments: list[str] | None = None) -> int:
    """Write the JSON that `benchmarks.report` reads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write; default: benchmarks/results/<CPU>.json")
    parser.add_argument("--threads", type=int, help="for every library; default: the CPUs this process may use")
    parser.add_argument("--rounds", type=int, default=25, help="times that each rival takes its turn")
    parser.add_argument(
        "--only", nargs="+", choices=list(OPERATIONS), metavar="OPERATION", help="of " + " ".join(OPERATIONS)
    )
    parser.add_argument(
        "--libraries", nargs="+", choices=rivals.LIBRARIES, metavar="LIBRARY", help="default: all installed"
    )
    options = parser.parse_args(arguments)
    threads = machine.use_threads(options.threads)
    about = machine.describe(threads)
    if about["load"] > BUSY:
        print(f"warning: other programs are running (load {about['load']}): ratios will be wrong", file=sys.stderr)
    results = []
    for record in compare(options.only or list(OPERATIONS), options.rounds, libraries=options.libraries):
        results.append(record)
        title = f"{OPERATIONS[record['operation']].title}, {record['case']}"
        print(f"{title:<48} {record['library']:<8} {record['median'] * 1e6:12.2f} us", file=sys.stderr, flush=True)
    output = options.output or default_output(about)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": about, "rounds": options.rounds, "results": results}, indent=1) + "\n")
    print(f"wrote {output}", file=sys.stderr)
    return 0


def default_output(about: dict[str, Any]) -> Path:
    words = about["cpu"].replace("(R)", "").replace("(TM)", "").replace("Processor", "").lower().split()
    name = "-".join("".join(c for c in word if c.isalnum() or c == "-") for word in words if word not in ("cpu", "@"))
    python = "py" + "".join(about["python"].split(".")[:2])
    return Path(__file__).parent / "results" / f"{name}-{about['threads']}threads-{python}.json"


if __name__ == "__main__":
    raise SystemExit(main())
