"""What the parts share: their settings, and what is kept of some samples."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, Any]


class Settings(NamedTuple):
    """How to measure."""

    threads: int
    rounds: int
    libraries: list[str] | None = None  # None: all that are installed
    quick: bool = False


def figures(seconds: list[float]) -> Record:
    """Median and lower quartile beside the samples: on a busy machine the quartile says more of the program."""
    return {"median": statistics.median(seconds), "low": float(np.quantile(seconds, 0.25)), "samples": seconds}
