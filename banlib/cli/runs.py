"""`banlib runs`: what is known of trained networks, and what can be done with them."""

import contextlib
import json
import os
import sys
import warnings

import click

from banlib.cli import FAILED, shared
from banlib.cli.shared import command, emit, flag

ids = click.argument("run_ids", metavar="ID...", nargs=-1, required=True)
in_store = shared.store("A folder of runs, such as results.", exists=True)
SPEC = ("dataset", "network", "name", "generation", "seed", "teacher", "objective", "temperature")


@command("All runs, also those in training.", "list")
@in_store
def list_runs(store, as_json):
    """All runs: finished, live (in training, or stopped and ready to go on), diverged, damaged.

    Every file of a finished run is checked. Epochs are those done, of those planned; errors in %.
    """
    rows = [line(store, run_id) for run_id in store.ids()]
    order = ("dataset", "network", "seed", "generation", "id")
    rows.sort(key=lambda row: [(row[name] is None, row[name] or 0) for name in order])
    if rows or as_json:
        return emit(rows, as_json)
    click.echo(f"no runs in {store.root} yet; `banlib lineage` trains some", err=True)


@command("All that is known of one run.")
@click.argument("run_id", metavar="ID")
@in_store
def show(run_id, store, as_json):
    """One run: what was trained, on what machine, to which end, and where it lies.

    \b
    JSON: id, status, folder, problems, and, where they can be read, spec, results, environments,
          metrics (a row per epoch: loss in nats, errors in %).
    """
    [run_id] = find(store, [run_id])
    status, problems = state(store, run_id)
    live = ("live",) if status in ("live", "diverged") else ()
    run = {"id": run_id, "status": status, "folder": str(store.root.joinpath(*live, run_id))}
    run |= {"problems": problems, "spec": None, "results": None, "environments": [], "metrics": []}
    run |= record(store, run_id)
    emit(run | {"spec": run["spec"] and run["spec"].model_dump(mode="json")}, as_json)


@command("Check every byte.")
@click.argument("run_ids", metavar="[ID]...", nargs=-1)
@in_store
def verify(run_ids, store, as_json):
    """Check every byte of the runs named, or of all: files against digests, specs against ids.

    Prints each problem in a sentence, and exits with 1 if there is one.
    """
    names = ("id", "status", "problems")
    chosen = find(store, run_ids) if run_ids else store.ids()
    rows = [dict(zip(names, (each, *state(store, each)), strict=True)) for each in chosen]
    for row in rows:  # that it diverged is no damage; `show` says how
        row["problems"] = row["problems"] if row["status"] != "diverged" else []
    problems = [problem for row in rows for problem in row["problems"]]
    if as_json:
        emit(rows, as_json)
    else:
        bad = sum(bool(row["problems"]) for row in rows) or "none"
        count = f"{len(rows)} runs checked in {store.root}, {bad} damaged"
        click.echo("\n".join([*problems, count]))
    return FAILED if problems else 0


@command("Delete runs, finished or not.")
@ids
@flag("--yes", help="Do not ask.")
@in_store
def rm(run_ids, yes, store, as_json):
    """Delete runs, finished or not, unless a process is training them.

    Asks first, and warns where other runs learned from one of them.
    """
    doomed = find(store, run_ids)
    if not yes and not sys.stdin.isatty():
        why = "runs are removed after a question, and there is no terminal to ask on; give --yes"
        raise click.UsageError(why, click.get_current_context())
    for run_id in set(store.ids()) - set(doomed):
        row = line(store, run_id)
        if row["teacher"] in doomed:
            who = f"run {run_id} ({row['name']}, seed {row['seed']})"
            warnings.warn(f"{who} learned from {row['teacher']}; it stays whole", stacklevel=1)
    with shared.to_stderr():
        emit([line(store, run_id) for run_id in doomed])
    if not (yes or click.confirm(f"Remove these runs ({len(doomed)})?", err=True)):
        raise click.ClickException("not confirmed, nothing was removed")
    for run_id in doomed:
        store.remove(run_id)
    emit({"removed": doomed}, as_json)


@command("Copy runs into another folder.")
@ids
@click.option("--to", "target", metavar="DIR", required=True, help="The folder; made if missing.")
@flag("--light", help="Of test probabilities only those of the label and the answer.")
@flag("--weights", help="With their weights, so that they can teach.")
@in_store
def export(run_ids, target, light, weights, store, as_json):
    """Copy finished runs, by default without weights, as the records in results/ are."""
    chosen = find(store, run_ids)
    for run_id in chosen:
        store.load(run_id)  # all are whole, or none is copied
    for run_id in chosen:
        store.export(run_id, target, light, weights)
    emit({"exported": chosen, "to": os.path.abspath(target)}, as_json)


@command("Take over weights trained elsewhere.", "import")
@click.argument("weights", type=click.Path(exists=True, dir_okay=False))
@click.option("--network", required=True, help="The network whose state dict it is.")
@click.option("--dataset", required=True, help="What it learned: digits, cifar10 or cifar100.")
@in_store
def import_weights(weights, network, dataset, store, as_json):
    """Make a finished run of a state dict, .safetensors or .pt, so that it can teach.

    It has the names and shapes of that network here, and is tested on the dataset's test images.

    \b
    banlib runs import mine.pt --network DenseNetBC-40-12 --dataset cifar100
    banlib lineage --profile cifar100 --teacher ID
    """
    from banlib.runs.networks import adopt

    run = adopt(weights, network, dataset, store)
    emit({"imported": run.run_id, **run.results}, as_json)


about = """Trained networks: list, show, verify, rm, export, import.

An ID may be shortened to its first digits, as long as they are those of one run alone."""
runs = shared.Commands(
    "runs", commands=[list_runs, show, verify, rm, export, import_weights], help=about
)


def find(store, prefixes):
    """The ids that start so, each once."""
    return list(dict.fromkeys(map(store.find, prefixes)))


def state(store, run_id):
    """(`Store.status`, what is wrong, a sentence each: files, resume points, why it diverged).

    A link out of the store, which `Store.status` refuses, is damaged.
    """
    from banlib.runs import work

    status = "damaged"
    try:
        status, live = store.status(run_id), store.folder(run_id, "live")
        if status == "diverged":
            return status, [work.read_json(live / "diverged.json")["sentence"]]
        if status != "live":
            return status, store.problems(run_id) if status == "damaged" else []
        points = [(path, work.point_problem(path)) for path in work.resume_points(live)]
        # whoever trains it has removed some meanwhile
        damaged = [problem for path, problem in points if problem and path.exists()]
        return status, [f"run {run_id}: {problem}" for problem in damaged]
    except work.STRANGE as error:
        return status, [f"run {run_id}: {error}"]


def record(store, run_id):
    """What a run's files say of it, unchecked: spec, results, environments, metrics.

    A live run says it in its newest resume point, so before it has one there is nothing: {}.
    """
    from banlib.runs import work
    from banlib.runs.recipe import RunSpec

    with contextlib.suppress(*work.STRANGE):
        if (folder := store.folder(run_id)).exists():
            run = work.read_json(folder / "run.json")
            run["metrics"] = work.read_metrics(folder / "metrics.jsonl")
        else:
            raw = work.resume_points(store.folder(run_id, "live"))[0].read_bytes()
            run = json.loads(work.header(raw)["__metadata__"]["state"])
            run |= {"spec": json.loads(run["spec"]), "metrics": run.pop("rows")}
        return run | {"spec": RunSpec(**run["spec"])}
    return {}


def line(store, run_id):
    """A run's line in `banlib runs list`."""
    run = record(store, run_id)
    spec, metrics = run.get("spec"), run.get("metrics", [])
    tested = [row["test_error"] for row in metrics if "test_error" in row]
    row = {"id": run_id} | {name: getattr(spec, name, None) for name in SPEC}
    row |= {"lr": spec and spec.recipe.lr, "status": state(store, run_id)[0]}
    row |= {"epochs": len(metrics) if run else None, "epochs_planned": spec and spec.recipe.epochs}
    return row | {"test_error": tested[-1] if tested else None}
