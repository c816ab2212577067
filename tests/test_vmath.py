"""Accuracy of `fastnn.cpu.vmath` in units in the last place, and the kernels made of it in `fastnn.cpu.activations`.

Everything here runs on the CPU that Numba's settings name, so that the AVX2 and the portable code can be tested too:

    NUMBA_CPU_NAME=generic pytest tests/test_vmath.py
    NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma,+avx,+sse4.2 pytest tests/test_vmath.py
"""

import ctypes
import itertools
import mmap
import os

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from scipy import special

from fastnn.cpu import loader, target
from fastnn.records import BACKWARD, FORWARD, MAP, RUN

mpmath = pytest.importorskip("mpmath")

DTYPES = ("float32", "float64")
FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "softplus", "erf", "gelu")
MAX_ULP = 2.0
GUARD = 12345.0  # around every array a kernel writes to
ALPHA = 0.2
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0]

# --- calling kernels ----------------------------------------------------------------------------------------------


def record(kind, **fields):
    values = np.zeros(1, kind.dtype)
    for name, value in fields.items():
        values[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    return values


def call(kernel, op, dtype, *, threads=1, tile=None):
    """Run all threads' shares of a kernel, one after the other, or an epilogue on a tile (array, i, j, rows, cols)."""
    address = loader.address(f"activations.{kernel}", dtype)
    run = record(RUN, threads=threads)
    pointers, integer = [ctypes.c_void_p] * 2, ctypes.c_ssize_t
    if tile is None:
        function = ctypes.CFUNCTYPE(None, *pointers, integer, integer)(address)
        for thread in range(threads):
            function(op.ctypes.data, run.ctypes.data, 0, thread)
    else:
        values, *place = tile
        function = ctypes.CFUNCTYPE(None, *pointers, integer, ctypes.c_void_p, *[integer] * 5)(address)
        function(op.ctypes.data, run.ctypes.data, 0, values.ctypes.data, values.shape[1], *place)


def apply(kernel, x, threads=1):
    """An element-wise kernel on an array, which is left as it is."""
    y = np.empty_like(x)
    call(kernel, record(MAP, x=x, y=y, n=x.size, alpha=ALPHA), str(x.dtype), threads=threads)
    return y


# --- references ---------------------------------------------------------------------------------------------------


def reference(name, x):
    """The function in float64: 29 bits more than float32 has."""
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if name == "sigmoid":
            return 1 / (1 + np.exp(-x))
        if name == "softplus":
            return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)
        if name == "erf":
            return special.erf(x)
        if name == "gelu":
            return np.where(x == -np.inf, -0.0, x * special.ndtr(x))
        return getattr(np, name)(x)


def exact(name, x):
    """The function of one finite float64, to 160 bits."""
    x = mpmath.mpf(float(x))
    with mpmath.workprec(160):
        if name == "sigmoid":  # exp first: 1 + exp(-x) is huge for very negative x
            e = mpmath.exp(-abs(x))
            return (e if x < 0 else 1) / (1 + e)
        if name == "softplus":
            return mpmath.log1p(mpmath.exp(-abs(x))) + max(x, 0)
        if name == "gelu":
            return x * mpmath.ncdf(x)
        return getattr(mpmath, name)(x)


def ulps(y, expected):
    """Error of float32 results in units in the last place; infinity counts as 2^128, NaN must meet NaN."""
    top = 2.0**128
    y = np.clip(y.astype(np.float64), -top, top)
    expected = np.clip(expected, -top, top)
    power = (expected.view(np.int64) & 0x7FF0_0000_0000_0000).view(np.float64)  # of two, not above |expected|
    error = np.abs(y - expected) / (np.maximum(power, 2.0**-126) * 2.0**-23)
    error[np.isnan(expected)] = 0.0
    error[np.isnan(y) != np.isnan(expected)] = np.inf
    return error


def ulps_exact(y, expected):
    """As `ulps`, of one float64 against mpmath."""
    top = mpmath.mpf(2) ** 1024
    y = mpmath.mpf(float(y)) if np.isfinite(y) else np.sign(y) * top
    expected = min(expected, top)
    exponent = mpmath.frexp(expected)[1] if expected else -2000
    return float(abs(y - expected) / mpmath.ldexp(1, max(exponent - 53, -1074)))


def check32(name, x):
    with np.errstate(all="ignore"):
        error = ulps(apply(f"{name}_map", x), reference(name, x))
    worst = error.argmax()
    assert error[worst] <= MAX_ULP, f"{name}({x[worst]!r}): {error[worst]:.3f} ulp"
    return error[worst]


# --- accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32(name):
    rng = np.random.default_rng(0)
    edges = np.array([0.0, 2.0**-149, 2.0**-126, 2 / 3, 4 / 3, 1.0, 9.2, 14.4, 2.0**24, 2.0**127, 88.72, 103.97])
    around = (edges.astype(np.float32).view(np.int32)[:, None] + np.arange(-500, 500)).astype(np.int32)
    positive = around[around >= 0].view(np.float32)
    x = np.concatenate(
        [
            np.arange(0, 2**32, 4001, dtype=np.uint32).view(np.float32),  # every exponent, NaNs and subnormals
            positive,
            -positive,
            rng.uniform(-110, 95, 400_000).astype(np.float32),
            rng.standard_normal(400_000, np.float32),
            1 + rng.standard_normal(200_000, np.float32) / 8,
            np.array(SPECIAL, np.float32),
        ]
    )
    assert x.size > 2_000_000
    check32(name, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_float32(name):
    worst = 0.0
    for first in range(0, 2**32, 2**18):
        bits = np.arange(first, first + 2**18, dtype=np.uint64).astype(np.uint32)
        worst = max(worst, check32(name, bits.view(np.float32)))
    print(f"{name}: {worst:.3f} ulp")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name):
    rng = np.random.default_rng(1)
    n = 500
    x = np.concatenate(
        [
            rng.uniform(-746, 711, n),
            rng.uniform(-40, 40, n),
            rng.standard_normal(3 * n),
            1 + rng.standard_normal(n) / 8,
            np.exp2(rng.uniform(-1074, 1024, n)),
            -np.exp2(rng.uniform(-1074, 10, n)),
            rng.uniform(-745.14, -708.39, n),  # exp is subnormal
            rng.uniform(0, 2.0**-1022, n),
            [0.0, 5e-324, 2.0**-1022, 1.7976931348623157e308, 709.782712893384, 709.7827128933841, -745.1332191019412],
            np.nextafter([2 / 3, 4 / 3, 0.55, -1.0, 1.0, 2.0**60], 0.0),
        ]
    )
    x = x[x > {"log": 0, "log1p": -1}.get(name, -np.inf)]  # where the function is a number
    y = apply(f"{name}_map", x)
    errors = [ulps_exact(*pair) for pair in zip(y, (exact(name, v) for v in x), strict=True)]
    worst = int(np.argmax(errors))
    print(f"{name}: {errors[worst]:.3f} ulp")
    assert errors[worst] <= MAX_ULP, f"{name}({x[worst]!r}): {errors[worst]:.3f} ulp"


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_derivative(dtype):
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.uniform(-45, 15, 3000), rng.standard_normal(3000), [0, np.inf, -np.inf]]).astype(dtype)
    y = apply("gelu_slope", x).astype(np.float64)
    with mpmath.workprec(160):
        truth = [mpmath.ncdf(v) + (v * mpmath.npdf(v) if np.isfinite(v) else 0) for v in x.tolist()]
        error = np.array([float(abs(v - t)) for v, t in zip(y.tolist(), truth, strict=True)])
    eps, size = np.finfo(dtype).eps, np.abs(np.array(truth, float))
    print(f"gelu_derivative: {error.max() / eps:.3f} ulp of 1")
    assert error.max() <= 2 * eps
    away = np.abs(x + 0.7518) > 0.1  # from the zero
    assert (error <= 20 * eps * size + np.finfo(dtype).smallest_subnormal)[away].all()
    assert np.isnan(apply("gelu_slope", np.full(3, np.nan, dtype))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_derivative(dtype):
    y = np.concatenate([np.geomspace(1e-30, 100, 3000), [0, np.inf]]).astype(dtype)
    expected = -np.expm1(-y.astype(np.float64))
    np.testing.assert_allclose(apply("softplus_slope", y), expected, rtol=2 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [1.0, 1.0, np.inf, 0.0, np.inf, 0.0]),
        ("log", [1.0, 0.0, -0.0, np.inf, -1.0, -np.inf], [0.0, -np.inf, -np.inf, np.inf, np.nan, np.nan]),
        ("log1p", [0.0, -0.0, -1.0, np.inf, -2.0, -np.inf], [0.0, -0.0, -np.inf, np.inf, np.nan, np.nan]),
        ("tanh", [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
        ("sigmoid", [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [0.5, 0.5, 1.0, 0.0, 1.0, 0.0]),
        ("softplus", [np.inf, -np.inf, 1e30, -1e30], [np.inf, 0.0, 1e30, 0.0]),
        ("expm1", [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [0.0, -0.0, np.inf, -1.0, np.inf, -1.0]),
        ("erf", [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
        ("gelu", [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30], [0.0, -0.0, np.inf, -0.0, 1e30, -0.0]),
        ("relu", [np.inf, -np.inf, -1.0, 2.0], [np.inf, 0.0, 0.0, 2.0]),
        ("leaky_relu", [np.inf, -np.inf, -1.0, 2.0], [np.inf, -np.inf, -ALPHA, 2.0]),
    ],
)
def test_special_values(name, x, y, dtype):
    result = apply(f"{name}_map", np.array([*x, np.nan], dtype))
    expected = np.array([*y, np.nan], dtype)
    np.testing.assert_array_equal(result, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(result)[numbers], np.signbit(expected)[numbers])


# --- the kernels --------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "linear": (lambda x: x, lambda y: np.ones_like(y)),
    "relu": (lambda x: np.where(x < 0, 0, x), lambda y: np.where(y > 0, 1, 0)),
    "leaky_relu": (lambda x: np.where(x < 0, ALPHA * x, x), lambda y: np.where(y > 0, 1, ALPHA)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda y: y * (1 - y)),
    "tanh": (np.tanh, lambda y: (1 - y) * (1 + y)),
}


def close(result, expected):
    np.testing.assert_allclose(result, expected, rtol=8 * np.finfo(result.dtype).eps, atol=0)


def guarded(shape, dtype):
    """An array in the middle of one that is full of GUARD, and that one."""
    rows, cols = shape
    memory = np.full((rows + 2, cols + 40), GUARD, dtype)
    return memory[1:-1, 20:-20], memory


def untouched(memory):
    inner = np.zeros(memory.shape, bool)
    inner[1:-1, 20:-20] = True
    return np.all(memory[~inner] == GUARD)


def numbers(rng, shape, dtype):
    """Normal numbers in a guarded array, and the memory around them, where NaN lies: reading it would show."""
    inner, memory = guarded(shape, dtype)
    memory[:] = np.nan
    inner[:] = rng.standard_normal(shape)
    return inner


def tile_of(values, dtype):
    """The values as a product hands them on: rows padded with zeros to whole vectors."""
    rows, cols = values.shape
    lanes = target.host().lanes(dtype)
    tile = np.zeros((rows, -(-cols // lanes) * lanes), dtype)
    tile[:, :cols] = values
    return tile


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["exp_map", "log_map", "tanh_map", "gelu_map", "relu_slope"])
def test_ragged_lengths(kernel, dtype):
    lanes = target.host().lanes(dtype)
    x = np.linspace(0.1, 3, 200).astype(dtype)
    whole = apply(kernel, x)
    for n in (*range(2 * lanes + 2), 129, 191):
        for threads in (1, 2, 3):
            y, memory = guarded((1, n), dtype)
            call(kernel, record(MAP, x=x, y=y, n=n), dtype, threads=threads)
            np.testing.assert_array_equal(y[0], whole[:n])
            assert untouched(memory)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("far", [0, 1])
def test_outputs_start_anywhere(far, dtype):
    """Every place within a cache line; stored, and streamed past the caches."""
    x = np.random.default_rng(6).standard_normal(300).astype(dtype)
    whole = apply("sigmoid_map", x)
    lines = np.empty(400 * x.itemsize + 64, np.uint8)
    aligned = lines[-lines.ctypes.data % 64 :][: 400 * x.itemsize].view(dtype)
    for start, n, threads in itertools.product(range(64 // x.itemsize), (1, 5, 64, 70, 299), (1, 2, 3, 16)):
        aligned[:] = GUARD
        op = record(MAP, x=x, y=aligned[start:], n=n, far=far)
        call("sigmoid_map", op, dtype, threads=threads)
        np.testing.assert_array_equal(aligned[start : start + n], whole[:n])
        assert np.all(np.delete(aligned, np.s_[start : start + n]) == GUARD)


def between_unreadable_pages(n, dtype, *, at_end):
    """n elements next to a page that may not be touched: an access beyond them ends the process."""
    page, size = mmap.PAGESIZE, n * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, 3 * page)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for guard in (start, start + 2 * page):
        assert protect(guard, page, 0) == 0
    return np.frombuffer(memory, dtype, count=n, offset=2 * page - size if at_end else page)


@pytest.mark.skipif(os.name == "nt", reason="needs mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_beyond_the_operands_is_touched(at_end, dtype):
    lanes = target.host().lanes(dtype)
    for n in (1, lanes - 1, lanes, lanes + 1, 2 * lanes + 1, 64, 65):
        x, g, y = (between_unreadable_pages(n, dtype, at_end=at_end) for _ in range(3))
        x[:], g[:] = 0.5, 0.25
        call("exp_map", record(MAP, x=x, y=y, n=n), dtype)
        close(y, np.exp(x))
        for kernel in ("softmax_rows", "softmax_gradient", "tanh_gradient"):
            call(kernel, record(MAP, x=x, y=y, g=g, rows=1, cols=n, ld=n), dtype)
        close(y, np.full(n, 0.1875))
        tile = tile_of(np.ones((1, n)), dtype)
        call("relu_forward", record(FORWARD, c=y, c_row=n, c_col=1, bias=x), dtype, tile=(tile, 0, 0, 1, n))
        close(y, np.full(n, 1.5))
        call("tanh_backward", record(BACKWARD, c=y, c_row=n, c_col=1, y=x), dtype, tile=(tile, 0, 0, 1, n))
        close(y, np.full(n, 0.75))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_map_and_slope(name, dtype):
    f, slope = ACTIVATIONS[name]
    x = np.random.default_rng(2).standard_normal(1000).astype(dtype)
    y = f(x.astype(np.float64)).astype(dtype)
    close(apply(f"{name}_map", x, threads=2), y)
    close(apply(f"{name}_slope", y, threads=2), slope(y.astype(np.float64)))
    zero = np.zeros(1, dtype)
    close(apply(f"{name}_slope", zero), slope(zero))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_reaches_every_output(name, dtype):
    nan = np.full(3, np.nan, dtype)
    assert np.isnan(apply(f"{name}_map", nan)).all()
    if name != "linear":
        assert np.isnan(apply(f"{name}_slope", nan)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward(name, transposed, with_bias, dtype):
    rng = np.random.default_rng(3)
    lanes = target.host().lanes(dtype)
    i, j, rows = 2, 3, 3
    for cols in (1, lanes - 1, lanes, lanes + 1, 2 * lanes):
        values = rng.standard_normal((rows, cols)).astype(dtype)
        bias = numbers(rng, (1, j + cols), dtype)[0]
        c, memory = guarded((j + cols, i + rows) if transposed else (i + rows, j + cols), dtype)
        c = c.T if transposed else c
        c_row, c_col = (s // c.itemsize for s in c.strides)
        op = record(FORWARD, c=c, c_row=c_row, c_col=c_col, bias=bias if with_bias else 0, alpha=ALPHA)
        call(f"{name}_forward", op, dtype, tile=(tile_of(values, dtype), i, j, rows, cols))
        total = values + bias[j:] if with_bias else values
        close(c[i:, j:], ACTIVATIONS[name][0](total.astype(np.float64)))
        c[i:, j:] = GUARD
        assert np.all(memory == GUARD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward(name, dtype):
    rng = np.random.default_rng(4)
    lanes = target.host().lanes(dtype)
    i, j, rows = 2, lanes, 3
    for cols in (1, lanes - 1, lanes, lanes + 1, 2 * lanes):
        values = rng.standard_normal((rows, cols)).astype(dtype)
        y = numbers(rng, (i + rows, j + cols), dtype)
        c, memory = guarded(y.shape, dtype)  # 40 elements more than that
        for padded in (False, True):
            memory[:] = GUARD
            c_row = c.strides[0] // c.itemsize
            if padded:  # rows of whole vectors: what follows a row in the last one is its own
                c_row -= c_row % lanes
            c, y = (as_strided(e, strides=(c_row * e.itemsize, e.itemsize)) for e in (c, y))
            y[:] = rng.standard_normal(y.shape)
            op = record(BACKWARD, c=c, c_row=c_row, c_col=1, y=y, alpha=ALPHA)
            call(f"{name}_backward", op, dtype, tile=(tile_of(values, dtype), i, j, rows, cols))
            close(c[i:, j:], values * ACTIVATIONS[name][1](y[i:, j:].astype(np.float64)))
            whole = cols if c_row % lanes else -(-cols // lanes) * lanes
            as_strided(c[i:, j:], (rows, whole), c.strides)[:] = GUARD
            assert np.all(memory == GUARD)


def matrix(x, y, g=0):
    rows, cols = x.shape
    return record(MAP, x=x, y=y, g=g, rows=rows, cols=cols, ld=x.strides[0] // x.itemsize, alpha=ALPHA)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_outer(name, threads, dtype):
    """A column times a row times the slope; rows are padded, and what is behind them is not touched."""
    rng = np.random.default_rng(5)
    lanes = target.host().lanes(dtype)
    for rows, cols in itertools.product((1, 5), (2, lanes - 1, lanes, lanes + 1, 2 * lanes, 4 * lanes + 1)):
        whole = -(-cols // lanes) * lanes
        x = rng.standard_normal((rows, whole)).astype(dtype)
        g, row = numbers(rng, (1, rows), dtype)[0], numbers(rng, (1, cols), dtype)[0]
        y, memory = guarded((rows, whole), dtype)
        y = as_strided(y, strides=(whole * y.itemsize, y.itemsize))  # no gaps
        op = record(MAP, x=x, y=y, g=g, row=row, rows=rows, cols=cols, ld=whole, alpha=ALPHA)
        call(f"{name}_outer", op, dtype, threads=threads)
        close(y[:, :cols], g[:, np.newaxis] * row * ACTIVATIONS[name][1](x[:, :cols].astype(np.float64)))
        assert (y[:, cols:] == 0).all(), "padding stays 0"
        y[:] = GUARD
        assert np.all(memory == GUARD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_matrix_kernels(in_place, threads, dtype):
    rng = np.random.default_rng(5)
    for shape in ((1, 1), (5, 10), (4, 2 * target.host().lanes(dtype)), (3, 67), (2, 0)):
        x, g = numbers(rng, shape, dtype), numbers(rng, shape, dtype)
        before = g.astype(np.float64)
        for name, (_, slope) in ACTIVATIONS.items():
            y, memory = guarded(shape, dtype)
            if in_place:
                y[:] = g
            call(f"{name}_gradient", matrix(x, y, y if in_place else g), dtype, threads=threads)
            close(y, before * slope(x.astype(np.float64)))
            assert untouched(memory)
        if not shape[1]:
            continue

        s, memory = guarded(shape, dtype)
        s[:] = x
        call("softmax_rows", matrix(s if in_place else x, s), dtype, threads=threads)
        e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
        np.testing.assert_allclose(s, e / e.sum(1, keepdims=True), rtol=20 * np.finfo(dtype).eps)
        assert untouched(memory)

        y, memory = guarded(shape, dtype)
        y[:] = g
        call("softmax_gradient", matrix(s, y, y if in_place else g), dtype, threads=threads)
        wide = s.astype(np.float64)
        expected = wide * (before - (before * wide).sum(1, keepdims=True))
        np.testing.assert_allclose(y, expected, atol=20 * np.finfo(dtype).eps)
        assert untouched(memory)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 1e38, -1e38])
def test_softmax_of_odd_rows(odd, dtype):
    for cols in (1, 2, 37):
        for at in {0, cols // 2, cols - 1}:
            x = np.zeros((2, cols), dtype)
            x[0, at] = odd
            y = np.empty_like(x)
            call("softmax_rows", matrix(x, y), dtype)
            with np.errstate(all="ignore"):
                e = np.exp(x - x.max(1, keepdims=True))
                expected = e / e.sum(1, keepdims=True)
            np.testing.assert_allclose(y, expected, rtol=1e-6)
