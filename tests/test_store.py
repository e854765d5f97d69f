"""Runs on disk: what is there, found by id, whole, and copied without weights. Faults are in test_faults.py."""

import hashlib
import json
import os
import stat

import pytest
import safetensors.torch
import torch
from conftest import recipe, tiny_spec

from banlib import data, ensemble
from banlib.store import FILES, RunMissing, Store, leaves, read_metrics, serialize, write_atomically
from banlib.training import fit

RECIPE = recipe(epochs=3, test_every=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with one finished run, and the run."""
    store = Store(tmp_path_factory.mktemp("runs"))
    return store, fit(tiny_spec(recipe=RECIPE), store, "cpu", threads=1, progress=False)


def test_a_finished_run_holds_these_files_and_nothing_else(trained):
    store, run = trained
    assert {path.name for path in run.folder.iterdir()} == {*FILES, "manifest.json"}
    assert run.folder == store.root / run.spec.run_id and run.run_id == run.spec.run_id
    assert {path.name for path in store.root.iterdir()} == {run.run_id, "live", "locks"}
    assert not any((store.root / "live").iterdir())
    assert [path.name for path in (store.root / "locks").iterdir()] == [f"{run.run_id}.lock"]


def test_files_can_be_read_by_whoever_may_read_the_folder(trained):
    """As umask says; safetensors by itself would write them for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in trained[1].folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name


def test_what_was_stored_is_what_was_measured(trained):
    store, run = trained
    again = store.load(run.run_id)
    assert again.spec == tiny_spec(recipe=RECIPE) and again.results == run.results
    labels = data.load("digits").test.labels
    assert again.probabilities.dtype == torch.float16 and again.probabilities.shape == (len(labels), 10)
    assert again.probabilities.float().sum(1) == pytest.approx(1, abs=0.01)
    assert ensemble.error(again.probabilities, labels) == pytest.approx(again.results["test_error"], abs=1e-9)
    assert ensemble.nll(again.probabilities, labels) == pytest.approx(again.results["test_nll"], rel=1e-3)
    assert again.results["params"] == sum(
        tensor.numel() for name, tensor in again.weights().items() if name.endswith((".weight", ".bias"))
    )
    metrics = again.metrics
    assert list(metrics["epoch"]) == [1, 2, 3] and list(metrics["lr"]) == pytest.approx([0.1, 0.1, 0.02])
    assert list(metrics["test_error"].isna()) == [True, False, False]  # every second epoch, and the last
    assert metrics["test_error"].iloc[-1] == again.results["test_error"]
    assert metrics["train_loss"].iloc[-1] == again.results["train_loss"]


def test_a_run_says_where_it_was_trained(trained):
    [environment] = trained[1].environments
    assert set(environment) == {"hardware", "device", "precision", "threads", "torch", "python", "banlib", "commit",
                                "layout", "compiled", "padded", "deterministic", "cuda_graph", "recomputed", "trial"}
    assert (environment["device"], environment["threads"]) == ("cpu", 1) and "cores" in environment["hardware"]


def test_nothing_stored_holds_a_path(trained):
    """A run means the same on every machine, and a record can be published."""
    for path in trained[1].folder.iterdir():
        assert str(trained[0].root).encode() not in path.read_bytes()


def test_ids_status_and_find(trained, tmp_path):
    store, run = trained
    other = Store(tmp_path / "runs")
    assert other.ids() == [] and other.status(run.run_id) == "missing" and repr(other) == f"Store('{tmp_path}/runs')"
    for name in ("a" * 16, "ab" * 8, "live/" + "b" * 16, "tmp-" + "c" * 16, "aside/" + "d" * 16 + "-1", "live/notes"):
        (other.root / name).mkdir(parents=True)
    (other.root / ("e" * 16)).write_text("a file")
    assert other.ids() == ["a" * 16, "ab" * 8, "b" * 16, "e" * 16]
    assert [other.status(run_id) for run_id in other.ids()] == ["damaged", "damaged", "live", "damaged"]
    assert other.find("b") == "b" * 16 and other.find("ab") == "ab" * 8
    with pytest.raises(ValueError, match="2 runs start with 'a' in"):
        other.find("a")
    with pytest.raises(ValueError, match="no run starts with '7' in"):
        other.find("7")
    assert store.find(run.run_id[:5]) == run.run_id and store.status(run.run_id) == "finished"
    with pytest.raises(RunMissing, match="no finished run bbbbbbbbbbbbbbbb in .* .it is live."):
        other.load("b" * 16)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", "null", '{"files": []}', '{"files": {"run.json": 3}}', "\xff",
                                      '{"files": {"../x": {"bytes": 1, "sha256": ""}}}', '{"files": {}}'])  # fmt: skip
def test_a_strange_manifest_is_damage_not_a_crash(tmp_path, manifest):
    store = Store(tmp_path)
    store.folder("0" * 16).mkdir()
    (store.folder("0" * 16) / "manifest.json").write_text(manifest, encoding="latin-1")
    assert store.status("0" * 16) == "damaged"
    assert all(problem.startswith("run 0000") and "\n" not in problem for problem in store.problems("0" * 16))


def test_a_manifest_names_files_of_a_run_only(trained, tmp_path):
    store, run = trained
    copy = store.export(run.run_id, tmp_path)
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    (copy.folder / "notes.txt").write_text("")
    manifest["files"]["notes.txt"] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (copy.folder / "manifest.json").write_text(json.dumps(manifest))
    assert Store(tmp_path).problems(run.run_id) == [
        f"run {run.run_id}: notes.txt is missing, a link, or not a file of a run"
    ]


def test_a_copy_without_weights_verifies_elsewhere(trained, tmp_path):
    store, run = trained
    target = Store(tmp_path / "results")
    copy = store.export(run.run_id, target.root)
    assert copy.folder == target.root / run.run_id
    assert {path.name for path in copy.folder.iterdir()} == {*FILES, "manifest.json"} - {"weights.safetensors"}
    assert target.status(run.run_id) == "finished" and target.problems(run.run_id) == []
    again = target.load(run.run_id)
    assert (again.spec, again.results) == (run.spec, run.results) and again.metrics.equals(run.metrics)
    assert torch.equal(again.probabilities, run.probabilities)
    with pytest.raises(FileNotFoundError, match=f"run {run.run_id} is a record without weights"):
        again.weights()
    assert {path.name for path in target.root.iterdir()} == {run.run_id}
    assert store.export(run.run_id, target.root).folder == copy.folder  # twice is once
    (again.folder / "probabilities.safetensors").unlink()  # only weights may be left out
    assert target.status(run.run_id) == "damaged"


def test_a_copy_that_a_crash_cut_off_is_made_anew(trained, tmp_path):
    store, run = trained
    litter = tmp_path / f"tmp-{run.run_id}"
    litter.mkdir()
    (litter / "run.json").write_text("half")
    assert store.export(run.run_id, tmp_path).run_id == run.run_id and not litter.exists()


def test_a_finished_run_loses_what_a_crash_after_its_commit_left(trained, tmp_path):
    """Killed between the commit and the removal of the resume points, a run is finished; who asks next tidies up."""
    store, run = trained
    for name in (f"live/{run.run_id}", f"tmp-{run.run_id}"):
        (store.root / name).mkdir()
        (store.root / name / "metrics.jsonl").write_text("")
    fit(run.spec, store, "cpu", progress=False)
    assert not (store.root / "live" / run.run_id).exists() and not (store.root / f"tmp-{run.run_id}").exists()


def test_removing_takes_finished_and_live(trained, tmp_path):
    store, spec = Store(tmp_path), trained[1].spec
    for folder in (store.folder(spec.run_id), store.folder(spec.run_id, "live")):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    store.remove(spec.run_id)
    assert store.ids() == [] and not list(tmp_path.glob("tmp-*"))
    store.remove(spec.run_id)  # nothing to do is no error


def test_bytes_replace_bytes_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and long")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [child.name for child in tmp_path.iterdir()] == ["file"]


def test_the_resume_point_holds_all_the_next_epoch_needs(trained, store, monkeypatch):
    """Weights, BatchNorm buffers and a momentum for each weight: two files, the newest of the epoch before."""
    spec, names = tiny_spec(recipe=RECIPE), []
    from banlib import store as module

    monkeypatch.setattr(module, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(spec, store, "cpu", threads=1, progress=False)
    points = sorted(store.folder(spec.run_id, "live").glob("resume-*"))
    assert [path.name[:13] for path in points] == ["resume-000002", "resume-000003"]
    tensors = safetensors.torch.load_file(points[-1])
    weights = trained[1].weights()
    assert all(torch.equal(tensors[f"network.{name}"], tensor) for name, tensor in weights.items())
    assert {name.removeprefix("momentum.") for name in tensors if name.startswith("momentum.")} == {
        name for name in weights if name.endswith((".weight", ".bias"))
    }
    with safetensors.safe_open(points[-1], "pt") as file:
        state = json.loads(file.metadata()["state"])
    assert [row["epoch"] for row in state["rows"]] == [1, 2, 3] and state["spec"] == spec.canonical()
    assert read_metrics(points[-1].with_name("metrics.jsonl")) == state["rows"]


def test_nested_fields_have_names():
    assert leaves({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}


def test_a_resume_points_bytes_are_those_that_safetensors_writes():
    tensors = {"b": torch.randn(3, 2), "a": torch.zeros(0, 4), "c.é": torch.tensor(7), "d": torch.randn(())}
    for metadata in ({"state": '{"a": "é\\n"}'}, {"state": "x" * 13}):
        assert serialize(tensors, metadata) == safetensors.torch.save(tensors, metadata=metadata)
