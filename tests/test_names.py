"""What a network's name says: numbers, channels, the paper's spellings, and what bad names are told."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import banlib
from banlib.names import MATCHED_TEACHER, boundaries, edges_of, parse
from banlib.paper.printed import NAMES

ROOT = Path(__file__).parents[1]

# As tables 1 and 2 print them.
PRINTED = """DenseNetBC-112-33, DenseNetBC-90-60, DenseNetBC-80-80, DenseNetBC-80-120, Pre-activation ResNet-1001,
    Match-Pre-ResNet-14-0.5, Match-Pre-ResNet-14-1, Wide-ResNet-28-10, Wide-ResNet-28-20, Match-Wide-ResNet-1-1,
    Match-Wide-ResNet-2-1, Match-Wide-ResNet-4-0.5, Match-Wide-ResNet-4-1, Match-DenseNet-7-1-2,
    Match-DenseNet-14-0.5-1, Match-DenseNet-14-0.75-1.5, Match-DenseNet-14-1-3, Match-DenseNet-28-1-2,
    Match-DenseNet-42-1-2, Match-DenseNet-56-1-2"""


def test_the_papers_spellings():
    assert tuple(parse(name.strip())[0] for name in PRINTED.split(",")) == NAMES


@pytest.mark.parametrize(
    "name, canonical, family, args",
    [
        (
            "DenseNetBC-112-33",
            "DenseNetBC-112-33",
            "DenseNetBC",
            dict(depth=112, growth=33, units=17, final_transition=False),
        ),
        (
            "DenseNetBC-90-60-t3",
            "DenseNetBC-90-60",
            "DenseNetBC",
            dict(depth=90, growth=60, units=14, final_transition=True),
        ),
        (
            "DenseNetBC-040-12-t3",
            "DenseNetBC-40-12-t3",
            "DenseNetBC",
            dict(depth=40, growth=12, units=6, final_transition=True),
        ),
        ("Wide-ResNet-28-2", "WideResNet-28-2", "WideResNet", dict(depth=28, width=2)),
        (
            "Match-Wide-ResNet-2-1.0@DenseNetBC-90-60",
            "MatchWideResNet-2-1",
            "MatchWideResNet",
            dict(units=2, ratio=1, teacher="DenseNetBC-90-60"),
        ),
        (
            "MatchDenseNet-3-0.50-1.5@DenseNetBC-40-12",
            "MatchDenseNet-3-0.5-1.5@DenseNetBC-40-12",
            "MatchDenseNet",
            dict(units=3, ratio_in=0.5, ratio_out=1.5, teacher="DenseNetBC-40-12"),
        ),
    ],
)
def test_parse(name, canonical, family, args):
    assert parse(name) == (canonical, family, args)
    assert parse(canonical) == (canonical, family, args)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("DenseNet-90-60", "DenseNetBC-90-60"),
        ("densenetbc-40-12", "DenseNetBC-40-12"),
        ("ResNet-28-2", "WideResNet-28-2"),
        ("WideResnet_28_10", "WideResNet-28-10"),
        ("DenseNet-7-1-2", "MatchDenseNet-7-1-2"),
        (" DenseNetBC-40-12\n", "DenseNetBC-40-12"),
        ("WideResNet-28-10-t3", "WideResNet-28-10"),
        ("DenseNetBC-40-12@DenseNetBC-40-12", "DenseNetBC-40-12"),
        ("MatchWideResnet-2-1@DenseNetBC-40-12", "MatchWideResNet-2-1@DenseNetBC-40-12"),
        ("MatchWideResNet-2-1@", "MatchWideResNet-2-1"),
        ("MatchWideResNet-2-1@DenseNet-40-12", "DenseNetBC-40-12"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, meant):
    with pytest.raises(ValueError) as problem:
        parse(name)
    assert str(problem.value).endswith(f"did you mean {meant!r}? (banlib networks lists all)")
    assert str(problem.value).startswith("unknown network ")


def test_a_suggestion_is_a_name():
    """Families are tried until one takes the numbers; where none does, no name is suggested."""
    for name in ("DenseNetBC-90-6O", "PreActResNets-1000", "", "DenseNetBC", "ResNext-50"):
        with pytest.raises(ValueError) as problem:
            parse(name)
        form = "expected a name such as 'DenseNetBC-90-60' (banlib networks lists all)"
        assert str(problem.value) == f"unknown network {name!r}; {form}"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("", "unknown network ''"),
        ("x" * 10**6, "unknown network 'xxx"),
        ("-1" * 10**5 + "x", "unknown network '-1-1"),
        ("DenseNetBC", "unknown network"),
        (None, "a network is a name such as"),
        (3, "got 3"),
        (["DenseNetBC-40-12"], "a network is a name such as"),
        (b"DenseNetBC-40-12", "a network is a name such as"),
        (float("nan"), "got nan"),
        ("DenseNetBC-3-12", "10 or more"),
        ("DenseNetBC-9-12", "10 or more"),
        ("DenseNetBC-0-12", "from 1 to 2000, got 0"),
        ("DenseNetBC-40-0", "growth of 'DenseNetBC-40-0' must be an integer from 1 to 1000, got 0"),
        ("DenseNetBC-40-1000000000", "got 1000000000"),
        ("DenseNetBC-1000000000-12", "got 1000000000"),
        ("DenseNetBC-40-1.5", "must be an integer"),
        ("DenseNetBC-40", "1 numbers, expected 2: DenseNetBC-depth-growth"),
        ("DenseNetBC-40-12-3", "3 numbers, expected 2"),
        ("WideResNet-29-10", "6 n + 4"),
        ("WideResNet-4-10", "6 n + 4"),
        ("PreActResNet-1000", "9 n + 2"),
        ("PreActResNet-2", "9 n + 2"),
        ("MatchWideResNet-0-1", "from 1 to 500"),
        ("MatchWideResNet-2-0", "from 0.01 to 16, got 0"),
        ("MatchWideResNet-2-0.1@DenseNetBC-10-1", "take a larger ratio"),
        ("MatchDenseNet-14-0-2", "from 0.01 to 16, got 0"),
        ("MatchDenseNet-14-1-0.1", "take a larger second ratio"),
        ("MatchDenseNet-500-1-0.5", "take a larger second ratio"),
        ("MatchWideResNet-2-1@WideResNet-28-10", "must be a DenseNetBC"),
        ("MatchWideResNet-2-1@DenseNetBC-3-12", "10 or more"),
    ],
)
def test_bad_names_take_one_sentence(name, expected):
    with pytest.raises(ValueError) as problem:
        parse(name)
    assert expected in str(problem.value)
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 250


# Channels


def test_boundaries_of_any_teacher():
    assert boundaries((14, 14, 14), 60, True) == [(120, 960, 480), (480, 1320, 660), (660, 1500, 750)]
    assert edges_of(MATCHED_TEACHER) == boundaries((14, 14, 14), 60, True)
    # 40-12: 24 + 6 x 12 = 96, halved 48; + 72 = 120, halved 60; + 72 = 132, which the classifier sees.
    assert edges_of("DenseNetBC-40-12") == [(24, 96, 48), (48, 120, 60), (60, 132, 132)]
    assert boundaries((1, 1, 1), 5, True) == [(10, 15, 7), (7, 12, 6), (6, 11, 5)], "an odd count by floor"


def test_a_name_is_read_without_torch():
    """So that a bad one is refused at once, before a second of imports."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import banlib.names; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"


def test_the_package_says_what_is_public_and_imports_it_late():
    code = "import sys, banlib; print('torch' in sys.modules, [getattr(banlib, name).__name__ for name in banlib.__all__])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said == f"False {banlib.__all__}\n"
    assert all(re.search(rf"^    {name} ", banlib.__doc__, flags=re.M) for name in banlib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        banlib.train  # noqa: B018
