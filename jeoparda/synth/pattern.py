"""Patterns on the ground, as fields over a patch: noise, parcels, rows, trees, streets. Pure geometry.

Every function gives (row, col) float32 of SIZE_PX x SIZE_PX at 10 m; `cut` turns a field into parts of given shares.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jeoparda.sensors import SENTINEL_2_L2A

SIZE_PX = 120
PIXEL_M = int(SENTINEL_2_L2A.finest_m)
_LINE = np.arange(SIZE_PX, dtype=np.float32)
ROW, COL = (np.ascontiguousarray(a) for a in np.meshgrid(_LINE, _LINE, indexing="ij"))

Pattern = Callable[[np.random.Generator, float], np.ndarray]


def noise(rng: np.random.Generator, grain_px: float) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation about 0.6, its bumps about `grain_px` wide; white for 1 px."""
    if grain_px <= 1:
        return rng.standard_normal((SIZE_PX, SIZE_PX), dtype=np.float32)
    step = np.float32(max(grain_px / 2, 1))  # a finer lattice, smoothed: its axes do not show
    side = int(SIZE_PX / step) + 5
    lattice = rng.standard_normal((side, side), dtype=np.float32)
    for shift in rng.random(2, dtype=np.float32):  # along the rows, then, turned over, along the columns
        lattice = lattice[:-2] + 2 * lattice[1:-1] + lattice[2:]
        place = _LINE / step + shift
        low = place.astype(np.intp)
        w = (place - low)[:, None]
        lattice = np.ascontiguousarray((lattice[low] * (1 - w) + lattice[low + 1] * w).T)
    return lattice * np.float32(1 / 6)


def turned(rng: np.random.Generator, wobble_px: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Two axes at right angles (px), turned at random and slightly bent: no real field is quite straight."""
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    bend = np.float32(wobble_px) * noise(rng, 35)
    return c * COL + s * ROW + bend, c * ROW - s * COL + bend


def parcels(rng: np.random.Generator, grain_px: float, aspect: float = 1.7) -> np.ndarray:
    """Strips `grain_px` wide, cut into parcels `aspect` as long, a random value in 0..1 each."""
    along, across = turned(rng)
    strip = np.floor(across / np.float32(grain_px) + 64).astype(np.intp) & 63
    start = rng.random(64, dtype=np.float32)[strip]
    piece = np.floor(along / np.float32(grain_px * aspect) + start + 64).astype(np.intp) & 63
    return rng.random((64, 64), dtype=np.float32)[strip, piece]


def mosaic(rng: np.random.Generator, grain_px: float) -> np.ndarray:
    """Irregular pieces about `grain_px` wide, a random value in 0..1 each."""
    a, b = turned(rng, 4.0)
    bend = np.float32(0.35 * grain_px)
    a, b = a + bend * noise(rng, 1.3 * grain_px), b + bend * noise(rng, 1.3 * grain_px)
    i, j = (np.floor(x / np.float32(grain_px) + 64).astype(np.intp) & 63 for x in (a, b))
    return rng.random((64, 64), dtype=np.float32)[i, j]


def rows(rng: np.random.Generator, period_px: float) -> np.ndarray:
    """Parallel rows: 0 in the middle of a row, 1 between two."""
    across, _ = turned(rng)
    return _tooth(across, period_px) + np.float32(0.4 / period_px) * noise(rng, 1)


def strings(rng: np.random.Generator, period_px: float) -> np.ndarray:
    """Winding rows, as the strings and pools of a mire."""
    across, _ = turned(rng, 9.0)
    return _tooth(across + np.float32(3) * noise(rng, 11), period_px)


def trees(rng: np.random.Generator, period_px: float) -> np.ndarray:
    """Planted or thinned trees: 0 at a stem, growing with the distance to it."""
    a, b = turned(rng)
    jitter = np.float32(0.12 * period_px) * noise(rng, 1.5 * period_px)
    return np.hypot(_tooth(a + jitter, period_px), _tooth(b - jitter, period_px))


def streets(rng: np.random.Generator, period_px: float) -> np.ndarray:
    """Blocks of houses and gardens (random values in 0..1) between streets (over 1)."""
    a, b = turned(rng, 4.0)
    line = np.maximum(_tooth(a, period_px), _tooth(b, 1.4 * period_px))
    return np.where(line > 1 - np.float32(1.1 / period_px), 1 + line, parcels(rng, 1.6, 1.0))


def hedges(rng: np.random.Generator, period_px: float) -> np.ndarray:
    """Large meadows (0) between hedges (towards 1)."""
    a, b = turned(rng, 5.0)
    return np.maximum(_tooth(a, period_px), _tooth(b, 1.6 * period_px))


def _tooth(x: np.ndarray, period: float) -> np.ndarray:
    """Triangle wave: 0 at whole periods, 1 half-way."""
    x = x / np.float32(period)
    return np.abs(x - np.rint(x)) * 2


def cut(field: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """The part (0, 1, ..) that each pixel falls into: part 0 takes the lowest `shares[0]` of the field, and so on."""
    edges = np.cumsum(shares)[:-1] / np.sum(shares)
    return np.searchsorted(np.quantile(field[::3, ::3], edges), field, side="right")


PATTERNS: dict[str, Pattern] = {
    "noise": noise,
    "parcels": parcels,
    "mosaic": mosaic,
    "rows": rows,
    "strings": strings,
    "trees": trees,
    "streets": streets,
    "hedges": hedges,
}
