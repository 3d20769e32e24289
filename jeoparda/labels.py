"""Labels on the ground of a scene: a raster of class values, or polygons with a class attribute, as a mask.

A source value becomes a class in three steps: the remap table; without a table, a class of that very name; else what
`unlisted` says. In a mask, classes are numbers in the order of `classes`, and 255 is no label.
"""

import colorsys
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jeoparda import raster, vector
from jeoparda.config import opt, recipe
from jeoparda.errors import PatchError, RecipeError, SceneError
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import Window_px
from jeoparda.scene.names import rasters

Masks = Callable[[Window_px], np.ndarray]  # -> (row, col) uint8
Color = tuple[int, int, int]
_VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".gml", ".gdb", ".sqlite", ".geojsonl")


@recipe
class LabelRecipe:
    """Where labels come from, and which class each of their values is."""

    path: str = opt(
        "",
        "a file, or a pattern with {scene}, {path} (the scene with its folders), {date}, {name} and * in it, from the "
        "archive; '': no labels",
    )
    name: str = opt("", "regular expression on a scene's name; its first group is {name} in path")
    kind: Literal["auto", "raster", "vector"] = opt("auto", "auto: by the file's ending")
    layer: str = opt("", "layer of a vector file; '': the only one")
    attribute: str = opt("", "attribute of a vector file that holds the class; '': every shape has the value 1")
    touch: Literal["center", "all"] = opt("center", "a shape covers pixels whose centre lies in it, or all it touches")
    band: int = opt(0, "band of a label raster; 0: the only one, or that of a grey image stored as RGB", ge=0)
    nodata: float | None = opt(None, "value of a label raster that means no label; null: the file's own")
    align: Literal["ground", "pixel"] = opt(
        "ground", "ground: by CRS and place; pixel: pixel on pixel of the scene, whatever the file says of its place"
    )
    remap: dict[str, str] = opt(
        {}, "source value (of an RGB image '#rrggbb'): class name, or ignore; it goes before nodata, as classes do"
    )
    unlisted: Literal["error", "ignore", "keep"] = opt(
        "error", "a value that is not in remap: reject the scene, no label, or itself a class name or number"
    )
    classes: tuple[str, ...] = opt((), "class names by number; []: background, then those of remap, then of the data")
    colors: dict[str, Color] = opt({}, "class name: [red, green, blue]; the rest get colours far apart")
    background: str = opt("", "class of pixels that no shape of a vector file covers; '': no label")


@dataclass(frozen=True)
class Legend:
    """Which class a source value is. `file`: for messages."""

    file: str
    section: LabelRecipe
    classes: tuple[str, ...]

    def keeps(self, value: str) -> bool:
        """Whether a source value that is nodata is a class all the same, as the recipe names it. PatchError where the
        file alone says nodata, of what would be a class by its number."""
        if value in self.section.remap or value in self.section.classes:
            return True
        hidden = self.section.unlisted == "keep" and value.isdecimal() and int(value) < len(self.section.classes)
        if hidden and self.section.nodata is None:
            what = f"class {int(value)}, {self.section.classes[int(value)]}, and the file's nodata"
            raise PatchError(self.file, f"its value {value} is both {what}", "labels.nodata: that value, or another")
        return False

    def number(self, value: str) -> int:
        """The class number of a source value as text; 255 where it is to be no label. PatchError for an unknown one."""
        remap, unlisted = self.section.remap, self.section.unlisted
        if value in remap:
            return IGNORE if remap[value] == "ignore" else self.classes.index(remap[value])
        if value in self.classes and (not remap or unlisted == "keep"):
            return self.classes.index(value)
        if unlisted == "ignore":
            return IGNORE
        if unlisted == "keep" and value.isdecimal() and int(value) < len(self.classes):
            return int(value)
        known = ", ".join(remap or self.classes)
        hint = " (in YAML, yes, no, on and off need quotes)" if {"true", "false"} & set(remap) else ""
        raise PatchError(
            self.file,
            f"unknown class value {value!r}" + ("" if value else ", of a shape without one"),
            f"one of {known}; add it to labels.remap as a class or as ignore, or set labels.unlisted{hint}",
        )


@dataclass(frozen=True)
class Labels:
    """The labels in one file. `classes`, `colors`: by class number."""

    path: Path
    file: str  # the path as messages name it
    kind: Literal["raster", "vector"]
    layer: str
    section: LabelRecipe
    classes: tuple[str, ...]
    colors: tuple[Color, ...]

    def mask(self, crs: str, transform: tuple[float, ...], height: int, width: int) -> np.ndarray:
        """(row, col) uint8 class numbers on exactly that grid, 255 where there is no label.

        Nearest neighbour for rasters of any grid and CRS; shapes are burnt in document order, later over earlier.
        PatchError names the file and the class value that is unknown, or why the file does not fit the grid.
        """
        with self.over(crs, transform, height, width) as masks:
            return masks((0, 0, height, width))

    def over(self, crs: str, transform: tuple[float, ...], height: int, width: int) -> AbstractContextManager[Masks]:
        """For many windows of one grid: a function from a window, in px of the grid, to the mask there."""
        if self.kind == "vector":
            return self._shapes(crs, transform, height, width)
        return self._raster(crs, transform, height, width)

    @property
    def legend(self) -> Legend:
        return Legend(self.file, self.section, self.classes)

    @contextmanager
    def _raster(self, crs: str, transform: tuple[float, ...], height: int, width: int) -> Iterator[Masks]:
        by_pixel = self.section.align == "pixel"
        with ExitStack() as stack:
            with self._blamed():  # and no more than the opening: what the caller's block raises is not ours
                source = stack.enter_context(raster.on_grid(self.path, crs, transform, height, width, by_pixel))
                bands, alpha = _bands(self.file, self.section, source)
            nodata = self.section.nodata if self.section.nodata is not None else source.nodata
            if by_color(self.section):
                nodata = None

            def masks(window: Window_px) -> np.ndarray:
                with self._blamed():
                    found, there = source.read([*bands, *alpha], window)
                if alpha:
                    there &= found[-1] > 0
                values = _single(self.file, found[: len(bands)], there, self.section)
                return classed(values, there, nodata, self.legend)

            yield masks

    def _blamed(self) -> AbstractContextManager[None]:
        return _as_patch_error(self.file, self.path)

    @contextmanager
    def _shapes(self, crs: str, transform: tuple[float, ...], height: int, width: int) -> Iterator[Masks]:
        ground: str | None = crs
        if self.section.align == "pixel":  # coordinates are (col, row) of the scene
            ground, transform = None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        everything = bounds_of(transform, (0, 0, height, width))
        with self._blamed():
            shapes = vector.read_shapes(self.path, self.layer, self.section.attribute, ground, everything)
        numbers = {v: self.legend.number(v) for v in dict.fromkeys(shapes.values)}
        background = self.section.background
        fill = self.classes.index(background) if background else IGNORE

        def masks(window: Window_px) -> np.ndarray:
            here = shifted(transform, window)
            found = [(shape, numbers[v]) for shape, v in shapes.over(bounds_of(transform, window))]
            return raster.burn(found, here, window[2], window[3], fill, self.section.touch == "all")

        yield masks


def by_block(masks: Masks, height: int, width: int, block_px: int) -> Masks:
    """The same, looked up a block at a time: for square windows that come block by block, many to each. A window
    belongs to the block that it begins in. height, width: of the whole grid."""
    held: dict[tuple[int, ...], np.ndarray] = {}

    def look(window: Window_px) -> np.ndarray:
        row, col, rows, cols = window
        top, left = row // block_px * block_px, col // block_px * block_px
        area = (top, left, min(block_px + rows, height - top), min(block_px + cols, width - left))
        if area not in held:
            held.clear()
            held[area] = masks(area)
        return held[area][row - top : row - top + rows, col - left : col - left + cols]

    return look


def open_labels(
    section: LabelRecipe,
    archive: Path,
    scene: str = "",
    date: str = "",
    classes: tuple[str, ...] | None = None,
    path: str = "",
) -> Labels:
    """The labels of a scene. `date`: ISO 8601. `classes`: as an earlier file settled them; None: from the recipe, or
    else from this file's values. `path`: {path}, the scene's name after the folders that it lies in.

    PatchError where the scene's label file is missing or cannot be read; RecipeError for a recipe that cannot work.
    """
    file = label_file(section, archive, scene, date, path)
    place = archive / file
    if not place.exists():
        raise PatchError(file, "is missing", f"the labels{' of scene ' + scene if scene else ''}, as labels.path says")
    kind = section.kind if section.kind != "auto" else "vector" if place.suffix.lower() in _VECTORS else "raster"
    if kind == "raster" and section.background:
        raise RecipeError(
            f"labels.background = {section.background!r} is for shapes, {file} is a raster; "
            "give its values in labels.remap"
        )
    with _as_patch_error(file, place):
        layer = vector.layer_of(place, section.layer) if kind == "vector" else ""
        if kind == "raster":
            raster.describe(place)
        if classes is None:
            classes = section.classes or _classes(section, place, kind, layer)
    if not 0 < len(classes) <= IGNORE:
        raise PatchError(file, f"gives {len(classes)} classes", f"1 to {IGNORE}; name them in labels.classes")
    _check(section, classes)
    return Labels(place, file, kind, layer, section, classes, colors_of(classes, section.colors))


def label_file(section: LabelRecipe, archive: Path, scene: str, date: str, path: str = "") -> str:
    """The label file of a scene, relative to the archive where it lies in it."""
    wanted = filled(section, scene, path, date)
    if "*" not in wanted:
        return wanted
    hits = _listed(archive, wanted)
    if len(hits) != 1:
        raise PatchError(wanted, f"{len(hits)} files match" + "".join(f", {h}" for h in hits[:3]), "one label file")
    return hits[0]


def filled(section: LabelRecipe, scene: str, path: str, date: str) -> str:
    """labels.path for a scene. PatchError where its name does not match labels.name."""
    name = scene
    if section.name:
        try:
            found = re.search(section.name, scene)
        except re.error as e:
            raise RecipeError(f"labels.name = {section.name!r}: is no regular expression: {e}") from e
        if not (found and found.groups() and found[1]):
            raise PatchError(scene, f"its name does not match labels.name = {section.name!r}", "a match with one group")
        name = found[1]
    try:
        return section.path.format(scene=scene, path=path or scene, name=name, date=date[:10])
    except (KeyError, IndexError, ValueError) as e:
        there = "scene, name, date, path"
        raise RecipeError(f"labels.path = {section.path!r}: unknown placeholder; there are {there}") from e


def label_files(section: LabelRecipe, archive: Path) -> list[str]:
    """Every file that labels.path may mean, sorted; relative to the archive where it lies in it."""
    wanted = re.sub(r"\{\w+\}", "*", section.path.replace("{path}", "**/*"))
    return _listed(archive, wanted) if "*" in wanted else [wanted]


def label_pattern(path: str) -> re.Pattern[str]:
    """What a labels.path may stand for: * and placeholders for a name, {path} for one in folders."""
    known = {"**/": "(?:.*/)?", "{path}": ".+"}
    parts = re.split(r"(\*\*/|\*|\{\w+\})", path)
    return re.compile("".join(known.get(p, "[^/]*") if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def without_labels(section: LabelRecipe, archive: Path, scenes: list[Path]) -> list[Path]:
    """Those of `scenes` that are not labels, nor folders with nothing but labels. A labels.path that every one of them
    matches ({name}.tif beside the scenes) tells nothing of them: then all."""
    if not section.path:
        return scenes
    matches = label_pattern(str(archive / section.path)).fullmatch

    def labels(scene: Path) -> bool:
        held = rasters(scene) if scene.is_dir() else []
        return bool(matches(str(scene)) or (held and all(matches(str(scene / name)) for name in held)))

    return [s for s in scenes if not labels(s)] or scenes


def _listed(archive: Path, wanted: str) -> list[str]:
    where = Path(wanted)
    root = Path(where.anchor) if where.is_absolute() else archive
    found = sorted(root.glob(str(where.relative_to(where.anchor))))
    return [str(p.relative_to(archive) if p.is_relative_to(archive) else p) for p in found]


def classed(values: np.ndarray, there: np.ndarray, nodata: float | None, legend: Legend) -> np.ndarray:
    """`values` (row, col) of a label raster as class numbers; 255 where not `there`, NaN, or nodata.

    A value that the recipe names, in remap or classes, is what it says there, also where it is nodata.
    """
    out = np.full(values.shape, IGNORE, np.uint8)
    colors = by_color(legend.section)
    for value in np.unique(values[there]):
        text = f"#{value:06x}" if colors else vector.text_of(value)
        if text and (value != nodata or legend.keeps(text)):
            out[there & (values == value)] = legend.number(text)
    return out


def colors_of(classes: tuple[str, ...], given: dict[str, Color]) -> tuple[Color, ...]:
    """A colour a class: as given, else hues a golden angle apart."""
    made = (colorsys.hsv_to_rgb(i * 0.61803398875 % 1, 0.65, 0.95) for i in range(len(classes)))
    return tuple(given.get(name) or _rgb(c) for name, c in zip(classes, made, strict=True))


def _rgb(color: tuple[float, float, float]) -> Color:
    r, g, b = (round(255 * v) for v in color)
    return r, g, b


def shifted(transform: tuple[float, ...], window: Window_px) -> tuple[float, float, float, float, float, float]:
    """The affine map of the window's own grid."""
    a, b, c, d, e, f = transform[:6]
    row, col = window[:2]
    return a, b, c + a * col + b * row, d, e, f + d * col + e * row


def bounds_of(transform: tuple[float, ...], window: Window_px) -> vector.Bounds:
    """The rectangle around the window, in the CRS's units."""
    a, b, c, d, e, f = shifted(transform, window)
    height, width = window[2:]
    xs = (c, c + a * width, c + b * height, c + a * width + b * height)
    ys = (f, f + d * width, f + e * height, f + d * width + e * height)
    return min(xs), min(ys), max(xs), max(ys)


def _classes(section: LabelRecipe, path: Path, kind: str, layer: str) -> tuple[str, ...]:
    """Background, the classes of the remap table in its order, and the values of the file that stand for themselves,
    in order (numbers by size)."""
    named = [section.background, *(n for n in section.remap.values() if n != "ignore")]
    kept = []
    if (not section.remap or section.unlisted == "keep") and not by_color(section):
        kept = [v for v in _values(section, path, kind, layer) if v and v not in section.remap]
    return tuple(dict.fromkeys([n for n in named if n] + kept))


def _values(section: LabelRecipe, path: Path, kind: str, layer: str) -> list[str]:
    if kind == "vector":
        found = vector.distinct(path, layer, section.attribute) if section.attribute else ["1"]
        return sorted(found, key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v))
    nodata = section.nodata if section.nodata is not None else raster.describe(path).nodata
    return [vector.text_of(v) for v in raster.distinct(path, section.band or 1, IGNORE + 1) if v != nodata]


def _check(section: LabelRecipe, classes: tuple[str, ...]) -> None:
    """RecipeError for a class name in the recipe that is no class."""
    wanted = {"background": [section.background] if section.background else [], "colors": [*section.colors]}
    wanted["remap"] = [n for n in section.remap.values() if n != "ignore"]
    for key, names in wanted.items():
        if unknown := [n for n in names if n not in classes]:
            raise RecipeError(f"labels.{key}: {unknown[0]!r} is no class; there are {', '.join(classes)}")
    if len(set(classes)) < len(classes) or "ignore" in classes:
        raise RecipeError(f"labels.classes = {', '.join(classes)}: each name once, and none of them ignore")


def _bands(file: str, section: LabelRecipe, source: raster.OnGrid) -> tuple[list[int], list[int]]:
    """The bands that must agree on the value, and that of the alpha channel, if any; counted from 1."""
    alpha = [i for i, name in enumerate(source.interpretation, 1) if name == "alpha"]
    if section.band:
        if section.band > source.count:
            raise PatchError(file, f"has {source.count} bands", f"labels.band up to {source.count}")
        return [section.band], alpha
    grey = [i for i in range(1, source.count + 1) if i not in alpha]
    if len(grey) not in (1, 3):
        raise PatchError(file, f"has {source.count} bands", "one, or a grey image stored as RGB; or set labels.band")
    return grey, alpha


def _single(file: str, bands: np.ndarray, there: np.ndarray, section: LabelRecipe) -> np.ndarray:
    """One value a pixel: of the one band, of three that agree, or a colour as 0xRRGGBB. (row, col)"""
    if by_color(section):
        if len(bands) != 3 or bands.dtype != np.uint8:
            raise PatchError(file, f"has {len(bands)} bands of {bands.dtype}", "RGB, as labels.remap names colours")
        red, green, blue = bands.astype(np.int32)
        return red << 16 | green << 8 | blue
    if any((b != bands[0])[there].any() for b in bands[1:]):
        raise PatchError(
            file, "its red, green and blue differ", 'labels.remap by colour ("#rrggbb"), labels.band, or a grey mask'
        )
    return bands[0]


def by_color(section: LabelRecipe) -> bool:
    """Whether the remap table names colours."""
    return any(value.startswith("#") for value in section.remap)


@contextmanager
def _as_patch_error(file: str, path: Path) -> Iterator[None]:
    """A label raster that cannot be read rejects its scene; messages name the file from the archive."""
    try:
        yield
    except SceneError as e:
        reason, _, expected = str(e).removeprefix(f"{path}: ").partition("; expected ")
        raise PatchError(file, reason, expected or "a label raster that can be read") from e
    except PatchError as e:
        if e.file != str(path):
            raise
        raise PatchError(file, e.reason, e.expected) from e
