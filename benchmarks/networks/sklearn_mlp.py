"""scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.networks.base import Network


class SklearnNetwork(Network):
    """MLPClassifier or MLPRegressor: `partial_fit` is one epoch that keeps the optimizer's state.

    The regressor takes half the squared error.  Adam does not see the factor, but for its epsilon.
    """

    late_epsilon = False

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self.x, self.y = x, y
        hidden = tuple(b.size for b in weights[1:-1:2])
        regression = self.loss == "mse"
        self.model = (MLPRegressor if regression else MLPClassifier)(
            hidden_layer_sizes=hidden,
            batch_size=batch,
            alpha=0,
            learning_rate_init=RATE,
            beta_1=DECAY_1,
            beta_2=DECAY_2,
            epsilon=EPSILON,
        )
        classes = {} if regression else {"classes": np.arange(max(2, weights[-1].size))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer samples than the batch size
            self.model.partial_fit(x[:2], y[:2], **classes)
        for e, w in zip(self.model.coefs_ + self.model.intercepts_, weights[::2] + weights[1::2], strict=True):
            e[...] = w
        del self.model._optimizer  # the next partial_fit makes a fresh one

    def epoch(self, shuffle: bool = True) -> None:
        self.model.shuffle = shuffle
        self.model.partial_fit(self.x, self.y)

    def weights(self) -> list[np.ndarray]:
        return [e for pair in zip(self.model.coefs_, self.model.intercepts_, strict=True) for e in pair]

    def predict(self, row: np.ndarray) -> np.ndarray:
        return self.model.predict(row)[:, np.newaxis] if self.loss == "mse" else self.model.predict_proba(row)
