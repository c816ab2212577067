"""Models on disk: safetensors files with the architecture as JSON in their metadata.

Arrays are named ``<layer>/<parameter>``, optimizer states ``state<i>/<layer>/<parameter>``.  Loading parses numbers and
JSON and builds layers from a fixed list of classes: nothing in a file is executed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import __version__

if TYPE_CHECKING:
    from fastnn.sequential import Sequential

FORMAT = "1"


def save(model: Sequential, filepath: str | Path, *, whole: bool) -> None:
    """Write parameters, and if `whole` also layers, optimizer and its state."""
    from safetensors.numpy import save as to_bytes

    network = model._built()
    arrays = {name: np.ascontiguousarray(view) for name, view in network.views()}
    meta: dict[str, Any] = {"name": model.name, "dtype": model.dtype, "seed": model.seed}
    if whole:
        meta["input_shape"] = list(network.input_shape)
        meta["layers"] = [{"class": type(layer).__name__, "config": layer.get_config()} for layer in model.layers]
        if model.optimizer is not None:
            meta["compile"] = {
                "optimizer": {"name": model.optimizer.name, "config": model.optimizer.get_config()},
                "iterations": model.optimizer.iterations,
                "loss": {"name": model.loss.name, "config": model.loss.get_config()} if model.loss else None,
                "metrics": model.metrics,
            }
            for i, state in enumerate(network.state):
                arrays |= {f"state{i}/{n}": np.ascontiguousarray(v) for n, v in network.views(state)}
    metadata = {"fastnn": __version__, "format": FORMAT, "architecture": json.dumps(meta)}
    _write(Path(filepath), to_bytes(arrays, metadata))


def _write(path: Path, content: bytes) -> None:
    """Replace `path` at once: a crash leaves the old file or the new one, never half of one."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no directory {path.parent}")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; saved models are ordinary files
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(filepath: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the architecture in a file, or an error that says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    path = Path(filepath)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a readable fastnn file (damaged, truncated or foreign): {error}") from None
    if "fastnn" not in metadata or "architecture" not in metadata:
        raise ValueError(f"{path} is a safetensors file, but fastnn did not write it")
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, this fastnn reads {FORMAT!r}: it was written by fastnn "
            f"{metadata['fastnn']}"
        )
    try:
        architecture = json.loads(metadata["architecture"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its architecture is not JSON ({error})") from None
    if not isinstance(architecture, dict):
        raise ValueError(f"{path} is damaged: its architecture is not a JSON object")
    return arrays, architecture


def load_weights(model: Sequential, filepath: str | Path) -> None:
    """Set the model's parameters from a file; the arrays must fit in order and shape."""
    network = model._built()
    arrays, _ = read(filepath)
    names = [name for name, _ in network.views()]
    stored = {name: a for name, a in arrays.items() if not name.startswith("state")}
    if set(stored) == set(names):
        ordered = [stored[name] for name in names]
    else:
        raise ValueError(
            f"{filepath} does not fit the model: it holds {', '.join(sorted(stored)) or 'nothing'}; "
            f"the model has {', '.join(names) or 'no parameters'}"
        )
    try:
        network.assign(names, ordered)
    except ValueError as error:
        raise ValueError(f"{filepath} does not fit the model: {error}") from None
