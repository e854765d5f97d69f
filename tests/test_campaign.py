"""The campaign: its rule, on made-up errors; its steps; what it trains, takes over and copies, on a small scale."""

import time

import pytest

from banlib.runs import campaign, engines, fit, lineage
from banlib.runs.campaign import choose, choose_rate, steps
from banlib.runs.fit import OutOfTime
from banlib.runs.recipe import PROFILES, Profile, generation_name
from banlib.runs.store import Store
from conftest import interrupted_in, recipe, tiny_spec

SMALL = Profile("tiny", "digits", "DenseNetBC-10-4", recipe(epochs=2, lr_milestones=(1,), test_every=2), 3, 1, 1)


@pytest.mark.parametrize("errors, best, tried", [
    ({0.1: 9, 0.2: 7, 0.4: 6, 0.8: 6.1}, 0.4, [0.1, 0.2, 0.4, 0.8]),
    ({0.1: 9, 0.2: 9, 0.05: 9.5}, 0.1, [0.05, 0.1, 0.2]),
    ({0.1: 9, 0.2: 9.1, 0.05: 8, 0.025: 8}, 0.05, [0.025, 0.05, 0.1, 0.2]),
])  # fmt: skip
def test_the_rate_is_doubled_while_the_error_falls_else_halved(errors, best, tried):
    assert choose_rate(errors.__getitem__) == (best, {rate: errors[rate] for rate in tried})


@pytest.mark.parametrize("lowest, length", [
    ({20: 8.5, 40: 8.2, 80: 8.0}, 20),
    ({20: 8.51, 40: 8.5, 80: 8.0}, 40),
    ({20: 12.0, 40: 8.51, 80: 8.0}, 80),
    ({20: 9.0, 40: 8.0, 80: 8.6}, 40),
])  # fmt: skip
def test_the_shortest_training_within_half_a_point_is_chosen(lowest, length):
    best = {20: 0.4, 40: 0.2, 80: 0.1}  # rate of each length
    own = PROFILES["digits"].recipe

    def error_of(tried):
        assert tried.lr_milestones == tuple(round(share * tried.epochs) for share in (0.3, 0.6, 0.8))
        return lowest[tried.epochs] + abs(tried.lr - best[tried.epochs])

    assert choose(own, lowest, error_of) == own.lasting(length).at(best[length])


def names(specs):
    return {(spec.name, spec.objective, spec.temperature) for spec in specs}


def test_steps_are_those_of_the_plan_in_its_order():
    plans = steps(table=["a run of table 2"])
    assert ("rate", *plans) == campaign.STEPS and plans.pop("table 2") == ["a run of table 2"]
    counts = {step: len({spec.run_id for spec in specs}) for step, specs in plans.items()}
    # controls: 5 networks x 5 seeds; compute: a teacher of twice the epochs, a restart and, to compare, a teacher x 3
    # seeds; objectives: a teacher and 4 objectives x 2 temperatures x 3 seeds; longer: a lineage and its control
    assert counts == {"controls": 25, "compute": 9, "generations": 20, "objectives": 27, "longer": 5}
    assert names(plans["controls"]) == {("Teacher", "label", 1.0), ("BAN-1", "label+teacher", 1.0), ("labels x2", "label", 1.0),
                                        ("label+teacher, halved", "label+teacher", 1.0), ("teacher", "teacher", 1.0)}  # fmt: skip
    assert names(plans["generations"]) == {
        ("Teacher", "label", 1.0),
        *((f"BAN-{k}", "label+teacher", 1.0) for k in (1, 2, 3)),
    }
    own = PROFILES["cifar100-lite"].recipe
    assert {spec.recipe.epochs for spec in plans["compute"]} == {own.epochs, 2 * own.epochs}
    assert {spec.recipe.lr_milestones for spec in plans["longer"]} == {tuple(3 * epoch for epoch in own.lr_milestones)}
    halved = [spec for spec in plans["objectives"] if spec.objective == "label+teacher"]
    assert {(spec.weights, spec.temperature) for spec in halved} == {((0.5, 0.5), 1.0), ((0.5, 0.5), 4.0)}
    for specs in plans.values():
        seen = set()
        for spec in specs:
            assert spec.teacher is None or spec.teacher in seen, "a teacher stands before its students"
            seen.add(spec.run_id)


@pytest.fixture
def small(monkeypatch):
    """The campaign of a network and of seeds that are trained in seconds."""
    monkeypatch.setattr(campaign, "PROFILE", SMALL)
    monkeypatch.setattr(campaign, "DIGITS_SEEDS", ())
    for name, seeds in (("ALL", (0, 1)), ("FEW", (0,)), ("ONE", (0,))):
        monkeypatch.setattr(campaign, name, seeds)


def run(only, records, **more):
    return campaign.run(jobs=1, only=only, records=records, **more)


def test_a_later_session_takes_over_what_was_recorded_and_goes_on(small, tmp_path, monkeypatch):
    records = tmp_path / "records"
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    assert run("controls", records, store=first) == [{"step": "controls", "runs": 10, "finished": 10, "seeds": [0, 1]}]
    kept = Store(records)
    runs = [kept.load(run_id) for run_id in kept.ids()]
    assert len(runs) == 10
    for each in runs:
        own = each.spec.name == generation_name(each.spec.generation)
        whole = own or each.spec.name == "labels x2"
        assert each.light is not whole, "lineages are whole, and what their ensembles are compared with; the rest is light"
        assert (each.folder / "weights.safetensors").exists() == (own and each.spec.objective != "teacher")

    trained, really = [], engines.outcome
    monkeypatch.setattr(engines, "outcome", lambda spec, *args, **more: (
        trained.append((spec.name, spec.seed)), really(spec, *args, **more))[1])  # fmt: skip
    assert run("generations", records, store=second) == [{"step": "generations", "runs": 8, "finished": 8, "seeds": [0, 1]}]
    assert trained == [("BAN-2", 0), ("BAN-3", 0), ("BAN-2", 1), ("BAN-3", 1)]
    assert run("controls,generations", records, store=second)[0]["finished"] == 10 and len(trained) == 4
    assert len(kept.ids()) == 14


def test_a_run_under_way_goes_on_in_a_later_session(tmp_path):
    first, second, records = (Store(tmp_path / name) for name in ("first", "second", "records"))
    spec = tiny_spec()
    with interrupted_in(3):
        fit.fit(spec, first, "cpu", progress=False)
    campaign.keep(spec.run_id, first, records)
    campaign.adopt(records, second)
    assert second.status(spec.run_id) == "live"
    assert len(fit.fit(spec, second, "cpu", progress=False).environments) == 2, "two starts, not one from the beginning"
    campaign.keep(spec.run_id, second, records)
    assert not list((records.root / campaign.UNFINISHED).iterdir())


def test_a_rehearsal_makes_nothing(small, tmp_path):
    store, records = Store(tmp_path / "store"), tmp_path / "records"
    report = run("auto", records, store=store, dry_run=True)
    assert [row["step"] for row in report] == list(campaign.STEPS[1:]) and {row["finished"] for row in report} == {0}
    assert not any(row["seeds"] for row in report), "no seed is complete"
    assert not store.root.exists() and not records.exists()


def test_what_is_finished_is_copied_when_time_is_up(small, tmp_path, monkeypatch):
    records, really, done = tmp_path / "records", engines.outcome, []

    def outcome(spec, *args, **more):
        done.append(spec.run_id)
        return really(spec, *args, **more) if len(done) < 3 else OutOfTime("has 1 of 2 epochs")

    monkeypatch.setattr(engines, "outcome", outcome)
    with pytest.raises(OutOfTime, match="^time is up: 2 of 10 networks"):
        run("controls", records, store=Store(tmp_path / "store"), until=time.monotonic() + 600)
    assert Store(records).ids() == sorted(done[:2])


def test_the_rule_is_obeyed_before_anything_else(small, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "choose_rate", lambda error_at: (0.2, {0.1: error_at(0.1), 0.2: error_at(0.2)}))
    records, store = tmp_path / "records", Store(tmp_path / "store")
    with pytest.raises(RuntimeError, match=r"^the rule chooses 2 epochs at rate 0.2 for tiny: change its recipe first$"):
        run("auto", records, store=store)
    specs = [store.load(run_id).spec for run_id in store.ids()]
    assert {(spec.dataset, spec.recipe.lr) for spec in specs} == {("digits-dev", 0.1), ("digits-dev", 0.2)}
    assert Store(records).ids() == store.ids(), "the search is recorded"
    found = {spec.recipe.lr: [store.load(spec.run_id).results["test_error"]] for spec in specs}
    assert campaign.searched(SMALL, records) == {2: dict(sorted(found.items()))}
    longer = SMALL._replace(recipe=SMALL.recipe.lasting(4))
    assert campaign.searched(longer, records) == campaign.searched(SMALL, records), "of all lengths"
    with pytest.raises(ValueError, match="unknown step 'control'; did you mean 'controls'"):
        run("control", records, store=store)


def test_seeds_are_trained_one_after_the_other(small, tmp_path, monkeypatch):
    """So that what is finished can be compared: by cost, the teachers of all seeds would come first."""
    taken = []

    def side_by_side(plan, *_):
        while spec := plan.ready():
            taken.append((spec.seed, spec.name))
            plan.settle(spec)

    monkeypatch.setattr(engines, "side_by_side", side_by_side)
    campaign.run(jobs=2, only="controls", records=tmp_path / "records", store=Store(tmp_path / "store"))
    assert [seed for seed, _ in taken] == [0] * 5 + [1] * 5 and taken[0] == (0, "Teacher")


def test_errors_of_a_search_are_in_the_order_of_seeds():
    """So that two rates can be compared within a seed."""
    digits, records = campaign.DIGITS, Store(lineage.RESULTS).overview()
    specs = lineage.held_out(digits, digits.recipe, campaign.DIGITS_SEEDS)
    errors = [records[spec.run_id]["results"]["test_error"] for spec in specs]
    assert campaign.searched(digits)[digits.recipe.epochs][digits.recipe.lr] == errors and errors != sorted(errors)
