"""What the loop knows of the other ranks, and what a recipe says of the exchange between them."""

from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import nn

from jeoparda.config import opt, recipe

Backend = Literal["auto", "single", "horovod", "torch"]


@recipe
class ExchangeRecipe:
    """How ranks average their gradients."""

    compression: Literal["none", "float16"] = opt(
        "none", "gradients travel as they are, or as float16: half the bytes, three decimal digits"
    )
    reduce: Literal["average", "hierarchical", "adasum"] = opt(
        "average",
        "hierarchical: within each node first, after the backward pass; adasum: keeps more of gradients that point "
        "apart, for very large batches. Both Horovod only",
    )
    fusion_mb: float = opt(0.0, "gradients are sent together up to so many bytes; 0: the backend's own", "MiB", ge=0)
    cycle_ms: float = opt(
        0.0, "Horovod looks so often for gradients that are ready on all ranks; 0: its own", "ms", ge=0
    )


class Averaging(Protocol):
    """Gradients that are averages over ranks. A step is `parts` times forward and backward, then `finish`, then the
    optimizer's step inside of `stepping()`. Gradients are summed over the parts and exchanged once, after the last."""

    optimizer: torch.optim.Optimizer

    def forward(self, x: torch.Tensor) -> Any:
        """What the model gives; to be called in its place while it is trained."""
        ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """The backward pass of one part; `last` of the step's parts."""
        ...

    def finish(self) -> None:
        """Wait until all gradients are averages over ranks, as clipping and `step` want them."""
        ...

    def stepping(self) -> AbstractContextManager[None]:
        """In which the optimizer steps by the gradients as they are, after `finish`."""
        ...


class Comm(Protocol):
    """What training, evaluation and prediction know of the other ranks. Whatever waits for the others raises RanksLost
    when one of them is gone.

    rank: from 0, of `size` in all; local_rank: from 0, of `local_size` on this node.
    """

    backend: str
    rank: int
    size: int
    local_rank: int
    local_size: int

    def sum(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A new tensor with the sum over ranks, on every rank; any shape, equal on all ranks."""
        ...

    def gather(self, value: Any, name: str) -> list[Any]:
        """The picklable values of all ranks in rank order, on every rank."""
        ...

    def broadcast(self, value: Any, name: str) -> Any:
        """Rank 0's picklable value, on every rank."""
        ...

    def average(self, model: nn.Module, optimizer: torch.optim.Optimizer, parts: int = 1) -> Averaging:
        """Averages the gradients of the model over ranks, where it can while the backward pass goes on."""
        ...

    def same_weights(self, model: nn.Module) -> None:
        """Give every rank rank 0's parameters and buffers."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        ...

    def close(self) -> None:
        """Leave the other ranks for good, when all have done their work."""
        ...
