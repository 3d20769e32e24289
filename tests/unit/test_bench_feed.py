"""The feed's benchmark: what is held against the feed does the same work, and what is counted is all there is."""

import multiprocessing
import os
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.feed import measure, peers
from benchmarks.feed.loaders import AUGMENT, STILL, Collate, Image, Patches, copies, feed, reads, sequential
from benchmarks.feed.measure import Turn, compare, cpu_s, disk, drop, resident, table, warm
from benchmarks.feed.stores import write
from benchmarks.turns import ratio
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.store import Layout, Store, group_records

COUNT = 70


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("feed") / "store"
    write(folder, Layout(group_records(SENTINEL_2_L2A, 24)), COUNT)
    return Store(folder)


def test_the_loader_does_the_feed_s_work(store):
    items = Patches(store, Image(store, STILL))
    seen = 0
    for batch in feed(store.folder, {"kind": "plain", "augment": STILL})():
        for image, labels, number in zip(batch["image"], batch["labels"], batch["number"].tolist(), strict=True):
            torch.testing.assert_close(items[number]["image"], image, atol=1e-4, rtol=0)
            torch.testing.assert_close(items[number]["labels"], labels)
            seen += 1
    assert seen == len(items) == COUNT


def test_raw_fields_are_the_store_s(store):
    items = Patches(store, lambda fields: fields)
    by_peers = list(peers.patches(store.folder))
    assert len(by_peers) == COUNT
    for number in range(COUNT):
        for name in ("10m", "20m", "60m"):
            np.testing.assert_array_equal(items[number][name].numpy(), store.patch(number)[name])
            np.testing.assert_array_equal(by_peers[number][1][name], store.patch(number)[name])
        assert by_peers[number][0] == store.column("id")[number]
        np.testing.assert_array_equal(by_peers[number][1]["labels"], store.labels[number])


def test_the_loader_s_flips_are_the_eight_symmetries(store):
    still = Patches(store, Image(store, STILL))[3]["image"]
    turned = [t.flip(axes) for t in (still, still.transpose(1, 2)) for axes in ([], [1], [2], [1, 2])]
    items = Patches(store, Image(store, STILL | {"flips": True}))
    drawn = [items[3]["image"] for _ in range(200)]
    assert {next(k for k, t in enumerate(turned) if torch.equal(t, x)) for x in drawn} == set(range(8))


def test_the_loader_s_crops_are_windows(store):
    still = Patches(store, Image(store, STILL))[3]["image"][:4]  # 10 m bands; others are upsampled after the crop
    items = Patches(store, Image(store, STILL | {"crop_px": 12}))
    windows = {(r, c): still[:, r : r + 12, c : c + 12] for r in (0, 6, 12) for c in (0, 6, 12)}
    drawn = [items[3]["image"] for _ in range(200)]
    assert {x.shape for x in drawn} == {(12, 12, 12)}
    assert {next(at for at, w in windows.items() if torch.equal(w, x[:4])) for x in drawn} == set(windows)


def test_the_loader_s_gains_and_missing_bands(store):
    still = Patches(store, Image(store, STILL))[3]["image"]
    dropped = Patches(store, Image(store, STILL | {"drop_bands": 0.3}))
    drawn = torch.stack([dropped[3]["image"] for _ in range(100)])
    gone = (drawn == 0).all(3).all(2)
    assert 0.2 < gone.float().mean() < 0.4
    torch.testing.assert_close(drawn[~gone], still.expand_as(drawn)[~gone])
    mean, std = (torch.from_numpy(a)[:, None, None] for a in store.statistics())
    jittered = Patches(store, Image(store, STILL | {"jitter": 0.1}))
    gains = torch.stack([((jittered[3]["image"] * std + mean) / (still * std + mean)).mean((1, 2)) for _ in range(100)])
    assert gains.mean() == pytest.approx(1, abs=0.02) and gains.std() == pytest.approx(0.1, abs=0.02)


def test_mixing_keeps_a_pair_s_sum_and_labels_follow():
    samples = [
        {"image": torch.full((1, 2, 2), float(i)), "labels": torch.eye(6)[i], "number": i} for i in range(6)
    ]  # so an image tells the share of each sample in it
    batch = Collate(AUGMENT["mixup"])(samples)
    for a in range(0, 6, 2):
        own = batch["labels"][a, a]
        assert 0 <= own <= 1 and batch["labels"][a + 1, a + 1] == own
        torch.testing.assert_close(batch["image"][a], torch.full((1, 2, 2), a + 1 - own.item()))
        torch.testing.assert_close(batch["image"][a] + batch["image"][a + 1], torch.full((1, 2, 2), 2.0 * a + 1))
    assert torch.equal(Collate(0)(samples)["labels"], torch.eye(6))


def test_floors_cover_every_patch(store):
    for floor in (copies, reads):
        assert sorted(n for b in floor(store.folder, {})() for n in b["labels"].tolist()) == list(range(COUNT))
    for direct in (False, True):
        assert sum(len(b["labels"]) for b in sequential(store.folder, {"direct": direct})()) == COUNT


def _burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def _burn_and_stay(seconds, done, leave) -> None:
    _burn(seconds)
    done.set()
    leave.wait()


def test_processor_time_of_children_living_and_ended():
    context = multiprocessing.get_context("fork")
    done, leave = context.Event(), context.Event()
    before = cpu_s()
    ended = context.Process(target=_burn, args=(0.2,))
    ended.start()
    ended.join()
    assert 0.18 <= cpu_s() - before <= 0.6
    living = context.Process(target=_burn_and_stay, args=(0.2, done, leave))
    living.start()
    done.wait()
    assert 0.38 <= cpu_s() - before <= 1.2
    leave.set()
    living.join()


def test_pages_leave_the_cache_and_come_back(tmp_path):
    if disk(tmp_path).startswith("no block device"):
        pytest.skip(f"{tmp_path} is not on a disk")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 << 20))
    assert resident(path) == 1
    drop(path)
    assert resident(path) == 0
    warm(path)
    assert resident(path) == 1


CODE = """
import time, numpy as np
from benchmarks.feed.measure import serve
def epoch():
    for _ in range(4):
        time.sleep(0.01)
        yield {{"labels": range(8), "x": np.zeros((8, {}))}}
serve(epoch)
"""


def test_rates_are_compared_round_by_round():
    rates = {"fast": (600, 90, 300), "slow": (200, 45, 10)}  # the machine was slower in the second round
    turns = {name: [Turn(rate, 5.0, {}) for rate in found] for name, found in rates.items()}
    assert ratio(turns, "fast", "slow") == 3
    assert table(turns)["fast"] == {"patches_per_s": 300, "cpu_us_per_patch": 5, "rounds": [600, 90, 300]}


def test_contenders_take_turns(store, monkeypatch):
    monkeypatch.setattr(measure, "WARM_S", 0.05)
    commands = {n: (sys.executable, "-c", CODE.format(size)) for n, size in (("one", 3), ("same", 3), ("other", 4))}
    turns = compare(commands, [store.folder], False, 3, ("one", "same"))
    assert {name: len(found) for name, found in turns.items()} == {"one": 3, "same": 3, "other": 3}
    assert all(0 < t.patches_per_s <= 8 / 0.01 and t.cpu_us >= 0 for found in turns.values() for t in found)
    with pytest.raises(SystemExit, match=r"one delivers .*3.* other delivers .*4"):
        compare(commands, [store.folder], False, 1, ("one", "other"))
    with pytest.raises(SystemExit, match="ended with exit code 3"):
        compare({"one": (sys.executable, "-c", "import sys; sys.exit(3)")}, [store.folder], False, 1)
