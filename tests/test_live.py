"""Explorers without a browser: what they store for readers who have none, and its arithmetic."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import torch

from lowbit_nb import live
from lowbit_nb.grid import Grid, dequantize, fit, quantize
from lowbit_nb.live import base, grids, hessians
from lowbit_nb.stored import AffineWeight

LIVE = Path(live.__file__).parent


def weights(rows: int = 2, d_in: int = 128) -> torch.Tensor:
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(3))


def hessian(d: int = 32) -> torch.Tensor:
    X = torch.randn(200, d, generator=torch.Generator().manual_seed(4))
    X = X + X[:, :1]
    return X.T @ X / len(X)


@pytest.fixture(scope="module", params=["grid", "hessian"])
def explorer(request: pytest.FixtureRequest) -> base.Explorer:
    if request.param == "grid":
        return live.grid_explorer(weights(), name="test layer", group=32)
    return live.hessian_explorer(hessian(), weights(2, 32), name="test layer", group=8)


def test_bundle_has_widget_html_and_text(explorer: base.Explorer) -> None:
    data, _ = explorer._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert data["text/plain"] == explorer.alt == repr(explorer)


def test_alt_holds_numbers(explorer: base.Explorer) -> None:
    assert len(re.findall(r"\d+(?:\.\d+)?", explorer.alt)) >= 5
    assert explorer.alt.endswith(".") and "test layer" in explorer.alt


def test_fallback_frames_are_small_and_named(explorer: base.Explorer) -> None:
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert 3 <= len(images) <= 5
    for alt, code in images:
        assert re.search(r"\d", alt)
        data = base64.b64decode(code)
        assert data.startswith(b"\x89PNG") and len(data) <= 40_000
    for stripped_when_untrusted in ("<style", "<script", " name=", "onclick"):
        assert stripped_when_untrusted not in explorer.fallback


def test_fallback_is_deterministic() -> None:
    one, two = (live.hessian_explorer(hessian(), name="test layer", group=8) for _ in range(2))
    assert one.fallback == two.fallback and one.alt == two.alt


@pytest.mark.parametrize("path", sorted(p.name for p in LIVE.iterdir() if p.suffix in (".js", ".css")))
def test_nothing_remote_in_modules(path: str) -> None:
    text = (LIVE / path).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.\w+/|@import|fetch\(|XMLHttpRequest|localStorage", text)
    for source in re.findall(r'from "([^"]+)"', text):
        assert (LIVE / source).is_file()


def test_joined_module_is_one_module() -> None:
    text = base.module("math", "dom", "grid")
    assert text.count("export ") == 1 and "export default" in text and not re.search(r"^import ", text, re.M)


def test_joining_refuses_a_missing_part() -> None:
    with pytest.raises(ValueError, match="leftover import|declared twice"):
        base.module("math", "math")


@pytest.mark.parametrize("zero", ["integer", "real", "none"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_frame_numbers_are_the_packages(bits: int, zero: str) -> None:
    W, grid = weights(), Grid(bits, 32, **grids.ZERO[zero])
    s, z = fit(W, grid)
    W_hat = dequantize(quantize(W, s, z, grid), s, z, grid)
    result = grids.evaluate(W, grids.Setting(bits, 32, 100.0, zero))
    assert torch.equal(result.W_hat, W_hat)
    assert result.error == pytest.approx(
        float((W_hat - W).double().square().sum() / W.double().square().sum()), rel=1e-12
    )


def test_bits_per_weight_are_the_bits_on_disk() -> None:
    W = weights(8, 512)  # large enough that words have no padding
    for zero, options in grids.ZERO.items():
        stored = AffineWeight.nearest(W, Grid(2, 64, **options))
        assert grids.evaluate(W, grids.Setting(2, 64, 100.0, zero)).per_weight == pytest.approx(
            stored.bits().per_weight, abs=1e-3
        )


def test_hessian_columns_above_256_are_thinned_out() -> None:
    w = live.hessian_explorer(torch.eye(300) + 0.1, group=64)
    assert (
        w.d == 256
        and "256 of 300 inputs" in w.about
        and w.names[0] == "input 0"
        and w.names[-1] == "input 299"
    )


def test_gain_is_the_share_of_the_cost() -> None:
    one = hessians.evaluate(hessian(), 0.01, "act", 8)
    assert torch.allclose(one.V @ torch.diag(one.D) @ one.V.T, one.H, atol=1e-10)
    assert one.gain == pytest.approx(float(one.D.sum() / one.H.trace()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: live.grid_explorer(torch.empty(0, 4)), "finite weights"),
        (lambda: live.grid_explorer(torch.tensor([[float("nan")] * 8])), "finite weights"),
        (lambda: live.grid_explorer(weights(), bits=5), "bits=5"),
        (lambda: live.grid_explorer(weights(), group=48), "group=48"),
        (lambda: live.grid_explorer(weights(), importance=torch.ones(3)), r"\[128\]"),
        (lambda: live.hessian_explorer(torch.ones(3, 4)), "square"),
        (lambda: live.hessian_explorer(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: live.hessian_explorer(hessian(), names=["a"]), "same 32 columns"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
