"""Whether a team or one thread does the steps of a program faster is measured while they work.

The results are the same bits either way.  Which way is faster depends on what no table knows: how far apart the cores
are that a virtual machine got (a step of 20-64-64-1, batch 256, two threads: 53 us where a cache line takes 30 ns from
one to the other, 120 where it takes 360, and 83 with one thread), and whether others want them, too.
"""

import time
from collections.abc import Callable

TEAM, ONE = 0, 1  # the ways
SLICE = 0.01  # seconds of steps between two decisions
PERIOD = 0.1  # seconds from one look at the slower way to the next
LOOK = 0.0005  # seconds of such a look, so that it costs 0.5% for each time that the slower way takes longer
WORSE = 0.25  # weight of a time that is worse than before, since an interruption is no reason to change the way


class Trial:
    """Runs steps in the way that was the faster one when last seen; `seconds` is what a step takes in each."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]  # 0: not known
        self._due = 0.0  # when the slower way is looked at

    def _choose(self, now: float) -> tuple[int, float]:
        """The way of the next slice and its length in seconds."""
        if 0.0 in self.seconds:
            return self.seconds.index(0.0), LOOK
        faster = TEAM if self.seconds[TEAM] <= self.seconds[ONE] else ONE
        if now < self._due:
            return faster, SLICE
        self._due = now + PERIOD
        return ONE - faster, LOOK

    def run(
        self, steps: Callable[[int, int, int], None], first: int, stop: int, watch: Callable[[int], None] | None
    ) -> None:
        """Run the steps [first, stop) with ``steps(way, first, stop)``, a slice at a time.

        Between slices the interpreter handles signals, and `watch` is told how far the run is.
        """
        while first < stop:
            began = time.perf_counter()
            way, length = self._choose(began)
            known = self.seconds[way]
            end = min(stop, first + (max(1, int(length / known)) if known else 1))
            steps(way, first, end)
            took = (time.perf_counter() - began) / (end - first)
            self.seconds[way] = took if not known or took < known else known + WORSE * (took - known)
            first = end
            if watch:
                watch(first)
