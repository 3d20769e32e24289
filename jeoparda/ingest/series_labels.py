"""Labels of a series: which label file is whose image's, and their masks on the grid of a place."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np

from jeoparda.errors import ArchiveError, PatchError, RecipeError
from jeoparda.ingest import dates as when
from jeoparda.ingest.eopatch import label_array
from jeoparda.ingest.ground import finer
from jeoparda.ingest.places import Place, SeriesRecipe, Window
from jeoparda.ingest.scenes import rejected
from jeoparda.labels import LabelRecipe, Labels, Legend, Masks, classed, colors_of, open_labels
from jeoparda.nomenclature import IGNORE
from jeoparda.store import Contents, Reject


def classes_of(archive: Path, section: SeriesRecipe) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names and colours; none without labels."""
    labels = section.labels
    if section.kind == "eopatch":
        if labels.path:
            raise RecipeError(f"labels.path = {labels.path!r}: labels of an EOPatch are in it, named by eopatch.labels")
        if not section.eopatch.labels:
            return (), ()
        classes = labels.classes or tuple(dict.fromkeys(n for n in labels.remap.values() if n != "ignore"))
        if not classes:
            raise RecipeError("labels.classes is empty; name the classes of eopatch.labels, there or in labels.remap")
        return classes, colors_of(classes, labels.colors)
    if not labels.path:
        return (), ()
    for file in _label_files(archive, section):
        found = open_labels(_labels_at(labels, file), archive)
        return found.classes, found.colors
    raise ArchiveError(f"{archive}: no label file matches labels.path = {labels.path!r}")


def _labels_at(section: LabelRecipe, file: str) -> LabelRecipe:
    """The same labels in one file."""
    return LabelRecipe(**{**vars(section), "path": file, "name": ""})


def _label_files(archive: Path, section: SeriesRecipe) -> list[str]:
    """Every file that labels.path may mean, from the archive, sorted."""
    pattern = re.sub(r"\{\w+\}", "*", section.labels.path)
    if "*" not in pattern:
        return [pattern]
    where = Path(pattern)
    root = Path(where.anchor) if where.is_absolute() else archive
    found = sorted(root.glob(str(where.relative_to(where.anchor))))
    return [str(p.relative_to(archive) if p.is_relative_to(archive) else p) for p in found]


def labels_of(archive: Path, section: SeriesRecipe, contents: Contents, place: Place) -> tuple[list[str], list[Reject]]:
    """The label file of each image, "" without one; and a Reject for each that cannot be used."""
    nothing = [""] * len(place.seen)
    if not contents.classes:
        return nothing, []
    if section.kind == "eopatch":
        return [section.eopatch.labels] * len(place.seen), []
    try:
        wanted = _label_each(archive, section, place)
    except PatchError as e:
        return nothing, [rejected(place.name, e, archive)]
    bad: dict[str, Reject] = {}
    for file in sorted(set(wanted) - {""}):
        try:
            with _over(archive, section, contents, place, file):
                pass
        except PatchError as e:
            bad[file] = rejected(f"{place.name} {file}", e, archive)
    return ["" if f in bad else f for f in wanted], list(bad.values())


def _label_each(archive: Path, section: SeriesRecipe, place: Place) -> list[str]:
    path = section.labels.path
    if "{date}" in path:
        dated = [(when.date_in(Path(f).name) or when.date_in(f), f) for f in _label_files(archive, section)]
        named = [(d, f) for d, f in dated if d and _named(section, place, f)]
        return [_nearest(date, named, section.max_days) for date in place.dates]
    files = [_fill(section, seen[3]) for seen in place.seen]
    if "{scene}" in path:
        return [f if (archive / f).exists() else "" for f in files]
    if missing := [f for f in files if not (archive / f).exists()]:
        raise PatchError(missing[0], "is missing", "the labels of this place, as labels.path says")
    return files


def _named(section: SeriesRecipe, place: Place, file: str) -> bool:
    """Whether a dated label file is one of this place's: where labels.path has {name}, its own."""
    day = when.date_in(Path(file).name) or when.date_in(file)
    return "{name}" not in section.labels.path or file in {_fill(section, s[3], day) for s in place.seen}


def _fill(section: SeriesRecipe, scene: str, date: str = "") -> str:
    name = scene
    if section.labels.name:
        found = re.search(section.labels.name, scene)
        if not (found and found.groups()):
            raise PatchError(scene, f"does not match labels.name = {section.labels.name!r}", "a match with one group")
        name = found.group(1)
    return section.labels.path.format(scene=scene, name=name, date=date)


def _nearest(date: str, dated: list[tuple[str, str]], max_days: int) -> str:
    near = [(when.days_apart(date, d), d, f) for d, f in dated]
    return min((x for x in near if x[0] <= max_days), default=(0, "", ""))[2]


def _over(
    archive: Path, section: SeriesRecipe, contents: Contents, place: Place, file: str
) -> AbstractContextManager[Masks]:
    """The masks of a label file on the grid of a place, `mask_factor` times finer."""
    k = section.mask_factor
    opened: Labels = open_labels(_labels_at(section.labels, file), archive, classes=contents.classes)
    return opened.over(place.crs, finer(place.transform, k), place.height_px * k, place.width_px * k)


@contextmanager
def masks_of(
    archive: Path, section: SeriesRecipe, contents: Contents, place: Place, files: list[str]
) -> Iterator[dict[str, Masks]]:
    """File -> its masks, on the grid of a place."""
    if section.kind == "eopatch":
        yield {f: _eopatch_masks(archive / place.name, section, contents, f) for f in files}
        return
    with ExitStack() as stack:
        yield {f: stack.enter_context(_over(archive, section, contents, place, f)) for f in files}


def _eopatch_masks(folder: Path, section: SeriesRecipe, contents: Contents, name: str) -> Masks:
    values = np.array(label_array(folder, name))
    legend = Legend(f"{folder.name}/mask_timeless/{name}.npy", section.labels, contents.classes)
    k = section.mask_factor

    def masks(window: Window) -> np.ndarray:
        row, col, height, width = (v // k for v in window)
        here = values[row : row + height, col : col + width]
        return classed(here, np.ones(here.shape, bool), section.labels.nodata, legend).repeat(k, 0).repeat(k, 1)

    return masks


def finer_window(window: Window, section: SeriesRecipe) -> Window:
    row, col, height, width = (v * section.mask_factor for v in window)
    return row, col, height, width


def present(mask: np.ndarray) -> tuple[tuple[int, ...], float]:
    """(classes in a mask, share of its pixels that are labelled)."""
    found = np.unique(mask[mask != IGNORE])
    return tuple(found.tolist()), float((mask != IGNORE).mean())
