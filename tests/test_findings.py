"""Results in words: what each experiment of the book says, whatever came out."""

import itertools
import re
import types

import numpy as np
import pandas as pd
import pytest
import torch

from banlib.paper import findings, ledger, numbers, printed, statistics
from conftest import recipe

ANSWERS = {  # differences over three seeds, in points, less is better: half-widths of about 0.5
    "better": [-1.0, -1.2, -0.8],
    "undecided": [0.3, -0.4, 0.2],
    "worse": [1.0, 1.2, 0.8],
}
TEACHER = np.array([9.0, 8.6, 8.8])


def frame(**errors):
    """`statistics.errors` of single networks, and of ensembles by their names."""
    rows = [
        {"seed": seed, "name": name.replace("_", "-"), "members": 2 if name.startswith("Ens") else 1,
         "generation": int(name[4:]) if name.startswith("BAN") else 0, "images": 500, "error": error}
        for name, values in errors.items() for seed, error in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows).replace({"name": {"Ens2": "Ens*2", "Ens3": "Ens*3"}})


def control(values):
    runs = {seed: types.SimpleNamespace(error=error, labels=torch.zeros(500)) for seed, error in enumerate(values)}
    return {"labels x2": runs} if len(runs) else {}


def words(text):
    """As a reader sees it; each number must carry its source, and nothing is unsaid."""
    assert not re.search(r"nan|None|inf\b|\[|\{|  ", text, re.I), text
    assert text.count(". ") < 5 and text.endswith((".", ").")), text
    assert "*" not in re.sub(r"`[^`]*`|^\*[^*]*\*", "", text), "a star is markup, which sets what follows in italics"
    return numbers.plain(text)


def sentences(text):
    return re.split(r"(?<=[.)]) (?=[A-Z])", text)


@pytest.mark.parametrize("against_teacher, beside_control, seeds", [
    *itertools.product(ANSWERS, [*ANSWERS, "not run"], [3]), *itertools.product(ANSWERS, [*ANSWERS, "not run"], [1]),
])  # fmt: skip
def test_a_student_beats_its_teacher_only_beside_its_control(against_teacher, beside_control, seeds):
    student = TEACHER + ANSWERS[against_teacher]
    rival = student - ANSWERS[beside_control] if beside_control in ANSWERS else []
    text = words(findings.students(frame(Teacher=TEACHER[:seeds], BAN_1=student[:seeds]), control(rival[:seeds])))
    assert ("beats its teacher" in text) == (against_teacher == "better" and seeds > 1)
    assert ("makes more errors than its teacher" in text) == (against_teacher == "worse" and seeds > 1)
    assert ("does not clearly differ from its teacher" in text) == (against_teacher == "undecided" and seeds > 1)
    assert ("In one seed" in text) == (seeds == 1)
    for first, second in itertools.pairwise([*sentences(text), ""]):
        assert "beats its teacher" not in first or "labels x2" in first + second
    assert ("was not run" in text) == (beside_control == "not run")
    credited = "adds what a larger step on the labels does not" in text
    assert credited == (against_teacher == beside_control == "better" and seeds > 1)


def test_fewer_seeds_of_the_control_are_counted():
    errors = frame(Teacher=TEACHER, BAN_1=TEACHER - [1, 1.2, 0.8])
    fewer = control(TEACHER[:2] + [1.0, 1.1])
    text = words(findings.students(errors, fewer))
    assert "Over 3 seeds" in text and ", and in 2 of these seeds it beats the control labels x2" in text
    one = words(findings.students(errors, control(TEACHER[:1] + 1)))
    assert "but in 1 of these seeds it differs from the control" in one and one.endswith("So nothing is decided.")
    strange = {statistics.CONTROL: {7: control(TEACHER)[statistics.CONTROL][0]}}
    assert "was not run" in words(findings.students(errors, strange))
    both = statistics.with_controls(frame(Teacher=TEACHER, BAN_1=TEACHER - [1, 1.2, 0.8]), fewer)
    assert words(findings.compared(both, "BAN-1")).startswith("Over 2 to 3 seeds")


@pytest.mark.parametrize("against_teacher, beside_control", [*itertools.product(ANSWERS, [*ANSWERS, "not run"])])
def test_neither_does_any_other_comparison_with_a_teacher(against_teacher, beside_control):
    errors = frame(Teacher=TEACHER, BAN_1=TEACHER + ANSWERS[against_teacher])
    runs = control(errors["error"][3:] - ANSWERS[beside_control] if beside_control in ANSWERS else [])
    text = words(findings.compared(statistics.with_controls(errors, runs), "Teacher", ["BAN-1"]))
    assert "its teacher" in sentences(text)[0] and "labels x2" in sentences(text)[1]
    pairs = statistics.paired(statistics.with_controls(errors, runs), statistics.CONTROL).to_dict("records")
    row = statistics.paired(errors).to_dict("records")[0]
    beside = next((pair for pair in pairs if pair["name"] == "BAN-1"), None)
    guess = words(findings.guess("BAN-1 makes fewer errors than its teacher", row, beside))
    assert {"better": "Yes", "worse": "No, the other way round", "undecided": "Undecided"}[against_teacher] in guess
    assert "labels x2" in guess and ("was not run" in guess) == (beside_control == "not run")


def test_numbers_say_how_large_and_how_sure():
    errors = frame(Teacher=TEACHER, BAN_1=TEACHER + ANSWERS["better"], BAN_2=TEACHER + ANSWERS["undecided"])
    text = words(findings.compared(errors, "Teacher"))
    # t(0.975; 2) = 4.303, s = 0.2; and s = 0.3786 for the other: 4.303 * s / sqrt(3)
    assert text.startswith(
        "Over 3 seeds (95 % intervals), BAN-1 beats the teacher by 1.00 ± 0.50 points; "
        "BAN-2 does not clearly differ from the teacher"
    ), text
    assert "(+0.03 ± 0.94 points)" in text
    assert '<data value="3">3</data> seeds' in findings.compared(errors, "Teacher")
    assert "Nothing was compared" in findings.compared(errors, "BAN-7")


@pytest.mark.parametrize("second, third, claim", [
    ("better", "better", "hold here"),
    ("better", "undecided", "hold only in part"),
    ("undecided", "undecided", "remain undecided"),
    ("worse", "undecided", "are not shown"),
    ("worse", "worse", "turn into losses"),
])  # fmt: skip
def test_the_second_claim_is_said_too(second, third, claim):
    first = TEACHER - 2
    later = {"BAN_2": first + ANSWERS[second], "BAN_3": first + ANSWERS[third]}
    text = words(findings.later(frame(Teacher=TEACHER, BAN_1=first, **later, Ens2=first - 1)))
    assert claim in text and "BAN-1" in text and "Ens" not in text
    assert "stays open" in words(findings.later(frame(Teacher=TEACHER, BAN_1=first)))
    assert "can't be judged" in words(findings.later(frame(Teacher=[9], BAN_1=[8], BAN_2=[7])))


def test_ensembles_stand_beside_the_best_single_network():
    errors = frame(Teacher=TEACHER, BAN_1=TEACHER - 1, BAN_2=TEACHER - 0.5, Ens2=TEACHER - [2, 2.2, 1.8])
    text = words(findings.ensembles(errors))
    assert "Ens*2 beats BAN-1 by 1.00 ± 0.50 points. BAN-1 was picked in hindsight" in text
    assert "no ensemble" in words(findings.ensembles(frame(Teacher=TEACHER, BAN_1=TEACHER)))


@pytest.mark.parametrize("answer, end", [
    ("better", "the lineage does better"), ("undecided", "seeds can't tell"), ("worse", "unrelated networks do better"),
])  # fmt: skip
def test_company_is_judged_at_equal_size(answer, end, monkeypatch):
    strangers = TEACHER - ANSWERS[answer]
    kinds = {"one lineage": TEACHER, "unrelated teachers": strangers, "unrelated labels x2": strangers}
    rows = [
        {"kind": kind, "size": size, "seed": seed, "error": error}
        for kind, errors in kinds.items() for size in (1, 2, 3) for seed, error in enumerate(errors)
        if kind == "one lineage" or size < 3 and seed + size < 4
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    text = words(findings.company(table))
    assert "as many unrelated teachers" in text and "as many unrelated networks of labels x2" in text and "at 2 members, " in text
    assert "too few" in words(findings.company(table[table["size"] == 1]))
    monkeypatch.setattr(statistics, "word", lambda row: answer)  # two groups have no clear answer here
    assert end in words(findings.company(table))


def test_calibration_may_suffer_where_the_likelihood_gains():
    errors = frame(Teacher=TEACHER, BAN_1=TEACHER, BAN_2=TEACHER, Ens2=TEACHER)
    better, worse = np.array(ANSWERS["better"]) / 10, np.array(ANSWERS["worse"])
    errors["ece"] = np.concatenate([np.zeros(9), worse])
    errors["nll"] = np.concatenate([np.zeros(9), better])
    text = words(findings.calibration(errors))
    assert "Ens*2 is less well calibrated than BAN-2 by 1.00 ± 0.50 points" in text
    assert "has a better likelihood than BAN-2 by 0.100 ± 0.050 nats" in text
    alone = errors[errors["members"] == 1]
    assert "does not clearly differ in calibration from the teacher" in words(findings.calibration(alone))
    assert "No student" in words(findings.calibration(alone[alone["name"] == "Teacher"]))


def test_confidence_beside_accuracy_has_a_sign():
    errors = frame(Teacher=TEACHER, BAN_1=TEACHER, BAN_2=TEACHER, Ens2=TEACHER)
    errors["excess"] = np.concatenate([ANSWERS["worse"], ANSWERS["worse"], ANSWERS["undecided"], ANSWERS["better"]])
    assert words(findings.excess(errors)) == (
        "Mean confidence minus accuracy: the teacher and BAN-1 are overconfident (+1.00 ± 0.50 and +1.00 ± 0.50 points); "
        "Ens*2 is too modest (\N{MINUS SIGN}1.00 ± 0.50 points); "
        "BAN-2 is neither clearly overconfident nor clearly too modest (+0.03 ± 0.94 points)."
    )
    assert "is not judged by one seed (+1.00 points)" in words(findings.excess(errors.iloc[:1]))


@pytest.mark.parametrize("student, answer", [
    ([8.0, 7.1, 6.1, 5.0, 4.2, 3.0], "better teachers have better students"),
    ([3.0, 4.2, 5.0, 6.1, 7.1, 8.0], "better teachers have worse students"),
    ([5.0, 6.0, 5.5, 6.0, 5.0, 5.6], "is undecided"),
    ([5.0, 6.0], "fewer than four seeds"),
    ([5.0] * 6, "fewer than four seeds"),
])  # fmt: skip
def test_heredity_is_a_correlation_with_an_interval(student, answer):
    teachers = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0][: len(student)]
    assert answer in words(findings.heredity(frame(Teacher=teachers, BAN_1=student)))


def test_a_teacher_is_described_by_its_spread():
    text = words(findings.teacher(frame(Teacher=TEACHER)))
    # t(0.975; 2) = 4.303, s = 0.2; 1.96 * sqrt(8.8 * 91.2 / 500) = 2.48
    assert "misreads 8.80 ± 0.50 %" in text and "8.60 to 9.00 %" in text and "about 2.48 points" in text
    assert "In one seed" in words(findings.teacher(frame(Teacher=[9.0])))


def test_the_search_for_a_recipe_names_its_rivals():
    own = recipe(epochs=80, lr=0.2)
    tried = {0.1: [9.0, 9.2, 9.1], 0.2: [8.0, 8.3, 8.1], 0.4: [8.3, 8.0, 8.3]}
    text = words(findings.search({80: tried}, own))
    assert "Of 3 rates, 0.2 has the lowest" in text and text.endswith("and is used here; 0.4 can't be told from it.")
    other = {80: {0.2: [8.0, 8.3], 0.1: [9.0, 9.3001]}}
    assert words(findings.search(other, own.at(0.1))).endswith("while 0.1 is used here.")
    assert "No search" in words(findings.search({}, own)) and "No search" in words(findings.search({40: tried}, own))
    shorter = {20: {0.1: [19.0, 21.0], 0.4: [18.0, 18.5]}, 40: {0.4: [10.0, 10.5]}} | {80: tried}
    text = words(findings.search(shorter, own))
    assert "best rate of each length" in text and text.endswith("18.25 % after 20, 10.25 % after 40 and 8.13 % after 80.")


def test_table_2_counts_clear_students_by_family():
    students = [row.network for row in printed.TABLE2 if row.errors["BAN"]]
    gains = [
        {"network": name, "against": side, "share": 5.0 if "Wide" in name else -5.0, "ci95": 2.0, "seeds": 3}
        for name in students for side in ("teacher", "labels alone")
    ]  # fmt: skip
    board = pd.DataFrame({"column": "BAN", "control_gain": [1.0, -1.0, None], "control_gain_ci95": 0.5})
    text = words(findings.table2(pd.DataFrame(gains), board))
    assert "4 of 13 students clearly beat their teacher, a DenseNet" in text
    assert "0 of 2 PreResNets, 4 of 4 WideResNets and 0 of 7 DenseNets" in text
    assert "1 of 2 clearly beat the control labels x2" in text and "4 of 13 clearly beat the same network" in text
    assert "was not run" in words(findings.table2(pd.DataFrame(gains), board.iloc[2:]))
    assert "No student" in words(findings.table2(pd.DataFrame(), board))
    alone = words(findings.table2(pd.DataFrame(gains).assign(seeds=1, ci95=np.nan), board))
    assert alone.startswith("One seed gives no interval") and "0 of" not in alone


def test_agreement_cost_and_ledger():
    table = pd.DataFrame(
        {"kind": ["a student and its teacher"] * 2 + ["two unrelated teachers"], "agreement": [90.0, 91.0, 88.0]}
    )
    # t(0.975; 1) = 12.706, times half the distance
    assert words(findings.agreement(table)) == (
        "A student and its teacher agree on 90.50 ± 6.35 % and two unrelated teachers agree on 88.00 % of the test images."
    )
    ratios = {"distill_online": 1.3, "distill_remembered": 1.2, "distill_later": 1.01}
    result = {"distill_over_plain": {name: {"median": ratio} for name, ratio in ratios.items()}, "rounds": 5}
    text = words(findings.cost(result))
    assert "costs 1.30 training runs" in text and "over 200 epochs the first student costs 1.20 and each later one 1.01" in text
    counts = dict.fromkeys(ledger.VERDICTS, 1) | {"not run": 39}
    assert "Of the 44 errors that the paper reports, 4 have a verdict: 1 reproduced" in words(findings.ledger(counts))


def test_a_guess_of_one_seed_stays_a_guess():
    row = statistics.paired(frame(Teacher=[9], BAN_1=[8])).to_dict("records")[0]
    text = words(findings.guess("BAN-1 errs less than BAN-2", row))
    assert "One seed cannot tell" in text and "labels x2" not in text


def test_a_time_box_counts_each_run_once():
    def run(name, seconds):
        return types.SimpleNamespace(run_id=name, results={"seconds": seconds}, environments=[{"hardware": "abacus"}])

    one, other = run("a", 60), run("b", 33)
    lineages = types.SimpleNamespace(runs={0: [one], 1: [other]})
    text = words(findings.time(20, lineages, [one]))
    assert "about 20 minutes" in text and "took 1.6 minutes of one process (abacus)" in text, "93 seconds are 1.55"
    assert "Reading" not in findings.time(None, [one])
