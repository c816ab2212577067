"""What tests share."""

import pytest

from fastnn.cpu import builtin, calls

TABLES = (calls.MAPS, calls.UPDATES, calls.PRODUCTS, calls.LOSSES)


def forget():
    for table in TABLES:
        table.clear()
        table._calls.clear()


@pytest.fixture(params=["direct", "ordinary"])
def way(request, monkeypatch):
    """With builtin functions and without."""
    if request.param == "ordinary":
        forget()
        monkeypatch.setattr(builtin, "python", lambda: 0)
    yield request.param
    if request.param == "ordinary":
        forget()
