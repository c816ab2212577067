"""Addresses of arrays, and memory that starts at a cache line."""

import ctypes

import numpy as np

DATA = object.__basicsize__  # where NumPy's arrays keep the pointer to their elements: right behind Python's header


def _from_interface(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _from_object(array: np.ndarray) -> int:
    return ctypes.c_size_t.from_address(id(array) + DATA).value


def _trusted() -> bool:
    """Whether NumPy's array objects have the layout of its C interface, ``PyArrayObject_fields``."""
    probe = np.arange(12.0).reshape(3, 4)[1:, ::2]

    def word(where: int, kind: type[ctypes.c_size_t] | type[ctypes.c_int32] = ctypes.c_size_t) -> int:
        return kind.from_address(where).value

    at = id(probe) + DATA
    return (
        word(at) == _from_interface(probe)
        and word(at + 8, ctypes.c_int32) == probe.ndim
        and tuple(word(word(at + 16) + 8 * i) for i in range(2)) == probe.shape
        and tuple(word(word(at + 24) + 8 * i) for i in range(2)) == probe.strides
        and word(at + 40) == id(probe.dtype)
        and word(at + 48, ctypes.c_int32) & 0x0700 == 0x0500  # aligned, writeable, not byte-swapped bits
    )


# Where the elements of an array start.  Reading the object takes 0.2 us, NumPy's documented interface (which builds a
# dict) 1 us: as much as a small product.
TRUSTED = _trusted()
address = _from_object if TRUSTED else _from_interface


def keep(thing: object) -> None:
    """Never free an object, not even when Python ends: machine code may be called, or point at it, until then."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def allocate(elements: int, dtype: str) -> np.ndarray:
    """Zeros that start at a cache line."""
    size = np.dtype(dtype).itemsize
    memory = np.zeros(elements + 64 // size, dtype)
    start = -address(memory) % 64 // size
    return memory[start : start + elements]
