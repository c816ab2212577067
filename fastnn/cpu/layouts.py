"""How large products are done, kept for compiled code: `fastnn.cpu.direct` looks here before it declines one.  And what
helpers need for these, and for functions that they join.

Python cuts a product of a new shape (`fastnn.cpu.immediate`) and leaves the filled records here.  From then on products
of these shapes and strides cost Python nothing: of the 150 us of 32 x 784 x 256 that was 20, with two threads 40.
"""

import functools
import os

import numpy as np

from fastnn.cpu import crowd, immediate, loader
from fastnn.cpu.memory import address, allocate
from fastnn.records import LAYOUT, SLOT, WORKSHOP
from fastnn.threads import EPOCH

KEY = ("m", "n", "k", "a_row", "a_col", "b_row", "b_col", "c_row", "c_col")  # what a layout is for
BUSY = WORKSHOP.offsets["busy"] // 8
PLACES = 61  # products of one dtype and one activation that are kept: a prime, since sizes are often multiples of 32


def place(
    m: int, n: int, k: int, a_row: int, a_col: int, b_row: int, b_col: int, c_row: int, c_col: int
) -> int:  # compiled, too
    """Which place a product has."""
    return (m + 3 * n + 7 * k + 11 * a_row + 13 * a_col + 17 * b_row + 19 * b_col + 23 * c_row + 29 * c_col) % PLACES


class Workshop:
    """Scratch and helpers for the products that are kept, and helpers for functions: one can run at a time."""

    def __init__(self) -> None:
        self._scratch = [allocate(0, "float64")]
        self._record = allocate(2 * SLOT, "uint8")
        self.address = address(self._record)
        self._words = self._record.view(np.int64)
        values = {"epoch": EPOCH.buffer_info()[0], "provided": -1, "job": self.address + SLOT}
        WORKSHOP.pack_into(memoryview(self._record), 0, values)

    def provide(self, scratch: int, threads: int) -> None:
        """Have `scratch` bytes for each of that many threads, and the threads."""
        if threads > 1:
            helpers = crowd.get()
            threads = int(helpers.words[crowd.PLACES])
            self._set("team", address(helpers.words))
            self._set("leader", helpers.leader)
            self._set("together", loader.address("engine.together", "float32"))
            self._set("provided", EPOCH[0])
        if self._scratch[-1].nbytes < scratch * threads:
            # A product that runs now may use the memory before, so it is kept; each is twice as large at least.
            size = max(scratch * threads, 2 * self._scratch[-1].nbytes)
            self._scratch.append(allocate(-(-size // 8), "float64"))
            self._set("size", 0)
            self._set("scratch", address(self._scratch[-1]))
            self._set("size", self._scratch[-1].nbytes)

    @property
    def provided(self) -> int:
        """The setting of threads for which there are helpers."""
        return int(self._words[WORKSHOP.offsets["provided"] // 8])

    @property
    def busy(self) -> bool:
        """Whether a product runs."""
        return bool(self._words[BUSY])

    @busy.setter
    def busy(self, value: bool) -> None:
        self._words[BUSY] = value

    def _set(self, field: str, value: int) -> None:
        self._words[WORKSHOP.offsets[field] // 8] = value


@functools.cache
def workshop() -> Workshop:
    """That of this process."""
    return Workshop()


def _after_fork() -> None:
    if workshop.cache_info().currsize:
        workshop().busy = False  # no thread survives that worked here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Layouts:
    """The products of one dtype and one activation; None: plain ones."""

    def __init__(self, activation: tuple[str, float] | None) -> None:
        self._dense = activation is not None
        self._activation = activation or ("linear", 0.0)
        self._table = allocate(3 * SLOT * PLACES, "uint8")
        self.address = address(self._table)

    def keep(self, a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None, threads: int) -> None:
        """Keep how ``out = activation(a @ b + bias)`` is done."""
        if threads > 1:
            threads = crowd.get().prepare(threads)
        swapped = immediate.turned(a, b, bias)
        key = (len(a), b.shape[1], len(b), *(stride // out.itemsize for x in (a, b, out) for stride in x.strides))
        if swapped:
            a, b, out = b.T, a.T, out.T
        strides = (*a.strides, *b.strides, *out.strides)
        pair, _, scratch = immediate.layout(a.shape, b.shape[1], strides, out.itemsize, *self._activation, threads)
        workshop().provide(scratch, threads)

        values = dict(zip(KEY, key, strict=True))
        values |= {"epoch": EPOCH[0], "helpers": threads - 1, "swapped": swapped, "scratch": scratch}
        record = bytearray(SLOT)
        LAYOUT.pack_into(record, 0, values)
        at = 3 * SLOT * place(*key)
        slots = memoryview(self._table)[at : at + 3 * SLOT]
        if slots[:SLOT] == record:  # it was declined because another thread's product ran
            return
        m = slots[:SLOT].cast("q")[LAYOUT.offsets["m"] // 8 :]
        m[0] = 0  # nobody starts with what is here from now on, but another thread may be at it
        if workshop().busy:
            return
        slots[SLOT:] = pair
        gemm = slots[SLOT : 2 * SLOT].cast("q")
        gemm[immediate.EPILOGUE] = self.address + at + 2 * SLOT
        gemm[immediate.PLAIN] = not self._dense and out.strides[1] == out.itemsize
        slots[:SLOT] = record
