"""Trains MNIST from a cold start and prints what that took: ``python -m benchmarks.training.mnist LIBRARY``.

The recipe is the same for all: 784-256-10, relu, Glorot's uniform weights, Adam, a rate that falls in a line to 0.
scikit-learn keeps its rate and its initial weights: it is here for its memory, not for its accuracy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

HIDDEN, BATCH, RATE, EPOCHS = 256, 128, 0.005, 5  # 98.06 to 98.42% over 16 seeds; 4 at 0.006 miss 98% with 5 of 30

Trained = tuple[Callable[[], None], Callable[[], float]]  # trains, and tells the accuracy


def rate(epoch: int, epochs: int) -> float:
    """The learning rate of an epoch."""
    return RATE * (1 - epoch / epochs)


def with_fastnn(data: Any, epochs: int, seed: int) -> Trained:
    """The images stay bytes; a batch is scaled as it is gathered."""
    import fastnn
    from fastnn.callbacks import LearningRateScheduler
    from fastnn.layers import Dense, Flatten, Input, Rescaling

    (x, y), (x_test, y_test) = data
    model = fastnn.Sequential(
        [Input((28, 28)), Rescaling(1 / 255), Flatten(), Dense(HIDDEN, "relu"), Dense(10, "softmax")], seed=seed
    )
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    schedule = LearningRateScheduler(lambda epoch, _: rate(epoch, epochs))

    def train() -> None:
        model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=[schedule], verbose=0)

    return train, lambda: model.evaluate(x_test, y_test)[1]


def with_torch(data: Any, epochs: int, seed: int) -> Trained:
    """Eager, with the fused Adam; torch.compile would need longer to compile than this takes."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    (x, x_test), (y, y_test) = (
        [torch.from_numpy(images).reshape(-1, 784).float().div_(255) for images, _ in data],
        [torch.from_numpy(labels).long() for _, labels in data],
    )
    model = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    for layer in (model[0], model[2]):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def train() -> None:
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = rate(epoch, epochs)
            for index in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                loss(model(x.index_select(0, index)), y.index_select(0, index)).backward()
                optimizer.step()

    def accuracy() -> float:
        with torch.inference_mode():
            return (model(x_test).argmax(1) == y_test).float().mean().item()

    return train, accuracy


def with_sklearn(data: Any, epochs: int, seed: int) -> Trained:
    """MLPClassifier, in float32."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore", ConvergenceWarning)  # a few epochs are meant
    (x, y), (x_test, y_test) = ((e.reshape(-1, 784).astype(np.float32) / np.float32(255), t) for e, t in data)
    model = MLPClassifier((HIDDEN,), batch_size=BATCH, max_iter=epochs, alpha=0, random_state=seed)
    return lambda: model.fit(x, y), lambda: model.score(x_test, y_test)


LIBRARIES: dict[str, tuple[str, Callable[[Any, int, int], Trained]]] = {
    "fastnn": ("fastnn.sequential", with_fastnn),
    "torch": ("torch", with_torch),
    "sklearn": ("sklearn.neural_network", with_sklearn),
}


def peak_memory() -> int:
    """The most bytes that this process had in memory at once."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells includes the process that started this one
        (line,) = (e for e in status.read_text().splitlines() if e.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def main(arguments: list[str] | None = None) -> int:
    """Import, load, train, evaluate; print the seconds of each, the accuracy and the memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.mnist", description=__doc__.split("\n")[0])
    parser.add_argument("library", choices=list(LIBRARIES))
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    options = parser.parse_args(arguments)
    module, make = LIBRARIES[options.library]
    clock = [time.perf_counter()]
    __import__(module)
    clock.append(time.perf_counter())
    imported = peak_memory()
    # For all, although it means that rivals import a part of fastnn, which takes them some hundredths of a second.
    from fastnn.datasets import mnist

    data = mnist.load_data()
    clock.append(time.perf_counter())
    train, accuracy = make(data, options.epochs, options.seed)
    train()
    clock.append(time.perf_counter())
    found = {"accuracy": accuracy()}
    clock.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(clock)]
    found |= dict(zip(("import", "load", "train", "evaluate"), seconds, strict=True))
    print(json.dumps(found | {"imported_bytes": imported, "peak_bytes": peak_memory()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
