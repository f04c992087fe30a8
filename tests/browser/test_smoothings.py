"""The smoothing explorer without kernel or network, and in JupyterLab: the package's numbers, names, clicks, keys."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, choose, fits, made, opened

from lowbit_nb import live
from lowbit_nb.live import smoothed, smoothings
from lowbit_nb.live.base import percent
from lowbit_nb.live.smoothed import BASES, POINTS

SOURCE = """import torch
from lowbit_nb import live
generator = torch.Generator().manual_seed(1)
X, W = torch.randn(200, 96, generator=generator), torch.randn(80, 96, generator=generator)
X = (X + 0.5 * X.roll(1, 1)) * torch.linspace(0.3, 2, 96)
X[:, 7] *= 4
X[5:11] = torch.tensor([[0.0], [0.0], [1.5], [1.5], [-1.5], [-1.5]])
X[11:13] = torch.arange(96) % 31 / 2
X[[0, 100, 150], 11] = torch.tensor([300.0, -260.0, 240.0])
live.smoothing_explorer(X, W, name="test layer")"""

OVER = ("all", "ordinary")


@pytest.fixture(scope="module")
def explorer() -> live.SmoothingExplorer:
    return made(SOURCE)


def data(page: object, name: str) -> list[float]:
    return [float(x) for x in page.locator(".lb-live").get_attribute(f"data-{name}").split(",")]


def set_point(page: object, p: int, **more: object) -> None:
    kind, parameter = POINTS[p]
    choose(page, kind=kind, **({"exponent": parameter} if kind == "exponent" else {"base": parameter}), **more)


def is_the_packages(page: object, explorer: live.SmoothingExplorer, p: int, bits: int, bits_w: int, over: str) -> None:
    """Factors, maxima and errors of one setting, worked out in the page and by the package."""
    found, few = explorer.survey, over == "ordinary"
    wanted = [found.error(p, *b, few) for b in ((bits, bits_w), (bits, 16), (16, bits_w))]
    assert data(page, "error") == pytest.approx(wanted[:1], rel=1e-9, abs=1e-12)
    assert [data(page, name)[0] for name in ("only-x", "only-w")] == pytest.approx(wanted[1:], rel=1e-6)
    assert data(page, "factors") == smoothed.factors(*POINTS[p], found.a, found.w).tolist()
    for name, before, after in zip("xw", (found.a, found.w), found.smoothed(p), strict=True):
        assert data(page, name) == pytest.approx([smoothings.unevenness(t) for t in (before, after)], rel=1e-6)
    words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
    assert words.startswith(smoothings.words(p)) and f"output error {percent(wanted[0])}" in words
    assert f"{percent(wanted[1])} if only activations are rounded, {percent(wanted[2])} if only weights" in words


def test_every_setting_shows_the_packages_numbers(context: object, explorer: live.SmoothingExplorer) -> None:
    page, problems = opened(context, explorer)
    is_the_packages(page, explorer, smoothings.HALF, 4, 4, "all")
    for p in range(len(POINTS)):
        bits, bits_w, over = (4, 4, "all") if p % 2 else ((3, 6, 8, 16)[p // 2 % 4], (16, 3, 8)[p % 3], OVER[p // 2 % 2])
        set_point(page, p, bits=bits, bits_w=bits_w, over=over)
        is_the_packages(page, explorer, p, bits, bits_w, over)
    choose(page, bits=16, bits_w=16)
    assert data(page, "error") == [0] and not problems


def test_the_error_is_worked_out_and_not_only_shown(context: object, explorer: live.SmoothingExplorer) -> None:
    """The table that was sent has no part in it: with other weights, the error is that of the other weights."""
    other = made(SOURCE.replace("manual_seed(1)", "manual_seed(2)"))
    mixed = live.SmoothingExplorer(explorer.survey, shape=explorer.shape, names=explorer.names)
    mixed.inputs, mixed.weights, mixed.peaks, mixed.counts = other.inputs, other.weights, other.peaks, other.counts
    page, problems = opened(context, mixed)
    for p, (bits, bits_w) in product((0, 11, 25), ((4, 4), (3, 16), (16, 6))):
        set_point(page, p, bits=bits, bits_w=bits_w)
        assert data(page, "error") == pytest.approx([other.survey.error(p, bits, bits_w)], rel=1e-9)
        assert data(page, "error") != pytest.approx([explorer.survey.error(p, bits, bits_w)], rel=1e-5)
    assert not problems


@pytest.mark.parametrize("change", [("live.smoothing_explorer(X, W,", "X[:, 20] = 0\nlive.smoothing_explorer(X, W, group=32,"),
                                    ("96", "95")], ids=["groups and a dead input", "an odd number of inputs"])
def test_other_layers_are_rounded_as_in_the_package(context: object, change: tuple[str, str]) -> None:
    other = made(SOURCE.replace(*change))
    page, problems = opened(context, other)
    for p in (0, 11, 25):
        set_point(page, p)
        is_the_packages(page, other, p, 4, 4, "all")
    assert not problems


def test_the_best_are_named_and_compared(context: object, explorer: live.SmoothingExplorer) -> None:
    page, problems = opened(context, explorer)
    found = explorer.survey
    e, b = (found.best(kind, 4) for kind in ("exponent", "logarithm"))
    names = ("best-exponent", "best-base", "least-exponent", "least-base", "plain")
    wanted = [POINTS[e][1], POINTS[b][1], found.error(e, 4), found.error(b, 4), found.error(0, 4)]
    assert [data(page, name)[0] for name in names] == pytest.approx(wanted, rel=1e-6)
    bars = page.get_by_role("img", name="output error by kind of smoothing").get_attribute("aria-label").replace("\xa0", " ")
    for name, p in (("no smoothing", 0), ("exponent 0.5", smoothings.HALF), (f"best exponent, {POINTS[e][1]:g}", e),
                    ("base 2", smoothings.LOG2), (f"best base, {POINTS[b][1]:g}", b)):
        assert f"{name} {percent(found.error(p, 4))}" in bars, bars
    for name, p in (("best exponent", e), ("logarithm to base 2", smoothings.LOG2), ("best base", b), ("no smoothing", 0)):
        page.get_by_role("button", name=name).click()
        is_the_packages(page, explorer, p, 4, 4, "all")
    assert not problems


def test_massive_tokens_are_marked_and_can_be_left_out(context: object, explorer: live.SmoothingExplorer) -> None:
    page, problems = opened(context, explorer)
    assert data(page, "massive") == explorer.massive and len(explorer.massive) == 3
    assert page.locator(".lb-sm-mark").count() == 3
    assert "3 of 200" in page.locator(".lb-tile", has_text="Massive tokens").inner_text()
    page.get_by_label("Error over").select_option("ordinary")
    is_the_packages(page, explorer, smoothings.HALF, 4, 4, "ordinary")
    assert "tokens that are not massive" in page.locator(".lb-readout").inner_text()
    calm = made("\n".join(line for line in SOURCE.splitlines() if "300.0" not in line))
    page, more = opened(context, calm)
    assert page.get_by_label("Error over").is_disabled() and page.locator(".lb-sm-mark").count() == 0
    assert "none of 200" in page.locator(".lb-tile", has_text="Massive tokens").inner_text() and not problems + more


@pytest.mark.parametrize("order", ["sorted", "in place"])
def test_the_lines_are_the_channels(context: object, explorer: live.SmoothingExplorer, order: str) -> None:
    page, problems = opened(context, explorer)
    page.get_by_label("Channels drawn").select_option(order)
    found, after = explorer.survey, explorer.survey.smoothed(smoothings.HALF)
    at = found.a.argsort(descending=True, stable=True) if order == "sorted" else range(96)
    for name, *lines in zip("xw", (found.a, found.w), after, strict=True):
        picture = page.get_by_role("img", name=f"largest |{name}| of each channel")
        heights = []
        for cls, values in zip(("before", "after"), lines, strict=True):
            path = picture.locator(f".lb-sm-{cls}").get_attribute("d")
            y = [float(v) for v in re.findall(r"(?:^M[\d.]+,|V)([\d.]+)H", path)]
            assert len(y) == 96
            heights += zip((values[i].log10() for i in at), y, strict=True)
        (low, bottom), (high, top) = min(heights), max(heights)
        slope = float((top - bottom) / (high - low))  # one logarithmic axis for both lines
        assert [y for _, y in heights] == pytest.approx([bottom + slope * float(v - low) for v, _ in heights], abs=0.15)
    assert not problems


def test_clicks_and_sliders_choose(context: object, explorer: live.SmoothingExplorer) -> None:
    page, problems = opened(context, explorer)
    page.get_by_role("img", name="output error by base").locator(".lb-click").nth(5).click()
    assert page.get_by_label("Smoothing by").input_value() == "logarithm"
    assert page.get_by_label("Logarithm base", exact=True).get_attribute("aria-valuetext") == f"{BASES[5]:g}"
    is_the_packages(page, explorer, 27, 4, 4, "all")
    page.get_by_role("img", name="output error by exponent").locator(".lb-click").nth(17).click()
    is_the_packages(page, explorer, 18, 4, 4, "all")
    page.get_by_role("img", name="output error by kind").get_by_text("no smoothing").click()
    is_the_packages(page, explorer, 0, 4, 4, "all")
    page.get_by_label("Exponent α", exact=True).fill("14")
    page.get_by_label("Activations").select_option("6")
    page.get_by_label("Weights").select_option("3")
    is_the_packages(page, explorer, 15, 6, 3, "all")
    assert not problems


def test_every_control_has_a_name_and_a_key(context: object, explorer: live.SmoothingExplorer) -> None:
    page, problems = opened(context, explorer)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ('combobox "Smoothing by"', 'slider "Exponent α"', 'slider "Logarithm base"', 'combobox "Error over"',
                 'img "largest |x| of each token'):
        assert name in tree, tree
    read = page.locator(".lb-readout").inner_text
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start, spoken = page.locator(".lb-live").inner_html(), control.input_value(), read()
        control.focus()
        page.keyboard.press("ArrowDown")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
        assert start == "sorted" or read() != spoken
    page.get_by_role("button", name="no smoothing").focus()
    page.keyboard.press("Enter")
    assert page.get_by_label("Smoothing by").input_value() == "none" and not problems


@pytest.mark.parametrize("width", [360, 600, 820, 1200])
def test_nothing_is_wider_than_the_page(
    context: object, explorer: live.SmoothingExplorer, width: int, shots: Path | None
) -> None:
    for dark in (False, True):
        with at_width(context, explorer, width, dark, shots, "smoothing") as page:
            for p, bits in ((0, 8), (36, 16), (21, 3), (11, 4)):
                set_point(page, p, bits=bits)
                fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.SmoothingExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "smoothing", shots) as tab:
        with key_pressed(tab, "Exponent α"):
            tab.page.wait_for_function("() => document.querySelector('.lb-readout').innerText.startsWith('Exponent 0.55,')")
        is_the_packages(tab.page, explorer, 12, 4, 4, "all")
