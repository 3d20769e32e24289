"""Scenes and their labels, cut into patches: the pixels of every band at its own size, the valid ones, a mask.

The plan looks at the labels, and at one band and the product's own masks where `min_valid` or labels need to know
which pixels are valid; so no patch is left out that all bands together would have kept. What all bands say is looked
at when the patch is read, or, with `survey: all`, in the plan already.

Without labels the store has neither a mask nor classes: something to predict on, or to train on without labels.
"""

import dataclasses
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
from jeoparda.errors import ArchiveError, JeopardaError, PatchError, RecipeError, SceneError
from jeoparda.ingest.source import LeftOut, Patch, Planned
from jeoparda.labels import LabelRecipe, Labels, Masks, by_block, open_labels, shifted
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import Window_px
from jeoparda.scene import Scene, SceneReader, SceneRecipe, find_scenes, open_scene
from jeoparda.store import Contents, Group, Layout, Reject

AT_ONCE = 1  # a scene is a task of the plan
BLOCK_PX = 1024  # patches are in the order of such blocks: JP2 and COG are decoded by blocks, each but once
_SAME_PIXEL = 0.01  # scenes whose pixel sizes differ by less, relative, are of one store
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
        "bands that the plan asks which pixels are valid; first: what another band lacks rejects a patch only when it "
        "is read; all: each pixel is read twice",
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
            return _contents(archive, section, _open(archive, section, unit))
        except (SceneError, PatchError) as e:
            why.append(str(rejected(unit, e, archive)))
    told = "\n".join(why[:_TOLD])
    raise ArchiveError(f"{archive}: none of its {len(why)} scenes can be used; {len(why[:_TOLD])} of them:\n{told}")


def units(archive: Path, section: ScenesRecipe, contents: Contents) -> Iterator[str]:
    """The scenes' paths, relative to the archive, in order."""
    yield from _scenes(archive, section)


def _scenes(archive: Path, section: ScenesRecipe) -> list[str]:
    try:
        found = [str(p.relative_to(archive)) for p in find_scenes(archive, section.scene)]
    except SceneError as e:
        raise ArchiveError(str(e)) from e
    wanted = [p for p in found if fnmatch.fnmatchcase(p, section.pattern)]
    if not wanted:
        raise ArchiveError(
            f"{archive}: pattern {section.pattern!r} fits none of its {len(found)} scenes: {', '.join(found[:5])}"
        )
    return wanted


def _open(archive: Path, section: ScenesRecipe, unit: str) -> Scene:
    return open_scene(archive / unit, None, section.scene)


def _labels(archive: Path, section: ScenesRecipe, scene: Scene, classes: tuple[str, ...] | None) -> Labels | None:
    return open_labels(section.labels, archive, scene.name, scene.date, classes) if section.labels.path else None


def _contents(archive: Path, section: ScenesRecipe, scene: Scene) -> Contents:
    groups = scene.groups(section.patch_px)
    labels = _labels(archive, section, scene, None)
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


def plan(archive: Path, section: ScenesRecipe, contents: Contents, unit: str) -> list[Planned | Reject | LeftOut]:
    """The patches of a scene, block by block; one Reject where the scene or its labels cannot be used."""
    try:
        scene = _open(archive, section, unit)
        _same(scene, contents, section.patch_px)
        labels = _labels(archive, section, scene, contents.classes)
        looked = list(_look(scene, labels, section, contents))
    except UNUSABLE as e:
        return [rejected(unit, e, archive)]
    if not looked:
        size = f"{scene.finest.height_px} x {scene.finest.width_px} px"
        return [Reject(unit, unit, f"is {size}", f"at least one patch of {section.patch_px} px")]
    named = [(patch_id(scene, p.row, p.col), p) for p in looked]
    unwanted = _unwanted(named, section, contents)
    return [LeftOut(i, unwanted[i]) if i in unwanted else _planned(scene, unit, i, p) for i, p in named]


def patch_id(scene: Scene, row: int, col: int) -> str:
    return f"{scene.name}_{row}_{col}"


def _planned(scene: Scene, unit: str, patch: str, p: Looked) -> Planned:
    return Planned(
        id=patch,
        source=unit if unit != "." else scene.name,  # the archive is the scene
        crs=scene.finest.crs,
        transform=shifted(scene.finest.transform, (p.row, p.col, 0, 0)),
        date=scene.date,
        classes=tuple(np.flatnonzero(p.pixels).tolist()),
        where={"scene": unit, "row": p.row, "col": p.col},
    )


def _same(scene: Scene, contents: Contents, size_px: int) -> None:
    """PatchError where the scene is not of the store's kind, which the first scene settled."""
    groups = scene.groups(size_px)
    pairs = (
        ("sensor", scene.sensor, contents.sensor),
        ("unit", scene.unit, contents.unit),
        ("bands", _kind(groups), _kind(contents.layout.groups)),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise PatchError(scene.folder, f"its {what}: {found}", f"{expected}, as the first scene has")
    for g, first in zip(groups, contents.layout.groups, strict=True):
        if abs(g.pixel_m / first.pixel_m - 1) > _SAME_PIXEL:
            raise PatchError(scene.folder, f"its pixels of {g.pixel_m:g}", f"{first.pixel_m:g}, as the first scene has")


def _kind(groups: tuple[Group, ...]) -> str:
    return "; ".join(f"{', '.join(g.bands)} ({g.dtype}, {g.size_px} px a patch)" for g in groups)


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


def _windows(scene: Scene, section: ScenesRecipe, contents: Contents) -> list[tuple[int, int]]:
    """(row, col) of the patches, block by block."""
    size, stride = section.patch_px, section.stride_px or section.patch_px
    step = step_px(contents.layout.groups)
    rows, cols = (
        positions(n, size, stride, section.edge, step) for n in (scene.finest.height_px, scene.finest.width_px)
    )
    return sorted(itertools.product(rows, cols), key=lambda p: (p[0] // BLOCK_PX, p[1] // BLOCK_PX, *p))


def _look(scene: Scene, labels: Labels | None, section: ScenesRecipe, contents: Contents) -> Iterator[Looked]:
    """Each patch's valid and labelled fraction and pixels of each class, one patch in memory at a time."""
    size, count = section.patch_px, len(contents.classes)
    with ExitStack() as stack:
        reader = masks = None
        if section.min_valid > 0 or labels:
            reader = stack.enter_context(_survey(scene, section).reader())
        if labels:
            masks = stack.enter_context(_over(labels, scene))
        for row, col in _windows(scene, section, contents):
            window = (row, col, size, size)
            valid = reader.valid(window) if reader else np.ones((size, size), bool)
            pixels = np.bincount(masks(window)[valid], minlength=IGNORE + 1)[:count] if masks else np.zeros(0, int)
            yield Looked(row, col, float(valid.mean()), float(pixels.sum() / valid.size), pixels)


def _survey(scene: Scene, section: ScenesRecipe) -> Scene:
    """The scene with the first of its finest bands alone, and the product's masks; all of it where bands are fused."""
    if scene.fusion or section.survey == "all":
        return scene
    first = scene.bands[0]
    return dataclasses.replace(scene, files={first: scene.files[first]})


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
    _same(scene, contents, section.patch_px)
    labels = _labels(archive, section, scene, contents.classes)
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


def present(mask: np.ndarray) -> tuple[int, ...]:
    """The classes of a mask, of any shape."""
    return tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]).tolist())


def _checked(p: Planned, patch: Patch, section: ScenesRecipe) -> Patch | Reject:
    """The limits again, now that all bands are known: another band may hold less than the first."""
    valid = float(patch.arrays["valid"].mean())
    if valid < section.min_valid:
        reason = f"{valid:.4g} of it is valid, all bands looked at"
        return Reject(p.id, p.source, reason, f"at least min_valid = {section.min_valid:g}", fault=False)
    if "mask" in patch.arrays:
        labelled = float((patch.arrays["mask"] != IGNORE).mean())
        if labelled < section.min_labelled:
            reason = f"{labelled:.4g} of it is labelled and valid, all bands looked at"
            return Reject(p.id, p.source, reason, f"at least min_labelled = {section.min_labelled:g}", fault=False)
    return patch


def rejected(name: str, error: JeopardaError, archive: Path) -> Reject:
    """The line of the rejects' table; paths are said from the archive."""
    if isinstance(error, PatchError):
        parts = (error.file, error.reason, error.expected)
    elif isinstance(error, RecipeError):
        parts = (name, str(error), "a scene that the recipe fits")
    else:
        file, _, rest = str(error).partition(": ")
        reason, _, expected = rest.partition("; expected ")
        parts = (file, reason, expected)
    file, reason, expected = (_from(archive, text) for text in parts)
    return Reject(name, file, reason, expected or "a scene that can be read")


def _from(archive: Path, text: str) -> str:
    """`text` with paths as they are from the archive: a store does not depend on where that lies."""
    for root in (str(archive.resolve()), str(archive)):
        text = text.replace(f"{root}/", "").replace(root, ".") if root not in (".", "/") else text
    return text
