"""Explorers: compact data that are what the library says, a picture in each, one module for pages and widgets."""

import asyncio
import base64
import json
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup

from banlib import ensemble, explorers
from banlib.book.scripts import page_script
from banlib.explorers.explorer import module
from banlib.explorers.live import Lineage
from banlib.figures import speed
from banlib.paper import printed, statistics
from banlib.runs import datasets
from banlib.runs.parameters import check_parameters
from banlib.runs.recipe import generation_name

ROOT = Path(__file__).parents[1]
EVIL = "</script><!-- <script> \"quoted\" & 'é' \u2028"
ALT = "what the picture shows"


def lineages(seeds=(0, 4, 7), gens=2, images=1000, classes=10, title="digits"):
    """Lineages of networks that guess; one image in eight wrongly or so."""
    labels = datasets.load("digits").test.labels if images == 1000 else torch.arange(images) % classes
    draw, runs = torch.Generator().manual_seed(0), {}
    for seed in seeds:
        runs[seed] = []
        for generation in range(gens + 1):
            logits = 1.5 * torch.randn(images, classes, generator=draw) + 5 * torch.nn.functional.one_hot(labels, classes)
            probabilities = logits.softmax(1).half()
            predicted = probabilities.argmax(1)
            spec = types.SimpleNamespace(
                name=generation_name(generation), generation=generation, seed=seed, network="DenseNetBC-10-4"
            )
            error = 100 * (predicted != labels).double().mean().item()
            run = {"probabilities": probabilities, "labels": labels, "predicted": predicted, "error": error, "spec": spec}
            runs[seed].append(types.SimpleNamespace(run_id=f"{seed:08d}{generation:08d}", **run))
    settings = check_parameters("digits", "DenseNetBC-10-4", gens, list(seeds))
    settings = settings._replace(profile=settings.profile._replace(name=title))
    return types.SimpleNamespace(settings=settings, runs=runs, labels=lambda: labels)


def board():
    """A ledger of two cells, one of which was not run."""
    row = {"table": 1, "network": "DenseNetBC-90-60", "column": "BAN-1", "paper": 16.62, "measured": 7.0, "ci95": 0.5, "seeds": 3}
    row |= {"profile": "digits", "verdict": "not", "why": EVIL, "p_seeds": 0.0004, "difference": -9.62}
    none = {"table": 2, "network": "WideResNet-28-10", "column": "Baseline", "paper": 18.63, "seeds": 0, "verdict": "not run"}
    return pd.DataFrame([row, none])


def everything():
    """{kind: explorer} of small made-up results."""
    found, measured = lineages(), speed.measurements("loop")[0]
    controls = {"labels x2": {seed: runs[0] for seed, runs in found.runs.items()}}
    several = [found, lineages(seeds=(0,), title="another")]
    return {
        "generations": explorers.generations("2.3", several, "Errors.", ALT, EVIL, controls=controls),
        "ensemble": explorers.ensemble("3.2", found, "Build one", ALT),
        "dark_knowledge": explorers.dark_knowledge("5.1", found.runs[0], datasets.load("digits"), "Walk.", ALT),
        "loss": explorers.loss("2.2", EVIL, ALT),
        "cost": explorers.cost("6.3", measured, 162, "The price.", ALT),
        "ledger": explorers.ledger("7.3", board(), "All numbers.", ALT),
        "live_training": explorers.live_training(gens=1),
    }


@pytest.fixture(scope="module")
def shown():
    return everything()


KINDS = ("generations", "ensemble", "dark_knowledge", "loss", "cost", "ledger", "live_training")


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_holds_a_picture_its_caption_and_its_data(shown, kind):
    explorer = shown[kind]
    page = BeautifulSoup(explorer.page(), "html.parser")
    figure = page.select_one("figure.ban-explorer")
    assert page.find_all(recursive=False) == [figure] and figure["data-kind"] == kind
    assert json.loads(figure.script.string) == explorer.data, "the data come through HTML as they are"
    assert figure.figcaption.text.startswith(explorer.title)
    still = figure.select_one(".ban-still")
    if kind == "ledger":
        assert len(still.select("tbody tr")) == 2 and len(still.select("thead th")) == 7
    else:
        assert len(still.img["alt"]) > 10
        assert b"<svg" in base64.b64decode(still.img["src"].partition("base64,")[2])
    assert len(explorer.page()) < 250_000


@pytest.mark.parametrize("kind", KINDS)
def test_widget_and_page_run_the_same_module_without_another_server(shown, kind):
    widget, code = shown[kind].widget(), module(kind)
    assert widget._esm == code and widget.figure == shown[kind].id
    assert "export function mount(" in code and "export default" in code
    assert "import" not in code.replace("important", "") and "fetch" not in code
    assert {line for line in code.splitlines() if "://" in line and "www.w3.org" not in line} == set()
    script = page_script(kind)
    if kind == "live_training":
        assert script == "", "a page has no kernel"
    else:
        assert script.count("</script>") == 1 and script.endswith("</script>") and code[:200] in script


def test_a_cell_shows_both_and_reads_as_text(shown, monkeypatch):
    displayed = []
    monkeypatch.setattr("banlib.explorers.explorer.display", lambda bundle, **how: displayed.append(bundle))
    shown["cost"]._ipython_display_()
    first, second = displayed
    assert first["text/html"] == shown["cost"].page() and first["text/plain"] == "Figure 6.3. The price."
    assert "application/vnd.jupyter.widget-view+json" in second and "text/html" not in second
    assert second["text/plain"] == "Run this cell in Jupyter to play with figure 6.3."


def test_generations_tell_errors_and_run_ids(shown):
    found, data = lineages(), shown["generations"].data
    ours, others = data["sets"]
    models = {model["name"]: model for model in ours["models"]}
    assert list(models) == ["Teacher", "BAN-1", "BAN-2", "Ens*2", "Ens*3", "labels x2"]
    errors = statistics.errors(found).set_index(["name", "seed"])["error"]
    for name in list(models)[:5]:
        for seed, error, _ in models[name]["runs"]:
            assert error == pytest.approx(errors[name, seed])
    assert models["BAN-1"]["runs"][1][2] == "0000000400000001"
    assert models["Ens*2"]["runs"][0][2] == "0000000000000001 + 0000000000000002"
    assert data["quantiles"] == pytest.approx([12.706, 4.303], abs=1e-3)  # of Student's t, a textbook's table
    assert data["paper"][0] == {"network": "DenseNetBC-112-33", "errors": printed.TABLE1[0].errors}
    assert others["title"].endswith("(another)")


def unpacked(data, member):
    """Probabilities as the module unpacks them."""
    raw = np.frombuffer(base64.b64decode(member["probabilities"]), np.uint8).reshape(-1, data["classes"])
    powers = torch.from_numpy((raw / 255.0) ** data["power"])
    return powers / powers.sum(1, keepdim=True)


def test_bytes_of_probabilities_are_good_to_a_hundredth(shown):
    found, data = lineages(), shown["ensemble"].data
    labels = found.labels()
    for member in data["members"]:
        run = found.runs[member["seed"]][member["generation"]]
        back, exact = unpacked(data, member), run.probabilities.double()
        assert (back - exact).abs().max() < 0.01 and member["run"] == run.run_id
        assert abs(ensemble.error(back, labels) - ensemble.error(exact, labels)) <= 0.2
        assert abs(ensemble.calibration_error(back, labels) - ensemble.calibration_error(exact, labels)) <= 0.5
        assert abs(ensemble.nll(back, labels) - ensemble.nll(exact, labels)) < 0.005
    assert np.array_equal(np.frombuffer(base64.b64decode(data["labels"]), np.int16), labels)
    assert "Seeds 0, 4, 7 (of 3) and 1,000 test images." in shown["ensemble"].text


def test_a_large_test_set_is_cut_and_the_caption_says_so():
    many = explorers.ensemble("3.2", lineages(seeds=(0, 1), images=4000, classes=100), "Build one.", ALT)
    assert {member["seed"] for member in many.data["members"]} == {0}
    assert "Build one. Seed 0 (of 2) and the first 600 of 4,000 test images." in many.text
    assert len(many.page()) < 300_000


def test_images_on_which_networks_disagree_come_before_others(shown):
    chain, data = lineages().runs[0], shown["dark_knowledge"].data
    said = torch.stack([run.predicted for run in chain])
    apart = set(torch.nonzero((said != said[0]).any(0)).flatten().tolist())
    chosen = data["image"]
    assert apart <= set(chosen) if len(apart) <= len(chosen) else set(chosen) <= apart
    doubts = ensemble.entropy(chain[0].probabilities)[chosen]
    assert (doubts.diff() <= 0).all(), "the most doubted first"
    assert data["predicted"] == said[:, chosen].T.tolist() and data["label"] == chain[0].labels[chosen].tolist()
    given = np.frombuffer(base64.b64decode(data["probabilities"]), np.float32).reshape(len(chosen), 3, 10)
    assert np.array_equal(given[5, 2], chain[2].probabilities[chosen[5]].float())
    pixels = np.frombuffer(base64.b64decode(data["pixels"]), np.uint8).reshape(len(chosen), *data["size"])
    assert np.array_equal(pixels[3], datasets.load("digits").test.images[chosen[3]])


def test_a_cell_of_the_ledger_names_its_dataset(shown):
    ran, none = shown["ledger"].data["rows"]
    assert (ran["dataset"], none["dataset"]) == ("digits", None) and none["measured"] is None
    cells = BeautifulSoup(shown["ledger"].still, "html.parser").select("tbody tr")
    assert [cell.text for cell in cells[0].select("td")] == ["1", "DenseNetBC-90-60", "BAN-1", "16.62", "digits", "7.00", "not"]
    assert [cell.text for cell in cells[1].select("td")][4:] == ["\N{EM DASH}", "\N{EM DASH}", "not run"]


def small_lineage(store):
    settings = check_parameters("digits", "DenseNetBC-10-4", 1, 1)
    recipe = settings.profile.recipe.model_copy(update={"test_every": 1, "epochs": 40, "lr_milestones": (20,)})
    return Lineage(settings._replace(profile=settings.profile._replace(recipe=recipe)), store, data={})


async def until(test, seconds=300):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it took too long"
        await asyncio.sleep(0.05)


def rows(widget):
    return sum(len(run["rows"]) for run in widget.data["runs"])


def test_live_training_starts_stops_and_goes_on(store):
    widget = small_lineage(store)

    async def play():
        widget.obey("start", "3")
        widget.obey("start", "4")  # while it runs: nothing
        await until(lambda: widget.data.get("runs") and rows(widget) > 3)
        assert widget.data["status"] == "training" and [run["name"] for run in widget.data["runs"]] == ["Teacher", "BAN-1"]
        before, process = rows(widget), widget.worker.process
        widget.obey("stop")
        await until(widget.watcher.done)
        assert widget.data["status"] == "stopped" and rows(widget) >= before and process.poll() is not None
        stopped = rows(widget)
        assert stopped < 80
        widget.obey("start", "3")
        await until(lambda: rows(widget) > 0)
        assert rows(widget) >= stopped, "it went on"
        await until(widget.watcher.done)

    asyncio.run(play())
    assert widget.data["status"] == "finished" and [len(run["rows"]) for run in widget.data["runs"]] == [40, 40]
    assert sum(len(run["environments"]) for run in store.overview().values()) == 3, "two runs and one stop"


def test_live_training_refuses_what_is_no_seed(store):
    widget = small_lineage(store)

    async def play():
        widget.obey("start", "-3")
        await until(widget.watcher.done)

    asyncio.run(play())
    assert widget.data["status"] == "failed" and "seeds must be" in widget.data["note"] and not store.ids()


DYING = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from banlib.runs.store import Store
from test_explorers import small_lineage, until
async def play():
    widget = small_lineage(Store())
    widget.obey("start", "3")
    await until(lambda: widget.data.get("runs") and widget.worker.process)
    print(widget.worker.process.pid, flush=True)
    os._exit(9)  # as a kernel that is killed
asyncio.run(play())
"""


def test_a_kernel_that_dies_leaves_no_process():
    answer = subprocess.run([sys.executable, "-c", DYING, str(Path(__file__).parent)], capture_output=True, text=True)
    pid, end = int(answer.stdout), time.monotonic() + 120

    def lives():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    while lives():
        assert time.monotonic() < end, f"process {pid} outlived its kernel"
        time.sleep(0.1)


def test_scripts_and_styles_travel_with_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for path in ROOT.glob("banlib/*/*") if path.suffix in (".js", ".css", ".mplstyle")]
    assert len(files) >= 9
    for path in files:
        assert any(path.match(kind) for kind in data.get(f"banlib.{path.parent.name}", [])), path.name
