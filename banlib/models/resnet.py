"""Residual networks with pre-activation units: WideResNet-d-k and PreActResNet-d."""
from functools import partial

import torch.nn.functional as F
from torch import nn

from .densenet import head, stem


class BasicUnit(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-dropout-3x3 plus the shortcut (Zagoruyko and Komodakis 2016, "Wide residual networks").

    float [B, channels, H, W] -> float [B, width, H/stride, W/stride].
    """

    def __init__(self, channels, width, stride=1, dropout=0.0):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x):
        active = F.relu(self.norm1(x), inplace=True)
        new = F.relu(self.norm2(self.conv1(active)), inplace=True)
        new = self.conv2(self.dropout(new))
        return new + (x if self.shortcut is None else self.shortcut(active))


class BottleneckUnit(nn.Module):
    """BN-ReLU-1x1(width/4)-BN-ReLU-3x3-BN-ReLU-1x1(width) plus the shortcut (He et al. 2016, "Identity mappings").

    float [B, channels, H, W] -> float [B, width, H/stride, W/stride].
    """

    def __init__(self, channels, width, stride=1):
        super().__init__()
        narrow = width // 4
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, narrow, kernel_size=1, stride=stride, bias=False)
        self.norm2 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, kernel_size=1, bias=False)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x):
        active = F.relu(self.norm1(x), inplace=True)
        new = F.relu(self.norm2(self.conv1(active)), inplace=True)
        new = self.conv3(F.relu(self.norm3(self.conv2(new)), inplace=True))
        return new + (x if self.shortcut is None else self.shortcut(active))


class ResNet(nn.Module):
    """Stem of 16 channels, three stages of pre-activation units (the second and third halve the image), head.

    unit: (channels, width, stride) -> module.    widths: output channels of each stage.
    forward: float [B, in_channels, H, W] -> logits [B, classes]; H and W divide by 4.
    """

    def __init__(self, unit, units, widths, classes, in_channels=3):
        super().__init__()
        self.stem = stem(in_channels, 16)
        self.blocks = nn.Sequential(*(stage(unit, units, taken, width, stride)
                                      for taken, width, stride in zip((16, *widths), widths, (1, 2, 2))))
        self.head = head(widths[-1], classes)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)))


def wide_resnet(depth, width, classes, in_channels=3, dropout=0.0):
    """WideResNet-depth-width: depth 6 n + 4, n basic units per stage."""
    widths = (16 * width, 32 * width, 64 * width)
    return ResNet(partial(BasicUnit, dropout=dropout), (depth - 4) // 6, widths, classes, in_channels)


def preact_resnet(depth, classes, in_channels=3):
    """PreActResNet-depth: depth 9 n + 2, n bottleneck units per stage."""
    return ResNet(BottleneckUnit, (depth - 2) // 9, (64, 128, 256), classes, in_channels)


def stage(unit, units, channels, width, stride=1):
    """`units` units of one width; the first takes `channels` channels and does the stride."""
    return nn.Sequential(unit(channels, width, stride), *(unit(width, width, 1) for _ in range(units - 1)))


def shortcut(channels, width, stride):
    """A 1x1 convolution of the activated input where the unit changes shape, else None: the identity."""
    if channels == width and stride == 1:
        return None
    return nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False)
