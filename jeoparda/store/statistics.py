"""Per-band statistics by sums that can be added in any order: exact for integer pixels."""

import math
from fractions import Fraction
from typing import Any

import numpy as np

from jeoparda.sensors import REFLECTANCE
from jeoparda.store.format import SPLITS, Band, Contents, Layout


class Sums:
    """Sums over a shard's patches, exact for integer pixels, so that the statistics are the same in whatever order
    shards are added up. Floating-point pixels are summed in float64."""

    def __init__(self, contents: Contents) -> None:
        self._contents, self._layout = contents, contents.layout
        self._bands: dict[str, list[Any]] = {b: [] for b in all_bands(contents.layout)}
        self._splits = dict.fromkeys(SPLITS, 0)
        self._patches = {s: np.zeros(len(contents.classes), np.int64) for s in SPLITS}
        self._pixels = {s: np.zeros(256, np.int64) for s in SPLITS}
        self._classes = len(contents.classes)

    def add(self, row: np.ndarray, flags: np.ndarray, split: str) -> None:
        """row: one record; flags: (class,) uint8."""
        self._splits[split] += 1
        self._patches[split] += flags
        if self._layout.mask_px:
            self._pixels[split] += np.bincount(row["mask"].ravel(), minlength=256)
        if split != "train":
            return
        valid = valid_of(self._contents, row)
        for g in self._layout.groups:
            self._add(g.bands, row[g.name], None if valid is None else _coarser(valid, g.size_px))
        if high := self._layout.high:
            self._add(tuple(f"high/{b}" for b in high.bands), row["high"], None)

    def _add(self, names: tuple[str, ...], values: np.ndarray, valid: np.ndarray | None) -> None:
        """values: (..., band, row, col); valid: (..., row, col) bool."""
        bands = np.moveaxis(values, -3, 0).reshape(len(names), -1)
        if valid is not None and not valid.all():
            bands = bands[:, valid.ravel()]
        if not bands.size:
            return
        for name, values in zip(names, bands, strict=True):
            self._bands[name] = _merged(self._bands[name], _part(values))

    def summary(self) -> dict[str, Any]:
        return {
            "bands": self._bands,
            "splits": self._splits,
            "class_patches": {s: n.tolist() for s, n in self._patches.items()},
            "class_pixels": {s: n[: self._classes].tolist() for s, n in self._pixels.items() if self._layout.mask_px},
        }


def valid_of(contents: Contents, record: np.ndarray | dict[str, np.ndarray]) -> np.ndarray | None:
    """Which pixels of a record are valid: (..., row, col) bool on the finest grid; None where all are, or where it is
    not known. Without a field that says so, zero is no data in reflectances, and a number like others elsewhere."""
    if contents.layout.valid:
        return np.asarray(record["valid"] > 0)
    if contents.unit != REFLECTANCE:
        return None
    measured = np.asarray((record[contents.layout.groups[0].name] > 0).all(-3))
    return None if measured.all() else measured


def all_bands(layout: Layout) -> tuple[str, ...]:
    """Every band that has statistics; those at high resolution as "high/NAME"."""
    return layout.bands + tuple(f"high/{b}" for b in (layout.high.bands if layout.high else ()))


def _coarser(valid: np.ndarray, size_px: int) -> np.ndarray:
    """valid: (..., row, col) -> the same at `size_px`, bool: a coarse pixel is valid where all of its fine ones are."""
    step = valid.shape[-1] // size_px
    return np.asarray(valid.reshape(*valid.shape[:-2], size_px, step, size_px, step).all((-3, -1)))


def _part(x: np.ndarray) -> list[Any]:
    """[pixels, sum, sum of squares, least, largest] of integers, exact; of floating-point numbers [pixels, mean, sum of
    squared deviations from it, least, largest], as a sum of squares would cancel."""
    if np.issubdtype(x.dtype, np.integer):
        x = x.astype(np.int64)
        return [x.size, int(x.sum()), int(x @ x), int(x.min()), int(x.max())]
    x = x[np.isfinite(x)].astype(np.float64)
    if not x.size:
        return []
    mean = x.mean()
    return [x.size, float(mean), float(((x - mean) ** 2).sum()), float(x.min()), float(x.max())]


def _merged(a: list[Any], b: list[Any]) -> list[Any]:
    """Two parts as one; [] is nothing. Floating point: Chan, Golub and LeVeque (1983), the pairwise update."""
    if not a or not b:
        return a or b
    n, ends = a[0] + b[0], [min(a[3], b[3]), max(a[4], b[4])]
    if isinstance(a[1], int):
        return [n, a[1] + b[1], a[2] + b[2], *ends]
    apart = b[1] - a[1]
    return [n, a[1] + apart * b[0] / n, a[2] + b[2] + apart * apart * a[0] * b[0] / n, *ends]


def statistics_of(parts: list[list[Any]]) -> Band:
    """The statistics of a band from those of several parts. Of floating-point pixels the last digits depend on the
    parts' order."""
    whole: list[Any] = []
    for part in parts:
        whole = _merged(whole, part)
    if not whole:
        return Band(0, 0.0, 1.0, 0, 0)
    n, a, b, least, most = whole
    if isinstance(a, int):
        return Band(n, a / n, math.sqrt(Fraction(n * b - a * a, n * n)), least, most)
    return Band(n, a, math.sqrt(b / n), least, most)
