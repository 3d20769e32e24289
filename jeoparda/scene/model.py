"""What a scene is, known before a pixel is read; and its pixels: every raster opened once, read window by window."""

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from jeoparda.errors import SceneError
from jeoparda.raster import OpenRaster, RasterInfo, Window_px, crs_unit, pansharpened, session
from jeoparda.sensors import REFLECTANCE
from jeoparda.store import Group


@dataclass(frozen=True)
class BandFile:
    """Where a band's pixels are. index: of the band in its file, from 1. info: of the grid that is read, which is
    the file's own unless `warped`. The stored pixel is digital number * gain + offset, in the scene's unit; digital
    numbers equal to `nodata` (None: there are none) are stored as 0. least: what a measured pixel is stored as at
    least, where the unit is reflectance."""

    path: str
    index: int
    info: RasterInfo
    gain: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    warped: bool = False
    least: int = 1


@dataclass(frozen=True)
class Quality:
    """A mask that came with the product. A pixel is invalid where its value is one of `values`, or where for one of
    `bits`, (mask, value), value = pixel & mask."""

    file: BandFile
    values: tuple[int, ...] = ()
    bits: tuple[tuple[int, int], ...] = ()

    def invalid(self, pixels: np.ndarray) -> np.ndarray:
        """Boolean, of the shape of `pixels`."""
        bad = np.isin(pixels, self.values)
        for mask, value in self.bits:
            bad |= (pixels & mask) == value
        return bad


@dataclass(frozen=True)
class Fusion:
    """The panchromatic band that sharpens the others. window: the part of it, in its px, that they cover; weights: of
    the bands in it, () the same for all."""

    pan: BandFile
    window: Window_px
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scene:
    """name: unique in its folder. folder: the path it was opened by. sensor: its name. level: "L1C", "L2A", ..., ""
    where nothing says it. date: ISO 8601, "" where nothing says it. unit: of the pixels that a reader gives. rgb: the
    bands of a picture in true colour, () without. files: by band, in the order of a record. quality: masks of the
    product. fusion: how the bands are pansharpened, if they are. notes: what had to be assumed."""

    name: str
    folder: str
    sensor: str
    level: str
    date: str
    unit: str
    rgb: tuple[str, ...]
    files: dict[str, BandFile]
    quality: tuple[Quality, ...] = ()
    fusion: Fusion | None = None
    notes: tuple[str, ...] = ()

    @property
    def bands(self) -> tuple[str, ...]:
        """Finest first, as the groups of a record have them."""
        return tuple(self.files)

    @property
    def finest(self) -> RasterInfo:
        """The grid that windows count in."""
        return next(iter(self.files.values())).info

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every raster that the pixels and their validity come from."""
        used = [*self.files.values(), *(q.file for q in self.quality), *([self.fusion.pan] if self.fusion else [])]
        return tuple(dict.fromkeys(f.path for f in used))

    def step(self, info: RasterInfo) -> float:
        """How many px of the finest grid one px of `info` covers along a side; below 1 where it is finer."""
        return self.finest.width_px / info.width_px

    def dtype(self, band: str) -> str:
        """numpy's name of the type that a reader gives: one for all bands of a pixel size."""
        if self.unit == REFLECTANCE:
            return "uint16"
        info = self.files[band].info
        same = [f.info.dtype for f in self.files.values() if f.info.width_px == info.width_px]
        return str(np.result_type(*same))

    def is_bounded(self, band: str) -> bool:
        """Whether a pixel of the band may hold no data: something says which do."""
        file = self.files[band]
        told = file.nodata is not None or file.info.masked or file.info.dtype.startswith("float")  # nan
        return told or file.warped or self.fusion is not None or self.unit == REFLECTANCE

    def groups(self, size_px: int) -> tuple[Group, ...]:
        """The bands by pixel size, finest first, for patches of `size_px` px of the finest grid.

        SceneError where that is no whole number of pixels of a coarser band.
        """
        by_width: dict[int, list[str]] = {}
        for band, file in self.files.items():
            by_width.setdefault(file.info.width_px, []).append(band)
        return tuple(self._group(tuple(bands), size_px) for bands in by_width.values())

    def _group(self, bands: tuple[str, ...], size_px: int) -> Group:
        info = self.files[bands[0]].info
        step = self.step(info)
        if step != int(step) or size_px % int(step):
            raise SceneError(
                f"{info.path}: a patch of {size_px} px of {self.finest.pixel_size:g} is no whole number of its pixels "
                f"of {info.pixel_size:g}; take a multiple of {step:g} px"
            )
        name = f"{info.pixel_size:g}{crs_unit(info.crs)}"
        return Group(name, info.pixel_size, size_px // int(step), bands, self.dtype(bands[0]))

    def fused(self) -> str:
        """The VRT of the pansharpened bands, one after the other."""
        if not self.fusion:
            raise SceneError(f"{self.folder}: is not pansharpened")
        pan, bands = self.fusion.pan, [(f.path, f.index) for f in self.files.values()]
        nodata = next((f.nodata for f in (pan, *self.files.values()) if f.nodata is not None), None)
        whole = self.fusion.window == (0, 0, pan.info.height_px, pan.info.width_px)
        part = None if whole else self.fusion.window
        return pansharpened((pan.path, pan.index), bands, self.fusion.weights, nodata, part)

    def reader(self, cache_mb: int = 256) -> "SceneReader":
        """Pixels of the scene, inside `with`. `cache_mb`: bound of GDAL's block cache, of the whole process."""
        return SceneReader(self, cache_mb, self.bands)

    def surveyed(self, cache_mb: int = 256) -> "SceneReader":
        """A reader whose `valid` asks but the band with the fewest pixels, the first of equals, and the product's
        masks; of fused bands all. What all bands say is valid is valid to it too, and decoding costs little."""
        coarsest = min(self.files, key=lambda b: self.files[b].info.height_px * self.files[b].info.width_px)
        return SceneReader(self, cache_mb, self.bands if self.fusion else (coarsest,))


# ---- pixels


class SceneReader:
    """`with scene.reader() as r`. Windows are (row, col, height, width) in px of the scene's finest grid.

    Readers end in the reverse order of their beginning, as nested `with` blocks do.
    """

    def __init__(self, scene: Scene, cache_mb: int, asked: tuple[str, ...]) -> None:
        self.scene = scene
        self._asked = asked  # which pixels are valid
        self._cache_mb = cache_mb
        self._dtypes = {band: scene.dtype(band) for band in scene.bands}
        self._open: dict[tuple[str, str], OpenRaster] = {}
        self._left = contextlib.ExitStack()
        self._empty: dict[str, tuple[Window_px, np.ndarray | None]] = {}  # of the last window read of a band

    def __enter__(self) -> Self:
        self._left.enter_context(session(self._cache_mb, sidecars=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._left.close()

    def read(self, band: str, window: Window_px) -> np.ndarray:
        """A band's pixels under `window`, (row, col) at its own pixel size, in the scene's unit; 0 without data.

        SceneError where the window does not fall on whole pixels of the band, or a file cannot be read.
        """
        file = self.scene.files[band]
        numbers, empty = self._numbers(band, window)
        self._empty[band] = (window, empty)
        return stored(numbers, empty, file, self._dtypes[band], self.scene.unit == REFLECTANCE)

    def measured(self, window: Window_px) -> np.ndarray:
        """(row, col) bool on the finest grid: every band that is asked has data there."""
        good = np.ones(window[2:], bool)
        for band in filter(self.scene.is_bounded, self._asked):
            last, empty = self._empty.get(band, (None, None))  # most often the window has just been read
            if last != window:
                empty = self._numbers(band, window)[1]
            if empty is not None:
                good &= ~spread(empty, window[2:])
        return good

    def valid(self, window: Window_px) -> np.ndarray:
        """(row, col) bool on the finest grid: measured, and not masked by the product (cloud, shadow, defect)."""
        good = self.measured(window)
        for quality in self.scene.quality:
            good &= ~self._masked(quality, window)
        return good

    def _numbers(self, band: str, window: Window_px) -> tuple[np.ndarray, np.ndarray | None]:
        """Digital numbers under a window, (row, col), and where there are none; None: nowhere."""
        file = self.scene.files[band]
        own = self._own(file.info, window)
        if self.scene.fusion:
            source, index = self._raster("pansharpened"), self.scene.bands.index(band) + 1
        else:
            source, index = self._raster(band), file.index
        numbers = source.read(index, own)
        values = (file.nodata, 0.0) if self.scene.unit == REFLECTANCE else (file.nodata,)  # there, 0 is fill
        return numbers, no_data(numbers, values, source.outside(own))

    def _masked(self, quality: Quality, window: Window_px) -> np.ndarray:
        """Where a product's mask says invalid, on the finest grid. It may be coarser than a window is: what it covers
        is read and cut."""
        step = self.scene.step(quality.file.info)
        if step <= 1:
            return spread(self._invalid(quality, self._own(quality.file.info, window)), window[2:])
        k, (row, col, height, width) = int(step), window
        top, left, bottom, right = row // k, col // k, -(-(row + height) // k), -(-(col + width) // k)
        whole = self._invalid(quality, (top, left, bottom - top, right - left)).repeat(k, 0).repeat(k, 1)
        return whole[row - top * k :, col - left * k :][:height, :width]

    def _invalid(self, quality: Quality, own: Window_px) -> np.ndarray:
        source = self._raster(quality)
        bad = quality.invalid(source.read(quality.file.index, own))
        outside = source.outside(own)
        return bad if outside is None else bad | outside

    def _own(self, info: RasterInfo, window: Window_px) -> Window_px:
        """The window in px of a raster."""
        fine = self.scene.finest
        row, col, height, width = window
        if row < 0 or col < 0 or row + height > fine.height_px or col + width > fine.width_px:
            raise SceneError(f"{info.path}: window {window} px lies outside of {fine.height_px} x {fine.width_px} px")
        if info.width_px == fine.width_px:
            return window
        step = self.scene.step(info)
        scaled = [v / step for v in window]
        if any(v != int(v) for v in scaled):
            raise SceneError(
                f"{info.path}: window {window} px at {fine.pixel_size} m falls between its {info.pixel_size} m pixels; "
                f"take a size and a stride that are multiples of {step:g} px"
            )
        return int(scaled[0]), int(scaled[1]), int(scaled[2]), int(scaled[3])

    def _raster(self, what: "str | Quality") -> OpenRaster:
        """The open raster of a band, of a mask, or of the pansharpened bands; bands of one file share it."""
        if (fusion := self.scene.fusion) and what == "pansharpened":
            return self._opened((what, ""), lambda: OpenRaster(self.scene.fused(), name=fusion.pan.path))
        file = what.file if isinstance(what, Quality) else self.scene.files[what]
        if not file.warped:
            return self._opened((file.path, ""), lambda: OpenRaster(file.path))
        how = "nearest" if isinstance(what, Quality) else "bilinear"
        return self._opened((file.path, how), lambda: OpenRaster(file.path, file.info, how, file.nodata))

    def _opened(self, key: tuple[str, str], make: Callable[[], OpenRaster]) -> OpenRaster:
        if key not in self._open:
            self._open[key] = make()
            self._left.callback(self._open[key].close)
        return self._open[key]


def no_data(
    numbers: np.ndarray, values: Iterable[float | None], outside: np.ndarray | None = None
) -> np.ndarray | None:
    """Where there is no data, boolean: pixels of one of `values`; None where there is data everywhere. In floats, nan
    is never data."""
    parts: list[np.ndarray] = [] if outside is None else [outside]
    if numbers.dtype.kind == "f":
        parts.append(np.isnan(numbers))
    parts += [numbers == v for v in dict.fromkeys(values) if v is not None and v == v]
    if not parts:
        return None
    empty: np.ndarray = functools.reduce(np.logical_or, parts)
    return empty if empty.any() else None


def stored(numbers: np.ndarray, empty: np.ndarray | None, file: BandFile, dtype: str, scaled: bool) -> np.ndarray:
    """Digital numbers as they are stored, in `dtype`; 0 without data. scaled: as reflectance x 10000.

    There, what was measured is at least `file.least`: the offsets of Sentinel-2 and Landsat make small negative values
    of deep shadow, and 0 means no data. Numbers without gain and offset that `dtype` holds stay what they are.
    """
    if scaled and (file.gain != 1 or file.offset or not np.can_cast(numbers.dtype, dtype)):
        clean = numbers if empty is None else np.where(empty, numbers.dtype.type(0), numbers)  # nan is not to be cast
        short = file.gain == 1 and numbers.dtype.itemsize <= 2  # 24 bits hold a shifted number of 16 bits
        exact = np.float32 if short else np.float64
        out = np.clip(np.rint(clean * exact(file.gain) + exact(file.offset)), file.least, 65535).astype(dtype)
    else:
        out = numbers.astype(dtype, copy=False)
    if empty is not None:
        out[empty] = 0
    return out


def spread(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask on the finest grid, (row, col) of `shape`: a coarse pixel covers many, a finer mask is joined by or."""
    if mask.shape == shape:
        return mask
    if mask.shape[0] < shape[0]:
        k = shape[0] // mask.shape[0]
        return mask.repeat(k, 0).repeat(k, 1)
    k = mask.shape[0] // shape[0]
    return np.logical_or.reduce(mask.reshape(shape[0], k, shape[1], k), (1, 3))
