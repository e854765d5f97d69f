"""What a newcomer meets first: set-up files that agree with each other, commands that exist, a clean repository."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
CONDA_NAMES = {
    "jupyter-client": "jupyter_client",
    "matplotlib": "matplotlib-base",
    "torch": "pytorch",
    "ray": "ray-core",
}  # conda-forge's
LOCK = (ROOT / "requirements.lock").read_text()
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def locked():
    """Name -> versions pinned (one, or several under different markers)."""
    pins = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", LOCK, flags=re.M):
        pins.setdefault(name, []).append(version)
    return pins


def tracked_files():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# pyproject.toml, requirements.lock, environment.yml


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_lock_pins_every_dependency_within_its_range(requirement):
    assert any(spec.operator == ">=" for spec in requirement.specifier), "a dependency without a lower bound"
    for version in locked()[requirement.name]:
        assert requirement.specifier.contains(version)


def test_lock_is_hashed_and_names_no_address():
    entries = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(entries) > len(REQUIREMENTS)
    for line in entries:
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( ; .+)? \\", line), line
    hashed = re.findall(r"^[a-z0-9._-]+==.*\n +--hash=sha256:[0-9a-f]{64}", LOCK, flags=re.M)
    assert len(hashed) == len(entries)
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK


def test_lock_builds_the_package_without_fetching_anything():
    """`pip install --no-build-isolation` needs the build backend among the locked packages."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    for requirement in map(Requirement, build["requires"]):
        assert all(requirement.specifier.contains(version) for version in locked()[requirement.name])


def test_environment_yml_has_the_same_ranges():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(entry.partition(" ")[::2] for entry in listed if isinstance(entry, str))
    pip = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    assert conda.pop("python") == str(PROJECT["requires-python"]).replace(" ", "")
    assert conda.pop("pip") == ""
    axe = next(r for r in REQUIREMENTS if r.name == "axe-core-python")  # not on conda-forge
    assert pip == [[str(axe), "--editable ."]]
    expected = {CONDA_NAMES.get(r.name, r.name): set(map(str, r.specifier)) for r in REQUIREMENTS if r != axe}
    assert {name: set(bounds.split(",")) for name, bounds in conda.items()} == expected


def test_python_range_is_one_everywhere():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in MAKEFILE
    assert "--python-version 3.11" in MAKEFILE


def test_every_import_is_declared():
    distributions = importlib.metadata.packages_distributions()
    declared = {r.name for r in REQUIREMENTS}
    for file in sorted(ROOT.glob("banlib/**/*.py")) + sorted(ROOT.glob("tests/**/*.py")):
        for name in imports(file):
            top = name.partition(".")[0]
            folders = (file.parent, ROOT / "tests", ROOT / "book/extensions")
            own = top == "banlib" or any((folder / f"{top}.py").exists() for folder in folders)
            if own or top in sys.stdlib_module_names:
                continue
            candidates = {d.lower().replace("_", "-") for d in distributions[top]}
            assert candidates & declared, f"{file.relative_to(ROOT)} imports {name}, which pyproject.toml does not list"


def imports(file):
    """Names of the modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


# The house: rooms, imports, budgets (the picture is in CONTRIBUTING.md)

SUBJECT = ("names", "models", "objectives", "views", "teachers", "loop", "ensemble")
FLOORS = {**dict.fromkeys(SUBJECT, 0), "runs": 1, "paper": 2, "figures": 3, "explorers": 3, "book": 4, "cli": 5}
FILES = sorted(ROOT.glob("banlib/**/*.py"))
SUBJECT_LINES, FILE_LINES, FUNCTION_LINES, LINE_LENGTH = 1000, 350, 60, 100
LIBRARY_LINES = 9026  # where it stands; the plan is 5,000


def room(file):
    return file.relative_to(ROOT / "banlib").parts[0].removesuffix(".py")


def lines(files):
    return sum(len(file.read_text().splitlines()) for file in files)


def test_every_file_has_a_room():
    assert {room(file) for file in FILES} == set(FLOORS) | {"__init__", "__main__"}
    pictured = set(re.findall(r"^\| `(\w+)(?:\.py|/)`", CONTRIBUTING, flags=re.M))
    assert pictured == set(FLOORS), "the table of rooms in CONTRIBUTING.md and the folders differ"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_nothing_from_above(file):
    own = room(file)
    for name in imports(file):
        top, _, inner = name.partition(".")
        other = inner.split(".")[0]
        if top == "banlib" and other in FLOORS and own in FLOORS and other != own:
            below = FLOORS[other] < FLOORS[own] or FLOORS[other] == FLOORS[own] == 0
            assert below or (own, other) == ("explorers", "figures"), f"{own} imports {other}"
        if own in SUBJECT:
            allowed = top in ("banlib", "torch") or top in sys.stdlib_module_names
            assert allowed, f"the subject imports {name}: it has torch and itself alone"


def test_the_subject_opens_no_file():
    for file in FILES:
        if room(file) in SUBJECT:
            used = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
            assert not used & {"open", "Path", "os", "shutil", "tempfile"}, file.name


def test_the_house_keeps_to_its_budgets():
    assert lines(file for file in FILES if room(file) in (*SUBJECT, "__init__")) <= SUBJECT_LINES
    assert lines(FILES) <= LIBRARY_LINES
    for file in FILES:
        text = file.read_text()
        assert len(text.splitlines()) <= FILE_LINES, file.name
        assert max(map(len, text.splitlines()), default=0) <= LINE_LENGTH, file.name
        assert "fmt: skip" not in text and "fmt: off" not in text, file.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{file.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("command", [("format", "--check"), ("check",)], ids=" ".join)
def test_ruff_finds_nothing(command):
    folders = ["banlib", "benchmarks", "tests", "book/extensions"]
    result = subprocess.run([sys.executable, "-m", "ruff", *command, *folders], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_naming_what_a_user_typed_needs_no_torch():
    """A bad value is refused before anything slow is imported: by papermill, the command line and the builder."""
    code = """
import sys
from banlib.runs.parameters import check_parameters
check_parameters("digits", "DenseNetBC-40-12", 3, "4,7")
print([name for name in ("torch", "numpy", "pandas", "scipy", "matplotlib") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert told.strip() == "[]"


def test_a_wheel_holds_all_that_the_library_needs(tmp_path):
    """As after `pip install .`: the records, and what explorers and figures read, away from the checkout."""
    source = tmp_path / "source"
    for name in ("banlib", "results", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, tmp_path, source], check=True, capture_output=True)
    [built] = tmp_path.glob("*.whl")
    shutil.unpack_archive(built, tmp_path / "installed", "zip")
    python = {file.relative_to(ROOT).as_posix() for file in FILES}
    assert python <= {f.relative_to(tmp_path / "installed").as_posix() for f in (tmp_path / "installed").rglob("*.py")}
    code = """
from banlib.runs.lineage import RESULTS, recorded
from banlib import explorers
from banlib.figures import style
style.style()
print(RESULTS, len(recorded()), len(list((RESULTS / "benchmarks").iterdir())) > 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONNOUSERSITE": "1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    folder, count, benchmarks = told.stdout.strip().rsplit(" ", 2)
    assert Path(folder).is_relative_to(tmp_path) and int(count) >= 1 and benchmarks == "True"


# README and CONTRIBUTING say what is there


def test_readme_commands_are_targets():
    for target in ("book", "test", "lab"):
        assert f"make {target}\n" in README
        assert re.search(rf"^{target}: \.venv\b", MAKEFILE, flags=re.M)
    for target in set(re.findall(r"`make (\w+)", README + CONTRIBUTING)):
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.M), f"make {target}"


def test_readme_papermill_line_fits_its_chapter():
    notebook, name = re.search(r"\npapermill (book/02_ban_densenet\.ipynb) out\.ipynb -p (gens) 3\n", README).groups()
    assert name in parameter_names(ROOT / notebook)
    for chapter in NOTEBOOKS:
        assert {"profile", "seeds"} <= parameter_names(chapter), chapter.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_obeys_each_of_its_parameters(notebook):
    """Each name is used by the chapter's own code, beside the cell that checks it."""
    cells = json.loads(notebook.read_text())["cells"]
    used = {n.id for c in cells if c["cell_type"] == "code" and "parameters" not in c["metadata"].get("tags", [])
            for n in ast.walk(ast.parse("".join(c["source"]))) if isinstance(n, ast.Name)}  # fmt: skip
    assert parameter_names(notebook) <= used


def parameter_names(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    [source] = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    return {target.id for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets}


def test_readme_names_profiles_variables_and_commands_that_exist():
    from banlib.cli.group import group
    from banlib.runs.recipe import PROFILES

    assert set(re.findall(r"-p profile ([\w-]+)", README)) <= set(PROFILES)
    source = "".join(path.read_text() for path in ROOT.glob("banlib/**/*.py"))
    variables = set(re.findall(r"\bBANLIB_[A-Z]+\b", README + CONTRIBUTING))
    assert {"BANLIB_HOME", "BANLIB_DATA"} <= variables
    assert all(f'"{variable}"' in source for variable in variables)
    told = set(re.findall(r"`banlib (\w+)", README))
    assert told == set(group.commands), "the README's command overview and `banlib --help` differ"


TEXTS = [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *ROOT.glob("book/*.md"), *NOTEBOOKS]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_commands_and_options_that_a_text_names_exist(path):
    import click

    from banlib.cli.group import group

    def options(command):
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        own = {word for each in command.params for word in (*each.opts, *each.secondary_opts)}
        return own.union({"--help"}, *map(options, inner))

    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    others = {word for file in ROOT.glob("benchmarks/*.py") for word in re.findall(r'"(--[a-z-]+)"', file.read_text())}
    seen = set()
    for code in re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.S):
        for first, second, rest in re.findall(r"(?<![\w/.])(?<!from )banlib ([a-z]+)(?: ([a-z]+)\b)?([^`\n|]*)", code):
            seen.add(first)
            command = group.commands[first]
            command = command.commands[second] if isinstance(command, click.Group) and second else command
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= options(command) or first == "lab", code
        for option in re.findall(r"^`(--[a-z-]+)", code):
            assert option in options(group) | others, option
    assert path != ROOT / "README.md" or seen == set(group.commands)


def test_readme_array_jobs_carry_a_plan_wave_by_wave(tmp_path):
    """The README's own lines, with stand-ins for Slurm, which trains an array at once, and for the command."""
    wave, submit = (next(block for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S) if text in block)
                    for text in ("SLURM_ARRAY_TASK_ID", "sbatch --parsable"))  # fmt: skip
    plan = [{"id": f"{g}{n}", "spec": {"generation": g, "seed": n}} for n in (0, 1) for g in (0, 1, 2)]
    (tmp_path / "plan").write_text("".join(json.dumps(line) + "\n" for line in plan))
    (tmp_path / "wave.sbatch").write_text(wave)
    stand_ins = {
        "banlib": 'if [ "$1" = table ]; then cat plan; else echo "$*" >> told; cat >> trained; fi',
        "sbatch": """echo "$*" >> submitted; shift; last=${1##*-}; shift
case "$1" in --dep*) shift ;; esac; script=$1; shift
n=1; while [ $n -le $last ]; do SLURM_ARRAY_TASK_ID=$n bash "$script" "$@"; n=$((n + 1)); done; echo 7""",
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", submit], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    trained = [json.loads(line)["id"] for line in (tmp_path / "trained").read_text().splitlines()]
    assert trained == ["00", "01", "10", "11", "20", "21"]
    assert set((tmp_path / "told").read_text().splitlines()) == {"run --spec - --store /shared/runs"}
    waits = ["--dependency=afterany:7" in line for line in (tmp_path / "submitted").read_text().splitlines()]
    assert waits == [False, True, True]


def test_contributing_names_code_that_exists():
    source = "".join(path.read_text() for path in ROOT.glob("banlib/**/*.py"))
    steps = CONTRIBUTING[CONTRIBUTING.index("## Add a network") : CONTRIBUTING.index("## Tests")]
    names = re.findall(r"`([A-Za-z_]\w*(?:\.[a-z_]+)?)(?:\([^`]*\))?`", steps)
    assert {"FAMILIES", "OBJECTIVES", "ENGINES", "check_parameters"} <= set(names)
    for name in names:
        module, _, own = name.rpartition(".")
        if own == "py" or (ROOT / name).exists():
            assert (ROOT / name).exists() or [*ROOT.glob(f"banlib/**/{name}")], name
            continue
        assert re.search(rf"\b{own}\b", source), name
        for file in ROOT.glob(f"banlib/**/{module}.py") if module else ():
            assert re.search(rf"^(def|class) {own}\b|^{own} =", file.read_text(), re.M), name
    for file in re.findall(r"`((?:banlib|tests|book)/[\w./-]+\.(?:py|md|bib))`", CONTRIBUTING):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or (ROOT / target).exists(), target
    for image in re.findall(r"!\[(.*?)\]", text):
        assert len(image) > 20, "an image without alt text"


def test_version_license_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == importlib.metadata.version("banlib")
    assert citation["license"] == PROJECT["license"] == "MIT"
    holder = re.search(r"Copyright \(c\) \d{4} (.+)", (ROOT / "LICENSE").read_text())[1]
    assert holder == PROJECT["authors"][0]["name"] == citation["authors"][0]["name"]
    titles = [(r["title"], r["year"]) for r in citation["references"]]
    assert titles == [("Born Again Neural Networks", 2018), ("Born Again Networks", 2017)]
    later, workshop = ([author["family-names"] for author in r["authors"]] for r in citation["references"])
    assert later == ["Furlanello", "Lipton", "Tschannen", "Itti", "Anandkumar"]
    assert workshop == [name for name in later if name != "Tschannen"], "who joined for the 2018 version"


# A clean repository


def test_notebooks_are_stored_without_outputs():
    for path in tracked_files():
        if path.suffix == ".ipynb":
            for cell in json.loads(path.read_text())["cells"]:
                assert not cell.get("outputs") and cell.get("execution_count") is None, path.name


def test_no_file_is_large():
    assert [path.name for path in tracked_files() if path.stat().st_size > 5_000_000] == []


def test_no_path_of_one_machine_and_no_registry():
    personal = re.compile(rb"/(?:home|Users)/[a-z]|/root/\w|[A-Z]:\\Users")
    registry = re.compile(rb"pypi\.org|pythonhosted\.org|conda\.anaconda\.org|https?://[^ )>\"']*/(?:simple|packages)/")
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content[:8000]:
            assert not personal.search(content), path
            assert not registry.search(content), path


# make and .ci/run

FAKE_PYTHON = """#!/bin/sh
# Stands for the system's python, for the one in .venv, and for uv: notes what it is asked, installs nothing.
echo "$*" >> "$LOG"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/banlib" ;;
    "-m pip install --quiet uv") test ! -e offline && cp "$0" "$(dirname "$0")/uv" ;;
    "-m pip "* | "pip install"*) test ! -e interrupt ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with spaces in its name, whose Python only notes what it is asked to do."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path / "a folder, with spaces & é"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return folder


def make(folder, *goals, python=None):
    """Run make; return its result and the requests that the stand-in for Python got."""
    log = folder.parent / "log"
    log.write_text("")
    outer = "ARGS", "MAKE"  # of the make that runs these tests
    environment = {k: v for k, v in os.environ.items() if not k.startswith(outer)} | {"LOG": str(log)}
    result = subprocess.run(
        ["make", *goals, f"PYTHON={python or folder.parent / 'python'}"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    asked = [line for line in log.read_text().splitlines() if not line.startswith(("-c", "-I"))]
    return result, asked


VENV = "-m venv .venv"
UV = ["-m venv _build/uv", "-m pip install --quiet uv"]
PACKAGES = "pip install --python .venv/bin/python --require-hashes --requirement requirements.lock"
WITHOUT_UV = "-m pip install --no-compile --require-hashes --requirement requirements.lock"
LIBRARY = "-m pip install --no-deps --no-build-isolation --editable ."


@pytest.mark.parametrize("goal, command", [("book", "book"), ("lab", "lab"), ("test", "-m pytest -n 3 --dist worksteal")])
def test_make_installs_from_the_lock_once_then_does_its_job(checkout, goal, command):
    result, asked = make(checkout, goal)
    assert result.returncode == 0, result.stderr
    assert asked == [VENV, *UV, PACKAGES, LIBRARY, command]
    assert make(checkout, goal)[1] == [command]


def test_make_installs_by_pip_where_uv_is_not_to_be_had(checkout):
    (checkout / "offline").touch()
    result, asked = make(checkout, "test")
    assert result.returncode == 0, result.stderr
    assert asked[:5] == [VENV, *UV, WITHOUT_UV, LIBRARY]


def test_make_heals_an_interrupted_venv(checkout):
    (checkout / "interrupt").touch()
    result, asked = make(checkout, "test")
    assert result.returncode != 0 and asked == [VENV, *UV, PACKAGES, WITHOUT_UV]
    (checkout / "interrupt").unlink()
    assert make(checkout, "test")[1][:3] == [VENV, PACKAGES, LIBRARY]


@pytest.mark.parametrize("harm", ["no python", "no command", "python fails", "moved", "no library"])
def test_make_heals_a_broken_venv(checkout, harm):
    make(checkout, "test")
    if harm == "no python":
        (checkout / ".venv/bin/python").unlink()
    elif harm == "no command":
        (checkout / ".venv/bin/banlib").unlink()
    elif harm == "python fails":
        (checkout / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")
    elif harm == "moved":
        checkout = checkout.rename(checkout.parent / "elsewhere")
    elif harm == "no library":
        (checkout / ".venv/installed").unlink()
    result, asked = make(checkout, "test")
    assert result.returncode == 0, result.stderr
    assert asked[:3] == [VENV, PACKAGES, LIBRARY]


def test_make_follows_the_lock_and_the_metadata(checkout):
    make(checkout, "test")
    later = (checkout / ".venv/installed").stat().st_mtime + 5
    os.utime(checkout / "pyproject.toml", (later, later))
    assert make(checkout, "test")[1][:-1] == [LIBRARY]
    os.utime(checkout / "requirements.lock", (later, later))
    assert make(checkout, "test")[1][:3] == [VENV, PACKAGES, LIBRARY]


def test_make_refuses_another_python_in_one_sentence(checkout):
    old = checkout.parent / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result, asked = make(checkout, "book", python=old)
    assert result.returncode != 0 and asked == [] and not (checkout / ".venv").exists()
    first = result.stderr.splitlines()[0]
    assert first.startswith(f"the book needs Python 3.11, 3.12 or 3.13 and found only {old}; ")


def test_make_help_names_every_target(checkout):
    result, _ = make(checkout)
    targets = re.findall(r"^make (\w+)", result.stdout, flags=re.M)
    assert targets == ["help", "book", "lab", "test", "lock", "clean"]


def test_ci_ends_with_the_test_command():
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert script.splitlines()[-1] == "exec make test"  # so that pytest's closing line is the last one printed
    assert "://" not in script


@pytest.mark.parametrize("missing", ["nothing", "browser", "browser and apt-get"])
def test_ci_runs_the_tests_with_or_without_a_browser(tmp_path, missing):
    """In a PATH of stand-ins: apt-get fails, make prints what pytest would."""
    stand_ins = {"make": "echo 7 passed", "apt-get": "exit 100", "sudo": "exit 1", "chromium": "", "chromedriver": ""}
    if missing != "nothing":
        del stand_ins["chromium"]
    if missing == "browser and apt-get":
        del stand_ins["apt-get"]
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "sh", "env", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = subprocess.run([tmp_path / "bash", ROOT / ".ci/run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "7 passed"
    assert ("going on without a browser" in result.stdout) == (missing != "nothing")
