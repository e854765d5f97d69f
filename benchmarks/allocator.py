"""What `machine.keep_freed_memory` gains and costs: a training step of DenseNetBC-22-12 at batch
128, its memory given back to the system each time, kept, and kept in larger pages.

Each round starts a fresh process for each way, as the C library's settings last as long as it does.
A step's time is that of the processor, on one thread: what else runs here moves it little.
"""

import json
import os
import statistics
import subprocess
import sys
import time

NETWORK, BATCH, ROUNDS, STEPS = "DenseNetBC-22-12", 128, 5, 8
LIMIT = 420  # seconds after which no round is started
WAYS = {"given back": None, "kept": "0", "kept, larger pages": "1"}  # torch's THP_MEM_ALLOC_ENABLE


def measure(way):
    """In a fresh process: CPU seconds of a step, and the peak in bytes; printed as JSON."""
    import torch
    from rounds import timed
    from trial import step_in

    from banlib import models
    from banlib.runs import machine

    if WAYS[way] is not None and not machine.keep_freed_memory():
        sys.exit("this machine's C library keeps nothing, or another allocator was chosen")
    torch.set_num_threads(1)
    device = torch.device("cpu")
    numerics = machine.numerics("auto", device)
    step = step_in(models.build(NETWORK), (3, 32, 32), BATCH, device, numerics)
    step()
    begun, peaks = time.process_time(), []
    for _ in range(STEPS):
        peaks.append(timed(lambda images: step(), BATCH, device)[1])
    seconds = (time.process_time() - begun) / STEPS
    how = f"{machine.hardware(device)}, one thread, {numerics}"
    print(json.dumps({"seconds": seconds, "peak": max(peaks), "how": how}))


def main():
    rounds, begun, took = [], time.perf_counter(), 0
    while len(rounds) < ROUNDS and time.perf_counter() - begun + took < LIMIT:
        start = time.perf_counter()
        rounds.append({way: ask(way) for way in WAYS})
        took = time.perf_counter() - start
        print(f"round {len(rounds)} of {ROUNDS} in {took:.0f} s", file=sys.stderr)
    print(f"{NETWORK}, batch {BATCH}, {rounds[0]['kept']['how']}, median (lowest to highest round)")
    for way in WAYS:
        milliseconds = 1000 * statistics.median(each[way]["seconds"] for each in rounds)
        peak = statistics.median(each[way]["peak"] for each in rounds) / 2**20
        speeds = sorted(each["given back"]["seconds"] / each[way]["seconds"] for each in rounds)
        peaks = sorted(each[way]["peak"] / each["given back"]["peak"] for each in rounds)
        print(f"{way:20s} {milliseconds:7.1f} ms, {spread(speeds)} times as fast", end="; ")
        print(f"peak of the process {peak:6.0f} MiB, {spread(peaks)} times as much")


def ask(way):
    environment = {n: v for n, v in os.environ.items() if n != "THP_MEM_ALLOC_ENABLE"}
    if WAYS[way] is not None:
        environment["THP_MEM_ALLOC_ENABLE"] = WAYS[way]
    command = [sys.executable, __file__, way]
    return json.loads(
        subprocess.run(command, check=True, env=environment, capture_output=True).stdout
    )


def spread(values):
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
