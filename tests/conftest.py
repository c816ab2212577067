"""What tests share."""

import pytest

from fastnn import threads, training
from fastnn.cpu import builtin, calls

TABLES = (calls.MAPS, calls.UPDATES, calls.PRODUCTS, calls.LOSSES)


def forget():
    for table in TABLES:
        table.clear()
        table._calls.clear()


@pytest.fixture(autouse=True)
def as_many_threads_as_asked_for(monkeypatch):
    """Models have them although there are fewer CPUs."""
    monkeypatch.setattr(training, "usable_threads", threads.check_threads)


@pytest.fixture(params=["direct", "ordinary"])
def way(request, monkeypatch):
    """With builtin functions and without."""
    if request.param == "ordinary":
        forget()
        monkeypatch.setattr(builtin, "python", lambda: 0)
    yield request.param
    if request.param == "ordinary":
        forget()
