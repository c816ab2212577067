"""NVIDIA's driver through ctypes: memory, launches, events, graphs, tensor maps.

Its C interface has been stable for a decade, so that a launch here depends on no package's version; context and memory
are those that Numba and torch use in the same process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

import numpy as np

# Values of the enumerations in cuda.h.
MULTIPROCESSORS, SHARED_PER_BLOCK, L2_BYTES, CLOCK_KHZ, MEMORY_CLOCK_KHZ, MEMORY_BITS = 16, 97, 38, 13, 36, 37
MAJOR, MINOR, COOPERATIVE = 75, 76, 95
FUNCTION_DYNAMIC_SHARED = 8
CAPTURE_RELAXED = 2
BFLOAT16, SWIZZLE_128B, PROMOTE_256B = 9, 3, 3


class DriverError(RuntimeError):
    """A call to the driver that failed, or no driver."""


@cache
def library() -> ctypes.CDLL:
    """libcuda, started."""
    try:
        found = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"libcuda.so.1 cannot be loaded ({error})") from error
    _check(found, "cuInit", found.cuInit(0))
    return found


def _check(lib: ctypes.CDLL, function: str, status: int) -> None:
    if status:
        text = c_char_p()
        lib.cuGetErrorString(status, byref(text))
        reason = text.value.decode() if text.value else "unknown error"
        raise DriverError(f"{function} failed with {status}: {reason}")


def call(function: str, *arguments: Any) -> None:
    """Call the driver; raises DriverError if it does not succeed."""
    lib = library()
    _check(lib, function, getattr(lib, function)(*arguments))


def missing() -> str | None:
    """Why there is no GPU to use, or None if there is one."""
    try:
        count = c_int()
        call("cuDeviceGetCount", byref(count))
    except DriverError as error:
        return str(error)
    return None if count.value else "the driver finds no GPU"


# --- the device -------------------------------------------------------------------------------------------------------


@cache
def device() -> int:
    """The first device, its primary context current."""
    number, context = c_int(), c_void_p()
    call("cuDeviceGet", byref(number), 0)
    call("cuDevicePrimaryCtxRetain", byref(context), number)
    call("cuCtxSetCurrent", context)
    return number.value


def attribute(which: int) -> int:
    """An attribute of the device."""
    value = c_int()
    call("cuDeviceGetAttribute", byref(value), which, device())
    return value.value


def capability() -> tuple[int, int]:
    """The compute capability."""
    return attribute(MAJOR), attribute(MINOR)


def name() -> str:
    """The device as it calls itself."""
    text = ctypes.create_string_buffer(256)
    call("cuDeviceGetName", text, len(text), device())
    return text.value.decode()


def version() -> str:
    """The newest CUDA that the driver knows."""
    value = c_int()
    call("cuDriverGetVersion", byref(value))
    return f"{value.value // 1000}.{value.value % 1000 // 10}"


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory:
    """Memory of the device, freed with the object; `address` is an int."""

    def __init__(self, size: int) -> None:
        device()
        pointer = c_uint64()
        call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        self.address, self.size = pointer.value, size

    @classmethod
    def of(cls, array: np.ndarray) -> Memory:
        """A copy of an array."""
        memory = cls(array.nbytes)
        memory.write(array)
        return memory

    @classmethod
    def zeros(cls, size: int) -> Memory:
        """Bytes of zero."""
        memory = cls(size)
        memory.clear()
        return memory

    def write(self, array: np.ndarray) -> None:
        """Overwrite the beginning."""
        array = np.ascontiguousarray(array)
        assert array.nbytes <= self.size, f"{array.nbytes} bytes for memory of {self.size}"
        call("cuMemcpyHtoD_v2", c_uint64(self.address), array.ctypes.data_as(c_void_p), c_size_t(array.nbytes))
        synchronize()  # it returns once the array may be changed, which may be before the copy is there

    def read(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The beginning as a new array, once everything under way is done."""
        array = np.empty(shape, dtype)
        assert array.nbytes <= self.size, f"{array.nbytes} bytes of memory of {self.size}"
        synchronize()
        call("cuMemcpyDtoH_v2", array.ctypes.data_as(c_void_p), c_uint64(self.address), c_size_t(array.nbytes))
        return array

    def clear(self, byte: int = 0) -> None:
        """Set every byte, and wait for it."""
        call("cuMemsetD8_v2", c_uint64(self.address), ctypes.c_ubyte(byte), c_size_t(self.size))
        synchronize()

    def __del__(self) -> None:
        if hasattr(self, "address"):
            library().cuMemFree_v2(c_uint64(self.address))


def synchronize() -> None:
    """Wait for everything; a kernel's failure is told here."""
    device()
    call("cuCtxSynchronize")


# --- streams, events, graphs ------------------------------------------------------------------------------------------


class Stream:
    """A queue of its own, and what was captured of it."""

    def __init__(self) -> None:
        device()
        self.handle = c_void_p()
        call("cuStreamCreate", byref(self.handle), c_uint(1))  # does not wait for the default stream

    def synchronize(self) -> None:
        """Wait for what is queued."""
        call("cuStreamSynchronize", self.handle)

    def capture(self, launches: Callable[[], None]) -> Callable[[], None]:
        """A graph of the launches that a function makes here, as a function that launches it here."""
        graph, executable = c_void_p(), c_void_p()
        call("cuStreamBeginCapture_v2", self.handle, c_int(CAPTURE_RELAXED))
        launches()
        call("cuStreamEndCapture", self.handle, byref(graph))
        call("cuGraphInstantiateWithFlags", byref(executable), graph, ctypes.c_ulonglong(0))
        return lambda: call("cuGraphLaunch", executable, self.handle)


def elapsed(stream: Stream, work: Callable[[], None]) -> float:
    """Seconds that the device needs for what a function queues, between two events."""
    begin, end, milliseconds = c_void_p(), c_void_p(), c_float()
    call("cuEventCreate", byref(begin), c_uint(0))
    call("cuEventCreate", byref(end), c_uint(0))
    call("cuEventRecord", begin, stream.handle)
    work()
    call("cuEventRecord", end, stream.handle)
    call("cuEventSynchronize", end)
    call("cuEventElapsedTime", byref(milliseconds), begin, end)
    call("cuEventDestroy_v2", begin)
    call("cuEventDestroy_v2", end)
    return milliseconds.value / 1e3


# --- kernels ----------------------------------------------------------------------------------------------------------

Size = tuple[int, int, int]


class Function:
    """A kernel in machine code.

    Parameters
    ----------
    binary : bytes
        What nvJitLink made.
    entry : str
        The kernel's name in it.
    dynamic : int
        Bytes of shared memory to ask for at each launch.
    """

    def __init__(self, binary: bytes, entry: str, dynamic: int = 0) -> None:
        device()
        self._module, self._handle, self.dynamic = c_void_p(), c_void_p(), dynamic
        call("cuModuleLoadData", byref(self._module), c_char_p(binary))
        call("cuModuleGetFunction", byref(self._handle), self._module, c_char_p(entry.encode()))
        call("cuFuncSetAttribute", self._handle, c_int(FUNCTION_DYNAMIC_SHARED), c_int(dynamic))

    def blocks_at_once(self, threads: int) -> int:
        """How many blocks the device can hold, all of which run."""
        blocks = c_int()
        count = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        call(count, byref(blocks), self._handle, c_int(threads), c_size_t(self.dynamic))
        return blocks.value * attribute(MULTIPROCESSORS)

    def prepare(
        self, grid: Size, threads: int, arguments: Sequence[Any], stream: Stream, *, cooperative: bool = False
    ) -> Callable[[], None]:
        """A launch as a function without arguments.

        Arguments are `Memory`, an int for an address, or a ctypes value.  A cooperative launch whose blocks cannot all
        run at once raises DriverError, where an ordinary one would wait in the kernel for ever.
        """
        values = [_value(e) for e in arguments]
        pointers = (c_void_p * len(values))(*[ctypes.addressof(e) for e in values])
        function = "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
        sizes = [c_uint(e) for e in (*grid, threads, 1, 1, self.dynamic)]
        extra = () if cooperative else (None,)
        launch = getattr(library(), function)

        def queue(kept: Any = (values, arguments)) -> None:  # the driver reads them at each launch
            status = launch(self._handle, *sizes, stream.handle, pointers, *extra)
            if status:
                _check(library(), function, status)

        return queue


def _value(argument: Any) -> Any:
    if isinstance(argument, Memory):
        return c_uint64(argument.address)
    return c_uint64(argument) if isinstance(argument, int) else argument


def tensor_map(memory: Memory, rows: int, columns: int, box_rows: int, box_columns: int) -> Memory:
    """The map of a matrix of bf16 in C order from which boxes are copied, in memory of the device.

    A row of a box is 128 bytes at most, and shared memory holds it swizzled.
    """
    room = ctypes.create_string_buffer(128 + 64)
    host = ctypes.addressof(room) + -ctypes.addressof(room) % 64
    shape, pitch = (c_uint64 * 2)(columns, rows), (c_uint64 * 1)(2 * columns)
    box, steps = (c_uint32 * 2)(box_columns, box_rows), (c_uint32 * 2)(1, 1)
    places = (c_uint64(memory.address), shape, pitch, box, steps)
    layout = (c_int(0), c_int(SWIZZLE_128B), c_int(PROMOTE_256B), c_int(0))  # not interleaved; zeros outside
    call("cuTensorMapEncodeTiled", c_void_p(host), c_int(BFLOAT16), c_uint32(2), *places, *layout)
    return Memory.of(np.frombuffer(ctypes.string_at(host, 128), np.uint8))
