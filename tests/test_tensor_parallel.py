"""Threads that own features: which ones they own, no races, memory of their own, the bits of one thread."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import test_plan as plans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_plan import lower, races

import fastnn
from fastnn import costs, records, training
from fastnn.batches import Family
from fastnn.cpu import blocking, division, executable, tensor_parallel, trial
from fastnn.cpu.immediate import KERNEL
from fastnn.cpu.memory import address
from fastnn.layers import Activation, Dense, Dropout, Input, Rescaling
from fastnn.plan import Lowering
from fastnn.program import Ref

SPARSE = "sparse_categorical_crossentropy"
ARENAS = tensor_parallel.ARENAS
# Name: inputs, rows, what is owned, layers, loss, metrics.
NETWORKS = {
    "inputs": (100, 8, "inputs", [Dense(48, "relu"), Dense(5, "softmax")], SPARSE, ["accuracy"]),
    "many inputs": (784, 24, "inputs", [Dense(64, "tanh"), Dense(10, "softmax")], SPARSE, ["accuracy"]),
    "inputs, one unit": (97, 7, "inputs", [Dense(33, "sigmoid"), Dense(1, "sigmoid")], "binary_crossentropy", []),
    "inputs, dropout": (
        120,
        9,
        "inputs",
        [Dense(40, "leaky_relu", use_bias=False), Dropout(0.3), Dense(9), Activation("tanh"), Dense(3)],
        "mse",
        ["mae", "mse"],
    ),
    "inputs, softmax": (100, 8, "inputs", [Dense(48, "softmax"), Dense(2, "softmax")], "mse", []),
    "units": (40, 16, "units", [Dense(64, "relu"), Dense(32, "relu"), Dense(1)], "mse", ["mae"]),
    "units, one unit at last": (40, 8, "units", [Dense(64), Dense(39, "relu"), Dense(1, "tanh")], "mse", []),
    "units, few at last": (40, 8, "units", [Dense(64, "tanh"), Dense(9, "relu"), Dense(1)], "mse", []),
    "inputs, one unit in between": (
        100,
        8,
        "inputs",
        [Dense(48, "relu"), Dense(1, "tanh"), Dense(70, "relu"), Dense(3)],
        "mse",
        [],
    ),
    "units, one unit in between": (
        40,
        8,
        "units",
        [Dense(64, "relu"), Dense(1, "tanh"), Dense(70, "relu"), Dense(40, use_bias=False), Dense(1)],
        "mse",
        [],
    ),
    "units, one unit": (20, 40, "units", [Dense(128, "leaky_relu"), Dense(1, "sigmoid")], "binary_crossentropy", []),
    "units, softmax": (30, 20, "units", [Dense(96, "tanh", use_bias=False), Dense(21, "softmax")], SPARSE, []),
    "units, no bias": (33, 16, "units", [Dense(64), Dense(19, use_bias=False), Dense(3, "tanh")], "mse", []),
    "units, softmax inside": (33, 16, "units", [Dense(64, "relu"), Dense(19, "softmax"), Dense(3)], "mse", []),
    "units, deep": (
        64,
        16,
        "units",
        [Dense(64, "relu"), Dense(40, "relu"), Dropout(0.5), Dense(7, "relu"), Dense(2)],
        "mse",
        [],
    ),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Give the smallest step to a team, whose threads own what they can."""
    for name in ("ALONE", "TOGETHER", "AWAKE"):
        monkeypatch.setattr(executable, name, 0)
    monkeypatch.setattr(tensor_parallel, "LEAST", 0)
    monkeypatch.setattr(tensor_parallel, "LENT", 0)
    monkeypatch.setattr(tensor_parallel, "REPEATED", 1)


@pytest.fixture
def networks(monkeypatch):
    """Let `test_plan.build` and what uses it know these networks."""
    found = {name: tuple(rest) for name, (_, _, _, *rest) in NETWORKS.items()}
    monkeypatch.setattr(plans, "NETWORKS", found)
    return found


def build(name, optimizer="adam", dtype="float32", n_threads=1):
    inputs, rows, *_ = NETWORKS[name]
    return plans.build(name, optimizer, dtype, inputs, n_threads=n_threads), rows


def step(name, dtype="float32", threads=tensor_parallel.OWNERS, rows=None, *, zeros=False):
    """The program of a step, divided among threads; `zeros`: of samples that are mostly 0."""
    model, full = build(name, dtype=dtype)
    x, y = plans.data(model, full, NETWORKS[name][0])
    x = x * (np.random.default_rng(0).random(x.shape) < 0.2).astype(x.dtype) if zeros else x
    samples = training.checked(model, x, y, np.ones(full))
    network = model._built()
    plan = Lowering(network.stages, samples.x_feed, rows or full, full, network.backend.pad(dtype))
    objective, update = training._objective(model, network), model._compiled()[1].update()
    program = plan.train(objective, samples.y_feed, True, update)
    before = sum(map(costs.flops, program.ops))
    division.divide(program, dtype, threads)
    assert sum(map(costs.flops, program.ops)) == before
    return program


# --- what is owned --------------------------------------------------------------------------------------------------


def owned(inputs, units, rows, mode="train"):
    """What `find` says of a network as it comes."""
    model = fastnn.Sequential([Input((inputs,)), *(Dense(n, "relu") for n in units)])
    model.compile("adam", "mse")
    x, y = np.zeros((rows, inputs), "float32"), np.zeros((rows, units[-1]), "float32")
    samples = training.checked(model, x, y)
    recipe = training.recipe(model, mode, samples.x_feed, samples.y_feed)
    split = tensor_parallel.find(recipe.lower(model.network, rows, rows))
    return None if split is None else (split.before or "inputs", split.at)


def test_what_is_owned(monkeypatch):
    """As it is for the networks of the benchmark: the larger features, if the batch is small beside the weights."""
    monkeypatch.undo()
    assert owned(784, (256, 10), 32) == ("inputs", 384)  # whole words of the product that leaves out zeros
    assert owned(784, (256, 10), 128) == ("inputs", 384)
    assert owned(784, (256, 10), 256) is None  # 256 rows of 256 sums are more than a sixth of the weights
    assert owned(784, (256, 10), 32, "evaluate") is None
    assert owned(784, (256, 10), 32, "predict") is None
    assert owned(100, (256, 128, 1), 64) == ("dense", 128)
    assert owned(100, (256, 128, 1), 256) is None
    assert owned(20, (64, 64, 1), 32) is None  # one thread is as fast
    assert owned(20, (64, 64, 1), 256) is None  # gradients in parts are less to exchange
    assert owned(784, (512, 256, 10), 32) is None  # the second layer is more than each could do for itself
    assert owned(784, (512, 256, 10), 512) is None
    assert owned(784, (2048, 2048, 10), 1024) is None
    assert owned(5, (3, 1), 10) is None
    assert owned(4096, (1,), 1024) is None


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", NETWORKS)
def test_threads_own_what_they_should(name):
    program = step(name)
    assert len(program.apart) == 2
    for part, each in enumerate(program.apart):
        (summed,) = (op for op in each.ops if op.label == f"forward, part {part + 1}")
        (combined,) = (op for op in each.ops if op.kernel == "rows.combine")
        first = next(op.layer for op in each.ops if op.label.startswith("forward"))
        assert (summed.layer == first) == (NETWORKS[name][2] == "inputs")
        assert combined.layer == summed.layer
    assert step(name, threads=1).apart == step(name, threads=3).apart == []


# --- what threads share ---------------------------------------------------------------------------------------------


def own(program):
    """What a thread does of its own."""
    return [op for op in program.ops if not op.helps]


def intervals(ops):
    """The operations between two barriers; a step begins with one."""
    found = [[]]
    for op in ops:
        if op.barrier:
            found.append([])
        found[-1].append(op)
    return found


def marked(op, dtype, thread):
    """What an operation reads and writes if that thread does it."""
    return [[(b, i, np.full(len(i), 1 << thread)) for b, i, _ in each] for each in plans.accesses(op, dtype)]


def conflicts(program, dtype):
    """Operations of one thread that read what another writes in the same interval, or write what it uses.

    What a thread does of another's share is left out: see `test_what_is_lent`.
    """
    found = []
    for together in itertools.zip_longest(*(intervals(own(each)) for each in program.apart), fillvalue=()):
        memory = plans.Memory()
        for thread, ops in enumerate(together):
            made = []
            for op in ops:
                reads, writes = marked(op, dtype, thread)
                if memory.conflicts(reads, writes):
                    found.append(f"{op.layer} {op.label}")
                made.append((reads, writes))
            for reads, writes in made:
                memory.add(reads, writes)
    return found


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_races(name, dtype):
    for rows in (1, 3, None):
        program = step(name, dtype, rows=rows)
        assert len({len(intervals(each.ops)) for each in program.apart}) == 1
        assert conflicts(program, dtype) == []


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", NETWORKS)
def test_no_barrier_is_superfluous(name):
    program = step(name)
    waits = [[op for op in each.ops if op.barrier] for each in program.apart]
    assert [len(each) for each in waits] == [2, 2]
    for pair in zip(*waits, strict=True):
        for op in pair:
            op.barrier = False
        assert conflicts(program, "float32"), pair[0].label
        for op in pair:
            op.barrier = True


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_lent(name, dtype):
    """The last update: it may be done by anybody until the step ends, and both find the same tasks."""
    for rows, mostly in itertools.product((1, 3, None), (False, True)):
        program = step(name, dtype, rows=rows, zeros=mostly)
        helping = [[op for op in each.ops if op.helps] for each in program.apart]
        assert [len(each) for each in helping] in ([0, 0], [1, 1])
        if rows is None and name in ("many inputs", "units"):
            assert any(helping)
        counters = []
        for thread, copy in ((thread, op) for thread, ops in enumerate(helping) for op in ops):
            other = own(program.apart[1 - thread])
            op = [each for each in other if each.epilogue is not None and each.epilogue.record is records.UPDATE][-1]
            for way, again in zip(op.ways, copy.ways, strict=True):
                assert way.kernel == again.kernel
                assert way.kernel in division.CLAIMABLE
                assert division.cut(way, dtype, 1) == division.cut(again, dtype, 1)
                assert [way.fields.get(name) for name in ("a", "claims", "most")] == [
                    again.fields.get(name) for name in ("a", "claims", "most")
                ]
                counters.append(way.fields["claims"].offset)
            if NETWORKS[name][2] == "inputs":
                assert copy.fields["b"] == Ref(ARENAS[thread], op.fields["b"].offset)  # each has all gradients
            touched = plans.Memory()
            for each in intervals(other)[-1]:
                if each is not op:
                    touched.add(*marked(each, dtype, 1 - thread))
            assert not touched.conflicts(*marked(copy, dtype, thread))
        assert len(set(counters)) == len(counters)
        assert max(counters, default=0) < tensor_parallel.CLAIMS


def tasks(op, dtype="float32"):
    """How many tasks one thread has of a product."""
    cut, m, n = division.cut(op, dtype, 1), op.number("m"), op.number("n")
    width = blocking.WIDE if op.kernel.startswith("spmm") else blocking.NV
    if op.kernel == "small.fused":
        return -(-(-(-m // blocking.MR) * -(-n // blocking.columns(dtype))) // (cut["rows"] // blocking.MR))
    return -(-m // cut["rows"]) * -(-n // (cut["panels"] * width * blocking.CPU.lanes(dtype)))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("sizes", "rows"),
    [((784, 256, 10), 32), ((784, 256, 10), 128), ((100, 256, 128, 1), 64), ((3000, 128, 10), 64)],
)
def test_tasks_that_are_lent_are_many(sizes, rows, zeros, monkeypatch):
    """Or the other could not do a part of them."""
    monkeypatch.undo()
    model = fastnn.Sequential([Input(sizes[:1]), *(Dense(n, "relu") for n in sizes[1:])], seed=0)
    model.compile("adam", "mse")
    x = np.ones((rows, sizes[0]), "float32")
    x[:, 10:] *= not zeros
    samples = training.checked(model, x, np.zeros((rows, sizes[-1])))
    recipe = training.recipe(model, "train", samples.x_feed, samples.y_feed)
    program = recipe.lower(model.network, rows, rows)
    division.divide(program, "float32", 2)
    helping = [op for each in program.apart for op in each.ops if op.helps]
    assert len(helping) == 2
    assert all(tasks(way) >= 4 for op in helping for way in op.ways), [tasks(op) for op in helping]


def one_by_one(model, samples, rows, orders):
    """A step for each of `orders`, without threads: in which order they come after each barrier."""
    found = training.executable(model, "train", samples.n, rows, samples.x_feed, samples.y_feed)
    rates = model.optimizer.rates(len(orders))
    samples.bind(found)
    found._tell(-1, address(rates), 0, 0)
    found._begin(0, len(orders), tensor_parallel.OWNERS)
    tables = [next(table for table in found._tables if table.address == at) for at in found._own_tables[0]]
    single = address(found.run_record) + records.SLOT
    words = records.SLOT // 8
    for number, order in enumerate(orders):
        barriers = [i for i in range(tables[0].length) if tables[0]._words[i * words + 1]]
        for low, high in itertools.pairwise([0, *barriers, tables[0].length]):
            for thread in order:
                for i in range(low, high):
                    kernel = KERNEL(int(tables[thread]._words[i * words]))
                    kernel(tables[thread].address + i * records.SLOT, single, number, 0)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", ["inputs", "many inputs", "units", "units, one unit", "units, no bias"])
def test_who_comes_first_does_what_the_other_has_left(name, zeros, dtype):
    """Each update is done once, by whomever: the last ones by who comes first."""
    orders = [(0, 1), (1, 0), (1, 0), (0, 1), (0, 1), (1, 0)]
    models = [build(name, dtype=dtype, n_threads=threads)[0] for threads in (1, 2)]
    rows = NETWORKS[name][1]
    x, y = plans.data(models[0], len(orders) * rows, NETWORKS[name][0])
    x = x * (np.random.default_rng(0).random(x.shape) < 0.2).astype(x.dtype) if zeros else x
    one_by_one(models[1], training.checked(models[1], x, y), rows, orders)
    models[0].fit(x, y, batch_size=rows, shuffle=False, verbose=0)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", NETWORKS)
def test_what_threads_write_is_their_own(name):
    """Only the two sums are exchanged: nobody writes another's buffers, or parameters that another writes.

    These are written in whole vectors.
    """

    w = blocking.CPU.lanes("float32")

    def parameters(buffer, index):
        return {(buffer, i + k) for i in index.tolist() for k in range(w if i % w == 0 else 1)}

    program = step(name)
    wrote = []
    for thread, each in enumerate(program.apart):
        mine = set()
        for op in own(each):
            for buffer, index, _ in plans.accesses(op, "float32")[1]:
                if buffer in ARENAS:
                    assert buffer == ARENAS[thread]
                    assert index.max(initial=0) < each.arena
                else:
                    mine |= parameters(buffer, index)
            for buffer, _, _ in plans.accesses(op, "float32")[0]:
                if buffer in ARENAS and op.kernel != "rows.combine":
                    assert buffer == ARENAS[thread]
        wrote.append(mine)
    assert not wrote[0] & wrote[1]
    alone = set()
    for op in step(name, threads=1).ops:
        for buffer, index, _ in plans.accesses(op, "float32")[1]:
            alone |= parameters(buffer, index) if buffer != "arena" else set()
    assert wrote[0] | wrote[1] == alone


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_teams(name, dtype, monkeypatch):
    """For them it is a sum in two parts, of which one waits in a place of its own, with barriers where they belong."""
    for threads in (1, 3):
        monkeypatch.setattr(plans, "THREADS", threads)
        monkeypatch.setattr(plans, "EVERYONE", (1 << threads) - 1)
        program = step(name, dtype, threads)
        (before,) = (op for op in program.ops if op.label == "forward, part 1")
        ((_, place, _),) = plans.accesses(before, dtype)[1]
        used = [each for op in program.ops for each in itertools.chain(*plans.accesses(op, dtype))]
        at = [index for buffer, index, _ in used if buffer == "arena" and np.isin(index, place).any()]
        assert len(at) == 2  # it is written, and read
        assert all(np.array_equal(np.unique(index), np.unique(place)) for index in at)
        assert max(index.max() for buffer, index, _ in used if buffer == "arena") < program.arena
        assert races(program.ops, dtype) == []


# --- the same bits --------------------------------------------------------------------------------------------------


def trained(name, optimizer="adam", dtype="float32", threads=1, uint8=False, zeros=False, weighted=False):
    """What two epochs with a short last batch leave."""
    model, rows = build(name, optimizer, dtype, threads)
    if uint8:
        model = fastnn.Sequential(
            [Input((NETWORKS[name][0],)), Rescaling(1 / 255), *plans.fresh(NETWORKS[name][3])],
            dtype=dtype,
            seed=3,
            n_threads=threads,
        )
        model.compile(plans.OPTIMIZERS[optimizer](), *NETWORKS[name][4:])
    samples = 6 * rows + 3
    rng = np.random.default_rng(1)
    x, y = plans.data(model, samples, NETWORKS[name][0])
    x = rng.integers(0, 256, x.shape).astype("uint8") if uint8 else x
    if zeros:
        x = x * (rng.random(x.shape) < 0.2).astype(x.dtype)
    weights = np.linspace(0, 2, samples) if weighted else None
    history = model.fit(x, y, batch_size=rows, epochs=2, verbose=0, sample_weight=weights, validation_data=(x, y))
    apart = [program._own_tables for program in model._programs._kept.values()]
    assert any(apart) == (threads == 2)
    padding = plans.padding(model._built(), model._built().params)
    assert (padding == 0).all()
    return [*model.get_weights(), model.predict(x, verbose=0), *history.history.values()]


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bits_are_those_of_one_thread(name, dtype):
    one = trained(name, dtype=dtype)
    for threads in (2, 3, 8):
        for a, b in zip(one, trained(name, dtype=dtype, threads=threads), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", ["inputs", "many inputs", "units", "units, one unit"])
@pytest.mark.parametrize(
    "variant",
    [
        *({"optimizer": optimizer} for optimizer in plans.OPTIMIZERS),
        {"uint8": True},
        {"zeros": True},
        {"zeros": True, "dtype": "float64"},
        {"weighted": True},
    ],
    ids=str,
)
def test_bits_of_variants(name, variant):
    for a, b in zip(trained(name, **variant), trained(name, threads=2, **variant), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_sum_in_parts_is_the_sum(name, monkeypatch):
    """Beside the step of a network whose sums are not parted; float64."""
    found = trained(name, dtype="float64", threads=2)
    monkeypatch.setattr(tensor_parallel, "find", lambda program: None)
    for a, b in zip(found, trained(name, dtype="float64"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_short_batch_is_divided_in_its_own_way():
    """Gradients in parts of a full batch must not lie where a short one, whose units are owned, has padding, which
    products that leave out zeros look at.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((532, 100)).astype("float32") * (rng.random((532, 100)) < 0.2)
    y = rng.standard_normal((532, 5)).astype("float32")

    def weights(threads):
        layers = [Input((100,)), Dense(128, "relu"), Dense(64, "relu"), Dense(5)]
        model = fastnn.Sequential(layers, seed=0, n_threads=threads)
        model.compile("adam", "mse")
        model.fit(x, y, batch_size=512, epochs=3, verbose=0)
        (program,) = model._programs._kept.values()
        record = program.run_record[0]
        assert record["apart"] == 0
        assert (record["short_apart"] != 0) == (threads == 2)
        network = model._built()
        assert all((plans.padding(network, buffer) == 0).all() for buffer in (network.params, *network.state))
        return model.get_weights()

    for a, b in zip(weights(1), weights(2), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", ["inputs", "units"])
def test_steps_one_by_one_and_batches_of_any_size(name):
    """`train_on_batch`-like steps share one arena: what is padding to one batch is padding to the next."""
    sizes = [8, 16, 5, 8, 40, 1, 16, 8]

    def weights(threads):
        model, _ = build(name, n_threads=threads)
        x, y = plans.data(model, sum(sizes), NETWORKS[name][0])
        starts = np.cumsum([0, *sizes])

        def batches():
            while True:
                for a, b in itertools.pairwise(starts):
                    yield x[a:b], y[a:b]

        model.fit(batches(), steps_per_epoch=2 * len(sizes), epochs=2, verbose=0)
        return model.get_weights()

    one = weights(1)
    for threads in (2, 3):
        for a, b in zip(one, weights(threads), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.usefixtures("networks")
def test_profile_counts_what_each_thread_does():
    """Rows are the operations of a thread; their multiply-adds are those of all threads."""
    model, rows = build("inputs", n_threads=2)
    x, y = plans.data(model, 4 * rows, 100)
    found = model.profile(x, y, batch_size=rows, seconds=0.01)
    program = step("inputs")
    by_name = {row.name: row for row in found.rows}
    summed = next(op for op in step("inputs", threads=1).ops if op.label == "forward")
    assert by_name["dense forward, part 1"].flops == 2 * rows * 100 * summed.fields["n"]
    assert by_name["dense forward, sum of parts"].flops == 0
    labels = [op.label.replace("sparse_categorical_", "") for op in own(program.apart[0])]
    labels.remove("gather weights")
    assert [row.operation for row in found.rows] == labels
    repeated = next(op for op in program.ops if op.layer == "dense_1" and op.label == "forward")
    assert by_name["dense_1 forward"].flops == 2 * costs.flops(repeated)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_are_those_of_the_operands(name, dtype):
    size = np.dtype(dtype).itemsize
    program = step(name, dtype)
    for op in (op for each in (program, *program.apart) for op in each.ops):
        reads, writes = plans.accesses(op, dtype)
        if op.record in (records.GATHER, records.LABELS, records.TOTAL):
            continue
        expected = sum(len(np.unique(index)) for _, index, _ in reads + writes) * size
        if op.kernel == "rows.combine":  # its bias is not counted
            expected -= len(reads[-1][1]) * size if op.epilogue.fields["bias"] else 0
        assert costs.moved(op, size) == expected, (op.layer, op.label)


def test_other_modes_own_nothing():
    model = plans.build("mlp")
    for mode in ("evaluate", "predict"):
        program = lower(model, mode, 8, 8)
        assert tensor_parallel.find(program) is None


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("name", ["many inputs", "units"])
def test_one_thread_in_turns_with_two(name, monkeypatch):
    """As `trial` alternates them: what one leaves in the arena, the other does not read."""
    alone = trained(name)
    ways = in_turns(monkeypatch)
    for a, b in zip(alone, trained(name, threads=2), strict=True):
        assert np.array_equal(a, b)
    assert min(ways.count(trial.TEAM), ways.count(trial.ONE)) > 3


def in_turns(monkeypatch):
    """Have a team and one thread do every other step; returns a list, to which each slice adds its way."""
    turns, ways = itertools.cycle((trial.TEAM, trial.ONE)), []
    monkeypatch.setattr(executable, "TOGETHER", 1 << 60)
    monkeypatch.setattr(trial.Trial, "_choose", lambda self: (next(turns), 1e-9))  # of a step
    monkeypatch.setattr(trial, "NEW", 1)
    monkeypatch.setattr(executable.Executable, "_slice", noted(executable.Executable._slice, ways))
    return ways


def noted(original, ways):
    """A method that writes down its first argument."""

    def method(self, way, *rest):
        ways.append(way)
        original(self, way, *rest)

    return method


def wide(threads):
    """A network with many inputs, and samples for it."""
    model = fastnn.Sequential([Input((3000,)), Dense(128, "relu"), Dense(10)], seed=0, n_threads=threads)
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    return model, rng.standard_normal((256, 3000), "float32"), rng.standard_normal((256, 10), "float32")


def test_products_that_are_cut_are_lent(monkeypatch):
    monkeypatch.setattr(blocking, "of_matrix", lambda *_: "gemm.gemm")  # as it is without zeros beyond the caches
    monkeypatch.setattr(blocking, "pays_tiles", lambda *_: False)
    (one, x, y), (two, _, _) = wide(1), wide(2)
    samples = training.checked(two, x, y)
    recipe = training.recipe(two, "train", samples.x_feed, samples.y_feed)
    program = recipe.lower(two.network, 64, 64)
    division.divide(program, "float32", 2)
    assert [op.kernel for each in program.apart for op in each.ops if op.helps] == ["gemm.gemm"] * 2
    one_by_one(two, samples, 64, [(0, 1), (1, 0), (1, 0), (0, 1)])
    one.fit(x, y, batch_size=64, shuffle=False, verbose=0)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_a_run_begins_with_all_tasks():
    """Whatever a process that was forked in the middle of a step has inherited."""
    found = []
    for threads in (1, 2):
        model, x, y = wide(threads)
        model.fit(x, y, batch_size=64, shuffle=False, verbose=0)
        for each in model._programs._kept.values():
            for claims in each._claims:
                claims.view(np.int64).fill(1)
        model.fit(x, y, batch_size=64, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


hidden = st.one_of(
    st.builds(
        Dense,
        st.sampled_from([1, 2, 17, 32, 48, 64, 70, 96]),
        st.sampled_from(["relu", "tanh"]),
        use_bias=st.booleans(),
    ),
    st.builds(Dropout, st.just(0.3)),
    st.builds(Activation, st.sampled_from(["sigmoid", "softmax"])),
)


@given(
    st.sampled_from([20, 40, 100, 201]),
    st.sampled_from([32, 48, 64, 128]),
    st.lists(hidden, max_size=4),
    st.integers(1, 5),
    st.integers(1, 33),
    st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bits_of_any_network(inputs, units, layers, outputs, rows, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3 * rows + 1, inputs)), rng.standard_normal((3 * rows + 1, outputs))

    def weights(threads):
        network = [Input((inputs,)), Dense(units, "relu"), *plans.fresh(layers), Dense(outputs)]
        model = fastnn.Sequential(network, seed=0, dtype=dtype, n_threads=threads)
        model.compile("adam", "mse")
        model.fit(x, y, batch_size=rows, epochs=2, verbose=0)
        return model.get_weights()

    one, two = weights(1), weights(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_batches_of_any_size_share_memory():
    """With and without owners."""
    model = fastnn.Sequential([Input((784,)), Dense(256, "relu"), Dense(10, "softmax")], n_threads=2)
    model.compile("adam", SPARSE)
    x, y = np.zeros((256, 784), "float32"), np.zeros(256, int)
    samples = training.checked(model, x, y)
    family = Family(training.recipe(model, "train", samples.x_feed, samples.y_feed), model._built())
    made = [family.get(rows) for rows in (256, 128, 32, 200, 16)]
    assert [len(each._own_tables) for each in made] == [0, 1, 1, 0, 1]
    assert len({id(each.arena) for each in made[1:]}) == 1  # the first one has no room for owners' sums
    assert len({id(each.apart) for each in made[1:]}) == 1
    assert made[1].apart.size <= made[1].arena.size
