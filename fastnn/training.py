"""Runs programs over arrays: what is behind `Sequential.evaluate` and `predict`, and what `fit` is made of."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import _names, data, metrics
from fastnn.plan import Lowering
from fastnn.program import Program
from fastnn.stages import Affine, Feed, Objective, Update
from fastnn.threads import usable_threads

if TYPE_CHECKING:
    from fastnn.losses import Loss
    from fastnn.network import Network
    from fastnn.sequential import Sequential

BATCH = 32  # Keras' default
CHUNK = 256  # samples computed at once where the batch size does not matter
# Share of inputs that are not 0 up to which a first layer leaves out the others (`fastnn.cpu.spmm`).  784-256-10, batch
# 128, two threads: 142 us a step with 0.2, 167 with 0.3, 191 with 0.4, and 257 if zeros are multiplied, too.
MAX_DENSITY = 0.4
COUNTED_FROM = 4096  # weights of a first layer from which it is worth 10 us to count zeros
KEEP = 8  # executables a model keeps for reuse
LAYOUTS = 64  # of arrays that `predict` remembers

_adopting = threading.Lock()


def _after_fork() -> None:
    """Another thread may have held it."""
    global _adopting
    _adopting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _decline(x: object) -> np.ndarray | None:
    """In place of a function that predicts arrays like an earlier one."""
    return None


class Programs:
    """The executables of a model, least recently used first."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._last: tuple[Any, Any] = (None, None)  # key and executable: to compare a key takes a third of hashing it
        self.calls: dict[Any, Any] = {}  # of `predict`: what `_layout` says of the arguments, and what is left to do
        self.direct: Callable[[object], np.ndarray | None] = _decline  # likewise, for arrays like the last one
        self.known: tuple[tuple, Any] | None = None  # of `train_on_batch`: the model's state, and what it knows

    def clear(self) -> None:
        """Forget all, because the model changed."""
        self._kept.clear()
        self._last = None, None
        self._forget_calls()

    def _forget_calls(self) -> None:
        self.calls.clear()
        self.direct, self.known = _decline, None

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The executable for `key`, made if need be."""
        last = self._last  # read once, since several threads may predict
        if key == last[0]:
            return last[1]
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
            if len(self._kept) > self._keep:
                with contextlib.suppress(KeyError):
                    self._kept.popitem(last=False)
                self._forget_calls()  # or they would keep what was dropped
        else:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._kept.move_to_end(key)
        self._last = key, found
        return found


@dataclass(frozen=True)
class Recipe:
    """All that decides what a program is, but for the number of rows.

    `mode` is "train", "evaluate" or "predict"; `y` is None for class numbers.
    """

    mode: str
    x: Feed
    y: Feed | None
    weighted: bool
    objective: Objective | None
    update: Update | None
    threads: int

    def lower(self, network: Network, rows: int, capacity: int) -> Program:
        """The program for `rows` rows, laid out for `capacity`."""
        plan = Lowering(network.stages, self.x, rows, capacity, network.backend.pad(network.dtype))
        if self.objective is None:
            return plan.predict()
        if self.update is None:
            return plan.evaluate(self.objective, self.y, self.weighted)
        return plan.train(self.objective, self.y, self.weighted, self.update)

    def executable(self, network: Network, program: Program, short: Program | None, rows: int, like: Any = None) -> Any:
        """The executable of programs that `lower` made."""
        buffers = network.buffers(self.update.states if self.update else 0)
        sums = 1 + len(self.objective.metrics) if self.objective else 0
        return network.backend.Executable(program, short, rows, network.dtype, buffers, sums, self.threads, like)


def recipe(
    model: Sequential,
    mode: str,
    x: Feed,
    y: Feed | None = None,
    weighted: bool = False,
    network: Network | None = None,
) -> Recipe:
    """The recipe for a model as it is now, or with a network that is not yet its own."""
    objective = _objective(model, network or model._built()) if mode != "predict" else None
    update = model._compiled()[1].update() if mode == "train" else None
    return Recipe(mode, x, y, weighted, objective, update, threads(model))


def threads(model: Sequential) -> int:
    """How many threads a model's steps get."""
    return usable_threads(model.n_threads)


def executable(
    model: Sequential, mode: str, n: int, batch: int, x: Feed, y: Feed | None = None, weighted: bool = False
) -> Any:
    """The executable that walks `n` samples in steps of `batch`; the other arguments are those of `Recipe`."""
    network = model._built()
    rows = min(n, batch)
    rest = n % rows
    made = recipe(model, mode, x, y, weighted)

    def make() -> Any:
        short = made.lower(network, rest, rows) if rest else None
        return made.executable(network, made.lower(network, rows, rows), short, rows)

    return model._programs.get((made, rows, rest), make)


def _objective(model: Sequential, network: Network) -> Objective:
    loss, _ = model._compiled()
    return loss.objective(network.last_activation, metrics.resolve(model.metrics, loss, network.units))


def _may_be_sparse(network: Network) -> bool:
    """Whether zeros among the inputs stay 0 on their way to a first layer that is worth it."""
    first = network.stages[0] if network.stages else None
    if not isinstance(first, Affine) or network.offset != 0:
        return False
    return first.units > 1 and first.inputs * first.units >= COUNTED_FROM


def _density(network: Network, matrix: np.ndarray) -> float:
    """The share of samples' elements that are not 0, where that matters."""
    return data.density(matrix) if _may_be_sparse(network) else 1.0


def _is_sparse(density: float) -> bool:
    # Nothing but 0 tells nothing: samples to warm up with, say.
    return 0 < density <= MAX_DENSITY


def leaves_out(network: Network, matrix: np.ndarray) -> bool:
    """Whether a first layer leaves out the zeros of these samples."""
    return _is_sparse(_density(network, matrix))


class Samples:
    """Validated arrays of samples, targets and weights, with their feeds."""

    def __init__(
        self,
        network: Network,
        x: np.ndarray,
        loss: Loss | None = None,
        y: object = None,
        sample_weight: object = None,
        class_weight: dict | None = None,
    ) -> None:
        self.n = len(x)
        self.x, self.x_feed = data.matrix(x, network.dtype, network.scale, network.offset)
        self.density = _density(network, self.x)
        if _is_sparse(self.density):
            self.x_feed = replace(self.x_feed, sparse=True)
        self.y: np.ndarray | None = None
        self.y_feed: Feed | None = None
        self.weight: np.ndarray | None = None
        if loss is not None:
            self.y = data.targets(y, loss, network.units, self.n, network.dtype)
            self.weight = data.weights(sample_weight, class_weight, self.y, self.n)
            if self.y.ndim == 2:
                self.y, self.y_feed = data.matrix(self.y, network.dtype)

    def bind(self, program: Any, index: np.ndarray | None = None) -> None:
        """Give an executable these arrays."""
        program.bind(x=self.x, y=self.y, weight=self.weight, index=index)


def checked(
    model: Sequential, x: object, y: object = None, sample_weight: object = None, class_weight: dict | None = None
) -> Samples:
    """Validated samples; only when all is well is the model built for them, if that is still to be done."""
    loss, _ = model._compiled()
    array = data.samples(x, model.input_shape)
    network = model._network_for(array)
    samples = Samples(network, array, loss, y, sample_weight, class_weight)
    adopt(model, network)
    return samples


def adopt(model: Sequential, network: Network) -> Network:
    """Make `network` the model's if it has none yet (several threads may come with theirs); returns the model's."""
    if model.network is None:
        with _adopting:
            if model.network is None:
                model._adopt(network)
    return model._built()


def _layout(model: Sequential, x: np.ndarray, rows: int) -> tuple:
    """All that `predict` checks of an array, or that its executable depends on, but for the model."""
    return x.shape, x.strides, x.dtype, x.flags.aligned, rows, threads(model)


class _Again:
    """What is left to do for an array of a layout that `predict` has seen.

    A row through 784-256-10 takes 37 us instead of 100, and 18 by `direct_call`, of which 17 are arithmetic.
    """

    def __init__(self, made: Recipe, network: Network, program: Any, n: int) -> None:
        self.made, self.network, self.program, self.n = made, network, program, n
        self.uses = 0
        self.direct: Callable[[object], np.ndarray | None] | None = None

    def direct_call(self, x: np.ndarray) -> Callable[[object], np.ndarray | None]:
        """A function that is faster still, or declines: it is made once, when it is likely to be worth 1 ms.

        Its executable is its own, since it waits for no lock.
        """
        self.uses += 1
        if self.direct is not None:
            return self.direct
        if self.uses > 1 and self.n == self.program.rows:
            network, n, self.direct = self.network, self.n, _decline
            own = self.made.executable(network, self.made.lower(network, n, n), None, n)
            self.direct = own.prediction(x, network.units)
            return self.direct
        return _decline

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out, program = np.empty((self.n, self.network.units), self.network.dtype), self.program
        with program.lock:
            program.bind(x=x, out=out)
            if self.n == program.rows <= CHUNK:
                program.step()
            else:
                program.run(self.n)
        return out


def _predict_again(model: Sequential, x: object, batch_size: int | None, whole: bool) -> np.ndarray | None:
    """Outputs for an array like one that `predict` had before, or None."""
    if type(x) is not np.ndarray or x.ndim != 2:
        return None
    rows = _rows(len(x), batch_size, whole)
    if rows is None:
        return None
    programs, layout = model._programs, _layout(model, x, rows)
    again = programs.calls.get(layout)
    if again is None:
        return None
    direct = again.direct_call(x)
    if layout in programs.calls:  # the model has not been changed meanwhile
        programs.direct = direct
    out = direct(x)
    return again(x) if out is None else out


def _rows(n: int, batch_size: int | None, whole: bool) -> int | None:
    """Rows of `n` that `predict` computes at once; None for what is left to its checks."""
    if whole:
        return n
    if batch_size is None:
        return min(n, CHUNK)
    return min(n, batch_size) if type(batch_size) is int and batch_size > 0 else None


def predict(model: Sequential, x: object, batch_size: int | None, *, whole: bool = False) -> np.ndarray:
    """Outputs for all samples, `batch_size` (or the `whole`) at once."""
    known = _predict_again(model, x, batch_size, whole)
    if known is not None:
        return known
    batch = CHUNK if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    array = data.samples(x, model.input_shape)
    network = model._network_for(array)
    samples = Samples(network, array)
    network = adopt(model, network)
    batch = samples.n if whole else batch
    out = np.empty((samples.n, network.units), model.dtype)
    program = executable(model, "predict", samples.n, batch, samples.x_feed)
    with program.lock:
        samples.bind(program)
        program.bind(out=out)
        program.run(samples.n)
    if len(network.shapes[-1]) > 1:
        return out.reshape(samples.n, *network.shapes[-1])
    if samples.x is x:  # it was a matrix that is read in place
        calls = model._programs.calls
        if len(calls) >= LAYOUTS:
            calls.clear()
        made = recipe(model, "predict", samples.x_feed)
        calls[_layout(model, samples.x, program.rows)] = _Again(made, network, program, samples.n)
    return out


def evaluate_samples(model: Sequential, samples: Samples, batch: int) -> dict[str, float]:
    """Loss and metrics over validated samples."""
    program = executable(
        model, "evaluate", samples.n, batch, samples.x_feed, samples.y_feed, samples.weight is not None
    )
    with program.lock:
        samples.bind(program)
        program.totals.fill(0)
        program.run(samples.n)
        return logs(model, program.totals, samples.n)


def logs(model: Sequential, totals: np.ndarray, n: int) -> dict[str, float]:
    """Means over `n` samples by name."""
    return dict(zip(["loss", *model.metrics], [total / n for total in totals.tolist()], strict=True))
