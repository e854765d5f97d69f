"""The evidence of `cifar100-lite`: what is trained for it, in the order in which it is useful.

The rate first. RULE is how it is chosen; it was written before the searches were run.
"""

import math
import shutil

from banlib.runs import lineage
from banlib.runs.engines import train_missing
from banlib.runs.recipe import CONTROLS, HALVED, PROFILES, RunSpec, Settings, named
from banlib.runs.store import Store
from banlib.runs.work import resume_points

RULE = """\
The teacher's learning rate is chosen before any student is trained, on
images that the reported test set does not hold: the digits' development
images, or fifty training images of each class of CIFAR-100. Starting from
0.1, the paper's, the rate is doubled until the mean held-out error of the
last epoch is lower no more; the rate before that is taken. If 0.2 is no
better than 0.1, the rate is halved instead, likewise. Students inherit it.

How long the digits' networks train is chosen for the reader's time: each of
20, 40 and 80 epochs gets a rate of its own in this way, and the shortest is
taken whose mean held-out error is at most half a point above the lowest."""

START = 0.1
PROFILE = PROFILES["cifar100-lite"]
STEPS = ("rate", "controls", "compute", "generations", "objectives", "table 2", "longer")
UNFINISHED = "unfinished"  # folder of records: the resume points that a later session goes on from
WHOLE = ("controls", "generations")  # steps whose lineages are recorded with all probabilities,
LIGHT = [*CONTROLS][1:]  # and with them labels x2, whose averages ensembles are compared with
ALL, FEW, ONE = tuple(range(5)), (0, 1, 2), (0,)  # seeds
DIGITS, DIGITS_SEEDS, LENGTHS = PROFILES["digits"], tuple(range(16)), (20, 40, 80)


def choose_rate(error_at):
    """(the rate by RULE, {rate: error, %} of all that were tried). error_at: rate -> error."""
    tried = {START: error_at(START)}
    for factor in (2, 0.5):
        best, rate = START, START * factor
        while tried.setdefault(rate, error_at(rate)) < tried[best]:
            best, rate = rate, rate * factor
        if best != START:
            break
    return best, dict(sorted(tried.items()))


def choose(recipe, lengths, error_of):
    """The recipe by RULE of these lengths in epochs. error_of: recipe -> held-out error, %."""
    found = []
    for lasting in map(recipe.lasting, lengths):
        rate, tried = choose_rate(lambda rate, own=lasting: error_of(own.at(rate)))
        found.append((tried[rate], lasting.at(rate)))
    limit = min(error for error, _ in found) + 0.5
    return next(recipe for error, recipe in found if error <= limit)


def obey(profile, seeds, lengths, store, records, how):
    """Train what the search lacks; RuntimeError if the profile's recipe is not the one it finds."""

    def error_of(recipe):
        specs = lineage.held_out(profile, recipe, seeds)
        train(specs, {}, store, records, how)
        runs = [place_of(spec.run_id, store, records).load(spec.run_id) for spec in specs]
        mean = sum(run.results["test_error"] for run in runs) / len(runs)
        what = f"{profile.name}, {recipe.epochs} epochs, rate {recipe.lr:g}"
        print(f"{what}: {mean:.2f} %", flush=True)
        return mean

    best = choose(profile.recipe, lengths, error_of) if seeds else profile.recipe
    if best != profile.recipe:
        chosen = f"{best.epochs} epochs at rate {best.lr:g} for {profile.name}"
        raise RuntimeError(f"the rule chooses {chosen}: change its recipe first")


def searched(profile, records=lineage.RESULTS):
    """{epochs: {rate: [held-out error, % of each seed, in order]}} of the recorded searches."""
    found, own = {}, [f"{profile.dataset}-dev", profile.network]
    runs = Store(records).overview().values()
    for record in sorted(runs, key=lambda each: each["spec"]["seed"]):
        spec, error = record["spec"], record["results"]["test_error"]
        alike = profile.recipe.lasting(spec["recipe"]["epochs"]).at(spec["recipe"]["lr"])
        wanted = [*own, alike.model_dump(mode="json")]
        if [spec[name] for name in ("dataset", "network", "recipe")] == wanted:
            found.setdefault(alike.epochs, {}).setdefault(alike.lr, []).append(error)
    return {epochs: dict(sorted(tried.items())) for epochs, tried in sorted(found.items())}


def steps(table=()):
    """{step: [RunSpec]} after the rate. table: the runs of the paper's table 2 at this size."""
    network, names = PROFILE.network, list(CONTROLS)

    def lineages(gens, seeds, times=1, controls=()):
        longer = PROFILE._replace(recipe=PROFILE.recipe.lasting(times * PROFILE.recipe.epochs))
        return lineage.runs(Settings(longer, network, gens, seeds), controls)

    def objectives(temperature):
        chains = lineage.plan(Settings(PROFILE, network, 1, FEW)).values()
        scaled = [HALVED, *({"objective": name} for name in ("teacher", "cwtm", "dkpp"))]
        for teacher, student in chains:
            own = student.model_dump() | {"temperature": temperature}
            yield from (teacher, *(RunSpec(**own | changes) for changes in scaled))

    return {
        "controls": lineages(1, ALL, controls=names[:3]),
        "compute": lineages(0, FEW, times=2) + lineages(0, FEW, controls=names[3:]),
        "generations": lineages(3, ALL),
        "objectives": [*objectives(1.0), *objectives(4.0)],
        "table 2": list(table),
        "longer": lineages(3, ONE, times=3, controls=names[:1]),
    }


def run(
    until=math.inf, jobs=None, only="auto", records=lineage.RESULTS, dry_run=False, table=(), **more
):
    """Train what the steps lack, copy it to records, and report: [{step, runs, finished, seeds}].

    only: "auto", or names of STEPS separated by commas; table: see `steps`; more: store, and as for
    `engines.train_missing`; seeds: those of which all is finished. A run in records is not trained
    again, unless it lacks its weights and teaches one that is missing. OutOfTime comes after all
    that is finished was copied.
    """
    wanted = STEPS if only == "auto" else only.split(",")
    wanted = [named("step", name, STEPS) for name in wanted]
    store, records = more.pop("store", None) or Store(), Store(records)
    how, plans, report = {"until": until, "jobs": jobs} | more, steps(table), []
    if not dry_run:
        adopt(records, store)
    if "rate" in wanted and not dry_run:
        obey(DIGITS, DIGITS_SEEDS, LENGTHS, store, records, how)
        obey(PROFILE, ONE, (PROFILE.recipe.epochs,), store, records, how)
    for step in (step for step in wanted if step != "rate"):
        specs = {spec.run_id: spec for spec in plans[step]}
        if not dry_run:
            train(specs.values(), plans, store, records, how, step in WHOLE)
        lacks = [spec.seed for key, spec in specs.items() if not place_of(key, store, records)]
        row = {"step": step, "runs": len(specs), "finished": len(specs) - len(lacks)}
        report.append(row | {"seeds": sorted({spec.seed for spec in specs.values()} - {*lacks})})
    return report


def train(specs, plans, store, records, how, whole=False):
    """Train what is missing, seed by seed, and copy what is finished to records, however this ends.

    If whole, all but controls of LIGHT with all probabilities; teachers with their weights.
    """
    teachers = {spec.teacher for plan in (*plans.values(), specs) for spec in plan}
    missing = [
        spec
        for spec in sorted(specs, key=lambda spec: spec.seed)
        if not place_of(spec.run_id, store, *([] if spec.run_id in teachers else [records]))
    ]
    try:
        for sentence in train_missing(missing, store, threads=1, by_cost=False, **how):
            print(sentence, flush=True)
    finally:
        for spec in specs:
            key = spec.run_id
            if place_of(key, store):
                light = not whole or spec.name in LIGHT
                store.export(key, records.root, light=light, weights=key in teachers)
            keep(key, store, records)


def place_of(run_id, *stores):
    """The first store that has the finished run, or None."""
    return next((each for each in stores if each and each.status(run_id) == "finished"), None)


def keep(run_id, store, records):
    """Copy the newest resume point of a run under way to records; drop it when it is finished."""
    target, live = records.root / UNFINISHED / run_id, store.folder(run_id, "live")
    points = resume_points(live) if live.is_dir() and not place_of(run_id, store) else []
    shutil.rmtree(target, ignore_errors=True)
    for point in points[:1]:
        target.mkdir(parents=True)
        shutil.copy(point, target)


def adopt(records, store):
    """Take over runs that were recorded with their weights, and those that were under way."""
    for kept in sorted((records.root / UNFINISHED).glob("*")):
        if store.status(kept.name) == "missing":
            shutil.copytree(kept, store.folder(kept.name, "live"))
    for run_id in records.ids():
        known = (records.folder(run_id) / "weights.safetensors").exists()
        if known and not store.folder(run_id).exists():
            store.root.mkdir(parents=True, exist_ok=True)
            records.export(run_id, store.root, weights=True)
