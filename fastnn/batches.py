"""Runs a model on batches that come one by one: what is behind batch sources and `Sequential.train_on_batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import data, optimizers, sources, training

if TYPE_CHECKING:
    from fastnn.network import Network
    from fastnn.sequential import Sequential

SIZES = 64  # sizes of batches for which executables are kept
AHEAD = 256  # a call costs 3 us, each further step 0.05
INT64 = np.dtype(np.int64)


class Family:
    """Executables of one recipe for batches of any size.

    They share their memory, which is laid out for the largest batch so far: a new size costs a table of records (some
    hundred microseconds), not an arena of its own.
    """

    def __init__(self, recipe: training.Recipe, network: Network) -> None:
        self.recipe, self.network = recipe, network
        self.capacity = 0
        self._lender: Any = None
        self._members = training.Programs(SIZES)

    def get(self, rows: int) -> Any:
        """The executable for batches of `rows` rows."""
        if rows > self.capacity:
            # Half as much again, so that batches that grow by one row do not each begin anew.
            self.capacity = max(rows, self.capacity * 3 // 2)
            self._lender = None
            self._members.clear()
        return self._members.get(rows, lambda: self._make(rows))

    def _make(self, rows: int) -> Any:
        program = self.recipe.lower(self.network, rows, self.capacity)
        # It has the lender's memory or, where that was not enough, more.
        self._lender = self.recipe.executable(self.network, program, None, rows, self._lender)
        return self._lender


class Known:
    """What was worked out for earlier batches: executables by the kind of arrays, and step sizes."""

    def __init__(self) -> None:
        self.programs: dict[tuple, dict[bool, Any]] = {}  # where zeros are left out, and where not
        # Replaced as a whole: an interruption may come between any two calls.
        self.sizes = (np.empty(0), -1.0, 0)  # of steps, for which learning rate, and from which step on


class Batches:
    """Runs one mode of a model on batch after batch, and sums its loss and metrics.

    Parameters
    ----------
    mode : {"train", "evaluate", "predict"}
        What to do with a batch.
    class_weight : dict, optional
        As for `Sequential.fit`.
    known : Known, optional
        What is known of earlier batches, to a model that is as it was then.

    Attributes
    ----------
    n : int
        Samples since the last `start`.
    """

    def __init__(
        self, model: Sequential, mode: str, class_weight: dict | None = None, known: Known | None = None
    ) -> None:
        self.model, self.mode, self.class_weight = model, mode, class_weight
        self.start(known)

    def start(self, known: Known | None = None) -> None:
        """Begin new sums.  What is not `known` of earlier batches is forgotten: the model may have been changed."""
        self.n = 0
        self.totals = np.zeros(1 + len(self.model.metrics))
        self._known = known or Known()

    def logs(self) -> dict[str, float]:
        """Means over the samples so far."""
        return training.logs(self.model, self.totals, self.n)

    def run(self, x: Any, y: Any = None, weight: Any = None) -> None:
        """Train on a batch, or evaluate it."""
        if type(x) is not np.ndarray:
            x = data.as_numbers(x, "x")
        if type(y) is not np.ndarray and y is not None:
            y = data.as_numbers(y, "y")
        program = self._recognise(x, y) if weight is None and self.class_weight is None and y is not None else None
        if program is None:
            program = self._prepare(x, y, weight)
        else:
            program.bind(x=x, y=y)
        program.totals.fill(0)
        if self.mode == "train":
            self._train(program)
        else:
            program.step()
        self.totals += program.totals
        self.n += program.rows

    def predict(self, x: Any) -> np.ndarray:
        """Outputs for a batch."""
        array = data.samples(x, self.model.input_shape)
        network = self.model._network_for(array)
        samples = training.Samples(network, array)
        network = training.adopt(self.model, network)
        out = np.empty((samples.n, network.units), network.dtype)
        program = self._executable(samples)
        samples.bind(program)
        program.bind(out=out)
        program.step()
        self.n += samples.n
        return out.reshape(samples.n, *network.shapes[-1])

    def _executable(self, samples: training.Samples) -> Any:
        model = self.model
        recipe = training.recipe(model, self.mode, samples.x_feed, samples.y_feed, samples.weight is not None)
        family = model._programs.get(recipe, lambda: Family(recipe, model._built()))
        return family.get(samples.n)

    def _prepare(self, x: np.ndarray, y: np.ndarray | None, weight: Any) -> Any:
        """The executable, bound to a batch that may be of any kind."""
        samples = training.checked(self.model, x, y, weight, self.class_weight)
        program = self._executable(samples)
        samples.bind(program)
        assert samples.y is not None
        assert y is not None
        in_place = np.may_share_memory(samples.x, x) and np.may_share_memory(samples.y, y)
        if in_place and samples.weight is None:
            if len(self._known.programs) >= SIZES:
                self._known.programs.clear()
            self._known.programs.setdefault(_kind(x, y), {})[samples.x_feed.sparse] = program
        return program

    def _recognise(self, x: np.ndarray, y: np.ndarray) -> Any:
        """The executable for a batch that is in order and like an earlier one, else None."""
        programs = self._known.programs.get(_kind(x, y))
        if programs is None or not (x.flags.aligned and y.flags.aligned):
            return None
        network = self.model._built()
        if not data.are_targets(y, self.model._compiled()[0], network.units):
            return None
        return programs.get(training.leaves_out(network, x.reshape(len(x), -1)))

    def _train(self, program: Any) -> None:
        model = self.model
        _, optimizer = model._compiled()
        origin = optimizer.iterations
        rates, rate, first = self._known.sizes
        changed = optimizer.learning_rate != rate
        if changed or not 0 <= origin - first < len(rates):
            rate, first = optimizer.learning_rate, origin
            rates = optimizer.rates(1 if changed else AHEAD)  # it may change with every step
            self._known.sizes = rates, rate, first
        progress = program.progress
        progress[0] = 0  # from here on an interruption finds the right number
        try:
            program.step(rate=rates, at=origin - first, origin=origin, seed=model.dropout_seed)
        finally:
            optimizer.iterations = origin + progress[0]


def _kind(x: np.ndarray, y: np.ndarray) -> tuple:
    return x.shape, x.strides, x.dtype, y.shape, y.strides, y.dtype


def train_on_batch(
    model: Sequential, x: object, y: object, sample_weight: object, class_weight: dict | None
) -> dict[str, float]:
    """One step: 25 us more than its arithmetic if it is like the last one, 100 else."""
    batches = Batches(model, "train", class_weight, _known(model))
    batches.run(x, y, sample_weight)
    return batches.logs()


def _known(model: Sequential) -> Known:
    """What is known of the batches before, as long as nothing has changed that a step depends on."""
    loss, optimizer = model._compiled()
    if type(optimizer).__module__ != optimizers.__name__:  # who knows what a user's own one depends on
        return Known()
    config = optimizer.get_config()
    del config["learning_rate"]  # `Batches` looks at it
    threads = training.threads(model)
    state = model.network, loss, loss.get_config(), optimizer, config, list(model.metrics), threads
    programs = model._programs
    if programs.known is None or programs.known[0] != state:
        programs.known = state, Known()
    return programs.known[1]


def evaluate(model: Sequential, source: sources.Source) -> dict[str, float]:
    """Loss and metrics over an epoch of a source."""
    model._compiled()
    batches = Batches(model, "evaluate")
    for batch in source.epoch():
        batches.run(*sources.parts(batch, source.name))
    source.end()
    check_any(source, batches)
    return batches.logs()


def predict(model: Sequential, source: sources.Source) -> np.ndarray:
    """Outputs for an epoch of a source."""
    batches = Batches(model, "predict")
    found = [batches.predict(sources.inputs(batch)) for batch in source.epoch()]
    source.end()
    check_any(source, batches)
    return np.concatenate(found)


def check_any(source: sources.Source, batches: Batches) -> None:
    """Refuse an epoch without batches."""
    if batches.n == 0:
        raise ValueError(f"{source.name} yielded no batches")
