"""What pages make of plain Markdown: a small book in the notebooks' conventions, rendered once."""

import json
import re

import pytest
from books import PARAMETERS, small_book, write_chapter
from browsers import browser, findings  # noqa: F401
from bs4 import BeautifulSoup

from banlib import book
from banlib.figures import style

PROSE = r"""# Do lamps shine?

See [Furlanello et al. (2018)](bibliography.md#furlanello2018born), a [teacher](glossary.md#teacher),
[McNemar's test](glossary.md#mcnemars-test)
and [the other chapter](02_ban_densenet.ipynb). By equation (1.1), as figure 1.2 and Table 1.1 show; there is no figure 9.9.

$$
\mathcal{L} = -\log q_y \tag{1.1}
$$

> **Time.** Five minutes.

> **Predict first.** Will it *shine*?
>
> Two paragraphs.

> A quote without a lead.

## Exercises

### Exercise 1.1 (easy): Light it

Turn it on.

<details><summary>Hint</summary>

There is a **switch**.

</details>

<details><summary>Solution</summary>

```python
print("light")
```

</details>
"""
SHOWN = """
import matplotlib.pyplot as plt, pandas as pd
from banlib.figures import show, style
style.style()
panels = [plt.figure(figsize=(2, 2)), plt.figure(figsize=(2, 2))]
for panel in panels:
    panel.subplots().plot([0, 1], color=style.INK)
    panel.set_facecolor(style.PAPER)
show.figure("1.2", panels, "Lamps.", "A lamp, drawn twice", "seeds 0-2")
show.table("1.1", pd.DataFrame({"error": [6.38125]}), "Errors.", "seeds 0-2")
show.box("Your guess and the outcome", "As **equation (1.1)** says of the [teacher](glossary.md#teacher), $x^2$.")
"""
EXPLORED = """
from banlib import explorers
for number in "34":
    explorer = explorers.loss(f"1.{number}", "Gradients.", "Bars of the gradients of three classes")
    explorer._ipython_display_()
"""
GLOSSARY = "# Glossary\n\n## McNemar's test\n\nOf coins.\n\n## teacher\n\nA network that *teaches* `others`.\n\nMore.\n"
BIBLIOGRAPHY = """# Bibliography

<a id="furlanello2017born"></a>**Furlanello et al. (2017).** *Born Again Networks*.

<a id="furlanello2018born"></a>**Furlanello et al. (2018).** *Born Again Neural Networks*. Later & longer.
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = small_book(tmp_path_factory.mktemp("plain"), chapters=("01_lamps", "02_ban_densenet", "glossary"))
    (root / "book/glossary.ipynb").unlink()
    (root / "book/glossary.md").write_text(GLOSSARY, encoding="utf-8")
    (root / "book/bibliography.md").write_text(BIBLIOGRAPHY, encoding="utf-8")
    write_chapter(root, "01_lamps", PROSE, PARAMETERS, SHOWN, EXPLORED)
    path = root / "book/01_lamps.ipynb"
    chapter = json.loads(path.read_text(encoding="utf-8"))
    chapter["cells"][2]["metadata"]["tags"] = ["hide-input"]
    path.write_text(json.dumps(chapter), encoding="utf-8")
    book.build(root=root)
    return root


@pytest.fixture(scope="module")
def page(root):
    return BeautifulSoup((root / "_build/html/book/01_lamps.html").read_text(encoding="utf-8"), "html.parser").article


def link(page, text):
    [found] = [a for a in page.select("a") if a.text == text]
    return found


def test_quotes_with_a_lead_are_boxes(page):
    boxes = {box.p.text: box for box in page.select("div.admonition")}
    kinds = {title: set(box["class"]) - {"admonition"} for title, box in boxes.items()}
    assert kinds == {"Time": {"tip"}, "Predict first": {"hint"}, "Your guess and the outcome": {"note"}}
    assert [p.text.strip() for p in boxes["Predict first"].select("p")] == ["Predict first", "Will it shine?", "Two paragraphs."]
    assert [quote.text.strip() for quote in page.select("blockquote")] == ["A quote without a lead."]


def test_links_to_entries_show_them(page):
    cited = link(page, "Furlanello et al. (2018)")
    assert cited["href"] == "bibliography.html#furlanello2018born"
    assert cited["data-entry"] == "Furlanello et al. (2018). Born Again Neural Networks. Later & longer."
    first, in_an_output = [a for a in page.select("a") if a.text == "teacher"]
    assert first["href"] == in_an_output["href"] == "glossary.html#teacher"
    assert first["data-entry"] == in_an_output["data-entry"] == "teacher: A network that teaches others."
    assert link(page, "McNemar’s test")["data-entry"].endswith(": Of coins.")
    assert link(page, "the other chapter")["href"] == "02_ban_densenet.html"


def test_numbered_things_are_linked(root, page):
    assert page.select_one("#equation-1-1 .eqno").text.startswith("(1.1)") and "tag" not in page.text
    linked = [(a.text, a["href"]) for a in page.select("a.reference") if re.search(r"\d\.\d", a.text)]
    equation = "equation (1.1)", "#equation-1-1"
    assert linked == [equation, ("figure 1.2", "#figure-1-2"), ("Table 1.1", "#table-1-1"), equation]
    assert all(page.select(address) for _, address in linked)


def test_solutions_are_closed_and_highlighted(page):
    hint, solution = (details for details in page.select("details") if details.summary.text in ("Hint", "Solution"))
    assert hint.strong.text == "switch" and "open" not in solution.attrs
    assert solution.select_one(".highlight .nb").text == "print"


def test_hidden_code_folds(page):
    folded = page.select("details.hide pre")
    assert len(folded) == 1 and "subplots" in folded[0].text


def test_figures_follow_the_theme(page):
    figure = page.select_one("figure#figure-1-2")
    pictures = figure.select("svg")
    assert [picture["role"] for picture in pictures] == ["img", "img"] and not figure.select("img")
    assert [picture["aria-label"] for picture in pictures] == [f"A lamp, drawn twice (panel {n} of 2)" for n in (1, 2)]
    text = str(figure)
    assert "currentColor" in text and style.INK not in text and style.PAPER not in text
    ids = [element["id"] for element in page.select("[id]")]
    assert len(ids) == len(set(ids)) > 10, "two pictures share an id"
    used = re.findall(r'url\(#([^)"]+)\)|href="#([\w-]*svg[\w-]+)"', text)
    assert used and {one or other for one, other in used} <= set(ids)


def test_explorers_come_alive_by_one_script(root, page):
    assert len(page.select(".ban-explorer[data-kind=loss]")) == 2
    [script] = page.select("script[type=module]")
    assert "export function mount" in script.text and not re.search(r"^import ", script.text, flags=re.M)
    assert book.WIDGET not in str(page) and "Run this cell in Jupyter" not in page.text


def test_a_page_loads_little(root):
    static = root / "_build/html"
    for page in static.glob("book/*.html"):
        text = page.read_text(encoding="utf-8")
        assets = set(re.findall(r'(?:href|src)="\.\./(_static/[^"?]+)', text))
        weights = {asset: (static / asset).stat().st_size for asset in assets}
        assert sum(weights.values()) < 400_000, weights
        assert not re.search("fontawesome|searchindex", text)
    search = (static / "search.html").read_text(encoding="utf-8")
    assert "searchindex.js" in search and "searchtools.js" in search


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_is_whole_quiet_and_open_to_all(browser, root, width, theme):  # noqa: F811
    assert findings(browser, root / "_build/html/book/01_lamps.html", width, theme) == {}
