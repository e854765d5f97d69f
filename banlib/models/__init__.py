"""Every network of the paper's tables by name: build("DenseNetBC-90-60", classes=100)."""

from functools import partial
from numbers import Integral, Real

import torch
from torch import nn

from banlib.models.densenet import DenseNet, DenseUnit
from banlib.models.matched import match_densenet, match_resnet, share_ends
from banlib.models.resnet import BasicUnit, BottleneckUnit, resnet
from banlib.names import boundaries, edges_of, parse

__all__ = ["build", "skeleton", "params", "forward_macs", "share_ends"]
__all__ += ["DenseNet", "DenseUnit", "boundaries", "parse"]

LARGEST = {"classes": 10**5, "in_channels": 1000, "image_size": 4096, "params": 10**9}


def build(name, classes=100, in_channels=3, image_size=32, dropout=0.0):
    """A freshly initialized network on the CPU, drawn from torch's global generator.

    It maps float [B, in_channels, image_size, image_size] to logits [B, classes].
    dropout: from 0 to less than 1; only wide residual units have it.
    Raises ValueError, before any memory is taken, for an unknown name or a bad argument.
    """
    network = skeleton(name, classes, in_channels, image_size, dropout).to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d | nn.Linear):
            layer.reset_parameters()
    nn.init.zeros_(network.head.classifier.bias)
    return network


def skeleton(name, classes=100, in_channels=3, image_size=32, dropout=0.0):
    """The checked network on the meta device: shapes without memory. Raises as `build`."""
    _, family, args = parse(name)
    given = {"classes": classes, "in_channels": in_channels, "image_size": image_size}
    for what, value in given.items():
        whole = isinstance(value, Integral) and type(value) is not bool
        if not whole or not 1 <= value <= LARGEST[what]:
            form = f"an integer from 1 to {LARGEST[what]}"
            raise ValueError(f"{what} must be {form}, got {value!r:.80}")
    if image_size % 4:
        why = "the networks halve it twice"
        raise ValueError(f"image_size must divide by 4 ({why}), got {image_size}: crop or pad")
    if type(dropout) is bool or not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to less than 1, got {dropout!r:.80}")
    with torch.device("meta"):
        network = assemble(family, args, classes, in_channels, dropout)
    if size(network) > LARGEST["params"]:
        millions, most = (f"{count / 1e6:,.0f} M" for count in (size(network), LARGEST["params"]))
        problem = f"has {millions} parameters, more than the {most} allowed here"
        raise ValueError(f"network {name!r} {problem}: take a smaller one")
    return network


def assemble(family, args, classes, in_channels, dropout):
    basic = partial(BasicUnit, dropout=dropout)
    units, ends = args.get("units"), (classes, in_channels)
    if family == "DenseNetBC":
        return DenseNet((units,) * 3, args["growth"], *ends, args["final_transition"])
    if family == "WideResNet":
        widths = [args["width"] * channels for channels in (16, 32, 64)]
        return resnet(basic, (args["depth"] - 4) // 6, widths, *ends)
    if family == "PreActResNet":
        return resnet(BottleneckUnit, (args["depth"] - 2) // 9, [64, 128, 256], *ends)
    edges = edges_of(args["teacher"])
    if family == "MatchDenseNet":
        return match_densenet(edges, units, args["ratio_in"], args["ratio_out"], *ends)
    unit = basic if family == "MatchWideResNet" else BottleneckUnit
    return match_resnet(edges, unit, units, args["ratio"], *ends)


def params(network, classes=100, in_channels=3):
    """Number of parameters of a network by its name. Raises as `build`."""
    return size(skeleton(network, classes, in_channels))


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def forward_macs(network, image_size=32, in_channels=3, classes=100):
    """Multiply-accumulates of convolutions and classifier for one image. Raises as `build`."""
    network, macs = skeleton(network, classes, in_channels, image_size), []

    def count(layer, _, out):  # each output value is the product with one filter
        macs.append(out.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = nn.Identity().forward  # keeps the shape, and most of the time
    network(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    return sum(macs)
