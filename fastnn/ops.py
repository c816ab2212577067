"""Functions over NumPy arrays: the kernels for those who write their own networks.

They take the place of ``np.dot`` and friends in a hand-written network.  Arrays of float32 and float64 are computed in
their dtype, integers and bools are converted to float64 as NumPy does (Python numbers and lists to float32, the default
of fastnn); where two arrays differ, the wider dtype is used.  Strides may be any: a transposed view costs no copy in
`matmul` and `dense`.
"""

from __future__ import annotations

import numpy as np

from fastnn import _names
from fastnn import activations as activations_
from fastnn.cpu import immediate
from fastnn.cpu.executable import address
from fastnn.records import LOSS, MAP, UPDATE
from fastnn.threads import get_num_threads

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def _floats(value: object, name: str) -> np.ndarray:
    """`value` as an aligned array of float32 or float64 in native byte order."""
    if type(value) is np.ndarray and value.flags.carray and (value.dtype is FLOAT32 or value.dtype is FLOAT64):
        return value  # the usual case, at once
    array = np.asarray(value)
    if array.dtype.kind not in "biu" and array.dtype.name not in ("float32", "float64"):
        raise TypeError(f"{name} must be an array of float32, float64, integers or bools, got dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64 if isinstance(value, np.ndarray | np.generic) else np.float32)
    elif not isinstance(value, np.ndarray | np.generic):
        array = array.astype(np.float32)
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    if not (array.dtype.isnative and array.flags.aligned and whole):
        array = np.ascontiguousarray(array, dtype=array.dtype.name)
    return array


def _common(*arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays of one dtype, the widest."""
    dtype = arrays[0].dtype
    if all(a.dtype is dtype for a in arrays):
        return list(arrays)
    dtype = np.result_type(*arrays)
    return [a if a.dtype == dtype else a.astype(dtype) for a in arrays]


def _check_out(out: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an array, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    return out


# --- products ---------------------------------------------------------------------------------------------------


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
    x, w = _common(_floats(a, "a"), _floats(b, "b"))
    if not 1 <= x.ndim <= 2 or not 1 <= w.ndim <= 2:
        raise ValueError(f"matmul takes arrays of one or two dimensions, got shapes {x.shape} and {w.shape}")
    rows = x[np.newaxis] if x.ndim == 1 else x
    cols = w[:, np.newaxis] if w.ndim == 1 else w
    if rows.shape[1] != cols.shape[0]:
        raise ValueError(
            f"matmul of shapes {x.shape} and {w.shape}: {rows.shape[1]} columns do not meet {len(cols)} rows"
        )
    shape = ((rows.shape[0],) if x.ndim == 2 else ()) + ((cols.shape[1],) if w.ndim == 2 else ())
    result = _product(rows, cols, None, activations_.linear, out, shape)
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
    x, w = _floats(a, "a"), _floats(b, "b")
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
    function = activations_.get(activation)
    rows, cols = _common(_floats(x, "x"), _floats(w, "w"))
    if rows.ndim != 2 or cols.ndim != 2 or rows.shape[1] != cols.shape[0]:
        raise ValueError(f"dense takes x of shape (n, k) and w of shape (k, units), got {rows.shape} and {cols.shape}")
    bias = None
    if b is not None:
        bias = np.ascontiguousarray(_floats(b, "b"), dtype=rows.dtype)
        if bias.shape != (cols.shape[1],):
            raise ValueError(f"b must have shape ({cols.shape[1]},) for w of shape {cols.shape}, got {bias.shape}")
    shape = (rows.shape[0], cols.shape[1])
    if function.name == "softmax":
        return softmax(_product(rows, cols, bias, activations_.linear, None, shape), out)
    return _product(rows, cols, bias, function, out, shape)


def _product(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    function: activations_.Function,
    out: np.ndarray | None,
    shape: tuple[int, ...],
) -> np.ndarray:
    result = np.empty(shape, a.dtype) if out is None else _check_out(out, shape, a.dtype)
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


# --- activations ------------------------------------------------------------------------------------------------


def _map(kernel: str, x: object, out: np.ndarray | None, alpha: float = 0.0, name: str = "x") -> np.ndarray:
    """Run an element-wise kernel over an array."""
    source = _floats(x, name)
    result = np.empty(source.shape, source.dtype) if out is None else _check_out(out, source.shape, source.dtype)
    flat = np.ascontiguousarray(source)
    target = result
    if not result.flags.c_contiguous or not result.flags.aligned or (flat is source and _overlaps_partly(result, flat)):
        target = np.empty(source.shape, source.dtype)
    if flat.size:
        values = {"x": address(flat), "y": address(target), "n": flat.size, "alpha": alpha}
        immediate.run(
            f"activations.{kernel}", flat.dtype.name, MAP, values, work=20.0 * flat.size, threads=get_num_threads()
        )
    if target is not result:
        result[...] = target
    return result if out is not None or result.ndim else result[()]


def _overlaps_partly(a: np.ndarray, b: np.ndarray) -> bool:
    return np.may_share_memory(a, b) and address(a) != address(b)


def linear(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return x itself, as an array of floats (a copy).

    Examples
    --------
    >>> import fastnn
    >>> fastnn.linear([1, 2])
    array([1., 2.], dtype=float32)
    """
    return _map("linear_map", x, out)


def relu(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    x : array
        Any shape.
    out : array, optional
        Where the result is written; it may be `x`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.relu([-1.0, 2.0])
    array([0., 2.], dtype=float32)
    """
    return _map("relu_map", x, out)


def leaky_relu(x: object, negative_slope: float = 0.2, out: np.ndarray | None = None) -> np.ndarray:
    """Return x where it is positive, else ``negative_slope * x``.

    Parameters
    ----------
    x : array
        Any shape.
    negative_slope : float
        At least 0.  Keras' function uses 0.2, its layer 0.3, torch 0.01.
    out : array, optional
        Where the result is written; it may be `x`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.leaky_relu([-1.0, 2.0])
    array([-0.2,  2. ], dtype=float32)
    """
    return _map("leaky_relu_map", x, out, _names.number(negative_slope, "negative_slope", low=0))


def sigmoid(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``1 / (1 + exp(-x))`` within 2 ulp, without overflow.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.sigmoid([-1000.0, 0.0, 1000.0])
    array([0. , 0.5, 1. ], dtype=float32)
    """
    return _map("sigmoid_map", x, out)


def tanh(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return the hyperbolic tangent within 2 ulp.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.tanh([0.0, 1000.0])
    array([0., 1.], dtype=float32)
    """
    return _map("tanh_map", x, out)


def softmax(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``exp(x) / sum(exp(x))`` along the last axis, stable for any x.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.softmax([[1000.0, 1000.0]])
    array([[0.5, 0.5]], dtype=float32)
    """
    source = _floats(x, "x")
    if source.ndim == 0:
        raise ValueError("softmax needs at least one dimension, got a single number")
    result = np.empty(source.shape, source.dtype) if out is None else _check_out(out, source.shape, source.dtype)
    flat = np.ascontiguousarray(source)
    target = np.empty(source.shape, source.dtype)
    if flat.size:
        values = {"x": address(flat), "y": address(target), **_rows(flat)}
        immediate.run(
            "activations.softmax_rows", flat.dtype.name, MAP, values, work=30.0 * flat.size, threads=get_num_threads()
        )
    if out is None:
        return target
    result[...] = target
    return result


def _rows(x: np.ndarray) -> dict[str, int]:
    """A contiguous array as rows along its last axis."""
    cols = x.shape[-1]
    return {"rows": x.size // cols, "cols": cols, "ld": cols}


def relu_derivative(y: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return relu'(x), 1 where the output ``y = relu(x)`` is positive, else 0.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.relu_derivative([0.0, 2.0])
    array([0., 1.], dtype=float32)
    """
    return _map("relu_slope", y, out, name="y")


def leaky_relu_derivative(y: object, negative_slope: float = 0.2, out: np.ndarray | None = None) -> np.ndarray:
    """Return leaky_relu'(x), 1 where the output ``y = leaky_relu(x)`` is positive, else `negative_slope`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.leaky_relu_derivative([-0.2, 2.0])
    array([0.2, 1. ], dtype=float32)
    """
    return _map("leaky_relu_slope", y, out, _names.number(negative_slope, "negative_slope", low=0), name="y")


def sigmoid_derivative(y: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return sigmoid'(x) = y (1 - y) from the output ``y = sigmoid(x)``.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.sigmoid_derivative([0.5])
    array([0.25], dtype=float32)
    """
    return _map("sigmoid_slope", y, out, name="y")


def tanh_derivative(y: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return tanh'(x) = 1 - y^2 from the output ``y = tanh(x)``.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.tanh_derivative([0.5])
    array([0.75], dtype=float32)
    """
    return _map("tanh_slope", y, out, name="y")


def linear_derivative(y: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ones of the shape of `y`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.linear_derivative([0.5])
    array([1.], dtype=float32)
    """
    return _map("linear_slope", y, out, name="y")


def softmax_derivative(y: object, grad: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return the gradient with respect to x of a function of ``y = softmax(x)``: ``y * (grad - sum(grad * y))``.

    Parameters
    ----------
    y : array
        Output of softmax.
    grad : array of the same shape
        Gradient with respect to y.
    out : array, optional
        Where the result is written; it may be `grad`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.softmax_derivative([[0.5, 0.5]], [[1.0, 0.0]])
    array([[ 0.25, -0.25]], dtype=float32)
    """
    s, g = _common(_floats(y, "y"), _floats(grad, "grad"))
    if s.shape != g.shape or s.ndim == 0:
        raise ValueError(f"y and grad must have the same shape of at least one dimension, got {s.shape} and {g.shape}")
    result = np.empty(s.shape, s.dtype) if out is None else _check_out(out, s.shape, s.dtype)
    s, g = np.ascontiguousarray(s), np.ascontiguousarray(g)
    target = np.empty(s.shape, s.dtype)
    if s.size:
        values = {"x": address(s), "g": address(g), "y": address(target), **_rows(s)}
        immediate.run(
            "activations.softmax_gradient", s.dtype.name, MAP, values, work=5.0 * s.size, threads=get_num_threads()
        )
    if out is None:
        return target
    result[...] = target
    return result


# --- losses -----------------------------------------------------------------------------------------------------


def _loss(
    kernel: str, z: np.ndarray, target: np.ndarray, labels: bool, out: np.ndarray | None, *, columns_mean: bool
) -> tuple[float, np.ndarray]:
    """Mean loss over rows and its gradient with respect to z."""
    shape = z.shape
    cols = shape[-1] if z.ndim > 1 or not columns_mean else 1
    work = np.array(z, order="C", copy=True).reshape(-1, cols)
    grad = np.empty(shape, z.dtype) if out is None else _check_out(out, shape, z.dtype)
    flat = np.empty(work.shape, z.dtype)
    value = np.empty(len(work), z.dtype)
    if not work.size:
        raise ValueError(f"the loss of an empty array of shape {shape} is not defined")
    values = {
        "z": address(work),
        "grad": address(flat),
        "value": address(value),
        **_rows(work),
        "label" if labels else "target": address(target),
        "target_ld": cols,
        "scale": 1.0 / len(work),
    }
    immediate.run(f"losses.{kernel}", z.dtype.name, LOSS, values, work=40.0 * work.size, threads=get_num_threads())
    grad[...] = flat.reshape(shape)
    return float(value.sum(dtype=np.float64) / len(work)), grad


def _same_shape(first: object, second: object, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of one shape and dtype; targets that are integers take the dtype of the predictions."""
    z, t = _floats(first, names[0]), _floats(second, names[1])
    exact = np.asarray(second).dtype.kind != "f"
    if z.shape != t.shape or z.ndim == 0:
        raise ValueError(
            f"{' and '.join(names)} must have the same shape of at least one dimension, got {z.shape} and {t.shape}"
        )
    if t.dtype != z.dtype:
        z, t = (z, t.astype(z.dtype)) if exact else _common(z, t)
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
    zs, ts = _same_shape(z, t, ("z", "t"))
    if ts.size and not (ts.min() >= 0 and ts.max() <= 1):
        raise ValueError(f"t must lie between 0 and 1, got values from {ts.min()} to {ts.max()}")
    return _loss("sigmoid_crossentropy", zs, ts, False, out, columns_mean=True)


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
    zs = _floats(z, "z")
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
        return _loss("sparse_softmax_crossentropy", zs, labels, True, out, columns_mean=False)
    zs, ts = _same_shape(zs, t, ("z", "t"))
    if ts.size and not (ts.min() >= 0 and ts.max() <= 1):
        raise ValueError(f"t must lie between 0 and 1, got values from {ts.min()} to {ts.max()}")
    return _loss("softmax_crossentropy", zs, ts, False, out, columns_mean=False)


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
    ys, ts = _same_shape(y, t, ("y", "t"))
    return _loss("mean_squared_error", ys, ts, False, out, columns_mean=True)


# --- optimizers -------------------------------------------------------------------------------------------------


def _in_place(array: object, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """An array that a kernel may update: contiguous float32 or float64, of the dtype and shape of `like`."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be an array, since it is updated in place; got {type(array).__name__}")
    if array.dtype.name not in ("float32", "float64") or not array.dtype.isnative:
        raise TypeError(f"{name} must have dtype float32 or float64, got {array.dtype}")
    if like is not None and array.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of param, {like.dtype}, got {array.dtype}")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"{name} must have the shape of param, {like.shape}, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return array


def _update(kernel: str, arrays: dict[str, np.ndarray], grad: object, rate: float, constants: dict[str, float]) -> None:
    param = arrays["p"]
    g = _floats(grad, "grad")
    if g.shape != param.shape:
        raise ValueError(f"grad must have the shape of param, {param.shape}, got {g.shape}")
    # Work on contiguous memory; strided arrays are copied and written back.
    packed = {field: np.ascontiguousarray(array) for field, array in arrays.items()}
    flat = np.ascontiguousarray(g, dtype=param.dtype)
    if param.size:
        values: dict[str, int | float] = {field: address(array) for field, array in packed.items()}
        values |= {"g": address(flat), "n": param.size, **constants}
        immediate.run(
            f"optimizers.{kernel}_flat",
            param.dtype.name,
            UPDATE,
            values,
            work=20.0 * param.size,
            threads=get_num_threads(),
            rate=rate,
        )
    for field, array in arrays.items():
        if packed[field] is not array:
            array[...] = packed[field]


def sgd_update(
    param: np.ndarray,
    grad: object,
    velocity: np.ndarray | None = None,
    *,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> None:
    """One step of stochastic gradient descent, in place.

    ``param -= learning_rate grad``, or with momentum ``velocity = momentum velocity - learning_rate grad`` and
    ``param += velocity`` (Nesterov: ``param += momentum velocity - learning_rate grad``), as in Keras.

    Parameters
    ----------
    param : array
        Parameters, updated.
    grad : array of the same shape
        Gradient.
    velocity : array of the same shape, optional
        Needed with momentum; starts as zeros, updated.
    learning_rate, momentum : float
        At least 0; momentum at most 1.
    nesterov : bool
        Whether to use Nesterov's form.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> p = np.array([1.0, 2.0])
    >>> fastnn.sgd_update(p, np.array([10.0, 10.0]), learning_rate=0.1)
    >>> p
    array([0., 1.])
    """
    arrays = {"p": _in_place(param, "param")}
    rate = _names.number(learning_rate, "learning_rate", low=0)
    mu = _names.number(momentum, "momentum", low=0, high=1)
    if mu == 0:
        _update("sgd", arrays, grad, rate, {})
        return
    if velocity is None:
        raise ValueError("velocity is missing: momentum needs an array of the shape of param (zeros at first)")
    arrays["s0"] = _in_place(velocity, "velocity", param)
    _update("nesterov" if nesterov else "momentum", arrays, grad, rate, {"momentum": mu})


def adam_update(
    param: np.ndarray,
    grad: object,
    m: np.ndarray,
    v: np.ndarray,
    step: int,
    *,
    learning_rate: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
) -> None:
    """One step of Adam, in place, in one pass over memory.

    Parameters
    ----------
    param : array
        Parameters, updated.
    grad : array of the same shape
        Gradient.
    m, v : arrays of the same shape
        The two moments: zeros at first, updated.
    step : int
        Number of this step, from 1.
    learning_rate, beta_1, beta_2, epsilon : float
        As for `fastnn.optimizers.Adam`.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastnn.adam_update(p, np.array([1.0, -1.0]), m, v, 1, learning_rate=0.1)
    >>> p.round(4)
    array([0.9, 1.1])
    """
    arrays = {"p": _in_place(param, "param"), "s0": _in_place(m, "m", param), "s1": _in_place(v, "v", param)}
    t = _names.integer(step, "step", low=1)
    rate = _names.number(learning_rate, "learning_rate", low=0)
    b1 = _names.number(beta_1, "beta_1", low=0, high=1, open_high=True)
    b2 = _names.number(beta_2, "beta_2", low=0, high=1, open_high=True)
    eps = _names.number(epsilon, "epsilon", low=0, open_low=True)
    rate *= (1 - b2**t) ** 0.5 / (1 - b1**t)
    _update("adam", arrays, grad, rate, {"decay_1": 1 - b1, "decay_2": 1 - b2, "epsilon": eps})
