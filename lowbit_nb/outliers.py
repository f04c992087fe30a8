"""Weights that leave the grid: which of them are worth 16 bits and an address, decided while a layer is rounded.

With error feedback, rounding entry (i, j) costs D_j (t_ij - w_hat_ij)**2 once all later columns have adapted.  Entries above
a threshold stay, as corrections; before a group's grid is laid, entries whose absence would let the grid fit the others
better are kept out of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowbit_nb.bilevel import BilevelWeight, Coded, Second
from lowbit_nb.feedback import homeward
from lowbit_nb.grid import SHRINK, Grid
from lowbit_nb.sparse import CorrectedWeight


def leave_one_out(G: Tensor, cost: Tensor, q_max: int) -> Tensor:
    """By how much the group's rounding error falls when one weight is taken out and the grid is laid anew without it.

    Only the smallest and the largest weight of a group hold its grid: for all others the gain is their own error, so two
    refits a group are enough.

    Shapes:  G [d_out, g] current values; cost [g] of a squared error; returns [d_out, g].
    Units:   those of D * w**2.
    Raises:  nothing.
    Source:  SpQR, Alg. 1 (outliers by leave-one-out).
    Differs: exact by two refits instead of g.
    """
    error = _errors(G, *_lay(G.amin(1), G.amax(1), q_max), cost, q_max)
    gain = error.clone()
    if G.shape[1] < 3:
        return gain
    low, high = G.topk(2, 1, largest=False).values, G.topk(2, 1).values
    ends = ((G.argmin(1), low[:, 1], high[:, 0]), (G.argmax(1), low[:, 0], high[:, 1]))
    for out, lo, hi in ends:
        without = _errors(G, *_lay(lo, hi, q_max), cost, q_max).scatter_(1, out[:, None], 0.0)
        gain.scatter_(1, out[:, None], (error.sum(1) - without.sum(1))[:, None])
    return gain


def _lay(lo: Tensor, hi: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """A ruler from lo to hi with a real zero point; one of no length stands at lo. [d_out] each"""
    s = torch.where(hi > lo, (hi - lo) / q_max, 1.0)
    return s, -lo / s


def _lay_with_neighbours(lo: Tensor, hi: Tensor, q_max: int, rows: int) -> tuple[Tensor, Tensor]:
    """Rulers as `_lay`; rows of no length take the mean step of those they share a second-level grid with, and a zero point
    near theirs, so that they do not stretch it."""
    s, z = _lay(lo, hi, q_max)
    flat = ~(hi > lo)
    if not flat.any() or len(lo) % rows:  # `Coded.of` refuses the latter
        return s, z
    live = (~flat).float().reshape(-1, rows)
    count = live.sum(1, keepdim=True)
    s_mean, z_mean = ((t.reshape(-1, rows) * live).sum(1, keepdim=True) / count.clamp(min=1) for t in (s, z))
    s_mean = torch.where(count > 0, s_mean, 1.0).expand(-1, rows).flatten()
    at = lo / s_mean
    q = torch.round(at + z_mean.expand(-1, rows).flatten()).clamp_(0, q_max)
    return torch.where(flat, s_mean, s), torch.where(flat, q - at, z)


def _shorter(G: Tensor, lo: Tensor, hi: Tensor, cost: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """The ends, about the same middle, that give each group the least cost. [d_out] each"""
    middle, half = (lo + hi) / 2, (hi - lo) / 2
    tried = [half * share for share in SHRINK]
    costs = [_errors(G, *_lay(middle - h, middle + h, q_max), cost, q_max).sum(1) for h in tried]
    half = torch.stack(tried).gather(0, torch.stack(costs).argmin(0, keepdim=True))[0]
    return middle - half, middle + half


def _errors(G: Tensor, s: Tensor, z: Tensor, cost: Tensor, q_max: int) -> Tensor:
    q = torch.round(G / s[:, None] + z[:, None]).clamp_(0, q_max)
    return ((q - z[:, None]) * s[:, None] - G).square() * cost


class BilevelRounder:
    """Round to grids with coded steps, and keep as corrections what would cost more than a threshold.

    threshold  in units of the mean of D_j var(W_j): smaller keeps more; inf keeps nothing
    refit      lay each group's grid without the weights whose absence helps by more than the threshold
    clip       minmax: a grid spans its group; mse: shorter ones are tried too, as in `grid.fit`

    Source: SpQR, Alg. 1. Differs: a correction is added to the nearest mark, not put in the place of the code of zero.
    """

    def __init__(self, grid: Grid, second: Second, perm: Tensor, d_out: int, threshold: float = 0.2,
                 refit: bool = True, clip: str = "minmax") -> None:
        if grid.stored_zero != "real":
            raise ValueError("coded zero points are real numbers: use a grid with zero_inside=False")
        self.grid, self.second, self.perm, self.threshold, self.refit = grid, second, perm, threshold, refit
        self.clip = clip
        self.g = self.span = grid.g(len(perm))
        self.q = torch.empty(len(perm), d_out, dtype=torch.uint8, device=perm.device)  # visiting order
        self.kept = torch.zeros(len(perm), d_out, dtype=torch.float16, device=perm.device)
        self.scales: list[Coded] = []
        self.zeros: list[Coded] = []

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """The threshold in units of cost.

        Shapes:  Wt [d_in, d_out]; D [d_in].
        Units:   D * w**2.
        Raises:  nothing.
        Source:  SpQR code (spqr_engine.py).
        Differs: no difference.
        """
        self.D = D
        spread = Wt.var(1) if Wt.shape[1] > 1 else Wt.square().mean(1)
        self.tau = float((spread * D).mean()) * self.threshold if math.isfinite(self.threshold) else math.inf

    def start(self, j: int, now: Tensor) -> None:
        """Lay the grid of the group that begins at column j, and code its steps and zero points.

        Shapes:  now [g, d_out].
        Units:   those of the weight.
        Raises:  ValueError as `Coded.of`.
        Source:  SpQR, Alg. 1.
        Differs: sees current values.
        """
        G = now.T
        if self.refit and math.isfinite(self.tau):
            out = leave_one_out(G, self.D[j : j + self.g], self.grid.q_max) > self.tau
            n_in = (~out).sum(1).clamp(min=1)
            mean = (G.masked_fill(out, 0.0).sum(1) / n_in)[:, None]
            G = torch.where(out, mean, G)
        lo, hi = G.amin(1), G.amax(1)
        if self.clip == "mse":
            lo, hi = _shorter(G, lo, hi, self.D[j : j + self.g], self.grid.q_max)
        s, z = _lay_with_neighbours(lo, hi, self.grid.q_max, self.second.rows)
        self.scales.append(Coded.of(s[:, None], self.second.scale_bits, self.second.rows))
        self.zeros.append(Coded.of(z[:, None], self.second.zero_bits, self.second.rows))
        self.s, self.z = self.scales[-1].value()[:, 0], self.zeros[-1].value()[:, 0]

    def round(self, j: int, t: Tensor) -> Tensor:
        """The nearest mark for every row of column j, and the correction where that is too dear.

        Shapes:  t [d_out]; returns [d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  SpQR, Alg. 1.
        Differs: corrections are rounded to float16 here, so what is propagated is what is stored.
        """
        step = torch.where(self.s > 0, self.s, 1.0)
        q = torch.round(t / step + self.z).clamp_(0, self.grid.q_max)
        dense = (q - self.z) * self.s
        self.q[j] = q
        self.kept[j] = torch.where((t - dense).square() * self.D[j] > self.tau, t - dense, 0.0).to(torch.float16)
        return dense + self.kept[j].float()

    def stretch(self, j: int, Wt: Tensor, T: Tensor, V: Tensor) -> Tensor:
        """As `round`, for columns of one stretch, one after the other (`kernels.columns`).

        Shapes:  Wt, T [k, d_out]; V [k, k]; returns [k, d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  SpQR, Alg. 1.
        Differs: as `round`.
        """
        from lowbit_nb.kernels import columns

        rows, D = slice(j, j + len(T)), self.D[j : j + len(T)]
        s, z = self.s.expand_as(T), self.z.expand_as(T)
        self.q[rows], W_hat, kept = columns.walk(Wt, T, V, s, z, self.grid.q_max, True, D, self.tau)
        if kept.numel():
            self.kept[rows] = kept
        return W_hat

    def result(self) -> CorrectedWeight:
        """The stored form.

        Shapes:  [d_out, d_in].
        Units:   none.
        Raises:  ValueError as `CorrectedWeight.of`.
        Source:  this project.
        Differs: the order is stored only if groups were scattered.
        """
        parts = [torch.stack([getattr(c, name)[:, 0] for c in coded])
                 for coded in (self.scales, self.zeros) for name in ("code", "lo", "step")]
        q, back, perm = homeward(self.perm, self.g, self.q, *parts)
        base = BilevelWeight(q, Coded(*back[:3]), Coded(*back[3:]), self.grid, self.second, perm)
        return CorrectedWeight.of(base, torch.empty_like(self.kept).index_copy_(0, self.perm, self.kept).T)
