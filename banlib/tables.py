"""The paper's two tables as plans of runs, at the size of any profile: what a cell needs, what exists, what it costs.

A `Cell` is one printed error with the runs that answer it. `plan` lists a table's cells, `train` trains what they lack,
`cost` says beforehand what that takes, `evidence` finds for every printed error the best runs there are.
"""

import functools
import json
import time
from dataclasses import dataclass, field

from banlib import data, ensemble, lineage, machine, models, paper, training
from banlib.recipe import PROFILES, BadInput, RunSpec, Settings, check_network, generation_name
from banlib.store import Store

TABLES = {1: paper.TABLE1, 2: paper.TABLE2}
OWN_TEACHER = "its own teacher"
TEACHER = models.MATCHED_TEACHER  # of table 2, and what a baseline is compared with
PROBE_FLOP = 1e11  # arithmetic of a timed step at the most: a second or two on a laptop
PROBE_SECONDS = 10  # after which networks are no longer timed, but taken to be as fast as those that were


@dataclass(frozen=True)
class Cell:
    """One printed error and the runs that answer it.

    table: 1 or 2; network, column, paper: the row's name, the column's, the error in %; trained: the network trained here.
    chains: {seed: specs, a teacher before its student}; members: places in a chain of the networks whose probabilities
    are averaged, one for a single network. references: {seed: spec} of what the cell is an improvement on, {} if nothing.
    """

    table: int
    network: str
    column: str
    paper: float
    profile: str
    trained: str
    members: tuple
    chains: dict
    references: dict
    reference: str  # in words, "" if there is none

    @property
    def paper_reference(self):
        """The reference's error in the paper, %; None if there is none."""
        own = self.network if self.reference == OWN_TEACHER else TEACHER
        return paper.row(own).errors["Baseline"] if self.reference else None


@dataclass(frozen=True)
class Evidence:
    """Finished runs for a cell. members: {seed: [Run, ...]}; references: {seed: Run}, of the seeds that have one."""

    cell: Cell
    members: dict = field(default_factory=dict)
    references: dict = field(default_factory=dict)


def check_table(value):
    """1 or 2, whatever a shell made of it."""
    if str(value) not in ("1", "2"):
        raise BadInput(f"table must be 1 or 2, got {value!r}")
    return int(value)


def check_rows(value="auto", table=None):
    """Networks of the tables as a tuple of canonical names: "auto" is all, else a list or "name,name".

    table: 1 or 2 takes rows of that table alone. The paper's spellings are accepted.
    """
    known = [row.network for number, rows in TABLES.items() if table in (None, number) for row in rows]
    if isinstance(value, str):
        value = known if value == "auto" else [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not value:
        raise BadInput(f"rows must be 'auto' or networks such as '{known[0]},{known[1]}', got {value!r}")
    rows = tuple(dict.fromkeys(check_network(name) for name in value))
    for name in rows:
        if name not in known:
            where = "the paper's tables" if table is None else f"table {table}"
            raise BadInput(f"{name!r} is no row of {where}; the rows are {', '.join(known)}")
    return rows


def teacher_of(profile, network="auto"):
    """The network that teaches table 2 in a profile: a DenseNetBC that was asked for, else what stands for the paper's.

    Only a DenseNetBC has blocks for students to match, so any other network leaves the choice to the profile.
    """
    if network != "auto" and models.parse(check_network(network))[1] == "DenseNetBC":
        return check_network(network)
    return models.shrunk(TEACHER, *profile.shrink)


def recipe_of(profile, network):
    """How a network is trained in a profile: its recipe, but where widths are divided without dropout.

    Only wide residual units have it. With a handful of channels they then do not even fit the training images: on
    digits-dev MatchWideResNet-4-1 ended with a third of them wrong, and with none without dropout.
    """
    shrunk_wide = profile.shrink != (1, 1) and models.parse(network)[1] in ("WideResNet", "MatchWideResNet")
    return profile.recipe.model_copy(update={"dropout": 0.0}) if shrunk_wide else profile.recipe


def plan(table, profile, rows="auto", seeds=None, teacher=None, share_ends=True):
    """The cells of a table, in its order.

    profile: a `recipe.Profile`; rows: see `check_rows`, those of the other table are left out; seeds: by default the
    profile's for tables. teacher: the DenseNetBC that teaches table 2, by default the profile's 90-60. share_ends: table 2's students
    take stem and classifier from the teacher, frozen. Raises ValueError for a network that does not fit.
    """
    seeds = tuple(range(profile.table_seeds)) if seeds is None else seeds
    teacher = teacher or teacher_of(profile)
    if models.parse(teacher)[1] != "DenseNetBC":
        raise BadInput(f"the teacher of table 2 must be a DenseNetBC, whose blocks its students match, got {teacher!r}")
    wanted = check_rows(rows)
    cells = []
    for row in TABLES[table]:
        if row.network in wanted:
            cells += (_row1 if table == 1 else _row2)(row, profile, seeds, teacher, share_ends)
    if not cells:
        raise BadInput(f"rows {', '.join(wanted)} are none of table {table}'s: {', '.join(r.network for r in TABLES[table])}")
    return cells


def _row1(row, profile, seeds, teacher, share_ends):
    """A lineage, and the ensembles of its generations."""
    network = models.shrunk(row.network, *profile.shrink)
    gens = 3 if row.errors["BAN-3"] is not None else 2
    chains = lineage.plan(Settings(profile, network, gens, seeds))
    columns = {"Baseline": (0,)} | {generation_name(k): (k,) for k in range(1, gens + 1)} | ensemble.members(gens)
    own, common = ({seed: spec for seed, (spec, *_) in chains.items()}, on_labels(profile, teacher_of(profile), seeds))
    cells = []
    for column, members in columns.items():
        if column != "Baseline":
            references, reference = own, OWN_TEACHER
        else:
            references, reference = ({}, "") if row.network == TEACHER else (common, TEACHER)
        needed = {seed: tuple(chain[: max(members) + 1]) for seed, chain in chains.items()}
        cells.append(Cell(1, row.network, column, row.errors[column], profile.name, network, members, needed,
                          references, reference))  # fmt: skip
    return cells


def _row2(row, profile, seeds, teacher, share_ends):
    """A network on labels alone, and the same taught by the table's teacher."""
    network = models.shrunk(row.network, *profile.shrink, teacher=teacher)
    models.params(network)  # refuses a network that cannot be built
    raised = pair(profile, teacher, network, seeds, share_ends)
    chains = {"Baseline": {seed: (spec,) for seed, spec in on_labels(profile, network, seeds).items()}, "BAN": raised}
    teachers = {seed: chain[0] for seed, chain in raised.items()}
    return [
        Cell(2, row.network, column, printed, profile.name, network, (len(chains[column][seeds[0]]) - 1,),
             chains[column], teachers, TEACHER)
        for column, printed in row.errors.items()
        if printed is not None
    ]  # fmt: skip


def on_labels(profile, network, seeds):
    """{seed: RunSpec} of a network trained on labels alone, as the profile does it."""
    chains = lineage.plan(Settings(profile, network, 0, seeds))
    return {seed: spec.model_copy(update={"recipe": recipe_of(profile, network)}) for seed, (spec,) in chains.items()}


def pair(profile, teacher, student, seeds, share_ends=False):
    """{seed: (teacher's RunSpec, student's RunSpec)}: any network taught by any other, each as the profile trains it."""
    found = {}
    for seed, spec in on_labels(profile, teacher, seeds).items():
        taught = spec.model_dump() | {"network": student, "recipe": recipe_of(profile, student), "share_ends": share_ends}
        taught |= {"objective": "label+teacher", "generation": 1, "teacher": spec.run_id}
        found[seed] = (spec, RunSpec(**taught))
    return found


def specs_of(cells):
    """Every run that the cells need, once, a teacher before its students."""
    return list({spec.run_id: spec for cell in cells for chain in cell.chains.values() for spec in chain}.values())


def train(cells, device="auto", jobs=None, store=None, progress=True, **how):
    """Train what the store lacks of the cells' runs; returns a list of `Evidence`, one for each cell.

    Raises RuntimeError, after all the others, if runs failed; what was trained is kept. jobs, how: see `lineage.train_missing`.
    """
    store = store or Store()
    threads = PROFILES[cells[0].profile].threads
    if failures := lineage.train_missing(specs_of(cells), store, device, jobs, threads, progress, **how):
        raise RuntimeError("; ".join(failures))
    runs = Shelf([store])
    return [runs.evidence(cell) for cell in cells]


class Shelf:
    """Finished runs of several stores, each loaded (and checked) once; the first store that has a run gives it."""

    def __init__(self, stores):
        self.stores, self.runs = stores, {}

    def get(self, spec):
        """The run of a spec, or None."""
        run_id = spec.run_id
        if run_id not in self.runs:
            store = next((store for store in self.stores if store.folder(run_id).exists()), None)
            self.runs[run_id] = store and store.load(run_id)
        return self.runs[run_id]

    def seeds(self):
        """The seeds of all finished runs, unchecked."""
        found = set()
        for path in (store.folder(run_id) / "run.json" for store in self.stores for run_id in store.ids()):
            if path.exists():
                found.add(json.loads(path.read_bytes())["spec"]["seed"])
        return tuple(sorted(found))

    def evidence(self, cell):
        """What there is for a cell: the seeds for which every member is finished."""
        members = {seed: [self.get(chain[place]) for place in cell.members] for seed, chain in cell.chains.items()}
        members = {seed: runs for seed, runs in members.items() if all(runs)}
        references = {seed: self.get(spec) for seed, spec in cell.references.items() if seed in members}
        return Evidence(cell, members, {seed: run for seed, run in references.items() if run})


def evidence(table=None, profile=None, stores=None):
    """One `Evidence` for each printed error, in the tables' order: the runs of the profile nearest to the paper.

    table: 1 or 2, or both; profile: a name, to look at its runs alone; stores: by default the reader's own and results/.
    A cell that nothing answers has no members.
    """
    shelf = Shelf(stores or [Store(), Store(lineage.RESULTS)])
    seeds = shelf.seeds() or (0,)
    near_first = [PROFILES[profile]] if profile else list(reversed(PROFILES.values()))
    found = []
    for number in [table] if table else TABLES:
        candidates = zip(*(plan(number, profile, seeds=seeds) for profile in near_first), strict=True)
        for cells in candidates:
            answers = map(shelf.evidence, cells)
            found.append(next((answer for answer in answers if answer.members), Evidence(cells[0])))
    return found


# What a table costs


def cost(cells, device="auto", store=None):
    """What the cells need, before anything is trained: a list of dicts, one for each network.

    network (as trained), rows (of the table that need it), runs, finished, live (begun and not finished), epochs and flops (of the runs
    missing, a teacher asked online), seconds (of one process, from speeds measured on this machine; None if nothing is
    missing).
    """
    store, chosen = store or Store(), machine.choose_device(device)
    profile = PROFILES[cells[0].profile]
    known, specs = data.facts(profile.dataset), specs_of(cells)
    work, told = arithmetic(specs), {}
    for spec in specs:
        entry = told.setdefault(spec.network, {
            "network": spec.network, "rows": [], "runs": 0, "finished": 0, "live": 0, "epochs": 0, "flops": 0,
            "seconds": None})  # fmt: skip
        status = store.status(spec.run_id)
        entry["runs"] += 1
        entry["live"] += status == "live"
        if status == "finished":
            entry["finished"] += 1
            continue
        entry["epochs"] += spec.recipe.epochs
        entry["flops"] += work[spec.run_id]
    measured, rates, started = measured_seconds(store, chosen), [], time.perf_counter()
    for name, entry in told.items():
        entry["rows"] = sorted({cell.network for cell in cells if cell.trained == name})
        if entry["epochs"]:
            macs = _macs(name, known)
            epoch = measured.get((name, profile.dataset, profile.recipe.batch))
            if epoch is None and time.perf_counter() - started < PROBE_SECONDS:
                epoch = known.images / probe(name, known, profile, chosen, macs)
                rates.append(macs * known.images / epoch)
            epoch = epoch or macs * known.images / (sum(rates) / len(rates))
            # What a remembered teacher costs depends on the runs beside this one; an online one adds a third at the most.
            alone = 6 * macs * entry["epochs"] * known.images
            entry["seconds"] = entry["epochs"] * epoch * min(entry["flops"] / alone, 4 / 3)
    return list(told.values())


def arithmetic(specs):
    """{run id: floating-point operations of training it}, in the order of specs, which hold every teacher.

    Three passes of two operations for each multiply-accumulate of the network, one pass for a teacher that is asked online.
    """
    networks = {spec.run_id: spec.network for spec in specs}
    found = {}
    for spec in specs:
        known = data.facts(spec.dataset)
        passes = 6 * _macs(spec.network, known) + (2 * _macs(networks[spec.teacher], known) if spec.teacher else 0)
        found[spec.run_id] = passes * known.images * spec.recipe.epochs
    return found


@functools.cache
def _macs(network, known):
    return models.forward_macs(network, known.image_size, known.channels, known.classes)


def measured_seconds(store, device):
    """{(network, dataset, batch): seconds of an epoch} of the finished teachers that were trained on this hardware."""
    here, found = machine.hardware(device), {}
    for run_id in store.ids():
        path = store.folder(run_id) / "run.json"
        if path.exists():
            told = json.loads(path.read_bytes())
            spec, last = told["spec"], told["environments"][-1]
            if (last["hardware"], last["device"]) == (here, device.type) and spec["objective"] == "label":
                key = spec["network"], spec["dataset"], spec["recipe"]["batch"]
                epoch = told["results"]["seconds"] / spec["recipe"]["epochs"]
                found[key] = min(found.get(key, epoch), epoch)
    return found


def probe(network, known, profile, device, macs):
    """Training speed of a network in images/s, from a few timed steps on random images; large networks get few images."""
    batch = max(2, min(profile.recipe.batch, int(PROBE_FLOP / (6 * macs))))
    with training.thread_count(profile.threads), machine.seeded(0, device):
        student = models.build(network, known.classes, known.channels, known.image_size)
        shape = known.channels, known.image_size, known.image_size
        [way, *_], times = machine.candidates(profile.recipe.precision, device), []
        step = machine.step_in(student, shape, batch, device, way)
        while len(times) < 4 and sum(times) < 2:
            times.append(step())
    return batch / min(times)
