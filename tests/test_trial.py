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
        decided.run(self.steps, 0, steps, None)
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
    decided.run(world.steps, 0, 1, None)
    world.seconds[TEAM] = 50e-6
    assert world.run(decided, 1000)[TEAM] > 0.9


def test_slices_make_up_the_run(monkeypatch):
    world, told = World(monkeypatch, 300e-6, 80e-6), []
    trial.Trial().run(world.steps, 7, 1234, told.append)
    assert [e for _, first, stop in world.slices for e in range(first, stop)] == list(range(7, 1234))
    assert told == [stop for _, _, stop in world.slices]
    assert {way for way, _, _ in world.slices} == {TEAM, ONE}
    world.slices.clear()
    trial.Trial().run(world.steps, 3, 3, told.append)
    assert not world.slices


@pytest.mark.parametrize("threads", [2, 3])
def test_the_bits_are_the_same(threads, monkeypatch):
    """Ways that change after every few steps, products that are claimed among them; the steps of all are done once."""
    monkeypatch.setattr(division, "CLAIMED", 0)
    turns = itertools.cycle([(TEAM, 1e-9), (ONE, 1e-9)])
    chosen = []
    monkeypatch.setattr(trial.Trial, "_choose", lambda self, now: chosen.append(next(turns)) or chosen[-1])
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
