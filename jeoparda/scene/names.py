"""Scenes by the names of their files: which scene a file belongs to, which band it is, of which date.

A scene that shares its folder with others is called FOLDER/SCENE, a path that need not exist.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jeoparda.errors import RecipeError, SceneError
from jeoparda.raster import describe
from jeoparda.scene.model import BandFile
from jeoparda.scene.recipe import SceneRecipe

RASTERS = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".img", ".vrt")


@dataclass(frozen=True)
class Named:
    """What a file's name says. date: ISO 8601, "" where it says none."""

    scene: str
    band: str
    date: str = ""


Rule = Callable[[str], Named | None]


def expression(pattern: str) -> re.Pattern[str]:
    """The recipe's `pattern`, to be searched in names. RecipeError where it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as e:
        raise RecipeError(f"pattern = {pattern!r}: not a regular expression: {e}") from e


def date_of(said: Mapping[str, str | None]) -> str:
    """The group `date` of a pattern; eight digits become ISO 8601, "" without one."""
    return re.sub(r"^(\d{4})(\d{2})(\d{2})", r"\1-\2-\3", said.get("date") or "")


def rasters(folder: Path) -> list[str]:
    """Names of the rasters in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(RASTERS) and not e.name.startswith("."))


def by_scene(folder: Path, names: list[str], rule: Rule) -> dict[str, dict[str, str]]:
    """scene -> band -> file name. SceneError where two files are the same band of the same scene."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if not (said := rule(name)):
            continue
        bands = found.setdefault(said.scene, {})
        if said.band in bands:
            raise SceneError(
                f"{folder}: band {said.band} is there twice, {bands[said.band]} and {name}; give one scene's folder, "
                "or a `pattern` that tells scenes apart"
            )
        bands[said.band] = name
    return dict(sorted(found.items()))


def paths(folder: Path, scenes: dict[str, dict[str, str]]) -> list[Path]:
    """What the scenes of a folder are called: the folder where it holds one, else FOLDER/SCENE."""
    return [folder] if len(scenes) == 1 else [folder / scene for scene in scenes]


def one_scene(path: Path, rule_of: Callable[[Path, list[str]], Rule]) -> tuple[str, dict[str, Path], str]:
    """The scene that `path` names: its name, its files by band, its date. `path`: as `paths` gives it."""
    folder = path if path.is_dir() else path.parent
    names = rasters(folder)
    rule = rule_of(folder, names)
    scenes = by_scene(folder, names, rule)
    wanted = path.name if folder != path else next(iter(scenes))
    date = next((said.date for n in scenes[wanted].values() if (said := rule(n)) and said.date), "")
    return wanted, {band: folder / name for band, name in scenes[wanted].items()}, date


def band_file(path: Path, options: SceneRecipe, index: int = 1) -> BandFile:
    """A band as its file says; the recipe's value without data takes precedence."""
    info = describe(path)
    nodata = info.nodata if options.nodata is None else options.nodata
    return BandFile(str(path), index, info, nodata=nodata)


def is_raster(path: Path) -> bool:
    """By its name; a link to nowhere counts, and is told of when it is opened."""
    return path.suffix.lower() in RASTERS and (path.is_file() or path.is_symlink())


def colours(options: SceneRecipe, default: tuple[str, ...], bands: tuple[str, ...]) -> tuple[str, ...]:
    """The bands of a picture in true colour: the recipe's, else the sensor's, where the scene has them; else none."""
    if options.rgb and (missing := [b for b in options.rgb if b not in bands]):
        raise SceneError(f"rgb: band {', '.join(missing)} is not in the scene; there are {', '.join(bands)}")
    return options.rgb or (default if set(default) <= set(bands) else ())
