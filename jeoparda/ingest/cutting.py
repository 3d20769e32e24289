"""What the sources that cut patches out of scenes share: which scenes there are, whether they are of the store's kind,
the order of patches, their limits, and what is said of those that fail."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np

from jeoparda.errors import ArchiveError, JeopardaError, PatchError, RecipeError, SceneError
from jeoparda.ingest.source import Note, Planned
from jeoparda.labels import LabelRecipe, without_labels
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import Window_px
from jeoparda.scene import Scene, SceneRecipe, find_scenes, open_scene
from jeoparda.store import Contents, Group, Reject

BLOCK_PX = 1024  # patches are in the order of such blocks: JP2 and COG are decoded by blocks, each but once
_SAME_PIXEL = 0.01  # scenes whose pixel sizes differ by less, relative, are of one store
NO_DATE = "a date in its metadata or its name: give {}.pattern with (?P<date>...)"


def by_blocks(windows: Iterable[Window_px]) -> list[Window_px]:
    return sorted(windows, key=lambda w: (w[0] // BLOCK_PX, w[1] // BLOCK_PX, w))


# ---- scenes


def scenes_of(archive: Path, folder: str, options: SceneRecipe, labels: LabelRecipe) -> list[Path]:
    """The scenes in a folder of the archive, without what are labels. ArchiveError where there is none."""
    try:
        return without_labels(labels, archive, find_scenes(archive / folder, options))
    except SceneError as e:
        raise ArchiveError(str(e)) from e


def first_scene(paths: list[Path], options: SceneRecipe, dated: str = "") -> Scene:
    """The first that opens, and where `dated` is the recipe's key of its options, has a date. ArchiveError where none
    does."""
    failed: list[SceneError] = []
    for path in paths:
        try:
            scene = open_scene(path, None, options)
        except SceneError as e:
            failed.append(e)
            continue
        if scene.date or not dated:
            return scene
    where, count = paths[0].parent, len(paths) - len(failed)
    if count:
        raise ArchiveError(f"{where}: {count} scenes opened, none has a date; expected {NO_DATE.format(dated)}")
    raise ArchiveError(f"{where}: none of its {len(paths)} scenes can be opened; the first: {failed[0]}")


def scene_path(unit: str, name: str) -> str:
    """{path} of labels.path: a scene's name after the folders that it lies in, from the archive."""
    return str(PurePath(unit).parent / name)


def assumed(scene: Scene) -> tuple[str, ...]:
    """What the user should know of a scene."""
    unmasked = ("Sentinel-2 L2A without a scene classification: clouds are not masked.",)
    return scene.notes + (unmasked if scene.level == "L2A" and not scene.quality else ())


def noted(scenes: Iterable[Scene]) -> list[Note]:
    return [Note(text) for text in dict.fromkeys(text for s in scenes for text in assumed(s))]


# ---- of the store's kind


def check_kind(scene: Scene, contents: Contents, groups: Sequence[Group]) -> None:
    """PatchError where a scene, and its `groups` as they would be stored, do not fit into the store's records, which
    the first one settled."""
    for what in ("sensor", "unit"):
        if (found := getattr(scene, what)) != (first := getattr(contents, what)):
            raise PatchError(scene.folder, f"its {what}: {found}", f"{first}, as the first scene has")
    check_groups(scene.folder, groups, contents.layout.groups)


def check_groups(file: str, found: Sequence[Group], first: Sequence[Group]) -> None:
    """The same bands in the same order, types and sizes; pixel sizes to a hundredth. PatchError says what differs."""
    have, want = ({b: g for g in groups for b in g.bands} for groups in (found, first))
    if lacking := [b for b in want if b not in have]:
        raise PatchError(file, f"lacks {', '.join(lacking)}", f"{', '.join(want)}, as the first scene has")
    if more := [b for b in have if b not in want]:
        raise PatchError(file, f"has {', '.join(more)} too", f"{', '.join(want)}, as the first scene has")
    for band, g in have.items():
        w, bands = want[band], ", ".join(g.bands)
        if g.dtype != w.dtype:
            raise PatchError(file, f"{bands} in {g.dtype}", f"{w.dtype}, as in the first scene")
        if g.size_px != w.size_px or abs(g.pixel_m / w.pixel_m - 1) > _SAME_PIXEL:
            raise PatchError(file, f"{bands} with pixels of {g.pixel_m:g}", f"{w.pixel_m:g}, as in the first scene")
    if [g.bands for g in found] != [g.bands for g in first]:
        raise PatchError(file, f"its bands are in the order {', '.join(have)}", f"{', '.join(want)}")


# ---- patches


def present(mask: np.ndarray) -> tuple[int, ...]:
    """The classes of a mask, of any shape."""
    return tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]).tolist())


def labelled(mask: np.ndarray) -> float:
    """Share of a mask's pixels that have a label."""
    return float((mask != IGNORE).mean())


def scarce(p: Planned, key: str, share: float, least: float) -> list[Reject]:
    """The limits of the plan again, now that all bands are known: another may hold less than the one it asked."""
    if share >= least:
        return []
    reason = f"{share:.4g} of it is {'valid' if key == 'min_valid' else 'labelled and valid'}, all bands looked at"
    return [Reject(p.id, p.source, reason, f"at least {key} = {least:g}", fault=False)]


# ---- rejects


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
