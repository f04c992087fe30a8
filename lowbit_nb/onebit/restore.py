"""Restorative adaptation: let a quantized model recover with low-rank updates, merge them, and quantize what comes out.

    first = quantize(subject, method, windows)
    moved = restore(first.apply(subject), text)         # still close to what the method can store, and a better model
    second = quantize(moved, method, windows)

The updates are fitted to text, so this spends what calibration does not: training tokens.  PTQ1.61 calls it quantization
preprocessing.  Offer it to every method that you compare.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_nb.blocks import layers
from lowbit_nb.subject import Subject
from lowbit_nb.windows import Windows


@dataclass(frozen=True)
class Restoration:
    """How long and how freely to adapt.

    rank, alpha, dropout  of the low-rank updates; an update counts alpha / rank       steps, batch  windows a step
    rate, warmup          peak learning rate, after this share of steps, then a cosine down to 0
    without               linear layers of these names stay as they are

    Source: PTQ1.61 and its code: 10 000 steps of 2 sequences, rank 64, all layers but the attention's output.
    Differs: steps and batch are the caller's; windows are full, where the code's documents are cut and padded.
    """

    steps: int = 10_000
    batch: int = 2
    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.1
    rate: float = 1e-4
    warmup: float = 0.1
    without: tuple[str, ...] = ("o_proj",)
    seed: int = 0

    def __post_init__(self) -> None:
        shares = 0 <= self.warmup <= 1 and 0 <= self.dropout < 1
        if min(self.steps, self.batch, self.rank) < 1 or not (shares and self.rate > 0):
            raise ValueError(f"{self}: steps, batch and rank must be at least 1, warmup and dropout shares, the rate positive")


def restore(subject: Subject, windows: Windows, settings: Restoration | None = None, teacher: Subject | None = None) -> Subject:
    """A subject with merged low-rank updates that make it a better model of the text; the one that came in is not changed.

    Without a teacher the loss is the text's cross-entropy, with one the divergence from its predictions.

    Shapes:  windows.ids [n, length].
    Units:   none.
    Raises:  ValueError if windows do not fit the context, nothing is left to adapt, or the loss is not finite.
    Source:  PTQ1.61; LoRA.
    Differs: an optional teacher; the paper has none.
    """
    settings = settings or Restoration()
    subject.check_fits(windows.ids.shape[1])
    with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # first values of the updates, and dropout
        model = _with_updates(copy.deepcopy(subject.model), settings)
        _adapt(model, windows.ids.to(subject.device), settings, teacher)
    merged = model.merge_and_unload().eval().requires_grad_(False)
    return replace(subject, model=merged, name=f"{subject.name}, restored")


def _with_updates(model: nn.Module, settings: Restoration) -> Any:
    import peft  # takes a second to load; only this function needs it

    prefix, blocks = layers(model)
    targets = [f"{prefix}.{name}" for name, m in blocks.named_modules()
               if isinstance(m, nn.Linear) and name.rpartition(".")[2] not in settings.without]
    if not targets:
        raise ValueError(f"no linear layer of {prefix} is left to adapt without {', '.join(settings.without)}")
    return peft.get_peft_model(model, peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets,
                                                      lora_dropout=settings.dropout, bias="none"))


def _adapt(model: nn.Module, ids: Tensor, settings: Restoration, teacher: Subject | None) -> None:
    variables = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(variables, lr=settings.rate, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: speed(k, settings.steps, settings.warmup))
    picks = torch.Generator().manual_seed(settings.seed)
    model.train()
    for _ in range(settings.steps):
        batch = ids[torch.randint(len(ids), (settings.batch,), generator=picks)]
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
            loss = _loss(model(batch, use_cache=False).logits[:, :-1], batch, teacher)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss of the adaptation is not finite; use a smaller rate than {settings.rate}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        pace.step()


def _loss(logits: Tensor, ids: Tensor, teacher: Subject | None) -> Tensor:
    if teacher is None:
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    with torch.no_grad():
        wanted = teacher.model(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    kl = F.kl_div(logits.float().log_softmax(-1), wanted, log_target=True, reduction="none")
    return kl.sum(-1).mean()


def speed(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step, as a share of its peak: a straight line up, then a cosine down to 0.

    Shapes:  two counts and a share in; one number out.
    Units:   a share.
    Raises:  nothing.
    Source:  the usual schedule of the transformers library ("cosine").
    Differs: no difference.

    >>> [round(speed(k, 8, 0.25), 2) for k in (0, 1, 2, 5)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
