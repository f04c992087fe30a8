"""GPTQ: no transform, an affine grid, error feedback, the layer's output under H = X.T X / n.

Layers that share an input share one Hessian, one factor and one run of the solver: their rows are stacked.  All Hessians
of a block come from one pass; with sequential=True a pass each, in which the layers before are already rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.blocks import Block
from lowbit_nb.feedback import ORDERS, AffineRounder, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import check_damping, condition, error_share
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams


@dataclass(frozen=True)
class GPTQ:
    """Error feedback on affine grids.

    order      natural | act | gar | min_pivot                     damp    share of mean diag(H) added to the diagonal
    groups     static: rulers fitted before; dynamic: on the way   shrink  share of H's off-diagonal taken away
    clip       mse: range search weighted by diag(H); minmax       sequential  H of a group sees the groups before it rounded
    shift      aim at the weight that makes up for the error of the inputs

    Source: GPTQ, Sec. 3-4; act-order, static groups and true-sequential from its code.
    Differs: the defaults visit the most important groups first and keep groups whole, so no order need be stored, and search
    the range weighted by diag(H); the reference's defaults are natural order and the plain range.
    """

    grid: Grid
    order: str = "gar"
    groups: str = "dynamic"
    clip: str = "mse"
    damp: float = 0.01
    shrink: float = 0.0
    sequential: bool = False
    shift: bool = False

    def __post_init__(self) -> None:
        for field, known in {"order": ORDERS, "groups": ("static", "dynamic"), "clip": ("minmax", "mse")}.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(known)}")
        check_damping(self.damp, self.shrink)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("full", "quant") if self.shift else ("quant",)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, group by group of shared input.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share is the layer's output error over its output, tr(E H E.T) / tr(W H W.T), no unit.
        Raises:  ValueError if H is not positive definite or inputs are not finite (message names the layer).
        Source:  GPTQ, Alg. 1.
        Differs: rows of layers that share an input are stacked.
        """
        phases = Phases()
        weights, story = layer_by_layer(block, streams, self.quantize_layer, phases, split, self.sequential, self.shift)
        return BlockResult(weights, story | {"phases": phases})

    def quantize_layer(self, W: Tensor, H: Tensor) -> tuple[AffineWeight, float]:
        """Round one weight under one Hessian.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in].
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition`, `factor` and `grid.fit`.
        Source:  GPTQ, Alg. 1.
        Differs: see the class.
        """
        Hc, dead = condition(H, self.damp, self.shrink)
        target = W.masked_fill(dead, 0.0)
        perm = order(Hc, self.order, self.grid.g(W.shape[1]))
        weight = Hc.diagonal()
        s, z = grids.fit(target, self.grid, self.clip, weight) if self.groups == "static" else (None, None)
        rounder = AffineRounder(self.grid, perm, W.shape[0], s, z, self.clip, weight)
        feedback(target, Hc, rounder, perm)
        q, s, z, kept = rounder.result()
        stored = AffineWeight.of(q, s, z, self.grid, kept)
        return stored, error_share(W, stored.dequantize(), H)


def split(stored: AffineWeight, sizes: list[int]) -> list[AffineWeight]:
    """Take stacked rows apart again.

    Shapes:  rows sum(sizes); returns one stored weight a size.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    z = stored.z.split(sizes) if stored.z is not None else [None] * len(sizes)
    parts = zip(stored.q.split(sizes), stored.s.split(sizes), z, strict=True)
    return [AffineWeight(q, s, z, stored.grid, stored.perm) for q, s, z in parts]
