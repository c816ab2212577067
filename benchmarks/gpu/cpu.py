"""What fastnn does on the machine's CPU with 1 to 16 threads, NumPy and torch beside it.

Libraries take their number of threads when they start, so each number has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.gpu.measure import AbsentError, Report

THREADS = (1, 2, 4, 8, 16)
LIBRARIES = ("fastnn", "numpy", "torch")
PRODUCTS = ((128, 784, 256), (512, 512, 512), (2048, 2048, 2048))
BATCHES = (32, 128)
STEPS = 50  # of a call
ROUNDS = 5
SECONDS = 90  # for one number of threads; the first compiles fastnn's kernels if they are not in the cache


def measure(report: Report) -> None:
    """Report every number of threads that the process has CPUs for."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    report.add("CPUs of this process", cpus)
    for threads in THREADS[:1] if report.quick else THREADS:
        if threads > cpus:
            report.skip(f"{threads} threads", f"the process has {cpus} CPUs")
        else:
            report.attempt(f"{threads} threads", _one, report, threads)


def _one(report: Report, threads: int) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.cpu", "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--quick"] if report.quick else command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise AbsentError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    for record in json.loads(done.stdout):
        report.add(**record)


def compare_here(threads: int, *, quick: bool) -> list[dict[str, Any]]:
    """Records of everything with so many threads, for `Report.add`; each library is checked first."""
    from benchmarks import cases, checks, compare, grid_cases, machine, rivals

    found = machine.use_threads(threads)
    assert found == threads, f"{found} threads instead of {threads}"
    names = [e for e in LIBRARIES if rivals.installed(e)]
    rounds = 1 if quick else ROUNDS
    records = []
    for sizes in PRODUCTS[:1] if quick else PRODUCTS:
        inputs = cases.product_inputs(*sizes)
        expected = cases.product(**inputs)
        spec = cases.OPERATIONS["matmul"]
        calls = {e: rivals.COMPARISONS["matmul"][e](**inputs) for e in names}
        for library, call in calls.items():
            checks.check_answer(call, 1, expected, spec.tolerance, f"{library}, {sizes}")
        for library, samples in compare.interleaved(calls, rounds, threads=threads).items():
            speed = grid_cases.flops(*sizes) / statistics.median(samples) / 1e9
            what = f"{threads} threads, {library}, matmul {grid_cases.name(*sizes)}"
            records.append({"what": what, "value": speed, "unit": "GFLOP/s", "error": 0, "check": "checks failed"})
    for batch in BATCHES[:1] if quick else BATCHES:
        case = f"784-256-10, batch {batch}"
        for library in names:
            checks.check("train", library, case)
        inputs = cases.training_inputs(cases.MLP, batch, STEPS * batch)
        calls = {e: rivals.COMPARISONS["train"][e](**inputs) for e in names}
        for library, samples in compare.interleaved(calls, rounds, threads=threads).items():
            what = f"{threads} threads, {library}, training step, {case}"
            value = statistics.median(samples) / STEPS * 1e6
            records.append({"what": what, "value": value, "unit": "us/step", "error": 0, "check": "checks failed"})
    return records


def main() -> int:
    """Print the records of one number of threads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="for every library")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest cases")
    options = parser.parse_args()
    print(json.dumps(compare_here(options.threads, quick=options.quick)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
