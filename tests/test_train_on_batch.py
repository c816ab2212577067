"""Steps that are called one by one: what is worked out once is used again, as long as nothing has changed."""

import numpy as np
import pytest

import fastnn
from fastnn import batches, layers

OPTIMIZERS = {
    "sgd": lambda: fastnn.optimizers.SGD(0.1),
    "momentum": lambda: fastnn.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: fastnn.optimizers.RMSprop(0.01),
    "adam": lambda: fastnn.optimizers.Adam(0.01),
    "adamw": lambda: fastnn.optimizers.AdamW(0.01, weight_decay=0.1),
}
RNG = np.random.default_rng(0)
X = [RNG.standard_normal((n, 5)).astype(np.float32) for n in (8, 8, 3, 8, 1, 8)]
Y = [RNG.integers(0, 3, len(x)) for x in X]


def build(optimizer, dropout=True):
    hidden = [layers.Dense(7, "relu"), *([layers.Dropout(0.3)] if dropout else [])]
    model = fastnn.Sequential([layers.Input((5,)), *hidden, layers.Dense(3, "softmax")], seed=1)
    model.compile(OPTIMIZERS[optimizer](), "sparse_categorical_crossentropy", ["accuracy"])
    return model


def pair(optimizer):
    return build(optimizer), build(optimizer)


def step(fast, slow, x, y, **options):
    """A step of two equal models, of which one forgets all that it knows of earlier batches."""
    slow._programs.clear()
    assert fast.train_on_batch(x, y, **options) == slow.train_on_batch(x, y, **options)
    for a, b in zip(fast.get_weights(), slow.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_a_model_that_knows_nothing(optimizer):
    models = pair(optimizer)
    for _ in range(3):
        for x, y in zip(X, Y, strict=True):
            step(*models, x, y)
    assert models[0]._programs.known[1].programs, "nothing was kept"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_many_steps(optimizer):
    """More than step sizes are computed for at once."""
    fast, slow = pair(optimizer)
    for _ in range(600):
        fast.train_on_batch(X[0], Y[0])
    slow.fit(X[0], Y[0], batch_size=8, epochs=600, shuffle=False, verbose=0)
    for a, b in zip(fast.get_weights(), slow.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def changes(optimizer):
    """What a step depends on, and may be changed between two."""

    def settings(**values):
        def change(model):
            for name, value in values.items():
                assert hasattr(model.optimizer, name)
                setattr(model.optimizer, name, value)

        return change

    found = {
        "learning rate": settings(learning_rate=0.02),
        "and back": settings(learning_rate=0.01),
        "steps done": settings(iterations=1000),
        "no steps done": settings(iterations=0),
        "weights": lambda model: model.set_weights([2 * w for w in model.get_weights()]),
        "fit": lambda model: model.fit(X[1], Y[1], verbose=0),
        "predict": lambda model: model.predict(X[1]),
        "metrics": lambda model: setattr(model, "metrics", []),
        "threads": lambda model: setattr(model, "n_threads", 3),
        "optimizer": lambda model: setattr(model, "optimizer", OPTIMIZERS[optimizer]()),
        "compile": lambda model: model.compile(OPTIMIZERS[optimizer](), "sparse_categorical_crossentropy"),
    }
    own = {"momentum": {"momentum": 0.5}, "rmsprop": {"rho": 0.5}, "adam": {"beta_1": 0.5, "beta_2": 0.9}}
    own["adamw"] = {"weight_decay": 0.5}
    if optimizer in own:
        found["hyperparameters"] = settings(**own[optimizer])
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_changes_are_noticed(optimizer):
    fast, slow = pair(optimizer)
    for _ in range(2):
        step(fast, slow, X[0], Y[0])
    for change in changes(optimizer).values():
        change(fast)
        change(slow)
        for _ in range(2):
            step(fast, slow, X[0], Y[0])


def test_zeros_of_each_batch():
    """A first batch of nothing but zeros, to warm up with, tells nothing of those that follow."""
    model = fastnn.Sequential([layers.Input((200,)), layers.Dense(64, "relu"), layers.Dense(3, "softmax")], seed=1)
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = np.zeros((16, 200), np.float32), np.zeros(16, np.int64)
    model.train_on_batch(x, y)
    x[:, ::5] = 1
    model.train_on_batch(x, y)
    model.train_on_batch(np.ones_like(x), y)
    (programs,) = model._programs.known[1].programs.values()
    assert list(programs) == [False, True], "dense, then with zeros left out"
    assert programs[False] is not programs[True]


def test_an_interruption_while_step_sizes_are_computed(monkeypatch):
    fast, slow = pair("adam")
    for _ in range(2):
        step(fast, slow, X[0], Y[0])
    fast.optimizer.iterations = slow.optimizer.iterations = 1000
    rates = fast.optimizer.rates

    def interrupted(steps):
        rates(steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(fast.optimizer, "rates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fast.train_on_batch(X[0], Y[0])
    monkeypatch.undo()
    assert fast.optimizer.iterations == 1000
    for _ in range(3):
        step(fast, slow, X[0], Y[0])


def test_optimizers_of_ones_own():
    """Nobody knows what they depend on: nothing is kept."""

    class Own(fastnn.optimizers.SGD):
        factor = 1.0

        def rates(self, steps):
            return self.factor * super().rates(steps)

        def get_config(self):
            return {"factor": np.ones(3)}

    models = pair("sgd")
    for model in models:
        model.optimizer = Own(0.1)
    for factor in (1.0, 1.0, 0.5, 0.5):
        for model in models:
            model.optimizer.factor = factor
        step(*models, X[0], Y[0])


def test_arguments_are_checked_every_time():
    model, other = pair("adam")
    for _ in range(2):
        step(model, other, X[0], Y[0])
    before = model.get_weights()
    with pytest.raises(ValueError, match="class numbers from 0 to 2"):
        model.train_on_batch(X[0], Y[0] + 3)
    with pytest.raises(ValueError, match="class numbers from 0 to 2"):
        model.train_on_batch(X[0], Y[0] - 3)
    with pytest.raises(ValueError, match=r"one entry for each of the 8 samples"):
        model.train_on_batch(X[0], Y[0][:3])
    with pytest.raises(ValueError, match=r"x must have shape \(n, 5\)"):
        model.train_on_batch(X[0][:, :4], Y[0])
    with pytest.raises(ValueError, match="missing"):
        model.train_on_batch(X[0])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    step(model, other, X[0], Y[0], sample_weight=np.arange(8.0))
    step(model, other, X[0], Y[0], class_weight={0: 2.0, 1: 0.0})
    step(model, other, X[0], Y[0])
    for _ in range(3):
        step(model, other, X[0], Y[0][:, None])
    with pytest.raises(ValueError, match="class numbers from 0 to 2"):
        model.train_on_batch(X[0], Y[0][:, None] + 3)
    step(model, other, X[0].astype(np.float64), Y[0].astype(np.int8))
    step(model, other, X[0], Y[0])


def test_batches_alike_are_not_prepared_again(monkeypatch):
    model = build("adam")
    model.train_on_batch(X[0], Y[0])

    def prepare(*arguments):
        raise AssertionError("prepared again")

    monkeypatch.setattr(batches.Batches, "_prepare", prepare)
    for x in (X[0], X[1], X[3]):
        model.train_on_batch(x, Y[0])
    with pytest.raises(AssertionError, match="prepared again"):
        model.train_on_batch(X[2], Y[2])
