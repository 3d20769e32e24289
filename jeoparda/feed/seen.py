"""Which patches each rank saw, step by step, and the proof that an epoch saw each sample exactly once, or as often as
oversampling asks for.

    RUN/seen/rank-000.jsonl   a line for each step whose batch the rank has trained on:
    {"start":1,"epoch":0,"step":3,"ranks":2,"numbers":[17,4,102]}

start: the run had been started so many times, this one included. epoch, step: counted from 0; where gradients are
accumulated, each part of a step is one. numbers: of the patches in the store, in the order of the batch.

What a crash undid was done again by a later start, from the checkpoint that it went on from. So a step counts as its
last start did it: the last one that began at this step or before. Where each start began is in RUN/journal.jsonl,
in steps of the optimizer.
A line is with the kernel before the next step begins, so it outlives its process; `sync` puts it on the disk before a
checkpoint is written, so no checkpoint holds a step whose line a power cut has taken.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda import targets
from jeoparda.errors import StoreError
from jeoparda.files import room
from jeoparda.journal import JournalError, read
from jeoparda.order import Order, drawn_count, epoch_samples, patch_of, repeats, subset
from jeoparda.store import Store

_NAMED = 5  # patches or steps that a fault names
_NOTHING = np.empty(0, np.int64)


def starts(run: Path) -> list[dict[str, Any]]:
    """What the run's journal says of each of its starts; the first is number 1."""
    return [e for e in read(run / "journal.jsonl") if e["event"] in ("start", "resume")]


class SeenWriter:
    """A rank's journal of what it saw. `start` counts the run's starts, this one included."""

    def __init__(self, run: Path, start: int, rank: int, ranks: int) -> None:
        self._path = run / "seen" / f"rank-{rank:03d}.jsonl"
        self._start, self._ranks = start, ranks
        with room(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, _whole(self._file))

    def write(self, epoch: int, step: int, numbers: list[int]) -> None:
        """To call when the batch has been trained on, and before a checkpoint that holds the step."""
        line = {"start": self._start, "epoch": epoch, "step": step, "ranks": self._ranks, "numbers": numbers}
        raw = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with room(self._path):
            while raw:  # a disk that fills takes a part and says why with the next
                raw = raw[os.write(self._file, raw) :]

    def sync(self) -> None:
        """See all lines on the disk."""
        with room(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _whole(file: int) -> int:
    """Bytes up to the end of the last whole line: what stands behind it was cut short as its writer died."""
    end = os.fstat(file).st_size
    while end:
        first = max(0, end - 65536)
        if (at := os.pread(file, end - first, first).rfind(b"\n")) >= 0:
            return first + at + 1
        end = first
    return 0


# ---- the proof


@dataclass(frozen=True)
class Seen:
    """What an epoch saw.

    epoch: counted from 0. samples: patches of the split that are trained on. steps: up to the last that all ranks have
    done; of: that an epoch has. over: the next epoch began. seen: patches of the split, each counted once. missing,
    too_often, foreign: (n,) numbers of patches that these steps should have seen, or seen more often; that they saw
    more than once and more often than they should; that are not of the split.
    wrong: steps whose patches are not those that the run's seed and order ask for. starts, ranks: that took part.
    """

    epoch: int
    samples: int
    steps: int
    of: int
    over: bool
    seen: int
    missing: np.ndarray
    too_often: np.ndarray
    foreign: np.ndarray
    wrong: tuple[int, ...]
    starts: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def sound(self) -> bool:
        return not (len(self.missing) or len(self.too_often) or len(self.foreign) or self.wrong)

    @property
    def exact(self) -> bool:
        """Each patch of the split as often as was asked for, in the order that was asked for."""
        return self.sound and self.steps == self.of


@dataclass(frozen=True)
class _Asked:
    """What the recipe asks for. numbers: (n,) patches; repeats: (n,) how often an epoch draws each, None: once."""

    order: Order
    numbers: np.ndarray
    repeats: np.ndarray | None

    def steps(self, epoch: int, count: int) -> dict[int, np.ndarray]:
        """Patch numbers of the first steps, over all ranks; none of a step that the epoch does not have."""
        whole = epoch_samples(self.numbers, self.repeats, self.order.seed, epoch)
        steps = range(min(count, self.order.steps))
        batches = self.order.rank_batches(epoch, steps, 0, 1)  # of a single rank: all of each step
        real = {s: patch_of(whole[own]) for s, own in zip(steps, batches, strict=True)}
        return real | dict.fromkeys(range(len(real), count), _NOTHING)


@dataclass(frozen=True)
class _Line:
    """A rank's line of a step. numbers: (n,) int64."""

    start: int
    epoch: int
    step: int
    rank: int
    ranks: int
    numbers: np.ndarray


def store_of(run: Path, moved: Path | None = None) -> Store:
    """The store that a run was trained from. StoreError where it is another by now."""
    last = _starts(run)[-1]
    store = Store(moved or Path(last["store"]))
    if store.digest != last["store_digest"]:
        raise StoreError(f"{store.folder}: is not the store that {run} was trained from; say where that is: --store")
    return store


def prove(run: Path, store: Store, epoch: int | None = None) -> list[Seen]:
    """Every epoch that began, or only `epoch`, counted from 0. JournalError where no journal tells of it."""
    begun = _starts(run)
    asked = _asked(run, begun[-1], store)
    steps = _counted(run, [(b["epoch"], b["step"] * asked.order.parts) for b in begun])
    last = max(steps)
    if epoch is not None and epoch > last:
        raise JournalError(f"{run}: epoch {epoch + 1} has not begun, the last that did is {last + 1}")
    wanted = range(last + 1) if epoch is None else [epoch]
    return [_epoch(e, steps.get(e, {}), e < last, asked) for e in wanted]


def _asked(run: Path, start: dict[str, Any], store: Store) -> _Asked:
    """From the recipe, and not from what training says of its order; which rank has which part does not matter here."""
    r = start["recipe"]
    numbers = np.setdiff1d(store.split("train"), np.array(start.get("left_out", []), np.int64))
    numbers = subset(numbers, r.get("subset", 1.0), r["seed"])
    often = _repeats(run, r, store, numbers)
    count = len(numbers) if often is None else drawn_count(often)
    parts = r.get("accumulate", 1)  # like oversample and labels, younger than some journals
    return _Asked(Order(count, r["batch"], r["seed"], block=r["feed"]["block"], parts=parts), numbers, often)


def _repeats(run: Path, r: dict[str, Any], store: Store, numbers: np.ndarray) -> np.ndarray | None:
    """(n,) how often an epoch draws each of the patches; None: once."""
    if "oversample" not in r or not r["oversample"]["share"]:
        return None
    if r["control"] != "none":
        raise JournalError(
            f"{run}: was drawn by labels that control = {r['control']} had dealt out to other patches, which is no run "
            "to prove; take control = none or oversample.share = 0"
        )
    labels = targets.build(store.info, r["labels"], r["task"]).of(store.labels)
    return repeats(labels[numbers], r["oversample"]["share"], r["oversample"]["most"])


def _starts(run: Path) -> list[dict[str, Any]]:
    found = starts(run)
    if not found:
        raise JournalError(f"{run / 'journal.jsonl'}: tells of no start; give the `run` of a `jeoparda train`")
    return found


Steps = dict[int, list[_Line]]


def _counted(run: Path, begun: list[tuple[int, int]]) -> dict[int, Steps]:
    """The lines that count, by epoch and step. begun: (epoch, step) that each start began at."""
    steps: dict[int, Steps] = defaultdict(lambda: defaultdict(list))
    # by number: rank-1000 comes after rank-999
    for path in sorted((run / "seen").glob("rank-*.jsonl"), key=_rank):
        for line in _lines(path):
            counts = max((n for n, at in enumerate(begun, start=1) if at <= (line.epoch, line.step)), default=0)
            if line.start == counts:
                steps[line.epoch][line.step].append(line)
    if not steps:
        raise JournalError(f"{run}: has no journal of the patches seen; training writes it with feed.journal = true")
    return steps


def _rank(path: Path) -> int:
    return int(path.stem.removeprefix("rank-"))


def _lines(path: Path) -> Iterator[_Line]:
    """A rank's whole lines; one cut short is of a step that did not end. JournalError for one that is damaged."""
    rank = _rank(path)
    with open(path, "rb") as f:
        for number, raw in enumerate(f, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                x = json.loads(raw)
                numbers = np.array(x["numbers"], np.int64)
                yield _Line(int(x["start"]), int(x["epoch"]), int(x["step"]), rank, int(x["ranks"]), numbers)
            except (ValueError, KeyError, TypeError) as e:
                raise JournalError(f"{path}, line {number}: damaged, so it proves nothing; found {raw[:60]!r}") from e


def _epoch(epoch: int, steps: Steps, over: bool, wish: _Asked) -> Seen:
    order, numbers = wish.order, wish.numbers
    # when a run is stopped, some ranks may have done a step more than others: it does not count
    done = 1 + max((s for s, lines in steps.items() if _by_all(lines)), default=-1)
    upto = max(done, order.steps) if over else done
    asked = wish.steps(epoch, upto)
    had = {s: np.concatenate([_NOTHING, *(x.numbers for x in steps.get(s, []))]) for s in asked}
    found, times, wanted = _times(had.values(), asked.values())
    lines = [x for s in asked for x in steps.get(s, [])]
    return Seen(
        epoch=epoch,
        samples=len(numbers),
        steps=upto,
        of=order.steps,
        over=over,
        seen=len(np.intersect1d(found[times > 0], numbers)),
        missing=found[times < wanted],
        too_often=found[times > np.maximum(wanted, 1)],
        foreign=np.setdiff1d(found, numbers),
        wrong=tuple(s for s in asked if not np.array_equal(had[s], asked[s])),
        starts=tuple(dict.fromkeys(x.start for x in lines)),
        ranks=tuple(dict.fromkeys(x.ranks for x in lines)),
    )


def _times(had: Iterable[np.ndarray], asked: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) patches that were seen or asked for, and how often each was."""
    one, other = (np.concatenate([_NOTHING, *x]) for x in (had, asked))
    patches, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    seen, wanted = place[: len(one)], place[len(one) :]
    return patches, np.bincount(seen, minlength=len(patches)), np.bincount(wanted, minlength=len(patches))


def _by_all(lines: list[_Line]) -> bool:
    """Whether every rank has done the step."""
    return {x.rank for x in lines} >= set(range(lines[0].ranks))


# ---- in words


def table(epochs: list[Seen]) -> str:
    """A line an epoch; epochs and steps counted from 1. Where gradients are accumulated a part of a step is a step."""
    head = ("epoch", "samples", "seen", "missing", "too often", "foreign", "wrong steps", "steps", "starts", "ranks")
    rows = [_row(e) for e in epochs]
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows))


def _row(e: Seen) -> tuple[object, ...]:
    took_part = (",".join(map(str, who)) for who in (e.starts, e.ranks))
    amiss = (len(e.missing), len(e.too_often), len(e.foreign), len(e.wrong))
    return (e.epoch + 1, e.samples, e.seen, *amiss, f"{e.steps}/{e.of}", *took_part)


def faults(epochs: list[Seen], store: Store) -> Iterator[str]:
    """A sentence for each thing that is wrong."""
    ids = store.column("id")
    for e in epochs:
        for what, numbers in (
            ("missing, or seen too seldom", e.missing),
            ("seen too often", e.too_often),
            ("not of the split", e.foreign),
        ):
            if len(numbers):
                known = [str(ids[n]) if 0 <= n < len(ids) else f"no patch {n}" for n in numbers[:_NAMED]]
                yield f"epoch {e.epoch + 1}: {what}: {', '.join(known)}{_more(numbers)}"
        if e.wrong:
            steps = ", ".join(str(s + 1) for s in e.wrong[:_NAMED])
            yield f"epoch {e.epoch + 1}: not the patches that seed and order ask for: steps {steps}{_more(e.wrong)}"
        if e.steps < e.of:
            yield f"epoch {e.epoch + 1}: unfinished, {e.steps} of {e.of} steps are done"


def _more(items: Sized) -> str:
    return f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
