"""What a store holds, on one page.

    STORE/store.json         StoreInfo below; written last, so a folder with it is complete
    STORE/shards/NNNNN.h5    up to `patches_per_shard` patches each
    STORE/plan.jsonl         which patch went where and what it was made from; what `store repair` works by
    STORE/rejects.csv        what was left out of the archive, and why
    STORE/journal/*.jsonl    when and how fast it was made, by whom; the one thing here that depends on that

A shard's datasets are all of length n (its number of patches), all plain HDF5 that h5dump and h5py understand
(the compressed ones with hdf5plugin):

    patches    (n,) compound, the fields of Layout.dtype(): one a resolution group, each (band, row, col), and, where
               the store has them, the high-resolution bands, the valid pixels and the mask. Contiguous,
               uncompressed, starting on a 4096-byte boundary (unless it is smaller than that); records are padded
               to 4096 bytes where that costs at most 5 %. So patch i is the `record_bytes` at
               offset(patches) + i * record_bytes. In compressed stores chunked by one record, each chunk a frame
               of c-blosc (HDF5 filter 32001), where HDF5's chunk index says; see `codec`.
    labels     (n, class) uint8, 1 where the patch carries the class
    table      (n,) compound: id, source, crs, transform, date, country, split, valid_fraction
    dates      (n, date) text, ISO 8601, "" for a gap; only in stores of series and of pairs
    checksums  (n,) uint32: CRC-32 of each patch's record, decoded
    summary    () JSON text: exact sums per band over the training split, rejected patches, and the SHA-256 of the
               datasets above but `patches`

Nothing in it depends on the time, the host, the number of workers or the order in which they ran.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from jeoparda.errors import StoreError
from jeoparda.sensors import Sensor

VERSION = 2  # of stores that are not compressed; their shards' bytes are what they were before there were others
COMPRESSED_VERSION = 3  # a reader that knows version 2 only would take frames for pixels
ALIGNMENT = 4096  # bytes: a page, and what O_DIRECT and GPUDirect Storage ask for
FIELD_ALIGNMENT = 64  # bytes: a cache line
SPLITS = ("train", "val", "test")

DTYPES = ("uint8", "uint16", "int16", "float32")  # of pixels: what feeds take, and sums stay exact in
Compression = Literal["none", "lz4", "zstd"]
Target = Literal["labels", "label", "mask", "high-resolution mask", "series"]


@dataclass(frozen=True)
class Group:
    """Bands of one pixel size, kept at that size. `pixel_m`: in metres, or in the CRS's units where it has others
    (1.0 for images without any); `dtype`: numpy's name of the pixels' type."""

    name: str  # "10m"
    pixel_m: float
    size_px: int
    bands: tuple[str, ...]
    dtype: str = "uint16"


# what h5py raises for a file that is damaged or no shard: it has no error of its own
H5_ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Layout:
    """What one record holds, field by field, in this order.

    groups   a field a group, finest first: (band, row, col) of its dtype
    high     "high": (band, row, col), the same ground at a higher resolution (super-resolution pairs)
    valid    "valid": (row, col) uint8 on the finest grid of `groups`, 1 where measured and not cloud
    mask_px  "mask": (row, col) uint8 of this side, class numbers, 255 where there is no label; 0: no mask
    dates    with dates > 0, all but `high` have a leading axis of that many dates (series)
    """

    groups: tuple[Group, ...]
    high: Group | None = None
    valid: bool = False
    mask_px: int = 0
    dates: int = 0

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(b for g in self.groups for b in g.bands)

    @property
    def size_px(self) -> int:
        return self.groups[0].size_px

    def fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Field name -> (dtype, shape)."""
        time = (self.dates,) if self.dates else ()
        found = {g.name: (g.dtype, (*time, len(g.bands), g.size_px, g.size_px)) for g in self.groups}
        if self.high:
            found["high"] = (self.high.dtype, (len(self.high.bands), self.high.size_px, self.high.size_px))
        if self.valid:
            found["valid"] = ("uint8", (*time, self.size_px, self.size_px))
        if self.mask_px:
            found["mask"] = ("uint8", (*time, self.mask_px, self.mask_px))
        return found

    def dtype(self) -> np.dtype:
        """The compound type of one patch; fields start on cache lines, and the end is padded (see the module)."""
        fields = self.fields()
        offsets, used = [], 0
        for kind, shape in fields.values():
            offsets.append(used)
            used = _up(used + np.dtype(kind).itemsize * int(np.prod(shape)), FIELD_ALIGNMENT)
        padded = _up(used, ALIGNMENT)
        return np.dtype(
            {
                "names": list(fields),
                "formats": [(np.dtype(kind).newbyteorder("<"), shape) for kind, shape in fields.values()],
                "offsets": offsets,
                "itemsize": padded if padded <= used * 1.05 else used,  # a small chip stays small
            }
        )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


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
        groups.append(Group(f"{pixel_m:g}m", pixel_m, int(side), bands))
    return tuple(groups)


@dataclass(frozen=True)
class PatchRecord:
    """One row of the patch table. `transform`: of the finest grid. `date`: ISO 8601. `dates`: of a series, or of a
    pair (low, high); "" for a gap."""

    id: str
    source: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    date: str
    country: str
    split: str
    valid_fraction: float
    dates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reject:
    """A patch, file or scene that was left out: which, because of which file, why, and what was expected instead.
    `fault`: False for one that is sound, and that the recipe does not want (too little of it is valid)."""

    id: str
    file: str
    reason: str
    expected: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{self.file or self.id}: {self.reason}" + (f"; expected {self.expected}" if self.expected else "")


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
    """A band's statistics over the valid pixels of the training split, in the store's unit. The standard deviation
    is over the population; both are from exact sums."""

    pixels: int
    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class ShardInfo:
    """`offset`: the byte where its first record begins, so that they can be read where the file's own tables are
    damaged. `plan`: the digest of what it was made from."""

    file: str
    patches: int
    offset: int
    sha256: str
    plan: str


@dataclass(frozen=True)
class Contents:
    """What a store is of, known before a pixel is read.

    sensor: its name. unit: of the pixels, "reflectance x 10000" or "digital number". rgb: the bands for a picture in
    true colour, () where there are none. classes, colors: by class number. target: what the patches teach.
    """

    sensor: str
    unit: str
    rgb: tuple[str, ...]
    layout: Layout
    nomenclature: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    target: Target = "labels"


@dataclass(frozen=True)
class StoreInfo(Contents):
    """store.json. `record_bytes`: of a record, decoded. `statistics`: a Band per band name, over the training split.
    `class_patches`: split -> number of patches with each class; `class_pixels`: split -> number of mask pixels of each
    class, empty without masks. `rejected`: what was left out of the archive, and why, the first `rejected_by_plan` of
    them before a shard was made; `left_out`: reason -> number of patches that the recipe does not want. `compression`:
    "none" too for stores from before there was any."""

    record_bytes: int = 0
    patches: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    shards: tuple[ShardInfo, ...] = ()
    statistics: dict[str, Band] = field(default_factory=dict)
    class_patches: dict[str, list[int]] = field(default_factory=dict)
    class_pixels: dict[str, list[int]] = field(default_factory=dict)
    rejected: tuple[Reject, ...] = ()
    rejected_by_plan: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    jeoparda: str = ""
    format: str = "jeoparda-store"
    version: int = VERSION
    compression: Compression = "none"

    @property
    def faults(self) -> tuple[Reject, ...]:
        """What was rejected because something is wrong with it."""
        return tuple(x for x in self.rejected if x.fault)

    @property
    def not_wanted(self) -> Counter[str]:
        """Reason -> number of sound patches that the recipe left out, when they were planned or when they were read."""
        return Counter(self.left_out) + Counter(f"not {x.expected}" for x in self.rejected if not x.fault)

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.layout.groups

    @property
    def bands(self) -> tuple[str, ...]:
        return self.layout.bands

    @property
    def size_px(self) -> int:
        return self.layout.size_px

    def dumps(self) -> str:
        """The text of store.json; its last key is the checksum of all before it."""
        data = dataclasses.asdict(self)
        return _text(data | {"sha256": _checksum(data)})

    @classmethod
    def read(cls, folder: Path) -> "StoreInfo":
        path = folder / "store.json"
        if not path.exists():
            started = (folder / "shards").is_dir() or (folder / "plan.jsonl").exists()
            raise StoreError(
                f"{folder}: no store.json here; "
                + ("an ingest began and did not finish: run it again, it goes on where it stopped" if started
                   else "make a store with `jeoparda ingest`")
            )  # fmt: skip
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError(f"a mapping was expected, this is a {type(data).__name__}")
            found = (data.get("format"), data.get("version"))
            if found not in (("jeoparda-store", VERSION), ("jeoparda-store", COMPRESSED_VERSION)):
                known = f"('jeoparda-store', {VERSION}) and ('jeoparda-store', {COMPRESSED_VERSION})"
                raise StoreError(f"{path}: is {found}, this version reads {known}")
            if data.pop("sha256", None) != _checksum(data):
                raise ValueError("its content differs from its own checksum")
            return pydantic.TypeAdapter(cls).validate_python(data)
        except ValueError as e:  # of JSON, of UTF-8, of pydantic
            raise StoreError(
                f"{path}: damaged: {str(e).splitlines()[0]}; `jeoparda store repair` writes it again"
            ) from e


def version_of(compression: str) -> int:
    return VERSION if compression == "none" else COMPRESSED_VERSION


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(_text(data).encode()).hexdigest()
