"""Helpers for single kernels: threads that are woken in some microseconds and need not come.

A team (`fastnn.cpu.team`) meets at barriers, so all of it must have started before any can go on.  One kernel has no
barriers: its work is cut into a fixed number of shares, the caller starts at once, and helpers claim shares as they
arrive.  The cut does not depend on the number of threads, so neither do the results.
"""

import ctypes
import os
import threading

import numpy as np

from fastnn.cpu import loader, placement, team
from fastnn.cpu.blocking import SHARES
from fastnn.cpu.memory import address, allocate
from fastnn.records import GEMM, RUN, SLOT


class Place:
    """What one thread is told: a run record of its own, which names the job and the thread's part of the scratch."""

    def __init__(self, worker: int, counters: np.ndarray) -> None:
        self._run = bytearray(SLOT)
        self._ready = np.zeros(8, np.int64)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._run))
        fields = {"threads": SHARES, "team": address(counters), "yields": team.yield_address()}
        RUN.pack_into(self._run, 0, {**fields, "worker": worker, "ready": address(self._ready)})
        self._words = memoryview(self._run).cast("q")

    def prepare(self, op: int, rate: int) -> None:
        """Name the next job."""
        self._words[TABLE], self._words[RATE] = op, rate
        self._ready[0] = -1


class Crowd:
    """Helper threads, and the one job that they can work on."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._helpers: list[threading.Lock] = []
        self._counters = np.full(24, SHARES, np.int64)
        self._places = [Place(0, self._counters)]
        self._scratch = allocate(0, "float64")
        self._enter = team.MAIN(loader.address("engine.assist", "float32"))

    def run(self, op: int, rate: int, threads: int, scratch: int = 0) -> bool:
        """Run the kernel of the record at `op` with the help of `threads` - 1 others; False if they are busy.

        A product needs `scratch` bytes for each thread.
        """
        if not self._busy.acquire(blocking=False):
            return False
        try:
            while len(self._helpers) < threads - 1:
                self._hire()
            # A helper that lingers from a job with more threads may join this one, so all have their place.
            for place in self._places:
                place.prepare(op, rate)
            if scratch:
                needed = scratch * len(self._places)
                if self._scratch.nbytes < needed:
                    self._scratch = allocate(-(-needed // 8), "float64")
                ctypes.c_int64.from_address(op + GEMM.offsets["scratch"]).value = address(self._scratch)
            self._enter(self._places[0].address, -1)
            for gate in self._helpers[: threads - 1]:
                if gate.locked():
                    gate.release()
            self._enter(self._places[0].address, 0)
        finally:
            self._busy.release()
        return True

    def _hire(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        place = Place(len(self._places), self._counters)
        threading.Thread(
            target=self._help, args=(gate, place, placement.elsewhere()), name="fastnn-helper", daemon=True
        ).start()
        self._places.append(place)
        self._helpers.append(gate)

    def _help(self, gate: threading.Lock, place: Place, cpus: set[int]) -> None:
        placement.keep_to(cpus)
        while True:
            gate.acquire()
            self._enter(place.address, 1)


TABLE, RATE = RUN.offsets["table"] // 8, RUN.offsets["rate"] // 8

_crowd: Crowd | None = None


def _after_fork() -> None:
    global _crowd
    _crowd = None  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get() -> Crowd:
    """The helpers of this process."""
    global _crowd
    if _crowd is None:
        _crowd = Crowd()
    return _crowd
