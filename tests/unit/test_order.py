"""The order of samples: a permutation, the same for any number of ranks, the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jeoparda import order
from jeoparda.errors import RecipeError
from jeoparda.order import Order, drawn_count, epoch_samples, patch_of, repeats

counts = st.integers(1, 3000)
seeds = st.integers(-(2**40), 2**70)


def up_to(**most: int) -> dict[str, st.SearchStrategy[int]]:
    """Strategies by name: numbers from 1 to the given."""
    return {name: st.integers(1, number) for name, number in most.items()}


@given(count=counts, secret=st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_permute_is_a_bijection(count, secret):
    image = order.permute(np.arange(count), count, np.uint64(secret))
    assert np.array_equal(np.sort(image), np.arange(count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65536, 65537, 590_326])
def test_permute_is_a_bijection_around_powers_of_two(count):
    image = order.permute(np.arange(count), count, order.key(7))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(count))


def test_a_slice_costs_no_more_than_itself_and_agrees():
    whole = order.permute(np.arange(10_000), 10_000, order.key(3))
    assert np.array_equal(order.permute(np.arange(4000, 4100), 10_000, order.key(3)), whole[4000:4100])
    start = np.arange(5)
    order.permute(start, 10_000, order.key(3))
    assert np.array_equal(start, np.arange(5))  # the argument is not changed


@given(count=counts, **up_to(steps=12, size=9), seed=seeds, epoch=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_sample_once_an_epoch_whatever_the_ranks(count, steps, size, seed, epoch):
    batch = -(-count // steps)
    o = Order(count, batch, seed)
    seen = []
    for step in range(o.steps):
        shares = [o.rank_batch(epoch, step, rank, size) for rank in range(size)]
        whole = o.global_batch(epoch, step)
        assert np.array_equal(np.concatenate(shares), whole)  # the same global batch, cut up
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen.append(whole)
    sizes = [len(s) for s in seen]
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(count))


@given(count=counts, **up_to(steps=300, size=4, block=9, unit=2), first=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_steps_together_are_the_steps_one_by_one(count, steps, size, block, unit, first):
    o = Order(count, -(-count // steps), 5, block=block, unit=unit)
    wanted = range(o.steps)[first:]
    for rank in range(size):
        together = list(o.rank_batches(2, wanted, rank, size))
        assert len(together) == len(wanted)
        assert all(np.array_equal(a, o.rank_batch(2, s, rank, size)) for a, s in zip(together, wanted, strict=True))


def test_no_state_of_numpy_or_of_the_past_matters():
    o = Order(1000, 64, 5)
    np.random.seed(0)
    first = o.global_batch(3, 7)
    np.random.seed(99)
    np.random.random(1000)
    before = np.random.get_state()[1].copy()
    for step in (0, 15, 2):
        o.global_batch(0, step)
    assert np.array_equal(o.global_batch(3, 7), first)
    assert np.array_equal(np.random.get_state()[1], before)  # nor does it draw from there


@given(count=counts, **up_to(steps=12, size=9, block=80, unit=3), shuffle=st.booleans(), seed=seeds)
@settings(max_examples=200, deadline=None)
def test_blocks_and_units_lose_and_double_nothing(count, steps, size, block, unit, shuffle, seed):
    o = Order(count, -(-count // steps), seed, shuffle, block, unit)
    seen = []
    for step in range(o.steps):
        shares = [o.rank_batch(3, step, rank, size) for rank in range(size)]
        whole = o.global_batch(3, step)
        assert np.array_equal(np.concatenate(shares), whole)
        units = [-(-len(s) // unit) for s in shares]
        assert max(units) - min(units) <= 1
        starts = np.cumsum([0, *map(len, shares)])
        assert all(s % unit == 0 or s == len(whole) for s in starts)  # no unit is torn; only a step's last is short
        seen.append(whole)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(count))


def runs(numbers: np.ndarray) -> int:
    """How many reads it takes: maximal runs of consecutive numbers."""
    return 1 + int((np.diff(np.sort(numbers)) != 1).sum())


@given(count=counts, steps=st.integers(1, 12), block=st.integers(2, 80), seed=seeds, epoch=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_batch_of_blocks_takes_few_reads(count, steps, block, seed, epoch):
    o = Order(count, -(-count // steps), seed, block=block)
    for step in range(o.steps):
        batch = o.global_batch(epoch, step)
        assert runs(batch) <= len(batch) // block + 3


def test_a_block_shuffle_mixes_as_well_as_it_can():
    """Whom a sample shares a batch with: of its own block, measured; of all others, like a full shuffle."""
    count, batch, block, epochs = 4096, 128, 8, 200
    o = Order(count, batch, 7, block=block)
    met = np.zeros((epochs, count), bool)
    for e in range(epochs):
        step = next(b for b in (o.global_batch(e, s) for s in range(o.steps)) if 1000 in b)
        met[e, step] = True
    met[:, 1000] = False
    often = met.mean(0)
    near = often[[1000 - 2 * block, 1000 - 4, 1000 - 1, 1000 + 1, 1000 + 4, 1000 + 2 * block]]
    fair = (batch - 1) / (count - 1)
    # at a distance d two samples are of one run in 1 - d / block of the epochs, as runs are laid anew in each
    np.testing.assert_allclose(near, [fair, 0.5, 0.875, 0.875, 0.5, fair], atol=0.12)
    far = np.delete(often, np.arange(1000 - block, 1000 + block))
    assert abs(far.mean() - (batch - block) / (count - block)) < 0.003
    assert far.max() < 0.1  # no other sample comes along more often than chance has it: 5 of its deviations


def test_a_block_order_is_no_store_order():
    o = Order(10_000, 100, 3, block=16)
    first = np.concatenate([o.global_batch(0, s) for s in range(o.steps)])[::16]  # a sample of each run
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.2
    left = {int(Order(1003, 100, seed, block=10).global_batch(e, 10)[-1]) for seed in range(20) for e in range(3)}
    assert len(left) > 40  # the samples that fill no run are always others


def test_resumed_in_mid_epoch_on_4_then_2_then_3_ranks():
    """Each rank of each start sees its share of the steps of that start; together each sample once, every epoch."""
    for block, unit in ((1, 1), (1, 2), (8, 1), (8, 2)):
        o = Order(1003, 64, 11, block=block, unit=unit)
        part = [(0, 5, 4), (5, 6, 2), (6, o.steps, 3)]  # first step, end, ranks
        for epoch in range(2):
            seen = [
                o.rank_batch(epoch, s, rank, size) for a, b, size in part for rank in range(size) for s in range(a, b)
            ]
            assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(1003))


@pytest.mark.parametrize("block", [1, 8])
def test_epochs_and_seeds_differ(block):
    def epoch(seed: int, number: int) -> np.ndarray:
        return Order(1000, 1000, seed, block=block).global_batch(number, 0)

    some = [epoch(s, e) for s in range(4) for e in range(4)]
    for i, a in enumerate(some):
        for b in some[:i]:
            assert (a == b).sum() < 20 * block  # two random permutations share one fixed point on average


def test_shuffled_like_a_fair_deck():
    # each of 12 samples lands on each of 12 places about equally often: chi-squared with 11 * 11 degrees of freedom
    trials, n = 4000, 12
    table = np.zeros((n, n))
    for seed in range(trials):
        table[np.arange(n), Order(n, n, seed).global_batch(0, 0)] += 1
    chi = ((table - trials / n) ** 2 / (trials / n)).sum()
    assert 70 < chi < 190  # mean 121, standard deviation 15.6: within about four of them


def test_without_shuffle_samples_come_as_they_are():
    o = Order(10, 4, 0, shuffle=False)
    assert [o.global_batch(5, s).tolist() for s in range(o.steps)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_mix_is_splitmix64():
    # the published generator's first numbers from seed 0; its state grows by the golden gamma
    states = np.arange(4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert order.mix(states).tolist() == published


def test_frozen():
    """A run that is resumed by a later version must find its samples where it left them. Never change these."""
    assert order.key(0).item() == 16294208416658607535
    assert order.key(1, 2, 3).item() == 15020427595393229491
    assert Order(20, 20, 0).global_batch(0, 0).tolist() == [
        14,
        10,
        16,
        0,
        15,
        19,
        4,
        8,
        11,
        7,
        3,
        6,
        5,
        1,
        2,
        13,
        18,
        12,
        9,
        17,
    ]
    assert Order(590_326, 8, 42).global_batch(17, 1234).tolist() == [
        585385,
        509362,
        289801,
        107732,
        589180,
        423398,
        102828,
        361127,
    ]
    # blocks and units came later: an order without them is the old one, and these are theirs
    assert Order(20, 20, 0, block=1, unit=1) == Order(20, 20, 0)
    assert [Order(590_326, 8, 42, unit=2).rank_batch(17, 1234, r, 3).tolist() for r in range(3)] == [
        [585385, 509362],
        [289801, 107732],
        [589180, 423398, 102828, 361127],
    ]
    assert [Order(22, 11, 0, block=4).global_batch(1, s).tolist() for s in range(2)] == [
        [14, 15, 16, 17, 18, 19, 20, 21, 10, 11, 12],
        [13, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5],
    ]
    assert Order(590_326, 8, 42, block=3).global_batch(17, 1234).tolist() == [
        529336,
        529337,
        321801,
        321802,
        321803,
        117927,
        117928,
        117929,
    ]


@given(parts=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=5))
def test_a_key_is_what_the_mixing_of_arrays_gives(parts):
    h = np.zeros(1, np.uint64)
    for part in parts:
        h = order.mix(h ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    found = order.key(*parts)
    assert found == h[0] and found.dtype == np.uint64


# ---- parts of a step


@given(count=counts, **up_to(steps=12, parts=9, size=4, block=9, unit=2), seed=seeds)
@settings(max_examples=100, deadline=None)
def test_the_parts_of_a_step_are_the_step(count, steps, parts, size, block, unit, seed):
    whole = Order(count, -(-count // steps), seed, block=block, unit=unit)
    most = count // whole.steps  # of parts: the smallest step has so many patches
    cut = Order(count, whole.batch, seed, block=block, unit=unit, parts=min(parts, most))
    assert cut.steps == whole.steps * cut.parts
    sizes = []
    for step in range(whole.steps):
        own = range(step * cut.parts, (step + 1) * cut.parts)
        batches = [cut.global_batch(2, part) for part in own]
        assert np.array_equal(np.concatenate(batches), whole.global_batch(2, step))
        sizes += map(len, batches)
        for part, batch in zip(own, batches, strict=True):  # a part is cut up between ranks like any step
            assert np.array_equal(np.concatenate([cut.rank_batch(2, part, r, size) for r in range(size)]), batch)
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and max(sizes) <= -(-whole.batch // cut.parts)


def test_more_parts_than_patches_in_a_step_are_refused():
    assert len(Order(50, 8, 0, parts=7).global_batch(0, 0)) == 1  # of a step of 7
    with pytest.raises(RecipeError, match=r"accumulate = 8: 50 patches in 7 step\(s\) leave a part .* most 7$"):
        Order(50, 8, 0, parts=8)
    assert Order(0, 8, 0).steps == 0  # nothing to do is no fault


# ---- rare classes


def asked_of(labels: np.ndarray, share: float, most: float) -> list[float]:
    """The definition, patch by patch and class by class."""
    frequency = [sum(row[c] for row in labels) / len(labels) for c in range(labels.shape[1])]
    factors = [max(1.0, (share / f) ** 0.5) if f else 1.0 for f in frequency]
    return [min(most, max([1.0, *(f for f, has in zip(factors, row, strict=True) if has)])) for row in labels]


@given(
    n=st.integers(1, 200), classes=st.integers(1, 6), share=st.floats(0, 0.9), most=st.floats(1, 9), seed=st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_repeats_are_those_of_the_paper(n, classes, share, most, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < rng.random(classes) ** 3).astype(np.uint8)
    found = repeats(labels, share, most)
    assert found.shape == (n,) and found.dtype == np.float64
    np.testing.assert_allclose(found, asked_of(labels, share, most), rtol=1e-12)


def test_repeats_by_hand():
    labels = np.zeros((100, 4), np.uint8)
    labels[:, 0] = 1
    labels[:4, 1] = 1
    labels[3, 2] = 1  # a patch takes the most of its classes
    labels[99] = 0
    found = repeats(labels, 0.16, 3.5)
    assert found.tolist() == [2.0, 2.0, 2.0, 3.5, *[1.0] * 96]
    assert set(repeats(labels, 0.0, 8.0)) == {1.0}


def often(seed: int, n: int) -> np.ndarray:
    """Repeats of n patches, most of them 1."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.7, 1.0, rng.choice([1.25, 2.0, 3.3, 8.0], n))


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32), epoch=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_each_patch_comes_floor_or_ceil_of_its_repeats(n, seed, epoch):
    wanted, numbers = often(seed, n), np.arange(n) * 3 + 7
    count = drawn_count(wanted)
    assert wanted.sum() - 1 - 1e-9 < count <= wanted.sum() + 1e-9
    samples = epoch_samples(numbers, wanted, seed, epoch)
    assert len(samples) == count and len(np.unique(samples)) == count  # the same patch, never the same sample
    patches, times = np.unique(patch_of(samples), return_counts=True)
    assert np.array_equal(patches, numbers)  # none is left out
    scaled = 1 + (wanted - 1) * (count - n) / max((wanted - 1).sum(), 1e-9)
    assert (np.floor(scaled - 1e-9) <= times).all() and (times <= np.ceil(scaled + 1e-9)).all()
    before = [patch + 2**32 * np.arange(t) for patch, t in zip(patches, times, strict=True)]
    assert np.array_equal(np.sort(samples), np.sort(np.concatenate(before)))


def test_it_is_systematic_sampling():
    """Points at equal distances over what is wanted beyond once, looked up one by one."""
    wanted = often(1, 200)
    ends = np.cumsum(wanted - 1)
    extra = drawn_count(wanted) - 200
    for epoch in range(20):
        u = (int(order.key(3, epoch, order._OFTEN)) // 2**40 + 0.5) / 2**24
        points = (np.arange(1, extra + 1) - u) * ends[-1] / extra
        times = 1 + np.bincount(np.searchsorted(ends, points), minlength=200)
        assert np.array_equal(np.bincount(patch_of(epoch_samples(np.arange(200), wanted, 3, epoch))), times)


def test_over_epochs_each_patch_comes_as_often_as_is_wanted():
    wanted, epochs = often(2, 400), 500
    times = sum(np.bincount(patch_of(epoch_samples(np.arange(400), wanted, 5, e))) for e in range(epochs))
    scale = (drawn_count(wanted) - 400) / (wanted - 1).sum()
    assert 0.99 < scale <= 1
    # the mean of 500 draws of floor or ceil has a deviation of 0.022 at most: within about four of them
    np.testing.assert_allclose(times / epochs, 1 + (wanted - 1) * scale, atol=0.09)
    assert (times[wanted == 1] == epochs).all()  # what is wanted once comes once


def test_with_nothing_beyond_once_there_is_nothing_new():
    numbers = np.arange(0, 50, 2)
    for wanted in (None, np.ones(25), np.where(np.arange(25) == 3, 1.5, 1.0)):  # half a patch is none
        assert np.array_equal(epoch_samples(numbers, wanted, 0, 4), numbers)


def test_blocks_stay_long_reads_and_hold_no_patch_twice():
    wanted = often(4, 4000)
    patches = patch_of(epoch_samples(np.arange(4000), wanted, 1, 0))
    assert np.array_equal(patches[:4000], np.arange(4000))
    o = Order(drawn_count(wanted), 256, 1, block=16)
    for step in range(o.steps):
        batch = patches[o.global_batch(0, step)]
        unique = len(np.unique(batch))
        assert unique > len(batch) * 0.9
    blocks = patches[: len(patches) // 16 * 16].reshape(-1, 16)
    assert sum(len(np.unique(b)) < 16 for b in blocks) <= 8  # at most where one round ends and the next begins


def test_repeated_samples_are_frozen():
    wanted = np.array([1.0, 2.5, 1.0, 4.25, 1.5, 1.0])
    found = [epoch_samples(np.arange(6), wanted, 7, e) for e in range(8)]
    assert [patch_of(x)[6:].tolist() for x in found] == [
        [1, 3, 1, 3, 3],
        [1, 3, 1, 3, 3],
        [1, 3, 1, 3, 3],
        [1, 3, 4, 3, 3],
        [1, 3, 1, 3, 3],
        [1, 3, 4, 3, 3],
        [1, 3, 4, 3, 3],
        [1, 3, 1, 3, 3],
    ]
    assert (found[0] >> 32).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3]
    rare = repeats(np.arange(590_326)[:, None] % [2, 5003] == 0, 0.001, 8.0)
    samples = epoch_samples(np.arange(590_326), rare, 42, 17)
    assert len(samples) == 590_471 and samples[[590_326, 590_340, -1]].tolist() == [4294967296, 4295037338, 8590519943]
