"""What people type, by hand, through a shell or papermill, and what they are told."""

import math
import subprocess
import sys
import time

import nbformat
import numpy
import pandas
import papermill
import pytest
import torch

from banlib.runs.parameters import (
    check_jobs,
    check_minutes,
    check_network,
    check_parameters,
    check_seeds,
)
from banlib.runs.recipe import PROFILES, BadInput


def test_nothing_slow_is_imported():
    """A chapter refuses a bad value within two seconds of its kernel's start."""
    code = """
import sys
from banlib.runs import recipe
from banlib.runs.parameters import check_parameters
try:
    check_parameters("digits", "DenseNet-90-60", 3, "4,7")
except ValueError as error:
    print(error)
check_parameters("digits", "DenseNetBC-40-12", 3, "4,7")
print([name for name in ("torch", "numpy", "pandas", "scipy", "IPython") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    refusal, imported = told.splitlines()
    assert "did you mean 'DenseNetBC-90-60'" in refusal and imported == "[]"


@pytest.mark.parametrize("value, gens", [
    (0, 0), (3, 3), (20, 20), ("3", 3), (" 3 ", 3), (3.0, 3), (numpy.int64(3), 3), (numpy.float32(3), 3),
    (numpy.array(3), 3), (torch.tensor(3), 3),
])  # fmt: skip
def test_gens(value, gens):
    found = check_parameters(gens=value).gens
    assert found == gens and type(found) is int


@pytest.mark.parametrize("value", [
    -1, 21, 10**9, "three", "1e3", 1e3, "nan", math.nan, math.inf, None, "None", True, 2.5, [3], "", "9" * 5000, "३",
    "1_0", "0x3", b"3", numpy.nan, numpy.bool_(True), numpy.array([3, 4]), numpy.float64(2.5), 3j, range(3), 10**400,
    pandas.DataFrame({"a": [1, 2]}),
])  # fmt: skip
def test_bad_gens_are_one_sentence(value):
    with pytest.raises(BadInput, match="^gens must be an integer from 0 to 20, got ") as caught:
        check_parameters(gens=value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("value, seeds", [
    (3, (0, 1, 2)), ("3", (0, 1, 2)), ("4,7", (4, 7)), ([4, 7], (4, 7)), ("4,", (4,)), ("4, 7", (4, 7)), ((0,), (0,)),
    ("[4,7]", (4, 7)), ("[4, 7]", (4, 7)), ("(4, 7)", (4, 7)), ("[4]", (4,)), (" [4 7] ", (4, 7)),
    (range(2, 5), (2, 3, 4)), ("[4", (4,)), (["4", 7], (4, 7)), ({4}, (4,)),
    (numpy.int64(2), (0, 1)), (numpy.arange(3), (0, 1, 2)), (numpy.array([4.0, 7.0]), (4, 7)), ([numpy.int32(4)], (4,)),
    (pandas.Series([4, 7]), (4, 7)), (torch.tensor([4, 7]), (4, 7)), (iter([4, 7]), (4, 7)),
    (100, tuple(range(100))), ([2**31 - 1], (2**31 - 1,)),
])  # fmt: skip
def test_seeds(value, seeds):
    found = check_seeds(value)
    assert found == seeds and {type(seed) for seed in found} == {int}


@pytest.mark.parametrize("value", [
    0, -1, 10**9, "three", "4,4", "4,x", [], [1.5], ["a"], None, "nan", {}, "-1,2", ",", "4_7", "[4_7]", "4 7", "[]",
    "range(3)", 101, range(10**9), range(0), numpy.array([]), numpy.array([[4, 7]]), numpy.array([0.5]), {4: 7}, b"4",
    [4, None], [True], True, [2**31], [[4, 7]], list(range(101)), "auto",
])  # fmt: skip
def test_bad_seeds_are_one_sentence(value):
    with pytest.raises(BadInput, match="^seeds must be a count from 1 to 100 or a list of different seeds") as caught:
        check_seeds(value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_an_endless_list_of_seeds_is_refused():
    with pytest.raises(BadInput, match="^seeds must be a count"):
        check_seeds(iter(int, 1))


@pytest.mark.parametrize("value, minutes", [(1, 1), ("0.5", 0.5), (numpy.float32(2), 2), ("1e2", 100)])
def test_minutes_are_a_deadline_of_the_clock_that_nobody_sets_back(value, minutes):
    assert 60 * minutes <= check_minutes(value) - time.monotonic() + 0.5 <= 60 * minutes + 0.5
    assert check_minutes(None) == math.inf


@pytest.mark.parametrize("value", [0, -1, "nan", "inf", math.inf, "ten", "", [1], True, 10**400])
def test_bad_minutes_are_one_sentence(value):
    with pytest.raises(BadInput, match="^minutes must be a number above 0, got "):
        check_minutes(value)


def test_jobs():
    assert [check_jobs(value) for value in ("auto", 1, "4", 256, numpy.int64(3))] == [None, 1, 4, 256, 3]
    for value in (0, 257, "two", None, 1.5, True, "1_0"):
        with pytest.raises(BadInput, match="^jobs must be 'auto' or an integer from 1 to 256, got "):
            check_jobs(value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(BadInput, match="unknown profile 'digit'; did you mean 'digits'"):
        check_parameters(profile="digit")
    with pytest.raises(BadInput, match="unknown network 'DenseNet-90-60'; did you mean 'DenseNetBC-90-60'"):
        check_network("DenseNet-90-60")
    with pytest.raises(BadInput, match=r"unknown parameter 'seed'; did you mean 'seeds'\? \(one of: profile, network"):
        check_parameters(seed=2)
    with pytest.raises(BadInput, match=r"unknown parameter 'lr'; .*\(one of: profile, network, gens, seeds\)$"):
        check_parameters(lr=2)


@pytest.mark.parametrize("value", [None, 3, [], numpy.array(["digits", "auto"])])
def test_profiles_and_networks_that_are_no_names_are_refused(value):
    with pytest.raises(BadInput, match="^unknown profile"):
        check_parameters(profile=value)
    with pytest.raises(BadInput, match="a network is a name"):
        check_parameters(network=value)


def test_parameters_leave_to_the_profile_what_is_not_said():
    profile = PROFILES["digits"]
    for settings in (check_parameters("digits"), check_parameters("digits", "auto", "auto", "auto")):
        assert settings == (profile, profile.network, profile.gens, tuple(range(profile.seeds)), None)
    with pytest.raises(BadInput, match="gens must be an integer from 0 to 20, got None"):
        check_parameters(gens=None)
    assert check_parameters("cifar100", "DenseNetBC-40-12", "2", "5,6")[1:4] == ("DenseNetBC-40-12", 2, (5, 6))
    assert check_parameters("digits", "auto", numpy.int64(1), numpy.array([5, 6])).seeds == (5, 6)


# Through papermill


@pytest.fixture
def chapter(tmp_path):
    """A notebook that does what chapters do first."""
    cells = [
        nbformat.v4.new_code_cell("profile = 'digits'\nseeds = 'auto'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from banlib.runs.parameters import check_parameters\nprint(check_parameters(profile, seeds=seeds).seeds)"
        ),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "chapter.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def papermill_run(chapter, *parameters):
    """(exit status, all that its cells said) of `papermill chapter.ipynb out.ipynb ...`."""
    out = chapter.with_name("out.ipynb")
    command = [sys.executable, "-m", "papermill", chapter, out, "--no-progress-bar", *parameters]
    done = subprocess.run(command, capture_output=True, text=True, cwd=chapter.parent)
    outputs = [output for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", [])]
    return done.returncode, "".join(str(o.get("text", "")) + "\n".join(o.get("traceback", [])) for o in outputs)


def test_papermill_passes_lists_and_refuses_what_it_would_turn_into_something_else(chapter):
    assert papermill_run(chapter, "-p", "seeds", "[4,7]") == (0, "(4, 7)\n")
    status, told = papermill_run(chapter, "-p", "seeds", "4_7")
    assert status != 0 and "seeds must be a count from 1 to 100" in told and "got '4_7'" in told
    status, told = papermill_run(chapter, "-p", "seed", "2")
    assert status != 0 and "unknown parameter 'seed'; did you mean 'seeds'? (one of: profile, seeds)" in told


def test_a_parameter_that_a_chapter_lacks_is_refused_from_python_too(chapter):
    out = chapter.with_name("out.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'gens'"):
        papermill.execute_notebook(chapter, out, {"gens": 3}, progress_bar=False)
