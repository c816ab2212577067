"""Arrays against an unreadable page: one element too far, read or written, ends the process with SIGSEGV."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest

PROT_NONE = 0
ENDS = ("start", "end")
CANARY = 0xA5  # fills what lies between an array's elements and in the rest of its pages

linux = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux' mmap and mprotect")


def _pages(size: int) -> tuple[mmap.mmap, int]:
    """Whole pages for `size` bytes between two unreadable ones; returns the mapping and the bytes between them."""
    inner = max(-(-size // mmap.PAGESIZE), 1) * mmap.PAGESIZE
    memory = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
    memory.write(bytes([CANARY]) * len(memory))
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for page in (base, base + mmap.PAGESIZE + inner):
        if libc.mprotect(page, mmap.PAGESIZE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return memory, inner


class Guarded:
    """A copy of `values` whose first or last element touches an unreadable page.

    Parameters
    ----------
    values
        Any array.
    end
        "start" or "end": where the unreadable page is (both sides have one; the array touches this one).
    strides
        In elements, any sign; C order without gaps if not given.

    Attributes
    ----------
    array : ndarray
        The copy.
    """

    def __init__(self, values: np.ndarray, end: str = "end", strides: tuple[int, ...] | None = None) -> None:
        values = np.asarray(values)
        size = values.itemsize
        if strides is None:
            strides = tuple(s // size for s in np.empty(values.shape, values.dtype).strides)
        spans = [(n - 1) * s for n, s in zip(values.shape, strides, strict=True)]
        before = -sum(span for span in spans if span < 0)
        count = 0 if values.size == 0 else before + sum(span for span in spans if span > 0) + 1
        if sys.platform == "linux":
            memory, inner = _pages(count * size)
            first = mmap.PAGESIZE + (0 if end == "start" else inner - count * size)
            self._bytes = np.frombuffer(memory, np.uint8)[mmap.PAGESIZE : mmap.PAGESIZE + inner]
            at = first - mmap.PAGESIZE
        else:  # the values can be tested, the pages cannot
            self._bytes = np.full(count * size, CANARY, np.uint8)
            at = 0
        flat = self._bytes[at : at + count * size].view(values.dtype)
        self.array = np.lib.stride_tricks.as_strided(
            flat[before:] if values.size else flat, values.shape, tuple(s * size for s in strides)
        )
        self.array[...] = values
        used = np.zeros(count, bool)
        if values.size:
            np.lib.stride_tricks.as_strided(used[before:], values.shape, strides)[...] = True
        self._gaps = np.ones(self._bytes.size, bool)
        self._gaps[at : at + count * size] = ~np.repeat(used, size)

    def assert_gaps_untouched(self) -> None:
        """Nothing was written between the array's elements nor to the rest of its pages."""
        assert (self._bytes[self._gaps] == CANARY).all()


def guarded(values: np.ndarray, end: str = "end", strides: tuple[int, ...] | None = None) -> np.ndarray:
    """The array of a `Guarded`, which it keeps alive."""
    return Guarded(values, end, strides).array
