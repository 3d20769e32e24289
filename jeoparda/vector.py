"""Vector files: the only home of pyogrio (OGR) and shapely.

Small contract: the shapes of one layer with the values of one attribute, in the coordinates that are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import ProjError

from jeoparda.errors import PatchError

Bounds = tuple[float, float, float, float]  # (left, bottom, right, top) in the CRS's units
# GeoJSON's own ids may be out of order; its features come in document order by themselves. Elsewhere the feature
# id is the place in the file, and a spatial index may give them in another order.
_UNSORTED = ("GeoJSON", "GeoJSONSeq", "TopoJSON")


@dataclass(frozen=True)
class Shapes:
    """Shapes in document order and the value of each, as text. `mended`: how many were invalid (a ring that crosses
    itself) and were made valid; `empty`: how many have no geometry and were left out."""

    geometries: np.ndarray  # (shape,) of shapely geometries
    values: tuple[str, ...]
    mended: int
    empty: int

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometries)

    def over(self, bounds: Bounds) -> list[tuple[Any, str]]:
        """(shape, value) of those whose box meets `bounds`, in document order."""
        return [(self.geometries[i], self.values[i]) for i in sorted(self._tree.query(shapely.box(*bounds)))]


def layer_of(path: Path, layer: str) -> str:
    """The name of the layer to read: `layer`, or the only one there is. PatchError lists those that there are."""
    with _readable(path):
        names = [str(name) for name, _ in pyogrio.list_layers(path)]
    if layer and layer not in names:
        raise PatchError(str(path), f"has no layer {layer!r}", f"one of its layers: {_list(names)}")
    if not layer and len(names) != 1:
        raise PatchError(str(path), f"has {len(names)} layers: {_list(names)}", "labels.layer to name one of them")
    return layer or names[0]


def distinct(path: Path, layer: str, attribute: str) -> list[str]:
    """The values of `attribute` in the whole layer, each once, in order of appearance; without geometries."""
    _check(path, layer, attribute)
    with _readable(path):
        _, _, _, columns = pyogrio.raw.read(path, layer=layer, columns=[attribute], read_geometry=False)
    return list(dict.fromkeys(map(text_of, columns[0])))


def read_shapes(path: Path, layer: str, attribute: str, crs: str | None, bounds: Bounds) -> Shapes:
    """The shapes of a layer that meet `bounds` (in `crs`), in `crs`, with the values of `attribute` as text.

    `attribute` "": every shape has the value "1". `crs` None: coordinates as they stand in the file, whatever it
    says of them; "": of an image without a CRS. Polygons, lines and points, simple and multiple. PatchError for a
    file, a layer or an attribute that is not there, and where only one of file and image has a CRS.
    """
    info = _check(path, layer, attribute)
    there = _transformer(path, info["crs"], crs)
    with _readable(path):
        box = _box(there, bounds)
        _, fids, wkb, columns = pyogrio.raw.read(
            path, layer=layer, columns=[attribute] if attribute else [], bbox=box, return_fids=True, force_2d=True
        )
        drawn = shapely.from_wkb(wkb, on_invalid="fix")
    values = np.array([text_of(v) for v in columns[0]] if attribute else ["1"] * len(wkb), dtype=object)
    if info["driver"] not in _UNSORTED:
        order = np.argsort(fids, kind="stable")
        drawn, values = drawn[order], values[order]
    return _sound(_moved(drawn, there), values)


def text_of(value: Any) -> str:
    """An attribute's or a pixel's value as a remap table writes it: 3 and 3.0 are "3", no value is ""."""
    if value is None or value != value:  # NaN: how a number column holds no value
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def _check(path: Path, layer: str, attribute: str) -> dict[str, Any]:
    with _readable(path):
        info = pyogrio.read_info(path, layer=layer)
    fields = [str(f) for f in info["fields"]]
    if attribute and attribute not in fields:
        there = f"one of its attributes: {_list(fields)}" if fields else 'labels.attribute "", as it has no attributes'
        raise PatchError(str(path), f"layer {layer!r} has no attribute {attribute!r}", there)
    return info


def _transformer(path: Path, found: str | None, wanted: str | None) -> pyproj.Transformer | None:
    if wanted is None or not (found or wanted):
        return None
    if not found:
        raise PatchError(str(path), "has no CRS", f"one, as the image it belongs to has: {wanted[:60]}")
    if not wanted:
        raise PatchError(
            str(path), f"has CRS {found[:60]}, the image it belongs to has none", "align: pixel, if it is in pixels"
        )
    a, b = pyproj.CRS.from_user_input(found), pyproj.CRS.from_user_input(wanted)
    return None if a.equals(b, ignore_axis_order=True) else pyproj.Transformer.from_crs(a, b, always_xy=True)


def _box(there: pyproj.Transformer | None, bounds: Bounds) -> Bounds | None:
    """`bounds` in the file's CRS, a little larger as a rectangle bends there; None where they have no place in it."""
    if there is None:
        return bounds
    left, bottom, right, top = there.transform_bounds(*bounds, direction="INVERSE", densify_pts=21)
    if not np.isfinite([left, bottom, right, top]).all() or left > right:  # over a pole or the date line
        return None
    x, y = (right - left) / 100, (top - bottom) / 100
    return left - x, bottom - y, right + x, top + y


def _moved(drawn: np.ndarray, there: pyproj.Transformer | None) -> np.ndarray:
    if there is None:
        return drawn
    return shapely.transform(drawn, lambda xy: np.column_stack(there.transform(xy[:, 0], xy[:, 1])))


def _sound(drawn: np.ndarray, values: np.ndarray) -> Shapes:
    """Invalid shapes made valid, parts of a lower dimension that this leaves behind dropped, empty ones left out."""
    finite = np.isfinite(shapely.bounds(drawn)).all(axis=1)  # neither empty, nor without a place in the wanted CRS
    mended = drawn[finite]
    faulty = ~shapely.is_valid(mended)
    mended[faulty] = [_mended(g) for g in mended[faulty]]
    kept = ~shapely.is_empty(mended)
    return Shapes(mended[kept], tuple(values[finite][kept]), int(faulty.sum()), int(len(drawn) - kept.sum()))


def _mended(shape: Any) -> Any:
    dimension = shapely.get_dimensions(shape)
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shape)))
    return shapely.union_all(parts[shapely.get_dimensions(parts) == dimension])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What OGR, GEOS and PROJ cannot read becomes a PatchError."""
    if not path.exists():
        raise PatchError(str(path), "is missing", "a vector file (GeoPackage, GeoJSON, shapefile, ...)")
    try:
        yield
    except (DataSourceError, DataLayerError, ProjError, shapely.errors.GEOSException) as e:
        why = " ".join(str(e).split()).removeprefix(f"{path}: ")
        raise PatchError(str(path), f"cannot be read: {why}", "a vector file (GeoPackage, GeoJSON, ...)") from e


def _list(names: list[str]) -> str:
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "") or "none"
