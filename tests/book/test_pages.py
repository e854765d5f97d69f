"""The rendered book: pages that work without a kernel and without a network, for every reader."""

import importlib
import inspect
import io
import json
import pkgutil
import re
import subprocess
import sys
import urllib.parse

import pytest
from books import ROOT, pages, real_book, solution_code, solutions  # noqa: F401
from browsers import browser, findings, visit  # noqa: F401
from bs4 import BeautifulSoup
from PIL import Image

import banlib
from banlib import book

pytestmark = pytest.mark.timeout(1800)  # the first test builds the whole book, which a busy machine does slowly
ALL_PAGES = sorted(path.stem for path in (ROOT / "book").iterdir() if path.suffix in (".md", ".ipynb"))
WIDTHS = {"phone": 390, "desktop": 1440}


@pytest.fixture(scope="session")
def soups(real_book):  # noqa: F811
    """{page name: its parsed HTML}."""
    return {page.stem: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages(real_book)}


def pictures(soup):
    """What a page shows as pictures before any script runs, each with its text."""
    found = soup.select("article img, article svg")
    return [(picture, picture.get("alt") or picture.get("aria-label") or "") for picture in found]


def prose(soup):
    """The text of a page without its code and formulas."""
    article = BeautifulSoup(str(soup.find("article")), "html.parser")
    for element in article.select("pre, code, dt.sig, math, script, style"):
        element.decompose()
    return article.text


def test_every_chapter_is_a_page(real_book, soups):  # noqa: F811
    assert set(soups) == set(ALL_PAGES)
    assert (real_book / "_build/html/index.html").exists()


def test_every_picture_has_a_text_and_a_caption(soups):
    for name, soup in soups.items():
        for picture, text in pictures(soup):
            assert len(text) > 15 and not text.startswith(("_images", "../")), (name, str(picture)[:200])
            caption = picture.find_parent("figure").find("figcaption")
            assert caption is not None and len(caption.text) > 15, (name, text)
    assert len(pictures(soups["02_ban_densenet"])) >= 5


def test_figures_and_tables_are_numbered_without_gaps_and_their_chapter(soups):
    for name, soup in soups.items():
        for kind in ("Figure", "Table"):
            marks = [b.text for b in soup.select("figcaption b") if b.text.startswith(f"{kind} ")]
            numbers = [tuple(map(int, re.fullmatch(rf"{kind} (\d+)\.(\d+)\.", mark).groups())) for mark in marks]
            assert numbers == [(int(name[:2]), place + 1) for place in range(len(numbers))], name


def test_no_raw_markup_and_no_missing_number(soups):
    for name, soup in soups.items():
        text = prose(soup)
        nothing = [] if name == "api" else [r"\bNaN\b", r"\bnan\b"]  # docstrings may speak of NaN
        for raw in (*nothing, r"\{[a-z:]+\}`", r":::", r"^\([\w-]+\)=", "logq", r"\*\*(?!\d)", r"\bEns[23]\b", r"\]\(", r"\\tag"):
            assert not re.search(raw, text, flags=re.MULTILINE), (name, raw, re.search(raw, text, flags=re.MULTILINE))
        assert "None minutes" not in text, name


def test_one_value_is_never_printed_two_ways(soups):
    """A value of few digits may come by chance from two sources; a long one says that it is the same."""
    for name, soup in soups.items():
        shown = {}
        for data in soup.select("article data[value]"):
            if len(data["value"].lstrip("-")) > 6:
                shown.setdefault(data["value"].lstrip("-"), set()).add(data.text.lstrip("+−"))
        assert {value: texts for value, texts in shown.items() if len(texts) > 1} == {}, name
    assert sum(len(soup.select("data[value]")) for soup in soups.values()) > 100


def test_the_preface_shows_the_figure_of_this_build(real_book, soups):  # noqa: F811
    executed = json.loads((real_book / "_build/executed/02_ban_densenet.ipynb").read_text(encoding="utf-8"))
    [(image, _)] = pictures(soups["00_preface"])
    shown = Image.open(real_book / "_build/html/book" / urllib.parse.unquote(image["src"]))
    assert shown.tobytes() == Image.open(io.BytesIO(book.headline_figure(executed))).tobytes()


def test_glued_numbers_are_there(soups):
    glued = [span.text for span in soups["00_preface"].select(".pasted-text")]
    assert len(glued) >= 8 and all(text.strip() for text in glued)


def test_links_lead_somewhere(real_book, soups):  # noqa: F811
    folder = real_book / "_build/html/book"
    ids = {page.resolve(): set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))) for page in pages(real_book)}
    for name, soup in soups.items():
        for element in soup.select("[href], [src]"):
            address = element.get("href") or element.get("src")
            path, _, fragment = address.partition("#")
            if re.match(r"(https?|mailto|data):", address) or address in ("", "#"):
                continue
            target = (
                (folder / urllib.parse.unquote(path.partition("?")[0])).resolve() if path else (folder / f"{name}.html").resolve()
            )
            assert target.exists(), (name, address)
            if fragment and target in ids:
                assert urllib.parse.unquote(fragment) in ids[target], (name, address)


def test_nothing_is_loaded_from_another_server(soups):
    for name, soup in soups.items():
        for element in soup.select("script[src], link[href], img[src], iframe[src]"):
            address = element.get("src") or element.get("href")
            assert not re.match(r"(https?:)?//", address), (name, address)
        scripts = " ".join(script.text for script in soup.select("script:not([type])"))
        assert "https://" not in scripts and not soup.select("script[type='text/x-thebe-config']"), name


def test_formulas_are_drawn_by_the_browser(soups):
    for name, soup in soups.items():
        assert r"\(" not in soup.text and r"\[" not in soup.text, name
    assert len(soups["02_ban_densenet"].select("math")) > 5
    assert len(soups["02_ban_densenet"].select("div.math .eqno")) >= 1


def test_every_public_function_is_on_the_page_of_the_library(soups):
    """Found here by importing, there by reading files: a module that is added later is on the page or missed here."""
    article = soups["api"].find("article")
    entries = {entry["id"]: "".join(entry.text.split()) for entry in article.select("dt.sig[id]")}
    sections = [heading.text.rstrip("#") for heading in article.select("h2")]
    found = [module.name for module in pkgutil.walk_packages(banlib.__path__, "banlib.")]
    names = [name for name in found if name.split(".")[1] not in ("__main__", "cli")]
    assert sorted(sections) == sorted(name.removeprefix("banlib.") for name in names)
    assert sections.index("objectives") < sections.index("runs.fit") < sections.index("paper.tables")
    for module in map(importlib.import_module, names):
        assert " ".join(module.__doc__.split())[:40].replace("`", "") in " ".join(article.text.replace("’", "'").split()), (
            module.__name__
        )
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and function.__doc__ and not name.startswith("_"):
                shown = entries[f"{module.__name__}.{name}"]
                assert all(parameter in shown for parameter in inspect.signature(function).parameters), shown
    assert "temperature**2" in article.text and ":param" not in article.text


def test_pages_are_light(real_book):  # noqa: F811
    html = real_book / "_build/html"
    for page in pages(real_book):
        text = page.read_text(encoding="utf-8")
        assert page.stat().st_size < 800_000 and book.WIDGET not in text, page.name
        assets = set(re.findall(r'(?:href|src)="\.\./(_static/[^"?]+)', text))
        assert sum((html / asset).stat().st_size for asset in assets) < 400_000, page.name
    for executed in (real_book / "_build/source/book").glob("*.ipynb"):
        assert "widgets" not in json.loads(executed.read_text(encoding="utf-8"))["metadata"]


def test_nbconvert_shows_a_picture_for_each_explorer(real_book, tmp_path):  # noqa: F811
    """Of a notebook as papermill left it, with no network and no kernel."""
    explorers, notebooks = 0, sorted((real_book / "_build/executed").glob("0*.ipynb"))
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", tmp_path, *notebooks]
    subprocess.run(command, check=True, capture_output=True)
    for notebook in notebooks:
        soup = BeautifulSoup((tmp_path / f"{notebook.stem}.html").read_text(encoding="utf-8"), "html.parser")
        for figure in soup.select("figure.ban-explorer"):
            still = figure.select_one("img[alt], svg, table")
            assert still is not None and figure.figcaption.text, (notebook.name, figure.get("data-kind"))
            explorers += 1
    assert explorers >= 6


def test_no_trace_of_the_machine(real_book, soups):  # noqa: F811
    for name, soup in soups.items():
        assert str(real_book) not in str(soup) and str(ROOT) not in str(soup), name
        assert not soup.select(".output.traceback, .output.stderr"), name


@pytest.mark.parametrize("chapter", book.find_chapters(ROOT), ids=lambda chapter: chapter.name)
def test_every_solution_runs_in_its_chapter(real_book, chapter):  # noqa: F811
    executed = json.loads((real_book / f"_build/executed/{chapter.name}.ipynb").read_text(encoding="utf-8"))
    ran = [cell for cell in executed["cells"] if "solution" in cell["metadata"].get("tags", [])]
    assert ["".join(cell["source"]) for cell in ran] == [
        code for text in solutions(chapter.path).values() for code in solution_code(text)
    ]
    for cell in ran:
        assert cell["execution_count"] and not any(output["output_type"] == "error" for output in cell["outputs"])


# In a browser


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ALL_PAGES)
def test_a_page_is_whole_quiet_and_open_to_all(browser, real_book, name, width, theme):  # noqa: F811
    assert findings(browser, real_book / f"_build/html/book/{name}.html", WIDTHS[width], theme) == {}


def test_a_link_shows_its_entry_to_pointer_and_keyboard_alike(browser, real_book):  # noqa: F811
    visit(browser, real_book / "_build/html/book/02_ban_densenet.html")
    shown = browser.execute_script(
        """const link = document.querySelector("article [data-entry]");
        const before = getComputedStyle(link, "::after").content;
        link.focus({focusVisible: true});
        return [before, getComputedStyle(link, "::after").content, link.dataset.entry];"""
    )
    assert shown[0] == "none" and shown[2] in shown[1]


def test_a_solution_opens(browser, real_book):  # noqa: F811
    visit(browser, real_book / "_build/html/book/02_ban_densenet.html")
    shown = "const d = [...document.querySelectorAll('details')].find(d => d.innerText.startsWith('Solution'));"
    shown += "if (arguments[0]) d.querySelector('summary').click(); return d.querySelector('pre').checkVisibility();"
    assert browser.execute_script(shown, False) is False
    assert browser.execute_script(shown, True) is True


@pytest.mark.parametrize("name", ["02_ban_densenet", "07_ledger"])
def test_nothing_is_cut_off_on_paper(browser, real_book, name):  # noqa: F811
    visit(browser, real_book / f"_build/html/book/{name}.html", width=720)  # A4 within its margins, in CSS pixels
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        cut = browser.execute_script(
            """return [...document.querySelectorAll("article :is(table, figure, svg, img)")].filter(e => e.checkVisibility())
            .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            .map(e => e.outerHTML.slice(0, 120))"""
        )
        assert cut == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
