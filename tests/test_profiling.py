"""Profiles: what they measure, what they count, that they leave the model alone, and their table and picture."""

import json
import sys
import time

import numpy as np
import pytest
import test_plan as plans

import fastnn
from fastnn import costs, records, training
from fastnn.cpu import division, executable, parts, target
from fastnn.layers import Activation, Dense, Dropout, Input, Rescaling
from fastnn.profiling import Profile, Row

QUICK = 0.005  # seconds


@pytest.fixture
def small_steps_in_teams(monkeypatch):
    monkeypatch.setattr(executable, "ALONE", 0)
    monkeypatch.setattr(executable, "TOGETHER", 0)
    monkeypatch.setattr(executable, "AWAKE", 0)


@pytest.fixture
def peaks(monkeypatch):
    """Given instead of measured, which takes a second."""

    def given(dtype, threads, size, *, tiled=False):
        return threads * 1e11, threads * 3e11 * tiled, threads * 2e10

    monkeypatch.setattr(executable, "peaks", given)


def build(n_threads=1, optimizer="adam", **arguments):
    layers = [Input((12,)), Dense(24, "tanh"), Dropout(0.2), Dense(3, "softmax")]
    model = fastnn.Sequential(layers, seed=1, n_threads=n_threads, **arguments)
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    return model


def samples(n=64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 12)), rng.integers(0, 3, n)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("peaks")
def test_rows_of_training():
    found = build().profile(*samples(), batch_size=16, sample_weight=np.ones(64), seconds=QUICK)
    assert [row.name for row in found.rows] == [
        "input gather x",
        "dense forward",
        "dropout forward",
        "dense_1 forward",
        "loss gather y",
        "loss gather weights",
        "loss loss and gradient",
        "metrics accuracy",
        "dense_1 input gradient",
        "dropout gradient",
        "dense activation gradient",
        "dense_1 gradients + adam",
        "dense gradients + adam",
        "loss sum",
        "metrics sum of accuracy",
    ]
    assert (found.mode, found.batch, found.dtype, found.threads) == ("train", 16, "float32", 1)
    assert list(found.layers) == ["input", "dense", "dropout", "dense_1", "loss", "metrics"]
    assert found.layers["loss"] == sum(row.seconds for row in found.rows if row.layer == "loss")


@pytest.mark.usefixtures("peaks")
def test_rows_of_predict():
    layers = [Input((12,)), Rescaling(0.5), Activation("tanh", name="squash"), Dense(3, "softmax", name="last")]
    model = fastnn.Sequential(layers, dtype="float64")
    found = model.profile(samples()[0], seconds=QUICK)
    names = ["input gather x", "squash forward", "last forward", "last softmax", "output write"]
    assert [row.name for row in found.rows] == names
    assert (found.mode, found.batch, found.dtype) == ("predict", 64, "float64")


def test_every_operation_has_a_name():
    for name in plans.NETWORKS:
        for mode in ("train", "evaluate", "predict"):
            program = plans.lower(plans.build(name), mode, 8, 8)
            assert all(op.layer and op.label for op in program.ops)
            assert len({(op.layer, op.label) for op in program.ops}) == len(program.ops)


# --- what it costs --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("peaks")
def test_costs_worked_example():
    """784-256-10 at batch 256, by hand; rows of float32 are padded to whole vectors, and tanh leaves no zeros."""
    model = fastnn.Sequential([Input((784,)), Dense(256, "tanh"), Dense(10, "softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    found = model.profile(np.ones((256, 784), "uint8"), np.zeros(256), batch_size=256, seconds=QUICK)
    rows = {row.name: row for row in found.rows}
    lanes = fastnn.backend.get("cpu").pad("float32")(2)
    ten = -(-10 // lanes) * lanes
    assert rows["input gather x"].bytes == 256 * 784 * (1 + 4) + 256 * 8
    assert rows["dense forward"].flops == rows["dense gradients + adam"].flops == 2 * 256 * 784 * 256
    assert rows["dense forward"].bytes == 4 * (256 * 784 + 784 * 256 + 256 + 256 * 256)
    assert rows["dense gradients + adam"].bytes == 4 * (256 * 784 + 256 * 256 + 6 * 785 * 256)
    assert rows["dense_1 forward"].flops == 2 * 256 * 256 * ten
    assert rows["loss sum"].bytes == 4 * 256 + 8
    assert rows["loss loss and gradient"].flops == 0


OWN = (records.GATHER, records.LABELS)  # what these read lies in the caller's arrays, which `accesses` leaves out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", plans.NETWORKS)
def test_bytes_are_those_of_the_operands(name, dtype):
    """Counted here by the elements that each record makes a kernel touch."""
    size = np.dtype(dtype).itemsize

    def touched(parts):
        bytes_of = {"totals": 8}
        return sum(len(np.unique(index)) * bytes_of.get(buffer, size) for buffer, index, _ in parts)

    for mode in ("train", "evaluate", "predict"):
        for op in plans.lower(plans.build(name, dtype=dtype), mode, 7, 7).ops:
            reads, writes = plans.accesses(op, dtype)
            expected = touched(reads) + touched(writes)
            if op.record in OWN:
                source = {"float32": 4, "float64": 8}.get(op.kernel.rpartition("_")[2], 8)
                expected += 7 * 8 + 7 * op.fields.get("cols", 1) * source
            assert costs.moved(op, size) == expected, (mode, op.layer, op.label)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_of_gradients_in_parts(dtype, monkeypatch):
    """Each part reads its rows of the batch, and the update reads both."""
    monkeypatch.setattr(parts, "LEAST", 0)
    size = np.dtype(dtype).itemsize
    program = plans.lower(plans.build("mlp", dtype=dtype), "train", 64, 64)
    before = sum(map(costs.flops, program.ops))
    division.divide(program, dtype, 1)
    assert sum(map(costs.flops, program.ops)) == before
    changed = [op for op in program.ops if "part" in op.fields or op.record is records.UPDATE]
    assert len(changed) == 5
    for op in changed:
        reads, writes = plans.accesses(op, dtype)
        expected = sum(len(np.unique(index)) for _, index, _ in reads + writes) * size
        assert costs.moved(op, size) == expected, op.label


def test_unknown_records_are_refused():
    with pytest.raises(NotImplementedError, match="crowd.shout moves is not known: its record is Record\\('shout'\\)"):
        costs.moved(plans.Op("crowd.shout", records.Record("shout"), {}), 4)


# --- the engine with a clock ----------------------------------------------------------------------------------------


def program_of(model, batch=8):
    checked = training.checked(model, *samples(batch))
    return training.recipe(model, "train", checked.x_feed, checked.y_feed).lower(model.network, batch, batch)


def prepared(model, n=256, batch=8):
    checked = training.checked(model, *samples(n))
    program = training.executable(model, "train", n, batch, checked.x_feed, checked.y_feed)
    checked.bind(program)
    return program, model._compiled()[1].rates(n // batch)


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_timed_engine_computes_the_same_bits(threads):
    weights = []
    for timed in (False, True):
        model = build(threads)
        program, rates = prepared(model)
        if timed:
            times = program.timed(32, rate=rates, seed=model.dropout_seed)
            assert times.shape == (threads, 32, len(program_of(model).ops) + 1, 2)
        else:
            program.run(256, rate=rates, seed=model.dropout_seed)
        weights.append([w.tobytes() for w in model.get_weights()])
        assert program.progress[0] == 32
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [1, 2])
def test_times_add_up_to_what_the_run_took(threads):
    model = build(threads)
    program, rates = prepared(model, n=80_000)
    program.timed(10_000, rate=rates)
    began = time.perf_counter()
    times = program.timed(10_000, rate=rates)
    wall = time.perf_counter() - began
    assert (times >= 0).all()
    total = times[..., :-1, :].sum(axis=(1, 2, 3)) + times[..., -1, :].sum(axis=(1, 2))
    assert (total <= wall).all()
    assert (total >= 0.5 * wall).all()  # the rest is a few slices' worth of Python and storing times
    divided = program_of(model)
    division.divide(divided, "float32", threads)
    barriers = [op.barrier for op in divided.ops]
    waited = times[:, :, :-1, 0].any(axis=(0, 1))
    assert [bool(w) for w in waited] == barriers, "waiting is where barriers are"


def test_the_ordinary_engine_is_back_after_it():
    model = build()
    program, rates = prepared(model)
    times = program.timed(32, rate=rates)
    before = times.copy()
    program.run(256, rate=rates)
    np.testing.assert_array_equal(times, before)
    assert program._enter is not None
    model.fit(*samples(), verbose=0)


# --- the model ------------------------------------------------------------------------------------------------------


def state_of(model):
    """All that training could change."""
    network = model.network
    return {
        "weights": network.params.tobytes(),
        "states": [state.tobytes() for state in network.state],
        "iterations": model.optimizer.iterations,
        "shuffling": model.shuffle_rng.bit_generator.state,
        "initialising": model._init_rng.bit_generator.state,
        "history": model.history,
        "network": network,
        "programs": list(model._programs._kept),
        "stop": model.stop_training,
    }


@pytest.mark.usefixtures("peaks")
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_model_does_not_change(optimizer, fitted):
    model = build(optimizer=optimizer)
    if fitted:
        model.fit(*samples(), verbose=0)
    before = state_of(model)
    model.profile(*samples(), seconds=QUICK)
    model.profile(samples()[0], seconds=QUICK)
    assert state_of(model) == before
    twin = build(optimizer=optimizer)
    for each in (model, twin):
        each.fit(*samples(), epochs=2 - (fitted and each is model), verbose=0)
    assert [w.tobytes() for w in model.get_weights()] == [w.tobytes() for w in twin.get_weights()]


@pytest.mark.usefixtures("peaks")
def test_an_unbuilt_model_stays_unbuilt():
    models = [fastnn.Sequential([Dense(4, "relu"), Dense(1)], seed=5) for _ in range(2)]
    x, y = np.ones((40, 3)), np.ones(40)
    for model in models:
        model.compile("adam", "mse")
    models[0].profile(x, y, seconds=QUICK)
    models[0].profile(x, seconds=QUICK)
    assert models[0].network is None
    for model in models:
        model.fit(x, y, verbose=0)
    assert [w.tobytes() for w in models[0].get_weights()] == [w.tobytes() for w in models[1].get_weights()]


@pytest.mark.usefixtures("peaks")
def test_the_user_s_arrays_do_not_change():
    x, y = samples()
    before = x.tobytes(), y.tobytes()
    build().profile(x, y, seconds=QUICK)
    assert (x.tobytes(), y.tobytes()) == before


# --- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("peaks")
@pytest.mark.parametrize("allowed", [True, False])
def test_floors_on_the_matrix_unit(allowed, monkeypatch):
    """Of the products that it does, and only these; where it does none, nothing is said of it."""
    on_tiles = allowed and target.may_use_tiles()
    monkeypatch.setattr(target, "may_use_tiles", lambda: on_tiles)
    model = fastnn.Sequential([Input((512,)), Dense(1024, "relu"), Dense(1)], seed=0, n_threads=1)
    model.compile("sgd", "mse")
    found = model.profile(np.ones((128, 512)), np.ones(128), batch_size=128, seconds=0.05)
    assert found.tile_peak == 3e11 * on_tiles
    assert ("matrix unit" in str(found)) == on_tiles
    for row in found.rows:
        large = row.flops > 1e8
        assert row.floor == max(row.flops / (3e11 if large and on_tiles else 1e11), row.bytes / 2e10)
    assert sum(row.flops > 1e8 for row in found.rows) >= 1


def test_times_and_shares():
    """A layer of 268 MFLOP beside one of 786 thousand takes most of the time; sums and floors are consistent."""
    model = fastnn.Sequential([Input((512,)), Dense(1024, "relu"), Dense(1)], seed=0, n_threads=1)
    model.compile("sgd", "mse")
    found = model.profile(np.ones((128, 512)), np.ones(128), batch_size=128, seconds=0.05)
    assert found.layers["dense"] > 0.7 * sum(found.layers.values())
    assert found.steps >= 8
    assert found.waiting == 0
    assert sum(row.seconds for row in found.rows) + found.rest == pytest.approx(found.step)
    for row in found.rows:
        tiled = found.tile_peak and row.flops > 1e8
        peak = found.tile_peak if tiled else found.peak
        assert row.floor == pytest.approx(max(row.flops / peak, row.bytes / found.bandwidth))
        assert row.gap == row.seconds - row.floor
    forward = found.rows[1]
    assert (forward.name, forward.bound) == ("dense forward", "arithmetic")
    assert forward.rate == forward.flops / forward.seconds
    assert 0.05 < forward.share < 1.5, "of what the machine can do; other processes may have disturbed the peak"


@pytest.mark.usefixtures("small_steps_in_teams", "peaks")
def test_waiting_has_a_line_of_its_own():
    two, one = (build(threads).profile(*samples(), seconds=QUICK) for threads in (2, 1))
    assert two.threads == 2
    assert two.waiting > 0
    assert "waiting at barriers" in str(two)
    assert "waiting at barriers" not in str(one)


@pytest.mark.usefixtures("peaks")
def test_small_steps_run_on_one_thread():
    assert build(n_threads=2).profile(*samples(), seconds=QUICK).threads == 1


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors():
    x, y = samples()
    model = fastnn.Sequential([Dense(3)])
    with pytest.raises(RuntimeError, match="the model is not compiled"):
        model.profile(x, y)
    with pytest.raises(ValueError, match="sample_weight needs y"):
        model.profile(x, sample_weight=np.ones(64))
    model = build()
    with pytest.raises(ValueError, match="x must have shape \\(n, 12\\), got \\(64, 11\\)"):
        model.profile(x[:, 1:], y)
    with pytest.raises(ValueError, match="one entry for each of the 64 samples"):
        model.profile(x, y[1:])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.profile(x, y, batch_size=0)
    with pytest.raises(ValueError, match="seconds must be a finite number > 0, got 0"):
        model.profile(x, y, seconds=0)


# --- the table, the dict and the picture ----------------------------------------------------------------------------


def example(threads=2):
    rows = (
        Row("input", "gather x", 20e-6, 0, 400_000, "memory", 10e-6),
        Row("dense", "forward", 100e-6, 8_000_000, 100_000, "arithmetic", 80e-6),
        Row("loss", "sum", 0.0, 0, 136, "memory", 1e-9),
    )
    return Profile(
        "net", "train", 32, "float32", threads, 500, rows, 30e-6 * (threads > 1), 160e-6, 1e11, 4e10, 3 << 20
    )


TABLE = """\
Profile of 'net': training step of 32 rows, float32, 2 threads, medians of 500 steps
---------------------------------------------------------------------------------------------------
Layer  Operation               us  of step          rate  bound by    floor us  gap us  of peak
---------------------------------------------------------------------------------------------------
input  gather x              20.0    12.5%  20.0 GB/s     memory          10.0    10.0      50%
dense  forward              100.0    62.5%  80.0 GFLOP/s  arithmetic      80.0    20.0      80%
loss   sum                    0.0     0.0%                memory           0.0    -0.0
       waiting at barriers   30.0    18.8%
       rest: interruptions   10.0     6.3%
---------------------------------------------------------------------------------------------------
       step                 160.0   100.0%
---------------------------------------------------------------------------------------------------
input 20.0, dense 100.0, loss 0.0 us
peaks, measured before and after: 100 GFLOP/s, and 40.0 GB/s copied among 3 MiB"""


def test_table():
    lines = str(example()).splitlines()
    rule = "-" * max(len(line) for line in lines[2:11] if not line.startswith("-"))
    assert lines == [rule if line.startswith("---") else line for line in TABLE.splitlines()]
    assert repr(example()) == str(example())


def test_to_dict_is_json():
    found = json.loads(json.dumps(example().to_dict()))
    assert found["step"] == 160e-6
    assert found["rows"][1] == {
        "layer": "dense",
        "operation": "forward",
        "seconds": 100e-6,
        "flops": 8_000_000,
        "bytes": 100_000,
        "bound": "arithmetic",
        "floor": 80e-6,
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_picture(threads, tmp_path):
    pytest.importorskip("matplotlib")
    found = example(threads)
    figure = found.plot(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes()[:4] == b"\x89PNG"
    (axis,) = figure.axes
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == pytest.approx([20, 100, 0, 30][: 2 + threads])
    floors = [line.get_xdata()[0] for line in axis.lines if len({*line.get_xdata()}) == 1]
    assert floors == pytest.approx([10, 80, 1e-3])
    texts = [text.get_text() for text in axis.texts]
    assert "100 µs, 80% of the peak" in texts
    assert {"input", "dense", "loss"} <= set(texts)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("waiting at barriers" in legend) == (threads > 1)
    assert legend[-1] == "floor at the measured peaks, 100 GFLOP/s or 40 GB/s"


def test_nothing_is_cut_off(tmp_path):
    """All text lies inside the picture."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = example().plot(tmp_path / "profile.png")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    for text in [*figure.axes[0].texts, *figure.axes[0].get_yticklabels(), *figure.legends[0].get_texts()]:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_picture_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="Profile.plot needs matplotlib.*fastnn\\[plot\\]"):
        example().plot()
