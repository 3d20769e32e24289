"""From store to batches.

Every feed has the same contract: iterate over one epoch's remaining batches, each a dict of

    image   (b, band, row, col) float32, normalised by the store's training statistics, on the finest grid
    labels  (b, class) float32, 0 or 1
    number  (b,) int64, the patches' numbers in the store

`state()` says where the next batch stands, `restore()` goes there. A batch is valid until the next is asked for.
"""

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from jeoparda.config import opt, recipe
from jeoparda.errors import RecipeError
from jeoparda.feed import augment
from jeoparda.feed.plain import PlainTransform
from jeoparda.feed.reader import Ring, Slot
from jeoparda.order import Order
from jeoparda.store import Store

Batch = dict[str, torch.Tensor]


@recipe
class FeedRecipe:
    """How batches are made."""

    kind: Literal["auto", "dali", "plain", "synthetic"] = opt(
        "auto",
        "auto: dali where it is installed, else plain; synthetic: batches that cost nothing, to find bottlenecks",
    )
    threads: int = opt(2, "reader threads, and DALI's own, a rank", ge=1)
    ahead: int = opt(2, "batches in work ahead of the consumer", "batches", ge=1)
    flips: bool = opt(True, "training: random flips and quarter turns")


def resolve(r: FeedRecipe) -> str:
    """The kind that will run. RecipeError when DALI is asked for by name and is not installed."""
    there = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if r.kind == "dali" and not there:
        raise RecipeError(
            "feed.kind = dali: NVIDIA DALI is not installed; pip install 'jeoparda[dali-cuda13]', "
            "or take feed.kind = plain"
        )
    return ("dali" if there else "plain") if r.kind == "auto" else r.kind


@dataclass(frozen=True)
class Plan:
    """Which patches a rank gets, step by step. numbers: (n,) int64, the patches of the split."""

    order: Order
    numbers: np.ndarray
    rank: int
    size: int

    def batch(self, epoch: int, step: int) -> np.ndarray:
        return self.numbers[self.order.rank_batch(epoch, step, self.rank, self.size)]

    @property
    def largest(self) -> int:
        """The most patches that a step of this rank can have."""
        return -(-min(self.order.batch, self.order.count) // self.size)


class Feed:
    """A plan's batches, by DALI or by torch. `waited_s`: how long the consumer has waited for data."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        r: FeedRecipe,
        train: bool,
        labels: np.ndarray,
        statistics: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """train: augment. labels: (patch, class), of all patches of the store. statistics: (band,) mean and
        standard deviation to normalise by, in digital numbers; a trained network's own when it is used."""
        if store.info.layout.dates:
            raise RecipeError(
                f"{store.folder}: holds series of {store.info.layout.dates} dates; this feed takes single images"
            )
        self.kind = resolve(r)
        self.plan = plan
        self.epoch = self.step = 0
        self.waited_s = 0.0
        self._store = store
        self._recipe = r
        self._statistics = statistics
        self._flips = train and r.flips
        self._labels = torch.from_numpy(labels).to(torch.float32)

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        make = {"dali": self._dali, "plain": self._plain, "synthetic": self._synthetic}[self.kind]
        steps = range(self.step, self.plan.order.steps)
        batches = make([self.plan.batch(self.epoch, s) for s in steps])
        try:
            for step in steps:
                before = time.perf_counter()
                numbers, image = next(batches)
                self.waited_s += time.perf_counter() - before
                number = torch.from_numpy(numbers)
                self.step = step + 1
                yield {"image": image, "labels": self._labels[number], "number": number}
        finally:
            batches.close()  # type: ignore[attr-defined]
        self.epoch, self.step = self.epoch + 1, 0

    def _draw(self, numbers: np.ndarray) -> np.ndarray:
        if not self._flips:
            return np.zeros((len(numbers), 3), bool)
        return augment.flips(self.plan.order.seed, self.epoch, numbers)

    def _ring(self, extra: int) -> Ring:
        r = self._recipe
        return Ring(self._store, self.plan.largest, r.ahead + extra, r.threads)

    def _plain(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        ring, transform = self._ring(1), PlainTransform(self._store.info.groups, *self._statistics)
        slots = ring.read(batches)
        try:
            for slot in slots:
                image = transform(slot.records, self._draw(slot.numbers))
                ring.release(slot)
                yield slot.numbers, image
        finally:
            slots.close()  # type: ignore[attr-defined]

    def _dali(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        from jeoparda.feed import dali

        ahead = min(self._recipe.ahead, len(batches))
        if not ahead:
            return
        ring = self._ring(ahead)
        pipeline = dali.build(self._store.info, *self._statistics, self.plan.largest, ahead, self._recipe.threads)
        slots = ring.read(batches)
        drawn: Iterator[tuple[Slot, np.ndarray]] = ((s, self._draw(s.numbers)) for s in slots)
        try:
            yield from dali.images(pipeline, self._store.info, ring, drawn, ahead)
        finally:
            slots.close()  # type: ignore[attr-defined]

    def _synthetic(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        info = self._store.info
        noise = torch.randn(self.plan.largest, len(info.bands), info.size_px, info.size_px)
        for numbers in batches:
            yield numbers, noise[: len(numbers)]
