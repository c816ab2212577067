"""save, load_model, save_weights, load_weights: round trips to the bit, and files that are refused."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import fastnn
from fastnn import layers, losses, optimizers

X = np.random.default_rng(0).integers(0, 256, (30, 4, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def trained(dtype="float32", units=8, optimizer=None, dropout=0.2):
    model = fastnn.Sequential(
        [
            layers.Input((4, 3)),
            layers.Rescaling(1 / 255, offset=-0.5),
            layers.Flatten(),
            layers.Dense(units, "leaky_relu", name="hidden"),
            layers.Dropout(dropout),
            layers.Dense(5, use_bias=False),
            layers.Activation("tanh"),
            layers.Dense(3, "softmax"),
        ],
        dtype=dtype,
        seed=3,
    )
    model.compile(optimizer or optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X, LABELS, batch_size=7, epochs=2, verbose=0)
    return model


def assert_same_weights(a, b):
    for u, v in zip(a.get_weights(), b.get_weights(), strict=True):
        assert u.dtype == v.dtype
        np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("load", [fastnn.load_model, fastnn.models.load_model])
def test_model_round_trip(tmp_path, load, dtype):
    model = trained(dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load(path)
    assert_same_weights(model, loaded)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert loaded.evaluate(X, LABELS, verbose=0) == model.evaluate(X, LABELS, verbose=0)
    assert np.isfinite(loaded.fit(X, LABELS, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Adam", "AdamW", "RMSprop", "RMSprop, momentum"])
def test_loaded_optimizer_goes_on_where_it_was(tmp_path, optimizer):
    path = tmp_path / "model.safetensors"
    chosen = {
        "SGD": optimizers.SGD(0.125),
        "momentum": optimizers.SGD(0.0625, momentum=0.5, nesterov=True),
        "Adam": optimizers.Adam(0.02, beta_1=0.8, beta_2=0.95, epsilon=1e-5),
        "AdamW": optimizers.AdamW(0.02, weight_decay=0.1),
        "RMSprop": optimizers.RMSprop(0.02, rho=0.8, epsilon=1e-5),
        "RMSprop, momentum": optimizers.RMSprop(0.02, rho=0.8, momentum=0.5),
    }
    model = trained(optimizer=chosen[optimizer], dropout=0.0)
    model.save(path)
    loaded = fastnn.load_model(path)
    for m in (model, loaded):
        m.fit(X, LABELS, batch_size=30, epochs=1, shuffle=False, verbose=0)
    assert_same_weights(model, loaded)


def test_loss_settings_are_kept(tmp_path):
    model = fastnn.Sequential([layers.Input((2,)), layers.Dense(1)], seed=0)
    model.compile("sgd", losses.BinaryCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).standard_normal((9, 2)), np.arange(9) % 2
    model.save(tmp_path / "m.safetensors")
    loaded = fastnn.load_model(tmp_path / "m.safetensors")
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    assert_same_weights(model, loaded)


def test_uncompiled_model_round_trip(tmp_path):
    model = fastnn.Sequential([layers.Input((2,)), layers.Dense(3)], seed=0)
    model.save(str(tmp_path / "m.safetensors"))
    loaded = fastnn.load_model(str(tmp_path / "m.safetensors"))
    assert_same_weights(model, loaded)
    with pytest.raises(RuntimeError, match="compile"):
        loaded.fit(np.ones((2, 2)), np.ones((2, 3)), verbose=0)


def test_the_file_is_safetensors_with_json(tmp_path):
    trained().save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "numpy") as file:
        assert len(list(file.keys())) >= 5
        values = list(file.metadata().values())
    assert any(isinstance(json.loads(v), dict) for v in values if v.startswith("{"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_round_trip(tmp_path, dtype):
    model = trained(dtype)
    path = tmp_path / "w.safetensors"
    model.save_weights(path)
    other = trained(dtype, optimizer=optimizers.SGD(0.3))
    assert not np.array_equal(other.get_weights()[0], model.get_weights()[0])
    other.load_weights(path)
    assert_same_weights(model, other)
    np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.parametrize("method", ["save", "save_weights"])
def test_saving_replaces_and_leaves_no_other_file(tmp_path, method):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    model = trained()
    for _ in range(2):
        getattr(model, method)(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    other = trained(optimizer=optimizers.SGD(0.3))
    other.load_weights(path)
    assert_same_weights(model, other)


@pytest.mark.parametrize("method", ["save", "save_weights"])
def test_failed_save_leaves_the_old_file(tmp_path, method):
    model = fastnn.Sequential([layers.Dense(3)])
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="buil[dt]"):
        getattr(model, method)(path)
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match="missing"):
        getattr(trained(), method)(tmp_path / "missing" / "m.safetensors")


def spoiled(path, how):
    trained().save(path)
    good = path.read_bytes()
    if how == "foreign safetensors":
        save_file({"a": np.ones(3, np.float32)}, path)
        return
    path.write_bytes({
        "empty": b"",
        "half": good[: len(good) // 2],
        "last byte missing": good[:-1],
        "header only": good[:20],
        "text": b"layer,units\nDense,3\n" * 50,
        "random": np.random.default_rng(0).bytes(4096),
        "zeros": bytes(4096),
        "PNG": b"\x89PNG\r\n\x1a\n" + bytes(200),
    }[how])  # fmt: skip


SPOILED = ["empty", "half", "last byte missing", "header only", "text", "random", "zeros", "PNG", "foreign safetensors"]


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_files_are_refused(tmp_path, how):
    path = tmp_path / "spoiled.safetensors"
    spoiled(path, how)
    with pytest.raises(ValueError, match="spoiled.safetensors"):
        fastnn.load_model(path)
    model = trained()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"spoiled.safetensors"):
        model.load_weights(path)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        fastnn.load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        trained().load_weights(tmp_path / "nothing.safetensors")


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    trained(units=9).save_weights(path)
    model = trained(units=8)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"\(12, 9\).*\(12, 8\)|\(12, 8\).*\(12, 9\)"):
        model.load_weights(path)
    smaller = fastnn.Sequential([layers.Input((12,)), layers.Dense(9)], seed=0)
    with pytest.raises(ValueError, match=r"w.safetensors.*hidden/kernel"):
        smaller.load_weights(path)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unknown_layer_in_a_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    trained().save(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {k: v.replace("Flatten", "Flattem") for k, v in metadata.items()})
    with pytest.raises(ValueError, match="Flattem"):
        fastnn.load_model(path)
    save_file(tensors, path, {k: v.replace("{", "(") for k, v in metadata.items()})
    with pytest.raises(ValueError, match="m.safetensors"):
        fastnn.load_model(path)
