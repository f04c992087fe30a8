"""What feedback leaves to gain at the same size: better vectors for the pieces, better pieces for the vectors.

    fit       all codebooks at once, indices fixed: a least-squares problem, by conjugate gradients
    reassign  all indices, one column at a time, codebooks fixed: exact coordinate descent

Neither can raise tr((W_hat - W) H (W_hat - W).T).  Both work on the normalised weight and its metric (`norming`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowbit_nb import kernels
from lowbit_nb.codebooks.codebook import OUTLIERS, Stage, pieces
from lowbit_nb.codebooks.kmeans import Segments
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.codebooks.vectors import as_stored
from lowbit_nb.codebooks.walk import STRETCH, stretches, walk


class Spread:
    """The linear map from all codebooks of a weight to the weight, indices fixed, and its transpose.

    Source: this project. Differs: no difference.
    """

    def __init__(self, weight: VectorWeight) -> None:
        self.d_out, self.d_in = weight.shape
        self.parts = []
        for name, columns, stage in weight.stages():
            key, (G, k, v) = weight.uses(columns, stage), stage.C.shape
            self.parts.append((name, columns, key, (G, k, v), Segments(key, G * k)))

    def weight(self, Cs: list[Tensor]) -> Tensor:
        """The weight that codebooks make, transposed.

        Shapes:  one C [G, k, v] a stage; returns [d_in, d_out].
        Units:   those of the codebooks.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        Qt = Cs[0].new_zeros(self.d_in, self.d_out)
        for C, (_, columns, key, (_, _, v), _) in zip(Cs, self.parts, strict=True):
            Qt[columns] += C.reshape(-1, v)[key].reshape(len(columns), -1)[:, : self.d_out]
        return Qt

    def codebooks(self, Gt: Tensor) -> list[Tensor]:
        """The transpose: every vector gets the sum over the pieces that use it.

        Shapes:  Gt [d_in, d_out]; returns one [G, k, v] a stage.
        Units:   those of Gt.
        Raises:  nothing.
        Source:  this project.
        Differs: sorted segments, so the same sum on every run.
        """
        return [segments.sum(pieces(Gt[columns], shape[2])).reshape(shape).to(Gt.dtype)
                for _, columns, _, shape, segments in self.parts]


def fit(weight: VectorWeight, W: Tensor, H: Tensor, iterations: int = 10) -> VectorWeight:
    """The codebooks that make the layer's error least for the indices as they are, rounded to float16.

    Shapes:  W [d_out, d_in] normalised, H [d_in, d_in] its metric.
    Units:   those of the normalised weight.
    Raises:  ValueError if a number does not fit float16.
    Source:  this project; GPTVQ (M-step) takes gradient steps instead.
    Differs: kept only if the error is lower once the numbers are rounded.
    """
    spread, Wt = Spread(weight), W.T.contiguous()
    was = [stage.C.to(W.dtype) for _, _, stage in weight.stages()]
    now = [as_stored(C) for C in least_squares(spread, was, Wt, H, iterations)]
    if _loss(spread.weight(now), Wt, H) >= _loss(spread.weight(was), Wt, H):
        return weight
    return replace(weight, **{name: Stage(C.half(), getattr(weight, name).idx)
                              for C, (name, *_) in zip(now, spread.parts, strict=True)})


def least_squares(spread: Spread, Cs: list[Tensor], Wt: Tensor, H: Tensor, iterations: int, tol: float = 1e-8) -> list[Tensor]:
    """Codebooks that minimise tr((Q(C) - W) H (Q(C) - W).T): conjugate gradients on the normal equations, from Cs on.

    Vectors that no piece uses stay where they are.

    Shapes:  Cs one [G, k, v] a stage; Wt [d_in, d_out]; H [d_in, d_in].
    Units:   those of Wt; tol is the share of the first residual (in the preconditioner's norm) at which to stop.
    Raises:  nothing.
    Source:  conjugate gradients with a diagonal preconditioner: the weight of each vector's pieces under diag(H).
    Differs: no difference.
    """
    held = spread.codebooks(H.diagonal()[:, None].expand_as(Wt))
    used = [h > 0 for h in held]
    r = _where(used, spread.codebooks(H @ (Wt - spread.weight(Cs))))
    p, rz, first = [torch.zeros_like(C) for C in Cs], 1.0, None
    for _ in range(iterations):
        z = [x / h.where(u, 1.0) for x, h, u in zip(r, held, used, strict=True)]
        was, rz = rz, _dot(r, z)
        first = rz if first is None else first
        if rz <= tol**2 * first:
            break
        p = [a + rz / was * b for a, b in zip(z, p, strict=True)]
        Ap = _where(used, spread.codebooks(H @ spread.weight(p)))
        step = rz / _dot(p, Ap)
        Cs = [C + step * a for C, a in zip(Cs, p, strict=True)]
        r = [a - step * b for a, b in zip(r, Ap, strict=True)]
    return Cs


def reassign(weight: VectorWeight, W: Tensor, H: Tensor) -> VectorWeight:
    """One sweep over the columns: each takes the nearest vectors to where it would be best, all others as they are.

    The best place of column j, given the rest, is q_j + (H E.T)_j / H_jj with E = W - W_hat.

    Shapes:  W [d_out, d_in] normalised, H [d_in, d_in] its metric.
    Units:   those of the normalised weight.
    Raises:  nothing.
    Source:  coordinate descent as in QuIP#'s tuning passes; exact here, since all numbers of a column cost the same.
    Differs: where there are two stages, each in turn given the other; on a GPU a stretch of columns at a time.
    """
    Wt, h, books = W.T.contiguous(), H.diagonal(), _books(weight, W.dtype)
    Et, place = Wt - weight.normalised().T.to(W.dtype), torch.empty_like(h, dtype=torch.int64)
    idx = {name: stage.idx.T.contiguous() for name, _, stage in weight.stages()}  # [n, R]
    for _, columns, _ in weight.stages():
        place[columns] = torch.arange(len(columns), device=h.device)
    order = h.argsort(descending=True, stable=True)
    label = [1] * len(h) if weight.label is None else weight.label[order].tolist()
    for a, b in stretches(label, STRETCH if kernels.ready(W) else 1):
        J, Cs = order[a:b], list(books[label[a]].values())
        held = Cs[1][idx["residual"][place[J]].long()] if len(Cs) == 2 else None
        Q = Wt[J] - Et[J]
        found, Q = walk(Q, Q + H[J] @ Et / h[J, None], H[J[:, None], J] / h[J], Cs, held)
        for name, i in zip(books[label[a]], found, strict=True):
            idx[name][place[J]] = i.to(torch.int32)
        Et[J] = Wt[J] - Q
    return replace(weight, **{name: Stage(getattr(weight, name).C, i.T.contiguous()) for name, i in idx.items()})


def _books(weight: VectorWeight, dtype: torch.dtype) -> dict[int, dict[str, Tensor]]:
    """By part, the codebook of each of its stages."""
    books: dict[int, dict[str, Tensor]] = {}
    for name, _, stage in weight.stages():
        for g, C in enumerate(stage.C.to(dtype)):
            books.setdefault(OUTLIERS if name == "outlier" else g + 1, {})[name] = C
    return books


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _where(used: list[Tensor], Cs: list[Tensor]) -> list[Tensor]:
    return [C * u for C, u in zip(Cs, used, strict=True)]


def _loss(Qt: Tensor, Wt: Tensor, H: Tensor) -> float:
    Et = Qt - Wt
    return float(((H @ Et) * Et).sum(dtype=torch.float64))
