"""Chips: small images sorted into class folders, one label each, as EuroSAT, UC Merced and many a private collection.

archive/CLASS/CHIP.tif     GeoTIFF, PNG or JPEG, all of one size, one type and the same bands
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jeoparda.config import opt, recipe
from jeoparda.errors import ArchiveError, PatchError, RecipeError, SceneError
from jeoparda.ingest.source import LeftOut, Patch, Planned
from jeoparda.labels import colors_of
from jeoparda.raster import OpenRaster, RasterInfo, band_names, crs_unit, session
from jeoparda.raster import describe as look
from jeoparda.sensors import DIGITAL_NUMBER, REFLECTANCE
from jeoparda.store import Contents, Group, Layout, Reject

RGB = ("red", "green", "blue")
ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
NOT_A_CHIP = f"not one of {', '.join(ENDINGS)}"


class Product(NamedTuple):
    """A published collection. bands: in the files' order."""

    bands: tuple[str, ...]
    sensor: str
    unit: str
    rgb: tuple[str, ...]
    pixel_m: float


# EuroSAT: Helber et al., "EuroSAT: a novel dataset and deep learning benchmark for land use and land cover
# classification", IEEE JSTARS 12 (7), 2019: 13 bands of Level-1C, all resampled to 10 m. In the files B8A comes last:
# their tenth band is as dark as cirrus (B10), their last as bright as B08.
PRODUCTS = {
    "eurosat-ms": Product(
        ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"),
        "sentinel-2-l1c",
        REFLECTANCE,
        ("B04", "B03", "B02"),
        10.0,
    ),
}


@recipe
class ChipsRecipe:
    """Class folders of small images; the folder's name is the class. Take split.by = archive for the split below."""

    bands: tuple[str, ...] = opt(
        (), "their names in the files' order, or [eurosat-ms]; empty: red, green, blue or gray, where the files say so"
    )
    sensor: str = opt("", "what took them; empty: as eurosat-ms says, else unknown")
    classes: tuple[str, ...] = opt((), "folders to take, in the order of the class numbers; empty: all, sorted")
    size_px: int = opt(0, "side of a chip; 0: that of the first one", "px", ge=0)
    train_list: Path | None = opt(None, "names of the training chips, one a line, with or without folder and ending")
    val_list: Path | None = opt(None, "file names of the validation chips")
    test_list: Path | None = opt(None, "file names of the test chips")
    val: float = opt(0.1, "without lists: share of each class held back for validation", ge=0, lt=1)
    test: float = opt(0.1, "without lists: share of each class held back for the test", ge=0, lt=1)
    seed: int = opt(0, "without lists: another seed deals the chips out anew")


class Unit(NamedTuple):
    """A chip that is to be planned. label: class number. split: None where the lists do not have it. listed: the list
    that names a chip that is not there."""

    file: str
    label: int
    split: str | None
    listed: str = ""


def describe(archive: Path, section: ChipsRecipe) -> Contents:
    """Bands, size and type of the first chip that can be read, classes by folder."""
    if section.val + section.test >= 1:
        raise RecipeError(f"chips.val + chips.test = {section.val + section.test:g}: nothing is left to train on")
    names = _class_names(archive, section)
    path, info = _first(archive, names)
    product = PRODUCTS.get(section.bands[0]) if len(section.bands) == 1 else None
    bands = product.bands if product else section.bands or _own_names(path)
    if len(bands) != info.count:
        raise RecipeError(
            f"{path}: has {info.count} bands, chips.bands names {len(bands)} ({', '.join(bands)}); name them in the "
            f"file's order; a name that stands for all of them is {', '.join(PRODUCTS)}"
        )
    pixel = product.pixel_m if product else _significant(info.pixel_size) if info.crs else 1.0
    group = Group(f"{pixel:g}{crs_unit(info.crs)}", pixel, section.size_px or info.width_px, bands, info.dtype)
    return Contents(
        sensor=section.sensor or (product.sensor if product else "unknown"),
        unit=product.unit if product else DIGITAL_NUMBER,
        rgb=product.rgb if product else RGB if {*RGB} <= {*bands} else (),
        layout=Layout((group,)),
        nomenclature="class folders",
        classes=names,
        colors=colors_of(names, {}),
        target="label",
    )


def _class_names(archive: Path, section: ChipsRecipe) -> tuple[str, ...]:
    if not archive.is_dir():
        raise ArchiveError(f"{archive}: no such folder; expected one folder a class, with its chips in it")
    there = sorted(e.name for e in os.scandir(archive) if e.is_dir() and not e.name.startswith("."))
    if dead := [e.name for e in os.scandir(archive) if e.is_symlink() and not os.path.exists(e.path)]:
        raise ArchiveError(f"{archive}/{min(dead)}: a link to nowhere; expected a class folder; mend or remove it")
    if lacking := [c for c in section.classes if c not in there]:
        raise RecipeError(f"chips.classes: {archive} has no folder {', '.join(lacking)}; there are {', '.join(there)}")
    if not there:
        raise ArchiveError(f"{archive}: holds no folders; expected one folder a class, with its chips in it")
    return section.classes or tuple(there)


def _first(archive: Path, names: tuple[str, ...]) -> tuple[Path, RasterInfo]:
    """The first chip that can be opened."""
    for name in names:
        for path in (archive / name / file for file in _listing(archive / name)):
            if path.suffix.lower() in ENDINGS:
                try:
                    return path, look(path)
                except SceneError:  # planning tells of it; here any sound one will do
                    continue
    raise ArchiveError(f"{archive}: no image in {', '.join(names)} can be read; expected {', '.join(ENDINGS)}")


def _listing(folder: Path) -> list[str]:
    """All but folders that are not named like an image: what cannot be read is to be told of."""
    entries = (e for e in os.scandir(folder) if not e.name.startswith("."))
    return sorted(e.name for e in entries if not e.is_dir() or _is_chip(e.name))


def _folders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not (e.name.startswith(".") or _is_chip(e.name)))


def _own_names(path: Path) -> tuple[str, ...]:
    """Band names as the file gives them."""
    found = tuple(text or color for text, color in band_names(path))
    if len(set(found)) < len(found) or not set(found).isdisjoint({"undefined", "alpha", "palette"}):
        raise RecipeError(f"{path}: calls its bands {', '.join(found)}; name them in order with chips.bands")
    return found


def _significant(pixel: float) -> float:
    """Pixel sizes that differ from chip to chip by a fraction, as EuroSAT's do, are one: three digits."""
    return float(f"{pixel:.3g}")


# ---- which chips there are


def units(archive: Path, section: ChipsRecipe, contents: Contents) -> Iterator[Unit]:
    """Every file, class by class, sorted by name."""
    lists = _Lists(section) if section.train_list or section.val_list or section.test_list else None
    for label, name in enumerate(contents.classes):
        files = [f"{name}/{file}" for file in _listing(archive / name)]
        dealt = {} if lists else _deal([f for f in files if _is_chip(f)], section)
        for file in files:
            yield Unit(file, label, lists.split(file) if lists else dealt.get(file))
        yield from (Unit(f"{name}/{below}/", label, None) for below in _folders(archive / name))
    for file in _listing(archive):
        if _is_chip(file):
            yield Unit(file, -1, None)
    for path, name in lists.absent() if lists else ():
        yield Unit(name, -1, None, path.name)


def _is_chip(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in ENDINGS


def _deal(files: list[str], section: ChipsRecipe) -> dict[str, str]:
    """Splits of one class's chips: its share of each, by the order of their names' hashes."""
    order = sorted(files, key=lambda f: hashlib.sha256(f"{section.seed}/{f}".encode(errors="surrogateescape")).digest())
    val, test = round(section.val * len(files)), round(section.test * len(files))
    return {f: "val" if i < val else "test" if i < val + test else "train" for i, f in enumerate(order)}


class _Lists:
    """Published lists: a name may be CLASS/CHIP.tif, CHIP.jpg (also of a .tif) or CHIP."""

    def __init__(self, section: ChipsRecipe) -> None:
        self.where: dict[str, tuple[str, Path]] = {}
        self.met: set[str] = set()
        for split in ("train", "val", "test"):
            path: Path | None = getattr(section, f"{split}_list")
            for name in _stems(path) if path else ():
                before = self.where.setdefault(name, (split, path))  # type: ignore[arg-type]
                if before[0] != split:
                    raise RecipeError(f"{path}: chip {name} stands in {before[1]} too")

    def split(self, file: str) -> str | None:
        stem = str(PurePosixPath(file).with_suffix(""))
        for name in (stem, stem.rpartition("/")[2]):
            if name in self.where:
                self.met.add(name)
                return self.where[name][0]
        return None

    def absent(self) -> list[tuple[Path, str]]:
        return [(path, name) for name, (_, path) in self.where.items() if name not in self.met]


def _stems(path: Path) -> list[str]:
    """The names in a text or CSV file, endings cut off: of each line the first cell that ends as an image does, or in
    a file without endings the first cell. So a heading, or a column of numbers, is no name."""
    try:
        lines = [[cell.strip().strip('"') for cell in line.split(",")] for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot read the list of chips: {e}") from e
    files = [cell for cells in lines for cell in [*filter(_is_chip, cells)][:1]]
    return [str(PurePosixPath(f).with_suffix("")) for f in files] or [cells[0] for cells in lines if cells[0]]


# ---- planning and pixels


def plan(archive: Path, section: ChipsRecipe, contents: Contents, unit: Unit) -> list[Planned | Reject | LeftOut]:
    """The chip of a unit; its header is read for its place, size and bands."""
    if unit.listed:
        return [Reject(unit.file, unit.file, "missing", f"a chip of that name, by {unit.listed}")]
    if unit.file.endswith("/"):
        return [LeftOut(unit.file, "a folder in a class folder: its images are not taken")]
    if not _is_chip(unit.file):
        return [LeftOut(unit.file, NOT_A_CHIP)]
    if unit.label < 0:
        return [LeftOut(unit.file, "an image outside of the class folders")]
    if unit.split is None:
        return [LeftOut(unit.file, "in none of the lists")]
    try:
        info = look(archive / unit.file)
        _check(unit.file, info, contents.layout.groups[0])
    except PatchError as e:
        return [Reject(unit.file, e.file, e.reason, e.expected)]
    except SceneError as e:
        return [Reject(unit.file, unit.file, _reason(e, archive, unit.file), "an image")]
    transform = info.transform if info.crs else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return [
        Planned(unit.file, unit.file, info.crs, transform, "", (unit.label,), {"file": unit.file}, split=unit.split)
    ]


def _check(file: str, info: RasterInfo, group: Group) -> None:
    found = (info.height_px, info.width_px, info.count, info.dtype)
    expected = (group.size_px, group.size_px, len(group.bands), group.dtype)
    if found != expected:
        raise PatchError(file, f"(rows, columns, bands, type) is {found}", f"{expected}, as the first chip has")


def _reason(e: SceneError, archive: Path, file: str) -> str:
    return str(e).replace(f"{archive}{os.sep}", "").removeprefix(f"{file}: ")


def read(
    archive: Path, section: ChipsRecipe, contents: Contents, patches: list[Planned], payload: Any
) -> Iterator[Patch | Reject]:
    """The bands of each chip, in the file's own type."""
    group = contents.layout.groups[0]
    for patch in patches:
        file = patch.where["file"]
        try:
            yield Patch({group.name: _pixels(archive / file, file, group)}, patch.classes)
        except PatchError as e:
            yield Reject(patch.id, e.file, e.reason, e.expected)
        except SceneError as e:
            yield Reject(patch.id, file, _reason(e, archive, file), "an image")


def _pixels(path: Path, file: str, group: Group) -> np.ndarray:
    """(band, row, col)."""
    with session():
        raster = OpenRaster(str(path))
        try:
            _check(file, raster.info, group)
            window = (0, 0, group.size_px, group.size_px)
            return np.stack([raster.read(number, window) for number in range(1, len(group.bands) + 1)])
        finally:
            raster.close()
