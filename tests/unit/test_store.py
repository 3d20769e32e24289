"""The store: what is written reads back, by jeoparda and by plain HDF5, and every damage is found."""

import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from jeoparda.errors import StoreError
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import PatchRecord, Store, StoreInfo, finalise, group_records, record_dtype, write_shard

GROUPS = group_records(SENTINEL_2_L2A, 24)
CLASSES = ("water", "wood", "town")
SPLITS = ("train", "train", "val", "train", "test", "train", "val")


def patch(number: int) -> tuple[PatchRecord, dict[str, np.ndarray], list[int]]:
    rng = np.random.default_rng(number)
    arrays = {g.name: rng.integers(0, 65536, (len(g.bands), g.size_px, g.size_px)).astype(np.uint16) for g in GROUPS}
    place = (10.0, 0.0, 1000.0 * number, 0.0, -10.0, 5e6)
    name = "ü" * number  # text of several widths
    record = PatchRecord(f"p{number}", name, "EPSG:32633", place, "2017-06-13", "", SPLITS[number], number / 8)
    return record, arrays, [c for c in range(3) if number >> c & 1]


def write(folder: Path, parts: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4, 5), (6,)), order: int = 1) -> Path:
    shards = [
        write_shard(folder, n, "plan", GROUPS, 3, [patch(i) for i in part]) for n, part in [*enumerate(parts)][::order]
    ]
    finalise(folder, shards, SENTINEL_2_L2A.name, GROUPS, "three", CLASSES, [("x", "bad")], {"a": 1}, "0")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "store")


def content(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def faults(folder: Path) -> list[str]:
    """What `jeoparda store verify` tells: faults, or why the store does not open."""
    try:
        return list(Store(folder).verify())
    except StoreError as e:
        return [str(e)]


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
    assert store.info.rejected == (("x", "bad"),)
    assert store.info.class_patches["train"] == [3, 1, 1]  # of patches 0, 1, 3, 5
    assert list(store.verify()) == []


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
    dtype = record_dtype(group_records(SENTINEL_2_L2A, 120))
    pixels = 4 * 120**2 + 6 * 60**2 + 2 * 20**2
    assert dtype.itemsize % 4096 == 0 and 2 * pixels <= dtype.itemsize <= 2 * pixels * 1.05
    assert record_dtype(GROUPS).itemsize % 64 == 0
    with pytest.raises(StoreError, match="multiple of 6 px"):
        group_records(SENTINEL_2_L2A, 100)


def test_the_same_bytes_in_whatever_order_and_by_another_run(folder, tmp_path):
    assert content(write(tmp_path / "again", order=-1)) == content(folder)


def test_a_finished_shard_is_taken_not_made_again(folder):
    before = content(folder)

    def untouched():
        raise AssertionError("was read again")
        yield

    write_shard(folder, 0, "plan", GROUPS, 3, untouched())
    assert content(folder) == before
    with pytest.raises(StoreError, match="another archive, recipe or version"):
        write_shard(folder, 0, "another plan", GROUPS, 3, untouched())


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
            assert found[1:] == [f"{shard}: patch p{hit} is damaged"]
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
    assert "2 patches" in faults(folder)[0]


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
    shard = write_shard(tmp_path, 0, "p", GROUPS, 3, [(record, arrays, labels)])
    finalise(tmp_path, [shard], SENTINEL_2_L2A.name, GROUPS, "three", CLASSES, [], {}, "0")
    mean, std = Store(tmp_path).statistics()
    assert (mean[0], std[0]) == (777, 1)
    assert StoreInfo.read(tmp_path).statistics["B02"].std == 0


def test_a_shard_of_rejected_patches_only(tmp_path):
    shards = [
        write_shard(tmp_path, 0, "p", GROUPS, 3, [("p0", "torn")]),
        write_shard(tmp_path, 1, "p", GROUPS, 3, [patch(1), ("p2", "burnt"), patch(3)]),
    ]
    finalise(tmp_path, shards, SENTINEL_2_L2A.name, GROUPS, "three", CLASSES, [("p9", "lost")], {}, "0")
    store = Store(tmp_path)
    assert store.column("id").tolist() == ["p1", "p3"]
    assert store.info.rejected == (("p9", "lost"), ("p0", "torn"), ("p2", "burnt"))
    np.testing.assert_array_equal(store.patch(1)["20m"], patch(3)[1]["20m"])
    assert faults(tmp_path) == []
