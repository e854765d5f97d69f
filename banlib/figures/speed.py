"""Chapter 6: the speeds that `benchmarks/loop.py` measured, and how long a plan takes."""

import json

from banlib.figures.style import GRAY, INK, SMALL, WIDE, note, panels, source
from banlib.runs.lineage import RESULTS

LOOPS = {
    "plain": "labels alone",
    "distill_online": "teacher asked online",
    "first": "teacher remembers, first student",
    "later": "teacher remembers, later student",
}


def measurements(kind, folder=RESULTS / "benchmarks"):
    """The measurements of a kind, "loop" or "scaling", that ship with the book, by file name."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob(f"{kind}-*.json"))]


def threads(result):
    return f"{result['threads']} thread{'s' * (result['threads'] > 1)}"


def speed(results):
    """How many times as fast as the usual loop ours is: a panel for each "loop" measurement."""
    return [_ratios(result) for result in results]


def _ratios(result):
    figure, (axis,) = panels(1, WIDE, 2.6)
    medians, ranges = result["ratio_to_usual_loop"], result["ratio_range"]
    known = {name: {"median": medians[name], "range": ranges[name]} for name in medians}
    for place, name in enumerate(LOOPS):
        each = (known | result["students"])[name]
        axis.plot(each["range"], [place, place], color=INK, linewidth=2)
        axis.plot(each["median"], place, "o", color=INK)
        note(axis, f"{each['median']:.1f}x", (each["median"], place), (0, 7))
    axis.axvline(1, color=GRAY, linewidth=1, linestyle="--")
    axis.set(xlabel="times as fast as the usual loop", xlim=(0, None))
    axis.set_title(f"{threads(result)}, {result['precision']}")
    axis.set(ylim=(len(LOOPS) - 0.5, -0.7), yticks=range(len(LOOPS)))
    axis.set_yticklabels(LOOPS.values(), fontsize=SMALL)
    return source(figure)


def makespan(rows):
    """Time of a plan against workers, and how long they wait, a panel each: `cost.makespans`."""
    workers = [row["workers"] for row in rows]
    figures, first = [], rows[0]["workers"] * rows[0]["seconds"]
    days = {"A plan ends with its longest chain": [row["seconds"] / 86_400 for row in rows]}
    for title, values in (days | {"Workers wait for teachers": [r["idle"] for r in rows]}).items():
        figure, (axis,) = panels(1, WIDE, 3.0)
        axis.plot(workers, values, "o-", color=INK)
        axis.set(xscale="log", xlabel="workers", title=title, ylabel="idle, % of their time")
        if title in days:
            ideal = [first / count / 86_400 for count in workers]
            axis.plot(workers, ideal, "--", color=GRAY, label="if runs never waited")
            axis.set(yscale="log", ylabel="days of training")
            axis.legend()
        axis.set_xticks(workers, workers, minor=False)
        axis.xaxis.minorticks_off()
        figures.append(source(figure))
    return figures
