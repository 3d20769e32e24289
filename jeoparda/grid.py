"""Patches over a scene: windows, in pixels of the finest grid."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PatchGrid:
    """Square patches of `size_px`, `stride_px` apart, over a scene of (height, width) pixels.

    Only whole patches: `rows` x `cols` of them, from the upper left corner. A strip at the right or lower edge
    that holds no whole patch is left out.
    """

    height_px: int
    width_px: int
    size_px: int
    stride_px: int

    @property
    def rows(self) -> int:
        return max(0, (self.height_px - self.size_px) // self.stride_px + 1)

    @property
    def cols(self) -> int:
        return max(0, (self.width_px - self.size_px) // self.stride_px + 1)

    def window(self, row: int, col: int) -> tuple[int, int, int, int]:
        """(row, col, height, width) in px of the patch at that place of the grid."""
        return row * self.stride_px, col * self.stride_px, self.size_px, self.size_px

    def transform(self, scene: tuple[float, ...]) -> tuple[float, float, float, float, float, float]:
        """The affine map of a raster with one pixel a patch, each pixel as wide as the stride and centred on its
        patch. `scene`: the scene's own six numbers."""
        a, b, c, d, e, f = scene[:6]
        shift = (self.size_px - self.stride_px) / 2
        return (
            a * self.stride_px,
            b * self.stride_px,
            c + (a + b) * shift,
            d * self.stride_px,
            e * self.stride_px,
            f + (d + e) * shift,
        )
