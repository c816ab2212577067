"""Threads that share CPUs: two fits at once, a team of more threads than CPUs, and whether the bits stay the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest.mock import patch

from benchmarks import compare
from benchmarks.networks import FastnnNetwork
from benchmarks.training.mnist98 import missing
from benchmarks.training.part import Record, Settings, figures
from benchmarks.training.table import CASES, Case
from fastnn.threads import check_threads

TIMES = 4  # threads for each CPU in the crowded team
BITS = (1, 2, 3, 8)  # numbers of threads
STEPS = 30  # after which the bits are compared
CASE = next(case for case in CASES if case.name == "784-256-10 softmax, batch 128, MNIST")


def run(settings: Settings) -> Iterator[Record]:
    """Time each way to train; one record for each, and one for the bits."""
    if (problem := missing()) is not None:
        yield {"problem": problem}
        return
    inputs = CASE.inputs("fastnn", quick=settings.quick)
    one, other = (FastnnNetwork(**inputs, n_threads=settings.threads) for _ in range(2))
    crowded = TIMES * settings.threads

    def both() -> None:
        threads = [threading.Thread(target=network) for network in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    calls = {
        "one fit": one,
        "two fits at once": both,
        f"a team of {crowded} threads": FastnnNetwork(**inputs, n_threads=crowded),
    }
    samples = compare.interleaved(calls, settings.rounds)
    for name, seconds in samples.items():
        fits = 2 if name == "two fits at once" else 1
        record = {"network": CASE.name, "what": name, "fits": fits, "threads": settings.threads}
        yield record | figures([e / one.steps / fits for e in seconds])
    yield {"network": CASE.name, "what": "bits", "threads": BITS, "equal": same_bits(CASE)}


def same_bits(case: Case) -> bool:
    """Whether some steps lead to the same weights whatever the number of threads, of which a model would not start more
    than there are CPUs.
    """
    found = set()
    for threads in BITS:
        inputs = case.inputs("fastnn")
        rows = STEPS * case.batch
        inputs |= {"x": inputs["x"][:rows], "y": inputs["y"][:rows]}
        network = FastnnNetwork(**inputs, seed=1, n_threads=threads)
        with patch("fastnn.training.usable_threads", check_threads):
            network()
        found.add(b"".join(e.tobytes() for e in network.weights()))
    return len(found) == 1
