"""Chapter 2: a lineage and its errors, beside the paper's."""

import numpy as np
import pandas as pd
import seaborn as sns

from banlib.figures import style
from banlib.figures.style import ERROR, GRAY, PALETTE, color, note, panels, source
from banlib.paper import printed
from banlib.runs.recipe import generation_name


def lineage_diagram(gens):
    """The idea as a drawing: labels teach all, and each generation's output teaches the next."""
    figure, (axis,) = panels(1, 9.6, 2.5)
    names = [generation_name(generation) for generation in range(min(gens, 3) + 1)]
    middle = {"ha": "center", "va": "center"}
    for x, name in zip(range(0, 3 * len(names), 3), names, strict=True):
        shade, arrow = color(name), {"arrowstyle": "->", "color": GRAY}
        box = {"boxstyle": "round,pad=0.7", "facecolor": shade, "edgecolor": "none"}
        axis.text(x, 0, name, color="white", fontweight="bold", bbox=box, **middle)
        axis.annotate("labels", (x, 0.42), (x, 1.3), arrowprops=arrow, color="#555555", ha="center")
        if name != names[-1]:
            axis.annotate("", (x + 2.15, 0), (x + 0.85, 0), arrowprops=arrow | {"color": shade})
            axis.text(x + 1.5, -0.45, "output\nprobabilities", fontsize=9, color=shade, **middle)
    axis.set(xlim=(-1.2, 3 * len(names) - 1.8), ylim=(-0.9, 1.7))
    axis.set_title("Same architecture, same data, a new random start each time")
    axis.set_axis_off()
    return source(figure)


def error_by_generation(frame, network, where, title="Measured here"):
    """Test error of each generation and ensemble, the paper's and ours (`statistics.errors`).

    network: highlighted if it is the paper's; where: provenance, as for all figures.
    """
    figure, (left, right) = panels(2, 9.6, 4.2)
    for shade, row in zip(PALETTE, printed.TABLE1, strict=False):
        names, values = ["Teacher", *row.errors][1:], np.array([*row.errors.values()], dtype=float)
        look = {"color": shade, "linewidth": 2.4 if row.network == network else 1.2}
        for part in (slice(4), slice(4, None)):
            left.plot(np.arange(len(values))[part], values[part], "o-", **look)
        note(left, row.network.removeprefix("DenseNetBC-"), (0, values[0]), (-6, 0), color=shade)
    left.set(title="The paper, CIFAR-100: one run each", ylabel=ERROR, xlim=(-0.9, 5.4))
    left.set_xticks(range(6), ["Teacher", *names[1:]])
    style.means(right, frame, "name", "error")
    low, high = right.get_ylim()
    right.set(title=title, ylim=(max(low, 0), min(high, 1.6 * frame["error"].max() + 1)))
    several = frame["seed"].nunique() > 1
    bars = "bars: 95 % interval over seeds; dots: seeds" if several else "one seed: no interval"
    return source(figure, f"Left: table 1 of the paper. Right: {where}; {bars}")


def training_curves(curves, where):
    """Training loss and test error of all generations against epochs: `statistics.curves`."""
    figure, axes = panels(2, 9.6, 4.0)
    names = list(curves["name"].unique())
    look = {"x": "epoch", "hue": "name", "palette": {name: color(name) for name in names}}
    for axis, column in zip(axes, ("train_loss", "test_error"), strict=True):
        seen = curves.dropna(subset=[column])
        sns.lineplot(seen, y=column, errorbar=style.limits, legend=False, ax=axis, **look)
        highest = seen.groupby(["name", "epoch"])[column].mean().max()
        axis.set(xlabel="epoch", ylim=(0, 1.15 * highest))
        last = seen[seen["epoch"] == seen["epoch"].max()]
        style.label_ends(axis, seen["epoch"].max(), last.groupby("name")[column].mean().to_dict())
        style.whole_numbers(axis)
    told = (
        "Students are asked for more: two terms of loss" if len(names) > 1 else "Labels are learned"
    )
    axes[0].set(ylabel="training loss, nats", title=told)
    axes[1].set(ylabel=ERROR, title="Errors drop where the learning rate does")
    several = curves["seed"].nunique() > 1
    return source(
        figure, f"{where}; {'bands: 95 % interval over seeds' if several else 'one seed'}"
    )


def paper_points():
    """Table 1's students beside their teachers, for `teacher_against_student`."""
    table = pd.DataFrame([row.errors for row in printed.TABLE1], dtype=float)
    table = table.filter(regex="Baseline|BAN").rename(columns={"Baseline": "Teacher"})
    return _beside_teacher(table, "paper, CIFAR-100")


def measured_points(frame, panel):
    """Each seed's students beside their teacher, likewise. frame: `statistics.errors`."""
    singles = frame[frame["members"] == 1]
    return _beside_teacher(singles.pivot(index="seed", columns="name", values="error"), panel)


def _beside_teacher(table, panel):
    rows = table.melt("Teacher", var_name="name", value_name="student").dropna()
    return rows.rename(columns={"Teacher": "teacher"}).assign(source=panel)


def teacher_against_student(points, where):
    """Student error against teacher error, a panel for each source; winners are below the diagonal.

    points: data frame with columns source, name (of the student), teacher, student (%).
    """
    sources = list(points.groupby("source", sort=False))
    width = 4.8 if len(sources) < 3 else 3.5
    figure, axes = panels(len(sources), width * len(sources), width - 0.1)
    for axis, (panel, part) in zip(axes, sources, strict=True):
        values = part[["teacher", "student"]].to_numpy()
        margin = 0.06 * np.ptp(values) + 0.1
        limits = values.min() - 3 * margin, values.max() + margin  # words go below the points
        axis.plot(limits, limits, color=GRAY, linewidth=1)
        axis.fill_between(limits, limits, limits[0], color="#2ca02c", alpha=0.06, linewidth=0)
        for name, group in part.groupby("name", sort=False):
            axis.plot("teacher", "student", "o", data=group, color=color(name), label=name)
        wins = (part["student"] < part["teacher"]).sum()
        axis.set(title=f"{panel}:\n{wins} of {len(part)} students win", aspect="equal")
        axis.set(xlabel=f"teacher's {ERROR}", xlim=limits, ylim=limits)
        note(axis, "student better", (limits[1], limits[0]), (-5, 5), color="#2a6b2a")
        axis.legend(loc="upper left", handletextpad=0.1)
    axes[0].set_ylabel(f"student's {ERROR}")
    return source(figure, where)


def paired_differences(table, where, against="its teacher"):
    """Each model minus another within the same seed, with intervals: `statistics.paired`."""
    figure, (axis,) = panels(1, 7.2, 1.1 + 0.55 * len(table))
    points = [f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") for value in table["difference"]]
    for row, gain in zip(table.itertuples(), points, strict=True):
        look = {"fmt": "o", "capsize": 4, "color": color(row.name)}
        axis.errorbar(row.difference, row.name, xerr=row.ci95, **look)
        words = f"{gain}   better in {row.wins} of {row.seeds} seeds"
        note(axis, words, (row.difference, row.name), (0, 5), fontsize=8.5)
    axis.axvline(0, color=GRAY, linewidth=1, zorder=0)
    axis.margins(x=0.2)
    label = f"test error minus that of {against} of the same seed, points"
    axis.set(xlabel=label, ylim=(len(table) - 0.4, -0.7))
    if len(table):
        least = table["difference"].argmin()
        axis.set_title(
            f"Lowest beside {against}: {table['name'].iloc[least]}, {points[least]} points"
        )
    return source(figure, f"{where}; bars: 95 % interval of the paired difference")


def agreement(matrix, names, where):
    """On how many test images two models name the same class: `ensemble.agreement`, %."""
    figure, (axis,) = panels(1, 5.4, 4.2)
    table = pd.DataFrame(np.asarray(matrix), names, names)
    others = table.mask(np.eye(len(names), dtype=bool)).stack() if len(names) > 1 else table.stack()
    look = {"annot": True, "fmt": ".1f", "cmap": "crest", "square": True, "cbar": False}
    sns.heatmap(table, vmin=np.floor(others.min()), vmax=100, ax=axis, **look)
    axis.tick_params(rotation=0, length=0)
    title = f"Two generations differ on {100 - others.mean():.1f} % of images"
    axis.set(xlabel="same prediction, % of test images", title=title)
    return source(figure, where)
