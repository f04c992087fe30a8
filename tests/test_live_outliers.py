"""The outlier explorer: its numbers are those of SpQR's own run; what is sent, stored and refused."""

from __future__ import annotations

import base64
import math
import re

import numpy as np
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.bilevel import Second
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import error_share
from lowbit_nb.live import outliers
from lowbit_nb.live.base import percent
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.methods.spqr import SpQR
from lowbit_nb.outliers import BilevelRounder
from lowbit_nb.show import digits


def layer(rows: int = 32, d: int = 64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with some large ones; correlated inputs of uneven size, one of them dead."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, d, generator=generator)
    W[torch.rand(rows, d, generator=generator) < 0.01] *= 5
    X = torch.randn(400, d, generator=generator) * torch.linspace(0.3, 2, d)
    X = X + 0.5 * X.roll(1, 1)
    X[:, 9] = 0
    return W, X.T @ X / len(X)


@pytest.fixture(scope="module")
def explorer() -> live.OutlierExplorer:
    return live.outlier_explorer(*layer(), name="test layer")


def test_every_threshold_is_spqrs_own_run(explorer):
    W, H = layer()
    found = explorer.survey.outcomes
    assert [one.threshold for one in found] == [math.inf, 2, 1, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05]
    for one in found:
        stored, error = SpQR(threshold=one.threshold).quantize_layer(W, H)
        assert one.error == error == pytest.approx(error_share(W, stored.dequantize(), H))
        assert torch.equal(one.stored.dequantize(), stored.dequantize())
        assert sum(one.parts) == pytest.approx(stored.bits().per_weight, rel=1e-12)
        assert one.share == len(stored.values) / W.numel()
    assert found[0].share == 0 < found[5].share < found[-1].share
    assert found[0].parts[2] == 33 * 32 / W.numel()  # pointers are paid for even if nothing leaves


def test_costs_are_those_that_the_rounder_met(explorer, monkeypatch):
    """The decision is looked at from inside the method, and worked out from what it stored: the same."""
    W, H = layer()
    met = {}
    real = BilevelRounder.round

    def spy(self, j, t):
        out = real(self, j, t)
        mark = (self.q[j].float() - self.z) * self.s
        met[int(self.perm[j])] = (t - mark).square() * self.D[j] / self.tau
        return out

    monkeypatch.setattr(BilevelRounder, "round", spy)
    for one in explorer.survey.outcomes[1:]:
        SpQR(threshold=one.threshold).quantize_layer(W, H)
        theirs = torch.stack([met[c] for c in range(64)], 1) * one.threshold
        torch.testing.assert_close(one.cost, theirs, rtol=1e-3, atol=1e-6)
        assert torch.equal(one.kept, one.cost > one.threshold)


def test_counts_hold_every_weight_once_on_its_side(explorer):
    for one in explorer.survey.outcomes:
        inside, outside = one.counts
        assert inside.sum() + outside.sum() == one.cost.numel() and outside.sum() == len(one.stored.values)
        edges = np.logspace(outliers.LEAST, outliers.MOST, outliers.BINS + 1)
        assert not outside[edges[1:] <= one.threshold].any() and not inside[edges[:-1] > one.threshold].any()


def test_the_other_ways_are_the_packages(explorer):
    W, H = layer()
    ways = {"GPTQ, 3 bits, groups of 64": GPTQ(Grid(3, 64)), "GPTQ, 4 bits, groups of 64": GPTQ(Grid(4, 64)),
            "SpQR, 4 bits, no outliers": SpQR(Grid(4, 16, zero_inside=False), threshold=math.inf)}
    for (name, bits, error), (wanted, way) in zip(explorer.survey.others, ways.items(), strict=True):
        stored, share = way.quantize_layer(W, H)
        assert (name, bits, error) == (wanted, stored.bits().per_weight, share)


def test_what_is_sent_holds_the_layer(explorer):
    W, _ = layer()
    W[:, 9] = 0  # its input is dead: the method rounds a zero
    n, plane = W.numel(), W.numel() // 8
    assert np.array_equal(np.frombuffer(explorer.weights, "<f4").reshape(32, 64), W.numpy())
    planes = np.frombuffer(explorer.planes, "u1").reshape(10, 4, plane)
    rulers = np.frombuffer(explorer.rulers, "<f4").reshape(10, 2, 32, 4)
    fixes, at = np.frombuffer(explorer.corrections, "<f2"), 0
    for k, one in enumerate(explorer.survey.outcomes):
        bits = np.unpackbits(planes[k], axis=1, bitorder="little")[:, :n].astype(int)
        s, z = (np.repeat(t, 16, axis=1) for t in rulers[k])
        W_hat = (s * ((bits[:3] * [[1], [2], [4]]).sum(0).reshape(32, 64) - z)).flatten()
        here = np.flatnonzero(bits[3])
        W_hat[here] += fixes[at : at + len(here)]
        at += len(here)
        assert np.allclose(W_hat.reshape(32, 64), one.stored.dequantize(), atol=1e-6)
    assert at == len(fixes)
    upper = np.zeros((64, 64), "f4")
    upper[np.triu_indices(64)] = np.frombuffer(explorer.factor, "<f4")
    assert np.array_equal(upper.diagonal(), explorer.survey.D) and np.allclose(np.triu(upper, 1), np.triu(explorer.survey.V, 1))


def test_what_is_sent_is_small():
    W, H = layer(200, 512)
    sent = live.outlier_explorer(W, H)
    assert sent.shape == [64, 256] and sent.about == ("a layer: 64 of 200 rows, 256 of 512 inputs in whole groups, "
                                                      "the others left out")
    size = sum(len(getattr(sent, name)) for name in ("table", "weights", "factor", "planes", "rulers", "corrections"))
    assert size < 420_000


def test_a_large_layer_is_used_in_whole_groups_and_runs(monkeypatch):
    monkeypatch.setattr(outliers, "MOST_ROWS", 16)
    monkeypatch.setattr(outliers, "MOST_INPUTS", 32)
    W, H = layer(44, 96)
    small = live.outlier_explorer(W, H, second=Second(rows=8), thresholds=[0.3])
    columns, rows = [*range(16), *range(80, 96)], [*range(8), *range(32, 40)]
    assert small.names == columns + rows and [one.threshold for one in small.survey.outcomes] == [math.inf, 0.3]
    stored, error = SpQR(second=Second(rows=8), threshold=0.3).quantize_layer(W[rows][:, columns], H[columns][:, columns])
    assert small.survey.outcomes[1].error == error


def test_thresholds_follow_the_bits():
    W, H = layer()
    two, four = (live.outlier_explorer(W, H, bits=b) for b in (2, 4))
    assert two.survey.outcomes[1].threshold == 8 and four.survey.outcomes[1].threshold == 0.5
    for one in (two, four):
        assert one.survey.outcomes[one.chosen].threshold == 0.2
    alone = live.outlier_explorer(W, H, thresholds=[])
    assert alone.chosen == 0 and len(alone.survey.outcomes) == 1 and "no weight leaves" in alone.alt


def test_one_row_can_be_explored():
    W, H = layer()
    one = live.outlier_explorer(W[:1], H, second=Second(rows=1))
    assert one.shape == [1, 64] and all(torch.equal(o.kept, o.cost > o.threshold) for o in one.survey.outcomes)


def test_fallback_has_small_pictures_with_numbers(explorer):
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) == 5
    for (alt, code), k in zip(images, (0, 3, 5, 7, 9), strict=True):
        one = explorer.survey.outcomes[k]
        assert alt.startswith(one.words) and percent(one.error) in alt and digits(sum(one.parts)) in alt
        assert len(base64.b64decode(code)) <= 40_000
    assert explorer.fallback == live.outlier_explorer(*layer(), name="test layer").fallback


def test_the_sentence_tells_the_ends_the_usual_and_the_other_ways(explorer):
    assert explorer.alt.startswith("Outlier explorer, test layer: 32 rows, 64 inputs; 3-bit codes in groups of 16. "
                                   "No threshold: no weight leaves, ")
    for k in (0, 5, 9):
        assert explorer.survey.outcomes[k].words in explorer.alt
    assert all(f"{name}: {digits(b)} and {percent(e)}" in explorer.alt for name, b, e in explorer.survey.others)
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.alt and data["text/html"] == explorer.fallback


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.ones(4)}, r"W must be \[d_out, d_in\]"),
        ({"H": torch.eye(63)}, r"got \[32, 64\] and \[63, 63\]"),
        ({"W": torch.full((16, 64), float("nan"))}, "non-finite values"),
        ({"H": torch.full((64, 64), float("nan"))}, "non-finite values"),
        ({"W": torch.zeros(16, 64)}, "output is zero"),
        ({"group": 48}, "use g=32 or g=64"),
        ({"bits": 8}, "at most 7 bits"),
        ({"W": torch.ones(4, 64)}, r"give second=Second\(rows=4\)"),
        ({"second": Second(rows=128)}, r"give second=Second\(rows=16\)"),
        ({"thresholds": [0.0]}, "threshold=0.0 must be positive"),
    ],
)
def test_bad_input_is_named(change, message):
    W, H = layer()
    with pytest.raises(ValueError, match=message):
        live.outlier_explorer(**({"W": W, "H": H} | change))
