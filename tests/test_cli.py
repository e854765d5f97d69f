"""The command line as a shell meets it: what is on which stream, with which exit code, and what is left on disk."""

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from banlib import book, models
from banlib.cli import commands, main, shared
from banlib.cli.group import group
from banlib.paper import printed
from banlib.paper.ledger import VERDICTS
from banlib.runs import datasets, fit, lineage
from banlib.runs.recipe import CONTROLS, PROFILES, Settings
from banlib.runs.store import Store
from conftest import TINY, recipe, tiny_spec


@pytest.fixture
def banlib(capsys):
    """Run a command in this process; (exit code, standard output, standard error)."""

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        return left.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def tiny(monkeypatch):
    """The default profile with a network and a recipe that train in a fraction of a second."""
    profile = PROFILES["digits"]._replace(network="DenseNetBC-10-4", recipe=TINY)
    monkeypatch.setitem(PROFILES, "digits", profile)


def strict(text):
    """JSON as its standard has it: Python's own NaN and Infinity are refused."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def is_one_line(err):
    return err.startswith("banlib: ") and err.count("\n") == 1 and err.endswith("\n")


def home():
    return Path(os.environ["BANLIB_HOME"])


def all_commands(group=group, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, (*words, name))
        else:
            yield (*words, name), command


# Every command


@pytest.mark.parametrize("words, command", [pytest.param(*found, id="-".join(found[0])) for found in all_commands()])
def test_every_command_has_help_and_json(words, command, banlib):
    code, out, err = banlib(*words, "--help")
    assert code == 0 and err == "" and f"Usage: banlib {' '.join(words)}" in out
    assert "--json" in out or words == ("lab",), "lab opens a program and has nothing to print"
    assert len(command.help) > 60 and command.short_help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help


def test_help_and_version_load_nothing_slow():
    """Not torch, pandas or papermill, which take seconds."""
    told = modules_after("--help", "--version", "lineage --help", "book --help", "linage")
    assert told == {"codes": [0, 0, 0, 0, 2], "slow": []}


def modules_after(*lines):
    """The commands' exit codes, run after each other in one process, and which slow modules that imported."""
    code = """
import contextlib, io, json, sys
from banlib.cli import main
codes = []
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(line.split())
        except SystemExit as left:
            codes.append(left.code)
slow = sorted({"torch", "pandas", "numpy", "papermill", "scipy", "sklearn", "matplotlib"} & set(sys.modules))
print(json.dumps({"codes": codes, "slow": slow}))
"""
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_asked_is_answered_with_help(banlib):
    assert banlib() == banlib("--help") and "lineage" in banlib()[1]
    assert banlib("runs") == banlib("runs", "--help")
    assert "75" in banlib("--help")[1], "the exit code that means `start it again` is not told"


def test_version(banlib):
    assert banlib("--version") == (0, f"banlib {importlib.metadata.version('banlib')}\n", "")


def test_choices_are_those_of_the_library():
    from banlib.cli import train
    from banlib.runs import accelerate, campaign, engines

    assert set(commands.NAMES) == {*datasets.DATASETS, *datasets.DEV}
    assert set(shared.SPEED_UPS) <= set(accelerate.NAMES)
    assert tuple(shared.ENGINE.choices) == engines.ENGINES
    assert train.STEPS == campaign.STEPS


EARLY = {
    "lineage --gens -1": "gens must be an integer from 0 to 20, got '-1'",
    "lineage --gens three": "gens must be an integer from 0 to 20, got 'three'",
    "lineage --seeds 4,4": "seeds must be a count from 1 to 100 or a list of different seeds such as '4,7', got '4,4'",
    "lineage --profile digit": "unknown profile 'digit'; did you mean 'digits'?",
    "lineage --network DenseNet-90-60": "unknown network 'DenseNet-90-60'; did you mean 'DenseNetBC-90-60'?",
    "lineage --jobs 0": "jobs must be 'auto' or an integer from 1 to 256, got '0'",
    "lineage --jobs two": "jobs must be 'auto' or an integer from 1 to 256, got 'two'",
    "lineage --minutes 0": "minutes must be a number above 0, got '0'",
    "lineage --minutes inf": "minutes must be a number above 0, got 'inf'",
    "lineage --genz 3": "No such option '--genz'. Did you mean",
    "lineage --teacher-memory on": "'on' is not one of 'auto', 'online', 'remembered'",
    "lineage --accelerate compile,turbo": "'turbo' is not one of 'compile', 'cuda-graph', 'pad-channels'",
    "lineage --engine there": "'there' is not one of 'auto', 'here', 'processes', 'ray'",
    "linage": "No such command 'linage'. Did you mean 'lineage'?",
    "runs lst": "No such command 'lst'. Did you mean 'list'?",
    "runs show abcd": "no run starts with 'abcd'",
    "table 1 --workers 1,4": "--workers and --speed need --dry-run; --jobs trains side by side",
    "table 1 --speed 3": "--workers and --speed need --dry-run; --jobs trains side by side",
    "runs show ../../etc": "no run starts with '../../etc'",
    "runs list --store nowhere": "Directory 'nowhere' does not exist",
    "networks WideResNet-28": "has 1 numbers, expected 2",
    "data digit": "'digit' is not one of 'digits', 'cifar10', 'cifar100'",
    "data": "Missing argument 'NAME'",
    "table 3": "table must be 1 or 2, got '3'",
    "table 1 --rows WideResNet-28-10": "'WideResNet-28-10' is no row of table 1",
    "table 2 --rows MatchWideResnet-2-1": "did you mean 'MatchWideResNet-2-1'",
    "table 1 --own-ends": "--teacher and --own-ends are for table 2",
    "table 1 --profile digit": "did you mean 'digits'",
    "table 1 --seeds 0": "seeds must be a count",
    "table 1 --minutes soon": "minutes must be a number above 0, got 'soon'",
    "table 1 --dry-run --speed 0": "0.0 is not in the range x>0",
    "table 1 --dry-run --workers 1,none": "workers must be an integer from 1 to 256, got 'none'",
    "ledger --table three": "table must be 1 or 2, got 'three'",
    "ledger --profile lite": "unknown profile 'lite'; did you mean",
    "campaign --minutes -1": "minutes must be a number above 0, got '-1'",
    "campaign --jobs none": "jobs must be 'auto' or an integer",
    "book --profile digit": "unknown profile 'digit'; did you mean 'digits'?",
    "book -p genz 5": "unknown parameter 'genz'; did you mean 'gens'?",
    "book -p gens three": "gens must be an integer from 0 to 20, got 'three'",
    "book -p seeds 4_7": "seeds must be a count",
}
LATE = {
    "lineage --network DenseNetBC-2000-900": "parameters, more than the 1,000 M allowed here",
    "lineage --device cuda:99": "device 'cuda:99' is not here; found: cpu",
    "table 2 --teacher WideResNet-28-10": "teacher of table 2 must be a DenseNetBC",
    "book --device cudaa": "device 'cudaa' is not here",
    "book -p device cudaa": "device 'cudaa' is not here",
    "campaign --steps nine": "nine",
}


@pytest.mark.parametrize("line", EARLY | LATE)
def test_bad_input_is_one_sentence_and_creates_nothing(line, banlib, monkeypatch, chapter):
    monkeypatch.setattr(fit, "fit", lambda *args, **how: pytest.fail("it trained"))
    code, out, err = banlib(*line.split())
    assert code == 2 and out == "" and is_one_line(err) and (EARLY | LATE)[line] in err
    assert not home().exists() and not (chapter / "_build").exists()


def test_bad_input_is_refused_before_anything_slow_is_imported():
    told = modules_after(*EARLY)
    assert told == {"codes": [2] * len(EARLY), "slow": []}


@pytest.mark.parametrize("error, code, text", [
    (ValueError("bad pixels"), 2, "bad pixels"),
    (FileNotFoundError("no cifar100\nin sight"), 1, "no cifar100 in sight"),
    (RuntimeError("run ab12 diverged"), 1, "run ab12 diverged"),
    (LookupError("no run ab12"), 1, "no run ab12"),
    (KeyError("train"), 1, "KeyError: 'train'"),
    (MemoryError("4 GB"), 1, "MemoryError: 4 GB"),
])  # fmt: skip
def test_a_failure_is_one_line_and_a_code(error, code, text, banlib, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(datasets, "load", fail)
    assert banlib("data", "digits", "--json") == (code, "", f"loading digits\nbanlib: {text}\n")
    monkeypatch.setenv("BANLIB_DEBUG", "1")
    with pytest.raises(type(error)):  # and so a traceback
        main(["data", "digits"])


# Stops


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_says_that_running_again_goes_on(banlib, monkeypatch, number, code):
    before = signal.getsignal(number)
    monkeypatch.setattr(lineage, "raise_lineages", lambda *args, **how: os.kill(os.getpid(), number))
    left, out, err = banlib("lineage", "--json")
    assert left == code and out == "" and "again" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("banlib: ") and "Traceback" not in err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
@pytest.mark.parametrize("module", ["click", "torch"])
def test_a_stop_while_something_is_imported_leaves_at_once(tmp_path, module, number, code):
    """Where exceptions are caught: a stand-in for the module swallows whatever is raised in it."""
    swallow = f"""
import os, sys, time
try:
    os.kill(os.getpid(), {int(number)})
    time.sleep(1)
except BaseException:
    pass
sys.exit(9)
"""
    (tmp_path / f"{module}.py").write_text(swallow)
    done = subprocess.run(
        [sys.executable, "-m", "banlib", "lineage", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "") and is_one_line(done.stderr) and "again" in done.stderr
    assert not home().exists()


def test_a_closed_pipe_is_quiet():
    """As in `banlib networks | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "banlib", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""


# networks, data


def test_networks_lists_both_tables(banlib):
    code, out, err = banlib("networks", "--json")
    rows = strict(out)
    assert code == 0 and [row["name"] for row in rows] == list(printed.NAMES)
    for row, line in zip(rows, printed.TABLE1 + printed.TABLE2, strict=True):
        assert set(row) == {"name", "params", "params_printed", "forward_macs", "note", "difference"}
        assert (row["params"], row["params_printed"], row["note"]) == (line.params, line.params_printed, line.note)
        assert row["forward_macs"] / 1e9 == pytest.approx(line.forward_gmacs, abs=5e-4)
    assert rows[0]["difference"] == 0.96  # 6,360,761 against 6.3 M printed: 1.00965
    _, table, _ = banlib("networks")
    head, *lines = table.splitlines()
    end = head.index("params") + len("params")
    assert [line[:end].split()[-1] for line in lines] == [str(row["params"]) for row in rows], "columns are not aligned"
    assert all(row["note"] in table for row in rows)


def test_networks_takes_any_name(banlib):
    rows = strict(banlib("networks", "--json", "DenseNetBC-40-12", "Wide-ResNet-28-10")[1])
    assert [row["name"] for row in rows] == ["DenseNetBC-40-12", "WideResNet-28-10"]
    assert rows[0]["params"] == models.params("DenseNetBC-40-12")
    assert rows[0]["params_printed"] is None and rows[0]["difference"] is None
    assert rows[1]["params_printed"] == 36


def test_data_tells_counts_and_digest(banlib):
    code, out, err = banlib("data", "digits", "--json")
    told, digits = strict(out), datasets.load("digits")
    assert code == 0 and told["digest"] == digits.digest
    assert (told["source"], told["path"], told["decoded"]) == ("scikit-learn", None, None)
    assert told["train"] == {"images": 100, "shape": [1, 8, 8], "images_per_class": [10] * 10}
    assert told["test"]["images"] == sum(told["test"]["images_per_class"]) == 1000
    assert told["classes"] == list(digits.classes)
    _, table, _ = banlib("data", "digits")
    assert digits.digest in table and "train.images" in table and "10, 10, 10" in table


# lineage


def test_lineage_reports_what_the_store_holds(banlib, tiny, store):
    code, out, err = banlib("lineage", "--gens", 2, "--seeds", "4,7", "--jobs", 1, "--json")
    told = strict(out)
    assert code == 0 and "DenseNetBC-10-4 BAN-2 seed 7" in err
    assert list(told) == ["profile", "network", "seeds", "generations", "ensembles", "controls", "runs"]
    assert (told["profile"], told["network"], told["seeds"]) == ("digits", "DenseNetBC-10-4", [4, 7])
    assert [row["name"] for row in told["generations"]] == ["Teacher", "BAN-1", "BAN-2"]
    assert [row["name"] for row in told["ensembles"]] == ["Ens*2", "Ens*3"]
    labels = datasets.load("digits").test.labels
    for generation, row in enumerate(told["generations"]):
        runs = [store.load(told["runs"][seed][generation]) for seed in ("4", "7")]
        assert [(run.spec.seed, run.spec.generation) for run in runs] == [(4, generation), (7, generation)]
        wrong = [(run.probabilities.argmax(1) != labels).sum().item() for run in runs]
        assert row["errors"] == pytest.approx([count / 10 for count in wrong])  # % of 1,000 images
        assert row["mean"] == pytest.approx(sum(wrong) / 20)
        # Two values: the standard error is half their distance, the 97.5 % quantile of t is tan(0.475 pi).
        assert row["ci95"] == pytest.approx(math.tan(0.475 * math.pi) * abs(wrong[0] - wrong[1]) / 20)


def test_lineage_has_the_controls_beside(banlib, tiny, store):
    command = ("lineage", "--gens", 1, "--seeds", 2, "--jobs", 1)
    told = strict(banlib(*command, "--json")[1])
    assert [row["name"] for row in told["controls"]] == list(CONTROLS)
    names = ["labels x2", "label+teacher, halved", "teacher", "labels, restarted"]
    assert list(CONTROLS) == names and len(store.ids()) == 2 * (2 + len(names))
    by_name = {}
    for run in map(store.load, store.ids()):
        by_name.setdefault(run.spec.name, {})[run.spec.seed] = run.error
    for row in told["controls"]:
        assert row["errors"] == pytest.approx([by_name[row["name"]][seed] for seed in (0, 1)])
    _, out, _ = banlib(*command)
    assert all(name in out for name in names)
    assert "BAN-1" in out and "labels x2" in out.splitlines()[-3]


def test_lineage_without_controls(banlib, tiny, store):
    told = strict(banlib("lineage", "--gens", 1, "--seeds", 1, "--jobs", 1, "--no-controls", "--json")[1])
    assert told["controls"] == [] and len(store.ids()) == 2
    assert strict(banlib("lineage", "--gens", 0, "--seeds", 1, "--jobs", 1, "--json")[1])["controls"] == []


def test_lineage_again_trains_nothing_and_one_seed_has_no_interval(banlib, tiny, store):
    first = banlib("lineage", "--gens", 1, "--seeds", "3,", "--json")
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    code, out, err = banlib("lineage", "--gens", 1, "--seeds", "3,", "--json")
    assert (code, out) == first[:2] == (0, first[1])
    assert before == {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert [row["ci95"] for row in strict(out)["generations"]] == [None, None]


def test_lineage_sets_the_papers_row_beside(banlib, tiny, monkeypatch):
    command = ("lineage", "--gens", 1, "--seeds", 2, "--jobs", 1)
    _, out, _ = banlib(*command)
    assert "paper" not in out
    row = dataclasses.replace(printed.TABLE1[0], network="DenseNetBC-10-4")
    monkeypatch.setattr(printed, "row", lambda network: row)
    code, out, _ = banlib(*command)
    lines = out.splitlines()
    [head] = [line for line in lines if "paper" in line]
    teacher, student = (next(line for line in lines if line.startswith(name)) for name in ("Teacher", "BAN-1"))
    end = head.index("paper, CIFAR-100") + len("paper, CIFAR-100")
    assert code == 0 and teacher[:end].endswith("18.25") and student[:end].endswith("17.61")
    assert "seeds 0, 1" in lines[-1] and "fp32" in lines[-1]


def test_no_gain_is_claimed_without_the_control_beside(banlib, tiny):
    """Wherever a teacher is beaten, the same line says what `labels x2` does, or that it was not run."""
    for controls in ([], ["--no-controls"]):
        _, out, _ = banlib("lineage", "--gens", 1, "--seeds", 2, "--jobs", 1, *controls)
        student = next(line for line in out.splitlines() if line.startswith("BAN-1 "))
        claims = [student, *(line for line in out.splitlines() if "its teacher" in line)]
        assert all("labels x2" in line for line in claims) and len(claims) > (not controls)


def test_a_failed_lineage_is_a_failure(banlib, tiny, monkeypatch):
    wild = PROFILES["digits"]._replace(recipe=recipe(lr=1e30))
    monkeypatch.setitem(PROFILES, "digits", wild)
    code, out, err = banlib("lineage", "--gens", 1, "--seeds", 1, "--json")
    assert code == 1 and out == "" and "diverged in epoch 1" in err.splitlines()[-1] and "blocked: BAN-1" in err


# Tables and the ledger

ROWS = ("--rows", "MatchWideResNet-1-1,Wide-ResNet-28-10", "--seeds", 2, "--jobs", 1)


@pytest.fixture
def small_tables(monkeypatch):
    profile = PROFILES["digits"]._replace(recipe=recipe(epochs=1, lr_milestones=()))
    monkeypatch.setitem(PROFILES, "digits", profile)


def test_a_table_is_planned_trained_and_set_beside_the_paper(banlib, small_tables, store):
    code, out, err = banlib("table", 2, *ROWS, "--dry-run", "--json")
    told = strict(out)
    assert code == 0 and store.ids() == []
    assert (told["runs"], told["finished"], told["missing"], told["epochs"]) == (8, 0, 8, 8) and told["seconds"] > 0
    assert sum(entry["runs"] for entry in told["networks"]) == 8
    assert told["flops"] == sum(entry["flops"] for entry in told["networks"]) > 0 and told["jobs"] == 1

    code, out, err = banlib("table", 2, *ROWS, "--json")
    told = strict(out)
    assert code == 0 and len(store.ids()) == 8
    assert [(c["network"], c["column"], c["paper"], c["seeds"]) for c in told["cells"]] == [
        ("WideResNet-28-10", "Baseline", 18.63, 2), ("MatchWideResNet-1-1", "Baseline", 20.4, 2),
        ("MatchWideResNet-1-1", "BAN", 19.12, 2)]  # fmt: skip
    assert told["seeds"] == [0, 1] and told["share_ends"] is True

    code, out, _ = banlib("table", 2, *ROWS)
    assert code == 0 and "MatchWideResNet-1-1@DenseNetBC-16-8" in out and "19.12" in out.splitlines()[3]
    code, out, _ = banlib("table", 2, *ROWS, "--dry-run")
    assert code == 0 and {tuple(line.split()) for line in out.splitlines()} >= {("finished", "8"), ("missing", "0")}


def test_the_time_on_more_workers_is_computed_from_a_stated_speed(banlib, small_tables, store):
    """Four pairs of teacher and student, none finished: the chain of one pair is what no number of workers shortens."""
    line = ("table", 2, "--rows", "MatchWideResNet-1-1", "--seeds", 4, "--dry-run", "--json", "--speed", 0.001)
    told = strict(banlib(*line, "--workers", "1,2,64")[1])
    one, two, many = told["workers"]
    assert [row["workers"] for row in told["workers"]] == [1, 2, 64] and store.ids() == []
    assert one["seconds"] == pytest.approx(told["flops"] / 1e9) == pytest.approx(told["seconds"]) and one[
        "idle"
    ] == pytest.approx(0)
    assert one["seconds"] / 2.001 < two["seconds"] < one["seconds"] and many["seconds"] < two["seconds"]
    assert many["idle"] == pytest.approx(100 * (1 - one["seconds"] / (64 * many["seconds"])))
    assert "idle" in banlib(*line[:-3], *line[-2:], "--workers", 4)[1]


def test_a_plan_is_a_line_for_each_missing_run(banlib, tiny, store):
    """From teachers to students, with what determines each; finished runs are left out."""
    command = ("lineage", "--gens", 2, "--seeds", 2, "--no-controls", "--plan")
    lines = [strict(line) for line in banlib(*command)[1].splitlines()]
    assert [(line["spec"]["generation"], line["spec"]["seed"]) for line in lines] == [(g, s) for s in (0, 1) for g in (0, 1, 2)]
    assert all(set(line) == {"id", "spec", "teacher"} and line["teacher"] == line["spec"]["teacher"] for line in lines)
    assert store.ids() == [] and lines[1]["teacher"] == lines[0]["id"]
    banlib("lineage", "--gens", 1, "--seeds", 1, "--jobs", 1, "--no-controls")
    assert [strict(line) for line in banlib(*command)[1].splitlines()] == lines[2:]
    assert len(banlib("lineage", "--gens", 1, "--seeds", 1, "--plan")[1].splitlines()) == len(CONTROLS)
    assert len(banlib("table", 1, "--rows", "DenseNetBC-80-120", "--seeds", 2, "--plan")[1].splitlines()) == 2 * 3


def test_a_loop_carries_a_plan_one_line_at_a_time(banlib, tiny, store, tmp_path, monkeypatch):
    """As in README's loop: a run that is done is not trained again, and one whose teacher is missing says so."""
    command = ("lineage", "--gens", 1, "--seeds", 1, "--no-controls")
    teacher, student = banlib(*command, "--plan")[1].splitlines()
    (tmp_path / "line").write_text(student)
    code, out, err = banlib("run", "--spec", tmp_path / "line", "--device", "cpu", "--json")
    assert code == 1 and out == "" and is_one_line(err) and f"no finished run {strict(teacher)['id']}" in err
    for line in (teacher, student, student):
        monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
        code, out, err = banlib("run", "--spec", "-", "--store", tmp_path / "runs", "--device", "cpu", "--json")
        told, run = strict(out), Store(tmp_path / "runs").load(strict(line)["id"])
        assert code == 0 and told == {"id": run.run_id, "folder": str(run.folder), "results": run.results}
    assert len(run.environments) == 1 and run.environments[0]["threads"] == 1 and not store.root.exists()
    assert banlib(*command, "--store", tmp_path / "runs", "--plan")[:2] == (0, "")


@pytest.mark.parametrize("harm, said", [
    (lambda line: "no JSON", "Expecting value"),
    (lambda line: "", "Expecting value"),
    (lambda line: json.dumps([line]), "list indices"),
    (lambda line: json.dumps(line | {"id": "0" * 16}), "the id is 0000000000000000, the spec hashes to"),
    (lambda line: json.dumps(line | {"spec": line["spec"] | {"seed": -1}}), "seed: Input should be greater than or equal to 0"),
    (lambda line: json.dumps({"id": line["id"]}), "it lacks 'spec'"),
    (lambda line: json.dumps(line) + "\n" + json.dumps(line), "Extra data"),
])  # fmt: skip
def test_a_bad_line_is_refused_in_one_sentence(banlib, monkeypatch, harm, said):
    spec = tiny_spec()
    line = {"id": spec.run_id, "spec": spec.model_dump(mode="json"), "teacher": None}
    monkeypatch.setattr("sys.stdin", io.StringIO(harm(line)))
    code, out, err = banlib("run", "--spec", "-")
    assert code == 2 and out == "" and is_one_line(err) and said in err
    assert err.startswith("banlib: --spec must be one line of a --plan, which has an id and a spec: ")
    assert not (home() / "runs").exists()


def test_a_plan_of_another_format_is_not_trained_under_its_ids(banlib, monkeypatch, store):
    spec = tiny_spec().model_copy(update={"format": 7})
    line = {"id": spec.run_id, "spec": spec.model_dump(mode="json"), "teacher": None}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(line)))
    code, out, err = banlib("run", "--spec", "-", "--device", "cpu")
    assert code == 2 and out == "" and is_one_line(err) and "has format 7, this version of banlib trains format 1" in err
    assert store.ids() == []


def test_jobs_of_an_unset_variable_are_refused(banlib):
    code, out, err = banlib("table", 1, "--dry-run", "--jobs", "")
    assert code == 2 and out == "" and "jobs must be 'auto' or an integer from 1 to 256, got ''" in err


def test_a_table_of_other_ends_is_another_table(banlib, small_tables, store):
    rows = ("--rows", "MatchWideResNet-1-1", "--seeds", 1, "--jobs", 1, "--json")
    banlib("table", 2, *rows)
    told = strict(banlib("table", 2, *rows, "--own-ends")[1])
    assert told["share_ends"] is False
    assert len(store.ids()) == 4, "teacher and baseline are the same, the student is not"


def test_how_runs_are_trained_reaches_them(banlib, small_tables, store):
    remembered = "table 2 --rows MatchWideResNet-1-1 --seeds 1 --jobs 1 --teacher-memory remembered --json"
    online = "lineage --network DenseNetBC-10-4 --seeds 1 --gens 1 --teacher-memory online --engine here"
    banlib(*remembered.split())
    banlib(*online.split(), "--deterministic", "--accelerate", "pad-channels", "--no-controls", "--json")
    told = {}
    for run_id in store.ids():
        run = store.load(run_id)
        names = ("teacher", "deterministic", "accelerate")
        told[run.spec.network, run.spec.generation] = [run.environments[0].get(name) for name in names]
    assert told["MatchWideResNet-1-1@DenseNetBC-16-8", 1] == ["remembered in float32", False, []]
    assert told["DenseNetBC-10-4", 1] == ["online", True, ["pad-channels"]]


def test_a_failed_table_is_a_failure(banlib, monkeypatch):
    wild = PROFILES["digits"]._replace(recipe=recipe(lr=1e30))
    monkeypatch.setitem(PROFILES, "digits", wild)
    code, out, err = banlib("table", 2, "--rows", "MatchWideResNet-1-1", "--seeds", 1, "--jobs", 1, "--json")
    assert code == 1 and out == "" and "blocked: BAN-1" in err.splitlines()[-1]


def test_the_ledger_has_every_printed_error(banlib, store):
    code, out, _ = banlib("ledger", "--json")
    rows = strict(out)
    assert code == 0 and len(rows) == 45
    first = "table network column paper measured ci95 seeds profile hardware commit difference verdict"
    assert list(rows[0])[:12] == first.split()
    assert {row["verdict"] for row in rows} <= set(VERDICTS)
    [shipped] = [row for row in rows if (row["network"], row["column"]) == ("DenseNetBC-90-60", "Baseline")]
    lite = PROFILES["cifar100-lite"]
    specs = [spec for [spec, *_] in lineage.plan(Settings(lite, lite.network, 0, tuple(range(16)))).values()]
    records = Store(lineage.RESULTS)
    teachers = [records.load(spec.run_id).error for spec in specs if records.status(spec.run_id) == "finished"]
    assert shipped["profile"] == lite.name and shipped["measured"] == pytest.approx(sum(teachers) / len(teachers))
    assert next(row for row in rows if row["network"] == "PreActResNet-1001")["measured"] is None
    assert not store.root.exists(), "reading made something"


def test_the_ledger_in_other_forms(banlib):
    code, out, _ = banlib("ledger", "--table", 2, "--csv")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 1 + 22 and lines[0].startswith("table,network,column,paper,measured,")
    code, out, _ = banlib("ledger", "--profile", "cifar100", "--why")
    assert code == 0 and "0 reproduced, 0 partly, 0 not" in out and "45 not run" in out and "McNemar" in out


ALONE = [sys.executable, "-m", "banlib", "lineage", "--network", "DenseNetBC-10-4", "--seeds", "1", "--json"]


def test_json_is_alone_on_standard_output():
    done = subprocess.run([*ALONE, "--gens", "0"], capture_output=True, text=True)
    assert done.returncode == 0 and strict(done.stdout)["runs"].keys() == {"0"}
    assert "DenseNetBC-10-4 Teacher seed 0" in done.stderr and "loss" in done.stderr


def test_sigterm_ends_with_75_and_the_same_command_goes_on(banlib, store):
    command = [*ALONE[:5], "DenseNetBC-16-8", *ALONE[6:], "--gens", "0"]  # seconds of training
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not list(store.root.glob("live/*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        time.sleep(1)  # some of its 80 epochs
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 75 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == "banlib: stopped by SIGTERM; what is finished is kept, start it again to go on"
    [row] = strict(banlib("runs", "list", "--json")[1])
    assert banlib(*command[3:])[0] == 0
    run = store.load(row["id"])
    assert row["status"] == "live" and 0 < row["epochs"] < len(run.metrics) and len(run.environments) == 2


# book


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A checkout whose book is one chapter with parameters and nothing to do."""
    root = tmp_path / "checkout"
    (root / "book").mkdir(parents=True)
    source = "profile = 'digits'\nnetwork = 'auto'\ngens = 'auto'\nseeds = 'auto'\ndevice = 'auto'"
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": source}
    cell |= {"outputs": [], "execution_count": None}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (root / "book/01_teacher.ipynb").write_text(json.dumps(notebook))
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/00_preface\nchapters:\n- file: book/01_teacher\n")
    monkeypatch.setattr(book, "find_root", lambda given=None: root)
    return root


def test_book_passes_its_options_on(banlib, monkeypatch, tmp_path):
    asked = []

    def build(*args, **options):
        print("progress of a tool that prints")
        asked.append((args, options))
        return book.Built(tmp_path / "index.html" if options["render"] else None, {"01_teacher": 3.0}, ("01_teacher",))

    monkeypatch.setattr(book, "build", build)
    line = "book --profile cifar100-lite --device cpu -p gens 2 -p seeds 4,7 -p network DenseNetBC-10-4 --json"
    code, out, err = banlib(*line.split())
    assert code == 0 and strict(out) == {
        "page": str(tmp_path / "index.html"), "seconds": {"01_teacher": 3.0}, "ran": ["01_teacher"]
    }  # fmt: skip
    parameters = {"gens": 2, "seeds": "4,7", "network": "DenseNetBC-10-4"}
    assert asked == [(("cifar100-lite", "cpu", parameters), {"force": False, "render": True})]
    code, out, err = banlib("book", "--force", "--no-render")
    assert asked[1] == (("digits", "auto", {}), {"force": True, "render": False}) and "01_teacher" in out


def test_a_chapter_that_fails_is_a_failure(banlib, monkeypatch):
    def build(*args, **options):
        raise book.BookError("The pages have 1 warnings:\n  01_teacher.md:3: WARNING: unknown document")

    monkeypatch.setattr(book, "build", build)
    code, out, err = banlib("book", "--json")
    assert code == 1 and out == "" and err.startswith("banlib: The pages have 1 warnings:\n  01_teacher.md:3: ")
