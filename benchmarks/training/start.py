"""The first `fit` of a process, with an empty cache of kernels and with a filled one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.training import processes
from benchmarks.training.part import Record, Settings, figures

EMPTY = 3  # processes that compile all kernels


def run(settings: Settings) -> Iterator[Record]:
    """Time the first fits; one record for each state of the cache."""
    runs: dict[str, list[Record]] = {"empty": [], "filled": []}
    for _ in range(min(EMPTY, settings.rounds)):
        with tempfile.TemporaryDirectory(prefix="fastnn-") as cache:
            for state, count in (("empty", 1), ("filled", settings.rounds)):
                for _ in range(count):
                    runs[state].append(processes.call("first_fit", threads=settings.threads, FASTNN_CACHE_DIR=cache))
    for state, found in runs.items():
        phases = {phase: figures([e[phase] for e in found]) for phase in ("import", "fit", "wall")}
        yield {"cache": state, **phases}
