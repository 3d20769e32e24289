"""Landsat folders in USGS's layout, with known pixels and an MTL file."""

import json

import numpy as np
import pytest

from jeoparda.errors import SceneError
from jeoparda.raster import write_band
from jeoparda.scene import SceneRecipe, find_scenes, open_scene
from jeoparda.scene.landsat import parse
from tests.scenes import landsat

WHOLE = (0, 0, 40, 60)


def read(scene) -> tuple[dict[str, np.ndarray], np.ndarray]:
    with scene.reader() as r:
        return {b: r.read(b, WHOLE) for b in scene.bands}, r.valid(WHOLE)


def scaled(numbers: np.ndarray, gain: float, offset: float) -> np.ndarray:
    return np.where(numbers == 0, 0, np.clip(np.rint(1e4 * (numbers * gain + offset)), 1, 65535))


@pytest.mark.parametrize(("collection", "level"), [(2, "L2SP"), (2, "L1TP"), (1, "L1TP")])
def test_pixels_are_reflectance_by_the_products_own_factors(tmp_path, collection, level):
    folder, numbers, _ = landsat(tmp_path, collection, level)
    (found,) = find_scenes(tmp_path)
    s = open_scene(found)
    sensor = "landsat-8-l2" if level == "L2SP" else "landsat-8-l1"  # surface and top of the atmosphere are not mixed
    assert (found, s.sensor, s.level, s.date) == (folder, sensor, level, "2020-06-12T13:45:12")
    assert (s.unit, s.rgb, s.bands) == ("reflectance x 10000", ("B4", "B3", "B2"), tuple(f"B{i}" for i in range(1, 8)))
    pixels, _ = read(s)
    for i, (band, n) in enumerate(numbers.items()):
        if level == "L2SP":  # and not by the factors of Level-1, which the file has too
            expected = scaled(n, 2.75e-5, -0.2)
        else:  # the sun stands at 30 degrees, whose sine is a half
            expected = scaled(n, 2 * (2 + i) * 1e-5, -2 * (i + 1) / 10)
        assert pixels[band].dtype == np.uint16
        np.testing.assert_allclose(pixels[band].astype(int), expected, atol=1)  # where rounding is on the edge
        assert (pixels[band] == expected).mean() > 0.98
        assert pixels[band][1, 0] == 0 and pixels[band][1, 1] == 1


def test_the_quality_band_says_what_is_valid(tmp_path):
    """One bit at a time in the first row: fill, dilated cloud, cirrus, cloud, shadow, snow, clear, water."""
    folder, *_ = landsat(tmp_path)

    def first_row(**more) -> list[bool]:
        _, valid = read(open_scene(folder, None, SceneRecipe(**more)))
        assert valid[2:].all()
        return valid[0, :8].tolist()

    assert first_row() == [False] * 5 + [True] * 3
    assert first_row(invalid_qa=("snow", "water")) == [True] * 5 + [False, True, False]
    assert first_row(invalid_qa=()) == [True] * 8


def test_collection_1_has_other_bits(tmp_path):
    folder, _, quality = landsat(tmp_path, 1, "L1TP")
    _, valid = read(open_scene(folder))
    # fill is bit 0, cloud bit 4; shadow, cirrus and snow are confidences of two bits, and one bit of them is not high
    assert valid[0, :8].tolist() == [i not in (0, 4) for i in range(8)] and quality[0, 4] == 16


def test_json_and_xml_say_the_same(tmp_path):
    folder, *_ = landsat(tmp_path)
    (text,) = folder.glob("*_MTL.txt")
    bare = parse(text).groups
    data = text.with_suffix(".json")
    data.write_text(json.dumps({"LANDSAT_METADATA_FILE": bare}))
    xml = text.with_suffix(".xml")
    inner = "".join(
        f"<{g}>{''.join(f'<{k}>{v}</{k}>' for k, v in entries.items())}</{g}>" for g, entries in bare.items()
    )
    xml.write_text(f"<LANDSAT_METADATA_FILE>{inner}</LANDSAT_METADATA_FILE>")
    assert parse(data).groups == parse(xml).groups == bare
    before = open_scene(folder)
    text.unlink()
    assert open_scene(folder) == before
    data.unlink()
    assert open_scene(folder) == before


def test_thermal_bands_come_only_when_asked_for_and_as_they_are(tmp_path):
    folder, *_ = landsat(tmp_path)
    s = open_scene(folder, ("B4", "B10"))
    assert s.files["B10"].gain == 1 and "Band B10: digital numbers" in s.notes[0]
    (path,) = folder.glob("*_B10.TIF")
    write_band(path, np.full((40, 60), -5, np.int16), s.finest.crs, s.finest.transform)
    with open_scene(folder, ("B4", "B10")).reader() as r:
        assert r.read("B10", (2, 0, 1, 2)).tolist() == [[0, 0]]  # not 1, which is the least reflectance


def test_the_panchromatic_band_lies_on_a_grid_of_its_own(tmp_path):
    """Its outer pixels' centres agree with the others', so its corners do not."""
    folder, *_ = landsat(tmp_path, 2, "L1TP", pan=True)
    assert "B8" not in open_scene(folder).bands
    with pytest.raises(SceneError, match="align: resample"):
        open_scene(folder, ("B4", "B8"))
    s = open_scene(folder, ("B4", "B8"), SceneRecipe(align="resample"))
    assert s.bands == ("B8", "B4") and (s.finest.height_px, s.finest.width_px) == (79, 119)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("SPACECRAFT_ID", "CRAFT", "says no SPACECRAFT_ID"),
        ("LANDSAT_8", "LANDSAT_12", "the spacecraft is landsat-12; there are landsat-4"),
        ("REFLECTANCE_MULT_BAND_3", "X", "says no REFLECTANCE_MULT_BAND_3 in LEVEL2"),
    ],
)
def test_metadata_that_do_not_say_enough_are_told(tmp_path, old, new, why):
    folder, *_ = landsat(tmp_path)
    (text,) = folder.glob("*_MTL.txt")
    text.write_text(text.read_text().replace(old, new))
    with pytest.raises(SceneError, match=why) as e:
        open_scene(folder)
    assert "_MTL.txt" in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    folder, *_ = landsat(tmp_path)
    next(folder.glob("*_SR_B5.TIF")).unlink()
    with pytest.raises(SceneError, match=r"no raster for band B5; found B1, .*_MTL.txt lists .*_SR_B5.TIF: "):
        open_scene(folder)
    with pytest.raises(SceneError, match=r"no raster for band B8; found B1, .*_MTL.txt lists B1, B2, .*B10$"):
        open_scene(folder, ("B8",))
    assert "B5" not in open_scene(folder, ("B4",)).bands
    next(folder.glob("*_QA_PIXEL.TIF")).unlink()
    with pytest.raises(SceneError, match=r"_QA_PIXEL.TIF: the MTL file lists this mask.*invalid_qa: \[\]"):
        open_scene(folder, ("B4",))
    assert open_scene(folder, ("B4",), SceneRecipe(invalid_qa=())).quality == ()


def test_many_scenes_in_one_folder(tmp_path):
    one, *_ = landsat(tmp_path / "a")
    two, *_ = landsat(tmp_path / "b", 2, "L1TP")
    together = tmp_path / "c"
    together.mkdir()
    for path in (*one.iterdir(), *two.iterdir()):
        path.rename(together / path.name)
    found = find_scenes(together)
    assert [p.name for p in found] == sorted([one.name, two.name])
    assert [open_scene(p).level for p in found] == ["L1TP", "L2SP"]
    with pytest.raises(SceneError, match="expected one scene, found 2"):
        open_scene(together)


def test_names_differ_in_case_and_hidden_files_are_nobodys(tmp_path):
    folder, *_ = landsat(tmp_path)
    before = open_scene(folder)
    for path in list(folder.glob("*.TIF")):
        path.rename(path.with_suffix(".tif"))
    (text,) = folder.glob("*_MTL.txt")
    (folder / f"._{text.name}").write_bytes(b"\0\5\x16")  # as macOS leaves it beside a copy
    assert find_scenes(tmp_path) == [folder]
    s = open_scene(folder)
    assert s.bands == before.bands and s.quality[0].file.path.endswith("_QA_PIXEL.tif")


def test_a_scene_by_night_is_no_reflectance(tmp_path):
    folder, *_ = landsat(tmp_path, 2, "L1TP")
    (text,) = folder.glob("*_MTL.txt")
    text.write_text(text.read_text().replace("SUN_ELEVATION = 30.0", "SUN_ELEVATION = -30.0"))
    with pytest.raises(SceneError, match=r"_MTL.txt: SUN_ELEVATION is -30; expected a scene by day"):
        open_scene(folder)
    assert open_scene(folder, ("B10",)).bands == ("B10",)


def test_a_packed_product_is_told_and_does_not_hide_the_others(tmp_path):
    folder, *_ = landsat(tmp_path)
    packed = [tmp_path / "LC09_L2SP_1_02_T1.tar", tmp_path / "S2A_MSIL2A_20230613.SAFE.zip", tmp_path / "le07_x.tar.gz"]
    for path in packed:
        path.write_bytes(b"x")
    (tmp_path / "notes.zip").write_bytes(b"x")
    assert find_scenes(tmp_path) == sorted([folder, *packed])
    assert find_scenes(tmp_path, SceneRecipe(kind="landsat")) == sorted([folder, packed[0], packed[2]])
    for path in packed:
        with pytest.raises(SceneError, match="is packed; expected a product's folder: unpack it"):
            open_scene(path)
