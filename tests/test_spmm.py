"""Products that leave zeros out: values, bits, memory, and when they are chosen."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from guard import ENDS, Guarded
from test_kernels import DTYPES, STATES, call, close, lanes, random, record
from test_plan import divided, fresh, races
from test_tensor_parallel import in_turns

import fastnn
from fastnn import data, training
from fastnn.cpu import blocking, division, loader, spmm, target, trial, zeros
from fastnn.cpu.immediate import KERNEL
from fastnn.cpu.memory import address, allocate
from fastnn.cpu.tensor_parallel import VECTOR
from fastnn.layers import Activation, Dense, Dropout, Input, Rescaling
from fastnn.plan import Lowering
from fastnn.program import Op
from fastnn.records import FORWARD, GEMM, RUN, UPDATE

RATE = 0.03


@pytest.fixture(autouse=True)
def no_matrix_unit(monkeypatch):
    """It takes the place of these kernels (`test_amx`), and its bits are others."""
    monkeypatch.setattr(target, "may_use_tiles", lambda: False)


def sparse(shape, dtype, density, seed=0):
    """Random elements, most of which are 0; some rows and columns are all 0, some 0s are negative."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(shape) < density, rng.standard_normal(shape), np.where(rng.random(shape) < 0.5, 0.0, -0.0))
    if min(shape) > 3:
        x[1], x[:, 2] = 0, 0
    return x.astype(dtype)


def padded(x, dtype):
    """Rows as a plan pads them: with 0 to whole vectors."""
    w = lanes(dtype)
    return np.pad(x, ((0, 0), (0, -x.shape[1] % w)))


# --- the kernel -----------------------------------------------------------------------------------------------------


def product(a, b, dtype, threads, end, *, transposed, packed=False, by_rows=False):
    """``a @ b`` or ``a.T @ b`` by the kernel, with operands against unreadable pages.

    `packed`: B's columns are contiguous, not its rows.
    """
    rows = padded(a, dtype)
    m, k = a.shape[::-1] if transposed else a.shape
    n = b.shape[1]
    strides = (1, rows.shape[1]) if transposed else (rows.shape[1], 1)
    of_b = (1, k) if packed else (n, 1)
    rows_of_c, sharing = (-(-m // threads), 1) if by_rows else (m, threads)
    cut = blocking.sparse(rows_of_c, n, k, dtype, strides[1], *of_b, sharing)
    stride = blocking.sparse_scratch(k, dtype, cut)
    c = Guarded(np.full((m, n), 7, dtype), end)
    held = [Guarded(rows, end), Guarded(b.T if packed else b, end), Guarded(np.zeros(threads * stride, dtype), end)]
    where = {"c": c.array, "c_row": n, "c_col": 1}
    epilogue = record(FORWARD, kernel=loader.address("activations.linear_forward", dtype), **where)
    fields = {**cut, "m": m, "n": n, "k": k, "a": held[0].array, "a_row": strides[0], "a_col": strides[1]}
    fields |= {"b": held[1].array, "b_row": of_b[0], "b_col": of_b[1]}
    claims = np.zeros(threads * blocking.LINE, np.int64)  # with some threads, which claim tasks then
    claimed = threads > 1 and not by_rows
    fields |= {"scratch": held[2].array, "scratch_stride": stride, "claims": claims if claimed else 0}
    call("spmm.spmm", dtype, GEMM, {**fields, "by_rows": by_rows, "epilogue": address(epilogue)}, threads=threads)
    assert claims.any() == claimed
    np.testing.assert_array_equal(held[0].array, rows)
    np.testing.assert_array_equal(held[1].array, b.T if packed else b)
    return c.array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_products(transposed, end, dtype):
    w = lanes(dtype)
    shapes = itertools.product((1, 8, 33, 300), (w, 3 * w, 8 * w, 15 * w, 40 * w), (1, 63, 64, 65, 200))
    for (rows, n, inputs), density in zip(shapes, itertools.cycle((0.0, 0.1, 0.5, 1.0))):
        for threads in (1, 2, 3):
            a = sparse((rows, inputs), dtype, density, seed=rows)
            b = random((rows if transposed else inputs, n), dtype, 2)
            found = product(a, b, dtype, threads, end, transposed=transposed)
            wide = a.astype(float).T if transposed else a.astype(float)
            np.testing.assert_allclose(found, wide @ b.astype(float), **close(dtype, 400))


def test_a_ragged_block_of_b_for_many_rows():
    """It is copied anew for each of their blocks, and for each word of k."""
    a, b = sparse((70, 600), "float32", 0.3), random((70, 3 * lanes("float32")), "float32", 2)
    found = product(a, b, "float32", 1, "end", transposed=True)
    np.testing.assert_allclose(found, a.T.astype(float) @ b.astype(float), **close("float32", 400))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_are_copied_for_many(transposed, dtype):
    """Of B where its rows lie on as many pages, of A where its rows are not contiguous."""
    n = blocking.PAGE // blocking.SIZES[dtype]
    for rows, k in ((150, 70), (64, 65), (301, 200)):
        a = sparse((k, rows) if transposed else (rows, k), dtype, 0.3, seed=k)
        cut = blocking.sparse(rows, n, k, dtype, k if transposed else 1, n, 1, 1)
        assert (cut["pack"], cut["copy"]) == (1, int(transposed))
        b = random((k, n), dtype, 2)
        wide = (a.T if transposed else a).astype(float) @ b.astype(float)
        for threads, end in itertools.product((1, 2), ENDS):
            found = product(a, b, dtype, threads, end, transposed=transposed)
            np.testing.assert_allclose(found, wide, **close(dtype, 400))


def test_what_is_copied_has_bounds():
    """Of large batches it is few rows at a time."""
    for k in (65, 128, 1024, 8192, 100_000):
        cut = blocking.sparse(2048, 2048, k, "float32", 2048, 2048, 1, 2)
        assert 64 <= cut["rows"] <= 256
        assert cut["rows"] * k * 4 <= max(blocking.COPY * 1.2, 72 * k * 4)
        assert 2048 <= -(-2048 // cut["rows"]) * cut["rows"] < 2048 + 2 * 256


@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_of_the_batch_belongs_to_half_of_the_threads(transposed):
    """Others have not seen that its operands are ready."""
    w = lanes("float32")
    a, b = sparse((40, 40), "float32", 0.3), random((40, 8 * w), "float32", 2)
    rows = padded(a, "float32")
    c = np.full((40, 8 * w), 7, "f4")
    epilogue = record(
        FORWARD, kernel=loader.address("activations.linear_forward", "float32"), c=c, c_row=8 * w, c_col=1
    )
    strides = (1, rows.shape[1]) if transposed else (rows.shape[1], 1)
    cut = blocking.sparse(40, 8 * w, 40, "float32", strides[1], 8 * w, 1, 4)
    stride = blocking.sparse_scratch(40, "float32", cut)
    fields = {**cut, "m": 40, "n": 8 * w, "k": 40, "a": rows, "a_row": strides[0], "a_col": strides[1], "part": 2}
    fields |= {"b": b, "b_row": 8 * w, "b_col": 1, "scratch": np.zeros(4 * stride, "f4"), "scratch_stride": stride}
    op, run = record(GEMM, **fields, epilogue=address(epilogue)), record(RUN, threads=4)
    kernel = KERNEL(loader.address("spmm.spmm", "float32"))
    for thread in (0, 1):
        kernel(address(op), address(run), 0, thread)
    assert (c == 7).all()
    for thread in (3, 2):
        kernel(address(op), address(run), 0, thread)
    wide = a.astype(float)
    np.testing.assert_allclose(c, (wide.T if transposed else wide) @ b, **close("float32", 400))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("by_rows", [False, True])
def test_products_with_columns_of_b(by_rows, end, dtype):
    """Of any number; blocks of B are copied for all rows of a thread."""
    w = lanes(dtype)
    shapes = itertools.product((2, 33, 300), (1, 3 * w - 1, 4 * w, 8 * w + 5, 20 * w), (1, 63, 64, 65, 200))
    for (rows, n, inputs), density in zip(shapes, itertools.cycle((0.1, 0.5, 1.0))):
        a, b = sparse((rows, inputs), dtype, density, seed=rows), random((inputs, n), dtype, 2)
        for threads in (1, 2, 3):
            found = product(a, b, dtype, threads, end, transposed=False, packed=True, by_rows=by_rows)
            np.testing.assert_allclose(found, a.astype(float) @ b.astype(float), **close(dtype, 400))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_behind_a_row_is_not_multiplied(dtype):
    w = lanes(dtype)
    a, b = sparse((20, 2 * w), dtype, 0.9), random((w + 1, 8 * w), dtype, 2)
    held = address(epilogue := record(FORWARD, kernel=loader.address("activations.linear_forward", dtype)))
    c = np.zeros((20, 8 * w), dtype)
    cut = blocking.sparse(20, 8 * w, w + 1, dtype, 1, 8 * w, 1, 1)
    scratch = np.zeros(blocking.sparse_scratch(w + 1, dtype, cut), dtype)
    epilogue["c"], epilogue["c_row"], epilogue["c_col"] = address(c), 8 * w, 1
    fields = {**cut, "m": 20, "n": 8 * w, "k": w + 1, "a": a, "a_row": 2 * w, "a_col": 1, "b": b, "b_row": 8 * w}
    call("spmm.spmm", dtype, GEMM, {**fields, "b_col": 1, "scratch": scratch, "epilogue": held})
    np.testing.assert_allclose(c, a[:, : w + 1].astype(float) @ b.astype(float), **close(dtype, 400))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_but_zero_is_left_out(dtype):
    """The smallest numbers, infinity and NaN of A count."""
    w = lanes(dtype)
    a = np.zeros((8, 70), dtype)
    tiny = np.finfo(dtype).tiny
    a[0, 69], a[1, 3], a[2, 5], a[3, 64], a[4, 0] = np.nan, np.inf, -np.inf, tiny, np.finfo(dtype).smallest_subnormal
    b = np.full((70, 4 * w), 0.5, dtype)
    found = product(a, b, dtype, 1, "end", transposed=False)
    expected = np.array([np.nan, np.inf, -np.inf, tiny / 2, 0.5 * a[4, 0], 0, 0, 0], dtype)
    np.testing.assert_array_equal(found, np.repeat(expected[:, None], 4 * w, axis=1))
    turned = product(a, np.full((8, 4 * w), 0.5, dtype), dtype, 1, "end", transposed=True)
    expected = np.zeros(70, dtype)
    expected[[69, 3, 5, 64, 0]] = np.nan, np.inf, -np.inf, tiny / 2, 0.5 * a[4, 0]
    np.testing.assert_array_equal(turned, np.repeat(expected[:, None], 4 * w, axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_biases_get_the_sums_of_rows(threads, end, dtype):
    """A weight gradient X' D, and 1' D to a bias, by gradient descent; what is updated is fetched or not."""
    w = lanes(dtype)
    for inputs, units, rows in itertools.product((64, 130), (w, 5 * w, 23 * w), (1, 5, 70)):
        x, d = sparse((rows, inputs), dtype, 0.2), random((rows, units), dtype, 2)
        before = random((inputs + 1, units), dtype, 3)
        found = updated("spmm.spmm", "sgd", x, d, [before], dtype, threads, end)[0]
        wide = d.astype(float)
        expected = before - RATE * np.vstack([x.astype(float).T @ wide, wide.sum(axis=0)])
        np.testing.assert_allclose(found, expected, **close(dtype, 400))


def updated(name, optimizer, x, d, before, dtype, threads, end, **more):
    """Weights, behind these biases, and then the states of an optimizer, updated by the gradients X' D and 1' D."""
    held = [Guarded(each, end).array for each in before]
    (rows, inputs), units = x.shape, d.shape[1]
    updates = []
    for first, rule in ((0, optimizer + "_row" * (name == "spmm.update")), (inputs, optimizer)):
        places = dict(zip(("p", "s0", "s1"), (each[first:] for each in held), strict=False))
        kernel = loader.address(f"optimizers.{rule}", dtype)
        constants = {"momentum": 0.9, "decay_1": 0.1, "decay_2": 0.001, "epsilon": 1e-7}
        updates.append(record(UPDATE, kernel=kernel, p_row=units, **constants, **places))
    a = Guarded(padded(x, dtype), end).array
    cut = blocking.sparse(inputs, units, rows, dtype, a.shape[1], units, 1, threads)
    stride = blocking.sparse_scratch(rows, dtype, cut)
    scratch = Guarded(np.zeros(threads * stride, dtype), end).array
    fields = {**cut, "m": inputs, "n": units, "k": rows, "a": a, "a_row": 1, "a_col": a.shape[1]}
    fields |= {"b": Guarded(d, end).array, "b_row": units, "b_col": 1, "scratch": scratch, "scratch_stride": stride}
    fields |= {"touched": threads > 1, "epilogue": address(updates[0]), "sums": address(updates[1])}
    call(name, dtype, GEMM, fields | more, threads=threads, rate=np.array([RATE, 0.75]))
    return held


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop_momentum"])
def test_weights_at_rest_are_left_alone(optimizer, dtype):
    """A run remembers which they are, until their input is not 0."""
    w = lanes(dtype)
    states, piece, units = STATES[optimizer], blocking.WIDE // 2 * w, 12 * w
    x, d = sparse((9, 40), dtype, 0.3), random((9, units), dtype, 2)
    unused = ~x.any(axis=0)
    assert 0 < unused.sum() < 20
    before = [random((41, units), dtype, 1), *[np.zeros((41, units), dtype) for _ in range(states)]]
    for state in before[1:]:
        state[20:, -1] = 1  # in the last piece only
    first = 5 * piece
    resting = np.zeros(blocking.resting(first + 41 * units, dtype), np.uint8)
    pieces = resting[5 : 5 + 120].reshape(40, 3)
    arguments = "spmm.update", optimizer

    expected = updated("spmm.spmm", optimizer, x, d, before, dtype, 1, "end")
    for threads in (1, 2):
        resting[:] = 0
        found = updated(*arguments, x, d, before, dtype, threads, "end", resting=resting, first=first)
        for have, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(have, want)
        np.testing.assert_array_equal(pieces[:, 0] == spmm.AT_REST, unused)  # a wide panel is one
        np.testing.assert_array_equal(pieces[:20, 2] == spmm.AT_REST, unused[:20])
        np.testing.assert_array_equal(pieces[20:, 2] == spmm.AT_REST, unused[20:] & (states == 0))
        assert not resting[:5].any()
        assert not resting[125:].any()

    # What is used once is not at rest from then on.
    used = np.ones_like(x)
    again = updated(*arguments, used, d, found, dtype, 1, "end", resting=resting, first=first)
    assert not (pieces == spmm.AT_REST).any()
    last = updated(*arguments, x, d, again, dtype, 1, "end", resting=resting, first=first)
    for have, want in zip(last, updated("spmm.spmm", optimizer, x, d, again, dtype, 1, "end"), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("optimizer", [*STATES, "adamw"])
def test_rows_that_are_updated_in_registers(optimizer, end, dtype):
    """The bits are those of updates by tiles; panels are wide, narrow, and both."""
    w = lanes(dtype)
    for inputs, units, rows in itertools.product((64, 130), (4 * w, 8 * w, 20 * w), (1, 5, 64)):
        x, d = sparse((rows, inputs), dtype, 0.2), random((rows, units), dtype, 2)
        before = [abs(random((inputs + 1, units), dtype, seed)) for seed in range(1 + STATES.get(optimizer, 2))]
        expected = updated("spmm.spmm", optimizer, x, d, before, dtype, 1, end)
        assert (expected[0] != before[0]).any()
        for threads in (1, 2, 3):
            found = updated("spmm.update", optimizer, x, d, before, dtype, threads, end)
            for have, want in zip(found, expected, strict=True):
                np.testing.assert_array_equal(have, want)


def lent(name, optimizer, x, d, before, dtype, end, turns):
    """As `updated`, by two owners of inputs, who come in these turns, a step after the other.

    Who comes first finds that the other has done nothing yet, and does everything.
    """
    held = [Guarded(each, end).array for each in before]
    (rows, inputs), units = x.shape, d.shape[1]
    at = inputs // 2 // VECTOR * VECTOR  # as `tensor_parallel` divides them
    constants = {"momentum": 0.9, "decay_1": 0.1, "decay_2": 0.001, "epsilon": 1e-7, "p_row": units}
    a = Guarded(padded(x, dtype), end).array
    claims = allocate(2 * blocking.LINE, "int64")
    records, kept = [], []
    for owner, (low, high) in enumerate(((0, at), (at, inputs))):
        cut = blocking.sparse(high - low, units, rows, dtype, a.shape[1], units, 1, 1, lent=True)
        fields = {**cut, "m": high - low, "n": units, "k": rows, "a": a[:, low:], "a_row": 1, "a_col": a.shape[1]}
        fields |= {"b": Guarded(d, end).array, "b_row": units, "b_col": 1, "touched": 1}
        fields |= {"claims": claims[owner * blocking.LINE :]}
        for field, first, rule in (("epilogue", low, "_row" * (name == "spmm.update")), ("sums", inputs, "")):
            places = dict(zip(("p", "s0", "s1"), (each[first:] for each in held), strict=False))
            kept.append(
                record(UPDATE, kernel=loader.address(f"optimizers.{optimizer}{rule}", dtype), **places, **constants)
            )
            fields[field] = address(kept[-1]) if field == "epilogue" or owner == 0 else 0
        records.append((fields, blocking.sparse_scratch(rows, dtype, cut)))
    for owner in itertools.chain(*turns):
        for fields, size in (records[owner], records[1 - owner]):
            scratch = Guarded(np.zeros(size, dtype), end).array
            call(name, dtype, GEMM, {**fields, "scratch": scratch}, rate=np.array([RATE, 0.75]))
    return held, claims


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("rows", [5, 64, 130])
def test_an_owner_who_is_done_does_what_the_other_has_left(rows, end, dtype):
    """All updates are done once in each step, whoever comes first."""
    w = lanes(dtype)
    for inputs, units in itertools.product((32, 144, 784), (4 * w, 8 * w, 20 * w)):
        x, d = sparse((rows, inputs), dtype, 0.2), random((rows, units), dtype, 2)
        before = [abs(random((inputs + 1, units), dtype, seed)) for seed in range(3)]
        name = "spmm.update" if rows <= blocking.WORD else "spmm.spmm"
        turns = [(0, 1), (1, 0), (1, 0), (0, 1)]
        found, claims = lent(name, "adam", x, d, before, dtype, end, turns)
        assert (claims[:: blocking.LINE] > 0).all()
        expected = before
        for _ in turns:
            expected = updated(name, "adam", x, d, expected, dtype, 1, end)
        for have, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_turned(threads, end, dtype):
    """X' D by the rows of C = D' X, which leaves out zeros of D; the sums are those of D."""
    w = lanes(dtype)
    for inputs, units, rows in itertools.product((4 * w, 8 * w + 3, 150), (w, 5 * w, 23 * w), (1, 5, 64, 70)):
        x, d = random((rows, inputs), dtype, 2), sparse((rows, units), dtype, 0.4)
        weights, bias = random((inputs, units), dtype, 3), random(units, dtype, 4)
        new_weights, new_bias = Guarded(weights, end).array, Guarded(bias, end).array
        kernel = loader.address("optimizers.sgd", dtype)
        updates = [record(UPDATE, kernel=kernel, p=p, p_row=units) for p in (new_weights, new_bias)]
        cut = blocking.sparse(units, inputs, rows, dtype, units, inputs, 1, threads, turned=True)
        stride = blocking.sparse_scratch(rows, dtype, cut)
        scratch = Guarded(np.zeros(threads * stride, dtype), end).array
        fields = {**cut, "m": units, "n": inputs, "k": rows, "a": Guarded(d, end).array, "a_row": 1, "a_col": units}
        fields |= {"b": Guarded(x, end).array, "b_row": inputs, "b_col": 1, "scratch": scratch}
        fields |= {"scratch_stride": stride, "epilogue": address(updates[0]), "sums": address(updates[1])}
        call("spmm.spmm", dtype, GEMM, fields, threads=threads, rate=np.array([RATE]))
        wide = d.astype(float)
        np.testing.assert_allclose(new_weights, weights - RATE * x.astype(float).T @ wide, **close(dtype, 400))
        np.testing.assert_allclose(new_bias, bias - RATE * wide.sum(axis=0), **close(dtype, 400))


# --- found out in each step -----------------------------------------------------------------------------------------


def way_taken(a, most, dtype="float32", *, transposed=False, by_rows=False, threads=1):
    """For each row of C = A B (or A' B) whether zeros were left out."""
    m, k = a.shape[::-1] if transposed else a.shape
    n = 8 * lanes(dtype)
    strides = (1, a.shape[1]) if transposed else (a.shape[1], 1)
    b = np.ones((k, n), dtype)
    left_out, all_of_them = np.zeros((m, n), dtype), np.zeros((m, n), dtype)
    linear = loader.address("activations.linear_forward", dtype)
    ends = [record(FORWARD, kernel=linear, c=c, c_row=n, c_col=1) for c in (left_out, all_of_them)]
    rows, sharing = (-(-m // threads), 1) if by_rows else (m, threads)
    cut = blocking.sparse(rows, n, k, dtype, strides[1], n, 1, sharing)
    stride = max(blocking.sparse_scratch(k, dtype, cut), 64 * k)
    fields = {"m": m, "n": n, "k": k, "a": a, "a_row": strides[0], "a_col": strides[1], "b": b, "b_row": n, "b_col": 1}
    fields |= {"scratch": np.zeros(threads * stride, dtype), "scratch_stride": stride, "by_rows": by_rows}
    whole = blocking.whole(m, n, k, dtype, threads)
    other = record(GEMM, kernel=loader.address("small.fused", dtype), **fields, **whole, epilogue=address(ends[1]))
    given = {**fields, **cut, "epilogue": address(ends[0]), "otherwise": address(other), "most": most}
    call("spmm.spmm", dtype, GEMM, given, threads=threads)
    expected = (a.T if transposed else a).astype(float) @ b
    np.testing.assert_allclose(left_out + all_of_them, expected, rtol=1e-5)  # one of them has each row
    return left_out.any(axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_density_decides_in_each_step(threads, transposed, dtype):
    w = lanes(dtype)
    for shape in ((1, 4 * w), (8, 4 * w), (50, 4 * w), (500, 16 * w)):
        a = np.zeros(shape, dtype)
        a[:, ::2] = 1  # 32 of 64
        for most, expected in ((31, False), (32, True), (64, True)):
            taken = way_taken(a, most, dtype, transposed=transposed, threads=threads)
            assert taken[::2].all() == expected, shape
            assert taken.any() == expected


def test_rows_from_all_over_are_looked_at():
    a = np.ones((80, 64), "f4")
    assert not way_taken(a, 40).any()
    a[40:, 1:] = 0
    assert way_taken(a, 40).all()  # 33 of 64
    a[:40, 1:], a[40:] = 0, 1
    assert way_taken(a, 40).all()
    assert not way_taken(a, 30).any()


def test_each_thread_decides_for_its_rows():
    a = np.ones((64, 64), "f4")
    a[32:, 1:] = 0
    assert way_taken(a, 20, by_rows=True, threads=2).tolist() == [False] * 32 + [True] * 32


# --- networks -------------------------------------------------------------------------------------------------------


def build(inputs=100, units=80, dtype="float32", optimizer="adam", threads=1, first=()):
    layers = [Input((inputs,)), *first, Dense(units, "relu"), Dense(5, "softmax")]
    model = fastnn.Sequential(layers, dtype=dtype, seed=4, n_threads=threads)
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    return model


def kernels(model, x, batch=32):
    """The kernels of a training step."""
    samples = training.checked(model, x, np.zeros(len(x), int))
    recipe = training.recipe(model, "train", samples.x_feed)
    program = recipe.lower(model.network, batch, batch)
    division.divide(program, model.dtype, 1)
    return [op.kernel for op in program.ops]


def sparse_products(model, x, batch=32):
    """The products of a training step that leave out zeros of the inputs."""
    return [name for name in kernels(model, x, batch) if name in zeros.KERNELS]


def trained(x, y, threads, batch, **arguments):
    model = build(x.shape[1], threads=threads, **arguments)
    history = model.fit(x, y, batch_size=batch, epochs=2, verbose=0)
    scores = model.evaluate(x, y, batch_size=50, verbose=0)
    return [*model.get_weights(), model.predict(x), np.array([history.history["loss"], scores], dtype=object)]


# Inputs, units, batch, and how many products leave out zeros: forward and for the gradients; forward in two parts where
# threads own inputs (`fastnn.cpu.tensor_parallel`); not for gradients where those of dense inputs are summed in parts.
SHAPES = [
    (64, 80, 16, 2),
    (200, 192, 50, 2),
    (300, 128, 64, 2),
    (784, 256, 128, 3),
    (77, 200, 100, 2),
    (70, 64, 400, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize(("inputs", "units", "batch", "products"), SHAPES)
@pytest.mark.parametrize("rest", [3, 9])
def test_bits_are_those_of_products_with_zeros(rest, inputs, units, batch, products, optimizer, dtype, monkeypatch):
    """And those of any number of threads; the last batch is shorter."""
    x = sparse((2 * batch + rest, inputs), dtype, 0.2)
    y = np.random.default_rng(1).integers(0, 5, len(x))
    shape = {"units": units, "optimizer": optimizer, "dtype": dtype}
    assert len(sparse_products(build(inputs, **shape), x, batch)) == products
    found = [trained(x, y, threads, batch, **shape) for threads in (1, 2, 3, 8)]
    monkeypatch.setattr(training, "MAX_DENSITY", -1.0)
    assert not sparse_products(build(inputs, **shape), x, batch)
    expected = trained(x, y, 1, batch, **shape)
    for each in found:
        for have, want in zip(each, expected, strict=True):
            np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("threads", [1, 2])
def test_images_of_bytes(threads, monkeypatch):
    """Rescaled on the way; a batch of nothing but 0, a strided array, and one row."""
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 256, (96, 150)) * (rng.random((96, 150)) < 0.1)).astype(np.uint8)[:, ::2]
    x[32:64] = 0
    y = rng.integers(0, 5, 96)
    assert sparse_products(build(75, units=96, first=[Rescaling(1 / 255)]), x)

    def run():
        model = build(75, units=96, threads=threads, first=[Rescaling(1 / 255)])
        model.fit(x, y, batch_size=32, shuffle=False, epochs=2, verbose=0)
        return [*model.get_weights(), model.predict(x), model.predict(x[:1]), model.predict_on_batch(x[40:41])]

    found = run()
    monkeypatch.setattr(training, "MAX_DENSITY", -1.0)
    for have, expected in zip(found, run(), strict=True):
        np.testing.assert_array_equal(have, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", fastnn.optimizers.RMSprop(momentum=0.9)], ids=str)
@pytest.mark.parametrize("single", [False, True])
def test_weights_at_rest_move_when_their_state_is_set(single, optimizer, threads, monkeypatch):
    """The next run, or step, does not go by what the last one found; AdamW's weights decay, and never rest."""
    x = sparse((96, 100), "float32", 0.2)
    y = np.random.default_rng(1).integers(0, 5, 96)

    def run():
        model = build(100, 128, optimizer=copy.copy(optimizer), threads=threads)
        for state in (0.0, 0.5):
            for each in model.network.state:
                each[:] += state
            if single:
                for first in range(0, 96, 32):
                    model.train_on_batch(x[first : first + 32], y[first : first + 32])
            else:
                model.fit(x, y, batch_size=32, epochs=2, verbose=0)
        return model.get_weights()

    assert sparse_products(build(100, 128), x)[-1] == "spmm.update"
    found = run()
    monkeypatch.setattr(training, "MAX_DENSITY", -1.0)
    for have, expected in zip(found, run(), strict=True):
        np.testing.assert_array_equal(have, expected)


def with_rests(batches, rows, inputs, dtype):
    """Samples in whose batches some inputs are 0 for a while."""
    rng = np.random.default_rng(0)
    on = (rng.random((batches, 1, inputs)) < 0.3) * (rng.random((batches, rows, inputs)) < 0.7)
    return (on * rng.standard_normal(on.shape)).reshape(batches * rows, inputs).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vectors", [4, 8, 12, 24])
@pytest.mark.parametrize("hidden", [(), (64,)])  # threads share tiles or own inputs, or else units of the first layer
def test_weights_at_rest_in_turns(hidden, vectors, dtype, monkeypatch):
    """One thread may cut weights into other panels than each of two owners does."""
    # Enough inputs that zeros are looked for in a layer four short vectors wide.
    x = with_rests(12, 64, 600, dtype)
    y = np.random.default_rng(1).integers(0, 5, len(x))

    def trained_by(threads):
        layers = [Dense(units, "relu") for units in (vectors * lanes(dtype), *hidden)]
        model = fastnn.Sequential([Input((600,)), *layers, Dense(5)], dtype=dtype, seed=4, n_threads=threads)
        model.compile("adam", fastnn.losses.SparseCategoricalCrossentropy(from_logits=True))
        assert "spmm.update" in kernels(model, x, 64)
        model.fit(x, y, batch_size=64, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    expected = trained_by(1)
    ways = in_turns(monkeypatch)
    for have, want in zip(trained_by(2), expected, strict=True):
        np.testing.assert_array_equal(have, want)
    assert min(ways.count(trial.TEAM), ways.count(trial.ONE)) > 3


def test_weights_at_rest_in_a_short_batch():
    """Threads own units in full steps, but not in the last one."""
    w = lanes("float32")
    x = sparse((3 * 64 + 8, 100), "float32", 0.2)
    x[:, ::5] = 0
    y = np.random.default_rng(1).integers(0, 5, len(x))
    found = []
    for threads in (1, 2):
        layers = [Dense(8 * w, "relu"), Dense(64, "relu"), Dense(5, "softmax")]
        model = fastnn.Sequential([Input((100,)), *layers], seed=4, n_threads=threads)
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x[:64], y[:64], batch_size=64, verbose=0)
        for state in model.network.state:  # as if half of the units had always been off
            dict(model.network.views(state))["dense/kernel"][:, 4 * w :] = 0.01
        model.fit(x, y, batch_size=64, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for have, want in zip(*found, strict=True):
        np.testing.assert_array_equal(have, want)


def test_batches_one_by_one(monkeypatch):
    """Sparse and dense batches in turn: what was worked out for one is not wrong for the other."""
    rng = np.random.default_rng(0)
    dense, y = rng.standard_normal((32, 100)).astype("f4"), rng.integers(0, 5, 32)
    batches = [sparse((32, 100), "float32", 0.1), dense, sparse((32, 100), "float32", 0.1, seed=1), dense]
    assert [bool(sparse_products(build(), x)) for x in batches] == [True, False, True, False]

    def run():
        model = build()
        model.fit(((x, y) for x in batches), verbose=0)
        for x in batches:
            model.train_on_batch(x, y)
        return [*model.get_weights(), *(model.predict(x) for x in batches)]

    found = run()
    monkeypatch.setattr(training, "MAX_DENSITY", -1.0)
    for have, expected in zip(found, run(), strict=True):
        np.testing.assert_array_equal(have, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_arrays_in_any_order(threads, monkeypatch):
    """Fortran's, reversed, and one row for all."""
    x = sparse((48, 100), "float32", 0.2)
    orders = [np.asfortranarray(x), x[::-1, ::-1], np.broadcast_to(x[5], x.shape)]
    y = np.random.default_rng(1).integers(0, 5, 48)
    for each in orders:
        assert sparse_products(build(), each)
    found = [trained(each, y, threads, 16) for each in orders]
    monkeypatch.setattr(training, "MAX_DENSITY", -1.0)
    for each, have in zip(orders, found, strict=True):
        for a, b in zip(have, trained(each, y, threads, 16), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_weight_that_is_infinite_shows_where_its_input_is_not_zero():
    x = sparse((32, 100), "float32", 0.1)
    x[:, 7] = 0
    x[3, 7] = 1
    model = build()
    model.predict(x)
    weights = model.get_weights()
    weights[0][7] = np.inf
    model.set_weights(weights)
    assert np.isnan(model.predict(x)).any(axis=1).nonzero()[0].tolist() == [3]


# --- networks with holes: what relu and dropout leave -----------------------------------------------------------------

# Layers behind the inputs, their number, and the rows of a batch.
HOLED = {
    "two": ([Dense(64, "relu"), Dense(80, "relu"), Dense(3)], 20, 32),
    "in registers": ([Dense(70, "relu"), Dense(192, "relu"), Dense(64)], 20, 64),
    "parts": ([Dense(64, "relu"), Dense(64, "relu"), Dense(1)], 20, 256),
    "owned": ([Dense(256, "relu"), Dense(128, "relu"), Dense(1)], 100, 64),
    "claimed": ([Dense(300, "relu"), Dense(300, "relu"), Dense(2)], 20, 64),
    "ragged": ([Dense(75, "relu"), Dense(131, "relu"), Dense(70)], 107, 77),
    "dropout": ([Dense(90, "tanh"), Dropout(0.5), Dense(70, "relu"), Dropout(0.3), Dense(65)], 70, 40),
    "apart": ([Dense(80), Activation("relu"), Dense(72, use_bias=False), Activation("relu"), Dense(66)], 70, 48),
    "last": ([Dense(70), Dense(80, "relu")], 70, 48),
    "other activations": ([Dense(80, "leaky_relu"), Dense(72, "sigmoid"), Dense(66)], 70, 48),
}


def holed(name, threads, dtype, optimizer="adam", epochs=2):
    layers, inputs, rows = HOLED[name]
    model = fastnn.Sequential([Input((inputs,)), *fresh(layers)], dtype=dtype, seed=4, n_threads=threads)
    model.compile(optimizer, "mse", ["mae"])
    x = random((2 * rows + 9, inputs), dtype, 1)
    y = random((len(x), model.output_shape[0]), dtype, 2)
    history = model.fit(x, y, batch_size=rows, epochs=epochs, verbose=0)
    scores = model.evaluate(x, y, batch_size=50, verbose=0)
    return [*model.get_weights(), model.predict(x), np.array([history.history["loss"], scores], dtype=object)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_where_a_panel_is_not_full(dtype):
    """Columns that are not there take as long as others."""
    half = 4 * lanes(dtype)
    for columns, expected in ((half, 40), (2 * half, 40), (half + half // 2, 30), (2 * half + half // 2, 33)):
        op = Op("spmm.spmm", GEMM, {"n": columns})
        assert zeros._most(40, op, dtype) == expected
        assert (blocking.in_panels(columns, dtype) == columns) == (expected == 40)


def leave_out(monkeypatch, most):
    for name in ("MOST", "PACKED", "TURNED"):
        monkeypatch.setattr(zeros, name, most)
    monkeypatch.setattr(zeros, "NARROW", 0)
    monkeypatch.setattr(zeros, "_most", lambda most, op, dtype: most)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", HOLED)
def test_bits_do_not_depend_on_what_is_left_out(name, optimizer, dtype, monkeypatch):
    """Nothing, what there is as it comes, in each product that may, and of gradients those of A or of D."""
    found = [holed(name, threads, dtype, optimizer) for threads in (1, 2, 3, 8)]
    leave_out(monkeypatch, -1)
    expected = holed(name, 1, dtype, optimizer)
    for most in (64, -1):  # gradients leave out zeros of A, or those of D
        leave_out(monkeypatch, 64)
        monkeypatch.setattr(zeros, "MOST", most)
        found += [holed(name, threads, dtype, optimizer) for threads in (1, 2, 3, 8)]
    for each in found:
        for have, want in zip(each, expected, strict=True):
            np.testing.assert_array_equal(have, want)


def ways(name, dtype="float32", threads=1):
    """The products of a step that may leave out zeros, and how."""
    layers, inputs, rows = HOLED[name]
    model = fastnn.Sequential([Input((inputs,)), *fresh(layers)], dtype=dtype)
    model.compile("adam", "mse")
    x = random((rows, inputs), dtype)
    samples = training.checked(model, x, random((rows, model.output_shape[0]), dtype))
    recipe = training.recipe(model, "train", samples.x_feed, samples.y_feed)
    program = recipe.lower(model.network, rows, rows)
    division.divide(program, dtype, threads)
    return [op for each in program.apart or [program] for op in each.ops if op.sparsely and not op.helps]


def named(ops):
    return {
        f"{op.layer} {op.label}": ["turned" if way.fields.get("turned") else "" for way in op.sparsely] for op in ops
    }


def test_which_products_may_leave_out_zeros():
    assert named(ways("two")) == {
        "dense_1 forward": [""],
        "dense_1 input gradient": [""],
        "dense_1 gradients + adam": ["", "turned"],  # n = 3 is too little of the last layer's
    }
    assert named(ways("other activations")) == {}
    assert named(ways("apart")) == {
        "dense_1 forward": [""],
        "dense_1 input gradient": [""],
        "dense_2 forward": [""],
        "dense_1 weight gradient + adam": ["", "turned"],
        "dense gradients + adam": ["turned"],
        "dense_2 gradients + adam": [""],
    }
    assert named(ways("last")) == {"dense_1 input gradient": [""], "dense_1 gradients + adam": ["turned"]}
    assert [len(ways("owned", threads=n)) for n in (1, 2, 3)] == [5, 8, 5]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", HOLED)
def test_both_ways_have_the_same_rows(name, threads):
    """So barriers do not depend on which one is taken."""
    for op in ways(name, threads=threads):
        own = division.cut(op, "float32", threads)["by_rows"]
        assert own == (op.by_rows and op.batch == "m")
        for way in op.sparsely:
            assert division.cut(way, "float32", threads)["by_rows"] == own
            assert (way.barrier, way.sums) == (op.barrier, op.sums)
            assert way.epilogue.fields == op.epilogue.fields


@pytest.mark.parametrize("most", [-1, 40])
def test_an_infinite_weight_of_a_hidden_layer_shows_where_its_unit_is_not_zero(most, monkeypatch):
    """Or everywhere, where zeros are multiplied."""
    leave_out(monkeypatch, most)
    model = fastnn.Sequential([Input((20,)), Dense(64, "relu"), Dense(64), Dense(3)], seed=1, n_threads=1)
    x = random((50, 20), "f4")
    model.predict(x)
    weights = model.get_weights()
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    unit = int(np.argmin(abs((hidden != 0).mean(axis=0) - 0.5)))
    weights[2][unit] = np.inf
    model.set_weights(weights)
    finite = np.isfinite(model.predict(x)).all(axis=1)
    np.testing.assert_array_equal(finite, (hidden[:, unit] == 0) & (most > 0))


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "used"), [(0.1, True), (0.35, True), (0.5, False), (1.0, False)])
def test_density_decides(density, used):
    x = sparse((400, 100), "float32", density)
    assert bool(sparse_products(build(), x)) == used


@pytest.mark.parametrize(
    ("arguments", "inputs", "batch"),
    [
        ({"first": [Rescaling(2.0, 1.0)]}, 100, 32),  # 0 becomes 1
        ({"first": [Dropout(0.5)]}, 100, 32),  # what the product reads is another array
        ({"units": 5}, 100, 32),  # C is too narrow
        ({}, 20, 32),  # few weights
        ({}, 100, 4),  # few rows
    ],
)
def test_where_it_does_not_pay(arguments, inputs, batch):
    x = sparse((64, inputs), "float32", 0.1)
    assert not sparse_products(build(inputs, **arguments), x, batch)


def test_only_the_first_layer_reads_inputs():
    model = fastnn.Sequential([Input((100,)), Dense(80, "relu"), Dense(80, "relu"), Dense(5, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    assert len(sparse_products(model, sparse((64, 100), "float32", 0.1))) == 2  # forward and its gradient


@pytest.mark.parametrize("mode", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("rows", [8, 33])
def test_threads_wait_where_they_must(rows, mode):
    model = build()
    x, y = sparse((rows, 100), "float32", 0.1), np.zeros(rows, int)
    samples = training.checked(model, x, y)
    network = model.network
    plan = Lowering(network.stages, samples.x_feed, rows, rows, network.backend.pad("float32"))
    objective = training._objective(model, network)
    if mode == "train":
        program = plan.train(objective, None, False, model._compiled()[1].update())
    else:
        program = plan.predict() if mode == "predict" else plan.evaluate(objective, None, False)
    divided(program)
    assert "spmm.spmm" in [op.kernel for op in program.ops]
    assert races(program.ops, "float32") == []


def test_density():
    x = np.zeros((1000, 10))
    x[:, :3] = 1
    assert data.density(x) == 0.3
    assert data.density(x[:1]) == 0.3
    assert data.density(np.zeros((3, 2), np.uint8)) == 0
    assert data.density(np.full((5, 2), np.nan)) == 1
    x[::2] = 0
    for n in (17, 64, 1000):  # not only rows of one kind are looked at
        assert 0.1 < data.density(x[:n]) < 0.2
    seen = []

    class Counted(np.ndarray):
        def __getitem__(self, at):
            found = super().__getitem__(at)
            seen.append(found.size)
            return found

    data.density(np.ones((500, 30)).view(Counted))
    data.density(np.ones((31, 10)).view(Counted))
    data.density(np.ones((40, 100_000)).view(Counted))
    assert seen == [16 * 30, 11 * 10, 100_000]


def test_samples_of_nothing_but_zeros_tell_nothing():
    """Such as a model is warmed up with: predict remembers how it did them."""
    assert not sparse_products(build(), np.zeros((64, 100), "f4"))


@pytest.mark.parametrize(("units", "rows", "used"), [(256, 16, True), (256, 1, False), (12, 120, False)])
def test_flops_are_those_of_what_is_computed(units, rows, used):
    """They say how many threads are worth it; a product counts for less only if it leaves zeros out."""
    x = sparse((64, 784), "float32", 0.2)
    model = build(784, units=units, threads=2)
    samples = training.checked(model, x, np.zeros(64, int))
    recipe = training.recipe(model, "predict", samples.x_feed)
    program = recipe.lower(model.network, rows, rows)
    first = 2 * rows * 784 * blocking.pad(units, "float32")
    assert program.flops - division.flops(program, "float32") == pytest.approx(first * 2 / 3 if used else 0, rel=0.1)
    division.divide(program, "float32", 2)
    assert ("spmm.spmm" in [op.kernel for op in program.ops]) == used


@pytest.mark.parametrize(("rows", "inputs", "threads"), [(16, 784, 1), (64, 784, 2), (4, 3000, 2)])
def test_threads_are_worth_what_is_computed(rows, inputs, threads):
    """A third of 16 x 784 x 64 is too little; nothing is left out of 4 x 3000 x 64, which is as much as that."""
    x = sparse((rows, inputs), "float32", 0.2)
    model = build(inputs, units=64, threads=2)
    samples = training.checked(model, x, np.zeros(rows, int))
    program = training.executable(model, "predict", rows, rows, samples.x_feed)
    assert program.threads == threads


def test_profile_counts_what_is_multiplied():
    x = np.zeros((64, 100), "f4")
    x[:, ::10] = 1
    model = build(units=90)
    rows = {(row.layer, row.operation): row for row in model.profile(x, np.zeros(64, int), batch_size=64).rows}
    assert rows["dense", "forward"].flops == 2 * 64 * 100 * 96 // 10  # padded
    assert rows["dense_1", "forward"].flops == 2 * 64 * 90 * blocking.pad(5, "float32")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("first", "second"), [(40, 20), (80, 80), (20, 72), (70, 22)])
def test_profile_counts_what_is_multiplied_in_hidden_layers(first, second, threads):
    """Units that are always on, of 80 in two layers."""
    model = fastnn.Sequential([Input((20,)), Dense(80, "relu"), Dense(80, "relu"), Dense(2)], n_threads=threads)
    model.compile("adam", "mse")
    x = random((256, 20), "f4")
    weights = model.get_weights()
    for bias, on, high in ((weights[1], first, 1e3), (weights[3], second, 1e6)):
        bias[:] = np.where(np.arange(80) < on, high, -1e9)
    model.set_weights(weights)
    rows = model.profile(x, np.zeros((256, 2)), batch_size=256).rows
    every, panels = 2 * 256 * 80 * 80, blocking.in_panels(80, "float32")

    def counted(on, most):
        """Units that are multiplied of `on` that are not 0, or None if these are too many."""
        return on if on * blocking.WORD <= most * 80 // panels * 80 else None

    # Of a weight gradient the zeros of X are left out, or else those of D.
    units = {"forward": counted(first, zeros.MOST) or 80, "input gradient": counted(second, zeros.PACKED) or 80}
    units["gradients"] = counted(first, zeros.MOST) or counted(second, zeros.TURNED) or 80
    found = {what: sum(row.flops for row in rows if row.name.startswith(f"dense_1 {what}")) for what in units}
    assert found == {what: every * on // 80 for what, on in units.items()}
