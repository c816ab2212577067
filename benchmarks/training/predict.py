"""One row through a network, beside rivals and beside reading the network's weights once.

Each weight is used once, so no arithmetic can hide that it has to be read: the time of a loop on one core that does
nothing but add numbers up, from arrays that the second-level cache holds and from larger ones, is the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks import checks, compare, rivals
from benchmarks.cases import OPERATIONS
from benchmarks.training.part import Record, Settings, figures

NETWORK = "784-256-10"
FLOORS = {"weights read from L2": 256 << 10, "weights read from L3": 8 << 20}  # bytes of the arrays that are read


def run(settings: Settings) -> Iterator[Record]:
    """Check and time a row; one record for each library and floor."""
    size = sum(e.nbytes for e in OPERATIONS["predict"].make(NETWORK)["weights"])
    names = [e for e in rivals.contestants("predict", NETWORK) if e != "python"]
    names = [e for e in names if settings.libraries is None or e in settings.libraries]
    for library in names:
        checks.check("predict", library, NETWORK)
    calls = {e: rivals.make("predict", e, NETWORK) for e in names}
    samples = compare.interleaved(calls | {e: reader(n) for e, n in FLOORS.items()}, settings.rounds)
    for name, seconds in samples.items():
        share = size / FLOORS[name] if name in FLOORS else 1.0
        yield {"network": NETWORK, "library": name, "bytes": size} | figures([share * e for e in seconds])


def reader(size: int) -> Callable[[], float]:
    """A call that reads an array of so many bytes."""
    import numba

    # In any order, so that the sums of many lanes need not wait for each other; by index, because a loop over elements
    # took 23 times as long.
    @numba.njit(fastmath={"reassoc", "nsz"})
    def total(x):
        s = np.float32(0)
        for i in range(x.size):
            s += x[i]
        return s

    x = np.ones(size // 4, np.float32)
    found = total(x)
    assert found == len(x), f"the sum of {len(x)} ones is {found}"
    return lambda: total(x)
