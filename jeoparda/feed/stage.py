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
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal

import numpy as np

from jeoparda.comm import Comm
from jeoparda.errors import RecipeError, StoreError
from jeoparda.store import Store

Kind = Literal["none", "shm", "local"]

BLOCK_BYTES = 4 << 20
SAMPLE_BYTES = 32 << 20
SAMPLE_S = 1.0  # a slow store is not read for longer than this
SPARE = 0.05  # of the place: left to others
SPARE_MEMORY = 0.2  # of the memory, or of the job's share of it: left to training, which has yet to begin
SPARE_FILES = 512  # descriptors left to DALI, Horovod and all else in the process
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
        self._files: list[IO[bytes]] = []  # this rank's copies
        self._mates: list[int] = []  # descriptors of others' copies
        self._paths: dict[int, Path] = {}
        self._refused: dict[int, StoreError] = {}
        self._error: BaseException | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed-stage", daemon=True)
        if kind == "none":
            return
        self._place, team, self._table = _meet(kind, folder, len(store.paths), comm)
        wanted = _wanted(store, numbers)
        self._rank = comm.rank
        order = team.order(sorted(wanted))[: _handles(len(store.paths))]
        found = estimate(store, order, wanted, self._place, self._host) if team.mate == 0 else None
        estimates = comm.gather(found, "stage.estimates")
        mine = estimates[team.leader]
        assert mine is not None
        self._mine = order[: mine.shards][team.mate :: team.mates]
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
        """End the copying, and let go of the copies. `path` then gives the store's own files."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._table[self._table[:, 0] == os.getpid()] = 0
            self._table = np.zeros_like(self._table)
            self._paths = {}
            for f in self._files:
                f.close()
            for fd in self._mates:
                os.close(fd)
            self._files, self._mates = [], []

    def _find(self, shard: int) -> Path:
        if self._error:
            raise self._error
        holder = Handle(*self._table[shard].tolist())
        if holder.pid == _REFUSED:
            raise self._refused.get(shard) or StoreError(
                f"{self._store.paths[shard]}: is damaged, changed or gone, as another rank on {self._host} found when "
                f"it staged it; `jeoparda store repair {self._store.folder}` makes it again from the archive"
            )
        if holder.pid == 0:
            return self._store.paths[shard]
        with self._lock:
            if shard not in self._paths:
                fd = None if self._stop.is_set() else holder.open()
                if fd is None:  # its row is not wholly visible yet, or its rank has ended; the store has it too
                    return self._store.paths[shard]
                self._mates.append(fd)
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
        if self._stop.is_set():
            return
        if why or self._rank == 0:
            minutes = (time.monotonic() - began) / 60
            self._say(
                f"stage: {self._host}, rank {self._rank}: {why or 'done'}; {len(self._files)} of its "
                f"{len(self._mine)} shards staged in {minutes:.1f} minutes"
                + ("; the others are read from the store" if why else "")
            )

    def _copy_all(self) -> str:
        """Copy this rank's part. Why it ended early, "" if it did not."""
        for shard in self._mine:
            try:
                # others may have taken room meanwhile; what this node's ranks write just now comes out of the margin
                if room_bytes(self._place) < _bytes(self._store.paths[shard]):
                    return f"{self._place} has no more room, beside what is left to others"
                self._copy(shard)
            except StoreError as e:
                self._refuse(shard, e)
            except OSError as e:
                return f"{self._place}: {e.strerror}"
            if self._stop.is_set():
                break
        return ""

    def _copy(self, shard: int) -> None:
        with ExitStack() as stack:
            target = stack.enter_context(TemporaryFile(dir=self._place, buffering=0))
            if not self._fill(target, shard):
                return
            stack.pop_all()
        self._files.append(target)
        holder = Handle.of(target.fileno())
        self._paths[shard] = holder.path
        self._table[shard, 1:] = holder.fd, holder.dev, holder.ino
        self._table[shard, 0] = holder.pid  # last: the row counts from here on

    def _fill(self, target: IO[bytes], shard: int) -> bool:
        """False when told to stop. StoreError when the shard is not as store.json says."""
        source, expected = self._store.paths[shard], self._store.info.shards[shard].sha256
        digest = hashlib.sha256()
        for block in _blocks(source):
            if self._stop.is_set():
                return False
            digest.update(block)
            _write(target, block)
        if digest.hexdigest() != expected:
            raise StoreError(
                f"{source}: its SHA-256 is {digest.hexdigest()[:16]}…, store.json says {expected[:16]}…: it is damaged "
                f"or was changed; `jeoparda store repair {self._store.folder}` makes it again from the archive"
            )
        return True

    def _refuse(self, shard: int, error: StoreError) -> None:
        self._refused[shard] = error
        self._table[shard, 0] = _REFUSED
        self._say(f"stage: {self._host}, rank {self._rank}: {error}")


def _blocks(path: Path) -> Iterator[memoryview]:
    """A file's content; a block is valid until the next. StoreError when it cannot be read."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    try:
        with open(path, "rb", buffering=0) as f:
            while got := f.readinto(buffer):
                yield buffer[:got]
    except OSError as e:
        raise StoreError(f"{path}: cannot be read: {e.strerror}; is the store still there?") from e


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise StoreError(f"{path}: cannot be read: {e.strerror}; is the store still there?") from e


def _write(f: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[f.write(data) :]


# ---- the ranks of a node


@dataclass(frozen=True)
class Handle:
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
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        found = Handle.of(fd)
        if (found.dev, found.ino) == (self.dev, self.ino):
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


@dataclass(frozen=True)
class _Rank:
    host: str
    table: Handle
    problem: str


def _meet(kind: Kind, folder: Path | None, shards: int, comm: Comm) -> tuple[Path, Team, np.ndarray]:
    """The place to stage to, the ranks that share it with this one, and their table, (shard, 4) int64 in memory that
    they share: rows as a Handle, 0 where nothing is staged. RecipeError on all ranks when one has no place."""
    host, place, problem = socket.gethostname(), Path(), ""
    try:
        place = place_of(kind, folder)
    except RecipeError as e:
        problem = f"{e} (on {host})"
    # memory without a place: it needs no room in /dev/shm, which may be full
    with os.fdopen(os.memfd_create("jeoparda-stage"), "r+b", buffering=0) as own:
        _write(own, memoryview(bytes(shards * 4 * 8)))
        ranks: list[_Rank] = comm.gather(_Rank(host, Handle.of(own.fileno()), problem), "stage.ranks")
        if problems := sorted({r.problem for r in ranks if r.problem}):
            raise RecipeError("\n".join(problems))
        leader, fd = _leader(ranks, host)
        leaders = comm.gather(leader, "stage.nodes")  # also: nobody lets go of a table before all have looked at it
    with os.fdopen(fd, "r+b") as f:
        table = np.memmap(f, np.int64, "r+", shape=(shards, 4))
    return place, _team(leaders, comm.rank), table


def _leader(ranks: list[_Rank], host: str) -> tuple[int, int]:
    """The first rank of this host whose table can be opened, and a descriptor of that."""
    for number, r in enumerate(ranks):
        if r.host == host and (fd := r.table.open()) is not None:
            return number, fd
    raise RecipeError("feed.stage: a process cannot open its own files through /proc here; take feed.stage = none")


def _team(leaders: list[int], rank: int) -> Team:
    """leaders: of each rank, in the order of ranks."""
    nodes = sorted(set(leaders))
    mates = [r for r, leader in enumerate(leaders) if leader == leaders[rank]]
    return Team(leaders[rank], nodes.index(leaders[rank]), len(nodes), mates.index(rank), len(mates))


# ---- where to, and how much


def place_of(kind: Kind, folder: Path | None) -> Path:
    """The folder to stage to. RecipeError, which names the key, where there is none."""
    if kind == "shm":
        if folder:
            raise RecipeError(f"feed.stage_folder = {folder}: is for feed.stage = local; feed.stage = shm is /dev/shm")
        place, instead = Path("/dev/shm"), "take feed.stage = local, or none"
    else:
        given = folder or os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR")
        if not given:
            raise RecipeError(
                "feed.stage = local: neither SLURM_TMPDIR nor TMPDIR is set; give a folder on the node's own disk in "
                "feed.stage_folder"
            )
        place, instead = Path(given), "give another in feed.stage_folder"
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        what = "cannot be written to" if place.is_dir() else "is not a folder"
        raise RecipeError(f"feed.stage = {kind}: {place} {what}; {instead}")
    return place


def room_bytes(place: Path, proc: Path = Path("/proc")) -> int:
    """What may still be written there, with a margin left to others; below 0 where that is used up already.

    A place in memory, /dev/shm or not, also counts as memory: of the machine and of each control group that this
    process is in.
    """
    s = os.statvfs(place)
    rooms = [s.f_bavail * s.f_frsize - SPARE * s.f_blocks * s.f_frsize]
    if _in_memory(place, proc):
        rooms += [limit * (1 - SPARE_MEMORY) - used for limit, used in [_machine(proc), *_groups(proc)]]
    return int(min(rooms))


def _mounts(proc: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """(device, root, mount point, type, options) of each mount; see proc(5), mountinfo."""
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        mount, _, what = line.partition(" - ")
        device, root, point = mount.split()[2:5]
        kind, options = what.split()[0], what.split()[-1]
        yield device, root, point, kind, options


def _in_memory(place: Path, proc: Path) -> bool:
    dev = place.stat().st_dev
    device = f"{os.major(dev)}:{os.minor(dev)}"
    return any(m[0] == device and m[3] in ("tmpfs", "ramfs") for m in _mounts(proc))


def _machine(proc: Path) -> tuple[int, int]:
    """(bytes of memory, bytes of it that cannot be had)."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines}
    return kib["MemTotal:"] << 10, (kib["MemTotal:"] - kib["MemAvailable:"]) << 10


def _groups(proc: Path) -> Iterator[tuple[int, int]]:
    """(limit, use that cannot be reclaimed), in bytes, of each control group with a memory limit that this process is
    in, of version 1 or 2."""
    lines = (proc / "self" / "cgroup").read_text().splitlines()
    within = {name: path for _, names, path in (x.split(":", 2) for x in lines) for name in names.split(",")}
    for _, root, point, kind, options in _mounts(proc):
        if kind == "cgroup2" and "" in within:
            files, path = ("memory.max", "memory.current", ""), within[""]
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in within:
            files, path = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), within["memory"]
        else:
            continue
        below = os.path.relpath(path, root) if Path(path).is_relative_to(root) else "."  # a container sees its own
        group = Path(point) / below
        for folder in (group, *group.parents[: len(Path(below).parts)]):
            if (folder / files[0]).exists() and (limit := (folder / files[0]).read_text().strip()) != "max":
                yield int(limit), _used(folder, files[1], files[2])


def _used(group: Path, file: str, prefix: str) -> int:
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = sum(int(stat[f"{prefix}{name}"]) for name in ("active_file", "inactive_file"))  # without shared memory
    return int((group / file).read_text()) - cached


def _handles(shards: int) -> int:
    """How many shards may be staged: each takes a descriptor here, beside the reader's. Raises the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * shards + SPARE_FILES
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(0, limit - shards - SPARE_FILES)


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
        held = f"{self.shards} of {self.of} shards, {_size(self.bytes)} of {_size(self.of_bytes)}"
        if not self.rates:
            return f"stage: {self.host}: nothing is staged to {self.place}: {self.why}; all is read from the store"
        speed = (
            f"the store reads {self.rates.store / 1e6:.0f} MB/s, {self.place} writes {self.rates.write / 1e6:.0f} and "
            f"reads {self.rates.read / 1e6:.0f}"
        )
        rest = "" if self.shards == self.of else ", as more do not fit; the rest is read from the store"
        pays = (
            f"paid back after {self.break_even_epochs:.1f} epochs that wait for data"
            if self.gain_s > 0
            else "no gain is to be expected; it is done because feed.stage asks for it, feed.stage = none saves it"
        )
        return (
            f"stage: {self.host}: {held} go to {self.place}{rest}; {speed}; about {self.copy_s / 60:.1f} minutes "
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
    sample, read_s = _read_sample(source)
    with TemporaryFile(dir=place, buffering=0) as f:
        began = time.perf_counter()
        hashlib.sha256(sample)
        _write(f, memoryview(sample))
        os.fsync(f.fileno())
        write_s = time.perf_counter() - began
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        f.seek(0)
        began = time.perf_counter()
        f.readinto(bytearray(len(sample)))  # type: ignore[attr-defined]
        back_s = time.perf_counter() - began
    return Rates(len(sample) / read_s, len(sample) / write_s, len(sample) / back_s)


def _read_sample(source: Path) -> tuple[bytearray, float]:
    sample = bytearray()
    try:
        with open(source, "rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, SAMPLE_BYTES, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while len(sample) < SAMPLE_BYTES and (not sample or time.perf_counter() - began < SAMPLE_S):
                block = f.read(1 << 20)
                if not block:
                    break
                sample += block
            read_s = time.perf_counter() - began
    except OSError as e:
        raise StoreError(f"{source}: cannot be read: {e.strerror}; is the store still there?") from e
    if not sample:
        raise StoreError(f"{source}: is empty; `jeoparda store verify` lists what is damaged")
    return sample, read_s
