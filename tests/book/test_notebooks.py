"""The chapters as they are stored: what a reader meets in Jupyter, and what papermill can do with them."""

import ast
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys

import pytest
import yaml
from books import ROOT, solution_code, solutions

import banlib
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
def test_starts_with_parameters_their_check_and_imports(chapter):
    code = cells_of(chapter, "code")
    assert [tags.get("tags") for _, tags in code[:3]] == [["parameters"], None, None]
    assert {"profile", "network", "seeds"} <= set(chapter.parameters)
    assert chapter.parameters["profile"] == "digits", "the default is what any machine can run"
    imported = [node for node in ast.walk(ast.parse(code[1][0])) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {node.module for node in imported} <= {"banlib.runs.parameters", "banlib.paper.printed"}
    later = [line for line in code[2][0].splitlines() if re.match("[a-z]", line)]
    assert re.match("import|from", later[0])
    assert not any(re.match(r"(import|from) .*banlib", source) for source, _ in code[3:]), "imports stand together"


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
        ({"rows": "DenseNetBC-16-8"}, "'DenseNetBC-16-8' is no row of the paper's tables"),
    ],
)
def test_bad_parameters_end_in_one_sentence_before_anything_exists(chapter, given, sentence):
    if not set(given) <= set(chapter.parameters):
        return  # the chapter has no such parameter, so there is nothing to check
    parameters, check = (source for source, _ in cells_of(chapter, "code")[:2])
    names = {}
    exec(parameters, names)
    names |= given
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        exec(check, names)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(os.environ["BANLIB_HOME"]), "something was created"


def test_parameters_are_checked_before_the_slow_imports():
    cells = {chapter.name: [source for source, _ in cells_of(chapter, "code")[:2]] for chapter in CHAPTERS}
    slow = ("torch", "numpy", "pandas", "scipy", "matplotlib", "ipywidgets")
    script = f"""
import sys
for parameters, check in {list(cells.values())}:
    exec(check, (exec(parameters, names := {{}}), names)[1])
print([name for name in {slow} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "folder, name, given, sentence",
    [
        (".", "02_ban_densenet", ("gens", "three"), "gens must be an integer from 0 to 20, got 'three'"),
        ("book", "02_ban_densenet", ("gens", "three"), "gens must be an integer from 0 to 20, got 'three'"),
        (".", "05_why_it_works", ("gens", "3"), "unknown parameter 'gens'; "),
        (".", "01_teacher", ("sedes", "3"), "unknown parameter 'sedes'; did you mean 'seeds'? "),
    ],
)
def test_papermill_as_typed_answers_in_one_sentence(folder, name, given, sentence, tmp_path):
    """From the repository root and from inside book/, with the output elsewhere."""
    chapter, output = os.path.relpath(ROOT / f"book/{name}.ipynb", ROOT / folder), tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", chapter, output, "-p", *given, "-k", "python3"]
    result = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True)
    assert result.returncode != 0
    assert sentence in result.stderr
    assert output.exists() and not os.path.exists(os.environ["BANLIB_HOME"])
    cells = [cell for cell in json.loads(output.read_text())["cells"] if cell["cell_type"] == "code"]
    [first] = [cell["outputs"] for cell in cells if cell.get("outputs")]
    assert sentence in str(first), "the first output of the chapter says it"


def test_chapter_2_prints_the_very_file_of_the_loop():
    code = [source for source, _ in cells_of(CHAPTERS[1], "code")]
    imports, [printed] = code[2], [source for source in code if "getsource" in source]
    names = {"device": "cpu"}
    exec(imports, names)
    shown = eval(printed, names)
    assert shown.data == f"```python\n{(ROOT / 'banlib/loop.py').read_text(encoding='utf-8')}```"


# The table of notation, the glossary and the bibliography


@pytest.mark.parametrize("page", ["notation", "glossary"])
def test_every_code_name_in_the_reference_exists(page):
    text = (ROOT / f"book/{page}.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(?:banlib\.)?([a-z]+(?:\.\w+)+)`", text))
    assert len(names) > 12
    for name in names:
        assert exists(name), name


def exists(name):
    """Is there such a module of banlib, or such a thing in one?"""
    thing = banlib
    for part in name.split("."):
        if hasattr(thing, "__path__") and importlib.util.find_spec(f"{thing.__name__}.{part}"):
            thing = importlib.import_module(f"{thing.__name__}.{part}")
        elif hasattr(thing, part) or part in getattr(thing, "__annotations__", {}):
            thing = getattr(thing, part, None)
        else:
            return False
    return True


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
