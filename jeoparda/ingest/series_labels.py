"""Labels of a series: which label file is whose image's, and their masks on the grid of a place."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np

from jeoparda.errors import ArchiveError, PatchError, RecipeError
from jeoparda.ingest import dates as when
from jeoparda.ingest.cutting import rejected, scene_path
from jeoparda.ingest.eopatch import label_array
from jeoparda.ingest.ground import finer
from jeoparda.ingest.places import Place, SeriesRecipe
from jeoparda.labels import (
    LabelRecipe,
    Labels,
    Legend,
    Masks,
    classed,
    colors_of,
    filled,
    label_files,
    label_pattern,
    open_labels,
)
from jeoparda.raster import Window_px
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
    for file in label_files(labels, archive):
        found = open_labels(_labels_at(labels, file), archive)
        return found.classes, found.colors
    raise ArchiveError(f"{archive}: no label file matches labels.path = {labels.path!r}")


def _labels_at(section: LabelRecipe, file: str) -> LabelRecipe:
    """The same labels in one file."""
    return LabelRecipe(**{**vars(section), "path": file, "name": ""})


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
    """PatchError where what all images share is missing, or more than one file is an image's."""
    if "{date}" in section.labels.path:
        return _dated(archive, section, place)
    own = "{scene}" in section.labels.path or "{path}" in section.labels.path
    found = []
    for _, unit, _, name in place.seen:
        wanted = filled(section.labels, name, scene_path(unit, name), "")
        hits = [f for f in label_files(_labels_at(section.labels, wanted), archive) if (archive / f).exists()]
        if len(hits) > 1 or not (hits or own):
            reason = f"{len(hits)} files match" if hits else "is missing"
            raise PatchError(wanted, reason, "one label file of this place, as labels.path says")
        found += hits or [""]
    return found


def _dated(archive: Path, section: SeriesRecipe, place: Place) -> list[str]:
    """Of the files that are an image's but for {date}, the nearest."""
    dated = [(when.date_in(Path(f).name) or when.date_in(f), f) for f in label_files(section.labels, archive)]
    own: dict[str, list[tuple[str, str]]] = {}
    found = []
    for date, unit, _, name in place.seen:
        wanted = filled(section.labels, name, scene_path(unit, name), "{date}")
        if wanted not in own:
            fits = label_pattern(wanted).fullmatch
            own[wanted] = [(day, f) for day, f in dated if day and fits(f)]
        found.append(_nearest(date, own[wanted], section.max_days))
    return found


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

    def masks(window: Window_px) -> np.ndarray:
        row, col, height, width = (v // k for v in window)
        here = values[row : row + height, col : col + width]
        return classed(here, np.ones(here.shape, bool), section.labels.nodata, legend).repeat(k, 0).repeat(k, 1)

    return masks


def finer_window(window: Window_px, section: SeriesRecipe) -> Window_px:
    row, col, height, width = (v * section.mask_factor for v in window)
    return row, col, height, width
