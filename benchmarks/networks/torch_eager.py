"""PyTorch as most use it."""

from __future__ import annotations

import numpy as np

from benchmarks.cases import DECAY_1, DECAY_2, EPSILON, RATE
from benchmarks.networks.base import Network


class TorchNetwork(Network):
    """Eager torch with the fused Adam."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: list[np.ndarray], batch: int) -> None:
        super().__init__(x, y, weights, batch)
        import torch
        from torch import nn

        self.torch = torch
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        if self.loss != "softmax":
            self.y = self.y.float()[:, None]
        self.criterion = {"mse": nn.MSELoss, "bce": nn.BCEWithLogitsLoss, "softmax": nn.CrossEntropyLoss}[self.loss]()
        layers: list[nn.Module] = []
        for w, b in zip(weights[::2], weights[1::2], strict=True):
            linear = nn.Linear(*w.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(w.T.copy()))
                linear.bias.copy_(torch.from_numpy(b))
            layers += [linear, nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=RATE, betas=(DECAY_1, DECAY_2), eps=EPSILON, fused=True
        )

    def epoch(self, shuffle: bool = True) -> None:
        n = len(self.x)
        order = self.torch.randperm(n) if shuffle else self.torch.arange(n)
        for index in order.split(self.batch):
            self.optimizer.zero_grad()
            # index_select is never slower than x[index], and much faster where other threads compete.
            outputs = self.model(self.x.index_select(0, index))
            self.criterion(outputs, self.y.index_select(0, index)).backward()
            self.optimizer.step()

    def weights(self) -> list[np.ndarray]:
        return [p.detach().numpy().T for p in self.model.parameters()]

    def predict(self, row: np.ndarray) -> np.ndarray:
        with self.torch.inference_mode():
            z = self.model(self.torch.from_numpy(row))
            return {"mse": lambda: z, "bce": z.sigmoid, "softmax": lambda: z.softmax(1)}[self.loss]().numpy()
