"""Activation functions by name, for layers; the functions over arrays are in `fastnn.ops`."""

from dataclasses import dataclass

from fastnn import _names


@dataclass(frozen=True)
class Function:
    """An activation function with its parameter.

    Parameters
    ----------
    name : str
        One of linear, relu, leaky_relu, sigmoid, tanh and softmax.
    alpha : float
        The slope of leaky_relu below 0.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.layers.Dense(8, activation=fastnn.activations.Function("leaky_relu", 0.01)).activation.alpha
    0.01
    """

    name: str
    alpha: float = 0.0


linear = Function("linear")
relu = Function("relu")
leaky_relu = Function("leaky_relu", 0.2)
sigmoid = Function("sigmoid")
tanh = Function("tanh")
softmax = Function("softmax")

FUNCTIONS = {f.name: f for f in (linear, relu, leaky_relu, sigmoid, tanh, softmax)}


def get(identifier: object) -> Function:
    """Return the activation that `identifier` names.

    Parameters
    ----------
    identifier : str, Function, callable or None
        A name such as ``"relu"``, a `Function`, one of the functions of fastnn with such a name, or None for linear.

    Raises
    ------
    ValueError
        If there is no activation of that name; the nearest is suggested.
    TypeError
        If `identifier` is none of these.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.activations.get("tanh")
    Function(name='tanh', alpha=0.0)
    """
    if type(identifier) is str and identifier in FUNCTIONS:
        return FUNCTIONS[identifier]
    if identifier is None:
        return linear
    if isinstance(identifier, Function):
        return identifier
    if isinstance(identifier, str):
        return _names.find(identifier, FUNCTIONS, "activation")
    if getattr(identifier, "__module__", None) == "fastnn.ops.activations":  # one of fastnn's functions over arrays
        return _names.find(getattr(identifier, "__name__", ""), FUNCTIONS, "activation")
    raise TypeError(f"activation must be a name, a fastnn activation or None, got {identifier!r}")
