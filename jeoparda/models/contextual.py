"""A contextual classifier: one class for a chip, by what surrounds it.

After CerraNet (Miranda et al., for CBERS-4A chips of the Cerrado), whose convolutions have 64 to 256 channels; with
BatchNorm, five stages in place of six, so that chips of 64 px keep some context, and one hidden layer.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from jeoparda.models.layers import run, stage

STAGES = 5


class Contextual(nn.Module):
    """x: (batch, band, row, col) float32 -> logits (batch, class). Rows and cols from 32 px on."""

    def __init__(self, bands: int, classes: int, width: int, dropout: float, recompute: bool) -> None:
        super().__init__()
        channels = [bands, *(width << i // 2 for i in range(STAGES))]
        self.stages = nn.ModuleList(stage(a, b, 3, pool=True) for a, b in pairwise(channels))
        self.hidden = nn.Linear(channels[-1], channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels[-1], classes)
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.stages:
            x = run(part, x, recompute=self.recompute)
        return self.fc(self.dropout(F.relu(self.hidden(x.mean((2, 3))))))
