"""Footprints against planted overlaps in two UTM zones, at the antimeridian and at a pole, and against shapely."""

import time

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from jeoparda.footprint import footprints, metres_per_unit, overlapping, within

SIDE = 120  # px
TO_LAEA = {f"EPSG:326{z}": Transformer.from_crs(f"EPSG:326{z}", "EPSG:3035", always_xy=True) for z in (32, 33)}


def ground(*patches, side=SIDE):
    """patches: (crs, transform, image=0) -> Footprints, every one of them with a place."""
    found, faults = several(*patches, side=side)
    assert not faults
    return found


def several(*patches, side=SIDE):
    names = tuple(dict.fromkeys(p[0] for p in patches))
    crs = np.array([names.index(p[0]) for p in patches])
    image = np.array([p[2] if len(p) > 2 else 0 for p in patches], np.int64)
    return footprints(crs, names, np.array([p[1] for p in patches], float), side, image)


def utm(zone, x, y, pixel=10.0, angle=0.0):
    """A patch with its upper left corner at (x, y), turned about it by `angle` degrees."""
    c, s = np.cos(np.radians(angle)) * pixel, np.sin(np.radians(angle)) * pixel
    return f"EPSG:326{zone}", (c, s, x, s, -c, y)


def meet(a, b, **more):
    one, other = ground(a, **more), ground(b, **more)
    answer = bool(overlapping(one, other)[0])
    assert answer == bool(overlapping(other, one)[0])
    return answer


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (0, 0, True),
        (1200, 0, False),
        (0, -1200, False),
        (1200, 1200, False),
        (1190, 0, True),
        (1196, 0, False),
        (1190, 1190, True),
        (1300, 0, False),
        (-600, 600, True),
        (-1190, 5, True),
    ],
)
def test_common_sides_are_no_overlap_and_a_pixel_is(dx, dy, expected):
    assert meet(utm(33, 399_960, 5_400_000), utm(33, 399_960 + dx, 5_400_000 + dy)) is expected


def test_the_same_ground_in_two_zones():
    at = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True)
    here = utm(32, 710_000, 5_400_000)
    x, y = at.transform(710_000 + 600, 5_400_000 - 600)  # its middle
    assert meet(here, utm(33, x - 600, y + 600))
    assert meet(here, utm(33, x - 600 + 1000, y + 600))
    assert not meet(here, utm(33, x - 600 + 1400, y + 600))
    # the zones' grids are turned by 4.5 degrees: half as wide as 600 (cos + sin) = 645 m, they meet up to 1245 m apart
    assert meet(here, utm(33, x - 600 + 1230, y + 600))
    assert not meet(here, utm(33, x - 600 + 1260, y + 600))


def test_turned_patches_are_more_than_their_bounds():
    diamond = utm(33, 500_000, 5_000_000, angle=45)
    a, b, c, d, e, f = diamond[1]
    corner = (a * SIDE + b * SIDE + c, d * SIDE + e * SIDE + f)
    assert meet(diamond, utm(33, *corner)) is False  # beside it, though inside its bounds' corner
    assert meet(diamond, utm(33, (500_000 + corner[0]) / 2, (5_000_000 + corner[1]) / 2))


def test_across_the_antimeridian_and_over_the_pole():
    degree = 0.1 / SIDE
    west = ("EPSG:4326", (degree, 0, 179.95, 0, -degree, 10.0))  # to 180.05
    east = ("EPSG:4326", (degree, 0, -180.0, 0, -degree, 10.05))
    assert meet(west, east)
    assert not meet(("EPSG:4326", (degree, 0, 179.9, 0, -degree, 10.0)), east)  # a common side at 180 degrees
    pole = ("EPSG:3413", (10.0, 0, -600.0, 0, -10.0, 600.0))
    assert meet(pole, ("EPSG:3995", (7.0, 7.0, 0.0, 7.0, -7.0, 0.0)))
    assert meet(pole, ("EPSG:4326", (1e-4, 0, 42.0, 0, -1e-4, 89.999)))
    assert not meet(pole, ("EPSG:3995", (10.0, 0, 2000.0, 0, -10.0, 2000.0)))


def test_images_without_crs_are_worlds_of_their_own():
    t = (1.0, 0, 40.0, 0, 1.0, 7.0)
    there = (1.0, 0, 40.0 + SIDE, 0, 1.0, 7.0)
    assert meet(("", t, 5), ("", t, 5)) and not meet(("", t, 5), ("", t, 6))
    assert not meet(("", t, 5), ("", there, 5))
    assert not meet(("", t, 0), utm(33, 40, 7)) and not meet(("", t, 0), utm(33, 0, 0))


def test_other_bodies():
    mars, moon = "+proj=eqc +R=3396190 +units=m", "+proj=eqc +R=1737400 +units=m"
    t = (10.0, 0, 1000.0, 0, -10.0, 1000.0)
    assert meet((mars, t), (mars, t)) and not meet((mars, t), (moon, t))
    assert not meet((mars, t), ("EPSG:32631", t))
    assert metres_per_unit(mars) == 1 and metres_per_unit("EPSG:4326") == pytest.approx(111_319.5, abs=1)
    assert metres_per_unit("EPSG:2264") == pytest.approx(0.3048006) and metres_per_unit("") == 1  # US survey feet


def test_what_has_no_place_is_named_and_meets_nothing():
    bad = [("EPSG:32633", (10.0, 0, 1e12, 0, -10.0, 0.0)), ("no such thing", utm(33, 0, 0)[1])]
    bad += [("EPSG:4326", (1.0, 0, 0.0, 0, -1.0, 60.0)), ('LOCAL_CS["a bench"]', utm(33, 0, 0)[1])]
    found, faults = several(utm(33, 500_000, 5e6), *bad)
    assert sorted((who.tolist().index(True), why.partition(":")[0]) for why, who in faults.items()) == [
        (1, "outside of where CRS EPSG"),
        (2, "CRS no such thing is not understood"),
        (3, "more than 2000 km across in CRS EPSG"),
        (4, 'CRS LOCAL_CS["a bench"] is not understood'),
    ]
    assert all(who.sum() == 1 for who in faults.values())
    assert overlapping(found, found).tolist() == [True, False, False, False, False]


def test_of_no_size():
    found, faults = several(utm(33, 5e5, 5e6), utm(33, 5e5, 5e6, pixel=0.0), ("", (1.0, 0, np.nan, 1.0, 0, 0)))
    assert list(faults) == ["of no size, by the transform"] and overlapping(found, found).tolist() == [
        True,
        False,
        False,
    ]


def test_one_huge_patch_among_many_small_ones_costs_little():
    small = [utm(33, 3e5 + 1200.0 * (i % 150), 5.4e6 - 1200.0 * (i // 150)) for i in range(15_000)]
    huge = utm(33, 3e5 + 600, 5.4e6 - 600, pixel=2000.0)  # 240 km, over nearly all of them
    found = ground(*small, huge)
    begun = time.perf_counter()
    assert overlapping(found[:-1], found[-1:]).sum() == 15_000
    assert overlapping(found[-1:], found[:-1]).all()
    apart = ground(huge, *[utm(33, x, 5.4e6 - 1200.0 * i) for i in range(9000) for x in (1e5 - 3e5, 9e5)])
    assert not overlapping(apart[1:9000], found).any() and time.perf_counter() - begun < 20


def test_buffers_are_metres_on_the_ground():
    here = ground(utm(33, 500_000, 5_000_000))
    beside = ground(utm(33, 500_000 + 1200 + 500, 5_000_000))
    assert not within(beside, here, 494)[0] and within(beside, here, 506)[0]
    # 1000 units of web Mercator at 60 degrees north are 500 m
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(10, 60)
    one = ground(("EPSG:3857", (10.0, 0, x, 0, -10.0, y)))
    other = ground(("EPSG:3857", (10.0, 0, x + 2200, 0, -10.0, y)))
    assert not within(other, one, 480)[0] and within(other, one, 520)[0]


def test_no_patches():
    none, one = ground(utm(33, 5e5, 5e6))[np.array([], int)], ground(utm(33, 5e5, 5e6))
    assert not len(overlapping(none, one)) and overlapping(one, none).tolist() == [False]


@pytest.mark.parametrize("seed", range(4))
def test_shapely_agrees(seed):
    """Patches of three sizes, turned at random, in two zones; shapely sees them in an equal-area projection."""
    rng = np.random.default_rng(seed)
    patches = [
        utm(zone, x + (710_000 if zone == 32 else 266_000), y, rng.choice([2.0, 10.0, 25.0]), rng.uniform(0, 360))
        for zone, x, y in zip(
            rng.choice([32, 33], 300), rng.uniform(0, 50_000, 300), rng.uniform(5_380_000, 5_420_000, 300), strict=True
        )
    ]
    shapes = np.array([shape(*p) for p in patches])
    a, b = np.arange(300) < 150, np.arange(300) >= 150
    found = overlapping(ground(*patches)[a], ground(*patches)[b])
    sure = [any(shapely.intersects(s.buffer(-15), shapes[b])) for s in shapes[a]]
    maybe = [any(shapely.intersects(s.buffer(15), shapes[b])) for s in shapes[a]]
    assert all(f or not s for f, s in zip(found, sure, strict=True))
    assert all(m or not f for f, m in zip(found, maybe, strict=True))
    assert 20 < found.sum() < 130 and found.sum() > overlapping_in_one_zone(patches) + 5 and sum(maybe) - sum(sure) < 15


def overlapping_in_one_zone(patches):
    at = np.arange(len(patches))
    zone = np.array([p[0] for p in patches])
    fp = ground(*patches)
    both = [overlapping(fp[(at < 150) & (zone == z)], fp[(at >= 150) & (zone == z)]).sum() for z in set(zone)]
    return sum(both)


def shape(crs, transform):
    a, b, c, d, e, f = transform
    corners = [(a * i + b * j + c, d * i + e * j + f) for i, j in ((0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE))]
    return shapely.Polygon([TO_LAEA[crs].transform(*xy) for xy in corners])
