"""The error-feedback solver: round one column, let the columns still to come make up for it.

GPTQ, SpQR, BiLLM, OAC and VPTQ are this loop with different answers to two questions: what H is, and what "round this
column" means.  With H = V diag(D) V.T (`hessian.factor`) and columns visited in order,

    t_j     = w_j + sum_{k<j} (w_k - w_hat_k) V_kj          the best value of column j now that columns k < j are fixed
    w_hat_j = round(t_j)

and with E = W - W_hat the layer's error is exactly  tr(E H E.T) = sum_j D_j |t_j - w_hat_j|**2.  Only original weights
and rounded ones appear: no inverse, no second copy of W being edited.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb import kernels
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import factor

ORDERS = ("natural", "act", "gar", "min_pivot")


class Rounder(Protocol):
    """What "round this column" means.

    span     columns that are looked at together before the first of them is rounded (a group); 0 if that is not needed
    prepare  is given, before the first column, the weights [d_in, d_out] in visiting order and the cost D [d_in] of each
    start    is given the current values of the columns of a group, [span, d_out]
    round    is given the current value of column j and returns its rounded value, both [d_out]
    stretch  need not exist: is given original and current values of several columns of one group, [k, d_out], and their part
             of V [k, k]; returns their rounded values and leaves in T what each was when it was rounded

    Source: this project. Differs: no difference.
    """

    span: int

    def prepare(self, Wt: Tensor, D: Tensor) -> None: ...
    def start(self, j: int, now: Tensor) -> None: ...
    def round(self, j: int, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FeedbackResult:
    """Rounded weight and its exact cost under the H that was used.

    Source: this project. Differs: no difference.
    """

    W_hat: Tensor  # [d_out, d_in], original column order
    loss: float  # tr((W - W_hat) H (W - W_hat).T)
    column_loss: Tensor  # [d_in], in visiting order; sums to loss
    T: Tensor | None = None  # [d_out, d_in], original column order: what each column was when it was rounded, if asked for


def feedback(W: Tensor, H: Tensor, rounder: Rounder, perm: Tensor | None = None, block: int = 128,
             aims: bool = False) -> FeedbackResult:
    """Round W column by column with error feedback under the metric H.

    Shapes:  W [d_out, d_in]; H [d_in, d_in] conditioned; perm [d_in] visiting order or None; aims: keep T.
    Units:   loss in units of W**2 * H, summed over rows.
    Raises:  ValueError if H is not positive definite, or W is not finite or does not fit H.
    Source:  GPTQ, Sec. 3.3, Alg. 1; the left-looking form is LDLQ (QuIP, Sec. 3.1).
    Differs: one Cholesky; a group's statistics always see current values, also inside a block (the reference's are stale).
    """
    _check(W, H)
    perm = torch.arange(W.shape[1], device=W.device) if perm is None else perm
    V, D = factor(H[perm[:, None], perm])
    Wt = W.T[perm].to(V.dtype).contiguous()  # [d_in, d_out]: a column of W is contiguous
    Wt_hat, Et = torch.empty_like(Wt), torch.zeros_like(Wt)  # rounded, and original minus rounded, so far
    column_loss = torch.empty_like(D)
    Tt = torch.empty_like(Wt) if aims else None
    rounder.prepare(Wt, D)
    together = getattr(rounder, "stretch", None) if kernels.ready(Wt) else None
    for a in range(0, len(Wt), block):
        b = min(a + block, len(Wt))
        T = Wt[a:b] + V[:a, a:b].T @ Et[:a]  # what every earlier block asks of this one
        for c, d in _stretches(a, b, rounder.span):
            if rounder.span and c % rounder.span == 0:
                rounder.start(c, _current(Wt, Et, V, T, a, b, c, rounder.span))
            if together:
                Wt_hat[c:d] = together(c, Wt[c:d], T[c - a : d - a], V[c:d, c:d])
                torch.sub(Wt[c:d], Wt_hat[c:d], out=Et[c:d])
                T[d - a :].addmm_(V[c:d, d:b].T, Et[c:d])
                continue
            for j in range(c, d):
                Wt_hat[j] = rounder.round(j, T[j - a])
                torch.sub(Wt[j], Wt_hat[j], out=Et[j])
                T[j - a + 1 :].addr_(V[j, j + 1 : b], Et[j])
        column_loss[a:b] = (T - Wt_hat[a:b]).square().sum(1) * D[a:b]
        if aims:
            Tt[a:b] = T
    W_hat, aimed = (None if t is None else torch.empty_like(W).index_copy_(1, perm, t.T.to(W.dtype)) for t in (Wt_hat, Tt))
    return FeedbackResult(W_hat, float(column_loss.sum()), column_loss, aimed)


def _stretches(a: int, b: int, span: int) -> list[tuple[int, int]]:
    """Columns a .. b cut wherever a group begins."""
    cuts = [a, *range((a // span + 1) * span, b, span), b] if span else [a, b]
    return list(pairwise(cuts))


def _current(Wt: Tensor, Et: Tensor, V: Tensor, T: Tensor, a: int, b: int, j: int, span: int) -> Tensor:
    """The current values of columns j .. j+span: the best real values for them, given the columns before j.

    They make the group's own terms vanish: E_G V_GG = -A_G, where A_G is what the fixed errors ask of the group.
    """
    G = slice(j, j + span)
    A = T[j - a : j - a + span] - Wt[G] if j + span <= b else V[:j, G].T @ Et[:j]
    return Wt[G] + torch.linalg.solve_triangular(V[G, G].T, A, upper=False, unitriangular=True)


class AffineRounder:
    """Round a column to its group's affine grid and keep the codes.

    Static groups: s and z are given, fitted to the original weight; column j of the visiting order belongs to group
    perm[j] // g, so nothing about the order need be stored.  Dynamic groups: g columns in visiting order form a group,
    fitted to their current values when the first of them is reached.

    Source: GPTQ code (`static_groups`, `find_params` inside the loop). Differs: dynamic groups see current values.
    """

    def __init__(self, grid: Grid, perm: Tensor, d_out: int, s: Tensor | None = None, z: Tensor | None = None,
                 clip: str = "minmax", weight: Tensor | None = None) -> None:
        self.grid, self.perm, self.clip = grid, perm, clip
        self.dynamic = s is None
        self.g = grid.g(len(perm))
        self.span = self.g if self.dynamic else 0
        self.weight = None if weight is None else weight[perm]
        self.group_of = (torch.arange(len(perm)) if self.dynamic else perm.cpu()).div(self.g, rounding_mode="floor").tolist()
        shape = (grid.n_groups(len(perm)), d_out)
        self.s = torch.empty(shape, device=perm.device) if s is None else s.T.contiguous()
        self.z = torch.empty(shape, device=perm.device) if z is None else z.T.contiguous()
        self.q = torch.empty(len(perm), d_out, dtype=torch.uint8, device=perm.device)  # visiting order

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Nothing: nearest marks need no costs."""

    def start(self, j: int, now: Tensor) -> None:
        """Fit the group that begins at column j, if groups are dynamic.

        Shapes:  now [g, d_out].
        Units:   those of the weight.
        Raises:  ValueError as `grid.fit`.
        Source:  GPTQ code (gptq.py: fasterquant).
        Differs: sees current values.
        """
        if self.dynamic:
            weight = None if self.weight is None else self.weight[j : j + self.span]
            one_group = Grid(self.grid.bits, None, self.grid.symmetric, self.grid.zero_inside, self.grid.scale_dtype)
            s, z = grids.fit(now.T, one_group, self.clip, weight)
            self.s[j // self.span], self.z[j // self.span] = s[:, 0], z[:, 0]

    def round(self, j: int, t: Tensor) -> Tensor:
        """The nearest mark for every row of column j.

        Shapes:  t [d_out]; returns [d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTQ code (quant.py: quantize).
        Differs: no difference.
        """
        s, z = self.s[self.group_of[j]], self.z[self.group_of[j]]
        q = grids.codes(t, s, z, self.grid)
        self.q[j] = q
        return q.sub_(z).mul_(s)

    def stretch(self, j: int, Wt: Tensor, T: Tensor, V: Tensor) -> Tensor:
        """The nearest marks for columns of one stretch, one after the other (`kernels.columns`).

        Shapes:  Wt, T [k, d_out]; V [k, k]; returns [k, d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTQ, Alg. 1.
        Differs: no difference.
        """
        from lowbit_nb.kernels import columns

        groups = torch.tensor(self.group_of[j : j + len(T)], device=T.device)
        q, W_hat, _ = columns.walk(Wt, T, V, self.s[groups], self.z[groups], self.grid.q_max, self.grid.stored_zero == "real")
        self.q[j : j + len(T)] = q
        return W_hat

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Codes, steps, zero points and, only if the grid needs it to be read back, the permutation.

        Shapes:  q [d_out, d_in] uint8; s, z [d_out, n_groups]; perm [d_in] or None.
        Units:   as `grid.quantize`.
        Raises:  nothing.
        Source:  this project.
        Differs: the order is stored only for dynamic groups of scattered columns.
        """
        if not self.dynamic:
            q = torch.empty_like(self.q).index_copy_(0, self.perm, self.q).T.contiguous()
            return q, self.s.T, self.z.T, None
        q, (s, z), kept = homeward(self.perm, self.g, self.q, self.s, self.z)
        return q, s, z, kept


def homeward(perm: Tensor, g: int, q: Tensor, *of_groups: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Codes and what belongs to their groups, back in the weight's own order where the groups stayed whole.

    Shapes:  perm [d_in]; q [d_in, d_out] and of_groups [n_groups, ...] in visiting order; returns q [d_out, d_in], the others
             transposed, and the perm that must be stored: None if the groups stayed whole.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    home = perm.div(g, rounding_mode="floor").reshape(-1, g)
    if bool((home != home[:, :1]).any()):
        return q.T.contiguous(), [t.T for t in of_groups], perm
    back = [torch.empty_like(t).index_copy_(0, home[:, 0], t).T for t in of_groups]
    return torch.empty_like(q).index_copy_(0, perm, q).T.contiguous(), back, None


def order(H: Tensor, name: str, g: int) -> Tensor:
    """The order in which columns are visited.

    natural    left to right            act        by diag(H), largest first
    gar        by diag(H) inside each group, then groups by their largest: groups stay whole
    min_pivot  from the end: the column that would cost least once all others are fixed comes last, and so on

    Shapes:  H [d_in, d_in] conditioned; returns perm [d_in] int64: perm[j] is the column visited at step j.
    Units:   none.
    Raises:  ValueError for an unknown order.
    Source:  GPTQ code (actorder); GPTQModel (group-aware reordering); min_pivot after the Babai view of GPTQ.
    Differs: ties keep their natural order.

    >>> order(torch.diag(torch.tensor([1.0, 3.0, 2.0, 9.0])), "gar", g=2).tolist()
    [3, 2, 1, 0]
    """
    diag = H.diagonal()
    if name == "natural":
        return torch.arange(len(diag), device=H.device)
    if name == "act":
        return diag.argsort(descending=True, stable=True)
    if name == "gar":
        diag_g = diag.reshape(-1, g)
        inside = diag_g.argsort(dim=1, descending=True, stable=True) + torch.arange(0, len(diag), g, device=H.device)[:, None]
        return inside[diag_g.amax(1).argsort(descending=True, stable=True)].flatten()
    if name == "min_pivot":
        return _min_pivot(H)
    raise ValueError(f"order={name!r} is unknown; use one of {', '.join(ORDERS)}")


def _min_pivot(H: Tensor) -> Tensor:
    """Eliminate the cheapest column, again and again; the first one eliminated is visited last."""
    S, last_first = H.clone(), []
    left = torch.ones(len(H), dtype=torch.bool, device=H.device)
    for _ in range(len(H)):
        j = int(S.diagonal().masked_fill(~left, torch.inf).argmin())
        last_first.append(j)
        left[j] = False
        S.addr_(S[j] / S[j, j], S[j].clone(), alpha=-1.0)  # Schur complement: what remains once column j has adapted
    return torch.tensor(last_first[::-1], device=H.device)


def _check(W: Tensor, H: Tensor) -> None:
    if W.ndim != 2 or H.shape != (W.shape[1], W.shape[1]):
        raise ValueError(f"W {tuple(W.shape)} and H {tuple(H.shape)} do not fit: "
                         f"H must be [d_in, d_in] with d_in={W.shape[-1]}")
    if not torch.isfinite(W).all():
        raise ValueError(f"W has {int((~torch.isfinite(W)).sum())} non-finite values; error feedback needs finite weights")
