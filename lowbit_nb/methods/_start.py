"""Where one method begins with what another has made of a block: edits, and a ruler for every group."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Protocol

from torch import Tensor, nn

from lowbit_nb import grid as grids
from lowbit_nb.activations import Activations
from lowbit_nb.adaptive import LossView
from lowbit_nb.blocks import Block
from lowbit_nb.grid import Grid
from lowbit_nb.record import Phases
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import current

Rulers = dict[str, tuple[Tensor, Tensor]]


class Start(Protocol):
    """A method that hands out edits {name: tensor} and rulers {linear name: (s, z)} instead of rounding.

    A linear layer's edited tensor is what is to be rounded there: the weight as a transform has made it, or, if the start is
    error feedback, the value that feedback rounded.

    Source: this project. Differs: no difference.
    """

    grid: Grid
    streams: tuple[str, ...]

    def begin(self, block: Block, X: Tensor, Y: Tensor | None, phases: Phases) -> tuple[dict[str, Tensor], Rulers]: ...


def begin(start: Start, block: Block, streams: Streams, phases: Phases) -> tuple[dict[str, Tensor], Rulers]:
    """Let a start begin a block; it is told what it asks for: targets, and the end loss's Hessians.

    Shapes:  as `Start.begin`.
    Units:   see `grid.fit`.
    Raises:  ValueError as the start.
    Source:  this project.
    Differs: no difference.
    """
    Y = streams.targets(block) if "full" in start.streams else None
    asked = {"loss": streams.loss} if "loss" in start.streams else {}
    return start.begin(block, streams.quant, Y, phases, **asked)


def check(start: Start | None, grid: Grid, who: str) -> None:
    """Refuse a start of another grid, and feedback where a method wants weights and not what they would be rounded to.

    Shapes:  none.
    Units:   none.
    Raises:  ValueError in both cases.
    Source:  this project.
    Differs: no difference.
    """
    if start is None:
        return
    refuse(start, who)
    if hasattr(start, "quantize_layer") or hasattr(start, "backend"):
        raise ValueError(f"{type(start).__name__} hands out what it would round to, and {who} begins at weights; let TesseraQ "
                         "or CBQ begin there")
    if start.grid != grid:
        raise ValueError(f"the start rounds to {start.grid} and {who} to {grid}: give both the same grid")


def refuse(start: Start, who: str) -> None:
    """Refuse what hands out no rulers, and what would tune its stored weights, of which only the rulers are taken.

    Shapes:  none.
    Units:   none.
    Raises:  ValueError in both cases, also for a start's own start.
    Source:  this project.
    Differs: no difference.
    """
    for one in _chain(start):
        name, begins = type(one).__name__, getattr(one, "begin", None)
        if begins is None or "phases" not in signature(begins).parameters:  # LRQuant and PTQ1.61 begin in another way
            raise ValueError(f"{name} has no rulers that {who} could begin with; use RTN, GPTQ, AWQ, SmoothQuant, OmniQuant or "
                             "OAC(GPTQ)")
        if getattr(one, "tune", None):
            raise ValueError(f"{name} tunes what it has stored, and {who} begins before that: leave the start's tune None")


def _chain(start: object | None) -> Iterator[object]:
    while start is not None and not isinstance(start, str):  # VPTQ's start, say, is a name
        yield start
        start = getattr(start, "start", None) or getattr(start, "backend", None)


def asks(start: Start | None, *own: str) -> tuple[str, ...]:
    """The streams of a method that has its own wishes and those of its start.

    Shapes:  names.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> asks(None, "quant")
    ('quant',)
    """
    wanted = {*own, *(start.streams if start else ())}
    return tuple(name for name in ("full", "quant", "loss") if name in wanted)


class Beginning:
    """Mixed into a method that begins with the `start` it holds and learns from there.

    Source: this project. Differs: no difference.
    """

    start: Start | None
    activations: Activations | None

    def check_start(self) -> None:
        """Refuse what is no start, and a start, or a start's start, that rounds activations in another way.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError as `refuse`, or naming both roundings.
        Source:  this project.
        Differs: no difference.
        """
        who = type(self).__name__
        refuse(self.start, who)
        for one in _chain(self.start):
            if getattr(one, "activations", None) not in (None, self.activations):
                raise ValueError(f"the start rounds activations by {one.activations} and {who} by {self.activations}: give "
                                 "both the same")

    @property
    def streams(self) -> tuple[str, ...]:
        return asks(self.start, "full", "quant")

    def view(self, model: nn.Module, ids: Tensor, blocks: list[Block]) -> LossView:
        """How the start asks the end loss, if it does.

        Shapes:  as `OAC.view`.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return self.start.view(model, ids, blocks)


def nearest(block: Block, params: dict[str, Tensor], rulers: Rulers, grid: Grid) -> dict[str, AffineWeight]:
    """What a start has begun, rounded to the nearest marks.

    Shapes:  as `Start.begin`; one stored weight a linear layer.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return {name: AffineWeight.of(grids.quantize(current(block, params, name).float(), s, z, grid), s, z, grid)
            for name, (s, z) in rulers.items()}
