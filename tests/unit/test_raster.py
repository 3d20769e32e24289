"""Rasters on disk, read back by rasterio itself."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda.errors import SceneError
from jeoparda.raster import describe, png, read_band, tags_of, write_band, write_map

AT = (10.0, 0.0, 399_960.0, 0.0, -10.0, 5_400_000.0)


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_a_band_reads_back_as_written(tmp_path, dtype):
    array = noise(7, 11, dtype=dtype)
    write_band(tmp_path / "a.tif", array, "EPSG:32633", AT)
    back, info = read_band(tmp_path / "a.tif")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert (info.height_px, info.width_px, info.count, info.dtype) == (7, 11, 1, dtype)
    assert (info.crs, info.transform, info.pixel_size) == ("EPSG:32633", AT, 10)
    assert describe(tmp_path / "a.tif") == info
    part, _ = read_band(tmp_path / "a.tif", window=(2, 3, 4, 5))
    np.testing.assert_array_equal(part, array[2:6, 3:8])


def test_a_band_written_twice_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_band(tmp_path / f"{name}.tif", noise(60, 60), "EPSG:32633", AT)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_what_is_no_raster_is_told(tmp_path):
    (tmp_path / "a.tif").write_text("hello")
    with pytest.raises(SceneError, match=r"a\.tif: cannot be read as a raster"):
        read_band(tmp_path / "a.tif")
    with pytest.raises(SceneError, match=r"b\.tif"):
        describe(tmp_path / "b.tif")


def test_a_truncated_raster_is_told(tmp_path):
    path = tmp_path / "a.tif"
    write_band(path, noise(100, 100), "EPSG:32633", AT)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(SceneError, match=r"a\.tif"):
        read_band(path)


def test_a_map_is_a_cog_and_reads_back(tmp_path, caplog):
    path = tmp_path / "m.tif"
    classes = noise(700, 900, dtype="uint8") % 5
    classes[:3] = 255
    colors = {i: (10 * i, 20, 255 - i) for i in range(5)}
    names = ["a", "b", "c", "d", "e ü"]
    write_map(
        path,
        classes[None],
        "EPSG:32633",
        AT,
        nodata=255,
        names=["class"],
        colors=colors,
        categories=names,
        tags={"JEOPARDA_KEY": "abc"},
    )
    assert not caplog.records  # GDAL has nothing to complain of
    with rasterio.open(path) as f:
        assert f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert f.overviews(1) and f.block_shapes[0] == (512, 512)
        np.testing.assert_array_equal(f.read(1), classes)
        assert f.nodata == 255 and f.crs.to_epsg() == 32633 and tuple(f.transform)[:6] == AT
        assert {i: f.colormap(1)[i][:3] for i in range(5)} == colors
        assert f.tags(1)["CATEGORY_NAMES"].split("|") == names
        assert f.descriptions == ("class",)
        # overviews pick a pixel, they never make a class that is not there
        assert set(np.unique(f.read(1, out_shape=(350, 450)))) <= set(np.unique(classes))
    assert tags_of(path)["JEOPARDA_KEY"] == "abc"
    assert [p.name for p in tmp_path.iterdir()] == ["m.tif"]


def test_a_map_of_many_bands(tmp_path):
    bands = noise(3, 20, 30, dtype="uint8")
    write_map(tmp_path / "p.tif", bands, "EPSG:32633", AT, nodata=255, names=["x", "y", "z"])
    with rasterio.open(tmp_path / "p.tif") as f:
        np.testing.assert_array_equal(f.read(), bands)
        assert f.descriptions == ("x", "y", "z")


def test_a_failed_map_leaves_the_one_before(tmp_path, monkeypatch):
    def half_copy(_, target, **__):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "m.tif"
    write_map(path, noise(1, 9, 9, dtype="uint8"), "EPSG:32633", AT, nodata=255)
    before = path.read_bytes()
    monkeypatch.setattr(rasterio.shutil, "copy", half_copy)
    with pytest.raises(OSError, match="disk full"):
        write_map(path, noise(1, 9, 9, dtype="uint8"), "EPSG:32633", AT, nodata=255)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.tif"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_png_reads_back(tmp_path):
    rgb = noise(5, 8, 3, dtype="uint8")
    (tmp_path / "a.png").write_bytes(png(rgb))
    with rasterio.open(tmp_path / "a.png") as f:
        np.testing.assert_array_equal(np.moveaxis(f.read(), 0, 2), rgb)
