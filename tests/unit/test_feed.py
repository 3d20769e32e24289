"""Feeds: two implementations and a plain reference agree, and each patch comes once."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jeoparda import feed
from jeoparda.config import check
from jeoparda.errors import RecipeError, StoreError
from jeoparda.feed import AugmentRecipe, Feed, FeedRecipe, Plan, augment, files, measure, reader
from jeoparda.feed.buffer import PIECE
from jeoparda.feed.files import Files, Map, native
from jeoparda.order import Order, drawn_count, epoch_samples, patch_of
from jeoparda.store import Store

DALI = pytest.param("dali", marks=pytest.mark.needs("dali"))
SEED = 3


@pytest.fixture(scope="module")
def store(tiny_store):
    return Store(tiny_store)


def make(
    store, kind="plain", batch=9, rank=0, size=1, train=True, count=None, augment=None, repeats=None, parts=1, **more
) -> Feed:
    numbers = store.split("all")[:count]
    how = AugmentRecipe(**(augment or {}))
    drawn = len(numbers) if repeats is None else drawn_count(repeats)
    order = Order(drawn, batch, SEED, shuffle=train, unit=2 if how.mixup else 1, parts=parts)
    plan = Plan(order, numbers, rank, size, repeats)
    recipe = FeedRecipe(kind=kind, augment=how, **more)
    return Feed(store, plan, recipe, train, store.labels)


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


def reference(store: Store, sample: int, epoch: int, train: bool) -> np.ndarray:
    """(band, row, col) float64 of one sample, straight from the store's description."""
    number = patch_of(sample)
    mean, std = (a.astype(float) for a in store.statistics())
    bands = [upsampled(store.band(number, b).astype(float), store.info.size_px) for b in store.info.bands]
    x = (np.stack(bands) - mean[:, None, None]) / std[:, None, None]
    if train:
        transpose, rows, cols = augment.flips(SEED, epoch, np.array([sample]))[0]
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
    still = {
        n: i for b in epoch(make(store, augment={"flips": False})) for n, i in zip(b["number"], b["image"], strict=True)
    }
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


OFTEN = np.where(np.arange(20) % 4 == 0, 3.4, 1.0)  # 32 samples of 20 patches


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_a_patch_that_is_drawn_again_is_augmented_otherwise(store, kind):
    """On one rank and on three, in steps of two parts: the samples that the order asks for, each with its own flips."""
    asked = epoch_samples(np.arange(20), OFTEN, SEED, 2)
    assert len(np.unique(augment.flips(SEED, 2, asked[patch_of(asked) == 8]) @ [4, 2, 1])) > 1
    for size in (1, 3):
        feeds = [make(store, kind, 10, r, size, count=20, repeats=OFTEN, parts=2) for r in range(size)]
        for f in feeds:
            f.restore({"epoch": 2, "step": 0})
        steps = list(zip(*map(epoch, feeds), strict=True))
        assert len(steps) == 8
        for step, shares in enumerate(steps):
            batch = {name: np.concatenate([b[name] for b in shares]) for name in shares[0]}
            samples = asked[feeds[0].plan.order.global_batch(2, step)]
            assert batch["number"].tolist() == patch_of(samples).tolist()
            np.testing.assert_array_equal(batch["labels"], store.labels[batch["number"]])
            for image, sample in zip(batch["image"], samples, strict=True):
                np.testing.assert_allclose(image, reference(store, sample, 2, True), atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_restored_among_repeated_patches_it_goes_on(store, kind):
    def begun(step: int) -> list[dict[str, np.ndarray]]:
        f = make(store, kind, 7, count=20, repeats=OFTEN, augment={"mixup": 0.4, "jitter": 0.1})
        f.restore({"epoch": 1, "step": step})
        return epoch(f)

    for a, b in zip(begun(3), begun(0)[3:], strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.needs("dali")
def test_dali_and_plain_mix_repeated_patches_alike(store):
    plain, dali = (
        epoch(make(store, kind, 8, count=20, repeats=OFTEN, augment={"mixup": 0.4})) for kind in ("plain", "dali")
    )
    for a, b in zip(plain, dali, strict=True):
        np.testing.assert_allclose(a["image"], b["image"], atol=1e-5)
        np.testing.assert_array_equal(a["labels"], b["labels"])


def test_repeats_of_one_change_nothing(store):
    for a, b in zip(epoch(make(store, count=20)), epoch(make(store, count=20, repeats=np.ones(20))), strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    with pytest.raises(ValueError, match="order of 20 samples for repeats that draw 32"):
        Plan(Order(20, 8, 0), np.arange(20), 0, 1, OFTEN)


@given(
    count=st.integers(1, 200),
    batch=st.integers(1, 80),
    parts=st.integers(1, 4),
    size=st.integers(1, 4),
    unit=st.integers(1, 2),
)
@settings(max_examples=100, deadline=None)
def test_no_batch_is_larger_than_the_plan_says(count, batch, parts, size, unit):
    steps = -(-count // batch)
    parts = min(parts, count // steps)
    order = Order(count, batch, SEED, unit=unit, parts=parts)
    for rank in range(size):
        plan = Plan(order, np.arange(count), rank, size)
        assert max(map(len, plan.samples(0, range(order.steps)))) <= plan.largest
        assert plan.largest < batch / parts / size + 1 + unit  # and that is no more than a part needs


def soon(there: Callable[[], object], wanted: object) -> bool:
    """A thread that has ended is listed by the kernel for a moment."""
    until = time.monotonic() + 5
    while there() != wanted and time.monotonic() < until:
        time.sleep(0.01)
    return there() == wanted


@pytest.mark.parametrize("kind", ["plain", DALI])
def test_closed_early_nothing_is_left_running_or_open(store, kind):
    epoch(make(store, kind))  # what a library opens once and keeps is not counted

    def there() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    before = there()
    for steps in (0, 1, 3):
        batches = iter(make(store, kind, batch=4, ahead=2))
        for _ in range(steps):
            next(batches)
        batches.close()
        assert soon(there, before)
    epoch(make(store, kind))
    assert soon(there, before)


@pytest.mark.parametrize("check", ["first", "never"])  # never: as in all epochs but the first
@pytest.mark.parametrize("kind", ["plain", DALI])
def test_a_shard_that_is_cut_short_meanwhile_is_told(store, kind, check, tmp_path, tiny_store):
    copy = Store(shutil.copytree(tiny_store, tmp_path / "store"))
    os.truncate(copy.paths[2], 300_000)
    with pytest.raises(StoreError, match=r"00002\.h5: patch \d+ ends after .*truncated.*store repair"):
        epoch(make(copy, kind, check=check))


def test_the_wait_for_data_is_counted(store):
    f = make(store)
    epoch(f)
    assert 0 < f.waited_s < 60


def test_feeds_that_are_not_there(monkeypatch):
    with pytest.raises(RecipeError, match=r"kind = \"dally\".*'auto', 'dali', 'plain', 'raw' or 'synthetic'"):
        check(FeedRecipe, {"kind": "dally"})
    monkeypatch.setattr(feed.importlib.util, "find_spec", lambda _: None)
    assert feed.resolve(FeedRecipe(kind="auto")) == "plain"
    with pytest.raises(RecipeError, match=r"not installed; pip install .*or take feed.kind = plain"):
        feed.resolve(FeedRecipe(kind="dali"))


@pytest.mark.needs("dali")
def test_auto_takes_dali_where_it_is():
    assert feed.resolve(FeedRecipe(kind="auto")) == "dali"


def test_raw_batches_are_the_store_s_own_numbers(store):
    f = make(store, "raw", batch=7)
    for batch in epoch(f):
        for i, number in enumerate(batch["number"]):
            for g in store.info.groups:
                np.testing.assert_array_equal(batch[g.name][i], store.patch(number)[g.name])


@pytest.mark.parametrize("bands", [("10m",), ("B04", "B03", "B02"), ("B01",), ("20m", "B08", "B09"), ("60m",)])
@pytest.mark.parametrize("kind", ["plain", DALI, "raw"])
@pytest.mark.parametrize("check", ["first", "never"])
def test_some_bands_are_the_same_as_of_all(store, kind, bands, check):
    some, whole = make(store, kind, bands=bands, check=check, train=False), make(store, "plain", train=False)
    kept, every = some.layout.bands, whole.layout.bands
    assert [b for b in every if b in kept] == list(kept)  # the store's order, whatever the recipe's
    places = [every.index(b) for b in kept]
    same_grid = some.layout.size_px == whole.layout.size_px
    for _ in range(2):  # the second time nothing is compared, and less is read
        for a, b in zip(epoch(some), epoch(whole), strict=True):
            if kind == "raw":
                first = {g.name: store.patch(b["number"][0])[g.name] for g in some.layout.groups}
                of = {g.name: g.bands for g in store.info.groups}
                own = {g.name: [of[g.name].index(band) for band in g.bands] for g in some.layout.groups}
                assert all(np.array_equal(a[n][0], first[n][own[n]]) for n in first)
            elif same_grid:
                np.testing.assert_allclose(a["image"], b["image"][:, places], atol=1e-5)
            else:
                mean, std = (v[places][:, None, None] for v in store.statistics())
                native = np.stack([store.band(b["number"][0], x) for x in kept])
                np.testing.assert_allclose(a["image"][0], (native - mean) / std, atol=1e-5)


NATIVE = pytest.mark.needs("native")


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What C is asked to read, (ways, files, maps, offsets, starts, pieces, got, keep) a call."""
    begin, found = native.begin, []
    monkeypatch.setattr(native, "begin", lambda pool, *a: (found.append(a), begin(pool, *a))[1])
    return found


@NATIVE
@pytest.mark.parametrize("bands", [(), ("B04", "B03", "B02"), ("20m", "B08", "B09")])
@pytest.mark.parametrize("place", ["local", "shm"])
def test_staged_copies_give_the_same_as_the_store(store, bands, place, tmp_path, calls):
    with tempfile.TemporaryDirectory(dir=tmp_path if place == "local" else "/dev/shm") as folder:
        staged = same_from_copies(store, Path(folder), FeedRecipe(kind="raw", bands=bands), calls)
        with staged._reader.opened():
            found = measure.pace(staged._reader, np.arange(len(store)), 9)
    assert place == "local" or found == measure.Pace(2, 4, {})
    mapped = sum(maps.all() for _, _, maps, *_ in calls)
    assert mapped == (len(calls) / 2 if place == "shm" else 0)  # the other half is the other feed's


def same_from_copies(store: Store, folder: Path, recipe: FeedRecipe, calls: list) -> Feed:
    """The feed that was read from copies, which come about while it is read, and gave what the store gives."""
    there: set[int] = set()
    copies = [Path(shutil.copy(path, folder)) for path in store.paths]
    plan = Plan(Order(len(store), 9, 1), store.split("all"), 0, 1)
    path_ofs = (None, lambda k: (copies if k in there else store.paths)[k])
    own, staged = (Feed(store, plan, recipe, True, store.labels, path_of=path_of) for path_of in path_ofs)
    for _ in range(3):
        calls.clear()
        for k, (a, b) in enumerate(zip(own, staged, strict=True)):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
            there.update({2 * k % 7, (2 * k + 1) % 7})
    return staged


@NATIVE
@given(
    sizes=st.lists(st.lists(st.integers(0, 40), max_size=4), max_size=9),
    ways=st.integers(1, 12),
    threads=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_bytes_come_from_any_place_of_files_and_maps(tmp_path_factory, sizes, ways, threads, data):
    content = [np.random.default_rng(k).integers(256, size=5_000 + 3 * k, dtype=np.uint8) for k in range(2)]
    folder = tmp_path_factory.mktemp("bytes")
    for k, own in enumerate(content):
        own.tofile(folder / str(k))
    n = len(sizes)
    which = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), int)
    by_map = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    ends = [len(content[k]) for k in which]
    at = np.array([data.draw(st.integers(0, end - sum(own))) for end, own in zip(ends, sizes, strict=True)], int)
    out = np.zeros((n, 4, 40), np.uint8)
    pieces = np.zeros((sum(map(len, sizes)),), PIECE)
    starts = np.cumsum([0, *map(len, sizes)])
    for i, own in enumerate(sizes):
        for k, size in enumerate(own):
            pieces[starts[i] + k] = out[i, k].ctypes.data, size
    got = np.full(n, -1)
    with open(folder / "0", "rb") as a, open(folder / "1", "rb") as b:
        fds, maps = np.array([a.fileno(), b.fileno()], np.int32), [Map(f.fileno()) for f in (a, b)]
        addresses = np.array([m.address for m in maps], np.uint64)
        pool = native.start(threads)
        native.wait(native.begin(pool, ways, fds[which], addresses[which] * by_map, at, starts, pieces, got, maps))
    for i, own in enumerate(sizes):
        there = content[which[i]][at[i] : at[i] + sum(own)]
        assert got[i] == sum(own)
        assert np.array_equal(np.concatenate([out[i, k, :size] for k, size in enumerate(own)] or [there]), there)
        assert not any(out[i, k, size:].any() for k, size in enumerate(own))


def one_read(pool, fd: int, offset: int, out: np.ndarray, got: np.ndarray):
    pieces = np.array([(out.ctypes.data, out.nbytes)], PIECE)
    return native.begin(pool, 1, np.int32([fd]), np.uint64([0]), np.int64([offset]), np.int64([0, 1]), pieces, got, out)


@NATIVE
def test_reads_that_come_short_or_fail_say_so(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    pool, got = native.start(2), [np.full(1, -1) for _ in range(3)]
    with open(tmp_path / "file", "rb") as f:
        for (fd, offset), own in zip([(f.fileno(), 90), (f.fileno(), 100), (-1, 0)], got, strict=True):
            native.wait(one_read(pool, fd, offset, np.ones(20, np.uint8), own))
    assert [int(own[0]) for own in got] == [10, 0, -errno.EBADF]


@NATIVE
def test_reads_whose_arrays_do_not_fit_are_refused():
    pool, n = native.start(1), np.int64
    for files_, maps, offsets, starts, pieces in [
        (np.int32([0, 0]), np.uint64([0]), n([0]), n([0, 0]), np.zeros(0, PIECE)),
        (np.int32([0]), np.uint64([0]), n([0]), n([0, 1]), np.zeros(0, PIECE)),
        (np.int32([0]), np.uint64([0]), n([0]), n([1, 0]), np.zeros(1, PIECE)),
        (np.int32([0]), np.uint64([0]), n([0]), n([0, 1 << 60]), np.zeros(1, PIECE)),
        (np.int32([0]), np.uint64([0]), n([0]), n([0]), np.zeros(1, PIECE)),
        (np.int32([0]), np.uint64([0]), n([]), n([0, 1]), np.zeros(1, PIECE)),
    ]:
        with pytest.raises(ValueError, match="do not fit"):
            native.begin(pool, 1, files_, maps, offsets, starts, pieces, np.full(1, -1), None)
    native.stop(pool)
    with pytest.raises(ValueError, match="has ended"):
        one_read(pool, 0, 0, np.ones(1, np.uint8), np.full(1, -1))
    with pytest.raises(ValueError, match="one thread at least"):
        native.start(0)


LONG = """
import os, signal, sys, threading, time
import numpy as np
from jeoparda.feed.files import native
slow = np.zeros(1 << 28, np.uint8)
pieces = np.tile(np.array([(slow.ctypes.data, slow.nbytes)], [("a", "u8"), ("n", "u8")]), 4000)
file = os.memfd_create("long")
os.truncate(file, slow.nbytes)
pool, got, n = native.start(1), np.full(4000, -1), np.arange(4001)
files, maps = np.full(4000, file, np.int32), np.zeros(4000, np.uint64)
batch = native.begin(pool, 1, files, maps, 0 * n[1:], n, pieces, got, slow)
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    native.wait(batch)
except KeyboardInterrupt:
    native.stop(pool)
    print((got < 0).any())
"""


@NATIVE
def test_a_signal_ends_a_long_read():
    """1 TB of reads, as of a slow filesystem."""
    done = subprocess.run([sys.executable, "-c", LONG], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


LEFT = """
import shutil, sys, tempfile
from pathlib import Path
from jeoparda.feed import Feed, FeedRecipe, Plan
from jeoparda.order import Order
from jeoparda.store import Store
store = Store(Path(sys.argv[1]))
folder = tempfile.TemporaryDirectory(dir="/dev/shm")
copies = [Path(shutil.copy(path, folder.name)) for path in store.paths]
plan = Plan(Order(1000 * len(store), 64, 0), store.split("all").repeat(1000), 0, 1)
recipe = FeedRecipe(kind="raw", check="never", threads=1, ahead=7)
batches = iter(Feed(store, plan, recipe, True, store.labels, path_of=copies.__getitem__))
for _ in range(30):
    next(batches)
if sys.argv[2] == "collected":
    ring = [batches]
    ring.append(ring)
    del batches, ring
sys.exit(3)
"""


@NATIVE
@pytest.mark.parametrize("how", ["left", "collected"])
def test_a_process_may_end_while_copies_are_read(tiny_store, how):
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", LEFT, tiny_store, how], timeout=60, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (3, "")


@NATIVE
def test_a_pool_ends_with_batches_that_nobody_waited_for(tmp_path):
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    data = np.random.default_rng(0).integers(256, size=1 << 22, dtype=np.uint8)
    data.tofile(tmp_path / "file")
    with open(tmp_path / "file", "rb") as f:
        for k in range(20):
            pool = native.start(2)
            outs, got = np.zeros((50, 1 << 22), np.uint8), np.full((50, 1), -1)
            batches = [one_read(pool, f.fileno(), 0, out, own) for out, own in zip(outs, got, strict=True)]
            native.wait(batches[k])
            assert np.array_equal(outs[k], data)
            native.stop(pool)
            del batches, pool
            assert all(np.array_equal(out, data) for out in outs[got[:, 0] >= 0]) and got[k] > 0
    assert soon(threads, before)


@contextmanager
def often_interrupted():
    """Threads take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 1000)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@NATIVE
def test_shards_are_read_while_copies_come_about(tmp_path, monkeypatch):
    descriptors, opened = len(os.listdir("/proc/self/fd")), os.open
    monkeypatch.setattr(files.os, "open", lambda *a, **k: (time.sleep(1e-4), opened(*a, **k))[1])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for k in range(200):
            np.full(9_000, k, np.uint8).tofile(tmp_path / str(k))
            shutil.copy(tmp_path / str(k), memory)
        paths, ended, wrong = [tmp_path / str(k) for k in range(200)], threading.Event(), []
        shards = Files(paths, np.full(200, 9_000))

        def read():
            pool, some, rng = native.start(1), 8, np.random.default_rng()
            while not ended.is_set():
                own, out, got = rng.integers(200, size=some), np.zeros((some, 4_000), np.uint8), np.full(some, -1)
                fds, maps = shards.of(own)
                if (fds < 0).any():
                    continue  # as they were about to be replaced; the reader asks again, too
                pieces = np.array([(row.ctypes.data, 4_000) for row in out], PIECE)
                at, starts = rng.integers(5_000, size=some), np.arange(some + 1)
                native.wait(native.begin(pool, 1, fds, maps, at, starts, pieces, got, shards))
                if (got != 4_000).any() or (out != own[:, None]).any():
                    wrong.append((own, got))

        with ThreadPoolExecutor(2) as pool, often_interrupted():
            tasks = [pool.submit(read) for _ in range(2)]
            for k in range(200):
                shards.use(k, Path(memory, str(k)))
            ended.set()
            for task in tasks:
                task.result()
        assert wrong == [] and shards.in_memory(np.arange(200)) and shards.of(np.arange(200))[1].all()
        shards.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def huge_kb(address: int) -> int:
    """What of the map that begins there lies in huge pages."""
    of = Path("/proc/self/smaps").read_text().split(f"\n{address:x}-")[1]
    return int(of.split("ShmemPmdMapped:")[1].split()[0])


@NATIVE
def test_copies_in_memory_lie_in_huge_pages_or_that_is_said():
    content = np.random.default_rng(0).bytes(5 << 20)
    with tempfile.TemporaryFile(dir="/dev/shm") as f:
        f.write(content)
        f.flush()
        m = Map(f.fileno())
        assert m.address % (2 << 20) == 0
        assert m.collapse() == (huge_kb(m.address) == 4096)  # the whole ones
        assert f.seek(0) == 0 and f.read() == content
        assert not Map(f.fileno()).collapse(lambda: True)
        f.truncate(100)
        assert not Map(f.fileno()).collapse()  # less than a page


@NATIVE
def test_copies_that_cannot_be_mapped_are_read(store, monkeypatch, calls):
    """As where no more memory may be addressed; and a copy that is shorter than the store says is told."""

    def refused(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    expected = epoch(make(store, "raw"))
    monkeypatch.setattr(native, "map", refused)
    calls.clear()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        copies = [Path(shutil.copy(path, memory)) for path in store.paths]
        staged = make(store, "raw")
        staged._reader._path_of = copies.__getitem__
        for a, b in zip(expected, epoch(staged), strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)
        assert calls and not any(maps.any() for _, _, maps, *_ in calls)
        monkeypatch.undo()
        os.truncate(copies[2], 300_000)
        staged = make(store, "raw", check="never")
        staged._reader._path_of = copies.__getitem__
        with pytest.raises(StoreError, match=r"00002\.h5: patch \d+ ends after .*truncated"):
            epoch(staged)


@NATIVE
def test_what_is_not_asked_for_any_more_is_not_read_again(store, monkeypatch):
    """A feed that is left early, in its first epoch."""
    again = []
    monkeypatch.setattr(reader.Reader, "read_one_by_one", lambda *_: again.append(1))
    for _ in range(40):
        batches = iter(make(store, "raw", batch=16, threads=4, ahead=8))
        next(batches)
        batches.close()
    assert again == []


def test_a_band_that_is_not_there_is_named(store):
    with pytest.raises(RecipeError, match=r"feed\.bands: the store has no 'B10'; it has 10m, 20m, 60m, B02"):
        make(store, bands=("B10",))


@pytest.mark.parametrize("kind", ["plain", DALI, "raw"])
def test_a_damaged_patch_is_told_when_it_is_first_read(store, kind, tmp_path, tiny_store):
    copy = Store(shutil.copytree(tiny_store, tmp_path / "store"))
    epoch(make(copy, kind))
    number = len(copy) // 2
    with open(copy.paths[copy.shard_of[number]], "r+b") as f:
        f.seek(int(copy.offset_of[number]) + 5000)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 4]))
    name = copy.paths[copy.shard_of[number]].name
    with pytest.raises(StoreError, match=rf"{name}: patch {number} is damaged, its checksum differs.*store repair"):
        epoch(make(copy, kind))
    epoch(make(copy, kind, check="never"))


@pytest.mark.parametrize("check", ["first", "never"])
def test_a_shard_that_vanished_is_told(store, check, tmp_path, tiny_store):
    copy = Store(shutil.copytree(tiny_store, tmp_path / "store"))
    copy.paths[1].unlink()
    with pytest.raises(StoreError, match=r"00001\.h5: patch \d+ cannot be read: No such file.*store repair"):
        epoch(make(copy, check=check))


@NATIVE
def test_neighbours_in_a_file_are_read_together(store, calls):
    f = make(store, batch=16, train=False, threads=1, ahead=1)
    epoch(f)
    assert sum(len(got) for *_, got, _ in calls) < len(store) / 4  # in store order, so almost all are neighbours
    for batch in epoch(make(store, "raw", batch=16, block=1, threads=1, ahead=1)):
        for i, number in enumerate(batch["number"]):
            assert np.array_equal(batch["10m"][i], store.patch(number)["10m"])


@NATIVE
@pytest.mark.parametrize("bands", [(), ("B04", "B03", "B02")])
@pytest.mark.parametrize("check", ["first", "never"])
def test_installed_without_a_compiler_the_same_is_read_from_python(store, bands, check, monkeypatch):
    fast = epoch(make(store, "raw", bands=bands, check=check))
    for module in (feed, files, reader):
        monkeypatch.setattr(module, "native", None)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        copies = [Path(shutil.copy(path, memory)) for path in store.paths]
        with pytest.warns(UserWarning, match="reads from Python, more slowly.*install it again"):
            slow, staged = (make(store, "raw", bands=bands, check=check) for _ in range(2))
        staged._reader._path_of = copies.__getitem__
        for a, b, c in zip(fast, epoch(slow), epoch(staged), strict=True):
            assert all(np.array_equal(a[name], b[name]) and np.array_equal(a[name], c[name]) for name in a)


def test_the_pace_is_the_fewest_threads_that_are_fast_enough(store):
    class Pretended:
        """Reads at 1,000 patches/s a thread, up to 4 threads."""

        def in_memory(self, numbers):
            return False

        def buffer(self, largest):
            return None

        def submit(self, pool, numbers, buffer, ways):
            clock[0] += len(numbers) / (1000 * min(pool.python._max_workers, 4))
            return []

    clock = [0.0]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(measure.time, "perf_counter", lambda: clock[0])
        found = measure.pace(Pretended(), np.arange(1000), 64)
    assert found.threads == 4
    assert found.rates == pytest.approx({1: 1000, 2: 2000, 4: 4000, 8: 4000, 16: 4000})
    # the longest read took 32 ms, in which 128 patches could have been read: two batches, and the one in work
    assert found.ahead == 3


def test_threads_and_ahead_of_the_recipe_are_taken(store, monkeypatch):
    monkeypatch.setattr(feed, "pace", lambda *_: pytest.fail("was measured"))
    epoch(make(store, threads=3, ahead=2))


@pytest.mark.needs("dali")
def test_one_pipeline_serves_all_epochs(store, monkeypatch):
    from jeoparda.feed import dali

    built = []
    build = dali.build
    monkeypatch.setattr(dali, "build", lambda *a: built.append(a) or build(*a))
    f = make(store, "dali", batch=6, ahead=2)
    for _ in range(3):
        epoch(f)
    assert len(built) == 1
    batches = iter(f)  # one that is left in the middle of an epoch has batches in it: it is not used again
    next(batches)
    batches.close()
    f.restore({"epoch": 3, "step": 0})
    again, plain = epoch(f), make(store, "plain", batch=6)
    plain.restore({"epoch": 3, "step": 0})
    for a, b in zip(again, epoch(plain), strict=True):
        np.testing.assert_allclose(a["image"], b["image"], atol=1e-5)
    assert len(built) == 2
