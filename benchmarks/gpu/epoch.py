"""A whole epoch in one launch on MNIST, 784-256-10, beside torch: microseconds a step, each checked against float64."""

from __future__ import annotations

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import compile, driver
from benchmarks.gpu.epoch_kernel import DECAY_1, DECAY_2, SHAPES, SLOTS, Shape, kernel
from benchmarks.gpu.measure import AbsentError, Report, torch_with_cuda

HIDDEN, CLASSES = 256, 10
RATES = {"sgd": 0.1, "adam": 1e-3}
EPSILON = 1e-8  # torch's
CHECKED_STEPS = 50  # from the same weights, and then every parameter is compared; also the steps of torch's graphs
SAMPLES = 5
CHECK = "change of the parameters in 50 steps, error relative to it"
KERNELS = [kernel(shape) for shape in SHAPES]

Parameters = list[np.ndarray]


# --- the task ---------------------------------------------------------------------------------------------------------


def images() -> tuple[np.ndarray, np.ndarray, str]:
    """Training images (n, 784) and labels, both bytes, and where they are from; nothing is downloaded."""
    try:
        from fastnn import datasets
    except ImportError as error:
        return *_random_images(), f"random bytes (fastnn cannot be imported: {error})"
    own = os.environ.get("FASTNN_DATA")
    folders = [Path(own) / "mnist", Path(own)] if own else []
    folders.append(datasets._cache_folder())
    here = all(any((f / n).is_file() or (f / f"{n}.gz").is_file() for f in folders) for n in datasets.MNIST_FILES)
    if not here:
        return *_random_images(), "random bytes (MNIST is neither in FASTNN_DATA nor in the cache)"
    (x, y), _ = datasets.mnist.load_data()
    return x.reshape(len(x), -1), y, "MNIST"


def _random_images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (60000, 784), np.uint8), rng.integers(0, CLASSES, 60000).astype(np.uint8)


def initial(pixels: int, hidden: int, classes: int) -> Parameters:
    """Kernel and bias of each layer: Glorot's uniform numbers, and small biases, so that these are checked too."""
    rng, found = np.random.default_rng(1), []
    for inputs, outputs in ((pixels, hidden), (hidden, classes)):
        limit = math.sqrt(6 / (inputs + outputs))
        found.append(rng.uniform(-limit, limit, (inputs, outputs)).astype(np.float32))
        found.append(rng.uniform(-0.1, 0.1, outputs).astype(np.float32))
    return found


def schedule(optimizer: str, steps: int) -> np.ndarray:
    """Rate and epsilon of each step; Adam's hold its corrections, as fastnn writes them."""
    t = np.arange(1, steps + 1, dtype=np.float64)
    if optimizer == "sgd":
        return np.stack([np.full(steps, RATES["sgd"]), np.zeros(steps)], axis=1).astype(np.float32)
    root = np.sqrt(1 - DECAY_2**t)
    return np.stack([RATES["adam"] * root / (1 - DECAY_1**t), EPSILON * root], axis=1).astype(np.float32)


def reference(
    x: np.ndarray, y: np.ndarray, order: np.ndarray, parameters: Parameters, batch: int, optimizer: str
) -> tuple[Parameters, float]:
    """The parameters after the steps of `order`, and the sum of the losses of all rows, in float64."""
    p = [e.astype(np.float64) for e in parameters]
    m, v = ([np.zeros_like(e) for e in p] for _ in range(2))
    loss = 0.0
    steps = len(order) // batch
    for step, (rate, epsilon) in enumerate(schedule(optimizer, steps).astype(np.float64)):
        rows = order[step * batch : (step + 1) * batch]
        images, labels = x[rows] / 255.0, y[rows]
        h = np.maximum(images @ p[0] + p[1], 0)
        z = h @ p[2] + p[3]
        z -= z.max(axis=1, keepdims=True)
        total = np.exp(z).sum(axis=1, keepdims=True)
        loss += float((np.log(total[:, 0]) - z[np.arange(batch), labels]).sum())
        dz = np.exp(z) / total
        dz[np.arange(batch), labels] -= 1
        dz /= batch
        dh = (dz @ p[2].T) * (h > 0)
        gradients = [images.T @ dh, dh.sum(0), h.T @ dz, dz.sum(0)]
        for e, g, mean, square in zip(p, gradients, m, v, strict=True):
            if optimizer == "adam":
                mean += (1 - DECAY_1) * (g - mean)
                square += (1 - DECAY_2) * (g * g - square)
                e -= rate * mean / (np.sqrt(square) + epsilon)
            else:
                e -= rate * g
    return p, loss


def flat(parameters: Parameters) -> np.ndarray:
    """All parameters in one vector, as the kernel wants them."""
    return np.concatenate([e.ravel() for e in parameters])


def error_of(found: np.ndarray, begin: Parameters, expected: Parameters) -> float:
    """How far parameters are from where they should be, relative to the way they should have gone.

    A norm of all, because Adam takes whole steps where a gradient is as small as its rounding error.
    """
    way = flat(expected) - flat(begin)
    return float(np.linalg.norm(found - flat(expected)) / np.linalg.norm(way))


# --- in one launch ----------------------------------------------------------------------------------------------------


class Epoch:
    """A kernel with its memory, ready to run from given parameters."""

    def __init__(self, shape: Shape, x: np.ndarray, y: np.ndarray, order: np.ndarray, begin: Parameters) -> None:
        code = compile.build(kernel(shape), driver.capability())
        self.function = driver.Function(code.binary, code.entry, shape.dynamic)
        self.shape, self.hidden = shape, begin[1].size
        self.blocks = self.hidden // shape.units
        fits = self.function.blocks_at_once(shape.threads)
        if self.blocks > fits:
            raise AbsentError(f"{self.blocks} blocks cannot all run at once, {fits} can")
        self.steps = len(order) // shape.batch
        logits = shape.batch * shape.classes
        exchanged = logits * (self.blocks + 1 if shape.reduction == "ordered" else SLOTS)
        self.p, self.m, self.v = (driver.Memory.of(flat(begin)) for _ in range(3))
        self.m.clear()
        self.v.clear()
        self.exchange, self.counter = driver.Memory.zeros(4 * exchanged), driver.Memory.zeros(4)
        self.losses = driver.Memory.zeros(4 * self.blocks * shape.threads)
        self.schedule = driver.Memory.of(schedule(shape.optimizer, self.steps))
        self.data = [driver.Memory.of(e) for e in (x, y, order.astype(np.int32))]
        self.stream = driver.Stream()

    def run(self, steps: int | None = None) -> float:
        """Run some steps, all if not told how many; returns seconds of the device."""
        self.exchange.clear()
        self.counter.clear()
        state = [self.p, self.m, self.v, self.exchange, self.counter, self.losses]
        sizes = [ctypes.c_int32(self.steps if steps is None else steps), ctypes.c_int32(self.hidden)]
        grid = (self.blocks, 1, 1)
        arguments = [*self.data, self.schedule, *state, *sizes]
        queue = self.function.prepare(grid, self.shape.threads, arguments, self.stream, cooperative=True)
        return driver.elapsed(self.stream, queue)

    def parameters(self) -> np.ndarray:
        """All parameters, as they are now."""
        return self.p.read((self.p.size // 4,), np.float32)

    def loss(self) -> float:
        """The sum of the losses of all rows of the last run."""
        return float(self.losses.read((self.losses.size // 4,), np.float32).astype(np.float64).sum())


class Task:
    """One batch size and optimizer: data, order and the right answer after some steps."""

    def __init__(self, x: np.ndarray, y: np.ndarray, batch: int, optimizer: str, *, quick: bool) -> None:
        self.x, self.y, self.batch, self.optimizer = x, y, batch, optimizer
        order = np.random.default_rng(2).permutation(len(x))
        self.order = order[: 2 * CHECKED_STEPS * batch if quick else len(x) // batch * batch]
        self.begin = initial(x.shape[1], HIDDEN, CLASSES)
        checked = self.order[: CHECKED_STEPS * batch]
        self.expected, self.loss = reference(x, y, checked, self.begin, batch, optimizer)

    def error(self, found: np.ndarray) -> float:
        """The error of parameters after the checked steps."""
        return error_of(found, self.begin, self.expected)


def measure(report: Report) -> None:
    """Report the kernels, then torch; what takes longest to compile comes last."""
    x, y, source = images()
    report.add("images", source)
    tasks = {(b, o): Task(x, y, b, o, quick=report.quick) for b in (64, 128) for o in ("sgd", "adam")}
    for shape in SHAPES:
        report.attempt(f"one launch, {shape.name}", _one_launch, report, shape, tasks[shape.batch, shape.optimizer])
    for way in (_graph, _graph_tf32, _eager, _compiled):
        for task in tasks.values():
            name = f"torch {way.__name__.strip('_').replace('_', ', ')}, batch {task.batch}, {task.optimizer}"
            report.attempt(name, _torch, report, name, way, task)


def _one_launch(report: Report, shape: Shape, task: Task) -> None:
    epoch = Epoch(shape, task.x, task.y, task.order, task.begin)
    epoch.run(CHECKED_STEPS)
    error, loss_error = task.error(epoch.parameters()), abs(epoch.loss() / task.loss - 1)
    seconds = statistics.median(epoch.run() for _ in range(SAMPLES)) / epoch.steps
    report.add(f"one launch, {shape.name}", seconds * 1e6, "us/step", error, CHECK)
    report.add(f"one launch, {shape.name}, loss of {CHECKED_STEPS} steps", epoch.loss(), "", loss_error, "relative")


# --- torch ------------------------------------------------------------------------------------------------------------

Step = Callable[[int], Any]


class TorchTask:
    """The same network in torch, its images in the device's memory as bytes."""

    def __init__(self, torch: Any, task: Task) -> None:
        from torch import nn

        self.torch, self.batch = torch, task.batch
        self.x, self.y = torch.from_numpy(task.x).cuda(), torch.from_numpy(task.y.astype(np.int64)).cuda()
        self.order = torch.from_numpy(task.order.astype(np.int64)).cuda()
        self.model = nn.Sequential(nn.Linear(task.x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)).cuda()
        self.begin = [torch.from_numpy(e.T.copy()).cuda() for e in task.begin]
        rate, capturable = RATES[task.optimizer], {"capturable": True} if task.optimizer == "adam" else {}
        kind = torch.optim.Adam if task.optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind(self.model.parameters(), lr=rate, fused=True, **capturable)
        self.loss: Callable[..., Any] = self.loss_of
        self.reset()

    def reset(self) -> None:
        """Back to the beginning, in place: a graph holds the addresses."""
        with self.torch.no_grad():
            for parameter, value in zip(self.model.parameters(), self.begin, strict=True):
                parameter.copy_(value)
            for state in self.optimizer.state.values():
                for value in state.values():
                    if self.torch.is_tensor(value):
                        value.zero_()

    def loss_of(self, images: Any, labels: Any) -> Any:
        """From bytes to the loss."""
        return self.torch.nn.functional.cross_entropy(self.model(images.float() * (1 / 255)), labels)

    def step(self, number: int) -> None:
        """One step."""
        rows = self.order[number * self.batch : (number + 1) * self.batch]
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.x.index_select(0, rows), self.y.index_select(0, rows)).backward()
        self.optimizer.step()

    def steps(self) -> None:
        """Those that are checked."""
        for number in range(CHECKED_STEPS):
            self.step(number)

    def parameters(self) -> np.ndarray:
        """All, as the kernel orders them."""
        return flat([e.detach().cpu().numpy().T for e in self.model.parameters()])


def _torch(report: Report, name: str, way: Callable[[TorchTask], Callable[[], None]], task: Task) -> None:
    torch = torch_with_cuda()
    torch.backends.cuda.matmul.allow_tf32 = way is _graph_tf32
    own = TorchTask(torch, task)
    run = way(own)
    own.reset()
    run()
    error = task.error(own.parameters())
    samples = []
    for _ in range(SAMPLES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - began) / CHECKED_STEPS)
    report.add(name, statistics.median(samples) * 1e6, "us/step", error, CHECK)


def _eager(own: TorchTask) -> Callable[[], None]:
    own.steps()
    return own.steps


def _compiled(own: TorchTask) -> Callable[[], None]:
    own.loss = own.torch.compile(own.loss_of)
    own.steps()
    return own.steps


def _graph(own: TorchTask) -> Callable[[], None]:
    torch = own.torch
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for number in range(3):
            own.step(number)
    torch.cuda.current_stream().wait_stream(side)
    own.optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        own.steps()
    graph.replay()
    return graph.replay


def _graph_tf32(own: TorchTask) -> Callable[[], None]:
    return _graph(own)
