"""The command line as a shell meets it: what is on which stream, with which exit code, and what is left on disk."""

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from conftest import TINY, interrupted_in, recipe, tiny_spec

from banlib import book, data, lineage, models, paper, training
from banlib.__main__ import main
from banlib.recipe import PROFILES
from banlib.store import Diverged, Store


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of two runs, a teacher and its student, to be copied."""
    root = tmp_path_factory.mktemp("trained")
    teacher = training.fit(tiny_spec(), Store(root), progress=False)
    training.fit(tiny_spec(1, teacher.run_id), Store(root), progress=False)
    return root


@pytest.fixture
def filled(store, trained):
    """The default store, holding those two. Returns (store, teacher's id, student's id)."""
    shutil.copytree(trained, store.root)
    teacher = tiny_spec().run_id
    return store, teacher, tiny_spec(1, teacher).run_id


@pytest.fixture
def stopped(store):
    """The id of a run that was interrupted in its third epoch."""
    with interrupted_in(3):
        training.fit(tiny_spec(seed=5), store, progress=False)
    return tiny_spec(seed=5).run_id


def strict(text):
    """JSON as its standard has it: Python's own NaN and Infinity are refused."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def is_one_line(err):
    return err.startswith("banlib: ") and err.count("\n") == 1 and err.endswith("\n")


def home():
    return Path(os.environ["BANLIB_HOME"])


def flip_a_bit(path, byte):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


def all_commands(group=main, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, (*words, name))
        else:
            yield (*words, name), command


# Every command


@pytest.mark.parametrize("words, command", [pytest.param(*found, id="-".join(found[0])) for found in all_commands()])
def test_every_command_has_help_and_json(words, command, banlib):
    code, out, err = banlib(*words, "--help")
    assert code == 0 and err == "" and f"Usage: banlib {' '.join(words)}" in out and "--json" in out
    assert len(command.help) > 60 and command.short_help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help


def test_help_and_version_load_nothing_slow():
    """Not torch, pandas or papermill, which take seconds."""
    code = """
import sys
from banlib.__main__ import main
for words in (["--help"], ["--version"], ["lineage", "--help"], ["book", "--help"], ["linage"]):
    try:
        main(words)
    except SystemExit:
        pass
slow = {"torch", "pandas", "numpy", "papermill", "scipy"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_asked_is_answered_with_help(banlib):
    assert banlib() == banlib("--help") and "lineage" in banlib()[1]
    assert banlib("runs") == banlib("runs", "--help")
    assert "75" in banlib("--help")[1], "the exit code that means `start it again` is not told"


def test_version(banlib):
    assert banlib("--version") == (0, f"banlib {importlib.metadata.version('banlib')}\n", "")


BAD = {
    "lineage --gens -1": "gens must be an integer from 0 to 20, got '-1'",
    "lineage --gens three": "gens must be an integer from 0 to 20, got 'three'",
    "lineage --seeds 4,4": "seeds must be a count from 1 to 100 or a list of different seeds such as '4,7', got '4,4'",
    "lineage --profile digit": "unknown profile 'digit'; did you mean 'digits'?",
    "lineage --network DenseNet-90-60": "unknown network 'DenseNet-90-60'; did you mean 'DenseNetBC-90-60'?",
    "lineage --network DenseNetBC-2000-900": "parameters, more than the 1,000 M allowed here",
    "lineage --device cuda:99": "device 'cuda:99' is not here; found: cpu",
    "lineage --jobs 0": "jobs must be 'auto' or an integer from 1 to 256, got '0'",
    "lineage --jobs two": "jobs must be 'auto' or an integer from 1 to 256, got 'two'",
    "lineage --genz 3": "Did you mean",
    "linage": "no command 'linage'; did you mean 'lineage'?",
    "runs lst": "no command 'lst'; did you mean 'list'?",
    "runs show abcd": "no run starts with 'abcd'",
    "runs show ../../etc": "no run starts with '../../etc'",
    "runs list --store nowhere": "there is no folder 'nowhere'",
    "networks WideResNet-28": "has 1 numbers, expected 2",
    "data digit": "unknown dataset 'digit'; did you mean 'digits'?",
    "data": "Missing argument 'NAME'; see banlib data --help",
    "book --profile digit": "unknown profile 'digit'; did you mean 'digits'?",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_creates_nothing(line, banlib, monkeypatch, chapter):
    monkeypatch.setattr(training, "fit", lambda *args: pytest.fail("it trained"))
    code, out, err = banlib(*line.split())
    assert code == 2 and out == "" and is_one_line(err) and BAD[line] in err
    assert not home().exists()


@pytest.mark.parametrize("error, code, text", [
    (ValueError("bad pixels"), 2, "bad pixels"),
    (FileNotFoundError("no cifar100\nin sight"), 1, "no cifar100 in sight"),
    (RuntimeError("run ab12 diverged"), 1, "run ab12 diverged"),
    (LookupError("no run ab12"), 1, "no run ab12"),
    (KeyError("train"), 1, "KeyError: 'train'"),
])  # fmt: skip
def test_a_failure_is_one_line_and_a_code(error, code, text, banlib, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(data, "load", fail)
    assert banlib("data", "digits", "--json") == (code, "", f"loading digits\nbanlib: {text}\n")
    monkeypatch.setenv("BANLIB_DEBUG", "1")
    with pytest.raises(type(error)):  # and so a traceback
        main(["data", "digits"])


def test_an_interrupt_and_a_sigterm_say_that_running_again_goes_on(banlib, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    for how, code in ((interrupted, 130), (lambda *args, **options: os.kill(os.getpid(), signal.SIGTERM), 75)):
        monkeypatch.setattr(lineage, "raise_lineages", how)
        left, out, err = banlib("lineage", "--json")
        assert left == code and out == "" and err.splitlines()[-1].startswith("banlib: ") and "again" in err
    assert signal.getsignal(signal.SIGTERM) is before


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
    assert code == 0 and [row["name"] for row in rows] == list(models.NAMES)
    for row, line in zip(rows, paper.TABLE1 + paper.TABLE2, strict=True):
        assert set(row) == {"name", "params", "params_printed", "forward_macs", "note", "difference"}
        assert (row["params"], row["params_printed"], row["note"]) == (line.params, line.params_printed, line.note)
        assert row["forward_macs"] / 1e9 == pytest.approx(line.forward_gmacs, abs=5e-4)
    assert rows[0]["difference"] == 0.96  # 6,360,761 against 6.3 M printed: 1.00965
    _, table, _ = banlib("networks")
    lines = table.split("\n\n")[0].splitlines()
    ends = {line.index(f"{count:,}") + len(f"{count:,}") for line, count in zip(lines[1:], (r["params"] for r in rows))}
    assert len(lines) == 21 and ends == {lines[0].index("parameters") + len("parameters")}, "columns are not aligned"
    assert all(row["note"] in table for row in rows)


def test_networks_takes_any_name(banlib):
    rows = strict(banlib("networks", "--json", "DenseNetBC-40-12", "Wide-ResNet-28-10")[1])
    assert [row["name"] for row in rows] == ["DenseNetBC-40-12", "WideResNet-28-10"]
    assert rows[0]["params"] == models.params("DenseNetBC-40-12")
    assert rows[0]["params_printed"] is None and rows[0]["difference"] is None
    assert rows[1]["params_printed"] == 36


def test_data_tells_counts_and_digest(banlib):
    code, out, err = banlib("data", "digits", "--json")
    told, digits = strict(out), data.load("digits")
    assert code == 0 and told["digest"] == digits.digest
    assert (told["source"], told["path"], told["decoded"]) == ("scikit-learn", None, None)
    assert told["train"] == {"images": 100, "shape": [1, 8, 8], "images_per_class": [10] * 10}
    assert told["test"]["images"] == sum(told["test"]["images_per_class"]) == 1000
    assert told["classes"] == list(digits.classes)
    _, table, _ = banlib("data", "digits")
    assert digits.digest in table and "100 images" in table and "10 of each class" in table


# lineage


def test_lineage_reports_what_the_store_holds(banlib, tiny, store):
    code, out, err = banlib("lineage", "--gens", 2, "--seeds", "4,7", "--jobs", 1, "--json")
    told = strict(out)
    assert code == 0 and "DenseNetBC-10-4 BAN-2 seed 7" in err
    assert list(told) == ["profile", "network", "seeds", "generations", "ensembles", "runs"]
    assert (told["profile"], told["network"], told["seeds"]) == ("digits", "DenseNetBC-10-4", [4, 7])
    assert [row["name"] for row in told["generations"]] == ["Teacher", "BAN-1", "BAN-2"]
    assert [row["name"] for row in told["ensembles"]] == ["Ens*2", "Ens*3"]
    labels = data.load("digits").test.labels
    for generation, row in enumerate(told["generations"]):
        runs = [store.load(told["runs"][seed][generation]) for seed in ("4", "7")]
        assert [(run.spec.seed, run.spec.generation) for run in runs] == [(4, generation), (7, generation)]
        wrong = [(run.probabilities.argmax(1) != labels).sum().item() for run in runs]
        assert row["errors"] == pytest.approx([count / 10 for count in wrong])  # % of 1,000 images
        assert row["mean"] == pytest.approx(sum(wrong) / 20)
        # Two values: the standard error is half their distance, the 97.5 % quantile of t is tan(0.475 pi).
        assert row["ci95"] == pytest.approx(math.tan(0.475 * math.pi) * abs(wrong[0] - wrong[1]) / 20)


def test_lineage_again_trains_nothing_and_one_seed_has_no_interval(banlib, tiny, monkeypatch):
    first = banlib("lineage", "--gens", 1, "--seeds", "3,", "--json")
    monkeypatch.setattr(training, "train", lambda *args: pytest.fail("it trained again"))
    code, out, err = banlib("lineage", "--gens", 1, "--seeds", "3,", "--json")
    assert (code, out) == first[:2] == (0, first[1])
    assert [row["ci95"] for row in strict(out)["generations"]] == [None, None]


def test_lineage_sets_the_papers_row_beside(banlib, tiny, monkeypatch):
    command = ("lineage", "--gens", 1, "--seeds", 2, "--jobs", 1)
    _, out, _ = banlib(*command)
    assert "paper" not in out
    row = dataclasses.replace(paper.TABLE1[0], network="DenseNetBC-10-4")
    monkeypatch.setattr(paper, "TABLE1", (row,))
    code, out, _ = banlib(*command)
    lines = out.splitlines()
    [head] = [line for line in lines if "paper" in line]
    teacher, student = (next(line for line in lines if line.startswith(name)) for name in ("Teacher", "BAN-1"))
    end = head.index("paper, CIFAR-100") + len("paper, CIFAR-100")
    assert code == 0 and teacher[:end].endswith("18.25") and student[:end].endswith("17.61")
    assert "minus the teacher of the same seed" in out and "seeds 0, 1" in lines[-1] and "fp32" in lines[-1]


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
    assert told["flops"] == sum(entry["flops"] for entry in told["networks"]) > 0

    code, out, err = banlib("table", 2, *ROWS, "--json")
    told = strict(out)
    assert code == 0 and len(store.ids()) == 8
    assert [(c["network"], c["column"], c["paper"], c["seeds"]) for c in told["cells"]] == [
        ("WideResNet-28-10", "Baseline", 18.63, 2), ("MatchWideResNet-1-1", "Baseline", 20.4, 2),
        ("MatchWideResNet-1-1", "BAN", 19.12, 2)]  # fmt: skip
    assert told["seeds"] == [0, 1] and told["share_ends"] is True

    code, out, _ = banlib("table", 2, *ROWS)
    lines = out.splitlines()
    assert code == 0 and "MatchWideResNet-1-1@DenseNetBC-16-8" in out and "[19.12]" in lines[3] and "[20.40]" in lines[3]
    code, out, _ = banlib("table", 2, *ROWS, "--dry-run")
    assert code == 0 and "8 finished, 0 missing" in out


def test_a_table_of_other_ends_is_another_table(banlib, small_tables, store):
    rows = ("--rows", "MatchWideResNet-1-1", "--seeds", 1, "--jobs", 1, "--json")
    banlib("table", 2, *rows)
    told = strict(banlib("table", 2, *rows, "--own-ends")[1])
    assert told["share_ends"] is False and len(store.ids()) == 4, "teacher and baseline are the same, the student is not"


@pytest.mark.parametrize("given, told", [
    (("table", 3), "table must be 1 or 2, got '3'"),
    (("table", 1, "--rows", "WideResNet-28-10"), "'WideResNet-28-10' is no row of table 1"),
    (("table", 2, "--rows", "MatchWideResnet-2-1"), "did you mean 'MatchWideResNet-2-1'"),
    (("table", 2, "--teacher", "WideResNet-28-10"), "teacher of table 2 must be a DenseNetBC"),
    (("table", 1, "--own-ends"), "--teacher and --own-ends are for table 2"),
    (("table", 1, "--profile", "digit"), "did you mean 'digits'"),
    (("table", 1, "--seeds", "0"), "seeds must be a count"),
    (("table", 1, "--jobs", "0"), "jobs must be"),
    (("table", 1, "--teacher-memory", "on"), "unknown teacher memory 'on'; did you mean"),
    (("lineage", "--teacher-memory", "on"), "unknown teacher memory 'on'; did you mean"),
    (("lineage", "--compile", "maybe"), "unknown compile 'maybe'; did you mean"),
    (("lineage", "--minutes", "0"), "minutes must be a number above 0, got '0'"),
    (("table", 1, "--minutes", "soon"), "minutes must be a number above 0, got 'soon'"),
    (("lineage", "--minutes", "inf"), "minutes must be a number above 0, got 'inf'"),
    (("bench", "--precision", "fp8"), "unknown precision 'fp8'; did you mean"),
    (("ledger", "--table", "three"), "table must be 1 or 2, got 'three'"),
    (("ledger", "--profile", "lite"), "unknown profile 'lite'; did you mean"),
])  # fmt: skip
def test_a_bad_table_is_refused_in_a_sentence(banlib, store, given, told):
    code, out, err = banlib(*given)
    assert code == 2 and out == "" and told in err and len(err.splitlines()) == 1
    assert not store.root.exists()


def test_how_runs_are_trained_reaches_them(banlib, small_tables, store):
    banlib("table", 2, "--rows", "MatchWideResNet-1-1", "--seeds", 1, "--jobs", 1, "--teacher-memory", "remembered", "--json")
    banlib("lineage", "--network", "DenseNetBC-10-4", "--seeds", 1, "--gens", 1, "--teacher-memory", "online",
           "--compile", "no", "--deterministic", "--cuda-graph", "--pad-channels", "--json")  # fmt: skip
    told = {}
    for run_id in store.ids():
        run = store.load(run_id)
        names = ("teacher", "compiled", "deterministic", "cuda_graph", "padded")
        told[run.spec.network, run.spec.generation] = [run.environments[0].get(name) for name in names]
    assert told["MatchWideResNet-1-1@DenseNetBC-16-8", 1] == ["remembered in float32", False, False, False, False]
    assert told["DenseNetBC-10-4", 1] == ["online", False, True, True, True]


def test_a_failed_table_is_a_failure(banlib, monkeypatch):
    wild = PROFILES["digits"]._replace(recipe=recipe(lr=1e30))
    monkeypatch.setitem(PROFILES, "digits", wild)
    code, out, err = banlib("table", 2, "--rows", "MatchWideResNet-1-1", "--seeds", 1, "--jobs", 1, "--json")
    assert code == 1 and out == "" and "blocked: BAN-1" in err.splitlines()[-1]


def test_the_ledger_has_every_printed_error(banlib, store):
    code, out, _ = banlib("ledger", "--json")
    rows = strict(out)
    assert code == 0 and len(rows) == 45
    assert list(rows[0])[:12] == ["table", "network", "column", "paper", "measured", "ci95", "seeds", "profile", "hardware",
                                  "commit", "difference", "verdict"]  # fmt: skip
    assert {row["verdict"] for row in rows} <= {"reproduced", "partly", "not", "not run"}
    [shipped] = [row for row in rows if (row["network"], row["column"]) == ("DenseNetBC-90-60", "BAN-1")]
    assert shipped["profile"] == "cifar100-lite" and shipped["measured"] == 54.36  # the record in results/
    assert next(row for row in rows if row["network"] == "PreActResNet-1001")["measured"] is None
    assert not store.root.exists(), "reading made something"


def test_the_ledger_in_other_forms(banlib):
    code, out, _ = banlib("ledger", "--table", 2, "--csv")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 1 + 22 and lines[0].startswith("table,network,column,paper,measured,")
    code, out, _ = banlib("ledger", "--table", 1, "--markdown")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2 + 23 and {line.count("|") for line in lines} == {10}
    code, out, _ = banlib("ledger", "--profile", "cifar100", "--why")
    assert code == 0 and "0 reproduced, 0 partly, 0 not, 45 not run" in out and "McNemar's test" in out


ALONE = [sys.executable, "-m", "banlib", "lineage", "--network", "DenseNetBC-10-4", "--seeds", "1", "--json"]


def test_json_is_alone_on_standard_output():
    done = subprocess.run([*ALONE, "--gens", "0"], capture_output=True, text=True)
    assert done.returncode == 0 and strict(done.stdout)["runs"].keys() == {"0"}
    assert "DenseNetBC-10-4 Teacher seed 0" in done.stderr and "loss" in done.stderr


def test_sigterm_ends_with_75_and_the_same_command_goes_on(banlib, store):
    process = subprocess.Popen(ALONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not list(store.root.glob("live/*/resume-*.safetensors")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == "banlib: stopped by SIGTERM; finished epochs are kept, start it again to go on"
    [row] = [row for row in strict(banlib("runs", "list", "--json")[1]) if row["status"] == "live"]
    assert banlib(*ALONE[3:], "--gens", row["generation"])[0] == 0
    run = store.load(row["id"])
    assert 0 < row["epochs"] < len(run.metrics) and len(run.environments) == 2, "it did not go on, it began anew"


# runs


def test_list_tells_finished_live_diverged_and_damaged(banlib, filled, stopped):
    store, teacher, student = filled
    with pytest.raises(Diverged):
        training.fit(tiny_spec(seed=6, recipe=recipe(lr=1e30)), store, progress=False)
    flip_a_bit(store.root / student / "weights.safetensors", 1000)
    code, out, err = banlib("runs", "list", "--json")
    rows = {row["id"]: row for row in strict(out)}
    assert code == 0 and len(rows) == 4
    done, live = rows[teacher], rows[stopped]
    assert {name: done[name] for name in ("network", "dataset", "name", "generation", "seed", "status", "teacher")} == {
        "network": "DenseNetBC-10-4", "dataset": "digits", "name": "Teacher", "generation": 0, "seed": 0,
        "status": "finished", "teacher": None,
    }  # fmt: skip
    assert (done["epochs"], done["epochs_planned"]) == (4, 4)
    assert done["test_error"] == store.load(teacher).results["test_error"]
    assert (live["status"], live["epochs"], live["epochs_planned"], live["seed"]) == ("live", 2, 4, 5)
    assert live["test_error"] is not None  # tested after its second epoch
    assert (rows[student]["status"], rows[student]["teacher"]) == ("damaged", teacher)
    assert [row["status"] for row in rows.values()].count("diverged") == 1
    _, table, _ = banlib("runs", "list")
    assert len(table.splitlines()) == 5 and f"{stopped}  digits   DenseNetBC-10-4  Teacher        5  live" in table
    assert "2/4" in table and "4/4" in table


def test_an_empty_store_is_an_empty_list(banlib):
    assert banlib("runs", "list", "--json")[:2] == (0, "[]\n")
    code, out, err = banlib("runs", "list")
    assert (code, out) == (0, "") and "no runs in" in err and not home().exists()
    assert banlib("runs", "verify", "--json")[:2] == (0, "[]\n")


def test_show_by_the_first_digits(banlib, filled, stopped):
    store, teacher, student = filled
    assert teacher[:6] != student[:6]
    told = strict(banlib("runs", "show", student[:6], "--json")[1])
    run = store.load(student)
    assert told["id"] == student and told["status"] == "finished" and told["problems"] == []
    assert told["spec"] == run.spec.model_dump(mode="json") and told["results"] == run.results
    assert [row["epoch"] for row in told["metrics"]] == [1, 2, 3, 4] and told["environments"] == run.environments
    assert Path(told["folder"]) == store.root / student
    _, table, _ = banlib("runs", "show", student)
    assert "recipe.lr " in table and teacher in table and f"{run.results['test_error']:.2f}" in table
    live = strict(banlib("runs", "show", stopped, "--json")[1])
    assert live["status"] == "live" and live["results"] is None and Path(live["folder"]).parent.name == "live"


def test_a_prefix_of_several_runs_is_refused(banlib, store):
    for run_id in ("ab" + "0" * 14, "ab" + "1" * 14):
        (store.root / run_id).mkdir(parents=True)
    code, out, err = banlib("runs", "rm", "ab", "--yes")
    assert code == 2 and "2 runs start with 'ab'" in err and len(store.ids()) == 2
    (store.root / store.ids()[0]).rmdir()
    assert banlib("runs", "rm", "", "--yes")[0] == 2 and len(store.ids()) == 1  # nothing is the beginning of any id


def test_verify_finds_any_flipped_bit(banlib, filled, stopped):
    store, teacher, student = filled
    assert banlib("runs", "verify")[0] == 0
    [newest, _] = sorted((store.root / "live" / stopped).glob("resume-*"), reverse=True)
    names = ("weights.safetensors", "probabilities.safetensors", "metrics.jsonl")
    for path in (*(store.root / student / name for name in names), newest):
        flip_a_bit(path, path.stat().st_size // 2)
        code, out, err = banlib("runs", "verify")
        [problem, *_] = out.splitlines()
        assert code == 1 and path.parent.name in problem and "SHA-256" in problem and "1 damaged" in out
        assert "epoch 2" in problem if path == newest else path.name in problem
        flip_a_bit(path, path.stat().st_size // 2)
    assert banlib("runs", "verify")[0] == 0


def test_verify_json_and_of_some_runs(banlib, filled):
    store, teacher, student = filled
    with open(store.root / student / "weights.safetensors", "ab") as file:
        file.write(b"more")
    code, out, _ = banlib("runs", "verify", "--json")
    rows = {row["id"]: row for row in strict(out)}
    assert code == 1 and rows[teacher] == {"id": teacher, "status": "finished", "problems": []}
    [problem] = rows[student]["problems"]
    assert rows[student]["status"] == "damaged" and "bytes, expected" in problem
    assert banlib("runs", "verify", teacher)[0] == 0 and banlib("runs", "verify", teacher, student)[0] == 1


def test_a_link_out_of_the_store_is_told_and_not_followed(banlib, filled, tmp_path):
    store, teacher, student = filled
    outside = tmp_path / "outside"
    (store.root / student).rename(outside)
    (store.root / student).symlink_to(outside)
    (store.root / "live").mkdir(exist_ok=True)
    (store.root / "live" / ("cd" * 8)).symlink_to(outside)
    code, out, _ = banlib("runs", "list", "--json")
    assert code == 0 and {row["id"]: row["status"] for row in strict(out)} == {
        teacher: "finished", student: "damaged", "cd" * 8: "damaged"
    }  # fmt: skip
    code, out, _ = banlib("runs", "verify")
    assert code == 1 and out.count("links are refused") == 2
    assert banlib("runs", "rm", student, "--yes")[0] == 2 and outside.exists()


def test_rm_without_a_terminal_needs_yes(banlib, filled, monkeypatch):
    store, teacher, student = filled
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, err = banlib("runs", "rm", teacher)
    assert code == 2 and is_one_line(err) and "--yes" in err and len(store.ids()) == 2
    code, out, err = banlib("runs", "rm", teacher[:8], teacher, "--yes", "--json")
    assert code == 0 and strict(out) == {"removed": [teacher]} and store.ids() == [student]
    assert f"banlib: warning: run {student} (BAN-1, seed 0) learned from {teacher}" in err


@pytest.mark.parametrize("answer, code, left", [("y", 0, 0), ("n", 1, 2), ("", 1, 2)])
def test_rm_asks_on_a_terminal(answer, code, left, banlib, filled, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    store, teacher, student = filled
    monkeypatch.setattr("sys.stdin", Terminal(answer + "\n"))
    ended, out, err = banlib("runs", "rm", student, teacher)
    assert ended == code and len(store.ids()) == left
    assert "Remove these 2 runs?" in err and "Remove" not in out and "learned from" not in err


def test_rm_of_an_unknown_run_removes_none(banlib, filled):
    store, teacher, student = filled
    assert banlib("runs", "rm", teacher, "ffff", "--yes")[0] == 2 and len(store.ids()) == 2


def test_export_copies_whole_runs_without_weights(banlib, filled, stopped, tmp_path):
    store, teacher, student = filled
    target = tmp_path / "new" / "results"
    code, out, err = banlib("runs", "export", teacher, stopped, "--to", target)
    assert code == 1 and "no finished run" in err and not target.exists()
    code, out, err = banlib("runs", "export", teacher[:8], student, "--to", target, "--json")
    assert code == 0 and strict(out) == {"exported": [teacher, student], "to": str(target)}
    rows = strict(banlib("runs", "list", "--store", target, "--json")[1])
    assert {row["id"]: row["status"] for row in rows} == {teacher: "finished", student: "finished"}
    assert not list(target.rglob("weights.safetensors"))
    assert banlib("runs", "verify", "--store", target)[0] == 0


# book


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A checkout whose book is one chapter with parameters and nothing to do."""
    root = tmp_path / "checkout"
    (root / "book").mkdir(parents=True)
    source = "profile = 'digits'\nnetwork = 'auto'\ngens = 'auto'\nseeds = 'auto'"
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": source}
    cell |= {"outputs": [], "execution_count": None}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (root / "book/01_teacher.ipynb").write_text(json.dumps(notebook))
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/00_preface\nchapters:\n- file: book/01_teacher\n")
    monkeypatch.setattr(book, "find_root", lambda given=None: root)
    return root


def test_book_refuses_a_misspelt_parameter(banlib, chapter):
    code, out, err = banlib("book", "-p", "genz", 5)
    assert code == 2 and out == "" and is_one_line(err) and "unknown parameter 'genz'; did you mean 'gens'?" in err
    code, out, err = banlib("book", "-p", "gens", "three")
    assert code == 2 and is_one_line(err) and "gens must be an integer from 0 to 20, got 'three'" in err
    assert not home().exists() and not (chapter / "_build").exists()


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
