"""What is trained: lineages, tables, one run of a plan, the campaign; and the ledger of it."""

import json

import click

from banlib.cli import FAILED, shared
from banlib.cli.shared import command, flag, option

STEPS = ("rate", "controls", "compute", "generations", "objectives", "table 2", "longer")
ABOVE_0 = click.FloatRange(0, min_open=True)


@command("Train a teacher and its born-again students.")
@shared.profile
@option("--network", help="A name as `banlib networks` knows them.")
@option("--gens", help="Generations of students after the teacher, 0 to 20.")
@shared.seeds
@click.option("--teacher", metavar="ID", help="A finished run that teaches BAN-1, of its network.")
@shared.training
@flag("--no-controls", help="Without BAN-1's controls, which have no teacher or half the loss.")
@shared.plan
def lineage(
    profile, network, gens, seeds, teacher, device, store, no_controls, plan, as_json, **how
):
    """Raise lineages: a teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, ..., for each seed.

    Finished runs are loaded, others trained; stopped at any moment, the same command goes on.
    Prints test errors in %, means over seeds with 95 % intervals, beside the paper's, and what
    BAN-1 gains over its teacher and over its control.

    \b
    JSON: profile, network, seeds, runs {seed: [run id of the teacher, of BAN-1, ...]},
          generations, ensembles and controls: [{name, errors (one per seed), mean,
          ci95 (half-width, null for one seed)}]
    """
    from banlib.runs.parameters import check_parameters
    from banlib.runs.recipe import CONTROLS

    settings, how = check_parameters(profile, network, gens, seeds), shared.check_how(**how)

    from banlib import models
    from banlib.paper import findings, numbers, statistics
    from banlib.runs import lineage

    if teacher is not None:
        run = store.load(store.find(teacher))
        own = run.spec.network if network == "auto" else settings.network
        settings = lineage.taught_by(settings._replace(network=own), run)
    models.params(settings.network)  # refuses a network too large to build
    names = tuple(CONTROLS) if settings.gens and not no_controls else ()
    if plan:
        return shared.print_plan(lineage.runs(settings, names), store)
    with shared.to_stderr():
        lineages = lineage.raise_lineages(settings, device, store=store, controls=names, **how)
        controls = lineage.raise_controls(settings, device, store=store, names=names, **how)
    errors = statistics.errors(lineages)
    if as_json:
        return shared.emit(report(lineages, errors, controls), as_json)
    click.echo(f"\n{settings.network}, profile {settings.profile.name}: test error in %")
    beside = statistics.beside_paper(errors, settings.network, controls)
    shared.emit(beside.dropna(axis=1, how="all").rename(columns={"paper": "paper, CIFAR-100"}))
    if controls:
        table, sentence = statistics.gains(errors, controls), findings.students(errors, controls)
        click.echo("\ngains in points, over the teacher and over the control")
        shared.emit(table.dropna(axis=1, how="all"))
        click.echo(f"\n{numbers.plain(sentence)}")
    if settings.teacher:
        click.echo(f"\nTeacher: {run.spec.network}, run {run.run_id}, one for all seeds")
    click.echo(f"\n{statistics.provenance(lineages)}")


def report(lineages, errors, controls):
    """What `banlib lineage --json` prints."""
    from banlib.paper import statistics

    about = {"profile": lineages.settings.profile.name, "network": lineages.network}
    both, several = statistics.with_controls(errors, controls), errors[errors["members"] > 1]
    rows = statistics.summary(both)[["name", "mean", "ci95"]]
    rows["errors"] = both.groupby("name", sort=False)["error"].agg(list).tolist()
    in_ensembles, in_controls = (rows["name"].isin(names) for names in (several["name"], controls))
    about |= {"seeds": list(lineages.runs), "generations": rows[~(in_ensembles | in_controls)]}
    about |= {"ensembles": rows[in_ensembles], "controls": rows[in_controls]}
    ids = {str(seed): [run.run_id for run in chain] for seed, chain in lineages.runs.items()}
    return about | {"runs": ids}


@command("Train one of the paper's tables, or say what that costs.")
@click.argument("number", metavar="1|2")
@shared.profile
@option("--rows", help="Networks of the table, separated by commas; auto: all.")
@shared.seeds
@option("--teacher", help="Table 2's teacher, a DenseNetBC; auto: the paper's.")
@option("--share-ends/--own-ends", default=True, help="Table 2: the teacher's ends, frozen.")
@shared.training
@flag("--dry-run", help="Train nothing; say what exists and what the rest will cost.")
@option("--workers", default="", metavar="N,...", help="With --dry-run: the time on so many.")
@click.option("--speed", type=ABOVE_0, help="With --dry-run: TFLOP/s of a worker, else measured.")
@shared.plan
def table(number, profile, rows, seeds, teacher, share_ends, device, plan, workers, as_json, **how):
    """Train what is missing of the paper's table 1 or 2, and set our errors beside the paper's.

    A teacher that several rows need is trained once. Stopped at any moment, it goes on.

    \b
    banlib table 1 --dry-run --workers 1,4,16
    banlib table 2 --rows MatchWideResNet-2-1,MatchDenseNet-28-1-2 --seeds 2

    \b
    JSON: table, profile, seeds, share_ends, and cells: a row for each printed error, as
          `banlib ledger --json` has them; or with --dry-run runs, finished, live, missing, epochs,
          flops, seconds (of all jobs together), jobs, device, networks: the same for each network
          as it is trained here, workers: [{workers, seconds (to the end), idle (% of their time)}]
    """
    from banlib.paper import printed
    from banlib.runs import parameters, recipe

    dry_run, speed = how.pop("dry_run"), how.pop("speed")
    number, how = printed.check_table(number), shared.check_how(**how)
    if (workers or speed) and not dry_run:
        raise recipe.BadInput("--workers and --speed need --dry-run; --jobs trains side by side")
    settings = parameters.check_parameters(profile, seeds=seeds)
    rows = printed.check_rows(rows, number)
    if number == 1 and not (teacher == "auto" and share_ends):
        only = "--teacher and --own-ends are for table 2"
        raise recipe.BadInput(f"table 1 has lineages of one network each: {only}")
    teacher = None if teacher == "auto" else parameters.check_network(teacher)
    seeds = None if seeds == "auto" else settings.seeds
    workers = [parameters.check_workers(count) for count in workers.split(",") if count]

    from banlib.paper import cost, ledger, tables
    from banlib.runs import engines, machine

    cells = tables.plan(number, settings.profile, rows, seeds, teacher, share_ends)
    if plan:
        return shared.print_plan(tables.specs_of(cells), how["store"])
    about = {"table": number, "profile": settings.profile.name, "share_ends": share_ends}
    about["seeds"] = list(cells[0].chains)
    if dry_run:
        networks = cost.cost(cells, device, how["store"], speed and speed * 1e12)
        about["device"] = str(machine.choose_device(device))
        about["jobs"] = how["jobs"] or engines.default_jobs(settings.profile.threads, device)
        about["workers"] = cost.makespans(cells, networks, workers, how["store"])
        return shared.emit(about | cost.sums(networks) | {"networks": networks}, as_json)
    with shared.to_stderr():
        found = ledger.ledger(tables.train(cells, device, **how))
    if as_json:
        return shared.emit(about | {"cells": found}, as_json)
    names = ["network", "trained", "column", "paper", "measured", "ci95", "seeds", "verdict"]
    print_verdicts(found, names)


def print_verdicts(found, names):
    from banlib.paper import ledger

    shared.emit(found[names])
    counts = ", ".join(f"{count} {name}" for name, count in ledger.counts(found).items())
    click.echo(f"\n{counts}; `banlib ledger --why` has the rule and what each verdict rests on")


@command("Train one run of a plan, for array jobs and shell loops.")
@click.option("--spec", type=click.File(), required=True, help="A line of a plan; - reads it.")
@shared.one_run
def run(spec, store, device, as_json, **how):
    """Train one of the lines that `banlib table 1 --plan` or `banlib lineage --plan` writes.

    Its teacher must be finished in the same store. Run again, it goes on where it was stopped.

    \b
    banlib table 1 --plan | while read -r line; do echo "$line" | banlib run --spec -; done

    \b
    JSON: id, folder, results
    """
    from banlib.runs.parameters import plain
    from banlib.runs.recipe import PROFILES, BadInput, RunSpec

    how = shared.check_how(**how)
    try:
        line = json.loads(spec.read())
        spec, own = RunSpec(**line["spec"]), line["id"]
        if spec.run_id != own:
            raise ValueError(f"the id is {own}, the spec hashes to {spec.run_id}")
    except (ValueError, LookupError, TypeError) as error:
        missing = f"it lacks {error}" if isinstance(error, KeyError) else plain(error)
        wanted = "--spec must be one line of a --plan"
        raise BadInput(f"{wanted}, which has an id and a spec: {missing}") from None

    from banlib.runs.fit import fit

    threads = {each.dataset: each.threads for each in PROFILES.values()}.get(spec.dataset)
    with shared.to_stderr():
        done = fit(spec, store, device, threads, **how)
    shared.emit({"id": done.run_id, "folder": str(done.folder), "results": done.results}, as_json)


@command("Every number the paper prints, with ours and a verdict.", "ledger")
@option("--table", "number", default="both", help="1, 2 or both.")
@option("--profile", default="nearest", help="This profile's runs alone; nearest to the paper's.")
@flag("--why", help="Also print the rule, and what each verdict rests on.")
@flag("--csv", help="Print comma-separated values.")
def show_ledger(number, profile, why, csv, as_json):
    """All 45 errors that the paper's two tables print: paper, measured, interval, verdict.

    Nothing is trained: runs are looked for in the store and among the records in results/.

    \b
    JSON and CSV: table, network, column, paper, measured, ci95, seeds, profile, hardware, commit,
    difference, verdict, and what it rests on: improvement, p_seeds, p_images, why, and more.
    Errors in %, improvements in points, shares in % of the reference's errors.
    """
    from banlib.paper import printed
    from banlib.runs.recipe import PROFILES, named

    number = None if number == "both" else printed.check_table(number)
    profile = None if profile == "nearest" else named("profile", profile, PROFILES)

    from banlib.paper import ledger, tables

    found = ledger.ledger(tables.evidence(number, profile))
    if as_json:
        return shared.emit(found, as_json)
    if csv:
        return click.echo(found.to_csv(index=False), nl=False)
    short = ["table", "network", "column", "paper", "measured", "ci95", "seeds", "profile"]
    print_verdicts(found, [*short, "verdict", *(["why"] if why else [])])
    if why:
        click.echo(f"\n{ledger.RULE}")


@command("Train the evidence of cifar100-lite, most useful first.")
@shared.minutes
@shared.jobs
@option("--steps", help=f"Only these of {','.join(STEPS)}; auto: all.")
@flag("--dry-run", help="Train nothing; say what each step has and lacks.")
@option("--export", metavar="DIR", help="Where finished runs are copied; auto: the records.")
def campaign(minutes, jobs, steps, dry_run, export, as_json):
    """Train what is missing of the plan, and copy what is finished; then go on where it stopped.

    The step rate checks that the recipes are those that the rule chooses; it has no row.

    JSON: [{step, runs, finished, seeds (those of which all is finished)}]
    """
    how = shared.check_how(minutes, jobs)

    from banlib.paper import tables
    from banlib.runs import campaign, lineage

    records = lineage.RESULTS if export == "auto" else export
    table = tables.specs_of(tables.plan(2, campaign.PROFILE, seeds=(0,)))
    with shared.to_stderr():
        rows = campaign.run(how["until"], how["jobs"], steps, records, dry_run, table=table)
    shared.emit(rows, as_json)
    return FAILED if any(row["finished"] < row["runs"] for row in rows) and not dry_run else 0


COMMANDS = [lineage, table, run, show_ledger, campaign]
