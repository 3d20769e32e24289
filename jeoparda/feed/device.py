"""What a GPU asks of a feed: copies of its batches that overlap with the work on the batch before."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from jeoparda.feed.augment import Draws
from jeoparda.feed.reader import Ring, Slot
from jeoparda.meter import Stopwatch

Fields = dict[str, torch.Tensor]
Drawn = Iterator[tuple[Slot, Draws]]


def on_device(
    ring: Ring, drawn: Drawn, device: torch.device, watch: Stopwatch
) -> Iterator[tuple[np.ndarray, Draws, Fields]]:
    """(patch numbers, draws, fields as stored) for each slot; on the CPU the ring's own memory, valid until the next is
    asked for, on a GPU memory of its own, with the wait for it watched as "copy"."""
    if device.type == "cuda":
        yield from _copied(ring, drawn, device, watch)
        return
    for slot, draws in drawn:
        yield slot.numbers, draws, _tensors(slot)
        ring.release(slot)


def _tensors(slot: Slot) -> Fields:
    return {name: torch.from_numpy(x) for name, x in slot.fields.items()}


def _copied(
    ring: Ring, drawn: Drawn, device: torch.device, watch: Stopwatch
) -> Iterator[tuple[np.ndarray, Draws, Fields]]:
    """One batch is on its way while the one before is worked on. A batch is given out, and its buffer back to the ring,
    when its copy is done: this waits for that, by then seldom long."""
    side = torch.cuda.Stream(device)
    waiting: deque[tuple[Slot, Draws, Fields, torch.cuda.Event]] = deque()

    def ready() -> tuple[np.ndarray, Draws, Fields]:
        slot, draws, fields, done = waiting.popleft()
        with watch("copy"):
            done.synchronize()
        ring.release(slot)
        for x in fields.values():
            x.record_stream(torch.cuda.current_stream(device))
        return slot.numbers, draws, fields

    for slot, draws in drawn:
        with watch("copy"), torch.cuda.stream(side):
            fields = {name: x.to(device, non_blocking=True) for name, x in _tensors(slot).items()}
            waiting.append((slot, draws, fields, side.record_event()))
        if len(waiting) > 1:
            yield ready()
    while waiting:
        yield ready()


def own(x: torch.Tensor) -> torch.Tensor:
    """On a GPU a copy, made before this returns: work that is queued there may look at it after whoever lent it has his
    memory back. To copy costs little there; to wait for that work would cost all the overlap."""
    if x.device.type != "cuda":
        return x
    side = torch.cuda.Stream(x.device)
    with torch.cuda.stream(side):
        copy = x.clone()
    side.synchronize()
    copy.record_stream(torch.cuda.current_stream(x.device))
    return copy
