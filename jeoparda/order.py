"""Which sample when: a pure function of (seed, epoch, step), whatever the number of ranks.

A permutation of n samples is not stored but computed: a Feistel network over the smallest even number of bits
that holds n, walked until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
So any slice of any epoch costs only that slice, no two library versions disagree, and no rank can hold another
permutation than the rest.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDS = 6


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al., OOPSLA 2014): uint64 -> uint64, well mixed. Shape is kept."""
    x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """One uint64 from several integers, order-sensitive."""
    h = np.zeros(1, dtype=np.uint64)
    for part in parts:
        h = mix(h ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return h[0]


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

    Steps are even: an epoch has ceil(count / batch) of them and their sizes differ by at most one, and so do the
    ranks' shares of a step. No tiny last batch, no sample left out, none seen twice.
    """

    count: int
    batch: int
    seed: int
    shuffle: bool = True

    @property
    def steps(self) -> int:
        return -(-self.count // self.batch)

    def bounds(self, step: int) -> tuple[int, int]:
        """First and one-past-last position of a step within the epoch."""
        return step * self.count // self.steps, (step + 1) * self.count // self.steps

    def global_batch(self, epoch: int, step: int) -> np.ndarray:
        """(batch,) int64: the sample numbers of one step over all ranks."""
        positions = np.arange(*self.bounds(step), dtype=np.int64)
        return permute(positions, self.count, key(self.seed, epoch)) if self.shuffle else positions

    def rank_batch(self, epoch: int, step: int, rank: int, size: int) -> np.ndarray:
        """(share,) int64: what rank `rank` of `size` takes of the step."""
        whole = self.global_batch(epoch, step)
        return whole[rank * len(whole) // size : (rank + 1) * len(whole) // size]
