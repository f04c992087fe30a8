"""Common ground of all tests: one thread, no network, fixed seeds, loud reasons for what cannot run here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.nbval_plugin import be_offline

be_offline()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOWBIT_NB_THREADS", "1")
torch.set_num_threads(1)

# The same examples on every run and no deadline: a slow machine is not a wrong program.
hypothesis.settings.register_profile("kit", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("kit")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_missing: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device on this machine")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random tensors; every test starts from the same state."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def need(what: str) -> None:
    """Skip the running browser test with a loud line, or fail it where nothing may be missing (CI=true)."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI=true and browser tests cannot run: {what}")
    if what not in _missing:
        _missing.append(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium or Chrome for Playwright's `executable_path`."""
    path = os.environ.get("LOWBIT_NB_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        need("Chromium or Chrome is not on PATH (Debian: apt-get install chromium)")
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        need("playwright is not installed (pip install -e '.[browser]')")
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what in _missing:
        terminalreporter.write_line(f"*** NO BROWSER TESTS: {what} ***", red=True, bold=True)
