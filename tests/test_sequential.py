"""Sequential's fit, evaluate and predict: Keras' behaviour, exact against the reference in float64."""

import numpy as np
import pytest
import reference as ref

import fastnn
from fastnn import layers, optimizers

RNG = np.random.default_rng(11)
X = RNG.standard_normal((50, 6))
Y = RNG.standard_normal((50, 2))
LABELS = RNG.integers(0, 3, 50)


def model_and_reference(loss="mse", last="linear", units=2, optimizer=None, metrics=None, dtype="float64"):
    rng = np.random.default_rng(5)
    mirror = [
        (rng.standard_normal((6, 9)) * 0.5, rng.standard_normal(9) * 0.1, "tanh"),
        (rng.standard_normal((9, units)) * 0.5, rng.standard_normal(units) * 0.1, last),
    ]
    model = fastnn.Sequential(
        [layers.Input((6,)), layers.Dense(9, "tanh"), layers.Dense(units, last)], dtype=dtype, seed=0
    )
    name = {"sparse": "sparse_categorical_crossentropy", "bce": "binary_crossentropy"}.get(loss, loss)
    model.compile(optimizer=optimizer or optimizers.SGD(0.1), loss=name, metrics=metrics)
    reference = ref.MLP(mirror, loss)
    model.set_weights(reference.params())
    return model, reference


def assert_weights(model, reference, rtol=1e-10):
    for actual, expected in zip(model.get_weights(), reference.params(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-12)


OPTIMIZERS = {
    "SGD": (lambda: optimizers.SGD(0.1), lambda: ref.SGD(learning_rate=0.1)),
    "momentum": (lambda: optimizers.SGD(0.01, momentum=0.8), lambda: ref.SGD(learning_rate=0.01, momentum=0.8)),
    "Nesterov": (
        lambda: optimizers.SGD(0.01, momentum=0.8, nesterov=True),
        lambda: ref.SGD(learning_rate=0.01, momentum=0.8, nesterov=True),
    ),
    "Adam": (lambda: optimizers.Adam(0.01), lambda: ref.Adam(learning_rate=0.01)),
    "Adam, all set": (
        lambda: optimizers.Adam(0.02, beta_1=0.8, beta_2=0.95, epsilon=1e-4),
        lambda: ref.Adam(learning_rate=0.02, beta_1=0.8, beta_2=0.95, epsilon=1e-4),
    ),
    "AdamW": (lambda: optimizers.AdamW(0.01), lambda: ref.Adam(learning_rate=0.01, weight_decay=0.004)),
    "AdamW, all set": (
        lambda: optimizers.AdamW(0.02, weight_decay=0.5, beta_1=0.8, beta_2=0.95, epsilon=1e-4),
        lambda: ref.Adam(learning_rate=0.02, weight_decay=0.5, beta_1=0.8, beta_2=0.95, epsilon=1e-4),
    ),
    "'adamw'": (lambda: "adamw", lambda: ref.Adam(learning_rate=0.001, weight_decay=0.004)),
    "RMSprop": (lambda: optimizers.RMSprop(0.01), lambda: ref.RMSprop(learning_rate=0.01)),
    "RMSprop, all set": (
        lambda: optimizers.RMSprop(0.01, rho=0.8, momentum=0.7, epsilon=1e-3),
        lambda: ref.RMSprop(learning_rate=0.01, rho=0.8, momentum=0.7, epsilon=1e-3),
    ),
    "'rmsprop'": (lambda: "rmsprop", lambda: ref.RMSprop(learning_rate=0.001)),
    "'RMSprop'": (lambda: "RMSprop", lambda: ref.RMSprop(learning_rate=0.001)),
    "'sgd'": (lambda: "sgd", lambda: ref.SGD(learning_rate=0.01)),
    "'adam'": (lambda: "adam", lambda: ref.Adam(learning_rate=0.001)),
}


@pytest.mark.parametrize("batch_size", [1, 16, 50, 64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_unshuffled_is_the_reference(name, batch_size):
    ours, truth = (make() for make in OPTIMIZERS[name])
    model, reference = model_and_reference(optimizer=ours)
    history = model.fit(X, Y, batch_size=batch_size, epochs=4, shuffle=False, verbose=0)
    expected = reference.fit(X, Y, truth, batch_size, epochs=4)
    assert_weights(model, reference)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-10)


@pytest.mark.parametrize(("loss", "last", "units", "y"), [
    ("sparse", "softmax", 3, LABELS),
    ("bce", "sigmoid", 1, (LABELS == 1).astype(int)),
    ("mse", "relu", 2, Y),
])  # fmt: skip
def test_fit_of_other_losses_with_sample_weight(loss, last, units, y):
    model, reference = model_and_reference(loss, last, units, optimizers.Adam(0.01))
    w = np.random.default_rng(1).uniform(0, 2, 50)
    history = model.fit(X, y, batch_size=12, epochs=3, shuffle=False, sample_weight=w, verbose=0)
    expected = reference.fit(X, y, ref.Adam(learning_rate=0.01), 12, 3, w)
    assert_weights(model, reference)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-10)


def test_fit_with_class_weight():
    model, reference = model_and_reference("sparse", "softmax", 3)
    model.fit(X, LABELS, batch_size=16, epochs=2, shuffle=False, class_weight={0: 2.0, 2: 0.25}, verbose=0)
    w = ref.class_weights_to_sample_weights(LABELS, {0: 2.0, 2: 0.25})
    reference.fit(X, LABELS, ref.SGD(learning_rate=0.1), 16, 2, w)
    assert_weights(model, reference)


def test_optimizer_state_lasts_from_fit_to_fit():
    model, reference = model_and_reference(optimizer=optimizers.Adam(0.01))
    truth = ref.Adam(learning_rate=0.01)
    for batch_size in (16, 50, 7):
        model.fit(X, Y, batch_size=batch_size, epochs=2, shuffle=False, verbose=0)
        reference.fit(X, Y, truth, batch_size, 2)
        assert_weights(model, reference)


def test_default_batch_size_is_32():
    model, reference = model_and_reference()
    history = model.fit(X, Y, shuffle=False, verbose=0)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), 32, 1)
    assert_weights(model, reference)
    assert history.params["steps"] == 2


def test_float32_stays_near_the_reference():
    model, reference = model_and_reference(dtype="float32")
    model.fit(X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), 16, 3)
    for actual, expected in zip(model.get_weights(), reference.params(), strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_history():
    model, _ = model_and_reference(metrics=["mae", "mean_squared_error"])
    history = model.fit(X, Y, epochs=3, validation_data=(X[:9], Y[:9]), verbose=0)
    names = {"loss", "mae", "mean_squared_error"}
    assert set(history.history) == names | {"val_" + name for name in names}
    assert all(len(values) == 3 for values in history.history.values())
    assert all(isinstance(v, float) for values in history.history.values() for v in values)
    assert history.epoch == [0, 1, 2]
    assert history.params["epochs"] == 3
    assert isinstance(history, fastnn.callbacks.History)
    np.testing.assert_allclose(history.history["val_loss"], history.history["val_mean_squared_error"], rtol=1e-10)


def test_initial_epoch():
    model, reference = model_and_reference()
    history = model.fit(X, Y, epochs=5, initial_epoch=3, shuffle=False, verbose=0)
    assert history.epoch == [3, 4]
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), 32, 2)
    assert_weights(model, reference)


def test_validation_split_takes_the_last_rows():
    model, reference = model_and_reference()
    history = model.fit(X, Y, batch_size=16, epochs=3, validation_split=0.2, shuffle=False, verbose=0)
    expected = []
    optimizer = ref.SGD(learning_rate=0.1)
    for _ in range(3):
        reference.fit(X[:40], Y[:40], optimizer, 16, 1)
        expected.append(reference.loss(X[40:], Y[40:]))
    assert_weights(model, reference)
    np.testing.assert_allclose(history.history["val_loss"], expected, rtol=1e-10)


def test_validation_split_is_not_shuffled():
    model, reference = model_and_reference()
    history = model.fit(X, Y, batch_size=50, epochs=1, validation_split=0.3, shuffle=True, verbose=0)
    reference.fit(X[:35], Y[:35], ref.SGD(learning_rate=0.1), 50, 1)
    assert_weights(model, reference)
    np.testing.assert_allclose(history.history["val_loss"], [reference.loss(X[35:], Y[35:])], rtol=1e-10)


def test_validation_data_with_weights():
    model, reference = model_and_reference()
    w = np.linspace(0, 2, 20)
    history = model.fit(X, Y, shuffle=False, validation_data=(X[:20] + 1, Y[:20], w), verbose=0)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), 32, 1)
    np.testing.assert_allclose(history.history["val_loss"], [reference.loss(X[:20] + 1, Y[:20], w)], rtol=1e-10)


def test_validation_changes_nothing_in_training():
    plain, _ = model_and_reference()
    plain.fit(X, Y, epochs=3, verbose=0)
    watched, _ = model_and_reference()
    watched.fit(X, Y, epochs=3, validation_data=(X[:7], Y[:7]), verbose=0)
    for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shuffling_visits_every_row_once_an_epoch():
    # The prediction stays 0, so an epoch's loss is the mean of y**2, whatever the order of the rows.
    model = fastnn.Sequential([layers.Input((1,)), layers.Dense(1, use_bias=False)], dtype="float64", seed=4)
    model.compile(optimizers.SGD(1e-300), "mse")
    model.set_weights([np.zeros((1, 1))])
    y = 2.0 ** (np.arange(20) / 2)
    seen = []

    class Watch(fastnn.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    history = model.fit(np.ones(20), y, batch_size=1, epochs=3, callbacks=[Watch()], verbose=0)
    np.testing.assert_allclose(history.history["loss"], (y * y).mean(), rtol=1e-12)
    counts = np.arange(1, 21)
    orders = []
    for epoch in np.reshape(seen, (3, 20)):
        totals = epoch * counts  # the logs hold the mean of the epoch so far
        orders.append(tuple(np.rint(np.log2(np.diff(totals, prepend=0))).astype(int)))
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(orders)) == 3


# evaluate, predict, train_on_batch


@pytest.mark.parametrize("batch_size", [None, 1, 7, 50, 1000])
def test_evaluate(batch_size):
    model, reference = model_and_reference(metrics=["mse", "mae"])
    p = reference.predict(X)
    expected = [ref.mse(p, Y)[0], ref.mean_squared_error(p, Y), ref.mean_absolute_error(p, Y)]
    assert model.evaluate(X, Y, batch_size=batch_size, verbose=0) == pytest.approx(expected, rel=1e-11)
    named = model.evaluate(X, Y, batch_size=batch_size, verbose=0, return_dict=True)
    assert named == pytest.approx(dict(zip(["loss", "mse", "mae"], expected, strict=True)), rel=1e-11)
    assert_weights(model, reference, rtol=0)


def test_evaluate_without_metrics_is_a_number():
    model, reference = model_and_reference()
    loss = model.evaluate(X, Y, verbose=0)
    assert isinstance(loss, float)
    assert loss == pytest.approx(reference.loss(X, Y), rel=1e-11)


def test_evaluate_weights_the_loss_and_not_the_metrics():
    model, reference = model_and_reference(metrics=["mae"])
    w = np.linspace(0, 3, 50)
    loss, mae = model.evaluate(X, Y, sample_weight=w, batch_size=16, verbose=0)
    assert loss == pytest.approx(reference.loss(X, Y, w), rel=1e-11)
    assert mae == pytest.approx(ref.mean_absolute_error(reference.predict(X), Y), rel=1e-11)


ONE_HOT = ref.one_hot(LABELS, 3)
BITS = (LABELS > 0).astype(int)


@pytest.mark.parametrize(("loss", "last", "units", "y", "metric", "accuracy"), [
    ("sparse", "softmax", 3, LABELS, "accuracy", ref.sparse_categorical_accuracy),
    ("sparse", "softmax", 3, LABELS[:, None], "accuracy", ref.sparse_categorical_accuracy),
    ("sparse", "softmax", 3, LABELS, "sparse_categorical_accuracy", ref.sparse_categorical_accuracy),
    ("categorical_crossentropy", "softmax", 3, ONE_HOT, "accuracy", ref.categorical_accuracy),
    ("categorical_crossentropy", "softmax", 3, ONE_HOT, "categorical_accuracy", ref.categorical_accuracy),
    ("bce", "sigmoid", 1, BITS, "accuracy", ref.binary_accuracy),
    ("bce", "sigmoid", 1, BITS[:, None], "binary_accuracy", ref.binary_accuracy),
    ("bce", "sigmoid", 3, ONE_HOT, "binary_accuracy", ref.binary_accuracy),
])  # fmt: skip
def test_accuracy(loss, last, units, y, metric, accuracy):
    model, reference = model_and_reference(loss, last, units, metrics=[metric])
    expected = accuracy(reference.predict(X), y)
    assert 0 < expected < 1
    assert model.evaluate(X, y, verbose=0)[1] == pytest.approx(expected)
    history = model.fit(X, y, epochs=1, batch_size=50, shuffle=False, validation_data=(X, y), verbose=0)
    assert history.history[metric] == pytest.approx([expected])
    assert history.history["val_" + metric] == pytest.approx([accuracy(model.predict(X, verbose=0), y)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 50])
def test_predict(n, dtype):
    model, reference = model_and_reference("sparse", "softmax", 3, dtype=dtype)
    tolerance = {"rtol": 1e-12} if dtype == "float64" else {"rtol": 1e-4}
    expected = reference.predict(X[:n])
    for batch_size in (None, 1, 16, 100):
        result = model.predict(X[:n], batch_size=batch_size, verbose=0)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, **tolerance)
    np.testing.assert_allclose(model.predict_on_batch(X[:n]), expected, **tolerance)


def test_predictions_are_the_callers_own():
    model, _ = model_and_reference()
    first = model.predict(X, verbose=0)
    kept = first.copy()
    second = model.predict(X + 1, verbose=0)
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    first[...] = 0
    np.testing.assert_array_equal(model.predict(X, verbose=0), kept)


def test_predict_needs_no_compile():
    model = fastnn.Sequential([layers.Input((2,)), layers.Dense(3)], dtype="float64", seed=1)
    w, b = model.get_weights()
    np.testing.assert_allclose(model.predict(X[:, :2], verbose=0), X[:, :2] @ w + b, rtol=1e-12, atol=1e-14)


def test_train_on_batch():
    model, reference = model_and_reference(metrics=["mae"])
    before = reference.predict(X)
    expected = reference.step(X, Y, ref.SGD(learning_rate=0.1))
    loss, mae = model.train_on_batch(X, Y)
    assert loss == pytest.approx(expected, rel=1e-11)
    assert mae == pytest.approx(ref.mean_absolute_error(before, Y), rel=1e-11)
    assert_weights(model, reference)
    assert set(model.train_on_batch(X, Y, return_dict=True)) == {"loss", "mae"}


# The model's own description


def test_summary():
    model, _ = model_and_reference()
    lines = []
    model.summary(print_fn=lines.append)
    text = "\n".join(lines)
    for layer in model.layers:
        assert layer.name in text
    for words in ("Dense", ", 9)", ", 2)", "63", "20", "83"):
        assert words in text
    assert model.count_params() == 83


def test_get_weights_are_copies_in_keras_order():
    model, _ = model_and_reference()
    weights = model.get_weights()
    assert [w.shape for w in weights] == [(6, 9), (9,), (9, 2), (2,)]
    weights[0][...] = 7
    assert not (model.get_weights()[0] == 7).any()
    doubled = [2 * w for w in model.get_weights()]
    model.set_weights(doubled)
    for a, b in zip(model.get_weights(), doubled, strict=True):
        np.testing.assert_array_equal(a, b)


def test_initial_weights():
    model = fastnn.Sequential([layers.Input((300,)), layers.Dense(200)], seed=3)
    w, b = model.get_weights()
    limit = np.sqrt(6 / 500)
    assert w.dtype == np.float32
    assert 0.98 * limit < np.abs(w).max() <= limit * (1 + 1e-6)
    assert w.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert abs(w.mean()) < 5 * limit / np.sqrt(3 * w.size)
    assert (b == 0).all()


def test_add_and_pop():
    model = fastnn.Sequential(seed=0)
    assert model.layers == []
    for layer in (layers.Input((3,)), layers.Dense(4), layers.Dense(5)):
        model.add(layer)
    assert [w.shape for w in model.get_weights()] == [(3, 4), (4,), (4, 5), (5,)]
    model.pop()
    assert model.predict(np.ones((2, 3)), verbose=0).shape == (2, 4)


def test_shapes_may_come_with_the_data():
    model = fastnn.Sequential([layers.Dense(4, "tanh"), layers.Dense(2)], seed=0)
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=1, verbose=0)
    assert [w.shape for w in model.get_weights()] == [(6, 4), (4,), (4, 2), (2,)]


def test_models_namespace_and_layer_names():
    assert fastnn.models.Sequential is fastnn.Sequential
    model = fastnn.Sequential([layers.Input((3,)), layers.Dense(2, name="first"), layers.Dense(2), layers.Dense(2)])
    names = [layer.name for layer in model.layers if isinstance(layer, layers.Dense)]
    assert names[0] == "first"
    assert len(set(names)) == 3


def test_verbose_0_is_silent(capfd):
    model, _ = model_and_reference(metrics=["mae"])
    model.fit(X, Y, epochs=2, validation_split=0.2, verbose=0)
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert capfd.readouterr() == ("", "")


def test_verbose_1_names_the_epoch_and_the_loss(capfd):
    model, _ = model_and_reference()
    model.fit(X, Y, epochs=2, verbose=1)
    text = "".join(capfd.readouterr())
    assert "2/2" in text
    assert "loss" in text


def test_predicting_again():
    """The second array of a layout takes a shorter way, to the same bits, and checks what the first one checked."""
    model = fastnn.Sequential([layers.Input((5,)), layers.Dense(7, "relu"), layers.Dense(3, "softmax")], seed=1)
    rng = np.random.default_rng(0)
    for shape in ((1, 5), (4, 5), (300, 5)):
        x, other = rng.normal(size=(2, *shape)).astype(np.float32)
        first = model.predict(x)
        again = model.predict(x)
        assert again is not first
        np.testing.assert_array_equal(again, first)
        np.testing.assert_array_equal(model.predict_on_batch(x), model.predict_on_batch(x))
        assert np.array_equal(model.predict(other), np.concatenate([model.predict(row[None]) for row in other]))
        np.testing.assert_array_equal(model.predict(x.astype(np.float64)), model.predict(x.astype(np.float64)))
    # Of the same shape, but other strides, byte order or alignment.
    x = rng.normal(size=(4, 5)).astype(np.float32)
    expected = model.predict(x)
    shifted = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x.astype(">f4"), shifted):
        for _ in range(2):
            np.testing.assert_array_equal(model.predict(same), expected)
    # What it computes with are the weights of now.
    model.set_weights([2 * w for w in model.get_weights()])
    assert not np.array_equal(model.predict(x), expected)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 5\), got \(4, 6\)"):
        model.predict(np.zeros((4, 6), np.float32))
    with pytest.raises(ValueError, match="batch_size"):
        model.predict(x, batch_size=0)
    with pytest.raises(TypeError, match="batch_size"):
        model.predict(x, batch_size=True)
    model.add(layers.Dense(2))
    assert model.predict(x).shape == (4, 2)
