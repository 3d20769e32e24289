"""Which sample when: a pure function of (seed, epoch, step), whatever the number of ranks.

A permutation of n samples is not stored but computed: a Feistel network over the smallest even number of bits
that holds n, walked until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
So any slice of any epoch costs only that slice, no two library versions disagree, and no rank can hold another
permutation than the rest.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jeoparda.errors import RecipeError

_ROUNDS = 6
_BITS = 0xFFFFFFFFFFFFFFFF  # of 64
_TOGETHER = 64  # steps
_FIRST, _OFTEN, _SUBSET = 0xF1257, 0x0F7E2, 0x5B5E7  # keep these draws apart from the permutation's
_DRAWN_BITS = 32  # of a sample, for the patch's number; those above count how often it came before


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al., OOPSLA 2014): uint64 -> uint64, well mixed. Shape is kept."""
    x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """One uint64 from several integers, order-sensitive."""
    h = 0
    for part in parts:  # `mix` in plain integers: ten times as fast as arrays of one, and a batch wants dozens
        x = ((h ^ part & _BITS) + 0x9E3779B97F4A7C15) & _BITS
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _BITS
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _BITS
        h = x ^ x >> 31
    return np.uint64(h)


def permute(index: np.ndarray, count: int, secret: np.uint64) -> np.ndarray:
    """The images of `index` (int64, each in [0, count)) under the permutation of `count` named by `secret`."""
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    rounds = mix(secret + np.arange(_ROUNDS, dtype=np.uint64))

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> shift, x & mask
        for k in rounds:
            left, right = right, left ^ (mix(right ^ k) & mask)
        return (left << shift) | right

    x = once(np.asarray(index, dtype=np.uint64))
    while (outside := x >= np.uint64(count)).any():  # at most 3 of 4 land outside: a few rounds
        x[outside] = once(x[outside])
    return x.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The order of `count` samples in global batches of at most `batch`.

    Steps are even: an epoch has ceil(count / batch) of them and their sizes differ by at most one. So do the ranks'
    shares of a step, counted in units of `unit` samples, which stay on one rank (2: pairs to be mixed); where the step
    is no whole number of units, the last one is short. No tiny last batch, no sample left out, none seen twice.

    block > 1 is a block shuffle, for storage that wants long reads: runs of `block` consecutive samples stay together
    and are dealt out as a whole, so that a step consists of about batch / block runs (and of three more at most: two
    that its ends cut, and one over the end of the count). Each epoch lays its runs anew from another first sample.

    What it costs: neighbours in a store are often of one scene, and here they share a batch, where a full shuffle
    makes them meet once in count / batch epochs. Cluster sampling has a name for it, the design effect (Kish, Survey
    Sampling, 1965): with a correlation of rho between the samples of a run, gradients and BatchNorm's moments are as
    noisy as those of a batch smaller by a factor of 1 + (block - 1) * rho. And mixup then mixes neighbours. So take the
    shortest block that reads well, and one far smaller than the batch.

    parts > 1 cuts each step of the optimizer into so many steps of the order, for gradients that are accumulated. A
    part is a batch over all ranks; parts `parts` * k and the next `parts` - 1 hold what step k holds without parts, in
    the same order. RecipeError where some part would be empty.
    """

    count: int
    batch: int
    seed: int
    shuffle: bool = True
    block: int = 1
    unit: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if self.count < self.steps:
            step = -(-self.count // self.batch)
            raise RecipeError(
                f"accumulate = {self.parts}: {self.count} patches in {step} step(s) leave a part without any; take at "
                f"most {self.count // step}"
            )

    @property
    def steps(self) -> int:
        """Of an epoch; each part of a step counts as one."""
        return -(-self.count // self.batch) * self.parts

    def bounds(self, step: int) -> tuple[int, int]:
        """First and one-past-last position of a step within the epoch."""
        return step * self.count // self.steps, (step + 1) * self.count // self.steps

    def global_batch(self, epoch: int, step: int) -> np.ndarray:
        """(batch,) int64: the sample numbers of one step over all ranks."""
        return self._at(epoch, *self.bounds(step))

    def rank_batch(self, epoch: int, step: int, rank: int, size: int) -> np.ndarray:
        """(share,) int64: what rank `rank` of `size` takes of the step."""
        return self._share(self.global_batch(epoch, step), rank, size)

    def rank_batches(self, epoch: int, steps: range, rank: int, size: int) -> Iterator[np.ndarray]:
        """The same for consecutive steps, one after the other; a step by itself takes as long as many together."""
        for k in range(0, len(steps), _TOGETHER):
            bounds = [self.bounds(step) for step in steps[k : k + _TOGETHER]]
            start = bounds[0][0]
            found = self._at(epoch, start, bounds[-1][1])
            yield from (self._share(found[first - start : last - start], rank, size) for first, last in bounds)

    def _at(self, epoch: int, first: int, last: int) -> np.ndarray:
        """The samples of positions `first` to `last` of the epoch."""
        positions = np.arange(first, last, dtype=np.int64)
        return self._shuffled(positions, epoch) if self.shuffle else positions

    def _share(self, whole: np.ndarray, rank: int, size: int) -> np.ndarray:
        units = -(-len(whole) // self.unit)
        return whole[rank * units // size * self.unit : (rank + 1) * units // size * self.unit]

    def _shuffled(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        if self.block == 1:
            return permute(positions, self.count, key(self.seed, epoch))
        runs = self.count // self.block
        run, place = positions // self.block, positions % self.block
        whole = run < runs  # the samples that are left over stay last; which these are is drawn like all the rest
        run[whole] = permute(run[whole], runs, key(self.seed, epoch))
        first = int(key(self.seed, epoch, _FIRST) % np.uint64(self.count))
        return (first + run * self.block + place) % self.count


def subset(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A share of the patches `numbers`, (n,) int64, drawn by the seed and in their own order; one at least."""
    kept = permute(np.arange(max(1, round(share * len(numbers)))), len(numbers), key(seed, _SUBSET))
    drawn: np.ndarray = numbers[np.sort(kept)]
    return drawn


def repeats(labels: np.ndarray, share: float, most: float) -> np.ndarray:
    """(n,) float64, 1 to `most`: how often an epoch is to draw each patch, so that rare classes come more often.

    Repeat factor sampling (Gupta, Dollar, Girshick, LVIS, CVPR 2019): a class that a share f of the patches has asks
    for max(1, sqrt(share / f)), and a patch takes the most that its classes ask for. labels: (n, class) 0 or 1, of all
    patches that may be drawn. share: below which a class counts as rare, 0: no class does. most: 1 or more.
    """
    asked = np.ones(len(labels))
    for has in np.asarray(labels).T > 0:
        if has.any():
            np.maximum(asked, np.sqrt(share / has.mean()), out=asked, where=has)
    return np.minimum(asked, most)


def drawn_count(repeats: np.ndarray) -> int:
    """How many samples an epoch has, every epoch the same: the sum of the repeats, rounded down."""
    return len(repeats) + math.floor(_beyond_once(repeats)[-1])


def epoch_samples(numbers: np.ndarray, repeats: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """(drawn_count,) int64: the samples of an epoch, before they are shuffled: the patch's number and, in the bits from
    the 32nd on, how often the patch came before. `patch_of` gives the number back.

    numbers, repeats: (n,) patches, below 2^32, and how often each is wanted, 1 or more; None: each once. What is wanted
    beyond once is scaled down a little, to a whole number in all. Then a patch comes floor or ceil of its repeats
    times, and its repeats on average over the epochs: systematic sampling (Madow and Madow, Annals of Mathematical
    Statistics 15, 1944) of what is beyond once, with one draw an epoch.

    First comes every patch once, then once more those that come twice, and so on: blocks stay long reads, and one
    holds a patch twice only where such a round ends in it.
    """
    if repeats is None:
        return numbers
    beyond = _beyond_once(repeats)
    whole = math.floor(beyond[-1])
    u = (int(key(seed, epoch, _OFTEN) >> np.uint64(40)) + 0.5) * 2.0**-24  # away from 0 and 1 by more than rounding is
    upto = np.floor(beyond * (whole / beyond[-1] if whole else 0.0) + u)
    times = 1 + np.diff(upto, prepend=0.0).astype(np.int64)
    return np.concatenate([numbers[times > k] + (k << _DRAWN_BITS) for k in range(times.max())])


def patch_of(samples: np.ndarray) -> np.ndarray:
    """The numbers of the patches of samples, both int64."""
    return samples & ((1 << _DRAWN_BITS) - 1)


def _beyond_once(repeats: np.ndarray) -> np.ndarray:
    """(n,) float64: the sum up to each patch of what is asked for beyond once. It is never summed otherwise: rounding
    depends on how."""
    return np.cumsum(np.asarray(repeats, np.float64) - 1.0)
