"""Runs programs over data: the loops behind `Sequential.fit`, `evaluate`, `predict` and `train_on_batch`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import _names, data, metrics
from fastnn import callbacks as callbacks_
from fastnn.plan import Lowering
from fastnn.program import Program
from fastnn.stages import Feed, Objective, Update
from fastnn.threads import check_threads

if TYPE_CHECKING:
    from fastnn.losses import Loss
    from fastnn.network import Network
    from fastnn.sequential import Sequential

BATCH = 32  # Keras' default
CHUNK = 256  # samples computed at once where the batch size does not matter
KEEP = 8  # executables a model keeps for reuse


class Programs:
    """The executables of a model, least recently used first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    def clear(self) -> None:
        """Forget all, because the model changed."""
        self._kept.clear()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The executable for `key`, made if need be."""
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = make()
            if len(self._kept) > KEEP:
                self._kept.popitem(last=False)
        return self._kept[key]


def executable(
    model: Sequential, mode: str, n: int, batch: int, x: Feed, y: Feed | None = None, weighted: bool = False
) -> Any:
    """The executable that walks `n` samples in steps of `batch`.

    `mode` is "train", "evaluate" or "predict"; y is None for class numbers.
    """
    network = model._built()
    rows = min(n, batch)
    rest = n % rows
    objective = _objective(model, network) if mode != "predict" else None
    update = model._compiled()[1].update() if mode == "train" else None
    threads = check_threads(model.n_threads)
    key = (mode, rows, rest, x, y, weighted, objective, update, threads)

    def make() -> Any:
        buffers = network.buffers(update.states if update else 0)
        sums = 1 + len(objective.metrics) if objective else 0
        full = lower(network, rows, rows, x, y, weighted, objective, update)
        short = lower(network, rest, rows, x, y, weighted, objective, update) if rest else None
        return network.backend.Executable(full, short, rows, network.dtype, buffers, sums, threads)

    return model._programs.get(key, make)


def lower(
    network: Network,
    count: int,
    rows: int,
    x: Feed,
    y: Feed | None,
    weighted: bool,
    objective: Objective | None,
    update: Update | None,
) -> Program:
    """A step of `count` rows where `rows` are laid out: evaluation has no update, predict no objective either."""
    plan = Lowering(network.stages, x, count, rows, network.backend.pad(network.dtype))
    if objective is None:
        return plan.predict()
    if update is None:
        return plan.evaluate(objective, y, weighted)
    return plan.train(objective, y, weighted, update)


def _objective(model: Sequential, network: Network) -> Objective:
    loss, _ = model._compiled()
    return loss.objective(network.last_activation, metrics.resolve(model.metrics, loss, network.units))


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


def predict(model: Sequential, x: object, batch_size: int | None, *, whole: bool = False) -> np.ndarray:
    """Outputs for all samples, `batch_size` (or the `whole`) at once."""
    batch = CHUNK if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    array = data.samples(x, model.input_shape)
    network = model._network_for(array)
    samples = Samples(network, array)
    adopt(model, network)
    batch = samples.n if whole else batch
    out = np.empty((samples.n, network.units), model.dtype)
    program = executable(model, "predict", samples.n, batch, samples.x_feed)
    samples.bind(program)
    program.bind(out=out)
    program.run(samples.n)
    return out if len(network.shapes[-1]) == 1 else out.reshape(samples.n, *network.shapes[-1])


def evaluate(
    model: Sequential, x: object, y: object, *, batch_size: int | None, sample_weight: object
) -> dict[str, float]:
    """Loss and metrics over all samples."""
    batch = CHUNK if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    samples = checked(model, x, y, sample_weight)
    return evaluate_samples(model, samples, batch)


def evaluate_samples(model: Sequential, samples: Samples, batch: int) -> dict[str, float]:
    """Loss and metrics over validated samples."""
    program = executable(
        model, "evaluate", samples.n, batch, samples.x_feed, samples.y_feed, samples.weight is not None
    )
    samples.bind(program)
    program.totals[:] = 0
    program.run(samples.n)
    return _logs(model, program, samples.n)


def _logs(model: Sequential, program: Any, n: int) -> dict[str, float]:
    return dict(zip(["loss", *model.metrics], (program.totals / n).tolist(), strict=True))


def train_on_batch(
    model: Sequential, x: object, y: object, sample_weight: object, class_weight: dict | None
) -> dict[str, float]:
    """One step."""
    _, optimizer = model._compiled()
    samples = checked(model, x, y, sample_weight, class_weight)
    program = executable(
        model, "train", samples.n, samples.n, samples.x_feed, samples.y_feed, samples.weight is not None
    )
    samples.bind(program)
    program.totals[:] = 0
    origin = optimizer.iterations
    program.run(samples.n, rate=optimizer.rates(1), origin=origin, seed=model.dropout_seed)
    optimizer.iterations += 1
    return _logs(model, program, samples.n)


def fit(
    model: Sequential,
    x: object,
    y: object,
    *,
    batch_size: int | None,
    epochs: int,
    verbose: str | int,
    callbacks: object,
    validation_split: float,
    validation_data: tuple | None,
    shuffle: bool,
    class_weight: dict | None,
    sample_weight: object,
    initial_epoch: int,
) -> callbacks_.History:
    """Train for some epochs."""
    loss, _ = model._compiled()
    batch = BATCH if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    epochs = _names.integer(epochs, "epochs", low=0)
    initial_epoch = _names.integer(initial_epoch, "initial_epoch", low=0)
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(f"verbose must be 'auto', 0, 1 or 2, got {verbose!r}")
    hooks = callbacks_.check(callbacks)
    split = _names.number(validation_split, "validation_split", low=0, high=1, open_high=True)
    if validation_data is not None and (
        not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3)
    ):
        raise ValueError("validation_data must be (x, y) or (x, y, sample_weight)")
    array = data.samples(x, model.input_shape)
    network = model._network_for(array)
    held_out: Samples | None = None
    if validation_data is not None:
        xv = data.samples(validation_data[0], network.input_shape, "validation x")
        held_out = Samples(network, xv, loss, *validation_data[1:])
    if split and validation_data is None:
        array, y, sample_weight, (xv, *rest) = _split(array, y, sample_weight, split)
        held_out = Samples(network, xv, loss, *rest)
    samples = Samples(network, array, loss, y, sample_weight, class_weight)
    adopt(model, network)
    history = model.history = callbacks_.History()
    bar = callbacks_.ProgressBar(verbose) if verbose else None
    everyone = [history, *hooks, *([bar] if bar else [])]
    loop = Loop(model, samples, held_out, batch, everyone, bar)
    params = {"epochs": epochs, "steps": -(-samples.n // min(batch, samples.n)), "verbose": verbose}
    for callback in everyone:
        callback.set_model(model)
        callback.set_params(params)
    model.stop_training = False
    loop.tell("on_train_begin")
    try:
        for epoch in range(initial_epoch, epochs):
            loop.epoch(epoch, shuffle)
            if model.stop_training:
                break
    except KeyboardInterrupt:
        if bar is not None:
            bar.on_train_end()
        raise
    loop.tell("on_train_end", loop.logs)
    return history


def _split(x: np.ndarray, y: object, weight: object, split: float) -> tuple:
    """The last share of the samples apart from the others."""
    at = int(len(x) * (1 - split))
    if at in (0, len(x)):
        part = "training" if at == 0 else "validation"
        raise ValueError(f"validation_split={split} of {len(x)} samples leaves none for {part}")
    y = data.as_numbers(y, "y") if y is not None else None
    weight = None if weight is None else data.as_numbers(weight, "sample_weight")
    for name, array in (("y", y), ("sample_weight", weight)):
        if array is not None and (array.ndim == 0 or len(array) != len(x)):
            raise ValueError(
                f"{name} must have one entry for each of the {len(x)} samples of x, got shape {array.shape}"
            )

    def cut(array: np.ndarray | None, part: slice) -> np.ndarray | None:
        return None if array is None else array[part]

    head, tail = slice(None, at), slice(at, None)
    return x[head], cut(y, head), cut(weight, head), (x[tail], cut(y, tail), cut(weight, tail))


class Loop:
    """The epochs of one call of `fit`."""

    def __init__(
        self,
        model: Sequential,
        samples: Samples,
        held_out: Samples | None,
        batch: int,
        everyone: list[callbacks_.Callback],
        bar: callbacks_.ProgressBar | None,
    ) -> None:
        self.model, self.samples, self.held_out = model, samples, held_out
        self.batch, self.everyone, self.bar = batch, everyone, bar
        self.optimizer = model._compiled()[1]
        self.logs: dict[str, float] = {}
        self.watchers = [callback for callback in everyone if callback.watches_batches()]

    def tell(self, hook: str, *arguments: Any) -> None:
        """Call one hook of every callback."""
        for callback in self.everyone:
            getattr(callback, hook)(*arguments)

    def epoch(self, epoch: int, shuffle: bool) -> None:
        """Train one epoch, evaluate, and tell the callbacks."""
        self.tell("on_epoch_begin", epoch)
        model, samples = self.model, self.samples
        program = executable(
            model, "train", samples.n, self.batch, samples.x_feed, samples.y_feed, samples.weight is not None
        )
        order = model.shuffle_rng.permutation(samples.n) if shuffle else None
        samples.bind(program, order)
        program.totals[:] = 0
        steps = -(-samples.n // program.rows)
        if self.watchers:
            for step in range(steps):
                self._batch(program, step)
        else:
            self._run(program, 0, steps)
        logs = _logs(model, program, samples.n)
        if self.held_out is not None:
            found = evaluate_samples(model, self.held_out, CHUNK)
            logs |= {f"val_{name}": value for name, value in found.items()}
        self.logs = logs
        self.tell("on_epoch_end", epoch, logs)

    def _run(self, program: Any, first: int, stop: int) -> None:
        """Steps [first, stop) of the epoch, at the optimizer's current settings."""
        origin = self.optimizer.iterations

        def watch(done: int) -> None:
            if self.bar is not None:
                seen = min(done * program.rows, self.samples.n)
                self.bar.advance(done, program.totals[0] / max(seen, 1))

        rate = self.optimizer.rates(stop - first)
        program.done = first  # from here on an interruption finds the right number
        try:
            program.run(
                self.samples.n,
                rate=rate,
                origin=origin - first,
                seed=self.model.dropout_seed,
                first=first,
                stop=stop,
                watch=watch if self.bar is not None else None,
            )
        finally:
            self.optimizer.iterations = origin + program.done - first

    def _batch(self, program: Any, step: int) -> None:
        for callback in self.watchers:
            callback.on_train_batch_begin(step)
        self._run(program, step, step + 1)
        seen = min((step + 1) * program.rows, self.samples.n)
        logs = _logs(self.model, program, seen)
        for callback in self.watchers:
            callback.on_train_batch_end(step, logs)
