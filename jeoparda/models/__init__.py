"""Networks for any number of bands and classes: (batch, band, row, col) on the finest grid -> logits (batch, class).

ResNets have torchvision's parameter names, so that published weights load (`weights`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import nn

from jeoparda.config import opt, recipe
from jeoparda.errors import RecipeError
from jeoparda.models.branches import Shallow, ThreeBranch
from jeoparda.models.contextual import Contextual
from jeoparda.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from jeoparda.models.unet import UNet
from jeoparda.store import Layout

_BUILD: dict[str, Callable[[int, int, int, float, bool], nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "shallow": Shallow,
    "contextual": Contextual,
    "unet": UNet,
}
# sides that the poolings leave at least a pixel of; the others take any
_LEAST_PX = {"shallow": 4, "threebranch": 4, "contextual": 32}


@recipe
class ModelRecipe:
    """The network."""

    name: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "shallow",
        "threebranch",
        "contextual",
        "unet",
    ] = opt(
        "resnet18",
        "architecture; shallow: three convolutions; threebranch: as shallow, a branch for each pixel size, on pixels "
        "as they were taken; contextual: for chips of one class; unet: mean of a map of logits",
    )
    width: int = opt(
        64,
        "channels of the first convolution (shallow, threebranch: of the last); all others in proportion; 64 as "
        "published, less for a quick trial",
        "channels",
        ge=16,
        multiple_of=16,
    )
    dropout: float = opt(0.0, "share of features dropped before the last layer", ge=0, lt=1)
    recompute: bool = opt(
        False, "the backward pass computes activations anew: less memory, about a third more arithmetic"
    )
    weights: Path | None = opt(
        None, "file to begin from: a state dict as torchvision publishes them, or a checkpoint; null: random weights"
    )
    weights_bands: tuple[str, ...] = opt(
        (), "bands of that file's first convolution, in its order; []: as its checkpoint says"
    )


def build(r: ModelRecipe, layout: Layout, classes: int) -> nn.Module:
    """The network for images of the layout: (batch, band, row, col) float32, all bands on the finest grid, in the
    layout's order. It gives logits (batch, class), and has random weights. RecipeError where patches are too small."""
    check_side(r, layout.size_px)
    if r.name == "threebranch":
        groups = [(len(g.bands), layout.size_px // g.size_px) for g in layout.groups]
        return ThreeBranch(groups, classes, r.width, r.dropout, r.recompute)
    return _BUILD[r.name](len(layout.bands), classes, r.width, r.dropout, r.recompute)


def check_side(r: ModelRecipe, side_px: int) -> None:
    """RecipeError for images, or crops of them, that the network would pool to nothing."""
    least_px = _LEAST_PX.get(r.name, 1)
    if side_px < least_px:
        raise RecipeError(
            f"model.name = {r.name}: takes images of {least_px} px or more, these have {side_px}; take resnet18, which "
            "takes any"
        )
