"""A lineage: the teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, and so on (section 2.1).

`plan` says which runs that is, before anything is trained; `raise_lineages` trains what the store lacks.
"""

import functools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import joblib
from tqdm import tqdm

from banlib import data, models
from banlib.machine import choose_device
from banlib.recipe import CONTROLS, PROFILES, Profile, RunSpec, Settings
from banlib.store import Store
from banlib.training import OutOfTime, fit


RESULTS = Path(__file__).parents[1] / "results"  # the measured runs that ship with the book


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
    """{seed: [RunSpec of the teacher, of BAN-1, ...]}. Each spec names its teacher's run id."""
    digest = data.facts(settings.profile.dataset).digest
    plans = {}
    for seed in settings.seeds:
        specs = plans[seed] = []
        for generation in range(settings.gens + 1):
            specs.append(
                RunSpec(
                    network=settings.network,
                    dataset=settings.profile.dataset,
                    dataset_digest=digest,
                    recipe=settings.profile.recipe,
                    objective=objective if generation else "label",
                    temperature=temperature if generation else 1.0,  # labels alone have none
                    seed=seed,
                    generation=generation,
                    teacher=specs[-1].run_id if generation else None,
                )
            )
    return plans


def controls(settings, names=tuple(CONTROLS)):
    """{control: {seed: RunSpec}} beside the BAN-1 of each seed: from its initial weights, with its order and views.

    A control trained alone on labels knows no teacher; the others have BAN-1's.
    """
    students = {seed: specs[1] for seed, specs in plan(settings._replace(gens=1)).items()}
    found = {}
    for name in names:
        taught = CONTROLS[name]["objective"] != "label"
        changes = CONTROLS[name] if taught else CONTROLS[name] | {"teacher": None}
        found[name] = {seed: RunSpec(**(spec.model_dump() | changes)) for seed, spec in students.items()}
    return found


def rates(profile, tried, seeds):
    """{rate: [RunSpec]} of the profile's teacher, trained at each of the rates and tested on held-out images."""
    dataset = f"{profile.dataset}-dev"
    held_out = profile._replace(dataset=dataset)
    found = {}
    for rate in tried:
        recipe = profile.recipe.model_copy(update={"lr": rate})
        chains = plan(Settings(held_out._replace(recipe=recipe), profile.network, 0, seeds))
        found[rate] = [spec for (spec,) in chains.values()]
    return found


def raise_lineages(
    settings, device="auto", jobs=None, store=None, progress=True, objective="label+teacher", temperature=1.0, **how
):
    """Train every run of the plan that the store lacks and return `Lineages`.

    objective, temperature: of the students, see `objectives`; the teachers are the same for all.
    jobs, how: see `train_missing`. A failure lets the other runs finish and is raised at the end, as RuntimeError.
    """
    store = store or Store()
    specs = [spec for chain in plan(settings, objective, temperature).values() for spec in chain]
    if failures := train_missing(specs, store, device, jobs, settings.profile.threads, progress, **how):
        raise RuntimeError("; ".join(failures))
    return load_lineages(settings, store, objective, temperature)


def train_missing(specs, store, device="auto", jobs=None, threads=None, progress=True, until=math.inf, **how):
    """Train what the store lacks of `specs`, in which a teacher stands before its students.

    jobs: processes side by side; by default one per core where runs use one thread on the CPU, else one.
    until: a time.time() at which OutOfTime is raised, with finished epochs kept; how: see `training.How`.
    Returns a sentence for each failure, which names the runs that it blocks; all others are trained.
    """
    chosen = choose_device(device)
    missing = {spec.run_id: spec for spec in specs if store.status(spec.run_id) != "finished"}
    waves = [[spec] for spec in missing.values()]
    if jobs is None:
        jobs = joblib.cpu_count() if threads == 1 and chosen.type == "cpu" else 1
    if jobs > 1:
        waves = in_waves(missing)
    jobs = min(jobs, max(map(len, waves), default=1))
    train_one = joblib.delayed(fit_or_tell)
    failures, blocked, late = {}, {}, set()  # run id -> what happened, run id -> the failure that it waits for; run ids
    with tqdm(total=len(missing), unit="run", disable=not progress or jobs < 2, file=sys.stderr,
              desc=f"{len({spec.network for spec in missing.values()})} networks on {chosen}") as bar:  # fmt: skip
        for wave in waves:
            for spec in wave:
                if spec.teacher in failures or spec.teacher in blocked:
                    blocked[spec.run_id] = blocked.get(spec.teacher, spec.teacher)
                elif late or time.time() > until:
                    late.add(spec.run_id)
            ready = [spec for spec in wave if spec.run_id not in blocked and spec.run_id not in late]
            outcomes = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
                train_one(spec, str(store.root), str(chosen), threads, progress and jobs < 2, until=until, **how) for spec in ready
            )
            for run_id, failure in outcomes:
                if isinstance(failure, OutOfTime):
                    late.add(run_id)
                    continue
                failures |= {run_id: failure} if failure else {}
                bar.update()
    waiting = lambda failed: [missing[run_id].name for run_id, cause in blocked.items() if cause == failed]  # noqa: E731
    told = [
        f"seed {missing[failed].seed}: {sentence}" + (f" (blocked: {', '.join(waiting(failed))})" if waiting(failed) else "")
        for failed, sentence in failures.items()
    ]
    if late:
        done = len(missing) - len(late) - len(failures) - len(blocked)
        raise OutOfTime("; ".join([f"time is up: {done} of {len(missing)} networks were trained, finished epochs of the others "
                                   "are kept, start it again to go on", *told]))  # fmt: skip
    return told


def in_waves(missing):
    """The specs of {run id: spec} in lists, each of which needs only the ones before; the costliest of a list first, so
    that no process is left alone with it at the end."""
    depths, cost = {}, functools.cache(models.forward_macs)
    for run_id, spec in missing.items():
        depths[run_id] = depths.get(spec.teacher, -1) + 1
    return [
        sorted((missing[run_id] for run_id in depths if depths[run_id] == depth), key=lambda spec: -cost(spec.network))
        for depth in range(max(depths.values(), default=-1) + 1)
    ]


def fit_or_tell(spec, root, device, threads, progress, **how):
    """(run id, None), or (run id, sentence) if training failed, or (run id, OutOfTime)."""
    try:
        fit(spec, Store(root), device, threads, progress, **how)
    except OutOfTime as late:
        return spec.run_id, late
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        return spec.run_id, str(error)
    return spec.run_id, None


def load_lineages(settings, store=None, objective="label+teacher", temperature=1.0):
    """The lineages of a plan from the store alone; raises RunMissing if one was never trained."""
    store = store or Store()
    return Lineages(
        settings,
        {
            seed: [store.load(spec.run_id) for spec in specs]
            for seed, specs in plan(settings, objective, temperature).items()
        },
    )


def recorded(store=None):
    """The lineages in a store of records (by default results/), longest first: a list of `Lineages`.

    Runs belong together if they differ in seed and generation alone.
    """
    store = store or Store(RESULTS)
    runs = {run_id: store.load(run_id) for run_id in store.ids() if store.folder(run_id).exists()}  # damage is told
    groups = {}
    for run in runs.values():
        chain = [run]
        while (teacher := chain[0].spec.teacher) in runs:
            chain.insert(0, runs[teacher])
        spec = run.spec
        alike = {(link.spec.network, link.spec.dataset_digest, link.spec.recipe) for link in chain}
        if chain[0].spec.teacher is None and len(alike) == 1:
            lineage = groups.setdefault((*alike.pop(), spec.dataset, spec.objective, spec.temperature), {})
            lineage[spec.seed] = max(lineage.get(spec.seed, []), chain, key=len)
    found = []
    for (network, _, recipe, dataset, *_), seeds in groups.items():
        gens, profile = max(map(len, seeds.values())) - 1, profile_of(dataset, network, recipe)
        found.append(Lineages(Settings(profile, network, gens, tuple(sorted(seeds))), dict(sorted(seeds.items()))))
    # A teacher alone is a group of its own, because its objective differs; keep it only if nobody learned from it.
    taught = {runs[0].run_id for lineages in found for runs in lineages.runs.values() if len(runs) > 1}
    found = [
        lineages
        for lineages in found
        if lineages.settings.gens or any(runs[0].run_id not in taught for runs in lineages.runs.values())
    ]
    return sorted(found, key=lambda lineages: -lineages.settings.gens)


def profile_of(dataset, network, recipe):
    """The profile that trains with this dataset and recipe, or a nameless one."""
    for profile in PROFILES.values():
        if (profile.dataset, profile.recipe) == (dataset, recipe):
            return profile
    return Profile("own", dataset, network, recipe, 0, 1, None)
