"""Would a dense block of its own pay on a CPU? A training step in several ways, in turns.

`dense_block.py` in plain PyTorch ("shared" keeps all, "pieces" also the bottlenecks, "least" the
features alone), compiled units, and the library's units that recompute; each beside the eager
network. Seconds are the thread's own, as whatever else runs here would take them from a clock.
"""

import ctypes
import json
import multiprocessing
import platform
import statistics
import time
from functools import partial

import click
import pandas as pd
import torch
import torch.nn.functional as F
from dense_block import replace
from rounds import LIMIT, ratio, record, tell, timed
from torch.utils._python_dispatch import TorchDispatchMode

from banlib import models
from banlib.models import DenseUnit
from banlib.runs import accelerate, machine
from banlib.runs.parameters import check_network

ROUNDS, TURN = 15, 0.4  # seconds of a turn, where a step is shorter
RIVAL = "WideResNet-16-2"  # its rate shows what the processor can reach
M_MMAP_THRESHOLD = -3  # of mallopt(3)
DIGITS = {"image_size": 8, "in_channels": 1, "classes": 10}


def compiled(network):
    torch._dynamo.config.recompile_limit = 64  # a unit for each width, all of one function
    for unit in network.modules():
        if isinstance(unit, DenseUnit):
            unit.compile(dynamic=False)


WAYS = {
    "eager": lambda network: None,
    "shared": partial(replace, keep="all"),
    "pieces": partial(replace, keep="bottleneck"),
    "least": partial(replace, keep="features"),
    "compiled": compiled,
    "recomputed": accelerate.recompute,
}


def step_of(name, way, batch, numerics, shape):
    """A function that takes a step on made-up images. shape: keywords of `models.build`."""
    device = torch.device("cpu")
    with machine.seeded(0, device):
        network = models.build(name, **shape).to(memory_format=numerics.memory_format).train()
        sides = (shape.get("in_channels", 3), *[shape.get("image_size", 32)] * 2)
        images = torch.randn(batch, *sides).contiguous(memory_format=numerics.memory_format)
        labels = torch.randint(shape.get("classes", 100), (batch,))
    WAYS[way](network)

    def step(images=images):
        with numerics.autocast(device):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        network.zero_grad()

    return step


def clocked(step, clock=time.thread_time, times=1):
    """Seconds of a step, the mean of so many."""
    begun = clock()
    for _ in range(times):
        step()
    return (clock() - begun) / times


class Convolutions(TorchDispatchMode):
    """Seconds in convolutions, and in all operators: without the rest, a step can't be faster."""

    def __init__(self):
        super().__init__()
        self.seconds = {True: 0.0, False: 0.0}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        begun = time.thread_time()
        out = operator(*args, **(kwargs or {}))
        self.seconds["convolution" in operator.__name__] += time.thread_time() - begun
        return out


def share(step):
    with Convolutions() as spent:
        step()
    return spent.seconds[True] / sum(spent.seconds.values())


def peak(*case):
    """Bytes that a second step takes beside what is held, in a process of its own.

    Each tensor's memory goes back to the system, so that no gap of an allocator is counted.
    """
    torch.set_num_threads(1)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    step, device = step_of(*case), torch.device("cpu")
    step()
    before = timed(lambda images: None, 0, device)[1]
    return timed(lambda images: step(), 0, device)[1] - before


def measure(name, batch, precision, ways, shape, most=ROUNDS, say=tell):
    """A dict that JSON can hold; `speed` says how many times as fast as eager each way is."""
    begun, spent = time.perf_counter(), 0
    numerics = machine.numerics(precision, torch.device("cpu"))
    cases = {way: (name, way, batch, numerics, shape) for way in ways}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {way: round(pool.apply(peak, case) / 2**20) for way, case in cases.items()}
    steps = {way: step_of(*case) for way, case in cases.items()}
    rival = step_of(RIVAL, "eager", batch, numerics, {}) if not shape else None
    steps |= {RIVAL: rival} if rival else {}
    first = {way: round(clocked(step, time.perf_counter), 2) for way, step in steps.items()}
    rounds, times = [], max(1, round(TURN / clocked(steps["eager"])))
    while not rounds or (len(rounds) < most and time.perf_counter() - begun + spent < LIMIT):
        start = time.perf_counter()
        rounds.append({way: clocked(step, times=times) for way, step in steps.items()})
        spent = time.perf_counter() - start
        say(f"round {len(rounds)} of {most} in {spent:.1f} s")
    seconds = {way: [each[way] for each in rounds] for way in steps}
    middle = {way: statistics.median(each) for way, each in seconds.items()}
    macs = {way: models.forward_macs(RIVAL if way == RIVAL else name, **shape) for way in steps}
    described = machine.describe(torch.device("cpu"), numerics)
    described |= {"network": name, "batch": batch, "numerics": str(numerics), "accelerate": []}
    return described | {
        "shape": {"image_size": 32, "in_channels": 3, "classes": 100} | shape,
        "rounds": len(rounds),
        "steps": times,
        "speed": {way: ratio(seconds["eager"], seconds[way]) for way in ways},
        "images_per_second": {way: round(batch / each, 1) for way, each in middle.items()},
        "gflops": {way: round(6e-9 * macs[way] * batch / middle[way], 1) for way in steps},
        "peak_memory_mib": peaks,
        "seconds_to_first_step": first,
        "share_of_convolutions": round(
            statistics.median(share(steps["eager"]) for _ in range(5)), 3
        ),
        "seconds": {way: [round(each, 5) for each in values] for way, values in seconds.items()},
    }


def table(result):
    speed = {way: each["median"] for way, each in result["speed"].items()}
    ranges = {way: each["range"] for way, each in result["speed"].items()}
    columns = {
        "times eager": speed,
        **pd.DataFrame(ranges, ["lowest", "highest"]).T,
        "images/s": result["images_per_second"],
        "GFLOP/s": result["gflops"],
        "peak MiB": result["peak_memory_mib"],
        "first step, s": result["seconds_to_first_step"],
    }
    return pd.DataFrame(columns).reindex(list(result["gflops"]))


@click.command(help=__doc__)
@click.option("--network", default="DenseNetBC-22-12", show_default=True)
@click.option("--batch", default=128, show_default=True, help="Images in a batch.")
@click.option("--precision", default="auto", show_default=True, help="auto, bf16, fp32.")
@click.option("--ways", default=",".join(WAYS), show_default=True, help="Eager is among them.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="Turns of each way, at most.")
@click.option("--digits", is_flag=True, help="8x8 images of one channel and ten classes.")
@click.option("--record", "keep", is_flag=True, help="Keep it in results/benchmarks/.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone on standard output.")
def main(network, batch, precision, ways, rounds, digits, keep, as_json):
    chosen = dict.fromkeys(["eager", *ways.split(",")])
    if unknown := [way for way in chosen if way not in WAYS]:
        raise click.UsageError(f"unknown way {unknown[0]!r}; there are {', '.join(WAYS)}")
    try:
        name, shape = check_network(network), DIGITS if digits else {}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    result = measure(name, batch, precision, list(chosen), shape, rounds)
    if keep:
        tell(record(result, "dense"))
    if as_json:
        return click.echo(json.dumps(result, indent=1, allow_nan=False))
    click.echo("{network}, batch {batch}, {hardware}, one thread, {numerics}".format(**result))
    click.echo("{:.0%} of an eager step is convolutions".format(result["share_of_convolutions"]))
    click.echo(table(result).to_string(na_rep="-", float_format="{:,.2f}".format))


if __name__ == "__main__":
    main()
