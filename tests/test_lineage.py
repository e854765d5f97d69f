"""Lineages: what is planned, what is trained, and what is read back."""

import pytest

from banlib import ensemble, loop
from banlib.paper import statistics
from banlib.runs import datasets, engines, lineage
from banlib.runs.fit import fit
from banlib.runs.lineage import load_lineages, plan, raise_controls, raise_lineages, recorded
from banlib.runs.parameters import check_parameters
from banlib.runs.recipe import CONTROLS, PROFILES, Profile, Settings
from banlib.runs.store import RunMissing, Store
from conftest import recipe, tiny_spec

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
    """So that BAN-1 and "labels x2" differ in the loss alone: `RunSpec.stream` depends on seed and generation."""
    students = {seed: specs[1] for seed, specs in plan(settings(1)).items()}
    found = lineage.controls(settings(1))
    assert list(found) == ["labels x2", "label+teacher, halved", "teacher", "labels, restarted"]
    for name, specs in found.items():
        for seed, spec in specs.items():
            assert (spec.name, spec.seed, spec.generation) == (name, seed, 1)
            assert spec.recipe == students[seed].recipe
            assert spec.teacher == (None if name.startswith("labels") else students[seed].teacher)
            assert spec.stream("init") == students[seed].stream("init")


def test_a_temperature_trains_no_teacher_anew():
    assert plan(settings(1), "teacher", 2.0)[0][0] == plan(settings(1))[0][0]


def test_a_plan_is_the_papers_loop_over_specs(monkeypatch):
    """Generation by generation, of `loop.born_again`, each taught by the one before."""
    really, calls = loop.born_again, []
    monkeypatch.setattr(loop, "born_again", lambda train, generations: calls.append(generations) or really(train, generations))
    assert [len(chain) for chain in plan(settings(3)).values()] == [4, 4] and calls == [3, 3]


def test_a_longer_plan_starts_with_the_shorter_one():
    """So that more generations later train only what is new."""
    assert plan(settings(3))[0][:3] == plan(settings(2))[0]


def test_lineages_are_runs_by_seed_and_generation(raised):
    store, lineages = raised
    assert list(lineages.runs) == [0, 1] and lineages.network == "DenseNetBC-10-4"
    for seed, runs in lineages.runs.items():
        assert [(run.spec.seed, run.spec.generation) for run in runs] == [(seed, 0), (seed, 1), (seed, 2)]
        assert [run.spec for run in runs] == plan(lineages.settings)[seed]
    assert (lineages.labels() == datasets.load("digits").test.labels).all()
    assert len({run.weights()["stem.weight"] for runs in lineages.runs.values() for run in runs}) == 6


def trained(monkeypatch):
    """A list that gets (seed, name) of each run that is trained."""
    seen, really = [], engines.outcome
    monkeypatch.setattr(engines, "outcome", lambda spec, *args, **more: (
        seen.append((spec.seed, spec.name)), really(spec, *args, **more))[1])  # fmt: skip
    return seen


def test_only_what_the_store_lacks_is_trained(raised, monkeypatch):
    store, seen = raised[0], trained(monkeypatch)
    raise_lineages(settings(), "cpu", 1, store, progress=False)
    assert seen == []
    raise_lineages(settings(3, (1,)), "cpu", 1, store, progress=False)
    assert seen == [(1, "BAN-3")]


def test_controls_are_raised_beside(raised, monkeypatch):
    """With the teachers, if they are not there yet."""
    store, seen = raised[0], trained(monkeypatch)
    runs = raise_controls(settings(), "cpu", 1, store, progress=False)
    assert list(runs) == list(CONTROLS) and sorted(seen) == sorted((seed, name) for seed in (0, 1) for name in CONTROLS)
    for name, by_seed in runs.items():
        assert {seed: (run.spec.seed, run.spec.name) for seed, run in by_seed.items()} == {0: (0, name), 1: (1, name)}
    seen.clear()
    [few] = raise_controls(settings(1, (7,)), "cpu", 1, store, False, ["labels x2"]).values()
    assert seen == [(7, "Teacher"), (7, "labels x2")] and list(few) == [7]


def test_recipes_are_tried_on_held_out_images():
    digits = PROFILES["digits"]
    specs = lineage.held_out(digits, digits.recipe.at(0.2), (0, 1))
    assert [(spec.dataset, spec.recipe.lr, spec.seed, spec.generation) for spec in specs] == [
        ("digits-dev", 0.2, 0, 0),
        ("digits-dev", 0.2, 1, 0),
    ]


def test_loading_trains_nothing(raised, tmp_path, monkeypatch):
    store, lineages = raised
    monkeypatch.setattr(engines, "outcome", lambda *_, **__: pytest.fail("trained"))
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
    assert lineages.settings[1:4] == ("DenseNetBC-10-4", 2, (0, 1)) and lineages.settings.profile.recipe == RECIPE
    assert [[run.spec for run in runs] for runs in lineages.runs.values()] == list(plan(settings()).values())
    assert not any((run.folder / "weights.safetensors").exists() for runs in lineages.runs.values() for run in runs)
    assert statistics.errors(lineages).equals(statistics.errors(raised[1]))
    assert "seeds 0, 1" in statistics.provenance(lineages) and len(statistics.curves(lineages)) == 2 * 3 * 2
    [first] = [runs for seed, runs in lineages.runs.items() if seed == 0]
    assert ensemble.error(first[0].probabilities, lineages.labels()) == pytest.approx(first[0].results["test_error"])


def test_recorded_lineages_of_different_recipes_and_objectives_are_apart(raised, records, tmp_path):
    """And a teacher that taught nobody is a lineage of its own."""
    store, other = raised[0], recipe(epochs=1)
    teacher = raised[1].runs[1][0]
    waits = tiny_spec(seed=2, recipe=RECIPE)  # for its student: it goes with the most lineages
    for spec in (waits, tiny_spec(recipe=other), tiny_spec(1, teacher.run_id, seed=1, recipe=RECIPE, objective="teacher")):
        records_of = fit(spec, store, "cpu", 1, progress=False)
        store.export(records_of.run_id, records.root)
    found = recorded(records)
    told = [(len(next(iter(lineages.runs.values()))), tuple(lineages.runs)) for lineages in found]
    assert told == [(3, (0, 1, 2)), (2, (1,)), (1, (0,))]
    last = [lineages.runs[min(lineages.runs)][-1] for lineages in found]
    assert [run.spec.objective for run in last] == ["label+teacher", "teacher", "label"]
    assert found[1].runs[1][0].run_id == teacher.run_id


def test_a_record_without_its_teacher_is_no_lineage(raised, records):
    """Without BAN-1 of seed 0 there is no BAN-2 of seed 0; its teacher is there, beside the other seed's lineage."""
    records.remove(raised[1].runs[0][1].run_id)
    told = [{seed: len(runs) for seed, runs in lineages.runs.items()} for lineages in recorded(records)]
    assert told == [{0: 1, 1: 3}]


def test_a_damaged_record_is_named_and_left_out(raised, records):
    bad = raised[1].runs[0][1].run_id
    path = records.folder(bad) / "probabilities.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    said = f"run {bad}: probabilities.safetensors has .* bytes, expected .*left out: restore it, or `banlib runs rm {bad}`"
    with pytest.warns(UserWarning, match=said):
        found = recorded(records)
    assert [{seed: len(runs) for seed, runs in lineages.runs.items()} for lineages in found] == [{0: 1, 1: 3}]


def test_controls_and_light_records_are_no_lineages(raised, records):
    before = [lineages.runs for lineages in recorded(records)]
    runs = raise_controls(settings(), "cpu", 1, raised[0], progress=False)
    for by_seed in runs.values():
        for run in by_seed.values():
            raised[0].export(run.run_id, records.root, light=True)
    found = recorded(records)
    assert [lineages.runs for lineages in found] == before
    beside = lineage.recorded_controls(found[0], records)
    assert {name: {seed: run.error for seed, run in by_seed.items()} for name, by_seed in beside.items()} == {
        name: {seed: run.error for seed, run in by_seed.items()} for name, by_seed in runs.items()
    }
    records.remove(runs["teacher"][0].run_id)
    assert 0 not in lineage.recorded_controls(found[0], records)["teacher"]
    whole = runs["labels x2"][0]  # recorded whole, it is still nobody's generation
    records.remove(whole.run_id)
    raised[0].export(whole.run_id, records.root)
    assert [lineages.runs for lineages in recorded(records)] == before


def test_no_records_are_no_lineages(tmp_path):
    assert recorded(Store(tmp_path)) == []


def test_a_profile_is_known_by_its_recipe():
    digits = PROFILES["digits"]
    assert lineage.profile_of("digits", digits.network, digits.recipe) is digits
    own = lineage.profile_of("digits", digits.network, RECIPE)
    assert own.name == "own" and own.recipe == RECIPE
    slow = digits.recipe.at(0.05)
    assert lineage.profile_of("digits", digits.network, slow) == digits._replace(name="digits at rate 0.05", recipe=slow)


def test_the_records_in_the_repository_are_whole():
    """Whatever ships in results/ verifies, file by file."""
    store = Store(lineage.RESULTS)
    for run_id in store.ids():
        assert store.problems(run_id) == []
    runs = [run for run in map(store.load, store.ids()) if not run.light]
    whole = [run for run in runs if run.spec.name not in CONTROLS]
    assert {run.spec.name for run in runs} - {run.spec.name for run in whole} <= {"labels x2"}
    assert whole and sum(len(runs) for lineages in recorded() for runs in lineages.runs.values()) >= len(whole)
