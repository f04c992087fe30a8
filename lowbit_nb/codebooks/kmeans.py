"""Weighted k-means: a few vectors that stand for many, where some of the many matter more.

    minimise  sum_i w_i |x_i - C[a_i]|**2     over the codebook C [k, v] and the assignment a [n]

Lloyd's two half-steps in turn: every point goes to its nearest vector (weights play no part), every vector goes to the
weighted mean of its points.  Neither can raise the sum.  Sums run over sorted segments in float64, so the same seed gives the
same codebook on every run, on a GPU too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lowbit_nb import kernels

STARTS = ("random", "kmeans++", "gaussian")
SCORES = {"cpu": 2**18, "cuda": 2**27}  # scores held at a time: what fits the second-level cache, or half a gigabyte


@dataclass(frozen=True)
class Clusters:
    """A codebook and how it came about.

    C        [k, v]
    inertia  the weighted squared error after every assignment; it never rises
    drawn    how many points were looked at

    Source: this project. Differs: no difference.
    """

    C: Tensor
    inertia: tuple[float, ...]
    drawn: int


def nearest(points: Tensor, centroids: Tensor, weights: Tensor | None = None) -> Tensor:
    """The index of the nearest vector, argmin_i sum_c weights_c (x_c - C_ic)**2; of equal ones the first.

    |x|**2 is the same for all i, so what is compared is x . C_i - |C_i|**2 / 2, a few rows at a time.

    Shapes:  points [n, v]; centroids [k, v]; weights of coordinates [n, v], [v] or None (all 1); returns [n] int64.
    Units:   those of the points.
    Raises:  ValueError if the vectors' lengths differ.
    Source:  Lloyd's assignment step; the codeword search of VPTQ, Eq. 8.
    Differs: distances are never kept: memory is bounded whatever n and k; on a GPU one kernel (`kernels.nearest`).

    >>> nearest(torch.tensor([[0.9, 0.0], [0.2, 3.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])).tolist()
    [1, 2]
    """
    if points.shape[1] != centroids.shape[1]:
        raise ValueError(f"points have {points.shape[1]} coordinates and codebook vectors {centroids.shape[1]}")
    if kernels.ready(points):
        from lowbit_nb.kernels import nearest as kernel

        if points.shape[1] <= kernel.LONGEST:
            return kernel.nearest(points, centroids, weights)
    out = torch.empty(len(points), dtype=torch.int64, device=points.device)
    Ct, half = centroids.T, centroids.square() / 2
    weights = None if weights is None else weights.expand_as(points)
    rows = max(1, SCORES.get(points.device.type, 2**18) // len(centroids))
    for i in range(0, len(points), rows):
        x = points[i : i + rows]
        if weights is None:
            scores = torch.addmm(half.sum(1), x, Ct, beta=-1)
        else:
            w = weights[i : i + rows]
            scores = torch.addmm(w @ half.T, w * x, Ct, beta=-1)
        out[i : i + rows] = scores.max(1).indices
    return out


def kmeans(points: Tensor, weights: Tensor, k: int, *, generator: torch.Generator, start: str | Tensor = "random",
           iterations: int = 20, tol: float = 1e-4, sample: int | None = None, metric: Tensor | None = None) -> Clusters:
    """A codebook of k vectors by Lloyd's iteration.

    start   random: k of the points; kmeans++: far from one another; gaussian: k-means of standard normal vectors, stretched to
            the points' mean and spread; or a codebook to go on from
    tol     stop when an iteration lowers the error by less than this share of it (0: when it no longer falls)
    sample  look at `sample` points a vector, drawn in proportion to their weights, each then of weight 1
    metric  what an error in each coordinate of a point counts, beside the point's weight; None: all the same

    Shapes:  points [n, v]; weights [n], not negative; metric [n, v], positive, or None; returns C [k, v].
    Units:   those of the points.
    Raises:  ValueError for an unknown start, weights that are negative or do not fit, points that are not finite, or k < 1.
    Source:  VPTQ, Sec. 3.2 (weighted k-means, random start, 100 iterations through cuML); k-means++ by Arthur and
             Vassilvitskii.
    Differs: deterministic; stops when little is gained; points of no weight are left out; a vector that lost all its points
             moves to the point that is worst off.
    """
    _check(points, weights, k, start)
    live = weights > 0
    live, w = (live, weights) if bool(live.any()) else (~live, torch.ones_like(weights))
    x, w, metric = points[live], w[live], None if metric is None else metric[live]
    if (few := _distinct(x, k)) is not None:
        return Clusters(few, (0.0,), len(x))
    if sample is not None and sample * k < len(x):
        drawn = _draw(w, sample * k, generator)
        x, w, metric = x[drawn], torch.ones_like(w[drawn]), None if metric is None else metric[drawn]
    C = start.to(x).clone() if isinstance(start, Tensor) else _start(x, w, k, start, generator)
    inertia: list[float] = []
    for step in range(iterations + 1):
        idx = nearest(x, C, metric)
        cost = (x - C[idx]).square().mul_(1.0 if metric is None else metric).sum(1) * w
        inertia.append(float(cost.sum(dtype=torch.float64)))
        if step == iterations or (step and inertia[-2] - inertia[-1] <= tol * inertia[-2]):
            break
        C = means(x, w, idx, C, cost, metric)
    return Clusters(C, tuple(inertia), len(x))


def means(x: Tensor, w: Tensor, idx: Tensor, C: Tensor, cost: Tensor | None = None, metric: Tensor | None = None) -> Tensor:
    """Lloyd's second half-step: every vector becomes the weighted mean of its points.

    Shapes:  x, metric [n, v]; w, idx [n]; C [k, v], returned anew; cost [n] or None: what each point adds to the error.
    Units:   those of the points.
    Raises:  nothing.
    Source:  Lloyd's update step.
    Differs: with `cost`, vectors without points move to the points of greatest cost; without, they stay.
    """
    per = w[:, None] if metric is None else w[:, None] * metric
    sums = Segments(idx, len(C)).sum(torch.cat([x * per, per], 1))
    total, sums = sums[:, x.shape[1] :], sums[:, : x.shape[1]]
    empty = total[:, 0] <= 0
    mean = (sums / total.masked_fill(empty[:, None], 1.0)).to(C.dtype)
    C = torch.where(empty[:, None], C, mean)
    if cost is not None and bool(empty.any()):
        _move(C, empty.nonzero()[:, 0], x, cost)
    return C


class Segments:
    """Which rows share an index: sorted once, summed as often as needed, in one fixed order and in float64.

    Source: this project. Differs: adding into place would depend on the order in which a GPU's threads arrive.

    >>> Segments(torch.tensor([2, 0, 2]), 3).sum(torch.tensor([[1.0], [2.0], [4.0]])).tolist()
    [[2.0], [0.0], [5.0]]
    """

    def __init__(self, idx: Tensor, k: int) -> None:
        keys = idx.to(torch.uint8) if k <= 256 else idx.to(torch.int32)
        self.order, self.lengths = keys.argsort(stable=True), torch.bincount(idx, minlength=k)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of each segment's rows.

        Shapes:  values [n, m]; returns [k, m] float64.
        Units:   those of the values.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return torch.segment_reduce(values[self.order].double(), "sum", lengths=self.lengths, unsafe=True)


@lru_cache(maxsize=16)
def universal(k: int, v: int, device: str = "cpu") -> Tensor:
    """One codebook for standard normal vectors, the same for every layer.

    Shapes:  returns [k, v] float32.
    Units:   standard deviations.
    Raises:  nothing.
    Source:  this project; columns of unit spread are nearly normal.
    Differs: above 4096 vectors plain draws: learning them would cost more than it saves.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((32 if k <= 4096 else 1) * k, v, generator=generator).to(device)
    return kmeans(x, torch.ones(len(x), device=device), k, generator=generator, iterations=10).C


def _start(x: Tensor, w: Tensor, k: int, name: str, generator: torch.Generator) -> Tensor:
    if name == "random":
        return x[torch.randperm(len(x), generator=generator)[:k].to(x.device)].clone()
    if name == "gaussian":
        share = (w / w.sum(dtype=torch.float64)).to(x.dtype)[:, None]
        mean = (share * x).sum(0)
        return mean + (share * (x - mean).square()).sum(0).sqrt() * universal(k, x.shape[1], str(x.device)).to(x)
    C, far = x.new_empty(k, x.shape[1]), torch.full_like(w, torch.inf)
    for i in range(k):  # by squared distance from the vectors so far
        chances = (w if i == 0 else w * far).double().cumsum(0)
        at = torch.rand((), generator=generator, dtype=torch.float64).to(x.device) * chances[-1]
        C[i] = x[torch.searchsorted(chances, at, right=True).clamp(max=len(x) - 1)]
        far = torch.minimum(far, (x - C[i]).square().sum(1))
    return C


def _draw(w: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The numbers of n points, with repetition, in proportion to their weights."""
    chances = w.double().cumsum(0)
    at = torch.rand(n, generator=generator, dtype=torch.float64).to(w.device) * chances[-1]
    return torch.searchsorted(chances, at, right=True).clamp(max=len(w) - 1)


def _distinct(x: Tensor, k: int) -> Tensor | None:
    """The points themselves, the last one repeated, if no more than k of them are distinct."""
    if len(x) > k and len(x[: 4 * k + 4].unique(dim=0)) > k:
        return None
    few = x.unique(dim=0)
    return None if len(few) > k else torch.cat([few, few[-1:].expand(k - len(few), -1)])


def _move(C: Tensor, free: Tensor, x: Tensor, cost: Tensor) -> None:
    """Put the free vectors, in place, on the costliest points that differ from one another."""
    worst = cost.sort(descending=True, stable=True).indices[: 4 * len(free)]
    worst = worst[cost[worst] > 0]
    _, which = x[worst].unique(dim=0, return_inverse=True)
    first = torch.full((len(worst) + 1,), len(worst), dtype=torch.int64, device=x.device)
    first = first.scatter_reduce(0, which, torch.arange(len(worst), device=x.device), "amin")
    chosen = worst[first[first < len(worst)].sort().values][: len(free)]
    C[free[: len(chosen)]] = x[chosen]


def _check(points: Tensor, weights: Tensor, k: int, start: str | Tensor) -> None:
    if isinstance(start, str) and start not in STARTS:
        raise ValueError(f"start={start!r} is unknown; use one of {', '.join(STARTS)}, or a codebook [k, v]")
    if isinstance(start, Tensor) and start.shape != (k, points.shape[1]):
        raise ValueError(f"the codebook to start from is {list(start.shape)}; k={k} vectors of {points.shape[1]} are asked for")
    if k < 1 or not len(points) or not torch.isfinite(points).all():
        raise ValueError(f"k={k} vectors for {len(points)} points: there must be at least one of each, and all points finite")
    if weights.shape != points.shape[:1] or not torch.isfinite(weights).all() or bool((weights < 0).any()):
        raise ValueError(f"weights must be {len(points)} finite numbers, none negative; they are {list(weights.shape)}, "
                         f"from {float(weights.min()):.3g}" if weights.numel() else "weights are empty")
