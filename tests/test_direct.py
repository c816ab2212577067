"""Builtin functions over arrays: taken where they should be, and the same results where they decline."""

import ctypes
import gc
import os
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference as ref
from guard import Guarded, linux
from reference import assert_product, random

import fastnn
from fastnn.cpu import builtin, calls, layouts
from fastnn.records import PYTHON

DTYPES = ["float32", "float64"]

trusted = pytest.mark.skipif(builtin.python() == 0, reason="there are no such functions in this Python")


def taken(table, key, *arguments):
    """What the builtin function returns once it has learnt both dtypes: None if it declines."""
    function = table[key]
    for dtype in DTYPES:
        table.learn(key, np.dtype(dtype))
    return function(*arguments)


# --- taken or declined ----------------------------------------------------------------------------------------------


class Sub(np.ndarray):
    pass


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    return raw


def read_only(a):
    a.flags.writeable = False
    return a


A, B, V = random((6, 5), seed=1), random((5, 4), seed=2), random(5, seed=3)
SIMPLE = {
    "matrices": (A, B),
    "transposed": (A.T.copy().T, B.T.copy().T),
    "negative strides": (A[::-1, ::-1], B[::-1, ::-1]),
    "gaps": (np.repeat(A, 2, 1)[:, ::2], np.repeat(B, 3, 0)[::3]),
    "stride 0": (np.broadcast_to(V, (6, 5)), B),
    "read-only": (read_only(A.copy()), read_only(B.copy())),
    "vector, matrix": (V, B),
    "matrix, vector": (A, V),
    "vectors": (V, V),
    "one by one": (A[:1, :1], B[:1, :1]),
}
ODD = {
    "lists": (A.tolist(), B.tolist()),
    "integers": (A.astype(int), B),
    "two dtypes": (A.astype("f4"), B),
    "other byte order": (A.astype(">f8"), B),
    "unaligned": (unaligned(A), B),
    "a subclass": (A.view(Sub), B),
    "no elements": (A[:0], B),
    "no terms": (A[:, :0], B[:0]),
    "too many axes": (A.reshape((1,) * 12 + (6, 5)), B),
    "too much work": (np.ones((300, 300)), np.ones((300, 300))),
}


@trusted
@pytest.mark.parametrize("name", [*SIMPLE, *ODD])
def test_which_products_are_direct(name):
    a, b = {**SIMPLE, **ODD}[name]
    assert (taken(calls.PRODUCTS, None, a, b, None, None) is not None) == (name in SIMPLE)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", [*SIMPLE, *ODD])
def test_products_are_right_either_way(name):
    a, b = {**SIMPLE, **ODD}[name]
    expected = np.matmul(np.asarray(a), np.asarray(b))
    for _ in range(2):  # the first call teaches the second
        result = fastnn.matmul(a, b)
        assert type(result) is (np.float64 if expected.ndim == 0 else np.ndarray) or isinstance(a, list)
        np.testing.assert_allclose(result, expected, rtol=1e-5 if isinstance(a, list) else 1e-13, atol=1e-7)
    if expected.ndim:
        out = np.full(expected.shape, 99, result.dtype)
        assert fastnn.matmul(a, b, out) is out
        np.testing.assert_array_equal(out, result)


OUTS = {
    "C": lambda: np.full((6, 4), 99.0),
    "Fortran": lambda: np.full((4, 6), 99.0).T,
    "gaps": lambda: np.full((12, 8), 99.0)[::2, ::2],
    "negative": lambda: np.full((6, 4), 99.0)[::-1, ::-1],
    "unaligned": lambda: unaligned(np.full((6, 4), 99.0)),
    "subclass": lambda: np.full((6, 4), 99.0).view(Sub),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", OUTS)
def test_products_into(name):
    fastnn.matmul(A, B)
    out = OUTS[name]()
    assert fastnn.matmul(A, B, out) is out
    np.testing.assert_allclose(out, A @ B, rtol=1e-14, atol=1e-14)
    if out.base is not None and out.base.size == 4 * out.size:
        assert (out.base[1::2] == 99).all()


@trusted
@pytest.mark.parametrize("name", ["C", "strided", "0-d", "empty", "list", "integers", "large", "subclass"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_which_maps_are_direct(name, dtype):
    x = {
        "C": random((3, 4, 5), dtype),
        "strided": random((6, 8), dtype)[::2],
        "0-d": np.ones((), dtype),
        "empty": np.ones((0, 3), dtype),
        "list": [1.0],
        "integers": np.ones(3, int),
        "large": np.ones(calls.SMALL_MAP + 1, dtype),
        "subclass": np.ones(3, dtype).view(Sub),
    }[name]
    result = taken(calls.MAPS, "relu_map", x, None, 0.0, None)
    assert (result is not None) == (name == "C")
    np.testing.assert_array_equal(fastnn.relu(x), np.maximum(x, 0))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_in_place_and_overlapping(dtype):
    for name in ("tanh", "softmax"):
        f = getattr(fastnn, name)
        x = random((7, 9), dtype)
        expected = f(x)
        np.testing.assert_allclose(
            expected, getattr(ref, name)(x.astype(np.float64)), rtol=1e-5 if dtype == "float32" else 1e-13
        )
        out = np.empty_like(x)
        assert f(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
        buffer = np.zeros(90, dtype)
        for at, to in ((0, 0), (0, 9), (9, 0), (0, 1)):
            source, target = buffer[at : at + 63].reshape(7, 9), buffer[to : to + 63].reshape(7, 9)
            source[...] = x
            assert f(source, out=target) is target
            np.testing.assert_array_equal(target, expected)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1, np.float32(0.25)])
def test_leaky_relu_takes_any_number(alpha, dtype):
    x = random((5, 7), dtype)
    for _ in range(2):
        np.testing.assert_allclose(fastnn.leaky_relu(x, alpha), np.where(x < 0, x * float(alpha), x), rtol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alias", ["none", "grad", "y"])
def test_softmax_derivative_into_its_operands(alias, dtype):
    y, g = fastnn.softmax(random((5, 7), dtype)), random((5, 7), dtype, 1)
    expected = ref.softmax_vjp(y.astype(np.float64), g.astype(np.float64))
    for _ in range(2):
        s, d = y.copy(), g.copy()
        result = fastnn.softmax_derivative(s, d, out={"none": None, "grad": d, "y": s}[alias])
        np.testing.assert_allclose(result, expected, atol=1e-6 if dtype == "float32" else 1e-14)


@trusted
@pytest.mark.parametrize("dtype", DTYPES)
def test_which_updates_are_direct(dtype):
    p, g, m, v = (random((5, 7), dtype, seed) for seed in range(4))
    rest = (0.1, 0.9, 0.1, 0.001, 1e-7)
    adam = lambda *arrays: taken(calls.UPDATES, "adam", *arrays, *rest)  # noqa: E731
    before = [a.copy() for a in (p, m, v, g)]
    other = "float64" if dtype == "float32" else "float32"
    for wrong in (g.T, g[:4], g.astype(other), g[:, ::-1], g.tolist(), g.view(Sub), None):
        assert adam(p, m, v, wrong) is None
    for wrong in (m.T, m[:4], m.astype(other), m.tolist(), read_only(m.copy())):
        assert adam(p, wrong, v, g) is None
        assert adam(p, m, wrong, g) is None
        assert adam(wrong, m, v, g) is None
    assert taken(calls.UPDATES, "adam", p, m, v, g, 1, 0.9, 0.1, 0.001, 1e-7) is None  # 1 is no float
    for a, b in zip((p, m, v, g), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert adam(p, m, v, g) is p
    assert (p != before[0]).any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["C", "strided", "large"])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov", "adam", "rmsprop", "rmsprop_momentum"])
def test_updates_either_way(rule, layout, dtype):
    shape = (calls.SMALL + 3,) if layout == "large" else (19, 8)
    start = random(shape), random(shape, seed=1), np.abs(random(shape, seed=2)), np.abs(random(shape, seed=3))
    results = []
    for lowered in (dtype, "float64"):
        p, g, m, v = (a.astype(lowered) for a in start)
        if layout == "strided":
            p, m, v = (np.repeat(a, 2, axis=0)[::2] for a in (p, m, v))
        for step in (1, 2):
            if rule == "adam":
                fastnn.adam_update(p, g, m, v, step, learning_rate=0.1)
            elif rule.startswith("rmsprop"):
                fastnn.rmsprop_update(p, g, v, m, momentum=0.9 if rule == "rmsprop_momentum" else 0.0)
            else:
                momentum = 0.0 if rule == "sgd" else 0.9
                fastnn.sgd_update(p, g, m, learning_rate=0.1, momentum=momentum, nesterov=rule == "nesterov")
        results.append((p, m, v))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4 if dtype == "float32" else 1e-14, atol=1e-6)


# --- memory ---------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [((5, 7), (7, 9)), ((5, 7), (7,)), ((3, 5, 7), (3, 7, 9)), ((3, 17, 16), (16, 16))])
def test_products_stay_within(shapes, dtype, end):
    a, b = random(shapes[0], dtype, 1), random(shapes[1], dtype, 2)
    ga, gb, out = Guarded(a, end), Guarded(b, end), Guarded(np.full_like(np.matmul(a, b), 99), end)
    for _ in range(2):
        assert fastnn.matmul(ga.array, gb.array, out.array) is out.array
        assert_product(out.array, a, b)
        assert_product(fastnn.matmul(ga.array.swapaxes(-1, -2).copy().swapaxes(-1, -2), gb.array), a, b)
    for guarded in (ga, gb, out):
        guarded.assert_gaps_untouched()


@linux
@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 33])
def test_maps_and_updates_stay_within(n, dtype, end):
    arrays = [Guarded(np.abs(random((3, n), dtype, i)), end) for i in range(4)]
    p, g, m, v = (guarded.array for guarded in arrays)
    for _ in range(2):
        fastnn.adam_update(p, g, m, v, 3)
        fastnn.rmsprop_update(p, g, v, m, momentum=0.9)
        fastnn.softmax(p, out=g)
        fastnn.softmax_derivative(g, p, out=m)
        fastnn.sigmoid(m, out=v)
    for guarded in arrays:
        guarded.assert_gaps_untouched()


def every_call():
    """Calls of all kinds on the same arrays, those that decline and those that fail among them."""
    x, w, b, out = random((6, 5)), random((5, 4)), random(4), np.empty((6, 4))
    p, g, m, v = (np.abs(random((6, 5), seed=i)) for i in range(4))
    stack = random((3, 5, 4))

    def fail():
        with pytest.raises(ValueError, match="do not meet"):
            fastnn.matmul(x, x)

    return (x, w, b, out, p, g, m, v, stack), [
        lambda: fastnn.matmul(x, w),
        lambda: fastnn.matmul(x, w, out),
        lambda: fastnn.matmul(x[0], x[0]),
        lambda: fastnn.matmul(x, stack),
        lambda: fastnn.dense(x, w, b, "relu"),
        lambda: fastnn.dense(x, w, b, "softmax", out),
        lambda: fastnn.relu(x),
        lambda: fastnn.tanh(x, out=x),
        lambda: fastnn.softmax(x),
        lambda: fastnn.relu(x.T),
        lambda: fastnn.adam_update(p, g, m, v, 1),
        lambda: fastnn.sgd_update(p, g),
        lambda: fastnn.rmsprop_update(p, g, v),
        fail,
    ]


@pytest.mark.usefixtures("way")
def test_references_are_counted():
    arrays, functions = every_call()
    watched = [*arrays, np.dtype("float32"), np.dtype("float64"), None]
    for f in functions:
        f()
    gc.collect()  # what other tests left behind holds references to the dtypes and is not to be freed meanwhile
    gc.disable()
    try:
        for f in functions:
            before = [sys.getrefcount(x) for x in watched]
            for _ in range(1000):
                f()
            after = [sys.getrefcount(x) for x in watched]
            assert all(abs(x - y) < 100 for x, y in zip(before, after, strict=True))
    finally:
        gc.enable()


def test_nothing_is_leaked():
    _, functions = every_call()
    for f in functions:
        f()
    gc.collect()
    tracemalloc.start()
    try:
        for count in (10, 1000):  # the first calls fill Python's own caches
            before = tracemalloc.get_traced_memory()[0]
            for f in functions[:-1]:
                for _ in range(count):
                    f()
        assert tracemalloc.get_traced_memory()[0] - before < 4000
    finally:
        tracemalloc.stop()


def test_results_own_their_memory():
    a, b = random((6, 5)), random((5, 4))
    fastnn.matmul(a, b)
    first = fastnn.matmul(a, b)
    kept = first.copy()
    assert first.flags.owndata
    assert first.flags.c_contiguous
    assert first.flags.writeable
    for _ in range(100):
        fastnn.matmul(b.T, a.T)
    np.testing.assert_array_equal(first, kept)


@trusted
@pytest.mark.parametrize("f", [lambda: fastnn.matmul(A, B), lambda: fastnn.relu(A)])
def test_no_memory(f):
    """Where NumPy cannot make the result, its exception arrives (PyErr_NoMemory in place of PyArray_Empty)."""
    f()
    field = ctypes.c_size_t.from_address(builtin.python() + PYTHON.offsets["empty"])
    empty = field.value
    field.value = ctypes.cast(ctypes.pythonapi.PyErr_NoMemory, ctypes.c_void_p).value
    try:
        with pytest.raises(MemoryError):
            f()
    finally:
        field.value = empty
    f()


# --- trust ----------------------------------------------------------------------------------------------------------


@trusted
def test_the_functions_are_builtin():
    fastnn.matmul(A, B)
    assert type(calls.PRODUCTS[None]) is type(len)
    for arguments in ((), (A, B), (A, B, None, None, None)):
        assert calls.PRODUCTS[None](*arguments) is None
        assert taken(calls.MAPS, "relu_map", *arguments[:3]) is None
        assert taken(calls.UPDATES, "sgd", *arguments) is None


@trusted
def test_what_does_not_hold_is_noticed(monkeypatch):
    check = builtin.python.__wrapped__
    assert check()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        assert check() == 0
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "TRUSTED", False)
        assert check() == 0
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "NUMPY_2", 0x03000000)
        assert check() == 0
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "DATA", builtin.DATA + 8)
        assert check() == 0
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "_functions_hold", lambda table: False)
        assert check() == 0


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_threads_at_once():
    """Each thread has its own operands; they share the functions' records."""
    start = threading.Barrier(4)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(seed):
        a, b = random((9, 8), seed=seed), random((8, 7), seed=seed + 100)
        expected, activated = fastnn.matmul(a, b), np.tanh(a)
        start.wait()
        for _ in range(300):
            np.testing.assert_array_equal(fastnn.matmul(a, b), expected)
            np.testing.assert_allclose(fastnn.tanh(a), activated, rtol=1e-14)
        return True

    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


# --- large products, without the lock ---------------------------------------------------------------------------------


@pytest.fixture
def _threads():
    yield
    fastnn.set_num_threads(None)


LARGE = {
    "plain": lambda a, b: (a, b),
    "transposed": lambda a, b: (np.asfortranarray(a), np.asfortranarray(b)),
    "gaps": lambda a, b: (np.repeat(a, 2, 1)[:, ::2], b[::-1]),
    "few columns": lambda a, b: (np.asfortranarray(np.tile(a, (20, 1))), b[:, :3]),
    "a column": lambda a, b: (np.tile(a, (20, 2)), np.tile(b[:, :1], (2, 1))),
    "rows of a batch": lambda a, b: (a.reshape(2, -1, a.shape[1]), b),
}


@trusted
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LARGE)
def test_large_products_are_direct_once_they_are_known(name, dtype, threads):
    a, b = LARGE[name](random((140, 350), dtype, 1), random((350, 150), dtype, 2))
    fastnn.set_num_threads(threads)
    assert calls.PRODUCTS[None](a, b, None, None) is None
    ordinary = fastnn.matmul(a, b)
    out = np.empty_like(ordinary)
    for result in (calls.PRODUCTS[None](a, b, None, None), calls.PRODUCTS[None](a, b, out, None)):
        np.testing.assert_array_equal(result, ordinary)
    assert_product(ordinary.reshape(-1, b.shape[1]), a.reshape(-1, a.shape[-1]), b)
    fastnn.set_num_threads(threads)  # whatever depends on the number of threads is forgotten
    assert calls.PRODUCTS[None](a, b, None, None) is None


@trusted
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_large_dense_layers_are_direct_once_they_are_known(threads):
    """With a bias and without, which makes a difference where a product is done as C' = B' A'."""
    x, w, b = random((9000, 400), "float32", 1), random((400, 3), "float32", 2), random(3, "float32", 3)
    x = np.asfortranarray(x)
    fastnn.set_num_threads(threads)
    key = ("relu", 0.0)
    for bias in (None, b, None):
        expected = fastnn.dense(x, w, bias, "relu")
        result = calls.PRODUCTS[key](x, w, None, bias)
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_allclose(result, np.maximum(x @ w + (0 if bias is None else bias), 0), rtol=2e-4, atol=2e-3)


@trusted
@pytest.mark.usefixtures("_threads")
def test_large_products_from_many_threads():
    """One thread has the workshop; others go the ordinary way and may not disturb what it works with."""
    fastnn.set_num_threads(2)
    shapes = [(120 + i, 130, 140 + 2 * i) for i in range(6)]
    pairs = [(random((m, k), "float32", 1), random((k, n), "float32", 2)) for m, k, n in shapes]
    expected = [fastnn.matmul(a, b) for a, b in pairs]

    def work(seed):
        rng = np.random.default_rng(seed)
        return [(fastnn.matmul(*pairs[i]) == expected[i]).all() for i in rng.integers(0, len(pairs), 200)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(right) for right in pool.map(work, range(4)))


@trusted
@pytest.mark.usefixtures("_threads")
def test_a_layout_survives_being_declined():
    """A product that comes while another thread's runs goes the ordinary way, and only that time."""
    a = random((150, 160), "float32", 1), random((160, 170), "float32", 2)
    fastnn.set_num_threads(2)
    expected = fastnn.matmul(*a)
    layouts.workshop().busy = True
    try:
        assert calls.PRODUCTS[None](*a, None, None) is None
        np.testing.assert_array_equal(fastnn.matmul(*a), expected)
    finally:
        layouts.workshop().busy = False
    np.testing.assert_array_equal(calls.PRODUCTS[None](*a, None, None), expected)


@trusted
@linux
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.usefixtures("_threads")
def test_large_products_in_a_forked_process():
    """Neither helpers nor what is in use survive a fork."""
    a = random((300, 300), "float32")
    fastnn.set_num_threads(2)
    expected = fastnn.matmul(a, a)
    layouts.workshop().busy = True  # as if a thread were at work that the child does not have
    try:
        pid = os.fork()
        if pid == 0:
            right = all((fastnn.matmul(a, a) == expected).all() for _ in range(3))
            right = right and calls.PRODUCTS[None](a, a, None, None) is not None
            os._exit(0 if right else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        layouts.workshop().busy = False


@trusted
@pytest.mark.usefixtures("_threads")
def test_the_lock_is_given_up():
    """Python goes on while a large product runs."""
    a = random((1500, 1500), "float64")
    fastnn.set_num_threads(1)
    fastnn.matmul(a, a)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(1)

    ticker = threading.Thread(target=tick)
    ticker.start()
    calls.PRODUCTS[None](a, a, None, None)
    during = len(ticks)
    stop.set()
    ticker.join()
    assert during > 3
