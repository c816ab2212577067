"""Where batches come from when samples do not lie in arrays: generators, loaders, sequences of batches.

A source yields batches: ``(x, y)`` or ``(x, y, sample_weight)``, for `predict` also ``x`` alone.  It is one of these:

===========  =========================================================================================================
sequence     has ``__len__`` and ``__getitem__``, as Keras' `PyDataset`: an item is a batch; taken in random order if
             `fit` shuffles; its ``on_epoch_end``, if there is one, is called after each epoch
iterable     has ``__iter__``, as torch's `DataLoader`: begun anew for each epoch
iterator     has ``__next__``, as a generator: it can be gone through once
===========  =========================================================================================================

What is an array, or becomes one (lists, data frames, tensors), is no source.

Batches are not fetched ahead: a generator may fill the same array again and again, and sees the model as the batch
before has left it.  Who loads slowly can fetch ahead in threads or processes of their own, as torch's loader does.
"""

from __future__ import annotations

import array
import collections
import collections.abc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastnn import _names, data

# What `numpy.asarray` takes, though it has the methods of a source.
ARRAYS = (
    np.ndarray,
    list,
    tuple,
    range,
    str,
    bytes,
    bytearray,
    memoryview,
    array.array,
    collections.deque,
    collections.abc.Mapping,
    collections.abc.Set,
)
END = object()


def is_source(value: object) -> bool:
    """Whether `value` yields batches, by its methods."""
    if value is None or isinstance(value, ARRAYS):
        return False
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return False
    sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return sequence or hasattr(value, "__iter__")


class Source:
    """Batches, epoch by epoch.

    Parameters
    ----------
    value
        What `is_source` accepts.
    name, steps_name
        What the user calls it, and the number of steps.
    steps : int, optional
        Batches of an epoch; without it an epoch is all that there are.  With it the next epoch goes on where this one
        ended, and begins anew where batches run out, as in Keras.
    permute : callable, optional
        ``permute(n)`` draws the order of a sequence's n items for each pass; without it they are taken in order.
    """

    def __init__(
        self,
        value: Any,
        name: str,
        steps: object = None,
        steps_name: str = "steps_per_epoch",
        permute: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.value, self.name, self.steps_name, self.permute = value, name, steps_name, permute
        self.steps = None if steps is None else _names.integer(steps, steps_name, low=1)
        self.once = hasattr(value, "__next__")
        self.sequence = not self.once and hasattr(value, "__getitem__") and hasattr(value, "__len__")
        self.ended = False  # whether an iterator ended before its last epoch did
        self._rest: Iterator[Any] | None = None

    @property
    def length(self) -> int | None:
        """Batches of an epoch, if that can be told."""
        if self.steps is not None or self.once:
            return self.steps
        try:
            return len(self.value)
        except (TypeError, NotImplementedError):  # iterables that do not know, torch's among them
            return None

    def repeats(self, epochs: int) -> None:
        """Refuse an iterator that would have to be gone through `epochs` times."""
        if self.once and self.steps is None and epochs > 1:
            raise ValueError(
                f"{self.name} is an iterator, which can be gone through once, but is needed {epochs} times: give "
                f"{self.steps_name}, or an object whose __iter__ begins anew"
            )

    def epoch(self) -> Iterator[Any]:
        """The batches of the next epoch; fewer than `steps` (and a warning) if an iterator ends before."""
        if self.steps is None:
            for batch in self._all():  # `yield from` would close an interrupted generator, which is the user's
                yield batch
            return
        for step in range(self.steps):
            batch = END if self._rest is None else next(self._rest, END)
            if batch is END and not (self.once and self._rest is not None):
                self._rest = self._all()
                batch = next(self._rest, END)
            if batch is END:
                self.ended = True
                warnings.warn(
                    f"{self.name} ran out of batches after {step} of {self.steps_name}={self.steps}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
            yield batch

    def _all(self) -> Iterator[Any]:
        if not self.sequence:
            return iter(self.value)
        n = len(self.value)
        order = range(n) if self.permute is None else self.permute(n).tolist()
        return (self.value[i] for i in order)

    def end(self) -> None:
        """Tell a sequence that the epoch is over."""
        hook = getattr(self.value, "on_epoch_end", None)
        if self.sequence and callable(hook):
            hook()


class Rows:
    """Arrays as a sequence of batches, each converted by itself.

    For files mapped to memory whose numbers no kernel reads (int16, float16, other byte orders): converted at once
    they would need memory for all of them.  The order of the samples is drawn anew for each pass.

    Parameters
    ----------
    arrays
        x, y and the weights, of the same length; y and the weights may be None.
    """

    def __init__(
        self,
        arrays: tuple[np.ndarray | None, ...],
        batch: int,
        dtype: str,
        permute: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.arrays, self.batch, self.dtype, self.permute = arrays, batch, dtype, permute
        assert arrays[0] is not None
        self.n = len(arrays[0])

    def __iter__(self) -> Iterator[tuple]:
        order = None if self.permute is None else self.permute(self.n)
        for first in range(0, self.n, self.batch):
            part = slice(first, first + self.batch)
            yield tuple(self._take(array, part if order is None else order[part]) for array in self.arrays)

    def __len__(self) -> int:
        return -(-self.n // self.batch)

    def _take(self, array: np.ndarray | None, rows: slice | np.ndarray) -> np.ndarray | None:
        if array is None:
            return None
        part = array[rows]
        return part if data.is_direct(part) or part.ndim == 1 else part.astype(self.dtype)


def parts(batch: Any, name: str) -> tuple[Any, Any, Any]:
    """X, y and the sample weights (or None) of a batch to train on."""
    if isinstance(batch, tuple | list):
        if len(batch) == 2:
            return batch[0], batch[1], None
        if len(batch) == 3:
            return batch[0], batch[1], batch[2]
        given = f"{len(batch)} of them"
    else:
        given = type(batch).__name__
    raise ValueError(f"{name} must yield batches (x, y) or (x, y, sample_weight), got {given}")


def inputs(batch: Any) -> Any:
    """X of a batch to predict: the batch itself, or the first of a tuple of arrays."""
    if isinstance(batch, tuple | list) and batch and all(e is None or hasattr(e, "__array__") for e in batch):
        return batch[0]
    if isinstance(batch, tuple) and len(batch) == 1:
        return batch[0]
    return batch
