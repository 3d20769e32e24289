"""Sensors: their bands, pixel sizes and units. Facts only; reading files is `raster`'s and `scene`'s work.

Sources: Sentinel-2 User Handbook (ESA); Landsat Collection 2 Level-1 and Level-2 Data Format Control Books (USGS);
CBERS-4, CBERS-4A and Amazonia-1 camera tables (INPE).
"""

from dataclasses import dataclass

from jeoparda.errors import RecipeError

REFLECTANCE = "reflectance x 10000"  # of stored pixels: uint16, 0 is no data, what was measured is at least 1
DIGITAL_NUMBER = "digital number"  # of stored pixels: as the file has them, 0 where it has no data


@dataclass(frozen=True)
class Sensor:
    """`groups`: (pixel size in m, band names), finest first: what a scene of this sensor holds where nothing else is
    asked for. The band order of a store, a batch and a model is the groups' bands one after the other.
    `scale`: reflectance = stored pixel * scale; 0 where stored pixels are digital numbers. `rgb`: the bands of a
    picture in true colour. `pan`: the panchromatic band, `thermal`: the bands of heat; neither is in `groups`."""

    name: str
    groups: tuple[tuple[float, tuple[str, ...]], ...]
    scale: float
    rgb: tuple[str, ...]
    pan: str = ""
    thermal: tuple[str, ...] = ()

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(b for _, names in self.groups for b in names)

    @property
    def finest_m(self) -> float:
        return self.groups[0][0]


SENTINEL_2_L2A = Sensor(
    name="sentinel-2-l2a",  # the 12 bands of a surface-reflectance product; B10 (cirrus) is not in it
    groups=(
        (10, ("B02", "B03", "B04", "B08")),
        (20, ("B05", "B06", "B07", "B8A", "B11", "B12")),
        (60, ("B01", "B09")),
    ),
    scale=1e-4,
    rgb=("B04", "B03", "B02"),
)
SENTINEL_2_L1C = Sensor(
    name="sentinel-2-l1c",
    groups=(*SENTINEL_2_L2A.groups[:2], (60, ("B01", "B09", "B10"))),
    scale=1e-4,
    rgb=("B04", "B03", "B02"),
)

_TM = (30, ("B1", "B2", "B3", "B4", "B5", "B7"))
_OLI = (30, ("B1", "B2", "B3", "B4", "B5", "B6", "B7"))
# l1: reflectance at the top of the atmosphere, l2: of the surface; not to be mixed, so they are two sensors
LANDSAT = tuple(
    s
    for level in ("l1", "l2")
    for s in (
        Sensor(f"landsat-4-{level}", (_TM,), 1e-4, ("B3", "B2", "B1"), thermal=("B6",)),
        Sensor(f"landsat-5-{level}", (_TM,), 1e-4, ("B3", "B2", "B1"), thermal=("B6",)),
        Sensor(f"landsat-7-{level}", (_TM,), 1e-4, ("B3", "B2", "B1"), "B8", ("B6", "B6_VCID_1", "B6_VCID_2")),
        Sensor(f"landsat-8-{level}", (_OLI,), 1e-4, ("B4", "B3", "B2"), "B8", ("B10", "B11")),
        Sensor(f"landsat-9-{level}", (_OLI,), 1e-4, ("B4", "B3", "B2"), "B8", ("B10", "B11")),
    )
)

_WIDE = ("B13", "B14", "B15", "B16")
_MUX = ("B5", "B6", "B7", "B8")
_COLOUR = ("B1", "B2", "B3", "B4")
CBERS = (
    Sensor("cbers-4-awfi", ((64, _WIDE),), 0.0, ("B15", "B14", "B13")),
    Sensor("cbers-4-mux", ((20, _MUX),), 0.0, ("B7", "B6", "B5")),
    Sensor("cbers-4-pan5m", ((5, ("B1",)),), 0.0, (), "B1"),
    Sensor("cbers-4-pan10m", ((10, ("B2", "B3", "B4")),), 0.0, ()),
    Sensor("cbers-4a-wpm", ((8, _COLOUR),), 0.0, ("B3", "B2", "B1"), "B0"),
    Sensor("cbers-4a-mux", ((16.5, _MUX),), 0.0, ("B7", "B6", "B5")),
    Sensor("cbers-4a-wfi", ((55, _WIDE),), 0.0, ("B15", "B14", "B13")),
    Sensor("amazonia-1-wfi", ((64, _COLOUR),), 0.0, ("B3", "B2", "B1")),
)

SENSORS: dict[str, Sensor] = {s.name: s for s in (SENTINEL_2_L2A, SENTINEL_2_L1C, *LANDSAT, *CBERS)}


def sensor(name: str) -> Sensor:
    """The sensor of that name; RecipeError names the ones there are."""
    if name not in SENSORS:
        raise RecipeError(f"sensor {name!r} is unknown; there are {', '.join(SENSORS)}")
    return SENSORS[name]
