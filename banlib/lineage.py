"""A lineage: the teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, and so on (section 2.1).

`plan` says which runs that is, before anything is trained; `raise_lineages` trains what the store lacks.
"""

import sys
from dataclasses import dataclass

import joblib
from tqdm import tqdm

from banlib import data
from banlib.recipe import RunSpec, Settings
from banlib.store import Store
from banlib.training import choose_device, fit


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
        return data.load(self.settings.profile.dataset).test.labels


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


def raise_lineages(settings, device="auto", jobs=None, store=None, progress=True):
    """Train every run of the plan that the store lacks and return `Lineages`.

    jobs: processes that raise lineages side by side; by default one per core where the profile's runs use one thread
    on the CPU, else one. A failure in one lineage lets the others finish and is raised at the end.
    """
    store = store or Store()
    plans = plan(settings)
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
            desc=f"{settings.network}, {len(next(iter(plans.values())))} generations",
        )  # fmt: skip
    else:
        outcomes = (
            raise_one(seed, specs, str(store.root), str(chosen), threads, progress) for seed, specs in missing.items()
        )
    failures = [failure for failure in outcomes if failure]
    if failures:
        raise RuntimeError("; ".join(failures))
    return load_lineages(settings, store)


def raise_one(seed, specs, root, device, threads, progress):
    """Train one lineage; returns None, or a sentence if it failed."""
    for spec in specs:
        try:
            fit(spec, Store(root), device, threads, progress)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            blocked = [later.name for later in specs[spec.generation + 1 :]]
            after = f" (blocked: {', '.join(blocked)})" if blocked else ""
            return f"seed {seed}: {error}{after}"


def load_lineages(settings, store=None):
    """The lineages of a plan from the store alone; raises RunMissing if one was never trained."""
    store = store or Store()
    return Lineages(
        settings,
        {seed: [store.load(spec.run_id) for spec in specs] for seed, specs in plan(settings).items()},
    )
