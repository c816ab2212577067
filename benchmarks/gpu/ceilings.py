"""What the device can do at best: copies, and products of NVIDIA's library through torch."""

from __future__ import annotations

import ctypes

import numpy as np

from benchmarks.gpu import driver, products
from benchmarks.gpu.measure import Report, device_seconds

COPIES = (64 << 20, 256 << 20, 1 << 30)  # bytes; the first may stay in L2
SIZES = (256, 512, 1024, 2048, 4096, 8192)
QUICK_SIZES = (256, 1024)


def measure(report: Report) -> None:
    """Report copies, then products."""
    for size in COPIES[:1] if report.quick else COPIES:
        report.attempt(f"copy of {size >> 20} MiB", _copy, report, size)
    for n in QUICK_SIZES if report.quick else SIZES:
        product = products.Product(n)
        for precision in products.PRECISIONS:
            report.attempt(products.torch_name(precision, n), products.torch, report, product, precision)


def _copy(report: Report, size: int) -> None:
    stream = driver.Stream()
    rng = np.random.default_rng(0)
    content = np.frombuffer(rng.bytes(1 << 20), np.uint8)
    source, target = driver.Memory.of(np.tile(content, size >> 20)), driver.Memory.zeros(size)

    def queue() -> None:
        addresses = (ctypes.c_uint64(target.address), ctypes.c_uint64(source.address))
        driver.call("cuMemcpyDtoDAsync_v2", *addresses, ctypes.c_size_t(size), stream.handle)

    seconds = device_seconds(stream, queue)
    wrong = int(np.count_nonzero(target.read((size >> 20, 1 << 20), np.uint8) != content))
    report.add(f"copy of {size >> 20} MiB, read and written", 2 * size / seconds / 1e9, "GB/s", wrong, "bytes wrong")
