"""What `jeoparda store info` says of a store: its bands and sizes, who is in which split, what was rejected, and
whether patches that judge lie on ground that trains."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jeoparda.errors import JeopardaError
from jeoparda.footprint import footprints, overlapping
from jeoparda.store import SPLITS, Reject, Store, StoreInfo

_NAMED = 12  # countries, CRSs or kinds of rejects that are named


def describe_store(store: Store) -> str:
    """The whole page, in plain text of several lines."""
    parts = [_head(store), _bands(store.info), _splits(store.info), _classes(store.info), _lost(store.info)]
    return "\n\n".join("\n".join(lines) for lines in [*parts, leakage(store)] if lines)


def samples_png(store: Store, path: Path, count: int = 16) -> None:
    """A picture of sample patches; see `report.samples`. JeopardaError without the extra `report`."""
    try:
        from jeoparda.report.samples import draw  # here, so that the text does without matplotlib
    except ModuleNotFoundError as e:
        raise JeopardaError(f"{path}: {e.name} is not installed; pip install 'jeoparda[report]'") from e
    draw(store, path, count)


# ---- what it holds


def _head(store: Store) -> list[str]:
    info = store.info
    size = sum(p.stat().st_size for p in store.paths)
    dates = sorted(d[:10] for d in store.column("date").tolist() if d)
    packed = int(store.size_of.sum())
    ratio = f", {info.patches * info.record_bytes / packed:.2f} times smaller" if info.compression != "none" else ""
    days = f"{dates[0]} to {dates[-1]}" if dates else "none known"
    undated = f", {len(store) - len(dates)} patches without" if dates and len(dates) < len(store) else ""
    return [
        f"{store.folder}: {info.patches} patches in {len(info.shards)} shards, {_bytes(size)} "
        f"({_bytes(size / info.patches)} a patch), compression {info.compression}{ratio}",
        f"sensor {info.sensor}, {info.unit}, nomenclature {info.nomenclature} ({len(info.classes)} classes), "
        f"{info.size_px} px, target {info.target}",
        f"dates: {days}{undated}",
        f"countries: {_most(store.column('country').tolist(), 'not known')}",
        f"CRS: {_most((_short(c) for c in store.column('crs').tolist()), 'none')}",
    ]


def _bytes(size: float) -> str:
    thousands = min(4, int(np.log10(max(size, 1)) // 3))
    return f"{size / 1000**thousands:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[thousands]}"


def _most(values: Iterable[str], nameless: str) -> str:
    """The most frequent values with their counts."""
    found = Counter(values).most_common()
    named = [f"{value or nameless} {n}" for value, n in sorted(found[:_NAMED], key=lambda x: (-x[1], x[0]))]
    return ", ".join(named + ([f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []))


def _short(crs: str) -> str:
    """A CRS's code, or the name in its WKT."""
    name = re.match(r'\w+\["([^"]*)"', crs)
    return name[1] if name else crs


def _bands(info: StoreInfo) -> list[str]:
    layout = info.layout
    dates = f", {layout.dates} dates" if layout.dates else ""
    rows = [(g.name, f"{g.pixel_m:g}", f"{g.size_px}", g.dtype, " ".join(g.bands)) for g in layout.groups]
    if layout.high:
        h = layout.high
        rows.append(("high", f"{h.pixel_m:g}", f"{h.size_px}", h.dtype, " ".join(h.bands)))
    finest = layout.groups[0]
    if layout.valid:
        rows.append(("valid", f"{finest.pixel_m:g}", f"{finest.size_px}", "uint8", "1 where measured and not cloud"))
    if layout.mask_px:
        pixel = finest.pixel_m * finest.size_px / layout.mask_px
        rows.append(("mask", f"{pixel:g}", f"{layout.mask_px}", "uint8", "class numbers, 255 where there is no label"))
    return _table(("field", "pixel m", "side px", "type", f"bands{dates}"), rows, left=(0, 3, 4))


def _splits(info: StoreInfo) -> list[str]:
    rows = [(s, str(info.splits.get(s, 0)), _share(info.splits.get(s, 0), info.patches)) for s in SPLITS]
    return _table(("split", "patches", "share"), rows, left=(0,))


def _classes(info: StoreInfo) -> list[str]:
    """The table of the seed: how many images of each split carry a class, and how many mask pixels are of it."""
    names = [*SPLITS, "all", "share"]
    head, columns = [f"images: {names[0]}", *names[1:]], _columns(info.class_patches, info.patches)
    if info.class_pixels:
        pixels = sum(sum(n) for n in info.class_pixels.values())
        head += [f"pixels: {names[0]}", *names[1:]]
        columns += _columns(info.class_pixels, pixels)
    rows = [(str(c), *row, name) for c, (*row, name) in enumerate(zip(*columns, info.classes, strict=True))]
    return _table(("number", *head, "class"), rows, left=(len(head) + 1,))


def _columns(counts: dict[str, list[int]], total: int) -> list[list[str]]:
    """Of each split, of all, and the share of all, by class."""
    table = np.array([counts[s] for s in SPLITS])
    every = table.sum(0)
    return [[str(n) for n in row] for row in (*table, every)] + [[_share(n, total) for n in every.tolist()]]


def _share(part: int, whole: int) -> str:
    """Two digits at least, so that a rare class does not read as none."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent >= 1 or not part else f"{percent:.2g} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> list[str]:
    """Lines of text with columns aligned: those in `left` to the left, numbers to the right."""
    widths = [max(len(r[k]) for r in (head, *rows)) for k in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if k in left else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]  # fmt: skip


def _lost(info: StoreInfo) -> list[str]:
    """What the archive had and the store has not, counted by reason."""
    lines = [f"left out {n}: {reason}" for reason, n in sorted(info.not_wanted.items(), key=lambda x: (-x[1], x[0]))]
    kinds: dict[str, list[Reject]] = {}
    for r in info.faults:
        kinds.setdefault(_kind(r), []).append(r)
    most = sorted(kinds.values(), key=lambda found: -len(found))
    lines += [f"rejected {len(found)}: {'as ' if len(found) > 1 else ''}{found[0]}" for found in most[:_NAMED]]
    if rest := sum(map(len, most[_NAMED:])):
        lines.append(f"rejected {rest} more, for {len(most) - _NAMED} other reasons: see rejects.csv")
    return lines or ["nothing rejected, nothing left out"]


def _kind(r: Reject) -> str:
    """The reason without the names and numbers that are each patch's own."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|-?\d+(\.\d+)?", "#", r.reason)


# ---- leakage


def leakage(store: Store) -> list[str]:
    """A line that begins with OK or LEAKS: how many validation and test patches overlap ground of the training split;
    and lines on patches that could not be compared."""
    names, crs = np.unique(store.column("crs"), return_inverse=True)
    without = (names == "")[crs]
    image = np.zeros(len(crs), np.int64)
    if without.any():
        image[without] = np.unique(store.column("source")[without], return_inverse=True)[1]
    ground, faults = footprints(crs, tuple(names.tolist()), store.column("transform"), store.info.size_px, image)
    split = store.column("split")
    train = ground[split == "train"]
    judges = {s: ground[split == s] for s in SPLITS[1:]}
    leaks = {s: int(overlapping(who, train).sum()) for s, who in judges.items()}
    counts = ", ".join(f"{s} {leaks[s]} of {len(who)}" for s, who in judges.items())
    lines = [f"leakage: {'LEAKS' if sum(leaks.values()) else 'OK'}: patches on training ground: {counts}"]
    if sum(leaks.values()) and store.info.recipe.get("split", {}).get("by") == "date":
        lines.append("leakage: meant by a split by date; figures then hold for new dates, not for new places")
    if without.any():
        lines.append(f"leakage: {without.sum()} patches without a CRS were compared within their own image only")
    return lines + [f"leakage: {int(who.sum())} patches were not compared: {fault}" for fault, who in faults.items()]
