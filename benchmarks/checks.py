"""Whether a rival computes what it is timed for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from benchmarks import cases, networks, rivals
from benchmarks.cases import OPERATIONS

MOVES = 10  # tolerances that training has to change the loss by, or it could hide in them


def check(operation: str, library: str, case: str) -> None:
    """Raise AssertionError if a library's answer differs from the one in float64."""
    spec = OPERATIONS[operation]
    what = f"{library}: {spec.title}, {case}"
    if operation == "train":
        sizes, batch, _ = spec.cases[case]
        check_training(networks.NETWORKS[library], sizes, batch, what)
        return
    inputs = spec.make(case)
    call = rivals.COMPARISONS[operation][library](**inputs)
    check_answer(call, spec.calls, spec.reference(**inputs), spec.tolerance, what)


def check_answer(call: rivals.Rival, calls: int, expected: Any, tolerance: float, what: str) -> None:
    """Raise AssertionError if the last of some calls does not give what is expected."""
    for _ in range(calls):
        answer = call()
    for got, want in zip(_arrays(answer), _arrays(expected), strict=True):
        assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
        error = np.max(np.abs(got - want)) / np.max(np.abs(want))
        assert error <= tolerance, f"{what}: relative error {error:.2g}"


def _arrays(values: Any) -> list[np.ndarray]:
    return [np.asarray(e) for e in (values if isinstance(values, tuple) else (values,))]


def check_training(
    network: type[networks.Network], sizes: tuple[int, ...], batch: int, what: str, regression: bool = False
) -> None:
    """Train a few batches in a fixed order: the loss must be that of float64, and far from what it was before.

    Not lower: in its first steps of 0.001 a layer of 2048 units goes too far.
    """
    inputs = cases.training_inputs(sizes, batch, networks.PYTHON_BATCHES * batch, regression)
    before, expected = _losses(sizes, batch, regression, network.late_epsilon)
    trained = network(**inputs)
    trained.epoch(shuffle=False)
    found = cases.training_loss(inputs["x"], inputs["y"], trained.weights())
    tolerance = OPERATIONS["train"].tolerance
    assert abs(expected - before) > MOVES * tolerance * expected, f"{what}: the loss stays near {before}"
    assert abs(found - expected) <= tolerance * expected, f"{what}: loss {found}, expected {expected}"


@cache
def _losses(sizes: tuple[int, ...], batch: int, regression: bool, late_epsilon: bool) -> tuple[float, float]:
    """The losses before and after training in float64."""
    inputs = cases.training_inputs(sizes, batch, networks.PYTHON_BATCHES * batch, regression)
    x, y = inputs["x"], inputs["y"]
    trained = cases.train(**inputs, late_epsilon=late_epsilon)
    return cases.training_loss(x, y, inputs["weights"]), cases.training_loss(x, y, trained)
