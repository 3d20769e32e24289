"""Chips: class folders become labels, bands have their names, odd files are told."""

import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from jeoparda.errors import ArchiveError, RecipeError
from jeoparda.ingest import IngestRecipe, SplitRecipe, chips, run
from jeoparda.ingest.chips import ChipsRecipe
from jeoparda.ingest.source import LeftOut, Patch, Planned
from jeoparda.store import Reject, Store
from tests.conftest import SHARED


def write(path: Path, array: np.ndarray, **more: object) -> Path:
    """array: (band, row, col)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    count, height, width = array.shape
    profile = {"driver": driver, "count": count, "height": height, "width": width, "dtype": array.dtype, **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as f:
            f.write(array)
    return path


def rgb(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)


def collection(root: Path, ending: str, per_class: int = 10) -> Path:
    for k, name in enumerate(("beach", "airport", "chaparral")):
        for i in range(per_class):
            write(root / name / f"{name}{i:02d}{ending}", rgb(100 * k + i))
    return root


def planned(archive: Path, section: ChipsRecipe):
    contents = chips.describe(archive, section)
    out = [p for u in chips.units(archive, section, contents) for p in chips.plan(archive, section, contents, u)]
    return (contents, *([p for p in out if isinstance(p, kind)] for kind in (Planned, Reject, LeftOut)))


def read(archive: Path, section: ChipsRecipe):
    contents, patches, *_ = planned(archive, section)
    got = chips.read(archive, section, contents, patches, None)
    return {p.id: g for p, g in zip(patches, got, strict=True)}


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_pixels_classes_and_names_of_plain_images(tmp_path, ending):
    archive = collection(tmp_path / "UCMerced", ending)
    (archive / "beach" / "Thumbs.db").write_bytes(b"x")
    (archive / "readme.txt").write_text("not in a class folder")
    contents, patches, rejects, left = planned(archive, ChipsRecipe())
    assert contents.classes == ("airport", "beach", "chaparral") and contents.target == "label"
    (group,) = contents.layout.groups
    assert (group.name, group.pixel_m, group.size_px, group.dtype) == ("1px", 1.0, 16, "uint8")
    assert (group.bands, contents.rgb, contents.unit) == (("red", "green", "blue"),) * 2 + ("digital number",)
    assert len(patches) == 30 and not rejects
    assert [(p.id, p.reason) for p in left] == [("beach/Thumbs.db", chips.NOT_A_CHIP)]
    assert {(p.crs, p.transform) for p in patches} == {("", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))}
    for p in patches:
        assert contents.classes[p.classes[0]] == p.id.split("/")[0] and len(p.classes) == 1
    for name, got in read(archive, ChipsRecipe()).items():
        seed = 100 * ("beach", "airport", "chaparral").index(name.split("/")[0]) + int(Path(name).stem[-2:])
        np.testing.assert_array_equal(got.arrays["1px"], rgb(seed))


def test_classes_in_the_order_of_the_recipe_and_some_of_them(tmp_path):
    archive = collection(tmp_path / "a", ".png", 3)
    contents, patches, *_ = planned(archive, ChipsRecipe(classes=("chaparral", "airport")))
    assert contents.classes == ("chaparral", "airport") and len(patches) == 6
    assert patches[0].id.startswith("chaparral/") and patches[0].classes == (0,)
    with pytest.raises(RecipeError, match="has no folder desert; there are airport, beach, chaparral"):
        chips.describe(archive, ChipsRecipe(classes=("desert",)))


def test_chips_that_differ_from_the_first_are_rejected(tmp_path):
    archive = collection(tmp_path / "a", ".tif", 3)
    write(archive / "beach" / "beach90.tif", rgb(1)[:, :15])
    write(archive / "beach" / "beach91.tif", rgb(1)[:1])
    write(archive / "beach" / "beach92.tif", rgb(1).astype(np.uint16))
    (archive / "beach" / "beach93.tif").write_text("404")
    _, patches, rejects, _ = planned(archive, ChipsRecipe())
    assert len(patches) == 9
    assert [(r.id, r.reason.split("type) is ")[-1][:14]) for r in rejects[:3]] == [
        ("beach/beach90.tif", "(15, 16, 3, 'u"),
        ("beach/beach91.tif", "(16, 16, 1, 'u"),
        ("beach/beach92.tif", "(16, 16, 3, 'u"),
    ]
    assert "'uint16'" in rejects[2].reason and rejects[2].expected == "(16, 16, 3, 'uint8'), as the first chip has"
    assert rejects[3].file == "beach/beach93.tif" and "cannot be read" in rejects[3].reason
    assert str(archive) not in rejects[3].reason


def test_a_first_chip_that_is_odd_or_torn_does_not_decide(tmp_path):
    archive = collection(tmp_path / "a", ".tif", 3)
    write(archive / "airport" / "a.tif", rgb(1, 15))
    assert len(planned(archive, ChipsRecipe())[2]) == 9, "the first decides, and says so"
    assert len(planned(archive, ChipsRecipe(size_px=16))[1]) == 9
    (archive / "airport" / "a.tif").write_bytes(b"")
    _, patches, rejects, _ = planned(archive, ChipsRecipe())
    assert len(patches) == 9 and [r.id for r in rejects] == ["airport/a.tif"]


def test_a_chip_torn_after_planning_is_rejected_alone(tmp_path):
    archive = collection(tmp_path / "a", ".tif", 3)
    contents, patches, *_ = planned(archive, ChipsRecipe())
    path = archive / patches[4].id
    path.write_bytes(path.read_bytes()[:300])
    got = list(chips.read(archive, ChipsRecipe(), contents, patches, None))
    assert [isinstance(g, Patch) for g in got] == [i != 4 for i in range(9)]
    assert got[4].file == patches[4].id


# ---- splits


def test_shares_of_each_class_by_hash_whatever_else_is_there(tmp_path):
    archive = collection(tmp_path / "a", ".png", 20)
    _, patches, *_ = planned(archive, ChipsRecipe(val=0.2, test=0.1))
    counts = Counter((p.classes[0], p.split) for p in patches)
    assert counts == {(c, s): n for c in range(3) for s, n in (("val", 4), ("test", 2), ("train", 14))}
    other = [p.split for p in planned(archive, ChipsRecipe(val=0.2, test=0.1, seed=1))[1]]
    assert other != [p.split for p in patches]
    again = [p.split for p in planned(archive, ChipsRecipe(val=0.2, test=0.1))[1]]
    assert again == [p.split for p in patches]
    with pytest.raises(RecipeError, match="nothing is left to train on"):
        chips.describe(archive, ChipsRecipe(val=0.5, test=0.5))


@pytest.mark.parametrize("style", ["plain", "jpg of tif", "csv with heading", "numbered", "with folder"])
def test_published_lists_in_any_of_their_styles(tmp_path, style):
    archive = collection(tmp_path / "a", ".tif", 4)
    names = [f"{c}/{c}{i:02d}" for c in ("airport", "beach", "chaparral") for i in range(4)]
    parts = {"train": names[:6], "val": names[6:9], "test": names[9:11]}
    for split, of in parts.items():
        lines = {
            "plain": [n.split("/")[1] for n in of],
            "jpg of tif": [n.split("/")[1] + ".jpg" for n in of],
            "csv with heading": ["Filename,Label", *[f"{n}.tif,1" for n in of]],
            "numbered": [",Filename,Label", *[f"{i},{n}.tif,1" for i, n in enumerate(of)]],
            "with folder": of,
        }[style]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    section = ChipsRecipe(**{f"{s}_list": tmp_path / f"{s}.txt" for s in parts})
    _, patches, rejects, left = planned(archive, section)
    assert not rejects
    for split, of in parts.items():
        assert [p.id.removesuffix(".tif") for p in patches if p.split == split] == of
    assert [(p.id, p.reason) for p in left] == [("chaparral/chaparral03.tif", "in none of the lists")]


def test_lists_that_contradict_each_other_or_the_archive(tmp_path):
    archive = collection(tmp_path / "a", ".tif", 2)
    (tmp_path / "t.txt").write_text("beach00.tif\nbeach77.tif\n")
    (tmp_path / "v.txt").write_text("beach00.tif\n")
    with pytest.raises(RecipeError, match=r"v\.txt: chip beach00 stands in .*t\.txt too"):
        planned(archive, ChipsRecipe(train_list=tmp_path / "t.txt", val_list=tmp_path / "v.txt"))
    _, _, rejects, _ = planned(archive, ChipsRecipe(train_list=tmp_path / "t.txt"))
    assert [(r.id, r.reason) for r in rejects] == [("beach77", "missing")] and "t.txt" in rejects[0].expected
    with pytest.raises(RecipeError, match=r"x\.txt: cannot read the list of chips"):
        planned(archive, ChipsRecipe(train_list=tmp_path / "x.txt"))


# ---- bands


def test_bands_must_be_named_where_files_do_not(tmp_path):
    array = np.arange(13 * 64, dtype=np.uint16).reshape(13, 8, 8)
    place = {"crs": "EPSG:32635", "transform": Affine(10.0057, 0, 624602, 0, -9.994, 4877286)}
    write(tmp_path / "a" / "Forest" / "Forest_1.tif", array, **place)
    with pytest.raises(RecipeError, match=r"Forest_1\.tif: calls its bands .*name them in order with chips\.bands"):
        chips.describe(tmp_path / "a", ChipsRecipe())
    with pytest.raises(RecipeError, match=r"has 13 bands, chips\.bands names 2"):
        chips.describe(tmp_path / "a", ChipsRecipe(bands=("a", "b")))
    contents, (patch,), *_ = planned(tmp_path / "a", ChipsRecipe(bands=("eurosat-ms",)))
    (group,) = contents.layout.groups
    assert group.bands[:2] == ("B01", "B02") and group.bands[8:] == ("B09", "B10", "B11", "B12", "B8A")
    assert (group.name, group.pixel_m, contents.sensor) == ("10m", 10.0, "sentinel-2-l1c")
    assert (contents.unit, contents.rgb) == ("reflectance x 10000", ("B04", "B03", "B02"))
    assert patch.crs == "EPSG:32635" and patch.transform[0] == 10.0057
    (got,) = read(tmp_path / "a", ChipsRecipe(bands=("eurosat-ms",))).values()
    np.testing.assert_array_equal(got.arrays["10m"], array)


def test_archives_that_are_none(tmp_path):
    with pytest.raises(ArchiveError, match="no such folder"):
        chips.describe(tmp_path / "x", ChipsRecipe())
    with pytest.raises(ArchiveError, match="holds no folders"):
        chips.describe(tmp_path, ChipsRecipe())
    (tmp_path / "beach").mkdir()
    with pytest.raises(ArchiveError, match="no image in beach can be read"):
        chips.describe(tmp_path, ChipsRecipe())


def test_a_store_of_chips(tmp_path):
    archive = collection(tmp_path / "a", ".png", 10)
    more = {"source": "chips", "split": SplitRecipe(by="archive"), "workers": 1}
    info = run(IngestRecipe(archive=archive, store=tmp_path / "s", **more), lambda _: None)
    assert info.splits == {"train": 24, "val": 3, "test": 3}
    store = Store(tmp_path / "s")
    assert store.labels.sum(1).tolist() == [1] * 30
    np.testing.assert_array_equal(store.patch(12)["1px"], rgb(2))  # beach is second, its third chip


# ---- the real ones


@pytest.mark.needs("shared")
def test_real_eurosat():
    archive = SHARED / "eurosat-samples" / "EuroSAT_MS"
    section = ChipsRecipe(bands=("eurosat-ms",), val=0, test=0)
    contents, patches, rejects, _ = planned(archive, section)
    assert not rejects and [p.id for p in patches] == ["AnnualCrop/AnnualCrop_1.tif", "SeaLake/SeaLake_3000.tif"]
    bands = contents.layout.groups[0].bands
    for p, got in zip(patches, read(archive, section).values(), strict=True):
        with rasterio.open(archive / p.id) as f:
            np.testing.assert_array_equal(got.arrays["10m"], f.read())
        mean = dict(zip(bands, got.arrays["10m"].mean((1, 2)), strict=True))
        # what tells the order: cirrus is dark everywhere, the two near infrareds are alike
        assert min(mean, key=mean.__getitem__) == "B10" and mean["B10"] < 20
        assert mean["B8A"] == pytest.approx(mean["B08"], rel=0.2)
    crop = dict(zip(bands, read(archive, section)[patches[0].id].arrays["10m"].mean((1, 2)), strict=True))
    assert crop["B11"] > crop["B12"], "bare soil"


@pytest.mark.needs("shared")
def test_real_eurosat_in_colour():
    archive = SHARED / "eurosat-samples" / "EuroSAT_RGB"
    contents, patches, rejects, _ = planned(archive, ChipsRecipe(val=0, test=0))
    assert not rejects and contents.layout.groups[0].bands == ("red", "green", "blue")
    sea = read(archive, ChipsRecipe())[patches[1].id].arrays["1px"].mean((1, 2))
    assert sea[2] > sea[1] > sea[0]


def test_images_elsewhere_are_counted_not_lost(tmp_path):
    archive = collection(tmp_path / "a", ".tif", 3)
    (archive / "beach" / "more").mkdir()
    shutil.copy(archive / "beach" / "beach00.tif", archive / "beach" / "more" / "x.tif")
    shutil.copy(archive / "beach" / "beach00.tif", archive / "loose.tif")
    section = ChipsRecipe()
    contents = chips.describe(archive, section)
    found = [
        f for unit in chips.units(archive, section, contents) for f in chips.plan(archive, section, contents, unit)
    ]
    assert {f.id: f.reason for f in found if isinstance(f, LeftOut)} == {
        "beach/more/": "a folder in a class folder: its images are not taken",
        "loose.tif": "an image outside of the class folders",
    }
