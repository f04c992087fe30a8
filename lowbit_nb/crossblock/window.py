"""Windows of blocks: which blocks are learned together, and a window that behaves like one block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import Block


def schedule(n: int, width: int = 2, overlap: int = 1) -> list[tuple[int, int, int]]:
    """The windows over n blocks: (first block, how many blocks are made hard and left behind, how many are seen).

    Windows start width - overlap blocks apart; a block that the next window sees again stays soft.

    Shapes:  ceil((n - width) / (width - overlap)) + 1 windows.
    Units:   blocks.
    Raises:  ValueError unless 0 <= overlap < width.
    Source:  CBQ, Sec. 3.2.
    Differs: a last window that would reach beyond the end is cut, so that every window begins where the streams are.

    >>> schedule(4), schedule(7, 3, 1)
    ([(0, 1, 2), (1, 1, 2), (2, 2, 2)], [(0, 2, 3), (2, 2, 3), (4, 3, 3)])
    """
    if not 0 <= overlap < width:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than the window's {width} blocks")
    stride, out = width - overlap, []
    for first in range(0, n, stride):
        seen = min(width, n - first)
        last = first + seen == n
        out.append((first, seen if last else stride, seen))
        if last:
            return out
    return out


class Window(Block):
    """Neighbouring blocks as one: layer names begin with the block's place in the window, "0.mlp.up_proj".

    Source: CBQ, Sec. 3.2 (cross-block dependency). Differs: no difference.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        names = nn.ModuleDict({str(k): block.module for k, block in enumerate(blocks)})
        span = blocks[0].name if len(blocks) == 1 else f"{blocks[0].name} to {blocks[-1].index}"
        super().__init__(names, blocks[0].index, span, (), {}, blocks[0].batch, blocks[-1].last)
        self.blocks = list(blocks)

    def forward(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The last block's output for one batch; differentiable in the exchanged tensors.

        Shapes:  as `Block.forward`, names beginning with places.
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        for k, block in enumerate(self.blocks):
            x = block.forward(x, None if weights is None else inside(weights, k))
        return x


class EveryOutput(Window):
    """A window that gives what each of its blocks makes, not only the last.

    Source: this project. Differs: no difference.
    """

    compiled = False  # compiling every block of a model takes longer than it saves

    def forward(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The outputs of all blocks for one batch.

        Shapes:  x [batch, length, d_model]; returns [batch, n_blocks, length, d_model].
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        outputs = []
        for k, block in enumerate(self.blocks):
            x = block.forward(x, None if weights is None else inside(weights, k))
            outputs.append(x)
        return torch.stack(outputs, 1)

    @torch.no_grad()
    def run(self, X: Tensor, weights: dict[str, Tensor] | None = None, out: Tensor | None = None) -> Tensor:
        """The outputs of all blocks for every window, batch by batch.

        Shapes:  X [n, length, d_model]; returns [n, n_blocks, length, d_model].
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return torch.cat([self.forward(x, weights) for x in X.split(self.batch)])


def inside(named: dict, k: int) -> dict:
    """What belongs to the block at place k, by its names inside that block.

    Shapes:  a dict whose names begin with places.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> inside({"0.a": 1, "1.b": 2}, 1)
    {'b': 2}
    """
    return {name.removeprefix(f"{k}."): value for name, value in named.items() if name.startswith(f"{k}.")}
