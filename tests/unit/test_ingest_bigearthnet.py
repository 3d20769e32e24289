"""BigEarthNet v1 and v2, folders and tars: every pixel, label and place as it is; what is wrong or missing is told."""

import csv
import dataclasses
import json
import pickle
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import zstandard

from jeoparda.config import check
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.ingest import IngestRecipe, SplitRecipe, bigearthnet, bigearthnet_v2, run, tarball
from jeoparda.ingest.bigearthnet import BigEarthNetRecipe
from jeoparda.ingest.bigearthnet_v2 import mask_of, place, tile_corner
from jeoparda.ingest.source import LeftOut, Patch, Planned
from jeoparda.nomenclature import CLC, nomenclature
from jeoparda.raster import crs_name, write_band
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import Reject, Store
from jeoparda.synth.landscape import mgrs_tile
from tests.archive import make_archive
from tests.conftest import SHARED
from tests.scenes import pixel_m

TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
OTHER = "S2B_MSIL2A_20180515T94029_N9999_R036_T35VNH"  # 9:40:29, as some are written
FLAGS = ("contains_seasonal_snow", "contains_cloud_or_shadow")
FIELDS = ("patch_id", "labels", "split", "country", "s1_name", "s2v1_name", *FLAGS)


def planned(source, archive: Path, section: BigEarthNetRecipe):
    """(contents, Planned, Rejects, LeftOut) of an archive; units go through pickle, as to a worker."""
    contents = source.describe(archive, section)
    units = source.units(archive, section, contents)
    units = (pickle.loads(pickle.dumps(u)) if i < 100 else u for i, u in enumerate(units))
    out = [p for u in units for p in source.plan(archive, section, contents, u)]
    kinds = [[p for p in out if isinstance(p, kind)] for kind in (Planned, Reject, LeftOut)]
    assert sum(map(len, kinds)) == len(out)
    return (contents, *kinds)


def pixels(source, archive: Path, section: BigEarthNetRecipe, per_shard: int = 3):
    """id -> Patch or Reject, read shard by shard as ingest does, the payload through pickle."""
    contents, patches, _, _ = planned(source, archive, section)
    shards = [patches[i : i + per_shard] for i in range(0, len(patches), per_shard)]
    out = {}
    for number, payload in source.payloads(archive, section, contents, iter(enumerate(shards))):
        payload = pickle.loads(pickle.dumps(payload))
        got = list(source.read(archive, section, contents, shards[number], payload))
        out |= {p.id: g for p, g in zip(shards[number], got, strict=True)}
    assert list(out) == [p.id for p in patches]
    return out


def tar_of(folder: Path, path: Path, order=None) -> Path:
    """`folder` in a tar as published: its name first, files sorted, or in the order asked for."""
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=order)
    plain = path.with_suffix("") if path.suffix == ".zst" else path
    with tarfile.open(plain, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for file in files:
            tar.add(file, f"{folder.name}/{file.relative_to(folder)}")
    if path.suffix == ".zst":
        path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(plain.read_bytes()))
        plain.unlink()
    return path


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        one[k].classes == other[k].classes
        and all(np.array_equal(one[k].arrays[n], other[k].arrays[n]) for n in one[k].arrays)
        and one[k].arrays.keys() == other[k].arrays.keys()
        for k in one
    )


# ---- v1


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_v1_from_a_tar_is_v1_from_folders(tmp_path, name):
    archive = make_archive(tmp_path / "BigEarthNet-v1.0", 8)
    tar = tar_of(archive, tmp_path / name)
    section = BigEarthNetRecipe()
    folders, packed = (planned(bigearthnet, a, section)[1] for a in (archive, tar))
    assert [dataclasses.replace(p, source="", where={}) for p in folders] == [
        dataclasses.replace(p, source="", where={}) for p in packed
    ]
    assert packed[0].where == {"folder": f"BigEarthNet-v1.0/{packed[0].id}"}
    assert same(pixels(bigearthnet, archive, section), pixels(bigearthnet, tar, section))


def test_v1_shards_that_are_wanted_alone_come_alone(tmp_path):
    """A job of an array, or a resumed ingest, wants some shards; the rest of the tar passes by."""
    tar = tar_of(make_archive(tmp_path / "BigEarthNet-v1.0", 9), tmp_path / "a.tar.gz")
    section = BigEarthNetRecipe()
    contents, patches, _, _ = planned(bigearthnet, tar, section)
    shards = [patches[i : i + 2] for i in range(0, 9, 2)]
    found = dict(bigearthnet.payloads(tar, section, contents, iter([(1, shards[1]), (4, shards[4])])))
    assert {n: {k.split("/")[1] for k in p} for n, p in found.items()} == {n: {p.id for p in shards[n]} for n in (1, 4)}
    assert len(found[1]) == 24


def test_v1_the_store_from_a_tar_is_the_store_from_folders(tmp_path):
    archive = make_archive(tmp_path / "BigEarthNet-v1.0", 8)
    tar = tar_of(archive, tmp_path / "a.tar.zst")
    stores = []
    for name, source in (("one", archive), ("two", tar)):
        more = {"split": SplitRecipe(by="none"), "patches_per_shard": 3, "workers": 1}
        run(IngestRecipe(archive=source, store=tmp_path / name, **more), lambda _: None)
        stores.append(Store(tmp_path / name))
    one, two = stores
    assert one.column("id").tolist() == two.column("id").tolist() and len(one) == 8
    for i in range(8):
        a, b = one.patch(i), two.patch(i)
        assert all(np.array_equal(a[g.name], b[g.name]) for g in one.info.groups)
    assert np.array_equal(one.labels, two.labels)


@pytest.mark.parametrize("ending", ["_B8A.tif", "_labels_metadata.json"])
def test_v1_a_file_missing_from_a_tar_is_told_when_planning(tmp_path, ending):
    archive = make_archive(tmp_path / "B", 4)
    name = sorted(p.name for p in archive.iterdir())[1]
    (archive / name / f"{name}{ending}").unlink()
    _, patches, rejects, _ = planned(bigearthnet, tar_of(archive, tmp_path / "a.tar"), BigEarthNetRecipe())
    assert len(patches) == 3
    assert [(r.id, r.file, r.reason) for r in rejects] == [(name, f"B/{name}/{name}{ending}", "missing")]


def test_v1_a_torn_band_in_a_tar_is_named_by_its_member(tmp_path):
    archive = make_archive(tmp_path / "B", 3)
    name = sorted(p.name for p in archive.iterdir())[1]
    path = archive / name / f"{name}_B04.tif"
    path.write_bytes(path.read_bytes()[:900])
    got = pixels(bigearthnet, tar_of(archive, tmp_path / "a.tar.gz"), BigEarthNetRecipe())
    assert [k for k, g in got.items() if isinstance(g, Reject)] == [name]
    assert got[name].file == f"B/{name}/{name}_B04.tif" and "cannot be read" in got[name].reason


def test_v1_a_tar_cut_short_is_refused_or_kept_as_the_recipe_says(tmp_path):
    whole = tar_of(make_archive(tmp_path / "B", 6), tmp_path / "a.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2 + 5000])
    with pytest.raises(tarball.TruncatedTar, match=r"cut\.tar: ends too early.*truncated=keep"):
        planned(bigearthnet, cut, BigEarthNetRecipe())
    keep = BigEarthNetRecipe(truncated="keep")
    _, patches, rejects, _ = planned(bigearthnet, cut, keep)
    assert len(patches) in (2, 3)
    assert [r.id for r in rejects][-1] == "cut.tar" and "ends too early, at byte" in rejects[-1].reason
    assert len(rejects) == 2 and "missing" in rejects[0].reason, "the patch that the cut went through"
    got = pixels(bigearthnet, cut, keep)
    assert same({k: got[k] for k in got}, {k: v for k, v in _folders(tmp_path / "B").items() if k in got})


def _folders(archive: Path):
    return pixels(bigearthnet, archive, BigEarthNetRecipe())


def test_v1_lists_of_cloud_and_snow_leave_patches_out(tmp_path):
    archive = make_archive(tmp_path / "a", 6)
    names = sorted(p.name for p in archive.iterdir())
    for list_, of in (("cloud", names[:2]), ("snow", [names[1], names[5], "S2A_not_here"])):
        with open(tmp_path / f"{list_}.csv", "w", newline="") as f:
            csv.writer(f).writerows([n] for n in of)
    section = BigEarthNetRecipe(drop_cloudy=tmp_path / "cloud.csv", drop_snowy=tmp_path / "snow.csv")
    (archive / names[0] / f"{names[0]}_labels_metadata.json").write_text("{")  # not looked at: it is not wanted
    _, patches, rejects, left = planned(bigearthnet, archive, section)
    assert [p.id for p in patches] == names[2:5] and not rejects
    assert {p.id: p.reason for p in left} == {
        names[0]: "cloud or shadow, by drop_cloudy",
        names[1]: "cloud or shadow, by drop_cloudy",
        names[5]: "seasonal snow, by drop_snowy",
    }
    with pytest.raises(RecipeError, match=r"x\.csv: cannot read the list of patches"):
        planned(bigearthnet, archive, BigEarthNetRecipe(drop_snowy=tmp_path / "x.csv"))


def test_v1_corners_must_be_a_patch_apart(tmp_path):
    archive = make_archive(tmp_path / "a", 2)
    name = sorted(p.name for p in archive.iterdir())[0]
    path = archive / name / f"{name}_labels_metadata.json"
    meta = json.loads(path.read_text())
    meta["coordinates"]["lrx"] += 10
    path.write_text(json.dumps(meta))
    _, _, (reject,), _ = planned(bigearthnet, archive, BigEarthNetRecipe())
    assert reject.file == f"{name}/{path.name}" and "(401170, 5398800)" in reject.reason
    assert reject.expected == "coordinates 1200 m apart both ways"


@pytest.mark.parametrize(
    ("key", "value"), [("images", "x"), ("reference_maps", "x"), ("snow", "keep"), ("metadata", ["x"])]
)
def test_v1_has_no_use_for_keys_of_v2(tmp_path, key, value):
    with pytest.raises(RecipeError, match=rf"bigearthnet\.{key} = .* does nothing with source = bigearthnet-v1"):
        bigearthnet.describe(tmp_path, check(BigEarthNetRecipe, {key: value}))


# ---- v2, made by hand


def codes_of(seed: int) -> np.ndarray:
    """(row, col) uint16: vertical stripes of arable land, sea and vineyards, a corner of airports, one of no data."""
    codes = np.full((120, 120), 211, np.uint16)
    codes[:, 30 + seed :] = 523
    codes[:, 90:] = 221
    codes[:7, :5] = 124  # which 19 classes drop
    codes[110:, 100:] = 999
    return codes


def add_patch(root: Path, patch: str, seed: int) -> None:
    tile = patch.rsplit("_", 2)[0]
    crs, ulx, uly, _ = place(patch)
    rng = np.random.default_rng(seed)
    folder = root / "BigEarthNet-S2" / tile / patch
    folder.mkdir(parents=True)
    for band in SENTINEL_2_L2A.bands:
        m = pixel_m(SENTINEL_2_L2A, band)
        values = rng.integers(1, 9000, (1200 // m, 1200 // m), dtype=np.uint16)
        write_band(folder / f"{patch}_{band}.tif", values, crs, (m, 0.0, ulx, 0.0, -m, uly))
    folder = root / "Reference_Maps" / tile / patch
    folder.mkdir(parents=True)
    write_band(folder / f"{patch}_reference_map.tif", codes_of(seed), crs, (10, 0.0, ulx, 0.0, -10, uly))


def row_of(patch: str, **more) -> dict:
    labels = ["Permanent crops", "Arable land", "Marine waters"]
    v1 = "_".join((*patch.split("_")[:3], *patch.split("_")[-2:]))
    values = (patch, labels, "train", "Austria", "S1B_IW_GRDH_1SDV", v1, False, False)
    return dict(zip(FIELDS, values, strict=True)) | more


def write_rows(path: Path, rows: list[dict]) -> None:
    schema = pa.schema([(n, pa.list_(pa.string()) if n == "labels" else pa.string()) for n in FIELDS[:6]])
    for name in FLAGS:
        schema = schema.append(pa.field(name, pa.bool_()))
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


NAMES = [f"{TILE}_0_0", f"{TILE}_0_90", f"{TILE}_7_12", f"{OTHER}_3_4", f"{OTHER}_50_5"]


@pytest.fixture
def v2(tmp_path) -> Path:
    root = tmp_path / "v2"
    for seed, name in enumerate(NAMES):
        add_patch(root, name, seed)
    splits = ("train", "validation", "test", "train", "validation")
    write_rows(root / "metadata.parquet", [row_of(n, split=s) for n, s in zip(NAMES, splits, strict=True)])
    return root


MAPS = BigEarthNetRecipe(reference_maps="Reference_Maps")


def test_v2_every_pixel_label_split_country_and_place(v2):
    contents, patches, rejects, left = planned(bigearthnet_v2, v2, MAPS)
    assert not rejects and not left
    assert [p.id for p in patches] == sorted(NAMES)
    assert [p.split for p in patches] == ["train", "val", "test", "train", "val"]
    assert {p.country for p in patches} == {"Austria"}
    assert {p.date for p in patches} == {"2017-06-13T10:10:31", "2018-05-15T09:40:29"}
    assert {tuple(contents.classes[c] for c in p.classes) for p in patches} == {
        ("Arable land", "Permanent crops", "Marine waters")
    }
    assert (contents.layout.mask_px, contents.target, len(contents.classes)) == (120, "mask", 19)
    got = pixels(bigearthnet_v2, v2, MAPS)
    for seed, p in enumerate(patches):
        for group in contents.layout.groups:
            for k, band in enumerate(group.bands):
                with rasterio.open(v2 / p.where["folder"] / f"{p.id}_{band}.tif") as f:
                    np.testing.assert_array_equal(got[p.id].arrays[group.name][k], f.read(1))
                    if group.pixel_m == 10:
                        assert tuple(f.transform)[:6] == p.transform and crs_name(f.crs) == p.crs
        named = np.array([*contents.classes, *[""] * (256 - 19)])[got[p.id].arrays["mask"]]
        expected = {211: "Arable land", 523: "Marine waters", 221: "Permanent crops", 124: "", 999: ""}
        np.testing.assert_array_equal(named, np.vectorize(expected.get)(codes_of(seed)))


def test_v2_without_maps_has_labels_alone(v2):
    contents, *_ = planned(bigearthnet_v2, v2, BigEarthNetRecipe())
    assert (contents.layout.mask_px, contents.target) == (0, "labels")
    assert all("mask" not in g.arrays for g in pixels(bigearthnet_v2, v2, BigEarthNetRecipe()).values())


@pytest.mark.parametrize("images", ["BigEarthNet-S2.tar.zst", "BigEarthNet-S2.tar"])
@pytest.mark.parametrize("maps", ["Reference_Maps", "Reference_Maps.tar.zst"])
def test_v2_from_tars_is_v2_from_folders(v2, images, maps):
    tar_of(v2 / "BigEarthNet-S2", v2 / images)
    if maps.endswith("zst"):
        tar_of(v2 / "Reference_Maps", v2 / maps, order=lambda f: f.name[::-1])  # in another order than the bands
    section = BigEarthNetRecipe(images=images, reference_maps=maps)
    folders, packed = (planned(bigearthnet_v2, v2, s)[1] for s in (MAPS, section))
    assert packed == folders
    assert same(pixels(bigearthnet_v2, v2, MAPS), pixels(bigearthnet_v2, v2, section))


def test_v2_folders_with_maps_in_a_tar(v2):
    tar_of(v2 / "Reference_Maps", v2 / "Reference_Maps.tar.zst")
    section = BigEarthNetRecipe(reference_maps="Reference_Maps.tar.zst")
    assert same(pixels(bigearthnet_v2, v2, MAPS), pixels(bigearthnet_v2, v2, section))


def test_v2_order_of_the_rows_does_not_matter_and_tables_add_up(v2):
    rows = [row_of(n) for n in NAMES]
    write_rows(v2 / "one.parquet", [rows[4], rows[0], rows[2]])
    write_rows(v2 / "two.parquet", [rows[3], rows[1]])
    section = BigEarthNetRecipe(metadata=("one.parquet", "two.parquet"))
    assert [p.id for p in planned(bigearthnet_v2, v2, section)[1]] == sorted(NAMES)


@pytest.mark.parametrize("packed", [False, True])
def test_v2_what_is_missing_on_one_side_is_told(v2, packed):
    """Another tile not come yet: a count. A patch lost, a map lost: a line each. A folder without a row: a count."""
    absent = "S2A_MSIL2A_20180804T100031_N9999_R122_T34WFU"
    lost = f"{TILE}_80_80"
    rows = [row_of(n) for n in NAMES if n != NAMES[3]]
    rows += [row_of(lost), *[row_of(f"{absent}_1_{k}") for k in range(30)]]
    write_rows(v2 / "metadata.parquet", sorted(rows, key=lambda r: r["patch_id"]))
    map_ = v2 / "Reference_Maps" / TILE / NAMES[1]
    next(map_.iterdir()).unlink()
    map_.rmdir()
    section = MAPS
    if packed:
        tar_of(v2 / "BigEarthNet-S2", v2 / "S2.tar")
        tar_of(v2 / "Reference_Maps", v2 / "R.tar.zst")
        section = BigEarthNetRecipe(images="S2.tar", reference_maps="R.tar.zst")
    _, patches, rejects, left = planned(bigearthnet_v2, v2, section)
    assert [p.id for p in patches] == [NAMES[0], NAMES[2], NAMES[4]]
    assert sorted((r.id, r.file) for r in rejects) == [
        (NAMES[1], f"{section.reference_maps}/{TILE}/{NAMES[1]}/{NAMES[1]}_reference_map.tif"),
        (lost, f"{section.images}/{TILE}/{lost}"),
    ]
    assert Counter(p.reason for p in left) == {
        f"in the metadata, but nothing of its tile is in {section.images}": 30,
        "in the archive, but in none of the files of metadata": 1,
    }


@pytest.mark.parametrize("packed", [False, True])
def test_v2_a_tile_half_there_is_one_count_not_thousands_of_lines(v2, packed):
    rows = [row_of(n) for n in NAMES] + [row_of(f"{TILE}_60_{k}") for k in range(40)]
    write_rows(v2 / "metadata.parquet", rows)
    section = BigEarthNetRecipe(images=tar_of(v2 / "BigEarthNet-S2", v2 / "S2.tar").name) if packed else MAPS
    _, patches, rejects, left = planned(bigearthnet_v2, v2, section)
    assert len(patches) == 5 and not rejects
    assert Counter(p.reason for p in left) == {f"in the metadata, but not in {section.images}/{TILE}": 40}


@pytest.mark.parametrize("packed", [False, True])
def test_v2_a_patch_twice_is_told(v2, packed):
    rows = [row_of(n) for n in NAMES]
    write_rows(v2 / "metadata.parquet", [rows[0], rows[0] | {"labels": ["Pastures"]}, *rows[1:]])
    section = BigEarthNetRecipe(images=tar_of(v2 / "BigEarthNet-S2", v2 / "S2.tar").name) if packed else MAPS
    _, patches, rejects, _ = planned(bigearthnet_v2, v2, section)
    assert [p.id for p in patches] == NAMES and len(patches[0].classes) == 3
    assert [r.reason for r in rejects] == [f"a second row of patch {NAMES[0]}"]
    if packed:
        plain = (v2 / "S2.tar").read_bytes()
        with tarfile.open(v2 / "S2.tar", "a") as tar:
            for file in sorted((v2 / "BigEarthNet-S2" / TILE / NAMES[1]).iterdir()):
                tar.add(file, f"BigEarthNet-S2/{file.relative_to(v2 / 'BigEarthNet-S2')}")
        assert len(plain) < (v2 / "S2.tar").stat().st_size
        _, patches, rejects, _ = planned(bigearthnet_v2, v2, section)
        assert len(patches) == 5 and (rejects[1].id, rejects[1].reason) == (NAMES[1], "comes twice")


def test_v2_flags_are_used(v2):
    rows = [row_of(n, contains_seasonal_snow=i in (0, 1), contains_cloud_or_shadow=i in (1, 2)) for i, n in
            enumerate(NAMES)]  # fmt: skip
    write_rows(v2 / "metadata.parquet", rows)

    def left(**more) -> Counter:
        return Counter(p.reason for p in planned(bigearthnet_v2, v2, BigEarthNetRecipe(**more))[3])

    snow, cloud = "seasonal snow, by the metadata's flag", "cloud or shadow, by the metadata's flag"
    assert left() == {snow: 2, cloud: 1}
    assert left(snow="keep") == {cloud: 2}
    assert left(snow="keep", cloud="keep") == {}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"split": "val"}, "split 'val' .* train, validation, test"),
        ({"labels": ["Pasture"]}, "label 'Pasture' .* is no class of bigearthnet-19"),
        ({"patch_id": f"{TILE}_7"}, "no name of a patch"),
        ({"patch_id": "S2A_MSIL2A_20171313T101031_N9999_R022_T33UUP_1_1"}, "Invalid isoformat|month must be"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T33OUP_1_1"}, "no name of a patch"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T33AUP_1_1"}, "no name of a patch"),
        ({"patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T33UAP_1_1"}, "column A of tile 33UAP is not in zone 33"),
    ],
)
def test_v2_rows_that_make_no_sense_are_named(v2, row, told):
    bad = row_of(NAMES[0]) | row
    folder = v2 / "BigEarthNet-S2" / bad["patch_id"].rsplit("_", 2)[0] / bad["patch_id"]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(v2 / "metadata.parquet", [bad, row_of(NAMES[2])])
    _, patches, rejects, _ = planned(bigearthnet_v2, v2, BigEarthNetRecipe())
    assert [p.id for p in patches] == [NAMES[2]]
    assert len(rejects) == 1 and re.search(told, str(rejects[0])), rejects


def test_v2_a_row_without_labels_is_left_out(v2):
    write_rows(v2 / "metadata.parquet", [row_of(NAMES[0], labels=[]), row_of(NAMES[2], labels=None)])
    left = planned(bigearthnet_v2, v2, BigEarthNetRecipe())[3]
    assert Counter(p.reason for p in left)["no label in bigearthnet-19"] == 2


def test_v2_a_map_with_an_unknown_code_or_off_its_ground_rejects_the_patch(v2):
    paths = [v2 / "Reference_Maps" / n.rsplit("_", 2)[0] / n / f"{n}_reference_map.tif" for n in NAMES]
    codes = codes_of(0)
    codes[3, 4] = 445
    crs, ulx, uly, _ = place(NAMES[0])
    write_band(paths[0], codes, crs, (10, 0.0, ulx, 0.0, -10, uly))
    crs, ulx, uly, _ = place(NAMES[1])
    write_band(paths[1], codes_of(0), crs, (10, 0.0, ulx + 10, 0.0, -10, uly))
    paths[2].write_bytes(b"")
    got = pixels(bigearthnet_v2, v2, MAPS)
    assert [isinstance(got[n], Patch) for n in NAMES] == [False, False, False, True, True]
    assert (got[NAMES[0]].reason, got[NAMES[0]].expected) == ("holds [445]", "CORINE level-3 codes, 111 to 523")
    assert str(ulx + 10) in got[NAMES[1]].reason and str(ulx) in got[NAMES[1]].expected
    assert "cannot be read" in got[NAMES[2]].reason
    assert all(str(v2) not in str(got[n]) for n in NAMES[:3]), "rejects do not depend on where the archive lies"


def test_v2_bands_off_the_ground_that_the_name_says_reject_the_patch(v2):
    name = NAMES[2]
    path = v2 / "BigEarthNet-S2" / TILE / name / f"{name}_B8A.tif"
    with rasterio.open(path, "r+") as f:
        f.transform = rasterio.Affine(20, 0, f.transform.c + 1200, 0, -20, f.transform.f)
    got = pixels(bigearthnet_v2, v2, BigEarthNetRecipe())
    assert [k for k, g in got.items() if isinstance(g, Reject)] == [name]
    assert got[name].file.endswith("_B8A.tif")


def test_v2_refuses_what_cannot_be(v2, tmp_path):
    def told(archive: Path = v2, **more) -> str:
        with pytest.raises((RecipeError, ArchiveError)) as e:
            planned(bigearthnet_v2, archive, BigEarthNetRecipe(**more))
        return str(e.value)

    assert "published with 19 classes" in told(nomenclature="bigearthnet-43")
    assert "does nothing with source = bigearthnet-v2" in told(drop_snowy=tmp_path / "x.csv")
    assert "metadata_2.parquet: missing" in told(metadata=("metadata.parquet", "metadata_2.parquet"))
    assert "Reference_Map: missing" in told(reference_maps="Reference_Map")
    assert "BigEarthNet-S2: missing; expected in a BigEarthNet v2 archive" in told(tmp_path)
    (v2 / "x.parquet").write_text("404")
    assert "x.parquet: cannot be read as Parquet" in told(metadata=("x.parquet",))
    pq.write_table(pa.table({"patch_id": NAMES}), v2 / "y.parquet")
    assert "y.parquet: has no column labels, split" in told(metadata=("y.parquet",))
    write_rows(v2 / "z.parquet", [row_of(NAMES[0]) | {"patch_id": None}])
    assert "z.parquet: a patch_id is empty" in told(metadata=("z.parquet",))


def test_v2_tars_cut_short(v2):
    for name in ("BigEarthNet-S2", "Reference_Maps"):
        path = tar_of(v2 / name, v2 / f"{name}.tar")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10 if name[0] == "B" else 31_000 * 4 + 600])
    section = BigEarthNetRecipe(images="BigEarthNet-S2.tar", reference_maps="Reference_Maps.tar")
    with pytest.raises(tarball.TruncatedTar):
        planned(bigearthnet_v2, v2, section)
    _, patches, rejects, _ = planned(bigearthnet_v2, v2, dataclasses.replace(section, truncated="keep"))
    assert [p.id for p in patches] == NAMES[:3]
    assert {"BigEarthNet-S2.tar", "Reference_Maps.tar"} <= {r.id for r in rejects}


def test_v2_masks_and_labels_reach_the_store(v2, tmp_path):
    more = {"split": SplitRecipe(by="archive"), "bigearthnet": MAPS, "workers": 1, "source": "bigearthnet-v2"}
    info = run(IngestRecipe(archive=v2, store=tmp_path / "s", **more), lambda _: None)
    assert info.splits == {"train": 2, "val": 2, "test": 1}
    store = Store(tmp_path / "s")
    got = pixels(bigearthnet_v2, v2, MAPS)
    for i, name in enumerate(store.column("id")):
        np.testing.assert_array_equal(store.patch(i)["mask"], got[name].arrays["mask"])
    sea = info.classes.index("Marine waters")
    assert info.class_pixels["test"][sea] == int((codes_of(2) == 523).sum())


# ---- masks and places


def test_every_corine_code_becomes_its_class_or_none():
    index = nomenclature("bigearthnet-19").index
    for c in CLC:
        assert mask_of(np.full((2, 2), c.code, np.uint16), "f").tolist() == [[index.get(c.name, 255)] * 2] * 2
    assert mask_of(np.array([[0, 990, 995, 999]], np.uint16), "f").tolist() == [[255] * 4]


@pytest.mark.parametrize(
    ("tile", "crs", "corner"),
    [
        # corners as in the metadata of products of these tiles
        ("33UUP", "EPSG:32633", (300000, 5400000)),
        ("33UUU", "EPSG:32633", (300000, 5900040)),
        ("34VER", "EPSG:32634", (499980, 7100040)),
        ("22HBD", "EPSG:32722", (199980, 5900020)),
    ],
)
def test_corners_of_tiles(tile, crs, corner):
    assert tile_corner(tile) == (crs, *corner)


def test_corners_are_those_of_the_grid_for_every_square():
    """The name of each 100 km square, as synth makes it from the ground, leads back to the square's corner."""
    for zone in (29, 30, 31, 33, 34, 35, 60):
        for east in range(2, 8):
            for north in range(3, 78):
                name = mgrs_tile(zone, east * 100_000, north * 100_000)
                crs, west, top = tile_corner(name)
                assert crs == f"EPSG:{32600 + zone}"
                assert 0 <= east * 100_000 - west < 60 and 0 <= top - (north + 1) * 100_000 < 60, name


# ---- the real ones


@pytest.mark.needs("shared")
def test_real_v1_corners_follow_from_tile_and_name():
    """29 patches of 7 tiles in 4 zones: what v2's planning relies on."""
    seen = set()
    for path in (SHARED / "bigearthnet-v1").glob("*/*.json"):
        try:
            meta = json.loads(path.read_text())
        except ValueError:
            continue
        tile = next(p[1:] for p in meta["tile_source"].split("_") if len(p) == 6 and p[0] == "T" and p[1:3].isdigit())
        name = f"S2A_MSIL2A_20170613T101031_N9999_R022_T{tile}_" + "_".join(path.parent.name.split("_")[-2:])
        corner = (crs_name(meta["projection"]), meta["coordinates"]["ulx"], meta["coordinates"]["uly"])
        assert place(name)[:3] == corner
        seen.add(tile)
    assert len(seen) == 7


@pytest.mark.needs("shared")
def test_real_v2_patches_and_the_whole_table():
    archive = SHARED / "bigearthnet-v2"
    contents, patches, rejects, left = planned(bigearthnet_v2, archive, BigEarthNetRecipe())
    assert [p.id[-5:] for p in patches] == ["75_43", "89_18"]
    assert [p.split for p in patches] == ["val", "train"]
    assert [{contents.classes[c] for c in p.classes} for p in patches] == [
        {
            "Arable land",
            "Land principally occupied by agriculture, with significant areas of natural vegetation",
            "Pastures",
        },
        {"Coniferous forest", "Mixed forest", "Pastures"},
    ]
    assert not rejects and len(left) == 480_036
    assert len(Counter(p.reason for p in left)) == 2, "tiles that are absent, and the one that is there in part"
    got = pixels(bigearthnet_v2, archive, BigEarthNetRecipe())
    for p in patches:
        for group in contents.layout.groups:
            for k, band in enumerate(group.bands):
                with rasterio.open(archive / p.where["folder"] / f"{p.id}_{band}.tif") as f:
                    np.testing.assert_array_equal(got[p.id].arrays[group.name][k], f.read(1))


@pytest.mark.needs("shared")
def test_every_row_of_the_real_table_can_be_planned():
    """Each of the 480,038 names a place, a date, a split and at least one class."""
    archive = SHARED / "bigearthnet-v2"
    contents = bigearthnet_v2.describe(archive, BigEarthNetRecipe())
    counts = Counter()
    for row in bigearthnet_v2._rows(archive, BigEarthNetRecipe()):
        (p,) = bigearthnet_v2.plan(archive, BigEarthNetRecipe(), contents, bigearthnet_v2.Unit(row.id, row, "f"))
        assert isinstance(p, Planned), p
        counts[p.split] += 1
        counts.update(p.classes)
    assert (counts["train"], counts["val"], counts["test"]) == (237_871, 122_342, 119_825)
    assert counts[contents.classes.index("Arable land")] == 188_025
    assert counts[contents.classes.index("Beaches, dunes, sands")] == 1_316


@pytest.mark.needs("shared")
def test_the_real_reference_map_and_its_labels():
    name = f"{TILE}_26_57"
    file = f"{TILE}/{name}/{name}_reference_map.tif"
    crs, ulx, uly, date = place(name)
    patch = Planned(name, "", crs, bigearthnet.grid(ulx, uly), date, ())
    codes = bigearthnet.read_checked(SHARED / "bigearthnet-v2" / "Reference_Maps", file, patch, 10, None)
    mask = mask_of(codes, file)
    classes = nomenclature("bigearthnet-19").classes
    assert {classes[i] for i in np.unique(mask)} == {"Arable land", "Broad-leaved forest", "Mixed forest", "Pastures"}
    row = next(bigearthnet_v2._rows_of(SHARED / "bigearthnet-v2" / "metadata.parquet"))
    assert row.id == name and set(row.labels) == {classes[i] for i in np.unique(mask)}
