"""banlib.book: what runs when, and what a reader is told when something fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from books import HEADLINE, PARAMETERS, ROOT, small_book, write_chapter
from filelock import FileLock

from banlib import book
from banlib.book import kernel
from banlib.runs.disk import home
from banlib.runs.fit import fit
from conftest import tiny_spec


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small book, built and rendered once. Tests that change it take a copy."""
    root = small_book(tmp_path_factory.mktemp("built"))
    before = snapshot(root)
    result = book.build(root=root)
    assert snapshot(root) == before, "building changed the sources"
    return root, result


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built[0], tmp_path / built[0].name)


def snapshot(root):
    return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and "_build" not in p.parts}


def one_sentence(error):
    return "\n" not in str(error) and len(str(error)) < 500


# Running and skipping


def test_first_build_runs_every_chapter_and_renders(built, capsys):
    root, result = built
    assert result.ran == ("01_teacher", "02_ban_densenet")
    assert result.page == root / "_build/html/index.html" and result.page.is_file()
    assert all(0 < seconds < 60 for seconds in result.seconds.values())
    assert (root / "_build/html/book/02_ban_densenet.html").is_file()


def test_second_build_does_nothing_and_says_where_the_page_is(built, capsys):
    root, _ = built
    page = root / "_build/html/index.html"
    before = page.stat().st_mtime_ns
    result = book.build(root=root)
    assert result.ran == () and page.stat().st_mtime_ns == before
    told = capsys.readouterr()
    assert told.out == ""
    assert "01_teacher: up to date" in told.err and "pages: up to date" in told.err
    assert page.as_uri() in told.err and "http.server" in told.err


def test_only_the_changed_chapter_runs_again(copy):
    write_chapter(copy, "01_teacher", "# Another title", PARAMETERS, "1 + 1")
    assert book.build(root=copy, render=False).ran == ("01_teacher",)


def test_the_ledger_runs_last_and_again_when_networks_were_trained_since(tmp_path):
    """Its own networks are no reason. A chapter beside it may train some that it shows."""
    root = small_book(tmp_path, ("01_teacher", "07_ledger"))
    train = "from conftest import tiny_spec\nfrom banlib.runs.fit import fit\nfit(tiny_spec(seed={}))".format
    tests = f"import sys, time\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    write_chapter(root, "01_teacher", "# One", PARAMETERS, f"{tests}time.sleep(1)\n{train(0)}")
    seen = "from banlib.runs.store import Store\nprint(len(Store().overview()), 'are trained')\n"
    write_chapter(root, "07_ledger", "# Seven", PARAMETERS, f"{tests}{seen}{train(1)}")
    assert book.build(root=root, render=False).ran == ("01_teacher", "07_ledger")
    assert "1 are trained" in (root / "_build/executed/07_ledger.ipynb").read_text(encoding="utf-8")
    assert book.build(root=root, render=False).ran == ()
    fit(tiny_spec(seed=2))
    assert book.build(root=root, render=False).ran == ("07_ledger",)
    assert "3 are trained" in (root / "_build/executed/07_ledger.ipynb").read_text(encoding="utf-8")


def test_force_runs_everything(copy):
    assert book.build(root=copy, force=True, render=False).ran == ("01_teacher", "02_ban_densenet")


@pytest.mark.parametrize("change", ["notebook", "parameters", "loop.py", "figures/book.mplstyle", "results", "versions"])
def test_every_input_of_a_chapter_counts(copy, monkeypatch, tmp_path, change):
    injected = {}
    if change == "notebook":
        write_chapter(copy, "01_teacher", "# Another title", PARAMETERS)
    elif change == "parameters":
        injected = {"gens": 2}
    elif change in ("loop.py", "figures/book.mplstyle"):
        shutil.copytree(book.PACKAGE, tmp_path / "banlib")
        (tmp_path / "banlib" / change).write_text("changed = True")
        monkeypatch.setattr(book, "PACKAGE", tmp_path / "banlib")
        change = "banlib"
    elif change == "results":
        (copy / "results").mkdir()
        (copy / "results/run.json").write_text("{}")
    elif change == "versions":
        version = book.importlib.metadata.version
        monkeypatch.setattr(book.importlib.metadata, "version", lambda name: "0" if name == "torch" else version(name))
    chapter = book.find_chapters(copy)[0]
    inputs = book.library_inputs(copy) | book.chapter_inputs(chapter, injected)
    assert book.what_changed(copy, chapter.name, inputs) == [f"{change} changed"]


def test_an_executed_copy_that_was_altered_runs_again(copy):
    executed = copy / "_build/executed/01_teacher.ipynb"
    executed.write_text(executed.read_text().replace("auto", "hand-edited"))
    assert book.build(root=copy, render=False).ran == ("01_teacher",)


def test_parameters_reach_the_chapters_that_have_them(tmp_path):
    root = small_book(tmp_path)
    write_chapter(root, "01_teacher", "# One", PARAMETERS + "\ncolour = 'red'", "print(gens, colour)")
    result = book.build(parameters={"gens": 2, "colour": "blue", "seeds": "auto"}, root=root, render=False)
    assert result.ran == ("01_teacher", "02_ban_densenet")
    first, second = (executed(root, name) for name in result.ran)
    assert output_of(first) == "2 blue\n"
    tagged = [cell for cell in second if "injected-parameters" in cell["metadata"].get("tags", [])]
    [injected] = ["".join(cell["source"]) for cell in tagged]
    assert "gens = 2" in injected and "colour" not in injected
    assert "seeds" not in injected, "a value that is the chapter's own shows up as a second parameters cell"


def output_of(cells):
    return "".join("".join(output["text"]) for cell in cells for output in cell.get("outputs", []) if "text" in output)


def test_works_from_anywhere(copy, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert book.build(root=os.path.relpath(copy)).ran == ()
    assert os.listdir() == []
    monkeypatch.chdir(copy / "book")
    # Where banlib lies in no checkout, the one around is taken.
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "site-packages/banlib")
    assert book.find_root() == copy
    assert book.find_chapters(book.find_root())[0].path == copy / "book/01_teacher.ipynb"


def test_without_a_book_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "site-packages/banlib")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="^no book in .* run this in a checkout of the book$") as caught:
        book.build()
    assert one_sentence(caught.value)


def test_the_kernel_is_this_python_whatever_is_registered(tmp_path, monkeypatch):
    spec = tmp_path / "share/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "Wrong", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    root = small_book(tmp_path, chapters=("01_teacher",))
    tell = "import sys, os, banlib\nprint(sys.executable, os.path.dirname(banlib.__file__), sep='|')"
    write_chapter(root, "01_teacher", "# One", PARAMETERS, tell)
    book.build(root=root, render=False)
    cells = json.loads((root / "_build/executed/01_teacher.ipynb").read_text())["cells"]
    assert output_of(cells).strip() == f"{sys.executable}|{book.PACKAGE}"


def test_chapters_run_side_by_side_and_each_in_its_own_folder(tmp_path, monkeypatch):
    """Each waits for the other's mark, which only chapters that run at once can see."""
    from banlib.runs import machine

    monkeypatch.setattr(machine, "cores", lambda: 2)
    root = small_book(tmp_path)
    for own, other in (("01_teacher", "02_ban_densenet"), ("02_ban_densenet", "01_teacher")):
        meet = f"""
import os, pathlib, time
pathlib.Path({own!r}).touch()
while not pathlib.Path({other!r}).exists():
    time.sleep(0.1)
print(os.getcwd())
"""
        write_chapter(root, own, "# Meet", PARAMETERS, meet)
    before = os.getcwd()
    assert book.build(root=root, render=False).ran == ("01_teacher", "02_ban_densenet")
    assert os.getcwd() == before
    assert output_of(executed(root)) == output_of(executed(root, "02_ban_densenet")) == f"{root / 'book'}\n"


def test_two_builds_at_once_take_turns(copy, capsys):
    """The second waits and then finds nothing to do."""
    held = FileLock(copy / "_build/book.lock")
    held.acquire()
    results = []
    waiting = threading.Thread(target=lambda: results.append(book.build(root=copy, render=False)))
    waiting.start()
    waiting.join(timeout=1)
    assert waiting.is_alive() and results == []
    held.release()
    waiting.join(timeout=600)
    assert results[0].ran == () and "another process is building this book" in capsys.readouterr().err


# What is refused before anything runs


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"parameters": {"genz": 5}}, "unknown parameter 'genz'; did you mean 'gens'?"),
        ({"parameters": {"gens": "three"}}, "gens must be an integer from 0 to 20, got 'three'"),
        ({"parameters": {"seeds": 0}}, "seeds must be a count"),
        ({"parameters": {"network": "DenseNet-90-60"}}, "did you mean 'DenseNetBC-90-60'?"),
        ({"profile": "digit"}, "unknown profile 'digit'; did you mean 'digits'?"),
        ({"device": "cudaa"}, "device 'cudaa' is not here"),
        ({"parameters": {"device": "cudaa"}}, "device 'cudaa' is not here"),
        ({"parameters": {"network": "DenseNetBC-2000-900"}}, "more than the 1,000 M allowed here"),
        ({"parameters": {"seeds": "4_7"}}, "seeds must be a count"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(tmp_path, given, sentence):
    root = small_book(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        book.build(root=root, **given)
    assert one_sentence(caught.value) and not (root / "_build").exists()


def test_rows_that_no_table_has_are_refused_before_anything_runs(tmp_path):
    root = small_book(tmp_path)
    write_chapter(root, "01_teacher", "# One", PARAMETERS + "\nrows = 'auto'")
    with pytest.raises(ValueError, match="'WideResNet-40-4' is no row of the paper's tables") as caught:
        book.build(root=root, parameters={"rows": "WideResNet-40-4"})
    assert one_sentence(caught.value) and not (root / "_build").exists()


# What goes wrong on the way


def test_a_failing_chapter_is_reported_and_the_others_run(copy):
    page = (copy / "_build/html/index.html").read_bytes()
    wrong = "raise ValueError('the lamp is out\\nsecond line')"
    write_chapter(copy, "01_teacher", "# One", PARAMETERS, "print('so far')", wrong, "print('never')")
    write_chapter(copy, "02_ban_densenet", "# Two", PARAMETERS, HEADLINE)
    with pytest.raises(book.BookError) as caught:
        book.build(root=copy)
    assert "01_teacher: cell 3 ended with ValueError: the lamp is out (executed so far: " in str(caught.value)
    assert "_build/executed/01_teacher.failed.ipynb" in str(caught.value) and "second line" not in str(caught.value)
    failed = copy / "_build/executed/01_teacher.failed.ipynb"
    assert output_of(json.loads(failed.read_text())["cells"]) == "so far\n"
    assert (copy / "_build/html/index.html").read_bytes() == page, "the earlier page is gone"
    # Mended, only the failed chapter runs again, and its debris goes.
    write_chapter(copy, "01_teacher", "# One", PARAMETERS, "print('mended')")
    assert book.build(root=copy, render=False).ran == ("01_teacher",) and not failed.exists()


@pytest.mark.parametrize(
    "death, told",
    [
        ("os.kill(os.getpid(), 9)", "its kernel was killed (SIGKILL), as Linux does when memory runs out"),
        ("os.kill(os.getpid(), 15)", "its kernel was ended by SIGTERM"),
        ("os._exit(3)", "its kernel ended by itself with exit code 3"),
    ],
)
def test_a_dead_kernel_is_explained(tmp_path, death, told):
    root = small_book(tmp_path, chapters=("01_teacher",))
    write_chapter(root, "01_teacher", "# One", PARAMETERS, "print('so far')", f"import os; {death}")
    with pytest.raises(book.BookError, match=re.escape(f"01_teacher: {told}")) as caught:
        book.build(root=root)
    assert len(str(caught.value).splitlines()) == 2 and "executed so far: " in str(caught.value)
    assert book.read_stamp(root, "01_teacher") is None, "a chapter that died counts as done"


def test_a_warning_is_an_error_each_time_and_the_book_before_stays(copy):
    before = (copy / "_build/html/index.html").read_bytes()
    (copy / "book/00_preface.md").write_text("# Preface\n\nSee {doc}`nowhere`.\n")
    for _ in range(2):  # a page that is not read again must not hide its warning
        with pytest.raises(book.BookError, match=r"book/00_preface.md:3: WARNING: unknown document"):
            book.build(root=copy)
        assert (copy / "_build/html/index.html").read_bytes() == before


def test_a_kill_while_rendering_leaves_the_book_before(copy, monkeypatch):
    """At any of its steps: before the pages are made, when they stand, and between the two renames."""
    html = copy / "_build/html"
    before = snapshot_of(html)
    (copy / "book/00_preface.md").write_text("# Another preface\n\nSee [this](bibliography.md#furlanello2017born).\n")
    rename = book.Path.rename

    def killed(*args, **options):
        raise SystemExit

    def killed_at(folder):
        return lambda path, to: killed() if path.parent.parent.name == folder else rename(path, to)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(kernel.subprocess, "run", killed)
        book.build(root=copy)
    assert snapshot_of(html) == before
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(book.Path, "rename", killed_at(copy.name))
        book.build(root=copy)
    assert snapshot_of(html) == before
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(book.Path, "rename", killed_at("new"))
        book.build(root=copy)
    assert not html.exists() and snapshot_of(html.with_name("html.old")) == before
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):  # the next build first puts it back
        patch.setattr(kernel.subprocess, "run", killed)
        book.build(root=copy)
    assert snapshot_of(html) == before
    book.build(root=copy)
    assert "Another preface" in (html / "book/00_preface.html").read_text()
    assert not html.with_name("html.old").exists() and not list((copy / "_build/new/_build").glob("html"))


def snapshot_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A reader's own configuration


FIGURE = """
import matplotlib, matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(1, 1))
axes.plot([0, 1])
plt.show()
print(matplotlib.get_backend(), plt.rcParams["figure.facecolor"], plt.rcParams["lines.linewidth"])
print("started" in globals())
"""


def executed(root, name="01_teacher"):
    return json.loads((root / f"_build/executed/{name}.ipynb").read_text())["cells"]


def outputs(cells):
    return [(kind, data) for c in cells for o in c.get("outputs", []) for kind, data in o.get("data", {}).items()]


def test_the_readers_configuration_changes_no_page(tmp_path, monkeypatch):
    root = small_book(tmp_path, chapters=("01_teacher",))
    write_chapter(root, "01_teacher", "# One", PARAMETERS, FIGURE)
    book.build(root=root, render=False)
    plain = executed(root)
    own = tmp_path / "own"
    (own / "ipython/profile_default/startup").mkdir(parents=True)
    (own / "ipython/profile_default/startup/00.py").write_text("started = True")
    config = "c = get_config()\nc.InlineBackend.figure_formats = {'svg'}\nc.InlineBackend.rc = {'lines.linewidth': 9}"
    (own / "ipython/profile_default/ipython_kernel_config.py").write_text(config)
    (own / "matplotlibrc").write_text("lines.linewidth: 9\nfigure.facecolor: red\n")
    (own / "startup.py").write_text("started = True")
    for name, value in {
        "MPLBACKEND": "Agg", "MATPLOTLIBRC": own, "MPLCONFIGDIR": own, "IPYTHONDIR": own / "ipython",
        "PYTHONSTARTUP": own / "startup.py", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONINSPECT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    book.build(root=root, render=False, force=True)
    assert output_of(executed(root)) == output_of(plain) and "inline" in output_of(plain)
    assert "image/png" in dict(outputs(plain)) and outputs(executed(root)) == outputs(plain)


def test_a_relative_home_is_the_same_folder_in_a_kernel(tmp_path, monkeypatch):
    root = small_book(tmp_path, chapters=("01_teacher",))
    tell = "import os\nfrom banlib.runs.datasets import data_folder, home\nprint(home(), data_folder(), sep='|')"
    write_chapter(root, "01_teacher", "# One", PARAMETERS, tell)
    place = tmp_path / "a $HOME place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("BANLIB_HOME", "my home")
    monkeypatch.setenv("BANLIB_DATA", "my data")
    book.build(root=root, render=False)
    assert output_of(executed(root)).strip() == f"{place / 'my home'}|{place / 'my data'}"
    assert home() == place / "my home"


def test_numbers_arrive_as_papermill_can_write_them(tmp_path):
    import numpy as np

    root = small_book(tmp_path, chapters=("01_teacher",))
    book.build(parameters={"gens": np.int64(2), "seeds": range(3, 5)}, root=root, render=False)
    assert output_of(executed(root)) == "2 [3, 4]\n"
    assert book.build(parameters={"gens": 2, "seeds": np.array([3, 4])}, root=root, render=False).ran == ()


# Stops


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_build_is_one_sentence_and_the_chapter_can_save(tmp_path, number, code):
    root = small_book(tmp_path, chapters=("01_teacher",))
    wait = f"""
import pathlib, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / "begun").touch()
try:
    time.sleep(60)
finally:
    (folder / "saved").touch()
"""
    write_chapter(root, "01_teacher", "# One", PARAMETERS, wait)
    program = f"from banlib import book, cli; book.find_root = lambda root=None: book.Path({str(root)!r}); "
    command = [sys.executable, "-c", program + "cli.main(['book', '--no-render'])"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code and out == "" and (tmp_path / "saved").exists()
    assert "Traceback" not in err and "Error" not in err and len(err.splitlines()) < 4
    assert "again" in err.splitlines()[-1]


def test_a_stop_does_not_wait_for_chapters_that_never_began(monkeypatch):
    monkeypatch.setattr(kernel, "PATIENCE", 600)
    begun, ended = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(1)
    futures = [pool.submit(lambda: (begun.set(), ended.wait())), pool.submit(pytest.fail)]
    assert begun.wait(60)
    pool.shutdown(wait=False, cancel_futures=True)
    ended.set()
    stopping = threading.Thread(target=kernel.stop, args=[futures], daemon=True)
    stopping.start()
    stopping.join(120)
    assert not stopping.is_alive()


LIGHT = ("__init__.py", "names.py", "book/__init__.py", "book/scripts.py", "figures/__init__.py", "paper/__init__.py")
LIGHT += ("paper/printed.py", "runs/__init__.py", "runs/disk.py", "runs/parameters.py", "runs/recipe.py")


def test_pages_follow_the_docstrings_of_the_library(copy, monkeypatch, tmp_path, capsys):
    """The page of the library is rendered from them, though no page of the book changed."""
    for name in LIGHT:  # what a page needs, and what is imported in no time
        (tmp_path / "banlib" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(book.PACKAGE / name, tmp_path / "banlib" / name)
    function = 'def shine(watts):\n    """As bright as `watts` says (a*b)."""\n'
    (tmp_path / "banlib/lamp.py").write_text(f'"""Light."""\n\n\n{function}')
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "banlib")
    with (copy / "book/bibliography.md").open("a") as page:
        page.write("\n[library]\n")
    for watts in ("watts", "volts"):
        lamp = tmp_path / "banlib/lamp.py"
        lamp.write_text(lamp.read_text().replace("watts", watts))
        book.render_book(copy, book.find_chapters(copy))
        page = (copy / "_build/html/book/bibliography.html").read_text()
        assert f'<em class="sig-param"><span class="n"><span class="pre">{watts}' in page and "(a*b)" in page


def test_jupyter_book_alone_gives_no_book_without_numbers(tmp_path):
    """`jupyter-book build .`, which everyone tries."""
    root = small_book(tmp_path)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    told = result.stdout + result.stderr
    assert result.returncode != 0 and "01_teacher has not been run" in told and "run `banlib book`" in told
    assert not (root / "_build/html/book/01_teacher.html").exists()


def test_pages_link_to_an_address_where_one_is_set_and_nowhere_otherwise(copy):
    from bs4 import BeautifulSoup

    def outside():
        book.render_book(copy, book.find_chapters(copy))
        soup = BeautifulSoup((copy / "_build/html/book/01_teacher.html").read_text(), "html.parser")
        return [a["href"] for a in soup.select("a[href^=http]")]

    assert outside() == []
    config = (copy / "_config.yml").read_text()
    set_there = re.sub(r"^( *)# (?=repository|launch|  \w|use_)", r"\1", config, flags=re.M)
    (copy / "_config.yml").write_text(set_there)
    links = outside()
    assert "https://github.com/you/born-again" in links
    assert any("colab" in link and link.endswith("book/01_teacher.ipynb") for link in links)
    assert any("mybinder" in link and link.endswith("book/01_teacher.ipynb") for link in links)


# What the page gets


def test_widgets_and_paths_stay_out_of_the_page():
    plain, page = {"text/plain": "Slider()"}, {"text/html": "<img alt='a'>"}
    widget = {book.WIDGET: {"model_id": "ab12"}}
    outputs = [{"output_type": "display_data", "data": data, "metadata": {}} for data in (plain, widget | plain, widget | page)]
    notebook = {
        "cells": [{"cell_type": "code", "metadata": {"papermill": {"duration": 1}}, "source": "", "outputs": outputs}],
        "metadata": {"widgets": {"state": "x" * 10**6}, "papermill": {"duration": 3.5, "input_path": "a place"}},
    }
    kept = book.without_kernel(notebook)
    assert [output["data"] for output in kept["cells"][0]["outputs"]] == [plain, page]
    assert "a place" not in json.dumps(kept) and len(json.dumps(kept)) < 1000
    assert kept["metadata"]["papermill"] == {"duration": 3.5}


def test_without_a_headline_the_book_says_so(tmp_path):
    root = small_book(tmp_path, chapters=("02_ban_densenet",))
    write_chapter(root, "02_ban_densenet", "# Two", PARAMETERS)
    with pytest.raises(book.BookError, match="02_ban_densenet has no figure glued as 'headline'"):
        book.build(root=root)


def test_reading_time_grows_with_the_text(tmp_path):
    root = small_book(tmp_path)
    assert book.reading_minutes("01_teacher", root) == 5
    write_chapter(root, "01_teacher", "# One\n" + "word " * 2000, PARAMETERS)  # 2000 / 200 = 10 minutes, and some code
    assert book.reading_minutes("01_teacher", root) == 15
    assert book.reading_minutes("99_missing", root) is None


def test_build_folder_is_not_tracked():
    assert "_build/" in (ROOT / ".gitignore").read_text().splitlines()
