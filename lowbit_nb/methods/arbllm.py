"""ARB-LLM_RC: no transform, BiLLM's split sign planes with row and column scales, block feedback, the layer's output.

Means are gone; every plane has a scale a row and a scale a column instead, refined in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.hessian import check_damping
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.onebit.alternating import scaled_planes
from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.regions import SEARCHES, WAYS, regions, signs_by_block
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.streams import Streams


@dataclass(frozen=True)
class ARBLLM:
    """Block feedback on split sign planes with row and column scales.

    iterations  of the alternating refinement            span, search, feedback, most, rest_planes, per_row   as in BiLLM
    damp, shift  as in GPTQ

    Source: ARB-LLM_RC (RC), 15 iterations.
    Differs: without the bitmap on salient columns (CGB); the defaults search on the weights and make up for a block exactly.
    """

    iterations: int = 15
    span: int = 128
    search: str = "weight"
    feedback: str = "exact"
    most: int = 50
    rest_planes: int = 2
    per_row: bool = False
    damp: float = 0.01
    shift: bool = False

    def __post_init__(self) -> None:
        for field, known in {"search": SEARCHES, "feedback": WAYS, "rest_planes": (1, 2)}.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(map(str, known))}")
        if self.span < 2 or self.most < 2 or self.iterations < 0:
            raise ValueError(f"span={self.span} and most={self.most} must be at least 2, "
                             f"iterations={self.iterations} at least 0")
        check_damping(self.damp, 0.0)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("full", "quant") if self.shift else ("quant",)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, one by one.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share as in GPTQ.
        Raises:  ValueError as `quantize_layer` (message names the layer).
        Source:  ARB-LLM.
        Differs: see the class.
        """
        phases = Phases()
        weights, story = layer_by_layer(block, streams, self.quantize_layer, phases, shift=self.shift)
        return BlockResult(weights, story | {"phases": phases})

    def quantize_layer(self, W: Tensor, H: Tensor) -> tuple[BinaryWeight, float]:
        """Round one weight under one metric.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in].
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition` and `factor`.
        Source:  ARB-LLM.
        Differs: see the class.
        """
        return signs_by_block(W, H, self._decide, self.span, self.feedback, self.damp)

    def _decide(self, W: Tensor, cost: Tensor) -> BinaryWeight:
        return scaled_planes(W, *regions(W, cost, self.search, self.most, self.rest_planes, self.per_row), self.iterations)
