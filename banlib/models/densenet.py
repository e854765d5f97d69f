"""DenseNet-BC: dense blocks of bottleneck units, with compressing transitions between them."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from banlib.names import boundaries


class DenseUnit(nn.Module):
    """BN-ReLU-1x1(4k)-BN-ReLU-3x3(k): appends k = growth new channels to its input.

    float [B, channels, H, W] -> float [B, channels + growth, H, W].
    """

    def __init__(self, channels, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.new(x)], dim=1)

    def new(self, x):
        """The channels that the unit appends: float [B, growth, H, W]."""
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class Staged(nn.Module):
    """Stem, three stages, each closed by a transition to a DenseNet's boundary, head.

    edges: `names.boundaries`; stages: modules; widths: the channels that each of them gives.
    forward: float [B, in_channels, H, W] -> logits [B, classes]; H and W divide by 4.
    """

    def __init__(self, edges, stages, widths, classes, in_channels=3):
        super().__init__()
        self.stem = stem(in_channels, edges[0][0])
        self.blocks = nn.ModuleList(stages)
        # No 1x1 only where the DenseNet has none either and the channels agree already.
        self.transitions = nn.ModuleList(
            nn.Identity() if width == grown == closed else transition(width, closed)
            for width, (_, grown, closed) in zip(widths, edges, strict=True)
        )
        self.head = head(edges[-1][2], classes)

    def forward(self, images):
        x = self.stem(images)
        for number, (block, closing) in enumerate(zip(self.blocks, self.transitions, strict=True)):
            if number > 0:  # between blocks, not after the last
                x = F.avg_pool2d(x, 2)
            x = closing(block(x))
        return self.head(x)


class DenseNet(Staged):
    """Stages of dense units: `units` of them in each block, each appends `growth` channels.

    final_transition: a third BN-ReLU-1x1, without pooling, as in three networks of table 1.
    """

    def __init__(self, units, growth, classes, in_channels=3, final_transition=False):
        edges = boundaries(units, growth, final_transition)
        blocks = [dense_block(n, edge[0], growth) for n, edge in zip(units, edges, strict=True)]
        super().__init__(edges, blocks, [grown for _, grown, _ in edges], classes, in_channels)


def stem(in_channels, channels):
    return nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)


def dense_block(units, channels, growth):
    return nn.Sequential(*(DenseUnit(channels + n * growth, growth) for n in range(units)))


def transition(channels, out_channels):
    """BN-ReLU-1x1: float [B, channels, H, W] -> float [B, out_channels, H, W]."""
    conv = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), conv)


def head(channels, classes):
    """BN-ReLU-global average-classifier: float [B, channels, h, w] -> logits [B, classes]."""
    norm, pool = nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1)
    layers = {"norm": norm, "relu": nn.ReLU(inplace=True), "pool": pool, "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers, classifier=nn.Linear(channels, classes)))
