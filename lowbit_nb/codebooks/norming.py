"""Bring the columns of a weight to one scale, and the metric along with them.

With W = s * W' + m, column by column, the layer's error is the same number in both worlds:

    E = s * E'        tr(E H E.T) = tr(E' H' E'.T)        H' = diag(s) H diag(s)

m shifts the cloud of pieces and takes no part in the error.  One codebook can then serve all columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("none", "std", "mean-std", "minmax")


@dataclass(frozen=True)
class Normalised:
    """A weight at one scale, its metric, and the way back: W = s * W' + m.

    Source: VPTQ code (enable_norm). Differs: H is rescaled.
    """

    W: Tensor  # [d_out, d_in]
    H: Tensor  # [d_in, d_in]
    s: Tensor | None  # [d_in], numbers that float16 can hold
    m: Tensor | None
    reference: bool = False

    def metric(self, perm: Tensor) -> Tensor:
        """The metric that feedback works under: H, unless the published code's second slip is asked for.

        Shapes:  perm [d_in] visiting order; returns [d_in, d_in].
        Units:   those of H.
        Raises:  nothing.
        Source:  VPTQ code, with an inverse made in the order of diag(H) and a run in natural order.
        Differs: only with reference=True.
        """
        natural = torch.arange(len(perm), device=perm.device)
        return unsorted_factor(self.H) if self.reference and torch.equal(perm, natural) else self.H


def normalise(W: Tensor, H: Tensor, norm: str, reference: bool = False) -> Normalised:
    """Scale and bias of every column, the weight without them, and the metric that belongs to it.

    none      as it is                                std     s: root mean square
    mean-std  m: mean, s: standard deviation          minmax  m: smallest, s: largest - smallest

    Shapes:  W [d_out, d_in]; H [d_in, d_in].
    Units:   W' has none; H' those of the loss.
    Raises:  ValueError for an unknown norm or a scale that float16 cannot hold.
    Source:  VPTQ code (norm_dim = 0); mean-std until 2024, minmax since.
    Differs: H' = diag(s) H diag(s). With reference=True H stays that of the original columns, as in the code: then the loss
             of one world is minimised in the other.

    >>> n = normalise(torch.tensor([[3.0, 1.0], [-3.0, 1.0]]), torch.eye(2), "std")
    >>> n.W.tolist(), n.s.tolist(), n.H.diagonal().tolist()
    ([[1.0, 1.0], [-1.0, 1.0]], [3.0, 1.0], [9.0, 1.0])
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; use one of {', '.join(NORMS)}")
    if norm == "none":
        return Normalised(W, H, None, None, reference)
    m = {"std": None, "mean-std": W.mean(0), "minmax": W.amin(0)}[norm]
    m = None if m is None else m.half().to(W.dtype)
    centred = W if m is None else W - m
    s = W.amax(0) - W.amin(0) if norm == "minmax" else centred.square().mean(0).sqrt()
    s = torch.where(s > 0, s, 1.0).half().to(W.dtype)
    if not (torch.isfinite(s).all() and (s > 0).all() and (m is None or torch.isfinite(m).all())):
        raise ValueError(f"column scales from {float(s.min()):.3g} to {float(s.max()):.3g} do not fit float16; use norm='none'")
    return Normalised(centred / s, H if reference else H * s * s[:, None], s, m, reference)


def unsorted_factor(H: Tensor) -> Tensor:
    """The metric that feedback obeys without knowing it when the factor of the sorted inverse is put back in natural order.

    With sorted inv(H) = U.T U, rows and columns of U are put back where they came from and only the upper half is read: that
    is the factor of another inverse.

    Shapes:  H [d_in, d_in]; returns [d_in, d_in].
    Units:   those of H.
    Raises:  nothing.
    Source:  VPTQ code, inverse Hessian made with order, run without.
    Differs: no difference.
    """
    perm = H.diagonal().argsort(descending=True, stable=True)
    inverse = torch.linalg.inv(H.double())[perm[:, None], perm]
    U = torch.linalg.cholesky(inverse, upper=True)
    home = perm.argsort()
    U = U[home[:, None], home].triu()
    return torch.linalg.inv(U.T @ U).to(H.dtype)
