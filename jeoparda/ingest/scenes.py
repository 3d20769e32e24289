"""Scenes and their labels, cut into patches: the pixels of every band at its own size, the valid ones, a mask.

The plan looks at the labels, and at the coarsest band and the product's own masks where `min_valid` or labels need to
know which pixels are valid; so no patch is left out that all bands together would have kept. What all bands say is
looked at when the patch is read, or, with `survey: all`, in the plan already.

Without labels the store has neither a mask nor classes: something to predict on, or to train on without labels.
"""

import fnmatch
import hashlib
import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jeoparda.config import opt, recipe
from jeoparda.errors import ArchiveError, PatchError, RecipeError, SceneError
from jeoparda.ingest.cutting import (
    BLOCK_PX,
    by_blocks,
    check_kind,
    labelled,
    noted,
    present,
    rejected,
    scarce,
    scene_path,
    scenes_of,
)
from jeoparda.ingest.source import Found, LeftOut, Patch, Planned
from jeoparda.labels import LabelRecipe, Labels, Masks, by_block, open_labels, shifted
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import Window_px
from jeoparda.scene import Scene, SceneReader, SceneRecipe, open_scene
from jeoparda.store import Contents, Group, Layout, Reject

AT_ONCE = 1  # a scene is a task of the plan
# what a scene may be rejected for; of the first one, RecipeError stops the ingest before it begins
UNUSABLE = (SceneError, PatchError, RecipeError)
_TOLD = 3  # examples in the error of an archive without a usable scene


@recipe
class BalanceRecipe:
    """Fewer patches of what there is plenty of. Within each scene, patches that show a class other than the common
    ones are all kept; of the others, `ratio` times as many, those whose ids have the lowest SHA-256."""

    ratio: float | None = opt(None, "patches with common classes alone, for each with another class; null: all", ge=0)
    common: tuple[str, ...] = opt((), "the common classes; []: in each scene the one with the most pixels")


@recipe
class ScenesRecipe:
    """Scenes and their labels, cut into patches."""

    pattern: str = opt("*", "which scenes: a pattern with * and ? for their paths in the archive")
    scene: SceneRecipe = opt(SceneRecipe, "what the files of a scene are")
    labels: LabelRecipe = opt(LabelRecipe, "where its labels are; none where path is empty")
    nomenclature: str = opt("custom", "name of the labels' legend, for the store's records")
    patch_px: int = opt(128, "side of a patch", "px of the finest band", gt=0)
    stride_px: int = opt(
        0, "from patch to patch; 0: as patch_px, less makes them overlap", "px of the finest band", ge=0
    )
    edge: Literal["drop", "shift"] = opt(
        "drop", "what is left at the right and lower edge: without patches, or under a last one that is moved inwards"
    )
    survey: Literal["first", "all"] = opt(
        "first",
        "bands that the plan asks which pixels are valid; first: of those with the largest pixels; what another band "
        "lacks rejects a patch only when it is read; all: each pixel is read twice",
    )
    min_valid: float = opt(0.5, "least part of a patch's pixels that is valid", ge=0, le=1)
    min_labelled: float = opt(0.01, "least part that is valid and has a label", ge=0, le=1)
    balance: BalanceRecipe = opt(BalanceRecipe, "class-balanced selection")


@dataclass(frozen=True)
class Looked:
    """A patch as the plan sees it. pixels: (class,) number of valid pixels of each class."""

    row: int
    col: int
    valid: float
    labelled: float
    pixels: np.ndarray


# ---- the archive


def describe(archive: Path, section: ScenesRecipe) -> Contents:
    """What the first scene that can be opened, and its labels, say. ArchiveError where none can."""
    why = []
    for unit in _scenes(archive, section):
        try:
            return _contents(archive, section, unit, _open(archive, section, unit))
        except (SceneError, PatchError) as e:
            why.append(str(rejected(unit, e, archive)))
    told = "\n".join(why[:_TOLD])
    raise ArchiveError(f"{archive}: none of its {len(why)} scenes can be used; {len(why[:_TOLD])} of them:\n{told}")


def units(archive: Path, section: ScenesRecipe, contents: Contents) -> Iterator[str]:
    """The scenes' paths, relative to the archive, in order."""
    yield from _scenes(archive, section)


def _scenes(archive: Path, section: ScenesRecipe) -> list[str]:
    found = [str(p.relative_to(archive)) for p in scenes_of(archive, "", section.scene, section.labels)]
    wanted = [p for p in found if fnmatch.fnmatchcase(p, section.pattern)]
    if not wanted:
        raise ArchiveError(
            f"{archive}: pattern {section.pattern!r} fits none of its {len(found)} scenes: {', '.join(found[:5])}"
        )
    return wanted


def _open(archive: Path, section: ScenesRecipe, unit: str) -> Scene:
    return open_scene(archive / unit, None, section.scene)


def _labels(
    archive: Path, section: ScenesRecipe, unit: str, scene: Scene, classes: tuple[str, ...] | None
) -> Labels | None:
    if not section.labels.path:
        return None
    return open_labels(section.labels, archive, scene.name, scene.date, classes, scene_path(unit, scene.name))


def _contents(archive: Path, section: ScenesRecipe, unit: str, scene: Scene) -> Contents:
    groups = scene.groups(section.patch_px)
    labels = _labels(archive, section, unit, scene, None)
    classes = labels.classes if labels else ()
    if unknown := [c for c in section.balance.common if c not in classes]:
        raise RecipeError(f"balance.common: {unknown[0]!r} is no class; there are {', '.join(classes) or 'none'}")
    step = step_px(groups)
    if section.stride_px % step:
        raise RecipeError(
            f"stride_px = {section.stride_px}: patches would begin between pixels of the coarser bands; "
            f"take a multiple of {step} px"
        )
    return Contents(
        sensor=scene.sensor,
        unit=scene.unit,
        rgb=scene.rgb,
        layout=Layout(groups, valid=True, mask_px=section.patch_px if labels else 0),
        nomenclature=section.nomenclature if labels else "",
        classes=classes,
        colors=labels.colors if labels else (),
        target="mask" if labels else "labels",
    )


# ---- the plan


def plan(archive: Path, section: ScenesRecipe, contents: Contents, unit: str) -> list[Found]:
    """The patches of a scene, block by block; one Reject where the scene or its labels cannot be used."""
    try:
        scene = _open(archive, section, unit)
        check_kind(scene, contents, scene.groups(section.patch_px))
        labels = _labels(archive, section, unit, scene, contents.classes)
        looked = list(_look(scene, labels, section, contents))
    except UNUSABLE as e:
        return [rejected(unit, e, archive)]
    if not looked:
        size = f"{scene.finest.height_px} x {scene.finest.width_px} px"
        return [Reject(unit, unit, f"is {size}", f"at least one patch of {section.patch_px} px")]
    source = unit if unit != "." else scene.name  # the archive is the scene
    named = [(f"{source}_{p.row}_{p.col}", p) for p in looked]
    unwanted = _unwanted(named, section, contents)
    found = [LeftOut(i, unwanted[i]) if i in unwanted else _planned(scene, unit, source, i, p) for i, p in named]
    return [*noted([scene]), *found]


def _planned(scene: Scene, unit: str, source: str, patch: str, p: Looked) -> Planned:
    return Planned(
        id=patch,
        source=source,
        crs=scene.finest.crs,
        transform=shifted(scene.finest.transform, (p.row, p.col, 0, 0)),
        date=scene.date,
        classes=tuple(np.flatnonzero(p.pixels).tolist()),
        where={"scene": unit, "row": p.row, "col": p.col},
    )


def positions(length: int, size: int, stride: int, edge: str, step: int) -> list[int]:
    """Where patches begin along a side, in px. A last one that is moved inwards begins where the pixels of all
    bands do, every `step` px; so up to step - 1 px stay without a patch."""
    if length < size:
        return []
    found = list(range(0, length - size + 1, stride))
    last = (length - size) // step * step
    return [*found, last] if edge == "shift" and last > found[-1] else found


def step_px(groups: tuple[Group, ...]) -> int:
    """The pixels of all bands begin together every so many px of the finest."""
    return math.lcm(*(groups[0].size_px // g.size_px for g in groups))


def _windows(scene: Scene, section: ScenesRecipe, contents: Contents) -> list[Window_px]:
    """Of the patches, block by block."""
    size, stride = section.patch_px, section.stride_px or section.patch_px
    step = step_px(contents.layout.groups)
    rows, cols = (
        positions(n, size, stride, section.edge, step) for n in (scene.finest.height_px, scene.finest.width_px)
    )
    return by_blocks((row, col, size, size) for row, col in itertools.product(rows, cols))


def _look(scene: Scene, labels: Labels | None, section: ScenesRecipe, contents: Contents) -> Iterator[Looked]:
    """Each patch's valid and labelled fraction and pixels of each class, one patch in memory at a time."""
    shape, count = (section.patch_px, section.patch_px), len(contents.classes)
    with ExitStack() as stack:
        reader = masks = None
        if section.min_valid > 0 or labels:
            reader = stack.enter_context(scene.reader() if section.survey == "all" else scene.surveyed())
        if labels:
            masks = stack.enter_context(_over(labels, scene))
        for window in _windows(scene, section, contents):
            valid = reader.valid(window) if reader else np.ones(shape, bool)
            pixels = np.bincount(masks(window)[valid], minlength=IGNORE + 1)[:count] if masks else np.zeros(0, int)
            yield Looked(window[0], window[1], float(valid.mean()), float(pixels.sum() / valid.size), pixels)


@contextmanager
def _over(labels: Labels, scene: Scene) -> Iterator[Masks]:
    f = scene.finest
    with labels.over(f.crs, f.transform, f.height_px, f.width_px) as masks:
        yield by_block(masks, f.height_px, f.width_px, BLOCK_PX)


def _unwanted(named: list[tuple[str, Looked]], section: ScenesRecipe, contents: Contents) -> dict[str, str]:
    """Patch id -> why it is left out."""
    out = {}
    for patch, p in named:
        if p.valid < section.min_valid:
            out[patch] = f"less than {section.min_valid:g} of it is valid"
        elif contents.classes and p.labelled < section.min_labelled:
            out[patch] = f"less than {section.min_labelled:g} of it is labelled"
    left = [(patch, p) for patch, p in named if patch not in out]
    out |= dict.fromkeys(thinned(left, section.balance, contents.classes), "only common classes (balance)")
    return out


def thinned(named: list[tuple[str, Looked]], balance: BalanceRecipe, classes: tuple[str, ...]) -> list[str]:
    """The ids that balancing leaves out: see BalanceRecipe."""
    if balance.ratio is None or not classes or not named:
        return []
    common = np.zeros(len(classes), bool)
    common[[classes.index(c) for c in balance.common]] = True
    if not balance.common:
        common[np.argmax(sum(p.pixels for _, p in named))] = True
    plain = [patch for patch, p in named if not p.pixels[~common].any()]
    kept = int(balance.ratio * (len(named) - len(plain)))
    return sorted(plain, key=lambda patch: hashlib.sha256(patch.encode()).digest())[kept:]


# ---- the pixels


def read(
    archive: Path, section: ScenesRecipe, contents: Contents, patches: list[Planned], payload: Any = None
) -> Iterator[Patch | Reject]:
    """The pixels of `patches`, in order; each scene is opened once for those of its patches that come together."""
    for unit, some in itertools.groupby(patches, lambda p: str(p.where["scene"])):
        wanted = list(some)
        done = 0
        try:
            for got in _read_scene(archive, section, contents, unit, wanted):
                yield got
                done += 1
        except UNUSABLE as e:
            yield from (rejected(p.id, e, archive) for p in wanted[done:])


def _read_scene(
    archive: Path, section: ScenesRecipe, contents: Contents, unit: str, wanted: list[Planned]
) -> Iterator[Patch | Reject]:
    """What is raised here is of the scene as a whole; what is wrong with a patch alone is a Reject."""
    scene = _open(archive, section, unit)
    check_kind(scene, contents, scene.groups(section.patch_px))
    labels = _labels(archive, section, unit, scene, contents.classes)
    with scene.reader() as reader, ExitStack() as stack:
        masks = stack.enter_context(_over(labels, scene)) if labels else None
        for p in wanted:
            window = (p.where["row"], p.where["col"], section.patch_px, section.patch_px)
            try:
                got: Patch | Reject = _checked(p, _patch(contents, reader, masks, window), section)
            except UNUSABLE as e:
                got = rejected(p.id, e, archive)
            yield got


def _patch(contents: Contents, reader: SceneReader, masks: Masks | None, window: Window_px) -> Patch:
    arrays = {g.name: np.stack([reader.read(b, window) for b in g.bands]) for g in contents.layout.groups}
    valid = reader.valid(window)
    arrays["valid"] = valid.astype(np.uint8)
    if not masks:
        return Patch(arrays, ())
    arrays["mask"] = np.where(valid, masks(window), np.uint8(IGNORE))
    return Patch(arrays, present(arrays["mask"]))


def _checked(p: Planned, patch: Patch, section: ScenesRecipe) -> Patch | Reject:
    less = scarce(p, "min_valid", float(patch.arrays["valid"].mean()), section.min_valid)
    if "mask" in patch.arrays:
        less += scarce(p, "min_labelled", labelled(patch.arrays["mask"]), section.min_labelled)
    return less[0] if less else patch
