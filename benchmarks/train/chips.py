"""Chips with one class each, of the synthetic archive: its patches whose labels all lie in one class of CORINE's level
1, as 20 m bands of 60 px in class folders.
"""

import shutil
from pathlib import Path

import numpy as np

from benchmarks import synthetic
from benchmarks.synthetic import RECIPES, WORK
from jeoparda.nomenclature import coarser
from jeoparda.stages import call
from jeoparda.store import Store

LEAST = 50  # chips of a class; wetlands by themselves are one or two


def store() -> Path:
    archive, folder = WORK / "chips", WORK / "chips-store"
    if not synthetic.whole(folder):
        shutil.rmtree(archive, ignore_errors=True)
        write(archive, Store(synthetic.store()), LEAST)
        call("ingest", RECIPES / "chips.yaml", [f"archive={archive}", f"store={folder}"])
    return folder


def write(archive: Path, patches: Store, least: int) -> None:
    """A GeoTIFF a chip. Classes of fewer than `least` chips are left out."""
    names, _, matrix = coarser(patches.info.classes, "corine-1")
    there = patches.labels @ matrix > 0
    places = list(zip(*(patches.column(name).tolist() for name in ("id", "crs", "transform")), strict=True))
    for name, of_class in zip(names, (there & (there.sum(1, keepdims=True) == 1)).T, strict=True):
        chips = np.flatnonzero(of_class)
        if len(chips) < least:
            continue
        (archive / name).mkdir(parents=True)
        for chip in chips.tolist():
            _write(archive / name, patches.patch(chip)["20m"], *places[chip])


def _write(folder: Path, pixels: np.ndarray, name: str, crs: str, transform: list[float]) -> None:
    """pixels: (band, row, col), of 20 m. transform: of those of 10 m."""
    import rasterio

    bands, rows, cols = pixels.shape
    about = {"count": bands, "height": rows, "width": cols, "dtype": pixels.dtype, "crs": crs}
    place = rasterio.Affine(20, 0, transform[2], 0, -20, transform[5])
    with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", transform=place, **about) as f:
        f.write(pixels)
