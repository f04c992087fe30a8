"""SmoothQuant: activation scaling with a fixed exponent, an affine grid, nearest rounding.

What the activations find hard is moved into the weights: s = max|x|**alpha / max|w|**(1 - alpha) at the two norms.
It was made for eight-bit weights and activations; without activations it is a companion of AWQ, for weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.activations import Activations
from lowbit_nb.blocks import Block
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import gram
from lowbit_nb.methods._start import Rulers, nearest
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.sites import sites
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import current, norms, scale, smoothing


@dataclass(frozen=True)
class SmoothQuant:
    """Fixed-exponent smoothing, nearest rounding.

    clip  minmax | mse, of the weights | gram, by the group's own output error

    Source: SmoothQuant, Eq. 4; alpha 0.5 as for OPT (its code uses 0.85 for LLaMA-2).
    Differs: inputs are those of the quantized prefix; the weight's grid is this kit's, not symmetric per channel.
    """

    grid: Grid
    alpha: float = 0.5
    clip: str = "minmax"
    activations: Activations | None = None
    streams: ClassVar[tuple[str, ...]] = ("quant",)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 (make the weights alike) and 1 (the activations)")

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Smooth and round one block.

        Shapes:  one stored weight a linear layer, and the norms that absorbed the scales.
        Units:   trace: seconds by phase.
        Raises:  ValueError as `grid.fit`.
        Source:  SmoothQuant, Sec. 4.
        Differs: see the class.
        """
        phases = Phases()
        params, rulers = self.begin(block, streams.quant, None, phases)
        return BlockResult(nearest(block, params, rulers, self.grid), {"phases": phases}, norms(block, params))

    def begin(self, block: Block, X: Tensor, Y: Tensor | None, phases: Phases) -> tuple[dict[str, Tensor], Rulers]:
        """The smoothed parameters of a block and a ruler for every group.

        Shapes:  X [n, length, d_model]; Y is not looked at; returns {name: tensor} and {linear name: (s, z)}.
        Units:   see `grid.fit`.
        Raises:  ValueError as `grid.fit`.
        Source:  SmoothQuant, Sec. 4.
        Differs: no difference.
        """
        with phases("peaks"):
            shared = block.shared_inputs(X[:1])
            found = {n: h for names, h in zip(shared, block.hessians(X, shared), strict=True) for n in names}
        metrics, params = {name: h.H for name, h in found.items()} if self.clip == "gram" else {}, {}
        for site in (s for s in sites(block, X[:1]) if s.kind != "linear"):
            w_max = torch.stack([current(block, params, name).abs().amax(0) for name in site.targets]).amax(0)
            s = smoothing(found[site.targets[0]].peak, w_max, self.alpha)
            params = scale(block, site, s, params)
            metrics |= {name: metrics[name] / s.outer(s) for name in site.targets if name in metrics}
        rulers = {}
        for name in block.linears:
            with block.naming(name):
                W = current(block, params, name)
                seen = ("mse", gram(metrics[name], self.grid.g(W.shape[1]))) if metrics else (self.clip,)
                rulers[name] = grids.fit(W, self.grid, *seen)
        return params, rulers
