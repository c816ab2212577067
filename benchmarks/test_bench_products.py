"""Matrix products, and the layer that adds bias and relu to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.rivals import matrix


@pytest.mark.parametrize(("operation", "case", "library"), matrix("matmul", "dense_relu"))
def test_bench_products(race: Callable[[str, str, str], None], operation: str, case: str, library: str) -> None:
    race(operation, case, library)
