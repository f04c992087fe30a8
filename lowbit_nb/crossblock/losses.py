"""What "close" means across blocks: size and shape of the output, to one teacher or to two."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit_nb.objectives import Objective, mse


def kl(y: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(y)) over the hidden dimension, mean over tokens.

    For ordinary activations it is about half of the mean squared error; for a token with one massive number it is 0.

    Shapes:  y, target [batch, length, d_model]; returns a scalar.
    Units:   nats.
    Raises:  nothing.
    Source:  CBQ, Eq. 7.
    Differs: always in float32; the paper does not state the mean.

    >>> import torch
    >>> kl(torch.ones(1, 1, 4), torch.zeros(1, 1, 4)).item() == 0  # a softmax does not see a constant
    True
    """
    log_p, log_q = target.float().log_softmax(-1), y.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()


def size_and_shape(y: Tensor, target: Tensor) -> Tensor:
    """Squared error, a mean over all numbers, plus `kl`: both weigh 1.

    Shapes:  y, target [batch, length, d_model]; returns a scalar.
    Units:   see `mse` and `kl`.
    Raises:  nothing.
    Source:  CBQ, Eq. 7 (L2 + KL).
    Differs: the squared error is a mean over the hidden dimension; as a sum it would leave nothing for the KL to say.
    """
    return mse(y, target) / y.shape[-1] + kl(y, target)


def branches(objective: Objective) -> Objective:
    """The sum of an objective over several teachers of one student.

    Shapes:  y [batch, length, d_model]; targets [batch, n_teachers, length, d_model].
    Units:   those of the objective.
    Raises:  nothing.
    Source:  CBQ, Eq. 6: one teacher on the original inputs, one (homologous) on the student's own inputs.
    Differs: no difference.
    """
    return lambda y, targets: sum(objective(y, targets[:, k]) for k in range(targets.shape[1]))


def predictions(logits: Callable[[Tensor], Tensor], blocks: float = 0.0) -> Objective:
    """KL(original || quantized) of what the model predicts, and beside it how far every block's output is off.

    KL + blocks * mean over blocks of |y - t|**2 / |t|**2; the second part says the same about every block, whatever its scale,
    and keeps the roundings from learning the calibration text by heart.

    Shapes:  y, target [batch, n_blocks, length, d_model]; logits gives [batch, length, vocabulary] of the last block's output.
    Units:   nats a token, and shares.
    Raises:  nothing.
    Source:  this project; KL as in VPTQ's end-to-end tuning here.
    Differs: always in float32.
    """
    def objective(y: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            y, target = y.float(), target.float()
            log_q, log_p = logits(y[:, -1]).log_softmax(-1), logits(target[:, -1]).log_softmax(-1)
            off = (y - target).square().sum(-1).mean((0, 2)) / target.square().sum(-1).mean((0, 2))
            return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean() + blocks * off.mean()
    return objective
