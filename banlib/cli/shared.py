"""What several commands share: their options and checks, JSON and tables."""

import contextlib
import json
import sys
from functools import reduce

import click

SPEED_UPS = ("compile", "cuda-graph", "pad-channels")  # of runs.accelerate


class Commands(click.Group):
    """Commands in the order a newcomer meets them; without one, help."""

    def list_commands(self, ctx):
        return list(self.commands)

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, args or ["--help"])


def command(short_help, name=None):
    """A command with --json."""
    json_option = flag("--json", "as_json", help="Print JSON alone on standard output.")
    return lambda function: click.command(name, short_help=short_help)(json_option(function))


def option(*names, help, default="auto", **more):
    """An option whose default is shown."""
    return click.option(*names, default=default, show_default=True, help=help, **more)


def flag(*names, help):
    return click.option(*names, is_flag=True, help=help)


def options(*several):
    return lambda function: reduce(lambda inner, each: each(inner), reversed(several), function)


def speed_ups(context, parameter, text):
    names, choice = [name for name in text.split(",") if name], click.Choice(SPEED_UPS)
    return tuple(choice.convert(name, parameter, context) for name in names)


def open_store(context, parameter, folder):
    from banlib.runs.store import Store

    return Store(folder)


def store(help, exists=False):
    kind = click.Path(exists=exists, file_okay=False)
    return click.option("--store", type=kind, callback=open_store, help=help)


profile = option("--profile", default="digits", help="digits, cifar100-lite or cifar100.")
seeds = option("--seeds", help="A count (3: seeds 0, 1, 2) or a list (4,7).")
device = option("--device", help="auto (CUDA, then CPU), cpu, cuda, cuda:1.")
jobs = option("--jobs", help="Networks to train side by side.")
minutes = click.option("--minutes", metavar="N", help="Stop after so many minutes, to go on later.")
plan = flag("--plan", help="Train nothing; write a line for `banlib run` for each missing run.")
MEMORY = click.Choice(["auto", "online", "remembered"])
ENGINE = click.Choice(["auto", "here", "processes", "ray"])
# how runs are trained, not what: keywords of `runs.fit`, and with `training` of `runs.engines`
one_run = options(
    device,
    store("Where runs are kept, instead of BANLIB_HOME."),
    option("--teacher-memory", type=MEMORY, help="Ask it for each batch, or once for each view."),
    minutes,
    flag("--deterministic", help="The same bits each time on this machine; slower on CUDA."),
    option("--accelerate", default="", callback=speed_ups, help=f"Any of {','.join(SPEED_UPS)}."),
)
training = options(
    jobs,
    option("--engine", type=ENGINE, help="In this process, side by side in others, on a cluster."),
    click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster, else one is started."),
    one_run,
)


def check_how(minutes, jobs=None, **how):
    """Those options as keywords. jobs: None where there is no such option."""
    from banlib.runs.parameters import check_jobs, check_minutes

    how |= {"jobs": check_jobs(jobs)} if jobs is not None else {}
    return how | {"until": check_minutes(minutes)}


def to_stderr():
    """Inside, whatever prints does not disturb standard output."""
    return contextlib.redirect_stdout(sys.stderr)


def print_plan(specs, store):
    """What the store lacks of the runs, a line of JSON each, a teacher before its students."""
    for spec in specs:
        if store.status(spec.run_id) != "finished":
            about = {"spec": spec.model_dump(mode="json"), "teacher": spec.teacher}
            click.echo(json.dumps({"id": spec.run_id} | about))


def emit(report, as_json=False):
    """A dict, a list of dicts or a data frame: as JSON alone, or as a person wants it.

    In JSON a data frame is a list of dicts, in which NaN is null; else a dict has a line for each
    of its values, nested or not, and tables have text to the left, numbers to the right.
    """
    if as_json:
        return click.echo(json.dumps(report, indent=1, allow_nan=False, default=rows_of))

    import pandas as pd

    if not isinstance(report, dict):
        frame = pd.DataFrame(report, dtype=object)
        text = frame.map(lambda value: isinstance(value, str)).any()
        look = {"index": False, "tablefmt": "plain", "disable_numparse": True}
        look["colalign"] = ["left" if each else "right" for each in text]
        return click.echo(frame.map(words).to_markdown(**look))
    for name, value in pd.json_normalize(report).iloc[0].items():
        if isinstance(value, list) and any(isinstance(part, dict) for part in value):
            click.echo(f"\n{name}")
            emit(value)
        else:
            click.echo(f"{name:24}  {words(value, '.6g')}")


def rows_of(frame):
    return json.loads(frame.to_json(orient="records", double_precision=15))


def words(value, form=",.2f"):
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value in (None, "") or value != value:
        return "-"
    return format(value, form) if isinstance(value, float) else str(value)
