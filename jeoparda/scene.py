"""A scene: the bands of one acquisition, each at its own pixel size, over the same ground."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jeoparda.errors import SceneError
from jeoparda.raster import RasterInfo, describe, read_band

_RASTERS = (".jp2", ".tif", ".tiff")
_BAND = re.compile(r"(?:^|_)(B\d{2}|B8A)(?:_\d+m)?\.[a-zA-Z0-9]+$")
_LEVEL = re.compile(r"MSI(L1C|L2A)")


@dataclass(frozen=True)
class Scene:
    """`files`: band -> description of its raster. `finest`: the description of the finest band. `level`: "L1C",
    "L2A", or "" where the names do not say."""

    name: str
    folder: str
    files: dict[str, RasterInfo]
    level: str

    @property
    def finest(self) -> RasterInfo:
        return min(self.files.values(), key=lambda f: f.pixel_size)

    def read(self, band: str, window: tuple[int, int, int, int]) -> np.ndarray:
        """A band's pixels, (row, col), under `window` = (row, col, height, width) in px of the finest band.

        SceneError where the window does not fall on whole pixels of the band.
        """
        info = self.files[band]
        scaled = [v * self.finest.pixel_size / info.pixel_size for v in window]
        if any(v != int(v) for v in scaled):
            raise SceneError(
                f"{info.path}: window {window} px at {self.finest.pixel_size} m falls between its "
                f"{info.pixel_size} m pixels; take a stride that is a multiple of 6 px"
            )
        r, c, h, w = (int(v) for v in scaled)
        return read_band(info.path, window=(r, c, h, w))[0]


def open_scene(folder: Path, bands: tuple[str, ...]) -> Scene:
    """The scene in `folder`: one raster a band, named ..._B02.jp2, B02.tif or ..._B02_10m.jp2, at any depth.

    SceneError names bands that are missing, are there twice, or lie elsewhere than the rest.
    """
    if not folder.is_dir():
        raise SceneError(f"{folder}: no such folder; expected one with a raster for each band")
    files: dict[str, RasterInfo] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _RASTERS):
        found = _BAND.search(path.name)
        if not found or found[1] not in bands:
            continue
        info = describe(path)
        if other := files.get(found[1]):
            if other.pixel_size == info.pixel_size:
                raise SceneError(
                    f"{folder}: band {found[1]} is there twice, {other.path} and {info.path}; give one scene's folder"
                )
            # a product may hold a band at several pixel sizes: the finest is the measured one
            info = min(info, other, key=lambda f: f.pixel_size)
        files[found[1]] = info
    missing = [b for b in bands if b not in files]
    if missing:
        raise SceneError(
            f"{folder}: no raster for band {', '.join(missing)}; found {', '.join(sorted(files)) or 'none'}"
        )
    scene = Scene(_name(folder, files), str(folder), files, _level(folder, files))
    _check_ground(scene)
    return scene


def _name(folder: Path, files: dict[str, RasterInfo]) -> str:
    """What the band files have in common, T33UUU_20170216T102101 for a Sentinel-2 granule; else the folder's name."""
    shared = os.path.commonprefix([Path(f.path).name for f in files.values()])  # noqa: RUF071 (of characters)
    return re.sub(r"_?B?[0-9]*$", "", shared) or folder.resolve().name


def _level(folder: Path, files: dict[str, RasterInfo]) -> str:
    text = f"{folder.resolve()} {next(iter(files.values())).path}"
    found = _LEVEL.search(text)
    if found:
        return found[1]
    # the compact names of L1C image data carry no resolution, those of L2A do
    return "L2A" if re.search(r"_\d+m\.jp2$", text) else "L1C" if text.endswith(".jp2") else ""


def _check_ground(scene: Scene) -> None:
    def ground(f: RasterInfo) -> tuple[object, ...]:
        a, _, x, _, e, y = f.transform
        return f.crs, round(x, 3), round(y, 3), round(x + a * f.width_px, 3), round(y + e * f.height_px, 3)

    reference = scene.finest
    for band, info in scene.files.items():
        if ground(info) != ground(reference):
            raise SceneError(
                f"{info.path}: band {band} covers {ground(info)}, {reference.path} covers {ground(reference)}; "
                "expected the same CRS and corners (left, top, right, bottom)"
            )
