"""The Hessian explorer with two metrics, without kernel or network: the package's numbers, names, pointer, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from browser_pages import at_width, fits, opened

from lowbit_nb import live
from lowbit_nb.hessian import condition

SHARES = [0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5]  # the steps of the slider


@pytest.fixture(scope="module")
def pair() -> live.Explorer:
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(400, 96, generator=generator) * torch.linspace(0.5, 2, 96)
    X = X + 0.5 * X.roll(1, 1)
    X[:, 20] = 0  # a dead input
    Y = X * torch.rand(400, 1, generator=generator) ** 3
    Y[:, 3] *= 4
    W = torch.randn(4, 96, generator=generator)
    return live.hessian_explorer(X.T @ X / 400, W, name="test layer", group=32, other=Y.T @ Y / 400)


def numbers(page: object, name: str) -> list[float]:
    return [float(v) for v in page.locator(".lb-hessian").get_attribute(f"data-{name}").split(",") if v]


def test_overlap_distance_and_errors_are_the_packages(context: object, pair: live.Explorer) -> None:
    page, problems = opened(context, pair)
    for step, share in enumerate(SHARES):
        page.get_by_label("Top share", exact=True).fill(str(step))
        found = pair.groups(share)
        assert numbers(page, "both") == [len(found["both"])]
        assert (numbers(page, "first"), numbers(page, "second")) == (found["first"], found["second"])
        words = page.locator(".lb-readout").inner_text()
        assert f"{len(found['both'])} are picked by both metrics, {len(found['first'])} only by input" in words
        strip = page.get_by_role("img", name="square roots of the diagonals")  # a bar and a mark on each side
        assert strip.locator(".lb-p-first").count() == 2 * len(found["first"])
        assert strip.locator(".lb-p-both").count() == 4 * len(found["both"])
    assert numbers(page, "distance") == pytest.approx([pair.distance], rel=1e-5)
    eigenvalues = [torch.linalg.eigvalsh(condition(H.double())[0]) for H in pair.metrics.values()]
    assert numbers(page, "conditions") == pytest.approx([float(e[-1] / e[0]) for e in eigenvalues], rel=1e-4)
    for bits in (2, 4):
        page.get_by_label("Bits a code").select_option(str(bits))
        assert numbers(page, "errors") == pytest.approx([e for row in pair.errors(bits) for e in row], rel=2e-3)
        assert page.get_by_role("row").count() == 4
    assert not problems


def test_a_column_is_told_and_a_click_chooses_it(context: object, pair: live.Explorer) -> None:
    page, problems = opened(context, pair)
    only = pair.groups(0.05)["second"][0]
    assert pair.column == only and "only loss calls it salient" in page.locator(".lb-readout").inner_text()
    for picture in page.locator(".lb-heat .lb-click").all():
        box = picture.bounding_box()
        picture.click(position={"x": box["width"] * 40.5 / 96, "y": box["height"] / 3})
        assert page.get_by_label("Column", exact=True).input_value() == "40"
        page.get_by_label("Column", exact=True).fill("7")
    assert page.locator(".lb-readout").inner_text().split(". ")[1].startswith("input 7: diagonal ")
    strip = page.get_by_role("img", name="square roots of the diagonals").locator(".lb-click")
    strip.click(position={"x": strip.bounding_box()["width"] * 3.5 / 96, "y": 40})
    assert page.get_by_label("Column", exact=True).input_value() == "3" and not problems


def test_every_control_has_a_name_and_a_key(context: object, pair: live.Explorer) -> None:
    page, problems = opened(context, pair)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ('slider "Top share"', 'slider "Column"', 'combobox "Heat maps show"', 'img "heat map of loss, 96 by 96'):
        assert name in tree, tree
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        page.keyboard.press("ArrowDown")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
    assert not problems


def test_a_change_from_python_is_drawn(context: object, pair: live.Explorer) -> None:
    page, problems = opened(context, pair)
    page.evaluate("() => { model.set('share', 0.2); model.set('view', 'correlation'); }")
    assert page.get_by_label("Top share", exact=True).get_attribute("aria-valuetext") == "19 of 96"
    assert "input: correlations" in page.locator(".lb-heat").first.inner_text() and not problems


@pytest.mark.parametrize("width", [360, 620, 800, 1200])
def test_nothing_is_wider_than_the_page(context: object, pair: live.Explorer, width: int, shots: Path | None) -> None:
    for dark in (False, True):
        with at_width(context, pair, width, dark, shots, "pair") as page:
            for view in ("size", "correlation"):
                page.get_by_label("Heat maps show").select_option(view)
                fits(page, width)
