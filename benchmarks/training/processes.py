"""Processes of their own: what a program costs from its start, which no repetition inside a process tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.training.part import Record

ROOT = Path(__file__).parents[2]
THREADS = ("FASTNN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def call(module: str, *arguments: str, threads: int, **environment: str) -> Record:
    """Run a module of this package, which ends with a line of JSON; with it, the seconds until the process ended."""
    given = dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | environment
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), given.get("PYTHONPATH")]))
    # Rivals are installed, with their bytecode; so is fastnn at its users', and not compiled anew by each process.
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", f"benchmarks.training.{module}", *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": wall}
