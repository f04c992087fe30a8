"""GPTQ: no transform, an affine grid, error feedback, the layer's output under H = X.T X / n.

Layers that share an input share one Hessian, one factor and one run of the solver: their rows are stacked.  All Hessians
of a block come from one pass; with sequential=True a pass each, in which the layers before are already rounded.  A transform
may come first (`start`), and steps and norms may be learned from the block's output afterwards (`tune`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.blocks import Block
from lowbit_nb.feedback import ORDERS, AffineRounder, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import check_damping, condition, error_share
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.methods import _start, _targets, _tune
from lowbit_nb.methods._start import Rulers, Start, asks, begin
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget
from lowbit_nb.record import Phases
from lowbit_nb.stored import AffineWeight
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import norms


@dataclass(frozen=True)
class GPTQ:
    """Error feedback on affine grids.

    order      natural | act | gar | min_pivot                     damp    share of mean diag(H) added to the diagonal
    groups     static: rulers fitted before; dynamic: on the way   shrink  share of H's off-diagonal taken away
    clip       mse: range search weighted by diag(H); minmax       sequential  H of a group sees the groups before it rounded
    shift      aim at the weight that makes up for the error of the inputs
    start      a method whose edits come first (AWQ, SmoothQuant, OmniQuant), and with static groups its rulers
    tune       None, or the budget for learning a block's steps and norms together once all codes are chosen; rate, objective,
               teachers, seed belong to it (rate as in VPTQ)

    Source: GPTQ, Sec. 3-4; act-order, static groups and true-sequential from its code.
    Differs: the defaults visit the most important groups first and keep groups whole, so no order need be stored, and search
    the range weighted by diag(H); the reference's defaults are natural order and the plain range.
    """

    grid: Grid
    order: str = "gar"
    groups: str = "dynamic"
    clip: str = "mse"
    damp: float = 0.01
    shrink: float = 0.0
    sequential: bool = False
    shift: bool = False
    start: Start | None = None
    tune: str | Budget | None = None
    rate: float = 1e-2
    objective: str = "mse"
    teachers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field, known in {"order": ORDERS, "groups": ("static", "dynamic"), "clip": ("minmax", "mse")}.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(known)}")
        check_damping(self.damp, self.shrink)
        _targets.check(self.objective, self.teachers)
        budget(self.tune or "demo")  # refuses an unknown name before any calibration is spent
        if self.start and self.shift:
            raise ValueError("shift compares original inputs with real ones, and a start changes both; use one of them")
        _start.check(self.start, self.grid, "GPTQ")

    @property
    def streams(self) -> tuple[str, ...]:
        return asks(self.start, "quant", *(("full",) if self.shift or self.tune else ()))

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, group by group of shared input.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share is the layer's output error over its output, tr(E H E.T) / tr(W H W.T), no unit.
        Raises:  ValueError if H is not positive definite or inputs are not finite (message names the layer).
        Source:  GPTQ, Alg. 1.
        Differs: rows of layers that share an input are stacked.
        """
        phases = Phases()
        params, rulers = begin(self.start, block, streams, phases) if self.start else ({}, {})
        weights, story = self._rounded(block, streams, phases, params, rulers, self.quantize_layer, split)
        result = BlockResult(weights, story | {"phases": phases}, norms(block, params))
        if not self.tune:
            return result
        return _tune.tuned(block, streams, result, self.tune, self.rate, self.seed, self.objective, self.teachers)

    def begin(self, block: Block, X: Tensor, Y: Tensor | None, phases: Phases,
              metrics: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], Rulers]:
        """What feedback would round each weight to, and on which ruler: where progressive rounding can begin.

        A layer's edited tensor is T, the value of every column when it was its turn; its nearest marks are GPTQ's weight, so
        a rounding that begins there and is made hard at once is GPTQ.  (Beginning at the weight, between GPTQ's mark and the
        next, left every block of the bundled subject with 0.3 to 1.0 % more loss; TesseraQ, fast, one seed.)

        Shapes:  X [n, length, d_model]; Y for the start, if it asks; metrics as in `layer_by_layer`; returns {name: tensor} and
                 {linear name: (s, z)}.
        Units:   see `grid.fit`.
        Raises:  ValueError if the order takes groups apart (use "gar", "natural" or static groups), or inputs are shifted.
        Source:  this project.
        Differs: no difference.
        """
        if self.shift:
            raise ValueError("a start sees the real inputs only and cannot shift the target; leave shift=False")
        flow = Streams(None, X, ahead=Y)
        params, rulers = begin(self.start, block, flow, phases) if self.start else ({}, {})
        begun, _ = self._rounded(block, flow, phases, params, rulers, self._aim, _Aimed.split, metrics)
        for name, one in begun.items():
            with block.naming(name):
                if one.stored.perm is not None:
                    raise ValueError(f"order={self.order!r} takes groups apart; roundings begin on groups that stay whole: use "
                                     "order='gar' or groups='static'")
        return (params | {name: one.T for name, one in begun.items()},
                {name: (one.stored.s.float(), one.stored.zero) for name, one in begun.items()})

    def _rounded(self, block: Block, streams: Streams, phases: Phases, params: dict[str, Tensor], rulers: Rulers,
                 solve: Callable, split: Callable, metrics: dict[str, Tensor] | None = None) -> tuple[dict, dict]:
        return layer_by_layer(block, streams, solve, phases, split, self.sequential, self.shift, metrics, params,
                              rulers if self.groups == "static" else None)

    def quantize_layer(self, W: Tensor, H: Tensor, s: Tensor | None = None,
                       z: Tensor | None = None) -> tuple[AffineWeight, float]:
        """Round one weight under one Hessian.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in]; s, z [d_out, n_groups], rulers of static groups, if they are known.
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition`, `factor` and `grid.fit`.
        Source:  GPTQ, Alg. 1.
        Differs: see the class.
        """
        stored, _ = self._solve(W, H, s, z)
        return stored, error_share(W, stored.dequantize(), H)

    def _aim(self, W: Tensor, H: Tensor, s: Tensor | None = None, z: Tensor | None = None) -> tuple[_Aimed, float]:
        aimed = _Aimed(*self._solve(W, H, s, z, aims=True))
        return aimed, error_share(W, aimed.dequantize(), H)

    def _solve(self, W: Tensor, H: Tensor, s: Tensor | None, z: Tensor | None,
               aims: bool = False) -> tuple[AffineWeight, Tensor | None]:
        Hc, dead = condition(H, self.damp, self.shrink)
        target = W.masked_fill(dead, 0.0)
        perm = order(Hc, self.order, self.grid.g(W.shape[1]))
        weight = Hc.diagonal()
        if self.groups == "static" and s is None:
            s, z = grids.fit(target, self.grid, self.clip, weight)
        rounder = AffineRounder(self.grid, perm, W.shape[0], s, z, self.clip, weight)
        aimed = feedback(target, Hc, rounder, perm, aims=aims).T
        q, s, z, kept = rounder.result()
        return AffineWeight.of(q, s, z, self.grid, kept), aimed


@dataclass(frozen=True)
class _Aimed:
    """A stored weight and what each of its columns was when it was rounded."""

    stored: AffineWeight
    T: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.stored.dequantize(dtype)

    def split(self, sizes: list[int]) -> list[_Aimed]:
        return [_Aimed(*parts) for parts in zip(split(self.stored, sizes), self.T.split(sizes), strict=True)]


def split(stored: AffineWeight, sizes: list[int]) -> list[AffineWeight]:
    """Take stacked rows apart again.

    Shapes:  rows sum(sizes); returns one stored weight a size.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    z = stored.z.split(sizes) if stored.z is not None else [None] * len(sizes)
    parts = zip(stored.q.split(sizes), stored.s.split(sizes), z, strict=True)
    return [AffineWeight(q, s, z, stored.grid, stored.perm) for q, s, z in parts]
