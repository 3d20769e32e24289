"""The plain feed: numpy and torch, for where DALI is not, and to hold DALI against. On a GPU as on the CPU: it works
where the fields are that it is given."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from jeoparda.feed.augment import Draws
from jeoparda.store import Group


class PlainTransform:
    """A batch's fields to normalised images on the finest grid."""

    def __init__(self, groups: tuple[Group, ...], mean: np.ndarray, std: np.ndarray, crop_px: int = 0) -> None:
        """groups: finest first. mean, std: (band,) in digital numbers."""
        self._groups = groups
        self._size = groups[0].size_px
        self._crop = crop_px
        self._mean = torch.from_numpy(mean)
        self._scale = torch.from_numpy(1 / std)

    def __call__(self, fields: Mapping[str, torch.Tensor], draws: Draws) -> tuple[torch.Tensor, torch.Tensor | None]:
        """fields: by name, (b, ...). Returns (b, band, row, col) float32, memory of its own, and (b, row, col) uint8
        masks where the fields have them."""
        first = fields[self._groups[0].name]
        scale, offset = (v.to(first.device) for v in self._linear(draws))
        out = torch.empty(len(first), scale.shape[1], self._size, self._size, device=first.device)
        done = 0
        for g in self._groups:
            bands = slice(done, done := done + len(g.bands))
            # before upsampling: fewer pixels, the same values
            x = fields[g.name].to(torch.float32).mul_(scale[:, bands]).add_(offset[:, bands])
            if g.size_px != self._size:
                x = F.interpolate(x, size=(self._size, self._size), mode="bilinear", align_corners=False)
            out[:, bands] = x
        image = _turned(self._cropped(out, draws), draws)
        if draws.share is not None:
            share = torch.from_numpy(draws.share).to(image.device)[:, None, None, None]
            image = image * share + image[torch.from_numpy(draws.partner).long()] * (1 - share)
        mask = fields.get("mask")
        return image, None if mask is None else _turned(self._cropped(mask[:, None], draws), draws)[:, 0]

    def _linear(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset that take digital numbers to normalised ones: (b or 1, band, 1, 1)."""
        scale, offset = self._scale[None, :, None, None], (-self._mean * self._scale)[None, :, None, None]
        if draws.gain is None:
            return scale, offset
        gain = torch.from_numpy(draws.gain)[:, :, None, None]
        return gain * scale, (gain > 0) * offset  # a dropped band is its mean, 0, everywhere

    def _cropped(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """x: (b, channel, row, col), also of masks that are finer than the image by a whole factor."""
        if not self._crop:
            return x
        k = x.shape[-1] // self._size
        side = self._crop * k
        places = (draws.corner * k).tolist()
        return torch.stack([s[:, row : row + side, col : col + side] for s, (row, col) in zip(x, places, strict=True)])


def _turned(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    """x: (b, channel, row, col), changed in place, sample by sample."""
    flips = torch.from_numpy(draws.flips)
    for column, turn in enumerate((lambda s: s.transpose(2, 3), lambda s: s.flip(2), lambda s: s.flip(3))):
        chosen = flips[:, column]
        if chosen.any():
            x[chosen] = turn(x[chosen])
    return x
