"""Exercises of 05_learned_clipping: a rate that gets there, the slope in one end, factors for rotary pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def rate_for(attempt: Callable) -> None:
    """Against the distance of the logits."""
    for start, goal, steps in ((0.982, 0.6, 30), (0.5, 0.9, 7), (0.7, 0.4, 100)):
        got = float(attempt(start, goal, steps))
        want = abs(math.log(start / (1 - start)) - math.log(goal / (1 - goal))) / steps
        place = f"from {start} to {goal} in {steps} steps: {got:.4g} instead of {want:.4g}"
        assert got > 0, f"{place}; a rate is positive, whichever way the end goes"
        linear = abs(got - abs(start - goal) / steps) < 1e-9
        assert not linear, f"{place}; shares are not what moves, their logits are"
        assert abs(got - want) < 1e-6, f"{place}; distance of the logits over steps"


def _by_autograd(w: Tensor, lo: float, hi: float, q_max: int) -> tuple[Tensor, Tensor]:
    """d w_hat / d hi with both roundings passed through, and the codes before they are clamped."""
    end = torch.tensor(hi, dtype=torch.float64, requires_grad=True)
    s = (end - lo) / q_max
    z = -lo / s
    z = z + (z.round() - z).detach()
    free = w / s + z + ((w / s).round() - w / s).detach()
    w_hat = s * (free.clamp(0, q_max) - z)
    slopes = [torch.autograd.grad(one, end, retain_graph=True)[0] for one in w_hat]
    return torch.stack(slopes), free.detach()


def slope_of_hi(attempt: Callable) -> None:
    """Against autograd, for weights inside the ruler and beyond both ends."""
    for lo, hi, q_max, seed in ((-1.0, 1.3, 3, 0), (-0.8, 0.5, 7, 1), (-0.45, 1.6, 3, 2)):
        w = 1.2 * torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        want, free = _by_autograd(w, lo, hi, q_max)
        got = torch.as_tensor(attempt(w.clone(), lo, hi, q_max))
        assert got.shape == w.shape, f"expected one slope a weight, [40]; got shape {tuple(got.shape)}"
        wrong = (got - want).abs() > 1e-8
        for where, name in ((free > q_max + 0.5, "clamped at the top"), (free < -0.5, "clamped at the bottom")):
            first = torch.nonzero(wrong & where)
            assert not len(first), f"{name}: w = {w[first[0]].item():.3f} on a ruler from {lo} to {hi}; the slope is " \
                                   f"{want[first[0]].item():.4f}, not {got[first[0]].item():.4f}"
        first = torch.nonzero(wrong)
        assert not len(first), f"inside the ruler: w = {w[first[0]].item():.3f} on a ruler from {lo} to {hi}; the slope is " \
                               f"{want[first[0]].item():.4f}, not {got[first[0]].item():.4f}"


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rows of every head turned: channels j and j + half by angles[j]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def _products(q: Tensor, k: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """Every query head turned by one, times the key head that it reads, turned by two."""
    return (_turned(q, one) * _turned(k, two).repeat_interleave(len(q) // len(k), 0)).sum(-1)


def row_factors(attempt: Callable) -> None:
    """Products of turned queries and keys stay, and the key rows really are scaled by f."""
    for n_query, n_key, head_dim, seed in ((2, 2, 4, 0), (4, 2, 8, 1), (6, 2, 4, 2), (4, 1, 6, 3)):
        g = torch.Generator().manual_seed(seed)
        f = torch.exp(0.5 * torch.randn(n_key * head_dim // 2, generator=g, dtype=torch.float64))
        query, key = (torch.as_tensor(x) for x in attempt(f.clone(), n_query, n_key, head_dim))
        shapes = query.shape == (n_query * head_dim,) and key.shape == (n_key * head_dim,)
        got = f"{list(query.shape)} and {list(key.shape)}"
        assert shapes, f"expected shapes [{n_query * head_dim}] and [{n_key * head_dim}], got {got}"
        q = torch.randn(n_query, head_dim, generator=g, dtype=torch.float64)
        k = torch.randn(n_key, head_dim, generator=g, dtype=torch.float64)
        one, two = (torch.rand(head_dim // 2, generator=g, dtype=torch.float64) * 6 for _ in range(2))
        scaled = q * query.reshape(q.shape), k * key.reshape(k.shape)
        moved = (_products(*scaled, one, two) - _products(q, k, one, two)).abs().max()
        heads = f"{n_query} query heads, {n_key} key heads, {head_dim} wide"
        assert moved < 1e-9, f"the products moved by up to {float(moved):.3g} ({heads})"
        used = torch.allclose(key.reshape(n_key, head_dim)[:, : head_dim // 2].flatten(), f)
        assert used, "f is not used: the first half of every key head is multiplied by its own factors"


EXERCISES = {"clipping-1": rate_for, "clipping-2": slope_of_hi, "clipping-3": row_factors}
