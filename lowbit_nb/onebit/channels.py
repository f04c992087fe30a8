"""Which input channels of a layer deserve more bits: a score a channel, and a mask with a count that packs well.

An input channel is a column of the weight.  Its error reaches the output multiplied by the channel's activations, and those
differ far more between channels than weights do, from text to text the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.hessian import Hessian, condition, factor

METRICS = ("absmax", "rms", "output", "obs")


def channel_scores(hessian: Hessian, W: Tensor, metric: str = "absmax") -> Tensor:
    """How salient each input channel is.

    absmax  largest |x_j| over all tokens (PTQ1.61)         output  H_jj sum_i W_ij**2: what dropping the channel would cost
    rms     root of the mean of x_j**2                      obs     D_j sum_i W_ij**2: the same, once later channels have
                                                                    made up for it

    Shapes:  W [d_out, d_in], the rows of all layers that share the input; returns [d_in].
    Units:   activations (absmax, rms) or outputs squared.
    Raises:  ValueError for an unknown metric; obs also as `condition`.
    Source:  PTQ1.61; output is the square of Wanda's score, summed over a column; obs as in BiLLM, Alg. 2.
    Differs: its code sorts in half precision, where many channels tie.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} is unknown; use one of {', '.join(METRICS)}")
    if metric == "absmax":
        return hessian.peak
    if metric == "rms":
        return hessian.H.diagonal().sqrt()
    cost = hessian.H.diagonal() if metric == "output" else factor(condition(hessian.H)[0])[1]
    return cost * W.square().sum(0)


def salient_count(d_in: int, share: float, align: int = 32) -> int:
    """The multiple of `align` nearest to share * d_in; at least one multiple if the share is not 0.

    A layer no wider than `align` is then salient as a whole; a smaller `align` keeps the share.

    Shapes:  two numbers and the alignment in; one int out.
    Units:   channels.
    Raises:  ValueError if the share is not between 0 and 1 or align is below 1.
    Source:  PTQ1.61 (a share of 0.2).
    Differs: the code keeps floor(0.2 d_in) + 1 channels and more where scores tie, which packs with holes.

    >>> salient_count(4096, 0.2), salient_count(11008, 0.2), salient_count(256, 0.2), salient_count(256, 0.2, align=1)
    (832, 2208, 64, 51)
    """
    if not (0 <= share <= 1 and align >= 1):
        raise ValueError(f"share={share} must lie between 0 and 1, and align={align} must be at least 1")
    if share in (0, 1):
        return round(share) * d_in
    return min(d_in, max(1, round(share * d_in / align)) * align)


def salient_channels(score: Tensor, count: int) -> Tensor:
    """The channels of highest score; of equals, the first.

    Shapes:  score [d_in]; returns [d_in] boolean with `count` True.
    Units:   none.
    Raises:  nothing.
    Source:  PTQ1.61 (one-dimensional structured mask).
    Differs: exactly `count` channels.

    >>> salient_channels(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist()
    [False, True, False, True]
    """
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[score.argsort(descending=True, stable=True)[:count]] = True
    return mask
