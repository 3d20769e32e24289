"""Scenes: bands over the same ground, each at its own pixel size, and which pixels are valid."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda import raster
from jeoparda.config import check
from jeoparda.errors import RecipeError, SceneError
from jeoparda.raster import write_band
from jeoparda.scene import Scene, SceneRecipe, find_scenes, open_scene
from jeoparda.sensors import SENTINEL_2_L1C, SENTINEL_2_L2A
from tests.conftest import SHARED
from tests.scenes import pixel_m

BANDS = SENTINEL_2_L2A.bands


def make(folder: Path, bands: tuple[str, ...] = ("B02", "B05", "B01"), name: str = "T33UUU_{}.tif") -> Path:
    """A scene of 1.2 km: 10, 20 and 60 m; pixels are numbered along rows, from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for band in bands:
        pixel = pixel_m(SENTINEL_2_L2A, band)
        side = int(1200 // pixel)
        values = np.arange(1, side * side + 1, dtype=np.uint16).reshape(side, side)
        write_band(folder / name.format(band), values, "EPSG:32633", (pixel, 0.0, 3e5, 0.0, -pixel, 58e5))
    return folder


def read(scene: Scene, band: str, window: tuple[int, int, int, int]) -> np.ndarray:
    with scene.reader() as r:
        return r.read(band, window)


def test_a_real_scene(real_scene):
    s = open_scene(real_scene)
    assert set(s.bands) == set(SENTINEL_2_L1C.bands) and s.bands[:4] == ("B02", "B03", "B04", "B08")
    assert (s.name, s.level, s.date) == ("T33UUU_20170216T102101", "L1C", "2017-02-16T10:21:01")
    assert (s.sensor, s.rgb, s.finest.pixel_size) == ("sentinel-2-l1c", ("B04", "B03", "B02"), 10)
    assert len(s.notes) == 1 and "Without metadata" in s.notes[0]
    window = (60, 120, 120, 240)
    with s.reader() as r:
        for band in s.bands:
            assert s.files[band].info.pixel_size == pixel_m(SENTINEL_2_L1C, band)
            scale = int(pixel_m(SENTINEL_2_L1C, band) // 10)
            (path,) = real_scene.glob(f"*_{band}.jp2")
            with rasterio.open(path) as f:
                whole = f.read(1)
            row, col, h, w = (v // scale for v in window)
            np.testing.assert_array_equal(r.read(band, window), whole[row : row + h, col : col + w])
        assert r.valid(window).shape == (120, 240) and r.valid(window).all()


@pytest.mark.needs("shared")
def test_the_real_scene_beside_the_checkout():
    folder = SHARED / "s2-l1c-brandenburg"
    (found,) = find_scenes(folder)
    assert found == folder / "IMG_DATA" or found == folder
    assert open_scene(folder).bands == open_scene(found).bands


def test_windows_are_in_pixels_of_the_finest_band(tmp_path):
    s = open_scene(make(tmp_path / "x"), ("B02", "B05", "B01"))
    assert read(s, "B02", (0, 0, 2, 3)).tolist() == [[1, 2, 3], [121, 122, 123]]
    assert read(s, "B05", (2, 4, 2, 4)).tolist() == [[63, 64]]
    assert read(s, "B01", (6, 12, 6, 6)).tolist() == [[23]]
    with pytest.raises(SceneError, match=r"falls between its 60\.0 m pixels.*multiples of 6 px"):
        read(s, "B01", (10, 0, 60, 60))
    for outside in ((0, 0, 120, 126), (-6, 0, 6, 6), (114, 114, 12, 6)):
        with pytest.raises(SceneError, match=r"lies outside of 120 x 120 px"):
            read(s, "B01", outside)


def test_groups_are_the_fields_of_a_record(tmp_path):
    s = open_scene(make(tmp_path / "x"), ("B01", "B05", "B02"))
    assert [(g.name, g.pixel_m, g.size_px, g.bands, g.dtype) for g in s.groups(60)] == [
        ("10m", 10.0, 60, ("B02",), "uint16"),
        ("20m", 20.0, 30, ("B05",), "uint16"),
        ("60m", 60.0, 10, ("B01",), "uint16"),
    ]
    with pytest.raises(
        SceneError, match=r"patch of 128 px .* no whole number of its pixels of 60; .* multiple of 6 px"
    ):
        s.groups(128)
    assert [g.size_px for g in open_scene(tmp_path / "x", ("B02", "B05")).groups(128)] == [128, 64]


def test_a_scene_travels_to_another_process(tmp_path):
    s = open_scene(make(tmp_path / "x"), ("B02", "B05"))
    again = pickle.loads(pickle.dumps(s))
    assert again == s and read(again, "B05", (0, 0, 4, 4)).tolist() == [[1, 2], [61, 62]]


def test_what_has_no_data_in_any_band_is_not_valid(tmp_path):
    folder = make(tmp_path / "x", ("B02", "B05"))
    values = np.ones((60, 60), np.uint16)
    values[3, 5] = 0
    write_band(folder / "T33UUU_B05.tif", values, "EPSG:32633", (20.0, 0.0, 3e5, 0.0, -20.0, 58e5))
    s = open_scene(folder, ("B02", "B05"))
    expected = np.ones((120, 120), bool)
    expected[6:8, 10:12] = False
    with s.reader() as r:
        np.testing.assert_array_equal(r.valid((0, 0, 120, 120)), expected)
        r.read("B02", (0, 0, 8, 8))  # another window than the next: nothing of it may be taken over
        r.read("B05", (0, 0, 8, 8))
        np.testing.assert_array_equal(r.valid((4, 8, 8, 8)), expected[4:12, 8:16])
        for band in s.bands:
            r.read(band, (4, 8, 8, 8))
        np.testing.assert_array_equal(r.valid((4, 8, 8, 8)), expected[4:12, 8:16])


def test_each_file_is_opened_once(tmp_path, monkeypatch):
    s = open_scene(make(tmp_path / "x"), ("B02", "B05", "B01"))
    opened = []
    real = rasterio.open
    monkeypatch.setattr(raster.rasterio, "open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    with s.reader() as r:
        for row in range(0, 120, 12):
            for band in s.bands:
                r.read(band, (row, 0, 12, 12))
            r.valid((row, 0, 12, 12))
    assert sorted(opened) == sorted(f.path for f in s.files.values())


def test_a_reader_bounds_the_cache_and_gives_it_back(tmp_path):
    s = open_scene(make(tmp_path / "x"), ("B02",))
    with raster.session(100):
        with s.reader(7):
            assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == 7 << 20
        assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == 100 << 20


def test_a_missing_band_is_named(tmp_path):
    with pytest.raises(SceneError, match="no raster for band B03, B8A; found B02, B05"):
        open_scene(make(tmp_path / "x", ("B02", "B05")), ("B02", "B03", "B05", "B8A"))
    with pytest.raises(SceneError, match="no such folder"):
        open_scene(tmp_path / "absent", BANDS)
    with pytest.raises(SceneError, match="no such folder"):
        find_scenes(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    for kind in ("auto", "safe", "landsat", "cbers", "folder", "stack"):
        with pytest.raises(SceneError, match=f"holds no scene of kind {kind}"):
            open_scene(tmp_path / "empty", ("B02",), SceneRecipe(kind=kind))


@pytest.mark.parametrize(
    ("crs", "x", "y"), [("EPSG:32633", 3e5 + 10, 58e5), ("EPSG:32633", 3e5, 58e5 - 20), ("EPSG:32632", 3e5, 58e5)]
)
def test_a_band_that_lies_elsewhere_is_named(tmp_path, crs, x, y):
    folder = make(tmp_path / "x", ("B02",))
    write_band(folder / "T33UUU_B05.tif", np.zeros((60, 60), np.uint16), crs, (20.0, 0.0, x, 0.0, -20.0, y))
    with pytest.raises(SceneError, match=r"T33UUU_B05\.tif: band B05 covers.*align: resample"):
        open_scene(folder, ("B02", "B05"))


def test_pixels_that_are_no_whole_multiples_are_refused(tmp_path):
    folder = make(tmp_path / "x", ("B02",))
    write_band(
        folder / "T33UUU_B05.tif", np.zeros((75, 75), np.uint16), "EPSG:32633", (16.0, 0.0, 3e5, 0.0, -16.0, 58e5)
    )
    with pytest.raises(SceneError, match="whole multiples"):
        open_scene(folder, ("B02", "B05"))


def test_a_truncated_image_is_told_with_its_reason(real_scene, tmp_path):
    for path in real_scene.glob("*_B0[2-4].jp2"):
        shutil.copy(path, tmp_path)
    (victim,) = tmp_path.glob("*_B03.jp2")
    content = victim.read_bytes()
    for share in (0.0, 0.001, 0.2, 0.9):
        victim.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(SceneError, match=r"_B03\.jp2: cannot be read") as e:
            read(open_scene(tmp_path, ("B02", "B03", "B04")), "B03", (0, 0, 768, 1536))
        assert len(str(e.value)) > len(f"{victim}: cannot be read") + 10
    victim.write_bytes(b"")
    with pytest.raises(SceneError, match=r"_B03\.jp2: cannot be read as a raster: it is empty"):
        open_scene(tmp_path, ("B03",))


def lie(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A plane: bilinear interpolation gives it back."""
    return 1000 + (x - 3e5) * 0.5 - (y - 58e5) * 0.25


def plane(path: Path, pixel: float, left: float, top: float, height: int, width: int) -> None:
    x = left + pixel * (np.arange(width) + 0.5)
    y = top - pixel * (np.arange(height) + 0.5)
    values = lie(x[None], y[:, None]).astype(np.float32)
    write_band(path, values, "EPSG:32633", (pixel, 0.0, left, 0.0, -pixel, top))


def test_bands_are_aligned_onto_the_finest_grid_if_asked(tmp_path):
    """A coarser band that begins elsewhere and reaches less far: a plane stays the plane, and its end is not valid."""
    plane(tmp_path / "a_red.tif", 10, 3e5, 58e5, 90, 120)
    plane(tmp_path / "a_nir.tif", 25, 3e5 - 40, 58e5 + 65, 100, 40)  # ends at 960 m of 1200 m
    with pytest.raises(SceneError, match="align: resample"):
        open_scene(tmp_path)
    s = open_scene(tmp_path, None, SceneRecipe(align="resample"))
    assert [(g.name, g.bands) for g in s.groups(30)] == [("10m", ("red", "nir"))]
    window = (20, 10, 50, 110)
    with s.reader() as r:
        red, nir, valid = r.read("red", window), r.read("nir", window), r.valid(window)
    ends = 96 - 10
    assert valid[:, :ends].all() and not valid[:, ends:].any() and not nir[:, ends:].any()
    np.testing.assert_allclose(nir[:, : ends - 2], red[:, : ends - 2], atol=1e-2)


def test_a_band_of_another_crs_is_aligned_too(tmp_path):
    plane(tmp_path / "a_red.tif", 10, 5e5, 58e5, 90, 120)
    corners = [5e5 - 200, 5e5 + 1400], [58e5 + 200, 58e5 - 1100]
    (lon, lon2), (lat, lat2) = rasterio.warp.transform("EPSG:32633", "EPSG:4326", *corners)
    size = 0.0002
    w, h = int((lon2 - lon) / size), int((lat - lat2) / size)
    lons, lats = np.meshgrid(lon + size * (np.arange(w) + 0.5), lat - size * (np.arange(h) + 0.5))
    x, y = rasterio.warp.transform("EPSG:4326", "EPSG:32633", lons.ravel(), lats.ravel())
    there = lie(np.array(x), np.array(y)).reshape(h, w).astype(np.float32)
    write_band(tmp_path / "a_nir.tif", there, "EPSG:4326", (size, 0.0, lon, 0.0, -size, lat))
    s = open_scene(tmp_path, None, SceneRecipe(align="resample", bands=("red", "nir")))
    assert s.finest.crs == "EPSG:32633"  # degrees are smaller numbers, and here the coarser pixels
    with s.reader() as r:
        np.testing.assert_allclose(r.read("red", (20, 20, 50, 80)), r.read("nir", (20, 20, 50, 80)), atol=1.0)


def test_the_recipe_is_a_section_like_any_other():
    made = check(SceneRecipe, {"kind": "cbers", "bands": ["B16"], "invalid_cmask": [4], "nodata": -9999})
    assert made == SceneRecipe(kind="cbers", bands=("B16",), invalid_cmask=(4,), nodata=-9999.0)
    with pytest.raises(RecipeError, match=r"kind.*'auto', 'safe', 'landsat', 'cbers', 'folder' or 'stack'"):
        check(SceneRecipe, {"kind": "sentinel"})
    with pytest.raises(RecipeError, match=r"unknown key 'pansharpening'; did you mean 'pansharpen'"):
        check(SceneRecipe, {"pansharpening": True})
