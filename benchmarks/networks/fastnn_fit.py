"""fastnn."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.networks.base import Network

ENDS = {  # the last activation and the loss
    "mse": (None, "mean_squared_error"),
    "bce": ("sigmoid", "binary_crossentropy"),
    "softmax": ("softmax", "sparse_categorical_crossentropy"),
}


class FastnnNetwork(Network):
    """`Sequential.fit`, as a user calls it.

    Parameters
    ----------
    optimizer
        Instead of Adam.
    settings
        Of the model, `n_threads` say.
    """

    late_epsilon = False

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        weights: list[np.ndarray],
        batch: int,
        optimizer: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(x, y, weights, batch)
        import fastnn
        from fastnn.layers import Dense, Input

        self.x, self.y = x, y
        units = [b.size for b in weights[1::2]]
        activation, loss = ENDS[self.loss]
        hidden = [Dense(n, "relu") for n in units[:-1]]
        layers = [Input((len(weights[0]),)), *hidden, Dense(units[-1], activation=activation)]
        self.model = fastnn.Sequential(layers, **settings)
        self.model.compile(optimizer or fastnn.optimizers.Adam(RATE, DECAY_1, DECAY_2, EPSILON), loss)
        self.model.set_weights(weights)

    def epoch(self, shuffle: bool = True) -> None:
        self.model.fit(self.x, self.y, batch_size=self.batch, shuffle=shuffle, verbose=0)

    def floor(self) -> float:
        """Seconds below which this machine cannot do a step: each operation's floor, from peaks measured now."""
        return sum(row.floor for row in self.model.profile(self.x, self.y, batch_size=self.batch).rows)

    def weights(self) -> list[np.ndarray]:
        return self.model.get_weights()

    def predict(self, row: np.ndarray) -> np.ndarray:
        return self.model.predict_on_batch(row)
