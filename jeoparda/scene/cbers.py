"""CBERS-4, CBERS-4A and Amazonia-1 by their file names, INPE's own and those of the Brazil Data Cube.

    CBERS_4A_WPM_20200612_200_105_L4_BAND0.tif                INPE: satellite, camera, date, path, row, level
    CBERS_4_AWFI_20180117_157_129_L4_BAND13_GRID_SURFACE.tif  the same, surface reflectance
    CBERS-4_AWFI_022024_B13_2018-02-02.tif                    data cube: tile (or none), band, date
    CB4_64_16D_STK_v001_022024_2018-02-18_2018-03-05_BAND13.tif   data cube, older: tile, first and last date, band

One folder may hold many dates, each a scene. Pixels stay digital numbers: the names tell no scale. A CMASK beside
the bands says what is cloud.
"""

import dataclasses
import re
from pathlib import Path

from jeoparda.errors import SceneError
from jeoparda.raster import distinct
from jeoparda.scene import names
from jeoparda.scene.fit import assemble, take
from jeoparda.scene.model import BandFile, Quality, Scene
from jeoparda.scene.names import Named
from jeoparda.scene.recipe import SceneRecipe
from jeoparda.sensors import DIGITAL_NUMBER, SENSORS, Sensor

_INPE = re.compile(
    r"^(?P<satellite>CBERS_4A?|AMAZONIA_1)_(?P<camera>[A-Z0-9]+)_(?P<date>\d{8})_\d{3}_\d{3}_(?P<level>L\d[A-Z]?)"
    r"(?:_(?:LEFT|RIGHT))?_(?:BAND(?P<number>\d+)|(?P<other>CMASK))(?P<surface>_GRID_SURFACE)?\.tiff?$",
    re.IGNORECASE,
)
_CUBE = re.compile(
    r"^(?P<satellite>CBERS-4A?)_(?P<camera>[A-Z0-9]+)_(?:(?P<tile>\d{6})_)?(?:B(?P<number>\d+)|(?P<other>[A-Z][A-Z0-9]+))"
    r"_(?P<date>\d{4}-\d{2}-\d{2})\.tiff?$",
    re.IGNORECASE,
)
_STACK = re.compile(
    r"^(?P<satellite>CB4A?)[-_](?P<camera>64|55)?[-_]?16D[-_]\w+?_(?P<tile>\d{6})_(?P<date>\d{4}-?\d{2}-?\d{2})"
    r"(?:_\d{4}-\d{2}-\d{2})?_(?:BAND(?P<number>\d+)|(?P<other>[A-Z][A-Z0-9]+))\.tiff?$",
    re.IGNORECASE,
)
_MASK = "CMASK"
_OLDER = (0, 1, 2, 3, 4, 255)  # clear land, clear water, shadow, snow, cloud, no data, as Fmask
_NEWER = (0, 127, 255)  # no data, clear, cloud
_CLEAR = 127
_MOST = 16  # values of a mask, more than that are an image
_FILLED = "INPE's files have no nodata tag: 0 is taken as no data. If it is not, set the scene's `nodata`."


def scenes(folder: Path, options: SceneRecipe) -> list[Path]:
    """The scenes that `folder` itself holds."""
    return names.paths(folder, names.by_scene(folder, names.rasters(folder), rule))


def open_one(path: Path, bands: tuple[str, ...], options: SceneRecipe) -> Scene:
    """The scene at `path`; SceneError where it is not one scene or lacks bands."""
    name, images, date = names.one_scene(path, lambda *_: rule)
    sensor = sensor_of(next(iter(images.values())).name)
    wanted = bands or sensor.bands
    files = take({b: _band(p, options) for b, p in images.items() if b in wanted}, wanted, path)
    pan_name = options.pan or sensor.pan
    pan = _band(images[pan_name], options) if options.pansharpen and pan_name in images else None
    filled = options.nodata is None and any(f.nodata is not None and f.info.nodata is None for f in files.values())
    scene = Scene(
        name=name,
        folder=str(path),
        sensor=sensor.name,
        level=m["level"] if (m := _INPE.match(next(iter(images.values())).name)) else "",
        date=date,
        unit=DIGITAL_NUMBER,
        rgb=names.colours(options, sensor.rgb, tuple(files)),
        files=files,
        quality=(_quality(images[_MASK], options),) if _MASK in images and options.invalid_cmask else (),
        notes=(_FILLED,) if filled else (),
    )
    return assemble(scene, options, pan)


def _band(path: Path, options: SceneRecipe) -> BandFile:
    """INPE's own files have zeros around the image, and no tag that says so."""
    file = names.band_file(path, options)
    m = _INPE.match(path.name)
    return dataclasses.replace(file, nodata=0) if m and not m["surface"] and file.nodata is None else file


def _quality(path: Path, options: SceneRecipe) -> Quality:
    """The cloud mask, in whichever of its two encodings: where any pixel is 127, it is the newer one. SceneError where
    a value is of neither."""
    values = distinct(path, 1, _MOST)
    if unknown := [v for v in values if v not in (*_OLDER, *_NEWER)]:
        raise SceneError(
            f"{path}: holds {', '.join(map(str, unknown))}; expected a mask of 0, 1 clear, 2 shadow, 3 snow, 4 cloud, "
            "255 no data, or of 0 no data, 127 clear, 255 cloud; to do without it, set invalid_cmask: []"
        )
    if _CLEAR in values and (mixed := [v for v in values if v not in _NEWER]):
        raise SceneError(f"{path}: holds {_CLEAR} and {mixed[0]}; expected a mask of one encoding, not of two")
    return Quality(names.band_file(path, options), (0, 255) if _CLEAR in values else options.invalid_cmask)


def rule(name: str) -> Named | None:
    """A band is called B13 in either style of names."""
    if not (m := _match(name)):
        return None
    band = f"B{m['number']}" if m["number"] else m["other"].upper()
    digits = m["date"].replace("-", "")
    date = f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
    return Named(_scene_name(m), band, date)


def _match(name: str) -> re.Match[str] | None:
    return _INPE.match(name) or _CUBE.match(name) or _STACK.match(name)


def _scene_name(m: re.Match[str]) -> str:
    """The file's name without its band."""
    start = m.start("other") if m["other"] else m.start("number") - (4 if m.re is not _CUBE else 1)
    end = m.end("other") if m["other"] else m.end("number")
    text = m.string[:start].rstrip("_") + "_" + m.string[end:].lstrip("_")
    return re.sub(r"\.tiff?$", "", text, flags=re.IGNORECASE).rstrip("_")


def sensor_of(name: str) -> Sensor:
    """The sensor that a file's name tells; SceneError where its bands are not known."""
    m = _match(name)
    if m is None:
        raise SceneError(f"{name}: is no name of a CBERS file")
    satellite = m["satellite"].replace("_", "-").lower().replace("cb4", "cbers-4")
    camera = {"64": "awfi", "55": "wfi", None: "awfi" if satellite == "cbers-4" else "wfi"}.get(m["camera"])
    found = f"{satellite}-{camera or m['camera'].lower()}"
    if found not in SENSORS:
        known = ", ".join(s for s in SENSORS if s.startswith(("cbers", "amazonia")))
        raise SceneError(f"{name}: sensor {found} is not known; there are {known}; use kind: folder and a `pattern`")
    return SENSORS[found]
