"""Every source from its archive to a mended store: the same bytes by any workers, clean, without leakage."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda.config import check
from jeoparda.ingest import IngestRecipe, run, upkeep
from jeoparda.ingest.recipe import SOURCES
from jeoparda.report.store import describe_store, leakage
from jeoparda.store import SPLITS, Store
from jeoparda.synth import SynthRecipe
from jeoparda.synth import run as synthesise
from jeoparda.workers import Workers
from tests.archive import make_archive
from tests.scenes import landsat, numbers, safe
from tests.unit import test_ingest_chips as chips
from tests.unit import test_ingest_pairs as pairs
from tests.unit import test_ingest_scenes as scenes
from tests.unit import test_ingest_series as series
from tests.unit.test_ingest import content
from tests.unit.test_scene_files import cbers, stack
from tests.unit.test_upkeep import flip

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def blocks(block_m: float) -> dict:
    return {"by": "block", "block_m": block_m, "val": 0.3, "test": 0.2}


# ---- an archive of every kind: makes it in a folder, and returns the recipe but for archive, store and workers


def v1(folder: Path) -> dict:
    make_archive(folder, 12)
    return {"source": "bigearthnet-v1", "split": blocks(1200)}


def v1_tar(folder: Path) -> dict:
    synthesise(SynthRecipe(out=folder, patches=12, tar="tar.gz", workers=1), lambda _: None)
    (tar,) = folder.glob("*.tar.gz")
    return {"archive": tar, "source": "bigearthnet-v1", "split": blocks(1200)}


def v2(folder: Path) -> dict:
    synthesise(SynthRecipe(out=folder, patches=12, layout="bigearthnet-v2", workers=1), lambda _: None)
    maps = {"reference_maps": "Reference_Maps", "cloud": "keep", "snow": "keep"}
    return {"source": "bigearthnet-v2", "bigearthnet": maps, "split": blocks(1200)}


def v2_tar(folder: Path) -> dict:
    made = SynthRecipe(out=folder, patches=12, layout="bigearthnet-v2", tar="tar.zst", workers=1)
    synthesise(made, lambda _: None)
    tars = {"images": "BigEarthNet-S2.tar.zst", "reference_maps": "Reference_Maps.tar.zst"}
    return {"source": "bigearthnet-v2", "bigearthnet": tars, "split": blocks(1200)}


def scene_safe(folder: Path) -> dict:
    """Two tiles of the same ground, of a baseline with offsets, under clouds of SCL."""
    for tile in ("T33UUU", "T33UUV"):
        safe(folder, "L2A", "05.09", -1000, tile=tile)
    return {"source": "scenes", "scenes": {"patch_px": 24, "min_valid": 0.1}, "split": blocks(240)}


def scene_landsat(folder: Path) -> dict:
    landsat(folder)
    return {"source": "scenes", "scenes": {"patch_px": 10}, "split": blocks(300)}


def scene_cbers(folder: Path) -> dict:
    folder.mkdir()
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 3:8] = 1, 2, 3, 4, 255
    cbers(folder / "x", ("20200612", "20200801"), mask)
    return {"source": "scenes", "scenes": {"patch_px": 5}, "split": blocks(320)}


def scene_folder(folder: Path) -> dict:
    scenes.make(folder, "s1")
    labels = {"path": "labels/{scene}.tif", "remap": {1: "soy", 2: "maize", 3: "ignore", 4: "forest"}}
    cut = {"scene": {"kind": "folder", "pattern": scenes.PATTERN}, "labels": labels, "patch_px": 20, "stride_px": 10}
    return {"source": "scenes", "scenes": cut, "split": blocks(400)}


def scene_stack(folder: Path) -> dict:
    folder.mkdir()
    stack(folder / "a.tif", np.stack([numbers(40, 60, i) for i in range(3)]))
    return {"source": "scenes", "scenes": {"patch_px": 10, "scene": {"names": ["r", "g", "b"]}}, "split": blocks(50)}


def scene_without_crs(folder: Path) -> dict:
    """Images of another planet, with masks in colour."""
    for i in range(2):
        chips.write(folder / f"img_{i}.png", chips.rgb(i, 60)[:, :40])
        yellow = np.where(np.mgrid[:40, :60].sum(0) % 47 < 20, 255, 0).astype(np.uint8)
        chips.write(folder / f"mask_{i}.png", np.stack([yellow, yellow, 0 * yellow]))
    labels = {"path": "mask_{name}.png", "name": "img_(.*)", "remap": {"#000000": "soil", "#ffff00": "rock"}}
    cut = {"pattern": "img_*", "scene": {"kind": "stack"}, "labels": labels, "patch_px": 10}
    return {"source": "scenes", "scenes": cut, "split": blocks(20)}


def some_chips(folder: Path) -> dict:
    chips.collection(folder, ".png", 6)
    return {"source": "chips", "chips": {"val": 0.3, "test": 0.2}}


def pairs_degraded(folder: Path) -> dict:
    pairs.plant_high(folder)
    how = {"how": "degrade", "factor": 4, "psf": {"mtf": 0.3}, "high": pairs.KIND, "high_in": "high"}
    cut = {"labels": pairs.LABELS, "patch_px": 5}
    return {"source": "pairs", "pairs": how | cut, "split": blocks(50)}


def pairs_real(folder: Path) -> dict:
    pairs.plant_vhr(folder, pairs.UTM, pairs.SHIFTED, 300, 400)
    pairs.plant_low(folder)
    where = {"how": "real", "high": pairs.KIND, "low": pairs.KIND, "high_in": "high", "low_in": "low"}
    return {"source": "pairs", "pairs": where | {"factor": 4, "patch_px": 5}, "split": blocks(50)}


def series_scenes(folder: Path) -> dict:
    series.plant(folder)
    series.cloud(folder, 1, slice(0, 5), slice(10, 20))
    cut = {"scene": {"kind": "folder", "pattern": series.PATTERN, "nodata": 0}, "patch_px": 5}
    return {"source": "series", "series": cut, "split": blocks(50)}


def series_eopatch(folder: Path) -> dict:
    series.plant_eopatch(folder / "one")
    more = {"kind": "eopatch", "eopatch": {"data": ["BANDS"], "valid": ["!CLM"], "labels": "LULC"}}
    labels = {"remap": {"0": "ignore", "1": "forest", "2": "water"}}
    return {"source": "series", "series": more | {"labels": labels, "patch_px": 5}, "split": blocks(50)}


ARCHIVES = (
    v1, v1_tar, v2, v2_tar, scene_safe, scene_landsat, scene_cbers, scene_folder, scene_stack, scene_without_crs,
    some_chips, pairs_degraded, pairs_real, series_scenes, series_eopatch,
)  # fmt: skip


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda make: make.__name__)
def given(request, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("source")
    return {"archive": folder / "archive", "patches_per_shard": 4, **request.param(folder / "archive")}


@pytest.fixture(scope="module")
def one(given, tmp_path_factory) -> Path:
    """The store by this process alone."""
    store = tmp_path_factory.mktemp("one") / "store"
    ingest(given, store)
    return store


def ingest(given: dict, store: Path) -> list[str]:
    said: list[str] = []
    run(check(IngestRecipe, {**given, "store": store, "workers": 1}), said.append)
    return said


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    """Processes as `workers` starts them, once for all sources: they are slow to start."""
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("count", [2, 3])
def test_the_same_bytes_by_any_workers(given, one, pool, count, monkeypatch, tmp_path):
    """`count` decides how many tasks are under way at a time; the pool gives them out in any order."""

    @contextmanager
    def workers(_: int) -> Iterator[Workers]:
        yield Workers(pool, count, here=False)

    monkeypatch.setattr("jeoparda.ingest.workers", workers)
    ingest(given, tmp_path / "s")
    assert content(tmp_path / "s") == content(one)


def test_clean_and_every_split_has_patches_on_ground_of_its_own(given, one):
    assert upkeep.verify(one, 1) == []
    store = Store(one)
    assert not store.info.rejected and len(store.info.shards) > 1
    assert all(store.info.splits[s] for s in SPLITS), store.info.splits
    assert leakage(store)[0].startswith("leakage: OK: patches on training ground: val 0 of"), leakage(store)
    answer = upkeep.statistics(one, 1)
    assert answer is not None and answer[1], "store.json has other statistics than the pixels"
    told = describe_store(store)
    assert f"{len(store)} patches" in told and all(c in told for c in store.info.classes)


def test_a_flipped_bit_costs_one_patch_to_be_read_again(given, one, monkeypatch):
    """In the pixels of a patch in the middle; whatever else is in the archive is not looked at."""
    store, truth = Store(one), content(one)
    number = len(store) // 2
    flip(store.paths[store.shard_of[number]], int(store.offset_of[number]) + 100, 2)
    module, asked = SOURCES[given["source"]][0], []

    def spy(read: Callable) -> Callable:
        return lambda archive, section, contents, patches, payload: (
            asked.extend(p.id for p in patches),
            read(archive, section, contents, patches, payload),
        )[1]

    monkeypatch.setattr(module, "read", spy(module.read))
    (damage,) = upkeep.verify(one, 1) or []
    assert damage.patches == (number - int(np.searchsorted(store.shard_of, store.shard_of[number])),)
    assert upkeep.repair(one, count=1, say=lambda _: None) == 1
    assert asked == [str(store.column("id")[number])]
    assert content(one) == truth


# ---- through the command line, and one form of an archive against the other


def test_the_command_line_all_through(cli, tmp_path):
    given = v2(tmp_path / "a")
    recipe = tmp_path / "r.yaml"
    split = ", ".join(f"{k}: {v}" for k, v in given["split"].items())
    maps = "{reference_maps: Reference_Maps, cloud: keep, snow: keep}"
    recipe.write_text(
        f"archive: {tmp_path / 'a'}\nstore: {tmp_path / 's'}\nsource: bigearthnet-v2\nbigearthnet: {maps}\n"
        f"split: {{{split}}}\npatches_per_shard: 4\n"
    )
    done = cli("ingest", recipe, "workers=2")
    assert done.returncode == 0, done.stderr
    ingest({"archive": tmp_path / "a", "patches_per_shard": 4, **given}, tmp_path / "t")
    assert content(tmp_path / "s") == content(tmp_path / "t")
    store = Store(tmp_path / "s")
    flip(store.paths[1], int(store.offset_of[5]) + 9, 0)
    found = cli("store", "verify", tmp_path / "s", "--workers", 1)
    assert (
        found.returncode == 1 and "00001.h5: differs from its checksum in store.json: patches 1 of it" in found.stderr
    )
    mended = cli("store", "repair", tmp_path / "s", "--workers", 1)
    assert mended.returncode == 0 and "1 shards mended, 1 patches read again" in mended.stdout
    assert content(tmp_path / "s") == content(tmp_path / "t")
    told = cli("store", "info", tmp_path / "s", "--samples", tmp_path / "p.png", "--count", 4)
    assert told.returncode == 0 and "leakage: OK" in told.stdout and f"{len(store)} patches" in told.stdout
    with rasterio.open(tmp_path / "p.png") as picture:
        assert picture.count >= 3 and len({*picture.read(1).ravel().tolist()}) > 50


def records(store: Path) -> dict[str, tuple]:
    """By name what the patches hold, wherever they came from."""
    s = Store(store)
    names = (s.dtype.names or ())[:]
    return {
        str(i): (s.labels[n].tobytes(), *(s.patch(n)[name].tobytes() for name in names))
        for n, i in enumerate(s.column("id"))
    }


@pytest.mark.parametrize(("folders", "packed"), [(v1, v1_tar), (v2, v2_tar)], ids=["v1", "v2"])
def test_folders_and_tars_of_the_same_patches_give_the_same_records(folders, packed, tmp_path):
    tar = packed(tmp_path / "t")
    layout = tar["source"]
    synthesise(SynthRecipe(out=tmp_path / "f", patches=12, layout=layout, workers=1), lambda _: None)
    plain = {"source": layout, "split": blocks(1200)}
    if layout.endswith("v2"):
        plain["bigearthnet"] = {"reference_maps": "Reference_Maps"}
    ingest({"archive": tmp_path / "f", **plain}, tmp_path / "sf")
    ingest({"archive": tmp_path / "t", **tar}, tmp_path / "st")
    found = records(tmp_path / "sf")
    assert found == records(tmp_path / "st") and len(found) > 8
