"""Means, intervals, pairs and words about lineages, against textbook numbers."""

import math
import types

import pandas as pd
import pytest
import torch
from scipy import stats

from banlib.paper import findings, statistics
from banlib.paper import printed as paper
from banlib.runs.recipe import generation_name


def lineages(errors, network="DenseNetBC-90-60"):
    """Lineages whose networks err as said: errors[seed] = [teacher, BAN-1, ...] wrong images of ten, classes 0 and 1.

    Wrong images are the first ones, with confidence 0.8; the others are right with confidence 0.9.
    """
    runs = {}
    for seed, wrong in errors.items():
        runs[seed] = []
        for generation, count in enumerate(wrong):
            right = torch.tensor([image >= count for image in range(10)])
            first = torch.where(right, 0.9, 0.2)
            runs[seed].append(types.SimpleNamespace(
                probabilities=torch.stack([first, 1 - first], 1).half(), labels=torch.zeros(10, dtype=torch.int64),
                predicted=(~right).long(), error=10.0 * count,
                metrics=pd.DataFrame([{"epoch": 1, "train_loss": seed + generation}]),
                spec=types.SimpleNamespace(name=generation_name(generation), dataset="digits"),
                environments=[{"hardware": "abacus", "precision": "fp32", "commit": "c0ffee"}],
            ))  # fmt: skip
    return types.SimpleNamespace(runs=runs, labels=lambda: torch.zeros(10, dtype=torch.int64), network=network)


def frame(**columns):
    """Columns of errors by name, a row per seed, in the shape of `statistics.errors`."""
    return pd.DataFrame([{"seed": seed, "name": name, "members": 1, "images": 500, "error": error}
                         for name, errors in columns.items() for seed, error in enumerate(errors)])  # fmt: skip


def controls(**errors):
    """{name: {seed: Run}} of light records: an error and as many labels as `frame` has images."""
    run = lambda error: types.SimpleNamespace(error=error, labels=torch.zeros(500))  # noqa: E731
    return {name: {seed: run(error) for seed, error in enumerate(values)} for name, values in errors.items()}


@pytest.mark.parametrize("few, names, seeds", [
    ([9.0], "Teacher BAN-1", 5),  # a network of one seed does not take four from the others
    ([9.0] * 4, "Teacher BAN-1 few", 4),  # twelve means of three networks, not ten of two
    ([9.0] * 5, "Teacher BAN-1 few", 5),
])  # fmt: skip
def test_networks_are_matched_in_as_many_rows_as_can_be_had(few, names, seeds):
    table = frame(**{"Teacher": [5.0] * 5, "BAN-1": [4.0] * 5, "few": few})
    kept = statistics.matched(table)
    assert set(kept["name"]) == set(names.split())
    assert (kept.groupby("name")["seed"].agg(set) == set(range(seeds))).all()
    assert len(kept) == len(names.split()) * seeds


def test_errors_has_a_row_for_each_seed_and_model():
    table = statistics.errors(lineages({0: [3, 2, 1, 1], 7: [4, 2, 2, 0]}))
    assert list(table["seed"]) == [0] * 6 + [7] * 6
    assert list(table["name"][:6]) == ["Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
    assert list(table["generation"][:6]) == [0, 1, 2, 3, 2, 3] and list(table["members"][:6]) == [1, 1, 1, 1, 2, 3]
    assert list(table["error"]) == pytest.approx([30, 20, 10, 10, 10, 10, 40, 20, 20, 0, 20, 20])
    assert set(table["images"]) == {10}
    # Ens*2 of seed 0: image 0 is (0.2 + 0.2) / 2, image 1 is (0.2 + 0.9) / 2, the others 0.9.
    by_hand = -(math.log(0.2) + math.log(0.55) + 8 * math.log(0.9)) / 10
    assert table["nll"][4] == pytest.approx(by_hand, rel=1e-3)
    assert table["ece"][0] == pytest.approx(100 * (0.3 * 0.8 + 0.7 * 0.1), abs=0.1)
    # Three of ten wrong with confidence 0.8, the others right with 0.9.
    assert table["excess"][0] == pytest.approx(100 * (0.3 * 0.8 + 0.7 * 0.9) - 70, abs=0.1)


def test_without_a_ban_3_the_teacher_joins_the_ensemble_of_three():
    table = statistics.errors(lineages({0: [6, 2, 1]})).set_index("name")
    assert table.loc["Ens*3", ["members", "generation"]].tolist() == [3, 2]
    # Image 1: (0.2 + 0.2 + 0.9) / 3 < 1/2 is wrong by the teacher's vote; BAN-1 and BAN-2 alone have 0.55.
    assert table.loc["Ens*3", "error"] == 20 and table.loc["Ens*2", "error"] == 10


def test_a_name_means_the_same_for_every_seed():
    """A shorter lineage beside longer ones has no Ens*3: its own would be another ensemble by the same name."""
    table = statistics.errors(lineages({0: [3, 2, 1, 1], 1: [3, 2, 1]}))
    assert list(table["name"][table["seed"] == 1]) == ["Teacher", "BAN-1", "BAN-2", "Ens*2"]


def test_the_interval_is_students():
    """A textbook case: 2, 4, 4, 4, 5, 5, 7, 9 has mean 5 and standard deviation sqrt(32 / 7); t(0.975; 7) = 2.365."""
    mean, half = statistics.interval([2, 4, 4, 4, 5, 5, 7, 9])
    assert mean == 5 and half == pytest.approx(2.365 * math.sqrt(32 / 7) / math.sqrt(8), rel=1e-3)
    low, high = stats.t.interval(0.95, 7, loc=5, scale=math.sqrt(32 / 7 / 8))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert statistics.interval([3.5])[0] == 3.5 and math.isnan(statistics.interval([3.5])[1])


def test_summary_keeps_the_order_of_names():
    table = statistics.summary(frame(Teacher=[10, 12], **{"BAN-1": [9, 10], "Ens*2": [8, 8]}))
    assert list(table["name"]) == ["Teacher", "BAN-1", "Ens*2"] and list(table["mean"]) == [11, 9.5, 8]
    assert list(table["seeds"]) == [2, 2, 2]
    # Two values: t(0.975; 1) = 12.706, standard error = half their distance.
    assert list(table["ci95"]) == pytest.approx([12.706 * 1, 12.706 * 0.5, 0], rel=1e-4)


def test_other_test_images_would_move_an_error_by_the_binomials_part():
    """10 % of 500 images: a standard error of sqrt(0.1 * 0.9 / 500) = 1.342 points, times 1.96."""
    assert statistics.binomial(10, 500) == pytest.approx(1.96 * 1.3416, rel=1e-3)
    assert statistics.summary(frame(Teacher=[8, 12]))["binomial"].tolist() == [statistics.binomial(10, 500)]
    assert "binomial" not in statistics.summary(frame(Teacher=[8, 12]).assign(nll=1.0), "nll")


def test_pairing_removes_what_a_seed_gives_both():
    """Seeds differ by tens, the student is better by 1.0, 1.2, 0.8 within each: t(0.975; 2) = 4.303, s = 0.2."""
    teacher = [10, 40, 70]
    table = statistics.paired(frame(Teacher=teacher, **{"BAN-1": [9.0, 38.8, 69.2]}))
    [row] = table.to_dict("records")
    assert row["difference"] == pytest.approx(-1) and row["ci95"] == pytest.approx(4.303 * 0.2 / math.sqrt(3), rel=1e-3)
    assert row["wins"] == 3 and row["seeds"] == 3
    t = 1 / (0.2 / math.sqrt(3))
    assert row["p"] == pytest.approx(2 * stats.t.sf(t, 2), rel=1e-6)
    unpaired = statistics.summary(frame(Teacher=teacher))["ci95"][0]
    assert unpaired > 50 * row["ci95"]
    moved = statistics.paired(frame(Teacher=[110, 40, 0], **{"BAN-1": [109.0, 38.8, -0.8]}))
    assert moved["ci95"][0] == pytest.approx(row["ci95"])


def test_pairs_follow_the_seed_not_the_row():
    table = frame(Teacher=[10, 40, 70], **{"BAN-1": [9, 38, 69]}).sample(frac=1, random_state=3)
    assert statistics.paired(table)["difference"][0] == pytest.approx(-4 / 3)


def test_a_pair_needs_both():
    """A seed whose lineage was cut short is no pair, and counts as none."""
    table = frame(Teacher=[10, 20, 30], **{"BAN-1": [9, 18]})
    [row] = statistics.paired(table).to_dict("records")
    assert (row["seeds"], row["wins"], row["difference"]) == (2, 2, -1.5)
    assert row["ci95"] == pytest.approx(12.706 * 0.5, rel=1e-4)


@pytest.mark.parametrize("differences, word", [
    ([-1.0, -1.2, -0.8], "better"),  # half-width 0.5
    ([-1.0, -2.0, 1.0], "undecided"),
    ([1.0, 2.0, -1.0], "undecided"),
    ([0.9, 1.0, 1.1], "worse"),
    ([0.0, 0.0, 0.0], "undecided"),
    ([-1.0, -1.0, -1.0], "undecided"),  # an interval of no width
    ([-0.1], "one seed"),
])  # fmt: skip
def test_a_word_is_clear_of_zero_or_none(differences, word):
    table = frame(Teacher=[20.0] * len(differences), **{"BAN-1": [20 + difference for difference in differences]})
    [row] = statistics.paired(table).to_dict("records")
    assert statistics.word(row) == word


def test_differences_that_agree_but_for_the_last_bit_are_undecided():
    """140 and 150 wrong images of 1,000 against 139 and 149, in percent: -0.1 twice, with another last bit."""
    teacher, student = ([100 * (wrong / 1000) for wrong in counts] for counts in ((140, 150), (139, 149)))
    table = frame(Teacher=teacher, **{"BAN-1": student})
    assert (table["error"][2] - table["error"][0]) != (table["error"][3] - table["error"][1]), "no rounding to test"
    [row] = statistics.paired(table).to_dict("records")
    assert (row["ci95"], statistics.word(row)) == (0, "undecided") and math.isnan(row["p"])
    assert "beats" not in findings.result([row], "its teacher")


def test_a_claim_is_made_beside_the_control_alone():
    teacher, better = [20.0, 21.0, 22.0], [18.0, 19.2, 19.8]
    table = frame(Teacher=teacher, **{"BAN-1": better})
    words = {}
    errors = {
        "better": [19.0, 20.1, 20.9],
        "undecided": [17.0, 20.1, 20.0],
        "worse": [17.0, 18.3, 18.7],
        "not run": None,
    }
    for name, values in errors.items():
        runs = controls(**{"labels x2": values}) if values else {}
        words[name] = statistics.beside_paper(table, "DenseNetBC-16-8", runs).set_index("name").loc["BAN-1", "verdict"]
    assert words == {name: f"beats its teacher (labels x2: {name})" for name in words}
    worse = statistics.beside_paper(frame(Teacher=better, **{"BAN-1": teacher}), "DenseNetBC-16-8")
    assert worse["verdict"].tolist() == ["", "worse than its teacher (labels x2: not run)"]


def test_gains_over_teacher_and_control_stand_beside_each_other():
    """The issue's numbers: BAN-1 gains over its teacher, and nothing over a doubled label loss."""
    table = frame(Teacher=[9.0, 8.6, 8.8], **{"BAN-1": [6.7, 6.4, 6.6], "BAN-2": [6.0, 5.9, 5.8]})
    runs = controls(**{"labels x2": [6.6, 6.5, 6.5], "teacher": [9.3, 8.8, 9.2]})
    rows = statistics.gains(table, runs).set_index("name")
    assert list(rows.index) == ["Teacher", "BAN-1", "BAN-2", "labels x2", "teacher"]
    assert rows.loc["BAN-1", "gain"] == pytest.approx((2.3 + 2.2 + 2.2) / 3)
    assert rows.loc["BAN-1", "gain_ci95"] == pytest.approx(4.303 * math.sqrt(0.01 / 3) / math.sqrt(3), rel=1e-3)
    assert rows.loc["BAN-1", "control_gain"] == pytest.approx((-0.1 + 0.1 - 0.1) / 3)
    assert rows["teacher"].to_dict() == {
        "Teacher": "", "BAN-1": "better", "BAN-2": "better", "labels x2": "better", "teacher": "worse"}  # fmt: skip
    assert rows["control"].to_dict() == {
        "Teacher": "worse", "BAN-1": "undecided", "BAN-2": "better", "labels x2": "", "teacher": "worse"}  # fmt: skip
    table.loc[table["name"] == "BAN-2", "members"] = 2
    names = statistics.gains(table, {})["name"].tolist()
    assert names == ["Teacher", "BAN-1"], "ensembles have no control of their own here"


def test_the_papers_row_stands_beside_ours():
    names = ["Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
    table = statistics.beside_paper(frame(**{name: [9, 11] for name in names}), "DenseNetBC-90-60")
    assert list(table.columns) == ["name", "paper", "measured", "ci95", "seeds", "binomial", "verdict"]
    row = next(row for row in paper.TABLE1 if row.network == "DenseNetBC-90-60")
    printed = [row.errors[name] for name in ("Baseline", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3")]
    assert list(table["paper"]) == printed == [17.69, 16.62, 16.44, 16.72, 15.39, 15.74]
    assert list(table["measured"]) == [10] * 6 and table["verdict"][0] == ""
    several = frame(**{"Teacher": [9, 11], "BAN-1": [7, 8], "Ens*2": [5, 6]})
    several.loc[several["name"] == "Ens*2", "members"] = 2
    verdicts = statistics.beside_paper(several, "N", controls(**{"labels x2": [8, 9.5]})).set_index("name")["verdict"]
    assert verdicts["Ens*2"].endswith("(labels x2: not compared)"), "one network is no match for two"
    assert statistics.beside_paper(several, "N")["verdict"].str.endswith("not run)").sum() == 2
    assert statistics.beside_paper(frame(Teacher=[1, 2]), "DenseNetBC-16-8")["paper"].isna().all()


def test_curves_have_every_epoch_of_every_run():
    table = statistics.curves(lineages({0: [1, 1], 5: [1, 1]}))
    assert list(zip(table["seed"], table["name"], table["train_loss"], strict=True)) == [
        (0, "Teacher", 0), (0, "BAN-1", 1), (5, "Teacher", 5), (5, "BAN-1", 6)]  # fmt: skip


@pytest.mark.parametrize("seeds, told", [((0,), "seed 0;"), ((0, 1, 2, 3), "seeds 0-3;"), ((4, 7), "seeds 4, 7;")])
def test_provenance_names_hardware_data_seeds_and_commit(seeds, told):
    sentence = statistics.provenance(lineages({seed: [1, 1] for seed in seeds}))
    assert told in sentence
    for word in ("DenseNetBC-90-60", "digits", "abacus", "fp32", "commit c0ffee"):
        assert word in sentence


def test_table_1_and_our_lineages_stand_side_by_side():
    ours = lineages({0: [6, 5, 4, 3, 2], 1: [6, 5, 4, 3, 2]})
    ours.settings = types.SimpleNamespace(profile=types.SimpleNamespace(name="abacus"))
    table = statistics.beside_table1([ours])
    printed = paper.row("DenseNetBC-80-120").errors
    assert table["paper 80-120"].dropna().to_dict() == {
        "Teacher" if name == "Baseline" else name: value for name, value in printed.items() if value is not None
    }
    assert table["abacus"][["Teacher", "BAN-1", "BAN-4"]].tolist() == pytest.approx([60, 50, 20])
    minus = statistics.beside_table1([ours], relative=True)
    assert minus.loc["BAN-1", ["paper 112-33", "abacus"]].tolist() == pytest.approx([17.61 - 18.25, -10])
    assert (minus.loc["Teacher"] == 0).all()
    ours.runs[7] = lineages({7: [9]}).runs[7]  # a teacher whose student is not trained yet moves no difference
    assert statistics.beside_table1([ours], relative=True).equals(minus)
    assert statistics.beside_table1([ours])["abacus"]["Teacher"] == pytest.approx(70)


def test_subsets_are_all_ensembles_of_a_lineage():
    found = statistics.subsets(lineages({0: [6, 5, 4], 1: [6, 5, 4]}))
    assert len(found) == 2 * (2**3 - 1)
    alone = found[(found["seed"] == 0) & (found["size"] == 1)].set_index("members")["error"]
    assert alone.to_dict() == pytest.approx({"Teacher": 60, "BAN-1": 50, "BAN-2": 40})
    # Image 5 is wrong in the teacher alone (confidence 0.8), right in both students (0.9): the three get it right.
    assert found.set_index(["seed", "members"])["error"][0, "Teacher + BAN-1 + BAN-2"] == pytest.approx(50)


def test_strangers_are_averaged_in_groups_that_share_nobody():
    """A ring, in which each teacher is a member twice, claims half the interval."""
    ours = lineages({seed: [wrong, 1, 1] for seed, wrong in enumerate([6, 4, 2, 8, 1])})
    runs = {seed: chain[0] for seed, chain in ours.runs.items()}
    for run in runs.values():
        run.light = False
    table = statistics.company(ours, {"labels x2": runs, "teacher": {}})
    assert list(table["kind"].unique()) == ["one lineage", "unrelated teachers", "unrelated labels x2"]
    strangers = table[table["kind"] == "unrelated labels x2"]
    assert strangers.groupby("size")["seed"].agg(list).to_dict() == {1: [0, 1, 2, 3, 4], 2: [0, 2], 3: [0]}
    assert strangers[strangers["size"] == 1]["error"].tolist() == pytest.approx([60, 40, 20, 80, 10])
    # Where one of two errs with 0.8 and the other is right with 0.9, the pair is right: the better of both counts.
    assert strangers[strangers["size"] == 2]["error"].tolist() == pytest.approx([40, 20])
    # Of three, two that err with 0.8 outvote one that is right with 0.9: the middle one counts.
    assert strangers[strangers["size"] == 3]["error"].tolist() == pytest.approx([40])
    for run in runs.values():
        run.light = True  # no probabilities to average
    assert list(statistics.company(ours, {"labels x2": runs})["kind"].unique()) == ["one lineage"]


def test_a_lineage_is_compared_with_strangers_of_the_same_seeds():
    ours = lineages({seed: [wrong, 1, 1] for seed, wrong in enumerate([6, 4, 2, 8, 1])})
    for chain in ours.runs.values():
        chain[0].light = False
    table = statistics.against_strangers(statistics.company(ours)).set_index("size")
    assert table["seeds"].to_dict() == {1: 5, 2: 2, 3: 1}, "groups of seeds"
    # Every pair of a lineage errs on one image of ten; the teachers' pairs on four (seeds 0, 1) and two (2, 3).
    assert table.loc[2, "difference"] == pytest.approx(10 - (40 + 20) / 2)
    # Alone: the mean of (60, 10, 10) minus 60, and so on.
    alone = [80 / 3 - 60, 60 / 3 - 40, 40 / 3 - 20, 100 / 3 - 80, 10 - 10]
    assert table.loc[1, "difference"] == pytest.approx(sum(alone) / 5)


def test_agreement_is_measured_within_a_lineage_and_between_strangers():
    table = statistics.agreements(lineages({0: [3, 2, 1], 1: [5, 5, 5], 2: [1, 1, 1]}))
    by_kind = table.groupby("kind")["agreement"].agg(list)
    assert by_kind["a student and its teacher"] == pytest.approx([90, 100, 100])
    assert by_kind["two unrelated teachers"] == pytest.approx([80]), "seed 2 has no partner"
