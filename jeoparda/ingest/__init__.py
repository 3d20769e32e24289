"""Archives become stores.

`plan` reads labels and places only and says which patch goes to which shard and split; each shard is then made by
whoever is free, from its part of the plan alone; `finalise` adds them up. The result depends on the archive and
the recipe, not on the number of workers.
"""

import csv
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jeoparda import __version__, partition
from jeoparda.config import REQUIRED, as_dict, opt, recipe
from jeoparda.errors import ArchiveError, PatchError, RecipeError
from jeoparda.ingest import bigearthnet
from jeoparda.ingest.bigearthnet import Planned
from jeoparda.nomenclature import nomenclature
from jeoparda.progress import track
from jeoparda.store import PatchRecord, Shard, StoreInfo, finalise, write_shard


@recipe
class SplitRecipe:
    """Who trains and who judges: the dataset's own lists, or whole geographic blocks, never random neighbours."""

    by: Literal["block", "csv"] = opt("block", "geographic blocks, or the dataset's own lists of patch names")
    block_m: float = opt(12_000.0, "side of a block; a block falls into one split as a whole", "m", gt=0)
    val: float = opt(0.1, "share of the blocks held back for validation", ge=0, lt=1)
    test: float = opt(0.1, "share of the blocks held back for the test", ge=0, lt=1)
    seed: int = opt(0, "another seed deals the blocks out anew")
    train_csv: Path | None = opt(None, "list of training patches (first column), with by: csv")
    val_csv: Path | None = opt(None, "list of validation patches")
    test_csv: Path | None = opt(None, "list of test patches")


@recipe
class IngestRecipe:
    """jeoparda ingest: a BigEarthNet v1 archive becomes a sharded HDF5 store at native resolution."""

    archive: Path = opt(REQUIRED, "folder with one folder a patch")
    store: Path = opt(REQUIRED, "folder to make; an unfinished one is taken up where it stopped")
    source: Literal["bigearthnet-v1"] = opt("bigearthnet-v1", "layout of the archive")
    nomenclature: Literal["bigearthnet-43", "bigearthnet-19"] = opt(
        "bigearthnet-43", "label set; 19 drops patches that it leaves without a label"
    )
    split: SplitRecipe = opt(SplitRecipe, "training, validation and test")
    patches_per_shard: int = opt(512, "patches in a shard file (512 Sentinel-2 patches are 84 MB)", gt=0)
    strict: bool = opt(False, "stop with exit code 1 at a patch that cannot be read, instead of leaving it out")
    workers: int = opt(0, "processes; 0: one a core", ge=0)


def run(r: IngestRecipe, say: Callable[[str], None] = print) -> StoreInfo:
    """Make the store. Rejected patches get one line each through `say` and stand in store.json.

    Raises ArchiveError for an archive that is none, and in strict mode for the first rejected patches.
    """
    plan, rejected, left_out = _plan(r)
    _report_rejected(r, rejected, say)
    if not plan:
        raise ArchiveError(f"{r.archive}: none of its {len(rejected) + sum(left_out.values())} patches can be used")
    r.store.mkdir(parents=True, exist_ok=True)
    tasks = [
        (number, [plan[i] for i in part])
        for number, part in enumerate(partition.shards(len(plan), r.patches_per_shard))
    ]
    shards = list(track(_make(r, tasks), "ingest", "shards", len(tasks)))
    late = [tuple(row) for s in shards for row in s.summary["rejected"]]
    _report_rejected(r, late, say)
    if len(late) == len(plan):
        raise ArchiveError(f"{r.archive}: none of its {len(plan) + len(rejected)} patches can be used")
    classes = nomenclature(r.nomenclature)
    info = finalise(
        r.store,
        shards,
        bigearthnet.SENSOR.name,
        bigearthnet.GROUPS,
        classes.name,
        classes.classes,
        rejected,
        _identity(r),
        __version__,
    )
    splits = ", ".join(f"{k} {v}" for k, v in info.splits.items())
    say(f"{r.store}: {info.patches} patches ({splits}) in {len(info.shards)} shards; {len(info.rejected)} rejected")
    if r.split.by == "block":
        for split, share in (("val", r.split.val), ("test", r.split.test)):
            if share > 0 and not info.splits[split]:
                say(
                    f"{r.store}: no block fell into {split}: too few blocks of {r.split.block_m:g} m for a share of "
                    f"{share:g}; take a smaller split.block_m, larger shares, or another split.seed"
                )
    for reason, n in left_out.items():
        say(f"{r.store}: {n} patches left out: {reason}")
    return info


def _identity(r: IngestRecipe) -> dict[str, Any]:
    """The part of the recipe that decides what the store holds."""
    d = as_dict(r)
    del d["workers"], d["strict"], d["store"]
    return d


def _report_rejected(r: IngestRecipe, rejected: list[tuple[str, str]], say: Callable[[str], None]) -> None:
    for _, reason in rejected:
        say(f"rejected: {reason}")
    if rejected and r.strict:
        raise ArchiveError(f"{len(rejected)} patches rejected, and strict is set; mend the archive or set strict=false")


def _plan(r: IngestRecipe) -> tuple[list[tuple[Planned, str]], list[tuple[str, str]], Counter[str]]:
    """(patch, split) of all that will be read, in store order; (id, reason) of the rejected; counts left out."""
    classes = nomenclature(r.nomenclature)
    split_of = _splitter(r.split)
    plan, rejected, left_out = [], [], Counter[str]()
    for name in track(bigearthnet.patch_folders(r.archive), "plan", "patches"):
        try:
            patch = bigearthnet.plan_patch(r.archive, name, classes)
        except PatchError as e:
            rejected.append((name, str(e)))
            continue
        split = split_of(patch)
        if not patch.classes:
            left_out[f"no label in {classes.name}"] += 1
        elif split is None:
            left_out["in no split list"] += 1
        else:
            plan.append((patch, split))
    return plan, rejected, left_out


def _splitter(s: SplitRecipe) -> Callable[[Planned], str | None]:
    if s.by == "csv":
        lists = {"train": s.train_csv, "val": s.val_csv, "test": s.test_csv}
        if not s.train_csv:
            raise RecipeError("split.by = csv needs split.train_csv (and val_csv, test_csv)")
        split_of: dict[str, str] = {}
        for split, path in lists.items():
            for name in _names(path) if path else ():
                if split_of.setdefault(name, split) != split:
                    raise RecipeError(f"{path}: patch {name} stands in the {split_of[name]} list too")
        return lambda patch: split_of.get(patch.id)
    if s.val + s.test >= 1:
        raise RecipeError(f"split.val + split.test = {s.val + s.test}: nothing is left to train on")
    return lambda patch: _block_split(s, patch)


def _names(path: Path) -> list[str]:
    try:
        with open(path, newline="") as f:
            return [row[0].strip() for row in csv.reader(f) if row and row[0].strip()]
    except OSError as e:
        raise RecipeError(f"{path}: cannot read the split list: {e.strerror}") from e


def _block_split(s: SplitRecipe, patch: Planned) -> str:
    """The split of a patch by its block alone, so that an archive may grow without patches changing sides."""
    block = f"{s.seed}/{patch.crs}/{patch.ulx // s.block_m:.0f}/{patch.uly // s.block_m:.0f}"
    u = int.from_bytes(hashlib.sha256(block.encode()).digest()[:8], "big") / 2**64
    return "val" if u < s.val else "test" if u < s.val + s.test else "train"


def _make(r: IngestRecipe, tasks: list[tuple[int, list[tuple[Planned, str]]]]) -> Iterator[Shard]:
    workers = min(r.workers or os.cpu_count() or 1, len(tasks))
    if workers == 1:
        yield from (_make_shard(r, *task) for task in tasks)
        return
    # spawn: a fork would copy locks that GDAL's or MPI's threads hold
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_make_shard, r, *task) for task in tasks]):
            yield done.result()


def _make_shard(r: IngestRecipe, number: int, part: list[tuple[Planned, str]]) -> Shard:
    digest = hashlib.sha256(
        json.dumps([_identity(r) | {"archive": ""}, [(asdict(p) | {"folder": ""}, s) for p, s in part]]).encode()
    ).hexdigest()
    return write_shard(
        r.store,
        number,
        digest,
        bigearthnet.GROUPS,
        len(nomenclature(r.nomenclature).classes),
        (_read(patch, split) for patch, split in part),
    )


def _read(patch: Planned, split: str) -> tuple[PatchRecord, dict[str, np.ndarray], list[int]] | tuple[str, str]:
    try:
        arrays = bigearthnet.read_patch(patch)
    except PatchError as e:
        return patch.id, str(e)
    pixel = bigearthnet.SENSOR.finest_m
    record = PatchRecord(
        id=patch.id,
        source=patch.id,
        crs=patch.crs,
        transform=(pixel, 0.0, patch.ulx, 0.0, -pixel, patch.uly),
        date=patch.date,
        country="",
        split=split,
        valid_fraction=float((arrays["10m"] > 0).all(0).mean()),
    )
    return record, arrays, list(patch.classes)
