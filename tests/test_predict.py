"""Predictions of arrays like an earlier one, which a builtin function does (`fastnn.cpu.predict`)."""

import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import fastnn
from fastnn import layers, training
from fastnn.cpu import builtin

HERE = builtin.python() != 0
pytestmark = pytest.mark.skipif(not HERE, reason="no builtin functions with this Python: all goes the ordinary way")


def build(dtype="float32", inputs=5, units=3, **options):
    hidden = layers.Dense(7, "relu")
    return fastnn.Sequential([layers.Input((inputs,)), hidden, layers.Dense(units)], dtype=dtype, seed=1, **options)


def ordinary(model, x):
    """What `predict` returns without a builtin function."""
    direct, model._programs.direct = model._programs.direct, training._decline
    calls = dict(model._programs.calls)
    model._programs.calls.clear()
    try:
        return model.predict(x)
    finally:
        model._programs.direct = direct
        model._programs.calls.update(calls)


def learned(model, x):
    """The builtin function for arrays like x."""
    for _ in range(3):
        model.predict(x)
    return model._programs.direct


def samples(n, columns=5, dtype=np.float32):
    return (100 * np.random.default_rng(n).standard_normal((n, columns))).astype(dtype)


@pytest.mark.parametrize("given", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 17, 256])
def test_the_bits_are_those_of_the_ordinary_way(n, dtype, given):
    model = build(dtype)
    function = learned(model, np.zeros((n, 5), given))
    assert type(function).__name__ == "builtin_function_or_method"
    x = samples(n, dtype=given)
    out = function(x)
    assert (out.shape, out.dtype, out.flags.owndata, out.flags.c_contiguous) == ((n, 3), dtype, True, True)
    np.testing.assert_array_equal(out, ordinary(model, x))
    np.testing.assert_array_equal(model.predict(x), out)
    np.testing.assert_array_equal(model.predict_on_batch(x), out)
    assert function(x) is not out


def test_what_is_not_alike_is_declined():
    model = build()
    x = samples(4)
    function = learned(model, x)
    other = [
        samples(3),
        samples(4, 6),
        samples(4, 4),
        samples(4)[:, :4],
        samples(4)[None],
        samples(4)[0],
        samples(20)[::5],
    ]
    other += [np.asfortranarray(x), x.astype(np.float64), x.astype(">f4"), x.astype(np.int32), x.astype(np.float16)]
    other += [x.tolist(), None, 1.5, "x", np.float32(1), np.ma.masked_array(x), x.view(np.recarray), memoryview(x)]
    shifted = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    assert [function(each) for each in (*other, shifted)] == [None] * (len(other) + 1)
    for arguments in ((), (x, x)):
        assert function(*arguments) is None
    np.testing.assert_array_equal(model.predict(shifted), function(x))
    with pytest.raises(ValueError, match=r"x must have shape \(n, 5\), got \(4, 6\)"):
        model.predict(samples(4, 6))
    with pytest.raises(TypeError, match="batch_size"):
        model.predict(x, batch_size="all")


def test_strides():
    """Rows that are not next to each other, columns neither; the stride of a single row does not matter."""
    model = build()
    whole = samples(40, 10)
    for part in (whole[::2, :5], whole[:8, ::2], whole[3:4, 5:], whole[20:1:-1, 9:4:-1]):
        function = learned(model, part)
        np.testing.assert_array_equal(function(part), ordinary(model, part.copy()))
    row = learned(model, samples(1))
    for single in (whole[7:8, :5], np.broadcast_to(whole[7, :5], (1, 5)), whole[7, :5][None]):
        np.testing.assert_array_equal(row(single), ordinary(model, single.copy()))
    assert row(whole[7:8, ::2]) is None
    assert learned(model, whole[:4, :5])(whole[:4, ::2]) is None
    constant = samples(1)
    constant.flags.writeable = False
    np.testing.assert_array_equal(row(constant), ordinary(model, constant))


def test_weights_are_those_of_now():
    model = build()
    model.compile("sgd", "mse")
    x = samples(4)
    function = learned(model, x)
    before = function(x)
    model.set_weights([2 * w for w in model.get_weights()])
    assert not np.array_equal(model.predict(x), before)
    np.testing.assert_array_equal(model.predict(x), ordinary(model, x))
    model.fit(x, np.ones((4, 3)), verbose=0)
    np.testing.assert_array_equal(model.predict(x), ordinary(model, x))
    model.add(layers.Dense(2))
    assert model.predict(x).shape == (4, 2)
    assert model.predict(x).shape == (4, 2)


def test_several_layouts_in_turn():
    model = build()
    arrays = [samples(n) for n in (1, 2, 3)]
    expected = [model.predict(x) for x in arrays]
    for _ in range(3):
        for x, right in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(model.predict(x), right)


def test_many_layouts():
    """More than executables are kept for."""
    model = build()
    for n in range(1, 3 * training.KEEP):
        x = samples(n)
        first = model.predict(x)
        for _ in range(3):
            np.testing.assert_array_equal(model.predict(x), first)


def test_what_is_not_small_goes_the_ordinary_way():
    """The interpreter's lock is held meanwhile."""
    model = fastnn.Sequential([layers.Input((784,)), layers.Dense(1000)], seed=1, n_threads=2)
    x = samples(1, 784)
    function = learned(model, x)
    assert function(x) is None
    np.testing.assert_array_equal(model.predict(x), model.predict(np.concatenate([x, x]))[:1])


def test_one_thread_does_not_make_a_step_small():
    model = fastnn.Sequential([layers.Input((784,)), layers.Dense(1000)], seed=1, n_threads=1)
    assert learned(model, samples(1, 784))(samples(1, 784)) is None


def test_arrays_that_were_unpickled():
    """Their dtype is an object of its own: they go the ordinary way, and others of their layout do not."""
    model = build()
    x = samples(4)
    other = pickle.loads(pickle.dumps(x))
    function = learned(model, other)
    np.testing.assert_array_equal(model.predict(other), function(x))
    assert other.dtype is x.dtype or function(other) is None


def test_what_is_remembered_is_bounded():
    model = build()
    x = samples(40)
    for size in range(40, 140):
        model.predict(x, batch_size=size)
    assert len(model._programs.calls) == 1
    for n in range(260, 400):
        model.predict(samples(n))
    assert len(model._programs.calls) <= training.LAYOUTS


def test_threads_with_many_layouts():
    """More than executables are kept for, so that threads drop each other's."""
    model = build()
    arrays = [samples(n) for n in range(1, 14)]
    expected = [model.predict(x) for x in arrays]
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed).integers(0, len(arrays), 300)
        try:
            wrong.extend(i for i in order if not np.array_equal(model.predict(arrays[i]), expected[i]))
        except Exception as error:  # anything at all, from any of them
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


class Key:
    """A key that lets another thread in while it is looked at, so to say."""

    def __init__(self, number, meanwhile=lambda: None):
        self.number, self.meanwhile = number, meanwhile

    def __hash__(self):
        self.meanwhile()
        return self.number

    def __eq__(self, other):
        self.meanwhile()
        return isinstance(other, Key) and self.number == other.number


def test_an_executable_is_the_one_that_was_asked_for():
    programs = training.Programs(2)
    for number in (1, 2, 1):
        programs.get(Key(number), lambda number=number: number)
    assert programs.get(Key(1, lambda: programs.get(Key(2), lambda: 2)), lambda: 1) == 1
    programs.get(Key(2), lambda: 2)
    looks = iter([None, None, programs.clear])  # beside the last one, in the dictionary, and to move it to the end
    assert programs.get(Key(1, lambda: (next(looks) or int)()), lambda: 1) == 1


def test_threads_that_build_a_model():
    """One of them builds it, and all predict with its weights, also later."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            model = fastnn.Sequential([layers.Dense(3)], seed=1)
            x = samples(2)
            threads = [threading.Thread(target=model.predict, args=(x,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            model.set_weights([0 * w for w in model.get_weights()])
            assert not model.predict(x).any()
    finally:
        sys.setswitchinterval(before)


def test_predictions_at_the_very_end():
    """What is deleted last may still predict, when modules are gone already."""
    code = """
import sys, numpy as np, fastnn
from fastnn import layers
class Late:
    def __init__(self):
        self.model = fastnn.Sequential([layers.Input((4,)), layers.Dense(3)])
        self.x = np.ones((1, 4), np.float32)
        for _ in range(3):
            self.expected = self.model.predict(self.x)
    def __del__(self):
        try:
            self.model.predict(self.x)
        except Exception:
            pass
np.late = Late()
sys.late = Late()
"""
    given = {**os.environ, "PYTHONMALLOC": "debug"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])


def test_nothing_is_kept_and_nothing_lost():
    """References are counted as they should, and a function has all that it needs when its model is gone."""
    model = build()
    x = samples(4)
    function = learned(model, x)
    right = function(x)
    counted = [x, None, x.dtype, np.ndarray, right]
    before = [sys.getrefcount(each) for each in counted]
    for _ in range(1000):
        function(x)
        function(1.5)
    assert [abs(sys.getrefcount(each) - count) < 100 for each, count in zip(counted, before, strict=True)] == [True] * 5
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(function(x), right)


def test_a_model_is_freed_at_once():
    """Without the garbage collector: its memory may be large."""
    gc.collect()
    gc.disable()
    try:
        model = build()
        learned(model, samples(4))
        gone = weakref.ref(model._programs)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_time():
    """A process of its own: the ordinary way takes 10 us and more, this one 0.4."""
    code = """
import time, numpy as np, fastnn
from fastnn import layers, training
model = fastnn.Sequential([layers.Input((4,)), layers.Dense(3, "relu"), layers.Dense(1)])
x = np.ones((1, 4), np.float32)
def best(n, call):
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        for _ in range(n):
            call(x)
        times.append((time.perf_counter() - begin) / n)
    return min(times)
model.predict(x), model.predict(x), model.predict(x)
again = next(iter(model._programs.calls.values()))
print(best(100, again) / best(100, model.predict))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 5
