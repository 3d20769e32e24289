"""Synthetic stores to read: smooth land and noise, as uint16 patches of Sentinel-2 are. Kept from run to run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.synthetic import WORK, whole
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import Contents, Group, Layout, PatchRecord, finalise, group_records, write_shard
from jeoparda.store.writer import Row

SIZE_PX = 120
SHARD = 512  # patches; 84 MB of native ones
CLASSES = 19


def native(patches: int, val: int = 0) -> Path:
    """Bands as the sensor gives them: 4 of 120 px, 6 of 60 px, 2 of 20 px; 160 kB a patch. val: how many of the last
    patches are for validation."""
    return _store("native", Layout(group_records(SENTINEL_2_L2A, SIZE_PX)), patches, val)


def flat(patches: int) -> Path:
    """All 12 bands of 120 px; 346 kB a patch."""
    return _store("flat", Layout((Group("10m", 10.0, SIZE_PX, SENTINEL_2_L2A.bands),)), patches)


def _store(name: str, layout: Layout, patches: int, val: int = 0) -> Path:
    folder = WORK / (f"feed-{name}-{patches}" + (f"-{val}" if val else ""))
    if not whole(folder):
        shutil.rmtree(folder, ignore_errors=True)  # an unfinished one
        write(folder, layout, patches, val)
    return folder


def write(folder: Path, layout: Layout, patches: int, val: int = 0) -> None:
    names = tuple(f"class {k}" for k in range(CLASSES))
    sensor = SENTINEL_2_L2A
    contents = Contents(sensor.name, "reflectance x 10000", sensor.rgb, layout, "none", names, ((0, 0, 0),) * CLASSES)
    starts = range(0, patches, SHARD)
    parts = [range(first, min(first + SHARD, patches)) for first in starts]
    shards = [
        write_shard(folder, n, name_of(layout), contents, _rows(layout, part, patches - val), len(part))
        for n, part in enumerate(parts)
    ]
    finalise(folder, shards, contents, [], {}, {}, "benchmark")


def name_of(layout: Layout) -> str:
    return " ".join(f"{g.name} {len(g.bands)}x{g.size_px}" for g in layout.groups)


def _rows(layout: Layout, numbers: range, train: int) -> Iterator[Row]:
    for number in numbers:
        rng = np.random.default_rng(number)
        place, split = (10.0, 0.0, 1200.0 * number, 0.0, -10.0, 5e6), "train" if number < train else "val"
        record = PatchRecord(f"patch-{number:06d}", "synthetic", "EPSG:32633", place, "2017-06-13", "", split, 1.0)
        arrays = {g.name: _land(rng, g) for g in layout.groups}
        yield record, arrays, tuple(np.flatnonzero(rng.random(CLASSES) < 0.15).tolist())


def _land(rng: np.random.Generator, group: Group) -> np.ndarray:
    """(band, row, col): slopes that wander, and noise."""
    rows, cols = (np.cumsum(rng.normal(0, 20, (len(group.bands), group.size_px)), 1) for _ in range(2))
    noise = rng.normal(2000, 40, (len(group.bands), group.size_px, group.size_px))
    return (rows[:, :, None] + cols[:, None, :] + noise).clip(1, 65535).astype(np.uint16)
