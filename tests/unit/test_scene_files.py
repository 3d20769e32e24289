"""Scenes by the names of their files: CBERS, folders of bands, stacks; images without a CRS."""

import numpy as np
import pytest
import rasterio

from jeoparda.errors import RecipeError, SceneError
from jeoparda.raster import png, write_band
from jeoparda.scene import SceneRecipe, find_scenes, open_scene
from jeoparda.scene.cbers import rule, sensor_of
from tests.conftest import SHARED
from tests.scenes import at, numbers


@pytest.mark.parametrize(
    ("name", "scene", "band", "date", "sensor"),
    [
        (
            "CBERS_4_AWFI_20180117_157_129_L4_BAND13.tif",
            "CBERS_4_AWFI_20180117_157_129_L4",
            "B13",
            "2018-01-17",
            "cbers-4-awfi",
        ),
        (
            "CBERS_4A_WPM_20200612_200_105_L4_BAND0.tif",
            "CBERS_4A_WPM_20200612_200_105_L4",
            "B0",
            "2020-06-12",
            "cbers-4a-wpm",
        ),
        (
            "CBERS_4A_WPM_20210817_207_148_L4_LEFT_BAND4.tif",
            "CBERS_4A_WPM_20210817_207_148_L4_LEFT",
            "B4",
            "2021-08-17",
            "cbers-4a-wpm",
        ),
        (
            "CBERS_4A_WFI_20201020_205_116_L4_BAND13_GRID_SURFACE.tif",
            "CBERS_4A_WFI_20201020_205_116_L4_GRID_SURFACE",
            "B13",
            "2020-10-20",
            "cbers-4a-wfi",
        ),
        (
            "CBERS_4_PAN10M_20170427_161_109_L4_BAND3.tif",
            "CBERS_4_PAN10M_20170427_161_109_L4",
            "B3",
            "2017-04-27",
            "cbers-4-pan10m",
        ),
        (
            "CBERS_4_MUX_20171121_057_094_L2_BAND6.tif",
            "CBERS_4_MUX_20171121_057_094_L2",
            "B6",
            "2017-11-21",
            "cbers-4-mux",
        ),
        (
            "AMAZONIA_1_WFI_20220810_033_018_L4_BAND4.tif",
            "AMAZONIA_1_WFI_20220810_033_018_L4",
            "B4",
            "2022-08-10",
            "amazonia-1-wfi",
        ),
        (
            "CBERS-4_AWFI_022024_B13_2018-02-02.tif",
            "CBERS-4_AWFI_022024_2018-02-02",
            "B13",
            "2018-02-02",
            "cbers-4-awfi",
        ),
        (
            "CBERS-4_AWFI_CMASK_2017-11-17.tif",
            "CBERS-4_AWFI_2017-11-17",
            "CMASK",
            "2017-11-17",
            "cbers-4-awfi",
        ),
        (
            "CB4-16D-2_V2_007004_20200117_BAND15.tif",
            "CB4-16D-2_V2_007004_20200117",
            "B15",
            "2020-01-17",
            "cbers-4-awfi",
        ),
        (
            "CB4_64_16D_STK_v001_022024_2018-02-18_2018-03-05_BAND13.tif",
            "CB4_64_16D_STK_v001_022024_2018-02-18_2018-03-05",
            "B13",
            "2018-02-18",
            "cbers-4-awfi",
        ),
    ],
)
def test_names_of_cbers_files(name, scene, band, date, sensor):
    said = rule(name)
    assert said is not None
    assert (said.scene, said.band, said.date, sensor_of(name).name) == (scene, band, date, sensor)


@pytest.mark.parametrize("name", ["CBERS_4_AWFI_2018_157_129_L4_BAND13.tif", "T33UUU_B02.tif", "CBERS-4_AWFI.tif"])
def test_other_names_are_not_taken_for_cbers(name):
    assert rule(name) is None


@pytest.mark.needs("shared")
def test_the_real_cbers_series_is_24_scenes_in_one_folder():
    found = find_scenes(SHARED / "cbers4-awfi")
    assert len(found) == 24 and found[0].name == "CBERS-4_AWFI_022024_2018-02-02"
    masked = []
    for path in found:
        s = open_scene(path)
        assert (s.sensor, s.bands, s.unit) == ("cbers-4-awfi", ("B13", "B14", "B15", "B16"), "digital number")
        assert s.date == path.name[-10:] and [g.dtype for g in s.groups(50)] == ["int16"]
        with s.reader() as r:
            pixels, valid = r.read("B16", (0, 0, 50, 50)), r.valid((0, 0, 50, 50))
        with rasterio.open(s.files["B16"].path) as f:
            np.testing.assert_array_equal(pixels[valid], f.read(1)[valid])
        if s.quality:
            masked.append((s.date, int((~valid).sum())))
    assert masked == [("2018-02-02", 0), ("2018-04-07", 1), ("2017-11-17", 452)]  # 4 is cloud, by CMASK
    with pytest.raises(SceneError, match="expected one scene, found 24"):
        open_scene(SHARED / "cbers4-awfi")


def cbers(folder, dates=("20200612",), mask=None):
    folder.mkdir(exist_ok=True)
    pixels = {}
    for d in dates:
        for i, band in enumerate(("BAND13", "BAND14", "BAND15", "BAND16")):
            pixels[d, band] = numbers(20, 30, i)
            write_band(folder / f"CBERS_4_AWFI_{d}_157_129_L4_{band}.tif", pixels[d, band], "EPSG:32621", at(64))
        if mask is not None:
            write_band(folder / f"CBERS_4_AWFI_{d}_157_129_L4_CMASK.tif", mask, "EPSG:32621", at(64))
    return pixels


def test_cbers_digital_numbers_and_mask(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 3:8] = 1, 2, 3, 4, 255
    pixels = cbers(tmp_path / "x", ("20200612", "20200801"), mask)
    found = find_scenes(tmp_path)
    assert [p.name for p in found] == [f"CBERS_4_AWFI_{d}_157_129_L4" for d in ("20200612", "20200801")]
    s = open_scene(found[1])
    assert (s.name, s.date, s.level) == (found[1].name, "2020-08-01", "L4")
    with s.reader() as r:
        np.testing.assert_array_equal(r.read("B15", (0, 0, 20, 30)), pixels["20200801", "BAND15"])
        valid = r.valid((0, 0, 20, 30))
        np.testing.assert_array_equal(np.argwhere(~valid), [[2, 4], [2, 6], [2, 7]])
    with open_scene(found[1], None, SceneRecipe(invalid_cmask=())).reader() as r:
        assert r.valid((0, 0, 20, 30)).all()


def test_a_cbers_scene_that_lacks_a_band_is_told(tmp_path):
    cbers(tmp_path / "x")
    next((tmp_path / "x").glob("*BAND14.tif")).unlink()
    with pytest.raises(SceneError, match="no raster for band B14; found B13, B15, B16"):
        open_scene(tmp_path / "x")
    assert open_scene(tmp_path / "x", ("B16", "B13")).bands == ("B16", "B13")


# ---- folders


def test_the_band_is_what_differs_between_names(tmp_path):
    for i, band in enumerate(("R", "G", "N", "B")):
        write_band(tmp_path / f"AOI_2-056155-WV03-{band}.tif", numbers(8, 9, i), "EPSG:32611", at(0.3))
    s = open_scene(tmp_path)
    assert (s.bands, s.rgb, s.unit, s.sensor, s.date) == (
        ("B", "G", "N", "R"),
        ("R", "G", "B"),
        "digital number",
        "generic",
        "",
    )
    with s.reader() as r:
        np.testing.assert_array_equal(r.read("N", (0, 0, 8, 9)), numbers(8, 9, 2))
    s = open_scene(tmp_path, None, SceneRecipe(bands=("N", "R"), sensor="worldview-3", rgb=("N", "R", "R")))
    assert (s.bands, s.sensor, s.rgb) == (("N", "R"), "worldview-3", ("N", "R", "R"))
    with pytest.raises(SceneError, match="rgb: band X is not in the scene; there are B, G, N, R"):
        open_scene(tmp_path, None, SceneRecipe(rgb=("X", "G", "B")))


def test_names_that_differ_in_more_than_one_part_want_a_pattern(tmp_path):
    for date in ("2019-01-05", "2019-02-05"):
        for i, band in enumerate(("nir", "red")):
            write_band(tmp_path / f"{band}_{date}_x.tif", numbers(8, 9, i), "", at(1))
    assert find_scenes(tmp_path) == [tmp_path]
    with pytest.raises(SceneError, match=r"which part of the names is the band\?.*\(\?P<band>"):
        open_scene(tmp_path)
    options = SceneRecipe(pattern=r"^(?P<band>\w+?)_(?P<date>\d{4}-\d\d-\d\d)")
    found = find_scenes(tmp_path, options)
    assert [p.name for p in found] == ["2019-01-05", "2019-02-05"]
    s = open_scene(found[1], None, options)
    assert (s.date, s.bands) == ("2019-02-05", ("nir", "red"))
    with pytest.raises(SceneError, match=r"band nir is there twice.*a `pattern` that tells scenes apart"):
        open_scene(tmp_path, None, SceneRecipe(pattern=r"^(?P<band>\w+?)_"))
    for kind in ("auto", "folder", "stack"):
        with pytest.raises(RecipeError, match=r"pattern = '\(': not a regular expression"):
            find_scenes(tmp_path, SceneRecipe(pattern="(", kind=kind))
    with pytest.raises(RecipeError, match=r"has no group \(\?P<band>"):
        find_scenes(tmp_path, SceneRecipe(kind="folder", pattern="red"))


@pytest.mark.needs("shared")
def test_a_real_folder_of_floats_and_integers():
    options = SceneRecipe(kind="folder", pattern=r"^lsat7_2000_(?P<band>\d)0")
    s = open_scene(SHARED / "landsat7-northcarolina", None, options)
    assert s.bands == ("1", "2", "3", "4", "5", "7") and [g.dtype for g in s.groups(64)] == ["float32"]
    whole = (0, 0, 443, 489)
    with s.reader() as r:
        pixels, valid = r.read("3", whole), r.valid(whole)
    with rasterio.open(s.files["3"].path) as f:
        expected = f.read(1)
    assert (expected[~valid] == -99999).any() and not pixels[expected == -99999].any()
    np.testing.assert_array_equal(pixels[valid], expected[valid])
    assert 0.5 < valid.mean() < 1


def test_the_recipes_value_without_data_takes_precedence(tmp_path):
    array = numbers(8, 9)
    array[2, 3] = 7777
    write_band(tmp_path / "a_1.tif", array, "", at(1))
    write_band(tmp_path / "a_2.tif", numbers(8, 9, 1, 1, 50), "", at(1))
    with open_scene(tmp_path, None, SceneRecipe(nodata=7777)).reader() as r:
        assert np.argwhere(~r.valid((0, 0, 8, 9))).tolist() == [[2, 3]] and r.read("1", (2, 3, 1, 1)) == 0
    with open_scene(tmp_path).reader() as r:
        assert r.valid((0, 0, 8, 9)).all() and r.read("1", (2, 3, 1, 1)) == 7777


def test_nan_is_never_data(tmp_path):
    array = numbers(8, 9).astype(np.float32)
    array[2, 3] = np.nan
    write_band(tmp_path / "a.tif", array, "", at(1))
    with open_scene(tmp_path / "a.tif").reader() as r:
        assert np.argwhere(~r.valid((0, 0, 8, 9))).tolist() == [[2, 3]] and r.read("B1", (2, 3, 1, 1)) == 0


# ---- stacks


def stack(path, bands, **more):
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(
        path, "w", **profile, dtype=bands.dtype, crs="EPSG:32633", transform=rasterio.Affine(*at(5)), **more
    ) as f:
        f.write(bands)
        return path


def test_a_stack_has_the_names_of_its_recipe_or_of_its_file(tmp_path):
    bands = np.stack([numbers(8, 9, i) for i in range(3)])
    path = stack(tmp_path / "a.tif", bands)
    assert open_scene(path).bands == ("B1", "B2", "B3")
    options = SceneRecipe(names=("red", "green", "nir"), bands=("nir", "red"))
    s = open_scene(path, None, options)
    assert (s.name, s.bands, s.finest.pixel_size) == ("a", ("nir", "red"), 5)
    with s.reader() as r:
        np.testing.assert_array_equal(r.read("nir", (1, 2, 3, 4)), bands[2, 1:4, 2:6])
        np.testing.assert_array_equal(r.read("red", (1, 2, 3, 4)), bands[0, 1:4, 2:6])
    with pytest.raises(RecipeError, match=r"names: 2 names; .*a.tif has 3 bands"):
        open_scene(path, None, SceneRecipe(names=("red", "green")))
    with pytest.raises(SceneError, match="no raster for band swir; found B1, B2, B3"):
        open_scene(path, ("swir",))
    with rasterio.open(path, "r+") as f:
        for i, name in enumerate(("blue", "red edge", "swir"), 1):
            f.set_band_description(i, name)
    assert open_scene(path).bands == ("blue", "red edge", "swir")


def test_alpha_is_the_mask_of_a_stack_and_said(tmp_path):
    bands = np.stack([numbers(8, 9, i, 1, 255).astype(np.uint8) for i in range(4)])
    bands[3] = 255
    bands[3, 4, 5] = 0
    path = stack(tmp_path / "a.tif", bands, photometric="RGB", alpha="yes")
    s = open_scene(path)
    assert s.bands == s.rgb == ("red", "green", "blue") and "marked as alpha" in s.notes[0]
    with s.reader() as r:
        assert np.argwhere(~r.valid((0, 0, 8, 9))).tolist() == [[4, 5]]
    four = open_scene(path, None, SceneRecipe(names=("red", "green", "blue", "nir")))  # as 4-band files often mean it
    assert four.bands[3] == "nir" and four.quality == () and "every pixel counts as measured" in four.notes[0]


def test_images_without_a_crs(tmp_path):
    rgb = np.stack([numbers(30, 40, i, 0, 255).astype(np.uint8) for i in range(3)], -1)
    for name in ("a", "b"):
        (tmp_path / f"img_{name}.png").write_bytes(png(rgb))
    found = find_scenes(tmp_path)
    assert [p.name for p in found] == ["img_a.png", "img_b.png"]
    s = open_scene(found[0])
    assert (s.finest.crs, s.finest.pixel_size, s.finest.transform) == ("", 1.0, (1, 0, 0, 0, 1, 0))
    (group,) = s.groups(20)
    assert (group.name, group.pixel_m, group.dtype, group.bands) == ("1px", 1.0, "uint8", ("red", "green", "blue"))
    with s.reader() as r:
        np.testing.assert_array_equal(r.read("green", (3, 5, 20, 20)), rgb[3:23, 5:25, 1])
        assert r.valid((3, 5, 20, 20)).all()  # black is a colour


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_jpeg_is_a_stack(tmp_path):
    profile = {"driver": "JPEG", "count": 3, "height": 16, "width": 24, "dtype": "uint8"}
    grey = np.arange(24, dtype=np.uint8) * 10
    with rasterio.open(tmp_path / "a.jpg", "w", **profile) as f:
        f.write(np.broadcast_to(grey, (3, 16, 24)))
    s = open_scene(tmp_path)
    assert s.bands == ("red", "green", "blue")
    with s.reader() as r:
        assert np.abs(r.read("green", (2, 3, 8, 9)).astype(int) - grey[3:12]).max() < 12


@pytest.mark.needs("shared")
def test_real_images_of_mars():
    found = find_scenes(SHARED / "mars-rocks", SceneRecipe(kind="stack", pattern="^img_"))
    assert [p.name for p in found] == ["img_332.png", "img_336.png", "img_538.png"]
    assert {open_scene(p).groups(128)[0].name for p in found} == {"1px"}


def test_a_planetary_crs_works(tmp_path):
    mars = (
        'GEOGCS["GCS_Mars_2000",DATUM["D_Mars_2000",SPHEROID["Mars_2000",3396190,169.89]],'
        'PRIMEM["Reference",0],UNIT["degree",0.0174532925199433]]'
    )
    write_band(tmp_path / "a.tif", numbers(8, 9), mars, (0.01, 0, 137, 0, -0.01, -4))
    s = open_scene(tmp_path / "a.tif")
    assert "Mars" in s.finest.crs and s.groups(4)[0].name == "0.01deg"


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    bands = np.stack([numbers(8, 9, i) for i in range(3)])
    stack(tmp_path / "b.tif", bands)
    (tmp_path / "a.tif").write_bytes(b"")
    found = find_scenes(tmp_path)
    assert [p.name for p in found] == ["a.tif", "b.tif"]
    with pytest.raises(SceneError, match=r"a.tif: cannot be read as a raster: it is empty"):
        open_scene(found[0])
    assert open_scene(found[1]).bands == ("B1", "B2", "B3")


# ---- what files say of their validity and place, in them and beside them


def test_the_newer_encoding_of_a_cloud_mask(tmp_path):
    mask = np.full((20, 30), 127, np.uint8)
    mask[2, 3:5] = 0, 255
    cbers(tmp_path / "x", mask=mask)
    with open_scene(tmp_path / "x").reader() as r:
        np.testing.assert_array_equal(np.argwhere(~r.valid((0, 0, 20, 30))), [[2, 3], [2, 4]])
    for values, why in (
        ((5, 9), "CMASK.tif: holds 5, 9; expected a mask of"),
        ((2, 0), "holds 127 and 2; .* not of two"),
    ):
        mask[2, 3:5] = values
        cbers(tmp_path / "x", mask=mask)
        with pytest.raises(SceneError, match=why):
            open_scene(tmp_path / "x")
    assert open_scene(tmp_path / "x", None, SceneRecipe(invalid_cmask=())).quality == ()


def test_zeros_of_inpes_own_files_are_no_data(tmp_path):
    cbers(tmp_path / "x")
    for path in (tmp_path / "x").glob("*_BAND14.tif"):
        array = numbers(20, 30, 1)
        array[4, 5] = 0
        write_band(path, array, "EPSG:32621", at(64))
        path.rename(path.with_name(path.name.replace("BAND", "band").replace(".tif", ".TIF")))
    s = open_scene(tmp_path / "x")
    assert [n[:29] for n in s.notes] == ["INPE's files have no nodata t"]
    with s.reader() as r:
        assert np.argwhere(~r.valid((0, 0, 20, 30))).tolist() == [[4, 5]]
    assert open_scene(tmp_path / "x", None, SceneRecipe(nodata=9)).notes == ()
    for path in (tmp_path / "x").iterdir():
        path.rename(path.with_name(f"{path.stem}_GRID_SURFACE.tif"))
    s = open_scene(tmp_path / "x")
    assert s.files["B14"].nodata is None and "every pixel counts as measured" in s.notes[0]


def test_a_mask_inside_of_a_file_says_what_is_valid(tmp_path):
    bands = np.stack([numbers(20, 30, i) for i in range(3)])
    mask = np.full((20, 30), True)
    mask[2, 3] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(stack(tmp_path / "a.tif", bands), "r+") as f:
        f.write_mask(mask)
    s = open_scene(tmp_path / "a.tif")
    assert s.notes == () and s.finest.masked
    with s.reader() as r:
        np.testing.assert_array_equal(r.valid((1, 2, 10, 10)), mask[1:11, 2:12])
        assert r.read("B2", (2, 3, 1, 2)).tolist() == [[0, bands[1, 2, 4]]]


def test_files_beside_an_image_say_their_part(tmp_path):
    rgb = np.stack([numbers(30, 40, i, 0, 255).astype(np.uint8) for i in range(3)], -1)
    (tmp_path / "a.png").write_bytes(png(rgb))
    (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    (tmp_path / "a.png.aux.xml").write_text(
        '<PAMDataset><SRS>EPSG:32633</SRS><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>'
        "</PAMDataset>"
    )
    s = open_scene(tmp_path / "a.png")
    assert (s.finest.crs, s.finest.transform, s.finest.nodata) == ("EPSG:32633", (0.5, 0, 1000, 0, -0.5, 2000), 7)
    array = numbers(8, 9)
    with rasterio.open(
        tmp_path / "b.img", "w", driver="ENVI", count=1, height=8, width=9, dtype="uint16", crs="EPSG:32633",
        transform=rasterio.Affine(*at(5)),
    ) as f:  # fmt: skip
        f.write(array, 1)
    s = open_scene(tmp_path / "b.img")
    assert (s.finest.crs, s.finest.transform) == ("EPSG:32633", at(5))
    with s.reader() as r:
        np.testing.assert_array_equal(r.read(s.bands[0], (1, 2, 3, 4)), array[1:4, 2:6])


def test_a_table_of_colours_is_no_measurement(tmp_path):
    path = stack(tmp_path / "a.tif", numbers(8, 9, 0, 0, 3)[None].astype(np.uint8))
    with rasterio.open(path, "r+") as f:
        f.write_colormap(1, {0: (9, 8, 7, 255), 1: (1, 2, 3, 255)})
    with pytest.raises(SceneError, match=r"a\.tif: its numbers are places in a table of colours"):
        open_scene(path)


def test_an_image_that_is_turned_has_pixels_of_its_size(tmp_path):
    write_band(tmp_path / "a_red.tif", numbers(20, 30, 0), "EPSG:32633", (0.0, 10.0, 3e5, 10.0, 0.0, 58e5))
    write_band(tmp_path / "a_nir.tif", numbers(10, 15, 1), "EPSG:32633", (0.0, 20.0, 3e5, 20.0, 0.0, 58e5))
    s = open_scene(tmp_path)
    assert s.bands == ("red", "nir") and [(g.name, g.size_px) for g in s.groups(10)] == [("10m", 10), ("20m", 5)]
    mirrored = (10.0, 0.0, 3e5, 0.0, 15.0, 58e5)  # the same corners at the ends of the diagonal
    write_band(tmp_path / "a_nir.tif", numbers(20, 20, 1), "EPSG:32633", mirrored)
    write_band(tmp_path / "a_red.tif", numbers(20, 20, 0), "EPSG:32633", (0.0, 10.0, 3e5, 15.0, 0.0, 58e5))
    with pytest.raises(SceneError, match="align: resample"):
        open_scene(tmp_path)


def test_a_band_without_a_crs_is_not_resampled_onto_one_with(tmp_path):
    write_band(tmp_path / "a_red.tif", numbers(20, 30, 0), "EPSG:32633", at(10))
    write_band(tmp_path / "a_nir.tif", numbers(10, 15, 1), "", at(21))
    with pytest.raises(SceneError, match=r"a_nir.tif: has no CRS, .*a_red.tif has EPSG:32633; expected a CRS for both"):
        open_scene(tmp_path, None, SceneRecipe(align="resample"))


def test_the_date_of_a_pattern_is_the_same_for_folders_and_stacks(tmp_path):
    write_band(tmp_path / "20200612_a.tif", numbers(8, 9), "", at(1))
    pattern = r"(?P<date>\d{8})_(?P<band>\w)"
    dates = [open_scene(tmp_path, None, SceneRecipe(kind=k, pattern=pattern)).date for k in ("folder", "stack")]
    assert dates == ["2020-06-12"] * 2
