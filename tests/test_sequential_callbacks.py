"""Callbacks: the order of calls, and each callback."""

import numpy as np
import pytest
import reference as ref

import fastnn
from fastnn import layers, optimizers
from fastnn.callbacks import Callback, EarlyStopping, LearningRateScheduler, ModelCheckpoint

RNG = np.random.default_rng(2)
X, Y = RNG.standard_normal((20, 3)), RNG.standard_normal((20, 1))


def small_model():
    model = fastnn.Sequential([layers.Input((3,)), layers.Dense(1)], dtype="float64", seed=0)
    model.compile(optimizers.SGD(0.05), "mse")
    return model


class Recorder(Callback):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("train begin")

    def on_train_end(self, logs=None):
        self.calls.append("train end")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch begin", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch end", epoch, set(logs)))

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("batch begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch end", batch, set(logs)))


def test_order_of_calls():
    recorder = Recorder()
    model = small_model()
    model.fit(X, Y, batch_size=12, epochs=2, validation_split=0.1, callbacks=[recorder], verbose=0)
    one_epoch = [call for b in (0, 1) for call in (("batch begin", b), ("batch end", b, {"loss"}))]
    expected = ["train begin"]
    for epoch in (0, 1):
        expected += [("epoch begin", epoch), *one_epoch, ("epoch end", epoch, {"loss", "val_loss"})]
    assert recorder.calls == [*expected, "train end"]
    assert recorder.model is model


def test_callbacks_without_batch_hooks_see_the_same_losses():
    losses = []

    class Epochs(Callback):
        def on_epoch_end(self, epoch, logs=None):
            losses.append(logs["loss"])

    plain = small_model().fit(X, Y, epochs=3, verbose=0)
    watched = small_model().fit(X, Y, epochs=3, callbacks=[Epochs(), Recorder()], verbose=0)
    assert losses == plain.history["loss"] == watched.history["loss"]


def test_batch_logs_are_running_means():
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    history = small_model().fit(X, Y, batch_size=8, callbacks=[Watch()], verbose=0)
    assert len(seen) == 3
    assert seen[-1] == pytest.approx(history.history["loss"][0], rel=1e-12)


def test_weights_may_be_read_and_set_between_batches():
    class Zero(Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert np.any(self.model.get_weights()[0] != 0)
            self.model.set_weights([np.zeros((3, 1)), np.zeros(1)])

    model = small_model()
    history = model.fit(X, Y, batch_size=5, epochs=2, callbacks=[Zero()], verbose=0)
    assert history.history["loss"][1] == pytest.approx((Y**2).mean(), rel=1e-12)
    assert (model.get_weights()[0] == 0).all()


def test_stop_training_ends_after_the_epoch():
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model = small_model()
    assert model.fit(X, Y, epochs=9, callbacks=[Stop()], verbose=0).epoch == [0, 1]
    assert model.fit(X, Y, epochs=3, verbose=0).epoch == [0, 1, 2]


def test_errors_in_callbacks_reach_the_caller():
    class Fails(Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyError("mine")

    model = small_model()
    with pytest.raises(KeyError, match="mine"):
        model.fit(X, Y, callbacks=[Fails()], verbose=0)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


def test_interruption_leaves_the_last_finished_batch():
    class Interrupt(Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    model, twin = small_model(), small_model()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=4, epochs=3, shuffle=False, callbacks=[Interrupt()], verbose=0)
    twin.fit(X[:12], Y[:12], batch_size=4, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], twin.get_weights()[0])
    for m in (model, twin):
        m.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], twin.get_weights()[0])


def test_learning_rate_may_change_between_epochs():
    class Halve(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.1 / 2**epoch

    model = small_model()
    reference = ref.MLP([(*model.get_weights(), "linear")], "mse")
    model.fit(X, Y, batch_size=8, epochs=4, shuffle=False, callbacks=[Halve()], verbose=0)
    for epoch in range(4):
        reference.fit(X, Y, ref.SGD(learning_rate=0.1 / 2**epoch), batch_size=8)
    np.testing.assert_allclose(model.get_weights()[0], reference.params()[0], rtol=1e-10)


def drive(callback, values, monitor="val_loss"):
    """Calls the hooks with a scripted series; weights of epoch e are all e. Returns (model, epochs run)."""
    model = small_model()
    model.stop_training = False
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.set_weights([np.full_like(w, epoch) for w in model.get_weights()])
        callback.on_epoch_end(epoch, {monitor: value, "loss": 0.0})
        if model.stop_training:
            break
    callback.on_train_end()
    return model, epoch + 1


@pytest.mark.parametrize(("values", "arguments", "epochs"), [
    ([1, 2, 0, 0], {}, 2),
    ([1, 1, 0, 0], {}, 2),
    ([4, 3, 2, 1], {}, 4),
    ([3, 2, 2.5, 2.5, 1], {"patience": 2}, 4),
    ([3, 2, 2.5, 1, 1.5, 1.5, 0], {"patience": 2}, 6),
    ([3, 2.95, 2.9, 2.85, 0], {"patience": 2, "min_delta": 0.5}, 3),
    ([1, 2, 1, 0], {"mode": "max"}, 3),
    ([9, 9, 9, 9, 9], {"patience": 3, "baseline": 1.0}, 3),
    ([9, 9, 9, 9, 9], {"patience": 1, "start_from_epoch": 2}, 4),
])  # fmt: skip
def test_early_stopping(values, arguments, epochs):
    model, run = drive(EarlyStopping(**arguments), values)
    assert run == epochs
    assert (model.get_weights()[0] == epochs - 1).all()


@pytest.mark.parametrize(("values", "best"), [([3, 1, 2, 2, 2], 1), ([1, 2, 2, 2], 0), ([3, 2, 1], 2)])
def test_early_stopping_restores_the_best_weights(values, best):
    model, _ = drive(EarlyStopping(patience=2, restore_best_weights=True), values)
    assert (model.get_weights()[0] == best).all()


def test_early_stopping_takes_accuracy_upwards():
    assert drive(EarlyStopping(monitor="val_accuracy", mode="max"), [0.1, 0.2, 0.2, 0.9], "val_accuracy")[1] == 3
    x, y = RNG.standard_normal((30, 3)), RNG.integers(0, 2, 30)
    model = fastnn.Sequential([layers.Input((3,)), layers.Dense(2, "softmax")], seed=0)
    model.compile(optimizers.SGD(1e-12), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, epochs=20, callbacks=[EarlyStopping(monitor="accuracy", patience=3)], verbose=0)
    assert len(history.epoch) == 4


def test_early_stopping_in_fit():
    model = small_model()
    callback = EarlyStopping(patience=2, restore_best_weights=True)
    model.compile(optimizers.SGD(1.5), "mse")  # diverges: the first epoch is the best
    history = model.fit(X, Y, epochs=50, validation_data=(X, Y), callbacks=[callback], verbose=0)
    losses = history.history["val_loss"]
    assert losses[0] == min(losses)
    assert len(losses) == 3
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(losses[0], rel=1e-12)


def test_early_stopping_warns_of_a_missing_monitor():
    with pytest.warns((UserWarning, RuntimeWarning), match="val_loss.*loss"):
        small_model().fit(X, Y, callbacks=[EarlyStopping()], verbose=0)


def test_checkpoint_every_epoch(tmp_path):
    model = small_model()
    seen = []

    class Keep(Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.get_weights())

    path = str(tmp_path / "{epoch:02d}.safetensors")
    model.fit(X, Y, epochs=3, callbacks=[ModelCheckpoint(path), Keep()], verbose=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01.safetensors", "02.safetensors", "03.safetensors"]
    for epoch, weights in enumerate(seen, 1):
        loaded = fastnn.load_model(tmp_path / f"{epoch:02d}.safetensors")
        for a, b in zip(loaded.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_checkpoint_of_weights_only(tmp_path):
    model = small_model()
    path = tmp_path / "weights.safetensors"
    model.fit(X, Y, epochs=2, callbacks=[ModelCheckpoint(path, save_weights_only=True)], verbose=0)
    other = small_model()
    other.load_weights(path)
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize(("mode", "best"), [("auto", 1), ("min", 1), ("max", 3)])
def test_checkpoint_of_the_best_only(tmp_path, mode, best):
    path = tmp_path / "best.safetensors"
    drive(ModelCheckpoint(path, save_best_only=True, mode=mode), [3, 1, 2, 4])
    assert (fastnn.load_model(path).get_weights()[0] == best).all()
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_checkpoint_names_may_hold_logs(tmp_path):
    drive(ModelCheckpoint(str(tmp_path / "{epoch}-{val_loss:.1f}.safetensors")), [3, 1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-3.0.safetensors", "2-1.0.safetensors"]


def test_learning_rate_scheduler(capsys):
    asked, used = [], []

    class Look(Callback):
        def on_epoch_end(self, epoch, logs=None):
            used.append(self.model.optimizer.learning_rate)

    def schedule(epoch, rate):
        asked.append((epoch, rate))
        return rate / 2

    model, twin = small_model(), small_model()
    scheduler = LearningRateScheduler(schedule, verbose=1)
    model.fit(X, Y, epochs=2, shuffle=False, verbose=0, callbacks=[scheduler, Look()])
    assert asked == [(0, 0.05), (1, 0.025)]
    assert used == [0.025, 0.0125]
    assert capsys.readouterr().out == "epoch 1: learning rate 0.025\nepoch 2: learning rate 0.0125\n"
    for rate in used:
        twin.optimizer.learning_rate = rate
        twin.fit(X, Y, shuffle=False, verbose=0)
    for ours, expected in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_learning_rate_scheduler_refuses_what_is_no_rate():
    with pytest.raises(TypeError, match="schedule must be a function"):
        LearningRateScheduler(0.1)
    with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0, got -1"):
        small_model().fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch, rate: -1)])
