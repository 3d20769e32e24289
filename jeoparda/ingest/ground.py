"""Where two images lie on each other: windows of one grid as windows of another, whatever their CRSs."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, lcm

import numpy as np

from jeoparda.ingest.source import Transform
from jeoparda.labels import shifted
from jeoparda.raster import RasterInfo, Window_px
from jeoparda.raster.warp import Method, moved, warp
from jeoparda.scene import Scene, SceneReader

_EDGE_POINTS = 8  # along a side of a window, where it is followed into another CRS


def align_px(scene: Scene) -> int:
    """Px of the finest grid on whose multiples every band has a pixel's corner."""
    return lcm(*(int(scene.step(f.info)) for f in scene.files.values()))


def meets(high: RasterInfo, low: RasterInfo) -> bool:
    if bool(high.crs) != bool(low.crs):
        return False
    at = px_of(moved(outline(high.transform, (0, 0, high.height_px, high.width_px)), high.crs, low.crs), low.transform)
    (left, top), (right, bottom) = at.min(0), at.max(0)
    return bool(left < low.width_px and top < low.height_px and right > 0 and bottom > 0)


def lattices(scenes: list[tuple[str, Scene]]) -> list[list[tuple[str, Scene]]]:
    """Scenes whose pixels coincide where they overlap, together."""
    found: list[list[tuple[str, Scene]]] = []
    for path, scene in scenes:
        for lattice in found:
            if offset(lattice[0][1], scene) is not None:
                lattice.append((path, scene))
                break
        else:
            found.append([(path, scene)])
    return found


def offset(a: Scene, b: Scene) -> tuple[int, int] | None:
    """(row, col) of b's corner in a's finest pixels, where all their pixels coincide; else None."""
    if a.finest.crs != b.finest.crs or any(
        abs(x - y) > 1e-9 * abs(a.finest.pixel_size)
        for i, (x, y) in enumerate(zip(a.finest.transform, b.finest.transform, strict=True))
        if i not in (2, 5)
    ):
        return None
    ((col, row),) = px_of(np.array([[b.finest.transform[2], b.finest.transform[5]]]), a.finest.transform)
    near = abs(row - round(row)) < 1e-3 and abs(col - round(col)) < 1e-3
    fits = round(row) % align_px(a) == 0 and round(col) % align_px(a) == 0
    return (round(row), round(col)) if near and fits else None


def inside(high: RasterInfo, low: Scene, side: int, stride: int) -> list[Window_px]:
    """Windows of `side` px of `low`'s finest grid, in it or beyond, that lie in the high image as a whole. The first
    begins at the first whole coarse pixel inside the high image's box."""
    at = px_of(moved(outline(high.transform, (0, 0, high.height_px, high.width_px)), high.crs, low.finest.crs),
             low.finest.transform)  # fmt: skip
    align = align_px(low)
    (left, top), (right, bottom) = at.min(0), at.max(0)
    rows = range(ceil(top / align - 1e-6) * align, floor(bottom + 1e-6) - side + 1, stride)
    cols = range(ceil(left / align - 1e-6) * align, floor(right + 1e-6) - side + 1, stride)
    every = [(r, c, side, side) for r in rows for c in cols]
    return [w for w in every if within(w, low.finest, high)]


def within(window: Window_px, low: RasterInfo, high: RasterInfo) -> bool:
    """Whether a window of the low grid lies in the high image, to a hundredth of a low pixel."""
    at = px_of(moved(outline(low.transform, window), low.crs, high.crs), high.transform)
    slack = 0.01 * np.ptp(at, axis=0).max() / window[3]
    return bool((at >= -slack).all() and (at <= np.array([high.width_px, high.height_px]) + slack).all())


def cover(scene: Scene, low: RasterInfo, window: Window_px, margin: int) -> Window_px:
    """The window of a high scene, on whole pixels of all its bands, over a window of the low grid; `margin`: coarse
    or low pixels more on each side, whichever are larger."""
    at = px_of(moved(outline(low.transform, window), low.crs, scene.finest.crs), scene.finest.transform)
    align = align_px(scene)
    more = margin * max(align, ceil(np.ptp(at, axis=0).max() / window[3]))
    left, top = (floor((v - more) / align + 1e-6) * align for v in at.min(0).tolist())
    right, bottom = (ceil((v + more) / align - 1e-6) * align for v in at.max(0).tolist())
    return top, left, bottom - top, right - left


def scale_of(high: RasterInfo, low: RasterInfo, side: int, factor: int) -> float:
    """Target pixels along one pixel of the high scene, at the middle of a patch."""
    mid = side / 2
    a, b, c, d, e, f = low.transform
    steps = [(mid, mid), (mid + 1 / factor, mid), (mid, mid + 1 / factor)]
    points = np.array([(c + a * x + b * y, f + d * x + e * y) for x, y in steps])
    at = px_of(moved(points, low.crs, high.crs), high.transform)
    return 2 / float(np.hypot(*(at[1] - at[0])) + np.hypot(*(at[2] - at[0])))


def outline(transform: Sequence[float], window: Window_px) -> np.ndarray:
    """(point, 2) of x, y around a window of a grid."""
    row, col, height, width = window
    t = np.linspace(0, 1, _EDGE_POINTS + 1)
    zero, one = np.zeros_like(t), np.ones_like(t)
    cols = col + width * np.concatenate([t, one, t, zero])
    rows = row + height * np.concatenate([zero, t, one, t])
    a, b, c, d, e, f = transform[:6]
    return np.column_stack([c + a * cols + b * rows, f + d * cols + e * rows])


def px_of(points: np.ndarray, transform: Sequence[float]) -> np.ndarray:
    """(point, 2) of x, y as (col, row) of a grid."""
    a, b, c, d, e, f = transform[:6]
    x, y = points[:, 0] - c, points[:, 1] - f
    det = a * e - b * d
    return np.column_stack([(e * x - b * y) / det, (a * y - d * x) / det])


def finer(transform: Sequence[float], k: int) -> Transform:
    """Of the grid that divides each pixel into k x k."""
    a, b, c, d, e, f = transform[:6]
    return a / k, b / k, c, d / k, e / k, f


# ---- pixels


def around(reader: SceneReader, window: Window_px, bands: bool = True) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every band at its own pixel size, and the valid pixels of the finest grid, under a window that may reach beyond
    the scene; there, zeros that are not valid. The window lies on whole pixels of every band."""
    row, col, height, width = window
    fine = reader.scene.finest
    top, left = max(0, row), max(0, col)
    bottom, right = min(fine.height_px, row + height), min(fine.width_px, col + width)
    valid = np.zeros((height, width), bool)
    found: dict[str, np.ndarray] = {}
    own = (top, left, bottom - top, right - left)
    for band, file in reader.scene.files.items() if bands else ():
        k = int(reader.scene.step(file.info))
        found[band] = np.zeros((height // k, width // k), reader.scene.dtype(band))
        part = slice((top - row) // k, (bottom - row) // k), slice((left - col) // k, (right - col) // k)
        found[band][part] = reader.read(band, own)
    valid[top - row : bottom - row, left - col : right - col] = reader.valid(own)
    return found, valid


def coarser(valid: np.ndarray, k: int) -> np.ndarray:
    """On pixels k times as wide: valid where all under it is."""
    return np.asarray(valid.reshape(valid.shape[0] // k, k, valid.shape[1] // k, k).all((1, 3)))


def onto(
    reader: SceneReader, target: tuple[str, Transform], side: int, factor: int, method: Method, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """A scene on the grid that divides each pixel of `target`, (CRS, affine map), into factor x factor, over `side`
    px of it. Returns (band, row, col) of the type `kind`, 0 where not valid, and its valid pixels, (row, col) bool."""
    scene, crs, transform = reader.scene, *target
    low = replace(scene.finest, crs=crs, transform=transform)
    window = cover(scene, low, (0, 0, side, side), margin=2)
    bands, valid = around(reader, window)
    scale = scale_of(scene.finest, low, side, factor)
    out, there = [], np.ones((side * factor, side * factor), bool)
    for image in bands.values():
        k = window[2] // image.shape[0]
        a, b, c, d, e, f = shifted(scene.finest.transform, window)
        source = scene.finest.crs, (a * k, b * k, c, d * k, e * k, f)
        wanted = crs, finer(transform, factor)
        pixels, known = warp(image[None], coarser(valid, k), source, wanted, there.shape, method, scale * k)
        out.append(pixels[0])
        there &= known
    return np.where(there, np.stack(out), 0).astype(kind), there
