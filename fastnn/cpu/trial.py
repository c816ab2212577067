"""Whether a team or one thread does the steps of a program faster is measured while they work.

The results are the same bits either way.  Which way is faster depends on what no table knows: how far apart the cores
are that a virtual machine got (a step of 20-64-64-1, batch 256, two threads: 53 us where a cache line takes 30 ns from
one to the other, 120 where it takes 360, and 83 with one thread), and whether others want them, too.
"""

import time
from collections.abc import Callable

TEAM, ONE = 0, 1  # the ways
SLICE = 0.01  # seconds of steps between two decisions
SOON, PERIOD = 0.002, 0.1  # seconds of steps from one look at the slower way to the next: twice as many each time
LOOK = 0.0005  # seconds of such a look: if the slower way takes twice as long, looks cost 0.25%
WORSE = 0.25  # weight of a time that is worse than before, since an interruption is no reason to change the way
NEW = 8  # steps of the first look at a way
LONG = 16  # steps of a run from which the first step of a way does not count


class Trial:
    """Runs steps in the way that was the faster one when last seen; `seconds` is what a step takes in each."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]  # 0: not known
        self._faster = TEAM
        self._since, self._period = 0.0, SOON  # seconds of steps since the slower way was looked at, until it will be

    def _choose(self) -> tuple[int, float]:
        """The way of the next slice and its length in seconds."""
        if 0.0 in self.seconds:
            return self.seconds.index(0.0), LOOK
        faster = TEAM if self.seconds[TEAM] <= self.seconds[ONE] else ONE
        if faster != self._faster:  # the world has changed, or is not known well yet
            self._faster, self._period = faster, SOON
        if self._since < self._period:
            return faster, min(SLICE, self._period)
        self._since, self._period = 0.0, min(2 * self._period, PERIOD)
        return ONE - faster, LOOK

    def run(
        self,
        steps: Callable[[int, int, int], None],
        first: int,
        stop: int,
        short: int = -1,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Run the steps [first, stop) with ``steps(way, first, stop)``, a slice at a time.

        Between slices the interpreter handles signals, and `watch` is told how far the run is.  Step `short` has fewer
        rows than others, and tells nothing of them; nor does the first step of a way, which wakes the others, or finds
        half of the weights in their caches (20-64-64-1, batch 256: six steps of one thread after those of a team 97 us
        each, later ones 70).
        """
        before = None
        while first < stop:
            way, length = self._choose()
            if way != before and stop - first > LONG:
                steps(way, first, first + 1)
                first += 1
            before, known = way, self.seconds[way]
            end = min(stop, first + (max(1, int(length / known)) if known else NEW))
            began = time.perf_counter()
            steps(way, first, end)
            took = time.perf_counter() - began
            self._since += took
            if not first <= short < end or not known:
                self._learn(way, took / (end - first))
            first = end
            if watch:
                watch(first)

    def _learn(self, way: int, seconds: float) -> None:
        known = self.seconds[way]
        better = not known or seconds < known
        self.seconds[way] = seconds if better else known + WORSE * (seconds - known)
