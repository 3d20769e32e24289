"""Reading patches ahead: a few threads, `preadv` at known offsets, into a ring of reused buffers.

No HDF5 call happens here: the store has said where each record begins.
"""

import os
import queue
import resource
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jeoparda.errors import StoreError
from jeoparda.store import Store


@dataclass
class Slot:
    """A filled buffer. numbers: (b,) int64 patch numbers; records: (b,) of the store's compound type, valid until
    the slot is given back with `Ring.release`."""

    numbers: np.ndarray
    records: np.ndarray
    buffer: np.ndarray


class Ring:
    """Batches of records, read ahead into `depth` buffers of up to `largest` patches each."""

    def __init__(self, store: Store, largest: int, depth: int, threads: int) -> None:
        self._store = store
        self._threads = threads
        self._free: queue.Queue[np.ndarray | None] = queue.Queue()
        for _ in range(depth):
            self._free.put(np.empty((largest, store.dtype.itemsize), np.uint8))

    def release(self, slot: Slot) -> None:
        """Say that nothing looks at this slot's records any more."""
        self._free.put(slot.buffer)

    def read(self, batches: Iterable[np.ndarray]) -> Iterator[Slot]:
        """A slot for each array of patch numbers, in order. Ends its threads when closed or exhausted."""
        full: queue.Queue[Slot | BaseException | None] = queue.Queue()
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(batches, full, stop), name="feed-reader", daemon=True)
        thread.start()
        try:
            while (slot := full.get()) is not None:
                if isinstance(slot, BaseException):
                    raise slot
                yield slot
        finally:
            stop.set()
            self._free.put(None)  # wakes the reader if it waits for a buffer
            thread.join()

    def _fill(self, batches: Iterable[np.ndarray], full: queue.Queue, stop: threading.Event) -> None:
        files: list[int] = []
        try:
            files = _open(self._store)
            with ThreadPoolExecutor(self._threads) as pool:
                for numbers in batches:
                    buffer = self._free.get()
                    if buffer is None or stop.is_set():
                        return
                    self._read_batch(pool, files, numbers, buffer)
                    full.put(Slot(numbers, buffer[: len(numbers)].reshape(-1).view(self._store.dtype), buffer))
            full.put(None)
        except BaseException as e:
            full.put(e)
        finally:
            for f in files:
                os.close(f)

    def _read_batch(self, pool: ThreadPoolExecutor, files: list[int], numbers: np.ndarray, buffer: np.ndarray) -> None:
        shards = self._store.shard_of[numbers].tolist()
        offsets = self._store.offset_of[numbers].tolist()

        def some(part: range) -> None:
            for i in part:
                got = os.preadv(files[shards[i]], [buffer[i]], offsets[i])
                if got != buffer.shape[1]:
                    raise StoreError(
                        f"{self._store.paths[shards[i]]}: patch {numbers[i]} ends after {got} of {buffer.shape[1]} "
                        "bytes; the shard is truncated: `jeoparda store verify` lists what is damaged"
                    )

        # in file order within the batch: a cold parallel filesystem likes it, a warm cache does not mind
        order = np.lexsort((offsets, shards)).tolist()
        list(pool.map(some, (order[k :: self._threads] for k in range(self._threads))))


def _open(store: Store) -> list[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(store.paths) + 256
    if soft < wanted:  # an archive of 590,326 patches has more shards than the usual limit of open files
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    files = []
    try:
        for path in store.paths:
            files.append(os.open(path, os.O_RDONLY))
    except OSError as e:
        for f in files:
            os.close(f)
        raise StoreError(f"{path}: cannot be opened: {e.strerror}") from e
    return files
