"""Steps by a team or by one thread, whichever is faster: the decisions, on a clock of their own, and the bits."""

import itertools

import numpy as np
import pytest

import fastnn
from fastnn.cpu import division, trial
from fastnn.cpu.trial import ONE, TEAM
from fastnn.layers import Dense, Dropout, Input


class World:
    """A machine on which a step takes so many seconds, and a clock."""

    def __init__(self, monkeypatch, team, one):
        self.seconds, self.now, self.slices = [team, one], 0.0, []
        monkeypatch.setattr(trial.time, "perf_counter", lambda: self.now)

    def steps(self, way, first, stop):
        self.slices.append((way, first, stop))
        self.now += (stop - first) * self.seconds[way]

    def run(self, decided, steps):
        """Run some steps; returns the share of the time in which each way was used."""
        begin, self.slices = self.now, []
        decided.run(self.steps, 0, steps)
        spent = [0.0, 0.0]
        for way, first, stop in self.slices:
            spent[way] += (stop - first) * self.seconds[way]
        return [e / (self.now - begin) for e in spent]


@pytest.mark.parametrize(("team", "one", "better"), [(50e-6, 80e-6, TEAM), (120e-6, 80e-6, ONE)])
def test_the_faster_way_is_found(team, one, better, monkeypatch):
    world, decided = World(monkeypatch, team, one), trial.Trial()
    world.run(decided, 100)
    assert world.run(decided, 20_000)[better] > 0.99


def test_it_is_found_again_when_it_changes(monkeypatch):
    world, decided = World(monkeypatch, 50e-6, 80e-6), trial.Trial()
    assert world.run(decided, 20_000)[TEAM] > 0.98
    world.seconds[TEAM] = 200e-6
    world.run(decided, 1000)
    assert world.run(decided, 20_000)[ONE] > 0.98
    world.seconds[TEAM] = 50e-6
    world.run(decided, 3000)
    assert world.run(decided, 20_000)[TEAM] > 0.98


def test_an_interruption_changes_nothing(monkeypatch):
    world, decided = World(monkeypatch, 50e-6, 80e-6), trial.Trial()
    world.run(decided, 1000)
    world.seconds[TEAM] = 120e-6
    decided.run(world.steps, 0, 1)
    world.seconds[TEAM] = 50e-6
    assert world.run(decided, 1000)[TEAM] > 0.9


def test_slices_make_up_the_run(monkeypatch):
    world, told = World(monkeypatch, 300e-6, 80e-6), []
    trial.Trial().run(world.steps, 7, 1234, watch=told.append)
    assert [e for _, first, stop in world.slices for e in range(first, stop)] == list(range(7, 1234))
    assert set(told) <= {stop for _, _, stop in world.slices}
    assert told[-1] == 1234
    assert {way for way, _, _ in world.slices} == {TEAM, ONE}
    world.slices.clear()
    trial.Trial().run(world.steps, 3, 3, watch=told.append)
    assert not world.slices


@pytest.mark.parametrize(("better", "seconds"), [(TEAM, [65e-6, 83e-6]), (ONE, [83e-6, 65e-6])])
def test_the_first_step_of_a_way_does_not_count(better, seconds, monkeypatch):
    """A team that sleeps while one thread works takes 100 us to wake; one thread finds nothing in its caches."""
    world, decided = World(monkeypatch, *seconds), trial.Trial()
    decided.seconds = [83e-6, 83e-6]
    decided.seconds[better] = 90e-6
    before = [None]

    def steps(way, first, stop):
        world.now += 100e-6 if way != before[-1] else 0
        before.append(way)
        World.steps(world, way, first, stop)

    decided.run(steps, 0, 4000)
    assert decided.seconds[better] == pytest.approx(65e-6, rel=0.1)  # the last steps of a run may be a look
    assert before[-1] == better


def test_a_short_step_tells_nothing(monkeypatch):
    world, decided = World(monkeypatch, 50e-6, 80e-6), trial.Trial()
    world.run(decided, 1000)
    world.seconds = [1e-6, 1e-6]
    decided.run(world.steps, 0, 1, short=0)
    assert decided.seconds[TEAM] == pytest.approx(50e-6)


def test_looks_are_rare_in_short_runs(monkeypatch):
    """The time between runs is not counted."""
    world, decided = World(monkeypatch, 200e-6, 100e-6), trial.Trial()
    world.run(decided, 100)
    spent = 0.0
    for _ in range(300):
        world.now += 0.2
        begin = world.now
        world.run(decided, 4)
        spent += world.now - begin
    assert spent < 1.02 * 300 * 4 * 100e-6


@pytest.mark.parametrize("threads", [2, 3])
def test_the_bits_are_the_same(threads, monkeypatch):
    """Ways that change after every few steps, products that are claimed among them; the steps of all are done once."""
    monkeypatch.setattr(division, "CLAIMED", 0)
    turns = itertools.cycle([(TEAM, 1e-9), (ONE, 1e-9)])
    chosen = []
    monkeypatch.setattr(trial.Trial, "_choose", lambda self: chosen.append(next(turns)) or chosen[-1])
    x = np.random.default_rng(0).standard_normal((1000, 20)).astype("float32")
    found = []
    for n_threads in (1, threads):
        layers = [Input((20,)), Dense(200, "relu"), Dropout(0.1), Dense(120, "tanh"), Dense(3)]
        model = fastnn.Sequential(layers, seed=5, n_threads=n_threads)
        model.compile("adam", "mse")
        model.fit(x, x[:, :3], batch_size=128, epochs=3, verbose=0)
        found.append([*model.get_weights(), model.predict(x), np.array(model.history.history["loss"])])
        assert model.optimizer.iterations == 3 * 8
    assert len({way for way, _ in chosen}) == 2
    for a, b in zip(*found, strict=True):
        assert a.tobytes() == b.tobytes()
