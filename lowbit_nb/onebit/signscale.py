"""Scales of a sign plane that can be learned: signs, means, mask and the codes of salient channels stay as they are.

`ScaledSigns` gives a differentiable weight while it is learned and a stored form at the end, as `rounding.SoftRounding` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.stored import StoredWeight


class ScaledSigns:
    """W_hat_ij = t_j v_j (k_i u_i a_i B_ij + u_i mu_i) in low channels; what `high` holds in salient ones.

    k (level), u (row) and t (column) begin at 1.  u multiplies level and mean alike, k the level only.

    factored  `weight` gives the numbers of the row and column scales instead of the weight, for `signlinear`

    Source: PTQ1.61 (alpha_s, alpha_r1, alpha_r2) and its code.
    Differs: factors of the start instead of the numbers themselves, so that one rate fits every layer.
    """

    def __init__(self, salient: Tensor, high: StoredWeight | None, sign: Tensor, a: Tensor, mu: Tensor, v: Tensor,
                 factored: bool = False) -> None:
        self.salient, self.high, self.sign, self.factored = salient, high, sign, factored
        self.a, self.mu, self.v = a.float(), mu.float(), v.float()
        self.W_high = high.dequantize() if high else self.a.new_zeros(len(a), 0)
        self.home = torch.cat([salient.nonzero()[:, 0], (~salient).nonzero()[:, 0]]).argsort()
        self.level, self.row = torch.ones_like(self.a), torch.ones_like(self.a)
        self.column = torch.ones_like(self.v)
        for t in (self.level, self.row, self.column):
            t.requires_grad_()

    def parameters(self) -> list[dict]:
        """Levels, rows and columns, each with its role.

        Shapes:  optimiser groups.
        Units:   none.
        Raises:  nothing.
        Source:  PTQ1.61 code.
        Differs: no difference.
        """
        return [{"params": [t], "role": role} for role, t in
                (("level", self.level), ("row", self.row), ("column", self.column))]

    def scales(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, mu and v as they are now, differentiable.

        Shapes:  [d_out], [d_out], [number of low channels].
        Units:   those of the weight; v has none.
        Raises:  nothing.
        Source:  PTQ1.61, Eq. 9.
        Differs: no difference.
        """
        return self.a * self.level * self.row, self.mu * self.row, self.v * self.column

    def weight(self, W: Tensor | None = None) -> Tensor:
        """The differentiable weight, or its scales side by side if it is never to be made.

        Shapes:  W is ignored; returns [d_out, d_in], or [2 d_out + number of low channels] if factored.
        Units:   those of the weight.
        Raises:  nothing.
        Source:  PTQ1.61, Eq. 9.
        Differs: no difference.
        """
        a, mu, v = self.scales()
        if self.factored:
            return torch.cat([a, mu, v])
        low = v * torch.where(self.sign, (mu + a)[:, None], (mu - a)[:, None])
        return torch.cat([self.W_high, low], 1)[:, self.home]

    def harden(self, soft_fraction: float) -> None:
        """Nothing here is soft: signs are fixed."""

    def tell(self) -> dict:
        """How far levels, rows and columns have gone, as the mean of |factor - 1|; 0 where there are none.

        Shapes:  plain numbers.
        Units:   shares.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        moved = {name: (getattr(self, name).detach() - 1).abs() for name in ("level", "row", "column")}
        return {name: float(t.mean()) if len(t) else 0.0 for name, t in moved.items()}

    @torch.no_grad()
    def finish(self, W: Tensor | None = None) -> StoredWeight:
        """The stored form: the high part as it is, signs, and scales in half precision.

        Shapes:  W is ignored; returns [d_out, d_in].
        Units:   none.
        Raises:  ValueError if a scale does not fit its type.
        Source:  PTQ1.61.
        Differs: its code keeps the dequantized weight.
        """
        a, mu, v = self.scales()
        low = SignWeight.of(self.sign, a[:, None], mu[:, None], v) if len(v) else None
        return MixedWeight.of(self.salient, self.high, low)
