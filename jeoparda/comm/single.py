"""One process."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jeoparda.comm.protocol import Averaging


@dataclass
class Alone:
    """One rank's gradients are the average."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def finish(self) -> None:
        pass

    def stepping(self) -> AbstractContextManager[None]:
        return nullcontext()


class Single:
    """One process: every collective is the identity."""

    backend, rank, size, local_rank, local_size = "single", 0, 1, 0, 1

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        return tensor.clone()

    def gather(self, value: Any, name: str) -> list[Any]:
        return [value]

    def broadcast(self, value: Any, name: str) -> Any:
        return value

    def average(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: int = 1) -> Averaging:
        return Alone(model, optimizer)

    def same_weights(self, model: nn.Module) -> None:
        pass

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass
