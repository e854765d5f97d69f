"""Run every chapter of the book and render it: `build` does both, and skips what its inputs did not change.

    book/, _config.yml, _toc.yml       only read
    _build/executed/NN_name.ipynb      a chapter with its outputs, as papermill left it
    _build/executed/NN_name.json       what it was made from, and the seconds it took; written last
    _build/source/                     what jupyter-book renders: the pages, and the chapters made fit for a page without a kernel
    _build/html/index.html             the book

A chapter that trains nothing new, because its runs are in the store, takes seconds; how long training took is in the
runs themselves (`Run.results["seconds"]`), which is where a chapter's time box finds it. `durations` has the seconds of
the last execution of each chapter.
"""

import ast
import base64
import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import papermill
import yaml
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from banlib.machine import choose_device
from banlib.recipe import check_parameters, named
from banlib.tables import check_rows

PACKAGE = Path(__file__).parent
HEADLINE_CHAPTER, HEADLINE = "02_ban_densenet", "headline"  # the figure of preface and README, glued under this name
WIDGET = "application/vnd.jupyter.widget-view+json"


class BookError(RuntimeError):
    """A chapter or the rendering failed; the message has a sentence for each."""


class Built(NamedTuple):
    """page: the book's first page, or None if nothing was rendered.
    seconds: {chapter: wall time of its last execution}. ran: the chapters executed now, the others were up to date."""

    page: Path | None
    seconds: dict
    ran: tuple


def build(profile="digits", device="auto", parameters=None, root=None, force=False, render=True):
    """Execute the chapters whose inputs changed, then render the book to _build/html.

    profile, device, parameters (a dict) go to every chapter that has a parameter of that name in its `parameters` cell;
    a value that is the chapter's own is not passed, so that its page shows no second parameters cell.
    root: the checkout; by default the one banlib lies in, else the one around the working directory.
    force: execute and render everything. render: False only executes.
    Returns `Built`. What it does is told on standard error.
    Raises ValueError for a parameter no chapter has or a value none can take, before anything runs; FileNotFoundError if
    there is no book; BookError at the end, if a chapter failed (the others still run, nothing is rendered) or a page has
    warnings.
    """
    root = find_root(root)
    chapters = find_chapters(root)
    wanted = check(profile, device, parameters or {}, chapters)
    with only_one(root / "_build"):
        inputs = library_inputs(root)
        ran, failures = [], []
        for chapter in chapters:
            injected = {
                name: value
                for name, value in wanted.items()
                if name in chapter.parameters and value != chapter.parameters[name]
            }
            changed = what_changed(root, chapter, inputs | chapter_inputs(chapter, injected))
            if not (changed or force):
                tell(f"{chapter.name}: up to date")
                continue
            tell(f"{chapter.name}: running ({', '.join(changed) or 'forced'})")
            failure = execute(root, chapter, injected, inputs | chapter_inputs(chapter, injected))
            if failure:
                tell(failure)
                failures.append(failure)
            else:
                ran.append(chapter.name)
                tell(f"{chapter.name}: done in {durations(root)[chapter.name]:.0f} s")
        if failures:
            kept = " _build/html is still the book before." if (root / "_build/html").exists() else ""
            raise BookError("\n".join([f"Nothing was rendered, because a chapter failed.{kept}", *failures]))
        page = render_book(root, chapters, force) if render else None
    return Built(page, durations(root), tuple(ran))


# What there is to run


class Chapter(NamedTuple):
    """A notebook of the table of contents. parameters: {name: default} of its `parameters` cell."""

    name: str
    path: Path
    parameters: dict


def find_root(root=None):
    """The checkout that holds the book; FileNotFoundError if there is none."""
    if root is not None:
        candidates = [Path(root).absolute()]
    else:
        candidates = [PACKAGE.parent, Path.cwd(), *Path.cwd().parents]
    for folder in candidates:
        if all((folder / name).exists() for name in ("_toc.yml", "_config.yml", "book")):
            return folder
    raise FileNotFoundError(
        f"no book in {candidates[0]}{' or around ' + str(Path.cwd()) if root is None else ''}: "
        "expected _toc.yml, _config.yml and book/; run this in a checkout of the book"
    )


def find_chapters(root):
    """The notebooks of _toc.yml, in its order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc.get("parts", [toc]) for entry in part["chapters"]]
    paths = [root / f"{file}.ipynb" for file in files]
    return [Chapter(path.stem, path, parameters_of(path)) for path in paths if path.exists()]


def parameters_of(path):
    """{name: default} of the cell tagged `parameters`, without running it."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            lines = ast.parse("".join(cell["source"])).body
            return {line.targets[0].id: ast.literal_eval(line.value) for line in lines if isinstance(line, ast.Assign)}
    return {}


def check(profile, device, parameters, chapters):
    """All parameters as one dict; ValueError for a name that no chapter has, or a value that none can take."""
    known = {name for chapter in chapters for name in chapter.parameters}
    choose_device(device)
    if profile != "digits" or "profile" in known:
        parameters = {"profile": profile} | parameters
    if device != "auto" or "device" in known:
        parameters = {"device": device} | parameters
    for name in parameters:
        named("parameter", name, sorted(known))
    check_parameters(
        **{name: parameters[name] for name in ("profile", "network", "gens", "seeds") if name in parameters}
    )
    check_rows(parameters.get("rows", "auto"))
    return parameters


# Has anything changed?


def digest(paths, base):
    """SHA-256 over names (relative to base) and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(base).as_posix()} {content}\n".encode())
    return total.hexdigest()


def library_inputs(root):
    """What every chapter's outputs hang on, besides the chapter."""
    sources = [path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]  # no chapter imports that one
    results = [path for path in (root / "results").rglob("*") if path.is_file()]
    required = importlib.metadata.requires("banlib") or []
    names = sorted({re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line})
    return {
        "banlib": digest(sources, PACKAGE),
        "results": digest(results, root),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
    }


def chapter_inputs(chapter, injected):
    return {"notebook": digest([chapter.path], chapter.path.parent), "parameters": injected}


def what_changed(root, chapter, inputs):
    """The names of the inputs that are not those of the executed copy; empty if it is up to date."""
    stamp = read_stamp(root, chapter.name)
    if stamp is None:
        return ["not run yet"]
    # Compared as JSON has it: a tuple among the parameters is a list there.
    inputs = json.loads(json.dumps(inputs))
    return [f"{name} changed" for name in inputs if stamp["inputs"].get(name) != inputs[name]]


def read_stamp(root, name):
    """The record beside an executed chapter, or None if it is missing or belongs to another copy."""
    executed = root / "_build/executed" / f"{name}.ipynb"
    try:
        stamp = json.loads(executed.with_suffix(".json").read_text(encoding="utf-8"))
        return stamp if stamp["executed"] == digest([executed], executed.parent) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def durations(root=None):
    """{chapter: seconds its last finished execution took}, of the chapters that have one."""
    root = find_root(root)
    stamps = {chapter.name: read_stamp(root, chapter.name) for chapter in find_chapters(root)}
    return {name: stamp["seconds"] for name, stamp in stamps.items() if stamp}


def reading_minutes(name, root=None):
    """How long a chapter takes to read, rounded up to 5 minutes: 200 words of prose or 20 lines of code a minute.

    None where the chapter is not found, as in a notebook that was copied out of its checkout.
    """
    try:
        [chapter] = [chapter for chapter in find_chapters(find_root(root)) if chapter.name == name]
    except (FileNotFoundError, ValueError):
        return None
    words = lines = 0
    for cell in json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(text.split())
        else:
            lines += len(text.splitlines())
    return 5 * math.ceil((words / 200 + lines / 20) / 5)


# Executing a chapter


class Kernel(AsyncKernelManager):
    """A kernel of the very Python that runs this, whichever kernels are registered under `python3` on this machine."""

    ended = None  # how the last kernel process ended: its exit code, or minus the signal that killed it

    @property
    def kernel_spec(self):
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"],
            display_name="Python 3 (ipykernel)",
            language="python",
            env=python_path(),
        )

    async def is_alive(self):
        code = await self.provisioner.poll() if self.has_kernel else None
        if code is not None:
            Kernel.ended = code
        return await super().is_alive()


def python_path():
    """The environment in which a chapter, or the page of the library, imports the banlib that runs it, installed or not."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))}


def execute(root, chapter, injected, inputs):
    """Run one chapter through papermill; returns None, or a sentence that says how it failed."""
    folder = root / "_build/executed"
    folder.mkdir(parents=True, exist_ok=True)
    running, failed = folder / f"{chapter.name}.running.ipynb", folder / f"{chapter.name}.failed.ipynb"
    Kernel.ended = None
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            literally(chapter.path),
            literally(running),
            injected,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            # A chapter's own progress (loss, error, time left) says more than a count of cells; in a log it is noise.
            stderr_file=sys.stderr if sys.stderr.isatty() else None,
            cwd=chapter.path.parent,
            kernel_manager_class=Kernel,
        )
    except papermill.PapermillExecutionError as error:
        reason = f"cell {error.exec_count} ended with {error.ename}: {first_line(error.evalue)}"
    except (DeadKernelError, RuntimeError) as error:
        reason = how_it_died(Kernel.ended) if Kernel.ended is not None else f"{type(error).__name__}: {error}"
    else:
        finished = folder / f"{chapter.name}.ipynb"
        running.replace(finished)
        failed.unlink(missing_ok=True)
        stamp = {
            "inputs": inputs,
            "executed": digest([finished], folder),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write(finished.with_suffix(".json"), json.dumps(stamp, indent=1, sort_keys=True))
        return None
    if running.exists():
        running.replace(failed)
        reason += f" (executed so far: {failed.relative_to(root).as_posix()})"
    return f"{chapter.name}: {reason}."


def literally(path):
    """papermill fills {braces} in paths with parameters; these are names of folders."""
    return str(path).replace("{", "{{").replace("}", "}}")


def first_line(text):
    return (text.strip().splitlines() or [""])[0].rstrip(".")


def how_it_died(code):
    if code == -9:  # signal.SIGKILL, which not every system has
        return (
            "its kernel was killed (SIGKILL), as Linux does when memory runs out; close other programs or ask for a "
            "smaller network, and run this again: training goes on after the last finished epoch"
        )
    if code < 0:
        return f"its kernel was ended by {signal.Signals(-code).name}; run this again to go on"
    return f"its kernel ended by itself with exit code {code}; run this again to go on"


# Rendering


def render_book(root, chapters, force=False):
    """Stage the sources and run jupyter-book on them, unless the pages are up to date; returns the first page."""
    build_folder, page = root / "_build", root / "_build/html/index.html"
    stage(root, chapters)
    source = build_folder / "source"
    sources = [path for path in source.rglob("*") if path.is_file()]
    tools = {name: importlib.metadata.version(name) for name in ("jupyter-book", "sphinx", "sphinx-book-theme")}
    library = digest(PACKAGE.rglob("*.py"), PACKAGE)  # its docstrings are a page
    stamp = json.dumps({"source": digest(sources, source), "library": library, "tools": tools}, sort_keys=True)
    done = build_folder / "html.json"
    if not force and page.exists() and done.exists() and done.read_text(encoding="utf-8") == stamp:
        tell("pages: up to date")
    else:
        tell("pages: rendering")
        done.unlink(missing_ok=True)
        started = time.perf_counter()
        run_jupyter_book(root, source)
        write(done, stamp)
        tell(f"pages: done in {time.perf_counter() - started:.0f} s")
    html = relative(page.parent)
    tell(f"Open {page.as_uri()}")
    tell(f"or serve it: {shlex.join(['python', '-m', 'http.server', '--directory', html])}")
    return page


def stage(root, chapters):
    """Fill _build/source with everything that jupyter-book is to see."""
    source = root / "_build/source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "book", source / "book", ignore=shutil.ignore_patterns("*.ipynb", ".*", "__pycache__"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(root / name, source)
    for chapter in chapters:
        executed = json.loads((root / "_build/executed" / f"{chapter.name}.ipynb").read_text(encoding="utf-8"))
        target = source / chapter.path.relative_to(root)
        target.write_text(json.dumps(without_kernel(executed), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if chapter.name == HEADLINE_CHAPTER:
            (source / "book/assets").mkdir(exist_ok=True)
            (source / "book/assets/headline.png").write_bytes(headline_figure(executed))


def without_kernel(notebook):
    """A copy of an executed notebook for a page that has no kernel: widgets, which would be dead there, are left out.

    So are papermill's notes, except the duration: they hold paths of the machine that ran it.
    """
    notebook = json.loads(json.dumps(notebook))
    notebook["metadata"].pop("widgets", None)
    notes = notebook["metadata"].pop("papermill", {})
    notebook["metadata"]["papermill"] = {"duration": notes.get("duration")}
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        kept = []
        for output in cell.get("outputs", []):
            widget = output.get("data", {}).pop(WIDGET, None)
            if widget is None or set(output["data"]) - {"text/plain"}:
                kept.append(output)
        if "outputs" in cell:
            cell["outputs"] = kept
    return notebook


def run_jupyter_book(root, source):
    """Render everything anew: a page that is not read again would not repeat its warnings."""
    shutil.rmtree(root / "_build/html", ignore_errors=True)
    command = "from jupyter_book.cli.main import main; main()"
    arguments = ["build", source, "--path-output", root, "--all", "-W", "-n", "--keep-going", "-q"]
    result = subprocess.run(
        [sys.executable, "-c", command, *map(str, arguments)],
        cwd=source, capture_output=True, text=True, encoding="utf-8", errors="replace",
        env=os.environ | python_path() | {"PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"},
    )  # fmt: skip
    log = root / "_build/render.log"
    write(log, result.stdout + result.stderr)
    if result.returncode:
        raise BookError(
            "\n  ".join([f"the pages have warnings ({relative(log)}):", *complaints(result.stderr, source)])
        )


def complaints(log, source):
    """The warnings in jupyter-book's log, with paths as they are in the checkout; or the error that ended it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log).replace(f"{source}{os.sep}", "")
    found = [line.strip() for line in text.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    return found or re.findall(r"^\S*(?:Error|Exception): .+", text, flags=re.MULTILINE) or ["jupyter-book failed"]


# The headline figure


def headline(root=None):
    """Copy the headline figure of the executed chapter to book/assets/headline.png, which the README shows.

    Not part of `build`: the file is committed, and is to change when somebody means it to. Returns its path.
    """
    root = find_root(root)
    stamp = read_stamp(root, HEADLINE_CHAPTER)
    if stamp is None or stamp["inputs"]["parameters"]:
        raise BookError(
            f"the headline figure is that of {HEADLINE_CHAPTER} with its own parameters, which has not been executed; "
            "run `banlib book` first"
        )
    executed = root / "_build/executed" / f"{HEADLINE_CHAPTER}.ipynb"
    path = root / "book/assets/headline.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(headline_figure(json.loads(executed.read_text(encoding="utf-8"))))
    return path


def headline_figure(notebook):
    """The PNG that a chapter glued as `headline`."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == HEADLINE:
                for kind, content in output["data"].items():
                    if kind.endswith("image/png"):
                        return base64.b64decode(content)
    raise BookError(f"{HEADLINE_CHAPTER} has no figure glued as '{HEADLINE}'; the preface and the README show it")


# Small things


def tell(sentence):
    print(sentence, file=sys.stderr, flush=True)


def relative(path):
    """A path as seen from here, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def write(path, text):
    """Write a text file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


@contextlib.contextmanager
def only_one(folder):
    """Hold the build folder; a second `banlib book` waits here."""
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "book.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"another process is building this book and holds {relative(folder / 'book.lock')}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
