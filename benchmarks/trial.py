"""In which precision and layout, and with or without oneDNN, does a network train fastest here?

Ways take turns.

`machine.numerics` answers by a rule; this tells where the rule is wrong. Its trial once chose for
each run, and a busy machine then chose other numerics for the second of two runs of one spec.
"""

import copy
import functools
import itertools
import statistics
import time

import click
import torch
import torch.nn.functional as F

from banlib import models
from banlib.runs import machine
from banlib.runs.parameters import check_network


def candidates(device):
    """(`machine.Numerics`, whether with oneDNN) of all ways worth trying; the rule's is the first.

    bf16 only where the rule would take it, oneDNN's absence only where it would be there.
    """
    precisions = dict.fromkeys([machine.numerics("auto", device).precision, "fp32"])
    kinds = itertools.product(precisions, machine.LAYOUTS)
    ways = [(machine.Numerics(*kind), True) for kind in kinds]
    return ways + [(way, False) for way, _ in ways if device.type == "cpu"]


def race(network, shape, batch, device, ways):
    """Median seconds of a step in each way: five rounds or more; fewer if ten seconds are over."""
    steps = [step_in(network, shape, batch, device, *way) for way in ways]
    for step in steps:
        step()  # the first also allocates
    begun, rounds, spent = time.perf_counter(), [], 0
    while not rounds or spent < 0.5 or (len(rounds) < 5 and spent < 10):
        rounds.append([step() for step in steps])
        spent = time.perf_counter() - begun
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def step_in(network, shape, batch, device, way, onednn=True):
    """A function that takes a step with a copy of the network on made-up images: its seconds."""
    with machine.seeded(0, device):
        images = torch.randn(batch, *shape).to(device).contiguous(memory_format=way.memory_format)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    network = copy.deepcopy(network).to(device, memory_format=way.memory_format).train()

    def step():
        backend = torch.backends.mkldnn
        read, write = (functools.partial(act, backend, "enabled") for act in (getattr, setattr))
        with machine.seeded(0, device), machine.held(read, write, onednn):  # seeded for dropout
            begun = time.perf_counter()
            with way.autocast(device):
                logits = network(images)
            F.cross_entropy(logits.float(), labels).backward()
            network.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - begun

    return step


option = functools.partial(click.option, show_default=True)
CASES = {"cifar100": (100, 3, 32), "digits": (10, 1, 8)}  # classes, channels, size


@click.command(help=__doc__)
@option("--network", default="DenseNetBC-22-12")
@option("--images", type=click.Choice(list(CASES)), default="cifar100", help="Of this shape.")
@option("--batch", default=128)
@option("--device", default="auto")
def main(network, images, batch, device):
    classes, channels, size = CASES[images]
    try:
        device = machine.choose_device(device)
        network = models.build(check_network(network), classes, channels, size)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    machine.keep_freed_memory()
    ways = candidates(device)
    seconds = race(network, (channels, size, size), batch, device, ways)
    for (way, onednn), each in zip(ways, seconds, strict=True):
        name = f"{way}{'' if onednn else ', without oneDNN'}"
        click.echo(f"{1000 * each:8.1f} ms, {each / seconds[0]:5.2f} times the rule's: {name}")
    click.echo(f"on {machine.hardware(device)}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
