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
from fastnn.cpu.memory import address
from fastnn.records import RUN, SLOT


class Crowd:
    """Helper threads, and the one job that they can work on."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._helpers: list[threading.Lock] = []
        self._counters = np.full(24, SHARES, np.int64)
        self._run = bytearray(SLOT)
        fields = {"threads": SHARES, "team": address(self._counters), "yields": team.yield_address()}
        RUN.pack_into(self._run, 0, fields)
        self._words = memoryview(self._run).cast("q")
        self._at = ctypes.addressof(ctypes.c_char.from_buffer(self._run))
        self._enter = team.MAIN(loader.address("engine.assist", "float32"))

    def run(self, op: int, rate: int, threads: int) -> bool:
        """Run the kernel of the record at `op` with the help of `threads` - 1 others; False if they are busy."""
        if not self._busy.acquire(blocking=False):
            return False
        try:
            while len(self._helpers) < threads - 1:
                self._hire()
            self._words[TABLE], self._words[RATE] = op, rate
            self._enter(self._at, -1)
            for gate in self._helpers[: threads - 1]:
                if gate.locked():
                    gate.release()
            self._enter(self._at, 0)
        finally:
            self._busy.release()
        return True

    def _hire(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        threading.Thread(
            target=self._help, args=(gate, placement.elsewhere()), name="fastnn-helper", daemon=True
        ).start()
        self._helpers.append(gate)

    def _help(self, gate: threading.Lock, cpus: set[int]) -> None:
        placement.keep_to(cpus)
        while True:
            gate.acquire()
            self._enter(self._at, 1)


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
