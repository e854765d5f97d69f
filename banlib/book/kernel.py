"""Run a chapter or the renderer where nothing of the reader's own set-up is seen."""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from banlib.runs.disk import home, write_atomically

UNSET = ("MATPLOTLIBRC", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT")
LIBRARY = Path(__file__).parents[2]  # where this banlib is imported from
BRACES = str.maketrans({"{": "{{", "}": "}}"})  # papermill fills {names} in paths
# Without a check of addresses that jsonschema would import, whose grammars take seconds to compile.
RENDER = "import sys; sys.modules['rfc3987_syntax'] = None\n"
RENDER += "from jupyter_book.cli.main import main; main()"
PATIENCE = 10  # seconds that a stopped chapter has to save its training


def environment(config, library=LIBRARY):
    """Variables for a kernel or the renderer, which run elsewhere: this banlib, its store.

    config: a folder in place of the reader's IPython profile, startup files and matplotlibrc;
    library: where to import banlib from.
    """
    (config / "ipython").mkdir(parents=True, exist_ok=True)
    variables = dict.fromkeys(UNSET, "") | {"BANLIB_HOME": str(home())}
    variables["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    variables |= {"IPYTHONDIR": str(config / "ipython"), "MPLCONFIGDIR": str(config / "matplotlib")}
    if data := os.environ.get("BANLIB_DATA"):
        variables["BANLIB_DATA"] = os.path.abspath(data)
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [library, *map(os.path.abspath, paths)]
    return variables | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


class Kernel(AsyncKernelManager):
    """A kernel of this very Python. process: a Popen; ended: its exit code, or minus a signal."""

    running, stopped = set(), False  # of all: the processes
    variables, folder, process, ended = {}, ".", None, None

    @property
    def kernel_spec(self):
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        launch += ["--log-level=CRITICAL", "--InlineBackend.figure_formats=png"]
        env = {name: value.replace("$", "$$") for name, value in self.variables.items()}
        return KernelSpec(argv=launch, display_name="Python 3", language="python", env=env)

    async def start_kernel(self, **options):
        await super().start_kernel(**options | {"cwd": self.folder})
        type(self).process = self.provisioner.process
        Kernel.running.add(self.process)

    async def is_alive(self):
        type(self).ended = self.process and self.process.poll()
        return await super().is_alive()


def execute(notebook, output, parameters, config):
    """Run a notebook, with outputs into another; returns None, or how it failed.

    Not in the main thread: a signal that falls into its event loop ends in tracebacks.
    """
    # papermill's own `cwd` changes this process's folder, and with it that of other threads.
    own = {"variables": environment(config), "folder": str(notebook.parent)}
    kernel = type("Kernel", (Kernel,), own)
    options = {"kernel_name": "python3", "language": "python", "kernel_manager_class": kernel}
    # The chapter's own progress says more than a count of cells; in a log it is noise.
    options |= {"progress_bar": False, "stderr_file": sys.stderr if sys.stderr.isatty() else None}
    paths = [str(path).translate(BRACES) for path in (notebook, output)]
    try:
        papermill.execute_notebook(*paths, parameters, **options)
    except papermill.PapermillExecutionError as error:
        if Kernel.stopped:
            raise  # nobody waits for the reason
        what = (error.evalue.strip().splitlines() or [""])[0].rstrip(".")
        return f"cell {error.exec_count} ended with {error.ename}: {what}"
    except (DeadKernelError, RuntimeError, OSError) as error:
        died = kernel.ended and how_it_died(kernel.ended)
        return died or f"{type(error).__name__}: {error}"
    finally:
        Kernel.running.discard(kernel.process)


def stop(futures):
    """Let the chapters that run save their training, then end them; futures: those of `execute`."""
    Kernel.stopped, begun = True, [each for each in futures if not each.cancelled()]
    for end in (signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)):
        for process in list(Kernel.running):
            process.send_signal(end)
        wait(begun, PATIENCE)
    Kernel.stopped = False


def how_it_died(code):
    again = "run this again to go on"
    if code == -9:  # signal.SIGKILL, which not every system has
        why = "as Linux does when memory runs out; close other programs or ask for less"
        return f"its kernel was killed (SIGKILL), {why}, and {again}"
    if code < 0:
        return f"its kernel was ended by {signal.Signals(-code).name}; {again}"
    return f"its kernel ended by itself with exit code {code}; {again}"


def render(root, source, library=LIBRARY):
    """Render all pages beside the book (one not read again would not repeat its warnings).

    Returns (the folder of the pages, what is wrong with them, a line each).
    """
    new = root / "_build/new"
    shutil.rmtree(new, ignore_errors=True)
    command = [sys.executable, "-c", RENDER, "build"]
    command += [source, "--path-output", new, "--all", "-W", "-n", "--keep-going", "-q"]
    own = environment(root / "_build/config", library) | {"NO_COLOR": "1", "PYTHONUTF8": "1"}
    result = subprocess.run(command, cwd=source, env=os.environ | own, capture_output=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", (result.stdout + result.stderr).decode(errors="replace"))
    write_atomically(root / "_build/render.log", text.encode())
    text = text.replace(f"{source}{os.sep}", "")  # as it is in the checkout
    lines = re.findall(r"^.*\b(?:WARNING|ERROR|CRITICAL)\b.*$", text, flags=re.M)
    lines = lines or re.findall(r"^\S*(?:Error|Exception): .+", text, flags=re.M)
    return new / "_build/html", (lines or [text[-500:]]) if result.returncode else []
