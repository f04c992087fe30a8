"""Exercises of 06_tesseraq: scale and bias for another engine, a gradient by hand, one flip at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.grid import Grid
from lowbit_nb.rounding import rectified_sigmoid


def scale_and_bias(attempt: Callable) -> None:
    """scale * q + bias must be s k (q - z) for every code."""
    g = torch.Generator().manual_seed(0)
    for shape, bits in (((2, 1), 2), ((3, 4), 3)):
        s, k = torch.rand(2, *shape, generator=g) + 0.5
        z = torch.randint(1, 2**bits, shape, generator=g).float()
        k[0, 0] = 1.0
        scale, bias = attempt(s.clone(), z.clone(), k.clone())
        for q in range(2**bits):
            gap = (torch.as_tensor(scale) * q + torch.as_tensor(bias) - s * k * (q - z)).abs()
            if gap.max() < 1e-5:
                continue
            where = f"code {q} stands for {float(gap.max()):.3g} too much or too little in one group"
            assert gap[0, 0] > 1e-5, f"{where}; a group with k = 1 is right"
            raise AssertionError(f"{where}; it is wrong even where k is 1")


def grad_nu(attempt: Callable) -> None:
    """Against autograd, for hard, cut-off and soft variables."""
    g = torch.Generator().manual_seed(1)
    for n in (4, 9):
        nu = (3 * torch.randn(n, 8, generator=g, dtype=torch.float64)).requires_grad_()
        G = torch.randn(n, 8, generator=g, dtype=torch.float64)
        s, k = torch.rand(2, n, 1, generator=g, dtype=torch.float64) + 0.3
        hard = torch.rand(n, 8, generator=g) < 0.3
        (G * s * k * rectified_sigmoid(nu)).sum().backward()
        want = nu.grad.masked_fill(hard, 0.0)
        got = torch.as_tensor(attempt(nu.detach().clone(), G.clone(), s.clone(), k.clone(), hard.clone()))
        assert got.shape == want.shape, f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
        assert not got[hard].any(), "hard variables must not move: their gradient is 0"
        cut = ~hard & (want == 0)
        assert not got[cut].any(), f"h is cut off at nu = {float(nu.detach()[cut][0]):.2f}: the gradient there is 0"
        gap = float((got - want).abs().max())
        assert gap < 1e-10, f"the gradient of soft variables is off by up to {gap:.3g}"


def greedy_flips(attempt: Callable) -> None:
    """The codes of steepest descent by single flips from nearest rounding."""
    for d, seed in ((2, 0), (6, 2), (12, 5), (16, 6)):
        w, H, s, z = _row(d, seed)
        base = torch.floor(w / s + z)
        marks = torch.stack([base.clamp(0, 3), (base + 1).clamp(0, 3)])
        got = torch.as_tensor(attempt(w.clone(), H.clone(), s, z, 3)).double()
        assert got.shape == (d,), f"expected {d} codes, got shape {tuple(got.shape)}"
        strange = (got != marks).all(0)
        assert not strange.any(), f"weight {int(strange.nonzero()[0])} has a code that is neither of the two marks beside it"
        helps = [i for i in range(d) if _cost(_flipped(got, marks, i), w, H, s, z) < _cost(got, w, H, s, z) - 1e-9]
        assert not helps, f"one more flip would help: that of weight {helps[0]}"
        same = torch.equal(got, _steepest(w, H, s, z, marks))
        assert same, "no single flip helps, but this is not where the steepest way ends"


def _row(d: int, seed: int) -> tuple[Tensor, Tensor, float, float]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(d, dtype=torch.float64) + 0.6 * torch.randn(d, d, generator=g, dtype=torch.float64)
    X = torch.randn(8 * d, d, generator=g, dtype=torch.float64) @ mix
    w = torch.randn(d, generator=g, dtype=torch.float64)
    s, z = grids.fit(0.8 * w[None], Grid(2, scale_dtype="float32"))
    return w, X.T @ X / len(X), float(s), float(z)


def _cost(q: Tensor, w: Tensor, H: Tensor, s: float, z: float) -> float:
    e = w - s * (q - z)
    return float(e @ H @ e)


def _flipped(q: Tensor, marks: Tensor, i: int) -> Tensor:
    other = q.clone()
    other[i] = marks[:, i].sum() - q[i]
    return other


def _steepest(w: Tensor, H: Tensor, s: float, z: float, marks: Tensor) -> Tensor:
    q = (torch.round(w / s) + z).clamp(0, 3)
    while True:
        tries = [_flipped(q, marks, i) for i in range(len(w))]
        best = min(tries, key=lambda other: _cost(other, w, H, s, z))
        if _cost(best, w, H, s, z) >= _cost(q, w, H, s, z) - 1e-12:
            return q
        q = best


EXERCISES = {"tesseraq-1": scale_and_bias, "tesseraq-2": grad_nu, "tesseraq-3": greedy_flips}
