"""Where a synthetic patch lies, when it was taken, which classes meet there, and the map that they make.

Places: Sentinel-2 tiles in UTM zones 29 to 35, in regions that grow different landscapes. Consecutive patches are
neighbours on the 1200 m grid of a tile and share a date, as BigEarthNet's do, so that splits by block have a meaning.
How often a class occurs is not set here: it is solved from BigEarthNet's patch counts (`presence`).
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import numpy as np

from jeoparda.nomenclature import CLC
from jeoparda.synth.pattern import COL, PIXEL_M, ROW, SIZE_PX, noise

PATCH_M = SIZE_PX * PIXEL_M
PATCHES_A_CLUSTER = 10  # neighbours: 5 x 2 patches, one main landscape
CLUSTERS_A_SCENE = 5  # a scene: one tile and one date
_CELLS = 9  # a tile (91 x 91 patches) has 9 x 9 cells of 10 x 10; a cluster has a cell to itself
_BIGEARTHNET_PATCHES = 590_326
_GLACIER_PATCHES = 300  # BigEarthNet has none; some, so that the class that ingest drops occurs

# Which classes meet, and how much more at home (odds) a class is in one landscape than in another.
LANDSCAPES: dict[str, dict[int, float]] = {
    "boreal forest": {312: 3, 313: 3, 324: 2.5, 412: 3, 411: 1, 512: 1.2, 243: 0.6, 211: 0.4, 311: 0.4, 131: 0.3},
    "lakes": {512: 6, 312: 2, 313: 2, 324: 1.5, 411: 2, 243: 0.6, 112: 0.4, 142: 0.5, 311: 0.6},
    "hills": {311: 4, 313: 2.5, 312: 1.2, 324: 1, 231: 0.7, 243: 1, 211: 0.3, 242: 0.6, 321: 1, 131: 1},
    "farmland": {
        211: 3,
        231: 1.5,
        242: 2,
        243: 1.5,
        311: 1,
        313: 0.5,
        312: 0.4,
        112: 2,
        222: 1,
        511: 1,
        142: 0.5,
        131: 1,
    }
    | {221: 0.5, 512: 0.4, 121: 0.5, 122: 0.5, 411: 0.3, 133: 0.3},
    "atlantic grassland": {
        231: 4,
        412: 2,
        211: 1,
        243: 1.3,
        324: 1.2,
        312: 0.5,
        322: 3,
        112: 0.6,
        321: 1,
        512: 0.4,
        511: 0.6,
    },
    "mountains": {312: 1.5, 311: 1, 313: 1, 321: 4, 332: 5, 333: 5, 322: 3, 335: 5, 231: 0.5, 324: 1, 512: 0.4},
    "mediterranean": {
        223: 4,
        221: 3,
        244: 5,
        323: 4,
        241: 4,
        222: 3,
        311: 1.2,
        324: 1,
        242: 1,
        243: 1,
        334: 4,
        313: 0.4,
    }
    | {211: 0.6, 312: 0.5, 321: 1, 112: 0.6},
    "irrigated plain": {212: 8, 213: 8, 211: 1, 511: 2, 242: 0.7, 112: 0.8, 222: 1, 244: 0.4, 411: 0.5},
    "city": {
        111: 6,
        112: 6,
        121: 6,
        122: 5,
        124: 5,
        132: 4,
        133: 5,
        141: 6,
        142: 4,
        211: 0.5,
        511: 2,
        512: 0.4,
        131: 1,
    },
    "coast": {
        523: 6,
        331: 6,
        423: 4,
        123: 5,
        421: 2,
        112: 1.5,
        312: 0.5,
        324: 0.5,
        231: 0.5,
        211: 0.4,
        322: 1,
        332: 0.6,
    },
    "wet coast": {522: 8, 521: 8, 421: 8, 422: 8, 423: 6, 523: 2, 411: 2, 231: 0.6, 211: 0.5, 213: 2, 331: 2, 123: 2},
    "open sea": {523: 30},
}


@dataclass(frozen=True)
class Region:
    """`north_km`: northings of its tiles' lower edges; `landscapes`: name -> how much of it; `relief` as in Light."""

    zone: int
    north_km: tuple[int, int]
    landscapes: dict[str, float]
    dry: bool = False
    relief: float = 0.02


REGIONS: tuple[Region, ...] = (  # equally frequent
    Region(
        29, (4100, 4600), {"mediterranean": 6, "irrigated plain": 1.2, "coast": 1, "open sea": 1, "city": 0.4}, dry=True
    ),
    Region(29, (5700, 6000), {"atlantic grassland": 5, "coast": 1.5, "open sea": 1, "wet coast": 0.6, "lakes": 0.6}),
    Region(
        30,
        (4700, 5300),
        {"hills": 2, "farmland": 3, "mediterranean": 1.5, "coast": 1, "wet coast": 0.5, "open sea": 0.6},
    ),
    Region(31, (5400, 5700), {"farmland": 5, "city": 1.5, "hills": 2, "coast": 0.4, "open sea": 0.4}),
    Region(32, (5100, 5300), {"mountains": 4, "farmland": 2, "hills": 2, "city": 0.7, "lakes": 0.6}, relief=0.09),
    Region(33, (5200, 5400), {"mountains": 2, "farmland": 3, "hills": 4, "city": 0.5}, relief=0.06),
    Region(34, (4700, 5100), {"farmland": 5, "hills": 4, "irrigated plain": 0.6, "city": 0.4}, relief=0.04),
    Region(
        34,
        (6000, 6300),
        {"farmland": 3, "hills": 2, "boreal forest": 2, "lakes": 1, "coast": 1, "wet coast": 0.3, "open sea": 1},
    ),
    Region(
        35, (6700, 7000), {"boreal forest": 5, "lakes": 3, "coast": 0.8, "open sea": 1, "farmland": 0.7, "city": 0.2}
    ),
    Region(35, (7000, 7400), {"boreal forest": 7, "lakes": 2, "open sea": 0.8}),
)
_EAST_KM = (300, 400, 500, 600, 700)
_MONTHS = (3, 4, 8, 11, 14, 13, 12, 12, 10, 7, 4, 2)  # January.. : how many scenes of a hundred; winters are cloudy
_FIRST_DAY = datetime(2017, 6, 1)
_SLOTS = 1200  # seconds within which a zone's scenes of one day begin
# One kind of random number each, so that none depends on how many another took.
_SCENE, _CLUSTER, _TILES, _CELL = 1, 2, 3, 4


@dataclass(frozen=True)
class Place:
    """Where and when a patch was taken. `ulx_m`, `uly_m`: its upper left corner in UTM; `scene`, `cluster`: numbers."""

    name: str
    tile: str
    zone: int
    ulx_m: int
    uly_m: int
    taken: datetime
    region: Region
    scene: int
    cluster: int
    landscape: str


def place(seed: int, index: int) -> Place:
    """The place of a patch: a pure function, and no two patches of a seed share a name."""
    cluster, member = divmod(index, PATCHES_A_CLUSTER)
    scene, turn = divmod(cluster, CLUSTERS_A_SCENE)
    visit, number = divmod(scene, len(REGIONS))
    region = REGIONS[number]
    east_m, north_m, visit = _tile(seed, number, visit)
    cells = np.random.default_rng((seed, _CELL, number, east_m, north_m)).permutation(_CELLS**2)
    cell = int(cells[(visit * CLUSTERS_A_SCENE + turn) % _CELLS**2])
    rng = np.random.default_rng((seed, _CLUSTER, cluster))
    col = 10 * (cell % _CELLS) + int(rng.integers(0, 6)) + member % 5
    row = 10 * (cell // _CELLS) + int(rng.integers(0, 9)) + member // 5
    names = list(region.landscapes)
    weights = np.array([region.landscapes[n] for n in names])
    satellite, taken = _taken(seed, scene, region.zone)
    return Place(
        name=f"S2{satellite}_MSIL2A_{taken:%Y%m%dT%H%M%S}_{col}_{row}",
        tile=mgrs_tile(region.zone, east_m, north_m),
        zone=region.zone,
        # tiles begin on multiples of 60 m, the upper edge at the grid line above
        ulx_m=east_m // 60 * 60 + PATCH_M * col,
        uly_m=math.ceil((north_m + 100_000) / 60) * 60 - PATCH_M * row,
        taken=taken,
        region=region,
        scene=scene,
        cluster=cluster,
        landscape=names[int(rng.choice(len(names), p=weights / weights.sum()))],
    )


def _tile(seed: int, region: int, visit: int) -> tuple[int, int, int]:
    """Easting and northing (m) of the tile of a region's scene, and how many scenes that tile had before."""
    low, high = REGIONS[region].north_km
    tiles = [(e, n) for n in range(low, high, 100) for e in _EAST_KM]
    order = np.random.default_rng((seed, _TILES, region)).permutation(len(tiles))
    before, turn = divmod(visit, len(tiles))
    e, n = tiles[order[turn]]
    return e * 1000, n * 1000, before


def _taken(seed: int, scene: int, zone: int) -> tuple[str, datetime]:
    """Satellite and moment. Unique: scenes of one second of the day are `_SLOTS` apart and fall on other days."""
    lap, slot = divmod(scene, _SLOTS)
    rng = np.random.default_rng((seed, _SCENE, slot))
    month = int(rng.choice(12, p=np.array(_MONTHS) / sum(_MONTHS))) + 1
    first = datetime(2017 if month >= 6 else 2018, month, 1)
    day = ((first - _FIRST_DAY).days + int(rng.integers(0, 28)) + lap) % 365
    # half past ten of local solar time, roughly; a zone further east is 24 minutes earlier
    second = 11 * 3600 + 1800 - (zone - 29) * 1440 + slot
    return "AB"[int(rng.integers(0, 2))], _FIRST_DAY + timedelta(days=day, seconds=second)


def mgrs_tile(zone: int, east_m: int, north_m: int) -> str:
    """The name of the 100 km square with that lower left corner, as T34VER without the T.

    Source: Military Grid Reference System; bands of 8 degrees from C at 80 degrees south, columns in three sets of
    eight letters, rows in a cycle of twenty that begins at F in even zones; I and O are left out.
    """
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    latitude = (north_m + 50_000) / 111_100
    band = letters[2 + min(int((latitude + 80) // 8), 19)]
    column = letters[(zone - 1) % 3 * 8 + east_m // 100_000 - 1]
    row = letters[(north_m // 100_000 + (5 if zone % 2 == 0 else 0)) % 20]
    return f"{zone}{band}{column}{row}"


@lru_cache(1)
def presence() -> dict[str, np.ndarray]:
    """{landscape: (class,) probability that a patch there has that class}, classes as in CLC.

    Solved so that, over all regions, each class comes as often as in BigEarthNet: the odds of a class are scaled by
    one factor, the same in all landscapes, found by bisection.
    """
    weights = np.zeros(len(LANDSCAPES))
    for region in REGIONS:
        total = sum(region.landscapes.values())
        weights += [region.landscapes.get(name, 0) / total / len(REGIONS) for name in LANDSCAPES]
    odds = np.array([[classes.get(c.code, 0) for c in CLC] for classes in LANDSCAPES.values()])
    wanted = np.array([c.patches or _GLACIER_PATCHES for c in CLC]) / _BIGEARTHNET_PATCHES
    low, high = np.zeros(len(CLC)), np.full(len(CLC), 100.0)
    for _ in range(50):
        middle = (low + high) / 2
        much = weights @ np.minimum(middle * odds, 0.97) > wanted
        low, high = np.where(much, low, middle), np.where(much, middle, high)
    return dict(zip(LANDSCAPES, np.minimum(low * odds, 0.97), strict=True))


_OPEN_WATER = (521, 522, 523)  # one side of a coast line
_SHORE = (123, 331, 421, 422, 423)  # along it
_LINES = (122, 511)  # bands across the patch
_WIDEST_LINE_PX = round(0.16 * SIZE_PX**2)  # about 190 m wide
_MOST_CLASSES = 7


def present(rng: np.random.Generator, where: Place) -> list[int]:
    """Numbers in CLC of the classes that meet in a patch; most have the main landscape of their cluster."""
    names = list(where.region.landscapes)
    name = where.landscape
    if rng.random() > 0.75:
        weights = np.array([where.region.landscapes[n] for n in names])
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    chance = presence()[name]
    drawn = np.flatnonzero(rng.random(len(CLC)) < chance)
    if not len(drawn):
        drawn = np.array([rng.choice(len(CLC), p=chance / chance.sum())])
    return [int(i) for i in rng.permutation(drawn)[:_MOST_CLASSES]]


def class_map(rng: np.random.Generator, classes: list[int], least: float) -> np.ndarray:
    """A map of those classes (numbers in CLC): (row, col) uint8 at 10 m. Each covers at least the share `least`.

    Water lies beyond a coast line, shores along it, rivers and roads cross, the rest are polygons of about CORINE's
    smallest mapped size, 25 ha. A class that finds no room is left out, as CORINE leaves out what is too small.
    """
    classes = classes[: max(1, int(0.8 / least))]
    floor = min(1.6 * least, 0.9 / len(classes))
    shares = floor + (1 - floor * len(classes)) * rng.dirichlet(np.full(len(classes), 2.5))
    least_px = math.ceil(least * SIZE_PX**2)
    pixels = {c: max(round(s * SIZE_PX**2), least_px) for c, s in zip(classes, shares, strict=True)}
    kinds = [[c for c in classes if CLC[c].code in kind] for kind in (_OPEN_WATER, _SHORE, _LINES)]
    rest = [c for c in classes if not any(c in kind for kind in kinds)]
    for kind in reversed(kinds):
        if not rest and kind:
            rest.append(kind.pop())  # something has to fill the patch
    water, shore, lines = kinds
    flat = np.full(SIZE_PX**2, 255, np.uint8)
    if water or shore:
        _lay(flat, _line(rng), [(c, pixels[c]) for c in (*water, *shore)])
    for c in lines:
        _lay(flat, np.abs(_line(rng, 15.0)), [(c, min(pixels[c], max(least_px, _WIDEST_LINE_PX)))])
    out = flat.reshape(SIZE_PX, SIZE_PX)
    free = out == 255
    out[free] = _polygons(rng, rest, pixels, least_px, free)
    return out


def _line(rng: np.random.Generator, bend_px: float = 9.0) -> np.ndarray:
    """Signed distance (px) from a winding line across the patch."""
    angle = rng.uniform(0, 2 * np.pi)
    off = rng.uniform(-35, 35)
    straight = np.cos(angle) * (COL - SIZE_PX / 2) + np.sin(angle) * (ROW - SIZE_PX / 2) - off
    return straight.astype(np.float32) + np.float32(bend_px) * noise(rng, 36) + 2 * noise(rng, 9)


def _lay(out: np.ndarray, field: np.ndarray, bands: list[tuple[int, int]]) -> None:
    """Give each (class, pixels) in turn the free pixels where the field is lowest. out: (row * col,), 255 is free."""
    free = np.flatnonzero(out == 255)
    order = free[np.argsort(field.ravel()[free], kind="stable")]
    for number, count in bands:
        out[order[:count]] = number
        order = order[count:]


def _polygons(
    rng: np.random.Generator, classes: list[int], pixels: dict[int, int], least_px: int, free: np.ndarray
) -> np.ndarray:
    """Classes of the free pixels: a warped power diagram whose weights grow until each class has its share."""
    if len(classes) == 1:
        return np.full(np.count_nonzero(free), classes[0], np.uint8)
    owner = np.concatenate([np.arange(len(classes)), rng.integers(0, len(classes), 1 + rng.poisson(1.5))])
    far = _distances(rng, len(owner), free)
    wanted = np.array([pixels[c] for c in classes], np.float32)
    wanted /= wanted.sum()
    weight = np.zeros(len(classes), np.float32)
    some = far[:, ::13]
    for _ in range(8):
        found = np.bincount(owner[np.argmin(some - weight[owner][:, None], 0)], minlength=len(classes)) / some.shape[1]
        weight += 1500 * (wanted - found).astype(np.float32)
    return _settle(far - weight[owner][:, None], owner, np.array(classes, np.uint8), least_px)


def _distances(rng: np.random.Generator, count: int, free: np.ndarray) -> np.ndarray:
    """Squared distances (px) of the free pixels from `count` seeds in warped space: (seed, free pixel) float32."""
    y, x = ((axis + 7 * noise(rng, 28) + 2 * noise(rng, 9))[free] for axis in (ROW, COL))
    seeds = rng.uniform(-5, SIZE_PX + 5, (count, 2)).astype(np.float32)
    return np.square(y - seeds[:, :1]) + np.square(x - seeds[:, 1:])


def _settle(far: np.ndarray, owner: np.ndarray, classes: np.ndarray, least_px: int) -> np.ndarray:
    """The nearest seed's class, after the classes that cover less than `least_px` have given way."""
    while True:
        mine = owner[np.argmin(far, 0)]
        count = np.bincount(mine, minlength=len(classes))
        alive = np.bincount(owner[np.isfinite(far[:, 0])], minlength=len(classes)) > 0
        small = np.flatnonzero(alive & (count < least_px))
        if not len(small) or alive.sum() == 1:
            return classes[mine]
        far[owner == small[np.argmin(count[small])]] = np.inf
