"""Copies between host and device: from the user's arrays as they are, registered, through page-locked memory, back."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

from benchmarks.gpu import driver
from benchmarks.gpu.measure import SAMPLE_SECONDS, SAMPLES, Report

BATCH = 128 * 784  # bytes of a batch of MNIST
IMAGES = 60_000 * 784  # bytes of all of them
SIZES = (4096, BATCH, 1 << 20, 16 << 20, IMAGES, 256 << 20)
QUICK_SIZES = (BATCH, 1 << 20)
PIECES = (256 << 10, 1 << 20, 4 << 20)  # bytes of each of the two page-locked buffers that a staged copy goes through


class Locked:
    """Page-locked memory of the host, freed with the object; `array` is its bytes."""

    def __init__(self, size: int) -> None:
        driver.device()
        self.pointer = c_void_p()
        driver.call("cuMemHostAlloc", byref(self.pointer), c_size_t(size), c_uint(0))
        assert self.pointer.value is not None
        self.array = np.frombuffer((ctypes.c_ubyte * size).from_address(self.pointer.value), np.uint8)

    def __del__(self) -> None:
        if self.pointer:
            driver.library().cuMemFreeHost(self.pointer)


def measure(report: Report) -> None:
    """Report each way for each size."""
    for size in QUICK_SIZES if report.quick else SIZES:
        report.attempt(f"copies of {size} bytes", _all, report, size)
    for piece in PIECES[:1] if report.quick else PIECES:
        report.attempt(f"staged in {piece >> 10} KiB", _staged, report, IMAGES, piece)
    report.attempt("registering", _registered, report, IMAGES)


def seconds(copy: Callable[[], None]) -> float:
    """Seconds of a copy that the caller waits for: the median of some samples."""
    copy()
    began = time.perf_counter()
    copy()
    repeats = max(1, round(SAMPLE_SECONDS / max(time.perf_counter() - began, 1e-6)))
    samples = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        for _ in range(repeats):
            copy()
        samples.append((time.perf_counter() - began) / repeats)
    return statistics.median(samples)


def content(size: int) -> np.ndarray:
    """Random bytes, written by the CPU, so that their pages exist."""
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def _all(report: Report, size: int) -> None:
    there, stream = driver.Memory.zeros(size), driver.Stream()
    images, locked = content(size), Locked(size)
    address, length = c_uint64(there.address), c_size_t(size)

    def add(what: str, copy: Callable[[], None], arrived: Callable[[], np.ndarray], expected: np.ndarray) -> None:
        took = seconds(copy)
        wrong = int(np.count_nonzero(arrived() != expected))
        report.add(f"{what}, {_size(size)}", took * 1e6, "us", wrong, "bytes wrong")
        report.add(f"{what}, {_size(size)}, rate", size / took / 1e9, "GB/s")

    def device() -> np.ndarray:
        return there.read((size,), np.uint8)

    def to_device(source: np.ndarray) -> Callable[[], None]:
        def copy() -> None:
            driver.call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data_as(c_void_p), length, stream.handle)
            stream.synchronize()

        return copy

    def to_host(target: np.ndarray) -> Callable[[], None]:
        def copy() -> None:
            driver.call("cuMemcpyDtoHAsync_v2", target.ctypes.data_as(c_void_p), address, length, stream.handle)
            stream.synchronize()

        return copy

    add("to the device, from any array", to_device(images), device, images)
    locked.array[:] = images[::-1]
    add("to the device, page-locked", to_device(locked.array), device, images[::-1])
    locked.array[:] = 0
    add("to the host, page-locked", to_host(locked.array), lambda: locked.array, images[::-1])
    images_back = np.zeros_like(images)
    add("to the host, to any array", to_host(images_back), lambda: images_back, images[::-1])


def _staged(report: Report, size: int, piece: int) -> None:
    """The CPU fills one page-locked buffer while the other one's content is on its way."""
    there, stream, images = driver.Memory.zeros(size), driver.Stream(), content(size)
    buffers = [Locked(piece) for _ in range(2)]
    done = [c_void_p() for _ in buffers]
    for event in done:
        driver.call("cuEventCreate", byref(event), c_uint(2))  # without times
        driver.call("cuEventRecord", event, stream.handle)

    def copy() -> None:
        for number, start in enumerate(range(0, size, piece)):
            buffer, event = buffers[number % 2], done[number % 2]
            driver.call("cuEventSynchronize", event)
            part = images[start : start + piece]
            buffer.array[: len(part)] = part
            where = c_uint64(there.address + start)
            driver.call("cuMemcpyHtoDAsync_v2", where, buffer.pointer, c_size_t(len(part)), stream.handle)
            driver.call("cuEventRecord", event, stream.handle)
        stream.synchronize()

    took = seconds(copy)
    wrong = int(np.count_nonzero(there.read((size,), np.uint8) != images))
    what = f"to the device, any array through two buffers of {_size(piece)}, {_size(size)}"
    report.add(what, took * 1e6, "us", wrong, "bytes wrong")
    report.add(f"{what}, rate", size / took / 1e9, "GB/s")
    for event in done:
        driver.call("cuEventDestroy_v2", event)


def _registered(report: Report, size: int) -> None:
    """The user's own pages are locked for the driver, and let go again."""
    images = content(size)
    pointer = images.ctypes.data_as(c_void_p)

    def lock() -> None:
        driver.device()
        driver.call("cuMemHostRegister_v2", pointer, c_size_t(size), c_uint(0))
        driver.call("cuMemHostUnregister", pointer)

    report.add(f"to register and release an array, {_size(size)}", seconds(lock) * 1e6, "us")


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
