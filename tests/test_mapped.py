"""Files mapped to memory: read in place or batch by batch, never loaded whole."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastnn
from fastnn import data, layers, optimizers

HERE = os.path.dirname(__file__)
MEGA = 1 << 20

# Trains on sparse files of hundreds of megabytes and prints by how many bytes anonymous memory grew at most.  (The
# pages of a mapped file count as resident, too, but are the system's to take back.)
PROBE = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
import fastnn
import numba  # here, and not when memory is measured, where a kernel is missing from the cache
from fastnn.layers import Dense

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def mapped(name, dtype, shape):
    return np.memmap(Path(sys.argv[1], name), dtype=dtype, mode="w+", shape=shape)

def build(loss, units):
    model = fastnn.Sequential([Dense(8, "relu"), Dense(units, "softmax" if "cross" in loss else None)], seed=0)
    model.compile("adam", loss, ["accuracy"] if "cross" in loss else None)
    return model

def work(model, x, y):
    model.fit(x, y, batch_size=256, validation_split=0.25, verbose=0)
    model.evaluate(x, y)
    model.predict(x)

kind = sys.argv[2]
if kind == "copied":  # what must not happen, to see that it would be seen
    kind, copy = "uint8", np.array
else:
    copy = np.asarray
n, columns = (400 << 20) // 784, 784
if kind == "targets":
    n, columns = (200 << 20) // 400, 100
    loss, x, y = "mse", mapped("x", "float32", (n, columns)), mapped("y", "float32", (n, columns))
else:
    size = np.dtype(kind).itemsize
    loss, n = "sparse_categorical_crossentropy", n // size
    x, y = mapped("x", kind, (n, columns)), mapped("y", "uint8", (n,))
model = build(loss, 3 if loss != "mse" else columns)
work(model, x[:1000], y[:1000])
before = peak = anonymous()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
x = copy(x)
work(model, x, y)
done = True
watcher.join()
print(json.dumps(peak - before))
"""


def growth(folder, kind):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, str(folder), kind], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", ["uint8", ">i2", "float16"])
def test_memory_stays_small(tmp_path, kind):
    """400 MB of samples; 8 bytes a sample for its place in the order, and its class number."""
    assert growth(tmp_path, kind) < 40 * MEGA


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_targets_stay_where_they_are(tmp_path):
    """200 MB of samples and as many of targets, which are checked: predictions alone are 200 MB."""
    assert growth(tmp_path, "targets") < 240 * MEGA


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_a_copy_would_be_seen(tmp_path):
    assert growth(tmp_path, "copied") > 350 * MEGA


# --- the same results -----------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.integers(-100, 100, (70, 6))
LABELS = RNG.integers(0, 3, 70)
VALUES = RNG.integers(0, 2, (70, 3))


def mapped(folder, name, array, dtype):
    found = np.memmap(folder / name, dtype=dtype, mode="w+", shape=array.shape)
    found[...] = array
    return found


def build(loss):
    last = {"sparse_categorical_crossentropy": "softmax", "binary_crossentropy": "sigmoid"}[loss]
    stack = [layers.Input((6,)), layers.Rescaling(0.01), layers.Dense(7, "tanh"), layers.Dropout(0.2)]
    model = fastnn.Sequential([*stack, layers.Dense(3, last)], seed=2)
    model.compile(optimizers.Adam(0.01), loss, ["accuracy"])
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", ">f8", "int8", "int16", ">i4", "float16", "int64"])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "binary_crossentropy"])
def test_mapped_arrays_train_as_others_do(tmp_path, loss, dtype):
    """Shuffled epochs, held-out samples, weights: the same bits, whichever way the numbers are read."""
    y = LABELS if "sparse" in loss else VALUES
    weight = np.linspace(0.5, 2, 70)
    arguments = {"batch_size": 16, "epochs": 3, "verbose": 0, "validation_split": 0.3, "class_weight": {1: 2.0}}
    results = []
    for x, t in ((X.astype(np.dtype(dtype)), y), (mapped(tmp_path, "x", X, dtype), mapped(tmp_path, "y", y, dtype))):
        model = build(loss)
        history = model.fit(x, t, sample_weight=weight, **arguments).history
        evaluated = model.evaluate(x, t, sample_weight=weight, batch_size=32)
        results.append([*model.get_weights(), model.predict(x), *history.values(), evaluated])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_which_files_would_be_loaded(tmp_path):
    plain, small = mapped(tmp_path, "a", X, "float32"), mapped(tmp_path, "b", X, "int16")
    for array in (plain, plain[::2], plain[:, 1:], np.asarray(plain), plain.T, plain.reshape(70, 2, 3), X, small[:, 0]):
        assert not data.is_whole(array)
    for array in (small, small[3:], np.asarray(small)[::-1], small.reshape(70, 3, 2), plain.reshape(70, 2, 3)[..., 1:]):
        assert data.is_whole(array)
    assert data.is_mapped(np.frombuffer(np.memmap(tmp_path / "a", mode="r")._mmap, np.uint8))
    assert not data.is_whole(np.array(small))


def test_samples_that_are_not_matrices(tmp_path):
    images = RNG.integers(0, 256, (40, 5, 4))
    results = []
    for x in (images.astype("uint16"), mapped(tmp_path, "x", images, "uint16")):
        model = fastnn.Sequential([layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3, "softmax")], seed=1)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(x, np.arange(40) % 3, verbose=0)
        results.append(
            [*model.get_weights(), model.predict(x), model.predict(x, steps=1), model.evaluate(x, x[:, 0, 0] % 3)]
        )
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert results[0][-2].shape == (32, 3)


def test_errors_are_those_of_arrays(tmp_path):
    x, y = mapped(tmp_path, "x", X, "int16"), mapped(tmp_path, "y", VALUES, "float16")
    model = build("binary_crossentropy")
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"70 samples.*\(69, 3\)"):
        model.fit(x, y[:69], verbose=0)
    with pytest.raises(ValueError, match="y is missing"):
        model.fit(x, verbose=0)
    with pytest.raises(ValueError, match=r"\(n, 6\).*\(70, 5\)"):
        model.fit(x[:, 1:], y, verbose=0)
    y[3] = np.nan
    with pytest.raises(ValueError, match=r"y holds nan at \(3, 0\)"):
        model.fit(X, y.astype("float32"), verbose=0)
    with pytest.raises(ValueError, match="y holds nan"):
        model.evaluate(x, y)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_a_target_is_not_finite():
    """The check goes piece by piece; the place is that in the whole."""
    y = np.zeros((300_000, 3), np.float32)
    y[250_000, 2] = np.inf
    with pytest.raises(ValueError, match=r"y holds inf at \(250000, 2\)"):
        build("binary_crossentropy").evaluate(np.zeros((300_000, 6), np.uint8), y)


@pytest.mark.parametrize("value", [-np.inf, np.longdouble("1e4000")])
@pytest.mark.parametrize("loss", ["binary_crossentropy", "sparse_categorical_crossentropy"])
def test_targets_that_are_not_finite_as_float64(loss, value):
    """Whatever the dtype they come in; a long double may be beyond it."""
    y = np.zeros((70,) if loss.startswith("sparse") else (70, 3), np.longdouble)
    y[69] = value
    with pytest.raises(ValueError, match=r"y holds .* at \(69(, 0)?,?\): targets must be finite"):
        build(loss).fit(X, y, verbose=0)
