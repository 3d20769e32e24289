"""Reading patches ahead: a few threads, at known offsets, into a ring of reused buffers.

No HDF5 call happens here: the store has said where each record begins. A record is scattered as it is read, so that
each field of a batch lies together in memory, as arithmetic, DALI and a copy to a device want it. Threads of C read,
from maps or descriptors, records that are neighbours as one; Python's take part as long as checksums are compared, and
where records are compressed.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jeoparda.errors import StoreError
from jeoparda.feed.buffer import PIECES, Buffer, Wanted, segments
from jeoparda.feed.files import Files, native
from jeoparda.store import Group, Store, crc32, decoded

_MEND = "`jeoparda store verify` lists what is damaged, `jeoparda store repair` mends it from the archive"


@dataclass
class Slot:
    """A filled buffer. numbers: (b,) int64 patch numbers; fields: by name, (b, ...) as the store's layout has them, of
    the bands that are wanted; valid until the slot is given back with `Ring.release`."""

    numbers: np.ndarray
    fields: dict[str, np.ndarray]
    buffer: Buffer


class Pool:
    """Threads that read: those of C, and those of Python for what needs the interpreter, which begin when there is
    such. Leaving the `with` ends them, with what has not been read left unread."""

    def __init__(self, threads: int) -> None:
        self.python = ThreadPoolExecutor(threads, "feed-check")
        self.native = native.start(threads) if native else None
        self.ended = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        if self.native:
            native.stop(self.native)
        self.python.shutdown(cancel_futures=True)


class Pending(Protocol):
    """What is being read. result: wait for it; StoreError names shard and patch."""

    def result(self) -> None: ...


class _Work(NamedTuple):
    """What is read of a batch: patches in file order, and for each its place in the buffer. starts: where in that order
    runs of neighbours begin, which are read together, and the end. whole: records are read as a whole; unchecked: some
    of their checksums are to be compared."""

    numbers: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    buffer: Buffer
    whole: bool
    unchecked: bool

    @property
    def runs(self) -> range:
        return range(len(self.starts) - 1)


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
        self._files = Files(store.paths, _ends(store))

    @contextmanager
    def opened(self) -> Iterator[None]:
        with closing(self._files):
            yield

    def buffer(self, largest: int, pinned: bool = False) -> Buffer:
        return Buffer(self._store.info.layout, self._wanted, largest, pinned)

    def submit(self, pool: Pool, numbers: np.ndarray, buffer: Buffer, ways: int) -> list[Pending]:
        """Begin to read the patches `numbers`, (b,), into the first b places of a buffer, in so many parts."""
        self._take_copies(numbers)
        work = self._work(numbers, buffer)
        if not (work.unchecked or self._packed or native is None):
            return [_Reading(self, pool, work, work.runs, ways)]
        n = len(work.runs)
        shares = (work.runs[k * n // ways : (k + 1) * n // ways] for k in range(ways))
        return [pool.python.submit(self._read_and_check, pool, work, share) for share in shares]

    def in_memory(self, numbers: np.ndarray) -> bool:
        """Whether all these patches are read from copies in memory."""
        self._take_copies(numbers)
        return self._files.in_memory(self._store.shard_of[numbers])

    def _take_copies(self, numbers: np.ndarray) -> None:
        copies, paths = self._files.copies, self._store.paths
        if self._path_of is None or len(copies) == len(paths):
            return
        for shard in set(self._store.shard_of[numbers].tolist()) - copies.keys():
            if (path := self._path_of(shard)) != paths[shard]:
                self._files.use(shard, path)

    def _work(self, numbers: np.ndarray, buffer: Buffer) -> _Work:
        """What is to be read. A cold parallel filesystem likes patches in file order, a warm cache does not mind."""
        s = self._store
        places = np.argsort(numbers)  # patches are numbered in file order
        numbers = numbers.take(places)
        shards, offsets = s.shard_of.take(numbers), s.offset_of.take(numbers)
        unchecked = self._checked is not None and not self._checked.take(numbers).all()
        whole = unchecked or self._wanted.size == s.dtype.itemsize
        if self._packed or not whole:
            starts = np.arange(len(numbers) + 1)
        else:
            apart = np.ones(len(numbers) + 1, bool)
            apart[1:-1] = (np.diff(shards) != 0) | (np.diff(offsets) != s.dtype.itemsize)
            apart[:: PIECES // len(self._wanted.runs)] = True
            starts = np.flatnonzero(apart)
        return _Work(numbers, shards, offsets, places, starts, buffer, whole, unchecked)

    def _read_and_check(self, pool: Pool, work: _Work, runs: range) -> None:
        if self._packed or native is None:
            self.read_one_by_one(work, runs)
        else:
            _Reading(self, pool, work, runs, 1).result()
        if self._checked is not None and work.unchecked and runs:
            own = slice(work.starts[runs[0]], work.starts[runs[-1] + 1])
            unknown = ~self._checked[work.numbers[own]]
            for number, place in zip(work.numbers[own][unknown].tolist(), work.places[own][unknown], strict=True):
                self._check(number, work.buffer.whole[place])
            self._checked[work.numbers[own]] = True

    def begin(self, pool: Pool, work: _Work, runs: range, ways: int) -> "tuple[native.Batch, np.ndarray, np.ndarray]":
        """Have C read runs of records: the batch to wait for, and the bytes of each run, as they will be and as they
        should be. OSError where a shard cannot be opened."""
        starts = work.starts[runs.start : runs.stop + 1]
        first, last = starts[0], starts[-1]
        if work.whole:
            pieces, lead, size = work.buffer.whole_pieces, 0, self._store.dtype.itemsize
        else:
            pieces, lead, size = work.buffer.wanted_pieces, self._wanted.lead, self._wanted.size
        pieces = pieces.take(work.places[first:last], 0)  # in file order, so that those of neighbours follow each other
        fds, maps = self._files.of(work.shards[starts[:-1]])
        offsets, got = work.offsets[starts[:-1]] + lead, np.full(len(runs), -1)
        bounds = (starts - first) * pieces.shape[1]
        assert pool.native
        keep = work.buffer, self._files  # the memory
        batch = native.begin(pool.native, ways, fds, maps, offsets, bounds, pieces, got, keep)
        return batch, got, np.diff(starts) * size

    def read_one_by_one(self, work: _Work, runs: range) -> None:
        for k in runs:
            self._read_run(work, range(work.starts[k], work.starts[k + 1]))

    def _read_run(self, work: _Work, run: range) -> None:
        """Records that are neighbours in a file, into their places."""
        first = run[0]
        number, offset = int(work.numbers[first]), int(work.offsets[first])
        path = self._store.paths[work.shards[first]]
        try:
            fd = int(self._files.of(work.shards[first : first + 1])[0][0])
            if self._packed:
                raw = os.pread(fd, int(self._store.size_of[number]), offset)
                self._unpack(raw, number, work.buffer.whole[work.places[first]])
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
        first, buffer, record = run[0], work.buffer, self._store.dtype.itemsize
        if work.whole:
            pieces, lead = [piece for i in run for piece in buffer.whole[work.places[i]]], 0
            size = len(run) * record
        else:
            pieces, lead, size = buffer.wanted[work.places[first]], self._wanted.lead, self._wanted.size
        got = os.preadv(fd, pieces, int(work.offsets[first]) + lead)
        if got < size:
            cut, each = work.numbers[run[got // record]], size // len(run)
            raise StoreError(
                f"{path}: patch {cut} ends after {got % record} of {each} bytes; the shard is truncated; {_MEND}"
            )

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


def _ends(store: Store) -> np.ndarray:
    """(shard,) int64, where each one's last record ends."""
    ends = np.zeros(len(store.paths), np.int64)
    np.maximum.at(ends, store.shard_of, store.offset_of + store.size_of)
    return ends


class _Reading:
    """Runs of a batch that C reads. One that came short, or could not be opened, is read again from Python, run by run,
    which tells the patch and why."""

    def __init__(self, reader: Reader, pool: Pool, work: _Work, runs: range, ways: int) -> None:
        self._pool, self._again = pool, partial(reader.read_one_by_one, work, runs)
        try:
            self._begun: tuple[native.Batch, np.ndarray, np.ndarray] | None = reader.begin(pool, work, runs, ways)
        except OSError:
            self._begun = None

    def result(self) -> None:
        if self._begun:
            batch, got, wanted = self._begun
            native.wait(batch)
            if np.array_equal(got, wanted):
                return
            if self._pool.ended:
                raise CancelledError  # nobody asks for it any more
        self._again()


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
        begun: deque[tuple[np.ndarray, Buffer, list[Pending]]] = deque()
        with Pool(self._threads) as pool:
            while True:
                while self._free and (numbers := next(todo, None)) is not None:
                    buffer = self._free.pop()  # the one given back last, which the processor's cache may hold
                    begun.append((numbers, buffer, self._reader.submit(pool, numbers, buffer, self._ways)))
                if not begun:
                    return
                numbers, buffer, tasks = begun.popleft()
                for task in tasks:
                    task.result()
                yield Slot(numbers, {name: x[: len(numbers)] for name, x in buffer.fields.items()}, buffer)
