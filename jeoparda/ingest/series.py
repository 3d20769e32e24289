"""Series: images of the same ground at many dates, with gaps, and masks for all or some of the dates.

A unit is a place: all images on one grid, by date. Fields of a patch have a leading axis of `dates`; a gap is zeros
with valid 0, date "" and no labels (255). A scene is opened once for all patches that are read together.

Which image stands at which date is settled in `plan`, patch by patch: each takes the images that are clear there. For
that, planning looks at the coarsest band and at the product's own masks.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda.errors import ArchiveError, PatchError, RecipeError, SceneError
from jeoparda.ingest import dates as when
from jeoparda.ingest.cutting import by_blocks, first_scene, labelled, present, rejected, scenes_of
from jeoparda.ingest.eopatch import find_eopatches, open_eopatch
from jeoparda.ingest.places import Pixels, Place, SeriesRecipe, opened, places_in
from jeoparda.ingest.series_labels import classes_of, finer_window, labels_of, masks_of
from jeoparda.ingest.source import Found, LeftOut, Note, Patch, Planned
from jeoparda.labels import Masks, shifted
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import Window_px, crs_unit
from jeoparda.store import Contents, Group, Layout, Reject

__all__ = ["SeriesRecipe", "describe", "plan", "read", "units"]

_TOGETHER = 256 << 20  # bytes of patches that are read together; one patch at least
AT_ONCE = 1  # a place is a task of the plan


# ---- what there is


def describe(archive: Path, section: SeriesRecipe) -> Contents:
    """ArchiveError where there is no usable image; RecipeError for a recipe that cannot work."""
    if section.dates.start:
        when.checked(section.dates.start, "dates.start")
    about = _about_eopatch(archive, section) if section.kind == "eopatch" else _about_scenes(archive, section)
    step = section.patch_px // about.layout.groups[-1].size_px
    if section.stride_px % step:
        raise RecipeError(f"stride_px = {section.stride_px}: take a multiple of {step}, for whole coarse pixels")
    count = section.dates.count
    if section.dates.by == "all":
        found = [unit for unit in units(archive, section, about) if isinstance(unit, Place)]
        count = max(len(place.seen) for place in found)
    classes, colors = classes_of(archive, section)
    layout = replace(about.layout, dates=count, mask_px=section.patch_px * section.mask_factor if classes else 0)
    return replace(about, layout=layout, classes=classes, colors=colors)


def _about_scenes(archive: Path, section: SeriesRecipe) -> Contents:
    """By the first scene that opens and has a date."""
    scene = first_scene(scenes_of(archive, "", section.scene, section.labels), section.scene, dated="scene")
    return _contents(scene.sensor, scene.unit, scene.rgb, scene.groups(section.patch_px))


def _about_eopatch(archive: Path, section: SeriesRecipe) -> Contents:
    failed: PatchError | None = None
    for folder in find_eopatches(archive):
        try:
            found = open_eopatch(folder, section.eopatch)
        except PatchError as e:
            failed = failed or e
            continue
        unit = crs_unit(found.crs)
        pixel = float(f"{found.transform[0]:.2g}")  # eo-learn's boxes are seldom whole numbers of pixels
        group = Group(f"{pixel:g}{unit}", pixel, section.patch_px, tuple(found.bands), found.dtype)
        return _contents(section.scene.sensor or "eopatch", "digital number", section.scene.rgb, (group,))
    raise ArchiveError(f"{archive}: no EOPatch can be opened" + (f"; the first: {failed}" if failed else ""))


def _contents(sensor: str, unit: str, rgb: tuple[str, ...], groups: tuple[Group, ...]) -> Contents:
    return Contents(sensor, unit, rgb, Layout(groups, valid=True, dates=1), "", (), (), "series")


def units(archive: Path, section: SeriesRecipe, contents: Contents) -> Iterator[Place | Reject]:
    """Places in the order of their names; before them, a Reject for each image that belongs to none."""
    return places_in(archive, section, contents)


# ---- patches


def plan(archive: Path, section: SeriesRecipe, contents: Contents, unit: Place | Reject) -> list[Found]:
    """The patches of a place, of a 1024 px block after another."""
    if isinstance(unit, Reject):
        return [unit]
    found: list[Found] = [Note(text) for text in unit.notes]
    grid = unit.grid(section)
    every = by_blocks(grid.window(r, c) for r in range(grid.rows) for c in range(grid.cols))
    if not every:
        want = f"at least {section.patch_px} px a side"
        return [Reject(unit.name, unit.seen[0][1], f"is {unit.height_px} x {unit.width_px} px", want)]
    clear, unread = _clear(archive, section, unit, every)
    files, unlabelled = labels_of(archive, section, contents, unit)
    found += [*unread, *unlabelled]
    with masks_of(archive, section, contents, unit, sorted({f for f in files if f})) as masks:
        for window, ok in zip(every, clear.T, strict=True):
            found += _patches(archive, section, contents, unit, window, ok, files, masks)
    return found


def _clear(
    archive: Path, section: SeriesRecipe, place: Place, every: list[Window_px]
) -> tuple[np.ndarray, list[Reject]]:
    """(image, patch) bool: valid enough; and a Reject for each image that cannot be read, which becomes a gap."""
    clear = np.zeros((len(place.seen), len(every)), bool)
    unread: list[Reject] = []
    for i, (_, path, index, _) in enumerate(place.seen):
        try:
            with opened(archive, section, path, index, survey=True) as pixels:
                share = np.array([pixels.valid(w).mean() for w in every])
            clear[i] = (share > 0) & (share >= section.min_valid)
        except (SceneError, PatchError) as e:
            unread.append(rejected(path, e, archive))
    return clear, unread


def _patches(
    archive: Path,
    section: SeriesRecipe,
    contents: Contents,
    place: Place,
    window: Window_px,
    clear: np.ndarray,
    files: list[str],
    masks: dict[str, Masks],
) -> Iterator[Planned | Reject | LeftOut]:
    """Of one window: one patch, or with dates.by window, one for each window of dates."""
    row, col = window[:2]
    id = f"{place.name}_r{row}_c{col}"
    steps = _steps(section, contents, place, clear)
    if not steps:
        yield LeftOut(id, f"fewer than {section.dates.count} images that are valid enough")
    try:
        found = {f: masks[f](finer_window(window, section)) for f in sorted({f for f in files if f})}
    except PatchError as e:
        yield rejected(id, e, archive)
        return
    for chosen in steps:
        there = [i for i in chosen if i is not None]
        if len(there) < section.min_dates:
            yield LeftOut(id, f"fewer than {section.min_dates} images that are valid enough")
            continue
        used = {files[i] for i in there if files[i]}
        if max((labelled(found[f]) for f in used), default=0.0) < section.min_labelled:
            yield LeftOut(id, f"less than {section.min_labelled:g} of its pixels labelled at any date")
            continue
        yield Planned(
            id=f"{id}_{_when(place, there[0])}" if section.dates.by == "window" else id,
            source=place.name,
            crs=place.crs,
            transform=shifted(place.transform, window),
            date=place.dates[there[0]],
            classes=tuple(sorted({c for f in used for c in present(found[f])})),
            where={
                "window": list(window),
                "images": [None if i is None else [*place.seen[i][1:3], files[i]] for i in chosen],
                "grid": [list(place.transform), place.height_px, place.width_px],
            },
            dates=tuple("" if i is None else place.dates[i] for i in chosen),
        )


def _when(place: Place, image: int) -> str:
    """Its date, as it stands in ids; numbered from the second image of a date on."""
    date = place.dates[image]
    before = place.dates[:image].count(date)
    return date.replace(":", "") + (f"_{before + 1}" if before else "")


def _steps(section: SeriesRecipe, contents: Contents, place: Place, clear: np.ndarray) -> when.Steps:
    d, ok = section.dates, clear.tolist()
    if d.by == "all":
        return when.every(ok, contents.layout.dates)
    if d.by == "window":
        return when.windows(ok, d.count, d.stride)
    return when.stepped(place.dates, ok, d.start or place.dates[0], d.step_days, d.count)


# ---- pixels


def read(
    archive: Path, section: SeriesRecipe, contents: Contents, patches: list[Planned], payload: Any
) -> Iterator[Patch | Reject]:
    """Patches of one place are read together, an image after another, as many as fit the memory for that."""
    together = max(1, _TOGETHER // contents.layout.dtype().itemsize)
    for _, run in groupby(patches, lambda p: p.source):
        found = list(run)
        for first in range(0, len(found), together):
            yield from _read_together(archive, section, contents, found[first : first + together])


def _read_together(
    archive: Path, section: SeriesRecipe, contents: Contents, patches: list[Planned]
) -> Iterator[Patch | Reject]:
    arrays = [_empty(contents.layout) for _ in patches]
    failed: dict[int, Reject] = {}
    for image, uses in sorted(_uses(patches).items()):
        try:
            with opened(archive, section, *image) as pixels:
                for n, slot in uses:
                    _fill_slot(arrays[n], slot, contents.layout, pixels, _window(patches[n]))
        except (SceneError, PatchError) as e:
            failed |= {n: rejected(patches[n].id, e, archive) for n, _ in uses if n not in failed}
    if contents.layout.mask_px:
        failed |= _fill_masks(archive, section, contents, patches, arrays)
    for n, found in enumerate(arrays):
        yield failed.get(n) or _checked(patches[n], found)


def _checked(p: Planned, arrays: dict[str, np.ndarray]) -> Patch | Reject:
    """An image that proves to be empty, as another band has nothing where the coarsest has, is no date."""
    for date, valid in zip(p.dates, arrays["valid"], strict=True):
        if date and not valid.any():
            reason = f"none of it is valid on {date}, all bands looked at"
            return Reject(p.id, p.source, reason, "valid pixels in each image that the plan took", fault=False)
    return Patch(arrays, present(arrays["mask"]) if "mask" in arrays else ())


def _empty(layout: Layout) -> dict[str, np.ndarray]:
    found = {name: np.zeros(shape, kind) for name, (kind, shape) in layout.fields().items()}
    if layout.mask_px:
        found["mask"][:] = IGNORE
    return found


def _uses(patches: list[Planned]) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """(path, index) of an image -> the (patch, date) that it fills."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for n, p in enumerate(patches):
        for slot, image in enumerate(p.where["images"]):
            if image:
                found.setdefault((image[0], image[1]), []).append((n, slot))
    return found


def _window(p: Planned) -> Window_px:
    row, col, height, width = p.where["window"]
    return row, col, height, width


def _fill_slot(arrays: dict[str, np.ndarray], slot: int, layout: Layout, pixels: Pixels, window: Window_px) -> None:
    for group in layout.groups:
        for i, band in enumerate(group.bands):
            arrays[group.name][slot, i] = pixels.read(band, window)
    arrays["valid"][slot] = pixels.valid(window)


def _fill_masks(
    archive: Path,
    section: SeriesRecipe,
    contents: Contents,
    patches: list[Planned],
    arrays: list[dict[str, np.ndarray]],
) -> dict[int, Reject]:
    """Masks of the patches of one place: labels where there is a label file and the image is valid."""
    transform, height, width = patches[0].where["grid"]
    place = Place(patches[0].source, patches[0].crs, tuple(transform), height, width, ())
    files = sorted({i[2] for p in patches for i in p.where["images"] if i and i[2]})
    failed: dict[int, Reject] = {}
    with masks_of(archive, section, contents, place, files) as masks:
        for n, p in enumerate(patches):
            try:
                _fill_mask(arrays[n], p, masks, section)
            except PatchError as e:
                failed[n] = rejected(p.id, e, archive)
    return failed


def _fill_mask(arrays: dict[str, np.ndarray], p: Planned, masks: dict[str, Masks], section: SeriesRecipe) -> None:
    k = section.mask_factor
    files = [image[2] if image else "" for image in p.where["images"]]
    found = {f: masks[f](finer_window(_window(p), section)) for f in set(files) if f}
    for slot, file in enumerate(files):
        if file:
            valid = arrays["valid"][slot].repeat(k, 0).repeat(k, 1)
            arrays["mask"][slot] = np.where(valid, found[file], IGNORE)
