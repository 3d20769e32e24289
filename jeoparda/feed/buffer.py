"""Memory for batches: which bytes of a record go where, so that each field of a batch lies together."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from jeoparda.store import Group, Layout

PIECE = np.dtype([("address", "u8"), ("size", "u8")])  # struct iovec
PIECES = 1024  # of one read, at the most: Linux's IOV_MAX


def segments(layout: Layout, groups: Sequence[Group], others: Sequence[str]) -> list[tuple[str, int]]:
    """A record as runs of bytes, (field, length), for the bands of `groups` and the fields `others`; "" is for what is
    not wanted, padding included."""
    stored = {g.name: g.bands for g in layout.groups}
    wanted = {g.name: g.bands for g in groups}
    dtype = layout.dtype()
    runs: list[tuple[str, int]] = []
    end = 0
    for name, (kind, first, *_) in (dtype.fields or {}).items():
        runs.append(("", first - end))
        if name in stored:
            size = kind.itemsize // len(stored[name])
            runs += [(name if band in wanted.get(name, ()) else "", size) for band in stored[name]]
        else:
            runs.append((name if name in others else "", kind.itemsize))
        end = first + kind.itemsize
    runs.append(("", dtype.itemsize - end))
    joined = [(name, sum(n for _, n in run)) for name, run in itertools.groupby(runs, key=lambda r: r[0])]
    return [(name, n) for name, n in joined if n]


class Wanted:
    """What is wanted of a record, as `segments` cut it into runs. first, last: the runs from the first that is wanted
    to one past the last; lead, size: bytes before them and in them."""

    def __init__(self, runs: list[tuple[str, int]]) -> None:
        places = [i for i, (name, _) in enumerate(runs) if name]
        self.runs = runs
        self.first, self.last = places[0], places[-1] + 1
        self.lead = sum(n for _, n in runs[: self.first])
        self.size = sum(n for _, n in runs[self.first : self.last])


class Buffer:
    """Memory for a batch of up to `largest` records.

    fields: by name, (largest, ...). whole: for each record the pieces of memory that it is read into, in file order;
    wanted: the same without what nobody wants before and after; whole_pieces and wanted_pieces: both as the kernel
    takes them.
    """

    def __init__(self, layout: Layout, w: Wanted, largest: int, pinned: bool) -> None:
        runs = w.runs
        sizes: dict[str, int] = {}
        for name, n in runs:
            sizes[name] = sizes.get(name, 0) + n
        held = {name: _memory((largest, n), pinned and bool(name)) for name, n in sizes.items()}
        shapes = layout.fields()
        self.fields = {
            name: held[name].view(np.dtype(shapes[name][0])).reshape(largest, *_of_bands(shapes[name][1]))
            for name in sizes if name
        }  # fmt: skip
        self.whole = [[part.data for part in _cut({k: a[i] for k, a in held.items()}, runs)] for i in range(largest)]
        self.wanted = [row[w.first : w.last] for row in self.whole]
        self.whole_pieces = np.array([[_address(piece) for piece in row] for row in self.whole], PIECE)
        self.wanted_pieces = np.ascontiguousarray(self.whole_pieces[:, w.first : w.last])


def _of_bands(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(band, row, col) with as many bands as there are bytes for; (row, col) as it is."""
    return (-1, *shape[1:]) if len(shape) == 3 else shape


def _memory(shape: tuple[int, int], pinned: bool) -> np.ndarray:
    """(record, bytes) uint8, touched once, here, so that the kernel hands out its pages before a batch waits for them;
    numpy asks for huge ones, into which it copies faster."""
    if pinned:
        return torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()
    memory = np.empty(shape, np.uint8)
    memory.fill(0)
    return memory


def _address(piece: memoryview) -> tuple[int, int]:
    """Address and size in bytes, as the kernel's iovec has them."""
    return np.frombuffer(piece, np.uint8).ctypes.data, len(piece)


def _cut(held: dict[str, np.ndarray], runs: list[tuple[str, int]]) -> list[np.ndarray]:
    """Each run's share of its field, (..., bytes)."""
    done = dict.fromkeys(held, 0)
    found = []
    for name, n in runs:
        found.append(held[name][..., done[name] : done[name] + n])
        done[name] += n
    return found
