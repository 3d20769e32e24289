"""Scenes become maps: a classifier looks at patches all over a scene, and each becomes one pixel.

For each scene: NAME_classes.tif, the most probable class; NAME_probabilities.tif, one band a class; two pictures
for the report; and a line of ledger.jsonl. The ledger knows a finished scene by the content of its bands, the
weights and the settings, and the outputs by their checksums, so a killed job repeats only the scene in hand.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from jeoparda import targets
from jeoparda.comm import Single, device_of
from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.errors import RecipeError, SceneError
from jeoparda.evaluate import Trained, layout_of, load, stretch
from jeoparda.feed.augment import still
from jeoparda.feed.plain import PlainTransform
from jeoparda.files import sha256, whole
from jeoparda.grid import PatchGrid
from jeoparda.journal import Journal, provenance, read
from jeoparda.progress import track
from jeoparda.raster import png, thumbnail, write_map
from jeoparda.scene import Scene, SceneReader, SceneRecipe, open_scene
from jeoparda.store import Layout

NODATA = 255
FULL = 250  # the byte that means probability 1
STRIP_PX = 1024  # rows of the finest band that are read at once: 125 MB of a whole Sentinel-2 tile
_QUICKLOOK_PX = 1024
# how the names of sensors with more than one level of processing end
_MEANING = {
    "l1c": "top of the atmosphere",
    "l2a": "surface reflectance",
    "l1": "top of the atmosphere",
    "l2": "surface reflectance",
}
_SAME_PIXEL = 1e-3  # relative: pixels of 63.997 m and 64 m are the same


@recipe
class PredictRecipe:
    """jeoparda predict: coarse maps of whole scenes by a trained classifier, one pixel a patch."""

    run: Path = opt(REQUIRED, "folder of the training run")
    scenes: list[Path] = opt(REQUIRED, "folders with one scene each, such as a .SAFE or its IMG_DATA, or stacks")
    out: Path = opt(REQUIRED, "folder of the maps and their ledger")
    checkpoint: Literal["best", "last"] = opt("best", "best: highest validation micro F1")
    stride_px: int = opt(60, "from patch to patch, and so the pixel size of the map, in finest pixels", "px", ge=1)
    min_valid: float = opt(0.5, "a patch with a smaller share of measured pixels stays without data", ge=0, le=1)
    batch: int = opt(64, "patches at a time", "patches", ge=1)
    scene: SceneRecipe = opt(SceneRecipe, "what the files of a scene are")


def run(r: PredictRecipe) -> list[dict[str, Any]]:
    """Map every scene that the ledger does not hold yet. Returns the ledger's lines, one a scene.

    RecipeError where the stride falls between pixels; SceneError where a scene's bands are missing or do not fit,
    or its unit is not the one that the network was trained on.
    """
    trained = load(r.run, r.checkpoint)
    mapper = _Mapper(r, trained)
    scenes = [open_scene(folder, trained.bands, r.scene) for folder in r.scenes]  # all are looked at before any work
    _check_names(scenes)
    for scene in scenes:
        _check_unit(trained, scene)
    return [_scene(r, trained, mapper, scene) for scene in scenes]


def _check_names(scenes: list[Scene]) -> None:
    names = [s.name for s in scenes]
    for scene in scenes:
        if names.count(scene.name) > 1:
            raise RecipeError(
                f"scenes: two are named {scene.name!r}, and so would their maps; map them into two folders"
            )


def _check_unit(trained: Trained, scene: Scene) -> None:
    if scene.unit != trained.about["unit"]:
        raise SceneError(
            f"{scene.folder}: its pixels are {scene.unit} (sensor {scene.sensor}), the network was trained on "
            f"{trained.about['unit']} (sensor {trained.about['sensor']}); where the files are of that sensor, say "
            "so by the scene's `kind`"
        )


def _scene(r: PredictRecipe, trained: Trained, mapper: "_Mapper", scene: Scene) -> dict[str, Any]:
    key = _key(r, mapper.weights, scene)
    if done := _finished(r.out, key):
        print(f"{scene.folder}: already mapped, {r.out / done['classes_tif']}", flush=True)
        return done
    grid = mapper.grid(scene)
    scores = mapper.scores(scene, grid)
    line = _write(r, trained, mapper.weights, scene, grid, scores) | {"key": key, "made": provenance()}
    Journal(r.out / "ledger.jsonl").append("map", **line)
    for warning in line["warnings"]:
        print(f"{scene.folder}: warning: {warning}", flush=True)
    print(f"{scene.folder}: {grid.rows} x {grid.cols} patches, {r.out / line['classes_tif']}", flush=True)
    return line


# ---- what is done already


def _key(r: PredictRecipe, weights: str, scene: Scene) -> str:
    """A digest of all that decides a map: the bands' content and how it is read, the weights, the settings."""
    read = ("index", "gain", "offset", "nodata", "warped")
    parts = {
        "content": [sha256(Path(path)) for path in scene.inputs],
        "bands": {band: [getattr(file, name) for name in read] for band, file in scene.files.items()},
        "grid": [scene.finest.crs, scene.finest.transform, scene.finest.height_px, scene.finest.width_px],
        "fused": [scene.fusion.window, scene.fusion.weights] if scene.fusion else [],
        "weights": weights,
        "settings": [r.stride_px, r.min_valid],
        "scene": scene.name,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The ledger's line of that key, if every output is there as it was written."""
    ledger = out / "ledger.jsonl"
    for line in reversed(read(ledger) if ledger.exists() else []):
        if line.get("key") == key:
            intact = all((out / n).exists() and sha256(out / n) == digest for n, digest in line["outputs"].items())
            return line if intact else None
    return None


# ---- the network over a scene


class _Mapper:
    """The network of a run, and how its patches are cut from a scene. weights: SHA-256 of its checkpoint."""

    def __init__(self, r: PredictRecipe, trained: Trained) -> None:
        about = trained.about
        self.weights = sha256(trained.path)
        self._groups = layout_of(about).groups
        self._size, self._stride = self._groups[0].size_px, r.stride_px
        for g in self._groups:
            if (r.stride_px * g.size_px) % self._size:
                least = np.lcm.reduce([self._size // g.size_px for g in self._groups])
                raise RecipeError(
                    f"stride_px = {r.stride_px}: falls between the {g.pixel_m} m pixels; take a multiple of {least}"
                )
        self._device = device_of(Single())
        self._model = trained.model.to(self._device)
        self._task = trained.about.get("task", "multi-label")
        self._transform = PlainTransform(
            self._groups, np.array(about["mean"], np.float32), np.array(about["std"], np.float32)
        )
        self._batch, self._min_valid = r.batch, r.min_valid

    def grid(self, scene: Scene) -> PatchGrid:
        """The patches over a scene. SceneError where its pixels are not the network's, or it is too small."""
        for g in self._groups:
            for band in g.bands:
                file, pixel = scene.files[band], scene.files[band].info.pixel_size
                if abs(pixel - g.pixel_m) > _SAME_PIXEL * g.pixel_m:
                    raise SceneError(
                        f"{file.path}: pixels of {pixel} (units of its CRS), the network was trained on {g.pixel_m} m"
                    )
                if scene.dtype(band) != g.dtype:
                    raise SceneError(
                        f"{file.path}: pixels are {scene.dtype(band)}, the network was trained on {g.dtype}"
                    )
        height, width = scene.finest.height_px, scene.finest.width_px
        grid = PatchGrid(height, width, self._size, self._stride)
        if not grid.rows or not grid.cols:
            raise SceneError(f"{scene.folder}: {height} x {width} px hold no patch of {self._size} px")
        return grid

    def scores(self, scene: Scene, grid: PatchGrid) -> np.ndarray:
        """(class, row, col) float32 probabilities, nan where the scene has no data. One strip of the scene is in
        memory at a time."""
        rows: list[np.ndarray] = []
        at_once = max(1, (STRIP_PX - self._size) // self._stride + 1)
        with scene.reader() as reader:
            for first in track(range(0, grid.rows, at_once), scene.name, "strips"):
                count = min(at_once, grid.rows - first)
                strip = self._strip(reader, grid, first, count)
                rows += [self._row(*self._cut(strip, grid.cols, row)) for row in range(count)]
        return np.stack(rows, 1)

    def _strip(self, reader: SceneReader, grid: PatchGrid, first: int, count: int) -> dict[str, np.ndarray]:
        """{group: (band, row, col) of its type; "measured": (row, col) bool}: the scene under `count` rows of the grid.
        Patches overlap, and a band may have to be decoded in large pieces, so many rows of patches are read at once."""
        top = grid.window(first, 0)[0]
        height, width = ((n - 1) * self._stride + self._size for n in (count, grid.cols))
        window = (top, 0, height, width)
        pixels = {g.name: np.stack([reader.read(band, window) for band in g.bands]) for g in self._groups}
        return pixels | {"measured": reader.measured(window)}

    def _cut(self, strip: dict[str, np.ndarray], cols: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(col,) records of the patches of one row of the strip, and (col,) the share of each that was measured."""
        records = np.zeros(cols, Layout(self._groups).dtype())
        for g in self._groups:
            step = self._stride * g.size_px // self._size
            lines = strip[g.name][:, row * step : row * step + g.size_px]
            for col in range(cols):
                records[g.name][col] = lines[:, :, col * step : col * step + g.size_px]
        top, size = row * self._stride, self._size
        lines = strip["measured"][top : top + size]
        return records, np.array([lines[:, c * self._stride :][:, :size].mean() for c in range(cols)])

    def _row(self, records: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """(class, col) probabilities. measured: (col,) share of each patch."""
        parts = []
        with torch.inference_mode():
            for first in range(0, len(records), self._batch):
                part = records[first : first + self._batch]
                fields = {g.name: torch.from_numpy(part[g.name]).to(self._device) for g in self._groups}
                image, _ = self._transform(fields, still(len(part)))
                image = image.to(memory_format=torch.channels_last)
                found = targets.probabilities(self._model(image), self._task)
                parts.append(found.float().cpu().numpy())
        scores = np.concatenate(parts)
        scores[measured < self._min_valid] = np.nan
        return scores.T


# ---- what is left behind


def _write(
    r: PredictRecipe, trained: Trained, weights: str, scene: Scene, grid: PatchGrid, scores: np.ndarray
) -> dict[str, Any]:
    """The maps and pictures of a scene. scores: (class, row, col), nan without data. Returns its ledger line."""
    names = list(trained.about["classes"])
    colors = [tuple(c) for c in trained.about["colors"]]
    empty = np.isnan(scores[0])
    classes = np.where(empty, NODATA, scores.argmax(0)).astype(np.uint8)
    warnings = _warnings(trained, scene)
    tags = {
        "JEOPARDA_RUN": trained.path.parent.parent.name,
        "JEOPARDA_WEIGHTS_SHA256": weights,
        "JEOPARDA_SOURCE": scene.name,
        "JEOPARDA_WARNINGS": " ".join(warnings),
    }
    files = {
        "classes_tif": f"{scene.name}_classes.tif",
        "probabilities_tif": f"{scene.name}_probabilities.tif",
        "quicklook_png": f"{scene.name}_quicklook.png",
        "classmap_png": f"{scene.name}_classmap.png",
    }
    place = scene.finest.crs, grid.transform(scene.finest.transform)
    _write_classes(r.out / files["classes_tif"], classes, place, names, colors, tags)
    _write_probabilities(r.out / files["probabilities_tif"], scores, place, names, tags)
    _picture(r.out / files["quicklook_png"], _quicklook(trained, scene))
    _picture(r.out / files["classmap_png"], _painted(classes, colors))
    return {
        "scene": scene.name,
        "source": scene.folder,
        "level": scene.level,
        **files,
        "warnings": warnings,
        "pixels": {names[i]: int(n) for i, n in enumerate(np.bincount(classes[~empty], minlength=len(names))) if n},
        "no_data": int(empty.sum()),
        "legend": [{"name": n, "color": list(c)} for n, c in zip(names, colors, strict=True)],
        "outputs": {name: sha256(r.out / name) for name in files.values()},
    }


Place = tuple[str, tuple[float, ...]]  # (CRS, affine map)


def _write_classes(
    path: Path, classes: np.ndarray, place: Place, names: list[str], colors: list[Any], tags: dict[str, str]
) -> None:
    """classes: (row, col) uint8, NODATA without data."""
    name, table = ["most probable class"], dict(enumerate(colors))
    write_map(path, classes[None], *place, nodata=NODATA, names=name, colors=table, categories=names, tags=tags)


def _write_probabilities(path: Path, scores: np.ndarray, place: Place, names: list[str], tags: dict[str, str]) -> None:
    """scores: (class, row, col), nan without data; written as uint8."""
    values = np.where(np.isnan(scores), NODATA, np.round(np.nan_to_num(scores) * FULL)).astype(np.uint8)
    scale = {"JEOPARDA_SCALE": f"probability = value / {FULL}"}
    write_map(path, values, *place, nodata=NODATA, names=names, tags=tags | scale)


def _painted(classes: np.ndarray, colors: list[Any]) -> np.ndarray:
    """(row, col, 3) uint8; white without data."""
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(colors)] = colors
    return palette[classes]


def _quicklook(trained: Trained, scene: Scene) -> np.ndarray:
    """(row, col, 3) uint8, true colour."""
    bands = trained.about["rgb"] or scene.bands[:1] * 3  # without red, green and blue: in grey
    chosen = [scene.files[band] for band in bands]
    return stretch(np.nan_to_num(np.stack([thumbnail(f.path, _QUICKLOOK_PX, f.index) for f in chosen], -1)))


def _picture(path: Path, rgb: np.ndarray) -> None:
    with whole(path) as draft:
        draft.write_bytes(png(rgb))


def _warnings(trained: Trained, scene: Scene) -> list[str]:
    """What a reader of the map must know."""
    trained_on = trained.about["sensor"]
    (satellite, _, wanted), (other, _, level) = trained_on.rpartition("-"), scene.sensor.rpartition("-")
    if satellite == other and wanted in _MEANING and level in _MEANING:
        return [*_level_warning(wanted, level if scene.level else ""), *scene.notes]
    if scene.sensor != trained_on:
        return [f"The scene is of {scene.sensor}, the network was trained on {trained_on}.", *scene.notes]
    return list(scene.notes)


def _level_warning(wanted: str, level: str) -> list[str]:
    if not level:
        return [f"The file names tell no processing level; the network was trained on {wanted.upper()}."]
    if level == wanted:
        return []
    return [
        f"The scene is {level.upper()} ({_MEANING[level]}), the network was trained on {wanted.upper()} "
        f"({_MEANING[wanted]}): expect wrong classes."
    ]
