"""A store's upkeep: verify, repair, statistics. Damaged patches are read again from the archive, and nothing else is.

A mended shard has to have the checksum that the whole one had, or it does not take its place.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda.config import check
from jeoparda.errors import StoreError
from jeoparda.ingest import _ranges, finalise, payloads, row
from jeoparda.ingest import plan as plans
from jeoparda.ingest.recipe import IngestRecipe, source_of
from jeoparda.ingest.source import Patch, Planned
from jeoparda.progress import track
from jeoparda.store import (
    Band,
    Damage,
    StoreInfo,
    damaged,
    labels_of,
    read_records,
    shard_path,
    shard_sums,
    statistics_of,
    write_shard,
)
from jeoparda.workers import Workers, workers

_SCRATCH = ".repair"  # in the store: a rename within one filesystem is atomic


def verify(store: Path, count: int = 0) -> list[Damage] | None:
    """Every shard, and the plan, that is not byte for byte as it was written. None on ranks that only worked for
    rank 0. StoreError where store.json is damaged, by which the others are judged."""
    info = StoreInfo.read(store)
    with workers(count) as w:
        return [*_plan_damage(store), *_damaged(store, info, w)] if w else None


def _plan_damage(store: Path) -> list[Damage]:
    try:
        plans.check(store)
    except StoreError as e:
        return [Damage(-1, str(plans.path_of(store)), str(e).partition(": ")[2], ())]
    return []


def _damaged(store: Path, info: StoreInfo, w: Workers) -> list[Damage]:
    tasks = ((store, info, n) for n in range(len(info.shards)))
    found = track(w.map(damaged, tasks), "verify", "shards", len(info.shards))
    return sorted((d for d in found if d), key=lambda d: d.number)


def repair(store: Path, archive: Path | None = None, count: int = 0, say: Callable[[str], None] = print) -> int:
    """Mend what is damaged and return the number of patches read again. `archive`: where it is now, if it moved.

    StoreError names the shards that the archive no longer gives; they are left as they were.
    """
    r = _recipe(store, archive, count)
    for damage in _plan_damage(store):
        say(f"damaged: {damage}; planned again from {r.archive}")
        with workers(count) as w:
            if w:
                plans.make(r, w, say)
    try:
        info = StoreInfo.read(store)
    except StoreError as e:
        say(f"{e}; written again from the shards")
        finalise(r, say)
        info = StoreInfo.read(store)
    with workers(count) as w:
        return _repair(r, info, w, say) if w else 0


def _repair(r: IngestRecipe, info: StoreInfo, w: Workers, say: Callable[[str], None]) -> int:
    plan = plans.read(r.store)
    damages = {d.number: d for d in _damaged(r.store, info, w)}
    for damage in damages.values():
        say(f"damaged: {damage}")
    work = w.map(_mend, ((r, info, damages[n], payload) for n, payload in payloads(r, plan, damages)))
    done = list(track(work, "repair", "shards", len(damages)))
    shutil.rmtree(r.store / _SCRATCH, ignore_errors=True)
    if failed := sorted(n for n, patches in done if patches is None):
        raise StoreError(
            f"{r.store}: shards {_ranges(failed)} could not be mended, {r.archive} no longer gives what they held; "
            "name the archive as it was with --archive, or ingest what is there into another store"
        )
    patches = sum(n for _, n in done if n)
    say(
        f"{r.store}: {len(done)} shards mended, {patches} patches read again" if done else f"{r.store}: nothing to mend"
    )
    return patches


def statistics(store: Path, count: int = 0) -> tuple[dict[str, Band], bool] | None:
    """Per-band statistics of the training split, computed again from the pixels, and whether store.json says the
    same. None on ranks that only worked for rank 0."""
    info = StoreInfo.read(store)
    with workers(count) as w:
        if w is None:
            return None
        tasks = ((store, info, n) for n in range(len(info.shards)))
        parts = list(track(w.map(_sums, tasks), "stats", "shards", len(info.shards)))
    parts.sort(key=lambda part: part[0])  # floating-point sums depend on the order
    found = {b: statistics_of([sums[b] for _, sums in parts]) for b in info.statistics}
    return found, found == info.statistics


def _sums(store: Path, info: StoreInfo, number: int) -> tuple[int, dict[str, list[Any]]]:
    return number, shard_sums(store, info, number).summary()["bands"]


def _recipe(store: Path, archive: Path | None, count: int) -> IngestRecipe:
    """The recipe that the store was made by, from whichever of its files can tell."""
    try:
        recipe = StoreInfo.read(store).recipe
    except StoreError:
        recipe = plans.read(store).recipe
    given = recipe | {"store": str(store), "workers": count} | ({"archive": str(archive)} if archive else {})
    return check(IngestRecipe, given, f"{store}: its recipe")


def _mend(r: IngestRecipe, info: StoreInfo, damage: Damage, payload: Any) -> tuple[int, int | None]:
    """(shard number, patches read again), None where the archive does not give them any more."""
    whole = info.shards[damage.number]
    everything = tuple(range(whole.patches))
    # records first, each by its checksum; then all of them: a checksum itself may have been hit
    for again in dict.fromkeys((damage.patches, everything)):
        made = _remake(r, info, damage.number, set(again), payload)
        if made == whole.sha256:
            os.replace(shard_path(r.store / _SCRATCH, damage.number), shard_path(r.store, damage.number))
            return damage.number, len(again)
    return damage.number, None


def _remake(r: IngestRecipe, info: StoreInfo, number: int, again: set[int], payload: Any) -> str:
    """Write the shard anew, from its own records but for those of `again`, and return its checksum."""
    plan = plans.read(r.store)
    planned = plan.shard(number)
    rejected = {x.id: x for x in info.rejected[len(plan.rejected) :]}  # the plan's own came into no shard
    shard, path = info.shards[number], shard_path(r.store, number)
    there = read_records(path, shard.offset, shard.patches, info.layout.dtype()) if path.exists() else ()
    labels = labels_of(path)
    if labels is not None and labels.shape != (shard.patches, len(info.classes)):
        labels = None
    kept = [p for p in planned if p.id not in rejected]
    wanted = [p for i, p in enumerate(kept) if i in again or i >= len(there)]
    source, section = source_of(r)
    fresh = iter(source.read(r.archive, section, plan.contents, wanted, payload) if wanted else ())
    names = {p.id for p in wanted}

    def rows() -> Iterator[Any]:
        place = 0
        for p in planned:
            if p.id in rejected:
                yield rejected[p.id]
                continue
            got = next(fresh) if p.id in names else _stored(there[place], p, None if labels is None else labels[place])
            place += 1
            yield row(plan.contents, p, got)

    return write_shard(r.store / _SCRATCH, number, plan.digest(number), plan.contents, rows(), len(planned)).info.sha256


def _stored(record: np.ndarray, p: Planned, labels: np.ndarray | None) -> Patch:
    """A patch as the shard has it. Its classes are in the plan too, for most sources."""
    classes = p.classes if labels is None else tuple(np.flatnonzero(labels).tolist())
    return Patch({name: record[name] for name in record.dtype.names or ()}, classes)
