"""Error feedback with vectors: "round this column" means take the nearest codebook vector for every piece of it.

Pieces run along the output rows of one column.  All rows of a layer share one H, so inside a column every number costs the
same, and the plain nearest vector is exactly the best one; only the codebook needs to know which columns matter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lowbit_nb.codebooks.codebook import OUTLIERS, Codebook, Stage, pieces
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.codebooks.walk import choose, stretches, walk

Learn = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]  # points, weights, k, a codebook to go on from -> C [k, v]
Books = dict[int, Tensor]  # by label: C [k, v], numbers that float16 can hold


class VectorRounder:
    """Take the nearest vector of the column's part, and of its second stage if there is one, and keep the indices.

    label  [d_in] in visiting order           learn  how a codebook is made of points and weights (`kmeans`)
    weigh  from the cost D of every column [d_in], in visiting order, to the weight of its pieces
    books, residual   codebooks that are there already; what is missing is learned before the first column

    Source: VPTQ, Alg. 1. Differs: codebooks are rounded to float16 first, so what is propagated is what is stored.
    """

    span = 0

    def __init__(self, book: Codebook, label: Tensor, learn: Learn, weigh: Callable[[Tensor], Tensor],
                 books: Books | None = None, residual: Books | None = None) -> None:
        self.book, self.label, self.learn, self.weigh = book, label, learn, weigh
        self.books, self.residual = books, residual or {}
        self.part = label.tolist()
        self.idx: list[list[Tensor]] = [[] for _ in self.part]  # by column: one tensor [R] a stage

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Learn codebooks from the weights, unless they are given.

        Shapes:  Wt [d_in, d_out]; D [d_in].
        Units:   those of the weight; D of a squared error.
        Raises:  ValueError as `kmeans`.
        Source:  VPTQ, Sec. 3.2.
        Differs: no difference.
        """
        self.weights = self.weigh(D)
        self.now, self.rounded = torch.empty_like(Wt), torch.empty_like(Wt)
        self.books = self.books or self._learned(Wt, self.book.k, {}, True)
        self.C = {part: C.to(Wt) for part, C in self.books.items()}
        self.C_res = {part: C.to(Wt) for part, C in self.residual.items()}

    def start(self, j: int, now: Tensor) -> None:
        """Nothing: no groups of rows and columns wait for their rulers."""

    def round(self, j: int, t: Tensor) -> Tensor:
        """The nearest vectors for all pieces of column j.

        Shapes:  t [d_out]; returns [d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  VPTQ, Sec. 3.1 and Eq. 10.
        Differs: no difference.
        """
        self.idx[j], self.rounded[j] = choose(t, self._stages(self.part[j]))
        self.now[j] = t
        return self.rounded[j]

    def stretch(self, j: int, Wt: Tensor, T: Tensor, V: Tensor) -> Tensor:
        """The nearest vectors for several columns, one column after the other (`walk`).

        Shapes:  Wt, T [n, d_out]; V [n, n]; returns [n, d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  VPTQ, Alg. 1.
        Differs: no difference.
        """
        W_hat = self.rounded[j : j + len(T)]
        for a, b in stretches(self.part[j : j + len(T)]):
            idx, W_hat[a:b] = walk(Wt[a:b], T[a:b], V[a:b, a:b], self._stages(self.part[j + a]))
            self.idx[j + a : j + b] = [list(column) for column in idx.unbind(1)]
            T[b:].addmm_(V[a:b, b:].T, Wt[a:b] - W_hat[a:b])
        self.now[j : j + len(T)] = T
        return W_hat

    def _stages(self, part: int) -> list[Tensor]:
        """The codebooks of a part, one a stage."""
        return [books[part] for books in (self.C, self.C_res) if part in books]

    def again(self) -> VectorRounder:
        """A rounder whose codebooks are learned, from the present ones on, from the columns as they were when rounded.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError as `kmeans`.
        Source:  this project.
        Differs: VPTQ learns from the original weights only.
        """
        return self._next(self._learned(self.now, self.book.k, self.C, True), self.residual)

    def with_residual(self) -> VectorRounder:
        """A rounder with a second stage, learned from what the first left over of the columns as they were when rounded.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError as `kmeans`.
        Source:  VPTQ code: the second pass begins again at the original weights, with both stages.
        Differs: the paper's Alg. 2 reads as a second run on W - W_hat.
        """
        return self._next(self.books, self._learned(self.now - self.rounded, self.book.k_res, {}, False))

    def _next(self, books: Books, residual: Books) -> VectorRounder:
        return VectorRounder(self.book, self.label, self.learn, self.weigh, books, residual)

    def _learned(self, At: Tensor, k: int, begin: Books, outliers: bool) -> Books:
        """Codebooks for every part, from columns At [d_in, d_out]."""
        books = {}
        for part in sorted(set(self.part)):
            if part == OUTLIERS and not outliers:
                continue
            v, size = (self.book.v_out, self.book.k_out) if part == OUTLIERS else (self.book.v, k)
            mine = self.label == part
            points = pieces(At[mine], v)
            weights = self.weights[mine].repeat_interleave(len(points) // int(mine.sum()))
            books[part] = as_stored(self.learn(points, weights, size, begin.get(part)))
        return books

    def result(self, perm: Tensor, s: Tensor | None, m: Tensor | None) -> VectorWeight:
        """The stored form, in the weight's own column order.

        Shapes:  perm [d_in] visiting order; s, m [d_in] or None: scale and bias to keep beside.
        Units:   as `VectorWeight`.
        Raises:  ValueError as `VectorWeight`.
        Source:  VPTQ code (absorb_perm).
        Differs: always absorbed; labels say which columns are outliers or in which group.
        """
        home = perm.argsort()
        label = self.label[home]
        order = home.tolist()
        stage = partial(_stage, order=order, label=label, idx=self.idx)
        groups = [part for part in self.books if part != OUTLIERS]
        main = stage(0, [self.books[g] for g in groups], label != OUTLIERS)
        residual = stage(1, [self.residual[g] for g in groups], label != OUTLIERS) if self.residual else None
        outlier = stage(0, [self.books[OUTLIERS]], label == OUTLIERS) if OUTLIERS in self.books else None
        one = outlier is None and len(groups) == 1
        return VectorWeight(self.now.shape[1], main, residual, outlier, *(None if t is None else t.half() for t in (s, m)),
                            None if one else label)


def as_stored(C: Tensor) -> Tensor:
    """A codebook rounded to float16, its values still in its own type.

    Shapes:  any.
    Units:   unchanged.
    Raises:  ValueError if a number does not fit.
    Source:  this project.
    Differs: no difference.
    """
    rounded = C.half()
    if not torch.isfinite(rounded).all():
        raise ValueError(f"a codebook number of {float(C.abs().max()):.3g} does not fit float16; use norm='std'")
    return rounded.to(C.dtype)


def _stage(n: int, books: list[Tensor], mine: Tensor, order: list[int], label: Tensor, idx: list[list[Tensor]]) -> Stage:
    """Codebooks and indices of one stage, columns in the weight's order."""
    columns = [idx[order[c]][n] for c in mine.nonzero()[:, 0].tolist()]
    return Stage(torch.stack(books).half(), torch.stack(columns, 1).to(torch.int32))
