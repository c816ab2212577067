"""Optimizers' updates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.rivals import matrix


@pytest.mark.parametrize(("operation", "case", "library"), matrix("sgd", "adam"))
def test_bench_updates(race: Callable[[str, str, str], None], operation: str, case: str, library: str) -> None:
    race(operation, case, library)
