"""Products to compare: operands, the right answer, and NVIDIA's library through torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu import driver
from benchmarks.gpu.measure import Report, device_seconds, torch_seconds, torch_with_cuda

if TYPE_CHECKING:
    from benchmarks.gpu.compile import Kernel

SIZES = (512, 1024, 2048, 4096, 8192)
QUICK_SIZES = (512,)
FULL_CHECK = 1024  # all rows are compared up to here, and CHECKED_ROWS beyond
CHECKED_ROWS = 64
IN_GRAPH = 20  # products in one graph, so that no launch counts
PRECISIONS = ("float32", "tf32", "bf16")
ERROR = "largest error / largest element"
Arguments = Callable[["Product", driver.Memory, driver.Memory, driver.Memory], Sequence[Any]]


class Product:
    """c = a b of (n, n) matrices of normal numbers.

    Parameters
    ----------
    n : int
        The size.
    whole : bool
        Whole numbers from -2 to 2 instead: every precision adds their products exactly, so that every element must be
        right.
    """

    def __init__(self, n: int, *, whole: bool = False) -> None:
        rng = np.random.default_rng([n, whole])
        self.n, self.whole = n, whole
        if whole:
            self.a, self.b = (rng.integers(-2, 3, (n, n)).astype(np.float32) for _ in range(2))
        else:
            self.a, self.b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows that are compared: they fall on different rows of the tiles."""
        n = self.n
        return np.arange(n) if n <= FULL_CHECK else np.linspace(0, n - 1, CHECKED_ROWS).round().astype(int)

    @cached_property
    def expected(self) -> np.ndarray:
        """Those rows in float64."""
        return self.a[self.rows].astype(np.float64) @ self.b.astype(np.float64)

    @cached_property
    def expected_bf16(self) -> np.ndarray:
        """Those rows in float64, of operands that were rounded to bf16."""
        a, b = (from_bf16(to_bf16(e)).astype(np.float64) for e in (self.a[self.rows], self.b))
        return a @ b

    def error(self, found: np.ndarray, precision: str) -> float:
        """The largest error of these rows, relative to the largest element; infinite where one is not a number."""
        expected = self.expected_bf16 if precision == "bf16" else self.expected
        error = float(np.max(np.abs(found.astype(np.float64) - expected)) / np.max(np.abs(expected)))
        return error if np.isfinite(error) else float("inf")

    def wrong(self, found: np.ndarray, precision: str) -> int:
        """How many elements of these rows are not exactly right (rounded to bf16, where that is what is stored)."""
        expected = self.expected.astype(np.float32)
        if precision == "bf16":
            expected = from_bf16(to_bf16(expected))
        return int(np.count_nonzero(found != expected))

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.n**3


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, as the 16 bits of bf16."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of 16 bits each."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


# --- the library ------------------------------------------------------------------------------------------------------


def torch_name(precision: str, n: int) -> str:
    """What the report calls it."""
    return f"torch, {precision}, {n}"


def torch(report: Report, product: Product, precision: str) -> None:
    """Report the library's speed and error."""
    lib = torch_with_cuda()
    lib.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    kind = lib.bfloat16 if precision == "bf16" else lib.float32
    a, b = (lib.from_numpy(e).cuda().to(kind) for e in (product.a, product.b))
    out = lib.empty((product.n, product.n), dtype=kind, device="cuda")
    seconds = torch_seconds(lib, lambda: lib.matmul(a, b, out=out), IN_GRAPH)
    error = product.error(out.float().cpu().numpy()[product.rows], precision)
    report.add(torch_name(precision, product.n), product.operations / seconds / 1e12, "TFLOP/s", error, ERROR)


# --- kernels ----------------------------------------------------------------------------------------------------------


class Contestant:
    """A kernel that multiplies, compiled for the device.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    precision : str
        Of `PRECISIONS`; "bf16" operands and results are 16 bits.
    grid : callable
        Blocks for a size.
    arguments : callable
        The kernel's arguments from the product and the memory of a, b and c.
    transposed : bool
        Whether b is laid out as (n, k).
    """

    def __init__(
        self,
        kernel: Kernel,
        precision: str,
        grid: Callable[[int], driver.Size],
        arguments: Arguments,
        *,
        transposed: bool = False,
    ) -> None:
        from benchmarks.gpu import compile  # the library can be measured where numba-cuda is not

        code = compile.build(kernel, driver.capability())
        self.function = driver.Function(code.binary, code.entry, kernel.dynamic)
        self.kernel, self.precision, self.grid, self.arguments = kernel, precision, grid, arguments
        self.transposed = transposed

    def report(self, report: Report, product: Product) -> None:
        """Report its errors, and its speed."""
        wrong_of = Product(product.n, whole=True) if product.n <= FULL_CHECK else None
        seconds, found = self._run(product)
        error = product.error(found, self.precision)
        what = f"{self.kernel.name}, {product.n}"
        report.add(what, product.operations / seconds / 1e12, "TFLOP/s", error, ERROR)
        if wrong_of is not None:
            wrong = wrong_of.wrong(self._run(wrong_of)[1], self.precision)
            report.add(f"{what}, of whole numbers", product.n**2, "elements", wrong, "elements wrong")

    def _run(self, product: Product) -> tuple[float, np.ndarray]:
        n, bf16 = product.n, self.precision == "bf16"
        right = np.ascontiguousarray(product.b.T) if self.transposed else product.b
        a, b = (driver.Memory.of(to_bf16(e) if bf16 else e) for e in (product.a, right))
        size = np.dtype(np.uint16 if bf16 else np.float32)
        c = driver.Memory(n * n * size.itemsize)
        c.clear(0xFF)  # not a number, in both precisions: an element that nobody stores is an infinite error
        stream = driver.Stream()
        arguments = self.arguments(product, a, b, c)
        queue = self.function.prepare(self.grid(n), self.kernel.threads, arguments, stream)
        queue()
        stream.synchronize()
        graph = stream.capture(lambda: [queue() for _ in range(IN_GRAPH)] and None)  # as the library is timed
        seconds = device_seconds(stream, graph) / IN_GRAPH
        found = c.read((n, n), size)[product.rows]
        return seconds, from_bf16(found) if bf16 else found


def float_arguments(product: Product, a: driver.Memory, b: driver.Memory, c: driver.Memory) -> Sequence[Any]:
    """Those of the kernels for float32."""
    return [a, b, c, ctypes.c_int32(product.n), ctypes.c_int32(product.n)]


def compare(report: Report, make: dict[str, Callable[[], Contestant]], rivals: Sequence[str]) -> None:
    """Report contestants (by what they are called) and the library in some precisions, size by size."""
    contestants: dict[str, Contestant] = {}

    def build(name: str) -> None:
        contestants[name] = make[name]()

    for name in make:
        report.attempt(name, build, name)
    for n in QUICK_SIZES if report.quick else SIZES:
        product = Product(n)
        for precision in rivals:
            report.attempt(torch_name(precision, n), torch, report, product, precision)
        for name, contestant in contestants.items():
            report.attempt(f"{name}, {n}", contestant.report, report, product)
