"""The kernels over rows and vectors, called by address: values, shares of the work, and memory they must leave alone.

Operands that may be a user's lie against unreadable pages (`guard`).  Rows of a plan's own buffers are padded, to `ld`
elements, with what must not be touched.  The activations' kernels are tested in test_vmath.py, the product's in
test_gemm.py.
"""

import ctypes
import itertools

import numpy as np
import pytest
import reference as ref
from guard import ENDS, Guarded, guarded

from fastnn import records
from fastnn.cpu import blocking, loader, target
from fastnn.cpu.memory import address
from fastnn.records import (
    BACKWARD,
    DROPOUT,
    GATHER,
    GEMM,
    LABELS,
    LOSS,
    METRIC,
    RUN,
    SCATTER,
    TOTAL,
    UPDATE,
)

DTYPES = ("float32", "float64")
ALL_THREADS = (1, 3)
POINTERS, INTEGER = [ctypes.c_void_p] * 2, ctypes.c_ssize_t
KERNEL = ctypes.CFUNCTYPE(None, *POINTERS, INTEGER, INTEGER)
EPILOGUE = ctypes.CFUNCTYPE(None, *POINTERS, INTEGER, ctypes.c_void_p, *[INTEGER] * 5)


def record(kind, **fields):
    values = np.zeros(1, kind.dtype)
    for name, value in fields.items():
        values[name] = address(value) if isinstance(value, np.ndarray) else value
    return values


def call(name, dtype, kind, fields, *, threads=1, step=0, **run):
    """All threads' shares of a kernel, the last thread's first."""
    op, shared = record(kind, **fields), record(RUN, threads=threads, **run)
    function = KERNEL(loader.address(name, dtype))
    for thread in reversed(range(threads)):
        function(address(op), address(shared), step, thread)


def lanes(dtype):
    return target.host().lanes(dtype)


def lengths(dtype):
    w = lanes(dtype)
    return (1, 2, w - 1, w, w + 1, 2 * w, 2 * w + 3)


def random(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(dtype, factor=8):
    eps = np.finfo(dtype).eps
    return {"rtol": factor * eps, "atol": factor * eps}


# --- rows in and out ------------------------------------------------------------------------------------------------

SOURCES = {  # element strides of (rows, cols)
    "plain": lambda rows, cols: (cols, 1),
    "columns": lambda rows, cols: (1, rows),
    "gaps": lambda rows, cols: (2 * cols + 1, 2),
    "backwards": lambda rows, cols: (-cols, -1),
    "rows apart": lambda rows, cols: (cols + 5, 1),
}


def numbers(shape, dtype, seed=0):
    if dtype == "uint8":
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return random(shape, dtype, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("layout", SOURCES)
def test_gather(layout, source, dtype):
    scale, shift = 1 / 255, -0.125
    stored_scale, stored_shift = np.dtype(dtype).type(scale), np.dtype(dtype).type(shift)
    for cols, end, threads, step in itertools.product((*lengths(dtype), 64), ENDS, ALL_THREADS, (0, 2)):
        many, rows, step_rows = 19, 5, 7
        x = numbers((many, cols), source)
        held = Guarded(x, end, SOURCES[layout](many, cols))
        index = np.random.default_rng(1).integers(0, many, step * step_rows + rows)
        index[:2] = 0, many - 1
        padded = cols if cols == 1 else -(-cols // lanes(dtype)) * lanes(dtype)
        ld = padded + 3
        out = Guarded(np.full((rows, ld), 7.0, dtype), end)
        for given in (guarded(index, end), None):
            fields = {"x": held.array, "index": 0 if given is None else given, "out": out.array, "rows": rows}
            fields |= {"cols": cols, "ld": ld, "step_rows": step_rows, "scale": scale, "offset": shift}
            fields["x_row"], fields["x_col"] = SOURCES[layout](many, cols)
            call(f"rows.gather_{source}", dtype, GATHER, fields, threads=threads, step=step)
            first = step * step_rows
            chosen = x[first : first + rows] if given is None else x[index[first : first + rows]]
            expected = chosen.astype(dtype).astype(float) * stored_scale + stored_shift
            np.testing.assert_allclose(out.array[:, :cols], expected, **close(dtype, 2))
            assert (out.array[:, padded:] == 7).all()
            assert np.isin(out.array[:, cols:padded], (0, 7)).all()
            out.assert_gaps_untouched()


@pytest.mark.parametrize("samples", [12, 9], ids=["full", "short last step"])
def test_gather_looks_no_further_than_the_run(samples):
    """Orders are read a step ahead, but no further than they reach."""
    x, rows, cols = random((20, 5), "float32"), 4, 5
    index = guarded(np.random.default_rng(2).permutation(samples))
    ld = -(-cols // lanes("float32")) * lanes("float32")
    out = guarded(np.empty((rows, ld), "float32"))
    fields = {"x": x, "index": index, "out": out, "cols": cols, "ld": ld, "x_row": 5, "x_col": 1, "step_rows": rows}
    for step in range(3):
        batch = index[step * rows : (step + 1) * rows]
        run = {"stop": 3, "short_step": 2 if samples % rows else -1}
        call("rows.gather_float32", "float32", GATHER, {**fields, "rows": len(batch), "scale": 1}, step=step, **run)
        np.testing.assert_array_equal(out[: len(batch), :cols], x[batch])


@pytest.mark.parametrize("source", ["float32", "float64", "uint8"])
def test_gather_without_scaling_is_exact(source):
    x = numbers((3, 37), source)
    x[1, 0] = 255
    out = np.empty((3, 37), "float64")
    fields = {"x": x, "out": out, "rows": 3, "cols": 37, "ld": 37, "x_row": 37, "x_col": 1, "step_rows": 3, "scale": 1}
    call(f"rows.gather_{source}", "float64", GATHER, fields)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("shuffled", [True, False])
def test_gather_labels(shuffled, end, threads):
    labels = guarded(np.arange(100, 114), end)
    index = guarded(np.random.default_rng(0).permutation(14), end) if shuffled else None
    out = guarded(np.full(4, -1), end)
    fields = {"labels": labels, "index": index if shuffled else 0, "out": out, "rows": 4, "step_rows": 5}
    call("rows.gather_labels", "float32", LABELS, fields, threads=threads, step=2)
    np.testing.assert_array_equal(out, (100 + index if shuffled else labels)[10:14])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("end", ENDS)
def test_scatter(end, threads, dtype):
    for cols in lengths(dtype):
        batches = [random((5, cols + 3), dtype, 1), random((5, cols + 3), dtype, 2)]
        out = guarded(np.full((8, cols), 7.0, dtype), end)
        for step, rows in enumerate((5, 3)):
            fields = {"x": guarded(batches[step], end), "ld": cols + 3, "out": out, "rows": rows, "cols": cols}
            call("rows.scatter", dtype, SCATTER, fields | {"step_rows": 5}, threads=threads, step=step)
        np.testing.assert_array_equal(out, np.vstack([batches[0], batches[1][:3]])[:, :cols])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_total(end, weighted, dtype):
    """In order, in float64, on top of what was there, by one thread: the very same bits as a loop in Python."""
    value, weight = guarded(random(1000, dtype, 1), end), guarded(random(1000, dtype, 2), end)
    totals = guarded(np.array([1.0, 2.0, 3.0]), end)
    fields = {"value": value, "weight": weight if weighted else 0, "rows": 1000, "totals": totals, "slot": 1}
    call("rows.total", dtype, TOTAL, fields, threads=3)
    s = 0.0
    for v, w in zip(value.tolist(), weight.tolist(), strict=True):
        s += v * w if weighted else v
    if weighted and dtype == "float64":  # a fused multiply-add may round once where Python rounds twice
        assert totals[1] == pytest.approx(2 + s, rel=1e-14)
    else:
        assert totals[1] == 2.0 + s
    assert totals[[0, 2]].tolist() == [1.0, 3.0]


# --- losses ---------------------------------------------------------------------------------------------------------


def labels_of(rows, cols):
    return np.random.default_rng(5).integers(0, cols, rows)


def targets_of(kind, rows, cols):
    rng = np.random.default_rng(6)
    if kind == "softmax_crossentropy":
        t = rng.random((rows, cols))
        t[0] = np.eye(cols)[cols - 1]
        return t
    return rng.integers(0, 2, (rows, cols)).astype(float) if kind == "sigmoid_crossentropy" else random((rows, cols))


def loss_reference(kind, z, t):
    """Values per row, gradients of their sum by z, predictions."""
    cols = z.shape[1]
    if kind.startswith("mean"):
        return ((z - t) ** 2).mean(axis=1), 2 * (z - t) / cols, z
    if kind.startswith("sigmoid"):
        value = (np.logaddexp(0, z) - t * z).mean(axis=1)
        return value, (ref.sigmoid(z) - t) / cols, ref.sigmoid(z)
    p = ref.softmax(z)
    return -(t * ref.log_softmax(z)).sum(axis=1), p * t.sum(axis=1, keepdims=True) - t, p


LOSSES = ["sparse_softmax_crossentropy", "softmax_crossentropy", "sigmoid_crossentropy", "mean_squared_error"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_losses(with_gradient, weighted, kind, dtype):
    rows, scale = 5, 0.25
    eps = np.finfo(dtype).eps
    for cols, gap, end, threads in itertools.product(lengths(dtype), (0, 3), ENDS, (1, 3)):
        # float32 values in float64, so that the reference sees what the kernel sees
        start = (3 * random((rows, cols + gap))).astype(dtype)
        sparse = kind.startswith("sparse")
        label = labels_of(rows, cols)
        t = (np.eye(cols)[label] if sparse else targets_of(kind, rows, cols)).astype(dtype)
        z = Guarded(start, end)
        grad = Guarded(np.full((rows, cols + gap), 7.0, dtype), end)
        value = guarded(np.full(rows, np.nan, dtype), end)
        weight = guarded(np.abs(random(rows, dtype, 8)), end)
        fields = {
            "z": z.array,
            "p": z.array,
            "value": value,
            "rows": rows,
            "cols": cols,
            "ld": cols + gap,
            "scale": scale,
        }
        fields["weight"] = weight if weighted else 0
        fields["grad"] = grad.array if with_gradient else 0
        if sparse:
            fields["label"] = guarded(label, end)
        else:
            wide = np.full((rows, cols + 2 * gap), 7.0, dtype)
            wide[:, :cols] = t
            fields["target"], fields["target_ld"] = guarded(wide, end), cols + 2 * gap
        call(f"losses.{kind}", dtype, LOSS, fields, threads=threads)

        expected, gradient, predictions = loss_reference(kind, start[:, :cols].astype(float), t.astype(float))
        tolerance = {"rtol": 40 * eps, "atol": 40 * eps * cols}
        np.testing.assert_allclose(value, expected, **tolerance)
        np.testing.assert_allclose(z.array[:, :cols], predictions, **tolerance)
        np.testing.assert_array_equal(z.array[:, cols:], start[:, cols:])
        assert (grad.array[:, cols:] == 7).all()
        if with_gradient:
            factor = scale * weight[:, None].astype(float) if weighted else scale
            np.testing.assert_allclose(grad.array[:, :cols], factor * gradient, **tolerance)
        else:
            assert (grad.array == 7).all()
        z.assert_gaps_untouched()
        grad.assert_gaps_untouched()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOSSES[:3])
def test_losses_of_huge_logits(kind, dtype):
    big = 1e30 if dtype == "float32" else 1e300
    z = np.array([[big, 0, -big], [-big, -big, -big], [big, big, big], [0, 0, 0]], dtype)
    t = np.eye(3, dtype=dtype)[[0, 1, 2, 0]]
    expected, gradient, predictions = loss_reference(kind, z.astype(float), t.astype(float))
    grad, value = np.empty_like(z), np.empty(4, dtype)
    fields = {"z": z, "p": z, "value": value, "grad": grad, "rows": 4, "cols": 3, "ld": 3, "scale": 1.0}
    fields |= {"label": np.array([0, 1, 2, 0]), "target": t, "target_ld": 3}
    call(f"losses.{kind}", dtype, LOSS, fields)
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, gradient, atol=1e-6)
    np.testing.assert_allclose(z, predictions, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("column", [0, 1, 17])
def test_nan_stays_in_its_row(column, kind, dtype):
    z = random((3, 18), dtype)
    z[1, column] = np.nan
    grad, value, t = np.empty_like(z), np.empty(3, dtype), np.full_like(z, 0.5)
    fields = {"z": z, "p": z, "value": value, "grad": grad, "rows": 3, "cols": 18, "ld": 18, "scale": 1.0}
    fields |= {"label": np.array([0, 1, 2]), "target": t, "target_ld": 18}
    call(f"losses.{kind}", dtype, LOSS, fields)
    assert np.isnan(value).tolist() == [False, True, False]
    assert np.isnan(grad[1, column])
    assert np.isfinite(grad[[0, 2]]).all()
    assert np.isfinite(z[[0, 2]]).all()


# --- metrics --------------------------------------------------------------------------------------------------------

METRICS = {
    "sparse_categorical_accuracy": lambda z, t, label: np.argmax(z, axis=1) == label,
    "categorical_accuracy": lambda z, t, label: np.argmax(z, axis=1) == np.argmax(t, axis=1),
    "binary_accuracy": lambda z, t, label: ((z > 0.25) == t).mean(axis=1),
    "mean_squared_error": lambda z, t, label: ((z - t) ** 2).mean(axis=1),
    "mean_absolute_error": lambda z, t, label: np.abs(z - t).mean(axis=1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("end", ENDS)
def test_metrics(end, name, dtype):
    rows = 40
    for cols, gap, threads in itertools.product((*lengths(dtype), 3), (0, 3), ALL_THREADS):
        rng = np.random.default_rng(cols)
        z = rng.integers(-4, 5, (rows, cols + gap)).astype(dtype) / 4  # ties: the first counts
        z[:, cols:] = 100  # padding must not win
        t = rng.integers(0, 2, (rows, cols + 2 * gap)).astype(dtype)
        t[:, cols:] = 100
        label = rng.integers(0, cols, rows)
        value = guarded(np.full(rows, np.nan, dtype), end)
        fields = {"z": guarded(z, end), "target": guarded(t, end), "label": guarded(label, end), "value": value}
        fields |= {"rows": rows, "cols": cols, "ld": cols + gap, "target_ld": cols + 2 * gap, "threshold": 0.25}
        call(f"metrics.{name}", dtype, METRIC, fields, threads=threads)
        expected = METRICS[name](z[:, :cols].astype(float), t[:, :cols].astype(float), label)
        np.testing.assert_allclose(value, expected, **close(dtype, cols + 2))


# --- optimizers -----------------------------------------------------------------------------------------------------

CONSTANTS = {"momentum": 0.9, "decay_1": 0.1, "decay_2": 0.001, "epsilon": 1e-7}
STATES = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "rmsprop": 1, "rmsprop_momentum": 2}
RATE = 0.03


def update_reference(name, p, s0, s1, g):
    p, s0, s1, g = (a.astype(float) for a in (p, s0, s1, g))
    if name == "adam":
        m = s0 + 0.1 * (g - s0)
        v = s1 + 0.001 * (g * g - s1)
        return p - RATE * m / (np.sqrt(v) + 1e-7), m, v
    if name.startswith("rmsprop"):
        momentum = 0.9 if name == "rmsprop_momentum" else 0.0
        return ref.rmsprop(p, g, s0, s1, RATE, rho=0.999, momentum=momentum)
    new, velocity = ref.sgd(p, g, s0, RATE, 0.0 if name == "sgd" else 0.9, name == "nesterov")
    return new, velocity, s1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("end", ENDS)
def test_flat_updates(end, name, dtype):
    w = lanes(dtype)
    rates = np.array([np.nan, RATE])  # one a step
    for n, threads in itertools.product((0, *lengths(dtype), 10 * w + 1), (1, 2, 3)):
        p, s0, g = (random(n, dtype, seed) for seed in (1, 2, 3))
        s0, s1 = np.abs(s0), np.abs(random(n, dtype, 4))  # means of squares are not negative
        held = [Guarded(a, end) for a in (p, s0, s1, g)]
        fields = dict(zip(("p", "s0", "s1", "g"), (h.array for h in held), strict=True))
        for absent in ("s0", "s1")[STATES[name] :]:
            fields[absent] = 0
        call(
            f"optimizers.{name}_flat", dtype, UPDATE, fields | {"n": n} | CONSTANTS, threads=threads, step=1, rate=rates
        )
        new = update_reference(name, p, s0, s1, g)
        for i in range(3):
            expected = new[i] if i <= STATES[name] else (p, s0, s1)[i]
            np.testing.assert_allclose(held[i].array, expected, **close(dtype))
            held[i].assert_gaps_untouched()
        np.testing.assert_array_equal(held[3].array, g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", ALL_THREADS)
@pytest.mark.parametrize("kernel", ["gemm.gemm", "small.fused", "small.slim", "gemv.gemv_rows"])
def test_biases_get_the_sums_of_rows(kernel, threads, dtype):
    """A weight gradient X' D, and 1' D to a bias, by gradient descent."""
    w = lanes(dtype)
    inputs = 2 * blocking.MR + 1
    deep = blocking.depth(dtype, 1 << 20) + 5  # sums of products wait for the next block of rows meanwhile
    for units, rows in itertools.product((w, 2 * w, 5 * w), (1, 3, 4, 5, 37, deep)):
        alone = kernel.startswith("gemv")  # a single unit, whose gradient is a vector: D' X instead
        units = 1 if alone else w if kernel == "small.slim" else units
        x, d = random((rows, -(-inputs // w) * w), dtype, 1), random((rows, units), dtype, 2)
        weights, bias = random((inputs, units), dtype, 3), random(units, dtype, 4)
        padded = np.zeros(-(-max(inputs, units) // w) * w, dtype)
        new_bias = padded.copy()
        new_bias[:units] = bias
        new_weights = np.concatenate([weights[:, 0], padded]) if alone else weights.copy()
        epilogue = loader.address("optimizers.sgd", dtype)
        updates = [record(UPDATE, kernel=epilogue, p=p, p_row=units) for p in (new_weights, new_bias)]
        cut = blocking.blocks(inputs, units, rows, dtype, 1, x.shape[1], units, 1, threads)
        if kernel.startswith("small"):
            cut = blocking.whole(inputs, units, rows, dtype, threads)
        scratch = np.zeros(threads * blocking.scratch(dtype, cut), dtype)
        fields = {**cut, "m": inputs, "n": units, "k": rows, "a": x, "a_row": 1, "a_col": x.shape[1]}
        fields |= {"b": np.ascontiguousarray(d), "b_row": units, "b_col": 1}
        if alone:
            fields |= {"a": d, "a_row": 1, "a_col": 1, "m": 1, "b": x, "b_row": x.shape[1], "n": inputs}
        fields |= {"epilogue": address(updates[0]), "sums": address(updates[1])}
        fields |= {"scratch": scratch, "scratch_stride": scratch.size // threads}
        call(kernel, dtype, GEMM, fields, threads=threads, rate=np.array([RATE]))
        wide_x, wide_d = x[:, :inputs].astype(float), d.astype(float)
        found = new_weights[:inputs, np.newaxis] if alone else new_weights
        np.testing.assert_allclose(found, weights - RATE * wide_x.T @ wide_d, **close(dtype, 64))
        np.testing.assert_allclose(new_bias[:units], bias - RATE * wide_d.sum(axis=0), **close(dtype, 64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("rows", [1, 5, 15, 16, 58])
def test_slopes_in_registers(rows, end, dtype):
    """An input gradient D W' times relu's slope, as its epilogue makes it: 0 and NaN of the output are its slope."""
    w = lanes(dtype)
    for inputs, units in itertools.product((w, 2 * w, 5 * w), (1, 2, 19)):
        d, weights, y = (
            random((rows, units), dtype, 1),
            random((inputs, units), dtype, 2),
            random((rows, inputs), dtype, 3),
        )
        y = np.maximum(y, 0)
        y.flat[::7] = np.nan
        held = [Guarded(a, end) for a in (d, weights, y)]
        cut = blocking.whole(rows, inputs, units, dtype, 1)
        scratch = np.zeros(blocking.scratch(dtype, cut), dtype)
        found = []
        for finish in (records.EPILOGUE, records.RELU_SLOPE):
            c = Guarded(np.full_like(y, 7), end)
            where = {"c": c.array, "c_row": inputs, "c_col": 1, "y": held[2].array}
            epilogue = record(BACKWARD, kernel=loader.address("activations.relu_backward", dtype), **where)
            fields = {**cut, "m": rows, "n": inputs, "k": units, "finish": finish}
            fields |= {"a": held[0].array, "a_row": units, "a_col": 1}
            fields |= {"b": held[1].array, "b_row": 1, "b_col": units}
            fields |= {"epilogue": address(epilogue), "scratch": scratch, "scratch_stride": scratch.size}
            call("small.fused", dtype, GEMM, fields, threads=1)
            found.append(c.array)
        expected = (d.astype(float) @ weights.T.astype(float)) * np.where(np.isnan(y), np.nan, y > 0)
        np.testing.assert_allclose(found[0], expected, **close(dtype, 64))
        np.testing.assert_array_equal(found[1], found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*STATES, "adamw"])
@pytest.mark.parametrize("end", ENDS)
def test_updates_of_a_tile(end, name, dtype):
    """The tile at (i, j) of p, whose rows are whole vectors; what the tile does not cover stays as it is."""
    w = lanes(dtype)
    states = STATES.get(name, 2)
    keep = 0.75 if name == "adamw" else 1.0
    rates = np.array([RATE, keep])
    i, rows = 1, 3
    for j, cols, ld in ((0, w, w), (0, 2 * w, 2 * w), (w, w, 2 * w), (w, 2 * w, 4 * w)):
        shape = (i + rows + (end == "start"), ld)
        p, s0 = random(shape, dtype, 1), random(shape, dtype, 2)
        s0, s1 = np.abs(s0), np.abs(random(shape, dtype, 3))
        held = [Guarded(a, end) for a in (p, s0, s1)]
        fields = dict(zip(("p", "s0", "s1"), (h.array for h in held), strict=True))
        for absent in ("s0", "s1")[states:]:
            fields[absent] = 0
        tile = guarded(random((rows, 2 * w), dtype, 4), end)
        op, run = record(UPDATE, p_row=ld, **fields, **CONSTANTS), record(RUN, threads=1, rate=rates)
        function = EPILOGUE(loader.address(f"optimizers.{name}", dtype))
        function(address(op), address(run), 0, address(tile), 2 * w, i, j, rows, cols)
        place = np.s_[i : i + rows, j : j + cols]
        new = update_reference(name.rstrip("w"), keep * p[place], s0[place], s1[place], tile[:, :cols])
        for k, before in enumerate((p, s0, s1)):
            expected = before.astype(float)
            if k <= states:
                expected[place] = new[k]
            np.testing.assert_allclose(held[k].array, expected, **close(dtype))
            outside = np.ones(shape, bool)
            outside[place] = False
            np.testing.assert_array_equal(held[k].array[outside], before[outside])


# --- dropout --------------------------------------------------------------------------------------------------------


def dropout(x, keep, *, seed=0, origin=0, step=0, layer=0, threads=1, out=None, cols=None):
    y = np.full_like(x, 7.0) if out is None else out
    rows, ld = x.shape
    fields = {"x": x, "y": y, "rows": rows, "cols": cols or ld, "ld": ld, "keep": keep, "layer": layer}
    fields["threshold"] = min(round(keep * 2**32), 2**32)
    call("dropout.dropout", str(x.dtype), DROPOUT, fields, threads=threads, step=step, seed=seed, origin=origin)
    return y


def test_philox_reference():
    """Known answers of the authors' Random123."""
    full = 0xFFFFFFFF
    assert ref.philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert ref.philox4x32((full,) * 4, (full,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 0xFEDCBA98, 2**63 - 1, 0x0123456789ABCDEF])
def test_dropout_masks_are_philox(seed, dtype):
    rows, cols, keep, origin, step, layer = 5, 11, 0.6, 2**32 - 2, 5, 3
    y = dropout(np.ones((rows, cols), dtype), keep, seed=seed, origin=origin, step=step, layer=layer)
    mask = np.empty((rows, cols), bool)
    for r, c in itertools.product(range(rows), range(cols)):
        words = ref.philox4x32((c // 4, r, (origin + step) % 2**32, layer), (seed % 2**32, seed >> 32))
        mask[r, c] = words[c % 4] < round(keep * 2**32)
    np.testing.assert_array_equal(y != 0, mask)
    np.testing.assert_allclose(y[mask], 1 / keep, rtol=2 * np.finfo(dtype).eps)
    assert 0 < mask.sum() < mask.size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
def test_dropout_leaves_padding_alone(end, dtype):
    for cols, gap, threads in itertools.product((1, 3, 4, 5, 16, 17), (0, 3), ALL_THREADS):
        x = random((6, cols + gap), dtype)
        expected = dropout(x, 0.5, cols=cols, seed=9)
        for out in (guarded(np.full_like(x, 7.0), end), None):  # None: in place
            given = guarded(x, end)
            y = dropout(given, 0.5, cols=cols, seed=9, threads=threads, out=given if out is None else out)
            np.testing.assert_array_equal(y[:, :cols], expected[:, :cols])
            np.testing.assert_array_equal(y[:, cols:], x[:, cols:] if out is None else 7.0)
        kept = expected[:, :cols] != 0
        np.testing.assert_allclose(expected[:, :cols][kept], 2 * x[:, :cols][kept])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_dropout_statistics(keep):
    """Rates and correlations within 5 standard deviations: along rows, columns, steps, layers and seeds."""
    x = np.ones((400, 250), "float32")
    n = x.size
    base = dropout(x, keep, seed=1, step=3) != 0
    deviation = np.sqrt(keep * (1 - keep) / n)
    assert abs(base.mean() - keep) < 5 * deviation
    assert (np.abs(base.mean(axis=0) - keep) < 5 * np.sqrt(keep * (1 - keep) / len(x))).all()
    others = [
        dropout(x, keep, seed=1, step=4),
        dropout(x, keep, seed=1, step=3, layer=1),
        dropout(x, keep, seed=2, step=3),
    ]
    shifted = [np.roll(base, s, axis=a) for s, a in ((1, 0), (1, 1), (4, 1), (2, 0))]
    for other in (*(o != 0 for o in others), *shifted):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_of_all_or_nothing(dtype):
    x = random((9, 33), dtype)
    np.testing.assert_array_equal(dropout(x, 1.0), x)
    np.testing.assert_array_equal(dropout(x, 2.0**-40), np.zeros_like(x))
