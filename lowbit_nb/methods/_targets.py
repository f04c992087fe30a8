"""What a block's output is held against, by name: an objective, and one teacher or two."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.crossblock import branches, kl, size_and_shape
from lowbit_nb.objectives import Objective, mse, nlc, size_and_angle

OBJECTIVES: dict[str, Objective] = {"mse": mse, "mse+nlc": size_and_angle, "mse+kl": size_and_shape, "nlc": nlc, "kl": kl}


def check(objective: str, teachers: int, known: tuple[str, ...] = tuple(OBJECTIVES), field: str = "objective") -> None:
    """Refuse unknown names before any calibration is spent.

    Shapes:  none.
    Units:   none.
    Raises:  ValueError for an unknown objective, or teachers other than 1 or 2.
    Source:  this project.
    Differs: no difference.
    """
    if objective not in known:
        raise ValueError(f"{field}={objective!r} is unknown; use one of {', '.join(known)}")
    if teachers not in (1, 2):
        raise ValueError(f"teachers={teachers} must be 1 or 2: the original block on original inputs, or also on the real ones")


def taught(block: Block, X: Tensor, Y: Tensor, teachers: int) -> Tensor:
    """The targets: Y, and beside it what the original block makes of the inputs that really come, if two teach.

    Shapes:  X, Y [n, length, d_model]; returns Y, or [n, 2, length, d_model].
    Units:   those of the residual stream.
    Raises:  nothing.
    Source:  CBQ, Eq. 6; PTQ1.61.
    Differs: no difference.
    """
    return Y if teachers == 1 else torch.stack([Y, block.run(X)], 1)


def objective(name: str, teachers: int = 1) -> Objective:
    """How outputs are compared with such targets.

    Shapes:  a function of outputs and targets.
    Units:   those of the objective, added up over the teachers.
    Raises:  nothing.
    Source:  CBQ, Eq. 6.
    Differs: no difference.
    """
    return OBJECTIVES[name] if teachers == 1 else branches(OBJECTIVES[name])
