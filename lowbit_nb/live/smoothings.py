"""The smoothing explorer: what dividing a layer's channels by a factor does to its activations, its weights and its error."""

from __future__ import annotations

import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.activations.tokens import FULL
from lowbit_nb.grid import Grid
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles
from lowbit_nb.live.smoothed import BASES, EXPONENTS, POINTS, WIDTHS, Survey, factors, few, spread, survey

MASSIVE = 10.0  # a massive token has so many times the median token's largest number
MOST_TOKENS, MOST_INPUTS, MOST_NUMBERS = 128, 1024, 49152  # used: tokens, half as many rows, inputs, tokens times inputs
LEAST = 1e-12
HALF, LOG2 = POINTS.index(("exponent", 0.5)), POINTS.index(("logarithm", 2.0))


class SmoothingExplorer(Explorer):
    """The survey of one layer; the browser rounds it again at every setting and draws. Source, Differs: this project."""

    _esm = module("math", "dom", "smoothing")
    _css = styles("base", "smoothing")
    heading = "Smoothing explorer"
    rule = traitlets.Unicode("").tag(sync=True)  # what was left out, in words
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # tokens, rows, inputs used; tokens in all; massive ones in all
    inputs = traitlets.Bytes().tag(sync=True)  # float32, token after token
    weights = traitlets.Bytes().tag(sync=True)  # float32, row after row
    peaks = traitlets.Bytes().tag(sync=True)  # float32, largest |x| of each input, then largest |w|
    counts = traitlets.Bytes().tag(sync=True)  # float32, what each token stands for, then each row
    errors = traitlets.Bytes().tag(sync=True)  # float32 [all or ordinary, bits of x, bits of w, point]
    massive = traitlets.List(traitlets.Int()).tag(sync=True)  # which of the tokens used
    largest = traitlets.Float().tag(sync=True)  # the largest token over the median one, of all
    names = traitlets.List(traitlets.Int()).tag(sync=True)  # the layer's own numbers of the inputs, then of the tokens
    bases = traitlets.List(traitlets.Float(), list(BASES)).tag(sync=True)
    widths = traitlets.List(traitlets.Int()).tag(sync=True)
    group = traitlets.Int().tag(sync=True)
    kind = traitlets.Enum(("none", "exponent", "logarithm"), "exponent").tag(sync=True)
    exponent = traitlets.Float(0.5).tag(sync=True)
    base = traitlets.Float(2.0).tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)  # of activations
    bits_w = traitlets.Int(4).tag(sync=True)
    over = traitlets.Enum(("all", "ordinary"), "all").tag(sync=True)
    order = traitlets.Enum(("sorted", "in place"), "sorted").tag(sync=True)

    def __init__(self, survey: Survey, **state: object) -> None:
        self.survey = survey
        super().__init__(
            inputs=packed(survey.X), weights=packed(survey.W), peaks=packed(torch.cat([survey.a, survey.w])),
            counts=packed(torch.cat([survey.tokens, survey.rows])), errors=packed(survey.errors), group=survey.group,
            massive=survey.massive.nonzero().flatten().tolist(), widths=list(survey.widths), **state)

    def sentence(self) -> str:
        error, best = (lambda p, *b: percent(self.survey.error(p, *(b or (self.bits,))))), self._best
        at = {kind: POINTS[p][1] for kind, p in best.items()}
        flat = [show.digits(unevenness(self.survey.smoothed(p)[0])) for p in (0, HALF)]
        n, many = self.shape[3:]
        return (f"Smoothing explorer, {self.about}. With {self.bits}-bit activations and {self.bits}-bit weights the output "
                f"error is {error(0)} without smoothing ({error(0, self.bits, FULL)} if only activations are rounded, "
                f"{error(0, FULL, self.bits)} if only weights), {error(HALF)} with exponent 0.5, "
                f"{error(LOG2)} with the logarithm to base 2. The best exponent, "
                f"{at['exponent']:g}, leaves {error(best['exponent'])}, the best base, {at['logarithm']:g}, "
                f"{error(best['logarithm'])}. The largest channel is {flat[0]} times the median one, {flat[1]} times with "
                f"exponent 0.5. {many} of {n} tokens are massive: {MASSIVE:g} times the median token's largest number.")

    @property
    def _best(self) -> dict[str, int]:
        return {kind: self.survey.best(kind, self.bits) for kind in ("exponent", "logarithm")}

    def frames(self) -> list[Frame]:
        return [self._frame(p) for p in dict.fromkeys((0, HALF, self._best["exponent"], LOG2))]

    def _frame(self, p: int) -> Frame:
        found, bits, order = self.survey, self.bits, self.survey.a.argsort(descending=True, stable=True)
        (a, w), parts = found.smoothed(p), [found.error(p, *b) for b in ((bits, bits), (bits, FULL), (FULL, bits))]
        title = f"{words(p)}: output error {percent(parts[0])}"
        fig, axes = show.subplots(9, 4.8, rows=2, cols=2)
        for ax, name, before, after in zip(axes[0], ("x", "w"), (found.a, found.w), (a, w), strict=True):
            _draw_maxima(ax, f"Largest |{name}| of a channel", before[order], after[order])
            ax.set(xlabel="channels, largest |x| first")
        s = factors(*POINTS[p], found.a, found.w)
        tokens = [t.abs().amax(1) for t in (found.X, found.X / s)]
        _draw_maxima(axes[1, 0], "Largest |x| of a token", *tokens, marked=found.massive)
        axes[1, 0].set(xlabel=f"tokens used; triangles: massive ({int(found.massive.sum())})")
        self._curves(axes[1, 1], p)
        alt = (f"{title}; {percent(parts[1])} if only activations are rounded, {percent(parts[2])} if only weights. "
               f"Largest over median: channels of x {ratios(found.a, a)}, of w {ratios(found.w, w)}, tokens {ratios(*tokens)}.")
        return Frame(title, alt, fig)

    def _curves(self, ax: Axes, p: int) -> None:
        found, bits = self.survey, self.bits
        for i, (label, b) in enumerate({"both": (bits, bits), "x only": (bits, FULL), "w only": (FULL, bits)}.items()):
            ax.plot(EXPONENTS, [100 * found.error(1 + k, *b) for k in range(21)], label=label, ms=3, **show.line(i))
        for name, at, dash in (("none", 0, ":"), ("log₂", LOG2, "--")):
            ax.axhline(100 * found.error(at, bits), color="#222222", ls=dash, lw=1.3, label=name)
        if POINTS[p][0] == "exponent":
            ax.plot(POINTS[p][1], 100 * found.error(p, bits), "o", ms=11, mfc="none", mec="#222222", mew=1.6)
        ax.set(title="Output error, %", xlabel="exponent", ylim=(0, None))
        ax.legend(fontsize=9, labelspacing=0.2, handlelength=1.8, ncols=2)


def unevenness(values: Tensor) -> float:
    """The largest over the (lower) median."""
    return float(values.max() / values.median().clamp(min=LEAST))


def ratios(before: Tensor, after: Tensor) -> str:
    return f"{show.digits(unevenness(before))} before, {show.digits(unevenness(after))} after"


def words(p: int) -> str:
    kind, parameter = POINTS[p]
    names = {"none": "No smoothing", "exponent": f"Exponent {parameter:g}", "logarithm": f"Logarithm to base {parameter:g}"}
    return names[kind]


def _draw_maxima(ax: Axes, title: str, before: Tensor, after: Tensor, marked: Tensor | None = None) -> None:
    x = np.arange(1, len(before) + 1)
    ax.step(x, before, where="mid", color="#777777", lw=1.2, ls="--", label="before")
    ax.step(x, after, where="mid", color=show.PALETTE[0], lw=1.4, label="after")
    if marked is not None and marked.any():
        ax.plot(x[marked.numpy()], 1.35 * before[marked], "v", color=show.PALETTE[1], ms=5)
    both = torch.cat([before, after]).clamp(min=LEAST)
    low = max(float(both.min()) / 1.2, float(both.quantile(0.02)) / 4)  # the few smallest may leave the picture
    high = (1.9 if marked is None else 6) * float(both.max())
    ax.set(title=title, yscale="log", ylim=(low, high))
    ticks = [t for e in range(-8, 8) for t in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= t <= high]
    ticks = ticks if len(ticks) < 7 else [t for t in ticks if f"{t:e}"[0] == "1"]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=9, ncols=2, loc="upper right")


def smoothing_explorer(X: Tensor, W: Tensor, name: str = "a layer", bits: int = 4,
                       group: int | None = None) -> SmoothingExplorer:
    """A widget about smoothing: every channel divided by a factor, its weights multiplied; make it a cell's last expression.

    Inputs are rounded per token, weights to nearest on rulers of a row, or of `group` weights.  Layers that share an input can
    be given together, one below the other.  Channel maxima are those of all tokens and rows.  Errors are of at most 128 tokens
    and 64 rows, fewer if there are more than 384 inputs: of those an eighth (or all massive ones, up to half) are the tokens
    with the largest |x|, an eighth the rows with the largest outputs; the others are evenly spaced and count for those left
    out.  Above 1024 inputs an eighth with the largest |x| and evenly spaced ones are used, whole groups of them if there are
    groups, and the others are left out.

    Shapes:  X [n, d_in]; W [d_out, d_in].
    Units:   of activations; of weights; bits: of both at the start, 2 to 8, or 16 to leave them.
    Raises:  ValueError for shapes or values that do not fit, and as `grid.fit`.
    Source:  SmoothQuant, Sec. 4; LRQuant, Sec. 3.1.
    Differs: no difference.
    """
    X, W = (t.detach().float().cpu() for t in (X, W))
    if X.ndim != 2 or W.ndim != 2 or X.shape[1] != W.shape[1] or not X.numel() or not W.numel():
        raise ValueError(f"X must be [n, d_in] and W [d_out, d_in]; got {list(X.shape)} and {list(W.shape)}; X.flatten(0, -2) "
                         "makes one axis of all tokens")
    if not all(torch.isfinite(t).all() for t in (X, W)):
        raise ValueError("X and W must be finite; check the layer's inputs")
    if not (isinstance(bits, int) and (2 <= bits <= 8 or bits == FULL)):
        raise ValueError(f"bits={bits!r} must be a whole number from 2 to 8, or {FULL} to leave activations and weights")
    (n, d), d_out, g = X.shape, len(W), Grid(8, group).g(W.shape[1])
    if group is not None and g > MOST_INPUTS:
        raise ValueError(f"group={g} is too long; use at most {MOST_INPUTS}, or None for whole rows")
    a, w, largest = X.abs().amax(0), W.abs().amax(0), X.abs().amax(1)
    massive = largest >= MASSIVE * largest.median().clamp(min=LEAST)
    unit = g if group else 1
    units, _ = spread(a.reshape(-1, unit).amax(1), max(1, MOST_INPUTS // unit))
    columns = (units[:, None] * unit + torch.arange(unit)).flatten()
    most = min(MOST_TOKENS, MOST_NUMBERS // len(columns))
    first = few(most, int(massive.sum()))
    at, tokens = spread(largest, most, first)
    rows, of = spread(tokens @ (X[at] @ W.T).square(), most // 2)  # a massive token's output sits in few rows
    found = survey(X[at][:, columns], W[rows][:, columns], a[columns], w[columns], tokens, of, massive[at],
                   g if group else len(columns), sorted({*WIDTHS, bits}))
    whole = f" in whole groups of {g}" if group else ""
    sizes = [(len(at), n, "tokens", f"{first} with the largest |x|", tokens),
             (len(rows), d_out, "rows", f"{few(len(rows))} with the largest outputs", of),
             (len(columns), d, "inputs" + whole, f"{few(len(units)) * unit} with the largest |x|", None)]
    about = ", ".join(f"{used}{'' if used == all_ else f' of {all_}'} {what}" for used, all_, what, *_ in sizes)
    return SmoothingExplorer(found, about=f"{name}: {about}", rule=_rule(sizes), bits=bits, bits_w=bits,
                             largest=unevenness(largest), shape=[len(at), len(rows), len(columns), n, int(massive.sum())],
                             names=columns.tolist() + at.tolist())


def _rule(sizes: list[tuple[int, int, str, str, Tensor | None]]) -> str:
    """What was left out, and how the rest makes up for it."""
    told = [f"of {all_} {what} the {top} and {used - int(top.split()[0])} evenly spaced ones, "
            + ("the others left out" if counts is None else f"each of which counts for {show.digits(float(counts.max()))}")
            for used, all_, what, top, counts in sizes if used < all_]
    return f"Errors are of a sample: {'; '.join(told)}. Channel maxima are of all." if told else ""
