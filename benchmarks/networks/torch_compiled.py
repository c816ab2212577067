"""PyTorch through torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.networks.torch_eager import TorchNetwork


class TorchCompiledNetwork(TorchNetwork):
    """One graph for the whole step: the batch's rows, forward and backward pass, Adam.

    The best of what was measured.  Passes that are compiled apart from the optimizer are no faster than eager ones,
    with a compiled optimizer neither; as one graph they take 0.55 to 0.9 times as long.  The modes "reduce-overhead"
    and "max-autotune-no-cudagraphs" and the wrapper in C++ change nothing here.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        torch = self.torch
        self._step = compiled(self.loss)
        p = [e.detach() for e in self.model.parameters()]
        moments = ([torch.zeros_like(e) for e in p] for _ in range(2))
        self.state = (p, *moments, torch.zeros(()))
        for e in (self.x, self.y):
            torch._dynamo.mark_dynamic(e, 0)  # one graph for any number of samples

    @classmethod
    @functools.cache
    def problem(cls) -> str | None:
        """The error of a first, small graph: it needs a C++ compiler, which not every machine has."""
        import torch

        try:
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
        except torch._dynamo.exc.TorchDynamoException as error:
            return f"torch.compile: {next(iter(str(error).splitlines()), type(error).__name__)}"
        return None

    def epoch(self, shuffle: bool = True) -> None:
        n = len(self.x)
        order = self.torch.randperm(n) if shuffle else self.torch.arange(n)
        with self.torch.no_grad():
            for index in order.split(self.batch):
                self._step(*self.state, self.x, self.y, index)


@functools.cache
def compiled(loss: str) -> Callable[..., None]:
    """The compiled step of networks with this loss; it is compiled anew for each shape."""
    import torch
    from torch.nn import functional

    # Above the limit (8) a graph of one piece is an error; the benchmarks have more networks than that.
    torch._dynamo.config.recompile_limit = 64
    criterion = {
        "mse": functional.mse_loss,
        "bce": functional.binary_cross_entropy_with_logits,
        "softmax": functional.cross_entropy,
    }[loss]

    def value(p: list[Any], x: Any, y: Any) -> Any:
        for i in range(0, len(p) - 2, 2):
            x = functional.relu(functional.linear(x, p[i], p[i + 1]))
        return criterion(functional.linear(x, p[-2], p[-1]), y)

    def step(p: list[Any], m: list[Any], v: list[Any], t: Any, x: Any, y: Any, index: Any) -> None:
        grads = torch.func.grad(value)(p, x.index_select(0, index), y.index_select(0, index))
        t.add_(1)
        correction = torch.sqrt(1 - DECAY_2**t)
        rate, epsilon = RATE * correction / (1 - DECAY_1**t), EPSILON * correction
        for p_i, m_i, v_i, g in zip(p, m, v, grads, strict=True):
            m_i.lerp_(g, 1 - DECAY_1)
            v_i.lerp_(g * g, 1 - DECAY_2)
            p_i.sub_(rate * m_i / (v_i.sqrt() + epsilon))

    return torch.compile(step, fullgraph=True)
