"""`pytest benchmarks --benchmark-only`: every rival, checked and then timed, rivals of one case in one group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastnn
from benchmarks import checks, compare, machine, rivals
from benchmarks.cases import OPERATIONS

EPOCHS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, help="threads of every library; default: the CPUs this process may use")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # rivals' warnings are not fastnn's
            item.add_marker(pytest.mark.benchmark(max_time=0.2, min_rounds=5))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["fastnn"] = machine.describe(fastnn.get_num_threads())


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return machine.use_threads(request.config.getoption("--threads"))


@pytest.fixture
def race(benchmark: Any, threads: int) -> Callable[[str, str, str], None]:
    """Check a rival, then time it."""

    def run(operation: str, case: str, library: str) -> None:
        checks.check(operation, library, case)
        call = rivals.make(operation, library, case)
        steps = getattr(call, "steps", 1)
        benchmark.group = f"{OPERATIONS[operation].title}, {case}" + (
            f" (epochs of {steps} steps)" if steps > 1 else ""
        )
        if library == "python" and steps > 1:
            benchmark.group += " in pure Python"  # a shorter epoch, so a group of its own
        benchmark.extra_info |= {"operation": operation, "case": case, "library": library}
        benchmark.extra_info |= {"threads": threads, "steps": steps, "unit": OPERATIONS[operation].unit}
        call()
        compare.settle()
        if steps > 1:
            benchmark.pedantic(call, rounds=EPOCHS)
        else:
            benchmark(call)

    return run
