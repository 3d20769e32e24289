"""Pairs: low equals the degraded high exactly; real pairs lie on each other, whatever their grids and CRSs."""

from dataclasses import replace

import numpy as np
import pytest

from jeoparda.config import check
from jeoparda.degrade import degrade
from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.ingest import ground, pairs
from jeoparda.ingest.pairs import PairsRecipe
from jeoparda.ingest.source import LeftOut, Note, Patch, Planned
from jeoparda.raster import describe, write_band
from jeoparda.raster.warp import moved, warp
from jeoparda.store import Reject
from tests.conftest import SHARED

UTM = "EPSG:32633"
HIGH = (2.5, 0.0, 500_000.0, 0.0, -2.5, 5_000_000.0)
PATTERN = r"(?P<scene>[a-z]+)_(?P<band>[A-Z]\d*)_(?P<date>\d{8})"
KIND = {"kind": "folder", "pattern": PATTERN, "nodata": 0}


def smooth(rows: int, cols: int, seed: int = 0, kind: str = "uint16") -> np.ndarray:
    """Asymmetric, never 0."""
    draw = np.random.default_rng(seed).uniform(0, 200, (rows, cols))
    return (1000 + np.add.outer(7 * np.arange(rows), 3 * np.arange(cols)) + draw).astype(kind)


def section(**more) -> PairsRecipe:
    given = {"high": KIND, "low": KIND, "high_in": "high", "low_in": "low", "patch_px": 8, "min_valid": 0.0}
    given["how"] = "real"
    return check(PairsRecipe, given | more)


def made(archive, s, lost: int = 0):
    """(contents, [(planned, patch)], what was not planned); `lost`: rejects of reading."""
    contents = pairs.describe(archive, s)
    found = [p for u in pairs.units(archive, s, contents) for p in pairs.plan(archive, s, contents, u)]
    planned = [p for p in found if isinstance(p, Planned)]
    got = list(pairs.read(archive, s, contents, planned, None))
    assert sum(isinstance(g, Reject) for g in got) == lost, [str(g) for g in got if isinstance(g, Reject)]
    for g in got:
        if isinstance(g, Patch):
            fields = {k: (str(v.dtype), v.shape) for k, v in g.arrays.items()}
            assert fields == contents.layout.fields()
    assert len({p.id for p in planned}) == len(planned)
    return contents, list(zip(planned, got, strict=True)), [p for p in found if not isinstance(p, Planned | Note)]


# ---- low made of high


def plant_high(archive, rows=100, cols=140, transform=HIGH, crs=UTM):
    (archive / "high").mkdir(parents=True)
    image = {b: smooth(rows, cols, i) for i, b in enumerate(("R", "G"))}
    image["R"][40:44, 50:70] = 0  # no data
    for band, pixels in image.items():
        write_band(archive / "high" / f"a_{band}_20200510.tif", pixels, crs, transform)
    classes = (np.add.outer(2 * np.arange(rows), np.arange(cols)) % 3).astype("uint8")
    write_band(archive / "map.tif", classes, crs, transform)
    return image, classes


LABELS = {"path": "map.tif", "classes": ["a", "b", "c"], "unlisted": "keep"}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("psf", [{"kind": "box"}, {"mtf": 0.25}, {"fwhm_px": 1.4}])
@pytest.mark.parametrize("crs", [UTM, ""])
def test_low_is_the_whole_high_image_degraded(tmp_path, psf, crs):
    transform = HIGH if crs else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    image, classes = plant_high(tmp_path, crs=crs, transform=transform)
    s = section(how="degrade", psf=psf, factor=4, stride_px=4, labels=LABELS)
    contents, found, rest = made(tmp_path, s)
    unit = "m" if crs else "px"
    pixel = 4 * transform[0]
    assert contents.layout.fields() == {
        f"{pixel:g}{unit}": ("uint16", (2, 8, 8)),
        "high": ("uint16", (2, 32, 32)),
        "valid": ("uint8", (8, 8)),
        "mask": ("uint8", (32, 32)),
    }
    assert contents.target == "high-resolution mask"
    assert rest == []
    assert len(found) == 5 * 7
    bands = np.stack([image[b] for b in contents.layout.bands])
    there = (bands > 0).all(0)
    low, known = degrade(bands, pairs.psf_of(s), there)
    assert not known.all()
    for p, got in found:
        row, col = p.where["window"][:2]
        part, small = np.s_[row : row + 32, col : col + 32], np.s_[row // 4 : row // 4 + 8, col // 4 : col // 4 + 8]
        assert np.array_equal(got.arrays["high"], bands[(slice(None), *part)])
        assert np.array_equal(got.arrays["valid"], known[small])
        assert np.array_equal(got.arrays[f"{pixel:g}{unit}"], low[(slice(None), *small)])
        sure = there[part] & (np.kron(known[small], np.ones((4, 4))) > 0)
        assert np.array_equal(got.arrays["mask"], np.where(sure, classes[part], 255))
        a, _, c, _, e, f = transform
        assert p.transform == (4 * a, 0, c + a * col, 0, 4 * e, f + e * row)
        assert p.dates == ("2020-05-10", "2020-05-10")
        assert got.classes == p.classes == (0, 1, 2)


def test_bands_of_two_pixel_sizes_keep_their_ratio(tmp_path):
    (tmp_path / "high").mkdir()
    fine, coarse = smooth(96, 144), smooth(48, 72, 1)
    write_band(tmp_path / "high" / "a_R_20200510.tif", fine, UTM, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6))
    write_band(tmp_path / "high" / "a_N_20200510.tif", coarse, UTM, (20.0, 0.0, 5e5, 0.0, -20.0, 5e6))
    s = section(how="degrade", factor=2, patch_px=24)
    contents, found, _ = made(tmp_path, s)
    assert [(g.name, g.size_px, g.bands) for g in contents.layout.groups] == [("20m", 24, ("R",)), ("40m", 12, ("N",))]
    low, half = degrade(fine, pairs.psf_of(s))[0], degrade(coarse, pairs.psf_of(s))[0]
    assert len(found) == 6
    for p, got in found:
        row, col = (v // 2 for v in p.where["window"][:2])
        assert np.array_equal(got.arrays["20m"][0], low[row : row + 24, col : col + 24])
        assert np.array_equal(got.arrays["40m"][0], half[row // 2 : row // 2 + 12, col // 2 : col // 2 + 12])
        assert np.array_equal(got.arrays["high"][0], fine[2 * row : 2 * row + 48, 2 * col : 2 * col + 48])
        assert got.arrays["valid"].all()
    # the coarse band as the target, to learn its super-resolution by
    contents, found, _ = made(tmp_path, replace(s, high_bands=("N",)))
    p, got = found[-1]
    row, col = (v // 2 for v in p.where["window"][:2])
    assert contents.layout.high.size_px == 24
    assert np.array_equal(got.arrays["high"][0], coarse[row : row + 24, col : col + 24])


def test_left_out_where_little_is_valid_or_labelled(tmp_path):
    image, classes = plant_high(tmp_path)
    image["R"][:32, :40] = 0  # bands are in the order of their names: planning looks at G
    image["G"][:32, :31] = 0
    for band, pixels in image.items():
        write_band(tmp_path / "high" / f"a_{band}_20200510.tif", pixels, UTM, HIGH)
    classes[32:64, 32:64] = 99
    write_band(tmp_path / "map.tif", classes, UTM, HIGH)
    s = section(
        how="degrade", labels=LABELS | {"unlisted": "ignore", "remap": {"0": "a", "1": "b", "2": "c"}}, min_valid=0.1
    )
    _, found, rest = made(tmp_path, replace(s, min_labelled=0.2))
    assert [type(r) for r in rest] == [LeftOut, LeftOut]
    assert rest[0].id.endswith("r0_c0")
    assert "valid" in rest[0].reason
    assert rest[1].id.endswith("r32_c32")
    assert "labelled" in rest[1].reason
    assert len(found) == 12 - 2


# ---- real pairs


def ramp(points: np.ndarray) -> np.ndarray:
    """A smooth asymmetric scene as a function of UTM x, y in metres from the corner: what is truly on the ground."""
    x, y = points[..., 0] - 500_000, 5_000_000 - points[..., 1]
    return 3000 + 2.0 * x + 0.5 * y + 300 * np.sin(x / 60) * np.cos(y / 45)


def centres(transform, rows, cols) -> np.ndarray:
    """(row, col, 2) of x, y of the pixels' centres."""
    a, b, c, d, e, f = transform
    j, i = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    return np.stack([c + a * j + b * i, f + d * j + e * i], -1)


def seen(crs: str, transform, rows: int, cols: int) -> np.ndarray:
    """The ground as an image on any grid."""
    points = centres(transform, rows, cols).reshape(-1, 2)
    return ramp(moved(points, crs, UTM)).reshape(rows, cols)


LOW = (10.0, 0.0, 499_800.0, 0.0, -10.0, 5_000_200.0)
LOW_ROWS, LOW_COLS = 130, 150


def plant_low(archive, day="20200512", scene="s", cloudy=None, transform=LOW, seed=None):
    (archive / "low").mkdir(parents=True, exist_ok=True)
    pixels = seen(UTM, transform, LOW_ROWS, LOW_COLS).astype("uint16")
    if seed is not None:
        pixels = smooth(LOW_ROWS, LOW_COLS, seed)
    if cloudy:
        pixels[cloudy] = 0
    write_band(archive / "low" / f"{scene}_B_{day}.tif", pixels, UTM, transform)
    return pixels


def plant_vhr(archive, crs, transform, rows, cols, kind="float32", day="20200510", scene="v"):
    (archive / "high").mkdir(parents=True, exist_ok=True)
    pixels = seen(crs, transform, rows, cols).astype(kind)
    write_band(archive / "high" / f"{scene}_P_{day}.tif", pixels, crs, transform)
    return pixels


# the same ground: 1.1 m pixels off the low grid by fractions of a pixel; the neighbouring zone, turned against it
SHIFTED = (1.1, 0.0, 500_003.3, 0.0, -1.1, 4_999_994.7)


def other_zone() -> tuple[str, tuple[float, ...]]:
    x, y = moved(np.array([[500_003.0, 4_999_994.0]]), UTM, "EPSG:32634")[0]
    return "EPSG:32634", (1.1, 0.0, float(x), 0.0, -1.1, float(y))


def degrees() -> tuple[str, tuple[float, ...]]:
    x, y = moved(np.array([[500_003.0, 4_999_994.0]]), UTM, "EPSG:4326")[0]
    return "EPSG:4326", (1.4e-5, 0.0, float(x), 0.0, -1.0e-5, float(y))


@pytest.mark.parametrize("method", ["average", "bilinear"])
@pytest.mark.parametrize("grid", [lambda: (UTM, SHIFTED), other_zone, degrees], ids=["shifted", "zone 34", "degrees"])
def test_high_and_low_lie_on_each_other(tmp_path, grid, method):
    """The ground's own function, seen from both: on the fine grid under each low patch the high image has the value
    of the ground at each pixel's centre. An error of a tenth of a pixel would show."""
    crs, transform = grid()
    plant_vhr(tmp_path, crs, transform, 600, 800)
    low = plant_low(tmp_path)
    contents, found, _ = made(tmp_path, section(resampling=method, factor=4))
    assert contents.layout.fields() == {
        "10m": ("uint16", (1, 8, 8)), "high": ("float32", (1, 32, 32)), "valid": ("uint8", (8, 8))}  # fmt: skip
    assert len(found) >= 30
    for p, got in found:
        row, col = p.where["window"][:2]
        assert np.array_equal(got.arrays["10m"][0], low[row : row + 8, col : col + 8])
        want = ramp(centres(ground.finer(p.transform, 4), 32, 32))
        # the slope is up to 7 a metre; the mean over a pixel, or a triangle, smooths the waves by less than 1
        assert np.abs(got.arrays["high"][0] - want).max() < 0.9
        assert p.dates == ("2020-05-12", "2020-05-10")
        assert p.date == "2020-05-12"


def test_a_known_shift_of_a_fraction_of_a_pixel_is_found_again(tmp_path):
    """A low image whose grid lies 3.7 m and 1.2 m off: the two are still registered, to 0.02 m, by least squares."""
    moved_low = (10.0, 0.0, LOW[2] + 3.7, 0.0, -10.0, LOW[5] - 1.2)
    plant_vhr(tmp_path, UTM, SHIFTED, 600, 800)
    plant_low(tmp_path, transform=moved_low)
    _, found, _ = made(tmp_path, section())
    shifts = []
    for p, got in found:
        grid = ground.finer(p.transform, 4)
        want = ramp(centres(grid, 32, 32))
        dy, dx = np.gradient(want, 2.5)  # along rows is to the south
        off = (got.arrays["high"][0] - want).ravel()
        shifts.append(np.linalg.lstsq(np.column_stack([dx.ravel(), dy.ravel(), np.ones(off.size)]), off, rcond=None)[0])
    assert np.abs(np.median(shifts, 0)[:2]).max() < 0.02


def test_high_pixels_that_divide_the_low_ones_are_taken_as_they_are(tmp_path):
    """A high image already on the fine grid comes through unchanged, and so does its mask."""
    transform = (2.5, 0.0, 500_000.0, 0.0, -2.5, 5_000_000.0)
    (tmp_path / "high").mkdir()
    pixels = smooth(256, 320)
    write_band(tmp_path / "high" / "v_P_20200510.tif", pixels, UTM, transform)
    classes = (np.add.outer(2 * np.arange(256), np.arange(320)) % 3).astype("uint8")
    write_band(tmp_path / "map.tif", classes, UTM, transform)
    plant_low(tmp_path)
    for method in ("average", "bilinear"):
        _, found, _ = made(tmp_path, section(labels=LABELS, resampling=method))
        assert len(found) == 8 * 10
        for p, got in found:
            col, row = round((p.transform[2] - 500_000) / 2.5), round((5_000_000 - p.transform[5]) / 2.5)
            assert np.array_equal(got.arrays["high"][0], pixels[row : row + 32, col : col + 32])
            assert np.array_equal(got.arrays["mask"], classes[row : row + 32, col : col + 32])


def test_the_nearest_day_then_the_clearest(tmp_path):
    plant_vhr(tmp_path, UTM, HIGH, 256, 320)  # 2020-05-10; 8 x 10 patches
    images = {
        "2020-05-08": plant_low(tmp_path, "20200508", seed=1, cloudy=np.s_[:40, :]),
        "2020-05-12": plant_low(tmp_path, "20200512", seed=2, cloudy=np.s_[:, :60]),
        "2020-05-14": plant_low(tmp_path, "20200514", seed=3),
        "2020-05-16": plant_low(tmp_path, "20200516", seed=4),  # six days
    }
    _, found, _ = made(tmp_path, section(min_valid=0.5))
    assert len(found) == 80
    kept = set()
    for p, got in found:
        row, col = p.where["window"][:2]
        clear = {d: (i[row : row + 8, col : col + 8] > 0).mean() for d, i in images.items()}
        near = [d for d in ("2020-05-08", "2020-05-12") if clear[d] >= 0.5]
        want = max(near, key=lambda d: (clear[d], d == "2020-05-08")) if near else "2020-05-14"
        assert p.dates == (want, "2020-05-10")
        kept.add(want)
        assert np.array_equal(got.arrays["10m"][0], images[want][row : row + 8, col : col + 8])
    assert kept == {"2020-05-08", "2020-05-12", "2020-05-14"}
    _, every, _ = made(tmp_path, section(keep="all", max_days=6))
    assert len(every) == 4 * 80
    assert {p.dates[0] for p, _ in every} == set(images)


def test_tiles_of_one_lattice_share_the_ground_and_nothing_is_there_twice(tmp_path):
    plant_vhr(tmp_path, UTM, HIGH, 256, 320)
    plant_low(tmp_path, "20200512", "s")
    east = (10.0, 0.0, LOW[2] + 300, 0.0, -10.0, LOW[5])
    plant_low(tmp_path, "20200511", "t", transform=east)  # the day before, but it misses the west of the high image
    _, found, rest = made(tmp_path, section())
    assert rest == []
    assert len(found) == 80
    assert len({p.transform for p, _ in found}) == 80
    days = {p.dates[0] for p, _ in found}
    assert days == {"2020-05-11", "2020-05-12"}
    assert all((p.dates[0] == "2020-05-11") == (p.transform[2] >= east[2]) for p, _ in found)


def test_low_bands_of_two_pixel_sizes_are_cut_on_whole_coarse_pixels(tmp_path):
    """10 and 20 m; a second tile whose corner is 10 m off shares no lattice with the first."""
    plant_vhr(tmp_path, UTM, HIGH, 256, 320)
    planted = {}
    for scene, off in (("s", 10.0), ("t", 20.0)):
        fine = (10.0, 0.0, LOW[2] - off, 0.0, -10.0, LOW[5] - off)
        planted[scene] = plant_low(tmp_path, "20200512", scene, transform=fine)
        coarse = (20.0, 0.0, fine[2], 0.0, -20.0, fine[5])
        half = seen(UTM, coarse, LOW_ROWS // 2, LOW_COLS // 2).astype("uint16")
        write_band(tmp_path / "low" / f"{scene}_C_20200512.tif", half, UTM, coarse)
        planted[scene + "C"] = half
    contents, found, _ = made(tmp_path, section(keep="all"))
    assert [g.name for g in contents.layout.groups] == ["10m", "20m"]
    assert {p.where["low"] for p, _ in found} == {"low/s_2020-05-12", "low/t_2020-05-12"}
    for p, got in found:
        scene = p.where["low"][4]
        row, col = p.where["window"][:2]
        assert row % 2 == col % 2 == 0
        assert np.array_equal(got.arrays["10m"][0], planted[scene][row : row + 8, col : col + 8])
        part = np.s_[row // 2 : row // 2 + 4, col // 2 : col // 2 + 4]
        assert np.array_equal(got.arrays["20m"][0], planted[scene + "C"][part])
    corners = [p.transform[2] for p, _ in found if p.where["low"][4] == "s"]
    assert min(corners) == 500_010  # the first whole 20 m pixel of that tile inside the high image
    _, once, _ = made(tmp_path, section(keep="nearest"))
    assert {p.where["low"] for p, _ in once} == {"low/s_2020-05-12"}
    with pytest.raises(RecipeError, match="stride_px = 5: take a multiple of 2"):
        pairs.describe(tmp_path, section(stride_px=5))


def test_labels_alone_with_low_images(tmp_path):
    """VHR maps without their image, in another zone."""
    crs, transform = other_zone()
    (tmp_path / "maps").mkdir()
    points = moved(centres(transform, 600, 800).reshape(-1, 2), crs, UTM).reshape(600, 800, 2)
    truth = lambda xy: ((xy[..., 0] - 500_000) // 37 + 2 * ((5_000_000 - xy[..., 1]) // 53)) % 3  # noqa: E731
    write_band(tmp_path / "maps" / "town_2020-05-10.tif", truth(points).astype("uint8"), crs, transform)
    write_band(tmp_path / "maps" / "town_2021-05-10.tif", truth(points).astype("uint8"), crs, transform)
    write_band(tmp_path / "maps" / "undated.tif", truth(points).astype("uint8"), crs, transform)
    low = plant_low(tmp_path)
    s = section(masks_only=True, high_in="", labels=LABELS | {"path": "maps/*.tif"})
    contents, found, rest = made(tmp_path, s)
    assert contents.layout.high is None
    assert [type(r) for r in rest] == [LeftOut, Reject]
    assert "no low-resolution image" in rest[0].reason
    assert "has no date" in rest[1].reason
    assert len(found) > 20
    wrong = []
    for p, got in found:
        row, col = p.where["window"][:2]
        assert np.array_equal(got.arrays["10m"][0], low[row : row + 8, col : col + 8])
        want = truth(centres(ground.finer(p.transform, 4), 32, 32))
        wrong.append((got.arrays["mask"] != want).mean())
        assert set(got.arrays) == {"10m", "valid", "mask"}
    assert np.mean(wrong) < 0.05  # pixels on a border; half a pixel of shift would make it 0.1
    assert np.mean(wrong) > 0


def test_clouds_of_either_image_take_the_labels_away(tmp_path):
    high = smooth(256, 320)
    high[100:110, 60:70] = 0
    (tmp_path / "high").mkdir()
    write_band(tmp_path / "high" / "v_P_20200510.tif", high, UTM, HIGH)
    write_band(tmp_path / "map.tif", np.ones((256, 320), "uint8"), UTM, HIGH)
    low = plant_low(tmp_path, cloudy=np.s_[30:32, 25:29])
    _, found, _ = made(tmp_path, section(labels=LABELS))
    assert len(found) == 80
    whole = np.full((256, 320), 0, "uint8")
    for p, got in found:
        col, row = round((p.transform[2] - 500_000) / 2.5), round((5_000_000 - p.transform[5]) / 2.5)
        whole[row : row + 32, col : col + 32] = got.arrays["mask"]
        r, c = p.where["window"][:2]
        assert np.array_equal(got.arrays["valid"] > 0, low[r : r + 8, c : c + 8] > 0)
    inside = np.kron(low[20:84, 20:100] > 0, np.ones((4, 4))) > 0
    assert np.array_equal(whole, np.where(inside & (high > 0), 1, 255))


# ---- what goes wrong


def test_faults_are_rejects_and_nothing_else_is_lost(tmp_path):
    plant_vhr(tmp_path, UTM, HIGH, 256, 320)
    plant_vhr(tmp_path, UTM, HIGH, 256, 320, scene="w", kind="uint16")  # another type than the first
    (tmp_path / "high" / "x_P_20200510.tif").write_bytes(b"no raster")
    plant_vhr(tmp_path, UTM, (2.5, 0.0, 900_000.0, 0.0, -2.5, 5_000_000.0), 256, 320, scene="y")  # far away
    plant_low(tmp_path)
    (tmp_path / "low" / "t_B_20200511.tif").write_bytes(b"")
    _, found, rest = made(tmp_path, section())
    assert len(found) == 80
    assert [(type(r), r.id) for r in rest] == [
        (Reject, "low/t_2020-05-11"),
        (Reject, "high/w_2020-05-10"),
        (Reject, "high/x_2020-05-10"),
        (LeftOut, "high/y_2020-05-10"),
    ]
    assert all(str(tmp_path) not in str(r) for r in rest)


def test_truncated_pixels_cost_the_patches_that_they_are_in(tmp_path):
    plant_vhr(tmp_path, UTM, HIGH, 256, 320)
    plant_low(tmp_path)
    path = tmp_path / "high" / "v_P_20200510.tif"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    contents = pairs.describe(tmp_path, section())
    (unit,) = pairs.units(tmp_path, section(), contents)
    planned = pairs.plan(tmp_path, section(), contents, unit)
    got = list(pairs.read(tmp_path, section(), contents, planned, None))
    assert len(got) == 80
    lost = [isinstance(g, Reject) for g in got]
    assert lost == sorted(lost)
    assert 0 < sum(lost) < 80
    assert "v_P_20200510.tif" in str(got[-1])


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"how": "degrade", "factor": 3, "patch_px": 7, "high_bands": ["X"]}, RecipeError, "high_bands = X"),
        ({"masks_only": True}, RecipeError, "masks_only needs"),
        ({"high_in": "nowhere"}, ArchiveError, "no such folder"),
        ({"masks_only": True, "how": "real", "labels": {"path": "no/*.tif"}}, ArchiveError, "no label raster matches"),
    ],
)
def test_errors_say_what_to_do(tmp_path, more, error, says):
    plant_high(tmp_path)
    plant_low(tmp_path)
    with pytest.raises(error, match=says):
        pairs.describe(tmp_path, section(**{"how": "degrade"} | more))


# ---- the warper


def test_average_and_bilinear_by_hand():
    image = smooth(24, 36, kind="float64")[None]
    valid = np.ones(image.shape[1:], bool)
    valid[5, 6] = False
    source = UTM, (1.0, 0.0, 5e5, 0.0, -1.0, 5e6)
    got, known = warp(image, valid, source, (UTM, (4.0, 0.0, 5e5, 0.0, -4.0, 5e6)), (6, 9), "average", 0.25)
    weight = valid.reshape(6, 4, 9, 4).sum((1, 3))
    np.testing.assert_allclose(got[0], (image[0] * valid).reshape(6, 4, 9, 4).sum((1, 3)) / weight, rtol=1e-12)
    assert known.all()
    shifted = UTM, (1.0, 0.0, 5e5 + 0.5, 0.0, -1.0, 5e6 - 0.25)
    got, known = warp(image, valid, source, shifted, (23, 35), "bilinear", 1.0)
    w = np.outer([0.75, 0.25], [0.5, 0.5])
    near = [(image[0] * valid)[i : i + 23, j : j + 35] * w[i, j] for i in (0, 1) for j in (0, 1)]
    share = [valid[i : i + 23, j : j + 35] * w[i, j] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(got[0], np.sum(near, 0) / np.sum(share, 0), rtol=1e-9)
    assert known.all()


# ---- real data


@pytest.mark.needs("shared")
def test_spacenet_buildings_degraded_four_times():
    """WorldView at 0.5 m over Atlanta and its building footprints."""
    archive = SHARED / "vhr-segmentation" / "spacenet4-atlanta"
    s = check(
        PairsRecipe,
        {"patch_px": 31, "factor": 4, "min_valid": 0.9, "high": {"kind": "stack"},
         "labels": {"path": "*.geojson", "background": "ground", "remap": {"1": "building"}}},
    )  # fmt: skip
    contents, found, _ = made(archive, s)
    image = describe(next(archive.glob("*.tif")))
    assert len(found) == (image.height_px // 124) * (image.width_px // 124)
    built = np.mean([(g.arrays["mask"] == contents.classes.index("building")).mean() for _, g in found])
    assert 0.02 < built < 0.6
    for _, got in found:
        low = next(iter(got.arrays.values()))
        assert abs(low.mean() / got.arrays["high"].mean() - 1) < 0.02


def test_min_valid_holds_of_all_bands_low_and_high_each(tmp_path):
    plant_high(tmp_path)  # R has no data in rows 40 to 44; G, which the plan asks, everywhere
    s = section(how="degrade", factor=4, min_valid=0.99, labels={})
    _, found, _ = made(tmp_path, s, lost=2)
    lost = [(p.where["window"][:2], g) for p, g in found if isinstance(g, Reject)]
    assert [w for w, _ in lost] == [[32, 32], [32, 64]]
    assert not lost[0][1].fault and lost[0][1].expected == "at least min_valid = 0.99"


def test_scenes_that_would_pair_with_themselves(tmp_path):
    plant_high(tmp_path)
    with pytest.raises(RecipeError, match="each scene would pair with itself"):
        pairs.describe(tmp_path, section(low_in="high"))


def test_low_scenes_without_a_date_name_the_remedy(tmp_path):
    plant_high(tmp_path)
    (tmp_path / "low").mkdir()
    write_band(tmp_path / "low" / "x_R.tif", smooth(20, 30), UTM, (10.0, *HIGH[1:4], -10.0, HIGH[5]))
    undated = KIND | {"pattern": "(?P<scene>[a-z])_(?P<band>[A-Z])"}
    with pytest.raises(ArchiveError, match=r"1 scenes opened, none has a date; expected .*low.pattern with"):
        pairs.describe(tmp_path, section(low=undated))
