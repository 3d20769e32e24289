"""Pairs: the same ground at a low and at a high resolution, with the mask at the high one.

degrade  the high image is a scene; the low one is made of it by a point-spread function and a whole factor
real     a high scene (or only its label raster) and a low scene of at most `max_days` away. Low pixels are taken as
         they are; the high image and its mask are brought onto the grid that divides each low pixel into
         factor x factor. So the two are registered by construction, whatever the CRS of the high image

A low patch is `patch_px` pixels of the finest low band wide, the high patch and the mask `factor` times as many.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jeoparda import raster
from jeoparda.config import opt, recipe
from jeoparda.degrade import Psf, box, degrade, gaussian, sigma_of_fwhm, sigma_of_mtf
from jeoparda.errors import ArchiveError, PatchError, RecipeError, SceneError
from jeoparda.grid import PatchGrid
from jeoparda.ingest import dates as when
from jeoparda.ingest.cutting import (
    NO_DATE,
    assumed,
    by_blocks,
    check_groups,
    check_kind,
    first_scene,
    labelled,
    noted,
    present,
    rejected,
    scarce,
    scene_path,
    scenes_of,
)
from jeoparda.ingest.ground import align_px, around, coarser, cover, finer, inside, lattices, meets, offset, onto
from jeoparda.ingest.source import Found, LeftOut, Note, Patch, Planned, Transform
from jeoparda.labels import LabelRecipe, Labels, Masks, label_files, open_labels, shifted
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import RasterInfo, Window_px, crs_unit
from jeoparda.scene import Scene, SceneReader, SceneRecipe, open_scene
from jeoparda.store import Contents, Group, Layout, Reject

AT_ONCE = 1  # a high-resolution image is a task of the plan


@recipe
class PsfRecipe:
    """The point-spread function of the low image, in low pixels."""

    kind: Literal["gaussian", "box"] = opt("gaussian", "box: the plain mean of each block")
    mtf: float = opt(0.3, "gaussian: modulation transfer at the low image's Nyquist frequency", gt=0, lt=1)
    fwhm_px: float = opt(0.0, "gaussian: full width at half maximum, instead of mtf; 0: by mtf", "low px", ge=0)
    min_weight: float = opt(
        0.5, "share of its weight on valid pixels, below which a low pixel is not valid", gt=0, le=1
    )


@recipe
class PairsRecipe:
    """Low and high resolution of the same ground."""

    how: Literal["degrade", "real"] = opt("degrade", "low made from high, or two images of the same ground")
    high_in: str = opt("", "folder of the high-resolution scenes, from the archive")
    high: SceneRecipe = opt(SceneRecipe, "what the files of a high-resolution scene are")
    low_in: str = opt("", "real: folder of the low-resolution scenes, from the archive")
    low: SceneRecipe = opt(SceneRecipe, "real: what the files of a low-resolution scene are")
    masks_only: bool = opt(False, "real: there are no high scenes, only label rasters that labels.path names")
    labels: LabelRecipe = opt(LabelRecipe, "labels of the high-resolution scenes")
    factor: int = opt(4, "high pixels along one low pixel", ge=2)
    psf: PsfRecipe = opt(PsfRecipe, "degrade: how the low image sees")
    high_bands: tuple[str, ...] = opt((), "degrade: bands, of one pixel size, kept as the high image; []: the finest")
    patch_px: int = opt(64, "side of a patch, in pixels of the finest low band", "px", gt=0)
    stride_px: int = opt(0, "from a patch to the next; 0: patch_px", "px", ge=0)
    max_days: int = opt(5, "real: from the low image to the high one or its labels", "days", ge=0)
    keep: Literal["nearest", "all"] = opt(
        "nearest", "real: of low images, that of the nearest day, of those the clearest; or a patch for each"
    )
    resampling: Literal["average", "bilinear"] = opt("average", "real: of the high image; its mask is nearest")
    min_valid: float = opt(
        0.5, "share of valid pixels, low and high each, below which a patch is left out; 0: none is", ge=0, le=1
    )
    min_labelled: float = opt(0.0, "share of labelled pixels below which a patch is left out", ge=0, le=1)

    @property
    def step_px(self) -> int:
        return self.stride_px or self.patch_px

    @property
    def high_px(self) -> int:
        return self.factor * self.patch_px


@dataclass(frozen=True)
class Ground:
    """A high image, or label raster, that patches are cut from: a path from the archive, its name for labels."""

    path: str
    name: str
    date: str
    grid: RasterInfo
    lows: tuple[str, ...] = ()  # paths of the low scenes near in time and place, nearest day first
    notes: tuple[str, ...] = ()  # what had to be assumed of it


def psf_of(section: PairsRecipe) -> Psf:
    if section.psf.kind == "box":
        return box(section.factor)
    by = section.psf
    return gaussian(section.factor, sigma_of_fwhm(by.fwhm_px) if by.fwhm_px else sigma_of_mtf(by.mtf))


# ---- what there is


def describe(archive: Path, section: PairsRecipe) -> Contents:
    """ArchiveError where no scene can be opened; RecipeError for a recipe that cannot work."""
    if section.masks_only and (section.how != "real" or not section.labels.path):
        raise RecipeError("masks_only needs how: real and labels.path")
    same = (section.high_in, section.high) == (section.low_in, section.low)
    if section.how == "real" and same and not section.masks_only:
        raise RecipeError(f"high_in = low_in = {section.high_in!r}, high = low: each scene would pair with itself")
    sample = None if section.masks_only else first_scene(_highs(archive, section), section.high)
    if section.how == "degrade":
        assert sample
        about = _about_degraded(sample, section)
    else:
        about = _about_real(first_scene(_lows(archive, section), section.low, dated="low"), sample, section)
    if not section.labels.path:
        return about
    labels = _first_labels(archive, section)
    layout = replace(about.layout, mask_px=section.high_px)
    return replace(about, layout=layout, classes=labels.classes, colors=labels.colors)


def _highs(archive: Path, section: PairsRecipe) -> list[Path]:
    return scenes_of(archive, section.high_in, section.high, section.labels)


def _lows(archive: Path, section: PairsRecipe) -> list[Path]:
    return scenes_of(archive, section.low_in, section.low, section.labels)


def _about_degraded(scene: Scene, section: PairsRecipe) -> Contents:
    native = scene.groups(section.high_px)
    if odd := [g for g in native if g.size_px % section.factor]:
        raise RecipeError(
            f"patch_px = {section.patch_px}, factor = {section.factor}: {odd[0].size_px} px of {odd[0].name} do not "
            f"divide by the factor; take a patch_px that is a multiple of {native[0].size_px // odd[0].size_px}"
        )
    if section.step_px * section.factor % align_px(scene):
        raise RecipeError(f"stride_px = {section.step_px}: times factor, take a multiple of {align_px(scene)}")
    unit = crs_unit(scene.finest.crs)
    low = [
        replace(g, name=f"{g.pixel_m * section.factor:g}{unit}", pixel_m=g.pixel_m * section.factor,
                size_px=g.size_px // section.factor)
        for g in native
    ]  # fmt: skip
    wanted = section.high_bands or native[0].bands
    source = next((g for g in native if set(wanted) <= set(g.bands)), None)
    if source is None:
        there = "; ".join(f"{' '.join(g.bands)} at {g.name}" for g in native)
        raise RecipeError(f"high_bands = {', '.join(wanted)}: not bands of one pixel size; there are {there}")
    high = replace(source, name="high", bands=tuple(wanted))
    return _contents(scene, Layout(tuple(low), high, valid=True))


def _about_real(low: Scene, high: Scene | None, section: PairsRecipe) -> Contents:
    groups = low.groups(section.patch_px)
    if section.step_px % align_px(low):
        raise RecipeError(f"stride_px = {section.step_px}: take a multiple of {align_px(low)}, for {low.name}'s bands")
    kept = None
    if high:
        kept = Group("high", groups[0].pixel_m / section.factor, section.high_px, high.bands, _type(high))
    return _contents(low, Layout(groups, kept, valid=True))


def _contents(scene: Scene, layout: Layout) -> Contents:
    return Contents(scene.sensor, scene.unit, scene.rgb, layout, "", (), (), "high-resolution mask")


def _first_labels(archive: Path, section: PairsRecipe) -> Labels:
    """Of the first high image that has labels."""
    failed: Exception | None = None
    for path in _high_paths(archive, section):
        try:
            ground = _ground(archive, section, path)
            return _labels(archive, section, ground, section.labels.classes or None)
        except (PatchError, SceneError) as e:
            failed = failed or e
    raise ArchiveError(f"{archive}: labels of no high image can be opened; the first: {failed}")


def _labels(archive: Path, section: PairsRecipe, ground: Ground, classes: tuple[str, ...] | None) -> Labels:
    if section.masks_only:
        one = LabelRecipe(**{**vars(section.labels), "path": ground.path, "name": ""})
        return open_labels(one, archive, classes=classes)
    path = scene_path(ground.path, ground.name)
    return open_labels(section.labels, archive, ground.name, ground.date, classes, path)


# ---- high images and the low scenes near them


def units(archive: Path, section: PairsRecipe, contents: Contents) -> Iterator[Ground | Reject]:
    """High images in the order of their paths, after a Reject for each low scene that cannot be used."""
    lows: list[tuple[str, Scene]] = []
    if section.how == "real":
        for found in _low_scenes(archive, section, contents):
            if isinstance(found, Reject):
                yield found
            else:
                lows.append(found)
    for path in _high_paths(archive, section):
        try:
            ground = _ground(archive, section, path, contents)
        except (SceneError, PatchError) as e:
            yield rejected(path, e, archive)
            continue
        yield replace(ground, lows=_near(ground, lows, section.max_days)) if section.how == "real" else ground


def _high_paths(archive: Path, section: PairsRecipe) -> list[str]:
    if not section.masks_only:
        return [str(p.relative_to(archive)) for p in _highs(archive, section)]
    if found := label_files(section.labels, archive):
        return found
    raise ArchiveError(f"{archive}: no label raster matches labels.path = {section.labels.path!r}")


def _ground(archive: Path, section: PairsRecipe, path: str, contents: Contents | None = None) -> Ground:
    """SceneError, PatchError: it cannot be opened, has no date where one is needed, or is of another kind."""
    if section.masks_only:
        day = when.date_in(Path(path).name) or when.date_in(path)
        ground = Ground(path, Path(path).stem, day, raster.describe(archive / path))
    else:
        scene = open_scene(archive / path, None, section.high)
        ground = Ground(path, scene.name, scene.date, scene.finest, notes=assumed(scene))
        if contents:
            _check_high(scene, section, contents)
    if section.how == "real" and not _is_date(ground.date):
        expected = "a date in its name" if section.masks_only else NO_DATE.format("high")
        raise PatchError(path, f"has no date ({ground.date!r})", expected)
    return ground


def _check_high(scene: Scene, section: PairsRecipe, contents: Contents) -> None:
    """PatchError where a high scene is of another kind than the first one."""
    high = contents.layout.high
    assert high
    if section.how == "degrade":
        check_kind(scene, contents, _about_degraded(scene, section).layout.groups)
    else:
        check_groups(scene.folder, [replace(high, bands=scene.bands, dtype=_type(scene))], [high])


def _type(scene: Scene) -> str:
    """numpy's name of the type that holds all of its bands."""
    return str(np.result_type(*(scene.dtype(b) for b in scene.bands)))


def _is_date(text: str) -> bool:
    try:
        when.moment(text)
    except ValueError:
        return False
    return True


def _low_scenes(archive: Path, section: PairsRecipe, contents: Contents) -> Iterator[tuple[str, Scene] | Reject]:
    for found in _lows(archive, section):
        path = str(found.relative_to(archive))
        try:
            scene = open_scene(found, None, section.low)
            if not _is_date(scene.date):
                raise PatchError(path, f"has no date ({scene.date!r})", NO_DATE.format("low"))
            check_kind(scene, contents, scene.groups(section.patch_px))
        except (SceneError, PatchError) as e:
            yield rejected(path, e, archive)
        else:
            yield path, scene


def _near(ground: Ground, lows: Sequence[tuple[str, Scene]], max_days: int) -> tuple[str, ...]:
    """Paths of the low scenes within `max_days` whose rectangle meets the high image, nearest day first."""
    found = []
    for path, scene in lows:
        days = when.days_apart(scene.date, ground.date)
        if days <= max_days and meets(ground.grid, scene.finest):
            found.append((days, path))
    return tuple(path for _, path in sorted(found))


# ---- patches


def plan(archive: Path, section: PairsRecipe, contents: Contents, unit: Ground | Reject) -> list[Found]:
    """The patches of a high image. Reads labels, and, for `min_valid` and the clearest low image, valid pixels."""
    if isinstance(unit, Reject):
        return [unit]
    try:
        found = (
            _plan_degraded(archive, section, unit) if section.how == "degrade" else _plan_real(archive, section, unit)
        )
        return [*map(Note, unit.notes), *_with_classes(archive, section, contents, unit, found)]
    except (SceneError, PatchError) as e:
        return [rejected(unit.path, e, archive)]


def _plan_degraded(archive: Path, section: PairsRecipe, ground: Ground) -> list[Found]:
    side, step = section.high_px, section.step_px * section.factor
    grid = PatchGrid(ground.grid.height_px, ground.grid.width_px, side, step)
    every = by_blocks(grid.window(r, c) for r in range(grid.rows) for c in range(grid.cols))
    if not every:
        want = f"at least {side} px a side: patch_px * factor"
        return [Reject(ground.path, ground.path, f"is {grid.height_px} x {grid.width_px} px", want)]
    scene = open_scene(archive / ground.path, None, section.high)
    found: list[Found] = []
    with scene.surveyed() as pixels:
        for w in every:
            id = f"{ground.path}_r{w[0]}_c{w[1]}"
            if section.min_valid and pixels.valid(w).mean() < section.min_valid:
                found.append(_unclear(id, section))
                continue
            a, b, c, d, e, f = shifted(ground.grid.transform, w)
            k = section.factor
            at = (a * k, b * k, c, d * k, e * k, f)
            where = {"high": ground.path, "window": list(w)}
            found.append(_planned(id, ground, ground.grid.crs, at, ground.date, where))
    return found


def _planned(id: str, ground: Ground, crs: str, at: Transform, low_date: str, where: dict[str, Any]) -> Planned:
    return Planned(id, ground.path, crs, at, low_date, (), where, dates=(low_date, ground.date))


def _unclear(id: str, section: PairsRecipe) -> LeftOut:
    return LeftOut(id, f"less than {section.min_valid:g} of its pixels valid")


def _plan_real(archive: Path, section: PairsRecipe, ground: Ground) -> list[Found]:
    """For each lattice of low pixels (the tiles of a UTM zone share one) the patches that lie in the high image.
    With keep: nearest only the first lattice that has any, so that no ground is there twice."""
    if not ground.lows:
        return [LeftOut(ground.path, f"no low-resolution image of it within {section.max_days} days")]
    scenes = [(path, open_scene(archive / path, None, section.low)) for path in ground.lows]
    found: list[Found] = []
    for lattice in lattices(scenes):
        found += _plan_lattice(archive, section, ground, lattice)
        if section.keep == "nearest" and any(isinstance(p, Planned) for p in found):
            break
    if not found:
        return [LeftOut(ground.path, "smaller than one patch")]
    return [*noted(scene for _, scene in scenes), *found]


def _plan_lattice(
    archive: Path, section: PairsRecipe, ground: Ground, lattice: list[tuple[str, Scene]]
) -> Iterator[Found]:
    first = lattice[0][1]
    every = inside(ground.grid, first, section.patch_px, section.step_px)
    seen: list[list[tuple[int, float, str, Window_px]]] = [
        [] for _ in every
    ]  # of each patch: days, -valid, path, window
    unread: list[Reject] = []
    for path, scene in lattice:
        try:
            _look(section, ground, every, path, scene, offset(first, scene) or (0, 0), seen)
        except SceneError as e:
            unread.append(rejected(path, e, archive))
    yield from unread
    covered = _high_valid(archive, section, ground, every, first)
    for window, candidates, high_valid in zip(every, seen, covered, strict=True):
        clear = sorted(c for c in candidates if -c[1] >= section.min_valid)
        id = f"{ground.path}_{lattice[0][0]}_r{window[0]}_c{window[1]}"
        if not candidates:
            yield LeftOut(id, "partly outside of the low-resolution images")
            continue
        if not clear or high_valid < section.min_valid:
            yield _unclear(id, section)
            continue
        for _, _, path, own in clear if section.keep == "all" else clear[:1]:
            scene = next(s for p, s in lattice if p == path)
            where = {"high": ground.path, "low": path, "window": list(own)}
            at = shifted(scene.finest.transform, own)
            yield _planned(f"{ground.path}_{path}_r{own[0]}_c{own[1]}", ground, scene.finest.crs, at, scene.date, where)


def _look(
    section: PairsRecipe,
    ground: Ground,
    every: list[Window_px],
    path: str,
    scene: Scene,
    corner: tuple[int, int],
    seen: list[list[tuple[int, float, str, Window_px]]],
) -> None:
    """Add a low scene to the candidates of every patch that lies in it. corner: (row, col) of the scene, in the px
    that windows of `every` count in."""
    days = when.days_apart(scene.date, ground.date)
    with scene.surveyed() as pixels:
        for window, candidates in zip(every, seen, strict=True):
            row, col = window[0] - corner[0], window[1] - corner[1]
            own = (row, col, window[2], window[3])
            if 0 <= row <= scene.finest.height_px - window[2] and 0 <= col <= scene.finest.width_px - window[3]:
                candidates.append((days, -float(pixels.valid(own).mean()), path, own))


def _high_valid(archive: Path, section: PairsRecipe, ground: Ground, every: list[Window_px], low: Scene) -> list[float]:
    """Share of valid high pixels in the box around each patch."""
    if section.masks_only or not section.min_valid:
        return [1.0] * len(every)
    scene = open_scene(archive / ground.path, None, section.high)
    found = []
    with scene.surveyed() as pixels:
        for window in every:
            box = cover(scene, low.finest, window, margin=0)
            found.append(float(around(pixels, box, bands=False)[1].mean()))
    return found


def _with_classes(
    archive: Path, section: PairsRecipe, contents: Contents, ground: Ground, found: list[Found]
) -> list[Found]:
    """The same with the classes that each patch carries."""
    if not contents.classes or not any(isinstance(p, Planned) for p in found):
        return found
    labels = _labels(archive, section, ground, contents.classes)
    with ExitStack() as stack:
        masks = _Masks(archive, section, labels, stack)
        masks.grid_of(next(p for p in found if isinstance(p, Planned)))  # a file that does not open fails here, once
        return [_classed(archive, section, masks, p) if isinstance(p, Planned) else p for p in found]


def _classed(archive: Path, section: PairsRecipe, masks: "_Masks", p: Planned) -> Found:
    try:
        mask = masks.mask(p)
    except PatchError as e:
        return rejected(p.id, e, archive)
    if labelled(mask) < section.min_labelled:
        return LeftOut(p.id, f"less than {section.min_labelled:g} of its pixels labelled")
    return replace(p, classes=present(mask))


class _Masks:
    """Labels of one high image, open on the grids that its patches are cut from: its own, or those that divide the
    pixels of its low images."""

    def __init__(self, archive: Path, section: PairsRecipe, labels: Labels, stack: ExitStack) -> None:
        self._archive, self._section, self._labels, self._stack = archive, section, labels, stack
        self._open: dict[str, Masks] = {}

    def grid_of(self, p: Planned) -> tuple[Masks, int]:
        """The masks on the grid of a patch, and how many of its pixels one pixel of the patch's window has."""
        real = self._section.how == "real"
        path, k = (p.where["low"], self._section.factor) if real else (p.where["high"], 1)
        if path not in self._open:
            f = open_scene(self._archive / path, None, self._section.low if real else self._section.high).finest
            grid = f.crs, finer(f.transform, k), f.height_px * k, f.width_px * k
            self._open[path] = self._stack.enter_context(self._labels.over(*grid))
        return self._open[path], k

    def mask(self, p: Planned) -> np.ndarray:
        """(row, col) uint8 class numbers on the high grid, 255 where there is no label."""
        masks, k = self.grid_of(p)
        row, col, height, width = p.where["window"]
        return masks((row * k, col * k, height * k, width * k))


# ---- pixels


def read(
    archive: Path, section: PairsRecipe, contents: Contents, patches: list[Planned], payload: Any
) -> Iterator[Patch | Reject]:
    """Patches of one high image follow one another: it and its low images stay open until the next."""
    for path, run in groupby(patches, lambda p: p.source):
        with ExitStack() as stack:
            pixels = _Pixels(archive, section, contents, path, stack)
            for p in run:
                try:
                    yield pixels.patch(p)
                except (SceneError, PatchError) as e:
                    yield rejected(p.id, e, archive)


class _Pixels:
    """The open files of one high image: its own, its labels', its low images'."""

    def __init__(self, archive: Path, section: PairsRecipe, contents: Contents, path: str, stack: ExitStack) -> None:
        self._archive, self._section, self._contents = archive, section, contents
        self._path, self._stack = path, stack
        self._readers: dict[str, SceneReader] = {}
        self._masks: _Masks | None = None
        self._psf = psf_of(section)

    def patch(self, p: Planned) -> Patch | Reject:
        section = self._section
        arrays = self._degraded(p) if section.how == "degrade" else self._real(p)
        there = arrays.pop("there")
        less = [r for v in (arrays["valid"], there) for r in scarce(p, "min_valid", float(v.mean()), section.min_valid)]
        if self._contents.classes and not less:
            k = section.factor
            sure = there & (arrays["valid"].repeat(k, 0).repeat(k, 1) > 0)
            arrays["mask"] = np.where(sure, self._mask(p), IGNORE).astype(np.uint8)
            less = scarce(p, "min_labelled", labelled(arrays["mask"]), section.min_labelled)
        return less[0] if less else Patch(arrays, present(arrays["mask"]) if "mask" in arrays else ())

    def _mask(self, p: Planned) -> np.ndarray:
        if self._masks is None:
            ground = _ground(self._archive, self._section, self._path)
            labels = _labels(self._archive, self._section, ground, self._contents.classes)
            self._masks = _Masks(self._archive, self._section, labels, self._stack)
        return self._masks.mask(p)

    def _reader(self, path: str, options: SceneRecipe) -> SceneReader:
        if path not in self._readers:
            scene = open_scene(self._archive / path, None, options)
            self._readers[path] = self._stack.enter_context(scene.reader())
        return self._readers[path]

    def _degraded(self, p: Planned) -> dict[str, np.ndarray]:
        """Every field but the mask, and "there": (row, col) bool, the valid high pixels."""
        section, layout = self._section, self._contents.layout
        reader = self._reader(p.where["high"], section.high)
        row, col, height, width = p.where["window"]
        halo = self._psf.halo_px * align_px(reader.scene)  # that of the coarsest band
        bands, valid = around(reader, (row - halo, col - halo, height + 2 * halo, width + 2 * halo))
        inner = slice(halo, halo + height), slice(halo, halo + width)
        out = {"there": valid[inner]}
        known = np.ones((section.patch_px, section.patch_px), bool)
        for group in layout.groups:
            k = section.patch_px // group.size_px
            image = np.stack([bands[b] for b in group.bands])
            low, sure = degrade(image, self._psf, coarser(valid, k), section.psf.min_weight)
            first = halo // k // section.factor
            cut = slice(first, first + group.size_px)
            out[group.name] = low[:, cut, cut]
            known &= sure[cut, cut].repeat(k, 0).repeat(k, 1) > 0
        out["valid"] = known.astype(np.uint8)
        out["high"] = self._kept(bands, halo)
        return out

    def _kept(self, bands: dict[str, np.ndarray], halo: int) -> np.ndarray:
        high = self._contents.layout.high
        assert high
        k = self._section.high_px // high.size_px
        cut = slice(halo // k, halo // k + high.size_px)
        return np.stack([bands[b][cut, cut] for b in high.bands])

    def _real(self, p: Planned) -> dict[str, np.ndarray]:
        """Every field but the mask, and "there": (row, col) bool, the valid high pixels."""
        section, layout = self._section, self._contents.layout
        reader = self._reader(p.where["low"], section.low)
        row, col, height, width = p.where["window"]
        window = (row, col, height, width)
        out = {g.name: np.stack([reader.read(b, window) for b in g.bands]) for g in layout.groups}
        out["valid"] = reader.valid(window).astype(np.uint8)
        out["there"] = np.ones((section.high_px, section.high_px), bool)
        if layout.high:
            high = self._reader(p.where["high"], section.high)
            out["high"], out["there"] = onto(
                high, (p.crs, p.transform), section.patch_px, section.factor, section.resampling, layout.high.dtype
            )
        return out
