"""Addresses of arrays, and memory that starts at a cache line."""

import ctypes

import numpy as np

_DATA = object.__basicsize__  # where NumPy's arrays keep the pointer to their elements: right behind Python's header


def _from_interface(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _from_object(array: np.ndarray) -> int:
    return ctypes.c_size_t.from_address(id(array) + _DATA).value


def _trusted() -> bool:
    probe = np.arange(3.0)
    return _from_object(probe) == _from_interface(probe) and _from_object(probe[1:]) == _from_interface(probe[1:])


# Where the elements of an array start.  Reading the object takes 0.2 us, NumPy's documented interface (which builds a
# dict) 1 us: as much as a small product.
address = _from_object if _trusted() else _from_interface


def allocate(elements: int, dtype: str) -> np.ndarray:
    """Zeros that start at a cache line."""
    size = np.dtype(dtype).itemsize
    memory = np.zeros(elements + 64 // size, dtype)
    start = -address(memory) % 64 // size
    return memory[start : start + elements]
