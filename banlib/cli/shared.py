"""What several commands share: their group, options and checks, JSON and tables."""

import contextlib
import json
import sys

import click

SPEED_UPS = ("compile", "cuda-graph", "pad-channels")  # of runs.accelerate


class Commands(click.Group):
    """Commands in the order a newcomer meets them; without one, help."""

    group_class = type

    def list_commands(self, ctx):
        return list(self.commands)

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, args or ["--help"])


def option(*names, help, default="auto", **more):
    """An option whose default is shown."""
    return click.option(*names, default=default, show_default=True, help=help, **more)


def flag(*names, help):
    return click.option(*names, is_flag=True, help=help)


def speed_ups(context, parameter, text):
    names, choice = [name for name in text.split(",") if name], click.Choice(SPEED_UPS)
    return tuple(choice.convert(name, parameter, context) for name in names)


as_json = flag("--json", "as_json", help="Print JSON alone on standard output.")
profile = option("--profile", default="digits", help="digits, cifar100-lite or cifar100.")
seeds = option("--seeds", help="A count (3: seeds 0, 1, 2) or a list (4,7).")
device = option("--device", help="auto (CUDA, then CPU), cpu, cuda, cuda:1.")
jobs = option("--jobs", help="Networks to train side by side.")
minutes = click.option("--minutes", metavar="N", help="Stop after so many minutes, to go on later.")
MEMORY = click.Choice(["auto", "online", "remembered"])
ENGINE = click.Choice(["auto", "here", "processes"])
HOW = (
    option("--teacher-memory", type=MEMORY, help="Ask it for each batch, or once for each view."),
    option("--engine", type=ENGINE, help="Train in this process, or side by side in others."),
    minutes,
    flag("--deterministic", help="The same bits each time on this machine; slower on CUDA."),
    option("--accelerate", default="", callback=speed_ups, help=f"Any of {','.join(SPEED_UPS)}."),
)


def training(command):
    """Options for how runs are trained, not what: keywords of `runs.engines` and `runs.fit`."""
    for each in (*reversed(HOW), jobs, device):
        command = each(command)
    return command


def check_how(jobs, minutes, **how):
    """Those options as keywords."""
    from banlib.runs.parameters import check_jobs, check_minutes

    return how | {"jobs": check_jobs(jobs), "until": check_minutes(minutes)}


def to_stderr():
    """Inside, whatever prints does not disturb standard output."""
    return contextlib.redirect_stdout(sys.stderr)


def device_name(device):
    """What a device asked for is here, told on standard error; BadInput if nothing."""
    from banlib.runs.machine import choose_device

    with to_stderr():
        name = str(choose_device(device))
    click.echo(f"device: {name}", err=True)
    return name


def rows_of(frame):
    """A data frame as JSON has it: a list of dicts, NaN is null."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def emit(report, as_json):
    """A dict, a list of dicts or a data frame: as JSON alone, or as a person wants it."""
    if as_json:
        click.echo(json.dumps(report, indent=1, allow_nan=False, default=rows_of))
    elif isinstance(report, list):
        print_table(report)
    else:
        print_report(report)


def print_report(report, before=""):
    """A line for each value of a nested dict, a table for each list of dicts."""
    for name, value in report.items():
        if isinstance(value, dict):
            print_report(value, f"{before}{name}.")
        elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
            click.echo(f"\n{name}")
            print_table(value)
        else:
            click.echo(f"{before + name:24}  {words(value)}")


def words(value):
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value in (None, "") else f"{value:.6g}" if isinstance(value, float) else value


def print_table(rows):
    """Dicts, or a data frame, as columns: text to the left, numbers to the right."""
    import pandas as pd

    frame = pd.DataFrame(rows, dtype=object)
    frame = frame.where(frame.notna(), "-").map(lambda x: words(x) if isinstance(x, list) else x)
    for name, column in frame.items():
        if any(isinstance(cell, str) and cell != "-" for cell in column):
            width = max(map(len, [name, *map(str, column)]))
            frame[name] = [str(cell).ljust(width) for cell in column]
            frame = frame.rename(columns={name: name.ljust(width)})
    for line in frame.to_string(index=False, float_format="{:,.2f}".format).splitlines():
        click.echo(line.strip())
