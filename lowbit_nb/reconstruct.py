"""The reconstruction engine: learn whatever is learnable until the block, quantized, does what it did before.

    inputs    what really flows in: the outputs of the quantized blocks before
    targets   what should come out: the outputs of the original block on the original inputs
    edits     what a transform makes of the block's tensors, fixed or learned
    learn     one learnable a linear layer: it offers a differentiable weight now and a stored weight in the end

OmniQuant, TesseraQ and their relatives are this loop with other learnables, another objective and other rounds.  Weights are
exchanged functionally; the block is never edited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.objectives import Objective, mse
from lowbit_nb.scaling import Transform
from lowbit_nb.steps import Steps, steps
from lowbit_nb.stored import StoredWeight
from lowbit_nb.transforms import norms

MAX_RETRIES = 4
CHECKED = 32  # windows on which hard losses are measured, at most; fewer if they hold ENOUGH tokens and four minibatches
ENOUGH = 4096


class Learnable(Protocol):
    """What can be learned about one linear layer.

    parameters  optimiser groups, each with a "role" that names its learning rate
    weight      the differentiable weight [d_out, d_in], of the weight W that a transform has made (None: the block's own)
    harden      let at most a share of the variables stay undecided
    finish      the stored weight, likewise; tell: numbers to watch

    Source: this project. Differs: no difference.
    """

    def parameters(self) -> list[dict]: ...
    def weight(self, W: Tensor | None = None) -> Tensor: ...
    def harden(self, soft_fraction: float) -> None: ...
    def finish(self, W: Tensor | None = None) -> StoredWeight: ...
    def tell(self) -> dict: ...


@dataclass(frozen=True)
class Budget:
    """How long to learn: rounds of steps, each on a random minibatch of windows.

    batch   windows a step      tokens  at least so many tokens a step: more windows where they are short

    Source: TesseraQ code (20 rounds of 250 steps on 4 windows of 2048 tokens). Differs: `demo` and `fast` are this project's.
    """

    rounds: int = 20
    steps: int = 250
    batch: int = 4
    tokens: int = 0

    def windows(self, n: int, length: int) -> int:
        """How many windows of that length make a minibatch, of the n there are.

        Shapes:  a count.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.

        >>> Budget(20, 250, 4, tokens=8192).windows(512, 2048), Budget(20, 250, 4, tokens=8192).windows(512, 256)
        (4, 32)
        """
        return min(n, max(self.batch, self.tokens // length))


BUDGETS = {"demo": Budget(10, 12, 2), "fast": Budget(20, 50, 4), "paper": Budget(20, 250, 4, tokens=8192)}


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


def reconstruct(block: Block, learn: dict[str, Learnable], edits: Transform, X: Tensor, Y: Tensor, *,
                soft: Sequence[float], budget: Budget, rates: dict[str, float], generator: torch.Generator,
                objective: Objective = mse, restore: bool = False,
                check: tuple[Tensor, Tensor] | None = None) -> tuple[dict[str, StoredWeight], dict[str, Tensor], dict]:
    """Learn all together; return the stored weights and the edits of the best moment, and the story of every round.

    A round hardens to its soft fraction, makes a new optimiser and takes `budget.steps` steps.  "Best" is the least loss
    with everything made hard, measured on the same windows at the start and after every round (on `check` if given);
    restore=True puts the variables back to where they were then.  A learnable may add a `penalty()` to the loss.  The block
    may be several (`crossblock.Window`).

    Shapes:  X, Y [n, length, d_model], or a Y that the objective knows how to compare with; check: another X and Y; soft: one
             share a round; returns {linear name: stored weight}, {name: tensor} as the edits made them, and the story in plain
             numbers.
    Units:   losses in those of the objective.
    Raises:  ValueError if the loss stays non-finite after the rates were halved MAX_RETRIES times.
    Source:  BRECQ, Sec. 3.2 (block reconstruction); TesseraQ, Alg. 1 (rounds).
    Differs: functional weights; the best hard state is kept; a round with a non-finite loss is done again at half the rate.
    """
    batch = budget.windows(*X.shape[:2])
    n_checked = min(CHECKED, max(4 * batch, ENOUGH // X.shape[1]), len(X))
    check = check or (X[:n_checked], Y[:n_checked])
    kept = _variables(learn, edits) if restore else []
    best = _Best(block, learn, edits, lambda w, p: hard_loss(block, w, p, *check, objective), kept)
    story: dict = {"start": best.loss, "rounds": [], "retries": 0}
    groups = [g for one in (*learn.values(), edits) for g in one.parameters()]
    picks = _picks(len(X), budget.steps, batch, generator, X.device)
    example = torch.arange(batch, device=X.device)
    step = steps(_soft_loss(block, learn, edits, X, Y, objective), groups, rates, example) if budget.steps else None
    for share in soft:
        for p in learn.values():
            p.harden(share)
        loss = _round(block.name, step, picks, groups, rates, story) if step else 0.0
        story["rounds"].append({"share": share, "soft_loss": loss, "hard_loss": best.offer(),
                                "layers": {name: p.tell() for name, p in learn.items()}})
    best.put_back()
    story["end"] = best.loss
    return best.weights, best.tensors, story


class _Best:
    """The stored weights and edits with the least hard loss so far."""

    def __init__(self, block: Block, learn: dict[str, Learnable], edits: Transform, measure: Callable,
                 kept: Sequence[Tensor] = ()) -> None:
        self.block, self.learn, self.edits, self.measure, self.kept = block, learn, edits, measure, kept
        self.weights, self.tensors, self.loss = {}, {}, float("inf")
        self.loss = self.offer()

    def offer(self) -> float:
        tensors = self.edits.finish()
        weights = {name: p.finish(tensors.get(name)) for name, p in self.learn.items()}
        loss = self.measure(weights, norms(self.block, tensors))
        if not self.weights or (math.isfinite(loss) and not self.loss < loss):  # a start that is not finite loses to all
            self.weights, self.tensors, self.loss = weights, tensors, loss
            self.values = [p.detach().clone() for p in self.kept]
        return loss

    @torch.no_grad()
    def put_back(self) -> None:
        for p, value in zip(self.kept, self.values, strict=True):
            p.copy_(value)


def _variables(learn: dict[str, Learnable], edits: Transform) -> list[Tensor]:
    return [p for one in (*learn.values(), edits) for group in one.parameters() for p in group["params"]]


def _picks(n: int, steps: int, batch: int, generator: torch.Generator, device: torch.device) -> Callable[[], Tensor]:
    """The minibatches of one round, [steps, batch]: windows without repetition inside each."""
    return lambda: torch.stack([torch.randperm(n, generator=generator)[:batch] for _ in range(steps)]).to(device)


def _soft_loss(block: Block, learn: dict[str, Learnable], edits: Transform, X: Tensor, Y: Tensor,
               objective: Objective) -> Callable[[Tensor], Tensor]:
    """The loss of a minibatch with everything as it is now; half-precision products on a GPU, variables in float32."""
    forward = torch.compile(block.forward) if X.is_cuda and block.compiled else block.forward
    penalties = [p.penalty for p in learn.values() if hasattr(p, "penalty")]

    def loss(pick: Tensor) -> Tensor:
        with torch.autocast(X.device.type, torch.bfloat16, enabled=X.is_cuda, cache_enabled=False):
            tensors = edits.tensors()
            exchanged = tensors | {name: p.weight(tensors.get(name)) for name, p in learn.items()}
            if not X.is_cuda:
                exchanged = {name: t.to(X.dtype) for name, t in exchanged.items()}
            return sum((penalty() for penalty in penalties), objective(forward(X[pick], exchanged), Y[pick]))
    return loss


def _round(name: str, step: Steps, picks: Callable[[], Tensor], groups: list[dict], rates: dict[str, float],
           story: dict) -> float:
    """One round; mean soft loss of its last tenth. A non-finite loss takes it back and halves the rates."""
    before = [[t.detach().clone() for t in g["params"]] for g in groups]
    while True:
        step.restart(0.5 ** story["retries"])
        losses = torch.stack([step.take(pick) for pick in picks()])
        if torch.isfinite(losses).all() and all(torch.isfinite(p).all() for g in groups for p in g["params"]):
            return float(losses[-max(1, len(losses) // 10) :].mean())
        story["retries"] += 1
        if story["retries"] > MAX_RETRIES:
            raise ValueError(f"{name}: the loss is not finite even at 1/{2**MAX_RETRIES} of the learning rates {rates}; "
                             "check the calibration text and the starting point")
        with torch.no_grad():
            for g, tensors in zip(groups, before, strict=True):
                for p, t in zip(g["params"], tensors, strict=True):
                    p.copy_(t)


@torch.no_grad()
def hard_loss(block: Block, weights: dict[str, StoredWeight], params: dict[str, Tensor], X: Tensor, Y: Tensor,
              objective: Objective = mse) -> float:
    """The objective of the block with stored weights and edits, over all given windows.

    Shapes:  X, Y [n, length, d_model].
    Units:   those of the objective.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    exchanged = {name: t.to(X.device, X.dtype) for name, t in params.items()}
    exchanged |= {name: w.dequantize(X.dtype).to(X.device) for name, w in weights.items()}
    total = 0.0
    for i in range(0, len(X), block.batch):
        y = block.forward(X[i : i + block.batch], exchanged)
        total += float(objective(y, Y[i : i + block.batch])) * len(y)
    return total / len(X)
