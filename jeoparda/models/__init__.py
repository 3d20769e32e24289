"""Networks, with torchvision's parameter names, for any number of bands and classes."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from jeoparda.config import opt, recipe
from jeoparda.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

_BUILD: dict[str, Callable[..., ResNet]] = {f.__name__: f for f in (resnet18, resnet34, resnet50, resnet101, resnet152)}


@recipe
class ModelRecipe:
    """The network."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = opt("resnet18", "architecture")
    width: int = opt(
        64, "channels of the stem; 64 as published, less for a quick trial", "channels", ge=16, multiple_of=16
    )
    dropout: float = opt(0.0, "share of features dropped before the last layer", ge=0, lt=1)


def build(r: ModelRecipe, bands: int, classes: int) -> nn.Module:
    """The network for input (batch, band, row, col) float32, giving logits (batch, class)."""
    return _BUILD[r.name](bands, classes, r.width, r.dropout)
