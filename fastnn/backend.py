"""Chooses where a model runs.

A backend is a module with the functions that `Backend` lists; ``fastnn.cpu`` is one, ``fastnn.cuda`` will be its twin.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from fastnn.program import Program

DEVICES = ("cpu",)


class Backend(Protocol):
    """What a backend offers."""

    def allocate(self, elements: int, dtype: str) -> np.ndarray:
        """Zeros that start at a cache line."""

    def pad(self, dtype: str) -> Callable[[int], int]:
        """The leading dimension for rows of n elements."""

    def peaks(self, dtype: str, threads: int, size: int, *, tiled: bool = False) -> tuple[float, float, float]:
        """Operations a second, by vectors and on a matrix unit (if `tiled`, else 0), and bytes a second, at best.

        Bytes are copied where `size` of them lie.
        """

    def permutation(self, n: int, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """The numbers below n in a random order, int64: in `out` if that has as many elements, else in new memory."""

    def Executable(
        self,
        program: Program,
        short: Program | None,
        rows: int,
        dtype: str,
        buffers: Mapping[str, np.ndarray],
        sums: int,
        threads: int,
        like: Any = None,
    ) -> Any:
        """A program that can be run."""


def get(device: str) -> Backend:
    """The backend of a device name."""
    if device == "cpu":
        from fastnn.cpu import executable

        return executable  # type: ignore[return-value]
    raise ValueError(f"device must be one of {', '.join(map(repr, DEVICES))}; got {device!r}")
