"""Several columns of vectors, one after the other: the inner loop of error feedback and of coordinate descent."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from lowbit_nb import kernels
from lowbit_nb.codebooks.codebook import pieces
from lowbit_nb.codebooks.kmeans import nearest

STRETCH = 64  # columns that are rounded together: what a kernel's registers hold


def stretches(parts: list[int], width: int = STRETCH) -> list[tuple[int, int]]:
    """Columns cut into stretches of one part each, at most `width` long.

    Shapes:  one label a column; returns the first column of each stretch and the one after its last.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> stretches([1, 1, 0, 1]), stretches([1] * 100)
    ([(0, 2), (2, 3), (3, 4)], [(0, 64), (64, 100)])
    """
    cuts, a = [], 0
    for _, run in groupby(parts):
        b = a + len(list(run))
        cuts += [(c, min(c + width, b)) for c in range(a, b, width)]
        a = b
    return cuts


def walk(Wt: Tensor, T: Tensor, V: Tensor, Cs: list[Tensor], held: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Take the nearest vectors of n columns in turn; what each misses, later ones are told: T_i += V_ji (Wt_j - W_hat_j).

    Cs    the codebook, and that of the second stage if there is one, which corrects the first
    held  what the second stage holds until it is its turn; None: nothing

    Shapes:  Wt, T [n, d_out] original and current values, T updated in place to what each column was when it was rounded;
             V [n, n], read above its diagonal; Cs one or two [k, v]; held [n, R, v] with R = ceil(d_out / v); returns
             indices [stages, n, R] and rounded values [n, d_out].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  VPTQ, Alg. 1 (inner loop).
    Differs: on a GPU one kernel for all columns (`kernels.pieces`).
    """
    if kernels.ready(T):
        from lowbit_nb.kernels.nearest import LONGEST
        from lowbit_nb.kernels.pieces import walk as at_once

        if Cs[0].shape[1] <= LONGEST:
            return at_once(Wt, T, V, Cs, held)
    idx, W_hat = [], torch.empty_like(T)
    for j in range(len(T)):
        found, q = choose(T[j], Cs, None if held is None else held[j])
        idx.append(torch.stack(found))
        W_hat[j] = q
        T[j + 1 :].addr_(V[j, j + 1 :], Wt[j] - W_hat[j])
    return torch.stack(idx, 1), W_hat


def choose(t: Tensor, Cs: list[Tensor], held: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
    """The nearest vectors for the pieces of one column: first stage, then second on what is left.

    Shapes:  t [d_out]; Cs one or two [k, v]; held [R, v]; returns one [R] int64 a stage and the value [d_out].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  VPTQ, Sec. 3.1 and Eq. 10.
    Differs: no difference.
    """
    P = pieces(t[None], Cs[0].shape[1])
    found = [nearest(P if held is None else P - held, Cs[0])]
    q = Cs[0][found[0]]
    if len(Cs) == 2:
        found.append(nearest(P - q, Cs[1]))
        q = q + Cs[1][found[1]]
    return found, q.reshape(-1)[: len(t)]
