"""Chapter 2: a lineage and its errors, beside the paper's."""

import numpy as np
import pandas as pd
import seaborn as sns

from banlib.figures import style
from banlib.figures.style import ERROR, GRAY, INK, PAPER, SMALL, WIDE, color, note, panels, source
from banlib.paper import printed, statistics
from banlib.paper.numbers import number
from banlib.runs.recipe import generation_name


def lineage_diagram(gens):
    """The idea as a drawing: labels teach all, and each generation's output teaches the next."""
    figure, (axis,) = panels(1, WIDE, 1.6)
    names = [generation_name(generation) for generation in range(min(gens, 3) + 1)]
    middle = {"ha": "center", "va": "center", "fontsize": SMALL}
    for x, name in zip(range(0, 3 * len(names), 3), names, strict=True):
        arrow = {"arrowstyle": "->", "color": INK}
        box = {"boxstyle": "round,pad=0.5", "facecolor": "none", "edgecolor": color(name)}
        axis.text(x, 0, name, fontweight="bold", bbox=box | {"linewidth": 2.5}, **middle)
        axis.annotate("labels", (x, 0.35), (x, 1.1), arrowprops=arrow, ha="center", fontsize=SMALL)
        if name != names[-1]:
            axis.annotate("", (x + 2, 0), (x + 1, 0), arrowprops=arrow | {"color": color(name)})
            axis.text(x + 1.5, -0.65, "output\nprobabilities", **middle)
    axis.set(xlim=(-1.1, 3 * len(names) - 1.9), ylim=(-1.0, 1.3))
    axis.set_axis_off()
    return source(figure)


def error_by_generation(frame, controls, network, title="Measured here"):
    """Test error of each generation and ensemble: a panel of ours, and one of the paper's.

    frame: `statistics.errors`; controls: {name: {seed: Run}}, of which `labels x2` is shown;
    network: highlighted if it is one of the paper's.
    """
    known = {name: runs for name, runs in controls.items() if name == statistics.CONTROL}
    shown = statistics.with_controls(frame, known)
    ours, (axis,) = panels(1, WIDE, 3.4)
    style.means(axis, shown, "name", "error")
    low, high = axis.get_ylim()
    axis.set(title=title, ylim=(max(low, 0), min(high, 1.6 * shown["error"].max() + 1)))
    axis.tick_params(axis="x", labelrotation=35)
    paper, (axis,) = panels(1, WIDE, 3.4)
    rows = printed.TABLE1
    starts = style.spread([row.errors["Baseline"] for row in rows], 0.25)
    for row, start in zip(rows, starts, strict=True):
        names, values = ["Teacher", *row.errors][1:], np.array([*row.errors.values()], dtype=float)
        look = {"color": INK if row.network == network else GRAY, "mfc": PAPER}
        for part in (slice(4), slice(4, None)):
            axis.plot(np.arange(len(values))[part], values[part], "o-", **look)
        note(axis, row.network.removeprefix("DenseNetBC-"), (0, start), (-6, 0))
    axis.set(title="The paper, CIFAR-100: one run each", ylabel=ERROR, xlim=(-1.6, 5.4))
    axis.set_xticks(range(6), ["Teacher", *names[1:]], rotation=35)
    return [source(ours), source(paper)]


def training_curves(curves):
    """Training loss and test error of all generations, a panel each: `statistics.curves`."""
    names = list(curves["name"].unique())
    look = {"x": "epoch", "hue": "name", "palette": {name: color(name) for name in names}}
    titles = {
        "train_loss": ("training loss, nats", "Two loss terms, so students start higher"),
        "test_error": (ERROR, "Errors drop where the learning rate does"),
    }
    figures = []
    for column, (label, title) in titles.items():
        figure, (axis,) = panels(1, WIDE, 3.2)
        seen = curves.dropna(subset=[column])
        sns.lineplot(seen, y=column, errorbar=style.limits, legend=False, ax=axis, **look)
        highest = seen.groupby(["name", "epoch"])[column].mean().max()
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, 1.15 * highest))
        last = seen[seen["epoch"] == seen["epoch"].max()]
        ends = last.groupby("name", sort=False)[column].mean().to_dict()
        style.label_ends(axis, seen["epoch"].max(), ends)
        style.whole_numbers(axis)
        alone = column == "train_loss" and len(names) == 1
        style.title(axis, "The loss falls in steps, as the rate does" if alone else title)
        figures.append(source(figure))
    return figures


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


def teacher_against_student(points):
    """Student error against teacher error, a panel for each source; winners are below the diagonal.

    points: data frame with columns source, name (of the student), teacher, student (%). The
    paper's markers are hollow and gray, with a shape for each generation.
    """
    figures = []
    for name, part in points.groupby("source", sort=False):
        figure, (axis,) = panels(1, WIDE, 4.0)
        values = part[["teacher", "student"]].to_numpy()
        margin = 0.06 * np.ptp(values) + 0.1
        limits = values.min() - 3 * margin, values.max() + margin  # words go below the points
        axis.plot(limits, limits, color=GRAY, linewidth=1)
        for place, (student, group) in enumerate(part.groupby("name", sort=False)):
            look = {"color": color(student), "alpha": 0.8, "marker": "o"}
            if name.startswith("paper"):
                look = {"color": GRAY, "mfc": PAPER, "marker": "osD^v"[place % 5]}
            axis.plot("teacher", "student", data=group, label=student, linestyle="", **look)
        wins = (part["student"] < part["teacher"]).sum()
        title = f"{name[0].upper()}{name[1:]}:\n{wins} of {len(part)} students err less"
        axis.set(title=title)
        axis.set(aspect="equal", xlabel=f"teacher's {ERROR}", ylabel=f"student's {ERROR}")
        axis.set(xlim=limits, ylim=limits)
        note(axis, "student better", (limits[1], limits[0]), (-5, 5))
        axis.legend(loc="upper left", handletextpad=0.1)
        figures.append(source(figure))
    return figures


def paired_differences(table, against="its teacher"):
    """Each model minus another within the same seed, with intervals: `statistics.paired`."""
    figure, (axis,) = panels(1, WIDE, 1.0 + 0.45 * len(table))
    for row in table.itertuples():
        look = {"fmt": "o", "capsize": 4, "color": color(row.name)}
        axis.errorbar(row.difference, row.name, xerr=row.ci95, **look)
        words = f"{number(row.difference, sign=True)}, better in {row.wins} of {row.seeds} seeds"
        look = {"xycoords": ("axes fraction", "data"), "zorder": 0.5}
        note(axis, words, (0.5, row.name), (0, 5), bbox=style.PLAIN, **look)
    axis.axvline(0, color=GRAY, linewidth=1, zorder=0)
    axis.margins(x=0.1)
    axis.set(xlabel=f"test error minus that of\n{against}, points", ylim=(len(table) - 0.4, -0.7))
    return source(figure)


def agreement(matrix, names):
    """On how many test images two models name the same class: `ensemble.agreement`, %."""
    figure, (axis,) = panels(1, WIDE, 3.4)
    table = pd.DataFrame(np.asarray(matrix), names, names)
    others = table.mask(np.eye(len(names), dtype=bool)).stack() if len(names) > 1 else table.stack()
    texts = table.map(number)
    look = {"annot": texts, "fmt": "", "cmap": "crest", "square": True, "cbar": False}
    sns.heatmap(table, vmin=np.floor(others.min()), vmax=100, ax=axis, **look)
    axis.tick_params(rotation=0, length=0)
    axis.set_xlabel("same prediction, % of test images")
    style.title(axis, f"Two generations differ on {number(100 - others.mean())} % of images")
    return source(figure)
