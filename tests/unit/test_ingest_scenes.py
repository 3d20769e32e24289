"""Scenes into patches: every pixel and every mask against a planted truth, and every kind of broken scene."""

import json
import re
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

from jeoparda.config import check
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.ingest import scenes
from jeoparda.ingest.scenes import ScenesRecipe, positions
from jeoparda.ingest.source import LeftOut, Note, Patch, Planned
from jeoparda.nomenclature import IGNORE
from jeoparda.raster import OpenRaster
from jeoparda.store import Reject
from tests.conftest import SHARED
from tests.scenes import safe

UTM = "EPSG:32722"
CORNER = (300_000.0, 7_000_000.0)
PATTERN = r"^(?P<scene>s\d+)_(?P<band>B\d)\.tif$"
plain = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write(path: Path, array: np.ndarray, pixel=10.0, crs=UTM, corner=CORNER, **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"dtype": array.dtype, "crs": crs, "transform": Affine(pixel, 0, corner[0], 0, -pixel, corner[1]), **more}
    with rasterio.open(path, "w", "GTiff", array.shape[1], array.shape[0], 1, **profile) as f:
        f.write(array, 1)


def truth(height: int, width: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Bands at 10, 10 and 20 m whose values say where they are, and classes 1 to 4 in blocks that no flip maps onto
    themselves."""
    rows, cols = np.mgrid[:height, :width]
    b1 = (rows * 300 + cols + 1 + seed).astype(np.uint16)
    b3 = (np.mgrid[: height // 2, : width // 2][0] * 7 + 2 + seed).astype(np.uint16)
    labels = (1 + (rows * 3 + cols + (rows > cols)) // 37 % 4).astype(np.uint8)
    return {"B1": b1, "B2": b1[:, ::-1] // 2 + 1, "B3": b3}, labels


def make(archive: Path, name: str, height=100, width=140, seed=0, labels=True, **more) -> tuple[dict, np.ndarray]:
    bands, classes = truth(height, width, seed)
    for band, array in bands.items():
        write(archive / f"{name}_{band}.tif", array, 20.0 if band == "B3" else 10.0, nodata=0, **more)
    if labels:
        write(archive / "labels" / f"{name}.tif", classes)
    return bands, classes


def section(**keys) -> ScenesRecipe:
    base = {
        "scene": {"kind": "folder", "pattern": PATTERN},
        "labels": {"path": "labels/{scene}.tif", "remap": {1: "soy", 2: "maize", 3: "ignore", 4: "forest"}},
        "patch_px": 32,
    }
    return check(ScenesRecipe, base | keys)


def planned(archive: Path, r: ScenesRecipe):
    contents = scenes.describe(archive, r)
    found = [p for u in scenes.units(archive, r, contents) for p in scenes.plan(archive, r, contents, u)]
    return contents, found


def ingest(archive: Path, r: ScenesRecipe):
    """(contents, patches planned, what was read of each, rejects of the plan, reasons for leaving out)."""
    contents, found = planned(archive, r)
    patches = [p for p in found if isinstance(p, Planned)]
    read = list(scenes.read(archive, r, contents, patches, None))
    for p in read:
        if isinstance(p, Patch):
            fields = contents.layout.fields()
            assert {n: (str(a.dtype), a.shape) for n, a in p.arrays.items()} == fields
    rejects = [p for p in found if isinstance(p, Reject)]
    return contents, patches, read, rejects, Counter(p.reason for p in found if isinstance(p, LeftOut))


# ---- pixels


def test_patches_are_what_was_planted(tmp_path):
    bands, labels = make(tmp_path, "s1")
    bands["B2"][40:50, 70:90] = 0  # no data in one band alone
    write(tmp_path / "s1_B2.tif", bands["B2"], nodata=0)
    write(tmp_path / "s2_B1.tif", bands["B1"] + 5, nodata=0)  # a second scene in the folder
    shutil.copy(tmp_path / "s1_B2.tif", tmp_path / "s2_B2.tif")
    shutil.copy(tmp_path / "s1_B3.tif", tmp_path / "s2_B3.tif")
    shutil.copy(tmp_path / "labels" / "s1.tif", tmp_path / "labels" / "s2.tif")
    contents, patches, read, rejects, left = ingest(tmp_path, section())
    assert (rejects, left) == ([], {})
    assert [g.bands for g in contents.layout.groups] == [("B1", "B2"), ("B3",)]
    assert [g.size_px for g in contents.layout.groups] == [32, 16]
    assert (contents.classes, contents.target, contents.layout.mask_px) == (("soy", "maize", "forest"), "mask", 32)
    assert len(patches) == 2 * 3 * 4 and len({p.id for p in patches}) == len(patches)
    expected = np.array([IGNORE, 0, 1, IGNORE, 2])[labels]
    expected[bands["B2"] == 0] = IGNORE
    fine, coarse = contents.layout.groups
    for p, got in zip(patches, read, strict=True):
        r, c = p.where["row"], p.where["col"]
        here = slice(r, r + 32), slice(c, c + 32)
        assert p.id == f"{p.where['scene']}_{r}_{c}" and p.source == p.where["scene"]
        assert (p.crs, p.transform) == (UTM, (10.0, 0.0, CORNER[0] + 10 * c, 0.0, -10.0, CORNER[1] - 10 * r))
        assert (got.arrays[fine.name][0] == bands["B1"][here] + (5 if p.source == "s2" else 0)).all()
        assert (got.arrays[fine.name][1] == bands["B2"][here]).all()
        assert (got.arrays[coarse.name][0] == bands["B3"][r // 2 : r // 2 + 16, c // 2 : c // 2 + 16]).all()
        assert (got.arrays["valid"] == (bands["B2"][here] > 0)).all()
        assert (got.arrays["mask"] == expected[here]).all()
        assert got.classes == tuple(sorted(set(expected[here].ravel().tolist()) - {IGNORE}))


def test_a_plan_is_json_and_any_part_of_it_reads_the_same(tmp_path):
    for i in range(3):
        make(tmp_path, f"s{i}", seed=i)
    r = section(stride_px=20)
    contents, patches, read, _, _ = ingest(tmp_path, r)
    assert patches == planned(tmp_path, r)[1]
    again = [Planned(**d | {k: tuple(d[k]) for k in ("transform", "classes", "dates")})
             for d in json.loads(json.dumps([asdict(p) for p in patches]))]  # fmt: skip
    assert again == patches
    mixed = np.random.default_rng(0).permutation(len(patches))  # a shard may begin anywhere, and hold two scenes
    for i, got in zip(mixed, scenes.read(tmp_path, r, contents, [patches[i] for i in mixed], None), strict=True):
        assert got.classes == read[i].classes
        assert all((got.arrays[n] == a).all() for n, a in read[i].arrays.items())


def test_patches_come_block_by_block(tmp_path):
    write(tmp_path / "s1_B1.tif", np.ones((2200, 1300), np.uint8))
    _, found = planned(tmp_path, section(labels={}, patch_px=256, min_valid=0))
    places = [(p.where["row"], p.where["col"]) for p in found if isinstance(p, Planned)]
    assert len(places) == 8 * 5
    assert places == sorted(places, key=lambda p: (p[0] // 1024, p[1] // 1024, *p))
    assert places[16:18] == [(0, 1024), (256, 1024)] and places[20] == (1024, 0)


@pytest.mark.parametrize(
    ("length", "size", "stride", "edge", "step", "expected"),
    [
        (100, 32, 32, "drop", 1, [0, 32, 64]),
        (100, 32, 32, "shift", 1, [0, 32, 64, 68]),
        (96, 32, 32, "shift", 1, [0, 32, 64]),
        (101, 30, 30, "shift", 6, [0, 30, 60, 66]),  # 71 is no whole coarse pixel
        (100, 32, 20, "drop", 2, [0, 20, 40, 60]),
        (31, 32, 32, "shift", 1, []),
    ],
)
def test_positions(length, size, stride, edge, step, expected):
    assert positions(length, size, stride, edge, step) == expected


def test_the_last_row_and_column_may_be_moved_inwards(tmp_path):
    bands, _ = make(tmp_path, "s1")
    _, patches, read, _, _ = ingest(tmp_path, section(edge="shift"))
    covered = np.zeros((100, 140), bool)
    for p, got in zip(patches, read, strict=True):
        here = slice(p.where["row"], p.where["row"] + 32), slice(p.where["col"], p.where["col"] + 32)
        covered[here] = True
        assert (next(iter(got.arrays.values()))[0] == bands["B1"][here]).all()
    assert covered.all() and len(patches) == 4 * 5


# ---- labels


def test_a_label_raster_of_another_crs_and_grid_lies_right(tmp_path):
    """The mask of each patch against the label raster, looked up by pyproj."""
    import pyproj

    make(tmp_path, "s1", labels=False)
    to = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    west, north = to.transform(CORNER[0] + 300, CORNER[1] - 200)
    px = 1.3e-4
    values = np.random.default_rng(2).integers(1, 5, (60, 70), np.uint8)
    write(tmp_path / "labels" / "s1.tif", values, px, "EPSG:4326", (west, north))
    _, patches, read, rejects, _ = ingest(tmp_path, section(min_labelled=0))
    assert not rejects and len(patches) == 12
    wrong = labelled = 0
    for p, got in zip(patches, read, strict=True):
        rows, cols = np.mgrid[:32, :32] + 0.5
        x, y = to.transform(p.transform[2] + 10 * cols, p.transform[5] - 10 * rows)
        col, row = np.floor((x - west) / px).astype(int), np.floor((north - y) / px).astype(int)
        inside = (col >= 0) & (col < 70) & (row >= 0) & (row < 60)
        expected = np.full((32, 32), IGNORE)
        expected[inside] = np.array([IGNORE, 0, 1, IGNORE, 2])[values[row[inside], col[inside]]]
        wrong += (got.arrays["mask"] != expected).sum()
        labelled += inside.sum()
    assert labelled > 3000 and wrong <= 3  # of 12,288: a centre may lie on an edge to within 1e-4 px


def test_polygons_as_labels(tmp_path):
    make(tmp_path, "s1", labels=False)
    # in px (col, row): a triangle across four patches; and later, over a part of it, a rectangle
    field = [(10.2, 5.1), (60.7, 5.1), (10.2, 55.6)]
    house = [(20.0, 10.0), (26.0, 10.0), (26.0, 12.0), (20.0, 12.0)]
    ground = [[(CORNER[0] + 10 * c, CORNER[1] - 10 * r) for c, r in shape] for shape in (field, house)]
    pyogrio.raw.write(
        tmp_path / "all.gpkg",
        shapely.to_wkb(np.array([shapely.Polygon(g) for g in ground])),
        [np.array(["field", "house"])],
        ["use"],
        geometry_type="Polygon",
        crs=UTM,
    )
    rows, cols = np.mgrid[:100, :140] + 0.5
    expected = np.zeros((100, 140), int)
    expected[(cols > 10.2) & (rows > 5.1) & (cols + rows < 10.2 + 55.6)] = 1
    expected[(cols > 20) & (cols < 26) & (rows > 10) & (rows < 12)] = 2
    r = section(
        labels={"path": "all.gpkg", "attribute": "use", "background": "open", "classes": ["open", "field", "house"]}
    )
    contents, patches, read, _, _ = ingest(tmp_path, r)
    assert contents.classes == ("open", "field", "house") and len(patches) == 12
    for p, got in zip(patches, read, strict=True):
        here = slice(p.where["row"], p.where["row"] + 32), slice(p.where["col"], p.where["col"] + 32)
        assert (got.arrays["mask"] == expected[here]).all()
        assert p.classes == got.classes == tuple(np.unique(expected[here]))


def test_scenes_without_labels_make_a_store_without_masks_and_classes(tmp_path):
    make(tmp_path, "s1", labels=False)
    contents, patches, read, _, _ = ingest(tmp_path, section(labels={}))
    assert (contents.classes, contents.colors, contents.layout.mask_px) == ((), (), 0)
    assert len(patches) == 12 and all(p.classes == () and "mask" not in p.arrays for p in read)


# ---- what is wanted


def test_patches_below_the_limits_are_left_out(tmp_path):
    bands, labels = make(tmp_path, "s1")
    bands["B1"][:32, :32][np.tril_indices(32)] = 0  # 528 of 1024 px without data
    bands["B1"][:32, 32:48] = 0  # half
    write(tmp_path / "s1_B1.tif", bands["B1"], nodata=0)
    labels[32:64, :64] = 3  # ignored
    labels[32, 32:63] = 1  # 31 px: 0.0303
    write(tmp_path / "labels" / "s1.tif", labels)
    _, patches, read, rejects, left = ingest(tmp_path, section(min_valid=0.5, min_labelled=0.03, survey="all"))
    places = [(p.where["row"], p.where["col"]) for p in patches]
    assert (0, 0) not in places and (0, 32) in places  # 0.484 and 0.5
    assert (32, 0) not in places and (32, 32) in places
    assert left == {"less than 0.5 of it is valid": 1, "less than 0.03 of it is labelled": 1}
    assert len(patches) == len(read) == 10 and not rejects


def test_what_only_another_band_lacks_is_seen_when_it_is_read(tmp_path):
    bands, _ = make(tmp_path, "s1")
    bands["B2"][:32, :18] = 0  # the plan asks the coarsest band, B3
    bands["B3"][16:32, :9] = 0
    write(tmp_path / "s1_B2.tif", bands["B2"], nodata=0)
    write(tmp_path / "s1_B3.tif", bands["B3"], 20.0, nodata=0)
    _, patches, read, _, left = ingest(tmp_path, section())
    assert left == {"less than 0.5 of it is valid": 1}
    assert patches[0].id == "s1_0_0" and "s1_32_0" not in {p.id for p in patches}
    assert read[0] == Reject(
        "s1_0_0",
        "s1",
        "0.4375 of it is valid, all bands looked at",
        "at least min_valid = 0.5",
        fault=False,
    )
    assert all(isinstance(p, Patch) for p in read[1:])
    _, patches, again, _, left = ingest(tmp_path, section(survey="all"))
    assert [p.id for p in patches] == [f"s1_{r}_{c}" for r in (0, 32, 64) for c in (0, 32, 64, 96) if c or r == 64]
    assert left == {"less than 0.5 of it is valid": 2}
    assert all((a.arrays["mask"] == b.arrays["mask"]).all() for a, b in zip(read[1:], again, strict=True))


def test_balance_keeps_the_rare_and_thins_the_common(tmp_path):
    classes = np.full((320, 320), 4, np.uint8)  # forest, 100 patches of 32 px
    classes[::64, 5::64] = 1  # soy in 25 of them
    classes[40, :32] = 2  # and maize in one more
    make(tmp_path, "s1", 320, 320, labels=False)
    write(tmp_path / "labels" / "s1.tif", classes)
    make(tmp_path, "s2", 320, 320, labels=False)  # forest alone
    write(tmp_path / "labels" / "s2.tif", np.full_like(classes, 4))
    _, every = planned(tmp_path, section())
    shows_rare = {p.id for p in every if set(p.classes) & {0, 1}}
    assert len(every) == 200 and len(shows_rare) == 26
    _, found = planned(tmp_path, section(balance={"ratio": 1.5}))
    kept = {p.id for p in found if isinstance(p, Planned)}
    assert shows_rare < kept and len(kept) == 26 + 39
    assert Counter(p.reason for p in found if isinstance(p, LeftOut)) == {"only common classes (balance)": 135}
    assert not [i for i in kept if i.startswith("s2")]
    _, found = planned(tmp_path, section(balance={"ratio": 0, "common": ["forest", "soy"]}))
    assert [p.classes for p in found if isinstance(p, Planned)] == [(1, 2)]
    fewer = {p.id for p in planned(tmp_path, section(balance={"ratio": 0.5}))[1] if isinstance(p, Planned)}
    assert fewer < kept  # the same hash: a lower ratio takes from the same


# ---- what is wrong


def test_each_broken_scene_is_one_reject_and_the_rest_goes_on(tmp_path):
    for i in range(10, 21):
        make(tmp_path, f"s{i}", seed=i)
    bands, labels = truth(100, 140)
    (tmp_path / "s11_B2.tif").write_bytes(b"")
    (tmp_path / "s12_B3.tif").unlink()
    write(tmp_path / "s13_B2.tif", bands["B2"], crs="EPSG:32723", nodata=0)
    write(tmp_path / "s14_B2.tif", bands["B2"][:90], nodata=0)
    labels[50, 60] = 9
    write(tmp_path / "labels" / "s15.tif", labels)
    (tmp_path / "labels" / "s16.tif").unlink()
    write(tmp_path / "s17_B3.tif", bands["B3"].astype(np.float32), 20.0)
    make(tmp_path, "s18", 20, 30)
    whole = (tmp_path / "s19_B3.tif").read_bytes()
    (tmp_path / "s19_B3.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "labels" / "s20.tif").write_bytes(b"no raster")
    r = section()
    _, patches, read, rejects, _ = ingest(tmp_path, r)
    assert {p.source for p in patches} == {"s10"} and len(patches) == 12
    assert all(isinstance(p, Patch) for p in read)
    assert [x.id for x in rejects] == [f"s{i}" for i in range(11, 21)]
    told = {x.id: x for x in rejects}
    assert told["s11"].file == "s11_B2.tif" and "cannot be read as a raster" in told["s11"].reason
    assert (told["s12"].reason, told["s12"].expected) == ("lacks B3", "B1, B2, B3, as the first scene has")
    assert told["s13"].file == "s13_B2.tif" and "EPSG:32723" in told["s13"].reason
    assert told["s14"].file == "s14_B2.tif" and "the same CRS and corners" in told["s14"].expected
    assert told["s15"].file == "labels/s15.tif" and told["s15"].reason == "unknown class value '9'"
    assert told["s15"].expected.startswith("one of 1, 2, 3, 4; add it to labels.remap")
    assert (told["s16"].file, told["s16"].reason) == ("labels/s16.tif", "is missing")
    assert (told["s17"].reason, told["s17"].expected) == ("B3 in float32", "uint16, as in the first scene")
    assert str(told["s18"]) == "s18: is 20 x 30 px; expected at least one patch of 32 px"
    assert told["s19"].file == "s19_B3.tif" and "cannot be read" in told["s19"].reason
    assert told["s20"].file == "labels/s20.tif" and "cannot be read" in told["s20"].reason
    assert all(x.reason and x.expected and str(tmp_path) not in str(x) for x in rejects)


def test_a_scene_that_breaks_after_the_plan_rejects_its_own_patches(tmp_path):
    for i in (1, 2, 3, 4):
        make(tmp_path, f"s{i}", seed=i)
    r = section()
    contents, found = planned(tmp_path, r)
    (tmp_path / "s2_B2.tif").unlink()
    whole = (tmp_path / "s3_B2.tif").read_bytes()
    (tmp_path / "s3_B2.tif").write_bytes(whole[:9000])
    read = list(scenes.read(tmp_path, r, contents, found, None))
    by_scene = {s: [g for p, g in zip(found, read, strict=True) if p.source == s] for s in ("s1", "s2", "s3", "s4")}
    assert all(isinstance(g, Patch) for s in ("s1", "s4") for g in by_scene[s])
    assert all(isinstance(g, Reject) for g in by_scene["s2"])
    assert [g.id for g in by_scene["s2"]] == [p.id for p in found if p.source == "s2"]
    bad = [g for g in by_scene["s3"] if isinstance(g, Reject)]
    assert bad and all(g.file == "s3_B2.tif" and g.expected for g in bad)
    for p, g in zip(found, read, strict=True):  # and what could be read of it is right
        if p.source == "s3" and isinstance(g, Patch):
            here = slice(p.where["row"], p.where["row"] + 32), slice(p.where["col"], p.where["col"] + 32)
            assert (next(iter(g.arrays.values()))[1] == truth(100, 140, 3)[0]["B2"][here]).all()


def test_a_truncated_jp2_of_a_real_scene(tmp_path, real_scene):
    """In the plan where it is the band that the plan looks at, else when it is read."""
    shutil.copytree(real_scene, tmp_path / "a")
    shutil.copytree(real_scene, tmp_path / "b")
    shutil.copytree(real_scene, tmp_path / "c")
    for folder, band in (("b", "B01"), ("c", "B11")):
        (file,) = (tmp_path / folder).glob(f"*_{band}.jp2")
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    r = check(ScenesRecipe, {"patch_px": 120})
    _, patches, read, rejects, _ = ingest(tmp_path, r)
    assert [(x.id, Path(x.file).name) for x in rejects] == [("b", "T33UUU_20170216T102101_B01.jp2")]
    assert Counter(p.source for p in patches) == {"a": 72, "c": 72}
    bad = [g for p, g in zip(patches, read, strict=True) if p.source == "c" and isinstance(g, Reject)]
    assert bad and all(g.file.endswith("B11.jp2") for g in bad)
    assert all(isinstance(g, Patch) for p, g in zip(patches, read, strict=True) if p.source == "a")


def test_an_archive_without_a_usable_scene_says_why(tmp_path):
    for i in (1, 2):
        make(tmp_path, f"s{i}", labels=False)
    with pytest.raises(ArchiveError, match=r"none of its 2 scenes can be used; 2 of them:\nlabels/s1.tif: is missing"):
        scenes.describe(tmp_path, section())
    with pytest.raises(ArchiveError, match=r"pattern 't\*' fits none of its 2 scenes: s1, s2"):
        scenes.describe(tmp_path, section(pattern="t*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveError, match="holds no scene"):
        scenes.describe(tmp_path / "empty", section())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"stride_px": 15},
            "stride_px = 15: patches would begin between pixels of the coarser bands; take a multiple of 2 px",
        ),
        (
            {"balance": {"ratio": 1, "common": ["sea"]}},
            "balance.common: 'sea' is no class; there are soy, maize, forest",
        ),
        ({"labels": {"path": "{tile}.tif"}}, "unknown placeholder"),
    ],
)
def test_recipes_that_cannot_work_stop_at_once(tmp_path, keys, message):
    make(tmp_path, "s1")
    with pytest.raises(RecipeError, match=message):
        scenes.describe(tmp_path, section(**keys))


# ---- real archives


@pytest.mark.needs("shared")
def test_real_sentinel_2_with_polygons():
    """OpenStreetMap's water is dark in the infrared: were the mask flipped or moved, it would not be."""
    archive = SHARED / "s2-l1c-brandenburg"
    labels = {"path": "gis_osm*.gpkg", "attribute": "fclass"}
    contents, patches, read, rejects, _ = ingest(archive, check(ScenesRecipe, {"patch_px": 120, "labels": labels}))
    assert not rejects and len(patches) > 60
    assert contents.unit == "reflectance x 10000" and [g.size_px for g in contents.layout.groups] == [120, 60, 20]
    water, forest = (contents.classes.index(c) for c in ("water", "forest"))
    b08 = np.stack([p.arrays["10m"][3] for p in read])
    mask = np.stack([p.arrays["mask"] for p in read])
    assert np.median(b08[mask == water]) < 0.75 * np.median(b08[mask == forest])
    flipped = np.median(b08[mask[:, ::-1] == water])
    assert np.median(b08[mask == water]) < 0.9 * flipped

    reference = {"path": "s2l1c_ref.gpkg", "attribute": "cid", "remap": {1: "one", 2: "two"}}
    r = check(ScenesRecipe, {"patch_px": 120, "labels": reference, "min_labelled": 0.0})
    _, patches, read, rejects, _ = ingest(archive, r)
    assert not rejects and len(patches) == 72


@pytest.mark.needs("shared")
def test_real_landsat_with_labels_of_another_crs():
    archive = SHARED / "landsat7-northcarolina"
    names = ("developed", "agriculture", "herbaceous", "shrubland", "forest", "water", "sediment")
    names = dict(enumerate(names, 1))
    r = check(
        ScenesRecipe,
        {
            "scene": {"kind": "folder", "pattern": r"^lsat7_2000_(?P<band>\d\d)\.tif$"},
            "labels": {"path": "strata.tif", "remap": names},
            "patch_px": 64,
            "edge": "shift",
            "survey": "all",  # band 70 has no data in much that the others saw
        },
    )
    contents, patches, read, rejects, _ = ingest(archive, r)
    assert not rejects and contents.classes == tuple(names.values()) and contents.layout.bands[3] == "40"
    with rasterio.open(archive / "strata.tif") as f:
        strata = f.read(1)
    infrared, wrong = {}, 0
    for p, got in zip(patches, read, strict=True):
        here = slice(p.where["row"], p.where["row"] + 64), slice(p.where["col"], p.where["col"] + 64)
        mask, valid = got.arrays["mask"], got.arrays["valid"] == 1
        wrong += (mask[valid] != np.where(strata[here] > 0, strata[here] - 1, IGNORE)[valid]).sum()
        assert (mask[~valid] == IGNORE).all()
        for c in got.classes:
            infrared.setdefault(contents.classes[c], []).append(next(iter(got.arrays.values()))[3][mask == c])
    assert wrong < 0.001 * len(patches) * 64 * 64
    means = {name: np.concatenate(v).mean() for name, v in infrared.items()}
    assert min(means, key=means.__getitem__) == "water"


@pytest.mark.needs("shared")
def test_real_very_high_resolution_with_buildings():
    archive = SHARED / "vhr-segmentation"
    atlanta = {
        "pattern": "spacenet4-atlanta/*",
        "labels": {
            "path": "spacenet4-atlanta/*_{name}.geojson",
            "name": r"_(\d+_\d+)_clipped",
            "attribute": "building",
            "remap": {"yes": "building"},
            "background": "other",
        },
    }
    vegas = {
        "pattern": "spacenet-vegas*",
        "labels": {"path": "spacenet-vegas-4band/*.gpkg", "remap": {1: "building"}, "background": "other"},
    }
    for keys, bands in ((atlanta, 3), (vegas, 4)):
        contents, _, read, rejects, _ = ingest(archive, check(ScenesRecipe, {"patch_px": 128, **keys}))
        assert not rejects and contents.classes == ("other", "building")
        assert len(contents.layout.bands) >= bands and contents.unit == "digital number"
        assert any(1 in p.classes for p in read) and any(p.classes == (0,) for p in read)


@plain
@pytest.mark.needs("shared")
def test_real_planetary_images_without_crs_and_masks_in_color():
    """Rocks are yellow, (255, 255, 0), on black."""
    archive = SHARED / "mars-rocks"
    labels = {"path": "mask_{name}.png", "name": r"img_(\d+)", "remap": {"#000000": "soil", "#ffff00": "rock"}}
    r = check(ScenesRecipe, {"pattern": "img_*", "scene": {"kind": "stack"}, "labels": labels, "patch_px": 112})
    contents, patches, read, rejects, left = ingest(archive, r)
    assert not rejects and not left and len(patches) == 3 * 4 * 5
    assert contents.rgb == ("red", "green", "blue") and contents.classes == ("soil", "rock")
    for p, got in zip(patches, read, strict=True):
        row, col = p.where["row"], p.where["col"]
        with rasterio.open(archive / p.source.replace("img", "mask")) as f:
            mask = f.read(1)[row : row + 112, col : col + 112]
        with rasterio.open(archive / p.source) as f:
            image = f.read()[:, row : row + 112, col : col + 112]
        assert (got.arrays["mask"] == mask // 255).all() and (got.arrays["1px"] == image).all()
        assert p.crs == "" and p.transform == (1.0, 0.0, float(col), 0.0, 1.0, float(row))


# ---- names, labels among the scenes, notes


def test_scenes_of_the_same_name_in_two_folders_have_ids_and_labels_of_their_own(tmp_path):
    for n, year in enumerate(("2018", "2019"), 1):
        write(tmp_path / year / "tile_01.tif", np.full((40, 40), 10 * n, np.uint8))
        write(tmp_path / "labels" / year / "tile_01.tif", np.full((40, 40), n, np.uint8))
    labels = {"path": "labels/{path}.tif", "classes": ["1", "2"]}
    contents, patches, read, rejects, _ = ingest(tmp_path, check(ScenesRecipe, {"labels": labels, "patch_px": 32}))
    assert not rejects
    assert [p.id for p in patches] == ["2018/tile_01.tif_0_0", "2019/tile_01.tif_0_0"]
    assert [(int(g.arrays[contents.layout.groups[0].name].max()), g.classes) for g in read] == [(10, (0,)), (20, (1,))]


@pytest.mark.parametrize("where", ["a_labels/{scene}.tif", "{scene}_mask.tif", "a_labels/m_{name}.tif"])
def test_labels_are_not_taken_for_scenes(tmp_path, where):
    stack = np.ones((40, 40), np.uint8)
    for n in (1, 2):
        write(tmp_path / f"tile{n}.tif", stack * n)
        path = where.format(scene=f"tile{n}", name=str(n))
        write(tmp_path / path, stack)
    labels = {"path": where, "name": r"tile(\d)", "classes": ["1"]}
    r = check(ScenesRecipe, {"scene": {"kind": "stack"}, "labels": labels, "patch_px": 32})
    assert list(scenes.units(tmp_path, r, scenes.describe(tmp_path, r))) == ["tile1.tif", "tile2.tif"]
    _, patches, _, rejects, _ = ingest(tmp_path, r)
    assert len(patches) == 2 and not rejects


def test_what_was_assumed_of_a_scene_is_a_note(tmp_path):
    folder, _ = safe(tmp_path, "L2A")
    r = check(ScenesRecipe, {"patch_px": 60})
    assert [p for p in planned(tmp_path, r)[1] if isinstance(p, Note)] == []
    for file in folder.rglob("*_SCL_*"):
        file.unlink()
    meta = folder / "MTD_MSIL2A.xml"
    meta.write_text(re.sub(r"<IMAGE_FILE>[^<]*SCL[^<]*</IMAGE_FILE>", "", meta.read_text()))
    notes = [p.text for p in planned(tmp_path, r)[1] if isinstance(p, Note)]
    assert notes == ["Sentinel-2 L2A without a scene classification: clouds are not masked."]


def test_the_plan_decodes_the_coarsest_band_alone(tmp_path, monkeypatch):
    make(tmp_path, "s1")
    asked = []
    whole = OpenRaster.read
    monkeypatch.setattr(OpenRaster, "read", lambda self, *a: asked.append(self._path_name()) or whole(self, *a))
    monkeypatch.setattr(OpenRaster, "_path_name", lambda self: Path(self._file.name).name, raising=False)
    planned(tmp_path, section(labels={}))
    assert set(asked) == {"s1_B3.tif"}


def test_other_bands_are_named(tmp_path):
    make(tmp_path, "s1")
    make(tmp_path, "s2")
    shutil.copy(tmp_path / "s2_B1.tif", tmp_path / "s2_B4.tif")
    _, _, _, rejects, _ = ingest(tmp_path, section())
    assert [(x.id, x.reason, x.expected) for x in rejects] == [
        ("s2", "has B4 too", "B1, B2, B3, as the first scene has")
    ]
