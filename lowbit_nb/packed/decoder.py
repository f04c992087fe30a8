"""Greedy writing, one token a step, without ever asking the GPU how far it is.

The token, its slot, what was written and the cache are tensors that stay where they are; a step reads and changes them in place
and ends in its own argmax.  So a step is the same launches every time: run one by one ("eager"), compiled ("compiled"), or
captured once as a CUDA graph and replayed ("captured").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lowbit_nb.packed import slim as slims
from lowbit_nb.packed.cache import SlotCache
from lowbit_nb.packed.slim import Slim
from lowbit_nb.subject import Subject

MODES = ("eager", "compiled", "captured")
WARM = 3  # steps before a step is captured: kernels are compiled and workspaces made
RUN = 256  # tokens that are compared together
LOOK = 32  # steps between looks at whether every sequence has ended
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest logit


class Decoder:
    """Continues prompts greedily; any decoder of transformers that takes a cache, packed or not.

    max_length  slots of the cache: prompt and continuation together        batch  sequences written side by side
    graph       "eager", "compiled", "captured"; None: captured on a GPU, eager elsewhere
    slim        one launch between two products (Llama-shaped models); None: where it gives the model's own logits

    `slim` and `why` say afterwards which step is taken and why not the other; `mode` is the graph that was chosen.
    Weights, hooks and lanes are those of its making: make another decoder after changing them.

    Source: CUDA graphs and static caches as in gpt-fast. Differs: any model; prompts are read by the model's own forward pass.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module | Subject, max_length: int, batch: int = 1, graph: str | None = None,
                 slim: bool | None = None) -> None:
        self.model, self.tokenizer = (model.model, model.tokenizer) if isinstance(model, Subject) else (model, None)
        self.device = next(self.model.parameters()).device
        self.mode = graph or ("captured" if self.device.type == "cuda" else "eager")
        self.max_length, self.batch = max_length, batch
        self._check()
        config = self.model.config.get_text_config(decoder=True)
        self.cache = SlotCache(config.num_hidden_layers, max_length)
        self.token = self._zeros(batch, 1)
        self.slot = self._zeros(1)
        self.pads = self._zeros(batch)
        self.live = self._zeros(batch, max_length) + 1  # 0 where a prompt is padded
        self.written = self._zeros(batch, max_length)
        self.logits: Callable[[], Tensor] = self._own_logits
        self.slim, self.why = False, "it was not asked for"
        if slim is not False:
            self._try_slim()
            if slim and not self.slim:
                raise ValueError(f"the step of this model cannot be slim: {self.why}; leave slim=None to use its own")
        self.step = self._prepared()

    def generate(self, ids: Tensor, n_tokens: int, mask: Tensor | None = None,
                 end: int | Sequence[int] | None = None) -> Tensor:
        """The most likely next token, again and again.

        ids   prompts, padded on the left where they differ in length        mask  1 for tokens, 0 for padding; None: no padding
        end   tokens that end a sequence; what would follow is filled with the first of them

        Shapes:  ids, mask [batch, n]; returns [batch, n_tokens], fewer if every sequence has ended.
        Units:   tokens.
        Raises:  ValueError if the batch is another, or prompt and continuation do not fit max_length.
        Source:  transformers' generate, greedy.
        Differs: no difference.
        """
        ends = [] if end is None else [end] if isinstance(end, int) else list(end)
        n = self._check_prompt(ids, n_tokens, mask)
        self.prefill(ids, mask)
        for i in range(1, n_tokens):
            if ends and i % LOOK == 0 and self._ended(n, n + i, ends).any(1).all():
                break
            self.step()
        out = self.written[:, n : int(self.slot) + 1].clone()
        return self._cut(out, self._ended(n, n + out.shape[1], ends), ends) if ends else out

    def text(self, prompts: Sequence[str], n_tokens: int = 48) -> list[str]:
        """Greedy continuations, one a prompt, up to the tokenizer's end token.

        Shapes:  as many strings as the batch; returns as many, without the prompts.
        Units:   n_tokens tokens at most.
        Raises:  ValueError for an empty prompt, a decoder without a tokenizer, or as `generate`.
        Source:  `evaluate.generate`.
        Differs: no difference.
        """
        if self.tokenizer is None:
            raise ValueError("this decoder knows tokens only; text needs one that was made from a subject with a tokenizer")
        rows = [self.tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
        if not all(rows):
            raise ValueError("a prompt is empty; give at least one token")
        width, end = max(map(len, rows)), self.tokenizer.eos_token_id
        end = self.model.config.eos_token_id if end is None else end
        filler = end if isinstance(end, int) else end[0]
        ids = torch.tensor([[filler] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        out = self.generate(ids, n_tokens, mask, end)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in out.tolist()]

    @torch.no_grad()
    def prefill(self, ids: Tensor, mask: Tensor | None = None) -> None:
        """Read prompts and write the first token after them.

        Shapes:  as `generate`.
        Units:   tokens.
        Raises:  as `generate`.
        Source:  this project.
        Differs: no difference.
        """
        n = self._check_prompt(ids, 1, mask)
        ids = ids.to(self.device)
        mask = None if mask is None else mask.to(self.device, torch.int64)
        self.live.fill_(1)
        if mask is not None:
            self.live[:, :n] = mask
        self.pads.copy_((1 - self.live).sum(1))
        positions = (torch.arange(n, device=self.device) - self.pads[:, None]).clamp(min=0)
        self._place(torch.arange(n, device=self.device), 0)
        logits = self.model(ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
                            logits_to_keep=1).logits[:, -1]
        self._place(self.slot, self.slot)
        self.slot.fill_(n)
        self._write(logits)

    def _step(self) -> None:
        with torch.no_grad():
            logits = self.logits()
            self.slot.add_(1)
            self._write(logits)

    def _write(self, logits: Tensor) -> None:
        """The token after slot - 1, into its buffer and what was written."""
        self.token.copy_(most_likely(logits))
        self.written.index_copy_(1, self.slot, self.token)

    def _own_logits(self) -> Tensor:
        """One step of the model's own forward pass."""
        positions = self.slot - self.pads[:, None]
        return self.model(self.token, attention_mask=self.live, position_ids=positions, past_key_values=self.cache,
                          use_cache=True).logits[:, -1]

    def _slim_logits(self) -> Tensor:
        return self._slim(self.token, self.cache.layers, self.slot, self.pads)

    def _place(self, slots: Tensor, seen: int | Tensor) -> None:
        self.cache.place.slots, self.cache.place.seen = slots, seen

    def _try_slim(self) -> None:
        """Take the slim step if names propose it and a trial gives the model's own logits."""
        self.why = slims.why_not(self.model)
        if self.why:
            return
        self._slim = Slim(self.model, self.max_length, self.batch)
        g = torch.Generator().manual_seed(0)
        self.prefill(torch.randint(self.model.config.vocab_size, (self.batch, 1), generator=g))
        for _ in range(min(3, self.max_length - 2)):  # rotary positions do nothing at the first token
            self._step()
        own, other = self._own_logits().float(), self._slim_logits().float()
        gap = float((own - other).abs().max() / own.abs().max())
        self.slim = gap <= TOLERANCE.get(self.model.dtype, 0.0)
        self.why = None if self.slim else f"its logits would be off by {gap:.1e} of the largest one"
        if self.slim:
            self.logits = self._slim_logits

    def _prepared(self) -> Callable[[], None]:
        """The step in the mode that was asked for."""
        if self.mode == "eager":
            return self._step
        self.prefill(torch.zeros(self.batch, 1, dtype=torch.long))
        if self.mode == "compiled":
            return torch.compile(self._step)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self._step()
                self.slot.fill_(1)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        return self.graph.replay

    def _ended(self, start: int, stop: int, ends: list[int]) -> Tensor:
        """Where ends were written. [batch, stop - start]"""
        return torch.isin(self.written[:, start:stop], torch.tensor(ends, device=self.device))

    def _cut(self, out: Tensor, ended: Tensor, ends: list[int]) -> Tensor:
        after = ended.cumsum(1) - ended.long() > 0
        longest = int((~after).sum(1).max())
        return out.masked_fill(after, ends[0])[:, :longest]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=self.device)

    def _check(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"graph={self.mode!r} is unknown; use one of {', '.join(MODES)}")
        if self.mode == "captured" and self.device.type != "cuda":
            raise ValueError(f"a CUDA graph cannot be captured on {self.device}; use graph='eager' or move the model to a GPU")
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if self.max_length < 2 or self.batch < 1 or (longest and self.max_length > longest):
            raise ValueError(f"max_length={self.max_length}, batch={self.batch}: a decoder has at least 2 slots, 1 sequence, "
                             f"and no more slots than the model's context of {longest}")

    def _check_prompt(self, ids: Tensor, n_tokens: int, mask: Tensor | None) -> int:
        batch, n = ids.shape if ids.ndim == 2 else (0, 0)
        if batch != self.batch or n == 0:
            raise ValueError(f"ids have shape {list(ids.shape)}; this decoder takes [{self.batch}, n] with n of at least 1; "
                             f"make one with batch={len(ids)} for other prompts")
        if n + n_tokens > self.max_length or n_tokens < 1:
            raise ValueError(f"{n} tokens and {n_tokens} new ones do not fit max_length={self.max_length}; "
                             f"write {max(0, self.max_length - n)} at most, or make a decoder with max_length={n + n_tokens}")
        if mask is not None and (mask.shape != ids.shape or not bool((mask[:, -1] == 1).all() & (mask.diff() >= 0).all())):
            raise ValueError("mask is 1 for tokens and 0 for padding, which stands on the left, in the shape of ids")
        return n


def most_likely(logits: Tensor) -> Tensor:
    """The first token with the largest logit, by runs of RUN tokens: one long row would keep a single program busy.

    Shapes:  logits [batch, vocabulary]; returns [batch, 1].
    Units:   tokens.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if logits.shape[1] % RUN:
        return logits.argmax(-1, keepdim=True)
    best, at = logits.unflatten(1, (-1, RUN)).max(-1)
    first = best.argmax(-1, keepdim=True)
    return first * RUN + at.gather(1, first)
