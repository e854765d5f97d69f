"""Runs on disk: what is there, found by id, whole, skipped where damaged, and copied. No training is needed for it."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import warnings

import pandas as pd
import pytest
import safetensors.torch
import torch

from banlib.runs import disk
from banlib.runs.disk import Busy
from banlib.runs.recipe import RunSpec
from banlib.runs.store import FILES, RunDamaged, RunMissing, Store
from test_work import ENVIRONMENT, SPEC, row, save

CLASSES, IMAGES = 10, 40
RESULTS = {"test_error": 25.0, "test_nll": 1.5, "seconds": 2.0}


def commit(store, spec=SPEC, classes=CLASSES):
    """A finished run of random weights, wrong on a quarter of the test images."""
    torch.manual_seed(spec.seed)
    labels = torch.arange(IMAGES) % classes
    logits = torch.randn(IMAGES, classes).clamp(-2, 2)
    logits[torch.arange(IMAGES), torch.where(torch.arange(IMAGES) % 4 > 0, labels, (labels + 1) % classes)] = 4.0
    rows = [row(epoch) for epoch in range(1, spec.recipe.epochs + 1)]
    with store.claim(spec) as working:
        weights = {"stem.weight": torch.randn(3, 2), "stem.count": torch.tensor(7)}
        working.commit(RESULTS, rows, [ENVIRONMENT], weights, logits.softmax(1).half(), labels)
    return store.load(spec.run_id)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with one finished run, which no test harms."""
    store = Store(tmp_path_factory.mktemp("whole"))
    commit(store)
    return store


@pytest.fixture
def run(whole):
    return whole.load(SPEC.run_id)


@pytest.fixture
def store(whole, tmp_path):
    """A copy to harm."""
    shutil.copytree(whole.root, tmp_path / "runs")
    return Store(tmp_path / "runs")


@pytest.fixture
def folder(store):
    return store.folder(SPEC.run_id)


def forge(folder, name, raw):
    """Other content for a file of a run, and a manifest that vouches for it."""
    (folder / name).write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "manifest.json").write_bytes(disk.dump(manifest))


# What a finished run is


def test_a_finished_run_holds_these_files_and_nothing_else(whole, run):
    assert {path.name for path in run.folder.iterdir()} == {*FILES, "manifest.json"}
    assert run.folder == whole.root / SPEC.run_id and run.run_id == SPEC.run_id
    assert {path.name for path in whole.root.iterdir()} == {SPEC.run_id, "live", "locks"}
    assert not any((whole.root / "live").iterdir())
    assert [path.name for path in (whole.root / "locks").iterdir()] == [f"{SPEC.run_id}.lock"]


def test_files_can_be_read_by_whoever_may_read_the_folder(run):
    """As umask says; safetensors by itself would write them for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in run.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name


def test_nothing_stored_holds_a_path(whole, run):
    """A run means the same on every machine, and a record can be published."""
    for path in run.folder.iterdir():
        assert str(whole.root).encode() not in path.read_bytes()


def test_what_was_stored_is_read(run):
    assert (run.spec, run.results, run.environments) == (SPEC, RESULTS, [ENVIRONMENT]) and not run.light
    assert run.probabilities.dtype == torch.float16 and run.probabilities.shape == (IMAGES, CLASSES)
    assert run.labels.dtype == torch.int64 and run.labels.tolist() == [image % 10 for image in range(IMAGES)]
    assert run.weights()["stem.weight"].shape == (3, 2) and run.weights()["stem.count"] == 7
    assert isinstance(run.metrics, pd.DataFrame) and list(run.metrics["epoch"]) == [1, 2, 3, 4]


def test_what_is_read_off_the_probabilities(run):
    assert run.error == 25.0
    for image in range(IMAGES):
        shares, label = run.probabilities[image].tolist(), run.labels[image]
        assert run.predicted[image] == shares.index(max(shares)) and run.confidence[image] == max(shares)
        assert run.true_probability[image] == shares[label]
    assert (run.predicted.dtype, run.true_probability.dtype, run.confidence.dtype) == (
        torch.int64,
        torch.float32,
        torch.float32,
    )


def test_listing_and_checking_need_no_torch(whole):
    code = (
        "import sys; from banlib.runs.store import Store; store = Store(sys.argv[1]);"
        "assert store.overview() and [store.status(run_id) for run_id in store.ids()] == ['finished'];"
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, whole.root], check=True)


# Found by id


def test_ids_status_and_find(whole, tmp_path):
    other = Store(tmp_path / "runs")
    assert other.ids() == [] and other.status(SPEC.run_id) == "missing" and repr(other) == f"Store('{tmp_path}/runs')"
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
    assert whole.find(SPEC.run_id[:5]) == SPEC.run_id and whole.status(SPEC.run_id) == "finished"
    with pytest.raises(RunMissing, match="no finished run bbbbbbbbbbbbbbbb in .* .it is live."):
        other.load("b" * 16)


def test_the_default_store_is_in_banlib_home(monkeypatch, tmp_path):
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path / "here"))
    assert Store().root == tmp_path / "here" / "runs"


BAD_IDS = ["../etc", "..", "", "a", "0" * 15, "0" * 17, "0" * 15 + "G", "A" * 16, "0" * 16 + "\n", "0" * 16 + "/.."]


@pytest.mark.parametrize("run_id", [*BAD_IDS, "/" + "0" * 15, None, 5, b"0" * 16])
def test_case_23_an_id_is_16_hex_digits(tmp_path, run_id):
    store = Store(tmp_path / "runs")
    for call in (store.status, store.load, store.remove, store.folder):
        with pytest.raises(ValueError, match="a run id is 16 digits of 0-9 and a-f, got "):
            call(run_id)
    assert "a run id is 16 digits" in store.problems(run_id)[0] and not store.root.exists()


@pytest.mark.parametrize("planted", ["<id>", "live", "live/<id>", "tmp-<id>", "locks", "locks/<id>.lock"])
def test_case_23_a_planted_link_is_refused_and_not_followed(run, tmp_path, planted):
    outside, store = tmp_path / "outside", Store(tmp_path / "runs")
    shutil.copytree(run.folder, outside / run.run_id)
    (outside / f"{run.run_id}.lock").write_text("precious")
    target = outside if planted in ("live", "locks") else outside / run.run_id
    link = store.root / planted.replace("<id>", run.run_id)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / f"{run.run_id}.lock" if planted.endswith("lock") else target)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    for attempt in (lambda: store.claim(SPEC).__enter__(), lambda: store.remove(SPEC.run_id)):
        with pytest.raises(ValueError, match="is a link out of the store; links are refused, remove it"):
            attempt()
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_case_23_a_link_within_the_store_is_refused_too(store, folder):
    folder.rename(folder.with_name("0" * 16))
    folder.symlink_to(folder.with_name("0" * 16))
    with pytest.raises(ValueError, match="links are refused, remove it"):
        store.load(SPEC.run_id)


def test_case_23_a_run_is_not_set_aside_out_of_the_store(store, folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (store.root / "aside").symlink_to(tmp_path / "outside")
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="links are refused"):
        store.claim(SPEC).__enter__()
    assert not list((tmp_path / "outside").iterdir()) and folder.exists()


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["truncated", "empty", "gone", "flipped", "a link", "a folder"])
def test_cases_3_and_4_a_damaged_run_is_noticed_and_set_aside_when_it_is_to_be_trained(store, folder, name, harm):
    path = folder / name
    raw = path.read_bytes()
    path.unlink()
    if harm == "a link":  # even if what it leads to has the right bytes today
        (store.root / "elsewhere").write_bytes(raw)
        path.symlink_to(store.root / "elsewhere")
    elif harm == "a folder":
        path.mkdir()
    elif harm != "gone":
        flipped = raw[:50] + bytes([raw[50] ^ 1]) + raw[51:]
        path.write_bytes({"truncated": raw[:30], "empty": b"", "flipped": flipped}[harm])
    said = {
        "truncated": f"{name} has 30 bytes, expected {len(raw)}",
        "empty": f"{name} has 0 bytes, expected {len(raw)}",
        "flipped": f"{name} has SHA-256",
    }.get(harm, f"{name} is missing, a link, or no file")
    problems = store.problems(SPEC.run_id)
    assert store.status(SPEC.run_id) == "damaged" and any(said in problem for problem in problems)
    assert all(problem.startswith(f"run {SPEC.run_id}: ") and "\n" not in problem for problem in problems)
    with pytest.raises(RunDamaged, match=re.escape(problems[0])):
        store.load(SPEC.run_id)
    with pytest.raises(RunDamaged, match=f"set aside as .*aside/{SPEC.run_id}-1, start again to train it anew"):
        store.claim(SPEC).__enter__()
    assert store.status(SPEC.run_id) == "missing" and (store.root / "aside" / f"{SPEC.run_id}-1").exists()
    assert commit(store).error == 25.0


def test_all_damaged_files_are_listed(store, folder, monkeypatch):
    """Also where one of them cannot be read at all."""
    really = open

    def unreadable(path, *mode):
        return really(path / "x" if getattr(path, "name", "") == "metrics.jsonl" else path, *mode)

    monkeypatch.setattr("builtins.open", unreadable)
    for name in ("weights.safetensors", "probabilities.safetensors"):
        (folder / name).write_bytes(b"")
    problems = store.problems(SPEC.run_id)
    assert [problem.split()[2] for problem in problems] == [
        "metrics.jsonl",
        "weights.safetensors",
        "probabilities.safetensors",
    ]
    assert "metrics.jsonl cannot be read (Not a directory)" in problems[0]


MANIFESTS = ["", "[]", "{}", "null", "3", '{"files": []}', '{"files": {"run.json": 3}}', "\xff", '{"files": {}}']
MANIFESTS += ['{"files": {"../x": {"bytes": 1, "sha256": ""}}}', '{"files": {"run.json": {"bytes": 1, "sha256": 3}}}']
MANIFESTS += ['{"files": {"run.json": {"bytes": 1e999, "sha256": null}}}', "[" * 100_000, '{"files": {"run.json": {}}}']


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_strange_manifest_is_damage_not_a_crash(store, folder, manifest):
    (folder / "manifest.json").write_text(manifest, encoding="latin-1")
    assert store.status(SPEC.run_id) == "damaged"
    problems = store.problems(SPEC.run_id)
    assert all(problem.startswith(f"run {SPEC.run_id}: ") and "\n" not in problem for problem in problems)


@pytest.mark.parametrize("name", ["notes.txt", "../notes.txt", "../locks/run.json", "/etc/passwd"])
def test_a_manifest_names_files_of_a_run_only(store, folder, name):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (folder / "manifest.json").write_bytes(disk.dump(manifest))
    assert store.problems(SPEC.run_id) == [f"run {SPEC.run_id}: {name} is no file of a run"]


def record(**changes):
    fields = {"spec": SPEC.model_dump(mode="json"), "results": RESULTS, "environments": [ENVIRONMENT]}
    return json.dumps(fields | changes).encode()


STRANGE_RECORDS = [
    b"",
    b"{",
    b"\xff\xfe",
    b"3",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    record(spec=None),
    record(spec=[]),
]
STRANGE_RECORDS += [record(spec={}), record(spec={"seed": 1}), record(results=None), record(results=[])]
STRANGE_RECORDS += [
    record(environments=None),
    record(environments=3),
    record(environments=[3]),
    record(environments={"a": 1}),
]
STRANGE_RECORDS += [
    record(spec=SPEC.model_dump(mode="json") | changes)
    for changes in (
        {"seed": 10**400},
        {"temperature": 10**400},
        {"seed": "x" * 10**5},
        {"recipe": 3},
        {"network": "\n"},
    )
]


@pytest.mark.parametrize("raw", STRANGE_RECORDS)
def test_a_strange_record_is_damage_whoever_vouches_for_it(store, folder, raw):
    forge(folder, "run.json", raw)
    [problem] = store.problems(SPEC.run_id)
    said = f"run {SPEC.run_id}: (run.json holds |the folder says {SPEC.run_id}, the spec hashes to )"
    assert re.match(said, problem) and "\n" not in problem and len(problem) < 400
    with pytest.raises(RunDamaged):
        store.load(SPEC.run_id)
    with pytest.warns(UserWarning, match=f"run {SPEC.run_id}: .*; it is left out"):
        assert store.overview() == {}


@pytest.mark.parametrize("field", ["recipe.lr", "seed", "temperature"])
@pytest.mark.parametrize("light", [False, True])
def test_case_5_an_edited_spec_is_refused_by_field(whole, tmp_path, field, light):
    folder = whole.export(SPEC.run_id, tmp_path, light=light).folder
    edited = SPEC.model_dump(mode="json")
    *parents, last = field.split(".")
    part = edited
    for parent in parents:
        part = part[parent]
    part[last] = 3
    forge(folder, "run.json", record(spec=edited))
    said = f"the folder says {SPEC.run_id}, the spec hashes to {RunSpec(**edited).run_id}, field {field} differs"
    with pytest.raises(RunDamaged, match=said):
        Store(tmp_path).load(SPEC.run_id)


def test_case_5_a_run_renamed_to_another_id_is_refused(store, folder):
    folder.rename(folder.with_name("0" * 16))
    with pytest.raises(RunDamaged, match=f"the folder says {'0' * 16}, the spec hashes to {SPEC.run_id}$"):
        store.load("0" * 16)


HUGE = (2**64 - 1).to_bytes(8, "little") + b"{}"
DEEP = (100_000).to_bytes(8, "little") + b"[" * 100_000


@pytest.mark.parametrize("name", ["weights.safetensors", "probabilities.safetensors"])
@pytest.mark.parametrize("raw", [b"", b"{}", HUGE, DEEP, b"\x02" + bytes(7) + b"[]", b"\x04" + bytes(7) + b"null"])
def test_case_25_hostile_tensors_are_refused_in_a_sentence(store, folder, name, raw):
    forge(folder, name, raw)
    planted = store.load(SPEC.run_id)
    with pytest.raises(RunDamaged) as caught:
        planted.weights() if name.startswith("w") else planted.error
    said = str(caught.value)
    assert said.startswith(f"run {SPEC.run_id}: {name}: ") and f"restore {folder}, or `banlib runs rm " in said


SHARES, LABELS = torch.full((4, 10), 0.1, dtype=torch.float16), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"probabilities": SHARES},
        {"probabilities": SHARES, "labels": LABELS, "more": LABELS + 1},
        {"probabilities": SHARES.float(), "labels": LABELS},
        {"probabilities": SHARES, "labels": LABELS.int()},
        {"probabilities": SHARES, "labels": LABELS[:3]},
        {"probabilities": SHARES[0], "labels": LABELS},
        {"probabilities": SHARES, "labels": torch.tensor(1)},
        {"probabilities": SHARES, "labels": LABELS + 8},
        {"probabilities": SHARES, "labels": LABELS - 1},
        {"probabilities": SHARES[:, :0], "labels": LABELS},
    ],
)
def test_case_25_test_outputs_have_their_names_types_and_shapes(store, folder, tensors):
    forge(folder, "probabilities.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(RunDamaged, match=f"^run {SPEC.run_id} has other test outputs than a run: .*; restore "):
        assert store.load(SPEC.run_id).error >= 0


# Overview


def test_an_overview_leaves_out_what_cannot_be_read_and_names_it(store, folder):
    others = [commit(store, SPEC.model_copy(update={"seed": seed})) for seed in (1, 2, 3)]
    with store.claim(SPEC.model_copy(update={"seed": 4})) as working:
        save(working, 1)
    with warnings.catch_warnings(action="error"):
        assert set(store.overview()) == {SPEC.run_id, *(other.run_id for other in others)}
    (others[0].folder / "run.json").write_text("")
    (others[1].folder / "manifest.json").unlink()
    (others[2].folder / "weights.safetensors").unlink()  # is not read for this
    with pytest.warns(UserWarning) as said:
        found = store.overview()
    assert set(found) == {SPEC.run_id, others[2].run_id}
    assert found[SPEC.run_id] == {
        "spec": SPEC.model_dump(mode="json"),
        "results": RESULTS,
        "environments": [ENVIRONMENT],
    }
    assert RunSpec(**found[SPEC.run_id]["spec"]) == SPEC
    remedies = sorted(str(warning.message).partition("; it is left out; ")[2] for warning in said)
    assert remedies == sorted(
        f"restore {other.folder}, or `banlib runs rm {other.run_id}` and train again" for other in others[:2]
    )


def test_an_overview_of_nothing_is_empty(tmp_path):
    assert Store(tmp_path / "nothing").overview() == {}


def test_a_planted_link_is_left_out_of_an_overview(store, folder, tmp_path):
    for name, target in (("a" * 16, folder), ("b" * 16, tmp_path / "nowhere")):
        (store.root / name).symlink_to(target)
    with pytest.warns(UserWarning, match="links are refused") as said:
        assert set(store.overview()) == {SPEC.run_id}
    assert len(said) == 2


# Copies


def test_a_copy_without_weights_verifies_elsewhere(whole, run, tmp_path):
    target = Store(tmp_path / "results")
    copy = whole.export(SPEC.run_id, target.root)
    assert copy.folder == target.root / SPEC.run_id
    assert {path.name for path in copy.folder.iterdir()} == {*FILES, "manifest.json"} - {"weights.safetensors"}
    assert target.status(SPEC.run_id) == "finished" and target.problems(SPEC.run_id) == []
    assert (copy.spec, copy.results) == (run.spec, run.results) and copy.metrics.equals(run.metrics)
    assert torch.equal(copy.probabilities, run.probabilities)
    with pytest.raises(FileNotFoundError, match=f"run {SPEC.run_id} is a record without weights; train it"):
        copy.weights()
    assert {path.name for path in target.root.iterdir()} == {SPEC.run_id}
    assert whole.export(SPEC.run_id, target.root).folder == copy.folder  # twice is once
    (copy.folder / "probabilities.safetensors").unlink()  # only weights may be left out
    assert target.status(SPEC.run_id) == "damaged"


def test_a_copy_with_weights_can_be_gone_on_from(whole, run, tmp_path):
    copy = whole.export(SPEC.run_id, tmp_path, weights=True)
    assert torch.equal(copy.weights()["stem.weight"], run.weights()["stem.weight"])
    again = Store(tmp_path).export(SPEC.run_id, tmp_path / "second", weights=True)  # into the store of a later session
    assert {path.name for path in again.folder.iterdir()} == {*FILES, "manifest.json"}
    Store(tmp_path / "second").export(SPEC.run_id, tmp_path / "third")
    with pytest.raises(FileNotFoundError, match="record without weights"):
        Store(tmp_path / "third").export(SPEC.run_id, tmp_path / "fourth", weights=True)


@pytest.mark.parametrize("classes, kind", [(10, torch.uint8), (256, torch.uint8), (257, torch.int32)])
def test_a_light_record_holds_what_comparisons_need(tmp_path, classes, kind):
    store = Store(tmp_path / "runs")
    run = commit(store, classes=classes)
    copy = store.export(SPEC.run_id, tmp_path / "light", light=True)
    assert {path.name for path in copy.folder.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "predictions.safetensors",
        "manifest.json",
    }
    assert copy.light and Store(tmp_path / "light").status(SPEC.run_id) == "finished"
    stored = safetensors.torch.load_file(copy.folder / "predictions.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "predicted": kind,
        "labels": kind,
        "true_probability": torch.float16,
        "confidence": torch.float16,
    }
    for name in ("labels", "predicted", "true_probability", "confidence"):
        ours, theirs = getattr(run, name), getattr(copy, name)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
    assert (copy.error, copy.results, copy.spec) == (run.error, run.results, run.spec)
    with pytest.raises(LookupError, match=f"run {SPEC.run_id} is a light record without probabilities .*; train it"):
        copy.probabilities  # noqa: B018
    with pytest.raises(FileNotFoundError, match="without weights"):
        copy.weights()


def test_a_light_record_of_cifar_takes_60_kb(tmp_path):
    images = 10_000
    store = Store(tmp_path / "runs")
    with store.claim(SPEC) as working:
        probabilities = torch.rand(images, 100).half()
        working.commit(RESULTS, [row(1)], [ENVIRONMENT], {}, probabilities, torch.arange(images) % 100)
    copy = store.export(SPEC.run_id, tmp_path / "light", light=True)
    assert sum(path.stat().st_size for path in copy.folder.iterdir()) < 64_000  # 6 bytes an image


def test_a_light_record_is_copied_as_it_is(whole, tmp_path):
    whole.export(SPEC.run_id, tmp_path / "light", light=True)
    for light in (False, True):
        copy = Store(tmp_path / "light").export(SPEC.run_id, tmp_path / f"again-{light}", light=light)
        assert copy.light and copy.error == 25.0


@pytest.mark.parametrize("harm", ["gone", "flipped", "dtype"])
def test_a_damaged_light_record_is_noticed(whole, tmp_path, harm):
    folder = whole.export(SPEC.run_id, tmp_path, light=True).folder
    path = folder / "predictions.safetensors"
    if harm == "gone":
        path.unlink()
    elif harm == "flipped":
        path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    else:
        tensors = safetensors.torch.load_file(path)
        forge(folder, path.name, safetensors.torch.save(tensors | {"predicted": tensors["predicted"].int()}))
        with pytest.raises(RunDamaged, match="other test outputs"):
            Store(tmp_path).load(SPEC.run_id).error  # noqa: B018
        return
    assert Store(tmp_path).status(SPEC.run_id) == "damaged"


def test_a_copy_that_a_crash_cut_off_is_made_anew(whole, tmp_path):
    for litter in (f"tmp-{SPEC.run_id}-copy", f"tmp-{SPEC.run_id}"):
        (tmp_path / litter).mkdir()
        (tmp_path / litter / "run.json").write_text("half")
    assert whole.export(SPEC.run_id, tmp_path).run_id == SPEC.run_id
    assert not (tmp_path / f"tmp-{SPEC.run_id}-copy").exists()


def test_several_copy_into_one_folder_at_once(whole, tmp_path):
    """As three `banlib runs export` do, each of which first checks all runs and then copies them."""
    for seed in range(1, 6):
        commit(whole, SPEC.model_copy(update={"seed": seed}))
    together, failed = threading.Barrier(6), []

    def export():
        together.wait()
        for run_id in whole.ids():
            try:
                whole.export(run_id, tmp_path / "results")
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=export) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target = Store(tmp_path / "results")
    assert not failed and {path.name for path in target.root.iterdir()} == set(whole.ids())
    assert all(target.status(run_id) == "finished" for run_id in whole.ids())
    for run_id in set(whole.ids()) - {SPEC.run_id}:
        whole.remove(run_id)


# Held by one, and cleared


def test_a_finished_run_loses_what_a_crash_after_its_commit_left(store, folder):
    """Killed between the commit and the removal of the resume points, a run is finished; its next owner tidies up."""
    for name in (f"live/{SPEC.run_id}", f"tmp-{SPEC.run_id}"):
        (store.root / name).mkdir()
        (store.root / name / "metrics.jsonl").write_text("")
    with store.claim(SPEC) as working:
        assert working.finished.exists()
    assert not (store.root / "live" / SPEC.run_id).exists() and not (store.root / f"tmp-{SPEC.run_id}").exists()
    assert store.status(SPEC.run_id) == "finished"


def test_removing_takes_finished_and_live(tmp_path):
    store = Store(tmp_path)
    for folder in (store.folder(SPEC.run_id), store.folder(SPEC.run_id, "live")):
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    store.remove(SPEC.run_id)
    assert store.ids() == [] and not list(tmp_path.glob("tmp-*"))
    store.remove(SPEC.run_id)  # nothing to do is no error


def test_case_9_a_run_in_training_is_not_removed_and_its_holder_is_named(store):
    spec = SPEC.model_copy(update={"seed": 1})
    with store.claim(spec) as working:
        save(working, 1)
        with pytest.raises(Busy, match=f"run {spec.run_id} is being trained by process {os.getpid()} on .*; stop it"):
            store.remove(spec.run_id)
    assert store.status(spec.run_id) == "live"


def test_who_waits_may_stop_waiting(store, monkeypatch):
    spec, left = SPEC.model_copy(update={"seed": 1}), []
    monkeypatch.setattr(disk, "SILENT", 0)

    def late():
        raise TimeoutError

    def second():
        with pytest.raises(TimeoutError), store.claim(spec, late):
            pass
        left.append(True)

    with store.claim(spec):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(60)
        assert left == [True], "while the other holds it"


def test_case_9_who_waits_finds_the_run_finished(store, capfd):
    spec, started, trained = SPEC.model_copy(update={"seed": 1}), threading.Event(), []

    def second():
        started.set()
        with store.claim(spec) as working:
            trained.append(not working.finished.exists())

    waiting = threading.Thread(target=second)
    with store.claim(spec) as working:
        waiting.start()
        started.wait()
        while "waiting for it" not in (said := capfd.readouterr().err):
            pass
        assert said.startswith(f"run {spec.run_id} (DenseNetBC-10-4 Teacher, seed 1) is being trained by process ")
        working.commit(RESULTS, [row(1)], [], {}, torch.rand(4, 10).half(), torch.arange(4))
    waiting.join()
    assert trained == [False]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_case_18_reading_needs_no_write_access(store, folder):
    for path in (store.root, folder, store.root / "live", store.root / "locks"):
        path.chmod(0o555)
    assert store.load(SPEC.run_id).error == 25.0 and store.overview()
    with pytest.raises(OSError, match=f"the store {store.root} is not writable"):
        store.claim(SPEC).__enter__()


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted"', "größer 猫", "new\nline", "-dash $HOME %s {x} [a]*"])
def test_case_20_odd_paths_work(whole, tmp_path, name):
    store = Store(tmp_path / name / "deep er")
    run = commit(store)
    assert store.find(SPEC.run_id[:4]) == run.run_id and store.status(run.run_id) == "finished"
    assert (run.folder / "manifest.json").read_bytes() == (whole.root / run.run_id / "manifest.json").read_bytes()
    assert store.export(run.run_id, tmp_path / name / "results").error == 25.0
