"""The builtin functions over arrays (`fastnn.cpu.direct`) with the records they work in.

They are made when they are first asked for, and learn a dtype when the ordinary way has been gone with it once: by
then its kernels are compiled.  Python's lock is held during a call, so one set of records and one piece of scratch
serve all threads; a forked process has its own copy.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from fastnn.cpu import blocking, builtin, clock, crowd, immediate, layouts, loader
from fastnn.cpu.memory import address, allocate
from fastnn.records import (
    BATCH,
    CALL,
    CRITERION,
    FORWARD,
    GEMM,
    LOSS,
    MAP,
    PREDICTION,
    PRODUCT,
    RUN,
    SLOT,
    UPDATE,
)
from fastnn.threads import EPOCH, get_num_threads

if TYPE_CHECKING:
    from fastnn.cpu.executable import Executable, Table

Key = TypeVar("Key", bound=Hashable)
VARIANT = {"float32": 2, "float64": 7}  # the first slots of a dtype's records, behind those of the call and its run
# Elements up to which the lock is kept: 10 to 50 us.
SMALL = 1 << 16
# Of element-wise functions and rows: 30 to 200 us.  The ordinary way costs 10 us where its own memory has left the
# caches: sigmoid of 1 MiB takes 76 us instead of 64.
SMALL_MAP = 1 << 18
SHARED_MAP = 1 << 16  # of more, helpers take a part where they are likely to be awake (`immediate.SHARED`)


class Call:
    """A builtin function and its records."""

    def __init__(self, entry: str, most: int) -> None:
        self.known: set[np.dtype] = set()
        self.epoch = -1
        self.records = allocate(12 * SLOT, "uint8")
        self.view = memoryview(self.records)
        self._rate = np.zeros(1)
        self._fields = {"python": builtin.python(), "run": self.at(1), "most": most, "shared": SHARED_MAP}
        self._fields["clock"], self._fields["clock_id"] = clock.function()
        self._fields |= {"epochs": EPOCH.buffer_info()[0], "ended": address(immediate.ENDED)}
        self._fields["workshop"] = layouts.workshop().address
        CALL.pack_into(self.view, 0, self._fields)
        RUN.pack_into(self.view, 1, {"threads": 1, "rate": address(self._rate)})
        self.function = builtin.make(entry, self.records)

    def at(self, slot: int) -> int:
        """The address of a record."""
        return address(self.records) + slot * SLOT

    def learn(self, dtype: np.dtype) -> None:
        """Accept arrays of this dtype, whose records are complete, at the present setting of threads."""
        self._fields[dtype.name] = self.at(VARIANT[dtype.name])
        # Windows' clock tells no nanoseconds.
        self._fields["helpers"] = 0 if sys.platform == "win32" else get_num_threads() - 1
        self.epoch = self._fields["epoch"] = EPOCH[0]
        CALL.pack_into(self.view, 0, self._fields)
        self.known.add(dtype)


class Calls(dict[Key, Callable], Generic[Key]):
    """Builtin functions by what they compute."""

    def __init__(self, entry: str, most: int, lay_out: Callable[[Call, int, Key, str], None]) -> None:
        self._entry, self._most, self._lay_out = entry, most, lay_out
        self._calls: dict[Key, Call] = {}

    def __missing__(self, key: Key) -> Callable:
        call = self._calls.setdefault(key, Call(self._entry, self._most))
        self[key] = call.function
        return call.function

    def learn(self, key: Key, dtype: np.dtype) -> None:
        """Load the kernels for this dtype, if that has not been done; notice which threads there are."""
        call = self._calls.get(key)
        if call is None or call.function is builtin.declining:
            return
        if dtype not in call.known:
            self._lay_out(call, VARIANT[dtype.name], key, dtype.name)
        if dtype not in call.known or call.epoch != EPOCH[0]:
            call.learn(dtype)
        if crowd.is_there() and layouts.workshop().provided != EPOCH[0]:
            layouts.workshop().provide(0, crowd.get().prepare(get_num_threads()))


def _map(call: Call, slot: int, kernel: str, dtype: str) -> None:
    MAP.pack_into(call.view, slot, {"kernel": loader.address(f"activations.{kernel}", dtype)})


def _update(call: Call, slot: int, rule: str, dtype: str) -> None:
    UPDATE.pack_into(call.view, slot, {"kernel": loader.address(f"optimizers.{rule}_flat", dtype)})


@functools.cache
def _scratch(dtype: str) -> tuple[int, np.ndarray]:
    """The depth of a product's blocks and memory for them."""
    kc = blocking.depth(dtype, 1 << 20)
    return kc, allocate(blocking.columns(dtype) * (kc + max(9, blocking.TILES) * blocking.MR), dtype)


@functools.cache
def _layouts(activation: tuple[str, float] | None, dtype: str) -> layouts.Layouts:
    return layouts.Layouts(activation)


def _product(call: Call, slot: int, activation: tuple[str, float] | None, dtype: str) -> None:
    name, alpha = activation or ("linear", 0.0)
    kc, scratch = _scratch(dtype)
    kernels = {"tiled": "gemm.gemm", "rows": "gemv.gemv_rows", "columns": "gemv.gemv_columns"}
    kernels["small"] = "small.fused" if activation else "small.plain"
    values = {field: loader.address(kernel, dtype) for field, kernel in kernels.items()}
    values |= {"batch": call.at(slot + 1), "dense": activation is not None, "kc": kc}
    values["layouts"] = _layouts(activation, dtype).address
    PRODUCT.pack_into(call.view, slot, values)
    values = {"pairs": call.at(slot + 2), "axes": call.at(slot + 4), "run": call.at(1), "scratch": address(scratch)}
    BATCH.pack_into(call.view, slot + 1, values)
    GEMM.pack_into(call.view, slot + 2, {"panels": 1})
    epilogue = loader.address(f"activations.{name}_forward", dtype)
    FORWARD.pack_into(call.view, slot + 3, {"kernel": epilogue, "alpha": alpha})


@functools.cache
def _values() -> np.ndarray:
    return allocate(SMALL, "float64")  # zeros: pages that are never used do not exist


def learn_product(
    activation: tuple[str, float] | None,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None,
    threads: int,
) -> None:
    """Accept arrays of this dtype in `PRODUCTS`; a product that is large, with these shapes and strides only."""
    PRODUCTS.learn(activation, out.dtype)
    if blocking.is_large(len(a), b.shape[1], len(b), out.itemsize) and PRODUCTS[activation] is not builtin.declining:
        _layouts(activation, out.dtype.name).keep(a, b, out, bias, threads)


def _loss(call: Call, slot: int, loss: str, dtype: str) -> None:
    values = {"loss": call.at(slot + 1), "labels": loss.startswith("sparse"), "by_rows": "softmax" in loss}
    CRITERION.pack_into(call.view, slot, {**values, "bounded": loss != "mean_squared_error"})
    kernel = loader.address(f"losses.{loss}", dtype)
    LOSS.pack_into(call.view, slot + 1, {"kernel": kernel, "value": address(_values())})


MAPS: Calls[str] = Calls("direct.elementwise", SMALL_MAP, _map)  # by the name of the kernel
UPDATES: Calls[str] = Calls("direct.update", SMALL, _update)  # by the name of the optimizer's rule
# By the activation of a dense layer and its parameter; None for plain products.
PRODUCTS: Calls[tuple[str, float] | None] = Calls("direct.product", blocking.LARGE, _product)
LOSSES: Calls[str] = Calls("criteria.mean", SMALL, _loss)  # by the name of the kernel


# --- predictions -----------------------------------------------------------------------------------------------------

PREDICT = ("predict.predict", "float64")


class _Owner(np.ndarray):
    """Records, and what they point at."""

    kept: tuple


def prediction(
    executable: Executable, table: Table, rows: int, x: np.ndarray, units: int
) -> Callable[[np.ndarray], np.ndarray | None]:
    """A builtin function that runs `table`, of one thread, for an array like `x`; it owns the executable."""
    if builtin.python() == 0:
        return builtin.declining
    run, team, flags = np.zeros(1, RUN.dtype), np.zeros(24, np.int64), np.zeros(16, np.int64)
    run["threads"], run["stop"], run["short_step"] = 1, 1, -1
    run["table"], run["records"] = table.address, table.length
    run["team"], run["done"], run["halt"] = address(team), address(flags), address(flags) + 64
    shape = np.array([rows, units], np.int64)
    places = [np.array([*table.places(name), 0], np.int64) for name in ("x", "out")]
    dtype = np.dtype(x.dtype.char)  # the one that all arrays share, but for those that were unpickled
    own = np.zeros(SLOT, np.uint8).view(_Owner)
    own.kept = executable, run, team, flags, shape, places, dtype
    values = {"python": builtin.python(), "descr": id(dtype), "rows": rows, "cols": x.shape[1]}
    values |= {"row": x.strides[0], "col": x.strides[1], "shape": address(shape), "size": table.size}
    values |= {"inputs": address(places[0]), "outputs": address(places[1])}
    values |= {"run": address(run), "engine": loader.address("engine.engine", "float32")}
    PREDICTION.pack_into(memoryview(own), 0, values)
    return builtin.make(PREDICT[0], own)
