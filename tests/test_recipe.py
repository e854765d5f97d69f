"""Specs and their ids."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from banlib import objectives
from banlib.runs.recipe import LATER, OBJECTIVE_TERMS, PROFILES, Recipe, RunSpec
from conftest import TINY, recipe, tiny_spec


def test_the_papers_schedule():
    """0.1, times 0.2 after epochs 60, 120 and 160 (the recipe of wide residual networks)."""
    paper = PROFILES["cifar100"].recipe
    rates = {epoch: paper.lr_at(epoch) for epoch in (1, 60, 61, 120, 121, 160, 161, 200)}
    expected = {1: 0.1, 60: 0.1, 61: 0.02, 120: 0.02, 121: 0.004, 160: 0.004, 161: 0.0008, 200: 0.0008}
    assert rates == pytest.approx(expected)
    assert (paper.epochs, paper.batch, paper.momentum, paper.weight_decay) == (200, 128, 0.9, 5e-4)
    assert paper.nesterov and paper.flip and paper.pad == 4 and paper.border == "reflect" and paper.dropout == 0.3


def test_a_recipe_of_another_length_or_rate_is_checked_as_any():
    """An epoch is the least that a milestone can be; what is trained must be readable."""
    for epochs in range(1, 81):
        spec = tiny_spec(recipe=PROFILES["digits"].recipe.lasting(epochs))
        assert RunSpec.model_validate_json(spec.canonical()) == spec and spec.recipe.epochs == epochs
    assert PROFILES["digits"].recipe.lasting(1).lr_at(1) == PROFILES["digits"].recipe.lr
    for change in (lambda: TINY.at(0), lambda: TINY.lasting(0), lambda: TINY.but(epoch=3)):
        with pytest.raises(ValidationError):
            change()


def test_every_determinant_changes_the_run_id():
    spec = tiny_spec()
    others = [
        tiny_spec(network="DenseNetBC-10-5"),
        tiny_spec(dataset_digest="0" * 64),
        tiny_spec(seed=1),
        tiny_spec(imported="0" * 64),
        tiny_spec(imported="1" * 64),
        tiny_spec(1, teacher="0" * 16),
        tiny_spec(1, teacher="1" * 16),
        tiny_spec(2, teacher="1" * 16),
        tiny_spec(1, teacher="1" * 16, objective="teacher"),
        tiny_spec(1, teacher="1" * 16, temperature=2.0),
        *(tiny_spec(recipe=recipe(**{name: value})) for name, value in {
            "epochs": 5, "batch": 49, "lr": 0.2, "lr_milestones": (3,), "lr_factor": 0.1, "momentum": 0.8,
            "nesterov": False, "weight_decay": 1e-4, "pad": 2, "border": "zero", "flip": True, "dropout": 0.0,
            "precision": "auto",
        }.items()),
    ]  # fmt: skip
    ids = {other.run_id for other in others}
    assert len(ids) == len(others) and spec.run_id not in ids


def test_the_run_id_is_the_same_in_another_process():
    """Not a salted hash, no memory address, no dict order."""
    spec = tiny_spec()
    code = f"from banlib.runs.recipe import RunSpec; print(RunSpec.model_validate_json({spec.canonical()!r}).run_id)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == spec.run_id


def test_a_spec_cannot_change_and_holds_nothing_unknown():
    with pytest.raises(ValidationError):
        tiny_spec().seed = 3
    with pytest.raises(ValidationError):
        RunSpec(**tiny_spec().model_dump(), surprise=1)


@pytest.mark.parametrize("changes", [
    {"epochs": 0}, {"batch": 0}, {"lr": 0}, {"lr": math.nan}, {"lr": math.inf}, {"momentum": 1.0}, {"pad": -1},
    {"weight_decay": -1}, {"border": "wrap"}, {"precision": "fp8"}, {"dropout": 1.0},
])  # fmt: skip
def test_an_absurd_recipe_is_refused(changes):
    with pytest.raises(ValidationError):
        Recipe(**(TINY.model_dump() | changes))


def test_a_student_needs_a_teacher_and_a_teacher_none():
    with pytest.raises(ValidationError, match="do not go together"):
        tiny_spec(1, objective="label+teacher")
    with pytest.raises(ValidationError, match="do not go together"):
        tiny_spec(0, teacher="0" * 16, objective="label")
    with pytest.raises(ValidationError, match="did you mean 'label.teacher'"):
        tiny_spec(1, teacher="0" * 16, objective="labels+teacher")
    with pytest.raises(ValidationError):
        tiny_spec(1, teacher="0" * 16, temperature=0)


def test_a_field_that_came_later_leaves_older_ids_alone():
    """The id of a spec from before `share_ends` and the weights: the hash of its JSON without those fields."""
    spec = tiny_spec(1, teacher="0" * 16)
    older = spec.model_dump(mode="json")
    assert older.pop("share_ends") is False and older.pop("label_weight") == older.pop("teacher_weight") == 1
    assert older.pop("imported") is None
    text = json.dumps(older, sort_keys=True, separators=(",", ":"))
    assert spec.run_id == hashlib.sha256(text.encode()).hexdigest()[:16]
    shared = tiny_spec(1, teacher="0" * 16, share_ends=True)
    assert shared.run_id != spec.run_id and '"share_ends":true' in shared.canonical()
    assert type(spec)(**json.loads(shared.canonical())) == shared and type(spec)(**older) == spec


def test_weights_are_part_of_the_id_and_only_where_there_is_a_term_to_weight():
    ids = {tiny_spec(1, label_weight=2).run_id, tiny_spec(1).run_id}
    ids |= {tiny_spec(1, teacher="0" * 16, label_weight=one, teacher_weight=other).run_id
            for one, other in [(1, 1), (0.5, 0.5), (1, 0.5)]}  # fmt: skip
    assert len(ids) == 5
    for changes in ({"teacher_weight": 2}, {"teacher": "0" * 16, "objective": "teacher", "label_weight": 2}):
        with pytest.raises(ValidationError, match="has no term for .*_weight, which must stay 1"):
            tiny_spec(1, **changes)
    with pytest.raises(ValidationError, match="greater than 0"):
        tiny_spec(1, label_weight=0)


def test_controls_are_named_after_what_they_change():
    taught = {"teacher": "0" * 16}
    names = [spec.name for spec in (
        tiny_spec(), tiny_spec(1, **taught), tiny_spec(2, **taught), tiny_spec(1, label_weight=2), tiny_spec(1),
        tiny_spec(1, **taught, label_weight=0.5, teacher_weight=0.5), tiny_spec(1, **taught, objective="teacher"),
        tiny_spec(1, **taught, objective="teacher", temperature=2),
    )]  # fmt: skip
    assert names == ["Teacher", "BAN-1", "BAN-2", "labels x2", "labels, restarted", "label+teacher, halved", "teacher",
                     "BAN-1"]  # fmt: skip


def test_ends_are_shared_with_a_teacher():
    with pytest.raises(ValidationError, match="share_ends needs a teacher"):
        tiny_spec(share_ends=True)


def test_the_terms_that_need_no_torch_are_those_of_the_objectives():
    terms = {name: tuple(term is not None for term in pair) for name, pair in objectives.OBJECTIVES.items()}
    assert terms == OBJECTIVE_TERMS


RESULTS = Path(__file__).parents[1] / "results"
RECORDS = sorted(path.parent for path in RESULTS.glob("*/run.json"))


def test_four_records_ship():
    assert {"021b4e972a8e37a9", "1796a07e8ab76f65", "b7a634791d2440b5", "bec4272b042b439c"} <= {r.name for r in RECORDS}


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_a_shipped_record_hashes_to_the_name_of_its_folder(record):
    """Run ids never change: a reader's finished runs and these records would be lost."""
    spec = json.loads((record / "run.json").read_text())["spec"]
    assert RunSpec(**spec).run_id == record.name
    unchanged = {name for name, value in LATER.items() if spec.get(name, value) == value}
    text = json.dumps({k: v for k, v in spec.items() if k not in unchanged}, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == record.name


def test_a_stream_depends_on_seed_generation_epoch_and_purpose_alone():
    """The first 63 bits of SHA-256 of "seed/generation/epoch/purpose"."""
    spec = tiny_spec(2, teacher="0" * 16, seed=7)
    digest = hashlib.sha256(b"7/2/5/epoch").hexdigest()
    assert spec.stream("epoch", 5) == int(digest[:16], 16) >> 1
    other = tiny_spec(2, teacher="1" * 16, seed=7, network="DenseNetBC-10-5", recipe=recipe(lr=0.3))
    assert other.stream("epoch", 5) == spec.stream("epoch", 5)
    assert len({spec.stream("init"), spec.stream("epoch"), spec.stream("epoch", 1), tiny_spec().stream("init")}) == 4
