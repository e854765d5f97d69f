"""DenseNet-BC: dense blocks of bottleneck units, with compressing transitions between them."""
import contextlib
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class DenseUnit(nn.Module):
    """BN-ReLU-1x1(4k)-BN-ReLU-3x3(k): appends k = growth new channels to what it was given.

    float [B, channels, H, W] -> float [B, channels + growth, H, W].
    recompute: True trains in about half of the memory, see `new`.
    """

    recompute = False

    def __init__(self, channels, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        if self.recompute and self.training and not torch.compiler.is_compiling():
            new = checkpoint(self.new, x, use_reentrant=False, preserve_rng_state=False,
                             context_fn=lambda: (contextlib.nullcontext(), self.statistics_kept()))
        else:
            new = self.new(x)
        return torch.cat([x, new], dim=1)

    def new(self, x):
        """The channels that the unit appends. With `recompute` nothing in here is kept for the backward pass, which
        computes it again from x: the same bits, for a third more arithmetic. A compiler weighs that by itself."""
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))

    @contextlib.contextmanager
    def statistics_kept(self):
        """BatchNorm's running statistics do not move inside: they have seen the batch already."""
        before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in (self.norm1, self.norm2)]
        for norm, _, _ in before:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, momentum, count in before:
                norm.momentum, norm.num_batches_tracked = momentum, count


class DenseNet(nn.Module):
    """Stem, three dense blocks with transitions, head.

    units: dense units in each of the three blocks.    growth: channels that each unit appends.
    final_transition: a third BN-ReLU-1x1 after the last block, without pooling (three of table 1's networks have it).
    forward: float [B, in_channels, H, W] -> logits [B, classes]; H and W divide by 4.
    """

    def __init__(self, units, growth, classes, in_channels=3, final_transition=False):
        super().__init__()
        edges = boundaries(units, growth, final_transition)
        self.stem = stem(in_channels, edges[0][0])
        self.blocks = nn.ModuleList(dense_block(n, taken, growth) for n, (taken, _, _) in zip(units, edges))
        self.transitions = nn.ModuleList(transition(grown, given) if given != grown else nn.Identity()
                                         for _, grown, given in edges)
        self.head = head(edges[-1][2], classes)

    def forward(self, images):
        return self.head(features(self, images))


def boundaries(units, growth, final_transition):
    """Channels at the edges of each block: [(into the block, out of its last unit, after its transition), ...].

    The stem gives 2 growth channels (the DenseNet paper's BC setting); a transition halves, an odd count by floor.
    """
    edges, channels = [], 2 * growth
    for block, count in enumerate(units):
        grown = channels + count * growth
        given = grown // 2 if final_transition or block < len(units) - 1 else grown
        edges.append((channels, grown, given))
        channels = given
    return edges


def features(network, images):
    """What the head of a network with dense boundaries sees: float [B, channels, H/4, W/4]."""
    x = network.stem(images)
    for number, (block, closing) in enumerate(zip(network.blocks, network.transitions)):
        if number > 0:  # between blocks, not after the last
            x = F.avg_pool2d(x, 2)
        x = closing(block(x))
    return x


def stem(in_channels, channels):
    return nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)


def dense_block(units, channels, growth):
    return nn.Sequential(*(DenseUnit(channels + n * growth, growth) for n in range(units)))


def transition(channels, out_channels):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
                         nn.Conv2d(channels, out_channels, kernel_size=1, bias=False))


def head(channels, classes):
    """BN-ReLU-global average-classifier: float [B, channels, h, w] -> logits [B, classes]."""
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True),
                                     pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
                                     classifier=nn.Linear(channels, classes)))
