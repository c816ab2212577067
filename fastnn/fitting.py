"""The epochs of `Sequential.fit`: over arrays in one piece of compiled code each, over batch sources batch by batch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import _names, batches, data, sources, training
from fastnn import callbacks as callbacks_

if TYPE_CHECKING:
    from fastnn.sequential import Sequential

Permute = Callable[..., np.ndarray]  # ``permute(n, out=None)`` draws an order of n samples

REFRESH = 0.05  # seconds between two looks of the progress bar


def fit(
    model: Sequential,
    x: Any,
    y: Any,
    *,
    batch_size: int | None,
    epochs: int,
    verbose: str | int,
    callbacks: object,
    validation_split: float,
    validation_data: Any,
    shuffle: bool,
    class_weight: dict | None,
    sample_weight: Any,
    initial_epoch: int,
    steps_per_epoch: int | None,
    validation_steps: int | None,
    validation_batch_size: int | None,
    validation_freq: Any,
) -> callbacks_.History:
    """Train for some epochs."""
    model._compiled()
    batch = training.BATCH if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    epochs = _names.integer(epochs, "epochs", low=0)
    initial_epoch = _names.integer(initial_epoch, "initial_epoch", low=0)
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(f"verbose must be 'auto', 0, 1 or 2, got {verbose!r}")
    hooks = callbacks_.check(callbacks)
    split = _names.number(validation_split, "validation_split", low=0, high=1, open_high=True)
    due = _due(validation_freq, range(initial_epoch, epochs))
    permute = functools.partial(model.backend.permutation, rng=model.shuffle_rng) if shuffle else None
    at_once = validation_batch_size
    if at_once is None and validation_steps is not None:
        at_once = batch

    held_out: tuple[Any, ...] | sources.Source | None = None
    if sources.is_source(validation_data):
        _only(validation_data, "validation_data", validation_batch_size=validation_batch_size)
        held_out = sources.Source(validation_data, "validation_data", validation_steps, "validation_steps")
        held_out.repeats(len(due))
    elif validation_data is not None:
        if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
            raise ValueError("validation_data must be (x, y), (x, y, sample_weight) or yield such batches")
        held_out = tuple(validation_data)
    source: sources.Source | None = None
    if sources.is_source(x):
        _only(x, "x", y=y, batch_size=batch_size, sample_weight=sample_weight, validation_split=split or None)
        source = sources.Source(x, "x", steps_per_epoch, permute=permute)
        source.repeats(epochs - initial_epoch)
    else:
        x = data.samples(x, model.input_shape)
        if split and held_out is None:
            x, y, sample_weight, held_out = _split(x, y, sample_weight, split)
        if steps_per_epoch is not None or data.is_whole(x) or data.is_whole(y):
            rows = _rows(model, x, y, sample_weight, batch, permute)
            source = sources.Source(rows, "x", steps_per_epoch)
    plan: Epochs
    if source is not None:
        validate = _validation(model, held_out, validation_steps, at_once)
        plan = Stream(model, source, class_weight)
    else:
        network = model._network_for(x)
        samples = training.Samples(network, x, model._compiled()[0], y, sample_weight, class_weight)
        validate = _validation(model, held_out, validation_steps, at_once, network)
        training.adopt(model, network)
        plan = Whole(model, samples, batch, permute)

    history = model.history = callbacks_.History()
    bar = callbacks_.ProgressBar(verbose) if verbose else None
    everyone = [history, *hooks, *([bar] if bar else [])]
    plan.bar = bar
    plan.watchers = [callback for callback in everyone if callback.watches_batches()]
    params = {"epochs": epochs, "steps": plan.steps, "verbose": verbose}

    def tell(hook: str, *arguments: Any) -> None:
        for callback in everyone:
            getattr(callback, hook)(*arguments)

    for callback in everyone:
        callback.set_model(model)
        callback.set_params(params)
    model.stop_training = False
    logs: dict[str, float] = {}
    tell("on_train_begin")
    try:
        for epoch in range(initial_epoch, epochs):
            tell("on_epoch_begin", epoch)
            found = plan.epoch()
            if found is None:
                break
            logs = found
            if validate is not None and epoch in due:
                logs |= {f"val_{name}": value for name, value in validate().items()}
            tell("on_epoch_end", epoch, logs)
            if model.stop_training:
                break
    except BaseException:
        if bar is not None:
            bar.on_train_end()
        raise
    tell("on_train_end", logs)
    return history


def _only(value: object, name: str, **others: object) -> None:
    """Refuse arguments that come with the batches of a source."""
    for other, given in others.items():
        if given is not None:
            raise ValueError(
                f"{other} must not be given where {name} yields batches (a {type(value).__name__} does), got "
                f"{other}={type(given).__name__ if hasattr(given, '__len__') else given!r}"
            )


def _due(freq: Any, epochs: range) -> list[int]:
    """The epochs, counted from 0, after which validation is due."""
    if isinstance(freq, list | tuple | set | range):
        chosen = {_names.integer(e, "each entry of validation_freq", low=1) for e in freq}
        return [epoch for epoch in epochs if epoch + 1 in chosen]
    every = _names.integer(freq, "validation_freq", low=1)
    return [epoch for epoch in epochs if (epoch + 1) % every == 0]


def _same_length(x: np.ndarray, y: Any, weight: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Targets and weights as arrays with an entry for each sample."""
    y = data.as_numbers(y, "y") if y is not None else None
    weight = None if weight is None else data.as_numbers(weight, "sample_weight")
    for name, array in (("y", y), ("sample_weight", weight)):
        if array is not None and (array.ndim == 0 or len(array) != len(x)):
            raise ValueError(
                f"{name} must have one entry for each of the {len(x)} samples of x, got shape {array.shape}"
            )
    return y, weight


def _split(x: np.ndarray, y: Any, weight: Any, split: float) -> tuple:
    """The last share of the samples apart from the others."""
    at = int(len(x) * (1 - split))
    if at in (0, len(x)):
        part = "training" if at == 0 else "validation"
        raise ValueError(f"validation_split={split} of {len(x)} samples leaves none for {part}")
    y, weight = _same_length(x, y, weight)

    def cut(array: np.ndarray | None, part: slice) -> np.ndarray | None:
        return None if array is None else array[part]

    head, tail = slice(None, at), slice(at, None)
    return x[head], cut(y, head), cut(weight, head), (x[tail], cut(y, tail), cut(weight, tail))


def _rows(
    model: Sequential, x: np.ndarray, y: Any, weight: Any, batch: int, permute: Permute | None = None
) -> sources.Rows:
    if y is None:
        raise ValueError("y is missing: training and evaluation need targets")
    y, weight = _same_length(x, y, weight)
    return sources.Rows((x, y, weight), batch, model.dtype, permute)


def _validation(
    model: Sequential,
    held_out: tuple[Any, ...] | sources.Source | None,
    steps: int | None,
    batch_size: int | None,
    network: Any = None,
) -> Callable[[], dict[str, float]] | None:
    """What evaluates the held-out samples, which are checked now if they are arrays."""
    if held_out is None:
        return None
    if isinstance(held_out, sources.Source):
        source = held_out
        return lambda: batches.evaluate(model, source)
    shape = model.input_shape if network is None else network.input_shape
    x = data.samples(held_out[0], shape, "validation x")
    return evaluation(model, x, *held_out[1:], batch_size=batch_size, steps=steps, network=network)


def evaluation(
    model: Sequential,
    x: np.ndarray,
    y: Any,
    sample_weight: Any = None,
    *,
    batch_size: int | None,
    steps: int | None,
    network: Any = None,
    names: tuple[str, str] = ("validation_batch_size", "validation_steps"),
) -> Callable[[], dict[str, float]]:
    """A function that evaluates arrays; they are checked now.

    `network` is the one that the model is about to adopt, if it has none yet; without one the model adopts its own.
    """
    batch = training.CHUNK if batch_size is None else _names.integer(batch_size, names[0], low=1)
    if steps is not None:
        n = _names.integer(steps, names[1], low=1) * (training.BATCH if batch_size is None else batch)
        y, sample_weight = _same_length(x, y, sample_weight)
        x, y, sample_weight = x[:n], None if y is None else y[:n], None if sample_weight is None else sample_weight[:n]
    if data.is_whole(x) or data.is_whole(y):
        rows = _rows(model, x, y, sample_weight, batch)
        return lambda: batches.evaluate(model, sources.Source(rows, "x"))
    own = model._network_for(x) if network is None else network
    samples = training.Samples(own, x, model._compiled()[0], y, sample_weight)
    if network is None:
        training.adopt(model, own)
    return lambda: training.evaluate_samples(model, samples, batch)


def evaluate(
    model: Sequential, x: Any, y: Any, *, batch_size: int | None, sample_weight: Any, steps: int | None
) -> dict[str, float]:
    """Loss and metrics over arrays or a batch source."""
    model._compiled()
    if sources.is_source(x):
        _only(x, "x", y=y, batch_size=batch_size, sample_weight=sample_weight)
        return batches.evaluate(model, sources.Source(x, "x", steps, "steps"))
    array = data.samples(x, model.input_shape)
    names = "batch_size", "steps"
    return evaluation(model, array, y, sample_weight, batch_size=batch_size, steps=steps, names=names)()


def predict(model: Sequential, x: Any, batch_size: int | None, steps: int | None) -> np.ndarray:
    """Outputs for arrays or a batch source."""
    if sources.is_source(x):
        _only(x, "x", batch_size=batch_size)
        return batches.predict(model, sources.Source(x, "x", steps, "steps"))
    array = data.samples(x, model.input_shape)
    batch = training.CHUNK if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    if steps is not None:
        array = array[: _names.integer(steps, "steps", low=1) * (training.BATCH if batch_size is None else batch)]
    if data.is_whole(array):
        return batches.predict(model, sources.Source(sources.Rows((array,), batch, model.dtype), "x"))
    return training.predict(model, array, batch_size)


class Epochs:
    """How an epoch is trained."""

    steps: int | None  # of an epoch, if that is known
    watchers: list[callbacks_.Callback]  # who is told of every batch
    bar: callbacks_.ProgressBar | None

    def epoch(self) -> dict[str, float] | None:
        """Train one epoch; returns its means, or None if there was nothing left to train on."""
        raise NotImplementedError


class Whole(Epochs):
    """Arrays: an epoch is one run, unless a callback asks for batches."""

    def __init__(self, model: Sequential, samples: training.Samples, batch: int, permute: Permute | None) -> None:
        self.model, self.samples, self.batch, self.permute = model, samples, batch, permute
        self.optimizer = model._compiled()[1]
        self.steps = -(-samples.n // min(batch, samples.n))

    def epoch(self) -> dict[str, float]:
        """Train one epoch."""
        samples = self.samples
        program = training.executable(
            self.model, "train", samples.n, self.batch, samples.x_feed, samples.y_feed, samples.weight is not None
        )
        samples.bind(program, None if self.permute is None else self.permute(samples.n, out=program.order))
        program.totals.fill(0)
        steps = -(-samples.n // program.rows)
        if self.watchers:
            for step in range(steps):
                self._batch(program, step)
        else:
            self._run(program, 0, steps)
        return training.logs(self.model, program.totals, samples.n)

    def _run(self, program: Any, first: int, stop: int) -> None:
        """Steps [first, stop) of the epoch, at the optimizer's current settings."""
        origin = self.optimizer.iterations

        def watch(done: int) -> None:
            if self.bar is not None:
                seen = min(done * program.rows, self.samples.n)
                self.bar.advance(done, program.totals[0] / max(seen, 1))

        rate = self.optimizer.rates(stop - first)
        optimizer, progress = self.optimizer, program.progress
        progress[0] = first  # from here on an interruption finds the right number
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
            optimizer.iterations = origin + progress[0] - first

    def _batch(self, program: Any, step: int) -> None:
        for callback in self.watchers:
            callback.on_train_batch_begin(step)
        self._run(program, step, step + 1)
        seen = min((step + 1) * program.rows, self.samples.n)
        logs = training.logs(self.model, program.totals, seen)
        for callback in self.watchers:
            callback.on_train_batch_end(step, logs)


class Stream(Epochs):
    """A batch source: each batch is a run."""

    def __init__(self, model: Sequential, source: sources.Source, class_weight: dict | None) -> None:
        self.model, self.source = model, source
        self.batches = batches.Batches(model, "train", class_weight)
        self.steps = source.length

    def epoch(self) -> dict[str, float] | None:
        """Train one epoch; an iterator that ends before it should ends the training."""
        run, source = self.batches, self.source
        run.start()
        shown = time.perf_counter()
        for step, batch in enumerate(source.epoch()):
            for callback in self.watchers:
                callback.on_train_batch_begin(step)
            run.run(*sources.parts(batch, source.name))
            if self.watchers:
                logs = run.logs()
                for callback in self.watchers:
                    callback.on_train_batch_end(step, logs)
            if self.bar is not None and time.perf_counter() > shown + REFRESH:
                shown = time.perf_counter()
                self.bar.advance(step + 1, run.totals[0] / run.n)
        source.end()
        if source.ended:
            self.model.stop_training = True
            if run.n == 0:
                return None
        batches.check_any(source, run)
        return run.logs()
