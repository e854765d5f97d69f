"""What a training step's memory is counted to be (`machine.step_memory`), beside what it took.

Each case has a process of its own.
"""

import subprocess
import sys
from pathlib import Path

CASES = [
    ("DenseNetBC-40-12", "fp32", 128),
    ("DenseNetBC-40-12", "bf16", 128),
    ("DenseNetBC-112-33", "bf16", 32),
    ("PreActResNet-56", "bf16", 64),
    ("WideResNet-16-4", "fp32", 64),
    ("WideResNet-28-10", "bf16", 32),
]


def resident():
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


def measure(name, precision, batch):
    import torch
    from rounds import timed
    from trial import step_in

    from banlib import models
    from banlib.runs import machine

    device, network, shape = machine.choose_device(), models.build(name), (3, 32, 32)
    numerics = machine.numerics(precision, device)
    step = step_in(network, shape, batch, device, numerics)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()
    _, peak = timed(lambda images: step(), batch, device)
    held = 2 * 4 * models.params(name)  # weights were there before; the step has no momentum
    counted = machine.step_memory(network, shape, batch, precision) / 2**20
    took = (peak - before + held) / 2**20
    print(f"{name:20s} {precision} batch {batch:4d}: counted {counted:6.0f} MiB", end=", ")
    where = machine.hardware(device)
    print(f"took {took:6.0f} MiB, ratio {took / counted:.2f}, on {where}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*sys.argv[1:3], int(sys.argv[3]))
    else:
        for case in CASES:
            subprocess.run([sys.executable, __file__, *map(str, case)], check=True)
