"""The reference itself, against finite differences, published vectors and closed forms."""

import math

import numpy as np
import pytest
import reference as ref

RNG = np.random.default_rng(7)

# Random123's kat_vectors, philox4x32 with 10 rounds.
PHILOX_KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), PHILOX_KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    assert ref.philox4x32(words(counter), words(key)) == words(answer)


def test_philox_counters_and_keys_give_different_words():
    seen = {ref.philox4x32((i, j, 0, 0), (k, 0)) for i in range(8) for j in range(8) for k in range(8)}
    assert len(seen) == 512


def test_matmul():
    a, b = RNG.standard_normal((5, 7)), RNG.standard_normal((7, 3))
    np.testing.assert_allclose(ref.matmul(a, b), a @ b, rtol=1e-13, atol=1e-14)
    assert ref.matmul([[1, 2]], [[3], [4]]).tolist() == [[11]]
    assert ref.matmul(np.ones((2, 0)), np.ones((0, 3))).tolist() == np.zeros((2, 3)).tolist()


@pytest.mark.parametrize("name", [name for name in ref.ACTIVATIONS if name != "softmax"])
def test_elementwise_derivatives(name):
    f = getattr(ref, name)
    x = RNG.standard_normal(50) * 3
    expected = np.array([ref.numeric_gradient(lambda v: float(f(v)), value) for value in x])
    np.testing.assert_allclose(getattr(ref, name + "_derivative")(f(x)), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(ref.ACTIVATIONS[name][1](f(x), np.full(50, 2.0)), 2 * expected, rtol=1e-8, atol=1e-9)


def test_softmax_vjp():
    x, g = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 4))
    expected = ref.numeric_gradient(lambda v: float((ref.softmax(v) * g).sum()), x)
    np.testing.assert_allclose(ref.softmax_vjp(ref.softmax(x), g), expected, rtol=1e-8, atol=1e-9)


def test_activation_values():
    x = [-1000.0, -2.0, 0.0, 2.0, 1000.0]
    assert ref.relu(x).tolist() == [0, 0, 0, 2, 1000]
    assert ref.leaky_relu(x).tolist() == [-200, -0.4, 0, 2, 1000]
    np.testing.assert_allclose(ref.sigmoid(x), [0, 1 / (1 + math.e**2), 0.5, 1 / (1 + math.e**-2), 1], rtol=1e-15)
    np.testing.assert_allclose(ref.softmax([[1000.0, 1000.0], [0, -1000]]), [[0.5, 0.5], [1, 0]], atol=1e-300)
    assert np.isnan([ref.relu(np.nan), ref.leaky_relu(np.nan), ref.sigmoid(np.nan), ref.tanh(np.nan)]).all()


LOSSES = {
    "mse": (ref.mse, RNG.standard_normal((6, 3)), RNG.standard_normal((6, 3))),
    "bce": (ref.bce, RNG.uniform(0.1, 0.9, (6, 3)), RNG.integers(0, 2, (6, 3))),
    "bce_logits": (ref.bce_logits, RNG.standard_normal((6, 3)), RNG.integers(0, 2, (6, 3))),
    "cce": (ref.cce, RNG.dirichlet(np.ones(3), 6), np.eye(3)[[0, 1, 2, 2, 1, 0]]),
    "cce_logits": (ref.cce_logits, RNG.standard_normal((6, 3)), np.eye(3)[[0, 1, 2, 2, 1, 0]]),
    "cce_logits, soft targets": (ref.cce_logits, RNG.standard_normal((6, 3)), RNG.uniform(size=(6, 3))),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradients(name, weighted):
    loss, y, t = LOSSES[name]
    w = RNG.uniform(0.5, 2, len(y)) if weighted else None
    expected = ref.numeric_gradient(lambda v: loss(v, t, w)[0], y)
    np.testing.assert_allclose(loss(y, t, w)[1], expected, rtol=1e-7, atol=1e-9)


def test_loss_values():
    assert ref.mse([[1, 2], [3, 4]], [[0, 0], [0, 0]])[0] == 7.5
    assert ref.mse([[1, 2], [3, 4]], [[0, 0], [0, 0]], [2, 0])[0] == 2.5
    assert ref.bce_logits([[0.0]], [[1]])[0] == pytest.approx(math.log(2))
    assert ref.bce_logits([[1000.0], [-1000.0]], [[1], [0]])[0] == 0
    assert ref.bce_logits([[1000.0], [-1000.0]], [[0], [1]])[0] == 1000
    assert ref.cce_logits(np.zeros((2, 4)), np.eye(4)[:2])[0] == pytest.approx(math.log(4))
    assert ref.cce_logits([[1000.0, 0]], [[0, 1]])[0] == 1000


def test_losses_from_logits_are_those_from_probabilities():
    z = RNG.standard_normal((6, 3))
    bits, labels = RNG.integers(0, 2, (6, 3)), np.eye(3)[RNG.integers(0, 3, 6)]
    assert ref.bce(ref.sigmoid(z), bits)[0] == pytest.approx(ref.bce_logits(z, bits)[0], rel=1e-12)
    assert ref.cce(ref.softmax(z), labels)[0] == pytest.approx(ref.cce_logits(z, labels)[0], rel=1e-12)


def test_sgd():
    p, _ = ref.sgd(1.0, 2.0, learning_rate=0.1)
    assert p == pytest.approx(0.8)
    p, v = ref.sgd(1.0, 2.0, 0.5, learning_rate=0.1, momentum=0.9)
    assert (p, v) == (pytest.approx(1.25), pytest.approx(0.25))
    p, v = ref.sgd(1.0, 2.0, 0.5, learning_rate=0.1, momentum=0.9, nesterov=True)
    assert (p, v) == (pytest.approx(1 + 0.9 * 0.25 - 0.2), pytest.approx(0.25))


def test_first_adam_step_is_the_learning_rate():
    p, m, v = ref.adam(1.0, 5.0, 0.0, 0.0, 1, learning_rate=0.01, epsilon=0)
    assert (p, m, v) == (pytest.approx(0.99), pytest.approx(0.5), pytest.approx(0.025))
    p, _, _ = ref.adam(1.0, 0.0, 0.0, 0.0, 1)
    assert p == 1


def test_adam_with_constant_gradient_keeps_its_pace():
    p, m, v = 0.0, 0.0, 0.0
    for step in range(1, 51):
        p, m, v = ref.adam(p, -3.0, m, v, step, learning_rate=0.1, epsilon=0)
        assert p == pytest.approx(0.1 * step)


def test_rmsprop():
    """Keras' formula by hand: epsilon below the root, the learning rate within the momentum."""
    p, v, m = ref.rmsprop(1.0, 2.0, 0.5, learning_rate=0.1, rho=0.75, epsilon=0.625)
    assert (p, v, m) == (pytest.approx(1 - 0.2 / np.sqrt(2)), pytest.approx(1.375), pytest.approx(0.2 / np.sqrt(2)))
    p, v, m = ref.rmsprop(1.0, 2.0, 0.5, 0.3, learning_rate=0.1, rho=0.75, momentum=0.5, epsilon=0.625)
    assert (p, v, m) == (pytest.approx(0.85 - 0.2 / np.sqrt(2)), 1.375, pytest.approx(0.15 + 0.2 / np.sqrt(2)))


def random_mlp(sizes, activations, loss, from_logits=False, bias=True):
    rng = np.random.default_rng(3)
    layers = [
        (rng.standard_normal((i, o)), rng.standard_normal(o) if bias else None, act)
        for i, o, act in zip(sizes[:-1], sizes[1:], activations, strict=True)
    ]
    return ref.MLP(layers, loss, from_logits)


def targets(loss, n, width):
    rng = np.random.default_rng(4)
    if loss == "mse":
        return rng.standard_normal((n, width))
    if loss == "bce":
        return rng.integers(0, 2, (n, width))
    labels = rng.integers(0, width, n)
    return labels if loss == "sparse" else np.eye(width)[labels]


CASES = [
    *[("mse", act, False) for act in ref.ACTIVATIONS],
    ("bce", "sigmoid", False),
    ("bce", "linear", True),
    ("cce", "softmax", False),
    ("cce", "linear", True),
    ("sparse", "softmax", False),
    ("sparse", "linear", True),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("loss", "last", "from_logits"), CASES)
def test_mlp_gradients(loss, last, from_logits, bias, weighted):
    mlp = random_mlp([4, 3, 2], ["tanh", last], loss, from_logits, bias)
    mlp.layers.insert(1, (None, None, "leaky_relu"))
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((5, 4)), targets(loss, 5, 2)
    w = rng.uniform(0.1, 2, 5) if weighted else None
    value, grads = mlp.loss_and_gradients(x, y, w)
    assert value == mlp.loss(x, y, w)
    params = mlp.params()
    assert [g.shape for g in grads] == [p.shape for p in params]
    for i, grad in enumerate(grads):

        def loss_at(p, i=i):
            mlp.set_params([*params[:i], p, *params[i + 1 :]])
            return mlp.loss(x, y, w)

        np.testing.assert_allclose(grad, ref.numeric_gradient(loss_at, params[i]), rtol=1e-6, atol=1e-8)


def test_mlp_fit_solves_least_squares():
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((40, 3)), np.array([[1.0], [-2.0], [0.5]])
    mlp = ref.MLP([(np.zeros((3, 1)), np.zeros(1), "linear")], "mse")
    history = mlp.fit(x, x @ w + 3, ref.SGD(learning_rate=0.1, momentum=0.5), batch_size=7, epochs=60)
    assert len(history) == 60
    np.testing.assert_allclose(mlp.params()[0], w, atol=1e-6)
    np.testing.assert_allclose(mlp.params()[1], [3], atol=1e-6)


def test_class_weights():
    weights = {0: 2.0, 2: 0.5}
    expected = [2.0, 1.0, 0.5, 2.0]
    assert ref.class_weights_to_sample_weights([0, 1, 2, 0], weights).tolist() == expected
    assert ref.class_weights_to_sample_weights([[0], [1], [2], [0]], weights).tolist() == expected
    assert ref.class_weights_to_sample_weights(np.eye(3)[[0, 1, 2, 0]], weights).tolist() == expected


def test_metrics():
    assert ref.binary_accuracy([[0.2], [0.7], [0.5]], [0, 0, 1]) == pytest.approx(1 / 3)
    assert ref.categorical_accuracy([[0.2, 0.8], [0.9, 0.1]], [[0, 1], [0, 1]]) == 0.5
    assert ref.sparse_categorical_accuracy([[0.2, 0.8], [0.9, 0.1]], [[1], [1]]) == 0.5
    assert ref.mean_absolute_error([[1.0], [3.0]], [0, 0]) == 2
    assert ref.mean_squared_error([[1.0], [3.0]], [0, 0]) == 5
