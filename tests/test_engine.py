"""The engine and its teams: barriers, interruption, several runs at once, forks, and no allocation in a step."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest

import fastnn
from fastnn import threads as settings
from fastnn import training
from fastnn.cpu import executable, placement, team
from fastnn.layers import Dense, Dropout, Input

LIMIT = 60  # seconds after which something hangs


@pytest.fixture(params=["together", "tried"])
def small_steps_in_teams(request, monkeypatch):
    """Give the smallest step to a team, for good or until one thread proves to be faster."""
    monkeypatch.setattr(executable, "ALONE", 0)
    monkeypatch.setattr(executable, "AWAKE", 0)
    monkeypatch.setattr(executable, "TOGETHER", 0 if request.param == "together" else 1 << 60)


def build(n_threads, *, inputs=20, units=24, seed=1, optimizer="adam"):
    layers = [Input((inputs,)), Dense(units, "tanh"), Dropout(0.2), Dense(3, "softmax")]
    model = fastnn.Sequential(layers, seed=seed, n_threads=n_threads)
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    return model


def samples(n=256, inputs=20):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, inputs)).astype("float32"), rng.integers(0, 3, n)


def fit(model, n=256, epochs=2, **arguments):
    return model.fit(*samples(n), batch_size=8, epochs=epochs, verbose=0, **arguments)


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


# --- the barrier ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [8, 17])
def test_more_threads_than_cpus(threads):
    """Each barrier offers the core to the others: thousands of them take seconds, not a time slice each."""
    alone, many = build(1), build(threads)
    fit(alone)
    start = time.perf_counter()
    fit(many)  # 64 steps, about 12 barriers each
    seconds = time.perf_counter() - start
    assert_same(alone.get_weights(), many.get_weights())
    assert seconds < 5  # 0.3 here; 14 with threads that spin instead of yielding


def test_no_more_threads_than_cpus(monkeypatch):
    monkeypatch.setattr(settings, "available_cpus", lambda: 1)
    monkeypatch.setattr(settings, "cpus", lambda: 2)
    monkeypatch.setattr(training, "usable_threads", settings.usable_threads)
    assert [settings.usable_threads(n) for n in (1, 2, 3, 1024)] == [1, 2, 2, 2]
    with pytest.raises(ValueError, match="n_threads must be between 1 and 1024, got 0"):
        settings.usable_threads(0)
    model = build(8)
    fit(model)
    assert model.n_threads == 8
    assert {key[0].threads for key in model._programs._kept} == {2}
    model.predict(samples()[0], verbose=0)
    assert all(key[-1] == 2 for key in model._programs.calls)
    alone = build(1)
    fit(alone)
    assert_same(model.get_weights(), alone.get_weights())


def test_cpus_are_those_of_the_process():
    """Not those that a thread is kept to, which may be the first one that asks."""
    before, found = len(placement.allowed()) or os.cpu_count(), []

    def ask():
        placement.keep_to(set(placement.allowed()[:1]))
        found.append(settings.cpus())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [before] == [settings.cpus()]


def test_a_crowd_does_not_spin(monkeypatch):
    """A thread that waits keeps its core for a while, unless those that it waits for may need it."""
    monkeypatch.setattr(team.placement, "allowed", lambda: [0, 3])
    assert team.spins(2) == team.SPINS
    assert team.spins(3) == 0
    monkeypatch.setattr(team.placement, "allowed", list)  # where the system does not say
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert team.spins(4) == team.SPINS
    assert team.spins(5) == 0


def test_a_crowd_is_not_tried(monkeypatch):
    """One thread is tried in place of a team up to a limit, which is lower for more threads than CPUs."""
    units = 1 + executable.CROWDED // (2 * 20 * 128)
    assert executable.CROWDED < 2 * 20 * 128 * units < executable.TOGETHER

    def tried(cpus):
        monkeypatch.setattr(team.placement, "allowed", lambda: list(range(cpus)))
        model = fastnn.Sequential([Input((20,)), Dense(units)], n_threads=3)
        model.compile(loss="mse")
        x = np.ones((128, 20), "f4")
        made = training.executable(model, "predict", 128, 128, training.checked(model, x, np.ones((128, units))).x_feed)
        return made._trial is not None

    assert [tried(cpus) for cpus in (2, 3)] == [False, True]


@pytest.mark.usefixtures("small_steps_in_teams")
def test_teams_are_reused():
    model = build(3)
    fit(model, epochs=1)
    for _ in range(2):  # from the second time on it is a single step
        model.predict(samples()[0], verbose=0)
    before = threading.active_count()
    for _ in range(5):
        fit(model, epochs=1)
        model.predict(samples()[0], verbose=0)
    assert threading.active_count() == before


# --- interruption ---------------------------------------------------------------------------------------------------


def replayed(steps, n, optimizer):
    """Weights after exactly `steps` steps in the order of the rows."""
    model = build(1, optimizer=optimizer)
    x, y = samples(n)
    per_epoch = n // 8
    for step in range(steps):
        at = step % per_epoch * 8
        model.train_on_batch(x[at : at + 8], y[at : at + 8])
    return model.get_weights()


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer signal")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_leaves_the_last_finished_batch(threads, optimizer):
    """`optimizer.iterations` tells exactly which batches the weights have seen, and training can go on."""
    n = 4096
    model = build(threads, optimizer=optimizer)
    fit(model, n, epochs=1, shuffle=False)  # compiled and warm
    model = build(threads, optimizer=optimizer)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        with pytest.raises(KeyboardInterrupt):
            fit(model, n, epochs=100_000, shuffle=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    done = model._compiled()[1].iterations
    assert done > 0
    if done < 60_000:  # replaying takes about 50 us a step
        assert_same(model.get_weights(), replayed(done, n, optimizer))
    fit(model, 64, epochs=1)
    assert model._compiled()[1].iterations == done + 8


@pytest.mark.usefixtures("small_steps_in_teams")
def test_halt_stops_after_the_step():
    """The flag that Ctrl-C sets, raised before the first step: one step is done, by all threads."""
    for threads in (1, 2, 3):
        model = build(threads)
        x, y = samples(800)
        checked = training.checked(model, x, y)
        program = training.executable(model, "train", 800, 8, checked.x_feed, checked.y_feed)
        checked.bind(program)
        program.run(8, rate=model._compiled()[1].rates(1))  # warm
        record = program.run_record
        rates = model._compiled()[1].rates(100)
        record["rate"], record["first"], record["stop"] = executable.address(rates), 0, 100
        program._flags[:], program._team[:] = 0, 0
        program._flags[8] = 1
        workers = [
            threading.Thread(target=program._enter, args=(program._run_address, thread)) for thread in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LIMIT)
        assert program.progress[0] == 1


class Interrupted:
    """The engine's entry, interrupted as it is called for the `n`-th time."""

    def __init__(self, enter, n):
        self.enter, self.left = enter, n

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        self.enter(*arguments)


def test_interruption_between_slices():
    """A lone thread returns to Python now and then; Ctrl-C just before it enters again counts no batch twice."""
    n = 4096
    model = build(1)
    x, y = samples(n)
    checked = training.checked(model, x, y)
    program = training.executable(model, "train", n, 8, checked.x_feed, checked.y_feed)
    program._enter = Interrupted(program._enter, 3)
    with pytest.raises(KeyboardInterrupt):
        fit(model, n, epochs=1, shuffle=False)
    done = model._compiled()[1].iterations
    assert_same(model.get_weights(), replayed(5, n, "adam"))  # slices of 1, 4, ... steps
    assert done == 5


def test_interruption_before_the_first_step(monkeypatch):
    """Ctrl-C while an epoch is being prepared counts none of its batches."""
    model = build(1)
    fit(model, 64, epochs=1)
    optimizer = model._compiled()[1]
    assert optimizer.iterations == 8

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimizer, "rates", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, 64, epochs=1)
    assert optimizer.iterations == 8


def test_a_second_ctrl_c_waits_too(monkeypatch):
    """An impatient user's second Ctrl-C may not return while the team still writes the weights."""
    rng = np.random.default_rng(0)
    model = build(2, inputs=500, units=1500)  # a step of this takes 100 ms
    x, y = rng.standard_normal((4000, 500)).astype("float32"), rng.integers(0, 3, 4000)
    wait, calls = team.wait, []

    def impatient(futures, timeout=None):
        calls.append(1)
        if len(calls) < 3:
            time.sleep(0.01)
            raise KeyboardInterrupt
        return wait(futures, timeout)

    monkeypatch.setattr(team, "wait", impatient)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=1000, verbose=0)
    after = [w.copy() for w in model.get_weights()]
    time.sleep(0.5)
    assert_same(model.get_weights(), after)


@pytest.mark.usefixtures("small_steps_in_teams")
def test_a_team_that_cannot_start_leaves_no_thread_behind():
    """Interrupted (or refused a thread) while the team is being started: no thread may wait for ever at a barrier."""
    code = """
from concurrent.futures import ThreadPoolExecutor
import test_engine as t
from fastnn.cpu import executable
executable.ALONE = executable.TOGETHER = 0
submit, calls = ThreadPoolExecutor.submit, []
def second_fails(self, *arguments):
    calls.append(1)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return submit(self, *arguments)
ThreadPoolExecutor.submit = second_fails
model = t.build(2)
try:
    t.fit(model, epochs=1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
t.fit(model, epochs=1)
print("trained", flush=True)
"""
    done = run_python(code, timeout=10)
    assert done == "interrupted\ntrained\n"


def run_python(code, timeout=LIMIT):
    """What a fresh process prints; it is ended after `timeout` seconds."""
    command = [sys.executable, "-W", "error", "-c", code]
    here = os.path.dirname(__file__)
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as expired:
        return f"{(expired.stdout or b'').decode()}and hangs"
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- several runs at once -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [1, 2])
def test_two_fits_at_once(threads):
    expected = []
    for seed in (1, 2):
        model = build(threads, seed=seed)
        fit(model, epochs=10)
        expected.append(model.get_weights())
    models = [build(threads, seed=seed) for seed in (1, 2)]
    workers = [threading.Thread(target=fit, args=(model,), kwargs={"epochs": 10}) for model in models]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT)
        assert not worker.is_alive()
    for model, weights in zip(models, expected, strict=True):
        assert_same(model.get_weights(), weights)


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_predictions_of_one_model_at_once(threads, rows):
    """Each caller gets the outputs for its own rows: a server has threads, and one model."""
    model = build(threads)
    inputs = [np.random.default_rng(seed).standard_normal((rows, 20)).astype("float32") for seed in range(4)]
    expected = [model.predict(x, verbose=0) for x in inputs]
    wrong = []

    def work(x, right):
        for _ in range(200):
            if not np.array_equal(model.predict(x, verbose=0), right):
                wrong.append(x)

    callers = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LIMIT)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_fit_in_a_forked_child(threads):
    """The parent has an idle team, which does not survive the fork; the child makes its own."""
    model = build(threads)
    fit(model, epochs=1)
    assert threads == 1 or team._idle[threads]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(LIMIT)
            fit(model)
            fresh = build(threads, seed=7)
            fit(fresh)
            with os.fdopen(writer, "wb") as pipe:
                for w in (*model.get_weights(), *fresh.get_weights()):
                    pipe.write(w.tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    fit(model)  # the parent goes on as if nothing had happened
    fresh = build(threads, seed=7)
    fit(fresh)
    assert found == b"".join(w.tobytes() for w in (*model.get_weights(), *fresh.get_weights()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_another_thread_loads_a_kernel():
    """The child has the loader's lock as it was, but not the thread that would release it."""
    code = """
import os, signal, threading
import test_engine as t
from fastnn.cpu import loader
held, over = threading.Event(), threading.Event()
def load():
    with loader._lock:
        held.set()
        over.wait()
worker = threading.Thread(target=load)
worker.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(5)
    t.fit(t.build(1))
    os._exit(0)
over.set()
worker.join()
print(os.waitpid(pid, 0)[1])
"""
    assert run_python("import warnings; warnings.simplefilter('ignore', DeprecationWarning)" + code) == "0\n"


def _train_and_report(connection):
    model = build(2)
    fit(model)
    connection.send([w.tobytes() for w in model.get_weights()])


def test_fit_in_a_spawned_process():
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_report, args=(writer,))
    process.start()
    assert reader.poll(LIMIT)
    found = reader.recv()
    process.join(LIMIT)
    assert process.exitcode == 0
    model = build(2)
    fit(model)
    assert found == [w.tobytes() for w in model.get_weights()]


# --- memory ---------------------------------------------------------------------------------------------------------


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


def malloced():
    """Bytes that malloc has given out, mapped ones included; None where the C library does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def growth(run, steps):
    """Python's peak of memory during `run(steps)`, and what malloc has given out for good, in bytes."""
    gc.collect()
    native = malloced()
    tracemalloc.start()
    run(steps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, (malloced() or 0) - (native or 0)


def stepper(threads):
    """A function that trains a number of steps of an epoch of 10,000."""
    n = 80_000
    model = build(threads, inputs=4)
    x, y = samples(n, 4)
    checked = training.checked(model, x, y)
    program = training.executable(model, "train", n, 8, checked.x_feed, checked.y_feed)
    checked.bind(program, np.arange(n))
    rates = model._compiled()[1].rates(10_000)

    def run(steps):
        program.run(n, rate=rates, stop=steps)

    run(10_000)
    return run


SPARE = 16_384  # bytes: a few Python objects for each slice of 20 ms, not for each step


@pytest.mark.usefixtures("small_steps_in_teams")
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_allocate_nothing(threads):
    run = stepper(threads)
    for _ in range(2):
        few, many = growth(run, 100), growth(run, 10_000)
    assert many[0] - few[0] < SPARE
    assert many[1] - few[1] < SPARE


def test_allocations_would_be_seen():
    """16 bytes a step are found: Python's and malloc's."""
    run = stepper(1)
    kept = []
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def with_python_objects(steps):
        run(steps)
        kept.extend(bytes([i % 256]) * 16 for i in range(steps))

    def with_malloc(steps):
        run(steps)
        kept.extend(libc.malloc(16) for _ in range(steps))

    assert growth(with_python_objects, 10_000)[0] - growth(run, 100)[0] > SPARE
    kept.clear()
    if malloced() is not None:
        assert growth(with_malloc, 10_000)[1] - growth(run, 100)[1] > SPARE
        for pointer in kept:
            libc.free(pointer)


def test_resident_memory_does_not_grow():
    """Epochs leave nothing behind: RSS after 200 more of them."""
    statm = "/proc/self/statm"
    if not os.path.exists(statm):
        pytest.skip("no /proc here")

    def resident():
        gc.collect()
        with open(statm) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    model = build(2)
    fit(model, epochs=50)
    before = resident()
    fit(model, epochs=200)
    assert resident() - before < 2 << 20
