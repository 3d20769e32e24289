"""Staging: a store's shards copied to the node's own storage while the first epoch reads them from where they are.

The copies have no names. Each is a temporary file that was never in a folder (O_TMPFILE, or unlinked at once), so the
kernel frees it when the last process that holds it is gone: after an end, a crash, SIGKILL, or a batch system that
kills a job's whole control group, which would kill a cleaner as well. There is nothing to clean up, nothing that two
jobs of one node could take from each other, and nothing for other users to open.

Ranks of one node share one copy. They meet in a table in shared memory, itself a nameless file, with a row a shard:
the process and the descriptor that hold its copy. Others of the same user open that as /proc/PID/fd/FD. A row is
filled when the copy is whole and its SHA-256 is that of store.json. Ranks that cannot open each other's files, as in
containers with process numbers of their own, count as nodes of their own.

Which sample comes when does not depend on any of this.
"""

import hashlib
import mmap
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np

from jeoparda.comm import Comm
from jeoparda.errors import RecipeError, StoreError
from jeoparda.feed.files import Map, native
from jeoparda.feed.place import Kind, allowed_files, place_of, room_bytes
from jeoparda.store import Store

BLOCK_BYTES = 4 << 20
SAMPLE_BYTES = 32 << 20
SAMPLE_S = 1.0  # a slow store is not read for longer than this
_REFUSED = -1  # in the table in the place of a process: the shard is not as it was written


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Stage:
    """Copies shards in the background. `path(shard)` says where a shard is best read now. Use it in a `with`, or
    `close()` it: that ends the copying and frees this rank's copies.

    Staging is asked for by name, so it is done even where the measurement promises no gain, and that is said: a
    sample of a second may have met a server's cache, or a moment when nobody else was reading.
    """

    def __init__(
        self,
        store: Store,
        kind: Kind,
        folder: Path | None,
        numbers: np.ndarray,
        comm: Comm,
        say: Callable[[str], None] = _tell,
    ) -> None:
        """All ranks make one together; it is collective unless kind is "none", and returns when the copying starts.

        folder: `feed.stage_folder`. numbers: (n,) int64, the patches that an epoch reads; shards without one are left
        alone. RecipeError, on all ranks, when some node has no place to stage to.
        """
        self._store, self._say, self._host = store, say, socket.gethostname()
        self._table = np.zeros((len(store.paths), 4), np.int64)
        self._fds: list[int] = []  # of copies, this rank's and others'
        self._paths: dict[int, Path] = {}
        self._refused: dict[int, StoreError] = {}
        self._error: BaseException | None = None
        self._kind, self._huge = kind, 0  # shards in huge pages
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed-stage", daemon=True)
        if kind == "none":
            self._paths = dict(enumerate(store.paths))
            return
        self._place, team, self._table = _meet(kind, folder, len(store.paths), comm)
        self._rank = comm.rank
        wanted = _wanted(store, numbers)
        order = team.order(sorted(wanted))[: allowed_files(len(store.paths))]
        found = estimate(store, order, wanted, self._place, self._host) if team.mate == 0 else None
        estimates = comm.gather(found, "stage.estimates")
        self._mine = order[: estimates[team.leader].shards][team.mate :: team.mates]
        if comm.rank == 0:
            for line in _announcement([e for e in estimates if e]):
                say(line)
        self._thread.start()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, shard: int) -> Path:
        """The staged copy of a shard once it is whole, by whichever rank of the node; until then the store's own file.

        Costs no system call but one opening, the first time that a copy is seen. A copy's path is good until `close`.
        StoreError for a shard that was found damaged, changed or gone; and whatever ended the copying unforeseen.
        """
        return self._paths.get(shard) or self._find(shard)

    @property
    def path_of(self) -> Callable[[int], Path] | None:
        """`path`, for a feed; None where nothing is staged, so that none is asked for with every batch."""
        return None if self._kind == "none" else self.path

    @property
    def staged(self) -> int:
        """How many shards this node holds by now."""
        return int((self._table[:, 0] > 0).sum())

    def wait(self) -> None:
        """Until this rank has copied its part."""
        if self._thread.is_alive():
            self._thread.join()
        if self._error:
            raise self._error

    def close(self) -> None:
        """End the copying, and let go of the copies; what a feed has mapped stays until that is gone, too. `path` then
        gives the store's own files."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._table[self._table[:, 0] == os.getpid()] = 0
            self._table = np.zeros_like(self._table)
            self._paths = {}
            while self._fds:
                os.close(self._fds.pop())

    def _find(self, shard: int) -> Path:
        if self._error:
            raise self._error
        if self._table[shard, 0] == 0:
            return self._store.paths[shard]
        holder = Handle(*self._table[shard].tolist())
        if holder.pid == _REFUSED:
            raise self._refused.get(shard) or StoreError(
                f"{self._store.paths[shard]}: is damaged, changed or gone, as another rank on {self._host} found when "
                f"it staged it; `jeoparda store repair {self._store.folder}` makes it again from the archive"
            )
        with self._lock:
            if shard not in self._paths:
                fd = None if self._stop.is_set() else holder.open()
                if fd is None:  # its row is not wholly visible yet, or its rank has ended; the store has it too
                    return self._store.paths[shard]
                self._fds.append(fd)
                self._paths[shard] = Handle.of(fd).path
            return self._paths[shard]

    # ---- in the background

    def _work(self) -> None:
        began = time.monotonic()
        try:
            why = self._copy_all()
        except BaseException as e:  # raised where the shards are asked for
            self._error = e
            return
        if not self._stop.is_set() and (why or self._rank == 0):
            staged = (self._table[self._mine, 0] > 0).sum()
            self._report(
                f"{why or 'done'}; {staged} of its {len(self._mine)} shards staged in "
                f"{(time.monotonic() - began) / 60:.1f} minutes"
                + (f", {self._huge} of them in huge pages" if self._kind == "shm" else "")
                + ("; the others are read from the store" if why else "")
            )

    def _copy_all(self) -> str:
        """Copy this rank's part. Why it ended early, "" if it did not or was told to stop."""
        for shard in self._mine:
            if self._stop.is_set():
                break
            try:
                # others may have taken room meanwhile; what this node's ranks write just now comes out of the margin
                if room_bytes(self._place) < _bytes(self._store.paths[shard]):
                    return f"{self._place} has no more room, beside what is left to others"
                self._copy(shard)
            except StoreError as e:
                self._refused[shard] = e
                self._table[shard, 0] = _REFUSED
                self._report(str(e))
            except OSError as e:
                return f"{self._place}: {e.strerror}"
        return ""

    def _copy(self, shard: int) -> None:
        """Unless told to stop meanwhile. StoreError when the shard is not as store.json says."""
        source, expected = self._store.paths[shard], self._store.info.shards[shard].sha256
        digest = hashlib.sha256()
        with TemporaryFile(dir=self._place) as target:
            for block in _blocks(source):
                if self._stop.is_set():
                    return
                digest.update(block)
                target.write(block)
            target.flush()
            if digest.hexdigest() != expected:
                raise StoreError(
                    f"{source}: its SHA-256 is {digest.hexdigest()[:16]}…, store.json says {expected[:16]}…: it is "
                    f"damaged or was changed; `jeoparda store repair {self._store.folder}` makes it again from the "
                    "archive"
                )
            holder = Handle.of(os.dup(target.fileno()))
        self._fds.append(holder.fd)
        self._paths[shard] = holder.path
        self._table[shard, 1:] = holder[1:]
        self._table[shard, 0] = holder.pid  # last: the row counts from here on
        if self._kind == "shm" and native:  # only now, as it may take longer than the copying
            with suppress(OSError):  # no map, no huge pages
                self._huge += Map(holder.fd).collapse(self._stop.is_set)

    def _report(self, text: str) -> None:
        self._say(f"stage: {self._host}, rank {self._rank}: {text}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(f"{path}: cannot be read: {e.strerror}; is the store still there?") from e


def _bytes(path: Path) -> int:
    with _reading(path):
        return path.stat().st_size


def _blocks(path: Path) -> Iterator[memoryview]:
    """A file's content; a block is valid until the next. StoreError when it cannot be read."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with _reading(path), open(path, "rb", buffering=0) as f:
        while got := f.readinto(buffer):
            yield buffer[:got]


# ---- the ranks of a node


class Handle(NamedTuple):
    """A file without a name, by the descriptor of a process that holds it. dev, ino: to tell it from whatever else may
    have that descriptor later."""

    pid: int
    fd: int
    dev: int
    ino: int

    @classmethod
    def of(cls, fd: int) -> "Handle":
        s = os.fstat(fd)
        return cls(os.getpid(), fd, s.st_dev, s.st_ino & (1 << 63) - 1)  # some filesystems use the 64th bit

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self.pid}/fd/{self.fd}")

    def open(self) -> int | None:
        """A descriptor of this process's own, to read and write; None where the file is gone or out of reach."""
        try:
            fd = os.open(self.path, os.O_RDWR)
        except OSError:
            return None
        if Handle.of(fd)[2:] == self[2:]:
            return fd
        os.close(fd)
        return None


@dataclass(frozen=True)
class Team:
    """The ranks that share one copy: number `node` of `nodes`, in which this rank is number `mate` of `mates`.
    leader: the rank of its first."""

    leader: int
    node: int
    nodes: int
    mate: int
    mates: int

    def order(self, shards: list[int]) -> list[int]:
        """The shards in this node's order: each node begins at its own share, so that not all read one file at once,
        and, where not all fit, that each shard is staged by some."""
        first = self.node * len(shards) // self.nodes
        return shards[first:] + shards[:first]


def _meet(kind: Kind, folder: Path | None, shards: int, comm: Comm) -> tuple[Path, Team, np.ndarray]:
    """The place to stage to, the ranks that share it with this one, and their table, (shard, 4) int64 in memory that
    they share: rows as a Handle, 0 where nothing is staged. RecipeError on all ranks when one has no place."""
    host, place, problem = socket.gethostname(), Path(), ""
    try:
        place = place_of(kind, folder)
    except RecipeError as e:
        problem = f"{e} (on {host})"
    # memory without a place: it needs no room in /dev/shm, which may be full
    with open(os.memfd_create("jeoparda-stage"), "r+b", buffering=0) as own:
        own.truncate(shards * 4 * 8)
        ranks = comm.gather((host, Handle.of(own.fileno()), problem), "stage.ranks")
        if problems := sorted({problem for *_, problem in ranks if problem}):
            raise RecipeError("\n".join(problems))
        leader, fd = _leader(host, ranks)
        leaders = comm.gather(leader, "stage.nodes")  # also: nobody lets go of a table before all have looked at it
    if -1 in leaders:
        where = ranks[leaders.index(-1)][0]
        raise RecipeError(
            f"feed.stage = {kind}: a process cannot open its own files through /proc on {where}; take feed.stage = none"
        )
    with open(fd, "r+b", buffering=0) as f:
        table = np.frombuffer(mmap.mmap(f.fileno(), 0), np.int64).reshape(shards, 4)
    return place, _team(leaders, comm.rank), table


def _leader(host: str, ranks: list[tuple[str, Handle, str]]) -> tuple[int, int]:
    """The first rank of this host whose table can be opened, and a descriptor of that; -1, -1 without any."""
    for number, (there, table, _) in enumerate(ranks):
        if there == host and (fd := table.open()) is not None:
            return number, fd
    return -1, -1


def _team(leaders: list[int], rank: int) -> Team:
    """leaders: of each rank, in the order of ranks."""
    nodes = sorted(set(leaders))
    mates = [r for r, leader in enumerate(leaders) if leader == leaders[rank]]
    return Team(mates[0], nodes.index(leaders[rank]), len(nodes), mates.index(rank), len(mates))


# ---- whether it pays


@dataclass(frozen=True)
class Rates:
    """In bytes a second, of one stream: reading from the store, not cached on this node as far as the kernel lets go
    of it; checksum and writing in the place; reading there."""

    store: float
    write: float
    read: float


@dataclass(frozen=True)
class Estimate:
    """What a node stages: `shards` of `of` shards, `bytes` of `of_bytes`. epoch_bytes: what an epoch reads of those.
    why: it stages nothing."""

    host: str
    place: str
    shards: int
    of: int
    bytes: int
    of_bytes: int
    epoch_bytes: float
    rates: Rates | None
    why: str = ""

    @property
    def copy_s(self) -> float:
        """bytes / store + bytes / write: a block is read, then written."""
        assert self.rates
        return self.bytes / self.rates.store + self.bytes / self.rates.write

    @property
    def gain_s(self) -> float:
        """What an epoch saves: epoch_bytes / store - epoch_bytes / read. Below 0 where the store is faster."""
        assert self.rates
        return self.epoch_bytes / self.rates.store - self.epoch_bytes / self.rates.read

    @property
    def break_even_epochs(self) -> float:
        """copy_s / gain_s: so many epochs from the copy make up for having read all of it once more; infinite without
        a gain.

        This is for epochs that wait for data all the time. One that hides its reading behind the network's arithmetic
        has less to gain. Patches read in random order come slower from most stores than the sample, which is read from
        front to end, and then it has more.
        """
        return self.copy_s / self.gain_s if self.gain_s > 0 else inf

    def __str__(self) -> str:
        if not self.rates:
            return f"stage: {self.host}: nothing is staged to {self.place}: {self.why}; all is read from the store"
        pays = (
            f"paid back after {self.break_even_epochs:.1f} epochs that wait for data"
            if self.gain_s > 0
            else "no gain is to be expected; it is done because feed.stage asks for it, feed.stage = none saves it"
        )
        rest = "" if self.shards == self.of else ", as more do not fit; the rest is read from the store"
        return (
            f"stage: {self.host}: {self.shards} of {self.of} shards, {_size(self.bytes)} of {_size(self.of_bytes)} go "
            f"to {self.place}{rest}; the store reads {self.rates.store / 1e6:.0f} MB/s, {self.place} writes "
            f"{self.rates.write / 1e6:.0f} and reads {self.rates.read / 1e6:.0f}; about {self.copy_s / 60:.1f} minutes "
            f"beside the first epoch, {pays}"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _announcement(nodes: list[Estimate]) -> list[str]:
    """The first node in full, as the others are mostly alike, each other that cannot hold all, and each host whose
    ranks do not share one copy."""
    first, *others = nodes
    copies = Counter(e.host for e in nodes)
    return [
        str(first),
        *(str(e) for e in others if e.shards < e.of),
        *(
            f"stage: {host}: its ranks cannot open each other's files through /proc, as in containers that are closed "
            f"to each other; it holds {n} copies instead of one"
            for host, n in copies.items()
            if n > 1
        ),
    ]


def _wanted(store: Store, numbers: np.ndarray) -> dict[int, float]:
    """Shard -> the fraction of its patches that are among `numbers`; only shards with one."""
    counts = np.bincount(store.shard_of[numbers], minlength=len(store.paths)).tolist()
    return {i: n / s.patches for i, (n, s) in enumerate(zip(counts, store.info.shards, strict=True)) if n}


def estimate(store: Store, order: list[int], wanted: dict[int, float], place: Path, host: str) -> Estimate:
    """Measure, and see how many of the shards `order` fit, from its first on. wanted: of `_wanted`; more than `order`
    where a process may not hold so many files."""
    sizes = {shard: _bytes(store.paths[shard]) for shard in wanted}
    total, room = sum(sizes.values()), room_bytes(place)
    fits = int(np.searchsorted(np.cumsum([sizes[s] for s in order]), room, side="right"))
    none = Estimate(host, str(place), 0, len(wanted), 0, total, 0.0, None)
    if not fits:
        largest, left = _size(max(sizes.values())), _size(max(room, 0))
        return replace(none, why=f"a shard takes {largest}, and {left} in {len(order)} open files may be used")
    try:
        rates = measure(store.paths[order[fits - 1]], place)  # the one that is copied last
    except StoreError:
        raise
    except OSError as e:
        return replace(none, why=str(e.strerror))
    held = order[:fits]
    read = sum(sizes[s] * wanted[s] for s in held)
    return Estimate(host, str(place), fits, len(wanted), sum(sizes[s] for s in held), total, read, rates)


def measure(source: Path, place: Path) -> Rates:
    """By a sample of up to 32 MiB, or a second's reading, of the file. OSError when the place is full."""
    sample, store_s = _sample(source)
    with TemporaryFile(dir=place) as f:
        began = time.perf_counter()
        hashlib.sha256(sample)
        f.write(sample)
        f.flush()
        os.fsync(f.fileno())
        write_s = time.perf_counter() - began
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        f.seek(0)
        began = time.perf_counter()
        f.readinto(bytearray(len(sample)))
        read_s = time.perf_counter() - began
    return Rates(len(sample) / store_s, len(sample) / write_s, len(sample) / read_s)


def _sample(source: Path) -> tuple[bytearray, float]:
    """The file's first bytes, and the seconds that it took to read them."""
    sample, enough = bytearray(), False
    with _reading(source), open(source, "rb", buffering=0) as f:
        os.posix_fadvise(f.fileno(), 0, SAMPLE_BYTES, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while not enough and (block := f.read(1 << 20)):
            sample += block
            enough = len(sample) >= SAMPLE_BYTES or time.perf_counter() - began >= SAMPLE_S
        seconds = time.perf_counter() - began
    if not sample:
        raise StoreError(f"{source}: is empty; `jeoparda store verify` lists what is damaged")
    return sample, seconds
