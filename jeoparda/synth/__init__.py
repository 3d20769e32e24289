"""Synthetic archives in BigEarthNet's layout: any number of patches from a seed.

A patch is a pure function of the seed and its number. So the archive is the same for any number of workers, a
stopped run is taken up where it stood, and asking for more patches adds to what is there.
"""

import json
import multiprocessing
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.files import whole
from jeoparda.nomenclature import CLC
from jeoparda.progress import track
from jeoparda.raster import write_band
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.synth import landscape, spectra
from jeoparda.synth.landscape import PATCH_M, Place

MARKER = "synth.json"
_FORMAT = 1  # raised when the same seed begins to give other patches
_CHUNK = 50  # patches a task: long enough to hide the cost of handing it over
_PATCH, _SCENE_LIGHT = 10, 11  # kinds of random numbers, beside those of landscape


@recipe
class SynthRecipe:
    """jeoparda synth: a synthetic archive in the layout of BigEarthNet v1, from a seed."""

    out: Path = opt(REQUIRED, "folder to make; an unfinished or smaller one of the same seed is taken up")
    patches: int = opt(10_000, "patches that the archive is to hold", gt=0, le=10_000_000)
    seed: int = opt(0, "another seed, another archive", ge=0)
    workers: int = opt(0, "processes; 0: one a core", ge=0)
    cloud: float = opt(
        0.05, "share of the patches with a cloud and its shadow; labels know nothing of them", ge=0, le=1
    )
    noise: float = opt(0.002, "standard deviation of the sensor's noise", "reflectance", ge=0, le=0.1)
    label_min_fraction: float = opt(0.06, "smallest share of a patch that a class must cover", ge=0.01, le=0.5)


@dataclass(frozen=True)
class Patch:
    """A patch in memory. `bands`: {"10m" | "20m" | "60m": (band, row, col) uint16}, as `sensors` orders them;
    `classes`: (row, col) uint8 at 10 m, numbers in CLC; `labels`: the CORINE names of all classes in it."""

    name: str
    bands: dict[str, np.ndarray]
    classes: np.ndarray
    labels: tuple[str, ...]
    metadata: dict[str, Any]
    place: Place


def patch(r: SynthRecipe, index: int) -> Patch:
    """Patch number `index` (from 0): a pure function of the number and of the recipe without out, patches, workers."""
    where = landscape.place(r.seed, index)
    rng = np.random.default_rng((r.seed, _PATCH, index))
    classes = landscape.class_map(rng, landscape.present(rng, where), r.label_min_fraction)
    light = _light(r.seed, where)
    cube = spectra.through_air(spectra.ground(rng, classes, light), light)
    if rng.random() < r.cloud:
        cube = spectra.add_cloud(rng, cube)
    share = np.bincount(classes.ravel(), minlength=len(CLC)) / classes.size
    labels = tuple(c.name for c, s in zip(CLC, share, strict=True) if s >= r.label_min_fraction)
    bands = spectra.sense(rng, cube, r.noise)
    return Patch(where.name, bands, classes, labels, _metadata(r, index, where, labels), where)


def _light(seed: int, where: Place) -> spectra.Light:
    rng = np.random.default_rng((seed, _SCENE_LIGHT, where.scene))
    return spectra.Light(
        day=where.taken.timetuple().tm_yday,
        season_days=rng.normal(0, 7),
        dry=where.region.dry,
        gain=float(np.exp(rng.normal(0, 0.04))),
        haze=float(rng.gamma(2.0, 0.003)),
        relief=where.region.relief,
    )


def _metadata(r: SynthRecipe, index: int, where: Place, labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "labels": list(labels),
        "coordinates": {
            "ulx": where.ulx_m,
            "uly": where.uly_m,
            "lrx": where.ulx_m + PATCH_M,
            "lry": where.uly_m - PATCH_M,
        },
        "projection": utm_wkt(where.zone),
        "tile_source": f"synthetic: jeoparda synth, seed {r.seed}, patch {index}, tile T{where.tile}",
        "acquisition_date": f"{where.taken:%Y-%m-%d %H:%M:%S}",
    }


def utm_wkt(zone: int) -> str:
    """WGS 84 / UTM of a northern zone as WKT 1 (OGC 01-009), which is how BigEarthNet writes it."""
    geographic = (
        'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
        'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
        'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]'
    )
    return (
        f'PROJCS["WGS 84 / UTM zone {zone}N",{geographic},PROJECTION["Transverse_Mercator"],'
        f'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",{6 * zone - 183}],'
        'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],'
        f'UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
        f'AUTHORITY["EPSG","{32600 + zone}"]]'
    )


def run(r: SynthRecipe, say: Callable[[str], None] = print) -> Path:
    """Make the archive, or what is missing of it, and return its folder.

    RecipeError where the folder holds an archive of another seed or other settings; ArchiveError where it holds
    something else, or cannot be written.
    """
    _claim(r)
    chunks = [range(i, min(i + _CHUNK, r.patches)) for i in range(0, r.patches, _CHUNK)]
    made = sum(track(_make(r, chunks), "synth", f"chunks of {_CHUNK} patches", len(chunks)))
    there = r.patches - made
    say(f"{r.out}: {r.patches} patches, {made} made now" + (f", {there} were there" if there else ""))
    return r.out


def _settings(r: SynthRecipe) -> dict[str, Any]:
    """What decides the bytes of a patch."""
    return {
        "format": _FORMAT,
        "seed": r.seed,
        "cloud": r.cloud,
        "noise": r.noise,
        "label_min_fraction": r.label_min_fraction,
    }


def _claim(r: SynthRecipe) -> None:
    """Make the folder ours: it is new, or of the same settings. Removes what a killed run left half-written."""
    marker, wanted = r.out / MARKER, _settings(r)
    try:
        r.out.mkdir(parents=True, exist_ok=True)
        if marker.exists():
            _compare(marker, json.loads(marker.read_text()), wanted)
        elif any(not e.name.startswith(".") for e in r.out.iterdir()):
            raise ArchiveError(f"{r.out}: is not empty and holds no {MARKER}; choose a new folder for `out`")
        else:
            with whole(marker) as draft:
                draft.write_text(json.dumps(wanted, indent=1) + "\n")
        for left in r.out.glob(".*.part"):
            shutil.rmtree(left)
    except ArchiveError:
        raise
    except json.JSONDecodeError as e:
        raise ArchiveError(f"{marker}: not valid JSON ({e.msg}); expected the settings of a synthetic archive") from e
    except OSError as e:
        raise ArchiveError(f"{r.out}: cannot be written: {e.strerror or e}; choose another folder for `out`") from e


def _compare(marker: Path, found: Any, wanted: dict[str, Any]) -> None:
    found = found if isinstance(found, dict) else {}
    other = [f"{k} is {found.get(k)}, the recipe says {v}" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise RecipeError(f"{marker}: the archive there is another one: {'; '.join(other)}; choose another `out`")


def _make(r: SynthRecipe, chunks: list[range]) -> Iterator[int]:
    workers = min(r.workers or os.cpu_count() or 1, len(chunks))
    if workers == 1:
        yield from (_make_chunk(r, chunk) for chunk in chunks)
        return
    try:
        # spawn: a fork would copy locks that GDAL's threads hold
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in as_completed([pool.submit(_make_chunk, r, chunk) for chunk in chunks]):
                yield done.result()
    except BrokenProcessPool as e:
        raise ArchiveError(f"{r.out}: a worker was killed (out of memory?); start again to go on") from e


def _make_chunk(r: SynthRecipe, chunk: range) -> int:
    """Write the patches of a chunk that are not there yet; how many they were."""
    made = 0
    for index in chunk:
        if not (r.out / landscape.place(r.seed, index).name).is_dir():
            write(r.out, patch(r, index))
            made += 1
    return made


def write(archive: Path, made: Patch) -> None:
    """A patch as a folder of `archive`, which appears under its name when it is whole."""
    part = archive / f".{made.name}.part"
    try:
        part.mkdir()
        for pixel_m, names in SENTINEL_2_L2A.groups:
            for name, band in zip(names, made.bands[f"{pixel_m}m"], strict=True):
                file = part / f"{made.name}_{name}.tif"
                file.write_bytes(geotiff(band, made.place.zone, made.place.ulx_m, made.place.uly_m))
        (part / f"{made.name}_labels_metadata.json").write_text(json.dumps(made.metadata))
        part.rename(archive / made.name)
    except OSError as e:  # rasterio's errors are OSErrors too
        shutil.rmtree(part, ignore_errors=True)
        raise ArchiveError(f"{archive / made.name}: cannot be written: {e.strerror or e}; start again to go on") from e


def geotiff(band: np.ndarray, zone: int, ulx_m: float, uly_m: float) -> bytes:
    """The file that `raster.write_band` makes of a band, (row, col) uint16, of a patch with that corner.

    GDAL takes longer over a small file than all of the rest of a patch, and a patch has twelve that differ in their
    pixels and corner only. So one is made by `write_band`, and these two are put in their places in its bytes.
    """
    size = len(band)
    mould, corner, pixels = _mould(zone, size)
    file = bytearray(mould)
    file[corner : corner + 16] = struct.pack("=dd", ulx_m, uly_m)
    file[pixels : pixels + band.nbytes] = band.tobytes()
    return bytes(file)


@lru_cache(64)
def _mould(zone: int, size_px: int) -> tuple[bytes, int, int]:
    """A GeoTIFF of `write_band`, and where in it the corner (two doubles) and the pixels begin."""
    x, y = 123_456.0, 7_654_321.0
    marks = np.arange(1, size_px**2 + 1, dtype=np.uint16).reshape(size_px, size_px)
    pixel = float(PATCH_M // size_px)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mould.tif"
        write_band(path, marks, f"EPSG:{32600 + zone}", (pixel, 0.0, x, 0.0, -pixel, y))
        mould = path.read_bytes()
    return mould, mould.index(struct.pack("=dd", x, y)), mould.index(marks.tobytes())
