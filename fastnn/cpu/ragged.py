"""Vectors at the ragged end of a row: only what belongs to the row is read and written."""

from fastnn.cpu.jit import device
from fastnn.cpu.simd import lanes, load, load_first, store, store_first


@device
def load_before(pointer, i, end):
    """The vector at ``pointer[i]``, reading nothing from ``pointer[end]`` on (0 instead)."""
    return load(pointer, i) if i + lanes(pointer) <= end else load_first(pointer, i, end - i)


@device
def store_before(pointer, i, end, value):
    """Write the vector `value` to ``pointer[i]``, but nothing from ``pointer[end]`` on."""
    if i + lanes(pointer) <= end:
        store(pointer, i, value)
    else:
        store_first(pointer, i, end - i, value)
