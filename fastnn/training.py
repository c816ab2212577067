"""Runs programs over arrays: what is behind `Sequential.evaluate` and `predict`, and what `fit` is made of."""

from __future__ import annotations

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


def _decline(x: object) -> None:
    """In place of a function that predicts arrays like an earlier one."""


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
        if key == self._last[0]:
            return self._last[1]
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
                self._forget_calls()  # or they would keep what was dropped
        else:
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
    return Recipe(mode, x, y, weighted, objective, update, usable_threads(model.n_threads))


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
        self.density = data.density(self.x) if _may_be_sparse(network) else 1.0
        if 0 < self.density <= MAX_DENSITY:  # nothing but 0 tells nothing: samples to warm up with, say
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


def adopt(model: Sequential, network: Network) -> None:
    """Make `network` the model's, if it is not yet."""
    if model.network is not network:
        model._adopt(network)


def _layout(model: Sequential, x: np.ndarray, batch: int | None, whole: bool) -> tuple:
    """All that `predict` checks of an array, or that its executable depends on, but for the model."""
    return x.shape, x.strides, x.dtype, x.flags.aligned, batch, whole, usable_threads(model.n_threads)


class _Again:
    """What is left to do for an array of a layout that `predict` has seen.

    A row through 784-256-10 takes 37 us instead of 100, and 18 by `direct_call`, of which 17 are arithmetic.
    """

    def __init__(self, made: Recipe, network: Network, program: Any, n: int) -> None:
        self.made, self.network, self.program, self.n = made, network, program, n
        self.direct: Callable[[object], np.ndarray | None] | None = None

    def direct_call(self, x: np.ndarray) -> Callable[[object], np.ndarray | None]:
        """A function that is faster still, or declines; its executable is its own, since it waits for no lock."""
        if self.direct is None:
            self.direct = _decline
            if self.n == self.program.rows:
                program = self.made.lower(self.network, self.n, self.n)
                self.direct = self.made.executable(self.network, program, None, self.n).prediction(
                    x, self.network.units
                )
        return self.direct

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out, program = np.empty((self.n, self.network.units), self.network.dtype), self.program
        with program.lock:
            program.bind(x=x, out=out)
            if self.n == program.rows <= CHUNK:
                program.step()
            else:
                program.run(self.n)
        return out


def predict_again(
    model: Sequential, x: object, batch_size: int | None = None, *, whole: bool = False
) -> np.ndarray | None:
    """Outputs for an array like one that `predict` had before, or None."""
    if type(x) is not np.ndarray or type(batch_size) not in (int, type(None)):
        return None
    programs = model._programs
    again = programs.calls.get(_layout(model, x, batch_size, whole))
    if again is None:
        return None
    programs.direct = again.direct_call(x)
    out = programs.direct(x)
    return again(x) if out is None else out


def predict(model: Sequential, x: object, batch_size: int | None, *, whole: bool = False) -> np.ndarray:
    """Outputs for all samples, `batch_size` (or the `whole`) at once."""
    known = predict_again(model, x, batch_size, whole=whole)
    if known is not None:
        return known
    batch = CHUNK if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    array = data.samples(x, model.input_shape)
    network = model._network_for(array)
    samples = Samples(network, array)
    adopt(model, network)
    batch = samples.n if whole else batch
    out = np.empty((samples.n, network.units), model.dtype)
    program = executable(model, "predict", samples.n, batch, samples.x_feed)
    with program.lock:
        samples.bind(program)
        program.bind(out=out)
        program.run(samples.n)
    if len(network.shapes[-1]) > 1:
        return out.reshape(samples.n, *network.shapes[-1])
    if samples.x is x and type(batch_size) in (int, type(None)):  # it was a matrix that is read in place
        made = recipe(model, "predict", samples.x_feed)
        again = _Again(made, network, program, samples.n)
        model._programs.calls[_layout(model, samples.x, batch_size, whole)] = again
    return out


def evaluate_samples(model: Sequential, samples: Samples, batch: int) -> dict[str, float]:
    """Loss and metrics over validated samples."""
    program = executable(
        model, "evaluate", samples.n, batch, samples.x_feed, samples.y_feed, samples.weight is not None
    )
    with program.lock:
        samples.bind(program)
        program.totals[:] = 0
        program.run(samples.n)
        return logs(model, program.totals, samples.n)


def logs(model: Sequential, totals: np.ndarray, n: int) -> dict[str, float]:
    """Means over `n` samples by name."""
    return dict(zip(["loss", *model.metrics], (totals / n).tolist(), strict=True))
