"""The faults that a store must survive, by case number: kills, damage, races, divergence, links, bad input.

Kills are real: a child process trains, and dies by SIGKILL at seeded moments or just before a chosen disk operation.
Whatever happened, asking for the run again must end with the bits of a run that nothing disturbed.
"""

import ast
import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import banlib
import children
from banlib import loop
from banlib.runs import datasets, fit, lineage, machine
from banlib.runs.disk import dump
from banlib.runs.fit import OutOfTime
from banlib.runs.parameters import check_parameters
from banlib.runs.recipe import Profile, Settings
from banlib.runs.store import FILES, Diverged, RunMissing, Store
from banlib.runs.work import RESUME, RunDamaged, Work, header, read_metrics
from children import outcome
from conftest import recipe, tiny_spec

SHORT = recipe(epochs=3, test_every=3)
LONG = recipe(epochs=10, lr_milestones=(4, 7), test_every=5)  # long enough for the student's teacher to be remembered


def train(spec, store, **options):
    return fit.fit(spec, store, **{"device": "cpu", "threads": 1, "progress": False, "deterministic": True} | options)


@pytest.fixture(autouse=True, scope="module")
def a_resume_point_each_epoch():
    """Not only every ten seconds, which no run here takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "SAVE_SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A store with a short teacher, and with a long teacher and its BAN-1, which nothing disturbed."""
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    short, long = tiny_spec(recipe=SHORT), tiny_spec(recipe=LONG)
    for spec in (short, long, tiny_spec(1, long.run_id, recipe=LONG)):
        train(spec, store)
    return store


@pytest.fixture
def teacher():
    return tiny_spec(recipe=SHORT)


@pytest.fixture
def finished(undisturbed, teacher, tmp_path):
    """A copy of the finished short run, to damage: its folder, in a store of its own."""
    folder = tmp_path / "copied" / teacher.run_id
    shutil.copytree(undisturbed.folder(teacher.run_id), folder)
    return folder


@pytest.fixture
def interrupted(teacher, store, monkeypatch):
    """The store with the short run interrupted in epoch 3: resume points of epochs 1 and 2."""
    with monkeypatch.context() as patch:
        interrupt(patch, epoch=3)
        with pytest.raises(KeyboardInterrupt):
            train(teacher, store)
    return store.folder(teacher.run_id, "live")


def interrupt(monkeypatch, epoch, step=2, error=KeyboardInterrupt):
    """Raise error in a step of an epoch, once its gradients are there and its weights not yet moved."""
    taken = []

    def hook(*_):
        taken.append(1)
        raise_at(len(taken) == step, error)

    before_epoch(monkeypatch, lambda training, number: number == epoch and training.optimizer.register_step_pre_hook(hook))


def before_epoch(monkeypatch, call):
    """Do call(the `fit.Training`, the epoch's number) before each epoch."""
    really = fit.Training.train
    monkeypatch.setattr(fit.Training, "train", lambda self, epoch, *rest: (
        call(self, epoch), really(self, epoch, *rest))[1])  # fmt: skip


def no_training(monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", lambda *_, **__: pytest.fail("trained"))


def raise_at(here, error):
    if here:
        raise error


def points(live):
    """The resume points in a folder, oldest first: [(epoch, path)]."""
    found = [(int(RESUME.fullmatch(path.name)[1]), path) for path in live.iterdir() if RESUME.fullmatch(path.name)]
    return sorted(found)


def flip(path, place=None):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if place is None else place] ^= 1
    path.write_bytes(raw)


# Case 1: killed at any moment


def test_case_1_killed_at_random_moments_a_lineage_ends_with_the_same_bits(undisturbed, tmp_path):
    """A teacher and its BAN-1, killed at 20 or more seeded moments, started again after each until they are done; and
    on until three kills fell between a run's first and last epoch, however fast or slow the machine has become."""
    long = tiny_spec(recipe=LONG)
    specs, chance = [long, tiny_spec(1, long.run_id, recipe=LONG)], random.Random(1)
    for part in ([], specs):  # the first start brings up the fork server
        begun = time.monotonic()
        children.start(children.train, part, tmp_path / "timed").join()
        takes = time.monotonic() - begun

    kills, half_done, lineages = 0, 0, 0
    while kills < 20 or (half_done < 3 and lineages < 50):
        store, lineages, within = Store(tmp_path / str(lineages)), lineages + 1, 0.5 * takes
        while True:
            child = children.start(children.train, specs, store.root)
            child.join(chance.uniform(0, within))
            child.kill()
            child.join()
            if child.exitcode == 0:
                break
            assert child.exitcode == -9
            kills, within = kills + 1, 1.1 * within  # on a machine that became busy since, it ends all the same
            half_done += any(points(store.folder(run_id, "live")) for run_id in store.ids()
                             if store.status(run_id) == "live")  # fmt: skip
        for spec in specs:
            assert outcome(store.load(spec.run_id)) == outcome(undisturbed.load(spec.run_id))
            assert not store.folder(spec.run_id, "live").exists()
    print(f"{kills} kills of {lineages} lineages, {half_done} of them between a run's first and last epoch")
    assert half_done >= 3


# Case 2: killed while saving


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """Every operation on the disk that training the short run takes, in order."""
    folder = tmp_path_factory.mktemp("operations")
    told = folder / "told"
    children.start(children.train_until_operation, [tiny_spec(recipe=SHORT)], folder / "runs", 0, told).join()
    return json.loads(told.read_text())


def test_case_2_killed_at_any_disk_operation_a_run_ends_with_the_same_bits(undisturbed, teacher, operations, tmp_path):
    """Killed just before an operation of each kind there is (an fsync: with half of the file written), one seeded
    choice where a kind occurs several times; then started again."""
    kinds = {}
    for number, kind in enumerate(operations, 1):
        kinds.setdefault(kind, []).append(number)
    for needed in ("open .resume.tmp", "fsync .resume.tmp", "rename .resume.tmp", "remove resume",
                   "rename .metrics.jsonl.tmp",
                   "mkdir tmp-<id>", "fsync .weights.safetensors.tmp", "rename .manifest.json.tmp", "rename tmp-<id>",
                   "rename <id>", "rmdir tmp-<id>"):  # fmt: skip
        assert needed in kinds, f"the list of operations lacks {needed!r}"
    chance, expected = random.Random(2), outcome(undisturbed.load(teacher.run_id))
    for kind, numbers in kinds.items():
        number = chance.choice(numbers)
        (tmp_path / str(number)).mkdir()
        store, told = Store(tmp_path / str(number) / "runs"), tmp_path / f"{number}.txt"
        child = children.start(children.train_until_operation, [teacher], store.root, number, told)
        child.join()
        assert child.exitcode == -9 and told.read_text() == kind
        assert store.status(teacher.run_id) in ("missing", "live", "finished"), f"killed before {kind}"
        assert outcome(train(teacher, store)) == expected, f"killed before {kind}"
        assert {path.name for path in store.root.iterdir()} == {"live", "locks", teacher.run_id}, f"litter: {kind}"
        assert list((store.root / "live").iterdir()) == [], f"litter: {kind}"
    print(f"{len(kinds)} kinds of operation among {len(operations)}")


def test_case_2_killed_while_it_is_removed_a_run_is_whole_or_gone(undisturbed, teacher, tmp_path, monkeypatch):
    """Before each operation that removing a run takes: it stays finished, or is gone and can be removed or trained."""
    count, stop = 0, OSError(errno.EIO, "pulled the plug")
    real = {name: getattr(os, name) for name in ("rename", "unlink", "rmdir")}
    for number in range(1, 20):
        store = Store(tmp_path / str(number))
        shutil.copytree(undisturbed.folder(teacher.run_id), store.root / teacher.run_id)
        shutil.copytree(store.root / teacher.run_id, store.root / "live" / teacher.run_id)
        done = []

        def operation(name, number=number, done=done):
            def call(path, *args, **kwargs):
                if f"{teacher.run_id}.json" not in str(path):
                    done.append(name)
                    raise_at(len(done) >= number, stop)
                return real[name](path, *args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, operation(name))
            try:
                store.remove(teacher.run_id)
            except OSError:
                count += 1
        if len(done) < number:
            break
        assert store.status(teacher.run_id) in ("finished", "live", "missing")
        store.remove(teacher.run_id)
        assert store.status(teacher.run_id) == "missing" and store.ids() == []
        assert not list(store.root.glob("tmp-*"))
    assert count == number - 1 >= 8


# Cases 3 and 4: truncated, empty, one bit flipped


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["truncated", "empty", "gone", "flipped"])
def test_cases_3_and_4_a_damaged_finished_run_is_set_aside_and_said_so(teacher, finished, name, harm, monkeypatch):
    path, store = finished / name, Store(finished.parent)
    size = path.stat().st_size
    if harm == "flipped":
        flip(path)
    elif harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 100 if harm == "truncated" else 0])
    bytes_left = None if harm == "gone" else path.read_bytes()

    assert store.status(teacher.run_id) == "damaged"
    problems = store.problems(teacher.run_id)
    told = {"truncated": f"{name} has 100 bytes, expected {size}", "empty": f"{name} has 0 bytes, expected {size}",
            "gone": f"{name} is missing", "flipped": f"{name} has SHA-256"}[harm]  # fmt: skip
    assert any(told in problem for problem in problems) and all("\n" not in problem for problem in problems)
    with pytest.raises(RunDamaged):
        store.load(teacher.run_id)

    no_training(monkeypatch)
    with pytest.raises(RunDamaged, match="set aside as .*start again to train it anew"):
        train(teacher, store)
    aside = store.root / "aside" / f"{teacher.run_id}-1" / name
    assert (aside.read_bytes() if aside.exists() else None) == bytes_left  # for a person to look at
    assert store.status(teacher.run_id) == "missing"


def test_case_3_a_run_set_aside_is_trained_anew_when_asked_again(undisturbed, teacher, finished):
    store = Store(finished.parent)
    for time_round in (1, 2):
        flip(finished / "weights.safetensors")
        with pytest.raises(RunDamaged, match=f"{teacher.run_id}-{time_round}, start again"):
            train(teacher, store)
        assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id))


@pytest.mark.parametrize("harm", ["truncated", "empty", "flipped", "a link"])
def test_cases_3_and_4_a_damaged_resume_point_falls_back_to_the_one_before(undisturbed, teacher, store, interrupted, harm):
    (_, older), (epoch, newest) = points(interrupted)
    assert epoch == 2
    if harm == "flipped":
        flip(newest)
    elif harm == "a link":
        newest.rename(interrupted / "elsewhere")
        newest.symlink_to(interrupted / "elsewhere")
    else:
        newest.write_bytes(newest.read_bytes()[: 1000 if harm == "truncated" else 0])
    told = {"truncated": "has 1000 bytes, expected", "empty": "has 0 bytes, expected",
            "a link": "is missing, a link, or no file", "flipped": "has SHA-256 .*, expected "}[harm]  # fmt: skip
    said = f"resume point of run {teacher.run_id} is damaged: resume-000002.* {told}.*trying the one before"
    with pytest.warns(UserWarning, match=said):
        run = train(teacher, store)
    assert outcome(run) == outcome(undisturbed.load(teacher.run_id))


def test_case_3_with_no_whole_resume_point_nothing_is_overwritten(teacher, store, interrupted):
    for _, path in points(interrupted):
        flip(path)
    before = {path.name: path.read_bytes() for path in interrupted.iterdir()}
    with pytest.warns(UserWarning), pytest.raises(RunDamaged, match="no resume point .* is whole; `banlib runs rm"):
        train(teacher, store)
    assert {path.name: path.read_bytes() for path in interrupted.iterdir()} == before


def test_case_3_the_resume_point_fallen_back_to_is_kept_until_a_newer_one_is_whole(
    undisturbed, teacher, store, interrupted, monkeypatch
):
    """Epoch 2's is damaged, epoch 2 is trained again and saved; of the then three, the damaged one must go."""
    flip(points(interrupted)[-1][1])
    with monkeypatch.context() as patch:
        interrupt(patch, epoch=3)
        with pytest.warns(UserWarning, match="trying the one before"), pytest.raises(KeyboardInterrupt):
            train(teacher, store)
    assert [epoch for epoch, _ in points(interrupted)] == [1, 2]
    flip(points(interrupted)[-1][1])
    with pytest.warns(UserWarning, match="trying the one before"):
        assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id))


def test_case_4_a_flipped_bit_anywhere_is_noticed(finished, teacher):
    store, chance = Store(finished.parent), random.Random(4)
    for name in (*FILES, "manifest.json"):
        raw = (finished / name).read_bytes()
        for place in [0, len(raw) - 2, *(chance.randrange(len(raw)) for _ in range(6))]:
            flip(finished / name, place)
            assert store.status(teacher.run_id) == "damaged", f"bit of byte {place} of {name}"
            (finished / name).write_bytes(raw)
    assert store.status(teacher.run_id) == "finished"


def test_case_4_a_damaged_teacher_teaches_nobody(finished, teacher):
    store = Store(finished.parent)
    flip(finished / "weights.safetensors")
    student = tiny_spec(1, teacher.run_id, recipe=SHORT)
    with pytest.raises(RunDamaged, match=f"run {teacher.run_id}: weights.safetensors has SHA-256"):
        train(student, store)
    assert store.status(student.run_id) == "missing"


# Case 6 (the part that training owns): the wrong dataset


def test_case_6_another_dataset_is_refused_before_training(store):
    with pytest.raises(ValueError, match="digits here has digest 5e4af43e5685e72e…, the spec expects 00000000"):
        train(tiny_spec(dataset_digest="0" * 64), store)
    assert not store.root.exists()


# Case 8: disk full


@pytest.mark.parametrize("kind, occurrence", [
    ("fsync .resume.tmp", 3), ("fsync .metrics.jsonl.tmp", 2), ("mkdir tmp-<id>", 1), ("fsync .run.json.tmp", 1),
    ("fsync .weights.safetensors.tmp", 1), ("fsync .manifest.json.tmp", 1),
])  # fmt: skip
def test_case_8_a_full_disk_leaves_the_old_state_whole(undisturbed, teacher, store, monkeypatch, kind, occurrence):
    """No space from this operation on: an OSError that says where and how much, and with space the same bits."""
    real, seen = {"fsync": os.fsync, "mkdir": os.mkdir}, []

    def full(path, name):
        seen.append(f"{name} {children.kind_of(path)}")
        return seen.count(kind) >= occurrence and not Path(path).is_dir()

    def fsync(handle):
        if full(path := os.readlink(f"/proc/self/fd/{handle}"), "fsync"):
            os.ftruncate(handle, 10)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        real["fsync"](handle)

    def mkdir(path, *rest, **more):
        if full(path, "mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        real["mkdir"](path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "mkdir", mkdir)
        said = f"cannot write to {store.root}.*: No space left .*; needs [0-9.]+ MB, [0-9.,]+ MB are free there; make room"
        with pytest.raises(OSError, match=said):
            train(teacher, store)
    assert store.status(teacher.run_id) == "live"
    assert [epoch for epoch, _ in points(store.folder(teacher.run_id, "live"))][-1] >= 2
    assert not list(store.root.glob("tmp-*"))  # half a run would keep the full disk full
    assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id))


# Cases 9 and 10: locks


def test_case_9_a_second_process_waits_and_says_for_whom_since_when(undisturbed, teacher, store, tmp_path):
    told = tmp_path / "told"
    with store.claim(teacher):
        child = children.start(children.train_and_tell, [teacher], store.root, told)
        said = wait_for(lambda: told.with_suffix(".stderr").exists() and told.with_suffix(".stderr").read_text())
        held = f"is being trained by process {os.getpid()} on "
        assert said.startswith(f"run {teacher.run_id} (DenseNetBC-10-4 Teacher, seed 0) {held}")
        assert f" since {time.strftime('%Y-')}" in said and said.endswith("; waiting for it\n")
        time.sleep(0.2)
        assert child.is_alive() and store.status(teacher.run_id) == "live"
        with pytest.raises(RuntimeError, match=f"run {teacher.run_id} {held}.*stop it first"):
            store.remove(teacher.run_id)
    child.join()
    assert child.exitcode == 0 and json.loads(told.read_text())["trained"] == 1
    assert outcome(store.load(teacher.run_id)) == outcome(undisturbed.load(teacher.run_id))


def test_case_9_two_processes_train_a_run_once(undisturbed, tmp_path):
    teacher = tiny_spec(recipe=LONG)
    specs, store = [teacher, tiny_spec(1, teacher.run_id, recipe=LONG)], Store(tmp_path / "runs")
    told = [tmp_path / "one", tmp_path / "other"]
    pair = [children.start(children.train_and_tell, specs, store.root, path) for path in told]
    for child in pair:
        child.join()
        assert child.exitcode == 0
    assert sum(json.loads(path.read_text())["trained"] for path in told) == len(specs)
    for spec in specs:
        run = store.load(spec.run_id)
        assert outcome(run) == outcome(undisturbed.load(spec.run_id)) and len(run.environments) == 1


def test_case_9_two_threads_train_a_run_once(undisturbed, teacher, store, monkeypatch):
    really, trained, runs = fit.Training.run, [], []

    def run(self, progress):
        trained.append(1)
        time.sleep(0.5)  # for the other to come
        really(self, progress)

    monkeypatch.setattr(fit.Training, "run", run)
    pair = [threading.Thread(target=lambda: runs.append(train(teacher, store))) for _ in range(2)]
    with pytest.warns(UserWarning, match="threads of one process share .* they take turns; --jobs trains side by side"):
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
    assert len(trained) == 1 and len(runs) == 2
    assert all(outcome(run) == outcome(undisturbed.load(teacher.run_id)) for run in runs)


def test_case_10_the_lock_of_a_killed_process_is_free_at_once(teacher, store, capfd):
    ready = children.context.Event()
    child = children.start(children.claim_and_wait, teacher, store.root, ready)
    assert ready.wait(600)
    child.kill()
    child.join()
    assert (store.root / "locks" / f"{teacher.run_id}.json").exists()  # what it left
    with store.claim(teacher):
        pass
    assert "waiting" not in capfd.readouterr().err


def wait_for(condition):
    for _ in range(600):
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail("waited a minute in vain")


# Case 11: divergence


def spoil(monkeypatch, how, epoch=2, step=2):
    """Make the loss or its gradient bad in one step. Returns a dict that gets the student and its weights before."""
    seen, count, objective_loss, make = {}, [], fit.objective_loss, fit.new_network
    monkeypatch.setattr(fit, "new_network", lambda *args: seen.setdefault("student", make(*args)))

    def objective(name, logits, *rest):
        count.append(1)
        loss = objective_loss(name, logits, *rest)
        if len(count) != 2 * (epoch - 1) + step:  # 100 images in batches of 50
            return loss
        seen["before"] = [parameter.detach().clone() for parameter in seen["student"].parameters()]
        if "gradient" in how:
            logits.register_hook(lambda gradient: gradient * (math.nan if "nan" in how else math.inf))
            return loss
        return loss * {"nan loss": math.nan, "inf loss": math.inf, "-inf loss": -math.inf, "explosion": 1e3}[how]

    monkeypatch.setattr(fit, "objective_loss", objective)
    return seen


@pytest.mark.parametrize("how", ["nan loss", "inf loss", "-inf loss", "explosion", "nan gradient", "inf gradient"])
def test_case_11_a_bad_step_is_not_taken_and_recorded(teacher, store, monkeypatch, how):
    seen = spoil(monkeypatch, how)
    lr = teacher.recipe.lr_at(2)
    sentence = (rf"DenseNetBC-10-4 Teacher \(run {teacher.run_id}\) diverged in epoch 2, step 2, at learning rate "
                rf"{lr:g}: the loss is .*, the gradient's norm ")  # fmt: skip
    with pytest.raises(Diverged, match=sentence) as caught:
        train(teacher, store)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(seen["before"], seen["student"].parameters(), strict=True))

    assert store.status(teacher.run_id) == "diverged"
    live = store.folder(teacher.run_id, "live")
    told = strict(live / "diverged.json")
    assert told == {"sentence": str(caught.value), "epoch": 2, "step": 2, "lr": lr}
    for line in (live / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    with pytest.raises(RunMissing, match=f"BAN-1 .*cannot learn from {teacher.run_id}: .*it is diverged"):
        train(tiny_spec(1, teacher.run_id, recipe=SHORT), store)

    monkeypatch.undo()
    with pytest.raises(Diverged, match=f"epoch 2, step 2, .*`banlib runs rm {teacher.run_id}` forgets it"):
        train(teacher, store)
    store.remove(teacher.run_id)
    assert train(teacher, store).results["test_error"] < 100


def strict(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path.name} holds {name}"))


def test_case_11_a_learning_rate_far_too_high_diverges(store):
    spec = tiny_spec(recipe=recipe(epochs=30, lr=1e8, lr_milestones=()))
    with pytest.raises(Diverged, match=r"diverged in epoch [1-9], step [12], at learning rate 1e\+08: "):
        train(spec, store)


def test_case_11_weights_spoilt_by_the_last_step_of_an_epoch_diverge(teacher, store, monkeypatch):
    """Every training loss was finite; the test loss is the first to show it."""
    steps = loop.train_epoch

    def train_epoch(student, *rest):
        result = steps(student, *rest)
        next(student.parameters()).data.fill_(math.nan)
        return result

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    spec = tiny_spec(recipe=recipe(epochs=1))
    with pytest.raises(Diverged, match="epoch 1, step 2, at learning rate 0.1: the test loss is nan"):
        train(spec, store)
    assert store.status(spec.run_id) == "diverged"
    strict(store.folder(spec.run_id, "live") / "diverged.json")


def test_case_11_the_other_seeds_go_on_and_the_blocked_are_named(store, monkeypatch):
    settings = Settings(Profile("tiny", "digits", "DenseNetBC-10-4", SHORT, 2, 2, 1), "DenseNetBC-10-4", 2, (0, 1))
    stop = Diverged(1, "the loss is nan, the gradient's norm nan")
    before_epoch(monkeypatch, lambda training, epoch: raise_at(
        (training.spec.seed, training.spec.generation, epoch) == (0, 1, 2), stop))  # fmt: skip
    with pytest.raises(RuntimeError, match=r"^seed 0: .*BAN-1 .*diverged in epoch 2, step 1, .*\(blocked: BAN-2\)$"):
        lineage.raise_lineages(settings, "cpu", 1, store, progress=False)
    plans = lineage.plan(settings)
    assert [store.status(spec.run_id) for spec in plans[0]] == ["finished", "diverged", "missing"]
    assert [store.status(spec.run_id) for spec in plans[1]] == ["finished"] * 3


# Cases 12, 14, 15, 16: bad input is refused before anything is created


@pytest.mark.parametrize("gens", [-1, "three", "1e3", "nan", None, 10**9])
def test_case_12_bad_gens_create_nothing(gens, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="^gens must be an integer from 0 to 20, got "):
        lineage.raise_lineages(check_parameters(gens=gens))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("bad, near", [
    (lambda: tiny_spec(network="DenseNet-10-4"), "DenseNetBC-10-4"),
    (lambda: tiny_spec(1, "0" * 16, objective="label+teachers"), "label.teacher"),
    (lambda: check_parameters("cifar100-light"), "cifar100-lite"),
    (lambda: datasets.load("digit"), "digits"),
])  # fmt: skip
def test_case_14_unknown_names_suggest_the_nearest(bad, near):
    with pytest.raises(ValueError, match=f"unknown .*did you mean '{near}'"):
        bad()


def test_case_15_teacher_and_student_of_different_data_are_refused_both_named(store):
    teacher = tiny_spec(dataset="digits-dev", dataset_digest=datasets.load("digits-dev").digest, recipe=recipe(epochs=1))
    train(teacher, store)
    student = tiny_spec(1, teacher.run_id)
    with pytest.raises(ValueError, match=f"teacher {teacher.run_id} learned digits-dev .*1x8x8 images of 10 "
                                         f"classes.*its student {student.run_id} would learn digits .*1x8x8 .*"
                                         "same classes, image size and images"):  # fmt: skip
        train(student, store)
    assert store.status(student.run_id) == "missing"


def test_case_15_an_untrained_teacher_is_named(store):
    student = tiny_spec(1, "0" * 16)
    with pytest.raises(RunMissing, match=f"BAN-1 .run {student.run_id}. cannot learn from {'0' * 16}: .*it is missing"):
        train(student, store)
    assert store.status(student.run_id) == "missing"


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_case_15_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        tiny_spec(1, "0" * 16, temperature=temperature)


@pytest.mark.parametrize("text", ["cudaa", "cuda:7", "gpu", "", "cuda", "CPU", "cuda:-1", None])
def test_case_16_a_device_that_is_not_here_is_refused_with_those_that_are(store, monkeypatch, text):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0 if text == "cuda" else 2)
    found = "cpu" if text == "cuda" else "cpu, cuda:0, cuda:1"
    with pytest.raises(ValueError, match=f"^device {str(text)!r} is not here; found: {found} "):
        fit.fit(tiny_spec(), store, device=text)
    assert not store.root.exists()


def test_case_16_auto_takes_cuda_then_the_cpu_and_says_so(store, monkeypatch, capsys):
    broken = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machine, "refusal", broken.get)
    assert machine.choose_device("auto") == torch.device("cuda:0") == machine.choose_device("cuda")
    assert machine.choose_device("cuda:1") == torch.device("cuda:1")
    broken |= {"cuda:0": "too old a driver", "cuda:1": "no kernel image"}
    with pytest.raises(ValueError, match="^device 'cuda:0' can't be used .too old a driver.; take 'cpu' or 'auto'$"):
        fit.fit(tiny_spec(), store, device="cuda")
    assert not store.root.exists()
    once = tiny_spec(recipe=recipe(epochs=1)), tiny_spec(recipe=recipe(epochs=1), seed=1)
    with warnings.catch_warnings(record=True, action="always") as told:
        train(once[0], store, device="auto", progress=True)
    assert [str(warning.message) for warning in told] == [
        "cuda:0 can't be used (too old a driver); trying the next",
        "cuda:1 can't be used (no kernel image); training on the CPU",
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    train(once[1], store, device="auto", progress=True)
    said = capsys.readouterr().err
    assert "seed 0 on cpu" in said and "seed 1 on cpu" in said


# Case 18: a store that cannot be written


def test_case_18_reading_writes_nothing(undisturbed, tmp_path):
    """Not even a lock or a temporary file: it works on a medium that only reads."""
    child = children.start(children.read_everything, undisturbed.root, tmp_path / "told")
    child.join()
    assert child.exitcode == 0 and json.loads((tmp_path / "told").read_text()) == []


def test_case_18_training_in_a_store_that_cannot_be_written_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder, so nothing can be made below it, not even by root")
    store = Store(tmp_path / "file" / "runs")
    no_training(monkeypatch)
    with pytest.raises(OSError, match=f"the store {store.root} is not writable .*set BANLIB_HOME"):
        train(tiny_spec(), store)


# Case 20: odd paths


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted"', "größer 猫", "new\nline", "-dash $HOME %s {x} [a]*"])
def test_case_20_odd_paths_work_and_change_no_bit(undisturbed, teacher, tmp_path, monkeypatch, name):
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path / name / "deep er"))
    run = train(teacher, Store())
    assert tmp_path / name in run.folder.parents
    assert run.run_id == teacher.run_id and outcome(Store().load(run.run_id)) == outcome(undisturbed.load(run.run_id))


# Case 22: interrupts


@pytest.mark.parametrize("network, objective", [("DenseNetBC-10-4", "label+teacher"), ("WideResNet-10-1", "dkpp")])
def test_case_22_interrupted_a_run_goes_on_to_the_same_bits(undisturbed, tmp_path, monkeypatch, capsys, network, objective):
    """With dropout and with random numbers in the objective too."""
    short = tiny_spec(recipe=SHORT).run_id
    spec = tiny_spec(1, short, network=network, objective=objective, recipe=recipe(epochs=3, dropout=0.3))
    runs = []
    for when in ((), (1, 2, 3)):
        store = Store(tmp_path / str(len(runs)))
        shutil.copytree(undisturbed.folder(short), store.root / short)
        for epoch in when:
            with monkeypatch.context() as patch:
                interrupt(patch, epoch)
                with pytest.raises(KeyboardInterrupt):
                    train(spec, store)
            said = capsys.readouterr().err
            assert f"interrupted in epoch {epoch}; run it again to go on after epoch {epoch - 1}" in said
            assert store.status(spec.run_id) == "live"
            assert len(points(store.folder(spec.run_id, "live"))) == epoch - 1
        runs.append(train(spec, store))
    assert outcome(runs[0]) == outcome(runs[1]) and [len(run.environments) for run in runs] == [1, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OutOfTime, ValueError])
def test_case_22_what_stops_a_run_loses_no_finished_epoch(undisturbed, teacher, store, monkeypatch, error):
    """Though no ten seconds passed since the start, in which an undisturbed run writes no resume point."""
    saved, save = [], Work.save
    monkeypatch.setattr(fit, "SAVE_SECONDS", 10_000)
    monkeypatch.setattr(Work, "save", lambda self, epoch, *rest: (saved.append(epoch), save(self, epoch, *rest)))
    for epoch in (3, 2):
        with monkeypatch.context() as patch:
            interrupt(patch, epoch, error=error)
            with pytest.raises(error):
                train(teacher, store)
        assert saved == [epoch - 1] and [epoch for epoch, _ in points(store.folder(teacher.run_id, "live"))] == saved
        assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id))
        assert saved.pop() == epoch - 1 and not saved
        store.remove(teacher.run_id)
    assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id)) and not saved


@pytest.mark.parametrize("place", ["saying so", "writing", "renaming"])
def test_case_22_a_second_interrupt_while_the_first_is_handled(undisturbed, teacher, store, monkeypatch, place):
    """It leaves at once; lost is at most what the first was about to save."""
    owner, name = {"saying so": (fit.tqdm, "write"), "writing": (os, "fsync"), "renaming": (os, "replace")}[place]
    really, first = getattr(owner, name), []
    with monkeypatch.context() as patch:
        patch.setattr(fit, "SAVE_SECONDS", 10_000)  # so that there is an epoch to save
        interrupt(patch, epoch=2)
        patch.setattr(fit.Training, "save", lambda self, save=fit.Training.save: (first.append(1), save(self)))
        patch.setattr(owner, name, lambda *args: raise_at(first, KeyboardInterrupt) or really(*args))
        with pytest.raises(KeyboardInterrupt):
            train(teacher, store)
    assert store.status(teacher.run_id) == "live"
    assert [epoch for epoch, _ in points(store.folder(teacher.run_id, "live"))] == [1] * (place == "saying so")
    assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id))


@pytest.mark.parametrize("number", [2, 3, 6, 7, 9, 12])
def test_case_22_interrupted_while_saving(undisturbed, teacher, store, monkeypatch, number):
    """Calls of os.replace: the lock's note, three resume points, each with the metrics, five files of the finished
    run."""
    replace, count = os.replace, []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: count.append(1) or raise_at(len(count) == number, KeyboardInterrupt)
                      or replace(*paths))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            train(teacher, store)
    assert outcome(train(teacher, store)) == outcome(undisturbed.load(teacher.run_id))


# Case 23: links and ids that lead out of the store


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_case_23_a_link_in_place_of_a_file_of_a_run_is_damage(finished, teacher, tmp_path, name):
    """Even if what it leads to has the right bytes today."""
    (finished / name).rename(tmp_path / "elsewhere")
    (finished / name).symlink_to(tmp_path / "elsewhere")
    assert Store(finished.parent).status(teacher.run_id) == "damaged"


# Case 24: nothing unpickles


def test_case_24_nothing_in_the_library_unpickles():
    """By name: modules that unpickle, and every call of a load that can."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    loads = {"torch.load", "torch.hub.load", "np.load", "numpy.load", "joblib.load", "yaml.load", "pd.read_pickle"}
    files = sorted(Path(banlib.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not modules & {name.split(".")[0] for name in names}, where
                if getattr(node, "module", None) in ("torch", "numpy", "joblib"):
                    assert "load" not in names, where
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":  # of tensors alone
                assert {"weights_only": True}.items() <= {
                    each.arg: ast.literal_eval(each.value) for each in node.keywords}.items(), where  # fmt: skip
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in loads, where
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("read_pickle", "load_state_dict_from_url"), where
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", where
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") not in ("eval", "exec", "__import__"), where


class Malice:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_case_24_opening_a_store_executes_nothing(finished, teacher, tmp_path):
    marker, store = tmp_path / "executed", Store(finished.parent)
    poison = pickle.dumps(Malice(marker))
    pickle.loads(poison).close()
    assert marker.exists(), "the poison itself works"
    marker.unlink()
    live = store.root / "live" / ("0" * 16)
    live.mkdir(parents=True)
    for folder in (store.root, finished, live):
        for name in ("data.pkl", "weights.pt", "resume.ckpt", "__init__.py", "conftest.py"):
            (folder / name).write_bytes(poison)
        np.save(folder / "probabilities.npy", np.array([Malice(marker)], dtype=object), allow_pickle=True)
    run = store.load(teacher.run_id)
    assert run.metrics is not None and run.probabilities is not None and run.weights()
    fit.network_of(run)
    assert store.ids() == sorted(["0" * 16, teacher.run_id]) and store.status("0" * 16) == "live"
    lineage.recorded(store)

    for name in ("weights.safetensors", "probabilities.safetensors"):  # a pickle in its place, the manifest forged
        (finished / name).write_bytes(poison)
        manifest = json.loads((finished / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(poison), "sha256": hashlib.sha256(poison).hexdigest()}
        (finished / "manifest.json").write_bytes(dump(manifest))
    forged = store.load(teacher.run_id)
    for read in (forged.weights, lambda: forged.probabilities):
        with pytest.raises(RunDamaged, match=f"run {teacher.run_id}: .*no tensors can be read"):
            read()
    assert not marker.exists()


# Case 27: a torn last line of metrics


@pytest.mark.parametrize("left", [b'{"epoch": 3, "lr": 0.', b'{"epoch": 3, "lr": 7}\n', b'{"epoch": 1, "lr": 7}\n'])
def test_case_27_never_two_rows_for_an_epoch(undisturbed, teacher, store, interrupted, monkeypatch, left):
    """Torn, written before the resume point of its epoch was (by another version, say), or repeated."""
    with open(interrupted / "metrics.jsonl", "ab") as file:
        file.write(left)
    watched, save = [], Work.save

    def saved(self, *args):
        save(self, *args)
        path = self.live / "metrics.jsonl"
        watched.extend([[row["epoch"] for row in read_metrics(path)], path.read_text().count("\n")])

    monkeypatch.setattr(Work, "save", saved)
    with warnings.catch_warnings(action="error"):
        run = train(teacher, store)
    assert watched == [[1, 2, 3], 3]
    assert outcome(run) == outcome(undisturbed.load(teacher.run_id)) and list(run.metrics["epoch"]) == [1, 2, 3]


# Case 28: resumed under other conditions


def test_case_28_resumed_under_other_threads_is_warned_of_and_recorded(teacher, store, interrupted):
    with pytest.warns(UserWarning, match=f"run {teacher.run_id} goes on under other conditions .threads 1 -> 2.: it "
                                         "will not be bit-identical"):  # fmt: skip
        run = train(teacher, store, threads=2)
    assert torch.get_num_threads() == 1
    assert [environment["threads"] for environment in run.environments] == [1, 2]
    assert json.loads((run.folder / "run.json").read_text())["environments"] == run.environments


@pytest.mark.parametrize("name", ["hardware", "device", "precision", "layout", "torch"])
def test_case_28_every_condition_that_moves_bits_is_compared(teacher, store, interrupted, monkeypatch, name):
    describe = machine.describe
    monkeypatch.setattr(machine, "describe", lambda *args: describe(*args) | {name: "another"})
    with pytest.warns(UserWarning, match=f"goes on under other conditions .{name} .* -> another"):
        run = train(teacher, store)
    assert run.environments[-1][name] == "another"


def test_case_28_speed_ups_are_conditions_too(teacher, store, interrupted):
    with pytest.warns(UserWarning, match=r"goes on under other conditions .accelerate \[\] -> \['pad-channels'\]"):
        run = train(teacher, store, accelerate=("pad-channels",))
    assert [environment["accelerate"] for environment in run.environments] == [[], ["pad-channels"]]


def test_case_28_resumed_under_the_same_conditions_there_is_no_warning(teacher, store, interrupted):
    with warnings.catch_warnings(action="error"):
        assert len(train(teacher, store).environments) == 2


# Case 29: part of a resume point missing


def rewrite(path, tensors, state):
    """A resume point with other content and a name that vouches for it, in place of all others."""
    raw = safetensors.torch.save(tensors, metadata={"state": json.dumps(state)} if state is not None else None)
    for other in path.parent.glob("resume-*"):
        other.unlink()
    epoch = RESUME.fullmatch(path.name)[1]
    (path.parent / f"resume-{epoch}-{len(raw)}-{hashlib.sha256(raw).hexdigest()}.safetensors").write_bytes(raw)


@pytest.mark.parametrize("part", ["momentum", "one momentum", "weights", "batchnorm", "rows", "a row", "environments",
                                  "spec", "state", "shape"])  # fmt: skip
def test_case_29_a_resume_point_that_lacks_a_part_is_refused(teacher, store, interrupted, part):
    path = points(interrupted)[-1][1]
    raw = path.read_bytes()
    tensors, state = safetensors.torch.load(raw), json.loads(header(raw)["__metadata__"]["state"])
    momentum = [name for name in tensors if name.startswith("momentum.")]
    drop = {"momentum": momentum, "one momentum": momentum[:1], "weights": ["network.stem.weight"],
            "batchnorm": ["network.head.norm.running_mean"]}  # fmt: skip
    for name in drop.get(part, []):
        del tensors[name]
    if part == "a row":
        state["rows"].pop(0)
    elif part == "state":
        state = None
    elif part == "shape":
        tensors[momentum[0]] = torch.zeros(1)  # would broadcast without a word
    elif part in state:
        del state[part]
    rewrite(path, tensors, state)
    before = {path.name for path in interrupted.iterdir()}
    with pytest.raises(RunDamaged, match="refused|no finished"):
        train(teacher, store)
    assert store.status(teacher.run_id) == "live" and {path.name for path in interrupted.iterdir()} == before


def test_case_29_the_resume_point_of_another_spec_is_refused(teacher, store, interrupted):
    other = tiny_spec(recipe=SHORT, seed=1)
    interrupted.rename(interrupted.with_name(other.run_id))
    with pytest.raises(RunDamaged, match="belongs to another spec"):
        train(other, store)


# Case 30: one of several fails


def test_case_30_running_again_does_only_what_is_missing(store, monkeypatch):
    settings = Settings(Profile("tiny", "digits", "DenseNetBC-10-4", SHORT, 1, 2, 1), "DenseNetBC-10-4", 1, (0, 1))
    trained, really = [], fit.Training.run

    def run(self, progress):
        trained.append((self.spec.seed, self.spec.generation))
        raise_at(trained[-1] == (0, 1) and trained.count((0, 1)) == 1, OSError("disk gone"))
        really(self, progress)

    monkeypatch.setattr(fit.Training, "run", run)
    with pytest.raises(RuntimeError, match="^seed 0: disk gone$"):
        lineage.raise_lineages(settings, "cpu", 1, store, progress=False)
    assert trained == [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = lineage.raise_lineages(settings, "cpu", 1, store, progress=False)
    assert trained[4:] == [(0, 1)] and sorted(found.runs) == [0, 1]
    lineage.raise_lineages(settings, "cpu", 1, store, progress=False)
    assert len(trained) == 5
