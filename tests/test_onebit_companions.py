"""PB-LLM and ARB-LLM_RC on the parts of BiLLM: closed forms, limits, what is stored."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit_nb import stored
from lowbit_nb.grid import Grid, dequantize, fit, quantize
from lowbit_nb.hessian import factor
from lowbit_nb.methods.arbllm import ARBLLM
from lowbit_nb.methods.billm import BiLLM
from lowbit_nb.methods.oac import OAC
from lowbit_nb.methods.pbllm import PBLLM
from lowbit_nb.onebit import signs
from lowbit_nb.onebit.alternating import _nearest, scaled_planes, two_scaled_planes
from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.partial import PartialWeight
from lowbit_nb.quantize import quantize as walk
from tests import tiny
from tests.reference import current_values, problem
from tests.test_signs import round_trip
from tests.walks import equal

# ARB-LLM_RC


def test_one_region_is_the_rank_one_fit_of_the_sizes(generator):
    """The first singular pair of |W|, as OneBit takes it."""
    W = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    no = torch.zeros(20, dtype=torch.bool)
    W_hat = scaled_planes(W, no, no.expand_as(W)).dequantize(torch.float64)
    U, S, Vt = torch.linalg.svd(W.abs())
    want = S[0] * torch.outer(U[:, 0], Vt[0]) * signs.sgn(W)
    assert torch.allclose(W_hat, want, rtol=3e-3, atol=1e-5)


def test_refining_never_makes_it_worse(generator):
    W = torch.randn(10, 12, generator=generator, dtype=torch.float64)
    losses = []
    for k in range(16):
        first, second = two_scaled_planes(W, k)
        losses.append(float((W - torch.outer(*first[:2]) * first[2] - torch.outer(*second[:2]) * second[2]).square().sum()))
    assert all(b <= a + 1e-12 for a, b in zip(losses, losses[1:], strict=False)) and losses[-1] < 0.95 * losses[0]
    a, b = torch.outer(*first[:2]), torch.outer(*second[:2])
    best = (torch.stack([-a - b, b - a, a - b, a + b]) - W).abs().amin(0)  # signs are chosen last
    assert torch.allclose((a * first[2] + b * second[2] - W).abs(), best)
    one = torch.outer(*signs.rank_one(W.abs()))
    assert losses[0] < float((W.abs() - one).square().sum())


def test_every_weight_takes_the_best_of_four(generator):
    W = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    planes = [(torch.randn(5, generator=generator).double(), torch.randn(6, generator=generator).double(), signs.sgn(W))
              for _ in range(2)]
    (_, _, B1), (_, _, B2) = _nearest(W, *planes)
    a, b = (torch.outer(r, c) for r, c, _ in planes)
    for i in range(5):
        for j in range(6):
            levels = [s * float(a[i, j]) + t * float(b[i, j]) for s in (-1, 1) for t in (-1, 1)]
            found = float(B1[i, j] * a[i, j] + B2[i, j] * b[i, j])
            assert abs(found - float(W[i, j])) == pytest.approx(min(abs(x - float(W[i, j])) for x in levels))


def test_columns_of_different_sizes_are_where_it_wins(generator):
    W, H = problem(32, 48, generator)
    W = W * torch.logspace(-0.7, 0.7, 48)[torch.randperm(48, generator=generator)]
    billm, arb = (m.quantize_layer(W, H)[0] for m in (BiLLM(span=16, most=4), ARBLLM(span=16, most=4)))
    error = [float((W - w.dequantize()).square().sum()) for w in (billm, arb)]
    assert error[1] < error[0] and arb.bits().bits < billm.bits().bits + 2 * 16 * 48
    assert arb.means is None and arb.factors.shape == (2, 48)


def test_factors_are_counted(tmp_path, generator):
    W, H = problem(64, 256, generator)
    w = ARBLLM().quantize_layer(W.float(), H.float())[0]
    round_trip(w, tmp_path / "one.safetensors")
    assert w.bits().per_weight == pytest.approx(2 + 4 * 16 / 128 + 1 / 64 + 2 * 16 / 64)


# PB-LLM


@pytest.mark.parametrize("metric", ["hessian", "magnitude"])
def test_the_loop_is_feedback_with_two_kinds_of_marks(generator, metric):
    W, H = problem(5, 12, generator)
    found = PBLLM(share=0.25, metric=metric, group=6, damp=0.0).quantize_layer(W, H)[0]
    W_hat, D = found.dequantize(torch.float64), factor(H)[1]
    score = W.square() * D if metric == "hessian" else W.abs()
    assert int(found.salient.sum()) == 15 and score[found.salient].min() >= score[~found.salient].max()
    for i in range(5):
        for g in (slice(0, 6), slice(6, 12)):
            low = W[i, g][~found.salient[i, g]]
            if len(low):
                assert float(found.mu[i, g.start // 6]) == pytest.approx(float(low.mean()), abs=2e-3)
                assert float(found.a[i, g.start // 6]) == pytest.approx(float((low - low.mean()).abs().mean()), abs=2e-3)
    for j in range(12):
        now = current_values(W, W_hat, H, list(range(j)), list(range(j, 12)))[:, 0]
        mu, a = found.mu[:, j // 6].double(), found.a[:, j // 6].double()
        low = mu + a * signs.sgn(now - mu)
        q = (torch.round(now / found.s[:, 0]) + found.z[:, 0]).clamp(0, 255)
        want = torch.where(found.salient[:, j], (q - found.z[:, 0]) * found.s[:, 0], low)
        assert torch.allclose(W_hat[:, j], want, atol=1e-6)


def test_the_ends_of_the_share(generator):
    """All weights with a code: 8-bit rounding; none: signs."""
    W = torch.randn(6, 32, generator=generator)
    H = torch.eye(32)
    whole = PBLLM(share=1.0).quantize_layer(W, H)[0]
    s, z = fit(W, Grid(8))
    assert torch.allclose(whole.dequantize(), dequantize(quantize(W, s, z, Grid(8)), s, z, Grid(8)))
    none = PBLLM(share=0.0).quantize_layer(W, H)[0].dequantize()
    mu, a = signs.one_plane(W)
    assert torch.allclose(none, mu[:, None] + a[:, None] * signs.sgn(W - mu[:, None]), atol=2e-3)


@given(st.integers(0, 2**31), st.sampled_from([(1, 4, None, 0.5), (3, 100, 25, 0.1), (8, 64, 16, 0.0), (5, 33, None, 1.0)]))
def test_partial_weights_on_disk(tmp_path_factory, seed, shape):
    d_out, d_in, group, share = shape
    W, H = problem(d_out, d_in, torch.Generator().manual_seed(seed))
    w = PBLLM(share=share, group=group).quantize_layer(W.float(), H.float())[0]
    round_trip(w, tmp_path_factory.mktemp("partial") / "one.safetensors")
    x = torch.randn(d_in)
    assert torch.allclose(w.matvec(x), w.dequantize() @ x, atol=1e-3)
    assert w.bits().nominal == pytest.approx(1 + 7 * len(w.q) / (d_out * d_in))


def test_the_price_of_a_bitmap(generator):
    W, H = problem(256, 256, generator)
    w = PBLLM().quantize_layer(W.float(), H.float())[0]
    assert w.bits().nominal == pytest.approx(1.7, abs=1e-3)
    assert w.bits().per_weight == pytest.approx(2.7 + (3 * 16 + 8) / 256, abs=3e-3)


@pytest.mark.parametrize("name", ["salient", "codes", "signs", "scales", "zeros", "levels", "means"])
def test_damage_is_refused(generator, name):
    W, H = problem(4, 32, generator)
    w = PBLLM().quantize_layer(W.float(), H.float())[0]
    with pytest.raises(ValueError, match=f"the {name} of a partial weight are missing or not"):
        stored.unpack({k: t for k, t in w.pack().items() if k != name}, json.loads(json.dumps(w.meta())))
    with pytest.raises(ValueError, match="the bitmap has"):
        stored.unpack(w.pack() | {"salient": w.pack()["salient"] * 0}, w.meta())


# Both


@pytest.mark.parametrize("method, form", [(PBLLM(), PartialWeight), (ARBLLM(span=16, iterations=3), BinaryWeight),
                                          (ARBLLM(span=16, iterations=3, feedback="column"), BinaryWeight)])
def test_a_walk_and_the_loss_metric(method, form):
    subject, windows = tiny.subject(), tiny.windows()
    for one in (method, OAC(backend=method, sequential=False)):
        found = walk(subject, one, windows, progress=False)
        assert all(isinstance(w, form) for w in found.weights.values())
        assert equal(found, walk(subject, one, windows, progress=False))
        assert all(0 < share < 1 for trace in found.trace for share in trace["error_share"].values())


@pytest.mark.parametrize("method, settings, message", [
    (ARBLLM, {"search": "size"}, "search='size' is unknown"), (ARBLLM, {"iterations": -1}, "iterations=-1 at least 0"),
    (PBLLM, {"metric": "size"}, "metric='size' must be one of hessian, magnitude"), (PBLLM, {"share": 1.5}, "share=1.5"),
])
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
