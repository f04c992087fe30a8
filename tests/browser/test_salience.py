"""The salient-channel explorer without kernel or network, and in JupyterLab: the package's numbers, names, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, data, fits, made, opened

from lowbit_nb import live
from lowbit_nb.live.base import percent
from lowbit_nb.transforms import salience

SOURCE = """import torch
from lowbit_nb import live
generator = torch.Generator().manual_seed(1)
W, X = torch.randn(24, 128, generator=generator), torch.randn(400, 128, generator=generator)
X = (X + 0.5 * X.roll(1, 1)) * torch.linspace(0.3, 2, 128)
X[:, 7] *= 8
live.salience_explorer(W, X.T @ X / 400, X.abs().amax(0), group=32, name="test layer")"""


@pytest.fixture(scope="module")
def explorer() -> live.SalienceExplorer:
    return made(SOURCE)


def number(page: object, name: str) -> float:
    return float(data(page, name))


def test_every_setting_shows_the_packages_numbers(context: object, explorer: live.SalienceExplorer) -> None:
    page, problems = opened(context, explorer)
    found = explorer.survey
    for criterion, bits, step, k in (("x", 2, 0, 2), ("peak", 3, 9, 1), ("w", 4, 20, 64), ("H", 2, 13, 0), ("x", 3, 1, 12)):
        page.get_by_label("Importance by").select_option(criterion)
        page.get_by_label("Bits a code", exact=True).select_option(str(bits))
        page.get_by_label("Exponent", exact=True).fill(str(step))
        page.get_by_label("Kept exact", exact=True).fill(str(found.counts.index(k) + 1 if k else 0))
        c, b, s = found.at(criterion), found.bits.index(bits), salience(found.sizes[criterion], step / 20)
        best, error = found.best(criterion, bits), found.total[c, b, step]
        shown = {"error": error, "plain": found.total[c, b, 0], "salient": found.salient[c, b, step], "best": best / 20,
                 "best-error": found.total[c, b, best], "least": float(s.min()), "most": float(s.max())}
        assert {name: number(page, name) for name in shown} == pytest.approx(shown, rel=1e-5)
        order = found.sizes[criterion].argsort(descending=True, stable=True)
        assert data(page, "top") == ",".join(map(str, order[:2].tolist()))
        left = found.kept[c, b, step, :, found.counts.index(k)] if k else []
        assert [float(v) for v in data(page, "kept").split(",") if v] == pytest.approx(list(left), rel=1e-6)
        words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
        assert f"exponent {step / 20:.2f}" in words and f"an output error of {percent(error)}" in words
        assert (f"With the {k} most important" in words) == bool(k) and (not k or percent(left[c]) in words)
    assert not problems


@pytest.mark.parametrize("order", ["sorted", "in place"])
def test_the_bars_are_the_channels(context: object, explorer: live.SalienceExplorer, order: str) -> None:
    page, problems = opened(context, explorer)
    page.get_by_label("Channels drawn").select_option(order)
    size = explorer.survey.sizes["x"]
    size = size.sort(descending=True).values if order == "sorted" else size
    path = page.get_by_role("img", name="importance of 128 channels").locator(".lb-s-other").get_attribute("d")
    tops = [float(v) for v in re.findall(r"V([\d.]+)H", path)]
    ground = float(re.match(r"M[\d.]+,([\d.]+)V", path)[1])
    top = set(size.argsort(descending=True)[:2].tolist())
    share = (ground - 52) / float(size.max())  # the strip's upper edge is the largest size
    assert tops == pytest.approx([ground - share * float(v) if i not in top else ground for i, v in enumerate(size)], abs=0.11)
    assert page.locator(".lb-s-top").count() == 4 and not problems


def test_buttons_and_clicks_choose(context: object, explorer: live.SalienceExplorer) -> None:
    page, problems = opened(context, explorer)
    slider, found = page.get_by_label("Exponent", exact=True), explorer.survey
    for name, step in (("no scaling", 0), ("exponent 1", 20), ("best exponent", found.best("x", 2))):
        page.get_by_role("button", name=name).click()
        assert int(slider.input_value()) == step
    page.get_by_role("img", name="output error by exponent").locator(".lb-click").nth(15).click()
    assert int(slider.input_value()) == 15
    page.get_by_role("img", name="channels kept exact").get_by_text("|w| rms").click()
    assert page.get_by_label("Importance by").input_value() == "w"
    assert number(page, "error") == pytest.approx(found.total[2, 0, 15], rel=1e-6) and not problems


def test_every_control_has_a_name_and_a_key(context: object, explorer: live.SalienceExplorer) -> None:
    page, problems = opened(context, explorer)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ('combobox "Importance by"', 'slider "Exponent"', 'slider "Kept exact"', 'img "scale of 128 channels'):
        assert name in tree, tree
    read = page.locator(".lb-readout").inner_text
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        spoken = read()
        control.focus()
        page.keyboard.press("ArrowUp" if start == "in place" else "ArrowDown")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
        assert start == "in place" or read() != spoken
    assert not problems


def test_a_change_from_python_is_drawn(context: object, explorer: live.SalienceExplorer) -> None:
    page, problems = opened(context, explorer)
    page.evaluate("() => { model.set('criterion', 'H'); model.set('exponent', 0.35); }")
    assert page.get_by_label("Exponent", exact=True).get_attribute("aria-valuetext") == "0.35"
    assert number(page, "error") == pytest.approx(explorer.survey.total[3, 0, 7], rel=1e-6) and not problems


@pytest.mark.parametrize("width", [360, 620, 1100, 1200])
def test_nothing_is_wider_than_the_page(
    context: object, explorer: live.SalienceExplorer, width: int, shots: Path | None
) -> None:
    for dark in (False, True):
        with at_width(context, explorer, width, dark, shots, "salience") as page:
            for criterion in explorer.criteria:
                page.get_by_label("Importance by").select_option(criterion)
                fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.SalienceExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "salience", shots) as tab:
        with key_pressed(tab, "Exponent"):
            tab.page.wait_for_function("() => document.querySelector('.lb-readout').innerText.includes('exponent 0.55')")
        assert number(tab.page, "error") == pytest.approx(explorer.survey.total[0, 0, 11], rel=1e-5)
