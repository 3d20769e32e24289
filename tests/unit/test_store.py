"""The store: what is written reads back, by jeoparda and by plain HDF5, and every damage is found."""

import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from jeoparda.errors import DiskError, StoreError
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import (
    Contents,
    Group,
    Layout,
    PatchRecord,
    Reject,
    Store,
    StoreInfo,
    damaged,
    finalise,
    finished,
    group_records,
    shard_sums,
    statistics_of,
    write_shard,
)
from tests.unit.test_ingest import content

GROUPS = group_records(SENTINEL_2_L2A, 24)
CLASSES = ("water", "wood", "town")
SPLITS = ("train", "train", "val", "train", "test", "train", "val")
COLORS = ((0, 0, 255), (0, 128, 0), (255, 0, 0))
CONTENTS = Contents(
    SENTINEL_2_L2A.name, "reflectance x 10000", SENTINEL_2_L2A.rgb, Layout(GROUPS), "three", CLASSES, COLORS
)


BAD = Reject("x", "x/x.tif", "bad", "a good one")


def patch(number: int) -> tuple[PatchRecord, dict[str, np.ndarray], list[int]]:
    rng = np.random.default_rng(number)
    arrays = {g.name: rng.integers(1, 65536, (len(g.bands), g.size_px, g.size_px)).astype(np.uint16) for g in GROUPS}
    place = (10.0, 0.0, 1000.0 * number, 0.0, -10.0, 5e6)
    name = "ü" * number  # text of several widths
    record = PatchRecord(f"p{number}", name, "EPSG:32633", place, "2017-06-13", "", SPLITS[number], number / 8)
    return record, arrays, [c for c in range(3) if number >> c & 1]


def write(folder: Path, parts: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4, 5), (6,)), order: int = 1) -> Path:
    shards = [
        write_shard(folder, n, "plan", CONTENTS, [patch(i) for i in part], len(part))
        for n, part in [*enumerate(parts)][::order]
    ]
    finalise(folder, shards, CONTENTS, [BAD], {"not wanted": 2}, {"a": 1}, "0")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "store")


def faults(folder: Path) -> list[str]:
    """What `jeoparda store verify` tells: faults, or why the store does not open."""
    try:
        info = StoreInfo.read(folder)
    except StoreError as e:
        return [str(e)]
    return [str(d) for n, shard in enumerate(info.shards) if (d := damaged(folder, info.layout, shard, n))]


def test_written_reads_back(folder):
    store = Store(folder)
    assert len(store) == 7
    for i in range(7):
        record, arrays, labels = patch(i)
        for g in GROUPS:
            np.testing.assert_array_equal(store.patch(i)[g.name], arrays[g.name])
            for k, band in enumerate(g.bands):
                np.testing.assert_array_equal(store.band(i, band), arrays[g.name][k])
        assert np.flatnonzero(store.labels[i]).tolist() == labels
        for name in ("id", "source", "crs", "date", "country", "split"):
            assert store.column(name)[i] == getattr(record, name)
        assert store.column("transform")[i].tolist() == list(record.transform)
        assert store.column("valid_fraction")[i] == record.valid_fraction
    assert store.info.splits == {"train": 4, "val": 2, "test": 1}
    assert store.split("val").tolist() == [2, 6] and store.split("all").tolist() == list(range(7))
    assert store.info.rejected == (BAD,) and store.info.left_out == {"not wanted": 2}
    assert (folder / "rejects.csv").read_text() == "id,file,reason,expected,kind\nx,x/x.tif,bad,a good one,fault\n"
    assert store.info.class_patches["train"] == [3, 1, 1]  # of patches 0, 1, 3, 5
    assert faults(folder) == []


def test_statistics_are_those_of_the_training_pixels(folder):
    store = Store(folder)
    mean, std = store.statistics()
    assert mean.dtype == std.dtype == np.float32
    for k, band in enumerate(store.info.bands):
        pixels = np.stack([store.band(i, band) for i in store.split("train")]).astype(float)
        found = store.info.statistics[band]
        assert (found.pixels, found.min, found.max) == (pixels.size, pixels.min(), pixels.max())
        assert (found.mean, found.std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-12)
        assert (mean[k], std[k]) == (np.float32(found.mean), np.float32(found.std))


def test_plain_hdf5_opens_and_understands_it(folder):
    for number, numbers in enumerate(((0, 1, 2), (3, 4, 5), (6,))):
        with h5py.File(folder / "shards" / f"{number:05d}.h5", "r") as f:
            data = f["patches"]
            assert data.chunks is None and data.compression is None
            assert data.id.get_offset() % 4096 == 0
            for row, i in enumerate(numbers):
                _, arrays, labels = patch(i)
                for g in GROUPS:
                    np.testing.assert_array_equal(data[row][g.name], arrays[g.name])
                assert np.flatnonzero(f["labels"][row]).tolist() == labels
                assert f["table"][row]["id"].decode() == f"p{i}"


def test_records_of_real_size_lie_on_pages():
    dtype = Layout(group_records(SENTINEL_2_L2A, 120)).dtype()
    pixels = 4 * 120**2 + 6 * 60**2 + 2 * 20**2
    assert dtype.itemsize % 4096 == 0 and 2 * pixels <= dtype.itemsize <= 2 * pixels * 1.05
    assert Layout(GROUPS).dtype().itemsize % 64 == 0
    with pytest.raises(StoreError, match="multiple of 6 px"):
        group_records(SENTINEL_2_L2A, 100)


def test_the_same_bytes_in_whatever_order_and_by_another_run(folder, tmp_path):
    assert content(write(tmp_path / "again", order=-1)) == content(folder)


def test_a_finished_shard_is_taken_not_made_again(folder):
    found = finished(folder, 0, "plan")
    assert found is not None and found.info == StoreInfo.read(folder).shards[0]
    assert finished(folder, 9, "plan") is None
    with pytest.raises(StoreError, match="another archive, recipe or version"):
        finished(folder, 0, "another plan")


def test_a_damaged_or_half_shard_is_to_be_made_again(folder):
    path = folder / "shards" / "00000.h5"
    whole = path.read_bytes()
    at = StoreInfo.read(folder).shards[0].offset + 5
    for broken in (whole[:at] + b"?" + whole[at + 1 :], whole[: len(whole) // 2], b"", b"no HDF5"):
        path.write_bytes(broken)
        assert finished(folder, 0, "plan") is None


def test_a_shard_with_rejects_is_made_again_but_counts_at_the_end(tmp_path):
    write_shard(tmp_path, 0, "p", CONTENTS, [patch(1), BAD], 2)
    assert finished(tmp_path, 0, "p") is None
    assert finished(tmp_path, 0, "p", with_rejects=True) is not None


def test_every_flipped_byte_is_found(folder):
    shard = folder / "shards" / "00001.h5"
    whole = shard.read_bytes()
    offset, size = Store(folder).offset_of[3], Store(folder).info.record_bytes
    rng = random.Random(0)
    places = {
        0,
        len(whole) - 1,
        offset,
        offset + 3 * size - 1,
        *range(0, 1024, 11),
        *rng.sample(range(len(whole)), 150),
    }
    for at in sorted(places):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        found = faults(folder)
        assert any(str(shard) in f for f in found), f"byte {at} of {len(whole)}: {found}"
        if offset <= at < offset + 3 * size:
            hit = 3 + (at - offset) // size
            assert found == [f"{shard}: differs from its checksum in store.json: patches {hit - 3} of it"]
    shard.write_bytes(whole)
    assert faults(folder) == []


@pytest.mark.parametrize("keep", [0, 100, 5000, -1])
def test_a_truncated_shard_is_found(folder, keep):
    shard = folder / "shards" / "00001.h5"
    shard.write_bytes(shard.read_bytes()[:keep])
    assert any(str(shard) in f for f in faults(folder))


def test_a_missing_shard_is_found(folder):
    (folder / "shards" / "00002.h5").unlink()
    assert "00002.h5" in faults(folder)[0]


def test_a_shard_of_another_store_is_found(folder, tmp_path):
    other = write(tmp_path / "other", ((0, 1), (2, 3, 4), (5, 6)))
    shutil.copy(other / "shards" / "00001.h5", folder / "shards" / "00001.h5")
    assert any("00001.h5" in f for f in faults(folder))
    shutil.copy(other / "shards" / "00000.h5", folder / "shards" / "00001.h5")
    assert "number of patches" in faults(folder)[0]
    with pytest.raises(StoreError, match="2 patches of"):
        Store(folder)


def test_changed_figures_in_store_json_are_found(folder):
    """Training normalises by them: a flipped digit there is as bad as one in a shard."""
    path = folder / "store.json"
    text = path.read_text()
    mean = json.loads(text)["statistics"]["B02"]["mean"]
    path.write_text(text.replace(repr(mean), repr(mean + 1)))
    assert path.read_text() != text
    assert any("store.json" in f for f in faults(folder))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "jeoparda-store", "version": 1}', '{"version": 99}', "ü"]
)
def test_a_damaged_store_json_is_told(folder, text):
    (folder / "store.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"store\.json"):
        Store(folder)


def test_the_digest_is_of_the_content(folder, tmp_path):
    digest = Store(folder).digest
    assert digest == Store(write(tmp_path / "same")).digest
    assert digest != Store(write(tmp_path / "other", ((0, 1, 2), (3, 4, 5)))).digest


def test_what_is_no_store_is_told(tmp_path, folder):
    with pytest.raises(StoreError, match="make a store with `jeoparda ingest`"):
        Store(tmp_path)
    (folder / "store.json").unlink()
    with pytest.raises(StoreError, match="did not finish: run it again"):
        Store(folder)


def test_empty_splits_and_wrong_bands_are_told(tmp_path):
    store = Store(write(tmp_path / "s", ((2, 6),)))  # validation only
    with pytest.raises(StoreError, match="split 'train' is empty; patches by split: train 0, val 2, test 0"):
        store.split("train")
    with pytest.raises(StoreError, match="training split is empty"):
        store.statistics()
    with pytest.raises(StoreError, match="no band 'B10'; there are B02"):
        store.band(0, "B10")


def test_a_constant_band_does_not_divide_by_zero(tmp_path):
    record, arrays, labels = patch(0)
    arrays["10m"][0] = 777
    shard = write_shard(tmp_path, 0, "p", CONTENTS, [(record, arrays, labels)], 1)
    finalise(tmp_path, [shard], CONTENTS, [], {}, {}, "0")
    mean, std = Store(tmp_path).statistics()
    assert (mean[0], std[0]) == (777, 1)
    assert StoreInfo.read(tmp_path).statistics["B02"].std == 0


def test_a_shard_of_rejected_patches_only(tmp_path):
    lost, torn, burnt = (Reject(n, f"{n}.tif", why, "") for n, why in (("p9", "lost"), ("p0", "torn"), ("p2", "burnt")))
    shards = [
        write_shard(tmp_path, 0, "p", CONTENTS, [torn], 1),
        write_shard(tmp_path, 1, "p", CONTENTS, [patch(1), burnt, patch(3)], 3),
    ]
    finalise(tmp_path, shards, CONTENTS, [lost], {}, {}, "0")
    store = Store(tmp_path)
    assert store.column("id").tolist() == ["p1", "p3"]
    assert store.info.rejected == (lost, torn, burnt)
    np.testing.assert_array_equal(store.patch(1)["20m"], patch(3)[1]["20m"])
    assert faults(tmp_path) == []


# ---- stores with more than bands and labels

FINE, COARSE = Group("10m", 10.0, 12, ("a", "b")), Group("20m", 20.0, 6, ("c",), "int16")
LAYOUTS = {
    "mask": Layout((FINE, COARSE), valid=True, mask_px=12),
    "pair": Layout((FINE,), high=Group("high", 2.5, 48, ("a",), "uint8"), valid=True, mask_px=48),
    "series": Layout((FINE, COARSE), valid=True, mask_px=12, dates=3),
    "float": Layout((Group("x1", 1.0, 8, ("n",), "float32"),)),
}


def made(layout: Layout, number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    out = {}
    for name, (kind, shape) in layout.fields().items():
        if name == "valid":
            out[name] = (rng.random(shape) < 0.7).astype(np.uint8)
        elif name == "mask":
            out[name] = rng.choice([0, 1, 2, 255], shape).astype(np.uint8)
        elif kind == "float32":
            out[name] = (1e6 + rng.normal(size=shape)).astype(np.float32)
        else:
            info = np.iinfo(kind)
            out[name] = rng.integers(info.min, info.max, shape, endpoint=True).astype(kind)
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reads_back_with_its_statistics(tmp_path, name):
    layout = LAYOUTS[name]
    contents = Contents("generic", "digital number", (), layout, "three", CLASSES, COLORS, "mask")
    dates = ("2020-01-05", "", "2020-03-01")[: layout.dates]

    def row(number: int):
        place = (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)
        record = PatchRecord(f"p{number}", "s", "", place, dates[0] if dates else "", "", SPLITS[number], 1.0, dates)
        return record, made(layout, number), (number % 3,)

    shards = [
        write_shard(tmp_path, n, "p", contents, [row(i) for i in part], 5) for n, part in ((0, (0, 1, 2)), (1, (3, 4)))
    ]
    info = finalise(tmp_path, shards, contents, [], {}, {}, "0")
    store = Store(tmp_path)
    assert store.info == info and store.info.layout == layout
    for i in range(5):
        for field, expected in made(layout, i).items():
            np.testing.assert_array_equal(store.patch(i)[field], expected)
        assert tuple(store.dates(i)) == dates
    for g in layout.groups:
        for k, band in enumerate(g.bands):
            parts = []
            for i in (0, 1, 3):
                arrays = made(layout, i)
                values = np.moveaxis(arrays[g.name], -3, 0)[k]
                if layout.valid:  # a coarse pixel counts where all fine ones below it do
                    step = layout.size_px // g.size_px
                    fine = arrays["valid"].astype(bool)
                    keep = np.ones(values.shape, bool)
                    for y in range(step):
                        for x in range(step):
                            keep &= fine[..., y::step, x::step]
                    values = values[keep]
                parts.append(values.ravel())
            pixels = np.concatenate(parts).astype(np.float64)
            found = info.statistics[band]
            assert (found.pixels, found.min, found.max) == (pixels.size, pixels.min(), pixels.max())
            assert (found.mean, found.std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-9)
    if layout.mask_px:
        truth = np.concatenate([made(layout, i)["mask"].ravel() for i in (0, 1, 3)])
        assert info.class_pixels["train"] == [int((truth == c).sum()) for c in range(3)]
    again = [shard_sums(tmp_path, info, shard).summary()["bands"] for shard in info.shards]
    assert {b: statistics_of([part[b] for part in again]) for b in info.statistics} == info.statistics


def test_fields_start_on_cache_lines_and_ordinary_records_stay_as_they_were():
    dtype = LAYOUTS["pair"].dtype()
    assert all(dtype.fields[n][1] % 64 == 0 for n in dtype.names)
    bigearthnet = Layout(group_records(SENTINEL_2_L2A, 120)).dtype()
    assert [bigearthnet.fields[n][1] for n in bigearthnet.names] == [0, 115_200, 158_400]
    assert bigearthnet.itemsize == 163_840


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as a quota: writing beyond it fails
    try:
        with pytest.raises(DiskError, match=r"00000\.h5: cannot be written: .*; nothing is lost: make room"):
            write_shard(tmp_path, 0, "p", CONTENTS, [patch(1)], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "shards").iterdir()) == []


def test_what_is_not_the_layout_s_is_refused(tmp_path):
    record, arrays, classes = patch(1)
    wrong = {
        "its 10m is": arrays | {"10m": arrays["10m"][:1]},
        "float64": arrays | {"10m": arrays["10m"].astype(float)},
    }
    for told, given in wrong.items():
        with pytest.raises(StoreError, match=f"patch p1: .*{told}"):
            write_shard(tmp_path, 0, "p", CONTENTS, [(record, given, tuple(classes))], 1)
    for numbers in ((3,), (-1,)):
        with pytest.raises(StoreError, match="patch p1: classes"):
            write_shard(tmp_path, 0, "p", CONTENTS, [(record, arrays, numbers)], 1)


def test_no_data_and_nan_are_no_pixels_of_the_statistics(tmp_path):
    record, arrays, classes = patch(1)
    arrays["10m"][1, :, :12] = 0  # no data in one band: the ground is not measured
    write = [write_shard(tmp_path / "a", 0, "p", CONTENTS, [(record, arrays, tuple(classes))], 1)]
    info = finalise(tmp_path / "a", write, CONTENTS, [], {}, {}, "0")
    assert info.statistics["B02"].pixels == 24 * 12 and info.statistics["B02"].mean == arrays["10m"][0, :, 12:].mean()
    layout = LAYOUTS["float"]
    contents = Contents("generic", "digital number", (), layout, "three", CLASSES, COLORS)
    values = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    values[0, 0, :4] = np.nan
    write = [write_shard(tmp_path / "b", 0, "p", contents, [(record, {"x1": values}, ())], 1)]
    found = finalise(tmp_path / "b", write, contents, [], {}, {}, "0").statistics["n"]
    assert (found.pixels, found.mean, found.min) == (60, np.arange(4, 64).mean(), 4)


def test_a_band_of_a_series_has_all_dates(tmp_path):
    layout = LAYOUTS["series"]
    contents = Contents("generic", "digital number", (), layout, "three", CLASSES, COLORS, "series")
    place = (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)
    row = PatchRecord("p", "s", "", place, "", "", "train", 1.0, ("a", "b", "c")), made(layout, 0), ()
    finalise(tmp_path, [write_shard(tmp_path, 0, "p", contents, [row], 1)], contents, [], {}, {}, "0")
    np.testing.assert_array_equal(Store(tmp_path).band(0, "b"), made(layout, 0)["10m"][:, 1])
