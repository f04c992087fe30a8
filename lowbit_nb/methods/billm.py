"""BiLLM: no transform, split sign planes and residual planes in salient columns, block feedback, the layer's output.

Every block of columns is decided at once: which columns are salient, which weights lie far out, the levels of each.  Later
blocks make up for its error.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.hessian import check_damping
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.regions import SEARCHES, WAYS, planes, regions, signs_by_block
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.streams import Streams


@dataclass(frozen=True)
class BiLLM:
    """Block feedback on split sign planes.

    span         columns a block                        most      fewer salient columns a block than this
    search       weight (paper) | saliency (code)       rest_planes  planes of the rest while salient columns are sought
    feedback     exact | diagonal (paper and code) | none: what later blocks make up for; column: levels are decided by block,
                 signs and regions column by column, as GPTQ would
    per_row      a threshold a row                      damp, shift  as in GPTQ

    Source: BiLLM, Alg. 1-2; blocks of 128, damping 0.01.
    Differs: the defaults search on the weights and make up for a block exactly; search="saliency", feedback="diagonal",
    rest_planes=2 are the official code's.
    """

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
        if self.span < 2 or self.most < 2:
            raise ValueError(f"span={self.span} and most={self.most} must be at least 2")
        check_damping(self.damp, 0.0)

    @property
    def streams(self) -> tuple[str, ...]:
        return ("full", "quant") if self.shift else ("quant",)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, one by one.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share as in GPTQ; salient, the share of columns with two planes.
        Raises:  ValueError as `quantize_layer` (message names the layer).
        Source:  BiLLM, Alg. 1.
        Differs: see the class.
        """
        phases = Phases()
        weights, story = layer_by_layer(block, streams, self.quantize_layer, phases, shift=self.shift)
        salient = {name: float(w.salient.float().mean()) for name, w in weights.items()}
        return BlockResult(weights, story | {"salient": salient, "phases": phases})

    def quantize_layer(self, W: Tensor, H: Tensor) -> tuple[BinaryWeight, float]:
        """Round one weight under one metric.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in].
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition` and `factor`.
        Source:  BiLLM, Alg. 1.
        Differs: see the class.
        """
        return signs_by_block(W, H, self._decide, self.span, self.feedback, self.damp)

    def _decide(self, W: Tensor, cost: Tensor) -> BinaryWeight:
        return planes(W, *regions(W, cost, self.search, self.most, self.rest_planes, self.per_row))
