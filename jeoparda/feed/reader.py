"""Reading patches ahead: a few threads, at known offsets, into a ring of reused buffers.

No HDF5 call happens here: the store has said where each record begins. A record is scattered as it is read, so that
each field of a batch lies together in memory, as arithmetic, DALI and a copy to a device want it. A batch is read from
the store's files by one system call, records that are neighbours as one; staged copies are memory, from which it is
gathered.
"""

import os
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
from jeoparda.feed.aio import PIECES, Reads
from jeoparda.feed.buffer import Buffer, Wanted, segments
from jeoparda.feed.maps import Maps
from jeoparda.feed.place import allow_files
from jeoparda.store import Group, Store, crc32, decoded

_MEND = "`jeoparda store verify` lists what is damaged, `jeoparda store repair` mends it from the archive"


@dataclass
class Slot:
    """A filled buffer. numbers: (b,) int64 patch numbers; fields: by name, (b, ...) as the store's layout has them, of
    the bands that are wanted; valid until the slot is given back with `Ring.release`."""

    numbers: np.ndarray
    fields: dict[str, np.ndarray]
    buffer: Buffer


class Files:
    """A store's shards, each opened when it is first read, or its copy once there is one. Descriptors stay open until
    the end: a thread may be reading from any of them."""

    def __init__(self, store: Store) -> None:
        self._paths = store.paths
        self._open = np.full(len(store.paths), -1, np.int32)
        self.copied: set[int] = set()  # shards that are read from their copies
        self._spare: list[int] = []  # descriptors of their own files
        self._lock = threading.Lock()
        allow_files(len(store.paths))

    def of(self, shards: np.ndarray) -> np.ndarray:
        """The descriptors of shards. OSError where one cannot be opened."""
        found = self._open[shards]
        if (found < 0).any():
            with self._lock:
                for shard in np.unique(shards[self._open[shards] < 0]):
                    self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
            found = self._open[shards]
        return found

    def use(self, shard: int, copy: Path) -> None:
        """Read a shard from its copy from now on."""
        with self._lock:
            self._spare.append(int(self._open[shard]))
            self._open[shard] = os.open(copy, os.O_RDONLY)
            self.copied.add(shard)

    def close(self) -> None:
        for fd in (*self._open.tolist(), *self._spare):
            if fd >= 0:
                os.close(fd)
        self._open[:] = -1
        self._spare = []


class _Work(NamedTuple):
    """What is read of a batch: patches in file order, and for each its place in the buffer. starts: where in that order
    runs of neighbours begin, which are read together, and the end. whole: records are read as a whole, and their
    checksums compared."""

    numbers: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    buffer: Callable[[], Buffer]
    whole: bool


class Reader:
    """Reads patches of a store into buffers.

    groups: bands that are wanted, with the store's names of groups; others: further fields. check: a patch's checksum
    is compared when it is first read from the store. path_of: where a shard, by its number, is best read now; a path
    that is not the store's is a whole copy that nobody changes. It reads inside `with reader.opened()`.
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
        self._wanted = Wanted(segments(store.info.layout, groups, others))
        self._maps = Maps(len(store.paths))
        self._mine = threading.local()

    @contextmanager
    def opened(self) -> Iterator[None]:
        with closing(Files(self._store)) as self._files:
            yield

    def buffer(self, largest: int, pinned: bool = False) -> Buffer:
        return Buffer(self._store.info.layout, self._wanted, largest, pinned)

    def submit(
        self, pool: ThreadPoolExecutor, numbers: np.ndarray, buffer: Callable[[], Buffer], ways: int
    ) -> list[Future[None]]:
        """Begin to read the patches `numbers`, (b,), into the first b places of a buffer, as so many tasks, which ask
        for it when they begin. StoreError in one of them names shard and patch."""
        here = self.staged(numbers)
        tasks = [pool.submit(self._gather, numbers, np.flatnonzero(here), buffer)] if here.any() else []
        if here.all():
            return tasks
        work = self._work(numbers, np.flatnonzero(~here), buffer)
        runs = range(len(work.starts) - 1)
        shares = (runs[k * len(runs) // ways : (k + 1) * len(runs) // ways] for k in range(ways))
        return [*tasks, *(pool.submit(self._read_runs, work, share) for share in shares)]

    def staged(self, numbers: np.ndarray) -> np.ndarray:
        """Which of the patches lie in memory, (b,) bool. Copies that have come about are mapped or opened."""
        shards = self._store.shard_of[numbers]
        here = self._maps.hold(shards)
        if self._path_of is None or here.all():
            return here
        others = set(shards[~here].tolist()) - self._files.copied
        copies = {shard: path for shard in others if (path := self._path_of(shard)) != self._store.paths[shard]}
        mapped = {shard: path for shard, path in copies.items() if path.stat().st_dev == _shared_memory()}
        for shard in copies.keys() - mapped.keys():
            self._files.use(shard, copies[shard])
        if mapped:
            self._maps.add(mapped)
        return self._maps.hold(shards)

    def _work(self, numbers: np.ndarray, places: np.ndarray, buffer: Callable[[], Buffer]) -> _Work:
        """What is to be read into these places, (n,), of a batch. A cold parallel filesystem likes patches in file
        order, a warm cache does not mind."""
        s = self._store
        order = np.lexsort((s.offset_of[numbers[places]], s.shard_of[numbers[places]]))
        places = places[order]
        numbers = numbers[places]
        shards, offsets = s.shard_of[numbers], s.offset_of[numbers]
        checking = self._checked is not None and not self._checked[numbers].all()
        whole = checking or self._wanted.size == s.dtype.itemsize
        apart = np.ones(len(places) + 1, bool)
        if whole and not self._packed:
            apart[1:-1] = (np.diff(shards) != 0) | (np.diff(offsets) != s.dtype.itemsize)
            apart[:: PIECES // len(self._wanted.runs)] = True
        return _Work(numbers, shards, offsets, places, np.flatnonzero(apart), buffer, whole)

    def _gather(self, numbers: np.ndarray, places: np.ndarray, buffer: Callable[[], Buffer]) -> None:
        shards, offsets = self._store.shard_of[numbers[places]], self._store.offset_of[numbers[places]]
        if self._packed:
            pieces = buffer().whole
            for place, number, shard, offset in zip(places, numbers[places], shards, offsets, strict=True):
                raw = self._maps.view(shard, offset, self._store.size_of[number])
                self._unpack(raw, number, pieces[place])
            return
        for start, part in buffer().parts:
            if len(places) == len(numbers):
                self._maps.gather(shards, offsets + start, part[: len(numbers)])
            else:
                some = torch.empty(len(places), part.shape[1], dtype=torch.uint8)
                self._maps.gather(shards, offsets + start, some)
                part[torch.from_numpy(places)] = some

    def _read_runs(self, work: _Work, runs: range) -> None:
        if self._packed or not self._read_at_once(work, runs):
            for k in runs:
                self._read_run(work, range(work.starts[k], work.starts[k + 1]))
        if self._checked is not None and work.whole and runs:
            own = slice(work.starts[runs[0]], work.starts[runs[-1] + 1])
            unknown = ~self._checked[work.numbers[own]]
            pieces = work.buffer().whole
            for number, place in zip(work.numbers[own][unknown].tolist(), work.places[own][unknown], strict=True):
                self._check(number, pieces[place])
            self._checked[work.numbers[own]] = True

    def _read_at_once(self, work: _Work, runs: range) -> bool:
        """All runs in one call; False where that cannot be, or one of them came short: which one, and why, is told by
        reading them one by one."""
        if not runs:
            return True
        first, last = runs[0], runs[-1] + 1
        starts, counts = work.starts[first:last], np.diff(work.starts[first : last + 1])
        if work.whole:
            pieces, lead, size = work.buffer().whole_pieces, 0, self._store.dtype.itemsize
        else:
            pieces, lead, size = work.buffer().wanted_pieces, self._wanted.lead, self._wanted.size
        pieces = pieces[work.places]  # in file order, so that those of neighbours follow each other
        addresses = pieces.ctypes.data + pieces.strides[0] * starts
        try:
            files = self._files.of(work.shards[starts])
            got = self._reads().read(files, work.offsets[starts] + lead, addresses, counts * pieces.shape[1])
        except OSError:
            return False
        return bool((got == counts * size).all())

    def _reads(self) -> Reads:
        """This thread's own."""
        if not hasattr(self._mine, "reads"):
            self._mine.reads = Reads()
        found: Reads = self._mine.reads
        return found

    def _read_run(self, work: _Work, run: range) -> None:
        """Records that are neighbours in a file, into their places."""
        first = run[0]
        number, offset = int(work.numbers[first]), int(work.offsets[first])
        path = self._store.paths[work.shards[first]]
        try:
            fd = int(self._files.of(work.shards[first : first + 1])[0])
            if self._packed:
                raw = os.pread(fd, int(self._store.size_of[number]), offset)
                self._unpack(raw, number, work.buffer().whole[work.places[first]])
                return
            self._copy(path, fd, work, run)
        except StoreError:  # an OSError too
            raise
        except OSError as e:
            raise StoreError(f"{path}: patch {number} cannot be read: {e.strerror}; {_MEND}") from e

    def _check(self, number: int, pieces: list[memoryview]) -> None:
        crc = 0
        for piece in pieces:
            crc = crc32(piece, crc)
        if crc != self._store.checksums[number]:
            raise StoreError(f"{self._path(number)}: patch {number} is damaged, its checksum differs; {_MEND}")

    def _copy(self, path: Path, fd: int, work: _Work, run: range) -> None:
        first, buffer, record = run[0], work.buffer(), self._store.dtype.itemsize
        if work.whole:
            pieces, lead = [piece for i in run for piece in buffer.whole[work.places[i]]], 0
            size = len(run) * record
        else:
            pieces, lead, size = buffer.wanted[work.places[first]], self._wanted.lead, self._wanted.size
        got = os.preadv(fd, pieces, int(work.offsets[first]) + lead)
        if got < size:
            cut = work.numbers[run[got // record]]
            raise StoreError(f"{path}: patch {cut} ends after {got} of {size} bytes; the shard is truncated; {_MEND}")

    def _unpack(self, raw: bytes | memoryview, number: int, pieces: list[memoryview]) -> None:
        try:
            record = memoryview(decoded(raw, self._store.dtype.itemsize)).cast("B")
        except ValueError as e:
            raise StoreError(f"{self._path(number)}: patch {number} cannot be decompressed: {e}; {_MEND}") from e
        end = 0
        for piece in pieces:
            piece[:] = record[end : end + len(piece)]
            end += len(piece)

    def _path(self, number: int) -> Path:
        return self._store.paths[self._store.shard_of[number]]


def _shared_memory() -> int:
    """The device of files that lie in memory."""
    return os.stat("/dev/shm").st_dev


class _Claim:
    """A batch's buffer: the one that was given back last, when it is first asked for. So as long as the consumer is
    faster than the readers, the same few are used, which the processor's cache holds."""

    def __init__(self, free: deque[Buffer]) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._buffer: Buffer | None = None

    def __call__(self) -> Buffer:
        with self._lock:
            self._buffer = self._buffer or self._free.pop()
            return self._buffer


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
        self._lent = 0

    def release(self, slot: Slot) -> None:
        """Say that nothing looks at this slot's fields any more."""
        self._free.append(slot.buffer)
        self._lent -= 1

    def read(self, batches: Iterable[np.ndarray]) -> Generator[Slot, None, None]:
        """A slot for each array of patch numbers, in order. Ends its threads when closed or exhausted."""
        self._free, self._lent = deque(self._buffers), 0
        todo = iter(batches)
        begun: deque[tuple[np.ndarray, _Claim, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self._threads, "feed-read")
        try:
            while True:
                while len(begun) + self._lent < len(self._buffers) and (numbers := next(todo, None)) is not None:
                    claim = _Claim(self._free)
                    begun.append((numbers, claim, self._reader.submit(pool, numbers, claim, self._ways)))
                if not begun:
                    return
                numbers, claim, tasks = begun.popleft()
                for task in tasks:
                    task.result()
                buffer = claim()
                self._lent += 1
                yield Slot(numbers, {name: x[: len(numbers)] for name, x in buffer.fields.items()}, buffer)
        finally:
            pool.shutdown(cancel_futures=True)
