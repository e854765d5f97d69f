"""Lineages: what is planned, what is trained, and what is read back."""

import time
import types

import pytest
from children import outcome
from conftest import recipe, tiny_spec

from banlib import data, ensemble, ledger, lineage, training
from banlib.lineage import load_lineages, plan, raise_lineages, recorded
from banlib.recipe import PROFILES, Profile, Settings, check_parameters
from banlib.store import RunDamaged, RunMissing, Store
from banlib.training import OutOfTime, fit

RECIPE = recipe(epochs=2, lr_milestones=(1,), test_every=2)


def settings(gens=2, seeds=(0, 1), own=RECIPE, network="DenseNetBC-10-4"):
    return Settings(Profile("tiny", "digits", network, own, gens, len(seeds), 1), network, gens, seeds)


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    """A store with a teacher, BAN-1 and BAN-2 for two seeds, and the lineages."""
    store = Store(tmp_path_factory.mktemp("runs"))
    return store, raise_lineages(settings(), "cpu", 1, store, progress=False, deterministic=True)


def test_each_generation_learns_from_the_one_before():
    plans = plan(check_parameters("digits", gens=3, seeds="4,7"))
    assert list(plans) == [4, 7]
    for seed, specs in plans.items():
        assert [spec.name for spec in specs] == ["Teacher", "BAN-1", "BAN-2", "BAN-3"]
        assert [spec.teacher for spec in specs] == [None, *(spec.run_id for spec in specs[:-1])]
        assert [spec.objective for spec in specs] == ["label"] + ["label+teacher"] * 3
        assert {spec.seed for spec in specs} == {seed}
        assert {spec.recipe for spec in specs} == {PROFILES["digits"].recipe}  # a BAN trains as its teacher did
    assert len({spec.run_id for specs in plans.values() for spec in specs}) == 8


def test_controls_start_from_the_students_own_weights_order_and_views():
    """So that BAN-1 and "labels x2" differ in the loss alone: `training.stream` depends on seed and generation."""
    students = {seed: specs[1] for seed, specs in plan(settings(1)).items()}
    found = lineage.controls(settings(1))
    assert list(found) == ["labels x2", "label+teacher, halved", "teacher", "labels, restarted"]
    for name, specs in found.items():
        for seed, spec in specs.items():
            assert (spec.name, spec.seed, spec.generation) == (name, seed, 1)
            assert spec.recipe == students[seed].recipe
            assert spec.teacher == (None if name.startswith("labels") else students[seed].teacher)
            assert training.stream(spec, "init") == training.stream(students[seed], "init")


def test_a_temperature_trains_no_teacher_anew():
    assert plan(settings(1), "teacher", 2.0)[0][0] == plan(settings(1))[0][0]


def test_a_longer_plan_starts_with_the_shorter_one():
    """So that more generations later train only what is new."""
    assert plan(settings(3))[0][:3] == plan(settings(2))[0]


def test_lineages_are_runs_by_seed_and_generation(raised):
    store, lineages = raised
    assert list(lineages.runs) == [0, 1] and lineages.network == "DenseNetBC-10-4"
    for seed, runs in lineages.runs.items():
        assert [(run.spec.seed, run.spec.generation) for run in runs] == [(seed, 0), (seed, 1), (seed, 2)]
        assert [run.spec for run in runs] == plan(lineages.settings)[seed]
    assert (lineages.labels() == data.load("digits").test.labels).all()
    assert len({run.weights()["stem.weight"] for runs in lineages.runs.values() for run in runs}) == 6


def test_only_what_the_store_lacks_is_trained(raised, monkeypatch):
    store, _ = raised
    trained, really = [], training.train
    monkeypatch.setattr(training, "train", lambda spec, *rest: (trained.append((spec.seed, spec.generation)),
                                                                really(spec, *rest)))  # fmt: skip
    raise_lineages(settings(), "cpu", 1, store, progress=False)
    assert trained == []
    raise_lineages(settings(3, (1,)), "cpu", 1, store, progress=False)
    assert trained == [(1, 3)]


def test_two_jobs_give_the_bits_of_one(raised, tmp_path):
    store, lineages = raised
    other_store = Store(tmp_path / "runs")
    side_by_side = raise_lineages(settings(), "cpu", 2, other_store, progress=False, deterministic=True)
    for seed in (0, 1):
        for one, other in zip(lineages.runs[seed], side_by_side.runs[seed], strict=True):
            assert outcome(one) == outcome(other) and one.folder != other.folder
            assert other.environments[0]["threads"] == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_time_that_is_up_is_told_and_the_same_call_goes_on(raised, tmp_path, jobs):
    """Teachers stop between two epochs, students are not begun; started again all ends with the bits of a straight run."""
    store, began = Store(tmp_path / "runs"), time.time()
    with pytest.raises(OutOfTime, match=r"^time is up: \d of 6 networks were trained, finished epochs of the others are kept"):
        raise_lineages(settings(), "cpu", jobs, store, progress=False, deterministic=True, until=began + 0.02)
    status = {store.status(spec.run_id) for spec in plan(settings())[1][1:]}
    assert status == {"missing"}
    straight = raise_lineages(settings(), "cpu", 1, store, progress=False, deterministic=True)
    for seed in (0, 1):
        for one, other in zip(raised[1].runs[seed], straight.runs[seed], strict=True):
            assert outcome(one) == outcome(other)


def test_a_run_that_stops_in_time_ends_the_call_and_is_not_counted_as_trained(store, monkeypatch):
    """The second of six runs says that its time is up: one was trained, and no student is asked for."""
    really, begun = lineage.fit, []

    def fit(spec, *rest, **how):
        begun.append(spec.name)
        if len(begun) == 2:
            raise OutOfTime("has 1 of 2 epochs")
        return really(spec, *rest, **how)

    monkeypatch.setattr(lineage, "fit", fit)
    with pytest.raises(OutOfTime, match="^time is up: 1 of 6 networks were trained"):
        raise_lineages(settings(), "cpu", 1, store, progress=False)
    assert begun == ["Teacher", "BAN-1"]


def test_a_run_whose_time_is_up_before_it_begins_leaves_nothing(store):
    with pytest.raises(OutOfTime, match="was not begun$"):
        training.fit(tiny_spec(), store, "cpu", 1, False, until=time.time() - 1)
    assert store.ids() == []


def test_no_epoch_is_begun_that_would_end_too_late(store, monkeypatch):
    """Epochs of ten seconds by the clock: of twenty-five seconds, two are used."""
    now, steps = types.SimpleNamespace(seconds=1000.0), training.train_epoch

    def train_epoch(*args):
        now.seconds += 10
        return steps(*args)

    monkeypatch.setattr(training, "train_epoch", train_epoch)
    monkeypatch.setattr(training, "time", types.SimpleNamespace(time=lambda: now.seconds, perf_counter=lambda: now.seconds))
    spec = tiny_spec()
    with pytest.raises(OutOfTime, match=r"has 2 of 4 epochs$"):
        training.fit(spec, store, "cpu", 1, False, until=1025)
    assert store.status(spec.run_id) != "finished"
    run = training.fit(spec, store, "cpu", 1, False)
    assert len(run.metrics) == 4 and len(run.environments) == 2


def test_two_jobs_tell_of_a_failure_as_one_does(tmp_path):
    """The other lineage finishes all the same."""
    store, wild = Store(tmp_path / "runs"), settings(1, (0, 1), recipe(epochs=2, lr=1e8, lr_milestones=()))
    with pytest.raises(RuntimeError) as caught:
        raise_lineages(wild, "cpu", 2, store, progress=False)
    first, second = sorted(str(caught.value).split("; "))
    for seed, sentence in enumerate((first, second)):
        run_id = plan(wild)[seed][0].run_id
        assert sentence.startswith(f"seed {seed}: DenseNetBC-10-4 Teacher (run {run_id}) diverged in epoch ")
        assert sentence.endswith("(blocked: BAN-1)")


def test_loading_trains_nothing(raised, tmp_path, monkeypatch):
    store, lineages = raised
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained"))
    assert load_lineages(settings(), store).runs == lineages.runs
    with pytest.raises(RunMissing, match="no finished run"):
        load_lineages(settings(), Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="device 'cudaa' is not here; found: cpu"):
        raise_lineages(settings(), "cudaa", 1, Store(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


# Records that ship with the book


@pytest.fixture
def records(raised, tmp_path):
    store = Store(tmp_path / "results")
    for runs in raised[1].runs.values():
        for run in runs:
            raised[0].export(run.run_id, store.root)
    return store


def test_recorded_lineages_are_read_without_weights_or_training(raised, records):
    [lineages] = recorded(records)
    assert lineages.settings[1:] == ("DenseNetBC-10-4", 2, (0, 1)) and lineages.settings.profile.recipe == RECIPE
    assert [[run.spec for run in runs] for runs in lineages.runs.values()] == list(plan(settings()).values())
    assert not any((run.folder / "weights.safetensors").exists() for runs in lineages.runs.values() for run in runs)
    assert ledger.errors(lineages).equals(ledger.errors(raised[1]))
    assert "seeds 0, 1" in ledger.provenance(lineages) and len(ledger.curves(lineages)) == 2 * 3 * 2
    [first] = [runs for seed, runs in lineages.runs.items() if seed == 0]
    assert ensemble.error(first[0].probabilities, lineages.labels()) == pytest.approx(first[0].results["test_error"])


def test_recorded_lineages_of_different_recipes_and_objectives_are_apart(raised, records, tmp_path):
    """And a teacher that taught nobody is a lineage of its own."""
    store, other = raised[0], recipe(epochs=1)
    teacher = raised[1].runs[1][0]
    for spec in (tiny_spec(recipe=other), tiny_spec(1, teacher.run_id, seed=1, recipe=RECIPE, objective="teacher")):
        records_of = fit(spec, store, "cpu", 1, progress=False)
        store.export(records_of.run_id, records.root)
    found = recorded(records)
    told = [(len(next(iter(lineages.runs.values()))), tuple(lineages.runs)) for lineages in found]
    assert told == [(3, (0, 1)), (2, (1,)), (1, (0,))]
    last = [lineages.runs[min(lineages.runs)][-1] for lineages in found]
    assert [run.spec.objective for run in last] == ["label+teacher", "teacher", "label"]
    assert found[1].runs[1][0].run_id == teacher.run_id


def test_a_record_without_its_teacher_is_no_lineage(raised, records):
    """Without BAN-1 of seed 0 there is no BAN-2 of seed 0; its teacher is there, and taught nobody."""
    records.remove(raised[1].runs[0][1].run_id)
    told = [{seed: len(runs) for seed, runs in lineages.runs.items()} for lineages in recorded(records)]
    assert told == [{1: 3}, {0: 1, 1: 1}]


def test_a_damaged_record_is_told_not_left_out(raised, records):
    path = records.folder(raised[1].runs[0][1].run_id) / "probabilities.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunDamaged, match="probabilities.safetensors has .* bytes, expected"):
        recorded(records)


def test_no_records_are_no_lineages(tmp_path):
    assert recorded(Store(tmp_path)) == []


def test_a_profile_is_known_by_its_recipe():
    digits = PROFILES["digits"]
    assert lineage.profile_of("digits", digits.network, digits.recipe) is digits
    own = lineage.profile_of("digits", digits.network, RECIPE)
    assert own.name == "own" and own.recipe == RECIPE


def test_the_records_in_the_repository_are_whole():
    """Whatever ships in results/ verifies, file by file."""
    store = Store(lineage.RESULTS)
    for run_id in store.ids():
        assert store.problems(run_id) == []
    assert sum(len(runs) for lineages in recorded() for runs in lineages.runs.values()) >= len(store.ids())
