"""book/extensions/library.py: the order of the modules, and plain docstrings that become reStructuredText."""

import ast
import sys

import docutils.core
from books import ROOT
from bs4 import BeautifulSoup

sys.path.insert(0, str(ROOT / "book/extensions"))
import library  # noqa: E402


def rendered(docstring, what="function"):
    """What a reader sees of a docstring; docutils raises at its first warning."""
    lines = docstring.splitlines()
    library.make_safe(None, what, "name", None, None, lines)
    settings = {"halt_level": 2, "report_level": 5}
    page = docutils.core.publish_string("\n".join(lines), writer_name="html5", settings_overrides=settings)
    return BeautifulSoup(page, "html.parser").main


def test_signs_of_restructuredtext_are_text():
    plain = "Ens*2 of a_ and |b| times temperature**2, MatchWideResNet-2-1@DenseNetBC-40-12, a\\n."
    page = rendered(plain)
    assert page.text.strip() == plain and not page.find("a")


def test_names_are_code_and_indented_blocks_stay():
    page = rendered("Sizes of `run_id`:\n\n    one  *two*\n\n    three\nAnd more.")
    assert page.find(class_="docutils literal").text == "run_id"
    assert page.pre.text.strip() == "one  *two*\n\nthree" and page.find_all("p")[-1].text == "And more."


def test_arguments_results_and_errors_begin_a_paragraph():
    sentence = "They are recorded and not\nhashed: a word in a sentence."
    page = rendered(f"What it does,\nfully.\nx, y: floats.\n{sentence}\nRaises ValueError.")
    assert [p.text.split()[0] for p in page.find_all("p")] == ["What", "x,", "Raises"]


def test_of_a_module_the_first_paragraph_says_what_it_is_for():
    assert rendered("Lamps\nand light.\n\n    a plan\n", what="module").text.split() == ["Lamps", "and", "light."]


def test_each_module_stands_below_those_it_imports():
    names = library.modules()
    assert {"banlib.loop", "banlib.models", "banlib.models.densenet", "banlib.runs.fit", "banlib.book"} <= set(names)
    assert not any(name.startswith("banlib.cli") for name in names)
    for place, name in enumerate(names):
        path = ROOT / (name.replace(".", "/") + ".py")
        for node in ast.walk(ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in set(names) - {name}:
                assert names.index(node.module) < place, (name, node.module)
