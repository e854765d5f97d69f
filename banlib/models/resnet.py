"""Residual networks with pre-activation units: WideResNet-d-k and PreActResNet-d."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from banlib.models.densenet import head, stem


class BasicUnit(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-dropout-3x3 plus the shortcut (Zagoruyko and Komodakis 2016).

    float [B, channels, H, W] -> float [B, width, H/stride, W/stride].
    """

    def __init__(self, channels, width, stride=1, dropout=0.0):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x):
        active = F.relu(self.norm1(x), inplace=True)
        new = F.relu(self.norm2(self.conv1(active)), inplace=True)
        new = self.conv2(self.dropout(new))
        return new + (x if self.shortcut is None else self.shortcut(active))


class BottleneckUnit(nn.Module):
    """BN-ReLU-1x1(width/4)-BN-ReLU-3x3-BN-ReLU-1x1(width) plus the shortcut (He et al. 2016b).

    float [B, channels, H, W] -> float [B, width, H/stride, W/stride].
    """

    def __init__(self, channels, width, stride=1):
        super().__init__()
        narrow = width // 4
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, narrow, 1, stride, bias=False)
        self.norm2 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x):
        active = F.relu(self.norm1(x), inplace=True)
        new = F.relu(self.norm2(self.conv1(active)), inplace=True)
        new = self.conv3(F.relu(self.norm3(self.conv2(new)), inplace=True))
        return new + (x if self.shortcut is None else self.shortcut(active))


def resnet(unit, units, widths, classes, in_channels=3):
    """Stem of 16 channels, three stages (the second and the third halve the image), head.

    unit(channels, width, stride) -> module; units: in each stage; widths: channels of each stage.
    float [B, in_channels, H, W] -> logits [B, classes]; H and W divide by 4.
    """
    shapes = zip((16, *widths[:-1]), widths, (1, 2, 2), strict=True)
    stages = nn.Sequential(*(stage(unit, units, *shape) for shape in shapes))
    layers = {"stem": stem(in_channels, 16), "blocks": stages, "head": head(widths[-1], classes)}
    return nn.Sequential(OrderedDict(layers))


class Dropout(nn.Dropout):
    """Dropout whose mask does not depend on how the images lie in memory."""

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        mask = torch.empty_like(x, memory_format=torch.contiguous_format).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)


def stage(unit, units, channels, width, stride=1):
    """Units of one width; the first one changes the channels and does the stride."""
    rest = (unit(width, width, 1) for _ in range(units - 1))
    return nn.Sequential(unit(channels, width, stride), *rest)


def shortcut(channels, width, stride):
    """A 1x1 convolution of the activated input, or None, the identity, where no shape changes."""
    if channels == width and stride == 1:
        return None
    return nn.Conv2d(channels, width, 1, stride, bias=False)
