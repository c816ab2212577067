"""Helpers for single kernels: threads that are woken in some microseconds and need not come.

A team (`fastnn.cpu.team`) meets at barriers, so all of it must have started before any can go on.  One kernel has no
barriers: its work is cut into a fixed number of shares, the caller starts at once, and helpers claim shares as they
arrive.  The cut does not depend on the number of threads, so neither do the results.

There is one crowd and it has one job at a time.  Whoever claims it (here, or without Python in `fastnn.cpu.direct`
and `fastnn.cpu.following`) names the job and works at it in `fastnn.cpu.engine.together`, which wakes the helpers and
gives the crowd back.
"""

import ctypes
import os
import threading

import numpy as np

from fastnn.cpu import loader, placement, team
from fastnn.cpu.blocking import LINE, SHARES
from fastnn.cpu.memory import address, allocate
from fastnn.records import GEMM, RUN, SLOT

# What the threads share (int64, `run.team`).  The first four are written by several, so each has a cache line.
NEXT, FINISHED, BACK = 0, 8, 16  # shares claimed, done, and claimed by helpers
TAKEN = 24  # 1 while the crowd belongs to somebody
JOB, TABLE, RATE = 32, 33, 34  # the number of the job, its record, and its rate
UNLOCK = 35  # the function that wakes a helper
GRANTED = 36  # whether the last claim from here was successful
PLACES = 37  # threads that may appear, each of which needs its part of the scratch
HERE, CPUS, MASKS, MASK = 38, 39, 40, 41  # the CPU that helpers avoid; a set of the others for each CPU, in bytes
WHERE, MOVE = 42, 43  # the functions that tell the caller's CPU and set a thread's CPUs
# What belongs to each of them (a cache line, `run.ready`).
COLUMNS, SEEN = 0, 1  # the columns of B that it has packed, and the job that was for
ASLEEP, LOCK = 2, 3  # 1 if it must be woken, and what it waits at
THREAD = 4  # its number in the system
MOST = 1024  # places


class Crowd:
    """Helper threads, and the one job that they can work on."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self.words = allocate(48, "int64")
        self.words[NEXT] = self.words[FINISHED] = SHARES
        self.words[UNLOCK] = _function("PyThread_release_lock")
        self._masks = placement.masks()
        self.words[CPUS], self.words[MASK] = self._masks.shape
        self.words[MASKS] = address(self._masks)
        self.words[WHERE], self.words[MOVE] = placement.WHERE, placement.MOVE
        self.lines = allocate(LINE * MOST, "int64")
        self._runs: list[bytearray] = []
        self._scratch = allocate(0, "float64")
        self._claim, self._together, self._assist = (
            team.MAIN(loader.address(f"engine.{name}", "float32")) for name in ("claim", "together", "assist")
        )
        self.leader = self._place()

    def prepare(self, threads: int) -> int:
        """Have helpers for jobs of that many threads, or of `MOST`; returns of how many."""
        threads = min(threads, MOST)
        if len(self._runs) < threads:
            with self._turn:
                while len(self._runs) < threads:
                    self._hire()
        return threads

    def run(self, op: int, rate: int, threads: int, scratch: int = 0) -> bool:
        """Run the kernel of the record at `op` with the help of `threads` - 1 others; False if they are busy.

        A product needs `scratch` bytes for each thread.
        """
        threads = self.prepare(threads)
        if not self._turn.acquire(blocking=False):
            return False
        before = self.words[JOB]
        claimed = False
        try:
            self._claim(self.leader, 0)
            claimed = bool(self.words[GRANTED])
            if claimed:
                if scratch:
                    # A helper that lingers from a job with more threads may join this one.
                    needed = scratch * len(self._runs)
                    if self._scratch.nbytes < needed:
                        self._scratch = allocate(-(-needed // 8), "float64")
                    ctypes.c_int64.from_address(op + GEMM.offsets["scratch"]).value = address(self._scratch)
                self.words[TABLE], self.words[RATE] = op, rate
                self._together(self.leader, threads - 1)
        finally:
            if claimed and self.words[JOB] == before:  # interrupted before the job
                self.words[TAKEN] = 0
            self._turn.release()
        return claimed

    def _place(self) -> int:
        """The address of a new thread's record."""
        worker = len(self._runs)
        fields = {"threads": SHARES, "team": address(self.words), "yields": team.yield_address(), "worker": worker}
        run = bytearray(SLOT)
        RUN.pack_into(run, 0, {**fields, "ready": address(self.lines) + 8 * LINE * worker})
        self._runs.append(run)
        self.words[PLACES] = len(self._runs)
        return ctypes.addressof(ctypes.c_char.from_buffer(run))

    def _hire(self) -> None:
        lock = _ALLOCATE()
        _ACQUIRE(lock, 1)
        line = self.lines[LINE * len(self._runs) :]
        line[ASLEEP], line[LOCK] = 1, lock
        self.words[HERE] = -1  # the next job finds a place for it
        threading.Thread(target=self._help, args=(lock, self._place(), line), name="fastnn-helper", daemon=True).start()

    def _help(self, lock: int, place: int, line: np.ndarray) -> None:
        line[THREAD] = threading.get_native_id()
        while True:
            _ACQUIRE(lock, 1)
            self._assist(place, 0)


def _function(name: str) -> int:
    """The address of a function of CPython's stable interface."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


# Python's locks, as compiled code can release them.  (These calls give up the interpreter's lock.)
_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p)(_function("PyThread_allocate_lock"))
_ACQUIRE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(_function("PyThread_acquire_lock"))

_crowd: Crowd | None = None


def _after_fork() -> None:
    global _crowd
    _crowd = None  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_there() -> bool:
    """Whether this process has helpers already."""
    return _crowd is not None


def get() -> Crowd:
    """The helpers of this process."""
    global _crowd
    if _crowd is None:
        _crowd = Crowd()
    return _crowd
