"""Chapter 3: how many networks, and which."""

import seaborn as sns

from banlib.figures import style
from banlib.figures.style import ERROR, GRAY, ROLES, WIDE, note, panels, source
from banlib.paper.numbers import number
from banlib.paper.statistics import CONTROL

KINDS = {"one lineage": ROLES["Ens*2"], "unrelated teachers": ROLES["Teacher"]}
KINDS |= {f"unrelated {CONTROL}": ROLES[CONTROL]}


def ensemble_sizes(subsets):
    """Test error against the number of members: every subset of a lineage, `statistics.subsets`."""
    figure, (axis,) = panels(1, WIDE, 3.8)
    each = subsets.groupby(["size", "members"], sort=False)["error"].mean().reset_index()
    axis.plot(each["size"], each["error"], "o", color=GRAY, alpha=0.6)
    for size, group in each.groupby("size"):
        for place in {group["error"].idxmin(), group["error"].idxmax()}:
            row = each.loc[place]
            note(axis, _short(row["members"]), (size, row["error"]), bbox=style.PLAIN)
    by_seed = subsets.groupby(["size", "seed"])["error"].mean().reset_index()
    look = {"errorbar": style.limits, "err_style": "bars", "marker": "D", "color": ROLES["Ens*2"]}
    sns.lineplot(by_seed, x="size", y="error", err_kws={"capsize": 4}, ax=axis, **look)
    first, *_, last = [*by_seed.groupby("size")["error"].mean()] * 2
    style.title(axis, f"From {number(first)} % alone to {number(last)} % together")
    axis.set(xlabel="networks averaged", ylabel=ERROR)
    axis.set_xlim(0.7, each["size"].max() + 0.8)
    style.whole_numbers(axis)
    return source(figure)


def _short(members):
    """ "T+1+3": the teacher with BAN-1 and BAN-3."""
    together = members.replace(" + ", "+").replace("Teacher", "T").replace("BAN-", "")
    return together if "+" in together else members


def lineage_against_teachers(frame):
    """Error against ensemble size, a line for each kind: kind, size, seed, error."""
    figure, (axis,) = panels(1, WIDE, 3.6)
    look = {"errorbar": style.limits, "err_style": "bars", "err_kws": {"capsize": 4}, "marker": "o"}
    look |= {"hue": "kind", "palette": KINDS, "hue_order": frame["kind"].unique()}
    aside = frame["kind"].map({kind: 0.05 * place for place, kind in enumerate(look["hue_order"])})
    apart = frame.assign(size=frame["size"] + aside)  # so that intervals don't cover each other
    sns.lineplot(apart, x="size", y="error", ax=axis, **look)
    axis.set(xlabel="networks averaged", ylabel=ERROR)
    axis.set_ylim(bottom=0)
    axis.legend(title=None)
    style.whole_numbers(axis)
    means = frame.groupby(["size", "kind"])["error"].mean()
    largest = means[frame["size"].max()]
    style.title(axis, f"Lowest mean of {frame['size'].max()}: {largest.idxmin()}")
    return source(figure)
