"""Metrics by name; each is a mean over samples, computed in the same pass as the loss."""

from fastnn import _names
from fastnn.losses import Loss

# name -> kernel of fastnn.cpu.metrics; None: resolved by the loss and the number of outputs
KERNELS: dict[str, str | None] = {
    "accuracy": None,
    "acc": None,
    "binary_accuracy": "binary_accuracy",
    "categorical_accuracy": "categorical_accuracy",
    "sparse_categorical_accuracy": "sparse_categorical_accuracy",
    "mse": "mean_squared_error",
    "mean_squared_error": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mean_absolute_error": "mean_absolute_error",
}
THRESHOLD = 0.5  # binary accuracy: predictions above it count as 1


def check(metrics: object) -> list[str]:
    """Validate a list of metric names."""
    if metrics is None:
        return []
    if isinstance(metrics, str) or not isinstance(metrics, list | tuple):
        raise TypeError(f"metrics must be a list of names such as ['accuracy'], got {metrics!r}")
    for name in metrics:
        if not isinstance(name, str):
            raise TypeError(f"each metric must be a name, got {name!r}")
        _names.find(name, KERNELS, "metric")
    if len(set(metrics)) < len(metrics):
        raise ValueError(f"metrics must not repeat a name, got {list(metrics)}")
    return list(metrics)


def resolve(names: list[str], loss: Loss, units: int) -> tuple[tuple[str, float], ...]:
    """The kernels of metrics after a loss with `units` outputs, each with its threshold.

    As in Keras, "accuracy" is the one that fits the targets: sparse categorical for class numbers, binary after binary
    cross-entropy or with one output, categorical otherwise.
    """
    kernels = []
    for name in names:
        kernel = KERNELS[name]
        if kernel is None:
            binary = loss.name == "binary_crossentropy" or (units == 1 and not loss.labels)
            categorical = "sparse_categorical_accuracy" if loss.labels else "categorical_accuracy"
            kernel = "binary_accuracy" if binary else categorical
        if loss.labels != (kernel == "sparse_categorical_accuracy"):
            kind = "class numbers" if loss.labels else "one value per output"
            raise ValueError(f"metric {name!r} does not fit the targets of {loss.name}, which are {kind}")
        kernels.append((kernel, THRESHOLD))
    return tuple(kernels)
