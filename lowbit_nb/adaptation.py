"""Test-time adaptation: what was learned about the last block learns on from other text, and is laid over the base.

The base never changes.  An overlay has a name, holds the last block alone, and can be taken off again.  `adapt` sees the text
that it will be scored on (transductive); `online` hands every chunk out to be scored before it learns from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb.activations import Activations, as_quantized
from lowbit_nb.blocks import Block, catch
from lowbit_nb.grid import Grid
from lowbit_nb.methods import _phi
from lowbit_nb.methods.lrquant import LRQuant
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Phases, Quantized, block_of
from lowbit_nb.stored import StoredWeight
from lowbit_nb.streams import Streams
from lowbit_nb.subject import Subject
from lowbit_nb.transforms import norms
from lowbit_nb.windows import Windows


@dataclass(frozen=True)
class Overlay:
    """A last block to be laid over a base record.

    weights, params  by their full names        phi    what was learned, as the trace keeps it
    seen             sha256 of the windows it has learned from, in order     story  losses of the last adaptation

    Source: LRQuant, Sec. 3.4. Differs: its code overwrites the model and reloads it from a file.
    """

    name: str
    base: Quantized
    weights: dict[str, StoredWeight]
    params: dict[str, Tensor]
    phi: str
    seen: tuple[str, ...]
    story: dict
    activations: Activations | None = None

    def attach(self) -> Quantized:
        """The base with this block in the place of its own; nothing of the base is changed.

        Shapes:  as the base.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        said = {"overlay": {"name": self.name, "seen": list(self.seen)}}
        if self.activations:
            said["activations"] = dataclasses.asdict(self.activations)
        trace = [*self.base.trace[:-1], self.base.trace[-1] | {"phi": self.phi}]
        kept = {name: t for name, t in self.base.params.items() if not name.startswith(f"{self.block}.")}
        return dataclasses.replace(self.base, weights=self.base.weights | self.weights, params=kept | self.params,
                                   settings=self.base.settings | said, trace=trace)

    def detach(self) -> Quantized:
        """The base, as it was."""
        return self.base

    @property
    def block(self) -> str:
        """The full name of the block that is exchanged."""
        return block_of(next(iter(self.weights)))


def adapt(subject: Subject, base: Quantized, windows: Windows, name: str = "adapted", *, epochs: int = 5, rate: float = 1e-3,
          start: str = "warm", over: Overlay | None = None, batch: int = 4) -> Overlay:
    """Learn the last block on, on text without labels: its original on the original's inputs is the teacher.

    Shapes:  windows.ids [n, length]; epochs 0 gives the base's own block.
    Units:   rate: that of the rulers' ends; factors and shifts learn at the base method's ratio of it (0.1).
    Raises:  ValueError if the base was not made by LRQuant, or start is not "warm" or "cold".
    Source:  LRQuant, Sec. 3.4 (5 epochs, last block). Rates a tenth of its code's, which notes that smaller ones are better.
    Differs: inputs are those that really reach the last block; activations stay rounded; it begins at what was calibrated
             ("warm") unless asked for the code's start ("cold").
    """
    if start not in ("warm", "cold"):
        raise ValueError(f"start={start!r} is unknown; use 'warm' (what was calibrated) or 'cold' (factors of 1)")
    method = _method(base, epochs, len(windows))
    block, streams = reach_last(subject, base, windows, batch)
    phi = (over.phi if over else base.trace[-1]["phi"]) if start == "warm" else None
    seen = (*(over.seen if over else ()), windows.sha256)
    return _learned(name, base, method, block, streams.quant, block.run(streams.full), phi, seen, rate)


def online(subject: Subject, base: Quantized, chunks: Iterable[Windows],
           **settings: object) -> Iterator[tuple[Windows, Quantized]]:
    """Each chunk with the record to score it by, which has learned from the chunks before it and from nothing else.

    A chunk is learned from when the next one is asked for, so whatever happens in between has not seen it; the last one never.

    Shapes:  chunks of windows; settings as `adapt`.
    Units:   none.
    Raises:  as `adapt`.
    Source:  this project.
    Differs: the paper adapts to a test set and scores that set.
    """
    overlay: Overlay | None = None
    before: Windows | None = None
    for chunk in chunks:
        if before is not None:
            overlay = adapt(subject, base, before, "online", over=overlay, **settings)
        yield chunk, overlay.attach() if overlay else base
        before = chunk


def adapt_as_released(subject: Subject, base: Quantized, windows: Windows, *, epochs: int = 5, rate: float = 1e-2,
                      batch: int = 4) -> Overlay:
    """What the released code does, to be compared with: not an adaptation of the model it scores.

    It learns the last block on the embeddings instead of on what reaches that block, without rounding activations, from
    factors of 1, and leaves that block's activations unrounded when the model is scored.

    Shapes:  as `adapt`.
    Units:   as `adapt`.
    Raises:  as `adapt`.
    Source:  LRQuant code (test-time adaptation).
    Differs: no difference that matters here.
    """
    method = dataclasses.replace(_method(base, epochs, len(windows)), activations=None)
    blocks, X = catch(subject.model, windows.ids, batch)
    block, rounded = blocks[-1], base.activations
    left = dataclasses.replace(rounded, skip=(*rounded.skip, block.name)) if rounded else None
    made = _learned("as released", base, method, block, X, block.run(X), None, (windows.sha256,), rate)
    return dataclasses.replace(made, activations=left)


@torch.no_grad()
def reach_last(subject: Subject, base: Quantized, windows: Windows, batch: int = 4) -> tuple[Block, Streams]:
    """The last block, and what really flows into it: in the original and in the quantized model.

    Shapes:  windows.ids [n, length]; streams [n, length, d_model].
    Units:   those of the residual stream.
    Raises:  ValueError if activations are not finite.
    Source:  LRQuant, Sec. 3.4.
    Differs: its code takes the first block's inputs.
    """
    subject.check_fits(windows.ids.shape[1])
    blocks, X = catch(subject.model, windows.ids, batch)
    streams = Streams.start(X, ("full", "quant"))
    for block in blocks[:-1]:
        own = next(block.module.parameters())
        weights, params = _inside(base.weights, block.name), _inside(base.params, block.name)
        exchanged = {name: w.dequantize() for name, w in weights.items()} | params
        streams.advance(as_quantized(block, base.activations, params),
                        {name: t.to(own.device, own.dtype) for name, t in exchanged.items()})
    return blocks[-1], streams


def _learned(name: str, base: Quantized, method: LRQuant, block: Block, X: Tensor, Y: Tensor, phi: str | None,
             seen: tuple[str, ...], rate: float) -> Overlay:
    begun = base.trace[-1]["from"] if phi else None
    edits, learn = (method if phi else dataclasses.replace(method, base=None)).begin(block, X, begun)
    if phi:
        _phi.fill(_phi.variables(edits, learn), phi)
    weights, params, story = method.learn(block, edits, learn, X, Y, Phases(), rate)
    named = {f"{block.name}.{n}": t for n, t in norms(edits.block, params).items()}
    return Overlay(name, base, {f"{block.name}.{n}": w for n, w in weights.items()}, named,
                   _phi.packed(_phi.variables(edits, learn)), seen, story)


def _method(base: Quantized, epochs: int, n: int) -> LRQuant:
    """The method that made the base; an epoch takes the windows one by one."""
    if base.settings["method"] != "LRQuant" or "phi" not in base.trace[-1]:
        raise ValueError(f"{base.settings['method']} keeps nothing that could learn on; adapt a record of LRQuant")
    own = dict(base.settings["settings"])
    own["grid"] = Grid(**own["grid"])
    own["activations"] = Activations(**own["activations"]) if own["activations"] else None
    own["budget"] = Budget(epochs, n, 1)
    return LRQuant(**own)


def _inside(named: dict, block: str) -> dict:
    return {name.removeprefix(f"{block}."): t for name, t in named.items() if name.startswith(f"{block}.")}
