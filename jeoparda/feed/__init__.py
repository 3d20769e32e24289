"""From store to batches.

Every feed has the same contract: iterate over one epoch's remaining batches, each a dict of

    image   (b, band, row, col) float32, normalised by the store's training statistics, on the finest grid
    labels  (b, class) float32, 0 or 1; shares between them where samples are mixed
    number  (b,) int64, the patches' numbers in the store
    mask    (b, row, col) uint8 class numbers, 255 without a label; where the store has masks

`kind: raw` has the store's own fields in the place of `image`: each group's (b, band, row, col) as it is stored and
where images are wanted, without augmentation. `state()` says where the next batch stands, `restore()` goes there. A
batch is valid until the next is asked for.
"""

import ctypes
import dataclasses
import importlib.util
import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from jeoparda.config import opt, recipe
from jeoparda.errors import RecipeError
from jeoparda.feed.augment import STILL, AugmentRecipe, Draws, draw, still
from jeoparda.feed.device import Drawn, on_device
from jeoparda.feed.files import native
from jeoparda.feed.measure import SAMPLE, pace
from jeoparda.feed.place import Kind
from jeoparda.feed.plain import PlainTransform
from jeoparda.feed.reader import Reader, Ring
from jeoparda.meter import Stopwatch
from jeoparda.order import Order, drawn_count, epoch_samples, patch_of
from jeoparda.ranks import FEED
from jeoparda.store import Layout, Store, StoreInfo

if TYPE_CHECKING:  # only who asks for DALI loads it
    from jeoparda.feed import dali

Batch = dict[str, torch.Tensor]
CPU = torch.device("cpu")
_NONE = np.empty(0, np.int64)


@recipe
class FeedRecipe:
    """How batches are made."""

    kind: Literal["auto", "dali", "plain", "raw", "synthetic"] = opt(
        "auto",
        "auto: dali where it is installed, else plain; raw: digital numbers as they are stored; synthetic: batches "
        "that cost nothing, to find bottlenecks",
    )
    bands: tuple[str, ...] = opt((), "bands, or groups of them as 10m, that the network sees; []: all of the store")
    threads: int = opt(0, "reader threads a rank; 0: by a short measurement when the feed begins", ge=0)
    ahead: int = opt(0, "batches in work ahead of the consumer; 0: by the same measurement", "batches", ge=0)
    check: Literal["first", "never"] = opt("first", "a patch's checksum is compared when a process first reads it")
    block: int = opt(1, "patches that stay together in the order, for long reads; 1: every patch by itself", ge=1)
    stage: Kind = opt(
        "none", "copy shards to the node while the first epoch runs; shm: its memory, local: its own disk"
    )
    stage_folder: Path | None = opt(None, "folder on the node's disk; null: SLURM_TMPDIR or TMPDIR")
    journal: bool = opt(False, "write which patches each rank saw, step by step, for `jeoparda seen`")
    augment: AugmentRecipe = opt(AugmentRecipe, "training: what is done to the samples")


def resolve(r: FeedRecipe) -> str:
    """The kind that will run. RecipeError when DALI is asked for by name and is not installed."""
    there = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if r.kind == "dali" and not there:
        raise RecipeError(
            "feed.kind = dali: NVIDIA DALI is not installed; pip install 'jeoparda[dali-cuda13]', "
            "or take feed.kind = plain"
        )
    return ("dali" if there else "plain") if r.kind == "auto" else r.kind


def check_images(r: FeedRecipe) -> None:
    """RecipeError for a feed that gives a network nothing to look at."""
    if r.kind == "raw":
        raise RecipeError("feed.kind = raw: a network takes images; take auto, dali or plain")


def chosen(info: StoreInfo, wanted: tuple[str, ...]) -> Layout:
    """The store's layout with only the bands that are wanted, by name or by group, in its order. RecipeError."""
    known = {*info.bands, *(g.name for g in info.groups)}
    if unknown := [b for b in wanted if b not in known]:
        names = ", ".join([*(g.name for g in info.groups), *info.bands])
        raise RecipeError(f"feed.bands: the store has no {unknown[0]!r}; it has {names}")
    if not wanted:
        return info.layout
    cut = (
        dataclasses.replace(g, bands=tuple(b for b in g.bands if b in wanted or g.name in wanted)) for g in info.groups
    )
    return dataclasses.replace(info.layout, groups=tuple(g for g in cut if g.bands))


@dataclass(frozen=True)
class Plan:
    """Which patches a rank gets, step by step. numbers: (n,) int64, the patches of the split. repeats: (n,) how often
    an epoch draws each, on average; None: once."""

    order: Order
    numbers: np.ndarray
    rank: int
    size: int
    repeats: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.repeats is not None and self.order.count != drawn_count(self.repeats):
            raise ValueError(f"order of {self.order.count} samples for repeats that draw {drawn_count(self.repeats)}")

    def samples(self, epoch: int, steps: range) -> Iterator[np.ndarray]:
        """(b,) int64 a step: the patches' numbers, marked by `epoch_samples` where the epoch has one more than once."""
        whole = epoch_samples(self.numbers, self.repeats, self.order.seed, epoch)
        return (whole[own] for own in self.order.rank_batches(epoch, steps, self.rank, self.size))

    @property
    def largest(self) -> int:
        """The most patches that a step of this rank can have."""
        step = -(-min(self.order.batch, self.order.count) // self.order.parts)
        share = -(-step // self.size)
        return -(-share // self.order.unit) * self.order.unit


class Feed:
    """A plan's batches, by DALI or by torch. layout: of the bands of an image. mean, std: (band,) that they are
    normalised by. waited_s: how long the consumer has waited for data in the epoch that it iterates, or did last.

    waits: the same by what it waited for: "read" for the reader to fill a buffer, "copy" for a batch as stored to get
    onto the GPU, "augment" for all else that makes it a batch. All in seconds of the consumer's thread, beside which
    the work goes on: a copy that is there when its batch is asked for made nobody wait, however long it took. DALI
    copies by itself: with a GPU that is in "augment".
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        r: FeedRecipe,
        train: bool,
        labels: np.ndarray,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
        device: torch.device = CPU,
        cores: int = 2,
        path_of: Callable[[int], Path] | None = None,
    ) -> None:
        """train: augment. labels: (patch, class), of all patches of the store. statistics: (band,) mean and standard
        deviation to normalise the feed's bands by, in digital numbers, a trained network's own when it is used; None:
        the store's. device: where images are made. cores: that this rank may use. path_of: where a shard is best
        read now, by its number (Stage.path); None: in the store."""
        info = store.info
        if info.layout.dates:
            raise RecipeError(
                f"{store.folder}: holds series of {info.layout.dates} dates; this feed takes single images"
            )
        self.kind = resolve(r)
        self.layout = chosen(info, r.bands)
        self.plan = plan
        self.epoch = self.step = 0
        self.waits, self._watch = dict.fromkeys(FEED, 0.0), Stopwatch()
        self._store, self._recipe, self._device, self._cores = store, r, device, cores
        kept = [info.bands.index(b) for b in self.layout.bands]
        self.mean, self.std = statistics or tuple(v[kept] for v in store.statistics())
        if len(self.mean) != len(kept):
            raise ValueError(f"statistics of {len(self.mean)} bands for a feed of {len(kept)}")
        self._augment = r.augment if train and self.kind in ("dali", "plain") else STILL
        self._labels = labels
        others = ("mask",) if info.layout.mask_px else ()
        self._reader = Reader(store, self.layout.groups, others, r.check == "first", path_of)
        if native is None and plan.rank == 0:
            warnings.warn(
                "the feed reads from Python, more slowly: its part in C was not built when jeoparda was installed; "
                "install it again where there is a C compiler",
                stacklevel=2,
            )
        self._ring: Ring | None = None  # made once: buffers are large
        self._ahead = 0
        self._line: dali.Line | None = None
        self._refuse_misfits()

    @property
    def step_px(self) -> int:
        """The pixels of all bands begin together every so many px of the finest."""
        return math.lcm(*(self.layout.size_px // g.size_px for g in self.layout.groups))

    def _refuse_misfits(self) -> None:
        a, size_px, mask_px = self._augment, self.layout.size_px, self.layout.mask_px
        if a.crop_px > size_px:
            raise RecipeError(f"feed.augment.crop_px = {a.crop_px}: patches are {size_px} px; take at most that")
        if a.crop_px % self.step_px:
            less = a.crop_px // self.step_px * self.step_px
            raise RecipeError(
                f"feed.augment.crop_px = {a.crop_px}: is no whole number of pixels of every band; take "
                + " or ".join(str(px) for px in (less, less + self.step_px) if px)
            )
        if a.crop_px and mask_px % size_px:
            raise RecipeError(
                f"feed.augment.crop_px = {a.crop_px}: masks of {mask_px} px are no multiple of {size_px}, so "
                "image and mask cannot be cropped alike; take 0"
            )
        if a.mixup and mask_px:
            raise RecipeError("feed.augment.mixup: mixes labels, and this store has masks, which cannot be; take 0")
        if a.mixup and self.plan.order.unit != 2:
            raise ValueError("mixup wants whole pairs on each rank: an Order with unit=2")

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        make = {"dali": self._dali, "plain": self._plain, "raw": self._raw, "synthetic": self._synthetic}[self.kind]
        steps = range(self.step, self.plan.order.steps)
        self.waits = dict.fromkeys(FEED, 0.0)
        self._watch.restart()
        with closing(make(steps)) as batches:
            for step in steps:
                with self._watch("augment"):  # and what lies within it has a part of its own
                    batch = next(batches)
                self.waits = {part: self._watch.spent_s[part] for part in FEED}
                self.step = step + 1
                yield batch
            next(batches, None)  # it ends by itself, and keeps what serves the next epoch
        _give_back()
        self.epoch, self.step = self.epoch + 1, 0

    @property
    def waited_s(self) -> float:
        return sum(self.waits.values())

    def _draw(self, samples: np.ndarray) -> Draws:
        if self._augment == STILL:
            return still(len(samples))
        seed, image = self.plan.order.seed, self.layout
        return draw(self._augment, seed, self.epoch, samples, image.size_px, len(image.bands), self.step_px)

    def _batch(self, numbers: np.ndarray, draws: Draws, **images: torch.Tensor | None) -> Batch:
        labels = torch.from_numpy(self._labels[numbers].astype(np.float32))
        if draws.share is not None:
            share = torch.from_numpy(draws.share)[:, None]
            labels = labels * share + labels[torch.from_numpy(draws.partner).long()] * (1 - share)
        return {name: x for name, x in images.items() if x is not None} | {
            "labels": labels,
            "number": torch.from_numpy(numbers),
        }

    @contextmanager
    def _reading(self, steps: range) -> Iterator[tuple[Ring, Drawn]]:
        """The ring, and its slots with what was drawn for each."""
        with self._reader.opened():
            if not self._ring:
                with self._watch("read"):
                    self._ring = self._measured(steps)
            samples, begun = itertools.tee(self.plan.samples(self.epoch, steps))  # the ring is some batches ahead
            with closing(self._ring.read(map(patch_of, begun))) as slots:
                filled = self._watch.each("read", slots)
                yield self._ring, ((s, self._draw(x)) for s, x in zip(filled, samples, strict=True))

    def _numbers(self, steps: range) -> Iterator[np.ndarray]:
        return map(patch_of, self.plan.samples(self.epoch, steps))

    def _measured(self, steps: range) -> Ring:
        threads, self._ahead = self._recipe.threads, self._recipe.ahead
        if not (threads and self._ahead):
            first = steps[: -(-SAMPLE // self.plan.largest)]
            measured = pace(self._reader, np.concatenate([*self._numbers(first), _NONE]), self.plan.largest)
            threads, self._ahead = threads or measured.threads, self._ahead or measured.ahead
        # one buffer is with the consumer, one is being filled
        return Ring(self._reader, self.plan.largest, self._ahead + 2, threads, pinned=self._device.type == "cuda")

    def _raw(self, steps: range) -> Generator[Batch, None, None]:
        with self._reading(steps) as (ring, drawn):
            for numbers, draws, fields in on_device(ring, drawn, self._device, self._watch):
                yield self._batch(numbers, draws, **fields)

    def _plain(self, steps: range) -> Generator[Batch, None, None]:
        transform = PlainTransform(self.layout.groups, self.mean, self.std, self._augment.crop_px)
        with self._reading(steps) as (ring, drawn):
            for numbers, draws, fields in on_device(ring, drawn, self._device, self._watch):
                image, mask = transform(fields, draws)
                yield self._batch(numbers, draws, image=image, mask=mask)

    def _dali(self, steps: range) -> Generator[Batch, None, None]:
        from jeoparda.feed import dali

        if not steps:
            return
        with self._reading(steps) as (ring, drawn):
            line, self._line = self._line, None  # kept only if it ends empty
            if line is None:
                deep = min(self._ahead, len(steps))
                work = dali.Work(self.layout, self.mean, self.std, self._augment, self._device)
                line = dali.Line(work, self.plan.largest, deep, self._cores)
            for numbers, draws, image, mask in line.images(ring, drawn):
                yield self._batch(numbers, draws, image=image, mask=mask)
            if line.ahead == self._ahead:
                self._line = line

    def _synthetic(self, steps: range) -> Generator[Batch, None, None]:
        image = self.layout
        side = self._augment.crop_px or image.size_px
        noise = torch.randn(self.plan.largest, len(image.bands), side, side, device=self._device)
        k = image.mask_px // image.size_px
        mask = torch.zeros(self.plan.largest, side * k, side * k, dtype=torch.uint8, device=self._device) if k else None
        for numbers in self._numbers(steps):
            n = len(numbers)
            yield self._batch(numbers, still(n), image=noise[:n], mask=None if mask is None else mask[:n])


def _give_back() -> None:
    """What an epoch's threads have freed, to the kernel: left to itself malloc keeps it in pieces, hundreds of MB after
    some hundred batches. Only glibc has this, and needs it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
