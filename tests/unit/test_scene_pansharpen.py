"""Pansharpening: bands with a panchromatic one's detail and their own colour, by GDAL, against a known truth."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jeoparda.errors import SceneError
from jeoparda.raster import write_band
from jeoparda.scene import SceneRecipe, open_scene
from tests.scenes import landsat

FINE, COARSE = 2.0, 8.0  # m, as CBERS-4A WPM


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """(row, col) between 0 and 1, with detail down to some pixels."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(height, width)))
    rows, cols = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    field = np.fft.irfft2(spectrum * np.exp(-((np.hypot(rows, cols) / 0.12) ** 2)), (height, width))
    return (field - field.min()) / np.ptp(field)


@pytest.fixture
def wpm(tmp_path) -> tuple:
    """A CBERS-4A WPM folder of 480 x 640 m, and the truth at 2 m. Detail is of brightness, colour varies slowly."""
    height, width = 240, 320
    light = 0.4 + smooth(height, width, 1)
    slow = [smooth(height // 40, width // 40, 10 + i).repeat(40, 0).repeat(40, 1) for i in range(4)]
    truth = {f"B{i + 1}": 1000 * light * (1 + 0.2 * i + 0.2 * slow[i]) for i in range(4)}
    base = "CBERS_4A_WPM_20200612_200_105_L4_BAND"
    for band, array in truth.items():
        mean = array.reshape(height // 4, 4, width // 4, 4).mean((1, 3))
        place = (COARSE, 0.0, 5e5, 0.0, -COARSE, 9e6)
        write_band(tmp_path / f"{base}{band[1]}.tif", np.rint(mean).astype(np.uint16), "EPSG:32723", place)
    pan = np.rint(np.mean(list(truth.values()), 0)).astype(np.uint16)
    write_band(tmp_path / f"{base}0.tif", pan, "EPSG:32723", (FINE, 0.0, 5e5, 0.0, -FINE, 9e6))
    return tmp_path, truth


def fused(folder, **more) -> tuple:
    s = open_scene(folder, None, SceneRecipe(pansharpen=True, **more))
    with s.reader() as r:
        window = (0, 0, s.finest.height_px, s.finest.width_px)
        return s, {b: r.read(b, window).astype(float) for b in s.bands}


def test_detail_is_gained_and_colour_kept(wpm):
    folder, truth = wpm
    plain = open_scene(folder)
    assert plain.bands == ("B1", "B2", "B3", "B4") and plain.finest.pixel_size == COARSE
    s, pixels = fused(folder)
    assert (s.finest.pixel_size, s.finest.height_px, s.finest.width_px) == (FINE, 240, 320)
    assert s.bands == plain.bands and [g.name for g in s.groups(64)] == ["2m"]
    with plain.reader() as r:
        coarse = {b: r.read(b, (0, 0, 60, 80)).astype(float) for b in plain.bands}
    for band, array in pixels.items():
        blurred = coarse[band].repeat(4, 0).repeat(4, 1)
        assert abs(array.mean() / coarse[band].mean() - 1) < 0.005  # the mean colour
        back = array.reshape(60, 4, 80, 4).mean((1, 3))
        assert np.abs(back / coarse[band] - 1).mean() < 0.02  # and that of each coarse pixel
        error, before = (np.sqrt(np.mean((a - truth[band]) ** 2)) for a in (array, blurred))
        assert error < before / 3  # the detail


def test_windows_of_it_are_parts_of_the_whole(wpm):
    folder, _ = wpm
    s, pixels = fused(folder)
    with s.reader() as r:
        for window in ((0, 0, 64, 64), (37, 101, 90, 50), (200, 280, 40, 40)):
            row, col, h, w = window
            np.testing.assert_array_equal(r.read("B3", window), pixels["B3"][row : row + h, col : col + w])


def test_weights_and_other_bands(wpm):
    folder, truth = wpm
    s, pixels = fused(folder, bands=("B3", "B2"), pan_weights=(0.5, 0.5))
    assert s.bands == ("B3", "B2")
    # pan is the mean of four bands and is taken for the mean of two: both change by the same factor
    ratio = np.mean(list(truth.values())) / np.mean([truth["B3"], truth["B2"]])
    assert abs(pixels["B3"].mean() / truth["B3"].mean() / ratio - 1) < 0.02
    with pytest.raises(SceneError, match="pan_weights has 1 numbers; expected one a band, for B1, B2, B3, B4"):
        fused(folder, pan_weights=(1.0,))


THEIRS = shutil.which("gdal_pansharpen.py")


@pytest.mark.skipif(not THEIRS, reason="needs GDAL's own programs; to enable: apt-get install gdal-bin python3-gdal")
def test_it_is_what_gdal_makes_of_it(wpm, tmp_path):
    folder, _ = wpm
    files = [str(next(folder.glob(f"*_BAND{i}.tif"))) for i in range(5)]
    out = tmp_path / "theirs.tif"
    environment = {"PATH": str(Path(THEIRS).parent)}  # the Python beside it has GDAL's module, ours has not
    subprocess.run([THEIRS, *files, str(out)], check=True, capture_output=True, env=environment)
    with rasterio.open(out) as f:
        theirs = f.read()
    _, pixels = fused(folder)
    for i, ours in enumerate(pixels.values()):
        assert np.abs(theirs[i] - ours).max() <= 1 and (theirs[i] == ours).mean() > 0.999


def test_without_a_panchromatic_band_it_is_told(wpm):
    folder, _ = wpm
    next(folder.glob("*_BAND0.tif")).unlink()
    with pytest.raises(SceneError, match="pansharpen is on, and there is no panchromatic band; name it by `pan`"):
        fused(folder)


def test_a_folder_names_its_panchromatic_band(wpm, tmp_path):
    folder, _ = wpm
    _, expected = fused(folder)
    for i, name in enumerate(("pan", "blue", "green", "red", "nir")):
        next(folder.glob(f"*_BAND{i}.tif")).rename(tmp_path / f"x_{name}.tif")
    s, pixels = fused(folder, pan="pan", bands=("blue", "green", "red", "nir"))
    assert s.rgb == ("red", "green", "blue") and "pan" not in s.bands
    np.testing.assert_array_equal(pixels["nir"], expected["B4"])


def place(path, function, pixel: float, left: float, top: float, height: int, width: int) -> None:
    x = left + pixel * (np.arange(width) + 0.5)
    y = top - pixel * (np.arange(height) + 0.5)
    write_band(
        path, np.rint(function(x[None], y[:, None])).astype(np.uint16), "EPSG:32622", (pixel, 0, left, 0, -pixel, top)
    )


@pytest.mark.parametrize(
    ("left", "size"), [(0, (300, 400)), (7.5, (299, 399)), (300, (150, 200)), (-30, (304, 404)), (-7.5, (301, 401))]
)
def test_the_result_lies_where_the_panchromatic_band_lies(tmp_path, left, size):
    """Also where its corners are others: half a pixel inside, as Landsat's; a part; beyond the other bands."""
    fields = {
        "red": lambda x, y: 3000 + 1000 * np.sin(x / 297) + 800 * np.cos(y / 243),
        "green": lambda x, y: 2000 + 900 * np.cos(x / 251 + y / 300),
        "blue": lambda x, y: 2500 + 700 * np.sin((x - y) / 333),
    }
    for name, field in fields.items():
        place(tmp_path / f"x_{name}.tif", field, 30, 0, 0, 150, 200)
    place(tmp_path / "x_pan.tif", lambda x, y: sum(f(x, y) for f in fields.values()) / 3, 15, left, -left, *size)
    s, pixels = fused(tmp_path, pan="pan")
    assert s.finest.pixel_size == 15 and s.finest.transform[2] == (left if left >= 0 else (0 if left == -30 else 7.5))
    a, _, x0, _, e, y0 = s.finest.transform
    height, width = s.finest.height_px, s.finest.width_px
    assert x0 + a * width <= 6000 and y0 + e * height >= -4500  # within what the bands cover
    x, y = x0 + a * (np.arange(width) + 0.5), y0 + e * (np.arange(height) + 0.5)
    for name, field in fields.items():
        error = np.abs(pixels[name] - field(x[None], y[:, None]))
        assert error[20:-20, 20:-20].max() < 4  # half a pixel of 30 m off would be 50


def test_landsat_with_its_mask(tmp_path):
    folder, _, _ = landsat(tmp_path, 2, "L1TP", pan=True)
    s = open_scene(folder, None, SceneRecipe(pansharpen=True))
    assert (s.finest.height_px, s.finest.width_px, s.finest.pixel_size) == (79, 119, 15)
    assert s.fusion is not None and s.fusion.pan.path in s.inputs and len(s.inputs) == 9
    with s.reader() as r:
        valid = r.valid((0, 0, 79, 119))
        assert r.read("B4", (0, 0, 79, 119)).dtype == np.uint16
    assert not valid[0, :9].any() and valid[6:, 20:].all()


def test_a_coarser_panchromatic_band_is_refused(wpm):
    folder, _ = wpm
    path = next(folder.glob("*_BAND0.tif"))
    write_band(path, np.ones((10, 10), np.uint16), "EPSG:32723", (48.0, 0.0, 5e5, 0.0, -48.0, 9e6))
    with pytest.raises(SceneError, match=r"BAND0\.tif: has pixels of 48.*expected finer ones"):
        fused(folder)
