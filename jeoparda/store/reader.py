"""Opening a store: HDF5 is asked once where things are; patches are then plain bytes at known offsets."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np

from jeoparda.errors import StoreError
from jeoparda.files import sha256
from jeoparda.store.codec import decoded, frames
from jeoparda.store.format import H5_ERRORS, Contents, ShardInfo, StoreInfo
from jeoparda.store.statistics import Sums


def places(patches: h5py.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 each, of a shard's records: the byte in its file where each begins, and its bytes there. ValueError
    where the dataset is not laid out as `format` says."""
    n = len(patches)
    if patches.chunks is None:
        first, size = patches.id.get_offset() or 0, patches.dtype.itemsize  # None only for a shard without patches
        return first + np.arange(n, dtype=np.int64) * size, np.full(n, size, np.int64)
    chunks: list[tuple[int, int, int]] = []
    patches.id.chunk_iter(lambda c: chunks.append((c.chunk_offset[0], c.byte_offset, c.size)))
    number, offset, size = np.array(sorted(chunks), np.int64).reshape(-1, 3).T
    if not np.array_equal(number, np.arange(n)):
        raise ValueError(f"{len(number)} chunks of {n} patches")
    return offset, size


def begin(patches: h5py.Dataset) -> int:
    """The byte where a shard's first record begins, 0 without any."""
    return next(iter(places(patches)[0].tolist()), 0)


def stored(path: Path, patches: h5py.Dataset) -> Iterator[np.ndarray | None]:
    """The records of a shard that HDF5 has open; None for one that cannot be read."""
    where = zip(*(column.tolist() for column in places(patches)), strict=True)
    return _records(path, patches.dtype, patches.chunks is not None, where)


def _records(
    path: Path, dtype: np.dtype, compressed: bool, where: Iterable[tuple[int, int]]
) -> Iterator[np.ndarray | None]:
    """The records at these (byte, bytes) of a shard, without HDF5; None for one that is cut short or damaged."""
    with open(path, "rb") as f:
        for at, size in where:
            f.seek(at)
            try:
                yield record_of(f.read(size), dtype, compressed)
            except ValueError:
                yield None


def record_of(raw: bytes, dtype: np.dtype, compressed: bool) -> np.ndarray:
    """A record from its bytes in the file. ValueError where it is cut short or cannot be decoded."""
    whole = decoded(raw, dtype.itemsize) if compressed else raw
    if len(whole) < dtype.itemsize:
        raise ValueError(f"ends after {len(whole)} of {dtype.itemsize} bytes")
    record: np.ndarray = np.frombuffer(whole, dtype)[0]
    return record


def salvaged(path: Path, shard: ShardInfo, dtype: np.dtype, compressed: bool) -> list[np.ndarray | None]:
    """The records of a shard that may be damaged, None for those that cannot be had. OSError where the disk refuses."""
    found = list(_records(path, dtype, compressed, _places_in_damaged(path, shard, dtype, compressed)))
    return found + [None] * (shard.patches - len(found))


def _places_in_damaged(path: Path, shard: ShardInfo, dtype: np.dtype, compressed: bool) -> list[tuple[int, int]]:
    """(byte, bytes) of each record, as far as can be told."""
    if not compressed:
        return [(shard.offset + i * dtype.itemsize, dtype.itemsize) for i in range(shard.patches)]
    try:
        with h5py.File(path, "r") as f:  # its chunk index has checksums of its own
            offsets, sizes = places(f["patches"])
        if len(offsets) == shard.patches:
            return list(zip(offsets.tolist(), sizes.tolist(), strict=True))
    except H5_ERRORS:
        pass  # the frames tell where they are, in the same order
    return frames(path.read_bytes(), shard.offset, shard.patches, dtype.itemsize)


def shard_sums(folder: Path, contents: Contents, shard: ShardInfo) -> Sums:
    """The sums behind the statistics, over the patches of one shard."""
    sums = Sums(contents)
    path = folder / "shards" / shard.file
    try:
        with h5py.File(path, "r") as f:
            splits, labels, there = f["table"]["split"], f["labels"][:], stored(path, f["patches"])
    except H5_ERRORS as e:
        raise StoreError(f"{path}: cannot be read ({e}); `jeoparda store repair {folder}` mends it") from e
    for i, record in enumerate(there):
        if record is None:
            raise StoreError(f"{path}: its record {i} cannot be read; `jeoparda store repair {folder}` mends it")
        sums.add(record, labels[i], splits[i].decode())
    return sums


class Store:
    """A complete store, read-only.

    info: StoreInfo. digest: SHA-256 of store.json, which holds the shards' checksums. labels: (patch, class) uint8.
    shard_of: (patch,) int32 and offset_of: (patch,) int64, the file number and byte where each patch's record
    begins; size_of: (patch,) int64, its bytes there, fewer than `info.record_bytes` where the store is compressed.
    checksums: (patch,) uint32, CRC-32 of each record, decoded. Patches are numbered over all shards in order.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.info = StoreInfo.read(self.folder)
        self.digest = sha256(self.folder / "store.json")
        self.dtype = self.info.layout.dtype()
        self.paths = [self.folder / "shards" / s.file for s in self.info.shards]
        labels: list[np.ndarray] = []
        tables: list[np.ndarray] = []
        checksums: list[np.ndarray] = []
        offset_of: list[np.ndarray] = []
        size_of: list[np.ndarray] = []
        for path, shard in zip(self.paths, self.info.shards, strict=True):
            parts = self._look(path, shard)
            for column, part in zip((offset_of, size_of, labels, tables, checksums), parts, strict=True):
                column.append(part)
        if not self.info.patches:
            raise StoreError(f"{self.folder}: holds no patch; {len(self.info.rejected)} were rejected, see store.json")
        self.labels = np.concatenate(labels)
        self.checksums = np.concatenate(checksums)
        counts = [shard.patches for shard in self.info.shards]
        self.shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.offset_of = np.concatenate(offset_of)
        self.size_of = np.concatenate(size_of)
        self._tables = tables
        self._splits: np.ndarray | None = None

    def _look(self, path: Path, shard: ShardInfo) -> tuple[np.ndarray, ...]:
        """Where a shard's records begin and their bytes; its labels, table and checksums."""
        try:
            with h5py.File(path, "r") as f:
                data = f["patches"]
                found = len(data), data.dtype.itemsize
                parts = *places(data), *(f[name][:] for name in ("labels", "table", "checksums"))
        except H5_ERRORS as e:
            raise StoreError(
                f"{path}: cannot be read ({e}); `jeoparda store repair {self.folder}` makes it again from the archive"
            ) from e
        if found != (shard.patches, self.info.record_bytes):
            raise StoreError(
                f"{path}: {found[0]} patches of {found[1]} bytes, store.json says "
                f"{shard.patches} of {self.info.record_bytes}; `jeoparda store repair {self.folder}` makes it again"
            )
        return parts

    def __len__(self) -> int:
        return self.info.patches

    def column(self, name: str) -> np.ndarray:
        """A column of the patch table over all patches; text as str."""
        column = np.concatenate([t[name] for t in self._tables])
        return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column

    def split(self, name: str) -> np.ndarray:
        """(n,) int64: the numbers of the patches of a split ("train", "val", "test", or "all")."""
        if name == "all":
            return np.arange(len(self), dtype=np.int64)
        if self._splits is None:
            self._splits = self.column("split")
        found = np.flatnonzero(self._splits == name)
        if not len(found):
            have = ", ".join(f"{k} {v}" for k, v in self.info.splits.items())
            raise StoreError(f"{self.folder}: split {name!r} is empty; patches by split: {have}")
        return found

    def patch(self, number: int) -> np.ndarray:
        """One patch as a structured scalar: `store.patch(i)["10m"]` is (band, row, col) uint16. StoreError where its
        record is cut short or cannot be decoded."""
        path = self.paths[self.shard_of[number]]
        with open(path, "rb") as f:
            f.seek(self.offset_of[number])
            raw = f.read(self.size_of[number])
        try:
            return record_of(raw, self.dtype, self.info.compression != "none")
        except ValueError as e:
            raise StoreError(
                f"{path}: patch {number} {e}; `jeoparda store repair {self.folder}` mends it from the archive"
            ) from e

    def dates(self, number: int) -> list[str]:
        """The dates of a series, or of a pair (low, high); "" for a gap. Empty for a patch of one date."""
        shard = self.shard_of[number]
        with h5py.File(self.paths[shard], "r") as f:
            if "dates" not in f:
                return []
            first = int(np.searchsorted(self.shard_of, shard))
            return [d.decode() for d in f["dates"][number - first]]

    def band(self, number: int, band: str) -> np.ndarray:
        """One band of one patch at its native resolution, (row, col); of a series (date, row, col)."""
        group = next((g for g in self.info.groups if band in g.bands), None)
        if group is None:
            raise StoreError(f"{self.folder}: no band {band!r}; there are {', '.join(self.info.bands)}")
        return self.patch(number)[group.name][..., group.bands.index(band), :, :]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(band,) float32 mean and standard deviation over the training split, in the store's band order."""
        stats = [self.info.statistics[b] for b in self.info.bands]
        if not stats[0].pixels:
            raise StoreError(f"{self.folder}: its training split is empty, so there are no band statistics")
        std = [s.std if s.std > 0 else 1.0 for s in stats]  # a constant band becomes zeros, not infinities
        return np.array([s.mean for s in stats], np.float32), np.array(std, np.float32)
