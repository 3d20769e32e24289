"""Every source of ingest, run on real data where ../shared/data has some, else on a synthetic archive in the real
layout: `python -m benchmarks.sources` prints the table of docs/ingest.md, `--write` puts it there.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from jeoparda.config import check
from jeoparda.ingest import IngestRecipe, run
from jeoparda.ingest.upkeep import verify
from jeoparda.report.store import leakage
from jeoparda.store import Store
from tests.unit import test_ingest_sources as made

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "ingest.md"
BEGIN, END = "<!-- sources: begin -->", "<!-- sources: end -->"
MODIS = {"kind": "folder", "pattern": r"TERRA_MODIS_012010_(?P<band>NDVI)_(?P<date>[\d-]+)\.jp2"}

# what, its recipe under docs/recipes, its data under ../shared/data, what differs from the recipe
REAL: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("BigEarthNet v1, folders", "bigearthnet-v1", "bigearthnet-v1", {"bigearthnet": {}, "split": {"by": "block"}}),
    ("BigEarthNet v2, folders", "bigearthnet-v2", "bigearthnet-v2", {"bigearthnet": {}}),
    ("Sentinel-2 L1C scene + polygons", "scenes-sentinel2", "s2-l1c-brandenburg", {}),
    ("Landsat 7 bands + land map in another CRS", "scenes-landsat", "landsat7-northcarolina", {}),
    ("rover images without CRS + masks", "scenes-mars", "mars-rocks", {}),
    ("chips, 13 bands", "chips-eurosat", "eurosat-samples/EuroSAT_MS", {}),
    ("chips, RGB JPEG", "chips-eurosat", "eurosat-samples/EuroSAT_RGB", {"chips": {}}),
    ("pairs, WorldView degraded 4 times + buildings", "pairs-degraded", "vhr-segmentation/spacenet4-atlanta", {}),
    ("series, CBERS-4 AWFI with cloud masks", "series-cbers", "cbers4-awfi", {}),
    ("series, MODIS NDVI (JP2)", "series-cbers", "modis-sinop", {"series": {"patch_px": 48, "scene": MODIS}}),
    ("series, eo-learn folders + land use", "series-eopatch", "eolearn-slovenia", {}),
)

# what, who makes its archive (and says the recipe)
SYNTHETIC: tuple[tuple[str, Callable[[Path], dict[str, Any]]], ...] = (
    ("BigEarthNet v1, .tar.gz", made.v1_tar),
    ("BigEarthNet v2 + reference maps, folders", made.v2),
    ("BigEarthNet v2 + reference maps, .tar.zst", made.v2_tar),
    ("Sentinel-2 SAFE, baseline 05.09, clouds by SCL", made.scene_safe),
    ("Landsat with MTL and QA_PIXEL", made.scene_landsat),
    ("CBERS-4 by INPE's file names", made.scene_cbers),
    ("any stack", made.scene_stack),
    ("pairs, two images at most 5 days apart", made.pairs_real),
    ("series of scenes", made.series_scenes),
)


def real(name: str, folder: str, more: dict[str, Any]) -> dict[str, Any]:
    recipe = yaml.safe_load((ROOT / "docs" / "recipes" / f"{name}.yaml").read_text())
    return recipe | more | {"archive": str(DATA / folder)}


def row(what: str, data: str, recipe: dict[str, Any], folder: Path) -> str:
    """Ingest, verify, look for leaks: a line of the table."""
    store = folder / "store"
    given = {key: str(value) if isinstance(value, Path) else value for key, value in recipe.items()}
    run(check(IngestRecipe, given | {"store": str(store), "workers": 2}), lambda _: None)
    assert verify(store, 1) == [], what
    opened = Store(store)
    info = opened.info
    splits = " / ".join(str(n) for n in info.splits.values())
    size = f"{info.size_px} px" + (f", {info.layout.dates} dates" if info.layout.dates else "")
    target = info.target if info.classes or info.layout.high else "none"
    left_out = sum(info.left_out.values()) + sum(not x.fault for x in info.rejected)
    faults = sum(x.fault for x in info.rejected)
    verdict = leakage(opened)[0].split(": ")[1]
    cells = (
        what, data, info.patches, splits, f"{len(info.bands)} ({info.groups[0].dtype})", size, target,
        len(info.classes), left_out, faults, verdict,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def table() -> str:
    head = (
        "what",
        "data",
        "patches",
        "train / val / test",
        "bands",
        "patch",
        "target",
        "classes",
        "left out",
        "rejected",
    )
    lines = [f"| {' | '.join((*head, 'leakage'))} |", "|---" * 11 + "|"]
    for what, name, folder, more in REAL if DATA.is_dir() else ():
        with tempfile.TemporaryDirectory() as work:
            lines.append(row(what, "real", real(name, folder, more), Path(work)))
    for what, make in SYNTHETIC:
        with tempfile.TemporaryDirectory() as work:
            archive = Path(work) / "archive"
            lines.append(row(what, "synthetic", {"archive": archive} | make(archive), Path(work)))
    return "\n".join(lines)


@click.command()
@click.option("--write", is_flag=True, help="put the table into docs/ingest.md")
def main(write: bool) -> None:
    """Run every source and print the table."""
    text = table()
    click.echo(text)
    if write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
