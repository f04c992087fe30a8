"""The codebook explorer: where k-means takes a codebook, what importance and a second stage change, and what it costs."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.codebooks.kmeans import nearest
from lowbit_nb.live.base import Explorer, Frame, module, packed, styles
from lowbit_nb.live.cuts import LARGE, Cut, Outcome, cut

SIZES = (4, 8, 16, 32, 64, 128, 256)  # codebooks on offer
END, RASTER = 10**6, 240  # a step beyond the last; pixels of a stored picture in which borders are looked for


class CodebookExplorer(Explorer):
    """The pieces of a layer; the browser learns the codebooks and draws. Source, Differs: this project."""

    _esm = module("math", "dom", "lloyd", "cells", "codebook")
    _css = styles("base", "codebook")
    heading = "Codebook explorer"
    points = traitlets.Bytes().tag(sync=True)  # float32 [n, v]
    weights = traitlets.Bytes().tag(sync=True)  # float32 [n], of mean 1; empty: all alike
    others = traitlets.Bytes().tag(sync=True)  # float32 [m, v]
    other_weights = traitlets.Bytes().tag(sync=True)  # float32 [m], or empty
    order = traitlets.List(traitlets.Int()).tag(sync=True)
    places = traitlets.Bytes().tag(sync=True)  # float32 [n, 2]: first row and column
    shape = traitlets.List(traitlets.Int()).tag(sync=True)
    v = traitlets.Int(2).tag(sync=True)
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    k = traitlets.Int(16).tag(sync=True)
    second = traitlets.Int(0).tag(sync=True)  # vectors of the second codebook, 0 for none
    weighted = traitlets.Bool(False).tag(sync=True)
    step = traitlets.Int(END).tag(sync=True)  # of k-means, the second stage after the first; too large: the last
    chosen = traitlets.Int(0).tag(sync=True)  # which point
    across = traitlets.Int(0).tag(sync=True)  # numbers of a vector that are drawn
    upwards = traitlets.Int(1).tag(sync=True)

    def __init__(self, cut: Cut, **state: object) -> None:
        self.cut = cut
        weights = [packed(p.weight) if cut.weighted else b"" for p in (cut.mine, cut.others)]
        super().__init__(points=packed(cut.mine.x), weights=weights[0], others=packed(cut.others.x), other_weights=weights[1],
                         order=cut.order.tolist(), places=packed(cut.mine.places), shape=list(cut.shape),
                         v=cut.mine.x.shape[1], **state)

    @cached_property
    def settings(self) -> list[Outcome]:
        """One stage all alike, then by importance, then with a second stage, and one codebook of as many index bits."""
        second, wide = self.second or self.k, self.cut.weighted
        asked = [(self.k, 0, False), *([(self.k, 0, True)] if wide else []), (self.k, second, wide)]
        asked += [(self.k * second, 0, wide)] if self.k * second in self.sizes else []
        return [self.cut.outcome(*one) for one in asked]

    def sentence(self) -> str:
        first, tried = self.settings[0], len(self.cut.others.x)
        others = f", in brackets of {tried} others" if tried else ""
        return (f"Codebook explorer, {self.about}. Errors are shares of the mean square of the vectors learned from{others}. "
                f"{'; '.join(one.words for one in self.settings)}. "
                f"An index of the first carries {show.digits(first.entropy[0])} of {show.digits(math.log2(first.k))} bits.")

    def frames(self) -> list[Frame]:
        wide = self.cut.weighted
        before = self._map(self.cut.outcome(self.k, 0, wide, 0), "Before the first step: ")
        return [before, *(self._map(one) for one in self.settings[: 2 + wide]), self._curves(self.settings[1 + wide].second)]

    def _map(self, one: Outcome, before: str = "") -> Frame:
        fig, axes = show.subplots(8, 4, cols=2)
        x, (C, *more) = self.cut.mine.x, one.books
        self._draw(axes[0], x, C, "Vectors and codebook")
        self._draw(axes[1], x - C[nearest(x, C)], *(more or [None]), "Left over" + (", second codebook" if more else ""))
        carried = zip(one.entropy, (one.k, one.second), strict=False)
        entropy = " and ".join(f"{show.digits(h)} of {show.digits(math.log2(k))}" for h, k in carried)
        alt = f"{before}{one.words}. Mean squared error {show.digits(one.mse()[0])}; indices carry {entropy} bits."
        return Frame(f"{before}{one.words}", alt, fig)

    def _draw(self, ax: Axes, points: Tensor, C: Tensor | None, title: str) -> None:
        """Two numbers of each vector; the codebook; borders of its cells if v = 2."""
        x, (a, b), reach = points.numpy(), (self.across, self.upwards), float(points.abs().quantile(0.99)) * 1.5 or 1.0
        size = (4 * self.cut.mine.weight.clamp(max=12)).numpy()
        ax.scatter(x[:, a], x[:, b], s=size, color=show.PALETTE[0], lw=0, alpha=0.5)
        if C is not None:
            if self.v == 2:
                _borders(ax, C[:, [a, b]], reach)
            ax.plot(*C[:, [a, b]].T.numpy(), ls="", marker="D", ms=5, mfc=show.PALETTE[1], mec="#222222", mew=0.7)
        ax.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal",
               xlabel=f"number {a} of a vector", ylabel=f"number {b}")

    def _curves(self, second: int) -> Frame:
        wide = self.cut.weighted
        one = [self.cut.outcome(k, 0, wide) for k in self.sizes]
        two = [self.cut.outcome(self.k, k, wide) for k in self.sizes]
        fig, axes = show.subplots(8, 3.2, cols=2, sharey=True)
        for ax, shape, title in zip(axes, (None, LARGE), ("this layer", "4096 x 4096"), strict=True):
            for i, (found, label) in enumerate(((one, "one codebook"), (two, f"{self.k} and a second"))):
                bits = [o.bits(shape) for o in found]
                ax.plot(bits, [100 * o.mse(wide)[1] for o in found], label=label, **show.line(i))
                if len(self.cut.others.x):
                    others = [100 * o.mse(wide, "others")[1] for o in found]
                    ax.plot(bits, others, label=f"{label}, other vectors", color=show.PALETTE[i], ls=":", lw=1)
            ax.set(title=f"Bits counted for {title}", xlabel="bits a weight, codebooks counted", yscale="log")
        axes[0].set_ylabel("weighted error, %" if wide else "error, %")
        axes[1].legend()
        title = f"Error against bits: {one[0].words}; {one[-1].words}; {two[-1].words}"
        return Frame(title, f"{title}.", fig)


def _borders(ax: Axes, C: Tensor, reach: float) -> None:
    """Lines through the pixels where the nearest vector differs from that of the next one."""
    line = (torch.arange(RASTER, dtype=torch.float64) + 0.5) / RASTER * 2 * reach - reach
    near = nearest(torch.stack([line.repeat(RASTER), line.repeat_interleave(RASTER)], 1), C).reshape(RASTER, RASTER).numpy()
    edge = np.zeros(near.shape)
    edge[:, :-1] += near[:, :-1] != near[:, 1:]
    edge[:-1] += near[:-1] != near[1:]
    if edge.any():
        ax.contourf(line.numpy(), line.numpy(), edge, levels=[0.5, 3], colors=["#888888"])


def codebook_explorer(
    W: Tensor, importance: Tensor | None = None, v: int = 2, k: int = 16, residual: int | None = None,
    name: str = "a layer", generator: torch.Generator | None = None,
) -> CodebookExplorer:
    """A widget about the codebook of a layer; make it the last expression of a cell.

    Vectors are v rows of one column; above 2000 of them, 2000 drawn at random, and as many others to try the codebook on.
    The browser runs k-means, and rounds codebooks to float16, as they are stored.  Errors of the vectors learned from flatter
    large codebooks; those of the others do not.  Bits are those of the whole layer.

    Shapes:  W [d_out, d_in]; importance [d_in], not negative (diag(H)); residual: vectors of a second codebook, or None.
    Units:   of the weights; importance of any scale.
    Raises:  ValueError for shapes, values or sizes that do not fit.
    Source:  VPTQ, Sec. 3.
    Differs: no error feedback: vectors are taken as they are.
    """
    found = cut(W.detach().float().cpu(), importance, v, generator or torch.Generator().manual_seed(0))
    mine, count = found.mine, len(found.mine.x)
    different = len(found.distinct(mine.x, mine.weight, count))
    sizes = [size for size in SIZES if size < different]
    if not {k, residual or k} <= set(sizes):
        raise ValueError(f"k={k}, residual={residual}: with {different} different vectors of weight, use sizes of {sizes}")
    of = f"{count}" if count == W.shape[0] // v * W.shape[1] else f"{count} of {W.shape[0] // v * W.shape[1]}"
    return CodebookExplorer(found, about=f"{name}: {of} vectors of {v} rows of a column", sizes=sizes, k=k,
                            second=residual or 0, weighted=found.weighted, chosen=int(mine.weight.argmax()))
