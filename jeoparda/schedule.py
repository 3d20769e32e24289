"""The learning rate, a pure function of the step: nothing to save, nothing to restore."""

import math
from typing import Literal

from jeoparda.config import opt, recipe
from jeoparda.errors import RecipeError


@recipe
class ScheduleRecipe:
    """How the learning rate goes over a run."""

    kind: Literal["one-cycle", "cosine", "steps", "constant"] = opt("one-cycle", "shape over the whole run")
    warmup: float = opt(0.3, "share of the run in which the rate rises", ge=0, lt=1)
    at: tuple[float, ...] = opt((0.5, 0.75), "shares of the run after which `steps` decays")
    decay: float = opt(0.1, "factor of each decay of `steps`", gt=0, le=1)


def check_shares(r: ScheduleRecipe) -> None:
    """RecipeError where `at` holds anything but shares of the run, as epochs would be."""
    if not all(0 < share < 1 for share in r.at):
        raise RecipeError(f"schedule.at = {list(r.at)}: shares of the run, between 0 and 1; epochs over `epochs`")


def factor(r: ScheduleRecipe, step: int, steps: int) -> float:
    """The share of the peak learning rate at `step` of `steps`.

    one-cycle: from 1/25 up to 1 and down to 1/10,000 of the peak, both halves cosine-shaped (Smith and Topin 2017,
    in fastai's form). cosine: a linear rise, then down to 0. steps: after the rise, `decay` to the power of how many
    shares `at` have passed (as He et al. 2016 train ResNets). constant: after the rise, 1.
    """
    rise = r.warmup * steps
    if r.kind == "one-cycle":
        start, end = 1 / 25, 1e-4
        if step < rise:
            return _cosine(start, 1.0, step / rise)
        return _cosine(1.0, end, (step - rise) / max(steps - 1 - rise, 1))
    if step < rise:
        return (step + 1) / (rise + 1)
    if r.kind == "steps":
        return r.decay ** sum(step >= share * steps for share in r.at)
    return 1.0 if r.kind == "constant" else _cosine(1.0, 0.0, (step - rise) / max(steps - rise, 1))


def _cosine(a: float, b: float, t: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * min(max(t, 0.0), 1.0))) / 2
