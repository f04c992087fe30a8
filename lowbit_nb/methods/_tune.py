"""After rounding: what stays continuous in a block, and its norms, learned together from the block's output."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.codebooks.centroids import LearnedNorms
from lowbit_nb.endtoend import learnable
from lowbit_nb.methods import _targets
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import norms


class EditedNorms(LearnedNorms):
    """The norms of a block, learned from where earlier edits have left them; other edits stay.

    Source: this project. Differs: no difference.
    """

    def __init__(self, block: Block, params: dict[str, Tensor]) -> None:
        super().__init__(block)
        self.rest = {name: t.float() for name, t in params.items() if name not in self.own}
        with torch.no_grad():
            for name in self.own.keys() & params.keys():
                self.own[name].copy_(params[name])

    def tensors(self) -> dict[str, Tensor]:
        return self.rest | super().tensors()

    def finish(self) -> dict[str, Tensor]:
        return self.rest | super().finish()


def tuned(block: Block, streams: Streams, result: BlockResult, spent: str | Budget, rate: float, seed: int,
          objective: str = "mse", teachers: int = 1) -> BlockResult:
    """The result with better steps, vectors, scales and norms; its integers stay.

    Shapes:  as `BlockResult`.
    Units:   rate in units of a codebook's spread; all other numbers take a tenth of it.
    Raises:  ValueError as `reconstruct`.
    Source:  VPTQ, Sec. 3.4, for any stored form.
    Differs: no difference.
    """
    phases, spent = result.trace["phases"], budget(spent)
    with phases("targets"):
        Y = _targets.taught(block, streams.quant, streams.targets(block), teachers)
    learn = {name: learnable(weight) for name, weight in result.weights.items()}
    with phases("tune"):
        weights, edited, story = reconstruct(
            block, learn, EditedNorms(block, result.params), streams.quant, Y, soft=(1.0,) * spent.rounds, budget=spent,
            rates={"centroids": rate} | dict.fromkeys(("number", "scale", "norm"), rate / 10),
            generator=torch.Generator().manual_seed(seed + block.index), objective=_targets.objective(objective, teachers))
    return BlockResult(weights, result.trace | story, norms(block, edited))
