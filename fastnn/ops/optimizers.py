"""Optimizer updates, in place."""

import math

import numpy as np

from fastnn import _names
from fastnn.cpu import immediate
from fastnn.cpu.calls import UPDATES
from fastnn.cpu.memory import address
from fastnn.ops.arrays import floats, in_place
from fastnn.records import UPDATE
from fastnn.threads import get_num_threads

STATES = {  # what users call the states of a rule
    "sgd": (),
    "momentum": ("velocity",),
    "nesterov": ("velocity",),
    "adam": ("m", "v"),
    "rmsprop": ("v",),
    "rmsprop_momentum": ("v", "velocity"),
}


def _update(
    rule: str,
    param: np.ndarray,
    grad: object,
    s0: np.ndarray | None,
    s1: np.ndarray | None,
    rate: float,
    momentum: float = 0.0,
    decay_1: float = 0.0,
    decay_2: float = 0.0,
    epsilon: float = 0.0,
) -> None:
    names = STATES[rule]
    if names and (s0 is None or (s1 is None and len(names) > 1)):
        missing = names[0] if s0 is None else names[1]
        raise ValueError(f"{missing} is missing: it is an array of the shape of param (zeros at first)")
    if UPDATES[rule](param, s0, s1, grad, rate, momentum, decay_1, decay_2, epsilon) is not None:
        return
    arrays = {"p": in_place(param, "param")}
    for field, state, name in zip(("s0", "s1"), (s0, s1), names, strict=False):
        arrays[field] = in_place(state, name, param)
    g = floats(grad, "grad")
    if g.shape != param.shape:
        raise ValueError(f"grad must have the shape of param, {param.shape}, got {g.shape}")
    # Work on contiguous memory; strided arrays are copied and written back.
    packed = {field: np.ascontiguousarray(array) for field, array in arrays.items()}
    flat = np.ascontiguousarray(g, dtype=param.dtype)
    if param.size:
        values: dict[str, int | float] = {field: address(array) for field, array in packed.items()}
        values |= {"g": address(flat), "n": param.size, "momentum": momentum}
        values |= {"decay_1": decay_1, "decay_2": decay_2, "epsilon": epsilon}
        immediate.run(
            f"optimizers.{rule}_flat",
            param.dtype,
            UPDATE,
            values,
            work=20.0 * param.size,
            threads=get_num_threads(),
            rate=rate,
        )
        UPDATES.learn(rule, param.dtype)
    for field, array in arrays.items():
        if packed[field] is not array:
            array[...] = packed[field]


def sgd_update(
    param: np.ndarray,
    grad: object,
    velocity: np.ndarray | None = None,
    *,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> None:
    """One step of stochastic gradient descent, in place.

    ``param -= learning_rate grad``, or with momentum ``velocity = momentum velocity - learning_rate grad`` and
    ``param += velocity`` (Nesterov: ``param += momentum velocity - learning_rate grad``), as in Keras.

    Parameters
    ----------
    param : array
        Parameters, updated.
    grad : array of the same shape
        Gradient.
    velocity : array of the same shape, optional
        Needed with momentum; starts as zeros, updated.
    learning_rate, momentum : float
        At least 0; momentum at most 1.
    nesterov : bool
        Whether to use Nesterov's form.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> p = np.array([1.0, 2.0])
    >>> fastnn.sgd_update(p, np.array([10.0, 10.0]), learning_rate=0.1)
    >>> p
    array([0., 1.])
    """
    rate = _names.number(learning_rate, "learning_rate", low=0)
    mu = _names.number(momentum, "momentum", low=0, high=1)
    if mu == 0:
        _update("sgd", param, grad, None, None, rate)
    else:
        _update("nesterov" if nesterov else "momentum", param, grad, velocity, None, rate, mu)


def _missing(beta: float, t: int) -> float:
    """``1 - beta^t``, without the digits that the difference would lose."""
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1.0


def adam_update(
    param: np.ndarray,
    grad: object,
    m: np.ndarray,
    v: np.ndarray,
    step: int,
    *,
    learning_rate: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
) -> None:
    """One step of Adam, in place, in one pass over memory.

    Parameters
    ----------
    param : array
        Parameters, updated.
    grad : array of the same shape
        Gradient.
    m, v : arrays of the same shape
        The two moments: zeros at first, updated.
    step : int
        Number of this step, from 1.
    learning_rate, beta_1, beta_2, epsilon : float
        As for `fastnn.optimizers.Adam`.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastnn.adam_update(p, np.array([1.0, -1.0]), m, v, 1, learning_rate=0.1)
    >>> p.round(4)
    array([0.9, 1.1])
    """
    t = _names.integer(step, "step", low=1)
    rate = _names.number(learning_rate, "learning_rate", low=0)
    b1 = _names.number(beta_1, "beta_1", low=0, high=1, open_high=True)
    b2 = _names.number(beta_2, "beta_2", low=0, high=1, open_high=True)
    eps = _names.number(epsilon, "epsilon", low=0, open_low=True)
    rate *= math.sqrt(_missing(b2, t)) / _missing(b1, t)
    _update("adam", param, grad, m, v, rate, 0.0, 1 - b1, 1 - b2, eps)


def rmsprop_update(
    param: np.ndarray,
    grad: object,
    v: np.ndarray,
    velocity: np.ndarray | None = None,
    *,
    learning_rate: float = 0.001,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
) -> None:
    """One step of RMSprop, in place, in one pass over memory.

    ``v = rho v + (1 - rho) grad^2`` and ``param -= learning_rate grad / sqrt(v + epsilon)``, or with momentum
    ``velocity = momentum velocity + learning_rate grad / sqrt(v + epsilon)`` and ``param -= velocity``, as in Keras.

    Parameters
    ----------
    param : array
        Parameters, updated.
    grad : array of the same shape
        Gradient.
    v : array of the same shape
        The mean of the squared gradients: zeros at first (never negative), updated.
    velocity : array of the same shape, optional
        Needed with momentum; starts as zeros, updated.
    learning_rate, rho, momentum, epsilon : float
        As for `fastnn.optimizers.RMSprop`.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> p, v = np.ones(2), np.zeros(2)
    >>> fastnn.rmsprop_update(p, np.array([2.0, -2.0]), v, learning_rate=0.1)
    >>> p.round(4), v
    (array([0.6838, 1.3162]), array([0.4, 0.4]))
    """
    rate = _names.number(learning_rate, "learning_rate", low=0)
    decay = 1 - _names.number(rho, "rho", low=0, high=1, open_high=True)
    mu = _names.number(momentum, "momentum", low=0, high=1)
    eps = _names.number(epsilon, "epsilon", low=0, open_low=True)
    if mu == 0:
        _update("rmsprop", param, grad, v, None, rate, 0.0, 0.0, decay, eps)
    else:
        _update("rmsprop_momentum", param, grad, v, velocity, rate, mu, 0.0, decay, eps)
