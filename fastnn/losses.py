"""Losses, with Keras' names and reductions.

The value of a loss is the mean over the samples of a batch, each weighted by its sample weight (the sum of weighted
losses over the number of samples).  A loss that follows its natural activation is fused with it: sigmoid with binary
cross-entropy and softmax with cross-entropy are computed from the logits in one pass, stable for any logit.
"""

from fastnn import _names
from fastnn.stages import Objective


class Loss:
    """The base of all losses."""

    name = "loss"
    kernel = ""
    activation: str | None = None  # the activation that the kernel contains
    labels = False  # whether targets are class numbers

    def __init__(self, from_logits: bool = False) -> None:
        self.from_logits = bool(from_logits)

    def objective(self, last: str, metrics: tuple[tuple[str, float], ...] = ()) -> Objective:
        """How the loss is computed after the activation `last`.

        Raises
        ------
        ValueError
            If a cross-entropy does not follow its activation.
        """
        if self.activation is None:
            return Objective(self.kernel, None, metrics)
        if self.from_logits:
            if last != "linear":
                raise ValueError(
                    f"{self.name} with from_logits=True needs a last layer without activation, got {last!r}"
                )
        elif last != self.activation:
            raise ValueError(
                f"{self.name} needs a last layer with activation {self.activation!r}, got {last!r}; for a last layer "
                f"without activation use fastnn.losses.{type(self).__name__}(from_logits=True)"
            )
        return Objective(self.kernel, self.activation, metrics)

    def get_config(self) -> dict:
        """Arguments that build the same loss again."""
        return {} if self.activation is None else {"from_logits": self.from_logits}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.get_config().items())})"


class MeanSquaredError(Loss):
    """``mean((y - t)^2)`` over the outputs of a sample.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.losses.get("mse")
    MeanSquaredError()
    """

    name = "mean_squared_error"
    kernel = "mean_squared_error"

    def __init__(self) -> None:
        super().__init__()


class BinaryCrossentropy(Loss):
    """``mean(-t log p - (1 - t) log(1 - p))`` over the outputs of a sample, with p = sigmoid(z).

    Parameters
    ----------
    from_logits : bool
        False: the last layer has the sigmoid.  True: it has no activation.

    Notes
    -----
    Computed as ``max(z, 0) - z t + log1p(exp(-|z|))``, which neither overflows nor loses digits.
    """

    name = "binary_crossentropy"
    kernel = "sigmoid_crossentropy"
    activation = "sigmoid"


class CategoricalCrossentropy(Loss):
    """``-sum(t log p)`` for one-hot (or other) distributions t, with p = softmax(z).

    Parameters
    ----------
    from_logits : bool
        False: the last layer has the softmax.  True: it has no activation.
    """

    name = "categorical_crossentropy"
    kernel = "softmax_crossentropy"
    activation = "softmax"


class SparseCategoricalCrossentropy(Loss):
    """``-log p[label]`` for class numbers, with p = softmax(z).

    Parameters
    ----------
    from_logits : bool
        False: the last layer has the softmax.  True: it has no activation.
    """

    name = "sparse_categorical_crossentropy"
    kernel = "sparse_softmax_crossentropy"
    activation = "softmax"
    labels = True


CLASSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (MeanSquaredError, BinaryCrossentropy, CategoricalCrossentropy, SparseCategoricalCrossentropy)
}
ALIASES: dict[str, type[Loss]] = (
    CLASSES
    | {
        "mse": MeanSquaredError,
        "bce": BinaryCrossentropy,
        "cce": CategoricalCrossentropy,
    }
    | {cls.__name__: cls for cls in CLASSES.values()}
)


def get(identifier: object) -> Loss:
    """Return the loss that `identifier` (a name or a `Loss`) stands for.

    Raises
    ------
    ValueError
        If there is no loss of that name; the nearest is suggested.
    TypeError
        If `identifier` is neither.
    """
    if isinstance(identifier, Loss):
        return identifier
    if isinstance(identifier, str):
        return _names.find(identifier, ALIASES, "loss")()
    raise TypeError(f"loss must be a name or a fastnn.losses object, got {identifier!r}")
