"""Products on the matrix unit, called by address: values, edges, strides, shares, and what is not finite.

Where there is no such unit, vectors stand in for it (`fastnn.cpu.amx.multiply_vectors`); all else is as it is there.
"""

import itertools

import numpy as np
import pytest
from guard import ENDS, Guarded
from test_kernels import call, random, record

import fastnn
from fastnn import training
from fastnn.cpu import amx, blocking, division, jit, loader, target, zeros
from fastnn.cpu.memory import address
from fastnn.layers import Dense, Dropout, Input
from fastnn.records import FORWARD, GEMM, UPDATE

pytestmark = pytest.mark.skipif(
    target.host().has_tiles and not target.may_use_tiles(), reason="the system does not let processes use the unit"
)
KERNEL, DTYPE = "amx.amx", "float32"
W = blocking.CPU.lanes(DTYPE)
ORDERS = {"rows": lambda rows, cols: (cols, 1), "columns": lambda rows, cols: (1, rows)}
# Of a block, its edges, several tasks, and several pieces of k.
SHAPES = [(32, 32, 32), (1, W, 1), (33, 3 * W, 31), (47, 2 * W, 65), (16, 32, 128), (70, 5 * W, 129), (150, 40, 300)]


def operands(m, n, k, order_a, order_b, end, spread=0.0):
    rng = np.random.default_rng(m + n + k)
    a, b = (random(shape, DTYPE, seed) for shape, seed in (((m, k), 1), ((k, n), 2)))
    if spread:
        a, b = (x * np.exp2(rng.uniform(-spread, spread, x.shape)).astype(DTYPE) for x in (a, b))
    return [Guarded(x, end, ORDERS[order](*x.shape)) for x, order in ((a, order_a), (b, order_b))]


def product(a, b, *, threads=1, cut=None, claims=None, **more):
    """What the kernel makes of two guarded matrices, as an epilogue writes it."""
    (m, k), n = a.array.shape, b.array.shape[1]
    c = np.full((m, n + 3), 7.0, DTYPE)
    cut = cut or blocking.tiles(m, n, k, threads)
    scratch = Guarded(np.full(threads * blocking.tiles_scratch(cut), np.nan, DTYPE)).array
    where = {"kernel": loader.address("activations.linear_forward", DTYPE), "c": c, "c_row": n + 3, "c_col": 1}
    epilogue = record(FORWARD, **where)
    a_row, a_col, b_row, b_col = (s // 4 for x in (a.array, b.array) for s in x.strides)
    fields = {**cut, "m": m, "n": n, "k": k, "a": a.array, "a_row": a_row, "a_col": a_col}
    fields |= {"b": b.array, "b_row": b_row, "b_col": b_col, "epilogue": address(epilogue)}
    fields |= {"scratch": scratch, "scratch_stride": scratch.size // threads, "claims": 0 if claims is None else claims}
    call(KERNEL, DTYPE, GEMM, fields | more, threads=threads)
    assert (c[:, n:] == 7).all()
    return c[:, :n]


def error(found, a, b):
    """The largest error, in units of what a rounding of the largest possible sum of products makes."""
    a, b = a.array.astype(float), b.array.astype(float)
    return (np.abs(found - a @ b) / (np.abs(a) @ np.abs(b))).max() / 2.0**-24


@pytest.mark.parametrize("order_a", ORDERS)
@pytest.mark.parametrize("order_b", ORDERS)
@pytest.mark.parametrize("end", ENDS)
def test_products(end, order_b, order_a):
    for m, n, k in SHAPES:
        a, b = operands(m, n, k, order_a, order_b, end)
        for threads in (1, 3):
            assert error(product(a, b, threads=threads), a, b) < 3, (m, n, k, threads)


def test_errors_are_those_of_float32():
    """Half of what multiply-adds make; 1.3 times as much where numbers are as different as 2^-12 and 2^12."""
    for spread, most in ((0.0, 0.7), (12.0, 1.3), (24.0, 1.3)):
        a, b = operands(64, 64, 512, "rows", "rows", "end", spread)
        chain = np.zeros((64, 64), DTYPE)
        for p in range(512):
            chain = (chain + a.array[:, p, np.newaxis].astype(float) * b.array[p]).astype(DTYPE)
        assert error(product(a, b), a, b) < most * error(chain, a, b)


def test_one_product_is_rounded_to_the_last_bit_or_so():
    a, b = operands(64, 64, 1, "rows", "rows", "end", 20.0)
    assert error(product(a, b), a, b) < 2.01  # the rounding, and parts that are left out


def test_bits_do_not_depend_on_how_the_work_is_cut():
    a, b = operands(200, 96, 300, "rows", "columns", "end")
    expected = product(a, b)
    for threads, rows, panels, kc in itertools.product((1, 2, 3), (32, 96), (1, 2), (32, 64, 128)):
        cut = {"rows": rows, "panels": panels, "kc": kc}
        np.testing.assert_array_equal(product(a, b, threads=threads, cut=cut), expected)


def test_tasks_can_be_claimed():
    a, b = operands(200, 96, 70, "columns", "rows", "end")
    claims = np.zeros(2 * blocking.LINE, np.int64)
    cut = {"rows": 32, "panels": 1, "kc": 64}
    for _ in range(2):  # the counters need not be set back
        np.testing.assert_array_equal(product(a, b, threads=2, cut=cut, claims=claims), product(a, b))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38])
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_not_finite(order, value):
    """A number that no bfloat16 is near enough, 3.4e38, becomes infinite as a part only."""
    for side, (m, n, k) in itertools.product((0, 1), ((70, 5 * W, 129), (33, 3 * W, 31))):
        held = operands(m, n, k, order, order, "end")
        held[side].array[20 % k if side else 3, 5] = value
        a, b = (x.array.astype(float) for x in held)
        with np.errstate(invalid="ignore", over="ignore"):
            expected = (a @ b).astype(DTYPE)
            found = product(*held)
        sure = np.isfinite(expected) & (np.abs(expected) < 1e37)
        np.testing.assert_allclose(found[sure], expected[sure], rtol=1e-4, atol=1e-4)
        far = np.abs(expected) > 1e37
        np.testing.assert_allclose(found[far], expected[far], rtol=1e-5)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


def test_small_numbers():
    """Below 2^-126 numbers are 0, as in the engine, and parts of numbers: so much is lost of numbers below 2^-102."""
    a, b = operands(32, 32, 32, "rows", "rows", "end")
    a.array[...] = np.abs(a.array) * 2.0**-100 + np.float32(2.0**-102)
    b.array[...] = np.abs(b.array) + 0.25
    assert error(product(a, b), a, b) < 3
    a.array[...] *= np.float32(2.0**-15)
    assert error(product(a, b), a, b) < 2.0 ** (24 - 126 + 117)
    a.array[...] *= np.float32(2.0**55)
    b.array[...] *= np.float32(2.0**-60)  # and of products
    assert error(product(a, b), a, b) < 2.0 ** (24 - 126 + 122)
    a.array[...] = 2.0**-130
    assert (product(a, b) == 0).all() or not target.host().has_tiles


@pytest.mark.parametrize(("threads", "by_rows"), [(1, 0), (3, 0), (3, 1)])
def test_weights_and_biases_are_updated(threads, by_rows):
    """X' D to weights and 1' D to a bias, by gradient descent: each once, however threads share rows."""
    for inputs, units, rows in ((70, 2 * W, 129), (33, 5 * W, 40), (600, W, 64)):
        x, d = random((rows, -(-inputs // W) * W), DTYPE, 1), random((rows, units), DTYPE, 2)
        weights, bias = random((inputs, units), DTYPE, 3), random(units, DTYPE, 4)
        new_weights, new_bias = weights.copy(), bias.copy()
        kernel = loader.address("optimizers.sgd", DTYPE)
        updates = [record(UPDATE, kernel=kernel, p=p, p_row=units) for p in (new_weights, new_bias)]
        cut = blocking.tiles(inputs, units, rows, threads)
        scratch = np.zeros(threads * blocking.tiles_scratch(cut), DTYPE)
        fields = {**cut, "m": inputs, "n": units, "k": rows, "a": x, "a_row": 1, "a_col": x.shape[1]}
        fields |= {
            "by_rows": by_rows,
            "b": d,
            "b_row": units,
            "b_col": 1,
            "epilogue": address(updates[0]),
            "sums": address(updates[1]),
        }
        fields |= {"scratch": scratch, "scratch_stride": scratch.size // threads}
        call(KERNEL, DTYPE, GEMM, fields, threads=threads, rate=np.array([0.25]))
        wide_x, wide_d = x[:, :inputs].astype(float), d.astype(float)
        np.testing.assert_allclose(new_weights, weights - 0.25 * wide_x.T @ wide_d, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(new_bias, bias - 0.25 * wide_d.sum(axis=0), rtol=1e-4, atol=1e-5)


# --- networks -------------------------------------------------------------------------------------------------------

SIZES, BATCH = (100, 448, 480, 3), 200  # 43 million multiply-adds of the second layer, none of them in whole tasks


@pytest.fixture
def unit(monkeypatch):
    """Products on the matrix unit, or what stands in for it, and a list of what they were for."""
    chosen = []
    monkeypatch.setattr(target, "may_use_tiles", lambda: True)
    asked = blocking.pays_tiles

    def pays(m, n, k, *arguments):
        found = asked(m, n, k, *arguments)
        chosen.extend([(m, n, k)] * found)
        return found

    monkeypatch.setattr(blocking, "pays_tiles", pays)
    return chosen


def network(threads, activation="tanh", dropout=0.0):
    hidden = [layer for n in SIZES[1:-1] for layer in (Dense(n, activation), Dropout(dropout))]
    layers = [Input(SIZES[:1]), *hidden, Dense(SIZES[-1])]
    model = fastnn.Sequential(layers, seed=3, n_threads=threads)
    model.compile(fastnn.optimizers.SGD(0.5), "mse")
    return model


def samples(rows=2 * BATCH + 30):
    return random((rows, SIZES[0]), DTYPE, 1), random((rows, SIZES[-1]), DTYPE, 2)


def test_a_step_of_a_network(unit):
    """All three products of a layer, against float64."""
    model, (x, y) = network(1), samples(BATCH)
    weights, biases = ([a.astype(float) for a in model.get_weights()[i::2]] for i in range(2))
    outputs = [x.astype(float)]
    for w, b in zip(weights, biases, strict=True):
        outputs.append(outputs[-1] @ w + b)
        if len(outputs) < len(SIZES):
            outputs[-1] = np.tanh(outputs[-1])
    gradient = 2 * (outputs[-1] - y) / y.size
    expected = []
    for i in reversed(range(len(weights))):
        expected[:0] = [weights[i] - 0.5 * outputs[i].T @ gradient, biases[i] - 0.5 * gradient.sum(axis=0)]
        gradient = gradient @ weights[i].T * (1 - outputs[i] ** 2)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    for new, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(new, wanted, rtol=1e-5, atol=1e-6)
    m, n = SIZES[1:3]
    assert {(BATCH, n, m), (BATCH, m, n), (m, n, BATCH)} <= set(unit)


@pytest.mark.parametrize(("activation", "dropout"), [("tanh", 0.0), ("tanh", 0.3), ("relu", 0.0)])
@pytest.mark.parametrize("value", [0.0, 3.4e38, np.nan])
def test_the_same_bits_with_any_threads(unit, value, activation, dropout):
    """Also where some elements are computed by vectors, since a part of a number is infinite."""
    x, y = samples()
    x[130, 5] = value
    fitted = []
    for threads in (1, 2, 3):
        model = network(threads, activation, dropout)
        model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)  # the last batch is too small for the unit
        fitted.append([*model.get_weights(), model.predict(x, batch_size=BATCH)])
    for others in fitted[1:]:
        for found, expected in zip(others, fitted[0], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert unit


@pytest.mark.parametrize("threads", [1, 2])
def test_zeros_beside_the_unit(unit, threads):
    """Inputs that are mostly 0 have their own kernels, and hidden layers none beside it, whose bits would be others."""
    x, y = samples()
    x[np.random.default_rng(0).random(x.shape) < 0.8] = 0
    layers = [Input(SIZES[:1]), *(Dense(n, "relu") for n in (512, 512, 64, 64)), Dense(SIZES[-1])]
    model = fastnn.Sequential(layers, n_threads=threads)
    model.compile("adam", "mse")
    given = training.checked(model, x, y)
    recipe = training.recipe(model, "train", given.x_feed, given.y_feed)
    program = recipe.lower(model.network, 512, 512)
    division.divide(program, DTYPE, threads)
    of_inputs = [op for op in program.ops if op.sparse]
    assert [op.kernel in zeros.KERNELS for op in of_inputs] == [True, True]
    assert not any(op.tiled for op in of_inputs)
    tiled = [op for op in program.ops if op.tiled]
    assert len(tiled) == 6
    assert all(op.kernel == KERNEL and op.ways == [op] for op in tiled)
    assert any(op.sparsely for op in program.ops), "of a small layer"


def test_where_it_is_not_used(monkeypatch):
    """Other dtypes, small products, operands without contiguous elements, and a system that does not allow it."""
    large = (512, 512, 512)
    monkeypatch.setattr(target, "may_use_tiles", lambda: True)
    assert blocking.pays_tiles(*large, DTYPE, 512, 1, 512, 1)
    assert blocking.pays_tiles(*large, DTYPE, 1, 512, 1, 512)
    assert not blocking.pays_tiles(*large, "float64", 512, 1, 512, 1)
    assert not blocking.pays_tiles(1 << 20, 16, 64, DTYPE, 64, 1, 16, 1)
    assert not blocking.pays_tiles(128, 128, 128, DTYPE, 128, 1, 128, 1)
    assert not blocking.pays_tiles(512, 512, 16, DTYPE, 16, 1, 512, 1)
    assert not blocking.pays_tiles(*large, DTYPE, 1024, 2, 512, 1)
    monkeypatch.setattr(target, "may_use_tiles", lambda: False)
    assert not blocking.pays_tiles(*large, DTYPE, 512, 1, 512, 1)


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("FASTNN_MATRIX_UNIT", "0")
    assert not target.may_use_tiles.__wrapped__()


@pytest.mark.skipif(not target.host().has_tiles, reason="the code is another")
def test_registers_are_released():
    """Or the system would save them with every switch of a thread that once used them."""
    code = loader.assembly(*jit.to_llvm(amx.amx, DTYPE), symbol="exported")
    assert code.count("ldtilecfg") == 1
    assert code.count("tilerelease") >= 1
