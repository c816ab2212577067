"""Layers, with Keras' names and defaults.

A layer says what it computes and what parameters it has; the model owns the parameters, in one buffer.
"""

import math
from dataclasses import dataclass

from fastnn import _names, activations, initializers
from fastnn.stages import Affine, Elementwise, Stage
from fastnn.stages import Dropout as DropoutStage

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """One array of parameters: its name within the layer, its shape and its initializer."""

    name: str
    shape: Shape
    initializer: str


class Layer:
    """The base of all layers."""

    def __init__(self, name: str | None = None) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, got {name!r}")
        if name is not None and (not name or "/" in name):
            raise ValueError(f"name must be a non-empty string without '/', got {name!r}")
        self.name = name

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one output, given that of one input."""
        return input_shape

    def parameters(self, input_shape: Shape) -> list[Parameter]:
        """The parameters that the layer has for inputs of this shape."""
        return []

    def get_config(self) -> dict:
        """Arguments that build the same layer again."""
        return {"name": self.name}

    def __repr__(self) -> str:
        config = {k: v for k, v in self.get_config().items() if v is not None}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in config.items())})"


class Input(Layer):
    """Shape of one sample, without the batch dimension.

    Parameters
    ----------
    shape : tuple of int or int
        For example ``(784,)`` or ``(28, 28)``.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.layers.Input((28, 28)).shape
    (28, 28)
    """

    def __init__(self, shape: Shape | int, name: str | None = None) -> None:
        super().__init__(name)
        self.shape = check_shape(shape, "shape")

    def get_config(self) -> dict:
        """Arguments that build the same layer again."""
        return {"shape": list(self.shape), "name": self.name}


def check_shape(shape: object, what: str) -> Shape:
    """Validate the shape of one sample."""
    if hasattr(shape, "__index__"):
        shape = (shape,)
    if not isinstance(shape, tuple | list) or not shape:
        raise TypeError(f"{what} must be a tuple of integers such as (784,), got {shape!r}")
    return tuple(_names.integer(n, f"each dimension of {what}", low=1) for n in shape)


class Dense(Layer):
    """A fully connected layer: ``activation(x @ W + b)``.

    Parameters
    ----------
    units : int
        Number of outputs.
    activation : str, activation or None
        Applied to the outputs; None is linear.
    use_bias : bool
        Whether b is added.
    kernel_initializer, bias_initializer : str
        Names of `fastnn.initializers`; the defaults are Glorot and Bengio's uniform and zeros.

    Notes
    -----
    W is (inputs, units), as in Keras and scikit-learn; torch's ``Linear`` keeps its transpose.

    Examples
    --------
    >>> import fastnn
    >>> model = fastnn.Sequential([fastnn.layers.Input((3,)), fastnn.layers.Dense(2, activation="relu")], seed=0)
    >>> [w.shape for w in model.get_weights()]
    [(3, 2), (2,)]
    """

    def __init__(
        self,
        units: int,
        activation: object = None,
        use_bias: bool = True,
        kernel_initializer: str = "glorot_uniform",
        bias_initializer: str = "zeros",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.units = _names.integer(units, "units", low=1)
        self.activation = activations.get(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = initializers.check(kernel_initializer, "kernel_initializer")
        self.bias_initializer = initializers.check(bias_initializer, "bias_initializer")

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one output."""
        if len(input_shape) != 1:
            raise ValueError(
                f"Dense needs inputs of one dimension, got samples of shape {input_shape}: put Flatten() before it"
            )
        return (self.units,)

    def parameters(self, input_shape: Shape) -> list[Parameter]:
        """Kernel (inputs, units) and bias (units,)."""
        found = [Parameter("kernel", (input_shape[0], self.units), self.kernel_initializer)]
        if self.use_bias:
            found.append(Parameter("bias", (self.units,), self.bias_initializer))
        return found

    def stage(self, name: str, inputs: int, ld: int, kernel: int, bias: int | None) -> Stage:
        """What the layer is in a plan."""
        return Affine(name, inputs, self.units, ld, kernel, bias, self.activation.name, self.activation.alpha)

    def get_config(self) -> dict:
        """Arguments that build the same layer again."""
        return {
            "units": self.units,
            "activation": _activation_config(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": self.kernel_initializer,
            "bias_initializer": self.bias_initializer,
            "name": self.name,
        }


def _activation_config(function: activations.Function) -> object:
    default = activations.FUNCTIONS[function.name]
    return function.name if function == default else {"name": function.name, "alpha": function.alpha}


class Activation(Layer):
    """An activation function as a layer of its own.

    Parameters
    ----------
    activation : str or activation
        Its name, for example ``"relu"``.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.layers.Activation("rellu")
    Traceback (most recent call last):
        ...
    ValueError: unknown activation 'rellu'. Did you mean 'relu'? Known: leaky_relu, linear, ...
    """

    def __init__(self, activation: object, name: str | None = None) -> None:
        super().__init__(name)
        self.activation = activations.get(activation)

    def stage(self, units: int) -> Stage:
        """What the layer is in a plan."""
        return Elementwise(units, self.activation.name, self.activation.alpha, str(self.name))

    def get_config(self) -> dict:
        """Arguments that build the same layer again."""
        return {"activation": _activation_config(self.activation), "name": self.name}


class Flatten(Layer):
    """Make each sample one-dimensional: (28, 28) becomes (784,), in C order.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.layers.Flatten().output_shape((28, 28))
    (784,)
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one output."""
        return (math.prod(input_shape),)


class Rescaling(Layer):
    """``x * scale + offset``, computed as a batch is gathered: bytes stay bytes in memory.

    It must come before every `Dense`, `Activation` and `Dropout`.

    Parameters
    ----------
    scale, offset : float
        For images of bytes, ``Rescaling(1 / 255)``.

    Examples
    --------
    >>> import fastnn, numpy as np
    >>> model = fastnn.Sequential([fastnn.layers.Input((2,)), fastnn.layers.Rescaling(1 / 255)])
    >>> model.predict(np.array([[0, 255]], dtype=np.uint8))
    array([[0., 1.]], dtype=float32)
    """

    def __init__(self, scale: float, offset: float = 0.0, name: str | None = None) -> None:
        super().__init__(name)
        self.scale = _names.number(scale, "scale")
        self.offset = _names.number(offset, "offset")

    def get_config(self) -> dict:
        """Arguments that build the same layer again."""
        return {"scale": self.scale, "offset": self.offset, "name": self.name}


class Dropout(Layer):
    """In training, set each unit to 0 with probability `rate` and scale the others by 1 / (1 - rate).

    Parameters
    ----------
    rate : float
        From 0 up to, but not including, 1.
    seed : int, optional
        Makes this layer's random stream its own; the default follows from the model's seed and the layer's position.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import fastnn
    >>> fastnn.layers.Dropout(0.5)
    Dropout(rate=0.5)
    """

    def __init__(self, rate: float, seed: int | None = None, name: str | None = None) -> None:
        super().__init__(name)
        self.rate = _names.number(rate, "rate", low=0, high=1, open_high=True)
        self.seed = None if seed is None else _names.integer(seed, "seed", low=0)

    def stage(self, units: int, index: int) -> Stage:
        """What the layer is in a plan."""
        stream = index if self.seed is None else self.seed % 2**31 + 2**31
        return DropoutStage(units, self.rate, stream, str(self.name))

    def get_config(self) -> dict:
        """Arguments that build the same layer again."""
        return {"rate": self.rate, "seed": self.seed, "name": self.name}


LAYERS: dict[str, type[Layer]] = {cls.__name__: cls for cls in (Input, Dense, Activation, Flatten, Rescaling, Dropout)}


def from_config(name: str, config: dict) -> Layer:
    """Build a layer from its class name and `Layer.get_config`."""
    config = dict(config)
    activation = config.get("activation")
    if isinstance(activation, dict):
        config["activation"] = activations.Function(**activation)
    return _names.find(name, LAYERS, "layer")(**config)
