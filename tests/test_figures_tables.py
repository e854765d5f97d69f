"""Figures of chapters 4, 6 and 7: panels narrow enough for a phone, which say what they show."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from banlib.figures import speed, tables
from banlib.paper import printed
from banlib.paper.ledger import VERDICTS
from test_figures import drawn, look  # noqa: F401

CELLS = [(row, column, e) for row in printed.TABLE2 for column, e in row.errors.items() if e is not None]


def panels(figures):
    texts = [drawn(figure) for figure in figures]
    assert all(figure.get_figwidth() <= 4.2 for figure in figures), "400 pixels on a phone"
    return texts


def test_a_matched_student_has_the_teachers_boundaries():
    texts = panels(tables.matched_diagram([(120, 960, 480), (480, 1320, 660), (660, 1500, 750)], [240, 330, 375]))
    assert len(texts) == 2 and all("stage 3" in text and "660" in text and "750" in text for text in texts)


def test_errors_against_size_count_the_winners():
    kinds = {"Baseline": "labels alone", "BAN": "taught"}
    sizes = [("", "teacher", 16e6, 17.69)] + [(row.network, kinds[c], row.params, e) for row, c, e in CELLS]
    sizes = pd.DataFrame(sizes, columns=["network", "kind", "params", "error"]).assign(ci95=np.nan)
    both = pd.concat([sizes.assign(source=tables.PAPER), sizes.assign(source="measured", ci95=0.5)])
    paper, measured = panels(tables.error_against_parameters(both))
    assert "9 of 13 students below" in paper and "9 of 13 students below" in measured
    assert "The paper" in paper and "Measured" in measured


@pytest.mark.parametrize("share, clear, arrow", [(5.0, 13, False), (-250.0, 0, True)])
def test_students_far_off_are_arrows_with_their_share(share, clear, arrow):
    gains = [
        {"network": row.network, "against": against, "share": share, "paper_share": 6.0, "ci95": 2.0}
        for row, column, _ in CELLS
        for against in ("teacher", "labels alone")
        if column == "BAN"
    ]
    for text in panels(tables.students_gain(pd.DataFrame(gains))):
        assert f"clearly better in {clear} of 13" in text and ("\N{MINUS SIGN}250 %" in text) == arrow
    for text in panels(tables.students_gain(pd.DataFrame(gains).assign(ci95=0.0))):
        assert "clearly better in 0 of 13" in text, "an interval without width is not clear"


def test_the_ledger_has_a_panel_for_each_profile_and_keeps_the_roles_colors():
    rows = [(c, v, p, 3.0, 4.0) for c in ("Baseline", "BAN", "Ens*2") for v in VERDICTS for p in ("digits", "cifar100-lite")]
    board = pd.DataFrame(rows, columns=["column", "verdict", "profile", "share", "paper_share"])
    figures = tables.ledger_overview(board)
    faces = [c for f in figures for dots in f.axes[0].collections for c in [*dots.get_facecolors(), *dots.get_edgecolors()]]
    assert all(np.ptp(face[:3]) < 0.1 for face in faces), "verdicts are shades of gray: colors belong to models"
    digits, lite = panels(figures)
    each = f"{3 * len(VERDICTS)} of {3 * len(VERDICTS)}"
    assert f"digits: {each}" in digits and f"cifar100-lite: {each}" in lite and "ensembles" in digits
    assert tables.ledger_overview(board.iloc[:0]) == []


def test_speeds_and_plans():
    [text, *_] = panels(speed.speed(speed.measurements("loop")))
    assert "times as fast as the usual loop" in text and "labels alone" in text
    rows = [{"workers": n, "seconds": 86_400 / n, "idle": 10.0 * n} for n in (1, 4)]
    days, idle = panels(speed.makespan(rows))
    assert "days of training" in days and "idle, % of their time" in idle
    assert plt.get_fignums() == []
