"""PTQ1.61: mask, signs, starts and learned scales against plain formulas; what must not change; what it costs."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowbit_nb.blocks import catch
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import Hessian
from lowbit_nb.methods.ptq161 import PTQ161, two_branches
from lowbit_nb.objectives import mse, nlc
from lowbit_nb.onebit.channels import METRICS, channel_scores, salient_channels, salient_count
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signfit import STARTS, fit_to_output, start_scales
from lowbit_nb.onebit.signlinear import FactoredBlock, SignLinear, sign_product
from lowbit_nb.onebit.signround import signs_with_feedback
from lowbit_nb.onebit.signs import sgn
from lowbit_nb.onebit.signscale import ScaledSigns
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.quantize import quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from tests import tiny
from tests.reference import correlated, cost, current_values, problem
from tests.walks import equal

SHORT, NONE = Budget(2, 4, 2), Budget(0, 0, 2)


def learnable(seed: int = 0, d_out: int = 5, d_in: int = 12, n_high: int = 4, factored: bool = False) -> ScaledSigns:
    """A layer with scales away from their start, in float64."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=g)
    salient = torch.zeros(d_in, dtype=torch.bool)
    salient[torch.randperm(d_in, generator=g)[:n_high]] = True
    low = W[:, ~salient]
    a, mu, v = start_scales(low, "weight")
    high = AffineWeight.nearest(W[:, salient], Grid(4)) if n_high else None
    p = ScaledSigns(salient, high, low >= mu[:, None], a, mu, v, factored)
    for name in ("a", "mu", "v", "W_high"):
        setattr(p, name, getattr(p, name).double())
    for name in ("level", "row", "column"):
        t = getattr(p, name)
        setattr(p, name, (t.detach() + 0.3 * torch.rand(len(t), generator=g)).double().requires_grad_())
    return p


def block_and_streams(kind: str = "llama", seed: int = 0, **changes: object) -> tuple:
    blocks, X = catch(tiny.model(kind, seed, **changes), tiny.windows().ids, 4)
    drifted = X + 0.05 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    return blocks[1], Streams(blocks[0].run(X), blocks[0].run(drifted))


# The mask


def test_the_count_is_the_nearest_multiple():
    assert [salient_count(n, 0.2, 64) for n in (4096, 5120, 11008, 14336)] == [832, 1024, 2176, 2880]
    assert salient_count(100, 0.001, 32) == 32 and salient_count(16, 0.5, 32) == 16
    assert [salient_count(48, share, 32) for share in (0.0, 1.0)] == [0, 48]
    with pytest.raises(ValueError, match="share=1.2 must lie between 0 and 1"):
        salient_count(16, 1.2)


def test_scores_are_their_formulas(generator):
    X = correlated(200, 8, generator)
    hessian = Hessian(8, dtype=torch.float64)
    hessian.add(X[:77])
    hessian.add(X[77:])
    W = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    want = {"absmax": X.abs().amax(0), "rms": X.square().mean(0).sqrt(),
            "output": torch.stack([(X[:, j, None] * W[:, j]).square().sum(1).mean() for j in range(8)])}
    H = X.T @ X / 200 + 0.01 * X.square().mean() * torch.eye(8)
    pivots = [1 / torch.linalg.inv(H[j:, j:])[0, 0] for j in range(8)]
    want["obs"] = torch.stack(pivots) * W.square().sum(0)
    assert set(want) == set(METRICS)
    for metric, scores in want.items():
        assert torch.allclose(channel_scores(hessian, W, metric), scores), metric
    with pytest.raises(ValueError, match="metric='size' is unknown; use one of absmax, rms, output, obs"):
        channel_scores(hessian, W, "size")


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=12), st.integers(0, 12))
def test_the_mask_is_the_first_of_the_largest(scores, count):
    count = min(count, len(scores))
    want = sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count]
    assert salient_channels(torch.tensor(scores), count).nonzero()[:, 0].tolist() == sorted(want)


def test_layers_that_share_an_input_share_a_mask_and_weights_do_not_matter():
    block, streams = block_and_streams()
    method = PTQ161(align=4, budget=NONE)
    masks = {name: p.salient for name, p in method.begin(block, streams).items()}
    for mates in (("q", "k", "v"), ("gate", "up")):
        first, *rest = [next(m for name, m in masks.items() if f".{mate}_proj" in name) for mate in mates]
        assert all(torch.equal(first, other) for other in rest)
    assert not torch.equal(masks["self_attn.q_proj"], masks["mlp.gate_proj"])
    before = masks["self_attn.q_proj"]
    block.linears["self_attn.q_proj"].weight.data.mul_(torch.linspace(0, 5, tiny.WIDTH))
    assert torch.equal(method.begin(block, streams)["self_attn.q_proj"].salient, before)
    X = block.inputs(streams.full, "self_attn.q_proj")
    assert set(X.abs().amax(0).topk(8).indices.tolist()) == set(before.nonzero()[:, 0].tolist())


# Signs, codes and starts


def test_the_mean_start_is_the_papers(generator):
    W = torch.randn(6, 40, generator=generator, dtype=torch.float64) + 0.2
    a, mu, v = start_scales(W, "mean")
    assert torch.allclose(a, W.abs().mean(1)) and torch.allclose(mu, W.mean(1)) and (v == 1).all()
    W_hat = mu[:, None] + a[:, None] * sgn(W - mu[:, None])
    centred = (W - mu[:, None]).abs()
    closed = centred.square().sum(1) - 2 * a * centred.sum(1) + 40 * a**2
    assert torch.allclose((W - W_hat).square().sum(1), closed)


def test_every_start_is_better_than_the_one_before(generator):
    X = correlated(400, 24, generator)
    H = X.T @ X / 400
    W = torch.randn(10, 24, generator=generator, dtype=torch.float64) * torch.logspace(-0.4, 0.4, 24) + 0.1
    found = {}
    for start in ("mean", "plane", "weight"):
        a, mu, v = start_scales(W, start)
        found[start] = (v * (mu[:, None] + a[:, None] * sgn(W - W.mean(1, keepdim=True))), v)
    error = {start: float((W - W_hat).square().sum()) for start, (W_hat, _) in found.items()}
    assert error["weight"] < error["plane"] < error["mean"]
    B = sgn(W - W.mean(1, keepdim=True))
    a, mu, v = fit_to_output(B, found["weight"][1], H, W @ H)
    assert float(v.mean()) == pytest.approx(1, abs=1e-6)
    W_hat = v * (mu[:, None] + a[:, None] * B)
    assert cost(W, W_hat.double(), H) < 0.9 * cost(W, found["weight"][0], H)
    with pytest.raises(ValueError, match="start='best' is unknown; use one of " + ", ".join(STARTS)):
        start_scales(W, "best")


def test_the_fit_to_the_output_stands_where_the_gradient_is_zero(generator):
    """Rows have the last word, so their gradients vanish at once, those of columns after many rounds."""
    W, H = problem(7, 16, generator)
    C = W @ H + 0.1 * torch.randn(7, 16, generator=generator, dtype=torch.float64)
    B = sgn(W)
    losses = []
    for rounds in range(12):
        a, mu, v = (t.double() for t in fit_to_output(B, torch.ones(16, dtype=torch.float64), H, C, rounds, ridge=0.0))
        W_hat = v * (mu[:, None] + a[:, None] * B)
        losses.append(float(((W_hat @ H) * W_hat).sum() - 2 * (W_hat * C).sum()))
    assert all(later <= earlier + 1e-4 for earlier, later in zip(losses, losses[1:], strict=False))
    parts = [t.double().requires_grad_() for t in fit_to_output(B, torch.ones(16).double(), H, C, 200, ridge=0.0)]
    W_hat = parts[2] * (parts[1][:, None] + parts[0][:, None] * B)
    (((W_hat @ H) * W_hat).sum() - 2 * (W_hat * C).sum()).backward()
    assert all(p.grad.abs().max() < 1e-3 for p in parts)


def test_the_start_makes_up_for_the_error_of_salient_channels(generator):
    """The layer's whole error is least over levels: coarse salient channels and a strong correlation tell the sign."""
    X = correlated(300, 24, generator) + 2 * torch.randn(300, 1, generator=generator, dtype=torch.float64)
    W, H = torch.randn(6, 24, generator=generator), (X.T @ X / 300).float()
    p = PTQ161(bits=1)._begin(W, torch.arange(24) < 12, H)
    p.factored = False
    E = W - p.weight()
    ((E @ H) * E).sum().backward()
    assert p.level.grad.abs().max() < 1e-3 * float(((W @ H) * W).sum())


def test_dead_channels_and_empty_layers_stay_finite(generator):
    H = problem(1, 12, generator)[1].float()
    H[3], H[:, 3], H[7], H[:, 7] = 0, 0, 0, 0
    salient = torch.arange(12) % 4 == 3  # channels 3 and 7, both dead, are salient or not
    for mask in (salient, ~salient):
        for how in ("nearest", "feedback"):
            for W in (torch.zeros(4, 12), torch.randn(4, 12, generator=generator)):
                W_hat = PTQ161(signs=how)._begin(W, mask, H).finish().dequantize()
                assert torch.isfinite(W_hat).all() and (W.any() or not W_hat.any())


def test_four_bit_ranges_span_salient_channels_only():
    block, streams = block_and_streams()
    name = "self_attn.q_proj"
    p = PTQ161(align=4, budget=NONE).begin(block, streams)[name]
    W = block.weight(name)[:, p.salient]
    lo, hi = W.amin(1).clamp(max=0), W.amax(1).clamp(min=0)
    assert torch.allclose(p.high.s[:, 0].float(), (hi - lo) / 15, rtol=1e-3)
    again = AffineWeight.nearest(p.high.dequantize(), Grid(4))
    assert torch.allclose(again.dequantize(), p.high.dequantize(), atol=2e-3 * float(W.abs().max()))


def test_signs_with_feedback_are_the_nearest_marks_after_what_came_before(generator):
    W, H = problem(4, 14, generator)
    salient = torch.arange(14) % 3 == 1
    low = (~salient).nonzero()[:, 0].tolist()
    high = AffineWeight.nearest(W[:, salient].float(), Grid(4))
    a, mu, v = (t.double() for t in start_scales(W[:, ~salient], "weight"))
    new, sign = signs_with_feedback(W, H, salient, high, a, mu, v)
    W_hat = torch.empty_like(W)
    W_hat[:, salient] = new.dequantize(torch.float64)
    W_hat[:, ~salient] = v * torch.where(sign, (mu + a)[:, None], (mu - a)[:, None])
    order = sorted(low, key=lambda j: -H[j, j]) + sorted(set(range(14)) - set(low), key=lambda j: -H[j, j])
    for k, j in enumerate(order):
        now = current_values(W, W_hat, H, order[:k], order[k:])[:, 0]
        if j in low:
            marks = v[low.index(j)] * torch.stack([mu - a, mu + a])
        else:
            q = torch.arange(16, dtype=torch.float64)[:, None]
            marks = (q - high.zero[:, 0].double()) * high.s[:, 0].double()
        assert torch.allclose((W_hat[:, j] - now).abs(), (marks - now).abs().amin(0), atol=1e-9)


def test_feedback_on_signs_pays():
    block, streams = block_and_streams(hidden_size=64, intermediate_size=128)
    H = block.hessians(streams.quant, [["mlp.gate_proj"]])[0].H
    W = block.weight("mlp.gate_proj")
    losses = {}
    for how in ("nearest", "feedback"):
        p = PTQ161(align=4, budget=NONE, signs=how).begin(block, streams)["mlp.gate_proj"]
        losses[how] = cost(W, p.finish().dequantize(), H)
    assert losses["feedback"] < 0.9 * losses["nearest"]


# What is learned


def test_one_row_factor_is_redundant():
    """Only a' = u a and mu' = u mu matter: that is why two row scales are stored as one."""
    p, other = learnable(), learnable()
    with torch.no_grad():
        other.a, other.mu = other.a * other.row, other.mu * other.row
        other.row = torch.ones_like(other.row)
    assert torch.allclose(p.weight(), other.weight())


def test_the_weight_is_the_formula():
    p = learnable()
    a, k, u, mu, v, t = p.a, p.level, p.row, p.mu, p.v, p.column
    high, low = p.salient.nonzero()[:, 0].tolist(), (~p.salient).nonzero()[:, 0].tolist()
    W_hat = p.weight().detach()
    a, k, u, t = (x.detach() for x in (a, k, u, t))
    for i in range(5):
        for n, j in enumerate(low):
            B = 1.0 if p.sign[i, n] else -1.0
            assert float(W_hat[i, j]) == pytest.approx(float(u[i] * v[n] * t[n] * (a[i] * k[i] * B + mu[i])))
        assert W_hat[i, high].tolist() == pytest.approx(p.high.dequantize()[i].tolist())


@pytest.mark.parametrize("n_high", [0, 4])
def test_the_product_without_the_weight_is_the_product_with_it(generator, n_high):
    """Outputs and every gradient, in float64."""
    p = learnable(n_high=n_high)
    x = torch.randn(2, 7, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    leaves = [x, p.level, p.row, p.column]
    dense = nn.functional.linear(x, p.weight())
    want = torch.autograd.grad(dense, leaves, grad)
    p.factored = True
    layer = SignLinear(nn.Linear(12, 5, bias=False, dtype=torch.float64), p)
    y = torch.func.functional_call(layer, {"weight": p.weight()}, (x,))
    assert torch.allclose(y, dense, atol=1e-12)
    for found, right in zip(torch.autograd.grad(y, leaves, grad), want, strict=True):
        assert torch.allclose(found, right, atol=1e-11)


def test_nothing_of_the_weights_size_is_kept_for_backward():
    """64 x 64 signs are there once; what autograd keeps are tensors over tokens and vectors."""
    B = torch.ones(64, 64)
    a, mu, v = (torch.rand(64, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sign_product(torch.rand(3, 64), torch.zeros(64, 0), B, a, mu, v)
    assert all(t.numel() <= 3 * 64 or t.untyped_storage().data_ptr() == B.untyped_storage().data_ptr() for t in kept)


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
def test_a_factored_block_is_the_block(kind):
    """Biases, grouped heads; weights are taken where weights are handed in."""
    block, streams = block_and_streams(kind)
    learn = PTQ161(align=4, budget=NONE).begin(block, streams)
    other = FactoredBlock(block, learn)
    x = streams.quant[:2]
    scales = {name: p.weight() for name, p in learn.items()}
    for p in learn.values():
        p.factored = False
    weights = {name: p.weight() for name, p in learn.items()}
    want = block.forward(x, weights)
    assert torch.allclose(other.forward(x, scales), want, atol=2e-5)
    assert torch.equal(other.forward(x, weights), want) and torch.equal(other.forward(x), block.forward(x))


def test_both_ways_learn_the_same():
    subject, windows = tiny.subject(), tiny.windows()
    ways = [quantize(subject, PTQ161(align=4, budget=SHORT, factored=f), windows, progress=False) for f in (True, False)]
    for name, w in ways[0].weights.items():
        assert torch.allclose(w.dequantize(), ways[1].weights[name].dequantize(), atol=2e-3)


def test_mask_codes_signs_and_means_never_change():
    block, streams = block_and_streams()
    method = PTQ161(align=4, budget=SHORT, reach=1.0)
    start = {name: p.finish() for name, p in method.begin(block, streams).items()}
    end = method.quantize_block(block, streams).weights
    moved = 0
    for name, w in end.items():
        was = start[name]
        assert torch.equal(w.salient, was.salient) and torch.equal(w.low.sign, was.low.sign)
        assert all(torch.equal(t, u) for t, u in zip(w.high.pack().values(), was.high.pack().values(), strict=True))
        moved += not torch.equal(w.low.v, was.low.v)
    assert moved


def test_the_end_is_never_worse_than_the_start_and_training_helps():
    block, streams = block_and_streams()
    wild = PTQ161(align=4, budget=Budget(2, 3, 2), reach=300.0).quantize_block(block, streams).trace
    assert wild["end"] <= wild["start"]
    for start in STARTS:
        trace = PTQ161(align=4, start=start, budget=Budget(6, 10, 4), reach=0.3).quantize_block(block, streams).trace
        assert trace["end"] < trace["start"]


def test_a_better_start_starts_better():
    block, streams = block_and_streams(hidden_size=64, intermediate_size=128)
    begin = {s: PTQ161(align=4, start=s, budget=NONE).quantize_block(block, streams).trace["start"] for s in ("mean", "output")}
    assert begin["output"] < begin["mean"]


# The objective


def test_the_angle_is_the_formula(generator):
    y, t = torch.randn(2, 2, 3, 8, generator=generator, dtype=torch.float64)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(y.flatten(0, 1), t.flatten(0, 1), strict=True)]
    want = -torch.tensor(abs(sum(cosines) / len(cosines))).log()
    assert float(nlc(y, t)) == pytest.approx(float(want), rel=1e-4)


def test_the_angle_is_zero_for_parallel_outputs_and_blind_to_lengths(generator):
    t = torch.randn(2, 5, 16, generator=generator)
    lengths = torch.rand(2, 5, 1, generator=generator) + 0.5
    assert float(nlc(lengths * t, t)) == pytest.approx(0, abs=1e-6)
    y = (t + 0.5 * torch.randn(t.shape, generator=generator)).requires_grad_()
    assert float(nlc(3 * y, t)) == pytest.approx(float(nlc(y, t)), rel=1e-4) and float(nlc(y, t)) > 0
    nlc(y, t).backward()
    assert (y.grad * y).sum(-1).abs().max() < 1e-6


def test_the_angle_is_taken_in_float32():
    """In half precision cosines near 1 are all 1."""
    t = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    near = t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
    want = float(nlc(near, t))
    assert 2e-5 < want < 1e-4 and float(nlc(near.bfloat16(), t.bfloat16())) == pytest.approx(want, rel=0.2)


def test_two_branches_are_four_terms(generator):
    y, full, real = torch.randn(3, 2, 5, 8, generator=generator)
    want = sum((y - t).square().mean() + nlc(y, t) for t in (full, real))
    assert float(two_branches(y, torch.stack([full, real], 1))) == pytest.approx(float(want), rel=1e-5)
    assert float(mse(y, full)) == pytest.approx(8 * float((y - full).square().mean()), rel=1e-5)


def test_both_branches_reach_the_objective():
    """The second is the original block on what really comes, not the first again."""
    block, streams = block_and_streams()
    trace = PTQ161(align=4, budget=NONE).quantize_block(block, streams).trace
    weights = {n: p.finish().dequantize() for n, p in PTQ161(align=4, budget=NONE).begin(block, streams).items()}
    y = block.run(streams.quant, weights)
    want = two_branches(y, torch.stack([block.run(streams.full), block.run(streams.quant)], 1))
    assert trace["start"] == pytest.approx(float(want), rel=0.05)
    assert float(want) != pytest.approx(float(two_branches(y, torch.stack([block.run(streams.full)] * 2, 1))), rel=0.05)


# The method


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt"])
def test_students_are_causal(kind):
    """A changed token changes nothing before it, in either form of the block."""
    block, streams = block_and_streams(kind)
    learn = PTQ161(align=4, budget=NONE).begin(block, streams)
    other = FactoredBlock(block, learn)
    x = streams.quant[:1].clone()
    changed = x.clone()
    changed[:, 12] += 1
    for tensors in ({n: p.weight() for n, p in learn.items()}, {n: p.finish().dequantize() for n, p in learn.items()}):
        before, after = other.forward(x, tensors), other.forward(changed, tensors)
        assert torch.equal(before[:, :12], after[:, :12]) and not torch.equal(before[:, 12:], after[:, 12:])


def test_all_channels_salient_is_four_bit_rounding_and_none_a_sign_code():
    subject, windows = tiny.subject(), tiny.windows()
    all_salient = quantize(subject, PTQ161(share=1.0, budget=NONE), windows, progress=False)
    none = quantize(subject, PTQ161(share=0.0, start="plane", budget=NONE), windows, progress=False)
    for name, w in all_salient.weights.items():
        W = subject.model.get_submodule(name).weight
        assert isinstance(w, AffineWeight) and torch.equal(w.q, AffineWeight.nearest(W, Grid(4)).q)
        plain = SignWeight.nearest(W)
        assert torch.equal(none.weights[name].dequantize(), plain.dequantize())


def test_scaling_a_weight_scales_its_numbers_only():
    W = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    H = torch.eye(32)
    salient = torch.arange(32) < 8
    for start in STARTS:
        method = PTQ161(start=start)
        one, four = (method._begin(c * W, salient, H).finish() for c in (1.0, 4.0))
        assert torch.equal(one.low.sign, four.low.sign) and torch.equal(one.high.q, four.high.q)
        assert torch.allclose(4 * one.low.a.float(), four.low.a.float(), rtol=2e-3)
        assert torch.allclose(one.low.v.float(), four.low.v.float(), rtol=2e-3)


def test_permutations_go_through():
    g = torch.Generator().manual_seed(3)
    W, X = torch.randn(6, 32, generator=g), torch.randn(200, 32, generator=g)
    H, salient = X.T @ X / 200, torch.rand(32, generator=g) < 0.3
    rows, cols = torch.randperm(6, generator=g), torch.randperm(32, generator=g)
    plain = PTQ161()._begin(W, salient, H).finish().dequantize()
    turned = PTQ161()._begin(W[rows][:, cols], salient[cols], H[cols][:, cols]).finish().dequantize()
    assert torch.allclose(turned, plain[rows][:, cols], atol=2e-3)


def test_a_walk_can_be_repeated_saved_and_counted(tmp_path):
    subject, windows = tiny.subject(), tiny.windows()
    method = PTQ161(align=4, budget=SHORT)
    found = quantize(subject, method, windows, tmp_path, progress=False)
    assert all(isinstance(w, MixedWeight) for w in found.weights.values())
    assert equal(found, quantize(subject, method, windows, progress=False))
    assert equal(found, quantize(subject, method, windows, tmp_path, progress=False))  # read back
    json.dumps(found.trace)
    w = found.weights["model.layers.0.self_attn.q_proj"]
    assert int(w.salient.sum()) == salient_count(tiny.WIDTH, 0.2, 4) == found.trace[0]["salient"]["self_attn.q_proj"]


@pytest.mark.parametrize("settings, message", [
    ({"metric": "size"}, "metric='size' is unknown"), ({"start": "svd"}, "start='svd' is unknown"),
    ({"signs": "best"}, "signs='best' is unknown"), ({"share": 2.0}, "share=2.0 must lie"),
    ({"bits": 9}, "bits=9"), ({"budget": "huge"}, "budget='huge' is unknown"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PTQ161(**settings)


