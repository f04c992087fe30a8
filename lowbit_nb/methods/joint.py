"""Joint: what a method has made block by block, rounded once more with all blocks at once, for what the model predicts.

Rulers and edits stay as the start has left them.  Every weight begins again between itself and what the start made of it and
chooses between the two marks beside that place, hardened a fraction at a time as in TesseraQ; but all blocks choose together,
and what they are held against are the original model's predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowbit_nb.activations import Activations, as_quantized
from lowbit_nb.adaptive import LossView
from lowbit_nb.blocks import Block
from lowbit_nb.crossblock import EveryOutput, inside, predictions
from lowbit_nb.methods._start import asks
from lowbit_nb.onepass import behind
from lowbit_nb.quantize import BlockResult, Method, advance
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.rounding import SoftRounding, schedule
from lowbit_nb.scaling import Settled
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams


@dataclass
class _View:
    """What a run may ask of the whole model: logits behind the last block, and whatever its start asks."""

    logits: Callable[[Tensor], Tensor]
    start: LossView | None = None


@dataclass(frozen=True)
class Joint:
    """Progressive adaptive rounding over all blocks at once, held against the original model's predictions.

    start    a method that rounds block by block to affine marks: TesseraQ, or GPTQ and OAC without a transform
    pull     where a weight begins again: at itself (0), at what the start made of it (1), or between
    blocks   weight of the blocks' own outputs beside the predictions (`crossblock.predictions`)
    budget   a named one takes twice as many steps as block by block, "demo" and "fast" with four times as many windows:
             Budget(20, 100, 16) is "fast"; schedule, reach, activations as in `TesseraQ`

    All blocks are held in memory with the outputs of each for all windows: for small models, or few windows.

    Source: this project; rounding and schedule of TesseraQ, the loss of VPTQ's end-to-end tuning. Differs: no paper does it.
    """

    FASTEST: ClassVar[float] = 0.04

    start: Method
    budget: str | Budget = "fast"
    pull: float = 0.5
    blocks: float = 20.0
    schedule: str = "handcrafted"
    reach: float | None = None
    seed: int = 0
    activations: Activations | None = None

    def __post_init__(self) -> None:
        schedule(self.schedule, budget(self.budget).rounds)  # refuses unknown names before any calibration is spent
        if not 0 <= self.pull <= 1 or self.blocks < 0:
            raise ValueError(f"pull={self.pull} must lie between 0 and 1, and blocks={self.blocks} must not be negative")
        if not hasattr(self.start, "quantize_block"):
            raise ValueError(f"{type(self.start).__name__} does not round block by block; let TesseraQ or GPTQ begin")
        if getattr(self.start, "activations", None) != self.activations:
            raise ValueError(f"the start rounds activations by {getattr(self.start, 'activations', None)} and Joint by "
                             f"{self.activations}: give both the same")

    @property
    def streams(self) -> tuple[str, ...]:
        return asks(self.start, "full", "quant", "loss")

    def view(self, model: nn.Module, ids: Tensor, blocks: list[Block]) -> _View:
        """How a run asks for predictions, and its start for the end loss's Hessians.

        Shapes:  ids [n, length].
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        start = self.start.view(model, ids, blocks) if "loss" in self.start.streams else None
        dtype = next(model.parameters()).dtype
        return _View(lambda x: behind(model, x.to(dtype)).float(), start)

    def windows(self, n: int) -> list[tuple[int, int, int]]:
        """One window over all n blocks.

        Shapes:  as `crossblock.schedule`.
        Units:   blocks.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return [(0, n, n)]

    def quantize_window(self, blocks: list[Block], left: int, streams: Streams,
                        carried: dict[str, Tensor]) -> tuple[list[BlockResult], dict[str, Tensor]]:
        """Let the start round block after block; then learn all roundings together.

        Shapes:  results for all blocks; nothing is carried on.
        Units:   trace: nats a token, and `blocks` times the mean share of the blocks' errors.
        Raises:  ValueError as the start and `reconstruct`, and if a stored weight is not affine.
        Source:  this project.
        Differs: no difference.
        """
        phases = Phases()
        with phases("start"):
            begun = self._begin(blocks, streams)
        with phases("targets"):
            Y = EveryOutput(blocks).run(streams.full)
        learn = {f"{k}.{name}": self._again(block, result, name)
                 for k, (block, result) in enumerate(zip(blocks, begun, strict=True)) for name in block.linears}
        fixed = {f"{k}.{name}": t for k, result in enumerate(begun) for name, t in result.params.items()}
        together = EveryOutput([as_quantized(block, self.activations, result.params)
                                for block, result in zip(blocks, begun, strict=True)])
        spent = _longer(self.budget)
        rate = min(self.FASTEST, 2.0 / max(1, spent.steps)) if self.reach is None else self.reach / max(1, spent.steps)
        with phases("reconstruct"):
            weights, _, story = reconstruct(
                together, learn, Settled(fixed), streams.quant, Y, soft=schedule(self.schedule, spent.rounds), budget=spent,
                rates={"rounding": rate, "scale": rate / 2}, objective=predictions(streams.loss.logits, self.blocks),
                generator=torch.Generator().manual_seed(self.seed))
        return [BlockResult(inside(weights, k), self._told(phases, story, result, k), result.params)
                for k, result in enumerate(begun)], {}

    def _begin(self, blocks: list[Block], streams: Streams) -> list[BlockResult]:
        """The start's own run, on streams of its own."""
        own = Streams(streams.full.clone(), streams.quant.clone(), loss=streams.loss.start)
        results = []
        for block in blocks:
            results.append(self.start.quantize_block(block, own))
            self._check(block, results[-1])
            advance(results[-1], block, own, self.activations)
        return results

    def _check(self, block: Block, result: BlockResult) -> None:
        """Refuse, at the first block, what cannot be learned again."""
        for name, stored in result.weights.items():
            if not isinstance(stored, AffineWeight) or stored.perm is not None:
                raise ValueError(f"{block.name}.{name} is stored as {type(stored).__name__} (with an order of its own, "
                                 "perhaps): roundings can be learned again only between affine marks in natural order")
        if result.params and not result.aims:
            raise ValueError(f"{type(self.start).__name__} has edited {block.name} and does not say what it rounded there; "
                             "let TesseraQ follow its own start: Joint(TesseraQ(AWQ(...))), say")

    def _again(self, block: Block, result: BlockResult, name: str) -> SoftRounding:
        stored = result.weights[name]
        W = result.aims.get(name, block.weight(name)).float()
        between = (1 - self.pull) * W + self.pull * stored.dequantize().to(W.device)
        return SoftRounding(between, stored.s.to(W.device), stored.zero.to(W.device), stored.grid)

    def _told(self, phases: Phases, story: dict, result: BlockResult, k: int) -> dict:
        rounds = [r | {"layers": inside(r["layers"], k)} for r in story["rounds"]]
        return {"phases": phases, "begun": result.trace} | story | {"rounds": rounds}


def _longer(name: str | Budget) -> Budget:
    """A named budget, as long as it should be where every step sees the whole model."""
    spent = budget(name)
    return spent if isinstance(name, Budget) else replace(spent, steps=2 * spent.steps, batch=4 * spent.batch)
