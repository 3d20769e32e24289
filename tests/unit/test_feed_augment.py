"""What the feed does to samples: planted truths are found again, whatever is drawn."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jeoparda.errors import RecipeError
from jeoparda.feed import AugmentRecipe, Feed, FeedRecipe, Plan
from jeoparda.feed.augment import draw
from jeoparda.order import Order
from jeoparda.store import Contents, Group, Layout, PatchRecord, Store, finalise, write_shard

DALI = pytest.param("dali", marks=pytest.mark.needs("dali"))
KINDS = ["plain", DALI]
SIZE = 24
GROUPS = (Group("10m", 10, SIZE, ("a", "b")), Group("20m", 20, SIZE // 2, ("c",)), Group("60m", 60, SIZE // 6, ("d",)))
CLASSES = tuple(f"class {i}" for i in range(20))


def write(folder: Path, count: int, mask_px: int, pixels) -> Store:
    """`pixels`: number -> band a, (row, col), and mask; every other band holds the patch's number."""
    place = (10.0, 0.0, 0.0, 0.0, -10.0, 5e6)
    layout = Layout(GROUPS, mask_px=mask_px)
    target = "mask" if mask_px else "labels"
    contents = Contents("x", "digital number", (), layout, "n", CLASSES, tuple((i, 0, 0) for i in range(20)), target)

    def row(i):
        a, mask = pixels(i)
        fine = np.stack([a, np.full((SIZE, SIZE), i)]).astype(np.uint16)
        arrays = {"10m": fine} | {g.name: np.full((1, g.size_px, g.size_px), i, np.uint16) for g in GROUPS[1:]}
        record = PatchRecord(f"p{i}", "s", "EPSG:32633", place, "2017-06-13", "", "train", 1.0)
        return record, arrays | ({"mask": mask.astype(np.uint8)} if mask_px else {}), (i % len(CLASSES),)

    shard = write_shard(folder, 0, "p", contents, [row(i) for i in range(count)], count)
    finalise(folder, [shard], contents, [], {}, {}, "0")
    return Store(folder)


def corners(i: int) -> np.ndarray:
    """A different number at each pixel, none a turned one of another's."""
    return np.arange(SIZE * SIZE).reshape(SIZE, SIZE) * 7 % 251 + i % 4


@pytest.fixture(scope="module", params=[1, 2], ids=["mask", "finer mask"])
def masked(request, tmp_path_factory) -> Store:
    k = request.param
    return write(
        tmp_path_factory.mktemp("masked"), 40, SIZE * k, lambda i: (corners(i), corners(i).repeat(k, 0).repeat(k, 1))
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Store:
    """Patch i is i everywhere, and of class i % 20."""
    return write(tmp_path_factory.mktemp("plain"), 47, 0, lambda i: (np.full((SIZE, SIZE), i), None))


def make(store, kind="plain", batch=9, rank=0, size=1, train=True, seed=3, **augment) -> Feed:
    numbers = store.split("all")
    how = AugmentRecipe(**augment)
    order = Order(len(numbers), batch, seed, shuffle=train, unit=2 if how.mixup else 1)
    recipe = FeedRecipe(kind=kind, augment=how, threads=2, ahead=2)
    return Feed(store, Plan(order, numbers, rank, size), recipe, train, store.labels)


def epoch(f: Feed) -> list[dict[str, np.ndarray]]:
    return [{k: v.numpy().copy() for k, v in b.items()} for b in f]


def numbers_of(image: np.ndarray, store: Store) -> np.ndarray:
    """Digital numbers of normalised (b, band, row, col)."""
    mean, std = (v[:, None, None] for v in store.statistics())
    return image * std + mean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"flips": False}, {"crop_px": 12}, {"crop_px": 18, "jitter": 0.1}])
def test_image_and_mask_are_always_treated_alike(masked, kind, more):
    f = make(masked, kind, **more)
    side = more.get("crop_px", SIZE)
    k = masked.info.layout.mask_px // SIZE
    seen = set()
    for e in range(3):
        for batch in epoch(f):
            assert batch["image"].shape[1:] == (4, side, side) and batch["mask"].shape[1:] == (side * k, side * k)
            assert batch["mask"].dtype == np.uint8
            fine = numbers_of(batch["image"], masked)[:, 0]
            gain = draw(f._augment, 3, e, batch["number"], SIZE, 4).gain
            if gain is not None:
                fine = fine / gain[:, 0, None, None]
            for image, mask in zip(fine, batch["mask"], strict=True):
                np.testing.assert_allclose(image.repeat(k, 0).repeat(k, 1), mask, atol=0.01)
            seen |= {m.tobytes() for m in batch["mask"]}
    assert len(seen) == 4 if more == {"flips": False} else len(seen) > 25  # of the 4 masks and their 8 turns


@pytest.mark.needs("dali")
@pytest.mark.parametrize(
    "more",
    [
        {"crop_px": 18},
        {"jitter": 0.2},
        {"drop_bands": 0.4},
        {"mixup": 0.4},
        {"crop_px": 18, "jitter": 0.1, "drop_bands": 0.2, "mixup": 1.0},
    ],
)
def test_dali_and_plain_agree_whatever_is_drawn(plain, more):
    for a, b in zip(epoch(make(plain, "plain", **more)), epoch(make(plain, "dali", **more)), strict=True):
        for name in ("number", "labels", "image"):
            np.testing.assert_allclose(a[name], b[name], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_mixed_as_the_images_are(plain, kind):
    """Each patch is its number everywhere, so a mixed image tells its shares."""
    strange = 0
    for batch in epoch(make(plain, kind, batch=10, mixup=0.7)):
        found = numbers_of(batch["image"], plain)[:, 1].mean((1, 2))
        numbers = batch["number"]
        for i, labels in enumerate(batch["labels"]):
            j = min(i ^ 1, len(numbers) - 1)
            own, other = numbers[i] % 20, numbers[j] % 20
            assert labels.sum() == pytest.approx(1, abs=1e-6)
            share = 1.0 if own == other else labels[own]
            assert found[i] == pytest.approx(share * numbers[i] + (1 - share) * numbers[j], abs=0.02) or own == other
            strange += 0.05 < share < 0.95
    assert strange > 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_does_not_depend_on_the_ranks(plain, kind):
    """4 ranks, stopped; 2 go on, stopped; 3 finish: image for image what one rank makes."""
    more = {"mixup": 0.5, "drop_bands": 0.2, "jitter": 0.1, "crop_px": 12, "batch": 10}
    whole = epoch(make(plain, kind, **more))
    steps, done = [], 0
    for size, until in ((4, 2), (2, 3), (3, len(whole))):
        ranks = []
        for rank in range(size):
            f = make(plain, kind, rank=rank, size=size, **more)
            f.restore({"epoch": 0, "step": done})
            ranks.append(
                [{k: v.numpy().copy() for k, v in b.items()} for _, b in zip(range(until - done), f, strict=False)]
            )
        steps += [{k: np.concatenate([r[s][k] for r in ranks]) for k in whole[0]} for s in range(until - done)]
        done = until
    assert sorted(n for b in steps for n in b["number"]) == list(range(len(plain)))
    for a, b in zip(steps, whole, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), p=st.sampled_from([0.1, 0.5, 0.9]), epoch=st.integers(0, 100))
def test_bands_are_dropped_as_often_as_asked_but_never_all(seed, p, epoch):
    gain = draw(AugmentRecipe(drop_bands=p), seed, epoch, np.arange(2000), SIZE, 12).gain
    assert set(np.unique(gain)) <= {0, 1} and (gain > 0).any(1).all()
    # 24,000 draws, less the few samples that would have lost every band
    assert (gain == 0).mean() == pytest.approx(p - p**12 / 12, abs=0.02)


def test_gains_have_the_deviation_asked_for_and_bounds():
    gain = draw(AugmentRecipe(jitter=0.1), 1, 2, np.arange(5000), SIZE, 4).gain
    assert gain.mean() == pytest.approx(1, abs=0.005) and gain.std() == pytest.approx(0.1, rel=0.03)
    assert gain.min() > 0.82 and gain.max() < 1.18
    assert np.abs(np.corrcoef(gain.T) - np.eye(4)).max() < 0.06


def test_crops_begin_everywhere_equally_often():
    corner = draw(AugmentRecipe(crop_px=16), 1, 2, np.arange(25_000), SIZE, 4, 2).corner // 2
    counts = np.bincount(corner[:, 0] * 5 + corner[:, 1], minlength=25)
    assert len(counts) == 25 and ((counts - 1000) ** 2 / 1000).sum() < 51.2  # chi-squared, 24 d.o.f., p = 0.001


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha):
    share = draw(AugmentRecipe(mixup=alpha), 1, 2, np.arange(40_000), SIZE, 4).share[::2]
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_band_is_its_mean_everywhere(plain, kind):
    f = make(plain, kind, drop_bands=0.5, flips=False)
    for batch in epoch(f):
        gain = draw(f._augment, 3, 0, batch["number"], SIZE, 4).gain
        flat = (batch["image"] == 0).all((2, 3))
        assert (flat >= (gain == 0)).all() and np.isfinite(batch["image"]).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"crop_px": 30}, "crop_px = 30: patches are 24 px"),
        ({"crop_px": 16}, "take 12 or 18"),
        ({"mixup": 0.2}, "mixes labels, and this store has masks"),
    ],
)
def test_what_cannot_be_is_refused(masked, more, message):
    with pytest.raises(RecipeError, match=message):
        make(masked, **more)


def test_validation_is_never_augmented(plain):
    more = {"mixup": 0.5, "drop_bands": 0.2, "jitter": 0.1, "crop_px": 12}
    for batch in epoch(make(plain, train=False, **more)):
        assert batch["image"].shape[2:] == (SIZE, SIZE)
        found = numbers_of(batch["image"], plain)[:, 1].mean((1, 2))
        np.testing.assert_allclose(found, batch["number"], atol=0.01)
