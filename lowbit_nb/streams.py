"""What flows from block to block: one stream from the original model, one from the blocks already quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from lowbit_nb import spill
from lowbit_nb.blocks import Block


@dataclass
class Streams:
    """What flows into the next block: from the original model (`full`) and from the quantized blocks before it (`quant`).

    A stream that a method does not ask for is None and costs nothing; one that lies elsewhere (`spill`) stays there.

    Source: the two input streams of OmniQuant and of GPTAQ. Differs: no difference.
    """

    full: Tensor | None
    quant: Tensor | None
    ahead: Tensor | None = None  # the original block's outputs, once somebody has asked for them
    loss: Callable[[Block, Tensor | None], dict[str, Tensor]] | None = None  # output-adaptive Hessians of a block, if wanted

    def targets(self, block: Block) -> Tensor:
        """What the original block makes of the full-precision stream: what a quantized block should give back.

        Shapes:  returns [n, length, d_model].
        Units:   those of the residual stream.
        Raises:  ValueError if an output is not finite.
        Source:  BRECQ, Sec. 3.2; the asymmetric form of TesseraQ and OmniQuant.
        Differs: no difference.
        """
        if self.ahead is None:
            self.ahead = block.run(self.full)
        return self.ahead

    @classmethod
    def start(cls, X: Tensor | None, wanted: tuple[str, ...]) -> Streams:
        """Both streams start as the same embeddings.

        Shapes:  X [n, length, d_model], taken over by one of the streams.
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        full = X if "full" in wanted else None
        quant = None if "quant" not in wanted else spill.copied(X) if full is not None else X
        return cls(full, quant)

    def advance(self, block: Block, weights: dict[str, Tensor]) -> None:
        """Carry both streams through a block, in place: `full` with its own weights, `quant` with the given ones.

        Shapes:  weights {linear name: [d_out, d_in]}.
        Units:   those of the residual stream.
        Raises:  ValueError if an output is not finite.
        Source:  this project.
        Differs: no difference.
        """
        if self.full is not None:
            self.full = block.run(self.full, out=self.full) if self.ahead is None else self.ahead
            self.ahead = None
        if self.quant is not None:
            block.run(self.quant, weights, out=self.quant)

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Within this, streams that stayed behind lie whole on the GPU, for methods that draw minibatches from them.

        Shapes:  as they are.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        behind = self.full, self.quant
        away = [X for X in behind if X is not None and spill.home(X) != X.device]
        if not away:
            yield
            return
        try:
            self.full, self.quant = (X if X is None else spill.at_home(X) for X in behind)
            yield
        finally:
            self.full, self.quant = behind
            if self.ahead is not None:
                self.ahead = spill.copied(self.ahead, spill.like(away[0]))
