"""Upkeep: a bit flipped anywhere is found, and mended from the archive to the very bytes that were there."""

import json
import random
import shutil
from pathlib import Path

import h5py
import pytest

from jeoparda.errors import StoreError
from jeoparda.ingest import IngestRecipe, SplitRecipe, finalise, init, load, run
from jeoparda.ingest.upkeep import repair, statistics, verify
from jeoparda.store import Store, StoreInfo
from tests.archive import make_archive
from tests.unit.test_ingest import break_band, content

FLIPS = 200


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Nine patches, one of them torn, so that a shard has a reject in its middle; and one that is left out."""
    folder = make_archive(tmp_path_factory.mktemp("upkeep") / "archive", 9)
    torn = sorted(folder.iterdir())[4]
    break_band(torn / f"{torn.name}_B03.tif", "torn")
    return folder


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("whole") / "store"
    split = SplitRecipe(block_m=1200, val=0.25, test=0.25)
    run(IngestRecipe(archive=archive, store=store, patches_per_shard=4, workers=1, split=split), lambda _: None)
    return store


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def flip(path: Path, at: int, bit: int) -> None:
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1 << bit]))


def test_any_flipped_bit_is_found_and_mended(store, whole):
    """In records, padding, labels, table, checksums and HDF5's own structures."""
    rng = random.Random(0)
    truth = content(whole)
    shards = sorted((store / "shards").iterdir())
    for trial in range(FLIPS):
        path = rng.choice(shards)
        # half of them beyond and before the records, where one flip in thousands would fall by chance
        info = next(s for s in StoreInfo.read(store).shards if s.file == path.name)
        end = info.offset + info.patches * StoreInfo.read(store).record_bytes
        outside = [*range(info.offset), *range(end, path.stat().st_size)]
        at = rng.choice(outside) if trial % 2 else rng.randrange(info.offset, end)
        flip(path, at, rng.randrange(8))
        (damage,) = verify(store, 1) or []
        assert damage.path == str(path), f"flip {trial} at byte {at}"
        if info.offset <= at < end:
            assert damage.patches == ((at - info.offset) // StoreInfo.read(store).record_bytes,)
        repair(store, count=1, say=lambda _: None)
        assert content(store) == truth, f"flip {trial} at byte {at}"
    assert verify(store, 1) == []


def test_only_the_damaged_patch_is_read_again(store, archive, tmp_path):
    """The rest of the archive may be gone by then."""
    info = StoreInfo.read(store)
    opened = Store(store)
    number = 5
    name = str(opened.column("id")[number])
    flip(opened.paths[opened.shard_of[number]], int(opened.offset_of[number]) + 77, 3)
    rest = tmp_path / "rest"
    shutil.copytree(archive / name, rest / name)
    said: list[str] = []
    assert repair(store, rest, 1, said.append) == 1
    assert any("1 patches read again" in s for s in said)
    assert verify(store, 1) == [] and StoreInfo.read(store) == info


ways_to_go = pytest.mark.parametrize("how", ["missing", "torn", "empty", "other"])


def made_again(store: Path, whole: Path, how: str, torn: int) -> None:
    """Lose a shard (a torn one keeps `torn` bytes), and mend the store to the bytes of the whole one."""
    path = store / "shards" / "00001.h5"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"torn": path.read_bytes()[:torn], "empty": b"", "other": b"<html>404</html>"}[how])
    assert len(verify(store, 1) or []) == 1
    repair(store, count=1, say=lambda _: None)
    assert content(store) == content(whole)


@ways_to_go
def test_a_shard_that_is_gone_is_made_again(store, whole, how):
    made_again(store, whole, how, torn=20_000)


def test_plan_and_store_json_are_mended_too(store, whole):
    for name in ("plan.jsonl", "store.json"):
        size = (store / name).stat().st_size
        for at in (5, size // 2, size - 30, size - 3):
            flip(store / name, at, 1)
            repair(store, count=1, say=lambda _: None)
            assert content(store) == content(whole), f"{name}, byte {at}"


def test_an_archive_that_changed_mends_nothing_and_harms_nothing(store, archive, tmp_path):
    other = make_archive(tmp_path / "other", 9, seed=5)  # the same names, other pixels
    path = store / "shards" / "00001.h5"
    flip(path, StoreInfo.read(store).shards[1].offset + 9, 0)
    before = content(store)
    with pytest.raises(StoreError, match=r"shards 1 could not be mended.*--archive"):
        repair(store, other, 1, lambda _: None)
    assert content(store) == before
    repair(store, archive, 1, lambda _: None)
    assert verify(store, 1) == []


def test_damage_between_load_and_finalise_is_not_taken_for_the_truth(archive, whole, tmp_path):
    """A checksum of a damaged file would bless the damage, for ever."""
    split = SplitRecipe(block_m=1200, val=0.25, test=0.25)
    r = IngestRecipe(archive=archive, store=tmp_path / "s", patches_per_shard=4, workers=1, split=split)
    init(r, lambda _: None)
    load(r, 1, 1, lambda _: None)
    path = tmp_path / "s" / "shards" / "00000.h5"
    held = path.read_bytes()
    with h5py.File(path) as f:
        places = {name: f[name].id.get_offset() for name in ("labels", "table", "checksums", "patches")}
    for name, at in places.items():
        flip(path, at + 3, 2)
        with pytest.raises(StoreError, match="1 of 3 shards are missing or damaged: 0"):
            finalise(r, lambda _: None)
        path.write_bytes(held)
        assert name
    finalise(r, lambda _: None)
    assert content(tmp_path / "s") == content(whole)


def test_a_lost_plan_is_made_again_from_the_right_archive_only(store, whole, archive, tmp_path):
    (store / "plan.jsonl").unlink()
    fewer = Path(shutil.copytree(archive, tmp_path / "fewer"))
    shutil.rmtree(sorted(fewer.iterdir())[0])
    with pytest.raises(StoreError, match="no longer gives the plan"):
        repair(store, fewer, 1, lambda _: None)
    assert not (store / "plan.jsonl").exists()
    repair(store, None, 1, lambda _: None)
    assert content(store) == content(whole)
    other = shutil.copytree(whole, tmp_path / "other")
    other_plan = (other / "plan.jsonl").read_bytes().replace(b"EPSG:32633", b"EPSG:32632")
    (other / "plan.jsonl").write_bytes(other_plan)
    assert [d.number for d in verify(other, 1) or []] == [-1]


def test_statistics_again_from_the_pixels(store):
    answer = statistics(store, 1)
    assert answer == (StoreInfo.read(store).statistics, True)
    text = (store / "store.json").read_text()
    data = json.loads(text)
    data["statistics"]["B02"]["mean"] += 1
    data.pop("sha256")
    info = StoreInfo.read(store)
    changed = type(info)(**{**info.__dict__, "statistics": {**info.statistics, "B02": info.statistics["B03"]}})
    (store / "store.json").write_text(changed.dumps())
    assert statistics(store, 1) == (info.statistics, False)
