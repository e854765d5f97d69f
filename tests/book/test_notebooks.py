"""The chapters as they are stored: what a reader meets in Jupyter, and what papermill can do with them."""

import ast
import importlib.util
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import types

import pytest
import yaml
from books import ROOT, solution_code, solutions

import banlib
from banlib import book, loop

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
def test_starts_with_its_question_then_parameters_their_check_and_imports(chapter):
    cells = json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]
    assert [cell["cell_type"] for cell in cells[:4]] == ["markdown", "code", "code", "code"]
    question, parameters, check, imports = ("".join(cell["source"]) for cell in cells[:4])
    assert re.match(r"# .+\?\n", question) and "> **Predict first.** " in question
    assert [cell["metadata"].get("tags") for cell in cells[1:4]] == [["parameters"], ["hide-input"], ["hide-input"]]
    assert {"profile", "network", "seeds"} <= set(chapter.parameters) and "profile = " in parameters
    assert chapter.parameters["profile"] == "digits", "the default is what any machine can run"
    imported = [node for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {node.module for node in imported} <= {"banlib.runs.parameters", "banlib.paper.printed"}
    first = next(line for line in imports.splitlines() if re.match("[a-z]", line))
    assert re.match("import|from", first)
    code = ["".join(cell["source"]) for cell in cells[4:] if cell["cell_type"] == "code"]
    assert not any(re.search(r"^(import|from) .*banlib", source, re.M) for source in code), "imports stand together"


@EACH
def test_the_first_cell_says_what_to_install_where_the_library_is_missing(chapter):
    code = "".join(json.loads(chapter.path.read_text(encoding="utf-8"))["cells"][2]["source"])
    script = f"import sys; sys.modules['banlib'] = None\n{code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ") and "run `pip install .` (README.md)" in last


@EACH
def test_cells_are_short(chapter):
    lengths = [len(source.splitlines()) for source, _ in cells_of(chapter, "code")]
    assert statistics.median(lengths) <= 8 and max(lengths) <= 25
    shown = [source for source, about in cells_of(chapter, "code") if not about.get("jupyter")]  # others are folded
    assert [line for source in shown for line in source.splitlines() if len(line) > 88] == [], "a page shows 88 characters"


@EACH
def test_is_plain_markdown_that_any_front_end_shows(chapter):
    """No directive, role or label of one renderer; only the tags that the builder knows; no stored output."""
    prose = re.sub(r"^```python\n.*?^```$", "", prose_of(chapter), flags=re.DOTALL | re.MULTILINE)
    for raw in (r"^ *```+ *\{", r"^ *:::", r"\{[a-z][\w:+.-]*\}`", r"^\([\w-]+\)=", r"\]\(\)", r"^:\w+:", r"\[\]\("):
        assert not re.search(raw, prose, re.M), raw
    for lead in re.findall(r"^> \*\*(.+?)\*\*", prose, re.M):
        assert lead in ("Time.", "Predict first.", "Your guess and the outcome.", "What you learned.", "Note.", "Warning."), lead
    for cell in json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]:
        assert set(cell["metadata"]) <= {"tags", "jupyter"} and not cell.get("outputs")
        assert set(cell["metadata"].get("tags", [])) <= {"parameters", "hide-input", "remove-cell", "remove-stderr"}
        folded = {"hide-input", "remove-cell"} & set(cell["metadata"].get("tags", []))  # on the page; so also in Jupyter
        assert cell["metadata"].get("jupyter") == ({"source_hidden": True} if folded else None)
    assert len(re.findall("^<details>", prose, re.M)) == len(re.findall("^</details>$", prose, re.M)) == 6


@EACH
def test_links_lead_to_entries_terms_and_files(chapter):
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", prose_of(chapter)):
        name, _, fragment = target.partition("#")
        page = ROOT / "book" / name
        assert name.startswith("https://") or page.exists(), target
        assert not fragment or fragment in anchors(page), (text, target)
        assert name != "bibliography.md" or re.search(r"\(\d{4}\)$", text), text


def anchors(page):
    """What a link to a page of the book can name: its explicit anchors, and its headings as code hosts write them."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"></a>', text))


@EACH
def test_has_what_a_chapter_has(chapter):
    """The plan of CONTRIBUTING.md: a guess to make, the paper beside what was measured, exercises with solutions."""
    prose = prose_of(chapter)
    for expected in ("## Paper beside measured", "## What did not reproduce?", "## Your guess and the outcome",
                     "## What you learned", "## Exercises", "## Further reading", "## Run it yourself",
                     "](bibliography.md#furlanello", "papermill book/"):  # fmt: skip
        assert expected in prose, expected
    kinds = re.findall(r"^### Exercise (\d)\.(\d) \((\w+)\): ", prose, re.M)
    assert [kind[1:] for kind in kinds] == [("1", "easy"), ("2", "code"), ("3", "research")]
    assert {kind[0] for kind in kinds} == {str(int(chapter.name[:2]))} and len(solutions(chapter.path)) == 3
    reading = prose.partition("## Further reading")[2].partition("\n## ")[0]
    assert len(re.findall(r"^- .*\]\(bibliography\.md#", reading, re.M)) >= 3


@EACH
def test_headings_are_questions(chapter):
    fixed = ("Paper beside measured", "Your guess and the outcome", "What you learned", "Exercises", "Further reading",
             "Run it yourself")  # fmt: skip
    for heading in re.findall(r"^##+ (.+)$", prose_of(chapter), re.M):
        assert heading in fixed or heading.endswith("?") or heading.startswith("Exercise "), heading


@EACH
def test_every_solution_has_a_hint_and_code(chapter):
    """test_pages.py runs the code."""
    for exercise, text in solutions(chapter.path).items():
        assert text.count("<summary>Hint</summary>\n\n") == 1, exercise
        assert text.index("<summary>Hint</summary>") < text.index("<summary>Solution</summary>"), exercise
        assert all(code.strip() for code in solution_code(text)) and solution_code(text), exercise


REFERENCES = (
    r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$]*\$|(?:[Ee]quations?|[Ff]igures?|[Tt]ables?|Exercise) \(?\d\.\d+|arXiv:\d+\.\d+"
)


@EACH
def test_no_measured_number_is_typed_into_the_prose(chapter):
    prose = re.sub(REFERENCES, "", prose_of(chapter), flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+(?:\s*(?:%|points?|percent|nats|seconds|minutes|hours))?", prose) == []


def test_no_measured_number_is_typed_into_the_pages():
    for path in (ROOT / "book").glob("*.md"):
        prose = re.sub(REFERENCES, "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
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


def test_chapter_2_prints_the_ten_lines_and_the_very_file_of_the_loop():
    code = [source for source, _ in cells_of(CHAPTERS[1], "code")]
    printed, shown = [source for source in code if "getsource" in source], []
    names = {"inspect": inspect, "loop": loop, "show": types.SimpleNamespace(say=shown.append)}
    for source in printed:
        exec(source, names)
    ten, whole = (text.removeprefix("```python\n").removesuffix("```") for text in shown)
    assert ten.startswith("def born_again(") and len(ten.splitlines()) <= 11 and ten in whole
    assert whole == (ROOT / "banlib/loop.py").read_text(encoding="utf-8")


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


def test_the_glossary_is_sorted_and_defines_each_term():
    text = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## (.+)\n\n((?:.+\n)+)", text, flags=re.M)
    terms = [term for term, _ in entries]
    assert len(terms) > 40 and terms == sorted(set(terms), key=str.lower) == re.findall("^## (.+)$", text, re.M)
    assert not re.search(r"[$`]", "".join(terms)), "a heading is an anchor"
    assert set(re.findall(r"\(glossary\.md#([^)]+)\)", text)) <= anchors(ROOT / "book/glossary.md")


def test_every_reference_is_annotated_and_every_citation_exists():
    text = (ROOT / "book/bibliography.md").read_text(encoding="utf-8")
    entries = re.findall(r'^<a id="([a-z]+\d{4}[a-z]+)"></a>\*\*.+ \((\d{4})\)\.\*\* [^*]+,\s\*[^*]+\*', text, re.M)
    keys = [key for key, _ in entries]
    assert len(set(keys)) == len(keys) == len(re.findall("<a id=", text)) > 15
    assert all(year in key for key, year in entries)
    cited = set()
    for path in (ROOT / "book").glob("*"):
        if path.suffix in (".md", ".ipynb"):
            cited |= set(re.findall(r"bibliography\.md#(\w+)", path.read_text(encoding="utf-8")))
    assert cited <= set(keys)
