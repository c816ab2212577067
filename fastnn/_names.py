"""Looking things up by name, with errors that help."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
INFINITY = float("inf")


def find(name: str, table: Mapping[str, T], what: str) -> T:
    """The entry `name` of `table`; an unknown name raises a ValueError that suggests the nearest."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {name!r}.{hint} Known: {', '.join(sorted(table))}.")


def number(
    value: object,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a finite float within bounds (open or closed), or an error that says what was expected."""
    if (
        type(value) is float
        and low is not None
        and (low < value or (low == value and not open_low))
        and value < (INFINITY if high is None else high)
    ):
        return value  # the usual case, at once
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    x = float(value)  # type: ignore[arg-type]
    below = low is not None and (x <= low if open_low else x < low)
    above = high is not None and (x >= high if open_high else x > high)
    if x != x or x in (INFINITY, -INFINITY) or below or above:
        left = "" if low is None else f" {'>' if open_low else '>='} {low:g}"
        right = "" if high is None else f" {'<' if open_high else '<='} {high:g}"
        raise ValueError(
            f"{name} must be a finite number{left}{' and' if left and right else ''}{right}, got {value!r}"
        )
    return x


def integer(value: object, name: str, *, low: int) -> int:
    """`value` as an int of at least `low`, or an error that says what was expected."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    n = value.__index__()
    if n < low:
        raise ValueError(f"{name} must be at least {low}, got {n}")
    return n
