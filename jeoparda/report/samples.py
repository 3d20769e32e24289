"""A picture of sample patches of a store: true colour (or the first band in grey), the high-resolution image and the
mask beside it where there are, a row a date for series. The same store gives the same picture."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch

from jeoparda.files import whole
from jeoparda.nomenclature import IGNORE
from jeoparda.store import Group, Store

_PANEL_IN, _GAP_IN, _MARGIN_IN = 1.7, 0.07, 0.25
_LINE_IN = 0.125  # of a caption
_CLASSES = 5  # in a caption
_ACROSS = 6  # panels side by side
_DATES = 6  # of a series, evenly chosen
_LETTERS = 34  # of a caption's line, a panel wide
_NOTHING = (217, 217, 217)  # pixels without a measurement or without a label
_LEAST_SPAN = 300  # a flat scene, such as the sea, is not stretched into noise: reflectances span 0.03 at least


@dataclass(frozen=True)
class Card:
    """A patch as it is shown. panels: rows (dates) of (name, (row, col, 3) uint8)."""

    caption: list[str]
    rows: list[list[tuple[str, np.ndarray]]]


def draw(store: Store, path: Path, count: int) -> None:
    """`count` patches that show as many classes as they can, rare ones first, as a PNG at `path`."""
    numbers = choose(store.labels, store.column("valid_fraction"), count)
    split = store.column("split")
    cards = [_card(store, i, str(split[i])) for i in numbers]
    figure = _sheet(store, cards, numbers)
    with whole(path) as draft:
        figure.savefig(draft, format="png", dpi=150, metadata={"Software": None})


def choose(labels: np.ndarray, valid: np.ndarray, count: int) -> list[int]:
    """Numbers of up to `count` patches, rising. Each is of the class shown least so far, of several the rarest, and
    shows as many new classes as it can; where nothing is new, it comes from anywhere in the store.

    labels: (patch, class) of 0 and 1. valid: (patch,) share of pixels with a measurement, which decides between equals.
    """
    count = min(count, len(labels))
    free = np.ones(len(labels), bool)
    carried, shown = labels.sum(0, dtype=np.int64), np.zeros(labels.shape[1], np.int64)
    while (~free).sum() < count and (left := labels[free].any(0)).any():
        c = int(np.lexsort((carried, shown, ~left))[0])
        those = np.flatnonzero(free & (labels[:, c] > 0))
        new = labels[those][:, shown == 0].sum(1) + 0.5 * valid[those]
        anywhere = int((~free).sum() * 0.618034 % 1 * len(those))
        pick = int(those[np.argmax(new) if shown[c] == 0 else anywhere])
        free[pick] = False
        shown += labels[pick]
    rest, more = np.flatnonzero(free), count - int((~free).sum())  # patches without a class
    free[rest[np.arange(more) * len(rest) // max(more, 1)]] = False
    return np.flatnonzero(~free).tolist()


# ---- a patch


def _card(store: Store, number: int, split: str) -> Card:
    layout, patch = store.info.layout, store.patch(number)
    dates = store.dates(number) if layout.dates else []
    shown = np.unique(np.linspace(0, layout.dates - 1, _DATES).astype(int)).tolist() if layout.dates else [None]
    pictures = _pictures(store, patch)
    rows = [
        [(_panel_name(name, dates, t), image if t is None or image.ndim == 3 else image[t]) for name, image in pictures]
        for t in shown
    ]
    return Card(_caption(store, number, split, len(pictures)), rows)


def _panel_name(name: str, dates: list[str], t: int | None) -> str:
    if t is None or name == "mask":
        return name
    return " ".join(filter(None, [name, (dates[t] if t < len(dates) else "")[:10] or "gap"]))


def _pictures(store: Store, patch: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(name, (..., row, col, 3) uint8) of all that a patch has to show; the leading axis is that of dates."""
    info = store.info
    valid = patch["valid"].astype(bool) if info.layout.valid else None
    found = [("low" if info.layout.high else "", _picture(info.groups, info.rgb, patch, valid))]
    if info.layout.high:
        group = info.layout.high
        rgb = tuple(b for b in info.rgb if b in group.bands)
        found.append(("high", _picture((group,), rgb, {group.name: patch["high"]}, None)))
    if info.layout.mask_px:
        found.append(("mask", _mask(patch["mask"], info.colors)))
    return found


def _picture(groups: tuple[Group, ...], rgb: tuple[str, ...], patch: object, valid: np.ndarray | None) -> np.ndarray:
    """True colour where all three bands are there, else the first band in grey."""
    bands = rgb if len(rgb) == 3 else (groups[0].bands[0],) * 3
    where = [next(g for g in groups if b in g.bands) for b in bands]
    side = max(g.size_px for g in where)
    image = np.stack(
        [
            _enlarged(patch[g.name][..., g.bands.index(b), :, :], side)  # type: ignore[index]
            for g, b in zip(where, bands, strict=True)
        ],
        -1,
    )
    seen = np.isfinite(image).all(-1) & (_enlarged(valid, side) if valid is not None else (image != 0).any(-1))
    return _stretched(image.astype(np.float64), seen, _LEAST_SPAN if groups[0].dtype == "uint16" else 0)


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """(..., row, col) to `side` pixels: nearest neighbours."""
    at = np.arange(side) * values.shape[-1] // side
    return values[..., at[:, None], at]


def _stretched(image: np.ndarray, seen: np.ndarray, least: float) -> np.ndarray:
    """(..., row, col, 3) uint8 from the 2nd to the 98th percentile of what is seen, of all bands and dates together."""
    low, high = np.percentile(image[seen], (2, 98)) if seen.any() else (0.0, 1.0)
    middle, half = (low + high) / 2, max(high - low, least, 1e-9) / 2
    scaled = (np.nan_to_num(image) - middle + half) / (2 * half)
    return np.where(seen[..., None], (255 * scaled.clip(0, 1)).round(), _NOTHING).astype(np.uint8)


def _mask(mask: np.ndarray, colors: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    palette = np.full((256, 3), _NOTHING, np.uint8)
    palette[: len(colors)] = np.array(colors, np.uint8).reshape(-1, 3)
    return palette[mask]


def _caption(store: Store, number: int, split: str, panels: int) -> list[str]:
    """Number and split, then a line a class."""
    names = [store.info.classes[c] for c in np.flatnonzero(store.labels[number])]
    kept = names if len(names) <= _CLASSES else names[: _CLASSES - 1]
    more = [f"… {len(names)} classes in all"] if len(kept) < len(names) else []
    return [f"{number}  {split}", *(_brief(f"· {name}", _LETTERS * panels) for name in kept), *more]


def _brief(text: str, letters: int) -> str:
    return textwrap.shorten(text, letters, placeholder=" …")


# ---- the sheet


def _sheet(store: Store, cards: list[Card], numbers: list[int]) -> Figure:
    """Cards in rows, top to bottom, each row as high as its longest caption; the legend below."""
    across, down = len(cards[0].rows[0]), len(cards[0].rows)
    per_row = min(len(cards), max(1, _ACROSS // across))
    grid = [cards[i : i + per_row] for i in range(0, len(cards), per_row)]
    named = 0.14 if any(name for name, _ in cards[0].rows[0]) else 0.0
    panels = down * (_PANEL_IN + _GAP_IN + named)
    heights = [panels + (max(len(c.caption) for c in row) + 1.5) * _LINE_IN for row in grid]
    width = across * (_PANEL_IN + _GAP_IN) + 0.12
    legend = _legend(store, numbers)
    columns = max(1, int(per_row * width / 2.8))
    below = 0.17 * -(-len(legend) // columns) + 0.15 if legend else 0.0
    size = (per_row * width + 2 * _MARGIN_IN, sum(heights) + below + _MARGIN_IN)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    top = size[1] - _MARGIN_IN
    for row, height in zip(grid, heights, strict=True):
        for k, card in enumerate(row):
            _draw(figure, card, _MARGIN_IN + k * width, top, named)
        top -= height
    if legend:
        where = {"loc": "lower left", "bbox_to_anchor": (_MARGIN_IN / size[0], 0.08 / size[1])}
        drawn = figure.legend(handles=legend, ncols=columns, fontsize=7, frameon=False, borderpad=0, **where)
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure


def _draw(figure: Figure, card: Card, left: float, top: float, named: float) -> None:
    """A card with its upper left corner at (left, top), in inches from the lower left corner of the figure."""
    width, height = figure.get_size_inches()
    for x, y, name, image in _places(card, left, top, named):
        axes = figure.add_axes((x / width, y / height, _PANEL_IN / width, _PANEL_IN / height))
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.text(0, 1.02, name, transform=axes.transAxes, fontsize=6.5, color="0.35", va="bottom")
    under = top - len(card.rows) * (_PANEL_IN + _GAP_IN + named)
    text = "\n".join(card.caption)
    figure.text(left / width, under / height, text, fontsize=6.5, va="top", linespacing=1.25, parse_math=False)


def _places(card: Card, left: float, top: float, named: float) -> Iterator[tuple[float, float, str, np.ndarray]]:
    """(x, y) of the lower left corner of each panel in inches, its name and its picture."""
    for i, row in enumerate(card.rows):
        for j, (name, image) in enumerate(row):
            down = (i + 1) * (_PANEL_IN + named) + i * _GAP_IN
            yield left + j * (_PANEL_IN + _GAP_IN), top - down, name, image


def _legend(store: Store, numbers: list[int]) -> list[Swatch]:
    """The classes of the masks that are shown."""
    if not store.info.layout.mask_px:
        return []
    seen = sorted({v for i in numbers for v in np.unique(store.patch(i)["mask"]).tolist()})
    known = [_swatch(store.info.colors[v], _brief(store.info.classes[v], 46)) for v in seen if v != IGNORE]
    return known + ([_swatch(_NOTHING, "no label")] if IGNORE in seen else [])


def _swatch(color: tuple[int, int, int], label: str) -> Swatch:
    return Swatch(facecolor=np.array(color) / 255, edgecolor="0.6", linewidth=0.4, label=label)
