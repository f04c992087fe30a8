"""Learn the codebooks and norms of a whole model at once, with the original model as teacher.

Block by block, nothing sees what its errors do to the blocks after it.  Here the loss is that of the predictions themselves,
KL(original || quantized) a token; indices stay, so the size stays.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lowbit_nb.codebooks.centroids import LearnedCodebooks, half_type, norm_weights
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.record import Quantized
from lowbit_nb.steps import steps as make_steps
from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows


@dataclass(frozen=True)
class EndToEnd:
    """Settings of a run.

    rounds, steps, batch   as in `Budget`                rate   in units of a codebook's spread; norms and scales take a tenth
    held     share of the windows that are not learned from: the best round on them is kept

    Source: VPTQ's authors name centroids, norms and large batches; their recipe is not published. Differs: all of it.
    """

    rounds: int = 5
    steps: int = 20
    batch: int = 4
    rate: float = 3e-3
    held: float = 0.125
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.batch) < 1 or not 0 < self.held < 1 or not self.rate > 0:
            raise ValueError(f"{self}: rounds, steps and batch count from 1, rate is positive and held lies between 0 and 1")


def finetune(subject: Subject, quantized: Quantized, windows: Windows,
             how: EndToEnd = EndToEnd()) -> tuple[Quantized, list[dict]]:
    """A record with better codebooks, scales and norms, and the story: learned and held-out KL of every round.

    Shapes:  windows.ids [n, length]; the same indices, other numbers.
    Units:   KL in nats a token.
    Raises:  ValueError if a layer is not a vector weight, there are fewer than two windows, or nothing finite was reached.
    Source:  VPTQ, Sec. 3.4 (end-to-end fine-tuning; loss and data are this project's choice).
    Differs: see `EndToEnd`; the head and the embedding stay as they are.
    """
    if other := [name for name, w in quantized.weights.items() if not isinstance(w, VectorWeight)]:
        raise ValueError(f"{other[0]} is not a vector weight; only codebooks are learned here")
    if len(windows.ids) < 2:
        raise ValueError("fine-tuning needs two windows at least: one to learn from, one to be held against")
    run = _Run(subject, quantized, windows.ids.to(subject.device), how)
    best, story = run.hard(), []
    story.append({"kl": None, "held_kl": best[0]})
    for _ in range(how.rounds):
        learned = run.round()
        now = run.hard()
        story.append({"kl": learned, "held_kl": now[0]})
        best = now if now[0] < best[0] else best
    settings = quantized.settings | {"end_to_end": asdict(how) | {"windows": windows.sha256}}
    return dataclasses.replace(quantized, weights=best[1], params=quantized.params | best[2], settings=settings), story


class _Run:
    """The variables of one run, its teacher and its steps."""

    def __init__(self, subject: Subject, quantized: Quantized, ids: Tensor, how: EndToEnd) -> None:
        n_held = min(len(ids) - 1, max(1, round(how.held * len(ids))))
        self.model, self.ids, self.held, self.how = subject.model, ids[:-n_held], ids[-n_held:], how
        self.learn = {name: LearnedCodebooks(w) for name, w in quantized.weights.items()}
        own = norm_weights(self.model)
        self.half = {name: half_type(p) for name, p in own.items()}
        self.norms = {name: quantized.params.get(name, p).detach().float().to(p.device).clone().requires_grad_()
                      for name, p in own.items()}
        self.kept = {name: t.to(subject.device) for name, t in quantized.params.items() if name not in own}
        groups = [g for one in self.learn.values() for g in one.parameters()]
        groups += [{"params": list(self.norms.values()), "role": "norm"}]
        rates = {"centroids": how.rate, "scale": how.rate / 10, "norm": how.rate / 10}
        self.generator = torch.Generator().manual_seed(how.seed)
        self.batch = min(how.batch, len(self.ids))
        self.step = make_steps(self.loss, groups, rates, torch.arange(self.batch, device=ids.device))
        self.step.restart()

    def loss(self, pick: Tensor) -> Tensor:
        weights = {name: one.weight() for name, one in self.learn.items()}
        return self.kl(self.ids[pick], weights, self.norms)

    def kl(self, ids: Tensor, weights: dict[str, Tensor], norms: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            wanted = self.model(ids, use_cache=False).logits.float().log_softmax(-1)
        own = dict(self.model.named_parameters())
        swapped = {f"{name}.weight": W for name, W in weights.items()} | norms | self.kept
        swapped = {name: t.to(own[name].dtype) for name, t in swapped.items()}
        logits = functional_call(self.model, swapped, (ids,), {"use_cache": False}).logits.float()
        return F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1).mean()

    def round(self) -> float:
        """Some steps; the mean KL of the last quarter of them."""
        picks = [torch.randperm(len(self.ids), generator=self.generator)[: self.batch] for _ in range(self.how.steps)]
        losses = torch.stack([self.step.take(pick.to(self.ids.device)) for pick in picks])
        if not torch.isfinite(losses).all():
            raise ValueError(f"the loss is not finite at rate={self.how.rate}; use a smaller one")
        return float(losses[-max(1, len(losses) // 4) :].mean())

    @torch.no_grad()
    def hard(self) -> tuple[float, dict[str, VectorWeight], dict[str, Tensor]]:
        """Everything as it would be stored, and its KL on the windows held out."""
        weights = {name: one.finish() for name, one in self.learn.items()}
        norms = {name: t.to(self.half[name]) for name, t in self.norms.items()}
        W_hat = {name: w.dequantize() for name, w in weights.items()}
        parts = self.held.split(self.how.batch)
        total = sum(float(self.kl(ids, W_hat, norms)) * len(ids) for ids in parts)
        return total / len(self.held), weights, norms
