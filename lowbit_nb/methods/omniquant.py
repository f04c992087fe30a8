"""OmniQuant: learned equivalent scaling (LET), an affine grid whose clip is learned (LWC), nearest rounding, the
block's output.

Both ends of every ruler move, and channel factors if asked, by gradient through the step, until the quantized block gives back
what the original gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb.activations import Activations, as_quantized
from lowbit_nb.blocks import Block
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.grid import Grid
from lowbit_nb.methods import _start, _targets
from lowbit_nb.methods._logarithm import log_start
from lowbit_nb.methods._start import Rulers, Start, asks
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.scaling import LearnedScaling, Settled
from lowbit_nb.sites import query_key_site, sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import Site, channels, current, norms, smoothing


@dataclass(frozen=True)
class OmniQuant:
    """Learned weight clipping, and learned scaling if asked, by block reconstruction.

    scaling  learn channel factors too (LET), from SmoothQuant's with exponent alpha      shifts  and shifts, where biases are
    base     of the logarithm that factors start from, as in LRQuant, instead of `alpha`
    start    begin at its scales and rulers (AWQ, SmoothQuant); None: at the original weights and `first`, a share of the range
    reach    how far an end can travel (in its logit) over the whole budget: its rate is reach / steps, that of factors half of
             it; None: 25, or 1 from a start that is searched already, but no rate above FASTEST
    objective, teachers   as in TesseraQ
    activations  rounded while all this is learned, and behind it; queries and keys then share a learned factor too

    Source: OmniQuant, Sec. 3.2 (LWC) and 3.3 (LET); start sigmoid(4) = 0.982, alpha and ratio of rates of its code; a start
    from a searched clip is LLMC's.
    Differs: random minibatches instead of epochs in order; a new optimiser every round; the best hard state is kept; zero is
    always inside the range; rates are set by their reach (the paper's 1e-2 for 2560 steps is a reach of 26).
    """

    FASTEST: ClassVar[float] = 0.1

    grid: Grid
    budget: str | Budget = "fast"
    scaling: bool = False
    shifts: bool = False
    start: Start | None = None
    first: float = 0.982
    alpha: float = 0.5
    reach: float | None = None
    seed: int = 0
    activations: Activations | None = None
    base: float | None = None
    objective: str = "mse"
    teachers: int = 1

    def __post_init__(self) -> None:
        _targets.check(self.objective, self.teachers)
        budget(self.budget)  # refuses an unknown name before any calibration is spent
        if not 0 < self.first < 1:
            raise ValueError(f"first={self.first} must lie between 0 and 1: the share of the range at which both ends start")
        if self.base is not None and self.base <= 1:
            raise ValueError(f"base={self.base} of the logarithm must be above 1, or None to start from the exponent alpha")
        _start.check(self.start, self.grid, "OmniQuant")

    @property
    def streams(self) -> tuple[str, ...]:
        return asks(self.start, "full", "quant")

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Learn one block's rulers, and its channel factors if asked, together.

        Shapes:  one stored weight a linear layer, and the norms that absorbed factors.
        Units:   trace: losses of the block's output, summed over the hidden dimension, mean over tokens.
        Raises:  ValueError as `reconstruct`.
        Source:  OmniQuant, Alg. 1.
        Differs: see the class.
        """
        phases = Phases()
        with phases("targets"):
            Y = streams.targets(block)
        weights, params, story = self._learn(block, streams.quant, Y, phases)
        return BlockResult(weights, {"phases": phases} | story, norms(block, params))

    def begin(self, block: Block, X: Tensor, Y: Tensor, phases: Phases) -> tuple[dict[str, Tensor], Rulers]:
        """Learned edits of the block and rulers for every group: where TesseraQ can begin.

        Shapes:  X, Y [n, length, d_model]; returns {name: tensor} and {linear name: (s, z)}.
        Units:   see `grid.fit`.
        Raises:  ValueError as `reconstruct`.
        Source:  TesseraQ: "initialised with OmniQuant".
        Differs: no difference.
        """
        weights, params, _ = self._learn(block, X, Y, phases)
        return params, {name: (w.s.float(), w.zero) for name, w in weights.items()}

    def _learn(self, block: Block, X: Tensor, Y: Tensor,
               phases: Phases) -> tuple[dict[str, AffineWeight], dict[str, Tensor], dict]:
        spent, fresh = budget(self.budget), getattr(self.start, "clip", "minmax") == "minmax"
        params, rulers = self.start.begin(block, X, Y, phases) if self.start else ({}, {})
        edits = self._scaling(block, X, params) if self.scaling else Settled(params)
        made, learn = edits.finish(), {}
        for name in block.linears:
            with block.naming(name):
                learn[name] = LearnedClip(current(block, made, name), self.grid, rulers.get(name, self.first))
        n_steps = max(1, spent.rounds * spent.steps)
        usual = min(self.FASTEST, (25.0 if fresh else 1.0) / n_steps)
        rate = usual if self.reach is None else self.reach / n_steps
        with phases("learn clip"):
            through = as_quantized(block, self.activations, made)
            Y = _targets.taught(block, X, Y, self.teachers)
            return reconstruct(through, learn, edits, X, Y, soft=(1.0,) * spent.rounds, budget=spent,
                               rates={"clip": rate, "scaling": rate / 2, "shift": rate / 2},
                               generator=torch.Generator().manual_seed(self.seed + block.index),
                               objective=_targets.objective(self.objective, self.teachers))

    def _scaling(self, block: Block, X: Tensor, params: dict[str, Tensor]) -> LearnedScaling:
        """LET before its first step: SmoothQuant's or LRQuant's factors, or ones after a start that has scaled already."""
        places = sites(block, X[:1])
        between = query_key_site(block, X[:1]) if self.activations and self.activations.qkv else None
        if self.start:
            return LearnedScaling(block, places + ([between] if between else []), params=params, shifts=self.shifts)
        shared = block.shared_inputs(X[:1])
        peaks = {n: h.peak for names, h in zip(shared, block.hessians(X, shared), strict=True) for n in names}
        factors = [self._factors(block, site, peaks[site.targets[0]]) for site in places]
        if between:
            places, factors = [*places, between], [*factors, torch.ones(channels(block, between))]
        return LearnedScaling(block, places, factors, shifts=self.shifts)

    def _factors(self, block: Block, site: Site, peak: Tensor) -> Tensor:
        if self.base:
            return log_start(site.gather(peak), self.base)
        w_max = torch.stack([block.weight(name).float().abs().amax(0) for name in site.targets]).amax(0)
        return smoothing(site.gather(peak), site.gather(w_max), self.alpha)
