"""What ingest costs: `python -m benchmarks.ingest WHAT`, the answer as JSON on the last line.

Rates are of files in the page cache, against a bare reader of the same files in the same run: as many processes as
ingest has workers open each raster with rasterio, read it, and throw it away.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click

from jeoparda.config import check, load
from jeoparda.ingest import IngestRecipe, run
from jeoparda.ingest.bigearthnet import BANDS
from jeoparda.ingest.upkeep import verify
from jeoparda.journal import read
from jeoparda.stages import call

WORK = Path(__file__).with_name("work")
RECIPES = Path(__file__).with_name("recipes")
ROUNDS = 5
MANY = 100_000


@click.group()
def main() -> None:
    """Measure one thing."""


def _answer(value: float, **about: Any) -> None:
    print(json.dumps({"value": value, **about}), flush=True)


def _archive(patches: int) -> Path:
    """A synthetic archive of so many patches."""
    archive = WORK / f"ingest-archive-{patches}"
    call("synth", RECIPES / "synth.yaml", [f"out={archive}", f"patches={patches}"])
    return archive


def _bare(folders: list[str]) -> int:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    size = 0
    with rasterio.Env(GDAL_NUM_THREADS="1", GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        for folder in folders:
            for band in BANDS:
                with rasterio.open(f"{folder}/{os.path.basename(folder)}{band}") as f:
                    size += f.read(1).nbytes
    return size


def _read_bare(archive: Path, workers: int) -> float:
    """Seconds to read every raster of the archive and throw it away, processes started and libraries loaded."""
    folders = sorted(str(p) for p in archive.iterdir() if p.is_dir())
    parts = [folders[i : i + 64] for i in range(0, len(folders), 64)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        start = time.perf_counter()
        sum(pool.map(_bare, parts))
        return time.perf_counter() - start


def _ingest(archive: Path, workers: int, keep: str = "") -> float:
    """Seconds of a whole ingest, plan and store.json included, from the moment when it begins."""
    store = WORK / (keep or "ingest-store")
    shutil.rmtree(store, ignore_errors=True)
    recipe = load(IngestRecipe, RECIPES / "ingest.yaml", [f"archive={archive}", f"store={store}", f"workers={workers}"])
    start = time.perf_counter()
    run(recipe, lambda _: None)
    return time.perf_counter() - start


def _paired(one: Callable[[], float], other: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Both, in turn, ROUNDS times, after a round that warms the page cache and does not count."""
    one(), other()
    rounds = [(one(), other()) if i % 2 else (other(), one())[::-1] for i in range(ROUNDS)]
    return [a for a, _ in rounds], [b for _, b in rounds]


@main.command()
@click.option("--workers", default=2)
@click.option("--patches", default=5_000)
def rate(workers: int, patches: int) -> None:
    """Ingest's rate over the bare reader's, both with so many workers."""
    archive = _archive(patches)
    bare, ours = _paired(lambda: _read_bare(archive, workers), lambda: _ingest(archive, workers))
    ratio = statistics.median(b / o for b, o in zip(bare, ours, strict=True))
    per_s = {
        "bare_patches_per_s": patches / statistics.median(bare),
        "patches_per_s": patches / statistics.median(ours),
    }
    _answer(ratio, workers=workers, patches=patches, bare_s=bare, ingest_s=ours, **per_s)


def _scenes(count: int = 2, side: int = 2048) -> Path:
    """Scenes of four bands as lossless JP2, and a label raster each: smooth land, some noise."""
    import numpy as np
    import rasterio

    archive = WORK / "ingest-scenes"
    if archive.exists():
        return archive
    (archive / "labels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lossless = {"driver": "JP2OpenJPEG", "REVERSIBLE": "YES", "QUALITY": "100"}
    for k in range(count):
        place = rasterio.Affine(10, 0, 5e5 + 10 * side * k, 0, -10, 5e6)
        about = {"height": side, "width": side, "count": 1, "crs": "EPSG:32633", "transform": place}
        land = np.cumsum(np.cumsum(rng.normal(size=(side, side)), 0), 1) / side
        for band in ("B1", "B2", "B3", "B4"):
            pixels = (3000 + 20 * land + rng.normal(0, 30, land.shape)).clip(1, 9999).astype(np.uint16)
            with rasterio.open(archive / f"s{k}_{band}.jp2", "w", dtype="uint16", **lossless, **about) as f:
                f.write(pixels, 1)
        classes = (np.digitize(land, np.quantile(land, (0.25, 0.5, 0.75)))).astype(np.uint8)
        with rasterio.open(archive / "labels" / f"s{k}.tif", "w", driver="GTiff", dtype="uint8", **about) as f:
            f.write(classes, 1)
    return archive


def _decode(paths: list[str]) -> int:
    import rasterio

    with rasterio.Env(GDAL_NUM_THREADS="1"):
        size = 0
        for path in paths:
            with rasterio.open(path) as f:
                size += f.read(1).nbytes
        return size


@main.command()
def scenes() -> None:
    """Ingest's rate for JP2 scenes with labels over that of decoding the same files, one worker each."""
    archive = _scenes()
    files = sorted(str(p) for p in (*archive.glob("*.jp2"), *archive.glob("labels/*.tif")))
    kind = {"kind": "folder", "pattern": r"(?P<scene>s\d)_(?P<band>B\d)\.jp2"}
    section = {"pattern": "s*", "scene": kind, "labels": {"path": "labels/{scene}.tif", "unlisted": "keep"}}
    store = WORK / "ingest-store"
    given = {"archive": str(archive), "store": str(store), "source": "scenes", "scenes": section, "workers": 1}
    recipe = check(IngestRecipe, given)

    def bare() -> float:
        start = time.perf_counter()
        _decode(files)
        return time.perf_counter() - start

    def ours() -> float:
        shutil.rmtree(store, ignore_errors=True)
        start = time.perf_counter()
        run(recipe, lambda _: None)
        return time.perf_counter() - start

    decoded, ingested = _paired(bare, ours)
    ratio = statistics.median(b / o for b, o in zip(decoded, ingested, strict=True))
    _answer(ratio, bare_s=decoded, ingest_s=ingested)


@main.command()
@click.option("--patches", default=5_000)
def workers(patches: int) -> None:
    """The rate of two workers over that of one."""
    archive = _archive(patches)
    one, two = _paired(lambda: _ingest(archive, 1), lambda: _ingest(archive, 2))
    ratio = statistics.median(a / b for a, b in zip(one, two, strict=True))
    _answer(ratio, patches=patches, one_s=one, two_s=two, cores=len(os.sched_getaffinity(0)))


def _load_line(store: Path) -> dict[str, Any]:
    """What the last ingest into a store wrote of all its shards."""
    return next(e for e in reversed(read(store / "journal" / "ingest.jsonl")) if e["event"] == "load")


def _store_at_scale() -> Path:
    """The store of 100,000 patches; made now if it is not there. It stays, for all that want to measure it."""
    if not (WORK / "ingest-scale" / "store.json").exists():
        _ingest(_archive(MANY), 2, "ingest-scale")
    return WORK / "ingest-scale"


@main.command()
@click.option("--small", default=2_000)
def memory(small: int) -> None:
    """Peak memory of a worker at 100,000 patches over that at 2,000."""
    large = _load_line(_store_at_scale())["worker_peak_mb"]
    _ingest(_archive(small), 2, "ingest-small")
    few = _load_line(WORK / "ingest-small")["worker_peak_mb"]
    _answer(large / few, **{f"peak_mb_{small}": few, f"peak_mb_{MANY}": large})


@main.command()
def scale() -> None:
    """Minutes that 100,000 patches take to ingest; also to verify and load, and what 590,326 would at these rates."""
    import numpy as np

    from jeoparda.feed import Feed, FeedRecipe, Plan
    from jeoparda.order import Order
    from jeoparda.store import Store

    shutil.rmtree(WORK / "ingest-scale", ignore_errors=True)
    archive = _archive(MANY)
    took = {"ingest": _ingest(archive, 2, "ingest-scale")}
    folder = _store_at_scale()
    start = time.perf_counter()
    assert verify(folder, 2) == []
    took["verify"] = time.perf_counter() - start
    start = time.perf_counter()
    store = Store(folder)
    took["open"] = time.perf_counter() - start
    numbers = store.split("all")
    plan = Plan(Order(len(numbers), 256, 0), numbers, 0, 1)
    feed = Feed(store, plan, FeedRecipe(), False, store.labels, store.statistics())
    start = time.perf_counter()
    seen = np.concatenate([batch["number"].numpy() for batch in feed])
    took["load"] = time.perf_counter() - start
    assert np.array_equal(np.sort(seen), numbers)
    assert len(numbers) > 0.99 * MANY  # a few are left out: no label, or on another split's ground
    full = 590_326 / len(numbers)
    _answer(
        took["ingest"] / 60,
        patches=len(numbers),
        minutes={k: round(v / 60, 2) for k, v in took.items()},
        store_gb=len(numbers) * store.info.record_bytes / 1e9,
        worker_peak_mb=_load_line(folder)["worker_peak_mb"],
        bigearthnet_hours={k: round(v / 3600 * full, 2) for k, v in took.items()},
        bigearthnet_gb=590_326 * store.info.record_bytes / 1e9,
    )


if __name__ == "__main__":
    main()
