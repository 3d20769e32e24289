"""A store's upkeep: verify, repair, statistics. Damaged patches are read again from the archive, and nothing else is.

A mended shard has to have the checksum that the whole one had, or it does not take its place.
"""

import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda.config import check
from jeoparda.errors import StoreError
from jeoparda.files import sync
from jeoparda.ingest import finalise_by, payloads, row
from jeoparda.ingest import plan as plans
from jeoparda.ingest.recipe import IngestRecipe, source_of
from jeoparda.ingest.source import Patch, Planned, Source
from jeoparda.partition import spans
from jeoparda.progress import track
from jeoparda.raster import session
from jeoparda.store import (
    Band,
    Contents,
    Damage,
    Reject,
    ShardInfo,
    StoreInfo,
    codec_version,
    damaged,
    labels_of,
    salvaged,
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
    with workers(count) as w:  # rank 0 alone looks at the store: the others must not see it change
        if w is None:
            return None
        info = StoreInfo.read(store)
        return [*_plan_damage(store, info), *_damaged(store, info, w)]


def _plan_damage(store: Path, info: StoreInfo | None) -> list[Damage]:
    """As shard -1. `info`: None where store.json cannot be read."""
    try:
        found = plans.check(store)
        if info and [s.plan for s in info.shards] != [digest for *_, digest in found.shards]:
            raise StoreError("plan: is not the one that the shards were made by")
    except StoreError as e:
        return [Damage(-1, str(plans.path_of(store)), str(e).partition(": ")[2], ())]
    return []


def _damaged(store: Path, info: StoreInfo, w: Workers) -> list[Damage]:
    tasks = ((store, info.layout, shard, n, info.compression) for n, shard in enumerate(info.shards))
    found = track(w.map(damaged, tasks), "verify", "shards", len(info.shards))
    return sorted((d for d in found if d), key=lambda d: d.number)


def repair(store: Path, archive: Path | None = None, count: int = 0, say: Callable[[str], None] = print) -> int:
    """Mend what is damaged and return the number of patches read again. `archive`: where it is now, if it moved.

    StoreError names the shards that the archive no longer gives; they are left as they were.
    """
    with workers(count) as w:
        if w is None:
            return 0
        r = _recipe(store, archive, count)
        try:
            info = StoreInfo.read(store)
        except StoreError as e:
            say(f"{e}; written again from the shards")
            info = None
        for damage in _plan_damage(store, info):
            say(f"damaged: {damage}; planned again from {r.archive}")
            plans.make(r, w, say, [s.plan for s in info.shards] if info else ())
        return _repair(r, info or finalise_by(r, w, say), w, say)


def _repair(r: IngestRecipe, info: StoreInfo, w: Workers, say: Callable[[str], None]) -> int:
    plan = plans.read(r.store)
    damages = {d.number: d for d in _damaged(r.store, info, w)}
    for damage in damages.values():
        say(f"damaged: {damage}")
    late = {x.id: x for x in info.rejected[info.rejected_by_plan :]}  # those of the plan came into no shard
    rejected = {n: [late[p.id] for p in plan.shard(n) if p.id in late] for n in damages}
    tasks = ((r, info.shards[n], rejected[n], damages[n], payload) for n, payload in payloads(r, plan, damages))
    try:
        done = list(track(w.map(_mend, tasks, 1), "repair", "shards", len(damages)))
    finally:
        shutil.rmtree(r.store / _SCRATCH, ignore_errors=True)
    if failed := sorted(n for n, patches in done if patches is None):
        codec = "" if r.compression == "none" else f" or another version than {codec_version()} made them;"
        raise StoreError(
            f"{r.store}: shards {spans(failed)} could not be mended, {r.archive} no longer gives what they held;"
            f"{codec} name the archive as it was with --archive, or ingest what is there into another store"
        )
    patches = sum(n for _, n in done if n)
    say(
        f"{r.store}: {len(done)} shards mended, {patches} patches read again" if done else f"{r.store}: nothing to mend"
    )
    return patches


def statistics(store: Path, count: int = 0) -> tuple[dict[str, Band], bool] | None:
    """Per-band statistics of the training split, computed again from the pixels, and whether store.json says the
    same. None on ranks that only worked for rank 0."""
    with workers(count) as w:
        if w is None:
            return None
        info = StoreInfo.read(store)
        contents = Contents(**{name: getattr(info, name) for name in Contents.__dataclass_fields__})
        tasks = ((store, contents, shard, n) for n, shard in enumerate(info.shards))
        parts = list(track(w.map(_sums, tasks), "stats", "shards", len(info.shards)))
    parts.sort(key=lambda part: part[0])  # floating-point sums depend on the order
    found = {b: statistics_of([sums[b] for _, sums in parts]) for b in info.statistics}
    return found, found == info.statistics


def _sums(store: Path, contents: Contents, shard: ShardInfo, number: int) -> tuple[int, dict[str, list[Any]]]:
    return number, shard_sums(store, contents, shard).summary()["bands"]


def _recipe(store: Path, archive: Path | None, count: int) -> IngestRecipe:
    """The recipe that the store was made by, from whichever of its files can tell."""
    try:
        recipe = StoreInfo.read(store).recipe
    except StoreError:
        recipe = plans.read(store).recipe
    given = recipe | {"store": str(store), "workers": count} | ({"archive": str(archive)} if archive else {})
    return check(IngestRecipe, given, f"{store}: its recipe")


def _mend(
    r: IngestRecipe, shard: ShardInfo, rejected: list[Reject], damage: Damage, payload: Any
) -> tuple[int, int | None]:
    """(shard number, patches read again), None where the archive does not give them any more."""
    everything = tuple(range(shard.patches))
    # the damaged records first; then all of them: a checksum itself may have been hit
    for again in dict.fromkeys((damage.patches, everything)):
        if _remake(r, shard, rejected, damage.number, set(again), payload) == shard.sha256:
            mended = shard_path(r.store, damage.number)
            os.replace(shard_path(r.store / _SCRATCH, damage.number), mended)
            sync(mended.parent)
            return damage.number, len(again)
    return damage.number, None


def _remake(
    r: IngestRecipe, shard: ShardInfo, rejected: list[Reject], number: int, again: set[int], payload: Any
) -> str:
    """Write the shard anew, from its own records but for those of `again`, and return its checksum."""
    plan = plans.read(r.store)
    planned, gone = plan.shard(number), {x.id: x for x in rejected}
    there = _records(shard_path(r.store, number), shard, plan.contents.layout.dtype(), r.compression != "none")
    labels = labels_of(shard_path(r.store, number))
    if labels is not None and labels.shape != (shard.patches, len(plan.contents.classes)):
        labels = None
    kept = [p for p in planned if p.id not in gone]
    wanted = [p for i, p in enumerate(kept) if i in again or there[i] is None]
    source, section = source_of(r)
    names = {p.id for p in wanted}
    with session(), closing(_read(source, r, section, plan, wanted, payload)) as fresh:

        def rows() -> Iterator[Any]:
            place = 0
            for p in planned:
                if p.id in gone:
                    yield gone[p.id]
                    continue
                record, flags = there[place], None if labels is None else labels[place]
                place += 1
                got = next(fresh) if record is None or p.id in names else _stored(record, p, flags)
                yield row(plan.contents, p, got)

        scratch, digest = r.store / _SCRATCH, plan.digest(number)
        made = write_shard(scratch, number, digest, plan.contents, rows(), len(planned), r.compression)
        return made.info.sha256


def _read(
    source: Source, r: IngestRecipe, section: Any, plan: plans.Plan, wanted: list[Planned], payload: Any
) -> Generator[Patch | Reject, None, None]:
    """A source is not asked for nothing: its archive may be gone."""
    if wanted:
        yield from source.read(r.archive, section, plan.contents, wanted, payload)


def _records(path: Path, shard: ShardInfo, dtype: np.dtype, compressed: bool) -> Sequence[np.ndarray | None]:
    """The records of a damaged shard, None for those that cannot be read."""
    try:
        return salvaged(path, shard, dtype, compressed)
    except OSError:  # missing, or the disk refuses
        return [None] * shard.patches


def _stored(record: np.ndarray, p: Planned, labels: np.ndarray | None) -> Patch:
    """A patch as the shard has it. Its classes are in the plan too, for most sources."""
    classes = p.classes if labels is None else tuple(np.flatnonzero(labels).tolist())
    return Patch({name: record[name] for name in record.dtype.names or ()}, classes)
