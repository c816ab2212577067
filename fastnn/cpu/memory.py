"""Addresses of arrays, and memory that starts at a cache line, on huge pages if there is enough of it."""

import contextlib
import ctypes
import mmap
import sys

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

# Bytes of a huge page.  NumPy asks for them from 4 MiB on; but the parameters of 784-512-256-10 and what Adam keeps are
# 2.1 MiB each, a batch of 512 and its units 5 MiB, and a step takes 1% less if all start on one.  Arrays of 0.8 MiB,
# those of 784-256-10, gain nothing that could be measured, each on a page or together on one, and would take a
# megabyte more each.
HUGE = 2 << 20


def keep(thing: object) -> None:
    """Never free an object, not even when Python ends: machine code may be called, or point at it, until then."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _huge_pages(size: int) -> np.ndarray | None:
    """`size` bytes of zeros on huge pages, if the system lends them and half of one is filled.

    All of a huge page is in memory once a byte of it is used.  So the last one is asked for only if half of it or more
    is filled, and an array takes 1 MiB more at most.
    """
    pages = (size + HUGE // 2) // HUGE
    if sys.platform == "linux" and pages > 0:
        with contextlib.suppress(OSError):  # of a kernel that has none, or no memory left, which NumPy tells better
            memory = mmap.mmap(-1, max(size, pages * HUGE) + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # Through ctypes, since an array whose base is a mapping passes for a file (fastnn.data.is_mapped).
            whole = np.frombuffer((ctypes.c_uint8 * len(memory)).from_buffer(memory), np.uint8)
            start = -address(whole) % HUGE
            memory.madvise(mmap.MADV_HUGEPAGE, start, pages * HUGE)
            return whole[start : start + size]
    return None


def allocate(elements: int, dtype: str) -> np.ndarray:
    """Zeros that start at a cache line; many are on huge pages, which start there, too."""
    size = np.dtype(dtype).itemsize
    huge = _huge_pages(elements * size)
    if huge is not None:
        return huge.view(dtype)
    memory = np.zeros(elements + 64 // size, dtype)
    start = -address(memory) % 64 // size
    return memory[start : start + elements]
