"""The grid explorer: what one more bit, a smaller group or a tighter clip buys, and at what price in bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb import show
from lowbit_nb.grid import Grid
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles

MOST_WEIGHTS = 4096
BITS = (1, 2, 3, 4, 8)
ZERO = {"integer": {}, "real": {"zero_inside": False}, "none": {"symmetric": True}}


@dataclass(frozen=True)
class Setting:
    """One position of the explorer's controls; clip is in percent of the range."""

    bits: int
    group: int
    clip: float = 100.0
    zero: str = "integer"

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group, **ZERO[self.zero])

    @property
    def words(self) -> str:
        clip = "" if self.clip == 100 else f", clip {self.clip:g} %"
        return f"{self.bits} bit{'s' if self.bits > 1 else ''}, groups of {self.group}{clip}"


@dataclass(frozen=True)
class Result:
    """What a setting costs: relative squared error, of all and of each group, and bits per weight."""

    setting: Setting
    error: float
    groups: np.ndarray  # [d_out * n_groups]
    s: Tensor  # [d_out, n_groups]
    z: Tensor
    W_hat: Tensor

    @property
    def per_weight(self) -> float:
        zero = {"integer": self.setting.bits, "real": 16, "none": 0}[self.setting.zero]
        return self.setting.bits + (16 + zero) / self.setting.group


def evaluate(W: Tensor, setting: Setting, importance: Tensor | None = None) -> Result:
    """The same numbers as the browser's, from the package's own grid functions.

    Shapes:  W [rows, d_in] float32; importance [d_in] or None.
    Units:   errors relative to the (weighted) squares of W.
    Raises:  ValueError if the group does not divide d_in.
    Source:  this project.
    Differs: no difference.
    """
    grid, p = setting.grid, setting.clip / 100
    W_g = grids.grouped(W, grid)
    lo, hi = W_g.amin(-1), W_g.amax(-1)
    if grid.zero_inside:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if grid.symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    s, z = grids.ruler(lo * p, hi * p, grid)
    W_hat = grids.dequantize(grids.quantize(W, s, z, grid), s, z, grid)
    h = torch.ones(W.shape[1]) if importance is None else importance
    err, all_ = (grids.grouped((part.double().square() * h), grid).sum(-1) for part in (W_hat - W, W))
    groups = torch.where(all_ > 0, err / all_, 0.0)
    return Result(setting, float(err.sum() / all_.sum()), groups.flatten().numpy(), s, z, W_hat)


class GridExplorer(Explorer):
    """Weights, and the controls' state; the rest happens in the browser. Source, Differs: this project."""

    _esm = module("math", "dom", "grid")
    _css = styles("base", "grid")
    heading = "Grid explorer"
    weights = traitlets.Bytes().tag(sync=True)  # float32, row after row
    importance = traitlets.Bytes().tag(sync=True)
    d_in = traitlets.Int().tag(sync=True)
    group_sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    bits = traitlets.Int(3).tag(sync=True)
    group = traitlets.Int(64).tag(sync=True)
    clip = traitlets.Float(100.0).tag(sync=True)  # percent of the range
    zero = traitlets.Enum(tuple(ZERO), "integer").tag(sync=True)
    shown = traitlets.Int(0).tag(sync=True)
    counted = traitlets.Enum(("plain", "weighted"), "plain").tag(sync=True)

    def __init__(self, W: Tensor, importance: Tensor | None, **state: object) -> None:
        self.W, self.h = W, importance
        super().__init__(
            weights=packed(W.numpy()),
            importance=b"" if importance is None else packed(importance.numpy()),
            d_in=W.shape[1],
            group_sizes=group_sizes(W.shape[1]),
            **state,
        )
        self.start = Setting(self.bits, self.group)

    def sentence(self) -> str:
        now = evaluate(self.W, self.start)
        parts = [
            f"{r.setting.words}: error {percent(r.error)} for {show.digits(r.per_weight)} bits per weight"
            for r in map(self._run, self._stored())
        ]
        return (
            f"Grid explorer, {self.about}. At {self.start.words} the error is {percent(now.error)} of the "
            f"squared weights and a weight takes {show.digits(now.per_weight)} bits. Others: {'; '.join(parts[1:])}."
        )

    def frames(self) -> list[Frame]:
        return [self._frame(self._run(setting)) for setting in self._stored()]

    def _run(self, setting: Setting) -> Result:
        return evaluate(self.W, setting)

    def _stored(self) -> list[Setting]:
        """The first setting, one bit more or less, a smaller group, the best clip."""
        start, sizes = self.start, self.group_sizes
        other = BITS[BITS.index(start.bits) + (1 if start.bits < 4 else -1)]
        smaller = max([g for g in sizes if g <= start.group // 4] or sizes[:1])
        best = min(
            (Setting(start.bits, start.group, c) for c in np.arange(20, 101, 2.5).tolist()),
            key=lambda t: self._run(t).error,
        )
        return [start, Setting(other, start.group), Setting(start.bits, smaller), best]

    def _frame(self, result: Result) -> Frame:
        cost = f"{show.digits(result.per_weight)} bits per weight"
        title = f"{result.setting.words}: error {percent(result.error)}, {cost}"
        fig, (ax, ax_groups) = show.subplots(8, 2.9, cols=2, width_ratios=(1.7, 1))
        levels = self._draw_landing(ax, result)
        ax_groups.bar(
            np.arange(1, len(result.groups) + 1), 100 * result.groups, width=1.0, color=show.PALETTE[0]
        )
        ax_groups.set(title="Error of every group, %", xlabel="group")
        worst = f"the worst group has an error of {percent(result.groups.max())}"
        alt = f"{title}. The first group lands on {levels} of {result.setting.grid.levels} levels; {worst}."
        return Frame(title, alt, fig)

    def _draw_landing(self, ax: Axes, result: Result) -> int:
        """The first group: weights above, the levels they fall to below; returns how many are used."""
        g, grid = result.setting.group, result.setting.grid
        w, w_hat = self.W[0, :g].numpy(), result.W_hat[0, :g].numpy()
        for x, y in zip(w, w_hat, strict=True):
            ax.plot([x, y], [1, 0], color=show.PALETTE[0], alpha=0.35, lw=0.8, marker="")
        ax.plot(w, np.ones(g), linestyle="", marker="o", ms=3, color=show.PALETTE[0])
        marks = ((torch.arange(grid.levels) - result.z[0, 0]) * result.s[0, 0]).numpy()
        ax.plot(marks, np.zeros(len(marks)), linestyle="", marker="|", ms=14, mew=1.5, color="#222222")
        ax.set(
            title=f"The first group: {g} weights, {grid.levels} levels",
            xlabel="value of the weight",
            yticks=[0, 1],
            yticklabels=["level", "weight"],
        )
        return len(np.unique(w_hat))


def group_sizes(d_in: int) -> list[int]:
    """Powers of two from 4 that divide a row, and the whole row.

    >>> group_sizes(96)
    [4, 8, 16, 32, 96]
    """
    return [g for g in (4, 8, 16, 32, 64, 128, 256, 512, 1024) if g < d_in and d_in % g == 0] + [d_in]


def grid_explorer(
    W: Tensor,
    importance: Tensor | None = None,
    name: str = "a weight matrix",
    bits: int = 3,
    group: int | None = 64,
) -> GridExplorer:
    """A widget about laying grids over real weights; make it the last expression of a cell.

    Shapes:  W [rows, d_in] or [d_in]; importance [d_in] (diag H) or None. Whole rows, up to 4096 weights.
    Units:   those of the weight.
    Raises:  ValueError if W is empty or not finite, importance does not fit, or bits or group is not offered.
    Source:  this project.
    Differs: no difference.
    """
    W = torch.atleast_2d(W.detach().float().cpu())
    if W.ndim != 2 or W.numel() == 0 or not torch.isfinite(W).all():
        raise ValueError(f"W must hold finite weights, [rows, d_in] or [d_in]; got shape {tuple(W.shape)}")
    W = W[: max(1, MOST_WEIGHTS // W.shape[1])].contiguous()
    if importance is not None:
        importance = importance.detach().float().cpu()
        if (
            importance.shape != (W.shape[1],)
            or not torch.isfinite(importance).all()
            or (importance < 0).any()
        ):
            raise ValueError(
                f"importance must be [{W.shape[1]}] finite values of at least 0 (diag H); "
                f"got shape {tuple(importance.shape)}"
            )
    sizes = group_sizes(W.shape[1])
    group = group if group is not None and group < W.shape[1] else W.shape[1]
    if bits not in BITS or group not in sizes:
        raise ValueError(
            f"bits={bits}, group={group} is not offered here; use bits from {BITS} and a group from {sizes}"
        )
    rows = "1 row" if len(W) == 1 else f"{len(W)} rows"
    return GridExplorer(
        W, importance, about=f"{name}: {rows} of {W.shape[1]} weights", bits=bits, group=group
    )
