"""What chapters display: one output each, captioned, readable in HTML, LaTeX and plain text."""

import base64
import io
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from banlib.figures import show, style


@pytest.fixture
def shown(monkeypatch):
    """The displays of a test: (bundle, metadata)."""
    outputs = []

    def display(content, raw=False, metadata=None):
        bundle = content if raw else {"text/markdown": content.data}
        outputs.append((bundle, metadata or {}))

    monkeypatch.setattr(show, "display", display)
    return outputs


def panel(width=3.0):
    figure, axis = plt.subplots(figsize=(width, 2.0))
    axis.plot([0, 1], color=style.INK)
    axis.set_title("Both")
    return figure


FRAME = pd.DataFrame({
    "name": ["Teacher", "a < b & c_d"],
    "error": [10.575, -0.25],
    "ci95": [0.411, float("nan")],
    "gain": [0.5, float("nan")],
    "p": [1e-9, 0.4],
    "seeds": [8, 50_000],
    "clear": [True, False],
})  # fmt: skip


def cells(bundle):
    soup = BeautifulSoup(bundle["text/html"], "html.parser")
    return soup, [[cell.text for cell in row(["th", "td"])] for row in soup.table("tr")]


def test_a_figure_is_one_display_with_its_panels_and_its_source(shown):
    show.figure("2.3", [panel(), panel(4.0)], "What a < b shows.", "Two lines", "two cores, seed 0")
    [(bundle, metadata)] = shown
    assert set(bundle) == {"text/html", "text/plain"} and metadata == {}
    assert bundle["text/plain"] == "Figure 2.3. What a < b shows."
    figure = BeautifulSoup(bundle["text/html"], "html.parser").figure
    assert figure["class"] == ["ban-figure"] and figure["id"] == "figure-2-3"
    assert [image["alt"] for image in figure("img")] == ["Two lines (panel 1 of 2)", "Two lines (panel 2 of 2)"]
    assert [image["width"] for image in figure("img")] == ["288", "384"], "CSS pixels, 96 an inch"
    assert figure.figcaption.b.text == "Figure 2.3." and figure.small.text == "two cores, seed 0"
    assert "What a < b shows." in figure.figcaption.text
    assert plt.get_fignums() == []


def test_a_picture_is_svg_with_text_and_the_same_bytes_each_time(shown):
    first, second = show.svg(panel()).decode(), show.svg(panel()).decode()
    assert first == second
    assert ">Both</text>" in first and "Verdana" in first and style.INK in first
    assert "<dc:date>" not in first


def test_the_headline_can_be_taken_as_a_picture(shown):
    show.figure("2.1", [panel(), panel(4.0)], "Caption.", ["left", "right"], "", png=True)
    [(bundle, metadata)] = shown
    assert metadata == {"name": "headline"}
    assert 'alt="left"' in bundle["text/html"] and "<small>" not in bundle["text/html"]
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.size == (7 * 144, 2 * 144), "side by side"


def test_a_table_has_one_formatter_and_says_where_numbers_come_from(shown):
    show.table("2.1", FRAME, "Errors & more.", "seeds 0-7", {"gain": 1}, {"error": "ci95"}, signed=["gain"])
    [(bundle, _)] = shown
    soup, rows = cells(bundle)
    assert rows == [
        ["name", "error", "gain", "p", "seeds", "clear"],
        ["Teacher", "10.58 ± 0.41", "+0.5", "< 0.001", "8", "yes"],
        ["a < b & c_d", "\u22120.25", "—", "0.40", "50,000", "no"],
    ]
    assert [each["value"] for each in soup("data")] == ["10.575", "0.411", "0.5", "1e-09", "8", "-0.25", "0.4", "50000"]
    assert soup.figure["class"] == ["ban-table"] and soup.figure["id"] == "table-2-1"
    assert soup.figcaption.b.text == "Table 2.1." and soup.figcaption.small.text == "seeds 0-7"
    assert {head["scope"] for head in soup.thead("th")} == {"col"}
    assert [row.th["scope"] for row in soup.tbody("tr")] == ["row", "row"]
    scroller = soup.find(class_="ban-scroll")
    assert scroller["tabindex"] == "0" and scroller["aria-label"] == "Errors & more.", "scrolled by keys too"


def test_a_table_in_latex_and_plain_text_is_a_table(shown):
    show.table("2.1", FRAME, "Errors.", "", intervals={"error": "ci95"})
    [(bundle, _)] = shown
    assert bundle["text/plain"].startswith("Table 2.1. Errors.\n") and "10.58 ± 0.41" in bundle["text/plain"]
    latex = bundle["text/latex"]
    assert r"10.58 $\pm$ 0.41" in latex and r"a < b \& c\_d" in latex and "$-$0.25" in latex and "lrrrrl" in latex
    assert not re.search("nan|object at|<data", latex + bundle["text/plain"], re.I)


def test_the_index_is_shown_if_it_has_a_name(shown):
    frame = pd.DataFrame({("paper", "BAN"): [1.0, None]}, index=pd.Index(["x", "y"], name="network"))
    show.table("1.1", frame, "Caption.", "")
    show.table("1.2", frame.rename_axis(None), "Caption.", "")
    assert cells(shown[0][0])[1] == [["network", "paper BAN"], ["x", "1.00"], ["y", "—"]]
    assert cells(shown[1][0])[1] == [["paper BAN"], ["1.00"], ["—"]]


def test_sentences_and_boxes_are_markdown(shown):
    show.say("It is **6.38**.")
    show.box("Your guess and the outcome", "First.\n\nSecond.")
    assert [bundle["text/markdown"] for bundle, _ in shown] == [
        "It is **6.38**.",
        "> **Your guess and the outcome.** First.\n> \n> Second.",
    ]
