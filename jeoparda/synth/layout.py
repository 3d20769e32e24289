"""How a synthetic patch lies in an archive: a folder as in BigEarthNet v1, or the tree, table and maps of v2 (reBEN);
on disk, or in tar files as published. The same patch gives the same bytes everywhere.
"""

import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jeoparda.errors import ArchiveError
from jeoparda.nomenclature import CLC, nomenclature
from jeoparda.raster import write_band
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.synth.landscape import PATCH_M, Place

Layout = Literal["bigearthnet-v1", "bigearthnet-v2"]
Packing = Literal["none", "tar", "tar.gz", "tar.zst"]
V1 = "BigEarthNet-v1.0"  # the folder that the published tar holds
V2_IMAGES, V2_MAPS = "BigEarthNet-S2", "Reference_Maps"
METADATA = "metadata.parquet"
METADATA_CLOUDY = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
_CODES = np.array([c.code for c in CLC], np.uint16)
_SHARES = (("train", 0.5), ("validation", 0.75), ("test", 1.0))  # as in reBEN: a half and two quarters
_COUNTRIES = {30: "France", 31: "Belgium", 32: "Switzerland", 33: "Austria", 35: "Finland"}  # others: by northing
_CELL = 10  # patches: ground of one split


@dataclass(frozen=True)
class Patch:
    """A patch in memory. `bands`: {"10m" | "20m" | "60m": (band, row, col) uint16}, as `sensors` orders them;
    `classes`: (row, col) uint8 at 10 m, numbers in CLC; `labels`: the CORINE names of all classes in it; `cloudy`: a
    cloud and its shadow were added."""

    name: str
    bands: dict[str, np.ndarray]
    classes: np.ndarray
    labels: tuple[str, ...]
    metadata: dict[str, Any]
    place: Place
    cloudy: bool = False


class Row(NamedTuple):
    """A row of v2's table, in the order of its columns."""

    patch_id: str
    labels: tuple[str, ...]
    split: str
    country: str
    s1_name: str
    s2v1_name: str
    contains_seasonal_snow: bool
    contains_cloud_or_shadow: bool


# ---- names


def tile_of(where: Place) -> str:
    """v2's folder of a tile and date; the orbit is made up."""
    satellite, level, taken, *_ = where.name.split("_")
    return f"{satellite}_{level}_{taken}_N9999_R{where.scene % 143 + 1:03d}_T{where.tile}"


def name_of(layout: Layout, where: Place) -> str:
    if layout == "bigearthnet-v1":
        return where.name
    return "_".join((tile_of(where), *where.name.split("_")[-2:]))


def folder_of(layout: Layout, where: Place) -> str:
    """Of a patch's bands, relative to the archive."""
    name = name_of(layout, where)
    return name if layout == "bigearthnet-v1" else f"{V2_IMAGES}/{tile_of(where)}/{name}"


def tables_of(layout: Layout) -> tuple[str, ...]:
    return () if layout == "bigearthnet-v1" else (METADATA, METADATA_CLOUDY)


# ---- one patch


def row_of(seed: int, made: Patch) -> Row | None:
    """v2's row; None where no label of the 19 classes is left, as such patches have none there."""
    index, names = nomenclature("bigearthnet-19").index, nomenclature("bigearthnet-19").classes
    labels = tuple(names[i] for i in sorted({index[n] for n in made.labels if n in index}))
    if not labels:
        return None
    col, row = (int(n) // _CELL for n in made.place.name.split("_")[-2:])
    cell = hashlib.sha256(f"{seed}/{made.place.tile}/{col}/{row}".encode()).digest()
    split = next(s for s, below in _SHARES if int.from_bytes(cell[:8], "big") / 2**64 < below)
    name = name_of("bigearthnet-v2", made.place)
    return Row(name, labels, split, _country(made.place), "", made.name, False, made.cloudy)


def _country(where: Place) -> str:
    north = where.region.north_km[0]
    return (
        _COUNTRIES.get(where.zone)
        or {
            29: "Portugal" if north < 5000 else "Ireland",
            34: "Serbia" if north < 5500 else "Lithuania",
        }[where.zone]
    )


def files_of(layout: Layout, made: Patch) -> dict[str, dict[str, bytes]]:
    """{folder relative to the archive: {file name: content}}; of v2 the second folder is the map's."""
    where, name = made.place, name_of(layout, made.place)
    files = {
        f"{name}_{band}.tif": geotiff(pixels, where.zone, where.ulx_m, where.uly_m)
        for pixel_m, bands in SENTINEL_2_L2A.groups
        for band, pixels in zip(bands, made.bands[f"{pixel_m:g}m"], strict=True)
    }
    if layout == "bigearthnet-v1":
        return {name: files | {f"{name}_labels_metadata.json": json.dumps(made.metadata).encode()}}
    codes = geotiff(_CODES[made.classes], where.zone, where.ulx_m, where.uly_m)
    map_ = {f"{name}_reference_map.tif": codes}
    return {folder_of(layout, where): files, f"{V2_MAPS}/{tile_of(where)}/{name}": map_}


def write(archive: Path, layout: Layout, made: Patch) -> None:
    """A patch's folders, each of which appears under its name when it is whole; the one of the bands last."""
    path = archive / folder_of(layout, made.place)
    part = path.with_name(f".{path.name}.part")
    try:
        for folder, files in reversed(files_of(layout, made).items()):
            path = archive / folder
            part = path.with_name(f".{path.name}.part")
            _write_folder(path, part, files)
    except OSError as e:  # rasterio's errors are OSErrors too
        shutil.rmtree(part, ignore_errors=True)
        raise ArchiveError(f"{path}: cannot be written: {e.strerror or e}; start again to go on") from e


def _write_folder(path: Path, part: Path, files: dict[str, bytes]) -> None:
    if path.is_dir():  # a map whose bands a killed run did not come to
        return
    part.mkdir(parents=True)
    for name, content in files.items():
        (part / name).write_bytes(content)
    part.rename(path)


def geotiff(band: np.ndarray, zone: int, ulx_m: float, uly_m: float) -> bytes:
    """The file that `raster.write_band` makes of a band, (row, col) uint16, of a patch with that corner.

    GDAL takes longer over a small file than all of the rest of a patch, and a patch has twelve that differ in their
    pixels and corner only. So one is made by `write_band`, and these two are put in their places in its bytes.
    """
    size = len(band)
    mould, corner, pixels = _mould(zone, size)
    file = bytearray(mould)
    file[corner : corner + 16] = struct.pack("=dd", ulx_m, uly_m)
    file[pixels : pixels + band.nbytes] = band.tobytes()
    return bytes(file)


@lru_cache(64)
def _mould(zone: int, size_px: int) -> tuple[bytes, int, int]:
    """A GeoTIFF of `write_band`, and where in it the corner (two doubles) and the pixels begin."""
    x, y = 123_456.0, 7_654_321.0
    marks = np.arange(1, size_px**2 + 1, dtype=np.uint16).reshape(size_px, size_px)
    pixel = float(PATCH_M // size_px)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mould.tif"
        write_band(path, marks, f"EPSG:{32600 + zone}", (pixel, 0.0, x, 0.0, -pixel, y))
        mould = path.read_bytes()
    return mould, mould.index(struct.pack("=dd", x, y)), mould.index(marks.tobytes())


# ---- the whole archive


def pack(out: Path, layout: Layout, packing: Packing, made: Iterable[dict[str, dict[str, bytes]]]) -> None:
    """The tar files of an archive, from the files of its patches in order; they appear when they are whole."""
    from jeoparda.ingest.tarball import packed

    roots = (V1,) if layout == "bigearthnet-v1" else (V2_IMAGES, V2_MAPS)
    with ExitStack() as stack:
        adds = [stack.enter_context(packed(out / f"{root}.{packing}")) for root in roots]
        for folders in made:
            for add, (folder, files) in zip(adds, folders.items(), strict=True):
                inside = f"{V1}/{folder}" if layout == "bigearthnet-v1" else folder
                for name, content in files.items():
                    add(f"{inside}/{name}", content)


def write_tables(out: Path, rows: list[Row]) -> None:
    """v2's two tables, sorted by patch: those without cloud and shadow, and the others."""
    from jeoparda.ingest.bigearthnet_v2 import write_metadata

    def some(cloudy: bool) -> Iterator[Row]:
        return (row for row in sorted(rows) if row.contains_cloud_or_shadow == cloudy)

    write_metadata(out / METADATA, some(False))
    write_metadata(out / METADATA_CLOUDY, some(True))
