"""The table that `Sequential.summary` prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastnn.sequential import Sequential


def summary_table(model: Sequential) -> str:
    """Layers, output shapes and numbers of parameters as aligned text."""
    network = model.network
    rows = [("Layer", "Output shape", "Parameters")]
    for i, layer in enumerate(model.layers):
        shape, count = "?", "?"
        if network is not None:
            before = network.shapes[i - 1] if i else network.input_shape
            shape = f"({', '.join(['n', *map(str, network.shapes[i])])})"
            count = f"{sum(math.prod(p.shape) for p in layer.parameters(before)):,}"
        activation = getattr(layer, "activation", None)
        label = f"{layer.name} ({type(layer).__name__}{', ' + activation.name if activation else ''})"
        rows.append((label, shape, count))
    widths = [max(len(row[c]) for row in rows) for c in range(3)]
    rule = "-" * (sum(widths) + 4)
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    total = "the model is not built yet: the shape of its input is not known"
    if network is not None:
        size = model.count_params()
        total = f"{size:,} parameters in {model.dtype} ({size * network.params.itemsize / 1024:,.1f} KiB)"
    return "\n".join([f"Model {model.name!r}", rule, lines[0], rule, *lines[1:], rule, total])
