"""Sentinel-2 products in ESA's layout, with known pixels and known metadata."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda.errors import SceneError
from jeoparda.raster import write_band
from jeoparda.scene import SceneRecipe, find_scenes, open_scene
from jeoparda.scene.safe import parse
from jeoparda.sensors import SENTINEL_2_L1C, SENTINEL_2_L2A
from tests.conftest import SHARED
from tests.scenes import BAND_IDS, CLASSES, at, blocks, metadata, numbers, safe


def whole(scene) -> tuple[int, int, int, int]:
    return 0, 0, scene.finest.height_px, scene.finest.width_px


@pytest.mark.parametrize("level", ["L1C", "L2A"])
@pytest.mark.parametrize(("baseline", "offset"), [("02.05", 0), ("03.01", 0), ("05.09", -1000), ("05.11", -990)])
def test_pixels_are_reflectance_by_the_products_own_numbers(tmp_path, level, baseline, offset):
    folder, pixels = safe(tmp_path, level, baseline, offset)
    (found,) = find_scenes(tmp_path)
    s = open_scene(found)
    sensor = SENTINEL_2_L1C if level == "L1C" else SENTINEL_2_L2A
    assert found == folder and set(s.bands) == set(sensor.bands) and s.sensor == sensor.name
    assert (s.level, s.date, s.unit, s.notes) == (level, "2023-06-13T10:10:31", "reflectance x 10000", ())
    with s.reader() as r:
        for i, band in enumerate(BAND_IDS):
            if band not in pixels:
                continue
            own = offset - i if offset else 0  # each band's own offset, by its number in the metadata
            expected = np.where(pixels[band] == 0, 0, np.maximum(pixels[band].astype(int) + own, 1))
            got = r.read(band, whole(s))
            assert got.dtype == np.uint16
            np.testing.assert_array_equal(got, expected)
            assert got[0, 0] == 0 and got[0, 1] == 1  # no data stays so; what was measured is never 0


def test_another_quantification_is_scaled_to_10000(tmp_path):
    folder, pixels = safe(tmp_path, "L1C", "05.09", -1000)
    (folder / "MTD_MSIL1C.xml").write_text(metadata("L1C", "05.09", dict.fromkeys(BAND_IDS, -1000), (), 5000))
    s = open_scene(folder, ("B03",))
    with s.reader() as r:
        p = pixels["B03"].astype(int)
        np.testing.assert_array_equal(r.read("B03", whole(s)), np.where(p == 0, 0, np.maximum((p - 1000) * 2, 1)))


def test_the_scene_classes_say_what_is_valid(tmp_path):
    folder, pixels = safe(tmp_path, "L2A")
    classes = blocks(CLASSES, 120, 180)
    measured = np.logical_and.reduce(
        [(p > 0).repeat(120 // len(p), 0).repeat(120 // len(p), 1) for p in pixels.values()]
    )

    def valid(**more):
        s = open_scene(folder, None, SceneRecipe(**more))
        with s.reader() as r:
            half = r.valid((0, 0, 60, 180)), r.valid((60, 0, 60, 180))
            return np.concatenate(half)

    np.testing.assert_array_equal(valid(), measured & ~np.isin(classes, (3, 8)))  # snow, 11, is valid
    np.testing.assert_array_equal(valid(invalid_scl=(11,)), measured & (classes != 11))
    np.testing.assert_array_equal(valid(invalid_scl=()), measured)


def test_a_window_may_cut_a_pixel_of_the_mask(tmp_path):
    """20 m classes under windows of an odd number of 10 m pixels; and 60 m pixels over many classes."""
    folder, _ = safe(tmp_path, "L2A")
    s = open_scene(folder, ("B02",), SceneRecipe(invalid_scl=(8,)))
    expected = (blocks(CLASSES, 120, 180) != 8)[57:66, 117:124]
    with s.reader() as r:
        np.testing.assert_array_equal(r.valid((57, 117, 9, 7)), expected)
    coarse = open_scene(folder, ("B01",), SceneRecipe(invalid_scl=(8,)))
    with coarse.reader() as r:
        np.testing.assert_array_equal(r.valid(whole(coarse))[1:], (blocks(CLASSES, 20, 30) != 8)[1:])


def test_the_finest_image_of_a_band_is_taken(tmp_path):
    folder, _ = safe(tmp_path, "L2A")  # has B02 in R10m and in R20m
    assert open_scene(folder).files["B02"].info.pixel_size == 10
    for path in folder.rglob("*_B02_10m.jp2"):
        path.unlink()
    assert open_scene(folder, ("B02", "B05")).files["B02"].info.pixel_size == 20


def test_images_inside_a_product_find_its_metadata(tmp_path):
    folder, _ = safe(tmp_path, "L1C", "05.09", -1000)
    (images,) = folder.glob("GRANULE/*/IMG_DATA")
    for inside in (images, images.parent):
        s = open_scene(inside, ("B02",))
        assert s.files["B02"].offset == -1001 and s.notes == ()


def test_a_product_without_its_metadata_is_not_guessed_at(tmp_path):
    new, _ = safe(tmp_path / "new", "L2A", "05.09", -1000)
    old, _ = safe(tmp_path / "old", "L2A", "02.05")
    for folder in (new, old):
        (folder / "MTD_MSIL2A.xml").unlink()
    with pytest.raises(SceneError, match=r"no MTD_MSIL1C.xml or MTD_MSIL2A.xml.*baseline 0509.*`offset`: -1000"):
        open_scene(new)
    s = open_scene(new, None, SceneRecipe(offset=-1000))
    assert s.files["B02"].offset == -1000 and "as the recipe says" in s.notes[0]
    s = open_scene(old)
    assert s.files["B02"].offset == 0 and "baseline 0205 in the name" in s.notes[0]
    (images,) = new.glob("GRANULE/*/IMG_DATA")
    bare = tmp_path / "bare"
    shutil.copytree(images, bare)  # only the date of the images' names is left: of 2023
    with pytest.raises(SceneError, match="with a date of 2023-06-13 its numbers may carry an offset"):
        open_scene(bare)


def test_an_incomplete_product_is_told(tmp_path):
    folder, _ = safe(tmp_path, "L2A")
    for path in folder.rglob("*_B0[38]_10m.jp2"):
        path.unlink()
    with pytest.raises(
        SceneError, match=r"no raster for band B03, B08; found B01.*lists GRANULE/.*_B03_10m.jp2 and 1 more"
    ):
        open_scene(folder)
    with pytest.raises(SceneError, match=r"no raster for band B10.*lists no image"):
        open_scene(folder, ("B10",))


def test_a_missing_scene_classification_is_told(tmp_path):
    folder, _ = safe(tmp_path, "L2A")
    next(folder.rglob("*_SCL_20m.jp2")).unlink()
    with pytest.raises(SceneError, match=r"lists the mask GRANULE/.*SCL_20m.jp2, and it is missing.*invalid_scl: \[\]"):
        open_scene(folder)
    assert open_scene(folder, None, SceneRecipe(invalid_scl=())).quality == ()


@pytest.mark.needs("shared")
def test_a_real_product_that_has_only_its_metadata():
    (folder,) = (SHARED / "safe-metadata").glob("*.SAFE")
    said = parse(folder / "MTD_MSIL2A.xml")
    assert (said.level, said.baseline, said.date) == ("L2A", "02.14", "2021-01-22T13:32:29")
    assert (said.quantification, said.offsets, len(said.images)) == (10000, {}, 35)
    with pytest.raises(
        SceneError, match=r"no raster for band B02.*found none.*MTD_MSIL2A.xml lists .*download it again"
    ):
        open_scene(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<n1:Level-1C_User_Product", "cannot be read as a product's metadata"),
        ("<a><PROCESSING_BASELINE>02.05</PROCESSING_BASELINE></a>", "says no PRODUCT_START_TIME"),
        (metadata("L1C", "05.09", {}, ()), "baseline 05.09 has no offsets"),
    ],
)
def test_metadata_that_are_damaged_are_told(tmp_path, text, why):
    folder, _ = safe(tmp_path, "L1C")
    (folder / "MTD_MSIL1C.xml").write_text(text)
    with pytest.raises(SceneError, match=f"MTD_MSIL1C.xml: {why}"):
        open_scene(folder)


def test_an_old_product_has_a_scene_a_granule(tmp_path):
    """Before December 2016: long names, many tiles in one product."""
    folder = tmp_path / "S2A_OPER_PRD_MSIL1C_PDMC_20160318T145513_R022_V20160317T101020_20160317T101020.SAFE"
    for i, tile in enumerate(("T32TQM", "T33UUU")):
        name = f"S2A_OPER_MSI_L1C_TL_SGS__20160317T152400_A003838_{tile}"
        images = folder / "GRANULE" / f"{name}_N02.01" / "IMG_DATA"
        images.mkdir(parents=True)
        write_band(images / f"{name}_B02.jp2", numbers(12, 18, i), "EPSG:32633", at(10))
    said = metadata("L1C", "02.01", {}, ())
    (folder / "S2A_OPER_MTD_SAFL1C_PDMC_20160318T145513_R022_V20160317T101020_20160317T101020.xml").write_text(said)
    found = find_scenes(tmp_path)
    assert [p.name[-14:] for p in found] == ["_T32TQM_N02.01", "_T33UUU_N02.01"]
    for i, path in enumerate(found):
        s = open_scene(path, ("B02",))
        assert s.level == "L1C" and s.notes == ()
        with s.reader() as r:
            np.testing.assert_array_equal(r.read("B02", whole(s)), numbers(12, 18, i))
    with pytest.raises(SceneError, match="expected one scene, found 2"):
        open_scene(folder, ("B02",))


def test_many_products_are_found_in_order(tmp_path):
    for tile in ("T33UUU", "T32TQM"):
        safe(tmp_path / "b", "L2A", tile=tile)
    safe(tmp_path / "a", "L1C")
    found = find_scenes(tmp_path)
    assert found == sorted(found) and len(found) == 3 and all(p.suffix == ".SAFE" for p in found)
    with pytest.raises(SceneError, match="expected one scene, found 3"):
        open_scene(tmp_path)


def test_two_dates_in_one_folder_are_two_scenes(tmp_path):
    """Bands of one must not be mixed with bands of the other."""
    for date in ("20170101", "20180101"):
        for band in ("B02", "B03"):
            write_band(tmp_path / f"T33UUU_{date}T101031_{band}.tif", numbers(9, 9), "EPSG:32633", at(10))
    found = find_scenes(tmp_path)
    assert [p.name for p in found] == ["T33UUU_20170101T101031", "T33UUU_20180101T101031"]
    assert [open_scene(p, ("B02", "B03")).date for p in found] == ["2017-01-01T10:10:31", "2018-01-01T10:10:31"]
    with pytest.raises(SceneError, match="2"):
        open_scene(tmp_path, ("B02", "B03"))


@pytest.mark.parametrize(
    ("folder", "name", "level"),
    [
        ("S2A_MSIL2A_20170613T101031_N0205.SAFE", "T33UUU_{}.tif", "L2A"),
        ("S2A_MSIL1C_20170613T101031_N0205.SAFE", "T33UUU_{}.tif", "L1C"),
        ("mine", "{}.tif", ""),
    ],
)
def test_the_level_is_read_off_the_names(tmp_path: Path, folder, name, level):
    (tmp_path / folder).mkdir()
    write_band(tmp_path / folder / name.format("B02"), numbers(9, 9), "EPSG:32633", at(10))
    assert open_scene(tmp_path / folder, ("B02",), SceneRecipe(kind="safe")).level == level


def test_images_of_another_type_are_clipped_not_wrapped(tmp_path):
    """Numbers without an offset of a type that uint16 does not hold: as a product whose metadata are there."""
    folder, _ = safe(tmp_path, "L1C")
    (path,) = folder.rglob("*_B02.jp2")
    values = np.full((120, 180), 500, np.float32)
    values[0, :6] = np.nan, 0, -3, 70_000, 1.6, 0.2
    write_band(path, values, "EPSG:32633", at(10))
    (other,) = folder.rglob("*_B03.jp2")
    negative = np.full((120, 180), 500, np.int16)
    negative[0, :6] = -3, 0, -3, 32767, 2, 1
    write_band(other, negative, "EPSG:32633", at(10))
    with rasterio.open(other, "r+") as f:
        f.nodata = 2
    s = open_scene(folder, ("B02", "B03"))
    with s.reader() as r:
        assert r.read("B02", (0, 0, 1, 6)).tolist() == [[0, 0, 1, 65535, 2, 1]]
        assert r.read("B03", (0, 0, 1, 6)).tolist() == [[1, 0, 1, 32767, 0, 1]]  # the file's own nodata, and 0
        assert r.measured((0, 0, 1, 6)).tolist() == [[False, False, True, True, False, True]]
    (folder / "MTD_MSIL1C.xml").unlink()
    with pytest.raises(SceneError, match=r"_B02.jp2: band B02 is float32; expected uint16 digital .*kind: folder"):
        open_scene(folder, ("B02", "B03"))


def test_a_baseline_of_the_toolbox_has_no_offset_and_a_note(tmp_path):
    folder, _ = safe(tmp_path, "L2A", "99.99")
    s = open_scene(folder, ("B02",))
    assert s.files["B02"].offset == 0 and "Baseline 99.99" in s.notes[0]
    own, _ = safe(tmp_path / "own", "L2A", "99.99", -1000)
    assert open_scene(own, ("B02",)).notes == () and open_scene(own, ("B02",)).files["B02"].offset == -1001


def test_the_recipes_offset_takes_precedence(tmp_path):
    folder, _ = safe(tmp_path, "L2A", "05.09", -1000)
    s = open_scene(folder, ("B02", "B05"), SceneRecipe(offset=-900))
    assert {f.offset for f in s.files.values()} == {-900} and "Offset -900 as the recipe says" in s.notes[0]


def test_a_loose_image_does_not_hide_products_below(tmp_path):
    folder, _ = safe(tmp_path / "b", "L2A")
    write_band(tmp_path / "overview.tif", numbers(8, 9), "EPSG:32633", at(10))
    (tmp_path / "b" / ".snapshots").mkdir()
    shutil.copytree(folder, tmp_path / "b" / ".snapshots" / folder.name)
    (tmp_path / "b" / "again").symlink_to(tmp_path)  # a loop
    (tmp_path / "c").symlink_to(folder)
    assert find_scenes(tmp_path) == [folder, tmp_path / "overview.tif"]
    for band in ("B02", "B03"):  # of a scene without metadata, beside folders of others
        write_band(tmp_path / f"T33UUU_20170101T101031_{band}.tif", numbers(9, 9), "EPSG:32633", at(10))
    (tmp_path / "overview.tif").unlink()
    assert find_scenes(tmp_path) == [tmp_path, folder]


def test_a_folder_that_cannot_be_told_costs_itself_alone(tmp_path):
    folder, _ = safe(tmp_path / "a" / "deep", "L2A")
    for name in ("T33UUU_B02.tif", "T33UUU_B02.jp2"):
        write_band(tmp_path / "a" / name, numbers(8, 9), "EPSG:32633", at(10))
    assert find_scenes(tmp_path) == [tmp_path / "a", folder]
    with pytest.raises(SceneError, match=r"band B02 is there twice, T33UUU_B02\.jp2 and T33UUU_B02\.tif"):
        open_scene(tmp_path / "a")


def test_a_folder_that_may_not_be_listed_costs_itself_alone(tmp_path, monkeypatch):
    folder, _ = safe(tmp_path / "a", "L2A")
    (tmp_path / "b").mkdir()
    real = os.scandir

    def scandir(path):
        if Path(path) == tmp_path / "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_scenes(tmp_path) == [folder, tmp_path / "b"]
    with pytest.raises(SceneError, match="b: cannot be read: Permission denied"):
        open_scene(tmp_path / "b")
