"""The ledger: every error that the paper's tables print, ours beside it, and a verdict by rule."""

import itertools
import math

import pandas as pd
from scipy import stats

from banlib.names import MATCHED_TEACHER as TEACHER
from banlib.paper import numbers, printed
from banlib.paper import statistics as st
from banlib.paper.numbers import number

PAPER_SETTING = "cifar100"  # the profile whose networks, images and recipe are the paper's
PAPER_IMAGES = 10_000  # in its test set
LEAST_SEEDS, MOST_REACH = 3, 1.0  # the reach in points
LEAST_SHARE, MOST_SHARE = 0.5, 2.0  # times the paper's share of errors
SMALL = "too small to tell"
UNJUDGED = "not asked", "not run"
VERDICTS = ("reproduced", "partly", "not", SMALL, *UNJUDGED)


def noise(one, other):
    """How far apart, in points, two single runs with these errors in % lie by chance, at 95 %."""
    return math.hypot(st.binomial(one, PAPER_IMAGES), st.binomial(other, PAPER_IMAGES))


RULE = f"""\
Every number but one is compared with a reference: students and ensembles of
table 1 with their own teacher, everything else with DenseNetBC-90-60, trained
on labels alone. Each number is asked two questions.

**Is the value the paper's?** This is asked in the paper's setting alone. The
answer is yes if the paper's error lies where 95 % of further runs of ours
would, judging by the spread of our seeds. That takes {LEAST_SEEDS} seeds or more, and
a reach below {MOST_REACH:g} point to either side.

**Is the difference the paper's?** It has the paper's sign. It is clear of
zero: by a paired 95 % interval over seeds, which must have a width, or, for a
single seed, by McNemar's test over the test images. As a share of the
reference's errors it is at least {LEAST_SHARE:g} times and at most {MOST_SHARE:g} times the
paper's; a share far above that is another effect, not more of the same. And
where the paper's student or ensemble improves on its reference, ours must also
improve, clear of zero over seeds, on `{st.CONTROL}`: the same network, or as many
of them together, trained without a teacher on twice the label loss. Where such
runs are too few for an average of as many, that is not shown. A number without
any such run is judged without them, and says so.

- `reproduced`: yes to both, or to the first where there is no reference.
- `partly`: yes to one of the two.
- `not`: yes to neither, though it was run; the answer may only be undecided.
- `{SMALL}`: the paper's difference lies within the noise of two
  single runs, about {noise(18, 18):.1f} points for {PAPER_IMAGES:,} test images. The second
  question is not asked, and the first was not answered.
- `not asked`: run, but neither question can be asked of it.
- `not run`: no run.

A smaller profile has other networks or images. It is asked only the second
question, and can earn `partly` at the most. An interval over seeds holds for
one set of test images; `binomial` is what other images would add to the error
of a single run, and more than they add to a mean over seeds."""


def ledger(evidence):
    """One row for each printed error, as a data frame, of `tables.evidence`.

    Errors in %, differences and gains in points, shares in % of the reference's errors. ci95 and
    others of that name are half-widths over seeds; difference is measured minus paper, like with
    like in the paper's setting alone; trained: the network; p_seeds: of the paired t-test, p_images
    of `over_images`; binomial: of one run with the error measured; control_gain: over labels x2;
    why: of the verdict.
    """
    return pd.DataFrame([_line(one) for one in evidence])


def _line(one):
    cell, runs = one.cell, [run for members in one.members.values() for run in members]
    errors = {seed: st.error_of(members) for seed, members in one.members.items()}
    measured, half = st.interval(errors.values())
    line = {name: getattr(cell, name) for name in ("table", "network", "column", "paper")}
    line |= {"measured": measured, "ci95": half, "seeds": len(errors)}
    line |= {"profile": cell.profile if runs else None}
    line |= {name: st.everywhere(runs, name) or None for name in ("hardware", "commit")}
    line |= {"difference": measured - cell.paper, "verdict": "not run"}
    line |= {"trained": cell.trained if runs else None, "reference": cell.reference}
    line |= _improvement(one, errors)
    line["binomial"] = st.binomial(measured, len(runs[0].labels)) if runs else math.nan
    line["control_gain"], line["control_gain_ci95"] = _control_gain(one, errors)
    line["verdict"], line["why"] = _verdict(line, one, list(errors.values()))
    return line


def _improvement(one, errors):
    names = "paper_improvement", "improvement", "improvement_ci95", "paper_share", "share"
    line = dict.fromkeys((*names, "p_seeds", "p_images"), math.nan)
    if one.cell.reference:
        line["paper_improvement"] = one.cell.paper_reference - one.cell.paper
        line["paper_share"] = 100 * line["paper_improvement"] / one.cell.paper_reference
    if one.references:
        references = pd.Series({seed: run.error for seed, run in one.references.items()})
        gains = st.difference(pd.Series(errors) - references)
        line |= {"improvement": -gains["difference"], "improvement_ci95": gains["ci95"]}
        line |= {"share": 100 * line["improvement"] / references.mean(), "p_seeds": gains["p"]}
        pairs = [([run], one.members[seed]) for seed, run in one.references.items()]
        line["p_images"] = over_images(pairs)
    return line


def _control_gain(one, errors):
    """(gain over labels x2, its half-width): an ensemble's over all sets of as many of them.

    Sets share members, so the interval is the jackknife's, which leaves out one seed at a time; for
    single networks that is the paired t interval.
    """
    size = len(one.cell.members)
    # a light record has nothing to average
    controls = {seed: run for seed, run in one.controls.items() if size == 1 or not run.light}
    if size > len(controls):
        return math.nan, math.nan
    sets = itertools.combinations(controls, size)
    sets = {seeds: st.error_of([controls[seed] for seed in seeds]) for seeds in sets}

    def gain(without=None):
        theirs = [error for seeds, error in sets.items() if without not in seeds]
        ours = [errors[seed] for seed in controls if seed != without]
        return sum(theirs) / len(theirs) - sum(ours) / len(ours)

    count = len(controls)
    if count == size:
        return gain(), math.nan
    parts = [count * gain() - (count - 1) * gain(without=seed) for seed in controls]
    return gain(), st.interval(parts)[1]


def over_images(pairs):
    """p of McNemar's exact test: do two models err on equally many images the other gets right?

    pairs: for each seed, two lists of Run, the members of the models. Seeds share their test
    images, so their p-values hang together in an unknown way; of n the k-th smallest, times n / k,
    is a p-value all the same (Rüger 1978). k is the middle one here.
    """
    values = []
    for pair in pairs:
        one, other = (st.predicted(members) == members[0].labels for members in pair)
        only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
        apart = only_one + only_other
        values.append(stats.binomtest(only_one, apart).pvalue if apart else 1.0)
    middle = (len(values) + 1) // 2
    return min(1.0, sorted(values)[middle - 1] * len(values) / middle)


def _verdict(line, one, errors):
    """(verdict, why) of a line, by RULE."""
    if not errors:
        return "not run", "no run"
    cell, value, value_why, sign = one.cell, None, "", None
    sign_why = "it has no reference, and its value belongs to the paper's setting"
    if cell.profile == PAPER_SETTING:
        (value, value_why), sign_why = _value(cell.paper, errors), ""
    if cell.reference:
        sign, sign_why = _sign(line, one)
    lacks = cell.controls and not one.controls
    control_why = f"not compared with {st.CONTROL}" if lacks else ""
    why = "; ".join(filter(None, (value_why, sign_why, control_why)))
    answers = [answer for answer in (value, sign) if answer is not None]
    if not answers:
        return (SMALL if SMALL in why else "not asked"), why
    if value and (sign or not cell.reference):
        return "reproduced", why
    return ("partly" if any(answers) else "not"), why


def _value(printed_error, errors):
    """Does the paper's run look like one more of ours? None if our seeds cannot say yes."""
    if len(errors) < LEAST_SEEDS:
        return None, f"fewer than {LEAST_SEEDS} seeds to compare the value with"
    mean, half = st.interval(errors)
    reach = half * (len(errors) + 1) ** 0.5  # of one more run, where half is that of the mean
    inside = abs(printed_error - mean) <= reach
    where = f"{'within' if inside else 'outside'} {numbers.interval(mean, reach)} %"
    why = f"the paper's value is {where}"
    if not reach or (inside and reach >= MOST_REACH):
        return None, f"{why}, which does not tell"
    return bool(inside), why


def _sign(line, one):
    """Is the difference from the reference the paper's? None where that is not judged."""
    cell, gain, half = one.cell, line["improvement"], line["improvement_ci95"]
    if gain != gain:
        return None, "no run of the reference"
    paper_gain = line["paper_improvement"]
    if abs(paper_gain) <= noise(cell.paper, cell.paper_reference):
        return None, f"the paper's difference of {number(paper_gain, sign=True)} points is {SMALL}"
    ratio, several = line["share"] / line["paper_share"], half == half
    test = "over seeds" if several else f"McNemar p {numbers.p_value(line['p_images'])}"
    test = f"({numbers.interval(gain, half, sign=True)} points, {test})"
    if not (st.clear(gain, half) if several else line["p_images"] < 0.05):
        return False, f"undecided {test}"
    if ratio < 0:
        return False, f"the other sign {test}"
    if not LEAST_SHARE <= ratio <= MOST_SHARE:
        effect = "another effect" if ratio > MOST_SHARE else "the paper's sign"
        return False, f"{effect}, {number(ratio, 1)} times the paper's share {test}"
    gain, half = line["control_gain"], line["control_gain_ci95"]
    if not one.controls or paper_gain < 0:
        return True, f"the paper's sign {test}"
    if gain != gain:
        return False, f"the paper's sign {test}, too few {st.CONTROL} to average as many"
    over = f"over {st.CONTROL} {numbers.interval(gain, half, sign=True)}"
    over += "" if half == half else ", too few seeds to tell"
    return gain > 0 and st.clear(gain, half), f"the paper's sign {test}, {over}"


def counts(table):
    """How many cells of a `ledger` have each verdict: a dict in the order of VERDICTS."""
    return {name: int((table["verdict"] == name).sum()) for name in VERDICTS}


def grid(table, value="measured"):
    """One table of a `ledger` in the paper's shape: a row per network, a column per error."""
    wide = table.pivot(index="network", columns="column", values=value)
    return wide.reindex(index=table["network"].unique(), columns=table["column"].unique())


def by_seed(evidence):
    """One row for each cell and seed: table, network, trained, column, seed, error, reference.

    error, and reference, which is the reference's: in %, NaN where there is none.
    """
    names, rows = ["table", "network", "trained", "column"], []
    for one in evidence:
        for seed, members in one.members.items():
            reference = one.references[seed].error if seed in one.references else math.nan
            row = [getattr(one.cell, name) for name in names]
            rows.append([*row, seed, st.error_of(members), reference])
    return pd.DataFrame(rows, columns=[*names, "seed", "error", "reference"])


def sizes(evidence, measured="measured"):
    """Table 2's error against size, in the paper and here, a row for each network and kind.

    source ("the paper, CIFAR-100", or `measured`), network, kind ("labels alone", "taught" or
    "teacher"), params, error (%), ci95.
    """
    kinds, teacher = {"Baseline": "labels alone", "BAN": "taught"}, printed.row(TEACHER)
    rows = [("", "teacher", teacher.params, teacher.errors["Baseline"])]
    for row in printed.TABLE2:
        rows += [(row.network, kinds[k], row.params, error) for k, error in row.errors.items()]
    rows = [("the paper, CIFAR-100", *row, math.nan) for row in rows if row[-1] is not None]
    references = {seed: [run] for one in evidence for seed, run in one.references.items()}
    groups = [("", "teacher", references)]
    groups += [(one.cell.network, kinds[one.cell.column], one.members) for one in evidence]
    for network, kind, members in groups:
        for first in list(members.values())[:1]:
            error = st.interval(map(st.error_of, members.values()))
            rows.append((measured, network, kind, first[0].results["params"], *error))
    return pd.DataFrame(rows, columns=["source", "network", "kind", "params", "error", "ci95"])


def students(frame):
    """Table 2's students against their teacher and against their own network on labels alone.

    frame: `by_seed`. Columns: network, against ("teacher" or "labels alone"), points, share and
    paper_share (errors gone, in % of the other's), ci95 (half-width, of the share), seeds.
    """
    rows = []
    for row in printed.TABLE2:
        own = frame[frame["network"] == row.network].pivot(index="seed", columns="column")
        theirs = {"teacher": (("reference", "BAN"), printed.row(TEACHER).errors["Baseline"])}
        theirs["labels alone"] = ("error", "Baseline"), row.errors["Baseline"]
        for against, (column, paper) in theirs.items():
            if ("error", "BAN") not in own or column not in own or paper is None:
                continue
            points, half = st.interval((own[column] - own["error", "BAN"]).dropna())
            scale, paper_share = 100 / own[column].mean(), 100 * (1 - row.errors["BAN"] / paper)
            shares = (points, scale * points, paper_share, scale * half)
            rows.append((row.network, against, *shares, own["error", "BAN"].count()))
    columns = ["network", "against", "points", "share", "paper_share", "ci95", "seeds"]
    return pd.DataFrame(rows, columns=columns)
