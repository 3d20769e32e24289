"""Scenes: one raster a band, over the same ground."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda.errors import SceneError
from jeoparda.raster import write_band
from jeoparda.scene import open_scene
from jeoparda.sensors import SENTINEL_2_L2A

BANDS = SENTINEL_2_L2A.bands


def make(folder: Path, bands: tuple[str, ...] = ("B02", "B05", "B01"), name: str = "T33UUU_{}.tif") -> Path:
    """A scene of 1.2 km: 10, 20 and 60 m; pixels are numbered along rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for band in bands:
        pixel = SENTINEL_2_L2A.pixel_m(band)
        side = 1200 // pixel
        values = np.arange(side * side, dtype=np.uint16).reshape(side, side)
        write_band(folder / name.format(band), values, "EPSG:32633", (pixel, 0.0, 3e5, 0.0, -pixel, 58e5))
    return folder


def test_a_real_scene(real_scene):
    s = open_scene(real_scene, BANDS)
    assert set(s.files) == set(BANDS)
    assert s.level == "L1C"
    assert s.finest.pixel_size == 10
    for band in BANDS:
        assert s.files[band].pixel_size == SENTINEL_2_L2A.pixel_m(band)
        window = (60, 120, 120, 240)
        scale = SENTINEL_2_L2A.pixel_m(band) // 10
        (path,) = real_scene.glob(f"*_{band}.jp2")
        with rasterio.open(path) as f:
            whole = f.read(1)
        r, c, h, w = (v // scale for v in window)
        np.testing.assert_array_equal(s.read(band, window), whole[r : r + h, c : c + w])


def test_windows_are_in_pixels_of_the_finest_band(tmp_path):
    s = open_scene(make(tmp_path / "x"), ("B02", "B05", "B01"))
    assert s.read("B02", (0, 0, 2, 3)).tolist() == [[0, 1, 2], [120, 121, 122]]
    assert s.read("B05", (2, 4, 2, 4)).tolist() == [[62, 63]]
    assert s.read("B01", (6, 12, 6, 6)).tolist() == [[22]]
    with pytest.raises(SceneError, match=r"falls between its 60\.0 m pixels"):
        s.read("B01", (10, 0, 60, 60))


def test_a_missing_band_is_named(tmp_path):
    with pytest.raises(SceneError, match="no raster for band B03, B8A; found B02, B05"):
        open_scene(make(tmp_path / "x", ("B02", "B05")), ("B02", "B03", "B05", "B8A"))
    with pytest.raises(SceneError, match="no such folder"):
        open_scene(tmp_path / "absent", BANDS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="found none"):
        open_scene(tmp_path / "empty", ("B02",))


@pytest.mark.parametrize(
    ("crs", "x", "y"), [("EPSG:32633", 3e5 + 10, 58e5), ("EPSG:32633", 3e5, 58e5 - 20), ("EPSG:32632", 3e5, 58e5)]
)
def test_a_band_that_lies_elsewhere_is_named(tmp_path, crs, x, y):
    folder = make(tmp_path / "x", ("B02",))
    write_band(folder / "T33UUU_B05.tif", np.zeros((60, 60), np.uint16), crs, (20.0, 0.0, x, 0.0, -20.0, y))
    with pytest.raises(SceneError, match=r"T33UUU_B05\.tif: band B05 covers"):
        open_scene(folder, ("B02", "B05"))


def test_the_finest_of_several_pixel_sizes_is_taken(tmp_path):
    folder = make(tmp_path / "R10m", ("B02",), "T33UUU_{}_10m.tif").parent
    (folder / "R20m").mkdir()
    coarse = (20.0, 0.0, 3e5, 0.0, -20.0, 58e5)
    write_band(folder / "R20m" / "T33UUU_B02_20m.tif", np.zeros((60, 60), np.uint16), "EPSG:32633", coarse)
    assert open_scene(folder, ("B02",)).files["B02"].pixel_size == 10


def test_two_rasters_of_one_band_and_size_are_refused(tmp_path):
    """Two dates in one folder: bands of one must not be mixed with bands of the other."""
    folder = make(tmp_path / "x", ("B02", "B05"), "T33UUU_20170101_{}.tif")
    make(folder, ("B02",), "T33UUU_20180101_{}.tif")
    with pytest.raises(SceneError, match="B02"):
        open_scene(folder, ("B02", "B05"))


@pytest.mark.parametrize(
    ("folder", "name", "level"),
    [
        ("S2A_MSIL2A_20170613T101031_N0205.SAFE", "T33UUU_{}.tif", "L2A"),
        ("S2A_MSIL1C_20170613T101031_N0205.SAFE", "T33UUU_{}.tif", "L1C"),
        ("mine", "{}.tif", ""),
    ],
)
def test_the_level_is_read_off_the_names(tmp_path, folder, name, level):
    assert open_scene(make(tmp_path / folder, name=name), ("B02",)).level == level
