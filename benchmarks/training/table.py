"""The networks that are trained, and how many times faster than the best rival fastnn has to be."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from benchmarks import cases
from benchmarks.cases import MLP, Inputs
from benchmarks.networks import NETWORKS
from benchmarks.rivals import installed

LIBRARIES = ["fastnn", "numpy", "sklearn", "torch", "torch_compiled", "jax", "python"]
MODULES = {"torch_compiled": "torch"}  # where a contestant is not called as what it needs
WIDE = 100_000  # parameters of networks of which scikit-learn does only a part of the steps
PART = 4
MNIST, NOISE = "MNIST", "noise"
LOSSES = {"mse": "MSE", "bce": "BCE", "softmax": "softmax"}


class Case(NamedTuple):
    """A network, how it is trained, and its bar."""

    sizes: tuple[int, ...]
    batch: int
    steps: (
        int  # of an epoch: data that no cache holds where the network is wide, else more than a hundredth of a second
    )
    bar: float = 0.0  # 0: none
    regression: bool = False
    small: bool = False  # pure Python can do it
    data: str = ""  # MNIST, or noise where that is the other choice

    @property
    def network(self) -> str:
        """For people: "784-256-10 softmax"."""
        loss = "mse" if self.regression else "bce" if self.sizes[-1] == 1 else "softmax"
        return f"{'-'.join(map(str, self.sizes))} {LOSSES[loss]}"

    @property
    def name(self) -> str:
        """For people: "784-256-10 softmax, batch 32, MNIST"."""
        return f"{self.network}, batch {self.batch}" + (f", {self.data}" if self.data else "")

    @property
    def parameters(self) -> int:
        """How many weights and biases there are."""
        return sum((n + 1) * m for n, m in pairwise(self.sizes))

    def inputs(self, library: str, *, quick: bool = False) -> Inputs:
        """What the library's network is made of."""
        steps = max(4, self.steps // 20) if quick else self.steps
        if library == "sklearn" and self.parameters > WIDE:
            steps = max(2, steps // PART)
        return cases.training_inputs(self.sizes, self.batch, steps * self.batch, self.regression, self.data == MNIST)

    def contestants(self, libraries: list[str] | None = None) -> list[str]:
        """The libraries that train it here, `libraries` at most."""
        found = [e for e in LIBRARIES if libraries is None or e in libraries]
        return [e for e in found if installed(MODULES.get(e, e)) and (e != "python" or self.small)]


CASES = [
    Case((5, 3, 1), 10, 2000, 8.0, small=True),
    Case((20, 64, 64, 1), 32, 600, 3.0, small=True),
    Case((20, 64, 64, 1), 256, 200, 2.5),
    Case((100, 256, 128, 1), 64, 400, 2.5, regression=True),
    Case(MLP, 32, 938, 3.0, data=MNIST),
    Case(MLP, 128, 234, 2.5, data=MNIST),
    Case((784, 512, 256, 10), 512, 40, 1.8, data=MNIST),
    Case((784, 2048, 2048, 10), 1024, 4, 1.3, data=MNIST),
]
# The same without zeros, of which fastnn makes use.
DENSE = [case._replace(bar=0.0, data=NOISE) for case in CASES if case.data == MNIST]
MEAN_BARS = {"sklearn": 10.0, "torch": 10.0}  # of the geometric mean over all networks


def problems(libraries: list[str]) -> dict[str, str]:
    """The contestants that cannot run here, although their library is installed, and why."""
    found = {e: NETWORKS[e].problem() for e in libraries}
    return {e: problem for e, problem in found.items() if problem}
