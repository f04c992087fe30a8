"""PTQ1.61: a one-dimensional mask with 4-bit channels and scaled signs, scales learned from the block's output and its angle.

The input channels with the largest activations keep four bits.  All other weights keep their sign; what is learned are a
level and a mean a row and a factor a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition
from lowbit_nb.methods import _targets
from lowbit_nb.onebit.channels import METRICS, channel_scores, salient_channels, salient_count
from lowbit_nb.onebit.signfit import STARTS, fit_to_output, start_scales
from lowbit_nb.onebit.signlinear import FactoredBlock
from lowbit_nb.onebit.signround import signs_with_feedback
from lowbit_nb.onebit.signscale import ScaledSigns
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.scaling import Settled
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams


def two_branches(y: Tensor, targets: Tensor) -> Tensor:
    """Squared error and angle to what the original block gives on the original inputs and on the inputs that really come.

    Shapes:  y [batch, length, d_model]; targets [batch, 2, length, d_model]; returns a scalar.
    Units:   the squared error is a mean over all numbers; the angle is `nlc`; all four terms weigh 1.
    Raises:  nothing.
    Source:  PTQ1.61; the second branch after CBQ.
    Differs: no difference.
    """
    return _targets.objective("mse+nlc", 2)(y, targets)


@dataclass(frozen=True)
class PTQ161:
    """Learned scales of signs, with some input channels in four bits.

    share, align  salient channels: the multiple of align nearest to this share      bits    of a weight in a salient channel
    metric        absmax (paper) | rms | output | obs                                budget  demo, fast, paper, or a Budget
    start         mean (paper) | plane | weight | output: where the scales begin     clip    range of the salient channels
    signs         nearest (paper): those of W - mu | feedback: chosen column by column, as GPTQ would (`signround`)
    reach         how far a column factor can travel over the whole budget, in shares of itself; a row's factor the same, its
                  level half of it; None: 4, but no rate above FASTEST
    factored      never make the weight while learning (`signlinear`)
    objective, teachers   as in TesseraQ; the paper's are size and angle, and two

    Source: PTQ1.61; share 0.2 and 4 bits; objective and streams of its code.
    Differs: ranges of salient channels span those channels only (the code's span the row); the start is the best fit to the
    layer's output; random minibatches instead of windows in order; the best hard state is kept; rates are set by their reach.
    """

    FASTEST: ClassVar[float] = 0.01

    share: float = 0.2
    bits: int = 4
    align: int = 32
    metric: str = "absmax"
    start: str = "output"
    signs: str = "nearest"
    clip: str = "minmax"
    budget: str | Budget = "fast"
    reach: float | None = None
    factored: bool = True
    seed: int = 0
    objective: str = "mse+nlc"
    teachers: int = 2
    streams: ClassVar[tuple[str, ...]] = ("full", "quant")

    def __post_init__(self) -> None:
        for field, known in {"metric": METRICS, "start": STARTS, "signs": ("nearest", "feedback")}.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(known)}")
        _targets.check(self.objective, self.teachers)
        budget(self.budget)  # refuses an unknown name before any calibration is spent
        salient_count(1, self.share, self.align)
        Grid(self.bits)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Mask, signs and start of every layer, then learn one block's scales together.

        Shapes:  one stored weight a linear layer.
        Units:   trace: losses of the two branches together.
        Raises:  ValueError as `reconstruct`.
        Source:  PTQ1.61.
        Differs: see the class.
        """
        phases, spent = Phases(), budget(self.budget)
        with phases("targets"):
            Y = _targets.taught(block, streams.quant, streams.targets(block), self.teachers)
        with phases("start"):
            learn = self.begin(block, streams)
        n_steps = max(1, spent.rounds * spent.steps)
        rate = min(self.FASTEST, 4.0 / n_steps) if self.reach is None else self.reach / n_steps
        with phases("learn scales"):
            weights, _, story = reconstruct(
                FactoredBlock(block, learn) if self.factored else block, learn, Settled(), streams.quant, Y,
                soft=(1.0,) * spent.rounds, budget=spent, rates={"level": rate / 2, "row": rate, "column": rate},
                generator=torch.Generator().manual_seed(self.seed + block.index),
                objective=_targets.objective(self.objective, self.teachers))
        salient = {name: int(p.salient.sum()) for name, p in learn.items()}
        return BlockResult(weights, {"phases": phases, "salient": salient} | story)

    def begin(self, block: Block, streams: Streams) -> dict[str, ScaledSigns]:
        """Mask, codes, signs and first scales of every layer; layers that share an input share a mask.

        Shapes:  {linear name: learnable}.
        Units:   none.
        Raises:  ValueError as `grid.fit`.
        Source:  PTQ1.61.
        Differs: activations of the stream from the original model, as in the code, gathered block by block.
        """
        shared = block.shared_inputs(streams.quant[:1])
        original = block.hessians(streams.full, shared)
        real = block.hessians(streams.quant, shared) if self.start == "output" or self.signs == "feedback" else original
        learn = {}
        for names, seen, comes in zip(shared, original, real, strict=True):
            together = torch.cat([block.weight(name).float() for name in names])
            scores = channel_scores(seen, together, self.metric)
            salient = salient_channels(scores, salient_count(len(scores), self.share, self.align))
            for name in names:
                with block.naming(name):
                    learn[name] = self._begin(block.weight(name).float(), salient, comes.H)
        return {name: learn[name] for name in block.linears}

    def _begin(self, W: Tensor, salient: Tensor, H: Tensor) -> ScaledSigns:
        low, high = ~salient, None
        if salient.any():
            weight = H.diagonal()[salient] if self.clip == "mse" else None
            high = AffineWeight.nearest(W[:, salient], Grid(self.bits), self.clip, weight)
        if not low.any():
            return ScaledSigns(salient, high, W[:, low] >= 0, *W.new_zeros(2, len(W)), W.new_zeros(0), self.factored)
        a, mu, v = start_scales(W[:, low], "weight" if self.start == "output" else self.start)
        sign = W[:, low] >= mu[:, None]
        if self.start == "output":
            a, mu, v = self._to_output(W, H, salient, high, sign, v)
        if self.signs == "feedback":
            Hc, dead = condition(H)
            high, sign = signs_with_feedback(W.masked_fill(dead, 0.0), Hc, salient, high, a, mu, v)
            if self.start == "output":
                a, mu, v = self._to_output(W, H, salient, high, sign, v)
        return ScaledSigns(salient, high, sign, a, mu, v, self.factored)

    def _to_output(self, W: Tensor, H: Tensor, salient: Tensor, high: AffineWeight | None, sign: Tensor, v: Tensor) -> tuple:
        low = ~salient
        C = W[:, low] @ H[low][:, low]
        if high:
            C = C + (W[:, salient] - high.dequantize()) @ H[salient][:, low]
        return fit_to_output(torch.where(sign, 1.0, -1.0), v, H[low][:, low], C)
