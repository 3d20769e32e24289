"""Labels on a grid: nearest neighbour against pyproj, polygons against pixels counted by hand, every wrong file."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from jeoparda import vector
from jeoparda.config import check
from jeoparda.errors import PatchError, RecipeError
from jeoparda.labels import LabelRecipe, open_labels
from jeoparda.nomenclature import IGNORE
from tests.conftest import SHARED

UTM33 = "EPSG:32633"
GRID = (10.0, 0.0, 300_000.0, 0.0, -10.0, 5_800_000.0)


def section(**keys) -> LabelRecipe:
    return check(LabelRecipe, keys)


def write(path: Path, array: np.ndarray, crs=UTM33, transform=GRID, **more) -> Path:
    """A raster of (row, col) or (band, row, col)."""
    bands = array[None] if array.ndim == 2 else array
    count, height, width = bands.shape
    profile = {"driver": "PNG" if path.suffix == ".png" else "GTiff", "dtype": bands.dtype, **more}
    if crs is not None:
        profile |= {"crs": crs, "transform": Affine(*transform)}
    with rasterio.open(path, "w", count=count, height=height, width=width, **profile) as f:
        f.write(bands)
    return path


def polygons(path: Path, shapes: list, values: list, crs=UTM33, name="class", **more) -> Path:
    """A vector file of px polygons; `shapes`: shapely geometries, None for none."""
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(shapes, dtype=object)),
        [np.array(values)],
        [name],
        geometry_type=more.pop("geometry_type", "Polygon"),
        crs=crs,
        **more,
    )
    return path


def on_ground(*corners, transform=GRID) -> shapely.Polygon:
    """A polygon from corners in (col, row) px."""
    a, _, x, _, e, y = transform
    return shapely.Polygon([(x + a * col, y + e * row) for col, row in corners])


# ---- label rasters

plain = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_a_label_raster_on_the_scene_s_own_grid_is_read_as_it_is(tmp_path):
    values = np.arange(35, dtype=np.uint8).reshape(5, 7) % 3
    write(tmp_path / "l.tif", values)
    labels = open_labels(section(path="l.tif"), tmp_path)
    assert labels.classes == ("0", "1", "2")
    assert (labels.mask(UTM33, GRID, 5, 7) == values).all()
    moved = (10.0, 0.0, 300_000.0 - 20, 0.0, -10.0, 5_800_000.0 - 10)  # two columns to the left, a row down
    found = labels.mask(UTM33, moved, 6, 7)
    assert (found[:4, 2:] == values[1:, :5]).all()
    assert (found[:, :2] == IGNORE).all() and (found[4:] == IGNORE).all()


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM33, (13.0, 0.0, 300_031.7, 0.0, -13.0, 5_799_990.3)),  # the same CRS, another grid
        ("EPSG:32632", (10.0, 0.0, 711_100.0, 0.0, -10.0, 5_804_000.0)),  # the zone beside it
        ("EPSG:4326", (1e-4, 0.0, 12.08, 0.0, -7e-5, 52.31)),
    ],
)
def test_nearest_neighbour_agrees_with_pyproj(tmp_path, crs, transform):
    rng = np.random.default_rng(5)
    values = rng.integers(0, 9, (400, 300), np.uint8)
    file = (7.0, 0.0, 300_003.0, 0.0, -7.0, 5_800_002.0)
    write(tmp_path / "l.tif", values, transform=file)
    if crs != UTM33:  # put the grid over the label raster, whatever its CRS
        x, y = pyproj.Transformer.from_crs(UTM33, crs, always_xy=True).transform(301_000, 5_799_300)
        transform = (*transform[:2], x, *transform[3:5], y)
    height, width = 170, 210
    rows, cols = np.mgrid[:height, :width] + 0.5
    (a, b, x0, d, e, y0), (px, _, left, _, py, top) = transform, file
    x, y = a * cols + b * rows + x0, d * cols + e * rows + y0
    x, y = pyproj.Transformer.from_crs(crs, UTM33, always_xy=True).transform(x, y)
    col, row = (x - left) / px, (y - top) / py
    inside = (col >= 0) & (col < 300) & (row >= 0) & (row < 400)
    expected = np.full((height, width), IGNORE, np.uint8)
    expected[inside] = values[row[inside].astype(int), col[inside].astype(int)]
    clear = np.minimum(np.abs(col - col.round()), np.abs(row - row.round())) > 2e-4  # not on a pixel's edge
    assert inside.any() and not inside.all() and clear.mean() > 0.99

    labels = open_labels(section(path="l.tif"), tmp_path)
    found = labels.mask(crs, transform, height, width)
    assert (found == expected)[clear].all()
    with labels.over(crs, transform, height, width) as masks:  # windows are parts of the whole
        for window in ((0, 0, 170, 13), (33, 60, 64, 100), (100, 0, 70, 210)):
            r, c, h, w = window
            assert (masks(window) == found[r : r + h, c : c + w]).all()


def test_remap_unlisted_and_nodata(tmp_path):
    write(tmp_path / "l.tif", np.array([[0, 1, 2], [7, 9, 9]], np.float32), nodata=9)
    remap = {"0": "land", "1": "water", "2": "ignore"}
    known = section(path="l.tif", remap=remap | {"7": "land"}, classes=["water", "land"])
    assert open_labels(known, tmp_path).mask(UTM33, GRID, 2, 3).tolist() == [[1, 0, 255], [1, 255, 255]]

    with pytest.raises(PatchError, match=r"l.tif: unknown class value '7'; expected one of 0, 1, 2; add it to") as e:
        open_labels(section(path="l.tif", remap=remap), tmp_path).mask(UTM33, GRID, 2, 3)
    assert e.value.file == "l.tif"

    loose = open_labels(section(path="l.tif", remap=remap, unlisted="ignore"), tmp_path)
    assert loose.classes == ("land", "water")
    assert loose.mask(UTM33, GRID, 2, 3).tolist() == [[0, 1, 255], [255, 255, 255]]

    kept = open_labels(section(path="l.tif", remap=remap, unlisted="keep"), tmp_path)
    assert kept.classes == ("land", "water", "7")
    assert kept.mask(UTM33, GRID, 2, 3).tolist() == [[0, 1, 255], [2, 255, 255]]

    # a value that the table names counts, also where the file calls it nodata
    table = section(path="l.tif", remap={"9": "cloud", "0": "land", "1": "land", "2": "land", "7": "land"})
    assert open_labels(table, tmp_path).mask(UTM33, GRID, 2, 3).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_class_numbers_only_when_asked(tmp_path):
    write(tmp_path / "l.tif", np.array([[0, 2], [1, 1]], np.uint8))
    names = {"path": "l.tif", "classes": ["sea", "sand", "rock"]}
    with pytest.raises(PatchError, match=r"unknown class value '0'; expected one of sea, sand, rock"):
        open_labels(section(**names), tmp_path).mask(UTM33, GRID, 2, 2)
    assert open_labels(section(**names, unlisted="keep"), tmp_path).mask(UTM33, GRID, 2, 2).tolist() == [[0, 2], [1, 1]]


@plain
def test_grey_images_stored_as_rgb_and_rgba_and_colors(tmp_path):
    grey = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    alpha = np.array([[255, 255, 255], [255, 0, 255]], np.uint8)
    write(tmp_path / "rgb.png", np.stack([grey] * 3), crs=None)
    write(tmp_path / "rgba.png", np.stack([grey, grey, grey, alpha]), crs=None)
    write(tmp_path / "color.png", np.stack([grey, grey, 255 - grey]), crs=None)
    none = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    remap = {"0": "soil", "255": "rock"}
    assert open_labels(section(path="rgb.png", remap=remap), tmp_path).mask("", none, 2, 3).tolist() == [
        [0, 1, 0],
        [1, 1, 0],
    ]
    assert open_labels(section(path="rgba.png", remap=remap), tmp_path).mask("", none, 2, 3).tolist() == [
        [0, 1, 0],
        [1, 255, 0],
    ]
    with pytest.raises(PatchError, match=r"color.png: its red, green and blue differ"):
        open_labels(section(path="color.png", remap=remap), tmp_path).mask("", none, 2, 3)
    colors = {"#0000ff": "soil", "#ffff00": "rock"}
    found = open_labels(section(path="color.png", remap=colors), tmp_path).mask("", none, 2, 3)
    assert found.tolist() == [[0, 1, 0], [1, 1, 0]]
    with pytest.raises(PatchError, match=r"color.png: unknown class value '#0000ff'; expected one of #ffff00"):
        open_labels(section(path="color.png", remap={"#ffff00": "rock"}), tmp_path).mask("", none, 2, 3)
    third = open_labels(section(path="color.png", remap=remap, band=3), tmp_path).mask("", none, 2, 3)
    assert third.tolist() == [[1, 0, 1], [0, 0, 1]]


@plain
def test_without_crs_sizes_must_agree(tmp_path):
    write(tmp_path / "l.png", np.array([[0, 1, 1]], np.uint8), crs=None)
    none = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    labels = open_labels(section(path="l.png"), tmp_path)
    assert labels.mask("", none, 1, 3).tolist() == [[0, 1, 1]]
    with pytest.raises(PatchError, match=r"l.png: is 1 x 3 px and is to lie pixel on pixel on 2 x 3 px"):
        labels.mask("", none, 2, 3)
    with pytest.raises(PatchError, match=r"l.png: has no CRS, the image it belongs to CRS EPSG:32633"):
        labels.mask(UTM33, GRID, 1, 3)
    assert open_labels(section(path="l.png", align="pixel"), tmp_path).mask(UTM33, GRID, 1, 3).tolist() == [[0, 1, 1]]


# ---- polygons

# (col, row) px: a triangle whose hypotenuse runs from (1, 1) to (6, 4), and a sliver that holds no pixel's centre
TRIANGLE = ((1.2, 0.8), (6.2, 4.3), (1.2, 4.3))
SLIVER = ((5.1, 0.1), (7.9, 0.1), (7.9, 0.4), (5.1, 0.4))
CENTER = """
........
.#......
.###....
.####...
........
"""
TOUCHED = """
.#...###
.##.....
.####...
.#####..
.######.
"""


def drawn(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


@pytest.mark.parametrize(("touch", "picture"), [("center", CENTER), ("all", TOUCHED)])
@pytest.mark.parametrize("name", ["p.gpkg", "p.shp", "p.fgb"])
def test_polygons_by_centre_and_by_touch(tmp_path, touch, picture, name):
    polygons(tmp_path / name, [on_ground(*TRIANGLE), on_ground(*SLIVER)], ["wood", "wood"])
    labels = open_labels(section(path=name, attribute="class", touch=touch), tmp_path)
    found = labels.mask(UTM33, GRID, 5, 8)
    assert labels.classes == ("wood",)
    assert (found == np.where(drawn(picture), 0, IGNORE)).all(), found
    with labels.over(UTM33, GRID, 5, 8) as masks:
        for r, c, h, w in ((0, 0, 2, 8), (2, 1, 3, 4), (1, 5, 4, 3)):
            assert (masks((r, c, h, w)) == found[r : r + h, c : c + w]).all()


def test_background_is_a_class(tmp_path):
    polygons(tmp_path / "p.gpkg", [on_ground(*TRIANGLE)], ["wood"])
    labels = open_labels(section(path="p.gpkg", attribute="class", background="open"), tmp_path)
    assert labels.classes == ("open", "wood")
    assert (labels.mask(UTM33, GRID, 5, 8) == drawn(CENTER)).all()


def test_later_polygons_lie_over_earlier_ones_in_any_format(tmp_path):
    """Strips that overlap, dealt out so that a spatial index would give them in another order."""
    order = np.random.default_rng(3).permutation(200)
    shapes = [on_ground((i / 2, 0), (i / 2 + 7, 0), (i / 2 + 7, 5), (i / 2, 5)) for i in order]
    expected = np.full((5, 110), IGNORE, np.uint8)
    shapes = [shapely.affinity.translate(s, 1.0) for s in shapes]  # a tenth of a pixel: no edge on a centre
    for k, i in enumerate(order):
        x = np.arange(110) + 0.5
        expected[:, (x > i / 2 + 0.1) & (x < i / 2 + 7.1)] = k % 5
    for name in ("p.gpkg", "p.geojson", "p.shp"):
        crs = UTM33
        polygons(tmp_path / name, shapes, [f"c{k % 5}" for k in range(200)], crs=crs)
        classes = [f"c{k}" for k in range(5)]
        labels = open_labels(section(path=name, attribute="class", classes=classes), tmp_path)
        found = labels.mask(UTM33, GRID, 5, 110)
        assert (found == expected).all(), name
        with labels.over(UTM33, GRID, 5, 110) as masks:
            assert (masks((1, 40, 3, 20)) == expected[1:4, 40:60]).all()


def test_polygons_in_another_crs_fall_on_the_same_pixels(tmp_path):
    to = pyproj.Transformer.from_crs(UTM33, "EPSG:4326", always_xy=True)
    there = shapely.transform(on_ground(*TRIANGLE), lambda xy: np.column_stack(to.transform(*xy.T)))
    far = shapely.box(5, 40, 6, 41)  # another country
    geo = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "id": 9 - i, "properties": {"class": n}, "geometry": shapely.geometry.mapping(s)}
            for i, (s, n) in enumerate([(there, 1.0), (far, 2.0)])
        ],
    }
    (tmp_path / "p.geojson").write_text(json.dumps(geo))
    labels = open_labels(section(path="p.geojson", attribute="class", remap={1: "wood", 2: "rock"}), tmp_path)
    assert labels.classes == ("wood", "rock")
    assert (labels.mask(UTM33, GRID, 5, 8) == np.where(drawn(CENTER), 0, IGNORE)).all()


def test_invalid_shapes_are_mended_and_empty_ones_left_out_and_both_counted(tmp_path):
    bow = on_ground((0.2, 0.2), (4.2, 4.2), (4.2, 0.2), (0.2, 4.2))  # crosses itself: two triangles
    polygons(tmp_path / "p.gpkg", [bow, None, shapely.Polygon(), on_ground(*TRIANGLE)], ["a", "b", "b", "a"])
    found = vector.read_shapes(tmp_path / "p.gpkg", "p", "class", UTM33, (299_000, 5_799_000, 301_000, 5_801_000))
    assert (found.mended, len(found.geometries), found.values) == (1, 2, ("a", "a"))
    assert shapely.is_valid(found.geometries).all()
    assert shapely.area(found.geometries[0]) == pytest.approx(2 * (4 * 2 / 2) * 100)
    whole = vector.read_shapes(tmp_path / "p.gpkg", "p", "class", None, (-np.inf, -np.inf, np.inf, np.inf))
    assert len(whole.geometries) == 2


def test_points_mark_their_pixel_and_shapes_need_no_attribute(tmp_path):
    points = [shapely.Point(300_000 + 25, 5_800_000 - 11), shapely.Point(300_000 + 69, 5_800_000 - 49)]
    polygons(tmp_path / "p.gpkg", points, [1, 1], geometry_type="Point")
    found = open_labels(section(path="p.gpkg", remap={1: "tree"}, background="none"), tmp_path).mask(UTM33, GRID, 5, 8)
    assert sorted(zip(*np.nonzero(found == 1), strict=True)) == [(1, 2), (4, 6)]


def test_shapes_in_pixels(tmp_path):
    """An image without a CRS, and shapes drawn on it, as annotation tools save them."""
    geo = {
        "type": "Feature",
        "properties": {"c": "crater"},
        "geometry": shapely.geometry.mapping(shapely.Polygon(TRIANGLE)),
    }
    (tmp_path / "p.geojson").write_text(json.dumps(geo))
    none = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    with pytest.raises(PatchError, match=r"has CRS EPSG:4326, the image it belongs to has none; expected align: pixel"):
        open_labels(section(path="p.geojson", attribute="c"), tmp_path).mask("", none, 5, 8)
    found = open_labels(section(path="p.geojson", attribute="c", align="pixel"), tmp_path).mask("", none, 5, 8)
    assert (found == np.where(drawn(CENTER), 0, IGNORE)).all()


# ---- what is wrong is said


def test_every_fault_of_a_vector_file_says_what_there_is(tmp_path):
    file = tmp_path / "p.gpkg"
    polygons(file, [on_ground(*TRIANGLE)], ["wood"], layer="woods")
    with pytest.raises(PatchError, match=r"p.gpkg: layer 'woods' has no attribute 'klass'; expected one .*: class"):
        open_labels(section(path="p.gpkg", attribute="klass"), tmp_path)
    with pytest.raises(PatchError, match=r"p.gpkg: has no layer 'lakes'; expected one of its layers: woods"):
        open_labels(section(path="p.gpkg", layer="lakes", attribute="class"), tmp_path)
    polygons(file, [on_ground(*TRIANGLE)], ["pond"], layer="lakes", append=True)
    with pytest.raises(PatchError, match=r"p.gpkg: has 2 layers: woods, lakes; expected labels.layer to name one"):
        open_labels(section(path="p.gpkg", attribute="class"), tmp_path)
    assert open_labels(section(path="p.gpkg", layer="lakes", attribute="class"), tmp_path).classes == ("pond",)

    with pytest.warns(UserWarning, match="crs"):
        polygons(tmp_path / "q.shp", [on_ground(*TRIANGLE)], ["wood"], crs=None)
    with pytest.raises(
        PatchError, match=r"q.shp: has no CRS; expected one, as the image it belongs to has: EPSG:32633"
    ):
        open_labels(section(path="q.shp", attribute="class"), tmp_path).mask(UTM33, GRID, 5, 8)

    (tmp_path / "r.geojson").write_text('{"type": "FeatureCollection", "features": [{')
    with pytest.raises(PatchError, match=r"^r.geojson: cannot be read: "):
        open_labels(section(path="r.geojson", attribute="class"), tmp_path)
    (tmp_path / "s.gpkg").write_bytes(b"")
    with pytest.raises(PatchError, match=r"^s.gpkg: cannot be read: "):
        open_labels(section(path="s.gpkg", attribute="class"), tmp_path)


def test_an_unknown_attribute_value_names_file_value_and_known_ones(tmp_path):
    polygons(tmp_path / "p.gpkg", [on_ground(*TRIANGLE)], ["wood"])
    with pytest.raises(PatchError, match=r"^p.gpkg: unknown class value 'wood'; expected one of 3, 4; add it to"):
        open_labels(section(path="p.gpkg", attribute="class", remap={3: "a", 4: "b"}), tmp_path).mask(UTM33, GRID, 5, 8)


def test_yaml_s_yes_is_hinted_at(tmp_path):
    polygons(tmp_path / "p.gpkg", [on_ground(*TRIANGLE)], ["yes"])
    yes = check(LabelRecipe, {"path": "p.gpkg", "attribute": "class", "remap": {True: "house"}})
    with pytest.raises(PatchError, match=r"unknown class value 'yes'.*yes, no, on and off need quotes"):
        open_labels(yes, tmp_path).mask(UTM33, GRID, 5, 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "{tile}.tif"}, "unknown placeholder; there are scene, name, date"),
        ({"path": "l.tif", "background": "sea"}, "is for shapes, l.tif is a raster"),
        ({"path": "l.tif", "classes": ["a"], "remap": {1: "b"}}, "labels.remap: 'b' is no class; there are a"),
        ({"path": "l.tif", "classes": ["a"], "colors": {"b": [1, 2, 3]}}, "labels.colors: 'b' is no class"),
        ({"path": "l.tif", "classes": ["a", "a"]}, "each name once"),
    ],
)
def test_recipes_that_cannot_work(tmp_path, keys, message):
    write(tmp_path / "l.tif", np.ones((2, 2), np.uint8))
    with pytest.raises(RecipeError, match=message):
        open_labels(section(**keys), tmp_path)


def test_each_scene_has_its_own_label_file(tmp_path):
    for name in ("mask_12.tif", "mask_13.tif"):
        write(tmp_path / name, np.ones((2, 2), np.uint8))
    by_name = section(path="mask_{name}.tif", name=r"img_(\d+)")
    assert open_labels(by_name, tmp_path, "img_13").file == "mask_13.tif"
    assert open_labels(section(path="*_{date}.tif"), tmp_path, date="12").file == "mask_12.tif"
    with pytest.raises(PatchError, match=r"^mask_14.tif: is missing; expected the labels of scene img_14"):
        open_labels(by_name, tmp_path, "img_14")
    with pytest.raises(PatchError, match=r"^photo: its name does not match labels.name"):
        open_labels(by_name, tmp_path, "photo")
    with pytest.raises(PatchError, match=r"^mask_\*: 2 files match, mask_12.tif, mask_13.tif; expected one"):
        open_labels(section(path="mask_*"), tmp_path)


def test_damaged_label_rasters(tmp_path):
    whole = write(tmp_path / "l.tif", np.random.default_rng(1).integers(0, 3, (300, 300), np.uint8)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.tif").write_bytes(b"")
    classes = ["0", "1", "2"]
    with pytest.raises(PatchError, match=r"^empty.tif: cannot be read"):
        open_labels(section(path="empty.tif", classes=classes), tmp_path)
    with pytest.raises(PatchError, match=r"^cut.tif: cannot be read") as e:
        open_labels(section(path="cut.tif", classes=classes), tmp_path).mask(UTM33, GRID, 300, 300)
    assert str(tmp_path) not in e.value.file


def test_a_fault_of_the_caller_s_own_is_not_blamed_on_the_labels(tmp_path):
    from jeoparda.errors import SceneError

    write(tmp_path / "l.tif", np.ones((2, 2), np.uint8))
    with (
        pytest.raises(SceneError, match=r"B04\.jp2"),
        open_labels(section(path="l.tif"), tmp_path).over(UTM33, GRID, 2, 2),
    ):
        raise SceneError("B04.jp2: cut short")


def test_values_that_are_no_classes(tmp_path):
    write(tmp_path / "l.tif", np.random.default_rng(1).random((40, 40), np.float32))
    with pytest.raises(PatchError, match=r"l.tif: band 1 holds more than 256 values; expected a map of classes"):
        open_labels(section(path="l.tif"), tmp_path)


# ---- real files


@pytest.mark.needs("shared")
def test_real_landsat_labels_of_another_crs_lie_on_the_same_pixels():
    """The bands are EPSG:32119 and the labels 3358, on one grid: between the two datums PROJ knows no shift here."""
    folder = SHARED / "landsat7-northcarolina"
    with rasterio.open(folder / "lsat7_2000_10.tif") as f:
        crs, transform, (height, width) = f.crs.to_string(), f.transform[:6], f.shape
    with rasterio.open(folder / "strata.tif") as f:
        values, nodata = f.read(1), f.nodata
    expected = np.where(values == nodata, IGNORE, values - 1)
    labels = open_labels(section(path="strata.tif"), folder)
    assert labels.classes == tuple("1234567")
    assert (labels.mask(crs, transform, height, width) == expected).mean() > 0.999
    by_pixel = open_labels(section(path="strata.tif", align="pixel"), folder)
    assert (by_pixel.mask(crs, transform, height, width) == expected).all()


@pytest.mark.needs("shared")
def test_real_polygons_beside_a_labelled_raster_agree():
    """Another tool burnt these polygons into these pixels, all that they touch: the same 2,872."""
    folder = SHARED / "landsat7-northcarolina"
    with rasterio.open(folder / "landsat96_labelled_pixels.tif") as f:
        crs, transform, (height, width) = f.crs.to_string(), f.transform[:6], f.shape
    remap = {str(i): f"c{i}" for i in range(1, 8)}
    raster = open_labels(section(path="landsat96_labelled_pixels.tif", remap=remap), folder)
    pixels = raster.mask(crs, transform, height, width)
    assert (pixels != IGNORE).sum() == 2872
    shapes = section(path="landsat96_polygons.shp", attribute="id", remap=remap, touch="all")
    assert (open_labels(shapes, folder).mask(crs, transform, height, width) == pixels).all()
    inner = section(path="landsat96_polygons.shp", attribute="label")
    inner = open_labels(inner, folder).mask(crs, transform, height, width)
    assert (inner != IGNORE).sum() == pytest.approx(2323, rel=0.03)  # the polygons' area in pixels


@pytest.mark.needs("shared")
def test_real_reference_polygons_of_brandenburg():
    """The file's own comments say what is to be seen of it."""
    folder = SHARED / "s2-l1c-brandenburg"
    with rasterio.open(folder / "IMG_DATA" / "T33UUU_20170216T102101_B02.jp2") as f:
        crs, transform, (height, width) = f.crs.to_string(), f.transform[:6], f.shape
    labels = open_labels(section(path="s2l1c_ref.gpkg", attribute="cid"), folder)
    assert labels.classes == ("1", "2")
    mask = labels.mask(crs, transform, height, width)
    _, _, wkb, (cid,) = pyogrio.raw.read(folder / "s2l1c_ref.gpkg", columns=["cid"])
    for number in (1, 2):  # pixels of 100 m2
        area = shapely.area(
            shapely.intersection(
                shapely.from_wkb(wkb[cid == number]),
                shapely.box(*rasterio.transform.array_bounds(height, width, f.transform)),
            )
        ).sum()
        assert (mask == number - 1).sum() == pytest.approx(area / 100, rel=0.02)


def test_a_class_that_the_file_calls_nodata(tmp_path):
    values = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    write(tmp_path / "l.tif", values, nodata=0)
    named = open_labels(section(path="l.tif", classes=["0", "1", "2"]), tmp_path)
    assert (named.mask(UTM33, GRID, 2, 3) == values).all()
    numbered = {"path": "l.tif", "classes": ["sea", "soy", "maize"], "unlisted": "keep"}
    with pytest.raises(
        PatchError, match=r"value 0 is both class 0, sea, and the file.s nodata; expected labels\.nodata"
    ):
        open_labels(section(**numbered), tmp_path).mask(UTM33, GRID, 2, 3)
    settled = open_labels(section(**numbered, nodata=0), tmp_path).mask(UTM33, GRID, 2, 3)
    assert (settled == np.where(values, values, IGNORE)).all()
    settled = open_labels(section(**numbered, nodata=255), tmp_path).mask(UTM33, GRID, 2, 3)
    assert (settled == values).all()


def test_a_name_that_is_no_regular_expression(tmp_path):
    with pytest.raises(RecipeError, match=r"labels.name = 'tile\('.*no regular expression"):
        open_labels(section(path="{name}.tif", name="tile("), tmp_path, "tile1")
