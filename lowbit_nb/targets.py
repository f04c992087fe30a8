"""What a layer should be rounded *to* when its inputs are already wrong.

Behind quantized blocks a layer is handed Xh instead of X.  The weight that gives back the original output from the inputs that
really come is not W but

    W* = argmin |X W.T - Xh W*.T|**2 = W + W C inv(H)        C = (X - Xh).T Xh / n,  H = Xh.T Xh / n

and rounding under the mismatch is plain rounding of W* under the same H.  How far to go is cross-validated: the shift that one
half of the windows asks for is tried on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.hessian import condition


@dataclass(frozen=True)
class Mismatch:
    """Second moments of a layer's real inputs, and of how the original ones differ from them; two halves of the windows.

    Shapes: H_half, C_half [2, d_in, d_in].

    Source: GPTAQ, Sec. 3. Differs: kept in halves.
    """

    H_half: Tensor
    C_half: Tensor

    @property
    def H(self) -> Tensor:
        return self.H_half.mean(0)

    @property
    def C(self) -> Tensor:
        return self.C_half.mean(0)


@torch.no_grad()
def mismatch(block: Block, full: Tensor, quant: Tensor, name: str, weights: dict[str, Tensor] | None = None) -> Mismatch:
    """Run both streams through the block as far as one layer and compare what it is handed.

    Windows go to the halves in turn.

    Shapes:  full, quant [n, length, d_model], n at least 2; weights {linear name: tensor} exchanged on the quantized side.
    Units:   activations squared, mean over the tokens of a half.
    Raises:  ValueError for fewer than two windows.
    Source:  GPTAQ code (dXXT).
    Differs: original inputs are not stored for the whole set: two passes side by side.
    """
    if len(quant) < 2:
        raise ValueError("the shifted target is cross-validated and needs at least two calibration windows")
    d = block.linears[name].in_features
    H, C, n = torch.zeros(2, d, d, device=quant.device), torch.zeros(2, d, d, device=quant.device), [0, 0]
    for half in range(2):
        for windows in torch.arange(half, len(quant), 2).split(block.batch):
            X = block.inputs(full[windows], name).float()
            X_hat = block.inputs(quant[windows], name, weights).float()
            H[half] += X_hat.T @ X_hat
            C[half] += (X - X_hat).T @ X_hat
            n[half] += len(X)
    count = torch.tensor(n, device=quant.device)[:, None, None]
    return Mismatch(H / count, C / count)


def shifted(W: Tensor, pair: Mismatch, damp: float = 0.01) -> tuple[Tensor, float]:
    """W* = W + a W C inv(H), with the strength a in [0, 1] that serves windows which did not choose the shift.

    Shapes:  W [d_out, d_in]; returns the same, and a.
    Units:   those of the weight; a has none.
    Raises:  ValueError as `condition`.
    Source:  GPTAQ, Sec. 3 (asymmetric calibration), solved in closed form; MARR (one coefficient a layer).
    Differs: the whole shift, not its upper triangle; the strength is computed, not 0.25.
    """
    moves = [_move(W, C, H, damp) for H, C in zip(pair.H_half, pair.C_half, strict=True)]
    asked = sum(float(((W @ pair.C_half[1 - i]) * M).sum()) for i, M in enumerate(moves))
    cost = sum(float(((M @ pair.H_half[1 - i]) * M).sum()) for i, M in enumerate(moves))
    strength = min(1.0, max(0.0, asked / cost)) if cost > 0 else 0.0
    return W + strength * _move(W, pair.C, pair.H, damp), strength


def _move(W: Tensor, C: Tensor, H: Tensor, damp: float) -> Tensor:
    Hc, _ = condition(H, damp)
    return torch.cholesky_solve((W @ C).T, torch.linalg.cholesky(Hc)).T
