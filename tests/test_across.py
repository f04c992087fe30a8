"""Vectors along the input: the stored form, the metric inside a piece, and where this direction pays."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowbit_nb import stored
from lowbit_nb.codebooks.across import AcrossRounder, AcrossWeight, whole
from lowbit_nb.codebooks.codebook import Codebook, Stage
from lowbit_nb.codebooks.kmeans import kmeans, nearest
from lowbit_nb.feedback import feedback
from lowbit_nb.hessian import condition, factor
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import quantize
from tests import tiny
from tests.reference import cost, current_values, problem
from tests.test_stored import tensor_bytes
from tests.test_vptq import toy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(k: int, scale: bool) -> AcrossWeight:
    g = seeded()
    stage = Stage(torch.randn(1, k, 4, generator=g).half(), torch.randint(0, k, (10, 6), generator=g, dtype=torch.int32))
    return AcrossWeight(stage, torch.rand(24, generator=g).half() if scale else None)


@pytest.mark.parametrize("k", [2, 16, 300, 4096])
@pytest.mark.parametrize("scale", [False, True])
def test_the_stored_form(tmp_path, k, scale):
    w = weight(k, scale)
    expected = torch.zeros(10, 24)
    for i in range(10):
        for j in range(24):
            expected[i, j] = w.stage.C[0, int(w.stage.idx[i, j // 4]), j % 4].float() * (w.s[j].float() if scale else 1.0)
    assert torch.equal(w.dequantize(), expected) and w.shape == (10, 24)
    x = torch.randn(24, generator=seeded(1))
    torch.testing.assert_close(w.matvec(x), expected @ x, rtol=1e-5, atol=1e-5)
    save_file(w.pack(), tmp_path / "w.safetensors")
    assert w.bits().bits == 8 * tensor_bytes(tmp_path / "w.safetensors")
    meta = json.loads(json.dumps(w.meta()))
    back = stored.unpack(load_file(tmp_path / "w.safetensors"), meta)
    assert torch.equal(back.dequantize(), w.dequantize())
    for broken in ({n: t for n, t in w.pack().items() if n != "codebook"}, w.pack() | {"scale": torch.zeros(3).half()}):
        with pytest.raises(ValueError, match="truncated or edited"):
            stored.unpack(broken, meta)


@pytest.mark.parametrize("block", [4, 6, 128])
def test_a_piece_is_rounded_as_it_would_best_be(block):
    """Piece by piece with the least-cost current values solved from scratch; the stored form is what was propagated."""
    W, H = problem(6, 16, seeded())
    perm = whole(H, 4)
    rounder = AcrossRounder(perm, 4, 8, seeded(), iterations=5)
    result = feedback(W, H, rounder, perm, block)
    D = factor(H[perm[:, None], perm])[1]
    order, Q = perm.tolist(), torch.zeros_like(W)
    for j in range(0, 16, 4):
        now = current_values(W, Q, H, order[:j], order[j:])[:, :4]
        distance = ((now[:, None] - rounder.C).square() * D[j : j + 4]).sum(-1)
        Q[:, order[j : j + 4]] = rounder.C[distance.argmin(1)]
    assert torch.equal(result.W_hat, Q) and result.loss == pytest.approx(cost(W, Q, H), rel=1e-9)
    torch.testing.assert_close(rounder.result(None).dequantize().double(), Q, rtol=0, atol=0)


def lloyd_with_metric(x: Tensor, m: Tensor, C: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        at = ((x[:, None] - C).square() * m[:, None]).sum(-1).argmin(1)
        C = torch.stack([(x[at == i] * m[at == i]).sum(0) / m[at == i].sum(0) if bool((at == i).any()) else C[i]
                         for i in range(len(C))])
    return C


def test_k_means_under_a_metric():
    g = seeded()
    x, m = torch.randn(200, 3, generator=g).double(), torch.rand(200, 3, generator=g).double() + 0.1
    found = kmeans(x, torch.ones(200).double(), 6, generator=g, start=x[:6], iterations=7, tol=-1.0, metric=m)
    torch.testing.assert_close(found.C, lloyd_with_metric(x, m, x[:6], 7), rtol=0, atol=1e-10)
    assert all(b <= a * (1 + 1e-9) for a, b in zip(found.inertia, found.inertia[1:], strict=False))
    error = ((x - found.C[nearest(x, found.C, m)]).square() * m).sum()
    plain = kmeans(x, torch.ones(200).double(), 6, generator=g, start=x[:6], iterations=7).C
    assert error < ((x - plain[nearest(x, plain, m)]).square() * m).sum()


def test_where_columns_differ_much_the_metric_pays():
    """Rate goes where errors are dear, inside a vector: the more columns differ, the more this direction gains."""
    ratio = []
    for gain in (0.1, 1.2):
        W, H = toy(gain=gain, spikes=0, d_out=256)
        settings = dict(norm="none", iterations=8, retrain=0, refine=0)
        along, across, plain = (VPTQ(Codebook(4, 64), **settings, **change).quantize_layer(W, H)[1] for change in (
            {}, {"axis": "input"}, {"axis": "input", "weight": "one"}))
        assert across < plain
        ratio.append(across / along)
    assert ratio[1] < 0.8 < ratio[0]


def test_pieces_keep_their_columns_together():
    H = torch.diag(torch.tensor([1.0, 2.0, 9.0, 3.0, 4.0, 5.0]))
    assert whole(H, 2).tolist() == [2, 3, 4, 5, 0, 1] and whole(H, 3).tolist() == [0, 1, 2, 3, 4, 5]
    for act in (lambda: whole(H, 4), lambda: AcrossRounder(torch.arange(6), 4, 8, seeded())):
        with pytest.raises(ValueError, match="pieces of 4 columns do not divide d_in=6"):
            act()


def test_a_model_is_quantized_along_the_input():
    q = quantize(tiny.subject(), VPTQ(Codebook(4, 16), axis="input", iterations=3), tiny.windows(), progress=False)
    assert all(isinstance(w, AcrossWeight) for w in q.weights.values())
    assert all(0 < e < 1 for t in q.trace for e in t["error_share"].values())


@pytest.mark.parametrize("change", [dict(book=Codebook(4, 16, 8)), dict(book=Codebook(outliers=0.1)), dict(norm="minmax"),
                                    dict(tune="demo")])
def test_what_does_not_go_along_the_input_is_refused(change):
    with pytest.raises(ValueError, match="axis='input' is there to compare"):
        VPTQ(**{"axis": "input"} | change)


def test_dead_columns_do_not_break_it():
    W, H = toy()
    H[5], H[:, 5] = 0.0, 0.0
    found, error = VPTQ(Codebook(4, 16), axis="input", iterations=3).quantize_layer(W, H)
    assert torch.isfinite(found.dequantize()).all() and 0 < error < 1 and condition(H)[1].sum() == 1
