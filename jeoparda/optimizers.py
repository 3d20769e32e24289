"""How weights move: SGD and AdamW of torch, LARS and LAMB for large batches. All can be made of groups alone, as
Horovod makes them again."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from jeoparda.config import opt, recipe


@recipe
class OptimizerRecipe:
    """How weights move."""

    kind: Literal["sgd", "adamw", "lars", "lamb"] = opt(
        "adamw", "algorithm; lars (sgd) and lamb (adamw) scale each layer's step by its weights, for large batches"
    )
    lr: float = opt(1e-3, "peak learning rate, for the global batch", gt=0)
    lr_batch: int = opt(
        0, "batch that lr is meant for: it is multiplied by batch / this; 0: lr is for whatever batch there is", ge=0
    )
    momentum: float = opt(0.9, "of sgd and lars", ge=0, lt=1)
    weight_decay: float = opt(1e-2, "L2 (sgd, lars) or decoupled decay (adamw, lamb); not on norms and biases", ge=0)
    trust: float = opt(1e-3, "of lars: a layer's step over its weights, both as norms, at lr 1", gt=0)
    clip_norm: float = opt(0.0, "all gradients together are scaled down to this norm; 0: they are not", ge=0)


def rate(r: OptimizerRecipe, batch: int) -> float:
    """The peak learning rate of a global batch: in proportion to it, where the recipe says what batch `lr` is for
    (Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", arXiv:1706.02677, with a warm-up)."""
    return r.lr * batch / r.lr_batch if r.lr_batch else r.lr


def build(r: OptimizerRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a model's parameters. Norms and biases neither decay nor, in lars and lamb, are scaled."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": r.weight_decay, "layerwise": True},
        {"params": rest, "weight_decay": 0.0, "layerwise": False},
    ]
    if r.kind == "sgd":
        return torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum)
    if r.kind == "adamw":
        return torch.optim.AdamW(groups, lr=r.lr)
    if r.kind == "lars":
        return Lars(groups, r.lr, r.momentum, r.trust)
    return Lamb(groups, r.lr)


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: momentum SGD in which a layer's rate is trust * |w| / (|g| + decay * |w|)
    (You, Gitman, Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, algorithm 1).

    groups: with "weight_decay", and "layerwise", without which the rate is lr itself.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float = 1e-3, momentum: float = 0.9, trust: float = 1e-3
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            decay = group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                rate: float | torch.Tensor = group["lr"]
                if group["layerwise"]:
                    weights, gradient = p.norm(), p.grad.norm()
                    rate = rate * _ratio(group["trust"] * weights, gradient + decay * weights)
                s = self.state[p]
                if not s:
                    s["velocity"] = torch.zeros_like(p)
                velocity = s["velocity"]
                velocity.mul_(group["momentum"]).add_((p.grad + decay * p) * rate)
                p.sub_(velocity)


class Lamb(torch.optim.Optimizer):
    """Adam whose step of a layer is scaled to lr * |w| (You et al., "Large batch optimization for deep learning:
    training BERT in 76 minutes", ICLR 2020, arXiv:1904.00962, algorithm 2, with the identity for phi).

    groups: with "weight_decay", and "layerwise", without which the step is Adam's with decoupled decay.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                s["step"] += 1
                s["mean"].lerp_(p.grad, 1 - first)
                s["square"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                mean, square = s["mean"] / (1 - first ** s["step"]), s["square"] / (1 - second ** s["step"])
                change = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p
                ratio = _ratio(p.norm(), change.norm()) if group["layerwise"] else 1.0
                p.sub_(change * (group["lr"] * ratio))


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b; 1 where either is 0, as in a layer that begins at 0."""
    return torch.where((a > 0) & (b > 0), a / b, 1.0)
