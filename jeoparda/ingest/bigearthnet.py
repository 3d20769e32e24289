"""BigEarthNet v1 folders as they are: one folder a patch, 12 single-band GeoTIFFs and a JSON of labels.

Source of the layout: Sumbul et al., "BigEarthNet: a large-scale benchmark archive", IGARSS 2019.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jeoparda.errors import ArchiveError, PatchError
from jeoparda.nomenclature import Nomenclature
from jeoparda.raster import crs_name, read_band
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import Group, group_records

SENSOR = SENTINEL_2_L2A
SIZE_PX = 120
GROUPS: tuple[Group, ...] = group_records(SENSOR, SIZE_PX)
_LABELS = "_labels_metadata.json"


@dataclass(frozen=True)
class Planned:
    """A patch that is to be read: its folder, labels and place on the ground (upper left corner, CRS's units)."""

    id: str
    folder: str
    classes: tuple[int, ...]
    crs: str
    ulx: float
    uly: float
    date: str


def patch_folders(archive: Path) -> list[str]:
    """The names of the patch folders, sorted: their order is the store's order."""
    if not archive.is_dir():
        raise ArchiveError(f"{archive}: no such folder; expected a BigEarthNet v1 archive (one folder a patch)")
    with os.scandir(archive) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise ArchiveError(f"{archive}: holds no folders; expected one folder a patch, as S2A_MSIL2A_..._46_22/")
    return names


def plan_patch(archive: Path, name: str, classes: Nomenclature) -> Planned:
    """Read a patch's JSON. PatchError names the file, what is wrong with it and what was expected.

    `classes` of the result is empty where the nomenclature drops all of the patch's labels.
    """
    folder = archive / name
    path = folder / f"{name}{_LABELS}"
    try:
        meta = json.loads(path.read_text())
        names, corner = meta["labels"], meta["coordinates"]
        if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise TypeError(f"labels is {names!r}, not a list of names")
        ulx, uly = float(corner["ulx"]), float(corner["uly"])
        crs, date = crs_name(meta["projection"]), meta["acquisition_date"].replace(" ", "T")
    except FileNotFoundError as e:
        raise PatchError(f"{path}: missing; expected the patch's labels and coordinates") from e
    except json.JSONDecodeError as e:
        raise PatchError(f"{path}: not valid JSON at line {e.lineno}: {e.msg}") from e
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PatchError(f"{path}: expected labels, coordinates, projection and acquisition_date; {e!r}") from e
    try:
        numbers = classes.encode(names)
    except KeyError as e:
        raise PatchError(f"{path}: label {e.args[0]!r} is no CORINE level-3 class") from e
    return Planned(name, str(folder), tuple(numbers), crs, ulx, uly, date)


def read_patch(patch: Planned) -> dict[str, np.ndarray]:
    """Every band of a patch at its own resolution: {group name: (band, row, col) uint16}.

    PatchError names the file whose size, type, CRS or place is not what the sensor and the JSON say.
    """
    return {
        g.name: np.stack([_read(patch, g, os.path.join(patch.folder, f"{patch.id}_{band}.tif")) for band in g.bands])
        for g in GROUPS
    }


def _read(patch: Planned, group: Group, path: str) -> np.ndarray:
    try:
        array, info = read_band(path)
    except OSError as e:
        raise PatchError(str(e) if os.path.exists(path) else f"{path}: missing") from e
    found = (array.shape, info.dtype, info.crs, info.transform)
    a = float(group.pixel_m)
    expected = ((group.size_px,) * 2, "uint16", patch.crs, (a, 0.0, patch.ulx, 0.0, -a, patch.uly))
    if found != expected:
        raise PatchError(f"{path}: (shape, type, CRS, transform) is {found}, expected {expected}")
    return array
