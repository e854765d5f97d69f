"""What a table costs, before anything is trained."""

import functools
import time

import torch

from banlib import models
from banlib.paper.tables import specs_of
from banlib.runs import datasets, machine
from banlib.runs.engines import simulate
from banlib.runs.recipe import PROFILES
from banlib.runs.store import Store

PROBE_FLOP = 1e11  # arithmetic of a timed step at the most: a second or two on a laptop
PROBE_SECONDS = 10  # after which a network is taken to be as fast as the others


def cost(cells, device="auto", store=None, speed=None):
    """What the cells need: a list of dicts, one for each network.

    network (as trained), rows (of the table that need it), runs, finished, live (begun and not
    finished), epochs and flops (of the missing runs, a teacher asked online), seconds (of one
    process, at `speed` operations a second or as measured here; None if nothing is missing).
    """
    store, specs = store or Store(), specs_of(cells)
    flops, entries = arithmetic(specs), {}
    for spec in specs:
        rows = sorted({cell.network for cell in cells if cell.trained == spec.network})
        counts = dict.fromkeys(("runs", "finished", "live", "epochs", "flops"), 0)
        new = {"network": spec.network, "rows": rows, **counts, "seconds": None}
        entry, status = entries.setdefault(spec.network, new), store.status(spec.run_id)
        entry["runs"] += 1
        entry["finished"] += status == "finished"
        entry["live"] += status == "live"
        if status != "finished":
            entry["epochs"] += spec.recipe.epochs
            entry["flops"] += flops[spec.run_id]
    profile, device = PROFILES[cells[0].profile], machine.choose_device(device)
    start = time.perf_counter()
    rates = dict.fromkeys(entries, speed) if speed else measured_rates(profile, device, store)
    for name in (name for name in entries if entries[name]["flops"]):
        if name not in rates and rates and time.perf_counter() - start > PROBE_SECONDS:
            rates[name] = sum(rates.values()) / len(rates)
        rates[name] = rates.get(name) or probe(name, profile, device)
        entries[name]["seconds"] = entries[name]["flops"] / rates[name]
    return list(entries.values())


def sums(entries):
    """The entries of `cost` summed, and missing: runs that are not finished."""
    names = ("runs", "finished", "live", "epochs", "flops", "seconds")
    total = {name: sum(entry[name] or 0 for entry in entries) for name in names}
    return total | {"missing": total["runs"] - total["finished"]}


def makespans(cells, entries, workers, store=None):
    """A table's missing runs on so many workers: [{workers, seconds, idle (% of their time)}].

    entries: `cost` of the same cells and store; workers: counts.
    """
    store, flops = store or Store(), arithmetic(specs_of(cells))
    missing = [spec for spec in specs_of(cells) if store.status(spec.run_id) != "finished"]
    rates = {each["network"]: each["flops"] / each["seconds"] for each in entries if each["flops"]}
    rows = simulate(missing, lambda spec: flops[spec.run_id] / rates[spec.network], workers)
    return [{"workers": n, "seconds": seconds, "idle": 100 * idle} for n, seconds, idle in rows]


def arithmetic(specs):
    """{run id: floating-point operations of training it}; specs hold every teacher.

    For each multiply-accumulate three passes of two operations, one pass for a teacher's.
    """
    networks, flops = {spec.run_id: spec.network for spec in specs}, {}
    for spec in specs:
        passes = 6 * macs(spec.network, spec.dataset)
        passes += 2 * macs(networks[spec.teacher], spec.dataset) if spec.teacher else 0
        flops[spec.run_id] = passes * datasets.facts(spec.dataset).images * spec.recipe.epochs
    return flops


@functools.cache
def macs(network, dataset):
    """Multiply-accumulates of one image of a dataset."""
    facts = datasets.facts(dataset)
    return models.forward_macs(network, facts.image_size, facts.channels, facts.classes)


def measured_rates(profile, device, store):
    """{network: floating-point operations a second} of teachers trained on this hardware."""
    rates, images = {}, datasets.facts(profile.dataset).images
    wanted = machine.hardware(device), device.type, "label", profile.dataset, profile.recipe.batch
    for run in store.overview().values():
        spec, last = run["spec"], run["environments"][-1]
        own = last["hardware"], last["device"], spec["objective"], spec["dataset"]
        if (*own, spec["recipe"]["batch"]) == wanted:
            flops = 6 * macs(spec["network"], profile.dataset) * images * spec["recipe"]["epochs"]
            rate = flops / run["results"]["seconds"]
            rates[spec["network"]] = max(rate, rates.get(spec["network"], 0))
    return rates


def probe(network, profile, device):
    """Floating-point operations a second of a few gradients on random images."""
    facts, flops, times = datasets.facts(profile.dataset), 6 * macs(network, profile.dataset), []
    batch = max(2, min(profile.recipe.batch, int(PROBE_FLOP / flops)))  # few for a large network
    numerics = machine.numerics(profile.recipe.precision, device)
    with machine.own_settings(device.type, profile.threads), machine.seeded(0, device):
        student = models.build(network, facts.classes, facts.channels, facts.image_size).to(device)
        images = torch.rand(batch, facts.channels, facts.image_size, facts.image_size).to(device)
        layout = {"memory_format": numerics.memory_format}
        student, images = student.to(**layout), images.to(**layout)
        while len(times) < 4 and sum(times) < 2:
            start = time.perf_counter()
            with numerics.autocast(device):
                loss = student(images).logsumexp(1).mean()
            loss.backward()
            next(student.parameters()).grad.sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
    return flops * batch / min(times)
