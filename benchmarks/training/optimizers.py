"""fastnn's optimizers beside each other, with the bytes of parameters and state that a step reads and writes.

The update is fused into the product that gives the gradient, so the gradient itself never reaches memory: plain SGD
reads and writes the parameters, 8 bytes for each in float32, and every state adds as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import fastnn
from benchmarks import cases, compare
from benchmarks.cases import MLP, RATE
from benchmarks.networks import FastnnNetwork
from benchmarks.training.part import Record, Settings, figures

MOMENTUM, RHO, EPSILON = 0.9, 0.9, 1e-7
NETWORKS = {  # sizes and steps: one whose update is a part of the step, and one that is little else
    "784-256-10 softmax, batch 32": (MLP, 938),
    "784-2048-2048-10 softmax, batch 32": ((784, 2048, 2048, 10), 30),
}
BATCH = 32
CHECKED = 4  # steps
TOLERANCE = 1e-3  # of the change: rounding the weights makes 1e-4 of SGD's, where epsilon is added 9e-3 of Adam's
Arrays = list[np.ndarray]


class Rule(NamedTuple):
    """An optimizer, and the updates of its parameters in float64 for gradients that a function gives."""

    make: Callable[[], Any]
    train: Callable[..., Arrays]


def _momentum(factor: float) -> Callable[..., Arrays]:
    def train(x: np.ndarray, y: np.ndarray, weights: Arrays, batch: int) -> Arrays:
        p = [e.astype(np.float64) for e in weights]
        v = [np.zeros_like(e) for e in p]
        for start in range(0, len(x), batch):
            grads = cases.gradients(p, x[start : start + batch], y[start : start + batch])
            for e, g, v_e in zip(p, grads, v, strict=True):
                v_e *= factor
                v_e -= RATE * g
                e += v_e
        return p

    return train


def _rmsprop(x: np.ndarray, y: np.ndarray, weights: Arrays, batch: int) -> Arrays:
    p = [e.astype(np.float64) for e in weights]
    v = [np.zeros_like(e) for e in p]
    for start in range(0, len(x), batch):
        grads = cases.gradients(p, x[start : start + batch], y[start : start + batch])
        for e, g, v_e in zip(p, grads, v, strict=True):
            v_e += (1 - RHO) * (g * g - v_e)
            e -= RATE * g / np.sqrt(v_e + EPSILON)
    return p


def rules() -> dict[str, Rule]:
    """The optimizers that there are, by title."""
    module = fastnn.optimizers
    found = {
        "SGD": Rule(lambda: module.SGD(RATE), _momentum(0.0)),
        "SGD, momentum": Rule(lambda: module.SGD(RATE, momentum=MOMENTUM), _momentum(MOMENTUM)),
    }
    if hasattr(module, "RMSprop"):
        found["RMSprop"] = Rule(lambda: module.RMSprop(RATE, rho=RHO, epsilon=EPSILON), _rmsprop)
    found["Adam"] = Rule(lambda: module.Adam(RATE, epsilon=cases.EPSILON), partial(cases.train, late_epsilon=False))
    return found


def check(title: str, rule: Rule, sizes: tuple[int, ...] = MLP) -> None:
    """Raise AssertionError if some steps do not change the weights as in float64."""
    inputs = cases.training_inputs(sizes, BATCH, CHECKED * BATCH)
    network = FastnnNetwork(**inputs, optimizer=rule.make())
    network.epoch(shuffle=False)
    triples = list(zip(inputs["weights"], network.weights(), rule.train(**inputs), strict=True))
    change = np.concatenate([(want - before).ravel() for before, _, want in triples])
    wrong = np.concatenate([(got - want).ravel() for _, got, want in triples])
    error = np.linalg.norm(wrong) / np.linalg.norm(change)
    assert error <= TOLERANCE, f"{title}: relative error {error:.2g}"


def step_bytes(sizes: tuple[int, ...], optimizer: Any) -> int:
    """Bytes of float32 parameters and state that one step reads and writes."""
    parameters = sum((n + 1) * m for n, m in pairwise(sizes))
    return 2 * 4 * parameters * (1 + optimizer.update().states)


def run(settings: Settings) -> Iterator[Record]:
    """Check all optimizers and time their steps; one record for each network and optimizer."""
    table = rules()
    for title, rule in table.items():
        check(title, rule)
    for name, (sizes, steps) in NETWORKS.items():
        rows = BATCH * (max(2, steps // 20) if settings.quick else steps)
        inputs = cases.training_inputs(sizes, BATCH, rows)
        calls = {title: FastnnNetwork(**inputs, optimizer=rule.make()) for title, rule in table.items()}
        samples = compare.interleaved(calls, settings.rounds)
        for title, rule in table.items():
            record = {"network": name, "optimizer": title, "bytes": step_bytes(sizes, rule.make())}
            yield record | figures([seconds / calls[title].steps for seconds in samples[title]])
