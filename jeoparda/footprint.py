"""The ground under patches: which patches of one set lie on ground of another, whatever their CRSs.

On the Earth (or another body with a CRS) a footprint is four points of a sphere, so neighbouring UTM zones, the
antimeridian and the poles need no care. An image without a CRS is a plane of its own, in pixels: patches of two
such images cannot be compared, and are taken to be apart.

Two footprints are apart when a line along a side of one of them has the other on its far side: the separating axis
theorem, which on a sphere speaks of great circles. A side of a patch is not quite an arc of one; over a patch of L
metres at latitude f it strays by at most L^2 tan(f) / 8R, 0.05 m for 1.2 km at 60 degrees.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

EARTH_M = 6_371_007.0  # mean radius
LARGEST_M = 1_000_000.0  # from the middle of a footprint to its corner; beyond it great circles are no model of sides
_CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)  # (col, row) in sides of the patch, around it
NOWHERE = -1  # plane of a patch without a footprint
_PAIRS = 1 << 18  # compared at once: some 100 MB
_QUERIES = 1 << 16


@dataclass(frozen=True)
class Footprints:
    """Footprints of n patches; index it with a mask or numbers for a part of them.

    corners  (n, 4, 3) on the globe from the centre of the body [m]; of an image without CRS (x, y, 1) [px]
    middle   (n, 3) of the corners;  reach (n,): from it to the furthest corner
    pixel    (n,) side of a pixel of the finest grid
    plane    (n,) int64: 0 on the Earth, NOWHERE, else a number of the other body or of the image
    flat     (n,) bool: of an image without CRS
    """

    corners: np.ndarray
    middle: np.ndarray
    reach: np.ndarray
    pixel: np.ndarray
    plane: np.ndarray
    flat: np.ndarray

    def __len__(self) -> int:
        return len(self.plane)

    def __getitem__(self, which: np.ndarray) -> "Footprints":
        return Footprints(*(getattr(self, f.name)[which] for f in fields(self)))


def footprints(
    crs: np.ndarray, crs_names: tuple[str, ...], transform: np.ndarray, side_px: int, image: np.ndarray
) -> tuple[Footprints, dict[str, np.ndarray]]:
    """The footprints of patches of `side_px` pixels, and fault -> (n,) bool of those that have none: of a CRS that is
    not understood or not defined there, of no size or too large. They overlap nothing.

    crs: (n,) index into crs_names, where "" is no CRS. transform: (n, 6) of the finest grid, (col, row) to (x, y) in
    the CRS's units; rotated ones too. image: (n,) int64, a number of the image that a patch without CRS is cut from.
    """
    corners = np.zeros((len(transform), 4, 3))
    plane = np.zeros(len(transform), np.int64)
    flat = np.zeros(len(transform), bool)
    faults: dict[str, np.ndarray] = {}
    for number, name in enumerate(crs_names):
        which = np.flatnonzero(crs == number)
        x, y = _corners(transform[which], side_px)
        if not name:
            corners[which], plane[which], flat[which] = np.stack([x, y, np.ones_like(x)], -1), image[which], True
            continue
        try:
            points, plane[which] = _on_body(_crs(name), x, y)
        except ProjError as e:
            faults[f"CRS {_short(name)} is not understood: {e}"] = np.isin(crs, number)
            continue
        bad = ~np.isfinite(points).all((1, 2))
        large = ~bad & (_reach(points) > LARGEST_M)
        corners[which] = np.where((bad | large)[:, None, None], 0.0, points)
        _note(faults, f"outside of where CRS {_short(name)} is defined", len(crs), which[bad])
        _note(faults, f"more than {2 * LARGEST_M / 1000:.0f} km across in CRS {_short(name)}", len(crs), which[large])
    area = transform[:, 0] * transform[:, 4] - transform[:, 1] * transform[:, 3]
    _note(faults, "of no size, by the transform", len(crs), np.flatnonzero(~(np.abs(area) > 0)))  # nan too
    for who in faults.values():
        plane[who] = NOWHERE
    pixel = np.sqrt(((corners[:, 1] - corners[:, 0]) ** 2).sum(-1)) / side_px
    return Footprints(corners, corners.mean(1), _reach(corners), pixel, plane, flat), faults


def _note(faults: dict[str, np.ndarray], fault: str, n: int, who: np.ndarray) -> None:
    if len(who):
        faults[fault] = faults.get(fault, np.zeros(n, bool)) | np.isin(np.arange(n), who)


def _reach(corners: np.ndarray) -> np.ndarray:
    return np.sqrt(((corners - corners.mean(1, keepdims=True)) ** 2).sum(-1).max(1))


def _corners(transform: np.ndarray, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the corners, (n, 4) each, in the CRS's units."""
    a, b, c, d, e, f = transform.T[:, :, None]
    col, row = (_CORNERS * side_px).T
    return a * col + b * row + c, d * col + e * row + f


def _on_body(crs: CRS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
    """The points as (n, 4, 3) metres from the centre of the body, and its number: 0 for the Earth."""
    radius = crs.ellipsoid.semi_major_metre  # type: ignore[union-attr]  # _crs saw to it
    earth = abs(radius / EARTH_M - 1) < 0.01
    turn = Transformer.from_crs(crs, "EPSG:4326" if earth else crs.geodetic_crs, always_xy=True)
    lon, lat = turn.transform(x, y)
    lon[~np.isfinite(lon)] = np.nan
    lon, lat = np.radians(lon), np.radians(np.where(np.isfinite(lat), lat, np.nan))
    points = np.stack([np.cos(lon) * np.cos(lat), np.sin(lon) * np.cos(lat), np.sin(lat)], -1)
    points *= EARTH_M if earth else radius
    return points, 0 if earth else round(radius)


def _crs(name: str) -> CRS:
    """ProjError where it is not understood, or says nothing of where on a globe."""
    crs = CRS.from_user_input(name)
    if crs.ellipsoid is None or crs.geodetic_crs is None:
        raise CRSError(f"a {crs.type_name}; expected a geographic or projected CRS, or none")
    return crs


def _short(name: str) -> str:
    return name if len(name) < 60 else f"{name[:57]}..."


def metres_per_unit(name: str) -> float:
    """Metres of a unit of the CRS's coordinates; of a degree, those along a meridian. 1 without a CRS, and for one that
    is not understood: `footprints` says so of its patches."""
    try:
        crs = _crs(name) if name else None
    except ProjError:
        crs = None
    if crs is None:
        return 1.0
    factor = crs.axis_info[0].unit_conversion_factor
    return factor * crs.ellipsoid.semi_major_metre if crs.is_geographic and crs.ellipsoid else factor


def overlapping(a: Footprints, b: Footprints) -> np.ndarray:
    """(a,) bool: which footprints of `a` lie on ground of `b`, by more than half a pixel across: a common side is no
    overlap. A patch of both sets overlaps itself."""
    return within(a, b, 0.0)


def within(a: Footprints, b: Footprints, buffer_m: float) -> np.ndarray:
    """(a,) bool: which footprints of `a` overlap `b` or come nearer to it than `buffer_m` metres, sideways or along;
    corner to corner that may be up to the diagonal of that. In images without a CRS it is in pixels."""
    found = np.zeros(len(a), bool)
    for who in _of_like_size(a):
        for of in _of_like_size(b):
            _search(a, b, who, of, buffer_m, found)
    return found


def _of_like_size(ground: Footprints) -> list[np.ndarray]:
    """Numbers of the footprints, those together that differ in size by less than 4 to 1: one huge footprint among
    many small ones would otherwise be looked for at the scale of the huge one, everywhere."""
    size = np.floor(np.log2(ground.reach, out=np.full(len(ground), -1e9), where=ground.plane != NOWHERE) / 2)
    return [np.flatnonzero(size == s) for s in np.unique(size[ground.plane != NOWHERE])]


def _search(a: Footprints, b: Footprints, who: np.ndarray, of: np.ndarray, buffer_m: float, found: np.ndarray) -> None:
    """Mark in `found` those footprints `who` of `a` that are within the buffer of one of the footprints `of` of `b`."""
    far = float(a.reach[who].max() + b.reach[of].max()) + buffer_m * np.sqrt(2)
    # Cubes of 2 far: whatever is near a point lies in the 8 cubes around it
    keys = _cube(b.plane[of], np.floor(b.middle[of] / (2 * far)))
    order = np.argsort(keys, kind="stable")
    keys, of = keys[order], of[order]
    for start in range(0, len(who), _QUERIES):
        part = who[start : start + _QUERIES]
        cubes = np.floor((a.middle[part] - far) / (2 * far))
        for step in product((0, 1), repeat=3):
            key = _cube(a.plane[part], cubes + step)
            low, high = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
            for i, k in _pairs(low, high):
                left, right = part[i], of[k]
                near = ~found[left] & _near(a, b, left, right, buffer_m)
                left, right = left[near], right[near]
                found[left[_meet(a, b, left, right, buffer_m)]] = True


def _cube(plane: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """A number of each cube (n,) uint64. Two cubes may share one: what they hold is compared by its place anyway."""
    x, y, z = cell.astype(np.int64).astype(np.uint64).T
    mixed = plane.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ x * np.uint64(0xC2B2AE3D27D4EB4F)
    return mixed ^ y * np.uint64(0x165667B19E3779F9) ^ z * np.uint64(0xD6E8FEB86659FD93)


def _pairs(low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(i, k) of every k from low[i] up to high[i], about _PAIRS at a time."""
    some = np.flatnonzero(high > low)
    low, count = low[some], (high - low)[some]
    ends = np.cumsum(count)
    start = 0
    while start < len(some):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        n = count[start:stop]
        first = low[start:stop] - (ends[start:stop] - n - done)
        yield np.repeat(some[start:stop], n), np.repeat(first, n) + np.arange(n.sum())
        start = stop


def _near(a: Footprints, b: Footprints, i: np.ndarray, j: np.ndarray, buffer_m: float) -> np.ndarray:
    """Whether the circles around two footprints meet: the cheap part of the test."""
    apart = ((a.middle[i] - b.middle[j]) ** 2).sum(-1)
    return (a.plane[i] == b.plane[j]) & (apart < (a.reach[i] + b.reach[j] + np.sqrt(2) * buffer_m) ** 2)


def _meet(a: Footprints, b: Footprints, i: np.ndarray, j: np.ndarray, buffer_m: float) -> np.ndarray:
    """Whether no side of footprint i of `a` or j of `b` has the other one beyond it."""
    p, q, flat = a.corners[i], b.corners[j], a.flat[i]
    gap = np.maximum(_gap(p, q, flat), _gap(q, p, flat))
    return gap < buffer_m - 0.5 * np.minimum(a.pixel[i], b.pixel[j])


def _gap(p: np.ndarray, q: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """(n,) how far `q` lies beyond the side of `p` that it lies furthest beyond; negative where they overlap.

    p, q: (n, 4, 3) corners around footprints. flat: (n,). On the globe a side's plane goes through the centre of the
    body; in a plane the same products of (x, y, 1) make its line.
    """
    # from a difference: the product of two whole coordinates would lose the last digits
    normal = np.cross(p, np.roll(p, -1, 1) - p)
    normal /= np.sqrt((normal[..., :2] ** 2).sum(-1) + np.where(flat[:, None], 0.0, normal[..., 2] ** 2))[..., None]
    inward = np.sign(np.einsum("nsk,nsk->ns", normal, np.roll(p, -2, 1)))[..., None]
    depth = (np.einsum("nsk,nck->nsc", normal, q) * inward).max(-1)  # of the corner furthest on the inner side
    return -depth.min(-1)
