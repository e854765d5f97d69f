"""Chapters where people open them: JupyterLab by `banlib lab`, and Notebook 7 on the same server, driven by a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from books import ROOT, SETTINGS, home_of_books
from browsers import all_of, browser, play, train_live, visit  # noqa: F401
from selenium.webdriver.support.wait import WebDriverWait

from banlib.book import lab

pytestmark = pytest.mark.timeout(1800)  # a chapter is trained here, which a busy machine does slowly
LAB = "import sys; from pathlib import Path; from banlib.book.lab import open_lab; open_lab(sys.argv[2:], Path(sys.argv[1]))"
RUN_ALL = """
const pause = () => new Promise(resolve => setTimeout(resolve, 200));
(async () => {
  while (!window.jupyterapp) await pause();
  const app = window.jupyterapp;
  await app.restored;
  while (!app.shell.currentWidget?.sessionContext) await pause();
  const panel = app.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  panel.content.notebookConfig = { ...panel.content.notebookConfig, windowingMode: "none" }; // no cell is left undrawn
  await app.commands.execute("notebook:run-all-cells");
  while (panel.sessionContext.session.kernel.status !== "idle") await pause();
  await panel.context.save();
  window.ranAll = panel.sessionContext.kernelDisplayName;
})().catch(error => window.ranAll = "failed: " + error);
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout's book with small networks in its working copies."""
    root = tmp_path_factory.mktemp("a reader's") / "book of lamps"
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    lab.refresh(root)
    for path in (root / "work").glob("*.ipynb"):
        chapter = json.loads(path.read_text(encoding="utf-8"))
        [cell] = [cell for cell in chapter["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        given = [f"\n{name} = {value!r}" for name, value in SETTINGS.items() if name in "".join(cell["source"])]
        cell["source"] = "".join([*cell["source"], *given])
        path.write_text(json.dumps(chapter), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def server(root, tmp_path_factory):
    """The address of a running Jupyter, which finds trained what the real book of these tests has trained."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=lamp"]
    options += [f"--{app}.expose_app_in_browser=True" for app in ("LabApp", "JupyterNotebookApp")]
    own = {"BANLIB_HOME": str(home_of_books(tmp_path_factory)), "JUPYTER_CONFIG_DIR": str(root / "config")}
    log = root / "server.log"
    with log.open("wb") as output:
        command = [sys.executable, "-c", LAB, root, *options, "--ServerApp.port_retries=0"]
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=root, env=os.environ | own)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=60)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/{{}}/{{}}.ipynb?token=lamp"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(120)


@pytest.mark.parametrize(
    ("program", "chapter"),
    [
        ("lab/workspaces/first/tree", "02_ban_densenet"),
        ("notebooks", "02_ban_densenet"),
        ("notebooks", "03_ensembles"),
        ("notebooks", "05_why_it_works"),
        ("lab/workspaces/second/tree", "03_ensembles"),
        ("lab/workspaces/third/tree", "05_why_it_works"),
    ],
)
def test_run_all_ends_without_a_traceback_and_every_control_moves(browser, root, server, program, chapter):  # noqa: F811
    before = {path: path.read_bytes() for path in (root / "book").rglob("*") if path.is_file()}
    visit(browser, server.format(program, chapter), width=1440)
    browser.execute_script(RUN_ALL)
    until = time.monotonic() + 1500
    while not (ran := browser.execute_script("return window.ranAll")) and time.monotonic() < until:
        time.sleep(1)
    assert ran and "Python 3" in ran
    saved = json.loads((root / f"work/{chapter}.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"] == []
    browser.save_screenshot(str(root / f"{program.split('/')[0]}-{chapter}.png"))
    made = re.findall(r"^explorers\.\w+\(", "\n".join("".join(cell["source"]) for cell in code), re.M)
    wait = WebDriverWait(browser, 300, poll_frequency=1)
    wait.until(lambda _: len(all_of(browser, ".ban-live")) == len(made) > 0)
    for explorer in all_of(browser, ".ban-live"):
        if "Nothing is trained yet" in explorer.text:
            train_live(browser, wait, explorer, seed=len(program))  # of another lineage in each program
        else:
            assert len(play(browser, explorer)) >= 6
    assert before == {path: path.read_bytes() for path in (root / "book").rglob("*") if path.is_file()}
