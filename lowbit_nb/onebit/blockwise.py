"""Rounding that decides a block of columns at once, inside the same error-feedback loop.

`feedback` hands a rounder the current values of a block before its first column: the best real values for it, given all
columns before.  Whatever is decided for the block as a whole, the later columns make up for it as well as they can.  BiLLM
and ARB-LLM make up for less; that is the same loop under another metric (`diagonal`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.hessian import factor
from lowbit_nb.stored import StoredWeight

FEEDBACKS = ("exact", "diagonal", "none")
Decide = Callable[[Tensor, Tensor], StoredWeight]  # a block's values [d_out, width] and costs [width] -> its stored form


class BlockRounder:
    """Hand a block's current values and costs to `decide` and keep the stored form that comes back.

    Source: BiLLM, Alg. 1. Differs: no difference.
    """

    def __init__(self, span: int, decide: Decide) -> None:
        self.span, self.decide = span, decide
        self.parts: list[StoredWeight] = []

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        self.D = D

    def start(self, j: int, now: Tensor) -> None:
        """Decide the block that begins at column j.

        Shapes:  now [width, d_out]; the last block may be narrower than span.
        Units:   those of the weight.
        Raises:  ValueError as `decide`.
        Source:  BiLLM, Alg. 1.
        Differs: no difference.
        """
        self.parts.append(self.decide(now.T, self.D[j : j + len(now)]))
        self.decided = self.parts[-1].dequantize().T.to(now.dtype).contiguous()

    def round(self, j: int, t: Tensor) -> Tensor:
        return self.decided[j % self.span]

    def stretch(self, j: int, W: Tensor, T: Tensor, V: Tensor) -> Tensor:
        """Several columns of the block in one go.

        Shapes:  W, T [k, d_out] original and current values; V [k, k]; returns [k, d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        W_hat = self.decided[j % self.span : j % self.span + len(W)]
        T += V.triu(1).T @ (W - W_hat)
        return W_hat


def compensating(H: Tensor, feedback: str, span: int) -> Tensor:
    """The metric under which error feedback makes up for as much as the name says.

    exact     H: all that later columns can
    diagonal  what BiLLM and ARB-LLM do (`diagonal`)
    none      diag(D): nothing, but every column keeps its cost

    Shapes:  H [d_in, d_in] conditioned; returns the same.
    Units:   those of H.
    Raises:  ValueError for an unknown name.
    Source:  this project.
    Differs: no difference.
    """
    if feedback not in FEEDBACKS:
        raise ValueError(f"feedback={feedback!r} is unknown; use one of {', '.join(FEEDBACKS)}")
    if feedback == "exact":
        return H
    return diagonal(H, span) if feedback == "diagonal" else torch.diag(factor(H)[1])


def diagonal(H: Tensor, span: int) -> Tensor:
    """The metric whose exact feedback is the block feedback of BiLLM and ARB-LLM.

    With U the Cholesky factor of inv(H), they move later columns by (W_B - W_hat_B) diag(U_BB)^-1 U_BR, where the best move
    is (W_B - W_hat_B) U_BB^-1 U_BR.  In H = V diag(D) V.T, leaving out what happens inside a block means to put identities
    in the place of the diagonal blocks of inv(V):  P = inv(V) so changed,  H' = inv(P) diag(D) inv(P).T.

    Shapes:  H [d_in, d_in] conditioned; returns the same.
    Units:   those of H.
    Raises:  ValueError if H is not positive definite.
    Source:  BiLLM code (bigptq.py); ARB-LLM code.
    Differs: no difference: a shortcut of the update, read as an exact update under another metric.
    """
    V, D = factor(H.double())
    one = torch.eye(len(H), dtype=V.dtype, device=H.device)
    P = torch.linalg.solve_triangular(V, one, upper=True, unitriangular=True)
    for a in range(0, len(H), span):
        b = min(a + span, len(H))
        P[a:b, a:b] = one[a:b, a:b]
    V = torch.linalg.solve_triangular(P, one, upper=True, unitriangular=True)
    return ((V * D) @ V.T).to(H.dtype)
