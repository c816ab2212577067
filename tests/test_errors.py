"""Wrong arguments: what is raised, that it names what was given and expected, and that nothing changed."""

import numpy as np
import pytest

import fastnn
from fastnn import layers, losses, optimizers

RNG = np.random.default_rng(4)
X = RNG.standard_normal((10, 5))
Y = RNG.standard_normal((10, 3))
LABELS = RNG.integers(0, 3, 10)
ONE_HOT = np.eye(3)[LABELS]
SPARSE, CCE, BCE = "sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"


def compiled(loss="mse", last=None, units=3):
    last = last or {SPARSE: "softmax", CCE: "softmax", BCE: "sigmoid"}.get(loss, "linear")
    model = fastnn.Sequential([layers.Input((5,)), layers.Dense(4, "tanh"), layers.Dense(units, last)], seed=0)
    model.compile(optimizers.Adam(0.01), loss)
    return model


def changed(array, value, dtype=None):
    array = np.array(array, dtype)
    array[(3,) + (0,) * (array.ndim - 1)] = value
    return array


# Making things: (call, error, words of the message)

MAKING = [
    (lambda: layers.Dense(-1), ValueError, r"units.*-1"),
    (lambda: layers.Dense(0), ValueError, r"units.*\b0\b"),
    (lambda: layers.Dense(2.5), TypeError, r"units.*(2\.5|float)"),
    (lambda: layers.Dense("10"), TypeError, r"units.*('10'|str)"),
    (lambda: layers.Dense(True), TypeError, r"units.*(True|bool)"),
    (lambda: layers.Dense(3, "rellu"), ValueError, r"rellu.*\brelu\b"),
    (lambda: layers.Dense(3, "sigmod"), ValueError, r"sigmod.*\bsigmoid\b"),
    (lambda: layers.Dense(3, 5), TypeError, r"activation.*(5|int)"),
    (lambda: layers.Dense(3, kernel_initializer="glorot_unifrom"), ValueError, r"glorot_unifrom.*glorot_uniform"),
    (lambda: layers.Dense(3, bias_initializer="zeroes"), ValueError, r"zeroes.*\bzeros\b"),
    (lambda: layers.Activation("sofmax"), ValueError, r"sofmax.*\bsoftmax\b"),
    (lambda: layers.Activation("xyzzy"), ValueError, r"xyzzy.*\brelu\b"),
    (lambda: layers.Dropout(1.0), ValueError, r"rate.*1"),
    (lambda: layers.Dropout(-0.1), ValueError, r"rate.*-0\.1"),
    (lambda: layers.Dropout(1.5), ValueError, r"rate.*1\.5"),
    (lambda: layers.Dropout(np.nan), ValueError, r"rate.*nan"),
    (lambda: layers.Dropout("half"), TypeError, r"rate.*(half|str)"),
    (lambda: layers.Rescaling(np.nan), ValueError, r"scale.*nan"),
    (lambda: layers.Rescaling(1.0, offset=np.inf), ValueError, r"offset.*inf"),
    (lambda: layers.Rescaling(1.0, offset=-np.inf), ValueError, r"offset.*-inf"),
    (lambda: layers.Input((-3,)), ValueError, r"-3"),
    (lambda: layers.Input((0,)), ValueError, r"\b0\b"),
    (lambda: layers.Input((2.5,)), TypeError, r"2\.5|float"),
    (lambda: fastnn.Sequential([layers.Input((5,)), "dense"]), TypeError, r"'dense'|str"),
    (lambda: fastnn.Sequential([layers.Input((5,)), layers.Dense]), TypeError, r"(?i)Dense|type"),
    (lambda: fastnn.Sequential(dtype="float16"), (TypeError, ValueError), r"float32.*float16|float16.*float32"),
    (lambda: fastnn.Sequential(dtype="int32"), (TypeError, ValueError), r"float32.*int32|int32.*float32"),
    (lambda: fastnn.Sequential(device="cpuu"), ValueError, r"\bcpu\b.*cpuu|cpuu.*\bcpu\b"),
    (lambda: fastnn.Sequential(seed="a"), TypeError, r"seed.*('a'|str)"),
    (lambda: fastnn.Sequential(seed=-1), ValueError, r"seed.*-1"),
    (lambda: fastnn.Sequential(n_threads=0), ValueError, r"n_threads.*\b0\b"),
    (lambda: fastnn.Sequential(n_threads=-2), ValueError, r"n_threads.*-2"),
    (lambda: fastnn.Sequential(n_threads=1.5), TypeError, r"n_threads.*(1\.5|float)"),
    (lambda: fastnn.set_num_threads(0), ValueError, r"\b0\b"),
    (lambda: fastnn.set_num_threads("2"), TypeError, r"'2'|str"),
    (lambda: fastnn.Sequential([layers.Dense(3), layers.Input((5,))]), ValueError, r"(?i)input.*first"),
    (
        lambda: fastnn.Sequential([layers.Input((5,)), layers.Dense(2, name="a"), layers.Dense(2, name="a")]),
        ValueError,
        r"(?i)name.*'a'|'a'.*name",
    ),
    (lambda: optimizers.SGD(np.nan), ValueError, r"learning_rate.*nan"),
    (lambda: optimizers.SGD(np.inf), ValueError, r"learning_rate.*inf"),
    (lambda: optimizers.SGD(-0.1), ValueError, r"learning_rate.*-0\.1"),
    (lambda: optimizers.SGD("fast"), TypeError, r"learning_rate.*(fast|str)"),
    (lambda: optimizers.SGD(0.1, momentum=np.nan), ValueError, r"momentum.*nan"),
    (lambda: optimizers.SGD(0.1, momentum=1.5), ValueError, r"momentum.*1\.5"),
    (lambda: optimizers.SGD(0.1, momentum=-0.5), ValueError, r"momentum.*-0\.5"),
    (lambda: optimizers.Adam(np.nan), ValueError, r"learning_rate.*nan"),
    (lambda: optimizers.Adam(beta_1=1.0), ValueError, r"beta_1.*1"),
    (lambda: optimizers.Adam(beta_2=-0.1), ValueError, r"beta_2.*-0\.1"),
    (lambda: optimizers.Adam(beta_2=np.nan), ValueError, r"beta_2.*nan"),
    (lambda: optimizers.Adam(epsilon=np.inf), ValueError, r"epsilon.*inf"),
    (lambda: optimizers.Adam(epsilon=-1e-7), ValueError, r"epsilon.*-1e-07"),
    (lambda: optimizers.AdamW(weight_decay=-0.1), ValueError, r"weight_decay.*-0\.1"),
    (lambda: optimizers.RMSprop(np.nan), ValueError, r"learning_rate.*nan"),
    (lambda: optimizers.RMSprop(rho=1.0), ValueError, r"rho.*1"),
    (lambda: optimizers.RMSprop(momentum=-0.5), ValueError, r"momentum.*-0\.5"),
    (lambda: optimizers.RMSprop(epsilon=0.0), ValueError, r"epsilon.*\b0"),
    (lambda: optimizers.RMSprop(centered=True), ValueError, r"centered.*False.*True"),
    (lambda: compiled().compile(optimizer="rmspop", loss="mse"), ValueError, r"rmspop.*\brmsprop\b"),
    (lambda: compiled().compile(optimizer="adma", loss="mse"), ValueError, r"adma.*\badam\b"),
    (lambda: compiled().compile(optimizer=3, loss="mse"), TypeError, r"optimizer.*(3|int)"),
    (lambda: compiled().compile(loss="msee"), ValueError, r"msee.*\bmse\b"),
    (lambda: compiled().compile(loss="categorical_crosentropy"), ValueError, r"crosentropy.*categorical_crossentropy"),
    (lambda: compiled().compile(loss=3), TypeError, r"loss.*(3|int)"),
    (lambda: compiled().compile(loss="mse", metrics=["acuracy"]), ValueError, r"acuracy.*\baccuracy\b"),
    (lambda: compiled().compile(loss="mse", metrics=[3]), TypeError, r"metric.*(3|int)"),
]


@pytest.mark.parametrize(("call", "error", "message"), MAKING)
def test_making(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_several_classes_of_binary_losses_from_logits_are_fine():
    for loss in (losses.BinaryCrossentropy(from_logits=True), losses.CategoricalCrossentropy(from_logits=True)):
        model = compiled(loss)
        assert np.isfinite(model.fit(X, ONE_HOT, verbose=0).history["loss"]).all()


# Data: (loss, x, y, arguments of fit, error, words of the message)

DATA = [
    ("mse", X[:, :4], Y, {}, ValueError, r"\b4\b.*\b5\b|\b5\b.*\b4\b"),
    ("mse", X[:, :, None], Y, {}, ValueError, r"\(10, 5, 1\)|\(5, 1\)"),
    ("mse", np.ones(10), Y, {}, ValueError, r"\b5\b.*\((10, 1|10,)\)|\((10, 1|10,)\).*\b5\b"),
    ("mse", np.float64(3), Y, {}, ValueError, r"(?i)scalar|dimension|\(\)|0-?d|single"),
    ("mse", X, Y[:, :2], {}, ValueError, r"\b2\b.*\b3\b|\b3\b.*\b2\b"),
    ("mse", X, Y[:, 0], {}, ValueError, r"\b1\b.*\b3\b|\b3\b.*\b1\b|\(10,\).*\b3\b|\b3\b.*\(10,\)"),
    ("mse", X, Y[:9], {}, ValueError, r"\b10\b.*\b9\b|\b9\b.*\b10\b"),
    (CCE, X, ONE_HOT[:, :2], {}, ValueError, r"\b2\b.*\b3\b|\b3\b.*\b2\b"),
    (CCE, X, LABELS, {}, ValueError, r"(?i)one-?hot|sparse"),
    (SPARSE, X, ONE_HOT, {}, ValueError, r"\(10, 3\)|(?i:one-?hot)"),
    ("mse", X[:0], Y[:0], {}, ValueError, r"(?i)empty|no samples|no rows|\b0 (samples|rows)"),
    ("mse", X.astype(complex), Y, {}, TypeError, "complex128"),
    ("mse", X.astype(object), Y, {}, TypeError, "object"),
    ("mse", X.astype(str), Y, {}, TypeError, r"(?i)<U|str"),
    ("mse", X.astype("datetime64[s]"), Y, {}, TypeError, "datetime64"),
    ("mse", X, Y.astype(complex), {}, TypeError, "complex128"),
    ("mse", X, Y.astype(str), {}, TypeError, r"(?i)<U|str"),
    ("mse", X, changed(Y, np.nan), {}, ValueError, r"(?i)nan"),
    ("mse", X, changed(Y, np.inf), {}, ValueError, r"(?i)inf"),
    (BCE, X, changed(ONE_HOT, np.nan), {}, ValueError, r"(?i)nan"),
    (BCE, X, changed(ONE_HOT, 2.0), {}, ValueError, r"\b2\b"),
    (BCE, X, changed(ONE_HOT, -1.0), {}, ValueError, r"-1\b"),
    (CCE, X, changed(ONE_HOT, np.nan), {}, ValueError, r"(?i)nan"),
    (SPARSE, X, changed(LABELS, np.nan, float), {}, ValueError, r"(?i)nan"),
    (SPARSE, X, changed(LABELS, 3), {}, ValueError, r"\b3\b"),
    (SPARSE, X, changed(LABELS, 77), {}, ValueError, r"\b77\b"),
    (SPARSE, X, changed(LABELS, -1), {}, ValueError, r"-1\b"),
    (SPARSE, X, changed(LABELS, 2**40), {}, ValueError, str(2**40)),
    (SPARSE, X, changed(LABELS, 1.5, float), {}, ValueError, r"1\.5|(?i:integer)"),
    ("mse", X, Y, {"batch_size": 0}, ValueError, r"batch_size.*\b0\b"),
    ("mse", X, Y, {"batch_size": -4}, ValueError, r"batch_size.*-4"),
    ("mse", X, Y, {"batch_size": 2.5}, TypeError, r"batch_size.*(2\.5|float)"),
    ("mse", X, Y, {"epochs": -1}, ValueError, r"epochs.*-1"),
    ("mse", X, Y, {"epochs": 1.5}, TypeError, r"epochs.*(1\.5|float)"),
    ("mse", X, Y, {"initial_epoch": -1}, ValueError, r"initial_epoch.*-1"),
    ("mse", X, Y, {"validation_split": 1.0}, ValueError, r"validation_split.*1"),
    ("mse", X, Y, {"validation_split": -0.1}, ValueError, r"validation_split.*-0\.1"),
    ("mse", X, Y, {"validation_split": np.nan}, ValueError, r"validation_split.*nan"),
    ("mse", X[:1], Y[:1], {"validation_split": 0.5}, ValueError, r"validation_split.*0\.5"),
    ("mse", X, Y, {"validation_data": (X[:, :4], Y)}, ValueError, r"\b4\b.*\b5\b|\b5\b.*\b4\b"),
    ("mse", X, Y, {"validation_data": (X, Y[:8])}, ValueError, r"\b10\b.*\b8\b|\b8\b.*\b10\b"),
    ("mse", X, Y, {"validation_data": X}, (TypeError, ValueError), "validation_data"),
    (SPARSE, X, LABELS, {"validation_data": (X, LABELS + 70)}, ValueError, r"\b7[012]\b"),
    ("mse", X, Y, {"sample_weight": np.ones(9)}, ValueError, r"\b9\b.*\b10\b|\b10\b.*\b9\b"),
    ("mse", X, Y, {"sample_weight": changed(np.ones(10), np.nan)}, ValueError, r"(?i)sample_weight.*nan"),
    ("mse", X, Y, {"sample_weight": np.ones(10, complex)}, TypeError, "complex128"),
    (SPARSE, X, LABELS, {"class_weight": {0: np.nan}}, ValueError, r"(?i)class_weight.*nan"),
    (SPARSE, X, LABELS, {"class_weight": [1, 2, 3]}, TypeError, r"class_weight.*(list|dict)"),
    ("mse", X, Y, {"callbacks": [3]}, TypeError, r"(?i)callback"),
    ("mse", X, Y, {"verbose": "loud"}, ValueError, r"verbose.*loud"),
]


@pytest.mark.parametrize(("loss", "x", "y", "arguments", "error", "message"), DATA)
def test_refused_fits_change_nothing(loss, x, y, arguments, error, message):
    model, twin = compiled(loss), compiled(loss)
    good = {SPARSE: LABELS, CCE: ONE_HOT, BCE: ONE_HOT}.get(loss, Y)
    for m in (model, twin):
        m.fit(X, good, epochs=1, batch_size=4, verbose=0)
    with pytest.raises(error, match=message):
        model.fit(x, y, **{"verbose": 0, **arguments})
    histories = [m.fit(X, good, epochs=2, batch_size=4, verbose=0).history for m in (model, twin)]
    assert histories[0] == histories[1]
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("x", "error", "message"), [
    (X[:, :4], ValueError, r"\b4\b.*\b5\b|\b5\b.*\b4\b"),
    (X[0, :, None, None], ValueError, r"\(5, 1, 1\)|\(1, 1\)"),
    (X.astype(complex), TypeError, "complex128"),
    (X.astype(object), TypeError, "object"),
])  # fmt: skip
@pytest.mark.parametrize("method", ["predict", "predict_on_batch", "evaluate", "train_on_batch"])
def test_the_other_methods_check_x_too(method, x, error, message):
    model = compiled()
    before = model.get_weights()
    y = (np.zeros((len(x), 3)),) if method in ("evaluate", "train_on_batch") else ()
    with pytest.raises(error, match=message):
        getattr(model, method)(x, *y)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", ["evaluate", "train_on_batch"])
def test_the_other_methods_check_y_too(method):
    model = compiled(SPARSE)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"\b77\b"):
        getattr(model, method)(X, changed(LABELS, 77))
    with pytest.raises(ValueError, match=r"\b10\b.*\b9\b|\b9\b.*\b10\b"):
        getattr(model, method)(X, LABELS[:9])
    with pytest.raises(ValueError, match=r"(?i)empty|no samples|no rows|\b0 (samples|rows)"):
        getattr(model, method)(X[:0], LABELS[:0])
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_that_needs_flat_input_says_so():
    with pytest.raises(ValueError, match=r"\(28, 28\)[\s\S]*Flatten"):
        fastnn.Sequential([layers.Input((28, 28)), layers.Dense(3)]).get_weights()


def test_compile_comes_first():
    model = fastnn.Sequential([layers.Input((5,)), layers.Dense(3)], seed=0)
    before = model.get_weights()
    for call in (model.fit, model.evaluate, model.train_on_batch):
        with pytest.raises(RuntimeError, match=r"compile"):
            call(X, Y)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_compile_without_a_loss():
    model = fastnn.Sequential([layers.Input((5,)), layers.Dense(3)], seed=0)

    def compile_and_fit():  # either may refuse
        model.compile("adam")
        model.fit(X, Y, verbose=0)

    with pytest.raises((RuntimeError, ValueError, TypeError), match="loss"):
        compile_and_fit()


@pytest.mark.parametrize("call", [
    lambda m: m.get_weights(),
    lambda m: m.set_weights([]),
    lambda m: m.count_params(),
])  # fmt: skip
def test_shapes_must_be_known(call):
    with pytest.raises(RuntimeError, match="buil[dt]"):
        call(fastnn.Sequential([layers.Dense(3)]))


def test_a_refused_first_fit_leaves_the_model_unbuilt():
    def fresh():
        model = fastnn.Sequential([layers.Dense(4, "tanh"), layers.Dense(3)], seed=0)
        model.compile("adam", "mse")
        return model

    model, twin = fresh(), fresh()
    for x, y, arguments in [
        (X, Y[:9], {}),
        (X, Y[:, :2], {}),
        (X, changed(Y, np.nan), {}),
        (X, Y, {"validation_data": (X, Y[:3])}),
        (X, Y, {"sample_weight": np.ones(3)}),
        (X, Y, {"validation_split": 0.99}),
    ]:
        with pytest.raises(ValueError, match="."):
            model.fit(x, y, verbose=0, **arguments)
        with pytest.raises(RuntimeError, match="buil[dt]"):
            model.get_weights()
    histories = [m.fit(X[:, :4], Y, verbose=0).history for m in (model, twin)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("spoil", [
    (lambda w: w[:-1], ValueError, r"\b3\b.*\b4\b|\b4\b.*\b3\b"),
    (lambda w: [*w, w[0]], ValueError, r"\b5\b.*\b4\b|\b4\b.*\b5\b"),
    (lambda w: [w[0].T, *w[1:]], ValueError, r"\(4, 5\).*\(5, 4\)|\(5, 4\).*\(4, 5\)"),
    (lambda w: [w[0] + 1, w[1], w[2], w[3][:2]], ValueError, r"\(2,\).*\(3,\)|\(3,\).*\(2,\)"),
    (lambda w: [w[0] + 1, w[1], w[2], w[3] + 1j], TypeError, "complex"),
    (lambda w: 3, TypeError, "(?i)list|sequence|int"),
])  # fmt: skip
def test_refused_weights_change_nothing(spoil):
    change, error, message = spoil
    model = compiled()
    before = model.get_weights()
    with pytest.raises(error, match=message):
        model.set_weights(change(model.get_weights()))
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_failed_compile_keeps_the_compiled_model():
    model, twin = compiled(), compiled()
    with pytest.raises(ValueError, match="adma"):
        model.compile("adma", "mse")
    with pytest.raises(ValueError, match="msee"):
        model.compile(optimizers.SGD(9.0), "msee")
    for m in (model, twin):
        m.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], twin.get_weights()[0])


def test_failed_add_keeps_the_layers():
    model = compiled()
    names = [layer.name for layer in model.layers]
    with pytest.raises(TypeError, match="str|'x'"):
        model.add("x")
    assert [layer.name for layer in model.layers] == names
    assert model.predict(X, verbose=0).shape == (10, 3)


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_unknown_modes_of_callbacks(name):
    arguments = ("file",) if name == "ModelCheckpoint" else ()
    with pytest.raises(ValueError, match="mode.*least"):
        getattr(fastnn.callbacks, name)(*arguments, mode="least")


@pytest.mark.parametrize("name", ["Sequentiall", "matmull"])
def test_unknown_public_names(name):
    with pytest.raises(AttributeError, match=name):
        getattr(fastnn, name)
