"""LRQuant: smoothing that starts from a logarithm and is learned, an affine grid whose clip is learned, nearest rounding, the
block's output by size and by angle.

Every channel's largest activation a becomes log2(2 + a): outliers shrink, small channels grow to about 1, and learning goes on
from there, factors, shifts and rulers together.  What was learned about the last block is kept, so that it can be adapted to
other text (`lowbit_nb.adaptation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb.activations import Activations, as_quantized, extended
from lowbit_nb.blocks import Block
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.grid import Grid
from lowbit_nb.methods import _phi, _targets
from lowbit_nb.methods._logarithm import log_start
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.scaling import LearnedScaling
from lowbit_nb.sites import query_key_site, sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import Site, channels, current, norms

LOSSES = ("mse+nlc", "mse", "nlc")


@dataclass(frozen=True)
class LRQuant:
    """Learned smoothing from the logarithmic start, learned clipping, MSE + NLC.

    activations  how they are rounded; None: weights only         loss     "mse+nlc", or one of the two
    teachers     1, or 2: against the original block on the original and on the real inputs
    base         of the logarithm that factors start from; None: from 1                 shifts   learn shifts too
    down         scale the input of the last linear layer too (up -> down), which the paper leaves alone
    first        the share of the range at which both ends of a ruler start
    reach        how far an end can travel (in its logit) over the whole budget; None: 25, but no rate above FASTEST
    ratio        rate of factors and shifts, as a share of that of the ends: 0.1 in the paper

    Source: LRQuant (ACL 2024), Sec. 3; defaults of its code (20 epochs, 1e-3 and 1e-2, start 4.0, base 2).
    Differs: rotary pairs share a factor and so do grouped queries, which keeps the function (its code does neither); factors
    are learned as logarithms; random minibatches; the best hard state is kept; zero is inside a weight's range.
    """

    FASTEST: ClassVar[float] = 0.1

    grid: Grid
    activations: Activations | None = None
    budget: str | Budget = "fast"
    loss: str = "mse+nlc"
    base: float | None = 2.0
    shifts: bool = True
    down: bool = False
    first: float = 0.982
    reach: float | None = None
    ratio: float = 0.1
    seed: int = 0
    teachers: int = 1
    streams: ClassVar[tuple[str, ...]] = ("full", "quant")

    def __post_init__(self) -> None:
        budget(self.budget)  # refuses an unknown name before any calibration is spent
        _targets.check(self.loss, self.teachers, LOSSES, "loss")
        if self.base is not None and self.base <= 1:
            raise ValueError(f"base={self.base} of the logarithm must be above 1, or None to start from factors of 1")

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Learn one block's factors, shifts and rulers together.

        Shapes:  one stored weight a linear layer; norms and biases that absorbed factors and shifts.
        Units:   trace: losses of `loss`; of the last block also "phi", what was learned, for adaptation.
        Raises:  ValueError as `reconstruct`.
        Source:  LRQuant, Sec. 3.
        Differs: see the class.
        """
        phases = Phases()
        with phases("targets"):
            Y = _targets.taught(block, streams.quant, streams.targets(block), self.teachers)
        with phases("start"):
            edits, learn = self.begin(block, streams.quant)
            begun = _phi.packed(edits.log_s)
        weights, params, story = self.learn(block, edits, learn, streams.quant, Y, phases)
        kept = {"phi": _phi.packed(_phi.variables(edits, learn)), "from": begun} if block.last else {}
        return BlockResult(weights, {"phases": phases} | story | kept, norms(edits.block, params))

    def begin(self, block: Block, X: Tensor, begun: str | None = None) -> tuple[LearnedScaling, dict[str, LearnedClip]]:
        """The variables of a block before the first step.

        Shapes:  X [n, length, d_model]; begun: factors as the trace keeps them ("from"), instead of those of X; the edits'
                 own block has the biases that shifts need.
        Units:   none.
        Raises:  ValueError if the grid has no integer zero point.
        Source:  LRQuant, Sec. 3.1.
        Differs: no difference.
        """
        shared = block.shared_inputs(X[:1])
        peaks = {n: h.peak for names, h in zip(shared, block.hessians(X, shared), strict=True) for n in names}
        places = [site for site in sites(block, X[:1]) if self.down or not _is_down(site)]
        wide = extended(block, biases_for(block, places)) if self.shifts else block
        factors = [torch.ones(channels(block, site)) if self.base is None else
                   log_start(site.gather(peaks[site.targets[0]]), self.base) for site in places]
        between = query_key_site(block, X[:1]) if self.activations and self.activations.qkv else None
        if between:
            places, factors = [*places, between], [*factors, torch.ones(channels(block, between))]
        edits = LearnedScaling(wide, places, factors, shifts=self.shifts)
        if begun:
            _phi.fill(edits.log_s, begun)
        made, learn = edits.finish(), {}
        for name in block.linears:
            with block.naming(name):
                learn[name] = LearnedClip(current(wide, made, name), self.grid, self.first)
        return edits, learn

    def learn(self, block: Block, edits: LearnedScaling, learn: dict[str, LearnedClip], X: Tensor, Y: Tensor, phases: Phases,
              rate: float | None = None) -> tuple[dict[str, AffineWeight], dict[str, Tensor], dict]:
        """The engine on these variables; they are left where the best hard state was.

        Shapes:  X, Y [n, length, d_model] (Y of two teachers [n, 2, length, d_model]); returns weights, edited tensors, story.
        Units:   rate: that of the ends, if not what `reach` says.
        Raises:  ValueError as `reconstruct`.
        Source:  LRQuant, Sec. 3.
        Differs: see the class.
        """
        spent = budget(self.budget)
        n_steps = max(1, spent.rounds * spent.steps)
        usual = min(self.FASTEST, 25.0 / n_steps) if self.reach is None else self.reach / n_steps
        rate = usual if rate is None else rate
        objective = _targets.objective(self.loss, Y.ndim - X.ndim + 1)
        with phases("learn"):
            return reconstruct(
                as_quantized(edits.block, self.activations), learn, edits, X, Y, soft=(1.0,) * spent.rounds, budget=spent,
                rates={"clip": rate, "scaling": rate * self.ratio, "shift": rate * self.ratio}, objective=objective,
                generator=torch.Generator().manual_seed(self.seed + block.index), restore=True)


def biases_for(block: Block, places: list[Site]) -> list[str]:
    """The biases that shifts at these places need: of norms and of v, and of the layers behind them.

    Shapes:  parameter names inside the block, some of which may exist.
    Units:   none.
    Raises:  nothing.
    Source:  LRQuant code: quantized Llama blocks gain biases.
    Differs: no difference.
    """
    passing = [site for site in places if site.kind != "linear" or site.source.endswith("v_proj")]
    return list(dict.fromkeys(f"{name}.bias" for site in passing for name in (site.source, *site.targets)))


def _is_down(site: Site) -> bool:
    return site.kind == "linear" and not site.source.endswith("v_proj")
