"""Plans: barriers where dependencies are, no overlapping memory, padding that stays 0, the same bits in any order.

The accesses of every operation are derived here from its record alone (addresses, shapes and the way each kernel is
shared among threads), not from what the lowering declares.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnn
from fastnn import records, training
from fastnn.cpu import division, executable, parts
from fastnn.cpu.division import divide
from fastnn.cpu.immediate import KERNEL
from fastnn.cpu.memory import address
from fastnn.layers import Activation, Dense, Dropout, Input
from fastnn.plan import Lowering
from fastnn.program import Op, Program, Ref, schedule

CLAIMS = records.GEMM.offsets["claims"] // 8
OPTIMIZERS = {
    "sgd": lambda: fastnn.optimizers.SGD(0.05),
    "momentum": lambda: fastnn.optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: fastnn.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: fastnn.optimizers.Adam(0.01),
    "adamw": lambda: fastnn.optimizers.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: fastnn.optimizers.RMSprop(0.01, momentum=0.5),
}
NETWORKS = {
    "mlp": ([Dense(19, "relu"), Dense(5, "softmax")], "sparse_categorical_crossentropy", ["accuracy"]),
    "deep": ([Dense(33, "tanh"), Dense(16, "sigmoid"), Dense(17, "leaky_relu"), Dense(3)], "mse", ["mae"]),
    "one": ([Dense(1, "sigmoid")], "binary_crossentropy", ["accuracy"]),
    "one at last": ([Dense(40, "relu"), Dense(33, "tanh"), Dense(1, "sigmoid")], "binary_crossentropy", ["accuracy"]),
    "small, one at last": ([Dense(20, "relu"), Dense(18, "tanh"), Dense(1, "sigmoid")], "binary_crossentropy", []),
    "one in between": ([Dense(20, "relu"), Dense(1, "tanh"), Dense(18, "relu"), Dense(1, use_bias=False)], "mse", []),
    "dropout": ([Dropout(0.1), Dense(21, "relu"), Dropout(0.5), Dense(5, "softmax")], "categorical_crossentropy", []),
    "activations": (
        [Activation("tanh"), Dense(7), Activation("relu"), Activation("tanh"), Dense(6, "softmax")],
        "mse",
        [],
    ),
    "softmax inside": ([Dense(9, "softmax"), Dense(8, use_bias=False), Dense(2, "tanh")], "mse", ["mse", "mae"]),
    "dropout last": ([Dense(9, "relu"), Dense(2), Dropout(0.25)], "mse", []),
    "fused after an activation": ([Activation("relu"), Activation("sigmoid")], "binary_crossentropy", ["accuracy"]),
}


def fresh(layers):
    """The layers once more: an instance belongs to one model."""
    return [type(layer)(**layer.get_config()) for layer in layers]


def build(name="mlp", optimizer="adam", dtype="float32", inputs=11, seed=3, n_threads=1):
    layers, loss, metrics = NETWORKS[name]
    model = fastnn.Sequential([Input((inputs,)), *fresh(layers)], dtype=dtype, seed=seed, n_threads=n_threads)
    model.compile(OPTIMIZERS[optimizer](), loss, metrics)
    return model


def data(model, n, inputs=11, seed=0):
    rng = np.random.default_rng(seed)
    x, units = rng.standard_normal((n, inputs)), model._built().units
    loss = model._compiled()[0].name
    if loss.startswith("sparse"):
        return x, rng.integers(0, units, n)
    if loss.startswith("categorical"):
        return x, np.eye(units)[rng.integers(0, units, n)]
    return x, rng.integers(0, 2, (n, units)).astype(float)


def lower(model, mode, rows, capacity, weighted=True):
    """A program of the model, as `training.executable` lowers it."""
    x, y = data(model, capacity)
    samples = training.checked(model, x, y, np.ones(capacity) if weighted else None)
    network = model._built()
    plan = Lowering(network.stages, samples.x_feed, rows, capacity, network.backend.pad(network.dtype))
    objective = training._objective(model, network)
    if mode == "predict":
        return plan.predict()
    if mode == "evaluate":
        return plan.evaluate(objective, samples.y_feed, weighted)
    return plan.train(objective, samples.y_feed, weighted, model._compiled()[1].update())


# --- what an operation reads and writes -----------------------------------------------------------------------------

THREADS = 3
EVERYONE = (1 << THREADS) - 1  # a bit for each thread that may touch an element


@pytest.fixture(params=[2, 3])
def in_parts(request, monkeypatch):
    """All weight gradients that can be in parts of the batch are; in teams of two, where threads have parts of their
    own, and of three.
    """
    monkeypatch.setattr(parts, "LEAST", 0)
    monkeypatch.setattr(sys.modules[__name__], "THREADS", request.param)
    monkeypatch.setattr(sys.modules[__name__], "EVERYONE", (1 << request.param) - 1)


def divided(program, dtype="float32"):
    """The program as the backend divides it among `THREADS` threads."""
    divide(program, dtype, THREADS)
    return program


def test_what_threads_share():
    """Lines that other cores have are fetched from them early; those that only one core uses need not be."""
    layers = [Input((20,)), Dense(64, "relu"), Dense(64, "relu"), Dense(1, "sigmoid")]
    model = fastnn.Sequential(layers, n_threads=THREADS)
    model.compile("adam", "binary_crossentropy")
    x, y = np.zeros((96, 20)), np.zeros((96, 1))
    samples = training.checked(model, x, y)
    plan = Lowering(model.network.stages, samples.x_feed, 96, 96, model.network.backend.pad("float32"))
    objective, update = training._objective(model, model.network), model._compiled()[1].update()
    program = plan.train(objective, samples.y_feed, False, update)
    divide(program, "float32", 1)
    assert not any(op.shared or "also" in op.fields for op in program.ops)
    divide(program, "float32", THREADS)
    shared = {(op.layer, op.label): op.shared for op in program.ops}
    assert shared["dense_1", "forward"]  # all rows are read for the gradient of the next layer's weights
    assert shared["dense_1", "gradients + adam"]  # all weights are read for each row
    assert not shared["loss", "gather y"]  # a row's targets are read for the same row only
    products = {op.layer: op.fields.get("also") for op in program.ops if op.label == "forward"}
    (outer,) = (op for op in program.ops if op.kernel.endswith("_outer"))
    assert products == {"dense": None, "dense_1": outer.fields["y"], "dense_2": None}


def test_what_one_thread_does_alone():
    """It shares nothing, fetches nothing from others, and takes tasks that are cut for one."""
    layers = [Input((20,)), Dense(64, "relu"), Dense(64, "relu"), Dense(1, "sigmoid")]
    model = fastnn.Sequential(layers, n_threads=THREADS)
    model.compile("adam", "binary_crossentropy")
    samples = training.checked(model, np.zeros((96, 20)), np.zeros((96, 1)))
    program = training.recipe(model, "train", samples.x_feed, samples.y_feed).lower(model.network, 96, 96)
    divide(program, "float32", THREADS, alone=True)
    alone = program.alone
    assert alone is not None
    assert alone.alone is None
    assert [op.label for op in alone.ops] == [op.label for op in program.ops]
    assert any(op.shared for op in program.ops)
    assert not any(op.shared or "also" in op.fields for op in alone.ops)
    own, shared = (
        [e for op in each.ops for e in (op, *op.sparsely) if e.record is records.GEMM] for each in (alone, program)
    )
    assert len(own) == len(shared) > 4
    assert any(
        division.cut(a, "float32", 1) != division.cut(b, "float32", THREADS) for a, b in zip(own, shared, strict=True)
    )
    assert not {id(a.fields) for a in own} & {id(b.fields) for b in shared}
    divide(program, "float32", THREADS)
    executed = training.executable(model, "train", 96, 96, samples.x_feed, samples.y_feed)
    assert executed._table_words[0] != executed._table_words[1]


def by_row(rows):
    """The bit of the thread that has each row: `fastnn.cpu.share`."""
    owner = np.zeros(rows, int)
    for thread in range(THREADS):
        owner[rows * thread // THREADS : rows * (thread + 1) // THREADS] = 1 << thread
    return owner


def matrix(ref, rows, cols, ld, bits, step=1):
    """One access: buffer, elements, and the threads that make it."""
    if not isinstance(ref, Ref):
        return []
    index = ref.offset + np.arange(rows)[:, None] * ld + np.arange(cols) * step
    return [(ref.buffer, index.ravel(), np.broadcast_to(np.reshape(bits, (-1, 1)), index.shape).ravel())]


def accesses(op, dtype):
    """Reads and writes of an operation, as lists of (buffer, elements, threads)."""
    f = op.fields
    words = 2 if dtype == "float32" else 1  # elements that a label takes
    kind = op.record
    if kind is records.GEMM:
        m, n, k = f["m"], f["n"], f["k"]
        e = op.epilogue.fields
        if op.by_rows and op.batch == "n":  # what is called columns here are rows of the batch
            owner = by_row(n)
            reads = matrix(f["a"], 1, k, 0, EVERYONE, f["a_col"]) + matrix(e.get("bias"), 1, 1, 0, EVERYONE)
            reads += matrix(f["b"], n, k, f["b_col"], owner, f["b_row"])
            reads += matrix(e.get("y"), n, 1, 1, owner) + matrix(e.get("more"), n, 1, 1, owner)
            return reads, matrix(e["c"], n, 1, 1, owner)
        owner = by_row(m) if op.by_rows else EVERYONE
        readers = EVERYONE
        if op.by_rows and "part" in f:  # of two: one for each thread
            owner = readers = 1 << (f["part"] - 1)
        reads = matrix(f["a"], m, k, f["a_row"], owner, f["a_col"])
        reads += matrix(f["b"], k, n, f["b_row"], readers, f["b_col"])
        if op.epilogue.record is records.UPDATE:
            parts = [part for name in ("p", "s0", "s1") for part in matrix(e[name], m, n, e["p_row"], EVERYONE)]
            if op.sums:
                s = op.sums.fields
                assert s["n"] == (1 if op.swapped else n)  # kernels sum the columns that they compute
                parts += [part for name in ("p", "s0", "s1") for part in matrix(s[name], 1, s["n"], 0, EVERYONE)]
            return reads + parts, parts
        if op.sums:
            parts = matrix(op.sums.fields["c"], 1, n, 0, owner)
            return reads, parts + matrix(e["c"], m, n, e["c_row"], owner)
        columns = 1 if e.get("one_bias") else n
        reads += matrix(e.get("bias"), 1, columns, 0, EVERYONE) + matrix(e.get("y"), m, n, e["c_row"], owner)
        reads += matrix(e.get("more"), m, n, e["c_row"], owner)
        return reads, matrix(e["c"], m, n, e["c_row"], owner)
    if kind is records.TOTAL:
        reads = matrix(f["value"], 1, f["rows"], 0, 1) + matrix(f["weight"], 1, f["rows"], 0, 1)
        if f["totals"].buffer != "totals":  # nobody reads them
            return reads, matrix(Ref(f["totals"].buffer, f["totals"].offset + f["slot"] * words), 1, words, 0, 1)
        return reads, [("totals", np.array([f["slot"]]), np.array([1]))]
    if kind is records.UPDATE:
        owner = by_row(-(-f["n"] // 64)).repeat(64)[: f["n"]][:, None]
        parts = [part for name in ("p", "s0", "s1") for part in matrix(f[name], f["n"], 1, 1, owner)]
        return parts + [part for name in ("g", "more") for part in matrix(f[name], f["n"], 1, 1, owner)], parts
    if kind is records.MAP and op.kernel.endswith("_map"):
        owner = by_row(-(-f["n"] // 64)).repeat(64)[: f["n"]][:, None]
        return matrix(f["x"], f["n"], 1, 1, owner), matrix(f["y"], f["n"], 1, 1, owner)
    rows, cols, ld = f["rows"], f.get("cols", 1), f.get("ld", 1)
    owner = by_row(rows)
    if kind is records.GATHER:
        return [], matrix(f["out"], rows, cols, ld, owner)
    if kind is records.LABELS:
        return [], matrix(f["out"], rows, words, words, owner)
    if kind is records.SCATTER:
        return matrix(f["x"], rows, cols, ld, owner), matrix(f["out"], rows, cols, cols, owner)
    if op.kernel.endswith("_outer"):
        reads = matrix(f["g"], rows, 1, 1, owner) + matrix(f["row"], 1, cols, 0, EVERYONE)
        reads += matrix(f["x"], rows, cols, ld, owner) if f["x"] != f["y"] else []
        return reads, matrix(f["y"], rows, cols, ld, owner)
    if kind in (records.MAP, records.DROPOUT):
        reads = matrix(f["x"], rows, cols, ld, owner) + matrix(f.get("g"), rows, cols, ld, owner)
        if op.epilogue:
            e = op.epilogue.fields
            reads += matrix(e["bias"], 1, 1 if e.get("one_bias") else cols, 0, EVERYONE)
        return reads, matrix(f["y"], rows, cols, ld, owner)
    assert kind in (records.LOSS, records.METRIC)
    reads = matrix(f["z"], rows, cols, ld, owner) + matrix(f.get("label"), rows, words, words, owner)
    reads += matrix(f.get("target"), rows, cols, f.get("target_ld"), owner)
    reads += matrix(f.get("weight"), rows, 1, 1, owner)
    writes = matrix(f["value"], rows, 1, 1, owner)
    if kind is records.LOSS:
        writes += matrix(f["z"], rows, cols, ld, owner) + matrix(f["grad"], rows, cols, ld, owner)
    return reads, writes


class Memory:
    """Who has touched each element since the last barrier."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.written, self.used = {}, {}

    def _at(self, log, buffer, size):
        have = log.setdefault(buffer, np.zeros(0, int))
        if len(have) < size:
            have = log[buffer] = np.concatenate([have, np.zeros(size - len(have), int)])
        return have

    def conflicts(self, reads, writes):
        """Whether another thread wrote what is read, or used what is written."""
        for log, found in ((self.written, reads), (self.used, writes)):
            for buffer, index, bits in found:
                before = self._at(log, buffer, int(index.max(initial=0)) + 1)[index]
                both = before | bits
                if ((before != 0) & ((both & (both - 1)) != 0)).any():
                    return True
        return False

    def add(self, reads, writes):
        for log, found in ((self.written, writes), (self.used, reads + writes)):
            for buffer, index, bits in found:
                np.bitwise_or.at(self._at(log, buffer, int(index.max(initial=0)) + 1), index, bits)


def races(ops, dtype):
    """Positions of operations that conflict with one since the last barrier."""
    memory, found = Memory(), []
    for i, op in enumerate(ops):
        if op.barrier:
            memory.clear()
        reads, writes = accesses(op, dtype)
        if memory.conflicts(reads, writes):
            found.append(i)
        memory.add(reads, writes)
    return found


# --- barriers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("rows", [1, 7, 32, 64])
def test_barriers_are_where_dependencies_are(rows, mode, name):
    for dtype, weighted in itertools.product(("float32", "float64"), (True, False)):
        model = build(name, dtype=dtype)
        program = divided(lower(model, mode, rows, 64, weighted), dtype)
        assert races(program.ops, dtype) == []


@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_barrier_is_superfluous(name, rows):
    """Without any one of them there is a race (so the test above can fail, and no thread waits for nothing)."""
    program = divided(lower(build(name), "train", rows, rows))
    for before, op in itertools.pairwise(program.ops):
        # Two maps in a row have the same shares, which `schedule` does not know; rare enough to let it wait.
        if op.barrier and not (before.kernel.endswith("_map") and op.kernel.endswith("_map")):
            op.barrier = False
            assert races(program.ops, "float32"), f"the barrier before {op.kernel}"
            op.barrier = True


layer = st.one_of(
    st.builds(Dense, st.integers(1, 40), st.sampled_from(["relu", "tanh", "softmax", None]), use_bias=st.booleans()),
    st.builds(Dropout, st.sampled_from([0.0, 0.5])),
    st.builds(Activation, st.sampled_from(["sigmoid", "softmax", "linear"])),
)


@given(st.lists(layer, min_size=1, max_size=6), st.integers(1, 33), st.integers(1, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_network_is_free_of_races(layers, rows, inputs):
    model = fastnn.Sequential([Input((inputs,)), *layers], seed=0)
    model.compile("adam", "mse", ["mae"])
    network = model._built()
    x, y = np.zeros((rows, inputs), "f4"), np.zeros((rows, network.units), "f4")
    samples = training.checked(model, x, y)
    plan = Lowering(network.stages, samples.x_feed, rows, rows, network.backend.pad("float32"))
    update = model._compiled()[1].update()
    program = divided(plan.train(training._objective(model, network), samples.y_feed, False, update))
    assert races(program.ops, "float32") == []
    assert_regions_apart(program, "float32")


def test_schedule_of_hand_written_operations():
    def op(reads=(), writes=(), by_rows=False):
        return Op("k", records.MAP, {}, reads, writes, by_rows)

    ops = [
        op(writes=("a",)),
        op(reads=("a",), writes=("b",)),  # read after write
        op(reads=("a",), writes=("c",)),  # independent of the last
        op(writes=("a",)),  # write after read
        op(writes=("a",)),  # write after write
        op(writes=("d",), by_rows=True),
        op(reads=("d",), writes=("d",), by_rows=True),  # each thread has its own rows
        op(reads=("d",), writes=("e",)),
        op(reads=("f",)),
    ]
    schedule(ops)
    assert [o.barrier for o in ops] == [False, True, False, True, True, False, False, True, False]


# --- memory ---------------------------------------------------------------------------------------------------------


def assert_regions_apart(program: Program, dtype: str):
    """Whatever two different operands of the arena touch is disjoint and within it."""
    claims = np.full(program.arena, -1)
    size = 2 if dtype == "float32" else 1
    for op in program.ops:
        fields = [op.fields, op.epilogue.fields if op.epilogue else {}]
        starts = {ref.offset for f in fields for ref in f.values() if isinstance(ref, Ref) and ref.buffer == "arena"}
        assert all(start * (8 // size) % 64 == 0 for start in starts), "regions start at cache lines"
        for buffer, index, _ in itertools.chain(*accesses(op, dtype)):
            if buffer != "arena":
                continue
            assert index.min() >= 0
            assert index.max() < program.arena
            start = max(s for s in starts if s <= index.min())
            assert np.isin(claims[index], (-1, start)).all()
            claims[index] = start


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regions_do_not_overlap(dtype, name):
    for mode, rows in itertools.product(("train", "evaluate", "predict"), (1, 5, 32)):
        assert_regions_apart(lower(build(name, dtype=dtype), mode, rows, 32), dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_short_batch_has_the_layout_of_a_full_one(name):
    model = build(name)
    full, short = lower(model, "train", 32, 32), lower(model, "train", 5, 32)
    assert short.arena == full.arena
    for a, b in zip(full.ops, short.ops, strict=True):
        assert (a.kernel, a.batch) == (b.kernel, b.batch)
        for f, g in ((a.fields, b.fields), (getattr(a.epilogue, "fields", {}), getattr(b.epilogue, "fields", {}))):
            differ = {key for key in f if f[key] != g[key]}
            assert differ <= {"rows", "m", "n", "k", "scale"}
        if "scale" in a.fields and a.record is records.LOSS:
            assert (a.fields["scale"], b.fields["scale"]) == (1 / 32, 1 / 5)
        if "step_rows" in b.fields:
            assert b.fields["step_rows"] == 32


# --- padding --------------------------------------------------------------------------------------------------------


def padding(network, buffer):
    """What lies between the parameters of a buffer."""
    inside = np.zeros(network.size, bool)
    for _, view in network.views(inside):
        view[...] = True
    return buffer[~inside]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "fused after an activation"])
def test_padding_stays_zero(name, optimizer, dtype):
    model = build(name, optimizer, dtype)
    x, y = data(model, 45)
    before = model.get_weights()
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, sample_weight=np.linspace(0, 2, 45))  # a last batch of 13
    model.evaluate(x, y, verbose=0)
    network = model._built()
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    for buffer in (network.params, *network.state):
        spare = padding(network, buffer)
        assert spare.size
        assert (spare == 0).all()


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("name", ["mlp", "deep", "dropout", "softmax inside", "small, one at last", "one in between"])
def test_barriers_of_gradients_in_parts(name, rows):
    """They are where dependencies are, and nowhere else."""
    for dtype in ("float32", "float64"):
        model = build(name, dtype=dtype)
        program = divided(lower(model, "train", rows, 64, True), dtype)
        if (rows, dtype) == (64, "float32"):
            assert any("part" in op.fields for op in program.ops)
        assert races(program.ops, dtype) == []
    test_no_barrier_is_superfluous(name, rows)


def test_what_is_done_in_parts():
    """Gradients of layers that are smaller than the batch, if all are, and no others."""

    def updates(rows, *units):
        layers = [Input((20,)), *(Dense(n, "relu") for n in units), Dense(1, "sigmoid")]
        model = fastnn.Sequential(layers)
        model.compile("adam", "binary_crossentropy")
        x, y = np.zeros((rows, 20)), np.zeros((rows, 1))
        samples = training.checked(model, x, y)
        plan = Lowering(model.network.stages, samples.x_feed, rows, rows, model.network.backend.pad("float32"))
        objective, update = training._objective(model, model.network), model._compiled()[1].update()
        program = plan.train(objective, samples.y_feed, False, update)
        arena = program.arena
        divide(program, "float32", 1)
        assert program.arena >= arena
        found = [(op.layer, op.label) for op in program.ops if "gradients" in op.label or op.record is records.UPDATE]
        divide(program, "float32", 2)
        assert [op.barrier for op in program.ops if "part" in op.fields] == [False] * sum(
            "part" in label for _, label in found
        )
        return found

    one = ("dense", "gradients + adam"), ("dense_1", "gradients + adam"), ("dense_2", "gradients + adam")
    assert updates(256, 64, 64) == [
        *(("dense_1", f"gradients, part {i}") for i in (1, 2)),
        *(("dense", f"gradients, part {i}") for i in (1, 2)),
        one[2],
        ("dense to dense_1", "adam"),
    ]
    assert updates(64, 16, 16) == [one[2], one[1], one[0]]  # is too little work
    assert updates(256, 192, 208) == [one[2], one[1], one[0]]  # 192 x 208 are more than 256 rows of 192 and 208


# --- the same bits in any order -------------------------------------------------------------------------------------


@pytest.fixture
def small_steps_in_teams(monkeypatch):
    """Give the smallest step to a team."""
    monkeypatch.setattr(executable, "ALONE", 0)
    monkeypatch.setattr(executable, "TOGETHER", 0)
    monkeypatch.setattr(executable, "AWAKE", 0)


def trained(name, optimizer, dtype, threads, samples=75, batch=16):
    model = build(name, optimizer, dtype, n_threads=threads)
    x, y = data(model, samples)
    history = model.fit(x, y, batch_size=batch, epochs=2, verbose=0, validation_data=(x, y))
    return [*model.get_weights(), model.predict(x, verbose=0), *history.history.values()]


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["adam", "nesterov"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("samples", [75, 65])  # of the last batch, 11 and 1
def test_teams_give_the_same_bits(samples, name, optimizer, dtype):
    alone = trained(name, optimizer, dtype, 1, samples)
    for threads in (2, 3, 5):
        for a, b in zip(alone, trained(name, optimizer, dtype, threads, samples), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("samples", [150, 129])  # of the last batch, 22 and 1
@pytest.mark.parametrize("name", ["mlp", "deep", "dropout", "softmax inside", "small, one at last", "one in between"])
def test_parts_give_the_same_bits(name, samples, optimizer, monkeypatch):
    found = []

    def split(program, dtype):
        original(program, dtype)
        found.append(any("part" in op.fields for op in program.ops))

    original = parts.split
    monkeypatch.setattr(parts, "LEAST", 0)
    monkeypatch.setattr(parts, "split", split)
    alone = trained(name, optimizer, "float32", 1, samples, 64)
    for threads in (2, 3, 4):
        for a, b in zip(alone, trained(name, optimizer, "float32", threads, samples, 64), strict=True):
            np.testing.assert_array_equal(a, b)
    assert found.count(True) >= 4  # one for each number of threads


FINISHED_SIZES = [(1, 33, 18), (5, 64, 20), (14, 32, 33), (31, 17, 48), (64, 65, 40)]  # rows, units, units


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "first", "second"), FINISHED_SIZES)
def test_what_is_finished_in_registers_has_the_bits_of_the_epilogue(rows, first, second, dtype, monkeypatch):
    """In a whole network, with any number of threads, and once all of it is NaN."""

    def parameters(threads):
        layers = [Input((11,)), Dense(first, "relu"), Dense(second, "relu"), Dense(24), Dense(first, "relu"), Dense(3)]
        model = fastnn.Sequential(layers, dtype=dtype, seed=1, n_threads=threads)
        model.compile("sgd", "mse")
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((3 * rows, 11)), rng.standard_normal((3 * rows, 3))
        model.fit(x, y, batch_size=rows, epochs=2)
        trained = [w.tobytes() for w in model.get_weights()]
        x[-1, 0] = np.nan
        model.fit(x, y, batch_size=rows, epochs=1)
        assert any(np.isnan(w).any() for w in model.get_weights())
        return trained, model.predict(x).tobytes()

    monkeypatch.setattr(executable, "ALONE", 0)
    with monkeypatch.context() as patch:
        patch.setattr(division, "FINISHED", {})
        expected = parameters(1)
    for threads in (1, 2, 3):
        assert parameters(threads) == expected


def stretches(table):
    """The records of a table (NumPy view), cut at barriers."""
    found = []
    for record in table.memory.reshape(-1, records.SLOT)[: table.length]:
        if not found or record.view(np.int64)[1]:
            found.append([])
        found[-1].append(record)
    return found


def interleaved(name, dtype, threads, order, rows):
    """One training step, thread after thread from barrier to barrier: as late as each may be."""
    model = build(name, dtype=dtype, n_threads=threads)
    x, y = data(model, rows)
    samples = training.checked(model, x, y)
    program = training.executable(model, "train", rows, rows, samples.x_feed, samples.y_feed)
    assert program.threads == threads
    samples.bind(program)
    rate = model._compiled()[1].rates(1)
    program.run_record["rate"], program.run_record["seed"] = address(rate), model.dropout_seed
    for stretch in stretches(program._tables[0]):
        for thread in order(threads):
            for record in stretch:
                KERNEL(int(record.view(np.int64)[0]))(address(record), address(program.run_record), 0, thread)
    return [*(w.copy() for w in model.get_weights()), program.totals.copy()]


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [16, 90])  # the latter are enough for products by rows
@pytest.mark.parametrize("name", NETWORKS)
def test_any_interleaving_gives_the_same_bits(name, rows, dtype):
    expected = interleaved(name, dtype, 1, range, rows)
    model = build(name, dtype=dtype)
    model.fit(*data(model, rows), batch_size=rows, shuffle=False, verbose=0)
    for a, b in zip(expected, model.get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)
    rng = np.random.default_rng(0)
    orders = [range, lambda n: reversed(range(n)), lambda n: rng.permutation(n).tolist()]
    for threads, order in itertools.product((2, 3, 5), orders):
        for a, b in zip(expected, interleaved(name, dtype, threads, order, rows), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_claimed_tasks_give_the_same_bits(name, dtype, monkeypatch):
    """Every product is divided by claims: threads run at their own speed, and one after the other."""
    expected = trained(name, "adam", dtype, 1)
    one_by_one = interleaved(name, dtype, 1, range, 16)
    monkeypatch.setattr("fastnn.cpu.division.CLAIMED", 0)
    for threads in (2, 3, 5):
        for a, b in zip(expected, trained(name, "adam", dtype, threads), strict=True):
            np.testing.assert_array_equal(a, b)
        for order in (range, lambda n: reversed(range(n))):
            for a, b in zip(one_by_one, interleaved(name, dtype, threads, order, 16), strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_share_that_nobody_works_on_is_done_by_others(monkeypatch):
    """The first of a team of three does all tasks, and every counter is what it must be for the next step."""
    monkeypatch.setattr("fastnn.cpu.executable.ALONE", 0)
    monkeypatch.setattr("fastnn.cpu.executable.TOGETHER", 0)
    x, y = np.ones((400, 300), "float32"), np.zeros(400, int)
    model = fastnn.Sequential([Input((300,)), Dense(400, "tanh"), Dense(3, "softmax")], n_threads=3)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.build((300,))
    samples = training.checked(model, x, y)
    program = training.executable(model, "train", 400, 400, samples.x_feed, samples.y_feed)
    samples.bind(program)
    rate = model._compiled()[1].rates(1)
    program.run_record["rate"] = address(rate)
    (table,) = program._tables
    before = model.get_weights()[0].copy()
    words = table.memory.view(np.int64).reshape(-1, records.SLOT // 8)
    *_, slot = np.flatnonzero(words[: table.length, CLAIMS])  # where caches are small, forward products have some, too
    claims = table.claims[slot, ::8]  # of the first layer's weights, whose gradient is large enough
    for thread in (2, 0, 1):
        for record in table.memory.reshape(-1, records.SLOT)[: table.length]:
            KERNEL(int(record.view(np.int64)[0]))(address(record), address(program.run_record), 0, thread)
        if thread == 2:
            after = model.get_weights()[0].copy()
            asked = claims.copy()
            assert (after != before).all(), "the first to come has done all of it"
    np.testing.assert_array_equal(claims, asked + 2)
    np.testing.assert_array_equal(model.get_weights()[0], after)


@pytest.mark.usefixtures("small_steps_in_teams")
def test_without_barriers_the_bits_differ(monkeypatch):
    """The test above can fail: with no barriers, the last thread's shares first is not what the plan means."""
    expected = interleaved("deep", "float32", 1, range, 16)
    monkeypatch.setattr("fastnn.cpu.division.schedule", lambda ops: None)
    found = interleaved("deep", "float32", 3, lambda n: reversed(range(n)), 16)
    assert any((a != b).any() for a, b in zip(expected, found, strict=True))
