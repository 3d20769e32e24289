"""Rasters on disk: the only home of rasterio and GDAL.

Small contracts: read a band as it is, write a band, write a map as a cloud-optimised GeoTIFF. Nothing here
resamples or rescales by itself.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.enums
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from jeoparda.errors import SceneError
from jeoparda.files import whole

# One thread in GDAL: parallelism is over patches and scenes, never hidden inside a read. The directory of a
# patch is never listed: on a parallel filesystem that costs more than the read.
_GDAL = {"GDAL_NUM_THREADS": "1", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


@dataclass(frozen=True)
class RasterInfo:
    """What a raster file says of itself. `transform`: six numbers of the affine map from (col, row) to (x, y)
    in the CRS's units; `crs`: "EPSG:n" where it has a code, else WKT, "" without a CRS."""

    path: str
    height_px: int
    width_px: int
    count: int
    dtype: str
    crs: str
    transform: tuple[float, float, float, float, float, float]
    nodata: float | None

    @property
    def pixel_size(self) -> float:
        return self.transform[0]


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[rasterio.DatasetReader]:
    with warnings.catch_warnings(), rasterio.Env(**_GDAL):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # planetary and plain images are welcome
        try:
            with rasterio.open(path) as source:
                yield source
        except RasterioError as e:
            raise SceneError(f"{path}: cannot be read as a raster: {e}") from e


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
    )


def crs_name(crs: Any) -> str:
    """ "EPSG:n" where the CRS has a code, else its WKT; "" for none."""
    if not crs:
        return ""
    crs = CRS.from_user_input(crs)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


def describe(path: str | os.PathLike[str]) -> RasterInfo:
    """Size, type and georeference of a raster, without reading pixels."""
    with _open(path) as source:
        return _info(source)


def read_band(
    path: str | os.PathLike[str], band: int = 1, window: tuple[int, int, int, int] | None = None
) -> tuple[np.ndarray, RasterInfo]:
    """One band in its own type. `window`: (row, col, height, width) in px, inside the raster.

    Returns (row, col) and the file's description. SceneError where the file is no raster or is truncated.
    """
    with _open(path) as source:
        where = Window(window[1], window[0], window[3], window[2]) if window else None
        return source.read(band, window=where), _info(source)


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


def thumbnail(path: str | os.PathLike[str], longest_px: int) -> np.ndarray:
    """The first band, averaged down so that its longer side has at most `longest_px` pixels; (row, col)."""
    with _open(path) as source:
        shrink = max(1.0, max(source.height, source.width) / longest_px)
        shape = (round(source.height / shrink), round(source.width / shrink))
        return source.read(1, out_shape=shape, resampling=rasterio.enums.Resampling.average)


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
