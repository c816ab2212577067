"""Element-wise functions, activations and their derivatives, which take the activation's output (gelu's the input)."""

import numpy as np

from fastnn import _names
from fastnn.cpu import immediate
from fastnn.cpu.blocking import FAR
from fastnn.cpu.calls import MAPS
from fastnn.cpu.memory import address
from fastnn.ops.arrays import check_out, common, floats, rows_of
from fastnn.records import MAP
from fastnn.threads import get_num_threads


def _map(kernel: str, x: object, out: np.ndarray | None, alpha: float = 0.0, name: str = "x") -> np.ndarray:
    """Run an element-wise kernel over an array."""
    done = MAPS[kernel](x, out, alpha, None)
    if done is not None:
        return done
    source = floats(x, name)
    result = np.empty(source.shape, source.dtype) if out is None else check_out(out, source.shape, source.dtype)
    flat = np.ascontiguousarray(source)
    target = result
    if not result.flags.c_contiguous or not result.flags.aligned or (flat is source and _overlaps_partly(result, flat)):
        target = np.empty(source.shape, source.dtype)
    if flat.size:
        values = {"x": address(flat), "y": address(target), "n": flat.size, "alpha": alpha}
        values["far"] = target.nbytes >= FAR and target is not flat
        immediate.run(
            f"activations.{kernel}", flat.dtype, MAP, values, work=20.0 * flat.size, threads=get_num_threads()
        )
        MAPS.learn(kernel, flat.dtype)
    if target is not result:
        result[...] = target
    return result if out is not None or result.ndim else result[()]


def _overlaps_partly(a: np.ndarray, b: np.ndarray) -> bool:
    return np.may_share_memory(a, b) and address(a) != address(b)


def exp(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``e^x`` within 1 ulp.

    Parameters
    ----------
    x : array
        Any shape.
    out : array, optional
        Where the result is written; it may be `x`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.exp([0.0, 1.0])
    array([1.       , 2.7182817], dtype=float32)
    """
    return _map("exp_map", x, out)


def expm1(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``exp(x) - 1`` within 2 ulp, also where x is small.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.expm1([0.0, 1e-10])
    array([0.e+00, 1.e-10], dtype=float32)
    """
    return _map("expm1_map", x, out)


def log(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return the natural logarithm within 2 ulp: -inf at 0 and NaN below, without a warning.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.log([1.0, 0.0])
    array([  0., -inf], dtype=float32)
    """
    return _map("log_map", x, out)


def log1p(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``log(1 + x)`` within 2 ulp, also where x is small: -inf at -1 and NaN below, without a warning.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.log1p([0.0, 1e-10])
    array([0.e+00, 1.e-10], dtype=float32)
    """
    return _map("log1p_map", x, out)


def erf(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return the error function within 2 ulp.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.erf([0.0, 1.0])
    array([0.       , 0.8427008], dtype=float32)
    """
    return _map("erf_map", x, out)


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


def softplus(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``log(1 + exp(x))`` within 2 ulp, without overflow.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.softplus([-1000.0, 0.0, 1000.0])
    array([0.000000e+00, 6.931472e-01, 1.000000e+03], dtype=float32)
    """
    return _map("softplus_map", x, out)


def gelu(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``x * Phi(x)``, Phi the normal distribution's, within 2 ulp: exact, not the approximation by tanh.

    The limit at -inf is -0.0.

    Parameters
    ----------
    x : array
        Any shape.
    out : array, optional
        Where the result is written; it may be `x`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.gelu([-1.0, 0.0, 1.0])
    array([-0.15865526,  0.        ,  0.8413447 ], dtype=float32)
    """
    return _map("gelu_map", x, out)


def softmax(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return ``exp(x) / sum(exp(x))`` along the last axis, stable for any x.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.softmax([[1000.0, 1000.0]])
    array([[0.5, 0.5]], dtype=float32)
    """
    done = MAPS["softmax_rows"](x, out, 0.0, None)
    if done is not None:
        return done
    source = floats(x, "x")
    if source.ndim == 0:
        raise ValueError("softmax needs at least one dimension, got a single number")
    result = np.empty(source.shape, source.dtype) if out is None else check_out(out, source.shape, source.dtype)
    flat = np.ascontiguousarray(source)
    target = result if out is None else np.empty(source.shape, source.dtype)
    if flat.size:
        values = {"x": address(flat), "y": address(target), **rows_of(flat)}
        immediate.run(
            "activations.softmax_rows", flat.dtype, MAP, values, work=30.0 * flat.size, threads=get_num_threads()
        )
        MAPS.learn("softmax_rows", flat.dtype)
    if target is not result:
        result[...] = target
    return result


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


def softplus_derivative(y: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return softplus'(x) = 1 - exp(-y) from the output ``y = softplus(x)``.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.softplus_derivative([0.6931472])
    array([0.5], dtype=float32)
    """
    return _map("softplus_slope", y, out, name="y")


def gelu_derivative(x: object, out: np.ndarray | None = None) -> np.ndarray:
    """Return gelu'(x) = Phi(x) + x phi(x) from the input x (gelu is not monotonic: its output does not tell x).

    phi is the normal distribution's density.  The error is at most 2 ulp of 1, and small relative to the result except
    near its zero at x = -0.7518.

    Parameters
    ----------
    x : array
        Any shape.
    out : array, optional
        Where the result is written; it may be `x`.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.gelu_derivative([0.0, 10.0])
    array([0.5, 1. ], dtype=float32)
    """
    return _map("gelu_slope", x, out)


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
    done = MAPS["softmax_gradient"](y, out, 0.0, grad)
    if done is not None:
        return done
    s, g = common(floats(y, "y"), floats(grad, "grad"))
    if s.shape != g.shape or s.ndim == 0:
        raise ValueError(f"y and grad must have the same shape of at least one dimension, got {s.shape} and {g.shape}")
    result = np.empty(s.shape, s.dtype) if out is None else check_out(out, s.shape, s.dtype)
    s, g = np.ascontiguousarray(s), np.ascontiguousarray(g)
    target = result if out is None else np.empty(s.shape, s.dtype)
    if s.size:
        values = {"x": address(s), "g": address(g), "y": address(target), **rows_of(s)}
        immediate.run(
            "activations.softmax_gradient", s.dtype, MAP, values, work=5.0 * s.size, threads=get_num_threads()
        )
        MAPS.learn("softmax_gradient", s.dtype)
    if target is not result:
        result[...] = target
    return result
