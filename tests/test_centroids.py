"""Learned codebooks, block by block and end to end: gradients by hand, indices that stay, and less error than before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit_nb.blocks import catch
from lowbit_nb.checkpoint import load_quantized, save_quantized
from lowbit_nb.codebooks.centroids import LearnedCodebooks, LearnedNorms
from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Quantized
from tests import tiny
from tests.test_codebook import SWITCHES, vector_weight

METHOD = dict(book=Codebook(4, 16), iterations=3, refine=0, retrain=0)


def same_indices(a: Quantized, b: Quantized) -> bool:
    return all(torch.equal(w.main.idx, b.weights[name].main.idx) for name, w in a.weights.items())


def by_indexing(one: LearnedCodebooks, W: Tensor) -> list[Tensor]:
    """The gradients of sum(weight * W) in every variable, through plain indexing."""
    start = one.start
    variables = [t.detach().clone().requires_grad_() for t in (*one.C, one.factor, one.shift)]
    out = torch.zeros(start.shape)
    for C, unit, (_, columns, stage) in zip(variables, one.units, start.stages(), strict=False):
        shape = stage.C.shape
        picked = (C * unit).reshape(shape)[start.group(columns)[None], stage.idx.long()]
        out = out.index_add(1, columns, picked.permute(0, 2, 1).reshape(-1, len(columns))[: start.d_out])
    if start.s is not None:
        out = out * (start.s.float() * variables[-2]) + start.m.float() + variables[-1] * start.s.float()
    (out * W).sum().backward()
    return [torch.zeros_like(v) if v.grad is None else v.grad for v in variables]


@pytest.mark.parametrize("switches", SWITCHES)
def test_it_begins_at_the_stored_weight_and_its_gradients_are_those_of_indexing(switches):
    one = LearnedCodebooks(vector_weight(*switches))
    torch.testing.assert_close(one.weight(), one.start.dequantize(), rtol=1e-5, atol=1e-6)
    W = torch.randn(one.start.shape, generator=torch.Generator().manual_seed(0))
    (one.weight() * W).sum().backward()
    variables = (*one.C, one.factor, one.shift)
    for v, expected in zip(variables, by_indexing(one, W), strict=True):
        found = torch.zeros_like(v) if v.grad is None else v.grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_ends_at_the_stored_weight_if_nothing_was_learned():
    w = vector_weight(True, True, True, True, True)
    one = LearnedCodebooks(w)
    back = one.finish()
    torch.testing.assert_close(back.dequantize(), w.dequantize(), rtol=2e-3, atol=2e-3)
    assert torch.equal(back.main.idx, w.main.idx) and torch.equal(back.label, w.label) and back.s.dtype == torch.float16
    assert max(one.tell().values()) < 1e-6 and set(one.tell()) == {"main", "residual", "outlier", "scale"}


def test_which_variables_there_are():
    with_norm, without = (vector_weight(False, False, False, norm, False) for norm in (True, False))
    roles = {name: [g["role"] for g in LearnedCodebooks(w, s).parameters()] for name, w, s in
             (("both", with_norm, True), ("fixed", with_norm, False), ("none", without, True))}
    assert roles == {"both": ["centroids", "scale"], "fixed": ["centroids"], "none": ["centroids"]}


def test_a_step_down_the_gradient_lowers_the_error():
    w = vector_weight(True, True, True, True, True)
    target = w.dequantize() + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    one = LearnedCodebooks(w)
    loss = (one.weight() - target).square().mean()
    loss.backward()
    with torch.no_grad():
        for t in (t for g in one.parameters() for t in g["params"]):
            t -= 0.1 * t.grad
    assert (one.weight() - target).square().mean() < loss
    assert (one.finish().dequantize() - target).square().mean() < loss
    assert one.tell()["main"] > 0


def test_norms_are_learned_and_kept_as_halves():
    subject = tiny.subject()
    blocks, _ = catch(subject.model, tiny.windows(2).ids)
    norms = LearnedNorms(blocks[0])
    assert set(norms.tensors()) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    before = tiny.state(subject.model)
    with torch.no_grad():
        norms.parameters()[0]["params"][0] += 0.3
    assert tiny.unchanged(subject.model, before)
    assert all(torch.equal(t, t.half().float()) for t in norms.finish().values())


def test_tuning_a_block_lowers_its_loss_and_keeps_its_indices(tmp_path):
    subject = tiny.subject()
    tuned = quantize(subject, VPTQ(**METHOD, tune=Budget(2, 10, 2), rate=5e-3), tiny.windows(), progress=False)
    first = tuned.trace[0]
    assert first["end"] < first["start"] and set(first["rounds"][0]["layers"]) == set(first["error_share"])
    plain = quantize(subject, VPTQ(**METHOD), tiny.windows(), progress=False)
    names = [n for n in plain.weights if n.startswith("model.layers.0.")]
    assert all(torch.equal(tuned.weights[n].main.idx, plain.weights[n].main.idx) for n in names)
    assert all(not torch.equal(tuned.weights[n].main.C, plain.weights[n].main.C) for n in names)
    assert len(tuned.params) == 6 and all(t.dtype == torch.float16 for t in tuned.params.values())
    save_quantized(tuned, tmp_path)
    assert load_quantized(tmp_path).settings["settings"]["tune"] == {"rounds": 2, "steps": 10, "batch": 2, "tokens": 0}


def test_no_steps_change_nothing_that_matters():
    subject = tiny.subject()
    idle = quantize(subject, VPTQ(**METHOD, tune=Budget(1, 0, 2)), tiny.windows(), progress=False)
    plain = quantize(subject, VPTQ(**METHOD), tiny.windows(), progress=False)
    for name, w in idle.weights.items():
        torch.testing.assert_close(w.dequantize(), plain.weights[name].dequantize(), rtol=5e-3, atol=5e-4)
