"""Learned scaling (LET): the function stays, gradients are true, queries and keys, OmniQuant and what starts from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowbit_nb import checkpoint, transforms
from lowbit_nb.blocks import Block, catch
from lowbit_nb.grid import Grid
from lowbit_nb.methods import AWQ, OmniQuant, SmoothQuant, TesseraQ
from lowbit_nb.objectives import mse
from lowbit_nb.quantize import quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Phases, Quantized
from lowbit_nb.scaling import FAR, NEAR, LearnedScaling, Settled
from lowbit_nb.sites import query_key_site, sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import Site, channels, current, norms, scale, shift, shiftable
from tests import tiny, walks

GRID = Grid(2, 16)
SHORT = Budget(4, 8, 4)
BIASED = {"attention_bias": True, "mlp_bias": True}
FAMILIES = ["llama", "llama biased", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "opt"]


def entrance(kind: str = "llama", dtype: torch.dtype = torch.float32, n: int = 2) -> tuple[Block, Tensor]:
    """The second block of a tiny decoder, and windows in which four channels stand out."""
    name, *biased = kind.split()
    blocks, X = catch(tiny.model(name, dtype=dtype, **(BIASED if biased else {})), tiny.windows(n, 24).ids)
    X[..., :4] *= 6
    return blocks[1], X


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Block, Tensor]]:
    """`entrance` in float64 throughout: factors too, and the norms of Gemma, which go through .float() on purpose."""

    def made(kind: str) -> tuple[Block, Tensor]:
        block, X = entrance(kind, torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return block, X

    return made


@torch.no_grad()
def moved(edits: LearnedScaling, spread: float = 2.0) -> LearnedScaling:
    """Far away from the start: factors of many sizes, some beyond the least and the greatest, and shifts."""
    for log_s, delta in zip(edits.log_s, edits.delta, strict=True):
        log_s += spread * torch.randn_like(log_s)
        log_s[:2] = torch.tensor([-9.0, 9.0])
        if delta is not None:
            delta += torch.randn_like(delta)
    return edits


def largest(block: Block, X: Tensor, params: dict[str, Tensor]) -> float:
    """The change of the block's output, relative to what the block adds to its input."""
    Y = block.run(X)
    return float((block.run(X, params) - Y).abs().max() / (Y - X).abs().max())


# --- the function is preserved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_however_far_factors_and_shifts_go_the_function_stays(kind: str, double: Callable) -> None:
    block, X = double(kind)
    before = tiny.state(block.module)
    places = sites(block, X[:1])
    edits = moved(LearnedScaling(block, places, shifts=True))
    tensors = edits.tensors()
    assert largest(block, X, tensors) < 1e-9
    assert {t for s in places for t in s.targets} <= set(tensors)
    for name in tensors:  # and none of the edits can be left out, save a bias of keys: softmax does not see it
        if name != "self_attn.k_proj.bias" and (current(block, {}, name) != tensors[name]).any():
            assert largest(block, X, {n: t for n, t in tensors.items() if n != name}) > 1e-4, name
    assert tiny.unchanged(block.module, before)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_finished_is_what_was_learned(kind: str, dtype: torch.dtype) -> None:
    block, X = entrance(kind, dtype)
    edits = moved(LearnedScaling(block, sites(block, X[:1]), shifts=True), 0.5)
    learned, kept = edits.tensors(), edits.finish()
    assert learned.keys() == kept.keys() and all(torch.equal(learned[n], kept[n]) for n in kept)
    assert all(torch.isfinite(t).all() and not t.requires_grad for t in kept.values())
    bound = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}[dtype]
    assert largest(block, X, {n: t.to(dtype) for n, t in kept.items()}) < bound


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_without_quantization_there_is_no_loss_and_no_slope(kind: str, double: Callable) -> None:
    block, X = double(kind)
    edits = moved(LearnedScaling(block, sites(block, X[:1]), shifts=True), 0.5)
    Y = block.run(X)
    loss = mse(block.forward(X, edits.tensors()), Y + 0.1)  # a target beside the output: a slope would show
    variables = [p for g in edits.parameters() for p in g["params"]]
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(loss, variables)])
    assert float(loss) == pytest.approx(0.01 * tiny.WIDTH) and float(slopes.abs().max()) < 2e-3 * float(loss)


def test_factors_begin_where_they_are_told_and_stay_within_reach() -> None:
    block, X = entrance()
    places = sites(block, X[:1])
    starts = [torch.full((channels(block, s),), v) for s, v in zip(places, (1e-9, 1e9, 3.0, 0.5), strict=True)]
    edits = LearnedScaling(block, places, starts)
    assert [round(float(s[0].exp()), 4) for s in edits.log_s] == pytest.approx([NEAR, FAR, 3.0, 0.5])
    tensors = edits.tensors()
    assert torch.allclose(tensors["mlp.gate_proj"] / block.weight("mlp.gate_proj"), torch.tensor(FAR), rtol=1e-3)
    assert torch.allclose(tensors["mlp.down_proj"] / block.weight("mlp.down_proj"), torch.tensor(0.5), rtol=1e-5)
    ones = LearnedScaling(block, places).tensors()
    assert all(torch.allclose(ones[n], block.weight(n), rtol=1e-3) for n in block.linears)  # columns follow the rounded gains
    assert torch.equal(ones["mlp.down_proj"], block.weight("mlp.down_proj"))


def test_a_last_step_too_far_is_kept_within_reach() -> None:
    """Nothing is asked for between the last step of a round and its end."""
    block, X = entrance()
    site = sites(block, X[:1])[-1]
    edits = LearnedScaling(block, [site])
    with torch.no_grad():
        edits.log_s[0] += 40
    kept = edits.finish()["mlp.down_proj"]
    assert torch.allclose(kept, FAR * block.weight("mlp.down_proj"), rtol=1e-4)
    assert torch.equal(kept, edits.tensors()["mlp.down_proj"])


@pytest.mark.parametrize("end", [NEAR, FAR])
@pytest.mark.parametrize("beyond", [1.0, 1.2])
def test_a_factor_at_the_end_of_its_reach_can_come_back(end: float, beyond: float) -> None:
    block, X = entrance()
    site = sites(block, X[:1])[-1]
    edits = LearnedScaling(block, [site], [torch.full((channels(block, site),), end)])
    with torch.no_grad():
        edits.log_s[0] *= beyond  # where a step may have carried it
    pull = edits.tensors()["mlp.down_proj"].square().sum() * (1 if end == FAR else -1)
    pull.backward()
    with torch.no_grad():
        edits.log_s[0] -= 3 * edits.log_s[0].grad.sign()
    reached = edits.tensors()["mlp.down_proj"] / block.weight("mlp.down_proj")
    assert float(reached.max()) < 0.9 * FAR and float(reached.min()) > 1.1 * NEAR


def test_edits_made_before_are_built_upon() -> None:
    block, X = entrance()
    params, _ = AWQ(GRID).begin(block, X, None, Phases())
    kept = {n: t.clone() for n, t in params.items()}
    edits = LearnedScaling(block, sites(block, X[:1]), params=params)
    assert all(torch.equal(edits.tensors()[n], t) for n, t in params.items() if n in block.linears)
    moved(edits, 0.5)
    assert largest(block, X, edits.finish()) < 1e-3
    assert all(torch.equal(params[n], t) for n, t in kept.items())


def test_settled_edits_have_nothing_to_learn() -> None:
    fixed = Settled({"a": torch.ones(3, dtype=torch.float16)})
    assert fixed.parameters() == [] and fixed.tensors() is fixed.finish()
    assert fixed.finish()["a"].dtype == torch.float32 and Settled().finish() == {}


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama biased", "gemma2", "opt"])
def test_gradients_by_finite_differences(kind: str, double: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """With norms kept in float64; rounded to a half type they are passed straight through (next test)."""
    monkeypatch.setattr(transforms, "_type_of", lambda block, name: torch.float64)
    block, X = double(kind)
    edits = LearnedScaling(block, sites(block, X[:1]), shifts=True)
    with torch.no_grad():
        for p in (p for g in edits.parameters() for p in g["params"]):
            p += 0.5 * torch.randn_like(p)
    G = {n: torch.randn_like(t) for n, t in edits.tensors().items()}

    def loss() -> Tensor:
        return sum((t * G[n]).sum() for n, t in edits.tensors().items())

    variables = [p for g in edits.parameters() for p in g["params"]]
    for p, grad in zip(variables, torch.autograd.grad(loss(), variables), strict=True):
        for i in (0, len(p) // 2, len(p) - 1):
            with torch.no_grad():
                p[i] += 1e-5
                up = loss()
                p[i] -= 2e-5
                down = loss()
                p[i] += 1e-5
            assert float(grad[i]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5, abs=1e-6)
            assert abs(float(grad[i])) > 1e-3


def test_rounding_a_gain_passes_the_gradient_straight_through(monkeypatch: pytest.MonkeyPatch) -> None:
    block, X = entrance("llama")
    edits = moved(LearnedScaling(block, sites(block, X[:1])), 0.5)
    G = {n: torch.randn_like(t) for n, t in edits.tensors().items()}

    def slopes() -> list[Tensor]:
        return torch.autograd.grad(sum((t * G[n]).sum() for n, t in edits.tensors().items()), edits.log_s)

    rounded = slopes()
    monkeypatch.setattr(transforms, "_type_of", lambda block, name: torch.float32)
    for a, b in zip(rounded, slopes(), strict=True):
        assert torch.allclose(a, b, rtol=5e-3, atol=5e-3 * float(b.abs().max()))


# --- shifts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, where", [
    ("opt", ["self_attn_layer_norm", "final_layer_norm", "self_attn.v_proj"]),
    ("llama biased", ["self_attn.v_proj"]),  # no bias in the norms, and up_proj passes a gate
    ("llama", []),
    ("qwen2", []),  # v has a bias, o has none
    ("gemma2", []),
])
def test_shifts_go_where_biases_can_take_them(kind: str, where: list[str]) -> None:
    block, X = entrance(kind)
    places = sites(block, X[:1])
    assert [s.source for s in places if shiftable(block, s)] == where
    edits = LearnedScaling(block, places, shifts=True)
    assert [s.source for s, d in zip(places, edits.delta, strict=True) if d is not None] == where
    assert [g["role"] for g in edits.parameters()] == ["scaling"] + ["shift"] * bool(where)
    assert [g["role"] for g in LearnedScaling(block, places).parameters()] == ["scaling"]
    for site in places:
        if site.source not in where:
            with pytest.raises(ValueError, match=rf"{block.name}\.{site.source}.*need biases.*scale only"):
                shift(block, site, torch.zeros(channels(block, site)), {})


def test_a_shift_behind_a_gate_would_change_the_function() -> None:
    """Why up -> down is refused even where both have biases: by hand, as between v and o, where it holds."""
    block, X = entrance("llama biased", torch.float64)
    own = dict(block.module.named_parameters())
    for source, target, holds in (("mlp.up_proj", "mlp.down_proj", False), ("self_attn.v_proj", "self_attn.o_proj", True)):
        site = next(s for s in sites(block, X[:1]) if s.source == source)
        delta = torch.randn(channels(block, site), dtype=torch.float64)
        edited = {f"{source}.bias": own[f"{source}.bias"] - delta,
                  f"{target}.bias": own[f"{target}.bias"] + block.weight(target) @ site.expand(delta)}
        assert (largest(block, X, edited) < 1e-12) == holds
        if holds:
            assert all(torch.equal(t, edited[n]) for n, t in shift(block, site, delta, {}).items())


def test_a_shift_takes_the_constant_part_off_an_input() -> None:
    """After the mean is shifted away, rounding the layers behind the norm costs less at the output."""
    block, X = entrance("opt", n=8)
    block.module.self_attn_layer_norm.bias.data += 3.0
    site = sites(block, X[:1])[0]
    Y = block.run(X)
    rows: list[Tensor] = []
    hook = block.module.self_attn_layer_norm.register_forward_hook(lambda m, a, y: rows.append(y.flatten(0, -2)))
    block.run(X)
    hook.remove()
    losses = []
    for delta in (torch.zeros(tiny.WIDTH), torch.cat(rows).mean(0)):
        params = shift(block, site, delta, {})
        rounded = {n: AffineWeight.nearest(current(block, params, n), GRID).dequantize() for n in site.targets}
        losses.append(float((block.run(X, params | rounded) - Y).square().mean()))
    assert losses[1] < 0.7 * losses[0]


# --- queries and keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama biased", "mistral", "qwen2", "gemma2", "opt"])
def test_tied_query_key_factors_are_exact(kind: str, double: Callable) -> None:
    repeat = 1 if kind == "opt" else 2
    block, X = double(kind)
    site = query_key_site(block, X[:1])
    assert site is not None and (site.kind, site.repeat, site.head_dim) == ("rotary", repeat, 8)
    n = channels(block, site)
    assert n == 4 // repeat * 8 // 2  # one factor a pair, for every key head
    s = torch.exp(1.5 * torch.randn(n, dtype=torch.float64))
    params = scale(block, site, s, {})
    assert largest(block, X, params) < 1e-10
    for name in params:
        if name != "self_attn.k_proj.bias":  # softmax does not see it where nothing is rotated
            assert largest(block, X, {k: t for k, t in params.items() if k != name}) > 1e-4
    other = LearnedScaling(block, [*sites(block, X[:1]), site])
    assert largest(block, X, moved(other).tensors()) < 1e-9  # together with the other sites, and learned
    assert not shiftable(block, site)


def by_hand(block: Block, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {"self_attn.q_proj": block.weight("self_attn.q_proj") / down[:, None],
            "self_attn.k_proj": block.weight("self_attn.k_proj") * up[:, None]}


def test_untied_query_key_factors_fail_behind_a_rotary_embedding() -> None:
    """A factor for every channel, as the reference learns them, commutes with a rotation only if its pairs agree."""
    block, X = entrance("llama", torch.float64)
    s = torch.exp(0.5 * torch.randn(2, 8, dtype=torch.float64))  # [key heads, head_dim]

    def change(s: Tensor) -> float:
        return largest(block, X, by_hand(block, s.repeat_interleave(2, 0).flatten(), s.flatten()))

    assert change(s) > 1e-2
    assert change(s[:, :4].repeat_interleave(2, 1)) > 1e-2  # neighbours tied: not the pairs of this embedding
    assert change(s[:, :4].repeat(1, 2)) < 1e-12  # j with j + head_dim / 2
    assert largest(block, X, by_hand(block, s[:, :4].repeat(2, 2).flatten(), s[:, :4].repeat(1, 2).flatten())) > 1e-2  # heads
    edited = scale(block, query_key_site(block, X[:1]), s[:, :4].flatten(), {})
    want = by_hand(block, s[:, :4].repeat(1, 2).repeat_interleave(2, 0).flatten(), s[:, :4].repeat(1, 2).flatten())
    assert all(torch.allclose(edited[n], t, rtol=1e-12) for n, t in want.items())


def test_untied_factors_hold_where_nothing_is_rotated() -> None:
    block, X = entrance("opt", torch.float64)
    s = torch.exp(0.5 * torch.randn(tiny.WIDTH, dtype=torch.float64))
    biases = {n: block.module.get_parameter(n) for n in ("self_attn.q_proj.bias", "self_attn.k_proj.bias")}
    edited = by_hand(block, s, s) | {"self_attn.q_proj.bias": biases["self_attn.q_proj.bias"] / s,
                                     "self_attn.k_proj.bias": biases["self_attn.k_proj.bias"] * s}
    assert largest(block, X, edited) < 1e-12


@pytest.mark.parametrize("kind", ["qwen3", "phi", "phi3", "gpt_neox"])
def test_where_queries_and_keys_are_normed_or_fused_or_half_rotated_there_is_no_site(kind: str) -> None:
    block, X = entrance(kind, torch.float64)
    assert query_key_site(block, X[:1]) is None
    if kind in ("qwen3", "phi"):  # and rightly so: the tied factors change the output
        width = block.module.self_attn.head_dim
        forced = Site("self_attn.q_proj", ("self_attn.k_proj",), "rotary", {"qwen3": 2, "phi": 1}[kind], width)
        s = torch.exp(0.5 * torch.randn(channels(block, forced), dtype=torch.float64))
        assert largest(block, X, scale(block, forced, s, {})) > 1e-3


def test_a_factor_of_rows_changes_no_code() -> None:
    """Why this site is no use for weights alone: the step of a row absorbs the row's factor."""
    W = torch.randn(32, 64)
    powers = 2.0 ** torch.randint(-3, 4, (32, 1))
    for grid in (Grid(2, 16), Grid(3), Grid(3, 16, symmetric=True)):
        own, other = AffineWeight.nearest(W, grid), AffineWeight.nearest(W * powers, grid)
        assert torch.equal(own.q, other.q) and torch.equal(own.s * powers, other.s)
    block, X = entrance()
    site, grid = query_key_site(block, X[:1]), Grid(2, 16, scale_dtype="float32")
    edited = scale(block, site, torch.exp(torch.randn(channels(block, site))), {})
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        own, other = AffineWeight.nearest(block.weight(name), grid), AffineWeight.nearest(edited[name], grid)
        assert torch.equal(own.q, other.q) and (own.s != other.s).all()
    columns = scale(block, sites(block, X[:1])[0], torch.exp(torch.randn(tiny.WIDTH)), {})  # a factor of columns does
    assert (AffineWeight.nearest(columns["self_attn.k_proj"], grid).q != own.q).any()


# --- OmniQuant --------------------------------------------------------------------------------------------------------

WALKS = {"llama": ("llama", False), "qwen2": ("qwen2", False), "gemma2": ("gemma2", False), "opt shifts": ("opt", True)}


@lru_cache
def walked(name: str) -> Quantized:
    kind, shifts = WALKS[name]
    return quantize(tiny.subject(kind), OmniQuant(GRID, SHORT, True, shifts, reach=5.0), tiny.windows(), progress=False)


def same_params(a: Quantized, b: Quantized) -> bool:
    return a.params.keys() == b.params.keys() and all(
        torch.equal(a.params[n], b.params[n]) and a.params[n].dtype == b.params[n].dtype for n in a.params)


@pytest.mark.parametrize("name", WALKS)
def test_learning_scales_lowers_block_losses(name: str) -> None:
    trace = walked(name).trace
    assert all(t["end"] <= t["start"] and t["retries"] == 0 for t in trace)
    assert trace[0]["end"] < 0.9 * trace[0]["start"] and sum(t["end"] < t["start"] for t in trace) >= 2


@pytest.mark.parametrize("name", WALKS)
def test_saved_loaded_and_applied_bit_for_bit(name: str, tmp_path: Path) -> None:
    kind, _ = WALKS[name]
    q = walked(name)
    checkpoint.save_quantized(q, tmp_path)
    again = checkpoint.load_quantized(tmp_path)
    assert walks.equal(q, again) and same_params(q, again) and again.settings["settings"]["scaling"] is True
    subject, ids = tiny.subject(kind), tiny.windows().ids
    applied = q.apply(subject).model
    assert torch.equal(again.apply(tiny.subject(kind)).model(ids).logits, applied(ids).logits)
    for full_name, value in q.params.items():
        assert torch.equal(applied.get_parameter(full_name), value.float())
    for full_name, w in q.weights.items():
        assert torch.equal(applied.get_parameter(f"{full_name}.weight"), w.dequantize())


@pytest.mark.parametrize("name", WALKS)
def test_the_loss_told_is_that_of_what_is_stored(name: str) -> None:
    """The first block, applied as a reader would: its loss is the last line of the story."""
    kind, _ = WALKS[name]
    blocks, X = catch(tiny.model(kind), tiny.windows().ids)
    prefix = f"{blocks[0].name}."
    q = walked(name)
    stored = {n.removeprefix(prefix): w.dequantize() for n, w in q.weights.items() if n.startswith(prefix)}
    stored |= {n.removeprefix(prefix): t.float() for n, t in q.params.items() if n.startswith(prefix)}
    assert float(mse(blocks[0].run(X, stored), blocks[0].run(X))) == pytest.approx(q.trace[0]["end"], rel=1e-4)


def test_the_edited_parameters_are_those_of_the_sites() -> None:
    def inside(name: str) -> set[str]:
        return {n.partition("layers.1.")[2] for n in walked(name).params} - {""}

    assert inside("llama") == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert inside("qwen2") == inside("llama") | {"self_attn.v_proj.bias"}
    both = {f"{n}_layer_norm.{p}" for n in ("self_attn", "final") for p in ("weight", "bias")}
    assert inside("opt shifts") == both | {f"self_attn.{n}_proj.bias" for n in ("q", "k", "v", "out")} | {"fc1.bias"}
    kinds = {t.dtype for n, t in walked("opt shifts").params.items() if n.endswith("norm.weight")}
    assert kinds == {torch.float16}  # gains as they were rounded; biases need all their digits


def test_twice_the_same_and_the_block_untouched() -> None:
    block, X = entrance(n=4)
    before = tiny.state(block.module)
    method = OmniQuant(GRID, Budget(2, 3, 2), scaling=True)
    a, b = (method.quantize_block(block, Streams(X.clone(), X.clone())) for _ in range(2))
    assert all(torch.equal(a.weights[n].q, b.weights[n].q) and torch.equal(a.weights[n].s, b.weights[n].s) for n in a.weights)
    assert a.trace["rounds"] == b.trace["rounds"] and all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    assert tiny.unchanged(block.module, before) and not any(p.requires_grad for p in block.module.parameters())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_learned_scaling_in_every_number_type(kind: str, dtype: torch.dtype) -> None:
    block, X = entrance(kind, dtype, n=4)
    method = OmniQuant(GRID, Budget(2, 3, 2), scaling=True, shifts=True, reach=1.0)
    result = method.quantize_block(block, Streams(X.clone(), X.clone()))
    assert result.trace["end"] <= result.trace["start"] and result.trace["retries"] == 0
    assert set(result.weights) == set(block.linears)
    assert all(torch.isfinite(w.dequantize()).all() for w in result.weights.values())


def test_without_a_start_factors_begin_at_smoothquants() -> None:
    block, X = entrance(n=4)
    for alpha in (0.3, 0.7):
        own = OmniQuant(GRID, Budget(1, 1, 2), scaling=True, alpha=alpha, reach=0.0)
        learned = own.quantize_block(block, Streams(X.clone(), X.clone())).params
        smoothed = SmoothQuant(GRID, alpha).quantize_block(block, Streams(None, X.clone())).params
        assert len(smoothed) == 2
        for name, t in smoothed.items():
            assert torch.allclose(learned[name].float(), t.float(), rtol=2e-3), name  # logarithm and back: a last bit of a half


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("awq", [AWQ(GRID), AWQ(GRID, scaling=False), AWQ(Grid(3), clip="minmax")],
                         ids=["full", "clip", "minmax"])
def test_from_awq_it_begins_exactly_where_awq_ends(awq: AWQ, scaling: bool) -> None:
    """Exactly, unless factors are learned where AWQ had none: even factors of one round the gains of norms to a half type."""
    block, X = entrance(n=4)
    end = awq.quantize_block(block, Streams(None, X.clone()))
    method = OmniQuant(awq.grid, Budget(1, 2, 2), scaling=scaling, start=awq, reach=0.0)
    begun = method.quantize_block(block, Streams(X.clone(), X.clone()))
    assert begun.params.keys() >= end.params.keys() and all(torch.equal(begun.params[n], t) for n, t in end.params.items())
    for name, w in end.weights.items():
        q, s, z = begun.weights[name].q, begun.weights[name].s, begun.weights[name].zero
        assert torch.equal(z, w.zero)
        if scaling and not awq.scaling:
            assert (q == w.q).float().mean() > 0.99 and torch.allclose(s.float(), w.s.float(), rtol=2e-3)
        else:
            assert torch.equal(q, w.q) and torch.equal(s, w.s), name


@pytest.mark.parametrize("scaling", [False, True])
def test_from_awq_it_never_ends_above_awqs_loss(scaling: bool) -> None:
    """It may well end there: from searched ends the straight-through gradient finds little in a random block."""
    block, X = entrance(n=8)
    awq = AWQ(GRID).quantize_block(block, Streams(None, X.clone()))
    stored = {n: w.dequantize() for n, w in awq.weights.items()} | {n: t.float() for n, t in awq.params.items()}
    before = float(mse(block.run(X, stored), block.run(X)))
    trace = OmniQuant(GRID, Budget(3, 5, 4), scaling=scaling, start=AWQ(GRID)).quantize_block(
        block, Streams(X.clone(), X.clone())).trace
    assert trace["start"] == pytest.approx(before, rel=1e-3) and trace["end"] <= trace["start"]
    assert any(r["hard_loss"] != trace["start"] for r in trace["rounds"])  # it did try


def test_rates_are_the_reach_shared_out_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []
    adam = torch.optim.Adam

    def spying(groups: list[dict], **settings: object) -> torch.optim.Adam:
        seen.append({g["role"]: float(g["lr"]) for g in groups})
        return adam(groups, **settings)

    monkeypatch.setattr(torch.optim, "Adam", spying)
    block, X = entrance("opt", n=4)
    method = OmniQuant(GRID, Budget(2, 5, 2), scaling=True, shifts=True, reach=0.5)
    method.quantize_block(block, Streams(X.clone(), X.clone()))
    assert seen == [{"clip": 0.05, "scaling": 0.025, "shift": 0.025}] * 2


def test_a_start_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="the start rounds to .* give both the same grid"):
        OmniQuant(GRID, start=AWQ(Grid(3, 16)))


@pytest.mark.parametrize("kind, shifts", [("llama", False), ("opt", True)])
def test_tesseraq_goes_on_from_learned_scales(kind: str, shifts: bool) -> None:
    block, X = entrance(kind, n=8)
    start = OmniQuant(GRID, Budget(2, 4, 4), scaling=True, shifts=shifts)
    first = start.quantize_block(block, Streams(X.clone(), X.clone()))
    result = TesseraQ(start, Budget(6, 10, 4)).quantize_block(block, Streams(X.clone(), X.clone()))
    assert result.trace["start"] == pytest.approx(first.trace["end"], rel=1e-3)
    assert result.trace["end"] < 0.9 * result.trace["start"]
    assert result.params.keys() == first.params.keys()
    assert all(torch.equal(result.params[n], t) for n, t in first.params.items())
    assert all(torch.equal(result.weights[n].zero, w.zero) for n, w in first.weights.items())
    params, rulers = start.begin(block, X, block.run(X), Phases())
    assert all(torch.equal(t, result.params[n]) for n, t in norms(block, params).items())
    for name, w in result.weights.items():
        t = current(block, params, name) / rulers[name][0].repeat_interleave(16, 1) + rulers[name][1].repeat_interleave(16, 1)
        assert ((w.q == t.floor().clamp(0, 3)) | (w.q == (t.floor() + 1).clamp(0, 3))).all()


def test_tesseraq_from_learned_scales_on_a_whole_model(tmp_path: Path) -> None:
    method = TesseraQ(OmniQuant(GRID, Budget(1, 2, 2), scaling=True), Budget(2, 3, 2))
    q = quantize(tiny.subject(), method, tiny.windows(), progress=False)
    checkpoint.save_quantized(q, tmp_path)
    again = checkpoint.load_quantized(tmp_path)
    ids = tiny.windows().ids
    assert walks.equal(q, again) and same_params(q, again) and len(q.params) == 2 * tiny.BLOCKS
    assert torch.equal(again.apply(tiny.subject()).model(ids).logits, q.apply(tiny.subject()).model(ids).logits)
