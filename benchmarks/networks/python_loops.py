"""Pure Python."""

from __future__ import annotations

import math
import random

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.networks.base import Network

BATCHES = 4  # an epoch of pure Python: 0.1 s


class PythonNetwork(Network):
    """Lists and loops."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        rows = min(len(x), BATCHES * batch)
        super().__init__(x[:rows], y[:rows], weights, batch)
        self.x, self.y = x[:rows].tolist(), y[:rows].tolist()
        self.kernels = [w.T.tolist() for w in weights[::2]]  # one list of weights for each unit
        self.biases = [b.tolist() for b in weights[1::2]]
        self.m_w, self.v_w = ([[[0.0] * len(u) for u in k] for k in self.kernels] for _ in range(2))
        self.m_b, self.v_b = ([[0.0] * len(b) for b in self.biases] for _ in range(2))
        self.step = 0

    def epoch(self, shuffle: bool = True) -> None:
        order = list(range(len(self.x)))
        if shuffle:
            random.shuffle(order)
        for start in range(0, len(order), self.batch):
            self._step(order[start : start + self.batch])

    def _forward(self, sample: list[float]) -> list[list[float]]:
        outputs = [sample]
        last = len(self.kernels) - 1
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            z = [b + sum(map(float.__mul__, unit, outputs[-1])) for unit, b in zip(kernel, bias, strict=True)]
            outputs.append(z if i == last else [e if e > 0 else 0.0 for e in z])
        return outputs

    def _outputs(self, z: list[float]) -> list[float]:
        if self.loss == "mse":
            return z
        if self.loss == "bce":
            return [1 / (1 + math.exp(-e)) for e in z]
        top = max(z)
        e = [math.exp(v - top) for v in z]
        total = sum(e)
        return [v / total for v in e]

    def _step(self, index: list[int]) -> None:
        g_w = [[[0.0] * len(unit) for unit in kernel] for kernel in self.kernels]
        g_b = [[0.0] * len(bias) for bias in self.biases]
        for sample in index:
            outputs = self._forward(self.x[sample])
            delta = self._outputs(outputs.pop())
            if self.loss == "softmax":
                delta[self.y[sample]] -= 1
            else:
                delta[0] -= self.y[sample]
            if self.loss == "mse":
                delta[0] *= 2
            for i in range(len(self.kernels) - 1, -1, -1):
                below = outputs.pop()
                back = [0.0] * len(below)
                for j, d in enumerate(delta):
                    d_mean = d / self.batch
                    g_b[i][j] += d_mean
                    g_w[i][j] = [g + d_mean * a for g, a in zip(g_w[i][j], below, strict=True)]
                    if i and d:
                        back = [e + d * w for e, w in zip(back, self.kernels[i][j], strict=True)]
                delta = [e if a > 0 else 0.0 for e, a in zip(back, below, strict=True)]
        self.step += 1
        rate = RATE * math.sqrt(1 - DECAY_2**self.step) / (1 - DECAY_1**self.step)
        epsilon = EPSILON * math.sqrt(1 - DECAY_2**self.step)
        for i, kernel in enumerate(self.kernels):
            adam_loop(self.biases[i], g_b[i], self.m_b[i], self.v_b[i], rate, epsilon)
            for j, unit in enumerate(kernel):
                adam_loop(unit, g_w[i][j], self.m_w[i][j], self.v_w[i][j], rate, epsilon)

    def weights(self) -> list[np.ndarray]:
        pairs = zip(self.kernels, self.biases, strict=True)
        return [np.array(e) for kernel, bias in pairs for e in (list(zip(*kernel, strict=True)), bias)]

    def predict(self, row: np.ndarray) -> np.ndarray:
        return np.array([self._outputs(self._forward(row[0].tolist())[-1])])


def adam_loop(p: list[float], g: list[float], m: list[float], v: list[float], rate: float, epsilon: float) -> None:
    """Adam over lists, in place."""
    for i, e in enumerate(g):
        m[i] += (1 - DECAY_1) * (e - m[i])
        v[i] += (1 - DECAY_2) * (e * e - v[i])
        p[i] -= rate * m[i] / (math.sqrt(v[i]) + epsilon)
