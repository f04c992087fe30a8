"""Explorers in a real JupyterLab: run all, move a control, see the picture change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from browser_lab import Lab, Tab, photograph

MADE_HERE = "explorers.ipynb"
CELLS = [
    "import torch\nfrom lowbit_nb import live\ntorch.manual_seed(0)\n"
    "W, X = torch.randn(8, 256) * 0.05, torch.randn(500, 64)",
    "live.grid_explorer(W, importance=torch.rand(256), name='a test layer', group=64)",
    "X = X + 0.6 * X.roll(1, 1)\n"
    "live.hessian_explorer(X.T @ X / len(X), W[:, :64], name='a test layer', group=16)",
]


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> str:
    """A notebook as a reader finds it: never run here, so untrusted; stored outputs, no widget state."""
    scope: dict = {}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for n, source in enumerate(CELLS):
        cell = nbformat.v4.new_code_cell(source, id=f"cell-{n}", execution_count=n + 1)
        *before, last = source.splitlines()
        exec("\n".join(before if n else before + [last]), scope)
        if n:
            bundle, _ = eval(last, scope)._repr_mimebundle_()
            stored = {k: v for k, v in bundle.items() if k.startswith("text/")}
            cell.outputs = [nbformat.v4.new_output("execute_result", data=stored, execution_count=n + 1)]
        book.cells.append(cell)
    nbformat.write(book, lab.folder / MADE_HERE)
    return MADE_HERE


@pytest.fixture(scope="module")
def unrun(lab: Lab, browser: object, notebook: str) -> Iterator[Tab]:
    tab = Tab(lab, browser, notebook)
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def ran(lab: Lab, browser: object, notebook: str, unrun: Tab) -> Iterator[Tab]:
    tab = Tab(lab, browser, notebook)
    tab.run_all()
    tab.page.wait_for_selector(".lb-hessian svg", timeout=60_000)
    yield tab
    tab.close()


def test_fallback_is_there_before_running(unrun: Tab) -> None:
    pictures = unrun.page.locator(".jp-OutputArea details img[alt]")
    pictures.nth(7).wait_for(state="attached", timeout=60_000)
    assert pictures.count() == 8
    assert pictures.first.is_visible() and pictures.first.evaluate("i => i.complete && i.naturalWidth > 300")
    closed = unrun.page.locator(".jp-OutputArea details summary").nth(1)
    closed.click()
    assert pictures.nth(1).is_visible()
    assert unrun.page.locator(".lb-live").count() == 0 and not unrun.outside


def test_explorers_run_clean(ran: Tab) -> None:
    assert ran.page.locator(".lb-live").count() == 2
    assert ran.error_outputs() == [] and ran.errors == [] and ran.outside == []
    assert "Error displaying widget" not in ran.page.locator(".jp-Notebook").inner_text()
    assert ran.page.locator(".lb-fallback").count() == 0


@pytest.mark.parametrize(
    ("root", "label", "key", "count"),
    [
        (".lb-grid", "Bits a code", "ArrowDown", 4),
        (".lb-grid", "Clip", "ArrowLeft", 4),
        (".lb-grid", "Group shown", "ArrowRight", 4),
        (".lb-hessian", "Column order", "ArrowDown", 4),
        (".lb-hessian", "Damping", "ArrowRight", 4),
        (".lb-hessian", "Column", "ArrowRight", 4),
    ],
)
def test_keyboard_changes_readout_and_picture(ran: Tab, root: str, label: str, key: str, count: int) -> None:
    box = ran.page.locator(root)
    read, draw = (
        box.locator(".lb-readout").inner_text(),
        box.locator("svg").evaluate_all("all => all.map((s) => s.outerHTML).join()"),
    )
    control = box.get_by_label(label, exact=True)
    control.focus()
    ran.page.keyboard.press(key)
    ran.page.wait_for_function(
        "([root, read, draw]) => { const box = document.querySelector(root);"
        " return box.querySelector('.lb-readout').innerText !== read"
        " && [...box.querySelectorAll('svg')].map((s) => s.outerHTML).join() !== draw; }",
        arg=[root, read, draw],
    )
    assert control.evaluate("e => e === document.activeElement"), "the notebook took the key"
    assert box.locator("svg").count() == count and ran.errors == []


def test_screenshots(ran: Tab, shots: Path | None) -> None:
    if shots is None:
        pytest.skip("set LOWBIT_NB_SHOTS to a folder to keep screenshots")
    for dark in (False, True):
        ran.dark(dark)
        photograph(ran, shots, f"lab{'_dark' if dark else ''}")
