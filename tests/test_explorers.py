"""Explorers: both layers show what the drawing function draws for the values of the sliders. Tables that sort."""

import base64
import json
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from banlib.explorers import Explorer
from banlib.explorers.tables import SortableTable


def explorer(**choices):
    drawn = []

    def draw(**values):
        drawn.append(values)
        return plt.figure(figsize=(0.3, 0.3))

    choices = choices or {"generation": [0, 1], "seeds": [2, 4, 8]}
    return Explorer(draw, lambda **values: f"<alt> of {values}", choices, {"seeds": 4} if "seeds" in choices else None), drawn


def test_the_page_holds_every_frame_in_the_order_the_script_counts():
    found, drawn = explorer()
    page = BeautifulSoup(found.page(), "html.parser")
    assert drawn == [{"generation": g, "seeds": s} for g in (0, 1) for s in (2, 4, 8)], "the last slider turns fastest"
    data = json.loads(page.find("script", type="application/json").string)
    assert [alt for alt, _ in data["frames"]] == [f"<alt> of {values}" for values in drawn]
    assert all(base64.b64decode(raw).startswith(b"\x89PNG") for _, raw in data["frames"])
    sliders = page.find_all("input", type="range")
    assert [(s["max"], s["value"]) for s in sliders] == [("1", "1"), ("2", "1")], "start: last generation, four seeds"
    assert all(slider.find_parent("label") for slider in sliders)
    assert page.img["alt"] == "<alt> of {'generation': 1, 'seeds': 4}" and page.noscript.text


def test_moving_a_widget_draws_its_values():
    found, drawn = explorer()
    sliders = found.widget().children[0].children
    sliders[1].value = 8
    assert drawn[-1] == {"generation": 1, "seeds": 8}
    assert sliders[1].options == (2, 4, 8), "no other value can be entered"


def test_a_front_end_can_choose_between_both_layers():
    bundle = explorer()[0]._repr_mimebundle_()
    assert "explorer" in bundle["text/html"] and "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.parametrize("values", [[], list(range(65))])
def test_absurd_choices_are_refused(values):
    with pytest.raises(ValueError, match="1 to 64 frames"):
        explorer(image=values)


def table(**columns):
    return BeautifulSoup(SortableTable(pd.DataFrame(columns), "Errors of <two> networks")._repr_html_(), "html.parser")


def test_a_table_has_a_caption_and_a_button_in_each_heading():
    page = table(network=["a", "b"], error=[1.005, -10.0], runs=pd.array([3, None], dtype="Int64"))
    assert page.caption.text == page.find(role="region")["aria-label"] == "Errors of <two> networks"
    assert [head.button.text for head in page.find_all("th", scope="col")] == ["network", "error", "runs"]
    assert all(head.button["type"] == "button" for head in page.find_all("th"))
    assert [[cell.text for cell in row.find_all("td")] for row in page.tbody.find_all("tr")] == [
        ["a", f"{1.005:.2f}", "3"],
        ["b", "\N{MINUS SIGN}10.00", "\N{EN DASH}"],
    ]
    numbers = [cell.get("data-value") for cell in page.select("td.number")]
    assert numbers == ["1.005", "3.0", "-10.0", None], "sorted by the whole value, not by what is shown of it"


def test_what_a_table_holds_is_text_and_not_markup():
    evil = '<script>alert("1")</script> & \'"'
    page = table(**{evil: [evil]})
    assert page.tbody.td.text == page.tbody.td["data-value"] == page.th.button.text == evil
    assert len(page.find_all("script")) == 1, "the table's own"


def test_a_sentence_may_take_several_lines():
    page = table(verdict=["undecided", "the paper's sign, less than half its share"])
    assert [cell.get("class") for cell in page.find_all("td")] == [None, ["long"]]


def test_two_tables_on_a_page_do_not_sort_each_other():
    first, second = table(x=[1]), table(x=[1])
    assert first.find(role="region")["id"] != second.find(role="region")["id"]
    assert first.find(role="region")["id"] in first.script.text


def test_yes_and_no_are_no_numbers():
    page = table(close=[True, False], ours=[1, 2])
    assert [cell.get("class") for cell in page.tbody.tr.find_all("td")] == [None, ["number"]]


def test_scripts_and_styles_travel_with_the_package():
    root = Path(__file__).parents[1]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for path in root.glob("banlib/*/*") if path.suffix in (".js", ".css", ".mplstyle")]
    assert len(files) >= 4
    for path in files:
        assert any(path.match(kind) for kind in data.get(f"banlib.{path.parent.name}", [])), path.name
