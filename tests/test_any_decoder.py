"""Any decoder: every family through every method, saved, loaded and packed; experts unfolded, routed and hardly reached."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from torch import nn

import lowbit_nb as lb
from lowbit_nb.adaptive import LossMetric
from lowbit_nb.blocks import catch
from lowbit_nb.experts import experts, opened, routers, unfolded
from lowbit_nb.hessian import Hessian
from lowbit_nb.packed import pack_model
from lowbit_nb.reconstruct import Budget
from lowbit_nb.sites import sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.subject import BUNDLED
from tests import tiny

GRID, SHORT = lb.Grid(2, group=8), Budget(1, 2, 2)
METHODS = {
    "RTN": lb.RTN(GRID),
    "GPTQ": lb.GPTQ(GRID),
    "AWQ": lb.AWQ(GRID),
    "TesseraQ": lb.TesseraQ(lb.AWQ(GRID), budget=SHORT),
    "VPTQ": lb.VPTQ(lb.Codebook(4, 16)),
    "PTQ161": lb.PTQ161(budget=SHORT),
    "CBQ": lb.CBQ(GRID, budget=SHORT),
    "LRQuant": lb.LRQuant(GRID, budget=SHORT),
}
OTHERS = {
    "GPTQ behind": lb.GPTQ(GRID, sequential=True),
    "GPTQ shifted": lb.GPTQ(GRID, shift=True),
    "OAC": lb.OAC(lb.GPTQ(GRID)),
    "SpQR": lb.SpQR(lb.Grid(3, group=8, zero_inside=False)),
    "BiLLM": lb.BiLLM(),
    "OmniQuant": lb.OmniQuant(GRID, budget=SHORT),
    "W4A8": lb.LRQuant(GRID, budget=SHORT, activations=lb.Activations(8)),
}
MIXED = sorted(tiny.MIXTURES)
PER_BLOCK = {"mixtral": 4 + 3 * 4, "qwen3_moe": 4 + 3 * 4, "qwen2_moe": 4 + 3 * 4 + 3}  # attention, experts, the shared one


def small(kind: str, **changes: object) -> lb.Subject:
    return tiny.subject(kind, num_hidden_layers=2, **changes)


def n_linears(kind: str) -> int:
    """How many linear layers a tiny model's blocks have, as transformers makes them."""
    blocks = tiny.model(kind, num_hidden_layers=1).get_decoder().layers if kind != "gpt_neox" else None
    blocks = tiny.model(kind, num_hidden_layers=1).gpt_neox.layers if blocks is None else blocks
    return sum(isinstance(m, nn.Linear) for m in blocks.modules())


def goes_round(kind: str, method: object, folder) -> lb.Quantized:  # noqa: ANN001
    """Quantized, saved, loaded, applied and packed: the same logits."""
    subject, windows = small(kind), tiny.windows(4)
    made = lb.quantize(subject, method, windows, progress=False)
    assert len(made.weights) == 2 * (PER_BLOCK.get(kind) or n_linears(kind))
    with torch.no_grad():
        own, logits = (s.model(windows.ids).logits for s in (subject, made.apply(subject)))
        assert torch.isfinite(logits).all() and float((logits - own).norm()) > 0.01 * float(own.norm())
        lb.save_quantized(made, folder)
        back = lb.load_quantized(folder)
        assert torch.equal(back.apply(subject).model(windows.ids).logits, logits)
        torch.testing.assert_close(pack_model(back, subject).model(windows.ids).logits, logits, rtol=1e-5, atol=1e-5)
    json.dumps(back.trace, allow_nan=False)
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [*sorted(tiny.ARCHITECTURES), *MIXED])
def test_every_family_passes_every_method(kind, method, tmp_path):
    goes_round(kind, METHODS[method], tmp_path)


FURTHER = {
    "GemmaConfig": {"head_dim": 8},
    "Gemma3TextConfig": {"head_dim": 8},
    "OlmoeConfig": {"num_experts": 4, "num_experts_per_tok": 2},
    "PhimoeConfig": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoeConfig": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3Config": {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
}


@pytest.mark.parametrize("config", FURTHER)
def test_further_families_are_read_with_nothing_forgotten(config, monkeypatch, tmp_path):
    """Every matrix of every block is quantized, but routers; the first block of DeepSeek has no experts."""
    settings = tiny._LLAMA | {"pad_token_id": 0} | FURTHER[config]
    monkeypatch.setitem(tiny.ARCHITECTURES, "further", (config, settings))
    subject, windows = small("further"), tiny.windows(4)
    made = lb.quantize(subject, METHODS["GPTQ"], windows, progress=False)
    lb.save_quantized(made, tmp_path)
    logits = made.apply(subject).model(windows.ids).logits
    torch.testing.assert_close(pack_model(lb.load_quantized(tmp_path), subject).model(windows.ids).logits, logits)
    matrices = {name for name, p in subject.model.model.layers.named_parameters(prefix="model.layers") if p.ndim >= 2}
    left = matrices - {f"{name}.weight" for name in made.weights}
    n_mixtures = 0 if "num_experts_per_tok" not in settings else 1 if "first_k_dense_replace" in settings else 2
    assert len(left) == n_mixtures and {name.split(".")[-2] for name in left} <= {"gate", "router"}


@pytest.mark.parametrize("method", OTHERS)
def test_experts_pass_the_other_methods_too(method, tmp_path):
    goes_round("mixtral", OTHERS[method], tmp_path)


def test_a_layer_as_narrow_as_the_alignment_is_salient_as_a_whole(tmp_path):
    """32 channels and a multiple of 32: PTQ1.61 then keeps four bits everywhere, and says so."""
    made = goes_round("llama", lb.PTQ161(budget=SHORT), tmp_path)
    assert isinstance(made.weights["model.layers.0.self_attn.q_proj"], AffineWeight)
    assert made.trace[0]["salient"]["self_attn.q_proj"] == 32 == made.trace[0]["salient"]["mlp.down_proj"]
    finer = goes_round("llama", lb.PTQ161(align=8, budget=SHORT), tmp_path)
    assert finer.trace[0]["salient"]["self_attn.q_proj"] == 8 and finer.bits().per_weight < made.bits().per_weight


# Experts as linear layers


@pytest.mark.parametrize("way", ["eager", None])
@pytest.mark.parametrize("kind", MIXED)
def test_unfolded_experts_compute_what_the_fused_ones_do(kind, way):
    model, ids = tiny.model(kind), tiny.windows().ids
    if way:
        model.set_experts_implementation(way)
    before, new = tiny.state(model), unfolded(model)
    torch.testing.assert_close(new(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert len(experts(new)) == 4 * tiny.BLOCKS and not experts(model) and tiny.unchanged(model, before)
    first, fused = new.model.layers[0].mlp.experts.get_submodule("1"), model.model.layers[0].mlp.experts
    assert first.up_proj.weight.untyped_storage().data_ptr() == fused.gate_up_proj.untyped_storage().data_ptr()
    assert unfolded(new) is new


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_a_model_without_experts_stays_the_same_object(kind):
    model = tiny.model(kind)
    assert unfolded(model) is model and lb.Subject(model, None, kind).model is model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_experts_too(dtype):
    """The experts by themselves: a whole model may send a token elsewhere for the last bit of a router's input."""
    model, g = tiny.model("mixtral", dtype=dtype), torch.Generator().manual_seed(0)
    x, index = torch.randn(40, 32, generator=g).to(dtype), torch.rand(40, 4, generator=g).topk(2).indices
    share = torch.rand(40, 2, generator=g).to(dtype)
    fused, new = (m.model.layers[1].mlp.experts(x, index, share) for m in (model, unfolded(model)))
    assert new.dtype == dtype and experts(unfolded(model))
    torch.testing.assert_close(new, fused, rtol=0.02, atol=0.02)


def test_a_folder_with_a_mixture_is_loaded_unfolded(tmp_path):
    model, ids = tiny.model("mixtral"), tiny.windows().ids
    model.save_pretrained(tmp_path)
    for file in BUNDLED.glob("*token*"):
        shutil.copy(file, tmp_path)
    subject = lb.load(tmp_path)
    assert len(experts(subject.model)) == 4 * tiny.BLOCKS
    torch.testing.assert_close(subject.model(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    said = [m.generate(ids[:1], max_new_tokens=6, do_sample=False).tolist() for m in (subject.model, model)]
    assert said[0] == said[1]


def test_experts_that_compute_otherwise_are_left_alone_and_refused(monkeypatch):
    """A clamp that only large tokens meet is noticed; so are experts with biases and transposed weights."""
    model = tiny.model("mixtral")
    fused = type(model.model.layers[0].mlp.experts)
    plain = fused.forward
    monkeypatch.setattr(fused, "forward", lambda self, x, i, w: plain(self, x.clamp(-6, 6), i, w))
    assert unfolded(model) is model
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    for made in (model, transformers.AutoModelForCausalLM.from_config(config).eval()):
        with pytest.raises(ValueError, match=r"outside linear layers \(.*mlp\.experts\.gate_up_proj.*unusual layout"):
            lb.quantize(lb.Subject(made, None, "odd"), lb.RTN(GRID), progress=False)


def test_a_mixture_that_was_not_unfolded_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"mlp\.experts\.gate_up_proj.*lb\.Subject"):
        catch(tiny.model("mixtral"), tiny.windows(1).ids)


@pytest.mark.parametrize("kind", MIXED)
def test_routers_stay_in_full_precision(kind):
    subject = small(kind)
    apart = {f"model.layers.{i}.mlp.gate" for i in range(2)}
    apart |= {f"model.layers.{i}.mlp.shared_expert_gate" for i in range(2)} if kind == "qwen2_moe" else set()
    assert {name for name, m in subject.model.named_modules() if m in routers(subject.model)} == apart
    made = lb.quantize(subject, lb.RTN(GRID), progress=False)
    assert not apart & set(made.weights)
    through = made.apply(subject).model
    for name in apart:
        assert torch.equal(through.get_submodule(name).weight, subject.model.get_submodule(name).weight)


def test_each_expert_can_be_scaled_inside_and_not_in_front():
    blocks, X = catch(small("mixtral").model, tiny.windows(2).ids)
    found = {(site.source, site.targets) for site in sites(blocks[0], X[:1])}
    assert {(f"mlp.experts.{i}.up_proj", (f"mlp.experts.{i}.down_proj",)) for i in range(4)} < found
    assert not any(source == "post_attention_layernorm" for source, _ in found)


# Which tokens an expert is handed


def routed(kind: str = "mixtral", shape: tuple[int, int] = (6, 24), **changes: object) -> tuple:
    """The first block of a mixture, what flows in, the tokens in front of the experts and who gets which."""
    subject = small(kind, **changes)
    blocks, X = catch(subject.model, tiny.windows(*shape).ids)
    seen = []
    handle = blocks[0].module.mlp.gate.register_forward_hook(lambda m, args, out: seen.append((args[0], out[2])))
    blocks[0].run(X)
    handle.remove()
    return blocks[0], X, torch.cat([h.flatten(0, -2) for h, _ in seen]), torch.cat([chosen for _, chosen in seen])


@pytest.mark.parametrize("kind", MIXED)
def test_open_experts_are_handed_every_token_and_change_nothing(kind):
    block, X, tokens, chosen = routed(kind)
    y, linear, seen = block.run(X), block.linears["mlp.experts.2.up_proj"], []
    handle = linear.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with opened(block.module):
        torch.testing.assert_close(block.run(X), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(seen), tokens)
    torch.testing.assert_close(block.inputs(X, "mlp.experts.2.up_proj"), tokens)
    seen.clear()
    block.run(X)
    handle.remove()
    assert sum(len(x) for x in seen) == int((chosen == 2).sum()) < len(tokens)
    with pytest.raises(RuntimeError), opened(block.module, ["mlp.experts.1.up_proj"]):
        assert [m.open for m in experts(block.module).values()] == [False, True, False, False]
        raise RuntimeError
    assert not any(m.open for m in experts(block.module).values())


def test_each_expert_has_an_input_of_its_own_reached_or_not():
    block, X, _, chosen = routed(shape=(1, 2), num_local_experts=8)
    assert len(chosen.unique()) < 8
    shared = block.shared_inputs(X)
    assert shared[2:] == [
        g for i in range(8) for g in ([f"mlp.experts.{i}.{p}_proj" for p in ("gate", "up")], [f"mlp.experts.{i}.down_proj"])
    ]


@pytest.mark.parametrize("shape", [(1, 2), (1, 24), (6, 24)])
def test_the_hessian_of_an_expert_with_few_tokens_is_topped_up(shape):
    """By hand: own tokens, and for those that are missing to d_in the mean over all tokens of the layer."""
    block, X, tokens, chosen = routed(shape=shape, num_local_experts=6)
    groups = block.shared_inputs(X[:1])
    counts = {}
    for names, hessian in zip(groups, block.hessians(X, groups), strict=True):
        if "experts" not in names[0]:
            assert hessian.n == len(tokens)
            continue
        i = int(names[0].split(".")[2])
        expert = block.module.mlp.experts.get_submodule(str(i))
        inputs = tokens if "gate" in names[0] else expert.act_fn(expert.gate_proj(tokens)) * expert.up_proj(tokens)
        own, d = inputs[(chosen == i).any(-1)], inputs.shape[1]
        mean = inputs.T @ inputs / len(inputs)
        missing = max(0, d - len(own))
        torch.testing.assert_close(hessian.H, (own.T @ own + missing * mean) / max(d, len(own)), rtol=1e-4, atol=1e-5)
        peak = (inputs if missing else own).abs().amax(0)
        torch.testing.assert_close(hessian.peak, peak, rtol=1e-4, atol=1e-5)
        if missing:
            counts[names[0]] = len(own)
    assert block.few_tokens == counts
    assert {2: 0 in counts.values(), 24: any(counts.values()), 144: len(counts) < 12}[len(tokens)]


def test_topping_up_by_hand():
    own, typical = Hessian(2), Hessian(2)
    own.add(torch.tensor([[2.0, 0.0]]))
    typical.add(torch.tensor([[1.0, 1.0], [1.0, -3.0]]))
    own.top_up(typical, 3)
    assert own.n == 3
    torch.testing.assert_close(own.H, (torch.tensor([[4.0, 0], [0, 0]]) + 2 * torch.tensor([[1.0, -1], [-1, 5]])) / 3)
    assert own.peak.tolist() == [2.0, 3.0]
    own.top_up(typical, 3)  # enough: nothing changes
    assert own.n == 3 and float(own.sum[0, 0]) == 6.0
    with pytest.raises(ValueError, match="no tokens"):
        own.top_up(Hessian(2), 4)


@pytest.mark.parametrize("method", ["GPTQ", "AWQ", "VPTQ", "PTQ161", "CBQ", "TesseraQ"])
def test_experts_that_no_token_reaches_are_rounded_and_told(method, tmp_path):
    """Two windows of three tokens for eight experts; the trace says how many tokens each of them really had."""
    subject = small("mixtral", num_local_experts=8)
    windows = tiny.windows(2, 3)
    made = lb.quantize(subject, METHODS[method], windows, progress=False)
    assert sum(".experts." in name for name in made.weights) == 2 * 8 * 3
    told = made.trace[0]["few_tokens"]
    assert 0 in told.values() and len(told) == 2 * 8
    assert sum(n for name, n in told.items() if "gate_proj" in name) == 2 * windows.ids.numel()
    assert all(told[name.replace("gate", "down")] == n for name, n in told.items())
    lb.save_quantized(made, tmp_path)
    assert lb.load_quantized(tmp_path).trace[0]["few_tokens"] == told
    with torch.no_grad():
        assert torch.isfinite(made.apply(subject).model(tiny.windows().ids).logits).all()


def test_enough_tokens_and_dense_models_tell_nothing():
    for kind, windows in (("llama", tiny.windows(1, 4)), ("mixtral", tiny.windows(24))):
        made = lb.quantize(small(kind), METHODS["GPTQ"], windows, progress=False)
        assert not any("few_tokens" in t for t in made.trace), kind


def test_the_loss_hessian_of_an_expert_is_that_of_the_fused_gradient():
    """Autograd on the fused tensors, one sequence at a time; an expert that is never chosen has the identity."""
    folded = tiny.model("mixtral", num_hidden_layers=2, num_local_experts=8)
    subject, ids = lb.Subject(folded, None, "mixture"), tiny.windows(2, 3).ids
    fused = folded.model.layers[0].mlp.experts
    fused.gate_up_proj.requires_grad_()
    folded.set_experts_implementation("eager")
    H = torch.zeros(8, 32, 32)
    for sequence in ids:
        fused.gate_up_proj.grad = None
        logits = folded(sequence[None], use_cache=False).logits[0, :-1]
        nn.functional.cross_entropy(logits, sequence[1:], reduction="sum").backward()
        G = fused.gate_up_proj.grad[:, :64]  # the first half: the rows of gate
        H += G.mT @ G / len(ids)
    names = [f"mlp.experts.{i}.gate_proj" for i in range(8)]
    found = LossMetric().hessians(subject.model, ids, {n: subject.model.model.layers[0].get_submodule(n) for n in names})
    reached = [bool(h.any()) for h in H]
    assert 0 < sum(reached) < 8
    for i, name in enumerate(names):
        h = found[name] if reached[i] else found[name] * len(ids)
        torch.testing.assert_close(h, H[i] if reached[i] else torch.eye(32), rtol=1e-3, atol=1e-7)
