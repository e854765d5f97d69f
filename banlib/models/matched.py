"""Students that keep a DenseNet teacher's block boundaries and change what is between them (section 2.2, table 2).

`edges` is `densenet.boundaries` of the teacher: for each block the channels it takes, its last unit gives, and its
transition gives. A student's stage takes the first and gives the last, so its stem and classifier have the teacher's
shapes.
"""
from functools import partial

import torch
from torch import nn

from .densenet import dense_block, features, head, stem, transition
from .resnet import BasicUnit, BottleneckUnit, stage


class Matched(nn.Module):
    """The teacher's stem, three stages of any kind, each closed by BN-ReLU-1x1 at the teacher's boundary, the head.

    blocks: three modules.    widths: the channels each of them gives.
    forward: float [B, in_channels, H, W] -> logits [B, classes]; H and W divide by 4.
    """

    def __init__(self, edges, blocks, widths, classes, in_channels=3):
        super().__init__()
        self.stem = stem(in_channels, edges[0][0])
        self.blocks = nn.ModuleList(blocks)
        # No 1x1 only where the teacher has none either and the channels already agree.
        self.transitions = nn.ModuleList(nn.Identity() if width == grown == given else transition(width, given)
                                         for width, (_, grown, given) in zip(widths, edges))
        self.head = head(edges[-1][2], classes)

    def forward(self, images):
        return self.head(features(self, images))


def match_wide_resnet(edges, units, ratio, classes, in_channels=3, dropout=0.0):
    """MatchWideResNet-units-ratio: basic units of width ratio x the channels the teacher's stage gives."""
    return _match_resnet(edges, partial(BasicUnit, dropout=dropout), units, ratio, classes, in_channels)


def match_pre_resnet(edges, units, ratio, classes, in_channels=3):
    """MatchPreResNet-units-ratio: the same with bottleneck units."""
    return _match_resnet(edges, BottleneckUnit, units, ratio, classes, in_channels)


def _match_resnet(edges, unit, units, ratio, classes, in_channels):
    widths = resnet_widths(edges, ratio)
    blocks = [stage(unit, units, taken, width) for (taken, _, _), width in zip(edges, widths)]
    return Matched(edges, blocks, widths, classes, in_channels)


def match_densenet(edges, units, ratio_in, ratio_out, classes, in_channels=3):
    """MatchDenseNet-units-a-b: a x the teacher's channels into each block, b/2 x the teacher's out of it.

    If a is not 1, a BN-ReLU-1x1 maps a stage's input to a x its channels before the first unit.
    """
    blocks, widths = [], []
    for (taken, _, _), (entry, growth) in zip(edges, densenet_shapes(edges, units, ratio_in, ratio_out)):
        squeeze = [transition(taken, entry)] if ratio_in != 1 else []
        blocks.append(nn.Sequential(*squeeze, *dense_block(units, entry, growth)))
        widths.append(entry + units * growth)
    return Matched(edges, blocks, widths, classes, in_channels)


def resnet_widths(edges, ratio):
    """Width of each stage, ratio x what the teacher's stage gives, rounded. ValueError if a bottleneck has no room."""
    widths = [round(ratio * given) for _, _, given in edges]
    if min(widths) < 4:
        raise ValueError(f"ratio {ratio:g} gives stages of {widths} channels, but each needs 4 or more: "
                         "take a larger ratio")
    return widths


def densenet_shapes(edges, units, ratio_in, ratio_out):
    """(channels into the first unit, growth) of each stage, rounded. ValueError if a stage would not grow."""
    shapes = []
    for taken, grown, _ in edges:
        entry = round(ratio_in * taken)
        shapes.append((entry, round((ratio_out / 2 * grown - entry) / units)))
    if min(min(shape) for shape in shapes) < 1:
        raise ValueError(f"ratios {ratio_in:g} and {ratio_out:g} over {units} units give (channels, growth) {shapes}, "
                         "but each must be 1 or more: take a larger second ratio or fewer units")
    return shapes


def share_ends(student, teacher):
    """Copy the teacher's stem and classifier into the student, and freeze them there; returns the student.

    The first and last layer only: the BatchNorm before the classifier stays the student's own, as it normalises the
    student's features. Frozen parameters have requires_grad False, so they get no gradient and no weight decay.
    Raises ValueError, before anything is copied, if the shapes differ.
    """
    pairs = [("stem", student.stem, teacher.stem), ("classifier", student.head.classifier, teacher.head.classifier)]
    for end, own, given in pairs:
        if own.weight.shape != given.weight.shape:
            raise ValueError(f"the student's {end} has weights {list(own.weight.shape)} and the teacher's "
                             f"{list(given.weight.shape)}: build a student that matches this teacher "
                             "(MatchWideResNet-2-1@DenseNetBC-40-12 names one) with the same classes and channels")
    with torch.no_grad():
        for _, own, given in pairs:
            for parameter, source in zip(own.parameters(), given.parameters(), strict=True):
                parameter.copy_(source)
                parameter.requires_grad_(False)
    return student
