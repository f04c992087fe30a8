"""Exercises of 03_hessians_and_feedback: the best rest of a row, the price of a column, GPTQ as the paper writes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.feedback import AffineRounder, feedback
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import factor


def _hessian(d: int, seed: int) -> Tensor:
    """A well-conditioned H of correlated inputs, float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(d, dtype=torch.float64) + 0.4 * torch.randn(d, d, generator=g, dtype=torch.float64)
    X = torch.randn(8 * d, d, generator=g, dtype=torch.float64) @ mix
    return X.T @ X / len(X)


def best_rest(attempt: Callable) -> None:
    """The error must not rise, and its slope at the answer must be zero."""
    for d, seed in ((2, 0), (5, 1), (9, 2)):
        H = _hessian(d, seed)
        w = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        first = round(float(w[0])) + 1.0
        got = torch.as_tensor(attempt(w.clone(), H.clone(), first))
        assert got.shape == (d - 1,), f"expected d - 1 values, all but the first; got {tuple(got.shape)}"
        e = torch.cat([(w[0] - first)[None], w[1:] - got])
        alone = torch.cat([(w[0] - first)[None], torch.zeros(d - 1, dtype=torch.float64)])
        assert e @ H @ e <= alone @ H @ alone + 1e-9, "the error rose: leaving the others alone was better"
        slope = float((H @ e)[1:].abs().max())
        assert slope < 1e-8, f"there is more to gain: at your answer the error has slope {slope:.2g}, not 0"


def price(attempt: Callable) -> None:
    """Against D of the package's factor, column by column."""
    for d, seed in ((3, 0), (6, 1), (8, 2)):
        H = _hessian(d, seed)
        D = factor(H)[1]
        for j in range(d):
            got = float(attempt(H.clone(), j))
            place = f"d={d}, j={j}: {got:.4g} instead of {float(D[j]):.4g}"
            unadapted = j < d - 1 and abs(got - float(H[j, j])) < 1e-9
            assert not unadapted, f"{place}; later columns may adapt, this is the price when none does"
            assert abs(got - float(D[j])) < 1e-8, f"{place}; earlier columns are fixed, later ones are free"


def gptq_paper(attempt: Callable) -> None:
    """Against the codes of the package's solver, all rows."""
    for d_out, d_in, bits, seed in ((1, 4, 2, 0), (5, 16, 3, 1), (3, 24, 2, 2)):
        H, grid = _hessian(d_in, seed), Grid(bits)
        W = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        s, z = grids.fit(W, grid)
        rounder = AffineRounder(grid, torch.arange(d_in), d_out, s, z)
        feedback(W, H, rounder)
        want = rounder.result()[0].long()
        got = torch.as_tensor(attempt(W.clone(), H.clone(), s[:, 0].double(), z[:, 0].double(), grid.q_max))
        assert got.shape == (d_out, d_in), f"expected codes [{d_out}, {d_in}], got shape {tuple(got.shape)}"
        whole = bool((got == got.long()).all()) and int(got.min()) >= 0 and int(got.max()) <= grid.q_max
        assert whole, f"codes must be whole numbers from 0 to q_max={grid.q_max}"
        plain = grids.quantize(W, s, z, grid).long()
        forgot = torch.equal(got.long(), plain) and not torch.equal(want, plain)
        assert not forgot, "this is plain rounding: the errors do not reach the later columns"
        wrong = int((got.long() != want).sum())
        assert wrong == 0, f"codes differ from feedback's in {wrong} of {want.numel()} places"


EXERCISES = {"feedback-1": best_rest, "feedback-2": price, "feedback-3": gptq_paper}
