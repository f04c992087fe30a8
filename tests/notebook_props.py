"""Property tests of the functions that readers build in notebooks.

PROPS[(notebook, function)] is a check that takes the function, lifted out of the notebook by tests/nbdefs.py,
and asserts something about it on seeded random shapes, or compares it with the package. Every `*_naive`
function needs one: tests/test_notebook_defs.py says which are missing.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb import packing
from lowbit_nb.feedback import AffineRounder, feedback
from lowbit_nb.grid import Grid, dequantize, fit, quantize
from lowbit_nb.hessian import factor

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
