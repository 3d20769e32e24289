"""Maps of whole scenes: what the network says of each patch, at the right place, done once."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch

from jeoparda import predict, targets, train
from jeoparda.comm import Single
from jeoparda.errors import RecipeError, SceneError
from jeoparda.evaluate import infer, load
from jeoparda.feed import Feed, FeedRecipe, Plan
from jeoparda.journal import read
from jeoparda.models import ModelRecipe
from jeoparda.order import Order
from jeoparda.raster import read_band, write_band
from jeoparda.scene import SceneRecipe
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import Store
from tests.scenes import metadata, pixel_m

ROWS, COLS, STRIDE = 2, 3, 120
WEST, NORTH = 399_960.0, 5_400_000.0


@pytest.fixture(scope="module")
def run_folder(tiny_store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    r = train.TrainRecipe(
        store=tiny_store, run=folder, epochs=2, batch=8, model=ModelRecipe(width=16), feed=FeedRecipe(kind="plain")
    )
    return train.run(r, Single())


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    """Which patches of the store lie where in the scene; one place is left without data."""
    return np.array([[3, 17, 8], [40, -1, 25]])


@pytest.fixture(scope="module")
def scene(tiny_store, numbers, tmp_path_factory) -> Path:
    """A scene of 2 x 3 patches of the store and a strip at the right that holds no whole patch."""
    store = Store(tiny_store)
    folder = tmp_path_factory.mktemp("scenes") / "S2A_MSIL2A_20170613T101031_mosaic"
    folder.mkdir()
    for band in SENTINEL_2_L2A.bands:
        pixel = int(pixel_m(SENTINEL_2_L2A, band))
        side = 1200 // pixel
        whole = np.zeros((ROWS * side, COLS * side + side // 2), np.uint16)
        for row, col in np.ndindex(ROWS, COLS):
            if numbers[row, col] >= 0:
                patch = store.band(int(numbers[row, col]), band)
                whole[row * side : (row + 1) * side, col * side : (col + 1) * side] = patch
        write_band(folder / f"{band}.tif", whole, "EPSG:32633", (pixel, 0.0, WEST, 0.0, -pixel, NORTH))
    return folder


def recipe(run_folder, folder, out, **more) -> predict.PredictRecipe:
    return predict.PredictRecipe(run=run_folder, scenes=[folder], out=out, **({"stride_px": STRIDE} | more))


@pytest.fixture(scope="module")
def maps(run_folder, scene, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("maps")
    (line,) = predict.run(recipe(run_folder, scene, out))
    return out, line


def test_the_map_says_what_evaluation_says_of_each_patch(maps, run_folder, tiny_store, numbers):
    """Another way to the same figures: the same patches through the store and the feed."""
    store, trained = Store(tiny_store), load(run_folder)
    chosen = np.sort(numbers[numbers >= 0])
    plan = Plan(Order(len(chosen), 4, 0, shuffle=False), chosen, 0, 1)
    feed = Feed(store, plan, FeedRecipe(kind="plain"), False, store.labels, store.statistics())
    _, scores, _ = infer(trained.model, feed, torch.device("cpu"), Single(), targets.build(store.info))
    out, line = maps
    with rasterio.open(out / line["probabilities_tif"]) as f:
        mapped = f.read()
    with rasterio.open(out / line["classes_tif"]) as f:
        classes = f.read(1)
    assert mapped.shape == (43, ROWS, COLS)
    for score, number in zip(scores, chosen, strict=True):
        row, col = np.argwhere(numbers == number)[0]
        np.testing.assert_allclose(mapped[:, row, col] / 250, score, atol=0.5 / 250 + 1e-5)
        assert classes[row, col] == score.argmax()
    assert (mapped[:, numbers < 0] == 255).all() and (classes[numbers < 0] == 255).all()


def test_the_map_lies_where_the_patches_lie(maps, run_folder, scene, tmp_path):
    out, line = maps
    with rasterio.open(out / line["classes_tif"]) as f:
        assert (f.width, f.height, f.nodata, f.crs.to_epsg()) == (COLS, ROWS, 255, 32633)
        assert f.transform[:6] == (1200.0, 0.0, WEST, 0.0, -1200.0, NORTH)
        assert f.colormap(1)[0][:3] == tuple(line["legend"][0]["color"])
        assert f.tags(1)["CATEGORY_NAMES"].split("|")[:2] == [e["name"] for e in line["legend"][:2]]
    (half,) = predict.run(recipe(run_folder, scene, tmp_path, stride_px=60))
    with rasterio.open(tmp_path / half["classes_tif"]) as f:
        assert (f.width, f.height) == (COLS * 2, ROWS * 2 - 1)  # the strip at the right now holds one
        # a pixel is as wide as the stride, and its centre is the centre of its patch
        assert f.xy(0, 0) == (WEST + 600, NORTH - 600)
        assert f.xy(1, 2) == (WEST + 600 + 1200, NORTH - 600 - 600)


def test_the_map_does_not_depend_on_how_much_is_read_at_once(run_folder, scene, tmp_path, monkeypatch):
    content = []
    for strip_px in (1, 200, 1024):  # one row of patches at a time, two, all three
        monkeypatch.setattr(predict, "STRIP_PX", strip_px)
        out = tmp_path / str(strip_px)
        (line,) = predict.run(recipe(run_folder, scene, out, stride_px=60))
        content.append((out / line["probabilities_tif"]).read_bytes())
    assert content[0] == content[1] == content[2]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # a picture has no place
def test_pictures_and_ledger(maps):
    out, line = maps
    for name in ("quicklook_png", "classmap_png"):
        with rasterio.open(out / line[name]) as f:
            assert f.count == 3
    assert sum(line["pixels"].values()) == ROWS * COLS - 1 and line["no_data"] == 1
    (entry,) = [e for e in read(out / "ledger.jsonl") if e["event"] == "map"]
    assert entry["key"] == line["key"] and set(entry["outputs"]) == {p.name for p in out.iterdir()} - {"ledger.jsonl"}
    assert entry["level"] == "L2A" and [w[:17] for w in entry["warnings"]] == ["Without metadata:"]


def test_what_is_done_is_not_done_again_and_what_is_damaged_is(run_folder, scene, tmp_path, capsys):
    r = recipe(run_folder, scene, tmp_path)
    (first,) = predict.run(r)
    content = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    predict.run(r)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == content
    assert "already mapped" in capsys.readouterr().out
    victim = tmp_path / first["classes_tif"]
    victim.write_bytes(victim.read_bytes()[:-100])  # truncated, as by a full disk
    predict.run(r)
    assert victim.read_bytes() == content[victim.name]
    predict.run(recipe(run_folder, scene, tmp_path, stride_px=60))  # other settings: not the same map
    keys = [e["key"] for e in read(tmp_path / "ledger.jsonl")]
    assert len(keys) == 3 and keys[0] == keys[1] != keys[2]


def test_the_real_scene_is_mapped_with_a_warning(run_folder, real_scene, tmp_path, capsys):
    (line,) = predict.run(recipe(run_folder, real_scene, tmp_path))
    assert line["scene"] == "T33UUU_20170216T102101" and line["level"] == "L1C"
    assert "L1C" in line["warnings"][0] and "warning: The scene is L1C" in capsys.readouterr().out
    with rasterio.open(tmp_path / line["classes_tif"]) as f:
        assert (f.height, f.width) == (768 // 120, 1536 // 120)
        assert f.bounds.left == 330_000 and f.bounds.top == 5_822_040
        assert "L1C" in f.tags()["JEOPARDA_WARNINGS"]
    json.dumps(line)


def test_the_offset_of_newer_baselines_is_taken_off(maps, run_folder, scene, tmp_path):
    """The same ground as a product of baseline 05.09, whose numbers are 1000 higher: the same map."""
    folder = tmp_path / "S2A_MSIL2A_20230613T101031_N0509_R022_T33UUU_20230613T120000.SAFE"
    images = folder / "GRANULE" / "L2A_T33UUU" / "IMG_DATA" / "R10m"
    images.mkdir(parents=True)
    for band in SENTINEL_2_L2A.bands:
        numbers, info = read_band(scene / f"{band}.tif")
        higher = np.where(numbers > 0, numbers + 1000, 0).astype(np.uint16)
        write_band(images / f"T33UUU_20230613T101031_{band}_10m.jp2", higher, info.crs, info.transform)
    offsets = dict.fromkeys(SENTINEL_2_L2A.bands, -1000)
    (folder / "MTD_MSIL2A.xml").write_text(metadata("L2A", "05.09", offsets, ()))
    (line,) = predict.run(recipe(run_folder, folder, tmp_path / "out"))
    assert line["warnings"] == []
    out, before = maps
    for name in ("classes_tif", "probabilities_tif"):
        with rasterio.open(out / before[name]) as f, rasterio.open(tmp_path / "out" / line[name]) as g:
            np.testing.assert_array_equal(f.read(), g.read())


def _plain(folder: Path) -> Path:
    """Bands of no known sensor."""
    folder.mkdir()
    for i, band in enumerate(SENTINEL_2_L2A.bands):
        write_band(folder / f"{band}.tif", np.full((120, 120), i + 1, np.uint16), "", (10, 0, 0, 0, -10, 0))
    return folder


def test_what_cannot_work_is_refused_before_any_work(run_folder, scene, real_scene, tmp_path):
    with pytest.raises(RecipeError, match=r"stride_px = 50: falls between the 60.* take a multiple of 6"):
        predict.run(recipe(run_folder, scene, tmp_path, stride_px=50))
    twice = predict.PredictRecipe(run=run_folder, scenes=[scene, scene], out=tmp_path)
    with pytest.raises(RecipeError, match="two are named"):
        predict.run(twice)
    with pytest.raises(SceneError, match="no such folder"):
        predict.run(recipe(run_folder, tmp_path / "nowhere", tmp_path))
    with pytest.raises(SceneError, match=r"pixels are digital number \(sensor generic\), .* reflectance x 10000"):
        predict.run(recipe(run_folder, _plain(tmp_path / "plain"), tmp_path))
    safe = SceneRecipe(kind="safe")
    small = tmp_path / "small"
    small.mkdir()
    for band in SENTINEL_2_L2A.bands:
        pixel = int(pixel_m(SENTINEL_2_L2A, band))
        write_band(small / f"{band}.tif", np.ones((600 // pixel,) * 2, np.uint16), "", (pixel, 0, 0, 0, -pixel, 0))
    with pytest.raises(SceneError, match="60 x 60 px hold no patch of 120 px"):
        predict.run(recipe(run_folder, small, tmp_path, scene=safe))
    coarse = tmp_path / "coarse"
    coarse.mkdir()
    for band in SENTINEL_2_L2A.bands:
        write_band(coarse / f"{band}.tif", np.ones((120, 120), np.uint16), "", (20, 0, 0, 0, -20, 0))
    with pytest.raises(SceneError, match="trained on 10"):
        predict.run(recipe(run_folder, coarse, tmp_path, scene=safe))
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("trained_on", "sensor", "level", "expected"),
    [
        ("landsat-8-l2", "landsat-8-l2", "L2SP", []),
        ("landsat-8-l2", "landsat-8-l1", "L1TP", ["The scene is L1 (top of the atmosphere), the network was"]),
        ("landsat-8-l2", "landsat-9-l2", "L2SP", ["The scene is of landsat-9-l2, the network was"]),
        (
            "sentinel-2-l1c",
            "sentinel-2-l2a",
            "L2A",
            ["The scene is L2A (surface reflectance), the network"],
        ),
        (
            "sentinel-2-l2a",
            "sentinel-2-l2a",
            "",
            ["The file names tell no processing level; the network"],
        ),
        ("cbers-4-awfi", "cbers-4-mux", "L4", ["The scene is of cbers-4-mux"]),
        ("generic", "generic", "", []),
    ],
)
def test_levels_that_differ_are_warned_of(trained_on, sensor, level, expected):
    trained = SimpleNamespace(about={"sensor": trained_on})
    scene = SimpleNamespace(sensor=sensor, level=level, notes=())
    found = predict._warnings(trained, scene)
    assert len(found) == len(expected) and all(f.startswith(e) for f, e in zip(found, expected, strict=True))
