"""The mask explorer: which weights of a layer deserve more than a sign, what it costs to say which, and what that buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition, error_share, factor
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles
from lowbit_nb.onebit import signs
from lowbit_nb.stored import AffineWeight

SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
KINDS = {"element": "single weights", "column": "columns of each block", "channel": "input channels"}
METRICS = {"weight": "|w|", "absmax": "largest |x|", "rms": "root mean square of x", "output": "w² times mean x²",
           "obs": "Hessian sensitivity, w² / U_jj²"}
SHORT = {"weight": "|w|", "absmax": "max |x|", "rms": "rms x", "output": "w² x²", "obs": "w² / U²"}
WIDTHS, MOST_ROWS, MOST_INPUTS, USUAL = (2, 3, 4, 8), 64, 256, 0.2


def scores(W: Tensor, metric: str, of: Tensor | None) -> Tensor:
    """How salient every weight is; what knows no weight, |x|, is the same for a whole column. of [d]: of the inputs.

    Source: PB-LLM, Sec. 3.2 (|w|, w**2 / U_jj**2); PTQ1.61, Sec. 3.2 (|x|); output is the square of Wanda's score.
    """
    of = torch.ones(()) if of is None else of
    return of.double().square().expand(W.shape) if metric in ("absmax", "rms") else W.double().square() * of.double()


def mask_of(score: Tensor, kind: str, share: float, span: int) -> Tensor:
    """The salient weights: of highest score, of equals the first; at least one if the share is not 0. [rows, d] boolean

    Source: element: PB-LLM, Sec. 3.2; column: BiLLM, Alg. 2; channel: PTQ1.61, Sec. 3.2. Differs: a column's score is the sum
    of its weights'; every block gives the same share of its columns, where BiLLM searches for the best number.
    """
    units = score.flatten() if kind == "element" else score.sum(0)
    mask = torch.zeros_like(units, dtype=torch.bool)
    for part, block in zip(*(t.split(span if kind == "column" else len(t)) for t in (mask, units)), strict=True):
        part[block.argsort(descending=True, stable=True)[: count_of(share, len(block))]] = True
    return mask.reshape(score.shape) if kind == "element" else mask.expand(score.shape)


def count_of(share: float, n: int) -> int:
    return min(n, max(1, math.floor(share * n + 0.5))) if share else 0


def coded(W: Tensor, mask: Tensor, bits: int) -> Tensor:
    """The layer as stored, as PTQ1.61 starts: a grid over a row's salient weights, signs with its mean and level elsewhere."""
    mu, a = signs.one_plane(W, ~mask)
    low = mu[:, None] + a[:, None] * signs.sgn(W - mu[:, None])
    return torch.where(mask, AffineWeight.nearest(W * mask, Grid(bits)).dequantize(), low)


def mask_bits(kind: str, share: float, span: int, d_out: int, d_in: int) -> dict[str, float]:
    """Bits a weight that say which: a bit each (map), addresses or a permutation (list), numbering all such masks (least)."""
    of = 0.0 if share in (0.0, 1.0) else 1.0 if kind == "element" else 1.0 / d_out
    places = min(span, d_in) if kind == "column" else d_in
    wide, n = math.ceil(math.log2(places)), places * d_out if kind == "element" else places
    choices = math.lgamma(n + 1) - math.lgamma(n * share + 1) - math.lgamma(n - n * share + 1)
    return {"map": of, "list": of * wide * (1.0 if kind == "channel" else share), "least": of * choices / n / math.log(2)}


def total_bits(kind: str, share: float, bits: int, span: int, d_out: int, d_in: int) -> tuple[float, float, float]:
    """Bits a weight of codes (these are the nominal ones), of the mask as a map, of scales; without padding."""
    scales = (32 if share < 1 else 0) + (16 + bits if share else 0)
    return bits * share + 1 - share, mask_bits(kind, share, span, d_out, d_in)["map"], scales / d_in


@dataclass(frozen=True)
class Survey:
    """One layer under every mask. errors [width, kind, metric, share]; of {metric: [d]}. Source, Differs: this project."""

    W: Tensor
    H: Tensor
    of: dict[str, Tensor | None]
    span: int
    size: tuple[int, int]  # of the whole layer
    widths: tuple[int, ...]
    errors: np.ndarray
    others: tuple[tuple[str, float, float], ...]

    def mask(self, kind: str, metric: str, share: float) -> Tensor:
        return mask_of(scores(self.W, metric, self.of[metric]), kind, share, self.span)

    def told(self, kind: str, metric: str, k: int, bits: int) -> tuple[float, float, float]:
        """The share that is salient, bits a weight, the error."""
        share = float(self.mask(kind, metric, SHARES[k]).double().mean())
        at = self.widths.index(bits), list(KINDS).index(kind), list(self.of).index(metric), k
        return share, sum(total_bits(kind, share, bits, self.span, *self.size)), float(self.errors[at])

    def overlap(self, kind: str, share: float) -> Tensor:
        """How much of one metric's mask is in another's. [metric, metric]"""
        masks = torch.stack([self.mask(kind, metric, share).flatten() for metric in self.of]).double()
        return masks @ masks.T / masks.sum(1)[:, None].clamp(min=1)


def survey(W: Tensor, H: Tensor, of: dict[str, Tensor | None], span: int, size: tuple[int, int],
           widths: Sequence[int]) -> Survey:
    """The layer under every mask. W [rows, d]; H [d, d]; of {metric: [d], or None for |w|}."""
    errors = np.zeros((len(widths), len(KINDS), len(of), len(SHARES)))
    for (m, (metric, x)), (k, kind), (p, share) in product(*map(enumerate, (of.items(), KINDS, SHARES))):
        mask = mask_of(scores(W, metric, x), kind, share, span)
        errors[:, k, m, p] = [error_share(W, coded(W, mask, bits), H) for bits in widths]
    g = 64 if W.shape[1] % 64 == 0 else W.shape[1]
    grids = {b: error_share(W, AffineWeight.nearest(W, Grid(b, g)).dequantize(), H) for b in (2, 3)}
    others = tuple((f"{b}-bit grid, groups of {g}", b + (16 + b) / g, error) for b, error in grids.items())
    return Survey(W, H, of, span, size, tuple(widths), errors, others)


class MaskExplorer(Explorer):
    """The survey of one layer; the browser makes mask, codes and error again and draws. Source, Differs: this project."""

    _esm = module("math", "dom", "mask")
    _css = styles("base", "mask")
    heading = "Mask explorer"
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # rows and inputs used, then those of the whole layer
    span = traitlets.Int(64).tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)  # float32, row after row
    hessian = traitlets.Bytes().tag(sync=True)  # float32, the upper half row after row; empty: the error of the weight
    inputs = traitlets.Bytes().tag(sync=True)  # float32, what each metric says of an input; ones for |w|
    errors = traitlets.Bytes().tag(sync=True)  # float32 [width, kind, metric, share]
    metrics = traitlets.List(traitlets.Unicode()).tag(sync=True)
    widths = traitlets.List(traitlets.Int()).tag(sync=True)
    others = traitlets.List().tag(sync=True)  # a plain grid: name, bits a weight, error
    names = traitlets.List(traitlets.Int()).tag(sync=True)  # the layer's own numbers of the inputs, then of the rows
    kind = traitlets.Enum(tuple(KINDS), "channel").tag(sync=True)
    metric = traitlets.Enum(tuple(METRICS), "weight").tag(sync=True)
    chosen = traitlets.Int(SHARES.index(USUAL)).tag(sync=True)  # which share
    bits = traitlets.Int(4).tag(sync=True)
    view = traitlets.Enum(("mask", "stored", "error"), "mask").tag(sync=True)

    def __init__(self, survey: Survey, data: bool, **state: object) -> None:
        self.survey, d, self.error_name = survey, survey.W.shape[1], "output error" if data else "weight error"
        super().__init__(
            shape=[*survey.W.shape, *survey.size], span=survey.span, weights=packed(survey.W), metrics=list(survey.of),
            hessian=packed(survey.H[tuple(torch.triu_indices(d, d))]) if data else b"", errors=packed(survey.errors),
            inputs=packed(torch.stack([torch.ones(d) if x is None else x for x in survey.of.values()])), **state,
            widths=list(survey.widths), others=list(map(list, survey.others)))

    def words(self, kind: str, metric: str, k: int) -> str:
        share, bits, error = self.survey.told(kind, metric, k, self.bits)
        return (f"{KINDS[kind]} by {METRICS[metric]}: {percent(share)} salient at {self.bits} bits, {show.digits(bits)} bits a "
                f"weight, {self.error_name} {percent(error)}")

    def sentence(self) -> str:
        told = "; ".join(self.words(kind, self._usual(kind), self.chosen) for kind in KINDS)
        _, bits, error = self.survey.told("channel", self.metric, 0, self.bits)
        others = "; ".join(f"{name}: {show.digits(b)} bits a weight and {percent(e)}" for name, b, e in self.survey.others)
        return (f"Mask explorer, {self.about}. No mask, a sign, a mean and a level a row: {show.digits(bits)} bits a weight, "
                f"{self.error_name} {percent(error)}. With salient weights on a grid, {told}. Without signs, {others}.")

    def _usual(self, kind: str) -> str:
        return self.metric if kind == "channel" else list(self.survey.of)[-1]

    def frames(self) -> list[Frame]:
        return [*(self._mask(kind, self._usual(kind)) for kind in reversed(KINDS)), self._overlaps()]

    def _mask(self, kind: str, metric: str) -> Frame:
        mask, (n, d) = self.survey.mask(kind, metric, SHARES[self.chosen]), self.survey.W.shape
        fig, axes = show.subplots(8, 3.1, cols=2, width_ratios=(1.2, 1))
        axes[0].imshow(mask.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes[0].set(title=f"Salient: {KINDS[kind]}", xlabel="inputs used", ylabel="rows used")
        self._curves(axes[1], kind, metric)
        cost = mask_bits(kind, float(mask.double().mean()), self.survey.span, *self.survey.size).values()
        title, told, by = self.words(kind, metric, self.chosen), [show.digits(b) for b in cost], mask.sum(0)
        alt = (f"{title}. Bits a weight that say which: as a map {told[0]}, as addresses {told[1]}, never below {told[2]}. "
               f"{int((by > 0).sum())} of {d} inputs have a salient weight, the most {int(by.max())} of {n}.")
        return Frame(title[0].upper() + title[1:], alt, fig)

    def _curves(self, ax: Axes, kind: str, metric: str) -> None:
        for i, other in enumerate(KINDS):
            points = [self.survey.told(other, metric, k, self.bits) for k in range(len(SHARES) - 2)]
            x, y = [p[1] for p in points], [100 * p[2] for p in points]
            ax.plot(x, y, label=KINDS[other], ms=3, **show.line(i))
        _, bits, error = self.survey.told(kind, metric, self.chosen, self.bits)
        ax.plot(bits, 100 * error, "o", ms=11, mfc="none", mec="#222222", mew=1.6)
        for i, (name, b, error) in enumerate(self.survey.others):
            ax.plot(b, 100 * error, label=name.replace("groups of ", "g"), ls="", **show.dots(i + 4))
        ax.set(title=f"{self.error_name.capitalize()}, %", xlabel="bits a weight", ylim=(0, None))
        ax.legend(fontsize=9, labelspacing=0.2, handlelength=1.6)

    def _overlaps(self) -> Frame:
        share, names = SHARES[self.chosen], [SHORT[m] for m in self.survey.of]
        (fig, axes), told = show.subplots(8, 3.1, cols=2), []
        for ax, kind in zip(axes, ("element", "channel"), strict=True):
            shared = 100 * self.survey.overlap(kind, share)
            ax.imshow(shared.numpy(), cmap="cividis", vmin=0, vmax=100)
            for i, j in product(range(len(names)), repeat=2):
                ax.text(j, i, f"{shared[i, j]:.0f}", ha="center", va="center", color="white" if shared[i, j] < 60 else "black")
            ax.set(title=f"Shared, %: {KINDS[kind]}", yticks=range(len(names)), yticklabels=names)
            ax.set_xticks(range(len(names)), names, rotation=30)
            pairs = [f"{names[i]} and {names[j]} {float(shared[i, j]):.0f} %" for i in range(len(names)) for j in range(i)]
            told.append(f"{KINDS[kind]}: {', '.join(pairs) or 'one metric only'}")
        title = f"How much two metrics agree at {percent(share)} salient; {percent(share)} would be chance"
        return Frame(title, f"{title}. {'; '.join(told)}.", fig)


def mask_explorer(W: Tensor, H: Tensor | None = None, x_max: Tensor | None = None, name: str = "a layer", bits: int = 4,
                  span: int = 64) -> MaskExplorer:
    """A widget about masks: which weights keep `bits` bits while all others keep a sign; make it a cell's last expression.

    Errors are of what the title names: above 64 rows, and 256 inputs, evenly spaced rows and whole blocks of columns are used.
    Bits a weight are those of the whole layer, without padding.

    Shapes:  W [d_out, d_in]; H [d_in, d_in] or None (the error of the weight); x_max [d_in], the largest |x|, or None.
    Units:   of the weights; of activations squared; of activations; span: columns a block of the column mask.
    Raises:  ValueError for shapes or values that do not fit, and as `grid.fit` and `condition`.
    Source:  PB-LLM, Sec. 3.2; BiLLM, Sec. 3.2; PTQ1.61, Sec. 3.2.
    Differs: all masks share one code, so that only they differ.
    """
    W, H, x_max = (None if t is None else t.detach().float().cpu() for t in (W, H, x_max))
    n, d = W.shape if W.ndim == 2 else (0, 0)
    if not n * d or (H is not None and tuple(H.shape) != (d, d)) or (x_max is not None and tuple(x_max.shape) != (d,)):
        shapes = [None if t is None else list(t.shape) for t in (W, H, x_max)]
        raise ValueError(f"W must be [d_out, d_in], H [d_in, d_in] or None, x_max [d_in] or None; got {shapes}")
    if not all(torch.isfinite(t).all() for t in (W, H, x_max) if t is not None):
        raise ValueError("W, H and x_max must be finite; check the layer's inputs")
    if not (1 <= bits <= 8 and 1 <= (span := min(span, d)) <= MOST_INPUTS):
        raise ValueError(f"bits={bits}, span={span}: use 1 to 8 bits and blocks of 1 to {MOST_INPUTS} columns")
    rows, blocks = _spaced(n, MOST_ROWS), _spaced(d // span, MOST_INPUTS // span)
    columns = torch.arange(d) if d <= MOST_INPUTS else (blocks[:, None] * span + torch.arange(span)).flatten()
    W, H, x_max = W[rows][:, columns], None if H is None else H[columns][:, columns], None if x_max is None else x_max[columns]
    of: dict[str, Tensor | None] = {"weight": None} | ({} if x_max is None else {"absmax": x_max})
    if H is not None:
        of |= {"rms": H.diagonal().clamp(min=0).sqrt(), "output": H.diagonal(), "obs": factor(condition(H)[0])[1]}
    M = torch.eye(len(columns)) if H is None else (H + H.T) / 2
    if float(((W @ M) * W).sum()) <= 0:
        raise ValueError("the layer's output is zero on the data of H, so no share of it can be told")
    found = survey(W, M, of, span, (n, d), sorted({*WIDTHS, bits}))
    inputs = f"{d} inputs" if len(columns) == d else f"{len(columns)} of {d} inputs in whole blocks, the others left out"
    about = f"{name}: {len(rows)}{'' if len(rows) == n else f' of {n}'} rows, {inputs}"
    return MaskExplorer(found, H is not None, about=about, bits=bits, names=columns.tolist() + rows.tolist(),
                        metric=next(m for m in ("absmax", "rms", "weight") if m in of))


def _spaced(n: int, most: int) -> Tensor:
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).round().long()
