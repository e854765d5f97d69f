"""The chapters as they are stored: what a reader meets in Jupyter, and what papermill can do with them."""

import importlib
import json
import os
import re
import statistics
import subprocess
import sys

import pytest
import yaml
from books import ROOT, solution_code, solutions

from banlib import book

CHAPTERS = book.find_chapters(ROOT)
EACH = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)


def cells_of(chapter, kind):
    cells = json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]
    return [("".join(cell["source"]), cell["metadata"]) for cell in cells if cell["cell_type"] == kind]


def prose_of(chapter):
    return "\n\n".join(source for source, _ in cells_of(chapter, "markdown"))


def test_table_of_contents_has_every_page_once():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [toc["root"]] + [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    stored = [p for p in (ROOT / "book").iterdir() if p.suffix in (".md", ".ipynb")]
    assert sorted(listed) == sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in stored)
    assert [chapter.name for chapter in CHAPTERS] == sorted(chapter.name for chapter in CHAPTERS)


@EACH
def test_starts_with_imports_and_parameters(chapter):
    code = cells_of(chapter, "code")
    imports = [line for line in code[0][0].splitlines() if line and not line.startswith(" ")]
    assert all(re.match(r"(import|from) ", line) for line in imports)
    assert code[1][1]["tags"] == ["parameters"]
    assert {"profile", "network", "gens", "seeds"} <= set(chapter.parameters)
    assert chapter.parameters["profile"] == "digits", "the default is what any machine can run"


@EACH
def test_cells_are_short(chapter):
    lengths = [len(source.splitlines()) for source, _ in cells_of(chapter, "code")]
    assert statistics.median(lengths) <= 8 and max(lengths) <= 25


@EACH
def test_has_what_a_chapter_has(chapter):
    """The plan of CONTRIBUTING.md: a guess to make, the paper beside what was measured, exercises with solutions."""
    prose = prose_of(chapter)
    for expected in ("Predict first", "## Paper beside measured", "## What did not reproduce?", "## Exercises",
                     "## Further reading", "## Run it yourself", "{cite", "papermill book/"):  # fmt: skip
        assert expected in prose, expected
    exercises = re.findall(r"\{exercise\}.*\n:label: (\S+)", prose)
    assert len(exercises) == 3 and exercises == list(solutions(chapter.path))
    assert len(re.findall(r"\{cite", prose.partition("## Further reading")[2])) >= 3


@EACH
def test_every_solution_has_a_hint_and_code(chapter):
    """test_pages.py runs the code."""
    for exercise, text in solutions(chapter.path).items():
        assert "\n*Hint:* " in text and text.index("*Hint:*") < text.index(":::{code-block} python"), exercise
        assert all(code.strip() for code in solution_code(text)) and solution_code(text), exercise


@EACH
def test_no_measured_number_is_typed_into_the_prose(chapter):
    prose = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$", "", prose_of(chapter), flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+(?:\s*(?:%|points?|percent|nats|seconds|minutes|hours))?", prose) == []


def test_no_measured_number_is_typed_into_the_pages():
    for path in (ROOT / "book").glob("*.md"):
        prose = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"\d+\.\d+", prose) == [], path.name


@pytest.fixture(scope="module")
def first_cells():
    """{chapter name: the code of its imports cell, of its parameters cell, and of the cell that checks them}."""
    return {chapter.name: [source for source, _ in cells_of(chapter, "code")[:3]] for chapter in CHAPTERS}


@EACH
@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"gens": -1}, "gens must be an integer from 0 to 20, got -1"),
        ({"gens": "three"}, "gens must be an integer from 0 to 20, got 'three'"),
        ({"gens": 10**9}, "gens must be an integer from 0 to 20, got 1000000000"),
        ({"gens": float("nan")}, "gens must be an integer from 0 to 20, got nan"),
        ({"gens": None}, "gens must be an integer from 0 to 20, got None"),
        ({"seeds": []}, "seeds must be a count from 1 to 100 or a list"),
        ({"network": "DenseNet-90-60"}, "unknown network 'DenseNet-90-60'; did you mean 'DenseNetBC-90-60'?"),
        ({"profile": "cifar"}, "unknown profile 'cifar'; did you mean "),
    ],
)
def test_bad_parameters_end_in_one_sentence_before_anything_exists(chapter, first_cells, given, sentence, tmp_path):
    imports, parameters, check = first_cells[chapter.name]
    names = {}
    exec(imports + "\n" + parameters, names)
    names |= given
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        exec(check, names)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(os.environ["BANLIB_HOME"]), "something was created"


@pytest.mark.parametrize("folder", [".", "book"])
def test_papermill_as_typed_answers_in_one_sentence(folder, tmp_path):
    """From the repository root and from inside book/, with the output elsewhere."""
    chapter = os.path.relpath(ROOT / "book/02_ban_densenet.ipynb", ROOT / folder)
    result = subprocess.run(
        [sys.executable, "-m", "papermill", chapter, tmp_path / "out.ipynb", "-p", "gens", "three", "-k", "python3"],
        cwd=ROOT / folder, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode != 0
    assert "gens must be an integer from 0 to 20, got 'three'" in result.stderr
    assert (tmp_path / "out.ipynb").exists() and not os.path.exists(os.environ["BANLIB_HOME"])


# The table of notation, the glossary and the bibliography


@pytest.mark.parametrize("page", ["notation", "glossary"])
def test_every_code_name_in_the_reference_exists(page):
    text = (ROOT / f"book/{page}.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(?:banlib\.)?([a-z]+(?:\.\w+)+)`", text))
    assert len(names) > 12
    for name in names:
        module, *parts = name.split(".")
        thing = importlib.import_module(f"banlib.{module}")
        for part in parts:
            assert hasattr(thing, part) or part in getattr(thing, "__annotations__", {}), name
            thing = getattr(thing, part, None)


def test_the_glossary_is_sorted_and_says_where_each_term_belongs():
    text = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S.*)\n((?:  .+\n)+)", text.partition("{glossary}")[2], flags=re.M)
    terms = [term for term, _ in entries]
    assert len(terms) > 40 and terms == sorted(set(terms), key=str.lower)
    for term in re.findall(r"\{term\}`(?:[^`<]+<)?([^`>]+)>?`", text):
        assert term in terms, term


def test_every_reference_is_annotated_and_every_citation_exists():
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text(encoding="utf-8"), flags=re.M)
    assert len(set(keys)) == len(keys)
    listed = re.findall(r"^\{cite:t\}`(\w+)`\n: ", (ROOT / "book/bibliography.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(listed) == sorted(keys)
    for chapter in CHAPTERS:
        cited = {key for group in re.findall(r"\{cite[:a-z]*\}`([^`]+)`", prose_of(chapter)) for key in group.split(",")}
        assert {key.strip() for key in cited} <= set(keys), chapter.name
