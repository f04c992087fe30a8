"""RTN, round to nearest: no transform, an affine grid, nearest rounding, one weight at a time.

The floor that every other method is measured from.  It looks at weights only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.blocks import Block
from lowbit_nb.grid import Grid
from lowbit_nb.methods._start import Rulers
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams


@dataclass(frozen=True)
class RTN:
    """Round every weight to the nearest mark of its group's ruler.

    Source: the baseline of GPTQ and LLM.int8(); clip="mse" is the range search of the GPTQ code. Differs: no difference.
    """

    grid: Grid
    clip: str = "minmax"
    streams: ClassVar[tuple[str, ...]] = ()

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers.

        Shapes:  one stored weight a linear layer.
        Units:   none.
        Raises:  ValueError as `grid.fit`.
        Source:  GPTQ, Sec. 2.
        Differs: no difference.
        """
        weights = {}
        for name in block.linears:
            with block.naming(name):
                weights[name] = AffineWeight.nearest(block.weight(name), self.grid, self.clip)
        return BlockResult(weights)

    def begin(self, block: Block, X: Tensor, Y: Tensor | None, phases: Phases) -> tuple[dict[str, Tensor], Rulers]:
        """No edits, and a ruler for every group: where a rounding that is learned can begin.

        Shapes:  X and Y are not looked at; returns {} and {linear name: (s, z)}.
        Units:   see `grid.fit`.
        Raises:  ValueError as `grid.fit`.
        Source:  this project.
        Differs: no difference.
        """
        rulers = {}
        for name in block.linears:
            with block.naming(name):
                rulers[name] = grids.fit(block.weight(name).float(), self.grid, self.clip)
        return {}, rulers
