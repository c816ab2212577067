"""NumPy-level losses and parameter updates against the reference."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import reference as ref

import fastnn

DTYPES = ["float32", "float64"]
SHAPES = [(1, 1), (1, 5), (7, 1), (33, 10), (65, 129)]


def random(shape, dtype="float64", seed=0, scale=2.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def read_only(*arrays):
    for array in arrays:
        array.flags.writeable = False
    return arrays


def close(dtype):
    return {"rtol": 1e-4, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-14}


def assert_loss(result, expected, dtype):
    (loss, grad), (expected_loss, expected_grad) = result, expected
    assert np.ndim(loss) == 0
    assert float(loss) == pytest.approx(expected_loss, rel=close(dtype)["rtol"])
    assert grad.dtype == dtype
    assert grad.shape == expected_grad.shape
    np.testing.assert_allclose(grad, expected_grad, **close(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses(shape, dtype):
    z, t = read_only(random(shape, dtype), random(shape, dtype, 1))
    bits = (t > 0).astype(dtype)
    labels = np.random.default_rng(2).integers(0, shape[1], shape[0])
    hot = ref.one_hot(labels, shape[1])
    assert_loss(fastnn.mse(z, t), ref.mse(z, t), dtype)
    assert_loss(fastnn.bce_with_logits(z, bits), ref.bce_logits(z, bits), dtype)
    assert_loss(fastnn.softmax_cross_entropy(z, labels), ref.cce_logits(z, hot), dtype)
    assert_loss(fastnn.softmax_cross_entropy(z, hot.astype(dtype)), ref.cce_logits(z, hot), dtype)


@pytest.mark.parametrize("layout", ["Fortran", "strided", "negative strides"])
def test_losses_of_any_strides(layout):
    z, t = random((13, 6)), (random((13, 6), seed=1) > 0).astype(float)

    def lay(a):
        return {
            "Fortran": np.asfortranarray(a),
            "strided": np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
            "negative strides": np.flip(np.flip(a).copy()),
        }[layout]

    assert_loss(fastnn.mse(lay(z), lay(t)), ref.mse(z, t), "float64")
    assert_loss(fastnn.bce_with_logits(lay(z), lay(t)), ref.bce_logits(z, t), "float64")
    assert_loss(
        fastnn.softmax_cross_entropy(lay(z), lay(np.eye(6)[:1].repeat(13, 0))),
        ref.cce_logits(z, np.eye(6)[:1].repeat(13, 0)),
        "float64",
    )
    labels = np.arange(13)[::-1] % 6
    assert_loss(fastnn.softmax_cross_entropy(lay(z), labels), ref.cce_logits(z, np.eye(6)[labels]), "float64")


@pytest.mark.parametrize("kind", ["int8", "int32", "int64", "uint8", "bool"])
def test_losses_convert_integer_targets(kind):
    z, t = random((9, 2), "float32"), (np.arange(18).reshape(9, 2) % 2).astype(kind)
    assert_loss(fastnn.bce_with_logits(z, t), ref.bce_logits(z, t), "float32")
    assert_loss(fastnn.mse(z, t), ref.mse(z, t), "float32")
    labels = t[:, 0]
    assert_loss(fastnn.softmax_cross_entropy(z, labels), ref.cce_logits(z, ref.one_hot(labels, 2)), "float32")


def test_one_dimensional_losses_are_means():
    y, t = random(11), (random(11, seed=1) > 0).astype(float)
    assert_loss(fastnn.mse(y, t), (((y - t) ** 2).mean(), 2 * (y - t) / 11), "float64")
    expected = ref.bce_logits(y[:, None], t[:, None])
    assert_loss(fastnn.bce_with_logits(y, t), (expected[0], expected[1][:, 0]), "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_stable(dtype):
    loss, grad = fastnn.bce_with_logits(np.array([[1e4], [-1e4]], dtype), np.array([[1], [0]], dtype))
    assert loss == 0
    assert (grad == 0).all()
    loss, grad = fastnn.bce_with_logits(np.array([[1e4], [-1e4]], dtype), np.array([[0], [1]], dtype))
    assert loss == pytest.approx(1e4)
    assert grad.tolist() == [[0.5], [-0.5]]
    loss, grad = fastnn.softmax_cross_entropy(np.array([[1e4, 0, -1e4]], dtype), np.array([2]))
    assert loss == pytest.approx(2e4)
    assert grad.tolist() == [[1, 0, -1]]


def test_small_losses_keep_their_digits():
    loss, _ = fastnn.bce_with_logits(np.array([[30.0]]), np.array([[1.0]]))
    assert loss == pytest.approx(np.log1p(np.exp(-30)), rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_propagate_nan(dtype):
    z = random((5, 4), dtype)
    z[2, 1] = np.nan
    t = np.eye(4, dtype=dtype)[[0, 1, 2, 3, 0]]
    for loss, grad in [fastnn.mse(z, t), fastnn.bce_with_logits(z, t), fastnn.softmax_cross_entropy(z, t)]:
        assert np.isnan(loss)
        assert np.isnan(grad[2, 1])
        assert np.isfinite(grad[[0, 1, 3, 4]]).all()


def test_bce_out():
    z, t = random((6, 5)), (random((6, 5), seed=1) > 0).astype(float)
    loss, expected = ref.bce_logits(z, t)
    out = np.full((6, 5), 99.0)
    result = fastnn.bce_with_logits(z, t, out=out)
    assert result[1] is out
    assert result[0] == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match=r"\(6, 4\)"):
        fastnn.bce_with_logits(z, t, out=np.zeros((6, 4)))
    with pytest.raises(TypeError, match="int64"):
        fastnn.bce_with_logits(z, t, out=np.zeros((6, 5), int))


def test_loss_errors():
    z = random((6, 5))
    for f in (fastnn.mse, fastnn.bce_with_logits, fastnn.softmax_cross_entropy):
        with pytest.raises(ValueError, match=r"\(6, 5\).*\(6, 4\)"):
            f(z, np.zeros((6, 4)))
        with pytest.raises(TypeError, match="complex128"):
            f(z + 1j, np.zeros((6, 5)))
    with pytest.raises(ValueError, match=r"\b6\b.*\b7\b|\b7\b.*\b6\b"):
        fastnn.softmax_cross_entropy(z, np.zeros(7, int))
    for bad in (5, -1):
        with pytest.raises(ValueError, match=rf"(?<!\d){bad}\b"):
            fastnn.softmax_cross_entropy(z, np.array([0, 1, 2, bad, 0, 0]))
    for f in (fastnn.mse, fastnn.bce_with_logits):
        with pytest.raises(ValueError, match="(?i)empty|no samples|0"):
            f(np.zeros((0, 3)), np.zeros((0, 3)))


# Updates


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (0,), (33, 65), (3, 4, 5)])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_update(momentum, nesterov, shape, dtype):
    p, v = random(shape, dtype), np.zeros(shape, dtype)
    expected, expected_v = p.astype(float), v.astype(float)
    kept = p
    for step in range(3):
        (g,) = read_only(random(shape, dtype, step + 1))
        args = (v,) if momentum else ()
        fastnn.sgd_update(p, g, *args, learning_rate=0.1, momentum=momentum, nesterov=nesterov)
        expected, expected_v = ref.sgd(expected, g.astype(float), expected_v, 0.1, momentum, nesterov)
    assert p is kept
    np.testing.assert_allclose(p, expected, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-6)
    np.testing.assert_allclose(v, expected_v, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-6)


@pytest.mark.parametrize("step", [1, 7, 100, 40_000])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.99999])
def test_bias_corrections_keep_their_digits(beta, step):
    """As a difference, 1 - 0.99999^t loses four of sixteen digits."""
    with localcontext(prec=50):
        exact = float(1 - Decimal(beta) ** step)
    rates = fastnn.optimizers.Adam(1.0, beta_1=beta, beta_2=0.0).rates(step)
    np.testing.assert_allclose(rates[-1], 1 / exact, rtol=1e-15)
    rates = fastnn.optimizers.Adam(1.0, beta_1=0.0, beta_2=beta).rates(step)
    np.testing.assert_allclose(rates[-1], math.sqrt(exact), rtol=1e-15)
    p, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
    fastnn.adam_update(p, np.ones(1), m, v, step, learning_rate=1.0, beta_1=beta, beta_2=0.0, epsilon=1e-300)
    np.testing.assert_allclose(p[0], -(1 - beta) / exact, rtol=1e-15)


def test_step_sizes_once_the_corrections_are_one():
    """The last steps that compute them, and the first that do not."""
    adam, other = fastnn.optimizers.Adam(0.25), fastnn.optimizers.AdamW(0.25, weight_decay=0.5)
    whole = adam.rates(41_000)
    assert (np.diff(whole[2000:]) >= 0).all()
    for start in (300, 379, 380, 39_979, 39_980, 40_997):
        adam.iterations = start
        np.testing.assert_array_equal(adam.rates(3), whole[start : start + 3])
    np.testing.assert_array_equal(adam.rates(3), np.full(3, 0.25))
    other.iterations = 10**9
    np.testing.assert_array_equal(other.rates(2), [[0.25, 0.875]] * 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (0,), (33, 65), (3, 4, 5)])
def test_adam_update(shape, dtype):
    p, m, v = random(shape, dtype), np.zeros(shape, dtype), np.zeros(shape, dtype)
    state = [a.astype(float) for a in (p, m, v)]
    for step in range(1, 6):
        (g,) = read_only(random(shape, dtype, step))
        fastnn.adam_update(p, g, m, v, step, learning_rate=0.05, beta_1=0.8, beta_2=0.99, epsilon=1e-5)
        state = ref.adam(state[0], g.astype(float), state[1], state[2], step, 0.05, 0.8, 0.99, 1e-5)
    tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
    for actual, expected in zip((p, m, v), state, strict=True):
        np.testing.assert_allclose(actual, expected, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (0,), (33, 65), (3, 4, 5)])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_rmsprop_update(momentum, shape, dtype):
    p, v, m = random(shape, dtype), np.zeros(shape, dtype), np.zeros(shape, dtype)
    state = [a.astype(float) for a in (p, v, m)]
    arguments = {"learning_rate": 0.05, "rho": 0.8, "momentum": momentum, "epsilon": 1e-5}
    for step in range(1, 6):
        (g,) = read_only(random(shape, dtype, step))
        fastnn.rmsprop_update(p, g, v, *([m] if momentum else []), **arguments)
        state = ref.rmsprop(state[0], g.astype(float), state[1], state[2], **arguments)
    tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
    for actual, expected in zip((p, v, m) if momentum else (p, v), state, strict=False):
        np.testing.assert_allclose(actual, expected, **tolerance)


def test_update_defaults():
    p, g = random(9), random(9, seed=1)
    q = p.copy()
    fastnn.sgd_update(q, g)
    np.testing.assert_allclose(q, p - 0.01 * g, rtol=1e-14)
    q, m, v = p.copy(), np.zeros(9), np.zeros(9)
    fastnn.adam_update(q, g, m, v, 1)
    np.testing.assert_allclose(q, ref.adam(p, g, 0, 0, 1)[0], rtol=1e-12)
    q, v = p.copy(), np.zeros(9)
    fastnn.rmsprop_update(q, g, v)
    np.testing.assert_allclose(q, ref.rmsprop(p, g, 0)[0], rtol=1e-12)


@pytest.mark.parametrize("view", ["strided", "transposed", "reversed"])
def test_updates_of_views_work_in_place_or_refuse(view):
    base = np.full((20, 30), 99.0)
    p = {"strided": base[::2, ::3], "transposed": base.T, "reversed": base[::-1]}[view]
    p[...] = random(p.shape)
    before, whole, g = p.copy(), base.copy(), random(p.shape, seed=1)
    try:
        fastnn.sgd_update(p, g, learning_rate=0.1)
    except ValueError:
        np.testing.assert_array_equal(base, whole)
        return
    np.testing.assert_allclose(p, before - 0.1 * g, rtol=1e-13)
    p[...] = before
    np.testing.assert_array_equal(base, whole)


BAD_UPDATES = [
    (lambda p, g: fastnn.sgd_update(p, g[:4]), ValueError, r"\(5,\).*\(4,\)|\(4,\).*\(5,\)"),
    (lambda p, g: fastnn.sgd_update(p, g, momentum=0.9), ValueError, "velocity"),
    (lambda p, g: fastnn.sgd_update(p, g, g[:4].copy(), momentum=0.9), ValueError, r"\(4,\)"),
    (lambda p, g: fastnn.sgd_update(p, g, learning_rate=np.nan), ValueError, "learning_rate.*nan"),
    (lambda p, g: fastnn.sgd_update(p, g, learning_rate=np.inf), ValueError, "learning_rate.*inf"),
    (lambda p, g: fastnn.sgd_update(p, g, np.zeros(5), momentum=-0.5), ValueError, r"momentum.*-0\.5"),
    (lambda p, g: fastnn.sgd_update(p, g + 1j), TypeError, "complex128"),
    (lambda p, g: fastnn.sgd_update(list(p), g), TypeError, "list"),
    (lambda p, g: fastnn.sgd_update(np.arange(5), g), TypeError, "int64"),
    (lambda p, g: fastnn.adam_update(p, g, np.zeros(5), np.zeros(4), 1), ValueError, r"\(4,\)"),
    (lambda p, g: fastnn.adam_update(p, g, np.zeros(5), np.zeros(5), 0), ValueError, r"step.*\b0\b"),
    (lambda p, g: fastnn.adam_update(p, g, np.zeros(5), np.zeros(5), 1, beta_1=1.0), ValueError, r"beta_1.*1"),
    (lambda p, g: fastnn.adam_update(p, g, np.zeros(5), np.zeros(5), 1, epsilon=np.nan), ValueError, "epsilon.*nan"),
    (lambda p, g: fastnn.adam_update(p, g, np.zeros(5, int), np.zeros(5), 1), TypeError, "int64"),
    (lambda p, g: fastnn.adam_update(p, g, None, np.zeros(5), 1), ValueError, r"\bm is missing"),
    (lambda p, g: fastnn.adam_update(p, g, np.zeros(5), None, 1), ValueError, r"\bv is missing"),
    (lambda p, g: fastnn.rmsprop_update(p, g, None), ValueError, r"\bv is missing"),
    (lambda p, g: fastnn.rmsprop_update(p, g, np.zeros(4)), ValueError, r"\bv must.*\(4,\)"),
    (lambda p, g: fastnn.rmsprop_update(p, g, np.zeros(5), momentum=0.5), ValueError, "velocity is missing"),
    (lambda p, g: fastnn.rmsprop_update(p, g, np.zeros(5), g[:4].copy(), momentum=0.5), ValueError, r"velo.*\(4,\)"),
    (lambda p, g: fastnn.rmsprop_update(p, g, np.zeros(5), rho=1.0), ValueError, r"rho.*1"),
    (lambda p, g: fastnn.rmsprop_update(p, g, np.zeros(5), epsilon=0.0), ValueError, r"epsilon.*0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_UPDATES)
def test_refused_updates_change_nothing(call, error, message):
    p, g = random(5), random(5, seed=1)
    before = p.copy()
    with pytest.raises(error, match=message):
        call(p, g)
    np.testing.assert_array_equal(p, before)


def test_read_only_parameters_are_refused():
    (p,) = read_only(random(5))
    before = p.copy()
    with pytest.raises(ValueError, match="(?i)read-?only|writ"):
        fastnn.sgd_update(p, np.ones(5))
    with pytest.raises(ValueError, match="(?i)read-?only|writ"):
        fastnn.adam_update(p, np.ones(5), np.zeros(5), np.zeros(5), 1)
    np.testing.assert_array_equal(p, before)


def test_a_network_by_hand_learns_xor():
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    t = np.array([[0], [1], [1], [0]])
    rng = np.random.default_rng(1)
    params = [rng.standard_normal((2, 8)), np.zeros(8), rng.standard_normal((8, 1)), np.zeros(1)]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    for step in range(1, 301):
        h = fastnn.dense(x, params[0], params[1], "tanh")
        z = fastnn.dense(h, params[2], params[3])
        loss, dz = fastnn.bce_with_logits(z, t)
        dh = fastnn.dot(dz, params[2].T) * fastnn.tanh_derivative(h)
        grads = [fastnn.dot(x.T, dh), dh.sum(axis=0), fastnn.dot(h.T, dz), dz.sum(axis=0)]
        for p, g, (m, v) in zip(params, grads, moments, strict=True):
            fastnn.adam_update(p, g, m, v, step, learning_rate=0.05)
    assert loss < 0.02
    assert ((fastnn.sigmoid(z) > 0.5) == t).all()
