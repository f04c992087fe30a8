"""What reconstruction does to a block beside rounding it: nothing more, or equivalent scalings that are learned (LET).

`Settled` hands out edits that were chosen before; `LearnedScaling` makes them anew from its variables at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.transforms import Site, channels, scale, scaled, shift, shiftable

NEAR, FAR = 1e-2, 1e2  # the factors that learning may reach


class Transform(Protocol):
    """Edits of a block's tensors, linear layers by their own name.

    parameters  optimiser groups, each with a "role"      tensors  {name: tensor} now, differentiable
    finish      {name: tensor} as the block keeps them

    Source: this project. Differs: no difference.
    """

    def parameters(self) -> list[dict]: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def finish(self) -> dict[str, Tensor]: ...


class Settled:
    """Edits that stay as they are.

    Source: this project. Differs: no difference.
    """

    def __init__(self, params: dict[str, Tensor] | None = None) -> None:
        self.params = {name: t.float() for name, t in (params or {}).items()}

    def parameters(self) -> list[dict]:
        return []

    def tensors(self) -> dict[str, Tensor]:
        return self.params

    def finish(self) -> dict[str, Tensor]:
        return self.params


class LearnedScaling:
    """LET: a learned factor for every channel of every site, and a learned shift where biases can take it.

    Source: OmniQuant, Sec. 3.3, Eq. 3-4.
    Differs: factors are learned as logarithms, so they stay positive; rotary pairs are tied and grouped queries share a
    factor, so the block's function is preserved however far they go.
    """

    def __init__(self, block: Block, sites: Sequence[Site], start: Sequence[Tensor] | None = None, *,
                 params: dict[str, Tensor] | None = None, shifts: bool = False) -> None:
        device = next(block.module.parameters()).device
        ones = [torch.ones(channels(block, site)) for site in sites]
        self.block, self.sites, self.params = block, list(sites), dict(params or {})
        self.log_s = [s.to(device).float().clamp(NEAR, FAR).log().requires_grad_() for s in (start or ones)]
        self.delta = [torch.zeros_like(s, requires_grad=True) if shifts and shiftable(block, site) else None
                      for s, site in zip(self.log_s, sites, strict=True)]

    def parameters(self) -> list[dict]:
        """The logarithms of the factors, and the shifts if there are any.

        Shapes:  optimiser groups.
        Units:   none.
        Raises:  nothing.
        Source:  OmniQuant code.
        Differs: no difference.
        """
        moved = [d for d in self.delta if d is not None]
        shifts = [{"params": moved, "role": "shift"}] if moved else []
        return [{"params": self.log_s, "role": "scaling"}, *shifts]

    def tensors(self) -> dict[str, Tensor]:
        """The block's edited tensors, differentiable in factors and shifts.

        Shapes:  {name: tensor}, linear layers by their own name.
        Units:   those of the tensors.
        Raises:  nothing.
        Source:  OmniQuant, Eq. 3.
        Differs: no difference.
        """
        return self._made(scaled)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """The same tensors, checked, to be kept.

        Shapes:  as `tensors`.
        Units:   as `tensors`.
        Raises:  ValueError as `transforms.scale`.
        Source:  OmniQuant code.
        Differs: no difference.
        """
        return self._made(scale)

    def _made(self, apply: Callable) -> dict[str, Tensor]:
        params = self.params
        with torch.no_grad():  # in place, so that a factor at an end can come back
            for log_s in self.log_s:
                log_s.clamp_(math.log(NEAR), math.log(FAR))
        for site, log_s, delta in zip(self.sites, self.log_s, self.delta, strict=True):
            params = params if delta is None else shift(self.block, site, delta, params)
            params = apply(self.block, site, log_s.exp(), params)
        return params
