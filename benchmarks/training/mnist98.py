"""From the start of a process to 98% of MNIST's test images right: fastnn and torch with the same recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks.rivals import installed
from benchmarks.training import processes
from benchmarks.training.part import Record, Settings, figures
from fastnn import datasets

LIBRARIES = ["fastnn", "torch"]
PROCESSES = 3  # of each
PHASES = ("import", "load", "train", "evaluate", "wall")


def run(settings: Settings) -> Iterator[Record]:
    """Run processes of each library in turn; one record for each library."""
    if (problem := missing()) is not None:
        yield {"problem": problem}
        return
    names = [e for e in LIBRARIES if installed(e) and (settings.libraries is None or e in settings.libraries)]
    for library in names:  # fills the cache of kernels, and the system's of files
        processes.call("mnist", library, "--epochs", "1", threads=settings.threads)
    runs: dict[str, list[Record]] = {library: [] for library in names}
    for seed in range(min(PROCESSES, settings.rounds)):
        for library in names:
            runs[library].append(processes.call("mnist", library, "--seed", str(seed), threads=settings.threads))
    for library, found in runs.items():
        phases = {phase: figures([e[phase] for e in found]) for phase in PHASES}
        yield {"library": library, "accuracies": [e["accuracy"] for e in found], **phases}


def missing() -> str | None:
    """Why MNIST is not here."""
    try:
        datasets.mnist.load_data()
    except datasets.DatasetError as error:
        print(f"left out: {error}", file=sys.stderr)
        return str(error).splitlines()[0]
    return None
