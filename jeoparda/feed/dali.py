"""The DALI feed: the only home of nvidia.dali.

Records go in as views of the ring's buffers, without a copy; DALI's threads normalise, upsample and flip; the
result comes out through DLPack, without a copy either. Batches are fed by hand, so that a buffer is known to be
free again: when its own batch has come out.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline, do_not_convert

from jeoparda.feed.reader import Ring, Slot
from jeoparda.store import Group, StoreInfo

_TYPES = {"uint8": types.UINT8, "uint16": types.UINT16, "int16": types.INT16, "float32": types.FLOAT}


def build(info: StoreInfo, mean: np.ndarray, std: np.ndarray, largest: int, ahead: int, threads: int) -> Pipeline:
    """The pipeline for batches of up to `largest` patches; `ahead` batches are in work at a time.

    mean, std: (band,) in digital numbers.
    """
    size, bands = info.size_px, info.bands

    @do_not_convert
    def upsampled(g: Group):  # type: ignore[no-untyped-def]
        chosen = [bands.index(b) for b in g.bands]
        x = fn.external_source(name=g.name, dtype=_TYPES[g.dtype], ndim=3, layout="CHW", no_copy=True)
        x = fn.normalize(
            x, mean=mean[chosen].reshape(-1, 1, 1), stddev=std[chosen].reshape(-1, 1, 1), dtype=types.FLOAT
        )
        if g.size_px == size:
            return x
        return fn.resize(x, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=False)

    @pipeline_def(
        batch_size=largest,
        num_threads=threads,
        device_id=None,
        seed=0,
        prefetch_queue_depth=ahead,
        enable_conditionals=True,
    )
    def pipeline():  # type: ignore[no-untyped-def]
        flips = fn.external_source(name="flips", dtype=types.INT32, ndim=1, no_copy=False)
        x = fn.cat(*[upsampled(g) for g in info.groups], axis=0)
        if fn.cast(flips[0], dtype=types.BOOL):
            x = fn.transpose(x, perm=[0, 2, 1], transpose_layout=False)
        return fn.flip(x, vertical=flips[1], horizontal=flips[2])

    built = pipeline()
    built.build()
    return built


def images(
    pipeline: Pipeline, info: StoreInfo, ring: Ring, slots: Iterator[tuple[Slot, np.ndarray]], ahead: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """(patch numbers, (b, band, row, col) float32) for each (slot, flips); there must be at least `ahead` of them.

    A tensor is DALI's own memory and valid until the next one is asked for.
    """

    blank = np.zeros(1, info.layout.dtype())

    def feed(slot: Slot, flips: np.ndarray) -> Slot:
        # DALI takes no empty batch, but a rank's share of a small step may be: it is fed a blank, cut off below
        for g in info.groups:
            pipeline.feed_input(g.name, list(slot.records[g.name]) or list(blank[g.name]), layout="CHW")
        pipeline.feed_input("flips", list(flips.astype(np.int32)) or [np.zeros(3, np.int32)])
        return slot

    waiting = deque(feed(*s) for s in islice(slots, ahead))
    pipeline.schedule_run()  # the first call starts as many runs as the pipeline is deep: all of these
    while waiting:
        (out,) = pipeline.share_outputs()
        slot = waiting.popleft()
        ring.release(slot)
        yield slot.numbers, torch.from_dlpack(out.as_tensor())[: len(slot.numbers)]
        pipeline.release_outputs()
        for more in islice(slots, 1):
            waiting.append(feed(*more))
            pipeline.schedule_run()
