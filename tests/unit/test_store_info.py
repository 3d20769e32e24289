"""`store info`: the text against counts made by hand, leakage against planted overlaps, the picture pixel by pixel."""

import sys
from pathlib import Path

import numpy as np
import pytest

from jeoparda.errors import JeopardaError
from jeoparda.report.store import describe_store, leakage, samples_png
from jeoparda.store import Contents, Group, Layout, PatchRecord, Reject, Store, finalise, write_shard

CLASSES = ("Water", "Woods", "Fields", "Peat")
COLORS = ((0, 80, 200), (0, 120, 0), (240, 220, 90), (120, 90, 140))
OPTICAL = (Group("10m", 10.0, 24, ("B02", "B03", "B04")), Group("20m", 20.0, 12, ("B11",)))


def make(folder: Path, layout: Layout, rows, rejected=(), left_out=None, by="block", unit="reflectance x 10000"):
    """A store of `rows`: (split, classes, more of PatchRecord). Pictures rise from left to right and top to bottom."""
    contents = Contents(
        sensor="sentinel-2-l2a",
        unit=unit,
        rgb=("B04", "B03", "B02"),
        layout=layout,
        nomenclature="four",
        classes=CLASSES,
        colors=COLORS,
        target="mask" if layout.mask_px else "labels",
    )

    def patches():
        for i, (split, classes, more) in enumerate(rows):
            usual = {"id": f"p{i:03d}", "source": "s", "date": "2017-06-13", "country": "Austria", "crs": "EPSG:32633"}
            usual |= {"transform": (10.0, 0.0, 240.0 * i, 0.0, -10.0, 5e6), "valid_fraction": 1.0, "split": split}
            record = PatchRecord(**(usual | more))
            yield record, arrays(layout, classes), tuple(classes)

    (folder / "shards").mkdir(parents=True)
    shard = write_shard(folder, 0, "plan", contents, patches(), len(rows))
    finalise(folder, [shard], contents, rejected, left_out or {}, {"split": {"by": by}}, "0")
    return Store(folder)


def arrays(layout: Layout, classes) -> dict[str, np.ndarray]:
    out = {}
    for name, (kind, shape) in layout.fields().items():
        row, col = np.indices(shape[-2:]) / shape[-1]
        out[name] = np.broadcast_to((200 + 2500 * col + 900 * row), shape).astype(kind)
        if name == "valid":
            out[name] = np.broadcast_to((row + col > 0.3), shape).astype(kind)  # upper left corner under a cloud
        if name == "mask":
            values = np.array([*classes, 255], np.uint8)
            out[name] = np.broadcast_to(values[(col * len(values)).astype(int)], shape).astype(kind)
    return out


def test_counts_by_hand(tmp_path):
    rows = [("train", (0, 1), {}), ("train", (1,), {"date": "2016-02-29T10:00:00"}), ("val", (1, 2), {"country": ""})]
    rows += [("test", (0,), {"date": ""})]
    rejected = [
        Reject(f"q{i}", f"q{i}/B0{i}.tif", f"{i + 1} of 7 bands cannot be read", "7 GeoTIFFs") for i in range(3)
    ]
    rejected.append(Reject("z", "z.json", "missing", ""))
    store = make(tmp_path / "s", Layout(OPTICAL, valid=True, mask_px=24), rows, rejected, {"snow": 5, "cloud": 9})
    told = describe_store(store).splitlines()
    cells = [line.split() for line in told]
    assert told[0].startswith(f"{tmp_path}/s: 4 patches in 1 shards, ")
    assert "sensor sentinel-2-l2a, reflectance x 10000, nomenclature four (4 classes), 24 px, target mask" in told
    assert "dates: 2016-02-29 to 2017-06-13, 1 patches without" in told
    assert "countries: Austria 3, not known 1" in told and "CRS: EPSG:32633 4" in told
    assert ["10m", "10", "24", "uint16", "B02", "B03", "B04"] in cells and ["20m", "20", "12", "uint16", "B11"] in cells
    assert ["train", "2", "50.0", "%"] in cells and ["val", "1", "25.0", "%"] in cells
    # class 1 is on three patches of 24 x 24 px: a third, a half and a third of their columns
    assert cells[told.index(next(x for x in told if x.endswith("Woods")))] == (
        "1 2 1 0 3 75.0 % 480 192 0 672 29.2 % Woods".replace("29.2", f"{100 * 672 / pixels(store):.1f}").split()
    )
    assert next(x for x in cells if x[-1:] == ["Peat"])[:6] == ["3", "0", "0", "0", "0", "0.0"]
    lost = told.index("left out 9: cloud")
    assert told[lost + 1 : lost + 4] == [
        "left out 5: snow",
        "rejected 3: as q0/B00.tif: 1 of 7 bands cannot be read; expected 7 GeoTIFFs",
        "rejected 1: z.json: missing",
    ]
    assert told[-1] == "leakage: OK: patches on training ground: val 0 of 1, test 0 of 1"


def pixels(store: Store) -> int:
    return sum(sum(n) for n in store.info.class_pixels.values())


def test_planted_leaks_are_counted(tmp_path):
    # patches lie 240 m apart and are 240 m wide: touching is no overlap, 10 m nearer is one of a pixel
    near = {"transform": (10.0, 0.0, 240.0 - 10.0, 0.0, -10.0, 5e6)}
    rows = [("train", (0,), {}), ("val", (0,), near), ("val", (0,), {}), ("test", (0,), {})]
    told = leakage(make(tmp_path / "a", Layout(OPTICAL), rows))
    assert told == ["leakage: LEAKS: patches on training ground: val 1 of 2, test 0 of 1"]
    told = leakage(make(tmp_path / "b", Layout(OPTICAL), rows, by="date"))
    assert "meant by a split by date" in told[1]


def test_images_without_crs_are_compared_with_themselves(tmp_path):
    at = {"crs": "", "transform": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
    rows = [("train", (0,), at | {"source": "a.png"}), ("val", (0,), at | {"source": "b.png"})]
    told = leakage(make(tmp_path / "s", Layout(OPTICAL), rows))
    assert told[0].startswith("leakage: OK") and "2 patches without a CRS" in told[1]
    rows.append(("test", (0,), at | {"source": "a.png", "transform": (1.0, 0.0, 12.0, 0.0, 1.0, 12.0)}))
    assert "val 0 of 1, test 1 of 1" in leakage(make(tmp_path / "t", Layout(OPTICAL), rows))[0]


def test_places_that_cannot_be_are_said(tmp_path):
    nowhere = {"transform": (10.0, 0.0, 1e12, 0.0, -10.0, 5e6)}
    told = leakage(make(tmp_path / "s", Layout(OPTICAL), [("train", (0,), {}), ("val", (0,), nowhere)]))
    assert told[1] == "leakage: 1 patches were not compared: outside of where CRS EPSG:32633 is defined"
    assert "OK" in told[0] and "val 0 of 1" in told[0]


# ---- the picture


def test_samples_show_every_class_rare_ones_first():
    pytest.importorskip("matplotlib")
    from jeoparda.report.samples import choose

    labels = np.zeros((1000, 4), np.uint8)
    labels[:, 0] = 1
    labels[500:900, 1] = 1
    labels[[700, 950], 2] = 1  # 700 shows class 1 too
    labels[999, 3] = 1
    valid = np.ones(1000)
    assert choose(labels, valid, 2) == [700, 999]
    assert choose(labels, valid, 1) == [999]
    several = choose(labels, valid, 12)
    assert {700, 999} <= set(several) and len(set(several)) == 12
    assert labels[several].sum(0).tolist()[1:] == [10, 2, 1]  # class 0 is on all of them: no need to seek it
    assert choose(labels[:3], valid[:3], 10) == [0, 1, 2]


LAYOUTS = {
    "labels": Layout(OPTICAL),
    "mask": Layout(OPTICAL, valid=True, mask_px=24),
    "pairs": Layout(OPTICAL, high=Group("high", 2.5, 96, ("B04", "B03", "B02"), "uint8"), mask_px=96),
    "series": Layout(OPTICAL, valid=True, mask_px=24, dates=3),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_pictures_of_every_layout(kind, tmp_path):
    pytest.importorskip("matplotlib")
    dates = {"dates": ("2017-01-01", "", "2017-03-01")} if kind == "series" else {}
    rows = [("train", (0, 1), dates), ("val", (2,), dates), ("test", (3, 0, 1), dates)]
    store = make(tmp_path / "s", LAYOUTS[kind], rows)
    samples_png(store, tmp_path / "a.png", 3)
    samples_png(store, tmp_path / "b.png", 3)
    image = (tmp_path / "a.png").read_bytes()
    assert image.startswith(b"\x89PNG") and image == (tmp_path / "b.png").read_bytes()
    from matplotlib.image import imread

    shown = {tuple(c) for c in (imread(tmp_path / "a.png")[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    assert (set(COLORS) <= shown) == (kind != "labels")  # all four classes have their colours in the masks


def test_the_right_way_up_and_not_stretched_into_noise():
    pytest.importorskip("matplotlib")
    from jeoparda.report.samples import _NOTHING, _picture

    patch = arrays(Layout(OPTICAL), ())
    patch["10m"] = patch["10m"].copy()
    patch["10m"][:, :3, -3:] = 0  # upper right corner: no data
    image = _picture(OPTICAL, ("B04", "B03", "B02"), patch, None)
    assert image.shape == (24, 24, 3) and tuple(image[0, -1]) == _NOTHING
    assert image[12, 0, 0] < image[12, 10, 0] < image[12, -1, 0] and image[0, 5, 0] < image[-1, 5, 0]
    sea = {"10m": np.full((3, 24, 24), 900, np.uint16) + np.random.default_rng(0).integers(-9, 9, (3, 24, 24))}
    assert np.ptp(_picture(OPTICAL, ("B04", "B03", "B02"), sea, None).astype(int)) < 40
    grey = _picture(OPTICAL, (), patch, None)
    assert (grey[..., 0] == grey[..., 2]).all()


def test_text_does_without_matplotlib(tmp_path, monkeypatch):
    store = make(tmp_path / "s", Layout(OPTICAL), [("train", (0,), {})])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("jeoparda.report.samples", "matplotlib.figure", "matplotlib.patches"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "val 0 of 0" in describe_store(store)
    with pytest.raises(JeopardaError, match=r"jeoparda\[report\]"):
        samples_png(store, tmp_path / "a.png", 3)
    assert not (tmp_path / "a.png").exists()
