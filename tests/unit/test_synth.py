"""The synthetic archive: a pure function of its seed, true labels, plausible light, the counts of the real one."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jeoparda.config import load
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.ingest import IngestRecipe, SplitRecipe
from jeoparda.ingest import run as ingest
from jeoparda.ingest.bigearthnet import BigEarthNetRecipe
from jeoparda.ingest.bigearthnet_v2 import place
from jeoparda.ingest.tarball import members
from jeoparda.nomenclature import CLC, CLC_BY_NAME, nomenclature
from jeoparda.raster import read_band, write_band
from jeoparda.store import Store
from jeoparda.synth import MARKER, Patch, SynthRecipe, geotiff, landscape, patch, run, spectra, utm_wkt
from jeoparda.synth.layout import METADATA, METADATA_CLOUDY, row_of, tile_of
from jeoparda.synth.pattern import PATTERNS, SIZE_PX, cut
from tests.conftest import SHARED

BAND = {name: i for i, name in enumerate(spectra.BANDS)}
NUMBER = {c.code: i for i, c in enumerate(CLC)}
SUMMER = spectra.Light(day=190, season_days=0, dry=False, gain=1, haze=0, relief=0)


def recipe_of(out: Path, **keys: object) -> SynthRecipe:
    return SynthRecipe(out=out, **{"patches": 40, "workers": 1, **keys})  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def quiet(_: str) -> None:
    pass


def mean_spectrum(code: int, light: spectra.Light = SUMMER) -> np.ndarray:
    """(band,) of a patch that is all of one class, without noise or cloud."""
    classes = np.full((SIZE_PX, SIZE_PX), NUMBER[code], np.uint8)
    return spectra.ground(np.random.default_rng(5), classes, light).mean((1, 2))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(recipe_of(tmp_path_factory.mktemp("synth") / "a"), quiet)


@pytest.fixture(scope="module")
def many() -> list[Patch]:
    r = SynthRecipe(out=Path("unused"))
    return [patch(r, i) for i in range(0, 900, 15)]


def test_the_same_bytes_from_other_workers_and_by_extension(archive: Path, tmp_path: Path) -> None:
    extended = tmp_path / "b"
    run(recipe_of(extended, patches=7), quiet)
    run(recipe_of(extended, patches=52, workers=2), quiet)  # 2 chunks, whoever is first
    found, expected = digests(extended), digests(archive)
    assert {k: v for k, v in found.items() if k in expected} == expected
    assert len([p for p in extended.iterdir() if p.is_dir()]) == 52


def test_patches_do_not_depend_on_those_made_before() -> None:
    r = SynthRecipe(out=Path("unused"))
    forwards = [patch(r, i) for i in range(10, 20)]
    backwards = [patch(r, i) for i in reversed(range(10, 20))]
    for one, two in zip(forwards, reversed(backwards), strict=True):
        assert all(np.array_equal(one.bands[k], two.bands[k]) for k in one.bands)
        assert (one.metadata, one.labels) == (two.metadata, two.labels)


def test_seeds_differ() -> None:
    one, two = (patch(SynthRecipe(out=Path("unused"), seed=s), 17) for s in (0, 1))
    assert one.name != two.name
    assert not np.array_equal(one.bands["10m"], two.bands["10m"])


def test_names_are_unique_and_places_on_the_grid_of_a_tile() -> None:
    places = [landscape.place(3, i) for i in range(0, 200_000, 41)]
    assert len({p.name for p in places}) == len(places)
    assert all(p.ulx_m % 60 == 0 and p.uly_m % 60 == 0 for p in places)
    assert {p.zone for p in places} == {29, 30, 31, 32, 33, 34, 35}
    assert min(p.taken for p in places).strftime("%Y-%m") == "2017-06"
    assert max(p.taken for p in places).strftime("%Y-%m") == "2018-05"
    cluster = [landscape.place(3, i) for i in range(landscape.PATCHES_A_CLUSTER)]
    assert len({(p.ulx_m, p.uly_m) for p in cluster}) == len(cluster)
    assert max(p.ulx_m for p in cluster) - min(p.ulx_m for p in cluster) == 4 * 1200
    assert len({(p.tile, p.taken) for p in cluster}) == 1


def test_ten_thousand_patches_span_hundreds_of_blocks() -> None:
    blocks = Counter()
    for i in range(10_000):
        p = landscape.place(0, i)
        blocks[p.zone, p.ulx_m // 12_000, p.uly_m // 12_000] += 1
    assert len(blocks) > 1000
    assert max(blocks.values()) < 100


def test_tile_names_follow_the_military_grid() -> None:
    # T34VER is the tile of the real patches whose corner is (499980, 7044840); T33UUU holds Berlin
    assert landscape.mgrs_tile(34, 500_000, 7_000_000) == "34VER"
    assert landscape.mgrs_tile(33, 300_000, 5_800_000) == "33UUU"


@pytest.mark.parametrize("least", [0.02, 0.06, 0.3])
def test_labels_are_the_classes_of_the_pixels(least: float) -> None:
    r = SynthRecipe(out=Path("unused"), label_min_fraction=least)
    for i in range(0, 600, 20):
        p = patch(r, i)
        share = np.bincount(p.classes.ravel(), minlength=len(CLC)) / p.classes.size
        assert {c.name for c, s in zip(CLC, share, strict=True) if s >= least} == set(p.labels)
        assert {CLC[k].name for k in np.flatnonzero(share)} == set(p.labels), "no class below the least share"
        assert p.labels


def test_noise_and_cloud_leave_labels_alone_and_do_what_they_say() -> None:
    plain, noisy, cloudy = (
        SynthRecipe(out=Path("unused"), noise=n, cloud=c) for n, c in ((0.0, 0.0), (0.01, 0.0), (0.0, 1.0))
    )
    for i in (0, 101, 502, 707):
        a, b, c = (patch(r, i) for r in (plain, noisy, cloudy))
        assert a.labels == b.labels == c.labels
        assert np.array_equal(a.classes, c.classes)
        sd = (b.bands["10m"].astype(float) - a.bands["10m"]).std()
        assert sd == pytest.approx(100, rel=0.05)  # 0.01 in units of 1e-4
        brighter = (c.bands["10m"][0].astype(float) > 4000) & (a.bands["10m"][0] < 3500)
        assert 0.01 < brighter.mean() < 0.5
        assert (c.bands["10m"][3] < 0.8 * a.bands["10m"][3].astype(float)).mean() > 0.01  # the shadow


def test_share_of_cloudy_patches() -> None:
    r, clear = (SynthRecipe(out=Path("unused"), cloud=c) for c in (0.3, 0.0))
    cloudy = sum(not np.array_equal(patch(r, i).bands["60m"], patch(clear, i).bands["60m"]) for i in range(80))
    assert 14 <= cloudy <= 35


def test_coarse_bands_are_area_means() -> None:
    cube = np.random.default_rng(0).random((12, SIZE_PX, SIZE_PX), dtype=np.float32)
    out = spectra.sense(np.random.default_rng(0), cube, 0.0)
    assert out["20m"][2, 7, 11] == pytest.approx(cube[6, 14:16, 22:24].mean() * 1e4, abs=1)
    assert out["60m"][1, 3, 19] == pytest.approx(cube[11, 18:24, 114:120].mean() * 1e4, abs=1)
    assert {k: v.shape for k, v in out.items()} == {"10m": (4, 120, 120), "20m": (6, 60, 60), "60m": (2, 20, 20)}


def test_all_values_are_valid_reflectances(many: list[Patch]) -> None:
    for p in many:
        for group in p.bands.values():
            assert group.dtype == np.uint16
            assert group.min() >= 1
            assert group.max() < 16_000


@pytest.mark.parametrize("code", [231, 311, 312, 313, 324, 411])
def test_vegetation_in_summer_is_dark_in_red_and_bright_beyond(code: int) -> None:
    s = mean_spectrum(code)
    assert s[BAND["B08"]] > 2.5 * s[BAND["B04"]]
    assert s[BAND["B03"]] > s[BAND["B02"]]
    assert s[BAND["B8A"]] > s[BAND["B05"]], "the red edge rises"
    assert s[BAND["B08"]] > s[BAND["B12"]]


@pytest.mark.parametrize("code", [511, 512, 521, 522, 523])
def test_water_is_dark_beyond_the_visible(code: int) -> None:
    s = mean_spectrum(code)
    assert s[BAND["B08"]] < s[BAND["B03"]]
    assert s[BAND["B08"]] < 0.06
    assert s[BAND["B11"]] < 0.02


def test_waters_differ_in_turbidity() -> None:
    red = {code: mean_spectrum(code)[BAND["B04"]] for code in (511, 512, 522, 523)}
    assert red[522] > red[511] > red[512] > red[523]
    assert mean_spectrum(523)[BAND["B02"]] > mean_spectrum(523)[BAND["B08"]]


def test_snow_burnt_ground_towns_and_sand() -> None:
    snow, burnt, town, forest, sand = (mean_spectrum(code) for code in (335, 334, 111, 311, 331))
    assert snow[BAND["B02"]] > 0.5
    assert snow[BAND["B11"]] < 0.15
    nbr = (burnt[BAND["B08"]] - burnt[BAND["B12"]]) / (burnt[BAND["B08"]] + burnt[BAND["B12"]])
    assert nbr < 0, "normalised burn ratio"
    assert town[BAND["B12"]] > 1.8 * forest[BAND["B12"]]
    assert sand[BAND["B04"]] > sand[BAND["B02"]] > town[BAND["B02"]]


def test_conifers_are_darker_than_broad_leaves_and_stay_green() -> None:
    winter = dataclasses.replace(SUMMER, day=15)
    needles, leaves = mean_spectrum(312), mean_spectrum(311)
    assert needles[BAND["B08"]] < 0.6 * leaves[BAND["B08"]]
    assert mean_spectrum(311, winter)[BAND["B08"]] < 0.7 * leaves[BAND["B08"]]
    assert mean_spectrum(312, winter)[BAND["B08"]] == pytest.approx(needles[BAND["B08"]], rel=0.02)


def test_mediterranean_grass_dries_out_in_summer() -> None:
    dry = dataclasses.replace(SUMMER, dry=True, day=215)
    assert mean_spectrum(231, dry)[BAND["B04"]] > 1.5 * mean_spectrum(231)[BAND["B04"]]


def test_every_class_has_a_cover_of_known_parts() -> None:
    assert set(spectra.COVERS) == {c.code for c in CLC}
    for cover in spectra.COVERS.values():
        assert cover.pattern in PATTERNS
        assert sum(p.share for p in cover.parts) == pytest.approx(1)
        assert all({p.living, p.resting or p.living} <= set(spectra.MATERIALS) for p in cover.parts)
        assert all(p.season in spectra.SEASONS for p in cover.parts)


def test_patterns_are_cut_into_the_shares_asked_for() -> None:
    rng = np.random.default_rng(2)
    for pattern in PATTERNS.values():
        got = np.mean([np.bincount(cut(pattern(rng, 6), (0.6, 0.4)).ravel(), minlength=2) for _ in range(12)], 0)
        assert got[0] / got.sum() == pytest.approx(0.6, abs=0.08)


def test_classes_are_as_unequal_as_in_bigearthnet() -> None:
    found: Counter[int] = Counter()
    labels = 0
    patches = 4000
    for i in range(patches):
        rng = np.random.default_rng((0, i))
        drawn = landscape.present(rng, landscape.place(0, i))
        found.update(drawn)
        labels += len(drawn)
    real = np.array([c.patches for c in CLC if c.patches])
    got = np.array([found[i] for i, c in enumerate(CLC) if c.patches])
    assert labels / patches == pytest.approx(2.9, abs=0.25)
    assert np.corrcoef(_ranks(real), _ranks(got))[0, 1] > 0.9  # Spearman
    common = real > 5000
    assert np.corrcoef(np.log(real[common]), np.log(got[common]))[0, 1] > 0.9
    assert got.max() / np.median(got) > 10


def _ranks(x: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(x, kind="stable"), kind="stable")


def test_labels_after_mapping_keep_the_drawn_frequencies(many: list[Patch]) -> None:
    assert 2.3 < np.mean([len(p.labels) for p in many]) < 3.5


def test_ingest_takes_every_patch(archive: Path, tmp_path: Path) -> None:
    said: list[str] = []
    info = ingest(IngestRecipe(archive=archive, store=tmp_path / "s", split=SplitRecipe(), workers=1), said.append)
    assert (info.patches, len(info.rejected)) == (40, 0), said


def test_the_metadata_is_that_of_bigearthnet(archive: Path) -> None:
    for folder in (p for p in archive.iterdir() if p.is_dir()):
        meta = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
        assert set(meta) == {"labels", "coordinates", "projection", "tile_source", "acquisition_date"}
        assert all(n in CLC_BY_NAME for n in meta["labels"])
        assert meta["coordinates"]["lrx"] - meta["coordinates"]["ulx"] == 1200
        assert meta["acquisition_date"].replace("-", "")[:8] == folder.name.split("_")[2][:8]
        assert len(list(folder.iterdir())) == 13


# ---- the other layout, and tars


def contents_of(tar: Path) -> dict[str, bytes]:
    return {m.name: m.content or b"" for m in members(tar)}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def archive_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(recipe_of(tmp_path_factory.mktemp("v2") / "a", layout="bigearthnet-v2", cloud=0.3), quiet)


def test_the_marker_of_the_default_layout_is_as_it_was(archive: Path) -> None:
    assert json.loads((archive / MARKER).read_text()) == {
        "format": 1, "seed": 0, "cloud": 0.05, "noise": 0.002, "label_min_fraction": 0.06,
    }  # fmt: skip


def test_v2_holds_the_pixels_of_v1_the_class_map_and_a_table(archive_v2: Path) -> None:
    r = recipe_of(archive_v2, layout="bigearthnet-v2", cloud=0.3)
    tables = [pq.read_table(archive_v2 / name).to_pylist() for name in (METADATA, METADATA_CLOUDY)]
    rows = {row["patch_id"]: row for table in tables for row in table}
    assert all([t["patch_id"] for t in table] == sorted(t["patch_id"] for t in table) for table in tables)
    index = nomenclature("bigearthnet-19").index
    names = nomenclature("bigearthnet-19").classes
    unlabelled = 0
    for i in range(r.patches):
        p = patch(r, i)
        name = f"{tile_of(p.place)}_{'_'.join(p.name.split('_')[-2:])}"
        folder = archive_v2 / "BigEarthNet-S2" / tile_of(p.place) / name
        assert len(list(folder.iterdir())) == 12
        assert (folder / f"{name}_B05.tif").read_bytes() == geotiff(
            p.bands["20m"][0], p.place.zone, p.place.ulx_m, p.place.uly_m
        )
        codes, info = read_band(archive_v2 / "Reference_Maps" / tile_of(p.place) / name / f"{name}_reference_map.tif")
        assert np.array_equal(codes, np.array([c.code for c in CLC])[p.classes])
        assert (info.transform[2], info.transform[5]) == (p.place.ulx_m, p.place.uly_m)
        assert place(name)[:3] == (info.crs, p.place.ulx_m, p.place.uly_m), "a tile's corner and a name say the same"
        wanted = {names[index[n]] for n in p.labels if n in index}
        unlabelled += not wanted
        assert (set(rows[name]["labels"]) == wanted) if wanted else name not in rows
        if wanted:
            assert rows[name]["s2v1_name"] == p.name and rows[name]["contains_cloud_or_shadow"] == p.cloudy
            assert (name in {t["patch_id"] for t in tables[1]}) == p.cloudy
    assert len(rows) == r.patches - unlabelled and len(tables[1]) > 3


def test_v2_columns_are_those_published(archive_v2: Path) -> None:
    schema = pq.read_schema(archive_v2 / METADATA)
    assert {n: str(t) for n, t in zip(schema.names, schema.types, strict=True)} == {
        "patch_id": "string", "labels": "list<element: string>", "split": "string", "country": "string",
        "s1_name": "string", "s2v1_name": "string", "contains_seasonal_snow": "bool",
        "contains_cloud_or_shadow": "bool",
    }  # fmt: skip


@pytest.mark.needs("shared")
def test_v2_schema_is_the_real_one(archive_v2: Path) -> None:
    real = pq.read_schema(SHARED / "bigearthnet-v2" / METADATA)
    assert pq.read_schema(archive_v2 / METADATA).equals(real)


def test_v2_splits_keep_ground_together() -> None:
    seen: dict[tuple[str, int, int], set[str]] = {}
    counts: Counter[str] = Counter()
    r = SynthRecipe(out=Path("unused"))
    made = patch(r, 0)
    for i in range(4000):
        where = landscape.place(0, i)
        row = row_of(0, dataclasses.replace(made, place=where, name=where.name))
        assert row
        col, line = (int(n) // 10 for n in where.name.split("_")[-2:])
        seen.setdefault((where.tile, col, line), set()).add(row.split)
        counts[row.split] += 1
    assert all(len(s) == 1 for s in seen.values())
    assert 0.4 < counts["train"] / 4000 < 0.6 and 0.17 < counts["validation"] / 4000 < 0.33


@pytest.mark.parametrize("tar", ["tar", "tar.gz", "tar.zst"])
def test_a_tar_holds_the_files_of_the_folders(archive: Path, tmp_path: Path, tar: str) -> None:
    out = run(recipe_of(tmp_path / "t", tar=tar), quiet)
    assert sorted(p.name for p in out.iterdir()) == [f"BigEarthNet-v1.0.{tar}", MARKER]
    folders = {f"BigEarthNet-v1.0/{k}": v for k, v in tree(archive).items() if k != MARKER}
    assert contents_of(out / f"BigEarthNet-v1.0.{tar}") == folders


def test_tars_of_v2_hold_the_files_of_its_folders(archive_v2: Path, tmp_path: Path) -> None:
    r = recipe_of(tmp_path / "t", layout="bigearthnet-v2", tar="tar.zst", cloud=0.3, workers=2, patches=40)
    found = tree(run(r, quiet))
    there = tree(archive_v2)
    for name in (METADATA, METADATA_CLOUDY):
        assert found.pop(name) == there.pop(name)
    packed = contents_of(r.out / "BigEarthNet-S2.tar.zst") | contents_of(r.out / "Reference_Maps.tar.zst")
    assert packed == {k: v for k, v in there.items() if k != MARKER}
    assert set(found) == {"BigEarthNet-S2.tar.zst", "Reference_Maps.tar.zst", MARKER}


@pytest.mark.parametrize("tar", ["tar.gz", "tar.zst"])
def test_tars_are_the_same_bytes_from_other_workers(tmp_path: Path, tar: str) -> None:
    one, two = (run(recipe_of(tmp_path / str(w), tar=tar, patches=110, workers=w), quiet) for w in (1, 2))
    assert digests(one) == digests(two)


def test_v2_is_taken_up_and_extended_to_the_same_bytes(archive_v2: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    keys = {"layout": "bigearthnet-v2", "cloud": 0.3}
    run(recipe_of(out, patches=11, **keys), quiet)
    gone = sorted(out.glob("BigEarthNet-S2/*/*"))[3]
    shutil.rmtree(gone)  # its map is there: killed in between
    half = gone.with_name(f".{gone.name}.part")
    half.mkdir()
    run(recipe_of(out, **keys), quiet)
    assert digests(out) == digests(archive_v2)


@pytest.mark.parametrize(("key", "value"), [("layout", "bigearthnet-v2"), ("tar", "tar.gz")])
def test_another_layout_into_the_same_folder_is_refused(archive: Path, key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key} is None, the recipe says {value}"):
        run(recipe_of(archive, **{key: value}), quiet)


@pytest.mark.parametrize("tar", ["none", "tar.zst"])
def test_ingest_takes_every_labelled_clear_patch_of_v2(archive_v2: Path, tmp_path: Path, tar: str) -> None:
    r = recipe_of(archive_v2, layout="bigearthnet-v2", cloud=0.3)
    ending = "" if tar == "none" else f".{tar}"
    folder = archive_v2 if tar == "none" else run(dataclasses.replace(r, out=tmp_path / "t", tar=tar), quiet)
    section = BigEarthNetRecipe(images=f"BigEarthNet-S2{ending}", reference_maps=f"Reference_Maps{ending}")
    more = {"source": "bigearthnet-v2", "bigearthnet": section, "split": SplitRecipe(by="archive"), "workers": 1}
    info = ingest(IngestRecipe(archive=folder, store=tmp_path / "s", patches_per_shard=7, **more), quiet)
    assert info
    rows = pq.read_table(folder / METADATA).to_pylist()
    assert (info.patches, len(info.rejected)) == (len(rows), 0)
    assert sum(info.left_out.values()) == 40 - len(rows)
    store = Store(tmp_path / "s")
    truth = {f"{tile_of(p.place)}_{'_'.join(p.name.split('_')[-2:])}": p for p in (patch(r, i) for i in range(40))}
    index = nomenclature("bigearthnet-19").index
    table = np.array([index.get(c.name, 255) for c in CLC])
    for i, name in enumerate(store.column("id")):
        assert np.array_equal(store.patch(i)["mask"], table[truth[name].classes])
        assert np.array_equal(store.patch(i)["20m"], truth[name].bands["20m"])


def test_projection_is_utm() -> None:
    from rasterio.crs import CRS

    assert CRS.from_wkt(utm_wkt(34)).to_epsg() == 32634


def test_a_stopped_run_is_taken_up(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    shutil.copytree(archive, out)
    folders = sorted(p for p in out.iterdir() if p.is_dir())
    for folder in folders[::2]:
        shutil.rmtree(folder)
    half = out / f".{folders[0].name}.part"  # what a kill leaves behind
    half.mkdir()
    (half / "x.tif").write_bytes(b"half")
    said: list[str] = []
    run(recipe_of(out), said.append)
    assert digests(out) == digests(archive)
    assert said == [f"{out}: 40 patches, 20 made now, 20 were there"]


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("cloud", 0.5), ("noise", 0.01), ("label_min_fraction", 0.1)])
def test_other_settings_into_the_same_folder_are_refused(archive: Path, key: str, value: float) -> None:
    before = digests(archive)
    default = getattr(recipe_of(archive), key)
    with pytest.raises(RecipeError, match=rf"{key} is {default}, the recipe says {value}"):
        run(recipe_of(archive, **{key: value}), quiet)
    assert digests(archive) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArchiveError, match="not empty"):
        run(recipe_of(tmp_path), quiet)
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ArchiveError, match="not valid JSON"):
        run(recipe_of(tmp_path), quiet)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot be written"):
        run(recipe_of(tmp_path / "file" / "out"), quiet)


def test_a_failing_write_leaves_no_half_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(*_: object) -> bytes:
        calls.append(1)
        if len(calls) == 8:
            raise OSError(28, "No space left on device")
        return b"half"

    monkeypatch.setattr("jeoparda.synth.layout.geotiff", full)
    with pytest.raises(ArchiveError, match="No space left on device"):
        run(recipe_of(tmp_path / "out", patches=1), quiet)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [MARKER]


@pytest.mark.parametrize(("size_px", "zone"), [(120, 29), (60, 34), (20, 35)])
def test_files_are_those_of_write_band(size_px: int, zone: int, tmp_path: Path) -> None:
    band = np.random.default_rng(size_px).integers(0, 65535, (size_px, size_px), dtype=np.uint16)
    pixel = 1200 / size_px
    write_band(tmp_path / "a.tif", band, f"EPSG:{32600 + zone}", (pixel, 0.0, 399960.0, 0.0, -pixel, 5400000.0))
    assert geotiff(band, zone, 399960, 5400000) == (tmp_path / "a.tif").read_bytes()


def test_the_recipe_is_strict() -> None:
    with pytest.raises(RecipeError, match="missing"):
        load(SynthRecipe, None, ())
    with pytest.raises(RecipeError, match="cloud"):
        load(SynthRecipe, None, ("out=x", "cloud=1.5"))
    assert load(SynthRecipe, None, ("out=x", "patches=5")).patches == 5
