"""Scenes become maps: a multi-label classifier looks at patches all over a scene, and each becomes one pixel.

For each scene: NAME_classes.tif, the most probable class; NAME_probabilities.tif, one band a class; two pictures
for the report; and a line of ledger.jsonl. The ledger knows a finished scene by the content of its bands, the
weights and the settings, and the outputs by their checksums, so a killed job repeats only the scene in hand.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from jeoparda.comm import Single, device_of
from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.errors import RecipeError, SceneError
from jeoparda.evaluate import Trained, load, stretch
from jeoparda.feed.plain import PlainTransform
from jeoparda.files import sha256, whole
from jeoparda.grid import PatchGrid
from jeoparda.journal import Journal, provenance, read
from jeoparda.nomenclature import nomenclature
from jeoparda.progress import track
from jeoparda.raster import png, thumbnail, write_map
from jeoparda.scene import Scene, open_scene
from jeoparda.sensors import sensor
from jeoparda.store import Group, record_dtype

NODATA = 255
FULL = 250  # the byte that means probability 1
STRIP_PX = 1024  # rows of the finest band that are read at once: 125 MB of a whole Sentinel-2 tile
_QUICKLOOK_PX = 1024


@recipe
class PredictRecipe:
    """jeoparda predict: coarse maps of whole scenes by a trained classifier, one pixel a patch."""

    run: Path = opt(REQUIRED, "folder of the training run")
    scenes: list[Path] = opt(REQUIRED, "folders with one raster a band, such as a .SAFE or its IMG_DATA")
    out: Path = opt(REQUIRED, "folder of the maps and their ledger")
    checkpoint: Literal["best", "last"] = opt("best", "best: highest validation micro F1")
    stride_px: int = opt(60, "from patch to patch, and so the pixel size of the map, in finest pixels", "px", ge=1)
    min_valid: float = opt(0.5, "a patch with a smaller share of measured pixels stays without data", ge=0, le=1)
    batch: int = opt(64, "patches at a time", "patches", ge=1)


def run(r: PredictRecipe) -> list[dict[str, Any]]:
    """Map every scene that the ledger does not hold yet. Returns the ledger's lines, one a scene.

    RecipeError where the stride falls between pixels; SceneError where a scene's bands are missing or do not fit.
    """
    trained = load(r.run, r.checkpoint)
    mapper = _Mapper(r, trained)
    scenes = [open_scene(folder, trained.bands) for folder in r.scenes]  # all are looked at before any work
    _check_names(scenes)
    return [_scene(r, trained, mapper, scene) for scene in scenes]


def _check_names(scenes: list[Scene]) -> None:
    names = [s.name for s in scenes]
    for scene in scenes:
        if names.count(scene.name) > 1:
            raise RecipeError(
                f"scenes: two are named {scene.name!r}, and so would their maps; map them into two folders"
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
    """A digest of all that decides a map: the bands' content, the weights, the settings."""
    parts = {
        "bands": {band: sha256(Path(info.path)) for band, info in sorted(scene.files.items())},
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
        self._groups = tuple(Group(**g | {"bands": tuple(g["bands"])}) for g in about["groups"])
        self._size, self._stride = self._groups[0].size_px, r.stride_px
        for g in self._groups:
            if (r.stride_px * g.size_px) % self._size:
                least = np.lcm.reduce([self._size // g.size_px for g in self._groups])
                raise RecipeError(
                    f"stride_px = {r.stride_px}: falls between the {g.pixel_m} m pixels; take a multiple of {least}"
                )
        self._device = device_of(Single())
        self._model = trained.model.to(self._device)
        self._transform = PlainTransform(
            self._groups, np.array(about["mean"], np.float32), np.array(about["std"], np.float32)
        )
        self._batch, self._min_valid = r.batch, r.min_valid

    def grid(self, scene: Scene) -> PatchGrid:
        """The patches over a scene. SceneError where its pixels are not the network's, or it is too small."""
        for g in self._groups:
            for band in g.bands:
                if scene.files[band].pixel_size != g.pixel_m:
                    raise SceneError(
                        f"{scene.files[band].path}: pixels of {scene.files[band].pixel_size} (units of its CRS), "
                        f"the network was trained on {g.pixel_m} m"
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
        for first in track(range(0, grid.rows, at_once), scene.name, "strips"):
            count = min(at_once, grid.rows - first)
            strip = self._strip(scene, grid, first, count)
            rows += [self._row(self._cut(strip, grid.cols, row)) for row in range(count)]
        return np.stack(rows, 1)

    def _strip(self, scene: Scene, grid: PatchGrid, first: int, count: int) -> dict[str, np.ndarray]:
        """{group: (band, row, col) uint16}: the scene under `count` rows of the grid. Patches overlap, and a band
        may have to be decoded in large pieces, so many rows of patches are read at once."""
        top = grid.window(first, 0)[0]
        height, width = ((n - 1) * self._stride + self._size for n in (count, grid.cols))
        window = (top, 0, height, width)
        return {g.name: np.stack([scene.read(band, window) for band in g.bands]) for g in self._groups}

    def _cut(self, strip: dict[str, np.ndarray], cols: int, row: int) -> np.ndarray:
        """(col,) records of the patches of one row of the strip."""
        records = np.zeros(cols, record_dtype(self._groups))
        for g in self._groups:
            step = self._stride * g.size_px // self._size
            lines = strip[g.name][:, row * step : row * step + g.size_px]
            for col in range(cols):
                records[g.name][col] = lines[:, :, col * step : col * step + g.size_px]
        return records

    def _row(self, records: np.ndarray) -> np.ndarray:
        """(class, col) probabilities."""
        measured = (
            (records[self._groups[0].name] > 0).all(1).mean((1, 2))
        )  # zero is no data, in all Sentinel-2 products
        none = np.zeros((self._batch, 3), bool)
        parts = []
        with torch.inference_mode():
            for first in range(0, len(records), self._batch):
                part = records[first : first + self._batch]
                image = self._transform(part, none[: len(part)])
                image = image.to(self._device, memory_format=torch.channels_last)
                parts.append(self._model(image).sigmoid().float().cpu().numpy())
        scores = np.concatenate(parts)
        scores[measured < self._min_valid] = np.nan
        return scores.T


# ---- what is left behind


def _write(
    r: PredictRecipe, trained: Trained, weights: str, scene: Scene, grid: PatchGrid, scores: np.ndarray
) -> dict[str, Any]:
    """The maps and pictures of a scene. scores: (class, row, col), nan without data. Returns its ledger line."""
    names = list(trained.about["classes"])
    colors = nomenclature(trained.about["nomenclature"]).colors
    empty = np.isnan(scores[0])
    classes = np.where(empty, NODATA, scores.argmax(0)).astype(np.uint8)
    probabilities = np.where(empty, NODATA, np.round(np.nan_to_num(scores) * FULL)).astype(np.uint8)
    files = {
        "classes_tif": f"{scene.name}_classes.tif",
        "probabilities_tif": f"{scene.name}_probabilities.tif",
        "quicklook_png": f"{scene.name}_quicklook.png",
        "classmap_png": f"{scene.name}_classmap.png",
    }
    transform = grid.transform(scene.finest.transform)
    warnings = _warnings(trained, scene)
    tags = {
        "JEOPARDA_RUN": trained.path.parent.parent.name,
        "JEOPARDA_WEIGHTS_SHA256": weights,
        "JEOPARDA_SOURCE": scene.name,
        "JEOPARDA_WARNINGS": " ".join(warnings),
    }
    legend = [{"name": n, "color": list(c)} for n, c in zip(names, colors, strict=True)]
    table = dict(enumerate(colors))
    write_map(
        r.out / files["classes_tif"],
        classes[None],
        scene.finest.crs,
        transform,
        nodata=NODATA,
        names=["most probable class"],
        colors=table,
        categories=names,
        tags=tags,
    )
    scale = {"JEOPARDA_SCALE": f"probability = value / {FULL}"}
    write_map(
        r.out / files["probabilities_tif"],
        probabilities,
        scene.finest.crs,
        transform,
        nodata=NODATA,
        names=names,
        tags=tags | scale,
    )
    _picture(r.out / files["quicklook_png"], _quicklook(trained, scene))
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(colors)] = colors
    _picture(r.out / files["classmap_png"], palette[classes])
    return {
        "scene": scene.name,
        "source": scene.folder,
        "level": scene.level,
        **files,
        "warnings": warnings,
        "pixels": {names[i]: int(n) for i, n in enumerate(np.bincount(classes[~empty], minlength=len(names))) if n},
        "no_data": int(empty.sum()),
        "legend": legend,
        "outputs": {name: sha256(r.out / name) for name in files.values()},
    }


def _quicklook(trained: Trained, scene: Scene) -> np.ndarray:
    """(row, col, 3) uint8, true colour."""
    chosen = [scene.files[band].path for band in sensor(trained.about["sensor"]).rgb]
    return stretch(np.stack([thumbnail(path, _QUICKLOOK_PX) for path in chosen], -1))


def _picture(path: Path, rgb: np.ndarray) -> None:
    with whole(path) as draft:
        draft.write_bytes(png(rgb))


def _warnings(trained: Trained, scene: Scene) -> list[str]:
    """What a reader of the map must know."""
    wanted = trained.about["sensor"].rpartition("-")[2].upper()
    found = []
    if scene.level and scene.level != wanted:
        found.append(
            f"The scene is {scene.level} (top of the atmosphere), the network was trained on {wanted} "
            "(surface reflectance): expect wrong classes."
        )
    if not scene.level:
        found.append(f"The file names tell no processing level; the network was trained on {wanted}.")
    if (baseline := re.search(r"_N(\d{4})_", scene.folder)) and baseline[1] >= "0400":
        found.append(
            f"Processing baseline {baseline[1][:2]}.{baseline[1][2:]} adds 1000 to the digital numbers, "
            "and this is not taken off yet: expect wrong classes."
        )
    return found
