"""Explorers in a page without kernel or network: the package's numbers, named controls, keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from browser_pages import at_width, opened

from lowbit_nb import live
from lowbit_nb.feedback import AffineRounder, feedback, order
from lowbit_nb.grid import Grid, fit, grouped, quantize, ruler
from lowbit_nb.hessian import condition
from lowbit_nb.live import grids, hessians

MATH = (Path(live.__file__).parent / "math.js").read_text(encoding="utf-8")
LOAD = """async (code) => { const url = URL.createObjectURL(new Blob([code], { type: 'text/javascript' }));
  window.M = await import(url); return 1; }"""
CODES = """({ w, g, bits, zero, clip }) => { const out = { q: [], s: [], z: [] }, W = Float32Array.from(w);
  for (let k = 0; k < W.length; k += g) {
    const f = M.fitGroup(W, k, g, { bits, zero, clip }); out.s.push(f.s); out.z.push(f.z);
    for (let i = k; i < k + g; i++) out.q.push(M.code(W[i], f.s, f.z, bits, zero)); } return out; }"""


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(d: int) -> torch.Tensor:
    X = seeded(400, d, seed=1) * torch.linspace(0.2, 2, d)
    X = X + 0.7 * X.roll(1, 1)
    return X.T @ X / len(X)


@pytest.fixture(scope="module")
def maths(context: object) -> object:
    page = context.new_page()
    page.evaluate(LOAD, MATH)
    return page


def data(page: object, name: str) -> float:
    return float(page.locator(".lb-live").get_attribute(f"data-{name}"))


@pytest.mark.parametrize("zero", ["integer", "real", "none"])
@pytest.mark.parametrize(
    ("bits", "g", "clip"), [(1, 16, 1.0), (2, 64, 0.725), (3, 8, 0.5), (4, 128, 1.0), (8, 32, 0.95)]
)
def test_codes_steps_and_zeros_are_equal(maths: object, bits: int, g: int, clip: float, zero: str) -> None:
    W = seeded(8, 128, seed=bits) * 0.05
    W[0, :g], W[1, :g], W[2, :g] = 0.0, 0.25, W[2, :g].abs()  # all zero, all equal, all positive
    grid = Grid(bits, g, **grids.ZERO[zero])
    lo, hi = grouped(W, grid).amin(-1), grouped(W, grid).amax(-1)
    if zero != "real":
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if zero == "none":
        hi = torch.maximum(-lo, hi)
        lo = -hi
    s, z = ruler(lo * clip, hi * clip, grid)
    theirs = maths.evaluate(
        CODES, {"w": W.flatten().tolist(), "g": g, "bits": bits, "zero": zero, "clip": clip}
    )
    assert theirs["s"] == s.flatten().tolist()
    assert theirs["z"] == z.flatten().tolist()
    assert theirs["q"] == quantize(W, s, z, grid).flatten().tolist()


def test_half_precision_is_the_hardwares(maths: object) -> None:
    x = torch.cat(
        [
            seeded(2000) * 10.0 ** torch.linspace(-9, 4.5, 2000),
            2.0 ** torch.arange(-24, 16),
            torch.tensor([0.0, 2049.0, 2051.0]),
        ]
    )
    x = x[x.half().isfinite()]
    theirs = maths.evaluate("(x) => x.map((v) => M.toHalf(Math.fround(v)))", x.tolist())
    assert theirs == x.half().double().tolist()


@pytest.mark.parametrize("name", ["natural", "act", "gar", "min_pivot"])
def test_order_factor_and_spectrum_agree(maths: object, name: str) -> None:
    H = correlated(48)
    H[5], H[:, 5] = 0.0, 0.0  # a dead input
    ours = hessians.evaluate(H, 0.03, name, 16)
    theirs = maths.evaluate(
        """({ h, d, name }) => {
      const H = M.damped(h, d, 0.03), perm = M.order(H, d, name, 16), Hp = M.reorder(H, d, perm),
      f = M.factor(Hp, d); return { perm, V: [...f.V], D: [...f.D], eig: [...M.eigenvalues(H, d)] }; }""",
        {"h": H.flatten().tolist(), "d": 48, "name": name},
    )
    assert theirs["perm"] == ours.perm.tolist()
    assert torch.allclose(torch.tensor(theirs["V"]).reshape(48, 48).double(), ours.V, atol=1e-6)
    assert torch.allclose(torch.tensor(theirs["D"], dtype=torch.float64), ours.D, rtol=1e-10)
    eig = torch.linalg.eigvalsh(condition(H.double(), 0.03)[0])
    assert torch.allclose(torch.tensor(theirs["eig"], dtype=torch.float64), eig, rtol=1e-9)


def test_a_singular_hessian_has_no_factor(maths: object) -> None:
    assert maths.evaluate("() => M.factor(Float64Array.from([1, 1, 1, 1]), 2)") is None


def test_grid_explorer_shows_the_packages_numbers(context: object) -> None:
    W, h = seeded(4, 256, seed=2), seeded(256, seed=3).square()
    page, problems = opened(context, live.grid_explorer(W, h, name="test", bits=3, group=64))
    for bits, group, zero, counted in (
        (3, 64, "integer", "plain"),
        (2, 16, "real", "weighted"),
        (1, 256, "none", "plain"),
        (8, 32, "integer", "weighted"),
    ):
        for label, value in (
            ("Bits a code", bits),
            ("Group size", group),
            ("Zero point", zero),
            ("Error counts", counted),
        ):
            page.get_by_label(label, exact=True).select_option(str(value))
        page.get_by_label("Clip", exact=True).fill("80")
        ours = grids.evaluate(W, grids.Setting(bits, group, 80.0, zero), h if counted == "weighted" else None)
        assert data(page, "error") == pytest.approx(ours.error, rel=1e-6)
        assert data(page, "bits") == pytest.approx(ours.per_weight, rel=1e-12)
    page.get_by_role("button", name="best clip here").click()
    best = min(grids.evaluate(W, grids.Setting(8, 32, 20 + 2.5 * k), h).error for k in range(33))
    assert data(page, "error") == pytest.approx(best, rel=1e-6)
    assert not problems


def test_hessian_explorer_shows_the_packages_numbers(context: object) -> None:
    H, W = correlated(64), seeded(3, 64, seed=5)
    page, problems = opened(context, live.hessian_explorer(H, W, name="test", group=16, bits=2))
    for name in ("natural", "act", "gar", "min_pivot"):
        page.get_by_label("Column order").select_option(name)
        page.get_by_label("Column", exact=True).fill("10")
        ours = hessians.evaluate(H, 0.01, name, 16)
        assert data(page, "gain") == pytest.approx(ours.gain, rel=1e-5)
        assert data(page, "share") == pytest.approx(float(ours.D[10] / ours.H[10, 10]), rel=1e-5)
        assert data(page, "condition") == pytest.approx(ours.condition, rel=1e-4)
        nearest, fed = layer_errors(W, H, name)
        assert data(page, "nearest") == pytest.approx(nearest, rel=1e-5)
        assert data(page, "fed") == pytest.approx(fed, rel=1e-3)
    assert not problems


def layer_errors(W: torch.Tensor, H: torch.Tensor, name: str) -> tuple[float, float]:
    grid = Grid(2, 16)
    s, z = fit(W, grid)
    Hc, _ = condition(H, 0.01)
    perm = order(Hc, name, 16)
    nearest = feedback(W, torch.diag(Hc.diagonal()), AffineRounder(grid, perm, len(W), s, z), perm).W_hat
    fed = feedback(W, Hc, AffineRounder(grid, perm, len(W), s, z), perm).W_hat
    total = (W.double() @ H.double() * W.double()).sum()
    return tuple(
        float(((W - Q).double() @ H.double() * (W - Q).double()).sum() / total) for Q in (nearest, fed)
    )


def widgets() -> dict[str, live.Explorer]:
    return {
        "grid": live.grid_explorer(seeded(8, 256), seeded(256).square(), name="test layer"),
        "hessian": live.hessian_explorer(correlated(96), seeded(4, 96), name="test layer", group=32),
    }


def test_a_click_in_the_picture_chooses(context: object) -> None:
    for kind, label in (("grid", "Group shown"), ("hessian", "Column")):
        page, problems = opened(context, widgets()[kind])
        place = page.locator(".lb-live svg .lb-click").first
        box = place.bounding_box()
        place.click(position={"x": box["width"] * 0.5 + 1, "y": box["height"] * 0.3})
        control = page.get_by_label(label, exact=True)
        assert int(control.input_value()) == (int(control.get_attribute("max")) + 1) // 2
        assert not problems


@pytest.mark.parametrize("kind", ["grid", "hessian"])
def test_every_control_has_a_name_and_a_key(context: object, kind: str) -> None:
    page, problems = opened(context, widgets()[kind])
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    assert len(re.findall(r'- (?:slider|combobox) "', tree)) >= 5
    for control in page.locator(".lb-live :is(input, select)").all():
        before = page.locator(".lb-live").inner_html()
        control.focus()
        start = control.input_value()
        page.keyboard.press("ArrowDown" if control.evaluate("e => e.tagName") == "SELECT" else "ArrowRight")
        if control.input_value() == start:  # already at the far end
            page.keyboard.press("ArrowUp" if control.evaluate("e => e.tagName") == "SELECT" else "ArrowLeft")
        assert control.input_value() != start
        page.wait_for_function(
            "before => document.querySelector('.lb-live').innerHTML !== before", arg=before
        )
    assert not problems


def test_no_damping_on_a_singular_hessian_is_said_in_words(context: object) -> None:
    X = seeded(5, 16)
    page, problems = opened(context, live.hessian_explorer(X.T @ X / 5, group=16))
    page.get_by_label("Damping", exact=True).fill("0")
    assert "not positive definite" in page.get_by_role("alert").inner_text()
    page.get_by_label("Damping", exact=True).fill("6")
    assert page.locator(".lb-alarm").is_hidden() and not problems


@pytest.mark.parametrize("width", [360, 640, 1080])
@pytest.mark.parametrize("kind", ["grid", "hessian"])
def test_nothing_is_wider_than_the_page(context: object, kind: str, width: int, shots: Path | None) -> None:
    for dark in (False, True):
        with at_width(context, widgets()[kind], width, dark, shots, kind) as page:
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width
