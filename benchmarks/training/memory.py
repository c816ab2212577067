"""The most memory that a process has while it trains an epoch of MNIST."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.rivals import installed
from benchmarks.training import mnist, processes
from benchmarks.training.mnist98 import missing
from benchmarks.training.part import Record, Settings


def run(settings: Settings) -> Iterator[Record]:
    """One process and one record for each library."""
    if (problem := missing()) is not None:
        yield {"problem": problem}
        return
    for library in mnist.LIBRARIES:
        if installed(library) and (settings.libraries is None or library in settings.libraries):
            processes.call("mnist", library, "--epochs", "1", threads=settings.threads)  # compiles what is missing
            found = processes.call("mnist", library, "--epochs", "1", threads=settings.threads)
            yield {"library": library, "imported": found["imported_bytes"], "peak": found["peak_bytes"]}
