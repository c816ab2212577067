"""Who takes part in `benchmarks.grid`: the rivals of `benchmarks.rivals`, and what only the grid asks for.

Two more contestants join the libraries: ``expression``, the line of NumPy that people write (``numpy`` is one function
of NumPy, or the same with care for its temporaries), and ``ceiling``, which does nothing but multiply-adds or copies.
jax's arrays have one layout, so transposed operands cost it nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import fastnn
from benchmarks import rivals
from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.rivals import Rival, jax_rival, torch_rival
from fastnn.cpu import ceilings

LIBRARIES = ["fastnn", "numpy", "expression", "torch", "jax", "ceiling"]

Factory = Callable[..., Rival]


def _expression(function: Callable[..., Any]) -> Factory:
    return lambda **arrays: lambda: function(*arrays.values())


def _fastnn(name: str) -> Factory:
    return lambda **arrays: lambda: getattr(fastnn, name)(*arrays.values())


# --- lines of NumPy ---------------------------------------------------------------------------------------------------


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf  # NumPy has none

    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def _gelu_derivative(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _bce(z: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
    loss = np.mean(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z))))
    return loss, (1 / (1 + np.exp(-z)) - t) / z.size


def _adam(p: np.ndarray, g: np.ndarray) -> Rival:
    p, m, v, step = p.copy(), np.zeros_like(p), np.zeros_like(p), 0

    def call() -> np.ndarray:
        nonlocal p, m, v, step
        step += 1
        m = DECAY_1 * m + (1 - DECAY_1) * g
        v = DECAY_2 * v + (1 - DECAY_2) * g * g
        p = p - RATE * (m / (1 - DECAY_1**step)) / (np.sqrt(v / (1 - DECAY_2**step)) + EPSILON)
        return p

    return call


def _sgd(p: np.ndarray, g: np.ndarray) -> Rival:
    p = p.copy()

    def call() -> np.ndarray:
        nonlocal p
        p = p - RATE * g
        return p

    return call


# --- into arrays that are there: fresh memory of this size costs more than these functions ----------------------------


def _into(function: Callable[[np.ndarray, np.ndarray], Any]) -> Factory:
    """A factory of ``function(x, out)``."""

    def factory(x: np.ndarray) -> Rival:
        out = np.zeros_like(x)
        function(x, out)  # touches all pages
        return lambda: function(x, out)

    return factory


def _torch_into(function: Callable[[Any, Any, Any], Any]) -> Factory:
    """A factory of ``function(torch, x, out)``."""

    def factory(x: np.ndarray) -> Rival:
        return torch_rival(function)(x=x, out=np.zeros_like(x))

    return factory


# --- ceilings ---------------------------------------------------------------------------------------------------------


def ceiling(group: str, dtype: str, threads: int) -> tuple[Rival, float]:
    """What nothing can be faster than, and the work of one call."""
    if group == "products":
        return ceilings.multiplier(dtype, threads)
    calls, work = ceilings.copiers(threads)
    return min(calls, key=lambda call: ceilings.fastest(call, 3)), work


# --- the table --------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, dict[str, Factory]] = {
    "exp": {
        "numpy": _expression(np.exp),
        "torch": torch_rival(lambda torch, x: torch.exp(x)),
        "jax": jax_rival(lambda jax, x: jax.numpy.exp(x)),
    },
    "log": {
        "numpy": _expression(np.log),
        "torch": torch_rival(lambda torch, x: torch.log(x)),
        "jax": jax_rival(lambda jax, x: jax.numpy.log(x)),
    },
    "softplus": {
        "numpy": lambda x: lambda: np.logaddexp(0, x),
        "expression": _expression(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))),
        "torch": torch_rival(lambda torch, x: torch.nn.functional.softplus(x)),
        "jax": jax_rival(lambda jax, x: jax.nn.softplus(x)),
    },
    "gelu": {
        "expression": _expression(_gelu),
        "torch": torch_rival(lambda torch, x: torch.nn.functional.gelu(x)),
        "jax": jax_rival(lambda jax, x: jax.nn.gelu(x, approximate=False)),
    },
    "sigmoid_derivative": {"expression": _expression(lambda y: y * (1 - y))},
    "tanh_derivative": {"expression": _expression(lambda y: 1 - y * y)},
    "softplus_derivative": {"expression": _expression(lambda y: 1 - np.exp(-y))},
    "gelu_derivative": {"expression": _expression(_gelu_derivative)},
    "softmax_derivative": {"expression": _expression(lambda y, g: y * (g - (g * y).sum(axis=1, keepdims=True)))},
}

_EXPRESSIONS: dict[str, Factory] = {
    "dense_relu": _expression(lambda x, w, b: np.maximum(x @ w + b, 0)),
    "sigmoid": _expression(lambda x: 1 / (1 + np.exp(-x))),
    "softmax": _expression(_softmax),
    "bce_gradient": _expression(_bce),
    "adam": _adam,
    "sgd": _sgd,
}

_LARGE: dict[str, dict[str, Factory]] = {
    "relu_large": {
        "fastnn": _into(lambda x, out: fastnn.relu(x, out=out)),
        "numpy": _into(lambda x, out: np.maximum(x, 0, out=out)),
        "torch": _torch_into(lambda torch, x, out: torch.clamp_min(x, 0, out=out)),
    },
    "sigmoid_large": {
        "fastnn": _into(lambda x, out: fastnn.sigmoid(x, out=out)),
        "torch": _torch_into(lambda torch, x, out: torch.sigmoid(x, out=out)),
    },
    "exp_large": {
        "fastnn": _into(lambda x, out: fastnn.exp(x, out=out)),
        "numpy": _into(lambda x, out: np.exp(x, out=out)),
        "torch": _torch_into(lambda torch, x, out: torch.exp(x, out=out)),
    },
    "adam_large": {library: rivals.COMPARISONS["adam"][library] for library in ("fastnn", "torch")},
    "sgd_large": {library: rivals.COMPARISONS["sgd"][library] for library in ("fastnn", "numpy", "torch")},
}

NEEDS = {"exp_large": "exp"}  # the function of fastnn that an operation is about, where its name is another


def _merge() -> dict[str, dict[str, Factory]]:
    table = {
        name: dict(factories) for name, factories in rivals.COMPARISONS.items() if name not in ("train", "predict")
    }
    for name, factories in _FUNCTIONS.items():
        table[name] = {"fastnn": _fastnn(name)} | factories
    for name, expression in _EXPRESSIONS.items():
        table[name]["expression"] = expression
    return table | _LARGE


TABLE = _merge()


def missing(operation: str) -> str | None:
    """The function of fastnn that an operation needs and this version does not have."""
    function = NEEDS.get(operation, operation)
    return function if function in _FUNCTIONS and not hasattr(fastnn, function) else None


def contestants(operation: str, libraries: list[str] | None = None) -> list[str]:
    """Who does an operation here, in the order of `LIBRARIES`."""
    known = [e for e in LIBRARIES if e in TABLE[operation] and (e == "expression" or rivals.installed(e))]
    return [e for e in known if libraries is None or e in libraries]


def triple_loop(a: np.ndarray, b: np.ndarray) -> Rival:
    """The product as three loops of pure Python."""
    rows, cols = a.tolist(), b.tolist()
    k, n = b.shape

    def call() -> list[list[float]]:
        c = [[0.0] * n for _ in rows]
        for i, row in enumerate(rows):
            for j in range(n):
                total = 0.0
                for p in range(k):
                    total += row[p] * cols[p][j]
                c[i][j] = total
        return c

    return call
