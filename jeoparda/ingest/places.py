"""Places: all images on one grid, by date; what the patches of a series are cut from."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from jeoparda.config import opt, recipe
from jeoparda.errors import ArchiveError, PatchError, SceneError
from jeoparda.grid import PatchGrid
from jeoparda.ingest import dates as when
from jeoparda.ingest.cutting import NO_DATE, assumed, check_kind, rejected, scenes_of
from jeoparda.ingest.eopatch import EOPatchRecipe, find_eopatches, open_eopatch
from jeoparda.ingest.source import Transform
from jeoparda.labels import LabelRecipe
from jeoparda.raster import RasterInfo, Window_px
from jeoparda.scene import Scene, SceneRecipe, open_scene
from jeoparda.store import Contents, Reject


@recipe
class DatesRecipe:
    """Which images become the dates of a patch."""

    by: Literal["all", "step", "window"] = opt(
        "all",
        "all: every image, in order, gaps at the end of shorter places; step: the nearest image to each of `count` "
        "dates `step_days` apart, a gap where none is within half a step; window: `count` images in a row, sliding",
    )
    count: int = opt(12, "step, window: dates of a patch", ge=1)
    start: str = opt("", "step: the first date, as 2018-02-14; '': of each place's first image")
    step_days: float = opt(30.0, "step: from a date to the next", "days", gt=0)
    stride: int = opt(1, "window: images from a window to the next", ge=1)


@recipe
class SeriesRecipe:
    """Images of the same ground at many dates."""

    kind: Literal["scenes", "eopatch"] = opt("scenes", "scenes on one grid, or eo-learn's folders")
    scene: SceneRecipe = opt(SceneRecipe, "what the files of a scene are")
    eopatch: EOPatchRecipe = opt(EOPatchRecipe, "what is taken of an EOPatch")
    labels: LabelRecipe = opt(
        LabelRecipe,
        "a path without placeholders: for all dates; with {date} (a day in its name): for images near that day; with "
        "{scene}: of that very image, where it exists",
    )
    max_days: int = opt(5, "labels with {date}: for images at most this far away, the nearest label file first", ge=0)
    mask_factor: int = opt(1, "pixels of the mask along one pixel of the finest band", ge=1)
    patch_px: int = opt(128, "side of a patch, in pixels of the finest band", "px", gt=0)
    stride_px: int = opt(0, "from a patch to the next; 0: patch_px", "px", ge=0)
    dates: DatesRecipe = opt(DatesRecipe, "which images become the dates of a patch")
    min_valid: float = opt(
        0.1,
        "share of valid pixels, by one band and the product's masks, below which an image is a gap in a patch",
        ge=0,
        le=1,
    )
    min_dates: int = opt(1, "dates that are no gaps, below which a patch is left out", ge=1)
    min_labelled: float = opt(
        0.0, "share of labelled pixels, at its best date, below which a patch is left out", ge=0, le=1
    )


@dataclass(frozen=True)
class Place:
    """One grid and the images on it by date. seen: (date, path from the archive, index in it: of an EOPatch's date, 0
    for a scene, name that labels know it by). notes: what had to be assumed of them."""

    name: str
    crs: str
    transform: Transform
    height_px: int
    width_px: int
    seen: tuple[tuple[str, str, int, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def dates(self) -> tuple[str, ...]:
        return tuple(s[0] for s in self.seen)

    def grid(self, section: SeriesRecipe) -> PatchGrid:
        return PatchGrid(self.height_px, self.width_px, section.patch_px, section.stride_px or section.patch_px)


class Pixels(Protocol):
    """What an image is read by: a scene's reader, or a date of an EOPatch."""

    def read(self, band: str, window: Window_px) -> np.ndarray: ...

    def valid(self, window: Window_px) -> np.ndarray: ...


# ---- which there are


def places_in(archive: Path, section: SeriesRecipe, contents: Contents) -> Iterator[Place | Reject]:
    """Places in the order of their names; before them, a Reject for each image that belongs to none."""
    found = (
        _eopatch_places(archive, section) if section.kind == "eopatch" else _scene_places(archive, section, contents)
    )
    places: list[Place] = []
    for one in found:
        if isinstance(one, Reject):
            yield one
        else:
            places.append(one)
    if not places:
        raise ArchiveError(f"{archive}: holds no image of which a series could be made")
    yield from sorted(places, key=lambda p: p.name)


def _scene_places(archive: Path, section: SeriesRecipe, contents: Contents) -> Iterator[Place | Reject]:
    by_grid: dict[tuple[Any, ...], tuple[RasterInfo, list[tuple[str, str, int, str]], dict[str, None]]] = {}
    for path in scenes_of(archive, "", section.scene, section.labels):
        where = str(path.relative_to(archive))
        try:
            scene = open_scene(path, None, section.scene)
            _check(scene, section, contents)
        except (SceneError, PatchError) as e:
            yield rejected(where, e, archive)
            continue
        _, seen, notes = by_grid.setdefault(_grid_key(scene.finest), (scene.finest, [], {}))
        seen.append((scene.date, where, 0, scene.name))
        notes |= dict.fromkeys(assumed(scene))
    names: set[str] = set()
    for _, (grid, seen, notes) in sorted(by_grid.items()):
        name = _new(_place_name(grid.crs, grid.transform), names)
        by_date = tuple(sorted(seen, key=lambda s: (when.moment(s[0]), s[1])))
        yield Place(name, grid.crs, grid.transform, grid.height_px, grid.width_px, by_date, tuple(notes))


def _grid_key(grid: RasterInfo) -> tuple[Any, ...]:
    """The same for grids whose pixels coincide to a thousandth."""
    a, b, c, d, e, f = grid.transform
    pixels = tuple(f"{v:.7g}" for v in (a, b, d, e))
    return grid.crs, grid.height_px, grid.width_px, pixels, round(c / a, 3), round(f / e, 3)


def _check(scene: Scene, section: SeriesRecipe, contents: Contents) -> None:
    """PatchError for a scene that does not fit into the store's records."""
    try:
        when.moment(scene.date)
    except ValueError as e:
        raise PatchError(scene.name, f"has no date ({scene.date!r})", NO_DATE.format("scene")) from e
    check_kind(scene, contents, scene.groups(section.patch_px))


def _eopatch_places(archive: Path, section: SeriesRecipe) -> Iterator[Place | Reject]:
    for folder in find_eopatches(archive):
        where = str(folder.relative_to(archive))
        try:
            found = open_eopatch(folder, section.eopatch)
            for date in found.dates:
                when.moment(date)
        except PatchError as e:
            yield rejected(where, e, archive)
            continue
        except ValueError as e:
            yield Reject(where, f"{where}/timestamps.json", str(e), "dates in ISO 8601")
            continue
        seen = [(date, where, i, where) for i, date in enumerate(found.dates)]
        seen.sort(key=lambda s: (when.moment(s[0]), s[2]))
        yield Place(where, found.crs, found.transform, found.height_px, found.width_px, tuple(seen))


def _place_name(crs: str, transform: Sequence[float]) -> str:
    code = crs.removeprefix("EPSG:") if crs.startswith("EPSG:") else ""
    return "_".join(filter(None, (code, f"{transform[2]:.10g}", f"{transform[5]:.10g}")))


def _new(name: str, names: set[str]) -> str:
    """`name`, or with a number after it where that is taken (grids of two sizes from one corner)."""
    found, n = name, 1
    while found in names:
        found, n = f"{name}_{n + 1}", n + 1
    names.add(found)
    return found


# ---- one image


def opened(
    archive: Path, section: SeriesRecipe, path: str, index: int, survey: bool = False
) -> AbstractContextManager[Pixels]:
    if section.kind == "eopatch":
        return open_eopatch(archive / path, section.eopatch).at(index, section.eopatch)
    scene = open_scene(archive / path, None, section.scene)
    return scene.surveyed() if survey else scene.reader()
