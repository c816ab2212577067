"""Random orders: complete, reproducible, and each as likely as any other."""

from collections import Counter

import numpy as np
import pytest

import fastnn
from fastnn import layers
from fastnn.cpu.executable import permutation


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000, 100_003])
def test_each_number_once(n):
    np.testing.assert_array_equal(np.sort(permutation(n, np.random.default_rng(n))), np.arange(n))


def test_the_generator_decides():
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    first = permutation(50, one)
    np.testing.assert_array_equal(first, permutation(50, other))
    assert (permutation(50, one) != first).any(), "the next one is another"


def test_one_number_is_drawn_for_an_order():
    """As `Generator.integers` draws it, so that what comes after it is the same."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    permutation(50, one)
    other.integers(-(2**63), 2**63)
    assert one.random() == other.random()


def test_memory_is_used_again():
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    first = permutation(50, one)
    want = permutation(50, other), permutation(50, other)
    assert permutation(50, one, first) is first
    np.testing.assert_array_equal(first, want[1])
    assert permutation(51, one, first) is not first
    assert permutation(50, one, None) is not first


def test_epochs_use_the_memory_of_the_last_order():
    model = fastnn.Sequential([layers.Input((2,)), layers.Dense(1)], seed=0)
    model.compile("sgd", "mse")
    x, y = np.zeros((50, 2), np.float32), np.zeros((50, 1), np.float32)
    model.fit(x, y, verbose=0)
    (program,) = model._programs._kept.values()
    first = program.order
    before = first.copy()
    model.fit(x, y, verbose=0)
    assert program.order is first
    np.testing.assert_array_equal(np.sort(first), np.arange(50))
    assert (first != before).any()


def test_every_order_is_as_likely():
    rng = np.random.default_rng(0)
    draws = 24_000
    found = Counter(tuple(permutation(4, rng)) for _ in range(draws))
    assert len(found) == 24
    # Chi squared with 23 degrees of freedom: above 50 in one of 1,000 experiments.
    assert sum((count - draws / 24) ** 2 / (draws / 24) for count in found.values()) < 50


def test_every_place_is_as_likely():
    rng = np.random.default_rng(0)
    places = np.mean([permutation(1000, rng) for _ in range(2000)], axis=0)
    # The mean of 2,000 uniform numbers below 1000 has a standard deviation of 6.5.
    assert abs(places - 499.5).max() < 5 * 6.5
