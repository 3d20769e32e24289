"""Where a GeoTIFF lies, from its tags, without GDAL.

GDAL builds the CRS of each file anew, which takes longer than all else when a patch's band is read; but the files of an
archive share a few CRSs, and the tags that say them are the same bytes. What is not the plainest of GeoTIFFs, north up
from a tie point at the first pixel's corner, is left to GDAL. Tags: TIFF 6.0; OGC GeoTIFF 1.1 (19-008r4).
"""

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

_SCALE, _TIE_POINT = 33550, 33922
_PLACED_OTHERWISE = {33920, 34264}  # a matrix
_KEYS, _DOUBLES, _ASCII = CRS_TAGS = 34735, 34736, 34737
_BYTES = {2: 1, 3: 2, 12: 8}  # of a text's letter, a short, a double, by TIFF's number of the type
_TYPES = {_SCALE: 12, _TIE_POINT: 12, _KEYS: 3, _DOUBLES: 12, _ASCII: 2}
_RASTER_TYPE, _PIXEL_IS_AREA = 1025, 1


class Place(NamedTuple):
    """crs: the tags that say it, as they are in the file, by CRS_TAGS; () without any. transform: six numbers of the
    affine map from (col, row) to (x, y) in the CRS's units."""

    crs: tuple[bytes, ...]
    transform: tuple[float, float, float, float, float, float]


def place(source: str | os.PathLike[str] | bytes) -> Place | None:
    """Of a file, or a file's bytes; None where only GDAL can tell, as of what is damaged or no TIFF."""
    try:
        if isinstance(source, bytes):
            return _place(lambda size, offset: source[offset : offset + size])
        fd = os.open(source, os.O_RDONLY)
        try:
            return _place(lambda size, offset: os.pread(fd, size, offset))
        finally:
            os.close(fd)
    except (OSError, struct.error, UnicodeEncodeError):
        return None


def _place(read: Callable[[int, int], bytes]) -> Place | None:
    """`read`: (size, offset) -> that part of the file."""
    magic, start = struct.unpack("<4sI", read(8, 0))
    if magic != b"II*\0":
        return None
    (count,) = struct.unpack("<H", read(2, start))
    tags = {}
    for tag, kind, n, at in struct.iter_unpack("<HHI4s", read(12 * count, start + 2)):
        if tag in _PLACED_OTHERWISE or kind != _TYPES.get(tag, kind):
            return None
        if tag in _TYPES:
            size = n * _BYTES[kind]
            tags[tag] = at[:size] if size <= 4 else read(size, *struct.unpack("<I", at))
            if len(tags[tag]) < size:
                return None
    x_scale, y_scale, _ = struct.unpack("<3d", tags.get(_SCALE, b""))
    *pixel, x, y, _ = struct.unpack("<6d", tags.get(_TIE_POINT, b""))
    keys = struct.iter_unpack("<4H", tags.get(_KEYS, b"")[8:])
    is_area = all(value == _PIXEL_IS_AREA for key, _, _, value in keys if key == _RASTER_TYPE)
    if any(pixel) or not (x_scale > 0 and y_scale > 0 and is_area):
        return None
    return Place(tuple(tags.get(tag, b"") for tag in CRS_TAGS), (x_scale, 0.0, x, 0.0, -y_scale, y))
