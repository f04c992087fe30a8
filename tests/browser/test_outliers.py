"""The outlier explorer without kernel or network, and in JupyterLab: the package's numbers, names, pointer, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, data, fits, made, opened

from lowbit_nb import live
from lowbit_nb.live.base import percent

SOURCE = """import torch
from lowbit_nb import live
generator = torch.Generator().manual_seed(1)
W, X = torch.randn(32, 128, generator=generator), torch.randn(400, 128, generator=generator)
W[torch.rand(32, 128, generator=generator) < 0.01] *= 5
X = (X + 0.5 * X.roll(1, 1)) * torch.linspace(0.3, 2, 128)
live.outlier_explorer(W, X.T @ X / 400, name="test layer")"""


@pytest.fixture(scope="module")
def explorer() -> live.OutlierExplorer:
    return made(SOURCE)


def number(page: object, name: str) -> float:
    return float(data(page, name))


def is_the_weight(page: object, explorer: live.OutlierExplorer, k: int, place: int) -> None:
    """What is said of one weight is what the package rounded it to."""
    one, row, column = explorer.survey.outcomes[k], *divmod(place, 128)
    base, cost = one.stored.base, float(one.cost[row, column])
    assert int(number(page, "place")) == place and int(number(page, "code")) == int(base.q[row, column])
    shown = {"cost": cost, "mark": float(base.dequantize()[row, column]),
             "correction": float((one.stored.dequantize() - base.dequantize())[row, column])}
    assert {name: number(page, name) for name in shown} == pytest.approx(shown, rel=1e-3, abs=1e-6)
    words = page.locator(".lb-o-line").inner_text()
    assert words.startswith(f"Row {row}, input {column}: weight ") and f"code {int(base.q[row, column])} of 0 to 7" in words
    assert ("it leaves" in words) == bool(one.kept[row, column])


def test_every_threshold_shows_the_packages_numbers(context: object, explorer: live.OutlierExplorer) -> None:
    page, problems = opened(context, explorer)
    for k, one in enumerate(explorer.survey.outcomes):
        page.get_by_label("Threshold", exact=True).fill(str(k))
        shown = {"threshold": one.threshold, "share": one.share, "bits": sum(one.parts), "error": one.error}
        assert {name: number(page, name) for name in shown} == pytest.approx(shown, rel=1e-6)
        assert int(data(page, "outside")) == len(one.stored.values)
        for name, counts in zip(("inside", "left"), one.counts, strict=True):
            assert abs(counts - [int(n) for n in data(page, name).split(",")]).sum() <= 2  # one may sit on an edge
        assert page.locator(".lb-o-picture .lb-o-mark").get_attribute("d").count("M") == len(one.stored.values)
        words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
        assert f"output error {percent(one.error)}" in words and ("no weight leaves" in words) == (not one.share)
        is_the_weight(page, explorer, k, explorer.row * 128 + explorer.column)
    assert not problems


@pytest.mark.parametrize(("k", "row", "column"), [(0, 3, 5), (4, 31, 127), (7, 0, 0), (9, 17, 64)])
def test_every_weight_is_told_as_the_package_rounded_it(
    context: object, explorer: live.OutlierExplorer, k: int, row: int, column: int
) -> None:
    page, problems = opened(context, explorer)
    for label, value in (("Threshold", k), ("Row", row), ("Input", column)):
        page.get_by_label(label, exact=True).fill(str(value))
    is_the_weight(page, explorer, k, row * 128 + column)
    marks = page.get_by_role("img", name=f"row {row}, inputs").locator(".lb-o-tick").count()
    leavers = page.get_by_role("img", name=f"row {row}, inputs").locator(".lb-o-leaver").count()
    first = column // 16 * 16
    assert (marks, leavers) == (8, int(explorer.survey.outcomes[k].kept[row, first : first + 16].sum())) and not problems


def test_the_pointer_tells_and_a_click_chooses(context: object, explorer: live.OutlierExplorer) -> None:
    page, problems = opened(context, explorer)
    k, picture = explorer.chosen, page.locator(".lb-o-picture .lb-click")
    start, box = int(data(page, "place")), picture.bounding_box()
    place = 20 * 128 + 77
    x, y = box["x"] + (77.5 / 128) * box["width"], box["y"] + (20.5 / 32) * box["height"]
    page.mouse.move(x, y)
    is_the_weight(page, explorer, k, place)
    assert page.get_by_label("Row", exact=True).input_value() == str(start // 128), "the pointer alone chooses nothing"
    page.mouse.move(box["x"] + 5, box["y"] - 60)
    assert int(data(page, "place")) == start
    page.mouse.click(x, y)
    assert page.get_by_label("Row", exact=True).input_value() == "20"
    assert page.get_by_label("Input", exact=True).input_value() == "77"
    is_the_weight(page, explorer, k, place)
    page.get_by_role("img", name="row 20, inputs 64 to 79").locator(".lb-click").nth(3).click()
    assert page.get_by_label("Input", exact=True).input_value() == "67" and not problems


def test_buttons_and_pictures_choose(context: object, explorer: live.OutlierExplorer) -> None:
    page, problems = opened(context, explorer)
    threshold, found = page.get_by_label("Threshold", exact=True), explorer.survey.outcomes
    page.get_by_role("img", name="output error against bits").locator(".lb-click").nth(8).click()
    assert threshold.input_value() == "8"
    page.get_by_role("button", name="dearest weight").click()
    assert int(data(page, "place")) == int(found[8].cost.argmax())
    out = found[8].kept.flatten().nonzero().flatten().tolist()
    page.get_by_label("Row", exact=True).fill("0")
    page.get_by_label("Input", exact=True).fill("0")
    for wanted in ([i for i in out if i > 0][0], [i for i in out if i > 0][1]):
        page.get_by_role("button", name="next outlier").click()
        assert int(data(page, "place")) == wanted
    for _ in range(3):
        page.get_by_role("button", name="previous outlier").click()
    assert int(data(page, "place")) == (out[-2] if out[0] else out[-1])
    counts = page.get_by_role("img", name="weights by cost").locator(".lb-click")
    box = counts.bounding_box()
    counts.click(position={"x": box["width"] * (5 - 0.301) / 7, "y": 20})  # cost 0.5
    assert threshold.input_value() == "3" and number(page, "threshold") == 0.5
    page.get_by_role("button", name="no threshold").click()
    place = data(page, "place")
    page.get_by_role("button", name="next outlier").click()  # there is none
    assert threshold.input_value() == "0" and data(page, "place") == place and not problems


def test_every_control_has_a_name_and_a_key(context: object, explorer: live.OutlierExplorer) -> None:
    page, problems = opened(context, explorer)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ('slider "Threshold"', 'combobox "Picture shows"', 'slider "Row"', 'slider "Input"', 'img "32 by 128 weights'):
        assert name in tree, tree
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        page.keyboard.press("ArrowDown")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
    spoken = page.locator(".lb-o-line").inner_text()
    page.get_by_role("button", name="next outlier").focus()
    page.keyboard.press("Enter")
    assert page.locator(".lb-o-line").inner_text() != spoken and not problems


def test_a_change_from_python_is_drawn(context: object, explorer: live.OutlierExplorer) -> None:
    page, problems = opened(context, explorer)
    page.evaluate("() => { model.set('chosen', 9); model.set('row', 7); model.set('view', 'cost'); }")
    assert page.get_by_label("Threshold", exact=True).get_attribute("aria-valuetext") == "0.05"
    assert "Cost of rounding" in page.locator(".lb-o-picture").inner_text()
    is_the_weight(page, explorer, 9, 7 * 128 + explorer.column)
    assert not problems


@pytest.mark.parametrize("width", [360, 620, 800, 1200])
def test_nothing_is_wider_than_the_page(
    context: object, explorer: live.OutlierExplorer, width: int, shots: Path | None
) -> None:
    for dark in (False, True):
        with at_width(context, explorer, width, dark, shots, "outlier") as page:
            for k in (0, 5, 9):
                page.get_by_label("Threshold", exact=True).fill(str(k))
                fits(page, width)
            page.get_by_label("Threshold", exact=True).fill("5")


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.OutlierExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "outlier", shots) as tab:
        with key_pressed(tab, "Threshold"):
            tab.page.wait_for_function("() => document.querySelector('.lb-readout').innerText.startsWith('Threshold 0.15')")
        assert number(tab.page, "error") == pytest.approx(explorer.survey.outcomes[6].error, rel=1e-6)
