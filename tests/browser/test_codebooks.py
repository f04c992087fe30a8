"""The codebook explorer without kernel or network, and in JupyterLab: the package's k-means, cells, names, pointer, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from browser_lab import Lab, in_jupyterlab
from browser_pages import at_width, data, fits, opened

from lowbit_nb import live
from lowbit_nb.codebooks.kmeans import nearest
from lowbit_nb.live.base import module, percent
from lowbit_nb.live.cuts import Cut, cut

SOURCE = """import torch
from lowbit_nb import live
generator = torch.Generator().manual_seed(1)
W = torch.randn(64, 128, generator=generator) * 0.02
W[torch.rand(64, 128, generator=generator) < 0.005] *= 4
h = torch.rand(128, generator=generator) ** 4 + 0.01
live.codebook_explorer(W, h, residual=8, name="test layer")"""


def scope() -> dict:
    names: dict = {}
    exec("\n".join(SOURCE.splitlines()[:-1]), names)
    return names


@pytest.fixture(scope="module")
def explorer() -> live.CodebookExplorer:
    return eval(SOURCE.splitlines()[-1], scope())


@pytest.fixture(scope="module")
def long() -> live.CodebookExplorer:
    """Vectors of four numbers, no importance."""
    return live.codebook_explorer(scope()["W"], v=4, k=64, name="test layer")


def evaluated(context: object, names: tuple[str, ...], expression: str, data: object) -> object:
    """The value of an expression in which the functions of these files are known."""
    page = context.new_page()
    try:
        return page.evaluate(f"(data) => {{ {module(*names)}\nreturn {expression}; }}", data)
    finally:
        page.close()


def numbers(page: object, name: str) -> list[float]:
    return [float(t) for t in data(page, name).split(",") if t]


def of(page: object, label: str) -> object:
    return page.get_by_label(label, exact=True)


def made(kind: str) -> Cut:
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(40, 60, generator=generator)
    h = torch.rand(60, generator=generator) ** 3
    if kind == "few values":
        W = (2 * W).round().clamp(-3, 3)
    if kind == "far away":  # vectors lose all their points
        W[:, :57], h = W[:, :57] * 1e-3, h + 0.1
    if kind == "dead inputs":
        h[::3] = 0
    return cut(W, h, 3 if kind == "long" else 2, generator)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["usual", "long", "few values", "far away", "dead inputs"])
def test_every_step_of_k_means_is_the_packages(context: object, kind: str, weighted: bool) -> None:
    here = made(kind)
    x, w, order = here.mine.x, here.mine.weight, here.order.tolist()
    w = w if weighted else torch.ones_like(w)
    run = """(() => { const x = Float64Array.from(data.x), w = Float64Array.from(data.w),
        one = lloyd(x, data.v, w, data.order, data.k), S = coded(x, data.v, one.path.at(-1)),
        two = lloyd(S.left, data.v, w, data.order, 8);
        return [one, two].map(({ path, inertia }) => ({ path: path.map((C) => Array.from(C)), inertia })); })()"""
    for k in (8, 32):
        sent = {"x": x.flatten().tolist(), "w": w.tolist(), "order": order, "k": k, "v": x.shape[1]}
        points = x
        for stage, size in zip(evaluated(context, ("math", "lloyd"), run, sent), (k, 8), strict=True):
            for step, C in enumerate(stage["path"]):
                ours = here.learn(points, size, weighted, step)
                assert torch.allclose(torch.tensor(C, dtype=torch.float64).reshape(ours.shape), ours, rtol=0, atol=1e-9)
            assert torch.equal(ours, here.learn(points, size, weighted)), "the last step is the package's"
            C = ours.float().half().double()
            points = points - C[nearest(points, C)]


def test_cells_hold_what_is_nearest(context: object) -> None:
    generator = torch.Generator().manual_seed(4)
    C = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    C[7] = C[3]  # of equal vectors the first has the cell
    cells = evaluated(context, ("dom", "cells"), "cellsOf(data, 2)", C.flatten().tolist())
    assert cells[7] == []
    area = sum(abs(sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(c, c[1:] + c[:1], strict=True))) / 2 for c in cells)
    assert area == pytest.approx(16, rel=1e-9)
    for cell, vector in zip(cells, C, strict=True):
        for corner in cell:  # no other vector is nearer to a corner; inside a convex cell none can be
            far = (C - torch.tensor(corner, dtype=torch.float64)).square().sum(1)
            assert float((vector - torch.tensor(corner, dtype=torch.float64)).square().sum()) <= float(far.min()) + 1e-9


CROWDED = """() => [...document.querySelectorAll('.lb-control')].filter((c) => c.querySelector('.lb-value')).filter((c) => {
    const range = document.createRange(), [name, value] = ['.lb-name', '.lb-value'].map((s) => {
        range.selectNodeContents(c.querySelector(s)); return range.getBoundingClientRect(); });
    return name.right > value.left; }).map((c) => c.textContent)"""
SETTINGS = [(16, 8, True), (16, 0, False), (256, 0, True), (64, 16, False)]


@pytest.mark.parametrize(("k", "second", "weighted"), SETTINGS)
def test_errors_bits_and_entropy_are_the_packages(
    context: object, explorer: live.CodebookExplorer, k: int, second: int, weighted: bool
) -> None:
    page, problems = opened(context, explorer)
    of(page, "Second codebook").select_option(str(second))
    of(page, "k-means counts").select_option(str(weighted).lower())
    of(page, "Codebook").fill(str(explorer.sizes.index(k)))
    one = explorer.cut.outcome(k, second, weighted)
    wanted = {"mse": one.mse()[0], "share": one.mse()[1], "weighted": one.mse(True)[0], "weighted-share": one.mse(True)[1],
              "other": 100 * one.mse(True, "others")[1], "bits": one.bits(), "large": one.bits((4096, 4096))}
    for name, value in wanted.items():
        assert numbers(page, name) == pytest.approx([value], rel=1e-9)
    assert numbers(page, "entropy") == pytest.approx(list(one.entropy), rel=1e-9)
    found, _ = one.encode(explorer.cut.mine.x)
    assert numbers(page, "counts") == torch.bincount(found[-1], minlength=second or k).tolist()
    words = page.locator(".lb-readout").inner_text().replace("\xa0", " ")
    assert f"error {percent(one.mse()[1])} of the mean square, weighted {percent(one.mse(True)[1])};" in words
    first = page.locator(".lb-row.lb-two svg").first.locator(".lb-c-centre:not(.lb-c-now)")
    assert first.get_attribute("d").count("M") == k
    row = page.locator(".lb-c-row").inner_text()
    assert percent(one.mse(True)[1]) in row and percent(one.mse(True, "others")[1]) in row and not problems


def test_steps_go_through_both_stages(context: object, explorer: live.CodebookExplorer) -> None:
    page, problems = opened(context, explorer)
    last = int(data(page, "last"))
    assert int(data(page, "step")) == last
    page.get_by_role("button", name="start").click()
    first = explorer.cut.outcome(16, 0, True, 0)
    assert of(page, "Step").input_value() == "0" and numbers(page, "share") == pytest.approx([first.mse()[1]], rel=1e-9)
    assert page.locator(".lb-readout").inner_text().startswith("Codebook of 16 vectors, step 0 of ")
    assert numbers(page, "bits") == pytest.approx([first.bits()])
    for step in (1, 2, 3):
        page.get_by_role("button", name="one step").click()
        now = explorer.cut.outcome(16, 0, True, step)
        assert numbers(page, "weighted-share") == pytest.approx([now.mse(True)[1]], rel=1e-9)
    page.get_by_role("img", name="Weighted error by step").locator(".lb-click").click(position={"x": 1, "y": 20})
    assert data(page, "step") == "0"
    of(page, "Step").fill(str(last - 1))
    assert page.locator(".lb-readout").inner_text().startswith("Second codebook of 8 vectors, step ")
    page.get_by_role("button", name="play").click()
    page.wait_for_function(f"() => document.querySelector('.lb-live').dataset.step === '{last}'")
    page.get_by_role("button", name="play").wait_for()
    of(page, "Step").fill("2")
    page.get_by_role("button", name="end").click()
    assert int(data(page, "step")) == last and not problems


def test_one_vector_is_told_the_pointer_tells_and_a_click_chooses(context: object, explorer: live.CodebookExplorer) -> None:
    page, problems = opened(context, explorer)
    mine, one = explorer.cut.mine, explorer.cut.outcome(16, 8, True)
    found, left = one.encode(mine.x)
    p = int((mine.x - mine.x.mean(0)).square().sum(1).median(0).indices)
    of(page, "Vector").fill(str(p))
    row, column = mine.places[p].tolist()
    words = page.locator(".lb-c-line").inner_text()
    assert words.startswith(f"Rows {row}–{row + 1}, input {column}: (") and f"codebook vector {found[0][p]}: (" in words
    assert numbers(page, "index") == [int(idx[p]) for idx in found]
    assert numbers(page, "error") == pytest.approx([float(left[p].square().sum())], rel=1e-9)
    picture = page.locator(".lb-row.lb-two svg").first
    ring = picture.locator(".lb-c-ring").bounding_box()
    of(page, "Vector").fill("0")
    page.mouse.move(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    assert data(page, "place") == str(p) and of(page, "Vector").input_value() == "0", "the pointer alone chooses nothing"
    page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    assert of(page, "Vector").input_value() == str(p)
    page.get_by_role("button", name="worst vector").click()
    assert data(page, "place") == str(int((mine.weight * left.square().sum(1)).argmax()))
    page.get_by_role("button", name="most important vector").click()
    assert data(page, "place") == str(explorer.chosen)
    page.get_by_role("img", name="Weighted error against bits").locator(".lb-click").nth(2).click()
    assert of(page, "Codebook").input_value() == "2" and of(page, "Second codebook").input_value() == "0" and not problems


def test_longer_vectors_show_two_of_their_numbers(context: object, long: live.CodebookExplorer) -> None:
    page, problems = opened(context, long)
    assert "Two of 4 numbers are drawn" in page.locator(".lb-c-keys").inner_text()
    assert page.locator(".lb-c-cell, .lb-c-mine").count() == 0
    one = long.cut.outcome(64)
    idx = one.encode(long.cut.mine.x)[0][0]
    assert page.locator(".lb-row.lb-two svg").first.locator(".lb-c-look").count() == 24
    own = page.locator(".lb-c-own").get_attribute("d").count("M")
    assert own == int((idx == idx[long.chosen]).sum())
    before = page.locator(".lb-row.lb-two svg").first.locator(".lb-c-ring").get_attribute("cx")
    of(page, "Across").select_option("3")
    assert page.locator(".lb-row.lb-two svg").first.locator(".lb-c-ring").get_attribute("cx") != before
    assert "number 3 of a vector" in page.locator(".lb-row.lb-two").inner_text()
    assert numbers(page, "share") == pytest.approx([one.mse()[1]], rel=1e-9)
    assert "importance" not in page.locator(".lb-live").inner_text() and not problems


@pytest.mark.parametrize("name", ["explorer", "long"])
def test_every_control_has_a_name_and_a_key(context: object, request: pytest.FixtureRequest, name: str) -> None:
    page, problems = opened(context, request.getfixturevalue(name))
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for word in ('slider "Codebook"', 'combobox "Second codebook"', 'slider "Step"', 'slider "Vector"', "vectors, "):
        assert word in tree, tree
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        down = start != "0" if control.get_attribute("type") == "range" else start == "0"
        page.keyboard.press("ArrowDown" if down else "ArrowUp")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before
    page.get_by_role("button", name="start").focus()
    page.keyboard.press("Enter")
    assert data(page, "step") == "0" and not problems


def test_a_change_from_python_is_drawn(context: object, explorer: live.CodebookExplorer) -> None:
    page, problems = opened(context, explorer)
    page.evaluate("() => { model.set('second', 0); model.set('k', 32); model.set('weighted', false); model.set('step', 1); }")
    assert of(page, "Codebook").get_attribute("aria-valuetext") == "k = 32"
    assert numbers(page, "share") == pytest.approx([explorer.cut.outcome(32, 0, False, 1).mse()[1]], rel=1e-9)
    assert not problems


@pytest.mark.parametrize("width", [360, 620, 800, 1200])
@pytest.mark.parametrize("name", ["explorer", "long"])
def test_nothing_is_wider_than_the_page(
    context: object, request: pytest.FixtureRequest, name: str, width: int, shots: Path | None
) -> None:
    for dark in (False, True):
        with at_width(context, request.getfixturevalue(name), width, dark, shots, f"codebook_{name}") as page:
            for k in (0, 2, 6):
                of(page, "Codebook").fill(str(k))
                fits(page, width)
                assert page.evaluate(CROWDED) == []
            of(page, "Codebook").fill("2")


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.CodebookExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "codebook", shots) as tab:
        slider = of(tab.page, "Codebook")
        slider.focus()
        tab.page.keyboard.press("ArrowRight")
        tab.page.wait_for_function("() => document.querySelector('.lb-value').innerText === 'k = 32'")
        assert slider.get_attribute("aria-valuetext") == "k = 32"
        assert slider.evaluate("e => e === document.activeElement"), "the notebook took the key"
        assert numbers(tab.page, "share") == pytest.approx([explorer.cut.outcome(32, 8, True).mse()[1]], rel=1e-9)
