"""Folders of eo-learn: arrays over time of one piece of ground.

    PATCH/timestamps.json     dates, ISO 8601, in order
    PATCH/bbox.geojson        CRS and corners; north is up
    PATCH/data/NAME.npy       (date, row, col, band)
    PATCH/mask/NAME.npy       (date, row, col, 1)
    PATCH/mask_timeless/NAME.npy   (row, col, 1) or (row, col, band)

Source of the layout: eo-learn's own documentation and its example data (https://github.com/sentinel-hub/eo-learn).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda.config import opt, recipe
from jeoparda.errors import PatchError, RecipeError
from jeoparda.raster import Window_px, crs_name


@recipe
class EOPatchRecipe:
    """Which of an EOPatch's arrays are taken."""

    data: tuple[str, ...] = opt((), "arrays in data/, as BANDS-S2-L1C; all of one type")
    valid: tuple[str, ...] = opt(("IS_VALID",), "arrays in mask/ that are true where valid; !NAME: where it is not")
    labels: str = opt("", "array in mask_timeless/ with class values; '': no labels")


@dataclass(frozen=True)
class EOPatch:
    """What an EOPatch says of itself. `bands`: name -> (array's path, index of the band)."""

    folder: Path
    dates: tuple[str, ...]
    crs: str
    transform: tuple[float, float, float, float, float, float]
    height_px: int
    width_px: int
    dtype: str
    bands: dict[str, tuple[str, int]]

    def at(self, date: int, options: EOPatchRecipe) -> "EOPatchDate":
        return EOPatchDate(self, date, options)


def find_eopatches(root: Path) -> list[Path]:
    """Every folder with timestamps.json, sorted."""
    return sorted(p.parent for p in root.rglob("timestamps.json"))


def open_eopatch(folder: Path, options: EOPatchRecipe) -> EOPatch:
    """PatchError names the file that is missing, or not of the shape that the others give it."""
    if not options.data:
        raise RecipeError("eopatch.data is empty; name the arrays to take, as [NDVI]")
    dates = tuple(_json(folder / "timestamps.json"))
    arrays = {f"data/{name}.npy": _array(folder / "data" / f"{name}.npy") for name in options.data}
    shape = next(iter(arrays.values())).shape
    for file, found in [*arrays.items(), *((f, _array(folder / f)) for f in _valid_files(options))]:
        if found.ndim != 4 or found.shape[:3] != (len(dates), *shape[1:3]):
            want = f"(date, row, col, band) = ({len(dates)}, {shape[1]}, {shape[2]}, ...), as timestamps.json has it"
            raise PatchError(str(folder / file), f"has the shape {found.shape}", want)
    kinds = {str(a.dtype) for a in arrays.values()}
    if len(kinds) > 1:
        raise PatchError(str(folder), f"its arrays are of the types {', '.join(sorted(kinds))}", "one type")
    bands = {
        name if a.shape[3] == 1 else f"{name}_{i + 1}": (file, i)
        for name, (file, a) in zip(options.data, arrays.items(), strict=True)
        for i in range(a.shape[3])
    }
    crs, transform = _place(folder / "bbox.geojson", shape[1], shape[2])
    return EOPatch(folder, dates, crs, transform, shape[1], shape[2], kinds.pop(), bands)


class EOPatchDate:
    """One date of an EOPatch, read as a scene is: (row, col, height, width) windows in px."""

    def __init__(self, patch: EOPatch, date: int, options: EOPatchRecipe) -> None:
        self._patch, self._date, self._options = patch, date, options

    def __enter__(self) -> "EOPatchDate":
        self._data = {f: _array(self._patch.folder / f) for f, _ in self._patch.bands.values()}
        self._masks = {f: _array(self._patch.folder / f) for f in _valid_files(self._options)}
        return self

    def __exit__(self, *_: object) -> None:
        self._data, self._masks = {}, {}

    def read(self, band: str, window: Window_px) -> np.ndarray:
        """(row, col) of the array's type; 0 where a float is not finite."""
        file, index = self._patch.bands[band]
        found = np.array(_cut(self._data[file][self._date], window, index))
        found[~np.isfinite(found)] = 0
        return found

    def valid(self, window: Window_px) -> np.ndarray:
        """(row, col) bool: every band is finite, and every mask says so."""
        good = np.ones(window[2:], bool)
        for file, index in self._patch.bands.values():
            good &= np.isfinite(_cut(self._data[file][self._date], window, index))
        for name in self._options.valid:
            mask = self._masks[f"mask/{name.removeprefix('!')}.npy"][self._date]
            good &= (_cut(mask, window, 0) != 0) != name.startswith("!")
        return good


def label_array(folder: Path, name: str) -> np.ndarray:
    """(row, col) of mask_timeless/NAME.npy."""
    found = _array(folder / "mask_timeless" / f"{name}.npy")
    if found.ndim != 3 or found.shape[2] != 1:
        raise PatchError(str(folder / "mask_timeless" / f"{name}.npy"), f"has the shape {found.shape}", "(row, col, 1)")
    return found[:, :, 0]


def _valid_files(options: EOPatchRecipe) -> list[str]:
    return [f"mask/{name.removeprefix('!')}.npy" for name in options.valid]


def _cut(image: np.ndarray, window: Window_px, band: int) -> np.ndarray:
    """image: (row, col, band); returns (row, col) of one band."""
    row, col, height, width = window
    return image[row : row + height, col : col + width, band]


def _array(path: Path) -> np.ndarray:
    """Mapped, not read."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as e:
        raise PatchError(str(path), f"cannot be read: {str(e).splitlines()[0]}", "an array of numpy's, .npy") from e


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise PatchError(str(path), f"cannot be read: {e}", "JSON") from e


def _place(path: Path, height: int, width: int) -> tuple[str, tuple[float, float, float, float, float, float]]:
    """CRS and the affine map from (col, row), of a box that height x width pixels fill."""
    box = _json(path)
    try:
        ring = np.array(box["coordinates"][0], float)
        name = box["crs"]["properties"]["name"]
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise PatchError(str(path), f"holds no box: {e!r}", "a GeoJSON polygon with a CRS") from e
    (left, bottom), (right, top) = ring.min(0).tolist(), ring.max(0).tolist()
    code = re.fullmatch(r"urn:ogc:def:crs:(\w+):[^:]*:(\w+)", name)
    crs = crs_name(f"{code[1]}:{code[2]}" if code else name)
    return crs, ((right - left) / width, 0.0, left, 0.0, -(top - bottom) / height, top)
