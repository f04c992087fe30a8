"""A real JupyterLab for tests: loopback only, own folders, own process group, a copy of the notebooks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

from lowbit_nb.live import Explorer

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},  # a saved notebook holds its explorers' numbers
}
READY = """() => { const s = window.jupyterapp?.shell?.currentWidget?.context?.sessionContext;
  return Boolean(s && s.isReady
    && s.session?.kernel?.connectionStatus === 'connected' && s.session.kernel.status === 'idle'); }"""
RUN_ALL = """() => { window.lbRun = 'running';
  window.jupyterapp.commands.execute('notebook:run-all-cells')
    .then(() => { window.lbRun = 'done'; }, (e) => { window.lbRun = String(e); }); }"""
ERRORS = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"


class Lab:
    """The server: `folder` is what it serves, `base` its address."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.folder = tmp, tmp / "root" / "notebooks"
        self.folder.mkdir(parents=True)
        for notebook in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
            shutil.copy(notebook, self.folder)
        (tmp / "root" / "data").symlink_to(REPOSITORY / "data")  # as in a clone: notebooks may read ../data
        (tmp / "appset").mkdir()
        (tmp / "appset" / "overrides.json").write_text(json.dumps(SETTINGS))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = [
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=",
            "--ServerApp.password=",
            f"--ServerApp.root_dir={self.tmp / 'root'}",
            "--expose-app-in-browser",
            "--LabApp.extension_manager=readonly",
            f"--LabServerApp.app_settings_dir={self.tmp / 'appset'}",
        ]
        with (self.tmp / "lab.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.base}/api/status", timeout=2).read()
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start:\n{(self.tmp / 'lab.log').read_text()[-3000:]}")

    def _environment(self) -> dict[str, str]:
        """A developer's settings must not leak in, and two threads each would fight over two cores."""
        own = {
            "JUPYTER_CONFIG_DIR": "cfg",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "run",
            "IPYTHONDIR": "ipy",
            "HOME": "home",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "ws",
            "MPLCONFIGDIR": "mpl",
        }
        paths = {name: str(self.tmp / folder) for name, folder in own.items()}
        for path in paths.values():
            Path(path).mkdir(exist_ok=True)
        return {
            **os.environ,
            **paths,
            "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "LOWBIT_NB_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def stop(self) -> None:
        for signal_, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal_)
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue


class Tab:
    """One notebook open in the browser, with a record of what went wrong in it."""

    def __init__(self, lab: Lab, browser: object, name: str, width: int = 1200, height: int = 1300) -> None:
        self.lab, self.name = lab, name
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.outside: list[str] = []
        self.errors: list[str] = []
        near = (lab.base, f"ws://127.0.0.1:{lab.port}", "data:", "blob:", "about:")
        self.page.on("request", lambda r: None if r.url.startswith(near) else self.outside.append(r.url))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.goto(f"{lab.base}/lab/tree/notebooks/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=180_000)
        self.page.evaluate("() => { window.jupyterapp.shell.collapseLeft(); return 1; }")  # the file browser

    def run_all(self, timeout_s: int = 300) -> None:
        """Wait for the kernel, run every cell, wait for the last: asked too early, it would hang for ever."""
        self.page.wait_for_function(READY, timeout=180_000)
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function("() => window.lbRun !== 'running'", timeout=timeout_s * 1000)
        assert self.page.evaluate("() => window.lbRun") == "done"

    def error_outputs(self) -> list[str]:
        return self.page.locator(ERRORS).all_inner_texts()

    def dark(self, on: bool) -> None:
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => 1)",
            "JupyterLab Dark" if on else "JupyterLab Light",
        )
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light",
            arg="false" if on else "true",
            timeout=30_000,
        )
        self.page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=30_000)

    def saved(self) -> Path:
        """The notebook's file, saved with what is on the screen."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save().then(() => 1)")
        return self.lab.folder / self.name

    def close(self) -> None:
        """Shut the kernel down, so that a whole suite does not keep one per notebook."""
        self.page.evaluate(
            "() => window.jupyterapp.shell.currentWidget?.context?.sessionContext?.shutdown().then(() => 1)"
        )
        self.page.close()


@contextmanager
def in_jupyterlab(lab: Lab, browser: object, explorer: Explorer, source: str, name: str, shots: Path | None) -> Iterator[Tab]:
    """A tab in which a cell with this explorer was first seen with its stored pictures, then run; judged at the end."""
    stored = {"text/plain": explorer.alt, "text/html": explorer.fallback}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    book.cells = [nbformat.v4.new_code_cell(source, id="one", execution_count=1, outputs=[
        nbformat.v4.new_output("execute_result", data=stored, execution_count=1)])]
    nbformat.write(book, lab.folder / f"{name}.ipynb")
    tab = Tab(lab, browser, f"{name}.ipynb")
    try:
        pictures = tab.page.locator(".jp-OutputArea details img[alt]")
        pictures.nth(len(explorer.frames()) - 1).wait_for(state="attached", timeout=60_000)
        assert pictures.first.is_visible() and tab.page.locator(".lb-live").count() == 0
        tab.run_all()
        tab.page.wait_for_selector(f".lb-{name} svg", timeout=60_000)
        yield tab
        assert tab.error_outputs() == [] and tab.errors == [] and tab.outside == []
        for dark in (False, True) if shots else ():
            tab.dark(dark)
            tab.page.locator(".lb-live").screenshot(path=shots / f"lab_{name}{'_dark' if dark else ''}.png")
    finally:
        tab.page.close()


@contextmanager
def key_pressed(tab: Tab, label: str, key: str = "ArrowRight") -> Iterator[None]:
    """A key on a slider of the explorer; JupyterLab must not take it away."""
    slider = tab.page.get_by_label(label, exact=True)
    slider.focus()
    tab.page.keyboard.press(key)
    yield
    assert slider.evaluate("e => e === document.activeElement"), "the notebook took the key"


def photograph(tab: Tab, folder: Path, name: str) -> None:
    """The explorers of a tab at both widths, each as one picture."""
    for width in (1200, 800):
        tab.page.set_viewport_size({"width": width, "height": 2400})
        tab.page.wait_for_timeout(600)
        for box in tab.page.locator(".lb-live").all():
            kind = box.get_attribute("class").split("lb-live lb-")[1].split()[0]
            box.scroll_into_view_if_needed()
            box.screenshot(path=folder / f"{name}_{kind}_{width}.png")
