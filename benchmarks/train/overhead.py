"""What the loop costs over a step that is written by hand."""

import copy
import statistics
import time
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.train.loop import epoch, store_of, training
from benchmarks.turns import in_turn
from jeoparda import optimizers
from jeoparda.comm import Single
from jeoparda.train.state import Training


def overhead(steps: int, batch: int, width: int, rounds: int) -> dict[str, Any]:
    """Both in turn (`in_turn`), `steps` steps each: few, so that the machine is as fast for the one as for the other.

    value: the loop's time over the bare steps', of all turns.
    """
    keys = {
        **store_of(steps, batch),
        "batch": batch,
        "model": {"name": "resnet18", "width": width},
        "feed": {"kind": "synthetic"},
    }
    # at an epoch's end the feed gives memory back to the kernel, which the next steps, of either side, ask for again
    with training(Single(), **keys) as (t, _), mock.patch("jeoparda.feed._give_back"):
        turns = in_turn({"loop": lambda: epoch(t)[1], "bare": Bare(t).turn}, rounds)
    loop_s, bare_s = (statistics.mean(turns[side]) / t.steps for side in ("loop", "bare"))
    return {
        "value": loop_s / bare_s,
        "median_of_ratios": statistics.median(a / b for a, b in zip(turns["loop"], turns["bare"], strict=True)),
        "step_s": loop_s,
        "bare_step_s": bare_s,
        "batch": batch,
        "split_s": dict(t.clock.spent_s),
    }


class Bare:
    """The same network, and the batches that the loop gets, laid out already as it lays them out."""

    def __init__(self, t: Training) -> None:
        self.model = copy.deepcopy(t.model).train()
        self.optimizer = optimizers.build(t.r.optimizer, self.model)
        dtype, layout = t.precision.weights, torch.channels_last
        self.batches = [
            (b["image"].to(dtype, memory_format=layout, copy=True), b["labels"].to(dtype, copy=True)) for b in t.feed
        ]

    def turn(self) -> float:
        """Seconds of a step for each batch."""
        start = time.perf_counter()
        for image, labels in self.batches:
            self.optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(self.model(image), labels)
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start
