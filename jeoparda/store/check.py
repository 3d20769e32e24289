"""Finding damage: every byte of a shard against its checksum, and, where that fails, which patches it hit."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from jeoparda.files import sha256
from jeoparda.store.codec import crc32
from jeoparda.store.format import H5_ERRORS, Compression, Layout, ShardInfo
from jeoparda.store.reader import salvaged


@dataclass(frozen=True)
class Damage:
    """A shard that is not as it was written. `patches`: the places of the damaged records in it, () where none of
    them is or it cannot be told."""

    number: int
    path: str
    reason: str
    patches: tuple[int, ...]

    def __str__(self) -> str:
        where = f": patches {', '.join(map(str, self.patches))} of it" if self.patches else ""
        return f"{self.path}: {self.reason}{where}"


def damaged(
    folder: Path, layout: Layout, shard: ShardInfo, number: int, compression: Compression = "none"
) -> Damage | None:
    """What is wrong with shard `number` of a store, None where every byte is as it was written."""
    path = folder / "shards" / shard.file
    if not path.exists():
        return Damage(number, str(path), "is missing", tuple(range(shard.patches)))
    try:
        if sha256(path) == shard.sha256:
            return None
        records = salvaged(path, shard, layout.dtype(), compression != "none")
    except OSError as e:  # of the disk itself
        return Damage(number, str(path), f"cannot be read: {e.strerror}", tuple(range(shard.patches)))
    reason = "differs from its checksum in store.json"
    try:
        with h5py.File(path, "r") as f:
            checksums = f["checksums"][:]
    except H5_ERRORS as e:
        return Damage(number, str(path), f"{reason}, and HDF5 cannot read its tables ({_first_line(e)})", ())
    if len(checksums) != shard.patches:
        return Damage(number, str(path), f"{reason}, and so does its number of patches", ())
    found = np.array([-1 if r is None else crc32(r.tobytes()) for r in records])
    return Damage(number, str(path), reason, tuple(np.flatnonzero(found != checksums).tolist()))


def labels_of(path: Path) -> np.ndarray | None:
    """(patch, class) uint8 of a shard that may be damaged; None where they cannot be read."""
    try:
        with h5py.File(path, "r") as f:
            return f["labels"][:]
    except H5_ERRORS:
        return None


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
