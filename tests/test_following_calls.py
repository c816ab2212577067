"""Calls that closely follow each other are joined by helpers, who are still awake: which are, and the same bits."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from guard import Guarded, linux
from reference import random

import fastnn
from fastnn.cpu import builtin, calls, crowd, immediate
from fastnn.cpu.crowd import Crowd

trusted = pytest.mark.skipif(builtin.python() == 0, reason="there are no such functions in this Python")

LONG = 10**15  # nanoseconds


@pytest.fixture(autouse=True)
def two_threads():
    fastnn.set_num_threads(2)
    yield
    fastnn.set_num_threads(None)


@pytest.fixture
def joined(monkeypatch):
    """The numbers of threads that jobs of the crowd had."""
    found: list[int] = []
    run = Crowd.run

    def spy(self, op, rate, threads, scratch=0):
        found.append(threads)
        return run(self, op, rate, threads, scratch)

    monkeypatch.setattr(Crowd, "run", spy)
    return found


def just_now():
    """A call that helpers may join has just ended, and will have for long."""
    immediate.ENDED[:2] = threading.get_ident(), LONG


def long_ago():
    immediate.ENDED[:2] = threading.get_ident(), -LONG


SIZE = 150_000  # more than `calls.SHARED`, less than what helpers are woken for
MAPS = {
    "relu": fastnn.relu,
    "sigmoid": fastnn.sigmoid,
    "relu_derivative": fastnn.relu_derivative,
    "softmax": lambda x: fastnn.softmax(x.reshape(-1, 10)).ravel(),
    "sgd": lambda x: updated(fastnn.sgd_update, x, 0, learning_rate=0.1),
    "adam": lambda x: updated(fastnn.adam_update, x, 2, step=3),
}


def updated(update, x, states, **settings):
    p, state = x[::-1].copy(), [abs(x[i::7][0]) + 0 * x for i in range(states)]
    update(p, x, *state, **settings)
    return np.concatenate([p, *state])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MAPS)
def test_the_same_bits_alone_and_joined(name, dtype, joined):
    x = random(SIZE, seed=1, dtype=dtype)
    long_ago()
    alone = MAPS[name](x)
    assert joined == []
    for threads in (2, 3):
        fastnn.set_num_threads(threads)
        for _ in range(3):
            just_now()
            np.testing.assert_array_equal(MAPS[name](x), alone)
    assert joined == [2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(("name", "small"), [("relu", calls.SHARED), ("relu", 100_000), ("adam", 70_000)])
def test_which_calls_are_joined(name, small, joined):
    x = random(SIZE, seed=1)
    MAPS[name](x)  # whatever was before, `ENDED` says when this one ended
    assert immediate.ENDED[0] == threading.get_ident()
    joined.clear()

    long_ago()
    MAPS[name](x)
    assert joined == [], "a pause"
    assert 0 < immediate.ENDED[1] < LONG
    just_now()
    MAPS[name](x[:small].copy())
    assert joined == [], "too small"
    assert immediate.ENDED[1] == LONG, "too small to tell anything"
    MAPS[name](x)
    assert joined == [2]
    assert 0 < immediate.ENDED[1] < LONG

    just_now()
    with_another_thread = threading.Thread(target=MAPS[name], args=(x,))
    with_another_thread.start()
    with_another_thread.join()
    assert joined == [2], "another thread's calls do not follow this one's"
    fastnn.set_num_threads(1)
    just_now()
    MAPS[name](x)
    assert joined == [2], "one thread"


def test_a_call_after_a_call(joined):
    """With the clock as it is: at least one of many calls in a row finds that the one before ended just now."""
    x = random(SIZE, seed=1)
    long_ago()
    for _ in range(200):
        fastnn.relu(x)
    assert joined
    assert set(joined) == {2}


def test_after_a_product_with_helpers(joined):
    """Large products tell when they ended, whether Python ran them or compiled code did."""
    a, b, x = random((256, 300), seed=1), random((300, 200), seed=2), random(SIZE, seed=3)
    fastnn.relu(x)
    for _ in range(3):  # cut in Python first, kept then
        immediate.ENDED[:2] = 0, 0
        fastnn.matmul(a, b)
        assert immediate.ENDED[0] == threading.get_ident()
        assert immediate.ENDED[1] > 0
    joined.clear()
    immediate.ENDED[1] = LONG
    fastnn.relu(x)
    assert joined == [2]


@trusted
def test_what_compiled_code_leaves_to_python():
    """One thread is not sent the long way round, and a new number of threads is noticed once."""
    function, x = calls.MAPS["relu_map"], random(SIZE, seed=1)
    fastnn.relu(x)
    long_ago()
    assert function(x, None, 0.0, None) is not None
    just_now()
    assert function(x, None, 0.0, None) is None
    assert function(x[: calls.SHARED].copy(), None, 0.0, None) is not None, "no more than that"
    with ThreadPoolExecutor(1) as other:
        assert other.submit(function, x, None, 0.0, None).result() is not None, "it follows no call of that thread"

    fastnn.set_num_threads(1)
    long_ago()
    assert function(x, None, 0.0, None) is None, "Python has to look how many threads there are"
    fastnn.relu(x)
    just_now()
    assert function(x, None, 0.0, None) is not None

    fastnn.set_num_threads(2)
    fastnn.relu(x)
    just_now()
    assert function(x, None, 0.0, None) is None


@linux
@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("size", [SIZE, SIZE + 1, SIZE + 15])
def test_joined_calls_stay_within(size, end, joined):
    x = random(size, seed=1, dtype="float32")
    given, out = Guarded(x, end), Guarded(np.zeros_like(x), end)
    just_now()
    fastnn.relu(given.array, out=out.array)
    assert joined == [2]
    np.testing.assert_array_equal(out.array, np.maximum(x, 0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_process():
    x = random(SIZE, seed=1)
    just_now()
    expected = fastnn.relu(x)
    assert crowd.get()
    pid = os.fork()
    if pid == 0:
        try:
            just_now()
            right = all((fastnn.relu(x) == expected).all() for _ in range(3))
        except BaseException:
            right = False
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
