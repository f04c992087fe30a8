"""The salient-channel explorer: which inputs of a layer matter, and what a scale made of their size does to the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles
from lowbit_nb.methods.awq import RATIOS
from lowbit_nb.stored import AffineWeight
from lowbit_nb.transforms import salience

EXPONENTS = (*RATIOS, 1.0)  # the search does not try 1, which is worth seeing
KEPT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # how many channels may stay in full precision
MOST_INPUTS, MOST_WEIGHTS, DAMP = 1024, 2**20, 0.01
WORDS = {"x": "|x| (root mean square)", "peak": "|x| (largest)", "w": "|w| (root mean square)",
         "H": "H (unpredicted part of x)"}
TICKS, FINE, OTHER = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100), (0.5, 0.7, 1, 1.4, 2), show.PALETTE[0]


def sizes(W: Tensor, H: Tensor, x_max: Tensor | None = None) -> dict[str, Tensor]:
    """How important each input channel is, by every criterion.

    x: root mean square of the input, sqrt(diag(H)).   peak: its largest absolute value.   w: root mean square of the
    weights that read it.   H: root mean square of what the other inputs do not predict, 1 / sqrt(diag(inv(H))).

    Shapes:  W [d_out, d_in]; H [d_in, d_in]; x_max [d_in] or None (no "peak"); returns {criterion: [d_in]}.
    Units:   of the activations, or of the weights.
    Raises:  ValueError as `condition`.
    Source:  AWQ, Sec. 3.1 (|x|, |w|); the last one is what an input brings to a sensitivity of SpQR, Sec. 3.
    Differs: AWQ takes the mean of |x|; H gets 1 % damping, and an input that is always zero has no importance.
    """
    Hc, dead = condition(H.double(), DAMP)
    alone = torch.cholesky_inverse(torch.linalg.cholesky(Hc)).diagonal().rsqrt().masked_fill(dead, 0).float()
    by = {"x": H.diagonal().clamp(min=0).sqrt(), "peak": x_max, "w": W.square().mean(0).sqrt(), "H": alone}
    return {name: size for name, size in by.items() if size is not None}


@dataclass(frozen=True)
class Survey:
    """The layer's output error for every criterion, width and exponent. Arrays [criterion, width, exponent, ...] of shares.

    salient  the part of the most important 1 % (`top` channels): errors of two channels that meet count half for each
    kept     [..., order, k] the error left when the first k channels of an order stay exact; the last order is chance

    Source, Differs: this project.
    """

    sizes: dict[str, Tensor]
    bits: tuple[int, ...]
    counts: tuple[int, ...]
    total: np.ndarray
    salient: np.ndarray
    kept: np.ndarray

    @property
    def top(self) -> int:
        return one_percent(len(next(iter(self.sizes.values()))))

    def best(self, criterion: str, bits: int) -> int:
        """The exponent, counted in steps of 1/20, that AWQ's search would choose."""
        return int(self.total[self.at(criterion), self.bits.index(bits), : len(RATIOS)].argmin())

    def at(self, criterion: str) -> int:
        return list(self.sizes).index(criterion)


def one_percent(d: int) -> int:
    return math.ceil(d / 100)


def survey(W: Tensor, H: Tensor, sizes: dict[str, Tensor], bits: Sequence[int], group: int | None) -> Survey:
    """Round the layer at every setting, by the package's own functions, and keep the errors.

    Shapes:  W [d_out, d_in]; H [d_in, d_in]; sizes {criterion: [d_in]}.
    Units:   shares of the output's mean square, as `hessian.error_share`.
    Raises:  ValueError as `grid.fit`, and if the layer's output is zero.
    Source:  AWQ, Sec. 3.2: the search, at all its exponents and 1.
    Differs: every channel has a factor of its own; a kept channel still counts when its group's ruler is laid.
    """
    d = W.shape[1]
    counts = tuple(sorted({*(k for k in KEPT if k <= d // 2), one_percent(d)}))
    orders = [size.argsort(descending=True, stable=True) for size in sizes.values()]
    shape = (len(sizes), len(bits), len(EXPONENTS))
    out = Survey(sizes, tuple(bits), counts, np.zeros(shape), np.zeros(shape), np.zeros((*shape, len(sizes) + 1, len(counts))))
    power = float(((W @ H) * W).sum(dtype=torch.float64))
    if power <= 0:
        raise ValueError("the layer's output is zero on the data of H, so no share of it can be told")
    for b, n in enumerate(bits):
        plain = _costs(W, Grid(n, group), H / power, torch.ones(d))  # exponent 0 is the same for all criteria
        for c, size in enumerate(sizes.values()):
            for r, exponent in enumerate(EXPONENTS):
                C = _costs(W, Grid(n, group), H / power, salience(size, exponent)) if exponent else plain
                of = C.sum(0, dtype=torch.float64)
                out.total[c, b, r] = total = float(of.sum())
                out.salient[c, b, r] = float(of[orders[c][: one_percent(d)]].sum())
                out.kept[c, b, r] = [*(_left(C, of, p, counts) for p in orders), _chance(float(C.trace()), total, d, counts)]
    return out


def _costs(W: Tensor, grid: Grid, H: Tensor, s: Tensor) -> Tensor:
    """What every pair of channels adds to the squared output error; the sum is tr(E H E.T)."""
    E = W - AffineWeight.nearest(W * s, grid).dequantize() / s
    return (E.T @ E).mul_(H)


def _left(C: Tensor, of: Tensor, perm: Tensor, counts: Sequence[int]) -> list[float]:
    """The error left when the first k channels of an order have none."""
    first = perm[: max(counts)]
    inner = C[first][:, first].double().cumsum(0).cumsum(1).diagonal()
    left = of.sum() - 2 * of[first].cumsum(0) + inner
    return [float(left[k - 1]) for k in counts]


def _chance(diagonal: float, total: float, d: int, counts: Sequence[int]) -> list[float]:
    """The mean of the error left over all choices of k channels."""
    return [(d - k) / d * (diagonal + (d - k - 1) / max(1, d - 1) * (total - diagonal)) for k in counts]


class SalienceExplorer(Explorer):
    """The survey of one layer; the browser looks up and draws. Source, Differs: this project."""

    _esm = module("dom", "salience")
    _css = styles("base", "salience")
    heading = "Salient-channel explorer"
    sizes = traitlets.Bytes().tag(sync=True)  # float32, criterion after criterion
    errors = traitlets.Bytes().tag(sync=True)  # float32: all totals, then all parts of the salient
    kept = traitlets.Bytes().tag(sync=True)
    criteria = traitlets.List(traitlets.Unicode()).tag(sync=True)
    widths = traitlets.List(traitlets.Int()).tag(sync=True)
    counts = traitlets.List(traitlets.Int()).tag(sync=True)
    d = traitlets.Int().tag(sync=True)
    top = traitlets.Int().tag(sync=True)
    tried = traitlets.Int(len(RATIOS)).tag(sync=True)
    group = traitlets.Int().tag(sync=True)
    criterion = traitlets.Unicode("x").tag(sync=True)
    exponent = traitlets.Float(0.5).tag(sync=True)
    bits = traitlets.Int(2).tag(sync=True)
    keep = traitlets.Int(0).tag(sync=True)  # channels in full precision; 0 or one of counts
    order = traitlets.Enum(("sorted", "in place"), "in place").tag(sync=True)

    def __init__(self, survey: Survey, **state: object) -> None:
        self.survey = survey
        super().__init__(
            sizes=packed(np.stack([s.numpy() for s in survey.sizes.values()])),
            errors=packed(np.stack([survey.total, survey.salient])), kept=packed(survey.kept),
            criteria=list(survey.sizes), widths=list(survey.bits), counts=list(survey.counts), top=survey.top, **state)

    @property
    def _width(self) -> int:
        return self.survey.bits.index(self.bits)

    def sentence(self) -> str:
        found, k = self.survey, self.top
        total, left = found.total[:, self._width], found.kept[0, self._width, 0, :, found.counts.index(k)]
        best = [found.best(c, self.bits) for c in self.criteria]
        scaled = "; ".join(f"by {WORDS[c]}: {percent(total[i, best[i]])} at exponent {EXPONENTS[best[i]]:g}"
                           for i, c in enumerate(self.criteria))
        kept = "; ".join(f"by {WORDS[c]}: {percent(left[i])}" for i, c in enumerate(self.criteria))
        return (f"Salient-channel explorer, {self.about}. At {self.bits} bits, groups of {self.group}, rounding to nearest has "
                f"an output error of {percent(total[0, 0])}. The best scales leave, {scaled}. With the {k} most "
                f"important of {self.d} channels in full precision instead, {kept}; {percent(left[-1])} by chance.")

    def frames(self) -> list[Frame]:
        best = self.survey.best("x", self.bits)
        return [self._frame(c, r) for c, r in (("x", 0), ("x", best), ("x", len(RATIOS)), ("w", len(RATIOS) // 2))]

    def _frame(self, criterion: str, step: int) -> Frame:
        found, c = self.survey, self.survey.at(criterion)
        total, part = found.total[c, self._width], found.salient[c, self._width]
        s = salience(found.sizes[criterion], EXPONENTS[step])
        fig, axes = show.subplots(9, 4.6, rows=2, cols=2)
        title = f"By {WORDS[criterion]}, exponent {EXPONENTS[step]:g}: output error {percent(total[step])}"
        size = found.sizes[criterion].sort(descending=True).values
        _draw_channels(axes[0, 0], size, found.top, 0.0, f"Importance: {WORDS[criterion]}")
        _draw_channels(axes[1, 0], salience(size, EXPONENTS[step]), found.top, 1.0, "Scale of the channels")
        ticks = [t for t in (TICKS if s.max() > 2 * s.min() else FINE) if s.min() <= 1.5 * t and t <= 1.5 * s.max()]
        axes[1, 0].set(yscale="log", xlabel="channels, largest first", yticks=ticks, yticklabels=[f"{t:g}" for t in ticks])
        axes[1, 0].minorticks_off()
        if s.max() == s.min():  # exponent 0: bars of no height
            axes[1, 0].set_ylim(0.45, 2.2)
            axes[1, 0].axhline(1.0, color=show.PALETTE[0])
        ax = axes[0, 1]
        ax.plot(EXPONENTS, 100 * total, label="all channels", markevery=[step], **show.line(0))
        ax.plot(EXPONENTS, 100 * part, label=f"top 1 %: {found.top}", markevery=[step], **show.line(1))
        ax.set(title="Output error, %", xlabel="exponent", ylim=(0, None))
        ax.legend()
        left = found.kept[c, self._width, step, :, found.counts.index(found.top)]
        names = [WORDS[k].replace("root mean square", "rms").partition(" (unpred")[0] for k in self.criteria] + ["chance"]
        axes[1, 1].barh(names, 100 * left, **show.bar(2))
        axes[1, 1].axvline(100 * total[step], color=OTHER, ls="--", lw=1.3)
        axes[1, 1].invert_yaxis()
        axes[1, 1].set(title=f"... with {found.top} kept exact, %", xlabel="dashed: none kept")
        kept = ", ".join(f"{n} {percent(v)}" for n, v in zip(names, left, strict=True))
        alt = (f"{title}, of which {percent(part[step])} from the {found.top} most important of {self.d} channels; "
               f"without scaling {percent(total[0])}. Scales {show.digits(float(s.min()))} to {show.digits(float(s.max()))}. "
               f"With {found.top} channels kept exact: {kept}.")
        return Frame(title, alt, fig)


def _draw_channels(ax: Axes, values: Tensor, top: int, base: float, title: str) -> None:
    x, y = np.arange(1, len(values) + 1), values.numpy()
    ax.fill_between(x, base, y, step="mid", color=OTHER, lw=0)
    ax.bar(x[:top], y[:top] - base, bottom=base, width=max(1.0, len(x) / 150), **show.bar(1))
    ax.set(title=title)


def salience_explorer(
    W: Tensor, H: Tensor, x_max: Tensor | None = None, bits: int = 2, group: int | None = 64, name: str = "a layer"
) -> SalienceExplorer:
    """A widget about the input channels of a layer; make it the last expression of a cell.

    The layers that share an input can be given together, one below the other, as AWQ searches them. All errors are exact for
    the weights named in the title: above a million weights evenly spaced rows are kept, above 1024 inputs whole groups.

    Shapes:  W [d_out, d_in]; H [d_in, d_in]; x_max [d_in], the largest |x| of each channel, or None.
    Units:   of weights; of activations squared; of activations.
    Raises:  ValueError for shapes that do not fit, values that are not finite, or a group that does not divide d_in.
    Source:  this project.
    Differs: no difference.
    """
    W, H, x_max = (None if t is None else t.detach().float().cpu() for t in (W, H, x_max))
    rows, d = W.shape if W.ndim == 2 else (0, 0)
    if not rows or tuple(H.shape) != (d, d) or (x_max is not None and tuple(x_max.shape) != (d,)):
        shapes = [None if t is None else list(t.shape) for t in (W, H, x_max)]
        raise ValueError(f"W must be [d_out, d_in], H [d_in, d_in], x_max [d_in] or None; got {shapes}")
    if not all(torch.isfinite(t).all() for t in (W, H, x_max) if t is not None):
        raise ValueError("W, H and x_max must be finite; check the layer's inputs")
    g = Grid(bits, group).g(d)
    if d > MOST_INPUTS and g > MOST_INPUTS:
        raise ValueError(f"group={g} is too long for {d} inputs; use a group of at most {MOST_INPUTS}")
    columns = (_spaced(d // g, max(1, MOST_INPUTS // g))[:, None] * g + torch.arange(g)).flatten()
    some = _spaced(rows, max(1, MOST_WEIGHTS // len(columns)))
    W, H, x_max = W[some][:, columns], H[columns][:, columns], None if x_max is None else x_max[columns]
    found = survey(W, H, sizes(W, H, x_max), sorted({2, 3, 4, bits}), g)
    inputs = f"{d} inputs" if len(columns) == d else f"{len(columns)} of {d} inputs in whole groups, the others left out"
    about = f"{name}: {len(some)}{'' if len(some) == rows else f' of {rows}'} rows, {inputs}"
    return SalienceExplorer(found, about=about, d=len(columns), group=g, bits=bits, keep=found.top)


def _spaced(n: int, most: int) -> Tensor:
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).round().long()
