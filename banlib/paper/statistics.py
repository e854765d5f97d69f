"""Lineages in, data frames out: errors in %, 95 % intervals over seeds, pairs, provenance.

An interval over seeds says where the mean of other seeds would lie, on the same test images.
Other test images would move it too; `binomial` says how far they move a single network's error.
"""

import itertools

import pandas as pd
from scipy import stats

from banlib import ensemble
from banlib.paper import printed
from banlib.runs.recipe import generation_name

COLUMNS = {"Teacher": "Baseline"}  # what the paper's table 1 calls our names; others are the same
CONTROL = "labels x2"  # of recipe.CONTROLS: BAN-1's training and size of loss, without a teacher
LINEAGE = "one lineage"
DIFFERENCE = ["difference", "ci95", "p", "wins", "seeds"]
ROUNDING = 1e-9  # errors in % whose differences agree to this differ by rounding alone


def errors(lineages):
    """One row per seed and model, single networks and ensembles of generations.

    Columns: seed, name, generation (the youngest member), members, images (of the test set), error
    (%), nll (nats), ece (%), excess (mean confidence minus accuracy, points).
    """
    labels, rows = lineages.labels(), []
    gens = max(map(len, lineages.runs.values())) - 1
    models = {generation_name(k): (k,) for k in range(gens + 1)} | ensemble.members(gens)
    for seed, runs in lineages.runs.items():
        for name, members in models.items():
            if max(members) >= len(runs):
                continue  # a shorter lineage's Ens*3 would be another ensemble of the same name
            mean = ensemble.average([runs[generation].probabilities for generation in members])
            row = {"seed": seed, "name": name, "generation": max(members), "members": len(members)}
            row |= {"images": len(labels), "error": ensemble.error(mean, labels)}
            row |= {"nll": ensemble.nll(mean, labels)}
            row |= {"ece": ensemble.calibration_error(mean, labels)}
            confidence = 100 * mean.max(1).values.double().mean().item()
            rows.append(row | {"excess": confidence - (100 - row["error"])})
    return pd.DataFrame(rows)


def predicted(members):
    """Classes that a network predicts, or several runs that average their probabilities."""
    if len(members) == 1:
        return members[0].predicted
    return ensemble.average([run.probabilities for run in members]).argmax(1)


def error_of(members):
    """Their test error in %."""
    return 100 * (predicted(members) != members[0].labels).double().mean().item()


def subsets(lineages):
    """Every ensemble of a lineage: seed, members (names joined by +), size, error (%)."""
    rows = []
    for seed, runs in lineages.runs.items():
        for size in range(1, len(runs) + 1):
            for members in itertools.combinations(runs, size):
                names = " + ".join(run.spec.name for run in members)
                rows.append((seed, names, size, error_of(members)))
    return pd.DataFrame(rows, columns=["seed", "members", "size", "error"])


def together(runs, most):
    """Ensembles of unrelated networks, {seed: Run}: seed (of the first), size (to most), error (%).

    Those of one size share no member, as an interval over them takes for granted.
    """
    members, rows = list(runs.items()), []
    for size in range(1, 1 + most):
        for start in range(0, len(members) - size + 1, size):
            group = members[start : start + size]
            rows.append((group[0][0], size, error_of([run for _, run in group])))
    return pd.DataFrame(rows, columns=["seed", "size", "error"])


def company(lineages, controls=None):
    """Ensembles by size and kind: kind, seed, size, error (%); of unrelated networks, `together`.

    kind: LINEAGE (the mean of all its subsets of a size), unrelated teachers, and unrelated
    networks of CONTROL; controls: as for `with_controls`, left out if they are light.
    """
    own = subsets(lineages).groupby(["seed", "size"], sort=False)["error"].mean().reset_index()
    strangers = {"teachers": {seed: chain[0] for seed, chain in lineages.runs.items()}}
    strangers[CONTROL] = (controls or {}).get(CONTROL, {})
    frames, most = [own.assign(kind=LINEAGE)], max(map(len, lineages.runs.values()))
    for kind, runs in strangers.items():
        if runs and not any(run.light for run in runs.values()):
            frames.append(together(runs, most).assign(kind=f"unrelated {kind}"))
    return pd.concat(frames, ignore_index=True)


def against_strangers(table):
    """Lineages minus unrelated networks at equal size, of `company`: kind, size, `difference`.

    Paired by the seeds of a group of strangers; seeds: the number of groups.
    """
    lineage, rows = table["kind"] == LINEAGE, []
    own = table[lineage].pivot(index="seed", columns="size", values="error")
    own = own.reindex(table.loc[lineage, "seed"].unique())
    for (kind, size), group in table[~lineage].groupby(["kind", "size"], sort=False):
        starts = map(own.index.get_loc, group["seed"])
        ours = [own[size].iloc[start : start + size].mean() for start in starts]
        apart = difference(pd.Series(ours) - group["error"].array)
        rows.append({"kind": kind, "size": size} | apart)
    return pd.DataFrame(rows, columns=["kind", "size", *DIFFERENCE])


def agreements(lineages):
    """On how many test images, in %, two networks predict one class: kind, seed, agreement.

    kind: a student and its teacher (the mean over a lineage), or unrelated teachers (seeds in
    pairs that share none).
    """

    def same(one, other):
        return 100 * (one.predicted == other.predicted).double().mean().item()

    rows, chains = [], list(lineages.runs.items())
    for seed, chain in chains:
        pairs = [same(*pair) for pair in itertools.pairwise(chain)]
        rows += [("a student and its teacher", seed, sum(pairs) / len(pairs))] if pairs else []
    for (seed, chain), (_, other) in zip(chains[::2], chains[1::2], strict=False):
        rows.append(("two unrelated teachers", seed, same(chain[0], other[0])))
    return pd.DataFrame(rows, columns=["kind", "seed", "agreement"])


def interval(values):
    """(mean, half-width of its 95 % t interval): NaN for fewer than two values, 0 for equals."""
    values = pd.Series(list(values), dtype=float)
    if len(values) < 2:
        return values.mean(), float("nan")
    if values.max() - values.min() <= ROUNDING:
        return values.mean(), 0.0
    return values.mean(), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def clear(mean, half):
    """Is an interval clear of zero? One without width, of seeds that agree, doesn't tell."""
    return bool(half > 0 and abs(mean) > half)


def binomial(error, images):
    """Half of a 95 % interval, in points, for an error in % measured on so many test images."""
    return stats.norm.ppf(0.975) * (error * (100 - error) / images) ** 0.5


def summary(frame, column="error"):
    """Means over seeds of a column of `errors`: name, mean, ci95, seeds; for errors, binomial."""
    rows = []
    for name, group in frame.groupby("name", sort=False):
        mean, half = interval(group[column])
        rows.append({"name": name, "mean": mean, "ci95": half, "seeds": len(group)})
        if column == "error" and "images" in group:
            rows[-1]["binomial"] = binomial(mean, group["images"].iloc[0])
    return pd.DataFrame(rows)


def difference(values):
    """Differences, one for each seed: difference (their mean), ci95, p (t-test), wins, seeds."""
    values = values.dropna()
    mean, half = interval(values)
    p = stats.ttest_1samp(values, 0).pvalue if half > 0 else float("nan")
    wins = int((values < -ROUNDING).sum())
    return {"difference": mean, "ci95": half, "p": p, "wins": wins, "seeds": len(values)}


def paired(frame, against="Teacher", column="error"):
    """Each model minus `against` within the same seed: name and the columns of `difference`.

    Negative differences are improvements. Pairing removes what a lucky seed gives both.
    """
    table = frame.pivot(index="seed", columns="name", values=column)
    others = [name for name in frame["name"].unique() if name != against and against in table]
    rows = [{"name": name} | difference(table[name] - table[against]) for name in others]
    return pd.DataFrame(rows, columns=["name", *DIFFERENCE])


def word(entry):
    """What a row of `paired` says: "better", "worse", "undecided" or "one seed"."""
    if entry["seeds"] < 2:
        return "one seed"
    if not clear(entry["difference"], entry["ci95"]):
        return "undecided"
    return "better" if entry["difference"] < 0 else "worse"


def with_controls(frame, controls):
    """The rows of `errors`, and one for each control: {name: {seed: Run}}."""
    rows = [
        {"seed": seed, "name": name, "members": 1, "images": len(run.labels), "error": run.error}
        for name, runs in controls.items()
        for seed, run in runs.items()
    ]
    return pd.concat([frame, pd.DataFrame(rows)]) if rows else frame


def matched(frame):
    """Most rows in which all networks have the same seeds; one that lacks any of them goes."""
    seeds = frame.groupby("name")["seed"].agg(frozenset)
    best = max(seeds, key=lambda some: len(some) * sum(some <= others for others in seeds))
    return frame[frame["seed"].isin(best) & frame["name"].map(seeds.map(best.issubset))]


def gains(frame, controls):
    """Each single network's gain over its teacher, and over the same step without one, in points.

    frame: `errors`; controls: {name: {seed: Run}}, of `lineage.raise_controls`. The columns of
    `summary`; gain (positive if better), gain_ci95, teacher (`word`); control_gain (over CONTROL),
    control_gain_ci95, control (`word`).
    """
    frame = with_controls(frame, controls).query("members == 1")
    table = summary(frame).set_index("name")
    for against, prefix in {"Teacher": "", CONTROL: "control_"}.items():
        pairs = paired(frame, against).set_index("name")
        table[f"{prefix}gain"], table[f"{prefix}gain_ci95"] = -pairs["difference"], pairs["ci95"]
        words = {name: word(entry) for name, entry in pairs.to_dict("index").items()}
        table[prefix.rstrip("_") or "teacher"] = [words.get(name, "") for name in table.index]
    return table.reset_index()


def beside_paper(frame, network, controls=None):
    """Table 1's row of a network beside ours: name, paper (%), measured (%), ci95, seeds, binomial.

    And verdict, which is about the claim, not about the value: that belongs to another dataset or
    size unless network and recipe are the paper's. controls: as for `gains`; they are single
    networks, so no ensemble is compared with them (`ledger.ledger` averages as many).
    """
    row, table = printed.row(network), summary(frame).rename(columns={"mean": "measured"})
    in_paper = [row and row.errors.get(COLUMNS.get(name, name)) for name in table["name"]]
    table.insert(1, "paper", in_paper)
    single = with_controls(frame, controls or {}).query("members == 1")
    control = {entry["name"]: word(entry) for entry in paired(single, CONTROL).to_dict("records")}
    lacking = "not compared" if control else "not run"
    claims = {"better": "beats its teacher", "worse": "worse than its teacher"}
    words = {}
    for entry in paired(frame).to_dict("records"):
        beside = control.get(entry["name"], lacking)
        words[entry["name"]] = f"{claims.get(word(entry), word(entry))} ({CONTROL}: {beside})"
    return table.assign(verdict=[words.get(name, "") for name in table["name"]])


def beside_table1(several, relative=False):
    """Table 1 and several `Lineages`, a column each: test error in %, ours as means over seeds.

    relative: differences from the column's teacher, in points; ours within each seed that has both.
    """
    paper = printed.frame(1).set_index("network")[list(printed.TABLE1[0].errors)].T
    paper = paper.rename(lambda name: f"paper {name.removeprefix('DenseNetBC-')}", axis=1)
    paper = paper.rename({paper: own for own, paper in COLUMNS.items()})
    columns = [paper - paper.loc["Teacher"] if relative else paper]
    for lineages in several:
        own = errors(lineages).pivot(index="name", columns="seed", values="error")
        means = (own - own.loc["Teacher"] if relative else own).mean(axis=1)
        columns.append(means.rename(lineages.settings.profile.name))
    return pd.concat(columns, axis=1)


def curves(lineages):
    """Every epoch of every run: seed, name, and the columns of `Run.metrics`."""
    runs = [(seed, run) for seed, chain in lineages.runs.items() for run in chain]
    frames = [run.metrics.assign(seed=seed, name=run.spec.name) for seed, run in runs]
    return pd.concat(frames, ignore_index=True)


def provenance(lineages):
    """Where numbers come from, in a line: network, data, seeds, hardware, precision, commit."""
    runs = [run for chain in lineages.runs.values() for run in chain]
    return sources_of(runs, lineages.network, lineages.runs)


def sources_of(runs, network=None, seeds=None):
    """The same for any finished runs; network: what to call them, by default their number."""
    network = network or f"{len({run.spec.network for run in runs})} networks"
    seeds = sorted({run.spec.seed for run in runs} if seeds is None else seeds)
    in_a_row = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    listed = f"{seeds[0]}-{seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))
    data = f"{runs[0].spec.dataset}, seed{'s' * (len(seeds) > 1)} {listed}"
    where = f"{everywhere(runs, 'hardware')}, {everywhere(runs, 'precision')}"
    return f"{network} on {data}; {where}; commit {everywhere(runs, 'commit')}"


def everywhere(runs, name):
    """All that the runs' environments say under a name such as "hardware"."""
    environments = [environment for run in runs for environment in run.environments]
    return ", ".join(sorted({str(environment[name]) for environment in environments}))
