"""A lineage: the teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, and so on (section 2.1).

`plan` says which runs that is, before anything is trained; `raise_lineages` trains what is missing.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

from banlib import loop
from banlib.runs import datasets, engines
from banlib.runs.recipe import CONTROLS, PROFILES, BadInput, Profile, RunSpec, Settings
from banlib.runs.store import WEIGHTS, Store
from banlib.runs.work import RunDamaged

HERE = Path(__file__).parents[1]
# the measured runs that ship with the book: in the package, or beside it in a checkout
RESULTS = HERE / "results" if (HERE / "results").is_dir() else HERE.parent / "results"


@dataclass(frozen=True)
class Lineages:
    """Finished lineages of one network: runs[seed] is [teacher, BAN-1, ...]."""

    settings: Settings
    runs: dict

    @property
    def network(self):
        return self.settings.network

    def labels(self):
        """The test labels, int64 [images], in the order of the runs' probabilities."""
        return next(iter(self.runs.values()))[0].labels


def plan(settings, objective="label+teacher", temperature=1.0):
    """{seed: [RunSpec of the teacher, of BAN-1, ...]}, each of which names its teacher's run id.

    objective, temperature: the students'. With a teacher in settings the first is that one.
    """
    profile = settings.profile
    common = {"network": settings.network, "dataset": profile.dataset, "recipe": profile.recipe}
    common["dataset_digest"] = datasets.facts(profile.dataset).digest
    taught = {"objective": objective, "temperature": temperature}

    def spec(seed, generation, teacher):
        if settings.teacher and not generation:
            return settings.teacher
        own = taught | {"teacher": teacher.run_id} if teacher else {}
        return RunSpec(**common, seed=seed, generation=generation, **own)

    def lineage(seed):
        return loop.born_again(lambda *student: spec(seed, *student), settings.gens)

    return {seed: lineage(seed) for seed in settings.seeds}


def taught_by(settings, run):
    """The settings with a finished run as the teacher of BAN-1, of each seed.

    Raises BadInput if it learned other images, or is a record without weights.
    """
    own, dataset = run.spec, settings.profile.dataset
    if own.dataset_digest != (digest := datasets.facts(dataset).digest):
        both = f"{own.dataset} ({own.dataset_digest:.8}), its students {dataset} ({digest:.8})"
        raise BadInput(f"teacher {run.run_id} learned {both}; both need the same images")
    if not (run.folder / WEIGHTS).exists():
        remedy = "train it here, or import them (banlib runs import)"
        raise BadInput(f"teacher {run.run_id} is a record without weights: {remedy}")
    return settings._replace(teacher=own)


def controls(settings, names=tuple(CONTROLS)):
    """{control: {seed: RunSpec}}: from BAN-1's own initial weights, with its order and views.

    A control that is trained on labels alone has no teacher; the others have BAN-1's.
    """
    students = {seed: chain[1] for seed, chain in plan(settings._replace(gens=1)).items()}

    def control(spec, changes):
        alone = {"teacher": None} if changes["objective"] == "label" else {}
        return RunSpec(**spec.model_dump() | changes | alone)

    return {
        name: {seed: control(spec, CONTROLS[name]) for seed, spec in students.items()}
        for name in names
    }


def runs(settings, names=(), objective="label+teacher", temperature=1.0):
    """Every run of a plan, and of the controls named, once, a teacher before its students."""
    chains = [*plan(settings, objective, temperature).values()]
    chains += [by_seed.values() for by_seed in controls(settings, names).values()]
    return list({spec.run_id: spec for chain in chains for spec in chain}.values())


def held_out(profile, recipe, seeds):
    """[RunSpec] of the profile's teacher, trained by recipe and tested on held-out images."""
    profile = profile._replace(dataset=f"{profile.dataset}-dev", recipe=recipe)
    return runs(Settings(profile, profile.network, 0, seeds))


def raise_lineages(
    settings,
    device="auto",
    jobs=None,
    store=None,
    progress=True,
    objective="label+teacher",
    temperature=1.0,
    controls=(),
    **how,
):
    """Train what the store lacks of the plan; returns `Lineages`. jobs, how: `train_missing`'s.

    The teachers are the same for all objectives and temperatures. controls: names of those that are
    trained beside, for `raise_controls` to load. A failure lets the other runs finish and is raised
    at the end, as RuntimeError.
    """
    specs = runs(settings, controls, objective, temperature)
    train(specs, settings, store, device, jobs, progress, how)
    return load_lineages(settings, store, objective, temperature)


def raise_controls(
    settings, device="auto", jobs=None, store=None, progress=True, names=tuple(CONTROLS), **how
):
    """{control: {seed: Run}}, as `raise_lineages`."""
    specs, store = runs(settings._replace(gens=0), names), store or Store()
    train(specs, settings, store, device, jobs, progress, how)
    return {
        name: {seed: store.load(spec.run_id) for seed, spec in by_seed.items()}
        for name, by_seed in controls(settings, names).items()
    }


def train(specs, settings, store, device, jobs, progress, how):
    options = device, jobs, settings.profile.threads, progress
    if failures := engines.train_missing(specs, store or Store(), *options, **how):
        raise RuntimeError("; ".join(failures))


def load_lineages(settings, store=None, objective="label+teacher", temperature=1.0):
    """The lineages of a plan from the store alone; RunMissing if a run was never trained."""
    store, plans = store or Store(), plan(settings, objective, temperature)
    runs = {seed: [store.load(spec.run_id) for spec in specs] for seed, specs in plans.items()}
    return Lineages(settings, runs)


def recorded(store=None):
    """The lineages in a store, by default of the records in results/: `Lineages`, longest first.

    Runs belong together if they differ in seed and generation alone; a teacher that has taught
    nobody yet, with the most lineages of other seeds. A light record belongs to none; a damaged run
    is named in a warning and left out.
    """
    runs, groups, alone = whole(store or Store(RESULTS)), {}, []
    taught = {run.spec.teacher for run in runs.values()}
    for run in runs.values():
        chain, spec = [run], run.spec
        while (teacher := chain[0].spec.teacher) in runs:
            chain.insert(0, runs[teacher])
        alike = {(each.spec.network, each.spec.dataset, each.spec.recipe) for each in chain}
        if spec.generation != len(chain) - 1 or len(alike) > 1:
            continue
        if spec.teacher:
            key = *alike.pop(), spec.objective, spec.temperature, spec.weights
            lineage = groups.setdefault(key, {})
            lineage[spec.seed] = max(lineage.get(spec.seed, []), chain, key=len)
        elif run.run_id not in taught:
            alone.append((*alike, chain))
    for own, chain in alone:
        same = [seeds for key, seeds in groups.items() if key[:3] == own]
        max(same or [groups.setdefault(own, {})], key=len).setdefault(chain[0].spec.seed, chain)
    found = []
    for (network, dataset, recipe, *_), seeds in groups.items():
        gens, seeds = max(map(len, seeds.values())) - 1, dict(sorted(seeds.items()))
        settings = Settings(profile_of(dataset, network, recipe), network, gens, tuple(seeds))
        found.append(Lineages(settings, seeds))
    return sorted(found, key=lambda lineages: -lineages.settings.gens)


def recorded_controls(lineages, store=None):
    """{control: {seed: Run}} of recorded `Lineages`: those controls that are recorded too."""
    store = store or Store(RESULTS)
    ids = set(store.ids())
    return {
        name: {seed: store.load(spec.run_id) for seed, spec in specs.items() if spec.run_id in ids}
        for name, specs in controls(lineages.settings).items()
    }


def whole(store):
    """{run id: Run} of all finished runs that can be read and are not light."""
    runs = {}
    for run_id in (run_id for run_id in store.ids() if store.folder(run_id).exists()):
        try:
            run = store.load(run_id)
            runs |= {} if run.light else {run_id: run}
        except RunDamaged as damage:
            mend = f"restore it, or `banlib runs rm {run_id}`"
            warnings.warn(f"{damage}; it is left out: {mend}", stacklevel=3)
    return runs


def profile_of(dataset, network, recipe):
    """The profile that trains with this dataset and recipe; or its like, named for another rate."""
    for profile in PROFILES.values():
        same = recipe.at(profile.recipe.lr)
        if (profile.dataset, profile.recipe) == (dataset, same):
            name = f"{profile.name} at rate {recipe.lr:g}"
            return profile if same == recipe else profile._replace(name=name, recipe=recipe)
    return Profile("own", dataset, network, recipe, 0, 1, None)
