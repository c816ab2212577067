"""Callbacks: what happens between the epochs (or batches) of `Sequential.fit`, with Keras' names and defaults.

A callback that overrides none of the batch hooks costs nothing within an epoch: the epoch then runs in one piece of
compiled code.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import _names

if TYPE_CHECKING:
    from fastnn.sequential import Sequential

Logs = dict[str, float]


class Callback:
    """The base of all callbacks: override the hooks you need.

    Attributes
    ----------
    model : Sequential
        The model that is trained.
    params : dict
        ``epochs``, ``steps`` (None where a batch source does not tell) and ``verbose`` of the call of `fit`.

    Examples
    --------
    >>> import fastnn
    >>> class Stop(fastnn.callbacks.Callback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         self.model.stop_training = logs["loss"] < 0.1
    """

    model: Sequential
    params: dict[str, Any]

    def set_model(self, model: Sequential) -> None:
        """Called before training with the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Called before training with the parameters of the call."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Called once before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Called once after the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Called before each epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Called after each epoch, with its mean loss and metrics."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before each batch.  Overriding it makes training go batch by batch."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called after each batch, with the means so far.  Overriding it makes training go batch by batch."""

    def watches_batches(self) -> bool:
        """Whether a batch hook is overridden."""
        return any(
            getattr(type(self), hook) is not getattr(Callback, hook)
            for hook in ("on_train_batch_begin", "on_train_batch_end")
        )


class History(Callback):
    """Records the logs of every epoch; `fit` returns one.

    Attributes
    ----------
    history : dict of str to list of float
        For each quantity its value after every epoch.
    epoch : list of int
        The epochs' numbers.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []
        self.params = {}

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Append the epoch's logs."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class _Monitor(Callback):
    """A callback that watches one quantity."""

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be the name of a quantity such as 'val_loss', got {monitor!r}")
        self.monitor = monitor
        self.maximise = mode == "max" or (mode == "auto" and ("acc" in monitor or monitor.endswith("auc")))
        self.min_delta = abs(_names.number(min_delta, "min_delta"))

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` improves on `best` by more than ``min_delta``."""
        if best is None:
            return value == value
        return value > best + self.min_delta if self.maximise else value < best - self.min_delta

    def current(self, logs: Logs | None) -> float | None:
        """The monitored value, or None (and a warning) if it is not there."""
        value = (logs or {}).get(self.monitor)
        if value is None:
            warnings.warn(
                f"{type(self).__name__} monitors {self.monitor!r}, which is not among {', '.join(logs or {})}",
                RuntimeWarning,
                stacklevel=4,
            )
        return value


class EarlyStopping(_Monitor):
    """Stop when a quantity no longer improves.

    Parameters
    ----------
    monitor : str
        For example ``"val_loss"`` or ``"loss"``.
    min_delta : float
        Smaller changes are no improvement.
    patience : int
        Epochs without improvement after which training stops.
    verbose : int
        1 prints why training stopped.
    mode : {"auto", "min", "max"}
        Whether smaller or larger is better; "auto" goes by the name.
    baseline : float, optional
        Values must first be better than this.
    restore_best_weights : bool
        Whether the weights of the best epoch are put back at the end.
    start_from_epoch : int
        Epochs to let pass first.

    Examples
    --------
    >>> import fastnn
    >>> stop = fastnn.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = _names.integer(patience, "patience", low=0)
        self.baseline = None if baseline is None else _names.number(baseline, "baseline")
        self.verbose = verbose
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = _names.integer(start_from_epoch, "start_from_epoch", low=0)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Forget earlier training."""
        self.wait = 0
        self.stopped_epoch = 0
        self.best: float | None = None
        self.best_epoch = 0
        self.best_weights: list[np.ndarray] | None = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Compare with the best epoch so far."""
        value = self.current(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights, self.best_epoch = self.model.get_weights(), epoch
        self.wait += 1
        if self.better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self.baseline is None or self.better(value, self.baseline):
                self.wait = 0
            return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Put the best weights back, if asked to."""
        if self.stopped_epoch and self.verbose:
            print(f"epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose:
                print(f"restoring the weights of epoch {self.best_epoch + 1}")
            self.model.set_weights(self.best_weights)


class ModelCheckpoint(_Monitor):
    """Save the model after epochs or batches.

    Parameters
    ----------
    filepath : str or path
        May hold ``{epoch}`` (from 1) and names of logs: ``"model-{epoch:02d}-{val_loss:.3f}.safetensors"``.
    monitor : str
        What ``save_best_only`` compares.
    verbose : int
        1 prints each save.
    save_best_only : bool
        Save only when the monitored quantity improved.
    save_weights_only : bool
        `Sequential.save_weights` instead of `Sequential.save`.
    mode : {"auto", "min", "max"}
        Whether smaller or larger is better.
    save_freq : "epoch" or int
        Every epoch, or every so many batches.

    Examples
    --------
    >>> import fastnn
    >>> keep = fastnn.callbacks.ModelCheckpoint("best.safetensors", monitor="val_accuracy", save_best_only=True)
    """

    def __init__(
        self,
        filepath: Any,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
    ) -> None:
        super().__init__(monitor, mode)
        self.filepath = str(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq if save_freq == "epoch" else _names.integer(save_freq, "save_freq", low=1)
        self.best: float | None = None
        self._epoch = 0
        self._batches = 0

    def watches_batches(self) -> bool:
        """Only with a number of batches in `save_freq`."""
        return self.save_freq != "epoch"

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Remember which epoch it is."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Save every ``save_freq`` batches."""
        if isinstance(self.save_freq, int):
            self._batches += 1
            if self._batches % self.save_freq == 0:
                self._save(self._epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Save at the end of the epoch."""
        if self.save_freq == "epoch":
            self._save(epoch, logs)

    def _save(self, epoch: int, logs: Logs | None) -> None:
        if self.save_best_only:
            value = self.current(logs)
            if value is None or not self.better(value, self.best):
                return
            self.best = value
        try:
            path = self.filepath.format(epoch=epoch + 1, **(logs or {}))
        except KeyError as error:
            raise ValueError(
                f"filepath {self.filepath!r} names {error}, which is not among epoch, {', '.join(logs or {})}"
            ) from None
        (self.model.save_weights if self.save_weights_only else self.model.save)(path)
        if self.verbose:
            print(f"epoch {epoch + 1}: saved {path}")


class LearningRateScheduler(Callback):
    """Set the optimizer's learning rate before each epoch.

    Parameters
    ----------
    schedule : callable
        ``schedule(epoch, learning_rate)`` returns the epoch's learning rate; epochs count from 0.
    verbose : int
        1 prints each.

    Examples
    --------
    >>> import fastnn
    >>> halve = fastnn.callbacks.LearningRateScheduler(lambda epoch, rate: 0.002 * 0.5**epoch)
    """

    def __init__(self, schedule: Callable[[int, float], float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(f"schedule must be a function of the epoch and the learning rate, got {schedule!r}")
        self.schedule = schedule
        self.verbose = verbose

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Ask the schedule."""
        optimizer = self.model.optimizer
        assert optimizer is not None
        optimizer.learning_rate = self.schedule(epoch, optimizer.learning_rate)
        if self.verbose:
            print(f"epoch {epoch + 1}: learning rate {optimizer.learning_rate:g}")


class ProgressBar(Callback):
    """A bar per epoch with the loss and the metrics (`verbose` of `fit`).

    Parameters
    ----------
    mode : {"auto", 1, 2}
        1 draws a bar on standard error, "auto" does so on a terminal only, 2 prints a line per epoch.
    """

    def __init__(self, mode: str | int) -> None:
        self.mode = mode
        self._bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Start a bar."""
        if self.mode == 2:
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=self.params["steps"],
            desc=f"Epoch {epoch + 1}/{self.params['epochs']}",
            unit="batch",
            disable=None if self.mode == "auto" else False,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def advance(self, done: int, loss: float) -> None:
        """Move the bar to `done` steps."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss={loss:.4f}", refresh=False)
            self._bar.update(done - self._bar.n)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Finish the bar with the epoch's figures."""
        figures = ", ".join(f"{name}={value:.4f}" for name, value in (logs or {}).items())
        if self.mode == 2:
            print(f"Epoch {epoch + 1}/{self.params['epochs']}: {figures}", flush=True)
        else:
            if self.params["steps"] is not None:  # as with a batch source that does not know its length
                self._bar.update(self.params["steps"] - self._bar.n)
            self._bar.set_postfix_str(figures)
            self._bar.close()
            self._bar = None

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Close a bar that an interruption left open."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def check(callbacks: object) -> list[Callback]:
    """Validate the callbacks of a call of `fit`."""
    if callbacks is None:
        return []
    if isinstance(callbacks, Callback):
        return [callbacks]
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of fastnn.callbacks.Callback, got {callbacks!r}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"each callback must be a fastnn.callbacks.Callback, got {callback!r}")
    return list(callbacks)
