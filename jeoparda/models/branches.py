"""The shallow network of the BigEarthNet paper, and one such branch for each resolution.

S-CNN: Sumbul, Charfuelan, Demir and Markl, "BigEarthNet: a large-scale benchmark archive for remote sensing image
understanding", IGARSS 2019. K-Branch CNN: Sumbul and Demir, "A deep multi-attention driven approach for multi-label
remote sensing image classification", IEEE Access 8, 2020; of its system only this first module.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from jeoparda.models.layers import run, stage

GRID = 5  # the papers' 120 px come to 30 x 30, so that each cell is the mean of 6 x 6
_KERNELS_PX = {2: (5, 5, 3), 1: (3, 3, 3), 0: (2, 2, 2)}  # by the number of poolings


class Branch(nn.Module):
    """Three stages and a fully connected layer. x: (batch, band, row, col) -> (batch, 2 * width).

    pools: how many stages halve the image, 0 to 2; each pooling drops an odd edge, so that rows and cols are at least
    2 ** pools. The papers' layer is connected to every pixel of one patch size. Here the image is first averaged on
    GRID x GRID cells, so that any size will do.
    """

    def __init__(self, bands: int, width: int, pools: int, recompute: bool) -> None:
        super().__init__()
        channels = (bands, width // 2, width // 2, width if pools else width // 2)
        ends = zip(pairwise(channels), _KERNELS_PX[pools], strict=True)
        self.stages = nn.ModuleList(stage(a, b, k, pool=i < pools) for i, ((a, b), k) in enumerate(ends))
        self.grid = nn.AdaptiveAvgPool2d(GRID)
        self.hidden = nn.Linear(channels[-1] * GRID * GRID, 2 * width)
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.stages:
            x = run(part, x, recompute=self.recompute)
        return F.relu(self.hidden(self.grid(x).flatten(1)))


class Shallow(nn.Module):
    """x: (batch, band, row, col) float32 -> logits (batch, class). Rows and cols from 4 px on."""

    def __init__(self, bands: int, classes: int, width: int, dropout: float, recompute: bool) -> None:
        super().__init__()
        self.branch = Branch(bands, width, 2, recompute)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.branch(x)))


class ThreeBranch(nn.Module):
    """A branch for each group of bands, on their own pixels; three for Sentinel-2, any number for others.

    x: (batch, band, row, col) float32 on the finest grid, as the feeds upsample it -> logits (batch, class). Rows and
    cols from 4 px on, and whole pixels of every group.
    """

    def __init__(
        self, groups: list[tuple[int, int]], classes: int, width: int, dropout: float, recompute: bool
    ) -> None:
        """groups: of each its number of bands, and how many of the finest pixels are as long as one of its own."""
        super().__init__()
        self.bands, self.steps = zip(*groups, strict=True)
        # as published for 10, 20 and 60 m: the coarser the pixels, the less is pooled
        pools = [max(0, 3 - step.bit_length()) for step in self.steps]
        self.branches = nn.ModuleList(Branch(b, width, p, recompute) for b, p in zip(self.bands, pools, strict=True))
        self.fusion = nn.Linear(2 * width * len(groups), 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(batch, band, row / step, col / step) of each group: its pixels before they were upsampled."""
        return [native(part, step) for part, step in zip(x.split(self.bands, 1), self.steps, strict=True)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [branch(part) for branch, part in zip(self.branches, self.parts(x), strict=True)]
        return self.fc(self.dropout(F.relu(self.fusion(torch.cat(features, 1)))))


def native(x: torch.Tensor, step: int) -> torch.Tensor:
    """Undoes bilinear upsampling (feed.upsample) by a whole number.

    x: (..., row, col) -> (..., row / step, col / step).

    Each coarse pixel is where the straight lines through the fine ones beside its centre meet there. That is exact for
    every size, crops as well, and the same after flips and quarter turns.
    """
    return _native_rows(_native_rows(x, step).mT, step).mT


def _native_rows(x: torch.Tensor, step: int) -> torch.Tensor:
    """x: (..., row, col) -> (..., row / step, col)."""
    if step % 2:
        return x[..., step // 2 :: step, :]  # the middle one of an odd number lies on the centre
    # of an even number, two on each side of it are half a fine pixel and one and a half away, on one straight line;
    # beyond the outermost centres the image goes on as it is
    coarse = x.shape[-2] // step
    x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
    first = step // 2 - 1
    far, near, near_too, far_too = (x[..., first + i :: step, :][..., :coarse, :] for i in range(4))
    return 0.75 * (near + near_too) - 0.25 * (far + far_too)
