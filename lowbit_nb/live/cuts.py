"""A layer cut into short vectors, and what codebooks make of it: the numbers of the codebook explorer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb import show
from lowbit_nb.codebooks.codebook import Codebook, pieces
from lowbit_nb.codebooks.kmeans import kmeans, nearest
from lowbit_nb.codebooks.vectors import as_stored
from lowbit_nb.live.base import percent

MOST, LONGEST = 2000, 16  # vectors learned from, and as many others to try the codebook on; numbers in a vector
LARGE = (4096, 4096)  # a layer of a larger model, to set the codebooks' share beside


@dataclass(frozen=True)
class Pieces:
    """Vectors [n, v] float64, their weights [n] (mean 1 over the layer), first row and column of each [n, 2].

    Source: VPTQ, Sec. 3.1. Differs: rows left over at the bottom of a column are not used.
    """

    x: Tensor
    weight: Tensor
    places: Tensor


@dataclass(frozen=True)
class Cut:
    """What is used of a layer: pieces to learn from, others to try codebooks on, and who is asked first to start one.

    Source, Differs: this project.
    """

    mine: Pieces
    others: Pieces
    order: Tensor  # [n]
    shape: tuple[int, int]
    weighted: bool  # importance was given

    def distinct(self, points: Tensor, weight: Tensor, most: int) -> Tensor:
        """The first points, in order, that have weight and differ from one another."""
        found: dict[tuple, int] = {}
        for p, point in zip(self.order.tolist(), points[self.order].tolist(), strict=True):
            if weight[p] > 0:
                found.setdefault(tuple(point), p)
        return points[list(found.values())[:most]]

    def learn(self, points: Tensor, k: int, weighted: bool, iterations: int = 20) -> Tensor:
        """The codebook of some points after so many steps, before it is stored. [k, v]"""
        weight = self.mine.weight if weighted else torch.ones(len(points), dtype=torch.float64)
        start = self.distinct(points, weight, k)
        start = torch.cat([start, start[-1:].expand(k - len(start), -1)])  # fewer: kmeans sees that itself
        return kmeans(points, weight, k, generator=torch.Generator(), start=start, iterations=iterations).C

    def outcome(self, k: int, second: int = 0, weighted: bool = False, iterations: int = 20) -> Outcome:
        """The layer with one codebook, or with two; `iterations` is for a look at k-means before it is done."""
        books, left = [], self.mine.x
        for size in (k, second) if second else (k,):
            books.append(as_stored(self.learn(left, size, weighted, iterations).float()).double())
            left = left - books[-1][nearest(left, books[-1])]
        return Outcome(self, k, second, weighted, tuple(books))


@dataclass(frozen=True)
class Outcome:
    """What one or two codebooks, as stored, make of the pieces. Source: VPTQ, Sec. 3. Differs: no error feedback."""

    cut: Cut
    k: int
    second: int
    weighted: bool
    books: tuple[Tensor, ...]  # [k, v] each

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The index of each point in each stage [n], and what is left over [n, v]."""
        found = []
        for C in self.books:
            found.append(nearest(x, C))
            x = x - C[found[-1]]
        return found, x

    def mse(self, weighted: bool = False, of: str = "mine") -> tuple[float, float]:
        """Mean squared error of the pieces learned from, or of the others, and as a share of the mean square."""
        here = getattr(self.cut, of)
        weight, left = here.weight if weighted else torch.ones_like(here.weight), self.encode(here.x)[1]
        error, square = ((weight * t.square().sum(1)).sum() for t in (left, here.x))
        return float(error / weight.sum() / left.shape[1]), float(error / square)

    @property
    def entropy(self) -> tuple[float, ...]:
        """Bits that an index of each stage carries."""
        shares = [torch.bincount(idx).double() / len(idx) for idx in self.encode(self.cut.mine.x)[0]]
        return tuple(float(-(p[p > 0] * p[p > 0].log2()).sum()) for p in shares)

    def bits(self, shape: tuple[int, int] | None = None) -> float:
        """Bits a weight of a layer of that shape (or its own), codebooks counted."""
        return Codebook(self.books[0].shape[1], self.k, self.second).size(*(shape or self.cut.shape)).per_weight

    @property
    def words(self) -> str:
        wide, tried = self.cut.weighted, len(self.cut.others.x)
        how = (", by importance" if self.weighted else ", all alike") if wide else ""
        told = [f"{word} {percent(self.mse(w)[1])}" + (f" (of others {percent(self.mse(w, 'others')[1])})" if tried else "")
                for word, w in (("error", False), ("weighted", True))[: 1 + wide]]
        name = f"{self.k} + {self.second}" if self.second else str(self.k)
        here, large = (show.digits(self.bits(shape)) for shape in (None, LARGE))
        return f"{name} vectors{how}: {', '.join(told)}, {here} bits a weight here and {large} in a 4096 x 4096 layer"


def cut(W: Tensor, importance: Tensor | None, v: int, generator: torch.Generator) -> Cut:
    """Vectors of v rows of one column, drawn at random.

    Shapes:  W [d_out, d_in]; importance [d_in] or None.
    Units:   of the weights; importance of any scale.
    Raises:  ValueError for shapes or values that do not fit.
    Source:  VPTQ, Sec. 3.1.
    Differs: at most 2000 vectors to learn from, and 2000 others.
    """
    if W.ndim != 2 or not torch.isfinite(W).all() or not 2 <= v <= min(LONGEST, len(W)):
        raise ValueError(f"W must be [d_out, d_in], finite, and v={v} from 2 to {LONGEST} and to d_out; W is {list(W.shape)}")
    d_out, d_in = W.shape
    h = torch.ones(d_in) if importance is None else importance.detach().double().cpu()
    if h.shape != (d_in,) or not torch.isfinite(h).all() or bool((h < 0).any()):
        raise ValueError(f"importance must be [{d_in}], finite and not negative; it is {list(h.shape)}")
    rows = d_out // v
    points = pieces(W.T[:, : rows * v] + 0.0, v)  # + 0.0: no negative zeros
    drawn = torch.randperm(len(points), generator=generator)
    if not h[drawn[:MOST] // rows].sum() > 0:
        raise ValueError("importance is zero for every vector used; leave it out, or give diag(H) of live inputs")
    h = (h / h[drawn[:MOST] // rows].mean()).float().double()

    def taken(at: Tensor) -> Pieces:
        return Pieces(points[at].double(), h[at // rows], torch.stack([at % rows * v, at // rows], 1))

    mine, others = (taken(at.sort().values) for at in (drawn[:MOST], drawn[MOST : 2 * MOST]))
    return Cut(mine, others, torch.randperm(len(mine.x), generator=generator), (d_out, d_in), importance is not None)
