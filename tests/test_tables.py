"""The paper's tables as plans: which runs a printed error needs, what they cost, and what is found for it later."""

import json

import pytest

from banlib import ensemble, models, names
from banlib.paper import cost, ledger, tables
from banlib.paper import printed as paper
from banlib.paper.shrink import shrunk
from banlib.paper.statistics import interval
from banlib.runs import datasets, lineage
from banlib.runs.fit import fit
from banlib.runs.recipe import PROFILES, Settings
from banlib.runs.store import Store
from conftest import recipe

PROFILE = PROFILES["digits"]._replace(recipe=recipe(epochs=1, lr_milestones=()), table_seeds=2)
FULL = PROFILES["cifar100"]
FEW = "DenseNetBC-80-120,MatchWideResNet-1-1,WideResNet-28-10"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(PROFILES, "digits", PROFILE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store that both tables were trained into, for a few rows and two seeds, and what `train` found."""
    store = Store(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "digits", PROFILE)
        cells = {number: tables.plan(number, PROFILE, FEW) for number in (1, 2)}
        found = {n: tables.train(cells[n], "cpu", 1, store, False, deterministic=True) for n in cells}
    return store, found


def test_every_printed_error_is_a_cell():
    cells = [cell for number in (1, 2) for cell in tables.plan(number, FULL, seeds=(0,))]
    printed = [(table, row.network, column, value) for table, rows in ((1, paper.TABLE1), (2, paper.TABLE2))
               for row in rows for column, value in row.errors.items() if value is not None]  # fmt: skip
    assert [(cell.table, cell.network, cell.column, cell.paper) for cell in cells] == printed
    assert [cell.table for cell in cells].count(1) == 23 and [cell.table for cell in cells].count(2) == 22
    assert all(cell.trained == cell.network for cell in cells), "the paper's setting trains the paper's networks"


def test_table_1_has_lineages_and_the_captions_ensembles():
    cells = {(cell.network, cell.column): cell for cell in tables.plan(1, FULL, seeds=(5,))}
    members = {column: cell.members for (name, column), cell in cells.items() if name == "DenseNetBC-80-80"}
    assert members == {
        "Baseline": (0,),
        "BAN-1": (1,),
        "BAN-2": (2,),
        "BAN-3": (3,),
        "Ens*2": (1, 2),
        "Ens*3": (1, 2, 3),
    }
    assert cells["DenseNetBC-80-120", "Ens*3"].members == (0, 1, 2), "the teacher joins where no BAN-3 was trained"
    chain = cells["DenseNetBC-80-80", "BAN-3"].chains[5]
    assert [spec.teacher for spec in chain[1:]] == [spec.run_id for spec in chain[:-1]] and chain[0].teacher is None
    assert cells["DenseNetBC-80-80", "BAN-1"].references[5] == chain[0]
    assert cells["DenseNetBC-80-80", "Baseline"].references[5] == cells["DenseNetBC-90-60", "Baseline"].chains[5][0]
    assert cells["DenseNetBC-90-60", "Baseline"].references == {}
    assert cells["DenseNetBC-80-80", "BAN-1"].paper_reference == 17.3
    assert cells["DenseNetBC-80-80", "Baseline"].paper_reference == 17.69


def test_table_2_has_one_teacher_for_all():
    """22 cells, and one teacher that is trained once: the one of table 1's second row."""
    cells = tables.plan(2, FULL, seeds=(0,))
    specs = tables.specs_of(cells)
    assert len(specs) == 22 + 1
    teacher = tables.plan(1, FULL, "DenseNetBC-90-60", seeds=(0,))[0].chains[0][0]
    students = [spec for spec in specs if spec.teacher]
    assert len(students) == 13 and {spec.teacher for spec in students} == {teacher.run_id}
    assert specs.index(teacher) < min(map(specs.index, students))
    assert all(spec.share_ends and spec.objective == "label+teacher" and spec.generation == 1 for spec in students)
    assert not any(spec.share_ends for spec in specs if not spec.teacher)
    own = tables.specs_of(tables.plan(2, FULL, seeds=(0,), share_ends=False))
    assert not any(spec.share_ends for spec in own) and len({spec.run_id for spec in specs + own}) == 23 + 13


def test_another_teacher_has_students_that_match_it():
    cells = tables.plan(2, PROFILE, "MatchWideResNet-2-1,WideResNet-28-10", seeds=(0,), teacher="DenseNetBC-10-8")
    assert [cell.trained for cell in cells] == ["WideResNet-10-1"] + ["MatchWideResNet-2-1@DenseNetBC-10-8"] * 2
    assert cells[2].chains[0][0].network == "DenseNetBC-10-8"
    with pytest.raises(ValueError, match="teacher of table 2 must be a DenseNetBC.* got 'WideResNet-28-10'"):
        tables.plan(2, PROFILE, teacher="WideResNet-28-10")


def test_only_a_densenet_replaces_the_profiles_teacher():
    """A whole book can be asked for one network: the chapters on table 2 then take it if its blocks can be matched."""
    assert tables.teacher_of(PROFILE, "DenseNetBC-40-12") == "DenseNetBC-40-12"
    assert tables.teacher_of(PROFILE, "WideResNet-16-1") == tables.teacher_of(PROFILE) == "DenseNetBC-16-8"
    with pytest.raises(ValueError, match="did you mean"):
        tables.teacher_of(PROFILE, "DenseNet-40-12")


def test_plans_need_no_dataset(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: pytest.fail(f"{name} was loaded, and would be downloaded"))
    assert len(tables.plan(1, FULL)) == 23


@pytest.mark.parametrize("name", ["digits", "cifar100-lite"])
def test_the_scaled_tables_are_the_profiles_network_and_distinct_rows(name):
    """The profile's own network stands for 90-60, so its lineages are a row of table 1."""
    profile = PROFILES[name]
    cells = [cell for number in (1, 2) for cell in tables.plan(number, profile, seeds=(0,))]
    trained = {cell.network: cell.trained for cell in cells}
    assert trained["DenseNetBC-90-60"] == tables.teacher_of(profile) == profile.network
    assert len(set(trained.values())) == len(trained) == 20, "two rows are one network"
    assert all(name.endswith("@" + profile.network) for name in trained.values() if name.startswith("Match"))


def test_training_a_table_finds_its_cells(trained):
    store, found = trained
    assert [(f.cell.network, f.cell.column) for f in found[1]] == [
        ("DenseNetBC-80-120", column) for column in ("Baseline", "BAN-1", "BAN-2", "Ens*2", "Ens*3")]  # fmt: skip
    for told in found[1] + found[2]:
        assert list(told.members) == [0, 1]
        for seed, runs in told.members.items():
            assert [run.spec for run in runs] == [told.cell.chains[seed][place] for place in told.cell.members]
    # 3 generations of one network, its baseline's reference not among them; teacher, student, and two on labels alone.
    assert len(store.ids()) == 2 * (3 + 4)
    assert found[1][0].references == {}, "a reference that no row needs is not trained to be compared with"
    student = next(f for f in found[2] if f.cell.column == "BAN")
    assert {run.spec.run_id for run in student.references.values()} == {
        runs[0].spec.teacher for runs in student.members.values()}  # fmt: skip


def test_a_student_with_shared_ends_ends_with_its_teachers(trained):
    """Frozen means unmoved: after training, stem and classifier are bit for bit the teacher's."""
    store, found = trained
    [student] = [f.members[0][0] for f in found[2] if f.cell.column == "BAN"]
    own, teachers = student.weights(), store.load(student.spec.teacher).weights()
    ends = ["stem.weight", "head.classifier.weight", "head.classifier.bias"]
    assert all((own[name] == teachers[name]).all() for name in ends)
    assert not (own["head.norm.weight"] == teachers["head.norm.weight"]).all(), "the last norm is the student's own"


def test_training_again_trains_nothing(trained):
    files = {path: path.stat().st_mtime_ns for path in trained[0].root.rglob("*.json")}
    tables.train(tables.plan(2, PROFILE, FEW), "cpu", 1, trained[0], False)
    assert {path: path.stat().st_mtime_ns for path in trained[0].root.rglob("*.json")} == files


def test_a_teacher_that_fails_blocks_its_students_and_nothing_else(store):
    cells = tables.plan(2, PROFILE, FEW, seeds=(0,))
    specs = tables.specs_of(cells)
    [teacher] = [spec for spec in specs if spec.network == PROFILE.network]
    with store.claim(teacher) as work:
        work.give_up("the loss is nan")
    with pytest.raises(RuntimeError, match=r"^seed 0: .*the loss is nan.*\(blocked: BAN-1\)$"):
        tables.train(cells, "cpu", 1, store, False)
    status = {spec.network + spec.name: store.status(spec.run_id) for spec in specs}
    assert status == {
        "WideResNet-10-1Teacher": "finished", "MatchWideResNet-1-1@DenseNetBC-16-8Teacher": "finished",
        "DenseNetBC-16-8Teacher": "diverged", "MatchWideResNet-1-1@DenseNetBC-16-8BAN-1": "missing",
    }  # fmt: skip


def test_two_jobs_take_teachers_before_students(tmp_path, trained):
    store = Store(tmp_path / "runs")
    tables.train(tables.plan(2, PROFILE, FEW, seeds=(1,)), "cpu", 2, store, False, deterministic=True)
    one = [trained[0].load(run_id) for run_id in store.ids()]
    assert all(run.folder.joinpath("weights.safetensors").read_bytes() ==
               store.load(run.run_id).folder.joinpath("weights.safetensors").read_bytes() for run in one)  # fmt: skip


# Costs


def test_cost_counts_runs_epochs_and_arithmetic(trained):
    cells = tables.plan(2, PROFILE, FEW, seeds=(0, 1, 2))
    told = {entry["network"]: entry for entry in cost.cost(cells, "cpu", trained[0])}
    assert list(told) == ["WideResNet-10-1", "MatchWideResNet-1-1@DenseNetBC-16-8", "DenseNetBC-16-8"]
    student = told["MatchWideResNet-1-1@DenseNetBC-16-8"]
    assert (student["runs"], student["finished"], student["epochs"]) == (6, 4, 2)
    own, teachers = (models.forward_macs(name, 8, 1, 10) for name in (student["network"], "DenseNetBC-16-8"))
    # Seed 2: a baseline and a student, one epoch of 100 images each; 6 operations for each multiply-accumulate.
    assert student["flops"] == 100 * (6 * own + 6 * own + 2 * teachers)
    assert student["rows"] == ["MatchWideResNet-1-1"] and told["DenseNetBC-16-8"]["rows"] == []
    assert all(entry["seconds"] > 0 for entry in told.values())
    nothing = cost.cost(tables.plan(2, PROFILE, FEW), "cpu", trained[0])
    assert {(entry["epochs"], entry["flops"], entry["seconds"]) for entry in nothing} == {(0, 0, None)}


def test_time_is_estimated_from_runs_on_this_machine(trained, monkeypatch):
    store, _ = trained
    monkeypatch.setattr(cost, "probe", lambda *_: pytest.fail("timed what was measured already"))
    cells = tables.plan(1, PROFILE, "DenseNetBC-80-120", seeds=(0, 1, 2))
    [entry] = cost.cost(cells, "cpu", store)
    teachers = [store.load(cells[0].chains[seed][0].run_id).results["seconds"] for seed in (0, 1)]
    # Three epochs, of which two ask an online teacher: 2 operations beside the student's 6.
    assert entry["seconds"] == pytest.approx(min(teachers) * 3 * (1 + 2 / 3 / 3))


def test_a_network_never_run_here_is_timed(store):
    [entry] = cost.cost(tables.plan(2, PROFILE, "WideResNet-28-10", seeds=(0,)), "cpu", store)
    assert 0 < entry["seconds"] < 60 and store.ids() == []


def test_when_timing_takes_long_the_others_are_taken_to_be_as_fast(store, monkeypatch):
    timed = []
    monkeypatch.setattr(cost, "PROBE_SECONDS", 0)
    monkeypatch.setattr(cost, "probe", lambda name, *_: timed.append(name) or 1e9)
    entries = cost.cost(tables.plan(2, PROFILE, FEW, seeds=(0,)), "cpu", store)
    assert len(timed) == 1 and all(entry["seconds"] == pytest.approx(entry["flops"] / 1e9) for entry in entries)


# Evidence


def test_evidence_is_what_the_stores_hold_nearest_to_the_paper(trained, monkeypatch):
    store, trained_cells = trained
    found = tables.evidence(stores=[store])
    assert len(found) == 45
    answered = {(f.cell.network, f.cell.column): f for f in found if f.members}
    assert set(answered) == {(f.cell.network, f.cell.column) for n in (1, 2) for f in trained_cells[n]} | {
        ("DenseNetBC-90-60", "Baseline")}, "table 2's teacher is a cell of table 1"  # fmt: skip
    assert answered["DenseNetBC-80-120", "Baseline"].references, "compared with table 2's teacher, since that is there"
    assert all(f.cell.profile == "digits" for f in answered.values())
    lite = PROFILES["cifar100-lite"]
    early = lite._replace(recipe=lite.recipe.at(0.1))  # as a whole lineage was recorded
    monkeypatch.setitem(PROFILES, "cifar100-lite", early)
    shipped = tables.evidence(1, stores=[store, Store(lineage.RESULTS)])
    row = {f.cell.column: f for f in shipped if f.cell.network == "DenseNetBC-90-60"}
    assert {f.cell.profile for f in row.values()} == {"cifar100-lite"} and list(row["BAN-3"].members) == [0]
    alone = tables.evidence(1, "digits", [store, Store(lineage.RESULTS)])
    assert {f.cell.profile for f in alone} == {"digits"} and {f.cell.table for f in alone} == {1}


def copy(store, root, specs, **how):
    for spec in specs:
        store.export(spec.run_id, root, **how)
    return Store(root)


def test_half_an_ensemble_is_no_evidence(trained, tmp_path):
    chain = (
        tables.plan(1, PROFILE, "DenseNetBC-80-120")[0].chains,
        tables.plan(1, PROFILE, "DenseNetBC-80-120")[-1].chains,
    )
    some = copy(trained[0], tmp_path / "some", chain[1][0][:2])
    columns = [f.cell.column for f in tables.evidence(1, "digits", [some]) if f.members]
    assert columns == ["Baseline", "BAN-1"]


def test_a_single_network_is_answered_by_a_light_record(trained, tmp_path):
    [cell] = [f.cell for f in trained[1][2] if f.cell.column == "BAN"]
    some = copy(trained[0], tmp_path / "light", tables.specs_of([cell]), light=True)
    rows = [ledger.ledger([f for f in tables.evidence(2, "digits", [where]) if f.cell.network == cell.network])
            for where in (some, trained[0])]  # fmt: skip
    light, whole = (frame.set_index("column").loc["BAN"] for frame in rows)
    for name in ("measured", "improvement", "p_images", "verdict"):
        assert light[name] == whole[name]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"spec": {}}', b'{"spec": {"seed": "x"}}'])
def test_a_damaged_run_is_named_and_left_out(trained, tmp_path, text):
    """Whatever run it is, of the tables or not: ledger and cost go on without it."""
    whole = trained[0]
    cells = tables.plan(2, PROFILE, "MatchWideResNet-1-1", seeds=(0,))
    some = copy(whole, tmp_path / "some", tables.specs_of(cells))
    doomed = cells[1].chains[0][1].run_id  # the student
    (some.folder(doomed) / "run.json").write_bytes(text)
    with pytest.warns(UserWarning, match=doomed):
        answered = {f.cell.column for f in tables.evidence(2, "digits", [some]) if f.members}
    assert answered == {"Baseline"}
    with pytest.warns(UserWarning, match=doomed):
        entries = {entry["network"]: entry for entry in cost.cost(cells, "cpu", some)}
    assert entries[cells[1].trained]["finished"] == 1 and entries[cells[1].trained]["runs"] == 2
    with pytest.warns(UserWarning, match=doomed):
        answered = {f.cell.column for f in tables.evidence(2, "digits", [some, whole]) if 0 in f.members}
    assert "BAN" in answered, "another store has it whole"


def test_a_cell_carries_the_same_network_on_labels_x2():
    """From the student's own initial weights, order and views, which depend on seed and generation alone."""
    cells = [cell for number in (1, 2) for cell in tables.plan(number, FULL, seeds=(3,))]
    for cell in cells:
        if cell.column == "Baseline":
            assert cell.controls == {}
            continue
        [control] = cell.controls.values()
        assert (control.network, control.objective, control.weights) == (cell.network, "label", (2.0, 1.0))
        assert (control.name, control.teacher, control.share_ends) == ("labels x2", None, False)
        student = cell.chains[3][1]
        assert (control.seed, control.generation, control.recipe) == (student.seed, 1, student.recipe)
    lineages = lineage.controls(Settings(FULL, "DenseNetBC-90-60", 3, (3,)))["labels x2"]
    assert {c.controls[3] for c in cells if c.table == 1 and c.network == "DenseNetBC-90-60" and c.controls} == {lineages[3]}
    specs = {spec.run_id for spec in tables.specs_of(cells)}
    assert not specs & {cell.controls[3].run_id for cell in cells if cell.controls}, "a table trains no controls"


def test_a_control_that_was_trained_is_part_of_the_evidence(trained, tmp_path):
    [cell] = [f.cell for f in trained[1][1] if f.cell.column == "BAN-1"]
    some = copy(trained[0], tmp_path / "some", tables.specs_of([cell]))
    control = fit(cell.controls[0], some, "cpu", progress=False)
    [found] = [f for f in tables.evidence(1, "digits", [some]) if f.cell == cell]
    assert {seed: run.run_id for seed, run in found.controls.items()} == {0: control.run_id}
    [row] = ledger.ledger([found]).to_dict("records")
    assert row["control_gain"] == pytest.approx(control.error - found.members[0][0].error)


def test_the_ledger_reads_the_runs(trained):
    table = ledger.ledger(tables.evidence(stores=[trained[0]]))
    row = table.set_index(["network", "column"]).loc[("DenseNetBC-80-120", "Ens*3")]
    found = next(f for f in trained[1][1] if f.cell.column == "Ens*3")
    errors = [ensemble.error(ensemble.average([run.probabilities for run in runs]), runs[0].labels)
              for runs in found.members.values()]  # fmt: skip
    assert (row["measured"], row["ci95"]) == pytest.approx(interval(errors))
    environment = found.members[0][0].environments[0]
    assert (row["seeds"], row["profile"]) == (2, "digits") and row["trained"] == "DenseNetBC-16-16"
    assert (row["hardware"], row["commit"]) == (environment["hardware"], environment["commit"])
    assert row["verdict"] in ledger.VERDICTS and row["difference"] == pytest.approx(row["measured"] - 14.9)
    json.dumps(table.astype(object).where(table.notna(), None).to_dict("records"), allow_nan=False)


def test_every_network_has_its_profiles_recipe_but_shrunk_wide_ones_no_dropout():
    for profile in (PROFILE, FULL):
        for spec in tables.specs_of([c for n in (1, 2) for c in tables.plan(n, profile, seeds=(0,))]):
            wide = profile is PROFILE and names.parse(spec.network)[1] in ("WideResNet", "MatchWideResNet")
            assert spec.recipe == profile.recipe.model_copy(update={"dropout": 0.0} if wide else {})
            assert spec.recipe.dropout == 0.3 or wide


def test_the_thousand_layers_stand_in_is_short_and_no_two_networks_of_a_table_share_one():
    assert shrunk("PreActResNet-1001", 7, 7.5) == "PreActResNet-74" and shrunk("PreActResNet-1001") == "PreActResNet-1001"
    for profile in PROFILES.values():
        assert len({shrunk(name, *profile.shrink) for name in paper.NAMES}) == len(paper.NAMES)
