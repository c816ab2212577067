"""Adam's quotient to the last bits; subnormal numbers count in the functions and are 0 in the engine."""

import numpy as np
import pytest

import fastnn
from fastnn.cpu import immediate
from fastnn.cpu.memory import address
from fastnn.layers import Dense, Input
from fastnn.records import UPDATE

TINY = np.finfo(np.float32).tiny


def quotient(m, v, epsilon):
    """``-m / (sqrt(v) + epsilon)``, by an Adam update that leaves the moments as they are."""
    p, g, m, v = np.zeros_like(m), np.zeros_like(m), m.copy(), v.copy()
    values = {"p": address(p), "s0": address(m), "s1": address(v), "g": address(g), "n": p.size}
    values |= {"epsilon": epsilon, "decay_1": 0.0, "decay_2": 0.0}
    immediate.run("optimizers.adam_flat", p.dtype, UPDATE, values, work=0, threads=1, rate=1.0)
    return p


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("epsilon", [1e-7, 1e-3, 1.0])
def test_division_by_a_root(dtype, epsilon):
    rng = np.random.default_rng(0)
    n = 300_001
    limit = 18.0 if dtype == "float32" else 150.0
    m = (rng.standard_normal(n) * 10.0 ** rng.uniform(-limit, limit, n)).astype(dtype)
    v = (10.0 ** rng.uniform(-2 * limit, 2 * limit, n)).astype(dtype)
    v[::7] = 0
    exact = -m.astype(np.longdouble) / (np.sqrt(v.astype(np.longdouble)) + np.dtype(dtype).type(epsilon))
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
