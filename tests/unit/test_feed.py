"""Feeds: two implementations and a plain reference agree, and each patch comes once."""

import os
import shutil
import threading

import numpy as np
import pytest

from jeoparda import feed
from jeoparda.config import check
from jeoparda.errors import RecipeError, StoreError
from jeoparda.feed import Feed, FeedRecipe, Plan, augment
from jeoparda.order import Order
from jeoparda.store import Store

DALI = pytest.param("dali", marks=pytest.mark.needs("dali"))
SEED = 3


@pytest.fixture(scope="module")
def store(tiny_store):
    return Store(tiny_store)


def make(store, kind="plain", batch=9, rank=0, size=1, train=True, count=None, **more) -> Feed:
    numbers = store.split("all")[:count]
    plan = Plan(Order(len(numbers), batch, SEED, shuffle=train), numbers, rank, size)
    return Feed(store, plan, FeedRecipe(kind=kind, **more), train, store.labels, store.statistics())


def epoch(f: Feed) -> list[dict[str, np.ndarray]]:
    """Copies of the batches that are left: a batch is valid only until the next."""
    return [{k: v.numpy().copy() for k, v in b.items()} for b in f]


def upsampled(band: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, pixel centres at half pixels, edges repeated: (n, n) -> (size, size) float64."""
    n = len(band)
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.floor(at).astype(int)
    high, weight = np.minimum(low + 1, n - 1), at - low
    rows = band[low] * (1 - weight)[:, None] + band[high] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, high] * weight


def reference(store: Store, number: int, epoch: int, train: bool) -> np.ndarray:
    """(band, row, col) float64 of one patch, straight from the store's description."""
    mean, std = (a.astype(float) for a in store.statistics())
    bands = [upsampled(store.band(number, b).astype(float), store.info.size_px) for b in store.info.bands]
    x = (np.stack(bands) - mean[:, None, None]) / std[:, None, None]
    if train:
        transpose, rows, cols = augment.flips(SEED, epoch, np.array([number]))[0]
        x = x.transpose(0, 2, 1) if transpose else x
        x = x[:, ::-1] if rows else x
        x = x[:, :, ::-1] if cols else x
    return x


@pytest.mark.parametrize("kind", ["plain", DALI])
@pytest.mark.parametrize("train", [True, False])
def test_images_are_the_reference_s(store, kind, train):
    f = make(store, kind, train=train, count=20)
    f.restore({"epoch": 2, "step": 0})
    seen = 0
    for batch in epoch(f):
        assert batch["image"].dtype == np.float32 and batch["number"].dtype == np.int64
        for image, labels, number in zip(batch["image"], batch["labels"], batch["number"], strict=True):
            np.testing.assert_allclose(image, reference(store, number, 2, train), atol=1e-5)
            np.testing.assert_array_equal(labels, store.labels[number])
            seen += 1
    assert seen == 20


@pytest.mark.needs("dali")
def test_dali_and_plain_give_the_same_numbers(store):
    plain, dali = make(store, "plain"), make(store, "dali", threads=3, ahead=3)
    for _ in range(2):  # a second epoch draws other flips
        for a, b in zip(epoch(plain), epoch(dali), strict=True):
            assert a["number"].tolist() == b["number"].tolist()
            np.testing.assert_array_equal(a["labels"], b["labels"])
            np.testing.assert_allclose(a["image"], b["image"], atol=1e-5)
    assert plain.state() == dali.state() == {"epoch": 2, "step": 0}


def test_the_test_above_would_see_a_missing_flip(store):
    train = {n: i for b in epoch(make(store)) for n, i in zip(b["number"], b["image"], strict=True)}
    still = {n: i for b in epoch(make(store, flips=False)) for n, i in zip(b["number"], b["image"], strict=True)}
    same = [n for n in train if np.allclose(train[n], still[n], atol=1e-5)]
    drawn = augment.flips(SEED, 0, np.array(sorted(train)))
    assert same == [n for n in same if not drawn[n].any()] and 0 <= len(same) < 16  # one in eight on average


def test_flips_are_the_eight_symmetries_equally_often():
    drawn = augment.flips(0, 0, np.arange(8000)) @ [4, 2, 1]
    assert ((np.bincount(drawn, minlength=8) - 1000) ** 2 / 1000).sum() < 24.3  # chi-squared, 7 d.o.f., p = 0.001
    again = augment.flips(0, 0, np.array([17, 4000, 3]))
    np.testing.assert_array_equal(again @ [4, 2, 1], drawn[[17, 4000, 3]])  # whatever else is in the batch
    assert (augment.flips(0, 1, np.arange(8000)) @ [4, 2, 1] != drawn).mean() > 0.8


@pytest.mark.parametrize("kind", ["plain", DALI, "synthetic"])
@pytest.mark.parametrize(("size", "count", "batch"), [(1, 47, 10), (2, 47, 10), (3, 47, 10), (3, 4, 3), (4, 5, 4)])
def test_each_patch_once_an_epoch_over_all_ranks(store, kind, size, count, batch):
    """(3, 4, 3) and (4, 5, 4) have steps of fewer patches than ranks: some rank's batch is empty."""
    ranks = [epoch(make(store, kind, batch=batch, rank=r, size=size, count=count)) for r in range(size)]
    assert len({len(steps) for steps in ranks}) == 1  # all take the same number of steps
    numbers = np.concatenate([b["number"] for steps in ranks for b in steps])
    assert np.array_equal(np.sort(numbers), np.arange(count))
    for steps in ranks:
        assert all(len(b["image"]) == len(b["labels"]) == len(b["number"]) for b in steps)
    single = epoch(make(store, kind, batch=batch, count=count))
    for step, b in enumerate(single):
        assert np.concatenate([steps[step]["number"] for steps in ranks]).tolist() == b["number"].tolist()


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_restored_it_goes_on_as_if_never_stopped(store, kind):
    f = make(store, kind, batch=7)
    f.restore({"epoch": 5, "step": 0})
    whole = epoch(f)
    for _ in zip(range(3), g := make(store, kind, batch=7), strict=False):
        pass
    g.restore({"epoch": 5, "step": 0})
    for step, _ in enumerate(g, start=1):
        if step == 3:
            break
    assert g.state() == {"epoch": 5, "step": 3}
    h = make(store, kind, batch=7)
    h.restore(g.state())
    rest = epoch(h)
    assert len(rest) == len(whole) - 3
    for a, b in zip(rest, whole[3:], strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert h.state() == {"epoch": 6, "step": 0}


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_restored_at_the_end_of_an_epoch_there_is_nothing_left(store, kind):
    f = make(store, kind, batch=7)
    f.restore({"epoch": 1, "step": f.plan.order.steps})
    assert epoch(f) == [] and f.state() == {"epoch": 2, "step": 0}


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_closed_early_nothing_is_left_running_or_open(store, kind):
    epoch(make(store, kind))  # what a library opens once and keeps is not counted

    def there() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = there()
    for steps in (0, 1, 3):
        batches = iter(make(store, kind, batch=4, ahead=2))
        for _ in range(steps):
            next(batches)
        batches.close()
        assert there() == before
    epoch(make(store, kind))
    assert there() == before


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_a_shard_that_is_cut_short_meanwhile_is_told(store, kind, tmp_path, tiny_store):
    copy = Store(shutil.copytree(tiny_store, tmp_path / "store"))
    os.truncate(copy.paths[2], 300_000)
    with pytest.raises(StoreError, match=r"00002\.h5: patch \d+ ends after .*truncated"):
        epoch(make(copy, kind))


def test_the_wait_for_data_is_counted(store):
    f = make(store)
    epoch(f)
    assert 0 < f.waited_s < 60


def test_feeds_that_are_not_there(monkeypatch):
    with pytest.raises(RecipeError, match=r"kind = \"dally\".*'auto', 'dali', 'plain' or 'synthetic'"):
        check(FeedRecipe, {"kind": "dally"})
    monkeypatch.setattr(feed.importlib.util, "find_spec", lambda _: None)
    assert feed.resolve(FeedRecipe(kind="auto")) == "plain"
    with pytest.raises(RecipeError, match=r"not installed; pip install .*or take feed.kind = plain"):
        feed.resolve(FeedRecipe(kind="dali"))


@pytest.mark.needs("dali")
def test_auto_takes_dali_where_it_is():
    assert feed.resolve(FeedRecipe(kind="auto")) == "dali"
