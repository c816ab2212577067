"""out= of the NumPy-level functions: NumPy's semantics, in-place and overlapping operands."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import reference as ref

import fastnn
from fastnn.cpu import immediate
from fastnn.cpu.calls import SMALL_MAP
from fastnn.ops import activations

UNARY = ["relu", "leaky_relu", "sigmoid", "tanh", "softmax", "exp", "expm1", "log", "log1p", "erf", "softplus", "gelu"]
DERIVATIVES = [
    *("relu_derivative", "leaky_relu_derivative", "sigmoid_derivative", "tanh_derivative"),
    *("softplus_derivative", "gelu_derivative"),
]


def random(shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).standard_normal(shape) * scale


def unary_expected(name, x):
    return getattr(ref, name)(x)


def calls():
    """name -> (function of out, shape of the result, expected)."""
    a, b = random((6, 7), seed=1), random((7, 5), seed=2)
    table = {
        "matmul": (lambda out: fastnn.matmul(a, b, out=out), a @ b),
        "dot": (lambda out: fastnn.dot(a, b, out=out), a @ b),
        "matmul 2-D, 1-D": (lambda out: fastnn.matmul(a, b[:, 0], out=out), a @ b[:, 0]),
    }
    for name in [*UNARY, *DERIVATIVES]:
        table[name] = (partial(getattr(fastnn, name), a), unary_expected(name, a))
    return table


CALLS = calls()


@pytest.mark.parametrize("layout", ["C", "Fortran", "strided", "negative strides"])
@pytest.mark.parametrize("name", CALLS)
def test_out(name, layout):
    call, expected = CALLS[name]
    base = np.full([2 * n for n in expected.shape], 99.0)
    out = {
        "C": np.full(expected.shape, 99.0),
        "Fortran": np.full(expected.shape, 99.0, order="F"),
        "strided": base[tuple(slice(None, None, 2) for _ in expected.shape)],
        "negative strides": np.flip(np.full(expected.shape, 99.0)),
    }[layout]
    assert call(out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-14)
    untouched = base[tuple(slice(1, None, 2) for _ in expected.shape)]
    assert (untouched == 99).all()


@pytest.mark.parametrize("name", CALLS)
def test_out_errors(name):
    call, expected = CALLS[name]
    shape = expected.shape
    wrong = np.full((*shape[:-1], shape[-1] + 1), 99.0)
    with pytest.raises(ValueError, match=rf"\b{shape[-1] + 1}\b"):
        call(out=wrong)
    with pytest.raises(ValueError, match=rf"\b{shape[-1]}\b"):
        call(out=np.full((1, *shape), 99.0))
    for dtype in ["int64", "bool", "complex128"]:
        bad = np.ones(shape, dtype)
        with pytest.raises(TypeError, match=dtype):
            call(out=bad)
        assert (bad == 1).all()
    with pytest.raises(TypeError, match="list"):
        call(out=expected.tolist())
    locked = np.full(shape, 99.0)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="(?i)read-?only|writ"):
        call(out=locked)
    assert (wrong == 99).all()
    assert (locked == 99).all()


@pytest.mark.parametrize("name", CALLS)
def test_out_of_other_precision_is_right_or_refused(name):
    call, expected = CALLS[name]
    out = np.full(expected.shape, 99, np.float32)
    try:
        call(out=out)
    except TypeError:
        assert (out == 99).all()
    else:
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*UNARY, *DERIVATIVES])
def test_elementwise_in_place(name):
    x = random((19, 23))
    expected = unary_expected(name, x)
    assert getattr(fastnn, name)(x, out=x) is x
    # gelu's derivative has a zero.
    np.testing.assert_allclose(x, expected, rtol=1e-13, atol=1e-16 if name == "gelu_derivative" else 1e-300)


OVERLAPS = {
    "itself": lambda buffer: (buffer[:900], buffer[:900]),
    "one behind": lambda buffer: (buffer[:900], buffer[1:901]),
    "one ahead": lambda buffer: (buffer[1:901], buffer[:900]),
    "reversed": lambda buffer: (buffer[:900], buffer[899::-1]),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("name", ["sigmoid", "softmax", "matmul", "matmul, right", "matmul, transposed"])
def test_overlapping_out_is_right_or_refused(name, overlap):
    x, out = (v.reshape(30, 30) for v in OVERLAPS[overlap](random(901, scale=0.5)))
    other = random((30, 30), seed=3)
    x0 = x.copy()
    call, expected = {
        "sigmoid": (lambda: fastnn.sigmoid(x, out=out), ref.sigmoid(x)),
        "softmax": (lambda: fastnn.softmax(x, out=out), ref.softmax(x)),
        "matmul": (lambda: fastnn.matmul(x, other, out=out), x @ other),
        "matmul, right": (lambda: fastnn.matmul(other, x, out=out), other @ x),
        "matmul, transposed": (lambda: fastnn.matmul(x.T, x, out=out), x.T @ x),
    }[name]
    try:
        call()
    except ValueError:
        np.testing.assert_array_equal(x, x0)
    else:
        np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
def test_outputs_that_no_cache_holds(in_place, monkeypatch):
    """Streamed past the caches, but not where they are the input, which has been read into them."""
    seen = []

    def run(name, dtype, record, values, **how):
        seen.append(values["far"])
        immediate.run(name, dtype, record, values, **how)

    monkeypatch.setattr(activations, "FAR", 1 << 20)
    monkeypatch.setattr(activations, "immediate", SimpleNamespace(run=run))
    x = np.linspace(-3, 3, SMALL_MAP + 1, dtype=np.float32)
    expected = np.maximum(x, 0)
    result = fastnn.relu(x, out=x) if in_place else fastnn.relu(x)
    np.testing.assert_array_equal(result, expected)
    assert seen == [not in_place]
