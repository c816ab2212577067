"""Where fastnn's threads run, and that helpers change nothing but the time."""

import os
import threading

import numpy as np
import pytest

import fastnn
from fastnn.cpu import crowd, placement, team
from fastnn.cpu.blocking import SHARES

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no such call")


@linux
def test_threads_of_a_team_keep_apart():
    before = os.sched_getaffinity(0)
    threads = min(2, len(before))
    seen = {}
    with team.borrow(2) as crew:
        crew.run(lambda thread: seen.update({thread: os.sched_getaffinity(0)}), lambda: None, None)
    if threads == 2:
        assert not seen[0] & seen[1]
        assert seen[0] | seen[1] == before
    assert os.sched_getaffinity(0) == before


@linux
def test_a_team_follows_the_process():
    """Moved to fewer CPUs, and back: the same team runs where the process may."""
    before = os.sched_getaffinity(0)
    seen = []

    def look(thread):
        seen.append(os.sched_getaffinity(0))

    with team.borrow(2) as crew:
        crew.run(lambda thread: None, lambda: None, None)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert placement.allowed() == [min(before)]
            crew.run(look, lambda: None, None)
            assert seen == [{min(before)}] * 2
        finally:
            os.sched_setaffinity(0, before)
        seen.clear()
        crew.run(look, lambda: None, None)
    assert all(cpus <= before for cpus in seen)
    if len(before) >= 2:
        assert not seen[0] & seen[1]


def test_more_threads_than_cpus_go_anywhere():
    count = len(placement.allowed())
    assert placement.apart(count + 1) == [set(placement.allowed())] * (count + 1)
    if count:
        groups = placement.apart(count)
        assert sorted(cpu for group in groups for cpu in group) == placement.allowed()
    placement.keep_to(set())


def test_helpers_compute_the_same_bits():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 310)), rng.standard_normal((310, 290))
    results = []
    for threads in (1, 2, 3):
        fastnn.set_num_threads(threads)
        results += [fastnn.matmul(a, b) for _ in range(20)]
    fastnn.set_num_threads(None)
    assert all((r == results[0]).all() for r in results)


def test_a_busy_crowd_declines():
    helpers = crowd.get()
    a = np.ones((300, 300))
    fastnn.set_num_threads(2)
    fastnn.matmul(a, a)  # from now on Python has no part in it
    helpers.words[crowd.TAKEN] = 1
    before = int(helpers.words[crowd.JOB])
    try:
        assert helpers.run(0, 0, 2) is False
        assert (fastnn.matmul(a, a) == 300).all()  # by the caller alone
        assert helpers.words[crowd.JOB] == before
    finally:
        fastnn.set_num_threads(None)
        helpers.words[crowd.TAKEN] = 0


def test_many_callers_at_once():
    """Products from several threads: one has the helpers, the others compute by themselves."""
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((260, 270)), rng.standard_normal((270, 280))) for _ in range(4)]
    expected = [fastnn.matmul(a, b) for a, b in pairs]
    wrong = []

    def work(which):
        a, b = pairs[which]
        wrong.extend(1 for _ in range(30) if (fastnn.matmul(a, b) != expected[which]).any())

    fastnn.set_num_threads(2)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fastnn.set_num_threads(None)
    assert not wrong


def test_every_share_is_done_once():
    """Shares are counted back to the fixed number, whoever took them."""
    a = np.ones((400, 400), np.float32)
    fastnn.set_num_threads(3)
    for _ in range(50):
        fastnn.matmul(a, a)
        words = crowd.get().words
        assert words[crowd.FINISHED] == SHARES
        assert 0 <= words[crowd.BACK] <= SHARES
        assert words[crowd.TAKEN] == 0
    fastnn.set_num_threads(None)


@linux
@pytest.mark.skipif(len(placement.allowed()) < 2, reason="there is one CPU only")
def test_helpers_make_way_for_the_caller():
    """Wherever the system moves the caller, at the next job all helpers are elsewhere, also those it does not use."""
    a = np.ones((300, 300), np.float32)
    before = os.sched_getaffinity(0)
    fastnn.set_num_threads(3)
    fastnn.matmul(a, a)
    fastnn.set_num_threads(2)
    try:
        for cpu in [*sorted(before)[:2]] * 3:
            os.sched_setaffinity(0, {cpu})
            for _ in range(20):  # a new helper may not have started at the first
                fastnn.matmul(a, a)
            for place in (1, 2):
                helper = crowd.get().lines[crowd.LINE * place + crowd.THREAD]
                assert os.sched_getaffinity(int(helper)) == before - {cpu}
    finally:
        os.sched_setaffinity(0, before)
        fastnn.set_num_threads(None)
