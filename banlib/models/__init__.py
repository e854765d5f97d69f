"""Every network of the paper's tables, and their families, by name: build("DenseNetBC-90-60", classes=100)."""
import difflib
import math
import re
from numbers import Integral, Real
from reprlib import Repr

import torch
import torch.nn.functional as F
from torch import nn

from .. import paper
from .densenet import DenseNet, DenseUnit, boundaries
from .matched import densenet_shapes, match_densenet, match_pre_resnet, match_wide_resnet, resnet_widths, share_ends
from .resnet import preact_resnet, wide_resnet

__all__ = ["NAMES", "build", "skeleton", "parse", "shrunk", "params", "forward_macs", "pad_channels", "recompute", "audit",
           "boundaries", "share_ends", "DenseNet", "DenseUnit", "PaddedConv2d"]

NAMES = tuple(row.network for row in paper.TABLE1 + paper.TABLE2)

# What the numbers in a family's names are, in their order.
FAMILIES = {
    "DenseNetBC": ("depth", "growth"),
    "WideResNet": ("depth", "width"),
    "PreActResNet": ("depth",),
    "MatchPreResNet": ("units", "ratio"),
    "MatchWideResNet": ("units", "ratio"),
    "MatchDenseNet": ("units", "ratio_in", "ratio_out"),
}
PAPER_SPELLINGS = {
    "Pre-activation ResNet": "PreActResNet",
    "Wide-ResNet": "WideResNet",
    "Match-Pre-ResNet": "MatchPreResNet",
    "Match-Wide-ResNet": "MatchWideResNet",
    "Match-DenseNet": "MatchDenseNet",
}
MATCHED_TEACHER = "DenseNetBC-90-60"  # table 2's

# Table 1's (depth, growth) -> (units per block, third transition): the readings that meet the printed parameters.
TABLE1_READINGS = {(112, 33): (17, False), (90, 60): (14, True), (80, 80): (12, True), (80, 120): (12, True)}

# Well beyond the paper's, near enough that a slip of the keyboard costs neither minutes nor memory.
LARGEST = {"depth": 2000, "growth": 1000, "width": 100, "units": 500, "ratio": 16, "ratio_in": 16, "ratio_out": 16,
           "classes": 100_000, "in_channels": 1000, "image_size": 4096}
SMALLEST_RATIO = 0.01
LARGEST_PARAMS = 10**9

_brief = Repr()  # quotes what was given in messages, however long it is
_brief.maxstring = 80


def build(name, classes=100, in_channels=3, image_size=32, dropout=0.0):
    """A freshly initialised network on the CPU, drawn from torch's global generator (seed it with torch.manual_seed).

    The network maps float [B, in_channels, image_size, image_size] to logits [B, classes].
    dropout: from 0 to less than 1, used by wide residual units (WideResNet, MatchWideResNet) only.
    Raises ValueError, before any memory is taken, for an unknown name or a bad argument.
    """
    network = skeleton(name, classes, in_channels, image_size, dropout).to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.Linear):
            layer.reset_parameters()
            nn.init.zeros_(layer.bias)
    return network


def parse(name):
    """What a name says: (canonical name, family, arguments by their name).

    The paper's spellings are accepted: "Wide-ResNet-28-10" is "WideResNet-28-10". DenseNetBC-L-k-t3 has the third
    transition. A matched student names its teacher, if it is not DenseNetBC-90-60, after an @:
    "MatchWideResNet-2-1@DenseNetBC-40-12".
    Arguments: the numbers by FAMILIES; also units and final_transition for a DenseNetBC, teacher for a matched student.
    Raises ValueError with the nearest name, or with what was expected of a number.
    """
    if not isinstance(name, str):
        raise ValueError(f"a network is a name such as 'DenseNetBC-90-60', got {_brief.repr(name)}")
    grammar = r"(?P<family>.+?)(?P<numbers>(-[0-9.]+)+)(?P<third>-t3)?(@(?P<teacher>.+))?"
    found = re.fullmatch(grammar, name) if len(name) <= 200 else None
    family = found and PAPER_SPELLINGS.get(found["family"], found["family"])
    is_matched = family in FAMILIES and family.startswith("Match")
    if (family not in FAMILIES or (found["third"] and family != "DenseNetBC")
            or (found["teacher"] and not is_matched)):
        raise ValueError(_unknown(name))

    args = _numbers(name, family, found["numbers"][1:].split("-"))
    canonical = "-".join([family, *(f"{value:.15g}" for value in args.values())])
    if family == "DenseNetBC":
        args["units"], third = TABLE1_READINGS.get((args["depth"], args["growth"]), ((args["depth"] - 4) // 6, False))
        args["final_transition"] = third or bool(found["third"])
        canonical += "-t3" if found["third"] and not third else ""
    elif is_matched:
        args["teacher"], teacher_family, _ = parse(found["teacher"] or MATCHED_TEACHER)
        if teacher_family != "DenseNetBC":
            raise ValueError(f"the teacher after the @ of {name!r} must be a DenseNetBC, got {args['teacher']!r}")
        canonical += f"@{args['teacher']}" if args["teacher"] != MATCHED_TEACHER else ""
    _check_shape(name, family, args)
    return canonical, family, args


def shrunk(name, depth=1, width=1, teacher=None):
    """The name of a network of the tables with its depth and its width divided, for machines that cannot train it.

    Units in a stage are divided by `depth` and rounded up, growth and width by `width` and rounded to at least 1. A
    DenseNetBC loses its third transition: its classifier has few channels as it is. The one to four units of a
    MatchWideResNet are kept, since divided ones would be the same network. A matched student matches `teacher`, by
    default its own teacher shrunk likewise. With both divisors 1 only the teacher changes. ValueError as `parse`.
    """
    name, family, args = parse(name)
    units = {"WideResNet": lambda: (args["depth"] - 4) // 6, "PreActResNet": lambda: (args["depth"] - 2) // 9}
    units = math.ceil(units.get(family, lambda: args["units"])() / depth)
    narrow = lambda channels: max(1, round(channels / width))  # noqa: E731
    if family.startswith("Match"):
        own = name.partition("@")[0] if family == "MatchWideResNet" else "-".join(
            [family, str(units), *(f"{args[ratio]:.15g}" for ratio in FAMILIES[family][1:])])
        return parse(f"{own}@{teacher or shrunk(args['teacher'], depth, width)}")[0]
    if (depth, width) == (1, 1):
        return name
    if family == "DenseNetBC":
        return parse(f"DenseNetBC-{6 * units + 4}-{narrow(args['growth'])}")[0]
    if family == "WideResNet":
        return parse(f"WideResNet-{6 * units + 4}-{narrow(args['width'])}")[0]
    return parse(f"PreActResNet-{9 * units + 2}")[0]


def params(network, classes=100, in_channels=3):
    """Number of parameters. ValueError as `build`."""
    return _size(skeleton(network, classes, in_channels))


class PaddedConv2d(nn.Conv2d):
    """A convolution computed with channels padded by zeros to multiples of eight, for which matrix units are made.

    The same function of the same weights but for the order of sums.
    """

    def forward(self, x):
        taken, given = -self.in_channels % 8, -self.out_channels % 8
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, taken, 0, given))
        x = F.conv2d(F.pad(x, (0, 0, 0, 0, 0, taken)), weight, None, self.stride, self.padding)
        return x[:, : self.out_channels]


def pad_channels(network):
    """Make a `PaddedConv2d` of each convolution whose channels are no multiples of eight; returns the network.

    Growth 33 has hardly another. The stem, which reads three channels, stays. Meant for compiled networks: there the
    padding is part of the kernels around it, in eager mode it is a copy.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.in_channels > 3 and (layer.in_channels % 8 or layer.out_channels % 8):
            layer.__class__ = PaddedConv2d
    return network


def recompute(network):
    """Let each dense unit recompute what it would keep for the backward pass (`DenseUnit.new`); returns how many do."""
    units = [module for module in network.modules() if isinstance(module, DenseUnit)]
    for unit in units:
        unit.recompute = True
    return len(units)


def forward_macs(network, image_size=32, in_channels=3, classes=100):
    """Multiply-accumulates of all convolutions and the classifier for one image. ValueError as `build`."""
    return _macs(skeleton(network, classes, in_channels, image_size), in_channels, image_size)


def audit():
    """Our counts beside the paper's, a dict for each network of both tables.

    name, params, params_printed (millions, as printed), difference (ours from the print, in %), forward_macs
    (32x32 images), note (why the two, or name and network, do not agree).
    """
    rows = []
    for row in paper.TABLE1 + paper.TABLE2:
        network = skeleton(row.network)
        ours = _size(network)
        rows.append({"name": row.network, "params": ours, "params_printed": row.params_printed,
                     "difference": round(100 * (ours / (row.params_printed * 1e6) - 1), 2),
                     "forward_macs": _macs(network), "note": row.note})
    return rows


def skeleton(name, classes=100, in_channels=3, image_size=32, dropout=0.0):
    """The checked network on the meta device: shapes without memory."""
    _, family, args = parse(name)
    for what, value in {"classes": classes, "in_channels": in_channels, "image_size": image_size}.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= value <= LARGEST[what]:
            raise ValueError(f"{what} must be an integer from 1 to {LARGEST[what]}, got {_brief.repr(value)}")
    if image_size % 4:
        raise ValueError(f"image_size must divide by 4 (the networks halve it twice), got {image_size}: crop or pad")
    if not isinstance(dropout, Real) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to less than 1, got {_brief.repr(dropout)}")
    with torch.device("meta"):
        network = _assemble(family, args, classes, in_channels, dropout)
    if _size(network) > LARGEST_PARAMS:
        raise ValueError(f"network {name!r} has {_size(network) / 1e6:,.0f} M parameters, more than the "
                         f"{LARGEST_PARAMS / 1e6:,.0f} M allowed here: take a smaller one")
    return network


def _assemble(family, args, classes, in_channels, dropout):
    units, ends = args.get("units"), {"classes": classes, "in_channels": in_channels}
    if family == "DenseNetBC":
        return DenseNet((units,) * 3, args["growth"], final_transition=args["final_transition"], **ends)
    if family == "WideResNet":
        return wide_resnet(args["depth"], args["width"], dropout=dropout, **ends)
    if family == "PreActResNet":
        return preact_resnet(args["depth"], **ends)
    edges = _edges(args["teacher"])
    if family == "MatchPreResNet":
        return match_pre_resnet(edges, units, args["ratio"], **ends)
    if family == "MatchWideResNet":
        return match_wide_resnet(edges, units, args["ratio"], dropout=dropout, **ends)
    return match_densenet(edges, units, args["ratio_in"], args["ratio_out"], **ends)


def _edges(teacher):
    args = parse(teacher)[2]
    return boundaries((args["units"],) * 3, args["growth"], args["final_transition"])


def _size(network):
    return sum(p.numel() for p in network.parameters())


def _macs(network, in_channels=3, image_size=32):
    """Multiply-accumulates, counted by hooks while shapes alone pass through a network on the meta device."""
    macs = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):  # each output value is the product with one filter
            layer.register_forward_hook(lambda layer, _, out: macs.append(out.numel() * layer.weight[0].numel()))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = lambda x: x  # keeps the shape, and would take most of the time
    with torch.no_grad():
        network(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    return sum(macs)


def _numbers(name, family, texts):
    """{"depth": 90, "growth": 60} from ["90", "60"]; ValueError if they are too few, too many, or out of range."""
    expected = FAMILIES[family]
    if len(texts) != len(expected):
        raise ValueError(f"network {name!r} has {len(texts)} numbers, expected {len(expected)}: "
                         f"{family}-{'-'.join(expected)}")
    args = {}
    for what, text in zip(expected, texts):
        kind, pattern, least = int, r"[0-9]+", 1
        if what.startswith("ratio"):
            kind, pattern, least = float, r"[0-9]+(\.[0-9]+)?", SMALLEST_RATIO
        args[what] = kind(text) if re.fullmatch(pattern, text) else 0
        if not least <= args[what] <= LARGEST[what]:
            noun = "an integer" if kind is int else "a number"
            raise ValueError(f"{what} of {name!r} must be {noun} from {least} to {LARGEST[what]}, got {text}")
    return args


def _check_shape(name, family, args):
    depth = args.get("depth")
    if family == "DenseNetBC" and args["units"] < 1:
        raise ValueError(f"depth of {name!r} must be 10 or more (a unit in each of three blocks), got {depth}")
    if family == "WideResNet" and (depth < 10 or depth % 6 != 4):
        raise ValueError(f"depth of {name!r} must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}")
    if family == "PreActResNet" and (depth < 11 or depth % 9 != 2):
        raise ValueError(f"depth of {name!r} must be 9 n + 2 (11, 20, 29, ...), got {depth}")
    if family in ("MatchPreResNet", "MatchWideResNet"):
        resnet_widths(_edges(args["teacher"]), args["ratio"])
    if family == "MatchDenseNet":
        densenet_shapes(_edges(args["teacher"]), args["units"], args["ratio_in"], args["ratio_out"])


def _unknown(name):
    nearest = _nearest(name.strip()) if len(name) <= 100 else None
    hint = f"did you mean {nearest!r}?" if nearest else f"expected a name such as {MATCHED_TEACHER!r}"
    return f"unknown network {_brief.repr(name)}; {hint} (banlib networks lists all)"


def _nearest(name):
    """The nearest family with the numbers that were typed, else the nearest name of the tables, else None."""
    family, numbers, third, teacher = re.fullmatch(r"(.*?)((?:[-_ ][0-9.]+)*)(-t3)?(@.*)?", name, re.DOTALL).groups("")
    families = {known.lower(): known for known in FAMILIES}
    for near in difflib.get_close_matches(family.lower(), families, n=4, cutoff=0.6) if numbers else ():
        own = families[near]
        try:
            return parse(own + re.sub("[_ ]", "-", numbers) + third * (own == "DenseNetBC")
                         + teacher * own.startswith("Match") * (teacher != "@"))[0]
        except ValueError:
            pass  # that family does not take those numbers: try the next
    names = {known.lower(): known for known in NAMES}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return names[near[0]] if near else None
