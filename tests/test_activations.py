"""Activations in few bits: the ruler of a token, where it is laid, that no token sees a later one, and what a file keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lowbit_nb as lb
from lowbit_nb import checkpoint
from lowbit_nb.activations import CLIP, Activations, as_quantized, dressing, extended, round_tokens
from lowbit_nb.blocks import catch
from lowbit_nb.grid import Grid
from lowbit_nb.methods import AWQ, GPTQ, RTN, OmniQuant, SmoothQuant, TesseraQ
from lowbit_nb.quantize import quantize
from lowbit_nb.reconstruct import Budget
from tests import tiny, walks

GRID = Grid(4, 16)
SHORT = Budget(3, 4, 2)
A4 = Activations(4)


def naive(row: list[float], bits: int) -> list[float]:
    """One token, in Python numbers of double precision."""
    lo, hi, top = min(row), max(row), 2**bits - 1
    if hi == lo:
        return row
    s = (hi - lo) / top
    z = round(-lo / s)
    return [s * (min(max(round(x / s) + z, 0), top) - z) for x in row]


# --- the ruler of a token -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_tokens_are_rounded_like_by_hand(bits: int) -> None:
    x = torch.randn(20, 13, dtype=torch.float64) * torch.logspace(-3, 3, 20, dtype=torch.float64)[:, None] + 0.3
    by_hand = torch.tensor([naive(row, bits) for row in x.tolist()], dtype=x.dtype)
    assert torch.allclose(round_tokens(x, bits), by_hand, rtol=1e-9)


def test_ties_go_to_the_even_mark() -> None:
    x = torch.tensor([[0.0, 0.5, 1.5, 2.5, 3.0]])
    assert round_tokens(x, 2).tolist() == [[0.0, 0.0, 2.0, 2.0, 3.0]]
    assert round_tokens(torch.tensor([[-3.0, 0.5, 1.5, 2.5]]), 3, symmetric=True).tolist() == [[-3.0, 0.0, 2.0, 2.0]]


@pytest.mark.parametrize("value", [3.0, -3.0, 0.0, 1e-12, -7e8])
def test_a_token_of_equal_numbers_is_kept(value: float) -> None:
    x = torch.full((2, 8), value)
    assert torch.equal(round_tokens(x, 4), x)


def test_a_range_far_from_zero_keeps_its_marks() -> None:
    x = torch.linspace(100, 101, 16)[None]
    assert torch.allclose(round_tokens(x, 4), x, atol=1e-4 * 100)
    assert (round_tokens(x, 4)[0].diff() > 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_rounding_twice_and_rounding_multiples(symmetric: bool) -> None:
    x = torch.randn(50, 32) * 4
    once = round_tokens(x, 4, symmetric)
    assert torch.allclose(round_tokens(once, 4, symmetric), once, atol=1e-5)
    assert torch.allclose(round_tokens(8 * x, 4, symmetric), 8 * once, rtol=1e-6)
    assert all(len(row.unique()) <= 16 for row in once)


def test_a_massive_number_leaves_two_marks() -> None:
    x = torch.randn(1, 64)
    x[0, 5] = 1500.0
    assert len(round_tokens(x, 4).unique()) == 2


def test_sixteen_bits_and_other_widths() -> None:
    assert not Activations(16).touches("any")
    for bits in (0, 1, 9, 4.0):
        with pytest.raises(ValueError, match="2 to 8, or 16"):
            Activations(bits)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_are_straight_through_and_reach_the_ruler(symmetric: bool) -> None:
    """A weighted sum of rounded numbers: slope 1 through round, and the ends move every mark."""
    x = torch.tensor([[-1.0, 0.3, 0.8, 2.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    (round_tokens(x, 3, symmetric) * g).sum().backward()
    with torch.no_grad():
        s = float((x.max() - x.min()) / 7) if not symmetric else float(x.abs().max()) / 3
        steps = round_tokens(x, 3, symmetric) / s - x / s  # how far each number was moved, in steps
        ends = torch.tensor([[-1.0, 0, 0, 1.0]]).double() / 7 if not symmetric else torch.tensor([[0, 0, 0, 1.0]]).double() / 3
        expected = g + float((steps * g).sum()) * ends
    assert torch.allclose(x.grad, expected, atol=1e-12)


def value_and_slope(f: object, x: Tensor, symmetric: bool, clip: float) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = f(x, 3, symmetric, torch.tensor(clip, device=x.device))
    weights = torch.linspace(-1, 1, y.numel(), device=x.device).reshape(y.shape)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_form_for_compilers_is_the_same_function(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    y, slope = value_and_slope(round_tokens, x, symmetric, 0.8)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    again, its_slope = value_and_slope(round_tokens, x, symmetric, 0.8)
    assert torch.allclose(again, y, atol=1e-6) and torch.allclose(its_slope, slope, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("symmetric", [False, True])
def test_compiled_on_a_gpu_it_keeps_its_gradient(symmetric: bool) -> None:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).cuda()
    y, slope = value_and_slope(round_tokens, x, symmetric, 0.8)
    again, its_slope = value_and_slope(torch.compile(round_tokens), x, symmetric, 0.8)
    assert torch.allclose(again, y, atol=1e-6) and torch.allclose(its_slope, slope, atol=1e-4)


def test_a_clip_shortens_both_ends_and_learns() -> None:
    x = torch.randn(5, 32)
    clip = torch.tensor(0.5, requires_grad=True)
    y = round_tokens(x, 4, clip=clip)
    y.square().sum().backward()
    assert float(y.detach().abs().max()) < float(x.abs().max()) and clip.grad.abs() > 0
    assert torch.equal(round_tokens(x, 4, clip=1.0), round_tokens(x, 4))


# --- in a model -----------------------------------------------------------------------------------------------------


def logits(subject: lb.Subject, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return subject.model(ids, use_cache=False).logits


@pytest.mark.parametrize("kind", list(tiny.ARCHITECTURES))
def test_no_token_sees_a_later_one(kind: str) -> None:
    subject = tiny.subject(kind)
    applied = quantize(subject, RTN(GRID), progress=False).with_activations(A4).apply(subject)
    ids = tiny.windows().ids
    other = ids.clone()
    other[:, 12:] = 5
    assert torch.equal(logits(applied, ids)[:, :12], logits(applied, other)[:, :12])


def test_a_ruler_a_window_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect that the test above must see: one ruler for all tokens of a window."""
    per_token = Activations.__call__
    monkeypatch.setattr(Activations, "__call__", lambda self, x, clip=None: per_token(self, x.flatten(-2), clip).view_as(x))
    subject = tiny.subject()
    applied = quantize(subject, RTN(GRID), progress=False).with_activations(A4).apply(subject)
    ids = tiny.windows().ids
    other = ids.clone()
    other[:, 12:] = 5
    assert not torch.equal(logits(applied, ids)[:, :12], logits(applied, other)[:, :12])


@pytest.mark.parametrize("kind", list(tiny.ARCHITECTURES))
def test_queries_keys_and_values_are_rounded_behind_the_rotation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    own = Activations.__call__
    monkeypatch.setattr(Activations, "__call__", lambda self, x, clip=None: (seen.append(x), own(self, x, clip))[1])
    subject = tiny.subject(kind)
    plain, full = (quantize(subject, RTN(GRID), progress=False).with_activations(Activations(4, qkv=q)).apply(subject)
                   for q in (False, True))
    ids = tiny.windows(2).ids
    without = logits(plain, ids)
    blocks, X = catch(subject.model, ids)
    groups = sum(len(b.shared_inputs(X[:1])) for b in blocks)  # a layer in between makes Phi round one input twice
    assert all(x.ndim < 4 for x in seen) and groups <= len(seen) <= groups + tiny.BLOCKS
    seen.clear()
    assert not torch.equal(logits(full, ids), without)
    heads = [x for x in seen if x.ndim == 4]
    assert len(heads) == 3 * tiny.BLOCKS and all(x.shape[2] == ids.shape[1] for x in heads)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_the_models_own(attention: str) -> None:
    """At eight bits both are near the original, and the name of the attention in front of masks stays."""
    subject = tiny.subject()
    subject.model.config._attn_implementation = attention
    applied = quantize(subject, RTN(Grid(8)), progress=False).with_activations(Activations(8)).apply(subject)
    assert applied.model.config._attn_implementation == attention
    a, b = logits(subject, tiny.windows().ids), logits(applied, tiny.windows().ids)
    assert 0 < float((a - b).norm()) < 0.02 * float(a.norm())


def test_padding_and_a_cache_change_nothing() -> None:
    """Token by token with a cache gives what a whole window gives."""
    subject = tiny.subject()
    model = quantize(subject, RTN(GRID), progress=False).with_activations(A4).apply(subject).model
    ids = tiny.windows(1, 10).ids
    whole, past, steps = model(ids, use_cache=False).logits, None, []
    for i in range(10):
        out = model(ids[:, i : i + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)


def test_the_subject_and_the_copies_share_and_keep_everything() -> None:
    subject = tiny.subject()
    before, hooks = tiny.state(subject.model), tiny.n_hooks(subject.model)
    config = [m.config for m in subject.model.modules() if hasattr(m, "config")]
    applied = quantize(subject, SmoothQuant(GRID, activations=A4), tiny.windows(), progress=False).apply(subject)
    logits(applied, tiny.windows().ids)
    assert tiny.unchanged(subject.model, before) and tiny.n_hooks(subject.model) == hooks
    assert all(c._attn_implementation == subject.model.config._attn_implementation for c in config)
    assert applied.model.get_input_embeddings().weight is subject.model.get_input_embeddings().weight
    assert tiny.n_hooks(applied.model) == hooks + (7 + 1) * tiny.BLOCKS


def test_a_block_rounds_when_weights_are_exchanged_and_only_then() -> None:
    blocks, X = catch(tiny.model(), tiny.windows().ids)
    block = blocks[1]
    active = as_quantized(block, A4)
    own = {name: block.weight(name) for name in block.linears}
    assert torch.equal(active.run(X), block.run(X)) and torch.equal(block.run(X, own), block.run(X))
    assert not torch.equal(active.run(X, own), block.run(X))
    assert as_quantized(block, None) is block and as_quantized(block, Activations(16)) is block
    assert as_quantized(block, Activations(4, skip=(block.name,))) is block
    assert all(p is q for p, q in zip(active.module.parameters(), block.module.parameters(), strict=True))


def test_what_the_walk_carries_on_is_what_the_model_computes() -> None:
    """The quantized stream at the last block is what a hook sees there in the applied model."""
    subject, windows = tiny.subject(), tiny.windows()
    seen = []

    class Spying(SmoothQuant):
        def quantize_block(self, block, streams):  # noqa: ANN001, ANN202
            seen.append(streams.quant.clone())
            return super().quantize_block(block, streams)

    q = quantize(subject, Spying(GRID, activations=A4), windows, progress=False)
    applied, found = q.apply(subject), []
    applied.model.model.layers[-1].register_forward_pre_hook(lambda m, args: found.append(args[0]))
    logits(applied, windows.ids)
    assert torch.allclose(found[0], seen[-1], atol=1e-4)


def test_new_parameters_start_as_nothing() -> None:
    blocks, X = catch(tiny.model(), tiny.windows().ids)
    block = blocks[0]
    names = ["input_layernorm.bias", "self_attn.v_proj.bias", f"mlp.up_proj.{CLIP}"]
    more = extended(block, names)
    assert torch.equal(more.run(X), block.run(X)) and extended(block, ["self_attn.v_proj"]) is block
    assert {n for n, _ in more.module.named_parameters()} - {n for n, _ in block.module.named_parameters()} == set(names)
    one = {"input_layernorm.bias": torch.ones(tiny.WIDTH)}
    assert not torch.equal(more.run(X, one), block.run(X))
    with pytest.raises(ValueError, match="only a bias"):
        extended(block, ["mlp.up_proj.gain"])


def test_a_model_without_known_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="qkv=False"):
        dressing.dress(torch.nn.Sequential(torch.nn.Linear(2, 2)), ["0"], A4)


# --- methods, records and files -------------------------------------------------------------------------------------

METHODS = {
    "smoothquant": SmoothQuant(GRID, activations=A4),
    "omniquant": OmniQuant(GRID, SHORT, scaling=True, activations=A4),
    "tesseraq": TesseraQ(AWQ(GRID), SHORT, activations=Activations(4, qkv=False)),
}


@pytest.mark.parametrize("name", METHODS)
def test_saved_loaded_and_applied_alike(name: str, tmp_path: Path) -> None:
    q = quantize(tiny.subject(), METHODS[name], tiny.windows(), progress=False)
    checkpoint.save_quantized(q, tmp_path)
    again = checkpoint.load_quantized(tmp_path)
    ids = tiny.windows().ids
    assert again.activations == q.activations == METHODS[name].activations and "W4A4" in again.title
    assert torch.equal(logits(again.apply(tiny.subject()), ids), logits(q.apply(tiny.subject()), ids))
    plain = tiny.subject()
    assert q.bits().bits == sum(w.bits().bits for w in q.weights.values()) + sum(
        8 * t.numel() * t.element_size() for t in q.params.values())
    assert not torch.equal(logits(q.with_activations(Activations(16)).apply(plain), ids), logits(q.apply(plain), ids))


@pytest.mark.parametrize("name", METHODS)
def test_without_activations_nothing_is_different(name: str) -> None:
    """Sixteen bits take the same path as None, and give the same integers."""
    import dataclasses

    plain = quantize(tiny.subject(), dataclasses.replace(METHODS[name], activations=None), tiny.windows(), progress=False)
    sixteen = dataclasses.replace(METHODS[name], activations=Activations(16, qkv=False))
    full = quantize(tiny.subject(), sixteen, tiny.windows(), progress=False)
    assert walks.equal(plain, full)
    four = quantize(tiny.subject(), METHODS[name], tiny.windows(), progress=False)
    assert not walks.equal(plain, four)


@pytest.mark.parametrize("name", ["omniquant", "tesseraq"])
def test_learning_sees_the_rounded_activations(name: str) -> None:
    q = quantize(tiny.subject(), METHODS[name], tiny.windows(), progress=False)
    assert all(t["end"] <= t["start"] for t in q.trace) and any(t["end"] < t["start"] for t in q.trace)
    assert json.loads(json.dumps(q.trace)) and q.settings["settings"]["activations"]["bits"] == 4


def test_a_start_that_rounds_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="give both the same"):
        TesseraQ(OmniQuant(GRID, activations=A4))
    assert TesseraQ(OmniQuant(GRID, activations=A4), activations=A4).activations == A4


@pytest.mark.parametrize("bits", [(4, 8), (6, 6), (3, 3)])
def test_other_widths_of_the_papers(bits: tuple[int, int]) -> None:
    method = SmoothQuant(Grid(bits[0]), activations=Activations(bits[1]))
    q = quantize(tiny.subject(), method, tiny.windows(), progress=False)
    assert f"W{bits[0]}A{bits[1]}" in q.title
    assert torch.isfinite(logits(q.apply(tiny.subject()), tiny.windows().ids)).all()


def test_any_record_can_be_given_activations() -> None:
    subject = tiny.subject()
    q = quantize(subject, GPTQ(GRID), tiny.windows(), progress=False)
    a = q.with_activations(A4)
    assert q.activations is None and a.activations == A4 and walks.equal(q, a) and a.bits() == q.bits()
    ids = tiny.windows().ids
    assert not torch.equal(logits(a.apply(subject), ids), logits(q.apply(subject), ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_number_type(dtype: torch.dtype) -> None:
    q = quantize(tiny.subject(dtype=dtype), METHODS["omniquant"], tiny.windows(), progress=False)
    out = logits(q.apply(tiny.subject(dtype=dtype)), tiny.windows().ids)
    assert out.dtype == dtype and torch.isfinite(out).all()


def test_a_killed_run_goes_on_to_the_same_integers(tmp_path: Path) -> None:
    whole = quantize(tiny.subject(), METHODS["omniquant"], tiny.windows(), tmp_path, progress=False)
    for file in sorted(tmp_path.glob("block_*"))[1:]:
        file.unlink()
    assert walks.equal(whole, quantize(tiny.subject(), METHODS["omniquant"], tiny.windows(), tmp_path, progress=False))
