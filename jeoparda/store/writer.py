"""Writing a store: shards one by one, in any order, by anyone; then `finalise`."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jeoparda.errors import StoreError
from jeoparda.files import clear_drafts, sha256, whole
from jeoparda.store.codec import crc32, encoded, hdf5_filter
from jeoparda.store.format import (
    ALIGNMENT,
    H5_ERRORS,
    SPLITS,
    Compression,
    Contents,
    PatchRecord,
    Reject,
    ShardInfo,
    StoreInfo,
    table_of,
    version_of,
)
from jeoparda.store.reader import begin, stored
from jeoparda.store.statistics import Sums, all_bands, statistics_of


@dataclass(frozen=True)
class Shard:
    """What a finished shard says of itself, enough to finalise without reading it again."""

    number: int
    info: ShardInfo
    summary: dict[str, Any]


Row = tuple[PatchRecord, dict[str, np.ndarray], tuple[int, ...]]


def shard_path(store: Path, number: int) -> Path:
    return store / "shards" / f"{number:05d}.h5"


def write_shard(
    store: Path,
    number: int,
    plan: str,
    contents: Contents,
    patches: Iterable[Row | Reject],
    most: int,
    compression: Compression = "none",
) -> Shard:
    """Write one shard of up to `most` patches.

    `patches` yields, in order, (record, arrays as Layout.fields() names and shapes them, class numbers), or a Reject.
    `plan`: a digest of what the shard is made from. The file appears when it is whole. StoreError where the compression
    is not installed.
    """
    path = shard_path(store, number)
    data = np.zeros(most, contents.layout.dtype())
    labels = np.zeros((most, len(contents.classes)), np.uint8)
    sums = Sums(contents)
    records: list[PatchRecord] = []
    rejected: list[Reject] = []
    for patch in patches:
        if isinstance(patch, Reject):
            rejected.append(patch)
            continue
        record, arrays, numbers = patch
        _check(contents, record.id, arrays, numbers)
        row, flags = data[len(records)], labels[len(records)]
        for name in data.dtype.names or ():
            row[name] = arrays[name]
        flags[list(numbers)] = 1
        sums.add(row, flags, record.split)
        records.append(record)
    n = len(records)
    summary = {"plan": plan, "rejected": [asdict(r) for r in rejected], **sums.summary()}
    image, offset = _image(contents, compression, data[:n], _tables(labels[:n], records, data[:n]), summary)
    with whole(path) as draft:
        draft.write_bytes(image)
    return Shard(number, ShardInfo(path.name, n, offset, hashlib.sha256(image).hexdigest(), plan), summary)


def _check(c: Contents, patch: str, arrays: dict[str, np.ndarray], numbers: tuple[int, ...]) -> None:
    """StoreError where a source gives what the layout does not hold: numpy would cast and repeat it in silence."""
    for name, expected in c.layout.fields().items():
        found = str(arrays[name].dtype), arrays[name].shape
        if found != expected:
            raise StoreError(f"patch {patch}: its {name} is {found}, the store's layout has {expected}")
    if any(not 0 <= k < len(c.classes) for k in numbers):
        raise StoreError(f"patch {patch}: classes {numbers}, the store has {len(c.classes)}")


def _tables(labels: np.ndarray, records: list[PatchRecord], data: np.ndarray) -> dict[str, np.ndarray]:
    """All datasets of a shard but its records."""
    found = {"labels": labels, "table": table_of(records)}
    if any(r.dates for r in records):
        width = max(len(r.dates) for r in records)
        rows = [[d.encode() for d in r.dates] + [b""] * (width - len(r.dates)) for r in records]
        found["dates"] = np.array(rows, "S19")
    return found | {"checksums": np.array([crc32(row.tobytes()) for row in data], np.uint32)}


def _digest(tables: dict[str, np.ndarray], summary: dict[str, Any]) -> str:
    h = hashlib.sha256(json.dumps({k: v for k, v in summary.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tables):
        h.update(f"{name} {tables[name].dtype} {tables[name].shape}".encode() + tables[name].tobytes())
    return h.hexdigest()


_ABOUT = {
    "labels": ("1 where the patch carries the class, see the attribute 'classes' of the file", "patch class"),
    "table": (
        "one row a patch; transform: x = a col + b row + c, y = d col + e row + f of the finest pixels, in the units "
        "of the CRS; date: ISO 8601; valid_fraction: share of measured, cloud-free pixels",
        "patch",
    ),
    "dates": ("ISO 8601; of a pair: low, high resolution; empty: a gap", "patch date"),
    "checksums": ("CRC-32 of each patch's record", "patch"),  # decoded, where the store is compressed
}


def _image(
    c: Contents, compression: Compression, data: np.ndarray, tables: dict[str, np.ndarray], summary: dict[str, Any]
) -> tuple[memoryview, int]:
    """The bytes of a shard's file, and the one where its records begin.

    Made in memory: HDF5 that meets a full disk while it writes may take the process with it.
    """
    step = ALIGNMENT if compression == "none" else 1  # it would cost a compressed store 2 kB a patch
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=("v110", "v110"), alignment_threshold=ALIGNMENT, alignment_interval=step) as f:
        f.attrs.update(_about(c, compression))
        patches = _patches(f, c, compression, data)
        patches.attrs.update(_about_patches(c))
        for name, table in tables.items():
            description, dimensions = _ABOUT[name]
            f.create_dataset(name, data=table).attrs.update(description=description, dimensions=dimensions)
        text = json.dumps(summary | {"sha256": _digest(tables, summary)}, sort_keys=True)
        f.create_dataset("summary", data=np.bytes_(text))
        offset = begin(patches)
    return memory.getbuffer(), offset


def _patches(f: h5py.File, c: Contents, compression: Compression, data: np.ndarray) -> h5py.Dataset:
    if compression == "none" or not len(data):  # HDF5 has no chunks of nothing
        return f.create_dataset("patches", data=data)
    patches = f.create_dataset("patches", data.shape, data.dtype, chunks=(1,), **hdf5_filter(compression))
    itemsize = np.dtype(c.layout.groups[0].dtype).itemsize
    for i, record in enumerate(data):
        patches.id.write_direct_chunk((i,), encoded(record, compression, itemsize))
    return patches


def _about(c: Contents, compression: Compression) -> dict[str, Any]:
    """The attributes of a shard's file: what a stranger needs who opens it with h5dump."""
    return {
        "title": "Patches of satellite images, a shard of a jeoparda store; store.json beside the folder has the rest",
        "format": "jeoparda-store",
        "version": version_of(compression),
        "sensor": c.sensor,
        "nomenclature": c.nomenclature,
        "classes": json.dumps(c.classes, ensure_ascii=False),
    }


def _about_patches(c: Contents) -> dict[str, Any]:
    time = "date " if c.layout.dates else ""
    about = {"description": "one record a patch; each attribute below tells of the field of its name"}
    for g in (*c.layout.groups, *([c.layout.high] if c.layout.high else [])):
        series = time if g is not c.layout.high else ""
        about[g.name] = f"{series}band row col; bands {' '.join(g.bands)}; pixels of {g.pixel_m:g} m; unit: {c.unit}"
    if c.layout.valid:
        about["valid"] = f"{time}row col; 1 where measured and cloud-free"
    if c.layout.mask_px:
        about["mask"] = f"{time}row col; class numbers, 255 where there is no label"
    return about


def plan_of(path: Path) -> str:
    """The digest of what a shard was made from, "" where the file cannot tell."""
    try:
        with h5py.File(path, "r") as f:
            return str(json.loads(f["summary"][()])["plan"])
    except H5_ERRORS:
        return ""


def of_another_plan(path: Path) -> StoreError:
    return StoreError(
        f"{path}: was made from another archive, recipe or version of jeoparda; give another `store`, or delete this "
        "whole folder"
    )


def finished(store: Path, number: int, plan: str, with_rejects: bool = False) -> Shard | None:
    """The shard that is there, if every byte of what it holds fits its own checksums; None where it is to be made.

    One with faulty patches counts only `with_rejects`: else it is to be made again, as the archive may have been
    mended since. StoreError for a shard of another plan, which is never overwritten.
    """
    path = shard_path(store, number)
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as f:
            summary = json.loads(f["summary"][()])
            proof = summary.pop("sha256")
            tables = {name: f[name][:] for name in _ABOUT if name in f}
            sound = _digest(tables, summary) == proof and all(
                record is not None and crc32(record.tobytes()) == c
                for record, c in zip(stored(path, f["patches"]), tables["checksums"], strict=True)
            )
            offset, patches = begin(f["patches"]), len(f["patches"])
        info = ShardInfo(path.name, patches, offset, sha256(path), plan)
    except H5_ERRORS:  # no HDF5, or not ours: made again
        return None
    if not sound:
        return None
    if summary["plan"] != plan:
        raise of_another_plan(path)
    return Shard(number, info, summary) if with_rejects or not any(x["fault"] for x in summary["rejected"]) else None


def finalise(
    store: Path,
    shards: Iterable[Shard],
    contents: Contents,
    rejected: Iterable[Reject],
    left_out: dict[str, int],
    recipe: dict[str, Any],
    version: str,
    compression: Compression = "none",
) -> StoreInfo:
    """Add the shards up and write rejects.csv and, last, store.json. `rejected`: what came into no shard's plan."""
    shards = sorted(shards, key=lambda s: s.number)
    sums = [s.summary for s in shards]
    rejected = tuple(rejected)
    everything = (*rejected, *(Reject(**r) for s in sums for r in s["rejected"]))

    def added(name: str) -> dict[str, list[int]]:
        parts = {split: [s[name][split] for s in sums if s[name]] for split in SPLITS}
        return {split: np.sum(counts, axis=0, dtype=int).tolist() for split, counts in parts.items() if counts}

    info = StoreInfo(
        **{name: getattr(contents, name) for name in Contents.__dataclass_fields__},
        record_bytes=contents.layout.dtype().itemsize,
        patches=sum(s.info.patches for s in shards),
        splits={split: sum(s["splits"][split] for s in sums) for split in SPLITS},
        shards=tuple(s.info for s in shards),
        statistics={b: statistics_of([s["bands"][b] for s in sums]) for b in all_bands(contents.layout)},
        class_patches=added("class_patches"),
        class_pixels=added("class_pixels"),
        rejected=everything,
        rejected_by_plan=len(rejected),
        left_out=left_out,
        recipe=recipe,
        jeoparda=version,
        version=version_of(compression),
        compression=compression,
    )
    for folder in (store, store / "shards"):
        clear_drafts(folder)
    _write_rejects(store / "rejects.csv", everything)
    with whole(store / "store.json") as draft:
        draft.write_text(info.dumps(), encoding="utf-8")
    return info


def _write_rejects(path: Path, rejected: tuple[Reject, ...]) -> None:
    with whole(path) as draft, open(draft, "w", newline="", encoding="utf-8") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["id", "file", "reason", "expected", "kind"])
        table.writerows([r.id, r.file, r.reason, r.expected, "fault" if r.fault else "not wanted"] for r in rejected)
