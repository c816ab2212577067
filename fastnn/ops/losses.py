"""Losses fused with their activation: value and gradient in one pass."""

import numpy as np

from fastnn.cpu import immediate
from fastnn.cpu.blocking import ROW
from fastnn.cpu.calls import LOSSES
from fastnn.cpu.memory import address
from fastnn.ops.arrays import check_out, common, floats
from fastnn.records import LOSS
from fastnn.threads import get_num_threads


def _loss(
    kernel: str, z: np.ndarray, target: np.ndarray, out: np.ndarray | None, *, by_rows: bool = False
) -> tuple[float, np.ndarray]:
    """Mean loss and its gradient with respect to z, whose rows stand for themselves if `by_rows`."""
    if not z.size:
        raise ValueError(f"the loss of an empty array of shape {z.shape} is not defined")
    result = np.empty(z.shape, z.dtype) if out is None else check_out(out, z.shape, z.dtype)
    flat = np.ascontiguousarray(z)
    usable = result.flags.c_contiguous and result.flags.aligned
    apart = not np.may_share_memory(result, target) and (not np.may_share_memory(result, flat) or result is z)
    grad = result if usable and apart else np.empty(z.shape, z.dtype)
    cols = z.shape[-1] if by_rows else min(z.size, ROW)
    total = 0.0
    first = 0
    while first < z.size:  # once, and once more for what is left of a whole number of rows
        rows, width = ((z.size - first) // cols, cols) if z.size - first >= cols else (1, z.size - first)
        value = np.empty(rows, z.dtype)
        at = first * z.itemsize
        values = {
            "z": address(flat) + at,
            "p": address(grad) + at,
            "grad": address(grad) + at,
            "value": address(value),
            "rows": rows,
            "cols": width,
            "ld": width,
            "target_ld": width,
            # Kernels divide by the columns where the loss is a mean over them.
            "scale": 1.0 / rows if by_rows else width / z.size,
        }
        values["label" if target.dtype == np.int64 else "target"] = address(target) + (0 if by_rows else at)
        size = rows * width
        immediate.run(f"losses.{kernel}", z.dtype, LOSS, values, work=40.0 * size, threads=get_num_threads())
        LOSSES.learn(kernel, z.dtype)
        total += float(value.sum(dtype=np.float64)) * (1.0 / rows if by_rows else width / z.size)
        first += size
    if grad is not result:
        result[...] = grad
    return total, result


def _same_shape(first: object, second: object, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of one shape and dtype; targets that are integers take the dtype of the predictions."""
    z, t = floats(first, names[0]), floats(second, names[1])
    exact = np.asarray(second).dtype.kind != "f"
    if z.shape != t.shape or z.ndim == 0:
        raise ValueError(
            f"{' and '.join(names)} must have the same shape of at least one dimension, got {z.shape} and {t.shape}"
        )
    if t.dtype != z.dtype:
        z, t = (z, t.astype(z.dtype)) if exact else common(z, t)
    return z, np.ascontiguousarray(t)


def bce_with_logits(z: object, t: object, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Binary cross-entropy of sigmoid(z) and its gradient, in one pass.

    Parameters
    ----------
    z : array
        Logits.
    t : array of the same shape
        Targets from 0 to 1.
    out : array, optional
        Where the gradient is written; it may be `z`.

    Returns
    -------
    loss : float
        ``mean(max(z, 0) - z t + log1p(exp(-|z|)))`` over all elements.
    grad : ndarray
        ``(sigmoid(z) - t) / z.size``.

    Raises
    ------
    ValueError
        If shapes differ, a target is NaN or outside 0 to 1.

    Examples
    --------
    >>> import fastnn
    >>> loss, grad = fastnn.bce_with_logits([0.0, 1000.0], [1.0, 1.0])
    >>> round(loss, 4), grad
    (0.3466, array([-0.25,  0.  ], dtype=float32))
    """
    done = LOSSES["sigmoid_crossentropy"](z, t, out)
    if done is not None:
        return done
    zs, ts = _same_shape(z, t, ("z", "t"))
    if ts.size and not (ts.min() >= 0 and ts.max() <= 1):
        raise ValueError(f"t must lie between 0 and 1, got values from {ts.min()} to {ts.max()}")
    return _loss("sigmoid_crossentropy", zs, ts, out)


def softmax_cross_entropy(z: object, t: object, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Cross-entropy of softmax(z) along the last axis and its gradient, in one pass.

    Parameters
    ----------
    z : array of shape (n, classes)
        Logits.
    t : array of shape (n,) of integers, or (n, classes)
        Class numbers, or a distribution per row.
    out : array, optional
        Where the gradient is written; it may be `z`.

    Returns
    -------
    loss : float
        ``mean(log(sum(exp(z))) - z[label])`` over rows.
    grad : ndarray
        ``(softmax(z) - onehot) / n``.

    Raises
    ------
    ValueError
        If shapes do not fit, or a class number or probability is out of range.

    Examples
    --------
    >>> import fastnn
    >>> loss, grad = fastnn.softmax_cross_entropy([[0.0, 0.0]], [1])
    >>> round(loss, 4), grad
    (0.6931, array([[ 0.5, -0.5]], dtype=float32))
    """
    labelled = type(t) is np.ndarray and t.ndim == 1
    done = LOSSES["sparse_softmax_crossentropy" if labelled else "softmax_crossentropy"](z, t, out)
    if done is not None:
        return done
    zs = floats(z, "z")
    if zs.ndim != 2:
        raise ValueError(f"z must have shape (n, classes), got {zs.shape}")
    target = np.asarray(t)
    if target.ndim == 1:
        if target.dtype.kind not in "biu" or len(target) != len(zs):
            raise ValueError(
                f"t must hold {len(zs)} class numbers (integers) or have shape {zs.shape}, got {target.dtype} of shape "
                f"{target.shape}"
            )
        labels = np.ascontiguousarray(target, dtype=np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= zs.shape[1]):
            raise ValueError(
                f"t must hold class numbers from 0 to {zs.shape[1] - 1}, got {labels.min()} to {labels.max()}"
            )
        return _loss("sparse_softmax_crossentropy", zs, labels, out, by_rows=True)
    zs, ts = _same_shape(zs, t, ("z", "t"))
    if ts.size and not (ts.min() >= 0 and ts.max() <= 1):
        raise ValueError(f"t must lie between 0 and 1, got values from {ts.min()} to {ts.max()}")
    return _loss("softmax_crossentropy", zs, ts, out, by_rows=True)


def mse(y: object, t: object, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Mean squared error and its gradient, in one pass.

    Parameters
    ----------
    y, t : arrays of the same shape
        Predictions and targets.
    out : array, optional
        Where the gradient is written; it may be `y`.

    Returns
    -------
    loss : float
        ``mean((y - t)^2)`` over all elements.
    grad : ndarray
        ``2 (y - t) / y.size``.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.mse([1.0, 2.0], [1.0, 0.0])
    (2.0, array([0., 2.], dtype=float32))
    """
    done = LOSSES["mean_squared_error"](y, t, out)
    if done is not None:
        return done
    ys, ts = _same_shape(y, t, ("y", "t"))
    return _loss("mean_squared_error", ys, ts, out)
