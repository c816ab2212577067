"""Everything that decides the design of a CUDA target, measured in one call: ``python -m benchmarks.gpu_probe``.

Each part runs in a process of its own with a time limit: a kernel that fails, or never ends, stops no other part, and
what was measured before it is kept.  Without a GPU the parts that need one are skipped, and the exit status is 0.
`docs/gpu-notes.md` says what each number is for.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import driver
from benchmarks.gpu.measure import Report

# Seconds of each part, in the order of what would be missed most; 480 in all.
PARTS = {
    "versions": 15,
    "launches": 40,
    "barriers": 25,
    "epoch": 115,
    "gemm_simt": 35,
    "gemm_mma": 45,
    "gemm_wgmma": 40,
    "ceilings": 25,
    "copies": 20,
    "cpu": 120,
}
WITHOUT_GPU = ("versions", "cpu")
RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]


def run_part(name: str, limit: float, *, quick: bool) -> list[Record]:
    """The records of one part, run in a process group of its own that is ended when its time is over."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        command = [sys.executable, "-m", "benchmarks.gpu_probe", "--part", name, "--output", str(path)]
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--quick"] if quick else command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        reason = None
        try:
            _, errors = process.communicate(timeout=limit)
            if process.returncode:
                last = (errors.strip() or "no message").splitlines()[-1]
                reason = f"the process ended with {process.returncode}: {last}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # children too: compilers, the threads' processes
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be cut short
        if reason:
            records.append({"part": name, "what": f"rest of {name}", "skipped": reason})
        took = time.monotonic() - began
        return [*records, {"part": name, "what": "time of this part", "value": took, "unit": "s", "error": None}]


def work(name: str, output: Path, *, quick: bool) -> None:
    """Be the process of one part."""
    report = Report(output, name, quick=quick)
    try:
        part = importlib.import_module(f"benchmarks.gpu.{name}")
    except ImportError as error:
        hint = "" if importlib.util.find_spec("numba_cuda") else " (numba-cuda is not installed)"
        report.skip(name, f"cannot be imported: {error}{hint}")
        return
    report.attempt(name, part.measure, report)


def run(parts: list[str], *, quick: bool) -> list[Record]:
    """The records of all parts; each has the time that `PARTS` gives it."""
    missing = driver.missing()
    records: list[Record] = []
    for name in parts:
        if missing and name not in WITHOUT_GPU:
            records.append({"part": name, "what": name, "skipped": f"no GPU: {missing}"})
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        records += run_part(name, PARTS[name], quick=quick)
    return records


# --- what is shown ----------------------------------------------------------------------------------------------------


def table(records: list[Record]) -> str:
    """The records in aligned columns, part by part."""
    rows: list[tuple[str, str, str] | str] = []
    part = None
    for record in records:
        if record["part"] != part:
            part = record["part"]
            rows += ["", part]
        if "skipped" in record:
            rows.append((record["what"], "-", record["skipped"]))
            continue
        value = f"{_number(record['value'])} {record['unit']}".rstrip()
        check = "" if record["error"] is None else f"{_number(record['error'])} {record['check']}"
        rows.append((record["what"], value, check))
    cells = [row for row in rows if isinstance(row, tuple)]
    wide, narrow = (max((len(row[i]) for row in cells), default=0) for i in range(2))
    lines = [row if isinstance(row, str) else f"  {row[0]:<{wide}}  {row[1]:>{narrow}}  {row[2]}" for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def default_output(records: list[Record]) -> Path | None:
    """Where results of a GPU go: a file with its name; nowhere without one."""
    names = [e["value"] for e in records if e["what"] == "GPU" and "value" in e]
    if not names:
        return None
    return RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', names[0].lower()).strip('-')}.json"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_probe", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="of " + " ".join(PARTS))
    parser.add_argument(
        "--output", type=Path, help="JSON file; default: benchmarks/results/gpu-<GPU>.json, none without a GPU"
    )
    parser.add_argument("--quick", action="store_true", help="few samples of small cases: whether everything works")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # be the process of this part
    options = parser.parse_args(arguments)
    if options.part:
        work(options.part, options.output, quick=options.quick)
        return 0
    if missing := driver.missing():
        print(f"no GPU: {missing}; only {' and '.join(WITHOUT_GPU)} can be measured", file=sys.stderr)
    began = time.monotonic()
    records = run(options.only or list(PARTS), quick=options.quick)
    print(table(records))
    print(f"\n{time.monotonic() - began:.0f} s in all")
    if output := options.output or default_output(records):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"quick": options.quick, "records": records}, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
