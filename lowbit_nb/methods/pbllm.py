"""PB-LLM, without its training: no transform, signs and a few 8-bit weights, error feedback, the layer's output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.feedback import feedback
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import check_damping, condition, error_share
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.onebit.partial import PartialRounder, PartialWeight
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.streams import Streams

METRICS = ("hessian", "magnitude")


@dataclass(frozen=True)
class PBLLM:
    """Partial binarization with error feedback.

    share   of weights that keep a code of `bits`        metric  hessian | magnitude: which
    group   columns that share a mean and a level; None: the row        damp, shift  as in GPTQ

    Source: PB-LLM (PB-GPTQ): 10 % of weights in 8 bits. Differs: see `partial.PartialRounder`.
    """

    share: float = 0.1
    bits: int = 8
    metric: str = "hessian"
    group: int | None = None
    damp: float = 0.01
    shift: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS or not 0 <= self.share <= 1:
            raise ValueError(f"metric={self.metric!r} must be one of {', '.join(METRICS)}, "
                             f"and share={self.share} between 0 and 1")
        Grid(self.bits, self.group)
        check_damping(self.damp, 0.0)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("full", "quant") if self.shift else ("quant",)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, one by one.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share as in GPTQ.
        Raises:  ValueError as `quantize_layer` (message names the layer).
        Source:  PB-LLM.
        Differs: see the class.
        """
        phases = Phases()
        weights, story = layer_by_layer(block, streams, self.quantize_layer, phases, shift=self.shift)
        return BlockResult(weights, story | {"phases": phases})

    def quantize_layer(self, W: Tensor, H: Tensor) -> tuple[PartialWeight, float]:
        """Round one weight under one metric.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in].
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition`, `factor` and `grid.fit`; if the group does not divide d_in.
        Source:  PB-LLM.
        Differs: see the class.
        """
        Hc, dead = condition(H, self.damp)
        rounder = PartialRounder(self.share, self.metric, self.bits, Grid(1, self.group).g(W.shape[1]))
        feedback(W.masked_fill(dead, 0.0), Hc, rounder)
        stored = rounder.result()
        return stored, error_share(W, stored.dequantize(), H)
