"""Paper beside measured: means, intervals, pairs and verdicts, against textbook numbers."""

import math
import types

import pandas as pd
import pytest
import torch
from scipy import stats

from banlib import ledger, paper


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
                probabilities=torch.stack([first, 1 - first], 1).half(),
                metrics=pd.DataFrame([{"epoch": 1, "train_loss": seed + generation}]),
                spec=types.SimpleNamespace(name=ledger.generation_name(generation), dataset="digits"),
                environments=[{"hardware": "abacus", "precision": "fp32", "commit": "c0ffee"}],
            ))  # fmt: skip
    return types.SimpleNamespace(runs=runs, labels=lambda: torch.zeros(10, dtype=torch.int64), network=network)


def frame(**columns):
    """Columns of errors by name, a row per seed, in the shape of `ledger.errors`."""
    return pd.DataFrame([{"seed": seed, "name": name, "error": error} for name, errors in columns.items()
                         for seed, error in enumerate(errors)])  # fmt: skip


def test_errors_has_a_row_for_each_seed_and_model():
    table = ledger.errors(lineages({0: [3, 2, 1, 1], 7: [4, 2, 2, 0]}))
    assert list(table["seed"]) == [0] * 6 + [7] * 6
    assert list(table["name"][:6]) == ["Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
    assert list(table["generation"][:6]) == [0, 1, 2, 3, 2, 3] and list(table["members"][:6]) == [1, 1, 1, 1, 2, 3]
    assert list(table["error"]) == pytest.approx([30, 20, 10, 10, 10, 10, 40, 20, 20, 0, 20, 20])
    # Ens*2 of seed 0: image 0 is (0.2 + 0.2) / 2, image 1 is (0.2 + 0.9) / 2, the others 0.9.
    by_hand = -(math.log(0.2) + math.log(0.55) + 8 * math.log(0.9)) / 10
    assert table["nll"][4] == pytest.approx(by_hand, rel=1e-3)
    assert table["ece"][0] == pytest.approx(100 * (0.3 * 0.8 + 0.7 * 0.1), abs=0.1)


def test_without_a_ban_3_the_teacher_joins_the_ensemble_of_three():
    table = ledger.errors(lineages({0: [6, 2, 1]})).set_index("name")
    assert table.loc["Ens*3", ["members", "generation"]].tolist() == [3, 2]
    # Image 1: (0.2 + 0.2 + 0.9) / 3 < 1/2 is wrong by the teacher's vote; BAN-1 and BAN-2 alone have 0.55.
    assert table.loc["Ens*3", "error"] == 20 and table.loc["Ens*2", "error"] == 10


def test_a_name_means_the_same_for_every_seed():
    """A shorter lineage beside longer ones has no Ens*3: its own would be another ensemble by the same name."""
    table = ledger.errors(lineages({0: [3, 2, 1, 1], 1: [3, 2, 1]}))
    assert list(table["name"][table["seed"] == 1]) == ["Teacher", "BAN-1", "BAN-2", "Ens*2"]


def test_the_interval_is_students():
    """A textbook case: 2, 4, 4, 4, 5, 5, 7, 9 has mean 5 and standard deviation sqrt(32 / 7); t(0.975; 7) = 2.365."""
    mean, half = ledger.interval([2, 4, 4, 4, 5, 5, 7, 9])
    assert mean == 5 and half == pytest.approx(2.365 * math.sqrt(32 / 7) / math.sqrt(8), rel=1e-3)
    low, high = stats.t.interval(0.95, 7, loc=5, scale=math.sqrt(32 / 7 / 8))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert ledger.interval([3.5])[0] == 3.5 and math.isnan(ledger.interval([3.5])[1])


def test_summary_keeps_the_order_of_names():
    table = ledger.summary(frame(Teacher=[10, 12], **{"BAN-1": [9, 10], "Ens*2": [8, 8]}))
    assert list(table["name"]) == ["Teacher", "BAN-1", "Ens*2"] and list(table["mean"]) == [11, 9.5, 8]
    assert list(table["seeds"]) == [2, 2, 2]
    # Two values: t(0.975; 1) = 12.706, standard error = half their distance.
    assert list(table["ci95"]) == pytest.approx([12.706 * 1, 12.706 * 0.5, 0], rel=1e-4)


def test_pairing_removes_what_a_seed_gives_both():
    """Seeds differ by tens, the student is better by 1.0, 1.2, 0.8 within each: t(0.975; 2) = 4.303, s = 0.2."""
    teacher = [10, 40, 70]
    table = ledger.paired(frame(Teacher=teacher, **{"BAN-1": [9.0, 38.8, 69.2]}))
    [row] = table.to_dict("records")
    assert row["difference"] == pytest.approx(-1) and row["ci95"] == pytest.approx(4.303 * 0.2 / math.sqrt(3), rel=1e-3)
    assert row["wins"] == 3 and row["seeds"] == 3
    t = 1 / (0.2 / math.sqrt(3))
    assert row["p"] == pytest.approx(2 * stats.t.sf(t, 2), rel=1e-6)
    unpaired = ledger.summary(frame(Teacher=teacher))["ci95"][0]
    assert unpaired > 50 * row["ci95"]
    moved = ledger.paired(frame(Teacher=[110, 40, 0], **{"BAN-1": [109.0, 38.8, -0.8]}))
    assert moved["ci95"][0] == pytest.approx(row["ci95"])


def test_pairs_follow_the_seed_not_the_row():
    table = frame(Teacher=[10, 40, 70], **{"BAN-1": [9, 38, 69]}).sample(frac=1, random_state=3)
    assert ledger.paired(table)["difference"][0] == pytest.approx(-4 / 3)


def test_a_pair_needs_both():
    """A seed whose lineage was cut short is no pair, and counts as none."""
    table = frame(Teacher=[10, 20, 30], **{"BAN-1": [9, 18]})
    [row] = ledger.paired(table).to_dict("records")
    assert (row["seeds"], row["wins"], row["difference"]) == (2, 2, -1.5)
    assert row["ci95"] == pytest.approx(12.706 * 0.5, rel=1e-4)


@pytest.mark.parametrize("differences, verdict", [
    ([-1.0, -1.2, -0.8], "beats its teacher"),  # half-width 0.5
    ([-1.0, -2.0, 1.0], "undecided"),
    ([1.0, 2.0, -1.0], "undecided"),
    ([0.9, 1.0, 1.1], "worse than its teacher"),
    ([0.0, 0.0, 0.0], "undecided"),
    ([-0.1], "below its teacher, one seed"),
    ([0.1], "not below its teacher, one seed"),
    ([0.0], "not below its teacher, one seed"),
])  # fmt: skip
def test_the_verdict_is_clear_of_zero_or_none(differences, verdict):
    teacher = [20.0] * len(differences)
    table = frame(Teacher=teacher, **{"BAN-1": [20 + difference for difference in differences]})
    assert ledger.beside_paper(table, "DenseNetBC-16-8").set_index("name").loc["BAN-1", "verdict"] == verdict


def test_the_papers_row_stands_beside_ours():
    names = ["Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
    table = ledger.beside_paper(frame(**{name: [9, 11] for name in names}), "DenseNetBC-90-60")
    assert list(table.columns) == ["name", "paper", "measured", "ci95", "seeds", "verdict"]
    row = next(row for row in paper.TABLE1 if row.network == "DenseNetBC-90-60")
    printed = [row.errors[name] for name in ("Baseline", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3")]
    assert list(table["paper"]) == printed == [17.69, 16.62, 16.44, 16.72, 15.39, 15.74]
    assert list(table["measured"]) == [10] * 6 and table["verdict"][0] == ""
    assert ledger.beside_paper(frame(Teacher=[1, 2]), "DenseNetBC-16-8")["paper"].isna().all()


def test_curves_have_every_epoch_of_every_run():
    table = ledger.curves(lineages({0: [1, 1], 5: [1, 1]}))
    assert list(zip(table["seed"], table["name"], table["train_loss"])) == [
        (0, "Teacher", 0), (0, "BAN-1", 1), (5, "Teacher", 5), (5, "BAN-1", 6)]  # fmt: skip


@pytest.mark.parametrize("seeds, told", [((0,), "seed 0;"), ((0, 1, 2, 3), "seeds 0-3;"), ((4, 7), "seeds 4, 7;")])
def test_provenance_names_hardware_data_seeds_and_commit(seeds, told):
    sentence = ledger.provenance(lineages({seed: [1, 1] for seed in seeds}))
    assert told in sentence
    for word in ("DenseNetBC-90-60", "digits", "abacus", "fp32", "commit c0ffee"):
        assert word in sentence


def test_table_1_and_our_lineages_stand_side_by_side():
    ours = lineages({0: [6, 5, 4, 3, 2], 1: [6, 5, 4, 3, 2]})
    ours.settings = types.SimpleNamespace(profile=types.SimpleNamespace(name="abacus"))
    table = ledger.beside_table1([ours])
    printed = paper.row("DenseNetBC-80-120").errors
    assert table["paper 80-120"].dropna().to_dict() == {
        "Teacher" if name == "Baseline" else name: value for name, value in printed.items() if value is not None
    }
    assert table["abacus"][["Teacher", "BAN-1", "BAN-4"]].tolist() == pytest.approx([60, 50, 20])
    minus = ledger.beside_table1([ours], relative=True)
    assert minus.loc["BAN-1", ["paper 112-33", "abacus"]].tolist() == pytest.approx([17.61 - 18.25, -10])
    assert (minus.loc["Teacher"] == 0).all()


def test_subsets_are_all_ensembles_of_a_lineage():
    found = ledger.subsets(lineages({0: [6, 5, 4], 1: [6, 5, 4]}))
    assert len(found) == 2 * (2**3 - 1)
    alone = found[(found["seed"] == 0) & (found["size"] == 1)].set_index("members")["error"]
    assert alone.to_dict() == pytest.approx({"Teacher": 60, "BAN-1": 50, "BAN-2": 40})
    # Image 5 is wrong in the teacher alone (confidence 0.8), right in both students (0.9): the three get it right.
    assert found.set_index(["seed", "members"])["error"][0, "Teacher + BAN-1 + BAN-2"] == pytest.approx(50)


def test_strangers_are_averaged_in_a_ring_of_seeds():
    found = ledger.teachers_together(lineages({0: [6, 1], 1: [4, 1], 2: [2, 1]}))
    assert found.groupby("size").size().to_dict() == {1: 3, 2: 3}, "no more members than a lineage has"
    assert found[found["size"] == 1]["error"].tolist() == pytest.approx([60, 40, 20])
    # Where one of two errs with 0.8 and the other is right with 0.9, the pair is right: the better of both counts.
    assert found[found["size"] == 2]["error"].tolist() == pytest.approx([40, 20, 20])


# The ledger's rule


def cell(profile="cifar100", printed=16.0, reference=18.0, column="BAN-1"):
    return types.SimpleNamespace(
        table=1, network="DenseNetBC-90-60", column=column, paper=printed, profile=profile, trained="a network",
        reference="its own teacher" if reference else "", paper_reference=reference,
    )  # fmt: skip


def found(ours, references=None, **changes):
    """Evidence whose networks err on so many of 200 test images, by seed: the first ones, so errors are nested."""

    def run(wrong):
        right = torch.arange(200) >= 2 * wrong  # errors in %
        return types.SimpleNamespace(probabilities=torch.stack([right, ~right], 1).half(), labels=torch.zeros(200, dtype=int),
                                     environments=[{"hardware": "abacus", "commit": "c0ffee"}])  # fmt: skip

    references = {} if references is None else dict(enumerate(map(run, references)))
    return types.SimpleNamespace(cell=cell(**changes), members={seed: [run(wrong)] for seed, wrong in enumerate(ours)},
                                 references=references)  # fmt: skip


def verdict(*args, **changes):
    [row] = ledger.ledger([found(*args, **changes)]).to_dict("records")
    return row["verdict"], row["why"]


TEACHERS = [18, 18.5, 17.5, 18]


@pytest.mark.parametrize(
    "ours, changes, expected, reason",
    [
        # Means 16.0, spread 0.4: the paper's 16.0 lies within; 2 points better in every seed, as in the paper.
        ([16, 16.5, 15.5, 16], {}, "reproduced", "within 16.00"),
        ([16, 16.5, 15.5, 16], {"printed": 13.0, "reference": 14.0}, "partly", "outside 16.00"),  # sign alone
        ([16, 16.5, 15.5, 16], {"profile": "digits"}, "partly", "the paper's sign"),  # at the most
        ([16, 16.5, 15.5, 16], {"printed": 20.0}, "not", "the other sign"),  # neither value nor sign
        ([16, 16.5, 15.5, 16], {"printed": 20.0, "profile": "digits"}, "not", "the other sign"),
        ([16, 16.5, 15.5, 16], {"reference": None}, "reproduced", "within"),  # a baseline, by its value
        ([16, 16.5, 15.5, 16], {"reference": None, "printed": 20.0}, "not", "outside"),
        ([16, 16.5, 15.5, 16], {"reference": None, "profile": "digits"}, "not run", "a value alone"),
        # Better in one seed, worse in another.
        ([16, 20.5, 15.5, 20], {"profile": "digits"}, "not", "undecided"),
        # 0.5 points of 18 in each seed, but 6 of 18 in the paper.
        ([17.5, 18, 17, 17.5], {"printed": 12.0, "profile": "cifar100-lite"}, "not", "less than half its share"),
        ([17.5, 18, 17, 17.5], {"printed": 17.5, "profile": "cifar100-lite"}, "partly", "the paper's sign"),
    ],
)
def test_the_verdict_follows_the_rule(ours, changes, expected, reason):
    references = None if changes.get("reference", 18.0) is None else TEACHERS
    found_verdict, why = verdict(ours, references, **changes)
    assert found_verdict == expected and reason in why


def test_one_seed_is_judged_by_its_images_and_reproduces_nothing():
    # 12 of 200 images are right now that were wrong, none the other way: p = 2 / 2**12.
    found_verdict, why = verdict([12], [18])
    assert found_verdict == "partly" and "one seed: no spread" in why and "McNemar p 0.00049" in why
    assert verdict([16], [18])[0] == "not", "4 of 200 images, p = 0.125"


def test_a_cell_without_runs_is_not_run():
    [row] = ledger.ledger([found([])]).to_dict("records")
    assert row["verdict"] == "not run" and row["seeds"] == 0 and row["profile"] is None and row["measured"] != row["measured"]


def test_a_line_holds_what_the_verdict_rests_on():
    [row] = ledger.ledger([found([15, 17], [18, 18])]).to_dict("records")
    assert list(row) == ledger.LEDGER and ledger.LEDGER[:12] == [
        "table", "network", "column", "paper", "measured", "ci95", "seeds", "profile", "hardware", "commit", "difference",
        "verdict"]  # fmt: skip
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
        return [(evidence.references[seed], evidence.members[seed]) for seed in evidence.members]

    assert ledger.over_images(pairs((17, 18))) == pytest.approx(2 * 0.5**2), "2 images apart, all one way"
    assert ledger.over_images(pairs((18, 18))) == 1, "nothing apart"
    # p of 4, 8 and 12 images apart: 1/8, 1/128, 1/2048. The middle one, the second smallest, times 3 / 2.
    assert ledger.over_images(pairs((16, 18), (14, 18), (12, 18))) == pytest.approx(1.5 / 128)
    assert ledger.over_images(pairs((16, 18), (14, 18))) == pytest.approx(2 / 128), "of two the smaller, times 2"


def test_counts_and_grid_have_the_tables_shape():
    rows = [found([16, 16.5], [18, 18.5]), found([], column="BAN-2")]
    table = ledger.ledger(rows)
    assert ledger.counts(table) == {"reproduced": 1, "partly": 0, "not": 0, "not run": 1}
    grid = ledger.grid(table, "paper")
    assert grid.index.tolist() == ["DenseNetBC-90-60"] and grid.columns.tolist() == ["BAN-1", "BAN-2"]


def test_students_are_compared_with_their_teacher_and_with_themselves_unaided():
    """Within a seed: 16 against a teacher's 20 and against 18 on labels alone, in both seeds."""
    row = paper.row("MatchWideResNet-2-1")
    evidence = []
    for column, ours in (("Baseline", [18, 18]), ("BAN", [16, 16])):
        told = found(ours, [20, 20], column=column)
        told.cell.network, told.cell.table = row.network, 2
        evidence.append(told)
    frame = ledger.by_seed(evidence)
    assert list(zip(frame["column"], frame["seed"], frame["error"], frame["reference"])) == [
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
