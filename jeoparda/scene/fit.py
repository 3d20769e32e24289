"""Bands onto grids that fit: checked, resampled where that is asked for, fused with a panchromatic band."""

import dataclasses
import math
from pathlib import Path

from jeoparda.errors import SceneError
from jeoparda.raster import RasterInfo, Window_px, crs_unit, describe
from jeoparda.scene.model import BandFile, Fusion, Scene
from jeoparda.scene.recipe import SceneRecipe

_SAME_PX = 0.05  # corners this near, in px of the finest band, are the same corner


def assemble(scene: Scene, options: SceneRecipe, pan: BandFile | None = None) -> Scene:
    """The scene with its bands finest first and on grids that fit, fused with `pan` if the recipe says so.

    SceneError names a band that lies elsewhere than the finest, unless `options.align` resamples it.
    """
    files = dict(sorted(scene.files.items(), key=lambda item: _metres(item[1].info)))
    finest = next(iter(files.values())).info
    files = {band: _fitting(f, band, finest, options) for band, f in files.items()}
    scene = dataclasses.replace(scene, files=files)
    if options.pansharpen:
        return _fused(scene, pan, options)
    quality = tuple(dataclasses.replace(q, file=_fitting(q.file, "", finest, options)) for q in scene.quality)
    return dataclasses.replace(scene, quality=quality)


def _metres(info: RasterInfo) -> float:
    """Pixel size, near enough to tell which of two bands is finer where one is in degrees."""
    return info.pixel_size * (111_320 if crs_unit(info.crs) == "deg" else 1)


def _fused(scene: Scene, pan: BandFile | None, options: SceneRecipe) -> Scene:
    """All bands on the panchromatic band's grid; masks follow by nearest neighbour."""
    if pan is None:
        raise SceneError(f"{scene.folder}: pansharpen is on, and there is no panchromatic band; name it by `pan`")
    if warped := [f.path for f in scene.files.values() if f.warped]:
        raise SceneError(f"{warped[0]}: cannot be both resampled and pansharpened; leave out the band, or `align`")
    if options.pan_weights and len(options.pan_weights) != len(scene.files):
        raise SceneError(
            f"{scene.folder}: pan_weights has {len(options.pan_weights)} numbers; expected one a band, for "
            f"{', '.join(scene.files)}"
        )
    ground = next(iter(scene.files.values())).info
    if pan.info.crs != ground.crs or pan.info.pixel_size > ground.pixel_size:
        raise SceneError(
            f"{pan.path}: has pixels of {pan.info.pixel_size:g} in {pan.info.crs or 'no CRS'}, {ground.path} of "
            f"{ground.pixel_size:g} in {ground.crs or 'no CRS'}; expected finer ones in the same CRS"
        )
    fusion = Fusion(pan, _covered(pan.info, ground), options.pan_weights)
    scene = dataclasses.replace(scene, fusion=fusion)
    grid = describe(scene.fused(), called=f"{pan.path} with {', '.join(scene.files)}")
    files = {b: dataclasses.replace(f, info=dataclasses.replace(grid, path=f.path)) for b, f in scene.files.items()}
    quality = tuple(
        q if same_ground(q.file.info, grid) else dataclasses.replace(q, file=onto(q.file, grid)) for q in scene.quality
    )
    return dataclasses.replace(scene, files=files, quality=quality)


def _covered(pan: RasterInfo, ground: RasterInfo) -> Window_px:
    """The whole pixels of a panchromatic band that the others cover. Landsat's lies half a pixel inside of them, other
    products' may reach beyond."""
    left, top, right, bottom = _corners(ground)
    a, _, x, _, e, y = pan.transform
    near = _SAME_PX  # px of pan
    col, row = (max(0, math.ceil(v - near)) for v in ((left - x) / a, (top - y) / e))
    end_col, end_row = (math.floor(v + near) for v in ((right - x) / a, (bottom - y) / e))
    height, width = min(end_row, pan.height_px) - row, min(end_col, pan.width_px) - col
    if height < 1 or width < 1:
        raise SceneError(
            f"{pan.path}: covers {_ground(pan)}, {ground.path} covers {_ground(ground)}: nothing in common"
        )
    return row, col, height, width


def _fitting(file: BandFile, band: str, finest: RasterInfo, options: SceneRecipe) -> BandFile:
    if same_ground(file.info, finest):
        return file
    if options.align == "resample":
        return onto(file, finest)
    what = f"band {band}" if band else "mask"
    raise SceneError(
        f"{file.path}: {what} covers {_ground(file.info)}, {finest.path} covers {_ground(finest)}; expected the same "
        "CRS and corners (left, top, right, bottom), pixel sizes that are whole multiples; "
        "align: resample takes it onto the finest band's grid"
    )


def onto(file: BandFile, grid: RasterInfo) -> BandFile:
    """The file as it is read on another grid."""
    info = dataclasses.replace(
        file.info, height_px=grid.height_px, width_px=grid.width_px, crs=grid.crs, transform=grid.transform
    )
    return dataclasses.replace(file, info=info, warped=True)


def same_ground(info: RasterInfo, finest: RasterInfo) -> bool:
    """Whether both cover the same corners in the same CRS, and the pixels of one are whole numbers of the other's."""
    if info.crs != finest.crs:
        return False
    near = _SAME_PX * abs(finest.pixel_size)
    corners = zip(_corners(info), _corners(finest), strict=True)
    return all(abs(a - b) < near for a, b in corners) and _whole(info, finest)


def _whole(info: RasterInfo, finest: RasterInfo) -> bool:
    fine, coarse = sorted((info, finest), key=lambda i: -i.width_px)
    return all(
        a % b == 0 and a // b == fine.width_px // coarse.width_px
        for a, b in ((fine.width_px, coarse.width_px), (fine.height_px, coarse.height_px))
    )


def _corners(f: RasterInfo) -> tuple[float, ...]:
    a, b, x, d, e, y = f.transform
    return x, y, x + a * f.width_px + b * f.height_px, y + d * f.width_px + e * f.height_px


def _ground(f: RasterInfo) -> tuple[object, ...]:
    return (f.crs, *(round(v, 3) for v in _corners(f)))


def take(found: dict[str, BandFile], bands: tuple[str, ...], where: str | Path) -> dict[str, BandFile]:
    """`bands` of those found, in that order. SceneError names those that are missing."""
    if missing := [b for b in bands if b not in found]:
        raise SceneError(f"{where}: no raster for band {', '.join(missing)}; found {', '.join(found) or 'none'}")
    return {b: found[b] for b in bands}
