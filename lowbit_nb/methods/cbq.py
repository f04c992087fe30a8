"""CBQ: outliers treated coarse to fine, an affine grid with learned steps, rounding by a product of thin matrices, the output
of a window of blocks by size and shape, against two teachers.

A window of neighbouring blocks is learned together.  The first of them are then made hard and left behind; the others stay
soft, and the next window goes on where they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.activations import CLIP, Activations, as_quantized, extended
from lowbit_nb.blocks import Block
from lowbit_nb.crossblock import (
    LoRARounding,
    Window,
    WindowEdits,
    channel_factors,
    schedule,
    truncated,
)
from lowbit_nb.crossblock.window import inside
from lowbit_nb.grid import Grid
from lowbit_nb.methods import _targets
from lowbit_nb.methods._start import Beginning, Start, begin
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget, hard_loss, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.sites import sites
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import current, norms, scale

LOSSES = ("mse+kl", "mse", "kl", "mse+nlc")


@dataclass
class _Begun:
    """A block of a window before a step: edits of its norms, its learnables, and its shares of activation ranges."""

    params: dict[str, Tensor]
    learn: dict[str, LoRARounding]
    shares: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CBQ(Beginning):
    """Windows of blocks, two teachers, learned steps, LoRA-Rounding.

    window, overlap  blocks learned together, and how many of them the next window sees again
    ahead            original blocks behind the window, whose output is compared instead of the window's own (look-ahead)
    loss, teachers   "mse+kl" (paper), "mse", "kl" or "mse+nlc"; 2: the original block on the original and on the real inputs
    rank, literal, sharpness, gamma   see `LoRARounding`; rank=None: a variable for every weight
    truncate         clamp the outliers of weights      equalise  divide outlier channels; None: if activations are rounded
    start            a method that hands out rulers and scales (AWQ), or feedback (GPTQ, OAC) as in TesseraQ, instead of
                     truncation, equalisation and `clip`
    held             the share of windows that nothing is learned from; the best state is chosen on them
    reach            how far a variable can travel in one window: its rate is reach / steps, of a step's logarithm a fifth of it

    Source: CBQ (ICLR 2025), Sec. 3; window 2, overlap 1, rank 5 and weights of the losses of the paper.
    Differs: there is no official code, and learning rates are this project's. V0 and sharpness, see `LoRARounding`; random
    minibatches; activations keep dynamic rulers, whose length is learned; the best hard state is kept.
    """

    FASTEST: ClassVar[float] = 0.1

    grid: Grid
    activations: Activations | None = None
    budget: str | Budget = "fast"
    window: int = 2
    overlap: int = 1
    ahead: int = 0
    loss: str = "mse+kl"
    teachers: int = 2
    rank: int | None = 5
    literal: bool = False
    sharpness: float = 10.0
    gamma: float = 0.0
    truncate: bool = True
    equalise: bool | None = None
    start: Start | None = None
    clip: str = "mse"
    held: float = 0.125
    reach: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        budget(self.budget)  # refuses an unknown name before any calibration is spent
        schedule(1, self.window, self.overlap)
        _targets.check(self.loss, self.teachers, LOSSES, "loss")
        if not 0 <= self.held < 1 or (self.rank is not None and self.rank < 1) or self.ahead < 0:
            raise ValueError(f"held={self.held} must be a share below 1, "
                             f"rank={self.rank} at least 1 or None, and ahead={self.ahead} not negative")
        if self.start is not None:
            self.check_start()

    def windows(self, n: int) -> list[tuple[int, int, int]]:
        """The windows over n blocks, with the blocks ahead of them.

        Shapes:  as `schedule`; what is seen includes the blocks ahead.
        Units:   blocks.
        Raises:  nothing.
        Source:  CBQ, Sec. 3.2.
        Differs: look-ahead is not in the paper.
        """
        plain = schedule(n, self.window, self.overlap)
        return [(first, left, min(seen + self.ahead, n - first)) for first, left, seen in plain]

    def quantize_window(self, blocks: list[Block], left: int, streams: Streams,
                        carried: dict[str, Tensor]) -> tuple[list[BlockResult], dict[str, Tensor]]:
        """Learn a window; make its first blocks hard and hand the others on.

        Shapes:  blocks: those of the window, then the original ones behind it; results for blocks[:left]; carried
                 {"place.layer|tensor": tensor} of the blocks that stay, for the next window.
        Units:   trace: losses of the window's output, on windows learned from and on those held out.
        Raises:  ValueError as `grid.fit` and `reconstruct`.
        Source:  CBQ, Sec. 3.2.
        Differs: see the class.
        """
        phases, blocks, behind = Phases(), blocks[: self.window], blocks[self.window :]
        with phases("start"):
            begun = self._begin(blocks, streams, carried, phases)
        clips = list(blocks[0].linears) if self.activations else []
        wide = [extended(block, [f"{name}.{CLIP}" for name in clips]) for block in blocks]
        window = Window([as_quantized(block, self.activations) for block in wide] + behind)
        with phases("targets"):
            Y = _targets.taught(window, streams.quant, window.run(streams.full), self.teachers)
        learn = {f"{k}.{name}": p for k, b in enumerate(begun) for name, p in b.learn.items()}
        for name, p in learn.items():
            place = int(name.partition(".")[0])
            visits = 1 if place < left else place // (self.window - self.overlap) + 1
            p.plan(visits * budget(self.budget).rounds, stays=place >= left)
        fixed = {f"{k}.{name}": t.float() for k, b in enumerate(begun) for name, t in b.params.items()}
        edits = WindowEdits(fixed, list(learn) if clips else [], streams.quant.device)
        with torch.no_grad():
            for i, name in enumerate(edits.clips):
                place, _, own = name.partition(".")
                edits.share[i] = begun[int(place)].shares.get(own, 1.0)
        weights, params, story = self._learn(window, learn, edits, streams.quant, Y, phases)
        results = []
        for k in range(left):
            rounds = [r | {"layers": inside(r["layers"], k)} for r in story["rounds"]]
            trace = {"phases": phases, "window": [b.index for b in blocks]} | story | {"rounds": rounds}
            results.append(BlockResult(inside(weights, k), trace, norms(wide[k], inside(params, k))))
        return results, _carry(begun[left:], edits, left)

    def _learn(self, window: Window, learn: dict[str, LoRARounding], edits: WindowEdits, X: Tensor, Y: Tensor,
               phases: Phases) -> tuple[dict, dict, dict]:
        spent = budget(self.budget)
        n = len(X) - int(self.held * len(X))
        n_steps = max(1, spent.rounds * spent.steps)
        rate = min(self.FASTEST, 6.0 / n_steps) if self.reach is None else self.reach / n_steps
        objective = _targets.objective(self.loss, self.teachers)
        with phases("learn"):
            weights, params, story = reconstruct(
                window, learn, edits, X[:n], Y[:n], soft=(1.0,) * spent.rounds, budget=spent,
                rates={"rounding": rate, "step": rate / 5, "input_clip": rate / 5}, objective=objective,
                generator=torch.Generator().manual_seed(self.seed + window.index), restore=True,
                check=(X[n:], Y[n:]) if n < len(X) else None)
        if n < len(X):
            kept = norms(window, params)
            story |= {"learned_from": hard_loss(window, weights, kept, X[:n], Y[:n], objective), "held_out": story["end"]}
        return weights, params, story

    def _begin(self, blocks: list[Block], streams: Streams, carried: dict[str, Tensor], phases: Phases) -> list[_Begun]:
        """Every block of the window: gone on with where an earlier window has learned it, else begun."""
        begun, flow = [], Streams(streams.full, streams.quant, loss=streams.loss)
        for k, block in enumerate(blocks):
            known = inside(carried, k)
            begun.append(self._go_on(block, known) if known else self._fresh(block, flow, phases))
            if k + 1 < len(blocks):
                flow = Streams(flow.targets(block), block.run(flow.quant), loss=streams.loss)
        return begun

    def _fresh(self, block: Block, flow: Streams, phases: Phases) -> _Begun:
        if self.start:
            params, rulers = begin(self.start, block, flow, phases)
        else:
            params, rulers = self._preprocessed(block, flow.full, flow.quant)
        make = torch.Generator().manual_seed(self.seed + block.index)
        learn = {name: self._learnable(current(block, params, name), *rulers[name], make) for name in block.linears}
        return _Begun(norms(block, params), learn)

    def _preprocessed(self, block: Block, full: Tensor, quant: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple]]:
        """Weights truncated, outlier channels divided, and a ruler for every group."""
        params = {name: truncated(current(block, {}, name)) for name in block.linears} if self.truncate else {}
        shared = block.shared_inputs(full[:1])
        original = block.hessians(full, shared)
        if self.equalise or (self.equalise is None and self.activations):
            peaks = {name: h.peak for names, h in zip(shared, original, strict=True) for name in names}
            for site in sites(block, full[:1]):
                params = scale(block, site, channel_factors(site.gather(peaks[site.targets[0]])), params)
        exchanged = {name: t.to(full.dtype) for name, t in params.items()}
        real = block.hessians(quant, shared, exchanged)
        rulers = {}
        for names, h in zip(shared, real, strict=True):
            for name in names:
                with block.naming(name):
                    rulers[name] = grids.fit(current(block, params, name), self.grid, self.clip, h.H.diagonal())
        return params, rulers

    def _learnable(self, W: Tensor, s: Tensor, z: Tensor, make: torch.Generator | None) -> LoRARounding:
        return LoRARounding(W, s, z, self.grid, rank=self.rank, literal=self.literal, gamma=self.gamma, generator=make,
                            sharpness=self.sharpness)

    def _go_on(self, block: Block, known: dict[str, Tensor]) -> _Begun:
        device, params, shares, states = block.weight(next(iter(block.linears))).device, {}, {}, {}
        for key, t in known.items():
            name, _, kind = key.rpartition("|")
            if kind in ("edit", "share"):
                (params if kind == "edit" else shares)[name] = t.to(device)
            else:
                states.setdefault(name, {})[kind] = t.to(device)
        learn = {}
        for name in block.linears:
            state = states[name]
            learn[name] = self._learnable(state["W"], state["s"], state["z"], None)
            learn[name].go_on(state)
        return _Begun(params, learn, shares)


def _carry(staying: list[_Begun], edits: WindowEdits, left: int) -> dict[str, Tensor]:
    """What the next window needs of the blocks that stay, by their places there."""
    shares = dict(zip(edits.clips, edits.share.detach().unbind(), strict=True)) if edits.clips else {}
    out: dict[str, Tensor] = {}
    for k, begun in enumerate(staying):
        out |= {f"{k}.{name}|edit": t for name, t in begun.params.items()}
        out |= {f"{k}.{name}|{kind}": t for name, p in begun.learn.items() for kind, t in p.state().items()}
        out |= {f"{k}.{name}|share": t.clone() for name, t in inside(shares, k + left).items()}
    return out
