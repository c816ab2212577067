"""What is measured: the inputs of every case and its answer in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

RATE, DECAY_1, DECAY_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8  # of Adam; torch's and scikit-learn's epsilon, for all
MLP = (784, 256, 10)
EPS64_TO_EPS32 = 2.0**-29
UPDATES = 3  # of an optimizer, before its result is checked
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One thing to do, in several sizes.

    Attributes
    ----------
    title : str
        For people.
    cases : dict of tuple
        Name of each size and the arguments of `inputs`.
    inputs : callable
        Makes the keyword arguments of the rivals' factories.
    reference : callable
        The answer in float64 from the same keyword arguments.
    tolerance : float
        Largest error of a rival, relative to the largest element of the answer.
    small : frozenset of str
        The cases that pure Python loops can do in milliseconds.
    unit : str
        What one time is of.
    calls : int
        How many calls lead to the answer that is checked.
    work : callable, optional
        Floating-point operations or bytes of one call, from the arguments of `inputs`.
    loose : bool
        Whether the answer depends on a library's conventions, so that the tolerance is the same for all dtypes.
    """

    title: str
    cases: dict[str, tuple]
    inputs: Callable[..., Inputs]
    reference: Callable[..., Any]
    tolerance: float
    small: frozenset[str] = frozenset()
    unit: str = "call"
    calls: int = 1
    work: Callable[..., float] | None = None
    loose: bool = False

    def make(self, case: str, dtype: str = "float32") -> Inputs:
        """The inputs of a case, their floats as `dtype`."""
        return {name: _cast(value, dtype) for name, value in self.inputs(*self.cases[case]).items()}

    def allowed(self, dtype: str) -> float:
        """The tolerance for results of `dtype`."""
        return self.tolerance if dtype == "float32" or self.loose else self.tolerance * EPS64_TO_EPS32


def _cast(value: Any, dtype: str) -> Any:
    floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype, copy=False) if floats else value  # a transposed view stays one


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def _double(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


# --- products ---------------------------------------------------------------------------------------------------------


def product_inputs(m: int, k: int, n: int, transposed: str = "") -> Inputs:
    """a (m, k) and b (k, n); those that `transposed` names are transposed views, as in a backward pass."""
    a = _normal(k, m, seed=1).T if "a" in transposed else _normal(m, k, seed=1)
    b = _normal(n, k, seed=2).T if "b" in transposed else _normal(k, n, seed=2)
    return {"a": a, "b": b}


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b."""
    return np.matmul(*_double(a, b))


def dense_inputs(rows: int, inputs: int, units: int) -> Inputs:
    """A layer of `units` units on `rows` samples."""
    return {"x": _normal(rows, inputs, seed=1), "w": _normal(inputs, units, seed=2), "b": _normal(units, seed=3)}


def dense_relu(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """relu(x w + b)."""
    x, w, b = _double(x, w, b)
    return np.maximum(x @ w + b, 0)


# --- functions of elements --------------------------------------------------------------------------------------------


def array_inputs(*shape: int) -> Inputs:
    """Numbers of a few units, as activations see them."""
    return {"x": 2 * _normal(*shape)}


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) of each row."""
    e = np.exp(x - x.max(axis=-1, keepdims=True), dtype=np.float64)
    return e / e.sum(axis=-1, keepdims=True)


def bce_inputs(rows: int) -> Inputs:
    """Logits and 0/1 targets."""
    return {"z": 2 * _normal(rows, 1), "t": (_normal(rows, 1, seed=5) > 0).astype(np.float32)}


def bce(z: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean binary cross-entropy of sigmoid(z), and its gradient."""
    z, t = _double(z, t)
    return float(np.mean(np.logaddexp(0, z) - z * t)), (1 / (1 + np.exp(-z)) - t) / len(z)


# --- updates ----------------------------------------------------------------------------------------------------------


def update_inputs(n: int) -> Inputs:
    """Parameters and a gradient that is nowhere so small that it matters where a library adds Adam's epsilon."""
    g = _normal(n, seed=2)
    return {"p": _normal(n, seed=1) / 20, "g": g + np.copysign(np.float32(0.1), g)}


def sgd(p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Parameters after `UPDATES` steps of SGD with the same gradient."""
    p, g = _double(p, g)
    return p - UPDATES * RATE * g


def adam(p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Parameters after `UPDATES` steps of Adam with the same gradient."""
    p, g = _double(p, g)
    # The corrected moments of a constant gradient are g and g^2.
    return p - UPDATES * RATE * g / (np.abs(g) + EPSILON)


# --- networks ---------------------------------------------------------------------------------------------------------


def loss_of(y: np.ndarray, outputs: int) -> str:
    """What a network is trained for: "mse" of values, which are floats, "bce" or "softmax" of class numbers."""
    if y.dtype.kind == "f":
        return "mse"
    return "bce" if outputs == 1 else "softmax"


@cache
def _samples(rows: int, sizes: tuple[int, ...], regression: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Samples with labels or values that depend on them, with noise: a loss has somewhere to go and does not arrive.

    They are centred.  With features of one sign many units die, and Adam's first moments of those decay to subnormal
    numbers, which make NumPy five times slower: a trap worth knowing, but not what is compared here.
    """
    x = _normal(rows, sizes[0])
    if regression:
        return x, np.tanh(x @ _normal(sizes[0], seed=7)) + _normal(rows, seed=8) / 4
    classes = max(sizes[-1], 2)
    y = (x @ _normal(sizes[0], classes, seed=7)).argmax(axis=1)
    y[::4] = np.random.default_rng(rows).integers(0, classes, len(y[::4]))
    return x, y


def initial_weights(sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Kernel and bias of each layer."""
    weights = []
    for i, (rows, cols) in enumerate(pairwise(sizes)):
        weights += [_normal(rows, cols, seed=10 + i) / np.float32(rows**0.5), np.zeros(cols, np.float32)]
    return weights


@cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's training images as rows of float32 from 0 to 1, and their digits."""
    from fastnn import datasets

    (x, y), _ = datasets.mnist.load_data()
    return x.reshape(len(x), -1) / np.float32(255), y.astype(np.int64)


def training_inputs(
    sizes: tuple[int, ...], batch: int, rows: int, regression: bool = False, mnist: bool = False
) -> Inputs:
    """Samples, class numbers or values, initial weights and the batch size.

    Samples are noise, or the first of `mnist`.
    """
    x, y = (e[:rows] for e in _images()) if mnist else _samples(rows, sizes, regression)
    return {"x": x, "y": y, "weights": initial_weights(sizes), "batch": batch}


def training_loss(x: np.ndarray, y: np.ndarray, weights: list[np.ndarray]) -> float:
    """Mean loss of a network with these weights."""
    z = logits(x, weights)
    loss = loss_of(y, z.shape[1])
    if loss == "mse":
        return float(np.mean((z[:, 0] - y) ** 2))
    if loss == "bce":
        return bce(z, y[:, np.newaxis])[0]
    return float(-np.mean(np.log(softmax(z)[np.arange(len(y)), y])))


def logits(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Outputs of the last layer before its activation."""
    *hidden, (w, b) = zip(weights[::2], weights[1::2], strict=True)
    for kernel, bias in hidden:
        x = dense_relu(x, kernel, bias)
    return x @ w.astype(np.float64) + b


def train(
    x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int, late_epsilon: bool = True
) -> list[np.ndarray]:
    """Weights after an epoch of Adam in the order of the samples.

    Epsilon is added to the root of the corrected moment (`late_epsilon`) or to that of the moment itself.
    """
    p = _double(*weights)
    m, v = ([np.zeros_like(e) for e in p] for _ in range(2))
    for step, start in enumerate(range(0, len(x), batch), 1):
        grads = gradients(p, x[start : start + batch], y[start : start + batch])
        epsilon = EPSILON if late_epsilon else EPSILON / np.sqrt(1 - DECAY_2**step)
        for e, g, m_e, v_e in zip(p, grads, m, v, strict=True):
            m_e += (1 - DECAY_1) * (g - m_e)
            v_e += (1 - DECAY_2) * (g * g - v_e)
            e -= RATE * (m_e / (1 - DECAY_1**step)) / (np.sqrt(v_e / (1 - DECAY_2**step)) + epsilon)
    return p


def gradients(p: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Gradients of the mean loss of a batch, for weights in float64."""
    outputs = [x.astype(np.float64)]
    for i in range(0, len(p) - 2, 2):
        outputs.append(dense_relu(outputs[-1], p[i], p[i + 1]))
    z = outputs[-1] @ p[-2] + p[-1]
    loss = loss_of(y, z.shape[1])
    if loss == "mse":
        delta = 2 * (z - y[:, np.newaxis]) / len(z)
    elif loss == "bce":
        delta = bce(z, y[:, np.newaxis])[1]
    else:
        delta = (softmax(z) - np.eye(z.shape[1])[y]) / len(z)
    grads: list[np.ndarray] = []
    for i in range(len(p) - 2, -1, -2):
        grads[:0] = [outputs[i // 2].T @ delta, delta.sum(axis=0)]
        delta = (delta @ p[i].T) * (outputs[i // 2] > 0)
    return grads


def predict_inputs(sizes: tuple[int, ...]) -> Inputs:
    """A row and the weights."""
    return {"row": _samples(32, sizes)[0][:1], "weights": initial_weights(sizes)}


def predict(row: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Class probabilities."""
    return softmax(logits(row, weights))


OPERATIONS = {
    "train": Operation(
        "training step",
        {
            "20-64-64-1, batch 32": ((20, 64, 64, 1), 32, 19200),
            "784-256-10, batch 32": (MLP, 32, 60000),
            "784-256-10, batch 128": (MLP, 128, 59904),  # a multiple of the batch: all steps are alike
        },
        training_inputs,
        train,
        1e-4,
        frozenset({"20-64-64-1, batch 32"}),
        "step",
    ),
    "predict": Operation(
        "predict one row",
        {"4-16-3": ((4, 16, 3),), "784-256-10": (MLP,)},
        predict_inputs,
        predict,
        5e-6,
        frozenset({"4-16-3", "784-256-10"}),
    ),
    "matmul": Operation(
        "matmul",
        {
            "32 x 20 x 64": (32, 20, 64),
            "32 x 784 x 256, forward": (32, 784, 256),
            "784 x 32 x 256, weight gradient": (784, 32, 256, "a"),
            "32 x 256 x 784, input gradient": (32, 256, 784, "b"),
            "128 x 784 x 256, forward": (128, 784, 256),
            "64 x 64 x 64": (64, 64, 64),
            "128 x 128 x 128": (128, 128, 128),
            "256 x 256 x 256": (256, 256, 256),
            "512 x 512 x 512": (512, 512, 512),
        },
        product_inputs,
        product,
        5e-6,
        frozenset({"32 x 20 x 64"}),
    ),
    "dense_relu": Operation(
        "dense, bias, relu",
        {"32 x 64 x 64": (32, 64, 64), "32 x 784 x 256": (32, 784, 256), "1024 x 784 x 256": (1024, 784, 256)},
        dense_inputs,
        dense_relu,
        5e-6,
        frozenset({"32 x 64 x 64"}),
    ),
    **{
        name: Operation(
            name,
            {"32 x 256": (32, 256), "1024 x 256": (1024, 256)},
            array_inputs,
            answer,
            1e-6,
            frozenset({"32 x 256"}),
            calls=2,  # in two processes of eight PyTorch's first tanh was wrong by 5e-5 (2.13)
        )
        for name, answer in {
            "relu": lambda x: np.maximum(x, 0).astype(np.float64),
            "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.float64))),
            "tanh": lambda x: np.tanh(x, dtype=np.float64),
        }.items()
    },
    "softmax": Operation(
        "softmax",
        {"32 x 10": (32, 10), "4096 x 10": (4096, 10)},
        array_inputs,
        softmax,
        1e-6,
        frozenset({"32 x 10"}),
    ),
    "bce_gradient": Operation(
        "BCE loss and gradient",
        {"32 logits": (32,), "65536 logits": (65536,)},
        bce_inputs,
        bce,
        1e-6,
        frozenset({"32 logits"}),
    ),
    "sgd": Operation(
        "SGD update",
        {"2000 parameters": (2000,), "200000 parameters": (200_000,)},
        update_inputs,
        sgd,
        1e-6,
        frozenset({"2000 parameters"}),
        calls=UPDATES,
    ),
    "adam": Operation(
        "Adam update",
        {"2000 parameters": (2000,), "200000 parameters": (200_000,)},
        update_inputs,
        adam,
        1e-6,
        frozenset({"2000 parameters"}),
        calls=UPDATES,
        loose=True,  # epsilon is added before or after the correction of the bias
    ),
}
