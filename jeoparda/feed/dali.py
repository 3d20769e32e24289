"""The DALI feed: the only home of nvidia.dali.

A batch goes in as one array a group, the ring's own memory, without a copy; DALI's threads crop, turn, normalise and
mix at native resolution; the result comes out through DLPack, without a copy either, and is brought onto one grid. On a
GPU the same pipeline moves the digital numbers over the bus and does the rest there. Batches are fed by hand, so that a
buffer is known to be free again: when its own batch has come out.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline, do_not_convert

from jeoparda.feed.augment import AugmentRecipe, Draws
from jeoparda.feed.device import Drawn, own
from jeoparda.feed.reader import Ring, Slot
from jeoparda.feed.upsample import Upsample
from jeoparda.store import Group, Layout

_TYPES = {"uint8": types.UINT8, "uint16": types.UINT16, "int16": types.INT16, "float32": types.FLOAT}


@dataclass(frozen=True)
class Work:
    """What a pipeline does. layout: of the bands that are wanted. mean, std: (band,) in digital numbers. device: where
    the images are wanted."""

    layout: Layout
    mean: np.ndarray
    std: np.ndarray
    augment: AugmentRecipe
    device: torch.device

    def fields(self) -> Iterator[tuple[str, types.DALIDataType, int]]:
        """Name, type and side in px of what a batch is made of."""
        yield from ((g.name, _TYPES[g.dtype], g.size_px) for g in self.layout.groups)
        if self.layout.mask_px:
            yield "mask", types.UINT8, self.layout.mask_px

    def parts(self) -> Iterator[tuple[Group, slice]]:
        """Each group and its bands' places in the image."""
        done = 0
        for g in self.layout.groups:
            yield g, slice(done, done := done + len(g.bands))


def build(w: Work, largest: int, ahead: int, threads: int) -> Pipeline:
    """The pipeline for batches of up to `largest` patches; `ahead` batches are in work at a time."""
    a = w.augment

    def source(name: str, kind: types.DALIDataType, ndim: int, layout: str = "", copy: bool = False):  # type: ignore[no-untyped-def]
        return fn.external_source(name=name, dtype=kind, ndim=ndim, layout=layout or None, no_copy=not copy)

    def moved(x):  # type: ignore[no-untyped-def]
        return x.gpu() if w.device.type == "cuda" else x

    @do_not_convert
    def cropped(x, name: str, px: int):  # type: ignore[no-untyped-def]
        if not a.crop_px:
            return x
        corner = source(f"{name}.corner", types.INT32, 1, copy=True)
        return fn.slice(x, start=corner, shape=[a.crop_px * px // w.layout.size_px] * 2, axes=[1, 2])

    @do_not_convert
    def normalised(x, g: Group, bands: slice):  # type: ignore[no-untyped-def]
        if a.jitter or a.drop_bands:
            mean, std = (source(f"{g.name}.{what}", types.FLOAT, 3, copy=True) for what in ("mean", "std"))
        else:
            mean, std = (v[bands].reshape(-1, 1, 1) for v in (w.mean, w.std))
        return fn.normalize(x, mean=mean, stddev=std, dtype=types.FLOAT)

    @do_not_convert
    def mixed(parts):  # type: ignore[no-untyped-def]
        if not a.mixup:
            return parts
        share, partner = source("share", types.FLOAT, 0, copy=True), source("partner", types.INT32, 0, copy=True)
        return [x * share + fn.permute_batch(x, indices=partner) * (1 - share) for x in parts]

    @pipeline_def(
        batch_size=largest,
        num_threads=threads,
        device_id=w.device.index if w.device.type == "cuda" else None,
        seed=0,
        prefetch_queue_depth=ahead,
        enable_conditionals=True,
    )
    def pipeline():  # type: ignore[no-untyped-def]
        fields = [cropped(moved(source(name, kind, 3, "CHW")), name, px) for name, kind, px in w.fields()]
        if a.flips:
            turn = source("flips", types.INT32, 1, copy=True)
            if fn.cast(turn[0], dtype=types.BOOL):
                fields = [fn.transpose(x, perm=[0, 2, 1], transpose_layout=False) for x in fields]
            fields = [fn.flip(x, vertical=turn[1], horizontal=turn[2]) for x in fields]
        parts = [normalised(x, g, bands) for x, (g, bands) in zip(fields, w.parts())]  # noqa: B905, as DALI converts it
        return (*mixed(parts), *fields[len(parts) :])

    built = pipeline()
    built.build()
    return built


def inputs(w: Work, slot: Slot, draws: Draws) -> Iterator[tuple[str, np.ndarray]]:
    """What the pipeline is fed for a batch: (name, (b, ...))."""
    for g, bands in w.parts():
        yield g.name, slot.fields[g.name]
        if draws.gain is not None:
            # (gain x - mean) / std; a band that is dropped is divided by infinity: its mean, 0, everywhere
            gain = draws.gain[:, bands, None, None]
            kept = gain > 0
            safe = np.where(kept, gain, 1)
            yield f"{g.name}.mean", w.mean[bands, None, None] / safe
            yield f"{g.name}.std", np.where(kept, w.std[bands, None, None] / safe, np.float32(np.inf))
    if w.layout.mask_px:
        yield "mask", slot.fields["mask"][:, None]
    for name, _, px in w.fields() if w.augment.crop_px else ():
        yield f"{name}.corner", draws.corner * np.int32(px) // np.int32(w.layout.size_px)
    if w.augment.flips:
        yield "flips", draws.flips.astype(np.int32)
    if draws.share is not None and draws.partner is not None:
        yield "share", draws.share
        yield "partner", draws.partner


class Line:
    """A pipeline that is fed by hand. It serves one epoch after the other, as each one built takes memory and time."""

    def __init__(self, w: Work, largest: int, ahead: int, threads: int) -> None:
        """largest: patches in a batch. ahead: batches in work at a time; its first epoch has at least as many."""
        self._work, self.ahead = w, ahead
        self._pipeline = build(w, largest, ahead, threads)
        self._upsample = Upsample(w.layout.groups)
        self._fresh = True

    def images(self, ring: Ring, slots: Drawn) -> Iterator[tuple[np.ndarray, Draws, torch.Tensor, torch.Tensor | None]]:
        """(patch numbers, draws, (b, band, row, col) float32, (b, row, col) uint8 masks or None) for each slot and its
        draws. On the CPU a tensor is DALI's own memory, and valid until the next is asked for."""
        waiting = deque(self._feed(*s) for s in islice(slots, self.ahead))
        self._start(len(waiting))
        while waiting:
            made = self._pipeline.share_outputs()
            slot, draws = waiting.popleft()
            n = len(slot.numbers)
            fields = [own(torch.from_dlpack(out.as_tensor())[:n]) for out in made]
            ring.release(slot)
            count = len(self._work.layout.groups)
            yield slot.numbers, draws, self._upsample(fields[:count]), fields[-1][:, 0] if fields[count:] else None
            self._pipeline.release_outputs()
            for more in islice(slots, 1):
                waiting.append(self._feed(*more))
                self._pipeline.schedule_run()

    def _feed(self, slot: Slot, draws: Draws) -> tuple[Slot, Draws]:
        for name, batch in inputs(self._work, slot, draws):
            # DALI takes no empty batch, but a rank's share of a small step may be: it is fed a blank, cut off above
            self._pipeline.feed_input(name, batch if len(batch) else np.zeros((1, *batch.shape[1:]), batch.dtype))
        return slot, draws

    def _start(self, count: int) -> None:
        """A pipeline's very first call starts as many runs as it is deep, each other call one."""
        for _ in range(1 if self._fresh else count):
            self._pipeline.schedule_run()
        self._fresh = False
