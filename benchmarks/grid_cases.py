"""What `benchmarks.grid` measures: the operations of every group, in the sizes of the grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks import cases
from benchmarks.cases import OPERATIONS, Inputs, Operation

SQUARES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PRODUCTS = (  # m, k, n of multilayer perceptrons
    (32, 784, 256),
    (128, 784, 256),
    (512, 784, 512),
    (784, 32, 256),
    (784, 128, 256),
    (512, 512, 256),
    (4096, 784, 256),
    (1, 784, 256),
    (10000, 784, 10),
    (60000, 20, 64),
    (32, 64, 64),
    (7, 33, 129),
)
LAYOUTS = {"": "a b", "a": "aᵀ b", "b": "a bᵀ", "ab": "aᵀ bᵀ"}  # which operands are transposed views
BYTES = {"64 KiB": 64 << 10, "1 MiB": 1 << 20}  # of the arrays that functions are applied to
LARGE = 256 << 20  # bytes of arrays that no cache holds
ADAM = 200_000  # parameters
GROUPS = ("products", "dense", "functions", "updates", "bandwidth")
UNITS = {"products": "flop", "dense": "flop", "bandwidth": "byte"}  # of a group's work


def operations(group: str, dtype: str, *, quick: bool = False) -> dict[str, Operation]:
    """The operations of a group; `quick` leaves out what takes long."""
    size = np.dtype(dtype).itemsize
    if group == "products":
        squares = [n for n in SQUARES if n <= 512 or not quick]
        sizes = {name(n, n, n): (n, n, n) for n in squares}
        sizes |= {name(*mkn, layout): (*mkn, layout) for mkn in PRODUCTS for layout in LAYOUTS}
        return {"matmul": replace(OPERATIONS["matmul"], cases=sizes, work=flops)}
    if group == "dense":
        sizes = {name(*mkn): mkn for mkn in PRODUCTS}
        return {"dense_relu": replace(OPERATIONS["dense_relu"], cases=sizes, work=flops)}
    if group == "functions":
        return _functions(size)
    if group == "updates":
        sizes = {f"{ADAM} parameters": (ADAM,)}
        return {e: replace(OPERATIONS[e], cases=sizes) for e in ("adam", "sgd")}
    return _large(size)


def name(m: int, k: int, n: int, transposed: str = "") -> str:
    """The name of a product: "32 x 784 x 256, aᵀ b"."""
    return f"{m} x {k} x {n}" + (f", {LAYOUTS[transposed]}" if transposed else "")


def has_ceiling(group: str, arguments: tuple) -> bool:
    """Whether a case is held against the machine's ceiling: arrays in memory, squares of 512 and up."""
    return group == "bandwidth" or (group == "products" and arguments[0] >= 512 and len(set(arguments)) == 1)


def flops(m: int, k: int, n: int, transposed: str = "") -> float:
    """Multiplications and additions of a product."""
    return 2.0 * m * k * n


# --- functions of elements --------------------------------------------------------------------------------------------


def _function(title: str, inputs: Callable[..., Inputs], answer: Callable[..., object], sizes: dict) -> Operation:
    def reference(**arrays: np.ndarray) -> object:
        return answer(*(e.astype(np.float64) for e in arrays.values()))

    return Operation(title, sizes, inputs, reference, 1e-6)


def _positive(n: int) -> Inputs:
    return {"x": np.abs(cases.array_inputs(n)["x"]) + np.float32(0.01)}


def _outputs(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Inputs]:
    return lambda n: {"y": function(cases.array_inputs(n)["x"])}


def _probabilities(rows: int, cols: int) -> Inputs:
    return {"y": cases.softmax(cases.array_inputs(rows, cols)["x"]), "g": cases.array_inputs(cols, rows)["x"].T.copy()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _phi(x: np.ndarray) -> np.ndarray:
    """The normal distribution function."""
    from scipy.special import erfc

    return erfc(-x / math.sqrt(2)) / 2


def _functions(size: int) -> dict[str, Operation]:
    lengths = {title: (bytes_ // size,) for title, bytes_ in BYTES.items()}
    rows = {f"{m} x {n}": (m, n) for m, n in ((4096, 10), (512, 100), (64, 1000), (8, 10000))}
    logits = {f"{n} logits": (n,) for n in (16384, 65536)}
    table = {
        "exp": (cases.array_inputs, np.exp),
        "log": (_positive, np.log),
        "tanh": (cases.array_inputs, np.tanh),
        "relu": (cases.array_inputs, lambda x: np.maximum(x, 0)),
        "sigmoid": (cases.array_inputs, _sigmoid),
        "softplus": (cases.array_inputs, lambda x: np.logaddexp(0, x)),
        "gelu": (cases.array_inputs, lambda x: x * _phi(x)),
        "sigmoid_derivative": (_outputs(_sigmoid), lambda y: y * (1 - y)),
        "tanh_derivative": (_outputs(np.tanh), lambda y: 1 - y * y),
        "softplus_derivative": (_outputs(lambda x: np.logaddexp(0, x)), lambda y: -np.expm1(-y)),
        "gelu_derivative": (
            cases.array_inputs,
            lambda x: _phi(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
        ),
    }
    made = {e: _function(e.replace("_", " "), inputs, answer, lengths) for e, (inputs, answer) in table.items()}
    made["softmax"] = _function("softmax", cases.array_inputs, cases.softmax, rows)
    made["softmax_derivative"] = _function(
        "softmax derivative", _probabilities, lambda y, g: y * (g - (g * y).sum(axis=1, keepdims=True)), rows
    )
    made["bce_gradient"] = replace(OPERATIONS["bce_gradient"], cases=logits)
    return made


# --- arrays that no cache holds ---------------------------------------------------------------------------------------


def _large(size: int) -> dict[str, Operation]:
    arrays = {"relu": 2, "sigmoid": 2, "exp": 2, "adam": 7, "sgd": 3}  # read or written by one call
    title = f"{LARGE >> 20} MiB"
    made = _functions(size) | OPERATIONS
    return {
        f"{e}_large": replace(
            made[e], cases={title: (LARGE // size,)}, work=lambda n, count=count: float(count * n * size)
        )
        for e, count in arrays.items()
    }
