"""How each CORINE class looks to Sentinel-2: a few materials, mixed by class, season and pattern.

Materials are rounded from what spectral libraries show at Sentinel-2's bands (USGS Spectral Library Version 7,
Kokaly et al. 2017; ECOSTRESS, Meerdink et al. 2019): red edge and near-infrared plateau of leaves, their water
absorption at 1.6 and 2.2 um, soils rising with wavelength, snow dark in the short-wave infrared, water black beyond
0.7 um. Seasons follow the crop calendars and growing seasons of Europe, coarsely. Plausible, not a retrieval.
"""

from dataclasses import dataclass

import numpy as np

from jeoparda.nomenclature import CLC
from jeoparda.sensors import SENTINEL_2_L2A
from jeoparda.synth.pattern import PATTERNS, PIXEL_M, SIZE_PX, cut, noise

BANDS = SENTINEL_2_L2A.bands
_BY_WAVELENGTH = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

# Reflectance in per cent, in the order of _BY_WAVELENGTH (443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1610,
# 2190 nm).
_MATERIALS: dict[str, tuple[float, ...]] = {
    "dry soil": (9, 11, 15, 20, 23, 25, 26, 28, 30, 31, 37, 32),
    "wet soil": (4.5, 5.5, 8, 10.5, 12.5, 13.5, 14.5, 15.5, 16.5, 17, 19, 15),
    "crop": (2, 2.5, 5.5, 3, 9, 33, 43, 46, 48, 48, 20, 9.5),
    "grass": (2.5, 3.2, 7.5, 5, 12.5, 28, 34, 37, 39, 39, 24, 13),
    "straw": (6, 8, 13, 17, 21, 25, 28, 31, 33, 34, 37, 25),
    "broad leaf": (1.5, 2, 4.5, 2.2, 7.5, 28, 36, 38, 40, 40, 17, 7.5),
    "leaf shade": (1, 1.2, 2.5, 1.3, 4, 15, 20, 21, 22, 22, 9, 4),
    "bare twigs": (3, 4, 5.5, 6.5, 8.5, 12, 14, 16, 18, 18, 20, 13),
    "needles": (1.2, 1.6, 3, 1.8, 4.5, 13, 16.5, 18, 19, 19, 8.5, 4),
    "needle shade": (0.7, 0.9, 1.6, 1, 2.3, 6.5, 8, 9, 9.5, 9.5, 4.2, 2),
    "hard leaf": (2, 2.5, 4.5, 4, 7, 17, 21, 23, 25, 25, 16, 9),
    "olive": (3.5, 4.2, 6.5, 6.2, 9, 16, 19, 21, 22.5, 22.5, 17.5, 11),
    "heath": (2.5, 3, 4.2, 5.5, 7.5, 12.5, 15.5, 17.5, 19, 19.5, 18, 11),
    "moss": (3, 3.8, 7, 7.5, 11.5, 18, 20, 22, 23, 22, 13, 7),
    "reed": (3, 3.6, 6, 5, 9, 21, 26, 28, 30, 29, 15, 8),
    "dry reed": (5, 6.5, 9.5, 12, 14.5, 17.5, 19.5, 21, 22, 22, 22, 14),
    "salt grass": (3.5, 4.5, 7.5, 7.5, 11, 18, 21, 23, 24, 23, 14, 8),
    "clear water": (3.4, 2.8, 2, 1.1, 0.9, 0.7, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3),
    "humic water": (1.1, 1.2, 1.7, 1.8, 1.6, 1, 0.9, 0.8, 0.7, 0.6, 0.4, 0.3),
    "algae": (1.4, 1.7, 3.8, 2, 3.4, 1.7, 1.5, 1.2, 1, 0.8, 0.5, 0.4),
    "river water": (3.2, 4, 5.8, 4.6, 3.8, 2.2, 2, 1.7, 1.4, 1, 0.7, 0.5),
    "turbid water": (5, 6.5, 9.5, 11, 9.8, 5.5, 4.8, 4, 3, 1.8, 0.9, 0.6),
    "lagoon water": (5, 6.5, 9, 4.2, 2.8, 1.6, 1.4, 1.2, 1, 0.8, 0.6, 0.4),
    "brine": (7, 8, 9, 13, 14, 8, 7, 6, 5, 3, 1.2, 0.8),
    "concrete": (13, 16, 19, 22, 24, 25, 26, 27, 28, 28, 31, 29),
    "tiles": (6, 7, 9, 16, 20, 22, 23, 25, 26, 27, 33, 30),
    "metal": (28, 32, 34, 35, 36, 36, 37, 38, 38, 37, 36, 33),
    "asphalt": (7, 7.5, 8.5, 9.5, 10.5, 11, 11.5, 12, 12.5, 12.5, 15, 14),
    "sand": (16, 20, 27, 33, 36, 38, 39, 40, 42, 42, 48, 46),
    "rock": (12, 14, 17, 19, 20, 21, 21.5, 22, 22.5, 22.5, 27, 25),
    "rubble": (17, 21, 26, 30, 32, 33, 33.5, 34, 35, 34, 38, 33),
    "mud": (7, 8, 10, 11.5, 12, 12.5, 12.5, 12, 12, 11, 7, 4.5),
    "char": (3, 3.3, 4, 4.7, 5.2, 6, 6.6, 7.6, 8.5, 9, 15, 16),
    "snow": (82, 86, 86, 85, 84, 81, 80, 79, 77, 70, 10, 8),
    "ice": (52, 57, 56, 51, 48, 43, 40, 36, 32, 25, 4, 3),
    "salt": (45, 50, 53, 55, 56, 56, 56, 55, 54, 50, 25, 18),
    "cloud": (58, 58, 57, 58, 59, 60, 61, 62, 62, 58, 44, 34),
}
_ORDER = [_BY_WAVELENGTH.index(b) for b in BANDS]
MATERIALS: dict[str, np.ndarray] = {k: np.array(v, np.float32)[_ORDER] / 100 for k, v in _MATERIALS.items()}

# How alive the living part is, January to December (0..1).
SEASONS: dict[str, tuple[float, ...]] = {
    "always": (1,) * 12,
    "leaf": (0, 0, 0.05, 0.35, 0.9, 1, 1, 1, 0.9, 0.55, 0.1, 0),
    "meadow": (0.6, 0.6, 0.75, 0.95, 1, 1, 0.95, 0.9, 0.9, 0.85, 0.7, 0.6),
    "dry summer": (0.8, 0.9, 1, 1, 0.7, 0.25, 0.05, 0, 0.05, 0.3, 0.6, 0.75),
    "alpine": (0.1, 0.1, 0.15, 0.3, 0.6, 0.9, 1, 0.9, 0.6, 0.35, 0.15, 0.1),
    "winter crop": (0.35, 0.4, 0.6, 0.9, 1, 0.8, 0.2, 0, 0, 0.1, 0.25, 0.35),
    "summer crop": (0, 0, 0, 0, 0.15, 0.6, 1, 1, 0.7, 0.2, 0, 0),
    "rape": (0.45, 0.45, 0.6, 0.95, 0.85, 0.5, 0.05, 0.1, 0.3, 0.45, 0.5, 0.45),
    "stubble": (0.1, 0.1, 0, 0, 0.1, 0.5, 1, 1, 0.8, 0.5, 0.3, 0.2),
    "irrigated": (0.1, 0.1, 0.2, 0.45, 0.8, 1, 1, 1, 0.8, 0.4, 0.15, 0.1),
    "rice": (0, 0, 0, 0, 0.1, 0.6, 1, 1, 0.6, 0.15, 0, 0),
    "vine": (0, 0, 0, 0.2, 0.7, 1, 1, 1, 0.9, 0.5, 0.1, 0),
    "reed": (0, 0, 0.05, 0.2, 0.6, 0.9, 1, 1, 0.8, 0.4, 0.1, 0),
    "bloom": (0, 0, 0.05, 0.2, 0.4, 0.6, 0.9, 1, 0.8, 0.4, 0.1, 0),
}
_DAYS = np.array([15.0, 46, 74, 105, 135, 166, 196, 227, 258, 288, 319, 349])  # the middle of each month


@dataclass(frozen=True)
class Part:
    """`share` of a class's area: `living` where its season is at 1, `resting` where it is at 0."""

    share: float
    living: str
    resting: str = ""
    season: str = "always"


@dataclass(frozen=True)
class Cover:
    """A class on the ground. The pattern's field, lowest values first, is dealt out to the parts.

    `rough`: relative brightness from pixel to pixel (crowns, roofs, waves).
    """

    pattern: str
    grain_px: float
    rough: float
    parts: tuple[Part, ...]


def _cover(
    pattern: str, grain_px: float, rough: float, *parts: tuple[float, str] | tuple[float, str, str, str]
) -> Cover:
    return Cover(pattern, grain_px, rough, tuple(Part(*p) for p in parts))


_LEAF = ("broad leaf", "bare twigs", "leaf")
_MEADOW = ("grass", "straw", "meadow")

COVERS: dict[int, Cover] = {
    111: _cover("streets", 6, 0.14, (0.5, "tiles"), (0.2, "concrete"), (0.3, "asphalt")),
    112: _cover("streets", 11, 0.12, (0.3, "tiles"), (0.35, *_MEADOW), (0.15, *_LEAF), (0.2, "asphalt")),
    121: _cover("parcels", 8, 0.08, (0.35, "metal"), (0.25, "concrete"), (0.3, "asphalt"), (0.1, *_MEADOW)),
    122: _cover("rows", 6, 0.08, (0.6, "asphalt"), (0.25, "rock"), (0.15, *_MEADOW)),
    123: _cover("parcels", 13, 0.06, (0.4, "concrete"), (0.15, "metal"), (0.2, "asphalt"), (0.25, "turbid water")),
    124: _cover("rows", 36, 0.04, (0.22, "concrete"), (0.78, *_MEADOW)),
    131: _cover("noise", 9, 0.10, (0.6, "rubble"), (0.3, "rock"), (0.1, "lagoon water")),
    132: _cover("noise", 4, 0.15, (0.4, "wet soil"), (0.2, "metal"), (0.2, "char"), (0.2, "straw")),
    133: _cover("parcels", 15, 0.06, (0.6, "dry soil"), (0.2, "concrete"), (0.2, "sand")),
    141: _cover("streets", 20, 0.06, (0.5, *_MEADOW), (0.35, *_LEAF), (0.15, "concrete")),
    142: _cover("parcels", 7, 0.03, (0.6, "crop", "grass", "meadow"), (0.2, *_LEAF), (0.1, "sand"), (0.1, "tiles")),
    211: _cover(
        "parcels",
        17,
        0.03,
        (0.35, "crop", "wet soil", "winter crop"),
        (0.25, "crop", "dry soil", "summer crop"),
        (0.15, "crop", "wet soil", "rape"),
        (0.25, "straw", "dry soil", "stubble"),
    ),
    212: _cover("trees", 25, 0.03, (0.65, "crop", "dry soil", "irrigated"), (0.35, "straw", "dry soil", "stubble")),
    213: _cover("parcels", 6, 0.02, (0.7, "crop", "river water", "rice"), (0.3, "crop", "mud", "rice")),
    221: _cover("rows", 4, 0.04, (0.5, "broad leaf", "bare twigs", "vine"), (0.5, "dry soil")),
    222: _cover("trees", 5, 0.05, (0.45, *_LEAF), (0.55, *_MEADOW)),
    223: _cover("trees", 4, 0.05, (0.4, "olive"), (0.6, "dry soil")),
    231: _cover("hedges", 22, 0.03, (0.9, *_MEADOW), (0.1, *_LEAF)),
    241: _cover("trees", 7, 0.05, (0.3, "olive"), (0.7, "crop", "dry soil", "winter crop")),
    242: _cover(
        "parcels",
        4.5,
        0.05,
        (0.22, "crop", "wet soil", "winter crop"),
        (0.2, "crop", "dry soil", "summer crop"),
        (0.2, *_MEADOW),
        (0.14, *_LEAF),
        (0.14, "straw", "dry soil", "stubble"),
        (0.1, "tiles"),
    ),
    243: _cover(
        "mosaic",
        9,
        0.06,
        (0.3, "crop", "dry soil", "winter crop"),
        (0.25, *_MEADOW),
        (0.3, *_LEAF),
        (0.15, "needles"),
    ),
    244: _cover("trees", 8, 0.05, (0.28, "hard leaf"), (0.72, "grass", "straw", "dry summer")),
    311: _cover("noise", 3.5, 0.10, (0.75, *_LEAF), (0.25, "leaf shade", "bare twigs", "leaf")),
    312: _cover("noise", 2, 0.12, (0.7, "needles"), (0.3, "needle shade")),
    313: _cover("noise", 6, 0.10, (0.5, "needles"), (0.5, *_LEAF)),
    321: _cover("noise", 20, 0.06, (0.75, "grass", "straw", "alpine"), (0.2, "straw"), (0.05, "rock")),
    322: _cover("noise", 8, 0.06, (0.75, "heath"), (0.25, "moss")),
    323: _cover("noise", 2.5, 0.08, (0.6, "hard leaf"), (0.3, "dry soil"), (0.1, "rock")),
    324: _cover(
        "noise", 3, 0.08, (0.27, *_LEAF), (0.4, "grass", "straw", "alpine"), (0.13, "wet soil"), (0.2, "needles")
    ),
    331: _cover("noise", 12, 0.05, (0.9, "sand"), (0.1, "straw")),
    332: _cover("noise", 6, 0.20, (0.7, "rock"), (0.2, "rubble"), (0.1, "snow")),
    333: _cover("noise", 4, 0.12, (0.5, "rock"), (0.3, "grass", "straw", "alpine"), (0.2, "dry soil")),
    334: _cover("noise", 10, 0.08, (0.8, "char"), (0.1, "dry soil"), (0.1, "straw")),
    335: _cover("noise", 15, 0.04, (0.65, "snow"), (0.35, "ice")),
    411: _cover("noise", 5, 0.06, (0.7, "reed", "dry reed", "reed"), (0.3, "humic water")),
    412: _cover("strings", 9, 0.05, (0.55, "moss"), (0.25, "dry reed"), (0.2, "humic water")),
    421: _cover("noise", 7, 0.05, (0.6, "salt grass"), (0.25, "mud"), (0.15, "turbid water")),
    422: _cover("parcels", 7, 0.03, (0.45, "brine"), (0.3, "salt"), (0.25, "lagoon water")),
    423: _cover("noise", 14, 0.04, (0.65, "mud"), (0.2, "turbid water"), (0.15, "sand")),
    511: _cover("noise", 10, 0.03, (0.8, "river water"), (0.2, "algae", "river water", "bloom")),
    512: _cover("noise", 25, 0.03, (0.7, "humic water"), (0.3, "algae", "humic water", "bloom")),
    521: _cover("noise", 15, 0.03, (0.8, "lagoon water"), (0.2, "river water")),
    522: _cover("noise", 15, 0.03, (0.85, "turbid water"), (0.15, "river water")),
    523: _cover("noise", 40, 0.04, (1.0, "clear water")),
}

# Mediterranean: what the rain-fed green does there.
_DRY = {"meadow": "dry summer", "alpine": "dry summer", "winter crop": "dry summer"}


@dataclass(frozen=True)
class Light:
    """What a whole scene shares. `day`: of the year; `season_days`: how much later than usual things grow."""

    day: int
    season_days: float
    dry: bool  # Mediterranean summers
    gain: float  # illumination that the atmospheric correction left over
    haze: float  # reflectance added at 490 nm
    relief: float  # relative brightness of slopes


def alive(season: str, day: float) -> float:
    """How green, 0..1, on that day of the year."""
    return float(np.interp(day, _DAYS, SEASONS[season], period=365))


def reflectances(part: Part, day: float, dry: bool) -> np.ndarray:
    """(band,) of a part on a day, in the order of BANDS."""
    season = _DRY.get(part.season, part.season) if dry else part.season
    live = alive(season, day)
    return live * MATERIALS[part.living] + (1 - live) * MATERIALS[part.resting or part.living]


def ground(rng: np.random.Generator, classes: np.ndarray, light: Light) -> np.ndarray:
    """Reflectance of a class map: (row, col) numbers in CLC -> (band, row, col) float32 at 10 m."""
    part_of = np.zeros(classes.shape, np.intp)
    rough = np.zeros(classes.shape, np.float32)
    spectra: list[np.ndarray] = []
    for number in np.flatnonzero(np.bincount(classes.ravel())):
        cover, here = COVERS[CLC[number].code], classes == number
        shares = [p.share * np.exp(0.2 * rng.standard_normal()) for p in cover.parts]
        part = cut(PATTERNS[cover.pattern](rng, cover.grain_px * rng.uniform(0.85, 1.2)), shares)
        part_of[here] = part[here] + len(spectra)
        rough[here] = cover.rough
        day = light.day - light.season_days + rng.normal(0, 4)
        spectra += [reflectances(p, day, light.dry) * np.exp(rng.normal(0, 0.07)) for p in cover.parts]
    cube = np.take(np.array(spectra, np.float32).T, part_of, axis=1)
    slope = light.relief * (noise(rng, 30) + np.float32(0.4) * noise(rng, 9))
    cube *= np.maximum(1 + rough * noise(rng, 1) + slope, np.float32(0.2))
    return cube


_HAZE = np.array(
    [{"B01": 1.5, "B02": 1.0, "B03": 0.6, "B04": 0.35, "B05": 0.25}.get(b, 0.1) for b in BANDS], np.float32
)


def through_air(cube: np.ndarray, light: Light) -> np.ndarray:
    """The ground as the optics see it: blurred to the sensor's point spread, dimmed and hazed."""
    cube = _blur(cube)
    cube *= np.float32(light.gain)
    cube += (_HAZE * np.float32(light.haze))[:, None, None]
    return cube


def _blur(x: np.ndarray) -> np.ndarray:
    """Weights 1, 4, 1 along rows and columns, edges repeated: a modulation transfer of 1/3 at the Nyquist frequency."""
    y = x * np.float32(4)
    y[:, 1:] += x[:, :-1]
    y[:, :-1] += x[:, 1:]
    y[:, [0, -1]] += x[:, [0, -1]]
    z = y * np.float32(4)
    z[:, :, 1:] += y[:, :, :-1]
    z[:, :, :-1] += y[:, :, 1:]
    z[:, :, [0, -1]] += y[:, :, [0, -1]]
    z *= np.float32(1 / 36)
    return z


def add_cloud(rng: np.random.Generator, cube: np.ndarray) -> np.ndarray:
    """One bank of cloud over 4 to 25 per cent of the patch, and its shadow beside it. In place."""
    field = noise(rng, 32) + np.float32(0.35) * noise(rng, 9)
    edge = np.quantile(field[::3, ::3], 1 - rng.uniform(0.04, 0.25))
    thick = np.clip((field - np.float32(edge)) * 2.5 + 0.5, 0, 1).astype(np.float32) * np.float32(0.92)
    down, right = rng.integers(8, 18), rng.integers(-14, 15)
    line = np.arange(SIZE_PX)
    shade = thick[np.ix_(np.clip(line + down, 0, SIZE_PX - 1), np.clip(line + right, 0, SIZE_PX - 1))]
    cube *= 1 - np.float32(0.55) * shade
    cube += thick * (MATERIALS["cloud"][:, None, None] - cube)
    return cube


def sense(rng: np.random.Generator, cube: np.ndarray, noise_sd: float) -> dict[str, np.ndarray]:
    """Digital numbers at each band's own pixel size: area means of `cube`, with noise of `noise_sd` reflectance.

    cube: (band, row, col) float32 at 10 m. Returns {group: (band, row, col) uint16}; 0, no data, never occurs.
    """
    out, first = {}, 0
    for pixel_m, names in SENTINEL_2_L2A.groups:
        here = _area_means(cube[first : first + len(names)], int(pixel_m) // PIXEL_M)
        here = here + np.float32(noise_sd) * rng.standard_normal(here.shape, dtype=np.float32)
        here *= np.float32(1 / SENTINEL_2_L2A.scale)
        out[f"{pixel_m:g}m"] = np.clip(np.rint(here), 1, 65535).astype(np.uint16)
        first += len(names)
    return out


def _area_means(x: np.ndarray, step: int) -> np.ndarray:
    """Means over squares of `step` pixels: (band, row, col) -> (band, row / step, col / step)."""
    if step == 1:
        return x
    rows = x.reshape(len(x), -1, step, SIZE_PX).sum(2)
    total = rows[:, :, ::step].copy()
    for k in range(1, step):
        total += rows[:, :, k::step]
    return total * np.float32(1 / step**2)
