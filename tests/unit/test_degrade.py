"""Degradation is what it states: PSF, MTF, pixel centres, edges, nodata."""

import numpy as np
import pytest

from jeoparda.degrade import Psf, box, degrade, gaussian, sigma_of_fwhm, sigma_of_mtf

PSFS = {
    "box2": box(2),
    "box3": box(3),
    "mtf0.3 x2": gaussian(2, sigma_of_mtf(0.3)),
    "mtf0.25 x4": gaussian(4, sigma_of_mtf(0.25)),
    "fwhm1.5 x3": gaussian(3, sigma_of_fwhm(1.5)),
    "narrow x4": gaussian(4, 1e-3),
}


@pytest.fixture(params=PSFS, scope="module")
def psf(request) -> Psf:
    return PSFS[request.param]


def image(rows: int, cols: int, kind=np.float64, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed).uniform(1, 200, (rows, cols))
    return draw.astype(kind)


def by_definition(high: np.ndarray, valid: np.ndarray, psf: Psf) -> tuple[np.ndarray, np.ndarray]:
    """The weighted mean, pixel by pixel, in two dimensions, with distances from the block's centre."""
    f, rows, cols = psf.factor, *high.shape
    mean, weight = np.zeros((rows // f, cols // f)), np.zeros((rows // f, cols // f))
    reach = len(psf.weights) / 2
    for i, j in np.ndindex(mean.shape):
        centre = np.array([(i + 0.5) * f, (j + 0.5) * f])
        total = 0.0
        for r, c in np.ndindex(high.shape):
            tap = np.array([r + 0.5, c + 0.5]) - centre + reach - 0.5  # index into the weights
            if valid[r, c] and (tap >= 0).all() and (tap < len(psf.weights)).all():
                w = psf.weights[round(tap[0])] * psf.weights[round(tap[1])]
                total += w * high[r, c]
                weight[i, j] += w
        mean[i, j] = total / weight[i, j] if weight[i, j] else 0
    return mean, weight


def test_equals_the_definition_with_holes_and_edges(psf):
    high = image(4 * psf.factor, 5 * psf.factor)
    valid = np.random.default_rng(1).random(high.shape) > 0.4
    valid[: psf.factor, : psf.factor] = False
    mean, weight = by_definition(high, valid, psf)
    low, known = degrade(np.where(valid, high, np.nan), psf, valid)
    assert np.array_equal(known, weight >= 0.5)
    assert 0 < known.sum() < known.size
    np.testing.assert_allclose(low, np.where(known, mean, 0), rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 0.49, 1.0])
@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_gaussian_equals_scipy(factor, sigma):
    """scipy's filter, then its pixel at each block's centre. With an even factor the centre lies between two pixels,
    and scipy puts the result on the latter."""
    ndimage = pytest.importorskip("scipy.ndimage")
    high = image(14 * factor, 17 * factor)
    low, _ = degrade(high, gaussian(factor, sigma), min_weight=0)
    if factor % 2:
        blurred = ndimage.gaussian_filter(high, sigma * factor, truncate=4.0)
    else:
        taps = np.arange(-50, 50) + 0.5
        kernel = np.exp(-(taps**2) / (2 * (sigma * factor) ** 2)) * (np.abs(taps) <= 4 * sigma * factor)
        blurred = ndimage.correlate1d(high, kernel / kernel.sum(), axis=0)
        blurred = ndimage.correlate1d(blurred, kernel / kernel.sum(), axis=1)
    inside = np.s_[5:-5, 5:-5]  # scipy mirrors the image at its edges
    want = blurred[factor // 2 :: factor, factor // 2 :: factor]
    np.testing.assert_allclose(low[inside], want[inside], rtol=2e-4)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_a_constant_stays_and_so_does_the_type(psf, kind):
    high = np.full((2, 6 * psf.factor, 4 * psf.factor), 199, kind)
    low, known = degrade(high, psf)
    assert low.dtype == kind
    assert known.all()
    np.testing.assert_allclose(low, 199, rtol=1e-6)
    assert low.shape == (2, 6, 4)


def test_integers_are_rounded_not_cut(psf):
    high = image(8 * psf.factor, 8 * psf.factor, np.uint8)
    exact, _ = degrade(high.astype(np.float64), psf)
    assert np.array_equal(degrade(high, psf)[0], np.rint(exact))


def test_the_box_keeps_the_mean():
    high = image(24, 36)
    for factor in (2, 3, 4, 6):
        np.testing.assert_allclose(degrade(high, box(factor))[0].mean(), high.mean(), rtol=1e-12)


@pytest.mark.parametrize("mtf", [0.1, 0.25, 0.35])
def test_a_gaussian_keeps_the_mean(mtf):
    """Of the image's inside: the PSFs of all low pixels add up to one everywhere but for a ripple of MTF(1), twice
    (rows and columns)."""
    psf = gaussian(4, sigma_of_mtf(mtf))
    high = np.zeros((160, 160))
    high[40:120, 40:120] = image(80, 80)
    total = degrade(high, psf)[0].sum() * 16
    ripple = 2 * 2 * mtf**4  # MTF(1) = MTF(1/2)^4; both signs
    np.testing.assert_allclose(total, high.sum(), rtol=0.1 * ripple + 1e-4)


def test_a_plane_is_measured_at_the_blocks_centre(psf):
    """No shift, not by half a pixel: the value of a plane is that at the centre of the low pixel."""
    f, n = psf.factor, 20
    high = np.add.outer(3.0 * (np.arange(n * f) + 0.5), -7.0 * (np.arange(n * f) + 0.5))
    low, _ = degrade(high, psf)
    centre = (np.arange(n) + 0.5) * f
    edge = psf.halo_px // f
    inside = np.s_[edge : n - edge, edge : n - edge]
    np.testing.assert_allclose(low[inside], np.add.outer(3.0 * centre, -7.0 * centre)[inside], atol=1e-9)


def test_the_response_to_an_impulse_is_the_psf(psf):
    """An impulse moved over every place of a block: the low images, put together, are the PSF."""
    f, n = psf.factor, 11
    seen = np.zeros((n * f, n * f))
    for dr, dc in np.ndindex(f, f):
        high = np.zeros((n * f, n * f))
        high[5 * f + dr, 5 * f + dc] = 1
        low, _ = degrade(high, psf, min_weight=0)
        # low pixel (i, j) saw the impulse at this distance from its block's first pixel
        seen[(f - 1 - dr) :: f, (f - 1 - dc) :: f] = low
    w = np.zeros(n * f)
    first = 5 * f - psf.halo_px
    w[first : first + len(psf.weights)] = psf.weights
    edge = np.s_[5 * f - psf.halo_px : 6 * f + psf.halo_px]
    np.testing.assert_allclose(seen[edge, edge], np.outer(w, w)[edge, edge], atol=1e-12)


@pytest.mark.parametrize("mtf", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("factor", [3, 4, 6])
def test_the_nyquist_wave_keeps_the_stated_share(factor, mtf):
    """A cosine of two low pixels a wave, crests on the centres of even blocks."""
    n = 40
    x = (np.arange(n * factor) + 0.5) / factor - 0.5
    high = np.tile(np.cos(np.pi * x), (factor * n, 1))
    low, _ = degrade(high, gaussian(factor, sigma_of_mtf(mtf)))
    np.testing.assert_allclose(
        low[10:-10, 10:-10], mtf * np.tile((-1.0) ** np.arange(n), (n, 1))[10:-10, 10:-10], atol=1e-3
    )


def test_fwhm_is_where_the_psf_is_half():
    factor = 101
    psf = gaussian(factor, sigma_of_fwhm(2.0))
    w = np.array(psf.weights)
    middle = len(w) // 2
    np.testing.assert_allclose(w[[middle - factor, middle + factor]] / w[middle], 0.5, rtol=1e-9)


def test_shifted_by_whole_low_pixels_with_its_image(psf):
    f = psf.factor
    big = image(20 * f, 20 * f)
    a, _ = degrade(big[: 16 * f, : 16 * f], psf)
    b, _ = degrade(big[2 * f : 18 * f, 3 * f : 19 * f], psf)
    e = psf.halo_px // f
    assert np.array_equal(a[2 + e : 16 - e, 3 + e : 16 - e], b[e : 14 - e, e : 13 - e])


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_block_by_block_equals_whole_to_the_last_bit(psf, kind):
    f, n = psf.factor, 18
    high = image(n * f, n * f, kind)
    valid = np.random.default_rng(2).random(high.shape) > 0.2
    whole, known = degrade(high, psf, valid)
    for r, c in np.ndindex(3, 3):
        top, left, side, halo = 6 * f * r, 6 * f * c, 6 * f, psf.halo_px
        r0, c0 = max(0, top - halo), max(0, left - halo)
        window = np.s_[r0 : min(n * f, top + side + halo), c0 : min(n * f, left + side + halo)]
        low, there = degrade(high[window], psf, valid[window])
        cut = np.s_[(top - r0) // f : (top - r0) // f + 6, (left - c0) // f : (left - c0) // f + 6]
        part = np.s_[6 * r : 6 * r + 6, 6 * c : 6 * c + 6]
        assert np.array_equal(low[cut], whole[part])
        assert np.array_equal(there[cut], known[part])


def test_no_value_where_too_little_is_valid():
    high = np.full((4, 4), 100, np.uint16)
    valid = np.zeros((4, 4), np.uint8)
    valid[:2, 0] = 1  # half of the first block
    valid[2, 2] = 1  # a quarter of the last
    low, known = degrade(high, box(2), valid)
    assert low.tolist() == [[100, 0], [0, 0]]
    assert known.tolist() == [[1, 0], [0, 0]]


def test_sides_must_divide():
    with pytest.raises(ValueError, match=r"\(9, 8\) px does not divide by the factor 4"):
        degrade(np.zeros((9, 8)), box(4))
