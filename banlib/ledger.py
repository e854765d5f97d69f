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
    values = pd.Series(list(values), dtype=float)
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


# The ledger: every number the paper prints

PAPER_SETTING = "cifar100"  # the profile whose networks, images and recipe are the paper's
HALF = 0.5  # of the paper's share of errors, which ours has to reach
VERDICTS = ("reproduced", "partly", "not", "not run")
LEDGER = ["table", "network", "column", "paper", "measured", "ci95", "seeds", "profile", "hardware", "commit", "difference",
          "verdict", "trained", "reference", "paper_improvement", "improvement", "improvement_ci95", "paper_share", "share",
          "p_seeds", "p_images", "why"]  # fmt: skip
RULE = """\
Every cell but one is an improvement on a reference: students and ensembles
of table 1 on their own teacher, everything else on DenseNetBC-90-60 trained
on labels alone. Two questions are asked of a cell.

  value  In the paper's setting alone: does the paper's error lie where 95 %
         of further runs of ours would, given the spread of our seeds? One
         seed has no spread and does not answer.
  sign   Is the difference from the reference of the paper's sign, is it
         clear of zero (a paired 95 % interval over seeds; for one seed,
         McNemar's test over the test images), and is it, as a share of the
         reference's errors, at least half of the paper's?

  reproduced  value and sign, or value where there is no reference
  partly      one of the two
  not         neither, though it was run
  not run     no run, or only one of which neither can be asked: 90-60 on
              labels alone, outside the paper's setting

A smaller profile has other networks or images, so it is asked for the sign
alone, and can earn partly at the most."""


def ledger(evidence):
    """One row for each printed error, as a data frame.

    evidence: `tables.evidence`. Columns: table, network, column, paper (%), measured (%, mean over seeds), ci95
    (half-width), seeds (how many), profile, hardware, commit, difference (measured minus paper, points: like with like only in the
    paper's setting), verdict (by `RULE`), and what it rests on: trained (the network), reference, paper_improvement and
    improvement (on the reference, points, ours paired by seed), improvement_ci95, paper_share and share (improvement in % of
    the reference's errors), p_seeds (paired t-test), p_images (see `over_images`), why.
    """
    return pd.DataFrame([_line(found) for found in evidence], columns=LEDGER)


def by_seed(evidence):
    """One row for each cell and seed: table, network, trained, column, seed, error (%), reference (its error, %, NaN where
    there is none). evidence: as for `ledger`."""
    rows = []
    for found in evidence:
        cell = found.cell
        for seed, members in found.members.items():
            reference = _cell_error([found.references[seed]]) if seed in found.references else float("nan")
            rows.append({"table": cell.table, "network": cell.network, "trained": cell.trained, "column": cell.column,
                         "seed": seed, "error": _cell_error(members), "reference": reference})  # fmt: skip
    return pd.DataFrame(rows, columns=["table", "network", "trained", "column", "seed", "error", "reference"])


def sizes(evidence, measured="measured"):
    """Error against size, the paper's table 2 and ours: source, network, kind ("labels alone", "raised", "teacher"), params, error
    (%), ci95. evidence: of table 2; measured: what to call ours."""
    kinds, teacher = {"Baseline": "labels alone", "BAN": "raised"}, paper.row("DenseNetBC-90-60")
    rows = [("the paper, CIFAR-100", "", "teacher", teacher.params, teacher.errors["Baseline"], float("nan"))]
    rows += [("the paper, CIFAR-100", row.network, kinds[column], row.params, error, float("nan"))
             for row in paper.TABLE2 for column, error in row.errors.items() if error is not None]  # fmt: skip
    references = {seed: run for found in evidence for seed, run in found.references.items()}
    groups = [("", "teacher", list(references.values()), [[run] for run in references.values()])]
    groups += [(found.cell.network, kinds[found.cell.column], [runs[0] for runs in found.members.values()],
                list(found.members.values())) for found in evidence]  # fmt: skip
    rows += [(measured, network, kind, runs[0].results["params"], *interval(map(_cell_error, members)))
             for network, kind, runs, members in groups if runs]  # fmt: skip
    return pd.DataFrame(rows, columns=["source", "network", "kind", "params", "error", "ci95"])


def students(frame):
    """How table 2's students do against their teacher and against their own network on labels alone.

    frame: `by_seed` of table 2. One row for each network with a BAN: network, against ("teacher" or "labels alone"), paper_share and
    share (errors gone, in % of the other's), ci95 (half-width, of the share), points, seeds.
    """
    wide = frame.pivot_table(index=["network", "seed"], columns="column", values="error", sort=False)
    wide["teacher"] = frame.groupby(["network", "seed"])["reference"].first()
    rows = []
    for row in paper.TABLE2:
        if row.errors["BAN"] is None or row.network not in wide.index or "BAN" not in wide:
            continue
        own = wide.loc[row.network].dropna(subset=["BAN"])
        printed = {"teacher": paper.row("DenseNetBC-90-60").errors["Baseline"], "labels alone": row.errors["Baseline"]}
        for against, column in {"teacher": "teacher", "labels alone": "Baseline"}.items():
            if column not in own or printed[against] is None or not len(own[column].dropna()):
                continue
            mean, half = interval(own[column] - own["BAN"])
            scale = 100 / own[column].mean()
            rows.append({"network": row.network, "against": against, "points": mean, "share": scale * mean,
                         "paper_share": 100 * (1 - row.errors["BAN"] / printed[against]), "ci95": scale * half,
                         "seeds": len(own)})  # fmt: skip
    return pd.DataFrame(rows, columns=["network", "against", "points", "share", "paper_share", "ci95", "seeds"])


def _line(found):
    cell, runs = found.cell, [run for members in found.members.values() for run in members]
    errors = {seed: _cell_error(members) for seed, members in found.members.items()}
    measured, half = interval(list(errors.values())) if errors else (float("nan"),) * 2
    told = {
        "table": cell.table, "network": cell.network, "column": cell.column, "paper": cell.paper, "measured": measured,
        "ci95": half, "seeds": len(errors), "profile": cell.profile if runs else None,
        "hardware": _listed(runs, "hardware"), "commit": _listed(runs, "commit"), "difference": measured - cell.paper,
    }  # fmt: skip
    told |= {"verdict": "not run", "trained": cell.trained if runs else None, "reference": cell.reference}
    told |= {"paper_improvement": cell.paper_reference - cell.paper} if cell.reference else {}
    against = {seed: _cell_error([run]) for seed, run in found.references.items()}
    told |= _improvement(cell, {seed: errors[seed] for seed in against}, against)
    if against:
        told["p_images"] = over_images([(found.references[seed], found.members[seed]) for seed in against])
    return told | dict(zip(("verdict", "why"), _verdict(told, cell, list(errors.values()))))


def _cell_error(members):
    return ensemble.error(ensemble.average([run.probabilities for run in members]), members[0].labels)


def hardware(runs):
    """The machines that runs were finished on, in words."""
    return _listed(runs, "hardware")


def _listed(runs, what):
    return ", ".join(sorted({str(run.environments[-1][what]) for run in runs})) or None


def _improvement(cell, errors, against):
    gains = pd.Series(against, dtype=float) - pd.Series(errors, dtype=float)
    if not len(gains):
        return {"improvement": float("nan")}
    mean, half = interval(gains)
    return {
        "improvement": mean, "improvement_ci95": half, "share": 100 * mean / pd.Series(against).mean(),
        "paper_share": 100 * (cell.paper_reference - cell.paper) / cell.paper_reference,
        "p_seeds": stats.ttest_1samp(gains, 0).pvalue if gains.nunique() > 1 else float("nan"),
    }  # fmt: skip


def over_images(pairs):
    """McNemar's exact test over test images: do two models err on equally many images that the other gets right?

    pairs: for each seed (Run, [Run, ...]): a network and another, or the members of an ensemble. Returns p. The seeds share their test images, so their p-values
    hang together in an unknown way; for n of them the k-th smallest, times n / k, is a p-value all the same (Rüger 1978), and k is
    the middle one here.
    """
    found = []
    for one, others in pairs:
        right = [mean.argmax(1) == one.labels for mean in (one.probabilities, ensemble.average([r.probabilities for r in others]))]
        only_one, only_other = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        apart = only_one + only_other
        found.append(stats.binomtest(only_one, apart).pvalue if apart else 1.0)
    middle = (len(found) + 1) // 2
    return min(1.0, sorted(found)[middle - 1] * len(found) / middle)


def _verdict(told, cell, errors):
    """(verdict, why) of a line, by RULE."""
    if not errors:
        return "not run", "no run"
    full = cell.profile == PAPER_SETTING
    value, value_why = _value(cell.paper, errors) if full else (None, "")
    sign, sign_why = _sign(told) if cell.reference else (None, "" if full else "a value alone, in a smaller setting")
    why = "; ".join(filter(None, (value_why, sign_why)))
    if value is None and sign is None:
        return ("not" if full else "not run"), why
    held = [answer for answer in (value, sign) if answer is not None]
    if full and all(held) and value is not None:
        return "reproduced", why
    return "partly" if any(held) else "not", why


def _value(printed, errors):
    """Does the paper's run look like one more of ours? None for one seed."""
    if len(errors) < 2:
        return None, "one seed: no spread to compare the value with"
    values = pd.Series(errors)
    reach = stats.t.ppf(0.975, len(values) - 1) * values.std() * (1 + 1 / len(values)) ** 0.5
    held = abs(printed - values.mean()) <= reach
    return bool(held), f"the paper's value is {'within' if held else 'outside'} {values.mean():.2f} ± {reach:.2f} %"


def _sign(told):
    """Is the difference from the reference the paper's, in sign and share? None where a seed has no reference."""
    gain, half, share, paper_gain = (told.get(name) for name in ("improvement", "improvement_ci95", "share", "paper_improvement"))
    if gain != gain:
        return None, "no run of the reference"
    several = half == half
    clear = abs(gain) > half if several else told["p_images"] < 0.05
    test = f"{gain:+.2f} ± {half:.2f} points over seeds" if several else f"{gain:+.2f} points, McNemar p {told['p_images']:.2g}"
    if not clear:
        return False, f"undecided ({test})"
    if gain * paper_gain <= 0:
        return False, f"the other sign ({test})"
    if abs(share) < HALF * abs(told["paper_share"]):
        return False, f"the paper's sign, less than half its share ({test})"
    return True, f"the paper's sign ({test})"


def counts(table):
    """How many cells of a `ledger` have each verdict: a dict in the order of VERDICTS."""
    return {name: int((table["verdict"] == name).sum()) for name in VERDICTS}


def grid(table, value="measured"):
    """A table of the paper's shape from a `ledger` of one table: a row per network, a column per printed error."""
    wide = table.pivot(index="network", columns="column", values=value)
    return wide.reindex(index=table["network"].unique(), columns=table["column"].unique())


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
    """Where the numbers of lineages come from, in a line: network, data, seeds, hardware, precision, commit."""
    return sources_of([run for chain in lineages.runs.values() for run in chain], lineages.network, lineages.runs)


def sources_of(runs, network=None, seeds=None):
    """The same for any finished runs; network: what to call them, by default how many networks they are."""
    network = network or f"{len({run.spec.network for run in runs})} networks"
    environments = [environment for run in runs for environment in run.environments]
    told = lambda name: ", ".join(sorted({str(environment[name]) for environment in environments}))  # noqa: E731
    dataset, seeds = runs[0].spec.dataset, sorted({run.spec.seed for run in runs} if seeds is None else seeds)
    listed = f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)) else None
    return (f"{network} on {dataset}, seed{'s' if len(seeds) > 1 else ''} {listed or ', '.join(map(str, seeds))}; {told('hardware')}, "
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
