"""Memory for kernels: zeros at cache lines, on huge pages where there are some, given back when it is not used."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastnn.cpu import memory
from fastnn.cpu.memory import HUGE, address, allocate
from fastnn.data import is_mapped

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has huge pages to ask for, and /proc tells of memory")
SIZES = (0, 64, 300 << 10, HUGE // 2 - 8, HUGE // 2, HUGE - 8, HUGE, HUGE + 8, HUGE * 3 // 2 - 8, HUGE * 3 // 2)
MANY = 64 << 20


def system(monkeypatch, platform=sys.platform, **names):
    """Another one for `fastnn.cpu.memory`, whose mmap has these names, but not what is None."""
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform=platform))
    names = {name: value for name, value in (vars(mmap) | names).items() if value is not None}
    monkeypatch.setattr(memory, "mmap", SimpleNamespace(**names))


@pytest.fixture
def asked(monkeypatch):
    """For which bytes of mappings huge pages are asked for: start, stop, and the length of the mapping."""
    found = []

    class Mapping(mmap.mmap):
        def madvise(self, option, start, length):
            assert option == mmap.MADV_HUGEPAGE
            found.append((start, start + length, len(self)))
            super().madvise(option, start, length)

    system(monkeypatch, mmap=Mapping)
    return found


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def fails(*arguments, **options):
    raise OSError(22, "Invalid argument")


class Refused(mmap.mmap):
    madvise = fails


REFUSED = {"mmap": Refused}  # by a kernel that was built without huge pages
FULL = {"mmap": fails}
ELSEWHERE = {"platform": "win32"} | dict.fromkeys(("MADV_HUGEPAGE", "MAP_PRIVATE", "MAP_ANONYMOUS"))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("names", [{}, REFUSED, FULL, ELSEWHERE], ids=["here", "refused", "full", "elsewhere"])
def test_zeros_at_a_cache_line(names, size, dtype, monkeypatch):
    system(monkeypatch, **names)
    elements = size // np.dtype(dtype).itemsize
    arrays = [allocate(elements, dtype) for _ in range(3)]
    for i, array in enumerate(arrays):
        assert (array.dtype, array.shape) == (dtype, (elements,))
        assert elements == 0 or address(array) % 64 == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not is_mapped(array)  # by a file, of which `fit` reads as little as it can
        assert not array.any()
        array[:] = i + 1
    assert all((array == i + 1).all() for i, array in enumerate(arrays))


@linux
@pytest.mark.parametrize("size", SIZES)
def test_pages_are_huge_that_are_filled_by_half(size, asked):
    pages = (size + HUGE // 2) // HUGE
    # What lies between lets mappings start anywhere in a huge page.
    held = [(mmap.mmap(-1, i * (100 << 10)), allocate(size // 8, "float64")) for i in range(1, 21)]
    assert len(asked) == (20 if pages else 0)
    for (_, array), (start, stop, length) in zip(held, asked, strict=False):
        assert stop - start == pages * HUGE
        assert stop <= length
        assert address(array) % HUGE == 0


def test_no_memory_is_numpys_error():
    with pytest.raises(MemoryError):
        allocate(1 << 57, "float64")


@linux
def test_memory_is_given_back():
    before = resident()
    for _ in range(3):
        array = allocate(MANY, "uint8")
        array[:] = 1
        part = array[MANY // 2 :].view(np.float32)
        del array
        assert resident() - before > MANY * 0.9
        assert (part[:: 1 << 20] != 0).all()  # which keeps it
        del part
        assert resident() - before < MANY * 0.1


@linux
def test_small_arrays_have_no_pages_for_themselves():
    before = resident()
    arrays = [allocate(300 << 10, "uint8") for _ in range(20)]
    for array in arrays:
        array[:] = 1
    assert resident() - before < 20 * (310 << 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_a_copy():
    array = allocate(HUGE, "uint8")
    array[::4096] = 1
    pid = os.fork()
    if pid == 0:
        right = array[::4096].all()
        array[:] = 2
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert array.max() == 1
