"""Landsat 4, 5, 7, 8, 9: folders of Collection 1 or 2, Level-1 or Level-2, with their MTL file (txt, json or xml).

Reflectance = number * REFLECTANCE_MULT + REFLECTANCE_ADD; at Level-1 divided by the sine of the sun's elevation.
Sources: Landsat 8-9 Data Users Handbook, chapter 5 (USGS); Collection 2 Level-2 Science Product Guides; bits of
QA_PIXEL and of Collection 1's BQA: Landsat Quality Assessment bands (USGS).
"""

import json
import math
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from jeoparda.errors import SceneError
from jeoparda.scene import names
from jeoparda.scene.fit import assemble, take
from jeoparda.scene.model import BandFile, Quality, Scene
from jeoparda.scene.recipe import Cover, SceneRecipe
from jeoparda.sensors import LANDSAT, REFLECTANCE, SENSORS, Sensor

_MTL = re.compile(r"^(?P<scene>[^.].*)_MTL\.(?P<kind>txt|json|xml)$", re.IGNORECASE)
_BAND = re.compile(r"^FILE_NAME_BAND_(?:ST_B)?(\d+(?:_VCID_\d)?)$")
# bits of QA_PIXEL, and of Collection 1's BQA: (mask, value); two bits are a confidence, 3 is high
_QA_PIXEL: dict[Cover, tuple[int, int]] = {
    "fill": (1, 1),
    "dilated cloud": (1 << 1, 1 << 1),
    "cirrus": (1 << 2, 1 << 2),
    "cloud": (1 << 3, 1 << 3),
    "cloud shadow": (1 << 4, 1 << 4),
    "snow": (1 << 5, 1 << 5),
    "water": (1 << 7, 1 << 7),
}
_BQA: dict[Cover, tuple[int, int]] = {
    "fill": (1, 1),
    "cloud": (1 << 4, 1 << 4),
    "cloud shadow": (3 << 7, 3 << 7),
    "snow": (3 << 9, 3 << 9),
    "cirrus": (3 << 11, 3 << 11),
}
_CONTENTS = ("PRODUCT_CONTENTS", "PRODUCT_METADATA")  # of Collection 2, of Collection 1
_LEVEL1 = ("LEVEL1_RADIOMETRIC_RESCALING", "RADIOMETRIC_RESCALING")
_LEVEL2 = ("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS",)
Groups = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Metadata:
    """An MTL file. groups: group -> key -> value; the same key stands in more than one group."""

    path: Path
    groups: Groups

    def get(self, key: str, *groups: str) -> str:
        """A value, of the first group that has it; `groups`: only of these. SceneError where none has."""
        for name in groups or tuple(self.groups):
            if (value := self.groups.get(name, {}).get(key)) is not None:
                return value
        raise SceneError(f"{self.path}: says no {key}" + (f" in {' or '.join(groups)}" if groups else ""))

    @property
    def contents(self) -> dict[str, str]:
        """What the product consists of."""
        return {k: v for g in _CONTENTS for k, v in self.groups.get(g, {}).items()}

    @property
    def level(self) -> str:
        """ "L2SP", "L1TP": Collection 1 calls it DATA_TYPE."""
        return self.contents.get("PROCESSING_LEVEL") or self.contents.get("DATA_TYPE", "")

    @property
    def surface(self) -> bool:
        """Whether it is Level-2."""
        return self.level.startswith("L2")


def scenes(folder: Path, options: SceneRecipe) -> list[Path]:
    """The scenes that `folder` itself holds: one for each MTL file."""
    found = _mtl(folder)
    return [folder] if len(found) == 1 else [folder / scene for scene in found]


def open_one(path: Path, bands: tuple[str, ...], options: SceneRecipe) -> Scene:
    """The scene at `path`; SceneError where its metadata or bands are missing."""
    folder = path if path.is_dir() else path.parent
    found = _mtl(folder)
    key = next(iter(found)) if folder == path else path.name
    mtl = parse(found[key])
    sensor = _sensor(mtl)
    listed = _files(mtl, folder)
    wanted = bands or sensor.bands
    if missing := [b for b in wanted if b not in listed]:
        raise SceneError(_missing(mtl, missing, listed, folder))
    files = take({b: _scaled(b, p, sensor, mtl, options) for b, p in listed.items() if b in wanted}, wanted, folder)
    pan_name = options.pan or sensor.pan
    pan = names.band_file(listed[pan_name], options) if options.pansharpen and pan_name in listed else None
    thermal = [b for b in files if b in sensor.thermal]
    scene = Scene(
        name=key,
        folder=str(path),
        sensor=sensor.name,
        level=mtl.level,
        date=f"{mtl.get('DATE_ACQUIRED')}T{mtl.get('SCENE_CENTER_TIME')[:8]}",
        unit=REFLECTANCE,
        rgb=names.colours(options, sensor.rgb, tuple(files)),
        files=files,
        quality=_quality(mtl, folder, options),
        notes=(f"Band {', '.join(thermal)}: digital numbers, not reflectance.",) if thermal else (),
    )
    return assemble(scene, options, pan)


def _mtl(folder: Path) -> dict[str, Path]:
    """Scene -> its MTL file; txt before json before xml."""
    named = [m for name in sorted(os.listdir(folder)) if (m := _MTL.match(name))]
    found: dict[str, Path] = {}
    for m in sorted(named, key=lambda m: ("txt", "json", "xml").index(m["kind"].lower())):
        found.setdefault(m["scene"], folder / m.string)
    return dict(sorted(found.items()))


# ---- what the metadata say


def parse(path: Path) -> Metadata:
    """The groups of an MTL file. SceneError where it is none."""
    read = {".txt": _text, ".json": _json, ".xml": _xml}[path.suffix.lower()]
    try:
        found = read(path.read_text())
    except (OSError, ValueError, ET.ParseError, AttributeError) as e:
        raise SceneError(f"{path}: cannot be read as a Landsat MTL file: {e}") from e
    if not any("SPACECRAFT_ID" in group for group in found.values()):
        raise SceneError(f"{path}: says no SPACECRAFT_ID; expected a Landsat MTL file")
    return Metadata(path, found)


def _text(text: str) -> Groups:
    found: Groups = {}
    group = ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            group = value
        elif value and key != "END_GROUP":
            found.setdefault(group, {})[key] = value.strip('"')
    return found


def _json(text: str) -> Groups:
    (root,) = json.loads(text).values()
    return {group: {k: str(v) for k, v in entries.items()} for group, entries in root.items()}


def _xml(text: str) -> Groups:
    return {group.tag: {e.tag: (e.text or "").strip() for e in group} for group in ET.fromstring(text)}


def _sensor(mtl: Metadata) -> Sensor:
    said = mtl.get("SPACECRAFT_ID").lower().replace("_", "-")
    name = f"{said}-{'l2' if mtl.surface else 'l1'}"
    if name not in SENSORS:
        known = ", ".join(s.name.removesuffix("-l1") for s in LANDSAT if s.name.endswith("-l1"))
        raise SceneError(f"{mtl.path}: the spacecraft is {said}; there are {known}")
    return SENSORS[name]


def _files(mtl: Metadata, folder: Path) -> dict[str, Path]:
    """Band -> its file, of those that are there. The MTL file may write .TIF where the disk has .tif."""
    there = _there(folder)
    return {band: there[name.lower()] for band, name in _listed(mtl).items() if name.lower() in there}


def _there(folder: Path) -> dict[str, Path]:
    """Name in lower case -> file."""
    return {name.lower(): folder / name for name in os.listdir(folder)}


def _listed(mtl: Metadata) -> dict[str, str]:
    return {f"B{m[1]}": v for k, v in mtl.contents.items() if (m := _BAND.match(k))}


def _missing(mtl: Metadata, missing: list[str], found: dict[str, Path], folder: Path) -> str:
    text = f"{folder}: no raster for band {', '.join(missing)}; found {', '.join(found) or 'none'}"
    if lost := [name for band, name in _listed(mtl).items() if band in missing]:
        return f"{text}; {mtl.path} lists {', '.join(lost)}: the product is incomplete, get it again"
    return f"{text}; {mtl.path} lists {', '.join(_listed(mtl)) or 'no bands'}"


def _scaled(band: str, path: Path, sensor: Sensor, mtl: Metadata, options: SceneRecipe) -> BandFile:
    """With gain and offset to reflectance x 10000. Zero is fill in all Landsat products."""
    file = names.band_file(path, options)
    info, nodata = file.info, 0 if file.nodata is None else file.nodata
    if band in sensor.thermal:
        return BandFile(str(path), 1, info, nodata=nodata, least=0)
    groups = _LEVEL2 if mtl.surface else _LEVEL1
    number = band[1:]
    gain = 1e4 * float(mtl.get(f"REFLECTANCE_MULT_BAND_{number}", *groups))
    offset = 1e4 * float(mtl.get(f"REFLECTANCE_ADD_BAND_{number}", *groups))
    sun = 1.0 if mtl.surface else _sun(mtl)
    return BandFile(str(path), 1, info, gain / sun, offset / sun, nodata)


def _sun(mtl: Metadata) -> float:
    """Sine of the sun's elevation. SceneError where it was below the horizon: nothing there is reflectance."""
    elevation = float(mtl.get("SUN_ELEVATION", "IMAGE_ATTRIBUTES"))
    if elevation <= 0:
        raise SceneError(f"{mtl.path}: SUN_ELEVATION is {elevation:g}; expected a scene by day, above 0 degrees")
    return math.sin(math.radians(elevation))


def _quality(mtl: Metadata, folder: Path, options: SceneRecipe) -> tuple[Quality, ...]:
    """The mask by QA_PIXEL, or BQA in Collection 1. SceneError where the product lists it and it is gone."""
    named = mtl.contents
    for key, bits in (("FILE_NAME_QUALITY_L1_PIXEL", _QA_PIXEL), ("FILE_NAME_BAND_QUALITY", _BQA)):
        if key not in named or not options.invalid_qa:
            continue
        there = _there(folder)
        if named[key].lower() not in there:
            raise SceneError(
                f"{folder / named[key]}: the MTL file lists this mask, and it is missing; get it, or set invalid_qa: []"
            )
        file = names.band_file(there[named[key].lower()], options)
        return (Quality(file, bits=tuple(bits[c] for c in options.invalid_qa if c in bits)),)
    return ()
