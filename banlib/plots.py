"""Figures of the book, from data frames (see `ledger`): no training, no disk. Each function returns a matplotlib Figure.

Error bars and bands are 95 % t intervals over seeds. The last line of a figure says where its numbers come from.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import EngFormatter, MaxNLocator

from banlib import ledger, paper
from banlib.recipe import generation_name

PALETTE = sns.color_palette("colorblind")
COLORS = {"Teacher": "#3a3a3a", "BAN-1": PALETTE[0], "BAN-2": PALETTE[1], "BAN-3": PALETTE[2],
          "Ens*2": PALETTE[4], "Ens*3": PALETTE[3], "label+teacher": PALETTE[0], "teacher": PALETTE[1],
          "cwtm": PALETTE[2], "dkpp": PALETTE[4]}  # fmt: skip
ERROR = "test error, %"


def style():
    """The book's look: opaque light figures (readable in the dark theme too), no top or right spine."""
    sns.set_theme(style="ticks", context="notebook", palette=PALETTE, rc={
        "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 110, "savefig.dpi": 110,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12, "axes.titlelocation": "left",
        "axes.titleweight": "bold", "font.size": 10.5, "axes.labelsize": 10.5, "figure.constrained_layout.use": True,
    })  # fmt: skip


def color(name):
    """The colour that a model keeps in every figure."""
    later = name.removeprefix("BAN-")
    return COLORS.get(name, PALETTE[(int(later) + 3) % len(PALETTE)] if later.isdecimal() else "#777777")


def source(figure, text):
    """Write where the numbers come from under a figure, and close it: a notebook then shows it once, as a cell's value."""
    text = textwrap.fill(text, int(19 * figure.get_figwidth()))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="#555555")
    plt.close(figure)
    return figure


def sign(value):
    """A difference in points as text with a true minus."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def error_by_generation(frame, network, where, title="Measured here"):
    """The paper's four lineages beside ours: test error of each generation and ensemble.

    frame: `ledger.errors`; network: highlighted in the paper's panel if it is there; where: the provenance line.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), gridspec_kw={"width_ratios": (1, 1)})
    shown = ["Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
    for number, row in enumerate(paper.TABLE1):
        values = [row.errors[ledger.COLUMNS.get(name, name)] for name in shown]
        points = [(place, value) for place, value in enumerate(values) if value is not None]
        own = row.network == network
        for part in (points[:-2], points[-2:]):
            left.plot(*zip(*part), "o-", color=PALETTE[number], linewidth=2.4 if own else 1.2, markersize=5)
        left.annotate(row.network.removeprefix("DenseNetBC-"), points[0], (-6, 0), textcoords="offset points",
                      ha="right", va="center", fontsize=9, color=PALETTE[number])  # fmt: skip
    left.set(title="The paper, CIFAR-100: one run each", ylabel=ERROR, xlim=(-0.9, len(shown) - 0.6))
    left.set_xticks(range(len(shown)), shown, fontsize=9)

    table = ledger.summary(frame)
    for place, row in enumerate(table.itertuples()):
        seeds = frame.loc[frame["name"] == row.name, "error"]
        right.plot(place + np.linspace(-0.18, 0.18, len(seeds)), seeds, ".", color=color(row.name), alpha=0.35)
        right.errorbar(place, row.mean, row.ci95 if row.seeds > 1 else None, fmt="o", color=color(row.name), capsize=4,
                       linewidth=2)  # fmt: skip
        right.annotate(f"{row.mean:.1f}", (place, row.mean), (8, 0), textcoords="offset points", va="center",
                       fontsize=9, color=color(row.name))  # fmt: skip
    low, high = right.get_ylim()
    most = frame["error"].max()
    right.set(title=title, ylabel=ERROR, xlim=(-0.5, len(table) - 0.3), ylim=(max(low, 0), min(high, 1.6 * most + 1)))
    right.set_xticks(range(len(table)), table["name"], fontsize=9)
    bars = "bars: 95 % interval over seeds; dots: seeds" if table["seeds"].max() > 1 else "one seed: no interval"
    return source(figure, f"Left: table 1 of the paper. Right: {where}; {bars}")


def training_curves(curves, where):
    """Training loss and test error against epochs, all generations: mean over seeds with 95 % bands.

    curves: `ledger.curves`. The loss of a student counts two terms, so it starts near twice its teacher's.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0))
    several = curves["seed"].nunique() > 1
    for axis, column, label in zip(axes, ("train_loss", "test_error"), ("training loss, nats", ERROR)):
        ends = []
        for name, group in curves.dropna(subset=[column]).groupby("name", sort=False):
            spread = group.groupby("epoch")[column].agg(ledger.interval)
            epochs, (mean, half) = spread.index.to_numpy(), np.array(spread.to_list()).T
            axis.plot(epochs, mean, color=color(name), linewidth=1.8, marker="." if len(epochs) < 20 else None)
            axis.fill_between(epochs, mean - half, mean + half, color=color(name), alpha=0.15, linewidth=0)
            ends.append((mean[-1], name))
        highest = max(line.get_ydata().max() for line in axis.lines)
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, 1.15 * highest))
        label_ends(axis, epochs[-1], ends)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    alone = curves["name"].nunique() == 1
    axes[0].set_title("Labels are learned" if alone else "Students are asked for more: two terms of loss")
    axes[1].set_title("Errors drop where the learning rate does")
    return source(figure, f"{where}; {'bands: 95 % interval over seeds' if several else 'one seed'}")


def label_ends(axis, x, ends):
    """Names at the right ends of lines, spread so that none covers another."""
    low, high = axis.get_ylim()
    place, gap = low - 0.03 * (high - low), 0.06 * (high - low)
    for value, name in sorted(ends):
        place = max(value, place + gap)
        axis.annotate(name, (x, place), (5, 0), textcoords="offset points", va="center", fontsize=9, color=color(name))
    axis.set_xlim(right=x * 1.17)


def teacher_against_student(points, where):
    """Teacher error on x, student error on y, with the diagonal: below it the student beats its teacher.

    points: data frame with columns source ("paper, ..." or another), name (of the student), teacher, student (%); a panel
    for each source.
    """
    sources = list(points["source"].unique())
    width = 4.8 if len(sources) < 3 else 3.5
    figure, axes = plt.subplots(1, len(sources), figsize=(width * len(sources), width - 0.1), squeeze=False)
    for axis, told in zip(axes[0], sources):
        part = points[points["source"] == told]
        values = part[["teacher", "student"]].to_numpy()
        low, high = values.min(), values.max()
        margin = 0.06 * (high - low) + 0.1
        limits = (low - 3 * margin, high + margin)  # room for the words below the points
        axis.plot(limits, limits, color="#888888", linewidth=1)
        axis.fill_between(limits, limits, limits[0], color="#2ca02c", alpha=0.06, linewidth=0)
        for name, group in part.groupby("name", sort=False):
            axis.scatter(group["teacher"], group["student"], color=color(name), s=34, label=name, alpha=0.85)
        won = (part["student"] < part["teacher"]).sum()
        axis.set(title=f"{told}:\n{won} of {len(part)} students win", xlabel=f"teacher's {ERROR}", xlim=limits, ylim=limits)
        axis.set_aspect("equal")
        axis.annotate("student better", (0.97, 0.03), xycoords="axes fraction", ha="right", fontsize=9, color="#2a6b2a")
        axis.legend(frameon=False, fontsize=9, loc="upper left", handletextpad=0.1)
    axes[0, 0].set_ylabel(f"student's {ERROR}")
    return source(figure, where)


def paper_points():
    """Table 1's students against their lineage's teacher, for `teacher_against_student`."""
    return [
        {"source": "paper, CIFAR-100", "name": name, "teacher": row.errors["Baseline"], "student": row.errors[name]}
        for row in paper.TABLE1
        for name in ("BAN-1", "BAN-2", "BAN-3")
        if row.errors[name] is not None
    ]


def measured_points(frame, told):
    """Each seed's students against their lineage's teacher, for `teacher_against_student`."""
    table = frame[frame["members"] == 1].pivot(index="seed", columns="name", values="error")
    students = [name for name in frame["name"].unique() if name in table and name != "Teacher"]
    return [
        {"source": told, "name": name, "teacher": row["Teacher"], "student": row[name]}
        for name in students
        for _, row in table.iterrows()
    ]


def paired_differences(table, where):
    """Each model minus its teacher within the same seed, with intervals. table: `ledger.paired`."""
    figure, axis = plt.subplots(figsize=(7.2, 1.1 + 0.55 * len(table)))
    for place, row in enumerate(table.itertuples()):
        axis.errorbar(row.difference, place, xerr=row.ci95 if row.seeds > 1 else None, fmt="o", color=color(row.name),
                      capsize=4, linewidth=2)  # fmt: skip
        axis.annotate(f"{sign(row.difference)}   better in {row.wins} of {row.seeds} seeds", (row.difference, place),
                      (0, 9), textcoords="offset points", ha="center", fontsize=8.5,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axis.axvline(0, color="#888888", linewidth=1, zorder=0)
    axis.set(xlabel="test error minus that of the same seed's teacher, points", ylim=(len(table) - 0.4, -0.7))
    axis.set_yticks(range(len(table)), table["name"])
    if len(table):
        best = table.loc[table["difference"].idxmin()]
        axis.set_title(f"Lowest beside its teacher: {best['name']}, {sign(best['difference'])} points")
    return source(figure, f"{where}; bars: 95 % interval of the paired difference")


def agreement(matrix, names, where):
    """On how many test images two models predict the same class. matrix: `ensemble.agreement`, %."""
    figure, axis = plt.subplots(figsize=(5.4, 4.2))
    matrix = np.asarray(matrix)
    off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)] if len(matrix) > 1 else matrix
    sns.heatmap(matrix, annot=True, fmt=".1f", cmap="crest", vmin=np.floor(off_diagonal.min()), vmax=100, square=True,
                xticklabels=names, yticklabels=names, cbar=False, ax=axis)  # fmt: skip
    axis.tick_params(rotation=0, length=0)
    axis.set(xlabel="same prediction, % of test images")
    axis.set_title(f"Two generations differ on {100 - off_diagonal.mean():.1f} % of images")
    return source(figure, where)


def images(pixels, titles, columns=None, title=None):
    """A row (or grid) of images. pixels: a list of uint8 or float 0..1 arrays [C, H, W]."""
    columns = columns or max(len(pixels), 1)
    rows = max(-(-len(pixels) // columns), 1)
    figure, axes = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.45 * rows + (0.35 if title else 0)),
                                squeeze=False)  # fmt: skip
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, text in zip(axes.flat, pixels, titles):
        show(axis, picture)
        axis.set_title(text, fontsize=8, fontweight="normal", loc="center")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    plt.close(figure)
    return figure


def show(axis, pixels):
    """One image [C, H, W] on an axis; one channel is drawn dark on light."""
    picture = np.asarray(pixels).transpose(1, 2, 0)
    axis.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray_r", interpolation="nearest")
    axis.set_axis_off()


def probabilities(rows, classes, title, pixels=None):
    """Class probabilities that a few networks give an image, for the ten likeliest classes.

    rows: {name: float [classes]}; pixels: the image itself [C, H, W], drawn beside them if given.
    """
    likeliest = np.argsort(-np.max([np.asarray(values) for values in rows.values()], axis=0))[:10]
    widths = ([2.4] if pixels is not None else []) + [3.1] * len(rows)
    figure, axes = plt.subplots(1, len(widths), figsize=(sum(widths), 2.9), width_ratios=widths, squeeze=False)
    if pixels is not None:
        show(axes[0, 0], pixels)
    for axis, (name, values) in zip(axes[0, -len(rows) :], rows.items()):
        axis.barh(range(len(likeliest)), np.asarray(values)[likeliest], color=color(name))
        axis.set(title=name, xlabel="probability", xlim=(0, 1))
        axis.set_yticks(range(len(likeliest)), [str(classes[index]) for index in likeliest])
        axis.invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    plt.close(figure)
    return figure


def lineage_diagram(gens):
    """The idea as a drawing: labels teach every generation, and each generation's output teaches the next."""
    figure, axis = plt.subplots(figsize=(9.6, 2.5))
    names = [generation_name(generation) for generation in range(min(gens, 3) + 1)]
    for place, name in enumerate(names):
        axis.text(3 * place, 0, name, ha="center", va="center", fontsize=12, color="white", fontweight="bold",
                  bbox={"boxstyle": "round,pad=0.7", "facecolor": color(name), "edgecolor": "none"})  # fmt: skip
        axis.annotate("", (3 * place, 0.42), (3 * place, 1.15), arrowprops={"arrowstyle": "->", "color": "#555555"})
        axis.text(3 * place, 1.2, "labels", ha="center", va="bottom", fontsize=10, color="#555555")
        if place:
            axis.annotate("", (3 * place - 0.85, 0), (3 * place - 2.15, 0),
                          arrowprops={"arrowstyle": "->", "linewidth": 2, "color": color(names[place - 1])})  # fmt: skip
            axis.text(3 * place - 1.5, -0.1, "output\nprobabilities", ha="center", va="top", fontsize=9,
                      color=color(names[place - 1]))  # fmt: skip
    axis.set(xlim=(-1.2, 3 * len(names) - 1.8), ylim=(-0.9, 1.7))
    axis.set_axis_off()
    axis.set_title("Same architecture, same data, a new random start each time")
    plt.close(figure)
    return figure


def dense_block_diagram(channels, growth, units):
    """How wide the input of each dense unit is: every unit reads all channels made before it."""
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.42 * (units + 1)))
    for unit in range(units + 1):
        axis.barh(unit, channels, color="#8a8a8a", height=0.62)
        for earlier in range(unit):
            axis.barh(unit, growth, left=channels + earlier * growth, color=PALETTE[earlier % 8], height=0.62)
    axis.set_yticks(range(units + 1), [f"into unit {unit + 1}" for unit in range(units)] + ["out of the block"])
    axis.invert_yaxis()
    axis.set(xlabel="channels", title=f"Each unit appends {growth} channels to all that came before")
    plt.close(figure)
    return figure


def schedule(recipe):
    """The learning rate over epochs."""
    figure, axis = plt.subplots(figsize=(7.2, 2.6))
    epochs = np.arange(1, recipe.epochs + 1)
    axis.step(epochs, [recipe.lr_at(epoch) for epoch in epochs], where="mid", color=PALETTE[0], linewidth=2)
    axis.set(xlabel="epoch", ylabel="learning rate", yscale="log", title=f"The rate falls {len(recipe.lr_milestones)} times")
    plt.close(figure)
    return figure


def reliability(tables, where):
    """Accuracy against confidence in equal bins, with the diagonal. tables: {name: (confidence, accuracy, share)}."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.6 * len(tables), 3.7), sharey=True, squeeze=False)
    for axis, (name, (confidence, accuracy, share)) in zip(axes[0], tables.items()):
        axis.plot((0, 100), (0, 100), color="#888888", linewidth=1)
        axis.scatter(confidence, accuracy, s=20 + 400 * np.asarray(share), color=color(name), alpha=0.8)
        axis.set(title=name, xlabel="confidence, %", xlim=(0, 102), ylim=(0, 102))
        axis.set_aspect("equal")
    axes[0, 0].set_ylabel("accuracy, %")
    return source(figure, f"{where}; area: share of test images")


def ensemble_sizes(subsets, where):
    """Test error against the number of members: every subset of a lineage. subsets: `ledger.subsets`."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    means = subsets.groupby(["size", "members"], sort=False)["error"].mean().reset_index()
    for size, group in means.groupby("size"):
        axis.plot(np.full(len(group), size), group["error"], "o", color="#999999", alpha=0.7)
        best, worst = group.loc[group["error"].idxmin()], group.loc[group["error"].idxmax()]
        for row, side in ((best, -11), (worst, 5)) if len(group) > 1 else ((best, -11),):
            axis.annotate(row["members"], (size, row["error"]), (0, side), textcoords="offset points", fontsize=7.5,
                          ha="center", color="#555555")  # fmt: skip
    by_seed = subsets.groupby(["size", "seed"])["error"].mean().reset_index()
    for size, group in by_seed.groupby("size"):
        mean, half = ledger.interval(group["error"])
        axis.errorbar(size + 0.06, mean, half if len(group) > 1 else None, fmt="D", color=PALETTE[0], capsize=4)
    line = means.groupby("size")["error"].mean()
    axis.plot(line.index + 0.06, line, color=PALETTE[0], linewidth=1.5)
    axis.set(xlabel="networks averaged", ylabel=ERROR, xlim=(line.index.min() - 0.5, line.index.max() + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(f"From {line.iloc[0]:.1f} % alone to {line.iloc[-1]:.1f} % together")
    return source(figure, f"{where}; grey: each subset, mean over seeds; bars: 95 % interval of the mean of a size")


def one_ensemble(subsets, members, where):
    """The members of one ensemble and their average. subsets: `ledger.subsets`; members: one of its names."""
    names = members.split(" + ")
    shown = names + ([members] if len(names) > 1 else [])
    figure, axis = plt.subplots(figsize=(7.2, 3.4))
    for place, name in enumerate(shown):
        mean, half = ledger.interval(subsets.loc[subsets["members"] == name, "error"])
        together = name == members and len(names) > 1
        axis.errorbar(mean, place, xerr=half if half == half else None, fmt="D" if together else "o", capsize=4,
                      color="#b3361a" if together else color(name))  # fmt: skip
        axis.annotate(f"{mean:.1f} %", (mean, place), (0, 8), textcoords="offset points", ha="center", fontsize=9)
    axis.set_yticks(range(len(shown)), names + (["averaged"] if len(names) > 1 else []))
    everything = subsets.groupby("members")["error"].mean()
    axis.set(xlabel=ERROR, xlim=(0, 1.35 * everything.max()), ylim=(4.6, -0.7), title=members)
    return source(figure, f"{where}; bars: 95 % interval over seeds")


def lineage_against_teachers(table, where):
    """Error against ensemble size for one lineage and for unrelated teachers. table: kind, size, error, ci95."""
    figure, axis = plt.subplots(figsize=(7.2, 3.9))
    for number, (kind, group) in enumerate(table.groupby("kind", sort=False)):
        place = group["size"] + 0.05 * number
        half = group["ci95"].fillna(0)
        axis.errorbar(place, group["error"], half, fmt="o-", capsize=4, color=PALETTE[3 * number], label=kind)
    axis.set(xlabel="networks averaged", ylabel=ERROR, title="Generations of one lineage against unrelated teachers")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False)
    return source(figure, f"{where}; a lineage: mean of all its subsets of a size; bars: 95 % interval over seeds")


def matched_diagram(edges, widths):
    """A dense block and the residual stage that takes its place: channels at the boundaries stay, those between change.

    edges: `models.boundaries` of the teacher; widths: of the student's stages. Bars are channels, to scale.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.3), sharey=True)
    for axis, who in zip(axes, ("teacher: dense blocks", "student: residual stages")):
        place, ticks = 0, []
        for stage, ((taken, grown, given), width) in enumerate(zip(edges, widths)):
            dense = who.startswith("teacher")
            inner = np.linspace(taken, grown, 6) if dense else np.full(6, width)
            axis.bar(place, taken, 0.8, color="#3a3a3a")
            axis.bar(place + 1 + np.arange(6), inner, 0.95, color=PALETTE[0 if dense else 1], alpha=0.75)
            axis.bar(place + 7, given, 0.8, color="#3a3a3a")
            axis.text(place, taken, taken, ha="center", va="bottom", fontsize=8)
            axis.text(place + 7, given, given, ha="center", va="bottom", fontsize=8)
            ticks.append((place + 3.5, f"stage {stage + 1}"))
            place += 9.5
        axis.set_xticks(*zip(*ticks))
        axis.tick_params(axis="x", length=0)
        axis.set_title(who)
    axes[0].set_ylabel("channels")
    plt.close(figure)
    return figure


def error_against_parameters(points, where):
    """Test error against size, a panel for each source: each network on labels alone and raised by the teacher.

    points: `ledger.sizes`.
    """
    looks = {"labels alone": ("o", "white", "#555555"), "raised": ("o", PALETTE[0], PALETTE[0]), "teacher": ("*", PALETTE[3], PALETTE[3])}
    sources = list(points["source"].unique())
    figure, axes = plt.subplots(1, len(sources), figsize=(4.8 * len(sources), 4.3), squeeze=False)
    for axis, told in zip(axes[0], sources):
        part = points[points["source"] == told]
        for _, pair in part[part["kind"] != "teacher"].groupby("network"):
            axis.plot(pair["params"], pair["error"], color="#bbbbbb", linewidth=1, zorder=1)
        for kind, (marker, face, edge) in looks.items():
            some = part[part["kind"] == kind]
            axis.errorbar(some["params"], some["error"], some["ci95"], fmt="none", ecolor=edge, elinewidth=1, alpha=0.5)
            axis.scatter(some["params"], some["error"], s=130 if marker == "*" else 38, marker=marker, facecolor=face,
                         edgecolor=edge, label=kind, zorder=3)  # fmt: skip
        for level in part.loc[part["kind"] == "teacher", "error"]:
            axis.axhline(level, color=PALETTE[3], linewidth=1, linestyle=":")
        raised, level = part.loc[part["kind"] == "raised", "error"], part.loc[part["kind"] == "teacher", "error"].min()
        axis.set(title=f"{told[0].upper()}{told[1:]}:\n{(raised < level).sum()} of {len(raised)} students below their teacher", xscale="log",
                 xlabel="parameters", ylabel=ERROR)  # fmt: skip
        axis.set_ylim(bottom=max(0, axis.get_ylim()[0]))
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks(EngFormatter(sep="\N{THIN SPACE}"))
        axis.tick_params(axis="x", which="minor", labelbottom=part["params"].max() < 20 * part["params"].min())
    axes[0, 0].legend(frameon=False, fontsize=9)
    return source(figure, where)


def students_gain(table, where):
    """For each student the share of errors that is gone, against its teacher and against its own network on labels alone.

    table: `ledger.students`. Filled: measured, with 95 % intervals; hollow: the paper's.
    """
    networks = list(table["network"].unique())[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 1.3 + 0.33 * len(networks)), sharey=True)
    for axis, against in zip(axes, ("teacher", "labels alone")):
        part = table[table["against"] == against]
        place = [networks.index(name) for name in part["network"]]
        axis.axvline(0, color="#888888", linewidth=1)
        axis.errorbar(part["share"], place, xerr=part["ci95"].fillna(0), fmt="o", color=PALETTE[0], capsize=3)
        axis.scatter(part["paper_share"], place, facecolor="white", edgecolor="#333333", marker="D", s=30, zorder=3)
        clear = (part["share"] - part["ci95"] > 0).sum()
        who = "its teacher" if against == "teacher" else "itself, unaided"
        axis.set(title=f"Against {who}: better in {clear} of {len(part)}", xlabel="errors gone, %")
    axes[0].set_yticks(range(len(networks)), networks, fontsize=9)
    return source(figure, f"{where}; filled: measured, bars: 95 % interval over seeds; hollow: the paper, CIFAR-100, one run each")


def one_pair(frame, network, where):
    """A teacher, a student, and the student's network on labels alone: each seed, mean and interval, and the paper's numbers.

    frame: `ledger.by_seed` of table 2; network: one of its rows.
    """
    own = frame[frame["network"] == network]
    groups = {"teacher": own.drop_duplicates("seed")["reference"].dropna()}
    names = {"Baseline": "labels alone", "BAN": "raised by the teacher"}
    groups |= {names[column]: group["error"] for column, group in own.groupby("column", sort=False)}
    printed = {names[column]: value for column, value in paper.row(network).errors.items() if value is not None}
    printed = {"teacher": paper.row("DenseNetBC-90-60").errors["Baseline"]} | printed
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 2.7), sharey=True)
    shades = {"teacher": COLORS["Teacher"], "labels alone": "#8a8a8a", "raised by the teacher": PALETTE[0]}
    for place, (name, values) in enumerate(groups.items()):
        mean, half = ledger.interval(values)
        right.plot(values, np.full(len(values), place), ".", color=shades[name], alpha=0.4)
        right.errorbar(mean, place, xerr=half if half == half else None, fmt="o", color=shades[name], capsize=4)
        right.annotate(f"{mean:.1f}", (mean, place), (0, 9), textcoords="offset points", ha="center", fontsize=9)
        if name in printed:
            left.plot(printed[name], place, "D", color=shades[name])
            left.annotate(f"{printed[name]:.2f}", (printed[name], place), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    everything = frame["error"].max()
    reach = paper.table2()[["Baseline", "BAN"]].stack()
    left.set(title="The paper, CIFAR-100", xlabel=ERROR, xlim=(reach.min() - 1, reach.max() + 1))
    right.set(title=f"Measured: {own['trained'].iloc[0].partition('@')[0]}", xlabel=ERROR, xlim=(0, 1.05 * everything))
    left.set_yticks(range(len(groups)), list(groups))
    left.set_ylim(len(groups) - 0.5, -0.7)
    return source(figure, f"{where}; bars: 95 % interval over seeds, dots: seeds")


def ledger_overview(table, where):
    """Every cell of the ledger that improves on a reference: the paper's share of errors gone against ours.

    table: `ledger.ledger`. On the diagonal both are equal; left of the vertical or below the horizontal line a model is worse than
    its reference.
    """
    shown = table.dropna(subset=["share"])
    figure, axis = plt.subplots(figsize=(7.2, 4.8))
    colours = dict(zip(ledger.VERDICTS, (PALETTE[2], PALETTE[0], PALETTE[3], "#999999")))
    axis.axhline(0, color="#888888", linewidth=1)
    axis.axvline(0, color="#888888", linewidth=1)
    limits = (shown["paper_share"].min() - 2, shown["paper_share"].max() + 2) if len(shown) else (-1, 1)
    axis.plot(limits, limits, color="#bbbbbb", linewidth=1, linestyle="--")
    kinds = {"Baseline": "s", "BAN": "o", "Ens": "^"}
    for (verdict_, kind), group in shown.groupby(["verdict", shown["column"].str.extract("(Baseline|BAN|Ens)")[0]]):
        axis.scatter(group["paper_share"], group["share"], color=colours[verdict_], marker=kinds[kind], s=36, alpha=0.85,
                     label=f"{kind.replace('Ens', 'ensemble').replace('BAN', 'student')}: {verdict_}")  # fmt: skip
    same = int((shown["share"] * shown["paper_share"] > 0).sum())
    axis.set(title=f"{same} of {len(shown)} cells lie on the paper's side of their reference",
             xlabel="paper: errors gone against the reference, %", ylabel="measured: errors gone, %")  # fmt: skip
    if len(shown):
        axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return source(figure, where)


LOOPS = {"plain": "labels alone", "distill_online": "teacher asked online", "first": "teacher remembers, first student",
         "later": "teacher remembers, later student"}  # fmt: skip


def speed(results):
    """How many times as fast as the usual loop ours is: a panel for each of `bench.loop`'s results, dots at the median
    over rounds, lines from the lowest to the highest round."""
    figure, axes = plt.subplots(1, len(results), figsize=(9.6, 3.4), sharey=True, squeeze=False)
    for axis, result in zip(axes[0], results):
        found = {name: {"median": median, "range": result["ratio_range"][name]}
                 for name, median in result["ratio_to_usual_loop"].items()} | result["students"]  # fmt: skip
        for place, name in enumerate(LOOPS):
            (low, high), median = found[name]["range"], found[name]["median"]
            axis.plot([low, high], [place, place], color=PALETTE[place], linewidth=2)
            axis.plot(median, place, "o", color=PALETTE[place])
            axis.annotate(f"{median:.1f}x", (median, place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axis.axvline(1, color="#777777", linewidth=1, linestyle="--")
        axis.set(xlabel="times as fast as the usual loop", xlim=(0, None), ylim=(len(LOOPS) - 0.5, -0.7),
                 title=f"{result['network']}\n{threads(result)}, {result['precision']}")  # fmt: skip
    axes[0][0].set_yticks(range(len(LOOPS)), LOOPS.values())
    told = "; ".join(dict.fromkeys(
        f"{result['hardware']}, {result['layout']}, batch {result['batch']}, {result['data']}, {result['rounds']} rounds"
        for result in results
    ))  # fmt: skip
    return source(figure, f"{told}. Dots: median; lines: lowest to highest round; dashed: the usual loop")


def threads(result):
    return f"{result['threads']} thread{'s' * (result['threads'] > 1)}"


def asked(share, views, epochs=200):
    """Which share of an online teacher's answers has to be asked for. share: (epochs, views) -> share, see `teachers`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
    days = np.arange(1, epochs + 1)
    left.plot(days, [100 * share(day, views) for day in days], color=PALETTE[0], linewidth=2)
    left.set(title="One student: repeats grow with training", xlabel="epochs", ylabel="answers asked for, %", ylim=(0, 105))
    students = np.arange(1, 17)
    shares = [100 * share(epochs, views) / count for count in students]
    right.plot(students, shares, "o-", color=PALETTE[1], linewidth=2)
    for count in (1, 3, 16):
        right.annotate(f"{shares[count - 1]:.0f} %", (count, shares[count - 1]), (6, 6), textcoords="offset points", fontsize=9)
    right.set(title="The first of several students asks for all", xlabel=f"students of {epochs} epochs each")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return source(figure, f"Computed: {views} views of each image, drawn anew each epoch, the same for all students of a teacher")


def scaling(result):
    """What an image costs as one thing grows at a time. result: of `bench.scaling`."""
    titles = {"depth": "depth", "growth": "growth", "batch": "images in a batch", "images": "images in an epoch"}
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 3.2), sharey=True)
    for axis, (name, label) in zip(axes, titles.items()):
        points = [point for point in result["points"] if point["axis"] == name]
        for number, (kind, told) in enumerate((("plain", "plain step"), ("fill", "teacher's answer"))):
            values = [1000 * point[kind] for point in points]
            axis.plot([point["value"] for point in points], values, "o-", color=PALETTE[number], markersize=4)
            if name == "images":
                axis.annotate(told, (points[-1]["value"], values[-1]), (0, 12), textcoords="offset points", fontsize=9,
                              ha="right", color=PALETTE[number])  # fmt: skip
        axis.set(xlabel=label, ylim=(0, None), ylabel="ms for an image" if name == "depth" else None)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0].set_title("Depth and growth cost, batch and epoch size hardly")
    return source(figure, f"Around {result['network']}, batch {result['batch']}: {result['hardware']}, "
                          f"{threads(result)}, {result['numerics']}, median of {result['rounds']} rounds")  # fmt: skip


def raised(result, share):
    """What each student of one teacher and each generation costs, raised whole, beside what its parts say.

    result: of `bench.scaling`, whose "chain" this draws; share: `teachers.share`.
    """
    chain, images = result["chain"], 2 * result["batch"]
    [parts] = [point for point in result["points"] if (point["axis"], point["value"]) == ("images", images)]
    asks = parts["later"] + share(chain["epochs"], chain["views"]) * parts["fill"]
    expected = {"students": [asks, parts["later"], parts["later"]], "generations": [asks] * 3}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), sharey=True)
    titles = {"students": "Of one teacher's students, the first asks", "generations": "Each generation asks a new teacher"}
    for axis, (kind, title) in zip(axes, titles.items()):
        numbers = range(1, len(chain[kind]) + 1)
        axis.plot(numbers, [each / parts["plain"] for each in expected[kind]], "o", color="#777777", markerfacecolor="none", markersize=9)
        axis.plot(numbers, [each / chain["plain"] for each in chain[kind]], "o", color=PALETTE[0])
        for number, each in zip(numbers, chain[kind]):
            axis.annotate(f"{each / chain['plain']:.2f}", (number, each / chain["plain"]), (8, -3), textcoords="offset points", fontsize=9)
        axis.axhline(1, color="#777777", linewidth=1, linestyle="--")
        axis.set(title=title, xlabel=kind[:-1], xlim=(0.6, len(chain[kind]) + 0.6), ylim=(0, 1.25 * max(chain["students"]) / chain["plain"]))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("time, in plain trainings")
    return source(figure, f"{result['network']}, batch {result['batch']}, {chain['epochs']} epochs of {images} images, {chain['views']} "
                          f"views: {result['hardware']}, {threads(result)}, {result['numerics']}, median of {result['rounds']} rounds. "
                          "Filled: measured; hollow: from its parts; dashed: a training on labels")  # fmt: skip


def cost(step, later, online, answer, share, epochs, students):
    """What a student costs in units of a plain step: with the teacher online, and remembered by all students together.

    step, later, online, answer: seconds for an image of a plain step, of one whose teacher has answered, of one whose
    teacher is online, and of asking the teacher in large batches; share: of the answers that are asked for.
    """
    figure, axis = plt.subplots(figsize=(7.6, 2.8))
    bars = {"labels alone": (step, 0), "teacher online": (step, online - step), "teacher remembers": (later, share * answer)}
    for place, (name, (own, extra)) in enumerate(bars.items()):
        axis.barh(place, own / step, color=PALETTE[0])
        axis.barh(place, extra / step, left=own / step, color=PALETTE[1])
        axis.annotate(f"{(own + extra) / step:.2f}", ((own + extra) / step, place), (5, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(bars)), bars)
    axis.set(xlabel="time of one student, in plain trainings", ylim=(2.6, -0.6), xlim=(0, 1.25 * max(1, online / step, later / step + answer / step)),
             title=f"{students} student{'s' * (students > 1)} of {epochs} epochs: each asks for {100 * share:.0f} % of the answers")  # fmt: skip
    return source(figure, "Blue: the student's own step; orange: its teacher")
