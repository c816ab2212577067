"""fastnn: the fastest way to train and run a multilayer perceptron from Python.

>>> import fastnn
>>> (x_train, y_train), (x_test, y_test) = fastnn.datasets.load_digits()
>>> model = fastnn.Sequential([
...     fastnn.layers.Rescaling(1 / 16),
...     fastnn.layers.Flatten(),
...     fastnn.layers.Dense(32, activation="relu"),
...     fastnn.layers.Dense(10, activation="softmax"),
... ], seed=0)
>>> model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
>>> history = model.fit(x_train, y_train, epochs=20, verbose=0)
>>> loss, accuracy = model.evaluate(x_test, y_test)
>>> accuracy > 0.9
True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastnn import (
        activations,
        callbacks,
        datasets,
        initializers,
        layers,
        losses,
        metrics,
        models,
        optimizers,
    )
    from fastnn.models import load_model
    from fastnn.ops import (
        adam_update,
        bce_with_logits,
        dense,
        dot,
        erf,
        exp,
        expm1,
        gelu,
        gelu_derivative,
        leaky_relu,
        leaky_relu_derivative,
        linear,
        linear_derivative,
        log,
        log1p,
        matmul,
        mse,
        relu,
        relu_derivative,
        rmsprop_update,
        sgd_update,
        sigmoid,
        sigmoid_derivative,
        softmax,
        softmax_cross_entropy,
        softmax_derivative,
        softplus,
        softplus_derivative,
        tanh,
        tanh_derivative,
    )
    from fastnn.sequential import Sequential
    from fastnn.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Sequential",
    "activations",
    "adam_update",
    "bce_with_logits",
    "callbacks",
    "datasets",
    "dense",
    "dot",
    "erf",
    "exp",
    "expm1",
    "gelu",
    "gelu_derivative",
    "get_num_threads",
    "initializers",
    "layers",
    "leaky_relu",
    "leaky_relu_derivative",
    "linear",
    "linear_derivative",
    "load_model",
    "log",
    "log1p",
    "losses",
    "matmul",
    "metrics",
    "models",
    "mse",
    "optimizers",
    "relu",
    "relu_derivative",
    "rmsprop_update",
    "set_num_threads",
    "sgd_update",
    "sigmoid",
    "sigmoid_derivative",
    "softmax",
    "softmax_cross_entropy",
    "softmax_derivative",
    "softplus",
    "softplus_derivative",
    "tanh",
    "tanh_derivative",
]

# Where public names come from; they are loaded when first used, so that `import fastnn` costs next to nothing.
_HOMES = {
    "Sequential": "sequential",
    "load_model": "models",
    "get_num_threads": "threads",
    "set_num_threads": "threads",
}
_MODULES = {
    "activations",
    "callbacks",
    "datasets",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastnn.{name}")
    if name in __all__:
        value = getattr(importlib.import_module(f"fastnn.{_HOMES.get(name, 'ops')}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
