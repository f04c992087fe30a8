"""AWQ, OmniQuant, TesseraQ and SmoothQuant on whole tiny models, and once on the bundled subject."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lowbit_nb as lb
from lowbit_nb import checkpoint
from lowbit_nb import grid as grids
from lowbit_nb.blocks import Block, catch
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import error_share, gram
from lowbit_nb.methods import AWQ, RTN, OmniQuant, SmoothQuant, TesseraQ
from lowbit_nb.quantize import Method, quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Phases, Quantized
from lowbit_nb.sites import sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.transforms import current, norms
from tests import tiny, walks

GRID = Grid(2, 16)
SHORT = Budget(3, 4, 2)
STILL = Budget(1, 0, 2)  # no steps
METHODS: dict[str, Method] = {
    "smoothquant": SmoothQuant(GRID),
    "awq": AWQ(GRID),
    "omniquant": OmniQuant(GRID, SHORT),
    "tesseraq-awq": TesseraQ(AWQ(GRID), SHORT),
    "tesseraq-omniquant": TesseraQ(OmniQuant(GRID, SHORT), SHORT),
}


@lru_cache
def walked(name: str) -> Quantized:
    return quantize(tiny.subject(), METHODS[name], tiny.windows(), progress=False)


def same_params(a: Quantized, b: Quantized) -> bool:
    return a.params.keys() == b.params.keys() and all(
        torch.equal(a.params[n], b.params[n]) and a.params[n].dtype == b.params[n].dtype for n in a.params)


def entrance(kind: str = "llama") -> tuple[Block, Tensor]:
    blocks, X = catch(tiny.model(kind), tiny.windows(8, 24).ids)
    X[..., :4] *= 6  # channels that stand out
    return blocks[1], X


def metrics(block: Block, X: Tensor) -> dict[str, Tensor]:
    shared = block.shared_inputs(X[:1])
    return {n: h.H for names, h in zip(shared, block.hessians(X, shared), strict=True) for n in names}


# --- AWQ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt", "phi3"])
def test_the_chosen_scale_is_never_worse_than_none(kind: str) -> None:
    """By AWQ's own measure, for every site: the rounded layers' output error against that at ratio 0."""
    block, X = entrance(kind)
    H = metrics(block, X)
    params, _ = AWQ(GRID).begin(block, X, None, Phases())
    better = 0
    for i, site in enumerate(sites(block, X[:1])):
        name = site.targets[0]
        before: dict[str, Tensor] = {}
        chain = dict(H)
        for earlier in sites(block, X[:1])[:i]:
            before = AWQ(GRID)._search(block, earlier, before, chain)
        after = AWQ(GRID)._search(block, site, before, dict(chain))
        W = torch.cat([current(block, before, t) for t in site.targets]).float()
        W_s = torch.cat([current(block, after, t) for t in site.targets]).float()
        s = (W_s / W).nanmedian(0).values
        plain = error_share(W, AffineWeight.nearest(W, GRID).dequantize(), chain[name])
        chosen = error_share(W, AffineWeight.nearest(W_s, GRID).dequantize() / s, chain[name])
        assert chosen <= plain * 1.01, site  # the stored gain is rounded after the choice
        better += chosen < 0.99 * plain
    assert better and params


@pytest.mark.parametrize("bits, g", [(2, 4), (3, 8), (4, 16)])
def test_the_gram_clip_is_the_best_of_all_rulers_by_brute_force(bits: int, g: int) -> None:
    """Every shorter ruler and both zero points, scored on the tokens themselves, group by group, in float64."""
    grid = Grid(bits, g)
    X = torch.randn(200, 32).double() @ (torch.randn(32, 32).double() / 4 + torch.eye(32).double())
    W = torch.randn(6, 32) * 0.3 + 0.05
    H = X.T @ X / len(X)
    s, z = grids.fit(W, grid, "mse", gram(H.float(), g))
    s0, z0 = grids.fit(W, grid)

    def losses(s: Tensor, z: Tensor) -> Tensor:
        E = (grids.dequantize(grids.quantize(W, s, z, grid), s, z, grid) - W).double()
        parts = [(X[:, i : i + g] @ E[:, i : i + g].T).square().mean(0) for i in range(0, 32, g)]
        return torch.stack(parts, 1)

    chosen, unclipped = losses(s, z), losses(s0, z0)
    assert (chosen <= unclipped * (1 + 1e-4)).all() and (chosen < 0.9 * unclipped).any()
    W_g = grids.grouped(W, grid)
    lo, hi = W_g.amin(-1).clamp(max=0), W_g.amax(-1).clamp(min=0)
    for shrink in grids.SHRINK:
        for nudge in (0, 1):
            assert (chosen <= losses(*grids.ruler(lo * shrink, hi * shrink, grid, nudge)) * (1 + 1e-3)).all()


def test_the_gram_clip_looks_at_correlations() -> None:
    """With perfectly correlated inputs errors of opposite sign cancel; the diagonal alone cannot see that."""
    X = torch.randn(300, 1).expand(-1, 16) + 0.05 * torch.randn(300, 16)
    W = torch.randn(32, 16)
    H = X.T @ X / len(X)

    def cost(rulers: tuple[Tensor, Tensor]) -> float:
        return error_share(W, grids.dequantize(grids.quantize(W, *rulers, GRID), *rulers, GRID), H)

    assert cost(grids.fit(W, GRID, "mse", gram(H, 16))) < 0.5 * cost(grids.fit(W, GRID, "mse", H.diagonal()))


@pytest.mark.parametrize("method", (AWQ(GRID), SmoothQuant(GRID, clip="gram")), ids=("awq", "smoothquant"))
def test_the_clip_is_searched_on_the_inputs_that_flow_after_scaling(method: AWQ | SmoothQuant) -> None:
    block, X = entrance()
    params, rulers = method.begin(block, X, None, Phases())
    shared = block.shared_inputs(X[:1])
    scaled = block.hessians(X, shared, {n: t.float() for n, t in params.items()})
    agree = []
    for h, names in zip(scaled, shared, strict=True):
        for name in names:
            s, _ = grids.fit(current(block, params, name).float(), GRID, "mse", gram(h.H, 16))
            agree.append((s == rulers[name][0]).float().mean())
    assert min(agree) > 0.97  # the two matrices differ in their last bits


@pytest.mark.parametrize("g", [1, 2, 4, 8])
def test_gram_is_the_diagonal_blocks(g: int) -> None:
    H = torch.randn(8, 8)
    M = gram(H, g)
    assert M.shape == (8 // g, g, g)
    assert all(torch.equal(M[i], H[i * g : (i + 1) * g, i * g : (i + 1) * g]) for i in range(8 // g))
    with pytest.raises(ValueError, match="multiple of g=3"):
        gram(H, 3)


def test_a_gram_matrix_of_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="Gram"):
        grids.fit(torch.randn(2, 32), GRID, "mse", torch.zeros(2, 8, 8))


def test_scaling_off_leaves_norms_alone() -> None:
    q = quantize(tiny.subject(), AWQ(GRID, scaling=False), tiny.windows(), progress=False)
    assert q.params == {} and {i.name for i in q.bits().items} == {"codes", "scales", "zeros"}


def test_scaling_and_clipping_lower_the_block_loss() -> None:
    block, X = entrance()
    Y = block.run(X)

    def loss(method: AWQ) -> float:
        result = method.quantize_block(block, lb.streams.Streams(None, X))
        exchanged = {n: w.dequantize() for n, w in result.weights.items()} | {n: t.float() for n, t in result.params.items()}
        return float((block.run(X, exchanged) - Y).square().mean())

    plain, full = loss(AWQ(GRID, scaling=False, clip="minmax")), loss(AWQ(GRID))
    assert full < 0.9 * plain


def test_an_unknown_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="'gram', 'mse' or 'minmax'"):
        AWQ(GRID, clip="octav")


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_smoothing_strength_is_checked(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0"):
        SmoothQuant(GRID, alpha)


@pytest.mark.parametrize("name", METHODS)
def test_a_group_that_does_not_divide_is_an_error_that_names_block_and_layer(name: str) -> None:
    starts = {"tesseraq-awq": AWQ(Grid(2, 24)), "tesseraq-omniquant": OmniQuant(Grid(2, 24), SHORT)}
    method = TesseraQ(starts[name], SHORT) if name in starts else type(METHODS[name])(Grid(2, 24))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn.*multiple of g=24"):
        quantize(tiny.subject(), method, tiny.windows(), progress=False)


# --- the record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_edited_parameters_are_small_counted_and_used(name: str) -> None:
    q = walked(name)
    if "omniquant" in name:
        assert q.params == {}
        return
    assert len(q.params) == 2 * tiny.BLOCKS and all(t.dtype == torch.float16 for t in q.params.values())
    listed = [i for i in q.bits().items if i.name == "norms"]
    assert sum(i.bits for i in listed) == 16 * sum(t.numel() for t in q.params.values())
    weights = sum(w.bits().bits for w in q.weights.values())
    assert q.bits().bits == weights + sum(i.bits for i in listed)
    applied = q.apply(tiny.subject()).model
    for full_name, value in q.params.items():
        assert torch.equal(applied.get_parameter(full_name), value.float())


@pytest.mark.parametrize("name", METHODS)
def test_applying_leaves_the_subject_alone(name: str) -> None:
    subject = tiny.subject()
    before = tiny.state(subject.model)
    applied = walked(name).apply(subject)
    assert tiny.unchanged(subject.model, before) and not tiny.unchanged(applied.model, before)
    assert torch.isfinite(applied.model(tiny.windows().ids).logits).all()


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load_bit_for_bit(name: str, tmp_path: Path) -> None:
    q = walked(name)
    checkpoint.save_quantized(q, tmp_path)
    again = checkpoint.load_quantized(tmp_path)
    assert walks.equal(q, again) and same_params(q, again)
    assert again.bits() == q.bits() and again.settings["method"] == q.settings["method"]
    ids = tiny.windows().ids
    assert torch.equal(again.apply(tiny.subject()).model(ids).logits, q.apply(tiny.subject()).model(ids).logits)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["awq", "tesseraq-awq"])
def test_a_killed_run_goes_on_to_the_same_integers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS[name]
    original = type(method).quantize_block

    def dying(self: Method, block: Block, streams: lb.streams.Streams) -> object:
        if block.index == 2:
            raise Killed
        return original(self, block, streams)

    monkeypatch.setattr(type(method), "quantize_block", dying)
    with pytest.raises(Killed):
        quantize(tiny.subject(), method, tiny.windows(), tmp_path, progress=False)
    monkeypatch.setattr(type(method), "quantize_block", original)
    resumed = quantize(tiny.subject(), method, tiny.windows(), tmp_path, progress=False)
    assert walks.equal(resumed, walked(name)) and same_params(resumed, walked(name))


@pytest.mark.parametrize("name", METHODS)
def test_twice_the_same(name: str) -> None:
    again = quantize(tiny.subject(), METHODS[name], tiny.windows(), progress=False)
    assert walks.equal(again, walked(name)) and same_params(again, walked(name))


def test_a_start_of_another_kind_is_another_run(tmp_path: Path) -> None:
    quantize(tiny.subject(), METHODS["tesseraq-awq"], tiny.windows(), tmp_path, progress=False)
    with pytest.raises(ValueError, match="another run"):
        quantize(tiny.subject(), METHODS["tesseraq-omniquant"], tiny.windows(), tmp_path, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_in_every_number_type(name: str, dtype: torch.dtype) -> None:
    q = quantize(tiny.subject(dtype=dtype), METHODS[name], tiny.windows(), progress=False)
    assert all(torch.isfinite(w.dequantize()).all() for w in q.weights.values())
    logits = q.apply(tiny.subject(dtype=dtype)).model(tiny.windows().ids).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "phi", "phi3", "opt"])
def test_every_architecture_goes_through(kind: str) -> None:
    q = quantize(tiny.subject(kind), METHODS["tesseraq-awq"], tiny.windows(), progress=False)
    assert all(t["end"] <= t["start"] for t in q.trace)
    assert torch.isfinite(q.apply(tiny.subject(kind)).model(tiny.windows().ids).logits).all()


# --- TesseraQ -------------------------------------------------------------------------------------------------------


def test_integers_are_marks_beside_the_weight_on_the_starts_ruler() -> None:
    block, X = entrance()
    start = AWQ(GRID)
    params, rulers = start.begin(block, X, None, Phases())
    result = TesseraQ(start, SHORT, reach=0.2 * SHORT.steps).quantize_block(block, lb.streams.Streams(X.clone(), X.clone()))
    moved = 0
    for name, w in result.weights.items():
        s, z = rulers[name]
        t = grids.grouped(current(block, params, name).float(), GRID) / s[..., None] + z[..., None]
        below, above = (x.clamp(0, 3).reshape(w.shape) for x in (t.floor(), t.floor() + 1))
        assert ((w.q == below) | (w.q == above)).all() and torch.equal(w.zero, z)
        k = w.s.float() / s
        assert (0 < k).all() and (k < 2).all()
        moved += int((w.q != t.reshape(w.shape).round().clamp(0, 3)).sum())
    assert moved > 20
    assert all(torch.equal(result.params[n], t) for n, t in norms(block, params).items())


def test_scale_tuning_can_be_left_out() -> None:
    block, X = entrance()
    _, rulers = AWQ(GRID).begin(block, X, None, Phases())
    fixed = TesseraQ(AWQ(GRID), SHORT, tune_scale=False).quantize_block(block, lb.streams.Streams(X.clone(), X.clone()))
    assert all(torch.equal(w.s.float(), rulers[n][0]) for n, w in fixed.weights.items())


def test_each_block_starts_where_its_start_ends() -> None:
    """The first loss told is that of AWQ's own integers in this block."""
    block, X = entrance()
    Y = block.run(X)
    streams = lb.streams.Streams(X.clone(), X.clone())
    awq = AWQ(GRID).quantize_block(block, streams)
    story = TesseraQ(AWQ(GRID), SHORT).quantize_block(block, lb.streams.Streams(X.clone(), X.clone())).trace
    exchanged = {n: w.dequantize() for n, w in awq.weights.items()} | {n: t.float() for n, t in awq.params.items()}
    assert story["start"] == pytest.approx(float((block.run(X, exchanged) - Y).square().sum(-1).mean()), rel=1e-4)


def test_hard_losses_fall_in_every_block_and_the_model_gets_closer() -> None:
    budget = Budget(8, 12, 4)
    windows = tiny.windows(8, 24)
    subject = tiny.subject()
    q = quantize(subject, TesseraQ(AWQ(GRID), budget), windows, progress=False)
    assert all(t["end"] < t["start"] for t in q.trace)
    target = subject.model(windows.ids).logits.log_softmax(-1)

    def gap(other: Quantized) -> float:
        found = other.apply(subject).model(windows.ids).logits.log_softmax(-1)
        return float((target.exp() * (target - found)).sum(-1).mean())

    nearest = quantize(subject, RTN(GRID), windows, progress=False)
    awq = quantize(subject, AWQ(GRID), windows, progress=False)
    assert gap(q) < gap(awq) < gap(nearest)


@pytest.mark.parametrize("bits", [2, 3])
def test_rulers_read_out_of_the_float_weights_are_others(bits: int) -> None:
    """Why integers and scales are stored: min and max of the dequantized weight are not the ends of its ruler."""
    q = quantize(tiny.subject(), TesseraQ(AWQ(Grid(bits, 16)), SHORT, reach=0.2 * SHORT.steps), tiny.windows(), progress=False)
    wrong = [float((AffineWeight.nearest(w.dequantize(), w.grid).q != w.q).float().mean()) for w in q.weights.values()]
    assert sum(wrong) / len(wrong) > 0.005
    for w in q.weights.values():
        assert torch.equal(grids.quantize(w.dequantize(), w.s.float(), w.zero, w.grid), w.q)


def test_traces_are_plain_json() -> None:
    import json

    for name in METHODS:
        told = json.loads(json.dumps(walked(name).trace))
        assert len(told) == tiny.BLOCKS and all(math.isfinite(t["seconds"]) and t["phases"] for t in told)


# --- starts, objectives, teachers -----------------------------------------------------------------------------------


def test_factors_may_begin_at_a_logarithm() -> None:
    """The largest activation of every channel is log2(2 + a) before the first step."""
    block, X = entrance()
    edits = OmniQuant(GRID, SHORT, scaling=True, base=2.0)._scaling(block, X, {})
    shared = block.shared_inputs(X[:1])
    edited = {n: t.float() for n, t in edits.finish().items()}
    before, after = (block.hessians(X, shared, exchanged) for exchanged in ({}, edited))
    peaks = [torch.stack([b.peak, a.peak]) for b, a in zip(before, after, strict=True)]
    for was, now in (peaks[0], peaks[2]):  # behind the two norms
        assert torch.allclose(now, torch.log2(2 + was), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("make", [lambda **k: TesseraQ(RTN(GRID), STILL, **k), lambda **k: OmniQuant(GRID, STILL, **k)],
                         ids=["tesseraq", "omniquant"])
def test_objective_and_teachers_are_what_they_say(make) -> None:
    """The loss at the start, by hand: size and angle, against the original block on original and on real inputs."""
    block, X = entrance()
    real = X + 0.3 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    streams = lb.streams.Streams(X, real)
    found = make(objective="mse+nlc", teachers=2).quantize_block(block, streams)
    y = block.run(real, {n: w.dequantize() for n, w in found.weights.items()})
    targets = (block.run(X), block.run(real))
    want = sum((y - t).square().mean() - torch.cosine_similarity(y, t, dim=-1).mean().log() for t in targets)
    assert found.trace["end"] == pytest.approx(float(want), rel=2e-3)  # the logarithm is that of four windows' mean
    plain = make().quantize_block(block, streams)
    y = block.run(real, {n: w.dequantize() for n, w in plain.weights.items()})
    assert plain.trace["end"] == pytest.approx(float((y - targets[0]).square().sum(-1).mean()), rel=1e-4)


def test_a_start_is_given_its_own_targets() -> None:
    """OmniQuant as the start of a TesseraQ with two teachers learns from one, if that is its setting."""
    two = TesseraQ(OmniQuant(GRID, SHORT), SHORT, teachers=2, objective="mse+kl")
    block, X = entrance()
    result = two.quantize_block(block, lb.streams.Streams(X.clone(), X))
    assert math.isfinite(result.trace["end"]) and {"clip", "learn clip"} & result.trace["phases"].keys()


# --- the bundled subject --------------------------------------------------------------------------------------------


def test_one_block_of_the_bundled_subject() -> None:
    subject = lb.load()
    windows = lb.text.calibration(subject.tokenizer, n=4, length=48)
    blocks, X = catch(subject.model, windows.ids)
    method = TesseraQ(AWQ(Grid(2, 64)), Budget(3, 3, 2))
    result = method.quantize_block(blocks[0], lb.streams.Streams(X.clone(), X.clone()))
    assert result.trace["end"] < result.trace["start"]
    assert set(result.weights) == set(blocks[0].linears) and len(result.params) == 2


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: TesseraQ(AWQ(Grid(2)), budget="huge"), "budget='huge' is unknown; use one of demo, fast, paper"),
        (lambda: TesseraQ(AWQ(Grid(2)), schedule="fastest"), "schedule='fastest'.*use one of handcrafted"),
        (lambda: OmniQuant(Grid(2), budget="huge"), "budget='huge' is unknown"),
        (lambda: OmniQuant(Grid(2), first=1.0), "first=1.0 must lie between 0 and 1"),
    ],
)
def test_settings_are_refused_before_calibration(make, words):
    with pytest.raises(ValueError, match=words):
        make()
