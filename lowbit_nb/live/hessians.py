"""The Hessian explorer: what the inputs say, what damping and order do, how one error spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import traitlets
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.feedback import ORDERS, order
from lowbit_nb.hessian import condition, factor
from lowbit_nb.live.base import Explorer, Frame, module, packed, percent, styles
from lowbit_nb.live.pairs import MetricPair

MOST_COLUMNS = 256
MOST_ROWS = 8


@dataclass(frozen=True)
class Factored:
    """H conditioned, put in an order and factored; all in float64."""

    H: Tensor  # [d, d] in visiting order
    perm: Tensor
    V: Tensor
    D: Tensor

    @property
    def gain(self) -> float:
        """Sum of D over sum of diag(H): the error cost with feedback, as a share of the cost without it."""
        return float(self.D.sum() / self.H.diagonal().sum())

    @property
    def condition(self) -> float:
        eig = torch.linalg.eigvalsh(self.H)
        return float(eig[-1] / eig[0])


def evaluate(H: Tensor, damp: float, name: str, group: int) -> Factored:
    """The same numbers as the browser's, from the package's own functions.

    Shapes:  H [d, d].
    Units:   damp is a share of the mean diagonal.
    Raises:  ValueError if H is not positive definite at this damping.
    Source:  this project.
    Differs: no difference.
    """
    Hc, _ = condition(H.double(), damp)
    perm = order(Hc, name, group)
    Hc = Hc[perm][:, perm]
    return Factored(Hc, perm, *factor(Hc))


class HessianExplorer(Explorer):
    """One or more metrics over the same columns, and the controls' state. Source, Differs: this project."""

    _esm = module("math", "dom", "hessian")
    _css = styles("base", "hessian")
    heading = "Hessian explorer"
    hessians = traitlets.Bytes().tag(sync=True)  # float32, metric after metric, row after row
    metric_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    d = traitlets.Int().tag(sync=True)
    group = traitlets.Int(64).tag(sync=True)
    damp = traitlets.Float(0.01).tag(sync=True)
    order = traitlets.Enum(ORDERS, "natural").tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)  # place in the order
    view = traitlets.Enum(("correlation", "size", "factor"), "correlation").tag(sync=True)
    bits = traitlets.Int(3).tag(sync=True)
    metric = traitlets.Int(0).tag(sync=True)

    def __init__(
        self, metrics: dict[str, Tensor], W: Tensor | None, names: Sequence[str], **state: object
    ) -> None:
        self.metrics = metrics
        stack = np.stack([H.numpy() for H in metrics.values()])
        super().__init__(
            hessians=packed(stack),
            metric_names=list(metrics),
            weights=b"" if W is None else packed(W.numpy()),
            names=list(names),
            d=stack.shape[-1],
            **state,
        )

    @property
    def H(self) -> Tensor:
        return next(iter(self.metrics.values()))

    def _run(self, damp: float, name: str) -> Factored:
        return evaluate(self.H, damp, name, self.group)

    def sentence(self) -> str:
        now, more, act = self._run(0.01, "natural"), self._run(0.1, "natural"), self._run(0.01, "act")
        return (
            f"Hessian explorer, {self.about}. With 1 % damping the condition number is "
            f"{show.digits(now.condition)} and feedback in natural order leaves {percent(now.gain)} of the error cost; "
            f"ordered by the diagonal {percent(act.gain)}; with 10 % damping the condition number is "
            f"{show.digits(more.condition)} and {percent(more.gain)} of the cost is left."
        )

    def frames(self) -> list[Frame]:
        return [
            self._frame(damp, name)
            for damp, name in ((0.01, "natural"), (0.01, "act"), (0.1, "natural"), (0.01, "min_pivot"))
        ]

    def _frame(self, damp: float, name: str) -> Frame:
        one = self._run(damp, name)
        numbers = f"condition number {show.digits(one.condition)}, cost left {percent(one.gain)}"
        title = f"damping {100 * damp:g} %, {name.replace('_', ' ')} order: {numbers}"
        fig, (ax_h, ax_cost, ax_row) = show.subplots(9, 2.9, cols=3)
        root = one.H.diagonal().sqrt()
        of_h = ax_h.imshow(
            (one.H / root / root[:, None]).numpy(), cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        fig.colorbar(of_h, ax=ax_h, ticks=(-1, 0, 1), shrink=0.8)
        ax_h.set(title="Correlations of H", xlabel="place in the order")
        places = np.arange(1, self.d + 1)
        ax_cost.semilogy(
            places, one.H.diagonal(), "--", color=show.PALETTE[3], label="without feedback", lw=1
        )
        ax_cost.semilogy(places, one.D, color=show.PALETTE[0], label="with feedback", lw=1)
        ax_cost.set(title="Cost of an error", xlabel="place in the order", ylabel="D, squared inputs")
        ax_cost.legend()
        j = self.column
        ax_row.bar(places[j + 1 :], one.V[j, j + 1 :].numpy(), width=1.0, color=show.PALETTE[0])
        ax_row.axhline(0, color="#555555", lw=0.8)
        ax_row.set(title=f"Feedback of {self.names[int(one.perm[j])]}", xlabel="place in the order",
                   ylabel="V, weight a unit of error")
        largest = float(one.V[j, j + 1 :].abs().max()) if j + 1 < self.d else 0.0
        column = self.names[int(one.perm[j])]
        alt = f"{title}. An error of 1 in {column} moves a later column by at most {show.digits(largest)}."
        return Frame(title, alt, fig)


def hessian_explorer(
    H: Tensor | dict[str, Tensor],
    W: Tensor | None = None,
    names: Sequence[str] | None = None,
    name: str = "a layer",
    group: int = 64,
    bits: int = 3,
    other: Tensor | None = None,
    labels: tuple[str, str] = ("input", "loss"),
) -> HessianExplorer | MetricPair:
    """A widget about one layer's input Hessian, or about two metrics of it; make it the last expression of a cell.

    Above 256 columns, 256 evenly spaced ones are kept (of H, W and names), and the title says so.  With `other` the two
    are compared side by side, each scaled to a mean diagonal of 1; `labels` are their names.

    Shapes:  H [d, d], or several metrics by name; W [rows, d] (8 are used) or None; names d strings; other [d, d] or None.
    Units:   those of the inputs, squared.
    Raises:  ValueError if H or other is not square, symmetric and finite, or W, names or labels do not fit.
    Source:  this project.
    Differs: no difference.
    """
    if other is not None:
        if isinstance(H, dict) or len(set(labels)) != 2:
            raise ValueError(f"with other, give one matrix as H and two different labels; got {type(H).__name__}, {labels}")
        H = dict(zip(labels, (H, other), strict=True))
    metrics = {k: _checked(k, M) for k, M in (H.items() if isinstance(H, dict) else [("input", H)])}
    d = len(next(iter(metrics.values())))
    names = [f"input {i}" for i in range(d)] if names is None else [str(n) for n in names]
    W = None if W is None else torch.atleast_2d(W.detach().float().cpu())[:MOST_ROWS]
    if any(len(M) != d for M in metrics.values()) or len(names) != d or (W is not None and W.shape[1] != d):
        shapes = {
            **{k: tuple(M.shape) for k, M in metrics.items()},
            "names": len(names),
            "W": None if W is None else tuple(W.shape),
        }
        raise ValueError(f"H, W and names must have the same {d} columns; got {shapes}")
    keep = torch.arange(d) if d <= MOST_COLUMNS else torch.linspace(0, d - 1, MOST_COLUMNS).round().long()
    about = (
        f"{name}: {d} inputs" if d <= MOST_COLUMNS else f"{name}: {MOST_COLUMNS} of {d} inputs, evenly spaced"
    )
    metrics = {k: M[keep][:, keep].contiguous() for k, M in metrics.items()}
    n = len(keep)
    return (HessianExplorer if other is None else MetricPair)(
        metrics,
        None if W is None else W[:, keep].contiguous(),
        [names[i] for i in keep.tolist()],
        about=about,
        group=group if n % group == 0 else n,
        bits=bits,
    )


def _checked(name: str, H: Tensor) -> Tensor:
    H = H.detach().float().cpu()
    if H.ndim != 2 or H.shape[0] != H.shape[1] or not torch.isfinite(H).all():
        raise ValueError(f"H ({name}) must be square and finite; got shape {tuple(H.shape)}")
    gap = float((H - H.T).abs().max())
    if gap > 1e-3 * float(H.abs().max()):
        raise ValueError(f"H ({name}) must be symmetric; it differs from its transpose by up to {gap:.3g}")
    return (H + H.T) / 2
