"""A coarser image of the same ground: what a sensor with a stated point-spread function would have measured.

Conventions. Low pixel i stands over the `factor` high pixels i * factor ... (i + 1) * factor - 1 in each direction;
its value is the PSF-weighted mean of the high pixels around the *centre* of that block, so the low image has the
upper left corner of the high one and neither is shifted. The PSF is separable and is sampled at the high pixels'
centres. Weights are renormalised over the pixels that are there and valid.

A Gaussian PSF of standard deviation s (in low pixels) has the modulation transfer function
MTF(f) = exp(-2 pi^2 s^2 f^2), f in cycles a low pixel; with f = 1/2 (Nyquist)

    s = FWHM / (2 sqrt(2 ln 2))        s = sqrt(-2 ln MTF_Nyquist) / pi

Source: the Gaussian's Fourier pair; matching a PSF by the sensor's gain at Nyquist: Aiazzi, Alparone, Baronti,
Garzelli, Selva, "MTF-tailored multiscale fusion of high-resolution MS and Pan imagery", PE&RS 72(5), 2006.
"""

from dataclasses import dataclass
from math import ceil, log, pi, sqrt

import numpy as np

_TRUNCATE = 4.0  # standard deviations; beyond lie 6e-5 of a Gaussian


@dataclass(frozen=True)
class Psf:
    """`weights`: (tap,) along one direction, sum 1, centred on the low pixel's block; tap 0 is `halo_px` high pixels
    before the block. `halo_px` is a whole number of blocks: a window that is grown by it gives the same low pixels
    as the whole image."""

    factor: int
    weights: tuple[float, ...]

    @property
    def halo_px(self) -> int:
        return (len(self.weights) - self.factor) // 2


def box(factor: int) -> Psf:
    """The plain mean of the block."""
    return Psf(factor, (1 / factor,) * factor)


def gaussian(factor: int, sigma: float) -> Psf:
    """`sigma`: standard deviation in low pixels, > 0; see `sigma_of_fwhm` and `sigma_of_mtf`."""
    blocks = max(0, ceil(_TRUNCATE * sigma - 0.5))
    length = factor * (1 + 2 * blocks)
    distance = (np.arange(length) - (length - 1) / 2) / factor  # of high pixels' centres from the block's, low pixels
    near = np.abs(distance) <= max(_TRUNCATE * sigma, 0.5 / factor)
    # the smallest exponent is taken out: a PSF far narrower than a high pixel still has its nearest pixels
    exponent = (distance**2 - np.min(distance**2)) / (2 * sigma**2)
    weights = np.where(near, np.exp(-exponent), 0.0)
    return Psf(factor, tuple(float(w) for w in weights / weights.sum()))


def sigma_of_fwhm(fwhm: float) -> float:
    """`fwhm`: full width at half maximum, in low pixels."""
    return fwhm / (2 * sqrt(2 * log(2)))


def sigma_of_mtf(mtf: float) -> float:
    """`mtf`: the modulation transfer at the low image's Nyquist frequency, inside (0, 1)."""
    return sqrt(-2 * log(mtf)) / pi


def degrade(
    high: np.ndarray, psf: Psf, valid: np.ndarray | None = None, min_weight: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """high: (..., row, col), sides a multiple of the factor, any integer or float type; valid: (row, col), 0 where
    a pixel does not count, None where all do. Beyond the edges nothing counts.

    Returns low, (..., row, col) of the same type (integers rounded to the nearest, 0 where there is no value), and
    its valid pixels, (row, col) uint8: those with at least `min_weight` of the PSF's weight on valid pixels.
    ValueError where the sides are no multiple of the factor.
    """
    if high.shape[-2] % psf.factor or high.shape[-1] % psf.factor:
        raise ValueError(f"an image of {high.shape[-2:]} px does not divide by the factor {psf.factor}")
    there = np.ones(high.shape[-2:], bool) if valid is None else valid.astype(bool)
    weight = _filter(there.astype(np.float64), psf)
    known = weight >= max(min_weight, 1e-6)
    total = _filter(np.where(there, high, 0).astype(np.float64), psf)
    low = np.where(known, total / np.where(known, weight, 1.0), 0.0)
    if np.issubdtype(high.dtype, np.integer):
        low = np.rint(low)
    return low.astype(high.dtype), known.astype(np.uint8)


def _filter(image: np.ndarray, psf: Psf) -> np.ndarray:
    """Correlation with the PSF at every block's centre, zeros outside; (..., row, col) float64."""
    return _along(_along(image, psf).swapaxes(-1, -2), psf).swapaxes(-1, -2)


def _along(image: np.ndarray, psf: Psf) -> np.ndarray:
    """Along the last axis. Tap after tap, always in the same order, so that a pixel's value is the same to the last
    bit whatever part of the image it is computed with."""
    count = image.shape[-1] // psf.factor
    around = [(0, 0)] * (image.ndim - 1) + [(psf.halo_px, psf.halo_px)]
    padded = np.pad(image, around)
    low = np.zeros((*image.shape[:-1], count))
    for tap, weight in enumerate(psf.weights):
        if weight:
            low += weight * padded[..., tap : tap + (count - 1) * psf.factor + 1 : psf.factor]
    return low
