"""Exercises of 09_one_bit: the bill, a rank-one fit on a region, four levels column by column."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.regions import planes


def total_bits(attempt: Callable) -> None:
    """Against bits() of weights that were really stored; blocks that divide d_in, and ones that do not."""
    for d_out, d_in, span in ((16, 128, 64), (8, 96, 32), (24, 64, 64), (16, 96, 64), (5, 160, 128)):
        W = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(d_in))
        parts = [planes(part, torch.arange(part.shape[1]) < 2, part.abs() > 1) for part in W.split(span, 1)]
        want, got = BinaryWeight.join(parts).bits().bits, attempt(d_out, d_in, span)
        size = f"{d_out} x {d_in} weights in blocks of {span}"
        assert got != want - 112 * d_out or d_in % span == 0, f"{size}: {got} bits, {want} on disk; it counts whole blocks only"
        assert got == want, f"{size}: {got} bits, {want} on disk"


def rank_one(attempt: Callable) -> None:
    """Against loops; what lies outside the mask must not matter."""
    g = torch.Generator().manual_seed(1)
    for d_out, d_in, rounds, share in ((4, 6, 1, 1.0), (5, 3, 2, 1.0), (8, 10, 1, 0.5), (6, 12, 3, 0.6)):
        A = torch.rand(d_out, d_in, generator=g, dtype=torch.float64) + 0.1
        mask = torch.rand(d_out, d_in, generator=g) <= share
        mask[:, 0], mask[0] = True, True  # no empty row or column
        given = A.clone(), mask.clone()
        u, v = (torch.as_tensor(x) for x in attempt(*given, rounds))
        want = _alternate(A.tolist(), mask.tolist(), rounds)
        assert u.shape == (d_out,) and v.shape == (d_in,), f"expected {d_out} and {d_in} numbers, got others"
        gap = max(float((x - torch.tensor(y, dtype=torch.float64)).abs().max()) for x, y in zip((u, v), want, strict=True))
        where = "with a full mask" if share == 1 else "entries outside the mask count, or the sums differ"
        assert gap < 1e-9, f"{d_out} x {d_in}, {rounds} rounds: {where}: off by up to {gap:.3g}"


def _alternate(A: list[list[float]], mask: list[list[bool]], rounds: int) -> tuple[list[float], list[float]]:
    rows, cols = range(len(A)), range(len(A[0]))
    v = [1.0] * len(A[0])
    for _ in range(rounds):
        u = [sum(A[i][j] * v[j] for j in cols if mask[i][j]) / sum(v[j] ** 2 for j in cols if mask[i][j]) for i in rows]
        v = [sum(A[i][j] * u[i] for i in rows if mask[i][j]) / sum(u[i] ** 2 for i in rows if mask[i][j]) for j in cols]
    return u, v


def by_column(attempt: Callable) -> None:
    """Against the Cholesky form of the same loop, with and without correlation."""
    for d_out, d_in, mixed, seed in ((6, 8, False, 0), (8, 12, True, 1), (4, 20, True, 2)):
        g = torch.Generator().manual_seed(seed)
        W = torch.randn(d_out, d_in, generator=g, dtype=torch.float64)
        levels = torch.randn(d_out, 4, generator=g, dtype=torch.float64)
        X = torch.randn(200, d_in, generator=g, dtype=torch.float64)
        X = X @ (torch.eye(d_in) + 0.4 * torch.randn(d_in, d_in, generator=g)).double() if mixed else X
        H = X.T @ X / 200 if mixed else torch.diag(torch.rand(d_in, generator=g, dtype=torch.float64) + 0.5)
        got, want = torch.as_tensor(attempt(W.clone(), H.clone(), levels.clone())), _updated(W, H, levels)
        assert got.shape == W.shape, f"expected shape {tuple(W.shape)}, got {tuple(got.shape)}"
        strange = int(((got[..., None] - levels[:, None]).abs().amin(-1) > 1e-9).sum())
        assert not strange, f"{strange} of {W.numel()} entries are not levels of their row"
        wrong = int(((got - want).abs() > 1e-9).sum())
        assert not wrong, f"{wrong} of {W.numel()} entries take another level, {'with' if mixed else 'without'} correlation"


def _updated(W: Tensor, H: Tensor, levels: Tensor) -> Tensor:
    """GPTQ's own form: every error is handed on through the Cholesky factor of the inverse."""
    U, now, out = torch.linalg.cholesky(torch.linalg.inv(H), upper=True), W.clone(), torch.zeros_like(W)
    for j in range(W.shape[1]):
        out[:, j] = levels.gather(1, (levels - now[:, j : j + 1]).abs().argmin(1, keepdim=True))[:, 0]
        now[:, j + 1 :] -= torch.outer((now[:, j] - out[:, j]) / U[j, j], U[j, j + 1 :])
    return out


EXERCISES = {"onebit-1": total_bits, "onebit-2": rank_one, "onebit-3": by_column}
