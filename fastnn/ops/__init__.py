"""Functions over NumPy arrays: the kernels for those who write their own networks.

They take the place of ``np.dot`` and friends in a hand-written network.  Arrays of float32 and float64 are computed in
their dtype, integers and bools are converted to float64 as NumPy does (Python numbers and lists to float32, the default
of fastnn); where two arrays differ, the wider dtype is used.  Strides may be any: a transposed view costs no copy in
`matmul` and `dense`.
"""

from fastnn.ops.activations import (
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
    relu,
    relu_derivative,
    sigmoid,
    sigmoid_derivative,
    softmax,
    softmax_derivative,
    softplus,
    softplus_derivative,
    tanh,
    tanh_derivative,
)
from fastnn.ops.losses import bce_with_logits, mse, softmax_cross_entropy
from fastnn.ops.optimizers import adam_update, rmsprop_update, sgd_update
from fastnn.ops.products import dense, dot, matmul

__all__ = [
    "adam_update",
    "bce_with_logits",
    "dense",
    "dot",
    "erf",
    "exp",
    "expm1",
    "gelu",
    "gelu_derivative",
    "leaky_relu",
    "leaky_relu_derivative",
    "linear",
    "linear_derivative",
    "log",
    "log1p",
    "matmul",
    "mse",
    "relu",
    "relu_derivative",
    "rmsprop_update",
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
