"""Activations, and binary cross-entropy with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.rivals import matrix


@pytest.mark.parametrize(("operation", "case", "library"), matrix("relu", "sigmoid", "tanh", "softmax", "bce_gradient"))
def test_bench_functions(race: Callable[[str, str, str], None], operation: str, case: str, library: str) -> None:
    race(operation, case, library)
