"""Any folder of single-band rasters: the band stands in the file's name.

By `pattern`, a regular expression with (?P<band>), and (?P<date>) and (?P<scene>) where there are many. Without it,
names are cut at _ - . and blanks, and the one part that differs is the band.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from jeoparda.errors import RecipeError, SceneError
from jeoparda.raster import describe
from jeoparda.scene import names
from jeoparda.scene.fit import assemble, take
from jeoparda.scene.model import Scene
from jeoparda.scene.names import Named, Rule
from jeoparda.scene.recipe import SceneRecipe
from jeoparda.sensors import DIGITAL_NUMBER, SENSORS

_CUT = re.compile(r"[_\-.\s]+")


def scenes(folder: Path, options: SceneRecipe) -> list[Path]:
    """The scenes that `folder` itself holds. A folder whose first raster has many bands, or that holds one raster
    alone, is for `stack`, unless `kind` says otherwise."""
    found = names.rasters(folder)
    if not found or (options.kind == "auto" and not options.pattern and _stacks(folder, found)):
        return []
    return names.paths(folder, names.by_scene(folder, found, _rule(folder, found, options)))


def _stacks(folder: Path, found: list[str]) -> bool:
    """By the first raster that can be read; where none can, each is a scene, and opening it tells why."""
    if len(found) == 1:
        return True
    for name in found:
        try:
            return describe(folder / name).count > 1
        except SceneError:
            continue
    return True


def open_one(path: Path, bands: tuple[str, ...], options: SceneRecipe) -> Scene:
    """The scene at `path`; SceneError where it is not one scene or lacks bands."""
    name, images, date = names.one_scene(path, lambda folder, found: _rule(folder, found, options))
    pan_name = options.pan
    wanted = bands or tuple(b for b in images if not (options.pansharpen and b == pan_name))
    files = take({b: names.band_file(p, options) for b, p in images.items() if b in wanted}, wanted, path)
    for file in files.values():
        if file.info.count > 1:
            raise SceneError(f"{file.path}: has {file.info.count} bands; expected one a file, or kind: stack")
    pan = names.band_file(images[pan_name], options) if options.pansharpen and pan_name in images else None
    scene = Scene(
        name=name or path.resolve().name,
        folder=str(path),
        sensor=options.sensor or "generic",
        level="",
        date=date,
        unit=DIGITAL_NUMBER,
        rgb=names.colours(options, rgb_of(options.sensor, files), tuple(files)),
        files=files,
    )
    return assemble(scene, options, pan)


def rgb_of(sensor: str, bands: Iterable[str]) -> tuple[str, ...]:
    """The sensor's, where it is known; else bands that are called red, green, blue, or R, G, B."""
    if sensor in SENSORS:
        return SENSORS[sensor].rgb
    lower = {b.lower(): b for b in bands}
    for wanted in (("red", "green", "blue"), ("r", "g", "b")):
        if set(wanted) <= set(lower):
            return tuple(lower[w] for w in wanted)
    return ()


def _rule(folder: Path, found: list[str], options: SceneRecipe) -> Rule:
    return by_pattern(options.pattern) if options.pattern else _by_difference(folder, found)


def by_pattern(pattern: str) -> Rule:
    """What a regular expression reads off a name; a date of eight digits becomes ISO 8601. RecipeError where the
    expression is none."""
    expression = names.expression(pattern)

    def rule(name: str) -> Named | None:
        m = expression.search(name)
        said = m.groupdict() if m else {}
        if not said.get("band"):
            return None
        date = names.date_of(said)
        return Named("_".join(filter(None, (said.get("scene"), date))), said["band"], date)

    if "band" not in expression.groupindex:
        raise RecipeError(f"pattern = {pattern!r}: has no group (?P<band>...)")
    return rule


def _by_difference(folder: Path, found: list[str]) -> Rule:
    """SceneError where names differ in more than one part."""
    parts = {name: _CUT.split(Path(name).stem) for name in found}
    columns = list(zip(*parts.values(), strict=False))
    differing = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len({len(p) for p in parts.values()}) > 1 or len(differing) > 1:
        raise SceneError(
            f"{folder}: which part of the names is the band? {', '.join(found[:3])} ... differ in more than one; give "
            "kind: stack where each file is a scene, or a `pattern` with (?P<band>...) and, where the folder holds "
            "many scenes, (?P<scene>...)"
        )
    at = differing[0] if differing else len(columns) - 1
    shared = "_".join(p for i, p in enumerate(next(iter(parts.values()))) if i != at)
    return lambda name: Named(shared, parts[name][at]) if name in parts else None
