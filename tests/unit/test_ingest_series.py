"""Series: planted values say which image, row and column a pixel came from."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jeoparda.config import check
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.ingest import dates as when
from jeoparda.ingest import places, series
from jeoparda.ingest.series import SeriesRecipe
from jeoparda.ingest.source import LeftOut, Note, Patch, Planned
from jeoparda.raster import write_band
from jeoparda.store import Reject
from tests.conftest import SHARED

CRS = "EPSG:32633"
HERE = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
THERE = (10.0, 0.0, 620_000.0, 0.0, -10.0, 5_000_000.0)
ROWS, COLS = 20, 30
DAYS = ("2018-01-05", "2018-01-25", "2018-02-14", "2018-03-06", "2018-03-26")
PATTERN = r"(?P<scene>[a-z]+)_(?P<band>B\d+)_(?P<date>\d{8})"


def image(number: int, band: int, rows: int = ROWS, cols: int = COLS) -> np.ndarray:
    """Value = 7000 * image + 3500 * band + 100 * row + col + 1, none of them 0."""
    return (7_000 * number + 3_500 * band + np.add.outer(100 * np.arange(rows), np.arange(cols)) + 1).astype("uint16")


def numbers(found: np.ndarray) -> np.ndarray:
    """The image numbers that a field's pixels say."""
    return (found.astype(int) - 1) // 7_000


def plant(archive, days=DAYS, transform=HERE, scene="a", first=0):
    """Two bands a date; nodata is 0."""
    archive.mkdir(exist_ok=True)
    for n, day in enumerate(days, first):
        for band in (0, 1):
            path = archive / f"{scene}_B{band}_{day.replace('-', '')}.tif"
            write_band(path, image(n, band), CRS, transform)


def cloud(archive, number: int, rows: slice, cols: slice):
    """Nodata in band 0 and band 1 of an image."""
    for band in (0, 1):
        path = archive / f"a_B{band}_{DAYS[number].replace('-', '')}.tif"
        pixels = image(number, band)
        pixels[rows, cols] = 0
        write_band(path, pixels, CRS, HERE)


def section(**more) -> SeriesRecipe:
    given = {"scene": {"kind": "folder", "pattern": PATTERN, "nodata": 0}, "patch_px": 10}
    return check(SeriesRecipe, given | more)


def everything(archive, s):
    """(contents, plan of all units)."""
    contents = series.describe(archive, s)
    units = list(series.units(archive, s, contents))
    return contents, [p for u in units for p in series.plan(archive, s, contents, u)]


def made(archive, s):
    """(contents, [(planned, patch or reject)], what was not planned)"""
    contents, found = everything(archive, s)
    planned = [p for p in found if isinstance(p, Planned)]
    got = list(series.read(archive, s, contents, planned, None))
    for g in got:
        if isinstance(g, Patch):
            fields = {k: (str(v.dtype), v.shape) for k, v in g.arrays.items()}
            assert fields == contents.layout.fields()
    return contents, list(zip(planned, got, strict=True)), [p for p in found if not isinstance(p, Planned | Note)]


# ---- axes


def test_every_pixel_says_its_date_band_row_and_column(tmp_path):
    plant(tmp_path)
    contents, found, rest = made(tmp_path, section())
    assert contents.layout.fields() == {"10m": ("uint16", (5, 2, 10, 10)), "valid": ("uint8", (5, 10, 10))}
    assert contents.target == "series"
    assert rest == []
    assert len(found) == 2 * 3
    for p, got in found:
        row, col = p.where["window"][:2]
        assert p.transform == (10, 0, HERE[2] + 10 * col, 0, -10, HERE[5] - 10 * row)
        assert p.dates == DAYS
        assert p.date == DAYS[0]
        for t in range(5):
            for b in (0, 1):
                assert np.array_equal(got.arrays["10m"][t, b], image(t, b)[row : row + 10, col : col + 10])
        assert got.arrays["valid"].all()
    assert len({p.id for p, _ in found}) == 6
    assert {json.dumps(p.where) for p, _ in found}  # JSON types all through


def test_overlapping_patches_and_any_order_of_reading(tmp_path, monkeypatch):
    plant(tmp_path)
    s = section(stride_px=5, patch_px=10)
    contents, found = everything(tmp_path, s)
    assert len(found) == 3 * 5
    together = list(series.read(tmp_path, s, contents, found, None))
    monkeypatch.setattr(series, "_TOGETHER", 1)  # one patch at a time
    alone = list(series.read(tmp_path, s, contents, found[::-1], None))[::-1]
    for a, b in zip(together, alone, strict=True):
        assert all(np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays)


def test_a_scene_is_opened_once_for_patches_that_are_read_together(tmp_path, monkeypatch):
    plant(tmp_path)
    s = section()
    contents, found = everything(tmp_path, s)
    opened = []
    real = places.open_scene
    monkeypatch.setattr(places, "open_scene", lambda path, *a: opened.append(path) or real(path, *a))
    list(series.read(tmp_path, s, contents, found, None))
    assert len(opened) == len(set(opened)) == len(DAYS)


def test_places_are_kept_apart_and_a_shorter_one_ends_in_gaps(tmp_path):
    plant(tmp_path)
    plant(tmp_path, DAYS[1:3], THERE, "b", first=6)
    contents, found, rest = made(tmp_path, section())
    assert contents.layout.dates == 5
    assert rest == []
    west = [(p, g) for p, g in found if p.source.startswith("32633_620000")]
    assert len(west) == 6
    for p, got in west:
        assert p.dates == (*DAYS[1:3], "", "", "")
        assert [set(np.unique(numbers(got.arrays["10m"][t]))) for t in (0, 1)] == [{6}, {7}]
        assert not got.arrays["10m"][2:].any()
        assert not got.arrays["valid"][2:].any()
        assert got.arrays["valid"][:2].all()


# ---- which dates


def test_steps_take_the_nearest_clear_image_and_leave_gaps(tmp_path):
    plant(tmp_path)
    cloud(tmp_path, 2, slice(0, 10), slice(0, 10))  # DAYS[2] is cloudy over the first patch only
    s = section(dates={"by": "step", "count": 4, "step_days": 40, "start": "2018-01-20"}, min_valid=0.5)
    _, found, _ = made(tmp_path, s)
    assert len(found) == 6
    by_place = {tuple(p.where["window"][:2]): (p, g) for p, g in found}
    # 01-20, 03-01, 04-10, 05-20; half a step is 20 days
    p, got = by_place[10, 10]
    assert p.dates == ("2018-01-25", "2018-03-06", "2018-03-26", "")
    assert [numbers(got.arrays["10m"][t, 0]).max() for t in range(3)] == [1, 3, 4]
    assert not got.arrays["valid"][3].any()
    s = section(dates={"by": "step", "count": 2, "step_days": 20, "start": "2018-02-16"}, min_valid=0.5)
    _, found, _ = made(tmp_path, s)
    assert [p.dates for p, _ in found if p.where["window"][:2] == [0, 0]] == [("", "2018-03-06")]
    assert [p.dates for p, _ in found if p.where["window"][:2] == [0, 10]] == [("2018-02-14", "2018-03-06")]


def test_windows_slide_over_clear_images(tmp_path):
    plant(tmp_path)
    cloud(tmp_path, 1, slice(0, 20), slice(0, 30))
    s = section(dates={"by": "window", "count": 3, "stride": 1}, min_valid=0.5, patch_px=20, stride_px=10)
    _, found, _ = made(tmp_path, s)
    assert len(found) == 2 * 2
    for p, got in found:
        first = p.dates[0]
        want = {DAYS[0]: [0, 2, 3], DAYS[2]: [2, 3, 4]}[first]
        assert p.dates == tuple(DAYS[i] for i in want)
        assert [int(numbers(got.arrays["10m"][t, 0]).max()) for t in range(3)] == want
        assert p.id.endswith(first)


def test_too_few_images_leave_a_patch_out(tmp_path):
    plant(tmp_path)
    for n in range(4):
        cloud(tmp_path, n, slice(0, 10), slice(0, 10))
    _, found, rest = made(tmp_path, section(min_dates=2, min_valid=0.5))
    assert len(found) == 5
    assert [type(r) for r in rest] == [LeftOut]
    assert "fewer than 2 images" in rest[0].reason
    _, _, rest = made(tmp_path, section(dates={"by": "window", "count": 2}, min_valid=0.5))
    assert "fewer than 2 images" in rest[0].reason


def test_selection_of_dates_alone():
    assert when.every([True, False, True], 4) == [[0, None, 2, None]]
    assert when.windows([True, True, False, True, True], 2, 2) == [[0, 1], [3, 4]]
    days = ["2020-01-01", "2020-01-09", "2020-01-11", "2020-01-16"]
    # the earlier of two equally near; half a step before belongs, half a step after does not
    assert when.stepped(days, [True] * 4, "2020-01-10", 12, 2) == [[1, 3]]
    assert when.stepped(days, [True, False, False, True], "2020-01-10", 12, 1) == [[None]]
    assert when.days_apart("2020-02-28T23:59:00", "2020-03-01") == 2


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("map_2018-02-14.tif", "2018-02-14"),
        ("T33UUU_20170216T102101_B04.jp2", "2017-02-16"),
        ("lc_2018_12_31_v2.gpkg", "2018-12-31"),
        ("x_20181331.tif", ""),
        ("x_20180231_20180301.tif", "2018-03-01"),
        ("732701_3729639.tif", ""),
    ],
)
def test_dates_in_names(name, day):
    assert when.date_in(name) == day


# ---- validity and labels


def test_clouds_land_in_valid_and_take_the_labels_away(tmp_path):
    plant(tmp_path / "x")
    cloud(tmp_path / "x", 3, slice(2, 5), slice(11, 17))
    labels = np.add.outer(np.zeros(ROWS, int), np.arange(COLS) // 10).astype("uint8")  # a class a column of patches
    write_band(tmp_path / "map.tif", labels, CRS, HERE)
    s = section(labels={"path": "../map.tif", "classes": ["a", "b", "c"], "unlisted": "keep"})
    contents, found, _ = made(tmp_path / "x", s)
    assert contents.classes == ("a", "b", "c")
    assert contents.layout.mask_px == 10
    assert len(found) == 6
    for p, got in found:
        row, col = p.where["window"][:2]
        clear = np.ones((5, 10, 10), bool)
        if (row, col) == (0, 10):
            clear[3, 2:5, 1:7] = False
        assert np.array_equal(got.arrays["valid"] > 0, clear)
        assert np.array_equal(got.arrays["mask"], np.where(clear, col // 10, 255))
        assert p.classes == got.classes == (col // 10,)


def test_dated_labels_serve_images_near_them_only(tmp_path):
    plant(tmp_path)
    (tmp_path / "labels").mkdir()
    truth = {}
    for n, day in enumerate(("2018-01-22", "2018-01-30", "2018-03-21")):  # 3 and 5 days from image 1, 5 from image 4
        truth[day] = ((np.add.outer(np.arange(ROWS), np.arange(COLS)) + n) % 3).astype("uint8")
        write_band(tmp_path / "labels" / f"map_{day}.tif", truth[day], CRS, HERE)
    s = section(labels={"path": "labels/map_{date}.tif", "classes": ["a", "b", "c"], "unlisted": "keep"}, max_days=5)
    _, found, rest = made(tmp_path, s)
    assert rest == []
    assert len(found) == 6
    for p, got in found:
        row, col = p.where["window"][:2]
        part = np.s_[row : row + 10, col : col + 10]
        assert np.array_equal(got.arrays["mask"][1], truth["2018-01-22"][part])
        assert np.array_equal(got.arrays["mask"][4], truth["2018-03-21"][part])
        assert (got.arrays["mask"][[0, 2, 3]] == 255).all()
        assert p.classes == (0, 1, 2)
    _, found, _ = made(tmp_path, replace(s, max_days=4))
    assert all((g.arrays["mask"][4] == 255).all() for _, g in found)


def test_masks_finer_than_the_images(tmp_path):
    plant(tmp_path / "x")
    cloud(tmp_path / "x", 0, slice(0, 1), slice(3, 4))
    labels = (np.add.outer(2 * np.arange(ROWS * 2), np.arange(COLS * 2)) % 5).astype("uint8")
    write_band(tmp_path / "fine.tif", labels, CRS, (5.0, 0.0, HERE[2], 0.0, -5.0, HERE[5]))
    s = section(labels={"path": "../fine.tif", "classes": list("abcde"), "unlisted": "keep"}, mask_factor=2)
    contents, found, _ = made(tmp_path / "x", s)
    assert contents.layout.mask_px == 20
    assert len(found) == 6
    for p, got in found:
        row, col = (2 * v for v in p.where["window"][:2])
        want = np.repeat(labels[None, row : row + 20, col : col + 20], 5, 0)
        if (row, col) == (0, 0):
            want[0, :2, 6:8] = 255
        assert np.array_equal(got.arrays["mask"], want)


# ---- what goes wrong


def test_faults_are_rejects_and_nothing_else_is_lost(tmp_path):
    plant(tmp_path)
    write_band(tmp_path / "a_B0_20180420.tif", image(8, 0), CRS, HERE)  # no B1
    (tmp_path / "a_B0_20180510.tif").write_bytes(b"not a raster")
    (tmp_path / "a_B1_20180510.tif").write_bytes(b"")
    for band in (0, 1):  # another type
        write_band(tmp_path / f"a_B{band}_20180601.tif", image(8, band).astype("float32"), CRS, HERE)
    contents, found, rest = made(tmp_path, section(scene={"kind": "folder", "pattern": PATTERN, "bands": ["B0", "B1"]}))
    assert contents.layout.dates == 5
    assert len(found) == 6
    assert [r.id for r in rest] == ["a_2018-04-20", "a_2018-05-10", "a_2018-06-01"]
    assert all(isinstance(r, Reject) and r.reason and str(tmp_path) not in str(r) for r in rest)
    assert "float32" in rest[2].reason
    assert "uint16" in rest[2].expected


def test_an_image_that_cannot_be_read_is_a_gap_where_planning_sees_it(tmp_path):
    plant(tmp_path)
    path = tmp_path / "a_B0_20180125.tif"
    path.write_bytes(path.read_bytes()[:600])  # its header is whole
    _, found, rest = made(tmp_path, section(min_valid=0.1))
    assert len(found) == 6
    assert all(p.dates == (DAYS[0], "", *DAYS[2:]) for p, _ in found)
    assert len(rest) == 1
    assert rest[0].id == "a_2018-01-25"
    plant(tmp_path)
    path = tmp_path / "a_B1_20180125.tif"  # planning asks B0: the patches are lost, each with its reason
    path.write_bytes(path.read_bytes()[:600])
    _, found, rest = made(tmp_path, section(min_valid=0))
    assert rest == []
    assert all(isinstance(g, Reject) and "a_B1_20180125.tif" in str(g) for _, g in found)


def test_an_empty_image_is_a_gap_whatever_min_valid_says(tmp_path):
    plant(tmp_path)
    cloud(tmp_path, 1, slice(0, 10), slice(None))
    _, found, _ = made(tmp_path, section(min_valid=0))
    assert {p.where["window"][0]: p.dates[1] for p, _ in found} == {0: "", 10: DAYS[1]}
    pixels = image(1, 1)
    pixels[10:, :10] = 0
    write_band(tmp_path / "a_B1_20180125.tif", pixels, CRS, HERE)  # in a band that the plan does not ask
    got = {p.id.split("_", 2)[2]: g for p, g in made(tmp_path, section(min_valid=0))[1]}
    lost = [g for g in got.values() if isinstance(g, Reject)]
    assert [(g.reason, g.fault) for g in lost] == [("none of it is valid on 2018-01-25, all bands looked at", False)]


def test_two_images_of_a_place_and_date_have_patches_of_their_own(tmp_path):
    plant(tmp_path, DAYS[:2])
    plant(tmp_path, DAYS[1:2], scene="b", first=2)
    _, found, _ = made(tmp_path, section(dates={"by": "window", "count": 1}))
    assert len({p.id for p, _ in found}) == len(found) == 18
    assert [p.id.split("_r0_c0_")[1] for p, _ in found[:3]] == ["2018-01-05", "2018-01-25", "2018-01-25_2"]
    assert [int(numbers(g.arrays["10m"])[0, 0, 0, 0]) for _, g in found[:3]] == [0, 1, 2]


def test_labels_by_scene_and_star_and_date(tmp_path):
    plant(tmp_path / "x", DAYS[:2])
    plant(tmp_path / "x", DAYS[:2], scene="b", first=2)
    scenes = sorted({s[3] for s in planted_place(tmp_path / "x").seen})
    for n, scene in enumerate(scenes):
        classes = np.full((ROWS, COLS), n, "uint8")
        write_band(tmp_path / f"m_{scene}_v1.tif", classes, CRS, HERE)
        write_band(tmp_path / f"d_{scene}_on_20180110.tif", classes, CRS, HERE)
    for path in ("../m_{scene}_*.tif", "../d_{scene}_on_{date}.tif"):
        labels = {"path": path, "classes": ["0", "1", "2", "3"]}
        _, found, rest = made(tmp_path / "x", section(labels=labels, max_days=30))
        assert rest == [] and len(found) == 6
        for p, got in found:
            names = [name for _, _, _, name in planted_place(tmp_path / "x").seen]
            assert [int(m.max()) for m in got.arrays["mask"]] == [scenes.index(n) for n in names], p.id


def planted_place(archive):
    s = section()
    return next(iter(series.units(archive, s, series.describe(archive, s))))


def test_scenes_without_a_date_name_the_remedy(tmp_path):
    for n in (0, 1):
        write_band(tmp_path / f"a{n}_B0.tif", image(n, 0), CRS, HERE)
    undated = {"kind": "folder", "pattern": r"(?P<scene>[a-z]\d)_(?P<band>B\d+)", "nodata": 0}
    with pytest.raises(
        ArchiveError, match=r"2 scenes opened, none has a date; expected .*scene.pattern with \(\?P<date>"
    ):
        series.describe(tmp_path, section(scene=undated))


def test_a_label_of_unknown_class_costs_the_patches_that_it_is_in(tmp_path):
    plant(tmp_path / "x")
    labels = np.zeros((ROWS, COLS), "uint8")
    labels[15, 25] = 9
    write_band(tmp_path / "map.tif", labels, CRS, HERE)
    _, found, rest = made(tmp_path / "x", section(labels={"path": "../map.tif", "classes": ["0", "b"]}))
    assert len(found) == 5
    assert len(rest) == 1
    assert "'9'" in rest[0].reason
    assert "r10_c20" in rest[0].id


def test_patches_begin_on_whole_coarse_pixels(tmp_path):
    write_band(tmp_path / "a_B0_20180105.tif", image(0, 0), CRS, HERE)
    coarse = image(1, 0, ROWS // 2, COLS // 2)
    write_band(tmp_path / "a_B1_20180105.tif", coarse, CRS, (20.0, *HERE[1:4], -20.0, HERE[5]))
    with pytest.raises(RecipeError, match="stride_px = 5: take a multiple of 2"):
        series.describe(tmp_path, section(stride_px=5))
    _, found, _ = made(tmp_path, section(stride_px=4))
    for p, got in found:
        row, col = (v // 2 for v in p.where["window"][:2])
        assert np.array_equal(got.arrays["20m"][0, 0], coarse[row : row + 5, col : col + 5])
    assert len(found) == 3 * 6


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"dates": {"by": "step", "start": "tomorrow"}}, RecipeError, "dates.start = 'tomorrow'"),
        ({"scene": {"kind": "safe"}}, ArchiveError, "no scene of kind safe"),
        ({"kind": "eopatch", "eopatch": {"data": ["NDVI"]}}, ArchiveError, "no EOPatch"),
        ({"labels": {"path": "no_{date}.tif", "classes": ["a"]}}, ArchiveError, "no label file matches"),
    ],
)
def test_errors_say_what_to_do(tmp_path, more, error, says):
    plant(tmp_path)
    with pytest.raises(error, match=says):
        series.describe(tmp_path, section(**more))


# ---- eo-learn


def plant_eopatch(folder, dates=4):
    (folder / "data").mkdir(parents=True)
    (folder / "mask").mkdir()
    (folder / "mask_timeless").mkdir()
    (folder / "timestamps.json").write_text(json.dumps([f"2020-0{1 + t}-11T10:00:00" for t in range(dates)]))
    ring = [[500_000, 5_000_000], [500_000, 5_000_200], [500_300, 5_000_200], [500_300, 5_000_000]]
    box = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}, "coordinates": [ring]}
    (folder / "bbox.geojson").write_text(json.dumps(box))
    bands = np.stack([np.stack([image(t, b) for b in (0, 1)], -1) for t in range(dates)]).astype("float32")
    bands[1, 3, 4, 1] = np.nan
    np.save(folder / "data" / "BANDS.npy", bands)
    cloudy = np.zeros((dates, ROWS, COLS, 1), bool)
    cloudy[2, 0:5, 10:20] = True
    np.save(folder / "mask" / "CLM.npy", cloudy)
    np.save(
        folder / "mask_timeless" / "LULC.npy", np.tile(np.arange(COLS) // 10, (ROWS, 1))[..., None].astype("uint16")
    )
    return bands, cloudy


def test_eopatches(tmp_path):
    bands, cloudy = plant_eopatch(tmp_path / "one")
    more = {
        "kind": "eopatch",
        "eopatch": {"data": ["BANDS"], "valid": ["!CLM"], "labels": "LULC"},
        "labels": {"remap": {"0": "ignore", "1": "forest", "2": "water"}},
    }
    contents, found, rest = made(tmp_path, section(**more))
    assert contents.layout.fields()["10m"] == ("float32", (4, 2, 10, 10))
    assert contents.layout.bands == ("BANDS_1", "BANDS_2")
    assert contents.classes == ("forest", "water")
    assert rest == []
    assert len(found) == 6
    for p, got in found:
        row, col = p.where["window"][:2]
        assert p.crs == CRS
        assert p.transform == (10, 0, 500_000 + 10 * col, 0, -10, 5_000_200 - 10 * row)
        part = np.s_[:, row : row + 10, col : col + 10]
        want = np.moveaxis(np.nan_to_num(bands[part]), 3, 1)
        assert np.array_equal(got.arrays["10m"], want)
        good = np.isfinite(bands[part]).all(3) & ~cloudy[part][..., 0]
        assert np.array_equal(got.arrays["valid"] > 0, good)
        assert np.array_equal(got.arrays["mask"], np.where(good, 255 if col == 0 else col // 10 - 1, 255))


def test_a_broken_eopatch_is_a_reject(tmp_path):
    plant_eopatch(tmp_path / "one")
    plant_eopatch(tmp_path / "two")
    np.save(tmp_path / "two" / "mask" / "CLM.npy", np.zeros((3, ROWS, COLS, 1), bool))
    plant_eopatch(tmp_path / "zoo")
    (tmp_path / "zoo" / "data" / "BANDS.npy").write_bytes(b"\x93NUMPY")
    more = {"kind": "eopatch", "eopatch": {"data": ["BANDS"], "valid": ["!CLM"]}}
    _, found, rest = made(tmp_path, section(**more))
    assert len(found) == 6
    assert [(r.id, r.file) for r in rest] == [("two", "two/mask/CLM.npy"), ("zoo", "zoo/data/BANDS.npy")]
    assert "(4, 20, 30, ...)" in rest[0].expected


# ---- real data


@pytest.mark.needs("shared")
def test_cbers_series():
    archive = SHARED / "cbers4-awfi"
    s = check(SeriesRecipe, {"patch_px": 25})
    contents, found, rest = made(archive, s)
    assert (contents.sensor, contents.layout.dates, contents.layout.bands) == (
        "cbers-4-awfi", 24, ("B13", "B14", "B15", "B16"))  # fmt: skip
    assert len(found) == 4
    assert rest == []
    assert found[0][0].dates[0] == "2017-08-29"
    assert found[0][0].dates[-1] == "2018-08-29"
    import rasterio

    with rasterio.open(archive / "CBERS-4_AWFI_022024_CMASK_2018-04-07.tif") as f:
        mask = f.read(1)
    with rasterio.open(archive / "CBERS-4_AWFI_022024_B15_2018-04-07.tif") as f:
        red = f.read(1)
    assert set(np.unique(mask)) == {0, 4}
    t = found[0][0].dates.index("2018-04-07")
    for p, got in found:
        row, col = p.where["window"][:2]
        part = np.s_[row : row + 25, col : col + 25]
        assert np.array_equal(got.arrays["valid"][t] > 0, mask[part] == 0) or not p.dates[t]
        if p.dates[t]:
            (name,) = [g.name for g in contents.layout.groups]
            assert np.array_equal(got.arrays[name][t, 2], red[part])


@pytest.mark.needs("shared")
def test_modis_series():
    import rasterio

    archive = SHARED / "modis-sinop"
    pattern = r"(?P<scene>TERRA_MODIS_\d+)_(?P<band>NDVI)_(?P<date>\d{4}-\d{2}-\d{2})"
    s = check(SeriesRecipe, {"patch_px": 64, "scene": {"kind": "folder", "pattern": pattern, "sensor": "modis"}})
    contents, found, rest = made(archive, s)
    assert rest == []
    assert contents.layout.dates == 12
    assert len(found) == 2 * 3
    with rasterio.open(archive / "TERRA_MODIS_012010_NDVI_2014-03-22.jp2") as f:
        ndvi = f.read(1)
    for p, got in found:
        row, col = p.where["window"][:2]
        t = p.dates.index("2014-03-22")
        assert np.array_equal(got.arrays["231.656m"][t, 0], ndvi[row : row + 64, col : col + 64])
    assert [d[5:7] for d in found[0][0].dates[:4]] == ["09", "10", "11", "12"]


@pytest.mark.needs("shared")
def test_eolearn_series():
    archive = SHARED / "eolearn-slovenia"
    remap = {"0": "ignore", "1": "cultivated", "2": "forest", "3": "grassland", "4": "shrubland", "8": "artificial"}
    s = check(
        SeriesRecipe,
        {"kind": "eopatch", "patch_px": 50, "min_valid": 0.3, "labels": {"remap": remap},
         "eopatch": {"data": ["NDVI"], "labels": "LULC"}, "dates": {"by": "step", "count": 24, "step_days": 30}},
    )  # fmt: skip
    contents, found, _ = made(archive, s)
    assert len(found) == 4
    ndvi = np.load(archive / "TestEOPatch" / "data" / "NDVI.npy")
    land = np.load(archive / "TestEOPatch" / "mask_timeless" / "LULC.npy")[..., 0]
    valid = np.load(archive / "TestEOPatch" / "mask" / "IS_VALID.npy")[..., 0]
    stamps = json.loads((archive / "TestEOPatch" / "timestamps.json").read_text())
    gaps = 0
    for p, got in found:
        row, col = p.where["window"][:2]
        part = np.s_[row : row + 50, col : col + 50]
        for t, date in enumerate(p.dates):
            if not date:
                gaps += 1
                assert not got.arrays["valid"][t].any()
                continue
            i = stamps.index(date)
            good = valid[i][part]
            assert good.mean() >= 0.3
            assert np.array_equal(got.arrays["10m"][t, 0], ndvi[i][part][..., 0])
            assert np.array_equal(got.arrays["valid"][t] > 0, good)
            forest = got.arrays["mask"][t] == contents.classes.index("forest")
            assert np.array_equal(forest, good & (land[part] == 2))
    assert 0 < gaps < 48
