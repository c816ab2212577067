"""The one table of rivals: ``COMPARISONS[operation][library]`` makes a callable from the inputs of a case.

Factories convert the inputs to what their library computes on, once.  The callable does the operation and returns when
it is done, with a new array as the plain call of the library gives (optimizers update in place).  Every rival is
checked against the float64 answer of `cases` before it is timed.  torch and jax join when they are installed.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from operator import mul
from typing import Any

import numpy as np

import fastnn
from benchmarks import cases, networks
from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, OPERATIONS, RATE
from benchmarks.networks import NETWORKS

LIBRARIES = ["fastnn", "numpy", "sklearn", "torch", "jax", "python"]
Rival = Callable[[], Any]

# --- pure Python ------------------------------------------------------------------------------------------------------


def _python_matmul(a: np.ndarray, b: np.ndarray) -> Rival:
    rows, columns = a.tolist(), b.T.tolist()
    return lambda: [[sum(map(mul, row, column)) for column in columns] for row in rows]


def _python_dense_relu(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Rival:
    rows, units = x.tolist(), list(zip(w.T.tolist(), b.tolist(), strict=True))
    return lambda: [[max(sum(map(mul, row, unit)) + bias, 0.0) for unit, bias in units] for row in rows]


def _python_map(function: Callable[[float], float]) -> Callable[[np.ndarray], Rival]:
    def factory(x: np.ndarray) -> Rival:
        rows = x.tolist()
        return lambda: [[function(e) for e in row] for row in rows]

    return factory


def _python_softmax(x: np.ndarray) -> Rival:
    rows = x.tolist()

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        exps = [math.exp(e - top) for e in row]
        total = sum(exps)
        return [e / total for e in exps]

    return lambda: [softmax(row) for row in rows]


def _python_bce(z: np.ndarray, t: np.ndarray) -> Rival:
    pairs = list(zip(z.ravel().tolist(), t.ravel().tolist(), strict=True))

    def call() -> tuple[float, list[list[float]]]:
        loss = sum(max(e, 0.0) - e * y + math.log1p(math.exp(-abs(e))) for e, y in pairs)
        return loss / len(pairs), [[(1 / (1 + math.exp(-e)) - y) / len(pairs)] for e, y in pairs]

    return call


def _python_sgd(p: np.ndarray, g: np.ndarray) -> Rival:
    ps, gs = p.tolist(), g.tolist()

    def call() -> list[float]:
        for i, e in enumerate(gs):
            ps[i] -= RATE * e
        return ps

    return call


def _python_adam(p: np.ndarray, g: np.ndarray) -> Rival:
    ps, gs, step = p.tolist(), g.tolist(), 0
    m, v = [0.0] * len(ps), [0.0] * len(ps)

    def call() -> list[float]:
        nonlocal step
        step += 1
        correction = math.sqrt(1 - DECAY_2**step)
        networks.adam_loop(ps, gs, m, v, RATE * correction / (1 - DECAY_1**step), EPSILON * correction)
        return ps

    return call


# --- NumPy ------------------------------------------------------------------------------------------------------------


def _numpy_dense_relu(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Rival:
    def call() -> np.ndarray:
        y = x @ w
        y += b
        return np.maximum(y, 0, out=y)

    return call


def _numpy_sigmoid(x: np.ndarray) -> Rival:
    def call() -> np.ndarray:
        y = np.negative(x)
        np.exp(y, out=y)
        y += 1
        return np.reciprocal(y, out=y)

    return call


def _numpy_softmax(x: np.ndarray) -> Rival:
    def call() -> np.ndarray:
        y = x - x.max(axis=1, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(axis=1, keepdims=True)
        return y

    return call


def _numpy_bce(z: np.ndarray, t: np.ndarray) -> Rival:
    def call() -> tuple[float, np.ndarray]:
        # e = exp(-|z|) serves loss and sigmoid, and cannot overflow.
        e = np.exp(-np.abs(z))
        loss = float(np.mean(np.maximum(z, 0) - z * t + np.log1p(e)))
        grad = np.where(z >= 0, 1, e)
        grad /= 1 + e
        grad -= t
        grad /= len(z)
        return loss, grad

    return call


def _numpy_sgd(p: np.ndarray, g: np.ndarray) -> Rival:
    p, work = p.copy(), np.empty_like(p)

    def call() -> np.ndarray:
        np.multiply(g, RATE, out=work)
        return np.subtract(p, work, out=p)

    return call


def _numpy_adam(p: np.ndarray, g: np.ndarray) -> Rival:
    p, m, v, work = p.copy(), np.zeros_like(p), np.zeros_like(p), np.empty_like(p)
    step = 0

    def call() -> np.ndarray:
        nonlocal step
        step += 1
        networks.numpy_adam(p, g, m, v, step, work)
        return p

    return call


# --- torch ------------------------------------------------------------------------------------------------------------


def torch_rival(function: Callable[..., Any]) -> Callable[..., Rival]:
    """A factory of ``function(torch, *tensors)``, without autograd."""

    def factory(**arrays: np.ndarray) -> Rival:
        import torch

        tensors = [torch.from_numpy(array) for array in arrays.values()]

        def call() -> Any:
            with torch.inference_mode():
                return function(torch, *tensors)

        return call

    return factory


def _torch_bce(torch: Any, z: Any, t: Any) -> tuple[Any, Any]:
    # Written out: autograd needs three times as long for 32 numbers.
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, t)
    return loss, torch.sigmoid(z).sub_(t).div_(len(z))


def _torch_optimizer(name: str, **settings: Any) -> Callable[..., Rival]:
    def factory(p: np.ndarray, g: np.ndarray) -> Rival:
        import torch

        parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
        parameter.grad = torch.from_numpy(g)
        optimizer = getattr(torch.optim, name)([parameter], lr=RATE, fused=True, **settings)

        def call() -> Any:
            optimizer.step()
            return parameter.detach()

        return call

    return factory


# --- jax --------------------------------------------------------------------------------------------------------------


def jax_rival(function: Callable[..., Any]) -> Callable[..., Rival]:
    """A factory of ``function(jax, *arrays)``, jitted."""

    def factory(**arrays: np.ndarray) -> Rival:
        import jax

        operands = [jax.numpy.array(array) for array in arrays.values()]
        jitted = jax.jit(lambda *operands: function(jax, *operands))
        return lambda: jax.block_until_ready(jitted(*operands))

    return factory


def _jax_bce(jax: Any, z: Any, t: Any) -> Any:
    def loss(z: Any) -> Any:
        return jax.numpy.mean(jax.nn.softplus(z) - z * t)

    return jax.value_and_grad(loss)(z)


def _jax_sgd(p: np.ndarray, g: np.ndarray) -> Rival:
    import jax

    state, gradient = jax.numpy.array(p), jax.numpy.array(g)
    update = jax.jit(lambda p, g: p - RATE * g, donate_argnums=0)

    def call() -> Any:
        nonlocal state
        state = update(state, gradient).block_until_ready()
        return state

    return call


def _jax_adam(p: np.ndarray, g: np.ndarray) -> Rival:
    import jax
    import jax.numpy as jnp

    gradient = jnp.array(g)
    state = (jnp.array(p), jnp.zeros_like(gradient), jnp.zeros_like(gradient), jnp.zeros((), p.dtype))

    def update(state: Any, g: Any) -> Any:
        p, m, v, t = state
        t += 1
        m += (1 - DECAY_1) * (g - m)
        v += (1 - DECAY_2) * (g * g - v)
        correction = jnp.sqrt(1 - DECAY_2**t)
        return p - RATE * correction / (1 - DECAY_1**t) * m / (jnp.sqrt(v) + EPSILON * correction), m, v, t

    jitted = jax.jit(update, donate_argnums=0)

    def call() -> Any:
        nonlocal state
        state = jax.block_until_ready(jitted(state, gradient))
        return state[0]

    return call


# --- fastnn -----------------------------------------------------------------------------------------------------------


def _fastnn_sgd(p: np.ndarray, g: np.ndarray) -> Rival:
    p = p.copy()

    def call() -> np.ndarray:
        fastnn.sgd_update(p, g, learning_rate=RATE)
        return p

    return call


def _fastnn_adam(p: np.ndarray, g: np.ndarray) -> Rival:
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    step = 0

    def call() -> np.ndarray:
        nonlocal step
        step += 1
        fastnn.adam_update(p, g, m, v, step, learning_rate=RATE, beta_1=DECAY_1, beta_2=DECAY_2, epsilon=EPSILON)
        return p

    return call


# --- the table --------------------------------------------------------------------------------------------------------


def _predict(network: type[networks.Network]) -> Callable[..., Rival]:
    def factory(row: np.ndarray, weights: list[np.ndarray]) -> Rival:
        sizes = (len(weights[0]), *(len(bias) for bias in weights[1::2]))
        samples = cases.training_inputs(sizes, 8, 32) | {"weights": weights}
        trained = network(**samples)
        return lambda: trained.predict(row)

    return factory


COMPARISONS: dict[str, dict[str, Callable[..., Rival]]] = {
    "train": dict(NETWORKS),
    "predict": {library: _predict(network) for library, network in NETWORKS.items()},
    "matmul": {
        "python": _python_matmul,
        "numpy": lambda a, b: lambda: np.matmul(a, b),
        "torch": torch_rival(lambda torch, a, b: torch.matmul(a, b)),
        "jax": jax_rival(lambda jax, a, b: a @ b),
        "fastnn": lambda a, b: lambda: fastnn.matmul(a, b),
    },
    "dense_relu": {
        "python": _python_dense_relu,
        "numpy": _numpy_dense_relu,
        "torch": torch_rival(lambda torch, x, w, b: torch.addmm(b, x, w).relu_()),
        "jax": jax_rival(lambda jax, x, w, b: jax.nn.relu(x @ w + b)),
        "fastnn": lambda x, w, b: lambda: fastnn.dense(x, w, b, "relu"),
    },
    "relu": {
        "python": _python_map(lambda e: e if e > 0 else 0.0),
        "numpy": lambda x: lambda: np.maximum(x, 0),
        "torch": torch_rival(lambda torch, x: torch.relu(x)),
        "jax": jax_rival(lambda jax, x: jax.nn.relu(x)),
        "fastnn": lambda x: lambda: fastnn.relu(x),
    },
    "sigmoid": {
        "python": _python_map(lambda e: 1 / (1 + math.exp(-e))),
        "numpy": _numpy_sigmoid,
        "torch": torch_rival(lambda torch, x: torch.sigmoid(x)),
        "jax": jax_rival(lambda jax, x: jax.nn.sigmoid(x)),
        "fastnn": lambda x: lambda: fastnn.sigmoid(x),
    },
    "tanh": {
        "python": _python_map(math.tanh),
        "numpy": lambda x: lambda: np.tanh(x),
        "torch": torch_rival(lambda torch, x: torch.tanh(x)),
        "jax": jax_rival(lambda jax, x: jax.numpy.tanh(x)),
        "fastnn": lambda x: lambda: fastnn.tanh(x),
    },
    "softmax": {
        "python": _python_softmax,
        "numpy": _numpy_softmax,
        "torch": torch_rival(lambda torch, x: torch.softmax(x, 1)),
        "jax": jax_rival(lambda jax, x: jax.nn.softmax(x)),
        "fastnn": lambda x: lambda: fastnn.softmax(x),
    },
    "bce_gradient": {
        "python": _python_bce,
        "numpy": _numpy_bce,
        "torch": torch_rival(_torch_bce),
        "jax": jax_rival(_jax_bce),
        "fastnn": lambda z, t: lambda: fastnn.bce_with_logits(z, t),
    },
    "sgd": {
        "python": _python_sgd,
        "numpy": _numpy_sgd,
        "torch": _torch_optimizer("SGD"),
        "jax": _jax_sgd,
        "fastnn": _fastnn_sgd,
    },
    "adam": {
        "python": _python_adam,
        "numpy": _numpy_adam,
        "torch": _torch_optimizer("Adam", betas=(DECAY_1, DECAY_2), eps=EPSILON),
        "jax": _jax_adam,
        "fastnn": _fastnn_adam,
    },
}


def installed(library: str) -> bool:
    """Whether `library` can join; it is not imported for this."""
    return library == "python" or importlib.util.find_spec(library) is not None


def contestants(operation: str, case: str) -> list[str]:
    """The libraries that do a case here, in the order of `LIBRARIES`."""
    table = COMPARISONS[operation]
    small = case in OPERATIONS[operation].small
    return [e for e in LIBRARIES if e in table and installed(e) and (e != "python" or small)]


def matrix(*operations: str) -> list[tuple[str, str, str]]:
    """Operation, case and library of everything that can run here."""
    return [(o, case, e) for o in operations for case in OPERATIONS[o].cases for e in contestants(o, case)]


def make(operation: str, library: str, case: str) -> Rival:
    """The callable to time."""
    return COMPARISONS[operation][library](**OPERATIONS[operation].make(case))
