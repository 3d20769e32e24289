"""What a store holds, on one page.

    STORE/store.json         StoreInfo below; written last, so a folder with it is complete
    STORE/shards/NNNNN.h5    up to `patches_per_shard` patches each

A shard has five datasets, all of length n (its number of patches), all plain HDF5 that h5dump and h5py understand:

    patches    (n,) compound: one field a resolution group, each (band, row, col) uint16, e.g. '10m' (4, 120, 120).
               Contiguous, uncompressed, starting on a 4096-byte boundary (unless it is smaller than that); records
               are padded to 4096 bytes where that costs at most 5 %. So patch i is the `record_bytes` at
               offset(patches) + i * record_bytes.
    labels     (n, class) uint8, 1 where the patch carries the class
    table      (n,) compound: id, source, crs, transform, date, country, split, valid_fraction
    checksums  (n,) uint32: CRC-32 of each patch's record
    summary    () JSON text: exact sums per band over the training split, rejected patches

Nothing in it depends on the time, the host, the number of workers or the order in which they ran.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from jeoparda.errors import StoreError
from jeoparda.sensors import Sensor

VERSION = 1
ALIGNMENT = 4096  # bytes: a page, and what O_DIRECT and GPUDirect Storage ask for
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Group:
    """Bands of one pixel size, kept at that size."""

    name: str  # "10m"
    pixel_m: float
    size_px: int
    bands: tuple[str, ...]


def group_records(sensor: Sensor, size_px: int) -> tuple[Group, ...]:
    """The resolution groups of a sensor for patches of `size_px` pixels on its finest grid."""
    groups = []
    for pixel_m, bands in sensor.groups:
        side = size_px * sensor.finest_m / pixel_m
        if side != int(side):
            raise StoreError(
                f"patch size {size_px} px at {sensor.finest_m} m is not a whole number of {pixel_m} m pixels; "
                f"take a multiple of {max(m for m, _ in sensor.groups) // sensor.finest_m} px"
            )
        groups.append(Group(f"{pixel_m}m", pixel_m, int(side), bands))
    return tuple(groups)


def record_dtype(groups: tuple[Group, ...]) -> np.dtype:
    """The compound type of one patch, padded at its end (see the module's text)."""
    formats = [("<u2", (len(g.bands), g.size_px, g.size_px)) for g in groups]
    sizes = [int(np.dtype(f).itemsize) for f in formats]
    used = sum(sizes)
    padded = -(-used // ALIGNMENT) * ALIGNMENT
    if padded > used * 1.05:
        padded = -(-used // 64) * 64  # small chips: a cache line, not a page
    return np.dtype(
        {
            "names": [g.name for g in groups],
            "formats": formats,
            "offsets": [sum(sizes[:i]) for i in range(len(sizes))],
            "itemsize": padded,
        }
    )


@dataclass(frozen=True)
class PatchRecord:
    """One row of the patch table. `transform`: of the finest grid. `date`: ISO 8601."""

    id: str
    source: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    date: str
    country: str
    split: str
    valid_fraction: float


def table_of(records: list[PatchRecord]) -> np.ndarray:
    """The patch table as a structured array; text columns are as wide as their longest entry."""

    def text(name: str) -> np.ndarray:
        return np.array([getattr(r, name).encode() for r in records] or [b" "], dtype=bytes)[: len(records)]

    columns = {n: text(n) for n in ("id", "source", "crs", "date", "country", "split")}
    dtype = [(n, f"S{max(1, c.dtype.itemsize)}") for n, c in columns.items()]
    dtype[3:3] = [("transform", "<f8", (6,))]  # type: ignore[list-item]
    table = np.zeros(len(records), dtype=[*dtype, ("valid_fraction", "<f4")])
    for name, column in columns.items():
        table[name] = column
    table["transform"] = np.array([r.transform for r in records], dtype=float).reshape(len(records), 6)
    table["valid_fraction"] = [r.valid_fraction for r in records]
    return table


@dataclass(frozen=True)
class Band:
    """A band's statistics over the pixels of the training split, in digital numbers. The standard deviation is
    over the population; both are from exact integer sums."""

    pixels: int
    mean: float
    std: float
    min: int
    max: int


@dataclass(frozen=True)
class ShardInfo:
    file: str
    patches: int
    sha256: str


@dataclass(frozen=True)
class StoreInfo:
    """store.json. `statistics`: a Band per band name, over the training split. `class_patches`: split -> number
    of patches with each class. `rejected`: what was left out of the archive, and why."""

    sensor: str
    groups: tuple[Group, ...]
    nomenclature: str
    classes: tuple[str, ...]
    record_bytes: int
    patches: int
    splits: dict[str, int]
    shards: tuple[ShardInfo, ...]
    statistics: dict[str, Band]
    class_patches: dict[str, list[int]]
    rejected: tuple[tuple[str, str], ...]
    recipe: dict[str, Any]
    jeoparda: str
    target: str = "labels"
    format: str = "jeoparda-store"
    version: int = VERSION
    notes: list[str] = field(default_factory=list)

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(b for g in self.groups for b in g.bands)

    @property
    def size_px(self) -> int:
        return self.groups[0].size_px

    def dumps(self) -> str:
        """The text of store.json; its last key is the checksum of all before it."""
        data = dataclasses.asdict(self)
        return _text(data | {"sha256": _checksum(data)})

    @classmethod
    def read(cls, folder: Path) -> "StoreInfo":
        path = folder / "store.json"
        if not path.exists():
            started = (folder / "shards").is_dir()
            raise StoreError(
                f"{folder}: no store.json here; "
                + ("an ingest began and did not finish: run it again, it goes on where it stopped" if started
                   else "make a store with `jeoparda ingest`")
            )  # fmt: skip
        try:
            data = json.loads(path.read_text())
            if not isinstance(data, dict):
                raise ValueError(f"a mapping was expected, this is a {type(data).__name__}")
            found = (data.get("format"), data.get("version"))
            if found != ("jeoparda-store", VERSION):
                raise StoreError(f"{path}: is {found}, this version reads ('jeoparda-store', {VERSION})")
            if data.pop("sha256", None) != _checksum(data):
                raise ValueError("its content differs from its own checksum")
            return pydantic.TypeAdapter(cls).validate_python(data)
        except ValueError as e:  # of JSON, of UTF-8, of pydantic
            raise StoreError(f"{path}: damaged: {str(e).splitlines()[0]}; ingest again to rewrite it") from e


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(_text(data).encode()).hexdigest()
