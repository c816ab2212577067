"""Where the time of a step goes: what `Sequential.profile` measures, and the table it returns.

Each thread looks at the clock after every operation and every barrier of a step.  An operation's time is the mean over
the threads of how long each worked on it; what they waited for each other at barriers is counted apart.  So the times
of the operations and the waiting add up to the step, but for the difference between a sum of medians and the median of
sums.

An operation's floor is the time that its multiply-adds take at the peak that the machine's cores reach on registers, or
that its bytes take at the speed of a copy, whichever is longer.  (Of what a matrix unit multiplies: at the unit's peak,
on what the first-level cache holds.)  The copy is among as many bytes as the whole step uses, since that decides in
which cache an operation finds its operands.  What the operation before left in a closer cache may come faster: then the
share of the peak is above 100%.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import _names, costs, data, profile_chart, training
from fastnn.program import Op

if TYPE_CHECKING:
    from fastnn.network import Network
    from fastnn.sequential import Sequential

RUN = 0.05  # seconds that the engine runs before the parameters are as before again
MOST = 256  # steps in one run
LEAST = 8  # steps that are timed, however long they take
GATHERED = 1 << 20  # rows that a run uses at most: an index and outputs are laid out for them


@dataclass(frozen=True)
class Row:
    """One operation of a step.

    Attributes
    ----------
    layer, operation : str
        Where it belongs ("dense to dense_2" if it is done for some layers at once) and what it does.
    seconds : float
        How long it takes.
    flops, bytes : int
        Its multiply-adds, times two, without those that it leaves out because of a 0, and the size of its operands
        (`fastnn.costs`).
    bound : {"arithmetic", "memory"}
        What sets its floor.
    floor : float
        The seconds below which this machine cannot do it.
    """

    layer: str
    operation: str
    seconds: float
    flops: int
    bytes: int
    bound: str
    floor: float

    @property
    def name(self) -> str:
        """Layer and operation."""
        return f"{self.layer} {self.operation}"

    @property
    def gap(self) -> float:
        """Seconds above the floor."""
        return self.seconds - self.floor

    @property
    def share(self) -> float:
        """What part of the machine's peak it reaches: the floor over the time."""
        return self.floor / self.seconds if self.seconds > 0 else float("nan")

    @property
    def rate(self) -> float:
        """Operations or bytes a second, as it is bound by arithmetic or by memory."""
        work = self.flops if self.bound == "arithmetic" else self.bytes
        return work / self.seconds if self.seconds > 0 else float("nan")


@dataclass(frozen=True, repr=False)
class Profile:
    """Where the time of a step goes; prints as a table.

    Attributes
    ----------
    model, mode : str
        The model's name, and "train" or "predict".
    batch, dtype, threads : int, str and int
        Rows of a step, and what it was run with.  Small steps run on one thread.
    steps : int
        How many were timed.
    rows : tuple of Row
        The operations in their order.
    waiting : float
        Seconds that a thread waits for others, at all barriers of a step.
    step : float
        Seconds of a step.
    peak, bandwidth : float
        Floating-point operations a second, and bytes a second, that these threads reached at best.
    footprint : int
        Bytes that a step uses.
    tile_peak : float
        As `peak`, of the matrix unit's products; 0 if it does none.
    """

    model: str
    mode: str
    batch: int
    dtype: str
    threads: int
    steps: int
    rows: tuple[Row, ...]
    waiting: float
    step: float
    peak: float
    bandwidth: float
    footprint: int
    tile_peak: float = 0.0

    @property
    def rest(self) -> float:
        """Seconds of a step that are in no row: interruptions above all, which the medians of the rows leave out."""
        return self.step - self.waiting - sum(row.seconds for row in self.rows)

    @property
    def layers(self) -> dict[str, float]:
        """Seconds of each layer's operations."""
        found: dict[str, float] = {}
        for row in self.rows:
            found[row.layer] = found.get(row.layer, 0.0) + row.seconds
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers and text, for JSON."""
        return asdict(self)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the operations as bars with their floors; needs matplotlib.

        Parameters
        ----------
        path : str or Path, optional
            Where to save the picture, in the format of its suffix.

        Returns
        -------
        matplotlib.figure.Figure
            The picture.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return profile_chart.draw(self, path)

    def __str__(self) -> str:
        return "\n".join(_table(self))

    __repr__ = __str__


# --- measuring ------------------------------------------------------------------------------------------------------


def profile(
    model: Sequential, x: object, y: object, *, batch_size: int | None, sample_weight: object, seconds: float
) -> Profile:
    """Time steps of training, or of prediction without targets."""
    default = training.CHUNK if y is None else training.BATCH
    batch = default if batch_size is None else _names.integer(batch_size, "batch_size", low=1)
    seconds = _names.number(seconds, "seconds", low=0, open_low=True)
    if y is None and sample_weight is not None:
        raise ValueError("sample_weight needs y: without targets predict is profiled, which has no weights")
    loss = None if y is None else model._compiled()[0]
    array = data.samples(x, model.input_shape)
    network = model._network_for(array)  # not adopted: the model stays as it is
    samples = training.Samples(network, array, loss, y, sample_weight)
    return _Run(model, network, samples, min(batch, samples.n)).profile(seconds)


class _Run:
    """Steps of a model over some samples, on copies of its parameters."""

    def __init__(self, model: Sequential, network: Network, samples: training.Samples, batch: int) -> None:
        self.model, self.network, self.samples, self.batch = model, network, samples, batch
        self.optimizer = None if samples.y is None else model._compiled()[1]
        mode = "predict" if samples.y is None else "train"
        weighted = samples.weight is not None
        recipe = training.recipe(model, mode, samples.x_feed, samples.y_feed, weighted, network)
        self.objective, update = recipe.objective, recipe.update
        self.program = recipe.lower(network, batch, batch)
        states = network.state[: update.states] if update else []
        fresh = (update.states if update else 0) - len(states)
        self.sources: dict[str, np.ndarray | None] = {"params": network.params}
        self.sources |= {f"state{i}": state for i, state in enumerate([*states, *[None] * fresh])}
        self.copies = {name: network.backend.allocate(network.size, network.dtype) for name in self.sources}
        sums = 1 + len(self.objective.metrics) if self.objective else 0
        self.executable = network.backend.Executable(
            self.program, None, batch, network.dtype, self.copies, sums, recipe.threads
        )

    def profile(self, seconds: float) -> Profile:
        """Time steps for so long."""
        threads, dtype = self.executable.threads, self.network.dtype
        size = np.dtype(dtype).itemsize
        elements = self.program.arena + self.network.size * len(self.copies)
        footprint = elements * size + self.batch * self.samples.x[0].nbytes
        tiled = any(op.tiled for each in (self.program, *self.program.apart) for op in each.ops)
        before = self.network.backend.peaks(dtype, threads, footprint, tiled=tiled)
        times = np.concatenate([*self._runs(seconds)])  # steps, operations + 1, waiting and working
        # Other processes take their share of the machine now and then: the better of two looks.
        after = self.network.backend.peaks(dtype, threads, footprint, tiled=tiled)
        peak, tile_peak, bandwidth = map(max, before, after)
        middle = np.median(times, axis=0)
        return Profile(
            model=self.model.name,
            mode="predict" if self.objective is None else "train",
            batch=self.batch,
            dtype=dtype,
            threads=threads,
            steps=len(times),
            rows=tuple(
                self._row(ops, took, size, tile_peak if ops[0].tiled else peak, bandwidth)
                for ops, took in self._operations(middle[:-1, 1])
            ),
            waiting=float(np.median(times[:, :, 0].sum(axis=1))) if threads > 1 else 0.0,
            step=float(np.median(times.sum(axis=(1, 2)))),
            peak=peak,
            bandwidth=bandwidth,
            footprint=footprint,
            tile_peak=tile_peak,
        )

    def _operations(self, seconds: np.ndarray) -> list[tuple[tuple[Op, ...], float]]:
        """What is done at each place of a step, one operation or one by each thread, and how long it took.

        What threads do of each other's share belongs to what they do of their own.
        """
        found: list[tuple[tuple[Op, ...], float]] = []
        places = zip(*(each.ops for each in self.program.apart or [self.program]), strict=True)
        for ops, took in zip(places, seconds.tolist(), strict=True):
            if ops[0].helps:
                ops, took = found[-1][0], found.pop()[1] + took
            found.append((ops, took))
        return found

    def _row(self, ops: tuple[Op, ...], seconds: float, size: int, peak: float, bandwidth: float) -> Row:
        flops = sum(costs.flops(op, self._density(op)) for op in ops)
        moved = sum(costs.moved(op, size) for op in ops)
        arithmetic, memory = flops / peak, moved / bandwidth
        bound = "arithmetic" if arithmetic > memory else "memory"
        label = self._label(ops[0])
        return Row(ops[0].layer, label, seconds, flops, moved, bound, max(arithmetic, memory))

    def _density(self, op: Op) -> float:
        """What part of a product's multiply-adds is done; others have a 0."""
        return self.samples.density if op.sparse else self.executable.density(op)

    def _label(self, op: Op) -> str:
        """What an operation is called; metrics by the names that the user gave them."""
        if self.objective is None or op.layer != "metrics":
            return op.label
        for (kernel, _), name in zip(self.objective.metrics, self.model.metrics, strict=True):
            if op.label.endswith(kernel):
                return op.label.removesuffix(kernel) + name
        return op.label

    def _runs(self, seconds: float) -> Iterator[np.ndarray]:
        """Times of the steps of some runs, (steps, operations + 1, 2), without what it costs to look at the clock."""
        most = max(1, min(MOST, GATHERED // self.batch))
        steps, counted, left = min(2, most), 0, seconds
        warm = False
        while counted < LEAST or left > 0:
            began = time.perf_counter()
            times = self._steps(steps)
            took = time.perf_counter() - began
            if warm:
                counted, left = counted + steps, left - took
                yield times
            warm = steps == most or took > RUN / 2 or warm
            steps = max(1, min(most, 4 * steps, round(steps * RUN / took)))

    def _steps(self, steps: int) -> np.ndarray:
        """Run some steps from the model's own parameters on."""
        for name, source in self.sources.items():
            self.copies[name][...] = 0 if source is None else source
        samples, executable = self.samples, self.executable
        order = np.arange(samples.n)
        rate, origin = None, 0
        if self.optimizer is not None:
            order = np.random.default_rng(0).permutation(samples.n)  # as `fit` shuffles
            rate, origin = self.optimizer.rates(steps), self.optimizer.iterations
        samples.bind(executable, np.resize(order, steps * self.batch))
        if self.objective is None:
            executable.bind(out=np.empty((steps * self.batch, self.network.units), self.network.dtype))
        executable.totals[:] = 0
        times = executable.timed(steps, rate=rate, origin=origin, seed=self.model.dropout_seed)
        look = np.median(times[:, :, -1, 1])
        times[:, :, -1, 1] = 0
        return np.maximum(times - look, 0).mean(axis=0)


# --- the table ------------------------------------------------------------------------------------------------------

HEADER = ("Layer", "Operation", "us", "of step", "rate", "bound by", "floor us", "gap us", "of peak")


def headline(found: Profile) -> str:
    """What was measured, in a line."""
    what = "training step" if found.mode == "train" else "step of predict"
    threads = f"{found.threads} thread{'s' if found.threads != 1 else ''}"
    return f"{what} of {found.batch} row{'s' if found.batch != 1 else ''}, {found.dtype}, {threads}"


def _table(found: Profile) -> Iterator[str]:
    digits = 2 if found.step < 1e-4 else 1

    def us(seconds: float) -> str:
        return f"{seconds * 1e6:,.{digits}f}"

    def part(seconds: float) -> str:
        return f"{seconds / found.step:.1%}"

    lines: list[tuple[str, ...]] = [HEADER]
    for row in found.rows:
        unit = "GFLOP/s" if row.bound == "arithmetic" else "GB/s   "
        measured = row.seconds > 0
        rate, share = (f"{row.rate / 1e9:.1f} {unit}", f"{row.share:.0%}") if measured else ("", "")
        figures = (us(row.seconds), part(row.seconds), rate, row.bound, us(row.floor), us(row.gap), share)
        lines.append((row.layer, row.operation, *figures))
    nothing = ("",) * 5
    if found.threads > 1:
        lines.append(("", "waiting at barriers", us(found.waiting), part(found.waiting), *nothing))
    lines.append(("", "rest: interruptions", us(found.rest), part(found.rest), *nothing))
    lines.append(("", "step", us(found.step), part(found.step), *nothing))
    widths = [max(len(line[c]) for line in lines) for c in range(len(HEADER))]
    left = (0, 1, 5)
    text = [
        "  ".join(f"{cell:{'<' if c in left else '>'}{widths[c]}}" for c, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    yield f"Profile of {found.model!r}: {headline(found)}, medians of {found.steps} steps"
    yield from (rule, text[0], rule, *text[1:-1], rule, text[-1], rule)
    yield ", ".join(f"{layer} {us(seconds)}" for layer, seconds in found.layers.items()) + " us"
    yield (
        f"peaks, measured before and after: {profile_chart.peak(found)}, and "
        f"{found.bandwidth / 1e9:.1f} GB/s copied among {found.footprint / 2**20:.3g} MiB"
    )
