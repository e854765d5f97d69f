"""Chapters 4 and 7: students of other shapes, and every printed number beside ours."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import EngFormatter

from banlib.figures import style
from banlib.figures.style import DARK, ERROR, GRAY, LIGHT, PALETTE, panels, source
from banlib.paper import printed
from banlib.paper.ledger import VERDICTS

KINDS = {"teacher": "Teacher", "Baseline": "labels alone", "BAN": "raised by the teacher"}


def matched_diagram(edges, widths):
    """Dense blocks, and the residual stages in their place: boundaries stay, the rest changes.

    edges: `models.boundaries` of the teacher; widths: of the student's stages. Bars are to scale.
    """
    figure, axes = panels(2, 9.6, 3.3, sharey=True)
    for stage, ((taken, grown, given), width) in enumerate(zip(edges, widths, strict=True)):
        inner = np.linspace(taken, grown, 6), np.full(6, width)
        for axis, heights, shade in zip(axes, inner, PALETTE, strict=False):
            place = 9.5 * stage
            axis.bar(place + 1 + np.arange(6), heights, 0.95, color=shade, alpha=0.75)
            ends = axis.bar((place, place + 7), (taken, given), color=DARK)
            axis.bar_label(ends, fontsize=8)
    for axis, title in zip(
        axes, ("teacher: dense blocks", "student: residual stages"), strict=True
    ):
        axis.set_xticks(3.5 + 9.5 * np.arange(3), ["stage 1", "stage 2", "stage 3"])
        axis.tick_params(axis="x", length=0)
        axis.set_title(title)
    axes[0].set_ylabel("channels")
    return source(figure)


def error_against_parameters(points, where):
    """Test error against size, a panel for each source: on labels alone, and raised by the teacher.

    points: `ledger.sizes`.
    """
    looks = {"labels alone": ("o", "white", DARK), "raised": ("o", PALETTE[0], PALETTE[0])}
    looks["teacher"] = "*", PALETTE[3], PALETTE[3]
    sources = list(points.groupby("source", sort=False))
    figure, axes = panels(len(sources), 4.8 * len(sources), 4.3)
    for axis, (name, part) in zip(axes, sources, strict=True):
        for _, pair in part[part["kind"] != "teacher"].groupby("network"):
            axis.plot(pair["params"], pair["error"], color=LIGHT, linewidth=1)
        for kind, (marker, face, edge) in looks.items():
            look = {"fmt": marker, "mfc": face, "color": edge, "elinewidth": 0.6}
            some = part[part["kind"] == kind]
            axis.errorbar("params", "error", "ci95", data=some, label=kind, **look)
        raised, level = (part.loc[part["kind"] == kind, "error"] for kind in ("raised", "teacher"))
        axis.axhline(level.min(), color=PALETTE[3], linewidth=1, linestyle=":")
        wins = f"{(raised < level.min()).sum()} of {len(raised)} students below their teacher"
        axis.set(title=f"{name[0].upper()}{name[1:]}:\n{wins}", xlabel="parameters", ylabel=ERROR)
        axis.set(xscale="log", ylim=(max(0, axis.get_ylim()[0]), None))
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks(EngFormatter(sep="\N{THIN SPACE}"))
        narrow = part["params"].max() < 20 * part["params"].min()
        axis.tick_params(axis="x", which="minor", labelbottom=narrow)
    axes[0].legend()
    return source(figure, where)


def students_gain(table, where):
    """Which share of errors is gone, against the teacher and against the network on labels alone.

    table: `ledger.students`. Filled: measured, with 95 % intervals; hollow: the paper's.
    """
    networks = list(table["network"].unique())
    figure, axes = panels(2, 9.6, 1.3 + 0.33 * len(networks), sharey=True)
    against = {"teacher": "its teacher", "labels alone": "itself, unaided"}
    for axis, (kind, words) in zip(axes, against.items(), strict=True):
        part = table[table["against"] == kind]
        place = [networks.index(name) for name in part["network"]]
        axis.axvline(0, color=GRAY, linewidth=1)
        axis.errorbar(part["share"], place, xerr=part["ci95"], fmt="o", capsize=3)
        axis.plot(part["paper_share"], place, "D", mfc="white", color=DARK)
        clear = (part["share"] - part["ci95"] > 0).sum()
        title = f"Against {words}: better in {clear} of {len(part)}"
        axis.set(title=title, xlabel="errors gone, %")
    axes[0].set_yticks(range(len(networks)), networks, fontsize=9)
    axes[0].invert_yaxis()
    told = "filled: measured, bars: 95 % interval over seeds; hollow: the paper, CIFAR-100"
    return source(figure, f"{where}; {told}, one run each")


def one_pair(frame, network, where):
    """A teacher, its student, and the student's network on labels alone: the paper's, and ours.

    frame: `ledger.by_seed` of table 2; network: one of its rows.
    """
    own, errors = frame[frame["network"] == network], printed.row(network).errors
    teacher = own.drop_duplicates("seed").dropna(subset="reference")
    ours = pd.concat([teacher.assign(column="teacher", error=teacher["reference"]), own])
    errors = {"teacher": printed.row("DenseNetBC-90-60").errors["Baseline"]} | errors
    paper = pd.DataFrame(errors.items(), columns=["column", "error"]).dropna()
    paper = paper[paper["column"].isin(ours["column"])]
    figure, (left, right) = panels(2, 9.0, 2.7, sharey=True)
    for axis, table in ((left, paper), (right, ours)):
        style.means(axis, table.replace({"column": KINDS}), "column", "error", flat=True)
    everything = [error for row in printed.TABLE2 for error in row.errors.values() if error]
    left.set(title="The paper, CIFAR-100", xlim=(min(everything) - 1, max(everything) + 1))
    trained = own["trained"].iloc[0].partition("@")[0]
    right.set(title=f"Measured: {trained}", xlim=(0, 1.05 * frame["error"].max()))
    right.set_ylim(ours["column"].nunique() - 0.5, -0.7)
    return source(figure, f"{where}; bars: 95 % interval over seeds, dots: seeds")


def ledger_overview(table, where):
    """Every cell with a reference: the paper's share of its errors gone, and ours.

    table: `ledger.ledger`. Left of the vertical or below the horizontal line a model is worse than
    its reference; on the diagonal ours is as good as the paper's.
    """
    figure, (axis,) = panels(1, 7.2, 4.8)
    shown = table.dropna(subset=["share"])
    model = shown["column"].str.extract("(Baseline|BAN|Ens)")[0]
    model = model.replace({"BAN": "student", "Ens": "ensemble"})
    shades = (PALETTE[2], PALETTE[0], PALETTE[3], LIGHT, GRAY)
    look = {"hue": "verdict", "palette": dict(zip(VERDICTS, shades, strict=True)), "s": 40}
    look |= {"style": "model", "markers": {"Baseline": "s", "student": "o", "ensemble": "^"}}
    axis.axhline(0, color=GRAY, linewidth=1, zorder=0)
    axis.axvline(0, color=GRAY, linewidth=1, zorder=0)
    axis.axline((0, 0), slope=1, color=LIGHT, linewidth=1, linestyle="--", zorder=0)
    same = int((shown["share"] * shown["paper_share"] > 0).sum())
    title = f"{same} of {len(shown)} cells lie on the paper's side of their reference"
    label = "paper: errors gone against the reference, %"
    if len(shown):
        sns.scatterplot(shown.assign(model=model), x="paper_share", y="share", ax=axis, **look)
        sns.move_legend(axis, "center left", bbox_to_anchor=(1, 0.5))
    axis.set(title=title, xlabel=label, ylabel="measured: errors gone, %")
    return source(figure, where)
