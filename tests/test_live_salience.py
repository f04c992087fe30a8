"""The salient-channel explorer: its errors are those of AWQ's own search; what is stored and what is refused."""

from __future__ import annotations

import base64
import itertools
import re

import numpy as np
import pytest
import torch

import lowbit_nb as lb
from lowbit_nb import live
from lowbit_nb.blocks import Block, catch
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import error_share
from lowbit_nb.live import saliences
from lowbit_nb.methods import awq
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import salience


def layer(rows: int = 24, d: int = 64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, H and the largest |x|: correlated inputs of uneven size, one of them far larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, d, generator=generator)
    X = torch.randn(400, d, generator=generator) * torch.linspace(0.3, 2, d)
    X = X + 0.5 * X.roll(1, 1)
    X[:, 7] *= 8
    return W, X.T @ X / len(X), X.abs().amax(0)


@pytest.fixture(scope="module")
def explorer() -> live.SalienceExplorer:
    return live.salience_explorer(*layer(), group=16, name="test layer")


@pytest.fixture(scope="module")
def block() -> tuple[Block, torch.Tensor]:
    subject = lb.load(device="cpu")
    decoder, X = catch(subject.model, lb.text.calibration(subject.tokenizer, n=2, length=64).ids)
    return decoder[0], X


def test_the_errors_are_those_of_awqs_own_search(block, monkeypatch):
    one, X = block
    losses = []
    monkeypatch.setattr(awq, "error_share", lambda *a: losses.append(error_share(*a)) or losses[-1])
    awq.AWQ(Grid(2, 64)).quantize_block(one, Streams(X, X))
    assert len(losses) == 80
    searched = {("mlp.gate_proj", "mlp.up_proj"): losses[20:40], ("mlp.down_proj",): losses[60:]}
    for (names, tried), inputs in zip(searched.items(), one.hessians(X, [list(n) for n in searched]), strict=True):
        W = torch.cat([one.weight(name) for name in names])
        found = live.salience_explorer(W, inputs.H, inputs.peak).survey
        assert found.total[0, 0, :20] == pytest.approx(tried, rel=2e-5)
        assert found.best("x", 2) == min(range(20), key=tried.__getitem__)


def test_every_criterion_scales_by_its_own_size(explorer):
    W, H, _ = layer()
    found = explorer.survey
    assert found.bits == (2, 3, 4) and list(found.sizes) == ["x", "peak", "w", "H"]
    for (c, size), (b, bits), step in itertools.product(enumerate(found.sizes.values()), enumerate(found.bits), (0, 7, 20)):
        s = salience(size, step / 20)
        W_hat = AffineWeight.nearest(W * s, Grid(bits, 16)).dequantize() / s
        assert found.total[c, b, step] == pytest.approx(error_share(W, W_hat, H), rel=1e-5)
        E, top = (W - W_hat).double(), size.argsort(descending=True)[: found.top]
        part = ((E @ H.double()) * E)[:, top].sum() / ((W @ H) * W).sum()
        assert found.salient[c, b, step] == pytest.approx(float(part), rel=1e-4, abs=1e-8)


def test_importance_is_what_it_says():
    W, H, peak = layer()
    by = saliences.sizes(W, H, peak)
    assert torch.equal(by["x"], H.diagonal().sqrt()) and torch.equal(by["peak"], peak)
    assert torch.allclose(by["w"], W.square().mean(0).sqrt())
    Hd = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(64)
    for j in (0, 7, 63):  # what is left of input j when the others predict it
        others = [i for i in range(64) if i != j]
        left = Hd[j, j] - Hd[j, others] @ torch.linalg.solve(Hd[others][:, others], Hd[others, j])
        assert float(by["H"][j]) == pytest.approx(float(left.sqrt()), rel=1e-5)
    assert list(saliences.sizes(W, H)) == ["x", "w", "H"]
    H[5], H[:, 5] = 0.0, 0.0
    assert saliences.sizes(W, H)["H"][5] == 0 == saliences.sizes(W, H)["x"][5]


def test_kept_channels_have_no_error(explorer):
    W, H, _ = layer()
    found = explorer.survey
    for (c, by), (o, order), step, k in itertools.product(enumerate(found.sizes.values()), enumerate(found.sizes.values()),
                                                          (0, 13), (1, 6, 32)):
        s = salience(by, step / 20)
        W_hat = AffineWeight.nearest(W * s, Grid(3, 16)).dequantize() / s
        top = order.argsort(descending=True)[:k]
        W_hat[:, top] = W[:, top]
        assert found.kept[c, 1, step, o, found.counts.index(k)] == pytest.approx(error_share(W, W_hat, H), rel=1e-5)


def test_chance_is_the_mean_over_all_choices():
    W, H, _ = layer(6, 8)
    found = saliences.survey(W, H, saliences.sizes(W, H), (2,), 8)
    E = W - AffineWeight.nearest(W, Grid(2, 8)).dequantize()
    for k in (1, 2, 4):
        all_ = [torch.isin(torch.arange(8), torch.tensor(some), invert=True) for some in itertools.combinations(range(8), k)]
        mean = np.mean([error_share(W, W - E * left, H) for left in all_])
        assert found.kept[0, 0, 0, -1, found.counts.index(k)] == pytest.approx(mean, rel=1e-5)


def test_what_is_sent_is_small(block):
    one, X = block
    inputs = one.hessians(X, [["mlp.down_proj"]])[0]
    sent = live.salience_explorer(one.weight("mlp.down_proj"), inputs.H, inputs.peak, bits=1)
    assert sum(len(getattr(sent, name)) for name in ("sizes", "errors", "kept")) < 110_000  # 147 kB in an exported page
    assert sent.widths == [1, 2, 3, 4] and sent.top == 8


def test_fallback_has_four_small_pictures_with_numbers(explorer):
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    best = explorer.survey.best("x", 2)
    assert len(images) == 4
    for (alt, code), (c, step) in zip(images, (("x", 0), ("x", best), ("x", 20), ("w", 10)), strict=True):
        error = explorer.survey.total[explorer.survey.at(c), 0, step]
        assert f"exponent {step / 20:g}: output error {saliences.percent(error)}" in alt
        assert len(base64.b64decode(code)) <= 40_000
    assert explorer.fallback == live.salience_explorer(*layer(), group=16, name="test layer").fallback


def test_the_sentence_names_every_criterion_and_chance(explorer):
    assert explorer.alt.startswith("Salient-channel explorer, test layer: 24 rows, 64 inputs. At 2 bits, groups of 16")
    assert explorer.alt.endswith("by chance.")
    for c in explorer.criteria:
        best = explorer.survey.best(c, 2)
        error = saliences.percent(explorer.survey.total[explorer.survey.at(c), 0, best])
        assert f"by {saliences.WORDS[c]}: {error} at exponent {best / 20:g}" in explorer.alt
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.alt and data["text/html"] == explorer.fallback


def test_a_large_layer_is_thinned_out_and_says_so(monkeypatch):
    monkeypatch.setattr(saliences, "MOST_INPUTS", 32)
    monkeypatch.setattr(saliences, "MOST_WEIGHTS", 32 * 10)
    W, H, peak = layer()
    small = live.salience_explorer(W, H, peak, group=16)
    assert small.about == "a layer: 10 of 24 rows, 32 of 64 inputs in whole groups, the others left out"
    keep = torch.cat([torch.arange(16), torch.arange(48, 64)])
    assert torch.equal(small.survey.sizes["peak"], peak[keep])
    with pytest.raises(ValueError, match="group of at most 32"):
        live.salience_explorer(W, H, group=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.ones(4)}, r"W must be \[d_out, d_in\]"),
        ({"H": torch.eye(63)}, r"got \[\[24, 64\], \[63, 63\], None\]"),
        ({"x_max": torch.ones(3)}, r"\[3\]\]"),
        ({"W": torch.full((2, 64), float("nan"))}, "must be finite"),
        ({"W": torch.zeros(2, 64)}, "output is zero"),
        ({"group": 48}, "use g=32 or g=64"),
        ({"bits": 9}, "bits=9"),
    ],
)
def test_bad_input_is_named(change, message):
    W, H, _ = layer()
    with pytest.raises(ValueError, match=message):
        live.salience_explorer(**({"W": W, "H": H, "group": 16} | change))
