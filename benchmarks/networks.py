"""Rivals that train: one class for each library, all with the same weights, batches and Adam.

``network()`` trains one shuffled epoch of ``network.steps`` steps; ``network.epoch(shuffle=False)`` takes the samples
in order, for the check; ``network.weights()`` returns kernel and bias of each layer; ``network.predict(row)`` takes and
returns NumPy arrays.  One output means sigmoid and binary cross-entropy, more mean softmax and cross-entropy.
"""

from __future__ import annotations

import math
import random
import warnings

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE

PYTHON_BATCHES = 4  # an epoch of pure Python: 0.1 s


class Network:
    """What all have in common."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        self.batch = batch
        self.steps = len(x) // batch
        self.binary = weights[-1].size == 1

    def __call__(self) -> None:
        self.epoch()

    def epoch(self, shuffle: bool = True) -> None:
        raise NotImplementedError

    def weights(self) -> list[np.ndarray]:
        raise NotImplementedError


class PythonNetwork(Network):
    """Lists and loops."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        rows = min(len(x), PYTHON_BATCHES * batch)
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

    def _probabilities(self, z: list[float]) -> list[float]:
        if self.binary:
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
            delta = self._probabilities(outputs.pop())
            delta[0 if self.binary else self.y[sample]] -= self.y[sample] if self.binary else 1
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
        return np.array([self._probabilities(self._forward(row[0].tolist())[-1])])


def adam_loop(p: list[float], g: list[float], m: list[float], v: list[float], rate: float, epsilon: float) -> None:
    """Adam over lists, in place."""
    for i, e in enumerate(g):
        m[i] += (1 - DECAY_1) * (e - m[i])
        v[i] += (1 - DECAY_2) * (e * e - v[i])
        p[i] -= rate * m[i] / (math.sqrt(v[i]) + epsilon)


class NumpyNetwork(Network):
    """A hand-written network as good as NumPy lets it be.

    All parameters lie in one vector, so Adam is eight calls over it; nothing large is allocated in a step.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        self.x = x
        classes = weights[-1].size
        self.y = y[:, np.newaxis].astype(np.float32) if self.binary else np.eye(classes, dtype=np.float32)[y]
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
        delta = _probabilities(self.outputs[-1], self.binary)
        delta -= self.yb
        delta /= len(delta)
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
        return _probabilities(row @ self.kernels[-1] + self.biases[-1], self.binary)


def _probabilities(z: np.ndarray, binary: bool) -> np.ndarray:
    """Sigmoid or softmax, in place."""
    if binary:
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


class SklearnNetwork(Network):
    """MLPClassifier: `partial_fit` is one epoch that keeps the optimizer's state."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        from sklearn.neural_network import MLPClassifier

        self.x, self.y = x, y
        hidden = tuple(b.size for b in weights[1:-1:2])
        self.model = MLPClassifier(
            hidden, batch_size=batch, alpha=0, learning_rate_init=RATE, beta_1=DECAY_1, beta_2=DECAY_2, epsilon=EPSILON
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer samples than the batch size
            self.model.partial_fit(x[:2], y[:2], classes=np.arange(max(2, weights[-1].size)))
        for e, w in zip(self.model.coefs_ + self.model.intercepts_, weights[::2] + weights[1::2], strict=True):
            e[...] = w
        del self.model._optimizer  # the next partial_fit makes a fresh one

    def epoch(self, shuffle: bool = True) -> None:
        self.model.shuffle = shuffle
        self.model.partial_fit(self.x, self.y)

    def weights(self) -> list[np.ndarray]:
        return [e for pair in zip(self.model.coefs_, self.model.intercepts_, strict=True) for e in pair]

    def predict(self, row: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(row)


class TorchNetwork(Network):
    """Eager torch with the fused Adam."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        import torch
        from torch import nn

        self.torch = torch
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        if self.binary:
            self.y = self.y.float()[:, None]
        self.loss = nn.BCEWithLogitsLoss() if self.binary else nn.CrossEntropyLoss()
        layers: list[nn.Module] = []
        for w, b in zip(weights[::2], weights[1::2], strict=True):
            linear = nn.Linear(*w.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(w.T.copy()))
                linear.bias.copy_(torch.from_numpy(b))
            layers += [linear, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=RATE, betas=(DECAY_1, DECAY_2), eps=EPSILON, fused=True
        )

    def epoch(self, shuffle: bool = True) -> None:
        n = len(self.x)
        order = self.torch.randperm(n) if shuffle else self.torch.arange(n)
        for index in order.split(self.batch):
            self.optimizer.zero_grad()
            # index_select is never slower than x[index], and much faster where other threads compete.
            loss = self.loss(self.model(self.x.index_select(0, index)), self.y.index_select(0, index))
            loss.backward()
            self.optimizer.step()

    def weights(self) -> list[np.ndarray]:
        return [p.detach().numpy().T for p in self.model.parameters()]

    def predict(self, row: np.ndarray) -> np.ndarray:
        with self.torch.inference_mode():
            z = self.model(self.torch.from_numpy(row))
            return (z.sigmoid() if self.binary else z.softmax(1)).numpy()


class JaxNetwork(Network):
    """A whole epoch in one jitted `lax.scan`, with donated state.

    The best of what was measured: Adam by hand is 0-5% faster than optax'; an order that NumPy shuffles saves 13 of
    48 us a step of 20-64-64-1; batches gathered in the scan are 10% faster for 784 columns, gathered before it 40%
    faster for 20.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        import jax
        import jax.numpy as jnp

        self.jax = jax
        self.rng = np.random.default_rng(0)
        binary, steps = self.binary, self.steps
        self.x = jnp.asarray(x)
        self.y = jnp.asarray(y, jnp.float32 if binary else jnp.int32)
        pairs = zip(weights[::2], weights[1::2], strict=True)
        p = [(jnp.array(w), jnp.array(b)) for w, b in pairs]
        self.state = (p, *(jax.tree.map(jnp.zeros_like, p) for _ in range(2)), jnp.float32(0))
        gather_first = x.shape[1] < 128

        def forward(p, x):
            *hidden, (w, b) = p
            for kernel, bias in hidden:
                x = jax.nn.relu(x @ kernel + bias)
            return x @ w + b

        def loss(p, x, y):
            z = forward(p, x)
            if binary:
                return jnp.mean(jax.nn.softplus(z[:, 0]) - z[:, 0] * y)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))

        def update(state, grads):
            p, m, v, t = state
            t += 1
            m = jax.tree.map(lambda m, g: m + (1 - DECAY_1) * (g - m), m, grads)
            v = jax.tree.map(lambda v, g: v + (1 - DECAY_2) * (g * g - v), v, grads)
            correction = jnp.sqrt(1 - DECAY_2**t)
            rate, epsilon = RATE * correction / (1 - DECAY_1**t), EPSILON * correction
            return jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + epsilon), p, m, v), m, v, t

        def epoch(state, x, y, order):
            order = order.reshape(steps, batch)

            def step(state, index):
                xb, yb = index if gather_first else (x[index], y[index])
                value, grads = jax.value_and_grad(loss)(state[0], xb, yb)
                return update(state, grads), value

            state, values = jax.lax.scan(step, state, (x[order], y[order]) if gather_first else order)
            return state, values.mean()

        self._epoch = jax.jit(epoch, donate_argnums=0)
        self._predict = jax.jit(
            lambda p, row: jax.nn.sigmoid(forward(p, row)) if binary else jax.nn.softmax(forward(p, row))
        )

    def epoch(self, shuffle: bool = True) -> None:
        n = len(self.x)
        order = self.rng.permutation(n) if shuffle else np.arange(n)
        self.state, _ = self.jax.block_until_ready(self._epoch(self.state, self.x, self.y, order.astype(np.int32)))

    def weights(self) -> list[np.ndarray]:
        return [np.asarray(e) for pair in self.state[0] for e in pair]

    def predict(self, row: np.ndarray) -> np.ndarray:
        return np.asarray(self._predict(self.state[0], row))


class FastnnNetwork(Network):
    """`Sequential.fit`, as a user calls it."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        import fastnn
        from fastnn.layers import Dense, Input

        self.x, self.y = x, y
        units = [b.size for b in weights[1::2]]
        last = Dense(units[-1], activation="sigmoid" if self.binary else "softmax")
        self.model = fastnn.Sequential([Input((len(weights[0]),)), *(Dense(n, "relu") for n in units[:-1]), last])
        adam = fastnn.optimizers.Adam(RATE, DECAY_1, DECAY_2, EPSILON)
        self.model.compile(adam, "binary_crossentropy" if self.binary else "sparse_categorical_crossentropy")
        self.model.set_weights(weights)

    def epoch(self, shuffle: bool = True) -> None:
        self.model.fit(self.x, self.y, batch_size=self.batch, shuffle=shuffle, verbose=0)

    def weights(self) -> list[np.ndarray]:
        return self.model.get_weights()

    def predict(self, row: np.ndarray) -> np.ndarray:
        return self.model.predict_on_batch(row)


NETWORKS: dict[str, type[Network]] = {
    "python": PythonNetwork,
    "numpy": NumpyNetwork,
    "sklearn": SklearnNetwork,
    "torch": TorchNetwork,
    "jax": JaxNetwork,
    "fastnn": FastnnNetwork,
}
