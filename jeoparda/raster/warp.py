"""Pixels in memory, from one grid to another: GDAL's warper, where an image and its valid pixels go together.

`raster` reads files as they are; here the pixels of a scene, in its unit and with its clouds masked, are brought onto
a grid of another CRS, place or pixel size.
"""

import warnings
from typing import Literal

import numpy as np
import rasterio
import rasterio.warp
from affine import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning

Method = Literal["average", "bilinear"]
_NOWHERE = 'LOCAL_CS["image",UNIT["pixel",1]]'  # of two images without a CRS: one plane, in pixels


def warp(
    image: np.ndarray,
    valid: np.ndarray,
    source: tuple[str, tuple[float, ...]],
    target: tuple[str, tuple[float, ...]],
    shape: tuple[int, int],
    method: Method,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """image: (band, row, col) on the grid `source`; valid: (row, col). A grid is (CRS, affine map).

    average: the mean over each target pixel's area. bilinear: between the four nearest pixels' centres; where the
    target is coarser, a triangle of two target pixels' width (`scale`: target pixels along a source pixel, given, so
    that the result does not depend on the window). Both weigh valid pixels only.

    Returns (band, row, col) of the same type, integers rounded, 0 where there is no value; and (row, col) bool, where
    at least half of the weight is on valid pixels.
    """
    shrink = min(1.0, scale)

    def linear(pixels: np.ndarray) -> np.ndarray:
        """(row, col) float64 -> the same on the target's grid, 0 where the source does not reach."""
        on_target = np.zeros(shape)
        rasterio.warp.reproject(
            np.ascontiguousarray(pixels),
            on_target,
            src_crs=source[0] or _NOWHERE,
            src_transform=Affine(*source[1][:6]),
            dst_crs=target[0] or _NOWHERE,
            dst_transform=Affine(*target[1][:6]),
            resampling=Resampling[method],
            tolerance=1e-6,  # of the approximated mapping, in px
            XSCALE=shrink,
            YSCALE=shrink,
        )
        return on_target

    out = np.zeros((len(image), *shape), image.dtype)
    with warnings.catch_warnings(), rasterio.Env(GDAL_NUM_THREADS="1"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        weight = linear(valid.astype(np.float64))
        known = weight >= 0.5
        for i, band in enumerate(image):
            mean = linear(np.where(valid, band, 0).astype(np.float64))[known] / weight[known]
            out[i][known] = np.rint(mean) if out.dtype.kind in "iu" else mean
    return out, known


def moved(points: np.ndarray, source: str, target: str) -> np.ndarray:
    """(point, 2) of x, y, from CRS to CRS; inf where a point has no place in the target. Without a CRS, unmoved."""
    if source == target:
        return points
    xs, ys = rasterio.warp.transform(source, target, points[:, 0].tolist(), points[:, 1].tolist())
    return np.column_stack([xs, ys])
