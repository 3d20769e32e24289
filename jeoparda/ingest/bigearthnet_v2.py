"""BigEarthNet v2 (reBEN): folders TILE/PATCH of 12 GeoTIFFs, one table of labels, and a reference map a patch.

Unpacked, or straight from the published BigEarthNet-S2.tar.zst and Reference_Maps.tar.zst beside metadata.parquet.

Source of the layout: Clasen et al., "reBEN: refined BigEarthNet dataset for remote sensing image analysis", IGARSS
2025. The archive holds 549,488 patches; metadata.parquet has the 480,038 of them without snow, cloud and shadow, and
a second table the rest. So a patch folder without a row is no fault.
"""

import heapq
import math
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jeoparda.errors import ArchiveError, PatchError, RecipeError
from jeoparda.files import whole
from jeoparda.ingest.bigearthnet import (
    BANDS,
    PATCH_M,
    SENSOR,
    SIZE_PX,
    V1_ONLY,
    BigEarthNetRecipe,
    contents_of,
    cut_short,
    grid,
    missing_of,
    read_bands,
    read_checked,
    refuse_keys,
)
from jeoparda.ingest.source import LeftOut, Patch, Planned
from jeoparda.ingest.tarball import Finder, TruncatedTar, bundles
from jeoparda.nomenclature import CLC, IGNORE, nomenclature
from jeoparda.store import Contents, Reject

LABEL_SET = "bigearthnet-19"
MAP = "_reference_map.tif"
NO_CLASS = (0, 990, 995, 999)  # CORINE's codes of unclassified land, unclassified water and no data; 0 of the files
SPLITS = {"train": "train", "validation": "val", "test": "test"}
FEW = 20  # patches missing from a tile that are told one by one
PUBLISHED = (
    "patch_id", "labels", "split", "country", "s1_name", "s2v1_name", "contains_seasonal_snow",
    "contains_cloud_or_shadow",
)  # fmt: skip
COLUMNS = ("patch_id", "labels", "split", "country", "contains_seasonal_snow", "contains_cloud_or_shadow")
_NAME = re.compile(
    r"S2[A-D]_MSIL2A_(\d{8})T(\d{5,6})_N\d{4}_R\d{3}_T(\d{2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])_(\d{1,2})_(\d{1,2})"
)


class Row(NamedTuple):
    """A row of the metadata, as COLUMNS."""

    id: str
    labels: tuple[str, ...]
    split: str
    country: str
    snow: bool
    cloud: bool


class Unit(NamedTuple):
    """A patch that is to be planned. row: None where the metadata have none. folder, map: where its bands and its
    reference map lie, relative to the archive or in their tars. found: what is known against it already."""

    id: str
    row: Row | None
    folder: str = ""
    map: str = ""
    found: Reject | LeftOut | None = None


def describe(archive: Path, section: BigEarthNetRecipe) -> Contents:
    """Sentinel-2 L2A at its three resolutions, with 19 classes; masks where the recipe names reference maps."""
    refuse_keys(section, V1_ONLY, "bigearthnet-v2")
    if section.nomenclature == "bigearthnet-43":
        raise RecipeError(
            "bigearthnet.nomenclature = 'bigearthnet-43': BigEarthNet v2 is published with 19 classes; take "
            f"{LABEL_SET}, or v1 for 43"
        )
    if not section.metadata:
        raise RecipeError("bigearthnet.metadata = []: expected at least one file, as metadata.parquet")
    for name in (section.images, *section.metadata, *filter(None, [section.reference_maps])):
        if not (archive / name).exists():
            raise ArchiveError(
                f"{archive / name}: missing; expected in a BigEarthNet v2 archive: {section.images}, "
                f"{', '.join(section.metadata)}" + (f" and {section.reference_maps}" if section.reference_maps else "")
            )
    return contents_of(nomenclature(LABEL_SET), SIZE_PX if section.reference_maps else 0)


# ---- which patches there are


def units(archive: Path, section: BigEarthNetRecipe, contents: Contents) -> Iterator[Unit]:
    """Every patch of the metadata and of the archive: of folders sorted by name, of a tar in its own order. What
    lacks its bands, its row or its map is told apart here."""
    maps = _Maps(archive, section)
    if (archive / section.images).is_file():
        yield from _units_of_tar(archive, section, maps)
    else:
        yield from _units_of_folders(archive, section, maps)
    if maps.cut_short:
        yield Unit(section.reference_maps, None, found=maps.cut_short)


def _units_of_folders(archive: Path, section: BigEarthNetRecipe, maps: "_Maps") -> Iterator[Unit]:
    tiles = set(_listing(archive / section.images))
    for tile, group in groupby(_rows(archive, section), lambda row: tile_of(row.id)):
        rows, twice = _by_id(group)
        yield from twice
        folder = f"{section.images}/{tile}"
        there = set(_listing(archive / folder)) if tile in tiles else set()
        maps.begin(tile, rows)
        yield from (maps.joined(Unit(row.id, row, f"{folder}/{row.id}")) for row in rows.values() if row.id in there)
        yield from _without_bands([row for row in rows.values() if row.id not in there], section.images, tile in tiles)
        yield from (_without_row(name) for name in sorted(there - rows.keys()))
        tiles.discard(tile)
    for tile in sorted(tiles):
        yield from (_without_row(name) for name in _listing(archive / section.images / tile))


def _units_of_tar(archive: Path, section: BigEarthNetRecipe, maps: "_Maps") -> Iterator[Unit]:
    rows, twice = _by_id(_rows(archive, section))
    yield from twice
    seen: set[str] = set()
    for tile, names in groupby(rows, tile_of):
        maps.begin(tile, names, keep=True)
    try:
        for bundle in bundles(archive / section.images, BANDS, lambda name: False):
            name = bundle.name
            if name in seen:
                yield Unit(name, rows.get(name), found=Reject(name, bundle.folder, "comes twice", "each patch once"))
            elif name not in rows:
                yield _without_row(name)
            elif fault := missing_of(bundle):
                yield Unit(name, rows[name], found=fault)
            else:
                yield maps.joined(Unit(name, rows[name], bundle.folder))
            seen.add(name)
    except TruncatedTar as e:
        yield Unit(section.images, None, found=cut_short(section.images, e, section))
    tiles = {tile_of(name) for name in seen}
    for tile, group in groupby((row for row in rows.values() if row.id not in seen), lambda row: tile_of(row.id)):
        yield from _without_bands(list(group), section.images, tile in tiles)


def _by_id(rows: Iterable[Row]) -> tuple[dict[str, Row], list[Unit]]:
    """Rows by patch, the first of each; the others as faults."""
    found: dict[str, Row] = {}
    twice = []
    for row in rows:
        if found.setdefault(row.id, row) is not row:
            fault = Reject(row.id, "metadata", f"a second row of patch {row.id}", "one row a patch")
            twice.append(Unit(row.id, row, found=fault))
    return found, twice


def _without_bands(rows: list[Row], images: str, has_tile: bool) -> Iterator[Unit]:
    """Rows of one tile that the archive has no bands of. A few are faults, one line each; many are a download that
    has not come so far, or a choice of patches: a count a tile, and one of all tiles that are absent."""
    for row in rows:
        tile = tile_of(row.id)
        if not has_tile:
            yield Unit(row.id, row, found=LeftOut(row.id, f"in the metadata, but nothing of its tile is in {images}"))
        elif len(rows) > FEW:
            yield Unit(row.id, row, found=LeftOut(row.id, f"in the metadata, but not in {images}/{tile}"))
        else:
            lost = Reject(row.id, f"{images}/{tile}/{row.id}", "missing", "the patch's bands: the metadata have it")
            yield Unit(row.id, row, found=lost)


def _without_row(name: str) -> Unit:
    return Unit(name, None, found=LeftOut(name, "in the archive, but in none of the files of metadata"))


class _Maps:
    """Which patches have a reference map, and what is said of those that have none: as of bands, see _without_bands."""

    def __init__(self, archive: Path, section: BigEarthNetRecipe) -> None:
        self.name = section.reference_maps
        self.cut_short: Reject | None = None
        self._folder = archive / self.name
        self._in_tar: dict[str, str] | None = None  # patch -> folder in the tar
        self._there: set[str] = set()  # patches of the tiles begun, of maps on disk
        self._lacking: dict[str, int] = {}  # tile -> patches of the metadata without a map
        if self.name and self._folder.is_file():
            self._in_tar = {}
            try:
                for bundle in bundles(self._folder, (MAP,), lambda name: False):
                    self._in_tar[bundle.name] = bundle.folder
            except TruncatedTar as e:
                self.cut_short = cut_short(self.name, e, section)

    def begin(self, tile: str, patches: Iterable[str], keep: bool = False) -> None:
        """Look up a tile's maps, before `joined` is asked for its patches. keep: the tiles begun before stay."""
        if not self.name:
            return
        if self._in_tar is None:
            self._there = self._there if keep else set()
            self._there.update(_listing(self._folder / tile) if (self._folder / tile).is_dir() else ())
        has = self._there if self._in_tar is None else self._in_tar
        self._lacking[tile] = sum(patch not in has for patch in patches)

    def joined(self, unit: Unit) -> Unit:
        """The unit with its map, or with what is wrong."""
        if not self.name:
            return unit
        tile = tile_of(unit.id)
        usual = f"{self.name}/{tile}/{unit.id}"
        folder = (usual if unit.id in self._there else "") if self._in_tar is None else self._in_tar.get(unit.id, "")
        if folder:
            return unit._replace(map=f"{folder}/{unit.id}{MAP}")
        if self._lacking[tile] <= FEW:
            return unit._replace(found=Reject(unit.id, f"{usual}/{unit.id}{MAP}", "missing", "its reference map"))
        return unit._replace(found=LeftOut(unit.id, f"no map in {self.name}/{tile}"))


def tile_of(patch: str) -> str:
    """S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP of S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57."""
    return patch.rsplit("_", 2)[0]


def _listing(folder: Path) -> list[str]:
    """The folders in a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as e:
        raise ArchiveError(f"{folder}: cannot be listed: {e.strerror}; expected folders TILE/PATCH") from e


# ---- the metadata


def _rows(archive: Path, section: BigEarthNetRecipe) -> Iterator[Row]:
    """The rows of all metadata files, sorted by patch. Memory: a few batches, where a file is sorted as published."""
    return heapq.merge(*(_rows_of(archive / name) for name in section.metadata), key=lambda row: row.id)


def _rows_of(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        lacking = [c for c in COLUMNS if c not in file.schema_arrow.names]
        if lacking:
            raise ArchiveError(
                f"{path}: has no column {', '.join(lacking)}; expected the published columns {', '.join(COLUMNS)}"
            )
        if _is_sorted(path, file):
            batches: Iterable[pa.RecordBatch] = file.iter_batches(8192, columns=list(COLUMNS))
        else:
            batches = file.read(list(COLUMNS)).sort_by("patch_id").to_batches(8192)
        one: dict[Any, Any] = {}  # of each value but the ids: a tar's rows are all held at once
        for batch in batches:
            columns = (batch.column(name).to_pylist() for name in COLUMNS)
            for id_, labels, split, country, snow, cloud in zip(*columns, strict=True):
                labels, split, country = (one.setdefault(v, v) for v in (tuple(labels or ()), split, country))
                yield Row(id_, labels, split, country, snow, cloud)
    except ArchiveError:
        raise
    except (pa.ArrowException, OSError) as e:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {e}; download it again") from e


def _is_sorted(path: Path, file: pq.ParquetFile) -> bool:
    last = ""
    for batch in file.iter_batches(65536, columns=["patch_id"]):
        if batch.column(0).null_count:
            raise ArchiveError(f"{path}: a patch_id is empty; expected the name of a patch in each row")
        ids = batch.column(0).to_pylist()
        if ids and (ids[0] < last or any(b < a for a, b in pairwise(ids))):
            return False
        last = ids[-1] if ids else last
    return True


def write_metadata(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    """A table with the published columns, PUBLISHED, from rows in that order; the file appears when it is whole."""
    text, flag = pa.string(), pa.bool_()
    kinds = (text, pa.list_(text), text, text, text, text, flag, flag)
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    with whole(path) as draft:
        pq.write_table(pa.table(arrays, list(PUBLISHED)), draft)


# ---- planning


def plan(archive: Path, section: BigEarthNetRecipe, contents: Contents, unit: Unit) -> list[Planned | Reject | LeftOut]:
    """The patch of a unit, from its row and its name alone: no file is opened."""
    if isinstance(unit.found, LeftOut) or unit.row is None:
        return [unit.found] if unit.found else []
    row = unit.row
    for flag, wish, reason in (
        (row.snow, section.snow, "seasonal snow"),
        (row.cloud, section.cloud, "cloud or shadow"),
    ):
        if flag and wish == "drop":
            return [LeftOut(row.id, f"{reason}, by the metadata's flag")]
    if unit.found:
        return [unit.found]
    try:
        crs, ulx, uly, date = place(row.id)
        split, classes = _split(row), _classes(row)
    except PatchError as e:
        return [Reject(row.id, e.file, e.reason, e.expected)]
    if not classes:
        return [LeftOut(row.id, f"no label in {contents.nomenclature}")]
    where = {"folder": unit.folder} | ({"map": unit.map} if unit.map else {})
    return [Planned(row.id, unit.folder, crs, grid(ulx, uly), date, classes, where, row.country or "", split)]


def place(patch: str) -> tuple[str, float, float, str]:
    """CRS, easting and northing (m) of the upper left corner, and date, of a patch by its name.

    A tile begins on a multiple of 60 m, west of or on its MGRS square's west edge and north of or on its north edge
    (Sentinel-2 Level-1C tiling grid, ESA); the name ends with the patch's column and row in it, 1200 m each. `read`
    compares this with each file.
    """
    found = _NAME.fullmatch(patch)
    try:
        if not found:
            raise ValueError("no name of a patch")
        day, time, tile, col, row = found.groups()
        date = datetime.fromisoformat(f"{day}T{time.zfill(6)}")  # some write 9:40:33 as 94033
        crs, west, north = tile_corner(tile)
    except ValueError as e:
        expected = "as S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
        raise PatchError(patch, f"{e}", expected) from e
    return crs, west + PATCH_M * int(col), north - PATCH_M * int(row), date.isoformat()


@lru_cache(1024)
def tile_corner(tile: str) -> tuple[str, int, int]:
    """CRS and upper left corner (m) of a Sentinel-2 tile, as "33UUP". ValueError where there is no such square.

    The multiples of 60 m count from the equator, also in the south, where northings have 10,000 km added.

    Source: Military Grid Reference System (NGA.STND.0037): columns in three sets of eight letters, rows in a cycle
    of twenty that begins at F in even zones, bands of 8 degrees from C at 80 degrees south; I and O are left out.
    """
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    zone, band, column, row = int(tile[:2]), *(letters.index(c) for c in tile[2:])
    if not 1 <= zone <= 60:
        raise ValueError(f"zone {zone} of tile {tile}")
    east = (column - (zone - 1) % 3 * 8 + 1) * 100_000
    if not 100_000 <= east <= 800_000:
        raise ValueError(f"column {tile[3]} of tile {tile} is not in zone {zone}")
    south = (row - (5 if zone % 2 == 0 else 0)) % 20 * 100_000  # from the equator, modulo 2000 km
    middle = (8 * (band - 2) - 76) * 111_000  # of the band, roughly
    south += round((middle - south) / 2_000_000) * 2_000_000
    top = math.ceil((south + 100_000) / 60) * 60
    if band >= 12:
        return f"EPSG:{32600 + zone}", east // 60 * 60, top
    return f"EPSG:{32700 + zone}", east // 60 * 60, top + 10_000_000


def _split(row: Row) -> str:
    if row.split not in SPLITS:
        raise PatchError("metadata", f"split {row.split!r} of patch {row.id}", f"one of {', '.join(SPLITS)}")
    return SPLITS[row.split]


def _classes(row: Row) -> tuple[int, ...]:
    known = _class_numbers()
    if unknown := [n for n in row.labels if n not in known]:
        raise PatchError("metadata", f"label {unknown[0]!r} of patch {row.id} is no class of {LABEL_SET}")
    return tuple(sorted({known[n] for n in row.labels}))


@lru_cache(1)
def _class_numbers() -> dict[str, int]:
    return {name: i for i, name in enumerate(nomenclature(LABEL_SET).classes)}


# ---- pixels


def payloads(
    archive: Path, section: BigEarthNetRecipe, contents: Contents, wanted: Iterator[tuple[int, list[Planned]]]
) -> Iterator[tuple[int, dict[str, bytes] | None]]:
    """As of v1: {member: content} of what lies in a tar, bands and maps; None where both are folders."""
    images = maps = None
    if (archive / section.images).is_file():
        images = Finder(archive / section.images, bundles(archive / section.images, BANDS))
    if section.reference_maps and (archive / section.reference_maps).is_file():
        path = archive / section.reference_maps
        maps = Finder(path, bundles(path, (MAP,)), keep=True)
    for number, patches in wanted:
        found: dict[str, bytes] = {}
        for patch in patches:
            found |= images.find(patch.where["folder"]) if images else {}
            found |= maps.find(patch.where["map"].rpartition("/")[0]) if maps else {}
        yield number, found if images or maps else None


def read(
    archive: Path, section: BigEarthNetRecipe, contents: Contents, patches: list[Planned], payload: Any
) -> Iterator[Patch | Reject]:
    """Bands and mask of each patch; a file that is not on the ground that the name says, or a map with an
    unknown code, rejects it."""
    for patch in patches:
        try:
            arrays = read_bands(archive, patch, payload)
            if "map" in patch.where:
                codes = read_checked(archive, patch.where["map"], patch, SENSOR.finest_m, payload)
                arrays["mask"] = mask_of(codes, patch.where["map"])
            yield Patch(arrays, patch.classes)
        except PatchError as e:
            yield Reject(patch.id, e.file, e.reason, e.expected)


def mask_of(codes: np.ndarray, file: str) -> np.ndarray:
    """CORINE level-3 codes, (row, col) uint16, as class numbers, uint8; IGNORE where the nomenclature drops the class
    or there is none. PatchError where a code is neither."""
    table, known = _codes()
    inside = np.minimum(codes, len(table) - 1)
    if not known[inside].all():
        strange = np.unique(codes[~known[inside]]).tolist()
        raise PatchError(file, f"holds {strange}", "CORINE level-3 codes, 111 to 523")
    return table[inside]


@lru_cache(1)
def _codes() -> tuple[np.ndarray, np.ndarray]:
    """(code,) class number or IGNORE; (code,) whether CORINE knows the code."""
    index = nomenclature(LABEL_SET).index
    table, known = np.full(1001, IGNORE, np.uint8), np.zeros(1001, bool)
    for c in CLC:
        table[c.code], known[c.code] = index.get(c.name, IGNORE), True
    known[list(NO_CLASS)] = True
    return table, known
