"""BigEarthNet v1 as it is: one folder a patch, 12 single-band GeoTIFFs and a JSON of labels; unpacked, or the tar.

Source of the layout: Sumbul et al., "BigEarthNet: a large-scale benchmark archive", IGARSS 2019.
"""

import csv
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jeoparda.config import as_dict, opt, recipe
from jeoparda.errors import ArchiveError, PatchError, RecipeError
from jeoparda.ingest.source import LeftOut, Patch, Planned, Transform
from jeoparda.ingest.tarball import DISTANCE, Bundle, Finder, TruncatedTar, bundles
from jeoparda.nomenclature import Nomenclature, nomenclature
from jeoparda.raster import crs_name, read_band
from jeoparda.sensors import REFLECTANCE, SENTINEL_2_L2A
from jeoparda.store import Contents, Group, Layout, Reject, group_records

SENSOR = SENTINEL_2_L2A
SIZE_PX = 120
PATCH_M = SIZE_PX * SENSOR.finest_m
GROUPS: tuple[Group, ...] = group_records(SENSOR, SIZE_PX)
BANDS = tuple(f"_{band}.tif" for band in SENSOR.bands)  # how the names of a patch's band files end
LABELS = "_labels_metadata.json"
_EARTH_M = 1e8  # no coordinate is larger
V2_ONLY = ("images", "metadata", "reference_maps", "snow", "cloud")
V1_ONLY = ("drop_snowy", "drop_cloudy")


@recipe
class BigEarthNetRecipe:
    """BigEarthNet v1 or v2 (reBEN), unpacked or as the published tar files."""

    nomenclature: Literal["own", "bigearthnet-43", "bigearthnet-19"] = opt(
        "own", "label set; own: the 43 classes of v1, the 19 of v2; 19 of v1 leaves out patches without one of them"
    )
    drop_snowy: Path | None = opt(None, "v1: patches to leave out, the published patches_with_seasonal_snow.csv")
    drop_cloudy: Path | None = opt(None, "v1: patches to leave out, the published patches_with_cloud_and_shadow.csv")
    images: str = opt("BigEarthNet-S2", "v2: folder of tiles in the archive, or the tar BigEarthNet-S2.tar.zst there")
    metadata: tuple[str, ...] = opt(
        ("metadata.parquet",), "v2: which patches, their labels and splits: files in the archive, one or more"
    )
    reference_maps: str = opt(
        "", "v2: Reference_Maps or Reference_Maps.tar.zst in the archive: masks for segmentation; empty: labels alone"
    )
    snow: Literal["drop", "keep"] = opt("drop", "v2: patches that the metadata flag as seasonal snow")
    cloud: Literal["drop", "keep"] = opt("drop", "v2: patches that the metadata flag as cloud or shadow")
    truncated: Literal["refuse", "keep"] = opt(
        "refuse", "of a tar that is cut short, keep: the whole patches before the end; the cut is told as rejected"
    )


class Unit(NamedTuple):
    """A patch that is to be planned. unwanted: why it is left out, "" where it is not. labels: its JSON, None where
    that is to be read from disk. fault: of a patch, or a tar, that cannot be used."""

    name: str
    folder: str
    unwanted: str = ""
    labels: bytes | None = None
    fault: Reject | None = None


def describe(archive: Path, section: BigEarthNetRecipe) -> Contents:
    """Sentinel-2 L2A at its three resolutions, with the classes of the recipe's nomenclature."""
    refuse_keys(section, V2_ONLY, "bigearthnet-v1")
    return contents_of(nomenclature("bigearthnet-43" if section.nomenclature == "own" else section.nomenclature))


def refuse_keys(section: BigEarthNetRecipe, keys: tuple[str, ...], source: str) -> None:
    """RecipeError where a key is set that this version of the archive has no use for."""
    given, default = as_dict(section), as_dict(BigEarthNetRecipe())
    if set_ := [k for k in keys if given[k] != default[k]]:
        raise RecipeError(f"bigearthnet.{set_[0]} = {given[set_[0]]!r} does nothing with source = {source}; remove it")


def contents_of(classes: Nomenclature, mask_px: int = 0) -> Contents:
    return Contents(
        sensor=SENSOR.name,
        unit=REFLECTANCE,
        rgb=SENSOR.rgb,
        layout=Layout(GROUPS, mask_px=mask_px),
        nomenclature=classes.name,
        classes=classes.classes,
        colors=classes.colors,
        target="mask" if mask_px else "labels",
    )


def units(archive: Path, section: BigEarthNetRecipe, contents: Contents) -> Iterator[Unit]:
    """Every patch: folders sorted by name, a tar's in its own order. That is the store's order."""
    unwanted = _unwanted(section)
    if not archive.is_file():
        yield from (Unit(name, name, unwanted.get(name, "")) for name in _folders(archive))
        return
    try:
        for bundle in bundles(archive, (*BANDS, LABELS), lambda name: name.endswith(LABELS)):
            name, fault = bundle.name, missing_of(bundle)
            yield Unit(name, bundle.folder, unwanted.get(name, ""), bundle.files.get(name + LABELS), fault)
    except TruncatedTar as e:
        yield Unit(archive.name, "", fault=cut_short(archive.name, e, section))


def _folders(archive: Path) -> list[str]:
    if not archive.is_dir():
        raise ArchiveError(f"{archive}: no such folder; expected a BigEarthNet v1 archive (one folder a patch)")
    with os.scandir(archive) as entries:
        # a link to nowhere was a patch once: it is to be told of as missing
        found = [e for e in entries if e.is_dir() or (e.is_symlink() and not os.path.exists(e.path))]
    names = sorted(e.name for e in found if not e.name.startswith("."))
    if not names:
        raise ArchiveError(f"{archive}: holds no folders; expected one folder a patch, as S2A_MSIL2A_..._46_22/")
    return names


def _unwanted(section: BigEarthNetRecipe) -> dict[str, str]:
    """Patch name -> why it is left out, from the recipe's lists."""
    snowy = _names(section.drop_snowy) if section.drop_snowy else []
    cloudy = _names(section.drop_cloudy) if section.drop_cloudy else []
    return dict.fromkeys(snowy, "seasonal snow, by drop_snowy") | dict.fromkeys(
        cloudy, "cloud or shadow, by drop_cloudy"
    )


def _names(path: Path) -> list[str]:
    """The first column of a list of patches."""
    try:
        with open(path, newline="") as f:
            return [row[0].strip() for row in csv.reader(f) if row and row[0].strip()]
    except OSError as e:
        raise RecipeError(f"{path}: cannot read the list of patches: {e.strerror}") from e


def missing_of(bundle: Bundle) -> Reject | None:
    """A patch of a tar that lacks files."""
    if not bundle.missing:
        return None
    also = f" (and {len(bundle.missing) - 1} more of its files)" if bundle.missing[1:] else ""
    expected = f"all of a patch's files within {DISTANCE} members of the tar"
    return Reject(bundle.name, f"{bundle.folder}/{bundle.missing[0]}", f"missing{also}", expected)


def cut_short(name: str, e: TruncatedTar, section: BigEarthNetRecipe) -> Reject:
    """The line that tells of a tar's missing end, where the recipe accepts that; else the error itself."""
    if section.truncated == "refuse":
        raise e
    return Reject(name, name, e.reason, "the whole tar; patches beyond its end are not in the store")


def plan(archive: Path, section: BigEarthNetRecipe, contents: Contents, unit: Unit) -> list[Planned | Reject | LeftOut]:
    """The patch of a unit, from its JSON alone."""
    if unit.unwanted:
        return [LeftOut(unit.name, unit.unwanted)]
    if unit.fault:
        return [unit.fault]
    file = f"{unit.folder}/{unit.name}{LABELS}"
    try:
        meta = _json(_read(archive, file) if unit.labels is None else unit.labels, file)
        patch = _planned(unit, file, meta, nomenclature(contents.nomenclature))
    except PatchError as e:
        return [Reject(unit.name, e.file, e.reason, e.expected)]
    return [patch if patch.classes else LeftOut(unit.name, f"no label in {contents.nomenclature}")]


def _read(archive: Path, file: str) -> bytes:
    try:
        return (archive / file).read_bytes()
    except FileNotFoundError:
        raise PatchError(file, "missing", "the patch's labels and coordinates") from None
    except OSError as e:
        raise PatchError(file, f"cannot be read: {e.strerror}", "the patch's labels and coordinates") from e


def _json(text: bytes, file: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise PatchError(file, f"not valid JSON at line {e.lineno}: {e.msg}", "the file as published") from e
    except (ValueError, RecursionError) as e:  # not UTF-8; brackets without end
        raise PatchError(file, f"not valid JSON: {e}", "the file as published") from e


def _planned(unit: Unit, file: str, meta: Any, classes: Nomenclature) -> Planned:
    """PatchError names what the JSON lacks. `classes` is empty where the nomenclature drops all of the labels."""
    try:
        labels, corner = meta["labels"], meta["coordinates"]
        if not (isinstance(labels, list) and all(isinstance(n, str) for n in labels)):
            raise TypeError(f"labels is {labels!r}, not a list of names")
        ulx, uly, lrx, lry = (float(corner[k]) for k in ("ulx", "uly", "lrx", "lry"))
        crs, date = crs_name(meta["projection"]), datetime.fromisoformat(meta["acquisition_date"]).isoformat()
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PatchError(file, repr(e), "labels, coordinates, projection and acquisition_date") from e
    if (lrx, lry) != (ulx + PATCH_M, uly - PATCH_M) or abs(ulx) > _EARTH_M or abs(uly) > _EARTH_M:
        found = f"the lower right corner is ({lrx:.10g}, {lry:.10g}), the upper left ({ulx:.10g}, {uly:.10g})"
        raise PatchError(file, found, f"coordinates {PATCH_M:g} m apart both ways")
    try:
        numbers = tuple(classes.encode(labels))
    except KeyError as e:
        raise PatchError(file, f"label {e.args[0]!r} is no CORINE level-3 class", "the classes' published names") from e
    return Planned(unit.name, unit.folder, crs, grid(ulx, uly), date, numbers, {"folder": unit.folder})


def grid(ulx: float, uly: float, pixel_m: float = SENSOR.finest_m) -> Transform:
    """The transform of a north-up grid with that upper left corner."""
    return (float(pixel_m), 0.0, float(ulx), 0.0, -float(pixel_m), float(uly))


def payloads(
    archive: Path, section: BigEarthNetRecipe, contents: Contents, wanted: Iterator[tuple[int, list[Planned]]]
) -> Iterator[tuple[int, dict[str, bytes] | None]]:
    """(shard number, {member: content} of its patches) for each shard wanted, in the tar's order and in one pass;
    None for folders, which a worker reads by itself. `wanted`: shard numbers and patches, in the plan's order."""
    if not archive.is_file():
        yield from ((number, None) for number, _ in wanted)
        return
    finder = Finder(archive, bundles(archive, (*BANDS, LABELS), lambda name: not name.endswith(LABELS)))
    for number, patches in wanted:
        yield number, {k: v for p in patches for k, v in finder.find(p.where["folder"]).items()}


def read(
    archive: Path, section: BigEarthNetRecipe, contents: Contents, patches: list[Planned], payload: Any
) -> Iterator[Patch | Reject]:
    """The bands of each patch; a file whose size, type, CRS or place is not what was planned rejects it."""
    for patch in patches:
        try:
            yield Patch(read_bands(archive, patch, payload), patch.classes)
        except PatchError as e:
            yield Reject(patch.id, e.file, e.reason, e.expected)


def read_bands(archive: Path, patch: Planned, payload: dict[str, bytes] | None) -> dict[str, np.ndarray]:
    """Every band of a patch at its own resolution: {group name: (band, row, col) uint16}."""
    stem = f"{patch.where['folder']}/{patch.id}"
    return {
        g.name: np.stack([read_checked(archive, f"{stem}_{b}.tif", patch, g.pixel_m, payload) for b in g.bands])
        for g in GROUPS
    }


def read_checked(
    archive: Path, file: str, patch: Planned, pixel_m: float, payload: dict[str, bytes] | None
) -> np.ndarray:
    """A file of one band, (row, col) uint16. PatchError where it is not of the patch's ground at that pixel size."""
    path = archive / file
    try:
        array, info = read_band(payload[file] if payload and file in payload else path)
    except OSError as e:
        is_there = path.exists() or (payload and file in payload)
        reason = str(e).replace(f"{archive}{os.sep}", "").removeprefix(f"{file}: ") if is_there else "missing"
        raise PatchError(file, reason, "a GeoTIFF of one band of the patch") from e
    side = round(PATCH_M / pixel_m)
    expected = ((side, side), "uint16", patch.crs, grid(patch.transform[2], patch.transform[5], pixel_m))
    found = (array.shape, info.dtype, info.crs, info.transform)
    if found != expected:
        raise PatchError(file, f"(shape, type, CRS, transform) is {found}", str(expected))
    return array
