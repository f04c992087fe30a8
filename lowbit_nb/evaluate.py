"""What comes out: how well a model predicts text, and how far it has moved from the original.

Perplexity asks "how good is the model on this text"; KL divergence and top-1 agreement ask "is it still the same model".
The second question is the sharper one for quantization: it needs no labels and sees changes that a lucky text hides.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit_nb.onepass import one_pass
from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows

PROMPTS = (
    "def read_config(path):\n", "def count_words(text):\n", "class Stack:\n", "import os\nimport sys\n\ndef main():\n",
    "def is_prime(n):\n", "def merge(a, b):\n", "class Node:\n    def __init__(self", "def parse_args(argv=None):\n",
    "def fibonacci(n):\n", "for name in sorted(os.listdir(path)):\n", "class Error(Exception):\n", "def add(self, item):\n",
    "with open(path) as f:\n", "def reverse(items):\n", "if __name__ == '__main__':\n", "def close(self):\n",
)


@dataclass(frozen=True)
class Score:
    """One model on one text.

    perplexity  exp of the mean cross-entropy a token          kl    mean KL(original || model), nats a token
    top1        share of positions where both models' first choice is the same token

    Source: this project. Differs: no difference.
    """

    perplexity: float
    kl: float
    top1: float
    n_tokens: int


def perplexity(subject: Subject, windows: Windows, batch: int = 8) -> float:
    """exp(mean cross-entropy): each window by itself, every token but a window's first predicted once.

    Shapes:  windows.ids [n, length].
    Units:   1 is certainty; the vocabulary size is blind guessing.
    Raises:  ValueError if a window is longer than the model's context.
    Source:  the protocol of the GPTQ code (non-overlapping windows, no carried context).
    Differs: the mean is over predicted tokens, so windows of any length weigh alike.
    """
    total, count = 0.0, 0
    for ids, logits in _logits(subject, windows, batch):
        total += float(_cross_entropy(logits, ids).sum(dtype=torch.float64))
        count += ids[:, 1:].numel()
    return math.exp(total / count)


def compare(original: Subject, other: Subject, windows: Windows, batch: int = 8) -> Score:
    """Perplexity of `other`, and how far its predictions are from the original's.

    Shapes:  windows.ids [n, length].
    Units:   KL in nats a token; top1 a share.
    Raises:  ValueError if a window is longer than the model's context or the vocabularies differ.
    Source:  KL(original || quantized) as in llama.cpp's --kl-divergence and in YAQA, Sec. 5.
    Differs: no difference.
    """
    return compare_all(original, [other], windows, batch)[0]


def compare_all(original: Subject, others: list[Subject], windows: Windows, batch: int = 8) -> list[Score]:
    """`compare` for several models; the original reads the text once.

    Shapes:  windows.ids [n, length]; one score a model.
    Units:   as `compare`.
    Raises:  as `compare`.
    Source:  as `compare`.
    Differs: no difference.
    """
    sums = torch.zeros(len(others), 3, dtype=torch.float64)  # nats, KL, same first choice
    count = 0
    for (ids, a), *rest in zip(*(_logits(s, windows, batch) for s in [original, *others]), strict=True):
        count += ids[:, 1:].numel()
        for row, (_, b) in zip(sums, rest, strict=True):
            row += torch.tensor(_sums(ids, a, b), dtype=torch.float64)
    return [Score(math.exp(nats / count), kl / count, same / count, count) for nats, kl, same in sums.tolist()]


def generate(subject: Subject, prompts: Iterable[str], n_tokens: int = 48) -> list[str]:
    """Greedy continuations, all prompts in one batch.

    Shapes:  one string a prompt: the continuation without the prompt.
    Units:   n_tokens tokens at most; an end token stops a continuation.
    Raises:  ValueError for an empty prompt.
    Source:  transformers' generate, greedy.
    Differs: no difference.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [subject.tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    if not all(rows):
        raise ValueError("a prompt is empty; give at least one token")
    width, end = max(map(len, rows)), subject.tokenizer.eos_token_id
    end = subject.model.config.eos_token_id if end is None else end
    ids = torch.tensor([[end] * (width - len(r)) + r for r in rows], device=subject.device)  # left padding
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=subject.device)
    out = subject.model.generate(ids, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, pad_token_id=end)
    return [subject.tokenizer.decode(row, skip_special_tokens=True) for row in out[:, width:].tolist()]


def parse_rate(subject: Subject, prompts: Iterable[str] = PROMPTS, n_tokens: int = 48) -> float:
    """The share of generated snippets that are Python: prompt and continuation parse once the cut end is trimmed.

    Shapes:  one number.
    Units:   a share of the prompts.
    Raises:  ValueError for an empty prompt.
    Source:  this project.
    Differs: no difference.
    """
    prompts = list(prompts)
    texts = generate(subject, prompts, n_tokens)
    return sum(parses(p, t) for p, t in zip(prompts, texts, strict=True)) / len(prompts)


def parses(prompt: str, continuation: str) -> bool:
    """Whether prompt + continuation is Python, allowing the last lines to be cut off: at least half of them must stay.

    Shapes:  two strings in, one bool out.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> parses("def f():\\n", "    return 1\\n    x = ("), parses("def f():\\n", "return return\\nreturn return")
    (True, False)
    """
    lines = continuation.split("\n")
    for keep in range(len(lines), (len(lines) - 1) // 2, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes are still Python
                ast.parse(prompt + "\n".join(lines[:keep]))
            return True
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: runs of thousands of signs
            continue
    return False


@torch.no_grad()
def _logits(subject: Subject, windows: Windows, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of ids and the logits that predict all but the first token of each window, in float32."""
    subject.check_fits(windows.ids.shape[1])
    if subject.blockwise:
        yield from ((ids, logits[:, :-1].float()) for ids, logits in one_pass(subject, windows, batch))
        return
    for i in range(0, len(windows.ids), batch):
        ids = windows.ids[i : i + batch].to(subject.device)
        yield ids, subject.model(ids, use_cache=False).logits[:, :-1].float()


def _sums(ids: Tensor, a: Tensor, b: Tensor) -> tuple[float, float, float]:
    if a.shape != b.shape:
        raise ValueError(f"vocabularies differ: {a.shape[-1]} and {b.shape[-1]} tokens; compare models of one tokenizer")
    kl = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    same = (a.argmax(-1) == b.argmax(-1)).sum()
    return float(_cross_entropy(b, ids).sum(dtype=torch.float64)), float(kl.sum(dtype=torch.float64)), float(same)


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
