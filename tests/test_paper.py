"""The paper's numbers, typed in banlib/paper/printed.py, against the CSVs and the text that they come from."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from banlib.paper import printed as paper

CSVS = Path(__file__).resolve().parents[2] / "shared" / "paper"


def read(name):
    if not (CSVS / name).is_file():
        pytest.skip("needs the paper's CSVs beside the checkout")
    with open(CSVS / name, newline="") as lines:
        return [
            {
                key: value if key in ("network", "final_transition") else float(value) if value else None
                for key, value in line.items()
            }
            for line in csv.DictReader(lines)
        ]


def same_row(row, line, columns):
    assert row.network == line["network"]
    assert (row.params_printed, row.params, row.forward_gmacs) == (
        line["params_printed_M"],
        line["params_ours"],
        line["forward_GMACs"],
    )
    assert row.errors == {ours: line[theirs] for ours, theirs in columns.items()}


def test_table1_is_the_csv():
    lines = read("table1.csv")
    columns = {
        "Baseline": "baseline",
        "BAN-1": "ban1",
        "BAN-2": "ban2",
        "BAN-3": "ban3",
        "Ens*2": "ens2",
        "Ens*3": "ens3",
    }
    for row, line in zip(paper.TABLE1, lines, strict=True):
        same_row(row, line, columns)


def test_table2_is_the_csv():
    for row, line in zip(paper.TABLE2, read("table2.csv"), strict=True):
        same_row(row, line, {"Baseline": "baseline", "BAN": "ban"})


def test_later_objectives_are_the_csv():
    columns = {
        "label": "teacher",
        "teacher": "teacher_only",
        "label+teacher": "label_and_teacher",
        "cwtm": "cwtm",
        "dkpp": "dkpp",
    }
    lines = read("later_objectives.csv")
    typed = {line["network"]: {ours: line[theirs] for ours, theirs in columns.items()} for line in lines}
    assert typed == paper.LATER_OBJECTIVES
    assert all(set(line) == {"network", *columns.values()} for line in lines)


def test_later_wide_resnets_are_the_csv():
    typed = {}
    for line in read("later_wide_resnets.csv"):
        network, printed = line.pop("network"), line.pop("params_printed_M")
        typed[network] = {"params_printed": printed, **line}
    assert typed == paper.LATER_WIDE_RESNETS


def test_every_printed_error_is_there():
    def printed(table):
        return [error for row in table for error in row.errors.values() if error is not None]

    # Table 1: 4 networks x 6 columns, less BAN-3 of 80-120. Table 2: 9 baselines and 13 BANs.
    assert (len(printed(paper.TABLE1)), len(printed(paper.TABLE2))) == (4 * 6 - 1, 9 + 13)


def test_numbers_that_the_papers_text_repeats():
    assert paper.row("DenseNetBC-112-33").errors["BAN-3"] == 16.59  # "a single-error model of 16.59"
    assert paper.row("DenseNetBC-112-33").errors["Ens*3"] == 15.68
    assert min(row.errors["BAN-3"] for row in paper.TABLE1[:3]) == 15.5  # "15.5 % with a single model"
    assert min(row.errors["Ens*3"] for row in paper.TABLE1) == 14.9  # "14.9 % with our best ensemble"
    assert paper.row("DenseNetBC-80-120").errors["BAN-3"] is None


def test_row_of_an_unprinted_network_is_none():
    assert paper.row("DenseNetBC-40-12") is None


def test_prints_that_ours_do_not_meet_are_explained():
    for row in paper.TABLE1 + paper.TABLE2:
        if abs(row.params / 1e6 - row.params_printed) > 0.02 * row.params_printed:
            assert "count is not met" in row.note, row.network


def test_frames_hold_the_tables():
    frame1, frame2 = paper.frame(1), paper.frame(2)
    assert (len(frame1), len(frame2)) == (4, 16)
    assert list(frame1.network) == [row.network for row in paper.TABLE1]
    assert math.isnan(frame1.set_index("network").loc["DenseNetBC-80-120", "BAN-3"])
    assert frame2.set_index("network").loc["MatchWideResNet-4-0.5", "BAN"] == 17.13
    assert frame1[["Baseline", "BAN-3"]].dtypes.eq(float).all() and frame2[["Baseline", "BAN"]].dtypes.eq(float).all()


def test_the_audit_counts_every_network_and_meets_the_paper_but_where_it_says():
    rows = paper.audit()
    assert [row["name"] for row in rows] == list(paper.NAMES) and len(rows) == 20
    for row, line in zip(rows, paper.TABLE1 + paper.TABLE2, strict=True):
        assert (row["params"], row["note"]) == (line.params, line.note)
        assert row["forward_macs"] / 1e9 == pytest.approx(line.forward_gmacs, abs=5e-4)
        assert row["difference"] == pytest.approx(100 * (line.params / 1e6 / line.params_printed - 1), abs=0.006)


@pytest.mark.parametrize("value, table", [("DenseNetBC-90-60", 2), ("WideResNet-28-10", 1), ("DenseNetBC-40-12", None)])
def test_a_row_that_the_table_lacks_is_refused(value, table):
    with pytest.raises(ValueError, match="is no row of .*; the rows are "):
        paper.check_rows(value, table)


@pytest.mark.parametrize("value", ["", ",", [], None, 3, {}])
def test_rows_must_be_names(value):
    with pytest.raises(ValueError, match="rows must be 'auto' or networks such as 'DenseNetBC-112-33,"):
        paper.check_rows(value)


@pytest.mark.parametrize(
    "value",
    [
        "Match-Wide-ResNet-2-1, Wide-ResNet-28-10,WideResNet-28-10",
        ["MatchWideResNet-2-1", "WideResNet-28-10"],
        ("MatchWideResNet-2-1", "WideResNet-28-10"),
        "['MatchWideResNet-2-1', 'WideResNet-28-10']",
        np.array(["MatchWideResNet-2-1", "WideResNet-28-10"]),
    ],
)
def test_rows_as_people_give_them(value):
    assert paper.check_rows(value) == ("MatchWideResNet-2-1", "WideResNet-28-10")


def test_all_rows_or_a_suggestion():
    assert paper.check_rows("auto", 1) == tuple(row.network for row in paper.TABLE1)
    assert paper.check_rows() == paper.NAMES
    with pytest.raises(ValueError, match="did you mean 'DenseNetBC-90-60'"):
        paper.check_rows("DenseNet-90-60")


@pytest.mark.parametrize("value", [0, 3, "x", None, 1.5, "both"])
def test_a_table_is_1_or_2(value):
    assert (paper.check_table("1"), paper.check_table(2)) == (1, 2)
    with pytest.raises(ValueError, match="table must be 1 or 2, got"):
        paper.check_table(value)


def test_the_tables_wait_for_nothing_slow():
    """A row is checked before a chapter imports torch or pandas."""
    command = "import sys; from banlib.paper import printed; printed.check_rows(); "
    command += "print({'torch', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
