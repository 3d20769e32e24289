"""Reading patches ahead: a few threads, `preadv` at known offsets, into a ring of reused buffers.

No HDF5 call happens here: the store has said where each record begins. A record is scattered as it is read, so that
each field of a batch lies together in memory, as arithmetic, DALI and a copy to a device want it. Records that are
neighbours in a file are read in one call.
"""

import itertools
import os
import resource
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from jeoparda.errors import StoreError
from jeoparda.store import Group, Layout, Store, crc32, decoded

_NEIGHBOURS = 32  # records in one call at the most: a call takes 1,024 buffers
_MEND = "`jeoparda store verify` lists what is damaged, `jeoparda store repair` mends it from the archive"


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


class Buffer:
    """Memory for a batch of up to `largest` records.

    fields: by name, (largest, ...). whole: for each record the pieces of memory that it is read into, in file order;
    wanted: the same without what nobody wants before and after, which is `lead` bytes before.
    """

    def __init__(self, layout: Layout, runs: list[tuple[str, int]], largest: int, pinned: bool) -> None:
        sizes: dict[str, int] = {}
        for name, n in runs:
            sizes[name] = sizes.get(name, 0) + n
        held = {name: _memory((largest, n), pinned and bool(name)) for name, n in sizes.items()}
        shapes = layout.fields()
        self.fields = {
            name: held[name].view(np.dtype(shapes[name][0])).reshape(largest, *_of_bands(shapes[name][1]))
            for name in sizes if name
        }  # fmt: skip
        self.whole = [_pieces({name: a[i] for name, a in held.items()}, runs) for i in range(largest)]
        names = [name for name, _ in runs]
        first = next(i for i, name in enumerate(names) if name)
        last = len(names) - next(i for i, name in enumerate(reversed(names)) if name)
        self.lead = sum(n for _, n in runs[:first])
        self.wanted = [row[first:last] for row in self.whole]
        self.wanted_bytes = sum(n for _, n in runs[first:last])


def _of_bands(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(band, row, col) with as many bands as are wanted."""
    return (-1, *shape[1:]) if len(shape) == 3 else shape


def _memory(shape: tuple[int, int], pinned: bool) -> np.ndarray:
    """Touched once, here, so that the kernel hands out its pages before a batch waits for them."""
    return torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned).numpy()


def _pieces(row: dict[str, np.ndarray], runs: list[tuple[str, int]]) -> list[memoryview]:
    done = dict.fromkeys(row, 0)
    found = []
    for name, n in runs:
        found.append(row[name].data[done[name] : done[name] + n])
        done[name] += n
    return found


@dataclass
class Slot:
    """A filled buffer. numbers: (b,) int64 patch numbers; fields: by name, (b, ...) as the store's layout has them, of
    the bands that are wanted; valid until the slot is given back with `Ring.release`."""

    numbers: np.ndarray
    fields: dict[str, np.ndarray]
    buffer: Buffer


class Files:
    """A store's shards, each opened when it is first read, where `path_of` says that it is best read; that may change
    while shards are copied nearer. Descriptors stay open until the end: a thread may be reading from any of them."""

    def __init__(self, store: Store, path_of: Callable[[int], Path] | None = None) -> None:
        self._path_of = path_of or store.paths.__getitem__
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()
        _allow_open_files((1 if path_of is None else 2) * len(store.paths) + 256)

    def of(self, shard: int) -> int:
        """The descriptor of a shard. OSError where it cannot be opened."""
        path = self._path_of(shard)
        with self._lock:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY)
            return self._open[path]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _allow_open_files(wanted: int) -> None:
    """An archive of 590,326 patches has more shards than the usual limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Work(NamedTuple):
    """A batch that is being read. whole: its records are read as a whole, and their checksums compared."""

    numbers: list[int]
    shards: list[int]
    offsets: list[int]
    sizes: list[int]
    buffer: Buffer
    whole: bool


class Reader:
    """Reads patches of a store into buffers.

    groups: bands that are wanted, with the store's names of groups; others: further fields. check: a patch's checksum
    is compared when it is first read. path_of: see Files. It reads inside `with reader.opened()`.
    """

    def __init__(
        self,
        store: Store,
        groups: Sequence[Group],
        others: Sequence[str],
        check: bool = True,
        path_of: Callable[[int], Path] | None = None,
    ) -> None:
        self._store = store
        self._path_of = path_of
        self._checked = np.zeros(len(store), bool) if check else None
        self._packed = store.info.compression != "none"
        self._runs = segments(store.info.layout, groups, others)

    @contextmanager
    def opened(self) -> Iterator[None]:
        with closing(Files(self._store, self._path_of)) as self._files:
            yield

    def buffer(self, largest: int, pinned: bool = False) -> Buffer:
        return Buffer(self._store.info.layout, self._runs, largest, pinned)

    def submit(self, pool: ThreadPoolExecutor, numbers: np.ndarray, buffer: Buffer, ways: int) -> list[Future[None]]:
        """Begin to read the patches `numbers`, (b,), into the first b places of a buffer, as so many tasks. StoreError
        in one of them names shard and patch."""
        s = self._store
        shards, offsets, sizes = s.shard_of[numbers], s.offset_of[numbers], s.size_of[numbers]
        checking = self._checked is not None and not self._checked[numbers].all()
        whole = checking or buffer.wanted_bytes == s.dtype.itemsize
        work = _Work(numbers.tolist(), shards.tolist(), offsets.tolist(), sizes.tolist(), buffer, whole)
        runs = _runs(shards, offsets, sizes, most=1 if self._packed or not whole else _NEIGHBOURS)
        shares = (runs[k * len(runs) // ways : (k + 1) * len(runs) // ways] for k in range(ways))
        return [pool.submit(self._read_runs, work, share) for share in shares]

    def _read_runs(self, work: _Work, runs: list[list[int]]) -> None:
        for places in runs:
            self._read_run(work, places)

    def _read_run(self, work: _Work, places: list[int]) -> None:
        """Records that are neighbours in a file, into their places."""
        first = places[0]
        path = self._store.paths[work.shards[first]]
        try:
            fd = self._files.of(work.shards[first])
            if self._packed:
                self._unpack(path, fd, work, first)
            else:
                self._copy(path, fd, work, places)
        except StoreError:  # an OSError too
            raise
        except OSError as e:
            raise StoreError(f"{path}: patch {work.numbers[first]} cannot be read: {e.strerror}; {_MEND}") from e
        if self._checked is not None and work.whole:
            for i in places:
                self._check(path, work.numbers[i], work.buffer.whole[i], self._checked)

    def _check(self, path: Path, number: int, pieces: list[memoryview], checked: np.ndarray) -> None:
        if checked[number]:
            return
        crc = 0
        for piece in pieces:
            crc = crc32(piece, crc)
        if crc != self._store.checksums[number]:
            raise StoreError(f"{path}: patch {number} is damaged, its checksum differs; {_MEND}")
        checked[number] = True

    def _copy(self, path: Path, fd: int, work: _Work, places: list[int]) -> None:
        first, buffer = places[0], work.buffer
        if work.whole:
            pieces, lead = [piece for i in places for piece in buffer.whole[i]], 0
            size = len(places) * work.sizes[first]
        else:
            pieces, lead, size = buffer.wanted[first], buffer.lead, buffer.wanted_bytes
        got = os.preadv(fd, pieces, work.offsets[first] + lead)
        if got < size:
            cut = work.numbers[places[got // work.sizes[first]]]
            raise StoreError(f"{path}: patch {cut} ends after {got} of {size} bytes; the shard is truncated; {_MEND}")

    def _unpack(self, path: Path, fd: int, work: _Work, place: int) -> None:
        raw = os.pread(fd, work.sizes[place], work.offsets[place])
        try:
            record = memoryview(decoded(raw, self._store.dtype.itemsize)).cast("B")
        except ValueError as e:
            raise StoreError(f"{path}: patch {work.numbers[place]} cannot be decompressed: {e}; {_MEND}") from e
        end = 0
        for piece in work.buffer.whole[place]:
            piece[:] = record[end : end + len(piece)]
            end += len(piece)


def _runs(shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, most: int) -> list[list[int]]:
    """Places of a batch, in file order, those together that are neighbours in a file, up to `most`. A cold parallel
    filesystem likes the order, a warm cache does not mind."""
    order = np.lexsort((offsets, shards))
    if most == 1:
        return order[:, None].tolist()
    apart = (np.diff(shards[order]) != 0) | (np.diff(offsets[order]) != sizes[order][:-1])
    ends = [*(np.flatnonzero(apart) + 1).tolist(), len(order)]
    starts = [0, *ends[:-1]]
    return [order[k : min(k + most, b)].tolist() for a, b in zip(starts, ends, strict=True) for k in range(a, b, most)]


class Ring:
    """Batches of records, read ahead into `depth` buffers of up to `largest` patches each; one reading at a time.

    A thread reads a batch by itself as long as there are as many batches ahead as threads: none waits for another.
    """

    def __init__(self, reader: Reader, largest: int, depth: int, threads: int, pinned: bool = False) -> None:
        self._reader = reader
        self._threads = threads
        self._ways = -(-threads // max(1, depth - 2))  # tasks a batch: two buffers are with those who use them
        self._buffers = [reader.buffer(largest, pinned) for _ in range(depth)]
        self._free: deque[Buffer] = deque()

    def release(self, slot: Slot) -> None:
        """Say that nothing looks at this slot's fields any more."""
        self._free.append(slot.buffer)

    def read(self, batches: Iterable[np.ndarray]) -> Generator[Slot, None, None]:
        """A slot for each array of patch numbers, in order. Ends its threads when closed or exhausted."""
        self._free = deque(self._buffers)
        todo = iter(batches)
        begun: deque[tuple[np.ndarray, Buffer, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self._threads, "feed-read")
        try:
            while True:
                while self._free and (numbers := next(todo, None)) is not None:
                    buffer = self._free.popleft()
                    begun.append((numbers, buffer, self._reader.submit(pool, numbers, buffer, self._ways)))
                if not begun:
                    return
                numbers, buffer, tasks = begun.popleft()
                for task in tasks:
                    task.result()
                yield Slot(numbers, {name: x[: len(numbers)] for name, x in buffer.fields.items()}, buffer)
        finally:
            pool.shutdown(cancel_futures=True)
