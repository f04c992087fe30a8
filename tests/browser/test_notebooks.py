"""Every notebook, run once in a real JupyterLab; then its page, made of that run, without kernel or network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_lab import REPOSITORY, Lab, Tab, photograph
from browser_site import is_readable, pictures, responds, visited

from lowbit_nb.pages import run, site

NOTEBOOKS = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module", params=NOTEBOOKS)
def ran(lab: Lab, browser: object, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A notebook in JupyterLab, all cells run: running it is what takes the time, so all tests here share it."""
    tab = Tab(lab, browser, f"{request.param}.ipynb")
    assert all(
        alt for alt in tab.page.locator(".jp-OutputArea img").evaluate_all("all => all.map((i) => i.alt)")
    ), "a picture has no alt"
    tab.run_all()
    yield tab
    tab.close()


def test_notebook_runs_in_the_browser(ran: Tab, shots: Path | None) -> None:
    sources = (REPOSITORY / "notebooks" / ran.name).read_text(encoding="utf-8").count("live.")
    prompts = ran.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
    assert ran.error_outputs() == [] and ran.outside == []
    assert not [p for p in prompts if "*" in p], prompts
    assert "Error displaying widget" not in ran.page.locator(".jp-Notebook").inner_text()
    assert bool(sources) == bool(ran.page.locator(".lb-live").count())
    for box in ran.page.locator(".lb-live").all():
        box.scroll_into_view_if_needed()
        box.locator("svg").first.wait_for(timeout=30_000)
    if shots:
        photograph(ran, shots, ran.name.removesuffix(".ipynb"))
        tall_picture(ran, shots / f"{ran.name.removesuffix('.ipynb')}.png")
    assert ran.errors == []


def test_its_page_works_without_kernel_and_network(ran: Tab, browser: object, tmp_path: Path, shots: Path | None) -> None:
    """The page is made of what JupyterLab saved: the same cells, outputs and explorers as after `make html`."""
    source, explorers = REPOSITORY / "notebooks" / ran.name, ran.page.locator(".lb-live").count()
    [book] = run.stored([ran.saved()]).values()
    site.write(REPOSITORY, tmp_path / "html", {source: book})
    for width in (1200, 800):
        with visited(browser, tmp_path / "html" / f"{source.stem}.html", width) as page:
            assert page.locator(".lb-live").count() == explorers and page.locator(".stored").count() == 0
            is_readable(page)
            for box in page.locator(".lb-live").all() if width == 1200 else ():
                responds(page, box)
            pictures(page, shots, f"{source.stem}_{width}")


def tall_picture(tab: Tab, path: Path) -> None:
    """The whole notebook in one picture, at both widths."""
    for width in (1200, 800):
        tab.page.set_viewport_size({"width": width, "height": 1400})
        height = tab.page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollHeight")
        tab.page.set_viewport_size({"width": width, "height": min(15_000, height + 200)})
        tab.page.wait_for_timeout(800)
        tab.page.screenshot(path=path.with_stem(f"{path.stem}_{width}"))
