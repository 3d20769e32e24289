"""Bands onto grids that fit: checked, resampled where that is asked for, fused with a panchromatic band."""

import dataclasses
import math
from pathlib import Path

from jeoparda.errors import SceneError
from jeoparda.raster import RasterInfo, Window_px, crs_unit, describe
from jeoparda.scene.model import BandFile, Fusion, Scene
from jeoparda.scene.recipe import SceneRecipe
from jeoparda.sensors import DIGITAL_NUMBER

_UNBOUNDED = "No nodata value, alpha or mask: every pixel counts as measured; else set the scene's `nodata`."
_MASKS_UNSEEN = "Pansharpened: masks inside of the files are not looked at, nodata values are."
_SAME_PX = 0.05  # corners this near, in px of the finest band, are the same corner


def assemble(scene: Scene, options: SceneRecipe, pan: BandFile | None = None) -> Scene:
    """The scene with its bands finest first and on grids that fit, fused with `pan` if the recipe says so.

    SceneError names a band that lies elsewhere than the finest, unless `options.align` resamples it.
    """
    if tables := [f.path for f in scene.files.values() if f.info.palette]:
        raise SceneError(
            f"{tables[0]}: its numbers are places in a table of colours, no measurements; expected bands; leave it "
            "out, or expand it to red, green and blue"
        )
    scene = dataclasses.replace(scene, notes=(*scene.notes, *_unbounded(scene)))
    files = dict(sorted(scene.files.items(), key=lambda item: _metres(item[1].info)))
    finest = next(iter(files.values())).info
    files = {band: _fitting(f, band, finest, options) for band, f in files.items()}
    scene = dataclasses.replace(scene, files=files)
    if options.pansharpen:
        return _fused(scene, pan, options)
    quality = tuple(dataclasses.replace(q, file=_fitting(q.file, "", finest, options)) for q in scene.quality)
    return dataclasses.replace(scene, quality=quality)


def _unbounded(scene: Scene) -> tuple[str, ...]:
    """A note where nothing says which digital numbers were measured."""
    told = scene.quality or any(f.nodata is not None or f.info.masked for f in scene.files.values())
    return () if told or scene.unit != DIGITAL_NUMBER else (_UNBOUNDED,)


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
    unseen = any(f.info.masked for f in (pan, *scene.files.values()))
    notes = (*scene.notes, _MASKS_UNSEEN) if unseen else scene.notes
    return dataclasses.replace(scene, files=files, quality=quality, notes=notes)


def _covered(pan: RasterInfo, ground: RasterInfo) -> Window_px:
    """The whole pixels of a panchromatic band that the others cover. Landsat's lies half a pixel inside of them, other
    products' may reach beyond."""
    left, top, right, bottom = _corners(ground)
    a, b, x, d, e, y = pan.transform
    if b or d or ground.transform[1] or ground.transform[3]:
        raise SceneError(f"{pan.path}: is turned, or {ground.path} is; expected north up to be pansharpened")
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
        if bool(file.info.crs) != bool(finest.crs):
            raise SceneError(
                f"{file.path}: has {file.info.crs or 'no CRS'}, {finest.path} has {finest.crs or 'none'}; expected a "
                "CRS for both, or for neither, to resample one onto the other"
            )
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
    near = _SAME_PX * finest.pixel_size
    corners = zip((*_corners(info), *_top_right(info)), (*_corners(finest), *_top_right(finest)), strict=True)
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


def _top_right(f: RasterInfo) -> tuple[float, ...]:
    """Where the first row ends: tells rasters apart that are turned or mirrored."""
    a, _, x, d, _, y = f.transform
    return x + a * f.width_px, y + d * f.width_px


def _ground(f: RasterInfo) -> tuple[object, ...]:
    return (f.crs, *(round(v, 3) for v in _corners(f)))


def take(found: dict[str, BandFile], bands: tuple[str, ...], where: str | Path) -> dict[str, BandFile]:
    """`bands` of those found, in that order. SceneError names those that are missing."""
    if missing := [b for b in bands if b not in found]:
        raise SceneError(f"{where}: no raster for band {', '.join(missing)}; found {', '.join(found) or 'none'}")
    return {b: found[b] for b in bands}
