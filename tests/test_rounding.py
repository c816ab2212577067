"""Quotients of Adam and RMSprop to the last bits; subnormal numbers count in the functions and are 0 in the engine."""

import numpy as np
import pytest

import fastnn
from fastnn.cpu import immediate
from fastnn.cpu.memory import address
from fastnn.layers import Dense, Input
from fastnn.records import UPDATE

TINY = np.finfo(np.float32).tiny


def updated(rule, epsilon, **arrays):
    """What one update makes of parameters that are 0, with a rate of 1 and moments that stay as they are."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    p = np.zeros_like(arrays["g"])
    values = {name: address(array) for name, array in arrays.items()} | {"p": address(p), "n": p.size}
    values |= {"epsilon": epsilon, "decay_1": 0.0, "decay_2": 0.0}
    immediate.run(f"optimizers.{rule}_flat", p.dtype, UPDATE, values, work=0, threads=1, rate=1.0)
    return p


QUOTIENTS = {
    "adam": (
        lambda m, v, epsilon: -m / (np.sqrt(v) + epsilon),
        lambda m, v, epsilon: updated("adam", epsilon, g=np.zeros_like(m), s0=m, s1=v),
    ),
    "rmsprop": (
        lambda g, v, epsilon: -g / np.sqrt(v + epsilon),
        lambda g, v, epsilon: updated("rmsprop", epsilon, g=g, s0=v),
    ),
    "rmsprop_momentum": (
        lambda g, v, epsilon: -g / np.sqrt(v + epsilon),
        lambda g, v, epsilon: updated("rmsprop_momentum", epsilon, g=g, s0=v, s1=np.zeros_like(g)),
    ),
}


@pytest.mark.parametrize("rule", QUOTIENTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("epsilon", [1e-7, 1e-3, 1.0])
def test_division_by_a_root(dtype, epsilon, rule):
    rng = np.random.default_rng(0)
    n = 300_001
    limit = 18.0 if dtype == "float32" else 150.0
    m = (rng.standard_normal(n) * 10.0 ** rng.uniform(-limit, limit, n)).astype(dtype)
    v = (10.0 ** rng.uniform(-2 * limit, 2 * limit, n)).astype(dtype)
    v[::7] = 0
    v[1::7] = rng.uniform(0, 4, v[1::7].size)
    truth, quotient = QUOTIENTS[rule]
    exact = truth(m.astype(np.longdouble), v.astype(np.longdouble), np.dtype(dtype).type(epsilon))
    normal = (np.abs(exact) > np.finfo(dtype).tiny * 4) & (np.abs(exact) < np.finfo(dtype).max)
    error = np.abs(quotient(m, v, epsilon) - exact)[normal] / np.spacing(np.abs(exact[normal]).astype(dtype))
    assert normal.sum() > n / 2
    assert error.max() <= 2.25  # correctly rounded operations have the same: three roundings follow each other


@pytest.mark.parametrize("n_threads", [1, 2])
def test_moments_never_stay_subnormal(n_threads):
    """The moments of weights whose input is always 0 decay; each operation on a subnormal one would be a slow one."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 40)).astype("float32"), rng.integers(0, 3, 64)
    model = fastnn.Sequential([Input((40,)), Dense(300, "relu"), Dense(3, "softmax")], seed=0, n_threads=n_threads)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, verbose=0)
    assert (model.network.state[0] != 0).any()
    model.fit(np.zeros_like(x), y, batch_size=1, epochs=20, verbose=0)
    for state in model.network.state:
        assert not ((state != 0) & (np.abs(state) < TINY)).any()
    # The mode of the calling thread is as before.
    small = np.full(100, TINY / 4, np.float32)
    assert (small * np.float32(2) == TINY / 2).all()
    assert (fastnn.leaky_relu(-small, 0.5) == -small / 2).all()
