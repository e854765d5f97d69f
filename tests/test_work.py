"""A run in progress: its resume points, its metrics, its end. Whole trainings that are killed are in test_faults.py."""

import errno
import hashlib
import json
import os
import shutil
import warnings

import pytest
import safetensors.torch
import torch

from banlib.runs import work
from banlib.runs.recipe import Recipe, RunSpec
from banlib.runs.store import Store
from banlib.runs.work import RESUME, RunDamaged, header, read_metrics

SPEC = RunSpec(
    network="DenseNetBC-10-4",
    dataset="digits",
    dataset_digest="0" * 64,
    recipe=Recipe(epochs=4, lr_milestones=(2,)),
    seed=0,
    generation=0,
)
TENSORS = {"network.weight": torch.randn(3, 2), "momentum.weight": torch.zeros(3, 2), "network.count": torch.tensor(7)}
ENVIRONMENT = {"device": "cpu", "threads": 1}


def row(epoch):
    return {"epoch": epoch, "lr": 0.1, "train_loss": 2.0 / epoch, "test_error": None}


def save(working, epoch):
    tensors = {name: tensor + epoch for name, tensor in TENSORS.items()}
    working.save(epoch, tensors, [row(number) for number in range(1, epoch + 1)], [ENVIRONMENT])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A store with a run whose epochs 1, 3 and 4 were saved."""
    store = Store(tmp_path_factory.mktemp("saved"))
    with store.claim(SPEC) as working:
        for epoch in (1, 3, 4):
            save(working, epoch)
    return store


@pytest.fixture
def live(saved, store):
    """The run's folder, in a copy."""
    shutil.copytree(saved.root, store.root)
    return store.folder(SPEC.run_id, "live")


def points(live):
    return sorted(path for path in live.iterdir() if RESUME.fullmatch(path.name))


def resumed(store):
    """(epoch, the tensors' common offset, epochs of the metrics) of what a start goes on from."""
    with store.claim(SPEC) as working:
        rows, tensors, environments = working.resume()
    epoch = len(rows)
    assert set(tensors) == set(TENSORS) and tensors["network.count"] - 7 == epoch
    assert torch.equal(tensors["network.weight"], TENSORS["network.weight"] + epoch)
    return epoch, [row["epoch"] for row in rows], environments


# Resume points


def test_a_fresh_run_has_nothing_to_resume(store):
    with store.claim(SPEC) as working:
        assert working.resume() == ([], None, []) and working.diverged() is None


def test_the_two_newest_resume_points_are_kept_and_the_newest_is_gone_on_from(store, live):
    assert [path.name[:13] for path in points(live)] == ["resume-000003", "resume-000004"]
    assert {path.name for path in live.iterdir()} == {path.name for path in points(live)} | {"metrics.jsonl"}
    assert resumed(store) == (4, [1, 2, 3, 4], [ENVIRONMENT])
    assert [row["epoch"] for row in read_metrics(live / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_resume_point_is_a_safetensors_file_that_names_its_size_and_digest(live):
    path = points(live)[-1]
    _, size, digest = RESUME.fullmatch(path.name).groups()
    raw = path.read_bytes()
    assert len(raw) == int(size) and hashlib.sha256(raw).hexdigest() == digest
    with safetensors.safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    assert state["spec"] == SPEC.canonical() and header(raw)["__metadata__"]["state"] == json.dumps(state)


def test_tensors_are_saved_from_wherever_and_however_they_lie(store):
    tensors = {"a": torch.randn(4, 6).T, "b": torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)}
    with store.claim(SPEC) as working:
        working.save(1, tensors, [row(1)], [])
        _, again, _ = working.resume()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def harm_point(path, harm):
    raw = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm == "a link":
        (path.parent / "elsewhere").write_bytes(raw)
        path.symlink_to(path.parent / "elsewhere")
    else:
        flipped = raw[:-1] + bytes([raw[-1] ^ 1])
        path.write_bytes({"truncated": raw[:100], "empty": b"", "flipped": flipped}[harm])


SAID = {
    "truncated": "has 100 bytes, expected",
    "empty": "has 0 bytes, expected",
    "flipped": "has SHA-256 .*, expected ",
    "a link": "is missing, a link, or no file",
    "a folder": "is missing, a link, or no file",
}


@pytest.mark.parametrize("harm", SAID)
def test_cases_3_and_4_a_damaged_resume_point_is_named_and_the_one_before_used(store, live, harm):
    path = points(live)[-1]
    harm_point(path, harm)
    said = f"a resume point of run {SPEC.run_id} is damaged: {path.name} {SAID[harm]}.*; trying the one before"
    with pytest.warns(UserWarning, match=said):
        assert resumed(store) == (3, [1, 2, 3], [ENVIRONMENT])


@pytest.mark.parametrize("harm", SAID)
def test_case_3_without_a_whole_resume_point_nothing_is_overwritten(store, live, harm):
    for path in points(live):
        harm_point(path, harm)
    before = sorted(live.iterdir())
    said = f"no resume point of run .* is whole; `banlib runs rm {SPEC.run_id}`"
    with pytest.warns(UserWarning), store.claim(SPEC) as working, pytest.raises(RunDamaged, match=said):
        working.resume()
    assert sorted(live.iterdir()) == before


@pytest.mark.parametrize("harm", ["flipped", "a folder"])
def test_case_3_the_point_fallen_back_to_is_kept_until_a_newer_one_is_whole(store, live, harm):
    """The damaged one goes instead; but a folder is nothing that banlib made, so it stays."""
    harm_point(points(live)[-1], harm)
    with pytest.warns(UserWarning), store.claim(SPEC) as working:
        working.resume()
        save(working, 4)
    files = [path.name[:13] for path in points(live) if path.is_file()]
    assert files == ["resume-000003", "resume-000004"] and len(points(live)) == 2
    assert len(list(live.glob("*.folder"))) == (1 if harm == "a folder" else 0)


def test_case_2_only_known_litter_is_removed(store, live):
    ours = [".metrics.jsonl.tmp", ".diverged.json.tmp", f".resume-000003-1-{'0' * 64}.safetensors.tmp"]
    theirs = ["notes.txt", ".notes.tmp"]
    for name in ours + theirs:
        (live / name).write_text("half")
    (live / f".resume-000009-1-{'0' * 64}.safetensors.tmp").mkdir()
    with store.claim(SPEC):
        assert not any((live / name).exists() for name in ours)
        assert all((live / name).read_text() == "half" for name in theirs)


def test_case_8_a_full_disk_leaves_the_resume_points_and_says_so(store, live, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(live.iterdir())
    with store.claim(SPEC) as working:
        working.resume()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"cannot write to {live}: No space left on device; needs .* MB, .* MB are fr"):
            save(working, 4)
        monkeypatch.undo()
    assert sorted(live.iterdir()) == before and resumed(store)[0] == 4


# Planted and incomplete ones


def replant(live, raw):
    """A resume point with this content and a name that vouches for it, in place of all others."""
    for path in points(live):
        path.unlink()
    (live / f"resume-000004-{len(raw)}-{hashlib.sha256(raw).hexdigest()}.safetensors").write_bytes(raw)


def refused(store, match):
    with store.claim(SPEC) as working, pytest.raises(RunDamaged) as caught:
        working.resume()
    said = str(caught.value)
    assert "is refused" in said and "resume-000004" in said and f"`banlib runs rm {SPEC.run_id}`" in said
    assert match in said and "\n" not in said


@pytest.mark.parametrize("part", ["spec", "rows", "environments", "state", "a row", "another spec"])
def test_case_29_a_resume_point_that_lacks_a_part_is_refused(store, live, part):
    raw = points(live)[-1].read_bytes()
    tensors, state = safetensors.torch.load(raw), json.loads(header(raw)["__metadata__"]["state"])
    if part == "a row":
        state["rows"].pop(0)
    elif part == "another spec":
        state["spec"] = SPEC.model_copy(update={"seed": 1}).canonical()
    elif part in state:
        del state[part]
    metadata = None if part == "state" else {"state": json.dumps(state)}
    replant(live, safetensors.torch.save(tensors, metadata=metadata))
    match = {"a row": "lacks the metrics of some of its 4 epochs", "another spec": "belongs to another spec"}
    refused(store, match.get(part, "it lacks " + ("environments, rows, spec" if part == "state" else part)))


def hostile(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


def state_with(**changes):
    rows = [row(epoch) for epoch in (1, 2, 3, 4)]
    state = {"spec": SPEC.canonical(), "rows": rows, "environments": []} | changes
    return {"state": json.dumps(state)}


def with_tensor(**entry):
    text = {"__metadata__": state_with(), "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}
    return hostile(json.dumps(text).encode(), bytes(4))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 200,
        hostile(b"{}")[:7],
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        hostile(b"[" * 100_000),
        hostile(b"null"),
        hostile(b"[]"),
        hostile(b'{"__metadata__": 3}'),
        hostile(b'{"__metadata__": {"state": 3}}'),
        hostile(json.dumps({"__metadata__": {"state": "[" * 100_000}}).encode()),
        hostile(json.dumps({"__metadata__": {"state": "null"}}).encode()),
        hostile(json.dumps({"__metadata__": {"state": "3"}}).encode()),
        hostile(json.dumps({"__metadata__": state_with(rows=3)}).encode()),
        hostile(json.dumps({"__metadata__": state_with(rows=[1, 2, 3, 4])}).encode()),
        hostile(json.dumps({"__metadata__": state_with(), "x": 3}).encode()),
        with_tensor(shape=[2**62, 2**62]),
        with_tensor(shape=[-1]),
        with_tensor(shape="x"),
        with_tensor(dtype="F99"),
        with_tensor(data_offsets=[0, 2**63]),
        with_tensor(data_offsets=[4, 0]),
        with_tensor()[:-1],
    ],
)
def test_case_25_hostile_bytes_are_refused_in_a_sentence(store, live, raw):
    replant(live, raw)
    refused(store, "")


def test_case_29_metrics_without_a_resume_point_are_refused(store, live):
    for path in points(live):
        path.unlink()
    said = "no resume point of run .* is whole; `banlib runs rm"
    with store.claim(SPEC) as working, pytest.raises(RunDamaged, match=said):
        working.resume()


# Diverged


def test_case_11_why_a_run_diverged_is_told_to_whoever_asks_next(store):
    with store.claim(SPEC) as working:
        working.give_up("diverged in epoch 2", epoch=2, step=1, lr=0.1)
    assert store.status(SPEC.run_id) == "diverged"
    with store.claim(SPEC) as working:
        assert working.diverged() == "diverged in epoch 2"


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, None])
def test_a_damaged_note_of_a_divergence_names_its_file_and_the_remedy(store, content):
    with store.claim(SPEC) as working:
        path = working.live / "diverged.json"
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(RunDamaged) as caught:
            working.diverged()
    said = str(caught.value)
    assert str(path) in said and f"`banlib runs rm {SPEC.run_id}` starts the run over" in said and "\n" not in said
    store.remove(SPEC.run_id)
    assert store.status(SPEC.run_id) == "missing"


# The end


def finish(working):
    probabilities = torch.softmax(torch.randn(20, 10), 1).half()
    weights = {"weight": torch.randn(3, 2)}
    working.commit({"test_error": 1.0}, [row(1)], [ENVIRONMENT], weights, probabilities, torch.arange(20) % 10)


def test_a_commit_takes_the_resume_points_with_it(store, live):
    with store.claim(SPEC) as working:
        finish(working)
    assert not live.exists() and store.status(SPEC.run_id) == "finished"
    with store.claim(SPEC) as working:
        assert working.finished.exists()


def test_who_commits_second_leaves_the_first(store):
    with store.claim(SPEC) as first, store.claim(SPEC.model_copy(update={"seed": 1})) as second:
        second.finished, second.building = first.finished, first.building.with_name("tmp-other")
        finish(first)
        before = (first.finished / "manifest.json").read_bytes()
        finish(second)
    assert (first.finished / "manifest.json").read_bytes() == before and not second.building.exists()


def test_case_8_a_commit_on_a_full_disk_leaves_the_resume_points(store, live, monkeypatch):
    def full(handle):
        if "tmp-" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with store.claim(SPEC) as working, pytest.raises(OSError, match=f"cannot write to .*tmp-{SPEC.run_id}: No space"):
        finish(working)
    monkeypatch.undo()
    assert not list(store.root.glob("tmp-*")), "what cannot be finished makes room"
    assert resumed(store)[0] == 4


def test_a_run_is_finished_though_its_resume_points_cannot_be_removed(store, live, monkeypatch):
    """As where another process holds one of them open on NFS."""
    really = work.discard

    def stuck(folder, doomed=None):
        if doomed is not None:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        really(folder)

    monkeypatch.setattr(work, "discard", stuck)
    with store.claim(SPEC) as working:
        finish(working)
    assert store.status(SPEC.run_id) == "finished"


# Metrics


def test_case_27_a_torn_last_line_is_dropped_with_a_warning(live):
    path = live / "metrics.jsonl"
    whole = path.read_bytes()
    for torn in (b'{"epoch": 3, "lr": 0.', b"{", b"\0\0\0\0"):
        path.write_bytes(whole + torn)
        with pytest.warns(UserWarning, match=f"{path}: the torn last line was dropped"):
            assert [row["epoch"] for row in read_metrics(path)] == [1, 2, 3, 4]
    path.write_bytes(whole + b'{"epoch": 4, "lr": 7}\n')
    with warnings.catch_warnings(action="error"):
        assert [(row["epoch"], row["lr"]) for row in read_metrics(path)][2:] == [(3, 0.1), (4, 7)], "one row an epoch"


@pytest.mark.parametrize("line", [b'{"epoch": 0, ', b"3", b"[]", b"{}", b"null", b'{"epoch": []}', b"[" * 100_000])
def test_a_strange_line_of_metrics_is_damage(live, line):
    path = live / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(RunDamaged, match=f"{path}: line 1 is no JSON of an epoch"):
        read_metrics(path)
