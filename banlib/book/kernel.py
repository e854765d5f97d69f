"""Run one chapter through papermill, in a kernel that sees nothing of the reader's own set-up."""

import os
import signal
import sys
import threading
from pathlib import Path

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from banlib.runs.disk import home

UNSET = ("MATPLOTLIBRC", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT")
LIBRARY = Path(__file__).parents[2]  # where this banlib is imported from
BRACES = str.maketrans({"{": "{{", "}": "}}"})  # papermill fills {names} in paths
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

    variables, process, ended = {}, None, None

    @property
    def kernel_spec(self):
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        launch += ["--log-level=CRITICAL", "--InlineBackend.figure_formats=png"]
        env = {name: value.replace("$", "$$") for name, value in self.variables.items()}
        return KernelSpec(argv=launch, display_name="Python 3", language="python", env=env)

    async def start_kernel(self, **options):
        await super().start_kernel(**options)
        type(self).process = self.provisioner.process

    async def is_alive(self):
        type(self).ended = self.process and self.process.poll()
        return await super().is_alive()


def execute(notebook, output, parameters, config):
    """Run a notebook, with outputs into another; returns None, or how it failed.

    In a thread: a signal that falls into the main thread's event loop ends in tracebacks. Stopped
    by an exception (KeyboardInterrupt), it first lets the chapter save its training.
    """
    kernel = type("Kernel", (Kernel,), {"variables": environment(config)})
    reasons, done = [], threading.Event()
    options = {"kernel_name": "python3", "language": "python", "kernel_manager_class": kernel}
    # The chapter's own progress says more than a count of cells; in a log it is noise.
    options |= {"progress_bar": False, "stderr_file": sys.stderr if sys.stderr.isatty() else None}

    def run():
        paths = [str(path).translate(BRACES) for path in (notebook, output)]
        try:
            papermill.execute_notebook(*paths, parameters, cwd=notebook.parent, **options)
        except papermill.PapermillExecutionError as error:
            what = (error.evalue.strip().splitlines() or [""])[0].rstrip(".")
            reasons.append(f"cell {error.exec_count} ended with {error.ename}: {what}")
        except (DeadKernelError, RuntimeError, OSError) as error:
            died = kernel.ended and how_it_died(kernel.ended)
            reasons.append(died or f"{type(error).__name__}: {error}")
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        done.wait()
    except BaseException:
        for end in (signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)):
            if kernel.process and not done.is_set():
                kernel.process.send_signal(end)
                done.wait(PATIENCE)
        raise
    return reasons[0] if reasons else None


def how_it_died(code):
    again = "run this again to go on"
    if code == -9:  # signal.SIGKILL, which not every system has
        why = "as Linux does when memory runs out; close other programs or ask for less"
        return f"its kernel was killed (SIGKILL), {why}, and {again}"
    if code < 0:
        return f"its kernel was ended by {signal.Signals(-code).name}; {again}"
    return f"its kernel ended by itself with exit code {code}; {again}"
