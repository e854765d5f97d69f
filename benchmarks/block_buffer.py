"""Would one buffer for all features of a dense block pay in eager PyTorch?

It spares the copies that `cat` makes, but BatchNorm then reads a slice of wider rows. Printed are
the median milliseconds of both, forward and backward, for each unit of the first block of
DenseNetBC-40-12 at batch 128, and the ratio over the block.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from banlib import names
from banlib.runs import machine

BATCH, ROUNDS = 128, 7


def main():
    device = machine.choose_device()
    numerics = machine.numerics("auto", device)
    args = names.parse("DenseNetBC-40-12")[2]
    blocks = names.boundaries((args["units"],) * 3, args["growth"], args["final_transition"])
    start, grown, _ = blocks[0]
    buffer, rows = features(grown, numerics, device), []
    for channels in range(start, grown, args["growth"]):
        parts = [features(width, numerics, device) for width in (channels, args["growth"])]
        norm = median(normalize, parts[0])
        cat, part = median(torch.cat, parts, 1), median(normalize, buffer[:, :channels])
        rows.append((norm, cat, part))
        print(f"{channels:4d} channels: BatchNorm {norm:7.2f} and cat {cat:6.2f}", end="; ")
        print(f"BatchNorm of a slice {part:7.2f}")
    norms, cats, slices = map(sum, zip(*rows, strict=True))
    where = f"{numerics}, {machine.hardware(device)}"
    print(f"{where}: the buffer takes {slices / (norms + cats):.2f} times as long")


def features(channels, numerics, device):
    dtype = torch.bfloat16 if numerics.precision == "bf16" else torch.float32
    x = torch.randn(BATCH, channels, 32, 32, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def normalize(x):
    x = x.detach().requires_grad_()
    ones, zeros = (make(x.shape[1], device=x.device) for make in (torch.ones, torch.zeros))
    y = F.batch_norm(x, zeros, ones, ones, zeros, training=True)
    y.backward(torch.ones_like(y))


def median(function, *args):
    """Milliseconds of a call, the first left out."""
    times = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        function(*args)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times[1:])


if __name__ == "__main__":
    main()
