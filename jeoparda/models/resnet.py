"""ResNet (He et al., "Deep residual learning for image recognition", CVPR 2016), any number of bands.

The stride of a bottleneck is in its 3x3 convolution (v1.5), and parameters are named as torchvision names them, so
that published weights load.
"""

import torch
from torch import nn

from jeoparda.models.layers import run


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. x: (batch, channel, row, col) -> (batch, width, row/stride, col/stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; gives 4 * width channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """x: (batch, band, row, col) float32 -> logits (batch, class). Any rows and cols; up to 32 px, the last
    map is one pixel."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        bands: int,
        classes: int,
        width: int,
        dropout: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(bands, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for i, depth in enumerate(layers):
            channels = width << i
            blocks = []
            for k in range(depth):
                blocks.append(block(inputs, channels, 2 if i > 0 and k == 0 else 1))
                inputs = channels * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, classes)
        self.recompute = recompute
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channel, row / 32, col / 32): what the pooling sees."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            for block in getattr(self, f"layer{i}"):
                x = run(block, x, recompute=self.recompute)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.avgpool(self.features(x)).flatten(1)))


def resnet18(bands: int, classes: int, width: int, dropout: float, recompute: bool) -> ResNet:
    """18 layers of basic blocks."""
    return ResNet(BasicBlock, (2, 2, 2, 2), bands, classes, width, dropout, recompute)


def resnet34(bands: int, classes: int, width: int, dropout: float, recompute: bool) -> ResNet:
    """34 layers of basic blocks."""
    return ResNet(BasicBlock, (3, 4, 6, 3), bands, classes, width, dropout, recompute)


def resnet50(bands: int, classes: int, width: int, dropout: float, recompute: bool) -> ResNet:
    """50 layers of bottlenecks."""
    return ResNet(Bottleneck, (3, 4, 6, 3), bands, classes, width, dropout, recompute)


def resnet101(bands: int, classes: int, width: int, dropout: float, recompute: bool) -> ResNet:
    """101 layers of bottlenecks."""
    return ResNet(Bottleneck, (3, 4, 23, 3), bands, classes, width, dropout, recompute)


def resnet152(bands: int, classes: int, width: int, dropout: float, recompute: bool) -> ResNet:
    """152 layers of bottlenecks."""
    return ResNet(Bottleneck, (3, 8, 36, 3), bands, classes, width, dropout, recompute)
