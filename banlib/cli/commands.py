"""Networks, data, lineages, tables, the ledger, the campaign, the book."""

import click

from banlib.cli import FAILED, shared
from banlib.cli.shared import as_json, flag, option

NAMES = ("digits", "cifar10", "cifar100", "digits-dev", "cifar100-dev")  # of runs.datasets


@click.command(short_help="The networks of the paper's tables, or any other: parameters, cost.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@as_json
def networks(names, as_json):
    """Networks: their parameters here and in print, and the multiply-accumulates of an image.

    Without a NAME all of the paper's two tables. NAME is any network of their families, such as
    DenseNetBC-40-12, WideResNet-16-4 or MatchWideResNet-2-1@DenseNetBC-40-12.

    Counts are for 100 classes and 32x32 images of 3 channels; `params_printed` is in millions,
    `difference` is ours from the print in %.
    """
    from banlib.paper import printed
    from banlib.runs.parameters import check_network

    names, rows = [check_network(name) for name in names] or printed.NAMES, []

    from banlib import models

    for name in names:
        row, params = printed.row(name), models.params(name)
        count = row and row.params_printed
        counts = {"name": name, "params": params, "params_printed": count}
        counts["difference"] = count and round(100 * (params / (count * 1e6) - 1), 2)
        counts["forward_macs"] = models.forward_macs(name)
        rows.append(counts | {"note": row.note if row else ""})
    shared.emit(rows, as_json)


@click.command(short_help="A dataset: where it lies, digest, counts.")
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
@as_json
def data(name, as_json):
    """A dataset: where it lies, its content digest, how many images and classes it has.

    NAME is digits, cifar10 or cifar100, or digits-dev or cifar100-dev, on which settings are
    chosen. The digits come with scikit-learn. CIFAR is read from the data folder, and is downloaded
    (170 MB) if it is not there. Either way it is checked, and kept decoded for the next time.
    """
    from banlib.runs import datasets

    click.echo(f"loading {name}", err=True)
    with shared.to_stderr():  # a download reports its progress
        dataset = datasets.load(name)
        layout, path = datasets.locate(name) or (None, None)
    decoded = datasets.home() / "decoded" / f"{name}.safetensors"
    report = {"name": dataset.name, "source": layout, "path": path and str(path)}
    report |= {"decoded": str(decoded) if decoded.exists() else None, "digest": dataset.digest}
    report |= {"classes": list(dataset.classes)}
    for split in ("train", "test"):
        images, labels = getattr(dataset, split).images, getattr(dataset, split).labels
        each = labels.bincount(minlength=len(dataset.classes)).tolist()
        report[split] = {"images": len(labels), "shape": list(images.shape[1:])}
        report[split]["images_per_class"] = each
    shared.emit(report, as_json)


@click.command(short_help="Train a teacher and its born-again students.")
@shared.profile
@option("--network", help="A name as `banlib networks` knows them.")
@option("--gens", help="Generations of students after the teacher, 0 to 20.")
@shared.seeds
@shared.training
@flag("--no-controls", help="Without BAN-1's controls, which have no teacher or half the loss.")
@as_json
def lineage(profile, network, gens, seeds, device, no_controls, as_json, **how):
    """Raise lineages: a teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, ..., for each seed.

    Runs that are finished are loaded, others trained; stopped at any moment, the same command goes
    on. Prints test errors in %, means over seeds with 95 % intervals, beside the paper's row of the
    network where it has one, and what BAN-1 gains over its teacher and over its control.

    \b
    JSON: profile, network, seeds,
          generations, ensembles and controls: [{name, errors (one per seed), mean,
          ci95 (half-width, null for one seed)}],
          runs: {seed: [run id of the teacher, of BAN-1, ...]}
    """
    from banlib.runs.parameters import check_parameters

    settings, how = check_parameters(profile, network, gens, seeds), shared.check_how(**how)

    from banlib import models
    from banlib.paper import statistics
    from banlib.runs.lineage import raise_controls, raise_lineages

    models.params(settings.network)  # refuses a network too large to build
    shared.device_name(device)
    controls = {}
    with shared.to_stderr():
        lineages = raise_lineages(settings, device, **how)
        if settings.gens and not no_controls:
            controls = raise_controls(settings, device, **how)
    errors = statistics.errors(lineages)
    if as_json:
        return shared.emit(report(lineages, errors, controls), as_json)
    click.echo(f"\n{settings.network}, profile {settings.profile.name}: test error in %")
    beside = statistics.beside_paper(errors, settings.network, controls).dropna(axis=1, how="all")
    shared.print_table(beside.rename(columns={"paper": "paper, CIFAR-100"}))
    if controls:
        table, sentence = statistics.against_controls(errors, controls)
        click.echo("\ngains in points, over the teacher and over the control")
        shared.print_table(table.dropna(axis=1, how="all"))
        click.echo(f"\n{sentence}")
    click.echo(f"\n{statistics.provenance(lineages)}")


def report(lineages, errors, controls):
    """What `banlib lineage --json` prints."""
    from banlib.paper import statistics

    def listed(frame):
        rows = [
            {"name": name, "errors": group.tolist()}
            for name, group in frame.groupby("name", sort=False)["error"]
        ]
        for row in rows:
            row["mean"], half = statistics.interval(row["errors"])
            row["ci95"] = half if half == half else None
        return rows

    single = errors["members"] == 1
    beside = statistics.with_controls(errors, controls)
    return {
        "profile": lineages.settings.profile.name,
        "network": lineages.network,
        "seeds": list(lineages.runs),
        "generations": listed(errors[single]),
        "ensembles": listed(errors[~single]),
        "controls": listed(beside[beside["name"].isin(controls)]),
        "runs": {str(seed): [run.run_id for run in runs] for seed, runs in lineages.runs.items()},
    }


@click.command(short_help="Train one of the paper's tables, or say what that costs.")
@click.argument("number", metavar="1|2")
@shared.profile
@option("--rows", help="Networks of the table, separated by commas; auto: all.")
@shared.seeds
@option("--teacher", help="Table 2's teacher, a DenseNetBC; auto: the paper's.")
@option(
    "--share-ends/--own-ends",
    default=True,
    help="Table 2's students take stem and classifier from the teacher, frozen.",
)
@shared.training
@flag("--dry-run", help="Train nothing; say what exists and what the rest will cost.")
@as_json
def table(number, profile, rows, seeds, teacher, share_ends, device, dry_run, as_json, **how):
    """Train what is missing of the paper's table 1 or 2, and set our errors beside the paper's.

    In the smaller profiles each network has its depth and width divided. A teacher that several
    rows need is trained once. Stopped at any moment, the same command goes on.

    \b
    banlib table 1 --dry-run
    banlib table 2 --rows MatchWideResNet-2-1,MatchDenseNet-28-1-2 --seeds 2

    \b
    JSON: table, profile, seeds, share_ends, and
          cells: a row for each printed error, as `banlib ledger --json` has them; or with --dry-run
          runs, finished, live, missing, epochs, flops, seconds (of all jobs together), jobs,
          device, and networks: the same for each network as it is trained here
    """
    from banlib.paper import printed
    from banlib.runs import parameters, recipe

    number, how = printed.check_table(number), shared.check_how(**how)
    settings = parameters.check_parameters(profile, seeds=seeds)
    rows = printed.check_rows(rows, number)
    if number == 1 and not (teacher == "auto" and share_ends):
        only = "--teacher and --own-ends are for table 2"
        raise recipe.BadInput(f"table 1 has lineages of one network each: {only}")
    teacher = None if teacher == "auto" else parameters.check_network(teacher)
    seeds = None if seeds == "auto" else settings.seeds

    from banlib.paper import cost, ledger, tables
    from banlib.runs import engines

    cells = tables.plan(number, settings.profile, rows, seeds, teacher, share_ends)
    name, about = shared.device_name(device), {"table": number, "profile": settings.profile.name}
    about |= {"seeds": list(cells[0].chains), "share_ends": share_ends}
    if dry_run:
        networks, threads = cost.cost(cells, device), settings.profile.threads
        about |= {"device": name, "jobs": how["jobs"] or engines.default_jobs(threads, device)}
        return shared.emit(about | sums(networks) | {"networks": networks}, as_json)
    with shared.to_stderr():
        found = ledger.ledger(tables.train(cells, device, **how))
    if as_json:
        return shared.emit(about | {"cells": found}, as_json)
    names = ["network", "trained", "column", "paper", "measured", "ci95", "seeds", "verdict"]
    print_verdicts(found, names)


def sums(networks):
    names = ("runs", "finished", "live", "epochs", "flops", "seconds")
    total = {name: sum(entry[name] or 0 for entry in networks) for name in names}
    return total | {"missing": total["runs"] - total["finished"]}


def print_verdicts(found, names):
    from banlib.paper import ledger

    shared.print_table(found[names])
    counts = ", ".join(f"{count} {name}" for name, count in ledger.counts(found).items())
    click.echo(f"\n{counts}; `banlib ledger --why` has the rule and what each verdict rests on")


@click.command("ledger", short_help="Every number the paper prints, with ours and a verdict.")
@option("--table", "number", default="both", help="1, 2 or both.")
@option("--profile", default="nearest", help="This profile's runs alone; nearest to the paper's.")
@flag("--why", help="Also print the rule, and what each verdict rests on.")
@click.option("--json", "form", flag_value="json", help="Print JSON alone on standard output.")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def show_ledger(number, profile, why, form):
    """All 45 errors that the paper's two tables print: paper, measured, interval, verdict.

    Nothing is trained. Runs are looked for in the store and among the records in results/. A number
    that no run answers is "not run".

    \b
    JSON and CSV, for each: table, network, column, paper, measured, ci95, seeds, profile, hardware,
    commit, difference, verdict, and what it rests on: trained, reference, paper_improvement,
    improvement, improvement_ci95, paper_share, share, p_seeds, p_images, why, and more. Errors in
    %, improvements in points, shares in % of the reference's errors.
    """
    from banlib.paper import printed
    from banlib.runs.recipe import PROFILES, named

    number = None if number == "both" else printed.check_table(number)
    profile = None if profile == "nearest" else named("profile", profile, PROFILES)

    from banlib.paper import ledger, tables

    found = ledger.ledger(tables.evidence(number, profile))
    short = ["table", "network", "column", "paper", "measured", "ci95", "seeds", "profile"]
    if form == "json":
        return shared.emit(found, as_json=True)
    if form == "csv":
        return click.echo(found.to_csv(index=False), nl=False)
    if form == "markdown":
        cells = found[[*short, "verdict"]].fillna("")
        return click.echo(cells.to_markdown(index=False, floatfmt=".2f"))
    print_verdicts(found, [*short, "verdict", *(["why"] if why else [])])
    if why:
        click.echo(f"\n{ledger.RULE}")


@click.command(short_help="Train the evidence of cifar100-lite, most useful first.")
@shared.minutes
@shared.jobs
@option("--steps", help="Only these steps, separated by commas; auto: all.")
@flag("--dry-run", help="Train nothing; say what each step has and lacks.")
@option("--export", metavar="DIR", help="Where finished runs are copied; auto: results/.")
@as_json
def campaign(minutes, jobs, steps, dry_run, export, as_json):
    """Train what is missing of the plan, and copy what is finished; then go on where it stopped.

    Most copies are light: of test probabilities they hold those that comparisons need.

    \b
    JSON: [{step, runs, finished}]
    """
    how = shared.check_how(jobs, minutes)

    from banlib.paper import tables
    from banlib.runs import campaign, lineage

    records = lineage.RESULTS if export == "auto" else export
    table = tables.specs_of(tables.plan(2, campaign.PROFILE, seeds=(0,)))
    with shared.to_stderr():
        rows = campaign.run(how["until"], how["jobs"], steps, records, dry_run, table=table)
    shared.emit(rows, as_json)
    return FAILED if any(row["finished"] < row["runs"] for row in rows) and not dry_run else 0


@click.command(short_help="Run the chapters whose inputs changed, and render the book.")
@shared.profile
@shared.device
@click.option(
    "parameters",
    "-p",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="A parameter for the chapters that have it, as papermill's -p; may be repeated.",
)
@flag("--force", help="Run and render everything, changed or not.")
@flag("--no-render", help="Run the chapters alone.")
@flag("--headline", help="Then copy chapter 2's figure to book/assets/, for the README.")
@as_json
def book(profile, device, parameters, force, no_render, headline, as_json):
    """Run every chapter whose inputs changed through papermill, then render to _build/html.

    What is trained already is loaded, so a second run is quick. A misspelt parameter is refused
    before anything runs.

    \b
    banlib book -p gens 2 -p seeds 3

    \b
    JSON: page (null with --no-render), seconds {chapter: of its last execution},
          ran [chapters executed now]
    """
    from banlib import book
    from banlib.runs.parameters import integer

    numbers = {name: integer(value) for name, value in parameters}
    given = {n: value if numbers[n] is None else numbers[n] for n, value in parameters}
    try:
        with shared.to_stderr():
            built = book.build(profile, device, given, force=force, render=not no_render)
            if headline:
                book.headline()
    except book.BookError as error:
        raise click.ClickException(str(error)) from None  # it may list warnings, one a line
    page = built.page and str(built.page)
    shared.emit({"page": page, "seconds": built.seconds, "ran": list(built.ran)}, as_json)


COMMANDS = [networks, data, lineage, table, show_ledger, campaign]
