"""The GPU probe's kernels, run thread by thread as Python."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="the probe's kernels need numba-cuda: pip install fastnn[cuda13]")
pytest.importorskip("greenlet", reason="the simulator needs greenlet")

from benchmarks.gpu import barriers, epoch, epoch_kernel, gemm_mma, gemm_simt, gemm_wgmma, launches
from benchmarks.gpu.products import Product, from_bf16, to_bf16
from tests import cuda_simulator as simulator

NUMBERS = {"int32": int, "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64, "float32": np.float32}
NUMBERS |= {"uint8": np.uint8}


@pytest.fixture
def simulated(monkeypatch):
    """A function that gives a module the simulator for Numba and the instructions; returns the grid to run on."""

    def replace(module):
        grid = simulator.Grid()
        stand_ins = NUMBERS | {"cuda": grid, "ptx": simulator.Ptx(), "hopper": simulator.Hopper()}
        for name, stand_in in stand_ins.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
        return grid

    return replace


def tile(m, n, k, *, whole=False):
    rng = np.random.default_rng([m, n, k])
    if whole:
        return [rng.integers(-2, 3, shape).astype(np.float32) for shape in ((m, k), (k, n))]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n))]


def error(c, a, b):
    expected = a.astype(np.float64) @ b.astype(np.float64)
    return np.max(np.abs(c - expected)) / np.max(np.abs(expected))


def test_float32_product(simulated, monkeypatch):
    grid = simulated(gemm_simt)
    g = gemm_simt
    product = g.ptx.tile_product(g.KC, g.LDA, g.LDB, g.PIECE_A, g.PIECE_B)
    monkeypatch.setattr(g, "product", product)
    monkeypatch.setattr(g, "store_tile", g.ptx.store_tile(g.PIECE_A, g.PIECE_B))
    m, n, k = 256, 128, 48
    a, b = tile(m, n, k)
    c = np.full(m * n, np.nan, np.float32)
    grid.run(g.sgemm, (n // g.NC, m // g.MC, 1), g.THREADS, (a.ravel(), b.ravel(), c, n, k))
    assert error(c.reshape(m, n), a, b) < 1e-6


@pytest.mark.parametrize(
    ("way", "split", "steps", "least", "most"),
    [  # one with more steps than stages: they differ in nothing that has to do with steps
        ("round_tf32", False, 4, 1e-5, 5e-4),
        ("float_bits", False, 1, 1e-5, 1e-3),
        ("round_tf32", True, 1, 0, 1e-6),
    ],
    ids=["rounded", "cut off", "split"],
)
def test_tf32_product(simulated, way, split, steps, least, most):
    grid = simulated(gemm_mma)
    g = gemm_mma
    m, n, k = 128, 128, steps * g.KC
    a, b = tile(m, n, k)
    c = np.full(m * n, np.nan, np.float32)
    kernel = g.make(getattr(g.ptx, way), split)
    grid.run(kernel, (1, 1, 1), g.THREADS, (a.ravel(), b.ravel(), c, n, k), g.SHARED)
    assert least <= error(c.reshape(m, n), a, b) < most


@pytest.mark.parametrize("transposed", [False, True], ids=["(out, in)", "(in, out)"])
@pytest.mark.parametrize("columns", [128, 256])
def test_bf16_product(simulated, columns, transposed):
    grid = simulated(gemm_wgmma)
    g = gemm_wgmma
    m, n, k = 256, columns, (g.stages(columns) + 2) * g.KC  # every stage is used, some twice
    a, b = tile(m, n, k, whole=True)
    right = b if transposed else np.ascontiguousarray(b.T)
    boxes = (g.KC, 64) if transposed else (columns, g.KC)
    maps = [simulator.TensorMap(to_bf16(a), g.MC, g.KC), simulator.TensorMap(to_bf16(right), *boxes)]
    c = np.full(m * n // 2, 0xFFFFFFFF, np.uint32)
    kernel = g.make(columns, transposed)
    grid.run(kernel, (2, 1, 1), g.THREADS, (*maps, c, n, k), g.shared_bytes(columns))
    expected = from_bf16(to_bf16((a.astype(np.float64) @ b).astype(np.float32)))
    np.testing.assert_array_equal(from_bf16(c.view(np.uint16)).reshape(m, n), expected)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kernel", [barriers.by_group, barriers.by_counter], ids=["grid group", "counter"])
def test_barriers(simulated, kernel, seed):
    grid = simulated(barriers)
    blocks, steps = 5, 7
    slots, counter, wrong = np.zeros(2 * blocks, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    grid.run(kernel, (blocks, 1, 1), 2, (slots, counter, wrong, steps, 1), seed=seed)
    assert wrong[0] == 0
    np.testing.assert_array_equal(slots.reshape(2, blocks), [[7] * blocks, [6] * blocks])


def test_a_missing_barrier_is_seen(simulated, monkeypatch):
    grid = simulated(barriers)
    monkeypatch.setattr(grid.cg, "this_grid", lambda: type("Free", (), {"sync": lambda self: None})())
    slots, counter, wrong = np.zeros(10, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    grid.run(barriers.by_group, (5, 1, 1), 2, (slots, counter, wrong, 7, 1))
    assert wrong[0] > 0


def test_threads_that_wait_for_ever_are_an_error(simulated):
    grid = simulated(barriers)
    counter = np.full(1, -1, np.int32)  # one arrival short
    with pytest.raises(RuntimeError, match="threads wait for ever"):
        grid.run(barriers.by_counter, (2, 1, 1), 2, (np.zeros(4), counter, np.zeros(1), 1, 0))


def test_increments(simulated):
    grid = simulated(launches)
    a = np.zeros(launches.SIZE, np.float32)
    grid.run(launches.increment, (1, 1, 1), launches.THREADS, (a, 3))
    grid.run(launches.increment_in_turn, (2, 1, 1), launches.THREADS, (a, 2))
    np.testing.assert_array_equal(a, 5)


@pytest.mark.parametrize("reduction", ["atomic", "ordered"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epoch(simulated, optimizer, reduction):
    grid = simulated(epoch_kernel)
    blocks, steps = 3, 5
    shape = epoch_kernel.Shape(32, 2, optimizer, reduction, pixels=48, classes=3, threads=64)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, shape.pixels), np.uint8)
    y = rng.integers(0, shape.classes, len(x)).astype(np.uint8)
    order = rng.permutation(len(x))[: steps * shape.batch].astype(np.int32)
    hidden = blocks * shape.units
    begin = epoch.initial(shape.pixels, hidden, shape.classes)
    logits = shape.batch * shape.classes
    exchange = np.zeros(logits * (blocks + 1 if reduction == "ordered" else epoch_kernel.SLOTS), np.float32)
    p = epoch.flat(begin)
    m, v = np.zeros_like(p), np.zeros_like(p)
    counter, losses = np.zeros(1, np.int32), np.zeros(blocks * shape.threads, np.float32)
    schedule = epoch.schedule(optimizer, steps).ravel()
    arguments = (x.ravel(), y, order, schedule, p, m, v, exchange, counter, losses, steps, hidden)
    grid.run(epoch_kernel.make(shape), (blocks, 1, 1), shape.threads, arguments, shape.dynamic)
    expected, loss = epoch.reference(x, y, order, begin, shape.batch, optimizer)
    assert epoch.error_of(p, begin, expected) < 1e-5
    assert abs(losses.sum() / loss - 1) < 1e-6
    assert epoch.error_of(epoch.flat(begin), begin, expected) == 1


def test_the_reference_is_the_gradient_of_its_loss():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (8, 16), np.uint8), rng.integers(0, 3, 8)
    begin, order = epoch.initial(16, 4, 3), np.arange(8)
    after, _ = epoch.reference(x, y, order, begin, 8, "sgd")
    for layer, direction in enumerate(begin):
        step = rng.standard_normal(direction.shape)
        values = []
        for sign in (1, -1):
            moved = [e + sign * 1e-5 * step if i == layer else e.astype(np.float64) for i, e in enumerate(begin)]
            values.append(epoch.reference(x, y, order, moved, 8, "sgd")[1] / 8)
        gradient = (begin[layer] - after[layer]) / epoch.RATES["sgd"]
        slope = (values[0] - values[1]) / 2e-5
        assert abs(slope - float(np.sum(gradient * step))) < 1e-5 * max(1, abs(slope))


def test_errors_of_products():
    product = Product(64)
    assert product.error(product.expected, "float32") == 0
    assert product.error(product.expected + np.max(np.abs(product.expected)) / 8, "tf32") == pytest.approx(1 / 8)
    assert product.error(np.full((64, 64), np.nan), "float32") == np.inf
    whole = Product(64, whole=True)
    found = whole.expected.astype(np.float32)
    found[3, 4] += 1
    assert whole.wrong(found, "float32") == 1
    assert len(Product(4096).rows) == 64
