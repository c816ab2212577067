"""The truth the tests compare with: slow, obvious float64 NumPy, no tricks.

Reductions and update rules are Keras': a loss is the mean over samples, mse and binary cross-entropy
also over outputs; with sample weights it is ``sum(w * loss) / n``, n the number of samples.
Shapes: x (n, in), W (in, out), b (out,), y as the loss wants it.
"""

from __future__ import annotations

import numpy as np
from scipy import special

LEAKY_SLOPE = 0.2


def matmul(a, b):
    """Plain sum of products of (m, k) and (k, n)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a[:, :, None] * b[None, :, :]).sum(axis=1)


# Element-wise functions.


def _quiet(f):
    """`f` of float64, without warnings for infinite results."""

    def quiet(x):
        with np.errstate(all="ignore"):
            return f(np.asarray(x, np.float64))

    return quiet


exp, expm1, log, log1p = (_quiet(f) for f in (np.exp, np.expm1, np.log, np.log1p))
erf = _quiet(special.erf)
softplus = _quiet(lambda x: np.logaddexp(0, x))
softplus_derivative = _quiet(lambda y: -np.expm1(-y))
gelu = _quiet(lambda x: np.where(x == -np.inf, -0.0, x * special.ndtr(x)))


def gelu_derivative(x):
    """Of the input."""
    x = np.asarray(x, np.float64)
    return special.ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


# Activations; each derivative is given the activation's output.


def linear(x):
    return np.array(x, np.float64)


def linear_derivative(y):
    return np.ones_like(y, np.float64)


def relu(x):
    x = np.asarray(x, np.float64)
    return np.where(x < 0, 0.0, x)


def relu_derivative(y):
    return np.where(np.asarray(y) > 0, 1.0, 0.0)


def leaky_relu(x, negative_slope=LEAKY_SLOPE):
    x = np.asarray(x, np.float64)
    return np.where(x < 0, negative_slope * x, x)


def leaky_relu_derivative(y, negative_slope=LEAKY_SLOPE):
    return np.where(np.asarray(y) > 0, 1.0, negative_slope)


def sigmoid(x):
    # exp(-|x|) cannot overflow; both branches are 1 / (1 + exp(-x)).
    x = np.asarray(x, np.float64)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def sigmoid_derivative(y):
    y = np.asarray(y, np.float64)
    return y * (1 - y)


def tanh(x):
    return np.tanh(np.asarray(x, np.float64))


def tanh_derivative(y):
    y = np.asarray(y, np.float64)
    return (1 - y) * (1 + y)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    if x.shape[-1] == 0:
        return x
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(x):
    return np.exp(log_softmax(x))


def softmax_vjp(y, grad):
    """J' grad, J the Jacobian of softmax at the point where its output is y."""
    y, grad = np.asarray(y, np.float64), np.asarray(grad, np.float64)
    return y * (grad - (y * grad).sum(axis=-1, keepdims=True))


ACTIVATIONS = {
    "linear": (linear, lambda y, g: g),
    "relu": (relu, lambda y, g: g * relu_derivative(y)),
    "leaky_relu": (leaky_relu, lambda y, g: g * leaky_relu_derivative(y)),
    "sigmoid": (sigmoid, lambda y, g: g * sigmoid_derivative(y)),
    "tanh": (tanh, lambda y, g: g * tanh_derivative(y)),
    "softmax": (softmax, softmax_vjp),
}


# Losses: (value, gradient by the first argument).


def _reduce(per_sample, gradient, weights):
    n = len(per_sample)
    w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    return float((w * per_sample).sum() / n), gradient * w[:, None] / n


def mse(y, t, weights=None):
    d = np.asarray(y, np.float64) - np.asarray(t, np.float64)
    return _reduce((d * d).mean(axis=1), 2 * d / d.shape[1], weights)


def bce(p, t, weights=None):
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    per_output = -(t * np.log(p) + (1 - t) * np.log1p(-p))
    return _reduce(per_output.mean(axis=1), (p - t) / (p * (1 - p)) / p.shape[1], weights)


def bce_logits(z, t, weights=None):
    z, t = np.asarray(z, np.float64), np.asarray(t, np.float64)
    per_output = np.logaddexp(0, z) - t * z
    return _reduce(per_output.mean(axis=1), (sigmoid(z) - t) / z.shape[1], weights)


def cce(p, t, weights=None):
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    return _reduce(-(t * np.log(p)).sum(axis=1), -t / p, weights)


def cce_logits(z, t, weights=None):
    z, t = np.asarray(z, np.float64), np.asarray(t, np.float64)
    per_sample = -(t * log_softmax(z)).sum(axis=1)
    return _reduce(per_sample, softmax(z) * t.sum(axis=1, keepdims=True) - t, weights)


def one_hot(labels, n_classes):
    labels = np.asarray(labels).ravel().astype(int)
    return np.eye(n_classes)[labels]


# Update rules in Keras' form: new parameter and new state.


def sgd(p, g, v=None, learning_rate=0.01, momentum=0.0, nesterov=False):
    if momentum == 0:
        return p - learning_rate * g, v
    v = momentum * v - learning_rate * g
    if nesterov:
        return p + momentum * v - learning_rate * g, v
    return p + v, v


def adam(p, g, m, v, step, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g * g
    rate = learning_rate * np.sqrt(1 - beta_2**step) / (1 - beta_1**step)
    return p - rate * m / (np.sqrt(v) + epsilon), m, v


def rmsprop(p, g, v, m=0.0, learning_rate=1e-3, rho=0.9, momentum=0.0, epsilon=1e-7):
    v = rho * v + (1 - rho) * g * g
    m = momentum * m + learning_rate * g / np.sqrt(v + epsilon)
    return p - m, v, m


class SGD:
    """One parameter list's state for `sgd`."""

    def __init__(self, **hyperparameters):
        self.hyperparameters = hyperparameters
        self.v = None

    def update(self, params, grads):
        self.v = self.v or [np.zeros_like(p) for p in params]
        pairs = [sgd(p, g, v, **self.hyperparameters) for p, g, v in zip(params, grads, self.v, strict=True)]
        self.v = [v for _, v in pairs]
        return [p for p, _ in pairs]


class Adam:
    """One parameter list's state for `adam`; with weight decay AdamW's."""

    def __init__(self, weight_decay=0.0, **hyperparameters):
        self.weight_decay = weight_decay
        self.hyperparameters = hyperparameters
        self.m = self.v = None
        self.step = 0

    def update(self, params, grads):
        self.step += 1
        self.m = self.m or [np.zeros_like(p) for p in params]
        self.v = self.v or [np.zeros_like(p) for p in params]
        rate = self.hyperparameters.get("learning_rate", 1e-3)
        params = [p - rate * self.weight_decay * p for p in params]
        new = [
            adam(p, g, m, v, self.step, **self.hyperparameters)
            for p, g, m, v in zip(params, grads, self.m, self.v, strict=True)
        ]
        self.m, self.v = [m for _, m, _ in new], [v for _, _, v in new]
        return [p for p, _, _ in new]


class RMSprop:
    """One parameter list's state for `rmsprop`."""

    def __init__(self, **hyperparameters):
        self.hyperparameters = hyperparameters
        self.states = None

    def update(self, params, grads):
        self.states = self.states or [(np.zeros_like(p), np.zeros_like(p)) for p in params]
        new = [
            rmsprop(p, g, *state, **self.hyperparameters)
            for p, g, state in zip(params, grads, self.states, strict=True)
        ]
        self.states = [(v, m) for _, v, m in new]
        return [p for p, _, _ in new]


class MLP:
    """A list of ``(W, b, activation)``; W is None for an activation alone, b None for no bias.

    `loss` is "mse", "bce", "cce" or "sparse"; with `from_logits` the last activation is taken as given
    and the loss contains the sigmoid or softmax.
    """

    def __init__(self, layers, loss, from_logits=False):
        self.layers = [
            (None if w is None else np.array(w, np.float64), None if b is None else np.array(b, np.float64), act)
            for w, b, act in layers
        ]
        self.loss_name = loss
        self.from_logits = from_logits

    def params(self):
        """W, b of every layer that has them, in the order of Keras' get_weights."""
        return [p for w, b, _ in self.layers for p in (w, b) if p is not None]

    def set_params(self, params):
        params = iter(params)
        self.layers = [
            (None if w is None else next(params), None if b is None else next(params), act) for w, b, act in self.layers
        ]

    def _forward(self, x):
        """Input, pre-activation and output of every layer."""
        a = np.asarray(x, np.float64)
        a = a.reshape(len(a), -1)
        trace = []
        for w, b, act in self.layers:
            z = a if w is None else a @ w
            z = z if b is None else z + b
            y = ACTIVATIONS[act][0](z)
            trace.append((a, z, y))
            a = y
        return trace

    def forward(self, x):
        return self._forward(x)[-1][2]

    predict = forward

    def _targets(self, y, width):
        y = np.asarray(y)
        return one_hot(y, width) if self.loss_name == "sparse" else y.astype(np.float64).reshape(len(y), -1)

    def _loss(self, trace, y, weights):
        """Loss and gradient by the last pre-activation."""
        _, z, out = trace[-1]
        act = self.layers[-1][2]
        t = self._targets(y, z.shape[1])
        if self.loss_name == "mse":
            value, grad = mse(out, t, weights)
        elif self.loss_name == "bce":
            if act == "sigmoid" and not self.from_logits:
                return bce_logits(z, t, weights)
            value, grad = (bce_logits if self.from_logits else bce)(out, t, weights)
        elif act == "softmax" and not self.from_logits:
            return cce_logits(z, t, weights)
        else:
            value, grad = (cce_logits if self.from_logits else cce)(out, t, weights)
        return value, ACTIVATIONS[act][1](out, grad)

    def loss(self, x, y, sample_weight=None):
        return self._loss(self._forward(x), y, sample_weight)[0]

    def loss_and_gradients(self, x, y, sample_weight=None):
        trace = self._forward(x)
        value, dz = self._loss(trace, y, sample_weight)
        grads = []
        for i in reversed(range(len(self.layers))):
            w, b, _ = self.layers[i]
            a = trace[i][0]
            if b is not None:
                grads.append(dz.sum(axis=0))
            if w is not None:
                grads.append(a.T @ dz)
                dz = dz @ w.T
            if i > 0:
                dz = ACTIVATIONS[self.layers[i - 1][2]][1](trace[i - 1][2], dz)
        return value, grads[::-1]

    def step(self, x, y, optimizer, sample_weight=None):
        value, grads = self.loss_and_gradients(x, y, sample_weight)
        self.set_params(optimizer.update(self.params(), grads))
        return value

    def fit(self, x, y, optimizer, batch_size=32, epochs=1, sample_weight=None):
        """Epochs in order of the rows; returns the mean loss over samples of each epoch."""
        history = []
        for _ in range(epochs):
            total = 0.0
            for start in range(0, len(x), batch_size):
                rows = slice(start, start + batch_size)
                w = None if sample_weight is None else sample_weight[rows]
                total += self.step(x[rows], y[rows], optimizer, w) * len(x[rows])
            history.append(total / len(x))
        return history


def class_weights_to_sample_weights(y, class_weight):
    """Weight of each row; y is labels (n,), (n, 1) or one-hot. Classes that are not named weigh 1."""
    y = np.asarray(y)
    labels = y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.ravel()
    return np.array([class_weight.get(int(label), 1.0) for label in labels])


def numeric_gradient(f, x, h=1e-6):
    """Central differences of the scalar f(x) by every element of x."""
    x = np.array(x, np.float64)
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + h
        above = f(x)
        x[i] = kept - h
        below = f(x)
        x[i] = kept
        grad[i] = (above - below) / (2 * h)
    return grad


# Metrics: means over samples, never weighted (Keras' `metrics`).


def binary_accuracy(p, t, threshold=0.5):
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    return float(((p > threshold) == (t.reshape(p.shape) > threshold)).mean())


def categorical_accuracy(p, t):
    return float((np.argmax(p, axis=1) == np.argmax(t, axis=1)).mean())


def sparse_categorical_accuracy(p, labels):
    return float((np.argmax(p, axis=1) == np.asarray(labels).ravel()).mean())


def mean_absolute_error(y, t):
    return float(np.abs(np.asarray(y, np.float64) - np.asarray(t, np.float64).reshape(np.shape(y))).mean())


def mean_squared_error(y, t):
    return float(((np.asarray(y, np.float64) - np.asarray(t, np.float64).reshape(np.shape(y))) ** 2).mean())


def philox4x32(counter, key, rounds=10):
    """Four random 32-bit words of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & mask, (product0 >> 32) ^ c3 ^ k1, product0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def random(shape, dtype="float64", seed=0):
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_product(result, a, b):
    """``result == a @ b`` within the bound k eps |A| |B| on the error of any order of summation."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    expected = np.matmul(wide_a, wide_b)
    assert np.shape(result) == np.shape(expected)
    assert result.dtype == a.dtype
    bound = np.matmul(np.abs(wide_a), np.abs(wide_b)) * (a.shape[-1] + 2) * np.finfo(a.dtype).eps
    assert (np.abs(result - expected) <= bound).all()
