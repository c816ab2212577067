"""A built network: its stages, and its parameters and optimizer state as one buffer each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastnn import data, initializers
from fastnn.backend import Backend
from fastnn.layers import Activation, Dense, Dropout, Layer, Rescaling, Shape
from fastnn.stages import Affine, Elementwise, Stage


class Network:
    """Layers with shapes, memory and a place in it for each parameter.

    Parameters
    ----------
    layers, input_shape
        What to build.
    dtype, backend
        Of the buffers.
    rng
        Draws the initial values.
    old
        An earlier build whose parameters are taken over where layers are the same.

    Attributes
    ----------
    params, state : ndarray and list of ndarray
        Flat buffers.  Rows of kernels are padded to the backend's leading dimension; the padding is and stays 0.
    stages : list of Stage
        What a plan is lowered from.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: Shape,
        dtype: str,
        backend: Backend,
        rng: np.random.Generator,
        old: Network | None = None,
    ) -> None:
        self.input_shape = input_shape
        self.dtype = dtype
        self.backend = backend
        self.layers = list(layers)
        self.rng = rng
        self.shapes: list[Shape] = []
        self.scale, self.offset = 1.0, 0.0
        self.stages: list[Stage] = []
        self._places: list[tuple[str, Shape, int, int]] = []  # name, shape, offset, leading dimension
        self._initializers: list[str] = []
        self.size = 0
        self._lay_out(backend.pad(dtype))
        self.params = backend.allocate(self.size, dtype)
        self.state: list[np.ndarray] = []
        kept = dict(old.views()) if old is not None else {}
        same = {id(layer) for layer in old.layers} if old is not None else set()
        owners = [layer for layer in layers for _ in self._parameter_names(layer)]
        for (name, view), layer, initializer in zip(self.views(), owners, self._initializers, strict=True):
            if id(layer) in same and name in kept and kept[name].shape == view.shape:
                view[...] = kept[name]
            else:
                view[...] = initializers.draw(initializer, view.shape, rng)

    @staticmethod
    def _parameter_names(layer: Layer) -> list[str]:
        if not isinstance(layer, Dense):
            return []
        return ["kernel", "bias"] if layer.use_bias else ["kernel"]

    def _lay_out(self, pad: Callable[[int], int]) -> None:
        shape, lanes = self.input_shape, pad(2)
        for position, layer in enumerate(self.layers):
            name = str(layer.name)
            before = shape
            shape = layer.output_shape(before)
            self.shapes.append(shape)
            if isinstance(layer, Rescaling):
                self.scale, self.offset = self.scale * layer.scale, self.offset * layer.scale + layer.offset
            elif isinstance(layer, Dense):
                places = []
                for parameter in layer.parameters(before):
                    rows, cols = parameter.shape if len(parameter.shape) > 1 else (1, parameter.shape[0])
                    ld = pad(cols)
                    places.append(self.size)
                    self._places.append((f"{name}/{parameter.name}", parameter.shape, self.size, ld))
                    self._initializers.append(parameter.initializer)
                    self.size += -(-rows * ld // lanes) * lanes  # updated in whole vectors
                bias = places[1] if len(places) > 1 else None
                self._append(layer.stage(name, before[0], pad(layer.units), places[0], bias))
            elif isinstance(layer, Activation | Dropout):
                if len(before) != 1:
                    raise ValueError(
                        f"{type(layer).__name__} needs inputs of one dimension, got samples of shape {before}: "
                        "put Flatten() before it"
                    )
                stage = layer.stage(before[0]) if isinstance(layer, Activation) else layer.stage(before[0], position)
                self._append(stage)

    def _append(self, stage: Stage) -> None:
        """Add a stage; an activation after a linear product becomes part of it."""
        previous = self.stages[-1] if self.stages else None
        if isinstance(stage, Elementwise) and isinstance(previous, Affine) and previous.activation == "linear":
            self.stages[-1] = Affine(
                **{**vars(previous), "activation": stage.activation, "alpha": stage.alpha}  # type: ignore[arg-type]
            )
        else:
            self.stages.append(stage)

    @property
    def units(self) -> int:
        """Number of outputs."""
        size = 1
        for n in self.shapes[-1] if self.shapes else self.input_shape:
            size *= n
        return size

    @property
    def last_activation(self) -> str:
        """Name of the activation of the outputs."""
        for stage in reversed(self.stages):
            return getattr(stage, "activation", "linear")
        return "linear"

    def views(self, buffer: np.ndarray | None = None) -> list[tuple[str, np.ndarray]]:
        """Name and values of every parameter, as views of the buffer (or of a state with the same layout)."""
        memory = self.params if buffer is None else buffer
        found = []
        for name, shape, at, ld in self._places:
            rows = shape[0] if len(shape) > 1 else 1
            view = memory[at : at + rows * ld].reshape(rows, ld)[:, : shape[-1]]
            found.append((name, view if len(shape) > 1 else view[0]))
        return found

    def assign(self, names: Sequence[str], values: object, buffer: np.ndarray | None = None) -> None:
        """Set the parameters `names` to `values`, all or (with a ValueError) none."""
        if isinstance(values, np.ndarray) or not isinstance(values, list | tuple):
            raise TypeError(f"weights must be a list of arrays, got {type(values).__name__}")
        views = dict(self.views(buffer))
        if len(values) != len(names):
            raise ValueError(f"the model has {len(names)} arrays of parameters, got {len(values)}")
        checked = []
        for name, value in zip(names, values, strict=True):
            array = data.as_numbers(value, name)
            if array.shape != views[name].shape:
                raise ValueError(f"{name} must have shape {views[name].shape}, got {array.shape}")
            checked.append(array)
        for name, array in zip(names, checked, strict=True):
            views[name][...] = array

    def reset_state(self) -> None:
        """Forget the optimizer's state."""
        self.state = []

    def buffers(self, states: int) -> dict[str, np.ndarray]:
        """The buffers a program needs, with that many states."""
        while len(self.state) < states:
            self.state.append(self.backend.allocate(self.size, self.dtype))
        return {"params": self.params} | {f"state{i}": s for i, s in enumerate(self.state[:states])}
