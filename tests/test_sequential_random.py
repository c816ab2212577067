"""Seeds, threads and dropout: what is random, and that it is the same bits every time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastnn
from fastnn import layers, optimizers

RNG = np.random.default_rng(8)
X = RNG.standard_normal((150, 37)).astype(np.float32)
LABELS = RNG.integers(0, 10, 150)


def trained(seed=1, n_threads=1, dtype="float32", dropout=0.3, batch_size=32, optimizer=None, callbacks=None):
    model = fastnn.Sequential(
        [
            layers.Input((37,)),
            layers.Dense(65, "relu"),
            layers.Dropout(dropout),
            layers.Dense(33, "tanh"),
            layers.Dense(10, "softmax"),
        ],
        seed=seed,
        n_threads=n_threads,
        dtype=dtype,
    )
    model.compile(optimizer or optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        X, LABELS, batch_size=batch_size, epochs=2, validation_split=0.1, callbacks=callbacks, verbose=0
    )
    return model, history.history


def assert_same(a, b):
    for u, v in zip(a[0].get_weights(), b[0].get_weights(), strict=True):
        np.testing.assert_array_equal(u, v)
    assert a[1] == b[1]
    np.testing.assert_array_equal(a[0].predict(X, verbose=0), b[0].predict(X, verbose=0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_size", [1, 32, 150])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_seed_gives_the_same_bits_on_any_threads(n_threads, batch_size, dtype):
    assert_same(
        trained(dtype=dtype, batch_size=batch_size), trained(n_threads=n_threads, dtype=dtype, batch_size=batch_size)
    )


def test_threads_do_not_change_other_optimizers():
    sgd = [trained(n_threads=n, optimizer=optimizers.SGD(0.1, momentum=0.9, nesterov=True)) for n in (1, 2)]
    assert_same(*sgd)


def test_models_may_train_in_several_threads_at_once():
    alone = [trained(seed, n_threads=2) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: trained(seed, n_threads=2), range(4)))
    for a, b in zip(alone, together, strict=True):
        assert_same(a, b)


def test_going_batch_by_batch_gives_the_same_bits():
    class Batches(fastnn.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    assert_same(trained(), trained(callbacks=[Batches()]))


def test_set_num_threads_does_not_change_results():
    before = fastnn.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            fastnn.set_num_threads(n)
            assert fastnn.get_num_threads() == n
            results.append((trained(n_threads=None), fastnn.matmul(X, X.T)))
    finally:
        fastnn.set_num_threads(before)
    assert_same(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_other_seeds_give_other_weights():
    weights = [trained(seed)[0].get_weights()[0] for seed in (1, 2, None, None)]
    assert len({w.tobytes() for w in weights}) == 4


def test_layers_of_one_model_start_apart():
    model = fastnn.Sequential([layers.Input((9,)), layers.Dense(9), layers.Dense(9)], seed=0)
    assert not np.array_equal(model.get_weights()[0], model.get_weights()[2])


def test_global_generator_is_left_alone():
    state = np.random.get_state()  # noqa: NPY002
    trained()
    trained(seed=None)
    after = np.random.get_state()  # noqa: NPY002
    assert state[0] == after[0]
    np.testing.assert_array_equal(state[1], after[1])
    assert state[2:] == after[2:]


# Dropout. With weights 0 and one row of ones, the gradient by the weights is the mask times 2 (0 - y).


def masks(rate, steps=1, width=4000, seed=0, n_threads=1, dtype="float64", layer_seed=None):
    model = fastnn.Sequential(
        [layers.Input((width,)), layers.Dropout(rate, seed=layer_seed), layers.Dense(1, use_bias=False)],
        dtype=dtype,
        seed=seed,
        n_threads=n_threads,
    )
    model.compile(optimizers.SGD(1.0), "mse")
    result = []
    for _ in range(steps):
        model.set_weights([np.zeros((width, 1), dtype)])
        model.train_on_batch(np.ones((1, width)), np.array([-0.5]))
        result.append(-model.get_weights()[0][:, 0])
    return np.array(result)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_fraction_and_scale(rate, dtype):
    mask = masks(rate, steps=10, dtype=dtype)
    kept = mask != 0
    np.testing.assert_allclose(mask[kept], 1 / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(1 - kept.mean() - rate) < 5 * deviation
    per_step = np.sqrt(rate * (1 - rate) / kept.shape[1])
    assert (np.abs(1 - kept.mean(axis=1) - rate) < 5 * per_step).all()


def test_dropout_masks_differ_from_step_to_step_and_are_uncorrelated():
    kept = (masks(0.5, steps=8) != 0) * 2 - 1
    correlation = kept @ kept.T / kept.shape[1]
    assert (np.abs(correlation - np.eye(8)) < 5 / np.sqrt(kept.shape[1])).all()
    for lag in (1, 2, 4, 8, 16):
        assert abs((kept[:, lag:] * kept[:, :-lag]).mean()) < 5 / np.sqrt(kept.size)


def test_dropout_masks_differ_from_epoch_to_epoch():
    width, kept = 1000, []

    class Reset(fastnn.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(self.model.get_weights()[0][:, 0] != 0)
            self.model.set_weights([np.zeros((width, 1))])

    model = fastnn.Sequential([layers.Input((width,)), layers.Dropout(0.5), layers.Dense(1, use_bias=False)], seed=0)
    model.compile(optimizers.SGD(1.0), "mse")
    model.set_weights([np.zeros((width, 1))])
    for epochs in (2, 1):
        model.fit(np.ones((1, width)), np.array([-0.5]), epochs=epochs, callbacks=[Reset()], verbose=0)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((kept[a] == kept[b]).mean() - 0.5) < 5 * 0.5 / np.sqrt(width)


def test_dropout_rows_differ():
    width = 2000
    model = fastnn.Sequential([layers.Input((width,)), layers.Dropout(0.5), layers.Dense(1, use_bias=False)], seed=0)
    model.compile(optimizers.SGD(1.0), "mse")
    model.set_weights([np.zeros((width, 1))])
    model.train_on_batch(np.ones((2, width)), np.array([-0.5, -0.5]))
    # The mean of two masks of 0 and 2: 0, 1 and 2 in proportion 1, 2, 1.
    counts = np.bincount(np.rint(-model.get_weights()[0][:, 0]).astype(int), minlength=3)
    assert (np.abs(counts - width * np.array([0.25, 0.5, 0.25])) < 5 * np.sqrt(width) / 2).all()


def test_dropout_follows_its_seeds():
    np.testing.assert_array_equal(masks(0.5, 3), masks(0.5, 3))
    np.testing.assert_array_equal(masks(0.5, 3), masks(0.5, 3, n_threads=2))
    np.testing.assert_array_equal(masks(0.5, 3) != 0, masks(0.5, 3, dtype="float32") != 0)
    assert not np.array_equal(masks(0.5, 3), masks(0.5, 3, seed=1))
    assert not np.array_equal(masks(0.5, 3, layer_seed=4), masks(0.5, 3, layer_seed=5))
    np.testing.assert_array_equal(masks(0.5, 3, layer_seed=4), masks(0.5, 3, layer_seed=4))


def test_two_dropout_layers_have_masks_of_their_own():
    width = 1000
    model = fastnn.Sequential(
        [layers.Input((width,)), layers.Dropout(0.5), layers.Dropout(0.5), layers.Dense(1, use_bias=False)], seed=0
    )
    model.compile(optimizers.SGD(1.0), "mse")
    model.set_weights([np.zeros((width, 1))])
    model.train_on_batch(np.ones((1, width)), np.array([-0.5]))
    kept = (model.get_weights()[0] != 0).mean()
    assert abs(kept - 0.25) < 5 * np.sqrt(0.25 * 0.75 / width)


def test_dropout_of_nothing():
    assert (masks(0.0, 2) == 1).all()


def test_dropout_is_off_outside_training():
    w = np.arange(1.0, 51).reshape(50, 1)
    model = fastnn.Sequential([layers.Input((50,)), layers.Dropout(0.5), layers.Dense(1, use_bias=False)], seed=0)
    model.compile("sgd", "mse")
    model.set_weights([w])
    x = np.ones((3, 50))
    np.testing.assert_allclose(model.predict(x, verbose=0), 1275)
    np.testing.assert_allclose(model.predict_on_batch(x), 1275)
    assert model.evaluate(x, np.full(3, 1275.0), verbose=0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid"])
def test_backward_uses_the_mask_of_forward(activation):
    # Output sum(mask * a * 1): the gradients by second weights and first biases agree in where they are 0.
    width = 200
    model = fastnn.Sequential(
        [layers.Input((1,)), layers.Dense(width, activation), layers.Dropout(0.4), layers.Dense(1, use_bias=False)],
        dtype="float64",
        seed=0,
    )
    model.compile(optimizers.SGD(1.0), "mse")
    before = [np.ones((1, width)), np.zeros(width), np.ones((width, 1))]
    model.set_weights(before)
    model.train_on_batch(np.array([[1.0]]), np.array([0.0]))
    _, db1, dw2 = (b - a for b, a in zip(before, model.get_weights(), strict=True))
    a = 1 / (1 + np.exp(-1)) if activation == "sigmoid" else 1.0
    slope = a * (1 - a) if activation == "sigmoid" else 1.0
    kept = dw2[:, 0] != 0
    assert 0.4 < kept.mean() < 0.8
    np.testing.assert_allclose(db1 * a, dw2[:, 0] * slope, rtol=1e-10, atol=1e-12)
    total = kept.sum() * a / 0.6
    np.testing.assert_allclose(dw2[kept, 0], 2 * total * a / 0.6, rtol=1e-10)
