"""JupyterLab on working copies of the chapters: what a reader does there leaves book/ as it is.

work/          the copies, and the pages and pictures that they link to
work/.taken/   each as it was copied, to tell whether a reader has edited it
"""

import json
import os
import shutil
import sys

from banlib.book import find_root, kernel


def open_lab(arguments=(), root=None):
    """Refresh the copies and become JupyterLab, with its own arguments; does not return.

    FileNotFoundError if there is no checkout.
    """
    root = find_root(root)
    for sentence in refresh(root):
        print(sentence, file=sys.stderr, flush=True)
    variables = kernel.environment(root / "_build/config")
    own = {name: variables[name] for name in variables.keys() & {"BANLIB_HOME", "BANLIB_DATA"}}
    kernels = [os.path.join(sys.prefix, "share/jupyter"), os.environ.get("JUPYTER_PATH")]
    own["JUPYTER_PATH"] = os.pathsep.join(filter(None, kernels))  # this Python's comes first
    first = "--LabApp.default_url=/lab/tree/01_teacher.ipynb"
    command = [sys.executable, "-m", "jupyterlab", str(root / "work"), first, *arguments]
    os.execve(sys.executable, command, os.environ | own)


def refresh(root):
    """Copy what is new in book/ to work/, but over nothing that a reader edited.

    Returns a sentence for each copy that is older than its chapter and stays. Outputs and settings
    of cells are no edits.
    """
    book, work, older = root / "book", root / "work", []
    for path in sorted(path for path in book.rglob("*") if path.is_file()):
        name = path.relative_to(book)
        if name.parts[0] in ("extensions", ".ipynb_checkpoints"):
            continue
        copy, taken = work / name, work / ".taken" / name
        if copy.exists() and content(path) in (content(copy), content(taken)):
            continue
        if copy.exists() and content(copy) != content(taken):
            there = f"{copy.relative_to(root)} has edits of yours and stays"
            older.append(f"{there}; book/{name} is newer: move yours away to get it")
            continue
        for place in (copy, taken):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return older


def content(path):
    """What a person writes in a file: of a notebook its cells, without outputs; None if missing."""
    if not path.exists():
        return None
    raw = path.read_bytes()
    try:
        cells = json.loads(raw)["cells"] if path.suffix == ".ipynb" else None
        return [(cell["cell_type"], "".join(cell["source"])) for cell in cells] if cells else raw
    except (ValueError, KeyError, TypeError):
        return raw
