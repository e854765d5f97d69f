"""A lineage: the teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, and so on (section 2.1).

`plan` says which runs that is, before anything is trained; `raise_lineages` trains what the store lacks.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import joblib
from tqdm import tqdm

from banlib import data
from banlib.recipe import PROFILES, Profile, RunSpec, Settings
from banlib.store import Store
from banlib.training import choose_device, fit


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
    digest = data.load(settings.profile.dataset).digest
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
                    temperature=temperature,
                    seed=seed,
                    generation=generation,
                    teacher=specs[-1].run_id if generation else None,
                )
            )
    return plans


def raise_lineages(
    settings, device="auto", jobs=None, store=None, progress=True, objective="label+teacher", temperature=1.0
):
    """Train every run of the plan that the store lacks and return `Lineages`.

    objective, temperature: of the students, see `objectives`; the teachers are the same for all.

    jobs: processes that raise lineages side by side; by default one per core where the profile's runs use one thread
    on the CPU, else one. A failure in one lineage lets the others finish and is raised at the end.
    """
    store = store or Store()
    plans = plan(settings, objective, temperature)
    chosen, threads = choose_device(device), settings.profile.threads
    if jobs is None:
        jobs = joblib.cpu_count() if threads == 1 and chosen.type == "cpu" else 1
    missing = {
        seed: specs
        for seed, specs in plans.items()
        if any(store.status(spec.run_id) != "finished" for spec in specs)
    }
    jobs = min(jobs, len(missing))
    if jobs > 1:
        task = joblib.delayed(raise_one)
        outcomes = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
            task(seed, specs, str(store.root), str(chosen), threads, False) for seed, specs in missing.items()
        )
        outcomes = tqdm(
            outcomes, total=len(missing), unit="lineage", disable=not progress, file=sys.stderr,
            desc=f"{settings.network}, {len(next(iter(plans.values())))} generations on {chosen}",
        )  # fmt: skip
    else:
        outcomes = (
            raise_one(seed, specs, str(store.root), str(chosen), threads, progress) for seed, specs in missing.items()
        )
    failures = [failure for failure in outcomes if failure]
    if failures:
        raise RuntimeError("; ".join(failures))
    return load_lineages(settings, store, objective, temperature)


def raise_one(seed, specs, root, device, threads, progress):
    """Train one lineage; returns None, or a sentence if it failed."""
    for spec in specs:
        try:
            fit(spec, Store(root), device, threads, progress)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            blocked = [later.name for later in specs[spec.generation + 1 :]]
            after = f" (blocked: {', '.join(blocked)})" if blocked else ""
            return f"seed {seed}: {error}{after}"


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
