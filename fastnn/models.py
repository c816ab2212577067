"""Keras' place for models: ``fastnn.models.Sequential`` and ``fastnn.models.load_model``."""

from pathlib import Path

from fastnn import layers, losses, optimizers
from fastnn.saving import read
from fastnn.sequential import Sequential

__all__ = ["Sequential", "load_model"]


def load_model(filepath: str | Path, *, device: str = "cpu", n_threads: int | None = None) -> Sequential:
    """Read a model that `Sequential.save` wrote.

    Parameters
    ----------
    filepath : str or path
        The file.
    device, n_threads
        As for `Sequential`: where a model runs is not part of it.

    Returns
    -------
    Sequential
        With its parameters and, if it was compiled, optimizer, loss, metrics and the optimizer's state.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, not from fastnn, or holds only weights.

    Examples
    --------
    >>> import fastnn, tempfile, pathlib
    >>> model = fastnn.Sequential([fastnn.layers.Input((3,)), fastnn.layers.Dense(2)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(pathlib.Path(folder, "model.safetensors"))
    ...     same = fastnn.load_model(pathlib.Path(folder, "model.safetensors"))
    >>> (same.get_weights()[0] == model.get_weights()[0]).all()
    np.True_
    """
    arrays, architecture = read(filepath)
    if "layers" not in architecture:
        raise ValueError(f"{filepath} holds weights only: build the model and call load_weights")
    try:
        parts = [layers.from_config(entry["class"], entry["config"]) for entry in architecture["layers"]]
        model = Sequential(
            [layers.Input(tuple(architecture["input_shape"])), *parts],
            dtype=architecture["dtype"],
            device=device,
            seed=architecture["seed"],
            n_threads=n_threads,
            name=architecture["name"],
        )
        compiled = architecture.get("compile")
        if compiled:
            loss = compiled["loss"]
            model.compile(
                optimizers.CLASSES[compiled["optimizer"]["name"]](**compiled["optimizer"]["config"]),
                losses.CLASSES[loss["name"]](**loss["config"]) if loss else None,
                compiled["metrics"],
            )
        network = model._built()
        names = [name for name, _ in network.views()]
        network.assign(names, [arrays[name] for name in names])
        if compiled and model.optimizer is not None:
            states = sum(f"state{i}/{names[0]}" in arrays for i in range(2)) if names else 0
            network.buffers(states)
            for i in range(states):
                network.assign(names, [arrays[f"state{i}/{name}"] for name in names], network.state[i])
            model.optimizer.iterations = int(compiled["iterations"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{filepath} is damaged: {type(error).__name__}: {error}") from None
    return model
