"""The outlier explorer: which weights leave the grid, what that costs in bits, and what it buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.bilevel import Second
from lowbit_nb.feedback import order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition, factor
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.methods.spqr import SpQR
from lowbit_nb.sparse import CorrectedWeight

THRESHOLDS = (2, 1, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05)  # at three bits; a quarter for each bit more
MOST_ROWS, MOST_INPUTS, WIDE = 64, 256, 64  # WIDE: the group of the plain method beside
LEAST, MOST, BINS = -5, 2, 42  # powers of ten between which costs are counted


@dataclass(frozen=True)
class Outcome:
    """A layer rounded at one threshold.

    error  share of the layer's output that is error        cost  [d_out, d_in] of putting each weight, as it stood when its
    turn came, on the nearest mark: D_j (t_ij - mark)**2 over the mean of D var(W), so that it compares with the threshold

    Source: SpQR, Sec. 4, Alg. 1. Differs: this project works the costs out again from what was stored.
    """

    threshold: float
    stored: CorrectedWeight
    error: float
    cost: Tensor

    @property
    def kept(self) -> Tensor:
        """Which weights are outside the grid. [d_out, d_in]"""
        mask = torch.zeros(self.stored.shape, dtype=torch.bool)
        mask[self.stored.rows, self.stored.cols.long()] = True
        return mask

    @property
    def share(self) -> float:
        return len(self.stored.values) / self.cost.numel()

    @property
    def parts(self) -> tuple[float, float, float]:
        """Bits a weight of codes, of steps and zero points, of outliers; they sum to all bits on disk."""
        items = [(i.name, i.bits / self.cost.numel()) for i in self.stored.bits().items]
        codes, out = (sum(b for name, b in items if name.startswith(word)) for word in ("codes", "outlier"))
        return codes, sum(b for _, b in items) - codes - out, out

    @property
    def counts(self) -> np.ndarray:
        """How many weights cost how much: those inside and those outside, in BINS bins; the ends are open. [2, BINS]"""
        at = ((self.cost.clamp(min=1e-30).log10() - LEAST) / (MOST - LEAST) * BINS).floor().clamp(0, BINS - 1).int()
        return np.stack([np.bincount(at[mask].numpy(), minlength=BINS) for mask in (~self.kept, self.kept)])

    @property
    def words(self) -> str:
        what = "No threshold" if math.isinf(self.threshold) else f"Threshold {self.threshold:g}"
        leaves = f"{percent(self.share)} of the weights leave" if self.share else "no weight leaves"
        return f"{what}: {leaves}, {show.digits(sum(self.parts))} bits a weight, output error {percent(self.error)}"


@dataclass(frozen=True)
class Survey:
    """One layer at every threshold, and other ways to spend the bits: (name, bits a weight, error).

    Source, Differs: this project.
    """

    W: Tensor
    V: Tensor  # of the conditioned H, in visiting order
    D: Tensor  # over the mean of D var(W)
    perm: Tensor
    outcomes: tuple[Outcome, ...]
    others: tuple[tuple[str, float, float], ...]


def survey(W: Tensor, H: Tensor, method: SpQR, thresholds: Sequence[float]) -> Survey:
    """Round the layer at every threshold, by the package's own method, and work out every weight's cost.

    Shapes:  W [d_out, d_in]; H [d_in, d_in].
    Units:   thresholds and costs over the mean of D var(W).
    Raises:  ValueError as `SpQR.quantize_layer`.
    Source:  SpQR, Alg. 1.
    Differs: see `SpQR`.
    """
    Hc, dead = condition(H, method.damp, method.shrink)
    perm = order(Hc, method.order, method.grid.g(len(H)))
    V, D = factor(Hc[perm][:, perm])
    W_live, outcomes = W.masked_fill(dead, 0.0), []
    spread = W_live.var(0) if len(W) > 1 else W_live.square()[0]
    D = D / (spread[perm] * D).mean()
    for threshold in thresholds:
        stored, error = replace(method, threshold=threshold).quantize_layer(W, H)
        T = W_live.double()
        T[:, perm] += (W_live - stored.dequantize())[:, perm].double() @ V.double().triu(1)  # what feedback asked for
        cost = torch.empty_like(T).index_copy_(1, perm, (T - stored.base.dequantize())[:, perm].square() * D)
        outcomes.append(Outcome(threshold, stored, error, cost.float()))
    return Survey(W_live, V, D, perm, tuple(outcomes), tuple(_others(W, H, method)))


def _others(W: Tensor, H: Tensor, method: SpQR) -> list[tuple[str, float, float]]:
    """No outliers: wide groups with plain steps, and one bit more in every code."""
    bits, wide = method.grid.bits, WIDE if W.shape[1] % WIDE == 0 else method.grid.g(W.shape[1])
    ways = {f"GPTQ, {b} bits, groups of {wide}": GPTQ(Grid(b, wide)) for b in (bits, bits + 1)}
    finer = replace(method.grid, bits=bits + 1)
    ways[f"SpQR, {bits + 1} bits, no outliers"] = replace(method, grid=finer, threshold=math.inf)
    found = {name: way.quantize_layer(W, H) for name, way in ways.items()}
    return [(name, stored.bits().per_weight, error) for name, (stored, error) in found.items()]


class OutlierExplorer(Explorer):
    """The survey of one layer; the browser works out every cost again and draws. Source, Differs: this project."""

    _esm = module("dom", "outlier")
    _css = styles("base", "outlier")
    heading = "Outlier explorer"
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # rows, inputs
    bits = traitlets.Int(3).tag(sync=True)
    group = traitlets.Int(16).tag(sync=True)
    table = traitlets.Bytes().tag(sync=True)  # float32, a threshold: itself, error, three parts of the bits
    others = traitlets.List().tag(sync=True)  # a method: name, bits a weight, error
    weights = traitlets.Bytes().tag(sync=True)  # float32, row after row
    factor = traitlets.Bytes().tag(sync=True)  # float32, the upper half of V row after row, with D on its diagonal
    perm = traitlets.List(traitlets.Int()).tag(sync=True)
    planes = traitlets.Bytes().tag(sync=True)  # a threshold: single bits of the codes, lowest first, then who is outside
    rulers = traitlets.Bytes().tag(sync=True)  # float32, a threshold: all steps, then all zero points
    corrections = traitlets.Bytes().tag(sync=True)  # float16, of those who are outside, row after row
    names = traitlets.List(traitlets.Int()).tag(sync=True)  # the layer's own numbers of the inputs, then of the rows
    chosen = traitlets.Int(0).tag(sync=True)  # which threshold
    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    view = traitlets.Enum(("weights", "cost"), "weights").tag(sync=True)

    def __init__(self, survey: Survey, **state: object) -> None:
        self.survey, found, d = survey, survey.outcomes, survey.W.shape[1]
        upper = (survey.V - torch.eye(d) + survey.D.diag())[tuple(torch.triu_indices(d, d))]
        bases = [one.stored.base for one in found]
        super().__init__(
            shape=list(survey.W.shape), perm=survey.perm.tolist(), weights=packed(survey.W), factor=packed(upper),
            table=packed([(one.threshold, one.error, *one.parts) for one in found]), others=list(map(list, survey.others)),
            planes=b"".join(_planes(one.stored.base.q, one.stored.base.grid.bits) + _planes(one.kept, 1) for one in found),
            rulers=b"".join(packed(torch.stack([base.scale.value(), base.zero.value()])) for base in bases),
            corrections=b"".join(one.stored.values.numpy().astype("<f2").tobytes() for one in found), **state)

    def sentence(self) -> str:
        told = ". ".join(self.survey.outcomes[k].words for k in sorted({0, self.chosen, len(self.survey.outcomes) - 1}))
        others = "; ".join(f"{name}: {show.digits(bits)} and {percent(error)}" for name, bits, error in self.survey.others)
        return (f"Outlier explorer, {self.about}; {self.bits}-bit codes in groups of {self.group}. {told}. "
                f"The same without outliers, other ways: {others}.")

    def frames(self) -> list[Frame]:
        last, now = len(self.survey.outcomes) - 1, self.chosen
        return [self._frame(k) for k in sorted({0, (now + 1) // 2, now, (now + last + 1) // 2, last})]

    def _frame(self, k: int) -> Frame:
        now = self.survey.outcomes[k]
        fig, axes = show.subplots(9, 3.1, cols=3, width_ratios=(1.35, 1, 1))
        (rows, columns), (n, d) = now.kept.nonzero(as_tuple=True), self.shape
        axes[0].scatter(columns, rows, s=5, marker="s", color=show.PALETTE[3], lw=0)
        axes[0].set(title="Weights that leave", xlabel="inputs used", ylabel="rows used", xlim=(-1, d), ylim=(n, -1))
        self._draw_curve(axes[1], k)
        _draw_counts(axes[2], now)
        by_input, (codes, rulers, out) = now.kept.sum(0), map(show.digits, now.parts)
        most = f"; input {self.names[int(by_input.argmax())]} loses most, {int(by_input.max())} of {n}" if now.share else ""
        alt = (f"{now.words}; of the bits {codes} are codes, {rulers} steps and zero points, {out} outliers. "
               f"The dearest weight costs {show.digits(float(now.cost.max()))} times the mean of D var(W){most}.")
        return Frame(now.words, alt, fig)

    def _draw_curve(self, ax: Axes, k: int) -> None:
        found, others = self.survey.outcomes, self.survey.others
        bits, error = zip(*((sum(one.parts), 100 * one.error) for one in found), strict=True)
        ax.plot(bits, error, label="with outliers", **show.line("spqr"))
        ax.plot(bits[k], error[k], "o", ms=11, mfc="none", mec="#222222", mew=1.6)
        for i, (name, b, e) in enumerate(others):
            ax.plot(b, 100 * e, label=name.replace("groups of ", "g"), ls="", **show.dots(i + 2))
        ax.set(title="Output error, %", xlabel="bits a weight", ylim=(0, 1.6 * max(*error, *(100 * e for *_, e in others))))
        ax.legend(fontsize=9, loc="upper right", handlelength=1.2, labelspacing=0.2)


def _draw_counts(ax: Axes, now: Outcome) -> None:
    """How many weights cost how much, on logarithmic axes, with the threshold."""
    edges = np.logspace(LEAST, MOST, BINS + 1)
    for counts, label, look in zip(now.counts, ("inside", "outside"), (0, 3), strict=True):
        ax.bar(edges[:-1], counts, np.diff(edges), align="edge", label=label, **show.bar(look))
    if math.isfinite(now.threshold):
        ax.axvline(now.threshold, color="#222222", ls="--", lw=1.3)
    ax.set_yscale("symlog", linthresh=10)
    ax.set(xscale="log", title="Weights by cost", xlabel="cost / mean of D var(W)", ylim=(0, None))
    ax.legend(fontsize=9)


def _planes(values: Tensor, bits: int) -> bytes:
    """Small integers as planes of single bits, the first value in the lowest bit of the first byte."""
    flat = values.flatten().to(torch.uint8).numpy()
    return b"".join(np.packbits(flat >> b & 1, bitorder="little").tobytes() for b in range(bits))


def outlier_explorer(
    W: Tensor, H: Tensor, name: str = "a layer", bits: int = 3, group: int = 16, second: Second | None = None,
    thresholds: Sequence[float] | None = None,
) -> OutlierExplorer:
    """A widget about the weights that SpQR keeps outside its grid; make it the last expression of a cell.

    Every threshold is rounded beforehand by `SpQR.quantize_layer`.  Above 64 rows, evenly spaced runs of those that share a
    second-level grid are used; above 256 inputs, evenly spaced whole groups, the others left out of H; the title says so.
    Bits are those on disk of what is used: short rows pay more for their pointers.

    Shapes:  W [d_out, d_in]; H [d_in, d_in]; thresholds: some ten positive numbers (inf is added), or None for usual ones.
    Units:   of the weights; of activations squared; thresholds over the mean of D var(W), as in `SpQR`.
    Raises:  ValueError for shapes or sizes that do not fit, and as `SpQR` and its `quantize_layer`.
    Source:  SpQR, Sec. 4, Alg. 1.
    Differs: see `SpQR`.
    """
    W, H, second = W.detach().float().cpu(), H.detach().float().cpu(), second or Second()
    if W.ndim != 2 or not W.numel() or tuple(H.shape) != (W.shape[1],) * 2:
        raise ValueError(f"W must be [d_out, d_in], H [d_in, d_in]; got {list(W.shape)} and {list(H.shape)}")
    (d_out, d), grid = W.shape, Grid(bits, group, zero_inside=False)
    if bits > 7 or grid.g(d) > MOST_INPUTS:
        raise ValueError(f"bits={bits}, group={grid.g(d)}: use at most 7 bits and groups of at most {MOST_INPUTS}")
    if second.rows > min(d_out, MOST_ROWS):
        raise ValueError(f"{second.rows} rows share a second-level grid, but of {d_out} at most {MOST_ROWS} are used; "
                         f"give second=Second(rows={min(d_out, 16)})")
    usual = {0.2, *(t * 4.0 ** (3 - bits) for t in THRESHOLDS)}
    asked = sorted({math.inf, *map(float, usual if thresholds is None else thresholds)}, reverse=True)
    rows, columns = _runs(d_out, second.rows, MOST_ROWS), _runs(d, grid.g(d), MOST_INPUTS)
    W, H = W[rows][:, columns], H[columns][:, columns]
    if float(((W @ H) * W).sum()) <= 0:
        raise ValueError("the layer's output is zero on the data of H, so no share of it can be told")
    found = survey(W, H, SpQR(grid, second), asked)
    inputs = f"{d} inputs" if len(columns) == d else f"{len(columns)} of {d} inputs in whole groups, the others left out"
    about = f"{name}: {len(rows)}{'' if len(rows) == d_out else f' of {d_out}'} rows, {inputs}"
    chosen = min(range(1, len(asked)), key=lambda k: abs(math.log(asked[k] / 0.2)), default=0)
    row, column = divmod(int(found.outcomes[chosen].cost.argmax()), len(columns))
    return OutlierExplorer(found, about=about, bits=bits, group=grid.g(d), names=columns.tolist() + rows.tolist(),
                           chosen=chosen, row=row, column=column)


def _runs(n: int, run: int, most: int) -> Tensor:
    """Numbers below n in whole runs: all, or evenly spaced ones that hold at most `most` numbers."""
    here, room = n // run, max(1, most // run)
    first = torch.arange(here) if here <= room else torch.linspace(0, here - 1, room).round().long()
    return (first[:, None] * run + torch.arange(run)).flatten()
