"""The plan: which patch goes to which shard and split, made once by `init`, read by every worker.

STORE/plan.jsonl holds one line a shard, a list of its patches; then a line of what was rejected and left out; and
last a line that says where each of these begins. So a worker of a job array reads its own shards' lines only, and
no worker's memory grows with the archive.
"""

import hashlib
import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pydantic

from jeoparda.errors import ArchiveError, RecipeError, StoreError
from jeoparda.files import room, whole
from jeoparda.ingest import split
from jeoparda.ingest.recipe import IngestRecipe, identity, source_of
from jeoparda.ingest.source import Found, LeftOut, Note, Planned
from jeoparda.progress import track
from jeoparda.store import DTYPES, SPLITS, Contents, Reject, check_compression, of_another_plan, plan_of
from jeoparda.store.format import VERSION as FORMAT
from jeoparda.workers import Workers

VERSION = 1
_MOST, _SHARD_BYTES = 512, 128_000_000  # of a shard, unless the recipe says how many patches: a worker holds two
_AT_ONCE = 256  # units a task, where the source does not say: long enough to hide the cost of handing it over


@dataclass(frozen=True)
class Plan:
    """shards: (byte, bytes, patches, digest) of each shard's line. `digest` is of all that decides a shard's content
    but the pixels: its patches, the recipe, the version."""

    path: Path
    recipe: dict[str, Any]
    contents: Contents
    patches: int
    shards: tuple[tuple[int, int, int, str], ...]
    rest: tuple[int, int]

    def digest(self, number: int) -> str:
        return self.shards[number][3]

    def shard(self, number: int) -> list[Planned]:
        """The patches of a shard, in order; `split` is the store's. StoreError where the line is damaged."""
        at, size, _, digest = self.shards[number]
        with open(self.path, "rb") as f:
            f.seek(at)
            line = f.read(size)
        if _digest(self.recipe, self.contents, line) != digest:
            raise StoreError(f"{self.path}: the line of shard {number} is damaged; `jeoparda store repair` mends it")
        return [Planned(**{**p, **{k: tuple(p[k]) for k in _TUPLES}}) for p in json.loads(line)]

    def leavings(self) -> "Leavings":
        """What came into no shard. Read when it is wanted: a worker has no use for it, and it may be long."""
        at, size = self.rest
        try:
            with open(self.path, "rb") as f:
                f.seek(at)
                return pydantic.TypeAdapter(Leavings).validate_python(_checked(f.read(size)))
        except (ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{self.path}: its list of rejects is damaged; `jeoparda store repair` mends it") from e


@dataclass(frozen=True)
class Leavings:
    """rejected: what cannot be used. left_out: reason -> patches that the recipe does not want. notes: what the user
    should know."""

    rejected: tuple[Reject, ...]
    left_out: dict[str, int]
    notes: tuple[str, ...]


def check(store: Path) -> Plan:
    """The plan, each line of it looked at. StoreError where one is damaged, or there is none."""
    found = read(store)
    found.leavings()
    for number in range(len(found.shards)):
        found.shard(number)
    return found


_TUPLES = ("transform", "classes", "dates")
_TRAILER = 21  # the last line: the byte where the index, the line before it, begins


def path_of(store: Path) -> Path:
    return store / "plan.jsonl"


def read(store: Path) -> Plan:
    """The plan of a store. StoreError where there is none, or it is damaged."""
    path = path_of(store)
    try:
        stat = path.stat()
    except FileNotFoundError as e:
        raise StoreError(f"{path}: missing; `jeoparda store init` makes it") from e
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)  # a worker asks for it at each shard
def _read(path: Path, _changed: int, size: int) -> Plan:
    try:
        with open(path, "rb") as f:
            f.seek(size - _TRAILER)
            begin = int(f.read())
            f.seek(begin)
            index = _checked(f.read(size - _TRAILER - begin))
        return pydantic.TypeAdapter(Plan).validate_python({"path": path, **index})
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise StoreError(f"{path}: damaged ({str(e).splitlines()[0]}); `jeoparda store repair` mends it") from e


def _line(value: Any) -> bytes:
    """A line that carries its own checksum."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "of": value}, ensure_ascii=False).encode()


def _checked(line: bytes) -> Any:
    outer = json.loads(line)
    if json.loads(_line(outer["of"]))["sha256"] != outer["sha256"]:
        raise ValueError("a line differs from its checksum")
    return outer["of"]


def _digest(recipe: dict[str, Any], contents: Contents, line: bytes) -> str:
    # where the archive and lists of splits lie is of no concern: the line has each patch's split
    given = {k: v for k, v in recipe.items() if k not in ("archive", "split")}
    about = json.dumps([VERSION, FORMAT, given, asdict(contents)], sort_keys=True)
    return hashlib.sha256(about.encode() + line).hexdigest()


def make(r: IngestRecipe, w: Workers, say: Callable[[str], None] = print, expected: Sequence[str] = ()) -> Plan:
    """Look at the whole archive and write the plan. ArchiveError where no patch of it can be used, or, in strict mode,
    where one cannot. `expected`: the digests of its shards, where they are known; StoreError where others come out."""
    split.check(r.split)
    if r.store.resolve().is_relative_to(r.archive.resolve()):
        raise RecipeError(f"store = {r.store}: lies in the archive, which would change by it; give a folder elsewhere")
    source, section = source_of(r)
    described = asdict(source.describe(r.archive, section))
    contents = pydantic.TypeAdapter(Contents).validate_python(described)  # as it will be read back: 10 becomes 10.0
    _check_types(r, contents)
    check_compression(r.compression)
    with room(r.store):
        r.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=r.store) as spool:
            _plan(r, contents, w, spool, say, expected)
    return read(r.store)


def _check_types(r: IngestRecipe, contents: Contents) -> None:
    for name, (kind, _) in contents.layout.fields().items():
        if kind not in DTYPES:
            raise ArchiveError(
                f"{r.archive}: its pixels ({name}) are {kind}; expected one of {', '.join(DTYPES)}: convert the files, "
                "as with gdal_translate -ot Float32"
            )


def _plan(
    r: IngestRecipe,
    contents: Contents,
    w: Workers,
    spool: IO[bytes],
    say: Callable[[str], None],
    expected: Sequence[str],
) -> None:
    columns, rejected, left_out, notes = _spool(r, contents, w, spool)
    tell(rejected, say)
    if r.strict and (faults := sum(x.fault for x in rejected)):
        raise ArchiveError(f"{faults} rejected, and strict is set; mend the archive or set strict=false")
    assigned = split.assign(r.split, columns, contents.classes)
    for reason, n in zip(assigned.reasons, np.bincount(assigned.reason[assigned.split < 0]), strict=False):
        left_out[reason] += int(n)
    if not (assigned.split >= 0).any():
        why = [f"{len(rejected)} rejected", *(f"{n} left out: {reason}" for reason, n in left_out.items() if n)]
        raise ArchiveError(f"{r.archive}: none of its patches can be used: {'; '.join(why)}")
    spool.seek(0)
    chosen = (_with_split(line, s) for line, s in zip(spool, assigned.split.tolist(), strict=True) if s >= 0)
    rest = {
        "rejected": [asdict(x) for x in rejected],
        "left_out": {reason: n for reason, n in sorted(left_out.items()) if n},
        "notes": [*notes, *assigned.notes],
    }
    _write(r, contents, chosen, rest, expected)


def tell(rejected: Iterable[Reject], say: Callable[[str], None], most: int = 20) -> None:
    """One line a faulty patch, up to `most`."""
    left = (x for x in rejected if x.fault)
    for reject in islice(left, most):
        say(f"rejected: {reject}")
    if more := sum(1 for _ in left):
        say(f"rejected: {more} more, all of them in rejects.csv of the store")


def _spool(
    r: IngestRecipe, contents: Contents, w: Workers, spool: IO[bytes]
) -> tuple[split.Columns, list[Reject], Counter[str], list[str]]:
    """Every usable patch as a line of `spool`, and as compact columns to deal out splits by."""
    builder, rejected, left_out = split.ColumnsBuilder(contents.layout.size_px), list[Reject](), Counter[str]()
    seen: dict[str, str] = {}
    notes: dict[str, None] = {}
    for found in track(_planned(r, contents, w), "plan", "patches"):
        if isinstance(found, Reject):
            rejected.append(_printable(found))
        elif isinstance(found, LeftOut):
            left_out[found.reason] += 1
        elif isinstance(found, Note):
            notes.setdefault(found.text)
        elif found.id in seen:
            twice = f"patch id {found.id!r} is there twice", f"only {seen[found.id]}"
            rejected.append(_printable(Reject(found.id, found.source, *twice)))
        else:
            try:
                line = json.dumps(asdict(found), ensure_ascii=False).encode()
            except UnicodeEncodeError:
                fault = Reject(found.id, found.source, "its name is not UTF-8", "a name that is: rename it")
                rejected.append(_printable(fault))
                continue
            seen[found.id] = found.source
            builder.append(found)
            spool.write(line + b"\n")
    return builder.finish(), rejected, left_out, list(notes)


def _printable(x: Reject) -> Reject:
    """With the bytes of a file name that are not UTF-8 as \\udc.."""
    name, file, reason = (t.encode(errors="backslashreplace").decode() for t in (x.id, x.file, x.reason))
    return Reject(name, file, reason, x.expected, x.fault)


def _planned(r: IngestRecipe, contents: Contents, w: Workers) -> Iterator[Found]:
    """All that the workers found, in the archive's order."""
    source, section = source_of(r)
    units = source.units(r.archive, section, contents)
    at_once = getattr(source, "AT_ONCE", _AT_ONCE)
    chunks = iter(lambda: list(islice(units, at_once)), [])
    waiting: list[tuple[int, list[Found]]] = []
    due = 0
    for done in w.map(_plan_chunk, ((r, contents, i, chunk) for i, chunk in enumerate(chunks))):
        heapq.heappush(waiting, done)
        while waiting and waiting[0][0] == due:
            yield from heapq.heappop(waiting)[1]
            due += 1


def _plan_chunk(r: IngestRecipe, contents: Contents, number: int, units: list[Any]) -> tuple[int, list[Found]]:
    source, section = source_of(r)
    return number, [found for unit in units for found in source.plan(r.archive, section, contents, unit)]


def _with_split(line: bytes, number: int) -> dict[str, Any]:
    return json.loads(line) | {"split": SPLITS[number]}


def _refuse_other(store: Path, digests: list[str], expected: Sequence[str]) -> None:
    """StoreError where shards are there that another plan made: they would be of no use, and neither would its plan."""
    if expected and list(expected) != digests:
        raise StoreError(
            f"{path_of(store)}: the archive no longer gives the plan that the store was made by; name the archive as "
            "it was with --archive"
        )
    for path in sorted((store / "shards").glob("[0-9]*.h5")):
        made_by = plan_of(path)
        if made_by and made_by not in digests[int(path.stem) : int(path.stem) + 1]:
            raise of_another_plan(path)


def _write(
    r: IngestRecipe, contents: Contents, chosen: Iterator[dict[str, Any]], rest: dict[str, Any], expected: Sequence[str]
) -> None:
    recipe, shards, patches = identity(r), [], 0
    most = r.patches_per_shard or max(1, min(_MOST, _SHARD_BYTES // contents.layout.dtype().itemsize))
    with whole(path_of(r.store)) as draft, open(draft, "wb") as f:
        while part := list(islice(chosen, most)):
            line = json.dumps(part, ensure_ascii=False).encode()
            shards.append((f.tell(), len(line), len(part), _digest(recipe, contents, line)))
            f.write(line + b"\n")
            patches += len(part)
        _refuse_other(r.store, [digest for *_, digest in shards], expected)
        line = _line(rest)
        where = f.tell(), len(line)
        f.write(line + b"\n")
        begin = f.tell()
        index = {"recipe": recipe, "contents": asdict(contents), "patches": patches, "shards": shards, "rest": where}
        f.write(_line(index) + b"\n" + f"{begin:0{_TRAILER - 1}d}\n".encode())
