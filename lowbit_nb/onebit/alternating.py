"""Row and column scales of sign planes, refined in turn: the levels of ARB-LLM_RC.

    one plane     w_hat_ij = r_i c_j B_ij                             the rank-one fit of |W| on its region
    two planes    w_hat_ij = r_i c_j B_ij + r'_i c'_j B'_ij           one plane after the other, then every weight takes the
                                                                      nearest of its four levels; again and again

Every step makes the error of its region smaller or leaves it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.onebit import signs
from lowbit_nb.onebit.binary import BinaryWeight

Plane = tuple[Tensor, Tensor, Tensor]  # r [d_out], c [width], B [d_out, width]


def two_scaled_planes(W: Tensor, iterations: int = 15) -> tuple[Plane, Plane]:
    """Two sign planes with row and column scales.

    Shapes:  W [d_out, width].
    Units:   those of the weight in r; c has none, mean(c) = 1.
    Raises:  nothing.
    Source:  ARB-LLM_RC (second order).
    Differs: the gauge is fixed.
    """
    first = (*signs.rank_one(W.abs()), signs.sgn(W))
    left = W - _value(first)
    second = (*signs.rank_one(left.abs()), signs.sgn(left))
    for _ in range(iterations):
        first = _refined(W - _value(second), first)
        second = _refined(W - _value(first), second)
        first, second = _nearest(W, first, second)
    return _gauged(first), _gauged(second)


def _value(plane: Plane) -> Tensor:
    r, c, B = plane
    return torch.outer(r, c) * B


def _refined(target: Tensor, plane: Plane) -> Plane:
    """Rows given columns, then columns given rows, by least squares with the signs as they are."""
    r, c, B = plane
    T, tiny = target * B, torch.finfo(target.dtype).tiny
    r = T @ c / c.square().sum().clamp(min=tiny)
    return r, T.T @ r / r.square().sum().clamp(min=tiny), B


def _nearest(W: Tensor, first: Plane, second: Plane) -> tuple[Plane, Plane]:
    """The best of the four combinations of signs for every weight."""
    a, b = torch.outer(*first[:2]), torch.outer(*second[:2])
    best = (torch.stack([-a - b, b - a, a - b, a + b]) - W).abs().argmin(0)
    return (*first[:2], signs.sgn(best - 1.5).to(W.dtype)), (*second[:2], signs.sgn(best % 2 - 0.5).to(W.dtype))


def _gauged(plane: Plane) -> Plane:
    r, c, B = plane
    size = c.abs().mean().clamp(min=torch.finfo(c.dtype).tiny)
    return r * size, c / size, B


def scaled_planes(W: Tensor, salient: Tensor, far: Tensor, iterations: int = 15) -> BinaryWeight:
    """The stored form of a block: two scaled planes in salient columns, one scaled plane a region elsewhere, no means.

    Shapes:  W [d_out, width]; salient [width]; far [d_out, width]; returns one block.
    Units:   those of the weight.
    Raises:  nothing.
    Source:  ARB-LLM_RC; regions as BiLLM (without its group bitmap on salient columns).
    Differs: no difference.
    """
    near = ~far & ~salient
    (r_near, c_near), (r_far, c_far) = (signs.rank_one(W.abs(), part, max(1, iterations)) for part in (near, far))
    factors = torch.stack([c_near, c_far])
    plus, seconds = W >= 0, far.clone()
    levels = [r_near, r_far, torch.zeros_like(r_near), torch.zeros_like(r_near)]
    if salient.any():
        first, second = two_scaled_planes(W[:, salient], iterations)
        levels[2:], factors[:, salient] = [first[0], second[0]], torch.stack([first[1], second[1]])
        plus[:, salient], seconds[:, salient] = first[2] > 0, second[2] > 0
    levels, factors = torch.stack(levels, -1)[:, None].to(torch.float16), factors.to(torch.float16)
    return BinaryWeight(plus, seconds, salient, levels, None, factors, W.shape[1])
