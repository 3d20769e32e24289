"""U-Net (Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI
2015) as a classifier, with BatchNorm, and with zeros around the image so that maps keep its size."""

import torch
import torch.nn.functional as F
from torch import nn

from jeoparda.models.layers import run, stage

LEVELS = 4  # each halves the image


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*stage(inputs, outputs, 3), *stage(outputs, outputs, 3))


class _Up(nn.Module):
    """x: (batch, 2 * width, row, col), beside: (batch, width, 2 * row, 2 * col) -> as beside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.convs = _double(2 * width, width)

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        return self.convs(torch.cat([beside, self.up(x)], 1))


class UNet(nn.Module):
    """x: (batch, band, row, col) float32 -> logits (batch, class): the mean of each pixel's. Any rows and cols."""

    def __init__(self, bands: int, classes: int, width: int, dropout: float, recompute: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double(bands, width)])
        for i in range(LEVELS):
            self.down.append(nn.Sequential(nn.MaxPool2d(2), *_double(width << i, width << i + 1)))
        self.up = nn.ModuleList(_Up(width << i) for i in reversed(range(LEVELS)))
        self.dropout = nn.Dropout2d(dropout)  # whole channels: pixels dropped one by one would cancel in the mean
        self.head = nn.Conv2d(width, classes, 1)
        self.recompute = recompute

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, class, row, col): the logits of each pixel of x."""
        rows, cols = x.shape[-2:]
        whole = 2**LEVELS
        x = F.pad(x, (0, -cols % whole, 0, -rows % whole), mode="replicate")
        levels: list[torch.Tensor] = []
        for part in self.down:
            x = run(part, x, recompute=self.recompute)
            levels.append(x)
        for part, beside in zip(self.up, levels[-2::-1], strict=True):
            x = run(part, x, beside, recompute=self.recompute)
        return self.head(self.dropout(x))[..., :rows, :cols]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pixels(x).mean((2, 3))
