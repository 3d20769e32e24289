"""The recipe of an ingest, and which source it names."""

import os
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

from jeoparda.config import REQUIRED, as_dict, opt, recipe, template
from jeoparda.errors import RecipeError
from jeoparda.ingest import bigearthnet, bigearthnet_v2, chips, pairs, scenes, series
from jeoparda.ingest.bigearthnet import BigEarthNetRecipe
from jeoparda.ingest.chips import ChipsRecipe
from jeoparda.ingest.pairs import PairsRecipe
from jeoparda.ingest.scenes import ScenesRecipe
from jeoparda.ingest.series import SeriesRecipe
from jeoparda.ingest.source import Source
from jeoparda.ingest.split import SplitRecipe
from jeoparda.store import Compression

# source -> (its module, its section of the recipe)
SOURCES: dict[str, tuple[Any, str]] = {
    "bigearthnet-v1": (bigearthnet, "bigearthnet"),
    "bigearthnet-v2": (bigearthnet_v2, "bigearthnet"),
    "scenes": (scenes, "scenes"),
    "chips": (chips, "chips"),
    "pairs": (pairs, "pairs"),
    "series": (series, "series"),
}


@recipe
class IngestRecipe:
    """jeoparda ingest: an archive becomes a sharded HDF5 store at native resolution. Each source has a section of its
    own: `jeoparda recipe ingest --source scenes` shows that of scenes."""

    archive: Path = opt(REQUIRED, "folder of the archive; of BigEarthNet also its .tar, .tar.gz or .tar.zst")
    store: Path = opt(REQUIRED, "folder to make; an unfinished one is taken up where it stopped")
    source: Literal["bigearthnet-v1", "bigearthnet-v2", "scenes", "chips", "pairs", "series"] = opt(
        "bigearthnet-v1", "what the archive holds"
    )
    bigearthnet: BigEarthNetRecipe = opt(BigEarthNetRecipe, "multi-label patches, with masks where there are maps")
    scenes: ScenesRecipe = opt(ScenesRecipe, "whole scenes cut into patches, with masks")
    chips: ChipsRecipe = opt(ChipsRecipe, "class folders of small images, one label each")
    pairs: PairsRecipe = opt(PairsRecipe, "low and high resolution of the same ground")
    series: SeriesRecipe = opt(SeriesRecipe, "the same ground at many dates")
    split: SplitRecipe = opt(SplitRecipe, "training, validation and test")
    patches_per_shard: int = opt(
        0, "patches in a shard file; 0: up to 512, as make at most 128 MB (512 of BigEarthNet are 84 MB)", ge=0
    )
    compression: Compression = opt(
        "none", "of patches: none is the fastest to read; lz4 halves the store, zstd makes it smaller still, and slower"
    )
    strict: bool = opt(False, "where patches cannot be read, exit with code 1 and no store.json, not leave them out")
    workers: int = opt(0, "local processes, where no launcher started ranks; 0: one a core", ge=0)


def source_of(r: IngestRecipe) -> tuple[Source, Any]:
    """(source module, its section). RecipeError where another source's section was given: it would do nothing."""
    module, section = SOURCES[r.source]
    for name in {name for _, name in SOURCES.values()} - {section}:
        if getattr(r, name) != type(getattr(r, name))():
            raise RecipeError(f"section {name!r} is given, but source = {r.source}: it takes the section {section!r}")
    return cast(Source, module), getattr(r, section)


def _absolute(given: dict[str, Any], r: Any) -> dict[str, Any]:
    out = dict(given)
    for name, value in vars(r).items():
        if isinstance(value, Path):
            out[name] = os.path.abspath(value)
        elif is_dataclass(value):
            out[name] = _absolute(given[name], value)
    return out


def template_of(source: str) -> str:
    """The commented recipe for one source, without the sections of the others."""
    if source not in SOURCES:
        raise RecipeError(f"source {source!r} is unknown; there are {', '.join(SOURCES)}")
    others = {section for _, section in SOURCES.values()} - {SOURCES[source][1]}
    return template(IngestRecipe, {"source": source}, others)


def identity(r: IngestRecipe) -> dict[str, Any]:
    """The part of the recipe that decides what the store holds. Paths are absolute: it may be read elsewhere. Without
    `compression` where there is none, as in plans from before there was any: their digests stay."""
    given = _absolute(as_dict(r), r)
    kept = ("archive", "source", SOURCES[r.source][1], "split", "patches_per_shard")
    return {name: given[name] for name in kept + (("compression",) if r.compression != "none" else ())}
