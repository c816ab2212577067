"""What x and y may be: any strides, integers, lists, one dimension, images of bytes."""

import numpy as np
import pytest
import reference as ref
from test_sequential import X, Y, assert_weights, model_and_reference

import fastnn
from fastnn import layers, optimizers

RNG = np.random.default_rng(12)


def views():
    wide = np.zeros((100, 12))
    wide[::2, ::2] = X
    return {
        "Fortran": np.asfortranarray(X),
        "strided": wide[::2, ::2],
        "reversed": X[::-1].copy()[::-1],
        "float32": X.astype(np.float32),
        "list": X.tolist(),
    }


@pytest.mark.parametrize("name", views())
def test_x_of_any_strides(name):
    x = views()[name]
    if isinstance(x, np.ndarray):
        x.flags.writeable = False
    model, reference = model_and_reference()
    rtol = 1e-5 if name == "float32" else 1e-10
    np.testing.assert_allclose(model.predict(x, verbose=0), reference.predict(X), rtol=rtol, atol=1e-6)
    model.fit(x, np.asfortranarray(Y), batch_size=16, shuffle=False, verbose=0)
    reference.fit(X, Y, ref.SGD(learning_rate=0.1), 16, 1)
    assert_weights(model, reference, rtol=1e-4 if name == "float32" else 1e-10)


def test_x_and_y_are_left_alone():
    x, y = X.copy(), Y.copy()
    model, _ = model_and_reference()
    model.fit(x, y, epochs=2, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int32", "int64", "uint16"])
def test_integer_x(kind):
    x = RNG.integers(0, 2, (10, 6)).astype(kind)
    model, reference = model_and_reference()
    np.testing.assert_allclose(model.predict(x, verbose=0), reference.predict(x), rtol=1e-12)


def test_one_dimensional_x_and_y_are_columns():
    model = fastnn.Sequential([layers.Input((1,)), layers.Dense(1)], dtype="float64", seed=0)
    model.compile(optimizers.SGD(0.1), "mse")
    model.set_weights([np.array([[2.0]]), np.array([1.0])])
    x = np.array([0.0, 1.0, 2.0])
    assert model.predict(x, verbose=0).tolist() == [[1], [3], [5]]
    assert model.evaluate(x, np.zeros(3), verbose=0) == pytest.approx(35 / 3)
    assert model.evaluate(x, np.zeros((3, 1)), verbose=0) == pytest.approx(35 / 3)


def test_rescaled_images():
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 4), dtype=np.uint8)
    labels = np.arange(40) % 3
    stack = [layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    scaled = fastnn.Sequential([layers.Input((5, 4)), layers.Rescaling(1 / 255, offset=-0.5), *stack], seed=2)
    stack = [layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    plain = fastnn.Sequential([layers.Input((5, 4)), *stack], seed=2)
    plain.set_weights(scaled.get_weights())
    x = (images / 255 - 0.5).astype(np.float32)
    for model, data in [(scaled, images), (plain, x)]:
        model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        model.fit(data, labels, batch_size=16, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(scaled.predict(images, verbose=0), plain.predict(x, verbose=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scaled.get_weights()[0], plain.get_weights()[0], rtol=1e-4, atol=1e-6)
