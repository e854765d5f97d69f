"""All commands in one group, and what becomes of their failures."""

import os
import signal
import sys
import warnings

import click

from banlib.cli import BAD_INPUT, FAILED, STOPS, Stopped, commands, train
from banlib.cli.runs import runs
from banlib.cli.shared import Commands

EPILOG = """\b
Exit codes:
  0    done
  1    it failed, or `banlib runs verify` found damage
  2    bad input; nothing was created
  75   stopped by SIGTERM, or by --minutes: start it again to go on
  130  interrupted from the keyboard: run it again to go on

\b
Environment:
  BANLIB_HOME   where runs and data are kept (default: the platform's cache folder)
  BANLIB_DATA   where datasets are looked for (default: data in BANLIB_HOME)
  BANLIB_DEBUG  1 shows the traceback of an error
"""


@click.group(
    cls=Commands,
    commands=[commands.networks, commands.data, *train.COMMANDS, runs, commands.book, commands.lab],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(package_name="banlib", message="%(prog)s %(version)s")
def group():
    """Born Again Networks, re-run: train a teacher and its students, and render the book about it.

    `banlib lineage` raises lineages on handwritten digits, in minutes on a CPU.
    """


def run(args=None):
    """A command's exit code; a failure is one sentence on standard error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths the terminal cannot show
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
            return group.main(args, "banlib", standalone_mode=False) or 0
    except click.UsageError as error:
        asked, text = getattr(error.ctx, "command_path", "banlib"), error.format_message()
        return complain(f"{' '.join(text.split()).rstrip('.')}; see {asked} --help", BAD_INPUT)
    except click.ClickException as error:
        return complain(error.format_message(), FAILED)
    except click.Abort as error:  # what click makes of a KeyboardInterrupt
        stopped = isinstance(error.__context__, Stopped)
        code, text = STOPS[error.__context__.args[0] if stopped else signal.SIGINT]
        return complain(text, code)
    except (ValueError, RuntimeError, LookupError, OSError, MemoryError) as error:
        if os.environ.get("BANLIB_DEBUG") == "1":
            raise
        from banlib.runs.parameters import plain

        code = BAD_INPUT if isinstance(error, ValueError) else getattr(error, "exit_code", FAILED)
        text, bare = " ".join(plain(error).split()), (KeyError, IndexError, MemoryError)
        named = not text or isinstance(error, bare)  # where the text alone says nothing
        return complain(f"{type(error).__name__}: {text}" if named else text, code)


def complain(text, code=None):
    click.echo(f"banlib: {text}", err=True)
    return code
