"""The rendered book: pages that work without a kernel and without a network, for every reader."""

import base64
import importlib
import inspect
import io
import json
import pkgutil
import re
import shutil
import urllib.parse

import pandas as pd
import pytest
from books import ROOT, pages, real_book, solution_code, solutions  # noqa: F401
from bs4 import BeautifulSoup
from PIL import Image

import banlib
from banlib import book
from banlib.explorers.tables import SortableTable

pytestmark = pytest.mark.timeout(1800)  # the first test builds the whole book, which a busy machine does slowly
ALL_PAGES = sorted(path.stem for path in (ROOT / "book").iterdir() if path.suffix in (".md", ".ipynb"))
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="session")
def soups(real_book):  # noqa: F811
    """{page name: its parsed HTML}."""
    return {page.stem: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages(real_book)}


def images(soup):
    return soup.select("article img") or soup.select("main img")


def pixels(real_book, image):  # noqa: F811
    source = image["src"]
    if source.startswith("data:"):
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    return Image.open(real_book / "_build/html/book" / urllib.parse.unquote(source))


def test_every_chapter_is_a_page(real_book, soups):  # noqa: F811
    assert set(soups) == set(ALL_PAGES)
    assert (real_book / "_build/html/index.html").exists()


def test_every_figure_has_alt_text(soups):
    for name, soup in soups.items():
        for image in images(soup):
            assert len(image.get("alt", "")) > 15 and not image["alt"].startswith(("_images", "../")), (
                name,
                image["alt"],
            )
    assert len(images(soups["02_ban_densenet"])) >= 5


def test_figures_are_opaque(real_book, soups):  # noqa: F811
    """A transparent figure has black letters on the dark theme's black."""
    for name, soup in soups.items():
        for image in images(soup):
            if not image["src"].endswith(".svg"):
                alpha = pixels(real_book, image).convert("RGBA").getextrema()[3]
                assert alpha == (255, 255), (name, image["alt"])


def test_the_preface_shows_the_figure_of_this_build(real_book, soups):  # noqa: F811
    executed = json.loads((real_book / "_build/executed/02_ban_densenet.ipynb").read_text(encoding="utf-8"))
    [image] = images(soups["00_preface"])
    shown = pixels(real_book, image)
    assert shown.tobytes() == Image.open(io.BytesIO(book.headline_figure(executed))).tobytes()


def test_glued_numbers_are_there(soups):
    glued = [span.text for span in soups["00_preface"].select(".pasted-text")]
    assert len(glued) >= 8 and all(text.strip() for text in glued)
    assert {"17.69", "16.62", "DenseNetBC-90-60"} <= set(glued)  # the paper's table 1, second row
    for name, soup in soups.items():
        assert "{glue" not in soup.text and "None minutes" not in soup.text, name


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


def test_pages_are_light_and_have_no_dead_widgets(real_book):  # noqa: F811
    for page in pages(real_book):
        text = page.read_text(encoding="utf-8")
        assert len(text) < 4_000_000 and book.WIDGET not in text and "interactive(children" not in text, page.name
    for executed in (real_book / "_build/source/book").glob("*.ipynb"):
        assert "widgets" not in json.loads(executed.read_text(encoding="utf-8"))["metadata"]


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


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and chromedriver are not installed, so the pages are not looked at in a browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


def visit(browser, page, width=1280, theme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 700},
    )
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get(page.as_uri())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ALL_PAGES)
def test_page_fits_and_is_quiet(browser, real_book, name, width, theme):  # noqa: F811
    visit(browser, real_book / f"_build/html/book/{name}.html", WIDTHS[width], theme)
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    wide = browser.execute_script(
        "return [document.documentElement, ...document.querySelectorAll('.bd-main, .bd-article-container, article')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className || e.tagName)"
    )
    assert wide == [], "the page scrolls sideways"
    assert contrast(browser, "article p") > 7, "text is hard to read"
    loud = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert loud == []


def contrast(browser, selector):
    """WCAG contrast of the first such element's text against the page."""
    colours = browser.execute_script(
        "const e = document.querySelector(arguments[0]);"
        "return [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    lights = []
    for colour in colours:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_explorers_turn_over_frames_by_keyboard(browser, real_book, soups):  # noqa: F811
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    explored = 0
    for name, soup in soups.items():
        if not soup.select(".explorer"):
            continue
        visit(browser, real_book / f"_build/html/book/{name}.html")
        for explorer in browser.find_elements(By.CSS_SELECTOR, ".explorer"):
            assert explorer.find_elements(By.TAG_NAME, "noscript")
            sliders = [s for s in explorer.find_elements(By.CSS_SELECTOR, "input[type=range]") if s.is_enabled()]
            if not sliders:
                continue  # these small runs leave one choice
            image = explorer.find_element(By.TAG_NAME, "img")
            before = image.get_attribute("src"), image.get_attribute("alt")
            at_end = sliders[0].get_attribute("value") == sliders[0].get_attribute("max")
            sliders[0].send_keys(Keys.ARROW_LEFT if at_end else Keys.ARROW_RIGHT)
            after = image.get_attribute("src"), image.get_attribute("alt")
            assert after[0] != before[0] and after[1] != before[1], "the picture or its alt text did not follow the slider"
            explored += 1
    assert explored >= 4


def test_tables_sort_by_keyboard_and_by_pointer(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    frame = pd.DataFrame({"name": ["a9", "a10", "B", "c"], "error": [9.5, float("nan"), 10.25, -1.0], "seeds": [3, 1, 3, 3]})
    page = tmp_path / "table.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{SortableTable(frame, 'Errors')._repr_html_()}", encoding="utf-8")
    visit(browser, page)
    heads = browser.find_elements(By.CSS_SELECTOR, ".sortable th")
    name, error, seeds = (head.find_element(By.TAG_NAME, "button") for head in heads)

    def first_cells():
        return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, ".sortable tbody td:first-child")]

    def sorts():
        return [head.get_attribute("aria-sort") for head in heads]

    assert sorts() == ["none"] * 3
    error.send_keys(Keys.ENTER)
    assert first_cells() == ["c", "a9", "B", "a10"], "numbers in their order, the missing one last"
    assert sorts() == ["none", "ascending", "none"]
    error.send_keys(Keys.SPACE)
    assert first_cells() == ["B", "a9", "c", "a10"] and sorts() == ["none", "descending", "none"]
    seeds.click()
    assert first_cells() == ["a10", "a9", "B", "c"] and sorts() == ["none", "none", "ascending"]
    seeds.click()
    assert first_cells() == ["a9", "B", "c", "a10"], "equal rows keep their first order"
    seeds.click()
    assert first_cells() == list(frame["name"]) and sorts() == ["none"] * 3, "the third press restores the order"
    name.click()
    assert first_cells() == ["a9", "a10", "B", "c"]


def test_a_wide_table_scrolls_within_itself(browser, tmp_path):
    wide = pd.DataFrame({f"a column with a long name, number {n}": [0.5] for n in range(12)})
    page = tmp_path / "table.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{SortableTable(wide, 'Wide')._repr_html_()}", encoding="utf-8")
    visit(browser, page, WIDTHS["phone"])
    box, whole = browser.execute_script(
        "return [document.querySelector('.sortable'), document.documentElement].map(e => e.scrollWidth > e.clientWidth)"
    )
    assert box and not whole


def test_the_exercises_solutions_open(browser, real_book):  # noqa: F811
    from selenium.webdriver.common.by import By

    visit(browser, real_book / "_build/html/book/02_ban_densenet.html")
    solution = browser.find_element(By.CSS_SELECTOR, ".admonition.solution")
    content = solution.find_element(By.CSS_SELECTOR, ".section, .solution-content, #solution-content")
    assert not content.is_displayed()
    browser.execute_script("arguments[0].querySelector('button, summary').click()", solution)
    assert content.is_displayed()
