"""Bands of several pixel sizes onto the finest grid: the last step of every feed, on the CPU or a GPU.

Bilinear interpolation along rows and columns is a product with one small matrix from each side. That is what matrix
libraries are made for: on a CPU it takes a fraction of what resampling operators take.
"""

import numpy as np
import torch

from jeoparda.store import Group


class Upsample:
    """Images of each group to one on the finest grid. Its memory is kept from batch to batch: the kernel takes longer
    to hand out 40 MB anew than the arithmetic takes."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        """groups: finest first."""
        self._steps = [groups[0].size_px // g.size_px for g in groups]
        self._bands = [len(g.bands) for g in groups]
        self._matrices: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._held: dict[str, torch.Tensor] = {}

    def __call__(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """parts: (b, band, row, col) float32 of each group, of the same ground. Returns (b, band, row, col), bands in
        the groups' order, valid until the next call; the part itself where there is but one."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        n, side = len(first), first.shape[-1]
        out = self._memory("image", first, (n, sum(self._bands), side, side))
        for i, (part, place, step) in enumerate(zip(parts, out.split(self._bands, 1), self._steps, strict=True)):
            if step > 1:
                m = self._matrix(part.shape[-1], step, part.device)
                shape = part.shape[:2]
                tall = torch.matmul(m, part, out=self._memory(f"tall {i}", part, (*shape, side, part.shape[-1])))
                part = torch.matmul(tall, m.T, out=self._memory(f"whole {i}", part, (*shape, side, side)))
            place.copy_(part)
        return out

    def _memory(self, name: str, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Of this shape, with the first dimension cut from what is there."""
        held = self._held.get(name)
        if held is None or len(held) < shape[0] or held.shape[1:] != shape[1:] or held.device != like.device:
            self._held[name] = held = like.new_empty(shape)
        return held[: shape[0]]

    def _matrix(self, size_px: int, step: int, device: torch.device) -> torch.Tensor:
        key = size_px, step, device
        if key not in self._matrices:
            self._matrices[key] = torch.from_numpy(weights(size_px, step)).to(device)
        return self._matrices[key]


def weights(size_px: int, step: int) -> np.ndarray:
    """(size_px * step, size_px) float32: what each fine pixel takes from each coarse one, by bilinear interpolation
    between pixels' centres; beyond the outermost centres the outermost pixel goes on."""
    at = np.clip((np.arange(size_px * step) + 0.5) / step - 0.5, 0, size_px - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size_px))).astype(np.float32)
