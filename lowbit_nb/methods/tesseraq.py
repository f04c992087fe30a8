"""TesseraQ: a start from AWQ, OmniQuant or feedback, an affine grid with a learned dequantization scale, progressive adaptive
rounding, the block's output.

The integer grid is the start's and never changes.  Every weight chooses between the two marks beside it; the choice begins
undecided, at the weight itself, and is made hard a fraction at a time while the rest makes up for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lowbit_nb.activations import Activations, as_quantized
from lowbit_nb.blocks import Block
from lowbit_nb.methods import _targets
from lowbit_nb.methods._start import Beginning, Start, begin
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.rounding import SoftRounding, schedule
from lowbit_nb.scaling import Settled
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import current, norms


@dataclass(frozen=True)
class TesseraQ(Beginning):
    """Progressive adaptive rounding and dequantization scale tuning by block reconstruction.

    start     the method whose scaling and rulers it begins with (AWQ, OmniQuant), or feedback (GPTQ, OAC): each weight then
              begins at the value that feedback rounded, between the two marks beside it
    budget    demo, fast, paper, or a Budget
    schedule  how fast variables are made hard                           tune_scale  learn k, the multiplier of the step
    objective, teachers   "mse" (paper), "mse+nlc", "mse+kl", "nlc" or "kl"; 2: against the original block on the original
              inputs and on those that really come
    reach     how far a rounding variable can travel in a round: its learning rate is reach / steps, that of k half of it;
              None: 2, but no rate above FASTEST
    activations  rounded while roundings are learned, and behind them; the paper's W4A4 and W3A3 round the inputs of linear
              layers only: Activations(4, qkv=False)

    Source: TesseraQ (2024), Sec. 3; schedule, optimiser and defaults of its code.
    Differs: learning rates are set by their reach, so that a smaller budget gets a larger rate; the paper's 1e-3 for 250
    steps is a reach of 0.25.
    """

    FASTEST: ClassVar[float] = 0.04

    start: Start
    budget: str | Budget = "fast"
    schedule: str = "handcrafted"
    tune_scale: bool = True
    reach: float | None = None
    seed: int = 0
    activations: Activations | None = None
    objective: str = "mse"
    teachers: int = 1

    def __post_init__(self) -> None:
        _targets.check(self.objective, self.teachers)
        schedule(self.schedule, budget(self.budget).rounds)  # refuses unknown names before any calibration is spent
        self.check_start()

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Start, then learn one block's roundings together.

        Shapes:  one stored weight a linear layer, and the norms that absorbed the start's scales.
        Units:   trace: losses of the block's output, summed over the hidden dimension, mean over tokens.
        Raises:  ValueError as the start and `reconstruct`.
        Source:  TesseraQ, Alg. 1.
        Differs: the best hard state is kept.
        """
        phases = Phases()
        with phases("targets"):
            Y = _targets.taught(block, streams.quant, streams.targets(block), self.teachers)
        params, rulers = begin(self.start, block, streams, phases)
        edited = norms(block, params)
        learn = {name: SoftRounding(current(block, params, name), *rulers[name], self.start.grid, self.tune_scale)
                 for name in rulers}
        spent = budget(self.budget)
        n_steps = max(1, spent.steps)
        rate = min(self.FASTEST, 2.0 / n_steps) if self.reach is None else self.reach / n_steps
        with phases("reconstruct"):
            weights, _, story = reconstruct(
                as_quantized(block, self.activations, edited), learn, Settled(edited), streams.quant, Y,
                soft=schedule(self.schedule, spent.rounds), budget=spent,
                rates={"rounding": rate, "scale": rate / 2},
                generator=torch.Generator().manual_seed(self.seed + block.index),
                objective=_targets.objective(self.objective, self.teachers))
        aims = {name: params[name] for name in rulers if name in params}
        return BlockResult(weights, {"phases": phases} | story, edited, aims)
