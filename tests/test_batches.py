"""Products of stacks of matrices, and of arrays of any shape and strides."""

import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_product, random

import fastnn

DTYPES = ["float32", "float64"]


# --- batches --------------------------------------------------------------------------------------------------------

BATCHES = [
    ((3, 4, 5), (3, 5, 6)),
    ((3, 4, 5), (5, 6)),
    ((4, 5), (3, 5, 6)),
    ((2, 3, 4, 5), (3, 5, 6)),
    ((2, 1, 4, 5), (3, 5, 6)),
    ((2, 3, 4, 5), (2, 1, 5, 6)),
    ((7, 1, 5), (5, 6)),
    ((7, 1, 5), (7, 5, 6)),
    ((5,), (3, 5, 6)),
    ((3, 4, 5), (5,)),
    ((2, 3, 4, 5), (5,)),
    ((1, 1, 4, 5), (1, 5, 6)),
    ((0, 4, 5), (5, 6)),
    ((3, 4, 0), (3, 0, 6)),
    ((3, 0, 5), (3, 5, 6)),
    ((40, 33, 65), (40, 65, 47)),
    ((9, 200, 100), (9, 100, 150)),
    ((2, 200, 200), (2, 200, 200)),
    ((17, 300, 40), (40, 50)),
    ((17, 300, 40), (17, 40, 50)),
]


def strided(a):
    """Axes in another order in memory, with gaps and backwards."""
    order = tuple(reversed(range(a.ndim)))
    wide = np.repeat(a.transpose(order)[::-1], 2, axis=0)[::2]
    return wide[::-1].transpose(order)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape_a", "shape_b"), BATCHES)
def test_batches(shape_a, shape_b, dtype):
    a, b = random(shape_a, dtype, 1), random(shape_b, dtype, 2)
    for x in (a, strided(a)):
        for w in (b, strided(b)):
            for _ in range(2):
                assert_product(fastnn.matmul(x, w), a, b)
    for out in (np.full_like(np.matmul(a, b), 99), strided(np.full_like(np.matmul(a, b), 99))):
        assert fastnn.matmul(a, strided(b), out) is out
        assert_product(out, a, b)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_of_threads_are_the_same(threads):
    a, b = random((50, 60, 70), "float32", 1), random((50, 70, 33), "float32", 2)
    fastnn.set_num_threads(threads)
    try:
        assert_product(fastnn.matmul(a, b), a, b)
        one = np.stack([fastnn.matmul(x, y) for x, y in zip(a, b, strict=True)])
        np.testing.assert_array_equal(fastnn.matmul(a, b), one)
    finally:
        fastnn.set_num_threads(None)


@pytest.mark.usefixtures("way")
def test_batches_may_overlap():
    a = random((3, 4, 4))
    expected = np.matmul(a, a)
    for _ in range(2):
        x = a.copy()
        assert fastnn.matmul(x, x, out=x) is x
        np.testing.assert_allclose(x, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((3, 4, 5), (2, 5, 6)), ((3, 4, 5), (4, 6)), ((2, 3, 4, 5), (2, 5, 6)), ((3, 4, 5), (4,)), ((4,), (3, 5, 6))],
)
def test_batches_that_do_not_fit_name_both_shapes(shape_a, shape_b):
    fastnn.matmul(np.ones((2, 2)), np.ones((2, 2)))
    text = [r"\(" + ", ".join(map(str, s)) + r",?\)" for s in (shape_a, shape_b)]
    out = np.full((3, 4, 6), 99.0)
    for given_out in (None, out):
        with pytest.raises(ValueError, match=f"{text[0]}.*{text[1]}"):
            fastnn.matmul(np.ones(shape_a), np.ones(shape_b), given_out)
    assert (out == 99).all()
    with pytest.raises(ValueError, match=r"dot.*\(3, 4, 5\)"):
        fastnn.dot(np.ones((3, 4, 5)), np.ones((5, 6)))


# --- dense ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu", "softmax", fastnn.activations.Function("leaky_relu", 0.5)])
@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (2, 1, 3, 5), (2, 0, 3, 5), (2, 3, 0)])
def test_dense_of_stacks(shape, activation, dtype):
    x, w, b = random(shape, dtype), random((shape[-1], 4), dtype, 1), random(4, dtype, 2)
    z = np.matmul(x.astype(np.float64), w.astype(np.float64)) + b
    name = "linear" if activation is None else getattr(activation, "name", activation)
    expected = np.where(z < 0, 0.5 * z, z) if name == "leaky_relu" else ref.ACTIVATIONS[name][0](z)
    for view in (x, x[..., ::-1][..., ::-1], x.swapaxes(0, -2).copy().swapaxes(0, -2)):
        for _ in range(2):
            result = fastnn.dense(view, w, b, activation)
            assert result.dtype == dtype
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
        out = np.full((*expected.shape[:-1], 8), 99, dtype)[..., ::2]
        assert fastnn.dense(view, w, b, activation, out) is out
        np.testing.assert_allclose(out, result, rtol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("x", [np.ones(5), np.ones((2, 3, 4))])
@pytest.mark.parametrize("learn", [False, True])
def test_dense_names_both_shapes(x, learn):
    w = np.ones((5, 4))
    if learn:
        fastnn.dense(np.ones((2, 5)), w)
    with pytest.raises(ValueError, match=rf"\({x.shape[0]},.*\(5, 4\)"):
        fastnn.dense(x, w)
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 5, 4\)"):
        fastnn.dense(np.ones((2, 5)), np.ones((2, 5, 4)))
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        fastnn.dense(np.ones((2, 5)), w, np.ones(3))


# --- any shapes and strides -----------------------------------------------------------------------------------------


@st.composite
def operand(draw, shape):
    """An array of this shape whose axes lie in any order in memory, each with any step."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in shape]
    seed = draw(st.integers(0, 1000))
    dtype = draw(st.sampled_from(DTYPES))
    memory = np.random.default_rng(seed).standard_normal([shape[i] * abs(steps[i]) for i in order]).astype(dtype)
    view = memory[tuple(slice(None, None, steps[i]) for i in order)]
    view = view.transpose(np.argsort(order)) if shape else view
    for axis, n in enumerate(shape):
        if n and draw(st.integers(0, 7)) == 0:
            view = np.broadcast_to(view.take([0], axis), view.shape) if draw(st.booleans()) else view
    assert view.shape == tuple(shape)
    return view


@st.composite
def operands(draw):
    m, k, n = (draw(st.sampled_from([0, 1, 2, 3, 5, 8, 17, 33])) for _ in range(3))
    lead = draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3))
    thin = [n if draw(st.booleans()) else 1 for n in lead]
    a_lead, b_lead = (lead, thin) if draw(st.booleans()) else (thin, lead)
    a_shape = [*a_lead[draw(st.integers(0, len(lead))) :], m, k] if draw(st.integers(0, 4)) else [k]
    b_shape = [*b_lead[draw(st.integers(0, len(lead))) :], k, n] if draw(st.integers(0, 4)) else [k]
    return draw(operand(a_shape)), draw(operand(b_shape))


@settings(max_examples=400, deadline=None)
@given(operands(), st.booleans())
def test_any_product(pair, into):
    a, b = pair
    expected = np.matmul(a.astype(np.float64), b.astype(np.float64))
    bound = np.matmul(np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64)))
    dtype = np.result_type(a, b)
    if into and expected.ndim:
        out = strided(np.full(expected.shape, 99, dtype))
        result = fastnn.matmul(a, b, out)
        assert result is out
    else:
        result = fastnn.matmul(a, b)
    assert result.dtype == dtype
    assert np.shape(result) == expected.shape
    assert (np.abs(result - expected) <= bound * (a.shape[-1] + 2) * np.finfo(dtype).eps).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 17]), max_size=4).flatmap(operand), st.booleans())
def test_any_map(x, into):
    for name in ("tanh", "softmax") if x.ndim else ("tanh",):
        out = strided(np.full(x.shape, 99, x.dtype)) if into and x.ndim else None
        result = getattr(fastnn, name)(x, out=out)
        assert result is out or out is None
        assert result.shape == x.shape
        expected = getattr(ref, name)(x.astype(np.float64)) if x.size else x
        np.testing.assert_allclose(result, expected, rtol=1e-4 if x.dtype == np.float32 else 1e-12, atol=1e-300)
