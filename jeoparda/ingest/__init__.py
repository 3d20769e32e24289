"""Archives become stores, in three steps that may each be a job of its own.

`init` looks at labels and places and writes the plan: which patch goes to which shard and split. `load` makes
shards, each from its own line of the plan, by whoever is free. `finalise` adds them up. `run` is all three. The
result depends on the archive and the recipe, not on the number of workers, the order, or interruptions.
"""

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jeoparda import __version__, partition
from jeoparda.errors import ArchiveError, RecipeError, StoreError
from jeoparda.ingest import plan as plans
from jeoparda.ingest.plan import Plan
from jeoparda.ingest.recipe import IngestRecipe, identity, source_of
from jeoparda.ingest.source import Patch, Planned
from jeoparda.ingest.split import SplitRecipe
from jeoparda.journal import Journal
from jeoparda.progress import track
from jeoparda.raster import session
from jeoparda.store import (
    Contents,
    PatchRecord,
    Reject,
    Shard,
    StoreInfo,
    finished,
    shard_path,
    valid_of,
    write_shard,
)
from jeoparda.store import finalise as add_up
from jeoparda.workers import AHEAD, Workers, workers

__all__ = ["IngestRecipe", "SplitRecipe", "finalise", "init", "load", "run"]

Say = Callable[[str], None]


def run(r: IngestRecipe, say: Say = print) -> StoreInfo | None:
    """Make the store, or go on making it. None on the ranks that only worked for rank 0.

    Rejected patches get one line each through `say` and stand in rejects.csv and store.json. Raises ArchiveError for
    an archive that is none, and in strict mode for the first rejected patches.
    """
    with workers(r.workers) as w:
        if w is None:
            return None
        plan = plans.make(r, w, say)  # anew at each start: the archive may have been mended since
        shards = _load(r, w, plan, range(len(plan.shards)), say)
        return _finalise(r, plan, shards, say)


def init(r: IngestRecipe, say: Say = print) -> Plan | None:
    """Look at the archive and write the plan."""
    with workers(r.workers) as w:
        if w is None:
            return None
        plan = plans.make(r, w, say)
    say(f"{plan.path}: {plan.patches} patches in {len(plan.shards)} shards, {len(plan.leavings().rejected)} rejected")
    return plan


def load(r: IngestRecipe, part: int, parts: int, say: Say = print) -> list[Shard] | None:
    """Make the shards of part `part` (from 1) of `parts`, in any order, by any job; doing one twice does no harm."""
    if not 1 <= part <= parts:
        raise RecipeError(f"part {part}/{parts}: expected 1/{parts} to {parts}/{parts}")
    with workers(r.workers) as w:
        if w is None:
            return None
        plan = _its_plan(r)
        numbers = partition.share(len(plan.shards), part - 1, parts)
        shards = _load(r, w, plan, numbers, say, f"load-{part}-of-{parts}")
    say(f"{r.store}: part {part}/{parts}, {len(shards)} of {len(plan.shards)} shards are there")
    return shards


def finalise(r: IngestRecipe, say: Say = print) -> StoreInfo | None:
    """Check that every shard is there and as the plan wants it, and write store.json."""
    with workers(r.workers) as w:
        if w is None:
            return None
        return finalise_by(r, w, say)


def finalise_by(r: IngestRecipe, w: Workers, say: Say) -> StoreInfo:
    plan = _its_plan(r)
    tasks = ((r.store, n, plan.digest(n), True) for n in range(len(plan.shards)))
    found = list(track(w.map(_look, tasks), "check", "shards", len(plan.shards)))
    if missing := sorted(n for n, shard in found if shard is None):
        which = partition.spans(missing)
        raise StoreError(
            f"{r.store}: {len(missing)} of {len(plan.shards)} shards are missing or damaged: {which}; "
            "run `jeoparda store load` for their parts again, or for all: what is there is kept"
        )
    return _finalise(r, plan, [shard for _, shard in found if shard], say)


def _its_plan(r: IngestRecipe) -> Plan:
    plan = plans.read(r.store)
    wanted = identity(r)
    if changed := [k for k in {**wanted, **plan.recipe} if k != "archive" and plan.recipe.get(k) != wanted.get(k)]:
        raise RecipeError(
            f"{plan.path}: was made by another recipe ({', '.join(changed)} differ); "
            "run `jeoparda store init` again, or give another `store`"
        )
    return plan


# ---- shards


@dataclass(frozen=True)
class Made:
    """A shard made just now, and what that cost its worker. peak_mb: the most memory that the worker ever held."""

    shard: Shard
    seconds: float
    peak_mb: float


def _load(r: IngestRecipe, w: Workers, plan: Plan, numbers: range, say: Say, name: str = "ingest") -> list[Shard]:
    """The shards of these numbers: those that are there and whole, and the others made now."""
    start = time.monotonic()
    there = [n for n in numbers if shard_path(r.store, n).exists()]
    looked = w.map(_look, ((r.store, n, plan.digest(n), False) for n in there))
    kept = {n: s for n, s in track(looked, "look", "shards", len(there)) if s}
    wanted = [n for n in numbers if n not in kept]
    if wanted:  # it would tell of shards that are about to change
        (r.store / "store.json").unlink(missing_ok=True)
    journal = Journal(r.store / "journal" / f"{name}.jsonl")
    made: list[Made] = []
    source, _ = source_of(r)
    ahead = 1 if hasattr(source, "payloads") else AHEAD  # a payload is as large as a shard
    work = w.map(_make, ((r, n, payload) for n, payload in payloads(r, plan, wanted)), ahead)
    total = sum(plan.shards[n][2] for n in wanted)
    for m in track(work, "ingest", "patches", total, lambda m: plan.shards[m.shard.number][2]):
        made.append(m)
        plans.tell((Reject(**x) for x in m.shard.summary["rejected"]), say)
        journal.append("shard", number=m.shard.number, **_figures(plan, [m]), worker_s=round(m.seconds, 3))
    if made:
        seconds = time.monotonic() - start
        figures = _figures(plan, made)
        rates = {f"{key}_per_s": round(figures[key] / seconds, 1) for key in ("patches", "bytes")}
        shards = {"shards": len(made), "shards_kept": len(kept)}
        journal.append("load", workers=w.count, **shards, **figures, seconds=round(seconds, 3), **rates)
    return [*kept.values(), *(m.shard for m in made)]


def _figures(plan: Plan, made: list[Made]) -> dict[str, Any]:
    patches = sum(m.shard.info.patches for m in made)
    size = patches * plan.contents.layout.dtype().itemsize
    return {"patches": patches, "bytes": size, "worker_peak_mb": round(max(m.peak_mb for m in made))}


def payloads(r: IngestRecipe, plan: Plan, wanted: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """(shard number, what its worker cannot fetch by itself): the members of a tar, which is read once, in order."""
    source, section = source_of(r)
    if not hasattr(source, "payloads"):
        yield from ((n, None) for n in wanted)
        return
    yield from source.payloads(r.archive, section, plan.contents, ((n, plan.shard(n)) for n in wanted))


def _look(store: Path, number: int, digest: str, with_rejects: bool) -> tuple[int, Shard | None]:
    return number, finished(store, number, digest, with_rejects)


def _make(r: IngestRecipe, number: int, payload: Any) -> Made:
    """Make one shard, in any worker."""
    start = time.monotonic()
    plan = plans.read(r.store)
    patches = plan.shard(number)
    source, section = source_of(r)
    with session():
        found = source.read(r.archive, section, plan.contents, patches, payload)
        rows = (row(plan.contents, p, got) for p, got in zip(patches, found, strict=True))
        shard = write_shard(r.store, number, plan.digest(number), plan.contents, rows, len(patches), r.compression)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB, on Linux
    return Made(shard, time.monotonic() - start, peak)


def row(contents: Contents, p: Planned, got: Patch | Reject) -> tuple[PatchRecord, dict[str, Any], Any] | Reject:
    """A patch as the store's writer takes it."""
    if isinstance(got, Reject):
        return got
    valid = valid_of(contents, got.arrays)
    fraction = 1.0 if valid is None else float(valid.mean())
    record = PatchRecord(p.id, p.source, p.crs, p.transform, p.date, p.country, p.split, fraction, p.dates)
    return record, got.arrays, got.classes


# ---- the end


def _finalise(r: IngestRecipe, plan: Plan, shards: list[Shard], say: Say) -> StoreInfo:
    if not sum(s.info.patches for s in shards):
        raise ArchiveError(f"{r.archive}: none of its patches can be used, all {plan.patches} planned are rejected")
    count = sum(x["fault"] for s in shards for x in s.summary["rejected"])
    if r.strict and count:
        raise ArchiveError(f"{count} rejected, and strict is set; mend the archive or set strict=false")
    rest = plan.leavings()
    about = rest.rejected, rest.left_out, plan.recipe, __version__, r.compression
    info = add_up(r.store, shards, plan.contents, *about)
    splits = ", ".join(f"{k} {v}" for k, v in info.splits.items())
    rejected = len(info.faults)
    say(f"{r.store}: {info.patches} patches ({splits}) in {len(info.shards)} shards; {rejected} rejected")
    if not info.splits["train"]:
        say(f"{r.store}: no patch is in train, so there are no band statistics, and nothing can be trained on it")
    for note in rest.notes:
        say(f"{r.store}: {note}")
    for reason, n in info.not_wanted.items():
        say(f"{r.store}: {n} patches left out: {reason}")
    return info
