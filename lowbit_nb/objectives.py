"""What "close" means for a block's output: one number a batch, small when the quantized block does what the original did."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]


def mse(y: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over the hidden dimension, mean over tokens.

    Shapes:  y, target [batch, length, d_model]; returns a scalar.
    Units:   those of the residual stream, squared.
    Raises:  nothing.
    Source:  TesseraQ, block reconstruction; BRECQ, Sec. 3.2.
    Differs: always summed in float32.

    >>> import torch
    >>> mse(torch.ones(1, 2, 3), torch.zeros(1, 2, 3)).item()
    3.0
    """
    return (y.float() - target.float()).square().sum(-1).mean()


def nlc(y: Tensor, target: Tensor) -> Tensor:
    """The negative logarithm of the mean cosine between outputs and targets: how far directions are off, whatever the lengths.

    -ln |mean over tokens of cos(y_t, target_t)|

    Shapes:  y, target [batch, length, d_model]; returns a scalar.
    Units:   none; 0 if every token points the right way.
    Raises:  nothing.
    Source:  LRQuant; PTQ1.61.
    Differs: always in float32, where a cosine near 1 keeps its digits.

    >>> import torch
    >>> nlc(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])).item() == 0
    True
    """
    return -F.cosine_similarity(y.float(), target.float(), dim=-1).mean().abs().log()


def size_and_angle(y: Tensor, target: Tensor) -> Tensor:
    """Squared error, a mean over all numbers, plus the negative logarithm of the mean cosine: both weigh 1.

    Shapes:  y, target [batch, length, d_model]; returns a scalar.
    Units:   see `mse` and `nlc`.
    Raises:  nothing.
    Source:  LRQuant, Eq. 8-9.
    Differs: no difference.
    """
    return mse(y, target) / y.shape[-1] + nlc(y, target)
