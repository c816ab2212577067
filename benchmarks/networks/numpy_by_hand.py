"""NumPy."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.networks.base import Network


class NumpyNetwork(Network):
    """A hand-written network as good as NumPy lets it be.

    All parameters lie in one vector, so Adam is eight calls over it; nothing large is allocated in a step.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        self.x = x
        classes = weights[-1].size
        one_hot = self.loss == "softmax"
        self.y = np.eye(classes, dtype=np.float32)[y] if one_hot else y[:, np.newaxis].astype(np.float32)
        self.p = np.concatenate([e.ravel() for e in weights])
        self.g, self.m, self.v, self.work = (np.zeros_like(self.p) for _ in range(4))
        self.xb, self.yb = (np.empty((batch, e.shape[1]), np.float32) for e in (self.x, self.y))
        stops = np.cumsum([e.size for e in weights])[:-1]
        p, g = (
            [part.reshape(e.shape) for part, e in zip(np.split(flat, stops), weights, strict=True)]
            for flat in (self.p, self.g)
        )
        self.kernels, self.biases = p[::2], p[1::2]
        self.g_kernels, self.g_biases = g[::2], g[1::2]
        self.outputs = [np.empty((batch, w.shape[1]), np.float32) for w in self.kernels]
        self.deltas = [np.empty_like(o) for o in self.outputs]
        self.step = 0
        self.rng = np.random.default_rng(0)

    def epoch(self, shuffle: bool = True) -> None:
        order = self.rng.permutation(len(self.x)) if shuffle else np.arange(len(self.x))
        for start in range(0, len(order), self.batch):
            index = order[start : start + self.batch]
            # mode="clip" lets take write to out directly; "raise" goes through a buffer.
            self.x.take(index, axis=0, out=self.xb, mode="clip")
            self.y.take(index, axis=0, out=self.yb, mode="clip")
            self._gradients()
            self._adam()

    def _gradients(self) -> None:
        below = self.xb
        for kernel, bias, out in zip(self.kernels, self.biases, self.outputs, strict=True):
            np.matmul(below, kernel, out=out)
            out += bias
            if out is not self.outputs[-1]:
                np.maximum(out, 0, out=out)
            below = out
        delta = _activate(self.outputs[-1], self.loss)
        delta -= self.yb
        delta *= (2 if self.loss == "mse" else 1) / len(delta)
        for i in range(len(self.kernels) - 1, -1, -1):
            below = self.outputs[i - 1] if i else self.xb
            np.matmul(below.T, delta, out=self.g_kernels[i])
            delta.sum(axis=0, out=self.g_biases[i])
            if i:
                above, delta = delta, self.deltas[i - 1]
                np.matmul(above, self.kernels[i].T, out=delta)
                delta *= below > 0

    def _adam(self) -> None:
        self.step += 1
        numpy_adam(self.p, self.g, self.m, self.v, self.step, self.work)

    def weights(self) -> list[np.ndarray]:
        return [e.copy() for pair in zip(self.kernels, self.biases, strict=True) for e in pair]

    def predict(self, row: np.ndarray) -> np.ndarray:
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            row = row @ kernel
            row += bias
            np.maximum(row, 0, out=row)
        return _activate(row @ self.kernels[-1] + self.biases[-1], self.loss)


def _activate(z: np.ndarray, loss: str) -> np.ndarray:
    """Sigmoid, softmax or nothing, in place."""
    if loss == "mse":
        return z
    if loss == "bce":
        np.exp(np.negative(z, out=z), out=z)
        z += 1
        return np.reciprocal(z, out=z)
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z


def numpy_adam(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, work: np.ndarray) -> None:
    """Adam over vectors, in place and without temporaries."""
    np.subtract(g, m, out=work)
    work *= 1 - DECAY_1
    m += work
    np.multiply(g, g, out=work)
    work -= v
    work *= 1 - DECAY_2
    v += work
    np.sqrt(v, out=work)
    correction = math.sqrt(1 - DECAY_2**step)
    work += EPSILON * correction
    np.divide(m, work, out=work)
    work *= RATE * correction / (1 - DECAY_1**step)
    p -= work
