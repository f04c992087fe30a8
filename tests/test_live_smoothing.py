"""The smoothing explorer: its numbers are the package's own; its sample stands for the whole; what is sent and refused."""

from __future__ import annotations

import base64
import itertools
import re

import numpy as np
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.activations.tokens import round_tokens
from lowbit_nb.grid import Grid
from lowbit_nb.live import smoothed, smoothings
from lowbit_nb.live.base import percent
from lowbit_nb.live.smoothed import BASES, EXPONENTS, POINTS
from lowbit_nb.methods.lrquant import log_start
from lowbit_nb.show import digits
from lowbit_nb.stored import AffineWeight
from lowbit_nb.transforms import smoothing


def layer(n: int = 60, rows: int = 24, d: int = 64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs of uneven size with one large channel, three massive tokens; weights with one large row."""
    generator = torch.Generator().manual_seed(seed)
    X, W = torch.randn(n, d, generator=generator), torch.randn(rows, d, generator=generator)
    X = (X + 0.5 * X.roll(1, 1)) * torch.linspace(0.3, 2, d)
    X[:, 7] *= 4
    X[[0, n // 3, n - 2], 11] = torch.tensor([300.0, -260.0, 240.0])
    W[5] *= 3
    return X, W


@pytest.fixture(scope="module")
def explorer() -> live.SmoothingExplorer:
    return live.smoothing_explorer(*layer(), name="test layer")


def share(X: torch.Tensor, W: torch.Tensor, s: torch.Tensor, bits: int, bits_w: int, group: int | None = None) -> float:
    """The relative error of the layer's output, from the package's functions."""
    X_hat = X / s if bits == 16 else round_tokens(X / s, bits)
    W_hat = W * s if bits_w == 16 else AffineWeight.nearest(W * s, Grid(bits_w, group)).dequantize()
    Y = X.double() @ W.double().T
    return float((X_hat.double() @ W_hat.double().T - Y).square().sum() / Y.square().sum())


def test_points_are_none_the_exponents_and_the_bases():
    assert POINTS == (("none", 1.0), *(("exponent", i / 20) for i in range(21)), *(("logarithm", b) for b in BASES))
    assert len(EXPONENTS) == 21 and 2.0 in BASES and list(BASES) == sorted(BASES) and BASES[0] > 1


def test_factors_are_the_methods_own():
    X, W = layer()
    a, w = X.abs().amax(0), W.abs().amax(0)
    assert torch.equal(smoothed.factors("none", 1.0, a, w), torch.ones(64))
    for alpha in EXPONENTS:
        torch.testing.assert_close(smoothed.factors("exponent", alpha, a, w), smoothing(a, w, alpha), rtol=1e-5, atol=0)
    for base in BASES:
        torch.testing.assert_close(smoothed.factors("logarithm", base, a, w), log_start(a, base), rtol=1e-5, atol=0)
    dead = smoothed.factors("exponent", 0.5, torch.zeros(3), torch.zeros(3))
    assert dead.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("group", [None, 16])
def test_every_error_is_the_packages(group):
    X, W = layer()
    a, w = X.abs().amax(0), W.abs().amax(0)
    found = live.smoothing_explorer(X, W, bits=2, group=group).survey
    assert found.widths == (2, 3, 4, 6, 8, 16) and torch.equal(found.a, a) and torch.equal(found.w, w)
    ordinary = X[~found.massive]
    for p, bits, bits_w in itertools.product((0, 1, 9, 14, 21, 25, 36), (2, 4, 16), (3, 16)):
        s = smoothed.factors(*POINTS[p], a, w)
        if bits == bits_w == 16:
            assert found.error(p, bits, bits_w) == 0 == found.error(p, bits, bits_w, True)
        else:
            assert found.error(p, bits, bits_w) == pytest.approx(share(X, W, s, bits, bits_w, group), rel=1e-9)
            assert found.error(p, bits, bits_w, True) == pytest.approx(share(ordinary, W, s, bits, bits_w, group), rel=1e-9)
    assert [found.error(p, 4, 4) for p in (0, 13, 25)] == [float(found.errors[0, 2, 2, p]) for p in (0, 13, 25)]


def test_the_best_has_the_least_error(explorer):
    found = explorer.survey
    for kind, bits in itertools.product(("exponent", "logarithm"), (3, 4)):
        best = found.best(kind, bits)
        assert POINTS[best][0] == kind
        assert found.error(best, bits) == min(found.error(p, bits) for p, (k, _) in enumerate(POINTS) if k == kind)


def test_smoothing_moves_the_largest_channel_from_activations_to_weights(explorer):
    found = explorer.survey
    flat = [[smoothings.unevenness(t) for t in found.smoothed(p)] for p in (0, smoothings.HALF, 21)]
    assert flat[0][0] > flat[1][0] > flat[2][0] == pytest.approx(1, rel=1e-5) and flat[0][1] < flat[1][1] < flat[2][1]
    assert smoothings.unevenness(torch.tensor([4.0, 1.0, 2.0, 9.0])) == 4.5  # the lower of two medians, as in torch


def test_massive_tokens_are_ten_times_the_median(explorer):
    X, _ = layer()
    largest = X.abs().amax(1)
    assert explorer.massive == [0, 20, 58] == (largest >= 10 * largest.median()).nonzero().flatten().tolist()
    assert explorer.shape == [60, 24, 64, 60, 3] and explorer.largest == pytest.approx(float(largest.max() / largest.median()))
    X, W = layer()
    X[20, 11] = 0
    assert live.smoothing_explorer(X, W).massive == [0, 58]


def test_a_sample_keeps_the_largest_and_counts_for_all():
    size = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    at, counts = smoothed.spread(size, 64)
    assert len(at) == 64 and at.tolist() == sorted(set(at.tolist())) and float(counts.sum()) == pytest.approx(1000)
    top = size.argsort(descending=True)[:8]
    assert set(top.tolist()) <= set(at.tolist()) and counts[torch.isin(at, top)].tolist() == [1] * 8
    assert counts[~torch.isin(at, top)].unique().tolist() == pytest.approx([992 / 56])
    others = at[~torch.isin(at, top)].diff()
    assert int(others.min()) >= 17 and int(others.max()) <= 22  # every 17.7th of the others, some of the largest between
    assert float(smoothed.spread(size, 64, 30)[1].eq(1).sum()) == 30 and smoothed.few(64) == smoothed.few(64, 5) == 8
    assert smoothed.few(64, 17) == 17 and smoothed.few(64, 50) == 32 and smoothed.few(3) == 1
    every, ones = smoothed.spread(size, 1000)
    assert every.tolist() == list(range(1000)) and ones.tolist() == [1] * 1000


def test_a_large_layer_is_used_in_part_and_says_so():
    X, W = layer(2000, 300, 512)
    large = live.smoothing_explorer(X, W, name="large")
    found, T, R = large.survey, 96, 48
    assert large.shape == [T, R, 512, 2000, 3] and large.about == "large: 96 of 2000 tokens, 48 of 300 rows, 512 inputs"
    assert large.rule == (
        "Errors are of a sample: of 2000 tokens the 12 with the largest |x| and 84 evenly spaced ones, each of which counts "
        "for 23.7; of 300 rows the 6 with the largest outputs and 42 evenly spaced ones, each of which counts for 7.00. "
        "Channel maxima are of all.")
    assert torch.equal(found.a, X.abs().amax(0)) and torch.equal(found.w, W.abs().amax(0))
    at = torch.tensor(large.names[512:])
    assert torch.equal(found.X, X[at]) and {0, 666, 1998} <= set(large.names[512:]) and int(found.massive.sum()) == 3
    for p in (0, 11, 25):
        whole = share(X, W, smoothed.factors(*POINTS[p], found.a, found.w), 4, 4)
        assert found.error(p, 4) == pytest.approx(whole, rel=0.15)
    sent = sum(len(getattr(large, name)) for name in ("inputs", "weights", "peaks", "counts", "errors"))
    assert sent < 310_000 and live.smoothing_explorer(*layer()).rule == ""


def test_all_massive_tokens_and_the_rows_with_the_largest_outputs_are_kept():
    X, W = layer(1000, 300, 512)
    X[::40, 11] = 200.0
    W[:20, 11] *= 30
    large = live.smoothing_explorer(X, W)
    assert large.shape[4] == len(large.massive) == 27 and "the 27 with the largest |x| and 69 evenly" in large.rule
    assert large.survey.tokens[large.survey.massive].tolist() == [1] * 27
    loud = (X @ W.T).square().sum(0).argsort(descending=True)[:6]
    kept = [int((W == row).all(1).nonzero()) for row in large.survey.W[large.survey.rows == 1]]
    assert len(kept) == 6 and len(set(kept) & set(loud.tolist())) >= 5  # outputs are told from the tokens used


def test_counts_weigh_the_errors():
    """A token that stands for two is a token that is there twice."""
    X, W = layer()
    a, w, none = X.abs().amax(0), W.abs().amax(0), torch.zeros(30, dtype=torch.bool)
    tokens, rows = torch.ones(30), torch.ones(24)
    tokens[4], rows[5] = 2, 3
    found = smoothed.survey(X[:30], W, a, w, tokens, rows, none, 64, (4, 16))
    X_more, W_more = torch.cat([X[:30], X[4:5]]), torch.cat([W, W[5:6], W[5:6]])
    for p in (0, 11, 25):
        wanted = share(X_more, W_more, smoothed.factors(*POINTS[p], a, w), 4, 4)
        assert found.error(p, 4) == pytest.approx(wanted, rel=1e-9) == found.error(p, 4, ordinary=True)


def test_very_wide_layers_keep_the_largest_channels_or_whole_groups(monkeypatch):
    monkeypatch.setattr(smoothings, "MOST_INPUTS", 32)
    X, W = layer()
    thin = live.smoothing_explorer(X, W)
    assert {7, 11} < set(thin.names[:32]) and thin.about.endswith("32 of 64 inputs") and "the others left out" in thin.rule
    groups = live.smoothing_explorer(X, W, group=8)
    assert groups.names[:32] == [*range(16), *range(32, 40), *range(56, 64)]  # 8 to 15 has input 11, the largest
    assert "32 of 64 inputs in whole groups of 8" in groups.about and "the 8 with the largest |x|" in groups.rule
    assert live.smoothing_explorer(X, W, group=32).names[:32] == list(range(32))
    with pytest.raises(ValueError, match="at most 32, or None"):
        live.smoothing_explorer(X, W, group=64)


def test_what_is_sent_holds_the_sample(explorer):
    X, W = layer()
    for sent, wanted in ((explorer.inputs, X), (explorer.weights, W), (explorer.errors, explorer.survey.errors)):
        assert np.array_equal(np.frombuffer(sent, "<f4").reshape(wanted.shape), np.asarray(wanted, dtype="<f4"))
    assert np.frombuffer(explorer.peaks, "<f4").tolist() == X.abs().amax(0).tolist() + W.abs().amax(0).tolist()
    assert np.frombuffer(explorer.counts, "<f4").tolist() == [1] * 84 and explorer.bases == list(BASES)


def test_fallback_has_small_pictures_with_numbers(explorer):
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    found = explorer.survey
    shown = [0, smoothings.HALF, found.best("exponent", 4), smoothings.LOG2]
    assert len(images) == len(set(shown)) >= 3
    for (alt, code), p in zip(images, dict.fromkeys(shown), strict=True):
        assert alt.startswith(f"{smoothings.words(p)}: output error {percent(found.error(p, 4))}; ")
        assert f"{percent(found.error(p, 4, 16))} if only activations" in alt
        after = digits(smoothings.unevenness(found.smoothed(p)[0]))
        assert f"{after} after, of w" in alt and len(base64.b64decode(code)) <= 40_000
    assert explorer.fallback == live.smoothing_explorer(*layer(), name="test layer").fallback


def test_the_sentence_compares_the_kinds(explorer):
    found = explorer.survey
    assert explorer.alt.startswith("Smoothing explorer, test layer: 60 tokens, 24 rows, 64 inputs. With 4-bit activations")
    for kind, word in (("exponent", "The best exponent"), ("logarithm", "the best base")):
        p = found.best(kind, 4)
        assert f"{word}, {POINTS[p][1]:g}, " in explorer.alt and percent(found.error(p, 4)) in explorer.alt
    assert f"{percent(found.error(0, 4))} without smoothing" in explorer.alt
    assert f"{percent(found.error(smoothings.LOG2, 4))} with the logarithm to base 2" in explorer.alt
    assert "3 of 60 tokens are massive" in explorer.alt
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.alt and data["text/html"] == explorer.fallback


def test_one_token_and_one_row_can_be_explored():
    X, W = layer()
    one = live.smoothing_explorer(X[:1], W[:1])
    assert one.shape == [1, 1, 64, 1, 0] and one.survey.error(0, 4) == pytest.approx(
        share(X[:1], W[:1], torch.ones(64), 4, 4), rel=1e-9)
    full = live.smoothing_explorer(X, W, bits=16)
    assert full.survey.widths == smoothed.WIDTHS and "output error is 0 % without" in full.alt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.ones(64)}, r"W \[d_out, d_in\]"),
        ({"X": torch.ones(2, 3, 64)}, r"X.flatten\(0, -2\)"),
        ({"X": torch.ones(4, 63)}, r"got \[4, 63\] and \[24, 64\]"),
        ({"X": torch.ones(0, 64)}, r"got \[0, 64\]"),
        ({"X": torch.full((4, 64), float("nan"))}, "must be finite"),
        ({"W": torch.zeros(4, 64)}, "output is zero"),
        ({"group": 48}, "use g=32 or g=64"),
        ({"bits": 1}, "bits=1 must be"),
        ({"bits": 12}, "bits=12 must be"),
    ],
)
def test_bad_input_is_named(change, message):
    X, W = layer()
    with pytest.raises(ValueError, match=message):
        live.smoothing_explorer(**({"X": X, "W": W} | change))
