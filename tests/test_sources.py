"""Batch sources: generators, sequences, loaders; the same bits as arrays, errors, interruptions, changing sizes."""

import collections
import warnings

import numpy as np
import pytest
import reference as ref
from test_sequential import LABELS, X, Y, assert_weights, model_and_reference

import fastnn
from fastnn import batches, layers, optimizers, sources, training
from fastnn.cpu import executable

SIZE = 12
PAIRS = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, 50, SIZE)]  # the last has 2 rows
WEIGHTS = np.random.default_rng(3).uniform(0, 2, 50)


def weighted():
    return [(x, y, WEIGHTS[i * SIZE : (i + 1) * SIZE]) for i, (x, y) in enumerate(PAIRS)]


class Items:
    """Keras' protocol: an item is a batch."""

    def __init__(self, items):
        self.items, self.taken, self.ends = items, [], 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.taken.append(i)
        return self.items[i]

    def on_epoch_end(self):
        self.ends += 1


class Loader:
    """Begins anew with each `iter`, as torch's DataLoader."""

    def __init__(self, items, length=True):
        self.items, self.begun = items, 0
        if length:
            self.__class__ = type("Loader", (Loader,), {"__len__": lambda self: len(self.items)})

    def __iter__(self):
        self.begun += 1
        return iter(self.items)


def forever(items):
    while True:
        yield from items


KINDS = {
    "sequence": lambda items: (Items(items), {}),
    "loader": lambda items: (Loader(items), {}),
    "loader without a length": lambda items: (Loader(items, length=False), {}),
    "generator": lambda items: (forever(items), {"steps_per_epoch": len(items)}),
}


@pytest.fixture
def small_steps_in_teams(monkeypatch):
    """Give the smallest step to a team."""
    monkeypatch.setattr(executable, "ALONE", 0)
    monkeypatch.setattr(executable, "TOGETHER", 0)
    monkeypatch.setattr(executable, "AWAKE", 0)


# --- what a source is -----------------------------------------------------------------------------------------------


class Frame:
    """What numpy.asarray takes, whatever else it has."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise AssertionError

    def __array__(self, dtype=None, copy=None):
        return np.zeros((1, 2))


@pytest.mark.parametrize("value", [
    np.zeros(3), np.float32(1), [1], (1,), range(3), "ab", b"ab", {1: 2}, {1}, None, 3, 2.5, collections.deque([1]),
    memoryview(b"ab"), Frame(), object(), fastnn,
])  # fmt: skip
def test_arrays_are_no_sources(value):
    assert not sources.is_source(value)


@pytest.mark.parametrize("value", [Items([]), Loader([]), forever([]), iter([]), map(abs, []), zip([])])
def test_sources(value):
    assert sources.is_source(value)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "items", [PAIRS, weighted(), [list(pair) for pair in PAIRS]], ids=["pairs", "weights", "lists"]
)
def test_fit_is_the_reference(kind, items):
    model, reference = model_and_reference(optimizer=optimizers.Adam(0.01), metrics=["mae"])
    source, arguments = KINDS[kind](items)
    history = model.fit(source, epochs=3, shuffle=False, verbose=0, **arguments)
    weight = WEIGHTS if len(items[0]) == 3 else None
    expected = reference.fit(X, Y, ref.Adam(learning_rate=0.01), SIZE, 3, weight)
    assert_weights(model, reference)
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-10)
    assert len(history.history["mae"]) == 3
    assert history.params["steps"] == (None if kind == "loader without a length" else 5)
    assert model.optimizer.iterations == 15


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int32"])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "binary_crossentropy", "mse"])
def test_the_same_bits_as_arrays(loss, dtype, threads):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 200, (70, 6)).astype(dtype)
    y = rng.integers(0, 3, 70) if "sparse" in loss else rng.integers(0, 2, (70, 3)).astype("float32")
    last = {"sparse_categorical_crossentropy": "softmax", "binary_crossentropy": "sigmoid"}.get(loss, "linear")

    def build():
        stack = [layers.Rescaling(0.01), layers.Dense(17, "relu"), layers.Dropout(0.3), layers.Dense(3, last)]
        model = fastnn.Sequential(stack, seed=5, n_threads=threads)
        model.compile("adam", loss, ["mae"] if loss == "mse" else ["accuracy"])
        return model

    a, b = build(), build()
    parts = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 70, 16)]
    first = a.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, validation_data=(x[:9], y[:9]))
    second = b.fit(Loader(parts), epochs=3, verbose=0, validation_data=(x[:9], y[:9]))
    assert first.history == second.history
    for u, v in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(u, v)
    np.testing.assert_array_equal(a.predict(x, batch_size=16), b.predict(Loader([p[0] for p in parts])))
    assert a.evaluate(x, y, batch_size=16) == b.evaluate(Loader(parts))


def test_shuffling_a_sequence():
    """Each epoch takes the items in an order of its own, which the seed decides; other sources keep theirs."""
    orders = []
    for _ in range(2):
        model, _ = model_and_reference()
        items = Items(PAIRS * 3)
        model.fit(items, epochs=3, verbose=0)
        orders.append(items.taken)
        assert items.ends == 3
    assert orders[0] == orders[1]
    epochs = np.reshape(orders[0], (3, 15))
    assert (np.sort(epochs) == np.arange(15)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3
    model, _ = model_and_reference()
    items = Items(PAIRS)
    model.fit(items, epochs=2, shuffle=False, verbose=0)
    assert items.taken == [0, 1, 2, 3, 4] * 2


def test_class_weight():
    model, reference = model_and_reference("sparse", "softmax", 3)
    items = [(X[i : i + 16], LABELS[i : i + 16]) for i in range(0, 50, 16)]
    model.fit(Loader(items), epochs=2, class_weight={0: 2.0, 2: 0.25}, verbose=0)
    w = ref.class_weights_to_sample_weights(LABELS, {0: 2.0, 2: 0.25})
    reference.fit(X, LABELS, ref.SGD(learning_rate=0.1), 16, 2, w)
    assert_weights(model, reference)


def test_shapes_may_come_with_the_first_batch():
    model = fastnn.Sequential([layers.Dense(4, "tanh"), layers.Dense(2)], seed=0)
    twin = fastnn.Sequential([layers.Dense(4, "tanh"), layers.Dense(2)], seed=0)
    for m in (model, twin):
        m.compile("adam", "mse")
    a = model.fit(iter(PAIRS), verbose=0, validation_data=(X, Y)).history
    b = twin.fit(X, Y, batch_size=SIZE, shuffle=False, verbose=0, validation_data=(X, Y)).history
    assert a == b


def test_a_generator_may_fill_one_array_again_and_again():
    x, y = np.empty((10, 6)), np.empty((10, 2))

    def fill():
        for i in range(0, 50, 10):
            x[:], y[:] = X[i : i + 10], Y[i : i + 10]
            yield x, y

    model, reference = model_and_reference()
    model.fit(fill(), verbose=0)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), 10, 1)
    assert_weights(model, reference)


def test_batches_of_many_kinds():
    """Layouts, dtypes, lists, weights now and then: each batch is read as it is."""
    model, reference = model_and_reference()
    kinds = [
        lambda x, y: (x, y),
        lambda x, y: (np.asfortranarray(x), y),
        lambda x, y: (x.tolist(), y.tolist()),
        lambda x, y: (np.repeat(x, 2, axis=0)[::2], np.asfortranarray(y)),
        lambda x, y: (x.astype(">f8"), y),
        lambda x, y: (x, y, None),
        lambda x, y: (x, y, np.ones(len(x))),
        lambda x, y: (unaligned(x), unaligned(y)),
    ]
    model.fit((kind(*pair) for _ in range(2) for kind in kinds for pair in PAIRS), verbose=0)
    for _ in range(2 * len(kinds)):
        reference.fit(X, Y, ref.SGD(learning_rate=0.1), SIZE, 1)
    assert_weights(model, reference)


def unaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)
    found = memory[1:].view(array.dtype).reshape(array.shape)
    found[...] = array
    assert not found.flags.aligned
    return found


# --- steps ----------------------------------------------------------------------------------------------------------


def losses_of(model):
    """What a callback sees after each batch."""
    seen = []

    class Watch(fastnn.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, logs["loss"]))

    return seen, Watch()


@pytest.mark.parametrize("make", [Loader, lambda items: Items(items), forever])
def test_epochs_go_on_where_the_last_one_ended(make):
    """Three steps of five, then the other two and the first again."""
    model, reference = model_and_reference()
    seen, watch = losses_of(model)
    history = model.fit(make(PAIRS), epochs=3, steps_per_epoch=3, shuffle=False, callbacks=[watch], verbose=0)
    optimizer = ref.SGD(learning_rate=0.1)
    for i in (0, 1, 2, 3, 4, 0, 1, 2, 3):
        reference.step(*PAIRS[i], optimizer)
    assert_weights(model, reference)
    assert [batch for batch, _ in seen] == [0, 1, 2] * 3
    assert history.history["loss"] == [seen[i][1] for i in (2, 5, 8)]
    assert history.params["steps"] == 3


def test_arrays_with_steps():
    model, reference = model_and_reference()
    history = model.fit(X, Y, batch_size=SIZE, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0)
    for i in (0, 1, 2, 3, 4, 0):
        reference.step(*PAIRS[i], ref.SGD(learning_rate=0.1))
    assert_weights(model, reference)
    assert history.params["steps"] == 3


def test_an_iterator_that_ends_too_soon():
    """Training ends with a warning; what was seen counts."""
    model, reference = model_and_reference()
    with pytest.warns(RuntimeWarning, match="x ran out of batches after 2 of steps_per_epoch=3"):
        history = model.fit(iter(PAIRS), epochs=4, steps_per_epoch=3, verbose=0)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), SIZE, 1)
    assert_weights(model, reference)
    assert history.epoch == [0, 1]
    with pytest.warns(RuntimeWarning, match="after 0 of steps_per_epoch=5"):
        history = model.fit(iter(PAIRS), epochs=4, steps_per_epoch=5, verbose=0)
    assert history.epoch == [0]


def test_no_batches():
    model, _ = model_and_reference()
    for call in (model.fit, model.evaluate, model.predict):
        for empty in (iter([]), Items([]), Loader([])):
            with pytest.raises(ValueError, match="x yielded no batches"):
                call(empty, verbose=0)


def test_progress(capfd):
    model, _ = model_and_reference()
    for length in (True, False):
        model.fit(Loader(PAIRS, length), epochs=1, verbose=1)
        error = capfd.readouterr().err
        assert "Epoch 1/1" in error
        assert "loss=" in error
    model.fit(Loader(PAIRS), epochs=2, verbose=2)
    assert capfd.readouterr().out.count("Epoch") == 2


# --- validation, evaluate, predict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sequence", "loader", "generator"])
def test_validation_by_batches(kind):
    model, reference = model_and_reference()
    source, arguments = KINDS[kind](PAIRS)
    steps = {"validation_steps": arguments.get("steps_per_epoch")}
    history = model.fit(X, Y, shuffle=False, epochs=2, validation_data=source, verbose=0, **steps)
    for found in history.history["val_loss"]:
        reference.fit(X, Y, ref.SGD(learning_rate=0.1), 32, 1)
        assert found == pytest.approx(reference.loss(X, Y), rel=1e-10)
    if kind == "sequence":
        assert source.taken == [0, 1, 2, 3, 4] * 2
        assert source.ends == 2


@pytest.mark.parametrize(("freq", "expected"), [(1, 5), (2, 2), (3, 1), ([1, 2, 5], 3), (9, 0)])
def test_validation_freq(freq, expected):
    model, _ = model_and_reference()
    history = model.fit(X, Y, epochs=5, validation_data=(X, Y), validation_freq=freq, verbose=0).history
    assert len(history.get("val_loss", [])) == expected
    assert len(history["loss"]) == 5


def test_validation_of_some_samples():
    model, reference = model_and_reference()
    for arguments, n in (
        ({"validation_batch_size": 7}, 50),
        ({"validation_batch_size": 7, "validation_steps": 3}, 21),
        ({"validation_steps": 1}, 32),
        ({"validation_steps": 2, "batch_size": 11}, 22),
        ({"validation_steps": 99}, 50),
    ):
        history = model.fit(X, Y, epochs=1, shuffle=False, validation_data=(X, Y), verbose=0, **arguments)
        reference.fit(X, Y, ref.SGD(learning_rate=0.1), arguments.get("batch_size", 32), 1)
        assert history.history["val_loss"] == pytest.approx([reference.loss(X[:n], Y[:n])], rel=1e-10)


@pytest.mark.parametrize("items", [PAIRS, weighted()], ids=["pairs", "weights"])
def test_evaluate(items):
    model, reference = model_and_reference(metrics=["mae"])
    weight = WEIGHTS if len(items[0]) == 3 else None
    for source in (iter(items), Items(items), Loader(items)):
        loss, mae = model.evaluate(source)
        assert loss == pytest.approx(reference.loss(X, Y, weight), rel=1e-11)
        assert mae == pytest.approx(ref.mean_absolute_error(reference.predict(X), Y), rel=1e-11)
    n = 2 * SIZE
    part = reference.loss(X[:n], Y[:n], None if weight is None else weight[:n])
    assert model.evaluate(forever(items), steps=2)[0] == pytest.approx(part, rel=1e-11)
    assert model.evaluate(X, Y, batch_size=SIZE, steps=2, sample_weight=weight)[0] == pytest.approx(part, rel=1e-11)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x,), lambda x: [x, None], lambda x: (x, 1 * x), np.ndarray.tolist]
)
def test_predict(wrap):
    model, reference = model_and_reference()
    items = [wrap(x) for x, _ in PAIRS]
    for source in (iter(items), Items(items), Loader(items)):
        np.testing.assert_allclose(model.predict(source), reference.predict(X), rtol=1e-12)
    np.testing.assert_allclose(model.predict(forever(items), steps=2), reference.predict(X[: 2 * SIZE]), rtol=1e-12)
    assert model.predict(X, steps=1).shape == (32, 2)
    assert model.predict(X, batch_size=SIZE, steps=2).shape == (24, 2)


def test_predictions_keep_their_shape():
    model = fastnn.Sequential([layers.Rescaling(2.0)])
    x = np.arange(24.0).reshape(4, 3, 2)
    np.testing.assert_array_equal(model.predict(iter([x[:1], x[1:]])), 2 * x)


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_batches_of_any_size():
    """Sizes up and down: right results, one arena for those that fit, a bounded number of executables."""
    rng = np.random.default_rng(0)
    sizes = [3, 1, 50, *rng.integers(1, 51, 200).tolist()]
    model, reference = model_and_reference(optimizer=optimizers.Adam(0.001))
    truth = ref.Adam(learning_rate=0.001)
    model.fit(((X[:n], Y[:n]) for n in sizes), verbose=0)
    for n in sizes:
        reference.step(X[:n], Y[:n], truth)
    assert_weights(model, reference, rtol=1e-8)
    families = [kept for kept in model._programs._kept.values() if isinstance(kept, batches.Family)]
    assert len(families) == 1
    members = families[0]._members._kept
    assert len(members) <= batches.SIZES
    assert families[0].capacity == 50
    assert len({member.arena.ctypes.data for member in members.values()}) < 5


def test_sizes_do_not_thrash(monkeypatch):
    """Twenty sizes that come again and again are lowered once each, though a model keeps few programs."""
    lowered = []
    lower = training.Recipe.lower
    monkeypatch.setattr(training.Recipe, "lower", lambda *a: lowered.append(1) or lower(*a))
    model, _ = model_and_reference()
    model.fit(((X[:n], Y[:n]) for _ in range(10) for n in range(20, 0, -1)), verbose=0)
    assert len(lowered) == 20


def test_padding_of_a_smaller_batch_is_clean():
    """Rows that an earlier, larger batch left in the arena are not seen; infinities would spread."""
    model, reference = model_and_reference()
    big = np.full((40, 6), 1e300)
    model.predict(iter([big]))
    model.evaluate(iter([(big, np.zeros((40, 2)))]))
    batch = batches.Batches(model, "predict")
    batch.predict(big)
    for n in (39, 7, 1):
        np.testing.assert_allclose(batch.predict(X[:n]), reference.predict(X[:n]), rtol=1e-12)


# --- loaders ---------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_anew_for_each_pass():
    rows = sources.Rows((np.arange(20.0)[:, None], None), 6, "float64", np.random.default_rng(0).permutation)
    passes = [np.concatenate([x for x, _ in rows]).ravel() for _ in range(2)]
    assert len(rows) == 4
    assert (np.sort(passes) == np.arange(20)).all()
    assert (passes[0] != passes[1]).any()


def test_a_torch_loader():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=SIZE)
    model, reference = model_and_reference()
    history = model.fit(loader, epochs=2, verbose=0, validation_data=loader)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), SIZE, 2)
    assert_weights(model, reference)
    assert history.params["steps"] == 5
    np.testing.assert_allclose(model.predict(loader), reference.predict(X), rtol=1e-12)
