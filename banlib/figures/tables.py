"""Chapters 4 and 7: students of other shapes, and every printed number beside ours.

The paper's points are gray and hollow. Ours have the color of what they are: trained on labels
alone, as a teacher is, or taught, as BAN-1 is.
"""

import numpy as np
from matplotlib.ticker import EngFormatter

from banlib.figures import style
from banlib.figures.style import ERROR, GRAY, INK, LIGHT, SMALL, WIDE, color, note, panels, source
from banlib.paper import statistics as st

PAPER = "the paper, CIFAR-100"
LOOKS = {"labels alone": ("s", "Teacher"), "taught": ("o", "BAN-1"), "teacher": ("*", "Teacher")}
MODELS = {"Baseline": ("baselines", "s"), "BAN": ("students", "o"), "Ens": ("ensembles", "^")}
VERDICTS = {"reproduced": (INK, INK), "partly": (INK, INK), "not": (style.PAPER, INK)}
FURTHEST = -100  # % of the other's errors: a student that makes twice as many


def matched_diagram(edges, widths):
    """Dense blocks, and the residual stages in their place: boundaries stay, the rest changes.

    edges: `models.boundaries` of the teacher; widths: of the student's stages. Bars are to scale.
    """
    figures = []
    titles = {"Teacher": "Teacher: dense blocks", "BAN-1": "Student: residual stages"}
    for name, title in titles.items():
        figure, (axis,) = panels(1, WIDE, 2.9)
        for stage, ((taken, grown, given), width) in enumerate(zip(edges, widths, strict=True)):
            heights = np.linspace(taken, grown, 6) if name == "Teacher" else np.full(6, width)
            axis.bar(10.5 * stage + 1 + np.arange(6), heights, 0.95, color=color(name), alpha=0.45)
            ends = axis.bar((10.5 * stage, 10.5 * stage + 7), (taken, given), color=INK)
            axis.bar_label(ends, fontsize=SMALL)
        axis.set_xticks(3.5 + 10.5 * np.arange(3), ["stage 1", "stage 2", "stage 3"])
        axis.tick_params(axis="x", length=0)
        axis.set(title=title, ylabel="channels", ylim=(0, 1.05 * max(map(max, edges))))
        figures.append(source(figure))
    return figures


def error_against_parameters(points):
    """Test error against size, a panel for each source: `ledger.sizes`."""
    return [_sizes(name, part) for name, part in points.groupby("source", sort=False)]


def _sizes(name, part):
    figure, (axis,) = panels(1, WIDE, 3.9)
    for _, pair in part[part["kind"] != "teacher"].groupby("network"):
        axis.plot(pair["params"], pair["error"], color=LIGHT, linewidth=1)
    for kind, (marker, role) in LOOKS.items():
        look = {"fmt": marker, "color": GRAY if name == PAPER else color(role), "elinewidth": 0.6}
        look |= {"mfc": style.PAPER} if name == PAPER else {}
        some = part[part["kind"] == kind]
        axis.errorbar("params", "error", "ci95", data=some, label=kind, **look)
    taught, level = (part.loc[part["kind"] == kind, "error"] for kind in ("taught", "teacher"))
    axis.axhline(level.min(), color=GRAY, linewidth=1, linestyle=":")
    below = f"{(taught < level.min()).sum()} of {len(taught)} students below their teacher"
    axis.set(title=f"{name[0].upper()}{name[1:]}:\n{below}", xlabel="parameters", ylabel=ERROR)
    axis.set(xscale="log", ylim=(max(0, axis.get_ylim()[0]), None))
    for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        ticks(EngFormatter(sep="\N{THIN SPACE}"))
    narrow = part["params"].max() < 20 * part["params"].min()
    axis.tick_params(axis="x", which="minor", labelbottom=narrow, labelsize=SMALL)
    axis.legend()
    return source(figure)


def students_gain(gains):
    """Which share of errors is avoided, against the teacher and against the network untaught.

    gains: `ledger.students`. A student far worse than the other is an arrow at the edge, with its
    share.
    """
    figures = []
    against = {"teacher": "Beside its teacher", "labels alone": "Beside itself, untaught"}
    for kind, words in against.items():
        part = gains[gains["against"] == kind]
        networks, part = list(part["network"]), part.assign(place=range(len(part)))
        figure, (axis,) = panels(1, WIDE, 1.1 + 0.3 * len(networks))
        axis.axvline(0, color=GRAY, linewidth=1)
        far = part["share"] < FURTHEST
        look = {"fmt": "o", "capsize": 3, "color": color("BAN-1")}
        axis.errorbar("share", "place", xerr="ci95", data=part[~far], **look)
        axis.plot("paper_share", "place", "D", data=part, mfc=style.PAPER, color=GRAY)
        for row in part[far].itertuples():
            axis.plot(FURTHEST, row.place, "<", color=color("BAN-1"))
            note(axis, f"\N{MINUS SIGN}{-row.share:.0f} %", (FURTHEST, row.place), fontsize=SMALL)
        clear = sum(row.share > 0 and st.clear(row.share, row.ci95) for row in part.itertuples())
        title = f"{words}:\nclearly better in {clear} of {len(part)}"
        axis.set(title=title, xlabel="errors avoided, %", ylim=(len(networks) - 0.5, -0.5))
        axis.set_xlim(left=max(axis.get_xlim()[0], FURTHEST - 10))
        short = [name.removeprefix("Match") for name in networks]
        axis.set_yticks(range(len(networks)), short, fontsize=SMALL)
        figures.append(source(figure))
    return figures


def ledger_overview(table):
    """The paper's share of its reference's errors avoided, and ours, a panel for each profile.

    table: `ledger.ledger`. Filled points are reproduced or partly so, hollow ones are not, light
    ones too small to tell. On the diagonal ours is as good as the paper's.
    """
    shown = table.dropna(subset=["share"])
    return [_shares(name, part) for name, part in shown.groupby("profile", sort=False)]


def _shares(name, part):
    figure, (axis,) = panels(1, WIDE, 3.9)
    axis.axhline(0, color=GRAY, linewidth=1, zorder=0)
    axis.axvline(0, color=GRAY, linewidth=1, zorder=0)
    axis.axline((0, 0), slope=1, color=LIGHT, linewidth=1, linestyle="--", zorder=0)
    for start, (label, marker) in MODELS.items():
        some = part[part["column"].str.startswith(start)]
        looks = [VERDICTS.get(verdict, (LIGHT, LIGHT)) for verdict in some["verdict"]]
        faces, edges = zip(*looks, strict=True) if looks else ([], [])
        spots = some["share"].clip(lower=FURTHEST)
        axis.scatter(some["paper_share"], spots, 30, faces, marker=marker, edgecolors=edges)
        axis.scatter([], [], 30, style.PAPER, marker=marker, edgecolors=INK, label=label)
    same = int((part["share"] * part["paper_share"] > 0).sum())
    axis.set(title=f"{name}: {same} of {len(part)}\non the paper's side of zero")
    axis.set(xlabel="the paper: errors avoided, %", ylabel="measured: errors avoided, %")
    axis.legend()
    return source(figure)
