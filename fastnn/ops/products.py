"""Matrix products."""

import numpy as np

from fastnn import activations
from fastnn.cpu import immediate
from fastnn.cpu.calls import PRODUCTS, learn_product
from fastnn.ops.activations import softmax
from fastnn.ops.arrays import check_out, common, floats
from fastnn.threads import get_num_threads


def matmul(a: object, b: object, out: np.ndarray | None = None) -> np.ndarray:
    """Matrix product of two arrays, as `numpy.matmul`.

    Parameters
    ----------
    a : array of shape (..., m, k) or (k,)
        Left operand, any strides.
    b : array of shape (..., k, n) or (k,)
        Right operand, any strides.
    out : array, optional
        Where the result is written; it may overlap the operands.

    Returns
    -------
    ndarray
        ``out[..., i, j] = sum_p a[..., i, p] b[..., p, j]``, of shape (..., m, n).  Leading dimensions are broadcast;
        those of 1-D operands are left out, so that two of them give a scalar.  `out` if that was given.

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

    A batch of matrices:

    >>> fastnn.matmul(np.ones((10, 2, 3)), np.ones((3, 4))).shape
    (10, 2, 4)
    """
    done = PRODUCTS[None](a, b, out, None)
    if done is not None:
        return done
    x, w = common(floats(a, "a"), floats(b, "b"))
    if x.ndim == w.ndim == 2 and x.shape[1] == w.shape[0]:  # the usual case, at once
        result, target = _targets(out, (x.shape[0], w.shape[1]), x, w)
        if result.size:
            threads = get_num_threads()
            immediate.gemm(x, w, target, None, "linear", 0.0, threads)
            learn_product(None, x, w, target, None, threads)
        if target is not result:
            result[...] = target
        return result
    if x.ndim == 0 or w.ndim == 0:
        raise ValueError(f"matmul takes arrays of at least one dimension, got shapes {x.shape} and {w.shape}")
    rows = x[np.newaxis] if x.ndim == 1 else x
    cols = w[:, np.newaxis] if w.ndim == 1 else w
    if rows.shape[-1] != cols.shape[-2]:
        raise ValueError(
            f"matmul of shapes {x.shape} and {w.shape}: {rows.shape[-1]} columns do not meet {cols.shape[-2]} rows"
        )
    try:
        lead = np.broadcast_shapes(rows.shape[:-2], cols.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul of shapes {x.shape} and {w.shape}: the leading dimensions do not fit") from None
    shape = lead + rows.shape[-2:-1] * (x.ndim > 1) + cols.shape[-1:] * (w.ndim > 1)
    result, target = _targets(out, shape, x, w)
    matrices = target[..., np.newaxis] if w.ndim == 1 else target
    matrices = matrices[..., np.newaxis, :] if x.ndim == 1 else matrices
    if result.size:
        _stacks(rows, cols, matrices)
        PRODUCTS.learn(None, x.dtype)
    if target is not result:
        result[...] = target
    return result[()] if out is None and not shape else result


def dot(a: object, b: object, out: np.ndarray | None = None) -> np.ndarray:
    """Dot product of two arrays of at most two dimensions, as `numpy.dot`; a number scales the other operand.

    For stacks of matrices see `matmul`, whose meaning for them is another one.

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
    if type(a) is not np.ndarray or type(b) is not np.ndarray or not 1 <= a.ndim <= 2 or not 1 <= b.ndim <= 2:
        a, b = floats(a, "a"), floats(b, "b")
        if a.ndim == 0 or b.ndim == 0:
            return np.multiply(a, b, out=out) if out is not None else np.multiply(a, b)
        if a.ndim > 2 or b.ndim > 2:
            raise ValueError(f"dot takes arrays of at most two dimensions, got shapes {a.shape} and {b.shape}")
    return matmul(a, b, out)


def dense(
    x: object, w: object, b: object = None, activation: object = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Compute ``activation(x @ w + b)`` in one pass.

    Parameters
    ----------
    x : array of shape (..., k)
        Inputs, of at least two dimensions.
    w : array of shape (k, units)
        Weights.
    b : array of shape (units,), optional
        Bias.
    activation : str or activation, optional
        For example ``"relu"``.
    out : array of shape (..., units), optional
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
    if function.name == "softmax":
        z = dense(x, w, b)
        return softmax(z, z if out is None else out)
    key = (function.name, function.alpha)
    done = PRODUCTS[key](x, w, out, b)
    if done is not None:
        return done
    rows, cols = common(floats(x, "x"), floats(w, "w"))
    if rows.ndim < 2 or cols.ndim != 2 or rows.shape[-1] != cols.shape[0]:
        raise ValueError(
            f"dense takes x of shape (..., k) and w of shape (k, units), got {rows.shape} and {cols.shape}"
        )
    bias = None
    if b is not None:
        bias = np.ascontiguousarray(floats(b, "b"), dtype=rows.dtype)
        if bias.shape != (cols.shape[1],):
            raise ValueError(f"b must have shape ({cols.shape[1]},) for w of shape {cols.shape}, got {bias.shape}")
    shape = (*rows.shape[:-1], cols.shape[1])
    result, target = _targets(out, shape, rows, cols, bias)
    if target.ndim > 2 and not target.flags.c_contiguous:
        target = np.empty(shape, rows.dtype)
    if result.size:
        matrix = target.reshape(-1, cols.shape[1])
        x_rows = rows.reshape(-1, cols.shape[0]) if rows.size else np.empty((len(matrix), 0), rows.dtype)
        threads = get_num_threads()
        immediate.gemm(x_rows, cols, matrix, bias, *key, threads)
        learn_product(key, x_rows, cols, matrix, bias, threads)
    if target is not result:
        result[...] = target
    return result


def _targets(
    out: np.ndarray | None, shape: tuple[int, ...], *operands: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The array that is returned and the one that kernels write, which shares no memory with the operands."""
    dtype = operands[0].dtype  # type: ignore[union-attr]
    if out is None:
        out = np.empty(shape, dtype)
        return out, out
    check_out(out, shape, dtype)
    whole = all(stride % out.itemsize == 0 for stride in out.strides)
    overlaps = any(operand is not None and np.may_share_memory(out, operand) for operand in operands)
    return out, out if whole and out.flags.aligned and not overlaps else np.empty(shape, dtype)


def _stacks(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """``out = a @ b`` for stacks of matrices."""
    threads = get_num_threads()
    lead = out.shape[:-2]
    if b.size == b.shape[-2] * b.shape[-1]:  # one matrix b: the rows of all matrices may be those of one
        rows, c_rows = _as_rows(np.broadcast_to(a, (*lead, *a.shape[-2:]))), _as_rows(out)
        if rows is not None and c_rows is not None:
            matrix = b.reshape(b.shape[-2:])
            immediate.gemm(rows, matrix, c_rows, None, "linear", 0.0, threads)
            learn_product(None, rows, matrix, c_rows, None, threads)
            return
    a, b = np.broadcast_to(a, (*lead, *a.shape[-2:])), np.broadcast_to(b, (*lead, *b.shape[-2:]))
    if 2.0 * out.shape[-2] * out.shape[-1] * a.shape[-1] >= immediate.TOGETHER:  # each is worth all threads
        for index in np.ndindex(lead):
            immediate.gemm(a[index], b[index], out[index], None, "linear", 0.0, threads)
    else:
        immediate.batch(a, b, out, threads)


def _as_rows(stack: np.ndarray) -> np.ndarray | None:
    """The rows of a stack of matrices as one matrix, if their strides are even."""
    count, step = stack.shape[-2], stack.strides[-2]
    for n, stride in zip(stack.shape[-3::-1], stack.strides[-3::-1], strict=True):
        if count == 1:
            count, step = n, stride
        elif n > 1 and stride != count * step:
            return None
        else:
            count *= n
    return stack.reshape(count, stack.shape[-1])
