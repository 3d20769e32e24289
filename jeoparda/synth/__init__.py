"""Synthetic archives in BigEarthNet's layouts: any number of patches from a seed.

A patch is a pure function of the seed and its number. So the archive is the same for any number of workers, a
stopped run is taken up where it stood, and asking for more patches adds to what is there.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jeoparda.config import REQUIRED, opt, recipe
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.files import whole
from jeoparda.nomenclature import CLC
from jeoparda.progress import track
from jeoparda.synth import landscape, spectra
from jeoparda.synth.landscape import PATCH_M, Place
from jeoparda.synth.layout import (
    Layout,
    Packing,
    Patch,
    Row,
    files_of,
    folder_of,
    geotiff,
    pack,
    row_of,
    write,
    write_tables,
)
from jeoparda.workers import Workers, workers

__all__ = ["MARKER", "Patch", "SynthRecipe", "geotiff", "landscape", "patch", "run", "spectra", "utm_wkt"]

MARKER = "synth.json"
_FORMAT = 1  # raised when the same seed begins to give other patches
_CHUNK = 50  # patches a task: long enough to hide the cost of handing it over
_PATCH, _SCENE_LIGHT = 10, 11  # kinds of random numbers, beside those of landscape

Chunk = tuple[list[Row], list[dict[str, dict[str, bytes]]]]  # rows of v2's tables, files of each patch


@recipe
class SynthRecipe:
    """jeoparda synth: a synthetic archive in the layout of BigEarthNet v1 or v2, from a seed."""

    out: Path = opt(REQUIRED, "folder to make; an unfinished or smaller one of the same seed is taken up")
    patches: int = opt(10_000, "patches that the archive is to hold", gt=0, le=10_000_000)
    seed: int = opt(0, "another seed, another archive", ge=0)
    layout: Layout = opt("bigearthnet-v1", "v2: a tree of tiles, metadata.parquet and reference maps")
    tar: Packing = opt("none", "the archive packed as it is published, in tar files; such a run starts from scratch")
    workers: int = opt(0, "processes; 0: one a core", ge=0)
    cloud: float = opt(
        0.05, "share of the patches with a cloud and its shadow; labels know nothing of them", ge=0, le=1
    )
    noise: float = opt(0.002, "standard deviation of the sensor's noise", "reflectance", ge=0, le=0.1)
    label_min_fraction: float = opt(0.06, "smallest share of a patch that a class must cover", ge=0.01, le=0.5)


def patch(r: SynthRecipe, index: int) -> Patch:
    """Patch number `index` (from 0): a pure function of the number, the seed and what the recipe says of light."""
    where = landscape.place(r.seed, index)
    rng = np.random.default_rng((r.seed, _PATCH, index))
    classes = landscape.class_map(rng, landscape.present(rng, where), r.label_min_fraction)
    light = _light(r.seed, where)
    cube = spectra.through_air(spectra.ground(rng, classes, light), light)
    if cloudy := bool(rng.random() < r.cloud):
        cube = spectra.add_cloud(rng, cube)
    share = np.bincount(classes.ravel(), minlength=len(CLC)) / classes.size
    labels = tuple(c.name for c, s in zip(CLC, share, strict=True) if s >= r.label_min_fraction)
    bands = spectra.sense(rng, cube, r.noise)
    return Patch(where.name, bands, classes, labels, _metadata(r, index, where, labels), where, cloudy)


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
    chunks = [(r, range(i, min(i + _CHUNK, r.patches))) for i in range(0, r.patches, _CHUNK)]
    with workers(r.workers) as w:
        if w is None:  # a rank that worked for rank 0
            return r.out
        _claim(r)
        made = _folders(r, w, chunks) if r.tar == "none" else _tars(r, w, chunks)
    there = r.patches - made
    say(f"{r.out}: {r.patches} patches, {made} made now" + (f", {there} were there" if there else ""))
    return r.out


def _settings(r: SynthRecipe) -> dict[str, Any]:
    """What decides the bytes of a patch."""
    settings = {
        "format": _FORMAT,
        "seed": r.seed,
        "cloud": r.cloud,
        "noise": r.noise,
        "label_min_fraction": r.label_min_fraction,
    }
    # archives of before these keys are of the default layout
    more = {"layout": r.layout} if r.layout != "bigearthnet-v1" else {}
    return settings | more | ({"tar": r.tar} if r.tar != "none" else {})


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
        for left in r.out.glob(".*.part" if r.layout == "bigearthnet-v1" else "*/*/.*.part"):
            shutil.rmtree(left)
    except ArchiveError:
        raise
    except json.JSONDecodeError as e:
        raise ArchiveError(f"{marker}: not valid JSON ({e.msg}); expected the settings of a synthetic archive") from e
    except OSError as e:
        raise ArchiveError(f"{r.out}: cannot be written: {e.strerror or e}; choose another folder for `out`") from e


def _compare(marker: Path, found: Any, wanted: dict[str, Any]) -> None:
    found = found if isinstance(found, dict) else {}
    keys = [*wanted, *(k for k in found if k not in wanted)]
    other = [f"{k} is {found.get(k)}, the recipe says {wanted.get(k)}" for k in keys if found.get(k) != wanted.get(k)]
    if other:
        raise RecipeError(f"{marker}: the archive there is another one: {'; '.join(other)}; choose another `out`")


# ---- folders


def _folders(r: SynthRecipe, w: Workers, chunks: list[tuple[SynthRecipe, range]]) -> int:
    """How many patches were written."""
    rows: list[Row] = []
    made = 0
    for new, some in track(w.map(_make_chunk, chunks), "synth", f"chunks of {_CHUNK} patches", len(chunks)):
        rows += some
        made += new
    if r.layout == "bigearthnet-v2":
        write_tables(r.out, rows)
    return made


def _make_chunk(r: SynthRecipe, chunk: range) -> tuple[int, list[Row]]:
    """Write the patches of a chunk that are not there yet; how many they were, and the rows of all of it in v2's
    tables, for which a patch that is there is made again in memory."""
    made, rows = 0, []
    for index in chunk:
        there = (r.out / folder_of(r.layout, landscape.place(r.seed, index))).is_dir()
        if there and r.layout == "bigearthnet-v1":
            continue
        found = patch(r, index)
        rows += _rows(r, found)
        if not there:
            write(r.out, r.layout, found)
            made += 1
    return made, rows


def _rows(r: SynthRecipe, made: Patch) -> list[Row]:
    row = row_of(r.seed, made) if r.layout == "bigearthnet-v2" else None
    return [row] if row else []


# ---- tars


def _tars(r: SynthRecipe, w: Workers, chunks: list[tuple[SynthRecipe, range]]) -> int:
    """How many patches were packed: each run packs all of them."""
    rows: list[Row] = []

    def files() -> Iterator[dict[str, dict[str, bytes]]]:
        for some, found in _in_order(w.map(_chunk_files, chunks)):
            rows.extend(some)
            yield from found

    try:
        pack(r.out, r.layout, r.tar, track(files(), "synth", "patches", r.patches))
        if r.layout == "bigearthnet-v2":
            write_tables(r.out, rows)
    except ArchiveError:
        raise
    except OSError as e:
        raise ArchiveError(f"{r.out}: cannot be written: {e.strerror or e}; start again once there is room") from e
    return r.patches


def _chunk_files(r: SynthRecipe, chunk: range) -> tuple[int, Chunk]:
    """The chunk's first patch, and what its patches are."""
    made = [patch(r, index) for index in chunk]
    return chunk.start, ([row for m in made for row in _rows(r, m)], [files_of(r.layout, m) for m in made])


def _in_order(found: Iterator[tuple[int, Chunk]]) -> Iterator[Chunk]:
    """Chunks by number; those that come early wait."""
    early: dict[int, Chunk] = {}
    following = 0
    for start, chunk in found:
        early[start] = chunk
        while following in early:
            chunk = early.pop(following)
            following += len(chunk[1])
            yield chunk
