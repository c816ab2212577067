"""The matrix product's kernels: every tile edge, layout and share of the work, against float64."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from guard import ENDS, Guarded, guarded, linux

from fastnn import records
from fastnn.cpu import blocking, immediate, target
from fastnn.cpu.blocking import MR
from fastnn.cpu.memory import address
from fastnn.records import RUN

DTYPES = ("float32", "float64")
LAYOUTS = ("plain", "transposed", "gaps", "backwards")


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def strides(shape, layout):
    """Element strides of a matrix; `gaps` are between all elements, `backwards` runs along both axes."""
    rows, cols = shape
    return {
        "plain": (max(cols, 1), 1),
        "padded": (cols + 3, 1),
        "transposed": (1, max(rows, 1)),
        "gaps": (3 * cols + 2, 3),
        "backwards": (-max(cols, 1), -1),
    }[layout]


def place(values, layout, end="end"):
    return Guarded(values, end, strides(values.shape, layout))


def widths(dtype):
    w, nr = CPU.lanes(dtype), blocking.columns(dtype)
    return w, nr, max(blocking.depth(dtype, 1 << k) for k in range(20))


CPU = target.host()


def reference(a, b, bias=None):
    """The product in float64, and the bound k eps |A| |B| on the error of any order of summation in the dtype."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    expected, size = wide_a @ wide_b, np.abs(wide_a) @ np.abs(wide_b)
    if bias is not None:
        expected, size = expected + bias, size + np.abs(bias)
    info = np.finfo(a.dtype)
    return expected, size * (a.shape[1] + 1) * info.eps + info.tiny


def check(a, b, layouts=("plain", "plain", "plain"), bias=None, end="end"):
    """One product with all operands against unreadable pages."""
    ga, gb = place(a, layouts[0], end), place(b, layouts[1], end)
    out = place(np.full((len(a), b.shape[1]), 7.0, a.dtype), layouts[2], end)
    vector = None if bias is None else guarded(bias, end)
    immediate.gemm(ga.array, gb.array, out.array, vector, "linear", 0.0, 1)
    expected, bound = reference(a, b, bias)
    assert (np.abs(out.array - expected) <= bound).all()
    out.assert_gaps_untouched()
    np.testing.assert_array_equal(ga.array, a)
    np.testing.assert_array_equal(gb.array, b)


# --- every edge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 2, MR - 1, MR, MR + 1, 2 * MR + 3, 4 * MR, 4 * MR + 1, 8 * MR + 1])
def test_edges(m, dtype):
    w, nr, kc = widths(dtype)
    # A different combination of layouts, bias and end for each shape: all of them meet all edges.
    choices = itertools.cycle(itertools.product(LAYOUTS, LAYOUTS, LAYOUTS, (True, False), ENDS))
    columns = (0, 1, w - 1, w, w + 1, nr - 1, nr, nr + 1, 2 * nr + 3)
    for n, k in itertools.product(columns, (0, 1, w + 1, kc - 1, kc, kc + 1)):
        for *layouts, with_bias, end in itertools.islice(choices, 3):
            bias = random(n, dtype, 3) if with_bias else None
            check(random((m, k), dtype, 1), random((k, n), dtype, 2), layouts, bias, end)


@linux
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("m", [1, MR + 1, 4 * MR + 3])
def test_layouts(m, end, dtype):
    w, nr, _ = widths(dtype)
    for k, n in ((w + 1, nr + w + 1), (2 * w, nr), (1, 1), (3, w)):
        a, b, bias = random((m, k), dtype, 1), random((k, n), dtype, 2), random(n, dtype, 3)
        for layouts in itertools.product((*LAYOUTS, "padded"), repeat=3):
            check(a, b, layouts, bias, end)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "transposed", "padded", "gaps"])
def test_one_row(layout, dtype):
    w, _, _ = widths(dtype)
    for k in (0, 1, w - 1, w, w + 1, 4 * w - 1, 4 * w, 4 * w + 1, 9 * w + 2):
        for n in (1, w, 8 * w - 1, 8 * w, 8 * w + 1, 17 * w + 3):
            for end in ENDS:
                check(random((1, k), dtype, 1), random((k, n), dtype, 2), ("plain", layout, "plain"), None, end)


def test_one_row_has_kernels_of_its_own():
    assert blocking.of_row(1, 1, 640, 1) == "gemv.gemv_rows"
    assert blocking.of_row(1, 1, 1, 640) == "gemv.gemv_columns"
    assert blocking.of_row(1, 3, 1, 640) is None  # a dot product would read A's gaps
    assert blocking.of_row(2, 1, 640, 1) is None


def test_products_that_are_not_cut(monkeypatch):
    monkeypatch.setattr(target, "caches", lambda: {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20})
    assert blocking.of_matrix(256, 64, 64, "float32", 1) == "small.fused"
    assert blocking.of_matrix(256, 64, 256, "float32", 1) == "small.fused"
    assert blocking.of_matrix(256, 64, 257, "float32", 1) == "gemm.gemm"  # 256 KiB and more
    assert blocking.of_matrix(256, 64, 256, "float64", 1) == "gemm.gemm"
    assert blocking.of_matrix(1, 1, 10_000, "float32", 1) == "gemm.gemm"  # a panel deeper than the first-level cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_slim_products(dtype):
    w, rows = CPU.lanes(dtype), blocking.TILES * MR
    assert blocking.of_matrix(rows, w, 10, dtype, 1) == "small.slim"
    assert blocking.of_matrix(rows + 1, w, 10, dtype, 1) == "small.fused"
    assert blocking.of_matrix(rows, w + 1, 10, dtype, 1) == "small.fused"
    assert blocking.of_matrix(rows, w, 10, dtype, 16) == "small.fused"  # rows of B are not contiguous
    assert blocking.of_matrix(rows, w, 1 << 20, dtype, 1) == "gemm.gemm"


# --- products that are not cut --------------------------------------------------------------------------------------


def products_by(kernel, monkeypatch, **fields):
    """Every product by one kernel of small networks."""
    of_row = blocking.of_row
    monkeypatch.setattr(blocking, "of_row", lambda *shape: of_row(*shape) or kernel)
    monkeypatch.setattr(
        blocking, "blocks", lambda m, n, k, dtype, *how: {**blocking.whole(m, n, k, dtype, 1), "pack": 0, **fields}
    )
    immediate.layout.cache_clear()
    yield
    immediate.layout.cache_clear()


@pytest.fixture
def by_small_fused(monkeypatch):
    yield from products_by("small.fused", monkeypatch)


@pytest.fixture
def by_small_fused_in_teams(monkeypatch):
    yield from products_by("small.fused", monkeypatch, touched=1)


@pytest.fixture
def by_small_slim(monkeypatch):
    monkeypatch.setattr(immediate, "turned", lambda *operands: False)  # that would exchange m and n
    yield from products_by("small.slim", monkeypatch)


@linux
@pytest.mark.usefixtures("by_small_fused")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 4, 5, 8, 9, 13, 15, 16, 31, 57, 58])
def test_small_edges(m, dtype):
    w, nr, _ = widths(dtype)
    choices = itertools.cycle(itertools.product(LAYOUTS, LAYOUTS, LAYOUTS, (True, False), ENDS))
    for n, k in itertools.product((0, 1, w - 1, w, w + 1, nr, nr + 1, 2 * nr + 3), (0, 1, 2, w + 1, 3 * w)):
        for *layouts, with_bias, end in itertools.islice(choices, 9):
            bias = random(n, dtype, 3) if with_bias else None
            check(random((m, k), dtype, 1), random((k, n), dtype, 2), layouts, bias, end)


@linux
@pytest.mark.usefixtures("by_small_fused_in_teams")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, MR - 1, MR, 2 * MR + 3])
def test_tiles_that_are_touched(m, dtype):
    """Only elements of the tile itself are written to fetch its lines."""
    w, nr, _ = widths(dtype)
    for n, layout, end in itertools.product((1, w - 1, w, w + 1, nr, nr + 1, 2 * nr + 3), ("plain", "padded"), ENDS):
        check(random((m, 9), dtype, 1), random((9, n), dtype, 2), ("plain", "plain", layout), None, end)


@linux
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 4, 5, 8, 9, 15, 16, 58, MR - 1, MR, 2 * MR + 3])
@pytest.mark.parametrize(("finish", "activation"), [(records.LINEAR, "linear"), (records.RELU, "relu")])
def test_tiles_finished_in_registers(finish, activation, m, dtype, monkeypatch):
    """C is as the epilogue would have made it, and nothing around it is written."""
    monkeypatch.setattr(immediate, "turned", lambda *operands: False)  # rows of C have to be contiguous
    w, nr, _ = widths(dtype)
    choices = itertools.cycle(itertools.product(LAYOUTS, LAYOUTS, ("plain", "gap"), (True, False), ENDS))
    for n, k in itertools.product((w, nr, nr + w, 2 * nr), (0, 1, 2, w + 1)):
        for a_layout, b_layout, c_layout, with_bias, end in itertools.islice(choices, 7):
            a, b = random((m, k), dtype, 1), random((k, n), dtype, 2)
            bias = random(n, dtype, 3) if with_bias else None
            held = [place(a, a_layout, end), place(b, b_layout, end)]
            vector = None if bias is None else guarded(bias, end)
            row = n + (w if c_layout == "gap" else 0)
            results = []
            for how in (records.EPILOGUE, finish):
                out = Guarded(np.full((m, n), 7.0, dtype), end, (row, 1))
                for _ in products_by("small.fused", monkeypatch, finish=how, touched=1):
                    immediate.gemm(held[0].array, held[1].array, out.array, vector, activation, 0.0, 1)
                out.assert_gaps_untouched()
                results.append(out.array.copy())
            assert results[0].tobytes() == results[1].tobytes()


@linux
@pytest.mark.usefixtures("by_small_slim")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 3, 4, 5, 7, 8, 9, 17, blocking.TILES * MR])
def test_slim_edges(m, dtype):
    w, _, _ = widths(dtype)
    choices = itertools.cycle(itertools.product(LAYOUTS, ("plain", "padded"), LAYOUTS, (True, False), ENDS))
    for n, k in itertools.product((1, 2, w - 1, w), (0, 1, 2, w + 1, 3 * w)):
        for *layouts, with_bias, end in itertools.islice(choices, 9):
            bias = random(n, dtype, 3) if with_bias else None
            check(random((m, k), dtype, 1), random((k, n), dtype, 2), layouts, bias, end)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_slim_has_the_bits_of_gemm(layout, dtype, request):
    n = CPU.lanes(dtype) - 1
    a, b, bias = place(random((21, 1300), dtype, 1), layout).array, random((1300, n), dtype, 2), random(n, dtype, 3)
    general, slim = np.empty((21, n), dtype), np.empty((21, n), dtype)
    immediate.gemm(a, b, general, bias, "tanh", 0.0, 1)
    request.getfixturevalue("by_small_slim")
    immediate.gemm(a, b, slim, bias, "tanh", 0.0, 1)
    assert general.tobytes() == slim.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_has_the_bits_of_gemm(layout, dtype, request):
    a, b, bias = random((21, 1300), dtype, 1), place(random((1300, 35), dtype, 2), layout).array, random(35, dtype, 3)
    general, small = np.empty((21, 35), dtype), np.empty((21, 35), dtype)
    immediate.gemm(a, b, general, bias, "tanh", 0.0, 1)
    request.getfixturevalue("by_small_fused")
    immediate.gemm(a, b, small, bias, "tanh", 0.0, 1)
    assert general.tobytes() == small.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_overlapping_strides(dtype):
    """Stride 0, as in the sum of rows, and a Hankel matrix, whose rows overlap."""
    one, x = np.ones(1, dtype), random(64, dtype)
    ones = np.lib.stride_tricks.as_strided(one, (3, 29), (0, 0))
    hankel = np.lib.stride_tricks.as_strided(x, (29, 33), (x.itemsize, x.itemsize))
    for a, b in ((ones, hankel), (ones[:1], hankel), (hankel.T, hankel)):
        out = np.empty((len(a), b.shape[1]), dtype)
        immediate.gemm(a, b, out, None, "linear", 0.0, 1)
        expected, bound = reference(a, b)
        assert (np.abs(out - expected) <= bound).all()


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def always_together(monkeypatch):
    """Give the smallest product to a team."""
    monkeypatch.setattr(immediate, "TOGETHER", 0)


SHAPES = [(1, 300, 700), (5, 3, 2), (33, 65, 129), (8 * MR + 1, 257, 67), (17 * MR, 40, 100), (600, 9, 33)]


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "transposed", "gaps"])
@pytest.mark.parametrize("shape", SHAPES)
def test_teams_give_the_same_bits(shape, layout, dtype):
    m, k, n = shape
    a, b, bias = random((m, k), dtype, 1), place(random((k, n), dtype, 2), layout).array, random(n, dtype, 3)
    results = []
    for threads in (1, 2, 3):
        out = np.full((m, n), np.nan, dtype)
        immediate.gemm(a, b, out, bias, "relu", 0.0, threads)
        results.append(out)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.usefixtures("always_together")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "transposed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", ["gemm", "small", "touched", "slim"])
def test_shares_cover_the_product(kernel, shape, layout, dtype, request):
    """Each thread's share by itself, in any order: together they are the product, and no element is in two."""
    m, k, n = shape
    if kernel == "slim":
        m, n, layout = min(m, blocking.TILES * MR), min(n, CPU.lanes(dtype)), "plain"
    fixtures = {"small": "by_small_fused", "touched": "by_small_fused_in_teams", "slim": "by_small_slim"}
    if kernel in fixtures:
        request.getfixturevalue(fixtures[kernel])
    a, b = random((m, k), dtype, 1), place(random((k, n), dtype, 2), layout).array
    whole = np.empty((m, n), dtype)
    immediate.gemm(a, b, whole, None, "linear", 0.0, 1)
    for threads, order in ((2, (1, 0)), (3, (0, 1, 2)), (3, (2, 0, 1)), (50, range(50))):
        out = np.full((m, n), np.nan, dtype)
        memory = immediate._Memory()
        _, stride = immediate.lay_out(memory, a, b, out, None, "linear", 0.0, threads)
        memory.scratch(threads * stride)
        kernel, _ = immediate.lay_out(memory, a, b, out, None, "linear", 0.0, threads)
        run = bytearray(256)
        RUN.pack_into(run, 0, {"threads": threads})
        run = np.frombuffer(run, np.uint8)
        seen = np.zeros((m, n), int)
        for thread in order:
            out[...] = np.nan
            kernel(memory.op, address(run), 0, thread)
            mine = ~np.isnan(out)
            np.testing.assert_array_equal(out[mine], whole[mine])
            seen += mine
        assert (seen == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_above_the_threshold(dtype):
    m, k, n = 260, 300, 270
    assert 2 * m * k * n > immediate.TOGETHER
    a, b = random((m, k), dtype, 1), random((k, n), dtype, 2)
    expected, bound = reference(a, b)
    outs = []
    for threads in (1, 2, 3):
        out = np.full((m, n), np.nan, dtype)
        immediate.gemm(a, b, out, None, "linear", 0.0, threads)
        outs.append(out)
    assert (np.abs(outs[0] - expected) <= bound).all()
    assert outs[0].tobytes() == outs[1].tobytes() == outs[2].tobytes()


@pytest.mark.parametrize("pack", [0, 1])
@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("kept", [0, 24, 70])
def test_a_large_product_in_small(pack, copy, kept, monkeypatch):
    """Several panels and blocks of rows a task, several blocks of k: such a cut on a small product."""
    m, k, n = 4 * MR + 1, 70, 9 * blocking.columns("float32") + 5
    a, b = random((m, k), "float32", 1), random((k, n), "float32", 2)
    cut = {"kc": 24, "panels": 4, "rows": 2 * MR, "partial": 3 * MR, "copy": copy, "kept": kept}
    cut["block"] = MR if kept else 2 * MR
    monkeypatch.setattr(blocking, "blocks", lambda *shape: {**cut, "pack": int(pack or shape[-2] != 1)})
    for layouts in itertools.product(LAYOUTS, repeat=2):
        check(a, b, (*layouts, "plain"))


# --- sums that cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [65, 1100])
def test_sums_that_cancel(k, dtype):
    """Pairs of large numbers of opposite sign, far apart along k, on top of small ones: the bound is what it is for."""
    m, n = MR + 3, blocking.columns(dtype) + 5
    a, b = random((m, k), dtype, 1), random((k, n), dtype, 2)
    half = k // 2
    large = np.array(1 / np.finfo(dtype).eps, dtype)
    a[:, :half] += large
    a[:, half : 2 * half] -= large
    b[half : 2 * half] = b[:half]
    for layouts in itertools.product(("plain", "transposed"), repeat=2):
        check(a, b, (*layouts, "plain"))


# --- NaN and infinity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "transposed", "gaps"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [1, MR + 3, 4 * MR + 1])
def test_bad_values_reach_their_outputs_only(m, bad, layout, dtype):
    w, nr, _ = widths(dtype)
    k, n = 2 * w + 1, nr + w + 1
    a, b = random((m, k), dtype, 1), random((k, n), dtype, 2)

    def product(a, b):
        out = np.empty((m, n), dtype)
        immediate.gemm(place(a, layout).array, place(b, layout).array, out, None, "linear", 0.0, 1)
        return out

    clean = product(a, b)
    rng = np.random.default_rng(4)
    for j in (0, 1, w - 1, w, nr - 1, nr, n - 1):
        i, p = rng.integers(m), rng.integers(k)
        for operand in "ab":
            spoiled = {"a": a.copy(), "b": b.copy()}
            spoiled[operand][(i, p) if operand == "a" else (p, j)] = bad
            with np.errstate(invalid="ignore"):
                expected = spoiled["a"].astype(float) @ spoiled["b"].astype(float)
            found = product(spoiled["a"], spoiled["b"])
            hit = ~np.isfinite(expected)
            assert hit.sum() == (n if operand == "a" else m)
            np.testing.assert_array_equal(found[hit], expected[hit])
            np.testing.assert_array_equal(found[~hit], clean[~hit])


# --- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_fit_the_machine(dtype):
    size = np.dtype(dtype).itemsize
    caches = target.caches()
    lanes, nr, _ = widths(dtype)
    assert nr == blocking.NV * lanes
    assert CPU.registers >= MR * blocking.NV + blocking.NV + 1
    sizes = (0, 1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 784, 1000, 4096, 60_000)
    for m, n, k in itertools.product(sizes, repeat=3):
        layouts = ((k, 1, n, 1), (1, m, 1, k), (1024, 1, 1024, 1))
        for strides, threads in itertools.product(layouts, (1, 2, 8)):
            cut = blocking.blocks(m, n, k, dtype, *strides, threads)
            kc, rows, panels = cut["kc"], cut["rows"], cut["panels"]
            assert kc >= 1
            count = -(-k // kc) or 1
            assert kc * count - max(k, 1) < count, "blocks of k are of equal depth, but for the remainder"
            assert kc <= 64 or kc * nr * size <= caches["L2"] // 16
            assert rows % cut["block"] == 0
            assert cut["block"] % MR == 0
            assert 1 <= panels <= max(1, -(-n // nr))
            assert panels == 1 or panels * nr * min(kc, cut["kept"]) * size <= 2 * caches["L2"]
            assert cut["kept"] or cut["block"] == rows
            assert cut["pack"] or strides[-1] == 1
            assert cut["kept"] in (0, kc, k)
            assert cut["partial"] >= (rows + MR if k > kc else MR)
            scratch = blocking.scratch(dtype, cut)
            assert scratch * size % 64 == 0
            assert scratch * size <= 4 * 2**20 + 16 * caches["L2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_leading_dimensions(dtype):
    lanes, size = CPU.lanes(dtype), np.dtype(dtype).itemsize
    assert blocking.pad(1, dtype) == 1, "a single column has no gaps"
    for n in range(2, 3000):
        ld = blocking.pad(n, dtype)
        assert ld % lanes == 0
        assert n <= ld < n + 2 * lanes
        assert ld * size % 1024 != 0


# --- the guard pages themselves -------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(("end", "step"), [("end", 1), ("start", -1)])
@pytest.mark.parametrize("operand", "abc")
def test_one_element_too_far_is_fatal(operand, end, step):
    """The tests above can fail: a product of an operand that lies one element further ends the process."""
    code = f"""
import numpy as np
from guard import guarded
from fastnn.cpu import immediate
plain = lambda: np.ones((10, 10), "f4")
a, b, c = plain(), plain(), plain()
bad = guarded(plain(), {end!r})
where = bad.__array_interface__["data"][0] + {step} * bad.itemsize
class Moved:
    __array_interface__ = {{"data": (where, False), "shape": (10, 10), "typestr": "<f4", "version": 3}}
{operand} = np.asarray(Moved())
immediate.gemm(a, b, c, None, "linear", 0.0, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=False)
    assert done.returncode == -signal.SIGSEGV, done.stderr.decode()
