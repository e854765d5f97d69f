"""The paper's two result tables, and two of the 2018 version, as data: CIFAR-100 test error in %.

Typed from the paper's text. `params` and `forward_gmacs` are our own counts, layer by layer, beside
the printed ones; the networks of `banlib.models` are tested against them. Nothing here needs torch.
"""

from dataclasses import dataclass

from banlib.runs.parameters import check_network, plain_python
from banlib.runs.recipe import BadInput


@dataclass(frozen=True)
class Row:
    """One network of a table.

    params_printed: in millions; params: exact, for 100 classes and 3 channels. forward_gmacs: 10**9
    multiply-accumulates of one 32x32 image. errors: {column: test error in %, None if not printed}.
    note: where name, network or counts differ.
    """

    network: str
    params_printed: float
    params: int
    forward_gmacs: float
    errors: dict
    note: str


UNMET = "the printed count is not met: "
NOTES = {  # by the beginning of the name, the first that fits
    "DenseNetBC-112-33": "read as 17 units per block (depth 106); depth 112 has 18, and 6.99 M",
    "DenseNetBC": "a third 1x1 transition, without pooling, follows the last block",
    "MatchPreResNet": UNMET + "no reading tried fits both (7.3 and 17.7 M)",
    "MatchWideResNet": "the printed count leaves out the shared stem and classifier",
    "MatchDenseNet-14-1-3": UNMET + "we think it has a slip of one digit, for 40.5 M",
}


def _columns(text):
    """{network: {column: number}} of a text whose first line names the columns; - is None."""
    (_, *names), *lines = (line.split() for line in text.strip().splitlines())
    numbers = {name: [None if v == "-" else float(v) for v in values] for name, *values in lines}
    return {name: dict(zip(names, values, strict=True)) for name, values in numbers.items()}


def _rows(text):
    rows = []
    for network, errors in _columns(text).items():
        printed, params, gmacs = (errors.pop(name) for name in ("printed", "params", "gmacs"))
        note = next((NOTES[start] for start in NOTES if network.startswith(start)), "")
        rows.append(Row(network, printed, int(params), gmacs, errors, note))
    return tuple(rows)


# A teacher, the sequence of its born-again networks, and the ensembles of that sequence.
TABLE1 = _rows("""
network           printed   params  gmacs Baseline BAN-1 BAN-2 BAN-3 Ens*2 Ens*3
DenseNetBC-112-33     6.3  6360761  2.387    18.25 17.61 17.22 16.59 15.77 15.68
DenseNetBC-90-60     16.1 16240600  5.938    17.69 16.62 16.44 16.72 15.39 15.74
DenseNetBC-80-80     22.4 22499100  8.39     17.3  16.26 16.3  15.5  15.46 15.14
DenseNetBC-80-120    50.4 50479600 18.875    16.87 16.13 16.13     - 15.13 14.9
""")

# Networks of other shapes, on labels alone and raised by a DenseNetBC-90-60.
TABLE2 = _rows("""
network                   printed    params  gmacs Baseline   BAN
PreActResNet-1001            10.2  10350836  1.488    22.71     -
MatchPreResNet-14-0.5         7.3   5730513  1.699    20.28 18.8
MatchPreResNet-14-1          17.7  20409726  6.207    18.84 17.39
WideResNet-28-10             36    36536884  5.243    18.63     -
WideResNet-28-20            146   145930804 20.92     17.64     -
MatchWideResNet-1-1          20.9  21068920  5.555    20.4  19.12
MatchWideResNet-2-1          43.1  43189480 12.457    18.83 17.42
MatchWideResNet-4-0.5        24.3  24407605  7.093    19.63 17.13
MatchWideResNet-4-1          87.3  87430600 26.261    18.77 17.18
MatchDenseNet-7-1-2          21.2  21346120  8.241        - 16.95
MatchDenseNet-14-0.5-1        5.1   5100940  1.729        - 19.83
MatchDenseNet-14-0.75-1.5    10.1  10161730  3.561        - 17.3
MatchDenseNet-14-1-3         80.5  40515018 13.924        - 18.89
MatchDenseNet-28-1-2         13.7  13740760  4.786        - 16.43
MatchDenseNet-42-1-2         12.9  12954520  4.402        - 16.64
MatchDenseNet-56-1-2         12.6  12596680  4.21         - 16.64
""")
TABLES = {1: TABLE1, 2: TABLE2}
NAMES = tuple(row.network for row in TABLE1 + TABLE2)

# The 2018 version: BAN-1's test error by objective of `banlib.objectives`; "label" is the teacher.
LATER_OBJECTIVES = _columns("""
network           label teacher label+teacher  cwtm  dkpp
DenseNetBC-112-33 18.25   16.95         17.68 17.84 17.84
DenseNetBC-90-60  17.69   16.69         16.93 17.42 17.43
DenseNetBC-80-80  17.16   16.36         16.5  17.16 16.84
DenseNetBC-80-120 16.87   16.0          16.41 17.12 16.34
""")

# Its wide-ResNet teachers, and a student of the same network and a DenseNetBC-90-60 as student.
LATER_WIDE_RESNETS = _columns("""
network          params_printed teacher ban_same_network ban_densenet_90_60
WideResNet-28-1            0.38   30.05            29.43              24.93
WideResNet-28-2            1.48   25.32            24.38              18.49
WideResNet-28-5            9.16   20.88            20.93              17.52
WideResNet-28-10          36      19.08            18.25              16.79
""")


def row(network):
    """The row of a network of table 1 or 2 by its canonical name, or None."""
    return next((line for line in TABLE1 + TABLE2 if line.network == network), None)


def check_table(value):
    """1 or 2, whatever a shell made of it."""
    if str(value) not in ("1", "2"):
        raise BadInput(f"table must be 1 or 2, got {value!r}")
    return int(value)


def check_rows(value="auto", table=None):
    """Networks of the tables as a tuple of canonical names: "auto" is all, else names or a list.

    table: 1 or 2 takes rows of that table alone. The paper's spellings are accepted.
    """
    known = [row.network for number in TABLES if table in (None, number) for row in TABLES[number]]
    wanted = plain_python(value)
    if isinstance(wanted, str):
        parts = [part.strip("[]()'\" ") for part in wanted.split(",")]
        wanted = known if value == "auto" else [part for part in parts if part]
    if not isinstance(wanted, list | tuple) or not wanted:
        example = ",".join(known[:2])
        raise BadInput(f"rows must be 'auto' or networks such as '{example}', got {value!r}")
    rows = tuple(dict.fromkeys(check_network(name) for name in wanted))
    for name in rows:
        if name not in known:
            where = "the paper's tables" if table is None else f"table {table}"
            raise BadInput(f"{name!r} is no row of {where}; the rows are {', '.join(known)}")
    return rows


def frame(table):
    """Table 1 or 2 as a data frame: a row per network, a column per printed error, else NaN."""
    import pandas as pd  # a second, which the checks above need not wait for

    rows = pd.DataFrame(TABLES[table])
    return rows.join(pd.DataFrame(list(rows.pop("errors")), dtype=float))


def audit(names=()):
    """Our counts beside the paper's, a dict for each network named, or of both tables.

    name, params, params_printed (millions), difference (ours from the paper's, in %), forward_macs
    (32x32 images), note (why the two, or name and network, do not agree); None and "" for a network
    that the paper does not count.
    """
    from banlib.models import forward_macs, params  # torch, likewise

    rows = []
    for name in names or NAMES:
        line, count = row(name), params(name)
        printed = line and line.params_printed
        beside = {"name": name, "params": count, "params_printed": printed}
        beside["difference"] = printed and round(100 * (count / printed / 1e6 - 1), 2)
        beside |= {"forward_macs": forward_macs(name), "note": line.note if line else ""}
        rows.append(beside)
    return rows
