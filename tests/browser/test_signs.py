"""The sign-and-scale explorer without kernel or network, and in JupyterLab: the package's numbers, names, clicks, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import choose, fits, made, opened

from lowbit_nb import live
from lowbit_nb.live import signs as explorers
from lowbit_nb.live.base import percent
from lowbit_nb.show import digits

SOURCE = """import torch
from lowbit_nb import live
generator = torch.Generator().manual_seed(1)
W = torch.randn(48, 200, generator=generator) * torch.linspace(0.3, 2, 200) + 0.1
W[5] = W[5] ** 3
live.sign_explorer(W, rows=[0, 5, 9, 30, 31, 47], name="test layer")"""


@pytest.fixture(scope="module")
def explorer() -> live.SignExplorer:
    return made(SOURCE)


def data(page: object, name: str) -> list[float]:
    return [float(x) for x in page.locator(".lb-live").get_attribute(f"data-{name}").split(",")]


def is_the_packages(page: object, explorer: live.SignExplorer, code: str, row: int, split: int = -1) -> None:
    """What is stored of a row, its angle, error and second bits, worked out in the page and by the package."""
    found = explorer.rows.coded(code, split if code == "split" else -1)
    assert data(page, "stored") == pytest.approx(found.W_hat[row].tolist(), rel=1e-5, abs=1e-7)
    shown = {name: data(page, name)[0] for name in ("cosine", "angle", "error", "share", "entropy", "bits")}
    share = found.share(row)
    assert shown == pytest.approx({"cosine": float(found.cosine[row]), "angle": float(found.angle[row]), "share": share,
                                   "error": float(found.error[row]), "entropy": explorers.entropy(share),
                                   "bits": sum(explorers.bits_of(code, *explorer.size))}, rel=1e-5, abs=1e-9)
    assert data(page, "angles") == pytest.approx(found.angle.tolist(), rel=1e-5)
    words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
    assert f"angle {digits(float(found.angle[row]))} degrees" in words and f"squared error {percent(found.error[row])}" in words
    assert words.startswith(f"Row {explorer.names[row]}, {explorers.CODES[code]}")


def test_every_code_of_every_row_is_the_packages(context: object, explorer: live.SignExplorer) -> None:
    page, problems = opened(context, explorer)
    for code in explorers.CODES:
        for row in range(len(explorer.names)):
            choose(page, code=code, row=row)
            is_the_packages(page, explorer, code, row)
    tile = page.locator(".lb-tile", has_text="The second bit")
    for code, row in (("one", 0), ("columns", 1)):  # row 1 is the one that the column scales follow
        choose(page, code=code, row=row)
        least = min(float(explorer.rows.coded(c).error[row]) for c in explorers.SECOND)
        better = least < float(explorer.rows.coded(code).error[row])
        assert ("a second bit could leave" if better else "no code with a second bit does better") in tile.inner_text()
    assert not problems


@pytest.mark.parametrize("split", [0, 17, 40, 80])
def test_groups_part_where_they_are_told(context: object, explorer: live.SignExplorer, split: int) -> None:
    page, problems = opened(context, explorer)
    page.get_by_label("Groups part at", exact=True).fill(str(split))
    assert page.get_by_label("Code").input_value() == "split"
    for row in (0, 1, 5):
        choose(page, row=row)
        is_the_packages(page, explorer, "split", row, split)
    page.get_by_role("button", name="best split").click()
    assert data(page, "split") == [int(explorer.rows.best[5])]
    is_the_packages(page, explorer, "split", 5)
    assert not problems


def test_the_table_holds_every_code(context: object, explorer: live.SignExplorer) -> None:
    page, problems = opened(context, explorer)
    choose(page, row=1, code="two")
    rows = page.locator(".lb-s-table tbody tr").all()
    assert [row.get_attribute("aria-current") for row in rows] == [None, None, None, "true", None, None]
    errors = data(page, "errors")
    for row, code, error in zip(rows, explorers.CODES, errors, strict=True):
        found = explorer.rows.coded(code)
        assert error == pytest.approx(float(found.error[1]), rel=1e-5)
        cells = [x.replace("\xa0", " ") for x in row.locator("td").all_inner_texts()]
        each, scales = explorers.bits_of(code, *explorer.size)
        second = digits(explorers.entropy(found.share(1))) if code in explorers.SECOND else "–"
        angle = f"{digits(float(found.angle[1]))}°"
        assert cells == [str(int(each)), digits(each + scales), angle, percent(found.error[1]), second]
    rows[4].click()
    is_the_packages(page, explorer, "split", 1)
    assert not problems


def test_pictures_and_buttons_choose(context: object, explorer: live.SignExplorer) -> None:
    page, problems = opened(context, explorer)
    angle = explorer.rows.coded("one").angle
    page.get_by_role("button", name="widest angle").click()
    assert page.get_by_label("Row", exact=True).input_value() == str(int(angle.argmax()))
    page.get_by_role("button", name="narrowest angle").click()
    assert page.get_by_label("Row", exact=True).input_value() == str(int(angle.argmin()))
    hit = page.get_by_role("img", name="angle of 6 rows").locator(".lb-click")
    box = hit.bounding_box()
    hit.click(position={"x": box["width"] * (3 + 0.7) / 6.4, "y": 30})
    is_the_packages(page, explorer, "one", 3)
    hit = page.get_by_role("img", name="error of row 30").locator(".lb-click")
    hit.click(position={"x": hit.bounding_box()["width"] * 0.5, "y": 30})
    is_the_packages(page, explorer, "split", 3, 40)
    marks = page.get_by_role("img", name="row 30, 200 weights")
    far = int(explorer.rows.far(40)[3].sum())
    assert (marks.locator(".lb-s-far").count(), marks.locator(".lb-s-near").count()) == (far, 200 - far) and not problems


def test_every_control_has_a_name_and_a_key(context: object, explorer: live.SignExplorer) -> None:
    page, problems = opened(context, explorer)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img|table)(:|$)", tree, re.M), tree
    for name in ('combobox "Code"', 'slider "Row"', 'slider "Groups part at"', 'img "angle of', 'button "best split"'):
        assert name in tree, tree
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        page.keyboard.press("ArrowDown")
        if control.input_value() == start:
            page.keyboard.press("ArrowUp")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
    page.get_by_role("button", name="widest angle").focus()
    page.keyboard.press("Enter")
    assert page.get_by_label("Row", exact=True).input_value() == "1" and not problems


@pytest.mark.parametrize("width", [360, 620, 800, 1200])
def test_nothing_is_wider_than_the_page(context: object, explorer: live.SignExplorer, width: int, shots: Path | None) -> None:
    for dark in (False, True):
        page, problems = opened(context, explorer, dark)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(200)
        for code in explorers.CODES:
            choose(page, code=code, row=1)
            fits(page, width)
            if shots and (code == "one" or width == 1200):
                page.screenshot(path=shots / f"page_sign_{code}_{width}{'_dark' if dark else ''}.png", full_page=True)
        assert not problems
        page.close()


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.SignExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "sign", shots) as tab:
        with key_pressed(tab, "Row"):
            tab.page.wait_for_function("() => document.querySelector('.lb-readout').innerText.startsWith('Row 5,')")
        is_the_packages(tab.page, explorer, "one", 1)
