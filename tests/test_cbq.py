"""CBQ: windows on the one engine, two teachers, outliers coarse to fine, rounding by thin matrices, what is handed on."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lowbit_nb as lb
from lowbit_nb import checkpoint
from lowbit_nb import grid as grids
from lowbit_nb.activations import CLIP, Activations, as_quantized, extended
from lowbit_nb.blocks import Block, catch
from lowbit_nb.crossblock import (
    LoRARounding,
    Window,
    WindowEdits,
    branches,
    channel_factors,
    kl,
    reserved,
    schedule,
    size_and_shape,
    truncated,
)
from lowbit_nb.crossblock.window import inside
from lowbit_nb.grid import Grid
from lowbit_nb.methods import AWQ
from lowbit_nb.methods.cbq import CBQ
from lowbit_nb.objectives import mse
from lowbit_nb.quantize import BlockResult, quantize
from lowbit_nb.reconstruct import Budget, reconstruct
from lowbit_nb.record import Phases, Quantized
from lowbit_nb.rounding import SoftRounding
from lowbit_nb.scaling import Settled
from lowbit_nb.sites import sites
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import current, norms, scale
from tests import tiny, walks

GRID = Grid(2, 16)
SHORT = Budget(3, 4, 2)
PLAIN = CBQ(GRID, budget=SHORT, held=0.0)


def subject(blocks: int = 4) -> lb.Subject:
    return tiny.subject(num_hidden_layers=blocks)


def entrance(dtype: torch.dtype = torch.float32) -> tuple[list[Block], Tensor]:
    blocks, X = catch(tiny.model(num_hidden_layers=4, dtype=dtype), tiny.windows(6, 16).ids)
    X[..., :4] *= 6
    return blocks, X


@lru_cache
def walked(**changes: object) -> Quantized:
    return quantize(subject(), dataclasses.replace(PLAIN, **changes), tiny.windows(), progress=False)


def logits(q: Quantized, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return q.apply(subject()).model(ids, use_cache=False).logits


def layer(rows: int = 24, columns: int = 32, **settings: object) -> LoRARounding:
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    s, z = grids.fit(W, GRID, "mse")
    return LoRARounding(W, s, z, GRID, generator=torch.Generator().manual_seed(0), **settings)


# --- 1, 11: one engine ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ByBlock:
    """CBQ's start handed to the engine block by block, on the walk of every other method: no window anywhere."""

    method: CBQ
    stories: list
    streams = ("full", "quant")

    @property
    def activations(self) -> Activations | None:
        return self.method.activations

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        begun = self.method._begin([block], streams, {}, Phases())[0]
        for p in begun.learn.values():
            p.plan(SHORT.rounds)
        clips = list(block.linears) if self.activations else []
        wide = extended(block, [f"{name}.{CLIP}" for name in clips])
        edits = WindowEdits({n: t.float() for n, t in begun.params.items()}, clips, streams.quant.device)
        weights, params, story = reconstruct(
            as_quantized(wide, self.activations), begun.learn, edits, streams.quant, block.run(streams.full), soft=(1.0,) * 3,
            budget=SHORT, rates={"rounding": 0.1, "step": 0.02, "input_clip": 0.02}, objective=mse,
            generator=torch.Generator().manual_seed(self.method.seed + block.index))
        self.stories.append(story)
        return BlockResult(weights, story, norms(wide, params))


@pytest.mark.parametrize("activations", [None, Activations(4)])
def test_one_block_without_overlap_is_the_block_engine_bit_for_bit(activations: Activations | None) -> None:
    method = dataclasses.replace(PLAIN, window=1, overlap=0, loss="mse", teachers=1, activations=activations)
    by_block = ByBlock(method, [])
    a, b = (quantize(subject(), m, tiny.windows(), progress=False) for m in (method, by_block))
    assert walks.equal(a, b) and a.params.keys() == b.params.keys()
    assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    assert [t["end"] for t in a.trace] == [t["end"] for t in by_block.stories]
    assert [r["soft_loss"] for t in a.trace for r in t["rounds"]] == [
        r["soft_loss"] for t in by_block.stories for r in t["rounds"]]


def test_a_window_is_its_blocks_one_after_another() -> None:
    blocks, X = entrance()
    window = Window(blocks[1:3])
    assert torch.equal(window.run(X), blocks[2].run(blocks[1].run(X)))
    assert list(window.linears)[:1] == ["0.self_attn.q_proj"] and len(window.linears) == 14
    W = {"1.mlp.up_proj": torch.zeros_like(blocks[2].weight("mlp.up_proj"))}
    assert torch.equal(window.run(X, W), blocks[2].run(blocks[1].run(X), inside(W, 1)))
    assert window.name == "model.layers.1 to 2" and inside({"0.a": 1, "10.a": 2}, 1) == {}


def test_one_window_over_everything_learns_the_last_blocks_output() -> None:
    q = walked(window=4, overlap=0, loss="mse", teachers=1)
    assert len({t["end"] for t in q.trace}) == 1 and q.trace[0]["window"] == [0, 1, 2, 3]
    found, subjects = [], subject()
    for model in (subjects.model, q.apply(subjects).model):
        h: list[Tensor] = []
        handle = model.model.layers[-1].register_forward_hook(lambda m, a, y, h=h: h.append(y))
        with torch.no_grad():
            model(tiny.windows().ids, use_cache=False)
        handle.remove()
        found.append(h[0])
    assert q.trace[0]["end"] == pytest.approx(float(mse(found[1], found[0])), rel=1e-3)


def test_blocks_ahead_judge_and_stay_original() -> None:
    """Look-ahead: one block is learned, the output of the original one behind it is compared."""
    q = walked(window=1, overlap=0, ahead=1, loss="mse", teachers=1)
    blocks, X = catch(subject().model, tiny.windows().ids)
    stored = {n: w.dequantize() for n, w in q.weights.items()} | q.params
    inside_0 = {n.removeprefix(f"{blocks[0].name}."): t for n, t in stored.items() if n.startswith(f"{blocks[0].name}.")}
    y, target = blocks[1].run(blocks[0].run(X, inside_0)), blocks[1].run(blocks[0].run(X))
    assert q.trace[0]["end"] == pytest.approx(float(mse(y, target)), rel=1e-3)
    alone = walked(window=1, overlap=0, loss="mse", teachers=1)
    assert not walks.equal(q, alone) and q.weights.keys() == alone.weights.keys()
    assert CBQ(GRID, window=1, overlap=0, ahead=2).windows(4) == [(0, 1, 3), (1, 1, 3), (2, 1, 2), (3, 1, 1)]
    assert CBQ(GRID, ahead=1).windows(4) == [(0, 1, 3), (1, 1, 3), (2, 2, 2)]


# --- 2: schedules ---------------------------------------------------------------------------------------------------


def test_schedules() -> None:
    assert [first for first, _, _ in schedule(8)] == list(range(7)) and {seen for _, _, seen in schedule(8)} == {2}
    assert [(f, s) for f, _, s in schedule(7, 3, 1)] == [(0, 3), (2, 3), (4, 3)]
    assert [len(schedule(*c)) for c in ((32, 2, 1), (80, 2, 1), (32, 4, 2))] == [31, 79, 15]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_every_block_is_left_exactly_once(n: int, width: int) -> None:
    for overlap in range(width):
        at = 0
        for first, left, seen in schedule(n, width, overlap):
            assert first == at and left <= seen <= width and first + seen <= n
            at += left
        assert at == n
    with pytest.raises(ValueError, match="less than"):
        schedule(n, width, width)


# --- 3, 4, 8: teachers ----------------------------------------------------------------------------------------------


def test_at_the_entrance_both_teachers_say_the_same() -> None:
    handed: list[Tensor] = []
    spy = dataclasses.replace(PLAIN, loss="mse")
    own = CBQ._learn
    try:
        CBQ._learn = lambda self, w, p, e, X, Y, phases: (handed.append(Y), own(self, w, p, e, X, Y, phases))[1]
        quantize(subject(), spy, tiny.windows(), progress=False)
    finally:
        CBQ._learn = own
    assert torch.equal(handed[0][:, 0], handed[0][:, 1]) and not torch.equal(handed[1][:, 0], handed[1][:, 1])
    assert not any(Y.requires_grad for Y in handed)
    y = torch.randn_like(handed[0][:, 0])
    assert float(branches(mse)(y, handed[0])) == pytest.approx(2 * float(mse(y, handed[0][:, 0])), rel=1e-6)


def test_the_divergence_is_one() -> None:
    p, q = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert float(kl(p, p)) == pytest.approx(0, abs=1e-7) and float(kl(q, p)) > 0
    assert float(kl(q + 5, p)) == pytest.approx(float(kl(q, p)), rel=1e-4)
    by_hand = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
    assert float(kl(q, p)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(size_and_shape(q, p)) == pytest.approx(float((q - p).square().mean() + by_hand), rel=1e-5)


def test_a_massive_number_blinds_the_divergence() -> None:
    target = torch.randn(1, 200, 64)
    y = target + 0.05 * torch.randn_like(target)
    assert 0.3 * float((y - target).square().mean()) * 64 / 64 < float(kl(y, target)) * 64 < 0.8 * float(mse(y, target))
    target, y = target.clone(), y.clone()
    target[..., 3], y[..., 3] = 300.0, 300.0
    assert float(kl(y, target)) < 1e-6


def test_teachers_are_the_original_weights_and_stay() -> None:
    s = subject()
    before = tiny.state(s.model)
    quantize(s, dataclasses.replace(PLAIN, activations=Activations(4)), tiny.windows(), progress=False)
    assert tiny.unchanged(s.model, before) and all(p.grad is None and not p.requires_grad for p in s.model.parameters())


# --- 5, 6: LoRA-Rounding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rank", [5, None])
def test_it_starts_at_the_weight_and_at_nearest_rounding(bits: int, rank: int | None) -> None:
    grid = Grid(bits, 16)
    W = torch.randn(24, 32)
    s, z = grids.fit(W, grid, "mse")
    p = LoRARounding(W, s, z, grid, rank=rank)
    s_w, z_w = s.repeat_interleave(16, 1), z.repeat_interleave(16, 1)
    clipped = torch.maximum(torch.minimum(W, (grid.q_max - z_w) * s_w), -z_w * s_w)
    assert torch.allclose(p.weight().detach(), clipped, atol=1e-5)
    assert torch.equal(p.finish().q, grids.quantize(W, s, z, grid)) and p.flips() == 0


def test_the_literal_start_is_half_way_and_rounds_everything_up() -> None:
    p = layer(literal=True)
    t = grids.grouped(p.W, GRID) / p.s
    assert torch.allclose(p.weight().detach(), (((t.floor() + 0.5 + p.z).clamp(0, 3) - p.z) * p.s).reshape(p.shape), atol=1e-6)
    assert torch.equal(p.finish().q.float(), (t.floor() + 1 + p.z).clamp(0, 3).reshape(p.shape))
    assert p.flips() > 0.3 and layer().flips() == 0


def test_only_the_second_factor_moves_first() -> None:
    p = layer()
    (p.weight() - 1).square().sum().backward()
    assert not p.factors[0].grad.any() and p.factors[1].grad.abs().sum() > 0 and p.log_k.grad.abs().sum() > 0


@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("kappa", [1.0, 4.0])
def test_gradients_of_the_product_are_true(rank: int | None, kappa: float) -> None:
    """Against autograd through the same formula, away from the marks."""
    p = layer(rank=rank)
    p.kappa.fill_(kappa)
    with torch.no_grad():
        for f in p.factors:
            f.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.5)
    g = torch.randn(p.shape)
    (p.weight() * g).sum().backward()
    factors = [f.detach().clone().requires_grad_() for f in p.factors]
    V = factors[0] if rank is None else factors[0] @ factors[1]
    t = grids.grouped(p.W, GRID) / p.s
    fraction = t - t.floor()
    V0 = -torch.log(1.2 / (fraction + 0.1) - 1)
    h = (torch.sigmoid(kappa * (V.view_as(t) + V0)) * 1.2 - 0.1).clamp(0, 1)
    (((t.floor() + h + p.z).clamp(0, 3) - p.z) * p.s).reshape(p.shape).mul(g).sum().backward()
    for mine, theirs in zip(p.factors, factors, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()))


def test_the_step_learns_like_lsq() -> None:
    """Clipped weights ask for a longer ruler; at the start weights inside move with nothing: they are what they are."""
    W = torch.tensor([[0.2, 0.4, 0.6, 5.0]])
    p = LoRARounding(W, torch.tensor([[0.5]]), torch.tensor([[0.0]]), Grid(2))
    (p.weight() * torch.tensor([[0.0, 0.0, 0.0, 1.0]])).sum().backward()
    assert float(p.log_k.grad) == pytest.approx(0.5 * 3, rel=1e-5)  # d(3 s)/d log k
    p.log_k.grad = None
    (p.weight() * torch.tensor([[1.0, 1.0, 1.0, 0.0]])).sum().backward()
    assert float(p.log_k.grad) == pytest.approx(0, abs=1e-4)


def test_age_makes_it_steeper_and_it_ends_decided() -> None:
    p = layer(life=10, sharpness=30.0)
    told = []
    for _ in range(10):
        p.harden(1.0)
        told.append(p.tell())
    kappas = [t["sharpness"] for t in told]
    assert kappas[:2] == [1.0, 1.0] and kappas == sorted(kappas) and kappas[-1] == pytest.approx(30.0)
    assert told[-1]["soft"] < 0.1 < told[0]["soft"] and float(p.beta) == 2.0
    assert p.finish().q.max() <= 3 and torch.equal(p.finish().q, p.finish().q)


def test_a_layer_that_stays_is_soft_for_the_judge_and_goes_on_ageing() -> None:
    p = layer(sharpness=30.0)
    p.plan(10, stays=True)
    for _ in range(5):
        p.harden(1.0)
    half = float(p.kappa)
    assert torch.equal(p.finish().dequantize(), p.weight().detach()) and p.hard().q.max() <= 3
    p.plan(5)
    assert torch.equal(p.finish().q, p.hard().q) and float(p.kappa) == half
    for _ in range(5):
        p.harden(1.0)
    assert 1 < half < 30 and float(p.kappa) == pytest.approx(30.0)


def test_every_block_is_as_steep_as_it_gets_when_it_leaves() -> None:
    for changes in ({}, {"window": 3, "overlap": 1}, {"window": 3, "overlap": 2}, {"window": 9, "overlap": 0}):
        last = [t["rounds"][-1]["layers"]["mlp.up_proj"]["sharpness"] for t in walked(**changes).trace]
        assert all(kappa == pytest.approx(10.0) for kappa in last), changes


def test_the_regulariser_is_adarounds_and_only_there_if_asked() -> None:
    assert not hasattr(layer(), "penalty")
    p = layer(gamma=0.01, life=10)
    assert float(p.penalty().detach()) == 0
    for _ in range(9):
        p.harden(1.0)
    s = p._step()
    h = p.soft(s)[2]
    by_hand = 0.01 * (1 - (2 * h.detach() - 1).abs() ** p.beta).sum()
    assert float(p.penalty().detach()) == pytest.approx(float(by_hand), rel=1e-4)
    p.penalty().backward()
    assert p.factors[1].grad.abs().sum() > 0
    assert walked(gamma=1e-4).trace[0]["rounds"]


def test_thin_matrices_need_little_state() -> None:
    W = torch.randn(256, 768)
    s, z = grids.fit(W, Grid(2))
    thin, full = (LoRARounding(W, s, z, Grid(2), rank=r) for r in (5, None))
    numbers = [sum(f.numel() for f in p.factors) for p in (thin, full)]
    assert numbers == [(256 + 768) * 5, 256 * 768] and numbers[1] > 20 * numbers[0]


# --- 7: coarse to fine ----------------------------------------------------------------------------------------------


def naive(x: list[float], reach: float, weight: float) -> float:
    """Every cut tried by hand."""
    x = sorted(abs(v) for v in x)

    def quantile(share: float) -> float:
        place = share * (len(x) - 1)
        return x[int(place)] + (place - int(place)) * (x[min(int(place) + 1, len(x) - 1)] - x[int(place)])

    tau = quantile(0.75) + reach * (quantile(0.75) - quantile(0.25))
    o = [v for v in x if v > tau]
    if len(o) < 2:
        return max(v for v in x if v <= tau)
    best, cut = -float("inf"), 0
    for i in range(1, len(o)):
        mean = sum(o[:i]) / i
        score = (o[i] - o[i - 1]) ** 2 - weight * sum((v - mean) ** 2 for v in o[:i]) / i
        if score > best:
            best, cut = score, i
    return o[cut - 1]


@pytest.mark.parametrize("seed", range(20))
def test_prefix_sums_find_the_naive_cut(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(60, generator=draw, dtype=torch.float64) ** (1 + 2 * (seed % 3))
    for weight in (0.1, 1.0):
        assert float(reserved(x, 1.5, weight)) == pytest.approx(naive(x.tolist(), 1.5, weight))
    order = torch.randperm(60, generator=draw)
    assert torch.equal(reserved(x[order]), reserved(x)) and float(reserved(8 * x)) == pytest.approx(8 * float(reserved(x)))


def test_a_linear_gap_would_depend_on_units() -> None:
    """The planted defect: |gap| - variance changes its mind when everything is measured in other units."""
    o = torch.tensor([3.0, 3.4, 3.5, 6.0, 6.1, 7.5]).double()

    def cut(o: Tensor) -> int:
        return int(torch.stack([o[i] - o[i - 1] - o[:i].var(unbiased=False) for i in range(1, 6)]).argmax())

    assert cut(o) != cut(100 * o)


def test_truncation_changes_outliers_only_and_nothing_without_them() -> None:
    W = torch.rand(16, 32) - 0.5
    assert torch.equal(truncated(W), W)
    W[3, 4], W[5, 6] = 9.0, -8.0
    cut = truncated(W)
    changed = (cut != W).nonzero().tolist()
    assert changed in ([[3, 4]], [[3, 4], [5, 6]]) and float(cut.abs().max()) < 9


def test_channels_are_divided_only_where_they_stand_out_and_the_function_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, X = entrance(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    block, params = blocks[1], {}
    for site in sites(block, X[:1]):
        peak = site.gather(block.inputs(X, site.targets[0]).abs().amax(0))
        s = channel_factors(peak)
        assert (s >= 1).all() and ((s > 1) == (peak > reserved(peak))).all()
        params = scale(block, site, s, params)
    y = block.run(X)
    assert float((block.run(X, {n: t.double() for n, t in params.items()}) - y).abs().max()) < 1e-8 * float(y.abs().max())
    assert torch.equal(channel_factors(torch.full((8,), 2.0)), torch.ones(8))
    assert channel_factors(torch.tensor([1.0] * 20 + [16.0])).tolist()[-1] == 4.0


# --- 9, 10, 12 and the walk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", [None, Activations(4)])
def test_the_next_window_begins_where_this_one_ended(activations: Activations | None) -> None:
    blocks, X = entrance()
    method = dataclasses.replace(PLAIN, activations=activations, reach=0.5)
    ends: list[dict] = []
    own = CBQ._learn

    def spy(self: CBQ, window: Window, learn: dict, edits: WindowEdits, *rest: object) -> tuple:
        begun = {n: [t.detach().clone() for t in (*p.factors, p.log_k)] + [p.age] for n, p in learn.items()}
        shares = dict(zip(edits.clips, edits.share.tolist(), strict=True))
        out = own(self, window, learn, edits, *rest)
        ended = {n: [t.detach().clone() for t in (*p.factors, p.log_k)] + [p.age] for n, p in learn.items()}
        ends.append({"begun": (begun, shares), "ended": (ended, dict(zip(edits.clips, edits.share.tolist(), strict=True)))})
        return out

    try:
        CBQ._learn = spy
        quantize(subject(), method, tiny.windows(), progress=False)
    finally:
        CBQ._learn = own
    assert len(ends) == 3
    for before, after in zip(ends, ends[1:], strict=False):
        for name in inside(after["begun"][0], 0):
            was, now = before["ended"][0][f"1.{name}"], after["begun"][0][f"0.{name}"]
            assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(was, now, strict=True))
            assert now[-1] == SHORT.rounds
        assert inside(before["ended"][1], 1) == inside(after["begun"][1], 0)
        assert all(t[-1] == 0 for t in inside(after["begun"][0], 1).values())
    assert any(t.abs().sum() > 0 for t in ends[1]["begun"][0]["0.mlp.up_proj"][1:2])


def test_the_stream_is_that_of_the_exported_model() -> None:
    """What flows into the last window is what the finished blocks give, by stride, not by window."""
    handed: list[Tensor] = []
    own = CBQ.quantize_window
    try:
        CBQ.quantize_window = lambda self, b, left, st, c: (handed.append(st.quant.clone()), own(self, b, left, st, c))[1]
        q = quantize(subject(), dataclasses.replace(PLAIN, activations=Activations(4)), tiny.windows(), progress=False)
    finally:
        CBQ.quantize_window = own
    found: list[Tensor] = []
    model = q.apply(subject()).model
    for i in range(3):
        model.model.layers[i].register_forward_pre_hook(lambda m, args: found.append(args[0]))
    with torch.no_grad():
        model(tiny.windows().ids, use_cache=False)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(handed, found, strict=True))


@pytest.mark.parametrize("changes", [{}, {"activations": Activations(4)}, {"window": 3, "overlap": 1}])
def test_saved_and_loaded_alike(changes: dict, tmp_path: Path) -> None:
    q = walked(**changes)
    checkpoint.save_quantized(q, tmp_path)
    again = checkpoint.load_quantized(tmp_path)
    ids = tiny.windows().ids
    assert torch.equal(logits(again, ids), logits(q, ids)) and json.loads(json.dumps(q.trace))
    assert not any(n.startswith("carried") for n in q.params) and list(q.weights)[0].startswith("model.layers.0")
    assert [t["block"] for t in q.trace] == [0, 1, 2, 3] and len(q.weights) == 28
    clips = [n for n in q.params if n.endswith(CLIP)]
    assert len(clips) == (28 if "activations" in changes else 0) and all(0.2 <= float(q.params[n]) <= 1 for n in clips)


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"window": 3, "overlap": 1, "activations": Activations(4)}])
def test_a_killed_run_goes_on_to_the_same_integers(changes: dict, keep: int, tmp_path: Path) -> None:
    """What a window hands on is in the work folder, so a later one begins where it would have."""
    method = dataclasses.replace(PLAIN, **changes)
    whole = quantize(subject(), method, tiny.windows(), tmp_path, progress=False)
    for file in sorted(tmp_path.glob("block_*"))[keep:]:
        file.unlink()
    again = quantize(subject(), method, tiny.windows(), tmp_path, progress=False)
    assert walks.equal(whole, again) and all(torch.equal(whole.params[n], again.params[n]) for n in whole.params)
    assert whole.params.keys() == again.params.keys() and walks.equal(whole, walked(**changes))


def test_hard_losses_fall_and_the_held_out_windows_decide() -> None:
    q = quantize(subject(), dataclasses.replace(PLAIN, held=0.25, budget=Budget(4, 8, 4)), tiny.windows(8, 24), progress=False)
    for t in q.trace:
        assert t["end"] <= t["start"] and t["held_out"] == t["end"] and t["learned_from"] > 0
        assert t["end"] == min([t["start"]] + [r["hard_loss"] for r in t["rounds"]])
    assert "held_out" not in walked().trace[0]


def test_it_can_begin_where_awq_begins() -> None:
    blocks, X = entrance()
    method = dataclasses.replace(PLAIN, start=AWQ(GRID), window=1, overlap=0, budget=Budget(1, 0, 2))
    result = method.quantize_window(blocks[:1], 1, Streams(X.clone(), X.clone()), {})[0][0]
    start = AWQ(GRID).quantize_block(blocks[0], Streams(None, X.clone()))
    assert all(torch.equal(w.q, start.weights[n].q) for n, w in result.weights.items())
    assert all(torch.equal(result.params[n], t) for n, t in start.params.items())
    params, rulers = AWQ(GRID).begin(blocks[0], X, None, Phases())
    soft = SoftRounding(current(blocks[0], params, "mlp.up_proj"), *rulers["mlp.up_proj"], GRID)
    assert torch.equal(soft.finish().q, result.weights["mlp.up_proj"].q) and Settled().tensors() == {}


@pytest.mark.parametrize("kind", ["opt", "phi3", "gemma2", "qwen3"])
def test_other_architectures(kind: str) -> None:
    method = dataclasses.replace(PLAIN, activations=Activations(8), budget=Budget(2, 2, 2))
    q = quantize(tiny.subject(kind), method, tiny.windows(), progress=False)
    assert torch.isfinite(q.apply(tiny.subject(kind)).model(tiny.windows().ids).logits).all()


@pytest.mark.parametrize("make, words", [
    (lambda: CBQ(GRID, loss="l1"), "loss='l1' is unknown"), (lambda: CBQ(GRID, overlap=2), "less than the window's 2"),
    (lambda: CBQ(GRID, teachers=3), "must be 1 or 2"), (lambda: CBQ(GRID, rank=0), "at least 1 or None"),
    (lambda: CBQ(GRID, ahead=-1), "not negative"),
    (lambda: CBQ(GRID, budget="huge"), "unknown")])
def test_settings_are_refused(make, words: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=words):
        make()
