"""The paper's two result tables, and two of the 2018 version, as data: CIFAR-100 test error in %.

Typed from the paper's text. `params` and `forward_gmacs` are our own counts, layer by layer, beside the printed ones;
the networks of `banlib.models` are tested against them.
"""
from dataclasses import dataclass

import pandas as pd

CITATION = "Furlanello, Lipton, Itti and Anandkumar, Born Again Networks (2017 workshop version)"
CITATION_KEY = "furlanello2018born"


@dataclass(frozen=True)
class Row:
    """One network of a table.

    params_printed: in millions, as the paper prints it.    params: exact count, 100 classes, 3 input channels.
    forward_gmacs: 10**9 multiply-accumulates of one 32x32 image.
    errors: column -> test error in %, None where the paper prints none.
    note: where name and network, or the two counts, do not agree.
    """

    network: str
    params_printed: float
    params: int
    forward_gmacs: float
    errors: dict
    note: str = ""


def _table1(network, printed, params, gmacs, *errors, note=""):
    columns = ("Baseline", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3")
    return Row(network, printed, params, gmacs, dict(zip(columns, errors, strict=True)), note)


def _table2(network, printed, params, gmacs, *errors, note=""):
    return Row(network, printed, params, gmacs, dict(zip(("Baseline", "BAN"), errors, strict=True)), note)


# Table 1: a teacher, the sequence of its born-again networks, and the ensembles of that sequence.
TABLE1 = (
    _table1("DenseNetBC-112-33", 6.3, 6360761, 2.387, 18.25, 17.61, 17.22, 16.59, 15.77, 15.68,
            note="17 units per block, which is depth 106: the literal depth 112 has 18 units and 6.99 M parameters"),
    _table1("DenseNetBC-90-60", 16.1, 16240600, 5.938, 17.69, 16.62, 16.44, 16.72, 15.39, 15.74,
            note="a third 1x1 transition, without pooling, follows the last block: 15.19 M parameters without it"),
    _table1("DenseNetBC-80-80", 22.4, 22499100, 8.39, 17.3, 16.26, 16.3, 15.5, 15.46, 15.14,
            note="a third 1x1 transition, without pooling, follows the last block: 21.10 M parameters without it"),
    _table1("DenseNetBC-80-120", 50.4, 50479600, 18.875, 16.87, 16.13, 16.13, None, 15.13, 14.9,
            note="a third 1x1 transition, without pooling, follows the last block: 47.28 M parameters without it"),
)

_WITHOUT_ENDS = "the print leaves out the shared stem and classifier"
_NO_READING = "the print is not met: no reading tried fits both Match-Pre-ResNets (7.3 and 17.7 M)"

# Table 2: networks of other shapes, on labels alone and raised by a DenseNetBC-90-60.
TABLE2 = (
    _table2("PreActResNet-1001", 10.2, 10350836, 1.488, 22.71, None),
    _table2("MatchPreResNet-14-0.5", 7.3, 5730513, 1.699, 20.28, 18.8, note=_NO_READING),
    _table2("MatchPreResNet-14-1", 17.7, 20409726, 6.207, 18.84, 17.39, note=_NO_READING),
    _table2("WideResNet-28-10", 36, 36536884, 5.243, 18.63, None),
    _table2("WideResNet-28-20", 146, 145930804, 20.92, 17.64, None),
    _table2("MatchWideResNet-1-1", 20.9, 21068920, 5.555, 20.4, 19.12, note=_WITHOUT_ENDS),
    _table2("MatchWideResNet-2-1", 43.1, 43189480, 12.457, 18.83, 17.42, note=_WITHOUT_ENDS),
    _table2("MatchWideResNet-4-0.5", 24.3, 24407605, 7.093, 19.63, 17.13, note=_WITHOUT_ENDS),
    _table2("MatchWideResNet-4-1", 87.3, 87430600, 26.261, 18.77, 17.18, note=_WITHOUT_ENDS),
    _table2("MatchDenseNet-7-1-2", 21.2, 21346120, 8.241, None, 16.95),
    _table2("MatchDenseNet-14-0.5-1", 5.1, 5100940, 1.729, None, 19.83),
    _table2("MatchDenseNet-14-0.75-1.5", 10.1, 10161730, 3.561, None, 17.3),
    _table2("MatchDenseNet-14-1-3", 80.5, 40515018, 13.924, None, 18.89,
            note="the print is not met: we think it has a slip of one digit, for 40.5 M"),
    _table2("MatchDenseNet-28-1-2", 13.7, 13740760, 4.786, None, 16.43),
    _table2("MatchDenseNet-42-1-2", 12.9, 12954520, 4.402, None, 16.64),
    _table2("MatchDenseNet-56-1-2", 12.6, 12596680, 4.21, None, 16.64),
)

# The 2018 version of the same work: network -> objective of `banlib.objectives` -> test error of BAN-1 in %.
# "label" is the teacher, trained on labels alone.
LATER_OBJECTIVES = {
    "DenseNetBC-112-33": {"label": 18.25, "teacher": 16.95, "label+teacher": 17.68, "cwtm": 17.84, "dkpp": 17.84},
    "DenseNetBC-90-60": {"label": 17.69, "teacher": 16.69, "label+teacher": 16.93, "cwtm": 17.42, "dkpp": 17.43},
    "DenseNetBC-80-80": {"label": 17.16, "teacher": 16.36, "label+teacher": 16.5, "cwtm": 17.16, "dkpp": 16.84},
    "DenseNetBC-80-120": {"label": 16.87, "teacher": 16.0, "label+teacher": 16.41, "cwtm": 17.12, "dkpp": 16.34},
}

# The 2018 version's wide-ResNet teachers: printed parameters in millions, the teacher's error, and the errors of
# a student of the same network and of a DenseNetBC-90-60 student, all in %.
LATER_WIDE_RESNETS = {
    "WideResNet-28-1":
        {"params_printed": 0.38, "teacher": 30.05, "ban_same_network": 29.43, "ban_densenet_90_60": 24.93},
    "WideResNet-28-2":
        {"params_printed": 1.48, "teacher": 25.32, "ban_same_network": 24.38, "ban_densenet_90_60": 18.49},
    "WideResNet-28-5":
        {"params_printed": 9.16, "teacher": 20.88, "ban_same_network": 20.93, "ban_densenet_90_60": 17.52},
    "WideResNet-28-10":
        {"params_printed": 36, "teacher": 19.08, "ban_same_network": 18.25, "ban_densenet_90_60": 16.79},
}


def row(network):
    """The row of a network of table 1 or 2 by its canonical name (`banlib.models.parse`), or None."""
    return next((line for line in TABLE1 + TABLE2 if line.network == network), None)


def table1():
    """Table 1 as a data frame: a row per network, a column per printed error, NaN where the paper prints none."""
    return _frame(TABLE1)


def table2():
    """Table 2 as a data frame: a row per network, a column per printed error, NaN where the paper prints none."""
    return _frame(TABLE2)


def _frame(rows):
    frame = pd.DataFrame([{"network": line.network, "params_printed": line.params_printed, "params": line.params,
                           "forward_gmacs": line.forward_gmacs, **line.errors, "note": line.note} for line in rows])
    return frame.astype({column: float for column in rows[0].errors} | {"params_printed": float})
