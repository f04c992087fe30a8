"""Exercises of 14_cross_block_cbq: who is learned how often, outlier channels folded away, the way back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lowbit_nb.crossblock import LoRARounding, schedule
from lowbit_nb.grid import Grid


def visits(attempt: Callable) -> None:
    """Against the package's schedule."""
    for n, width, overlap in ((8, 1, 0), (8, 2, 1), (7, 3, 1), (8, 3, 1), (5, 4, 3), (3, 9, 2)):
        want = [0] * n
        for first, _, seen in schedule(n, width, overlap):
            for k in range(first, first + seen):
                want[k] += 1
        got, case = list(attempt(n, width, overlap)), f"{n} blocks, width {width}, overlap {overlap}"
        assert len(got) == n, f"{case}: {len(got)} counts; a window does not reach beyond the last block"
        wrong = [k for k in range(n) if got[k] != want[k]]
        where = f"first wrong at block {wrong[0]}" if wrong else ""
        assert not wrong, f"{case}: {sum(got)} block-visits, not {sum(want)}; {where}; starts are width - overlap blocks apart"


def fold(attempt: Callable) -> None:
    """A function that stays, channels that are left alone, and peaks between the old ones and the cut."""
    for seed, cut in enumerate((1.0, 2.0, 0.5)):
        g = torch.Generator().manual_seed(seed)
        gain, W, x = (torch.randn(size, generator=g, dtype=torch.float64) for size in ((12,), (5, 12), (40, 12)))
        x[:, 2], x[:, 7] = 9 * x[:, 2], 20 * x[:, 7]
        peak = (x * gain).abs().amax(0)
        peak[4], cut_now = cut, torch.tensor(cut, dtype=torch.float64)
        new_gain, new_W = attempt(gain.clone(), W.clone(), peak.clone(), cut_now)
        wrong = float(((x * new_gain) @ new_W.T - (x * gain) @ W.T).abs().max())
        assert wrong < 1e-8, f"the layer's output changed by up to {wrong:.3g}"
        factor = gain / new_gain
        kept = peak <= cut
        assert torch.equal(factor[kept], torch.ones_like(factor[kept])), "ordinary channels must keep their gain exactly"
        want = torch.where(kept, 1.0, (peak / cut).sqrt())
        ratio = float((factor / want)[~kept].max())
        assert torch.allclose(factor, want), f"outlier channels: divided by up to {ratio:.3g} times the right factor"


def factor_gradients(attempt: Callable) -> None:
    """Against the package's LoRARounding."""
    for seed, (rows, columns, rank, kappa) in enumerate(((6, 8, 2, 1.0), (12, 16, 3, 1.0), (9, 8, 2, 4.0))):
        g = torch.Generator().manual_seed(seed)
        W, G = (torch.randn(rows, columns, generator=g) for _ in "ab")
        s, z = 0.45, 2.0
        rulers = torch.full((rows, 1), s), torch.full((rows, 1), z)
        p = LoRARounding(W, *rulers, Grid(2, scale_dtype="float32"), rank=rank, generator=g)
        with torch.no_grad():
            p.factors[1].copy_(0.8 * torch.randn(rank, columns, generator=g))
            p.kappa.fill_(kappa)
        (p.weight() * G).sum().backward()
        t = W / s
        V0 = -torch.log(1.2 / (t - t.floor() + 0.1) - 1)
        A1, A2 = (f.detach().clone() for f in p.factors)
        got = attempt(W.clone(), s, z, 3, V0, A1.clone(), A2.clone(), kappa, G.clone())
        _refuse_unclipped(got, (W, s, z, V0, A1, A2, kappa, G))
        for name, mine, f in zip(("A1", "A2"), got, p.factors, strict=True):
            assert mine.shape == f.shape, f"{name}: expected shape {tuple(f.shape)}, got {tuple(mine.shape)}"
            gap, ratio = float((mine - f.grad).abs().max()), float(mine.norm() / f.grad.norm())
            alike = torch.allclose(mine / mine.norm().clamp(min=1e-12), f.grad / f.grad.norm(), atol=1e-4)
            assert gap < 1e-3 or not alike, f"{name}: right but for a factor of {ratio:.3g}; is h steeper? (kappa {kappa:g})"
            assert gap < 1e-3, f"{name}: off by up to {gap:.3g} (kappa {kappa:g}, rank {rank})"


def _refuse_unclipped(got: tuple, given: tuple) -> None:
    """Tell a reader who let clipped weights count what went wrong."""
    W, s, z, V0, A1, A2, kappa, G = given
    sigma = torch.sigmoid(kappa * (V0 + A1 @ A2))
    D = G * s * 1.2 * kappa * sigma * (1 - sigma)
    mark = torch.floor(W / s) + (1.2 * sigma - 0.1).clamp(0, 1) + z
    inside, moving = (mark > 0) & (mark < 3), (1.2 * sigma > 0.1) & (1.2 * sigma < 1.1)
    for what, counted in (("marks and h", D), ("marks", D * moving), ("h", D * inside)):
        same = len(got) == 2 and got[0].shape == A1.shape and torch.allclose(got[0], counted @ A2.T, atol=1e-5)
        assert not same, f"clipped {what}: weights that cannot move must not count"


EXERCISES = {"cbq-1": visits, "cbq-2": fold, "cbq-3": factor_gradients}
