"""What a device can do at most, and how near to it a training step comes."""

import torch
from rounds import timed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from banlib import models


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write, each as if it found nothing in a cache."""

    bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            leaves = tree_leaves((args, kwargs, out))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return out


def traffic(name, precision, batch=2):
    """Bytes that an eager forward and backward pass moves for each 32x32 image, with weights."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        network = models.build(name).to("meta", dtype)
        with Traffic() as counted:
            network(torch.empty(batch, 3, 32, 32, dtype=dtype)).sum().backward()
    return counted.bytes / batch


def ceilings(case, images_per_second):
    """The device's rates, measured now, and the shares of them that the plain step reaches.

    TFLOP/s of a large matrix product in the step's precision, GB/s of a copy. The step's bytes are
    an estimate, see `traffic`.
    """
    device, precision = case.device, case.numerics.precision
    cuda, dtype = device.type == "cuda", torch.bfloat16 if precision == "bf16" else torch.float32
    size, largest, spent = 256, 8192 if cuda else 2048, 0
    while not spent or (spent < 0.05 and size < largest):  # emulated, bf16 takes minutes
        size = 2 * size if spent else size
        a = torch.ones(size, size, dtype=dtype, device=device)
        torch.mm(a, a)
        spent = timed(lambda images, a=a: a @ a, 1, device)[0]
    source = torch.zeros(2**30 if cuda else 2**27, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    multiply = min(timed(lambda images: a @ a, 1, device)[0] for _ in range(10))
    copy = min(timed(lambda images: target.copy_(source), 1, device)[0] for _ in range(10))
    flops, bandwidth = 2 * size**3 / multiply, 2 * source.nbytes / copy
    arithmetic = 6 * models.forward_macs(case.name)  # backward is twice forward; 2 for each MAC
    return {
        "matmul_tflops": round(flops / 1e12, 3),
        "copy_gb_per_second": round(bandwidth / 1e9, 2),
        "share_of_matmul": round(arithmetic * images_per_second / flops, 3),
        "share_of_copy": round(traffic(case.name, precision) * images_per_second / bandwidth, 3),
    }
