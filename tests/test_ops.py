"""The NumPy-level functions against the reference: values, dtypes, strides, errors."""

import numpy as np
import pytest
import reference as ref

import fastnn

DTYPES = ["float32", "float64"]
ACTIVATIONS = ["relu", "leaky_relu", "sigmoid", "tanh", "softmax"]
UNARY = [*ACTIVATIONS, "exp", "expm1", "log", "log1p", "erf", "softplus", "gelu"]
DERIVATIVES = [
    *("relu_derivative", "leaky_relu_derivative", "sigmoid_derivative", "tanh_derivative"),
    *("softplus_derivative", "gelu_derivative"),
]
SHAPES = [(0,), (1,), (5,), (67,), (0, 3), (3, 1), (1, 7), (5, 17), (33, 65), (2, 3, 5)]


def random(shape, dtype="float64", seed=0, scale=2.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def integers(shape, kind, seed=0):
    low = -5 if kind.startswith("int") else 0
    return np.random.default_rng(seed).integers(low, 2 if kind == "bool" else 6, shape).astype(kind)


def tolerance(dtype, factor=8):
    info = np.finfo(dtype)
    return {"rtol": factor * info.eps, "atol": info.tiny}


def layouts(a):
    """Views with a's values on other strides; read-only, so that a function that writes to its input fails."""
    yield "C", a.copy()
    yield "Fortran", np.asfortranarray(a)
    yield "negative strides", np.flip(np.flip(a).copy())
    wide = np.full([3 * n + 1 for n in a.shape], 99, a.dtype)
    steps = tuple(slice(1, None, 3) for _ in a.shape)
    wide[steps] = a
    yield "strided", wide[steps]
    if a.ndim == 2:
        yield "transposed", a.T.copy().T
    raw = np.zeros(a.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(a.dtype).reshape(a.shape)
    unaligned[...] = a
    yield "unaligned", unaligned


LAYOUTS = ["C", "Fortran", "negative strides", "strided", "transposed", "unaligned"]


def lay(a, layout):
    view = dict(layouts(a))[layout]
    view.flags.writeable = False
    np.testing.assert_array_equal(view, a)
    return view


def gemm_bound(a, b, dtype):
    """Largest rounding error that a sum of k products in `dtype` may have, element by element."""
    a, b = np.abs(np.asarray(a, np.float64)), np.abs(np.asarray(b, np.float64))
    return (a @ b) * (a.shape[-1] + 2) * np.finfo(dtype).eps + np.finfo(dtype).tiny


def assert_product(result, a, b, dtype):
    expected = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert result.dtype == dtype
    assert result.shape == expected.shape
    assert (np.abs(result - expected) <= gemm_bound(a, b, dtype)).all()


# matmul, dot, dense


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 6, 15, 65])
@pytest.mark.parametrize("k", [0, 1, 17, 64])
@pytest.mark.parametrize("n", [0, 1, 16, 33, 129])
def test_matmul_shapes(m, k, n, dtype):
    a, b = random((m, k), dtype, 1), random((k, n), dtype, 2)
    assert_product(fastnn.matmul(a, b), a, b, dtype)
    assert_product(fastnn.dot(a, b), a, b, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_spans_many_tiles_and_cache_blocks(dtype):
    a, b = random((257, 771), dtype, 1), random((771, 263), dtype, 2)
    assert_product(fastnn.matmul(a, b), a, b, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("layout_a", LAYOUTS)
def test_matmul_layouts(layout_a, layout_b, dtype):
    a, b = random((19, 23), dtype, 1), random((23, 37), dtype, 2)
    assert_product(fastnn.matmul(lay(a, layout_a), lay(b, layout_b)), a, b, dtype)


def test_matmul_of_a_repeated_row():
    row, b = random(23, "float32", 1), random((23, 9), "float32", 2)
    a = np.broadcast_to(row, (5, 23))
    assert_product(fastnn.matmul(a, b), a, b, "float32")
    assert_product(fastnn.matmul(b.T, a.T), b.T, a.T, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", ["matmul", "dot"])
@pytest.mark.parametrize(("shape_a", "shape_b"), [((7,), (7,)), ((7,), (7, 5)), ((5, 7), (7,)), ((0,), (0,))])
def test_one_dimensional_operands_follow_numpy(shape_a, shape_b, f, dtype):
    a, b = random(shape_a, dtype, 1), random(shape_b, dtype, 2)
    assert_product(np.asarray(getattr(fastnn, f)(a, b)), a, b, dtype)


@pytest.mark.parametrize("f", ["matmul", "dot"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "bool"])
def test_products_convert_integers(kind, f):
    a, b = integers((4, 5), kind, 1), integers((5, 3), kind, 2)
    exact = a.astype(float) @ b.astype(float)
    result = getattr(fastnn, f)(a, b)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, exact)
    wide = getattr(fastnn, f)(a, b.astype(np.float64))
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, exact)


def test_float32_with_float64_gives_float64():
    a, b = random((4, 5), "float32", 1), random((5, 3), "float64", 2)
    assert_product(fastnn.matmul(a, b), a, b, "float64")
    assert_product(fastnn.matmul(b.T, a.T), b.T, a.T, "float64")


@pytest.mark.parametrize("f", ["matmul", "dot"])
@pytest.mark.parametrize(("shape_a", "shape_b"), [((3, 4), (5, 2)), ((4,), (5,)), ((3, 4), (3,)), ((4,), (3, 2))])
def test_products_name_both_shapes(shape_a, shape_b, f):
    def spelled(shape):
        return r"\(" + ", *".join(map(str, shape)) + r",?\)"

    with pytest.raises(ValueError, match=f"{spelled(shape_a)}.*{spelled(shape_b)}"):
        getattr(fastnn, f)(np.ones(shape_a), np.ones(shape_b))


def test_matmul_refuses_scalars():
    with pytest.raises(ValueError, match=r"(?i)dimension|0-?d|scalar|\(\)"):
        fastnn.matmul(2.0, np.ones((2, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 40])
def test_matmul_propagates_nan_and_inf(k, dtype):
    a, b = random((9, k), dtype, 1), random((k, 35), dtype, 2)
    a[2, 0], a[4, 0], b[k - 1, 7] = np.nan, np.inf, -np.inf
    b[0, 3] = 0  # inf * 0 is nan
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b.astype(np.float64)
    result = fastnn.matmul(a, b)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(result[np.isinf(expected)], expected[np.isinf(expected)])
    assert np.isfinite(result[np.isfinite(expected)]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "linear", *ACTIVATIONS])
@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 3, 2), (5, 0, 3), (7, 13, 10), (33, 65, 47)])
def test_dense(shape, activation, bias, dtype):
    m, k, n = shape
    x, w, b = random((m, k), dtype, 1), random((k, n), dtype, 2, 0.3), random(n, dtype, 3) if bias else None
    z = x.astype(np.float64) @ w.astype(np.float64) + (0 if b is None else b)
    expected = ref.ACTIVATIONS[activation or "linear"][0](z)
    result = fastnn.dense(x, w, b, activation)
    assert result.dtype == dtype
    rtol, atol = (1e-4, 1e-5) if dtype == "float32" else (1e-12, 1e-13)
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_layouts_and_out(layout):
    x, w, b = random((7, 13), seed=1), random((13, 10), seed=2), random(10, seed=3)
    out = np.full((7, 10), 99.0)
    result = fastnn.dense(lay(x, layout), lay(w, layout), b[::-1].copy()[::-1], "tanh", out=out)
    assert result is out
    np.testing.assert_allclose(out, np.tanh(x @ w + b), rtol=1e-13)


def test_dense_errors():
    x, w, b = np.ones((7, 13)), np.ones((13, 10)), np.ones(10)
    with pytest.raises(ValueError, match=r"\(7, 13\).*\(12, 10\)"):
        fastnn.dense(x, w[:12], b)
    with pytest.raises(ValueError, match=r"\b9\b.*\b10\b|\b10\b.*\b9\b"):
        fastnn.dense(x, w, b[:9])
    with pytest.raises(ValueError, match=r"rellu.*\brelu\b"):
        fastnn.dense(x, w, b, "rellu")
    with pytest.raises(TypeError, match="complex128"):
        fastnn.dense(x, w, b + 1j)


# Elementwise


def unary_expected(name, x):
    return getattr(ref, name)(np.asarray(x, np.float64))


def unary_tolerance(name, dtype):
    # The rounding of x - max(x), or in the reference of x^2 / 2, is magnified by exp, up to as many times as that.
    limits = tolerance(dtype, 64 if name in ("softmax", "gelu", "gelu_derivative") else 8)
    if name == "gelu_derivative":  # has a zero
        limits["atol"] = 2 * np.finfo(dtype).eps
    return limits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*UNARY, "linear", *DERIVATIVES])
def test_unary_shapes(name, shape, dtype):
    x = random(shape, dtype)
    result = getattr(fastnn, name)(x)
    assert result is not x
    assert result.dtype == dtype
    assert result.shape == shape
    np.testing.assert_allclose(result, unary_expected(name, x), **unary_tolerance(name, dtype))


@pytest.mark.parametrize("name", [*UNARY, *DERIVATIVES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unary_layouts(layout, name):
    x = random((19, 23), "float32")
    result = getattr(fastnn, name)(lay(x, layout))
    np.testing.assert_allclose(result, unary_expected(name, x), **unary_tolerance(name, "float32"))


@pytest.mark.parametrize("name", UNARY)
def test_unary_large_array(name):
    x = random((301, 1001), "float32")
    np.testing.assert_allclose(getattr(fastnn, name)(x), unary_expected(name, x), **unary_tolerance(name, "float32"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in [*UNARY, *DERIVATIVES] if not name.startswith("softmax")])
def test_unary_does_not_depend_on_the_position(name, dtype):
    """Blocks of vectors, single vectors and ragged ends are different code with the same bits."""
    x = random((403,), dtype)
    f = getattr(fastnn, name)
    np.testing.assert_array_equal(f(x), np.concatenate([f(x[i : i + 13]) for i in range(0, len(x), 13)]))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "bool"])
@pytest.mark.parametrize("name", [*UNARY, *DERIVATIVES])
def test_unary_converts_integers(name, kind):
    x = integers((5, 7), kind)
    result = getattr(fastnn, name)(x)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, unary_expected(name, x), **unary_tolerance(name, "float64"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear", *UNARY])
def test_unary_special_values(name, dtype):
    info = np.finfo(dtype)
    big = [0.0, info.tiny, 1e4, info.max, np.inf]
    x = np.array([*big, *[-v for v in big]], dtype)
    f = getattr(fastnn, name)
    if name == "softmax":
        np.testing.assert_array_equal(f(np.array([[0, -np.inf, 0], [1e4, 0, -1e4]], dtype)), [[0.5, 0, 0.5], [1, 0, 0]])
        rows = f(np.array([[0, np.nan, 1], [0, 0, 0]], dtype))
        assert np.isnan(rows[0]).all()
        assert np.isfinite(rows[1]).all()
        return
    np.testing.assert_allclose(f(x), unary_expected(name, x), **tolerance(dtype))
    for n in (1, 3, 16, 35):
        mixed = np.zeros(n, dtype)
        mixed[-1] = np.nan
        np.testing.assert_array_equal(np.isnan(f(mixed)), np.isnan(mixed))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_unary_takes_lists_and_scalars(name):
    f = getattr(fastnn, name)
    np.testing.assert_allclose(f([[0.5, -1.0]]), unary_expected(name, [[0.5, -1.0]]), rtol=1e-6)
    scalar = f(0.5)
    assert np.shape(scalar) == ()
    assert float(scalar) == pytest.approx(float(unary_expected(name, 0.5)), rel=1e-6)


def test_leaky_relu_slope():
    x = np.array([-2.0, 0.0, 3.0])
    assert fastnn.leaky_relu(x, 0.5).tolist() == [-1, 0, 3]
    assert fastnn.leaky_relu(x, negative_slope=0.0).tolist() == [0, 0, 3]
    assert fastnn.leaky_relu_derivative(x, negative_slope=0.5).tolist() == [0.5, 0.5, 1]
    with pytest.raises(ValueError, match="negative_slope.*nan"):
        fastnn.leaky_relu(x, negative_slope=np.nan)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 65), (9,), (0, 3)])
def test_softmax_derivative(shape, dtype):
    y, g = ref.softmax(random(shape)).astype(dtype), random(shape, dtype, 1)
    before = y.copy(), g.copy()
    result = fastnn.softmax_derivative(y, g)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, ref.softmax_vjp(y, g), rtol=0, atol=100 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(y, before[0])
    np.testing.assert_array_equal(g, before[1])


@pytest.mark.parametrize(
    "dtype", ["complex64", "complex128", "O", "U3", "S3", "datetime64[s]", "float16", "longdouble"]
)
@pytest.mark.parametrize("name", [*UNARY, *DERIVATIVES])
def test_unary_refuses_other_dtypes(name, dtype):
    x = np.zeros((2, 3), dtype)
    with pytest.raises(TypeError, match=str(x.dtype).replace("[", r"\[").replace("<", "")):
        getattr(fastnn, name)(x)


@pytest.mark.parametrize("dtype", ["complex128", "O", "U3"])
@pytest.mark.parametrize("f", ["matmul", "dot"])
def test_products_refuse_other_dtypes(f, dtype):
    good, bad = np.zeros((3, 3)), np.zeros((3, 3), dtype)
    for a, b in [(good, bad), (bad, good)]:
        with pytest.raises(TypeError, match=str(bad.dtype).replace("<", "")):
            getattr(fastnn, f)(a, b)


@pytest.mark.parametrize("name", ["matmul", "sigmoid", "softmax"])
def test_other_byte_order_is_right_or_refused(name):
    x = random((5, 5), "float32")
    swapped = x.astype(x.dtype.newbyteorder())
    args = (swapped, swapped) if name == "matmul" else (swapped,)
    native = (x, x) if name == "matmul" else (x,)
    try:
        result = getattr(fastnn, name)(*args)
    except TypeError:
        return
    np.testing.assert_array_equal(result, getattr(fastnn, name)(*native))
