"""Small archives in the BigEarthNet v1 layout, made by hand: known values, a few classes, written in a second."""

import json
from pathlib import Path

import numpy as np
from rasterio.crs import CRS

from jeoparda.nomenclature import CLC
from jeoparda.raster import write_band
from jeoparda.sensors import SENTINEL_2_L2A
from tests.scenes import pixel_m

NAMES = tuple(c.name for c in CLC[:4])


def make_archive(folder: Path, patches: int, seed: int = 0) -> Path:
    """`patches` patches of noise whose brightness tells their labels (1 or 2 of four classes)."""
    rng = np.random.default_rng(seed)
    wkt = CRS.from_epsg(32633).to_wkt()
    for i in range(patches):
        name = f"S2A_MSIL2A_20170613T101031_{i // 10}_{i % 10}"
        ulx, uly = 399_960 + 1_200 * (i // 10), 5_400_000 - 1_200 * (i % 10)
        labels = sorted({int(c) for c in rng.integers(0, len(NAMES), rng.integers(1, 3))})
        make_patch(folder / name, ulx, uly, labels, rng, wkt)
    return folder


def make_patch(folder: Path, ulx: float, uly: float, labels: list[int], rng: np.random.Generator, wkt: str) -> None:
    """One patch folder: 12 bands and the labels' JSON."""
    folder.mkdir(parents=True)
    for k, band in enumerate(SENTINEL_2_L2A.bands):
        pixel = pixel_m(SENTINEL_2_L2A, band)
        side = 1200 // pixel
        level = 500 + 600 * sum(1 for c in labels if k % len(NAMES) == c)
        values = rng.normal(level, 60, (side, side)).clip(1, 10_000).astype(np.uint16)
        transform = (pixel, 0.0, ulx, 0.0, -pixel, uly)
        write_band(folder / f"{folder.name}_{band}.tif", values, "EPSG:32633", transform)
    meta = {
        "labels": [NAMES[c] for c in labels],
        "coordinates": {"ulx": ulx, "uly": uly, "lrx": ulx + 1200, "lry": uly - 1200},
        "projection": wkt,
        "tile_source": "made by a test",
        "acquisition_date": "2017-06-13 10:10:31",
    }
    (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps(meta))
