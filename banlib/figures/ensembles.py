"""Chapter 3: how many networks, and which."""

import seaborn as sns

from banlib.figures import style
from banlib.figures.style import ERROR, GRAY, PALETTE, note, panels, source


def ensemble_sizes(subsets, where):
    """Test error against the number of members: every subset of a lineage, `statistics.subsets`."""
    figure, (axis,) = panels(1, 7.2, 4.2)
    each = subsets.groupby(["size", "members"], sort=False)["error"].mean().reset_index()
    axis.plot(each["size"], each["error"], "o", color=GRAY, alpha=0.6)
    for size, group in each.groupby("size"):
        for place, side in (("idxmin", -5), ("idxmax", 5)):
            row = each.loc[getattr(group["error"], place)()]
            if side < 0 or len(group) > 1:
                note(axis, row["members"], (size, row["error"]), (0, side), fontsize=7.5)
    by_seed = subsets.groupby(["size", "seed"])["error"].mean().reset_index()
    look = {"errorbar": style.limits, "err_style": "bars", "marker": "D", "color": PALETTE[0]}
    sns.lineplot(by_seed, x="size", y="error", err_kws={"capsize": 4}, ax=axis, **look)
    first, *_, last = [*by_seed.groupby("size")["error"].mean()] * 2
    title = f"From {first:.1f} % alone to {last:.1f} % together"
    axis.set(xlabel="networks averaged", ylabel=ERROR, title=title)
    axis.set_xlim(0.5, each["size"].max() + 0.5)
    style.whole_numbers(axis)
    told = "gray: each subset, mean over seeds; bars: 95 % interval of the mean of a size"
    return source(figure, f"{where}; {told}")


def one_ensemble(subsets, members, where):
    """The members of one ensemble and their average; members: one of the names in `subsets`."""
    figure, (axis,) = panels(1, 7.2, 3.4)
    names = list(dict.fromkeys([*members.split(" + "), members]))
    shown = subsets[subsets["members"].isin(names)].sort_values("size", kind="stable")
    together = {members: "averaged"} if len(names) > 1 else {}
    style.means(axis, shown.replace({"members": together}), "members", "error", flat=True)
    highest = subsets.groupby("members")["error"].mean().max()
    axis.set(xlim=(0, 1.35 * highest), ylim=(4.6, -0.7), title=members)
    return source(figure, f"{where}; bars: 95 % interval over seeds, dots: seeds")


def lineage_against_teachers(frame, where):
    """Error against ensemble size, one lineage and unrelated teachers: kind, size, seed, error."""
    figure, (axis,) = panels(1, 7.2, 3.9)
    look = {"errorbar": style.limits, "err_style": "bars", "err_kws": {"capsize": 4}, "marker": "o"}
    sns.lineplot(frame, x="size", y="error", hue="kind", ax=axis, **look)
    title = "Generations of one lineage against unrelated teachers"
    axis.set(xlabel="networks averaged", ylabel=ERROR, title=title)
    axis.set_ylim(bottom=0)
    axis.legend(title=None)
    style.whole_numbers(axis)
    told = "a lineage: mean of all its subsets of a size; bars: 95 % interval over seeds"
    return source(figure, f"{where}; {told}")
