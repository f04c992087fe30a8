"""Two metrics of one layer side by side: where they weigh the same, and which columns only one of them calls salient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.feedback import AffineRounder, feedback
from lowbit_nb.grid import Grid, fit
from lowbit_nb.hessian import condition, error_share
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles

DAMP, TILES = 0.01, 64  # damping of the errors; tiles a side of a stored heat map
TICKS = [m * 10.0**e for e in range(-6, 5) for m in (1, 2, 5)]
MARKS = (("both", "s", 22), ("first", "^", 26), ("second", "v", 26))


def scaled(H: Tensor) -> Tensor:
    """The metric with a mean diagonal of 1, which changes no rounding.

    Shapes:  H [d, d].
    Units:   none.
    Raises:  ValueError if the diagonal is zero or below.
    Source:  this project.
    Differs: no difference.
    """
    mean = float(H.diagonal().mean())
    if not mean > 0:
        raise ValueError(f"the mean of the diagonal is {mean:g}; a metric of inputs that are not all zero is positive")
    return H / mean


def picks(H: Tensor, share: float) -> set[int]:
    """The columns with the largest diagonal: at least one, ties in natural order.

    Shapes:  H [d, d]; share from 0 to 1.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return set(H.diagonal().argsort(descending=True, stable=True)[: max(1, math.floor(share * len(H) + 0.5))].tolist())


class MetricPair(Explorer):
    """Two metrics over the same columns; the browser compares and draws. Source, Differs: this project."""

    _esm = module("math", "dom", "pair")
    _css = styles("base", "hessian")
    heading = "Hessian explorer"
    hessians = traitlets.Bytes().tag(sync=True)  # float32, both with a mean diagonal of 1, row after row
    metric_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    d = traitlets.Int().tag(sync=True)
    group = traitlets.Int(64).tag(sync=True)
    bits = traitlets.Int(3).tag(sync=True)
    share = traitlets.Float(0.05).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    view = traitlets.Enum(("size", "correlation"), "size").tag(sync=True)

    def __init__(self, metrics: dict[str, Tensor], W: Tensor | None, names: Sequence[str], **state: object) -> None:
        self.W, self.metrics = W, {name: scaled(H) for name, H in metrics.items()}
        stack = np.stack([H.numpy() for H in self.metrics.values()])
        super().__init__(hessians=packed(stack), metric_names=list(metrics), weights=b"" if W is None else packed(W),
                         names=list(names), d=stack.shape[-1], **state)
        self.column = next(iter([*self.groups(self.share)["second"], *self.groups(self.share)["both"]]))

    @property
    def distance(self) -> float:
        """The Frobenius norm of the difference, over that of the first."""
        one, two = self.metrics.values()
        return float((one - two).norm() / one.norm())

    def groups(self, share: float) -> dict[str, list[int]]:
        """Columns that both pick, that only the first, that only the second picks."""
        one, two = (picks(H, share) for H in self.metrics.values())
        return {"both": sorted(one & two), "first": sorted(one - two), "second": sorted(two - one)}

    def errors(self, bits: int) -> list[list[float]]:
        """The error of W under each metric (in a row), rounded by nearest, by feedback of the first, of the second."""
        damped = [condition(H, DAMP)[0] for H in self.metrics.values()]
        grid, perm = Grid(bits, self.group), torch.arange(self.d)
        s, z = fit(self.W, grid)
        ways = [torch.diag(damped[0].diagonal()), *damped]
        rounded = [feedback(self.W, Hc, AffineRounder(grid, perm, len(self.W), s, z), perm).W_hat for Hc in ways]
        return [[error_share(self.W, W_hat, H) for H in self.metrics.values()] for W_hat in rounded]

    def _counted(self, share: float) -> str:
        found, (one, two) = self.groups(share), self.metrics
        n = len(found["both"]) + len(found["first"])
        return (f"Of the {n} columns ({percent(share)}) with the largest diagonal {len(found['both'])} are picked by both, "
                f"{len(found['first'])} only by {one}, {len(found['second'])} only by {two}")

    def sentence(self) -> str:
        told = []
        for name, H in self.metrics.items():
            eig = torch.linalg.eigvalsh(condition(H.double(), DAMP)[0])
            told.append(f"{name}: condition number {show.digits(float(eig[-1] / eig[0]))} with 1 % damping, largest diagonal "
                        f"{show.digits(float(H.diagonal().max()))} times the mean")
        return (f"Hessian explorer, {self.about}. Two metrics with a mean diagonal of 1. {'; '.join(told)}. Their difference "
                f"has {percent(self.distance)} of the norm of the first. {self._counted(self.share)}.")

    def frames(self) -> list[Frame]:
        return [self._maps(), self._spectra(), *(self._salient(share) for share in (0.01, 0.05, 0.2))]

    def _maps(self) -> Frame:
        fig, axes = show.subplots(8, 3.6, cols=2)
        size = min(self.d, TILES)
        tiled = [torch.nn.functional.adaptive_avg_pool2d(H.abs()[None], size)[0] for H in self.metrics.values()]
        logs = [x.clamp(min=1e-8).log10() for x in tiled]
        top = max(float(x.max()) for x in logs)
        for ax, (name, x) in zip(axes, zip(self.metrics, logs, strict=True), strict=True):
            image = ax.imshow(x.numpy(), cmap="cividis", vmin=top - 3, vmax=top, interpolation="nearest",
                              extent=(0, self.d, self.d, 0))
            ax.set(title=f"{name}: mean size, log10", xlabel="column")
        fig.colorbar(image, ax=axes, shrink=0.8)
        title = f"Both metrics: the difference has {percent(self.distance)} of the norm of {next(iter(self.metrics))}"
        return Frame(title, f"{title}. Means of {size} by {size} tiles, the largest 10^{top:.1f}.", fig)

    def _spectra(self) -> Frame:
        fig, ax = show.subplots(8, 3)
        told = []
        for i, (name, H) in enumerate(self.metrics.items()):
            eig = torch.linalg.eigvalsh(H.double()).flip(0)
            few = max(1, self.d // 20)
            told.append(f"the {few} largest of {self.d} eigenvalues hold {percent(eig[:few].sum() / eig.sum())} of {name}")
            ax.semilogy(np.arange(1, self.d + 1), eig.clamp(min=float(eig[0]) * 1e-9), label=name,
                        markevery=max(1, self.d // 12), **show.line(3 * i))
        ax.set(title="Eigenvalues, mean 1", xlabel="largest first")
        ax.legend()
        title = "; ".join(told)
        return Frame(f"Spectra: {title}", f"Spectra: {title}.", fig)

    def _salient(self, share: float) -> Frame:
        title = self._counted(share)
        fig, ax = show.subplots(8, 3.4)
        _draw_diagonals(ax, [H.diagonal() for H in self.metrics.values()], self.groups(share), list(self.metrics))
        some = [", ".join(self.names[c] for c in columns[:4]) or "none" for columns in self.groups(share).values()]
        alt = f"{title}. Examples, by both: {some[0]}; by one: {some[1]}; {some[2]}."
        return Frame(title, alt, fig)


def _draw_diagonals(ax: Axes, diagonals: list[Tensor], found: dict[str, list[int]], names: list[str]) -> None:
    """One mark a column: its diagonal under one metric and under the other."""
    words = {"both": "picked by both", "first": f"only by {names[0]}", "second": f"only by {names[1]}"}
    x, y = (t.clamp(min=1e-6) for t in diagonals)
    ax.scatter(x, y, s=7, color="#aaaaaa", label="by neither")
    for i, (key, marker, size) in enumerate(MARKS):
        ax.scatter(x[found[key]], y[found[key]], s=size, marker=marker, color=show.PALETTE[(2, 0, 3)[i]], label=words[key])
    ax.set(xscale="log", yscale="log", xlabel=f"diagonal, {names[0]} (mean 1)", ylabel=f"diagonal, {names[1]}", title="Columns")
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        ticks = [t for t in TICKS if 0.7 * float(values.min()) <= t <= 1.4 * float(values.max())]
        ticks = ticks[:: -max(1, -(-len(ticks) // 8))]
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_minor_locator(NullLocator())
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
