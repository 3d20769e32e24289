"""jeoparda's feed, and what it is held against: `python -m benchmarks.feed.loaders WHO STORE [OPTIONS as JSON]`.

A torch DataLoader over h5py that does the same work, the copying of the same bytes in memory, and reading the same
files from end to end.
"""

import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.feed.measure import Epoch, serve
from jeoparda.comm import Single
from jeoparda.config import check
from jeoparda.feed import Feed, FeedRecipe, Plan
from jeoparda.feed.stage import Stage
from jeoparda.order import Order
from jeoparda.store import Store

BATCH = 64
WORKERS = 2
BLOCK = 8 << 20  # bytes of one sequential read
AUGMENT = {"flips": True, "crop_px": 108, "mixup": 0.2, "drop_bands": 0.1, "jitter": 0.05}
STILL = {"flips": False, "crop_px": 0, "mixup": 0.0, "drop_bands": 0.0, "jitter": 0.0}

Fields = dict[str, torch.Tensor]


def feed(folder: Path, options: dict[str, Any]) -> Epoch:
    """The feed; `options` are keys of its recipe. With a stage, everything is staged before it begins."""
    store, r = Store(folder), check(FeedRecipe, options)
    numbers = store.split("all")
    plan = Plan(Order(len(numbers), BATCH, 0, block=r.block, unit=2), numbers, 0, 1)
    stage = Stage(store, r.stage, r.stage_folder, numbers, Single())
    stage.wait()
    made = Feed(store, plan, r, True, store.labels, path_of=stage.path_of)
    return lambda: iter(made)


def footprint(folder: Path, options: dict[str, Any], epochs: int) -> list[tuple[int, int]]:
    """(resident bytes, open descriptors) of this process after each epoch of the feed."""
    me, epoch = psutil.Process(), feed(folder, options)
    found = []
    for _ in range(epochs):
        for _ in epoch():
            pass
        found.append((me.memory_info().rss, me.num_fds()))
    return found


# ---- a torch DataLoader


class Patches(Dataset):
    """A store's patches, one by one, by h5py; files are opened by the worker that reads them."""

    def __init__(self, store: Store, work: Callable[[Fields], Fields]) -> None:
        self._paths = store.paths
        self._labels = torch.from_numpy(store.labels).to(torch.float32)
        self._shards = store.shard_of.tolist()
        self._places = (np.arange(len(store)) - np.searchsorted(store.shard_of, store.shard_of)).tolist()
        self._work = work
        self._open: list[h5py.Dataset] = []

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not self._open:
            self._open = [h5py.File(path, "r")["patches"] for path in self._paths]
        record = self._open[self._shards[number]][self._places[number]]
        fields = self._work({name: torch.from_numpy(record[name]) for name in record.dtype.names})
        return fields | {"labels": self._labels[number], "number": number}


class Image:
    """Fields of a record to {"image": (band, row, col) float32}: normalised, on the finest grid, augmented at random.

    What can be done before upsampling is, where pixels are fewer; crops begin where the pixels of all bands do. Flips
    and crops are views as long as they can be.
    """

    def __init__(self, store: Store, augment: dict[str, Any]) -> None:
        self._groups = store.info.groups
        self._size = store.info.size_px
        self._mean, std = (torch.from_numpy(a)[:, None, None] for a in store.statistics())
        self._scale = 1 / std
        self._augment = augment

    def __call__(self, fields: Fields) -> Fields:
        factor = self._scale * self._gain()
        offset = torch.where(factor == 0, 0, self._mean * self._scale)  # a dropped band is its mean everywhere
        row, col, side = self._window()
        parts, first = [], 0
        for g in self._groups:
            bands = slice(first, first := first + len(g.bands))
            k = self._size // g.size_px
            x = fields[g.name][:, row // k : (row + side) // k, col // k : (col + side) // k].to(torch.float32)
            x = x.mul_(factor[bands]).sub_(offset[bands])
            if k > 1:
                x = F.interpolate(x[None], size=(side, side), mode="bilinear", align_corners=False)[0]
            parts.append(x)
        return {"image": self._turned(parts[0] if len(parts) == 1 else torch.cat(parts))}

    def _gain(self) -> torch.Tensor:
        """(band, 1, 1)"""
        a, gain = self._augment, torch.ones_like(self._mean)
        if a["jitter"]:
            gain += a["jitter"] * 12**0.5 * (torch.rand_like(gain) - 0.5)
        if a["drop_bands"]:
            gain[torch.rand_like(gain) < a["drop_bands"]] = 0
        return gain

    def _window(self) -> tuple[int, int, int]:
        """(row, col, side) of the crop, px of the finest grid."""
        if not (side := self._augment["crop_px"]):
            return 0, 0, self._size
        step = self._size // self._groups[-1].size_px
        row, col = (torch.randint((self._size - side) // step + 1, (2,)) * step).tolist()
        return row, col, side

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        if self._augment["flips"]:
            transpose, rows, cols = torch.randint(2, (3,)).tolist()
            x = x.transpose(1, 2) if transpose else x
            axes = [axis for axis, turned in ((1, rows), (2, cols)) if turned]
            x = x.flip(axes) if axes else x
        return x


class Collate:
    """Samples to a batch, in a worker; neighbours are mixed with shares from Beta(mixup, mixup)."""

    def __init__(self, mixup: float) -> None:
        self._mixup = mixup

    def __call__(self, samples: list[dict[str, Any]]) -> Fields:
        batch = default_collate(samples)
        if self._mixup:
            share = torch.distributions.Beta(self._mixup, self._mixup).sample((len(samples) // 2,)).repeat_interleave(2)
            partner = torch.arange(len(samples)) ^ 1
            for x in (batch["image"], batch["labels"]):
                torch.lerp(x[partner], x, share.reshape(-1, *[1] * (x.ndim - 1)), out=x)
        return batch


def loader(folder: Path, options: dict[str, Any]) -> Epoch:
    """options: `as`: raw or image; `augment`: as the feed's; `keep`: workers stay from epoch to epoch."""
    store = Store(folder)
    augment = options.get("augment", STILL)
    work = Image(store, augment) if options["as"] == "image" else _as_it_is
    made = DataLoader(
        Patches(store, work),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=options["keep"],
        collate_fn=Collate(augment["mixup"]),
    )
    return lambda: iter(made)


def _as_it_is(fields: Fields) -> Fields:
    return fields


# ---- floors


def copies(folder: Path, options: dict[str, Any]) -> Epoch:
    """The same bytes, already in memory, gathered into batch buffers; nothing of a file, a lock or a ring."""
    store = Store(folder)
    used = _used(store)
    memory = np.empty((len(store), used), np.uint8)
    for number, path in enumerate(store.paths):
        with h5py.File(path, "r") as f:
            records = f["patches"][:]
        memory[store.shard_of == number] = records.view(np.uint8).reshape(len(records), -1)[:, :used]

    def gather(numbers: np.ndarray, buffer: np.ndarray) -> None:
        np.take(memory, numbers, axis=0, out=buffer, mode="clip")  # one loop in C, without the GIL

    return _by_threads(store, gather)


def reads(folder: Path, options: dict[str, Any]) -> Epoch:
    """A bare system call for each record, into batch buffers: what no loader that reads files can be faster than."""
    store = Store(folder)
    files = [os.open(path, os.O_RDONLY) for path in store.paths]
    shards, offsets = store.shard_of.tolist(), store.offset_of.tolist()

    def read(numbers: np.ndarray, buffer: np.ndarray) -> None:
        for row, number in zip(buffer, numbers.tolist(), strict=True):
            os.preadv(files[shards[number]], [row], offsets[number])

    return _by_threads(store, read)


def _used(store: Store) -> int:
    """Bytes of a record without its padding."""
    return sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in store.info.layout.fields().values())


def _by_threads(store: Store, fill: Callable[[np.ndarray, np.ndarray], None]) -> Epoch:
    """Batches by as many threads as a loader has workers, each a batch at a time, into four buffers in turn."""
    buffers = np.ones((4, BATCH, _used(store)), np.uint8)
    order = Order(len(store), BATCH, 0)
    batches = [order.global_batch(0, step) for step in range(order.steps)]
    pool = ThreadPoolExecutor(WORKERS)

    def batch(step: int) -> dict[str, Any]:
        fill(batches[step], buffers[step % 4][: len(batches[step])])
        return {"labels": batches[step]}

    return lambda: pool.map(batch, range(order.steps))


def sequential(folder: Path, options: dict[str, Any]) -> Epoch:
    """The shards from end to end, 8 MiB a read; `direct`: without the page cache."""
    store = Store(folder)
    buffer = mmap.mmap(-1, BLOCK)  # begins on a page, as O_DIRECT wants
    flags = os.O_RDONLY | (os.O_DIRECT if options["direct"] else 0)

    def epoch() -> Iterator[dict[str, Any]]:
        for path, shard in zip(store.paths, store.info.shards, strict=True):
            fd = os.open(path, flags)
            at = 0
            while got := os.preadv(fd, [buffer], at):
                at += got
                if got < BLOCK:  # the end; what follows would not be aligned
                    break
            os.close(fd)
            yield {"labels": range(shard.patches)}

    return epoch


WHO = {"feed": feed, "loader": loader, "copies": copies, "reads": reads, "sequential": sequential}


def main(who: str, folder: str, options: str = "{}") -> None:
    serve(WHO[who](Path(folder), json.loads(options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
