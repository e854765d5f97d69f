"""Run every chapter and render the book: `build` does both, and skips what did not change.

book/, _config.yml, _toc.yml       only read
_build/executed/NN_name.ipynb      a chapter with its outputs, as papermill left it
_build/executed/NN_name.json       what it was made from, and the seconds it took; written last
_build/source/                     what jupyter-book renders, made fit for pages without a kernel
_build/html/index.html             the book; a new one is made in _build/new, then renamed
"""

import ast
import base64
import hashlib
import importlib.metadata
import json
import math
import platform
import re
import shlex
import shutil
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from banlib.paper.printed import check_rows
from banlib.runs.disk import write_atomically
from banlib.runs.parameters import check_parameters, plain_python, refuse_others

PACKAGE = Path(__file__).parents[1]
HEADLINE = "02_ban_densenet", "headline"  # the chapter whose figure of this name the README shows
LEDGER = "07_ledger"  # runs after the others: it shows whatever is trained, by them or before
WIDGET = "application/vnd.jupyter.widget-view+json"


class BookError(RuntimeError):
    """A chapter or the rendering failed; the message has a sentence for each."""


# page: the first, or None; seconds: {chapter: of its last execution}; ran: the chapters run now
Built = namedtuple("Built", "page seconds ran")
# a notebook of _toc.yml; parameters: {name: default} of its `parameters` cell
Chapter = namedtuple("Chapter", "name path parameters")


def build(profile="digits", device="auto", parameters=None, root=None, force=False, render=True):
    """Execute the chapters whose inputs changed, then render the book; returns `Built`.

    profile, device, parameters (a dict) go to every chapter that has a parameter of that name.
    root: the checkout; by default the one banlib lies in, else the one around the working folder.
    force: execute and render everything. render: False only executes.
    Raises ValueError for a parameter no chapter has or a value none can take, before anything runs;
    BookError at the end, if a chapter failed (the others still run) or a page has warnings.
    """
    root = find_root(root)
    chapters = find_chapters(root)
    parameters = check(profile, device, parameters or {}, chapters)
    (root / "_build").mkdir(exist_ok=True)
    lock = FileLock(root / "_build/book.lock")
    try:
        lock.acquire(timeout=0).lock.release()
    except Timeout:
        tell(f"another process is building this book and holds {lock.lock_file}; waiting for it")
    with lock:
        library, ran, failures = library_inputs(root), [], []
        for last in (False, True):
            stale = []
            for chapter in (each for each in chapters if (each.name == LEDGER) is last):
                inputs = library | chapter_inputs(chapter, parameters)
                if changed := what_changed(root, chapter.name, inputs) or force * ["forced"]:
                    stale.append((chapter, inputs, ", ".join(changed)))
                else:
                    tell(f"{chapter.name}: up to date")
            failures += execute_all(root, stale)
            ran += [chapter.name for chapter, *_ in stale]
        if failures:
            kept = " _build/html is the book before." if (root / "_build/html").exists() else ""
            failures.insert(0, f"Nothing was rendered, because a chapter failed.{kept}")
            raise BookError("\n".join(failures))
        page = render_book(root, chapters, force) if render else None
    seconds = {chapter.name: read_stamp(root, chapter.name)["seconds"] for chapter in chapters}
    return Built(page, seconds, tuple(ran))


def find_root(root=None):
    """The checkout that holds the book; FileNotFoundError if there is none."""
    around = [PACKAGE.parent, Path.cwd(), *Path.cwd().parents]
    for folder in around if root is None else [Path(root).absolute()]:
        if all((folder / name).exists() for name in ("_toc.yml", "_config.yml", "book")):
            return folder
    expected = "expected _toc.yml, _config.yml and book/; run this in a checkout of the book"
    where = root or f"{around[0]} or around {around[1]}"
    raise FileNotFoundError(f"no book in {where}: {expected}")


def find_chapters(root):
    """The notebooks of _toc.yml, in its order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc.get("parts", [toc]) for entry in part["chapters"]]
    paths = [path for path in (root / f"{file}.ipynb" for file in files) if path.exists()]
    return [Chapter(path.stem, path, parameters_of(path)) for path in paths]


def parameters_of(path):
    """{name: default} of the cell tagged `parameters`, without running it."""
    cells = [c for c in read(path)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = ast.parse("\n".join("".join(cell["source"]) for cell in cells)).body
    assigned = [line for line in lines if isinstance(line, ast.Assign)]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in assigned}


def check(profile, device, parameters, chapters):
    """All parameters as a dict that JSON can hold; ValueError for a name that no chapter has or a
    value that none can take, before torch is imported where that can be."""
    known = sorted({name for chapter in chapters for name in chapter.parameters})
    options = (("profile", profile, "digits"), ("device", device, "auto"))
    wanted = {name: value for name, value, usual in options if name in known or value != usual}
    wanted |= parameters
    refuse_others(wanted, known)
    names = [name for name in ("profile", "network", "gens", "seeds") if name in wanted]
    settings = check_parameters(**{name: wanted[name] for name in names})
    check_rows(wanted.get("rows", "auto"))

    from banlib import models
    from banlib.runs.machine import choose_device

    models.params(settings.network)  # refuses a network too large to build
    choose_device(wanted.get("device", "auto"))
    plain = {n: list(v) if isinstance(v, range) else plain_python(v) for n, v in wanted.items()}
    return json.loads(json.dumps(plain))  # tuples become lists, as in a stamp


def digest(paths, base):
    """SHA-256 over names (relative to base) and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(base).as_posix()} {content}\n".encode())
    return total.hexdigest()


def library_inputs(root):
    """What every chapter's outputs hang on, besides the chapter."""
    imported = [path for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".mplstyle")]
    imported = [path for path in imported if path.parent.name != "cli"]
    required = importlib.metadata.requires("banlib") or []
    names = {re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line}
    versions = {name: importlib.metadata.version(name) for name in sorted(names)}
    results = digest((root / "results").rglob("*"), root)
    versions["python"] = platform.python_version()
    return {"banlib": digest(imported, PACKAGE), "results": results, "versions": versions}


def chapter_inputs(chapter, parameters):
    """A parameter's default is not given again: it would be a second cell on the page."""
    own = {name: parameters.get(name, usual) for name, usual in chapter.parameters.items()}
    given = {name: value for name, value in own.items() if value != chapter.parameters[name]}
    inputs = {"notebook": digest([chapter.path], chapter.path.parent), "parameters": given}
    return inputs | trained(chapter)


def trained(chapter):
    """What the ledger hangs on besides: the ids of all finished runs, as SHA-256."""
    from banlib.runs.store import Store

    if chapter.name != LEDGER:
        return {}
    return {"trained networks": hashlib.sha256(" ".join(Store().overview()).encode()).hexdigest()}


def what_changed(root, name, inputs):
    """The inputs that are not those of a chapter's executed copy; empty if it is up to date."""
    if (stamp := read_stamp(root, name)) is None:
        return ["not run yet"]
    return [f"{key} changed" for key in inputs if stamp["inputs"].get(key) != inputs[key]]


def read_stamp(root, name):
    """The stamp beside an executed chapter; None if missing or of another copy."""
    executed = root / "_build/executed" / f"{name}.ipynb"
    try:
        stamp = read(executed.with_suffix(".json"))
        return stamp if stamp["executed"] == digest([executed], executed.parent) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def reading_minutes(name, root=None):
    """How long a chapter takes to read, rounded up to 5 minutes: 200 words or 20 lines a minute.

    None where the chapter is not found, as in a notebook that was copied out of its checkout.
    """
    try:
        chapters = find_chapters(find_root(root))
        [path] = [chapter.path for chapter in chapters if chapter.name == name]
    except (FileNotFoundError, ValueError):
        return None
    minutes = 0
    for cell in read(path)["cells"]:
        text = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        minutes += len(text.splitlines()) / 20 if code else len(text.split()) / 200
    return 5 * math.ceil(minutes / 5)


def execute_all(root, stale):
    """Run chapters side by side, one for each core; returns a sentence for each that failed.

    stale: (chapter, inputs, why) of each. A run that two of them need is trained by one.
    """
    from banlib.book import kernel  # slow: papermill imports pandas
    from banlib.runs.machine import cores

    pool = ThreadPoolExecutor(cores())
    futures = {pool.submit(execute, root, *each): each[0].name for each in stale}
    try:
        attend(futures)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        kernel.stop(futures)
        raise
    return [failure for future in futures if (failure := future.result())]


def attend(futures):
    """Wait for {future: name}; in a terminal, say every five seconds for whom and how long."""
    started = time.perf_counter()
    while wait(futures, timeout=5).not_done:
        if sys.stderr.isatty():
            names = ", ".join(name for future, name in futures.items() if future.running())
            seconds = time.perf_counter() - started
            print(f"\r\x1b[K{names}: {seconds:.0f} s ", end="", file=sys.stderr, flush=True)


def execute(root, chapter, inputs, why):
    """Run one chapter and keep it with its stamp; returns None, or a sentence if it failed."""
    from banlib.book import kernel

    tell(f"{chapter.name}: running ({why})")
    folder, started = root / "_build/executed", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / f"{chapter.name}.ipynb"
    running, failed = finished.with_suffix(".running.ipynb"), finished.with_suffix(".failed.ipynb")
    reason = kernel.execute(chapter.path, running, inputs["parameters"], root / "_build/config")
    if reason is None:
        running.replace(finished)
        failed.unlink(missing_ok=True)
        seconds = round(time.perf_counter() - started, 1)
        inputs |= trained(chapter)  # its own too
        stamp = {"inputs": inputs, "executed": digest([finished], folder), "seconds": seconds}
        write_atomically(finished.with_suffix(".json"), json.dumps(stamp, indent=1).encode())
        tell(f"{chapter.name}: done in {seconds:.0f} s")
        return None
    if running.exists():
        running.replace(failed)
        reason += f" (executed so far: {failed.relative_to(root).as_posix()})"
    return tell(f"{chapter.name}: {reason}.")


def render_book(root, chapters, force=False):
    """Stage the sources and render them, unless the pages are up to date; returns the first."""
    from banlib.book import kernel

    html, source, done = (root / "_build" / name for name in ("html", "source", "html.json"))
    page, before = html / "index.html", html.with_name("html.old")
    if before.exists() and not html.exists():  # killed while the new pages took their place
        before.rename(html)
    stage(root, source, chapters)
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js", ".css")]
    library = digest(files, PACKAGE)  # its docstrings are a page, its explorers live on others
    inputs = [digest(source.rglob("*"), source), library, library_inputs(root)["versions"]]
    stamp = json.dumps(inputs).encode()
    if not force and page.exists() and done.exists() and done.read_bytes() == stamp:
        tell("pages: up to date")
    else:
        tell("pages: rendering")
        future = ThreadPoolExecutor(1).submit(kernel.render, root, source, PACKAGE.parent)
        attend({future: "rendering"})
        new, problems = future.result()
        if problems:
            log = root / "_build/render.log"
            raise BookError("\n  ".join([f"the pages have warnings ({log}):", *problems]))
        done.unlink(missing_ok=True)
        shutil.rmtree(before, ignore_errors=True)
        if html.exists():
            html.rename(before)
        new.rename(html)
        write_atomically(done, stamp)
        shutil.rmtree(before, ignore_errors=True)
    serve = shlex.join(["python", "-m", "http.server", "--directory", str(html)])
    tell(f"Open {page.as_uri()}\nor serve it: {serve}")
    return page


def stage(root, source, chapters):
    """Fill the source folder with everything that jupyter-book is to see."""
    shutil.rmtree(source, ignore_errors=True)
    left_out = shutil.ignore_patterns("*.ipynb", ".*", "__pycache__")
    shutil.copytree(root / "book", source / "book", ignore=left_out)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(root / name, source)
    for chapter in chapters:
        executed = read(root / "_build/executed" / f"{chapter.name}.ipynb")
        if chapter.name == HEADLINE[0]:
            (source / "book/assets").mkdir(exist_ok=True)
            (source / "book/assets/headline.png").write_bytes(headline_figure(executed))
        text = json.dumps(without_kernel(executed), indent=1, ensure_ascii=False)
        (source / chapter.path.relative_to(root)).write_text(text, encoding="utf-8")


def without_kernel(notebook):
    """An executed notebook without widgets, which would be dead on a page, and without papermill's
    notes but the duration: they hold paths of the machine that ran it. Changes it in place."""
    notes = notebook["metadata"].pop("papermill", {})
    notebook["metadata"]["papermill"] = {"duration": notes.get("duration")}
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        for output in list(cell.get("outputs", [])):
            widget = output.get("data", {}).pop(WIDGET, None)
            if widget is not None and not set(output["data"]) - {"text/plain"}:
                cell["outputs"].remove(output)
    return notebook


def headline_figure(notebook):
    """The PNG that a chapter glued as `headline`."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    for output in outputs:
        notes = output.get("metadata", {})
        if notes.get("scrapbook", notes).get("name") == HEADLINE[1]:
            [png] = [data for kind, data in output["data"].items() if kind.endswith("image/png")]
            return base64.b64decode(png)
    lacks = f"{HEADLINE[0]} has no figure glued as '{HEADLINE[1]}'"
    raise BookError(f"{lacks}; the preface and the README show it")


def tell(sentence):
    print(f"{sentence}\n", end="", file=sys.stderr, flush=True)  # in one piece beside others
    return sentence


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))
