"""Slow, plain second opinions: from the formulas, in float64 or Python integers, never from the code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def correlated(n: int, d_in: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Layer inputs with strong correlations and a wide spread of column sizes. [n, d_in]"""
    X = torch.randn(n, d_in, generator=generator, dtype=dtype)
    mix = torch.randn(d_in, d_in, generator=generator, dtype=dtype) / d_in**0.5 + torch.eye(d_in, dtype=dtype)
    return (X @ mix) * torch.logspace(-0.6, 0.6, d_in, dtype=dtype)[torch.randperm(d_in, generator=generator)]


def problem(d_out: int, d_in: int, generator: torch.Generator, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    """A weight and a conditioned Hessian in float64."""
    X = correlated(4 * d_in, d_in, generator)
    H = X.T @ X / len(X)
    W = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    return W, H + damp * H.diagonal().mean() * torch.eye(d_in, dtype=torch.float64)


def cost(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """tr((W - W_hat) H (W - W_hat).T), one row at a time."""
    return sum(float((w - v) @ H @ (w - v)) for w, v in zip(W, W_hat, strict=True))


def obq_fixed_order(W: Tensor, H: Tensor, perm: list[int], round_column: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Optimal brain quantization, all rows in one order, with the inverse kept and downdated explicitly.

    `round_column(c, w)` gives the rounded values of column c of the weight.
    """
    W, M, out = W.clone(), torch.linalg.inv(H), torch.empty_like(W)
    for c in perm:
        out[:, c] = round_column(c, W[:, c])
        W -= torch.outer((W[:, c] - out[:, c]) / M[c, c], M[c])
        M = M - torch.outer(M[c], M[c]) / M[c, c]
        M[c, c] = 1.0  # never looked at again
    return out


def current_values(W: Tensor, Q: Tensor, H: Tensor, fixed: list[int], free: list[int]) -> Tensor:
    """Where the free columns move to when the fixed ones hold Q: the minimum of the cost, solved from scratch.

    dJ/dE_free = 0  =>  E_free = -E_fixed H_xf inv(H_ff);  current = W - E.
    """
    if not fixed:
        return W[:, free]
    E = (W - Q)[:, fixed]
    moved = torch.linalg.solve(H[free][:, free], H[free][:, fixed] @ E.T).T
    return W[:, free] + moved


def every_code(levels: int, n: int) -> Iterator[tuple[int, ...]]:
    return itertools.product(range(levels), repeat=n)


def field_of(words: list[int], bits: int, column: int, d_in: int) -> int:
    """One code of one packed part (1, 2, 4 or 8 bits), read from the documented place with Python integers."""
    per_word = 32 // bits
    full, inside = divmod(column, per_word * 64)
    n_full = d_in // (per_word * 64)
    if full < n_full:
        word, field = full * 64 + inside % 64, inside // 64
    else:
        plane = -(-(d_in - n_full * per_word * 64) // per_word)
        inside = column - n_full * per_word * 64
        word, field = n_full * 64 + inside % plane, inside // plane
    return ((words[word] % 2**32) >> (bits * field)) % 2**bits
