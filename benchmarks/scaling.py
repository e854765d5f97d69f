"""What our steps cost as one thing grows at a time: `python benchmarks/loop.py --scaling`."""

import statistics

import pandas as pd
from case import RECIPE, Case
from ours import fill, ours, raising
from rounds import Rounds, tell, timed

from banlib import names, teachers
from banlib.runs.parameters import check_network
from banlib.runs.recipe import BadInput

ROUNDS, KINDS = 3, ("plain", "later", "fill")
CHAIN, EPOCHS = (1, 2, 3), 12  # students and generations that are raised whole, and for how long


def scaling(network="DenseNetBC-22-12", device="auto", batch=128, say=tell, **how):
    """{"points": [{axis, value, network, batch, images, plain, later, fill}, ...]}: seconds for
    each image, medians over rounds.

    axis: depth and growth of the DenseNetBC network, batch, and images of an epoch. chain: whole
    trainings of `epochs` epochs with `views` views: seconds for each image and epoch on labels,
    "plain"; of each of the "students" that one teacher raises in turn; and of each of the
    "generations". how: as of `loop`. Raises BadInput as `Case`, and for another family.
    """
    name, family, args = names.parse(check_network(network))
    if family != "DenseNetBC":
        raise BadInput(f"scaling follows depth and growth of a DenseNetBC, got {network!r}")
    base = Case(name, device, batch, 1, **how)
    batch, rounds = base.batch, Rounds("scaling", base, ROUNDS, say)
    points, turns = [], {}
    for axis, value, *made in axes(name, args["depth"], args["growth"], batch):
        point, own = measured_at(made, device, how)
        points.append({"axis": axis, "value": value} | point)
        turns |= {f"{axis}/{value}/{kind}": (turn, point["images"]) for kind, turn in own.items()}
    few = Case(name, device, batch, 2, recipe=RECIPE.model_copy(update={"pad": 1}), **how)
    images = 2 * batch * EPOCHS
    for key, turn in raising(few, EPOCHS, CHAIN).items():
        timed(turn, batch * EPOCHS, base.device)
        turns[key] = turn, images
    rounds.measure(turns)
    seconds = {key: statistics.median(each) for key, each in rounds.seconds.items()}
    for point in points:
        for kind in KINDS:
            spent = seconds[f"{point['axis']}/{point['value']}/{kind}"]
            point[kind] = spent / point["images"]
    chain = {"epochs": EPOCHS, "views": few.images.count, "plain": seconds["chain/plain"] / images}
    for kind in ("students", "generations"):
        chain[kind] = [seconds[f"{kind}/{number}"] / images for number in CHAIN]
    rounds.forget()
    views, done = base.images.count, len(rounds.seconds["chain/plain"])
    shares = {str(epochs): teachers.share(epochs, views) for epochs in (1, 10, 30, 60, 100, 200)}
    result = {"rounds": done, "points": points, "chain": chain, "views": views}
    return base.described() | result | {"share_asked": shares}


def axes(name, depth, growth, batch):
    """(axis, value, network, batch, steps) of each point."""
    for value in (depth - 6, depth, depth + 12, depth + 24):
        yield "depth", value, f"DenseNetBC-{value}-{growth}", batch, 2
    for value in (growth // 2, growth, 2 * growth):
        yield "growth", value, f"DenseNetBC-{depth}-{value}", batch, 2
    for value in filter(None, (batch // 4, batch // 2, batch, 2 * batch)):
        yield "batch", value, name, value, 2
    for steps in (1, 2, 4, 8):
        yield "images", steps * batch, name, batch, steps


def measured_at(made, device, how):
    """(a point, {kind: turn}), each turn once run."""
    network, batch, steps = made
    case = Case(network, device, batch, steps, **how)
    turns = {"plain": ours(case, None), "later": ours(case, "answered"), "fill": fill(case)}
    for turn in turns.values():
        timed(turn, batch, case.device)
    return {"network": network, "batch": batch, "images": steps * batch}, turns


def tables(result):
    """For people: milliseconds for an image, and trainings raised whole."""
    points, chain = pd.DataFrame(result["points"]).set_index(["axis", "value"]), result["chain"]
    yield 1000 * points[list(KINDS)].set_axis(["plain, ms/image", "remembered", "asking"], axis=1)
    whole = {kind: chain[kind] for kind in ("students", "generations")}
    columns = [f"number {number} over plain" for number in CHAIN]
    yield pd.DataFrame(whole, columns).T / chain["plain"]
