"""How many threads fastnn may use."""

import array
import functools
import math
import os
from pathlib import Path

_chosen: int | None = None
EPOCH = array.array("q", [0])  # which setting this is; compiled code reads it where it keeps what depends on threads


def cpus() -> int:
    """CPUs this process may run on now: the affinity of its first thread, since others may be kept to some CPUs."""
    return len(os.sched_getaffinity(os.getpid())) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def available_cpus() -> int:
    """CPUs this process may use: its affinity, its cgroup's quota or joblib's limit for workers, whichever is least."""
    limits = [cpus()]
    quota = _cgroup_quota()
    if quota is not None:
        limits.append(max(1, math.ceil(quota)))
    # joblib's workers are told through these how many threads each may start; users set them for the same purpose.
    for name in ("FASTNN_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isdigit() and int(text) > 0:
            limits.append(int(text))
    return min(limits)


def _cgroup_quota() -> float | None:
    """CPUs' worth of time that the cgroup grants (v2, then v1), or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        quota_us = int((base / "cpu.cfs_quota_us").read_text())
        return quota_us / int((base / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def check_threads(n_threads: int | None, name: str = "n_threads") -> int:
    """Validate a number of threads; None means `get_num_threads`."""
    if n_threads is None:
        return get_num_threads()
    if isinstance(n_threads, bool) or not hasattr(n_threads, "__index__"):
        raise TypeError(f"{name} must be an integer or None, got {n_threads!r}")
    if not 1 <= n_threads <= 1024:
        raise ValueError(f"{name} must be between 1 and 1024, got {n_threads}")
    return int(n_threads)


def usable_threads(n_threads: int | None) -> int:
    """How many threads the steps of a model get: `check_threads`, but no more than there are CPUs.

    More of them would wait for each other, eight on two CPUs 1.2 to 1.8 times as long; the bits are the same.
    """
    wanted = check_threads(n_threads)
    return wanted if wanted <= available_cpus() else min(wanted, cpus())


def set_num_threads(n: int | None) -> None:
    """Set how many threads models and functions use at most, unless told otherwise.

    Parameters
    ----------
    n : int or None
        Number of threads; None returns to the default, the CPUs this process may use.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer between 1 and 1024.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.set_num_threads(1)
    >>> fastnn.get_num_threads()
    1
    >>> fastnn.set_num_threads(None)
    """
    global _chosen
    _chosen = None if n is None else check_threads(n, "n")
    EPOCH[0] += 1


def _after_fork() -> None:
    EPOCH[0] += 1  # no helper survives


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get_num_threads() -> int:
    """Return how many threads models and functions use at most, unless told otherwise.

    Without `set_num_threads` this is the number of CPUs the process may use: its affinity, its cgroup's quota and
    ``FASTNN_NUM_THREADS`` or ``OMP_NUM_THREADS``, whichever is least.

    Examples
    --------
    >>> import fastnn
    >>> fastnn.get_num_threads() >= 1
    True
    """
    return available_cpus() if _chosen is None else _chosen
