"""Learned weight clipping: both ends of every ruler move, and weights are rounded to nearest.

`LearnedClip` gives a differentiable weight while it is learned and a stored form at the end, as `rounding.SoftRounding` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.grid import Grid
from lowbit_nb.stored import AffineWeight

MOST = 0.982  # sigmoid(4): the largest share of an end that a ruler begins at


class LearnedClip:
    """LWC: a ruler from sigmoid(c) * min to sigmoid(a) * max, rounded to nearest with a straight-through gradient.

    start  the share of the range that both ends begin with, or the ruler (s, z) that they begin at

    Source: OmniQuant, Sec. 3.2, Eq. 2; both start at 4, that is, at 98.2 % of the range. A searched start: LLMC.
    Differs: zero is always inside the range and the zero point a code.
    """

    def __init__(self, W: Tensor, grid: Grid, start: float | tuple[Tensor, Tensor] = 0.982) -> None:
        if grid.stored_zero != "integer":
            raise ValueError("learned clipping needs a grid with an integer zero point: symmetric=False, zero_inside=True")
        self.grid, self.W = grid, W.float()
        self.range = self.ends = self._range(self.W)
        shares = (torch.full_like(self.ends[0], start),) * 2 if isinstance(start, float) else self._begin_at(*start)
        self.low, self.high = (_logit(share).requires_grad_() for share in shares)

    def _begin_at(self, s: Tensor, z: Tensor) -> list[Tensor]:
        """The shares that reproduce a ruler; ends that it does not leave room for move outwards a little."""
        wanted = (-z * s, (self.grid.q_max - z) * s)
        self.ends = torch.minimum(self.ends[0], wanted[0] / MOST), torch.maximum(self.ends[1], wanted[1] / MOST)
        return [torch.where(end == 0, MOST, want / end) for want, end in zip(wanted, self.ends, strict=True)]

    def parameters(self) -> list[dict]:
        return [{"params": [self.low, self.high], "role": "clip"}]

    def _range(self, W: Tensor) -> tuple[Tensor, Tensor]:
        W_g = grids.grouped(W, self.grid)
        return W_g.amin(-1).clamp(max=0), W_g.amax(-1).clamp(min=0)

    def weight(self, W: Tensor | None = None) -> Tensor:
        """The differentiable dequantized weight; W is the layer's weight as a transform has made it, if one has.

        Shapes:  W [d_out, d_in] or None; returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  OmniQuant, Eq. 2.
        Differs: no difference.
        """
        s, z = self._ruler(W)
        W = self.W if W is None else W
        q = _round_through(grids.grouped(W, self.grid) / s[..., None]) + z[..., None]
        return ((q.clamp(0, self.grid.q_max) - z[..., None]) * s[..., None]).reshape(W.shape)

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

    def _ruler(self, W: Tensor | None) -> tuple[Tensor, Tensor]:
        lo, hi = self.ends
        if W is not None:  # a transform has stretched the weights: the ends go along
            lo, hi = (end * torch.where(was == 0, 1.0, now / was)
                      for end, was, now in zip(self.ends, self.range, self._range(W), strict=True))
        lo, hi = lo * torch.sigmoid(self.low), hi * torch.sigmoid(self.high)
        s = ((hi - lo) / self.grid.q_max).clamp(min=1e-6)
        z = torch.round(-lo / s).clamp(0, self.grid.q_max).detach()
        return s, z

    @torch.no_grad()
    def finish(self, W: Tensor | None = None) -> AffineWeight:
        """The stored form: steps rounded to their type first, then codes.

        Shapes:  W as in `weight`; see `AffineWeight`.
        Units:   none.
        Raises:  ValueError if a step does not fit its type.
        Source:  this project.
        Differs: the reference keeps the rounded float weight.
        """
        s, z = self._ruler(W)
        W = self.W if W is None else W
        s = grids.as_stored(s, self.grid, floor=True)
        return AffineWeight.of(grids.quantize(W, s, z, self.grid), s, z, self.grid)


def _round_through(x: Tensor) -> Tensor:
    """round(x) with the gradient of x."""
    return x + (x.round() - x).detach()


def _logit(share: Tensor) -> Tensor:
    share = share.clamp(1e-6, 1 - 1e-3)
    return torch.log(share / (1 - share))
