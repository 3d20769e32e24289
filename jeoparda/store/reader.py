"""Opening a store: HDF5 is asked once where things are; patches are then plain bytes at known offsets."""

import os
from pathlib import Path

import h5py
import numpy as np

from jeoparda.errors import StoreError
from jeoparda.files import sha256
from jeoparda.store.format import Contents, ShardInfo, StoreInfo
from jeoparda.store.statistics import Sums


def read_records(path: Path, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
    """(count,) records that begin at a byte of a shard, without HDF5. Fewer where the file ends early."""
    with open(path, "rb") as f:
        f.seek(offset)
        raw = f.read(count * dtype.itemsize)
    return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


def shard_sums(folder: Path, contents: Contents, shard: ShardInfo) -> Sums:
    """The sums behind the statistics, over the patches of one shard."""
    sums, dtype = Sums(contents), contents.layout.dtype()
    path = folder / "shards" / shard.file
    try:
        with h5py.File(path, "r") as f:
            splits, labels = f["table"]["split"], f["labels"][:]
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise StoreError(f"{path}: cannot be read ({e}); `jeoparda store repair {folder}` mends it") from e
    for i in range(shard.patches):
        record = read_records(path, shard.offset + i * dtype.itemsize, 1, dtype)[0]
        sums.add(record, labels[i], splits[i].decode())
    return sums


class Store:
    """A complete store, read-only.

    info: StoreInfo. digest: SHA-256 of store.json, which holds the shards' checksums. labels: (patch, class) uint8.
    shard_of: (patch,) int32 and offset_of: (patch,) int64, the file number and byte where each patch's record
    begins. Patches are numbered over all shards in order.
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
        shard_of, offset_of = [], []
        for number, (path, shard) in enumerate(zip(self.paths, self.info.shards, strict=True)):
            first, parts = self._look(path, shard)
            for column, part in zip((labels, tables, checksums), parts, strict=True):
                column.append(part)
            shard_of.append(np.full(shard.patches, number, np.int32))
            offset_of.append(first + np.arange(shard.patches, dtype=np.int64) * self.info.record_bytes)
        if not self.info.patches:
            raise StoreError(f"{self.folder}: holds no patch; {len(self.info.rejected)} were rejected, see store.json")
        self.labels = np.concatenate(labels)
        self.checksums = np.concatenate(checksums)
        self.shard_of = np.concatenate(shard_of)
        self.offset_of = np.concatenate(offset_of)
        self._tables = tables
        self._splits: np.ndarray | None = None

    def _look(self, path: Path, shard: ShardInfo) -> tuple[int, tuple[np.ndarray, ...]]:
        """The byte where a shard's records begin, and its labels, table and checksums."""
        try:
            with h5py.File(path, "r") as f:
                data = f["patches"]
                found = len(data), data.dtype.itemsize
                first = data.id.get_offset() or 0  # None only for a shard without patches
                parts = tuple(f[name][:] for name in ("labels", "table", "checksums"))
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as e:  # h5py has no error of its own
            raise StoreError(
                f"{path}: cannot be read ({e}); `jeoparda store repair {self.folder}` makes it again from the archive"
            ) from e
        if found != (shard.patches, self.info.record_bytes):
            raise StoreError(
                f"{path}: {found[0]} patches of {found[1]} bytes, store.json says "
                f"{shard.patches} of {self.info.record_bytes}; `jeoparda store repair {self.folder}` makes it again"
            )
        return first, parts

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
        """One patch as a structured scalar: `store.patch(i)["10m"]` is (band, row, col) uint16."""
        path = self.paths[self.shard_of[number]]
        return read_records(path, int(self.offset_of[number]), 1, self.dtype)[0]

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
