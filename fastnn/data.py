"""What users pass in: validated, and described for a plan, before any work is done.

Arrays are read where they are: float32, float64 and uint8 in any strides; other numbers are converted once.  That goes
for files mapped to memory, too: nothing as large as the data is made to check it.
"""

import math
import mmap

import numpy as np

from fastnn.losses import Loss
from fastnn.stages import Feed

# Dtypes that a batch is gathered from without a copy, by NumPy's characters for them: to ask for a name takes 10 us.
DIRECT = {"B": "uint8", "f": "float32", "d": "float64"}
SAMPLED = 16  # rows in which zeros are counted: 10 us for those of MNIST ...
COUNTED = 1 << 16  # ... and elements at most, unless a single row has more
PIECE = 1 << 20  # bytes of targets that are looked at together


def as_numbers(value: object, name: str) -> np.ndarray:
    """`value` as an array of real numbers, or a TypeError that says what it was."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested lists
        raise ValueError(f"{name} is not a rectangular array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    return array


def is_direct(array: np.ndarray) -> bool:
    """Whether kernels can read the array: a direct dtype in native byte order, aligned, whole-element strides."""
    dtype = array.dtype
    whole = array.flags.c_contiguous or all(stride % array.itemsize == 0 for stride in array.strides)
    return dtype.char in DIRECT and dtype.isnative and array.flags.aligned and whole


def is_mapped(array: object) -> bool:
    """Whether the array's memory is a file."""
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return isinstance(array, mmap.mmap)


def is_whole(array: object) -> bool:
    """Whether a file mapped to memory would have to be converted as a whole, to be read as a matrix of samples.

    One number a sample (class numbers, say) is no matter.
    """
    if not isinstance(array, np.ndarray) or array.ndim < 2 or len(array) == 0 or not is_mapped(array):
        return False
    return not (is_direct(array) and np.may_share_memory(array[:1].reshape(1, -1), array))


def readable(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array`, if it is direct, else a copy that is."""
    if is_direct(array):
        return array
    return np.ascontiguousarray(array, dtype=DIRECT.get(array.dtype.char, dtype))


def matrix(array: np.ndarray, dtype: str, scale: float = 1.0, offset: float = 0.0) -> tuple[np.ndarray, Feed]:
    """An array of samples as a matrix and its feed.  Reshaping copies only where strides leave no choice."""
    rows = array.reshape(len(array), -1) if array.ndim != 2 else array
    rows = readable(rows, dtype)
    row, col = (stride // rows.itemsize for stride in rows.strides)
    return rows, Feed(DIRECT[rows.dtype.char], rows.shape[1], row, col, scale, offset)


def density(matrix: np.ndarray) -> float:
    """The share of elements that are not 0, in a few rows from all over the matrix."""
    most = max(1, min(SAMPLED, COUNTED // matrix.shape[1]))
    rows = matrix[:: -(-len(matrix) // most) | 1]  # an odd step, since every other row may be of another kind
    return np.count_nonzero(rows) / rows.size


def _extremes(array: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest element; NaN if one is, 0 if there are none.  Without temporaries."""
    if array.size == 0:
        return 0, 0
    return np.minimum.reduce(array, axis=None).item(), np.maximum.reduce(array, axis=None).item()


def _not_finite(array: np.ndarray) -> tuple[int, ...]:
    """Where the first element is that is not finite as a float64; looked for in pieces, since it needs temporaries."""
    rows = max(1, len(array) * PIECE // array.nbytes)
    for first in range(0, len(array), rows):
        with np.errstate(over="ignore"):
            piece = array[first : first + rows].astype(np.float64, copy=False)
        found = np.argwhere(~np.isfinite(piece))
        if len(found):
            row, *rest = (int(i) for i in found[0])
            return first + row, *rest
    raise AssertionError("all elements are finite")


def samples(x: object, input_shape: tuple[int, ...] | None, name: str = "x") -> np.ndarray:
    """Inputs as an array whose first dimension counts samples; 1-D inputs are (n, 1)."""
    array = as_numbers(x, name)
    given = array.shape
    if array.ndim == 0:
        raise ValueError(f"{name} must be an array of samples, got the single number {array}")
    if array.ndim == 1:
        array = array[:, np.newaxis]
    if len(array) == 0:
        raise ValueError(f"{name} is empty: shape {given}")
    if 0 in array.shape:
        raise ValueError(f"{name} has samples without values: shape {given}")
    if input_shape is not None and array.shape[1:] != input_shape:
        expected = ", ".join(["n", *map(str, input_shape)])
        raise ValueError(f"{name} must have shape ({expected}), got {given}")
    return array


def targets(y: object, loss: Loss, units: int, n: int, dtype: str) -> np.ndarray:
    """Targets that fit a loss with `units` outputs for `n` samples.

    Class numbers come back as contiguous int64 of shape (n,), others as a matrix (n, units).
    """
    if y is None:
        raise ValueError("y is missing: training and evaluation need targets")
    array = as_numbers(y, "y")
    if array.ndim == 0 or len(array) != n:
        raise ValueError(f"y must have one entry for each of the {n} samples of x, got shape {array.shape}")
    bounds = _extremes(array)
    if not all(map(math.isfinite, bounds)):
        where = _not_finite(array)
        raise ValueError(f"y holds {array[where]} at {where}: targets must be finite")
    return _labels(array, loss, units, bounds) if loss.labels else _values(array, loss, units, dtype, bounds)


def are_targets(y: np.ndarray, loss: Loss, units: int) -> bool:
    """Whether `targets` would return the array as it is, given that it did so for one of this shape and dtype."""
    if loss.labels:
        return int(np.maximum.reduce(y.view(np.uint64), axis=None)) < units  # negative numbers become large ones
    low, high = _extremes(y)
    if loss.activation is not None:
        return low >= 0 and high <= 1  # NaN is neither
    return math.isfinite(low) and math.isfinite(high)


def _labels(array: np.ndarray, loss: Loss, units: int, bounds: tuple[float, float]) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; for one-hot targets use categorical_crossentropy" if array.shape[1:] == (units,) else ""
        raise ValueError(f"y must hold class numbers of shape (n,) for {loss.name}, got shape {array.shape}{hint}")
    labels = np.ascontiguousarray(array, dtype=np.int64)
    if array.dtype.kind == "f" and (labels != array).any():
        raise ValueError(f"y must hold whole class numbers for {loss.name}, got {array[labels != array][0]}")
    low, high = map(int, bounds)
    if low < 0 or high >= units:
        raise ValueError(
            f"y must hold class numbers from 0 to {units - 1} (the last layer has {units} units), got {low} to {high}"
        )
    return labels


def _values(array: np.ndarray, loss: Loss, units: int, dtype: str, bounds: tuple[float, float]) -> np.ndarray:
    if array.ndim == 1 and units == 1:
        array = array[:, np.newaxis]
    if array.shape[1:] != (units,):
        hint = ""
        if loss.name == "categorical_crossentropy" and array.ndim == 1:
            hint = "; for class numbers use sparse_categorical_crossentropy"
        raise ValueError(f"y must have shape (n, {units}) for {loss.name}, got {array.shape}{hint}")
    if loss.activation is not None:
        low, high = bounds
        if low < 0 or high > 1:
            raise ValueError(f"y must lie between 0 and 1 for {loss.name}, got values from {low} to {high}")
    return readable(array, dtype)


def weights(sample_weight: object, class_weight: object, y: np.ndarray, n: int) -> np.ndarray | None:
    """Sample weights times the weights of the samples' classes, contiguous float64; None if there are neither."""
    total = None
    if sample_weight is not None:
        array = as_numbers(sample_weight, "sample_weight")
        if array.shape not in ((n,), (n, 1)):
            raise ValueError(f"sample_weight must have shape ({n},), got {array.shape}")
        bad = array[~(np.isfinite(array) & (array >= 0))]
        if bad.size:
            raise ValueError(f"sample_weight must be finite and not negative, got {bad.flat[0]}")
        total = np.ascontiguousarray(array.reshape(n), dtype=np.float64)
    if class_weight is not None:
        factor = _class_weights(class_weight, y)
        total = factor if total is None else total * factor
    return total


def _class_weights(class_weight: object, y: np.ndarray) -> np.ndarray:
    if not isinstance(class_weight, dict):
        raise TypeError(f"class_weight must be a dict from class to weight, got {class_weight!r}")
    if y.ndim == 1:
        classes = y
    elif y.shape[1] == 1:
        classes = y[:, 0]
        if (classes != np.round(classes)).any():
            raise ValueError("class_weight needs targets that are classes, got fractions")
    else:
        classes = y.argmax(axis=1)
    factor = np.ones(len(y))
    for label, weight in class_weight.items():
        try:
            value = float(weight)
        except (TypeError, ValueError):
            raise TypeError(f"class_weight[{label!r}] must be a number, got {weight!r}") from None
        if not np.isfinite(value) or value < 0:
            raise ValueError(f"class_weight[{label!r}] must be finite and not negative, got {weight!r}")
        factor[classes == label] = value
    return factor
