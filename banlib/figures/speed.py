"""Chapter 6: how fast training and distilling are, as `benchmarks/loop.py` measured it."""

import json

from banlib.figures.style import GRAY, PALETTE, note, panels, source, whole_numbers
from banlib.runs.lineage import RESULTS

LOOPS = {
    "plain": "labels alone",
    "distill_online": "teacher asked online",
    "first": "teacher remembers, first student",
    "later": "teacher remembers, later student",
}
AXES = {"depth": "depth", "growth": "growth"}
AXES |= {"batch": "images in a batch", "images": "images in an epoch"}


def measurements(kind, folder=RESULTS / "benchmarks"):
    """The measurements of a kind, "loop" or "scaling", that ship with the book, by file name."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob(f"{kind}-*.json"))]


def threads(result):
    return f"{result['threads']} thread{'s' * (result['threads'] > 1)}"


def speed(results):
    """How many times as fast as the usual loop ours is: a panel for each "loop" measurement."""
    figure, axes = panels(len(results), 9.6, 3.4, sharey=True)
    for axis, result in zip(axes, results, strict=True):
        medians, ranges = result["ratio_to_usual_loop"], result["ratio_range"]
        found = {name: {"median": medians[name], "range": ranges[name]} for name in medians}
        for place, name in enumerate(LOOPS):
            each = (found | result["students"])[name]
            axis.plot(each["range"], [place, place], color=PALETTE[place], linewidth=2)
            axis.plot(each["median"], place, "o", color=PALETTE[place])
            note(axis, f"{each['median']:.1f}x", (each["median"], place), (0, 7))
        axis.axvline(1, color=GRAY, linewidth=1, linestyle="--")
        title = f"{result['network']}\n{threads(result)}, {result['precision']}"
        axis.set(xlabel="times as fast as the usual loop", xlim=(0, None), title=title)
        axis.set_ylim(len(LOOPS) - 0.5, -0.7)
    axes[0].set_yticks(range(len(LOOPS)), LOOPS.values())
    what = "{hardware}, {layout}, batch {batch}, {data}, {rounds} rounds"
    told = "; ".join(dict.fromkeys(what.format(**result) for result in results))
    lines = "Dots: median; lines: lowest to highest round; dashed: the usual loop"
    return source(figure, f"{told}. {lines}")


def asked(share, views, epochs=200):
    """The share of an online teacher's answers that one who remembers is asked for.

    share: (epochs, views) -> share, see `teachers`.
    """
    figure, (left, right) = panels(2, 9.6, 3.6, sharey=True)
    days, students = range(1, epochs + 1), range(1, 17)
    left.plot(days, [100 * share(day, views) for day in days])
    left.set(title="One student: repeats grow with training", xlabel="epochs", ylim=(0, 105))
    left.set_ylabel("answers asked for, %")
    shares = [100 * share(epochs, views) / count for count in students]
    right.plot(students, shares, "o-", color=PALETTE[1])
    for count in (1, 3, 16):
        note(right, f"{shares[count - 1]:.0f} %", (count, shares[count - 1]), (6, 6))
    right.set(title="Several students share the answers", xlabel=f"students of {epochs} epochs")
    whole_numbers(right)
    return source(figure, f"Computed for {views} views, the same for all students of a teacher")


def scaling(result):
    """What an image costs as one thing grows at a time, of a "scaling" measurement."""
    figure, axes = panels(len(AXES), 9.6, 3.2, sharey=True)
    kinds = {"plain": "plain step", "fill": "teacher's answer"}
    for axis, (name, label) in zip(axes, AXES.items(), strict=True):
        points = [point for point in result["points"] if point["axis"] == name]
        for shade, (kind, words) in zip(PALETTE, kinds.items(), strict=False):
            values = [1000 * point[kind] for point in points]
            axis.plot([point["value"] for point in points], values, "o-", color=shade, markersize=4)
            if axis is axes[-1]:
                end = points[-1]["value"], values[-1]
                note(axis, words, end, (0, 10), ha="right", color=shade)
        axis.set(xlabel=label, ylim=(0, None))
        axis.locator_params(axis="x", nbins=4, integer=True)
    axes[0].set(
        title="Depth and growth cost, batch and epoch size hardly", ylabel="ms for an image"
    )
    where = "Around {network}, batch {batch}: {hardware}, {numerics}, median of {rounds} rounds, "
    return source(figure, where.format(**result) + threads(result))


def cost(step, later, online, answer, share, epochs, students):
    """What a student costs in units of a plain step, with its teacher online or remembered by all.

    Seconds for an image. step: on labels alone; later: once the teacher has answered; online: its
    teacher asked each time; answer: of the teacher, in large batches, for a share of the images.
    """
    figure, (axis,) = panels(1, 7.6, 2.8)
    bars = {"labels alone": (step, 0), "teacher online": (step, online - step)}
    bars["teacher remembers"] = later, share * answer
    for place, (own, teacher) in enumerate(bars.values()):
        axis.barh(place, own / step, color=PALETTE[0])
        axis.barh(place, teacher / step, left=own / step, color=PALETTE[1])
        note(axis, f"{(own + teacher) / step:.2f}", ((own + teacher) / step, place), (5, 0))
    axis.set_yticks(range(len(bars)), bars)
    axis.set(xlim=(0, 1.25 * max(1, online / step, (later + answer) / step)), ylim=(2.6, -0.6))
    several = "s" * (students > 1)
    title = f"{students} student{several} of {epochs} epochs: each asks for {100 * share:.0f} %"
    axis.set(xlabel="time of one student, in plain training runs", title=title)
    return source(figure, "Blue: the student's own step; orange: its teacher")
