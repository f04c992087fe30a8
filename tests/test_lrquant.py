"""LRQuant: the logarithmic start, learned factors and shifts that keep the function, the loss, adaptation at test time."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowbit_nb import adaptation, checkpoint
from lowbit_nb.activations import Activations, as_quantized, extended
from lowbit_nb.adaptation import adapt, adapt_as_released, online, reach_last
from lowbit_nb.blocks import Block, catch
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.grid import Grid
from lowbit_nb.methods import RTN
from lowbit_nb.methods import lrquant as room
from lowbit_nb.methods.lrquant import LRQuant, biases_for, log_start
from lowbit_nb.objectives import mse, nlc, size_and_angle
from lowbit_nb.quantize import quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Phases, Quantized
from lowbit_nb.scaling import NEAR, LearnedScaling
from lowbit_nb.sites import query_key_site, sites
from lowbit_nb.stored import checksum
from lowbit_nb.transforms import norms
from tests import tiny, walks

GRID = Grid(4)
A4 = Activations(4)
SHORT = Budget(4, 6, 2)
METHOD = LRQuant(GRID, A4, SHORT)


def entrance(kind: str = "llama", dtype: torch.dtype = torch.float32, n: int = 6) -> tuple[Block, Tensor]:
    blocks, X = catch(tiny.model(kind, dtype=dtype), tiny.windows(n, 24).ids)
    X[..., :4] *= 6
    return blocks[-1], X


@lru_cache
def walked() -> Quantized:
    return quantize(tiny.subject(), METHOD, tiny.windows(), progress=False)


def logits(q: Quantized, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return q.apply(tiny.subject()).model(ids, use_cache=False).logits


def far(edits: LearnedScaling) -> LearnedScaling:
    with torch.no_grad():
        for log_s, delta in zip(edits.log_s, edits.delta, strict=True):
            log_s += 0.7 * torch.randn_like(log_s)
            if delta is not None:
                delta += torch.randn_like(delta)
    return edits


# --- 1, 2, 7: the function stays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "opt"])
def test_random_factors_and_shifts_keep_the_function(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, with grouped queries: four sites, shifts in biases that the model never had, tied rotary pairs."""
    block, X = entrance(kind, torch.float64, 2)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    edits, _ = METHOD.begin(block, X)
    assert any(site.kind == "rotary" for site in edits.sites) or kind not in ("llama", "qwen2", "mistral")
    made = far(edits).finish()
    y = edits.block.run(X, {n: t.double() for n, t in made.items()})
    assert float((y - block.run(X)).abs().max()) < 1e-8 * float(y.abs().max())
    assert sum(d is not None for d in edits.delta) >= 2


def test_factors_of_single_channels_would_not_commute_with_the_rotation() -> None:
    """The planted defect: a factor for every channel of q and k, as in the released code."""
    block, X = entrance(n=2)
    site = query_key_site(block, X[:1])
    s = torch.exp(torch.randn(block.weight("self_attn.k_proj").shape[0]))
    W = {"self_attn.k_proj": block.weight("self_attn.k_proj") * s[:, None],
         "self_attn.q_proj": block.weight("self_attn.q_proj") / s.reshape(2, 1, 8).expand(2, site.repeat, 8).reshape(-1, 1)}
    assert float((block.run(X, W) - block.run(X)).abs().max()) > 1e-2


def test_the_forward_that_is_learned_is_the_one_that_is_kept() -> None:
    block, X = entrance()
    edits, learn = METHOD.begin(block, X)
    far(edits)
    active = as_quantized(edits.block, A4)
    tensors = edits.tensors()
    soft = active.forward(X, tensors | {n: p.weight(tensors.get(n)) for n, p in learn.items()})
    made = edits.finish()
    weights = {n: p.finish(made.get(n)).dequantize() for n, p in learn.items()}
    hard = active.forward(X, {n: t.float() for n, t in norms(edits.block, made).items()} | weights)
    off = (soft.detach() - hard).square().mean() / hard.square().mean()
    assert float(off) < 1e-3  # steps are rounded to float16 when they are kept: few numbers meet another mark


def test_a_shift_at_sixteen_bits_changes_nothing_and_at_four_bits_something() -> None:
    block, X = entrance()
    for activations, same in ((Activations(16), True), (A4, False)):
        edits, _ = METHOD.begin(block, X)
        y = as_quantized(edits.block, activations).run(X, edits.finish())
        with torch.no_grad():
            for delta in edits.delta:
                if delta is not None:
                    delta += 1.0
        y_shifted = as_quantized(edits.block, activations).run(X, edits.finish())
        assert torch.allclose(y, y_shifted, atol=1e-3) == same


def test_a_gate_passes_no_shift_on() -> None:
    block, X = entrance()
    places = sites(block, X[:1])
    names = biases_for(block, places)
    assert "mlp.up_proj.bias" in names and "mlp.down_proj.bias" not in names and "input_layernorm.bias" in names
    edits = LearnedScaling(extended(block, names), places, shifts=True)
    for site, delta in zip(edits.sites, edits.delta, strict=True):
        assert (delta is None) == (site.source == "mlp.up_proj")


# --- 3 to 6: losses, start, ends ------------------------------------------------------------------------------------


def test_at_sixteen_bits_there_is_nothing_to_learn() -> None:
    block, X = entrance()
    Y = block.run(X)
    edits, _ = METHOD.begin(block, X)
    y = as_quantized(edits.block, Activations(16)).forward(X, edits.tensors())
    loss = size_and_angle(y, Y)
    slopes = torch.autograd.grad(loss, edits.log_s, allow_unused=True)
    assert abs(float(loss.detach())) < 1e-5 and all(g is None or float(g.abs().max()) < 1e-3 for g in slopes)


def test_the_start_is_the_logarithm() -> None:
    a = torch.logspace(-4, 4, 200, dtype=torch.float64)
    s = log_start(a)
    assert (s.diff() > 0).all() and torch.allclose(a / s, torch.log2(2 + a), rtol=1e-6)
    assert log_start(torch.tensor([2.0])).item() == pytest.approx(1.0)
    table = {0.01: 0.0099, 0.5: 0.378, 1: 0.631, 4: 1.547, 16: 3.837, 64: 10.59, 512: 56.85, 1000: 100.3}
    for at, s_at in table.items():
        assert log_start(torch.tensor([float(at)])).item() == pytest.approx(s_at, rel=6e-3)
    assert float(log_start(torch.zeros(1))) > 0
    assert torch.allclose(a / log_start(a, 4.0), torch.log(4 + a) / math.log(4), rtol=1e-6)


def test_smoothed_peaks_are_logarithms() -> None:
    block, X = entrance()
    peak = block.inputs(X, "mlp.up_proj").abs().amax(0)
    edits, _ = METHOD.begin(block, X)
    exchanged = {n: t for n, t in edits.finish().items()}
    now = edits.block.inputs(X, "mlp.up_proj", exchanged).abs().amax(0)
    assert torch.allclose(now, torch.log2(2 + peak), rtol=2e-2)


def test_the_angle_ignores_lengths_and_is_never_negative() -> None:
    y, target = torch.randn(2, 5, 8), torch.randn(2, 5, 8) + 3
    assert float(nlc(y + target, target)) >= 0 and torch.allclose(nlc(7 * (y + target), target), nlc(y + target, target))
    assert not torch.allclose(mse(7 * target, target), mse(target, target))
    half = target.to(torch.bfloat16)
    assert nlc(half, half).dtype == torch.float32
    cosine = torch.cosine_similarity(y, target, dim=-1)
    assert nlc(y, target).item() == pytest.approx(-math.log(abs(float(cosine.mean()))), rel=1e-5)  # log of the mean
    assert nlc(y, target).item() != pytest.approx(float(-cosine.abs().log().mean()), rel=1e-3)  # not mean of logs


def test_clipping_wide_open_is_the_whole_range() -> None:
    W = torch.randn(8, 32)
    whole, usual = LearnedClip(W, GRID, 0.999999), LearnedClip(W, GRID)
    s = (W.amax(1) - W.amin(1)) / 15
    assert torch.allclose(whole._ruler(None)[0][:, 0], s, rtol=2e-3)
    assert torch.allclose(usual._ruler(None)[0][:, 0], 0.982 * s, rtol=1e-4)


# --- 8, 12 and the walk ---------------------------------------------------------------------------------------------


def test_factors_stay_above_the_floor() -> None:
    block, X = entrance()
    edits, learn = METHOD.begin(block, X)
    fast = dataclasses.replace(METHOD, ratio=500.0)
    fast.learn(block, edits, learn, X, block.run(X), Phases())
    edits.tensors()
    assert all(float(log_s.detach().exp().min()) >= NEAR * 0.999 for log_s in edits.log_s)


def test_one_seed_one_result_and_the_best_is_kept() -> None:
    again = quantize(tiny.subject(), METHOD, tiny.windows(), progress=False)
    assert walks.equal(walked(), again) and again.trace[-1]["phi"] == walked().trace[-1]["phi"]
    assert all(t["end"] <= t["start"] for t in walked().trace)
    assert "phi" not in walked().trace[0]
    other = quantize(tiny.subject(), dataclasses.replace(METHOD, seed=1), tiny.windows(), progress=False)
    assert other.trace[-1]["phi"] != walked().trace[-1]["phi"]


def test_shifts_end_up_in_biases_that_are_counted_saved_and_used(tmp_path: Path) -> None:
    q = walked()
    biases = [n for n in q.params if n.endswith(".bias")]
    assert "model.layers.0.input_layernorm.bias" in biases and len(biases) == tiny.BLOCKS * 8
    assert q.bits().bits > sum(w.bits().bits for w in q.weights.values())
    checkpoint.save_quantized(q, tmp_path)
    ids = tiny.windows().ids
    assert torch.equal(logits(checkpoint.load_quantized(tmp_path), ids), logits(q, ids))
    subject = tiny.subject()
    before = tiny.state(subject.model)
    q.apply(subject)
    assert tiny.unchanged(subject.model, before)


def test_what_the_walk_saw_is_what_the_model_computes() -> None:
    subject, windows = tiny.subject(), tiny.windows()
    _, streams = reach_last(subject, walked(), windows)
    for model, stream in ((subject.model, streams.full), (walked().apply(subject).model, streams.quant)):
        found: list[Tensor] = []
        handle = model.model.layers[-1].register_forward_pre_hook(lambda m, args, found=found: found.append(args[0]))
        with torch.no_grad():
            model(windows.ids, use_cache=False)
        handle.remove()
        assert torch.allclose(found[0], stream, atol=1e-4)


def test_the_model_gets_closer_than_by_rounding() -> None:
    subject, windows = tiny.subject(), tiny.windows(8, 24)
    q = quantize(subject, dataclasses.replace(METHOD, budget=Budget(6, 12, 4)), windows, progress=False)
    target = subject.model(windows.ids).logits
    nearest = quantize(subject, RTN(GRID), progress=False).with_activations(A4)
    gap = [float((logits(x, windows.ids) - target).square().mean()) for x in (q, nearest)]
    assert gap[0] < gap[1]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "phi3", "opt", "mistral"])
def test_other_architectures(kind: str) -> None:
    q = quantize(tiny.subject(kind), METHOD, tiny.windows(), progress=False)
    assert all(t["end"] <= t["start"] for t in q.trace)
    assert torch.isfinite(q.apply(tiny.subject(kind)).model(tiny.windows().ids).logits).all()


@pytest.mark.parametrize("make, words", [
    (lambda: LRQuant(GRID, loss="kl"), "loss='kl' is unknown"), (lambda: LRQuant(GRID, base=1.0), "above 1"),
    (lambda: LRQuant(GRID, budget="huge"), "unknown")])
def test_settings_are_refused(make, words: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=words):
        make()


# --- 9 to 11: adaptation --------------------------------------------------------------------------------------------

OTHER = tiny.windows(4, 24, seed=9)


def prints(q: Quantized) -> tuple:
    return ({n: checksum(w) for n, w in q.weights.items()}, {n: t.clone() for n, t in q.params.items()}, str(q.settings),
            str(q.trace))


def same(a: tuple, b: tuple) -> bool:
    return a[0] == b[0] and a[2:] == b[2:] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][n], b[1][n]) for n in a[1])


def test_the_base_and_the_original_never_change() -> None:
    subject, base = tiny.subject(), walked()
    before, model, fingerprint = prints(base), tiny.state(subject.model), subject.fingerprint()
    overlay = adapt(subject, base, OTHER, rate=0.02)
    attached = overlay.attach()
    attached.apply(subject)
    assert same(before, prints(base)) and tiny.unchanged(subject.model, model) and subject.fingerprint() == fingerprint
    assert overlay.detach() is base and attached.activations == base.activations
    changed = {n for n in base.weights if checksum(attached.weights[n]) != checksum(base.weights[n])}
    assert changed and all(n.startswith("model.layers.2.") for n in changed)
    ids = OTHER.ids
    assert not torch.equal(logits(attached, ids), logits(base, ids))
    assert torch.equal(logits(overlay.detach(), ids), logits(walked(), ids))


def test_no_epochs_give_the_same_logits() -> None:
    overlay = adapt(tiny.subject(), walked(), OTHER, epochs=0)
    assert walks.equal(overlay.attach(), walked())
    assert torch.equal(logits(overlay.attach(), OTHER.ids), logits(walked(), OTHER.ids))
    cold = adapt(tiny.subject(), walked(), OTHER, epochs=0, start="cold")
    assert not walks.equal(cold.attach(), walked())


def test_adaptation_lowers_its_own_loss_on_real_inputs() -> None:
    subject = tiny.subject()
    overlay = adapt(subject, walked(), OTHER, rate=0.02)
    assert overlay.story["end"] < overlay.story["start"]
    block, streams = reach_last(subject, walked(), OTHER)
    through = as_quantized(block, A4, {n.removeprefix(f"{block.name}."): t for n, t in overlay.params.items()})
    for q, expected in ((walked(), overlay.story["start"]), (overlay.attach(), overlay.story["end"])):
        own = {n.removeprefix(f"{block.name}."): w.dequantize() for n, w in q.weights.items() if n.startswith(block.name)}
        own |= {n.removeprefix(f"{block.name}."): t.float() for n, t in q.params.items() if n.startswith(block.name)}
        found = float(size_and_angle(through.forward(streams.quant, own), block.run(streams.full)))
        assert found == pytest.approx(expected, rel=1e-3)


def test_an_overlay_is_a_record_like_any_other(tmp_path: Path) -> None:
    attached = adapt(tiny.subject(), walked(), OTHER, "other text", rate=0.05).attach()
    checkpoint.save_quantized(attached, tmp_path)
    again = checkpoint.load_quantized(tmp_path)
    assert torch.equal(logits(again, OTHER.ids), logits(attached, OTHER.ids))
    assert again.settings["overlay"] == {"name": "other text", "seen": [OTHER.sha256]}
    assert "overlay" not in walked().settings


def test_online_never_scores_what_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of every access: a chunk is handed out to be scored before anything learns from it."""
    log: list[tuple[str, str]] = []
    own = adaptation.adapt
    monkeypatch.setattr(adaptation, "adapt", lambda s, b, chunk, *a, **k: (log.append(("learn", chunk.sha256)),
                                                                          own(s, b, chunk, *a, **k))[1])
    chunks = [tiny.windows(2, 24, seed=i) for i in range(20, 24)]
    records = []
    for chunk, record in online(tiny.subject(), walked(), chunks, epochs=1, rate=0.05):
        log.append(("score", chunk.sha256))
        records.append(record)
        assert chunk.sha256 not in record.settings.get("overlay", {"seen": []})["seen"]
    for i, chunk in enumerate(chunks):
        assert log.index(("score", chunk.sha256)) < (log.index(("learn", chunk.sha256)) if i < 3 else len(log))
        assert all(("learn", other.sha256) in log[: log.index(("score", chunk.sha256))] for other in chunks[:i])
    assert records[0] is walked() and records[3].settings["overlay"]["seen"] == [c.sha256 for c in chunks[:3]]


def test_transductive_adaptation_has_seen_what_it_is_scored_on() -> None:
    assert adapt(tiny.subject(), walked(), OTHER, epochs=1).attach().settings["overlay"]["seen"] == [OTHER.sha256]


def test_the_released_code_adapts_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns on embeddings and leaves the last block's activations unrounded; both are visible."""
    handed: list[Tensor] = []
    own = LRQuant.learn
    monkeypatch.setattr(LRQuant, "learn", lambda self, b, e, p, X, *a: (handed.append(X), own(self, b, e, p, X, *a))[1])
    subject = tiny.subject()
    before = prints(walked())
    released = adapt_as_released(subject, walked(), OTHER)
    assert torch.equal(handed[0], subject.model.model.embed_tokens(OTHER.ids))
    _, streams = reach_last(subject, walked(), OTHER)
    assert not torch.allclose(handed[0], streams.quant)
    attached = released.attach()
    assert attached.activations.skip == ("model.layers.2",) and walked().activations.skip == ()
    assert not attached.activations.touches("model.layers.2") and attached.activations.touches("model.layers.1")
    assert same(before, prints(walked())) and torch.isfinite(logits(attached, OTHER.ids)).all()


def test_other_records_and_starts_are_refused() -> None:
    with pytest.raises(ValueError, match="adapt a record of LRQuant"):
        adapt(tiny.subject(), quantize(tiny.subject(), RTN(GRID), progress=False), OTHER)
    with pytest.raises(ValueError, match="'warm'"):
        adapt(tiny.subject(), walked(), OTHER, start="hot")
    with pytest.raises(ValueError, match="other settings or another model"):
        room._phi.fill([torch.zeros(3)], room._phi.packed([torch.zeros(4)]))


def test_sites_are_those_of_the_paper_unless_asked() -> None:
    block, X = entrance()
    usual, more = (dataclasses.replace(METHOD, down=d).begin(block, X)[0].sites for d in (False, True))
    assert {s.source for s in more} - {s.source for s in usual} == {"mlp.up_proj"}
