"""Students that keep a DenseNet teacher's block boundaries and change what is between them.

Section 2.2, table 2. `edges` are the teacher's `names.boundaries`: a student's stages take and
give the channels of the teacher's blocks, so its stem and classifier have the teacher's shapes.
"""

import torch
from torch import nn

from banlib.models.densenet import Staged, dense_block, transition
from banlib.models.resnet import stage
from banlib.names import densenet_shapes, resnet_widths


def match_resnet(edges, unit, units, ratio, classes, in_channels=3):
    """Residual stages, ratio x as wide as the teacher's; unit(channels, width) -> module."""
    widths = resnet_widths(edges, ratio)
    entries = [channels for channels, _, _ in edges]
    stages = [stage(unit, units, *pair) for pair in zip(entries, widths, strict=True)]
    return Staged(edges, stages, widths, classes, in_channels)


def match_densenet(edges, units, ratio_in, ratio_out, classes, in_channels=3):
    """Dense stages: ratio_in x the teacher's channels in, ratio_out / 2 x its block's out."""
    stages, widths = [], []
    shapes = densenet_shapes(edges, units, ratio_in, ratio_out)
    for (channels, _, _), (entry, growth) in zip(edges, shapes, strict=True):
        squeeze = [transition(channels, entry)] if ratio_in != 1 else []  # before the first unit
        stages.append(nn.Sequential(*squeeze, *dense_block(units, entry, growth)))
        widths.append(entry + units * growth)
    return Staged(edges, stages, widths, classes, in_channels)


@torch.no_grad()
def share_ends(student, teacher):
    """Copy the teacher's stem and classifier into the student and freeze them; returns the student.

    The BatchNorm before the classifier stays the student's own: it normalizes its own features.
    Raises ValueError, before anything is copied, if the shapes differ.
    """
    ends = {"stem": (student.stem, teacher.stem)}
    ends["classifier"] = student.head.classifier, teacher.head.classifier
    for end, (own, given) in ends.items():
        if own.weight.shape != given.weight.shape:
            shapes = f"{list(own.weight.shape)} and the teacher's {list(given.weight.shape)}"
            advice = "take MatchWideResNet-2-1@ that teacher, with the same classes and channels"
            raise ValueError(f"the student's {end} has weights {shapes}: {advice}")
    for own, given in ends.values():
        own.load_state_dict(given.state_dict())
        own.requires_grad_(False)
    return student
