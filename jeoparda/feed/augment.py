"""What happens to a sample, as a function of (seed, epoch, patch number): never of the rank, the feed or the past."""

import numpy as np

from jeoparda.order import key, mix

_FLIPS = 0xF11B5  # keeps these draws apart from the order's


def flips(seed: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
    """(b, 3) bool: transpose, flip rows, flip columns, in this order of application; each with probability 1/2.

    The eight combinations are the eight symmetries of the square: flips and quarter turns, each equally likely.
    """
    bits = mix(np.asarray(numbers, np.uint64) ^ key(seed, epoch, _FLIPS))
    return (bits[:, None] >> np.array([10, 20, 30], np.uint64)) & np.uint64(1) > 0
