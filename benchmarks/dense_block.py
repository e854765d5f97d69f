"""A dense block that moves and keeps less, in plain PyTorch: the eager block to the order of sums.

A layer's statistics are those of features that other layers read too: they are computed once, and
what they add to a gradient is taken off once. BN-ReLU-1x1 goes over pieces of the batch that stay
in a cache. keep, for the backward pass: "all"; "bottleneck", the features and what the 1x1
convolutions gave; "features", these alone. `dense_step.py` measures what that gains.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from banlib.models import DenseUnit

PIECE = 4 * 2**20  # bytes of a layer's input that are computed at once


def main_pass(ctx, keep, eps, x, *weights):
    """Features of a block, then statistics: (mean, variance) of them and of each bottleneck."""
    mean, var = moments(x)
    features, bottlenecks, kept = x, [], []
    for gamma1, beta1, weight1, gamma2, beta2, weight2 in grouped(weights):
        norm, weight1, weight2 = (mean, var, gamma1, beta1, eps), weight1.to(x), weight2.to(x)
        h, z = bottleneck(features, norm, weight1, keep)
        inner = moments(h)
        y = active(h, (*inner, gamma2, beta2, eps))
        new = F.conv2d(y, weight2, padding=1)
        kept.append({"all": (z, h, y), "bottleneck": (None, h, None)}.get(keep, (None,) * 3))
        features, bottlenecks = torch.cat([features, new], 1), bottlenecks + [inner]
        mean, var = (torch.cat(pair) for pair in zip((mean, var), moments(new), strict=True))
    ctx.save_for_backward(features, mean, var, *weights)
    ctx.keep, ctx.eps, ctx.kept, ctx.bottlenecks = keep, eps, kept, bottlenecks
    statistics = [moment for pair in [(mean, var), *bottlenecks] for moment in pair]
    ctx.mark_non_differentiable(*statistics)
    return features, *statistics


def back_pass(ctx, gradient):
    """Gradients of a block's input and weights.

    Of a layer, dx = a dz - q x - r, where q and r follow from its sums over the batch. They are
    added up over the layers that read a feature, and taken off once, before its own unit.
    """
    features, mean, var, *weights = ctx.saved_tensors
    total, grads = gradient.contiguous(memory_format=torch.channels_last).clone(), []
    channels, count = len(mean), features.numel() // len(mean)
    all_q, all_r = torch.zeros_like(mean), torch.zeros_like(mean)
    for unit, inner in reversed(list(zip(grouped(weights), ctx.bottlenecks, strict=True))):
        gamma1, beta1, weight1, gamma2, beta2, weight2 = unit
        weight1, weight2 = weight1.to(features), weight2.to(features)
        own, channels = slice(channels - len(weight2), channels), channels - len(weight2)
        norm = (mean[:channels], var[:channels], gamma1, beta1, ctx.eps)
        z, h, y = ctx.kept.pop()
        h = bottleneck(features[:, :channels], norm, weight1)[0] if h is None else h
        norm2 = (*inner, gamma2, beta2, ctx.eps)
        y = active(h, norm2) if y is None else y
        new = corrected(total[:, own], features[:, own], all_q[own], all_r[own])
        dh, dweight2 = convolution_back(new, y, weight2, 1)
        dh, *sums2 = norm_back(dh, y, h, norm2, batch=True)
        sums1, dweight1 = [0, 0], 0
        for piece in pieces(features[:, :channels], ctx.keep):
            x = compact(features[piece, :channels])
            active_x = active(x, norm) if z is None else z
            dx, dweight = convolution_back(dh[piece], active_x, weight1, 0)
            dx, *sums = norm_back(dx, active_x, x, norm)
            total[piece, :channels] += dx
            sums1 = [old + new for old, new in zip(sums1, sums, strict=True)]
            dweight1 = dweight1 + dweight.to(mean)
        scale = (norm[1] + ctx.eps).rsqrt()
        q = gamma1 * scale.square() * sums1[0] / count
        all_q[:channels] += q
        all_r[:channels] += gamma1 * scale * sums1[1] / count - norm[0] * q
        grads = [*sums1, dweight1, *sums2, dweight2.to(mean), *grads]
    entry = slice(0, channels)
    return corrected(total[:, entry], features[:, entry], all_q[entry], all_r[entry]), *grads


class Function(torch.autograd.Function):
    forward = staticmethod(main_pass)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        return None, None, *back_pass(ctx, gradient)


def grouped(weights):
    return [weights[at : at + 6] for at in range(0, len(weights), 6)]


def compact(x):
    return x.contiguous(memory_format=torch.channels_last)


def moments(x):
    """Mean and biased variance of each channel, in float32 where x has fewer bits."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    running = [torch.zeros(x.shape[1], dtype=dtype) for _ in range(2)]  # they set the dtype
    return torch.batch_norm_update_stats(x, *running, 0.0)


def pieces(x, keep):
    """Slices of the batch; one where everything is kept."""
    image = x[0].numel() * x.element_size()
    images = len(x) if keep == "all" else max(1, PIECE // image)
    return [slice(at, at + images) for at in range(0, len(x), images)]


def active(x, norm):
    """ReLU of the normalized x, by statistics that are known."""
    mean, var, gamma, beta, eps = norm
    return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps).relu_()


def bottleneck(x, norm, weight, keep=None):
    """BN-ReLU-1x1: its output and, where it is computed at once, what the convolution read."""
    out = []
    for piece in pieces(x, keep):
        z = active(compact(x[piece]), norm)
        out.append(F.conv2d(z, weight))
    return (torch.cat(out), None) if keep != "all" else (out[0], z)


def convolution_back(gradient, x, weight, padding):
    shape = ([1, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    both = [True, True, False]
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape, both)[:2]


def norm_back(gradient, z, x, norm, batch=False):
    """Gradients of x, gamma and beta; batch: as the statistics are of x itself. Takes gradient."""
    mean, var, gamma, _, eps = norm
    torch.ops.aten.threshold_backward.grad_input(gradient, z, 0, grad_input=gradient)
    known = (mean, var, mean, (var + eps).rsqrt())
    return torch.ops.aten.native_batch_norm_backward(
        gradient, x, gamma, *known, batch, eps, [True] * 3
    )


def corrected(gradient, x, q, r):
    q, r = (each.to(x).view(-1, 1, 1) for each in (q, r))
    return torch.addcmul(compact(gradient), x, q, value=-1).sub_(r)


class Block(nn.Sequential):
    """The dense units of a block; as ever where nothing is learned."""

    keep = "features"

    def forward(self, x):
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        layers = [[unit.norm1, unit.conv1, unit.norm2, unit.conv2] for unit in self]
        weights = [parameter for unit in layers for each in unit for parameter in each.parameters()]
        out, mean, var, *inner = Function.apply(self.keep, layers[0][0].eps, x, *weights)
        count = x.numel() // x.shape[1]
        for unit in self:
            channels, inner_mean, inner_var = unit.norm1.num_features, inner.pop(0), inner.pop(0)
            learn(unit.norm1, mean[:channels], var[:channels], count)
            learn(unit.norm2, inner_mean, inner_var, count)
        return out


@torch.no_grad()
def learn(norm, mean, var, count):
    """What BatchNorm does to its running statistics, the variance without its bias."""
    norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
    norm.running_var.lerp_(var.to(norm.running_var) * count / (count - 1), norm.momentum)
    norm.num_batches_tracked += 1


def replace(network, keep):
    """A `Block` of each stage that has dense units alone, in place; how many there are."""
    stages = [each for each in network.modules() if type(each) is nn.Sequential]
    blocks = [stage for stage in stages if all(type(unit) is DenseUnit for unit in stage)]
    for block in blocks:
        block.__class__, block.keep = Block, keep
    return len(blocks)
