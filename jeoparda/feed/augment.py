"""What happens to a sample, as a function of (seed, epoch, sample): never of the rank, the feed or the past. A sample
is a patch, and which time an epoch has it."""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from jeoparda.config import check, opt, recipe
from jeoparda.order import key, mix

_FLIPS, _CROP, _MIX, _DROP, _JITTER = 0xF11B5, 0xC20B, 0x313B, 0xD20B, 0x71773  # keeps these draws apart


@recipe
class AugmentRecipe:
    """What training does to its samples; drawn anew each epoch, for image and mask alike."""

    flips: bool = opt(True, "random flips and quarter turns")
    crop_px: int = opt(
        0,
        "side of a random part of each patch, whole pixels of every band; 0: all of it",
        "px of the finest band",
        ge=0,
    )
    mixup: float = opt(0.0, "pairs of samples are mixed, the share drawn from Beta(a, a) of this a; 0: not", ge=0)
    drop_bands: float = opt(0.0, "probability that a band is missing: its mean everywhere", ge=0, lt=1)
    jitter: float = opt(0.0, "standard deviation of a gain for each band of each sample, about 1", ge=0, lt=0.5)


STILL: AugmentRecipe = check(AugmentRecipe, {"flips": False})


@dataclass(frozen=True)
class Draws:
    """What was drawn for b samples.

    corner   (b, 2) int32: row and column of the crop's corner, px of the finest grid
    flips    (b, 3) bool: transpose, flip rows, flip columns, in this order of application, after the crop
    gain     (b, band) float32 that digital numbers are multiplied by; 0 for a band that is dropped; None: all 1
    share    (b,) float32: of the sample itself where it is mixed with `partner`; None: not mixed
    partner  (b,) int32: place in the batch
    """

    flips: np.ndarray
    corner: np.ndarray
    gain: np.ndarray | None = None
    share: np.ndarray | None = None
    partner: np.ndarray | None = None


def still(count: int) -> Draws:
    """Nothing happens: for validation."""
    return Draws(np.zeros((count, 3), bool), np.zeros((count, 2), np.int32))


def draw(
    r: AugmentRecipe, seed: int, epoch: int, numbers: np.ndarray, size_px: int, bands: int, step_px: int = 1
) -> Draws:
    """For the samples `numbers` (`Plan.samples`), (b,): whole pairs, where samples are mixed, but for the last of a
    step. step_px: the pixels of all bands begin together every so many px of the finest."""
    out = still(len(numbers))
    drawn = np.asarray(numbers, np.uint64)
    corner = out.corner
    if r.crop_px:
        u = _uniform([key(seed, epoch, _CROP, axis) for axis in range(2)], drawn)
        corner = (u * ((size_px - r.crop_px) // step_px + 1)).astype(np.int32) * np.int32(step_px)
    share, partner = _pairs(r.mixup, key(seed, epoch, _MIX), drawn) if r.mixup else (None, None)
    turned = flips(seed, epoch, numbers) if r.flips else out.flips
    return Draws(turned, corner, _gains(r, seed, epoch, drawn, bands), share, partner)


def flips(seed: int, epoch: int, numbers: np.ndarray) -> np.ndarray:
    """(b, 3) bool: transpose, flip rows, flip columns, in this order of application; each with probability 1/2.

    The eight combinations are the eight symmetries of the square: flips and quarter turns, each equally likely.
    """
    bits = mix(np.asarray(numbers, np.uint64) ^ key(seed, epoch, _FLIPS))
    return (bits[:, None] >> np.array([10, 20, 30], np.uint64)) & np.uint64(1) > 0


def _gains(r: AugmentRecipe, seed: int, epoch: int, numbers: np.ndarray, bands: int) -> np.ndarray | None:
    """(b, band) float32; at least one band is kept."""
    if not (r.jitter or r.drop_bands):
        return None
    gain = np.ones((len(numbers), bands), np.float32)
    if r.jitter:  # uniform, which has bounds: a gain near 0 or below would be no small change
        u = _uniform([key(seed, epoch, _JITTER, b) for b in range(bands)], numbers)
        gain += (r.jitter * np.sqrt(12) * (u - 0.5)).astype(np.float32)
    if r.drop_bands:
        u = _uniform([key(seed, epoch, _DROP, b) for b in range(bands)], numbers)
        gain[(u < r.drop_bands) & (u < u.max(1, keepdims=True))] = 0
    return gain


def _pairs(alpha: float, secret: np.uint64, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share, partner). Samples 2 i and 2 i + 1 are a pair with one draw: a x + (1 - a) y, and a y + (1 - a) x. So each
    sample is read once, by one rank. Mixup: Zhang et al., ICLR 2018."""
    place = np.arange(len(numbers))
    partner = np.minimum(place ^ 1, max(0, len(numbers) - 1))  # an odd last one is mixed with itself
    share = betaincinv(alpha, alpha, _uniform([secret], numbers[::2])[:, 0])
    return share.repeat(2)[: len(numbers)].astype(np.float32), partner.astype(np.int32)


def _uniform(secrets: list[np.uint64], numbers: np.ndarray) -> np.ndarray:
    """(b, secret) float64 in [0, 1)."""
    return (mix(numbers[:, None] ^ np.array(secrets, np.uint64)) >> np.uint64(11)) * 2.0**-53
