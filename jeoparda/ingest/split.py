"""Who trains and who judges: one split for each patch of an archive, or a reason why it is left out.

A rule of the recipe (`by`) gives each patch a split. Geographic rules then keep the splits apart on the ground:
patches that overlap, of overlapping strides, neighbouring tiles or neighbouring UTM zones, are left out, training
patches first.
"""

import csv
import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np

from jeoparda.config import as_dict, opt, recipe
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.footprint import Footprints, footprints, metres_per_unit, within
from jeoparda.ingest.source import Planned
from jeoparda.ingest.stratify import deal
from jeoparda.store import SPLITS

TRAIN, VAL, TEST = range(3)
_CHUNK = 4096
_NAMED = 12  # classes in a note

Rule = tuple[np.ndarray, dict[str, np.ndarray]]  # (n,) int8 split, -1 for none; reason -> (n,) bool, who has none


@recipe
class SplitRecipe:
    """Who trains and who judges: whole geographic blocks, the dataset's own lists or split, dates or countries; never
    random neighbours."""

    by: Literal["auto", "archive", "block", "csv", "date", "country", "none"] = opt(
        "auto",
        "the archive's own split; geographic blocks; lists of patch names; dates; countries; none: all train; "
        "auto: archive where it has one and no key of block is given, else block",
    )
    block_m: float = opt(12_000.0, "block: its side; a block falls into one split as a whole", "m", gt=0)
    val: float = opt(0.1, "block: share held back for validation", ge=0, lt=1)
    test: float = opt(0.1, "block: share held back for the test", ge=0, lt=1)
    seed: int = opt(0, "block: another seed deals the blocks out anew")
    stratify: bool = opt(
        True, "block: val and test get their share of each class; false: each block by itself, so an archive may grow"
    )
    buffer_m: float | None = opt(
        None,
        "ground kept free around val and test; null: no distance, and block and country part what overlaps",
        "m",
        ge=0,
    )
    train_csv: Path | None = opt(None, "csv: list of training patches, their names in the first column")
    val_csv: Path | None = opt(None, "csv: list of validation patches")
    test_csv: Path | None = opt(None, "csv: list of test patches")
    val_from: str | None = opt(None, "date: first day of validation, 2018-01-01; what is older trains")
    test_from: str | None = opt(None, "date: first day of the test")
    train_dates: list[str] = opt([], "date: instead, days of training, first/last: [2017-06-01/2017-08-31]")
    val_dates: list[str] = opt([], "date: days of validation")
    test_dates: list[str] = opt([], "date: days of the test")
    val_countries: list[str] = opt([], "country: those of validation; what stands in no list trains")
    test_countries: list[str] = opt([], "country: those of the test")


_KEYS = {
    "block": ("block_m", "val", "test", "seed", "stratify"),
    "csv": ("train_csv", "val_csv", "test_csv"),
    "date": ("val_from", "test_from", "train_dates", "val_dates", "test_dates"),
    "country": ("val_countries", "test_countries"),
}


# ---- what is known of the patches


@dataclass(frozen=True)
class Columns:
    """What a split can go by, n patches in compact columns (about 200 bytes a patch).

    ids        (n,) bytes                    day      (n,) bytes, "2017-06-13", "" without a date
    crs        (n,) index into crs_names     country  (n,) index into countries
    transform  (n, 6) of the finest grid     own      (n,) index into owns: the archive's own split
    image      (n,) int64: of patches without CRS, a number of the image that they are cut from
    classes of patch i: classes[start[i] : start[i + 1]]
    """

    side_px: int
    ids: np.ndarray
    crs: np.ndarray
    crs_names: tuple[str, ...]
    transform: np.ndarray
    image: np.ndarray
    day: np.ndarray
    country: np.ndarray
    countries: tuple[str, ...]
    own: np.ndarray
    owns: tuple[str, ...]
    start: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class ColumnsBuilder:
    """Patches one by one into Columns; what it holds grows by the bytes of the columns only.

    side_px: of the patches' finest grid, Layout.size_px.
    """

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self._ids, self._days = _Text(), _Text()
        self._crs, self._country, self._own = _Names(), _Names(), _Names()
        self._transform, self._image = array("d"), array("q")
        self._classes, self._start = array("h"), array("q", [0])

    def append(self, p: Planned) -> None:
        self._ids.append(p.id)
        self._days.append(p.date[:10])
        self._crs.append(p.crs)
        self._country.append(p.country)
        self._own.append(p.split)
        self._transform.extend(p.transform)
        self._image.append(0 if p.crs else _number(p.source))
        self._classes.extend(p.classes)
        self._start.append(len(self._classes))

    def finish(self) -> Columns:
        return Columns(
            side_px=self.side_px,
            ids=self._ids.column(),
            crs=self._crs.column(),
            crs_names=tuple(self._crs.names),
            transform=np.frombuffer(self._transform).reshape(-1, 6),
            image=np.frombuffer(self._image, np.int64),
            day=self._days.column(),
            country=self._country.column(),
            countries=tuple(self._country.names),
            own=self._own.column(),
            owns=tuple(self._own.names),
            start=np.frombuffer(self._start, np.int64),
            classes=np.frombuffer(self._classes, np.int16),
        )


class _Text:
    """A column of text: bytes as wide as the longest, made chunk by chunk."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._last: list[bytes] = []

    def append(self, text: str) -> None:
        self._last.append(text.encode())
        if len(self._last) == _CHUNK:
            self._chunks.append(np.array(self._last, dtype=bytes))
            self._last = []

    def column(self) -> np.ndarray:
        return np.concatenate([*self._chunks, np.array(self._last, dtype=bytes)])


class _Names:
    """A column of few different texts: their numbers, in order of appearance."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._numbers = array("i")

    def append(self, text: str) -> None:
        self._numbers.append(self.names.setdefault(text, len(self.names)))

    def column(self) -> np.ndarray:
        return np.frombuffer(self._numbers, np.int32)


def _number(text: str) -> int:
    """64 bits that stand for the text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


# ---- the split


@dataclass(frozen=True)
class Assignment:
    """split: (n,) int8 index into SPLITS, -1 for patches left out. reason: (n,) int8 index into `reasons` for those,
    -1 for the others. notes: what the user should know of the split, a line each."""

    split: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def check(s: SplitRecipe) -> None:
    """RecipeError where the recipe cannot work, or says what `by` does not listen to; no archive is needed for it."""
    given, default = as_dict(s), as_dict(SplitRecipe())
    for by, keys in _KEYS.items():
        for key in keys:
            if by != s.by and (s.by, by) != ("auto", "block") and given[key] != default[key]:
                raise RecipeError(f"split.{key} = {given[key]} is for by: {by}, but split.by = {s.by}; take it out")
    if s.val + s.test >= 1:
        raise RecipeError(f"split.val + split.test = {s.val + s.test}: nothing is left to train on")
    if s.by == "csv" and not s.train_csv:
        raise RecipeError("split.by = csv needs split.train_csv (and val_csv, test_csv)")
    if s.by == "date":
        _ranges(s)
    if s.by == "country":
        if not s.val_countries + s.test_countries:
            raise RecipeError("split.by = country needs split.val_countries or split.test_countries")
        if both := set(s.val_countries) & set(s.test_countries):
            raise RecipeError(f"{min(both)} stands in split.val_countries and in split.test_countries")


def assign(s: SplitRecipe, patches: Columns, classes: Sequence[str]) -> Assignment:
    """The split of each patch. classes: their names, by number.

    The same patches in another order get the same splits. RecipeError where the recipe asks for what the archive
    does not have, ArchiveError for an own split that is not understood.
    """
    check(s)
    s = _resolved(s, patches)
    notes: list[str] = []
    rules: dict[str, Callable[[SplitRecipe, Columns, list[str]], Rule]] = {
        "block": _by_block,
        "csv": _by_csv,
        "archive": _by_archive,
        "date": _by_date,
        "country": _by_country,
        "none": lambda s, patches, notes: (np.zeros(len(patches), np.int8), {}),
    }
    split, left_out = rules[s.by](s, patches, notes)
    if s.by in ("block", "country") or s.buffer_m is not None:
        left_out |= _separate(s.buffer_m or 0.0, patches, split)
    left_out = {why: who for why, who in left_out.items() if who.any()}
    reason = np.full(len(split), -1, np.int8)
    for number, who in enumerate(left_out.values()):
        reason[who] = number
    return Assignment(split, reason, tuple(left_out), (*notes, *_missing(s, patches, split, classes)))


def _resolved(s: SplitRecipe, patches: Columns) -> SplitRecipe:
    """The recipe with `auto` decided."""
    if s.by != "auto":
        return s
    asked = any(getattr(s, key) != getattr(SplitRecipe(), key) for key in _KEYS["block"])
    own = patches.owns and "" not in patches.owns
    return SplitRecipe(**{**vars(s), "by": "archive" if own and not asked else "block"})


# ---- rules


def _by_block(s: SplitRecipe, patches: Columns, notes: list[str]) -> Rule:
    block, keys = _blocks(s, patches)
    drawn = np.array([int.from_bytes(hashlib.sha256(k.encode()).digest()[:8], "big") / 2**64 for k in keys])
    of_block = np.where(drawn < s.val, VAL, np.where(drawn < s.val + s.test, TEST, TRAIN)).astype(np.int8)
    if s.stratify and not len(patches.classes):
        notes.append("split: no classes are known before the pixels are read; blocks dealt as with stratify: false")
    elif s.stratify:
        order = np.lexsort((keys, drawn))  # not that of the patches, and another for another seed
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        of_block = deal(_counts(place[block], len(keys), patches), (s.val, s.test))[place]
    for name, share in (("val", s.val), ("test", s.test)):
        if share > 0 and len(keys) and not (of_block == SPLITS.index(name)).any():
            notes.append(
                f"split: no block fell into {name}: too few blocks of {s.block_m:g} m ({len(keys)}) for a share of "
                f"{share:g}; take a smaller split.block_m, larger shares, or another split.seed"
            )
    return of_block[block], {}


def _blocks(s: SplitRecipe, patches: Columns) -> tuple[np.ndarray, np.ndarray]:
    """(n,) number of each patch's block, by its first corner, and the name of each block, (block,) text.

    Blocks are squares of the CRS's grid; in degrees of `block_m` along a meridian. Images without a CRS have blocks
    of their own, in pixels.
    """
    side = np.array([s.block_m / metres_per_unit(name) for name in patches.crs_names] or [1.0])[patches.crs]
    cell = np.stack([np.floor_divide(patches.transform[:, k], side) for k in (2, 5)], 1).astype(np.int64)
    order = np.lexsort((cell[:, 1], cell[:, 0], patches.image, patches.crs))
    key = np.column_stack([patches.crs, patches.image, cell])[order]
    first = np.ones(len(key), bool)
    first[1:] = (key[1:] != key[:-1]).any(1)
    block = np.empty(len(key), np.int64)
    block[order] = np.cumsum(first) - 1
    # the text is what an archive's blocks have been dealt by since the first version: it must not change
    names = [f"{s.seed}/{patches.crs_names[c] or f'image {i}'}/{x}/{y}" for c, i, x, y in key[first].tolist()]
    return block, np.array(names, dtype=str)


def _counts(block: np.ndarray, blocks: int, patches: Columns) -> np.ndarray:
    """(block, class) number of patches of each class, and one column more: of all patches."""
    of_class = np.repeat(block, np.diff(patches.start))
    width = int(patches.classes.max()) + 2
    counts = np.bincount(of_class * width + patches.classes, minlength=blocks * width).reshape(blocks, width)
    counts[:, -1] = np.bincount(block, minlength=blocks)
    return counts


def _by_csv(s: SplitRecipe, patches: Columns, notes: list[str]) -> Rule:
    paths = [(number, p) for number, p in enumerate((s.train_csv, s.val_csv, s.test_csv)) if p]
    lists = [np.array(_names(p) or [b""], dtype=bytes) for _, p in paths]
    names = np.concatenate(lists)
    of_name = np.repeat([number for number, _ in paths], [len(x) for x in lists]).astype(np.int8)
    order = np.argsort(names, kind="stable")
    names, of_name = names[order], of_name[order]
    twice = (names[1:] == names[:-1]) & (of_name[1:] != of_name[:-1]) & (names[1:] != b"")
    if twice.any():
        i = int(np.argmax(twice))
        path = dict(paths)[int(of_name[i + 1])]
        raise RecipeError(f"{path}: patch {names[i].decode()} stands in the {SPLITS[of_name[i]]} list too")
    at = np.searchsorted(names, patches.ids).clip(max=len(names) - 1)
    listed = names[at] == patches.ids
    if absent := len(np.unique(names[names != b""])) - len(np.unique(at[listed])):
        notes.append(f"split: {absent} names of the split lists are not in the archive")
    return np.where(listed, of_name[at], -1).astype(np.int8), {"in no split list": ~listed}


def _names(path: Path) -> list[bytes]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:  # Excel begins a file with a byte order mark
            return [row[0].strip().encode() for row in csv.reader(f) if row and row[0].strip()]
    except OSError as e:
        raise RecipeError(f"{path}: cannot read the split list: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: the split list is not UTF-8 text (byte {e.start})") from e


def _by_archive(s: SplitRecipe, patches: Columns, notes: list[str]) -> Rule:
    if unknown := set(patches.owns) - {*SPLITS, ""}:
        raise ArchiveError(f"the archive's own split has parts named {_listed(unknown)}; expected {', '.join(SPLITS)}")
    if not set(patches.owns) - {""}:
        raise RecipeError("split.by = archive, but this archive has no split of its own; take by: block, csv or date")
    split = _coded(patches.own, patches.owns, {name: i for i, name in enumerate(SPLITS)} | {"": -1})
    return split, {"in no split of the archive's own": split < 0}


def _coded(numbers: np.ndarray, names: tuple[str, ...], code: dict[str, int]) -> np.ndarray:
    """The code of each patch's name; training for names without one."""
    return np.array([code.get(name, TRAIN) for name in names] or [-1], np.int8)[numbers]


def _by_country(s: SplitRecipe, patches: Columns, notes: list[str]) -> Rule:
    code = dict.fromkeys(s.val_countries, VAL) | dict.fromkeys(s.test_countries, TEST)
    there = set(patches.countries) - {""}
    if not there:
        raise RecipeError("split.by = country, but the archive does not say the countries of its patches")
    if unknown := set(code) - there:
        raise RecipeError(f"split: no patch lies in {_listed(unknown)}; the archive has {_listed(there)}")
    split = _coded(patches.country, patches.countries, code | {"": -1})
    return split, {"of no known country": split < 0}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _by_date(s: SplitRecipe, patches: Columns, notes: list[str]) -> Rule:
    days, at = np.unique(patches.day, return_inverse=True)
    of_day = np.full(len(days), -1, np.int8)
    for i, text in enumerate(days.tolist()):
        if text:
            day = _day(text.decode(), "date of a patch")
            of_day[i] = next((part for part, first, last in _ranges(s) if first <= day <= last), -1)
    split = of_day[at]
    without = patches.day == b""
    return split, {"without a date": without, "outside of the dates of the split": (split < 0) & ~without}


def _ranges(s: SplitRecipe) -> list[tuple[int, date, date]]:
    """(split, first day, last day) of each range."""
    given = [("train_dates", TRAIN), ("val_dates", VAL), ("test_dates", TEST)]
    ranges = [(part, *_range(text, f"split.{key}")) for key, part in given for text in getattr(s, key)]
    starts = [(part, _day(text, f"split.{key}")) for part, key, text in _starts(s)]
    if bool(ranges) == bool(starts):
        raise RecipeError(
            "split.by = date needs either split.val_from and split.test_from (or one of them), or split.train_dates "
            "with val_dates and test_dates"
        )
    if ranges and TRAIN not in (part for part, *_ in ranges):
        raise RecipeError("split.val_dates and split.test_dates need split.train_dates")
    if starts:
        days = [day for _, day in starts]
        if days != sorted(set(days)):
            raise RecipeError(f"split.val_from = {s.val_from} must be before split.test_from = {s.test_from}")
        begins = [(TRAIN, date.min), *starts]
        ends = [date.fromordinal(day.toordinal() - 1) for day in days] + [date.max]
        ranges = [(part, first, last) for (part, first), last in zip(begins, ends, strict=True)]
    for i, (part, first, last) in enumerate(ranges):
        for other, from_, to in ranges[:i]:
            if part != other and first <= to and from_ <= last:
                raise RecipeError(f"split: {max(first, from_)} is a day of {SPLITS[other]} and of {SPLITS[part]}")
    return ranges


def _starts(s: SplitRecipe) -> list[tuple[int, str, str]]:
    given = [(VAL, "val_from", s.val_from), (TEST, "test_from", s.test_from)]
    return [(part, key, text) for part, key, text in given if text is not None]


def _range(text: str, where: str) -> tuple[date, date]:
    first, slash, last = text.partition("/")
    if not slash or _day(first, where) > _day(last, where):
        raise RecipeError(f"{where} = {text}: expected the first and the last day, as 2017-06-01/2017-08-31")
    return _day(first, where), _day(last, where)


def _day(text: str, where: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as e:
        raise RecipeError(f"{where} = {text}: expected a day as 2018-01-31") from e


# ---- the ground


def _separate(buffer_m: float, patches: Columns, split: np.ndarray) -> dict[str, np.ndarray]:
    """Take out of `split`, in place, what lies on (or within the buffer of) another split's ground: validation
    patches on that of the test, then training patches on that of either; and what lies nobody knows where. Gives
    reason -> who."""
    ground, faults = footprints(patches.crs, patches.crs_names, patches.transform, patches.side_px, patches.image)
    for who in faults.values():
        split[who] = -1
    how = f"within {buffer_m:g} m of" if buffer_m else "on"
    return faults | {
        f"val patch {how} test ground": _thin(ground, split, (VAL,), (TEST,), buffer_m),
        f"train patch {how} val or test ground": _thin(ground, split, (TRAIN,), (VAL, TEST), buffer_m),
    }


def _thin(
    ground: Footprints, split: np.ndarray, losing: tuple[int, ...], keeping: tuple[int, ...], buffer_m: float
) -> np.ndarray:
    lose, keep = np.flatnonzero(np.isin(split, losing)), np.isin(split, keeping)
    gone = np.zeros(len(split), bool)
    gone[lose[within(ground[lose], ground[keep], buffer_m)]] = True
    split[gone] = -1
    return gone


def _missing(s: SplitRecipe, patches: Columns, split: np.ndarray, classes: Sequence[str]) -> list[str]:
    """A line for each split that lacks classes of the archive or, where shares are wanted, is far from them."""
    of_class = np.repeat(split, np.diff(patches.start))
    there = np.bincount(patches.classes, minlength=len(classes))
    notes = []
    for part, name in enumerate(SPLITS):
        found = np.bincount(patches.classes[of_class == part], minlength=len(classes))
        share = found / np.maximum(there, 1)
        wanted = {"val": s.val, "test": s.test}.get(name, 0.0) if s.by == "block" and s.stratify else 0.0
        many = there * wanted >= 5  # fewer patches cannot be parted finely
        far = (found > 0) & many & ((share > 2 * wanted) | (share < wanted / 2))
        if (split == part).any():
            notes += _note(f"{name} has no patch of", classes, (found == 0) & (there > 0), there)
            notes += _note(f"{name} is to have {wanted:.0%} of each class, and has", classes, far, there, share)
    return notes


def _note(
    what: str, classes: Sequence[str], which: np.ndarray, there: np.ndarray, share: np.ndarray | None = None
) -> list[str]:
    named = [
        ("" if share is None else f"{share[c]:.0%} of ") + f"{classes[c]} ({there[c]} patches in all)"
        for c in np.flatnonzero(which).tolist()
    ]
    more = [f"{len(named) - _NAMED} classes more"] if len(named) > _NAMED else []
    return [f"split: {what} {', '.join(named[:_NAMED] + more)}"] if named else []
