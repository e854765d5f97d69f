"""Networks, data, the book."""

import click

from banlib.cli import shared
from banlib.cli.shared import command, flag

NAMES = ("digits", "cifar10", "cifar100", "digits-dev", "cifar100-dev")  # of runs.datasets


@command("The networks of the paper's tables, or any other: parameters, cost.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def networks(names, as_json):
    """Networks: their parameters here and in print, and the multiply-accumulates of an image.

    Without a NAME all of the paper's two tables. Others: DenseNetBC-40-12, WideResNet-16-4 or
    MatchWideResNet-2-1@DenseNetBC-40-12. Counts are for 100 classes and 32x32 images of 3 channels;
    `params_printed` is in millions, `difference` is ours from the print in %.
    """
    from banlib.paper import printed
    from banlib.runs.parameters import check_network

    shared.emit(printed.audit([check_network(name) for name in names]), as_json)


@command("A dataset: where it lies, digest, counts.")
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
def data(name, as_json):
    """A dataset: where it lies, its content digest, how many images and classes it has.

    NAME is digits, cifar10 or cifar100, or digits-dev or cifar100-dev, on which settings are
    chosen. CIFAR is read from the data folder, or downloaded (170 MB), checked, and kept decoded.
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
    for name in ("train", "test"):
        split = getattr(dataset, name)
        each = split.labels.bincount(minlength=len(dataset.classes)).tolist()
        report[name] = {"images": len(split.labels), "shape": list(split.images.shape[1:])}
        report[name]["images_per_class"] = each
    shared.emit(report, as_json)


@command("Run the chapters whose inputs changed, and render the book.")
@shared.profile
@shared.device
@click.option(
    "parameters", "-p", nargs=2, multiple=True, help="As papermill's -p, for all chapters."
)
@flag("--force", help="Run and render everything, changed or not.")
@flag("--no-render", help="Run the chapters alone.")
def book(profile, device, parameters, force, no_render, as_json):
    """Run every chapter whose inputs changed through papermill, then render to _build/html.

    What is trained already is loaded. The ledger runs last, and again when networks were trained
    since. A misspelt parameter is refused before anything runs.

    \b
    banlib book -p gens 2 -p seeds 3

    \b
    JSON: page (null with --no-render), seconds {chapter}, ran [chapters executed now]
    """
    from banlib import book
    from banlib.runs.parameters import integer

    numbers = {name: integer(value) for name, value in parameters}
    given = {n: value if numbers[n] is None else numbers[n] for n, value in parameters}
    try:
        with shared.to_stderr():
            built = book.build(profile, device, given, force=force, render=not no_render)
    except book.BookError as error:
        raise click.ClickException(str(error)) from None  # it may list warnings, one a line
    page = built.page and str(built.page)
    shared.emit({"page": page, "seconds": built.seconds, "ran": list(built.ran)}, as_json)


@click.command(
    short_help="Open JupyterLab on working copies of the chapters.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lab(arguments):
    """Copy the chapters to work/, over no copy that you edited, and open JupyterLab there.

    ARGUMENTS go to JupyterLab, such as --no-browser or --port 9999.
    """
    from banlib.book.lab import open_lab

    open_lab(arguments)
