"""Initial values of weights, with Keras' names and formulas."""

import math

import numpy as np

from fastnn import _names

# name -> (scale, fan, distribution); the variance is scale / fan (He et al. 2015, Glorot and Bengio 2010, LeCun 1998)
VARIANCE_SCALING = {
    "glorot_uniform": (1.0, "avg", "uniform"),
    "glorot_normal": (1.0, "avg", "normal"),
    "he_uniform": (2.0, "in", "uniform"),
    "he_normal": (2.0, "in", "normal"),
    "lecun_uniform": (1.0, "in", "uniform"),
    "lecun_normal": (1.0, "in", "normal"),
}
CONSTANTS = {"zeros": 0.0, "ones": 1.0}
SIMPLE = {"random_normal": "normal", "random_uniform": "uniform"}
NAMES = dict.fromkeys([*VARIANCE_SCALING, *CONSTANTS, *SIMPLE])


def check(name: object, what: str) -> str:
    """Validate the name of an initializer."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be the name of an initializer, got {name!r}")
    _names.find(name, NAMES, "initializer")
    return name


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw initial values in float64.

    Parameters
    ----------
    name : str
        ``glorot_uniform``: U(-l, l) with l = sqrt(6 / (fan_in + fan_out)); ``he_normal``: a normal distribution cut at
        two deviations, of variance 2 / fan_in; and so on, as in Keras.
    shape : tuple of int
        (fan_in, fan_out) for a kernel, (units,) for a bias.
    rng : numpy.random.Generator
        Where the numbers come from.
    """
    if name in CONSTANTS:
        return np.full(shape, CONSTANTS[name])
    if name == "random_uniform":
        return rng.uniform(-0.05, 0.05, shape)
    if name == "random_normal":
        return rng.normal(0.0, 0.05, shape)
    scale, fan, distribution = VARIANCE_SCALING[name]
    fan_in, fan_out = shape[0], shape[-1]
    variance = scale / max(1.0, fan_in if fan == "in" else (fan_in + fan_out) / 2)
    if distribution == "uniform":
        limit = math.sqrt(3 * variance)
        return rng.uniform(-limit, limit, shape)
    # A normal distribution cut at two deviations has 0.8796 of the deviation of a whole one.
    deviation = math.sqrt(variance) / 0.87962566103423978
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values * deviation
