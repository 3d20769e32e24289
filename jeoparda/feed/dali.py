"""The DALI feed: the only home of nvidia.dali.

A batch goes in as one array a group, the ring's own memory, without a copy; DALI's threads normalise, upsample, crop,
turn and mix; the result comes out through DLPack, without a copy either. On a GPU the same pipeline moves the digital
numbers at their native resolution over the bus and does the rest there. Batches are fed by hand, so that a buffer is
known to be free again: when its own batch has come out.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline, do_not_convert

from jeoparda.feed.augment import Draws
from jeoparda.feed.device import Drawn, own
from jeoparda.feed.reader import Ring, Slot
from jeoparda.store import Group

_TYPES = {"uint8": types.UINT8, "uint16": types.UINT16, "int16": types.INT16, "float32": types.FLOAT}


@dataclass(frozen=True)
class Work:
    """What a pipeline does. groups: finest first. mean, std: (band,) in digital numbers. gains, mixed: whether the
    draws have them. mask_px: side of the masks, 0 without. device: where the images are wanted."""

    groups: tuple[Group, ...]
    mean: np.ndarray
    std: np.ndarray
    crop_px: int
    flips: bool
    gains: bool
    mixed: bool
    mask_px: int
    device: torch.device

    @property
    def size_px(self) -> int:
        return self.groups[0].size_px

    @property
    def mask_times(self) -> int:
        """Pixels of a mask along one of the image's."""
        return self.mask_px // self.size_px

    def parts(self) -> Iterator[tuple[Group, slice]]:
        """Each group and its bands' places in the image."""
        done = 0
        for g in self.groups:
            yield g, slice(done, done := done + len(g.bands))


def build(w: Work, largest: int, ahead: int, threads: int) -> Pipeline:
    """The pipeline for batches of up to `largest` patches; `ahead` batches are in work at a time."""

    def source(name: str, kind: types.DALIDataType, ndim: int, layout: str = "", copy: bool = False):  # type: ignore[no-untyped-def]
        return fn.external_source(name=name, dtype=kind, ndim=ndim, layout=layout or None, no_copy=not copy)

    def moved(x):  # type: ignore[no-untyped-def]
        return x.gpu() if w.device.type == "cuda" else x

    @do_not_convert
    def normalised(g: Group, bands: slice):  # type: ignore[no-untyped-def]
        x = moved(source(g.name, _TYPES[g.dtype], 3, "CHW"))
        if w.gains:
            mean, std = (source(f"{g.name}.{what}", types.FLOAT, 3, copy=True) for what in ("mean", "std"))
        else:
            mean, std = (v[bands].reshape(-1, 1, 1) for v in (w.mean, w.std))
        x = fn.normalize(x, mean=mean, stddev=std, dtype=types.FLOAT)
        if g.size_px == w.size_px:
            return x
        return fn.resize(x, size=[w.size_px, w.size_px], interp_type=types.INTERP_LINEAR, antialias=False)

    @do_not_convert
    def cropped(x, what: str, times: int):  # type: ignore[no-untyped-def]
        if not w.crop_px:
            return x
        corner = source(f"{what}.corner", types.INT32, 1, copy=True)
        return fn.slice(x, start=corner, shape=[w.crop_px * times] * 2, axes=[1, 2])

    @do_not_convert
    def mixed(x):  # type: ignore[no-untyped-def]
        if not w.mixed:
            return x
        share, partner = source("share", types.FLOAT, 0, copy=True), source("partner", types.INT32, 0, copy=True)
        return x * share + fn.permute_batch(x, indices=partner) * (1 - share)

    @pipeline_def(
        batch_size=largest,
        num_threads=threads,
        device_id=w.device.index if w.device.type == "cuda" else None,
        seed=0,
        prefetch_queue_depth=ahead,
        enable_conditionals=True,
    )
    def pipeline():  # type: ignore[no-untyped-def]
        image = cropped(fn.cat(*[normalised(g, bands) for g, bands in w.parts()], axis=0), "image", 1)
        mask = cropped(moved(source("mask", types.UINT8, 3, "CHW")), "mask", w.mask_times) if w.mask_px else None
        if w.flips:
            turn = source("flips", types.INT32, 1, copy=True)
            if fn.cast(turn[0], dtype=types.BOOL):
                image = fn.transpose(image, perm=[0, 2, 1], transpose_layout=False)
                if w.mask_px:
                    mask = fn.transpose(mask, perm=[0, 2, 1], transpose_layout=False)
            image = fn.flip(image, vertical=turn[1], horizontal=turn[2])
            if w.mask_px:
                mask = fn.flip(mask, vertical=turn[1], horizontal=turn[2])
        image = mixed(image)
        return (image, mask) if w.mask_px else image

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
    if w.mask_px:
        yield "mask", slot.fields["mask"][:, None]
    if w.crop_px:
        yield "image.corner", draws.corner
        if w.mask_px:
            yield "mask.corner", draws.corner * np.int32(w.mask_times)
    if w.flips:
        yield "flips", draws.flips.astype(np.int32)
    if draws.share is not None and draws.partner is not None:
        yield "share", draws.share
        yield "partner", draws.partner


def images(
    pipeline: Pipeline, w: Work, ring: Ring, slots: Drawn, ahead: int
) -> Iterator[tuple[np.ndarray, Draws, torch.Tensor, torch.Tensor | None]]:
    """(patch numbers, draws, (b, band, row, col) float32, (b, row, col) uint8 masks or None) for each slot and its
    draws; there must be at least `ahead` of them. On the CPU a tensor is DALI's own memory, and valid until the next
    is asked for."""

    def feed(slot: Slot, draws: Draws) -> tuple[Slot, Draws]:
        for name, batch in inputs(w, slot, draws):
            # DALI takes no empty batch, but a rank's share of a small step may be: it is fed a blank, cut off below
            pipeline.feed_input(name, batch if len(batch) else np.zeros((1, *batch.shape[1:]), batch.dtype))
        return slot, draws

    waiting = deque(feed(*s) for s in islice(slots, ahead))
    pipeline.schedule_run()  # the first call starts as many runs as the pipeline is deep: all of these
    while waiting:
        made = pipeline.share_outputs()
        slot, draws = waiting.popleft()
        n = len(slot.numbers)
        image, *mask = (own(torch.from_dlpack(out.as_tensor())[:n]) for out in made)
        ring.release(slot)
        yield slot.numbers, draws, image, mask[0][:, 0] if mask else None
        pipeline.release_outputs()
        for more in islice(slots, 1):
            waiting.append(feed(*more))
            pipeline.schedule_run()
