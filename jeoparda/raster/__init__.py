"""Rasters on disk: the only home of rasterio and GDAL.

Small contracts: read a band as it is, keep a raster open and read windows of it, write a band, write a map as a
cloud-optimised GeoTIFF. Nothing here resamples, fuses or rescales unless it is asked to.
"""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pyproj
import pyproj.exceptions
import rasterio
import rasterio.enums
import rasterio.features
import rasterio.shutil
import rasterio.vrt
from affine import Affine
from rasterio.crs import CRS
from rasterio.env import getenv, hasenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from jeoparda.errors import SceneError
from jeoparda.files import whole
from jeoparda.raster import geotiff

# One thread in GDAL: parallelism is over patches and scenes, never hidden inside a read. The directory of a
# patch is never listed: on a parallel filesystem that costs more than the read.
_GDAL = {"GDAL_NUM_THREADS": "1", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
# Scenes are opened once, and what lies beside their files counts: .hdr, .aux.xml, world files, .msk.
_SIDECARS = {"GDAL_DISABLE_READDIR_ON_OPEN": "FALSE", "GDAL_PAM_ENABLED": "YES"}

Window_px = tuple[int, int, int, int]  # (row, col, height, width)


@dataclass(frozen=True)
class RasterInfo:
    """What a raster file says of itself. `transform`: six numbers of the affine map from (col, row) to (x, y)
    in the CRS's units; `crs`: "EPSG:n" where it has a code, else WKT, "" without a CRS; `masked`: a mask in the file,
    or beside it, says which pixels are valid; `palette`: its numbers are places in a table of colours."""

    path: str
    height_px: int
    width_px: int
    count: int
    dtype: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    nodata: float | None
    masked: bool = False
    palette: bool = False

    @property
    def pixel_size(self) -> float:
        """From one column to the next, in the CRS's units, however the raster is turned."""
        return math.hypot(self.transform[0], self.transform[3])


@contextmanager
def session(cache_mb: int = 0, sidecars: bool = False) -> Iterator[None]:
    """GDAL's settings for all that is read inside. `cache_mb`: bound of its block cache, which is the process's own;
    0 leaves it. `sidecars`: files beside a raster are looked for, and say their part. Without a session each read makes
    one of its own, for 30 us. Sessions end in the reverse order of their beginning."""
    settings = _GDAL | (_SIDECARS if sidecars else {}) | ({"GDAL_CACHEMAX": cache_mb << 20} if cache_mb else {})
    with warnings.catch_warnings(), rasterio.Env(**settings):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # planetary and plain images are welcome
        yield


def _in_session() -> bool:
    return hasenv() and "GDAL_PAM_ENABLED" in getenv()


def _with_sidecars() -> bool:
    return _in_session() and getenv()["GDAL_PAM_ENABLED"] == _SIDECARS["GDAL_PAM_ENABLED"]


@contextmanager
def _open(
    path: str | os.PathLike[str] | bytes, called: str = "", located: bool = True
) -> Iterator[rasterio.DatasetReader]:
    """`path`: of a file, or the file itself as bytes. located: with its CRS and place, which for a GeoTIFF can be left
    out."""
    how = {} if located else {"driver": "GTiff", "GEOREF_SOURCES": "NONE"}
    with nullcontext() if _in_session() else session():
        try:
            if isinstance(path, bytes):
                if not path:  # rasterio would take it for a file to write
                    raise RasterioError("no bytes")
                with rasterio.MemoryFile(path) as memory, memory.open(**how) as source:
                    yield source
            else:
                with rasterio.open(path, **how) as source:
                    yield source
        except RasterioError as e:
            raise _refused(path, called, e) from e
        except UnicodeEncodeError as e:
            raise SceneError(f"{called or _name(path)}: its name is not UTF-8; expected one that is: rename it") from e


def _name(path: str | os.PathLike[str] | bytes) -> str:
    return f"{len(path)} bytes in memory" if isinstance(path, bytes) else str(path)


def _reason(e: BaseException) -> str:
    """What GDAL said, the cause included: rasterio's own message of a failed read only points to it."""
    return " ".join(f"{e.__cause__ or e}".split())


def _refused(path: str | os.PathLike[str] | bytes, called: str, e: RasterioError) -> SceneError:
    if isinstance(path, bytes):
        empty = not path
    else:
        empty = os.path.isfile(path) and not os.path.getsize(path)
    return SceneError(f"{called or _name(path)}: cannot be read as a raster: {'it is empty' if empty else _reason(e)}")


def _info(source: rasterio.DatasetReader) -> RasterInfo:
    t = source.transform
    return RasterInfo(
        path=source.name,
        height_px=source.height,
        width_px=source.width,
        count=source.count,
        dtype=source.dtypes[0],
        crs=crs_name(source.crs),
        transform=(t.a, t.b, t.c, t.d, t.e, t.f),
        nodata=source.nodata,
        masked=_has_mask(source),
        palette=rasterio.enums.ColorInterp.palette in source.colorinterp,
    )


def _has_mask(source: rasterio.DatasetReader) -> bool:
    """A mask for the whole file that is neither nodata nor a band of its own (alpha)."""
    flags = source.mask_flag_enums[0]
    return rasterio.enums.MaskFlags.per_dataset in flags and rasterio.enums.MaskFlags.alpha not in flags


def crs_name(crs: Any) -> str:
    """ "EPSG:n" where the CRS has a code, else its WKT; "" for none."""
    if not crs:
        return ""
    return _crs_name(crs.wkt if isinstance(crs, CRS) else crs)


@functools.lru_cache(maxsize=256)
def _crs_name(text: str) -> str:
    crs = CRS.from_user_input(text)
    code = crs.to_epsg()  # a search through PROJ's database: once a CRS, not once a file
    return f"EPSG:{code}" if code and _known(code) else crs.to_wkt()


def _known(code: int) -> bool:
    """Whether pyproj knows it too, whose database may be older than that of rasterio's own PROJ."""
    try:
        pyproj.CRS.from_epsg(code)
    except pyproj.exceptions.CRSError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def crs_unit(crs: str) -> str:
    """The unit of a CRS's coordinates: "m", "deg", another one's name; "px" without a CRS."""
    if not crs:
        return "px"
    found = CRS.from_user_input(crs)
    return "deg" if found.is_geographic else {"metre": "m", "meter": "m"}.get(found.linear_units, found.linear_units)


def describe(path: str | os.PathLike[str] | bytes, called: str = "") -> RasterInfo:
    """Size, type and georeference of a raster, without reading pixels. `path`: of a file, the file itself as bytes, or
    the text of a VRT; `called`: what an error calls it."""
    with _open(path, called) as source:
        return _info(source)


def band_names(path: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """(description, colour) of each band: "" without a description; "red", "alpha", "gray", as GDAL names them."""
    with _open(path) as source:
        said = zip(source.descriptions, source.colorinterp, strict=True)
        return tuple((text or "", color.name) for text, color in said)


def read_band(path: str | os.PathLike[str] | bytes, band: int = 1) -> tuple[np.ndarray, RasterInfo]:
    """One band in its own type. `path`: of a file, or the file itself as bytes.

    Returns (row, col) and the file's description. SceneError where the file is no raster or is truncated.
    """
    place = None if _with_sidecars() else geotiff.place(path)
    crs = _CRS_SEEN.get(place.crs) if place else None
    with _open(path, located=crs is None) as source:
        array, info = source.read(band), _info(source)
    if place and crs is not None:
        return array, dataclasses.replace(info, crs=crs, transform=place.transform)
    if place and info.transform == place.transform:
        _CRS_SEEN[place.crs] = info.crs
    return array, info


# What GDAL said of the tags that say a CRS: as many as an archive has CRSs, in practice a few.
_CRS_SEEN: dict[tuple[bytes, ...], str] = {}


class OpenRaster:
    """A raster that stays open, to be read window by window inside a `session`. `path`: of a file, or a VRT's text.

    onto: a grid that it is resampled to, by `resampling`; None: as it is. nodata: pixels of that value take no part in
    the resampling. name: what errors call it.
    """

    def __init__(
        self,
        path: str,
        onto: RasterInfo | None = None,
        resampling: str = "nearest",
        nodata: float | None = None,
        name: str = "",
    ) -> None:
        self._called = name or path
        try:
            self._file = rasterio.open(path)
            self._source = _warped(self._file, onto, resampling, nodata) if onto else self._file
        except RasterioError as e:
            raise _refused(path, self._called, e) from e

    @property
    def info(self) -> RasterInfo:
        return _info(self._source)

    def read(self, band: int, window: Window_px) -> np.ndarray:
        """(row, col) in the file's own type. `window`: (row, col, height, width) in px, inside the raster."""
        row, col, height, width = window
        try:
            return self._source.read(band, window=Window(col, row, width, height))
        except RasterioError as e:
            raise SceneError(f"{self._called}: cannot be read at (row, col) = ({row}, {col}): {_reason(e)}") from e

    def outside(self, window: Window_px) -> np.ndarray | None:
        """Where the file's own mask says that there is nothing, or a resampled raster had nothing to resample from,
        (row, col) bool; None where its pixels say it themselves, by `nodata`."""
        if self._source.count > self._file.count:
            return self.read(self._source.count, window) == 0
        if self._source is not self._file or not _has_mask(self._file):
            return None
        row, col, height, width = window
        try:
            return self._file.read_masks(1, window=Window(col, row, width, height)) == 0
        except RasterioError as e:
            raise SceneError(f"{self._called}: its mask cannot be read: {_reason(e)}") from e

    def close(self) -> None:
        self._source.close()
        self._file.close()


def _warped(
    source: rasterio.DatasetReader, onto: RasterInfo, resampling: str, nodata: float | None
) -> rasterio.vrt.WarpedVRT:
    return rasterio.vrt.WarpedVRT(
        source,
        src_crs=source.crs or CRS.from_epsg(3857),  # without a CRS: any plane, the same on both sides
        crs=onto.crs or source.crs or CRS.from_epsg(3857),
        transform=Affine(*onto.transform),
        height=onto.height_px,
        width=onto.width_px,
        resampling=rasterio.enums.Resampling[resampling],
        src_nodata=nodata,
        nodata=nodata,
        add_alpha=nodata is None,
    )


def pansharpened(
    pan: tuple[str, int],
    bands: list[tuple[str, int]],
    weights: tuple[float, ...] = (),
    nodata: float | None = None,
    window: Window_px | None = None,
) -> str:
    """A VRT, as text to open, of `bands` sharpened by `pan`, each (path, number of the band from 1), on pan's grid.

    Weighted Brovey by GDAL: band * pan / (sum of weight * band), the bands brought to pan's pixels by cubic
    resampling first. `weights`: one a band; (): each 1 / n. `window`: the part of pan, in its px, that is used; the
    bands must cover it, as GDAL stretches those that do not.
    """
    if window:
        row, col, height, width = window
        pan = (f"vrt://{pan[0]}?bands={pan[1]}&srcwin={col},{row},{width},{height}", 1)

    def source(tag: str, path: str, number: int, more: str = "") -> str:
        return f"<{tag}{more}><SourceFilename>{escape(path)}</SourceFilename><SourceBand>{number}</SourceBand></{tag}>"

    shares = weights or (1 / len(bands),) * len(bands)
    spectral = (source("SpectralBand", p, n, f' dstBand="{i}"') for i, (p, n) in enumerate(bands, 1))
    return (
        '<VRTDataset subClass="VRTPansharpenedDataset"><PansharpeningOptions><Algorithm>WeightedBrovey</Algorithm>'
        f"<AlgorithmOptions><Weights>{','.join(repr(float(w)) for w in shares)}</Weights></AlgorithmOptions>"
        "<Resampling>Cubic</Resampling><NumThreads>1</NumThreads>"
        + (f"<NoData>{nodata:g}</NoData>" if nodata is not None else "")
        + "<SpatialExtentAdjustment>NoneWithoutWarning</SpatialExtentAdjustment>"
        + source("PanchroBand", *pan)
        + "".join(spectral)
        + "</PansharpeningOptions></VRTDataset>"
    )


def write_band(path: str | os.PathLike[str], array: np.ndarray, crs: str, transform: tuple[float, ...]) -> None:
    """A single-band, uncompressed GeoTIFF of `array` (row, col); the same input gives the same bytes."""
    profile = {
        "driver": "GTiff",
        "height": array.shape[0],
        "width": array.shape[1],
        "count": 1,
        "dtype": array.dtype,
        "crs": crs or None,
        "transform": Affine(*transform[:6]),
    }
    with rasterio.Env(**_GDAL), rasterio.open(path, "w", **profile) as target:
        target.write(array, 1)


def write_map(
    path: str | os.PathLike[str],
    bands: np.ndarray,
    crs: str,
    transform: tuple[float, ...],
    *,
    nodata: int,
    names: list[str] | None = None,
    colors: dict[int, tuple[int, int, int]] | None = None,
    categories: list[str] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """A cloud-optimised GeoTIFF, written beside its place and moved there when it is whole.

    bands: (band, row, col), any integer or float type. `names`: a description a band; `colors`: value -> RGB
    for a one-band uint8 map; `categories`: names of the values 0.. in the tag CATEGORY_NAMES.
    """
    profile = {
        "driver": "GTiff",
        "count": bands.shape[0],
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype,
        "crs": crs or None,
        "transform": Affine(*transform[:6]),
        "nodata": nodata,
    }
    with whole(Path(path)) as part, rasterio.Env(**_GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.MemoryFile() as memory:
            with memory.open(**profile) as draft:
                draft.write(bands)
                if colors:
                    draft.write_colormap(1, colors)
                for i, name in enumerate(names or [], start=1):
                    draft.set_band_description(i, name)
                draft.update_tags(**(tags or {}))
                if categories:
                    draft.update_tags(1, CATEGORY_NAMES="|".join(categories))
            with memory.open() as draft:
                # nearest: an averaged class number is another class
                rasterio.shutil.copy(
                    draft,
                    part,
                    driver="COG",
                    compress="DEFLATE",
                    overview_resampling="nearest",
                )


def thumbnail(path: str | os.PathLike[str], longest_px: int, band: int = 1) -> np.ndarray:
    """A band, averaged down so that its longer side has at most `longest_px` pixels; (row, col)."""
    with session(sidecars=True), _open(path) as source:
        shrink = max(1.0, max(source.height, source.width) / longest_px)
        shape = (round(source.height / shrink), round(source.width / shrink))
        return source.read(band, out_shape=shape, resampling=rasterio.enums.Resampling.average)


def tags_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """The file's own tags, as `write_map` set them."""
    with _open(path) as source:
        return dict(source.tags())


def png(rgb: np.ndarray) -> bytes:
    """A PNG of `rgb`, (row, col, 3) uint8."""
    with warnings.catch_warnings(), rasterio.Env(**_GDAL), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        profile = {"driver": "PNG", "count": 3, "height": rgb.shape[0], "width": rgb.shape[1], "dtype": "uint8"}
        with memory.open(**profile) as target:
            target.write(np.moveaxis(rgb, 2, 0))
        return memory.read()


# ---- label rasters and shapes, on the grid of a scene


@dataclass(frozen=True)
class OnGrid:
    """A raster as it is seen from another grid, by nearest neighbour. `count`, `dtype`, `nodata`, `interpretation`
    ("red", "alpha", ... a band): the file's own."""

    source: Any
    view: Any
    shift_px: tuple[int, int] | None  # (row, col) of the grid's corner in the file, where the two grids coincide

    @property
    def count(self) -> int:
        return self.source.count

    @property
    def nodata(self) -> float | None:
        return self.source.nodata

    @property
    def interpretation(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.source.colorinterp)

    def read(self, bands: list[int], window: Window_px) -> tuple[np.ndarray, np.ndarray]:
        """(band, row, col) of the file's type and (row, col) bool, True where the raster has a pixel at all.
        `window`: (row, col, height, width) in px of the grid."""
        row, col, height, width = window
        try:
            if self.shift_px is None:
                where = Window(col, row, width, height)
                found = self.view.read([*bands, self.view.count], window=where)
                return found[:-1], found[-1] > 0
            return self._shifted(bands, (row + self.shift_px[0], col + self.shift_px[1], height, width))
        except RasterioError as e:
            raise SceneError(f"{self.source.name}: cannot be read: {e}") from e

    def _shifted(self, bands: list[int], window: Window_px) -> tuple[np.ndarray, np.ndarray]:
        row, col, height, width = window
        pixels = np.zeros((len(bands), height, width), self.source.dtypes[0])
        inside = np.zeros((height, width), bool)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + height, self.source.height), min(col + width, self.source.width)
        if top < bottom and left < right:
            rows, cols = slice(top - row, bottom - row), slice(left - col, right - col)
            pixels[:, rows, cols] = self.source.read(bands, window=Window(left, top, right - left, bottom - top))
            inside[rows, cols] = True
        return pixels, inside


@contextmanager
def on_grid(
    path: str | os.PathLike[str],
    crs: str,
    transform: tuple[float, ...],
    height_px: int,
    width_px: int,
    by_pixel: bool = False,
) -> Iterator[OnGrid]:
    """The raster at `path` on the grid of (crs, transform, height, width): each pixel of the grid takes the value of
    the file's pixel that its centre lies in. `by_pixel`: pixel on pixel, whatever the two say of their place.

    Neither need have a CRS; then they must be of one size. SceneError where only one has, or the sizes differ.
    """
    with _open(path) as source:
        found = _info(source)
        if by_pixel or not (crs or found.crs):
            if (found.height_px, found.width_px) != (height_px, width_px):
                raise SceneError(
                    f"{path}: is {found.height_px} x {found.width_px} px and is to lie pixel on pixel on "
                    f"{height_px} x {width_px} px; expected the same size, or a CRS for both"
                )
            yield OnGrid(source, None, (0, 0))
            return
        if not (crs and found.crs):
            raise SceneError(
                f"{path}: has {'CRS ' + found.crs[:60] if found.crs else 'no CRS'}, the image it belongs to "
                f"{'CRS ' + crs[:60] if crs else 'none'}; expected both or neither (or align: pixel)"
            )
        if shift := _shift(found, crs, transform, height_px, width_px):
            yield OnGrid(source, None, shift)
            return
        # each pixel's place to 1e-4 px: exact costs five times as much, and GDAL's 0.125 moves 1.5 % of the pixels
        with rasterio.vrt.WarpedVRT(
            source,
            crs=crs,
            transform=Affine(*transform[:6]),
            height=height_px,
            width=width_px,
            resampling=rasterio.enums.Resampling.nearest,
            add_alpha=True,  # which pixels there are, as nodata may be a class
            src_alpha=0,
            src_nodata=None,
            nodata=None,
            tolerance=1e-4,
        ) as view:
            yield OnGrid(source, view, None)


def _shift(
    found: RasterInfo, crs: str, transform: tuple[float, ...], height: int, width: int
) -> tuple[int, int] | None:
    """(row, col) in px of the grid's corner in the file, where the pixels of the two coincide; else None."""
    if found.crs != crs:
        return None
    there = np.linalg.solve(_matrix(found.transform), _matrix(transform))  # px of the grid -> px of the file
    col, row = np.rint(there[:2, 2])
    corners = np.array([[0, width, 0], [0, 0, height], [1, 1, 1]])
    away = (there @ corners)[:2] - corners[:2] - [[col], [row]]
    return (int(row), int(col)) if np.abs(away).max() < 1e-3 else None


def _matrix(transform: tuple[float, ...]) -> np.ndarray:
    return np.array([*transform[:6], 0, 0, 1], float).reshape(3, 3)


def distinct(path: str | os.PathLike[str], band: int, most: int) -> list[Any]:
    """The values of a band, sorted, each once, block by block. SceneError where there are more than `most`."""
    with _open(path) as source:
        found: set[Any] = set()
        for _, window in source.block_windows(band):
            found |= {v for v in np.unique(source.read(band, window=window)).tolist() if v == v}  # not NaN
            if len(found) > most:
                raise SceneError(f"{path}: band {band} holds more than {most} values; expected a map of classes")
        return sorted(found)


def burn(
    shapes: list[tuple[Any, int]], transform: tuple[float, ...], height: int, width: int, fill: int, all_touched: bool
) -> np.ndarray:
    """(row, col) uint8: the value of the last of `shapes` over each pixel, `fill` where there is none.

    A pixel is a polygon's where its centre lies in it, or, with `all_touched`, where any of it does (GDAL's rule).
    """
    out = np.full((height, width), fill, np.uint8)
    if shapes:
        rasterio.features.rasterize(shapes, out=out, transform=Affine(*transform[:6]), all_touched=all_touched)
    return out
