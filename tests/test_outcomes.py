"""Results of the tables and of the clock, in words: whatever came out, and never without the missing control."""

import re

import pandas as pd
import pytest

from banlib.paper import outcomes, printed
from banlib.paper.ledger import VERDICTS
from test_findings import frame, words


def gains(shares, against="labels alone", half=3.0):
    rows = [
        {"network": name, "against": against, "points": share / 10, "share": share, "paper_share": 5.0, "ci95": half, "seeds": 8}
        for name, share in shares.items()
    ]
    return pd.DataFrame(rows, columns=["network", "against", "points", "share", "paper_share", "ci95", "seeds"])


def test_teaching_is_named_where_it_clearly_helps_or_harms():
    text = words(outcomes.taught(gains({"A": 10.0, "B": -10.0, "C": 1.0})))
    assert "lowers the error of A and raises that of B." in text and "labels x2" in text
    assert "lowers the error of none of these networks and raises that of none" in outcomes.taught(gains({"C": 1.0}))
    assert "lowers the error of none of these" in outcomes.taught(gains({"A": 10.0}, half=0.0)), "no width is not clear"
    assert words(outcomes.taught(gains({"A": 10.0}, half=None).assign(seeds=1))).startswith("One seed gives no interval")
    assert "No student" in outcomes.taught(gains({}))


def test_ends_are_compared_within_a_seed():
    def errors(values):
        rows = [("MatchWideResNet-2-1", "BAN", seed, value) for seed, value in enumerate(values)]
        return pd.DataFrame(rows, columns=["network", "column", "seed", "error"])

    text = words(outcomes.ends(errors([9.0, 8.0, 7.0]), errors([11.0, 10.1, 9.1])))
    assert "MatchWideResNet-2-1 with ends of its own does worse than the same network with shared ends by 2.07" in text
    assert "No student" in outcomes.ends(errors([]), errors([]))


def test_the_best_of_three_is_counted_in_the_paper_and_here():
    """Row 4-0.5: 17.13 against a teacher's 17.69 and 19.63 untaught; here the teacher is best."""
    name = "MatchWideResNet-4-0.5"
    both = pd.concat([gains({name: -20.0}, "teacher"), gains({name: -5.0})])
    rows = [(name, column, error, 6.0) for column, error in (("Baseline", 7.0), ("BAN", 8.0))]
    by_seed = pd.DataFrame(rows, columns=["network", "column", "error", "reference"])
    text = words(outcomes.order(by_seed, both))
    assert text.startswith(
        "Of 1 row, the best of the three by mean error was the student 1 time in the paper and 0 times here, "
        "the teacher 0 times in the paper and 1 time here and the untaught"
    )
    assert "half as wide makes 20 ± 3 % more errors than its teacher here; in the paper, 5 % fewer." in text
    assert "labels x2" in text
    assert "no order" in outcomes.order(by_seed, gains({}))


def test_counts_of_parameters_that_differ_are_named():
    text = words(outcomes.networks(pd.DataFrame(printed.audit())))
    assert text.startswith("17 of 20 networks") and "MatchDenseNet-14-1-3 has 40.52 million where the paper has 80.5" in text


def board(verdicts, **columns):
    usual = {"network": "N", "column": "BAN", "profile": "digits", "why": "undecided (+1.00 points)", "share": 1.0}
    usual |= {"paper_share": 2.0, "improvement": 1.0, "improvement_ci95": 0.5, "control_gain": 0.3}
    return pd.DataFrame({"verdict": list(verdicts)}).assign(**usual | columns)


def test_what_did_not_hold_up_has_its_reasons():
    why = ["undecided (+1)", "value within; the other sign (-1)", "another effect, 3 times", "the paper's sign, 0.1 times"]
    text = words(outcomes.missed(board(["not"] * 4, why=why)))
    assert text.startswith("4 numbers did not hold up: 1 with ") and len(re.findall(r"\b1 with", text)) == 4
    assert "No verdict for `N` `BAN`: no run." in outcomes.missed(board(["not run"], why="no run")), "a star is no markup"
    assert "No verdict for 7 numbers: no run." in words(outcomes.missed(board(["not run"] * 7, why="no run")))
    assert "Nothing has been measured" in outcomes.missed(board(["not run"], profile=None))


def test_limits_say_what_is_missing():
    assert "paper's own networks" in outcomes.limits(board(VERDICTS)) and "control" not in outcomes.limits(board(VERDICTS))
    lacking = words(outcomes.limits(board(["partly"], control_gain=None, profile="cifar100")))
    assert lacking.startswith("For 1 of 1 student") and "labels x2" in lacking


def test_signs_are_counted_and_an_interval_without_width_is_not_clear():
    text = words(outcomes.signs(board(["partly", "not", "reproduced"], share=[1.0, -1.0, 2.0], improvement_ci95=[0.5, 0.5, 0.0])))
    assert text == (
        "Of 3 differences from a reference, 2 have the paper's sign here, and 1 of these are clear of zero. "
        "1 number counts as reproduced."
    )
    assert "can't be checked" in outcomes.signs(board(["not run"], share=None))


@pytest.mark.parametrize(
    "gain, expected", [(-2.0, "cwtm clearly beats the teacher"), (0.0, "no objective clearly beats the teacher")]
)
def test_objectives_name_what_clearly_gains_beside_each_control(gain, expected):
    teacher = [9.0, 8.6, 8.8]
    same = [9.3, 8.2, 8.9]
    own = [error + gain + small for error, small in zip(teacher, (0.1, -0.1, 0.0), strict=True)]
    names = ("teacher", "label+teacher, halved", "dkpp", "labels, restarted", "labels x2")
    errors = frame(Teacher=teacher, cwtm=own, **dict.fromkeys(names, same))
    text = words(outcomes.objectives(errors))
    assert expected in text and "labels x2" in text and "labels, restarted" in text
    assert outcomes.objectives(errors.query("seed == 0")).startswith("One seed gives no interval")
    table = outcomes.verdicts(errors)
    assert table["improves in the paper"].tolist() == [f"{n} of 4 networks" for n in (4, 4, 2, 4)]
    assert "By mean test error the order is" in words(outcomes.ranking(errors))


MEASURED = {
    "network": "N", "hardware": "abacus", "precision": "fp32", "images_per_second": {"plain": 10},
    "ratio_to_usual_loop": {"plain": 2.5, "distill_remembered": 3.25},
    "ratio_range": {"plain": [2.0, 3.0], "distill_remembered": [3.0, 4.0]},
    "distill_over_plain": {
        name: {"median": median} for name, median in
        (("distill_online", 1.26), ("distill_remembered", 1.16), ("distill_later", 1.01))},
}  # fmt: skip
PLAN = [{"workers": 1, "seconds": 800.0, "idle": 0.0}, {"workers": 16, "seconds": 200.0, "idle": 75.0}]


def test_speeds_and_plans_in_words():
    assert "2.50 times as fast on labels alone (2.00 to 3.00 over the rounds)" in words(outcomes.speedup(MEASURED))
    assert "16 workers finish the plan 4.0 times as fast as 1, and are idle for 75 %" in words(outcomes.workers(PLAN))
    text = words(outcomes.scale(MEASURED, 0.575, PLAN))
    assert text.startswith("Asking a teacher about every batch made training 26 % longer.")
    assert "43 % of what a teacher is asked" in text and "Asking" not in outcomes.scale(None, 0.5, PLAN)
    table = outcomes.predictions([MEASURED])
    assert table["measured"].tolist() == [2.5, 3.25, 1.26, 1.16, 1.01, 3.25]
    assert words(outcomes.held(table)).startswith("5 of 6 predictions held. Missed: labels alone, times")
    assert words(outcomes.held(table[1:3])) == "2 of 2 predictions held."


def test_a_campaign_is_told_by_step_and_seed():
    rows = [
        {"step": "controls", "runs": 10, "finished": 7, "seeds": [0, 3]},
        {"step": "table 2", "runs": 30, "finished": 0, "seeds": []},
    ]
    text = words(outcomes.campaign(rows))
    assert "by step of the plan: controls 7 of 10 (all of seeds 0 and 3) and table 2 0 of 30. banlib campaign trains" in text
