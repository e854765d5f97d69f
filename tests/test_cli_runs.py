"""`banlib runs`: list, show, verify, rm, export."""

import io
import shutil
from pathlib import Path

import pytest

from banlib.runs.fit import fit
from banlib.runs.store import Diverged, Store
from conftest import interrupted_in, recipe, tiny_spec
from test_cli import banlib, home, is_one_line, strict  # noqa: F401


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of two runs, a teacher and its student, to be copied."""
    root = tmp_path_factory.mktemp("trained")
    teacher = fit(tiny_spec(), Store(root), progress=False)
    fit(tiny_spec(1, teacher.run_id), Store(root), progress=False)
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
        fit(tiny_spec(seed=5), store, progress=False)
    return tiny_spec(seed=5).run_id


def flip_a_bit(path, byte):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


def test_list_tells_finished_live_diverged_and_damaged(banlib, filled, stopped):  # noqa: F811
    store, teacher, student = filled
    with pytest.raises(Diverged):
        fit(tiny_spec(seed=6, recipe=recipe(lr=1e30)), store, progress=False)
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
    [line] = [line.split() for line in table.splitlines() if line.startswith(stopped)]
    assert len(table.splitlines()) == 5 and {"digits", "DenseNetBC-10-4", "Teacher", "5", "live", "2", "4"} <= set(line)


def test_an_empty_store_is_an_empty_list(banlib):  # noqa: F811
    assert banlib("runs", "list", "--json")[:2] == (0, "[]\n")
    code, out, err = banlib("runs", "list")
    assert (code, out) == (0, "") and "no runs in" in err and not home().exists()
    assert banlib("runs", "verify", "--json")[:2] == (0, "[]\n")


def test_show_by_the_first_digits(banlib, filled, stopped):  # noqa: F811
    store, teacher, student = filled
    assert teacher[:6] != student[:6]
    told = strict(banlib("runs", "show", student[:6], "--json")[1])
    run = store.load(student)
    assert told["id"] == student and told["status"] == "finished" and told["problems"] == []
    assert told["spec"] == run.spec.model_dump(mode="json") and told["results"] == run.results
    assert [row["epoch"] for row in told["metrics"]] == [1, 2, 3, 4] and told["environments"] == run.environments
    assert Path(told["folder"]) == store.root / student
    _, table, _ = banlib("runs", "show", student)
    assert "spec.recipe.lr " in table and teacher in table and f"{run.results['test_error']:.2f}" in table
    live = strict(banlib("runs", "show", stopped, "--json")[1])
    assert live["status"] == "live" and live["results"] is None and Path(live["folder"]).parent.name == "live"
    assert [row["epoch"] for row in live["metrics"]] == [1, 2]


def test_a_prefix_of_several_runs_is_refused(banlib, store):  # noqa: F811
    for run_id in ("ab" + "0" * 14, "ab" + "1" * 14):
        (store.root / run_id).mkdir(parents=True)
    code, out, err = banlib("runs", "rm", "ab", "--yes")
    assert code == 2 and "2 runs start with 'ab'" in err and len(store.ids()) == 2
    (store.root / store.ids()[0]).rmdir()
    assert banlib("runs", "rm", "", "--yes")[0] == 2 and len(store.ids()) == 1  # nothing is the beginning of any id


def test_verify_finds_any_flipped_bit(banlib, filled, stopped):  # noqa: F811
    store, teacher, student = filled
    assert banlib("runs", "verify")[0] == 0
    newest = max((store.root / "live" / stopped).glob("resume-*"))
    names = ("weights.safetensors", "probabilities.safetensors", "metrics.jsonl")
    for path in (*(store.root / student / name for name in names), newest):
        flip_a_bit(path, path.stat().st_size // 2)
        code, out, err = banlib("runs", "verify")
        [problem, *_] = out.splitlines()
        assert code == 1 and path.parent.name in problem and "1 damaged" in out
        assert path.name[:13] in problem
        flip_a_bit(path, path.stat().st_size // 2)
    assert banlib("runs", "verify")[0] == 0


def test_verify_json_and_of_some_runs(banlib, filled):  # noqa: F811
    store, teacher, student = filled
    with open(store.root / student / "weights.safetensors", "ab") as file:
        file.write(b"more")
    code, out, _ = banlib("runs", "verify", "--json")
    rows = {row["id"]: row for row in strict(out)}
    assert code == 1 and rows[teacher] == {"id": teacher, "status": "finished", "problems": []}
    [problem] = rows[student]["problems"]
    assert rows[student]["status"] == "damaged" and "bytes, expected" in problem
    assert banlib("runs", "verify", teacher)[0] == 0 and banlib("runs", "verify", teacher, student)[0] == 1


def test_verify_lists_all_where_one_cannot_be_read(banlib, filled):  # noqa: F811
    store, teacher, student = filled
    (store.root / teacher / "run.json").write_text("")
    (store.root / student / "weights.safetensors").unlink()
    (store.root / student / "weights.safetensors").mkdir()
    code, out, _ = banlib("runs", "verify")
    assert code == 1 and "2 damaged" in out and teacher in out and student in out
    rows = {row["id"]: row for row in strict(banlib("runs", "list", "--json")[1])}
    assert rows[teacher]["status"] == rows[student]["status"] == "damaged" and rows[teacher]["network"] is None
    assert banlib("runs", "show", teacher)[0] == 0 and banlib("runs", "list")[0] == 0
    (store.root / student / "metrics.jsonl").write_text('{"epoch": 1, "test_error": NaN}\n')
    assert {row["id"] for row in strict(banlib("runs", "list", "--json")[1])} == {teacher, student}, "NaN is no JSON"


def test_a_link_out_of_the_store_is_told_and_not_followed(banlib, filled, tmp_path):  # noqa: F811
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


def test_rm_without_a_terminal_needs_yes(banlib, filled, monkeypatch):  # noqa: F811
    store, teacher, student = filled
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, err = banlib("runs", "rm", teacher)
    assert code == 2 and is_one_line(err) and "--yes" in err and len(store.ids()) == 2
    code, out, err = banlib("runs", "rm", teacher[:8], teacher, "--yes", "--json")
    assert code == 0 and strict(out) == {"removed": [teacher]} and store.ids() == [student]
    assert f"banlib: warning: run {student} (BAN-1, seed 0) learned from {teacher}" in err


# No answer at all is what Ctrl-C and Ctrl-D give
@pytest.mark.parametrize("answer, code, left", [("y", 0, 0), ("n", 1, 2), ("", 130, 2)])
def test_rm_asks_on_a_terminal(answer, code, left, banlib, filled, monkeypatch):  # noqa: F811
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    store, teacher, student = filled
    monkeypatch.setattr("sys.stdin", Terminal(answer + "\n" if answer else ""))
    ended, out, err = banlib("runs", "rm", student, teacher)
    assert ended == code and len(store.ids()) == left
    assert "Remove these runs (2)?" in err and "Remove" not in out and "learned from" not in err
    assert teacher in err and student in err, "it is not said which"


def test_rm_of_an_unknown_run_removes_none(banlib, filled):  # noqa: F811
    store, teacher, student = filled
    assert banlib("runs", "rm", teacher, "ffff", "--yes")[0] == 2 and len(store.ids()) == 2


def test_export_copies_whole_runs_without_weights(banlib, filled, stopped, tmp_path):  # noqa: F811
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


def test_export_light_and_with_weights(banlib, filled, tmp_path):  # noqa: F811
    store, teacher, student = filled
    assert banlib("runs", "export", student, "--light", "--to", tmp_path / "light")[0] == 0
    assert banlib("runs", "export", teacher, "--weights", "--to", tmp_path / "heavy")[0] == 0
    light, heavy = Store(tmp_path / "light").load(student), Store(tmp_path / "heavy").load(teacher)
    assert light.light and light.error == pytest.approx(store.load(student).error)
    assert heavy.weights().keys() == store.load(teacher).weights().keys() and not heavy.light


def test_a_copy_gets_what_it_lacks_and_loses_nothing(banlib, filled, tmp_path):  # noqa: F811
    store, teacher, _ = filled
    copies = Store(tmp_path / "copies")
    kinds = [("--light",), (), ("--light", "--weights"), ("--light",)]
    found = []
    for kind in kinds:
        assert banlib("runs", "export", teacher, "--to", copies.root, *kind)[0] == 0
        found.append((copies.load(teacher).light, (copies.folder(teacher) / "weights.safetensors").exists()))
    assert found == [(True, False), (False, False), (False, True), (False, True)]
