"""Writing a store: shards one by one, in any order, by anyone; then `finalise`."""

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jeoparda.errors import StoreError
from jeoparda.files import sha256, whole
from jeoparda.store.format import (
    ALIGNMENT,
    SPLITS,
    Band,
    Group,
    PatchRecord,
    ShardInfo,
    StoreInfo,
    record_dtype,
    table_of,
)


@dataclass(frozen=True)
class Shard:
    """What a finished shard says of itself, enough to finalise without reading it again."""

    number: int
    info: ShardInfo
    summary: dict[str, Any]


def shard_path(store: Path, number: int) -> Path:
    return store / "shards" / f"{number:05d}.h5"


def write_shard(
    store: Path,
    number: int,
    plan: str,
    groups: tuple[Group, ...],
    classes: int,
    patches: Iterable[tuple[PatchRecord, dict[str, np.ndarray], list[int]] | tuple[str, str]],
) -> Shard:
    """Write one shard, or take the finished one that is there, if no patch of it was rejected.

    `patches` yields, in order, (record, {group name: (band, row, col) uint16}, class numbers), or (id, reason) for
    a patch that is rejected; it is not touched when the shard is there. `plan`: a digest of what the shard is made
    from; a shard of another plan under the same name is a StoreError, never overwritten.
    """
    path = shard_path(store, number)
    if path.exists() and not (found := _finished(path, number, plan)).summary["rejected"]:
        return found  # one with rejected patches is made again: the archive may have been mended
    dtype = record_dtype(groups)
    records, rows, labels, rejected = [], [], [], []
    for patch in patches:
        if len(patch) == 2:
            rejected.append(patch)
            continue
        record, arrays, numbers = patch
        row = np.zeros((), dtype)
        for g in groups:
            row[g.name] = arrays[g.name]
        records.append(record)
        rows.append(row)
        labels.append(np.isin(np.arange(classes), numbers).astype(np.uint8))
    data = np.array(rows, dtype) if rows else np.zeros(0, dtype)
    flags = np.array(labels, np.uint8).reshape(len(labels), classes)
    summary = {"plan": plan, "rejected": rejected, **_sums(groups, data, flags, [r.split for r in records])}
    _write(path, data, flags, table_of(records), summary)
    return Shard(number, ShardInfo(path.name, len(records), sha256(path)), summary)


def _write(path: Path, data: np.ndarray, labels: np.ndarray, table: np.ndarray, summary: dict[str, Any]) -> None:
    checksums = [zlib.crc32(row.tobytes()) for row in data]
    aligned = {"alignment_threshold": ALIGNMENT, "alignment_interval": ALIGNMENT}
    with whole(path) as draft, h5py.File(draft, "w", libver=("v110", "v110"), **aligned) as f:
        f.create_dataset("patches", data=data)
        f.create_dataset("labels", data=labels)
        f.create_dataset("table", data=table)
        f.create_dataset("checksums", data=np.array(checksums, np.uint32))
        f.create_dataset("summary", data=np.bytes_(json.dumps(summary, sort_keys=True)))


def _finished(path: Path, number: int, plan: str) -> Shard:
    try:
        with h5py.File(path, "r") as f:
            summary = json.loads(f["summary"][()])
            patches = len(f["labels"])
    except (OSError, KeyError, ValueError) as e:
        raise StoreError(f"{path}: not a shard of a store ({e}); delete it and ingest again") from e
    if summary["plan"] != plan:
        raise StoreError(
            f"{path}: was made from another archive, recipe or version of jeoparda; "
            "give another `store`, or delete this one"
        )
    return Shard(number, ShardInfo(path.name, patches, sha256(path)), summary)


def _sums(groups: tuple[Group, ...], data: np.ndarray, labels: np.ndarray, splits: list[str]) -> dict[str, Any]:
    """Integer sums, so that the statistics are the same in whatever order shards are added up."""
    where = np.array(splits, dtype="U5")
    train = data[where == "train"]
    bands = {}
    for g in groups:
        values = train[g.name]
        for i, band in enumerate(g.bands):
            x = values[:, i].astype(np.uint64)
            bands[band] = [x.size, int(x.sum()), int((x * x).sum())] + ([int(x.min()), int(x.max())] if x.size else [])
    return {
        "bands": bands,
        "splits": {s: int((where == s).sum()) for s in SPLITS},
        "class_patches": {s: labels[where == s].sum(0, dtype=int).tolist() for s in SPLITS},
    }


def finalise(
    store: Path,
    shards: Iterable[Shard],
    sensor: str,
    groups: tuple[Group, ...],
    nomenclature: str,
    classes: tuple[str, ...],
    rejected: list[tuple[str, str]],
    recipe: dict[str, Any],
    version: str,
) -> StoreInfo:
    """Add the shards up and write store.json, last. `rejected`: patches that were never planned into a shard."""
    shards = sorted(shards, key=lambda s: s.number)
    sums = [s.summary for s in shards]
    info = StoreInfo(
        sensor=sensor,
        groups=groups,
        nomenclature=nomenclature,
        classes=classes,
        record_bytes=record_dtype(groups).itemsize,
        patches=sum(s.info.patches for s in shards),
        splits={split: sum(s["splits"][split] for s in sums) for split in SPLITS},
        shards=tuple(s.info for s in shards),
        statistics={b: _statistics([s["bands"][b] for s in sums]) for g in groups for b in g.bands},
        class_patches={
            split: np.sum([s["class_patches"][split] for s in sums], axis=0, dtype=int).tolist() for split in SPLITS
        },
        rejected=tuple(rejected) + tuple((i, r) for s in sums for i, r in s["rejected"]),
        recipe=recipe,
        jeoparda=version,
    )
    for draft in (store / "shards").glob(".*.part"):  # of writers that were killed
        draft.unlink(missing_ok=True)
    with whole(store / "store.json") as draft:
        draft.write_text(info.dumps())
    return info


def _statistics(parts: list[list[int]]) -> Band:
    n, total, squares = (sum(p[i] for p in parts) for i in range(3))
    if n == 0:
        return Band(0, 0.0, 1.0, 0, 0)
    variance = (n * squares - total * total) / (n * n)  # exact integers up to the one division
    return Band(n, total / n, variance**0.5, min(p[3] for p in parts if p[0]), max(p[4] for p in parts if p[0]))
