"""Teams of threads that run a compiled function together.

A team's threads are Python threads that spend their life inside compiled code, without the interpreter's lock.  Teams
are kept for reuse; a forked child starts without any, since threads do not survive a fork.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np

from fastnn.cpu import loader, placement
from fastnn.cpu.memory import address
from fastnn.records import RUN, SLOT

MAIN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t)
POLL = 0.05  # seconds between two looks at the step counter
TABLE = RUN.offsets["table"] // 8
SPINS = 400  # about 10 us, longer than any kernel's imbalance here; then the core is offered to somebody else
CALLED = 16  # as in `fastnn.cpu.engine`, which is not imported: with a filled cache nothing needs Numba

_idle: dict[int, list["Team"]] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _idle.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def yield_address() -> int:
    """Address of the operating system's "let somebody else run" function."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def spins(threads: int) -> int:
    """How often a thread of a team looks at a barrier before it offers its core to others.

    Where there are more threads than CPUs, those that it waits for may be waiting for its own.
    """
    return SPINS if threads <= (len(placement.allowed()) or os.cpu_count() or 1) else 0


class Team:
    """`threads` threads that enter the same function at once.

    There are two ways to work with them.  `run` is for what takes long: the caller waits and stays responsive.  `lead`
    is for a single step: the caller is one of the threads, and the others stay awake for a while after it.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastnn")
        self._gates: list[threading.Lock] = []  # a helper of `lead` waits at its own
        self._helpers: list[threading.Thread] = []
        self._here = -1  # the CPU that they avoid
        self._jobs, self._seen = np.zeros(24, np.int64), np.zeros(8 * threads, np.int64)
        self._called = memoryview(self._jobs)[CALLED:]
        self._place = bytearray(SLOT)
        self._words = memoryview(self._place).cast("q")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._place))

    def lead(self, run: int) -> None:
        """Run the steps of the record at `run`: the calling thread as thread 0, helpers as the others."""
        while len(self._gates) < self.threads - 1:
            self._hire()
        self._words[TABLE] = run
        try:
            # First the call, then the gates: a helper that goes to sleep now is woken, one that wakes up now stays.
            # The job itself is posted by the leader when it is at work, so that an interruption cannot part them.
            self._called[0] = 1
            self._make_way()
            for gate in self._gates:
                if gate.locked():
                    gate.release()
            self._lead(self._address, 0)
        finally:
            self._called[0] = 0

    def _hire(self) -> None:
        if not self._gates:
            fields = {"threads": self.threads, "team": address(self._jobs), "ready": address(self._seen)}
            RUN.pack_into(self._place, 0, {**fields, "yields": yield_address()})
            self._lead = MAIN(loader.address("engine.lead", "float32"))
            self._attend = MAIN(loader.address("engine.attend", "float32"))
        gate = threading.Lock()
        gate.acquire()
        thread = threading.Thread(
            target=self._help, args=(gate, len(self._gates) + 1), name="fastnn-helper", daemon=True
        )
        thread.start()  # returns when it has started, so that it has a number
        self._helpers.append(thread)
        self._gates.append(gate)
        self._here = -1

    def _make_way(self) -> None:
        """Send the helpers to other CPUs than the caller's, if it is not where it was at the last step."""
        here = placement.here()
        if here != self._here:
            self._here, cpus = here, placement.elsewhere()
            for helper in self._helpers:
                placement.keep_to(cpus, helper.native_id or 0)

    def _help(self, gate: threading.Lock, thread: int) -> None:
        while True:
            gate.acquire()
            self._attend(self._address, thread)

    def run(self, function: Callable[[int], None], halt: Callable[[], None], watch: Callable[[], None] | None) -> None:
        """Call ``function(thread)`` in every thread and wait.

        Meanwhile `watch` is called now and then.  On an exception in the caller (Ctrl-C) `halt` is called, the team
        finishes its step, and the exception goes on.
        """
        gate = threading.Event()  # one thread alone would wait for the others at a barrier for ever
        refused: list[bool] = []
        cpus = placement.apart(self.threads)  # asked anew, since the process may have been moved to other CPUs

        def enter(thread: int) -> None:
            placement.keep_to(cpus[thread])
            gate.wait()
            if not refused:
                function(thread)

        futures: list[Future[None]] = []
        try:
            for thread in range(self.threads):
                futures.append(self._pool.submit(enter, thread))
            gate.set()
            while wait(futures, timeout=POLL if watch else None).not_done:
                if watch:
                    watch()
        except BaseException:
            if not gate.is_set():
                refused.append(True)
                gate.set()
            halt()
            _finish(futures)
            raise
        for future in futures:
            future.result()


def _finish(futures: "list[Future[None]]") -> None:
    """Wait for threads that were told to stop; they still write the weights, so a second Ctrl-C has to wait, too."""
    while True:
        try:
            wait(futures)
            return
        except KeyboardInterrupt:
            continue


@contextmanager
def borrow(threads: int) -> Iterator[Team | None]:
    """A team of that size for the duration of a ``with`` block; None stands for the calling thread alone."""
    if threads == 1:
        yield None
        return
    with _lock:
        free = _idle.setdefault(threads, [])
        team = free.pop() if free else None
    pid = os.getpid()
    team = team or Team(threads)
    try:
        yield team
    finally:
        if os.getpid() == pid:
            with _lock:
                _idle.setdefault(threads, []).append(team)


def run_alone(function: Callable[[int, int], None], first: int, stop: int, watch: Callable[[int], None] | None) -> None:
    """Run steps [first, stop) in the calling thread: ``function(first, stop)``, a slice of about 20 ms at a time.

    Between slices the interpreter handles signals, so Ctrl-C works and `watch` is told how far the run is.
    """
    size = 1
    while first < stop:
        end = min(stop, first + size)
        start = time.perf_counter()
        function(first, end)
        seconds = time.perf_counter() - start
        size = max(1, min(4 * size, int(size * 0.02 / max(seconds, 1e-7))))
        first = end
        if watch:
            watch(first)
