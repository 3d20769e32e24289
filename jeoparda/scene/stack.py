"""Stacks: one file with all bands of a scene, GeoTIFF, JP2, PNG, JPEG.

Bands are called as the recipe says, else as the file describes them, else by colour (red, green, blue), else B1, B2.
An alpha band says what is valid.
"""

from pathlib import Path

from jeoparda.errors import RecipeError
from jeoparda.raster import band_names, describe
from jeoparda.scene import names
from jeoparda.scene.fit import assemble, take
from jeoparda.scene.folder import rgb_of
from jeoparda.scene.model import BandFile, Quality, Scene
from jeoparda.scene.recipe import SceneRecipe
from jeoparda.sensors import DIGITAL_NUMBER

_ALPHA = "alpha"
_ALPHA_NOTE = "A band is marked as alpha and taken as the mask; if it is a measurement, say `names` for all bands."


def scenes(folder: Path, options: SceneRecipe) -> list[Path]:
    """Each raster in the folder."""
    return [folder / name for name in names.rasters(folder) if not options.pattern or _said(name, options)]


def open_one(path: Path, bands: tuple[str, ...], options: SceneRecipe) -> Scene:
    """The scene in the file at `path`; SceneError where it lacks bands."""
    info = describe(path)
    called = _called(path, info.count, options)
    nodata = info.nodata if options.nodata is None else options.nodata
    files = {b: BandFile(str(path), i, info, nodata=nodata) for i, b in enumerate(called, 1)}
    alpha = files.pop(_ALPHA, None)
    files = take(files, bands or tuple(files), path)
    scene = Scene(
        name=path.stem,
        folder=str(path),
        sensor=options.sensor or "generic",
        level="",
        date=names.date_of(_said(path.name, options)),
        unit=DIGITAL_NUMBER,
        rgb=names.colours(options, rgb_of(options.sensor, files), tuple(files)),
        files=files,
        quality=(Quality(alpha, values=(0,)),) if alpha else (),
        notes=(_ALPHA_NOTE,) if alpha else (),
    )
    return assemble(scene, options)


def _said(name: str, options: SceneRecipe) -> dict[str, str]:
    """The groups of the recipe's pattern, in a file's name."""
    m = names.expression(options.pattern).search(name) if options.pattern else None
    return (m.groupdict() or {"": m[0]}) if m else {}


def _called(path: Path, count: int, options: SceneRecipe) -> tuple[str, ...]:
    """The names of the bands, in file order. RecipeError where the recipe has another number of them."""
    if options.names:
        if len(options.names) != count:
            raise RecipeError(f"names: {len(options.names)} names; {path} has {count} bands")
        return options.names
    said = band_names(path)
    if all(text for text, _ in said) and len({text for text, _ in said}) == count:
        return tuple(text for text, _ in said)
    colours = [c for _, c in said]
    if len(set(colours)) == count and set(colours) <= {"red", "green", "blue", _ALPHA} and count > 1:
        return tuple(colours)
    return tuple(_ALPHA if c == _ALPHA else f"B{i}" for i, c in enumerate(colours, 1))
