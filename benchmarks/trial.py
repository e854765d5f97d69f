"""In which precision and layout does a network train fastest here? Ways take turns.

`machine.numerics` answers by a rule; this tells where the rule is wrong. Its trial once chose for
each run, and a busy machine then chose other numerics for the second of two runs of one spec.
"""

import copy
import functools
import statistics
import time

import click
import torch
import torch.nn.functional as F

from banlib import models
from banlib.runs import machine
from banlib.runs.parameters import check_network


def candidates(device):
    """The `machine.Numerics` worth trying: bf16 only where the rule would take it."""
    precisions = dict.fromkeys([machine.numerics("auto", device).precision, "fp32"])
    layouts = ("channels last", "contiguous")
    return [machine.Numerics(precision, layout) for precision in precisions for layout in layouts]


def race(network, shape, batch, device, ways):
    """Median seconds of a step in each way: five rounds or more; fewer if ten seconds are over."""
    steps = [step_in(network, shape, batch, device, way) for way in ways]
    for step in steps:
        step()  # the first also allocates
    begun, rounds, spent = time.perf_counter(), [], 0
    while not rounds or spent < 0.5 or (len(rounds) < 5 and spent < 10):
        rounds.append([step() for step in steps])
        spent = time.perf_counter() - begun
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def step_in(network, shape, batch, device, way):
    """A function that takes a step with a copy of the network on made-up images: its seconds."""
    with machine.seeded(0, device):
        images = torch.randn(batch, *shape).to(device).contiguous(memory_format=way.memory_format)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    network = copy.deepcopy(network).to(device, memory_format=way.memory_format).train()

    def step():
        with machine.seeded(0, device):  # for dropout
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


@click.command(help=__doc__)
@option("--network", default="DenseNetBC-22-12")
@option("--batch", default=128)
@option("--device", default="auto")
def main(network, batch, device):
    try:
        device, network = machine.choose_device(device), models.build(check_network(network))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    machine.keep_freed_memory()
    ways, rule = candidates(device), machine.numerics("auto", device)
    seconds = dict(zip(ways, race(network, (3, 32, 32), batch, device, ways), strict=True))
    for way in ways:
        mark = "  <- the rule's" if way == rule else ""
        times = seconds[way] / seconds[rule]
        click.echo(f"{1000 * seconds[way]:8.1f} ms, {times:5.2f} times the rule's: {way}{mark}")
    click.echo(f"on {machine.hardware(device)}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
