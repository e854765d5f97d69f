"""Would one buffer for all features of a dense block pay in eager PyTorch? It spares the copies that `cat` makes, but
BatchNorm then reads a slice of wider rows. Median milliseconds of both, forward and backward, for each unit of the first
block of DenseNetBC-40-12 at batch 128, and their sum over the block."""

import statistics
import time

import torch
import torch.nn.functional as F

from banlib import machine, models

BATCH, ROUNDS = 128, 7
device = machine.choose_device()
[numerics, *_] = machine.candidates("auto", device)
dtype = torch.bfloat16 if numerics.precision == "bf16" else torch.float32
args = models.parse("DenseNetBC-40-12")[2]
start, grown, _ = models.boundaries((args["units"],) * 3, args["growth"], args["final_transition"])[0]
image = BATCH, 32, 32


def median(function):
    times = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times[1:])


def features(channels):
    x = torch.randn(image[0], channels, *image[1:], device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def normalise(x):
    x = x.detach().requires_grad_()
    weight, bias = torch.ones(x.shape[1], device=device), torch.zeros(x.shape[1], device=device)
    y = F.batch_norm(x, weight * 0, bias + 1, weight, bias, training=True)
    y.backward(torch.ones_like(y))


buffer, rows = features(grown), []
for channels in range(start, grown, args["growth"]):
    x, new = features(channels), features(args["growth"])
    rows.append((median(lambda: normalise(x)), median(lambda: torch.cat([x, new], 1)),
                 median(lambda: normalise(buffer[:, :channels]))))  # fmt: skip
    print(f"{channels:4d} channels: BatchNorm {rows[-1][0]:7.2f} and cat {rows[-1][1]:6.2f}; BatchNorm of a slice {rows[-1][2]:7.2f}")
dense, cat, slices = map(sum, zip(*rows))
print(f"{numerics}, {machine.hardware(device)}: the buffer takes {slices / (dense + cat):.2f} times as long as BatchNorm and cat")
