"""Learned weight clipping: both ends of every ruler move, and weights are rounded to nearest.

`LearnedClip` gives a differentiable weight while it is learned and a stored form at the end, as `rounding.SoftRounding` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.grid import Grid
from lowbit_nb.stored import AffineWeight


class LearnedClip:
    """LWC: a ruler from sigmoid(c) * min to sigmoid(a) * max, rounded to nearest with a straight-through gradient.

    Source: OmniQuant, Sec. 3.2, Eq. 2; both start at 4, that is, at 98.2 % of the range.
    Differs: zero is always inside the range and the zero point a code.
    """

    def __init__(self, W: Tensor, grid: Grid, start: float = 0.982) -> None:
        if grid.stored_zero != "integer":
            raise ValueError("learned clipping needs a grid with an integer zero point: symmetric=False, zero_inside=True")
        self.grid, self.W = grid, W.float()
        W_g = grids.grouped(self.W, grid)
        self.lo, self.hi = W_g.amin(-1).clamp(max=0), W_g.amax(-1).clamp(min=0)
        self.low, self.high = (_logit(torch.full_like(self.lo, start)).requires_grad_() for _ in range(2))

    def parameters(self) -> list[dict]:
        return [{"params": [self.low, self.high], "role": "clip"}]

    def weight(self) -> Tensor:
        """The differentiable dequantized weight.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  OmniQuant, Eq. 2.
        Differs: no difference.
        """
        s, z = self._ruler()
        q = _round_through(grids.grouped(self.W, self.grid) / s[..., None]) + z[..., None]
        return ((q.clamp(0, self.grid.q_max) - z[..., None]) * s[..., None]).reshape(self.W.shape)

    def harden(self, soft_fraction: float) -> None:
        """Nothing here is soft: rounding is always to nearest."""

    def tell(self) -> dict:
        """The mean share of the range that rulers keep, below and above zero.

        Shapes:  plain numbers.
        Units:   shares.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return {"low": float(torch.sigmoid(self.low.detach()).mean()), "high": float(torch.sigmoid(self.high.detach()).mean())}

    def _ruler(self) -> tuple[Tensor, Tensor]:
        lo, hi = self.lo * torch.sigmoid(self.low), self.hi * torch.sigmoid(self.high)
        s = ((hi - lo) / self.grid.q_max).clamp(min=1e-6)
        z = torch.round(-lo / s).clamp(0, self.grid.q_max).detach()
        return s, z

    @torch.no_grad()
    def finish(self) -> AffineWeight:
        """The stored form: steps rounded to their type first, then codes.

        Shapes:  see `AffineWeight`.
        Units:   none.
        Raises:  ValueError if a step does not fit its type.
        Source:  this project.
        Differs: the reference keeps the rounded float weight.
        """
        s, z = self._ruler()
        s = grids.as_stored(s, self.grid, floor=True)
        return AffineWeight.of(grids.quantize(self.W, s, z, self.grid), s, z, self.grid)


def _round_through(x: Tensor) -> Tensor:
    """round(x) with the gradient of x."""
    return x + (x.round() - x).detach()


def _logit(share: Tensor) -> Tensor:
    share = share.clamp(1e-3, 1 - 1e-3)
    return torch.log(share / (1 - share))
