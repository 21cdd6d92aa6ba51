"""The three explorers in a real browser: JupyterLab of this environment, Chromium, a slider moved by the keyboard.

Needs playwright (of `.[dev]`) and a Chromium of the system; skipped where one of them is missing.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from tests.conftest import ROOT

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install -e '.[dev]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
QUIET = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}}
SECONDS = 180  # for all cells up to the explorer


def until_the_explorer(path):
    """The notebook as one finds it before the first run, up to the cell that shows its explorer."""
    notebook = nbformat.read(path, 4)
    last = next(i for i, c in enumerate(notebook.cells) if "heal.explore_" in c.source and c.cell_type == "code")
    notebook.cells = notebook.cells[: last + 1]
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port with copies of the notebooks; nothing of the user's own Jupyter is read or written."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for path in sorted((ROOT / "notebooks").glob("0[123]_*.ipynb")):
        nbformat.write(until_the_explorer(path), home / "notebooks" / path.name)
    for name, values in QUIET.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
              "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16), home / "log.txt")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={server.token}",
               f"--ServerApp.root_dir={home / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    with open(server.log, "w") as log, subprocess.Popen(
            command, cwd=home, stdout=log, stderr=log, env=env | {k: str(home / v) for k, v in places.items()}) as process:
        try:
            server.wait(process)
            yield server
        finally:
            process.terminate()  # its kernels go with it
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Server:
    """Address and token of a JupyterLab, and the little of its interface that is needed here."""

    def __init__(self, url, token, log):
        self.url, self.token, self.log = url, token, log

    def ask(self, path, method="GET"):
        header = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers=header)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")

    def wait(self, process, seconds=60):
        for _ in range(seconds * 5):
            assert process.poll() is None, self.log.read_text()[-2000:]
            try:
                return self.ask("status")
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"JupyterLab did not start in {seconds} seconds: {self.log.read_text()[-2000:]}")

    def stop_kernels(self):
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS, timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture
def page(lab, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(60_000)
    yield page
    page.close()
    lab.stop_kernels()


def run_all(page, lab, name):
    """Open a notebook, run all its cells as a reader would, and return its explorer."""
    page.goto(f"{lab.url}/lab/workspaces/{name}/tree/{name}.ipynb?token={lab.token}")
    page.get_by_text("(ipykernel) | Idle").wait_for()  # in the status bar: notebook and kernel are there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").last
    playwright.expect(prompt).to_have_text("[*]:")
    playwright.expect(prompt).not_to_have_text("[*]:", timeout=SECONDS * 1000)
    errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_text_contents()
    assert prompt.text_content().strip("[]: \xa0"), f"a cell before the explorer failed: {errors}"
    explorer = page.locator(".jp-OutputArea-output .widget-vbox").first
    explorer.wait_for()
    return explorer


def seen(explorer):
    """The picture's bytes and the texts that the explorer shows now."""
    picture = explorer.locator("img.widget-image").evaluate("async image => (await fetch(image.src)).text()")
    return picture, explorer.locator(".widget-html-content").all_inner_texts()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), [("01_entropy", ["Home"]), ("02_gear", ["ArrowRight"] * 4), ("03_pure", ["Home"])])
def test_a_slider_moves_picture_and_text(lab, page, name, keys):
    explorer = run_all(page, lab, name)
    handle = explorer.locator(".noUi-handle").first
    before = seen(explorer)
    handle.focus()
    for key in keys:
        page.keyboard.press(key)
    for _ in range(150):
        after = seen(explorer)
        if after[0] != before[0] and after[1] != before[1]:
            break
        page.wait_for_timeout(200)
    assert after[0] != before[0], "the picture is still the same"
    assert after[1] != before[1], "the text is still the same"
    image = explorer.locator("img.widget-image")
    assert image.is_visible()
    assert image.evaluate("image => image.naturalWidth") > 400
    assert "Error displaying widget" not in page.locator(".jp-Notebook").inner_text()
