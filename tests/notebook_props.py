"""Property tests of the functions that readers build in notebooks.

PROPS[(notebook, function)] is a check that takes the function, lifted out of the notebook by tests/nbdefs.py,
and asserts something about it on seeded random shapes, or compares it with the package. Every `*_naive`
function needs one: tests/test_notebook_defs.py says which are missing.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb import compose, crossblock, packing
from lowbit_nb.activations import round_tokens
from lowbit_nb.bilevel import Coded, Second
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.codebooks import codebook as codebooks
from lowbit_nb.codebooks.kmeans import kmeans
from lowbit_nb.codebooks.kmeans import nearest as nearest_vector
from lowbit_nb.feedback import AffineRounder, feedback
from lowbit_nb.grid import Grid, dequantize, fit, quantize
from lowbit_nb.hessian import factor, gram
from lowbit_nb.live import ranking_model
from lowbit_nb.methods.billm import BiLLM
from lowbit_nb.methods.lrquant import log_start
from lowbit_nb.methods.spqr import SpQR
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.objectives import nlc
from lowbit_nb.onebit import channels, regions, signfit, signlinear, signs
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signscale import ScaledSigns
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.outliers import leave_one_out
from lowbit_nb.rounding import rectified_sigmoid
from lowbit_nb.stored import AffineWeight
from lowbit_nb.targets import Mismatch, shifted
from lowbit_nb.transforms import salience, smoothing

PROPS: dict[tuple[str, str], Callable[[Callable], None]] = {}


# 01_grids_and_bits


def _groups(seed: int, n: int = 40) -> list[list[float]]:
    """Random weights of many sizes, shifts and spreads."""
    draw = random.Random(seed)
    return [[draw.gauss(draw.uniform(-1, 1), 1) for _ in range(draw.randint(1, 12))] for _ in range(n)]


def _ruler_reaches_both_ends(ruler: Callable) -> None:
    for bits in (1, 2, 3, 4, 8):
        for w in _groups(bits):
            lo, hi = min(w), max(w)
            s, z = ruler(lo, hi, bits)
            assert s > 0 and isinstance(z, int) and 0 <= z < 2**bits
            assert -s * z <= min(lo, 0) + s / 2 + 1e-9 and s * (2**bits - 1 - z) >= max(hi, 0) - s / 2 - 1e-9
    assert ruler(0.0, 0.0, 2)[0] > 0


def _code_is_the_nearest_mark(code: Callable) -> None:
    for bits in (1, 2, 3, 4):
        for w in _groups(bits + 10):
            s, z = 0.37, bits
            z = min(z, 2**bits - 1)
            marks = [s * (q - z) for q in range(2**bits)]
            for x in w:
                q = code(x, s, z, bits)
                assert abs(marks[q] - x) <= min(abs(mark - x) for mark in marks) + 1e-9


def _loss_counts_every_weight(loss: Callable) -> None:
    assert loss([0.0, 1.0, 2.0], 1.0, 0, 2) == 0
    assert abs(loss([0.25, 5.0], 1.0, 0, 2, [2.0, 3.0]) - (2 * 0.0625 + 3 * 4.0)) < 1e-12
    for w in _groups(5):
        whole = loss(w, 0.5, 1, 2)
        assert abs(whole - sum(loss([x], 0.5, 1, 2) for x in w)) < 1e-9


def _search_is_never_worse_than_the_full_range(search: Callable) -> None:
    for bits in (2, 3):
        for w in _groups(bits + 20):
            weight = [0.5 + k for k in range(len(w))]
            (best, shrink), tried = search(w, bits, weight)
            assert best == min(tried)[0] <= tried[0][0] and len(tried) == 33 and 0.2 <= shrink <= 1
            s, z = fit(torch.tensor([w]), Grid(bits), "mse", torch.tensor(weight))
            W_hat = dequantize(quantize(torch.tensor([w]), s, z, Grid(bits)), s, z, Grid(bits))
            package = float(((W_hat - torch.tensor([w])).double() ** 2 * torch.tensor(weight).double()).sum())
            # The package also tries the other zero point; its step is a float16.
            assert package <= 1.01 * best + 1e-5 * sum(h * x * x for h, x in zip(weight, w, strict=True))


def _bits_are_those_of_the_papers(bits_of: Callable) -> None:
    assert bits_of(2, 64) == 2.28125 and bits_of(4, 128) == 4.15625


def _rtn_is_the_package(rtn: Callable) -> None:
    for seed, (bits, g, shape) in enumerate(
        [(2, 8, (3, 32)), (3, 16, (5, 16)), (4, 4, (2, 12)), (1, 5, (4, 10)), (8, 32, (2, 64))]
    ):
        W = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        W[0, :g] = 0
        s, z = fit(W, Grid(bits, g))
        assert torch.equal(rtn(W, bits, g), quantize(W, s, z, Grid(bits, g)).long())


PROPS |= {
    ("01_grids_and_bits", "ruler_naive"): _ruler_reaches_both_ends,
    ("01_grids_and_bits", "code_naive"): _code_is_the_nearest_mark,
    ("01_grids_and_bits", "loss_naive"): _loss_counts_every_weight,
    ("01_grids_and_bits", "search_naive"): _search_is_never_worse_than_the_full_range,
    ("01_grids_and_bits", "bits_naive"): _bits_are_those_of_the_papers,
    ("01_grids_and_bits", "rtn_naive"): _rtn_is_the_package,
}


# 02_packing


def _codes_for(bits: int, d_in: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, (1, d_in), generator=torch.Generator().manual_seed(d_in))


def _word_holds_its_codes(pack_word: Callable) -> None:
    for bits in (1, 2, 4, 8):
        codes = _codes_for(bits, 32 // bits)[0].tolist()
        word = pack_word(codes, bits)
        assert 0 <= word < 2**32
        assert [(word >> (bits * j)) & (2**bits - 1) for j in range(len(codes))] == codes


def _signed_is_the_same_bits(signed: Callable) -> None:
    for word in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 58704):
        assert signed(word) % 2**32 == word and -(2**31) <= signed(word) < 2**31


def _slices_cover_the_row(slices: Callable) -> None:
    for width in (1, 2, 4, 8):
        for d_in in (1, 15, 16, 100, 256, 1024, 1100, 2048, 5000, 11008):
            assert slices(d_in, width) == packing.slices(d_in, width)


def _planar_is_the_package(pack: Callable) -> None:
    for bits in range(1, 9):
        for d_in in (1, 16, 100, 256, 300, 1100, 2100):
            q = _codes_for(bits, d_in)
            assert pack(q[0].tolist(), bits) == packing.pack(q, bits)[0].tolist(), (bits, d_in)


def _unpacking_undoes_packing(unpack: Callable) -> None:
    for bits in range(1, 9):
        for d_in in (1, 16, 100, 256, 300, 1100):
            q = _codes_for(bits, d_in)
            assert unpack(packing.pack(q, bits)[0].tolist(), bits, d_in) == q[0].tolist(), (bits, d_in)


PROPS |= {
    ("02_packing", "word_naive"): _word_holds_its_codes,
    ("02_packing", "signed_naive"): _signed_is_the_same_bits,
    ("02_packing", "slices_naive"): _slices_cover_the_row,
    ("02_packing", "pack_naive"): _planar_is_the_package,
    ("02_packing", "unpack_naive"): _unpacking_undoes_packing,
}


# 03_hessians_and_feedback


def _layer(d: int, seed: int) -> tuple[Tensor, Tensor, float, float, int]:
    """A row, an H of correlated inputs, and a 2-bit ruler, all float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(d, dtype=torch.float64) + 0.4 * torch.randn(d, d, generator=g, dtype=torch.float64)
    X = torch.randn(6 * d, d, generator=g, dtype=torch.float64) @ mix
    w = torch.randn(d, generator=g, dtype=torch.float64)
    s, z = fit(w[None], Grid(2))
    return w, X.T @ X / len(X), float(s), float(z), 3


def _codes_of_package(w: Tensor, H: Tensor, s: float, z: float, q_max: int) -> Tensor:
    ruler = torch.tensor([[s]]), torch.tensor([[z]])
    rounder = AffineRounder(Grid(2), torch.arange(len(w)), 1, *ruler)
    feedback(w[None], H, rounder)
    return rounder.result()[0][0]


def _gives_package_codes(fn: Callable) -> None:
    for d, seed in ((1, 0), (2, 1), (7, 2), (32, 3)):
        row = _layer(d, seed)
        assert fn(*row).tolist() == _codes_of_package(*row).tolist()


def _factors(fn: Callable) -> None:
    for d, seed in ((1, 0), (2, 1), (20, 2)):
        H = _layer(d, seed)[1]
        V, D = fn(H)
        assert torch.allclose(V @ torch.diag(D) @ V.T, H, atol=1e-9) and (D > 0).all()
        assert torch.equal(V.tril(), torch.eye(d, dtype=V.dtype))
        assert torch.allclose(D, factor(H)[1], atol=1e-9)


def _is_best(fn: Callable) -> None:
    """No single code and no pair of codes can be changed for the better, and feedback is never better."""
    for d, seed in ((1, 0), (3, 1), (5, 2)):
        w, H, s, z, q_max = _layer(d, seed)

        def cost(q: Tensor, w: Tensor = w, H: Tensor = H, s: float = s, z: float = z) -> float:
            e = w - s * (q.double() - z)
            return float(e @ H @ e)

        best = fn(w, H, s, z, q_max)
        assert cost(best) <= cost(_codes_of_package(w, H, s, z, q_max)) + 1e-12
        for i, j in itertools.product(range(d), repeat=2):
            for a, b in itertools.product(range(q_max + 1), repeat=2):
                other = best.clone()
                other[i], other[j] = a, b
                assert cost(best) <= cost(other) + 1e-12


PROPS |= {
    ("03_hessians_and_feedback", "feedback_naive"): _gives_package_codes,
    ("03_hessians_and_feedback", "ldlq_naive"): _gives_package_codes,
    ("03_hessians_and_feedback", "factor_naive"): _factors,
    ("03_hessians_and_feedback", "best_naive"): _is_best,
}


def _output(fn: Callable) -> None:
    assert fn([1.0, 2.0], [3.0, -4.0]) == -5.0 and fn([0.5], [0.0]) == 0.0


def _nearest(fn: Callable) -> None:
    """The package's codes for one group, whatever its range."""
    generator = torch.Generator().manual_seed(0)
    for n, bits, shift in [(8, 2, 0.0), (5, 3, 2.0), (16, 4, -2.0), (3, 8, 0.0)]:
        W = torch.randn(1, n, generator=generator) + shift
        grid = Grid(bits, scale_dtype="float32")
        q, s, z = fn(W[0].tolist(), bits)
        s_p, z_p = fit(W, grid)
        assert q == quantize(W, s_p, z_p, grid)[0].tolist() and z == float(z_p) and abs(s - float(s_p)) < 1e-6 * s


def _kl(fn: Callable) -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    assert abs(fn(p, p)) < 1e-12 and abs(fn(p, q) - (0.5 * math.log(2) - 0.25 * math.log(2))) < 1e-12


def _perplexity(fn: Callable) -> None:
    """Four equally likely tokens: 4; a sure and right model: 1."""
    assert abs(fn([[math.log(0.25)] * 4] * 3, [0, 1, 3]) - 4) < 1e-9
    assert fn([[0.0, -9.0], [-9.0, 0.0], [-9.0, 0.0]], [1, 0, 1]) == 1.0


PROPS |= {
    ("00_start_here", "output_naive"): _output,
    ("00_start_here", "nearest_naive"): _nearest,
    ("00_start_here", "kl_naive"): _kl,
    ("00_start_here", "perplexity_naive"): _perplexity,
}


# 04_scaling_and_salient_channels


def _inputs(n: int, d: int, seed: int) -> Tensor:
    """Inputs of very different sizes, float64."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    return X * torch.exp(torch.randn(d, generator=g, dtype=torch.float64))


def _rounds_a_group_as_the_package(fn: Callable) -> None:
    for d, bits, shift in ((8, 2, 0.0), (5, 3, 2.0), (16, 4, -2.0), (3, 8, 0.0), (4, 2, 0.0)):
        W = torch.randn(1, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) + shift
        W = torch.zeros_like(W) if d == 4 else W
        grid = Grid(bits, scale_dtype="float32")
        q, w_hat = fn(W[0], bits)
        s, z = fit(W, grid)
        assert torch.equal(q.to(torch.uint8), quantize(W, s, z, grid)[0])
        assert torch.allclose(w_hat, dequantize(q.to(torch.uint8)[None], s, z, grid)[0].double(), atol=1e-5)


def _rounds_a_layer_as_the_package(fn: Callable) -> None:
    for seed, (bits, g, shape) in enumerate([(2, 8, (3, 32)), (3, 16, (5, 16)), (4, 4, (2, 12))]):
        W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        grid = Grid(bits, g, scale_dtype="float32")
        s, z = fit(W, grid)
        q, W_hat = fn(W, bits, g)
        assert torch.equal(q.to(torch.uint8), quantize(W, s, z, grid))
        assert torch.allclose(W_hat, dequantize(q.to(torch.uint8), s, z, grid).double(), atol=1e-5)


def _smooths_as_the_package(fn: Callable) -> None:
    for seed, alpha in enumerate((0.0, 0.3, 0.5, 1.0)):
        X, W = _inputs(20, 6, seed), _inputs(5, 6, seed + 10)
        f = fn(X, W, alpha)
        assert torch.allclose(f, smoothing(X.abs().amax(0), W.abs().amax(0), alpha))


def _one_channel_kept(fn: Callable) -> None:
    X, W, W_hat = _inputs(30, 7, 0), _inputs(4, 7, 1), _inputs(4, 7, 2)
    for i, left in enumerate(fn(X, W, W_hat)):
        kept = W_hat.clone()
        kept[:, i] = W[:, i]
        assert abs(left - float(((X @ W.T) - (X @ kept.T)).square().mean())) < 1e-9 * max(1, left)


def _searches_as_awq(fn: Callable) -> None:
    for bits, g, seed in ((2, 8, 0), (3, 16, 1), (4, 4, 2)):
        X, W = _inputs(60, 16, seed), torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)).double()
        alpha, losses = fn(X, W, bits, g)
        H = X.T @ X / len(X)
        assert len(losses) == 20 and alpha == losses.index(min(losses)) / 20
        for k, loss in enumerate(losses):
            f = salience(H.diagonal().sqrt(), k / 20)
            E = W - AffineWeight.nearest(W * f, Grid(bits, g, scale_dtype="float32")).dequantize() / f
            assert abs(loss * len(W) / float((E @ H * E).sum()) - 1) < 1e-4


def _clips_as_the_package(fn: Callable) -> None:
    for bits, seed in itertools.product((2, 3), range(4)):
        X, W = _inputs(50, 16, seed), torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)).double()
        loss, shrink, q = fn(W[0], X, bits)
        assert 0.2 <= shrink <= 1 and int(q.min()) >= 0 and int(q.max()) < 2**bits
        H = X.T @ X / len(X)
        E = W - AffineWeight.nearest(W, Grid(bits, scale_dtype="float32"), "mse", gram(H.float(), 16)).dequantize()
        assert abs(loss / float((E @ H * E).sum()) - 1) < 1e-3


PROPS |= {
    ("04_scaling_and_salient_channels", "round_naive"): _rounds_a_group_as_the_package,
    ("04_scaling_and_salient_channels", "rtn_naive"): _rounds_a_layer_as_the_package,
    ("04_scaling_and_salient_channels", "smoothing_naive"): _smooths_as_the_package,
    ("04_scaling_and_salient_channels", "salience_naive"): _one_channel_kept,
    ("04_scaling_and_salient_channels", "search_naive"): _searches_as_awq,
    ("04_scaling_and_salient_channels", "clip_naive"): _clips_as_the_package,
}


def _all_roundings(fn: Callable) -> None:
    """Every choice between the two marks, once, and nearest rounding among them."""
    generator = torch.Generator().manual_seed(0)
    for d, bits, shrink in [(1, 2, 1.0), (4, 2, 0.6), (6, 3, 0.8)]:
        grid = Grid(bits, scale_dtype="float32")
        W = torch.randn(1, d, generator=generator)
        s, z = fit(shrink * W, grid)
        got = fn(W[0], s[0], z[0], grid.q_max)
        base = torch.floor(W[0] / s[0] + z[0])
        choices = int((1 + (base.clamp(0, grid.q_max) != (base + 1).clamp(0, grid.q_max)).long()).prod())
        assert got.shape == (choices, d) == got.unique(dim=0).shape and got.min() >= 0 and got.max() <= grid.q_max
        assert ((got == base.clamp(0, grid.q_max)) | (got == (base + 1).clamp(0, grid.q_max))).all()
        assert (got == quantize(W, s, z, grid)[0]).all(1).any()


def _output_error(fn: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    X, w = torch.randn(50, 6, generator=generator), torch.randn(6, generator=generator)
    q = torch.randint(0, 4, (5, 6), generator=generator)
    want = ((w - 0.5 * (q - 1.0)) @ X.T).square().mean(1)
    assert torch.allclose(fn(q, w, X.T @ X / 50, 0.5, 1.0), want, atol=1e-4)
    assert torch.allclose(fn(q[2], w, X.T @ X / 50, 0.5, 1.0), want[2], atol=1e-4)


def _slides(fn: Callable) -> None:
    nu = torch.linspace(-6, 6, 101, dtype=torch.float64)
    assert torch.allclose(fn(nu), rectified_sigmoid(nu), atol=1e-12) and fn(nu)[0] == 0 and fn(nu)[-1] == 1


def _starts(fn: Callable) -> None:
    f = torch.tensor([0.0, 1e-7, 0.25, 0.5, 0.75, 1 - 1e-7], dtype=torch.float64)
    assert torch.isfinite(fn(f)).all() and torch.allclose(rectified_sigmoid(fn(f)), f, atol=1e-12)


def _penalises(fn: Callable) -> None:
    """Nothing at the ends, one in the middle, and flatter for a larger beta."""
    assert fn(torch.tensor([0.0, 1.0]), 3) == 0 and fn(torch.tensor([0.5, 0.5]), 2) == 2
    assert fn(torch.tensor([0.9]), 20) > fn(torch.tensor([0.9]), 2)


def _hardens(fn: Callable) -> None:
    """Exactly as many as asked for, the most decided, and none is taken back."""
    nu = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    hard = torch.zeros(5, 8, dtype=torch.bool)
    for n in (0, 3, 20, 20, 40):
        now = fn(nu, hard, n)
        score = (rectified_sigmoid(nu) - 0.5).abs()
        assert int(now.sum()) == n and not (hard & ~now).any()
        assert n in (0, 40) or score[now].min() >= score[~now].max()
        hard = now


def _learns_roundings(fn: Callable) -> None:
    """Neighbours of the weight only; without steps the nearest; with them less error than nearest."""
    generator = torch.Generator().manual_seed(0)
    grid = Grid(2, scale_dtype="float32")
    W, X = torch.randn(6, 16, generator=generator), torch.randn(200, 16, generator=generator)
    X = X + X[:, :1]
    H, (s, z) = X.T @ X / 200, fit(0.7 * W, grid)
    near = quantize(W, s, z, grid)
    q, k, masks = fn(W, s, z, H, 3, (0.0,), 0, 0.02, 0.002)
    assert torch.equal(q, near.float()) and torch.equal(k, torch.ones_like(k)) and masks[-1].all()
    q, k, masks = fn(W, s, z, H, 3, (0.8, 0.5, 0.2, 0.1), 20, 0.02, 0.002)
    base = torch.floor(W / s + z)
    assert ((q == base.clamp(0, 3)) | (q == (base + 1).clamp(0, 3))).all()
    assert [int(m.sum()) for m in masks] == [max(int(masks[0].sum()), round((1 - r) * 96)) for r in (0.8, 0.5, 0.2, 0.1)]

    def error(q: Tensor, s: Tensor) -> float:
        E = W - s * (q - z)
        return float((E @ H * E).sum())

    assert error(q, s * k) < 0.9 * error(near.float(), s)


PROPS |= {
    ("06_tesseraq", "roundings_naive"): _all_roundings,
    ("06_tesseraq", "cost_naive"): _output_error,
    ("06_tesseraq", "h_naive"): _slides,
    ("06_tesseraq", "start_naive"): _starts,
    ("06_tesseraq", "penalty_naive"): _penalises,
    ("06_tesseraq", "harden_naive"): _hardens,
    ("06_tesseraq", "par_naive"): _learns_roundings,
}


# 05_learned_clipping


def _rulers(seed: int, n: int = 20) -> list[tuple[Tensor, float, int, int]]:
    """Weights of one group with a step, a zero point and the largest code."""
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    return [(torch.randn(draw.randint(2, 30), generator=g, dtype=torch.float64), draw.uniform(0.2, 1.2),
             draw.randint(0, q_max), q_max) for q_max in (1, 3, 7) for _ in range(n)]


def _codes_are_the_grids(fn: Callable) -> None:
    for w, s, z, q_max in _rulers(0):
        q, inside = fn(w, s, z, q_max)
        bits = q_max.bit_length()
        step, zero = (torch.tensor([[x]], dtype=torch.float64) for x in (s, z))
        assert torch.equal(q[None].to(torch.uint8), quantize(w[None], step, zero, Grid(bits)))
        assert torch.equal(inside, (torch.round(w / s) + z - q).abs() < 0.5)


def _slope_is_autograds(fn: Callable) -> None:
    for w, s, z, q_max in _rulers(1):
        step = torch.tensor(s, dtype=torch.float64, requires_grad=True)
        t = w / step
        w_hat = step * ((t + (t.round() - t).detach() + z).clamp(0, q_max) - z)
        want = torch.stack([torch.autograd.grad(x, step, retain_graph=True)[0] for x in w_hat])
        assert torch.allclose(fn(w, s, z, q_max), want, atol=1e-12)


def _shares_of_the_range(fn: Callable) -> None:
    for seed in range(10):
        w = torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = torch.tensor([40.0, 40.0], dtype=torch.float64)
        s, z, lo, hi = fn(w, low, high, 3)
        step, zero = fit(w[None], Grid(2, scale_dtype="float32"))
        assert abs(float(s - step)) < 1e-6 and int(z) == int(zero)
        s_half, _, lo_half, hi_half = fn(w, 0 * low, 0 * high, 3)
        assert torch.allclose(torch.stack([2 * s_half, 2 * lo_half, 2 * hi_half]), torch.stack([s, lo, hi]))


def _pushes_like_the_package(fn: Callable) -> None:
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        w, G = torch.randn(2, 24, generator=g)
        ends = LearnedClip(w[None], Grid(3), 0.8)
        (ends.weight() * G).sum().backward()
        got = fn(w.double(), G.double(), ends.low.detach()[0, 0].double(), ends.high.detach()[0, 0].double(), 7)
        assert abs(float(got[0] - ends.low.grad)) < 1e-4 and abs(float(got[1] - ends.high.grad)) < 1e-4


def _steps_like_adam(fn: Callable) -> None:
    p = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimiser, mine, memory = torch.optim.Adam([p], lr=0.05), p.detach().clone(), {"t": 0, "m": 0.0, "v": 0.0}
    for slope in (1.0, -0.2, 1e-3, 0.0, 5.0):
        p.grad = torch.tensor(slope, dtype=torch.float64)
        optimiser.step()
        mine = fn(mine, p.grad.clone(), memory, 0.05)
        assert abs(float(mine - p.detach())) < 1e-9


def _learns_ends(fn: Callable) -> None:
    """The first loss is that of nearest rounding; a moderate reach gains; the ends move no farther than they can."""
    for seed, g in ((0, 8), (1, 16)):
        generator = torch.Generator().manual_seed(seed)
        W = torch.randn(2, 16, generator=generator, dtype=torch.float64)
        story = fn(W, torch.eye(16, dtype=torch.float64), g, 3, 40.0, 0.1, 3)
        s, z = fit(W, Grid(2, g, scale_dtype="float32"))
        W_hat = dequantize(quantize(W, s.double(), z.double(), Grid(2, g)), s, z, Grid(2, g)).double()
        assert len(story) == 3 and abs(float(story[0][0] - (W - W_hat).square().sum())) < 1e-4
        ends = fn(W, torch.eye(16, dtype=torch.float64), g, 3, 4.0, 0.1, 3)[-1][1]
        assert ends.shape == (32 // g, 2) and (ends - 4).abs().max() < 0.31


def _lays_whole_rulers(fn: Callable) -> None:
    for seed, g in ((0, 4), (1, 8), (2, 16)):
        W = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        s, z = fit(W, Grid(2, g, scale_dtype="float32"))
        assert (fn(W, g, 3) != quantize(W, s.double(), z.double(), Grid(2, g))).float().mean() < 0.05


def _turns_pairs(fn: Callable) -> None:
    """Lengths of pairs stay; a product depends on the distance alone; position 0 changes nothing."""
    for seed, d in ((0, 2), (1, 4), (2, 8)):
        q, k = torch.randn(2, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert torch.equal(fn(q, 0), q)
        turned = fn(q, 3)
        assert torch.allclose(turned[: d // 2] ** 2 + turned[d // 2 :] ** 2, q[: d // 2] ** 2 + q[d // 2 :] ** 2)
        assert abs(float(fn(q, 3) @ fn(k, 7) - fn(q, 10) @ fn(k, 14))) < 1e-9


PROPS |= {
    ("05_learned_clipping", "code_naive"): _codes_are_the_grids,
    ("05_learned_clipping", "slope_naive"): _slope_is_autograds,
    ("05_learned_clipping", "ruler_naive"): _shares_of_the_range,
    ("05_learned_clipping", "push_naive"): _pushes_like_the_package,
    ("05_learned_clipping", "adam_naive"): _steps_like_adam,
    ("05_learned_clipping", "learn_naive"): _learns_ends,
    ("05_learned_clipping", "codes_naive"): _lays_whole_rulers,
    ("05_learned_clipping", "rotate_naive"): _turns_pairs,
}


# 07_output_adaptive_hessians


def _heard(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and output gradients of a few sequences, of sizes that depend on the seed."""
    g = torch.Generator().manual_seed(seed)
    N, T, d_in, d_out = (int(torch.randint(1, top, (), generator=g)) for top in (5, 6, 5, 6))
    make = [torch.randn(N, T, d, generator=g, dtype=torch.float64) for d in (d_in, d_out)]
    return make[0], make[1]


def _squares(X: Tensor, A: Tensor) -> Tensor:
    G = torch.einsum("rti,rtj->rij", A, X)
    return torch.einsum("rij,rik->jk", G, G) / len(X)


def _gradients_are_autograds(fn: Callable) -> None:
    for seed in range(10):
        X, A = _heard(seed)
        for x, a, G in zip(X, A, fn(X, A), strict=True):
            W = torch.zeros(A.shape[2], X.shape[2], dtype=torch.float64, requires_grad=True)
            (a * (x @ W.T)).sum().backward()
            assert torch.allclose(G, W.grad, atol=1e-12)


def _fisher_is_the_hessian(fn: Callable) -> None:
    for seed in range(5):
        X, A = _heard(seed)
        W = torch.randn(A.shape[2], X.shape[2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        curvature = torch.func.hessian(lambda W, x=X[0]: (x @ W.T).logsumexp(-1).sum())(W)
        assert torch.allclose(fn(X[0], (X[0] @ W.T).softmax(-1)), curvature.reshape(W.numel(), W.numel()), atol=1e-10)


def _one_square_a_sequence(fn: Callable) -> None:
    for seed in range(10):
        X, A = _heard(seed)
        assert torch.allclose(fn(X, A), _squares(X, A), atol=1e-10)


def _whole_matrix(fn: Callable) -> None:
    for seed in range(10):
        X, A = _heard(seed)
        m, n = A.shape[2], X.shape[2]
        full = fn(X, A).reshape(m, n, m, n)
        assert torch.allclose(torch.einsum("ijik->jk", full), _squares(X, A), atol=1e-10)
        assert torch.allclose(full.permute(2, 3, 0, 1), full) and torch.linalg.matrix_rank(full.reshape(m * n, -1)) <= len(X)


def _averages_first(fn: Callable) -> None:
    """What the mistake does: nothing with one sequence a batch; gradients of a batch cancel."""
    for seed in range(10):
        X, A = _heard(seed)
        assert torch.allclose(fn(X, A, 1), _squares(X, A), atol=1e-10)
        assert float(fn(X.repeat(2, 1, 1), torch.cat([A, -A]), 2 * len(X)).abs().max()) < 1e-10


def _tokens_stand_alone(fn: Callable) -> None:
    for seed in range(10):
        X, A = _heard(seed)
        alone = _squares(X.flatten(0, 1)[:, None], A.flatten(0, 1)[:, None]) * X.shape[1]
        assert torch.allclose(fn(X, A), alone, atol=1e-10)


def _right_on_average(fn: Callable) -> None:
    for seed in range(3):
        X, A = _heard(seed)
        g = torch.Generator().manual_seed(seed)
        draws = [fn(X, A, 4, g) for _ in range(2000)]
        want = _squares(X, A)
        assert float((sum(draws) / 2000 - want).norm()) < 0.1 * float(want.norm())
        assert int(torch.linalg.matrix_rank(fn(X[:1], A[:1], 1, g))) <= 1


def _shift_makes_up(fn: Callable) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        X, noise = torch.randn(2, 40, 5, generator=g, dtype=torch.float64)
        W, X_hat = torch.randn(3, 5, generator=g, dtype=torch.float64), X + 0.3 * noise
        left = X @ W.T - X_hat @ fn(W, X, X_hat, 0.0).T
        assert (X_hat.T @ left).abs().max() < 1e-9  # nothing that these inputs could still explain
        H, C = X_hat.T @ X_hat / 40, (X - X_hat).T @ X_hat / 40
        found, strength = shifted(W, Mismatch(torch.stack([H, H]), torch.stack([C, C])), 0.1)
        assert torch.allclose(found, W + strength * (fn(W, X, X_hat, 0.1) - W), atol=1e-9)


PROPS |= {
    ("07_output_adaptive_hessians", "gradients_naive"): _gradients_are_autograds,
    ("07_output_adaptive_hessians", "fisher_naive"): _fisher_is_the_hessian,
    ("07_output_adaptive_hessians", "oac_hessian_naive"): _one_square_a_sequence,
    ("07_output_adaptive_hessians", "gram_naive"): _one_square_a_sequence,
    ("07_output_adaptive_hessians", "brute_force_naive"): _whole_matrix,
    ("07_output_adaptive_hessians", "batch_averaged_naive"): _averages_first,
    ("07_output_adaptive_hessians", "tokens_hessian_naive"): _tokens_stand_alone,
    ("07_output_adaptive_hessians", "sketch_naive"): _right_on_average,
    ("07_output_adaptive_hessians", "shifted_naive"): _shift_makes_up,
}


# 08_outliers_spqr


def _metric_of(d: int, seed: int) -> Tensor:
    """A well-conditioned H of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(d, dtype=torch.float64) + 0.4 * torch.randn(d, d, generator=g, dtype=torch.float64)
    X = torch.randn(8 * d, d, generator=g, dtype=torch.float64) @ mix
    return X.T @ X / len(X)


def _prices_are_the_factors(fn: Callable) -> None:
    for d in (1, 3, 8, 20):
        H = _metric_of(d, d)
        assert torch.allclose(fn(H), factor(H)[1], rtol=1e-8)


def _dear_is_relative(fn: Callable) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        W, D = torch.randn(9, 6, generator=g, dtype=torch.float64), torch.rand(6, generator=g, dtype=torch.float64)
        W_hat = W.round()
        tau = float((W.var(0) * D).mean())
        assert torch.equal(fn(W, W_hat, D, 0.3), D * (W - W_hat) ** 2 > 0.3 * tau)
        assert not fn(W, W_hat, D, math.inf).any() and bool((fn(W, W_hat, D, 0.0) == (W != W_hat)).all())


def _some_group(seed: int, g: int) -> tuple[list[float], list[float]]:
    draw = torch.Generator().manual_seed(seed)
    w, cost = torch.randn(g, generator=draw, dtype=torch.float64), torch.rand(g, generator=draw, dtype=torch.float64)
    return w.tolist(), cost.tolist()


def _errors_of_a_ruler(fn: Callable) -> None:
    for seed in range(20):
        w, cost = _some_group(seed, 8)
        marks = torch.linspace(min(w), max(w), 4, dtype=torch.float64)
        want = [c * float((marks - x).square().min()) for x, c in zip(w, cost, strict=True)]
        assert torch.allclose(torch.tensor(fn(w, min(w), max(w), cost, 3)), torch.tensor(want))
    assert fn([0.5, 0.5], 0.5, 0.5, [1.0, 1.0], 3) == [0.0, 0.0]


def _leaves_the_others(fn: Callable) -> None:
    for seed in range(10):
        w, cost = _some_group(seed, 7)
        for i in range(7):
            rest = [(x, c) for k, (x, c) in enumerate(zip(w, cost, strict=True)) if k != i]
            marks = torch.linspace(min(rest)[0], max(rest)[0], 8, dtype=torch.float64)
            assert abs(fn(w, i, cost, 7) - sum(c * float((marks - x).square().min()) for x, c in rest)) < 1e-12


def _gains_of_the_package(fn: Callable) -> None:
    for seed in range(20):
        for g, q_max in ((3, 3), (16, 7)):
            w, cost = _some_group(seed, g)
            want = leave_one_out(torch.tensor([w], dtype=torch.float64), torch.tensor(cost, dtype=torch.float64), q_max)[0]
            assert torch.allclose(torch.tensor(fn(w, cost, q_max), dtype=torch.float64), want, atol=1e-10)


def _bits_on_disk(fn: Callable) -> None:
    W, one = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), torch.eye(128)
    for b, g, rows in ((3, 16, 16), (2, 32, 64), (4, 64, 32)):
        grid = Grid(b, group=g, zero_inside=False)
        stored, _ = SpQR(grid, Second(3, 3, rows), math.inf).quantize_layer(W, one)
        assert abs(fn(b, g, rows) - stored.base.bits().per_weight) < 1e-9
        assert abs(fn(b, g) - AffineWeight.nearest(W, grid).bits().per_weight) < 1e-9


def _codes_of_codes(fn: Callable) -> None:
    for seed, rows in ((0, 16), (1, 4), (2, 8)):
        x = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        want = Coded.of(x[:, None], 3, rows)
        codes, values = fn(x.tolist(), 3, rows)
        assert codes == want.code[:, 0].tolist() and torch.allclose(torch.tensor(values), want.value()[:, 0], atol=1e-6)
    assert fn([2.0] * 8, 3, 8) == ([0] * 8, [2.0] * 8)


def _compressed_rows(fn: Callable) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        kept = torch.randn(6, 9, generator=g).masked_fill(torch.rand(6, 9, generator=g) < 0.7, 0.0)
        ptr, cols, values = fn(kept)
        assert ptr[0] == 0 and len(ptr) == 7 and len(cols) == len(values) == ptr[-1] == int((kept != 0).sum())
        rows = [i for i in range(6) for _ in range(ptr[i + 1] - ptr[i])]
        assert torch.equal(kept, torch.zeros(6, 9).index_put_((torch.tensor(rows), torch.tensor(cols)), torch.tensor(values)))


def _ends_of_the_insiders(fn: Callable) -> None:
    assert fn([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 3.0], [1.0] * 8, 3, 0.5) == (0.0, 0.6)
    for seed in range(20):
        w, cost = _some_group(seed, 16)
        gains = leave_one_out(torch.tensor([w], dtype=torch.float64), torch.tensor(cost, dtype=torch.float64), 7)[0]
        inside = [x for x, gain in zip(w, gains.tolist(), strict=True) if gain <= 0.1]
        assert fn(w, cost, 7, 0.1) == (min(inside), max(inside)) and fn(w, cost, 7, math.inf) == (min(w), max(w))


def _rounds_like_spqr(fn: Callable) -> None:
    sizes = ((16, 32, 3, 16, 16, 0.2), (8, 24, 4, 8, 4, 0.1), (32, 32, 3, 32, 8, math.inf))
    for d_out, d_in, bits, g, rows, threshold in sizes:
        H, W = _metric_of(d_in, d_in), torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(d_out)).double()
        method = SpQR(Grid(bits, group=g, zero_inside=False), Second(3, 3, rows), threshold, order="natural", damp=0.0)
        stored, _ = method.quantize_layer(W, H)
        codes, kept, W_hat = fn(W, H, bits, g, rows, threshold)
        assert torch.equal(codes.to(torch.uint8), stored.base.q) and int((kept != 0).sum()) == len(stored.values)
        assert torch.allclose(W_hat, stored.dequantize().double(), atol=1e-4)


PROPS |= {
    ("08_outliers_spqr", "prices_naive"): _prices_are_the_factors,
    ("08_outliers_spqr", "dear_naive"): _dear_is_relative,
    ("08_outliers_spqr", "errors_naive"): _errors_of_a_ruler,
    ("08_outliers_spqr", "without_naive"): _leaves_the_others,
    ("08_outliers_spqr", "leave_one_out_naive"): _gains_of_the_package,
    ("08_outliers_spqr", "two_refits_naive"): _gains_of_the_package,
    ("08_outliers_spqr", "bits_naive"): _bits_on_disk,
    ("08_outliers_spqr", "bilevel_naive"): _codes_of_codes,
    ("08_outliers_spqr", "csr_naive"): _compressed_rows,
    ("08_outliers_spqr", "ends_naive"): _ends_of_the_insiders,
    ("08_outliers_spqr", "spqr_naive"): _rounds_like_spqr,
}


# 12_vptq


def _vptq_layer(seed: int, d_out: int, d_in: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(6 * d_in, d_in, generator=g, dtype=torch.float64) * torch.exp(torch.randn(d_in, generator=g).double())
    return torch.randn(d_out, d_in, generator=g, dtype=torch.float64), X.T @ X / len(X)


def _vptq_error(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    return float((((W - W_hat) @ H) * (W - W_hat)).sum())


def _pieces_of_a_column(fn: Callable) -> None:
    for d_out, v in ((8, 4), (7, 3), (5, 1), (2, 6)):
        W = torch.randn(d_out, 3, generator=torch.Generator().manual_seed(d_out), dtype=torch.float64)
        assert [piece for column in W.T for piece in fn(column, v)] == codebooks.pieces(W.T, v).tolist()


def _nearest_of_the_package(fn: Callable) -> None:
    g = torch.Generator().manual_seed(0)
    P, C = torch.randn(50, 3, generator=g, dtype=torch.float64), torch.randn(7, 3, generator=g, dtype=torch.float64)
    assert [fn(piece, C) for piece in P.tolist()] == nearest_vector(P, C).tolist()
    assert fn([0.0, 0.0], torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 0  # of equal ones the first


def _vectors_with_feedback(fn: Callable) -> None:
    """Integers of the package, its exact cost, and one codebook or several."""
    for seed, (d_out, d_in, v) in enumerate(((16, 12, 4), (13, 9, 4), (12, 10, 1))):
        W, H = _vptq_layer(seed, d_out, d_in)
        method = VPTQ(codebooks.Codebook(v, 8), "none", refine=0, order="natural", damp=0.0)
        stored, _ = method.quantize_layer(W, H)
        idx, W_hat = fn(W, H, [stored.main.C[0].double()] * d_in)
        assert torch.equal(torch.tensor(idx).T.to(torch.int32), stored.main.idx)
        assert torch.allclose(W_hat, stored.dequantize().double(), atol=1e-6)
    fine, coarse = torch.tensor([[0.0], [1.0], [2.0]]).double(), torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double()
    idx, W_hat = fn(torch.ones(4, 2).double(), torch.eye(2).double(), [fine, coarse])
    assert idx[0] == [1, 1, 1, 1] and len(idx[1]) == 2 and bool((W_hat[:, 0] == 1).all())


def _vptq_prices(fn: Callable) -> None:
    for seed, d in enumerate((2, 5, 12)):
        _, H = _vptq_layer(seed, 1, d)
        U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
        assert torch.allclose(fn(H), 1 / U.diagonal().square(), rtol=1e-8)


def _lloyd_steps(fn: Callable) -> None:
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x, w = torch.randn(200, 3, generator=g, dtype=torch.float64), torch.rand(200, generator=g, dtype=torch.float64)
        C, inertia = fn(x, w, x[:8], 6)
        want = kmeans(x, w, 8, start=x[:8], iterations=6, tol=0.0, generator=g)
        assert torch.allclose(C, want.C) and torch.allclose(torch.tensor(inertia), torch.tensor(want.inertia[:6]))


def _columns_of_one_scale(fn: Callable) -> None:
    for seed in range(5):
        W, H = _vptq_layer(seed, 20, 6)
        unit, metric, s = fn(W, H)
        E = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert torch.allclose(unit * s, W) and torch.allclose(unit.square().mean(0), torch.ones(6).double())
        assert math.isclose(_vptq_error(E, 0 * E, metric), _vptq_error(E * s, 0 * E, H), rel_tol=1e-9)


def _pair_of_vectors(fn: Callable, joint: bool) -> None:
    g = torch.Generator().manual_seed(0)
    C, C_res = torch.randn(5, 2, generator=g, dtype=torch.float64), 0.4 * torch.randn(3, 2, generator=g, dtype=torch.float64)
    every = C[:, None] + C_res
    for piece in torch.randn(60, 2, generator=g, dtype=torch.float64):
        distance = (every - piece).square().sum(2)
        first = int((C - piece).square().sum(1).argmin())
        want = divmod(int(distance.argmin()), 3) if joint else (first, int(distance[first].argmin()))
        assert tuple(fn(piece.tolist(), C, C_res)) == want


def _parts_of_the_package(fn: Callable) -> None:
    for seed in range(5):
        h = torch.rand(20, generator=torch.Generator().manual_seed(seed))
        assert fn(h.tolist(), 3) == codebooks.Codebook(outliers=0.15).labels(h).tolist()


def _vptq_pair(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, H = _vptq_layer(seed, 12, 10)
    g = torch.Generator().manual_seed(seed)
    return W, H, torch.randint(0, 5, (10, 3), generator=g), torch.randn(6, 4, generator=g, dtype=torch.float64)


def _refitted_vectors(fn: Callable) -> None:
    """The best: no small step lowers the error; a vector that nobody uses stays."""
    for seed in range(5):
        W, H, idx, C = _vptq_pair(seed)
        found = fn(W, H, idx.tolist(), C)
        free = found.clone().requires_grad_()
        W_hat = free[idx].flatten(1).T
        slope = torch.autograd.grad((((W - W_hat) @ H) * (W - W_hat)).sum(), free)[0]
        assert float(slope.abs().max()) < 1e-6 * float(H.trace()) and torch.equal(found[5], C[5])


def _reassigned_pieces(fn: Callable) -> None:
    for seed in range(5):
        W, H, idx, C = _vptq_pair(seed)
        before = [column[:] for column in idx.tolist()]
        given = [column[:] for column in before]
        errors = [_vptq_error(W, C[idx].flatten(1).T, H)]
        for _ in range(8):
            given = fn(W, H, given, C)
            errors.append(_vptq_error(W, C[torch.tensor(given)].flatten(1).T, H))
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(errors)) and errors[1] < errors[0]
        assert fn(W, H, given, C) == given or errors[-1] < errors[1] and before == idx.tolist()


def _vptq_bits(fn: Callable) -> None:
    for d_out, d_in, v, b, b_res in ((256, 256, 4, 8, 0), (4096, 4096, 6, 12, 0), (50, 64, 12, 12, 8)):
        want = codebooks.Codebook(v, 2**b, 2**b_res if b_res else 0).size(d_out, d_in, norm_bits=16).per_weight
        assert math.isclose(sum(fn(d_out, d_in, v, b, b_res)), want, rel_tol=1e-12)


PROPS |= {
    ("12_vptq", "pieces_naive"): _pieces_of_a_column,
    ("12_vptq", "nearest_naive"): _nearest_of_the_package,
    ("12_vptq", "vptq_naive"): _vectors_with_feedback,
    ("12_vptq", "prices_naive"): _vptq_prices,
    ("12_vptq", "kmeans_naive"): _lloyd_steps,
    ("12_vptq", "std_naive"): _columns_of_one_scale,
    ("12_vptq", "greedy_naive"): lambda fn: _pair_of_vectors(fn, joint=False),
    ("12_vptq", "jointly_naive"): lambda fn: _pair_of_vectors(fn, joint=True),
    ("12_vptq", "parts_naive"): _parts_of_the_package,
    ("12_vptq", "fit_naive"): _refitted_vectors,
    ("12_vptq", "reassign_naive"): _reassigned_pieces,
    ("12_vptq", "bits_naive"): _vptq_bits,
}


# 11_codebooks


def _vectors(seed: int, n: int, v: int) -> list[list[float]]:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


def _is_squared_length(fn: Callable) -> None:
    for seed, v in ((0, 1), (1, 2), (2, 9)):
        x, c = _vectors(seed, 2, v)
        want = float((torch.tensor(x, dtype=torch.float64) - torch.tensor(c, dtype=torch.float64)).square().sum())
        assert abs(fn(x, c) - want) < 1e-12 and fn(x, x) == 0
    assert fn([1.0, 2.0], [4.0, 6.0]) == 25.0


def _nearest_by_cdist(fn: Callable) -> None:
    for seed, v, k in ((0, 1, 4), (1, 2, 16), (2, 5, 30)):
        points, C = _vectors(seed, 40, v), _vectors(seed + 50, k, v)
        distances = torch.cdist(torch.tensor(points, dtype=torch.float64), torch.tensor(C, dtype=torch.float64))
        assert [fn(x, C) for x in points] == distances.argmin(1).tolist()
    assert fn([1.0], [[0.0], [2.0]]) == 0  # of equal ones the first


def _means_are_least(fn: Callable) -> None:
    for seed, v, k in ((0, 1, 3), (1, 3, 6)):
        points, C, draw = _vectors(seed, 30, v), _vectors(seed + 9, k, v), random.Random(seed)
        weights, idx = [draw.random() for _ in points], [draw.randrange(k - 1) for _ in points]
        new = fn(points, weights, idx, C)
        assert new[k - 1] == C[k - 1]  # no points: stays
        pull = [[0.0] * v for _ in C]  # the derivative of the weighted error
        for x, w, i in zip(points, weights, idx, strict=True):
            pull[i] = [p + w * (a - b) for p, a, b in zip(pull[i], x, new[i], strict=True)]
        assert all(abs(p) < 1e-9 for row in pull for p in row)
        assert fn(points, [0.0] * 30, idx, C) == C


def _weighted_error(fn: Callable) -> None:
    assert fn([[1.0], [5.0]], [2.0, 3.0], [[0.0], [4.0]], [0, 1]) == 5.0
    points, C = _vectors(3, 20, 4), _vectors(4, 5, 4)
    idx, weights = [i % 5 for i in range(20)], [0.1 * i for i in range(20)]
    E = torch.tensor(points, dtype=torch.float64) - torch.tensor(C, dtype=torch.float64)[idx]
    want = float((E.square().sum(1) * torch.tensor(weights, dtype=torch.float64)).sum())
    assert abs(fn(points, weights, C, idx) - want) < 1e-9


def _steps_of_lloyd(fn: Callable) -> None:
    from lowbit_nb.codebooks.kmeans import kmeans, nearest

    for seed, n, v, k in ((0, 80, 1, 5), (1, 120, 2, 9), (2, 60, 4, 7)):
        draw = torch.Generator().manual_seed(seed)
        x, w = torch.randn(n, v, generator=draw, dtype=torch.float64), torch.rand(n, generator=draw, dtype=torch.float64)
        found = kmeans(x, w, k, generator=draw, start=x[:k], iterations=8, tol=0.0)
        C, idx, errors = fn(x.tolist(), w.tolist(), x[:k].tolist(), len(found.inertia) - 1)
        assert torch.allclose(torch.tensor(C, dtype=torch.float64), found.C, atol=1e-6)
        assert torch.allclose(torch.tensor(errors[::2]), torch.tensor(found.inertia), atol=1e-6)
        assert idx == nearest(x, found.C).tolist()
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(errors))


def _one_after_the_other(fn: Callable) -> None:
    from lowbit_nb.codebooks.kmeans import nearest

    for seed, v in ((0, 1), (1, 3)):
        x, A, B = (torch.tensor(_vectors(seed + at, n, v), dtype=torch.float64) for at, n in ((0, 40), (10, 6), (20, 9)))
        first = nearest(x, A)
        want = list(zip(first.tolist(), nearest(x - A[first], B).tolist(), strict=True))
        assert [tuple(fn(p, A.tolist(), B.tolist())) for p in x.tolist()] == want


def _bits_of_a_list(fn: Callable) -> None:
    from lowbit_nb.codebooks.codebook import Codebook

    for shape in ((64, 128), (100, 32), (33, 7), (4096, 11008)):
        for v, k, k_res in ((2, 16, 0), (4, 256, 0), (8, 4096, 256), (6, 64, 2)):
            assert abs(fn(*shape, v, k, k_res) - Codebook(v, k, k_res).size(*shape).per_weight) < 1e-9
        assert fn(*shape, 4, 256) == fn(*shape, 4, 256, 0)


def _entropy_in_bits(fn: Callable) -> None:
    assert fn([1] * 8) == 3 and fn([7]) == 0 and fn([2, 1, 1, 0]) == 1.5
    for seed in range(5):
        counts = torch.randint(0, 50, (12,), generator=torch.Generator().manual_seed(seed)) + 1
        want = float(torch.distributions.Categorical(counts.double()).entropy()) / math.log(2)
        assert abs(fn(counts.tolist()) - want) < 1e-9 and fn((3 * counts).tolist()) <= math.log2(12)


PROPS |= {
    ("11_codebooks", "distance_naive"): _is_squared_length,
    ("11_codebooks", "nearest_naive"): _nearest_by_cdist,
    ("11_codebooks", "means_naive"): _means_are_least,
    ("11_codebooks", "error_naive"): _weighted_error,
    ("11_codebooks", "kmeans_naive"): _steps_of_lloyd,
    ("11_codebooks", "residual_naive"): _one_after_the_other,
    ("11_codebooks", "bits_naive"): _bits_of_a_list,
    ("11_codebooks", "entropy_naive"): _entropy_in_bits,
}


# 10_ptq161


def _ptq_layer(seed: int, d_out: int = 7, d_in: int = 24, n_high: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, a mask of channels, and H of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=g, dtype=torch.float64) + 0.2
    return W, channels.salient_channels(torch.rand(d_in, generator=g), n_high), _ptq_metric(d_in, seed)


def _ptq_metric(d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(8 * d, d, generator=g, dtype=torch.float64)
    X = X @ (torch.eye(d, dtype=torch.float64) + 0.4 * torch.randn(d, d, generator=g, dtype=torch.float64))
    return X.T @ X / len(X)


def _ptq_count(fn: Callable) -> None:
    for d_in, share, align in itertools.product((16, 100, 256, 4096, 11008), (0.01, 0.2, 0.5), (1, 8, 32)):
        assert fn(d_in, share, align) == channels.salient_count(d_in, share, align)


def _ptq_mask(fn: Callable) -> None:
    for seed in range(5):
        X = torch.randn(20, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).round(decimals=1)
        want = channels.salient_channels(X.abs().amax(0), channels.salient_count(24, 0.3, 4))
        assert torch.equal(fn(X, 0.3, 4), want)


def _ptq_bits(fn: Callable) -> None:
    for d_out, d_in, n_high in ((64, 128, 32), (96, 64, 32), (32, 256, 64)):
        W, salient, _ = _ptq_layer(d_out, d_out, d_in, n_high)
        a, mu, v = signfit.start_scales(W[:, ~salient].float(), "weight")
        low = SignWeight.of(W[:, ~salient] >= 0, a[:, None], mu[:, None], v)
        whole = MixedWeight.of(salient, AffineWeight.nearest(W[:, salient], Grid(4)), low)
        assert math.isclose(sum(fn(d_out, d_in, n_high).values()), whole.bits().per_weight, rel_tol=1e-12)


def _ptq_ruler(fn: Callable) -> None:
    for bits in (2, 4):
        for row in torch.randn(20, 9, generator=torch.Generator().manual_seed(bits)).tolist():
            want = AffineWeight.nearest(torch.tensor([row]), Grid(bits)).dequantize()[0]
            assert torch.allclose(torch.tensor(fn(row, bits)), want, atol=1e-5)


def _ptq_mixed(fn: Callable) -> None:
    for seed in range(5):
        W, salient, _ = _ptq_layer(seed)
        u, v = (torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5 for n in W.shape)
        low = W[:, ~salient]
        a, mu, _ = signfit.start_scales(low, "mean")
        learn = ScaledSigns(salient, AffineWeight.nearest(W[:, salient], Grid(4)), low >= mu[:, None], a, mu, v[~salient])
        learn.row.data.copy_(u)
        assert torch.allclose(fn(W, salient, u, v).float(), learn.weight().detach(), atol=1e-5)


def _ptq_rank_one(fn: Callable) -> None:
    for seed in range(5):
        A = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3
        u, v = fn(A)
        left, size, right = torch.linalg.svd(A)
        assert torch.allclose(torch.outer(u, v), size[0] * torch.outer(left[:, 0], right[0]), atol=1e-8)
        assert math.isclose(float(v.mean()), 1.0, rel_tol=1e-9)


def _ptq_output_start(fn: Callable) -> None:
    for seed in range(4):
        W, _, H = _ptq_layer(seed, 6, 12, 1)
        B, v = torch.where(W >= 0, 1.0, -1.0).double(), torch.ones(12, dtype=torch.float64)
        for rounds in (0, 1, 3):
            ours, theirs = (v * (a[:, None] * B + mu[:, None]) for a, mu, v in
                            (fn(B, v, H, W @ H, rounds), signfit.fit_to_output(B, v, H, W @ H, rounds)))
            assert torch.allclose(ours, theirs.double(), atol=1e-3)


def _ptq_angle(fn: Callable) -> None:
    for seed in range(5):
        Y, T = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for other in (Y, T + 0.3 * Y, -T + 0.3 * Y):
            assert math.isclose(fn(other, T), float(nlc(other[None], T[None])), rel_tol=1e-4, abs_tol=1e-5)


def _ptq_scales(seed: int) -> tuple[Tensor, ...]:
    """Inputs, salient weights, signs, level, mean, factors, and a gradient of outputs."""
    g = torch.Generator().manual_seed(seed)
    x, W_high, B, a, mu, v, G = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in
                                 ((10, 12), (5, 4), (5, 8), (5,), (5,), (8,), (10, 5)))
    return x, W_high, torch.where(B >= 0, 1.0, -1.0).double(), a, mu, v, G


def _ptq_factored(fn: Callable) -> None:
    for seed in range(5):
        x, W_high, B, a, mu, v, _ = _ptq_scales(seed)
        want = x @ torch.cat([W_high, v * (a[:, None] * B + mu[:, None])], 1).T
        assert torch.allclose(fn(x, W_high, B, a, mu, v), want)


def _ptq_gradients(fn: Callable) -> None:
    for seed in range(5):
        x, W_high, B, a, mu, v, G = _ptq_scales(seed)
        leaves = [t.clone().requires_grad_() for t in (a, mu, v, x)]
        y = signlinear.sign_product(leaves[3], W_high, B, *leaves[:3])
        want = torch.autograd.grad(y, leaves, G)
        for ours, theirs in zip(fn(x[:, 4:], G, B, a, mu, v), (*want[:3], want[3][:, 4:]), strict=True):
            assert torch.allclose(ours, theirs)


PROPS |= {
    ("10_ptq161", "count_naive"): _ptq_count,
    ("10_ptq161", "salient_naive"): _ptq_mask,
    ("10_ptq161", "bits_naive"): _ptq_bits,
    ("10_ptq161", "grid_naive"): _ptq_ruler,
    ("10_ptq161", "mixed_naive"): _ptq_mixed,
    ("10_ptq161", "rank_one_naive"): _ptq_rank_one,
    ("10_ptq161", "output_start_naive"): _ptq_output_start,
    ("10_ptq161", "nlc_naive"): _ptq_angle,
    ("10_ptq161", "factored_naive"): _ptq_factored,
    ("10_ptq161", "gradients_naive"): _ptq_gradients,
}


# 09_one_bit


def _bit_rows(seed: int, n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _bit_best_level(fn: Callable) -> None:
    for w in _bit_rows(0, 20, 9).tolist():
        a, hat = fn(w)
        assert abs(a - sum(map(abs, w)) / 9) < 1e-12 and all(h == (a if x >= 0 else -a) for x, h in zip(w, hat, strict=True))
    assert fn([0.0, -2.0]) == (1.0, [1.0, -1.0])


def _bit_degrees(fn: Callable) -> None:
    assert abs(fn([1.0, 0.0], [0.0, 3.0]) - 90) < 1e-9 and abs(fn([1.0, 0.0], [2.0, 2.0]) - 45) < 1e-9
    for w, hat in zip(_bit_rows(1, 10, 5), _bit_rows(2, 10, 5), strict=True):
        cosine = torch.nn.functional.cosine_similarity(w, hat, dim=0)
        assert abs(fn(w.tolist(), hat.tolist()) - math.degrees(math.acos(cosine))) < 1e-9


def _bit_singular_pair(fn: Callable) -> None:
    for seed, (n, d) in enumerate(((4, 7), (9, 3))):
        A = _bit_rows(seed, n, d).abs()
        u, v = (torch.tensor(x, dtype=A.dtype) for x in fn(A.tolist(), 60))
        U, S, Vt = torch.linalg.svd(A)
        assert torch.allclose(torch.outer(u, v), S[0] * torch.outer(U[:, 0], Vt[0]), atol=1e-9)


def _bit_planes(fn: Callable) -> None:
    for W in (_bit_rows(3, 6, 8), _bit_rows(4, 6, 3)):
        mu, a = signs.one_plane(W)
        one = W - signs.residual(W, mu, a)
        mu2, a1, a2 = signs.two_planes(W)
        left = signs.residual(signs.residual(W, mu2[:, 0], a1), mu2[:, 1], a2)
        assert torch.allclose(torch.tensor([fn(row, 1) for row in W.tolist()], dtype=W.dtype), one)
        assert torch.allclose(torch.tensor([fn(row, 2) for row in W.tolist()], dtype=W.dtype), W - left)
    assert fn([], 2) == [] and fn([1.0, 2.0], 0) == [0.0, 0.0]


def _bit_split(fn: Callable) -> None:
    W = _bit_rows(5, 10, 16)
    for threshold in (0.0, 0.5, 1.0, 9.0):
        hat = torch.tensor([fn(row, threshold) for row in W.tolist()], dtype=W.dtype)
        assert torch.allclose((W - hat).square().sum(1), signs.split_errors(W, torch.tensor([threshold]))[0])


def _bit_entropy(fn: Callable) -> None:
    assert fn(0.5) == 1 and fn(0.0) == fn(1.0) == 0 and abs(fn(0.11) - 0.49992) < 1e-4
    assert all(abs(fn(p) - fn(1 - p)) < 1e-12 for p in (0.1, 0.3))


def _bit_lloyd(fn: Callable) -> None:
    for w in _bit_rows(6, 5, 60):
        hat = torch.tensor(fn(w.tolist(), [-1.5, -0.5, 0.5, 1.5]), dtype=w.dtype)
        for level in hat.unique():
            assert abs(float(w[hat == level].mean() - level)) < 1e-9
        assert torch.allclose((w - hat).abs(), (w[:, None] - hat.unique()).abs().amin(1))


def _bit_stored(fn: Callable) -> None:
    for seed, (n, d) in enumerate(((5, 9), (8, 16))):
        T = _bit_rows(seed, n, d)
        salient, far = torch.arange(d) % 4 == 1, T.abs() > 1
        want = regions.planes(T, salient, far & ~salient).dequantize(torch.float64)
        assert torch.allclose(fn(T, salient, far & ~salient), want, atol=4e-3)


def _bit_regions(fn: Callable) -> None:
    for seed, most in ((0, 50), (1, 4), (2, 8)):
        T = _bit_rows(seed, 6, 10) * torch.linspace(2, 0.5, 10).double()
        cost = torch.rand(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
        salient, far = fn(T, (T.square() * cost).sum(0), most)
        want = regions.regions(T, cost, most=most)
        assert torch.equal(salient, want[0]) and torch.equal(far, want[1])


def _bit_billm(fn: Callable) -> None:
    for seed, (n, d, span) in enumerate(((6, 16, 8), (8, 20, 8))):
        H, W = _metric_of(d, seed + 30), _bit_rows(seed, n, d)
        for way in ("exact", "diagonal", "none"):
            for search in ("weight", "saliency"):
                stored, _ = BiLLM(span=span, feedback=way, search=search, damp=0.0).quantize_layer(W, H)
                assert torch.allclose(fn(W, H, span, way, search), stored.dequantize().double(), atol=2e-2)


def _bit_bill(fn: Callable) -> None:
    W, share = _bit_rows(7, 64, 256).float(), 0.25
    salient = torch.arange(128) < 32
    part = regions.planes(W[:, :128], salient, (W[:, :128].abs() > 1) & ~salient)
    on_disk = type(part).join([part, part]).bits().per_weight
    assert abs(sum(fn(64, share, 7).values()) - share - on_disk) < 1e-9  # residual signs need no place of their own
    assert abs(sum(fn(4096, 0.09, 4, 64, 2).values()) - (2.09 + 1 / 4096 + 1 + 32 / 4096)) < 1e-12


PROPS |= {
    ("09_one_bit", "sign_naive"): _bit_best_level,
    ("09_one_bit", "angle_naive"): _bit_degrees,
    ("09_one_bit", "rank_one_naive"): _bit_singular_pair,
    ("09_one_bit", "planes_naive"): _bit_planes,
    ("09_one_bit", "split_naive"): _bit_split,
    ("09_one_bit", "entropy_naive"): _bit_entropy,
    ("09_one_bit", "lloyd_naive"): _bit_lloyd,
    ("09_one_bit", "hat_naive"): _bit_stored,
    ("09_one_bit", "regions_naive"): _bit_regions,
    ("09_one_bit", "billm_naive"): _bit_billm,
    ("09_one_bit", "bits_naive"): _bit_bill,
}


# 13_activations_lrquant


def _nb13_draw(seed: int, n: int, d: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(-2, 2, n, dtype=torch.float64)[:, None] + 0.2


def _nb13_token(fn: Callable) -> None:
    for bits in (2, 3, 4, 8):
        for row in _nb13_draw(bits, 12, 9):
            assert torch.allclose(torch.tensor(fn(row.tolist(), bits), dtype=row.dtype), round_tokens(row, bits), rtol=1e-9)
    assert fn([3.0, 3.0], 4) == [3.0, 3.0] and fn([-0.0, 0.0], 2) == [0.0, 0.0]


def _nb13_rows_or_all(fn: Callable) -> None:
    X = _nb13_draw(0, 6, 10)
    assert torch.allclose(fn(X, 4), round_tokens(X, 4), rtol=1e-9) and torch.equal(fn(X, 4), fn(X, 4, "token"))
    assert torch.allclose(fn(X, 4, "window"), round_tokens(X.flatten(), 4).view_as(X), rtol=1e-9)


def _nb13_no_future(fn: Callable) -> None:
    g = torch.Generator().manual_seed(1)
    x, W = torch.randn(7, 6, generator=g).double(), [torch.randn(4, 6, generator=g).double() for _ in "qkv"]
    q, k, v = (round_tokens(x @ M.T, 4) for M in W)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(fn(x, *W, 4), want, atol=1e-9)
    other = x.clone()
    other[4:] = 9.0
    assert torch.allclose(fn(x, *W, 4)[:4], fn(other, *W, 4)[:4], atol=1e-12)


def _nb13_exponent(fn: Callable) -> None:
    a, w = _nb13_draw(2, 2, 12).abs() + 0.01
    for alpha in (0.0, 0.3, 1.0):
        assert torch.allclose(torch.tensor(fn(a.tolist(), w.tolist(), alpha), dtype=a.dtype), smoothing(a, w, alpha))


def _nb13_logarithm(fn: Callable) -> None:
    a = torch.logspace(-7, 4, 50, dtype=torch.float64)
    for base in (1.5, 2.0, 10.0):
        assert torch.allclose(torch.tensor(fn(a.tolist(), base), dtype=a.dtype), log_start(a, base), rtol=1e-5)
    assert abs(fn([2.0])[0] - 1) < 1e-12 and fn([0.0])[0] > 0


def _nb13_rotation(fn: Callable) -> None:
    x, angles = _nb13_draw(3, 5, 8), torch.rand(5, 4, generator=torch.Generator().manual_seed(3)).double()
    y = fn(x, angles)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1)) and torch.allclose(fn(y, -angles), x)
    pairs = torch.complex(x[:, :4], x[:, 4:]) * torch.polar(torch.ones_like(angles), angles)
    assert torch.allclose(y, torch.cat([pairs.real, pairs.imag], 1))


def _nb13_scores(fn: Callable) -> None:
    g = torch.Generator().manual_seed(4)
    q, k = torch.randn(2, 6, 4, generator=g).double(), torch.randn(6, 4, generator=g).double()
    for head, scores in zip(q, fn(q, k), strict=True):
        assert scores.shape == (6, 6) and torch.allclose(scores.diagonal(), (head * k).sum(1))  # no distance, no turn
    same = fn(torch.ones(1, 6, 4).double(), torch.ones(6, 4).double())[0]
    assert torch.allclose(same[1:, 1:], same[:-1, :-1])  # only distances count


def _nb13_angle(fn: Callable) -> None:
    g = torch.Generator().manual_seed(5)
    for _ in range(5):
        Y, T = torch.randn(6, 9, generator=g), torch.randn(6, 9, generator=g)
        assert abs(fn(Y, T) - float(nlc(Y[None], T[None]))) < 1e-4 * max(1.0, fn(Y, T))


def _nb13_slope(fn: Callable) -> None:
    """round(x / s) - x / s summed, which no half type knows at eight bits."""
    row = [0.0, 0.21, 0.4, 0.77, 1.9]
    for bits in (3, 4):
        s = 1.9 / (2**bits - 1)
        want = sum(round(x / s) - x / s for x in row)
        assert abs(fn(row, bits, torch.float64) - want) < 1e-9
        assert abs(fn(row, bits, torch.float32) - want) < 1e-3


PROPS |= {
    ("13_activations_lrquant", "token_naive"): _nb13_token,
    ("13_activations_lrquant", "hat_naive"): _nb13_rows_or_all,
    ("13_activations_lrquant", "attention_naive"): _nb13_no_future,
    ("13_activations_lrquant", "exponent_naive"): _nb13_exponent,
    ("13_activations_lrquant", "log_start_naive"): _nb13_logarithm,
    ("13_activations_lrquant", "rotate_naive"): _nb13_rotation,
    ("13_activations_lrquant", "scores_naive"): _nb13_scores,
    ("13_activations_lrquant", "nlc_naive"): _nb13_angle,
    ("13_activations_lrquant", "slope_naive"): _nb13_slope,
}


# 14_cross_block_cbq


def nb14_doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nb14_schedule(schedule_naive: Callable) -> None:
    """Windows begin where the last left off, are no wider than asked, and leave every block once; as the package's."""
    for n, width in itertools.product((1, 2, 5, 8), (1, 2, 3, 9)):
        for overlap in range(width):
            windows, at = schedule_naive(n, width, overlap), 0
            for first, left, seen in windows:
                assert first == at and 0 < left <= seen <= width and first + seen <= n
                at += left
            assert at == n and windows == crossblock.schedule(n, width, overlap)


def nb14_states(states_naive: Callable) -> None:
    """Hard before the window, untouched behind it; warm is what was in the window before."""
    for n, width, overlap in ((6, 1, 0), (7, 2, 1), (8, 4, 2)):
        windows = crossblock.schedule(n, width, overlap)
        for row, (first, _, seen), before in zip(states_naive(n, windows), windows, [(0, 0, 0), *windows], strict=False):
            end = before[0] + before[2]
            assert row == "h" * first + "w" * (end - first) + "s" * (first + seen - end) + "." * (n - first - seen)


def nb14_softmax(softmax_naive: Callable) -> None:
    for n in (1, 3, 40):
        y = 30 * nb14_doubles(n, seed=n)
        assert torch.allclose(torch.tensor(softmax_naive(y.tolist()), dtype=y.dtype), y.softmax(0), atol=1e-12)


def nb14_distance(distance_naive: Callable) -> None:
    """The squared error's mean and a true divergence: 0 for equal outputs, blind to a constant, positive otherwise."""
    for n in (2, 16):
        y, t = nb14_doubles(2, n, seed=n)
        squared, kl = distance_naive(y.tolist(), t.tolist())
        assert abs(squared - float((y - t).square().mean())) < 1e-12 and kl > 0
        assert abs(kl - float(crossblock.kl(y[None, None], t[None, None]))) < 1e-5
        assert max(map(abs, distance_naive(t.tolist(), t.tolist()))) < 1e-12
        assert abs(distance_naive((t + 3).tolist(), t.tolist())[1]) < 1e-12


def nb14_two_teachers(cbq_loss_naive: Callable) -> None:
    y, a, b = nb14_doubles(3, 12, seed=3)
    want = crossblock.branches(crossblock.size_and_shape)(y[None, None], torch.stack([a, b])[None, :, None])
    assert abs(cbq_loss_naive(y.tolist(), [a.tolist(), b.tolist()]) - float(want)) < 1e-5


def nb14_quantile(quantile_naive: Callable) -> None:
    for n in (1, 2, 7, 30):
        ordered = nb14_doubles(n, seed=n).sort().values
        for share in (0.0, 0.25, 0.6, 1.0):
            assert abs(quantile_naive(ordered.tolist(), share) - float(torch.quantile(ordered, share))) < 1e-12


def nb14_reserved(reserved_naive: Callable) -> None:
    """The package's cut; it grows with the values, and nothing is cut where nothing lies beyond the fence."""
    for seed in range(6):
        x = nb14_doubles(150, seed=seed) ** 3
        cut = reserved_naive(x.tolist())
        assert abs(cut - float(crossblock.reserved(x))) < 1e-12 and abs(reserved_naive((10 * x).tolist()) - 10 * cut) < 1e-9
    even = [1 + k / 100 for k in range(50)]
    assert reserved_naive(even) == even[-1] and reserved_naive([*even, 9.0]) == even[-1]


def nb14_curve(h_naive: Callable) -> None:
    V = 4 * nb14_doubles(60, seed=1)
    assert torch.allclose(h_naive(V), rectified_sigmoid(V)) and torch.allclose(h_naive(V) + h_naive(-V), torch.ones_like(V))


def nb14_lora(lora_naive: Callable) -> None:
    """Corrected: soft starts at the clipped weight, hard at nearest rounding. Literal: half-way, and everything up."""
    for seed, (d_out, d_in) in enumerate(((3, 8), (6, 12))):
        W, s, z = nb14_doubles(d_out, d_in, seed=seed), torch.full((d_out, 1), 0.4, dtype=torch.float64), 1.0
        A1, A2 = nb14_doubles(d_out, 2, seed=9), torch.zeros(2, d_in, dtype=torch.float64)
        soft, hard = lora_naive(W, s, z, A1, A2, 3)
        assert torch.allclose(soft, W.clamp(-0.4, 0.8)) and torch.allclose(hard, 0.4 * (W / 0.4).round().clamp(-1, 2))
        soft, hard = lora_naive(W, s, z, A1, A2, 3, True)
        below = (W / 0.4).floor()
        assert torch.allclose(soft, 0.4 * (below + 0.5).clamp(-1, 2)) and torch.allclose(hard, 0.4 * (below + 1).clamp(-1, 2))


def nb14_kappa(kappa_naive: Callable) -> None:
    """From 1 to the top, never falling, and as the package's layers age."""
    W = nb14_doubles(4, 8, seed=0).float()
    p = crossblock.LoRARounding(W, *fit(W, Grid(2)), Grid(2), life=12, sharpness=25.0)
    for age in range(1, 13):
        p.harden(1.0)
        assert abs(kappa_naive(age, 12, 25.0) - float(p.kappa)) < 1e-4
    assert kappa_naive(1, 12, 25.0) == 1 and kappa_naive(1, 1, 25.0) == 1


def nb14_variables(variables_naive: Callable) -> None:
    W = torch.zeros(24, 16)
    for rank in (1, 5, None):
        p = crossblock.LoRARounding(W, torch.ones(24, 1), torch.zeros(24, 1), Grid(2), rank=rank)
        assert 2 * sum(f.numel() for f in p.factors) == variables_naive([(24, 16)] * 2, rank)


PROPS |= {
    ("14_cross_block_cbq", "schedule_naive"): nb14_schedule,
    ("14_cross_block_cbq", "states_naive"): nb14_states,
    ("14_cross_block_cbq", "softmax_naive"): nb14_softmax,
    ("14_cross_block_cbq", "distance_naive"): nb14_distance,
    ("14_cross_block_cbq", "cbq_loss_naive"): nb14_two_teachers,
    ("14_cross_block_cbq", "quantile_naive"): nb14_quantile,
    ("14_cross_block_cbq", "reserved_naive"): nb14_reserved,
    ("14_cross_block_cbq", "h_naive"): nb14_curve,
    ("14_cross_block_cbq", "lora_naive"): nb14_lora,
    ("14_cross_block_cbq", "kappa_naive"): nb14_kappa,
    ("14_cross_block_cbq", "variables_naive"): nb14_variables,
}


# 15_packed_kernels


def _nb15_layer(seed: int, plane: int, group: int) -> tuple:
    """Codes of a planar row as words without signs, inputs, steps and zero points, and the product."""
    rng = random.Random(seed)
    n = 16 * plane
    q, x = [rng.randrange(4) for _ in range(n)], [rng.randrange(-16, 17) / 16 for _ in range(n)]
    s, z = [rng.randrange(1, 5) / 4 for _ in range(n // group)], [rng.randrange(4) for _ in range(n // group)]
    words = [word % 2**32 for word in packing.pack(torch.tensor([q]), 2)[0].tolist()]
    return words, x, s, z, sum(s[c // group] * (q[c] - z[c // group]) * x[c] for c in range(n))


def _nb15_matvec(fn: Callable) -> None:
    for seed, (plane, group) in enumerate(((1, 16), (4, 8), (8, 64), (3, 12))):
        words, x, s, z, want = _nb15_layer(seed, plane, group)
        got, steps = fn(words, x, s, z, group)
        assert got == want  # multiples of 1/64 are exact
        assert set(steps.values()) == {16 * plane}


def _nb15_planes(fn: Callable) -> None:
    for width in (1, 2, 4, 8):
        q = torch.randint(0, 2**width, (1, 5 * 32 // width), generator=torch.Generator().manual_seed(width))
        x = torch.randint(-9, 9, (q.shape[1],), generator=torch.Generator().manual_seed(7))
        assert int(fn(packing.pack(q, width)[0], x, width)) == int((q[0] * x).sum())


def _nb15_turned(fn: Callable) -> None:
    words = [random.Random(i).randrange(2**32) for i in range(4)]
    turned = fn(words)
    assert fn(turned) == words  # a square of bytes, turned twice
    assert [word & 255 for word in words] == [(turned[0] >> 8 * i) & 255 for i in range(4)]


def _nb15_digits(fn: Callable) -> None:
    for seed in range(5):
        x = (10.0**seed * torch.randn(50, generator=torch.Generator().manual_seed(seed))).tolist()
        step, digits = fn(x)
        assert all(-128 <= d <= 127 for three in digits for d in three)
        off = max(abs(v - step * (a + 256 * b + 65536 * c)) for v, (a, b, c) in zip(x, digits, strict=True))
        assert off <= 0.5001 * step <= 7e-8 * max(map(abs, x))
    assert fn([0.0, 0.0])[1] == [[0, 0, 0]] * 2


def _nb15_bytes(fn: Callable) -> None:
    for bits, group in ((1, 64), (2, 128), (3, 32), (4, 64)):
        weight = AffineWeight.nearest(torch.ones(6, 4096), Grid(bits, group, symmetric=bits > 1))
        words, scales = (weight.pack()[name] for name in ("codes", "scales"))
        stored = words.numel() * 4 + scales.numel() * 2
        assert fn(6, 4096, bits, group) == stored + 2 * (6 + 4096)
    assert fn(6, 4096, 16, 64) == 2 * (6 * 4096 + 6 + 4096)


def _nb15_moved(fn: Callable) -> None:
    assert fn(8, 8) == 1 and fn(6, 12) == 2  # resident: the indices alone
    for v in (4, 6, 8, 12, 16, 20):
        starts = [2 * v * i for i in range(480)]
        sectors = sum((at + 2 * v - 1) // 32 - at // 32 + 1 for at in starts) / len(starts)
        assert math.isclose(fn(v, 16, shared=1000), (16 + 8 * 32 * sectors) / v)


PROPS |= {
    ("15_packed_kernels", "bytes_naive"): _nb15_bytes,
    ("15_packed_kernels", "matvec_naive"): _nb15_matvec,
    ("15_packed_kernels", "grouped_naive"): _nb15_matvec,
    ("15_packed_kernels", "planar_naive"): _nb15_planes,
    ("15_packed_kernels", "turn_naive"): _nb15_turned,
    ("15_packed_kernels", "digits_naive"): _nb15_digits,
    ("15_packed_kernels", "moved_naive"): _nb15_moved,
}


# 16_speed_runs


def nb16_median(median_naive: Callable) -> None:
    draw = random.Random(0)
    for n in range(1, 12):
        times, warm = [draw.random() for _ in range(n + 3)], draw.randint(0, 3)
        assert math.isclose(median_naive(times, warm), statistics.median(times[warm:]))


def nb16_line(line_naive: Callable) -> None:
    """Against least squares of relative errors, by the library."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x, off = torch.rand(6, generator=g).double() * 1e6 + 1e3, torch.rand(6, generator=g).double()
        t = (3 + x / 5e4) * (0.9 + 0.2 * off)
        a, slope = torch.linalg.lstsq(torch.stack([1 / t, x / t], 1), torch.ones(6, 1).double()).solution[:, 0].tolist()
        t0, rate = line_naive(x.tolist(), t.tolist())
        assert math.isclose(t0, a, rel_tol=1e-6) and math.isclose(rate, 1 / slope, rel_tol=1e-6)


def nb16_bytes(bytes_naive: Callable) -> None:
    for bits, group in ((1, 64), (2, 128), (3, 32), (4, 64), (8, 256)):
        weight = AffineWeight.nearest(torch.ones(6, 4096), Grid(bits, group, symmetric=bits > 1))
        words, scales = (weight.pack()[name] for name in ("codes", "scales"))
        parts = bytes_naive(6, 4096, bits, group, 3)
        assert parts == {"codes": words.nbytes, "scales": scales.nbytes, "vectors": 2 * 3 * (6 + 4096)}
    assert sum(bytes_naive(6, 4096, 16).values()) == 2 * (6 * 4096 + 6 + 4096)


def nb16_product(product_naive: Callable) -> None:
    """2 µs and the bytes at 4 TB a second."""
    assert math.isclose(product_naive((4096, 4096), 16), 2 + (2 * 4096**2 + 4 * 4096) / 4e6)


def nb16_token(token_naive: Callable) -> None:
    """All parts by hand; only the head knows the head's bits."""
    four, head = token_naive(4, 4), token_naive(4, 16)
    weights = 4096 * (6144 + 4096 + 28672 + 14336)
    vectors = 2 * sum(o + i for o, i in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)))
    assert math.isclose(four["products"], 32 * (4 * 2e-3 + (weights * (0.5 + 2 / 128) + vectors) / 4e9))
    assert four["products"] == head["products"] and four["between"] == head["between"] == 32 * 12 / 1e3
    assert math.isclose(head["head"], 2e-3 + (2 * 128256 * 4096 + 2 * (128256 + 4096)) / 4e9)


def nb16_amdahl(amdahl_naive: Callable) -> None:
    for p in (0.1, 0.5, 0.9):
        assert math.isclose(amdahl_naive([p, 1 - p], [1, 1]), 1)
        assert math.isclose(amdahl_naive([p, 1 - p], [5, 5]), 5)
        assert amdahl_naive([p, 1 - p], [1e12, 1]) < 1 / (1 - p) < 1.001 * amdahl_naive([p, 1 - p], [1e12, 1])


def nb16_finish(finish_naive: Callable) -> None:
    """The last kernel ends at the latest, over all k, of launch k and all work from k on."""
    draw = random.Random(1)
    for n in (1, 2, 9):
        work = [draw.uniform(0, 9) for _ in range(n)]
        for issue in (0.0, 2.0, 20.0):
            assert math.isclose(finish_naive(work, issue), max((k + 1) * issue + sum(work[k:]) for k in range(n)))


def nb16_kernels(kernels_naive: Callable) -> None:
    """Eight launches a block, four of them products, and the head."""
    made = kernels_naive(2, 4)
    assert len(made) == 32 * 8 + 1 and made[1:8:2] == [3.0] * 4
    assert made[-1] == kernels_naive(4, 4)[-1] > max(made[:-1])


def nb16_front(front_naive: Callable) -> None:
    draw = random.Random(2)
    for _ in range(20):
        points = [(draw.randint(1, 6), draw.randint(1, 6), str(k)) for k in range(9)]
        kept = front_naive(points)
        assert kept == sorted(kept) and set(kept) <= set(points)
        for cost, loss, _name in points:
            assert any(a <= cost and b <= loss for a, b, _ in kept)
        assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(kept))


PROPS |= {
    ("16_speed_runs", "median_naive"): nb16_median,
    ("16_speed_runs", "line_naive"): nb16_line,
    ("16_speed_runs", "bytes_naive"): nb16_bytes,
    ("16_speed_runs", "product_naive"): nb16_product,
    ("16_speed_runs", "token_naive"): nb16_token,
    ("16_speed_runs", "amdahl_naive"): nb16_amdahl,
    ("16_speed_runs", "finish_naive"): nb16_finish,
    ("16_speed_runs", "kernels_naive"): nb16_kernels,
    ("16_speed_runs", "front_naive"): nb16_front,
}


# 18_compose_your_own


def _small_menus(draw: random.Random) -> tuple[dict, list]:
    menus = {kind: tuple(f"{kind}{i}" for i in range(draw.randint(1, 4))) for kind in "abcd"}

    def some() -> dict:
        kinds = draw.sample(list(menus), draw.randint(1, 2))
        return {kind: tuple(draw.sample(menus[kind], draw.randint(1, len(menus[kind])))) for kind in kinds}

    return menus, [(some(), some(), f"rule {i}") for i in range(5)]


def nb18_fits(fits_naive: Callable) -> None:
    """Against sets: everything wanted, of what is picked."""
    draw = random.Random(0)
    for _ in range(100):
        menus, rules = _small_menus(draw)
        picked = {kind: draw.choice(options) for kind, options in menus.items()}
        for when, _, _ in rules:
            assert fits_naive(picked, when) == (len({(k, v) for k, v in picked.items() if v in when.get(k, ())}) == len(when))
        assert fits_naive(picked, {})


def nb18_broken(broken_naive: Callable) -> None:
    """The package's rules, one by one."""
    draw = random.Random(1)
    for _ in range(100):
        menus, rules = _small_menus(draw)
        picked = {kind: draw.choice(options) for kind, options in menus.items()}
        assert broken_naive(picked, rules) == [rule[2] for rule in rules if compose.Rule(*rule).broken(picked)]


def nb18_every(every_naive: Callable) -> None:
    draw = random.Random(2)
    for _ in range(20):
        menus, _ = _small_menus(draw)
        assert every_naive(menus) == [dict(zip(menus, one, strict=True)) for one in itertools.product(*menus.values())]


def nb18_feedback(feedback_naive: Callable) -> None:
    """The package's solver, codes and targets, on a fixed ruler in natural order."""
    for seed, (rows, d, g, bits) in enumerate(((3, 8, 4, 2), (5, 16, 16, 3), (1, 12, 6, 2))):
        draw = torch.Generator().manual_seed(seed)
        W, X = torch.randn(rows, d, generator=draw).double(), torch.randn(4 * d, d, generator=draw).double()
        H, grid = X.T @ X / len(X) + 0.1 * torch.eye(d).double(), Grid(bits, group=g)
        s, z = (t.double() for t in fit(W.float(), grid))
        q, t = feedback_naive(W, H, s.repeat_interleave(g, 1), z.repeat_interleave(g, 1), grid.q_max)
        rounder = AffineRounder(grid, torch.arange(d), rows, s, z)
        found = feedback(W, H, rounder, torch.arange(d), aims=True)
        assert torch.equal(q.int(), rounder.result()[0].int()) and torch.allclose(t, found.T, atol=1e-9)


def nb18_begin(begin_naive: Callable) -> None:
    """Below and share make the place on the ruler; a share of 0 is a mark."""
    draw = torch.Generator().manual_seed(0)
    t, s, z = torch.randn(4, 9, generator=draw).double(), torch.rand(4, 9, generator=draw).double() + 0.1, torch.ones(4, 9)
    below, share = begin_naive(t, s, z)
    assert torch.equal(below, below.round()) and bool(((share >= 0) & (share < 1)).all())
    assert torch.allclose(s * (below + share - z), t)
    assert torch.equal(begin_naive(s * (3 - z), s, z)[1].round(), torch.zeros(4, 9).double())


def nb18_refit(refit_naive: Callable) -> None:
    """Errors never rise from one pass to the next, and many passes are where no step has a slope."""
    draw = torch.Generator().manual_seed(3)
    W, X = torch.randn(4, 12, generator=draw).double(), torch.randn(60, 12, generator=draw).double()
    H, z, g = X.T @ X / 60, torch.ones(4, 12).double(), 4
    q = (W / 0.6 + z).round().clamp(0, 3)
    s, last = torch.full((4, 3), 0.6).double(), float("inf")
    for _ in range(200):
        s = refit_naive(W, q, z, s, H, g)
        E = W - s.repeat_interleave(g, 1) * (q - z)
        now = float(((E @ H) * E).sum())
        assert now <= last * (1 + 1e-12)
        last = now
    slope = ((E @ H) * (q - z)).reshape(4, 3, g).sum(-1)
    assert float(slope.abs().max()) < 1e-9


PROPS |= {
    ("18_compose_your_own", "fits_naive"): nb18_fits,
    ("18_compose_your_own", "broken_naive"): nb18_broken,
    ("18_compose_your_own", "every_naive"): nb18_every,
    ("18_compose_your_own", "feedback_naive"): nb18_feedback,
    ("18_compose_your_own", "begin_naive"): nb18_begin,
    ("18_compose_your_own", "refit_naive"): nb18_refit,
}


# 17_the_table


def nb17_ruler_bits(ruler_bits_naive: Callable) -> None:
    for b, g, d_in in ((2, 64, 256), (4, 32, 96), (1, 16, 64)):
        W = torch.randn(24, d_in, generator=torch.Generator().manual_seed(b))
        assert ruler_bits_naive(24, d_in, b, g) == AffineWeight.nearest(W, Grid(b, group=g)).bits().per_weight


def nb17_book_bits(book_bits_naive: Callable) -> None:
    assert book_bits_naive(16, 32, 4, 16) == 1 + (16 * 16 * 4 + 16 * 32) / 512
    assert book_bits_naive(4096, 4096, 8, 65536) < 2.51 and book_bits_naive(18, 32, 4, 16) > book_bits_naive(20, 32, 4, 16)


def nb17_signs_bits(signs_bits_naive: Callable) -> None:
    assert signs_bits_naive(256, 256) == 2 + 0.875 + 1 / 256 and signs_bits_naive(64, 256, span=32) == 5.5 + 1 / 64


def nb17_at_bits(at_bits_naive: Callable) -> None:
    """On the points it is the points; between two, their geometric mean half-way; outside it does not guess."""
    line = [(1.5, 4.0), (2.0, 1.0), (4.0, 0.01)]
    assert all(math.isclose(at_bits_naive(line, bits), kl) for bits, kl in line)
    assert math.isclose(at_bits_naive(line, 3.0), 0.1) and math.isclose(at_bits_naive(line, 1.75), 2.0)
    assert at_bits_naive(line, 1.4) is None and at_bits_naive(line, 4.1) is None


def nb17_beats(beats_naive: Callable) -> None:
    assert beats_naive((1, 2), (1, 3)) and beats_naive((1, 2), (2, 2)) and not beats_naive((1, 2), (1, 2))
    assert not beats_naive((1, 3), (2, 2)) and not beats_naive((2, 2, "a"), (2, 2, "b"))


def nb17_front(front_naive: Callable) -> None:
    draw = random.Random(3)
    for _ in range(20):
        points = list({(draw.randint(1, 6), draw.randint(1, 6)) for _ in range(9)})
        assert front_naive(points) == [points[i] for i in ranking_model.front(points)]


def nb17_summed(summed_naive: Callable) -> None:
    assert summed_naive([1.0, 4.0, 1.0]) == (2.0, 3.0) and summed_naive([0.25] * 3) == (0.25, 0.0)


def nb17_separate(separate_naive: Callable) -> None:
    assert separate_naive([1, 2], [3, 4]) and not separate_naive([1, 3], [3, 4]) and not separate_naive([3, 4], [1, 2])


def nb17_scores(scores_naive: Callable) -> None:
    """Against torch's own divergence and cross-entropy."""
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, 5, generator=g, dtype=torch.float64).softmax(-1) for _ in range(2))
    text = torch.randint(5, (7,), generator=g)
    perplexity, kl, top1 = scores_naive(p.tolist(), q.tolist(), text.tolist())
    assert math.isclose(perplexity, float(torch.nn.functional.nll_loss(q.log(), text).exp()))
    assert math.isclose(kl, float(torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")))
    assert top1 == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert scores_naive(p.tolist(), p.tolist(), text.tolist())[1:] == (0, 1)


def nb17_parse_error(parse_error_naive: Callable) -> None:
    assert parse_error_naive(0.5, 16) == 0.125 and parse_error_naive(0.0, 16) == 0
    assert math.isclose(parse_error_naive(0.2, 64), parse_error_naive(0.8, 16) / 2)


PROPS |= {
    ("17_the_table", "ruler_bits_naive"): nb17_ruler_bits,
    ("17_the_table", "book_bits_naive"): nb17_book_bits,
    ("17_the_table", "signs_bits_naive"): nb17_signs_bits,
    ("17_the_table", "at_bits_naive"): nb17_at_bits,
    ("17_the_table", "beats_naive"): nb17_beats,
    ("17_the_table", "front_naive"): nb17_front,
    ("17_the_table", "summed_naive"): nb17_summed,
    ("17_the_table", "separate_naive"): nb17_separate,
    ("17_the_table", "scores_naive"): nb17_scores,
    ("17_the_table", "parse_error_naive"): nb17_parse_error,
}
