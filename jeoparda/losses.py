"""Losses, as sums over samples: the caller divides by the global batch, so that ranks of uneven shares agree."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from jeoparda.config import opt, recipe
from jeoparda.errors import RecipeError
from jeoparda.targets import Kind

_LEAST_MARGIN = 1e-6  # 1 - p is a multiple of 6e-8 in float32

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@recipe
class LossRecipe:
    """What training makes small. Validation and evaluation report the plain cross-entropy whatever is chosen here."""

    kind: Literal["cross-entropy", "focal", "asymmetric"] = opt(
        "cross-entropy", "focal and asymmetric give less to what is easy, as the many absent classes are"
    )
    focus: float = opt(2.0, "exponent of focal", ge=0)
    focus_present: float = opt(0.0, "exponent of asymmetric for classes that are there", ge=0)
    focus_absent: float = opt(4.0, "exponent of asymmetric for classes that are not", ge=1)
    margin: float = opt(0.05, "asymmetric counts absent classes below this probability as right", ge=0, lt=1)
    weights: Literal["none", "balanced"] = opt(
        "none",
        "balanced: a class that is there counts by the training split's samples without it over those with it; "
        "single-label: by all samples over those with it, and over the number of classes",
    )
    largest_weight: float = opt(10.0, "of balanced; the smallest is 1 over it", ge=1)
    smoothing: float = opt(
        0.0,
        "label smoothing: targets from half of this to 1 less half of it; single-label: this share of a target is "
        "spread evenly over all classes",
        ge=0,
        lt=1,
    )


def multilabel(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, averaged over classes and summed over samples. Both (batch, class) -> ()."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1).sum()


def plain(logits: torch.Tensor, labels: torch.Tensor, task: Kind = "multi-label") -> torch.Tensor:
    """Cross-entropy, summed over samples: `multilabel`, or that of the softmax. Both (batch, class) -> ()."""
    if task == "single-label":
        return -(labels * logits.log_softmax(1)).sum()
    return multilabel(logits, labels)


def balance(r: LossRecipe, labels: np.ndarray, task: Kind = "multi-label") -> torch.Tensor | None:
    """(class,) float64, what a class that is there weighs, from `labels`, (n, class): absent over present samples;
    single-label: n / (classes * present), inverse frequency as scikit-learn's "balanced". Within 1 / `largest_weight`
    and `largest_weight`; 1 for a class without any. None without weights."""
    if r.weights == "none":
        return None
    n, classes = labels.shape
    present = labels.sum(0, dtype=np.int64)
    against = np.full(classes, n / classes) if task == "single-label" else n - present
    weight = np.where(present > 0, against / np.maximum(present, 1), 1.0)
    return torch.from_numpy(np.clip(weight, 1 / r.largest_weight, r.largest_weight))


def build(r: LossRecipe, weight: torch.Tensor | None = None, task: Kind = "multi-label") -> Loss:
    """The recipe's loss of logits and labels, or shares of them, both (batch, class) -> (), summed over samples.
    weight: (class,), of classes that are there. RecipeError for what cannot be computed."""
    return _softmax(r, weight) if task == "single-label" else _sigmoid(r, weight)


def _softmax(r: LossRecipe, weight: torch.Tensor | None) -> Loss:
    """One class out of all: -log p of the class, times its weight; of shares, as mixup and smoothing make them, each
    class's by its share (torch.nn.functional.cross_entropy with probabilities as targets, reduction="sum").

    focal: Lin et al., ICCV 2017, equation 4, with p of the softmax.
    """
    if r.kind == "asymmetric":
        raise RecipeError(
            "loss.kind = asymmetric: weighs classes that are there against those that are not, for patches with "
            "several; these have a single label: take cross-entropy or focal"
        )

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cost = -logits.log_softmax(1)
        if r.kind == "focal":
            cost = cost * (r.focus * F.logsigmoid(-_odds(logits))).exp()  # (1 - p) ** focus
        if weight is not None:
            cost = cost * weight
        y = labels * (1 - r.smoothing) + r.smoothing / labels.shape[1]
        return (y * cost).sum()

    return loss


def _odds(logits: torch.Tensor) -> torch.Tensor:
    """(batch, class): log p / (1 - p) of the softmax. 1 - p as a sum over the other classes is exact where p is nearly
    1, and its logarithm has a gradient there."""
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(itself, -torch.inf).logsumexp(2)
    return logits - others


def _sigmoid(r: LossRecipe, weight: torch.Tensor | None) -> Loss:
    """Each class by itself, averaged over classes.

    focal: Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 4. asymmetric: Ridnik et al.,
    "Asymmetric loss for multi-label classification", ICCV 2021. A share y of a label, as mixup makes them, is y of the
    loss of its being there and 1 - y of that of its not.
    """
    if 0 < r.margin < _LEAST_MARGIN:
        raise RecipeError(f"loss.margin = {r.margin}: is lost in rounding; take 0, or {_LEAST_MARGIN} at least")

    def terms(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What it costs that a class is there, and that it is not. p ** n is taken as exp(n * log p), which has a
        gradient where p is rounded to 0."""
        there, absent = -F.logsigmoid(logits), -F.logsigmoid(-logits)
        if r.kind == "focal":
            return there * (-r.focus * absent).exp(), absent * (-r.focus * there).exp()
        if r.kind == "asymmetric":
            shifted = (logits.sigmoid() - r.margin).clamp_min(0)
            easy = -torch.log1p(-shifted) if r.margin else absent
            return there * (-r.focus_present * absent).exp(), easy * shifted**r.focus_absent
        return there, absent

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        there, absent = terms(logits)
        if weight is not None:
            there = there * weight
        y = labels * (1 - r.smoothing) + r.smoothing / 2
        return (y * there + (1 - y) * absent).mean(1).sum()

    return loss
