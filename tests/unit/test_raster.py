"""Rasters on disk, read back by rasterio itself."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda import raster
from jeoparda.errors import SceneError
from jeoparda.raster import (
    OpenRaster,
    RasterInfo,
    crs_name,
    crs_unit,
    describe,
    geotiff,
    png,
    read_band,
    session,
    tags_of,
    thumbnail,
    write_band,
    write_map,
)

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


MARS = "+proj=eqc +lat_ts=0 +lat_0=0 +lon_0=180 +x_0=0 +y_0=0 +a=3396190 +b=3396190 +units=m"
TURNED = (10.0, 1.0, 399_960.0, 1.0, -10.0, 5_400_000.0)
PLACES = [
    ("EPSG:32633", AT),
    ("EPSG:4326", (0.25, 0.0, -180.0, 0.0, -0.25, 90.0)),
    ("EPSG:3035", (0.5, 0.0, 4_321_000.125, 0.0, -2.0, 3e6)),
    ("ESRI:54009", AT),
    (MARS, AT),
    ("", AT),
    ("EPSG:32633", TURNED),
    ("EPSG:32633", (10.0, 0.0, 399_960.0, 0.0, 10.0, 5_400_000.0)),
    ("", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
]


@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("more", [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}, {"COMPRESS": "DEFLATE"}])
def test_a_band_lies_where_gdal_says_however_often_its_crs_was_seen(tmp_path, more, point):
    """Also where the quick look at the tags takes over, from the second file of a CRS on."""
    path = tmp_path / "a.tif"
    for again in range(2):
        for crs, transform in PLACES:
            size = {"height": 3, "width": 4, "count": 1, "dtype": "uint16"}
            with rasterio.open(path, "w", crs=crs or None, transform=rasterio.Affine(*transform), **size, **more) as f:
                f.write(noise(1, 3, 4))
                f.update_tags(AREA_OR_POINT="Point" if point else "Area")
            for file in (path, path.read_bytes()):
                info = read_band(file)[1]
                told = describe(file)
                assert dataclasses.replace(info, path="") == dataclasses.replace(told, path=""), (crs, again)


def test_the_quick_look_is_taken_for_plain_files_and_gives_way_to_gdal_for_others(tmp_path):
    path = tmp_path / "a.tif"
    write_band(path, noise(3, 4), "EPSG:32633", AT)
    whole = path.read_bytes()
    assert geotiff.place(path) == geotiff.place(whole)
    assert geotiff.place(whole).transform == AT
    ends = [geotiff.place(whole[:n]) for n in range(0, len(whole), 7)]
    assert None in ends  # cut short: for GDAL to tell
    assert all(p in (None, geotiff.place(whole)) for p in ends)
    write_band(path, noise(3, 4), "EPSG:32633", TURNED)
    assert geotiff.place(path) is None
    assert geotiff.place(tmp_path / "none.tif") is None


def test_a_world_file_still_counts_where_sidecars_do(tmp_path):
    for name in ("a", "b"):
        write_band(tmp_path / f"{name}.tif", noise(3, 4), "EPSG:32633", AT)
        read_band(tmp_path / f"{name}.tif")
    (tmp_path / "b.tif.aux.xml").write_text("<PAMDataset><GeoTransform>7, 2, 0, 9, 0, -2</GeoTransform></PAMDataset>")
    with session(sidecars=True):
        assert read_band(tmp_path / "b.tif")[1].transform == (2, 0, 7, 0, -2, 9)
    assert read_band(tmp_path / "b.tif")[1].transform == AT


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


def test_a_file_in_memory_reads_as_on_disk(tmp_path):
    array = noise(7, 11)
    write_band(tmp_path / "a.tif", array, "EPSG:32633", AT)
    content = (tmp_path / "a.tif").read_bytes()
    back, info = read_band(content)
    np.testing.assert_array_equal(back, array)
    assert (info.crs, info.transform, info.height_px) == ("EPSG:32633", AT, 7)
    with pytest.raises(SceneError, match="100 bytes in memory: cannot be read as a raster"):
        read_band(content[:100])
    with pytest.raises(SceneError, match="0 bytes in memory: cannot be read as a raster: it is empty"):
        read_band(b"")


def test_an_empty_file_is_called_so(tmp_path):
    (tmp_path / "a.tif").touch()
    with pytest.raises(SceneError, match=r"a\.tif: cannot be read as a raster: it is empty"):
        read_band(tmp_path / "a.tif")
    with session(), pytest.raises(SceneError, match=r"a\.tif: cannot be read as a raster: it is empty"):
        OpenRaster(str(tmp_path / "a.tif"))


def test_a_crs_is_looked_up_once(tmp_path):
    """PROJ searches its database for the code: too slow for each of millions of small files."""
    for i in range(5):
        write_band(tmp_path / f"{i}.tif", noise(4, 4), "EPSG:31983", AT)
    raster._crs_name.cache_clear()
    assert {read_band(tmp_path / f"{i}.tif")[1].crs for i in range(5)} == {"EPSG:31983"}
    assert raster._crs_name.cache_info().misses == 1


def test_names_and_units_of_crs():
    assert crs_name(None) == crs_name("") == "" and crs_name("EPSG:4326") == "EPSG:4326"
    assert [crs_unit(c) for c in ("", "EPSG:32633", "EPSG:4326", "EPSG:2264")] == ["px", "m", "deg", "US survey foot"]


def test_an_open_raster_on_another_grid(tmp_path):
    """Nearest neighbours of a coarser raster, and nothing beyond its edge."""
    array = noise(6, 8)
    write_band(tmp_path / "a.tif", array, "EPSG:32633", (20.0, 0.0, 0.0, 0.0, -20.0, 120.0))
    onto = RasterInfo("", 10, 20, 1, "uint16", "EPSG:32633", (10.0, 0.0, 40.0, 0.0, -10.0, 100.0), None)
    with session():
        source = OpenRaster(str(tmp_path / "a.tif"), onto, "nearest")
        whole, outside = source.read(1, (0, 0, 10, 20)), source.outside((0, 0, 10, 20))
        source.close()
    expected = array.repeat(2, 0).repeat(2, 1)[2:12, 4:16]
    np.testing.assert_array_equal(whole[:, :12], expected)
    assert outside is not None and not outside[:, :12].any() and outside[:, 12:].all()


def test_a_thumbnail_is_an_average(tmp_path):
    bands = np.stack([noise(40, 60, dtype="uint8"), np.full((40, 60), 7, np.uint8)])
    write_map(tmp_path / "a.tif", bands, "EPSG:32633", AT, nodata=255)
    assert thumbnail(tmp_path / "a.tif", 30, 2).tolist() == np.full((20, 30), 7).tolist()
