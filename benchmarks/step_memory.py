"""What a training step's memory is counted to be (`machine.step_memory`), beside what it took: one process for each case."""

import subprocess
import sys
from pathlib import Path

CASES = [("DenseNetBC-40-12", "fp32", 128), ("DenseNetBC-40-12", "bf16", 128), ("DenseNetBC-112-33", "bf16", 32),
         ("PreActResNet-56", "bf16", 64), ("WideResNet-16-4", "fp32", 64), ("WideResNet-28-10", "bf16", 32)]  # fmt: skip


def resident():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


def measure(name, precision, batch):
    import torch

    from banlib import bench, machine, models

    device, network, shape = machine.choose_device(), models.build(name), (3, 32, 32)
    step = machine.step_in(network, shape, batch, device, machine.Numerics(precision))
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()
    _, peak = bench.timed(lambda count: step(), 1, device)
    held = 2 * 4 * models.params(name)  # weights were there before, and the step has no momentum
    counted, took = machine.step_memory(network, shape, batch, precision), peak - before + held
    print(f"{name:20s} {precision} batch {batch:4d}: counted {counted / 2**20:6.0f} MiB, took {took / 2**20:6.0f} MiB, "
          f"ratio {took / counted:.2f}, on {machine.hardware(device)}", flush=True)  # fmt: skip


if len(sys.argv) > 1:
    measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
else:
    for case in CASES:
        subprocess.run([sys.executable, __file__, *map(str, case)], check=True)
