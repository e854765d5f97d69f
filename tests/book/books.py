"""The books that these tests build: a small one with stand-in chapters, and the real one with a small network."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from banlib import book

ROOT = Path(__file__).parents[2]
# Of the real book here: small networks, and a row of each of the paper's tables.
SETTINGS = {"gens": 1, "seeds": 2, "network": "DenseNetBC-10-4", "rows": "DenseNetBC-80-120,MatchWideResNet-1-1"}
PARAMETERS = "profile = 'digits'\nnetwork = 'auto'\ngens = 'auto'\nseeds = 'auto'\ndevice = 'auto'"
# One red pixel, glued as myst_nb.glue does it.
HEADLINE = """
from IPython.display import display
PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")
display({"application/papermill.record/image/png": PIXEL}, raw=True,
        metadata={"scrapbook": {"mime_prefix": "application/papermill.record/", "name": "headline"}})
"""


def notebook(*sources):
    """A notebook as a dict: strings starting with # are Markdown, the others code, the first the parameters."""
    cells = []
    for number, source in enumerate(sources):
        cell = {"id": f"cell-{number}", "metadata": {}, "source": source.strip()}
        if source.startswith("# "):
            cells.append(cell | {"cell_type": "markdown"})
        else:
            tags = {} if any(c["cell_type"] == "code" for c in cells) else {"tags": ["parameters"]}
            cells.append(cell | {"cell_type": "code", "metadata": tags, "outputs": [], "execution_count": None})
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def write_chapter(root, name, *sources):
    (root / "book" / f"{name}.ipynb").write_text(json.dumps(notebook(*sources)), encoding="utf-8")


def small_book(folder, chapters=("01_teacher", "02_ban_densenet")):
    """A book of stand-ins under this repository's _config.yml, in a folder with every odd character a path may have."""
    root = folder / "a {book}, 'odd' & é"
    (root / "book").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", root)
    for name in ("assets", "extensions"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name)
    preface = "# Preface\n\nSee [Furlanello et al. (2017)](bibliography.md#furlanello2017born).\n"
    (root / "book/00_preface.md").write_text(preface, encoding="utf-8")
    entry = '<a id="furlanello2017born"></a>**Furlanello et al. (2017).** *Born Again Networks*.'
    (root / "book/bibliography.md").write_text(f"# Bibliography\n\n{entry}\n", encoding="utf-8")
    listed = "".join(f"- file: book/{name}\n" for name in (*chapters, "bibliography"))
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/00_preface\nchapters:\n{listed}", encoding="utf-8")
    for name in chapters:
        write_chapter(root, name, f"# {name}", PARAMETERS, "print(gens, seeds)", HEADLINE)
    return root


def solutions(path):
    """{exercise, such as "2.1": its hint and solution as they are written} of a chapter."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    parts = re.split(r"^##+ (.*)$", prose, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {re.search(r"\d\.\d", head)[0]: text for head, text in sections.items() if head.startswith("Exercise ")}


def solution_code(text):
    """The code blocks of a solution."""
    return re.findall(r"^```python\n(.*?)^```$", text.partition("<summary>Solution</summary>")[2], flags=re.DOTALL | re.MULTILINE)


def append_solutions(path):
    """Let a chapter run its solutions at its end, where a reader would paste them. Its page does not show them."""
    chapter = json.loads(path.read_text(encoding="utf-8"))
    for exercise, text in solutions(path).items():
        for number, code in enumerate(solution_code(text)):
            cell = {"cell_type": "code", "id": f"exercise-{exercise.replace('.', '-')}-{number}", "source": code, "outputs": []}
            cell |= {"execution_count": None, "metadata": {"tags": ["remove-cell", "solution"]}}
            chapter["cells"].append(cell)
    path.write_text(json.dumps(chapter), encoding="utf-8")


def shared_base(tmp_path_factory):
    """One folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def home_of_books(tmp_path_factory):
    """Where the real book, and who opens its chapters, find what is trained."""
    return shared_base(tmp_path_factory) / "home of the real book"


@pytest.fixture(scope="session")
def real_book(tmp_path_factory):
    """The real book, built once: `root` of a copy of this checkout's book with `_build` in it.

    Every chapter also runs the solutions of its exercises.
    """
    base = shared_base(tmp_path_factory)
    root = base / "real book"
    with FileLock(base / "real.lock"), pytest.MonkeyPatch.context() as patch:
        if not root.exists():
            shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
            for path in (root / "book").glob("*.ipynb"):
                append_solutions(path)
            for name in ("_config.yml", "_toc.yml"):
                shutil.copy(ROOT / name, root)
            if (ROOT / "results").exists():
                shutil.copytree(ROOT / "results", root / "results")
        patch.setenv("BANLIB_HOME", str(home_of_books(tmp_path_factory)))
        if not (root / "_build/html").exists():  # by another worker
            book.build(parameters=SETTINGS, root=root)
    return root


def pages(root):
    """The rendered pages of the table of contents."""
    return sorted((root / "_build/html/book").glob("*.html"))
