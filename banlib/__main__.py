"""The command line: `banlib`, or `python -m banlib`.

Results go to standard output, as a table or with --json as JSON and nothing else; progress and warnings go to standard
error. Everything slow is imported inside the command that needs it, so that help and misspelt commands answer at once.
"""

import contextlib
import difflib
import json
import math
import os
import signal
import sys
import threading
import time
import warnings

import click

# 75 is EX_TEMPFAIL of sysexits.h, 130 what a shell makes of SIGINT.
FAILED, BAD_INPUT, START_AGAIN, INTERRUPTED = 1, 2, 75, 130


class Terminated(KeyboardInterrupt):
    """SIGTERM, told like an interrupt from the keyboard: locks are freed, workers end, finished epochs are kept."""


class Commands(click.Group):
    """Commands whose failures are one sentence on standard error and an exit code."""

    group_class = type  # groups in a group are of this class too

    def list_commands(self, ctx):
        return list(self.commands)  # in the order a newcomer meets them

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx, args):
        if args and self.get_command(ctx, args[0]) is None:
            [near] = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0)
            raise click.UsageError(f"no command {args[0]!r}; did you mean {near!r}?", ctx)
        return super().resolve_command(ctx, args)

    def main(self, args=None, prog_name="banlib", standalone_mode=True, **extra):
        debug = os.environ.get("BANLIB_DEBUG") == "1"
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # a path can hold what the terminal cannot show
        try:
            with clean_stop(), plain_warnings():
                code = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.UsageError as error:
            asked = error.ctx.command_path if error.ctx else prog_name
            code = complain(f"{error.format_message().rstrip('.')}; see {asked} --help", BAD_INPUT)
        except click.ClickException as error:
            code = complain(error.format_message(), FAILED)
        except click.Abort as error:  # what click makes of a KeyboardInterrupt
            if isinstance(error.__context__, Terminated):
                code = complain("stopped by SIGTERM; finished epochs are kept, start it again to go on", START_AGAIN)
            else:
                code = complain("interrupted; finished epochs are kept, run it again to go on", INTERRUPTED)
        except (ValueError, RuntimeError, LookupError, OSError) as error:
            if debug:
                raise
            code = BAD_INPUT if isinstance(error, ValueError) else getattr(error, "exit_code", FAILED)
            complain(sentence(error), code)
        sys.exit(code if isinstance(code, int) else 0)


def complain(text, code):
    click.echo(f"banlib: {text}", err=True)
    return code


def sentence(error):
    """What an error says, in one line; with its type where the text alone says nothing, as a KeyError's."""
    from banlib.recipe import plain

    text = " ".join(plain(error).split())
    return f"{type(error).__name__}: {text}" if not text or isinstance(error, (KeyError, IndexError)) else text


@contextlib.contextmanager
def clean_stop():
    """SIGTERM raises `Terminated` inside; a second one kills at once, as ever."""

    def stop(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def plain_warnings():
    """Warnings as a line on standard error, without the source line that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"banlib: warning: {message}", err=True)
        yield


def as_json_option(command):
    return click.option("--json", "as_json", is_flag=True, help="Print JSON alone on standard output.")(command)


def store_option(command):
    return click.option(
        "--store", "folder", metavar="DIR", help="The folder of runs; by default `runs` where banlib keeps its things."
    )(command)


def how_options(command):
    """How runs are trained, not what: see `training.How`, whose names these options have."""
    for option in (
        click.option("--teacher-memory", default="auto", show_default=True,
                     help="auto, online (ask it for each batch) or remembered (each image and view once)."),
        click.option("--compile", default="auto", show_default=True,
                     help="yes, no, or auto: torch.compile costs minutes first, so only hours of training on a CPU try it."),
        click.option("--minutes", default=None, metavar="N", help="Stop by itself after so many minutes, with finished epochs kept."),
        click.option("--deterministic", is_flag=True, help="The same bits each time on this machine; slower on CUDA."),
        click.option("--cuda-graph", is_flag=True, help="CUDA: record a step once, replay it. Not yet tried on a GPU."),
        click.option("--pad-channels", is_flag=True,
                     help="Channels to multiples of 8, for --compile yes on CUDA. Not yet tried on a GPU."),
    )[::-1]:  # fmt: skip
        command = option(command)
    return command


@click.group(
    cls=Commands,
    name="banlib",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Exit codes:
  0    done
  1    it failed, or `banlib runs verify` found damage
  2    bad input; nothing was created
  75   stopped by SIGTERM, or by --minutes: finished epochs are kept, start it again to go on
  130  interrupted from the keyboard: run it again to go on

\b
Environment:
  BANLIB_HOME   where runs and data are kept (default: the platform's cache folder)
  BANLIB_DATA   where datasets are looked for (default: data in BANLIB_HOME)
  BANLIB_DEBUG  1 shows the traceback of an error
""",
)
@click.version_option(package_name="banlib", message="%(prog)s %(version)s")
def main():
    """Born Again Networks, re-run: train a teacher and its born-again students, and render the book about it.

    \b
    banlib lineage                    raise lineages on handwritten digits, a minute or two on a CPU
    banlib lineage --gens 1 --seeds 2
    banlib runs list
    banlib book
    """


@main.command(short_help="The networks of the paper's tables, or any other: parameters, cost.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@as_json_option
def networks(names, as_json):
    """Networks: their parameters here and in print, and the multiply-accumulates of one 32x32 image.

    Without a NAME all of the paper's two tables. NAME is any network of their families, such as DenseNetBC-40-12,
    WideResNet-16-4 or MatchWideResNet-2-1@DenseNetBC-40-12.

    Counts are for 100 classes and 3 input channels; `printed` is in millions, `difference` is ours from the print in %.
    """
    from banlib import models, paper

    audited = {} if names else {entry["name"]: entry for entry in models.audit()}
    rows = []
    for name in audited or [models.parse(name)[0] for name in names]:
        row = paper.row(name)
        ours = audited.get(name) or {"params": models.params(name), "forward_macs": models.forward_macs(name)}
        printed = row and row.params_printed
        rows.append({
            "name": name,
            "params": ours["params"],
            "params_printed": printed,
            "forward_macs": ours["forward_macs"],
            "note": row.note if row else "",
            "difference": round(100 * (ours["params"] / (printed * 1e6) - 1), 2) if printed else None,
        })  # fmt: skip
    if as_json:
        return print_json(rows)
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    print_table(
        ["network", "parameters", "printed, M", "difference, %", "forward GMACs", ""],
        [[row["name"], f"{row['params']:,}", row["params_printed"], fixed(row["difference"]),
          fixed(row["forward_macs"] / 1e9, 3), f"[{notes.index(row['note']) + 1}]" if row["note"] else ""]
         for row in rows],
    )  # fmt: skip
    for number, note in enumerate(notes, 1):
        click.echo(f"{'' if number > 1 else chr(10)}[{number}] {note}")


@main.command(short_help="A dataset: where it lies, digest, counts.")
@click.argument("name")
@as_json_option
def data(name, as_json):
    """A dataset: where it lies, its content digest, how many images and classes it has.

    NAME is digits, cifar10 or cifar100. The digits come with scikit-learn. CIFAR is read from the data folder, and is
    downloaded (170 MB) if it is not there. Either way it is checked, and kept decoded for the next time.
    """
    from banlib import data

    data.check_name(name)
    click.echo(f"loading {name}", err=True)
    with contextlib.redirect_stdout(sys.stderr):  # a download reports its progress
        dataset = data.load(name)
        layout, path = data.locate(name) or (None, None)
    decoded = data.home() / "decoded" / f"{name}.safetensors"
    told = {
        "name": dataset.name,
        "source": layout,
        "path": path and str(path),
        "decoded": str(decoded) if decoded.exists() else None,
        "digest": dataset.digest,
        "classes": list(dataset.classes),
    }
    for split in ("train", "test"):
        images, labels = getattr(dataset, split).images, getattr(dataset, split).labels
        per_class = labels.bincount(minlength=len(dataset.classes)).tolist()
        told[split] = {"images": len(labels), "shape": list(images.shape[1:]), "images_per_class": per_class}
    if as_json:
        return print_json(told)
    rows = [["dataset", told["name"]], ["digest", told["digest"]]]
    rows.append(["source", " in ".join(filter(None, (layout or "decoded tensors alone", told["path"])))])
    rows.append(["decoded", told["decoded"] or "not kept, reading it is quick"])
    rows.append(["classes", f"{len(dataset.classes)}: {', '.join(dataset.classes[:10])}"
                            f"{', ...' if len(dataset.classes) > 10 else ''}"])  # fmt: skip
    for split in ("train", "test"):
        fewest, most = min(told[split]["images_per_class"]), max(told[split]["images_per_class"])
        each = fewest if fewest == most else f"{fewest} to {most}"
        shape = " x ".join(map(str, told[split]["shape"]))
        count = told[split]["images"]
        rows.append([split, f"{count:,} images, {shape} (channels, height, width), {each} of each class"])
    print_table(None, rows)


@main.command(short_help="Train a teacher and its born-again students.")
@click.option("--profile", default="digits", show_default=True, help="digits, cifar100-lite or cifar100.")
@click.option("--network", default="auto", show_default=True, help="A name as `banlib networks` knows them.")
@click.option("--gens", default="auto", show_default=True, help="Generations of students after the teacher, 0 to 20.")
@click.option("--seeds", default="auto", show_default=True, help="A count (3: seeds 0, 1, 2) or a list (4,7).")
@click.option("--device", default="auto", show_default=True, help="auto (CUDA, then CPU), cpu, cuda, cuda:1.")
@click.option("--jobs", default="auto", show_default=True, help="Lineages to raise side by side.")
@how_options
@as_json_option
def lineage(profile, network, gens, seeds, device, jobs, as_json, **how):
    """Raise lineages: a teacher, BAN-1 taught by it, BAN-2 taught by BAN-1, and so on, for each seed.

    Runs that are finished are loaded, others trained; stopped at any moment, the same command goes on. Prints test
    errors in %, means over seeds with 95 % intervals, beside the paper's row of the network where it has one.
    `auto` leaves a choice to the profile.

    \b
    JSON: profile, network, seeds,
          generations and ensembles: [{name, errors (one per seed), mean, ci95 (half-width, null for one seed)}],
          runs: {seed: [run id of the teacher, of BAN-1, ...]}
    """
    from banlib import models, recipe

    settings = recipe.check_parameters(profile, network, gens, seeds)
    models.params(settings.network)  # refuses a network too large to build
    jobs, how = check_jobs(jobs), check_how(**how)

    from banlib import ledger
    from banlib.lineage import raise_lineages
    from banlib.machine import choose_device

    chosen = choose_device(device)
    fallback = " (no CUDA device found)" if device == "auto" and chosen.type == "cpu" else ""
    click.echo(f"device: {chosen}{fallback}", err=True)
    with contextlib.redirect_stdout(sys.stderr):
        lineages = raise_lineages(settings, str(chosen), jobs, **how)
    errors = ledger.errors(lineages)
    if as_json:
        return print_json(lineage_report(lineages, errors))
    click.echo(f"\n{settings.network}, profile {settings.profile.name}: test error in %, mean over seeds")
    table = ledger.beside_paper(errors, settings.network)
    in_paper = table["paper"].notna().any()
    print_table(
        ["name", *(["paper, CIFAR-100"] if in_paper else []), "measured", "ci95", "seeds", "verdict"],
        [[row["name"], *([fixed(row["paper"])] if in_paper else []), fixed(row["measured"]), fixed(row["ci95"]),
          row["seeds"], row["verdict"]] for row in table.to_dict("records")],
    )  # fmt: skip
    if differences := ledger.paired(errors).to_dict("records"):
        click.echo("\nthe same, minus the teacher of the same seed")
        print_table(
            ["name", "difference", "ci95", "p", "seeds below the teacher"],
            [[row["name"], fixed(row["difference"]), fixed(row["ci95"]), fixed(row["p"], 3),
              f"{row['wins']} of {row['seeds']}"] for row in differences],
        )  # fmt: skip
    click.echo(f"\n{ledger.provenance(lineages)}")


def check_jobs(value):
    from banlib.recipe import BadInput, integer

    jobs = None if value == "auto" else integer(value)
    if value != "auto" and (jobs is None or not 1 <= jobs <= 256):
        raise BadInput(f"jobs must be 'auto' or an integer from 1 to 256, got {value!r}")
    return jobs


def check_how(teacher_memory, compile, minutes, **flags):
    from banlib import teachers
    from banlib.recipe import BadInput, named

    if minutes is not None:
        try:
            flags["until"] = time.time() + 60 * float(minutes)
        except ValueError:
            flags["until"] = math.nan
        if not time.time() < flags["until"] < math.inf:
            raise BadInput(f"minutes must be a number above 0, got {minutes!r}")

    memory = named("teacher memory", teacher_memory, teachers.MEMORIES)
    answers = {"auto": "auto", "yes": True, "no": False}
    return {"teacher_memory": memory, "compile": answers[named("compile", compile, answers)], **flags}


def lineage_report(lineages, errors):
    """What `banlib lineage --json` prints."""
    from banlib import ledger

    found = {"generations": [], "ensembles": []}
    for entry in ledger.summary(errors).to_dict("records"):
        name, mean, half = entry["name"], entry["mean"], number(entry["ci95"])
        rows = errors[errors["name"] == name]
        found["generations" if (rows["members"] == 1).all() else "ensembles"].append(
            {"name": name, "errors": rows["error"].tolist(), "mean": mean, "ci95": half}
        )
    return {
        "profile": lineages.settings.profile.name,
        "network": lineages.network,
        "seeds": list(lineages.runs),
        **found,
        "runs": {str(seed): [run.run_id for run in runs] for seed, runs in lineages.runs.items()},
    }


@main.command(short_help="Train one of the paper's tables, or say what that costs.")
@click.argument("number", metavar="1|2")
@click.option("--profile", default="digits", show_default=True, help="digits, cifar100-lite or cifar100.")
@click.option("--rows", default="auto", show_default=True, help="Networks of the table, separated by commas; auto: all.")
@click.option("--seeds", default="auto", show_default=True, help="A count (3: seeds 0, 1, 2) or a list (4,7).")
@click.option("--teacher", default="auto", show_default=True, help="Table 2's teacher, a DenseNetBC; auto: the paper's.")
@click.option("--share-ends/--own-ends", default=True, show_default=True,
              help="Table 2's students take stem and classifier from the teacher, frozen; or train their own.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto (CUDA, then CPU), cpu, cuda, cuda:1.")
@click.option("--jobs", default="auto", show_default=True, help="Networks to train side by side.")
@how_options
@click.option("--dry-run", is_flag=True, help="Train nothing; say what exists and what the rest will cost.")
@as_json_option
def table(number, profile, rows, seeds, teacher, share_ends, device, jobs, dry_run, as_json, **how):
    """Train all networks of the paper's table 1 or 2 that are not trained yet, and set their errors beside the paper's.

    In the smaller profiles each network has its depth and width divided (`banlib.models.shrunk` has the rule). A teacher
    that several rows need is trained once. Stopped at any moment, the same command goes on.

    \b
    banlib table 1 --dry-run
    banlib table 2 --rows MatchWideResNet-2-1,MatchDenseNet-28-1-2 --seeds 2

    \b
    JSON: table, profile, seeds, share_ends, and
          cells: a row for each printed error, as `banlib ledger --json` has them; or with --dry-run
          runs, finished, live, missing, epochs, flops, seconds (of all jobs together), jobs, device, and
          networks: the same for each network as it is trained here, with the rows that need it
    """
    from banlib import recipe, tables

    number = tables.check_table(number)
    settings = recipe.check_parameters(profile, seeds="auto" if seeds == "auto" else seeds)
    rows, jobs, how = tables.check_rows(rows, number), check_jobs(jobs), check_how(**how)
    if number == 1 and not (teacher == "auto" and share_ends):
        raise recipe.BadInput("table 1 has lineages of one network each: --teacher and --own-ends are for table 2")
    teacher = None if teacher == "auto" else recipe.check_network(teacher)
    seeds = None if seeds == "auto" else settings.seeds
    cells = tables.plan(number, settings.profile, rows, seeds, teacher, share_ends)

    from banlib import ledger
    from banlib.machine import choose_device

    chosen = str(choose_device(device))
    told = {"table": number, "profile": settings.profile.name, "seeds": list(cells[0].chains), "share_ends": share_ends}
    if dry_run:
        return print_cost(told, tables.cost(cells, chosen), jobs or default_jobs(settings.profile, chosen), chosen, as_json)
    with contextlib.redirect_stdout(sys.stderr):
        found = ledger.ledger(tables.train(cells, chosen, jobs, **how))
    if as_json:
        return print_json(told | {"cells": records(found)})
    click.echo(f"table {number}, profile {told['profile']}, {len(told['seeds'])} seeds: test error in %, ours and [the paper's]")
    print_cells(found)
    click.echo(f"\n{verdict_counts(found)}; `banlib ledger --why` has the rule and what each verdict rests on")


def default_jobs(profile, device):
    """How many processes `lineage.train_missing` starts by itself."""
    import joblib

    return joblib.cpu_count() if profile.threads == 1 and device == "cpu" else 1


def print_cost(told, networks, jobs, device, as_json):
    sums = {name: sum(entry[name] for entry in networks) for name in ("runs", "finished", "live", "epochs", "flops")}
    told |= sums | {
        "missing": sums["runs"] - sums["finished"],
        "seconds": round(sum(entry["seconds"] or 0 for entry in networks), 1), "jobs": jobs, "device": device,
    }  # fmt: skip
    if as_json:
        return print_json(told | {"networks": networks})
    large, long = told["flops"] > 1e15, told["seconds"] > 3 * 3600
    flops = lambda count: f"{count / (1e15 if large else 1e12):,.1f}"  # noqa: E731
    wall = lambda seconds: f"{seconds / (3600 if long else 60):,.1f}"  # noqa: E731
    print_table(
        ["trained as", "for", "runs", "finished", "epochs to go", "PFLOP" if large else "TFLOP", "hours" if long else "minutes"],
        [[entry["network"], ", ".join(entry["rows"]) or "the others, as teacher", entry["runs"], entry["finished"], entry["epochs"],
          flops(entry["flops"]), wall(entry["seconds"] or 0)] for entry in networks],
    )  # fmt: skip
    begun = f", {told['live']} of them begun" if told["live"] else ""
    click.echo(f"\n{told['runs']} runs for seeds {', '.join(map(str, told['seeds']))}: {told['finished']} finished, "
               f"{told['missing']} missing{begun}. {told['epochs']:,} epochs, {flops(told['flops'])} {'P' if large else 'T'}FLOP, about "
               f"{wall(told['seconds'] / jobs)} {'hours' if long else 'minutes'} on {device} with {jobs} at a time.")  # fmt: skip


@main.command(name="ledger", short_help="Every number the paper prints, with ours beside it and a verdict.")
@click.option("--table", "number", default="both", show_default=True, help="1, 2 or both.")
@click.option("--profile", default="nearest", show_default=True,
              help="Look at this profile's runs alone; nearest: for each number the profile nearest to the paper's setting.")  # fmt: skip
@click.option("--why", is_flag=True, help="Also print the rule, and what each verdict rests on.")
@click.option("--json", "form", flag_value="json", help="Print JSON alone on standard output.")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def show_ledger(number, profile, why, form):
    """All 45 errors that the paper's two tables print: paper, measured, interval, verdict. Nothing is trained.

    Runs are looked for in the store and among the records in results/. A number that no run answers is "not run".

    \b
    JSON and CSV, for each: table, network, column, paper, measured, ci95, seeds, profile, hardware, commit, difference,
    verdict, and what it rests on: trained, reference, paper_improvement, improvement, improvement_ci95, paper_share,
    share, p_seeds, p_images, why. Errors in %, improvements in points, shares in % of the reference's errors.
    """
    from banlib import ledger, recipe, tables

    number = None if number == "both" else tables.check_table(number)
    if profile != "nearest":
        recipe.named("profile", profile, recipe.PROFILES)
    found = ledger.ledger(tables.evidence(number, None if profile == "nearest" else profile))
    if form == "json":
        return print_json(records(found))
    if form == "csv":
        return click.echo(found.to_csv(index=False), nl=False)
    short = ["table", "network", "column", "paper", "measured", "ci95", "seeds", "profile", "verdict"]
    lines = [[fixed(cell) if isinstance(cell, float) else cell for cell in line] for line in found[short].values.tolist()]
    if form == "markdown":
        cells = [short, ["---"] * len(short), *([("" if cell is None else str(cell)) for cell in line] for line in lines)]
        return click.echo("\n".join("| " + " | ".join(line) + " |" for line in cells))
    print_table(short, lines)
    click.echo(f"\n{verdict_counts(found)}")
    if why:
        click.echo(f"\n{ledger.RULE}\n")
        print_table(["table", "network", "column", "verdict", "why"],
                    found[["table", "network", "column", "verdict", "why"]].values.tolist())  # fmt: skip


def records(frame):
    """A data frame as a list of dicts for JSON: NaN becomes null."""
    return [{name: number(value) for name, value in row.items()} for row in frame.to_dict("records")]


def verdict_counts(table):
    from banlib import ledger

    return ", ".join(f"{count} {name}" for name, count in ledger.counts(table).items())


def print_cells(found):
    """The cells of one table in the paper's shape: ours with half the interval, and the paper's in brackets."""
    columns = list(dict.fromkeys(found["column"]))
    rows = []
    for network, group in found.groupby("network", sort=False):
        own = {}
        for row in group.to_dict("records"):
            half = f" ±{row['ci95']:.2f}" if number(row["ci95"]) is not None else ""
            own[row["column"]] = f"{row['measured']:.2f}{half} [{row['paper']:.2f}]"
        rows.append([network, group["trained"].iloc[0], *(own.get(column) for column in columns)])
    print_table(["network", "trained as", *columns], rows)


@main.group(short_help="Trained networks: list, show, verify, rm, export.")
def runs():
    """Trained networks: list, show, verify, remove and export them.

    An ID may be shortened to its first digits, as long as they are those of one run alone.
    """


@runs.command("list", short_help="All runs, also those in training.")
@store_option
@as_json_option
def list_runs(folder, as_json):
    """All runs: finished, live (in training, or stopped and ready to go on), diverged, damaged.

    Every file of a finished run is checked. Epochs are those done, of those planned; errors are in %.
    """
    store = open_store(folder)
    told = sorted((overview(store, run_id) for run_id in store.ids()), key=by_lineage)
    if as_json:
        return print_json(told)
    if not told:
        return click.echo(f"no runs in {store.root} yet; `banlib lineage` trains some", err=True)
    print_table(
        ["id", "dataset", "network", "generation", "seed", "status", "epochs", "test error"],
        [[row["id"], row["dataset"], row["network"], row["name"], row["seed"], row["status"],
          None if row["epochs"] is None else f"{row['epochs']}/{row['epochs_planned']}", fixed(row["test_error"])]
         for row in told],
    )  # fmt: skip


@runs.command(short_help="All that is known of one run.")
@click.argument("run_id", metavar="ID")
@store_option
@as_json_option
def show(run_id, folder, as_json):
    """One run: what was trained, on what machine, to which end, and where it lies.

    \b
    JSON: id, status, folder, problems, and, where they can be read, spec, results, environments, metrics (a row per
          epoch: loss in nats, errors in %).
    """
    store = open_store(folder)
    run_id = find(store, run_id)
    status = status_of(store, run_id)
    live = status in ("live", "diverged")
    told = {
        "id": run_id,
        "status": status,
        "folder": str(store.root / "live" / run_id if live else store.root / run_id),
        "problems": problems_of(store, run_id, status),
        "spec": None, "results": None, "environments": [], "metrics": [],
    } | record(store, run_id)  # fmt: skip
    if told["spec"]:
        told["spec"] = told["spec"].model_dump(mode="json")
    if as_json:
        return print_json(told)
    from banlib.store import leaves

    rows = [["id", run_id], ["status", status], ["folder", told["folder"]]]
    rows += [["problem", problem] for problem in told["problems"]]
    for part in ("spec", "results"):
        rows += [[name, value] for name, value in leaves(told[part] or {}).items()]
    for number, environment in enumerate(told["environments"], 1):
        rows.append([f"start {number}", ", ".join(f"{name} {value}" for name, value in environment.items())])
    print_table(None, rows)
    tested = [row for row in told["metrics"] if "test_error" in row][-10:]
    if tested:
        click.echo()
        print_table(
            ["epoch", "lr", "train loss", "train error", "test error", "seconds"],
            [[row["epoch"], f"{row['lr']:g}", fixed(row["train_loss"], 4), fixed(row["train_error"]),
              fixed(row["test_error"]), fixed(row["seconds"])] for row in tested],
        )  # fmt: skip


@runs.command(short_help="Check every byte.")
@click.argument("run_ids", metavar="[ID]...", nargs=-1)
@store_option
@as_json_option
def verify(run_ids, folder, as_json):
    """Check every byte of the runs named, or of all: files against their digests, specs against their ids.

    Prints each problem in a sentence, and exits with 1 if there is one.
    """
    store = open_store(folder)
    checked = []
    for run_id in find_all(store, run_ids) if run_ids else store.ids():
        status = status_of(store, run_id)
        damage = [] if status == "diverged" else problems_of(store, run_id, status)
        checked.append({"id": run_id, "status": status, "problems": damage})
    problems = [problem for row in checked for problem in row["problems"]]
    if as_json:
        print_json(checked)
    else:
        for problem in problems:
            click.echo(problem)
        bad = sum(bool(row["problems"]) for row in checked)
        click.echo(f"{len(checked)} runs checked in {store.root}, {bad or 'none'} damaged")
    sys.exit(FAILED if problems else 0)


@runs.command(short_help="Delete runs, finished or not.")
@click.argument("run_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
@as_json_option
def rm(run_ids, yes, folder, as_json):
    """Delete runs, finished or not, unless a process is training them.

    Asks first, and warns where other runs learned from one of them.
    """
    store = open_store(folder)
    doomed = find_all(store, run_ids)
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("runs are removed after a question, and there is no terminal to ask on; give --yes",
                               click.get_current_context())  # fmt: skip
    for run_id in store.ids():
        student = overview(store, run_id)
        if student["teacher"] in doomed and run_id not in doomed:
            warnings.warn(f"run {run_id} ({student['name']}, seed {student['seed']}) learned from "
                          f"{student['teacher']}; it stays whole")  # fmt: skip
    for run_id in doomed:
        row = overview(store, run_id)
        what = " ".join(str(row[name]) for name in ("network", "name", "seed") if row[name] is not None)
        click.echo(f"{run_id}  {what}  {row['status']}", err=True)
    if not yes:
        which = "this run" if len(doomed) == 1 else f"these {len(doomed)} runs"
        confirmed = False
        with contextlib.suppress(click.Abort):  # no answer at all
            confirmed = click.confirm(f"Remove {which}?", err=True)
        if not confirmed:
            raise click.ClickException("not confirmed, nothing was removed")
    for run_id in doomed:
        store.remove(run_id)
    if as_json:
        return print_json({"removed": doomed})
    click.echo(f"{len(doomed)} removed from {store.root}")


@runs.command(short_help="Copy runs without their weights.")
@click.argument("run_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--to", "target", metavar="DIR", required=True, help="The folder of runs to copy into; made if missing.")
@store_option
@as_json_option
def export(run_ids, target, folder, as_json):
    """Copy finished runs without their weights, as the records in results/ are. What is there already stays."""
    store = open_store(folder)
    chosen = find_all(store, run_ids)
    for run_id in chosen:
        store.load(run_id)  # all are whole, or none is copied
    copies = [store.export(run_id, target).folder for run_id in chosen]
    if as_json:
        return print_json({"exported": chosen, "to": os.path.abspath(target)})
    for copy in copies:
        click.echo(copy)


@main.command(short_help="Run the chapters whose inputs changed, and render the book.")
@click.option("--profile", default="digits", show_default=True, help="digits, cifar100-lite or cifar100.")
@click.option("--device", default="auto", show_default=True, help="auto (CUDA, then CPU), cpu, cuda, cuda:1.")
@click.option("parameters", "-p", nargs=2, multiple=True, metavar="NAME VALUE",
              help="A parameter for every chapter that has it, as papermill's -p; may be repeated.")  # fmt: skip
@click.option("--force", is_flag=True, help="Run and render everything, changed or not.")
@click.option("--no-render", is_flag=True, help="Run the chapters alone.")
@click.option("--headline", is_flag=True, help="Then copy chapter 2's figure to book/assets/, for the README.")
@as_json_option
def book(profile, device, parameters, force, no_render, headline, as_json):
    """Run every chapter whose inputs changed through papermill, then render the book to _build/html.

    What is trained already is loaded, so a second run is quick. A misspelt parameter is refused before anything runs.

    \b
    banlib book -p gens 2 -p seeds 3

    \b
    JSON: page (null with --no-render), seconds {chapter: of its last execution}, ran [chapters executed now]
    """
    from banlib import book
    from banlib.recipe import integer

    parameters = {name: value if integer(value) is None else integer(value) for name, value in parameters}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            built = book.build(profile, device, parameters, force=force, render=not no_render)
            if headline:
                book.headline()
    except book.BookError as error:
        raise click.ClickException(str(error)) from None  # it may list warnings, one a line
    page = built.page and str(built.page)
    if as_json:
        return print_json({"page": page, "seconds": built.seconds, "ran": list(built.ran)})
    ran = {name: "now" if name in built.ran else "before" for name in built.seconds}
    print_table(["chapter", "seconds", "run"], [[name, fixed(built.seconds[name], 1), ran[name]] for name in ran])
    if page:
        click.echo(page)


@main.command(short_help="How fast training and distilling are here, beside the loop that people write.")
@click.option("--network", default=None, help="DenseNetBC-40-12, or what `banlib networks` knows; with --scaling DenseNetBC-22-12.")
@click.option("--device", default="auto", show_default=True, help="auto (CUDA, then CPU), cpu, cuda, cuda:1.")
@click.option("--batch", default="128", show_default=True, help="Images in a batch.")
@click.option("--precision", default="auto", show_default=True,
              help="Of our loop: auto, bf16, or fp32, which is what a processor without bf16 would take.")  # fmt: skip
@click.option("--compile", "compile", is_flag=True, help="Our loop with torch.compile.")
@click.option("--cuda-graph", is_flag=True, help="Our loop recorded as a CUDA graph. Not yet tried on a GPU.")
@click.option("--pad-channels", is_flag=True, help="Our loop with channels padded to multiples of 8.")
@click.option("--scaling", is_flag=True,
              help="How our cost grows with depth, growth, batch, images, students and generations, instead.")  # fmt: skip
@click.option("--record", is_flag=True, help="Keep the result in results/benchmarks/ of the checkout, for chapter 6.")
@as_json_option
def bench(network, device, batch, scaling, record, as_json, **how):
    """The usual loop (DataLoader, torchvision, float32, online teacher) and ours take turns; under ten minutes.

    Stopped, the same command goes on after its last finished round. Compare ratios: whatever else runs here slows all.

    \b
    JSON: ratio_to_usual_loop {plain, distill_online, distill_remembered} and ratio_range {name: [lowest, highest]} over
          the rounds, images_per_second, peak_memory_mib, seconds_to_first_step, students {first, later}, ceilings;
          with --scaling: points [{axis, value, plain, later, fill: seconds for each image}], share_asked {epochs: share},
          chain {epochs, views, plain, students, generations: seconds for each image and epoch}
    """
    from banlib import bench

    measure, kind = (bench.scaling, "scaling") if scaling else (bench.loop, "loop")
    result = measure(**{"network": network} if network else {}, device=device, batch=batch,
                     say=lambda text: click.echo(text, err=True), **how)  # fmt: skip
    if record:
        click.echo(bench.record(result, kind), err=True)
    if as_json:
        return print_json(result)
    click.echo(f"{result['network']}, batch {result['batch']}, {result['data']}, {result['hardware']}, "
               f"{result['numerics']}")  # fmt: skip
    if scaling:
        print_table(
            ["axis", "value", "plain, ms/image", "remembered", "asking the teacher"],
            [[point["axis"], point["value"], *(fixed(1000 * point[kind], 3) for kind in ("plain", "later", "fill"))]
             for point in result["points"]],
        )  # fmt: skip
        chain = result["chain"]
        click.echo(f"\nraised whole, {chain['epochs']} epochs with {chain['views']} views: time in trainings on labels")
        return print_table(
            ["", "first", "second", "third"],
            [[kind, *(fixed(each / chain["plain"]) for each in chain[kind])] for kind in ("students", "generations")],
        )
    ratios, ranges = result["ratio_to_usual_loop"], result["ratio_range"]
    print_table(
        ["loop", "images/s", "times the usual loop", "lowest", "highest", "first step, s", "peak MiB"],
        [[name, fixed(speed, 1), fixed(ratios.get(name)), *map(fixed, ranges.get(name, (None, None))),
          fixed(result["seconds_to_first_step"].get(name), 1), result["peak_memory_mib"].get(name)]
         for name, speed in result["images_per_second"].items()],
    )  # fmt: skip


# What is known of a run


def open_store(folder):
    from banlib.store import Store

    if folder is not None and not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder!r}; --store names a folder of runs, such as results")
    return Store(folder)


def find(store, prefix):
    if not prefix:
        raise ValueError("a run id must not be empty (banlib runs list shows all)")
    return store.find(prefix)


def find_all(store, prefixes):
    """The ids that start so, each once."""
    return list(dict.fromkeys(find(store, prefix) for prefix in prefixes))


def status_of(store, run_id):
    """`Store.status`, and "damaged" for a link out of the store, which it refuses."""
    try:
        return store.status(run_id)
    except ValueError:
        return "damaged"


def problems_of(store, run_id, status):
    """Sentences on what is wrong with a run; a live one's resume points carry their size and digest in their names."""
    from banlib.store import RESUME, sha256

    try:
        folder, found = store.folder(run_id, "live"), []
    except ValueError as error:
        return [f"run {run_id}: {error}"]
    if status in ("finished", "damaged"):
        return store.problems(run_id)
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # whoever trains it replaces the oldest at each epoch
            if path.name == "diverged.json":
                found.append(json.loads(path.read_bytes())["sentence"])
            elif match := RESUME.fullmatch(path.name):
                epoch, size, digest = match.groups()
                what = f"run {run_id}: the resume point of epoch {int(epoch)}"
                if path.is_symlink():
                    found.append(f"{what} is a link")
                elif path.stat().st_size != int(size):
                    found.append(f"{what} has {path.stat().st_size} bytes, expected {size}")
                elif (actual := sha256(path)) != digest:
                    found.append(f"{what} has SHA-256 {actual[:16]}..., expected {digest[:16]}...")
    return found


def record(store, run_id):
    """What a run's files say of it, unchecked: spec, environments, metrics, and a finished one's results.

    A live run says it in its newest resume point, so before its first epoch is done there is nothing: {}.
    """
    from banlib.recipe import RunSpec
    from banlib.store import RESUME, RunDamaged, read_metrics

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RunDamaged):
        folder = store.folder(run_id)
        if folder.exists():
            told = json.loads((folder / "run.json").read_bytes())
            spec = RunSpec(**told.pop("spec"))
            return {"spec": spec, **told, "metrics": read_metrics(folder / "metrics.jsonl")}
        points = sorted(store.folder(run_id, "live").iterdir(), reverse=True)
        for point in filter(lambda path: RESUME.fullmatch(path.name), points):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                state = resume_state(point)
                spec = RunSpec.model_validate_json(state["spec"])
                return {"spec": spec, "environments": state["environments"], "metrics": state["rows"]}
    return {}


def resume_state(path):
    """What a resume point says beside its tensors, which are not read."""
    from banlib.store import header

    with open(path, "rb") as file:
        start = file.read(8)
        length = min(int.from_bytes(start, "little"), 2**26)  # a damaged file can name any length
        return json.loads(header(start + file.read(length))["__metadata__"]["state"])


def overview(store, run_id):
    """A run's line in `banlib runs list`."""
    told = record(store, run_id)
    spec, rows = told.get("spec"), told.get("metrics", [])
    tested = [row["test_error"] for row in rows if "test_error" in row]
    return {
        "id": run_id,
        "dataset": spec and spec.dataset,
        "network": spec and spec.network,
        "name": spec and spec.name,
        "generation": spec and spec.generation,
        "seed": spec and spec.seed,
        "teacher": spec and spec.teacher,
        "status": status_of(store, run_id),
        "epochs": len(rows) if spec else None,
        "epochs_planned": spec and spec.recipe.epochs,
        "test_error": tested[-1] if tested else None,
    }


def by_lineage(row):
    known = row["network"] is not None
    return (not known, *(row[name] or 0 for name in ("dataset", "network", "seed", "generation") if known), row["id"])


# Output


def print_json(value):
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_table(head, rows):
    """Columns wide enough for their longest cell, numbers to the right. head: names, or None. None prints as -."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in ([head] if head else []) + rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    body = cells[1:] if head else cells
    numeric = [bool(head) and all(numeral(cell) for cell in column) for column in zip(*body)]
    for row in cells:
        line = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric))
        click.echo("  ".join(line).rstrip())


def numeral(cell):
    return cell == "-" or cell.replace(",", "").replace(".", "").removeprefix("-").isdecimal()


def number(value):
    """value, or None (JSON's null) if it is NaN."""
    return None if value is None or value != value else value


def fixed(value, digits=2):
    """value with so many decimals, or None where there is none."""
    return None if number(value) is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
