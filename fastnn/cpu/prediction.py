"""Makes the builtin functions that predict (`fastnn.cpu.predict`), and all that one of them needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fastnn.cpu import builtin, loader
from fastnn.cpu.memory import address
from fastnn.records import PREDICTION, RUN, SLOT

if TYPE_CHECKING:
    from fastnn.cpu.executable import Executable, Table

KERNEL = ("predict.predict", "float64")


class _Owner(np.ndarray):
    """Records, and what they point at."""

    kept: tuple


def make(
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
    return builtin.make(KERNEL[0], own)
