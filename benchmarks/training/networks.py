"""Steps of networks beside their rivals: an epoch of each in turn, all with shuffled samples, float32 and Adam."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks import checks, compare
from benchmarks.networks import NETWORKS
from benchmarks.training.mnist98 import missing
from benchmarks.training.part import Record, Settings, figures
from benchmarks.training.table import CASES, DENSE, LIBRARIES, MNIST, Case, problems

LIMIT = 40.0  # seconds for the rounds of one network


def run(settings: Settings, cases: list[Case] | None = None) -> Iterator[Record]:
    """Check and time every library on every network; one record for each."""
    cases = [*CASES, *DENSE] if cases is None else cases
    without = missing() if any(case.data == MNIST for case in cases) else None
    if without is not None:
        yield from ({"network": case.name, "problem": without} for case in cases if case.data == MNIST)
        cases = [case for case in cases if case.data != MNIST]
    wanted = [e for e in LIBRARIES if any(e in case.contestants(settings.libraries) for case in cases)]
    broken = problems(wanted)
    for library, problem in broken.items():
        print(f"{library} is left out: {problem}", file=sys.stderr)
        yield {"library": library, "problem": problem}
    for case in cases:
        names = [e for e in case.contestants(settings.libraries) if e not in broken]
        for library in names:
            what = f"{library}: {case.name}"
            checks.check_training(NETWORKS[library], case.sizes, case.batch, what, case.regression)
        calls = {e: NETWORKS[e](**case.inputs(e, quick=settings.quick)) for e in names}
        samples = compare.interleaved(calls, settings.rounds, limit=LIMIT)
        for library in names:
            steps = calls[library].steps
            record: Record = {"network": case.name, "library": library, "steps": steps}
            if library == "fastnn" and not settings.quick:
                record["floor"] = calls[library].floor()
            yield record | figures([seconds / steps for seconds in samples[library]])
