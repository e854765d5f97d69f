"""The paper's tables as plans of runs, at the size of any profile: what a cell needs, what exists.

A `Cell` is one printed error with the runs that answer it. `plan` lists a table's cells, `train`
trains what they lack, `evidence` finds for every printed error the best runs there are.
"""

import functools
import warnings
from dataclasses import dataclass, field

from banlib import ensemble, models, names
from banlib.paper import printed
from banlib.paper.printed import TABLES, check_rows, check_table
from banlib.paper.shrink import shrunk
from banlib.paper.statistics import CONTROL
from banlib.runs import lineage
from banlib.runs.engines import train_missing
from banlib.runs.parameters import check_network
from banlib.runs.recipe import CONTROLS, PROFILES, BadInput, RunSpec, Settings, generation_name
from banlib.runs.store import RunDamaged, Store

OWN_TEACHER = "its own teacher"
TEACHER = names.MATCHED_TEACHER  # of table 2, and what a baseline is compared with


@dataclass(frozen=True)
class Cell:
    """One printed error and the runs that answer it.

    table: 1 or 2; network, column, paper: the row's name, the column's, the error in %; trained:
    the network trained here. members: places in a chain of the networks whose probabilities are
    averaged, one for a single network; chains: {seed: specs, a teacher before its student}.
    reference, references: what the cell improves on, in words and as {seed: spec}, "" and {} if
    nothing. controls: {seed: spec} of the same network trained on labels x2, {} if untaught.
    """

    table: int
    network: str
    column: str
    paper: float
    profile: str
    trained: str
    members: tuple
    chains: dict
    reference: str = ""
    references: dict = field(default_factory=dict)
    controls: dict = field(default_factory=dict)

    @property
    def paper_reference(self):
        """The reference's error in the paper, %; None if there is none."""
        own = self.network if self.reference == OWN_TEACHER else TEACHER
        return printed.row(own).errors["Baseline"] if self.reference else None


@dataclass(frozen=True)
class Evidence:
    """Finished runs of a cell. members: {seed: [Run, ...]}; references, controls: {seed: Run}."""

    cell: Cell
    members: dict = field(default_factory=dict)
    references: dict = field(default_factory=dict)
    controls: dict = field(default_factory=dict)


def teacher_of(profile, network="auto"):
    """What teaches table 2 in a profile: the network asked for if its blocks can be matched."""
    if network != "auto" and names.parse(check_network(network))[1] == "DenseNetBC":
        return check_network(network)
    return shrunk(TEACHER, *profile.shrink)


def recipe_of(profile, network):
    """The profile's recipe, but without dropout where widths are divided.

    Only wide residual units have it. With a handful of channels they do not even fit the training
    images with it: on digits-dev MatchWideResNet-4-1 ended with a third wrong, else with none.
    """
    wide = names.parse(network)[1] in ("WideResNet", "MatchWideResNet")
    changes = {"dropout": 0.0} if wide and profile.shrink != (1, 1) else {}
    return profile.recipe.but(**changes)


def plan(table, profile, rows="auto", seeds=None, teacher=None, share_ends=True):
    """The cells of a table, in its order.

    rows: see `check_rows`, those of the other table are left out; seeds: by default the profile's
    for tables. teacher: the DenseNetBC that teaches table 2, by default the profile's 90-60.
    share_ends: its students take stem and classifier from the teacher, frozen.
    """
    table, rows, teacher = check_table(table), check_rows(rows), teacher or teacher_of(profile)
    seeds = tuple(range(profile.table_seeds)) if seeds is None else seeds
    if names.parse(teacher)[1] != "DenseNetBC":
        expected = "must be a DenseNetBC, whose blocks its students match"
        raise BadInput(f"the teacher of table 2 {expected}, got {teacher!r}")
    own = [row for row in TABLES[table] if row.network in rows]
    if not own:
        known = ", ".join(row.network for row in TABLES[table])
        raise BadInput(f"rows {', '.join(rows)} are none of table {table}'s: {known}")
    if table == 1:
        return [cell for row in own for cell in _lineage_cells(row, profile, seeds)]
    return [cell for row in own for cell in _pair_cells(row, profile, seeds, teacher, share_ends)]


def _lineage_cells(row, profile, seeds):
    """A row of table 1: a lineage, and the ensembles of its generations."""
    network, gens = shrunk(row.network, *profile.shrink), 3 if row.errors["BAN-3"] else 2
    settings = Settings(profile, network, gens, seeds)
    chains, control = lineage.plan(settings), lineage.controls(settings, [CONTROL])[CONTROL]
    own = OWN_TEACHER, {seed: chain[0] for seed, chain in chains.items()}, control
    common = TEACHER, on_labels(profile, teacher_of(profile), seeds)
    sides = {"Baseline": common if row.network != TEACHER else ()}
    places = {generation_name(k): (k,) for k in range(1, gens + 1)} | ensemble.members(gens)
    for column, members in ({"Baseline": (0,)} | places).items():
        needed = {seed: tuple(chain[: max(members) + 1]) for seed, chain in chains.items()}
        cell = 1, row.network, column, row.errors[column], profile.name, network, members, needed
        yield Cell(*cell, *sides.get(column, own))


def _pair_cells(row, profile, seeds, teacher, share_ends):
    """A row of table 2: a network on labels alone, and the same taught by the table's teacher."""
    network = shrunk(row.network, *profile.shrink, teacher=teacher)
    models.params(network)  # refuses a network that cannot be built
    pairs = pair(profile, teacher, network, seeds, share_ends)
    alone = {seed: (spec,) for seed, spec in on_labels(profile, network, seeds).items()}
    teachers = {seed: chain[0] for seed, chain in pairs.items()}
    untaught = CONTROLS[CONTROL] | {"teacher": None, "share_ends": False}
    control = {seed: changed(chain[1], **untaught) for seed, chain in pairs.items()}
    columns = {"Baseline": ((0,), alone, TEACHER, teachers)}
    columns["BAN"] = (1,), pairs, TEACHER, teachers, control
    for column in (column for column, error in row.errors.items() if error is not None):
        cell = 2, row.network, column, row.errors[column], profile.name, network
        yield Cell(*cell, *columns[column])


def on_labels(profile, network, seeds):
    """{seed: RunSpec} of a network trained on labels alone, as the profile does it."""
    settings = Settings(profile._replace(recipe=recipe_of(profile, network)), network, 0, seeds)
    return {seed: spec for seed, (spec,) in lineage.plan(settings).items()}


def pair(profile, teacher, student, seeds, share_ends=False):
    """{seed: (teacher's RunSpec, student's)}: any network taught by any other."""
    changes = {"network": student, "recipe": recipe_of(profile, student), "share_ends": share_ends}
    changes |= {"objective": "label+teacher", "generation": 1}
    specs = on_labels(profile, teacher, seeds)
    return {seed: (s, changed(s, teacher=s.run_id, **changes)) for seed, s in specs.items()}


def changed(spec, **changes):
    return RunSpec(**(spec.model_dump() | changes))


def specs_of(cells):
    """Every run of the cells' chains, once, a teacher before its students."""
    chains = [chain for cell in cells for chain in cell.chains.values()]
    return list({spec.run_id: spec for chain in chains for spec in chain}.values())


def train(cells, device="auto", jobs=None, store=None, progress=True, **how):
    """Train what the store lacks of the cells' runs; returns a list of `Evidence`, one for each.

    Raises RuntimeError, after all the others, if runs failed; what was trained is kept. jobs, how:
    see `engines.train_missing`.
    """
    store, threads = store or Store(), PROFILES[cells[0].profile].threads
    if failures := train_missing(specs_of(cells), store, device, jobs, threads, progress, **how):
        raise RuntimeError("; ".join(failures))
    run_of = finished_runs([store])
    return [_answer(cell, run_of) for cell in cells]


def finished_runs(stores):
    """A function from a spec to its run, or None. The first store that has it whole gives it.

    A damaged run is named in a warning and left out.
    """

    @functools.cache
    def run_of(spec):
        for store in stores:
            try:
                if store.folder(spec.run_id).exists():
                    run = store.load(spec.run_id)
                    if run.tested:  # reads what will be needed
                        return run
            except RunDamaged as damage:
                warnings.warn(f"{damage}; it is left out", stacklevel=2)
        return None

    return run_of


def _answer(cell, run_of):
    """The evidence of a cell: of the seeds for which every member is finished."""
    members = {}
    for seed, chain in cell.chains.items():
        runs = [run_of(chain[place]) for place in cell.members]
        members |= {seed: runs} if all(runs) else {}
    references, controls = (
        {seed: run_of(specs[seed]) for seed in members if seed in specs and run_of(specs[seed])}
        for specs in (cell.references, cell.controls)
    )
    return Evidence(cell, members, references, controls)


def evidence(table=None, profile=None, stores=None):
    """One `Evidence` for each printed error: the runs of the profile nearest to the paper.

    table: 1 or 2, or both; profile: a name, to look at its runs alone; stores: by default the
    reader's own and results/. A cell that nothing answers has no members.
    """
    stores = stores or [Store(), Store(lineage.RESULTS)]
    run_of = finished_runs(stores)
    runs = [run for store in stores for run in store.overview().values()]
    seeds = tuple(sorted({run["spec"]["seed"] for run in runs})) or (0,)
    profiles = [PROFILES[profile]] if profile else list(PROFILES.values())[::-1]
    answers = []
    for number in [table] if table else TABLES:
        for cells in zip(*(plan(number, one, seeds=seeds) for one in profiles), strict=True):
            several = (_answer(cell, run_of) for cell in cells)
            answers.append(next((one for one in several if one.members), Evidence(cells[0])))
    return answers
