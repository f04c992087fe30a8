"""How a ruler is laid over a group: over the whole range of its weights, or over the share of it that costs least."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb import kernels
from lowbit_nb.grid.marks import Grid, grouped, ruler, shorter

SHRINK = tuple(1.0 - i / 40 for i in range(33))  # clip search: 100 % of the range down to 20 %, in steps of 2.5 %


def fit(W: Tensor, grid: Grid, clip: str = "minmax", weight: Tensor | None = None, norm: float = 2.0) -> tuple[Tensor, Tensor]:
    """Lay one ruler over every group of W.

    clip="minmax" spans the smallest and largest weight; clip="mse" also tries shorter rulers and, for an integer zero
    point, both integers next to the ideal one, and keeps what gives the least sum of weight * |W_hat - W|**norm.  A weight
    that is a Gram matrix for each group (`hessian.gram`) scores the group's own output error, E M E.T, exactly.

    Shapes:  W [d_out, d_in]; weight [d_in] or [n_groups, g, g] or None; returns s, z, both [d_out, n_groups] float32.
    Units:   s is real units per step and exactly representable in grid.scale_dtype; z is in integer steps.
    Raises:  ValueError for a group that does not divide d_in, a non-finite weight, an unknown clip, or a range that the
             scale type cannot hold.
    Source:  GPTQ code (quant.py, `mse=True`, exponent 2.4); trying both neighbours of the zero point as GPTQModel does
             at 2 bits.
    Differs: the error may be weighted by column importance (diag of H); the exponent is 2 unless asked for.

    >>> s, z = fit(torch.tensor([[-1.0, 2.0, 0.5, 0.0]]), Grid(2))
    >>> s.tolist(), z.tolist()
    ([[1.0]], [[1.0]])
    """
    _check(W, grid, clip, weight)
    W_g = grouped(W.float(), grid)
    lo, hi = W_g.amin(-1), W_g.amax(-1)
    if grid.zero_inside:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if grid.symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    if clip == "minmax":
        return ruler(lo, hi, grid)
    importance = weight if weight is None or weight.ndim == 3 else grouped(weight.float()[None], grid)[0]
    s, z = shorter(lo, hi, grid, SHRINK)
    best = _best(W_g, s, z, importance, grid, norm)[None]
    return s.gather(0, best)[0], z.gather(0, best)[0]


def _best(W_g: Tensor, s: Tensor, z: Tensor, importance: Tensor | None, grid: Grid, norm: float) -> Tensor:
    """The candidate with the least error, for each group; the first of equals: the longest ruler."""
    if kernels.ready(W_g) and norm == 2 and (importance is None or importance.ndim == 2):
        from lowbit_nb.kernels import rulers

        flat = rulers.best(W_g.flatten(0, 1), s.flatten(1), z.flatten(1), importance, grid.q_max)
        return flat.view(W_g.shape[:2])
    losses = [_loss(W_g, s_k, z_k, importance, grid, norm) for s_k, z_k in zip(s, z, strict=True)]
    return torch.stack(losses).argmin(0)


def _loss(W_g: Tensor, s: Tensor, z: Tensor, importance: Tensor | None, grid: Grid, norm: float) -> Tensor:
    """sum of importance * |W_hat - W|**norm over each group, reckoned in steps: one pass over the weights, few operations."""
    steps = torch.addcdiv(z[..., None], W_g, s[..., None])
    err = steps.round().clamp_(0, grid.q_max).sub_(steps)
    if importance is not None and importance.ndim == 3:  # a Gram matrix a group: the error of the group's own output
        return (torch.einsum("ogi,gij->ogj", err, importance) * err).sum(-1) * s**2
    err = err.square_() if norm == 2 else err.abs_().pow_(norm)
    return (err if importance is None else err.mul_(importance)).sum(-1) * s**norm


def _check(W: Tensor, grid: Grid, clip: str, weight: Tensor | None) -> None:
    if W.ndim != 2:
        raise ValueError(f"W must be [d_out, d_in]; got shape {tuple(W.shape)}")
    grid.g(W.shape[1])
    if not torch.isfinite(W).all():
        raise ValueError(f"W has {int((~torch.isfinite(W)).sum())} non-finite values; a grid needs finite weights")
    if clip not in ("minmax", "mse"):
        raise ValueError(f"clip={clip!r} is unknown; use 'minmax' or 'mse'")
    g = grid.g(W.shape[1])
    if weight is not None and tuple(weight.shape) not in ((W.shape[1],), (W.shape[1] // g, g, g)):
        raise ValueError(f"weight must be [{W.shape[1]}], one value a column, or [{W.shape[1] // g}, {g}, {g}], a Gram matrix "
                         f"a group; got {list(weight.shape)}")
    if weight is not None and not (torch.isfinite(weight).all() and (weight.ndim == 3 or (weight >= 0).all())):
        raise ValueError("weight holds negative or non-finite values; importances are finite and at least 0 (diag of H)")
