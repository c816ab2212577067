"""What the machine is measured by: that the kernels do the work that is counted, and nothing that can be left out."""

import numpy as np
import pytest

from fastnn.cpu import ceilings, target
from fastnn.cpu.blocking import CPU, MR, NV, SIDE
from fastnn.cpu.memory import allocate
from fastnn.cpu.simd.amx import BLOCK, PAIRS, TILE

DTYPES = ("float32", "float64")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sum_gets_every_product(dtype, threads):
    width = NV * CPU.lanes(dtype)
    factors, tiles = allocate(width, dtype), allocate(threads * MR * width, dtype)
    factors[:] = np.arange(1, width + 1)
    tiles[:] = before = np.arange(tiles.size)
    ceilings.together("multiply_adds", dtype, threads, x=factors, y=tiles, n=7)()
    added = 7 * factors[0] * np.tile(factors, threads * MR)
    np.testing.assert_array_equal(tiles, before + added)


@pytest.mark.parametrize("dtype", DTYPES)
def test_work_is_counted(dtype):
    """As many operations as the tile has elements, times two, for each step and thread."""
    _, work = ceilings.multiplier(dtype, 2, steps=10)
    assert work == 2 * MR * NV * CPU.lanes(dtype) * 10 * 2
    _, work = ceilings.copiers(1, size=64 << 20)
    assert work == 2 * 64 << 20
    _, work = ceilings.copiers(1, size=1 << 20)
    assert work == 2 * ceilings.COPIED, "a small array, many times"
    _, work = ceilings.copiers(2, size=1 << 20)
    assert work == 16 * ceilings.COPIED


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["copy_stored", "copy_streamed"])
def test_copies_are_copies(name, threads):
    x, y = allocate(10 * ceilings.BLOCK, "float32"), allocate(11 * ceilings.BLOCK, "float32")
    x[:] = np.random.default_rng(0).standard_normal(x.size)
    ceilings.together(name, "float32", threads, x=x, y=y, n=x.size, rows=1)()
    np.testing.assert_array_equal(y[: x.size], x)
    assert not y[x.size :].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_figures_are_plausible(threads):
    single, double = (ceilings.fma_peak(dtype, threads) for dtype in DTYPES)
    assert 1e9 < double < 1.5 * single < 1e15  # twice the lanes, less what other processes take meanwhile
    assert 1e8 < ceilings.copy_bandwidth(threads, size=16 << 20) < 1e13


def test_the_peak_is_above_any_product():
    """One core cannot do more than its ceiling: what a product reaches beside it is less, whatever the machine does."""
    import fastnn

    a = np.ones((256, 256), np.float32)
    out = np.empty_like(a)
    call, work = ceilings.multiplier("float32", 1, steps=100_000)
    threads = fastnn.get_num_threads()
    fastnn.set_num_threads(1)
    try:
        rates = [
            (work / ceilings.fastest(call), 2 * 256**3 / ceilings.fastest(lambda: fastnn.matmul(a, a, out)))
            for _ in range(3)
        ]
    finally:
        fastnn.set_num_threads(threads)
    assert max(product for _, product in rates) < 1.05 * max(peak for peak, _ in rates)


@pytest.mark.skipif(not target.may_use_tiles(), reason="there is no matrix unit")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_matrix_unit_does_every_product(threads):
    ones = np.zeros(BLOCK, np.uint32)
    ones[: 2 * TILE] = 0x3F803F80  # two bfloat16, in the first part only
    factors, sums = allocate(BLOCK, "float32"), allocate(threads * SIDE * SIDE, "float32")
    factors[:] = ones.view(np.float32)
    ceilings.together("block_products", "float32", threads, x=factors, y=sums, n=7)()
    assert (sums == 7 * 2 * PAIRS).all()
    assert 1e9 < ceilings.tile_peak(threads) < 1e14


def test_work_on_the_matrix_unit_is_counted(monkeypatch):
    """Two operations for each product of elements of two blocks; none where it may not be used."""
    done = []
    monkeypatch.setattr(ceilings, "together", lambda *_, n, **__: done.append(n))
    monkeypatch.setattr(ceilings, "fastest", lambda *_: 1.0)
    monkeypatch.setattr(target, "may_use_tiles", lambda: True)
    assert ceilings.tile_peak(3) == 3 * done[0] * 2 * SIDE * SIDE * 2 * PAIRS
    monkeypatch.setattr(target, "may_use_tiles", lambda: False)
    assert ceilings.tile_peak() == 0
