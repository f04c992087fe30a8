"""OmniQuant, weights only: an affine grid whose clip is learned (LWC), nearest rounding, the block's output.

Both ends of every ruler move, by gradient through the step, until the quantized block gives back what the original gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb.blocks import Block, Streams
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.grid import Grid
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.stored import AffineWeight


@dataclass(frozen=True)
class OmniQuant:
    """Learned weight clipping by block reconstruction.

    first  share of the range at which both ends start            rate  learning rate of the ends

    Source: OmniQuant, Sec. 3.2 (LWC); rate 1e-2 and start sigmoid(4) = 0.982 of its code.
    Differs: random minibatches instead of epochs in order; a new optimiser every round; the best hard state is kept; zero is
    always inside the range.
    """

    grid: Grid
    budget: str | Budget = "fast"
    first: float = 0.982
    rate: float = 1e-2
    seed: int = 0
    streams: ClassVar[tuple[str, ...]] = ("full", "quant")

    def __post_init__(self) -> None:
        budget(self.budget)  # refuses an unknown name before any calibration is spent
        if not 0 < self.first < 1:
            raise ValueError(f"first={self.first} must lie between 0 and 1: the share of the range at which both ends start")

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Learn one block's rulers together.

        Shapes:  one stored weight a linear layer.
        Units:   trace: losses of the block's output, summed over the hidden dimension, mean over tokens.
        Raises:  ValueError as `reconstruct`.
        Source:  OmniQuant, Alg. 1.
        Differs: see the class.
        """
        phases = Phases()
        with phases("targets"):
            Y = streams.targets(block)
        weights, story = self._learn(block, streams.quant, Y, phases)
        return BlockResult(weights, {"phases": phases} | story)

    def start(self, block: Block, X: Tensor, Y: Tensor, phases: Phases) -> tuple[dict[str, Tensor], dict[str, tuple]]:
        """Learned rulers for every group: where TesseraQ can begin.

        Shapes:  X, Y [n, length, d_model]; returns no edits and {linear name: (s, z)}.
        Units:   see `grid.fit`.
        Raises:  ValueError as `reconstruct`.
        Source:  TesseraQ: "initialised with OmniQuant".
        Differs: no difference.
        """
        weights, _ = self._learn(block, X, Y, phases)
        return {}, {name: (w.s.float(), w.zero) for name, w in weights.items()}

    def _learn(self, block: Block, X: Tensor, Y: Tensor, phases: Phases) -> tuple[dict[str, AffineWeight], dict]:
        spent = budget(self.budget)
        learn = {}
        for name in block.linears:
            with block.naming(name):
                learn[name] = LearnedClip(block.weight(name), self.grid, self.first)
        with phases("learn clip"):
            return reconstruct(block, learn, {}, X, Y, soft=(1.0,) * spent.rounds, budget=spent, rates={"clip": self.rate},
                               generator=torch.Generator().manual_seed(self.seed + block.index))
