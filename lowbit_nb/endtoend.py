"""Learn what stays continuous in a whole quantized model at once, with the original model as teacher.

Block by block, nothing sees what its errors do to the blocks after it.  Here the loss is that of the predictions themselves,
KL(original || quantized) a token; codes, signs and indices stay, so the size stays.
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
from lowbit_nb.continuous import LearnedNumbers, with_tensors
from lowbit_nb.record import Quantized
from lowbit_nb.steps import steps as make_steps
from lowbit_nb.stored import StoredWeight
from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows


@dataclass(frozen=True)
class EndToEnd:
    """Settings of a run.

    rounds, steps, batch   as in `Budget`
    rate     in units of a codebook's spread; steps, levels and other numbers, scales of columns and norms take a tenth of it
    held     share of the windows that are not learned from: the best round on them is kept
    norms    learn all norms, which are stored then; otherwise only those that are stored already

    Source: VPTQ's authors name centroids, norms and large batches; their recipe is not published. Differs: all of it.
    """

    rounds: int = 5
    steps: int = 20
    batch: int = 4
    rate: float = 3e-3
    held: float = 0.125
    norms: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.batch) < 1 or not 0 < self.held < 1 or not self.rate > 0:
            raise ValueError(f"{self}: rounds, steps and batch count from 1, rate is positive and held lies between 0 and 1")


def learnable(weight: StoredWeight) -> LearnedCodebooks | LearnedNumbers:
    """What can be learned about a stored weight whose integers are settled.

    Shapes:  any stored form.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return LearnedCodebooks(weight) if isinstance(weight, VectorWeight) else LearnedNumbers(weight)


def finetune(subject: Subject, quantized: Quantized, windows: Windows,
             how: EndToEnd = EndToEnd()) -> tuple[Quantized, list[dict]]:
    """A record with better steps, levels, codebooks and norms, and the story: learned and held-out KL of every round.

    A record whose activations are rounded is learned behind them.

    Shapes:  windows.ids [n, length]; the same integers, other numbers.
    Units:   KL in nats a token.
    Raises:  ValueError if there are fewer than two windows, the loss is not finite, or the subject is a blockwise one.
    Source:  VPTQ, Sec. 3.4 (end-to-end fine-tuning; loss and data are this project's choice).
    Differs: see `EndToEnd`; any stored form; the head and the embedding stay as they are.
    """
    if len(windows.ids) < 2:
        raise ValueError("fine-tuning needs two windows at least: one to learn from, one to be held against")
    if subject.blockwise:
        raise ValueError("end to end, the gradient needs the whole model in memory: load the subject without blockwise=True")
    run = _Run(subject, quantized, windows.ids.to(subject.device), how)
    try:
        best, story = run.hard(), []
        story.append({"kl": None, "held_kl": best[0]})
        for _ in range(how.rounds):
            learned = run.round()
            now = run.hard()
            story.append({"kl": learned, "held_kl": now[0]})
            best = now if now[0] < best[0] else best
    finally:
        run.step = None  # it holds the run, and the run it: a captured graph goes now, not when the collector comes
    settings = quantized.settings | {"end_to_end": asdict(how) | {"windows": windows.sha256}}
    return dataclasses.replace(quantized, weights=best[1], params=quantized.params | best[2], settings=settings), story


class _Run:
    """The variables of one run, its teacher, its student and its steps."""

    def __init__(self, subject: Subject, quantized: Quantized, ids: Tensor, how: EndToEnd) -> None:
        n_held = min(len(ids) - 1, max(1, round(how.held * len(ids))))
        self.teacher, self.student = subject.model, quantized.apply(subject).model
        self.types = {name: p.dtype for name, p in self.student.named_parameters()}
        self.ids, self.held, self.how = ids[:-n_held], ids[-n_held:], how
        here = {name: with_tensors(w, lambda _, t: t.to(ids.device)) for name, w in quantized.weights.items()}
        self.learn = {name: learnable(w) for name, w in here.items()}
        own = {name: p for name, p in norm_weights(self.teacher).items() if how.norms or name in quantized.params}
        self.half = {name: half_type(p) for name, p in own.items()}
        self.norms = {name: quantized.params.get(name, p).detach().float().to(p.device).clone().requires_grad_()
                      for name, p in own.items()}
        groups = [g for one in self.learn.values() for g in one.parameters()]
        groups += [{"params": list(self.norms.values()), "role": "norm"}] if own else []
        rates = {"centroids": how.rate} | dict.fromkeys(("number", "scale", "norm"), how.rate / 10)
        self.generator = torch.Generator().manual_seed(how.seed)
        self.batch = min(how.batch, len(self.ids))
        self.step = make_steps(self.loss, groups, rates, torch.arange(self.batch, device=ids.device))
        self.step.restart()

    def loss(self, pick: Tensor) -> Tensor:
        weights = {name: one.weight() for name, one in self.learn.items()}
        return self.kl(self.ids[pick], weights, self.norms)

    def kl(self, ids: Tensor, weights: dict[str, Tensor], norms: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(ids, use_cache=False).logits.float().log_softmax(-1)
        swapped = {f"{name}.weight": W for name, W in weights.items()} | norms
        swapped = {name: t.to(self.types[name]) for name, t in swapped.items()}
        logits = functional_call(self.student, swapped, (ids,), {"use_cache": False}).logits.float()
        return F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1).mean()

    def round(self) -> float:
        """Some steps; the mean KL of the last quarter of them."""
        picks = [torch.randperm(len(self.ids), generator=self.generator)[: self.batch] for _ in range(self.how.steps)]
        losses = torch.stack([self.step.take(pick.to(self.ids.device)) for pick in picks])
        if not torch.isfinite(losses).all():
            raise ValueError(f"the loss is not finite at rate={self.how.rate}; use a smaller one")
        return float(losses[-max(1, len(losses) // 4) :].mean())

    @torch.no_grad()
    def hard(self) -> tuple[float, dict[str, StoredWeight], dict[str, Tensor]]:
        """Everything as it would be stored, and its KL on the windows held out."""
        weights = {name: one.finish() for name, one in self.learn.items()}
        norms = {name: t.to(self.half[name]) for name, t in self.norms.items()}
        W_hat = {name: w.dequantize() for name, w in weights.items()}
        parts = self.held.split(self.how.batch)
        total = sum(float(self.kl(ids, W_hat, norms)) * len(ids) for ids in parts)
        return total / len(self.held), weights, norms
