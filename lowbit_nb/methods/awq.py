"""AWQ: activation scaling searched by output error, an affine grid with a searched clip, nearest rounding.

Channels that carry large activations get finer rulers by making their weights larger; what makes their input absorbs it.
Scale and clip are searched on Gram matrices: exact over all calibration tokens, whatever their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.blocks import Block
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import error_share, gram
from lowbit_nb.methods._start import Rulers, nearest
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.sites import sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import Site, current, norms, salience, scale

RATIOS = tuple(i / 20 for i in range(20))


@dataclass(frozen=True)
class AWQ:
    """Searched scaling, searched clip, nearest rounding.

    scaling  search a scale at every site                          clip  gram: by the group's own output error; mse; minmax

    Source: AWQ, Sec. 3; the asymmetric clip is that of the llmc code.
    Differs: both searches use Gram matrices of all tokens; a channel's size is its root mean square, not its mean |x|; the
    scale is judged by the outputs of the scaled layers, not of the whole attention; inputs are those of the quantized
    prefix; query and key are clipped too.
    """

    grid: Grid
    scaling: bool = True
    clip: str = "gram"
    streams: ClassVar[tuple[str, ...]] = ("quant",)

    def __post_init__(self) -> None:
        if self.clip not in ("gram", "mse", "minmax"):
            raise ValueError(f"clip={self.clip!r} is unknown; use 'gram', 'mse' or 'minmax'")

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Scale, clip and round one block.

        Shapes:  one stored weight a linear layer, and the norms that absorbed the scales.
        Units:   trace: seconds by phase.
        Raises:  ValueError as `grid.fit`.
        Source:  AWQ, Sec. 3.
        Differs: see the class.
        """
        phases = Phases()
        params, rulers = self.begin(block, streams.quant, None, phases)
        return BlockResult(nearest(block, params, rulers, self.grid), {"phases": phases}, norms(block, params))

    def begin(self, block: Block, X: Tensor, Y: Tensor | None, phases: Phases) -> tuple[dict[str, Tensor], Rulers]:
        """The scaled parameters of a block and a ruler for every group: where TesseraQ begins.

        Shapes:  X [n, length, d_model]; Y is not looked at; returns {name: tensor} and {linear name: (s, z)}.
        Units:   see `grid.fit`.
        Raises:  ValueError as `grid.fit`.
        Source:  TesseraQ: "initialised with AWQ".
        Differs: no difference.
        """
        with phases("hessian"):
            shared = block.shared_inputs(X[:1])
            metrics = {name: h.H for names, h in zip(shared, block.hessians(X, shared), strict=True) for name in names}
        params: dict[str, Tensor] = {}
        with phases("scale"):
            for site in sites(block, X[:1]) if self.scaling else []:
                params = self._search(block, site, params, metrics)
        with phases("clip"):
            rulers = {}
            for name in block.linears:
                with block.naming(name):
                    rulers[name] = self._ruler(current(block, params, name).float(), metrics[name])
        return params, rulers

    def _search(self, block: Block, site: Site, params: dict[str, Tensor], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Try every ratio at one site; keep the scale whose rounded layers have the least output error."""
        H = metrics[site.targets[0]]
        size = site.gather(H.diagonal().clamp(min=0).sqrt())
        W = torch.cat([current(block, params, name).float() for name in site.targets])
        losses = []
        for ratio in RATIOS:
            s = site.expand(salience(size, ratio))
            with block.naming(*site.targets):
                stored = AffineWeight.nearest(W * s, self.grid)
            losses.append(error_share(W, stored.dequantize() / s, H))
        s = salience(size, RATIOS[min(range(len(losses)), key=losses.__getitem__)])
        for name in site.targets:
            metrics[name] = H / site.expand(s).outer(site.expand(s))
        return scale(block, site, s, params)

    def _ruler(self, W: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        if self.clip == "gram":
            return grids.fit(W, self.grid, "mse", gram(H, self.grid.g(W.shape[1])))
        return grids.fit(W, self.grid, self.clip, H.diagonal())
