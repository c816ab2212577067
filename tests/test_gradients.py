"""Gradients of whole networks, recovered from one SGD step, against finite differences and the reference.

In float64 with learning rate 1 the gradient is the weights before less the weights after.
"""

import numpy as np
import pytest
import reference as ref

import fastnn
from fastnn import layers, losses, optimizers, records
from fastnn.cpu import executable, parts

LOSS_NAMES = {
    "mse": "mse",
    "bce": "binary_crossentropy",
    "cce": "categorical_crossentropy",
    "sparse": "sparse_categorical_crossentropy",
}
FROM_LOGITS = {
    "bce": losses.BinaryCrossentropy,
    "cce": losses.CategoricalCrossentropy,
    "sparse": losses.SparseCategoricalCrossentropy,
}
ACTIVATIONS = ["linear", "relu", "leaky_relu", "sigmoid", "tanh", "softmax"]
LAST = [
    *[("mse", act, False) for act in ACTIVATIONS],
    ("bce", "sigmoid", False),
    ("bce", "linear", True),
    ("cce", "softmax", False),
    ("cce", "linear", True),
    ("sparse", "softmax", False),
    ("sparse", "linear", True),
]


def targets(loss, n, width, rng):
    if loss == "mse":
        return rng.standard_normal((n, width))
    if loss == "bce":
        return rng.integers(0, 2, (n, width)).astype(float)
    labels = rng.integers(0, width, n)
    return labels if loss == "sparse" else np.eye(width)[labels]


def build(stack, loss, from_logits, input_shape, seed=0):
    """Model with random weights and its reference; `stack` lists (units or None, activation, bias)."""
    rng = np.random.default_rng(seed)
    model = fastnn.Sequential([layers.Input(input_shape)], dtype="float64", n_threads=2, seed=1)
    if len(input_shape) > 1:
        model.add(layers.Flatten())
    width, mirror = int(np.prod(input_shape)), []
    for units, act, bias in stack:
        if units is None:
            model.add(layers.Activation(act))
            mirror.append((None, None, act))
            continue
        model.add(layers.Dense(units, act, use_bias=bias))
        w = rng.standard_normal((width, units)) / np.sqrt(width)
        mirror.append((w, rng.standard_normal(units) * 0.5 if bias else None, act))
        width = units
    objective = FROM_LOGITS[loss](from_logits=True) if from_logits else LOSS_NAMES[loss]
    model.compile(optimizer=optimizers.SGD(learning_rate=1.0), loss=objective)
    reference = ref.MLP(mirror, loss, from_logits)
    model.set_weights(reference.params())
    return model, reference, width


def check(model, reference, x, y, sample_weight=None, class_weight=None):
    """One step's gradient against the reference and, along random directions, against evaluate."""
    before = model.get_weights()
    weights = sample_weight
    if class_weight is not None:
        weights = ref.class_weights_to_sample_weights(y, class_weight)
    loss, expected = reference.loss_and_gradients(x, y, weights)
    reported = model.train_on_batch(x, y, sample_weight=sample_weight, class_weight=class_weight)
    assert np.ravel(reported)[0] == pytest.approx(loss, rel=1e-11, abs=1e-13)
    gradient = [b - a for b, a in zip(before, model.get_weights(), strict=True)]
    for g, e in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12)

    rng = np.random.default_rng(9)
    h = 1e-5
    for _ in range(2):
        direction = [rng.standard_normal(w.shape) for w in before]
        ends = []
        for sign in (1, -1):
            model.set_weights([w + sign * h * d for w, d in zip(before, direction, strict=True)])
            ends.append(np.ravel(model.evaluate(x, y, sample_weight=weights, verbose=0))[0])
        slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def run(stack, loss, from_logits=False, input_shape=(5,), n=7, weighted=False, seed=0):
    model, reference, width = build(stack, loss, from_logits, input_shape, seed)
    rng = np.random.default_rng(seed + 100)
    x = rng.standard_normal((n, *input_shape))
    y = targets(loss, n, width, rng)
    check(model, reference, x, y, rng.uniform(0.2, 2, n) if weighted else None)


@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize(("loss", "last", "from_logits"), LAST)
def test_every_activation_and_loss(loss, last, from_logits, hidden):
    run([(7, hidden, True), (3, last, True)], loss, from_logits)


@pytest.mark.parametrize("n", [1, 2, 7, 33])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("loss", "last", "from_logits"), [case for case in LAST if case[1] != "tanh"])
def test_depths_and_batch_sizes(loss, last, from_logits, depth, n):
    hidden = [(17, "tanh", True), (9, "leaky_relu", True)][: depth - 1]
    run([*hidden, (3, last, True)], loss, from_logits, n=n, seed=n + depth)


@pytest.mark.parametrize("alone", [0, 10**9])  # operations of a step that one thread does
@pytest.mark.parametrize("n", [1, 8, 16, 32, 33, 64, 257])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_single_unit(n, weighted, alone, monkeypatch):
    """Its column is computed as a row, of which vectors and threads have pieces."""
    for limit in ("ALONE", "AWAKE", "TOGETHER"):
        monkeypatch.setattr(executable, limit, alone)
    run([(19, "tanh", True), (1, "sigmoid", True)], "bce", n=n, weighted=weighted)
    run([(1, "sigmoid", True), (5, "tanh", True), (1, "linear", True)], "mse", n=n, weighted=weighted)
    run([(1, "tanh", True), (1, "linear", False)], "mse", input_shape=(1,), n=n, weighted=weighted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [63, 64])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_in_parts_of_the_batch(threads, n, bias, monkeypatch):
    """Also of an odd number of rows, and where an update does for some layers."""
    found = []

    def split(program, dtype):
        original(program, dtype)
        found.extend(op.layer for op in program.ops if op.record is records.UPDATE)

    original = parts.split
    monkeypatch.setattr(parts, "LEAST", 0)
    monkeypatch.setattr(parts, "split", split)
    monkeypatch.setattr(executable, "ALONE", 0)
    before = fastnn.get_num_threads()
    fastnn.set_num_threads(threads)
    try:
        run([(7, "relu", bias), (8, "tanh", bias), (1, "sigmoid", bias)], "bce", n=n, weighted=True)
    finally:
        fastnn.set_num_threads(before)
    assert set(found) == {"dense to dense_1"}


@pytest.mark.parametrize(("loss", "last", "from_logits"), LAST)
def test_without_bias(loss, last, from_logits):
    run([(6, "sigmoid", False), (4, last, False)], loss, from_logits)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 31, 33, 65])
def test_widths_around_the_vector_width(width, weighted):
    run(
        [(width, "relu", True), (width, "tanh", True), (width, "linear", True)],
        "mse",
        input_shape=(width,),
        n=19,
        weighted=weighted,
    )


@pytest.mark.parametrize(("loss", "last", "from_logits"), LAST)
def test_sample_weight(loss, last, from_logits):
    run([(7, "tanh", True), (3, last, True)], loss, from_logits, n=33, weighted=True)


@pytest.mark.parametrize("last", ["sigmoid", "softmax", "relu"])
@pytest.mark.parametrize("input_shape", [(3, 4), (2, 3, 2)])
def test_flatten(input_shape, last):
    run([(5, "relu", True), (3, last, True)], "mse", input_shape=input_shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_layers(activation):
    run([(6, "linear", True), (None, activation, None), (3, "linear", True)], "mse")
    run([(None, activation, None), (6, "tanh", True), (3, "linear", True)], "mse")
    run([(6, "tanh", True), (3, "linear", True), (None, activation, None)], "mse")


@pytest.mark.parametrize(("loss", "last"), [("bce", "sigmoid"), ("cce", "softmax"), ("sparse", "softmax")])
def test_final_activation_layer_joins_its_loss(loss, last):
    run([(6, "tanh", True), (3, "linear", True), (None, last, None)], loss)


def test_activations_on_activations():
    run([(6, "tanh", True), (None, "relu", None), (None, "sigmoid", None), (2, "linear", False)], "mse")


@pytest.mark.parametrize(
    ("loss", "last", "classes"), [("bce", "sigmoid", 1), ("cce", "softmax", 3), ("sparse", "softmax", 3)]
)
def test_class_weight(loss, last, classes):
    model, reference, width = build([(6, "tanh", True), (classes, last, True)], loss, False, (5,))
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((21, 5)), targets(loss, 21, width, rng)
    check(model, reference, x, y, class_weight={0: 0.3, 1: 2.5})


def test_sparse_labels_as_a_column():
    model, reference, _ = build([(4, "softmax", True)], "sparse", False, (5,))
    rng = np.random.default_rng(3)
    check(model, reference, rng.standard_normal((8, 5)), rng.integers(0, 4, (8, 1)))


def test_zero_weights_leave_no_gradient():
    model, _, _ = build([(6, "tanh", True), (3, "softmax", True)], "sparse", False, (5,))
    before = model.get_weights()
    loss = model.train_on_batch(np.ones((4, 5)), np.array([0, 1, 2, 0]), sample_weight=np.zeros(4))
    assert np.ravel(loss)[0] == 0
    for b, a in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saturated_outputs_keep_their_gradient():
    model, reference, _ = build([(2, "sigmoid", True)], "bce", False, (1,))
    weights = [np.array([[500.0, -500.0]]), np.zeros(2)]
    model.set_weights(weights)
    reference.set_params(weights)
    check(model, reference, np.array([[1.0]]), np.array([[0.0, 1.0]]))


def test_activations_may_be_functions():
    activation = fastnn.activations.leaky_relu
    x = np.array([[-2.0], [3.0]])
    model = fastnn.Sequential([layers.Input((1,)), layers.Activation(activation)], dtype="float64")
    assert model.predict(x, verbose=0).tolist() == [[-0.4], [3.0]]
