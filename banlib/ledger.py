"""Paper beside measured: lineages in, data frames out. Errors in percent, intervals at 95 % over seeds."""

import itertools

import pandas as pd
from scipy import stats

from banlib import ensemble, paper
from banlib.recipe import PROFILES, generation_name

TABLE1_ORDER = ("Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3")
COLUMNS = {"Teacher": "Baseline"}  # what the paper's table 1 calls our names; the others are the same


def errors(lineages):
    """One row per seed and model, single networks and ensembles of generations.

    Columns: seed, name, generation (the youngest member), members, error (%), nll (nats), ece (%).
    """
    labels, rows = lineages.labels(), []
    gens = max(map(len, lineages.runs.values())) - 1
    models = {generation_name(generation): (generation,) for generation in range(gens + 1)} | ensemble.members(gens)
    for seed, runs in lineages.runs.items():
        for name, chosen in models.items():
            if max(chosen) >= len(runs):
                continue  # a shorter lineage among longer ones: no model goes by a name that means another one there
            probabilities = ensemble.average([runs[generation].probabilities for generation in chosen])
            rows.append(
                {
                    "seed": seed,
                    "name": name,
                    "generation": max(chosen),
                    "members": len(chosen),
                    "error": ensemble.error(probabilities, labels),
                    "nll": ensemble.nll(probabilities, labels),
                    "ece": ensemble.calibration_error(probabilities, labels),
                }
            )
    return pd.DataFrame(rows)


def subsets(lineages):
    """Every ensemble that a lineage allows: seed, members (names joined by +), size, error (%), for each subset."""
    labels, rows = lineages.labels(), []
    for seed, runs in lineages.runs.items():
        for size in range(1, len(runs) + 1):
            for chosen in itertools.combinations(runs, size):
                mean = ensemble.average([run.probabilities for run in chosen])
                names = " + ".join(run.spec.name for run in chosen)
                rows.append({"seed": seed, "members": names, "size": size, "error": ensemble.error(mean, labels)})
    return pd.DataFrame(rows)


def teachers_together(lineages):
    """Ensembles of unrelated teachers, as large as a lineage: seed (of the first), size, error (%).

    Teacher s is averaged with those of the seeds after it, in a ring, so each seed begins one ensemble of each size.
    """
    labels, rows = lineages.labels(), []
    ring = [(seed, runs[0].probabilities) for seed, runs in lineages.runs.items()]
    largest = min(max(map(len, lineages.runs.values())), len(ring))
    for start, (seed, _) in enumerate(ring):
        for size in range(1, largest + 1):
            chosen = [ring[(start + step) % len(ring)][1] for step in range(size)]
            rows.append({"seed": seed, "size": size, "error": ensemble.error(ensemble.average(chosen), labels)})
    return pd.DataFrame(rows)


def interval(values):
    """(mean, half-width of the 95 % t interval of the mean); the half-width of fewer than two values is NaN."""
    values = pd.Series(values, dtype=float)
    if len(values) < 2:
        return values.mean(), float("nan")
    return values.mean(), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def summary(frame, column="error"):
    """Mean over seeds of a column of `errors`, in its order: name, mean, ci95 (half-width), seeds."""
    rows = []
    for name, group in frame.groupby("name", sort=False):
        mean, half = interval(group[column])
        rows.append({"name": name, "mean": mean, "ci95": half, "seeds": len(group)})
    return pd.DataFrame(rows)


def paired(frame, against="Teacher", column="error"):
    """Each model minus `against` within the same seed: name, difference, ci95, p (paired t-test), wins, seeds.

    Negative differences are improvements. Pairing removes what a lucky or unlucky seed gives both.
    """
    table = frame.pivot(index="seed", columns="name", values=column)
    rows = []
    for name in frame["name"].unique():
        if name == against:
            continue
        difference = (table[name] - table[against]).dropna()
        mean, half = interval(difference)
        constant = len(difference) < 2 or difference.nunique() < 2
        p = float("nan") if constant else stats.ttest_1samp(difference, 0).pvalue
        rows.append(
            {"name": name, "difference": mean, "ci95": half, "p": p, "wins": int((difference < 0).sum()),
             "seeds": len(difference)}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "difference", "ci95", "p", "wins", "seeds"])


def beside_paper(frame, network):
    """Table 1's row of a network beside our means: name, paper (%), measured (%), ci95, seeds, verdict.

    The verdict says whether the model beats its teacher here, with an interval over paired seeds that is clear of zero.
    It is about the claim, not about the value, which belongs to another dataset or size unless the network and recipe
    are the paper's.
    """
    row = paper.row(network)
    printed = {} if row is None else row.errors
    table = summary(frame)
    table.insert(1, "paper", [printed.get(COLUMNS.get(name, name)) for name in table["name"]])
    verdicts = {entry["name"]: verdict(entry) for entry in paired(frame).to_dict("records")}
    table["verdict"] = [verdicts.get(name, "") for name in table["name"]]
    return table.rename(columns={"mean": "measured"})


def beside_table1(several, relative=False):
    """Table 1 of the paper and lineages of ours, a column each: test error (%) of teacher, generations and ensembles.

    several: `Lineages`; their columns are means over seeds. relative: differences from the column's teacher, in points.
    """
    columns = {}
    for row in paper.TABLE1:
        values = pd.Series({name: row.errors[COLUMNS.get(name, name)] for name in TABLE1_ORDER}, dtype=float)
        columns[f"paper {row.network.removeprefix('DenseNetBC-')}"] = values
    for lineages in several:
        columns[lineages.settings.profile.name] = summary(errors(lineages)).set_index("name")["mean"]
    table = pd.DataFrame(columns)
    later = [name for name in table.index if name not in TABLE1_ORDER]
    table = table.reindex([*TABLE1_ORDER, *later])
    return table - table.loc["Teacher"] if relative else table


def verdict(entry):
    if entry["seeds"] < 2:
        return "below its teacher, one seed" if entry["difference"] < 0 else "not below its teacher, one seed"
    if entry["difference"] + entry["ci95"] < 0:
        return "beats its teacher"
    return "worse than its teacher" if entry["difference"] - entry["ci95"] > 0 else "undecided"


def curves(lineages):
    """Every epoch of every run: seed, name, and the columns of `Run.metrics`."""
    return pd.concat(
        [
            run.metrics.assign(seed=seed, name=run.spec.name)
            for seed, run in itertools.chain.from_iterable(
                ((seed, run) for run in runs) for seed, runs in lineages.runs.items()
            )
        ],
        ignore_index=True,
    )


def provenance(lineages):
    """Where the numbers come from, in a line: hardware, network, data, seeds, commit."""
    runs = [run for chain in lineages.runs.values() for run in chain]
    environments = [environment for run in runs for environment in run.environments]
    told = lambda name: ", ".join(sorted({str(environment[name]) for environment in environments}))  # noqa: E731
    dataset, seeds = runs[0].spec.dataset, sorted(lineages.runs)
    listed = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)) else None
    return (f"{lineages.network} on {dataset}, seed{'s' if len(seeds) > 1 else ''} {listed or ', '.join(map(str, seeds))}; {told('hardware')}, "
            f"{told('precision')}; commit {told('commit')}")  # fmt: skip


def time_box(*several):
    """What a chapter's time box tells: run_minutes (of one process), run_hardware, and paper_pflop, the arithmetic of
    one generation of the paper's smallest DenseNet over its 200 epochs of 50,000 images (3 passes of 2 operations)."""
    runs = list({run.run_id: run for lineages in several for chain in lineages.runs.values() for run in chain}.values())
    epochs, images = PROFILES["cifar100"].recipe.epochs, 50_000
    return {
        "run_minutes": sum(run.results["seconds"] for run in runs) / 60,
        "run_hardware": runs[0].environments[-1]["hardware"],
        "paper_pflop": 6 * paper.TABLE1[0].forward_gmacs * epochs * images / 1e6,
    }
