"""Chromium and JupyterLab for the browser tests. Without them the tests skip loudly, or fail if CI=true."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

MISSING: list[str] = []
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        terminalreporter.section("BROWSER TESTS SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{MISSING[0]}. Notebooks and explorers were NOT opened in a browser.")


def lacking(what: str) -> None:
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what}, and CI=true does not allow skipping the browser tests")
    MISSING.append(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        lacking(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking(
            "the package playwright is not installed (pip install playwright; no browser download is needed)"
        )
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=OPTIONS, headless=True)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser: object) -> Iterator[object]:
    """Pages without a network."""
    offline = browser.new_context(offline=True, viewport={"width": 1080, "height": 1000}, reduced_motion="reduce")
    yield offline
    offline.close()


@pytest.fixture
def page(context: object, explorer: object) -> Iterator[object]:
    """The module's explorer in a page of its own; at the end nothing has gone wrong in it."""
    from browser_pages import opened

    one, problems = opened(context, explorer)
    yield one
    assert not problems
    one.close()


@pytest.fixture(scope="session")
def lab(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from browser_lab import Lab

    server = Lab(tmp_path_factory.mktemp("lab"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shots() -> Path | None:
    """Where screenshots go: the folder named by LOWBIT_NB_SHOTS, or nowhere."""
    folder = os.environ.get("LOWBIT_NB_SHOTS")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
