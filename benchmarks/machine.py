"""The machine a run was made on, and how many of its threads every library gets."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import threadpoolctl

import fastnn
from benchmarks.rivals import installed

DISTRIBUTIONS = {"fastnn": "fastnn", "numpy": "numpy", "numba": "numba", "sklearn": "scikit-learn", "torch": "torch"}
DISTRIBUTIONS |= {"jax": "jax"}


def use_threads(n: int | None) -> int:
    """Give `n` threads to every library (None: the CPUs the process may use), and return how many.

    Call it before anything imports jax: XLA starts as many threads as the process then has CPUs, nothing else sets it.
    """
    n = n or fastnn.get_num_threads()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])
    elif n != os.cpu_count() and installed("jax"):
        raise RuntimeError(f"jax cannot be held to {n} threads on this system, which does not bind processes to CPUs")
    import sklearn.neural_network  # noqa: F401 - only pools of loaded libraries are limited

    threadpoolctl.threadpool_limits(n)  # the BLAS of NumPy and SciPy, OpenMP of scikit-learn
    fastnn.set_num_threads(n)
    if installed("torch"):
        import torch

        torch.set_num_threads(n)
    return n


def describe(threads: int) -> dict[str, Any]:
    """What a reader must know about a run."""
    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "load": load(),
    }


def load() -> float:
    """Average number of running processes in the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    found = {"fastnn": fastnn.__version__}
    for library, distribution in DISTRIBUTIONS.items():
        if library not in found and installed(library):
            found[library] = importlib.metadata.version(distribution)
    return found


def cpu_name() -> str:
    """The CPU as it calls itself."""
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
