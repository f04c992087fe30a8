"""The reconstruction engine: learn whatever is learnable until the block, quantized, does what it did before.

    inputs    what really flows in: the outputs of the quantized blocks before
    targets   what should come out: the outputs of the original block on the original inputs
    learn     one learnable a linear layer: it offers a differentiable weight now and a stored weight in the end

OmniQuant, TesseraQ and their relatives are this loop with other learnables, another objective and other rounds.  Weights are
exchanged functionally; the block is never edited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.objectives import Objective, mse
from lowbit_nb.stored import StoredWeight

MAX_RETRIES = 4
CHECKED = 32  # windows on which hard losses are measured


class Learnable(Protocol):
    """What can be learned about one linear layer.

    parameters  optimiser groups, each with a "role" that names its learning rate
    weight      the differentiable weight, [d_out, d_in]
    harden      let at most a share of the variables stay undecided
    finish      the stored weight; tell: numbers to watch

    Source: this project. Differs: no difference.
    """

    def parameters(self) -> list[dict]: ...
    def weight(self) -> Tensor: ...
    def harden(self, soft_fraction: float) -> None: ...
    def finish(self) -> StoredWeight: ...
    def tell(self) -> dict: ...


@dataclass(frozen=True)
class Budget:
    """How long to learn: rounds of steps, each on a random minibatch of windows.

    Source: TesseraQ code (20 rounds of 250 steps, batch 4). Differs: `demo` and `fast` are this project's.
    """

    rounds: int = 20
    steps: int = 250
    batch: int = 4


BUDGETS = {"demo": Budget(10, 12, 2), "fast": Budget(20, 50, 4), "paper": Budget(20, 250, 4)}


def budget(name: str | Budget) -> Budget:
    """A budget by its name, or as it is.

    Shapes:  none.
    Units:   none.
    Raises:  ValueError for an unknown name.
    Source:  this project.
    Differs: no difference.
    """
    if isinstance(name, str) and name not in BUDGETS:
        raise ValueError(f"budget={name!r} is unknown; use one of {', '.join(BUDGETS)}, or a Budget of your own")
    return BUDGETS[name] if isinstance(name, str) else name


def reconstruct(block: Block, learn: dict[str, Learnable], fixed: dict[str, Tensor], X: Tensor, Y: Tensor, *,
                soft: Sequence[float], budget: Budget, rates: dict[str, float], generator: torch.Generator,
                objective: Objective = mse) -> tuple[dict[str, StoredWeight], dict]:
    """Learn all `learn` together; return the stored weights of the best moment and the story of every round.

    A round hardens to its soft fraction, makes a new optimiser and takes `budget.steps` steps.  "Best" is the least loss
    with everything made hard, measured on the same windows at the start and after every round.

    Shapes:  X, Y [n, length, d_model]; fixed {name: tensor} exchanged but not learned; soft: one share a round.
    Units:   losses in those of the objective.
    Raises:  ValueError if the loss stays non-finite after the rates were halved MAX_RETRIES times.
    Source:  BRECQ, Sec. 3.2 (block reconstruction); TesseraQ, Alg. 1 (rounds).
    Differs: functional weights; the best hard state is kept; a round with a non-finite loss is done again at half the rate.
    """
    n_checked = min(CHECKED, len(X))
    check = (X[:n_checked], Y[:n_checked])
    best = _Best({name: p.finish() for name, p in learn.items()})
    best.loss = hard_loss(block, best.weights, fixed, *check, objective)
    story: dict = {"start": best.loss, "rounds": [], "retries": 0}
    for share in soft:
        for p in learn.values():
            p.harden(share)
        loss = _round(block, learn, fixed, X, Y, budget, rates, generator, objective, story)
        hard = best.offer({name: p.finish() for name, p in learn.items()},
                          lambda w: hard_loss(block, w, fixed, *check, objective))
        story["rounds"].append({"share": share, "soft_loss": loss, "hard_loss": hard,
                                "layers": {name: p.tell() for name, p in learn.items()}})
    story["end"] = best.loss
    return best.weights, story


class _Best:
    """The stored weights with the least hard loss so far."""

    def __init__(self, weights: dict[str, StoredWeight]) -> None:
        self.weights, self.loss = weights, float("inf")

    def offer(self, weights: dict[str, StoredWeight], measure: Objective) -> float:
        loss = measure(weights)
        if math.isfinite(loss) and not self.loss < loss:  # a start that is not finite loses to anything that is
            self.weights, self.loss = weights, loss
        return loss


def _round(block: Block, learn: dict[str, Learnable], fixed: dict[str, Tensor], X: Tensor, Y: Tensor, budget: Budget,
           rates: dict[str, float], generator: torch.Generator, objective: Objective, story: dict) -> float:
    """One round; mean soft loss of its last tenth. A non-finite loss takes it back and halves the rates."""
    groups = [g for p in learn.values() for g in p.parameters()]
    before = [[t.detach().clone() for t in g["params"]] for g in groups]
    while True:
        speed = 0.5 ** story["retries"]
        optimiser = torch.optim.Adam([_group(g, rates[g["role"]] * speed) for g in groups], fused=True)
        losses = torch.stack([_step(block, learn, fixed, X, Y, budget.batch, generator, objective, optimiser)
                              for _ in range(budget.steps)]) if budget.steps else torch.zeros(1)
        if torch.isfinite(losses).all() and all(torch.isfinite(p).all() for g in groups for p in g["params"]):
            return float(losses[-max(1, len(losses) // 10) :].mean())
        story["retries"] += 1
        if story["retries"] > MAX_RETRIES:
            raise ValueError(f"{block.name}: the loss is not finite even at 1/{2**MAX_RETRIES} of the learning rates {rates}; "
                             "check the calibration text and the starting point")
        with torch.no_grad():
            for g, tensors in zip(groups, before, strict=True):
                for p, t in zip(g["params"], tensors, strict=True):
                    p.copy_(t)


def _group(group: dict, rate: float) -> dict:
    return {"params": group["params"], "lr": rate, "weight_decay": group.get("weight_decay", 0.0)}


def _step(block: Block, learn: dict[str, Learnable], fixed: dict[str, Tensor], X: Tensor, Y: Tensor, batch: int,
          generator: torch.Generator, objective: Objective, optimiser: torch.optim.Optimizer) -> Tensor:
    pick = torch.randperm(len(X), generator=generator)[:batch].to(X.device)
    exchanged = fixed | {name: p.weight() for name, p in learn.items()}
    if not X.is_cuda:
        exchanged = {name: t.to(X.dtype) for name, t in exchanged.items()}
    with torch.autocast(X.device.type, torch.bfloat16, enabled=X.is_cuda):
        y = block.forward(X[pick], exchanged)
    loss = objective(y, Y[pick])
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


@torch.no_grad()
def hard_loss(block: Block, weights: dict[str, StoredWeight], fixed: dict[str, Tensor], X: Tensor, Y: Tensor,
              objective: Objective = mse) -> float:
    """The objective of the block with stored weights, over all given windows.

    Shapes:  X, Y [n, length, d_model].
    Units:   those of the objective.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    exchanged = {name: t.to(X.device, X.dtype) for name, t in fixed.items()}
    exchanged |= {name: w.dequantize(X.dtype).to(X.device) for name, w in weights.items()}
    total = 0.0
    for i in range(0, len(X), block.batch):
        y = block.forward(X[i : i + block.batch], exchanged)
        total += float(objective(y, Y[i : i + block.batch])) * len(y)
    return total / len(X)
