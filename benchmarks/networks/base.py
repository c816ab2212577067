"""What the networks of all libraries have in common."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import loss_of


class Network:
    """A network with the weights, samples and batch size that it is given.

    Parameters
    ----------
    x, y
        Samples, and for each its class number or (one float) its value.
    weights
        Kernel and bias of each layer.
    batch
        Samples in a step; those that do not fill one are left out.

    Attributes
    ----------
    late_epsilon : bool
        Whether Adam's epsilon is added after its second moment is corrected, as in torch.  Keras and scikit-learn
        add it before: in the first steps it is up to 30 times as large.
    """

    late_epsilon = True

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        self.batch = batch
        self.steps = len(x) // batch
        self.loss = loss_of(y, weights[-1].size)

    @classmethod
    def problem(cls) -> str | None:
        """Why this network cannot run although its library is installed."""
        return None

    def __call__(self) -> None:
        self.epoch()

    def epoch(self, shuffle: bool = True) -> None:
        raise NotImplementedError

    def weights(self) -> list[np.ndarray]:
        raise NotImplementedError

    def predict(self, row: np.ndarray) -> np.ndarray:
        raise NotImplementedError
