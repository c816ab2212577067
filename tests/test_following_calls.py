"""Calls that closely follow each other are joined by helpers, who are still awake: which are, and the same bits."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from guard import Guarded, linux
from reference import random

import fastnn
from fastnn.cpu import builtin, calls, crowd, immediate, layouts

trusted = pytest.mark.skipif(builtin.python() == 0, reason="there are no such functions in this Python")

LONG = 10**15  # nanoseconds


@pytest.fixture(autouse=True)
def two_threads():
    fastnn.set_num_threads(2)
    yield
    fastnn.set_num_threads(None)


@pytest.fixture
def jobs():
    """How many jobs the crowd has had since the last look, whether Python or compiled code opened them."""
    crowd.get()
    seen = [int(crowd.get().words[crowd.JOB])]

    def count():
        before, seen[0] = seen[0], int(crowd.get().words[crowd.JOB])
        return seen[0] - before

    return count


def just_now():
    """A call that helpers may join has just ended, and will have for long."""
    immediate.ENDED[:2] = threading.get_ident(), LONG


def long_ago():
    immediate.ENDED[:2] = threading.get_ident(), -LONG


SIZE = 150_000  # more than `calls.SHARED_MAP`, less than what helpers are woken for
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
def test_the_same_bits_alone_and_joined(name, dtype, jobs):
    x = random(SIZE, seed=1, dtype=dtype)
    long_ago()
    alone = MAPS[name](x)
    assert jobs() == 0
    for threads in (2, 3):
        fastnn.set_num_threads(threads)
        for _ in range(3):
            just_now()
            np.testing.assert_array_equal(MAPS[name](x), alone)
    assert jobs() == 6


@pytest.mark.parametrize(("name", "small"), [("relu", calls.SHARED_MAP), ("relu", 50_000), ("adam", 70_000)])
def test_which_calls_are_joined(name, small, jobs):
    x = random(SIZE, seed=1)
    MAPS[name](x)  # whatever was before, `ENDED` says when this one ended
    assert immediate.ENDED[0] == threading.get_ident()
    jobs()

    long_ago()
    MAPS[name](x)
    assert jobs() == 0, "a pause"
    assert 0 < immediate.ENDED[1] < LONG
    just_now()
    MAPS[name](x[:small].copy())
    assert jobs() == 0, "too small"
    assert immediate.ENDED[1] == LONG, "too small to tell anything"
    MAPS[name](x)
    assert jobs() == 1
    assert 0 < immediate.ENDED[1] < LONG

    just_now()
    with ThreadPoolExecutor(1) as other:
        other.submit(MAPS[name], x).result()
    assert jobs() == 0, "another thread's calls do not follow this one's"
    fastnn.set_num_threads(1)
    just_now()
    MAPS[name](x)
    assert jobs() == 0, "one thread"


def test_a_call_after_a_call(jobs):
    """With the clock as it is: at least one of many calls in a row finds that the one before ended just now."""
    x = random(SIZE, seed=1)
    long_ago()
    for _ in range(200):
        fastnn.relu(x)
    assert jobs() > 0


def test_after_a_product_with_helpers(jobs):
    """Large products tell when they ended, whether Python ran them or compiled code did."""
    a, b, x = random((256, 300), seed=1), random((300, 200), seed=2), random(SIZE, seed=3)
    fastnn.relu(x)
    for _ in range(3):  # cut in Python first, kept then
        immediate.ENDED[:2] = 0, 0
        fastnn.matmul(a, b)
        assert immediate.ENDED[0] == threading.get_ident()
        assert immediate.ENDED[1] > 0
    jobs()
    immediate.ENDED[1] = LONG
    fastnn.relu(x)
    assert jobs() == 1


# --- compiled code ---------------------------------------------------------------------------------------------------


def direct(x):
    """Whether compiled code takes a call without Python."""
    return calls.MAPS["relu_map"](x, None, 0.0, None) is not None


@pytest.fixture
def known():
    """An array for which compiled code and the helpers are ready."""
    x = random(SIZE, seed=1)
    for _ in range(3):
        just_now()
        fastnn.relu(x)
    return x


@trusted
def test_compiled_code_calls_helpers_itself(known, jobs):
    just_now()
    assert direct(known)
    assert jobs() == 1
    assert 0 < immediate.ENDED[1] < LONG
    long_ago()
    assert direct(known)
    assert jobs() == 0
    with ThreadPoolExecutor(1) as other:
        just_now()
        assert other.submit(direct, known).result()
    assert jobs() == 0, "it follows no call of that thread"


@trusted
@pytest.mark.parametrize("word", [crowd.TAKEN, "busy"])
def test_helpers_that_are_busy_are_not_waited_for(word, known, jobs):
    expected = fastnn.relu(known)
    jobs()
    just_now()
    words, shop = crowd.get().words, layouts.workshop()
    if word == "busy":
        shop.busy = True
    else:
        words[word] = 1
    try:
        found = calls.MAPS["relu_map"](known, None, 0.0, None)
    finally:
        words[crowd.TAKEN], shop.busy = 0, False
    assert jobs() == 0
    np.testing.assert_array_equal(found, expected)


@trusted
def test_another_number_of_threads_is_noticed(known, jobs):
    for threads, helped in ((1, 0), (3, 1), (2, 1)):
        fastnn.set_num_threads(threads)
        just_now()
        assert not direct(known), "Python has to look which threads there are"
        fastnn.relu(known)
        jobs()
        just_now()
        assert direct(known)
        assert jobs() == helped


@trusted
def test_many_threads_at_once(known):
    """The record of a function is one for all threads, and a job gives up the interpreter's lock."""
    arrays = [random(SIZE, seed=i) for i in range(4)]

    def work(x):
        for _ in range(50):
            just_now()
            np.testing.assert_array_equal(fastnn.relu(x), np.maximum(x, 0))
            just_now()
            np.testing.assert_array_equal(fastnn.leaky_relu(x, abs(x[0])), np.where(x > 0, x, abs(x[0]) * x))
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, arrays))


@linux
@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("size", [SIZE, SIZE + 1, SIZE + 15])
def test_joined_calls_stay_within(size, end, jobs):
    x = random(size, seed=1, dtype="float32")
    given, out = Guarded(x, end), Guarded(np.zeros_like(x), end)
    for _ in range(3):  # Python's way, then compiled code's
        just_now()
        fastnn.relu(given.array, out=out.array)
    assert jobs() == 3
    np.testing.assert_array_equal(out.array, np.maximum(x, 0))


@trusted
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_process(known):
    """There are no helpers, and compiled code is told so before it looks for them."""
    expected = fastnn.relu(known)
    pid = os.fork()
    if pid == 0:
        try:
            long_ago()
            right = [(fastnn.relu(known) == expected).all()]  # compiled code knows the new setting now
            just_now()
            right.append(not direct(known))
            for _ in range(3):
                just_now()
                right.append((fastnn.relu(known) == expected).all())
            just_now()
            right.append(direct(known))
        except BaseException:
            right = [False]
        os._exit(0 if all(right) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
