"""The walk: what it gives, that it leaves the subject alone, how much memory it takes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import lowbit_nb as lb
from lowbit_nb.blocks import catch
from lowbit_nb.methods import GPTQ, RTN, named
from lowbit_nb.quantize import BlockResult, quantize
from lowbit_nb.record import Quantized
from lowbit_nb.stored import AffineWeight
from tests import tiny
from tests.walks import METHOD, equal, subject, walk, whole


@pytest.fixture(scope="module")
def once() -> Quantized:
    return whole()


# What it gives


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gpt_neox", "phi"])
@pytest.mark.parametrize(
    "method",
    [RTN(lb.Grid(4, 16)), METHOD, GPTQ(lb.Grid(2, 16), order="act"), GPTQ(lb.Grid(4))],
)
def test_every_linear_layer_of_every_block_and_nothing_else(kind, method):
    original = tiny.subject(kind)
    before = tiny.state(original.model)
    found = quantize(original, method, tiny.windows(), progress=False)
    linears = {
        name
        for name, m in original.model.named_modules()
        if isinstance(m, torch.nn.Linear) and "lm_head" not in name and "embed_out" not in name
    }
    assert set(found.weights) == linears and [t["block"] for t in found.trace] == list(range(tiny.BLOCKS))
    assert tiny.unchanged(original.model, before) and tiny.n_hooks(original.model) == 0
    applied = found.apply(original)
    assert tiny.unchanged(original.model, before)
    for name, parameter in applied.model.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in found.weights:
            assert torch.equal(parameter, found.weights[layer].dequantize())
        else:
            assert parameter is original.model.get_parameter(name)  # shared, not copied
    assert torch.isfinite(applied.model(tiny.windows().ids).logits).all()


def test_rtn_is_nearest_rounding_of_every_layer():
    original = subject()
    found = quantize(original, RTN(lb.Grid(3, 16), clip="mse"), progress=False)
    for name, stored in found.weights.items():
        expected = AffineWeight.nearest(original.model.get_submodule(name).weight, lb.Grid(3, 16), "mse")
        assert torch.equal(stored.q, expected.q) and torch.equal(stored.s, expected.s)


def test_each_group_sees_the_inputs_that_the_rounded_layers_before_it_produce(once):
    """The second block's second group, by hand: run the rounded model up to there and quantize from those inputs."""
    original = subject()
    rounded = once.apply(original).model
    block, o_proj = rounded.model.layers[1], "self_attn.o_proj"
    seen: list[torch.Tensor] = []
    handle = block.get_submodule(o_proj).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        rounded(tiny.windows().ids, use_cache=False)
    handle.remove()
    x = torch.cat(seen).flatten(0, 1)
    stored, share = METHOD.quantize_layer(original.model.model.layers[1].get_submodule(o_proj).weight, x.T @ x / len(x))
    assert torch.equal(stored.q, once.weights[f"model.layers.1.{o_proj}"].q)
    assert once.trace[1]["error_share"][o_proj] == pytest.approx(share, rel=1e-4)


def test_feedback_helps_on_the_calibration_text():
    original, windows = subject(), tiny.windows(16)
    scores = [
        lb.evaluate.compare(original, quantize(original, m, windows, progress=False).apply(original), windows)
        for m in (RTN(lb.Grid(3, 16)), METHOD)
    ]
    assert scores[1].kl < scores[0].kl


def test_a_run_is_repeatable_and_the_record_says_what_was_done(once):
    assert equal(walk(), once)
    assert once.settings["method"] == "GPTQ" and once.settings["settings"]["grid"]["bits"] == 3
    assert once.settings["windows"]["sha256"] == tiny.windows().sha256
    assert once.settings["fingerprint"] == subject().fingerprint()
    assert once.title == "GPTQ W3 g16" and once.seconds > 0
    assert json.loads(json.dumps(once.settings)) == once.settings
    assert once.bits().n_weights == sum(w.q.numel() for w in once.weights.values())


def test_the_walk_runs_in_bfloat16_and_stores_what_it_streams():
    low = tiny.subject("llama", dtype=torch.bfloat16)
    found = quantize(low, METHOD, tiny.windows(), progress=False)
    applied = found.apply(low)
    assert applied.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert torch.isfinite(applied.model(tiny.windows().ids).logits).all()


@pytest.fixture(scope="module")
def bundled() -> lb.Subject:
    return lb.load(device="cpu")


def test_the_bundled_subject_at_two_bits(bundled, tmp_path):
    calibration, evaluation = (
        lb.text.calibration(bundled.tokenizer, 12, 64),
        lb.text.evaluation(bundled.tokenizer, 6, 64),
    )
    grid, before = lb.Grid(2, 64), bundled.fingerprint()
    nearest = quantize(bundled, RTN(grid), progress=False)
    feedback = quantize(bundled, GPTQ(grid), calibration, progress=False)
    original = lb.evaluate.perplexity(bundled, evaluation)
    worse, better = (lb.evaluate.compare(bundled, q.apply(bundled), evaluation) for q in (nearest, feedback))
    assert (
        worse.perplexity > 50 * original > 5 * better.perplexity and better.kl < worse.kl / 2 and better.top1 > 2 * worse.top1
    )
    assert feedback.bits().per_weight == 2 + 18 / 64 and bundled.fingerprint() == before
    path = lb.save_quantized(feedback, tmp_path)
    back = lb.load_quantized(tmp_path)
    assert equal(back, feedback) and back.settings == feedback.settings and back.trace == feedback.trace
    assert lb.evaluate.compare(bundled, back.apply(bundled), evaluation) == better
    header = path.stat().st_size - feedback.bits().bytes
    assert 0 < header < 64_000 and path.name.endswith(".safetensors")


# Memory


def peak_bytes(call: Callable[[], object]) -> tuple[int, object]:
    """The most tensor bytes alive at once in a call, beyond those before it: every allocation counts."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert events
    return peak, result


def test_the_measure_sees_what_is_alive_at_once():
    peak, _ = peak_bytes(lambda: [torch.zeros(1000).sum() for _ in range(5)])
    assert 4000 <= peak < 8000
    peak, kept = peak_bytes(lambda: [torch.zeros(1000) for _ in range(5)])
    assert 20000 <= peak < 24000 and len(kept) == 5


@pytest.mark.parametrize("method", [RTN(lb.Grid(3, 16)), GPTQ(lb.Grid(3, 32), clip="minmax")])
def test_memory_grows_by_the_stored_integers_and_nothing_else(method):
    """Four more blocks may add their codes (a byte a weight), scales, zeros; not float weights or streams."""
    peaks, stored, windows = [], [], tiny.windows(2, 8)
    for n_blocks in (2, 6):
        walked = subject(num_hidden_layers=n_blocks, hidden_size=64, intermediate_size=96)
        quantize(walked, method, windows, progress=False)  # warm: libraries keep a little
        peak, found = peak_bytes(lambda walked=walked: quantize(walked, method, windows, progress=False))
        peaks.append(peak)
        stored.append(sum(w.q.numel() + 3 * w.s.numel() for w in found.weights.values()))
    one_block = 4 * sum(w.q.numel() for w in found.weights.values()) / 6
    assert peaks[1] - peaks[0] < 1.1 * (stored[1] - stored[0]) + 0.25 * one_block


# Bad input


def test_a_method_that_looks_at_activations_asks_for_text():
    with pytest.raises(ValueError, match="GPTQ looks at activations: give it calibration windows"):
        quantize(subject(), METHOD, None)
    quantize(subject(), RTN(lb.Grid(3, 16)), None, progress=False)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="method='awq2' is unknown; use one of rtn, gptq"):
        named("awq2")
    assert named("RTN", grid=lb.Grid(2)) == RTN(lb.Grid(2))


@pytest.mark.parametrize(
    "method", [RTN(lb.Grid(3, 24)), GPTQ(lb.Grid(3, 24)), GPTQ(lb.Grid(3, 24), groups="static", order="act")]
)
def test_a_group_that_does_not_divide_is_refused_with_the_layer(method):
    with pytest.raises(
        ValueError, match=r"model\.layers\.0\.self_attn\.q_proj.*: d_in=32 is not a multiple of g=24; use g=16 or g=32"
    ):
        walk(method=method)


@pytest.mark.parametrize("method", [RTN(lb.Grid(3, 16)), METHOD])
def test_a_weight_that_is_not_finite_is_refused_with_the_layer(method):
    broken = subject()
    broken.model.model.layers[2].mlp.down_proj.weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"model\.layers\.2(\.mlp\.down_proj|).*non-finite"):
        quantize(broken, method, tiny.windows(), progress=False)


def test_activations_that_are_not_finite_are_refused_with_the_layer():
    broken = subject()
    broken.model.model.layers[1].input_layernorm.weight[3] = torch.inf
    with pytest.raises(ValueError, match=r"model\.layers\.1.*not finite"):
        quantize(broken, METHOD, tiny.windows(), progress=False)


def test_a_hessian_that_is_not_positive_definite_is_refused_with_the_layer():
    with pytest.raises(
        ValueError,
        match=r"model\.layers\.0\.self_attn\.q_proj.*: H is not positive definite.*more calibration tokens",
    ):
        walk(method=GPTQ(lb.Grid(3, 16), damp=0.0), windows=tiny.windows(1, 8))


def test_windows_longer_than_the_context_are_refused():
    with pytest.raises(ValueError, match=f"{tiny.CONTEXT + 1} tokens.*context of {tiny.CONTEXT}"):
        walk(windows=tiny.windows(2, tiny.CONTEXT + 1))


def test_weights_of_another_model_are_refused(once):
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj is \(64, 64\) in the subject and \(32, 32\)"):
        once.apply(subject(hidden_size=64))
    with pytest.raises(ValueError, match=r"no layer model\.layers\.3\.self_attn\.q_proj; .*another model"):
        once.apply(subject(num_hidden_layers=3))


def test_blocks_without_linear_layers_are_refused():
    """GPT-2 keeps its weights in another kind of layer; an empty result would look like a success."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=48, bos_token_id=1, eos_token_id=2
    )
    gpt2 = lb.Subject(transformers.GPT2LMHeadModel(config).eval(), None, "tiny gpt2")
    with pytest.raises(ValueError, match="linear"):
        quantize(gpt2, RTN(lb.Grid(3, 16)), progress=False)


@dataclass(frozen=True)
class Nothing:
    """A method that keeps a note of the streams it saw."""

    wanted: tuple[str, ...] = ("full", "quant")
    streams: ClassVar[tuple[str, ...]] = ("full", "quant")

    def quantize_block(self, block, streams) -> BlockResult:
        weights = {name: AffineWeight.nearest(block.weight(name), lb.Grid(3, 16)) for name in block.linears}
        return BlockResult(
            weights,
            {"full": float(streams.full.double().sum()), "quant": float(streams.quant.double().sum())},
        )


def test_both_streams_are_what_the_two_models_carry():
    original, ids = subject(), tiny.windows().ids
    found = quantize(original, Nothing(), tiny.windows(), progress=False)
    for which, model in (("full", original.model), ("quant", found.apply(original).model)):
        blocks, X = catch(model, ids)
        for block, trace in zip(blocks, found.trace, strict=True):
            assert trace[which] == pytest.approx(float(X.double().sum()), rel=1e-4)
            X = block.run(X)
