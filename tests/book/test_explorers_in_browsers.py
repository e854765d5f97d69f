"""Explorers in real programs: a page in Chromium, JupyterLab and Notebook 7, moved by mouse and keyboard."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from axe_core_python.selenium import Axe
from browsers import all_of, play, said
from nbclient import NotebookClient
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from banlib import ensemble
from banlib.book.scripts import page_script
from banlib.explorers.explorer import module
from test_explorers import KINDS, everything, lineages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 300  # seconds, on a busy machine
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not CHROMIUM or not shutil.which("chromedriver"), reason="no Chromium or no chromedriver"),
]
ON_A_PAGE = [kind for kind in KINDS if kind != "live_training"]
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Explorers</title><style>body {{ margin: 8px 12px; max-width: 790px; font-family: sans-serif }} img {{ max-width: 100% }}
.dark {{ background: #14181e; color: #ced6dd; color-scheme: dark }}</style><main><h1>Explorers</h1><h2>All</h2><h3>Of them</h3>
{figures}</main>{scripts}</html>"""


@contextlib.contextmanager
def chromium(width=1200, height=1000):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        yield driver
    finally:
        driver.quit()


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def shown():
    return everything()


@pytest.fixture(scope="module")
def page(shown, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    figures = "".join(shown[kind].page() for kind in KINDS)
    scripts = "".join(map(page_script, KINDS))
    path.write_text(PAGE.format(figures=figures, scripts=scripts), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize(("width", "theme"), [(1440, ""), (390, "dark")])
def test_a_page_comes_alive_by_itself(page, width, theme):
    with chromium(width) as driver:
        driver.get(page)
        driver.execute_script("document.documentElement.className = arguments[0]", theme)
        for kind in ON_A_PAGE:
            [figure] = all_of(driver, f"figure[data-kind={kind}]")
            assert all_of(figure, ".ban-live") and not all_of(figure, ".ban-still")[0].is_displayed(), kind
            assert "NaN" not in figure.text and "undefined" not in figure.text
        [training] = all_of(driver, "figure[data-kind=live_training]")
        assert all_of(training, ".ban-still img")[0].is_displayed() and "in Jupyter" in training.text
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('.ban-live svg text')].map(text => text.getBoundingClientRect().height)"
        )
        assert min(size for size in sizes if size) > 10, "labels can be read"
        results = Axe().run(driver)["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in results if each["impact"] in ("serious", "critical")] == []
        assert complaints(driver) == []


@pytest.mark.parametrize("kind", ON_A_PAGE)
def test_every_control_can_be_used(page, kind):
    with chromium() as driver:
        driver.get(page)
        names = play(driver, all_of(driver, f"figure[data-kind={kind}] .ban-live")[0])
        assert len(names) >= {"cost": 3, "ledger": 10}.get(kind, 6), names
        assert complaints(driver) == []


def test_a_pointer_is_told_seed_and_run(page):
    with chromium() as driver:
        driver.get(page)
        figure = all_of(driver, "figure[data-kind=generations]")[0]
        [point, *_] = all_of(figure, ".ban-seed")
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
        ActionChains(driver).move_to_element(point).perform()
        assert re.search(r"Teacher, seed 0: [\d.]+ % error, run 0{16}", said(figure))


def test_what_was_told_of_one_image_is_not_said_of_the_next_and_its_slider_goes_on(page):
    with chromium() as driver:
        driver.get(page)
        root = all_of(driver, "figure[data-kind=dark_knowledge] .ban-live")[0]
        [back, on] = all_of(root, "button")
        all_of(root, "svg")[0].send_keys(Keys.RIGHT)
        assert "at temperature" in said(root)
        on.send_keys(Keys.ENTER)
        assert "image 2 of" in said(root) and "at temperature" not in said(root)
        slider = next(each for each in all_of(root, "input") if each.accessible_name == "image")
        slider.send_keys(Keys.END, Keys.LEFT)
        on.send_keys(Keys.ENTER)
        assert not on.is_enabled() and driver.switch_to.active_element == back, "the keyboard is not lost"


def test_a_tap_tells_what_a_pointer_is_told(page):
    tap = """const box = arguments[0].getBoundingClientRect();
        const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
        arguments[0].ownerSVGElement.dispatchEvent(new PointerEvent("pointerdown", at));"""
    with chromium(390) as driver:
        driver.get(page)
        figure = all_of(driver, "figure[data-kind=generations]")[0]
        driver.execute_script(tap, all_of(figure, ".ban-seed")[0])
        assert re.search(r"Teacher, seed 0: [\d.]+ % error", said(figure))


def test_a_row_of_the_ledger_opens_and_rows_sort_and_filter(page):
    with chromium() as driver:
        driver.get(page)
        figure = all_of(driver, "figure[data-kind=ledger] .ban-live")[0]
        networks = lambda: [row.text.split()[2] for row in all_of(figure, "tbody tr") if row.text.startswith("+")]  # noqa: E731
        assert networks() == ["DenseNetBC-90-60", "WideResNet-28-10"] and "why" not in figure.text
        all_of(figure, "tbody button")[0].send_keys(Keys.ENTER)
        assert "</script>" in figure.text and "< 0.001" in figure.text and "−9.62" in figure.text, "the rest of the row, as text"
        assert driver.switch_to.active_element.get_attribute("aria-expanded") == "true", "the focus stays"
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        paper = all_of(figure, "thead button")[3]
        for order in ("ascending", "descending"):
            paper.click()
            assert all_of(figure, f"th[aria-sort={order}]")[0].text.startswith("paper")
        assert networks() == ["WideResNet-28-10", "DenseNetBC-90-60"]
        all_of(figure, "select")[1].send_keys(Keys.DOWN)
        assert networks() == ["DenseNetBC-90-60"] and "1 of 2 cells" in said(figure) and "Measured on digits" in said(figure)


def in_module(driver, kind, script):
    """What a script returns that is given an explorer's module as m."""
    address = "data:text/javascript;base64," + base64.b64encode(module(kind).encode()).decode()
    code = f"const done = arguments[1]; import(arguments[0]).then(m => {script}).then(done, error => done(`${{error}}`))"
    return driver.execute_async_script(code, address)


def test_the_browser_computes_what_the_library_does(shown):
    found, data = lineages(), json.dumps(shown["ensemble"].data)
    chosen = [(0, 1), (0, 2), (7, 0)]  # seed, generation
    script = f"""{{ const data = {data}, unpack = each => m.probabilitiesOf(each.probabilities, data.classes, data.power);
        const chosen = {json.dumps(chosen)}.map(([seed, k]) => data.members.find(e => e.seed === seed && e.generation === k));
        const labels = new Int16Array(Uint8Array.from(atob(data.labels), c => c.charCodeAt(0)).buffer);
        return m.metrics(m.average(chosen.map(unpack)), labels, data.classes); }}"""
    mean, labels = ensemble.average([found.runs[seed][k].probabilities for seed, k in chosen]), found.labels()
    with chromium() as driver:
        driver.get("about:blank")
        result = in_module(driver, "ensemble", script)
        assert result["error"] == pytest.approx(ensemble.error(mean, labels), abs=0.2)  # two images of a thousand
        assert result["nll"] == pytest.approx(ensemble.nll(mean, labels), abs=0.005)
        assert result["ece"] == pytest.approx(ensemble.calibration_error(mean, labels), abs=0.5)
        soft = in_module(driver, "dark_knowledge", "m.soften([0.7, 0.2, 0.1, 0], 4)")
        powers = [share**0.25 for share in (0.7, 0.2, 0.1, ensemble.SMALLEST)]  # a stored 0 is below that
        assert soft == pytest.approx([power / sum(powers) for power in powers], abs=1e-6)


def test_the_first_seeds_are_the_same_for_all_models(shown):
    """Also where a campaign has trained the students of some seeds only."""
    seeds = {"Teacher": [0, 1, 2], "BAN-1": [1, 2]}
    models = [
        {"name": name, "generation": k, "runs": [[seed, 10.0 + seed, "0" * 16] for seed in own]}
        for k, (name, own) in enumerate(seeds.items())
    ]
    data = shown["generations"].data | {"sets": [{"title": "Ours", "models": models}]}
    script = f"""{{ const root = document.createElement("div"), said = () => root.querySelector(".ban-state").textContent;
        m.mount(root, {json.dumps(data)});
        const all = said(), slider = root.querySelectorAll("input")[1];
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));
        return [all, said()]; }}"""
    with chromium() as driver:
        driver.get("about:blank")
        all_seeds, first = in_module(driver, "generations", script)
    assert "3 seeds" in all_seeds and "Teacher 11.00 ± 2.48 %, BAN-1 11.50 ± 6.35 % (2 of them)" in all_seeds
    assert "One seed" in first and "Teacher 10.00 %. " in first, "BAN-1 has no seed 0"


# The notebook that Jupyter opens: run before by another program, so it is not trusted.


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jupyter")
    tests = str(Path(__file__).parents[1])
    first = f"import sys\nsys.path.insert(0, {tests!r})\nfrom test_explorers import everything\nshown = everything()"
    cells = [nbformat.v4.new_code_cell(source) for source in (first, *(f"shown[{kind!r}]" for kind in KINDS))]
    written = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    NotebookClient(written, timeout=PATIENCE, kernel_name="python3").execute()
    assert all(not cell.outputs or cell.outputs[0].output_type != "error" for cell in written.cells)
    for name in ("lab", "notebook"):
        nbformat.write(written, folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def server(notebook):
    """The address of a Jupyter server that has Lab and Notebook 7."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        name: str(notebook / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "BANLIB_HOME")
    }
    options = [
        "--no-browser",
        "--allow-root",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=t",
    ]
    options += [
        f"--ServerApp.root_dir={notebook}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log = (notebook / "server.log").open("w")
    command = [sys.executable, "-m", "jupyterlab", *options]
    process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT, cwd=notebook)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/status?token=t", timeout=10).close()
                break
            assert process.poll() is None and time.monotonic() < end, (notebook / "server.log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(("program", "path"), [("lab", "lab/tree/lab.ipynb"), ("notebook", "notebooks/notebook.ipynb")])
def test_jupyter_shows_pictures_then_explorers(server, program, path):
    with chromium(height=7000) as driver:  # so high that no cell is out of sight
        wait = WebDriverWait(driver, PATIENCE, poll_frequency=1)
        driver.get(f"{server}/{path}?token=t")
        wait.until(lambda _: len(all_of(driver, ".ban-still")) == len(KINDS))
        assert all(still.is_displayed() for still in all_of(driver, ".ban-still")), "an untrusted copy shows the pictures"
        assert not all_of(driver, ".ban-live")
        wait.until(lambda _: all_of(driver, ".jp-Notebook .cm-content"))[0].click()
        for _ in range(len(KINDS) + 1):
            ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        wait.until(lambda _: len(all_of(driver, ".ban-live")) == len(KINDS))
        wait.until(lambda _: not any(still.is_displayed() for still in all_of(driver, ".ban-still")))
        assert not all_of(
            driver, "[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']"
        )
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()  # out of the last cell's editor
        roots = dict(zip(KINDS, all_of(driver, ".ban-live"), strict=True))
        for kind in ("cost", "ledger"):  # test_jupyter moves those of chapters 2, 3 and 5
            assert len(play(driver, roots[kind])) >= 3
        ours = [line for line in complaints(driver) if "blob:" in line or "anywidget" in line]
        assert ours == []
