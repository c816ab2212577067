"""Losses as builtin functions: taken where they should be, and the same results where they decline."""

import ctypes
import sys

import numpy as np
import pytest
import reference as ref
from guard import Guarded, linux

import fastnn
from fastnn.cpu import builtin, calls
from fastnn.cpu.blocking import ROW
from fastnn.records import PYTHON

DTYPES = ["float32", "float64"]
SIZES = [1, 15, 33, ROW - 1, ROW, ROW + 1, 3 * ROW, 3 * ROW + 7]

trusted = pytest.mark.skipif(builtin.python() == 0, reason="there are no such functions in this Python")


def operands(shape, dtype="float64", seed=0):
    """Logits, probabilities that sum to 1 and class numbers."""
    rng = np.random.default_rng(seed)
    t = rng.random(shape)
    return (
        (rng.standard_normal(shape) * 3).astype(dtype),
        (t / t.sum(-1, keepdims=True)).astype(dtype),
        rng.integers(0, shape[-1], shape[0]),
    )


def expected(name, z, t):
    """Value and gradient in float64."""
    z = z.astype(np.float64)
    if name == "mse":
        return np.mean((z - t) ** 2), 2 * (z - t) / z.size
    if name == "bce_with_logits":
        return np.mean(np.logaddexp(0, z) - z * t), (ref.sigmoid(z) - t) / z.size
    onehot = np.eye(z.shape[1])[t] if t.ndim == 1 else t.astype(np.float64)
    logs = z - z.max(1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
    weight = onehot.sum(1, keepdims=True)
    return -np.mean((onehot * logs).sum(1)), (np.exp(logs) * weight - onehot) / len(z)


def assert_loss(name, result, z, t):
    value, grad = expected(name, z, t)
    assert type(result) is tuple
    assert type(result[0]) is float
    tight = {"rtol": 1e-5, "atol": 1e-7} if z.dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-15}
    np.testing.assert_allclose(result[0], value, **tight)
    assert result[1].dtype == z.dtype
    np.testing.assert_allclose(result[1], grad, **tight)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
def test_means_over_elements(name, n, dtype):
    z, t, _ = operands((n,), dtype)
    for shape in ((n,), (1, n, 1)):
        for _ in range(2):  # the first call teaches the second
            result = getattr(fastnn, name)(z.reshape(shape), t.reshape(shape))
            assert_loss(name, (result[0], result[1].reshape(n)), z, t)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 10), (33, 17), (200, 3)])
def test_softmax_cross_entropy(shape, dtype):
    z, t, labels = operands(shape, dtype)
    for target in (t, labels, labels.astype("uint8"), labels[::-1].copy()[::-1], t.astype("f4").astype("f8")):
        for _ in range(2):
            result = fastnn.softmax_cross_entropy(z, target)
            if target.dtype != np.float64 or dtype == "float64":
                assert_loss("softmax_cross_entropy", result, z, target)
    assert_loss("softmax_cross_entropy", fastnn.softmax_cross_entropy(z[::-1], labels[::-1]), z[::-1], labels[::-1])


CALLS = {
    "mse": ("mean_squared_error", lambda z, t, labels: t),
    "bce_with_logits": ("sigmoid_crossentropy", lambda z, t, labels: t),
    "softmax_cross_entropy": ("softmax_crossentropy", lambda z, t, labels: t),
    "softmax_cross_entropy of labels": ("sparse_softmax_crossentropy", lambda z, t, labels: labels),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_out(name, dtype):
    z, t, labels = operands((6, 7), dtype)
    f, target = getattr(fastnn, name.split()[0]), CALLS[name][1](z, t, labels)
    value, grad = f(z, target)
    wide = np.full((6, 14), 99, dtype)
    for out in (np.full((6, 7), 99, dtype), wide[:, ::2], np.full((7, 6), 99, dtype).T, z.copy(), z):
        before = out.copy()
        result = f(out if out is z else z, target, out=out)
        assert result[1] is out
        assert result[0] == value
        np.testing.assert_array_equal(out, grad)
        out[...] = before
    assert (wide[:, 1::2] == 99).all()
    if target is t:  # the target may be overwritten, too
        result = f(z, t, out=t)
        assert result[0] == value
        np.testing.assert_array_equal(t, grad)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", CALLS)
def test_refused_calls_change_nothing(name):
    z, t, labels = operands((6, 7))
    f, target = getattr(fastnn, name.split()[0]), CALLS[name][1](z, t, labels)
    f(z, target)
    out = np.full((6, 7), 99.0)
    bad = [(z[:, :6], target), (z[:5], target), (z[:0], target[:0])]
    if name != "mse":
        for wrong in (-1, 7) if target is labels else (-0.1, 1.5, np.nan):
            spoilt = target.copy()
            spoilt.flat[-1] = wrong
            bad.append((z, spoilt))
    if target is labels:
        bad.pop(0)  # fewer classes than there were: an error only if a label is out of range
    for arguments in bad:
        with pytest.raises(ValueError, match="must|not defined"):
            f(*arguments, out=out)
    for wrong_out in (np.full((6, 8), 99.0), np.full((7, 7), 99.0)):
        with pytest.raises(ValueError, match=r"\(6, 7\)"):
            f(z, target, out=wrong_out)
        assert (wrong_out == 99).all()
    with pytest.raises(TypeError, match="float32"):
        f(z, target, out=out.astype("f4"))
    locked = out.copy()
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        f(z, target, out=locked)
    assert (out == 99).all()
    assert (locked == 99).all()


@trusted
@pytest.mark.parametrize("name", CALLS)
def test_which_are_direct(name):
    z, t, labels = operands((6, 7))
    key, choose = CALLS[name]
    f, target = calls.LOSSES[key], choose(z, t, labels)
    getattr(fastnn, name.split()[0])(z, target)
    assert f(z, target, None) is not None
    out = np.full((6, 7), 99.0)
    odd = [(z.T, target), (z.tolist(), target), (z, target[::-1]), (z, target.tolist()), (z[:5], target)]
    odd += [(z, target.astype("f4")), (z.astype("f4"), target), (z.reshape(6, 7, 1), target), (z.sum(), target)]
    large = np.ones((calls.SMALL + 1, 1))
    odd.append((large, np.zeros(len(large), int) if target is labels else large))
    for arguments in odd:
        assert f(*arguments, out) is None
    for wrong_out in (out.T, out[:5], out.astype("f4"), z[:, ::-1]):
        assert f(z, target, wrong_out) is None
    assert f(z, target) is None
    assert (out == 99).all()


@linux
@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_losses_stay_within(name, dtype, end):
    for shape in ((3, 5), (2, 16), (1, ROW + 3)):
        z, t, labels = operands(shape, dtype)
        guarded = [Guarded(a, end) for a in (z, CALLS[name][1](z, t, labels), np.zeros_like(z))]
        f = getattr(fastnn, name.split()[0])
        for _ in range(2):
            assert_loss(name.split()[0], f(*(g.array for g in guarded)), z, guarded[1].array)
        for g in guarded:
            g.assert_gaps_untouched()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", CALLS)
def test_references_are_counted(name):
    z, t, labels = operands((6, 7))
    target, out = CALLS[name][1](z, t, labels), np.empty((6, 7))
    f = getattr(fastnn, name.split()[0])
    watched = [z, target, out, np.dtype("float64"), np.dtype("int64"), None]
    for given in (None, out):
        f(z, target, given)
        before = [sys.getrefcount(x) for x in watched]
        for _ in range(1000):
            value, grad = f(z, target, given)
        after = [sys.getrefcount(x) for x in watched]
        assert all(abs(x - y) < 500 for x, y in zip(before, after, strict=True))
        assert sys.getrefcount(value) == sys.getrefcount(np.float64(2.0).item())
        del grad, value


@trusted
@pytest.mark.parametrize("function", ["empty", "new_number", "new_tuple"])
def test_no_memory(function):
    """Exceptions arrive, and no reference is lost (PyErr_NoMemory in place of what makes an object)."""
    z, t, _ = operands((6, 7))
    out = np.empty((6, 7))
    fastnn.mse(z, t)
    field = ctypes.c_size_t.from_address(builtin.python() + PYTHON.offsets[function])
    works, count = field.value, sys.getrefcount(out)
    field.value = ctypes.cast(ctypes.pythonapi.PyErr_NoMemory, ctypes.c_void_p).value
    try:
        for given in (None,) if function == "empty" else (None, out):
            with pytest.raises(MemoryError):
                fastnn.mse(z, t, given)
    finally:
        field.value = works
    del given
    assert sys.getrefcount(out) == count
    assert fastnn.mse(z, t, out)[1] is out
