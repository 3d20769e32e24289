"""Sensors: their bands, pixel sizes and units. Facts only; reading files is `raster`'s and `scene`'s work.

Source: Sentinel-2 User Handbook (ESA), bands and native resolutions.
"""

from dataclasses import dataclass

from jeoparda.errors import RecipeError


@dataclass(frozen=True)
class Sensor:
    """`groups`: (pixel size in m, band names), finest first. The band order of a store, a batch and a model
    is the groups' bands one after the other. `scale`: reflectance = digital number * scale + offset."""

    name: str
    groups: tuple[tuple[int, tuple[str, ...]], ...]
    scale: float
    offset: float
    rgb: tuple[str, str, str]

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(b for _, names in self.groups for b in names)

    @property
    def finest_m(self) -> int:
        return self.groups[0][0]

    def pixel_m(self, band: str) -> int:
        """Native pixel size of a band in metres."""
        return next(m for m, names in self.groups if band in names)


SENTINEL_2_L2A = Sensor(
    name="sentinel-2-l2a",  # the 12 bands of a surface-reflectance product; B10 (cirrus) is not in it
    groups=(
        (10, ("B02", "B03", "B04", "B08")),
        (20, ("B05", "B06", "B07", "B8A", "B11", "B12")),
        (60, ("B01", "B09")),
    ),
    scale=1e-4,
    offset=0.0,
    rgb=("B04", "B03", "B02"),
)

SENSORS: dict[str, Sensor] = {s.name: s for s in (SENTINEL_2_L2A,)}


def sensor(name: str) -> Sensor:
    """The sensor of that name; RecipeError names the ones there are."""
    if name not in SENSORS:
        raise RecipeError(f"sensor {name!r} is unknown; there are {', '.join(SENSORS)}")
    return SENSORS[name]
