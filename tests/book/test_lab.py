"""`banlib lab`: working copies that are refreshed but never lose an edit, and the kernel of this Python."""

import json
import os
import sys

import pytest
from books import PARAMETERS, small_book, write_chapter

from banlib.book import lab


@pytest.fixture
def root(tmp_path):
    root = small_book(tmp_path)
    assert lab.refresh(root) == []
    return root


def chapter(root, change):
    """Change a working copy as Jupyter would save it."""
    path = root / "work/01_teacher.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook["cells"])
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def run(cells):
    cells[1] |= {"execution_count": 1, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
    cells[1]["metadata"]["trusted"] = True


def edit(cells):
    cells[1]["source"] = "gens = 3"


def test_copies_hold_all_that_chapters_link_to(root):
    work, book = root / "work", root / "book"
    for name in ("01_teacher.ipynb", "bibliography.md", "00_preface.md", "assets/book.css"):
        assert (work / name).read_bytes() == (book / name).read_bytes()
    assert not (work / "extensions").exists()


def test_a_copy_that_was_only_run_follows_its_chapter(root):
    path = chapter(root, run)
    before = path.read_bytes()
    assert lab.refresh(root) == [] and path.read_bytes() == before, "outputs are lost though nothing changed"
    write_chapter(root, "01_teacher", "# New", PARAMETERS)
    assert lab.refresh(root) == [] and "# New" in path.read_text()


def test_an_edited_copy_stays_and_a_newer_chapter_is_told(root):
    path = chapter(root, edit)
    assert lab.refresh(root) == [] and "gens = 3" in path.read_text()
    write_chapter(root, "01_teacher", "# New", PARAMETERS)
    for _ in range(2):
        [sentence] = lab.refresh(root)
        assert "work/01_teacher.ipynb has edits of yours and stays" in sentence and "gens = 3" in path.read_text()
    path.rename(path.with_name("mine.ipynb"))
    assert lab.refresh(root) == [] and "# New" in path.read_text()


def test_a_copy_of_unknown_origin_or_damaged_stays(root):
    path = root / "work/01_teacher.ipynb"
    path.write_text("{ not JSON")
    (root / "work/.taken/bibliography.md").unlink()
    (root / "work/bibliography.md").write_text("mine")
    assert len(lab.refresh(root)) == 1 and path.read_text() == "{ not JSON"
    assert (root / "work/bibliography.md").read_text() == "mine"


def test_lab_opens_the_copies_with_this_pythons_kernel(root, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *all: started.append(all))
    monkeypatch.setenv("BANLIB_HOME", "relative")
    monkeypatch.setenv("JUPYTER_PATH", "elsewhere")
    lab.open_lab(["--no-browser"], root)
    [(program, command, environment)] = started
    assert program == sys.executable and command[:4] == [sys.executable, "-m", "jupyterlab", str(root / "work")]
    assert command[-1] == "--no-browser" and environment["BANLIB_HOME"] == os.path.abspath("relative")
    assert environment["JUPYTER_PATH"] == os.pathsep.join([os.path.join(sys.prefix, "share/jupyter"), "elsewhere"])
