"""A store's shards as they are read: by descriptors, or from maps of copies in memory.

Only copies in memory are mapped: they have no name, so nobody can cut them short, and no disk that may fail. What
cannot be read of a mapped file ends the process by SIGBUS instead of with a message; all other files are read by system
calls, which tell.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from jeoparda.feed.place import allow_files, in_memory

try:
    import jeoparda.feed._native as native
except ImportError:  # installed without a compiler: all is read by system calls
    native = None  # type: ignore[assignment]

SLICE_BYTES = 64 << 20  # that are put into huge pages at a time


class Map:
    """A file in memory, `size` bytes at `address` as long as this is referred to; processes that map one file share its
    pages. OSError where the system does not allow it."""

    def __init__(self, fd: int) -> None:
        self.size = os.fstat(fd).st_size
        self._held, self.address = native.map(fd, self.size)

    def collapse(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Put the file into huge pages, from which copying is faster by a seventh. False where the kernel, before Linux
        6.1, or memory in pieces does not allow it, at least not for all of it, or when told to stop meanwhile."""
        parts = range(0, self.size // native.HUGE_PAGE * native.HUGE_PAGE, SLICE_BYTES)
        return bool(parts) and all(
            not stop() and native.collapse(self.address + at, min(SLICE_BYTES, self.size - at)) for at in parts
        )


class Files:
    """Shards, each opened when it is first read, or its copy once there is one. A thread may be reading from any of
    them, so descriptors stay open until `close`, and maps, which the next epoch wants again, as long as this does."""

    def __init__(self, paths: Sequence[Path], ends: np.ndarray) -> None:
        """ends: (shard,) int64, where each one's last record ends; a copy that is shorter is not mapped."""
        self._paths, self._ends = paths, ends
        self.copies: dict[int, Path] = {}
        self._in_memory = np.zeros(len(paths), bool)
        self._fds = np.full(len(paths), -1, np.int32)
        self._addresses = np.zeros(len(paths), np.uint64)  # of maps; 0: not mapped
        self._maps: dict[tuple[int, int], Map] = {}  # by device and inode
        self._spare: list[int] = []  # descriptors of shards that are read from a copy since
        self._lock = threading.Lock()
        allow_files(len(paths))

    def of(self, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors, (b,) int32, and addresses of maps, (b,) uint64, 0 where there is none. OSError where a shard
        cannot be opened."""
        if self._fds.take(shards).min(initial=0) < 0:
            with self._lock:  # another thread may have opened some of them meanwhile
                for shard in np.unique(shards[self._fds.take(shards) < 0]).tolist():
                    self._open(shard)
        return self._fds.take(shards), self._addresses.take(shards)

    def _open(self, shard: int) -> None:
        fd = os.open(self.copies.get(shard, self._paths[shard]), os.O_RDONLY)
        if self._in_memory[shard] and native:
            about = os.fstat(fd)
            key = about.st_dev, about.st_ino
            if key not in self._maps and about.st_size >= self._ends[shard]:
                with suppress(OSError):  # of memory that may be addressed, or of maps, there is no more: it is read
                    self._maps[key] = Map(fd)
            if key in self._maps:
                self._addresses[shard] = self._maps[key].address
        self._fds[shard] = fd

    def use(self, shard: int, copy: Path) -> None:
        """Read a shard from its copy from now on. OSError where it is gone."""
        here = in_memory(copy)
        with self._lock:
            self._spare.append(int(self._fds[shard]))
            self._fds[shard], self._in_memory[shard] = -1, here
            self.copies[shard] = copy

    def in_memory(self, shards: np.ndarray) -> bool:
        """All of these are read from copies in memory."""
        return bool(self._in_memory[shards].all())

    def close(self) -> None:
        for fd in (*self._fds.tolist(), *self._spare):
            if fd >= 0:
                os.close(fd)
        self._fds[:], self._addresses[:], self._in_memory[:] = -1, 0, False
        self._spare, self.copies = [], {}
