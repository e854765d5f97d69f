"""The ledger's rule, its counts and its shares, on runs that err as a test says."""

import itertools
import math
import types

import pytest
import torch
from scipy import stats

from banlib.paper import ledger
from banlib.paper import printed as paper
from banlib.paper.statistics import interval


def run(wrong, images=200):
    """A network that errs on so many percent of the test images: the first ones, so errors are nested."""
    right = torch.arange(images) >= round(wrong * images / 100)
    return types.SimpleNamespace(
        probabilities=torch.stack([right, ~right], 1).half(),
        labels=torch.zeros(images, dtype=int),
        predicted=(~right).long(),
        error=100 * (~right).double().mean().item(),
        light=False,
        results={"params": 7},
        environments=[{"hardware": "abacus", "commit": "c0ffee"}],
    )


def found(ours, references=None, controls=None, profile="cifar100", printed=16.0, reference=18.0, column="BAN-1", members=1):
    """Evidence of networks that err as said, by seed. controls: None for a network that nobody taught."""
    cell = types.SimpleNamespace(
        table=1, network="DenseNetBC-90-60", column=column, paper=printed, profile=profile, trained="a network",
        reference="its own teacher" if reference else "", paper_reference=reference, members=tuple(range(members)),
        controls={} if controls is None else {"planned": "specs"},
    )  # fmt: skip
    by_seed = [dict(enumerate(map(run, errors or ()))) for errors in (references, controls)]
    return types.SimpleNamespace(
        cell=cell, members={seed: [run(wrong)] * members for seed, wrong in enumerate(ours)},
        references=by_seed[0], controls=by_seed[1])  # fmt: skip


def line(*args, **changes):
    [row] = ledger.ledger([found(*args, **changes)]).to_dict("records")
    return row


def verdict(*args, **changes):
    row = line(*args, **changes)
    return row["verdict"], row["why"]


OURS, TEACHERS = [16, 16.5, 15.5, 16], [18, 19, 17.5, 18]  # gains 2, 2.5, 2, 2: mean 2.125, half-width 0.4


@pytest.mark.parametrize(
    "ours, changes, expected, reason",
    [
        # Mean 16, spread 0.4, 4 seeds: one more run lies within 3.18 * 0.41 * sqrt(5 / 4) = 1.45, more than a point.
        (OURS, {}, "partly", "the paper's sign"),
        (OURS, {}, "partly", "16.00 ± 1.45 %, which does not tell"),
        # 16 seeds, spread 0.26: 2.13 * 0.26 * sqrt(17 / 16) = 0.57.
        (8 * [16, 16.5], {}, "reproduced", "within 16.25"),
        (8 * [16, 16.5], {"printed": 13.0, "reference": 15.0}, "partly", "outside 16.25"),  # sign alone
        (8 * [16, 16.5], {"printed": 20.0, "reference": 22.0}, "partly", "outside"),
        (8 * [16, 16.5], {"profile": "digits"}, "partly", "the paper's sign"),  # at the most
        (8 * [16, 16.5], {"printed": 20.0}, "not", "the other sign"),  # neither value nor sign
        (8 * [16, 16.5], {"printed": 20.0, "profile": "digits"}, "not", "the other sign"),
        (8 * [16, 16.5], {"reference": None}, "reproduced", "within"),  # a baseline, by its value
        (8 * [16, 16.5], {"reference": None, "printed": 20.0}, "not", "outside"),
        (8 * [16, 16.5], {"reference": None, "profile": "digits"}, "not asked", "it has no reference"),
        ([16, 16, 16], {"reference": None}, "not asked", "16.00 ± 0.00 %, which does not tell"),  # no width
        # Better in one seed, worse in another; and better by the same in every seed, an interval of no width.
        ([16, 20.5, 15.5, 20], {"profile": "digits"}, "not", "undecided"),
        ([16, 17, 15.5, 16], {"profile": "digits"}, "not", "undecided (+2.00 ± 0.00 points, over seeds)"),
        # 0.6 points of 18 in the mean, but 6 of 18 in the paper; then 2.1 of 18, but 1.1 of 18 in the paper.
        ([17.5, 18, 17, 17.5], {"printed": 12.0, "profile": "digits"}, "not", "the paper's sign, 0.1 times"),
        ([16, 16.5, 15.5, 16], {"printed": 16.9, "profile": "digits"}, "partly", "the paper's sign"),
        ([15, 15.5, 14.5, 15], {"printed": 16.9, "profile": "digits"}, "not", "another effect, 2.8 times"),
        # A difference that two single runs may have without a cause: 1 point of 18 on 10,000 images.
        (OURS, {"printed": 17.0, "profile": "digits"}, "too small to tell", "+1.00 points is too small to tell"),
        (OURS, {"printed": 18.9, "profile": "digits"}, "too small to tell", "\N{MINUS SIGN}0.90 points is too small"),
        (8 * [16, 16.5], {"printed": 16.5, "reference": 17.0}, "partly", "within 16.25"),  # the value alone
        (8 * [16, 16.5], {"printed": 19.5, "reference": 20.0}, "not", "outside"),
        ([16], {"printed": 17.0}, "too small to tell", "fewer than 3 seeds"),
    ],
)
def test_the_verdict_follows_the_rule(ours, changes, expected, reason):
    references = None if changes.get("reference", 18.0) is None else (4 * TEACHERS)[: len(ours)]
    found_verdict, why = verdict(ours, references, **changes)
    assert found_verdict == expected and reason in why, why


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_value_needs_three_seeds(seeds):
    found_verdict, why = verdict([16, 16.5][:seeds], reference=None)
    assert found_verdict == "not asked" and "fewer than 3 seeds" in why


def test_the_noise_of_two_single_runs_is_the_binomials():
    """18.25 and 17.61 % of 10,000 images: variances of 0.1492 and 0.1451 over 10,000, and 1.96 standard deviations."""
    assert ledger.noise(18.25, 17.61) == pytest.approx(1.063, abs=1e-3)
    columns = ("BAN-1", "BAN-2", "BAN-3")
    pairs = [(row.errors["Baseline"], row.errors[name]) for row in paper.TABLE1 for name in columns if row.errors[name]]
    small = [abs(one - other) <= ledger.noise(one, other) for one, other in pairs]
    assert (sum(small), len(small)) == (6, 11), "half of the single students of table 1 cannot be told from chance"


@pytest.mark.parametrize(
    "controls, expected, reason",
    [
        ([17.5, 18, 17.5, 17.5], "partly", "over labels x2 +1.63 ± "),
        ([16, 16.5, 16, 15.5], "not", "over labels x2 +0.00 ± "),  # what labels x2 does as well
        ([14, 15, 14, 14], "not", "over labels x2 \N{MINUS SIGN}1.75 ± "),
        ([17, 17.5, 16.5, 17], "not", "over labels x2 +1.00 ± 0.00"),  # no width
        ([15], "not", "over labels x2 \N{MINUS SIGN}1.00, too few seeds"),
        ([], "partly", "not compared with labels x2"),
        (None, "partly", "the paper's sign"),  # a network that nobody taught
    ],
)
def test_an_improvement_is_judged_against_labels_x2_as_well(controls, expected, reason):
    found_verdict, why = verdict(OURS, TEACHERS, controls, profile="digits")
    assert found_verdict == expected and reason in why
    assert ("labels x2" in why) == (controls is not None)


def test_a_cell_without_its_control_says_so_whatever_its_verdict():
    for changes in ({"printed": 17.0}, {"printed": 20.0}, {"printed": 12.0}):
        found_verdict, why = verdict(OURS, TEACHERS, [], profile="digits", **changes)
        assert found_verdict in ("too small to tell", "not") and why.endswith("not compared with labels x2")


def test_what_is_worse_in_the_paper_needs_to_beat_no_control():
    found_verdict, why = verdict([20, 20.5, 19.5, 20], TEACHERS, [14, 14, 14, 14], printed=20.0, profile="digits")
    assert found_verdict == "partly" and "labels x2" not in why


def test_a_single_networks_gain_over_the_control_is_the_paired_interval():
    row = line(OURS, TEACHERS, [17.5, 18, 17.5, 17.5])
    assert (row["control_gain"], row["control_gain_ci95"]) == pytest.approx(interval([1.5, 1.5, 2, 1.5]))
    missing = line(OURS, TEACHERS, [17.5, 18])
    assert (missing["control_gain"], missing["control_gain_ci95"]) == pytest.approx((1.5, 0))  # over seeds that have one


def test_an_ensemble_is_compared_with_as_many_controls_together():
    """Errors of these networks are nested, and all are equally sure: two together err where both do, a tie is right."""
    controls, ours = [18, 17, 20, 16], [12, 13, 11, 12]
    row = line(ours, TEACHERS, controls, members=2, column="Ens*2")
    pairs = {pair: min(pair) for pair in itertools.combinations(controls, 2)}

    def gain(controls, ours):
        pairs_ = [pairs[pair] for pair in itertools.combinations(controls, 2)]
        return sum(pairs_) / len(pairs_) - sum(ours) / len(ours)

    assert row["control_gain"] == pytest.approx(gain(controls, ours))
    # The jackknife by its textbook formula: sqrt((n - 1) / n * sum of squared deviations), times t of n - 1.
    without = [gain(controls[:k] + controls[k + 1 :], ours[:k] + ours[k + 1 :]) for k in range(4)]
    mean = sum(without) / 4
    error = math.sqrt(3 / 4 * sum((value - mean) ** 2 for value in without))
    assert row["control_gain_ci95"] == pytest.approx(stats.t.ppf(0.975, 3) * error)


def test_light_controls_have_nothing_to_average():
    evidence = found([12, 13, 11], [18, 18.5, 18], [18, 17, 20], members=2, column="Ens*2", profile="digits", printed=13.0)
    for control in evidence.controls.values():
        control.light, control.probabilities = True, None
    [row] = ledger.ledger([evidence]).to_dict("records")
    assert row["verdict"] == "not" and "the paper's sign" in row["why"] and "too few labels x2 to average" in row["why"]
    evidence.controls |= {1: run(17), 2: run(20)}
    [row] = ledger.ledger([evidence]).to_dict("records")
    assert row["control_gain"] == row["control_gain"], "of the others an average can be made"
    one = found([12], [16], [16], members=2, column="Ens*2", profile="digits", printed=13.0)
    [row] = ledger.ledger([one]).to_dict("records")
    assert row["verdict"] == "not" and "too few labels x2 to average" in row["why"], "one control for two members"
    [row] = ledger.ledger([found([12], [16], [], members=2, column="Ens*2", profile="digits", printed=13.0)]).to_dict("records")
    assert row["verdict"] == "partly" and row["why"].endswith("not compared with labels x2")


def test_one_seed_is_judged_by_its_images_and_reproduces_nothing():
    # 8 of 200 images are right now that were wrong, none the other way: p = 2 / 2**8. The share is twice the paper's.
    found_verdict, why = verdict([14], [18])
    assert found_verdict == "partly" and "fewer than 3 seeds" in why and "McNemar p 0.008" in why
    assert verdict([16], [18])[0] == "not", "4 of 200 images, p = 0.125"


def test_a_cell_without_runs_is_not_run():
    row = line([])
    assert (row["verdict"], row["seeds"], row["profile"]) == ("not run", 0, None) and math.isnan(row["measured"])


def test_a_line_holds_what_the_verdict_rests_on():
    row = line([15, 17], [18, 18])
    assert list(row) == [
        "table", "network", "column", "paper", "measured", "ci95", "seeds", "profile", "hardware", "commit",
        "difference", "verdict", "trained", "reference", "paper_improvement", "improvement", "improvement_ci95",
        "paper_share", "share", "p_seeds", "p_images", "binomial", "control_gain", "control_gain_ci95",
        "why"]  # fmt: skip
    assert list(line([], reference=None)) == list(row), "whatever is known of a cell"
    assert row["measured"] == 16 and row["difference"] == 0 and row["seeds"] == 2
    assert row["improvement"] == 2 and row["paper_improvement"] == 2
    assert row["share"] == row["paper_share"] == pytest.approx(100 * 2 / 18)
    # Gains 3 and 1: t = 2 / 1 with one degree of freedom, whose distribution is Cauchy's.
    assert row["p_seeds"] == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    assert row["improvement_ci95"] == pytest.approx(math.tan(0.475 * math.pi))
    assert (row["hardware"], row["commit"]) == ("abacus", "c0ffee")


def test_p_over_images_is_mcnemars_and_merges_seeds_by_their_middle():
    def pairs(*wrong):
        evidence = found([ours for ours, _ in wrong], [theirs for _, theirs in wrong])
        return [([evidence.references[seed]], evidence.members[seed]) for seed in evidence.members]

    assert ledger.over_images(pairs((17, 18))) == pytest.approx(2 * 0.5**2), "2 images apart, all one way"
    assert ledger.over_images(pairs((18, 18))) == 1, "nothing apart"
    # p of 4, 8 and 12 images apart: 1/8, 1/128, 1/2048. The middle one, the second smallest, times 3 / 2.
    assert ledger.over_images(pairs((16, 18), (14, 18), (12, 18))) == pytest.approx(1.5 / 128)
    assert ledger.over_images(pairs((16, 18), (14, 18))) == pytest.approx(2 / 128), "of two the smaller, times 2"


def test_counts_and_grid_have_the_tables_shape():
    rows = [
        found(8 * [16, 16.5], 4 * TEACHERS),
        found([], column="BAN-2"),
        found([16], [18], column="BAN-3", printed=17),
    ]
    table = ledger.ledger(rows)
    assert ledger.counts(table) == {"reproduced": 1, "partly": 0, "not": 0, "too small to tell": 1, "not asked": 0, "not run": 1}
    assert tuple(ledger.counts(table)) == ledger.VERDICTS
    grid = ledger.grid(table, "paper")
    assert grid.index.tolist() == ["DenseNetBC-90-60"] and grid.columns.tolist() == ["BAN-1", "BAN-2", "BAN-3"]


def test_students_are_compared_with_their_teacher_and_with_themselves_unaided():
    """Within a seed: 16 against a teacher's 20 and against 18 on labels alone, in both seeds."""
    row = paper.row("MatchWideResNet-2-1")
    evidence = []
    for column, ours in (("Baseline", [18, 18]), ("BAN", [16, 16])):
        told = found(ours, [20, 20], column=column)
        told.cell.network, told.cell.table = row.network, 2
        evidence.append(told)
    frame = ledger.by_seed(evidence)
    assert list(zip(frame["column"], frame["seed"], frame["error"], frame["reference"], strict=True)) == [
        ("Baseline", 0, 18, 20), ("Baseline", 1, 18, 20), ("BAN", 0, 16, 20), ("BAN", 1, 16, 20)]  # fmt: skip
    gains = ledger.students(frame).set_index("against")
    assert gains.loc["teacher", ["points", "share"]].tolist() == [4, 20]
    assert gains.loc["labels alone", "share"] == pytest.approx(100 * 2 / 18)
    assert gains.loc["teacher", "paper_share"] == pytest.approx(100 * (17.69 - 17.42) / 17.69)
    assert gains.loc["labels alone", "paper_share"] == pytest.approx(100 * (18.83 - 17.42) / 18.83)
    assert gains["seeds"].tolist() == [2, 2] and gains["ci95"].tolist() == [0, 0]


def test_a_student_without_a_baseline_is_compared_with_its_teacher_alone():
    told = found([16, 16], [20, 20], column="BAN")
    told.cell.network = "MatchDenseNet-28-1-2"
    assert ledger.students(ledger.by_seed([told]))["against"].tolist() == ["teacher"]
    assert ledger.students(ledger.by_seed([found([])])).empty


def test_sizes_have_the_papers_table_2_and_ours():
    told = found([16, 17], [20, 20], column="BAN")
    told.cell.network = "MatchDenseNet-28-1-2"
    frame = ledger.sizes([told], "digits")
    assert frame.groupby("source").size().to_dict() == {"the paper, CIFAR-100": 1 + 22, "digits": 2}
    assert frame[frame["source"] == "digits"][["network", "kind", "params", "error"]].values.tolist() == [
        ["", "teacher", 7, 20], ["MatchDenseNet-28-1-2", "taught", 7, 16.5]]  # fmt: skip
    assert frame["error"].notna().all() and len(ledger.sizes([found([], column="BAN")])) == 23


def test_the_rule_names_what_the_code_uses():
    for words in (
        "3 seeds or more",
        "below 1 point",
        "at least 0.5 times",
        "at most 2 times",
        "about 1.1 points for 10,000",
    ):
        assert words in " ".join(ledger.RULE.split()), words
    assert all(f"\n- `{name}`: " in ledger.RULE for name in ledger.VERDICTS)
    assert max(map(len, ledger.RULE.splitlines())) <= 79
