"""Batch sources that fail or are interrupted, and single steps of a team: what is done is done, and counted."""

import signal
import threading
import time

import numpy as np
import pytest
import reference as ref
from test_sequential import LABELS, X, Y, assert_weights, model_and_reference
from test_sources import PAIRS, SIZE, WEIGHTS, Items, Loader, forever

import fastnn
from fastnn import layers, optimizers, training
from fastnn.cpu import executable, team


@pytest.fixture
def small_steps_in_teams(monkeypatch):
    """Give the smallest step to a team."""
    monkeypatch.setattr(executable, "ALONE", 0)
    monkeypatch.setattr(executable, "TOGETHER", 0)
    monkeypatch.setattr(executable, "AWAKE", 0)


# --- errors and interruptions ---------------------------------------------------------------------------------------

REFUSED = [
    (lambda: Loader(PAIRS), {"y": Y}, ValueError, r"y must not be given.*Loader"),
    (lambda: Loader(PAIRS), {"batch_size": 3}, ValueError, r"batch_size must not be given.*batch_size=3"),
    (lambda: Loader(PAIRS), {"sample_weight": WEIGHTS}, ValueError, "sample_weight must not be given"),
    (lambda: Loader(PAIRS), {"validation_split": 0.2}, ValueError, "validation_split must not be given"),
    (lambda: Loader(PAIRS), {"steps_per_epoch": 0}, ValueError, "steps_per_epoch.*0"),
    (lambda: Loader(PAIRS), {"steps_per_epoch": 1.5}, TypeError, r"steps_per_epoch.*1\.5"),
    (lambda: Loader(PAIRS), {"validation_freq": 0}, ValueError, "validation_freq.*0"),
    (lambda: Loader(PAIRS), {"validation_freq": [0]}, ValueError, "validation_freq.*0"),
    (
        lambda: Loader(PAIRS),
        {"validation_data": Loader(PAIRS), "validation_batch_size": 3},
        ValueError,
        "validation_batch_size",
    ),
    (lambda: iter(PAIRS), {"epochs": 2}, ValueError, r"x is an iterator.*2 times.*steps_per_epoch"),
    (
        lambda: Loader(PAIRS),
        {"validation_data": iter(PAIRS), "epochs": 2},
        ValueError,
        "validation_data.*validation_steps",
    ),
    (lambda: [x for x, _ in PAIRS], {}, ValueError, r"y is missing|not a rectangular"),
    (lambda: Loader([x for x, _ in PAIRS]), {}, ValueError, r"x must yield batches \(x, y\).*ndarray"),
    (lambda: Loader([(x,) for x, _ in PAIRS]), {}, ValueError, r"x must yield batches \(x, y\).*1 of them"),
    (lambda: Loader([(x, y, y, y) for x, y in PAIRS]), {}, ValueError, "4 of them"),
    (lambda: Loader([(x, None) for x, y in PAIRS]), {}, ValueError, "y is missing"),
    (lambda: Loader([(x[:, :4], y) for x, y in PAIRS]), {}, ValueError, r"\(n, 6\).*\(12, 4\)"),
    (lambda: Loader([(x, y[:, :1]) for x, y in PAIRS]), {}, ValueError, r"\(n, 2\).*\(12, 1\)"),
    (lambda: Loader([(x, y[1:]) for x, y in PAIRS]), {}, ValueError, r"12 samples.*\(11, 2\)"),
    (lambda: Loader([(x, y * np.nan) for x, y in PAIRS]), {}, ValueError, "y holds nan"),
    (lambda: Loader([(x, y, -np.ones(len(x))) for x, y in PAIRS]), {}, ValueError, "sample_weight.*-1"),
    (lambda: Loader([(x.astype(complex), y) for x, y in PAIRS]), {}, TypeError, "x.*complex128"),
    (lambda: Loader([(x.astype(object), y) for x, y in PAIRS]), {}, TypeError, "x.*object"),
]


@pytest.mark.parametrize(("make", "arguments", "error", "message"), REFUSED)
def test_refused(make, arguments, error, message):
    model, reference = model_and_reference()
    with pytest.raises(error, match=message):
        model.fit(make(), verbose=0, **arguments)
    assert_weights(model, reference, rtol=0)
    assert model.optimizer.iterations == 0


def test_refused_elsewhere():
    model, _ = model_and_reference()
    with pytest.raises(ValueError, match="y must not be given"):
        model.evaluate(Loader(PAIRS), Y)
    with pytest.raises(ValueError, match="batch_size must not be given"):
        model.predict(Loader(PAIRS), batch_size=3)
    with pytest.raises(ValueError, match=r"steps.*\b0\b"):
        model.predict(Loader(PAIRS), steps=0)
    with pytest.raises(RuntimeError, match="compile"):
        fastnn.Sequential([layers.Dense(2)]).fit(Loader(PAIRS))
    with pytest.raises(RuntimeError, match="compile"):
        fastnn.Sequential([layers.Dense(2)]).evaluate(Loader(PAIRS))


@pytest.mark.parametrize("bad", [3, -1, 2**62])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_class_numbers_are_checked_in_every_batch(bad, dtype):
    """Also in one that looks like those before."""
    if dtype == "int32" and bad > 2**31:
        bad = 2**30
    model, _ = model_and_reference("sparse", "softmax", 3)
    labels = LABELS[:10].astype(dtype)
    spoiled = labels.copy()
    spoiled[7] = bad
    with pytest.raises(ValueError, match=rf"class numbers from 0 to 2.*{bad}"):
        model.fit(iter([(X[:10], labels), (X[:10], labels), (X[:10], spoiled), (X[:10], labels)]), verbose=0)
    assert model.optimizer.iterations == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -0.5])
def test_values_are_checked_in_every_batch(bad):
    good = (Y[:10] > 0).astype(float)
    spoiled = good.copy()
    spoiled[7, 1] = bad
    for loss, last in (("bce", "sigmoid"), ("mse", "linear")):
        model, _ = model_and_reference(loss, last)
        items = iter([(X[:10], good), (X[:10], good), (X[:10], spoiled)])
        if loss == "mse" and np.isfinite(bad):
            model.fit(items, verbose=0)
            continue
        with pytest.raises(ValueError, match="y (holds|must lie)"):
            model.fit(items, verbose=0)
        assert model.optimizer.iterations == 2


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError("mine"), KeyboardInterrupt(), IndexError("far")])
@pytest.mark.parametrize("kind", [iter, Loader, Items])
def test_errors_of_a_source_pass_through(kind, error, capfd):
    """As they are; the weights are those of the batches before, and are counted."""

    def spoiled():
        yield from PAIRS[:3]
        raise error

    class Bad(Items):
        def __getitem__(self, i):
            if i == 3:
                raise error
            return super().__getitem__(i)

    model, reference = model_and_reference(optimizer=optimizers.Adam(0.01))
    source = {iter: spoiled(), Items: Bad(PAIRS)}.get(kind)
    if source is None:
        source = Loader(PAIRS)
        source.items = spoiled()
    with pytest.raises(type(error)) as raised:
        model.fit(source, shuffle=False, verbose=1)
    assert raised.value is error
    truth = ref.Adam(learning_rate=0.01)
    for x, y in PAIRS[:3]:
        reference.step(x, y, truth)
    assert_weights(model, reference)
    assert model.optimizer.iterations == 3
    model.fit(Loader(PAIRS), verbose=0)
    reference.fit(X, Y, truth, SIZE, 1)
    assert_weights(model, reference)
    assert "Epoch 1/1" in capfd.readouterr().err


def test_an_interrupted_generator_is_still_the_users():
    """It goes on with the next batch."""
    batches_left = forever(PAIRS)
    model, _ = model_and_reference()

    class Stop(fastnn.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(batches_left, callbacks=[Stop()], verbose=0)
    assert next(batches_left)[0] is PAIRS[2][0]


def test_the_learning_rate_may_change_between_batches():
    model, reference = model_and_reference()

    def halving():
        for pair in PAIRS * 60:
            yield pair
            model.optimizer.learning_rate *= 0.99

    model.fit(halving(), verbose=0)
    truth = ref.SGD(learning_rate=0.1)
    for pair in PAIRS * 60:
        reference.step(*pair, truth)
        truth.hyperparameters["learning_rate"] *= 0.99
    assert_weights(model, reference, rtol=1e-8)


def test_a_model_may_be_used_between_batches():
    """A callback that evaluates does not disturb the sums nor the weights."""

    class Use(fastnn.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.evaluate(X, Y)
            self.model.predict(iter([X]))

    results = []
    for hooks in ([], [Use()]):
        model, _ = model_and_reference()
        results.append(model.fit(Loader(PAIRS), epochs=2, callbacks=hooks, verbose=0).history)
    assert results[0] == results[1]


# --- single steps with a team ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [2, 3, 9])
def test_helpers_that_went_to_sleep_are_woken(threads):
    """Pauses of all lengths between steps, some as long as a helper stays awake: none is missed, none hangs."""
    alone, many = (model_and_reference()[0] for _ in range(2))
    many.n_threads, alone.n_threads = threads, 1
    pauses = [0.0, 1e-5, 1e-4, 2e-4, 3e-4, 1e-3, 5e-3] * 20
    result = []

    def train(model):
        for pause in pauses:
            end = time.perf_counter() + pause
            while time.perf_counter() < end:
                pass
            model.train_on_batch(X, Y)
        result.append(model.get_weights())

    worker = threading.Thread(target=train, args=(many,), daemon=True)
    worker.start()
    worker.join(60)
    assert not worker.is_alive()
    train(alone)
    for a, b in zip(*result, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer signal")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_at_any_time(threads):
    """The weights are those of as many batches as `iterations` tells, wherever the signal strikes."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for trial in range(12):
            model, reference = model_and_reference()
            model.n_threads = threads
            model.train_on_batch(*PAIRS[0])
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.003 + 0.00037 * trial)
                with pytest.raises(KeyboardInterrupt):
                    model.fit(forever([PAIRS[0]]), verbose=0)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            truth = ref.SGD(learning_rate=0.1)
            for _ in range(model.optimizer.iterations):
                reference.step(*PAIRS[0], truth)
            assert_weights(model, reference, rtol=1e-8)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("small_steps_in_teams")  # or there would be no scratch for the second thread
def test_an_interruption_before_the_step_withdraws_the_call():
    """Helpers that were called and got no job go to sleep again."""
    crew = team.Team(2)
    model = fastnn.Sequential([layers.Input((6,)), layers.Dense(2)], seed=0, n_threads=2)
    program = training.executable(model, "predict", 4, 4, training.Samples(model.network, X[:4]).x_feed)
    program.bind(x=X[:4], y=None, weight=None, index=None, out=np.empty((4, 2), "float32"))
    assert program.threads == 2
    program.run_record["stop"] = 1
    crew.lead(program._run_address)
    lead = crew._lead

    def interrupted(*_):
        raise KeyboardInterrupt

    crew._lead = interrupted
    with pytest.raises(KeyboardInterrupt):
        crew.lead(program._run_address)
    assert crew._called[0] == 0
    crew._lead = lead
    program._team[:] = 0
    crew.lead(program._run_address)
    deadline = time.monotonic() + 30
    while not crew._gates[0].locked() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert crew._gates[0].locked()  # it waits at its gate
