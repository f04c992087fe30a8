"""The sign-and-scale explorer: what one bit a weight can hold of a row, and where a second bit goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import traitlets
from matplotlib.axes import Axes
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles
from lowbit_nb.onebit import signs

CODES = {"one": "one sign, one level", "mean": "one sign, level and mean", "columns": "one sign, row and column scales",
         "two": "two signs, the second of what is left", "split": "two groups by size, a sign in each",
         "levels": "four free levels"}
BITS = {"one": (1, 16), "mean": (1, 32), "columns": (1, 16), "two": (2, 48), "split": (2, 64), "levels": (2, 64)}
SECOND = {"two": "plus in the second sign", "split": "in the group of large weights", "levels": "on an outer level"}
MOST_ROWS, MOST_INPUTS, SWEEPS = 32, 1024, 100


def bits_of(code: str, d_out: int, d_in: int) -> tuple[float, float]:
    """Bits a weight of the codes, and of scales in 16 bits each; column scales are shared by all rows."""
    each, row = BITS[code]  # a weight, a row
    return float(each), row / d_in + (16 / d_out if code == "columns" else 0.0)


def entropy(share: float) -> float:
    return sum(-p * math.log2(p) for p in (share, 1 - share) if p > 0)


@dataclass(frozen=True)
class Coded:
    """Rows as stored, and their second bits. W_hat [rows, d]; second [rows, d] boolean, or None. Source: this project."""

    W: Tensor
    W_hat: Tensor
    second: Tensor | None

    @property
    def cosine(self) -> Tensor:
        """Of the angle between every row and what is stored of it. [rows]"""
        return torch.nn.functional.cosine_similarity(self.W, self.W_hat, dim=1)

    @property
    def angle(self) -> Tensor:
        """The same in degrees. [rows]"""
        return torch.rad2deg(torch.arccos(self.cosine.clamp(-1, 1)))

    @property
    def error(self) -> Tensor:
        """Squared error over squared weights. [rows]"""
        return (self.W - self.W_hat).square().sum(1) / self.W.square().sum(1)

    def share(self, row: int) -> float:
        """How many second bits are set."""
        return 0.0 if self.second is None else float(self.second[row].double().mean())


@dataclass(frozen=True)
class Rows:
    """Some rows of a layer: W [rows, d] float64; v [d] column scales of the whole layer; thresholds [rows, 81] of |w|, and
    the place of the best one in every row. Source, Differs: this project."""

    W: Tensor
    v: Tensor
    thresholds: Tensor
    best: Tensor

    @classmethod
    def of(cls, W: Tensor, v: Tensor) -> Rows:
        """The percentiles that `signs.split_threshold` tries in every row. W [rows, d] float32."""
        at = torch.quantile(W.abs(), torch.tensor(signs.PERCENTILES), dim=1).T.contiguous()
        errors = [signs.split_errors(W[i : i + 1].double(), at[i].double())[:, 0] for i in range(len(W))]
        return cls(W.double(), v.double(), at, torch.stack(errors).argmin(1))

    def coded(self, code: str, split: int = -1) -> Coded:
        """The rows in one code; split: which percentile parts the groups, -1 for the best of each row.

        Source: one: XNOR-Net, Sec. 3.1; mean, two: BiLLM, Eq. 8 and code; columns: ARB-LLM, Sec. 3.4; split: BiLLM, Sec. 3.3;
        levels: Lloyd's iteration from the split. Differs: groups are parted row by row.
        """
        W, B = self.W, signs.sgn(self.W)
        if code == "columns":
            u = (W.abs() @ self.v) / self.v.square().sum()
            return Coded(W, u[:, None] * self.v * B, None)
        if code in ("one", "mean"):
            mu, a = signs.one_plane(W, centred=code == "mean")
            return Coded(W, mu[:, None] + a[:, None] * signs.sgn(W - mu[:, None]), None)
        if code == "two":
            mu, a1, a2 = signs.two_planes(W)
            left = signs.residual(W, mu[:, 0], a1) - mu[:, 1:]
            return Coded(W, W - left + a2[:, None] * signs.sgn(left), left >= 0)
        far, planes = self.far(split), []
        for support in (~far, far):
            mu, a = signs.one_plane(W, support)
            planes.append((mu[:, None] + a[:, None] * signs.sgn(W - mu[:, None]), torch.stack([mu - a, mu + a], 1)))
        if code == "split":
            return Coded(W, torch.where(far, planes[1][0], planes[0][0]), far)
        levels, at = lloyd(W, torch.cat([ends for _, ends in planes], 1).sort(1).values)
        return Coded(W, levels.gather(1, at), (at == 0) | (at == 3))

    def far(self, split: int = -1) -> Tensor:
        k = self.best if split < 0 else torch.full_like(self.best, split)
        return self.W.abs() >= self.thresholds.double().gather(1, k[:, None])


def lloyd(W: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Four levels a row, each the mean of the weights nearest to it, in turns.

    Source: Lloyd's iteration. Differs: stops after 100 turns; a level that no weight is nearest to stays.
    """
    for _ in range(SWEEPS):
        at = (W[..., None] > (levels[:, None, 1:] + levels[:, None, :-1]) / 2).sum(-1)
        nearest = torch.nn.functional.one_hot(at, 4).to(W.dtype)
        count = nearest.sum(1)
        new = torch.where(count > 0, torch.einsum("rd,rdk->rk", W, nearest) / count.clamp(min=1), levels)
        if torch.allclose(new, levels, rtol=0, atol=1e-12 * float(W.abs().max())):
            break
        levels = new
    return levels, at


class SignExplorer(Explorer):
    """Rows of one layer; the browser codes them again and draws. Source, Differs: this project."""

    _esm = module("dom", "sign")
    _css = styles("base", "sign")
    heading = "Sign-and-scale explorer"
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # rows and inputs used, then those of the whole layer
    weights = traitlets.Bytes().tag(sync=True)  # float32, row after row
    factors = traitlets.Bytes().tag(sync=True)  # float32, the column scales
    thresholds = traitlets.Bytes().tag(sync=True)  # float32, 81 percentiles of |w|, row after row
    best = traitlets.List(traitlets.Int()).tag(sync=True)  # the best percentile of every row
    names = traitlets.List(traitlets.Int()).tag(sync=True)  # the layer's own numbers of the rows
    code = traitlets.Enum(tuple(CODES), "one").tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    split = traitlets.Int(-1).tag(sync=True)  # which percentile parts the groups; -1: the best of the row

    def __init__(self, rows: Rows, size: tuple[int, int], **state: object) -> None:
        self.rows, self.size = rows, size
        super().__init__(shape=[*rows.W.shape, *size], weights=packed(rows.W), factors=packed(rows.v),
                         thresholds=packed(rows.thresholds), best=rows.best.tolist(), **state)

    def words(self, code: str, row: int) -> str:
        """One row in one code, with its numbers."""
        found, bits = self.rows.coded(code), bits_of(code, *self.size)
        second = f", {percent(found.share(row))} {SECOND[code]}" if code in SECOND else ""
        return (f"{CODES[code]}: {show.digits(sum(bits))} bits a weight, {show.digits(float(found.angle[row]))} degrees, "
                f"error {percent(found.error[row])}{second}")

    def sentence(self) -> str:
        told = "; ".join(self.words(code, self.row) for code in CODES)
        angle, group = self.rows.coded("one").angle, entropy(self.rows.coded("split").share(self.row))
        return (f"Sign-and-scale explorer, {self.about}. Row {self.names[self.row]}, angle to what is stored of it and squared "
                f"error; {told}. The map of the groups by size holds {show.digits(group)} bits a weight. At one "
                f"sign and one level the angles of all these rows lie between {show.digits(float(angle.min()))} and "
                f"{show.digits(float(angle.max()))} degrees.")

    def frames(self) -> list[Frame]:
        return [self._frame(code) for code in ("one", "columns", "two", "split", "levels")]

    def _frame(self, code: str) -> Frame:
        found, row = self.rows.coded(code), self.row
        fig, axes = show.subplots(8, 3.1, cols=2, width_ratios=(1.5, 1))
        _draw_row(axes[0], found, row)
        axes[0].set(title=f"Row {self.names[row]}: {CODES[code]}")
        for other, label, look in (("one", "one sign, one level", 3), (code, "this code", 0))[code == "one" :]:
            angle = self.rows.coded(other).angle
            axes[1].scatter(range(1, len(angle) + 1), angle, s=18, label=label, **show.dots(look))
        axes[1].set(title="Angle, degrees", xlabel="rows used", ylim=(0, None))
        axes[1].legend(loc="lower right")
        title, angle = self.words(code, row), found.angle
        alt = (f"Row {self.names[row]}, {title}. Over all {len(angle)} rows the angle lies between "
               f"{show.digits(float(angle.min()))} and {show.digits(float(angle.max()))} degrees.")
        return Frame(title[0].upper() + title[1:], alt, fig)


def _draw_row(ax: Axes, found: Coded, row: int) -> None:
    """The weights of a row in order of size, and what is stored of them."""
    order, x = found.W[row].argsort(), torch.arange(1, found.W.shape[1] + 1)
    ax.plot(x, found.W[row][order], color="#222222", lw=1.5, label="weight")
    second = torch.zeros_like(order, dtype=torch.bool) if found.second is None else found.second[row][order]
    for mask, label, look in ((~second, "stored", 0), (second, "second bit set", 1)):
        if mask.any():
            ax.scatter(x[mask], found.W_hat[row][order][mask], s=4, lw=0, label=label, **show.dots(look))
    ax.set(xlabel="weights, smallest first")
    ax.legend(loc="upper left", markerscale=2.5)


def sign_explorer(W: Tensor, rows: Sequence[int] | None = None, name: str = "a layer") -> SignExplorer:
    """A widget about rows as signs and scales; make it the last expression of a cell.

    Angles and errors are exact for the weights named in the title: without `rows` at most 32 evenly spaced ones that are not
    zero; above 1024 inputs evenly spaced columns. Column scales are fitted to the whole layer. Bits are those of the whole
    layer, without padding.

    Shapes:  W [d_out, d_in]; rows: at most 32 numbers of rows.
    Units:   of the weights; angles in degrees; errors as shares of the squared weights.
    Raises:  ValueError for shapes or values that do not fit, and for rows that are zero or do not exist.
    Source:  XNOR-Net, Sec. 3.1; BiLLM, Sec. 3; ARB-LLM, Sec. 3.4; PTQ1.61, Sec. 3.3 (the angle).
    Differs: see `Rows.coded`.
    """
    W = W.detach().float().cpu()
    if W.ndim != 2 or W.shape[1] < 4 or not torch.isfinite(W).all():
        raise ValueError(f"W must be [d_out, d_in] with at least 4 inputs, and finite; got {list(W.shape)}")
    n, d = W.shape
    columns = torch.arange(d) if d <= MOST_INPUTS else torch.linspace(0, d - 1, MOST_INPUTS).round().long()
    filled = (W[:, columns] != 0).any(1)
    chosen = list(range(n)) if rows is None else list(rows)
    wrong = [i for i in chosen if not (0 <= i < n and (rows is None or filled[i]))]
    if wrong or not chosen or not filled.any() or (rows is not None and len(chosen) > MOST_ROWS):
        raise ValueError(f"rows must be 1 to {MOST_ROWS} of 0 to {n - 1} that are not zero; got {wrong or chosen}")
    chosen = torch.tensor([i for i in chosen if filled[i]])
    chosen = chosen if len(chosen) <= MOST_ROWS else chosen[torch.linspace(0, len(chosen) - 1, MOST_ROWS).round().long()]
    found = Rows.of(W[chosen][:, columns], signs.rank_one(W.abs().double())[1][columns].float())
    inputs = f"{d} inputs" if len(columns) == d else f"{len(columns)} of {d} inputs"
    about = f"{name}: {len(chosen)}{'' if len(chosen) == n else f' of {n}'} rows, {inputs}"
    return SignExplorer(found, (n, d), about=about, names=chosen.tolist())
