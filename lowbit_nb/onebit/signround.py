"""Signs and codes chosen with error feedback, on scales that are given: which side each weight takes is a rounding too.

PTQ1.61 keeps the signs of the original weights.  With the scales known, a sign plane is a grid of two marks a weight,
v_j (mu_i - a_i) and v_j (mu_i + a_i), and any column can take its nearest mark after the errors of the columns before it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lowbit_nb.feedback import feedback
from lowbit_nb.stored import AffineWeight


class SignRounder:
    """The nearest of two marks in low channels, the nearest code in salient ones.

    Source: this project; the two-mark grid with feedback as PB-LLM. Differs: rank-one scales.
    """

    span = 0

    def __init__(self, salient: Tensor, high: AffineWeight | None, a: Tensor, mu: Tensor, v: Tensor, perm: Tensor) -> None:
        self.salient, self.high, self.a, self.mu, self.perm = salient.tolist(), high, a, mu, perm.tolist()
        self.v = torch.ones(len(salient), dtype=v.dtype, device=v.device).masked_scatter_(~salient, v)
        place = torch.where(salient, salient.cumsum(0), (~salient).cumsum(0)) - 1  # column -> column of its own part
        self.place = place.tolist()
        self.sign = torch.empty(len(a), len(v), dtype=torch.bool, device=a.device)
        self.q = None if high is None else torch.empty_like(high.q)

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Nothing: nearest marks need no costs."""

    def start(self, j: int, now: Tensor) -> None:
        """Nothing: there are no groups."""

    def round(self, j: int, t: Tensor) -> Tensor:
        """The nearest mark for every row of column j.

        Shapes:  t [d_out]; returns [d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTQ, Alg. 1.
        Differs: no difference.
        """
        c, k = self.perm[j], self.place[self.perm[j]]
        if self.salient[c]:
            s, z = self.high.s[:, 0].to(t.dtype), self.high.zero[:, 0].to(t.dtype)
            q = torch.round(t / s).add_(z).clamp_(0, self.high.grid.q_max)
            self.q[:, k] = q.to(torch.uint8)
            return (q - z) * s
        low, high = self.v[c] * (self.mu - self.a), self.v[c] * (self.mu + self.a)
        plus = (t - high).abs() <= (t - low).abs()
        self.sign[:, k] = plus
        return torch.where(plus, high, low)


def signs_with_feedback(W: Tensor, H: Tensor, salient: Tensor, high: AffineWeight | None, a: Tensor, mu: Tensor,
                        v: Tensor) -> tuple[AffineWeight | None, Tensor]:
    """Codes of salient channels and signs of the others, chosen column by column under the metric H.

    Low channels come first, so that the finer marks of salient ones make up for them; of each kind, the largest H_jj first.

    Shapes:  W [d_out, d_in]; H [d_in, d_in] conditioned; a, mu [d_out]; v [n_low]; returns the salient part and [d_out, n_low].
    Units:   those of the weight.
    Raises:  ValueError as `feedback`.
    Source:  GPTQ, Alg. 1, on the grid of PTQ1.61.
    Differs: the paper does not choose signs.
    """
    key = H.diagonal() * ~salient
    first = key.argsort(descending=True, stable=True)[: int((~salient).sum())]
    last = (H.diagonal() * salient).argsort(descending=True, stable=True)[: int(salient.sum())]
    rounder = SignRounder(salient, high, a, mu, v, perm := torch.cat([first, last]))
    feedback(W, H, rounder, perm)
    return None if high is None else dataclasses.replace(high, q=rounder.q), rounder.sign
