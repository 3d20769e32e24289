"""The plain feed: numpy and torch, for where DALI is not, and to hold DALI against."""

import numpy as np
import torch
import torch.nn.functional as F

from jeoparda.store import Group


class PlainTransform:
    """Records to normalised images on the finest grid."""

    def __init__(self, groups: tuple[Group, ...], mean: np.ndarray, std: np.ndarray) -> None:
        """groups: finest first. mean, std: (band,) in digital numbers."""
        self._groups = groups
        self._size = groups[0].size_px
        self._mean = torch.from_numpy(mean)[:, None, None]
        self._scale = torch.from_numpy(1 / std)[:, None, None]

    def __call__(self, records: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        """records: (b,) compound; flips: (b, 3) bool -> (b, band, row, col) float32, memory of its own."""
        out = torch.empty(len(records), len(self._mean), self._size, self._size)
        first = 0
        for g in self._groups:
            bands = slice(first, first := first + len(g.bands))
            x = torch.from_numpy(records[g.name]).to(torch.float32)
            x.sub_(self._mean[bands]).mul_(self._scale[bands])  # before upsampling: fewer pixels, the same values
            if g.size_px != self._size:
                x = F.interpolate(x, size=(self._size, self._size), mode="bilinear", align_corners=False)
            out[:, bands] = x
        return _flip(out, torch.from_numpy(flips))


def _flip(x: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """x: (b, band, row, col), changed in place, sample by sample."""
    for column, turn in enumerate((lambda s: s.transpose(2, 3), lambda s: s.flip(2), lambda s: s.flip(3))):
        chosen = flips[:, column]
        if chosen.any():
            x[chosen] = turn(x[chosen])
    return x
