"""Matrix products."""

import numpy as np

from fastnn import activations
from fastnn.cpu import immediate
from fastnn.ops.activations import softmax
from fastnn.ops.arrays import FLOAT32, FLOAT64, check_out, common, floats
from fastnn.threads import get_num_threads

KERNELS = (FLOAT32, FLOAT64)  # dtypes that are computed as they are


def matmul(a: object, b: object, out: np.ndarray | None = None) -> np.ndarray:
    """Matrix product of two arrays, as `numpy.matmul` for one and two dimensions.

    Parameters
    ----------
    a : array of shape (m, k) or (k,)
        Left operand, any strides.
    b : array of shape (k, n) or (k,)
        Right operand, any strides.
    out : array, optional
        Where the result is written; it may overlap the operands.

    Returns
    -------
    ndarray
        Of shape (m, n), without the dimensions of 1-D operands; `out` if that was given.  Two 1-D operands give a
        scalar.

    Raises
    ------
    TypeError
        If an operand is not of numbers, or `out` has another dtype.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> fastnn.matmul(np.eye(2), np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[1., 2.],
           [3., 4.]])
    """
    if type(a) is np.ndarray and type(b) is np.ndarray and a.ndim == 2 and b.ndim == 2:
        dtype = a.dtype
        run = immediate.MEMORY.products.get(dtype) or (immediate.direct(dtype) if dtype in KERNELS else None)
        result = np.empty((a.shape[0], b.shape[1]), dtype) if out is None else out
        if run is not None and type(result) is np.ndarray and run(id(a), id(b), id(result), 0) == 0:
            return result
    x, w = common(floats(a, "a"), floats(b, "b"))
    if not 1 <= x.ndim <= 2 or not 1 <= w.ndim <= 2:
        raise ValueError(f"matmul takes arrays of one or two dimensions, got shapes {x.shape} and {w.shape}")
    rows = x[np.newaxis] if x.ndim == 1 else x
    cols = w[:, np.newaxis] if w.ndim == 1 else w
    if rows.shape[1] != cols.shape[0]:
        raise ValueError(
            f"matmul of shapes {x.shape} and {w.shape}: {rows.shape[1]} columns do not meet {len(cols)} rows"
        )
    shape = ((rows.shape[0],) if x.ndim == 2 else ()) + ((cols.shape[1],) if w.ndim == 2 else ())
    result = _product(rows, cols, None, activations.linear, out, shape)
    return result[()] if out is None and not shape else result


def dot(a: object, b: object, out: np.ndarray | None = None) -> np.ndarray:
    """Dot product of two arrays of at most two dimensions, as `numpy.dot`; a number scales the other operand.

    Parameters
    ----------
    a, b, out
        As for `matmul`.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> fastnn.dot(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    np.float64(11.0)
    """
    x, w = floats(a, "a"), floats(b, "b")
    if x.ndim == 0 or w.ndim == 0:
        return np.multiply(x, w, out=out) if out is not None else np.multiply(x, w)
    return matmul(a, b, out)


def dense(
    x: object, w: object, b: object = None, activation: object = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Compute ``activation(x @ w + b)`` in one pass.

    Parameters
    ----------
    x : array of shape (n, k)
        Inputs.
    w : array of shape (k, units)
        Weights.
    b : array of shape (units,), optional
        Bias.
    activation : str or activation, optional
        For example ``"relu"``.
    out : array of shape (n, units), optional
        Where the result is written; it may overlap the operands.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or name does not fit.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> fastnn.dense(np.array([[1.0, -2.0]]), np.eye(2), np.array([0.5, 0.5]), "relu")
    array([[1.5, 0. ]])
    """
    function = activations.get(activation)
    if type(x) is np.ndarray and type(w) is np.ndarray and x.ndim == 2 and w.ndim == 2 and x.dtype in KERNELS:
        result = np.empty((x.shape[0], w.shape[1]), x.dtype) if out is None else out
        simple = type(result) is np.ndarray and (b is None or type(b) is np.ndarray) and function.name != "softmax"
        if simple:
            run = immediate.direct(x.dtype, function.name, function.alpha)
            if run(id(x), id(w), id(result), 0 if b is None else id(b)) == 0:
                return result
    rows, cols = common(floats(x, "x"), floats(w, "w"))
    if rows.ndim != 2 or cols.ndim != 2 or rows.shape[1] != cols.shape[0]:
        raise ValueError(f"dense takes x of shape (n, k) and w of shape (k, units), got {rows.shape} and {cols.shape}")
    bias = None
    if b is not None:
        bias = np.ascontiguousarray(floats(b, "b"), dtype=rows.dtype)
        if bias.shape != (cols.shape[1],):
            raise ValueError(f"b must have shape ({cols.shape[1]},) for w of shape {cols.shape}, got {bias.shape}")
    shape = (rows.shape[0], cols.shape[1])
    if function.name == "softmax":
        return softmax(_product(rows, cols, bias, activations.linear, None, shape), out)
    return _product(rows, cols, bias, function, out, shape)


def _product(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    function: activations.Function,
    out: np.ndarray | None,
    shape: tuple[int, ...],
) -> np.ndarray:
    result = np.empty(shape, a.dtype) if out is None else check_out(out, shape, a.dtype)
    target = result
    strided = out is not None and any(s % out.itemsize for s in out.strides)
    if out is not None and (strided or not out.flags.aligned or _overlaps(out, a, b, bias)):
        target = np.empty(shape, a.dtype)
    if result.size:
        matrix = target.reshape(a.shape[0], b.shape[1])
        immediate.gemm(a, b, matrix, bias, function.name, function.alpha, get_num_threads())
    if target is not result:
        result[...] = target
    return result


def _overlaps(out: np.ndarray, *operands: np.ndarray | None) -> bool:
    return any(operand is not None and np.may_share_memory(out, operand) for operand in operands)
