"""The order of samples: a permutation, the same for any number of ranks, the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jeoparda import order
from jeoparda.order import Order

counts = st.integers(1, 3000)
seeds = st.integers(-(2**40), 2**70)


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


@given(count=counts, steps=st.integers(1, 12), size=st.integers(1, 9), seed=seeds, epoch=st.integers(0, 99))
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


def test_epochs_and_seeds_differ():
    def epoch(seed: int, number: int) -> np.ndarray:
        return Order(1000, 1000, seed).global_batch(number, 0)

    some = [epoch(s, e) for s in range(4) for e in range(4)]
    for i, a in enumerate(some):
        for b in some[:i]:
            assert (a == b).sum() < 20  # two random permutations share one fixed point on average


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
