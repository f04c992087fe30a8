"""The mask explorer without kernel or network, and in JupyterLab: the package's numbers, names, clicks, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, choose, fits, made, opened

from lowbit_nb import live
from lowbit_nb.hessian import error_share
from lowbit_nb.live import masks
from lowbit_nb.live.base import percent

SOURCE = """import torch
from lowbit_nb import live
generator = torch.Generator().manual_seed(1)
W, X = torch.randn(24, 128, generator=generator), torch.randn(400, 128, generator=generator)
X = (X + 0.5 * X.roll(1, 1)) * torch.linspace(0.3, 2, 128)
X[:, 7] *= 6
live.mask_explorer(W, X.T @ X / 400, X.abs().amax(0), name="test layer", span=32)"""


@pytest.fixture(scope="module")
def explorer() -> live.MaskExplorer:
    return made(SOURCE)


def data(page: object, name: str) -> list[float]:
    return [float(x) for x in page.locator(".lb-live").get_attribute(f"data-{name}").split(",")]


def is_the_packages(page: object, explorer: live.MaskExplorer, kind: str, metric: str, k: int, bits: int) -> None:
    """Mask, bits and error of one setting, worked out in the page and by the package."""
    found = explorer.survey
    share, total, error = found.told(kind, metric, k, bits)
    mask = found.mask(kind, metric, masks.SHARES[k])
    assert data(page, "by") == mask.sum(0).tolist() and data(page, "count") == [int(mask.sum())]
    shown = [data(page, name)[0] for name in ("share", "bits", "nominal", "error")]
    wanted = [share, total, masks.total_bits(kind, share, bits, found.span, *found.size)[0], error]
    assert shown == pytest.approx(wanted, rel=2e-4)
    cost = masks.mask_bits(kind, share, found.span, *found.size)
    assert [data(page, name)[0] for name in ("mask", "list", "least")] == pytest.approx(list(cost.values()), rel=1e-6, abs=1e-9)
    words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
    told = re.search(r": ([\d.]+) % salient at (\d) bits.* output error ([\d.]+) %\. At no more", words)
    assert [float(x) for x in told.groups()] == pytest.approx([100 * share, bits, 100 * error], rel=6e-3)  # three digits


def test_every_mask_shows_the_packages_numbers(context: object, explorer: live.MaskExplorer) -> None:
    page, problems = opened(context, explorer)
    is_the_packages(page, explorer, "channel", "absmax", 8, 4)
    for i, kind in enumerate(masks.KINDS):
        for j, metric in enumerate(explorer.metrics):
            for k in (i, 4 + j, 8, 13, 14)[(i + j) % 2 :: 2]:
                bits = explorer.widths[(i + j + k) % len(explorer.widths)]
                choose(page, kind=kind, metric=metric, chosen=k, bits=bits)
                is_the_packages(page, explorer, kind, metric, k, bits)
            assert data(page, "overlap") == pytest.approx(explorer.survey.overlap(kind, masks.SHARES[k]).flatten().tolist())
    assert not problems


def test_the_error_is_worked_out_and_not_only_shown(context: object, explorer: live.MaskExplorer) -> None:
    """The table that was sent has no part in it: with other weights, mask and error are those of the other weights."""
    other = made(SOURCE.replace("manual_seed(1)", "manual_seed(2)"))
    mixed = live.MaskExplorer(explorer.survey, True, about="", names=explorer.names, metric="weight", kind="element")
    mixed.weights = other.weights
    page, problems = opened(context, mixed)
    mask = masks.mask_of(masks.scores(other.survey.W, "weight", None), "element", 0.2, 32)
    assert data(page, "by") == mask.sum(0).tolist()
    wanted = error_share(other.survey.W, masks.coded(other.survey.W, mask, 4), explorer.survey.H)
    assert data(page, "error") == pytest.approx([wanted], rel=2e-4) and not problems


def test_tables_name_the_chosen_and_agree(context: object, explorer: live.MaskExplorer) -> None:
    page, problems = opened(context, explorer)
    cost, overlap = page.locator(".lb-m-table").all()
    rows = cost.locator("tbody tr").all()
    assert [row.get_attribute("aria-current") for row in rows] == [None, None, "true"]
    for row, kind in zip(rows, masks.KINDS, strict=True):
        _, _, error = explorer.survey.told(kind, "absmax", 8, 4)
        cells = row.locator("th, td").all_inner_texts()
        assert cells[0] == masks.KINDS[kind] and cells[-1].replace("\xa0", " ") == percent(error)
    shared = [f"{100 * float(x):.0f}\xa0%" for x in explorer.survey.overlap("channel", 0.2).flatten()]
    assert overlap.locator("tbody td").all_inner_texts() == shared
    words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
    best = min(e for m in explorer.metrics for k in range(15) for _, b, e in [explorer.survey.told("channel", m, k, 4)]
               if b <= explorer.survey.told("channel", "absmax", 8, 4)[1])
    assert f"input channels: {percent(best)} (" in words and not problems


def test_a_click_on_a_point_chooses_its_share(context: object, explorer: live.MaskExplorer) -> None:
    page, problems = opened(context, explorer)
    page.get_by_role("img", name="output error against bits").locator(".lb-click").nth(5).click()
    assert page.get_by_label("Salient share", exact=True).input_value() == "5"
    is_the_packages(page, explorer, "channel", "absmax", 5, 4)
    page.get_by_label("Mask of").select_option("element")
    page.get_by_label("Salient by").select_option("obs")
    page.get_by_label("Bits of a salient weight").select_option("2")
    is_the_packages(page, explorer, "element", "obs", 5, 2)
    assert page.locator(".lb-m-cut").count() == 0
    page.get_by_label("Mask of").select_option("column")
    assert page.locator(".lb-m-cut").count() == 3
    page.get_by_label("Salient share", exact=True).fill("0")
    assert "no weight is salient" in page.locator(".lb-m-picture").inner_text() and not problems


def test_pictures_differ_by_what_they_show(context: object, explorer: live.MaskExplorer) -> None:
    page, problems = opened(context, explorer)
    seen = set()
    for view, words in (("mask", "the others as their sign"), ("stored", "The layer as stored"), ("error", "Squared error")):
        page.get_by_label("Picture shows").select_option(view)
        assert words in page.locator(".lb-m-picture").inner_text()
        seen.add(page.evaluate("() => document.querySelector('.lb-m-picture canvas').toDataURL()"))
    assert len(seen) == 3 and not problems


def test_without_data_there_is_one_metric_and_no_overlap(context: object) -> None:
    alone = made(SOURCE.replace("(W, X.T @ X / 400, X.abs().amax(0), ", "(W, "))
    page, problems = opened(context, alone)
    assert page.locator(".lb-m-overlap").count() == 0 and "weight error" in page.locator(".lb-readout").inner_text()
    assert data(page, "error") == pytest.approx([alone.survey.told("channel", "weight", 8, 4)[2]], rel=2e-4) and not problems


def test_every_control_has_a_name_and_a_key(context: object, explorer: live.MaskExplorer) -> None:
    page, problems = opened(context, explorer)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img|table)(:|$)", tree, re.M), tree
    for name in ('combobox "Mask of"', 'combobox "Salient by"', 'slider "Salient share"', 'img "24 by 128 weights'):
        assert name in tree, tree
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        page.keyboard.press("ArrowUp")
        if control.input_value() == start:
            page.keyboard.press("ArrowDown")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
    assert not problems


@pytest.mark.parametrize("width", [360, 620, 800, 1200])
def test_nothing_is_wider_than_the_page(context: object, explorer: live.MaskExplorer, width: int, shots: Path | None) -> None:
    for dark in (False, True):
        with at_width(context, explorer, width, dark, shots, "mask") as page:
            for kind, k, bits in (("element", 0, 4), ("column", 3, 2), ("channel", 14, 8), ("element", 8, 4)):
                choose(page, kind=kind, chosen=k, bits=bits)
                fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.MaskExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "mask", shots) as tab:
        with key_pressed(tab, "Salient share"):
            tab.page.wait_for_function("() => document.querySelector('.lb-mask').dataset.count === String(32 * 24)")
        is_the_packages(tab.page, explorer, "channel", "absmax", 9, 4)
