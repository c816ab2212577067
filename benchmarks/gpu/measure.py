"""How parts measure and report: records of a value, its unit and what shows that the work was right."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import driver

SAMPLES = 5  # the median counts
SAMPLE_SECONDS = 0.02


class AbsentError(RuntimeError):
    """What a part needs is not here."""


class Report:
    """Writes one JSON object a line, at once: what was measured survives a crash.

    Parameters
    ----------
    path : Path
        The file.
    part : str
        The part that measures.
    quick : bool
        Whether few samples of small cases will do.
    """

    def __init__(self, path: Path, part: str, *, quick: bool = False) -> None:
        self.path, self.part, self.quick = path, part, quick

    def add(self, what: str, value: Any, unit: str = "", error: float | None = None, check: str = "") -> None:
        """Report a value; `check` says what `error` is (an error, or a count of what is wrong)."""
        told = error if error is None or math.isfinite(error) else str(error)  # JSON has no infinity
        self._write({"what": what, "value": value, "unit": unit, "error": told, "check": check})

    def skip(self, what: str, reason: str) -> None:
        """Report what could not be measured, and why."""
        self._write({"what": what, "skipped": reason})

    def attempt(self, what: str, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function; what it raises is reported, and the next one is tried.

        A failed kernel takes the whole process's context with it, so that all after it fail with the same words: they
        are reported too, rather than guessed at.
        """
        try:
            function(*arguments)
        except AbsentError as error:
            self.skip(what, str(error))
        except Exception as error:
            self.skip(what, f"{type(error).__name__}: {error}".strip().splitlines()[0])

    def _write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.part, **record}) + "\n")


def device_seconds(stream: driver.Stream, queue: Callable[[], None], least: int = 1) -> float:
    """Seconds that the device needs for one call's work: the median of some samples of many calls."""
    queue()
    stream.synchronize()
    once = max(driver.elapsed(stream, queue), 1e-6)
    repeats = max(least, min(1000, round(SAMPLE_SECONDS / once)))

    def sample() -> None:
        for _ in range(repeats):
            queue()

    return statistics.median(driver.elapsed(stream, sample) / repeats for _ in range(SAMPLES))


def host_seconds(queue: Callable[[], Any], finish: Callable[[], Any], calls: int = 200) -> float:
    """Seconds of the host for one call, not counting the wait for what it queued.

    Few enough calls that the queue (1024 launches) is never full; the kernels must be shorter than their launches.
    """
    queue()
    finish()
    samples = []
    for _ in range(2 * SAMPLES + 1):
        began = time.perf_counter()
        for _ in range(calls):
            queue()
        samples.append((time.perf_counter() - began) / calls)
        finish()
    return statistics.median(samples)


# --- torch ------------------------------------------------------------------------------------------------------------


def torch_with_cuda() -> Any:
    """torch, if it can use the device."""
    try:
        import torch
    except ImportError as error:
        raise AbsentError(f"torch is not installed ({error})") from error
    if not torch.cuda.is_available():
        raise AbsentError(
            f"torch {torch.__version__} cannot use the device: it was built without CUDA, or finds no GPU"
        )
    return torch


def torch_seconds(torch: Any, call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the device for one call, in a graph of several, so that no launch counts."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose their kernels and get their workspace before the capture
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    samples = []
    graph.replay()
    for _ in range(SAMPLES):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(samples)
