"""The plain feed: numpy and torch, for where DALI is not, and to hold DALI against. On a GPU as on the CPU: it works
where the fields are that it is given."""

from collections.abc import Mapping

import numpy as np
import torch

from jeoparda.feed.augment import Draws
from jeoparda.feed.upsample import Upsample
from jeoparda.store import Group


class PlainTransform:
    """A batch's fields to normalised images on the finest grid."""

    def __init__(self, groups: tuple[Group, ...], mean: np.ndarray, std: np.ndarray, crop_px: int = 0) -> None:
        """groups: finest first. mean, std: (band,) in digital numbers. crop_px: as in AugmentRecipe."""
        self._groups = groups
        self._size = groups[0].size_px
        self._crop = crop_px or self._size
        self._mean = torch.from_numpy(mean)
        self._scale = torch.from_numpy(1 / std)
        self._upsample = Upsample(groups)

    def __call__(self, fields: Mapping[str, torch.Tensor], draws: Draws) -> tuple[torch.Tensor, torch.Tensor | None]:
        """fields: by name, (b, ...). Returns (b, band, row, col) float32, valid until the next call, and (b, row, col)
        uint8 masks where the fields have them."""
        scale, offset = (v.to(fields[self._groups[0].name].device) for v in self._linear(draws))
        parts, done = [], 0
        for g in self._groups:
            bands = slice(done, done := done + len(g.bands))
            x = self._moved(fields[g.name], draws).to(torch.float32).mul_(scale[:, bands]).add_(offset[:, bands])
            parts.append(_mixed(x, draws))
        mask = fields.get("mask")
        return self._upsample(parts), None if mask is None else self._moved(mask[:, None], draws)[:, 0]

    def _linear(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset that take digital numbers to normalised ones: (b or 1, band, 1, 1)."""
        scale, offset = self._scale[None, :, None, None], (-self._mean * self._scale)[None, :, None, None]
        if draws.gain is None:
            return scale, offset
        gain = torch.from_numpy(draws.gain)[:, :, None, None]
        return gain * scale, (gain > 0) * offset  # a dropped band is its mean, 0, everywhere

    def _moved(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Cropped and turned; x: (b, channel, row, col) of any type and pixel size. x itself where nothing is done."""
        if self._crop == self._size and not draws.flips.any():
            return x
        dtype = x.dtype
        if dtype == torch.uint16:  # 16 bits are 16 bits: torch cannot index unsigned ones
            x = x.view(torch.int16)
        return _turned(self._cropped(x, draws.corner), draws.flips).view(dtype)

    def _cropped(self, x: torch.Tensor, corner: np.ndarray) -> torch.Tensor:
        px = x.shape[-1]
        side = self._crop * px // self._size
        places = (corner * px // self._size).tolist()
        return torch.stack([s[:, row : row + side, col : col + side] for s, (row, col) in zip(x, places, strict=True)])


def _mixed(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    if draws.share is None:
        return x
    share = torch.from_numpy(draws.share).to(x.device)[:, None, None, None]
    return x * share + x[torch.from_numpy(draws.partner).long().to(x.device)] * (1 - share)


def _turned(x: torch.Tensor, flips: np.ndarray) -> torch.Tensor:
    """x: (b, channel, row, col), changed in place; flips: (b, 3) as in Draws."""
    chosen = torch.from_numpy(flips).to(x.device)
    for column, turn in enumerate((lambda s: s.transpose(2, 3), lambda s: s.flip(2), lambda s: s.flip(3))):
        if flips[:, column].any():
            x[chosen[:, column]] = turn(x[chosen[:, column]])
    return x
