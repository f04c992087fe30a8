"""SpQR: no transform, small groups with coded steps and zero points, error feedback with outliers, the layer's output.

Groups of 16 follow the weights closely; three bits for a step and three for a zero point make them affordable; a few weights
in a thousand that would cost most stay outside the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit_nb.bilevel import Second
from lowbit_nb.blocks import Block
from lowbit_nb.feedback import ORDERS, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import check_damping, condition, error_share
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.outliers import BilevelRounder
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.sparse import CorrectedWeight
from lowbit_nb.streams import Streams


@dataclass(frozen=True)
class SpQR:
    """Error feedback on bilevel grids, with outliers.

    second     bits of steps and zero points, and the rows that share their grid
    threshold  cost, over the mean of D var(W), above which a weight stays outside; smaller keeps more, inf none
    refit      lay a group's grid without its outliers        clip     minmax, or mse: shorter grids are tried
    order, damp, shrink, shift   as in GPTQ

    Source: SpQR, Sec. 4, Alg. 1; 3 bits, groups of 16, threshold 0.2 as in its near-lossless recipe.
    Differs: outliers are corrections; leave-one-out by two refits; the default order keeps groups whole; damping 0.01 (the
    recipe's is 1).
    """

    grid: Grid = Grid(3, group=16, zero_inside=False)
    second: Second = Second()
    threshold: float = 0.2
    refit: bool = True
    clip: str = "minmax"
    order: str = "gar"
    damp: float = 0.01
    shrink: float = 0.0
    shift: bool = False

    def __post_init__(self) -> None:
        for name, known in {"order": ORDERS, "clip": ("minmax", "mse")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if self.grid.stored_zero != "real":
            raise ValueError("SpQR codes real zero points: use a grid with zero_inside=False and symmetric=False")
        if not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold} must be positive; float('inf') keeps no outliers")
        check_damping(self.damp, self.shrink)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("full", "quant") if self.shift else ("quant",)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, one by one.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share as in GPTQ; outliers, the share of weights kept outside.
        Raises:  ValueError as `quantize_layer` (message names the layer).
        Source:  SpQR, Alg. 1.
        Differs: see the class.
        """
        phases = Phases()
        weights, story = layer_by_layer(block, streams, self.quantize_layer, phases, shift=self.shift)
        outliers = {name: len(w.values) / (w.shape[0] * w.shape[1]) for name, w in weights.items()}
        return BlockResult(weights, story | {"outliers": outliers, "phases": phases})

    def quantize_layer(self, W: Tensor, H: Tensor) -> tuple[CorrectedWeight, float]:
        """Round one weight under one metric.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in].
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition`, `factor` and `Coded.of`.
        Source:  SpQR, Alg. 1.
        Differs: see the class.
        """
        Hc, dead = condition(H, self.damp, self.shrink)
        perm = order(Hc, self.order, self.grid.g(W.shape[1]))
        rounder = BilevelRounder(self.grid, self.second, perm, W.shape[0], self.threshold, self.refit, self.clip)
        feedback(W.masked_fill(dead, 0.0), Hc, rounder, perm)
        stored = rounder.result()
        return stored, error_share(W, stored.dequantize(), H)
