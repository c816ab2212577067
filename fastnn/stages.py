"""What a plan is lowered from: the stages of a network, its loss and optimizer, and the caller's arrays."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Affine:
    """``f(x W + b)``: W lies at `kernel` in ``params``, (inputs, units) with leading dimension `ld`; b at `bias`."""

    name: str
    inputs: int
    units: int
    ld: int
    kernel: int
    bias: int | None
    activation: str = "linear"
    alpha: float = 0.0


@dataclass(frozen=True)
class Elementwise:
    """``f(x)`` by itself, where it cannot be part of a product."""

    units: int
    activation: str
    alpha: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class Dropout:
    """Dropout of the output of the stage before; `index` makes its random stream its own."""

    units: int
    rate: float
    index: int
    name: str = ""


Stage = Affine | Elementwise | Dropout


@dataclass(frozen=True)
class Feed:
    """How a 2-D array of the caller's is read: element strides, and a scaling on the way.

    `sparse`: most of what comes out is 0, which products may make use of.
    """

    dtype: str
    cols: int
    row: int
    col: int
    scale: float = 1.0
    offset: float = 0.0
    sparse: bool = False


@dataclass(frozen=True)
class Update:
    """An optimizer: the kernel ``optimizers.<kernel>``, how many states it keeps, and its constants."""

    kernel: str
    states: int
    constants: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Objective:
    """What is computed from the outputs: a loss, and metrics (kernel names, with a threshold for binary accuracy)."""

    loss: str | None
    fuses: str | None  # the activation that the loss kernel contains, if it is fused
    metrics: tuple[tuple[str, float], ...] = ()

    @property
    def labels(self) -> bool:
        """Whether targets are class numbers."""
        return self.loss == "sparse_softmax_crossentropy"
