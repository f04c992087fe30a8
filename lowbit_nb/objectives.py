"""What "close" means for a block's output: one number a batch, small when the quantized block does what the original did."""

from __future__ import annotations

from collections.abc import Callable

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
